//! What farmers bring to the ledger of reservations, and what buyers find of it.

use croft_ledger::StateReadExt;
use croft_market::DeskEvent;
use croft_protocol::{Announcement, BotSignature, Command, ContractId, Rejection};

use super::World;
use crate::Mutation;
use crate::actors::Buyer;
use crate::oracle::check_words;

/// A command on its way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Brought {
    Announcement(ContractId),
    Claim(ContractId),
}

impl World {
    pub(super) fn announce(&mut self, farm: usize, announcement: Box<Announcement>) {
        let (key, contract) = (self.farms[farm].key.clone(), announcement.terms.id());
        let ticket = self.ledger.submit(&key, Command::AnnounceReservation(announcement));
        self.brought.insert(ticket, (farm, Brought::Announcement(contract)));
    }

    /// What a buyer finds of a farmer's approval on the ledger.
    pub(super) fn approval(
        &self,
        bot: usize,
        contract: &ContractId,
    ) -> Result<Option<(BotSignature, BotSignature)>, String> {
        let blind = self.bots[bot].kind == Buyer::Honest
            && self.options.mutation == Some(Mutation::OverlooksAnnouncements);
        let body = self.ledger.reservation(contract).map_err(|e| e.to_string())?.filter(|_| !blind);
        Ok(body.map(|body| (body.approval, body.signed.farmer)))
    }

    /// The ledger's answer to an announcement or a claim, which may get lost.
    pub(super) fn brought(
        &mut self,
        farm: usize,
        brought: Brought,
        result: Result<(), Rejection>,
    ) -> Result<(), String> {
        if let Err(rejection) = &result {
            check_words(&rejection.to_string())?;
        }
        let event = match brought {
            Brought::Announcement(contract) => {
                if result.is_ok() {
                    self.summary.announced += 1;
                    self.announced.insert(contract);
                }
                DeskEvent::Announced { contract, result }
            }
            Brought::Claim(contract) => {
                self.check_claim(contract, &result)?;
                DeskEvent::Claimed { contract, result }
            }
        };
        if self.random.permille(50) { Ok(()) } else { self.drive_farm(farm, event) }
    }
}
