//! What was said in a negotiation, in order, so that either side can prove it.
//!
//! ```text
//!   step 0 Demand ──hash──> step 1 Offer ──hash──> step 2 Counter ... each signed by the one whose turn it is
//! ```
//! [`Transcript::verify`] needs nothing but the chain: whoever gets a transcript knows who said what. It must never
//! hold a message that was not checked against the ones before it.

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::market::{
    Demand, MESSAGE_BYTES, Message, NegotiationId, OPEN_MS, Quote, RESERVATION, RESERVATION_MS, Reservation,
    Role, STEPS, Said, SignedMessage, SignedReservation,
};
use croft_protocol::{BotId, BotSignature, ChainId, Hash, SignedTerms, Terms, limits};

/// Why a message does not belong where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageRefusal {
    #[error("the message has {len} bytes, at most {limit} are allowed: say less")]
    TooLarge { len: usize, limit: usize },
    #[error("the note has {len} bytes, at most {limit} are allowed: say less")]
    Note { len: usize, limit: usize },
    #[error("the signature of {author} over step {step} is wrong: it was forged, or made for another grid")]
    Signature { step: u32, author: BotId },
    #[error(
        "negotiation {negotiation} is unknown here: it ended or was forgotten; open another with a demand"
    )]
    Unknown { negotiation: NegotiationId },
    #[error("the message names negotiation {got}, but its demand makes it {expected}: it was altered")]
    Negotiation { got: NegotiationId, expected: NegotiationId },
    #[error("the demand is for {farmer}, not for {ours}: send it to the farm's owner")]
    NotAddressed { farmer: BotId, ours: BotId },
    #[error("step {step} is for {expected} to say, not for {author}")]
    Turn { step: u32, author: BotId, expected: BotId },
    #[error("step {got} came where step {expected} is next: a message is missing, say it again")]
    Step { got: u32, expected: u32 },
    #[error("step {step} of {author} was replayed with another content: both messages are kept as proof")]
    Contradiction { step: u32, author: BotId },
    #[error("step {step} follows another message than the one that was said: it was altered or replayed")]
    Chain { step: u32 },
    #[error("{next} can't follow {before}: check the order of the steps")]
    Order { before: &'static str, next: &'static str },
    #[error("a negotiation has at most {limit} messages: propose, or reject")]
    TooManySteps { limit: u32 },
    #[error("{what} is void since {expired_ms} ms, it is {now_ms} ms: negotiate again, and check your clock")]
    Expired { what: &'static str, expired_ms: u64, now_ms: u64 },
    #[error("step {step} stays open for {open_ms} ms, at most {limit_ms} are allowed: let it expire sooner")]
    OpenTooLong { step: u32, open_ms: u64, limit_ms: u64 },
    #[error("the proposal's {what} differs from what was demanded and quoted: propose exactly that")]
    NotAsQuoted { what: &'static str },
    #[error("the reservation of contract {contract} is not signed by {party}: it was tampered with")]
    Reservation { contract: croft_protocol::ContractId, party: BotId },
    #[error("the terms of contract {contract} are not signed by {party}: sign what was proposed")]
    Terms { contract: croft_protocol::ContractId, party: BotId },
    #[error("the commit names contract {got}, but {expected} was proposed")]
    OtherContract { got: croft_protocol::ContractId, expected: croft_protocol::ContractId },
}

/// Every message of one negotiation so far.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Transcript {
    messages: Vec<SignedMessage>,
}

impl Transcript {
    /// Begins with a demand that was checked.
    ///
    /// # Errors
    /// [`MessageRefusal`] when it is no demand, or not its buyer's.
    pub fn open(chain: &ChainId, first: SignedMessage) -> Result<Self, MessageRefusal> {
        let message = &first.message;
        check_size(&first)?;
        let Said::Demand(demand) = &message.said else {
            return Err(MessageRefusal::Unknown { negotiation: message.negotiation });
        };
        let expected = demand.id(chain);
        if message.negotiation != expected {
            return Err(MessageRefusal::Negotiation { got: message.negotiation, expected });
        }
        if message.step != 0 || message.prev != Hash::ZERO {
            return Err(MessageRefusal::Step { got: message.step, expected: 0 });
        }
        check_author(&first, chain, demand)?;
        Ok(Self { messages: vec![first] })
    }

    /// Adds the next message.
    ///
    /// # Errors
    /// [`MessageRefusal`] says why it can't be the next one; then nothing changed.
    pub fn append(&mut self, chain: &ChainId, next: SignedMessage) -> Result<(), MessageRefusal> {
        check_size(&next)?;
        let message = &next.message;
        let (id, expected) = (self.id(), self.next_step());
        if message.negotiation != id {
            return Err(MessageRefusal::Negotiation { got: message.negotiation, expected: id });
        }
        if message.step != expected {
            return Err(MessageRefusal::Step { got: message.step, expected });
        }
        if expected >= STEPS {
            return Err(MessageRefusal::TooManySteps { limit: STEPS });
        }
        check_author(&next, chain, self.demand())?;
        if message.prev != self.last().hash() {
            return Err(MessageRefusal::Chain { step: message.step });
        }
        self.check_order(&message.said)?;
        // Whose key this is was asked when the message came in; what is signed inside it must be by the same one, or the
        // ledger would take none of it.
        let signer = next.signature.key(&message.author);
        match &message.said {
            Said::Propose { terms, fee, user } => {
                self.check_proposal(chain, message, terms, *fee, user)?;
                if user.key(&message.author) != signer {
                    let (contract, party) = (terms.id(), message.author);
                    return Err(MessageRefusal::Reservation { contract, party });
                }
            }
            Said::Approve { terms, reservation } => {
                self.check_approval(chain, terms, reservation)?;
                let contract = self.proposal().map(|(terms, ..)| terms.id());
                let party = message.author;
                if let Some(contract) = contract.filter(|_| terms.key(&party) != signer) {
                    return Err(MessageRefusal::Terms { contract, party });
                }
                if let Some(contract) = contract.filter(|_| reservation.key(&party) != signer) {
                    return Err(MessageRefusal::Reservation { contract, party });
                }
            }
            Said::Commit { contract } => {
                let expected = self.proposal().map_or(*contract, |(terms, ..)| terms.id());
                if *contract != expected {
                    return Err(MessageRefusal::OtherContract { got: *contract, expected });
                }
            }
            Said::Demand(_) | Said::Offer(_) | Said::Counter(_) | Said::Reject { .. } => {}
        }
        self.messages.push(next);
        Ok(())
    }

    /// Checks everything again, as whoever was not there would: ids, turns, hashes, signatures, and that what was
    /// proposed and approved is what was quoted.
    ///
    /// # Errors
    /// [`MessageRefusal`] names the first step that does not hold.
    pub fn verify(&self, chain: &ChainId) -> Result<(), MessageRefusal> {
        let mut messages = self.messages.iter().cloned();
        let first = messages.next().ok_or(MessageRefusal::Step { got: 0, expected: 0 })?;
        let mut again = Self::open(chain, first)?;
        for message in messages {
            again.append(chain, message)?;
        }
        Ok(())
    }

    fn check_order(&self, next: &Said) -> Result<(), MessageRefusal> {
        let before = &self.last().message.said;
        let role = Role::of_step(self.next_step());
        let quoted = self.quote().is_some();
        let fine = match (role, before, next) {
            (_, last, _) if last.is_end() => false,
            (Role::Farmer, Said::Demand(_), Said::Offer(_))
            | (Role::Farmer, Said::Counter(_), Said::Counter(_))
            | (Role::Farmer, Said::Propose { .. }, Said::Approve { .. })
            | (Role::Buyer, Said::Approve { .. }, Said::Commit { .. })
            | (Role::Buyer, Said::Offer(_) | Said::Counter(_), Said::Counter(_) | Said::Propose { .. })
            | (_, _, Said::Reject { .. }) => true,
            (Role::Buyer, Said::Reject { .. }, Said::Counter(_) | Said::Propose { .. })
            | (Role::Farmer, Said::Reject { .. }, Said::Counter(_)) => quoted,
            _ => false,
        };
        if fine { Ok(()) } else { Err(MessageRefusal::Order { before: before.name(), next: next.name() }) }
    }

    fn check_proposal(
        &self,
        chain: &ChainId,
        message: &Message,
        terms: &Terms,
        fee: croft_protocol::Grains,
        user: &BotSignature,
    ) -> Result<(), MessageRefusal> {
        let demand = self.demand();
        let quote = self.quote().ok_or(MessageRefusal::NotAsQuoted { what: "price" })?;
        let same = [
            ("user", terms.user == demand.buyer),
            ("farmer", terms.farmer == demand.farmer),
            ("farm", terms.farm == demand.farm),
            ("node", terms.node == demand.node),
            ("resources", terms.resources == demand.resources),
            ("ports", terms.ports == demand.ports),
            ("duration", terms.duration_s == demand.duration_s),
            ("grace", terms.grace_s == demand.grace_s),
            ("prepaid time", terms.prepaid_s == demand.prepaid_s),
            ("price", terms.rate == quote.rate),
            ("capacity version", terms.capacity_version == quote.capacity_version),
            ("fee", fee == quote.hold_fee),
            ("expiry", terms.expires_ms >= message.expires_ms),
        ];
        if let Some((what, _)) = same.into_iter().find(|(_, same)| !same) {
            return Err(MessageRefusal::NotAsQuoted { what });
        }
        let reservation = Reservation::of(message.negotiation, terms, fee);
        reservation
            .user
            .verify(RESERVATION, chain, &reservation, user)
            .map_err(|bad| MessageRefusal::Reservation { contract: reservation.contract, party: bad.key })
    }

    fn check_approval(
        &self,
        chain: &ChainId,
        signature: &BotSignature,
        reservation: &BotSignature,
    ) -> Result<(), MessageRefusal> {
        let order = MessageRefusal::Order { before: "no proposal", next: "an approval" };
        let (terms, fee, _) = self.proposal().ok_or(order)?;
        let contract = terms.id();
        terms
            .farmer
            .verify(croft_protocol::keys::Domain::TERMS, chain, terms, signature)
            .map_err(|bad| MessageRefusal::Terms { contract, party: bad.key })?;
        let held = Reservation::of(self.id(), terms, fee);
        held.farmer
            .verify(RESERVATION, chain, &held, reservation)
            .map_err(|bad| MessageRefusal::Reservation { contract, party: bad.key })
    }

    #[must_use]
    pub fn messages(&self) -> &[SignedMessage] {
        &self.messages
    }

    #[must_use]
    pub fn id(&self) -> NegotiationId {
        self.messages[0].message.negotiation
    }

    #[must_use]
    pub fn demand(&self) -> &Demand {
        match &self.messages[0].message.said {
            Said::Demand(demand) => demand,
            _ => unreachable!("a transcript opens with a demand"),
        }
    }

    #[must_use]
    pub fn last(&self) -> &SignedMessage {
        self.messages.last().expect("a transcript opens with a demand")
    }

    /// That of the message that is to be said next.
    #[must_use]
    pub fn next_step(&self) -> u32 {
        self.messages.len() as u32
    }

    /// Whose turn it is.
    #[must_use]
    pub fn turn(&self) -> Role {
        Role::of_step(self.next_step())
    }

    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.last().message.said.is_end()
    }

    /// What one side quoted last.
    #[must_use]
    pub fn quote_of(&self, role: Role) -> Option<Quote> {
        let of = |m: &&SignedMessage| Role::of_step(m.message.step) == role;
        self.messages.iter().rev().filter(of).find_map(|m| match &m.message.said {
            Said::Offer(quote) | Said::Counter(quote) => Some(*quote),
            _ => None,
        })
    }

    /// What can be proposed: the farmer's last word.
    #[must_use]
    pub fn quote(&self) -> Option<Quote> {
        self.quote_of(Role::Farmer)
    }

    /// The last proposal: terms, fee, and the user's signature over the reservation.
    #[must_use]
    pub fn proposal(&self) -> Option<(&Terms, croft_protocol::Grains, &BotSignature)> {
        self.messages.iter().rev().find_map(|m| match &m.message.said {
            Said::Propose { terms, fee, user } => Some((terms.as_ref(), *fee, user)),
            _ => None,
        })
    }

    /// The reservation, if the last proposal was approved.
    #[must_use]
    pub fn reservation(&self) -> Option<SignedReservation> {
        let (terms, fee, user) = self.proposal()?;
        let reservation = Reservation::of(self.id(), terms, fee);
        self.approval().map(|(_, farmer)| SignedReservation {
            reservation,
            user: user.clone(),
            farmer: farmer.clone(),
        })
    }

    /// The terms with both signatures, once the farmer approved and the user signs.
    #[must_use]
    pub fn agreed(&self, user: BotSignature) -> Option<SignedTerms> {
        let (terms, ..) = self.proposal()?;
        self.approval().map(|(farmer, _)| SignedTerms { terms: terms.clone(), user, farmer: farmer.clone() })
    }

    fn approval(&self) -> Option<(&BotSignature, &BotSignature)> {
        self.messages.iter().rev().find_map(|m| match &m.message.said {
            Said::Approve { terms, reservation } => Some((terms, reservation)),
            _ => None,
        })
    }

    /// Prices that either side has named.
    #[must_use]
    pub fn rounds(&self) -> u32 {
        let prices = |m: &&SignedMessage| matches!(m.message.said, Said::Offer(_) | Said::Counter(_));
        self.messages.iter().filter(prices).count() as u32
    }

    /// Whether a message is one of these, word for word.
    #[must_use]
    pub fn holds(&self, message: &SignedMessage) -> bool {
        self.messages.get(message.message.step as usize) == Some(message)
    }
}

/// Whether a message, said at this time, is open for no longer than allowed, and still is.
///
/// # Errors
/// [`MessageRefusal`] says how to correct it.
pub fn check_open(message: &Message, now_ms: u64) -> Result<(), MessageRefusal> {
    let what = message.said.name();
    let open = |what, expires_ms: u64, limit_ms| {
        let Some(open_ms) = expires_ms.checked_sub(now_ms) else {
            return Err(MessageRefusal::Expired { what, expired_ms: expires_ms, now_ms });
        };
        if open_ms > limit_ms {
            return Err(MessageRefusal::OpenTooLong { step: message.step, open_ms, limit_ms });
        }
        Ok(())
    };
    open(what, message.expires_ms, OPEN_MS)?;
    match &message.said {
        Said::Propose { terms, .. } => open("the reservation", terms.expires_ms, RESERVATION_MS),
        _ => Ok(()),
    }
}

fn check_size(message: &SignedMessage) -> Result<(), MessageRefusal> {
    let len = message.message.note.len();
    if len > limits::TEXT_BYTES {
        return Err(MessageRefusal::Note { len, limit: limits::TEXT_BYTES });
    }
    let len = croft_protocol::encode(message).len();
    if len > MESSAGE_BYTES {
        return Err(MessageRefusal::TooLarge { len, limit: MESSAGE_BYTES });
    }
    Ok(())
}

fn check_author(message: &SignedMessage, chain: &ChainId, demand: &Demand) -> Result<(), MessageRefusal> {
    let (step, author) = (message.message.step, message.message.author);
    let expected = demand.party(Role::of_step(step));
    if author != expected {
        return Err(MessageRefusal::Turn { step, author, expected });
    }
    message.verify(chain).map_err(|_| MessageRefusal::Signature { step, author })
}
