//! Messages between agent and screen: length (four bytes, little endian), then borsh.
//!
//! The agent sends [`ToScreen`], the screen [`ToAgent`]. Both refuse what is longer than [`MESSAGE_MAX_BYTES`], has bytes
//! left over, or is none of theirs; whoever hears nonsense closes the connection.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::model::{Order, Status};
use crate::text::plain;

/// Where the screen listens.
pub const SOCKET: &str = "/run/croft/screen";
/// A status of a large machine takes a tenth.
pub const MESSAGE_MAX_BYTES: usize = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ToScreen {
    Status(Box<Status>),
    /// What came of an order, for the person who gave it.
    Answer(String),
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ToAgent {
    Order(Order),
}

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a message of {bytes} bytes, {MESSAGE_MAX_BYTES} are the limit")]
    TooLong { bytes: usize },
    #[error("a message that is none: {reason}")]
    Malformed { reason: String },
}

impl ToScreen {
    /// # Errors
    /// [`WireError::Malformed`]. A status comes out bounded.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let message = borsh::from_slice(bytes).map_err(|error| malformed(&error))?;
        Ok(match message {
            Self::Status(status) => Self::Status(Box::new(status.bounded())),
            Self::Answer(text) => Self::Answer(plain(&text)),
        })
    }
}

impl ToAgent {
    /// # Errors
    /// [`WireError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        borsh::from_slice(bytes).map_err(|error| malformed(&error))
    }
}

fn malformed(error: &borsh::io::Error) -> WireError {
    WireError::Malformed { reason: plain(&error.to_string()) }
}

/// A message with its length before it.
///
/// # Errors
/// [`WireError::TooLong`].
pub fn encode(message: &impl BorshSerialize) -> Result<Vec<u8>, WireError> {
    let body = borsh::to_vec(message).map_err(|error| malformed(&error))?;
    if body.len() > MESSAGE_MAX_BYTES {
        return Err(WireError::TooLong { bytes: body.len() });
    }
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    Ok(bytes)
}

/// Cuts a stream into messages.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one. Never holds more than one message and what was pushed with it.
    ///
    /// # Errors
    /// [`WireError::TooLong`]; the connection is of no use any more.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let Some((head, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > MESSAGE_MAX_BYTES {
            return Err(WireError::TooLong { bytes: length });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let message = rest[..length].to_vec();
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LinkOrder, Workload};

    #[test]
    fn messages_arrive_whole_however_the_stream_is_cut() {
        let status =
            Status { name: "n1".into(), workloads: vec![Workload::default(); 3], ..Status::default() };
        let sent = [ToScreen::Status(Box::new(status)), ToScreen::Answer("done".into())];
        let bytes: Vec<u8> = sent.iter().flat_map(|message| encode(message).unwrap()).collect();
        let mut inbox = Inbox::default();
        let mut heard = Vec::new();
        for byte in bytes {
            inbox.push(&[byte]);
            while let Some(message) = inbox.next_message().unwrap() {
                heard.push(ToScreen::decode(&message).unwrap());
            }
        }
        assert_eq!(heard, sent);
    }

    #[test]
    fn a_length_that_promises_too_much_is_refused_before_it_is_waited_for() {
        let mut inbox = Inbox::default();
        inbox.push(&u32::MAX.to_le_bytes());
        let error = inbox.next_message().unwrap_err().to_string();
        assert_eq!(error, "a message of 4294967295 bytes, 262144 are the limit");
        let long = ToScreen::Answer("x".repeat(MESSAGE_MAX_BYTES));
        assert!(matches!(encode(&long), Err(WireError::TooLong { .. })));
    }

    #[test]
    fn nonsense_and_leftovers_are_refused() {
        assert!(
            ToScreen::decode(&[9, 9, 9]).unwrap_err().to_string().starts_with("a message that is none: ")
        );
        let order = ToAgent::Order(Order::Network(LinkOrder::default()));
        let mut bytes = borsh::to_vec(&order).unwrap();
        assert_eq!(ToAgent::decode(&bytes).unwrap(), order);
        bytes.push(0);
        assert!(ToAgent::decode(&bytes).is_err());
    }

    #[test]
    fn an_answer_can_not_steer_the_terminal() {
        let bytes = borsh::to_vec(&ToScreen::Answer("\x1b[2Jno\nway".into())).unwrap();
        assert_eq!(ToScreen::decode(&bytes).unwrap(), ToScreen::Answer("no way".into()));
    }
}
