//! Releases: who may make them, in which order, and what stops them.

use std::collections::BTreeSet;

use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::keys::Domain;
use croft_protocol::release::{BootFile, KeyChange, Measurement, Release, StopRule, Trials, Tried, Window};
use croft_protocol::{Command, PriceList, SecretKey};
use proptest::prelude::*;

use super::*;
use crate::memory::{Scenario, key, name};

/// Release keys of the tests; two of them are needed.
const KEYS: [u8; 3] = [61, 62, 63];

struct World(Scenario);

/// The farm of the bot `olga`, beside the scenario's own.
fn second_farm(world: &World) -> FarmId {
    FarmId::new(&world.0.other.public(), &name("blue"))
}

fn version(text: &str) -> ReleaseVersion {
    text.parse().unwrap()
}

fn keys(numbers: &[u8], threshold: u8) -> ReleaseKeys {
    ReleaseKeys::new(threshold, numbers.iter().map(|n| key(*n).public()).collect())
}

fn release(text: &str, previous: Option<&str>) -> Release {
    Release {
        channel: name("stable"),
        version: version(text),
        previous: previous.map(version),
        minimum: ReleaseVersion::default(),
        boot_file: BootFile {
            sha256: Hash([1; 32]),
            size_bytes: 1 << 20,
            authenticode: Hash([2; 32]),
            manifest: Hash([3; 32]),
        },
        measurements: vec![Measurement { pcr: 9, digest: Hash([4; 32]) }],
        stop: StopRule { returns: 2, per_mille: 500 },
        notes: "notes".to_owned(),
    }
}

fn policy() -> FarmPolicy {
    let window = Some(Window { start_minute: 60, duration_minutes: 120 });
    FarmPolicy { channel: name("stable"), share_per_mille: 100, window, hold: false }
}

impl World {
    /// Release keys are set, and the farm follows `stable`.
    fn new() -> Self {
        let mut world = Self(Scenario::new());
        world.set_keys(None, &keys(&KEYS, 2), &[101, 102, 103]).unwrap();
        let (farmer, farm) = (world.0.farmer.clone(), world.0.farm);
        world.submit(&farmer, Command::SetFarmPolicy { farm, policy: policy() }).unwrap();
        let (other, farm) = (world.0.other.clone(), second_farm(&world));
        let prices = PriceList { cpu: 10, memory_gib: 2, ssd_gib: 1, hdd_gib: 0 };
        let create =
            Command::CreateFarm { name: name("blue"), country: "be".to_owned(), region: None, prices };
        world.submit(&other, create).unwrap();
        world.submit(&other, Command::SetFarmPolicy { farm, policy: policy() }).unwrap();
        world
    }

    fn submit(&mut self, by: &SecretKey, command: Command) -> Result<(), Rejection> {
        let before = self.0.ledger.state().clone();
        let result = self.0.ledger.submit(by, command).map(|_| ());
        if result.is_err() {
            assert_eq!(*self.0.ledger.state(), before, "a rejected command changes nothing");
        }
        result
    }

    fn set_keys(&mut self, prev: Option<Hash>, keys: &ReleaseKeys, signers: &[u8]) -> Result<(), Rejection> {
        let chain = self.0.ledger.chain();
        let change = KeyChange { prev, keys: keys.clone() };
        let mut signatures: Vec<_> = signers.iter().map(|n| change.sign(&key(*n), &chain)).collect();
        signatures.sort_unstable();
        let signed = SignedKeyChange { change, signatures };
        self.submit(&key(77), Command::SetReleaseKeys(Box::new(signed)))
    }

    fn present_keys(&self) -> Option<Hash> {
        self.0.ledger.record(&RecordId::release_keys()).unwrap().map(|record| record.hash())
    }

    fn publish_by(&mut self, release: Release, signers: &[u8]) -> Result<(), Rejection> {
        let chain = self.0.ledger.chain();
        let mut signed = SignedRelease { release, signatures: Vec::new() };
        for n in signers {
            signed.add(signed.release.sign(&key(*n), &chain));
        }
        self.submit(&key(77), Command::PublishRelease(Box::new(signed)))
    }

    fn publish(&mut self, text: &str, previous: Option<&str>) {
        self.publish_by(release(text, previous), &KEYS[..2]).unwrap();
    }

    fn halt(&mut self, by: &SecretKey, text: &str) -> Result<(), Rejection> {
        let (channel, reason) = (name("stable"), "it eats disks".to_owned());
        self.submit(by, Command::HaltRelease { channel, version: version(text), reason })
    }

    /// A node of the farm, registered with a release.
    fn register(&mut self, node: u8, runs: &str) -> SecretKey {
        let farmer = self.0.farmer.clone();
        self.register_of(&farmer, self.0.farm, node, runs)
    }

    /// The same in the second farm.
    fn register_elsewhere(&mut self, node: u8, runs: &str) -> SecretKey {
        let other = self.0.other.clone();
        self.register_of(&other, second_farm(self), node, runs)
    }

    fn register_of(&mut self, owner: &SecretKey, farm: FarmId, node: u8, runs: &str) -> SecretKey {
        let node_key = key(node);
        let mut body = self.0.node_body();
        (body.farm, body.name, body.release) = (farm, name(&format!("n{node}")), runs.to_owned());
        let join = Join { farm, expires_ms: self.0.now_ms() + 1000, nonce: [node; 16] };
        let signature = owner.sign_as_bot(Domain::JOIN, &self.0.ledger.chain(), &join);
        let join = SignedJoin { join, signature };
        self.submit(&node_key, Command::RegisterNode { node: body, join: Some(join), attestation: None })
            .unwrap();
        node_key
    }

    fn tell(&mut self, node: &SecretKey, text: &str, outcome: Outcome) -> Result<(), Rejection> {
        let channel = name("stable");
        self.submit(node, Command::ReleaseOutcome { channel, version: version(text), outcome })
    }

    fn channel(&self) -> ChannelBody {
        self.0.ledger.channel(&name("stable")).unwrap().unwrap()
    }

    fn state(&self, text: &str) -> ReleaseState {
        let id = ReleaseId::new(&name("stable"), version(text));
        self.0.ledger.release(&id).unwrap().unwrap().state
    }

    fn trials(&self, text: &str) -> Trials {
        self.0.ledger.trials(&ReleaseId::new(&name("stable"), version(text))).unwrap()
    }
}

fn returned() -> Outcome {
    Outcome::Returned { reason: "it did not register within 300 s".to_owned() }
}

fn text(result: Result<(), Rejection>) -> String {
    let text = result.unwrap_err().to_string();
    let prefix = "the release, its keys, the policy or the outcome is no good: ";
    text.strip_prefix(prefix).unwrap_or(&text).to_owned()
}

#[test]
fn the_first_keys_are_the_validators_and_later_ones_the_keys_own() {
    let mut world = World(Scenario::new());
    let refusal = text(world.publish_by(release("1.0.0", None), &KEYS));
    assert!(refusal.starts_with("this grid has no release keys"), "{refusal}");
    let first = keys(&KEYS, 2);
    let refusal = text(world.set_keys(None, &first, &[101, 102]));
    assert!(refusal.starts_with("it is signed by 2 of 4 power of the validators"), "{refusal}");
    let refusal = text(world.set_keys(None, &first, &[61, 101, 102, 103]));
    assert!(refusal.ends_with("signed it but is no validator: leave that signature out"), "{refusal}");
    world.set_keys(None, &first, &[101, 102, 103]).unwrap();

    // The validators have no say any more.
    let next = keys(&[61, 62, 64], 2);
    let refusal = text(world.set_keys(None, &next, &[101, 102, 103]));
    assert!(refusal.starts_with("it supersedes the release keys of record none"), "{refusal}");
    let present = world.present_keys();
    let refusal = text(world.set_keys(present, &next, &[101, 102, 103]));
    assert!(refusal.ends_with("is no release key: leave that signature out"), "{refusal}");
    let refusal = text(world.set_keys(present, &next, &[61]));
    assert_eq!(refusal, "it is signed by 1 of the 2 release keys that are needed: have more sign it");
    let refusal = text(world.set_keys(present, &first, &[61, 62]));
    assert_eq!(refusal, "the release keys and their threshold are already these");
    world.set_keys(present, &next, &[61, 63]).unwrap();
    // Nor is an old change good twice.
    assert!(text(world.set_keys(present, &first, &[61, 62])).contains("make and sign it again"));
    world.publish_by(release("1.0.0", None), &[62, 64]).unwrap();
    assert!(text(world.publish_by(release("1.0.1", Some("1.0.0")), &[61, 63])).contains("no release key"));
}

#[test]
fn versions_only_grow_and_each_names_the_one_before() {
    let mut world = World::new();
    world.publish("1.0.0", None);
    assert_eq!(
        text(world.publish_by(release("1.0.1", None), &KEYS)),
        "it follows none, but the latest release of channel 'stable' is 1.0.0: make and sign it again"
    );
    for old in ["1.0.0", "0.9.9"] {
        assert_eq!(
            text(world.publish_by(release(old, Some("1.0.0")), &KEYS)),
            format!("version {old} is not above 1.0.0, the latest of channel 'stable': choose a greater one")
        );
    }
    world.publish("1.0.1", Some("1.0.0"));
    let expected = ChannelBody {
        name: name("stable"),
        latest: version("1.0.1"),
        offered: Some(version("1.0.1")),
        minimum: ReleaseVersion::default(),
    };
    assert_eq!(world.channel(), expected);
    // Another channel has its own line.
    let nightly = Release { channel: name("nightly"), ..release("0.5.0", None) };
    world.publish_by(nightly, &KEYS).unwrap();
}

#[test]
fn the_minimum_never_falls_and_never_passes_its_own_version() {
    let mut world = World::new();
    let with = |text: &str, previous, minimum: &str| Release {
        minimum: version(minimum),
        ..release(text, previous)
    };
    assert!(text(world.publish_by(with("1.0.0", None, "1.0.1"), &KEYS)).starts_with("its minimum 1.0.1"));
    world.publish_by(with("1.0.0", None, "0.9.0"), &KEYS).unwrap();
    let lower = with("1.0.1", Some("1.0.0"), "0.8.9");
    assert_eq!(
        text(world.publish_by(lower, &KEYS)),
        "its minimum 0.8.9 must be between 0.9.0, the channel's present one, and its own version 1.0.1"
    );
    world.publish_by(with("1.0.1", Some("1.0.0"), "1.0.1"), &KEYS).unwrap();
    assert_eq!(world.channel().minimum, version("1.0.1"));
    // What is below the minimum is not offered again, even when nothing else is left.
    let by = key(61);
    world.halt(&by, "1.0.1").unwrap();
    assert_eq!(world.channel().offered, None);
}

#[test]
fn one_key_halts_a_release_and_the_channel_offers_the_one_before() {
    let mut world = World::new();
    world.publish("1.0.0", None);
    world.publish("1.0.1", Some("1.0.0"));
    world.publish("1.0.2", Some("1.0.1"));
    let (stranger, one) = (world.0.farmer.clone(), key(62));
    assert!(text(world.halt(&stranger, "1.0.2")).starts_with("only a release key may do this"));
    assert_eq!(text(world.halt(&one, "3.0.0")), "there is no release 3.0.0 in channel 'stable' on this grid");
    world.halt(&one, "1.0.1").unwrap();
    assert_eq!(world.channel().offered, Some(version("1.0.2")), "a newer one stays");
    world.halt(&one, "1.0.2").unwrap();
    assert_eq!(world.channel().offered, Some(version("1.0.0")), "past the other that is halted");
    assert_eq!(text(world.halt(&one, "1.0.2")), "release 1.0.2 of channel 'stable' is halted already");
    let ReleaseState::Halted(halt) = world.state("1.0.2") else { panic!("it is halted") };
    assert_eq!(halt.to_string(), format!("halted by release key {}: it eats disks", one.public().short()));
    world.publish("1.0.3", Some("1.0.2"));
    assert_eq!(world.channel().offered, Some(version("1.0.3")));
}

#[test]
fn a_release_from_which_too_many_return_halts_itself() {
    let mut world = World::new();
    world.publish("1.0.0", None);
    world.publish("1.0.1", Some("1.0.0"));
    let good = world.register(11, "1.0.1");
    world.tell(&good, "1.0.1", Outcome::Confirmed).unwrap();
    let (one, two) = (world.register(12, "1.0.0"), world.register_elsewhere(13, "1.0.0"));
    world.tell(&one, "1.0.1", returned()).unwrap();
    assert_eq!(world.state("1.0.1"), ReleaseState::Published, "half of them, but one is not two");
    assert_eq!(world.channel().offered, Some(version("1.0.1")));
    world.tell(&two, "1.0.1", returned()).unwrap();
    let largest = Tried { confirmed: 1, returned: 1 };
    let trials = Trials { confirmed: 1, returned: 2, counted: 2, largest };
    assert_eq!(world.trials("1.0.1"), trials);
    assert_eq!(world.state("1.0.1"), ReleaseState::Halted(Halt::Returns { trials }));
    assert_eq!(world.channel().offered, Some(version("1.0.0")));
    // Those who are late are still counted.
    let late = world.register(14, "1.0.0");
    world.tell(&late, "1.0.1", returned()).unwrap();
    assert_eq!(world.trials("1.0.1").returned, 3);
}

#[test]
fn the_returns_of_one_farmers_nodes_stop_nothing_until_another_farmers_node_bears_them_out() {
    let mut world = World::new();
    world.publish("1.0.0", None);
    world.publish("1.0.1", Some("1.0.0"));
    for node in 11..17 {
        let node = world.register(node, "1.0.0");
        world.tell(&node, "1.0.1", returned()).unwrap();
    }
    let largest = Tried { confirmed: 0, returned: 6 };
    assert_eq!(world.trials("1.0.1"), Trials { confirmed: 0, returned: 6, counted: 1, largest });
    assert_eq!(world.state("1.0.1"), ReleaseState::Published);
    assert_eq!(world.channel().offered, Some(version("1.0.1")), "the others still get it");
    let id = ReleaseId::new(&name("stable"), version("1.0.1"));
    let (fred, olga) = (world.0.farmer.public(), world.0.other.public());
    assert_eq!(world.0.ledger.farmer_trials(&id, &fred).unwrap(), largest);
    assert_eq!(world.0.ledger.farmer_trials(&id, &olga).unwrap(), Tried::default());
    // A second farm of the same farmer is no second voice.
    let farmer = world.0.farmer.clone();
    let prices = PriceList { cpu: 10, memory_gib: 2, ssd_gib: 1, hdd_gib: 0 };
    let create = Command::CreateFarm { name: name("red"), country: "be".to_owned(), region: None, prices };
    world.submit(&farmer, create).unwrap();
    let red = FarmId::new(&fred, &name("red"));
    world.submit(&farmer, Command::SetFarmPolicy { farm: red, policy: policy() }).unwrap();
    let mine = world.register_of(&farmer, red, 17, "1.0.0");
    world.tell(&mine, "1.0.1", returned()).unwrap();
    assert_eq!(world.trials("1.0.1").counted, 1);
    assert_eq!(world.state("1.0.1"), ReleaseState::Published);

    let other = world.register_elsewhere(18, "1.0.0");
    world.tell(&other, "1.0.1", returned()).unwrap();
    let ReleaseState::Halted(halt) = world.state("1.0.1") else { panic!("two farmers say so") };
    assert_eq!(halt.to_string(), "halted by itself: 8 nodes returned to the release before, 0 confirmed it");
    assert_eq!(world.channel().offered, Some(version("1.0.0")));
}

#[test]
fn a_node_tells_once_and_only_what_its_registration_bears_out() {
    let mut world = World::new();
    world.publish("1.0.0", None);
    let (old, new) = (world.register(11, "0.9.0"), world.register(12, "1.0.0"));
    assert_eq!(
        text(world.tell(&old, "1.0.0", Outcome::Confirmed)),
        "the node is registered with release '0.9.0', which does not fit: who confirms a release is registered with it"
    );
    assert_eq!(
        text(world.tell(&new, "1.0.0", returned())),
        "the node is registered with release '1.0.0', which does not fit: who returned from a release is registered with another"
    );
    assert!(text(world.tell(&key(99), "1.0.0", returned())).starts_with("there is no node"));
    let long = Outcome::Returned { reason: "x".repeat(1025) };
    assert!(text(world.tell(&old, "1.0.0", long)).starts_with("the length of the reason in bytes"));
    world.tell(&old, "1.0.0", returned()).unwrap();
    let again = "the node has said already what became of release 1.0.0 of channel 'stable'";
    assert_eq!(text(world.tell(&old, "1.0.0", returned())), again);
    let largest = Tried { confirmed: 0, returned: 1 };
    assert_eq!(world.trials("1.0.0"), Trials { confirmed: 0, returned: 1, counted: 1, largest });
}

#[test]
fn a_node_whose_farm_follows_another_channel_has_no_say() {
    let mut world = World::new();
    world.publish("1.0.0", None);
    let node = world.register(11, "0.9.0");
    let (farmer, farm) = (world.0.farmer.clone(), world.0.farm);
    let other = FarmPolicy { channel: name("nightly"), ..policy() };
    world.submit(&farmer, Command::SetFarmPolicy { farm, policy: other }).unwrap();
    assert_eq!(
        text(world.tell(&node, "1.0.0", returned())),
        "the node's farm does not follow channel 'stable'"
    );
}

#[test]
fn a_policy_is_its_farmers_and_within_bounds() {
    let mut world = World::new();
    let (farmer, user, farm) = (world.0.farmer.clone(), world.0.user.clone(), world.0.farm);
    assert_eq!(world.0.ledger.farm_policy(&farm).unwrap(), Some(policy()));
    let refusal = text(world.submit(&user, Command::SetFarmPolicy { farm, policy: policy() }));
    assert!(refusal.starts_with("only the owner of farm 'green' may do this"), "{refusal}");
    let all = FarmPolicy { share_per_mille: 1001, ..policy() };
    assert_eq!(
        text(world.submit(&farmer, Command::SetFarmPolicy { farm, policy: all })),
        "the share per mille must be 0 to 1000, not 1001"
    );
    let held = FarmPolicy { hold: true, window: None, ..policy() };
    world.submit(&farmer, Command::SetFarmPolicy { farm, policy: held.clone() }).unwrap();
    assert_eq!(world.0.ledger.farm_policy(&farm).unwrap(), Some(held));
}

#[test]
fn a_release_altered_after_it_was_signed_or_of_another_grid_is_refused() {
    let mut world = World::new();
    let chain = world.0.ledger.chain();
    let mut signed = SignedRelease { release: release("1.0.0", None), signatures: Vec::new() };
    for n in &KEYS[..2] {
        signed.add(signed.release.sign(&key(*n), &chain));
    }
    let mut altered = signed.clone();
    altered.release.boot_file.sha256 = Hash([9; 32]);
    let by = key(77);
    let refusal = text(world.submit(&by, Command::PublishRelease(Box::new(altered))));
    assert!(refusal.ends_with("is wrong: have it signed again"), "{refusal}");
    let mut elsewhere = SignedRelease { release: signed.release.clone(), signatures: Vec::new() };
    let other = croft_protocol::ChainId(Hash([8; 32]));
    for n in &KEYS[..2] {
        elsewhere.add(elsewhere.release.sign(&key(*n), &other));
    }
    assert!(world.submit(&by, Command::PublishRelease(Box::new(elsewhere))).is_err());
    world.submit(&by, Command::PublishRelease(Box::new(signed))).unwrap();
}

#[test]
fn a_farms_nodes_may_run_the_releases_of_its_channel_and_none_that_stopped() {
    let mut world = World::new();
    let known = |world: &World| {
        let (ledger, farm) = (&world.0.ledger, &world.0.farm);
        let followed = crate::execute::trust::followed_releases(ledger, farm).unwrap();
        followed.iter().map(|release| release.boot_file.authenticode).collect::<BTreeSet<_>>()
    };
    assert_eq!(known(&world), BTreeSet::new());
    let file = |n: u8| Hash([n; 32]);
    let with = |text: &str, previous, n: u8, minimum: &str| {
        let mut release = Release { minimum: version(minimum), ..release(text, previous) };
        release.boot_file.authenticode = file(n);
        release
    };
    world.publish_by(with("1.0.0", None, 1, "0.0.0"), &KEYS).unwrap();
    world.publish_by(with("1.1.0", Some("1.0.0"), 2, "0.0.0"), &KEYS).unwrap();
    world.publish_by(with("1.2.0", Some("1.1.0"), 3, "0.0.0"), &KEYS).unwrap();
    assert_eq!(known(&world), BTreeSet::from([file(1), file(2), file(3)]));
    world.halt(&key(61), "1.1.0").unwrap();
    assert_eq!(known(&world), BTreeSet::from([file(1), file(3)]), "what stopped is no longer known");
    world.publish_by(with("1.3.0", Some("1.2.0"), 4, "1.2.0"), &KEYS).unwrap();
    assert_eq!(known(&world), BTreeSet::from([file(3), file(4)]), "what is below the minimum is not either");
    let (farmer, farm) = (world.0.farmer.clone(), world.0.farm);
    let elsewhere = FarmPolicy { channel: name("beta"), ..policy() };
    world.submit(&farmer, Command::SetFarmPolicy { farm, policy: elsewhere }).unwrap();
    assert_eq!(known(&world), BTreeSet::new(), "the farm follows another channel");
}

/// What a model knows of one release.
#[derive(Default)]
struct Known {
    halted: bool,
    trials: Trials,
    farmers: [Tried; 2],
}

/// Every other node is of the second farm.
fn farmer_of(node: usize) -> usize {
    node % 2
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// The ledger in memory checks every invariant after each block by itself.
    #[test]
    fn random_histories_of_releases_are_those_of_a_model(
        ops in prop::collection::vec((0_u8..5, 0_usize..6, 0_u8..4), 1..40),
    ) {
        let mut world = World::new();
        let text = |at: usize| format!("1.{at}.0");
        let register = |world: &mut World, who: usize, runs: &str| match farmer_of(who) {
            0 => world.register(11 + who as u8, runs),
            _ => world.register_elsewhere(11 + who as u8, runs),
        };
        let nodes: Vec<SecretKey> = (0..4).map(|who| register(&mut world, who, "0.1.0")).collect();
        let mut runs: Vec<Option<usize>> = vec![None; nodes.len()];
        let mut told = BTreeSet::new();
        let mut model: Vec<Known> = Vec::new();
        for (op, at, node) in ops {
            let (exists, who) = (at < model.len(), usize::from(node));
            let (expected, found) = match op {
                0 => {
                    let previous = model.len().checked_sub(1).map(text);
                    let next = release(&text(model.len()), previous.as_deref());
                    model.push(Known::default());
                    (true, world.publish_by(next, &KEYS[1..]))
                }
                1 => {
                    let expected = exists && !model[at].halted;
                    if expected {
                        model[at].halted = true;
                    }
                    (expected, world.halt(&key(61), &text(at)))
                }
                2 => {
                    runs[who] = Some(at);
                    register(&mut world, who, &text(at));
                    (true, Ok(()))
                }
                _ => {
                    let confirms = runs[who] == Some(at);
                    let expected = exists && told.insert((who, at));
                    let outcome = if confirms { Outcome::Confirmed } else { returned() };
                    if expected {
                        let (known, rule) = (&mut model[at], release("1.0.0", None).stop);
                        let own = &mut known.farmers[farmer_of(who)];
                        (known.trials, *own) = known.trials.count(*own, &outcome, rule).unwrap();
                        known.halted |= rule.stops(known.trials);
                    }
                    (expected, world.tell(&nodes[who], &text(at), outcome))
                }
            };
            prop_assert_eq!(found.is_ok(), expected, "{} {} {}: {:?}", op, at, node, found);
            let Some(latest) = model.len().checked_sub(1) else { continue };
            let offered = model.iter().rposition(|known| !known.halted).map(|at| version(&text(at)));
            let channel = world.channel();
            prop_assert_eq!((channel.latest, channel.offered), (version(&text(latest)), offered));
            for (at, known) in model.iter().enumerate() {
                prop_assert_eq!(world.trials(&text(at)), known.trials);
                prop_assert_eq!(world.state(&text(at)) != ReleaseState::Published, known.halted);
            }
        }
    }
}
