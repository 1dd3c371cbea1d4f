//! Messages from bot to bot, which nobody reads on the way.
//!
//! ```text
//!   Message ──sign (sender's ed25519)──> SignedMessage ──pad──> HPKE to the receiver's X25519 key ──> sealed bytes
//! ```
//! Who wrote it is inside the box. The signature covers chain, sender, receiver, id, time and text, so that nobody,
//! the receiver neither, can pass it on as written to another; the box is bound to chain and receiver. Relays and
//! mailboxes see a receiver and a length that is a multiple of [`PAD_BYTES`]. Whoever leaves mail at a replica tells
//! that replica who he is, and nobody else. There is no forward secrecy: whoever gets the receiver's key can read
//! what was recorded before.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Serialize, Serializer};

use crate::header::ChainId;
use crate::identity::BotSignature;
use crate::keys::Domain;
use crate::seal::{SealError, SealingKey, open_raw, seal_raw};
use crate::{BotId, Hash, PublicKey, SecretKey, limits};

const INFO: &[u8] = b"croft/sealed-message/1";
/// Lengths are rounded up to a multiple of this.
pub const PAD_BYTES: usize = 256;

/// Random, chosen by the sender: a message that comes twice is one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct MessageId(pub [u8; 16]);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl MessageId {
    /// A new one from the kernel's randomness.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        Ok(Self(id))
    }
}

/// What one bot writes to another.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Message {
    pub id: MessageId,
    pub from: BotId,
    pub to: BotId,
    /// By the sender's clock: milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// A stranger's text.
    pub text: String,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct SignedMessage {
    message: Message,
    /// By the sender, over [`Domain::MESSAGE`].
    signature: BotSignature,
}

/// A door for `tests/fuzz`: any bytes in a box that the receiver opens.
///
/// # Errors
/// [`MessageError::BadKey`].
#[doc(hidden)]
pub fn seal_any(to: &[u8; 32], chain: &ChainId, me: &BotId, plain: &[u8]) -> Result<Vec<u8>, MessageError> {
    seal_raw(INFO, to, &crate::encode(&(chain, me)), plain).map_err(|_: SealError| MessageError::BadKey)
}

/// Why there is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a message has at most {limit} bytes, not {len}: send it in parts", limit = limits::MESSAGE_BYTES)]
    TooLarge { len: usize },
    #[error("a message needs some text")]
    Empty,
    #[error("the receiver's encryption key is no X25519 key: it must publish another")]
    BadKey,
    #[error("it is not sealed to this bot's present key and chain, or was altered")]
    NotForUs,
    #[error("its content is malformed")]
    Malformed,
    #[error("its sender {} did not sign it", from.short())]
    Unsigned { from: BotId },
    #[error("{} wrote it to another bot", from.short())]
    OtherReceiver { from: BotId },
}

/// The X25519 key of a bot, made from its identity: whoever has the recovery phrase has both.
#[must_use]
pub fn message_key(key: &SecretKey) -> SealingKey {
    SealingKey::from_seed(&Hash::of("croft/message-key/1", &key.seed()).0)
}

impl Message {
    /// Signs and seals it.
    ///
    /// # Errors
    /// [`MessageError`] when it is empty or too long, or the receiver's key is none.
    ///
    /// # Panics
    /// When `key` is not the sender's.
    pub fn seal(&self, key: &SecretKey, chain: &ChainId, to: &[u8; 32]) -> Result<Vec<u8>, MessageError> {
        assert_eq!(key.id(), self.from, "a message is signed by its sender");
        self.check_length()?;
        let signature = key.sign_as_bot(Domain::MESSAGE, chain, self);
        let mut plain = crate::encode(&SignedMessage { message: self.clone(), signature });
        plain.resize(plain.len().next_multiple_of(PAD_BYTES), 0);
        let bound = crate::encode(&(chain, self.to));
        seal_raw(INFO, to, &bound, &plain).map_err(|_: SealError| MessageError::BadKey)
    }

    fn check_length(&self) -> Result<(), MessageError> {
        match self.text.len() {
            0 => Err(MessageError::Empty),
            len if len > limits::MESSAGE_BYTES => Err(MessageError::TooLarge { len }),
            _ => Ok(()),
        }
    }

    /// Opens what was sealed to `me` and checks who wrote it, to whom, on which chain. Beside it comes the sender's key
    /// that signed it: whether that one still holds, only the ledger knows.
    ///
    /// # Errors
    /// [`MessageError`] for anything that its named sender did not write to us.
    pub fn open(
        sealed: &[u8],
        chain: &ChainId,
        me: &BotId,
        key: &SealingKey,
    ) -> Result<(Self, PublicKey), MessageError> {
        let bound = crate::encode(&(chain, me));
        let plain = open_raw(INFO, key, &bound, sealed, limits::SEALED_MESSAGE_BYTES)
            .map_err(|_: SealError| MessageError::NotForUs)?;
        let mut rest = plain.as_slice();
        let SignedMessage { message, signature } =
            SignedMessage::deserialize(&mut rest).map_err(|_| MessageError::Malformed)?;
        if rest.len() >= PAD_BYTES || rest.iter().any(|byte| *byte != 0) {
            return Err(MessageError::Malformed);
        }
        let from = message.from;
        if message.to != *me {
            return Err(MessageError::OtherReceiver { from });
        }
        from.verify(Domain::MESSAGE, chain, &message, &signature)
            .map_err(|_| MessageError::Unsigned { from })?;
        message.check_length()?;
        Ok((message, signature.key(&from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: ChainId = ChainId(Hash([7; 32]));

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&[n; 32])
    }

    fn message(text: &str) -> Message {
        Message {
            id: MessageId([9; 16]),
            from: key(1).public(),
            to: key(2).public(),
            time_ms: 5,
            text: text.to_owned(),
        }
    }

    fn sealed(message: &Message) -> Vec<u8> {
        message.seal(&key(1), &CHAIN, &message_key(&key(2)).public()).unwrap()
    }

    #[test]
    fn only_its_receiver_reads_a_message_and_knows_who_wrote_it() {
        let message = message("hello");
        let sealed = sealed(&message);
        let (bob, carol) = (key(2), key(3));
        let open = |chain: &ChainId, who: &SecretKey, key: &SecretKey| {
            Message::open(&sealed, chain, &who.public(), &message_key(key)).map(|(message, _)| message)
        };
        assert_eq!(open(&CHAIN, &bob, &bob).unwrap(), message);
        assert_eq!(open(&CHAIN, &carol, &carol), Err(MessageError::NotForUs));
        assert_eq!(open(&CHAIN, &carol, &bob), Err(MessageError::NotForUs));
        assert_eq!(open(&ChainId(Hash([8; 32])), &bob, &bob), Err(MessageError::NotForUs));
        let text = String::from_utf8_lossy(&sealed).into_owned();
        assert!(!text.contains("hello"));
        let shows_sender = sealed.windows(32).any(|bytes| bytes == key(1).public().0);
        assert!(!shows_sender, "nobody on the way sees the sender");
    }

    #[test]
    fn an_altered_byte_anywhere_is_noticed() {
        let sealed = sealed(&message("hello"));
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            let opened = Message::open(&altered, &CHAIN, &key(2).public(), &message_key(&key(2)));
            assert_eq!(opened, Err(MessageError::NotForUs), "byte {at}");
        }
    }

    /// Whatever the sender's program puts into the box.
    fn forged(message: &Message, signature: &BotSignature, pad: &[u8]) -> Result<Message, MessageError> {
        let mut plain =
            crate::encode(&SignedMessage { message: message.clone(), signature: signature.clone() });
        plain.extend_from_slice(pad);
        let me = key(2);
        let bound = crate::encode(&(&CHAIN, me.public()));
        let sealed = seal_raw(INFO, &message_key(&me).public(), &bound, &plain).unwrap();
        Message::open(&sealed, &CHAIN, &me.public(), &message_key(&me)).map(|(message, _)| message)
    }

    #[test]
    fn nobody_writes_in_anothers_name_nor_passes_on_what_was_written_to_another() {
        let good = message("pay me");
        let signature = key(1).sign_as_bot(Domain::MESSAGE, &CHAIN, &good);
        assert_eq!(forged(&good, &signature, &[]).unwrap(), good);
        let from = good.from;
        let other = key(3).sign_as_bot(Domain::MESSAGE, &CHAIN, &good);
        assert_eq!(forged(&good, &other, &[]), Err(MessageError::Unsigned { from }));
        let elsewhere = key(1).sign_as_bot(Domain::MESSAGE, &ChainId(Hash([8; 32])), &good);
        assert_eq!(forged(&good, &elsewhere, &[]), Err(MessageError::Unsigned { from }));
        let later = Message { time_ms: 6, ..good.clone() };
        assert_eq!(forged(&later, &signature, &[]), Err(MessageError::Unsigned { from }));
        let to_carol = Message { to: key(3).public(), ..good.clone() };
        let signature_to_carol = key(1).sign_as_bot(Domain::MESSAGE, &CHAIN, &to_carol);
        assert_eq!(forged(&to_carol, &signature_to_carol, &[]), Err(MessageError::OtherReceiver { from }));
        assert_eq!(forged(&good, &signature, &[1]), Err(MessageError::Malformed));
        assert_eq!(forged(&good, &signature, &[0; PAD_BYTES]), Err(MessageError::Malformed));
    }

    #[test]
    fn lengths_tell_little_and_have_a_limit() {
        assert_eq!(sealed(&message("a")).len(), sealed(&message(&"a".repeat(60))).len());
        // By a bot whose key was replaced as often as it can be.
        let mut writer = key(1);
        for n in 0..limits::KEY_CHANGES {
            let next = key(100 + u8::try_from(n).unwrap());
            let links = [writer.links(), &[crate::identity::Link::sign(&writer, &next, &CHAIN)]].concat();
            writer = next.of_bot(key(1).public(), links, &CHAIN).unwrap();
        }
        let longest = message(&"x".repeat(limits::MESSAGE_BYTES));
        let longest = longest.seal(&writer, &CHAIN, &message_key(&key(2)).public()).unwrap();
        assert!(longest.len() <= limits::SEALED_MESSAGE_BYTES, "{}", longest.len());
        let long = message(&"x".repeat(limits::MESSAGE_BYTES + 1));
        let error = long.seal(&key(1), &CHAIN, &message_key(&key(2)).public()).unwrap_err();
        assert_eq!(error.to_string(), "a message has at most 32768 bytes, not 32769: send it in parts");
        let bad = message("a").seal(&key(1), &CHAIN, &[0; 32]);
        assert_eq!(bad, Err(MessageError::BadKey));
    }
}
