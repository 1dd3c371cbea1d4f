//! The entry point: started, watched, stopped, and everything that is left when it ends.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use croft_guest::users::User;
use croft_guest::wire::{
    Exit, ExitReport, GuestConfig, GuestFrame, MAX_LOG_CHUNK_BYTES, SecretTarget, Step, Stream,
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::exec::DEFAULT_PATH;
use crate::failure::{During, Failure};
use crate::host::{Host, Request};
use crate::power::{boot_ms, say};
use crate::process::{Reaper, kill_all, signal, was_out_of_memory};

/// How long output may take to drain after everything was killed.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How often a stop request is looked for while the entry point runs. Exits are not delayed by it.
const POLL: Duration = Duration::from_millis(20);

/// A started entry point.
pub(crate) struct Workload {
    exit: Receiver<Exit>,
    pid: i32,
    pumps: Receiver<()>,
}

/// The environment of the workload and its health checks.
pub(crate) fn environment(config: &GuestConfig, user: &User) -> Vec<(String, String)> {
    let mut env = config.env.clone();
    let defaults =
        [("PATH", DEFAULT_PATH), ("HOME", user.home.as_str()), ("HOSTNAME", config.hostname.as_str())];
    for (name, value) in defaults {
        if !env.iter().any(|(known, _)| known == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    for secret in &config.secrets {
        if secret.target == SecretTarget::Environment {
            let value = String::from_utf8_lossy(&secret.value).into_owned();
            env.retain(|(name, _)| *name != secret.name);
            env.push((secret.name.clone(), value));
        }
    }
    env
}

/// Starts the entry point and tells the host.
pub(crate) fn start(
    config: &GuestConfig,
    user: &User,
    env: &[(String, String)],
    reaper: &Reaper,
    host: &Host,
) -> Result<Workload, Failure> {
    let (finished, pumps) = channel();
    let open = |stream| pump(stream, user, host, finished.clone());
    let stdout = open(Stream::Stdout)?;
    let stderr = open(Stream::Stderr)?;
    let cwd = if config.cwd.is_empty() { "/" } else { &config.cwd };
    let running = reaper
        .spawn_workload(user, cwd, &config.argv, |command| {
            command.env_clear().envs(env.iter().map(|(name, value)| (name, value)));
            command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        })
        .map_err(|error| Failure::new(Step::EntryPoint, error.0))?;
    host.tell(GuestFrame::Started { boot_ms: boot_ms(), pid: running.pid as u32 });
    Ok(Workload { exit: running.exit, pid: running.pid, pumps })
}

/// A pipe whose write end the workload gets, and a thread that reads the other.
fn pump(stream: Stream, user: &User, host: &Host, finished: Sender<()>) -> Result<OwnedFd, Failure> {
    let trouble = || format!("preparing {stream:?}");
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).during(Step::EntryPoint, trouble)?;
    // Images link log files to /dev/stdout, which the workload's user must be able to open.
    nix::unistd::fchown(&write, Some(user.uid.into()), Some(user.gid.into()))
        .during(Step::EntryPoint, trouble)?;
    let host = host.clone();
    let thread = std::thread::Builder::new().name("output".into());
    thread
        .spawn(move || {
            let mut pipe = File::from(read);
            let mut buffer = vec![0_u8; MAX_LOG_CHUNK_BYTES];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => host.log(stream, &buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        say(&format!("reading {stream:?}: {error}"));
                        break;
                    }
                }
            }
            let _ = finished.send(());
        })
        .during(Step::EntryPoint, trouble)?;
    Ok(write)
}

impl Workload {
    /// Waits for the end, stopping the entry point when the host asks; then ends everything else.
    pub(crate) fn run(self, stop_signal: u8, requests: &Receiver<Request>) -> ExitReport {
        let mut kill_at: Option<Instant> = None;
        let exit = loop {
            match self.exit.recv_timeout(POLL) {
                Ok(exit) => break exit,
                Err(RecvTimeoutError::Disconnected) => break Exit::Signal(0),
                Err(RecvTimeoutError::Timeout) => {}
            }
            while let Ok(request) = requests.try_recv() {
                let grace = match request {
                    Request::Stop { grace } => grace,
                    Request::Refused { reason } => {
                        say(&format!("the host refuses this guest: {reason}"));
                        Duration::ZERO
                    }
                    Request::Config(_) => continue,
                };
                if kill_at.is_none() {
                    let _ = signal(self.pid, stop_signal);
                }
                let at = Instant::now() + grace;
                kill_at = Some(kill_at.map_or(at, |earlier| earlier.min(at)));
            }
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                kill_all();
            }
        };
        // As when PID 1 of a container ends: nothing of it stays.
        kill_all();
        let deadline = Instant::now() + DRAIN_LIMIT;
        for _ in 0..2 {
            let _ = self.pumps.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let killed = exit == Exit::Signal(nix::libc::SIGKILL as u8);
        let asked = kill_at.is_some();
        ExitReport { exit, out_of_memory: killed && !asked && was_out_of_memory(), asked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_guest::wire::Secret;

    fn user() -> User {
        User { uid: 0, gid: 0, groups: vec![], home: "/root".into(), name: None }
    }

    #[test]
    fn the_environment_has_defaults_that_the_image_overrides() {
        let config = GuestConfig {
            hostname: "web".into(),
            env: vec![("HOME".into(), "/srv".into()), ("A".into(), "1".into())],
            ..GuestConfig::default()
        };
        let env = environment(&config, &user());
        let get = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!(get("PATH"), Some(DEFAULT_PATH));
        assert_eq!(get("HOME"), Some("/srv"));
        assert_eq!(get("HOSTNAME"), Some("web"));
        assert_eq!(get("A"), Some("1"));
    }

    #[test]
    fn a_secret_replaces_a_variable_of_its_name_and_files_stay_out() {
        let secret = |name: &str, target| Secret { name: name.into(), value: b"s".to_vec(), target };
        let config = GuestConfig {
            env: vec![("TOKEN".into(), "placeholder".into())],
            secrets: vec![
                secret("TOKEN", SecretTarget::Environment),
                secret("KEY", SecretTarget::File { path: "/run/key".into() }),
            ],
            ..GuestConfig::default()
        };
        let env = environment(&config, &user());
        assert_eq!(
            env.iter().filter(|(name, _)| name == "TOKEN").collect::<Vec<_>>(),
            [&("TOKEN".into(), "s".into())]
        );
        assert!(!env.iter().any(|(name, _)| name == "KEY"));
    }
}
