//! Bots that negotiate: several farms with policies of their own, crashes between any two steps, and what they say to
//! each other that does not hold.

use std::collections::BTreeSet;

use croft_protocol::api::{ContractQuery, Phases, Query};
use croft_protocol::contract::Quorum;
use croft_protocol::market::{Demand, Message, NegotiationId, RESERVATION, Reservation, Said, SignedMessage};
use croft_protocol::{Capacity, Grains, Hash, Name, NodeId, SecretKey, Terms};

use super::fake_node::{Behaviour, FakeNode};
use super::world::World;
use crate::deploy_file::{DeployFile, ImageDefaults, Resolved};
use crate::grid::{Grid, now_ms};
use crate::home::Home;
use crate::keyfile::KeyFile;
use crate::market::order::{Buyer, Crash, Limits, PlaceError, Placed, place};
use crate::peers::{self, PeerProblem};
use crate::terminal::Silent;

const SMALL: &str = r#"
name = "web"
[vm.web]
image = "nginx"
cpu = "0.1"
memory = "64M"
[terms]
duration = "1h"
"#;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn behaviour() -> Behaviour {
    Behaviour::default()
}

#[test]
fn the_farm_that_haggles_most_is_taken_and_each_other_one_is_explained() {
    let mut world = World::with_farm();
    let policy = world.file("policy.toml", "[reserve]\nfloor_percent = 40\n");
    let shed = world.add_farm("carol", "shed", "--country nl", &format!("--policy {policy}"));
    let closed = world.file("closed.toml", "maintenance = true\n");
    let barn = world.add_farm("dave", "barn", "--country de --price-cpu 1", &format!("--policy {closed}"));
    let _nodes = [world.boot_config(), shed, barn].map(|config| FakeNode::start_with(&config, behaviour()));
    let file = world.file("web.toml", SMALL);
    // A tenth of a CPU at 100, a sixteenth GiB at 50, rounded up: 14 grains per second by the list.
    let list = 14 * 3600;
    let deployed = world.json(&format!("deploy {file} --yes --bot alice"));
    assert_eq!(deployed["farm"], "shed");
    let price = deployed["price"].as_u64().unwrap();
    assert!(price < list, "{price}");
    let explain = &deployed["explain"];
    assert_eq!(explain["chosen"]["price"].as_u64().unwrap(), price);
    let why = |farm: &str| {
        let others = explain["others"].as_array().unwrap();
        others.iter().find(|other| other["farm_name"] == farm).unwrap()["why"].to_string()
    };
    assert!(why("attic").contains("outscored"), "{explain}");
    assert!(why("barn").contains("maintenance"), "{explain}");

    let other = world.file("two.toml", &SMALL.replace("\"web\"", "\"two\"").replace("vm.web", "vm.two"));
    let text = world.text(&format!("deploy {other} --yes --explain --bot alice"));
    assert!(text.contains("node 'node-1' of farm 'shed' in nl for"), "{text}");
    assert!(text.contains("not node 'node-1' of farm 'attic': it is worth"), "{text}");
    assert!(text.contains("refused: the farm is in maintenance: try again later"), "{text}");
}

#[test]
fn a_person_is_asked_and_a_no_costs_nothing() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, behaviour());
    let file = world.file("web.toml", SMALL);
    let before = world.json("wallet show --bot alice")["balance"].clone();
    let no = world.run_answering(&format!("deploy {file} --bot alice"), &["n"]);
    assert_eq!(no.code, 1, "{}", no.err);
    assert!(no.err.contains("'web' was not ordered: nothing is paid, nothing is reserved"), "{}", no.err);
    let nobody = world.run_answering(&format!("deploy {file} --bot alice"), &["nobody"]);
    assert_eq!(nobody.code, 2, "{}", nobody.err);
    assert!(nobody.err.contains("say yes with --yes, and set a limit with --max-price"), "{}", nobody.err);
    assert_eq!(world.json("wallet show --bot alice")["balance"], before);
    let yes = world.run_answering(&format!("deploy {file} --bot alice"), &["y"]);
    assert_eq!(yes.code, 0, "{}", yes.err);
}

#[test]
fn what_is_beyond_a_limit_names_the_price_the_limit_and_the_remedy() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, behaviour());
    let file = world.file("web.toml", SMALL);
    // 14 grains per second for an hour; up to half as much again is worth asking for.
    let dear = world.run(&format!("deploy {file} --yes --max-price 50000 --bot alice"));
    assert_eq!(dear.code, 4, "{}", dear.err);
    assert!(dear.err.contains("it wants 50 400 grains at last, the limit is 50 000 grains"), "{}", dear.err);
    assert!(dear.err.contains("what to do: raise --max-price"), "{}", dear.err);
    let far = world.run(&format!("deploy {file} --yes --max-price 10 --bot alice"));
    assert_eq!(far.code, 4, "{}", far.err);
    assert!(far.err.contains("it costs 50 400 grains, the limit is 10 grains"), "{}", far.err);
    world.json(&format!("deploy {file} --yes --max-price 50400 --bot alice"));
}

#[test]
fn policies_decide_who_buys_and_a_bad_one_names_its_mistake() {
    let mut world = World::with_farm();
    let _node = FakeNode::start(&world, behaviour());
    let file = world.file("web.toml", SMALL);
    world.stop_farmer();
    for (text, code, says) in [
        ("prices = 3\n", 2, "policy.toml: line 1:"),
        ("[hold]\ntime = \"1h\"\n", 2, "[hold] time: capacity is held for at most 600 s: write less"),
        ("[customers]\nallow = [\"ghost\"]\n", 4, "there is no bot 'ghost' on this grid: correct the name"),
    ] {
        let policy = world.file("policy.toml", text);
        let output = world.run(&format!("farm serve --bot bob --policy {policy}"));
        assert_eq!(output.code, code, "{}", output.err);
        assert!(output.err.contains(says), "{}", output.err);
    }
    let output = world.run("farm serve --bot bob --policy none.toml");
    assert_eq!(output.code, 4, "{}", output.err);
    assert!(output.err.contains("there is no policy file none.toml: see its format with"), "{}", output.err);

    let policy = world.file("policy.toml", "[customers]\ndeny = [\"alice\"]\n");
    let log = world.serve(&format!("--policy {policy}"), &[]);
    let refused = world.run(&format!("deploy {file} --yes --bot alice"));
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(
        refused.err.contains("refused: the farm does not sell to this bot: ask its owner"),
        "{}",
        refused.err
    );
    log.wait_for("refused of alice on node-1: the farm does not sell to this bot");
}

#[test]
fn a_farmer_who_is_asked_decides() {
    let mut world = World::with_farm();
    let _node = FakeNode::start(&world, behaviour());
    let file = world.file("web.toml", SMALL);
    world.stop_farmer();
    let policy = world.file("policy.toml", "[approval]\nmode = \"asked\"\n");
    let log = world.serve(&format!("--policy {policy}"), &["n", "y"]);
    let refused = world.run(&format!("deploy {file} --yes --bot alice"));
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("its owner was asked and said no"), "{}", refused.err);
    let deployed = world.json(&format!("deploy {file} --yes --bot alice"));
    assert_eq!(deployed["state"], "active");
    log.wait_for("signed 'web' of alice on node-1 for 50 400 grains");
}

/// Serves 'attic' anew: what is promised stays promised however slow this machine is.
fn hold_long(world: &mut World) -> String {
    let policy = world.file("hold.toml", "[hold]\ntime = \"10m\"\nfee_percent = 1\n");
    world.stop_farmer();
    world.serve(&format!("--policy {policy}"), &[]);
    policy
}

/// A bot of the world with its own connection.
pub(super) struct Someone {
    home: Home,
    name: Name,
    pub(super) key: SecretKey,
    pub(super) grid: Grid,
}

impl Someone {
    pub(super) fn new(world: &World, bot: &str) -> Self {
        let home = Home::new(&world.home());
        let KeyFile::Open(key) = home.key_file(&name(bot)).unwrap() else { panic!("it is open") };
        let grid = Grid::open(&home, home.grid(None).unwrap(), &key).unwrap();
        Self { home, name: name(bot), key, grid }
    }

    fn buyer(&self) -> Buyer<'_> {
        Buyer { home: &self.home, name: &self.name, key: &self.key, grid: &self.grid }
    }

    async fn order(&self, file: &Resolved, crash: Option<Crash>) -> Result<Placed, PlaceError> {
        let limits = Limits { crash, ..Limits::default() };
        place(&self.buyer(), file, &limits, &mut |_| true, &mut Silent).await
    }

    /// How many contracts of this name there ever were.
    async fn contracts(&self, called: &Name) -> usize {
        let query =
            ContractQuery { user: Some(self.key.public()), phases: Phases::ALL, ..ContractQuery::default() };
        let found = self.grid.find_unproved(&Query::Contracts(query)).await.unwrap();
        let ids: BTreeSet<_> = found.into_iter().map(|id| croft_protocol::ContractId(id.id)).collect();
        let all = self.grid.contracts(&ids.into_iter().collect::<Vec<_>>()).await.unwrap();
        all.iter().filter(|c| c.body.signed.terms.name == *called).count()
    }
}

struct Images(Home);

impl ImageDefaults for Images {
    fn find(&self, image: &str) -> Result<(Hash, croft_protocol::image::ImageConfig), String> {
        let entry = self.0.image(&name(image)).unwrap();
        Ok((
            entry.manifest,
            croft_protocol::image::ImageConfig {
                entrypoint: vec!["/usr/sbin/nginx".to_owned()],
                ..Default::default()
            },
        ))
    }
}

fn resolved(home: &Home, text: &str) -> Resolved {
    let file = DeployFile::parse(std::path::Path::new("web.toml"), text).unwrap();
    file.resolve(&Images(home.clone()), &|_| None).unwrap()
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_crash_between_any_two_steps_never_orders_twice() {
    let mut world = World::with_farm();
    hold_long(&mut world);
    world.text("bot new carol --grains 1000000");
    world.text("bot new dave --grains 1000000");
    let _node = FakeNode::start(&world, behaviour());
    block_on(async {
        let bots = ["alice", "carol", "dave"].map(|bot| Someone::new(&world, bot));
        let mut resumed = 0;
        for crash in 0.. {
            assert!(crash < 100, "an order never ends");
            let bot = &bots[crash % bots.len()];
            let called = name(&format!("o{crash}"));
            let file = resolved(&bot.home, &SMALL.replacen("\"web\"", &format!("\"{called}\""), 1));
            let whole = match bot.order(&file, Some(Crash::Before(crash))).await {
                Err(PlaceError::Crashed) => false,
                Ok(_) => true,
                Err(other) => panic!("before output {crash}: {other}"),
            };
            if whole {
                break;
            }
            // The second try is the first one's, wherever it had got to.
            match bot.order(&file, None).await {
                Ok(placed) => resumed += usize::from(placed.resumed),
                // It had got to its end, but for saying so.
                Err(PlaceError::Exists { .. }) => {}
                Err(other) => panic!("after a crash before output {crash}: {other}"),
            }
            assert_eq!(bot.contracts(&called).await, 1, "after a crash before output {crash}");
            let id = bot.grid.contract_named(bot.key.public(), &called).await.unwrap().unwrap();
            bot.grid.submit(&bot.key, &croft_protocol::Command::Close { contract: id }).await.unwrap();
        }
        assert!(resumed >= 3, "only {resumed} were taken up");
        for bot in bots {
            bot.grid.close().await;
        }
    });
}

#[test]
fn an_interrupted_order_of_another_file_is_settled_and_said() {
    let mut world = World::with_farm();
    hold_long(&mut world);
    let _node = FakeNode::start(&world, behaviour());
    block_on(async {
        let alice = Someone::new(&world, "alice");
        let file = resolved(&alice.home, SMALL);
        let crashed = alice.order(&file, Some(Crash::Submit)).await;
        assert!(matches!(crashed, Err(PlaceError::Crashed)), "{crashed:?}");
        let other = resolved(&alice.home, &SMALL.replace("64M", "128M"));
        let error = alice.order(&other, None).await.unwrap_err().to_string();
        assert!(
            error.contains("an earlier 'croft deploy' of 'web' was interrupted, and went through now"),
            "{error}"
        );
        assert!(error.contains("end it with 'croft stop web', then deploy again"), "{error}");
        alice.grid.close().await;
    });
}

#[test]
fn what_a_farmer_promised_is_kept_over_its_restart() {
    let mut world = World::with_farm();
    let policy = hold_long(&mut world);
    let _node = FakeNode::start(&world, behaviour());
    world.text("bot new carol --grains 1000000");
    // One and a half of two CPUs; the order ends before it commits.
    let large = SMALL.replace("\"0.1\"", "\"1.5\"");
    block_on(async {
        let alice = Someone::new(&world, "alice");
        let file = resolved(&alice.home, &large);
        let crashed = alice.order(&file, Some(Crash::Submit)).await;
        assert!(matches!(crashed, Err(PlaceError::Crashed)), "{crashed:?}");
        alice.grid.close().await;
    });
    world.stop_farmer();
    let log = world.serve(&format!("--json --policy {policy}"), &[]);
    assert!(log.text().contains("\"promised\":1"), "{}", log.text());
    let other = world.file("large.toml", &large);
    let refused = world.run(&format!("deploy {other} --yes --bot carol"));
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(
        refused.err.contains("too little is free: ask for less, or choose another node"),
        "{}",
        refused.err
    );
    // Its own buyer still gets it.
    let file = world.file("web.toml", &large);
    let deployed = world.json(&format!("deploy {file} --yes --bot alice"));
    assert_eq!((&deployed["resumed"], &deployed["state"]), (&true.into(), &"active".into()));
}

/// A demand of a bot for half a CPU of 'attic'.
pub(super) async fn demand(someone: &Someone) -> Demand {
    let (farm, body) = someone.grid.farm_named(&name("attic")).await.unwrap().unwrap();
    let node: NodeId = someone.grid.node_named(&farm, &name("node-1")).await.unwrap().unwrap();
    Demand {
        buyer: someone.key.public(),
        farmer: body.owner,
        farm,
        node,
        resources: Capacity { cpu_millis: 500, memory_bytes: 64 << 20, ..Capacity::default() },
        ports: Vec::new(),
        duration_s: 3600,
        grace_s: 60,
        prepaid_s: None,
        nonce: [7; 16],
    }
}

/// The next message of a bot in a negotiation.
fn next(
    someone: &Someone,
    negotiation: NegotiationId,
    before: Option<&SignedMessage>,
    expires_ms: u64,
    said: Said,
) -> Box<SignedMessage> {
    let message = Message {
        negotiation,
        step: before.map_or(0, |before| before.message.step + 1),
        prev: before.map_or(Hash::ZERO, SignedMessage::hash),
        author: someone.key.public(),
        expires_ms,
        said,
        note: String::new(),
    };
    Box::new(SignedMessage::sign(message, &someone.grid.pin().chain, &someone.key))
}

async fn refusal(someone: &Someone, farmer: croft_protocol::BotId, message: Box<SignedMessage>) -> String {
    match peers::negotiate(&someone.grid, farmer, message).await {
        Err(PeerProblem::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_expired_replayed_forged_or_tampered_with_is_refused_by_name() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, behaviour());
    world.text("bot new carol --grains 1000");
    block_on(async {
        let (alice, carol) = (Someone::new(&world, "alice"), Someone::new(&world, "carol"));
        let chain = alice.grid.pin().chain;
        let wanted = demand(&alice).await;
        let (id, farmer) = (wanted.id(&chain), wanted.farmer);
        let open_ms = now_ms() + 60_000;
        let first = next(&alice, id, None, open_ms, Said::Demand(wanted.clone()));

        let old = next(&alice, id, None, now_ms() - 1000, Said::Demand(wanted.clone()));
        let said = refusal(&alice, farmer, old).await;
        assert!(said.starts_with("a demand is void since") && said.contains("negotiate again"), "{said}");
        let said = refusal(&carol, farmer, first.clone()).await;
        assert!(said.contains("it was replayed; bots speak for themselves"), "{said}");
        let mut forged = first.clone();
        forged.message.note = "altered".to_owned();
        let said = refusal(&alice, farmer, forged).await;
        assert!(said.contains("it was forged, or made for another grid"), "{said}");
        let elsewhere = Demand { farmer: carol.key.public(), ..wanted.clone() };
        let message = next(&alice, elsewhere.id(&chain), None, open_ms, Said::Demand(elsewhere));
        let said = refusal(&alice, farmer, message).await;
        assert!(said.contains("send it to the farm's owner"), "{said}");

        let offer = peers::negotiate(&alice.grid, farmer, first.clone()).await.unwrap().unwrap();
        let again = peers::negotiate(&alice.grid, farmer, first).await.unwrap().unwrap();
        assert_eq!(offer, again, "said again, it is answered again");
        let Said::Offer(quote) = offer.message.said else { panic!("{offer:?}") };
        let terms = Terms {
            name: name("web"),
            user: wanted.buyer,
            farmer,
            farm: wanted.farm,
            node: wanted.node,
            resources: wanted.resources,
            ports: Vec::new(),
            rate: quote.rate,
            duration_s: wanted.duration_s,
            grace_s: wanted.grace_s,
            prepaid_s: None,
            capacity_version: quote.capacity_version,
            quorum: Quorum::default(),
            sealed: vec![1],
            expires_ms: now_ms() + quote.hold_ms,
            nonce: [1; 16],
        };
        let propose = |terms: &Terms, fee: Grains, signed_fee: Grains| {
            let reservation = Reservation::of(id, terms, signed_fee);
            let user = alice.key.sign_as_bot(RESERVATION, &chain, &reservation);
            let said = Said::Propose { terms: Box::new(terms.clone()), fee, user };
            next(&alice, id, Some(&offer), terms.expires_ms, said)
        };
        let said = refusal(&alice, farmer, propose(&terms, quote.hold_fee, Grains::ZERO)).await;
        assert!(said.contains("is not signed by") && said.contains("it was tampered with"), "{said}");
        let cheaper = Terms { rate: croft_protocol::Rate(1), ..terms.clone() };
        let said = refusal(&alice, farmer, propose(&cheaper, quote.hold_fee, quote.hold_fee)).await;
        assert!(said.contains("the proposal's price differs from what was demanded and quoted"), "{said}");
        let good = propose(&terms, quote.hold_fee, quote.hold_fee);
        let approved = peers::negotiate(&alice.grid, farmer, good.clone()).await.unwrap().unwrap();
        assert!(matches!(approved.message.said, Said::Approve { .. }), "{approved:?}");
        let replayed = peers::negotiate(&alice.grid, farmer, good).await.unwrap().unwrap();
        assert_eq!(approved, replayed, "a second proposal of the same terms is no second promise");
        alice.grid.close().await;
        carol.grid.close().await;
    });
}

#[test]
fn nodes_are_found_with_prices_and_the_others_with_reasons() {
    let mut world = World::with_farm();
    let shed = world.add_farm("carol", "shed", "--country nl --price-cpu 10", "");
    let _nodes = [world.boot_config(), shed].map(|config| FakeNode::start_with(&config, behaviour()));
    let found = world.json("find --country be,de --cpu 1 --memory 1G --max-price 600000");
    assert_eq!(found["matches"].as_array().unwrap().len(), 1);
    let fit = &found["matches"][0];
    // A CPU at 100 and a GiB at 50, for an hour.
    assert_eq!((&fit["farm"], &fit["price"]), (&"attic".into(), &(150 * 3600).into()));
    assert_eq!((&fit["trust"], &fit["uptime_permille"]), (&"plain".into(), &serde_json::Value::Null));
    let not = &found["excluded"][0];
    assert_eq!(not["farm"], "shed");
    assert_eq!(not["reasons"][0], "it is in nl, wanted is be or de");

    let text = world.text("find --cpu 1 --memory 1G --max-price 300000");
    assert!(text.contains("node-1  shed  nl  216 000 grains  plain  -"), "{text}");
    let said = "not node 'node-1' of farm 'attic': it costs 540 000 grains, the limit is 300 000 grains";
    assert!(text.contains(said), "{text}");
    let none = world.text("find --cpu 64");
    assert!(none.starts_with("no node fits\n") && none.contains("CPUs: 64.000 needed, 2.000 free"), "{none}");
    for (line, code, says) in [
        ("find --country Belgium", 2, "'Belgium' is not a country"),
        ("find --farm cellar", 4, "there is no farm 'cellar' on grid 'demo'"),
    ] {
        let output = world.run(line);
        assert_eq!(output.code, code, "{}", output.err);
        assert!(output.err.contains(says), "{}", output.err);
    }

    let file = world.file("web.toml", SMALL);
    let cost = world.json(&format!("cost {file} --bot alice"));
    // A tenth of a CPU at 10 and a sixteenth GiB at 50, rounded up: 5 grains per second.
    assert_eq!((&cost["cheapest"], &cost["dearest"]), (&(5 * 3600).into(), &(14 * 3600).into()));
    assert_eq!(cost["balance"], 1_000_000);
    let text = world.text(&format!("cost {file} --bot alice"));
    assert!(text.contains("'web' needs 0.1 CPU, 64 MiB memory"), "{text}");
    assert_eq!(world.json("ps --bot alice")["contracts"].as_array().unwrap().len(), 0);
}
