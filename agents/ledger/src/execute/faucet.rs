//! Claims from the faucet of a test grid: a transfer out of an account that nobody can sign for.

use croft_protocol::faucet::{ACCOUNT, Faucet, FaucetClaims, RefusedClaim};
use croft_protocol::record::TransferBody;
use croft_protocol::{Body, PublicKey, RecordId, Rejection, StateKey};

use super::known_bot;
use crate::block::Event;
use crate::state::StateReadExt;
use crate::work::{Step, Stop, Work};

/// What the transfer says.
const MEMO: &str = "faucet";

pub(super) fn claim(work: &mut Work<'_>, author: PublicKey, sequence: u64) -> Step {
    known_bot(work, &author)?;
    let Some(rule) = work.read::<Faucet>(&StateKey::Faucet)? else {
        return Err(refused(RefusedClaim::NoFaucet));
    };
    let key = StateKey::FaucetClaims(author);
    let before: FaucetClaims = work.read(&key)?.unwrap_or_default();
    let claims = rule.claim(before, work.now_ms()).map_err(refused)?;
    let left = work.account(&ACCOUNT)?.balance;
    if left < rule.amount {
        return Err(refused(RefusedClaim::Empty { left }));
    }
    work.debit(&ACCOUNT, rule.amount)?;
    work.credit(&author, rule.amount)?;
    work.put(key, &claims);
    let amount = rule.amount;
    let body = TransferBody { from: ACCOUNT, to: author, amount, memo: MEMO.to_owned() };
    work.append(RecordId::transfer(&author, sequence), Body::Transfer(body), author)?;
    work.event(Event::Transferred { from: ACCOUNT, to: author, amount });
    Ok(())
}

fn refused(why: RefusedClaim) -> Stop {
    Rejection::Faucet(why).into()
}

#[cfg(test)]
mod tests {
    use croft_protocol::{Command, Grains, SecretKey};

    use super::*;
    use crate::memory::{ALLOWANCE, START_MS, Scenario, key};

    const RULE: Faucet = Faucet { fund: Grains(100), amount: Grains(40), every_s: 60, claims_per_bot: 2 };

    fn claim(scenario: &mut Scenario, at_s: u64, who: &SecretKey) -> Result<(), String> {
        let claimed = scenario.ledger.submit_at(START_MS + at_s * 1000, who, Command::ClaimFaucet);
        claimed.map(|_| ()).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn a_bot_gets_its_grains_with_a_record_and_waits_for_more() {
        let mut scenario = Scenario::with_faucet(RULE);
        let user = scenario.user.clone();
        claim(&mut scenario, 10, &user).unwrap();
        assert_eq!(scenario.balance(&user), Grains(ALLOWANCE.0 + 40));
        let record = scenario.ledger.records().last().unwrap();
        let Body::Transfer(transfer) = &record.body else { panic!("{record:?}") };
        assert_eq!((transfer.from, transfer.to, transfer.amount), (ACCOUNT, user.public(), Grains(40)));
        let soon = claim(&mut scenario, 69, &user).unwrap_err();
        assert_eq!(soon, "the faucet gives nothing: the next claim is possible in 1 s");
        claim(&mut scenario, 70, &user).unwrap();
        let enough = claim(&mut scenario, 1000, &user).unwrap_err();
        assert_eq!(enough, "the faucet gives nothing: each bot may claim 2 times, and this one has");
    }

    #[test]
    fn the_fund_is_all_there_is_and_strangers_get_nothing() {
        let mut scenario = Scenario::with_faucet(RULE);
        let (user, farmer, other) = (scenario.user.clone(), scenario.farmer.clone(), scenario.other.clone());
        let stranger = claim(&mut scenario, 9, &key(50)).unwrap_err();
        assert!(stranger.contains("is no bot on this grid"), "{stranger}");
        claim(&mut scenario, 10, &user).unwrap();
        claim(&mut scenario, 11, &farmer).unwrap();
        let empty = claim(&mut scenario, 12, &other).unwrap_err();
        assert_eq!(empty, "the faucet gives nothing: it has only 20 grains left");
        assert_eq!(scenario.balance(&other), ALLOWANCE);
    }

    #[test]
    fn a_grid_without_a_faucet_says_so() {
        let mut scenario = Scenario::new();
        let user = scenario.user.clone();
        let none = claim(&mut scenario, 10, &user).unwrap_err();
        assert_eq!(
            none,
            "the faucet gives nothing: this grid has none; ask somebody who has grains for some"
        );
    }
}
