//! A jailed process of a VM, as its owner holds it: its end, its last lines, its console.
//!
//! Must never leave output unread: a full pipe would stall the VMM.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::clock::wall_ms;
use crate::jail::{self, JailSpec};
use crate::logs::{Logs, Source};
use crate::spec::LogLimits;

/// Last lines of a process that are kept for messages.
const TAIL_BYTES: usize = 8 * 1024;
/// Of these, what a message shows.
const SHOWN_BYTES: usize = 1024;

/// A running jail.
#[derive(Debug)]
pub(crate) struct Jailed {
    pub(crate) name: String,
    child: Child,
    errors: Logs,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

/// How a jailed process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// It ended by itself and without complaint.
    pub(crate) clean: bool,
    pub(crate) status: String,
    pub(crate) last_lines: String,
}

/// Why a jail could not be started at all.
#[derive(Debug, thiserror::Error)]
#[error("can't start the jail helper {helper} for {name}")]
pub(crate) struct SpawnError {
    helper: String,
    name: String,
    source: std::io::Error,
}

impl Jailed {
    /// Starts `spec` with `input` as standard input. Standard output goes to `console` when there is one.
    pub(crate) fn spawn(
        helper: &Path,
        name: &str,
        spec: &JailSpec,
        input: OwnedFd,
        console: Option<Logs>,
    ) -> Result<Self, SpawnError> {
        let failed =
            |source| SpawnError { helper: helper.display().to_string(), name: name.to_owned(), source };
        let json = serde_json::to_string(spec).map_err(|error| failed(error.into()))?;
        let mut command = Command::new(helper);
        command.arg(jail::ARGUMENT).arg(json).env_clear().stdin(Stdio::from(input));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let limits = LogLimits { memory_bytes: TAIL_BYTES, file: None, file_bytes: 0 };
        let errors = Logs::new(&limits);
        let mut readers = Vec::new();
        if let Some(stream) = child.stdout.take() {
            readers.push(tokio::spawn(copy(stream, console.unwrap_or_else(|| errors.clone()))));
        }
        if let Some(stream) = child.stderr.take() {
            readers.push(tokio::spawn(copy(stream, errors.clone())));
        }
        Ok(Self { name: name.to_owned(), child, errors, readers })
    }

    /// Waits for the end. Cancel-safe; may be called again afterwards.
    pub(crate) async fn wait(&mut self) -> Ended {
        let status = self.child.wait().await;
        for reader in &mut self.readers {
            // Ends with the process: nobody else has the pipes.
            let _ = reader.await;
        }
        self.readers.clear();
        self.errors.finish_lines();
        let clean = status.as_ref().is_ok_and(ExitStatus::success);
        Ended { clean, status: describe(status), last_lines: self.errors.tail(SHOWN_BYTES) }
    }

    /// Process id on the host of the jail's monitor.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        // The monitor reports signals as a shell does.
        Ok(status) => match status.code() {
            Some(jail::EXIT_JAIL) => "a failure to enter its jail".to_owned(),
            Some(code @ 129..=192) => format!("signal {}", code - 128),
            Some(code) => format!("exit code {code}"),
            None => status.to_string(),
        },
        Err(error) => format!("an unknown status ({error})"),
    }
}

async fn copy(mut stream: impl AsyncRead + Unpin, logs: Logs) {
    let mut buffer = [0_u8; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        logs.push(Source::Console, wall_ms(), &buffer[..count]);
    }
    logs.finish_lines();
}

/// Reads a console pipe until its reader is dropped.
pub(crate) fn read_console(
    pipe: tokio::net::unix::pipe::Receiver,
    logs: Logs,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(copy(pipe, logs))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn ends_are_described_for_people() {
        let code = |code: i32| describe(Ok(ExitStatus::from_raw(code << 8)));
        assert_eq!(code(1), "exit code 1");
        assert_eq!(code(137), "signal 9");
        assert_eq!(code(125), "a failure to enter its jail");
    }
}
