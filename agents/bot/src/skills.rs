//! A skill at work for a bot: questions from what the bot knows, answers within its bounds, and a word where there is none.
//!
//! ```text
//!   price, offer, request, message ──typed──> Skill ──> answer
//!                                               └─ Fault ──> the bot's own way, and a line that says why, once a minute
//! ```
//! It must never let a skill's failure become the bot's, nor its log reach more than whoever tries it out.

use std::sync::{Arc, Mutex, PoisonError};

use croft_market::advice::{Advice, Priced, Pricing, Scoring};
use croft_market::score::Bid;
use croft_protocol::{Capacity, Name, Rate};
use croft_skills::hooks::{self, Decision, Reaction};
use croft_skills::{Answer, Fault, Hook, Host, LoadError, Skill};

use crate::exit::Failure;
use crate::grid::now_ms;
use crate::home::Home;

/// Strangers choose the questions, so faults are told at most this often.
const TOLD_EVERY_MS: u64 = 60_000;

/// A skill that has not the hook that is needed.
#[derive(Debug, thiserror::Error)]
#[error("skill '{name}' has no hook {hook}, only {has}: choose another one")]
struct NoHook {
    name: Name,
    hook: Hook,
    has: String,
}

/// A skill that works for a bot. Clones tell their faults as one.
#[derive(Debug, Clone)]
pub(crate) struct OwnSkill {
    skill: Skill,
    faults: Arc<Mutex<Faults>>,
}

#[derive(Debug, Default)]
struct Faults {
    /// The newest one that was not told, and how many there were.
    waiting: Option<(Fault, u64)>,
    told_ms: Option<u64>,
}

impl OwnSkill {
    /// A skill of the home, compiled, with this hook.
    pub(crate) fn load(home: &Home, name: &Name, hook: Hook) -> Result<Self, Failure> {
        let signed = home.skill(name)?;
        if !signed.manifest().hooks.contains(&hook) {
            let has = signed.manifest().hooks.iter().map(|hook| hook.name()).collect::<Vec<_>>().join(", ");
            return Err(Failure::usage(NoHook { name: name.clone(), hook, has }));
        }
        let skill = Host::new().map_err(Failure::failed)?.load(&signed)?;
        Ok(Self { skill, faults: Arc::default() })
    }

    pub(crate) fn name(&self) -> &Name {
        &self.skill.manifest().name
    }

    pub(crate) fn version(&self) -> u32 {
        self.skill.manifest().version
    }

    /// What went wrong since it was told last; at most once a minute.
    pub(crate) fn take_trouble(&self) -> Option<String> {
        let now_ms = now_ms();
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.told_ms.is_some_and(|told_ms| now_ms < told_ms.saturating_add(TOLD_EVERY_MS)) {
            return None;
        }
        let (fault, count) = faults.waiting.take()?;
        faults.told_ms = Some(now_ms);
        let more = if count > 1 { format!(", {count} times") } else { String::new() };
        let (name, version) = (self.name(), self.version());
        Some(format!("skill '{name}' {version} had no answer{more}: {fault}; it went on without it"))
    }

    /// An answer, or `None` with a fault to be told.
    fn heard<T>(&self, answer: Answer<T>) -> Option<T> {
        for line in &answer.log {
            tracing::debug!(skill = %self.name(), line, "a skill logged");
        }
        answer
            .result
            .map_err(|fault| {
                let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
                let count = faults.waiting.as_ref().map_or(0, |(_, count)| *count);
                faults.waiting = Some((fault, count.saturating_add(1)));
            })
            .ok()
    }

    /// What it says to a contract, and what it logged for the approver; a fault decides nothing.
    pub(crate) fn decide(&self, request: hooks::Request) -> (Result<Decision, Fault>, Vec<String>) {
        let answer = self.skill.decide(request);
        (answer.result, answer.log)
    }

    /// What becomes of a message; without an answer it is shown.
    pub(crate) fn react(&self, message: hooks::Message) -> Reaction {
        self.heard(self.skill.react(message)).unwrap_or(Reaction::Show)
    }
}

impl Pricing for OwnSkill {
    fn price(&self, priced: &Priced<'_>) -> Advice {
        let demand = priced.view.demand;
        let question = hooks::Demand {
            now_ms: priced.now_ms,
            buyer: demand.buyer.to_string(),
            country: priced.view.country.to_owned(),
            resources: (&demand.resources).into(),
            free: (&priced.free).into(),
            duration_s: demand.duration_s,
            list_rate: priced.view.list.0,
            floor_rate: priced.floor.0,
            policy_rate: priced.policy.0,
            offered_rate: priced.view.theirs.map(|quote| quote.rate.0),
            our_rate: priced.view.ours.map(|rate| rate.0),
            round: priced.view.round,
            rounds: priced.view.rounds,
        };
        match self.heard(self.skill.price(question)) {
            None | Some(hooks::Price::Policy) => Advice::Policy,
            Some(hooks::Price::Rate(rate)) => Advice::Rate(Rate(rate)),
            Some(hooks::Price::Refuse) => Advice::Refuse,
        }
    }
}

/// A skill that scores the offers for one order.
#[derive(Debug)]
pub(crate) struct OrderScoring {
    pub(crate) skill: OwnSkill,
    pub(crate) resources: Capacity,
    pub(crate) duration_s: u64,
}

impl Scoring for OrderScoring {
    fn surcharge(&self, bid: &Bid, effective: u64) -> i64 {
        let question = hooks::Offer {
            resources: (&self.resources).into(),
            duration_s: self.duration_s,
            price: bid.price.0,
            hold_fee: bid.hold_fee.0,
            effective,
            farm: bid.farm_name.to_string(),
            farmer: bid.farmer.to_string(),
            node: bid.node.to_string(),
            country: bid.country.clone(),
            trust: bid.trust.into(),
            uptime_permille: bid.uptime_permille,
        };
        self.skill.heard(self.skill.skill.surcharge(question)).unwrap_or(0)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::usage(error)
    }
}
