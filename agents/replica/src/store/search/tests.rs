//! Every search against a filter over all records, while farms, nodes and contracts come, change and go.

use std::collections::{BTreeMap, BTreeSet};

use croft_attest::soft::SoftTpm;
use croft_ledger::StateReadExt;
use croft_light::{LightClient, verify_value};
use croft_protocol::attestation::Attestation;
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::{Approver, Quorum};
use croft_protocol::keys::Domain;
use croft_protocol::market::{NegotiationId, RESERVATION, Reservation, SignedReservation};
use croft_protocol::record::{BotBody, ContractReport, ReportBody, WorkloadState};
use croft_protocol::trust::{RecentHeader, RecentHeaders};
use croft_protocol::{
    Announcement, Body, Capacity, Command, ContractId, Grains, Name, NodeId, PriceList, Profile, PublicKey,
    Record, Role, SecretKey, SignedTerms, StateKey, Terms, limits,
};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::store::Store;
use crate::testing::{Grid, START_MS, key, name};

const COUNTRIES: [&str; 2] = ["be", "nl"];
const REGIONS: [Option<&str>; 3] = [None, Some("north"), Some("northern")];
const TRUST: [TrustClass; 3] = [TrustClass::Plain, TrustClass::Sealed, TrustClass::Attested];
const OWNERS: u8 = 2;
const FARMS: u8 = 4;
const NODES: u8 = 6;

/// What happens; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Change {
    Prices { farm: u8, prices: [u64; 2] },
    Node { node: u8, cpus: u64, gib: u64, trust: u8 },
    Agree { node: u8, cpus: u64, seconds: u64, approved: bool },
    Reserve { node: u8, cpus: u64, used: bool },
    Approve { contract: u8 },
    Close { contract: u8 },
    Report { contract: u8, running: bool },
    Pay,
    Wait { seconds: u64 },
    Profile { owner: u8, roles: [bool; 4], capabilities: [bool; 2], word: u8 },
}

const CAPABILITIES: [&str; 2] = ["gpu", "gp"];
const WORDS: [&str; 3] = ["", "Fast nodes", "nodes in the north"];

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => (0..FARMS, any::<[u8; 2]>())
            .prop_map(|(farm, p)| Change::Prices { farm, prices: p.map(|p| u64::from(p % 5)) }),
        3 => (0..NODES, 1..9_u64, 0..5_u64, 0..3_u8)
            .prop_map(|(node, cpus, gib, trust)| Change::Node { node, cpus, gib, trust }),
        5 => (0..NODES, 1..4_u64, 1..60_u64, any::<bool>())
            .prop_map(|(node, cpus, seconds, approved)| Change::Agree { node, cpus, seconds, approved }),
        2 => (0..NODES, 1..4_u64, any::<bool>())
            .prop_map(|(node, cpus, used)| Change::Reserve { node, cpus, used }),
        1 => any::<u8>().prop_map(|contract| Change::Approve { contract }),
        2 => any::<u8>().prop_map(|contract| Change::Close { contract }),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(contract, running)| Change::Report { contract, running }),
        1 => Just(Change::Pay),
        1 => (1..60_u64).prop_map(|seconds| Change::Wait { seconds }),
        2 => (0..OWNERS, any::<[bool; 4]>(), any::<[bool; 2]>(), 0..3_u8).prop_map(
            |(owner, roles, capabilities, word)| Change::Profile { owner, roles, capabilities, word }
        ),
    ]
}

/// A search whose names are numbers.
#[derive(Debug, Clone)]
enum Wish {
    Nodes {
        farm: Option<u8>,
        owner: Option<u8>,
        place: Option<(u8, u8)>,
        free: (u64, u64),
        price: Option<u64>,
        trust: Option<u8>,
    },
    Farms {
        owner: Option<u8>,
        place: Option<(u8, u8)>,
    },
    Contracts {
        user: bool,
        farmer: Option<u8>,
        node: Option<u8>,
        phases: u8,
        seconds: Option<u64>,
    },
    Transfers,
    Reservations {
        farmer: bool,
    },
    Bots {
        text: Option<u8>,
        role: Option<u8>,
        capability: Option<u8>,
    },
}

fn wishes() -> impl Strategy<Value = Wish> {
    let place = || option::weighted(0.4, (0..2_u8, 0..3_u8));
    prop_oneof![
        4 => (
            option::weighted(0.2, 0..FARMS),
            option::weighted(0.2, 0..OWNERS),
            place(),
            (0..8_u64, 0..4_u64),
            option::weighted(0.5, 0..20_u64),
            option::weighted(0.3, 0..3_u8),
        )
            .prop_map(|(farm, owner, place, free, price, trust)| Wish::Nodes {
                farm,
                owner,
                place,
                free,
                price,
                trust
            }),
        1 => (option::of(0..OWNERS), place()).prop_map(|(owner, place)| Wish::Farms { owner, place }),
        3 => (
            any::<bool>(),
            option::weighted(0.3, 0..OWNERS),
            option::weighted(0.3, 0..NODES),
            1..32_u8,
            option::weighted(0.4, 0..200_u64),
        )
            .prop_map(|(user, farmer, node, phases, seconds)| Wish::Contracts {
                user,
                farmer,
                node,
                phases,
                seconds
            }),
        1 => Just(Wish::Transfers),
        1 => any::<bool>().prop_map(|farmer| Wish::Reservations { farmer }),
        1 => (option::of(0..4_u8), option::of(0..4_u8), option::of(0..2_u8))
            .prop_map(|(text, role, capability)| Wish::Bots { text, role, capability }),
    ]
}

/// A ledger and what has been made on it.
struct World {
    grid: Grid,
    store: Store,
    contracts: Vec<(ContractId, u8)>,
    sessions: BTreeMap<u8, u64>,
}

fn owner(n: u8) -> SecretKey {
    key(10 + n % OWNERS)
}

fn node_key(n: u8) -> SecretKey {
    key(50 + n)
}

fn farm_of(farm: u8) -> FarmId {
    FarmId::new(&owner(farm).public(), &name(&format!("farm{farm}")))
}

impl World {
    fn new() -> Self {
        let grid = Grid::new();
        let (store, _) = grid.store();
        let world = Self { grid, store, contracts: Vec::new(), sessions: BTreeMap::new() };
        for n in 0..OWNERS {
            world.must(&owner(n), Command::CreateBot(BotBody { name: name(&format!("owner{n}")) }));
        }
        for n in 0..FARMS {
            let command = Command::CreateFarm {
                name: name(&format!("farm{n}")),
                country: COUNTRIES[usize::from(n) % 2].to_owned(),
                region: REGIONS[usize::from(n) % 3].map(name),
                prices: PriceList { cpu: u64::from(n), memory_gib: 1, ..PriceList::default() },
            };
            world.must(&owner(n), command);
        }
        world
    }

    fn must(&self, author: &SecretKey, command: Command) {
        let command = self.grid.sign(&self.store.latest(), author, 0, command);
        self.grid.commit(&self.store, &[command]);
    }

    /// A block with a command that the ledger may refuse.
    fn may(&self, author: &SecretKey, command: Command) {
        let command = self.grid.sign(&self.store.latest(), author, 0, command);
        self.store.commit(&self.grid.block(&self.store, &[command])).unwrap();
    }

    fn now_ms(&self) -> u64 {
        self.store.latest().tip().header.time_ms
    }

    fn apply(&mut self, change: &Change) {
        match *change {
            Change::Prices { farm, prices: [cpu, memory_gib] } => {
                let prices = PriceList { cpu, memory_gib, ..PriceList::default() };
                self.may(&owner(farm), Command::SetPrices { farm: farm_of(farm), prices });
            }
            Change::Node { node, cpus, gib, trust } => self.register(node, cpus, gib, trust),
            Change::Agree { node, cpus, seconds, approved } => {
                let mut terms = self.terms(node, cpus);
                terms.duration_s = seconds;
                if !approved {
                    let approver = Approver { bot: self.grid.farmer.public(), weight: 1, required: false };
                    terms.quorum = Quorum { threshold: 1, approvers: vec![approver] };
                }
                self.agree(node, terms);
            }
            Change::Reserve { node, cpus, used } => {
                let terms = Terms { expires_ms: self.now_ms() + 30_000, ..self.terms(node, cpus) };
                let announcement = self.announcement(node, terms.clone());
                self.may(&owner(node % FARMS), Command::AnnounceReservation(Box::new(announcement)));
                if used {
                    self.agree(node, terms);
                }
            }
            Change::Approve { contract } => {
                if let Some((contract, _)) = self.some_contract(contract) {
                    self.may(&self.grid.farmer, Command::Approve { contract, approve: true });
                }
            }
            Change::Close { contract } => {
                if let Some((contract, _)) = self.some_contract(contract) {
                    self.may(&self.grid.user, Command::Close { contract });
                }
            }
            Change::Report { contract, running } => {
                if let Some((contract, node)) = self.some_contract(contract) {
                    self.report(contract, node, running);
                }
            }
            Change::Profile { owner: of, roles, capabilities, word } => {
                let chosen = |(n, is): (usize, bool)| is.then_some(n);
                let profile = Profile {
                    roles: roles.into_iter().enumerate().filter_map(chosen).map(|n| Role::ALL[n]).collect(),
                    capabilities: capabilities
                        .into_iter()
                        .enumerate()
                        .filter_map(chosen)
                        .map(|n| name(CAPABILITIES[n]))
                        .collect(),
                    description: WORDS[usize::from(word)].to_owned(),
                    ..Profile::named(name(&format!("owner{of}")))
                };
                self.must(&owner(of), Command::UpdateBot(profile));
            }
            Change::Pay => self.must(&self.grid.user, self.grid.pay(1)),
            Change::Wait { seconds } => {
                for _ in 0..seconds {
                    self.grid.commit(&self.store, &[]);
                }
                if let Some((contract, _)) = self.some_contract(0) {
                    self.may(&self.grid.user, Command::Settle { contract });
                }
            }
        }
    }

    fn some_contract(&self, n: u8) -> Option<(ContractId, u8)> {
        let count = self.contracts.len();
        (count > 0).then(|| self.contracts[usize::from(n) % count])
    }

    fn register(&mut self, node: u8, cpus: u64, gib: u64, trust: u8) {
        let session = self.sessions.entry(node).or_default();
        *session += 1;
        let farm = farm_of(node % FARMS);
        let join = Join { farm, expires_ms: START_MS * 2, nonce: [1; 16] };
        let signature = owner(node % FARMS).sign_as_bot(Domain::JOIN, &self.grid.chain(), &join);
        let body = croft_protocol::record::NodeBody {
            farm,
            capacity: Capacity { cpu_millis: cpus * 1_000, memory_bytes: gib << 30, ..Capacity::default() },
            trust: TRUST[usize::from(trust)],
            ..self.grid.node_body(&format!("n{node}"), *session)
        };
        let join = Some(SignedJoin { join, signature });
        let attestation = self.attestation(node, &body);
        self.must(&node_key(node), Command::RegisterNode { node: body, join, attestation });
    }

    /// What makes the ledger believe what the node says of its trust.
    fn attestation(&self, node: u8, body: &croft_protocol::record::NodeBody) -> Option<Box<Attestation>> {
        let image = match body.trust {
            TrustClass::Plain => return None,
            TrustClass::Sealed => Hash([0x66; 32]),
            TrustClass::Attested => crate::testing::BOOT_FILE,
        };
        let recent: Option<RecentHeaders> = self.store.latest().read(&StateKey::RecentHeaders).unwrap();
        let RecentHeader { height, hash, .. } = *recent.unwrap().headers.last().unwrap();
        let (chain, id) = (self.grid.chain(), node_key(node).public());
        let bound = (&chain, height, hash, &id, Attestation::statement(body));
        Some(Box::new(SoftTpm::new(node).attest(bound, SoftTpm::booted(&[image]))))
    }

    fn terms(&self, node: u8, cpus: u64) -> Terms {
        let known = self.store.latest().capacity(&node_key(node).public()).unwrap();
        // Reservations that came to nothing take no name of a contract.
        let called = format!("c{}-{}", self.contracts.len(), self.store.latest().tip().header.height);
        let mut terms = self.grid.terms(&called, known.map_or(0, |c| c.version));
        terms.farmer = owner(node % FARMS).public();
        terms.farm = farm_of(node % FARMS);
        terms.node = node_key(node).public();
        terms.resources = Capacity { cpu_millis: cpus * 1_000, memory_bytes: 1, ..Capacity::default() };
        terms
    }

    fn announcement(&self, node: u8, terms: Terms) -> Announcement {
        let (chain, farmer) = (self.grid.chain(), owner(node % FARMS));
        let held = Reservation::of(NegotiationId(Hash::ZERO), &terms, Grains(3));
        let reservation = SignedReservation {
            user: self.grid.user.sign_as_bot(RESERVATION, &chain, &held),
            farmer: farmer.sign_as_bot(RESERVATION, &chain, &held),
            reservation: held,
        };
        let approval = farmer.sign_as_bot(Domain::TERMS, &chain, &terms);
        Announcement { reservation, terms, approval }
    }

    fn agree(&mut self, node: u8, terms: Terms) {
        let (chain, farmer) = (self.grid.chain(), owner(node % FARMS));
        let user = self.grid.user.sign_as_bot(Domain::TERMS, &chain, &terms);
        let signature = farmer.sign_as_bot(Domain::TERMS, &chain, &terms);
        let id = terms.id();
        self.may(&self.grid.user, Command::Agree(Box::new(SignedTerms { terms, user, farmer: signature })));
        if self.store.latest().contract(&id).unwrap().is_some() {
            self.contracts.push((id, node));
        }
    }

    fn report(&mut self, contract: ContractId, node: u8, running: bool) {
        let now = self.now_ms();
        let state = if running { WorkloadState::Running } else { WorkloadState::Failing };
        let line = ContractReport { contract, state, ran_ms: 0, detail: String::new() };
        let report = ReportBody {
            node: node_key(node).public(),
            session: self.sessions[&node],
            from_ms: now,
            until_ms: now,
            contracts: vec![line],
        };
        self.may(&node_key(node), Command::Report(report));
    }

    fn query(&self, wish: &Wish) -> Query {
        let in_place = |place: Option<(u8, u8)>| {
            let country = place.map(|(country, _)| COUNTRIES[usize::from(country)].to_owned());
            (country, place.and_then(|(_, region)| REGIONS[usize::from(region)].map(name)))
        };
        match *wish {
            Wish::Nodes { farm, owner: of, place, free: (cpus, gib), price, trust } => {
                let (country, region) = in_place(place);
                Query::Nodes(NodeQuery {
                    farm: farm.map(farm_of),
                    owner: of.map(|n| owner(n).public()),
                    country,
                    region,
                    free: Capacity {
                        cpu_millis: cpus * 1_000,
                        memory_bytes: gib << 30,
                        ..Capacity::default()
                    },
                    max_per_hour: price.map(|price| Grains(price * 3_600)),
                    trust: trust.map(|trust| TRUST[usize::from(trust)]),
                })
            }
            Wish::Farms { owner: of, place } => {
                let (country, region) = in_place(place);
                Query::Farms(FarmQuery { owner: of.map(|n| owner(n).public()), country, region })
            }
            Wish::Contracts { user, farmer, node, phases, seconds } => {
                let some: Vec<Phase> =
                    Phase::ALL.into_iter().filter(|phase| phases & (1 << *phase as u8) != 0).collect();
                Query::Contracts(ContractQuery {
                    user: user.then(|| self.grid.user.public()),
                    farmer: farmer.map(|n| owner(n).public()),
                    node: node.map(|n| node_key(n).public()),
                    phases: croft_protocol::api::Phases::of(&some).unwrap(),
                    expires_before_ms: seconds.map(|s| START_MS + s * 1_000),
                })
            }
            Wish::Transfers => Query::Transfers { of: self.grid.user.public() },
            Wish::Reservations { farmer } => {
                let of = if farmer { owner(0).public() } else { self.grid.user.public() };
                Query::Reservations { of }
            }
            Wish::Bots { text, role, capability } => Query::Bots(BotQuery {
                text: text.map(|n| ["fast", "NODES", "owner1", "gp north"][usize::from(n)].to_owned()),
                role: role.map(|n| Role::ALL[usize::from(n)]),
                capability: capability.map(|n| name(CAPABILITIES[usize::from(n)])),
            }),
        }
    }

    /// What a filter over the newest version of everything finds.
    fn filtered(&self, query: &Query) -> BTreeSet<RecordId> {
        let view = self.store.latest();
        let mut newest: BTreeMap<RecordId, Record> = BTreeMap::new();
        for position in 0..view.tip().header.log_size {
            let record = view.record_at(position).unwrap().unwrap();
            newest.insert(record.id, record);
        }
        let farm = |id: &FarmId| view.farm(id).unwrap().unwrap();
        let matches = |record: &&Record| match (query, &record.body) {
            (Query::Nodes(query), Body::Node(node)) => {
                let free = view.capacity(&PublicKey(record.id.id.0)).unwrap().unwrap().free();
                query.matches(node, &free, &farm(&node.farm))
            }
            (Query::Farms(query), Body::Farm(farm)) => query.matches(farm),
            (Query::Contracts(query), Body::Contract(contract)) => query.matches(contract),
            (Query::Bots(query), Body::Profile(profile)) => query.matches_profile(profile),
            (Query::Transfers { of }, Body::Transfer(transfer)) => transfer.from == *of || transfer.to == *of,
            (Query::Reservations { of }, Body::Reservation(body)) => {
                let held = &body.signed.reservation;
                held.user == *of || held.farmer == *of
            }
            _ => false,
        };
        newest.values().filter(matches).map(|record| record.id).collect()
    }

    /// All pages, each cut off by one bound or another. Nothing may be found twice.
    fn paged(&self, query: &Query, plan: Option<u8>) -> BTreeSet<RecordId> {
        let view = self.store.latest();
        let mut all = BTreeSet::new();
        let mut from = plan.map(|plan| before_all(query, plan));
        for page in 0.. {
            let bounds = match page % 3 {
                0 => Bounds { count: 2, ..Bounds::of(100) },
                1 => Bounds { scanned: 3, ..Bounds::of(100) },
                _ => Bounds { bytes: 1, ..Bounds::of(100) },
            };
            let found = search(&view, query, from.as_ref(), bounds, |id| Ok((id, 1))).unwrap();
            assert!(found.things.len() <= 3 && found.scanned <= bounds.scanned);
            for id in found.things {
                assert!(all.insert(id), "{id:?} is found twice for {query:?}");
            }
            from = found.next;
            if from.is_none() {
                break;
            }
        }
        all
    }
}

/// A cursor before everything that a plan has.
fn before_all(query: &Query, plan: u8) -> Cursor {
    let (mut key, _) = plans_of(query)[usize::from(plan)].ranges[0].clone();
    key.resize(key.len() + 32, 0);
    let place = Place { key, node: None };
    Cursor::new(encode(&Bookmark { shape: query.shape(), plan, place })).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 100,
        ..ProptestConfig::with_cases(24)
    })]

    #[test]
    fn a_search_finds_by_every_plan_what_a_filter_over_all_records_finds(
        history in prop::collection::vec((changes(), prop::collection::vec(wishes(), 1..6)), 1..30),
    ) {
        let mut world = World::new();
        for (change, wishes) in &history {
            world.apply(change);
            for wish in wishes {
                let query = world.query(wish);
                let expected = world.filtered(&query);
                prop_assert_eq!(&world.paged(&query, None), &expected, "{:?}", &query);
                for plan in 0..plans_of(&query).len() {
                    let found = world.paged(&query, Some(plan as u8));
                    prop_assert_eq!(&found, &expected, "plan {} of {:?}", plan, &query);
                }
            }
        }
        world.store.audit().unwrap();
    }

    #[test]
    fn a_cursor_of_any_bytes_is_refused_or_read_and_never_a_fault(
        bytes in prop::collection::vec(any::<u8>(), 0..limits::CURSOR_BYTES),
        key in prop::collection::vec(any::<u8>(), 0..80),
        node in option::of(any::<[u8; 32]>()),
        plan in 0..4_u8,
    ) {
        let world = World::new();
        let view = world.store.latest();
        let query = Query::Nodes(NodeQuery { country: Some("be".to_owned()), ..NodeQuery::default() });
        let place = Place { key, node: node.map(Hash) };
        let forged = Bookmark { shape: query.shape(), plan, place };
        for bytes in [bytes, encode(&forged)] {
            let cursor = Cursor::new(bytes).unwrap();
            match view.query(&query, Some(&cursor), 5) {
                Ok(_) | Err(SearchError::Cursor { .. }) => {}
                Err(error @ SearchError::Store(_)) => prop_assert!(false, "{error}"),
            }
        }
    }
}

#[test]
fn a_cursor_of_another_search_is_refused() {
    let world = World::new();
    let view = world.store.latest();
    let farms = |owner: Option<u8>| {
        let owner = owner.map(|n| super::tests::owner(n).public());
        Query::Farms(FarmQuery { owner, ..FarmQuery::default() })
    };
    let next = view.query(&farms(None), None, 1).unwrap().next.unwrap();
    assert_eq!(view.query(&farms(None), Some(&next), 100).unwrap().things.len(), usize::from(FARMS) - 1);
    let error = view.query(&farms(Some(0)), Some(&next), 1).unwrap_err();
    assert_eq!(error.to_string(), "the cursor is no good: it is of another search");
    let cut = Cursor::new(next.as_bytes()[1..].to_vec()).unwrap();
    let error = view.query(&farms(None), Some(&cut), 1).unwrap_err();
    assert_eq!(error.to_string(), "the cursor is no good: it can't be read");
    let place = Place { key: vec![Part::Nodes as u8; 33], node: None };
    let forged = Cursor::new(encode(&Bookmark { shape: farms(None).shape(), plan: 0, place })).unwrap();
    let error = view.query(&farms(None), Some(&forged), 1).unwrap_err();
    assert_eq!(error.to_string(), "the cursor is no good: it is not within its search");
}

#[test]
fn a_search_goes_on_while_what_it_stopped_at_and_what_follows_change() {
    let mut world = World::new();
    for node in 0..NODES {
        world.apply(&Change::Node { node, cpus: 8, gib: 1, trust: 0 });
    }
    let free = Capacity { cpu_millis: 1_000, ..Capacity::default() };
    let query = Query::Nodes(NodeQuery { free, farm: Some(farm_of(0)), ..NodeQuery::default() });
    let all = world.filtered(&query);
    let first = world.store.latest().query(&query, None, 1).unwrap();
    // Its key in the order of free capacity is gone, and all of the farm's prices are others.
    for node in 0..NODES {
        world.apply(&Change::Agree { node, cpus: 3, seconds: 60, approved: true });
    }
    world.apply(&Change::Prices { farm: 0, prices: [4, 4] });
    let rest = world.store.latest().query(&query, first.next.as_ref(), 100).unwrap();
    let found: BTreeSet<RecordId> = first.things.iter().chain(&rest.things).map(|record| record.id).collect();
    assert_eq!(found, all);
    assert_eq!(first.things.len() + rest.things.len(), all.len());
}

#[test]
fn the_most_selective_condition_is_walked() {
    let mut world = World::new();
    for node in 0..NODES {
        world.apply(&Change::Node { node, cpus: if node == 3 { 8 } else { 1 }, gib: 1, trust: 0 });
    }
    let nodes = |query: NodeQuery| {
        let view = world.store.latest();
        let found = view.query(&Query::Nodes(query), None, 10).unwrap();
        (found.things.len(), found.scanned)
    };
    let free = Capacity { cpu_millis: 8_000, ..Capacity::default() };
    assert_eq!(nodes(NodeQuery { free, ..NodeQuery::default() }), (1, 1), "of six nodes");
    let country = Some("be".to_owned());
    let (found, scanned) = nodes(NodeQuery { free, country, ..NodeQuery::default() });
    assert_eq!(found, 0);
    assert!(scanned < usize::from(NODES), "{scanned}");
}

#[test]
fn what_is_found_with_proofs_is_proved_to_a_light_client() {
    let mut world = World::new();
    for node in 0..NODES {
        world.apply(&Change::Node { node, cpus: 8, gib: 1, trust: 0 });
    }
    let view = world.store.latest();
    let mut light = LightClient::new(world.grid.chain(), world.grid.genesis.validators.hash());
    let tip = light.accept_tip(view.tip(), None).unwrap();
    let found = view.query_proved(&Query::Nodes(NodeQuery::default()), None, 100).unwrap();
    assert_eq!(found.things.len(), usize::from(NODES));
    for thing in found.things {
        let node: NodeId = PublicKey(thing.id.id.0);
        assert!(verify_value(&tip, &StateKey::Record(thing.id), &thing.record).unwrap().is_some());
        let capacity = thing.capacity.unwrap();
        assert!(verify_value(&tip, &StateKey::Capacity(node), &capacity).unwrap().is_some());
    }
    let farms = view.query_proved(&Query::Farms(FarmQuery::default()), None, 100).unwrap();
    assert!(farms.things.iter().all(|thing| thing.capacity.is_none()));
}

#[test]
fn the_order_of_a_region_ends_where_the_next_begins() {
    let world = World::new();
    for region in ["north", "northern"] {
        let query = FarmQuery {
            country: Some("be".to_owned()),
            region: Some(Name::new(region).unwrap()),
            ..FarmQuery::default()
        };
        let query = Query::Farms(query);
        assert_eq!(world.paged(&query, None), world.filtered(&query), "{region}");
    }
}
