//! How far a kernel build is, and how long it will take.
//!
//! kbuild prints one line per step but not how many there are; the last build of the same flavor
//! says how many to expect. Must never fail a build: without figures it just says less.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Flavor, kernel_cache};

/// Between two lines where the output is a file.
const LINE_INTERVAL: Duration = Duration::from_secs(20);
/// Between two updates of the same line on a terminal.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);

/// What an earlier build took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct History {
    steps: u64,
    seconds: u64,
}

impl History {
    /// Measured once with gcc 12 on two cores; replaced by this machine's own figures.
    fn typical(flavor: Flavor) -> Self {
        match flavor {
            Flavor::Node => Self { steps: 3100, seconds: 560 },
            Flavor::Guest => Self { steps: 2000, seconds: 330 },
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (steps, seconds) = text.trim().split_once(' ')?;
        let history = Self { steps: steps.parse().ok()?, seconds: seconds.parse().ok()? };
        (history.steps > 0).then_some(history)
    }

    /// Seconds left after `done` steps in `elapsed` seconds: the earlier pace at first, then more
    /// and more the pace of this build.
    fn seconds_left(self, done: u64, elapsed: u64) -> u64 {
        let left = self.steps.saturating_sub(done);
        let earlier = left * self.seconds / self.steps;
        let own = (left * elapsed).checked_div(done).unwrap_or(earlier);
        let weight = (done * 4).min(self.steps);
        (own * weight + earlier * (self.steps - weight)) / self.steps
    }
}

pub(super) struct Progress {
    flavor: Flavor,
    history: History,
    done: u64,
    started: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    pub(super) fn start(flavor: Flavor) -> Self {
        let stored = file(flavor).and_then(|path| fs::read_to_string(path).ok());
        let history =
            stored.and_then(|text| History::parse(&text)).unwrap_or_else(|| History::typical(flavor));
        let now = Instant::now();
        let progress = Self {
            flavor,
            history,
            done: 0,
            started: now,
            shown: now,
            terminal: std::io::stderr().is_terminal(),
        };
        progress.show();
        progress
    }

    /// Takes one line of kbuild's output.
    pub(super) fn line(&mut self, line: &str) {
        if !is_step(line) {
            return;
        }
        self.done += 1;
        if self.shown.elapsed() >= if self.terminal { REDRAW_INTERVAL } else { LINE_INTERVAL } {
            self.shown = Instant::now();
            self.show();
        }
    }

    fn show(&self) {
        let percent = (self.done * 100 / self.history.steps).min(99);
        let left = duration(self.history.seconds_left(self.done, self.started.elapsed().as_secs()));
        let text = format!("kernel {}: {percent} %, about {left} left", self.flavor.name());
        if self.terminal {
            eprint!("\r\x1b[K{text}");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{text}");
        }
    }

    /// Ends the line, and remembers the figures of a whole build for the next one.
    pub(super) fn finish(self, whole: bool) -> Duration {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        let took = self.started.elapsed();
        // A build on kept objects is no measure for a whole one.
        if whole && let Some(path) = file(self.flavor) {
            let _ = fs::write(path, format!("{} {}\n", self.done, took.as_secs()));
        }
        took
    }
}

fn file(flavor: Flavor) -> Option<PathBuf> {
    Some(kernel_cache().ok()?.join(format!("history-{}", flavor.name())))
}

/// `  CC      kernel/fork.o` and its like.
fn is_step(line: &str) -> bool {
    line.strip_prefix("  ").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_uppercase()))
}

/// "40 s" or "3 min".
pub(super) fn duration(seconds: u64) -> String {
    if seconds < 90 { format!("{seconds} s") } else { format!("{} min", (seconds + 30) / 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_and_other_lines_are_not() {
        assert!(is_step("  CC      kernel/fork.o"));
        assert!(is_step("  LD [M]  x.ko"));
        assert!(!is_step("make[1]: Entering directory 'x'"));
        assert!(!is_step("  warning: x"));
    }

    #[test]
    fn the_estimate_starts_with_history_and_follows_this_build() {
        let history = History { steps: 1000, seconds: 100 };
        assert_eq!(history.seconds_left(0, 0), 100);
        // Twice as slow as last time: half the steps took 100 s.
        assert_eq!(history.seconds_left(500, 100), 100);
        assert_eq!(history.seconds_left(2000, 100), 0);
    }

    #[test]
    fn a_damaged_history_is_ignored() {
        assert_eq!(History::parse("12 30\n"), Some(History { steps: 12, seconds: 30 }));
        for text in ["", "12", "0 30", "x y", "1 2 3"] {
            assert_eq!(History::parse(text), None, "{text}");
        }
    }

    #[test]
    fn durations_read_naturally() {
        assert_eq!(duration(40), "40 s");
        assert_eq!(duration(200), "3 min");
    }
}
