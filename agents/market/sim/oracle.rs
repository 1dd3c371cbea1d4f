//! What must hold, whatever happened. Looks at the ledger and at what the machines say, never changes anything but its
//! own books.

use croft_ledger::StateReadExt;
use croft_market::Outcome;
use croft_protocol::{Capacity, ContractId, Grains, PublicKey, Rejection, ReservationState, StateKey};

use crate::actors::{Bot, Buyer, Farm, Seller};
use crate::world::{World, explains};

impl World {
    /// A contract came to be: it is the only one of its order, and within the owner's limits.
    pub(crate) fn check_agreed(&mut self, bot: usize, contract: ContractId) -> Result<(), String> {
        let body = self.ledger.contract(&contract).map_err(|e| e.to_string())?;
        let body = body.ok_or_else(|| format!("contract {contract} was accepted and is not there"))?;
        let (terms, wish) = (&body.signed.terms, &self.bots[bot].wish);
        let price = terms.price().ok_or("a price that overflows")?;
        if price > wish.max_price {
            return Err(format!("bot {bot} pays {price}, its limit is {}", wish.max_price));
        }
        if terms.resources != wish.resources || terms.duration_s != wish.duration_s {
            return Err(format!("bot {bot} got something else than it ordered"));
        }
        if wish.avoid.contains(&terms.node) {
            return Err(format!("bot {bot} is on node {} again, which let it down", terms.node));
        }
        let all = self.agreed.entry((terms.user, terms.name.clone())).or_default();
        all.insert(contract);
        if all.len() > 1 {
            return Err(format!("bot {bot} ordered twice: {all:?}"));
        }
        Ok(())
    }

    /// An order ended: what it says is what the ledger says, and everything is explained.
    pub(crate) fn check_outcome(&mut self, bot: usize, outcome: &Outcome) -> Result<(), String> {
        let it = &self.bots[bot];
        let known = self.agreed.get(&(it.key.public(), it.wish.name.clone()));
        match &outcome.result {
            Ok(contract) => {
                if known.is_none_or(|known| !known.contains(contract)) {
                    return Err(format!(
                        "bot {bot} says that it has contract {contract}, the ledger does not"
                    ));
                }
            }
            Err(failure) => {
                if let Some(known) = known {
                    return Err(format!(
                        "order '{}' of bot {bot} failed, but {known:?} is there",
                        it.wish.name
                    ));
                }
                if !explains(failure) {
                    return Err(format!("bot {bot} failed without a reason"));
                }
            }
        }
        if let Some(silent) = outcome.explain.others.iter().find(|other| other.why.is_empty()) {
            return Err(format!("bot {bot}: nobody says why not node {}", silent.node));
        }
        for other in &outcome.explain.others {
            for why in &other.why {
                check_words(&why.to_string())?;
            }
        }
        Ok(())
    }

    /// What an honest farm promised and what it sold is no more than what it has.
    pub(crate) fn check_promises(&self, farm: usize) -> Result<(), String> {
        let it = &self.farms[farm];
        let Some(books) = self.ledger.capacity(&it.node.public()).map_err(|e| e.to_string())? else {
            return Ok(());
        };
        let mut sum = books.used;
        // From its journal: what it said, not what it remembers.
        let mut promised = std::collections::BTreeMap::<ContractId, Capacity>::new();
        for entry in &it.journal.0 {
            let croft_market::DeskEntry::Held(transcript) = entry else { continue };
            let Some((terms, ..)) = transcript.proposal() else { continue };
            let on_ledger = self.ledger.contract(&terms.id()).map_err(|e| e.to_string())?.is_some();
            let given_back = transcript_rejected(it, &transcript.id());
            let in_books = self.ledger.node_reservations(&terms.node).map_err(|e| e.to_string())?.contracts;
            let in_books = in_books.binary_search(&terms.id()).is_ok();
            if !on_ledger && !in_books && !given_back && terms.expires_ms > self.now_ms {
                promised.insert(terms.id(), terms.resources);
            }
        }
        for resources in promised.values() {
            sum = sum.checked_add(resources).ok_or("capacity overflows")?;
        }
        if books.total.covers(&sum) {
            return Ok(());
        }
        Err(format!("farm {farm} promised more than it has: {sum:?} of {:?}", books.total))
    }

    /// What the ledger said to a claim: a fee is due once, for what was announced, and nobody honest owes one.
    pub(crate) fn check_claim(
        &mut self,
        contract: ContractId,
        result: &Result<(), Rejection>,
    ) -> Result<(), String> {
        if result.is_err() {
            self.summary.claims_refused += 1;
            return Ok(());
        }
        let body = self.ledger.reservation(&contract).map_err(|e| e.to_string())?;
        let body =
            body.ok_or_else(|| format!("the fee for {contract} was paid, which was never reserved"))?;
        let held = &body.signed.reservation;
        if body.state != ReservationState::Claimed || !self.announced.contains(&contract) {
            return Err(format!("the fee for {contract} was paid, which is {:?}", body.state));
        }
        if self.ledger.contract(&contract).map_err(|e| e.to_string())?.is_some() {
            return Err(format!("the fee for {contract} was paid, which was used"));
        }
        self.summary.fees_paid += held.fee.0;
        *self.fees.entry(held.user).or_default() += held.fee.0;
        let owner = self.bots.iter().position(|bot| bot.key.public() == held.user);
        if let Some(bot) = owner.filter(|bot| self.bots[*bot].kind == Buyer::Honest) {
            return Err(format!("bot {bot} is honest and owes {} for {contract}", held.fee));
        }
        Ok(())
    }

    /// Fees of a bot that nobody has claimed yet.
    fn fees_held(&self, bot: &PublicKey) -> Result<u64, String> {
        let mut held = 0;
        for contract in &self.announced {
            let body = self.ledger.reservation(contract).map_err(|e| e.to_string())?;
            if body.is_some_and(|body| body.signed.reservation.user == *bot) {
                let fee: Option<Grains> =
                    self.ledger.read(&StateKey::HeldFee(*contract)).map_err(|e| e.to_string())?;
                held += fee.unwrap_or_default().0;
            }
        }
        Ok(held)
    }

    /// Whether there is nothing for a bot: it has no contract, and no honest farm that it could ask has the room for what it
    /// wants at its price.
    pub(crate) fn is_rightly_without(&self, bot: &Bot) -> bool {
        let wish = &bot.wish;
        let fits = |farm: &Farm| {
            let Some(books) = self.ledger.capacity(&farm.node.public()).ok().flatten() else { return false };
            let Some(needed) = books.used.checked_add(&wish.resources) else { return false };
            let price = farm.prices.rate(&wish.resources).and_then(|rate| rate.for_seconds(wish.duration_s));
            let is_asked = farm.kind == Seller::Honest && !bot.avoid.contains(&farm.node.public());
            is_asked && books.total.covers(&needed) && price.is_some_and(|price| price <= wish.max_price)
        };
        bot.placed.is_none() && !self.farms.iter().any(fits)
    }

    pub(crate) fn who_is_not_served(&self) -> String {
        let is_late =
            |bot: &Bot| bot.kind == Buyer::Honest && !self.is_served(bot) && !self.is_rightly_without(bot);
        let late: Vec<usize> = (0..self.bots.len()).filter(|bot| is_late(&self.bots[*bot])).collect();
        format!("honest bots {late:?} have not got what they ordered")
    }

    /// Everything ended: what honest bots have less went for time that was reported, and nothing is held.
    pub(crate) fn check_end(&self) -> Result<(), String> {
        self.ledger.check()?;
        for (index, bot) in self.bots.iter().enumerate() {
            let mut paid = 0;
            for ((user, _), contracts) in &self.agreed {
                for contract in contracts.iter().filter(|_| *user == bot.key.public()) {
                    let escrow = self.ledger.escrow(contract).map_err(|e| e.to_string())?;
                    let escrow = escrow.ok_or_else(|| format!("contract {contract} has no escrow"))?;
                    let body = self.ledger.contract(contract).map_err(|e| e.to_string())?;
                    let rate = body.map_or(0, |body| body.signed.terms.rate.0);
                    if u128::from(escrow.paid.0) > u128::from(rate) * u128::from(escrow.covered_ms) / 1000 {
                        return Err(format!("contract {contract} paid for what was not reported"));
                    }
                    if escrow.held() != Grains::ZERO {
                        return Err(format!("contract {contract} ended and holds {}", escrow.held()));
                    }
                    paid += escrow.paid.0;
                }
            }
            let key = bot.key.public();
            let (balance, fees) =
                (self.ledger.balance(&key), self.fees.get(&key).copied().unwrap_or_default());
            let held = self.fees_held(&key)?;
            if balance + paid + fees + held != bot.funds {
                let had = bot.funds;
                return Err(format!(
                    "bot {index} had {had}, has {balance} and paid {paid}, {fees} and {held}"
                ));
            }
            if bot.kind != Buyer::Honest && paid > bot.funds {
                return Err(format!("bot {index} paid more than it had"));
            }
        }
        Ok(())
    }
}

/// A refusal says something, on one line, of bounded length.
pub(crate) fn check_words(text: &str) -> Result<(), String> {
    let fine = !text.is_empty() && text.len() < 1024 && !text.contains('\n');
    if fine { Ok(()) } else { Err(format!("a refusal without a reason: '{text}'")) }
}

/// Whether the buyer gave an approved reservation back.
fn transcript_rejected(farm: &crate::actors::Farm, id: &croft_protocol::market::NegotiationId) -> bool {
    farm.desk
        .as_ref()
        .and_then(|desk| desk.transcript(id))
        .is_some_and(croft_market::transcript::Transcript::is_ended)
}
