//! PID 1 of a Croft node: from the kernel's hand-over to a supervised node, and to an ordered end.
//!
//! It must never exit and never wait without a limit. Where the root has to be copied (see `root`), it starts itself a
//! second time on the copy, so that the memory of the first is free.

use croft_init::emergency;
use croft_init::gatekeeper::Filtered;
use croft_init::linux::{Linux, NODE};
use croft_init::log::{Kmsg, Level, Log, chain};
use croft_init::mounts::{self, MountError, Need, Outcome};
use croft_init::root::{self, FirstRoot};
use croft_init::run::run;
use croft_init::stage::{Running, Stage};
use croft_init::supervisor::{Policy, Supervisor};
use croft_init::{clock, devices, entropy, gatekeeper, lockdown, privileges, screen, sysctl};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Argument of the second start: how long the first took (ms) and how big the moved tree is (KiB).
const MOVED: &str = "--root-moved";

/// What is mounted before the root changes.
const EARLY: [&str; 3] = ["/proc", "/sys", "/dev"];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(screen::FLAG) {
        return screen::main();
    }
    if std::process::id() != 1 {
        eprintln!(
            "init: this is PID 1 of a Croft node; started by hand it would have to do harm, so it does nothing"
        );
        return ExitCode::from(2);
    }
    emergency::install_panic_hook();
    let arguments: Vec<String> = std::env::args().collect();
    if let Err(reason) = boot(&arguments) {
        emergency::restart(&reason);
    }
    unreachable!("the loop of PID 1 ends with the machine")
}

fn boot(arguments: &[String]) -> Result<(), String> {
    let started = Instant::now();
    for row in mounts::early() {
        mounts::mount(&row).map_err(|error| chain(&error))?;
    }
    let log = Kmsg::open();
    let (before, root) = match arguments {
        [_, flag, milliseconds, kibibytes] if flag == MOVED => {
            let text = format!(
                "root of {} MiB copied to a tmpfs",
                kibibytes.parse().unwrap_or(0_u64).div_ceil(1024)
            );
            (Duration::from_millis(milliseconds.parse().unwrap_or(0)), text)
        }
        _ => match root::first_root() {
            FirstRoot::Tmpfs => {
                let tree = root::bind_in_place(&EARLY).map_err(|error| chain(&error))?;
                (Duration::ZERO, format!("root of {} MiB limited", tree.bytes.div_ceil(1 << 20)))
            }
            FirstRoot::Ramfs => return Err(copy_root(started)),
            FirstRoot::Other => (Duration::ZERO, "root stays as it is".to_owned()),
        },
    };
    let running = Stage::Mounts.begin_at(&log, started.checked_sub(before).unwrap_or(started));
    mount_all(running, &log, &root).map_err(|error| chain(&error))?;
    // From here on a monitor shows more than lines; nobody waits for it.
    let screen = screen::Keeper::start(&log);

    let running = Stage::Clock.begin(&log);
    match clock::set() {
        Ok(detail) => running.ok(&detail),
        Err(error) => running.failed(&error),
    };
    let running = Stage::Entropy.begin(&log);
    match entropy::wait() {
        Ok(()) => running.ok(""),
        Err(error) => running.failed(&error),
    };
    let running = Stage::Devices.begin(&log);
    running.ok(&devices::settle().describe());

    let mut machine = Linux::new(Path::new(NODE), screen).map_err(|error| chain(&error))?;
    machine.take_over();
    run(Supervisor::new(Policy::default()), &mut machine);
    // Where another thread failed, `emergency` is at work already, and this only waits for it.
    Err("the supervisor came to an end without ending the machine".into())
}

/// Copies the root and starts this program again on it. Returns only when that failed.
fn copy_root(started: Instant) -> String {
    let tree = match root::copy_to_tmpfs(&EARLY) {
        Ok(tree) => tree,
        Err(error) => return format!("the root can't be copied: {}", chain(&error)),
    };
    let milliseconds = started.elapsed().as_millis().to_string();
    let error =
        Command::new("/init").arg(MOVED).arg(milliseconds).arg((tree.bytes / 1024).to_string()).exec();
    format!("/init can't be started on the new root: {error}")
}

fn mount_all(running: Running<'_>, log: &dyn Log, root: &str) -> Result<(), MountError> {
    let mut count = mounts::early().len();
    let mut absent = Vec::new();
    for row in mounts::late() {
        match mounts::mount(&row) {
            Ok(Outcome::Absent) => absent.push(row.filesystem),
            Ok(Outcome::Mounted | Outcome::Was) => count += 1,
            Err(error) => {
                debug_assert_eq!(row.need, Need::Must);
                let _ = running.failed(&error);
                return Err(error);
            }
        }
    }
    if let Err(error) = mounts::make_folders() {
        log.line(Level::Warning, &format!("croft: folders of the running system can't be made: {error}"));
    }
    let missing = mounts::enable_controllers(Path::new("/sys/fs/cgroup"));
    if !missing.is_empty() {
        let names = missing.join(", ");
        log.line(
            Level::Warning,
            &format!("croft: this kernel has no cgroup controller {names}: limits are missing"),
        );
    }
    let settings = sysctl::apply(Path::new("/proc/sys"), sysctl::TABLE);
    for refused in &settings.refused {
        log.line(Level::Warning, &format!("croft: kernel setting refused: {refused}"));
    }
    if !settings.absent.is_empty() {
        let names = settings.absent.join(", ");
        log.line(Level::Info, &format!("croft: this kernel lacks the settings {names}"));
    }
    let walls = close_doors(log);
    let absent = if absent.is_empty() { String::new() } else { format!("; absent: {}", absent.join(", ")) };
    let _ = running
        .ok(&format!("{count} filesystems, {} kernel settings, {root}{absent}; {walls}", settings.set));
    Ok(())
}

/// What nobody needs any more once everything is mounted: the kernel is locked down, the root becomes read-only,
/// privileges are given up and system calls filtered for good. A door that does not close is named; a node with one
/// open is better than none.
fn close_doors(log: &dyn Log) -> String {
    let mut closed = Vec::new();
    match lockdown::apply(Path::new("/")) {
        Ok(locked) => closed.push(locked.describe()),
        Err(error) => log.line(Level::Critical, &format!("croft: {}", chain(&error))),
    }
    match root::seal(Path::new("/")) {
        Ok(()) => closed.push("root read-only".to_owned()),
        Err(error) => log.line(Level::Error, &format!("croft: the root stays writable: {}", chain(&error))),
    }
    match privileges::give_up() {
        Ok(count) => closed.push(format!("{count} capabilities given up")),
        Err(error) => log.line(Level::Error, &format!("croft: {}", chain(&error))),
    }
    // Last: it starts a thread, which has to have given up the capabilities too.
    match gatekeeper::filter(Kmsg::open()) {
        Ok(Filtered::Logged) => closed.push("system calls filtered".to_owned()),
        Ok(Filtered::Silently) => closed.push("system calls filtered, refusals are not logged".to_owned()),
        Err(error) => log.line(Level::Error, &format!("croft: system calls are not filtered: {error}")),
    }
    closed.join(", ")
}
