//! One validator in simulated time, on a disk that can fail.

use std::time::Duration;

use croft_protocol::{Command, Rejection, SignedValidatorChange, ValidatorChange, limits};

use super::*;
use crate::store::RESERVED_BYTES;
use crate::store::faults::MemoryDisk;
use crate::testing::{Grid, START_MS, key};

struct Bench {
    grid: Grid,
    chain: Arc<Chain>,
    disk: MemoryDisk,
    solo: Solo,
}

/// The clock counts simulated time from one second after the genesis.
fn start() -> Bench {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    let chain = Arc::new(Chain::new(store));
    let begin = Instant::now();
    let clock: Clock =
        Arc::new(move || START_MS + 1_000 + u64::try_from(begin.elapsed().as_millis()).unwrap());
    let solo = Solo::start(chain.clone(), grid.validator.clone(), clock).unwrap();
    Bench { grid, chain, disk, solo }
}

impl Bench {
    fn pay(&self, ahead: u64, grains: u64) -> SignedCommand {
        self.grid.sign(&self.chain.latest(), &self.grid.user, ahead, self.grid.pay(grains))
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_becomes_final_at_once_and_is_stored_before_it_is_told() {
    let bench = start();
    let begin = Instant::now();
    let answers: Vec<_> = (0..3).map(|i| bench.solo.enqueue(bench.pay(i, i + 1)).unwrap()).collect();
    for answer in answers {
        let Verdict::Final { height, records } = answer.await.unwrap() else { panic!() };
        let stored = bench.chain.latest();
        assert!(stored.height() >= height);
        assert!(!records.is_empty());
    }
    assert!(begin.elapsed() < HEARTBEAT, "it did not wait for the heartbeat");
    let header = bench.chain.latest().tip().header;
    assert_eq!(header.time_ms, START_MS + 1_000);
    bench.solo.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_ledger_beats() {
    let bench = start();
    let mut blocks = bench.chain.subscribe();
    for height in 1..=3 {
        let block = blocks.recv().await.unwrap();
        assert_eq!(block.header.header.height, height);
        assert_eq!(block.header.header.time_ms, START_MS + 1_000 + height * limits::HEARTBEAT_MS);
        croft_light::verify_certificate(&block.header).unwrap();
    }
}

#[tokio::test]
async fn block_time_grows_even_when_the_clock_goes_back() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    let chain = Arc::new(Chain::new(store));
    let solo = Solo::start(chain.clone(), grid.validator.clone(), Arc::new(|| 5)).unwrap();
    for i in 1..=3 {
        let pay = grid.sign(&chain.latest(), &grid.user, 0, grid.pay(i));
        solo.enqueue(pay).unwrap().await.unwrap();
        assert_eq!(chain.latest().tip().header.time_ms, START_MS + i);
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_predecessor_never_comes_is_rejected_before_the_heartbeat() {
    let bench = start();
    let begin = Instant::now();
    let verdict = bench.solo.enqueue(bench.pay(2, 1)).unwrap().await.unwrap();
    let author = bench.grid.user.public();
    let expected = Rejection::Sequence { author, got: 2, expected: 0 };
    assert_eq!(verdict, Verdict::Rejected(expected));
    assert!(begin.elapsed() < HEARTBEAT);
    assert_eq!(bench.chain.latest().height(), 0, "no block was made for it");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_the_ledger_reaches_the_submitter_and_the_others_go_on() {
    let bench = start();
    let too_much = bench.solo.enqueue(bench.pay(0, u64::MAX)).unwrap();
    let fine = bench.grid.sign(&bench.chain.latest(), &bench.grid.farmer, 0, Grid::create_farm());
    let fine = bench.solo.enqueue(fine).unwrap();
    assert!(matches!(too_much.await.unwrap(), Verdict::Rejected(Rejection::Funds { .. })));
    assert!(matches!(fine.await.unwrap(), Verdict::Final { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_and_blocks_go_on_when_there_is_room_again() {
    let bench = start();
    bench.disk.set_free(0);
    let refused = bench.solo.enqueue(bench.pay(0, 1)).unwrap().await.unwrap();
    let Verdict::Failed(failure) = refused else { panic!("{refused:?}") };
    assert_eq!(
        failure.to_string(),
        "the replica can't write: /test/ledger.redb has only 0 B of disk left, 64 MiB are kept for the ledger: make room; its owner must look after it"
    );
    let at_once = bench.solo.enqueue(bench.pay(0, 1)).unwrap_err();
    assert_eq!(at_once, Verdict::Failed(failure), "nobody waits while it is known");
    assert_eq!(bench.chain.latest().height(), 0, "it can still be read");
    bench.disk.set_free(2 * RESERVED_BYTES);
    let mut blocks = bench.chain.subscribe();
    blocks.recv().await.unwrap();
    let verdict = bench.solo.enqueue(bench.pay(0, 1)).unwrap().await.unwrap();
    assert!(matches!(verdict, Verdict::Final { height: 2, .. }), "{verdict:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_told_and_the_chain_goes_on_from_what_the_disk_holds() {
    let bench = start();
    bench.disk.fail_after(Some(0));
    let refused = bench.solo.enqueue(bench.pay(0, 1)).unwrap().await.unwrap();
    let Verdict::Failed(failure) = refused else { panic!("{refused:?}") };
    assert!(failure.to_string().contains("No space left on device"), "{failure}");
    bench.disk.fail_after(None);
    let mut blocks = bench.chain.subscribe();
    let block = blocks.recv().await.unwrap();
    assert_eq!(block.header.header.height, 1);
    let verdict = bench.solo.enqueue(bench.pay(0, 1)).unwrap().await.unwrap();
    assert!(matches!(verdict, Verdict::Final { height: 2, .. }), "{verdict:?}");
    bench.chain.store().audit().unwrap();
}

#[tokio::test(start_paused = true)]
async fn stopping_tells_those_who_wait_and_nothing_more_is_taken() {
    let bench = start();
    let waits = bench.solo.enqueue(bench.pay(5, 1)).unwrap();
    bench.solo.stop().await;
    let busy = Verdict::Failed(Failure::Busy { what: "it is stopping".to_owned() });
    assert_eq!(waits.await.unwrap(), busy);
    assert_eq!(bench.solo.enqueue(bench.pay(0, 1)).unwrap_err(), busy);
    tokio::time::timeout(Duration::from_secs(1), bench.solo.ended()).await.unwrap();
}

#[tokio::test]
async fn only_the_one_validator_may_order_alone() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    let chain = Arc::new(Chain::new(store));
    let error = Solo::start(chain, key(9), Arc::new(|| 0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "key {} is no validator of this grid: use the validator.key that was made with it, or correct `key` in replica.toml",
            key(9).public()
        )
    );
}

#[tokio::test(start_paused = true)]
async fn when_others_become_validators_too_it_stops_after_the_block_that_says_so() {
    let bench = start();
    let set = ValidatorSet::of_equals(&[bench.grid.validator.public(), key(101).public()]);
    let change = ValidatorChange { prev: bench.chain.latest().validators().unwrap().record, validators: set };
    let signature = change.sign(&bench.grid.validator, &bench.grid.genesis.chain_id());
    let signed = SignedValidatorChange { change, signatures: vec![signature] };
    let command = Command::SetValidators(Box::new(signed));
    let submit = bench.grid.sign(&bench.chain.latest(), &bench.grid.user, 0, command);
    let verdict = bench.solo.enqueue(submit).unwrap().await.unwrap();
    assert!(matches!(verdict, Verdict::Final { height: 1, .. }), "{verdict:?}");

    // Nobody would believe a block that it signs alone now.
    tokio::time::sleep(2 * HEARTBEAT).await;
    let refused = bench.solo.enqueue(bench.pay(0, 1)).unwrap_err();
    let Verdict::Failed(failure) = refused else { panic!("{refused:?}") };
    assert!(failure.to_string().contains("this grid has 2 validators"), "{failure}");
    assert_eq!(bench.chain.latest().height(), 1);
    bench.chain.store().audit().unwrap();
}
