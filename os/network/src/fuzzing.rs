//! Doors to decoders of this crate that nobody outside calls, for `tests/fuzz`. They must do nothing that the crate
//! itself does not do with the same bytes.

use std::net::{IpAddr, Ipv4Addr};

use crate::dhcp::boot::{self, BootOffer};
use crate::dhcp::message::{self, Answer, Lease};
use crate::{MacAddr, dns};

/// What a DHCP server may make a link do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// Gateways of all routes, resolvers and time servers.
    pub servers: Vec<Ipv4Addr>,
    pub routes: usize,
    /// When it is renewed, bound elsewhere, and over; `None` for ever.
    pub times_s: Option<(u64, u64, u64)>,
}

/// A DHCP answer: the lease, or the server's words.
///
/// # Errors
/// Why it is ignored.
pub fn dhcp_answer(bytes: &[u8], mac: [u8; 6], xid: u32) -> Result<Result<Offered, String>, String> {
    match message::parse(bytes, MacAddr(mac), xid).map_err(|e| e.to_string())? {
        Answer::Offer(lease) | Answer::Ack(lease) => Ok(Ok(offered(lease))),
        Answer::Nak { message, .. } => Ok(Err(message)),
    }
}

/// The boot file that a DHCP answer offers to transaction `xid` or one of the two after it.
#[must_use]
pub fn boot_offer(bytes: &[u8], mac: [u8; 6], xid: u32) -> Option<BootOffer> {
    boot::offer(bytes, MacAddr(mac), xid, 3)
}

fn offered(lease: Lease) -> Offered {
    let hops = lease.routes.iter().map(|(_, hop)| *hop).chain(lease.gateway);
    Offered {
        address: lease.address.addr(),
        prefix_len: lease.address.prefix_len(),
        servers: hops.chain(lease.dns.iter().copied()).chain(lease.ntp.iter().copied()).collect(),
        routes: lease.routes.len(),
        times_s: lease.times.map(|t| (t.renew.as_secs(), t.rebind.as_secs(), t.expire.as_secs())),
    }
}

/// The addresses in a DNS answer to a question for `name`; empty for every other kind of answer.
///
/// # Errors
/// When it is no answer to this question, or the name is none.
pub fn dns_answer(bytes: &[u8], name: &str, v6: bool, id: u16) -> Result<Vec<IpAddr>, String> {
    dns::answer_of(bytes, name, v6, id)
}

/// The question for a name, as it is sent.
///
/// # Errors
/// When the name is none.
pub fn dns_question(name: &str, v6: bool, id: u16) -> Result<Vec<u8>, String> {
    dns::question_of(name, v6, id)
}
