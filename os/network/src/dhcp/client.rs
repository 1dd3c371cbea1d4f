//! DHCPv4 client as a state machine (RFC 2131 figure 5). No socket, no clock, no randomness of its own: packets, the
//! time since any fixed moment and a seed go in; messages, events and the next deadline come out.
//!
//! ```text
//!            carrier                 OFFER                 ACK
//!  Stopped ----------> Selecting ----------> Requesting ----------> Bound --T1--> Renewing --T2--> Rebinding
//!     ^  \                ^  ^                 |                    ^ ^ ^             |                |   |
//!     |   \ lease kept    |  '---- Paused <----' NAK, silence       | | '----- ACK ---'------ ACK -----'   |
//!     |    '-> Rebooting -'           ^                             | |                                    |
//!     |          |  \ silence         '-------------- NAK ----------|-'<-- lease ran out (Lost) -----------'
//!     |          |   '------> Selecting                             |
//!     |          '------------------- ACK --------------------------'
//!   no carrier, from every state; the lease runs on until it ends
//! ```
//!
//! Never keeps an address past its lease, never stops asking, and never lets a server make it send faster than the
//! retry table allows.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::dhcp::message::{Answer, Ignored, Kind, Lease, LeaseTimes, Request, parse};
use crate::mac::MacAddr;

/// Time since any fixed moment; only differences count.
pub(crate) type Time = Duration;

/// First pause between two messages. RFC 2131 4.1 recommends 4 s for slow wires of 1997; a lost packet would then
/// cost 4 s of every boot.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Last pause: a network without DHCP costs one packet a minute.
const RETRY_MAX: Duration = Duration::from_secs(64);
/// Messages to a server that made an offer before it counts as dead.
const REQUEST_ATTEMPTS: u32 = 4;
/// Messages about a lease from before the carrier went, before we start afresh.
const REBOOT_ATTEMPTS: u32 = 2;
/// RFC 2131 4.4.5: the shortest pause between two requests to extend a lease.
const EXTEND_RETRY_MIN: Duration = Duration::from_secs(60);
/// After a refusal; doubles with each one in a row up to `RETRY_MAX`, so that a refusing server is no loop.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Messages and events that wait to be fetched. The driver fetches after each call; more would be a leak.
const QUEUE_LEN_MAX: usize = 8;

#[derive(Debug)]
enum State {
    Stopped,
    /// Waits before the next DISCOVER.
    Paused {
        until: Time,
    },
    Selecting {
        retry: Retry,
    },
    Requesting {
        offer: Lease,
        retry: Retry,
        sent: Time,
    },
    Rebooting {
        address: Ipv4Addr,
        retry: Retry,
        sent: Time,
    },
    Bound,
    Renewing {
        retry_at: Time,
        sent: Time,
    },
    Rebinding {
        retry_at: Time,
        sent: Time,
    },
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Paused { .. } => "paused",
            Self::Selecting { .. } => "selecting",
            Self::Requesting { .. } => "requesting",
            Self::Rebooting { .. } => "rebooting",
            Self::Bound => "bound",
            Self::Renewing { .. } => "renewing",
            Self::Rebinding { .. } => "rebinding",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    attempt: u32,
    at: Time,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    renew_at: Option<Time>,
    rebind_at: Option<Time>,
    expire_at: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Broadcast,
    /// From our address to the server, through the kernel's stack.
    Server {
        from: Ipv4Addr,
        server: Ipv4Addr,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transmit {
    pub(crate) payload: Vec<u8>,
    pub(crate) to: Destination,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Granted or extended: put this on the link, and nothing else.
    Granted(Lease),
    /// Take the address off the link now.
    Lost(LostReason),
    /// A server said no to something that we don't hold yet.
    Refused { server: Option<Ipv4Addr>, message: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LostReason {
    Expired,
    Refused { server: Option<Ipv4Addr>, message: String },
}

#[derive(Debug)]
pub(crate) struct Client {
    mac: MacAddr,
    hostname: Option<String>,
    random: u64,
    state: State,
    held: Option<Held>,
    xid: u32,
    /// When the present search began; `secs` of our messages.
    began: Time,
    refusals: u32,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Client {
    /// `seed` must differ between machines that boot together: it makes transaction ids and jitter.
    pub(crate) fn new(mac: MacAddr, hostname: Option<String>, seed: u64) -> Self {
        Self {
            mac,
            hostname,
            random: seed,
            state: State::Stopped,
            held: None,
            xid: 0,
            began: Time::ZERO,
            refusals: 0,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// The link has carrier. With a lease from before, asks first whether it is still good on this wire.
    pub(crate) fn start(&mut self, now: Time) {
        self.expire(now);
        self.began = now;
        self.refusals = 0;
        self.xid = self.next_random() as u32;
        match &self.held {
            Some(held) => {
                let address = held.lease.address.addr();
                self.state = State::Rebooting { address, retry: Retry { attempt: 0, at: now }, sent: now };
                self.handle_timeout(now);
            }
            None => self.select(now),
        }
    }

    /// The link lost carrier: says nothing until the next `start`. A held lease runs on.
    pub(crate) fn stop(&mut self) {
        self.state = State::Stopped;
        self.transmits.clear();
    }

    /// A packet to UDP port 68. `Err` says why it changed nothing.
    pub(crate) fn handle_packet(&mut self, now: Time, bytes: &[u8]) -> Result<(), Ignored> {
        if matches!(self.state, State::Stopped | State::Paused { .. } | State::Bound) {
            return Err(Ignored::Unexpected { what: "packet", state: self.state.name() });
        }
        match parse(bytes, self.mac, self.xid)? {
            Answer::Offer(lease) => self.handle_offer(now, lease),
            Answer::Ack(lease) => self.handle_ack(now, lease),
            Answer::Nak { server, message } => self.handle_nak(now, server, message),
        }
    }

    fn handle_offer(&mut self, now: Time, offer: Lease) -> Result<(), Ignored> {
        let State::Selecting { .. } = self.state else {
            return Err(Ignored::Unexpected { what: "offer", state: self.state.name() });
        };
        self.state = State::Requesting { offer, retry: Retry { attempt: 0, at: now }, sent: now };
        self.handle_timeout(now);
        Ok(())
    }

    fn handle_ack(&mut self, now: Time, lease: Lease) -> Result<(), Ignored> {
        let held_address = self.held.as_ref().map(|held| held.lease.address.addr());
        let (asked, server, sent) = match &self.state {
            State::Requesting { offer, sent, .. } => (Some(offer.address.addr()), Some(offer.server), *sent),
            State::Rebooting { address, sent, .. } => (Some(*address), None, *sent),
            State::Renewing { sent, .. } | State::Rebinding { sent, .. } => (held_address, None, *sent),
            State::Stopped | State::Paused { .. } | State::Selecting { .. } | State::Bound => {
                return Err(Ignored::Unexpected { what: "grant", state: self.state.name() });
            }
        };
        let got = lease.address.addr();
        if let Some(asked) = server.filter(|asked| *asked != lease.server) {
            return Err(Ignored::OtherServer { asked, got: lease.server });
        }
        if let Some(asked) = asked.filter(|asked| *asked != got) {
            return Err(Ignored::OtherAddress { asked, got });
        }
        let at = |pick: fn(&LeaseTimes) -> Duration| {
            lease.times.as_ref().map(|times| sent.saturating_add(pick(times)))
        };
        let held = Held {
            renew_at: at(|times| times.renew),
            rebind_at: at(|times| times.rebind),
            expire_at: at(|times| times.expire),
            lease: lease.clone(),
        };
        if held.expire_at.is_some_and(|end| end <= now) {
            return Err(Ignored::Unexpected {
                what: "grant that has already run out",
                state: self.state.name(),
            });
        }
        self.held = Some(held);
        self.state = State::Bound;
        self.refusals = 0;
        self.transmits.clear();
        self.push_event(Event::Granted(lease));
        Ok(())
    }

    fn handle_nak(&mut self, now: Time, server: Option<Ipv4Addr>, message: String) -> Result<(), Ignored> {
        match &self.state {
            State::Requesting { offer, .. } => {
                if let Some(got) = server.filter(|got| *got != offer.server) {
                    return Err(Ignored::OtherServer { asked: offer.server, got });
                }
                self.push_event(Event::Refused { server, message });
            }
            State::Rebooting { .. } | State::Renewing { .. } | State::Rebinding { .. } => {
                self.held = None;
                self.push_event(Event::Lost(LostReason::Refused { server, message }));
            }
            State::Stopped | State::Paused { .. } | State::Selecting { .. } | State::Bound => {
                return Err(Ignored::Unexpected { what: "refusal", state: self.state.name() });
            }
        }
        let pause = (REFUSED_PAUSE * (1 << self.refusals.min(6))).min(RETRY_MAX);
        self.refusals += 1;
        self.transmits.clear();
        self.state = State::Paused { until: now.saturating_add(pause) };
        Ok(())
    }

    /// Does what is due. Harmless when called early.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        self.expire(now);
        match &mut self.state {
            State::Stopped => {}
            State::Paused { until } => {
                if *until <= now {
                    self.select(now);
                }
            }
            State::Selecting { retry } => {
                if retry.at <= now {
                    let retry = *retry;
                    self.send(now, Kind::Discover, Destination::Broadcast);
                    let retry = self.next_retry(now, retry);
                    self.state = State::Selecting { retry };
                }
            }
            State::Requesting { .. } => self.timeout_requesting(now),
            State::Rebooting { .. } => self.timeout_rebooting(now),
            State::Bound => {
                if self.held.as_ref().and_then(|held| held.renew_at).is_some_and(|at| at <= now) {
                    self.xid = self.next_random() as u32;
                    self.began = now;
                    self.state = State::Renewing { retry_at: now, sent: now };
                    self.timeout_extending(now);
                }
            }
            State::Renewing { .. } | State::Rebinding { .. } => self.timeout_extending(now),
        }
    }

    fn timeout_requesting(&mut self, now: Time) {
        let State::Requesting { offer, retry, .. } = &self.state else { return };
        if retry.at > now {
            return;
        }
        if retry.attempt >= REQUEST_ATTEMPTS {
            // The server that offered is gone; another one may be there.
            self.select(now);
            return;
        }
        let (offer, retry) = (offer.clone(), *retry);
        let kind = Kind::Select { server: offer.server, address: offer.address.addr() };
        self.send(now, kind, Destination::Broadcast);
        let retry = self.next_retry(now, retry);
        self.state = State::Requesting { offer, retry, sent: now };
    }

    fn timeout_rebooting(&mut self, now: Time) {
        let State::Rebooting { address, retry, .. } = self.state else { return };
        if retry.at > now {
            return;
        }
        if retry.attempt >= REBOOT_ATTEMPTS {
            self.select(now);
            return;
        }
        self.send(now, Kind::Reboot { address }, Destination::Broadcast);
        let retry = self.next_retry(now, retry);
        self.state = State::Rebooting { address, retry, sent: now };
    }

    fn timeout_extending(&mut self, now: Time) {
        let Some(held) = &self.held else { return };
        let (State::Renewing { retry_at, .. } | State::Rebinding { retry_at, .. }) = self.state else {
            return;
        };
        let (Some(rebind_at), Some(expire_at)) = (held.rebind_at, held.expire_at) else { return };
        if retry_at > now {
            return;
        }
        let (from, server) = (held.lease.address.addr(), held.lease.server);
        let kind = Kind::Extend { address: from };
        // Half of what is left, but not under a minute (RFC 2131 4.4.5), and always awake for the next phase.
        let next =
            |end: Time| now.saturating_add((end.saturating_sub(now) / 2).max(EXTEND_RETRY_MIN)).min(end);
        if now < rebind_at {
            self.send(now, kind, Destination::Server { from, server });
            self.state = State::Renewing { retry_at: next(rebind_at), sent: now };
        } else {
            self.send(now, kind, Destination::Broadcast);
            self.state = State::Rebinding { retry_at: next(expire_at), sent: now };
        }
    }

    /// Ends the lease when its time is over, whatever else goes on.
    fn expire(&mut self, now: Time) {
        if self.held.as_ref().and_then(|held| held.expire_at).is_none_or(|at| at > now) {
            return;
        }
        self.held = None;
        self.push_event(Event::Lost(LostReason::Expired));
        if matches!(
            self.state,
            State::Bound | State::Renewing { .. } | State::Rebinding { .. } | State::Rebooting { .. }
        ) {
            self.select(now);
        }
    }

    fn select(&mut self, now: Time) {
        self.xid = self.next_random() as u32;
        self.began = now;
        self.transmits.clear();
        self.state = State::Selecting { retry: Retry { attempt: 0, at: now } };
        self.handle_timeout(now);
    }

    fn send(&mut self, now: Time, kind: Kind, to: Destination) {
        let secs = u16::try_from(now.saturating_sub(self.began).as_secs()).unwrap_or(u16::MAX);
        let request =
            Request { kind, xid: self.xid, secs, mac: self.mac, hostname: self.hostname.as_deref() };
        if self.transmits.len() == QUEUE_LEN_MAX {
            self.transmits.pop_front();
        }
        self.transmits.push_back(Transmit { payload: request.encode(), to });
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() == QUEUE_LEN_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Doubling, with a quarter of jitter so that a rack that boots together does not shout in chorus.
    fn next_retry(&mut self, now: Time, last: Retry) -> Retry {
        let pause = (RETRY_FIRST * (1 << last.attempt.min(6))).min(RETRY_MAX);
        let spread = pause / 4;
        let jitter = spread.mul_f64(self.next_random() as f64 / u64::MAX as f64);
        Retry {
            attempt: last.attempt + 1,
            at: now.saturating_add((pause + jitter).saturating_sub(spread / 2)),
        }
    }

    /// SplitMix64: enough for ids that a server echoes; secrets never come from here.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` is next due; `None` only while stopped or bound for ever.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let held = self.held.as_ref();
        let own = match &self.state {
            State::Stopped => None,
            State::Paused { until } => Some(*until),
            State::Selecting { retry } | State::Requesting { retry, .. } | State::Rebooting { retry, .. } => {
                Some(retry.at)
            }
            State::Bound => held.and_then(|held| held.renew_at),
            State::Renewing { retry_at, .. } | State::Rebinding { retry_at, .. } => Some(*retry_at),
        };
        let expire = held.and_then(|held| held.expire_at);
        own.into_iter().chain(expire).min()
    }

    /// The lease that is good now.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.held.as_ref().map(|held| &held.lease)
    }

    /// What is left of the lease; `None` for ever or without a lease.
    pub(crate) fn time_left(&self, now: Time) -> Option<Duration> {
        self.held.as_ref()?.expire_at.map(|at| at.saturating_sub(now))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
