//! Joining from honest sources, from sources that lie about one thing each, and from sources that go away.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering as Atomic};

use croft_protocol::api::{ContractQuery, FarmQuery, NodeQuery, Query};
use croft_protocol::header::Validator;
use croft_protocol::record::BotBody;
use croft_protocol::{Command, Grains, RecordId, SignedCommand};
use tokio::sync::oneshot;

use super::*;
use crate::BlobQuotas;
use crate::blobs::Blobs;
use crate::chain::Chain;
use crate::ordering::{Ordering, Verdict, make_block};
use crate::server::{Intake, Server};
use crate::store::faults::MemoryDisk;
use crate::store::tests::set_power;
use crate::store::verify;
use crate::testing::{Grid, START_MS, key, name};

/// The joining replica's key.
const ME: u8 = 90;

#[derive(Debug)]
struct Nobody;

impl Ordering for Nobody {
    fn enqueue(&self, _: SignedCommand) -> Result<oneshot::Receiver<Verdict>, Verdict> {
        Err(Verdict::Failed(Failure::Busy { what: "nobody orders".to_owned() }))
    }

    fn waiting(&self) -> u32 {
        0
    }
}

fn serve(grid: &Grid, store: Store, blobs: &Path) -> Arc<Server> {
    let quotas = BlobQuotas { per_bot_bytes: 0, total_bytes: 0 };
    let mail = blobs.with_extension("mail");
    std::fs::create_dir_all(&mail).unwrap();
    let mail = crate::mail::Mailboxes::open(&mail).unwrap();
    let blobs = Blobs::open(blobs.to_owned(), quotas).unwrap();
    let observers = (ME..ME + 5).map(|seed| key(seed).public()).collect();
    assert_eq!(store.chain(), grid.chain());
    let intake = Intake { observers, commands_per_minute: 1_000, key: key(99), makers: Vec::new() };
    Server::new(Arc::new(Chain::new(store)), Arc::new(Nobody), (Arc::new(blobs), Arc::new(mail)), intake)
}

type Tamper = Box<dyn Fn(&Request, Response) -> Response + Send + Sync>;

/// A replica that may lie, or go away after some answers.
struct Fake {
    key: PublicKey,
    server: Arc<Server>,
    tamper: Tamper,
    left: AtomicU64,
    asked: Mutex<Vec<Request>>,
}

impl Fake {
    fn new(seed: u8, server: &Arc<Server>, tamper: Tamper) -> Self {
        let (left, asked) = (AtomicU64::new(u64::MAX), Mutex::default());
        Self { key: key(seed).public(), server: server.clone(), tamper, left, asked }
    }

    fn honest(seed: u8, server: &Arc<Server>) -> Self {
        Self::new(seed, server, Box::new(|_, response| response))
    }

    fn dies_after(self, answers: u64) -> Self {
        self.left.store(answers, Atomic::Relaxed);
        self
    }

    fn count(&self, which: impl Fn(&Request) -> bool) -> usize {
        self.asked.lock().unwrap().iter().filter(|request| which(request)).count()
    }
}

impl Source for Fake {
    fn key(&self) -> PublicKey {
        self.key
    }

    async fn ask(&self, request: Request) -> Result<Response, String> {
        if self.left.load(Atomic::Relaxed) == 0 {
            return Err("it is gone".to_owned());
        }
        self.left.fetch_sub(1, Atomic::Relaxed);
        self.asked.lock().unwrap().push(request.clone());
        let response = self.server.answer(key(ME).public(), request.clone()).await;
        Ok((self.tamper)(&request, response))
    }
}

struct World {
    grid: Grid,
    server: Arc<Server>,
    dir: tempfile::TempDir,
    heard: Arc<Mutex<Vec<Progress>>>,
}

impl World {
    /// A ledger with several pages of records and of values.
    fn new() -> Self {
        let grid = Grid::new();
        let (store, _) = grid.store();
        grid.populate(&store);
        for n in 0..30 {
            let bot = key(110 + n);
            let create = Command::CreateBot(BotBody { name: name(&format!("bot-{n}")) });
            let pay = |to: PublicKey| Command::Transfer {
                to,
                amount: Grains(1 + u64::from(n)),
                memo: "x".repeat(usize::from(n)),
            };
            let view = store.latest();
            let commands = [
                grid.sign(&view, &bot, 0, create),
                grid.sign(&view, &grid.user, 0, pay(bot.public())),
                grid.sign(&view, &grid.user, 1, pay(grid.farmer.public())),
            ];
            grid.commit(&store, &commands);
        }
        Self::of(grid, store)
    }

    fn of(grid: Grid, store: Store) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(&grid, store, &dir.path().join("blobs"));
        Self { grid, server, dir, heard: Arc::default() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn plan(&self) -> JoinPlan {
        let heard = self.heard.clone();
        JoinPlan {
            dir: self.data(),
            genesis: self.grid.genesis.clone(),
            key: key(ME),
            replicas: Vec::new(),
            clock: Arc::new(|| START_MS + 1_000_000),
            progress: Arc::new(move |progress| heard.lock().unwrap().push(progress.clone())),
        }
    }

    fn source(&self) -> &Store {
        self.server.chain.store()
    }

    async fn refused(&self, tamper: Tamper) -> String {
        let liar = Fake::new(70, &self.server, tamper);
        let error = join_from(&self.plan(), &[liar]).await.unwrap_err();
        assert!(!self.data().join(FILE).exists(), "{error}");
        let JoinError::NoSource(problems) = error else { panic!("{error}") };
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].lied, "{problems:?}");
        assert_eq!(problems[0].replica, key(70).public());
        // What it got wrong is not in the way of an honest one.
        problems[0].reason.clone()
    }
}

/// The same questions to two replicas.
async fn same_answers(world: &World, one: &Arc<Server>, other: &Arc<Server>) {
    let node = RecordId::node(&world.grid.node.public());
    let keys = vec![
        StateKey::Record(node),
        StateKey::Account(world.grid.user.public()),
        StateKey::Account(key(200).public()),
        StateKey::NodeContracts(world.grid.node.public()),
    ];
    let height = one.chain.latest().height();
    let query = |query| Request::Query { query, after: None, count: 100, prove: false };
    let requests = [
        Request::Genesis,
        Request::Tip,
        Request::Header { height },
        Request::Get { keys },
        Request::Range { first: 0, count: 200 },
        Request::History { id: node, first_version: 1, count: 10 },
        query(Query::Farms(FarmQuery::default())),
        query(Query::Nodes(NodeQuery::default())),
        query(Query::Contracts(ContractQuery::default())),
        query(Query::Transfers { of: world.grid.farmer.public() }),
        Request::SnapshotRecords { first: 10, size: 50 },
    ];
    for request in requests {
        let (mine, theirs) = (
            one.answer(key(ME).public(), request.clone()).await,
            other.answer(key(ME).public(), request.clone()).await,
        );
        assert!(!matches!(mine, Response::Failed(_)), "{request:?}: {mine:?}");
        assert_eq!(mine, theirs, "{request:?}");
    }
}

#[tokio::test]
async fn a_joined_ledger_is_that_of_its_source_and_goes_on_with_it() {
    let world = World::new();
    let honest = Fake::honest(70, &world.server);
    let report = join_from(&world.plan(), std::slice::from_ref(&honest)).await.unwrap();
    let source = world.source();
    let tip = source.latest().tip().clone();
    assert_eq!((report.height, report.records), (tip.header.height, tip.header.log_size));
    assert_eq!(report.age_ms, START_MS + 1_000_000 - tip.header.time_ms);
    assert!(report.problems.is_empty());
    assert!(honest.count(|r| matches!(r, Request::SnapshotRecords { .. })) > 5, "several pages");
    assert!(honest.count(|r| matches!(r, Request::SnapshotValues { .. })) > 2, "several pages");
    assert!(!world.data().join(UNFINISHED).exists());

    let joined = Store::open(&world.data(), &world.grid.genesis).unwrap();
    let report = joined.audit().unwrap();
    assert_eq!((report.headers, report.bodies, report.records), (1, 0, tip.header.log_size));
    let (here, there) = (joined.latest(), source.latest());
    assert_eq!(here.tip(), there.tip());
    assert_eq!(here.map_head().root, there.map_head().root);
    assert_eq!(here.range(0, 200).unwrap(), there.range(0, 200).unwrap());
    let node = RecordId::node(&world.grid.node.public());
    assert_eq!(here.history(&node, 1, 10).unwrap(), there.history(&node, 1, 10).unwrap());
    let mut after = None;
    loop {
        let (mine, theirs) =
            (here.values_after(after.as_ref()).unwrap(), there.values_after(after.as_ref()).unwrap());
        assert_eq!(mine, theirs, "values with their proofs");
        after = mine.values.last().map(|(key, _)| key.clone());
        if !mine.more {
            break;
        }
    }
    drop(here);
    let joined = serve(&world.grid, joined, &world.dir.path().join("joined-blobs"));
    same_answers(&world, &joined, &world.server).await;
    let Response::Failed(failure) = joined.answer(key(1).public(), Request::Header { height: 3 }).await
    else {
        panic!()
    };
    assert_eq!(
        failure.to_string(),
        format!("there is no header 3, the earliest is {}, here", tip.header.height)
    );
    let Response::Status(status) = joined.answer(key(1).public(), Request::Status).await else { panic!() };
    assert_eq!((status.kept.headers, status.kept.commands), (tip.header.height, None));

    // Blocks that came meanwhile make the same headers.
    for round in 0..5 {
        let pay = world.grid.sign(&source.latest(), &world.grid.user, 0, world.grid.pay(3));
        let block = world.grid.block(source, std::slice::from_ref(&pay));
        source.commit(&block).unwrap();
        let header = block.signed.header;
        let again =
            make_block(&joined.chain.latest(), header.time_ms, &[pay], |header| world.grid.certify(header))
                .unwrap();
        assert_eq!(again.signed, block.signed, "block {round} after the join");
        joined.chain.store().commit(&again).unwrap();
    }
    joined.chain.store().audit().unwrap();
}

#[tokio::test]
async fn a_record_that_was_altered_left_out_or_put_elsewhere_is_refused_before_it_is_written() {
    let world = World::new();
    for at in [0, 7, 40, 90] {
        let change = move |change: fn(&mut Vec<Record>, usize)| -> Tamper {
            Box::new(move |request, response| match (request, response) {
                (
                    Request::SnapshotRecords { first, .. },
                    Response::SnapshotRecords { mut records, proof },
                ) => {
                    if (*first..*first + records.len() as u64).contains(&at) {
                        let at = usize::try_from(at - first).unwrap();
                        change(&mut records, at);
                    }
                    Response::SnapshotRecords { records, proof }
                }
                (_, response) => response,
            })
        };
        let altered = world.refused(change(|records, at| records[at].height += 1)).await;
        let omitted = world.refused(change(|records, at| drop(records.remove(at)))).await;
        let doubled = world.refused(change(|records, at| records.insert(at, records[at].clone()))).await;
        for text in [altered, omitted, doubled] {
            let named =
                text.starts_with("the first ") && text.contains("records are not those of the log of");
            assert!(named || text.ends_with("of 96"), "{text}");
        }
    }
    let none = world.refused(Box::new(|_, response| match response {
        Response::SnapshotRecords { proof, .. } => Response::SnapshotRecords { records: Vec::new(), proof },
        response => response,
    }));
    assert!(none.await.starts_with("it sent 0 records from "));
}

#[tokio::test]
async fn a_value_that_was_altered_added_or_left_out_is_refused_by_name() {
    let world = World::new();
    let user = StateKey::Account(world.grid.user.public());
    let change = |change: fn(&mut Vec<(StateKey, ProvedValue)>, usize)| -> Tamper {
        let user = user.clone();
        Box::new(move |_, response| match response {
            Response::SnapshotValues { mut values, more } => {
                if let Some(at) = values.iter().position(|(key, _)| *key == user) {
                    change(&mut values, at);
                }
                Response::SnapshotValues { values, more }
            }
            response => response,
        })
    };
    let named = format!("the proof for the account of {}", world.grid.user.public());
    let altered = world.refused(change(|values, at| values[at].1.value.as_mut().unwrap()[0] ^= 1)).await;
    assert!(altered.starts_with(&named), "{altered}");
    let gone = world.refused(change(|values, at| values[at].1.value = None)).await;
    assert!(gone.starts_with(&named), "{gone}");
    let twice = world.refused(change(|values, at| values.insert(at, values[at].clone()))).await;
    assert!(twice.starts_with("it sent a value out of order: Account"), "{twice}");
    let omitted = world.refused(change(|values, at| drop(values.remove(at)))).await;
    assert!(omitted.starts_with("grains are not conserved: accounts and escrows have "), "{omitted}");
    let name = world
        .refused(Box::new(|_, response| match response {
            Response::SnapshotValues { mut values, more } => {
                values.retain(|(key, _)| !matches!(key, StateKey::FarmName(_)));
                Response::SnapshotValues { values, more }
            }
            response => response,
        }))
        .await;
    assert!(name.contains("do not make the state of header"), "{name}");
    assert!(name.ends_with("it left some out"), "{name}");
}

#[tokio::test]
async fn a_header_that_was_altered_in_any_part_is_refused() {
    let world = World::new();
    let changes: [fn(&mut SignedHeader); 9] = [
        |h| h.header.height += 1,
        |h| h.header.time_ms += 1,
        |h| h.header.log_root.0[0] ^= 1,
        |h| h.header.log_size += 1,
        |h| h.header.state_root.0[0] ^= 1,
        |h| h.header.next_validators.0[0] ^= 1,
        |h| h.header.chain.0.0[0] ^= 1,
        |h| h.certificate.signatures.clear(),
        |h| h.validators.validators[0].key = key(66).public(),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        for everywhere in [true, false] {
            let reason = world
                .refused(Box::new(move |_, response| match response {
                    Response::Header(mut header) if everywhere => {
                        change(&mut header);
                        Response::Header(header)
                    }
                    Response::SnapshotOpened { mut tip, id, values } => {
                        change(&mut tip);
                        Response::SnapshotOpened { tip, id, values }
                    }
                    response => response,
                }))
                .await;
            assert!(reason.contains("header"), "change {n}: {reason}");
        }
    }
    let other = world.refused(Box::new(|request, response| match request {
        Request::SnapshotOpen => Response::Listening,
        _ => response,
    }));
    assert_eq!(other.await, "it answered something else than was asked");
}

#[tokio::test]
async fn after_a_liar_the_next_replica_goes_on_and_the_report_names_the_liar() {
    let world = World::new();
    let liar = Fake::new(
        70,
        &world.server,
        Box::new(|request, response| match (request, response) {
            (Request::SnapshotRecords { first, .. }, Response::SnapshotRecords { mut records, proof }) => {
                if *first > 40 {
                    records[0].version += 1;
                }
                Response::SnapshotRecords { records, proof }
            }
            (_, response) => response,
        }),
    );
    let sources = [liar, Fake::honest(71, &world.server)];
    let report = join_from(&world.plan(), &sources).await.unwrap();
    let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert!(problem.lied && problem.replica == key(70).public(), "{problem:?}");
    let first = sources[1].asked.lock().unwrap().iter().find_map(|request| match request {
        Request::SnapshotRecords { first, .. } => Some(*first),
        _ => None,
    });
    assert!(first.unwrap() > 32, "what was proved is not fetched again: from {first:?}");
    Store::open(&world.data(), &world.grid.genesis).unwrap().audit().unwrap();
}

#[tokio::test]
async fn a_source_that_goes_away_at_any_moment_leaves_nothing_that_looks_whole() {
    let world = World::new();
    let counted = Fake::honest(70, &world.server);
    join_from(&world.plan(), std::slice::from_ref(&counted)).await.unwrap();
    let answers = counted.asked.lock().unwrap().len() as u64;
    assert!(answers > 10, "{answers}");
    for answers in 0..answers {
        std::fs::remove_dir_all(world.data()).unwrap();
        let dying = Fake::honest(70, &world.server).dies_after(answers);
        let error = join_from(&world.plan(), &[dying]).await.unwrap_err();
        let expected = format!(
            "no replica could be copied from: {}: it is gone; join again later, it goes on where it stopped",
            key(70).public().short()
        );
        assert_eq!(error.to_string(), expected);
        assert!(!world.data().join(FILE).exists());
        let unfinished = FileDisk::open_existing(&world.data().join(UNFINISHED)).unwrap();
        let error = Store::open_on(Box::new(unfinished), &world.grid.genesis).unwrap_err();
        assert!(error.to_string().contains("is damaged: it has no version"), "{error}");
    }
    let honest = Fake::honest(71, &world.server);
    join_from(&world.plan(), std::slice::from_ref(&honest)).await.unwrap();
    assert_eq!(honest.count(|r| matches!(r, Request::SnapshotRecords { .. })), 0, "all are here");
    let again = join_from(&world.plan(), &[honest]).await.unwrap_err().to_string();
    let path = world.data().join(FILE);
    assert_eq!(
        again,
        format!("there is a ledger at {} already: move the file away first if it is damaged", path.display())
    );
}

#[tokio::test]
async fn what_another_grid_or_a_crash_at_the_end_left_is_not_in_the_way() {
    let world = World::new();
    std::fs::create_dir_all(world.data()).unwrap();
    let unfinished = world.data().join(UNFINISHED);
    std::fs::write(&unfinished, b"something else").unwrap();
    let honest = [Fake::honest(70, &world.server)];
    join_from(&world.plan(), &honest).await.unwrap();

    // As after a crash between the last write and the new name.
    std::fs::rename(world.data().join(FILE), &unfinished).unwrap();
    let report = join_from(&world.plan(), &[Fake::honest(71, &world.server).dies_after(0)]).await.unwrap();
    assert_eq!(report.height, world.source().latest().height());

    std::fs::rename(world.data().join(FILE), &unfinished).unwrap();
    let mut other = Grid::new();
    other.genesis.time_ms += 1;
    let store =
        Store::create_on(Box::new(MemoryDisk::new()), &other.genesis, &|header| other.certify(header))
            .unwrap();
    let server = serve(&other, store, &world.dir.path().join("other-blobs"));
    let plan = JoinPlan { genesis: other.genesis.clone(), ..world.plan() };
    let report = join_from(&plan, &[Fake::honest(72, &server)]).await.unwrap();
    assert_eq!(report.height, 0);
    Store::open(&world.data(), &other.genesis).unwrap().audit().unwrap();
}

#[tokio::test]
async fn two_final_headers_of_one_height_stop_everything() {
    let world = World::new();
    // The one validator signs a second block of the newest height.
    let (store, _) = world.grid.store();
    while store.latest().height() < world.source().latest().height() {
        world.grid.commit(&store, &[]);
    }
    let other = serve(&world.grid, store, &world.dir.path().join("other-blobs"));
    let sources = [Fake::honest(70, &world.server), Fake::honest(71, &other)];
    let error = join_from(&world.plan(), &sources).await.unwrap_err();
    assert_eq!(error.to_string(), "validators of this grid signed two headers: stop and tell its owners");
    assert!(chain_of(&error).contains("there are two final headers for height 33"), "{}", chain_of(&error));
}

#[tokio::test]
async fn a_crash_at_any_write_of_the_copy_leaves_what_goes_on_or_the_whole_ledger() {
    use crate::store::tests::crash_images;
    // A small one: it is copied anew after each crash.
    let grid = Grid::new();
    let (store, _) = grid.store();
    grid.populate(&store);
    let world = World::of(grid, store);
    let disk = MemoryDisk::new();
    let builder = Builder::open(&disk, &world.grid.genesis).unwrap();
    let before = disk.data();
    disk.take_journal();
    let view = world.source().latest();
    let mut light = LightClient::new(world.grid.chain(), world.grid.genesis.validators.hash());
    let tip = light.accept_tip(view.tip(), None).unwrap();
    let size = tip.header().log_size;
    let fill = |builder: &Builder| {
        while builder.records().unwrap() < size {
            let page = view.log_page(builder.records().unwrap(), size).unwrap().unwrap();
            builder.add_records(&tip, &page.records, &page.proof).unwrap();
        }
        builder.begin_values().unwrap();
        let mut after = None;
        loop {
            let page = view.values_after(after.as_ref()).unwrap();
            let values: Vec<_> =
                page.values.into_iter().map(|(key, proved)| (key, proved.value.unwrap())).collect();
            builder.add_values(&values).unwrap();
            after = values.last().map(|(key, _)| key.clone());
            if !page.more {
                break;
            }
        }
        builder.finish(view.tip(), &[]).unwrap();
    };
    fill(&builder);
    drop(builder);
    let journal = disk.take_journal();
    let images = crash_images(&before, &journal);
    let step = images.len() / 24 + 1;
    let mut seen = [0; 2];
    // The last of all is the whole one.
    for (cut, image) in images.into_iter().rev().step_by(step) {
        let disk = MemoryDisk::with(image);
        if let Ok(store) = world.grid.open(&disk) {
            store.audit().unwrap_or_else(|error| panic!("after write {cut}: {error}"));
            seen[1] += 1;
        } else {
            let builder = Builder::open(&disk, &world.grid.genesis).unwrap();
            fill(&builder);
            drop(builder);
            world.grid.open(&disk).unwrap().audit().unwrap();
            seen[0] += 1;
        }
    }
    assert!(seen[0] > 10 && seen[1] > 0, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn copies_are_for_few_and_end_when_they_are_not_used() {
    use std::time::Duration;
    let world = World::new();
    let stranger = key(55).public();
    let Response::Failed(failure) = world.server.answer(stranger, Request::SnapshotOpen).await else {
        panic!()
    };
    assert_eq!(
        failure.to_string(),
        format!(
            "{stranger} is no validator of this grid and may not do this: ask the replica's owner to list the key \
             under 'observers' in its replica.toml"
        )
    );
    let records = Request::SnapshotRecords { first: 0, size: 1 };
    assert!(matches!(
        world.server.answer(stranger, records).await,
        Response::Failed(Failure::NotAllowed { .. })
    ));
    let opened = async |key: PublicKey| match world.server.answer(key, Request::SnapshotOpen).await {
        Response::SnapshotOpened { id, .. } => Ok(id),
        Response::Failed(failure) => Err(failure),
        other => panic!("{other:?}"),
    };
    let values = async |key: PublicKey, id: u64| match world
        .server
        .answer(key, Request::SnapshotValues { id, after: None })
        .await
    {
        Response::SnapshotValues { .. } => Ok(()),
        Response::Failed(failure) => Err(failure.to_string()),
        other => panic!("{other:?}"),
    };
    let (me, validator) = (key(ME).public(), world.grid.validator.public());
    let mine = opened(me).await.unwrap();
    let theirs = opened(validator).await.unwrap();
    values(me, mine).await.unwrap();
    let gone = |id: u64| format!("there is no snapshot {id}: it ended; open another here");
    assert_eq!(values(me, theirs).await.unwrap_err(), gone(theirs), "a session is its opener's");
    for seed in [ME + 1, ME + 2] {
        opened(key(seed).public()).await.unwrap();
    }
    let fifth = key(ME + 3).public();
    let busy = opened(fifth).await.unwrap_err().to_string();
    assert_eq!(busy, "the replica is busy: 4 replicas are copying the ledger; try again in a moment");
    let next = opened(me).await.unwrap();
    assert_eq!(values(me, mine).await.unwrap_err(), gone(mine), "one at a time");
    tokio::time::advance(Duration::from_secs(59)).await;
    values(me, next).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(values(validator, theirs).await.unwrap_err(), gone(theirs), "not used for a minute");
    opened(fifth).await.unwrap();
    for _ in 0..30 {
        values(me, next).await.unwrap();
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    let mut alive = 0;
    while values(me, next).await.is_ok() {
        alive += 1;
        assert!(alive < 30, "it never ends");
        tokio::time::advance(Duration::from_secs(30)).await;
    }
}

#[tokio::test]
async fn a_join_follows_the_handovers_from_the_genesis_and_serves_them_on() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    grid.populate(&store);
    for power in [10, 9, 10, 100] {
        set_power(&grid, &store, power);
    }
    let world = World::of(grid, store);
    let set = |power| {
        let key = world.grid.validator.public();
        ValidatorSet { validators: vec![Validator { key, power }] }.hash()
    };
    let liar = |change: fn(&mut SignedHeader)| -> Tamper {
        Box::new(move |request, response| match (request, response) {
            (Request::Handover { .. }, Response::Header(mut header)) => {
                change(&mut header);
                Response::Header(header)
            }
            (_, response) => response,
        })
    };
    let altered = world.refused(liar(|h| h.header.next_validators.0[0] ^= 1)).await;
    assert!(altered.contains("is for height 4 or another header"), "{altered}");
    let unsigned = world.refused(liar(|h| h.certificate.signatures.clear())).await;
    assert!(unsigned.contains("header 4 is signed by 0 of 1 power"), "{unsigned}");

    let report = join_from(&world.plan(), &[Fake::honest(70, &world.server)]).await.unwrap();
    assert_eq!((report.height, report.handovers), (7, 2), "those of 1 and of 9; that of 10 is the base");
    let disk = FileDisk::open_existing(&world.data().join(FILE)).unwrap();
    let verified = verify(&disk, Some(&world.grid.genesis), |_, _| {}).unwrap();
    assert_eq!((verified.first, verified.handovers), (7, 3));
    let joined = Store::open(&world.data(), &world.grid.genesis).unwrap();
    joined.audit().unwrap();
    let joined = serve(&world.grid, joined, &world.dir.path().join("joined-blobs"));
    for power in [1, 9, 10, 100] {
        let request = Request::Handover { validators: set(power) };
        let (mine, theirs) = (
            joined.answer(key(1).public(), request.clone()).await,
            world.server.answer(key(1).public(), request).await,
        );
        assert_eq!(mine, theirs, "power {power}");
    }
    // One that joins from the joined.
    let third =
        World { grid: world.grid, server: joined, dir: tempfile::tempdir().unwrap(), heard: Arc::default() };
    join_from(&third.plan(), &[Fake::honest(71, &third.server)]).await.unwrap();
    let audited = Store::open(&third.data(), &third.grid.genesis).unwrap().audit().unwrap();
    assert_eq!(audited.headers, 3);
}
