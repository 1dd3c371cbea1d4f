//! Which messages a bot has had: what comes twice is shown once. No I/O and no clock.
//!
//! ```text
//!   message ──judge──> New ──remember──> Known from then on
//!                      Known, Old (past KEEP_MS), Early (ahead of our clock)
//! ```
//! Mailboxes keep mail for a month, and nothing older is taken, so nothing older needs to be remembered. What is
//! remembered has a bound; a sender who writes more than that loses his own oldest messages, never another's.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::message::{Message, MessageId};
use croft_protocol::{BotId, DecodeError};

/// Older messages are not taken: a day more than mailboxes keep them.
const KEEP_MS: u64 = 31 * 86_400_000;
/// How far a sender's clock may be ahead of ours.
const AHEAD_MS: u64 = 10 * 60_000;
/// Messages that are remembered of one sender, and of all. The file stays below 1 MiB whatever comes.
const OF_ONE: usize = 1_024;
const OF_ALL: usize = 12_288;
const FILE_BYTES: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    New,
    /// It was here before, or so much of its sender's that nobody can tell.
    Known,
    Old,
    Early,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Sender {
    /// What is not newer than this counts as known.
    floor_ms: u64,
    ids: BTreeSet<(u64, MessageId)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Seen {
    senders: BTreeMap<BotId, Sender>,
}

impl Seen {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        croft_protocol::decode("the list of messages that were read", bytes, FILE_BYTES)
    }

    pub(super) fn judge(&self, message: &Message, now_ms: u64) -> Verdict {
        if message.time_ms > now_ms.saturating_add(AHEAD_MS) {
            return Verdict::Early;
        }
        if message.time_ms.saturating_add(KEEP_MS) < now_ms {
            return Verdict::Old;
        }
        let known = self.senders.get(&message.from).is_some_and(|sender| {
            message.time_ms <= sender.floor_ms || sender.ids.contains(&(message.time_ms, message.id))
        });
        if known { Verdict::Known } else { Verdict::New }
    }

    pub(super) fn remember(&mut self, message: &Message) {
        self.senders.entry(message.from).or_default().ids.insert((message.time_ms, message.id));
        let over = |sender: &Sender| sender.ids.len() > OF_ONE;
        if self.senders.get(&message.from).is_some_and(over) {
            self.forget_first(message.from);
        }
        while self.senders.values().map(|sender| sender.ids.len()).sum::<usize>() > OF_ALL {
            let most = self.senders.iter().max_by_key(|(_, sender)| sender.ids.len());
            let Some(most) = most.map(|(id, _)| *id) else { return };
            self.forget_first(most);
        }
    }

    /// The oldest of a sender: from now on everything of him as old as that counts as known.
    fn forget_first(&mut self, of: BotId) {
        if let Some(sender) = self.senders.get_mut(&of)
            && let Some((time_ms, _)) = sender.ids.pop_first()
        {
            sender.floor_ms = sender.floor_ms.max(time_ms);
        }
    }

    /// What is not taken any more need not be remembered. Once for many messages.
    pub(super) fn forget_old(&mut self, now_ms: u64) {
        let oldest_ms = now_ms.saturating_sub(KEEP_MS);
        self.senders.retain(|_, sender| {
            sender.ids.retain(|(time_ms, _)| *time_ms >= oldest_ms);
            !sender.ids.is_empty() || sender.floor_ms >= oldest_ms
        });
    }
}

#[cfg(test)]
mod tests {
    use croft_protocol::PublicKey;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn message(from: u8, time_ms: u64, id: u64) -> Message {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&id.to_be_bytes());
        let (from, to) = (PublicKey([from; 32]), PublicKey([9; 32]));
        Message { id: MessageId(bytes), from, to, time_ms, text: "hello".to_owned() }
    }

    #[test]
    fn what_comes_twice_is_known_also_after_a_restart() {
        let mut seen = Seen::default();
        let one = message(1, NOW_MS, 1);
        assert_eq!(seen.judge(&one, NOW_MS), Verdict::New);
        seen.remember(&one);
        let seen = Seen::read(&croft_protocol::encode(&seen)).unwrap();
        assert_eq!(seen.judge(&one, NOW_MS + 1000), Verdict::Known);
        assert_eq!(seen.judge(&message(1, NOW_MS, 2), NOW_MS), Verdict::New);
        assert_eq!(seen.judge(&message(2, NOW_MS, 1), NOW_MS), Verdict::New);
    }

    #[test]
    fn what_is_remembered_outlives_every_replay() {
        let mut seen = Seen::default();
        let one = message(1, NOW_MS, 1);
        seen.remember(&one);
        let last_ms = NOW_MS + KEEP_MS;
        seen.forget_old(last_ms);
        assert_eq!(seen.judge(&one, last_ms), Verdict::Known);
        seen.forget_old(last_ms + 1);
        assert_eq!(seen.judge(&one, last_ms + 1), Verdict::Old);
        assert!(seen.senders.is_empty(), "what is too old is not remembered");
        assert_eq!(seen.judge(&message(1, NOW_MS + AHEAD_MS + 1, 1), NOW_MS), Verdict::Early);
    }

    #[test]
    fn whoever_floods_loses_only_his_own() {
        let mut seen = Seen::default();
        let honest = message(1, NOW_MS, 1);
        seen.remember(&honest);
        for n in 0..2 * OF_ONE as u64 {
            seen.remember(&message(2, NOW_MS + n, n));
        }
        assert_eq!(seen.judge(&honest, NOW_MS), Verdict::Known);
        assert_eq!(
            seen.judge(&message(2, NOW_MS, 0), NOW_MS),
            Verdict::Known,
            "forgotten, and not shown again"
        );
        assert_eq!(seen.judge(&message(1, NOW_MS, 2), NOW_MS), Verdict::New);
        for from in 3..=60 {
            for n in 0..300 {
                seen.remember(&message(from, NOW_MS + n, n));
            }
        }
        let all: usize = seen.senders.values().map(|sender| sender.ids.len()).sum();
        assert_eq!(all, OF_ALL);
        assert!(croft_protocol::encode(&seen).len() < FILE_BYTES);
        assert_eq!(seen.judge(&honest, NOW_MS), Verdict::Known);
    }
}
