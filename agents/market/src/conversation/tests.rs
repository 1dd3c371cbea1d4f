//! The negotiation against a naive model: every message lost, repeated, late, forged, or from somewhere else.

use croft_protocol::market::Quote;
use croft_protocol::{Grains, Rate};
use proptest::prelude::*;

use super::*;
use crate::testing::{CHAIN, NOW, demand, party};

const OPEN_MS: u64 = 60_000;

fn quote(rate: u64) -> Quote {
    Quote { rate: Rate(rate), hold_fee: Grains(1), hold_ms: 1000, capacity_version: 1 }
}

fn pair() -> (Conversation, Conversation, SignedMessage) {
    let (buyer, farmer) = (party(1), party(2));
    let opened = Conversation::open(&buyer, demand(&buyer, &farmer), NOW + OPEN_MS).unwrap();
    let first = opened.transcript().last().clone();
    let answered = Conversation::answer(&farmer, first.clone(), NOW).unwrap();
    (opened, answered, first)
}

fn error(result: Result<Heard, MessageRefusal>) -> String {
    result.unwrap_err().to_string()
}

/// What one side is told in the model.
#[derive(Debug, Clone)]
enum Op {
    /// Whoever's turn it is names a price.
    Say(u64),
    /// Some message that was ever said reaches one side: the first time, again, or out of order.
    Deliver {
        pick: usize,
        to_buyer: bool,
    },
    /// The same, altered on the way.
    Forge {
        pick: usize,
        to_buyer: bool,
        how: u8,
    },
    /// One of another negotiation of the same two.
    Foreign {
        to_buyer: bool,
    },
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1_u64..100).prop_map(Op::Say),
        6 => (0_usize..40, any::<bool>()).prop_map(|(pick, to_buyer)| Op::Deliver { pick, to_buyer }),
        2 => (0_usize..40, any::<bool>(), 0_u8..5)
            .prop_map(|(pick, to_buyer, how)| Op::Forge { pick, to_buyer, how }),
        1 => any::<bool>().prop_map(|to_buyer| Op::Foreign { to_buyer }),
        1 => (0_u64..30_000).prop_map(Op::Wait),
    ]
}

fn forge(mut message: SignedMessage, how: u8) -> SignedMessage {
    match how {
        0 => message.message.expires_ms += 1,
        1 => message.message.note.push_str("cheaper"),
        2 => message.signature.signature.0[3] ^= 1,
        3 => message.message.prev.0[0] ^= 1,
        _ => message.message.author = party(9).id(),
    }
    message
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 96, ..ProptestConfig::default() })]

    /// The model knows only how many steps each side has: a genuine message is the next one or a repeat, everything
    /// else is refused and changes nothing.
    #[test]
    fn both_sides_hear_what_was_said_and_nothing_else(ops in prop::collection::vec(op(), 1..60)) {
        let (mut buyer, mut farmer, first) = pair();
        let other = {
            let (b, f) = (party(1), party(2));
            let demand = croft_protocol::market::Demand { nonce: [8; 16], ..demand(&b, &f) };
            Conversation::open(&b, demand, NOW + OPEN_MS).unwrap().transcript().last().clone()
        };
        let mut said = vec![first];
        let mut have = [1_usize, 1];
        let mut now = NOW;
        for op in ops {
            match op {
                Op::Wait(ms) => now += ms,
                Op::Say(rate) => {
                    // In the model, somebody may speak if he has everything and it is his turn.
                    let side = said.len() % 2;
                    let (talk, key) = if side == 0 { (&mut buyer, party(1)) } else { (&mut farmer, party(2)) };
                    let step = said.len();
                    let body = if step == 1 { Said::Offer(quote(rate)) } else { Said::Counter(quote(rate)) };
                    let spoken = talk.say(&key, body, now + OPEN_MS);
                    let may = have[side] == step && step < STEPS as usize;
                    prop_assert_eq!(spoken.is_ok(), may, "{:?}", spoken);
                    if let Ok(message) = spoken {
                        said.push(message);
                        have[side] += 1;
                    }
                }
                Op::Deliver { pick, to_buyer } => {
                    let step = pick % said.len();
                    let side = usize::from(!to_buyer);
                    let talk = if to_buyer { &mut buyer } else { &mut farmer };
                    let late = step > 0
                        && (now > said[step].message.expires_ms || now > said[step - 1].message.expires_ms);
                    let before = talk.clone();
                    let heard = talk.hear(&CHAIN, said[step].clone(), now);
                    if step < have[side] {
                        prop_assert!(matches!(heard, Ok(Heard::Repeat(_))), "{:?}", heard);
                        prop_assert_eq!(&before, &*talk);
                    } else if step == have[side] && !late {
                        prop_assert_eq!(heard, Ok(Heard::New));
                        have[side] += 1;
                    } else {
                        prop_assert!(heard.is_err());
                        prop_assert_eq!(&before, &*talk);
                    }
                }
                Op::Forge { pick, to_buyer, how } => {
                    let talk = if to_buyer { &mut buyer } else { &mut farmer };
                    let before = talk.clone();
                    let forged = forge(said[pick % said.len()].clone(), how);
                    prop_assert!(talk.hear(&CHAIN, forged, now).is_err());
                    prop_assert_eq!(&before, &*talk);
                }
                Op::Foreign { to_buyer } => {
                    let talk = if to_buyer { &mut buyer } else { &mut farmer };
                    let before = talk.transcript().clone();
                    prop_assert!(talk.hear(&CHAIN, other.clone(), now).is_err());
                    prop_assert_eq!(&before, talk.transcript());
                }
            }
            for talk in [&buyer, &farmer] {
                let all = talk.transcript().messages();
                prop_assert_eq!(all, &said[..all.len()]);
            }
        }
        for talk in [&buyer, &farmer] {
            prop_assert_eq!(talk.transcript().verify(&CHAIN), Ok(()));
        }
    }
}

#[test]
fn a_transcript_proves_itself_and_no_altered_one_does() {
    let (mut buyer, mut farmer, _) = pair();
    let offer = farmer.say(&party(2), Said::Offer(quote(9)), NOW + OPEN_MS).unwrap();
    buyer.hear(&CHAIN, offer, NOW).unwrap();
    buyer.say(&party(1), Said::Counter(quote(7)), NOW + OPEN_MS).unwrap();
    let bytes = croft_protocol::encode(buyer.transcript());
    let read: Transcript = croft_protocol::decode("a transcript", &bytes, 1 << 20).unwrap();
    assert_eq!(read.verify(&CHAIN), Ok(()));
    assert!(read.verify(&ChainId(Hash([8; 32]))).is_err());
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        if let Ok(read) = croft_protocol::decode::<Transcript>("a transcript", &altered, 1 << 20) {
            assert!(read.verify(&CHAIN).is_err(), "byte {at} may be altered");
            refused += 1;
        }
    }
    assert!(refused > 100);
    let empty: Transcript = borsh::from_slice(&[0; 4]).unwrap();
    assert!(empty.verify(&CHAIN).is_err());
}

#[test]
fn each_refusal_names_culprit_and_remedy() {
    let (mut buyer, mut farmer, first) = pair();
    let stranger = Conversation::answer(&party(3), first.clone(), NOW).unwrap_err().to_string();
    assert!(stranger.ends_with("send it to the farm's owner"), "{stranger}");
    let late = Conversation::answer(&party(2), first, NOW + OPEN_MS + 1).unwrap_err().to_string();
    assert!(late.starts_with("a demand is void since") && late.ends_with("check your clock"), "{late}");

    let offer = farmer.say(&party(2), Said::Offer(quote(9)), NOW + OPEN_MS).unwrap();
    let forged = error(buyer.hear(&CHAIN, forge(offer.clone(), 2), NOW));
    assert!(forged.contains("over step 1 is wrong: it was forged"), "{forged}");
    let long = error(buyer.hear(&CHAIN, offer.clone(), NOW - 3_600_000));
    assert!(long.contains("at most 900000 are allowed: let it expire sooner"), "{long}");
    buyer.hear(&CHAIN, offer, NOW).unwrap();

    let out_of_order = buyer.say(&party(1), Said::Offer(quote(1)), NOW + 1).unwrap_err().to_string();
    assert_eq!(out_of_order, "an offer can't follow an offer: check the order of the steps");
    let mut double = farmer.clone();
    double.transcript = {
        let (_, mut twin, _) = pair();
        twin.say(&party(2), Said::Offer(quote(10)), NOW + OPEN_MS).unwrap();
        twin.transcript
    };
    let second = error(buyer.hear(&CHAIN, double.transcript.last().clone(), NOW));
    assert!(
        second.contains("was replayed with another content: both messages are kept as proof"),
        "{second}"
    );
    let (said, again) = buyer.contradiction().unwrap();
    assert!(said != again && said.verify(&CHAIN).is_ok() && again.verify(&CHAIN).is_ok());
}

#[test]
fn a_repeat_of_their_last_message_brings_our_answer_again() {
    let (mut buyer, mut farmer, first) = pair();
    let offer = farmer.say(&party(2), Said::Offer(quote(9)), NOW + OPEN_MS).unwrap();
    let again = farmer.hear(&CHAIN, first.clone(), NOW).unwrap();
    assert_eq!(again, Heard::Repeat(Some(Box::new(offer.clone()))));
    buyer.hear(&CHAIN, offer.clone(), NOW).unwrap();
    assert_eq!(buyer.hear(&CHAIN, offer, NOW).unwrap(), Heard::Repeat(None));
    let counter = buyer.say(&party(1), Said::Counter(quote(8)), NOW + OPEN_MS).unwrap();
    farmer.hear(&CHAIN, counter, NOW).unwrap();
    assert_eq!(farmer.hear(&CHAIN, first, NOW).unwrap(), Heard::Repeat(None));
}
