//! TFTP without a socket, the reading half (RFC 1350) with block size, file size, time-out (RFC 2347 to 2349) and window
//! (RFC 7440).
//!
//! ```text
//!   read request ─> Session ─options─> OACK ──ACK 0──┐
//!                      └─no options──────────────────┴─> window of blocks ──ACK n──> next window … last ACK: done
//!                                                            ^─── a part of it lost: from there again ───'
//! ```
//! A session's memory is bounded by its block, and what it sends for one acknowledgement by its window. It must never
//! send because of an acknowledgement that says nothing new: two ends would double each packet for ever.

use std::fmt::Write as _;

/// RFC 2348.
const BLOCK_BYTES: std::ops::RangeInclusive<u16> = 8..=65_464;
/// What fits into one Ethernet frame; larger ones would be cut into fragments, which firmware loses.
const BLOCK_BYTES_MAX: u16 = 1_468;
/// As long as nobody asks for another (RFC 1350).
const BLOCK_BYTES_PLAIN: u16 = 512;
/// More in flight than this overruns the receive buffers of firmware.
const WINDOW_MAX: u16 = 16;
/// Of a machine's own wish. Longer ones would keep the server's places for those who left.
const TIMEOUT_S: std::ops::RangeInclusive<u8> = 1..=5;
/// Requests are one Ethernet frame at most, names and values shorter.
const REQUEST_BYTES: usize = 1_472;

/// Error codes of RFC 1350 and 2347 that are sent here.
const NOT_FOUND: u8 = 1;
const ILLEGAL: u8 = 4;

/// What a machine asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    pub name: String,
    block_bytes: Option<u16>,
    window: Option<u16>,
    timeout_s: Option<u8>,
    wants_size: bool,
}

/// Why a packet on the server's port opens no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("files are only read here")]
    Write,
    #[error("not a read request")]
    Malformed,
    #[error("only whole files in mode octet are served")]
    Mode,
    #[error("there is no such file")]
    NotFound,
}

impl Refusal {
    /// The packet that tells it; `None` for what may itself be an answer, since errors are never answered.
    #[must_use]
    pub fn packet(&self) -> Option<Vec<u8>> {
        let code = match self {
            Self::Malformed => return None,
            Self::Write | Self::Mode => ILLEGAL,
            Self::NotFound => NOT_FOUND,
        };
        let mut packet = vec![0, 5, 0, code];
        packet.extend_from_slice(self.to_string().as_bytes());
        packet.push(0);
        Some(packet)
    }
}

impl ReadRequest {
    /// Reads the first packet of a machine. Options that are not understood are left out, as RFC 2347 has it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn read(packet: &[u8]) -> Result<Self, Refusal> {
        let words = match packet {
            [0, 1, words @ .., 0] if packet.len() <= REQUEST_BYTES => words,
            [0, 2, ..] => return Err(Refusal::Write),
            _ => return Err(Refusal::Malformed),
        };
        let words: Result<Vec<&str>, _> = words.split(|byte| *byte == 0).map(std::str::from_utf8).collect();
        let words = words.map_err(|_| Refusal::Malformed)?;
        let [name, mode, options @ ..] = &words[..] else { return Err(Refusal::Malformed) };
        if !mode.eq_ignore_ascii_case("octet") {
            return Err(Refusal::Mode);
        }
        let mut request = Self {
            name: (*name).to_owned(),
            block_bytes: None,
            window: None,
            timeout_s: None,
            wants_size: false,
        };
        for pair in options.as_chunks::<2>().0 {
            let [option, value] = pair;
            match option.to_ascii_lowercase().as_str() {
                "blksize" => {
                    let asked = value.parse().ok().filter(|bytes| BLOCK_BYTES.contains(bytes));
                    request.block_bytes = asked.map(|bytes: u16| bytes.min(BLOCK_BYTES_MAX));
                }
                "windowsize" => {
                    let asked = value.parse().ok().filter(|blocks| *blocks > 0);
                    request.window = asked.map(|blocks: u16| blocks.min(WINDOW_MAX));
                }
                "timeout" => {
                    request.timeout_s = value.parse().ok().filter(|seconds| TIMEOUT_S.contains(seconds));
                }
                "tsize" => request.wants_size = true,
                _ => {}
            }
        }
        Ok(request)
    }
}

/// What to do after a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send [`Session::window`].
    Send,
    /// Nothing that was not said before.
    Wait,
    Done,
    /// The machine gave up, and says why.
    Failed(String),
}

/// One file on its way to one machine.
#[derive(Debug)]
pub struct Session {
    block_bytes: u64,
    window: u64,
    /// How long to wait before what was sent last is sent again; the machine may ask for its own.
    pub timeout_s: Option<u8>,
    /// Number of blocks, with the last one that is shorter than the others, or empty.
    blocks: u64,
    acknowledged: u64,
    /// The last block that was sent.
    sent: u64,
    options: Option<Vec<u8>>,
}

impl Session {
    #[must_use]
    pub fn new(request: &ReadRequest, file_bytes: u64) -> Self {
        let block_bytes = u64::from(request.block_bytes.unwrap_or(BLOCK_BYTES_PLAIN));
        let mut options = String::new();
        let mut agree = |name: &str, value: Option<u64>| {
            if let Some(value) = value {
                let _ = write!(options, "{name}\0{value}\0");
            }
        };
        agree("blksize", request.block_bytes.map(u64::from));
        agree("windowsize", request.window.map(u64::from));
        agree("timeout", request.timeout_s.map(u64::from));
        agree("tsize", request.wants_size.then_some(file_bytes));
        Self {
            block_bytes,
            window: u64::from(request.window.unwrap_or(1)),
            timeout_s: request.timeout_s,
            blocks: file_bytes / block_bytes + 1,
            acknowledged: 0,
            sent: 0,
            options: (!options.is_empty()).then(|| [b"\0\x06", options.as_bytes()].concat()),
        }
    }

    /// The packet that agrees to options; it is sent first, and again until it is acknowledged.
    #[must_use]
    pub fn options(&self) -> Option<&[u8]> {
        self.options.as_deref()
    }

    /// The blocks to send now: number, first byte and length of each.
    pub fn window(&mut self) -> impl Iterator<Item = (u16, u64, usize)> + use<> {
        let (first, last) = (self.acknowledged + 1, (self.acknowledged + self.window).min(self.blocks));
        self.sent = self.sent.max(last);
        let bytes = self.block_bytes;
        // Numbers begin anew after 65,535; everybody who has large files does it so.
        (first..=last).map(move |block| (block as u16, (block - 1) * bytes, bytes as usize))
    }

    /// A packet of the machine.
    pub fn take(&mut self, packet: &[u8]) -> Next {
        match packet {
            [0, 4, high, low] => self.acknowledge(u16::from_be_bytes([*high, *low])),
            [0, 5, _, code, words @ ..] => {
                let text = String::from_utf8_lossy(words);
                let text: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
                Next::Failed(format!("error {code}: {text}"))
            }
            _ => Next::Wait,
        }
    }

    fn acknowledge(&mut self, number: u16) -> Next {
        if self.options.is_some() {
            // Only the answer to the options counts now.
            if number != 0 {
                return Next::Wait;
            }
            self.options = None;
            return Next::Send;
        }
        let newer = u64::from(number.wrapping_sub(self.acknowledged as u16));
        let block = self.acknowledged + newer;
        if block > self.sent {
            return Next::Wait;
        }
        // Firmware says the same number for each block that it did not expect: one answer to each would be a window for
        // each block of the one before. Where the first block of a window was lost, the caller's clock sends it again.
        if newer == 0 {
            return Next::Wait;
        }
        self.acknowledged = block;
        if block == self.blocks { Next::Done } else { Next::Send }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(words: &[&str]) -> Result<ReadRequest, Refusal> {
        let mut packet = vec![0, 1];
        for word in words {
            packet.extend_from_slice(word.as_bytes());
            packet.push(0);
        }
        ReadRequest::read(&packet)
    }

    fn ack(number: u16) -> [u8; 4] {
        let [high, low] = number.to_be_bytes();
        [0, 4, high, low]
    }

    /// Runs a session against a machine that acknowledges each window; the blocks that it got.
    fn through(mut session: Session) -> Vec<(u16, u64, usize)> {
        let mut got = Vec::new();
        if session.options().is_some() {
            assert_eq!(session.take(&ack(0)), Next::Send);
        }
        loop {
            got.extend(session.window());
            match session.take(&ack(got.last().unwrap().0)) {
                Next::Done => return got,
                Next::Send => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_file_goes_out_in_blocks_and_the_last_one_is_short_or_empty() {
        let plain = request(&["croft.efi", "octet"]).unwrap();
        let session = Session::new(&plain, 1_024);
        assert_eq!(session.options(), None);
        assert_eq!(through(session), [(1, 0, 512), (2, 512, 512), (3, 1_024, 512)]);
        assert_eq!(through(Session::new(&plain, 0)), [(1, 0, 512)]);
        let large = request(&["f", "OCTET", "blksize", "1024", "WindowSize", "4"]).unwrap();
        let blocks = through(Session::new(&large, 100 << 20));
        assert_eq!(blocks.len(), (100 << 10) + 1);
        assert_eq!(blocks[65_535].0, 0, "numbers begin anew");
        assert_eq!(blocks[65_535].1, 65_535 * 1_024);
    }

    #[test]
    fn options_are_agreed_to_within_bounds_and_others_left_out() {
        let options = |words: &[&str]| {
            let session = Session::new(&request(words).unwrap(), 9_000);
            String::from_utf8(session.options().unwrap_or_default().to_vec()).unwrap()
        };
        let asked = ["f", "octet", "tsize", "0", "blksize", "1408", "windowsize", "4", "multicast", "x"];
        assert_eq!(options(&asked), "\0\u{6}blksize\x001408\0windowsize\x004\0tsize\09000\0");
        let much = ["f", "octet", "blksize", "65464", "windowsize", "65535"];
        assert_eq!(options(&much), "\0\u{6}blksize\x001468\0windowsize\x0016\0");
        assert_eq!(options(&["f", "octet", "blksize", "7", "windowsize", "0", "timeout", "0"]), "");
        assert_eq!(options(&["f", "octet", "timeout", "255"]), "");
        assert_eq!(options(&["f", "octet", "timeout", "5"]), "\0\u{6}timeout\x005\0");
    }

    #[test]
    fn a_window_is_sent_again_from_what_was_lost_and_never_because_of_an_echo() {
        let mut session = Session::new(&request(&["f", "octet", "windowsize", "4"]).unwrap(), 512 * 20);
        assert_eq!(session.take(&ack(0)), Next::Send);
        assert_eq!(session.window().count(), 4);
        assert_eq!(session.take(&ack(2)), Next::Send);
        assert_eq!(session.window().map(|(block, ..)| block).collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert_eq!(session.take(&ack(2)), Next::Wait, "block 3 was lost, or each block after 2 came twice");
        assert_eq!(session.take(&ack(1)), Next::Wait, "an old one");
        assert_eq!(session.take(&ack(9)), Next::Wait, "one that was never sent");

        let mut one = Session::new(&request(&["f", "octet"]).unwrap(), 2_000);
        assert_eq!(one.window().count(), 1);
        assert_eq!(one.take(&ack(1)), Next::Send);
        assert_eq!(one.window().count(), 1);
        assert_eq!(one.take(&ack(1)), Next::Wait, "the sorcerer's apprentice");
        assert_eq!(
            one.take(b"\0\x05\0\x08option\x1b refused\0"),
            Next::Failed("error 8: option refused".into())
        );
    }

    /// As EDK2 does it: a window is acknowledged at its end, and each block that was not expected by the last good one.
    #[test]
    fn a_packet_that_came_twice_or_never_does_not_multiply_those_after_it() {
        for (lost, twice) in
            [(None, Some(3)), (None, Some(0)), (Some(0), None), (Some(2), None), (Some(5), Some(1))]
        {
            let mut session = Session::new(&request(&["f", "octet", "windowsize", "4"]).unwrap(), 512 * 40);
            assert_eq!(session.take(&ack(0)), Next::Send);
            let (mut expected, mut in_window, mut sent) = (1, 0, 0_usize);
            let mut wire: std::collections::VecDeque<u16> =
                session.window().map(|(block, ..)| block).collect();
            let done = loop {
                let Some(block) = wire.pop_front() else {
                    // Nothing comes any more: the clock.
                    wire.extend(session.window().map(|(block, ..)| block));
                    continue;
                };
                sent += 1;
                assert!(sent < 200, "a storm: {sent} packets for 41 blocks");
                if lost.is_some_and(|at| at + 1 == sent) {
                    continue;
                }
                let copies = if twice.is_some_and(|at| at + 1 == sent) { 2 } else { 1 };
                let mut next = Next::Wait;
                for _ in 0..copies {
                    let expects = block == expected;
                    if expects {
                        (expected, in_window) = (expected + 1, in_window + 1);
                    }
                    if !expects || in_window == 4 || expected == 42 {
                        in_window = 0;
                        next = match session.take(&ack(expected - 1)) {
                            Next::Wait => next,
                            other => other,
                        };
                    }
                }
                match next {
                    Next::Done => break true,
                    Next::Send => wire.extend(session.window().map(|(block, ..)| block)),
                    Next::Wait => {}
                    Next::Failed(why) => panic!("{why}"),
                }
            };
            // A packet that comes twice makes others come twice, which is what RFC 7440 costs, and never more often.
            assert!(done && sent <= 2 * 41 + 8, "{sent} packets for 41 blocks");
        }
    }

    #[test]
    fn whatever_else_comes_is_refused_or_left_without_an_answer() {
        assert_eq!(ReadRequest::read(b"\0\x02f\0octet\0"), Err(Refusal::Write));
        assert_eq!(request(&["f", "netascii"]), Err(Refusal::Mode));
        assert_eq!(Refusal::NotFound.packet().unwrap(), b"\0\x05\0\x01there is no such file\0");
        for malformed in
            [&b""[..], b"\0\x01", b"\0\x01f\0octet", b"\0\x01f\0", b"\0\x03\0\x01x\0", b"\0\x01\xff\0octet\0"]
        {
            assert_eq!(ReadRequest::read(malformed), Err(Refusal::Malformed), "{malformed:?}");
        }
        assert_eq!(request(&[&"x".repeat(2_000), "octet"]), Err(Refusal::Malformed));
        assert_eq!(Refusal::Malformed.packet(), None, "errors are never answered");
    }
}
