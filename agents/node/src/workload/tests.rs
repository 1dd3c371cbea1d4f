use super::*;
use croft_guest::wire::Exit;
use croft_microvm::status::Health;
use croft_protocol::Name;

fn vm(restart: RestartPolicy) -> Vm {
    Vm {
        name: Name::new("web").unwrap(),
        image: Hash::ZERO,
        argv: vec!["/x".into()],
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        user: String::new(),
        working_dir: String::new(),
        stop_signal: String::new(),
        stop_grace_s: 1,
        cpu_millis: 100,
        memory_bytes: 64 << 20,
        mounts: vec![],
        ports: vec![],
        health: None,
        restart,
    }
}

fn status(phase: Phase, last_end: Option<EndCause>) -> VmStatus {
    VmStatus {
        phase,
        since_ms: 0,
        restarts: 0,
        last_end,
        health: BTreeMap::new(),
        timings: None,
        backoff: None,
    }
}

fn exited(code: u8) -> EndCause {
    EndCause::Exited { exit: Exit::Code(code), out_of_memory: false }
}

#[test]
fn a_workload_runs_when_each_of_its_vms_runs() {
    let vms = [vm(RestartPolicy::Always), vm(RestartPolicy::Always)];
    let one = judge(&vms, &[status(Phase::Running, None), status(Phase::Starting, None)]);
    assert_eq!(one.0, WorkloadState::Preparing);
    let both = judge(&vms, &[status(Phase::Running, None), status(Phase::Running, None)]);
    assert_eq!(both.0, WorkloadState::Running);
}

#[test]
fn a_vm_that_backs_off_makes_the_workload_fail_with_its_reason() {
    let vms = [vm(RestartPolicy::Always)];
    let (state, detail) = judge(&vms, &[status(Phase::BackingOff, Some(exited(3)))]);
    assert_eq!(state, WorkloadState::Failing);
    assert_eq!(detail, "microVM 'web': the entry point ended with exit code 3");
}

#[test]
fn a_restart_is_not_a_new_start() {
    let vms = [vm(RestartPolicy::Always)];
    let restarting = VmStatus { restarts: 1, ..status(Phase::Starting, Some(exited(1))) };
    assert_eq!(judge(&vms, &[restarting]).0, WorkloadState::Failing);
}

#[test]
fn a_job_that_ended_well_is_finished() {
    let vms = [vm(RestartPolicy::Never)];
    assert_eq!(judge(&vms, &[status(Phase::Ended, Some(exited(0)))]).0, WorkloadState::Finished);
    assert_eq!(judge(&vms, &[status(Phase::Ended, Some(exited(1)))]).0, WorkloadState::Failing);
}

#[test]
fn an_unhealthy_vm_is_not_running() {
    let vms = [vm(RestartPolicy::Never)];
    let mut sick = status(Phase::Running, None);
    let health = Health { state: croft_guest::wire::HealthState::Unhealthy, detail: "status 500".into() };
    sick.health.insert("health".into(), health);
    let (state, detail) = judge(&vms, &[sick]);
    assert_eq!(
        (state, detail.as_str()),
        (WorkloadState::Failing, "microVM 'web': health check health: status 500")
    );
}

#[test]
fn a_root_that_cannot_be_read_points_at_the_image() {
    let failed = EndCause::GuestFailed { step: GuestStep::RootImage, reason: "input/output error".into() };
    assert_eq!(
        damaged_root(&[status(Phase::Running, None), status(Phase::BackingOff, Some(failed))]),
        Some(1)
    );
    assert_eq!(damaged_root(&[status(Phase::BackingOff, Some(exited(1)))]), None);
}
