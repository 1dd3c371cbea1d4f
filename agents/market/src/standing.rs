//! A standing order: so many replicas of one thing, kept, whoever fails. The machine of `croft keep`.
//!
//! ```text
//!             ┌──────────────────────────── failed: later again ─┐
//!             v                                                  │
//!   slot:   empty ── intent ──> ordering ── on the ledger ──> current ── silent, or soon over ──> ordering its successor
//!                                                                ^                                        │
//!                                  the old one is closed and settled, once the new one is there ──────────┘
//! ```
//! [`Standing::look`] takes what the ledger says and the time, changes the state, and says what to do. Whoever runs it
//! makes the state durable before it does anything of that, and tells with [`Standing::failed`] what did not work; that
//! an act worked shows in the next facts. So a crash between any two steps loses nothing and repeats nothing that counts:
//!
//! - what is ordered has a name of its own, given with the intent. The ledger refuses a second running contract of one
//!   name, so an intent that is carried out twice is one contract, and is found by its name after a crash;
//! - what runs under a name of this order and is nobody's current or next one is closed;
//! - the budget is charged with the intent, for all that the order may cost, and given back as the ledger shows less.
//!
//! It must never exceed the owner's limits, act on a contract of another name, or close what has no successor, unless
//! fewer replicas are wanted.

use std::collections::{BTreeMap, BTreeSet};

use croft_protocol::{ContractId, ContractState, EndReason, Grains, Name, NodeId, limits};
use serde::{Deserialize, Serialize};

/// Replicas of one order: each is looked at in every pass.
pub const REPLICAS: u32 = 64;
/// After a failed order, doubled each time up to [`AGAIN_MOST_MS`]: farmers and ledger are not hammered.
const AGAIN_MS: u64 = 30_000;
const AGAIN_MOST_MS: u64 = 30 * 60_000;
/// After so many failed tries, nodes that let us down are taken too.
const CHOOSY_TRIES: u32 = 3;
/// A node that let us down is not chosen for this long.
const AVOID_MS: u64 = 6 * 3_600_000;
const HOUR_MS: u64 = 3_600_000;
/// Between two looks further apart than this nobody knows what was.
const LOOK_GAP_MS: u64 = 5 * 60_000;
/// Between two settlements of one contract.
const SETTLE_EVERY_MS: u64 = 10 * 60_000;
/// Funds are added when they last for less than this: time for several tries.
const FUND_AHEAD_MS: u64 = 30 * 60_000;
/// A payment that does not show by then is made again.
const FUND_AGAIN_MS: u64 = 5 * 60_000;

/// What the owner wants, and the limits within which the machine may act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub replicas: u32,
    /// A node that is silent, or a workload in trouble, for so long is replaced.
    pub silent_ms: u64,
    /// How long a new one may take until it runs; images are fetched meanwhile.
    pub start_ms: u64,
    /// So long before its expiry a successor is ordered.
    pub renew_ms: u64,
    /// For one contract and its whole duration.
    pub max_price: Grains,
    /// In all, within a period.
    pub budget: Grains,
    pub period_ms: u64,
    /// In an hour, because of silence or trouble.
    pub replacements_per_hour: u32,
    /// Beginning of the names that its contracts have.
    pub name: Name,
}

/// A contract as the ledger has it, with what is known of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub contract: ContractId,
    pub name: Name,
    pub node: NodeId,
    pub state: ContractState,
    /// Whether the node is connected to a replica.
    pub present: bool,
    /// Whether its farm asks everybody to leave it.
    pub draining: bool,
    pub starts_ms: u64,
    pub covered_until_ms: u64,
    pub expires_ms: Option<u64>,
    pub price: Grains,
    pub deposit: Grains,
    pub paid: Grains,
    pub held: Grains,
    /// For how much longer its funds let it run.
    pub funded_ms: u64,
    /// What an hour costs.
    pub hour: Grains,
    pub missing_to_resume: Grains,
    pub final_report_until_ms: Option<u64>,
}

/// What is known now: every running contract whose name is of this order, and each of [`Standing::contracts`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    pub now_ms: u64,
    pub contracts: Vec<Seen>,
}

/// What is to be done. Each has its reason, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "act")]
pub enum Act {
    /// Find a node that is none of these, agree and pay, under this name.
    Order {
        name: Name,
        avoid: BTreeSet<NodeId>,
        max_price: Grains,
        reason: String,
    },
    Close {
        contract: ContractId,
        reason: String,
    },
    Settle {
        contract: ContractId,
        reason: String,
    },
    Fund {
        contract: ContractId,
        amount: Grains,
        reason: String,
    },
    /// Something is wanted and not allowed, or not now.
    Wait {
        slot: u32,
        reason: String,
    },
}

/// The durable state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    slots: BTreeMap<u32, Slot>,
    /// Contracts that are to end, until all their money is where it belongs.
    leaving: BTreeMap<ContractId, Leaving>,
    /// What was charged to the budget: orders and payments, oldest first.
    charges: Vec<Charge>,
    /// When nodes were replaced, in the last hour.
    replaced_ms: Vec<u64>,
    /// Nodes that let us down, until when they are not chosen.
    avoid: BTreeMap<NodeId, u64>,
    /// Time of the last look.
    looked_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slot {
    /// Of the last intent.
    generation: u64,
    current: Option<Current>,
    ordering: Option<Ordering>,
    failures: u32,
    again_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Current {
    contract: ContractId,
    node: NodeId,
    /// Since when it does not do what it should.
    unwell_ms: Option<u64>,
    settled_ms: u64,
    funded: Option<Funded>,
}

/// The intent to fund: done once the deposit has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Funded {
    at_ms: u64,
    before: Grains,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ordering {
    name: Name,
    reason: String,
    /// It is for a slot whose current one is unwell: called off when that one recovers.
    heals: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leaving {
    settled_ms: u64,
}

/// `amount` counts against the budget of the period in which it was charged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Charge {
    /// Of the contract.
    name: Name,
    at_ms: u64,
    amount: Grains,
}

impl Standing {
    /// Contracts that must be among the facts, also when they have ended.
    pub fn contracts(&self) -> impl Iterator<Item = ContractId> {
        let current = self.slots.values().filter_map(|slot| slot.current.as_ref());
        current.map(|current| current.contract).chain(self.leaving.keys().copied())
    }

    /// Names under which something is ordered now: it may be on the ledger already.
    pub fn ordered(&self) -> impl Iterator<Item = &Name> {
        self.slots.values().filter_map(|slot| slot.ordering.as_ref()).map(|ordering| &ordering.name)
    }

    /// What counts against the budget at a time.
    #[must_use]
    pub fn spent(&self, wanted: &Wanted, now_ms: u64) -> Grains {
        let since_ms = now_ms.saturating_sub(wanted.period_ms);
        let open: BTreeSet<&Name> = self.ordered().collect();
        let counts = |charge: &&Charge| charge.at_ms >= since_ms || open.contains(&charge.name);
        let charges = self.charges.iter().filter(counts);
        Grains(charges.fold(0, |sum, charge| sum.saturating_add(charge.amount.0)))
    }

    /// Whether a name is of this order: `NAME-SLOT-GENERATION`.
    #[must_use]
    pub fn is_of(wanted: &Wanted, name: &Name) -> bool {
        slot_of(wanted, name).is_some()
    }

    /// Takes in what is known and decides. The state must be durable before any of the acts is done.
    #[must_use]
    pub fn look(&mut self, wanted: &Wanted, facts: &Facts) -> Vec<Act> {
        let now_ms = facts.now_ms;
        let seen: BTreeMap<ContractId, &Seen> = facts.contracts.iter().map(|s| (s.contract, s)).collect();
        let mut acts = Vec::new();
        if now_ms > self.looked_ms.saturating_add(LOOK_GAP_MS) {
            // Nobody looked meanwhile: what was unwell before may have been well since.
            for current in self.slots.values_mut().filter_map(|slot| slot.current.as_mut()) {
                current.unwell_ms = None;
            }
        }
        self.looked_ms = now_ms;
        self.forget(wanted, now_ms);
        self.adopt(wanted, facts);
        self.give_back(wanted, facts);
        for slot in 0..wanted.replicas.min(REPLICAS) {
            self.slots.entry(slot).or_default();
        }
        let numbers: Vec<u32> = self.slots.keys().copied().collect();
        for number in numbers {
            if number < wanted.replicas {
                self.look_at_slot(wanted, facts, &seen, number, &mut acts);
            } else {
                self.give_up_slot(number);
            }
        }
        self.leave(wanted, facts, &seen, &mut acts);
        acts
    }

    /// The act did not work. An order is tried again later; the rest shows in the next facts.
    pub fn failed(&mut self, act: &Act, now_ms: u64) {
        let Act::Order { name, .. } = act else { return };
        for slot in self.slots.values_mut() {
            if slot.ordering.as_ref().is_some_and(|ordering| ordering.name == *name) {
                let wait_ms = AGAIN_MS.saturating_mul(1 << slot.failures.min(10)).min(AGAIN_MOST_MS);
                slot.failures = slot.failures.saturating_add(1);
                slot.again_ms = now_ms.saturating_add(wait_ms);
            }
        }
    }

    /// What no longer counts.
    fn forget(&mut self, wanted: &Wanted, now_ms: u64) {
        self.replaced_ms.retain(|at_ms| at_ms.saturating_add(HOUR_MS) > now_ms);
        self.avoid.retain(|_, until_ms| now_ms < *until_ms);
        let wanted_ms = wanted.period_ms;
        let open: BTreeSet<Name> =
            self.slots.values().filter_map(|s| s.ordering.as_ref()).map(|o| o.name.clone()).collect();
        self.charges
            .retain(|charge| open.contains(&charge.name) || charge.at_ms.saturating_add(wanted_ms) > now_ms);
    }

    /// A contract that has ended cost what was paid out of it, and what still may be.
    fn give_back(&mut self, wanted: &Wanted, facts: &Facts) {
        let ended = facts.contracts.iter().filter(|seen| matches!(seen.state, ContractState::Ended(_)));
        for seen in ended.filter(|seen| Self::is_of(wanted, &seen.name)) {
            let cost = seen.paid.0.saturating_add(seen.held.0);
            let of_it = |charge: &&mut Charge| charge.name == seen.name;
            let charged: u64 = self.charges.iter_mut().filter(of_it).map(|charge| charge.amount.0).sum();
            let mut back = charged.saturating_sub(cost);
            for charge in self.charges.iter_mut().rev().filter(of_it) {
                let part = back.min(charge.amount.0);
                charge.amount = Grains(charge.amount.0 - part);
                back -= part;
            }
        }
    }

    /// An order became a contract: it costs its deposit.
    fn charge(&mut self, name: &Name, deposit: Grains, now_ms: u64) {
        match self.charges.iter_mut().find(|charge| charge.name == *name) {
            Some(charge) => (charge.at_ms, charge.amount) = (now_ms, deposit),
            None => self.charges.push(Charge { name: name.clone(), at_ms: now_ms, amount: deposit }),
        }
    }

    /// Orders that arrived on the ledger become current; what is nobody's leaves.
    fn adopt(&mut self, wanted: &Wanted, facts: &Facts) {
        let running = facts.contracts.iter().filter(|seen| !matches!(seen.state, ContractState::Ended(_)));
        for seen in running {
            let Some(number) = slot_of(wanted, &seen.name) else { continue };
            let slot = self.slots.entry(number).or_default();
            if slot.current.as_ref().is_some_and(|current| current.contract == seen.contract) {
                continue;
            }
            let ordered = slot.ordering.as_ref().is_some_and(|ordering| ordering.name == seen.name);
            if !ordered {
                // Somebody's late signature brought what was called off: it is paid all the same.
                if self.leaving.insert(seen.contract, Leaving { settled_ms: 0 }).is_none() {
                    self.charge(&seen.name, seen.deposit, facts.now_ms);
                }
                continue;
            }
            slot.ordering = None;
            slot.failures = 0;
            slot.again_ms = 0;
            let (contract, node) = (seen.contract, seen.node);
            let next = Current { contract, node, unwell_ms: None, settled_ms: 0, funded: None };
            if let Some(old) = slot.current.replace(next) {
                self.leaving.insert(old.contract, Leaving { settled_ms: 0 });
            }
            self.charge(&seen.name, seen.deposit, facts.now_ms);
        }
    }

    fn look_at_slot(
        &mut self,
        wanted: &Wanted,
        facts: &Facts,
        seen: &BTreeMap<ContractId, &Seen>,
        number: u32,
        acts: &mut Vec<Act>,
    ) {
        let now_ms = facts.now_ms;
        let current = self.slots.get(&number).and_then(|slot| slot.current.clone());
        let reason = match current {
            None => Some((format!("replica {number} is missing"), false, None)),
            Some(mut current) => {
                // Not among the facts: nothing is known of it now, so nothing is done.
                let Some(it) = seen.get(&current.contract) else { return };
                if let ContractState::Ended(why) = it.state {
                    self.leaving.insert(current.contract, Leaving { settled_ms: 0 });
                    self.slot(number).current = None;
                    let bad = why == EndReason::ClosedByFarmer;
                    let text = format!("the contract of replica {number} has ended: {why:?}");
                    Some((text, false, bad.then_some(current.node)))
                } else {
                    let reason = self.look_at_current(wanted, now_ms, number, it, &mut current, acts);
                    self.slot(number).current = Some(current);
                    reason
                }
            }
        };
        let slot = self.slot(number);
        if reason.is_none() && slot.ordering.as_ref().is_some_and(|ordering| ordering.heals) {
            // It is well again. Should the order arrive all the same, it is nobody's, and is closed.
            if let Some(ordering) = slot.ordering.take() {
                self.charges.retain(|charge| charge.name != ordering.name);
            }
        }
        if let Some((reason, heals, bad)) = reason {
            self.intend(wanted, now_ms, number, reason, heals, bad, acts);
        }
        self.order(wanted, now_ms, number, acts);
    }

    /// Why a running contract needs a successor, if it does, and whether that heals; settles and funds it.
    fn look_at_current(
        &mut self,
        wanted: &Wanted,
        now_ms: u64,
        number: u32,
        it: &Seen,
        current: &mut Current,
        acts: &mut Vec<Act>,
    ) -> Option<(String, bool, Option<NodeId>)> {
        let contract = it.contract;
        let quiet_ms = now_ms.saturating_sub(it.covered_until_ms);
        if it.state == ContractState::Active
            && quiet_ms > limits::REPORT_COVERS_MS
            && now_ms >= current.settled_ms.saturating_add(SETTLE_EVERY_MS)
        {
            current.settled_ms = now_ms;
            let reason = format!("its node has not reported for {} min", quiet_ms / 60_000);
            acts.push(Act::Settle { contract, reason });
        }
        self.fund(wanted, now_ms, number, it, current, acts);
        let unwell = match it.state {
            // People decide, or money is missing: another node would not help.
            ContractState::Agreed | ContractState::Paused { .. } | ContractState::Ended(_) => None,
            _ if !it.present => Some("its node is not connected"),
            ContractState::Degraded => Some("its node reports trouble, or nothing"),
            ContractState::Approved if now_ms > it.starts_ms.saturating_add(wanted.start_ms) => {
                Some("it does not start")
            }
            ContractState::Approved | ContractState::Active => None,
        };
        if it.draining && it.state.may_run() {
            // It runs well: nothing has to be waited for, and it ends only when its successor is there.
            return Some((format!("replica {number}: its farm empties its node"), true, Some(it.node)));
        }
        let Some(unwell) = unwell else {
            current.unwell_ms = None;
            let over = it.expires_ms.is_some_and(|at_ms| now_ms.saturating_add(wanted.renew_ms) >= at_ms);
            return over.then(|| (format!("the time of replica {number} is soon over"), false, None));
        };
        let since_ms = *current.unwell_ms.get_or_insert(now_ms);
        let for_ms = now_ms.saturating_sub(since_ms);
        (for_ms >= wanted.silent_ms).then(|| {
            let text = format!("replica {number} for {} s: {unwell}", for_ms / 1000);
            (text, true, Some(it.node))
        })
    }

    /// Adds an hour's pay where funds run low, or what a paused one needs.
    fn fund(
        &mut self,
        wanted: &Wanted,
        now_ms: u64,
        number: u32,
        it: &Seen,
        current: &mut Current,
        acts: &mut Vec<Act>,
    ) {
        if current.funded.is_some_and(|funded| it.deposit > funded.before) {
            current.funded = None;
        }
        let room = it.price.0.saturating_sub(it.deposit.0);
        let paused = matches!(it.state, ContractState::Paused { .. });
        let left_ms = it.expires_ms.map_or(u64::MAX, |at_ms| at_ms.saturating_sub(now_ms));
        let low = it.state.may_run() && it.funded_ms < FUND_AHEAD_MS.min(left_ms);
        if room == 0 || !(paused || low) {
            return;
        }
        if current.funded.is_some_and(|funded| now_ms < funded.at_ms.saturating_add(FUND_AGAIN_MS)) {
            return;
        }
        let amount = Grains(it.hour.0.max(it.missing_to_resume.0).clamp(1, room));
        if it.deposit.0.saturating_add(amount.0) > wanted.max_price.0 {
            return wait(
                acts,
                number,
                format!("{amount} more would exceed the price limit of {}", wanted.max_price),
            );
        }
        if current.funded.is_none() {
            if let Err(reason) = self.affords(wanted, now_ms, amount) {
                return wait(acts, number, reason);
            }
            self.charges.push(Charge { name: it.name.clone(), at_ms: now_ms, amount });
        }
        current.funded = Some(Funded { at_ms: now_ms, before: it.deposit });
        let reason =
            if paused { "its funds ran out".to_owned() } else { "its funds are nearly used up".to_owned() };
        acts.push(Act::Fund { contract: it.contract, amount, reason });
    }

    fn affords(&self, wanted: &Wanted, now_ms: u64, amount: Grains) -> Result<(), String> {
        let spent = self.spent(wanted, now_ms);
        match spent.checked_add(amount) {
            Some(sum) if sum <= wanted.budget => Ok(()),
            _ => {
                Err(format!("{amount} more would exceed the budget of {}, {spent} are spent", wanted.budget))
            }
        }
    }

    /// Decides that a slot needs a contract: the name, the charge, and the limits' consent are part of the intent.
    #[allow(clippy::too_many_arguments, reason = "what is known of one slot, used once")]
    fn intend(
        &mut self,
        wanted: &Wanted,
        now_ms: u64,
        number: u32,
        reason: String,
        heals: bool,
        bad: Option<NodeId>,
        acts: &mut Vec<Act>,
    ) {
        if let Some(node) = bad {
            self.avoid.insert(node, now_ms.saturating_add(AVOID_MS));
        }
        if self.slot(number).ordering.is_some() {
            return;
        }
        let counts = bad.is_some();
        if counts && self.replaced_ms.len() >= wanted.replacements_per_hour as usize {
            let most = wanted.replacements_per_hour;
            return wait(acts, number, format!("{reason}; {most} were replaced within an hour already"));
        }
        if let Err(limit) = self.affords(wanted, now_ms, wanted.max_price) {
            return wait(acts, number, format!("{reason}; {limit}"));
        }
        let generation = self.slot(number).generation.saturating_add(1);
        let Ok(name) = Name::new(&format!("{}-{number}-{generation}", wanted.name)) else {
            return wait(acts, number, format!("'{}' is too long for names of contracts", wanted.name));
        };
        if counts {
            self.replaced_ms.push(now_ms);
        }
        self.charges.push(Charge { name: name.clone(), at_ms: now_ms, amount: wanted.max_price });
        let slot = self.slot(number);
        slot.generation = generation;
        slot.ordering = Some(Ordering { name, reason, heals });
    }

    /// Carries out the intent, again and again until it is on the ledger. One in a pass: the next is to know where it
    /// went.
    fn order(&mut self, wanted: &Wanted, now_ms: u64, number: u32, acts: &mut Vec<Act>) {
        let others = self.slots.values().filter_map(|slot| slot.current.as_ref());
        let mut avoid: BTreeSet<NodeId> = others.map(|current| current.node).collect();
        // Where nothing else is to be had, those who let us down get another chance.
        if self.slots.get(&number).is_some_and(|slot| slot.failures < CHOOSY_TRIES) {
            avoid.extend(self.avoid.keys());
        }
        let slot = self.slot(number);
        let (again_ms, failures) = (slot.again_ms, slot.failures);
        let Some(Ordering { name, reason, .. }) = slot.ordering.clone() else { return };
        if now_ms < again_ms {
            let in_s = (again_ms - now_ms).div_ceil(1000);
            return wait(acts, number, format!("{reason}; {failures} tries failed, the next in {in_s} s"));
        }
        if !acts.iter().any(|act| matches!(act, Act::Order { .. })) {
            acts.push(Act::Order { name, avoid, max_price: wanted.max_price, reason });
        }
    }

    fn give_up_slot(&mut self, number: u32) {
        let Some(slot) = self.slots.remove(&number) else { return };
        if let Some(current) = slot.current {
            self.leaving.insert(current.contract, Leaving { settled_ms: 0 });
        }
        if let Some(ordering) = slot.ordering {
            self.charges.retain(|charge| charge.name != ordering.name);
        }
        // The number of the last intent must not be given again while its terms could still be brought.
        self.slots.insert(number, Slot { generation: slot.generation, ..Slot::default() });
    }

    /// Closes what is to end, then settles it until nothing is held.
    fn leave(
        &mut self,
        wanted: &Wanted,
        facts: &Facts,
        seen: &BTreeMap<ContractId, &Seen>,
        acts: &mut Vec<Act>,
    ) {
        let now_ms = facts.now_ms;
        self.leaving.retain(|contract, leaving| {
            let Some(it) = seen.get(contract) else { return true };
            let contract = *contract;
            if !matches!(it.state, ContractState::Ended(_)) {
                let reason = match slot_of(wanted, &it.name) {
                    Some(number) if number >= wanted.replicas => "fewer replicas are wanted",
                    _ => "another one has its place",
                };
                acts.push(Act::Close { contract, reason: reason.to_owned() });
                return true;
            }
            if it.held == Grains::ZERO {
                return false;
            }
            if it.final_report_until_ms.is_some_and(|until_ms| now_ms >= until_ms)
                && now_ms >= leaving.settled_ms.saturating_add(SETTLE_EVERY_MS)
            {
                leaving.settled_ms = now_ms;
                let reason = "no final report came: the rest goes back".to_owned();
                acts.push(Act::Settle { contract, reason });
            }
            true
        });
    }

    fn slot(&mut self, number: u32) -> &mut Slot {
        self.slots.entry(number).or_default()
    }
}

fn wait(acts: &mut Vec<Act>, slot: u32, reason: String) {
    acts.push(Act::Wait { slot, reason });
}

/// `None` for a name that is not of this order.
fn slot_of(wanted: &Wanted, name: &Name) -> Option<u32> {
    let rest = name.as_str().strip_prefix(wanted.name.as_str())?.strip_prefix('-')?;
    let (number, generation) = rest.split_once('-')?;
    let canonical =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let generation_is_one = canonical(generation) && generation.parse::<u64>().is_ok();
    let number = number.parse().ok().filter(|_| canonical(number))?;
    generation_is_one.then_some(number)
}

#[cfg(test)]
mod tests;
