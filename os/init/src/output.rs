//! What node and its children print, brought to the kernel log line by line.
//!
//! `/dev/kmsg` itself refuses a line above a kilobyte and takes every write as one record: a program that prints a
//! long line there gets an error, and one that panics about it dies of its own log. So they get a pipe. It must never
//! hold up init: a turn reads a bounded amount.

use crate::log::{Level, Log};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

/// Longest piece of one record; longer lines become several. The kernel's limit is about 1,000.
const PIECE_MAX_BYTES: usize = 900;
const READ_BYTES: usize = 16 << 10;
/// Reads per turn, after which the others get theirs.
const READS_PER_TURN: usize = 4;

/// Init's end of a pipe.
#[derive(Debug)]
pub struct Output {
    pipe: OwnedFd,
    lines: Lines,
}

/// A fresh pair: init's end never blocks, the other does, and both close on exec.
pub fn pair() -> Result<(Output, OwnedFd), Errno> {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK)?;
    Ok((Output { pipe: ours, lines: Lines::default() }, theirs))
}

impl Output {
    /// Logs what is there; whether more can come.
    pub fn pass_on(&mut self, log: &dyn Log) -> bool {
        let mut buffer = [0_u8; READ_BYTES];
        for _ in 0..READS_PER_TURN {
            match rustix::io::read(&self.pipe, &mut buffer[..]) {
                Ok(0) => {
                    self.flush(log);
                    return false;
                }
                Ok(length) => self.lines.push(&buffer[..length], |level, text| log.line(level, text)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Logs a last line that has no end, when its writer is gone.
    pub fn flush(&mut self, log: &dyn Log) {
        self.lines.end(&mut |level, text: &str| log.line(level, text));
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Cuts a stream into records.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    /// Of the line that is being continued.
    level: Option<Level>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], mut record: impl FnMut(Level, &str)) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end(&mut record);
                self.level = None;
            } else {
                self.partial.push(*byte);
                if self.partial.len() >= PIECE_MAX_BYTES {
                    let whole = whole_characters(&self.partial);
                    let rest = self.partial.split_off(whole);
                    self.piece(&mut record);
                    self.partial = rest;
                }
            }
        }
    }

    fn end(&mut self, record: &mut dyn FnMut(Level, &str)) {
        if !self.partial.iter().all(u8::is_ascii_whitespace) {
            self.piece(record);
        }
        self.partial.clear();
    }

    fn piece(&mut self, record: &mut dyn FnMut(Level, &str)) {
        let text = String::from_utf8_lossy(&self.partial);
        let (level, text) = match self.level {
            Some(level) => (level, &*text),
            None => split_level(&text),
        };
        self.level = Some(level);
        record(level, text);
        self.partial.clear();
    }
}

/// How much of a piece can be cut off without cutting a character in two.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        // An unfinished character at the end is kept for the next piece; other garbage is not worth the care.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Ok(_) | Err(_) => bytes.len(),
    }
}

/// `<5>text`, as the kernel log's own writers mark severity. Unmarked lines are notices, so that they are seen.
fn split_level(text: &str) -> (Level, &str) {
    let marked = text.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    match marked {
        Some(("0" | "1" | "2", rest)) => (Level::Critical, rest),
        Some(("3", rest)) => (Level::Error, rest),
        Some(("4", rest)) => (Level::Warning, rest),
        Some(("5", rest)) => (Level::Notice, rest),
        Some(("6" | "7", rest)) => (Level::Info, rest),
        _ => (Level::Notice, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Recorded;

    fn cut(pieces: &[&[u8]]) -> Vec<(Level, String)> {
        let mut lines = Lines::default();
        let mut records = Vec::new();
        for piece in pieces {
            lines.push(piece, |level, text| records.push((level, text.to_owned())));
        }
        lines.end(&mut |level, text: &str| records.push((level, text.to_owned())));
        records
    }

    fn texts(pieces: &[&[u8]]) -> Vec<String> {
        cut(pieces).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn lines_are_records_however_they_arrive() {
        assert_eq!(texts(&[b"one\ntwo\n"]), ["one", "two"]);
        assert_eq!(texts(&[b"on", b"e\nt", b"wo"]), ["one", "two"]);
        assert_eq!(texts(&[b"\n \n\n"]), [""; 0], "empty lines say nothing");
    }

    #[test]
    fn a_long_line_becomes_several_records_and_loses_nothing() {
        for filler in ["a", "ä", "漢", "🦀"] {
            let long = filler.repeat(3_000);
            let records = texts(&[long.as_bytes()]);
            assert!(records.len() > 3 && records.iter().all(|record| record.len() <= PIECE_MAX_BYTES));
            assert_eq!(records.concat(), long);
        }
        let noise: Vec<u8> =
            (0..5_000_u32).map(|index| (index * 7 % 256) as u8).filter(|byte| *byte != b'\n').collect();
        assert!(!texts(&[&noise]).is_empty());
    }

    #[test]
    fn a_mark_of_severity_holds_for_the_whole_line() {
        assert_eq!(
            cut(&[b"<3>bad\nplain\n"]),
            [(Level::Error, "bad".into()), (Level::Notice, "plain".into())]
        );
        let long = format!("<6>{}\nnext", "x".repeat(2_000));
        let levels: Vec<Level> = cut(&[long.as_bytes()]).into_iter().map(|(level, _)| level).collect();
        assert_eq!(levels, [Level::Info, Level::Info, Level::Info, Level::Notice]);
        assert_eq!(texts(&[b"<b>html</b>"]), ["<b>html</b>"]);
    }

    #[test]
    fn what_a_writer_leaves_behind_is_read_after_its_end() {
        let (mut output, theirs) = pair().unwrap();
        let log = Recorded::default();
        assert!(output.pass_on(&log), "nothing yet, and it does not block");
        rustix::io::write(&theirs, b"last words").unwrap();
        assert!(output.pass_on(&log));
        drop(theirs);
        assert!(!output.pass_on(&log));
        assert_eq!(log.lines(), ["last words"]);
    }
}
