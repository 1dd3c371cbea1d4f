//! What the person sees: results on stdout, as text or JSON; progress and trouble on stderr.
//!
//! Nothing else in this crate writes to either, so that `--json` gives exactly one document (or one per line
//! where output follows), and tests see what a person would.

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use croft_protocol::directory::is_printable;
pub use croft_protocol::units::{show_duration, show_time};
use serde::Serialize;

use crate::exit::Failure;

/// A line on a terminal is redrawn at most this often; more only heats the machine.
const REDRAW: Duration = Duration::from_millis(100);

/// Adds formatted text to a `String`.
macro_rules! push {
    ($text:expr, $($piece:tt)*) => {{
        use std::fmt::Write as _;
        // Writing into memory can't fail.
        let _ = write!($text, $($piece)*);
    }};
}
pub(crate) use push;

/// Both streams and how to write to them.
pub struct Terminal {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    json: bool,
    /// Whether stderr is a terminal: progress is redrawn in place there, and coarse elsewhere.
    live: bool,
    line: Option<Line>,
}

/// The progress line that is shown now.
struct Line {
    what: String,
    total: u64,
    done: u64,
    started: Instant,
    drawn: Option<Instant>,
}

/// Work that takes a while.
pub trait Progress {
    /// Something starts; `total` is 0 where nobody knows.
    fn start(&mut self, what: &str, total: u64);
    /// So much more of it is done.
    fn advance(&mut self, done: u64);
    /// It is over.
    fn finish(&mut self);
    /// Says something once.
    fn note(&mut self, text: &str);
}

impl Terminal {
    /// The process's own streams.
    #[must_use]
    pub fn standard(json: bool) -> Self {
        let live = io::stderr().is_terminal();
        Self { out: Box::new(io::stdout()), err: Box::new(io::stderr()), json, live, line: None }
    }

    /// Other streams, for tests.
    #[must_use]
    pub fn with_streams(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>, json: bool) -> Self {
        Self { out, err, json, live: false, line: None }
    }

    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The result: `value` as JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn result<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let text = if self.json {
            let mut text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
            text.push('\n');
            text
        } else {
            text(value)
        };
        self.write_out(&text)
    }

    /// One of many results: a JSON object per line, or a line of text.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn item<T: Serialize>(&mut self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let mut text =
            if self.json { serde_json::to_string(value).map_err(Failure::failed)? } else { text(value) };
        text.push('\n');
        self.write_out(&text)
    }

    /// Says on stderr what failed, its causes, and what to do.
    pub fn failure(&mut self, failure: &Failure) {
        self.clear();
        let text = if self.json { failure.to_json() } else { failure.to_text() };
        // There is nobody left to tell if stderr is gone too.
        let _ = self.err.write_all(text.as_bytes());
        let _ = self.err.flush();
    }

    fn write_out(&mut self, text: &str) -> Result<(), Failure> {
        self.clear();
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(Failure::output)
    }

    /// Takes the progress line away so that something else can be written.
    fn clear(&mut self) {
        if self.live && self.line.as_ref().is_some_and(|l| l.drawn.is_some()) {
            let _ = self.err.write_all(b"\r\x1b[K");
        }
    }

    fn draw(&mut self) {
        let Some(line) = &mut self.line else { return };
        line.drawn = Some(Instant::now());
        let text = format!("\r\x1b[K{}", line.text());
        let _ = self.err.write_all(text.as_bytes());
        let _ = self.err.flush();
    }

    fn say(&mut self, text: &str) {
        let _ = writeln!(self.err, "{text}");
        let _ = self.err.flush();
    }
}

impl Line {
    fn text(&self) -> String {
        if self.total == 0 {
            return format!("{} …", self.what);
        }
        let percent = (u128::from(self.done.min(self.total)) * 100 / u128::from(self.total)) as u64;
        let elapsed = self.started.elapsed().as_secs();
        let left = if percent >= 5 && elapsed >= 3 {
            format!(", about {} s left", elapsed * (100 - percent) / percent)
        } else {
            String::new()
        };
        format!("{} … {percent} %{left}", self.what)
    }
}

impl Progress for Terminal {
    fn start(&mut self, what: &str, total: u64) {
        self.line =
            Some(Line { what: what.to_owned(), total, done: 0, started: Instant::now(), drawn: None });
        if self.live {
            self.draw();
        }
    }

    fn advance(&mut self, done: u64) {
        let Some(line) = &mut self.line else { return };
        line.done += done;
        if self.live && line.drawn.is_none_or(|at| at.elapsed() >= REDRAW) {
            self.draw();
        }
    }

    fn finish(&mut self) {
        self.clear();
        let Some(line) = self.line.take() else { return };
        let ms = line.started.elapsed().as_millis();
        self.say(&format!("{}: {}.{} s", line.what, ms / 1000, ms % 1000 / 100));
    }

    fn note(&mut self, text: &str) {
        self.clear();
        self.say(text);
        if self.live {
            self.draw();
        }
    }
}

impl Progress for &mut Terminal {
    fn start(&mut self, what: &str, total: u64) {
        (**self).start(what, total);
    }
    fn advance(&mut self, done: u64) {
        (**self).advance(done);
    }
    fn finish(&mut self) {
        (**self).finish();
    }
    fn note(&mut self, text: &str) {
        (**self).note(text);
    }
}

/// Nobody watches.
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self) {}
    fn note(&mut self, _: &str) {}
}

/// Rows under headings, columns as wide as their widest cell, two spaces between.
#[must_use]
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut row = String::new();
        for (cell, width) in cells.zip(&widths) {
            row.push_str(cell);
            row.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    line(&mut headings.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// What somebody else wrote, for a terminal: control characters could redraw the screen, and others turn its direction.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_printable(c) || c == '\t' { c } else { '\u{fffd}' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["a".to_owned(), "long cell".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["N", "WHAT"], &rows), "N    WHAT\na    long cell\nbcd  x\n");
    }

    #[test]
    fn what_strangers_write_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }
}
