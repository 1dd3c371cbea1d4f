//! Output of one VM: lines in a bounded ring, followed by any number of readers, and written to a bounded,
//! rotated file.
//!
//! ```text
//! chunk ──> line assembly per stream ──> ring (oldest dropped, counted) ──> subscribers
//!                                    └──> file writer (own task; lost lines counted)
//! ```
//!
//! Must never grow without bound nor make the writer wait: what nobody takes in time is dropped and counted.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_guest::wire::Stream;
use tokio::sync::{mpsc, watch};

use crate::spec::LogLimits;

/// Longer lines are cut into several.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// What a line costs besides its text.
const LINE_OVERHEAD_BYTES: usize = 64;
/// Lines that may wait for the disk.
const FILE_QUEUE: usize = 1024;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    Stdout,
    Stderr,
    /// The guest's PID 1 or the owner of the VM.
    System,
    /// The guest kernel's console.
    Console,
}

impl From<Stream> for Source {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
            Stream::System => Self::System,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::System => "system",
            Self::Console => "console",
        })
    }
}

/// One line, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Counts all lines of this log; a gap means that lines were dropped.
    pub number: u64,
    /// Milliseconds since 1970, by the guest's clock for its output.
    pub time_ms: u64,
    pub source: Source,
    /// Invalid UTF-8 is replaced.
    pub text: Arc<str>,
}

/// Where a reader starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStart {
    /// The oldest line that is still there.
    Start,
    /// The last so many lines.
    Tail(usize),
    /// The line with this number, or the oldest after it.
    Number(u64),
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    Line(LogLine),
    /// So many lines were dropped before the reader got to them.
    Skipped(u64),
}

/// A VM's log. Clones share it.
#[derive(Debug, Clone)]
pub struct Logs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Number of the next line; `u64::MAX` when the log is closed.
    next: watch::Sender<u64>,
    file: Option<mpsc::Sender<LogLine>>,
}

#[derive(Debug)]
struct State {
    lines: VecDeque<LogLine>,
    bytes: usize,
    max_bytes: usize,
    next: u64,
    partial: [Vec<u8>; 4],
    closed: bool,
}

impl Logs {
    /// Starts the file writer when the limits name a file; needs a tokio runtime then.
    pub fn new(limits: &LogLimits) -> Self {
        let state = State {
            lines: VecDeque::new(),
            bytes: 0,
            max_bytes: limits.memory_bytes,
            next: 0,
            partial: Default::default(),
            closed: false,
        };
        let file = limits.file.as_ref().map(|path| {
            let (sender, receiver) = mpsc::channel(FILE_QUEUE);
            let writer = FileWriter::new(path, limits.file_bytes);
            tokio::task::spawn_blocking(move || write_lines(writer, receiver));
            sender
        });
        Self { shared: Arc::new(Shared { state: Mutex::new(state), next: watch::Sender::new(0), file }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds raw output; lines may be cut anywhere.
    pub fn push(&self, source: Source, time_ms: u64, bytes: &[u8]) {
        let mut state = self.lock();
        let mut partial = std::mem::take(&mut state.partial[source as usize]);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(MAX_LINE_BYTES) {
                partial.extend_from_slice(part);
                if partial.ends_with(b"\n") || partial.len() >= MAX_LINE_BYTES {
                    self.add(&mut state, source, time_ms, &partial);
                    partial.clear();
                }
            }
        }
        state.partial[source as usize] = partial;
        self.announce(&state);
    }

    /// Adds one line of the owner's.
    pub fn note(&self, text: &str) {
        let mut state = self.lock();
        let time_ms = crate::clock::wall_ms();
        for line in text.lines() {
            self.add(&mut state, Source::System, time_ms, line.as_bytes());
        }
        self.announce(&state);
    }

    /// Completes lines without an end, as when the VM is gone.
    pub fn finish_lines(&self) {
        let mut state = self.lock();
        let time_ms = crate::clock::wall_ms();
        for source in [Source::Stdout, Source::Stderr, Source::System, Source::Console] {
            let partial = std::mem::take(&mut state.partial[source as usize]);
            if !partial.is_empty() {
                self.add(&mut state, source, time_ms, &partial);
            }
        }
        self.announce(&state);
    }

    /// Ends all followers after what is there.
    pub(crate) fn close(&self) {
        self.finish_lines();
        self.lock().closed = true;
        self.shared.next.send_replace(u64::MAX);
    }

    fn announce(&self, state: &State) {
        if !state.closed {
            self.shared.next.send_if_modified(|next| std::mem::replace(next, state.next) != state.next);
        }
    }

    fn add(&self, state: &mut State, source: Source, time_ms: u64, bytes: &[u8]) {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let text: Arc<str> = String::from_utf8_lossy(bytes).into();
        let line = LogLine { number: state.next, time_ms, source, text };
        state.next += 1;
        state.bytes += cost(&line);
        if let Some(file) = &self.shared.file {
            // A slow disk loses lines of the file, which the gap in numbers shows.
            let _ = file.try_send(line.clone());
        }
        state.lines.push_back(line);
        while state.bytes > state.max_bytes {
            let Some(oldest) = state.lines.pop_front() else { break };
            state.bytes -= cost(&oldest);
        }
    }

    /// The last lines as one text, for error messages; at most `bytes` long.
    pub fn tail(&self, bytes: usize) -> String {
        let state = self.lock();
        let mut text = String::new();
        for line in state.lines.iter().rev() {
            if text.len() + line.text.len() + 1 > bytes {
                break;
            }
            text.insert_str(0, &line.text);
            text.insert(0, '\n');
        }
        text.trim_start_matches('\n').to_owned()
    }

    /// Reads from `from` on; with `follow`, waits for more until the VM ends for good.
    pub fn subscribe(&self, from: LogStart, follow: bool) -> Subscription {
        let state = self.lock();
        let next = match from {
            LogStart::Start => state.lines.front().map_or(state.next, |line| line.number),
            LogStart::Tail(count) => {
                let skip = state.lines.len().saturating_sub(count);
                state.lines.get(skip).map_or(state.next, |line| line.number)
            }
            LogStart::Number(number) => number,
        };
        drop(state);
        Subscription { logs: self.clone(), changes: self.shared.next.subscribe(), next, follow }
    }
}

fn cost(line: &LogLine) -> usize {
    line.text.len() + LINE_OVERHEAD_BYTES
}

/// A reader of a log.
#[derive(Debug)]
pub struct Subscription {
    logs: Logs,
    changes: watch::Receiver<u64>,
    next: u64,
    follow: bool,
}

impl Subscription {
    /// The next item; `None` at the end.
    pub async fn next(&mut self) -> Option<LogItem> {
        loop {
            self.changes.mark_unchanged();
            if let Some(item) = self.try_next() {
                return Some(item);
            }
            if !self.follow || self.logs.lock().closed || self.changes.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The next item that is there already.
    pub fn try_next(&mut self) -> Option<LogItem> {
        let state = self.logs.lock();
        let first = state.lines.front()?.number;
        if self.next < first {
            let skipped = first - self.next;
            self.next = first;
            return Some(LogItem::Skipped(skipped));
        }
        let line = state.lines.get(usize::try_from(self.next - first).ok()?)?.clone();
        self.next += 1;
        Some(LogItem::Line(line))
    }
}

fn write_lines(mut writer: FileWriter, mut lines: mpsc::Receiver<LogLine>) {
    let mut failing = false;
    while let Some(line) = lines.blocking_recv() {
        let text = format!("{} {} {}\n", line.time_ms, line.source, line.text);
        match writer.write(text.as_bytes()) {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(path = %writer.path.display(), %error, "log file can't be written");
            }
            Err(_) => {}
        }
    }
}

/// Two files of half the limit each: the present one and the one before.
#[derive(Debug)]
struct FileWriter {
    path: PathBuf,
    max_bytes: u64,
    file: Option<(File, u64)>,
}

impl FileWriter {
    fn new(path: &Path, file_bytes: u64) -> Self {
        Self { path: path.to_owned(), max_bytes: file_bytes / 2, file: None }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, size)| size + bytes.len() as u64 > self.max_bytes) {
            self.file = None;
            let mut previous = self.path.clone().into_os_string();
            previous.push(".1");
            fs::rename(&self.path, previous)?;
        }
        if self.file.is_none() {
            let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            let size = file.metadata()?.len();
            self.file = Some((file, size));
        }
        if let Some((file, size)) = &mut self.file {
            file.write_all(bytes)?;
            *size += bytes.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(memory_bytes: usize) -> Logs {
        Logs::new(&LogLimits { memory_bytes, file: None, file_bytes: 0 })
    }

    fn texts(logs: &Logs, from: LogStart) -> Vec<String> {
        let mut reader = logs.subscribe(from, false);
        std::iter::from_fn(|| reader.try_next())
            .map(|item| match item {
                LogItem::Line(line) => line.text.to_string(),
                LogItem::Skipped(count) => format!("({count} skipped)"),
            })
            .collect()
    }

    #[test]
    fn chunks_become_lines_per_stream() {
        let logs = logs(10_000);
        logs.push(Source::Stdout, 1, b"one\ntw");
        logs.push(Source::Stderr, 2, b"oops\r\n");
        logs.push(Source::Stdout, 3, b"o\nrest");
        assert_eq!(texts(&logs, LogStart::Start), ["one", "oops", "two"]);
        logs.finish_lines();
        assert_eq!(texts(&logs, LogStart::Tail(1)), ["rest"]);
    }

    #[test]
    fn a_line_without_end_is_cut_and_bounded() {
        let logs = logs(1 << 20);
        logs.push(Source::Stdout, 0, &vec![b'x'; 40_000]);
        let lines = texts(&logs, LogStart::Start);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE_BYTES, MAX_LINE_BYTES]);
    }

    #[test]
    fn the_ring_drops_the_oldest_and_a_late_reader_learns_how_many() {
        let logs = logs(10 * (LINE_OVERHEAD_BYTES + 1));
        let mut reader = logs.subscribe(LogStart::Start, false);
        for _ in 0..100 {
            logs.push(Source::Stdout, 0, b"x\n");
        }
        assert_eq!(reader.try_next(), Some(LogItem::Skipped(90)));
        assert_eq!(std::iter::from_fn(|| reader.try_next()).count(), 10);
        assert_eq!(texts(&logs, LogStart::Number(98)).len(), 2);
        assert_eq!(texts(&logs, LogStart::Number(1000)).len(), 0);
    }

    #[test]
    fn the_tail_is_for_messages() {
        let logs = logs(10_000);
        logs.push(Source::Console, 0, b"first\nsecond\nthird\n");
        assert_eq!(logs.tail(13), "second\nthird");
        assert_eq!(logs.tail(1000), "first\nsecond\nthird");
        assert_eq!(logs.tail(2), "");
    }

    #[tokio::test]
    async fn a_follower_gets_later_lines_and_ends_with_the_log() {
        let logs = logs(10_000);
        logs.push(Source::Stdout, 0, b"before\n");
        let mut reader = logs.subscribe(LogStart::Start, true);
        let follower = tokio::spawn(async move {
            let mut lines = Vec::new();
            while let Some(LogItem::Line(line)) = reader.next().await {
                lines.push(line.text.to_string());
            }
            lines
        });
        tokio::task::yield_now().await;
        logs.push(Source::Stdout, 0, b"after\nlast");
        logs.close();
        assert_eq!(follower.await.unwrap(), ["before", "after", "last"]);
    }

    #[test]
    fn the_file_is_rotated_within_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = FileWriter::new(&path, 100);
        for number in 0..100 {
            writer.write(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        let previous = fs::read_to_string(dir.path().join("log.1")).unwrap();
        let present = fs::read_to_string(&path).unwrap();
        assert!(previous.len() + present.len() <= 100, "{} bytes", previous.len() + present.len());
        assert!((previous + &present).ends_with("line 0098\nline 0099\n"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn lines_reach_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let logs = Logs::new(&LogLimits { memory_bytes: 1000, file: Some(path.clone()), file_bytes: 1000 });
        logs.push(Source::Stderr, 42, b"hello\n");
        let text = tokio::task::spawn_blocking(move || {
            loop {
                match fs::read_to_string(&path) {
                    Ok(text) if text.ends_with('\n') => return text,
                    _ => std::thread::yield_now(),
                }
            }
        });
        let text = tokio::time::timeout(std::time::Duration::from_secs(30), text).await.unwrap().unwrap();
        assert_eq!(text, "42 stderr hello\n");
    }
}
