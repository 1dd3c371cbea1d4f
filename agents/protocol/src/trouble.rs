//! What is wrong with a node, in its own words: the reasons that its screen shows, with what to do about each.
//!
//! A machine that can't sell what it could says why on the ledger, so that its farmer need not stand before it. Troubles
//! decide nothing: neither capacity nor trust depends on them. Their texts are a stranger's: printable characters only,
//! bounded, in one order.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::directory::is_printable;
use crate::limits;

/// What a trouble is with. In the order of what it costs the farmer: what has no room is cut from the end.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// No microVM can run, so nothing can be sold.
    Virtualisation,
    Memory,
    /// The data disk, or what a disk says of its health.
    Disk,
    /// A network card, or a link that the settings name.
    Network,
    Clock,
    /// The TPM, or the quote that the node wanted to register with.
    Trust,
    /// What the machine boots from.
    Medium,
    /// The node takes no releases.
    Upgrade,
    Other,
}

impl TroubleKind {
    pub const ALL: [Self; 9] = [
        Self::Virtualisation,
        Self::Memory,
        Self::Disk,
        Self::Network,
        Self::Clock,
        Self::Trust,
        Self::Medium,
        Self::Upgrade,
        Self::Other,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Virtualisation => "virtualisation",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Clock => "clock",
            Self::Trust => "trust",
            Self::Medium => "medium",
            Self::Upgrade => "upgrade",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for TroubleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One thing that is wrong. Its text is `reason: remedy`, as on the screen.
#[derive(
    Debug,
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
pub struct NodeTrouble {
    pub kind: TroubleKind,
    /// Which disk or network card, as the kernel calls it; empty where it is the whole machine.
    pub subject: String,
    pub reason: String,
    /// What a person can do about it.
    pub remedy: String,
}

impl fmt::Display for NodeTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.remedy)
    }
}

/// Troubles that the ledger does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTroubles {
    #[error("a node tells at most {limit} troubles, not {count}", limit = limits::NODE_TROUBLES)]
    Many { count: usize },
    #[error("the {what} of a trouble has at most {limit} bytes, not {len}")]
    Long { what: &'static str, limit: usize, len: usize },
    #[error("the {what} of a trouble is empty: say something")]
    Empty { what: &'static str },
    #[error("the {what} of a trouble is one line of printable characters, without {code:#x}: leave that out")]
    Unprintable { what: &'static str, code: u32 },
    #[error("the {kind} trouble of '{subject}' is told twice, or before one that it follows: sort them")]
    Order { kind: TroubleKind, subject: String },
}

/// Checks what a node tells: few, short, printable, ascending, none twice.
///
/// # Errors
/// [`InvalidTroubles`] names the culprit.
pub fn check(troubles: &[NodeTrouble]) -> Result<(), InvalidTroubles> {
    if troubles.len() > limits::NODE_TROUBLES {
        return Err(InvalidTroubles::Many { count: troubles.len() });
    }
    for trouble in troubles {
        let NodeTrouble { kind: _, subject, reason, remedy } = trouble;
        check_text("subject", subject, limits::TROUBLE_SUBJECT_BYTES)?;
        for (what, text) in [("reason", reason), ("remedy", remedy)] {
            if text.is_empty() {
                return Err(InvalidTroubles::Empty { what });
            }
            check_text(what, text, limits::TROUBLE_TEXT_BYTES)?;
        }
    }
    match troubles.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => Err(InvalidTroubles::Order { kind: pair[1].kind, subject: pair[1].subject.clone() }),
        None => Ok(()),
    }
}

fn check_text(what: &'static str, text: &str, limit: usize) -> Result<(), InvalidTroubles> {
    if text.len() > limit {
        return Err(InvalidTroubles::Long { what, limit, len: text.len() });
    }
    match text.chars().find(|c| !is_printable(*c)) {
        Some(odd) => Err(InvalidTroubles::Unprintable { what, code: u32::from(odd) }),
        None => Ok(()),
    }
}

impl NodeTrouble {
    /// One that the ledger takes, whatever the texts are: a kernel's words are anything. What is too long is cut.
    #[must_use]
    pub fn new(kind: TroubleKind, subject: &str, reason: &str, remedy: &str) -> Self {
        let some = |text: String| if text.is_empty() { "unknown".to_owned() } else { text };
        Self {
            kind,
            subject: one_line(subject, limits::TROUBLE_SUBJECT_BYTES),
            reason: some(one_line(reason, limits::TROUBLE_TEXT_BYTES)),
            remedy: some(one_line(remedy, limits::TROUBLE_TEXT_BYTES)),
        }
    }
}

/// Printable and short: what is not shows as a space, and a cut as dots.
fn one_line(text: &str, limit: usize) -> String {
    const CUT: &str = "...";
    let text: String = text.trim().chars().map(|c| if is_printable(c) { c } else { ' ' }).collect();
    if text.len() <= limit {
        return text;
    }
    let end = (0..=limit - CUT.len()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{CUT}", &text[..end])
}

/// As the ledger takes them: sorted, each once, those that cost least summed up where there are too many.
#[must_use]
pub fn bounded(mut troubles: Vec<NodeTrouble>) -> Vec<NodeTrouble> {
    troubles.sort_unstable();
    troubles.dedup();
    if troubles.len() > limits::NODE_TROUBLES {
        let more = troubles.len() + 1 - limits::NODE_TROUBLES;
        troubles.truncate(limits::NODE_TROUBLES - 1);
        let reason = format!("{more} more troubles");
        troubles.push(NodeTrouble::new(TroubleKind::Other, "", &reason, "look at the machine's screen"));
        troubles.sort_unstable();
    }
    troubles
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trouble(kind: TroubleKind, subject: &str) -> NodeTrouble {
        NodeTrouble::new(kind, subject, "it is broken", "replace it")
    }

    #[test]
    fn troubles_that_are_many_long_empty_or_unprintable_are_refused_by_name() {
        let one = trouble(TroubleKind::Disk, "sda");
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(std::slice::from_ref(&one)), Ok(()));
        let says = |troubles: &[NodeTrouble]| check(troubles).unwrap_err().to_string();
        let many: Vec<_> = (0..9).map(|n| trouble(TroubleKind::Disk, &format!("sd{n}"))).collect();
        assert_eq!(says(&many), "a node tells at most 8 troubles, not 9");
        let changed = |change: &dyn Fn(&mut NodeTrouble)| {
            let mut one = one.clone();
            change(&mut one);
            says(&[one])
        };
        assert_eq!(
            changed(&|one| one.subject = "s".repeat(65)),
            "the subject of a trouble has at most 64 bytes, not 65"
        );
        assert_eq!(
            changed(&|one| one.reason = "r".repeat(257)),
            "the reason of a trouble has at most 256 bytes, not 257"
        );
        assert_eq!(changed(&|one| one.remedy.clear()), "the remedy of a trouble is empty: say something");
        assert_eq!(
            changed(&|one| one.remedy = "first\nsecond".to_owned()),
            "the remedy of a trouble is one line of printable characters, without 0xa: leave that out"
        );
        assert_eq!(
            changed(&|one| one.subject = "sd\u{202e}a".to_owned()),
            "the subject of a trouble is one line of printable characters, without 0x202e: leave that out"
        );
    }

    #[test]
    fn troubles_have_one_order_and_none_is_told_twice() {
        let (first, second) = (trouble(TroubleKind::Memory, ""), trouble(TroubleKind::Disk, "sda"));
        assert_eq!(check(&[first.clone(), second.clone()]), Ok(()));
        let expected = "the memory trouble of '' is told twice, or before one that it follows: sort them";
        assert_eq!(check(&[second, first.clone()]).unwrap_err().to_string(), expected);
        assert_eq!(check(&[first.clone(), first]).unwrap_err().to_string(), expected);
    }

    #[test]
    fn too_many_troubles_keep_the_worst_and_say_how_many_more_there_are() {
        let mut many: Vec<_> = (0..11).map(|n| trouble(TroubleKind::Network, &format!("eth{n}"))).collect();
        many.push(trouble(TroubleKind::Virtualisation, ""));
        let told = bounded(many);
        assert_eq!(told[0].kind, TroubleKind::Virtualisation);
        assert_eq!(told.len(), limits::NODE_TROUBLES);
        assert_eq!(told.last().unwrap().to_string(), "5 more troubles: look at the machine's screen");
    }

    proptest! {
        #[test]
        fn whatever_a_node_finds_the_ledger_takes(
            found in prop::collection::vec((0_usize..9, ".{0,90}", ".{0,400}", ".{0,400}"), 0..20),
        ) {
            let troubles = found
                .iter()
                .map(|(kind, subject, reason, remedy)| {
                    NodeTrouble::new(TroubleKind::ALL[*kind], subject, reason, remedy)
                })
                .collect();
            prop_assert_eq!(check(&bounded(troubles)), Ok(()));
        }
    }
}
