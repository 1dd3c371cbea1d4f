//! Processes under measurement, and what the kernel says of them and of the machine.
//!
//! A process is ended by its handle: in order, or killed when the handle is dropped. Nothing else is ever ended.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A process that serves says so within this: a large ledger is checked first.
const READY: Duration = Duration::from_secs(300);
/// How long a process may take to end in order.
const STOP: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose errors go to a file. With `ready`, waits for a line of its output that has it.
    pub(crate) async fn start(
        name: impl Into<String>,
        mut command: Command,
        ready: Option<&str>,
        log: PathBuf,
    ) -> Result<Self> {
        let name = name.into();
        let stderr = std::fs::File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let stdout = if ready.is_some() { Stdio::piped() } else { Stdio::from(stderr.try_clone()?) };
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true).spawn();
        let mut process = Self { child: child.with_context(|| format!("can't start {name}"))?, name, log };
        if let Some(ready) = ready {
            let within = timeout(READY, process.wait_for(ready)).await;
            within.with_context(|| format!("{} was not ready within {READY:?}", process.name))??;
        }
        Ok(process)
    }

    async fn wait_for(&mut self, ready: &str) -> Result<()> {
        let mut lines = BufReader::new(self.child.stdout.take().context("stdout is piped")?).lines();
        while let Some(line) = lines.next_line().await? {
            if line.contains(ready) {
                // Goes on reading, so that the process never waits for a full pipe.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok(());
            }
        }
        bail!("{} ended before it was ready: {}", self.name, self.last_words())
    }

    /// The end of what it wrote, for messages.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.trim_end().lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("{} has ended: {}", self.name, self.last_words()))
    }

    /// Processor time that it has taken so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(Path::new("/proc").join(self.pid()?.to_string()))
    }

    /// Memory that it has in RAM.
    pub(crate) fn resident_bytes(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.pid()?);
        let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024.0)
    }

    /// SIGTERM, and a moment to end in order.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop_with(Signal::TERM).await
    }

    pub(crate) async fn stop_with(mut self, signal: Signal) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            kill_process(pid, signal)?;
            let ended = timeout(STOP, self.child.wait()).await;
            ended.with_context(|| format!("{} does not end within {STOP:?}", self.name))??;
        }
        Ok(())
    }
}

/// Processor time of this process.
pub(crate) fn own_cpu() -> Result<Duration> {
    cpu_of("/proc/self".into())
}

fn cpu_of(process: PathBuf) -> Result<Duration> {
    let path = process.join("stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    // proc_pid_stat(5): the name in parentheses may hold anything; utime and stime are fields 14 and 15.
    let rest = text.rsplit_once(')').context("no name")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).context("no processor times");
    Ok(of_ticks(ticks(11)? + ticks(12)?))
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Time that all processors together have been busy since boot.
pub(crate) fn busy() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat").context("can't read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq steal; what guests take is in user.
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok(of_ticks(ticks.iter().take(8).sum::<u64>() - idle))
}

/// Load averages as the kernel shows them.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Whether files there lie in memory, where making them durable costs nothing.
pub(crate) fn in_memory(dir: &Path) -> Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    Ok(rustix::fs::statfs(dir)?.f_type == TMPFS)
}

/// A TCP port of loopback that nobody has now.
pub(crate) fn free_tcp_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A program of the workspace that was built together with this one.
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.is_file() {
        bail!("{} is not built: start this with 'cargo xtask bench ledger'", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_ends_early_is_named_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no disk >&2"]);
        let started = Process::start("the store", command, Some("ready"), dir.path().join("log")).await;
        let error = started.unwrap_err().to_string();
        assert_eq!(error, "the store ended before it was ready: no disk");
    }

    #[tokio::test]
    async fn a_running_process_has_times_and_memory_and_ends_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; exec sleep 1000"]);
        let process = Process::start("sleep", command, Some("ready"), dir.path().join("log")).await.unwrap();
        assert!(process.resident_bytes().unwrap() > 0.0);
        assert!(process.cpu().unwrap() < Duration::from_secs(100));
        assert!(busy().unwrap() > Duration::ZERO);
        process.stop().await.unwrap();
    }
}
