//! What the guest still has to tell its host: a bounded queue, and the frames on the way that may have to be
//! told again. No I/O, no clock.
//!
//! ```text
//! push_log, push ──> queue ──next_frame()──> on the way ──ack()──> gone
//!                                             │    ▲
//!                                             └────┘ reconnected(): written again first, with old numbers
//! ```
//!
//! Must never grow without bound and never block whoever writes into it: a slow host costs log lines, which
//! are counted and reported, but never stalls the workload for ever.

use std::collections::VecDeque;

use crate::wire::{
    GuestEnvelope, GuestFrame, LogChunk, MAX_GUEST_FRAME_BYTES, MAX_LOG_CHUNK_BYTES, Stream, WINDOW_BYTES,
    WINDOW_FRAMES, encode,
};

/// Control frames that may wait. Health reports and pongs replace older ones of their kind, so this is only
/// reached by a fault; the oldest is dropped then.
const MAX_CONTROL_FRAMES: usize = 64;

/// See the module's header.
#[derive(Debug)]
pub struct Outbox {
    queue: VecDeque<GuestFrame>,
    log_bytes: usize,
    max_log_bytes: usize,
    control_frames: usize,
    dropped_chunks: u64,
    dropped_bytes: u64,
    next_sequence: u64,
    on_the_way: VecDeque<(u64, Vec<u8>)>,
    bytes_on_the_way: usize,
    /// How many of `on_the_way` still have to be written to the present connection.
    to_repeat: usize,
    last_number: u64,
}

impl Outbox {
    /// `max_log_bytes` bounds the output that waits for the host.
    pub fn new(max_log_bytes: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            log_bytes: 0,
            max_log_bytes,
            control_frames: 0,
            dropped_chunks: 0,
            dropped_bytes: 0,
            next_sequence: 0,
            on_the_way: VecDeque::new(),
            bytes_on_the_way: 0,
            to_repeat: 0,
            last_number: 0,
        }
    }

    /// Adds output, at most [`MAX_LOG_CHUNK_BYTES`] at once; makes room by dropping the oldest output. Small
    /// pieces that wait become one: a frame costs much more than its bytes.
    pub fn push_log(&mut self, stream: Stream, time_ms: u64, bytes: &[u8]) {
        self.log_bytes += bytes.len();
        match self.queue.back_mut() {
            Some(GuestFrame::Log(last))
                if last.stream == stream && last.bytes.len() + bytes.len() <= MAX_LOG_CHUNK_BYTES =>
            {
                last.bytes.extend_from_slice(bytes);
            }
            _ => {
                let sequence = self.next_sequence;
                self.next_sequence += 1;
                let chunk = LogChunk { stream, sequence, time_ms, bytes: bytes.to_vec() };
                self.queue.push_back(GuestFrame::Log(chunk));
            }
        }
        while self.log_bytes > self.max_log_bytes {
            let Some(at) = self.queue.iter().position(|frame| matches!(frame, GuestFrame::Log(_))) else {
                break;
            };
            if let Some(GuestFrame::Log(oldest)) = self.queue.remove(at) {
                self.log_bytes -= oldest.bytes.len();
                self.dropped_chunks += 1;
                self.dropped_bytes += oldest.bytes.len() as u64;
            }
        }
        debug_assert!(self.log_bytes <= self.max_log_bytes);
    }

    /// Adds anything but output. A newer health report of a check, or pong, replaces one that still waits.
    pub fn push(&mut self, frame: GuestFrame) {
        let same = |old: &GuestFrame| match (old, &frame) {
            (GuestFrame::Health(old), GuestFrame::Health(new)) => old.check == new.check,
            (GuestFrame::Pong { .. }, GuestFrame::Pong { .. }) => true,
            _ => false,
        };
        if let Some(at) = self.queue.iter().position(same) {
            self.queue.remove(at);
            self.control_frames -= 1;
        }
        if self.control_frames >= MAX_CONTROL_FRAMES
            && let Some(at) = self.queue.iter().position(|old| !matches!(old, GuestFrame::Log(_)))
        {
            self.queue.remove(at);
            self.control_frames -= 1;
        }
        self.control_frames += 1;
        self.queue.push_back(frame);
    }

    /// The next encoded frame to write, or `None` when nothing waits or the window is full.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        if self.to_repeat > 0 {
            let at = self.on_the_way.len() - self.to_repeat;
            self.to_repeat -= 1;
            return Some(self.on_the_way[at].1.clone());
        }
        if self.on_the_way.len() >= WINDOW_FRAMES || self.bytes_on_the_way >= WINDOW_BYTES {
            return None;
        }
        let frame = self.take_frame()?;
        self.last_number += 1;
        let bytes = encode(&GuestEnvelope { number: self.last_number, frame }, MAX_GUEST_FRAME_BYTES);
        self.bytes_on_the_way += bytes.len();
        self.on_the_way.push_back((self.last_number, bytes.clone()));
        Some(bytes)
    }

    fn take_frame(&mut self) -> Option<GuestFrame> {
        if self.dropped_chunks > 0 {
            // What was dropped is always older than what waits.
            let frame = GuestFrame::DroppedLogs { chunks: self.dropped_chunks, bytes: self.dropped_bytes };
            self.dropped_chunks = 0;
            self.dropped_bytes = 0;
            return Some(frame);
        }
        let frame = self.queue.pop_front()?;
        match &frame {
            GuestFrame::Log(chunk) => self.log_bytes -= chunk.bytes.len(),
            _ => self.control_frames -= 1,
        }
        Some(frame)
    }

    /// The host has handled everything up to `number`.
    pub fn ack(&mut self, number: u64) {
        while self.on_the_way.front().is_some_and(|(first, _)| *first <= number) {
            if let Some((_, bytes)) = self.on_the_way.pop_front() {
                self.bytes_on_the_way -= bytes.len();
            }
        }
        self.to_repeat = self.to_repeat.min(self.on_the_way.len());
    }

    /// A new connection stands: what was on the way goes out again first.
    pub fn reconnected(&mut self) {
        self.to_repeat = self.on_the_way.len();
    }

    /// True when the host has handled everything.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.on_the_way.is_empty() && self.dropped_chunks == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{HealthReport, HealthState, read_frame};

    /// Alternates streams, so that pieces stay apart.
    fn log(outbox: &mut Outbox, count: u64, bytes: usize) {
        for number in 0..count {
            let stream = if number % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
            outbox.push_log(stream, 0, &vec![b'x'; bytes]);
        }
    }

    fn decode(bytes: &[u8]) -> GuestEnvelope {
        read_frame(&mut &*bytes, MAX_GUEST_FRAME_BYTES).unwrap()
    }

    fn health(check: &str, state: HealthState) -> GuestFrame {
        GuestFrame::Health(HealthReport { check: check.into(), state, detail: String::new() })
    }

    #[test]
    fn a_slow_host_loses_the_oldest_output_and_learns_how_much() {
        let mut outbox = Outbox::new(1000);
        log(&mut outbox, 15, 100);
        let first = decode(&outbox.next_frame().unwrap());
        assert_eq!(first.frame, GuestFrame::DroppedLogs { chunks: 5, bytes: 500 });
        let GuestFrame::Log(second) = decode(&outbox.next_frame().unwrap()).frame else {
            panic!("a log was expected")
        };
        assert_eq!(second.sequence, 5, "the oldest that is left comes next");
    }

    #[test]
    fn dropping_output_never_drops_an_exit() {
        let mut outbox = Outbox::new(100);
        outbox.push(GuestFrame::Started { boot_ms: 1, pid: 2 });
        log(&mut outbox, 1000, 60);
        let mut frames = Vec::new();
        while let Some(bytes) = outbox.next_frame() {
            frames.push(decode(&bytes).frame);
        }
        assert!(frames.contains(&GuestFrame::Started { boot_ms: 1, pid: 2 }), "{frames:?}");
    }

    #[test]
    fn the_window_closes_without_acks_and_opens_with_them() {
        let mut outbox = Outbox::new(1 << 20);
        log(&mut outbox, 100, 8192);
        let mut sent = 0;
        let mut last = 0;
        while let Some(bytes) = outbox.next_frame() {
            sent += bytes.len();
            last = decode(&bytes).number;
        }
        assert!(
            (WINDOW_BYTES..WINDOW_BYTES + MAX_GUEST_FRAME_BYTES).contains(&sent),
            "{sent} bytes on the way"
        );
        outbox.ack(last);
        assert!(outbox.next_frame().is_some());
    }

    #[test]
    fn many_small_frames_close_the_window_too() {
        let mut outbox = Outbox::new(1 << 20);
        log(&mut outbox, 1000, 1);
        let sent = std::iter::from_fn(|| outbox.next_frame()).count();
        assert_eq!(sent, WINDOW_FRAMES);
    }

    #[test]
    fn what_was_on_the_way_is_sent_again_with_its_old_numbers() {
        let mut outbox = Outbox::new(1000);
        log(&mut outbox, 3, 10);
        let first: Vec<u64> = (0..2).map(|_| decode(&outbox.next_frame().unwrap()).number).collect();
        assert_eq!(first, [1, 2]);
        outbox.ack(1);
        outbox.reconnected();
        let again: Vec<u64> = std::iter::from_fn(|| outbox.next_frame()).map(|b| decode(&b).number).collect();
        assert_eq!(again, [2, 3]);
        outbox.ack(3);
        assert!(outbox.is_empty());
    }

    #[test]
    fn small_pieces_that_wait_become_one_and_nothing_is_lost() {
        let mut outbox = Outbox::new(1 << 20);
        for number in 0..100 {
            outbox.push_log(Stream::Stdout, number, format!("line {number}\n").as_bytes());
        }
        outbox.push_log(Stream::Stderr, 100, b"oops");
        outbox.push_log(Stream::Stdout, 101, &[b'x'; MAX_LOG_CHUNK_BYTES]);
        let mut frames = Vec::new();
        while let Some(bytes) = outbox.next_frame() {
            let GuestFrame::Log(chunk) = decode(&bytes).frame else { panic!("a log was expected") };
            frames.push((chunk.sequence, chunk.stream, chunk.bytes.len()));
        }
        let lines: usize = (0..100).map(|number| format!("line {number}\n").len()).sum();
        assert_eq!(
            frames,
            [(0, Stream::Stdout, lines), (1, Stream::Stderr, 4), (2, Stream::Stdout, MAX_LOG_CHUNK_BYTES)]
        );
    }

    #[test]
    fn a_newer_verdict_replaces_one_that_still_waits() {
        let mut outbox = Outbox::new(1000);
        outbox.push(health("a", HealthState::Starting));
        outbox.push(health("b", HealthState::Healthy));
        outbox.push(health("a", HealthState::Unhealthy));
        let frames: Vec<GuestFrame> =
            std::iter::from_fn(|| outbox.next_frame()).map(|b| decode(&b).frame).collect();
        assert_eq!(frames, [health("b", HealthState::Healthy), health("a", HealthState::Unhealthy)]);
    }

    #[derive(Debug, Clone)]
    enum Action {
        Log(usize),
        Pong(u64),
        Send,
        Ack(u64),
        Reconnect,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (0usize..3000).prop_map(Action::Log),
            any::<u64>().prop_map(Action::Pong),
            Just(Action::Send),
            (0u64..50).prop_map(Action::Ack),
            Just(Action::Reconnect),
        ]
    }

    proptest! {
        #[test]
        fn bounds_hold_and_numbers_are_gapless_whatever_happens(actions in prop::collection::vec(action(), 1..200)) {
            let mut outbox = Outbox::new(10_000);
            let mut highest = 0;
            for action in actions {
                match action {
                    Action::Log(bytes) => outbox.push_log(Stream::Stdout, 0, &vec![b'x'; bytes]),
                    Action::Pong(nonce) => outbox.push(GuestFrame::Pong { nonce }),
                    Action::Send => {
                        if let Some(bytes) = outbox.next_frame() {
                            let number = decode(&bytes).number;
                            prop_assert!(number <= highest + 1, "number {number} after {highest}");
                            highest = highest.max(number);
                        }
                    }
                    Action::Ack(back) => outbox.ack(highest.saturating_sub(back)),
                    Action::Reconnect => outbox.reconnected(),
                }
                prop_assert!(outbox.log_bytes <= 10_000);
                prop_assert!(outbox.on_the_way.len() <= WINDOW_FRAMES);
                prop_assert!(outbox.bytes_on_the_way < WINDOW_BYTES + MAX_GUEST_FRAME_BYTES);
                prop_assert_eq!(outbox.bytes_on_the_way, outbox.on_the_way.iter().map(|(_, b)| b.len()).sum::<usize>());
            }
        }
    }
}
