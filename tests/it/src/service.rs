//! Processes of a grid: started, listened to, and ended with their handles. A service must never outlive its handle,
//! nor wait for somebody to read what it says.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// A process that serves says that it is ready within this.
const READY: Duration = Duration::from_secs(60);
/// How long one may take to end in order.
const END: Duration = Duration::from_secs(20);
/// Lines that are kept; a service of a test says some hundred.
const LINES: usize = 10_000;

/// A process that is ended with its handle.
pub struct Service {
    name: String,
    child: Child,
    said: Said,
}

/// What a process said on its standard output so far.
#[derive(Clone)]
struct Said {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many there are; closed when there will be no more.
    count: watch::Receiver<usize>,
}

impl Service {
    /// Starts a process, and waits for a line that has `ready` in it. What it says on standard error goes to `log`.
    ///
    /// # Errors
    /// When it does not start, ends, or does not get ready in time: with what it said.
    pub async fn start(name: &str, mut command: Command, ready: &str, log: &Path) -> Result<Self> {
        let stderr = std::fs::File::create(log).with_context(|| format!("can't write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {name}"))?;
        let mut output = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let (told, count) = watch::channel(0);
        let said = Said { lines: Arc::default(), count };
        let kept = said.lines.clone();
        // Goes on reading, so that the process never waits for a full pipe.
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                let mut lines = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() < LINES {
                    lines.push(line);
                }
                told.send_replace(lines.len());
            }
        });
        let service = Self { name: name.to_owned(), child, said };
        if let Err(error) = service.wait_for(ready, READY).await {
            let words = std::fs::read_to_string(log).unwrap_or_default();
            return Err(error.context(format!("{name} did not get ready: {}", words.trim())));
        }
        Ok(service)
    }

    /// The first line, now or later, that has `text` in it.
    ///
    /// # Errors
    /// When there is none in time, or the process ends: with the lines that came.
    pub async fn wait_for(&self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut count = self.said.count.clone();
        loop {
            count.borrow_and_update();
            let lines = self.lines();
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            let why = match timeout_at(deadline, count.changed()).await {
                Ok(Ok(())) => continue,
                Ok(Err(_)) => "it ended".to_owned(),
                Err(_) => format!("not within {limit:?}"),
            };
            let last = lines.len().saturating_sub(20);
            bail!("{} did not say '{text}', {why}:\n{}", self.name, lines[last..].join("\n"))
        }
    }

    /// What it said so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.said.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its process; `None` once it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGTERM, and a moment to end in order.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) {
            // The program `kill` is not on every machine.
            kill_process(pid, Signal::TERM).with_context(|| format!("{} can't be told to end", self.name))?;
            let ended = timeout_at(Instant::now() + END, self.child.wait()).await;
            ended.with_context(|| format!("{} does not end on SIGTERM", self.name))??;
        }
        Ok(())
    }

    /// SIGKILL, as a power cut would.
    ///
    /// # Errors
    /// When it can't be killed.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("{} can't be killed", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn what_a_process_says_can_be_waited_for_and_it_ends_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo ready; echo second; exec sleep 1000";
        let service = Service::start("the sleeper", shell(script), "ready", &dir.path().join("log")).await;
        let service = service.unwrap();
        assert_eq!(service.wait_for("sec", READY).await.unwrap(), "second");
        assert_eq!(service.wait_for("ready", READY).await.unwrap(), "ready", "earlier lines count too");
        let error = service.wait_for("third", Duration::from_millis(1)).await.unwrap_err().to_string();
        assert_eq!(error, "the sleeper did not say 'third', not within 1ms:\nready\nsecond");
        service.stop().await.unwrap();
    }

    #[tokio::test]
    async fn one_that_ends_early_is_named_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let started =
            Service::start("the store", shell("echo no disk >&2"), "ready", &dir.path().join("log")).await;
        let error = format!("{:#}", started.err().unwrap());
        assert!(
            error
                .starts_with("the store did not get ready: no disk: the store did not say 'ready', it ended"),
            "{error}"
        );
    }
}
