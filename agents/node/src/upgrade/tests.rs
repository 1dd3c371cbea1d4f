//! Decisions for any facts, and journals for power cuts at any step.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use croft_protocol::image::Chunk;
use croft_protocol::release::{
    BootFile, BootManifest, Halt, Outcome, Release, ReleaseState, SignedRelease, StopRule, Trials, Window,
};
use croft_protocol::{Hash, Name, SecretKey};
use croft_storage::files::{Entry, Files, OsFiles, Sink};
use proptest::prelude::*;

use super::decide::{TRIAL_LIMIT, WELL_FOR};
use super::journal::{Phase, RESUMES, TRIAL_STARTS, Trial};
use super::*;
use crate::images::BlobSource;

fn version(minor: u16) -> ReleaseVersion {
    ReleaseVersion { major: 1, minor, patch: 0 }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn node() -> NodeId {
    SecretKey::from_seed(&[4; 32]).public()
}

fn release(minor: u16) -> Release {
    let boot_file = BootFile {
        sha256: Hash([minor as u8; 32]),
        size_bytes: 1,
        authenticode: Hash::ZERO,
        manifest: Hash::ZERO,
    };
    Release {
        channel: name("stable"),
        version: version(minor),
        previous: None,
        minimum: version(0),
        boot_file,
        measurements: Vec::new(),
        stop: StopRule::default(),
        notes: String::new(),
    }
}

fn installed(minor: u16) -> Installed {
    Installed::of(&release(minor))
}

#[derive(Debug, Clone)]
struct Situation {
    running: Option<u16>,
    now_ms: u64,
    up_s: u64,
    well_since_s: Option<u64>,
    policy: Option<FarmPolicy>,
    minimum: u16,
    offered: Option<u16>,
    body: Option<u16>,
    halted: bool,
    confirmed: Option<u16>,
    floor: Option<u16>,
    on_trial: bool,
    given_up: Option<u16>,
    fetched: bool,
}

impl Situation {
    /// Release 2 is offered to a node that runs 1, and nothing is in the way.
    fn clear() -> Self {
        Self {
            running: Some(1),
            now_ms: 3_600_000,
            up_s: 1000,
            well_since_s: Some(10),
            policy: Some(FarmPolicy {
                channel: name("stable"),
                share_per_mille: 1000,
                window: None,
                hold: false,
            }),
            minimum: 0,
            offered: Some(2),
            body: Some(2),
            halted: false,
            confirmed: None,
            floor: None,
            on_trial: false,
            given_up: None,
            fetched: true,
        }
    }

    fn decide(&self) -> Action {
        let mut journal = Journal { confirmed: self.confirmed.map(installed), ..Journal::default() };
        journal.given_up.extend(self.given_up.map(|minor| installed(minor).id()));
        if self.on_trial {
            journal.trial = Some(Trial { of: installed(9), phase: Phase::Running { starts: 1 } });
        }
        let channel = ChannelBody {
            name: name("stable"),
            latest: version(30),
            offered: self.offered.map(version),
            minimum: version(self.minimum),
        };
        let trials = Trials { returned: 3, ..Trials::default() };
        let state = if self.halted {
            ReleaseState::Halted(Halt::Returns { trials })
        } else {
            ReleaseState::Published
        };
        let body = self.body.map(|minor| ReleaseBody {
            signed: SignedRelease { release: release(minor), signatures: Vec::new() },
            state,
        });
        decide(&Facts {
            node: node(),
            running: self.running.map(version),
            now_ms: self.now_ms,
            up: Duration::from_secs(self.up_s),
            well_since: self.well_since_s.map(Duration::from_secs),
            trouble: "no microVM can run here",
            policy: self.policy.as_ref(),
            channel: Some(&channel),
            offered: body.as_ref(),
            journal: &journal,
            floor: self.floor.map(version),
            fetched: self.fetched,
        })
    }
}

fn policy() -> impl Strategy<Value = FarmPolicy> {
    let window = (0_u16..1440, 1_u16..1440)
        .prop_map(|(start_minute, duration_minutes)| Window { start_minute, duration_minutes });
    (
        prop_oneof![4 => Just("stable"), 1 => Just("nightly")],
        prop_oneof![2 => Just(1000_u16), 1 => 0_u16..1000],
        prop::option::of(window),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(channel, share_per_mille, window, hold)| FarmPolicy {
            channel: name(channel),
            share_per_mille,
            window,
            hold,
        })
}

fn situation() -> impl Strategy<Value = Situation> {
    let small = || prop::option::weighted(0.8, 0_u16..5);
    (
        (small(), 0_u64..200_000_000, 0_u64..700, prop::option::weighted(0.8, 0_u64..700)),
        (prop::option::weighted(0.9, policy()), 0_u16..4, small(), prop::bool::weighted(0.2)),
        ((small(), small()), prop::bool::weighted(0.3), small(), any::<bool>(), any::<bool>()),
    )
        .prop_map(|((running, now_ms, up_s, well), (policy, minimum, offered, halted), rest)| {
            let ((confirmed, floor), on_trial, given_up, fetched, other_body) = rest;
            Situation {
                running,
                now_ms,
                up_s,
                well_since_s: well.filter(|since| *since <= up_s),
                policy,
                minimum,
                offered,
                body: if other_body { offered } else { given_up.or(offered) },
                halted,
                confirmed,
                floor,
                on_trial,
                given_up,
                fetched,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_release_is_tried_only_when_everything_allows_it(s in situation()) {
        match s.decide() {
            Action::Try(of) | Action::Fetch(of) => {
                let policy = s.policy.clone().unwrap();
                prop_assert!(!s.on_trial && !s.halted && !policy.hold && policy.channel == of.channel);
                prop_assert_eq!(Some(of.version), s.offered.map(version));
                prop_assert!(Some(of.version) > s.running.map(version), "never back or across");
                prop_assert!(Some(of.version) >= s.confirmed.map(version), "never below what was confirmed");
                prop_assert!(Some(of.version) > s.running.map(version), "never what runs, or older");
                prop_assert!(Some(of.version) >= s.floor.map(version), "never below what the TPM knows");
                prop_assert!(of.version >= version(s.minimum));
                prop_assert_ne!(Some(of.version), s.given_up.map(version));
                prop_assert!(of.id().stage_of(&node()) < policy.share_per_mille);
                prop_assert!(s.well_since_s.is_some());
                if let Action::Try(_) = s.decide() {
                    prop_assert!(s.fetched && policy.window.is_none_or(|w| w.contains(s.now_ms)));
                }
            }
            Action::Confirm => {
                let well_s = s.up_s - s.well_since_s.unwrap();
                prop_assert!(s.on_trial && well_s >= WELL_FOR.as_secs());
            }
            Action::GoBack { .. } => prop_assert!(s.on_trial && s.up_s >= TRIAL_LIMIT.as_secs()),
            Action::Stay(why) => prop_assert_eq!(why == Why::OnTrial, s.on_trial),
            Action::Tell(_) => prop_assert!(false, "there is nothing to tell"),
        }
        // A trial always ends.
        let late = Situation { on_trial: true, up_s: 10_000, ..s };
        let ends = matches!(late.decide(), Action::Confirm | Action::GoBack { .. });
        prop_assert!(ends, "a trial goes on");
    }

    #[test]
    fn a_power_cut_at_any_step_never_loses_the_floor_nor_tries_twice(
        steps in prop::collection::vec((0_u8..4, any::<bool>(), any::<bool>()), 1..30),
    ) {
        // The medium has 1. Each step: a release is offered and tried; then it boots or not, is well or not, and the
        // power may fail in between.
        let mut journal = Journal::default();
        let (mut offered, mut best) = (1_u16, 1_u16);
        let mut tried = Vec::new();
        for (fate, well, cut) in steps {
            offered += 1;
            let candidate = installed(offered);
            if journal.has_given_up(&candidate.id()) || journal.trial.is_some() {
                continue;
            }
            prop_assert!(!tried.contains(&offered));
            tried.push(offered);
            journal.arm(candidate);
            let mut running = 1;
            // Fate 0: power cut before kexec; 1: it never comes up; else it boots.
            if fate >= 2 {
                prop_assert_eq!(journal.at_start(Some(version(offered))), Start::Trial);
                if !cut && well {
                    journal.confirm();
                    (running, best) = (offered, offered);
                } else if !cut {
                    journal.fail("not well".to_owned());
                }
            }
            // The next boot is from the medium, where the machine restarted.
            if running == 1 {
                match journal.at_start(Some(version(1))) {
                    Start::Normal => prop_assert_eq!(best, 1),
                    Start::Resume(of) => {
                        prop_assert_eq!(of.version, version(best));
                        prop_assert_eq!(journal.at_start(Some(version(best))), Start::Normal);
                        journal.resumed();
                        running = best;
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
                prop_assert!(journal.trial.is_none());
                prop_assert!(journal.has_given_up(&installed(offered).id()));
                let told = journal.untold.last().unwrap();
                let says_why = matches!(&told.outcome, Outcome::Returned { reason } if !reason.is_empty());
                prop_assert!(says_why);
            }
            prop_assert_eq!(journal.floor(Some(version(running))), Some(version(best.max(running))));
            prop_assert!(journal.untold.len() <= 8 && journal.given_up.len() <= 32);
        }
    }
}

#[test]
fn each_thing_in_the_way_has_its_reason() {
    type Change = fn(&mut Situation);
    let cases: [(Change, Why); 12] = [
        (|s| s.running = None, Why::NoVersion),
        (|s| s.policy = None, Why::NoPolicy),
        (|s| s.policy.as_mut().unwrap().hold = true, Why::Held),
        (|s| s.offered = None, Why::NothingOffered),
        (|s| s.body = Some(3), Why::NothingOffered),
        (|s| s.halted = true, Why::Halted),
        (|s| s.running = Some(2), Why::UpToDate),
        (|s| s.confirmed = Some(3), Why::UpToDate),
        (|s| s.floor = Some(3), Why::BelowFloor),
        (|s| s.given_up = Some(2), Why::GivenUp),
        (|s| s.policy.as_mut().unwrap().share_per_mille = 0, Why::NotYetInShare),
        (
            |s| s.policy.as_mut().unwrap().window = Some(Window { start_minute: 61, duration_minutes: 60 }),
            Why::OutsideWindow,
        ),
    ];
    assert_eq!(Situation::clear().decide(), Action::Try(installed(2)));
    for (change, why) in cases {
        let mut situation = Situation::clear();
        change(&mut situation);
        assert_eq!(situation.decide(), Action::Stay(why));
    }
    let unreachable = Situation { confirmed: Some(2), ..Situation::clear() };
    assert_eq!(unreachable.decide(), Action::Try(installed(2)), "it was confirmed, and the medium's runs");
    let damaged = Situation { fetched: false, ..unreachable };
    assert_eq!(damaged.decide(), Action::Fetch(installed(2)));
    let lost = Situation { floor: Some(2), ..Situation::clear() };
    assert_eq!(lost.decide(), Action::Try(installed(2)), "the disk that had it died");
    let absent = Situation { fetched: false, ..Situation::clear() };
    assert_eq!(absent.decide(), Action::Fetch(installed(2)));
    let ill = Situation { well_since_s: None, on_trial: true, ..Situation::clear() };
    let reason = "not well within 300 s: no microVM can run here".to_owned();
    assert_eq!(ill.decide(), Action::GoBack { reason });
}

#[test]
fn a_trial_whose_agent_ends_again_and_again_is_left() {
    let mut journal = Journal::default();
    journal.arm(installed(2));
    for _ in 0..TRIAL_STARTS {
        assert_eq!(journal.at_start(Some(version(2))), Start::Trial);
    }
    let Start::GoBack { reason } = journal.at_start(Some(version(2))) else { panic!() };
    assert_eq!(reason, "its agent ended 3 times before it was confirmed");
    // Init did not hear it: it is asked once more.
    assert_eq!(journal.at_start(Some(version(2))), Start::GoBack { reason: reason.clone() });
    assert_eq!(journal.at_start(Some(version(1))), Start::Normal);
    assert_eq!(journal.untold.last().unwrap().outcome, Outcome::Returned { reason });
}

#[test]
fn a_failed_release_that_is_on_the_medium_too_goes_on_instead_of_restarting_for_ever() {
    let mut journal = Journal { confirmed: Some(installed(1)), ..Journal::default() };
    journal.arm(installed(2));
    assert_eq!(journal.at_start(Some(version(2))), Start::Trial);
    journal.fail("not well".to_owned());
    let reason = || "not well".to_owned();
    let boots: Vec<_> = (0..4).map(|_| journal.at_start(Some(version(2)))).collect();
    let expected = [
        Start::GoBack { reason: reason() },
        Start::NoWayBack { reason: reason() },
        Start::Normal,
        Start::Normal,
    ];
    assert_eq!(boots, expected);
    assert!(journal.has_given_up(&installed(2).id()));
    assert_eq!(journal.untold, [], "the ledger takes a return only from a node that runs another release");
    // With an older medium in it again, the machine goes on with what was well.
    assert_eq!(journal.at_start(Some(version(0))), Start::Resume(installed(1)));
}

#[test]
fn a_confirmed_release_that_can_not_be_reached_does_not_restart_the_machine_for_ever() {
    let mut journal = Journal { confirmed: Some(installed(5)), ..Journal::default() };
    for _ in 0..RESUMES {
        assert_eq!(journal.at_start(Some(version(1))), Start::Resume(installed(5)));
    }
    assert_eq!(journal.at_start(Some(version(1))), Start::Normal);
    assert_eq!(journal.floor(Some(version(1))), Some(version(5)), "it is still the floor");
    // A newer medium is taken as it is.
    assert_eq!(journal.at_start(Some(version(6))), Start::Normal);
}

#[test]
fn a_reason_that_is_too_long_for_the_ledger_is_cut_between_characters() {
    let mut journal = Journal::default();
    journal.arm(installed(2));
    journal.give_up("é".repeat(600) + "x");
    let Outcome::Returned { reason } = &journal.untold[0].outcome else { panic!() };
    assert_eq!(reason.len(), 1024);
}

/// Real files of which so many operations work; then the machine is off.
#[derive(Debug)]
struct Dying {
    left: AtomicUsize,
}

impl Dying {
    fn step(&self) -> io::Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| io::Error::other("the power is off"))
    }
}

impl Files for Dying {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        self.step()?;
        OsFiles.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        self.step()?;
        OsFiles.open(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        OsFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        OsFiles.remove(path)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        OsFiles.sync_folder(path)
    }
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        OsFiles.make_folder(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.step()?;
        OsFiles.list(path)
    }
    fn touch(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        OsFiles.touch(path)
    }
}

fn open(files: Arc<dyn Files>, dir: &Path, runs: &str) -> Result<(Upgrades, Start), UpgradeError> {
    open_above(None, files, dir, runs)
}

fn open_above(
    floor: Option<u16>,
    files: Arc<dyn Files>,
    dir: &Path,
    runs: &str,
) -> Result<(Upgrades, Start), UpgradeError> {
    let documents = Documents::open_on(files, &dir.join("journal"))?;
    let teller = Teller::new(Places::default(), dir);
    let folders = (&*dir.join("files"), &*dir.join("kernels"));
    Upgrades::open_on(documents, folders, runs, (None, teller), floor.map(version))
}

#[test]
fn an_agent_that_ended_when_the_tpm_was_told_is_known_to_the_next_one_until_the_machine_restarts() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(told_in_vain(dir.path()), None);
    std::fs::write(dir.path().join(TOLD), "1.2.0").unwrap();
    let reason = "the TPM was told of release 1.2.0, which did not start";
    assert_eq!(told_in_vain(dir.path()).unwrap(), reason);
}

#[tokio::test]
async fn a_disk_from_before_does_not_bring_back_a_release_below_the_tpms_floor() {
    let dir = tempfile::tempdir().unwrap();
    let (mut upgrades, _) = open(Arc::new(OsFiles), dir.path(), "1.1.0").unwrap();
    upgrades.change(|journal| journal.confirmed = Some(installed(2))).unwrap();
    let start = |floor| open_above(floor, Arc::new(OsFiles), dir.path(), "1.1.0").unwrap().1;
    assert_eq!(start(Some(3)), Start::Normal);
    assert_eq!(start(Some(2)), Start::Resume(installed(2)));
    assert_eq!(start(None), Start::Resume(installed(2)));
}

#[tokio::test]
async fn a_disk_that_fails_at_any_operation_leaves_the_journal_before_or_after_a_step() {
    for operations in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let dying = Arc::new(Dying { left: AtomicUsize::new(operations) });
        let mut done = 0;
        let steps = |done: &mut u32| -> Result<(), UpgradeError> {
            let (mut upgrades, start) = open(dying.clone(), dir.path(), "1.1.0")?;
            assert_eq!(start, Start::Normal);
            upgrades.change(|journal| journal.arm(installed(2)))?;
            *done = 1;
            let (mut upgrades, start) = open(dying.clone(), dir.path(), "1.2.0")?;
            assert_eq!(start, Start::Trial);
            *done = 2;
            upgrades.change(Journal::confirm)?;
            *done = 3;
            Ok(())
        };
        let result = steps(&mut done);
        // The next boot is from the medium, with a disk that works.
        let (upgrades, start) = open(Arc::new(OsFiles), dir.path(), "1.1.0").unwrap();
        let gave_up = upgrades.journal.has_given_up(&installed(2).id());
        match (done, &start) {
            // A step that failed may have happened or not; one that succeeded has.
            (0, Start::Normal) | (2 | 3, Start::Resume(_)) => {}
            (1 | 2, Start::Normal) => assert!(gave_up, "after {operations}"),
            other => panic!("after {operations} operations: {other:?}, {result:?}"),
        }
        assert!(upgrades.journal.trial.is_none());
        assert_eq!(done == 3, result.is_ok());
    }
}

#[tokio::test]
async fn trouble_of_this_machine_is_no_fault_of_the_release() {
    let dir = tempfile::tempdir().unwrap();
    let (mut upgrades, _) = open(Arc::new(OsFiles), dir.path(), "1.1.0").unwrap();
    let (boot_file, bytes, _) = boot_file(1_000);
    let of = Installed { boot_file, ..installed(2) };
    let error = upgrades.try_out(of.clone()).await.unwrap_err();
    assert!(matches!(error, UpgradeError::Files(_)), "its file is not there: {error:?}");
    std::fs::write(dir.path().join(format!("files/{}.efi", of.boot_file.sha256)), &bytes).unwrap();
    let error = upgrades.try_out(of.clone()).await.unwrap_err();
    assert!(matches!(error, UpgradeError::NoInit), "{error:?}");
    assert_eq!(error.to_string(), "this node was not started by init, so nobody boots a release");
    assert_eq!(upgrades.journal, Journal::default(), "neither given up nor told");
    assert!(upgrades.try_not_before.is_some(), "and not tried without a pause");
    let (mut upgrades, start) = open(Arc::new(OsFiles), dir.path(), "1.1.0").unwrap();
    assert_eq!((start, &upgrades.journal), (Start::Normal, &Journal::default()));
    // Bytes that are what the keys signed for, and another program than they say, stay so.
    let mut lies = of;
    lies.boot_file.authenticode = Hash([7; 32]);
    upgrades.try_out(lies.clone()).await.unwrap_err();
    assert!(upgrades.journal.has_given_up(&lies.id()));
}

struct Blobs {
    blobs: BTreeMap<Hash, Vec<u8>>,
    asked: Mutex<Vec<Hash>>,
}

impl BlobSource for Blobs {
    async fn blob(&self, hash: Hash) -> Result<Vec<u8>, String> {
        self.asked.lock().unwrap().push(hash);
        self.blobs.get(&hash).cloned().ok_or_else(|| "nobody has it".to_owned())
    }
}

/// Right in every header, with one section to its end.
fn efi_program(len: usize) -> Vec<u8> {
    const HEADERS: u32 = 0x200;
    let mut bytes: Vec<u8> = (0..len).map(|i| (i / 3 + i / 1_000_003) as u8).collect();
    bytes[..HEADERS as usize].fill(0);
    let section = 0x80 + 24 + 0xa0;
    let fields: [(usize, &[u8]); 11] = [
        (0, b"MZ"),
        (0x3c, &0x80_u32.to_le_bytes()),
        (0x80, b"PE\0\0"),
        (0x84, &0x8664_u16.to_le_bytes()),
        (0x86, &1_u16.to_le_bytes()),
        (0x80 + 20, &0xa0_u16.to_le_bytes()),
        (0x80 + 24, &0x20b_u16.to_le_bytes()),
        (0x80 + 24 + 60, &HEADERS.to_le_bytes()),
        (0x80 + 24 + 108, &6_u32.to_le_bytes()),
        (section + 16, &(u32::try_from(len).unwrap() - HEADERS).to_le_bytes()),
        (section + 20, &HEADERS.to_le_bytes()),
    ];
    for (at, field) in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

fn boot_file(len: usize) -> (BootFile, Vec<u8>, Blobs) {
    let bytes = efi_program(len);
    let mut blobs = BTreeMap::new();
    let mut chunks = Vec::new();
    for chunk in bytes.chunks(limits::CHUNK_BYTES) {
        let packed = zstd::bulk::compress(chunk, 1).unwrap();
        chunks.push(Chunk { hash: Hash::of_bytes(&packed), compressed_bytes: packed.len() as u32 });
        blobs.insert(Hash::of_bytes(&packed), packed);
    }
    let manifest = BootManifest { version: 1, size_bytes: len as u64, chunks };
    blobs.insert(manifest.hash(), croft_protocol::encode(&manifest));
    let file = BootFile {
        sha256: Hash::of_bytes(&bytes),
        size_bytes: len as u64,
        authenticode: Hash(croft_media::pe::Pe::parse(&bytes).unwrap().hash()),
        manifest: manifest.hash(),
    };
    (file, bytes, Blobs { blobs, asked: Mutex::default() })
}

#[tokio::test]
async fn a_boot_file_is_fetched_once_and_goes_on_where_a_power_cut_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = BootFiles::open(dir.path()).unwrap();
    let (file, bytes, mut source) = boot_file(3 * limits::CHUNK_BYTES + 17);
    let last = Hash::of_bytes(&zstd::bulk::compress(&bytes[3 * limits::CHUNK_BYTES..], 1).unwrap());
    let packed = source.blobs.remove(&last).unwrap();
    let error = files.fetch(&file, &source).await.unwrap_err().to_string();
    assert_eq!(error, format!("can't fetch chunk of a boot file {last}: nobody has it"));
    assert!(!files.has(&file));
    // The power cut leaves half a chunk behind the whole ones.
    let partial = dir.path().join(format!("{}.partial", file.sha256));
    let mut torn = std::fs::read(&partial).unwrap();
    assert_eq!(torn.len(), 3 * limits::CHUNK_BYTES);
    torn.extend([9; 5000]);
    std::fs::write(&partial, torn).unwrap();
    source.blobs.insert(last, packed);
    source.asked.lock().unwrap().clear();
    files.fetch(&file, &source).await.unwrap();
    assert_eq!(*source.asked.lock().unwrap(), [file.manifest, last], "the rest was here");
    assert!(files.has(&file));
    let staged = files.stage(&file, &dir.path().join("kernels")).unwrap();
    assert_eq!(std::fs::read(staged).unwrap(), bytes);
    // A disk that was written to elsewhere: its journal says that another program runs, or any file's name.
    let lies = BootFile { authenticode: Hash([7; 32]), ..file.clone() };
    let error = files.stage(&lies, &dir.path().join("others")).unwrap_err().to_string();
    assert!(error.contains(&format!("its release says {}: it is not started", lies.authenticode)), "{error}");
    assert!(!dir.path().join("others").exists());
    source.asked.lock().unwrap().clear();
    files.fetch(&file, &source).await.unwrap();
    assert!(source.asked.lock().unwrap().is_empty());
    files.keep_only(&[]);
    let missing = files.stage(&file, dir.path()).unwrap_err().to_string();
    assert_eq!(missing, format!("boot file {} is not on the data disk any more", file.sha256));
}

#[tokio::test]
async fn bytes_that_the_release_does_not_name_are_never_booted() {
    let dir = tempfile::tempdir().unwrap();
    let files = BootFiles::open(dir.path()).unwrap();
    let (file, bytes, mut source) = boot_file(2 * limits::CHUNK_BYTES);
    // What was written before the power cut is not what was fetched.
    std::fs::write(dir.path().join(format!("{}.partial", file.sha256)), vec![0; limits::CHUNK_BYTES])
        .unwrap();
    let error = files.fetch(&file, &source).await.unwrap_err().to_string();
    assert!(error.contains("are not the file that was signed: it is fetched anew"), "{error}");
    files.fetch(&file, &source).await.unwrap();
    // A disk that rots later.
    let path = dir.path().join(format!("{}.efi", file.sha256));
    let mut rotten = bytes.clone();
    rotten[5] ^= 1;
    std::fs::write(&path, rotten).unwrap();
    assert!(files.stage(&file, &dir.path().join("kernels")).is_err());
    assert!(!files.has(&file), "to be fetched again");
    // A replica that lies.
    let chunk = Hash::of_bytes(&zstd::bulk::compress(&bytes[..limits::CHUNK_BYTES], 1).unwrap());
    source.blobs.get_mut(&chunk).unwrap()[10] ^= 1;
    let error = files.fetch(&file, &source).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("chunk 0 of boot file {} is not what the release names: trying elsewhere", file.sha256)
    );
    assert!(!dir.path().join("kernels").join(format!("{}.efi", file.sha256)).exists());
}
