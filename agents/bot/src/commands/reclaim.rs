//! `croft wallet reclaim`: fees of unused reservations that their farmers left lying.
//!
//! ```text
//!   reservations of this bot (searched for, proved) ──held for longer than a farmer may claim──> ClaimReservation: back
//!                                                   └─not yet──> who may claim it until when
//! ```
//! It must never claim for a farmer: what he may still have is his.

use croft_protocol::api::Query;
use croft_protocol::{
    Body, BotId, Command, ContractId, Grains, Kind, Name, ReservationBody, ReservationState,
};
use serde::Serialize;

use super::Context;
use super::show::BotNames;
use crate::exit::Failure;
use crate::grid::now_ms;
use crate::terminal::{push, show_time};

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Fee {
    contract: ContractId,
    farmer: String,
    amount: Grains,
    /// Until when it is the farmer's to claim: milliseconds since 1970, UTC.
    claimable_until_ms: u64,
}

#[derive(Serialize)]
struct Reclaimed {
    bot: Name,
    back: Vec<Fee>,
    waiting: Vec<Fee>,
    balance: Grains,
}

/// Whether a bot may have its fee back; `None` where there is none of its own to have.
fn is_due(body: &ReservationBody, me: BotId, now_ms: u64) -> Option<bool> {
    let held = &body.signed.reservation;
    let is_ours = held.user == me && held.fee > Grains::ZERO && body.state == ReservationState::Held;
    is_ours.then(|| body.claim(&me, now_ms) == Ok(ReservationState::Lapsed))
}

pub(super) async fn reclaim(c: &mut Context<'_>) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let (grid, me) = (&acting.grid, acting.id());
    let mut ids = grid.find_unproved(&Query::Reservations { of: me }).await?;
    ids.retain(|id| id.kind == Kind::Reservation);
    ids.sort_unstable();
    ids.dedup();
    let (mut back, mut waiting, mut names) = (Vec::new(), Vec::new(), BotNames::default());
    for id in ids {
        let Some(record) = grid.record(id).await? else { continue };
        let Body::Reservation(body) = &record.body else { continue };
        let Some(is_due) = is_due(body, me, now_ms()) else { continue };
        let held = &body.signed.reservation;
        let (contract, amount) = (held.contract, held.fee);
        let farmer = names.name(grid, held.farmer).await?;
        let fee = Fee { contract, farmer, amount, claimable_until_ms: body.claimable_until_ms() };
        if is_due {
            grid.submit(&acting.key, &Command::ClaimReservation { contract }).await?;
            back.push(fee);
        } else {
            waiting.push(fee);
        }
    }
    let balance = grid.account(me).await?.balance;
    acting.grid.close().await;
    c.terminal.result(&Reclaimed { bot: acting.name.clone(), back, waiting, balance }, |r| {
        let mut text = String::new();
        for fee in &r.back {
            push!(text, "{} are back: {} did not claim them\n", fee.amount, fee.farmer);
        }
        for fee in &r.waiting {
            let until = show_time(fee.claimable_until_ms);
            push!(text, "{} wait: {} may claim them until {until}\n", fee.amount, fee.farmer);
        }
        if text.is_empty() {
            text.push_str("no fee of an unused reservation is held\n");
        }
        push!(text, "wallet of '{}': {}\n", r.bot, r.balance);
        text
    })
}

#[cfg(test)]
mod tests {
    use croft_protocol::market::{CLAIM_MS, Reservation, SignedReservation};
    use croft_protocol::{Capacity, Hash, SecretKey, Signature};

    use super::*;

    #[test]
    fn a_fee_is_back_when_its_farmer_let_a_day_go_by_and_not_before() {
        let [user, farmer, node] = [1, 2, 3].map(|n| SecretKey::from_seed(&[n; 32]).public());
        let reservation = Reservation {
            negotiation: croft_protocol::market::NegotiationId(Hash::ZERO),
            contract: ContractId(Hash::ZERO),
            user,
            farmer,
            node,
            resources: Capacity::default(),
            capacity_version: 1,
            fee: Grains(5),
            expires_ms: 1_000,
        };
        let signature = || Signature([0; 64]).into();
        let signed = SignedReservation { reservation, user: signature(), farmer: signature() };
        let held = ReservationBody {
            signed,
            ports: Vec::new(),
            approval: signature(),
            announced_ms: 500,
            state: ReservationState::Held,
        };
        assert_eq!(is_due(&held, user, 1_000 + CLAIM_MS), Some(false), "it is the farmer's to claim");
        assert_eq!(is_due(&held, user, 1_001 + CLAIM_MS), Some(true));
        assert_eq!(is_due(&held, farmer, 1_001 + CLAIM_MS), None, "it was never his");
        let paid = ReservationBody { state: ReservationState::Claimed, ..held };
        assert_eq!(is_due(&paid, user, 1_001 + CLAIM_MS), None);
    }
}
