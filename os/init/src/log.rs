//! Records for the kernel log, so that they reach serial line, screen and ring buffer alike.
//!
//! One record is one `write` to `/dev/kmsg`. It must never block, never fail its caller and never let what it was
//! given start a second line: a guest or a disk label could otherwise forge records.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Bytes of text in one record. The kernel refuses a write above 1,024 bytes (`PRINTKRB_RECORD_MAX`) whole, so a
/// longer line would vanish; the rest is for the level prefix, the newline and the mark of a cut.
const TEXT_MAX_BYTES: usize = 960;

/// Severity as syslog counts it (RFC 5424, section 6.2.1). The node's `loglevel=6` shows everything up to
/// `Notice` on the console; `Info` stays in the ring buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Critical = 2,
    Error = 3,
    Warning = 4,
    Notice = 5,
    Info = 6,
}

/// Where lines go. Stages and supervision write through it, so that tests can read what a person would see.
pub trait Log: Send + Sync {
    fn line(&self, level: Level, text: &str);
}

/// The kernel log, or standard error where `/dev/kmsg` can't be opened.
#[derive(Debug)]
pub struct Kmsg {
    file: Option<File>,
}

impl Kmsg {
    #[must_use]
    pub fn open() -> Self {
        Self::open_at(Path::new("/dev/kmsg"))
    }

    #[must_use]
    pub fn open_at(path: &Path) -> Self {
        Self { file: OpenOptions::new().write(true).open(path).ok() }
    }
}

impl Log for Kmsg {
    fn line(&self, level: Level, text: &str) {
        let record = record(level, text);
        let written = self.file.as_ref().is_some_and(|mut file| file.write_all(&record).is_ok());
        if !written {
            // Nobody is left to hear of a failure here.
            let _ = std::io::stderr().write_all(&record[3..]);
        }
    }
}

/// One record as `/dev/kmsg` takes it: `<level>text\n`, control characters blanked, cut at a character boundary.
#[must_use]
pub fn record(level: Level, text: &str) -> Vec<u8> {
    let mut line = format!("<{}>", level as u8);
    let start = line.len();
    for character in text.trim_end().chars() {
        if line.len() - start + character.len_utf8() > TEXT_MAX_BYTES {
            line.push_str(" [cut]");
            break;
        }
        line.push(if character.is_control() { ' ' } else { character });
    }
    line.push('\n');
    line.into_bytes()
}

/// An error and everything beneath it on one line: `culprit: cause: cause of the cause`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Keeps lines for tests.
#[derive(Debug, Default)]
pub struct Recorded(std::sync::Mutex<Vec<(Level, String)>>);

impl Recorded {
    /// What was logged so far, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .iter()
            .map(|(_, text)| text.clone())
            .collect()
    }
}

impl Log for Recorded {
    fn line(&self, level: Level, text: &str) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((level, text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_carries_its_level_and_ends_with_one_newline() {
        assert_eq!(record(Level::Notice, "croft: up\n"), b"<5>croft: up\n");
        assert_eq!(record(Level::Critical, ""), b"<2>\n");
    }

    #[test]
    fn text_from_outside_cannot_forge_a_second_record() {
        let text = String::from_utf8(record(Level::Error, "label \"x\n<0>panic\r\x1b[2J\"")).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(!text.contains('\x1b') && !text.contains('\r'), "{text:?}");
    }

    #[test]
    fn a_long_line_is_cut_within_the_kernels_limit_and_says_so() {
        for filler in ["a", "ä", "漢"] {
            let bytes = record(Level::Notice, &filler.repeat(2_000));
            assert!(bytes.len() <= 1_000, "{} bytes", bytes.len());
            assert!(std::str::from_utf8(&bytes).unwrap().ends_with("[cut]\n"));
        }
    }

    #[test]
    fn an_error_is_printed_with_its_whole_chain_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("/data can't be mounted")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("no such device"));
        assert_eq!(chain(&error), "/data can't be mounted: no such device");
    }

    #[test]
    fn a_kernel_log_that_cannot_be_opened_does_not_stop_anybody() {
        Kmsg::open_at(Path::new("/nonexistent/kmsg")).line(Level::Info, "test line of the log, harmless");
    }
}
