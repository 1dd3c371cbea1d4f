//! Contracts that are paid as they go on: some owners fund them in time, some late, some not at all.

use croft_ledger::StateReadExt;
use croft_protocol::contract::{ContractBody, ContractState};
use croft_protocol::{Command, ContractId, Rejection, limits};

use super::{START_MS, World};
use crate::oracle::check_words;

/// What they prepay and add each time: the least that the ledger takes.
pub(crate) const PREPAID_S: u64 = limits::PREPAID_S;
/// When they begin to think of it.
const AHEAD_MS: u64 = 600_000;
/// From then on everybody thinks of it, so that a run can end well.
const CAREFUL_MS: u64 = START_MS + super::LONG_MS - super::LONG_MS / 4;

impl World {
    /// Adds funds where they are low, or leaves it for later. Whether the contract needs no other look: it stands still.
    pub(super) fn look_after_funds(
        &mut self,
        bot: usize,
        contract: ContractId,
        body: &ContractBody,
    ) -> Result<bool, String> {
        let terms = &body.signed.terms;
        if terms.prepaid_s.is_none() {
            return Ok(false);
        }
        let escrow = self.ledger.escrow(&contract).map_err(|e| e.to_string())?;
        let escrow = escrow.ok_or_else(|| format!("contract {contract} has no escrow"))?;
        let is_paused = matches!(body.state, ContractState::Paused { .. });
        let left_ms = escrow.runs_ms(terms.rate);
        if !is_paused && left_ms > AHEAD_MS.min(body.time_left_ms(&escrow)) {
            return Ok(false);
        }
        if body.funds_awaited_until_ms().is_some_and(|until_ms| self.now_ms >= until_ms) {
            // Too late; anybody may say so.
            self.ledger.submit(&self.bots[bot].key.clone(), Command::Settle { contract });
            return Ok(true);
        }
        let thinks_of_it = self.now_ms > CAREFUL_MS || self.random.permille(if is_paused { 100 } else { 30 });
        // Some of what is sent never arrives.
        if thinks_of_it && !self.random.permille(50) {
            let price = terms.price().ok_or("a price that overflows")?;
            let hour = terms.rate.for_seconds(PREPAID_S).ok_or("a rate that overflows")?;
            let amount = hour.min(croft_protocol::Grains(price.0.saturating_sub(escrow.deposit.0)));
            self.note(format!("bot {bot} adds {amount} to contract {contract}"));
            self.summary.funded += 1;
            self.ledger.submit(&self.bots[bot].key.clone(), Command::Fund { contract, amount });
        }
        Ok(is_paused)
    }

    /// Nobody pays for a contract while it stands still.
    pub(super) fn check_pause(&mut self, contract: ContractId, state: ContractState) -> Result<(), String> {
        if !matches!(state, ContractState::Paused { .. }) {
            self.paused.remove(&contract);
            return Ok(());
        }
        let escrow = self.ledger.escrow(&contract).map_err(|e| e.to_string())?;
        let paid = escrow.map_or(0, |escrow| escrow.paid.0);
        match self.paused.insert(contract, paid) {
            Some(before) if before != paid => {
                Err(format!("contract {contract} stood still and paid {}", paid.abs_diff(before)))
            }
            Some(_) => Ok(()),
            None => {
                self.note(format!("contract {contract} is out of funds"));
                self.summary.paused += 1;
                Ok(())
            }
        }
    }

    /// Everybody ends what he has, so that all the money must be where it belongs.
    pub(super) fn settle_up(&mut self) -> Result<(), String> {
        for bot in 0..self.bots.len() {
            let Some(contract) = self.bots[bot].placed else { continue };
            self.ledger.submit(&self.bots[bot].key.clone(), Command::Close { contract });
        }
        for (_, result) in self.ledger.commit(self.now_ms + super::BLOCK_MS) {
            if let Err(rejection) = result
                && !matches!(rejection, Rejection::Ended { .. } | Rejection::Report { .. })
            {
                check_words(&rejection.to_string())?;
            }
        }
        // Nobody's node reports any more: what was held for that goes back, whoever asks.
        let ended: Vec<ContractId> = self.agreed.values().flatten().copied().collect();
        if let Some(anybody) = self.bots.first().map(|bot| bot.key.clone()) {
            for contract in ended {
                self.ledger.submit(&anybody, Command::Settle { contract });
            }
        }
        for (_, result) in self.ledger.commit(self.ledger.time_ms + limits::FINAL_REPORT_MS) {
            if let Err(rejection) = result
                && !matches!(rejection, Rejection::Ended { .. })
            {
                check_words(&rejection.to_string())?;
            }
        }
        self.check_end()
    }
}
