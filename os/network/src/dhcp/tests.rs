//! The client against lost, late, repeated, refused, foreign and broken packets, in simulated time.

use proptest::prelude::*;
use smoltcp::wire::{DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, EthernetAddress};

use super::*;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 9);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const LEASE_S: u32 = 3600;

fn s(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

/// A server's answer with the usual options; fields are changed before `bytes`.
#[derive(Clone)]
struct Reply {
    kind: DhcpMessageType,
    xid: u32,
    mac: MacAddr,
    address: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Reply {
    fn new(kind: DhcpMessageType, xid: u32) -> Self {
        let options = vec![
            (54, SERVER.octets().to_vec()),
            (51, LEASE_S.to_be_bytes().to_vec()),
            (1, vec![255, 255, 255, 0]),
            (3, SERVER.octets().to_vec()),
            (6, vec![10, 0, 2, 3]),
        ];
        Self { kind, xid, mac: MAC, address: ADDRESS, options }
    }

    fn with(mut self, code: u8, data: &[u8]) -> Self {
        self.options.retain(|(kind, _)| *kind != code);
        self.options.push((code, data.to_vec()));
        self
    }

    fn without(mut self, code: u8) -> Self {
        self.options.retain(|(kind, _)| *kind != code);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 600];
        let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
        packet.set_opcode(DhcpOpCode::Reply);
        packet.set_hardware_len(6);
        packet.set_transaction_id(self.xid);
        packet.set_client_hardware_address(EthernetAddress(self.mac.0));
        packet.set_magic_number(0x6382_5363);
        packet.set_your_ip(self.address);
        packet.set_flags(DhcpFlags::empty());
        let mut writer = packet.options_mut();
        writer.emit(DhcpOption { kind: 53, data: &[u8::from(self.kind)] }).unwrap();
        for (kind, data) in &self.options {
            writer.emit(DhcpOption { kind: *kind, data }).unwrap();
        }
        writer.end().unwrap();
        bytes
    }
}

/// What we sent, read back with the same codec that a server would use.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    kind: DhcpMessageType,
    xid: u32,
    client: Ipv4Addr,
    requested: Option<Vec<u8>>,
    server: Option<Vec<u8>>,
    to: Destination,
}

fn sent(client: &mut Client) -> Option<Sent> {
    let transmit = client.poll_transmit()?;
    let packet = DhcpPacket::new_checked(&transmit.payload[..]).unwrap();
    let option =
        |code| packet.options().find(|option| option.kind == code).map(|option| option.data.to_vec());
    Some(Sent {
        kind: option(53).unwrap()[0].into(),
        xid: packet.transaction_id(),
        client: packet.client_ip(),
        requested: option(50),
        server: option(54),
        to: transmit.to,
    })
}

fn only(client: &mut Client) -> Sent {
    let message = sent(client).expect("a message");
    assert_eq!(sent(client), None, "one message at a time");
    message
}

fn started(now: Time) -> Client {
    let mut client = Client::new(MAC, Some("node".into()), 7);
    client.start(now);
    client
}

/// Bound since `now` to a lease of an hour.
fn bound(now: Time) -> Client {
    let mut client = started(now);
    let xid = only(&mut client).xid;
    client.handle_packet(now, &Reply::new(DhcpMessageType::Offer, xid).bytes()).unwrap();
    let xid = only(&mut client).xid;
    client.handle_packet(now, &Reply::new(DhcpMessageType::Ack, xid).bytes()).unwrap();
    assert!(matches!(client.poll_event(), Some(Event::Granted(_))));
    client
}

/// Lets time pass to each deadline up to `end`; gives what was sent and when.
fn run_until(client: &mut Client, end: Time) -> Vec<(Time, Sent)> {
    let mut all = Vec::new();
    for _ in 0..10_000 {
        let Some(at) = client.poll_timeout().filter(|at| *at <= end) else { return all };
        client.handle_timeout(at);
        while let Some(message) = sent(client) {
            all.push((at, message));
        }
    }
    panic!("the client spins");
}

#[test]
fn four_messages_give_a_lease() {
    let mut client = started(s(5));
    let discover = only(&mut client);
    assert_eq!(discover.kind, DhcpMessageType::Discover);
    assert_eq!(discover.to, Destination::Broadcast);
    client.handle_packet(s(5), &Reply::new(DhcpMessageType::Offer, discover.xid).bytes()).unwrap();
    let request = only(&mut client);
    assert_eq!(request.kind, DhcpMessageType::Request);
    assert_eq!(request.requested.as_deref(), Some(&ADDRESS.octets()[..]));
    assert_eq!(request.server.as_deref(), Some(&SERVER.octets()[..]));
    assert_eq!(request.xid, discover.xid, "the request belongs to the offer");
    client.handle_packet(s(6), &Reply::new(DhcpMessageType::Ack, request.xid).bytes()).unwrap();
    let Some(Event::Granted(lease)) = client.poll_event() else { panic!("no lease") };
    assert_eq!(lease.address.to_string(), "10.0.2.15/24");
    assert_eq!(lease.gateway, Some(SERVER));
    assert_eq!(lease.dns, [Ipv4Addr::new(10, 0, 2, 3)]);
    // From the request, not from the answer: the server counts from there.
    assert_eq!(client.poll_timeout(), Some(s(5) + s(1800)));
    assert_eq!(client.time_left(s(5)), Some(s(3600)));
}

#[test]
fn a_lost_discover_is_repeated_ever_slower_and_for_ever() {
    let mut client = started(s(0));
    let first = only(&mut client);
    let messages = run_until(&mut client, s(600));
    let times: Vec<u64> = messages.iter().map(|(at, _)| at.as_millis() as u64).collect();
    assert!((875..=1125).contains(&times[0]), "{times:?}");
    assert!((2_600..=3_400).contains(&times[1]), "{times:?}");
    assert!(
        messages
            .iter()
            .all(|(_, message)| message.kind == DhcpMessageType::Discover && message.xid == first.xid)
    );
    assert!((12..=16).contains(&messages.len()), "about one a minute in the end: {times:?}");
    let late = run_until(&mut client, s(100_000));
    assert!(late.len() > 1_000);
}

#[test]
fn a_dead_server_is_asked_four_times_and_then_another_is_sought() {
    let mut client = started(s(0));
    let xid = only(&mut client).xid;
    client.handle_packet(s(0), &Reply::new(DhcpMessageType::Offer, xid).bytes()).unwrap();
    let _ = only(&mut client);
    let messages = run_until(&mut client, s(20));
    let kinds: Vec<_> = messages.iter().map(|(_, message)| message.kind).collect();
    assert_eq!(kinds[..3], [DhcpMessageType::Request; 3]);
    assert_eq!(kinds[3], DhcpMessageType::Discover);
    assert_ne!(messages[3].1.xid, xid, "a new search is a new transaction");
}

#[test]
fn foreign_late_and_repeated_packets_change_nothing() {
    let mut client = started(s(0));
    let xid = only(&mut client).xid;
    let offer = Reply::new(DhcpMessageType::Offer, xid);
    let other = Reply { xid: xid ^ 1, ..offer.clone() };
    assert_eq!(
        client.handle_packet(s(0), &other.bytes()),
        Err(Ignored::OtherTransaction { ours: xid, got: xid ^ 1 })
    );
    let other_mac = MacAddr([2; 6]);
    let other = Reply { mac: other_mac, ..offer.clone() };
    assert_eq!(client.handle_packet(s(0), &other.bytes()), Err(Ignored::OtherClient(other_mac)));
    let early = Reply::new(DhcpMessageType::Ack, xid);
    assert_eq!(
        client.handle_packet(s(0), &early.bytes()),
        Err(Ignored::Unexpected { what: "grant", state: "selecting" })
    );
    assert_eq!(sent(&mut client), None);

    client.handle_packet(s(0), &offer.bytes()).unwrap();
    let _ = only(&mut client);
    assert_eq!(
        client.handle_packet(s(0), &offer.bytes()),
        Err(Ignored::Unexpected { what: "offer", state: "requesting" })
    );
    let stranger = Reply::new(DhcpMessageType::Ack, xid).with(54, &OTHER_SERVER.octets());
    assert_eq!(
        client.handle_packet(s(0), &stranger.bytes()),
        Err(Ignored::OtherServer { asked: SERVER, got: OTHER_SERVER })
    );
    let swapped = Reply { address: Ipv4Addr::new(10, 0, 2, 16), ..Reply::new(DhcpMessageType::Ack, xid) };
    assert!(matches!(client.handle_packet(s(0), &swapped.bytes()), Err(Ignored::OtherAddress { .. })));
    let ack = Reply::new(DhcpMessageType::Ack, xid).bytes();
    client.handle_packet(s(1), &ack).unwrap();
    assert!(client.poll_event().is_some());
    assert_eq!(client.handle_packet(s(2), &ack), Err(Ignored::Unexpected { what: "packet", state: "bound" }));
    assert_eq!(client.poll_event(), None, "a repeated grant extends nothing");
    assert_eq!(client.time_left(s(0)), Some(s(3600)));
}

#[test]
fn a_refused_request_starts_over_after_a_growing_pause() {
    let mut client = started(s(0));
    let mut now = s(0);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let xid = only(&mut client).xid;
        client.handle_packet(now, &Reply::new(DhcpMessageType::Offer, xid).bytes()).unwrap();
        let xid = only(&mut client).xid;
        let nak = Reply::new(DhcpMessageType::Nak, xid).with(56, b"no\x1b[2J lease");
        client.handle_packet(now, &nak.bytes()).unwrap();
        let refused = Event::Refused { server: Some(SERVER), message: "no[2J lease".into() };
        assert_eq!(client.poll_event(), Some(refused), "control characters never reach the console");
        let at = client.poll_timeout().unwrap();
        pauses.push(at.saturating_sub(now).as_secs());
        now = at;
        client.handle_timeout(now);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 64]);
}

#[test]
fn a_refusal_by_another_server_is_not_ours() {
    let mut client = started(s(0));
    let xid = only(&mut client).xid;
    client.handle_packet(s(0), &Reply::new(DhcpMessageType::Offer, xid).bytes()).unwrap();
    let nak = Reply::new(DhcpMessageType::Nak, xid).with(54, &OTHER_SERVER.octets());
    assert_eq!(
        client.handle_packet(s(0), &nak.bytes()),
        Err(Ignored::OtherServer { asked: SERVER, got: OTHER_SERVER })
    );
}

#[test]
fn a_lease_is_renewed_with_its_server_at_half_time() {
    let mut client = bound(s(0));
    let messages = run_until(&mut client, s(1800));
    let [(at, renew)] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(*at, s(1800));
    assert_eq!(renew.kind, DhcpMessageType::Request);
    assert_eq!(renew.to, Destination::Server { from: ADDRESS, server: SERVER });
    assert_eq!(renew.client, ADDRESS);
    assert_eq!((&renew.requested, &renew.server), (&None, &None), "RFC 2131 4.3.2: MUST NOT be filled in");
    client.handle_packet(s(1801), &Reply::new(DhcpMessageType::Ack, renew.xid).bytes()).unwrap();
    assert!(matches!(client.poll_event(), Some(Event::Granted(_))));
    assert_eq!(client.time_left(s(1800)), Some(s(3600)));
}

#[test]
fn a_silent_server_is_followed_by_rebinding_and_the_end() {
    let mut client = bound(s(0));
    let messages = run_until(&mut client, s(3599));
    let (renewing, rebinding): (Vec<_>, Vec<_>) =
        messages.iter().partition(|(_, message)| message.to != Destination::Broadcast);
    assert!(renewing.iter().all(|(at, _)| (s(1800)..s(3150)).contains(at)), "{renewing:?}");
    assert!(rebinding.iter().all(|(at, _)| (s(3150)..s(3600)).contains(at)), "{rebinding:?}");
    assert_eq!(rebinding[0].0, s(3150));
    assert!(renewing.len() >= 4 && rebinding.len() >= 2, "{messages:?}");
    for pair in messages.windows(2) {
        assert!(pair[1].0 >= pair[0].0 + s(20), "no hail of packets: {messages:?}");
    }
    assert!(client.lease().is_some());
    let after = run_until(&mut client, s(3600));
    assert_eq!(client.poll_event(), Some(Event::Lost(LostReason::Expired)));
    assert!(client.lease().is_none());
    assert_eq!(after.last().unwrap().1.kind, DhcpMessageType::Discover, "it asks anew at once");
}

#[test]
fn any_server_may_extend_while_rebinding() {
    let mut client = bound(s(0));
    let messages = run_until(&mut client, s(3150));
    let xid = messages.last().unwrap().1.xid;
    let ack = Reply::new(DhcpMessageType::Ack, xid).with(54, &OTHER_SERVER.octets());
    client.handle_packet(s(3151), &ack.bytes()).unwrap();
    assert_eq!(client.lease().unwrap().server, OTHER_SERVER);
}

#[test]
fn a_refused_renewal_takes_the_address_away() {
    let mut client = bound(s(0));
    let messages = run_until(&mut client, s(1800));
    let nak = Reply::new(DhcpMessageType::Nak, messages[0].1.xid);
    client.handle_packet(s(1801), &nak.bytes()).unwrap();
    let lost = Event::Lost(LostReason::Refused { server: Some(SERVER), message: String::new() });
    assert_eq!(client.poll_event(), Some(lost));
    assert!(client.lease().is_none());
}

#[test]
fn after_a_carrier_loss_the_old_lease_is_asked_for_first() {
    let mut client = bound(s(0));
    client.stop();
    assert_eq!(client.poll_timeout(), Some(s(3600)), "the lease runs on");
    client.start(s(100));
    let reboot = only(&mut client);
    assert_eq!(reboot.requested.as_deref(), Some(&ADDRESS.octets()[..]));
    assert_eq!((reboot.client, reboot.server.clone()), (Ipv4Addr::UNSPECIFIED, None));
    client.handle_packet(s(101), &Reply::new(DhcpMessageType::Ack, reboot.xid).bytes()).unwrap();
    assert_eq!(client.time_left(s(100)), Some(s(3600)));

    // On another network the server says no, and the address goes at once.
    client.stop();
    client.start(s(200));
    let reboot = only(&mut client);
    client.handle_packet(s(200), &Reply::new(DhcpMessageType::Nak, reboot.xid).bytes()).unwrap();
    assert!(matches!(
        std::iter::from_fn(|| client.poll_event()).last(),
        Some(Event::Lost(LostReason::Refused { .. }))
    ));
}

#[test]
fn an_unanswered_reboot_turns_into_a_search_and_keeps_the_lease_till_its_end() {
    let mut client = bound(s(0));
    client.stop();
    client.start(s(10));
    let messages = run_until(&mut client, s(30));
    assert_eq!(messages.iter().find(|(_, m)| m.kind == DhcpMessageType::Discover).map(|_| ()), Some(()));
    assert!(client.lease().is_some());
    let _ = run_until(&mut client, s(3600));
    assert_eq!(client.poll_event(), Some(Event::Lost(LostReason::Expired)));
}

#[test]
fn a_lease_that_ends_without_carrier_is_lost_all_the_same() {
    let mut client = bound(s(0));
    client.stop();
    client.handle_timeout(s(3600));
    assert_eq!(client.poll_event(), Some(Event::Lost(LostReason::Expired)));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn a_lease_for_ever_needs_no_timer() {
    let mut client = started(s(0));
    let xid = only(&mut client).xid;
    let forever = |kind| Reply::new(kind, xid).with(51, &[255; 4]).bytes();
    client.handle_packet(s(0), &forever(DhcpMessageType::Offer)).unwrap();
    client.handle_packet(s(0), &forever(DhcpMessageType::Ack)).unwrap();
    assert!(client.lease().is_some());
    assert_eq!(client.poll_timeout(), None);
}

/// One offer through the parser, past the state machine.
fn offered(reply: &Reply) -> Result<Lease, Ignored> {
    match parse(&reply.bytes(), MAC, reply.xid)? {
        Answer::Offer(lease) => Ok(lease),
        other => panic!("not an offer: {other:?}"),
    }
}

#[test]
fn malformed_answers_say_what_is_wrong() {
    let good = Reply::new(DhcpMessageType::Offer, 1);
    assert_eq!(parse(&[], MAC, 1), Err(Ignored::Malformed("shorter than its header")));
    assert_eq!(parse(&good.bytes()[..239], MAC, 1), Err(Ignored::Malformed("shorter than its header")));
    let mut bytes = good.bytes();
    bytes[236] ^= 1;
    assert_eq!(parse(&bytes, MAC, 1), Err(Ignored::Malformed("no magic number")));
    let mut bytes = good.bytes();
    bytes[0] = 1;
    assert_eq!(parse(&bytes, MAC, 1), Err(Ignored::NotReply));
    assert_eq!(offered(&good.clone().without(54)), Err(Ignored::Malformed("no server identifier")));
    assert_eq!(offered(&good.clone().without(51)), Err(Ignored::Malformed("no lease time")));
    assert_eq!(offered(&good.clone().with(51, &[0; 4])), Err(Ignored::Malformed("lease of no time")));
    assert_eq!(
        offered(&good.clone().with(1, &[255, 0, 255, 0])),
        Err(Ignored::Malformed("subnet mask is not a mask"))
    );
    assert_eq!(
        offered(&good.clone().with(1, &[255, 255])),
        Err(Ignored::Malformed("subnet mask is not a mask"))
    );
    for address in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "10.0.2.0", "10.0.2.255"] {
        let address: Ipv4Addr = address.parse().unwrap();
        assert_eq!(offered(&Reply { address, ..good.clone() }), Err(Ignored::BadAddress(address)));
    }
    let unknown = Reply { kind: DhcpMessageType::Inform, ..good };
    assert_eq!(parse(&unknown.bytes(), MAC, 1), Err(Ignored::OtherType(8)));
}

#[test]
fn broken_extras_do_not_cost_the_lease() {
    let good = Reply::new(DhcpMessageType::Offer, 1);
    let lease = offered(
        &good
            .clone()
            .with(6, &[10, 0, 0, 1, 10, 0])
            .with(42, &[0, 0, 0, 0, 10, 0, 0, 7])
            .with(26, &[0, 10])
            .with(121, &[33, 1, 2, 3, 4])
            .with(58, &[0xff; 4])
            .with(59, &[0xff; 4]),
    )
    .unwrap();
    assert_eq!(lease.dns, [Ipv4Addr::new(10, 0, 0, 1)]);
    assert_eq!(lease.ntp, [Ipv4Addr::new(10, 0, 0, 7)]);
    assert_eq!(lease.mtu_bytes, None);
    assert_eq!(lease.gateway, Some(SERVER), "a broken route list leaves the router in force");
    let times = lease.times.unwrap();
    assert_eq!((times.renew, times.rebind, times.expire), (s(1800), s(3150), s(3600)));
    let natural = offered(&good.without(1)).unwrap();
    assert_eq!(natural.address.prefix_len(), 8);
}

#[test]
fn a_route_list_overrules_the_router() {
    let list = [24, 192, 168, 7, 10, 0, 2, 7, 0, 10, 0, 2, 1, 32, 169, 254, 169, 254, 0, 0, 0, 0];
    let lease = offered(&Reply::new(DhcpMessageType::Offer, 1).with(121, &list)).unwrap();
    assert_eq!(lease.gateway, Some(Ipv4Addr::new(10, 0, 2, 1)));
    let routes: Vec<String> = lease.routes.iter().map(|(net, hop)| format!("{net} {hop}")).collect();
    assert_eq!(routes, ["192.168.7.0/24 10.0.2.7", "169.254.169.254/32 0.0.0.0"]);
}

#[test]
fn our_message_is_what_the_rfc_asks_for() {
    let mut client = started(s(0));
    let bytes = client.poll_transmit().unwrap().payload;
    assert!(bytes.len() >= 300);
    assert_eq!(bytes[..3], [1, 1, 6]);
    assert_eq!(bytes[28..34], MAC.0);
    let packet = DhcpPacket::new_checked(&bytes[..]).unwrap();
    let find = |code| packet.options().find(|option| option.kind == code).unwrap().data.to_vec();
    assert_eq!(find(12), b"node");
    assert_eq!(find(61), [&[1], &MAC.0[..]].concat());
    assert!(find(55).contains(&42), "time servers are asked for");
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u32),
    Answer { kind: u8, right_xid: bool, address: u8, lease_s: u32 },
    Garbage(Vec<u8>),
    Carrier(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u32..5_000_000).prop_map(Step::Pass),
        4 => (1u8..9, proptest::bool::weighted(0.8), 14u8..17, 0u32..20_000)
            .prop_map(|(kind, right_xid, address, lease_s)| Step::Answer { kind, right_xid, address, lease_s }),
        1 => proptest::collection::vec(any::<u8>(), 0..400).prop_map(Step::Garbage),
        1 => any::<bool>().prop_map(Step::Carrier),
    ]
}

proptest! {
    /// Whatever arrives: no panic, a bounded rate, an address only within its lease, and never asleep for good.
    #[test]
    fn invariants_hold_under_any_sequence(seed: u64, steps in proptest::collection::vec(step(), 1..60)) {
        let mut client = Client::new(MAC, None, seed);
        let mut now = s(0);
        let mut carrier = true;
        client.start(now);
        let mut on_link: Option<Ipv4Addr> = None;
        let mut sent_count = 0u64;
        let mut exchanges = 1u64;
        for step in steps {
            match step {
                Step::Pass(milliseconds) => {
                    let end = now + Duration::from_millis(milliseconds.into());
                    while let Some(at) = client.poll_timeout().filter(|at| *at <= end) {
                        now = now.max(at);
                        client.handle_timeout(now);
                        while client.poll_transmit().is_some() { sent_count += 1; }
                        prop_assert!(client.poll_timeout().is_none_or(|next| next > now), "must make progress");
                    }
                    now = end;
                }
                Step::Answer { kind, right_xid, address, lease_s } => {
                    let xid = if right_xid { client.xid } else { client.xid ^ 0x55 };
                    let mut reply = Reply::new(kind.into(), xid).with(51, &lease_s.to_be_bytes());
                    reply.address = Ipv4Addr::new(10, 0, 2, address);
                    exchanges += u64::from(client.handle_packet(now, &reply.bytes()).is_ok());
                }
                Step::Garbage(bytes) => { let _ = client.handle_packet(now, &bytes); }
                Step::Carrier(up) if up != carrier => {
                    carrier = up;
                    exchanges += 1;
                    if up { client.start(now) } else { client.stop() }
                }
                Step::Carrier(_) => {}
            }
            while client.poll_transmit().is_some() { sent_count += 1; }
            while let Some(event) = client.poll_event() {
                match event {
                    Event::Granted(lease) => on_link = Some(lease.address.addr()),
                    Event::Lost(_) => on_link = None,
                    Event::Refused { .. } => {}
                }
            }
            prop_assert_eq!(client.lease().map(|lease| lease.address.addr()), on_link);
            prop_assert!(client.time_left(now).is_none_or(|left| !left.is_zero()));
            prop_assert!(!carrier || client.poll_timeout().is_some_and(|at| at > now));
            // At worst one message per second of retry plus a handful per exchange.
            prop_assert!(sent_count <= now.as_secs() / 20 + exchanges * 8 + 8, "{} after {:?}", sent_count, now);
        }
    }
}
