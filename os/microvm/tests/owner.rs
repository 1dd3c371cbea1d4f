//! The owner of a VM against a VMM process that behaves, dies, hangs, lies and floods, in the real jail and
//! control group, without KVM: `examples/fake_vmm.rs` stands in for VMM and virtiofsd.
//!
//! Needs root and a cgroup v2 mount; prints why it skips.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use croft_microvm::logs::{LogItem, LogStart, Logs};
use croft_microvm::policy::{Backoff, RestartPolicy};
use croft_microvm::spec::{Disk, LogLimits, RootImage, Share, SpecError, VmId, VmSpec};
use croft_microvm::status::{EndCause, Phase, VmStatus};
use croft_microvm::vmm::CloudHypervisor;
use croft_microvm::wire::{Exit, GuestConfig, HealthCheck, HealthState, Probe};
use croft_microvm::{Enforcement, Microvm, Microvms, TimeLimits, UserPlan, VmmSettings};

/// For anything that must happen.
const LIMIT: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(60);
/// For what must not be waited for in a test that succeeds, and must not end one on a busy machine.
const NEVER: Duration = Duration::from_secs(3600);

struct Rig {
    dir: tempfile::TempDir,
    cgroup: PathBuf,
    settings: VmmSettings,
    microvms: Microvms,
}

impl Drop for Rig {
    /// Also ends what a failed test left.
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
            let _ = fs::write(entry.path().join("cgroup.kill"), "1");
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// The example beside this test's own binary.
fn fake_vmm() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().parent().unwrap().join("examples/fake_vmm");
    assert!(path.exists(), "{} is missing: run all targets of this package", path.display());
    path
}

fn cgroup_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    mount.split(' ').nth(1).map(PathBuf::from)
}

fn settings(dir: &Path, limits: TimeLimits) -> Option<VmmSettings> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: jails need root");
        return None;
    }
    let Some(cgroup) = cgroup_mount() else {
        eprintln!("skipped: there is no cgroup2 mount");
        return None;
    };
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("croft-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
    let libraries = ["/lib/x86_64-linux-gnu", "/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64"];
    Some(VmmSettings {
        virtiofsd: fake_vmm(),
        jail_helper: fake_vmm(),
        runtime_dir: dir.join("run"),
        cgroup_root: cgroup.join(name),
        enforcement: Enforcement::BestEffort,
        users: UserPlan::default(),
        limits,
        devices: vec!["/dev/null".into(), "/dev/urandom".into()],
        libraries: libraries.map(PathBuf::from).into_iter().filter(|path| path.exists()).collect(),
        ..VmmSettings::node(false)
    })
}

fn patient() -> TimeLimits {
    TimeLimits {
        boot: LIMIT,
        hello: LIMIT,
        started: LIMIT,
        ping_interval: Duration::from_millis(100),
        ping: LIMIT,
        ping_misses: 2,
        guest_silence: NEVER,
        power_off: LIMIT,
        kill: LIMIT,
    }
}

impl Rig {
    async fn new() -> Option<Self> {
        Self::with(patient()).await
    }

    async fn with(limits: TimeLimits) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // Jails pass through it as other users.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let settings = settings(dir.path(), limits)?;
        for name in ["initramfs", "image", "disk"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::write(dir.path().join("kernel"), b"\x7fELF").unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        let cgroup = settings.cgroup_root.clone();
        let vmm = Arc::new(CloudHypervisor::new(fake_vmm()));
        let microvms = Microvms::open(settings.clone(), vmm).await.unwrap();
        Some(Self { dir, cgroup, settings, microvms })
    }

    fn spec(&self, script: &[&str]) -> VmSpec {
        let path = |name: &str| self.dir.path().join(name);
        VmSpec {
            id: VmId::new("vm-0").unwrap(),
            vcpus: 1,
            cpu_millis: 1000,
            memory_bytes: 64 << 20,
            kernel: path("kernel"),
            initramfs: path("initramfs"),
            root: RootImage { path: path("image"), data_blocks: 1, root_hash: [1; 32], salt: vec![] },
            disks: vec![Disk { path: path("disk"), serial: "data".into(), readonly: false }],
            shares: vec![],
            netns: None,
            nics: vec![],
            guest: GuestConfig {
                hostname: "vm".into(),
                argv: script.iter().map(|word| (*word).to_owned()).collect(),
                ..GuestConfig::default()
            },
            restart: RestartPolicy::Never,
            restart_unhealthy: true,
            logs: LogLimits::default(),
            console: LogLimits::default(),
        }
    }

    fn start(&self, script: &[&str]) -> Microvm {
        self.microvms.start(self.spec(script)).unwrap()
    }

    /// Writes the fault that comes before the guest's hello.
    fn fault(&self, text: &str) {
        fs::write(self.dir.path().join("initramfs"), text).unwrap();
    }

    /// Nothing of any VM may be left.
    fn assert_clean(&self) {
        let names = |path: &Path| -> Vec<String> {
            let directories = fs::read_dir(path).unwrap().flatten().filter(|entry| entry.path().is_dir());
            directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(&self.settings.runtime_dir), [""; 0], "directories are left");
        assert_eq!(names(&self.cgroup), [""; 0], "control groups are left");
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it did not happen in time")
}

async fn wait_for(vm: &Microvm, wanted: impl FnMut(&VmStatus) -> bool) -> VmStatus {
    within(vm.watch().wait_for(wanted)).await.unwrap().clone()
}

fn lines(logs: &Logs) -> Vec<String> {
    let mut reader = logs.subscribe(LogStart::Start, false);
    std::iter::from_fn(|| reader.try_next())
        .map(|item| match item {
            LogItem::Line(line) => line.text.to_string(),
            LogItem::Skipped(count) => format!("({count} skipped)"),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_runs_until_it_is_asked_to_stop_and_leaves_nothing() {
    let Some(rig) = Rig::new().await else { return };
    let vm = rig.start(&["run"]);
    let status = wait_for(&vm, |status| status.phase == Phase::Running).await;
    let timings = status.timings.unwrap();
    assert!(timings.spawned <= timings.booted && timings.hello <= timings.started, "{timings:?}");
    assert_eq!(timings.guest_boot, Duration::from_millis(7));
    assert!(status.is_healthy());
    assert_eq!(within(vm.stop(GRACE)).await, EndCause::Stopped);
    assert_eq!(lines(vm.logs()), ["it runs", "it was asked to stop"]);
    assert_eq!(lines(vm.console()), ["fake kernel is booting"]);
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_status_is_reported_and_a_name_can_be_used_again() {
    let Some(rig) = Rig::new().await else { return };
    for code in [0, 9] {
        let vm = rig.start(&["exit", &code.to_string()]);
        let cause = within(vm.ended()).await;
        assert_eq!(cause, EndCause::Exited { exit: Exit::Code(code), out_of_memory: false });
        rig.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_while_its_vm_runs() {
    let Some(rig) = Rig::new().await else { return };
    let vm = rig.start(&["run"]);
    let error = rig.microvms.start(rig.spec(&["run"])).unwrap_err();
    assert_eq!(error, SpecError::Duplicate { id: VmId::new("vm-0").unwrap() });
    assert_eq!(error.to_string(), "VM vm-0 is running already: stop it first");
    within(vm.stop(GRACE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_vm_is_started_again_with_growing_delays_until_stopped() {
    let Some(rig) = Rig::new().await else { return };
    let mut spec = rig.spec(&["exit", "1"]);
    let first = Duration::from_millis(10);
    spec.restart = RestartPolicy::OnFailure(Backoff { first, longest: NEVER, stable: NEVER });
    let vm = rig.microvms.start(spec).unwrap();
    let status = wait_for(&vm, |status| status.restarts == 2 && status.phase == Phase::BackingOff).await;
    assert_eq!(status.backoff, Some(first * 4));
    assert_eq!(status.last_end, Some(EndCause::Exited { exit: Exit::Code(1), out_of_memory: false }));
    rig.assert_clean();
    assert_eq!(within(vm.stop(GRACE)).await, EndCause::Stopped, "also while it waits for its next start");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_dies_is_named_with_its_last_words() {
    let Some(rig) = Rig::new().await else { return };
    let vm = rig.start(&["die"]);
    let cause = within(vm.ended()).await;
    let EndCause::VmmDied { status, last_lines } = &cause else { panic!("{cause}") };
    assert_eq!(status, "exit code 101");
    assert!(last_lines.contains("thread 'vcpu0' panicked: out of luck"), "{last_lines}");
    assert!(lines(vm.logs()).iter().any(|line| line.contains("the VMM ended with exit code 101")));
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_dies_at_boot_is_named_with_its_last_words() {
    let Some(rig) = Rig::new().await else { return };
    rig.fault("die at boot");
    let vm = rig.start(&["run"]);
    let cause = within(vm.ended()).await;
    let EndCause::VmmDied { last_lines, .. } = &cause else { panic!("{cause}") };
    assert!(last_lines.contains("thread 'vmm' panicked: no such thing"), "{last_lines}");
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_vmm_is_shown() {
    let Some(rig) = Rig::new().await else { return };
    rig.fault("refuse to boot");
    let vm = rig.start(&["run"]);
    let cause = within(vm.ended()).await;
    let EndCause::NotStarted { reason } = &cause else { panic!("{cause}") };
    assert!(reason.contains("cloud-hypervisor refused to boot the machine"), "{reason}");
    assert!(reason.contains("/disks/1 is locked by another process"), "{reason}");
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_hangs_is_noticed_and_killed() {
    let limits = TimeLimits { ping: Duration::from_millis(500), ..patient() };
    let Some(rig) = Rig::with(limits).await else { return };
    let vm = rig.start(&["hang"]);
    let cause = within(vm.ended()).await;
    let EndCause::VmmHung { reason } = &cause else { panic!("{cause}") };
    assert!(reason.contains("did not answer GET /api/v1/vmm.ping within 500 ms"), "{reason}");
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_falls_silent_is_noticed_and_ended() {
    let limits = TimeLimits { guest_silence: Duration::from_millis(500), ..patient() };
    let Some(rig) = Rig::with(limits).await else { return };
    let vm = rig.start(&["silent"]);
    let cause = within(vm.ended()).await;
    assert!(matches!(cause, EndCause::GuestHung { .. }), "{cause}");
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_says_hello_shows_its_console() {
    let limits = TimeLimits { hello: Duration::from_secs(1), ..patient() };
    let Some(rig) = Rig::with(limits).await else { return };
    rig.fault("no hello");
    let vm = rig.start(&["run"]);
    let cause = within(vm.ended()).await;
    assert_eq!(
        cause.to_string(),
        "the guest did not say hello in 1 s; last lines of its console:\nfake kernel is booting\n\
         Kernel panic - not syncing: no root"
    );
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_kernel_that_restarts_underneath_is_ended() {
    let Some(rig) = Rig::new().await else { return };
    let cause = within(rig.start(&["reboot"]).ended()).await;
    assert!(matches!(cause, EndCause::GuestRestarted { .. }), "{cause}");
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ignores_its_stop_is_ended_by_force() {
    let limits = TimeLimits { power_off: Duration::from_millis(200), ..patient() };
    let Some(rig) = Rig::with(limits).await else { return };
    let vm = rig.start(&["ignore-stop"]);
    wait_for(&vm, |status| status.phase == Phase::Running).await;
    vm.request_stop(NEVER).await;
    wait_for(&vm, |status| status.phase == Phase::Stopping).await;
    // A second, shorter request shortens the first.
    assert_eq!(within(vm.stop(Duration::from_millis(100))).await, EndCause::Stopped);
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_volume_that_dies_ends_the_vm_and_is_named() {
    let Some(rig) = Rig::new().await else { return };
    let mut spec = rig.spec(&["kill-helper"]);
    spec.shares = vec![Share { tag: "shared".into(), dir: rig.dir.path().join("share"), readonly: false }];
    let vm = rig.microvms.start(spec).unwrap();
    let cause = within(vm.ended()).await;
    assert_eq!(
        cause.to_string(),
        "virtiofsd-shared ended with exit code 3; its last lines:\nvirtiofsd: something broke"
    );
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_workload_is_ended_and_strange_checks_are_ignored() {
    let Some(rig) = Rig::new().await else { return };
    let mut spec = rig.spec(&["unhealthy"]);
    spec.guest.health = vec![HealthCheck {
        name: "http".into(),
        probe: Probe::Tcp { port: 80 },
        interval_ms: 1000,
        timeout_ms: 1000,
        retries: 1,
        start_period_ms: 0,
    }];
    let vm = rig.microvms.start(spec).unwrap();
    let cause = within(vm.ended()).await;
    assert_eq!(cause.to_string(), "health check http failed: status 500");
    let health = vm.status().health;
    assert_eq!(health.keys().collect::<Vec<_>>(), ["http"]);
    assert_eq!(health["http"].state, HealthState::Unhealthy);
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_bounded() {
    let Some(rig) = Rig::new().await else { return };
    let mut spec = rig.spec(&["spam"]);
    spec.logs = LogLimits { memory_bytes: 10_000, file: None, file_bytes: 0 };
    let vm = rig.microvms.start(spec).unwrap();
    let cause = within(vm.ended()).await;
    assert!(cause.is_success(), "{cause}");
    let lines = lines(vm.logs());
    assert!(lines.len() < 100 && lines.last().unwrap().starts_with("line 19999 "), "{} lines", lines.len());
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_sees_nothing_but_what_it_needs() {
    let Some(rig) = Rig::new().await else { return };
    let vm = rig.start(&["inspect"]);
    let cause = within(vm.ended()).await;
    assert!(cause.is_success(), "{cause}");
    let facts = lines(vm.logs());
    let fact = |name: &str| {
        let line = facts.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {facts:?}")).to_owned()
    };
    assert_eq!(fact("user"), "200000 200000");
    assert_eq!(fact("groups"), "0");
    assert_eq!(fact("pid"), "1");
    assert_eq!(fact("environment"), "0");
    let libraries = ["lib", "lib64", "usr"];
    let root = fact("root");
    let root: Vec<&str> = root.split(' ').filter(|name| !libraries.contains(name)).collect();
    assert_eq!(root, ["dev", "disks", "initramfs", "kernel", "run", "vmm"]);
    assert_eq!(fact("devices"), "null urandom");
    assert_eq!(fact("run"), "api.sock console vsock.sock_1024");
    assert_eq!(fact("host name"), "jail");
    assert_eq!(fact("write root"), "read-only filesystem or storage medium");
    assert_eq!(fact("write image"), "read-only filesystem or storage medium");
    assert_eq!(fact("write disk"), "ok");
    assert_eq!(fact("become root"), "true");
    assert_eq!(fact("new namespace"), "Err(EPERM)");
    assert_eq!(fact("null"), "ok");
    let disk = rig.dir.path().join("disk");
    assert_eq!(fs::read(&disk).unwrap(), b"written by the VM");
    assert_eq!(fs::metadata(&disk).unwrap().uid(), 0, "the disk must not change its owner");
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_with_a_remedy() {
    let Some(rig) = Rig::new().await else { return };
    type Change = fn(&mut VmSpec);
    let cases: [(Change, &str); 5] = [
        (
            |spec| spec.kernel = "/none/kernel".into(),
            "guest kernel /none/kernel can't be read: is the node image complete?",
        ),
        (
            |spec| spec.initramfs = "/none/i".into(),
            "the guest's initramfs /none/i can't be used: is the node image complete?",
        ),
        (
            |spec| spec.root.path = "/none/r".into(),
            "the image /none/r can't be used: has the image been fetched?",
        ),
        (
            |spec| spec.disks[0].path = "/none/d".into(),
            "the disk /none/d can't be used: has the volume been made?",
        ),
        (
            |spec| spec.netns = Some("/none/n".into()),
            "the network namespace /none/n can't be used: is the deployment's network up?",
        ),
    ];
    for (change, expected) in cases {
        let mut spec = rig.spec(&["run"]);
        change(&mut spec);
        let cause = within(rig.microvms.start(spec).unwrap().ended()).await;
        let EndCause::NotStarted { reason } = &cause else { panic!("{cause}") };
        assert!(reason.starts_with(expected), "{reason}");
        rig.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_another_process_uses_is_named() {
    let Some(rig) = Rig::new().await else { return };
    let path = rig.dir.path().join("disk");
    let disk = fs::File::options().write(true).open(&path).unwrap();
    disk.try_lock().unwrap();
    let cause = within(rig.start(&["run"]).ended()).await;
    let EndCause::NotStarted { reason } = &cause else { panic!("{cause}") };
    let expected = format!(
        "disk {} is in use by another process: is another VM running on it? stop that one first",
        path.display()
    );
    assert_eq!(*reason, expected);
    drop(disk);
    assert!(within(rig.start(&["exit", "0"]).ended()).await.is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jail_that_can_not_be_entered_says_why() {
    let Some(rig) = Rig::new().await else { return };
    let mut spec = rig.spec(&["run"]);
    let tap = croft_microvm::spec::Nic { tap: "no-such-tap".into(), mac: [2; 6] };
    spec.netns = Some("/proc/self/ns/net".into());
    spec.nics = vec![tap];
    let cause = within(rig.microvms.start(spec).unwrap().ended()).await;
    let EndCause::VmmDied { status, last_lines } = &cause else { panic!("{cause}") };
    assert_eq!(status, "a failure to enter its jail");
    assert!(last_lines.contains("tap no-such-tap does not exist in the network namespace"), "{last_lines}");
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_nobody_holds_is_stopped() {
    let Some(rig) = Rig::new().await else { return };
    let vm = rig.start(&["run"]);
    wait_for(&vm, |status| status.phase == Phase::Running).await;
    let mut status = vm.watch();
    drop(vm);
    within(status.wait_for(|status| status.phase == Phase::Ended)).await.unwrap();
    rig.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_left_is_ended_at_the_next_start() {
    let Some(rig) = Rig::new().await else { return };
    let left = rig.cgroup.join("left-0");
    fs::create_dir(&left).unwrap();
    fs::create_dir(rig.settings.runtime_dir.join("left-0")).unwrap();
    let mut sleeper = std::process::Command::new("sleep").arg("3600").spawn().unwrap();
    fs::write(left.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    // A zombie keeps a group populated until its parent waits.
    let waiter = std::thread::spawn(move || sleeper.wait().unwrap());
    let vmm = Arc::new(CloudHypervisor::new(fake_vmm()));
    within(Microvms::open(rig.settings.clone(), vmm)).await.unwrap();
    assert!(!waiter.join().unwrap().success());
    rig.assert_clean();
}
