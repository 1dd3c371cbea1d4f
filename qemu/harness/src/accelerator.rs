//! KVM or emulation, decided by running code, not by the presence of `/dev/kvm`.
//!
//! ```text
//! CROFT_QEMU_ACCELERATOR=kvm|tcg --> that
//! a loop in a KVM VM gives the right result at a processor's speed --no--> TCG
//!        | yes
//! nested virtualisation on, or not wanted --yes--> KVM
//!        | no
//!        +--> TCG, which emulates SVM
//! ```
//!
//! Speed counts, because there are hosts whose KVM interprets ordinary guests instruction by instruction,
//! slower than QEMU, until it meets one that it does not know. Must never hang: the trial ends by its
//! deadline.

use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

/// A processor runs the trial in 5 ms; a loaded machine gets two hundred times that, an interpreter
/// was seen to take a minute.
const TRIAL_LIMIT: Duration = Duration::from_secs(1);
/// The trial looks at its deadline after each round; beyond this it hangs inside one.
const THREAD_LIMIT: Duration = Duration::from_secs(10);
const TRIAL_ROUNDS: u32 = 400;
/// Iterations of two instructions each, in one round. The code below counts them down.
const ROUND_ITERATIONS: u32 = 10_000;

/// Physical address of the trial's one page.
const TRIAL_ADDRESS: u64 = 0x1000;
/// 32-bit code: `start: mov ecx, 10000; mov al, 3; add al, 4; count: dec ecx; jnz count;
/// out 0x10, al; jmp start`.
const TRIAL_CODE: [u8; 16] =
    [0xb9, 0x10, 0x27, 0x00, 0x00, 0xb0, 0x03, 0x04, 0x04, 0x49, 0x75, 0xfd, 0xe6, 0x10, 0xeb, 0xf0];
const TRIAL_PORT: u16 = 0x10;
const TRIAL_RESULT: [u8; 1] = [7];
/// Pages that processors without "unrestricted guest" need, out of the way (KVM API, 4.43 and 4.35).
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
const TSS_ADDRESS: usize = 0xfffb_d000;

/// An AMD processor with SVM, without what QEMU's emulation lacks and would warn about.
const EMULATED_CPU: &str = "EPYC,+svm,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec";

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// Emulation of an AMD processor with SVM, one thread per virtual CPU.
    Tcg {
        /// Frequency of the host's time stamp counter, which the guest sees; without it a loaded host
        /// makes the guest's kernel misjudge it, and nested guests hang at their first timer.
        tsc_khz: Option<u64>,
    },
}

/// The choice, and the line that explains it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub accelerator: Accelerator,
    pub reason: String,
}

/// What was found out about this machine, once per process.
struct Findings {
    kvm: Result<(), String>,
    nested: bool,
    tsc_khz: Option<u64>,
}

fn findings() -> &'static Findings {
    static FINDINGS: OnceLock<Findings> = OnceLock::new();
    FINDINGS.get_or_init(|| Findings { kvm: try_kvm(), nested: kvm_nests(), tsc_khz: tsc_khz() })
}

/// Chooses for a machine that runs virtual machines itself (`nested`) or doesn't.
#[must_use]
pub fn decide(nested: bool) -> Decision {
    let wanted = std::env::var("CROFT_QEMU_ACCELERATOR").ok();
    decide_from(wanted.as_deref(), nested, findings())
}

fn decide_from(wanted: Option<&str>, nested: bool, found: &Findings) -> Decision {
    let tcg = Accelerator::Tcg { tsc_khz: found.tsc_khz };
    let (accelerator, reason) = match (wanted, &found.kvm) {
        (Some("kvm"), _) => (Accelerator::Kvm, "KVM: CROFT_QEMU_ACCELERATOR says so".into()),
        (Some("tcg"), _) => (tcg, "emulation: CROFT_QEMU_ACCELERATOR says so".into()),
        (_, Err(miss)) => (tcg, format!("emulation: KVM does not work here: {miss}")),
        (_, Ok(())) if nested && !found.nested => (
            tcg,
            "emulation: KVM works here, but without nested virtualisation (module parameter nested=1)".into(),
        ),
        (_, Ok(())) => (Accelerator::Kvm, "KVM: a trial VM ran".into()),
    };
    Decision { accelerator, reason }
}

impl Accelerator {
    /// QEMU options, for a machine that runs virtual machines itself (`nested`) or can't.
    pub(crate) fn arguments(self, nested: bool) -> Vec<String> {
        let (accelerator, mut cpu) = match self {
            Self::Kvm => ("kvm", "host".to_owned()),
            Self::Tcg { .. } => ("tcg,thread=multi", EMULATED_CPU.to_owned()),
        };
        if !nested {
            // A later word wins; Intel's is not on an emulated processor in any case.
            cpu.push_str(if self == Self::Kvm { ",-svm,-vmx" } else { ",-svm" });
        }
        ["-accel", accelerator, "-cpu", &cpu].map(str::to_owned).to_vec()
    }

    /// What the kernel must be told because it runs under this accelerator.
    #[must_use]
    pub fn kernel_arguments(self) -> Vec<String> {
        match self {
            Self::Kvm => Vec::new(),
            Self::Tcg { tsc_khz } => {
                // Clearing freed memory costs seconds of boot when every store is emulated. And the kernel
                // gives the timer interrupt some milliseconds to arrive, or panics ("IO-APIC + timer doesn't
                // work"): on a busy host they pass without one. Under KVM it doesn't check either.
                let mut arguments = vec!["init_on_free=0".to_owned(), "no_timer_check".to_owned()];
                arguments.extend(tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
                arguments
            }
        }
    }
}

/// Runs the trial in a thread of its own, since a vCPU that hangs can't be stopped.
fn try_kvm() -> Result<(), String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("kvm-trial".into())
        .spawn(move || sender.send(run_trial()))
        .map_err(|error| format!("the trial's thread did not start: {error}"))?;
    match receiver.recv_timeout(THREAD_LIMIT) {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("a trial VM did not come back within {} s", THREAD_LIMIT.as_secs())),
    }
}

/// Guest memory wants page alignment.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> String {
    move |error| format!("{what}: {error}")
}

fn run_trial() -> Result<(), String> {
    let kvm = Kvm::new().map_err(failed("cannot open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(failed("cannot create a VM"))?;
    // Processors that don't need these refuse them.
    let _ = vm.set_identity_map_address(IDENTITY_MAP_ADDRESS);
    let _ = vm.set_tss_address(TSS_ADDRESS);
    let mut page = Box::new(Page([0; 4096]));
    page.0[..TRIAL_CODE.len()].copy_from_slice(&TRIAL_CODE);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: TRIAL_ADDRESS,
        memory_size: page.0.len() as u64,
        userspace_addr: page.0.as_ptr() as u64,
    };
    #[allow(unsafe_code, reason = "KVM takes the address of guest memory; there is no safe call")]
    // SAFETY: the page is aligned, as long as said, and outlives the VM: it is dropped after it below.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("cannot give a VM memory"))?;
    let outcome = prepare_vcpu(&vm).and_then(|vcpu| run_rounds(vcpu, TRIAL_LIMIT));
    drop(vm);
    drop(page);
    outcome
}

/// A vCPU in flat 32-bit protected mode, at the start of the code.
fn prepare_vcpu(vm: &kvm_ioctls::VmFd) -> Result<VcpuFd, String> {
    let vcpu = vm.create_vcpu(0).map_err(failed("cannot create a vCPU"))?;
    let mut special = vcpu.get_sregs().map_err(failed("cannot read registers"))?;
    // Intel SDM 3A, 3.4.5: 4 GiB segments, present, 32-bit; code is execute/read, data read/write.
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = kvm_segment { selector: 8, type_: 11, ..data };
    (special.ds, special.es, special.ss) = (data, data, data);
    (special.fs, special.gs) = (data, data);
    special.cr0 |= 1;
    vcpu.set_sregs(&special).map_err(failed("cannot set registers"))?;
    let mut registers = vcpu.get_regs().map_err(failed("cannot read registers"))?;
    registers.rip = TRIAL_ADDRESS;
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(failed("cannot set registers"))?;
    Ok(vcpu)
}

fn run_rounds(mut vcpu: VcpuFd, limit: Duration) -> Result<(), String> {
    let started = Instant::now();
    for round in 1..=TRIAL_ROUNDS {
        match vcpu.run().map_err(failed("a vCPU does not run"))? {
            VcpuExit::IoOut(TRIAL_PORT, data) if data == TRIAL_RESULT => {}
            other => return Err(format!("a trial VM ended in {other:?} instead of its result")),
        }
        let elapsed = started.elapsed();
        if elapsed > limit {
            let rate = f64::from(round) * f64::from(ROUND_ITERATIONS) * 2e-6 / elapsed.as_secs_f64();
            return Err(format!("it runs only {rate:.2} million instructions a second"));
        }
    }
    Ok(())
}

/// Does the host's KVM let its guests run KVM?
fn kvm_nests() -> bool {
    ["kvm_intel", "kvm_amd"].iter().any(|module| {
        std::fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|value| matches!(value.trim(), "1" | "Y" | "y"))
    })
}

/// Frequency of this machine's time stamp counter in kHz, against the kernel's raw clock.
///
/// `None` where there is no such counter. QEMU's emulation passes the host's counter to the guest.
#[must_use]
pub fn tsc_khz() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        let first = tsc::tightest_sample();
        // Long enough that the tens of nanoseconds a sample is off make a few parts per million.
        std::thread::sleep(Duration::from_millis(20));
        let second = tsc::tightest_sample();
        tsc::frequency_khz(first, second)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(target_arch = "x86_64")]
mod tsc {
    use rustix::time::{ClockId, clock_gettime};

    /// Interrupts between the two readings spoil a sample; of this many, some are clean.
    const SAMPLES: usize = 32;

    /// A counter value and the time in nanoseconds at which it was read.
    pub(super) type Sample = (u64, u64);

    #[allow(unsafe_code, reason = "the time stamp counter has no safe reader")]
    fn counter() -> u64 {
        // SAFETY: every x86-64 processor has RDTSC; where a supervisor forbids it, the process ends, as
        // it would in the dynamic linker.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    fn nanoseconds() -> u64 {
        let now = clock_gettime(ClockId::MonotonicRaw);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    /// The sample during whose reading the least time passed.
    pub(super) fn tightest_sample() -> Sample {
        let sample = |()| {
            let before = counter();
            let time = nanoseconds();
            let after = counter();
            (after.saturating_sub(before), (before + after.saturating_sub(before) / 2, time))
        };
        let samples = std::iter::repeat_n((), SAMPLES).map(sample);
        samples.min_by_key(|(width, _)| *width).map(|(_, sample)| sample).unwrap_or_default()
    }

    pub(super) fn frequency_khz(first: Sample, second: Sample) -> Option<u64> {
        let (ticks, time) = (second.0.checked_sub(first.0)?, second.1.checked_sub(first.1)?);
        if time == 0 {
            return None;
        }
        let khz = u128::from(ticks) * 1_000_000 / u128::from(time);
        u64::try_from(khz).ok().filter(|khz| *khz > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kvm: Result<(), &str>, nested: bool) -> Findings {
        Findings { kvm: kvm.map_err(str::to_owned), nested, tsc_khz: Some(2_000_000) }
    }

    const TCG: Accelerator = Accelerator::Tcg { tsc_khz: Some(2_000_000) };

    #[test]
    fn a_kvm_that_runs_code_is_used() {
        let decision = decide_from(None, true, &found(Ok(()), true));
        assert_eq!(decision.accelerator, Accelerator::Kvm);
        assert_eq!(decision.reason, "KVM: a trial VM ran");
    }

    #[test]
    fn a_kvm_that_only_exists_is_not() {
        let decision = decide_from(None, false, &found(Err("cannot create a VM: ENODEV"), true));
        assert_eq!(decision.accelerator, TCG);
        assert_eq!(decision.reason, "emulation: KVM does not work here: cannot create a VM: ENODEV");
    }

    #[test]
    fn a_node_needs_nested_virtualisation() {
        assert_eq!(decide_from(None, true, &found(Ok(()), false)).accelerator, TCG);
        assert_eq!(decide_from(None, false, &found(Ok(()), false)).accelerator, Accelerator::Kvm);
    }

    #[test]
    fn a_person_can_insist() {
        let works = found(Ok(()), true);
        assert_eq!(decide_from(Some("tcg"), true, &works).accelerator, TCG);
        let broken = found(Err("x"), false);
        assert_eq!(decide_from(Some("kvm"), true, &broken).accelerator, Accelerator::Kvm);
    }

    #[test]
    fn an_emulated_kernel_is_told_the_hosts_frequency() {
        assert_eq!(TCG.kernel_arguments(), ["init_on_free=0", "no_timer_check", "tsc_early_khz=2000000"]);
        assert_eq!(
            Accelerator::Tcg { tsc_khz: None }.kernel_arguments(),
            ["init_on_free=0", "no_timer_check"]
        );
        assert!(Accelerator::Kvm.kernel_arguments().is_empty());
    }

    #[test]
    fn the_trials_code_counts_the_rounds_iterations() {
        assert_eq!(TRIAL_CODE[1..5], ROUND_ITERATIONS.to_le_bytes());
    }

    #[test]
    fn the_decision_for_this_machine_says_why() {
        let decision = decide_from(None, true, findings());
        let kvm = decision.accelerator == Accelerator::Kvm;
        assert!(decision.reason.starts_with(if kvm { "KVM: " } else { "emulation: " }), "{decision:?}");
        eprintln!("this machine: {}", decision.reason);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn two_measurements_of_the_counter_agree() {
        let (one, two) = (tsc_khz().unwrap(), tsc_khz().unwrap());
        // The kernel accepts an early value that is within one per cent of what it calibrates.
        assert!(one.abs_diff(two) * 1000 < one, "{one} and {two} kHz");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn frequency_is_ticks_over_time() {
        assert_eq!(tsc::frequency_khz((100, 0), (4_100, 2_000)), Some(2_000_000));
        assert_eq!(tsc::frequency_khz((100, 5), (100, 5)), None);
        assert_eq!(tsc::frequency_khz((100, 5), (0, 6)), None, "a counter that went back");
    }
}
