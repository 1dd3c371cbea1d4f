//! A faucet: grains for whoever asks, on grids that are for trying things out.
//!
//! Its fund is part of the supply from the genesis on, in an account for which nobody can sign; a claim moves some of
//! it to a bot and leaves a transfer record. A grid without a faucet in its genesis can never get one.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::{Grains, PublicKey, limits};

/// Where the fund is. The zero key is a point of small order, which strict verification refuses, so no command can
/// ever come from it.
pub const ACCOUNT: PublicKey = PublicKey([0; 32]);

/// The rule of a grid's faucet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Faucet {
    /// What it has in the beginning.
    pub fund: Grains,
    /// What one claim gives.
    pub amount: Grains,
    /// Seconds from one claim of a bot to its next.
    pub every_s: u64,
    /// Claims of one bot, ever. Names are free, so this bounds the careless, not the greedy: the fund does that.
    pub claims_per_bot: u32,
}

/// What a bot has claimed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
pub struct FaucetClaims {
    pub count: u32,
    /// Block time of the last one: milliseconds since 1970, UTC.
    pub last_ms: u64,
}

/// A rule that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFaucet {
    #[error("a claim from the faucet must give something")]
    Nothing,
    #[error("the faucet's fund of {fund} is less than the {amount} of one claim: give it more")]
    Fund { fund: Grains, amount: Grains },
    #[error("a bot must be allowed at least one claim from the faucet")]
    NoClaims,
    #[error("from one claim to the next it is at most {limit} s, not {got}", limit = limits::FAUCET_EVERY_S)]
    Every { got: u64 },
}

/// Why a claim gets nothing.
#[derive(
    Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum RefusedClaim {
    #[error("this grid has none; ask somebody who has grains for some")]
    NoFaucet,
    #[error("the next claim is possible in {wait_s} s")]
    TooSoon { wait_s: u64 },
    #[error("each bot may claim {limit} times, and this one has")]
    Enough { limit: u32 },
    #[error("it has only {left} left")]
    Empty { left: Grains },
}

impl Faucet {
    /// Checks the rule.
    ///
    /// # Errors
    /// [`InvalidFaucet`] names the culprit.
    pub fn check(&self) -> Result<(), InvalidFaucet> {
        if self.amount == Grains::ZERO {
            return Err(InvalidFaucet::Nothing);
        }
        if self.fund < self.amount {
            return Err(InvalidFaucet::Fund { fund: self.fund, amount: self.amount });
        }
        if self.claims_per_bot == 0 {
            return Err(InvalidFaucet::NoClaims);
        }
        if self.every_s > limits::FAUCET_EVERY_S {
            return Err(InvalidFaucet::Every { got: self.every_s });
        }
        Ok(())
    }

    /// What a bot that has claimed so often may claim now, in block time.
    ///
    /// # Errors
    /// [`RefusedClaim`].
    pub fn claim(&self, before: FaucetClaims, now_ms: u64) -> Result<FaucetClaims, RefusedClaim> {
        if before.count >= self.claims_per_bot {
            return Err(RefusedClaim::Enough { limit: self.claims_per_bot });
        }
        let next_ms = before.last_ms.saturating_add(self.every_s.saturating_mul(1000));
        if before.count > 0 && now_ms < next_ms {
            return Err(RefusedClaim::TooSoon { wait_s: (next_ms - now_ms).div_ceil(1000) });
        }
        Ok(FaucetClaims { count: before.count + 1, last_ms: now_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::ChainId;
    use crate::keys::Domain;
    use crate::{Hash, Signature};

    const RULE: Faucet = Faucet { fund: Grains(100), amount: Grains(30), every_s: 60, claims_per_bot: 2 };

    #[test]
    fn a_rule_gives_something_and_has_a_fund_for_it() {
        assert_eq!(RULE.check(), Ok(()));
        for (rule, says) in [
            (Faucet { amount: Grains(0), ..RULE }, "must give something"),
            (Faucet { fund: Grains(29), ..RULE }, "fund of 29 grains is less than the 30 grains"),
            (Faucet { claims_per_bot: 0, ..RULE }, "at least one claim"),
            (Faucet { every_s: u64::MAX, ..RULE }, "at most 31536000 s"),
        ] {
            let error = rule.check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_bot_waits_between_claims_and_has_a_limit() {
        let first = RULE.claim(FaucetClaims::default(), 5_000).unwrap();
        assert_eq!(first, FaucetClaims { count: 1, last_ms: 5_000 });
        assert_eq!(RULE.claim(first, 64_001), Err(RefusedClaim::TooSoon { wait_s: 1 }));
        let second = RULE.claim(first, 65_000).unwrap();
        assert_eq!(RULE.claim(second, u64::MAX), Err(RefusedClaim::Enough { limit: 2 }));
    }

    #[test]
    fn nobody_signs_for_the_fund() {
        let chain = ChainId(Hash([7; 32]));
        // R the neutral element and s zero is what holds for small-order keys where checks are lax.
        let mut trivial = [0; 64];
        trivial[0] = 1;
        for signature in [Signature([0; 64]), Signature(trivial)] {
            for word in 0..64_u8 {
                assert!(ACCOUNT.verify(Domain::COMMAND, &chain, &word, &signature).is_err());
            }
        }
    }
}
