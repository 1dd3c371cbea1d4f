//! How a command ends: an exit code that scripts can rely on, and an error that people can act on.

use std::error::Error;
use std::io;

use serde::Serialize;

/// Exit codes; `croft --help` documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    /// Something went wrong that has no code of its own.
    Failed = 1,
    /// The command line or a file that a person wrote is wrong.
    Usage = 2,
    /// The ledger, a farmer or a node said no.
    Refused = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// A replica, a node or a farmer's bot can't be reached.
    Unreachable = 5,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    error: Box<dyn Error + Send + Sync>,
    /// What to do, where the error doesn't say it itself.
    remedy: Option<String>,
    /// stdout is closed: its reader has seen enough, and nobody wants to hear more.
    quiet: bool,
}

impl Failure {
    pub fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit, error: error.into(), remedy: None, quiet: false }
    }

    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Failed, error)
    }

    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Usage, error)
    }

    pub fn refused(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Refused, error)
    }

    pub fn not_found(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::NotFound, error)
    }

    pub fn unreachable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Unreachable, error)
    }

    /// Somebody pressed Ctrl-C: who did knows it.
    #[must_use]
    pub fn interrupted() -> Self {
        Self { quiet: true, ..Self::failed("interrupted") }
    }

    /// stdout can't be written.
    pub(crate) fn output(error: io::Error) -> Self {
        let quiet = error.kind() == io::ErrorKind::BrokenPipe;
        Self { quiet, ..Self::failed(error) }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The error and its causes, outermost first, each said once.
    #[must_use]
    pub fn message(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut next: Option<&(dyn Error + 'static)> = Some(self.error.as_ref());
        while let Some(error) = next {
            let text = error.to_string();
            // A transparent wrapper says what its source says.
            if parts.last() != Some(&text) {
                parts.push(text);
            }
            next = error.source();
        }
        parts.join(": ")
    }

    pub(crate) fn to_text(&self) -> String {
        if self.quiet {
            return String::new();
        }
        // A list of reasons has lines; nothing else may move the cursor.
        let message: Vec<String> = self.message().lines().map(crate::terminal::printable).collect();
        let mut text = format!("croft: {}\n", message.join("\n"));
        if let Some(remedy) = &self.remedy {
            text.push_str("  what to do: ");
            text.push_str(remedy);
            text.push('\n');
        }
        text
    }

    pub(crate) fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Outer<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            exit: u8,
            message: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            remedy: Option<&'a str>,
        }
        if self.quiet {
            return String::new();
        }
        let error = Inner { exit: self.exit as u8, message: self.message(), remedy: self.remedy.as_deref() };
        serde_json::to_string(&Outer { error }).map_or_else(|_| self.to_text(), |json| json + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("can't read x")]
    struct Outer(#[source] io::Error);

    #[test]
    fn the_whole_chain_is_said_once_with_what_to_do() {
        let failure = Failure::not_found(Outer(io::Error::other("disk on fire"))).remedy("pour water");
        assert_eq!(failure.to_text(), "croft: can't read x: disk on fire\n  what to do: pour water\n");
        assert_eq!(
            failure.to_json(),
            "{\"error\":{\"exit\":4,\"message\":\"can't read x: disk on fire\",\"remedy\":\"pour water\"}}\n"
        );
    }
}
