//! The time of day of a grid, which a test moves: what takes hours on a real grid takes a moment here, and no program
//! knows of it. libfaketime stands between the programs and the kernel's clock; a second still lasts a second.
//!
//! It must never change the clock of the machine, nor of a process that was not started with it. Machines in QEMU keep
//! their own clocks: move the time only where none takes part any more.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A clock that only goes forward.
#[derive(Debug)]
pub struct Clock {
    /// Processes look here once a second.
    file: PathBuf,
    ahead: Duration,
}

impl Clock {
    /// A clock that is right.
    ///
    /// # Errors
    /// When libfaketime is not installed, or the file can't be written.
    pub fn new(dir: &Path) -> Result<Self> {
        ensure!(Path::new(LIBRARY).exists(), "{LIBRARY} is missing: run scripts/setup");
        let clock = Self { file: dir.join("clock"), ahead: Duration::ZERO };
        clock.write()?;
        Ok(clock)
    }

    /// Has a process live by this clock.
    pub fn of(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", LIBRARY)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_CACHE_DURATION", "1")
            // Only what time of day it is.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    /// So much time has passed for everybody; processes that run notice within a second.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn advance(&mut self, by: Duration) -> Result<()> {
        self.ahead += by;
        self.write()
    }

    /// Milliseconds since 1970, UTC, as the processes see it.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + self.ahead;
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whole or not at all: somebody may read it at any moment.
    fn write(&self) -> Result<()> {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("+{}\n", self.ahead.as_secs()))
            .and_then(|()| std::fs::rename(&next, &self.file))
            .with_context(|| format!("can't write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn date(clock: &Clock) -> u64 {
        let mut command = Command::new("date");
        clock.of(command.arg("+%s"));
        let output = command.output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
    }

    #[tokio::test]
    async fn a_process_lives_by_the_clock_that_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut clock = Clock::new(dir.path()).unwrap();
        let before = date(&clock).await;
        clock.advance(Duration::from_secs(3600)).unwrap();
        let after = date(&clock).await;
        assert!((3600..3700).contains(&(after - before)), "{before} {after}");
        assert!(clock.now_ms() / 1000 >= after);
    }
}
