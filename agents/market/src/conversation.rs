//! One side's view of one negotiation: whose turn it is, what a message that comes in is worth, what to say again.
//!
//! ```text
//!   my turn ──say──> their turn ──hear──> my turn ...       (they repeat: I repeat what I said last)
//!      └──────────── expiry of the last message, last word ────────────> over
//! ```
//! Hearing is idempotent: a repeat changes nothing. It must never sign two messages for one step. (A bot that restarts
//! forgets prices it named, and may name others under the same step; what binds, proposals and approvals, is written.)

use croft_protocol::market::{Message, Role, STEPS, Said, SignedMessage};
use croft_protocol::{BotId, ChainId, Hash, SecretKey};

use crate::transcript::{MessageRefusal, Transcript, check_open};

/// Who speaks here, and on which grid.
#[derive(Debug, Clone)]
pub struct Party {
    pub key: SecretKey,
    pub chain: ChainId,
}

impl Party {
    #[must_use]
    pub fn id(&self) -> BotId {
        self.key.id()
    }
}

/// What a message turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The next one; it is in the transcript now.
    New,
    /// One that we have. Where it is their last, our answer may be lost: this is to be said again.
    Repeat(Option<Box<SignedMessage>>),
}

/// One negotiation, seen from one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    role: Role,
    transcript: Transcript,
    /// A second message under one step, signed by the other side.
    contradiction: Option<Box<SignedMessage>>,
}

impl Conversation {
    /// The buyer's: it says the demand.
    ///
    /// # Errors
    /// [`MessageRefusal`] when the demand is not this party's or too large.
    pub fn open(
        party: &Party,
        demand: croft_protocol::market::Demand,
        expires_ms: u64,
    ) -> Result<Self, MessageRefusal> {
        let message = Message {
            negotiation: demand.id(&party.chain),
            step: 0,
            prev: Hash::ZERO,
            author: party.id(),
            expires_ms,
            said: Said::Demand(demand),
            note: String::new(),
        };
        let first = SignedMessage::sign(message, &party.chain, &party.key);
        let transcript = Transcript::open(&party.chain, first)?;
        Ok(Self { role: Role::Buyer, transcript, contradiction: None })
    }

    /// The farmer's: it heard a demand.
    ///
    /// # Errors
    /// [`MessageRefusal`] when it is none, not for this farmer, or void.
    pub fn answer(party: &Party, first: SignedMessage, now_ms: u64) -> Result<Self, MessageRefusal> {
        if let Said::Demand(demand) = &first.message.said
            && demand.farmer != party.id()
        {
            return Err(MessageRefusal::NotAddressed { farmer: demand.farmer, ours: party.id() });
        }
        check_open(&first.message, now_ms)?;
        let transcript = Transcript::open(&party.chain, first)?;
        Ok(Self { role: Role::Farmer, transcript, contradiction: None })
    }

    /// From what was kept over a restart.
    ///
    /// # Errors
    /// [`MessageRefusal`] when the transcript does not hold.
    pub fn restore(party: &Party, role: Role, transcript: Transcript) -> Result<Self, MessageRefusal> {
        transcript.verify(&party.chain)?;
        Ok(Self { role, transcript, contradiction: None })
    }

    /// Takes a message of the other side.
    ///
    /// # Errors
    /// [`MessageRefusal`] names what is wrong with it; then nothing changed, except that a contradiction is kept.
    pub fn hear(
        &mut self,
        chain: &ChainId,
        message: SignedMessage,
        now_ms: u64,
    ) -> Result<Heard, MessageRefusal> {
        let step = message.message.step;
        if step < self.transcript.next_step() {
            return self.hear_again(chain, message);
        }
        check_open(&message.message, now_ms)?;
        let before = &self.transcript.last().message;
        if now_ms > before.expires_ms {
            let (what, expired_ms) = (before.said.name(), before.expires_ms);
            return Err(MessageRefusal::Expired { what, expired_ms, now_ms });
        }
        self.transcript.append(chain, message)?;
        Ok(Heard::New)
    }

    fn hear_again(&mut self, chain: &ChainId, message: SignedMessage) -> Result<Heard, MessageRefusal> {
        let (step, author) = (message.message.step, message.message.author);
        if self.transcript.holds(&message) {
            // Ours came back to us, or theirs came twice. Only their last one may want our answer again.
            let answer = self.transcript.messages().get(step as usize + 1);
            let wanted = Role::of_step(step) != self.role && step + 2 == self.transcript.next_step();
            return Ok(Heard::Repeat(answer.filter(|_| wanted).cloned().map(Box::new)));
        }
        let expected = self.transcript.demand().party(Role::of_step(step));
        if author != expected {
            return Err(MessageRefusal::Turn { step, author, expected });
        }
        if message.verify(chain).is_err() {
            return Err(MessageRefusal::Signature { step, author });
        }
        if Role::of_step(step) != self.role {
            self.contradiction.get_or_insert(Box::new(message));
        }
        Err(MessageRefusal::Contradiction { step, author })
    }

    /// Says the next message.
    ///
    /// # Errors
    /// [`MessageRefusal`] when it is not this side's turn, or this can't be said now.
    pub fn say(
        &mut self,
        party: &Party,
        said: Said,
        expires_ms: u64,
    ) -> Result<SignedMessage, MessageRefusal> {
        let step = self.transcript.next_step();
        let message = Message {
            negotiation: self.transcript.id(),
            step,
            prev: self.transcript.last().hash(),
            author: party.id(),
            expires_ms,
            said,
            note: String::new(),
        };
        let signed = SignedMessage::sign(message, &party.chain, &party.key);
        self.transcript.append(&party.chain, signed.clone())?;
        Ok(signed)
    }

    /// Whether this side is to speak.
    #[must_use]
    pub fn is_my_turn(&self) -> bool {
        !self.transcript.is_ended() && self.transcript.turn() == self.role
    }

    /// What to say again when no answer came; `None` when the other side owes nothing.
    #[must_use]
    pub fn unanswered(&self) -> Option<&SignedMessage> {
        let theirs = !self.transcript.is_ended() && self.transcript.turn() != self.role;
        theirs.then(|| self.transcript.last())
    }

    /// When nobody can go on any more.
    #[must_use]
    pub fn expires_ms(&self) -> u64 {
        self.transcript.last().message.expires_ms
    }

    /// Whether there is room for a proposal, its answer and a last word after one more round of prices.
    #[must_use]
    pub fn has_room_for_a_round(&self) -> bool {
        self.transcript.next_step() + 6 <= STEPS
    }

    #[must_use]
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// Two different messages of the other side under one step, if it said such.
    #[must_use]
    pub fn contradiction(&self) -> Option<(&SignedMessage, &SignedMessage)> {
        let second = self.contradiction.as_deref()?;
        Some((self.transcript.messages().get(second.message.step as usize)?, second))
    }
}

#[cfg(test)]
mod tests;
