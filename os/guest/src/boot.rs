//! The sequence, from the first mount to the report of the exit.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use croft_guest::users::{self, User};
use croft_guest::wire::{ExitReport, GuestConfig, GuestFrame, Step, shorten};

use crate::checks;
use crate::failure::{During, Failure};
use crate::host::{self, Host, Request};
use crate::mounts;
use crate::names;
use crate::network;
use crate::power::{off, say, wall_ms};
use crate::process::{Reaper, create_control_group};
use crate::supervise;
use crate::volumes;

/// The host answers a greeting at once, unless it restarts just then.
const CONFIG_LIMIT: Duration = Duration::from_secs(120);
/// How long the last frames may take to reach the host. Losing them loses the exit status.
const FAREWELL_LIMIT: Duration = Duration::from_secs(10);
/// A larger passwd or group file is not one.
const MAX_ACCOUNT_FILE_BYTES: u64 = 1 << 20;
/// Below this the guest keeps its own clock.
const CLOCK_TOLERANCE_MS: u64 = 2_000;

/// Everything; returns when there is nothing left to do but power off.
pub(crate) fn run() {
    if let Err(failure) = mounts::early() {
        return say(&format!("{}: {}", failure.step, failure.reason));
    }
    let (sender, requests) = channel();
    let started = boot_id().and_then(|id| Host::start(host::vsock(), id, kernel_release(), sender));
    let host = match started {
        Ok(host) => host,
        Err(error) => return say(&format!("no connection to the host: {error}")),
    };
    report_panics(&host);
    let mut mounted = Vec::new();
    let result = workload(&host, &requests, &mut mounted);
    volumes::unmount_all(&mounted);
    rustix::fs::sync();
    match result {
        Ok(report) => {
            say(&format!("the entry point ended: {}", report.exit));
            host.tell(GuestFrame::Exited(report));
        }
        Err(failure) => {
            say(&format!("{}: {}", failure.step, failure.reason));
            host.tell(GuestFrame::Failed { step: failure.step, reason: shorten(&failure.reason) });
        }
    }
    if !host.flush(FAREWELL_LIMIT) {
        say("the host did not take the last messages");
    }
}

fn workload(
    host: &Host,
    requests: &Receiver<Request>,
    mounted: &mut Vec<PathBuf>,
) -> Result<ExitReport, Failure> {
    let reaper = Reaper::start().during(Step::Internal, || "starting the reaper".to_owned())?;
    let config = wait_for_config(requests)?;
    config.validate().during(Step::Configuration, || "the host's configuration".to_owned())?;
    correct_clock(config.now_ms);
    mounts::enter_root(config.overlay)?;
    *mounted = volumes::mount_all(&config.volumes)?;
    network::apply(&config.network)?;
    names::apply(&config.hostname, &config.network)?;
    let user = find_user(&config.user)?;
    volumes::give_new(mounted, &user)?;
    names::write_files(&config, &user)?;
    if !config.cwd.is_empty() {
        mounts::ensure_directory(Path::new(&config.cwd), 0o755)
            .during(Step::EntryPoint, || format!("creating the working directory {}", config.cwd))?;
    }
    create_control_group(mounts::memory_bytes().unwrap_or(0));
    let env = supervise::environment(&config, &user);
    let running = supervise::start(&config, &user, &env, &reaper, host)?;
    let context = checks::Context { reaper: Arc::clone(&reaper), user, cwd: working_directory(&config), env };
    checks::start(&config.health, &context, host);
    Ok(running.run(config.stop_signal.0, requests))
}

fn working_directory(config: &GuestConfig) -> String {
    if config.cwd.is_empty() { "/".to_owned() } else { config.cwd.clone() }
}

fn wait_for_config(requests: &Receiver<Request>) -> Result<Box<GuestConfig>, Failure> {
    let reason = match requests.recv_timeout(CONFIG_LIMIT) {
        Ok(Request::Config(config)) => return Ok(config),
        Ok(Request::Refused { reason }) => format!("the host refuses this guest: {reason}"),
        Ok(Request::Stop { .. }) => "stopped before it was configured".to_owned(),
        Err(_) => format!("the host sent no configuration within {} s", CONFIG_LIMIT.as_secs()),
    };
    Err(Failure::new(Step::Configuration, reason))
}

fn find_user(text: &str) -> Result<User, Failure> {
    let read = |path: &str| {
        let mut content = String::new();
        // An image without the file is fine: then only numbers work.
        if let Ok(file) = File::open(path) {
            let _ = file.take(MAX_ACCOUNT_FILE_BYTES).read_to_string(&mut content);
        }
        content
    };
    users::resolve(text, &read("/etc/passwd"), &read("/etc/group"))
        .map_err(|error| Failure::new(Step::User, error.to_string()))
}

fn correct_clock(now_ms: u64) {
    if now_ms == 0 || now_ms.abs_diff(wall_ms()) < CLOCK_TOLERANCE_MS {
        return;
    }
    let time = rustix::time::Timespec {
        tv_sec: (now_ms / 1000) as i64,
        tv_nsec: ((now_ms % 1000) * 1_000_000) as i64,
    };
    if let Err(error) = rustix::time::clock_settime(rustix::time::ClockId::Realtime, time) {
        say(&format!("setting the clock: {error}"));
    }
}

fn boot_id() -> std::io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut id = [0_u8; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).unwrap_or_default();
    }
    Ok(id)
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// A panic of any thread ends the guest with a message, instead of a kernel panic without one.
fn report_panics(host: &Host) {
    let host = host.clone();
    std::panic::set_hook(Box::new(move |panic| {
        say(&format!("panic: {panic}"));
        host.tell(GuestFrame::Failed { step: Step::Internal, reason: shorten(&panic.to_string()) });
        host.flush(Duration::from_secs(2));
        off();
    }));
}
