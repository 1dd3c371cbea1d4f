//! nftables over netlink: our rules as one batch of messages (linux/netfilter/nf_tables.h, nfnetlink.h).
//!
//! Only what our fixed rule set needs; the crates that speak nftables either link C libraries or carry a licence that
//! doesn't fit. Attributes are big-endian where the kernel says so, registers hold packet bytes in wire order, and
//! connection state is in the host's order.

use std::net::Ipv4Addr;

use crate::firewall::rule::{Action, Chain, ConnectionState, Direction, Hook, Match, Protocol, Rule, Side};

/// Netfilter subsystem number of nf_tables.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const F_REQUEST: u16 = 0x1;
const F_ACK: u16 = 0x4;
const F_CREATE: u16 = 0x400;
const F_APPEND: u16 = 0x800;

/// IPv4 and IPv6 in one table.
const FAMILY_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NESTED: u16 = 0x8000;

/// The only registers that we need: one value, and one more for a port.
const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CMP_EQUAL: u32 = 0;
const CMP_NOT_EQUAL: u32 = 1;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const LINK_NAME_LEN: usize = 16;

/// Bits of `ct state` (NF_CT_STATE_BIT) and `ct status` (IPS_DST_NAT).
const STATE_INVALID: u32 = 1;
const STATE_ESTABLISHED_RELATED: u32 = 2 | 4;
const STATUS_DESTINATION_NAT: u32 = 1 << 5;
/// NF_NAT_RANGE_PROTO_SPECIFIED: the port is rewritten too.
const NAT_PORT_SPECIFIED: u32 = 2;

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;

/// A sequence of netlink messages that the kernel takes whole or not at all.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    /// What message `i` (sequence number `i`) does, for the error text.
    pub(crate) what: Vec<String>,
}

/// The whole table, in place of whatever table of that name there is.
pub(crate) fn replace_table(table: &str, chains: &[Chain]) -> Batch {
    let mut batch = Batch { bytes: Vec::new(), what: Vec::new() };
    batch.message(BATCH_BEGIN, F_REQUEST, 0, "begin", |_| {});
    // Deleting what isn't there is an error, so it is created first; all of it happens in one transaction.
    for (kind, flags, what) in
        [(NEW_TABLE, F_CREATE, "table"), (DELETE_TABLE, 0, "old table"), (NEW_TABLE, F_CREATE, "table")]
    {
        batch.message(kind, F_REQUEST | flags, FAMILY_INET, what, |attributes| attributes.text(1, table));
    }
    for chain in chains {
        batch.chain(table, chain);
    }
    for chain in chains {
        for rule in &chain.rules {
            batch.rule(table, chain.hook, rule);
        }
    }
    batch.finish();
    batch
}

/// Nothing of ours remains.
pub(crate) fn delete_table(table: &str) -> Batch {
    let mut batch = Batch { bytes: Vec::new(), what: Vec::new() };
    batch.message(BATCH_BEGIN, F_REQUEST, 0, "begin", |_| {});
    for (kind, flags, what) in [(NEW_TABLE, F_CREATE, "table"), (DELETE_TABLE, 0, "old table")] {
        batch.message(kind, F_REQUEST | flags, FAMILY_INET, what, |attributes| attributes.text(1, table));
    }
    batch.finish();
    batch
}

impl Batch {
    fn chain(&mut self, table: &str, chain: &Chain) {
        let what = format!("chain {}", chain.hook.name());
        self.message(NEW_CHAIN, F_REQUEST | F_CREATE, FAMILY_INET, &what, |attributes| {
            attributes.text(1, table);
            attributes.text(3, chain.hook.name());
            attributes.nest(4, |hook| {
                hook.u32(1, hook_number(chain.hook));
                hook.u32(2, chain.priority as u32);
            });
            attributes.u32(5, u32::from(chain.accept_by_default));
            attributes.text(7, if chain.nat { "nat" } else { "filter" });
        });
    }

    fn rule(&mut self, table: &str, hook: Hook, rule: &Rule) {
        let what = format!("rule \"{rule}\" of chain {}", hook.name());
        self.message(NEW_RULE, F_REQUEST | F_CREATE | F_APPEND, FAMILY_INET, &what, |attributes| {
            attributes.text(1, table);
            attributes.text(2, hook.name());
            attributes.nest(4, |list| {
                for part in &rule.matches {
                    encode_match(list, part);
                }
                encode_action(list, &rule.action);
            });
            if let Some(comment) = &rule.comment {
                // nft's own userdata: type 0 (comment), length, text with closing NUL.
                let mut data = vec![0, comment.len() as u8 + 1];
                data.extend(comment.as_bytes());
                data.push(0);
                attributes.bytes(7, &data);
            }
        });
    }

    /// The last real message asks for an answer: without it a success would be silent.
    fn finish(&mut self) {
        let mut offset = 0;
        let mut last = 0;
        while offset < self.bytes.len() {
            last = offset;
            offset += align(read_u32(&self.bytes, offset) as usize);
        }
        let flags = u16::from_ne_bytes([self.bytes[last + 6], self.bytes[last + 7]]) | F_ACK;
        self.bytes[last + 6..last + 8].copy_from_slice(&flags.to_ne_bytes());
        self.message(BATCH_END, F_REQUEST, 0, "end", |_| {});
    }

    /// Sequence number of the message that is always answered.
    pub(crate) fn last_sequence(&self) -> u32 {
        self.what.len() as u32 - 2
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, what: &str, fill: impl FnOnce(&mut Attributes)) {
        let start = self.bytes.len();
        let sequence = self.what.len() as u32;
        self.what.push(what.to_owned());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        // struct nfgenmsg: family, version 0, and for batch limits the subsystem.
        let resource = if family == 0 { SUBSYSTEM } else { 0 };
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        let mut attributes = Attributes(std::mem::take(&mut self.bytes));
        fill(&mut attributes);
        self.bytes = attributes.0;
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

fn encode_match(list: &mut Attributes, part: &Match) {
    match part {
        Match::LinkPrefix { direction, prefix, equal } => {
            load_meta(list, link_key(*direction));
            compare(list, if *equal { CMP_EQUAL } else { CMP_NOT_EQUAL }, prefix.as_bytes());
        }
        Match::Link { direction, name } => {
            load_meta(list, link_key(*direction));
            let mut padded = [0u8; LINK_NAME_LEN];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            compare(list, CMP_EQUAL, &padded);
        }
        Match::Connection(ConnectionState::Invalid) => connection_bits(list, CT_STATE, STATE_INVALID),
        Match::Connection(ConnectionState::EstablishedOrRelated) => {
            connection_bits(list, CT_STATE, STATE_ESTABLISHED_RELATED);
        }
        Match::Redirected => connection_bits(list, CT_STATUS, STATUS_DESTINATION_NAT),
        Match::Network { side, net } => {
            load_meta(list, META_NFPROTO);
            compare(list, CMP_EQUAL, &[NFPROTO_IPV4]);
            load_payload(list, BASE_NETWORK, if *side == Side::Source { 12 } else { 16 }, 4);
            mask(list, &net.netmask().octets());
            compare(list, CMP_EQUAL, &net.network().octets());
        }
        Match::Port { protocol, side, port } => {
            load_meta(list, META_L4PROTO);
            compare(list, CMP_EQUAL, &[protocol_number(*protocol)]);
            load_payload(list, BASE_TRANSPORT, if *side == Side::Source { 0 } else { 2 }, 2);
            compare(list, CMP_EQUAL, &port.to_be_bytes());
        }
        Match::Icmp(kind) => icmp_type(list, NFPROTO_IPV4, IPPROTO_ICMP, *kind as u8),
        Match::Icmpv6(kind) => icmp_type(list, NFPROTO_IPV6, IPPROTO_ICMPV6, *kind as u8),
    }
}

fn encode_action(list: &mut Attributes, action: &Action) {
    match action {
        Action::Accept => verdict(list, 1),
        Action::Drop => verdict(list, 0),
        Action::Masquerade => expression(list, "masq", |_| {}),
        Action::Redirect(to) => {
            load_value(list, REGISTER_1, &Ipv4Addr::octets(to.ip()));
            load_value(list, REGISTER_2, &to.port().to_be_bytes());
            expression(list, "nat", |data| {
                data.u32(1, 1); // destination
                data.u32(2, u32::from(NFPROTO_IPV4));
                data.u32(3, REGISTER_1);
                data.u32(5, REGISTER_2);
                data.u32(7, NAT_PORT_SPECIFIED);
            });
        }
    }
}

fn expression(list: &mut Attributes, name: &str, fill: impl FnOnce(&mut Attributes)) {
    list.nest(1, |element| {
        element.text(1, name);
        element.nest(2, fill);
    });
}

fn load_meta(list: &mut Attributes, key: u32) {
    expression(list, "meta", |data| {
        data.u32(1, REGISTER_1);
        data.u32(2, key);
    });
}

fn load_payload(list: &mut Attributes, base: u32, offset: u32, len: u32) {
    expression(list, "payload", |data| {
        data.u32(1, REGISTER_1);
        data.u32(2, base);
        data.u32(3, offset);
        data.u32(4, len);
    });
}

fn load_value(list: &mut Attributes, register: u32, value: &[u8]) {
    expression(list, "immediate", |data| {
        data.u32(1, register);
        data.nest(2, |nest| nest.bytes(1, value));
    });
}

fn verdict(list: &mut Attributes, code: u32) {
    expression(list, "immediate", |data| {
        data.u32(1, REGISTER_VERDICT);
        data.nest(2, |nest| nest.nest(2, |verdict| verdict.u32(1, code)));
    });
}

fn compare(list: &mut Attributes, operator: u32, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.u32(1, REGISTER_1);
        data.u32(2, operator);
        data.nest(3, |nest| nest.bytes(1, value));
    });
}

fn mask(list: &mut Attributes, bits: &[u8]) {
    if bits.iter().all(|byte| *byte == 0xff) {
        return;
    }
    expression(list, "bitwise", |data| {
        data.u32(1, REGISTER_1);
        data.u32(2, REGISTER_1);
        data.u32(3, bits.len() as u32);
        data.nest(4, |nest| nest.bytes(1, bits));
        data.nest(5, |nest| nest.bytes(1, &vec![0; bits.len()]));
    });
}

fn connection_bits(list: &mut Attributes, key: u32, bits: u32) {
    expression(list, "ct", |data| {
        data.u32(1, REGISTER_1);
        data.u32(2, key);
    });
    mask(list, &bits.to_ne_bytes());
    compare(list, CMP_NOT_EQUAL, &[0; 4]);
}

fn icmp_type(list: &mut Attributes, family: u8, protocol: u8, kind: u8) {
    load_meta(list, META_NFPROTO);
    compare(list, CMP_EQUAL, &[family]);
    load_meta(list, META_L4PROTO);
    compare(list, CMP_EQUAL, &[protocol]);
    load_payload(list, BASE_TRANSPORT, 0, 1);
    compare(list, CMP_EQUAL, &[kind]);
}

fn link_key(direction: Direction) -> u32 {
    match direction {
        Direction::In => META_IIFNAME,
        Direction::Out => META_OIFNAME,
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
    }
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Postrouting => 4,
    }
}

/// Netlink attributes appended to a growing message.
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(align(self.0.len()), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(kind | NESTED, &[]);
        fill(self);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

fn align(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of messages, and which of them ask for an answer.
    fn messages(batch: &Batch) -> (usize, Vec<u32>) {
        let (mut offset, mut count, mut asking) = (0, 0, Vec::new());
        while offset < batch.bytes.len() {
            let len = read_u32(&batch.bytes, offset) as usize;
            assert!(len >= 20 && len.is_multiple_of(4), "message {count} has {len} bytes");
            assert_eq!(read_u32(&batch.bytes, offset + 8) as usize, count, "sequence numbers are places");
            if batch.bytes[offset + 6] & F_ACK as u8 != 0 {
                asking.push(count as u32);
            }
            offset += len;
            count += 1;
        }
        assert_eq!(offset, batch.bytes.len());
        (count, asking)
    }

    #[test]
    fn a_batch_replaces_the_table_and_asks_for_one_answer() {
        let rule = Rule::new([Match::Redirected], Action::Accept).with_comment("a \"quoted\" one");
        let chain = Chain {
            hook: Hook::Forward,
            nat: false,
            priority: 0,
            accept_by_default: false,
            rules: vec![rule],
        };
        let batch = replace_table("croft", &[chain]);
        assert_eq!(messages(&batch), (7, vec![batch.last_sequence()]));
        assert_eq!(batch.what[1..4], ["table", "old table", "table"]);
        assert_eq!(
            batch.what[batch.last_sequence() as usize],
            "rule \"ct status dnat accept comment \"a  quoted  one\"\" of chain forward"
        );
        assert_eq!(messages(&delete_table("croft")), (4, vec![2]));
    }

    #[test]
    fn attributes_are_padded_and_nested_by_length() {
        let mut attributes = Attributes(Vec::new());
        attributes.nest(4, |nest| nest.text(1, "ab"));
        let mut expected = Vec::new();
        expected.extend(12u16.to_ne_bytes());
        expected.extend((4 | NESTED).to_ne_bytes());
        expected.extend(7u16.to_ne_bytes());
        expected.extend(1u16.to_ne_bytes());
        expected.extend(b"ab\0\0");
        assert_eq!(attributes.0, expected);
    }
}
