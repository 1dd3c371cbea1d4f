//! The serial line: complete lines with the time since power-on, waited for with a deadline.
//!
//! ```text
//! QEMU --pipe--> feed (a thread) --> lines + log file
//!                                        ^
//!                   Serial (a cursor) ---'  wait_for: next line at or after the cursor that matches
//! ```
//!
//! A failed wait shows the last lines, and ends early when the kernel panics or the machine is gone.
//! Memory is bounded: beyond `LINES_MAX` the oldest lines are only in the log file.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use regex::Regex;
use tokio::sync::watch;

/// Lines kept in memory: a day of a healthy node, or what a looping one says until its test ends.
const LINES_MAX: usize = 50_000;
/// Longer lines are cut into pieces: something that never sends a line feed must not eat the host.
const LINE_MAX_BYTES: usize = 8192;
/// The log file stops growing here.
const LOG_MAX_BYTES: u64 = 256 << 20;
/// What a failed wait shows.
const TAIL_LINES: usize = 25;
/// A kernel says this at its end, whatever else is configured.
const PANIC: &str = "Kernel panic - not syncing";

/// One line, without its line feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Since power-on.
    pub at: Duration,
    pub text: String,
}

/// What to wait for.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// The line contains this text.
    Text(String),
    Regex(Regex),
}

impl Pattern {
    fn matches(&self, line: &str) -> bool {
        match self {
            Self::Text(text) => line.contains(text),
            Self::Regex(regex) => regex.is_match(line),
        }
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Regex> for Pattern {
    fn from(regex: Regex) -> Self {
        Self::Regex(regex)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

/// Why a line was not seen.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    #[error("no serial line with {pattern} within {limit:.1?}; the last lines:\n{tail}")]
    Timeout { pattern: String, limit: Duration, tail: String },
    #[error("the machine ended before a serial line with {pattern}; the last lines:\n{tail}")]
    Ended { pattern: String, tail: String },
    #[error("the kernel panicked before a serial line with {pattern}; the last lines:\n{tail}")]
    Panicked { pattern: String, tail: String },
}

#[derive(Debug)]
struct Log {
    lines: VecDeque<Line>,
    /// Number of lines that were dropped from the front.
    dropped: usize,
    partial: Vec<u8>,
    ended: bool,
    started: Instant,
    file: Option<File>,
    file_bytes: u64,
}

impl Log {
    fn end(&self) -> usize {
        self.dropped + self.lines.len()
    }

    fn from(&self, cursor: usize) -> impl Iterator<Item = (usize, &Line)> {
        let skip = cursor.saturating_sub(self.dropped);
        self.lines.iter().enumerate().skip(skip).map(|(index, line)| (self.dropped + index, line))
    }

    fn tail(&self) -> String {
        let mut out = String::new();
        for line in self.lines.iter().skip(self.lines.len().saturating_sub(TAIL_LINES)) {
            let _ = writeln!(out, "{:9.3}  {}", line.at.as_secs_f64(), line.text);
        }
        if !self.partial.is_empty() {
            let _ = writeln!(out, "  partial  {}", printable(&self.partial));
        }
        if out.is_empty() { "(nothing was said)".into() } else { out }
    }
}

/// The writing end, held by the thread that reads QEMU's output.
#[derive(Debug)]
pub(crate) struct Feed {
    log: Arc<Mutex<Log>>,
    changed: watch::Sender<usize>,
}

/// The serial line's reading end: a cursor into what was said. Clones have cursors of their own.
#[derive(Debug, Clone)]
pub struct Serial {
    log: Arc<Mutex<Log>>,
    changed: watch::Receiver<usize>,
    cursor: usize,
}

/// Makes both ends; everything that is said is also written to `file`.
pub(crate) fn line(file: Option<File>) -> (Feed, Serial) {
    let log = Arc::new(Mutex::new(Log {
        lines: VecDeque::new(),
        dropped: 0,
        partial: Vec::new(),
        ended: false,
        started: Instant::now(),
        file,
        file_bytes: 0,
    }));
    let (sender, receiver) = watch::channel(0);
    (Feed { log: log.clone(), changed: sender }, Serial { log, changed: receiver, cursor: 0 })
}

/// A panic in a holder can't leave lines in a state that would mislead.
fn locked(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches('\r').replace('\u{1b}', "\\e")
}

impl Feed {
    /// Sets the moment from which lines are timed.
    pub(crate) fn power_on(&self) {
        locked(&self.log).started = Instant::now();
    }

    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut log = locked(&self.log);
        write_to_file(&mut log, bytes);
        let at = log.started.elapsed();
        for byte in bytes {
            if *byte != b'\n' {
                log.partial.push(*byte);
            }
            if *byte == b'\n' || log.partial.len() >= LINE_MAX_BYTES {
                let text = printable(&std::mem::take(&mut log.partial));
                log.lines.push_back(Line { at, text });
            }
        }
        while log.lines.len() > LINES_MAX {
            log.lines.pop_front();
            log.dropped += 1;
        }
        let end = log.end();
        drop(log);
        self.changed.send_replace(end);
    }

    pub(crate) fn end(&self) {
        let mut log = locked(&self.log);
        log.ended = true;
        if !log.partial.is_empty() {
            let (at, text) = (log.started.elapsed(), printable(&std::mem::take(&mut log.partial)));
            log.lines.push_back(Line { at, text });
        }
        let end = log.end();
        drop(log);
        self.changed.send_replace(end);
    }
}

fn write_to_file(log: &mut Log, bytes: &[u8]) {
    let room = LOG_MAX_BYTES.saturating_sub(log.file_bytes);
    let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
    log.file_bytes += bytes.len() as u64;
    // A full disk must not end the machine; the lines in memory remain.
    if log.file.as_mut().is_some_and(|file| file.write_all(bytes).is_err()) {
        log.file = None;
    }
}

enum Seen {
    Match(usize, Line),
    Panic,
    Ended,
    NotYet,
}

impl Serial {
    /// The next line at or after the cursor that matches; the cursor moves behind it.
    ///
    /// A kernel panic at or after the cursor ends the wait, unless it is what was waited for.
    pub async fn wait_for(
        &mut self,
        pattern: impl Into<Pattern>,
        limit: Duration,
    ) -> Result<Line, WaitError> {
        let pattern = pattern.into();
        let search = self.search(&pattern);
        match tokio::time::timeout(limit, search).await {
            Ok(outcome) => outcome,
            Err(_) => Err(WaitError::Timeout { pattern: pattern.to_string(), limit, tail: self.tail() }),
        }
    }

    async fn search(&mut self, pattern: &Pattern) -> Result<Line, WaitError> {
        loop {
            self.changed.borrow_and_update();
            match self.look(pattern) {
                Seen::Match(index, line) => {
                    self.cursor = index + 1;
                    return Ok(line);
                }
                Seen::Panic => {
                    return Err(WaitError::Panicked { pattern: pattern.to_string(), tail: self.tail() });
                }
                Seen::Ended => {
                    return Err(WaitError::Ended { pattern: pattern.to_string(), tail: self.tail() });
                }
                Seen::NotYet => {}
            }
            // An error means that the feed is gone; it marks the end before that.
            let _ = self.changed.changed().await;
        }
    }

    fn look(&self, pattern: &Pattern) -> Seen {
        let log = locked(&self.log);
        for (index, line) in log.from(self.cursor) {
            if pattern.matches(&line.text) {
                return Seen::Match(index, line.clone());
            }
            if line.text.contains(PANIC) {
                return Seen::Panic;
            }
        }
        if log.ended { Seen::Ended } else { Seen::NotYet }
    }

    /// All lines in memory, whatever the cursor.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        locked(&self.log).lines.iter().cloned().collect()
    }

    /// The first line that matches among those in memory, whatever the cursor.
    #[must_use]
    pub fn find(&self, pattern: impl Into<Pattern>) -> Option<Line> {
        let pattern = pattern.into();
        locked(&self.log).lines.iter().find(|line| pattern.matches(&line.text)).cloned()
    }

    /// The last lines with their times, as error messages show them.
    #[must_use]
    pub fn tail(&self) -> String {
        locked(&self.log).tail()
    }

    /// Moves the cursor to the end: only what is said from now on counts.
    pub fn skip_to_end(&mut self) {
        self.cursor = locked(&self.log).end();
    }

    /// Moves the cursor to the beginning.
    pub fn rewind(&mut self) {
        self.cursor = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn texts(serial: &Serial) -> Vec<String> {
        serial.lines().into_iter().map(|line| line.text).collect()
    }

    #[tokio::test]
    async fn lines_are_found_in_order_across_pieces() {
        let (feed, mut serial) = line(None);
        feed.push(b"one\r\ntw");
        feed.push(b"o\nthree\n");
        assert_eq!(serial.wait_for("two", LIMIT).await.unwrap().text, "two");
        assert_eq!(serial.wait_for(Regex::new("^t").unwrap(), LIMIT).await.unwrap().text, "three");
        assert_eq!(texts(&serial), ["one", "two", "three"]);
    }

    #[tokio::test]
    async fn a_wait_wakes_up_when_the_line_comes() {
        let (feed, mut serial) = line(None);
        let waiter = tokio::spawn(async move { serial.wait_for("ready", LIMIT).await });
        tokio::task::yield_now().await;
        feed.push(b"not yet\nready\n");
        assert_eq!(waiter.await.unwrap().unwrap().text, "ready");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_in_vain_shows_the_last_lines() {
        let (feed, mut serial) = line(None);
        feed.push(b"croft: stage 5/11 network\nlogin");
        let error = serial.wait_for("ready", Duration::from_secs(3)).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("no serial line with \"ready\" within 3.0s; the last lines:\n"), "{text}");
        assert!(text.contains("croft: stage 5/11 network") && text.contains("partial  login"), "{text}");
    }

    #[tokio::test]
    async fn a_panic_ends_the_wait_at_once() {
        let (feed, mut serial) = line(None);
        feed.push(b"[ 1.0] Kernel panic - not syncing: no init\n");
        let error = serial.wait_for("ready", LIMIT).await.unwrap_err();
        assert!(matches!(error, WaitError::Panicked { .. }), "{error}");
        assert!(error.to_string().contains("no init"), "{error}");
        serial.wait_for("Kernel panic", LIMIT).await.expect("a panic can be waited for");
    }

    #[tokio::test]
    async fn the_end_of_the_machine_ends_the_wait() {
        let (feed, mut serial) = line(None);
        feed.push(b"Power down");
        feed.end();
        let error = serial.wait_for("ready", LIMIT).await.unwrap_err();
        assert!(
            error.to_string().starts_with("the machine ended before a serial line with \"ready\""),
            "{error}"
        );
        assert_eq!(serial.wait_for("Power down", LIMIT).await.unwrap().text, "Power down");
    }

    #[tokio::test]
    async fn the_cursor_tells_old_from_new() {
        let (feed, mut serial) = line(None);
        feed.push(b"ready\n");
        serial.skip_to_end();
        feed.push(b"again ready\n");
        assert_eq!(serial.wait_for("ready", LIMIT).await.unwrap().text, "again ready");
        serial.rewind();
        assert_eq!(serial.wait_for("ready", LIMIT).await.unwrap().text, "ready");
        assert_eq!(serial.find("ready").unwrap().text, "ready");
    }

    #[test]
    fn memory_is_bounded_and_the_cursor_survives_it() {
        let (feed, mut serial) = line(None);
        for _ in 0..LINES_MAX {
            feed.push(b"old\n");
        }
        serial.skip_to_end();
        feed.push(b"new\n");
        feed.push(&vec![b'x'; LINE_MAX_BYTES * 3]);
        assert_eq!(serial.lines().len(), LINES_MAX);
        let found = serial.look(&Pattern::from("new"));
        assert!(matches!(found, Seen::Match(index, _) if index == LINES_MAX));
        assert!(serial.lines().iter().all(|line| line.text.len() <= LINE_MAX_BYTES));
    }

    #[test]
    fn everything_goes_to_the_log_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serial.log");
        let (feed, _serial) = line(Some(File::create(&path).unwrap()));
        feed.push(b"one\r\ntwo");
        assert_eq!(std::fs::read(&path).unwrap(), b"one\r\ntwo");
    }
}
