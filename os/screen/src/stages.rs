//! The boot as the kernel log tells it: init and agent write each stage there in one format, and so does a node that
//! can't run. Reading it there shows stages of before this process, and needs nothing of an agent that is dying.
//!
//! ```text
//! 5,812,3100211,-;croft: stage 5/11 network: waiting: no carrier on eth0      (/dev/kmsg, one record)
//! started ─> waiting* ─> ok | failed
//! ```

use crate::model::{Line, Tone};
use crate::text::plain;

/// Stages that are kept; the boot has fewer.
const STAGES_MAX: usize = 32;
/// The last lines of the agent and of init that are neither stages nor harmless.
const TROUBLES_MAX: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Started,
    Waiting,
    Ok,
    Failed,
}

/// One stage as last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub number: usize,
    pub name: String,
    pub state: State,
    /// Why it waits or failed; what came of it.
    pub detail: String,
}

/// All that was heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stages {
    /// By number.
    pub list: Vec<Stage>,
    /// How many there are in all.
    pub total: usize,
    troubles: Vec<Line>,
}

impl Stages {
    /// Takes one record of `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg). Whether anything is new.
    pub fn take_record(&mut self, record: &[u8]) -> bool {
        let text = String::from_utf8_lossy(record);
        let Some((head, body)) = text.split_once(';') else { return false };
        let Some(priority) = head.split(',').next().and_then(|number| number.parse::<u32>().ok()) else {
            return false;
        };
        // Continuation lines of a record carry device names.
        let line = body.lines().next().unwrap_or_default();
        self.take_line(priority & 7, line)
    }

    /// Takes one line with its severity (RFC 5424: 3 is an error).
    pub fn take_line(&mut self, severity: u32, line: &str) -> bool {
        let Some(text) = line.strip_prefix("croft: ") else { return false };
        if let Some(stage) = parse(text) {
            let (stage, total) = stage;
            self.total = total;
            if stage.number == FIRST_OF_AGENT && stage.state == State::Started {
                // The agent started again: what it said before is of its last run.
                self.list.retain(|known| known.number < FIRST_OF_AGENT);
                self.troubles.clear();
            }
            match self.list.binary_search_by_key(&stage.number, |known| known.number) {
                Ok(place) => self.list[place] = stage,
                Err(place) if self.list.len() < STAGES_MAX => self.list.insert(place, stage),
                Err(_) => return false,
            }
            return true;
        }
        if severity <= 3 {
            let line = Line::new(Tone::Bad, plain(text));
            // The same with other numbers is the same: attempts are counted, processes numbered.
            self.troubles.retain(|known| !without_digits(&known.text).eq(without_digits(&line.text)));
            self.troubles.push(line);
            if self.troubles.len() > TROUBLES_MAX {
                self.troubles.remove(0);
            }
            return true;
        }
        false
    }

    /// Errors that were logged since the agent began, the latest last.
    #[must_use]
    pub fn troubles(&self) -> &[Line] {
        &self.troubles
    }

    #[must_use]
    pub fn all_ok(&self) -> bool {
        self.total > 0
            && self.list.len() == self.total
            && self.list.iter().all(|stage| stage.state == State::Ok)
    }
}

fn without_digits(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|character| !character.is_ascii_digit())
}

/// Init does the four before it.
const FIRST_OF_AGENT: usize = 5;

/// `stage 5/11 network: failed in 10003 ms: no carrier on eth0`, and how many stages there are.
fn parse(text: &str) -> Option<(Stage, usize)> {
    let rest = text.strip_prefix("stage ")?;
    let (place, rest) = rest.split_once(' ')?;
    let (number, total) = place.split_once('/')?;
    let (number, total): (usize, usize) = (number.parse().ok()?, total.parse().ok()?);
    if !(1..=STAGES_MAX).contains(&number) || !(number..=STAGES_MAX).contains(&total) {
        return None;
    }
    let (name, rest) = rest.split_once(": ")?;
    let detail_after = |rest: &str| match rest.split_once(" ms: ") {
        Some((_, detail)) => plain(detail),
        None => String::new(),
    };
    let (state, detail) = if rest == "started" {
        (State::Started, String::new())
    } else if let Some(why) = rest.strip_prefix("waiting: ") {
        (State::Waiting, plain(why))
    } else if let Some(rest) = rest.strip_prefix("ok in ") {
        (State::Ok, detail_after(rest))
    } else if let Some(rest) = rest.strip_prefix("failed in ") {
        (State::Failed, detail_after(rest))
    } else {
        return None;
    };
    Some((Stage { number, name: plain(name), state, detail }, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Stages {
        let mut stages = Stages::default();
        for line in lines {
            stages.take_line(5, line);
        }
        stages
    }

    #[test]
    fn a_stage_is_what_was_said_of_it_last() {
        let stages = heard(&[
            "croft: stage 5/11 network: started",
            "croft: stage 5/11 network: waiting: no carrier on eth0",
            "croft: stage 5/11 network: failed in 10003 ms: no carrier on eth0: check the cable",
            "croft: stage 3/11 entropy: ok in 12 ms",
        ]);
        let seen: Vec<_> =
            stages.list.iter().map(|stage| (stage.number, stage.state, stage.detail.as_str())).collect();
        assert_eq!(seen, [(3, State::Ok, ""), (5, State::Failed, "no carrier on eth0: check the cable")]);
        assert_eq!(stages.total, 11);
        assert!(!stages.all_ok());
    }

    #[test]
    fn a_record_of_the_kernel_log_is_read_with_its_severity() {
        let mut stages = Stages::default();
        assert!(stages.take_record(b"13,812,3100211,-;croft: stage 1/2 mounts: ok in 4 ms: 9 filesystems\n"));
        assert!(stages.take_record(b"3,813,3100211,-;croft: the node can't run: no disk\n SUBSYSTEM=x\n"));
        assert_eq!(stages.troubles()[0].text, "the node can't run: no disk");
        for nonsense in
            [&b""[..], b"x", b"6,1,2,-;usb 1-1: new device", b"6;croft: harmless", b";croft: x", b"\xff;\xff"]
        {
            assert!(!stages.take_record(nonsense), "{nonsense:?}");
        }
        assert!(stages.take_record(b"5,1,1,-;croft: stage 2/2 clock: ok in 1 ms"));
        assert!(stages.all_ok());
    }

    #[test]
    fn the_same_trouble_with_another_number_takes_the_place_of_the_first() {
        let mut stages = Stages::default();
        for start in 2..9 {
            stages.take_line(3, "croft: the node can't run: no farm");
            stages.take_line(
                3,
                &format!("croft: node exited with status 1 after 0.{start} s: start {start} in 4 s"),
            );
        }
        let texts: Vec<_> = stages.troubles().iter().map(|line| line.text.as_str()).collect();
        assert_eq!(
            texts,
            ["the node can't run: no farm", "node exited with status 1 after 0.8 s: start 8 in 4 s"]
        );
    }

    #[test]
    fn an_agent_that_starts_again_forgets_what_it_said() {
        let mut stages =
            heard(&["croft: stage 4/11 devices: ok in 1 ms", "croft: stage 7/11 disks: failed in 1 ms: x"]);
        stages.take_line(3, "croft: the node can't run: x");
        stages.take_line(6, "croft: stage 5/11 network: started");
        let numbers: Vec<_> = stages.list.iter().map(|stage| stage.number).collect();
        assert_eq!(numbers, [4, 5]);
        assert!(stages.troubles().is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded_and_clean() {
        let mut stages = Stages::default();
        for number in 0..200 {
            stages.take_line(5, &format!("croft: stage {number}/200 a\x1b[2Jb: started"));
            stages.take_line(3, &format!("croft: trouble {} \x1b[2J", "x".repeat(number)));
        }
        assert!(stages.list.len() <= STAGES_MAX);
        assert_eq!(stages.troubles().len(), TROUBLES_MAX);
        assert!(!format!("{stages:?}").contains("[2J"));
        assert_eq!(parse("stage 99999999999999999999/1 x: started"), None);
        assert_eq!(parse("stage 3/2 x: started"), None);
        assert_eq!(parse("stage 1/2 x: gone"), None);
    }
}
