//! What must hold of a whole state, whatever happened before. For tests, simulators and audits.
//!
//! - grains: supply = balances + what escrows hold + fees that are held; `deposit = paid + refunded + held`; a deposit is what was paid
//!   with the agreement and by those who funded it since, and no more than the price; pay is what the covered time
//!   is worth, and no time is covered that the deposit does not pay for; what may run is not out of funds; for an
//!   ended contract nothing is held but what a final report may claim;
//! - capacity: what a node has in use is the sum of its running contracts and of what is reserved, and no more than it
//!   has unless it shrank;
//! - reservations: a fee is held while one is neither used nor claimed; what holds capacity is counted for both
//!   parties, and waits for its expiry;
//! - names, ports, and the set of contracts addressed to a node are those of the running things, no more and
//!   no less;
//! - what the faucet has and what was claimed from it is its fund; a profile is in the name of its bot;
//! - there is one valid set of validators;
//! - a node's class is what is known of its TPM, or `plain`; one TPM speaks for one node;
//! - headers that quotes may name are few, in order and apart;
//! - a channel's versions grow along a chain without gaps; it offers the newest that is not halted; the trials of a
//!   release are its nodes' outcomes, and it is halted where its stop rule says so;
//! - a key is one bot's, its former keys too, and none of them is anybody else's;
//! - every record stands under its own id.

mod reservations;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use borsh::BorshDeserialize;
use croft_protocol::faucet::{self, Faucet, FaucetClaims};
use croft_protocol::identity::{KeyChange, KeysBody};
use croft_protocol::record::{FarmBody, NodeBody, TrustClass};
use croft_protocol::release::{ChannelBody, Outcome, ReleaseBody, ReleaseState, Trials, Tried};
use croft_protocol::state::{Account, NodeContracts};
use croft_protocol::trust::{NodeTrust, RecentHeaders, TrustPolicy, WeighedQuote};
use croft_protocol::{
    Body, BotId, Capacity, ContractBody, ContractId, ContractState, EndReason, Escrow, FarmId, Grains, Hash,
    Name, NodeCapacity, NodeId, PublicKey, Record, RecordId, ReleaseId, StateKey, limits,
};

use self::reservations::Reservations;
use crate::execute::releases::LOOK_BACK;

/// An invariant that a state breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BrokenInvariant(pub String);

type Check = Result<(), BrokenInvariant>;

fn broken(what: impl fmt::Display) -> BrokenInvariant {
    BrokenInvariant(what.to_string())
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(BrokenInvariant(what())) }
}

/// Checks a whole state, given by all its keys and values in any order.
///
/// # Errors
/// [`BrokenInvariant`] says what does not hold, and for whom.
pub fn check_invariants<'a>(state: impl IntoIterator<Item = (&'a StateKey, &'a [u8])>) -> Check {
    let whole = Whole::read(state)?;
    ensure(whole.has_validators, || "the validators are unknown".to_owned())?;
    whole.check_grains()?;
    whole.check_faucet()?;
    whole.check_profiles()?;
    whole.check_contracts()?;
    whole.reservations.check(&whole.contracts.keys().copied().collect())?;
    whole.check_nodes()?;
    whole.check_trust()?;
    whole.check_releases()?;
    whole.check_keys()?;
    whole.check_names()
}

fn check_recent(recent: &RecentHeaders) -> Check {
    let (every, fresh) = (limits::RECENT_HEADER_EVERY_MS, limits::QUOTE_FRESH_MS);
    let in_order = recent.headers.windows(2).all(|pair| {
        pair[0].height < pair[1].height && pair[0].time_ms.saturating_add(every) <= pair[1].time_ms
    });
    ensure(in_order, || "recent headers are in order and apart".to_owned())?;
    ensure(recent.headers.len() as u64 <= fresh / every + 2, || {
        format!("there are {} recent headers", recent.headers.len())
    })
}

/// A state, sorted by what its values are.
#[derive(Default)]
struct Whole {
    supply: Option<Grains>,
    has_validators: bool,
    accounts: BTreeMap<BotId, Account>,
    bots: BTreeMap<BotId, String>,
    farms: BTreeMap<FarmId, FarmBody>,
    nodes: BTreeMap<NodeId, NodeBody>,
    contracts: BTreeMap<ContractId, ContractBody>,
    escrows: BTreeMap<ContractId, Escrow>,
    /// What was paid into escrows after the agreement.
    funded: BTreeMap<ContractId, u64>,
    capacities: BTreeMap<NodeId, NodeCapacity>,
    addressed: BTreeMap<NodeId, NodeContracts>,
    trusts: BTreeMap<NodeId, NodeTrust>,
    tpms: BTreeMap<Hash, NodeId>,
    endorsements: BTreeMap<Hash, NodeId>,
    quotes: BTreeMap<NodeId, WeighedQuote>,
    releases: BTreeMap<ReleaseId, ReleaseBody>,
    channels: BTreeMap<Name, ChannelBody>,
    policies: BTreeSet<FarmId>,
    /// As the outcomes say.
    outcomes: Vec<(ReleaseId, FarmId, Outcome)>,
    trials: BTreeMap<ReleaseId, Trials>,
    farmer_trials: BTreeMap<(ReleaseId, BotId), Tried>,
    faucet: Option<Faucet>,
    claimed: BTreeMap<BotId, FaucetClaims>,
    profiles: BTreeMap<BotId, String>,
    reservations: Reservations,
    drained: BTreeSet<NodeId>,
    keys: BTreeMap<BotId, KeysBody>,
    key_owners: BTreeMap<PublicKey, BotId>,
    /// Names and ports, each with its holder.
    claims: BTreeMap<StateKey, Vec<u8>>,
}

impl Whole {
    fn read<'a>(state: impl IntoIterator<Item = (&'a StateKey, &'a [u8])>) -> Result<Self, BrokenInvariant> {
        fn decode<T: BorshDeserialize>(key: &StateKey, bytes: &[u8]) -> Result<T, BrokenInvariant> {
            borsh::from_slice(bytes).map_err(|e| broken(format_args!("{key:?} can't be decoded: {e}")))
        }
        let mut whole = Self::default();
        for (key, bytes) in state {
            match key {
                StateKey::Supply => whole.supply = Some(decode(key, bytes)?),
                StateKey::Account(id) => drop(whole.accounts.insert(*id, decode(key, bytes)?)),
                StateKey::Capacity(id) => drop(whole.capacities.insert(*id, decode(key, bytes)?)),
                StateKey::NodeContracts(id) => drop(whole.addressed.insert(*id, decode(key, bytes)?)),
                StateKey::NodeTrust(id) => drop(whole.trusts.insert(*id, decode(key, bytes)?)),
                StateKey::TpmKey(tpm) => drop(whole.tpms.insert(*tpm, decode(key, bytes)?)),
                StateKey::Endorsement(tpm) => drop(whole.endorsements.insert(*tpm, decode(key, bytes)?)),
                StateKey::NodeQuote(id) => drop(whole.quotes.insert(*id, decode(key, bytes)?)),
                StateKey::TrustPolicy => decode::<TrustPolicy>(key, bytes)?.check().map_err(broken)?,
                StateKey::RecentHeaders => check_recent(&decode(key, bytes)?)?,
                StateKey::Trials(id) => drop(whole.trials.insert(*id, decode(key, bytes)?)),
                StateKey::FarmerTrials(id, farmer) => {
                    whole.farmer_trials.insert((*id, *farmer), decode(key, bytes)?);
                }
                StateKey::Faucet => whole.faucet = Some(decode(key, bytes)?),
                StateKey::FaucetClaims(id) => drop(whole.claimed.insert(*id, decode(key, bytes)?)),
                StateKey::KeyOwner(of) => drop(whole.key_owners.insert(*of, decode(key, bytes)?)),
                StateKey::Escrow(id) => drop(whole.escrows.insert(*id, decode(key, bytes)?)),
                StateKey::HeldFee(id) => drop(whole.reservations.fees.insert(*id, decode(key, bytes)?)),
                StateKey::NodeReservations(id) => {
                    whole.reservations.of_nodes.insert(*id, decode(key, bytes)?);
                }
                StateKey::OpenReservations(id) => {
                    whole.reservations.open.insert(*id, decode(key, bytes)?);
                }
                StateKey::ReservationQueue => whole.reservations.queue = Some(decode(key, bytes)?),
                StateKey::ReservationSlot(slot) => {
                    whole.reservations.slots.insert(*slot, decode(key, bytes)?);
                }
                StateKey::BotName(_)
                | StateKey::FarmName(_)
                | StateKey::NodeName(..)
                | StateKey::ContractName(..)
                | StateKey::Port(..) => drop(whole.claims.insert(key.clone(), bytes.to_vec())),
                StateKey::Record(id) => {
                    let record: Record = decode(key, bytes)?;
                    ensure(record.id == *id && record.body.kind() == id.kind, || {
                        format!("the record under {id:?} is {:?}, {:?}", record.id, record.body.kind())
                    })?;
                    ensure((record.version == 1) == record.prev.is_none(), || {
                        format!("version {} of {id:?} names {:?}", record.version, record.prev)
                    })?;
                    whole.insert(record)?;
                }
            }
        }
        Ok(whole)
    }

    fn insert(&mut self, record: Record) -> Check {
        let id = record.id.id;
        match record.body {
            Body::Bot(bot) => drop(self.bots.insert(croft_protocol::PublicKey(id.0), bot.name.to_string())),
            Body::Farm(farm) => drop(self.farms.insert(FarmId(id), farm)),
            Body::Node(node) => drop(self.nodes.insert(croft_protocol::PublicKey(id.0), node)),
            Body::Contract(contract) => {
                ensure(contract.signed.terms.id() == ContractId(id), || {
                    format!("contract {id} has the terms of {}", contract.signed.terms.id())
                })?;
                self.contracts.insert(ContractId(id), *contract);
            }
            Body::Validators(set) => {
                ensure(record.id == RecordId::validators(), || format!("validators stand under {id}"))?;
                set.check().map_err(|e| broken(format_args!("the validators are no set: {e}")))?;
                self.has_validators = true;
            }
            Body::Release(_)
            | Body::ReleaseKeys(_)
            | Body::Channel(_)
            | Body::FarmPolicy(_)
            | Body::Outcome(_) => self.insert_of_releases(record)?,
            Body::Recipe(recipe) => {
                ensure(record.id == RecordId::recipe(&recipe.author, &recipe.name), || {
                    format!("recipe '{}' stands under {id}", recipe.name)
                })?;
                ensure(record.author == recipe.author, || {
                    format!("recipe '{}' was written by somebody else", recipe.name)
                })?;
            }
            Body::Profile(profile) => {
                profile.check().map_err(|e| broken(format_args!("the profile of bot {id} is none: {e}")))?;
                self.profiles.insert(croft_protocol::PublicKey(id.0), profile.name.to_string());
            }
            Body::Keys(keys) => drop(self.keys.insert(croft_protocol::PublicKey(id.0), keys)),
            Body::Funding(funding) => {
                let sum = self.funded.entry(funding.contract).or_default();
                *sum = sum
                    .checked_add(funding.amount.0)
                    .ok_or_else(|| broken(format_args!("the funds of {} overflow", funding.contract)))?;
            }
            Body::Reservation(body) => {
                let held = body.signed.reservation.contract;
                ensure(held.0 == id, || format!("the reservation for {held} stands under {id}"))?;
                self.reservations.bodies.insert(held, *body);
            }
            Body::Drain(drain) => {
                ensure(record.id == RecordId::drain(&drain.node), || format!("a drain stands under {id}"))?;
                self.drained.insert(drain.node);
            }
            Body::Approval(_) | Body::Report(_) | Body::Transfer(_) => {}
        }
        Ok(())
    }

    fn insert_of_releases(&mut self, record: Record) -> Check {
        let under = record.id;
        let own = |id: RecordId| ensure(under == id, || format!("a record of {id:?} stands under {under:?}"));
        match record.body {
            Body::Release(body) => {
                let id = body.signed.release.id();
                own(RecordId::release(&id))?;
                self.releases.insert(id, *body);
            }
            Body::ReleaseKeys(keys) => {
                own(RecordId::release_keys())?;
                keys.check().map_err(|e| broken(format_args!("the release keys are none: {e}")))?;
            }
            Body::Channel(channel) => {
                own(RecordId::channel(&channel.name))?;
                self.channels.insert(channel.name.clone(), channel);
            }
            Body::FarmPolicy(policy) => {
                policy.check().map_err(|e| broken(format_args!("policy {under:?} is none: {e}")))?;
                self.policies.insert(FarmId(under.id));
            }
            Body::Outcome(told) => {
                let id = ReleaseId::new(&told.channel, told.version);
                own(RecordId::outcome(&id, &told.node))?;
                ensure(record.version == 1, || format!("outcome {under:?} was told twice"))?;
                self.outcomes.push((id, told.farm, told.outcome));
            }
            _ => {}
        }
        Ok(())
    }

    /// Each key is one bot's, at one time, in the order of their heights; and none is of anybody else.
    fn check_keys(&self) -> Check {
        let mut owners = BTreeMap::new();
        for (bot, keys) in &self.keys {
            let bounded = (1..=limits::KEY_CHANGES).contains(&keys.changes.len());
            ensure(bounded && self.bots.contains_key(bot), || format!("the keys of {bot} are none"))?;
            let apart = |pair: &[KeyChange]| pair[1].height >= pair[0].height + limits::KEY_CHANGE_BLOCKS;
            ensure(keys.changes.windows(2).all(apart), || {
                format!("the keys of {bot} follow each other too fast")
            })?;
            for key in std::iter::once(bot).chain(keys.changes.iter().map(|change| &change.link.key)) {
                ensure(owners.insert(*key, *bot).is_none(), || {
                    format!("key {key} is two bots', or twice one's")
                })?;
                let is_other =
                    key != bot && (self.accounts.contains_key(key) || self.nodes.contains_key(key));
                ensure(!is_other, || format!("key {key} of bot {bot} is an identity of its own"))?;
            }
        }
        ensure(owners == self.key_owners, || {
            format!("the owners of keys are {:?}, the keys {owners:?}", self.key_owners)
        })
    }

    fn check_releases(&self) -> Check {
        let farms = self.policies.iter().all(|farm| self.farms.contains_key(farm));
        ensure(farms, || "policies are of farms that exist".to_owned())?;
        self.check_trials()?;
        let mut chained = BTreeSet::new();
        for (name, channel) in &self.channels {
            let (mut next, mut newest_good, mut minimum) = (Some(channel.latest), None, channel.minimum);
            let mut looked_at = 0;
            while let Some(version) = next {
                looked_at += 1;
                let id = ReleaseId::new(name, version);
                let body = self.releases.get(&id).ok_or_else(|| {
                    broken(format_args!("channel '{name}' names release {version}, which is not there"))
                })?;
                let release = &body.signed.release;
                ensure(release.previous.is_none_or(|previous| previous < version), || {
                    format!("release {version} of '{name}' follows {:?}", release.previous)
                })?;
                ensure(release.minimum <= minimum && release.minimum <= version, || {
                    format!("the minimum of channel '{name}' fell with release {version}")
                })?;
                let good = body.state == ReleaseState::Published;
                if good && newest_good.is_none() && looked_at <= LOOK_BACK {
                    newest_good = Some(version);
                }
                let stops = release.stop.stops(self.trials.get(&id).copied().unwrap_or_default());
                ensure(!stops || body.state != ReleaseState::Published, || {
                    format!("release {version} of '{name}' should be halted by its stop rule")
                })?;
                chained.insert(id);
                (next, minimum) = (release.previous, release.minimum);
            }
            let offered = newest_good.filter(|version| *version >= channel.minimum);
            ensure(offered == channel.offered, || {
                format!(
                    "channel '{name}' offers {:?}, its newest good release is {offered:?}",
                    channel.offered
                )
            })?;
        }
        ensure(chained.iter().eq(self.releases.keys()), || "every release is in its channel".to_owned())?;
        ensure(self.trials.keys().all(|id| self.releases.contains_key(id)), || {
            "trials are of releases that exist".to_owned()
        })
    }

    /// The outcomes, counted again, are what stands there. Who of two farmers with as many nodes is the largest depends on
    /// the order, and makes no difference.
    fn check_trials(&self) -> Check {
        let mut trials: BTreeMap<ReleaseId, Trials> = BTreeMap::new();
        let mut farmers: BTreeMap<(ReleaseId, BotId), Tried> = BTreeMap::new();
        for (id, farm, outcome) in &self.outcomes {
            let release =
                self.releases.get(id).ok_or_else(|| broken("outcomes are of releases that exist"))?;
            let farm = self.farms.get(farm).ok_or_else(|| broken("outcomes are of farms that exist"))?;
            let (all, own) = (trials.entry(*id).or_default(), farmers.entry((*id, farm.owner)).or_default());
            let counted = all.count(*own, outcome, release.signed.release.stop);
            (*all, *own) = counted.ok_or_else(|| broken("there are too many outcomes to count"))?;
        }
        ensure(self.farmer_trials == farmers, || {
            format!("the farmers' trials are {:?}, the outcomes {farmers:?}", self.farmer_trials)
        })?;
        ensure(self.trials.keys().eq(trials.keys()), || "trials are of releases with outcomes".to_owned())?;
        for (id, found) in &self.trials {
            let size = |tried: Tried| u128::from(tried.confirmed) + u128::from(tried.returned);
            let expected = trials[id];
            let same = Trials { largest: expected.largest, ..*found } == expected
                && size(found.largest) == size(expected.largest)
                && farmers.iter().any(|((of, _), tried)| of == id && *tried == found.largest);
            ensure(same, || format!("the trials of {id} are {found:?}, the outcomes {expected:?}"))?;
        }
        Ok(())
    }

    fn running(&self) -> impl Iterator<Item = (&ContractId, &ContractBody)> {
        self.contracts.iter().filter(|(_, body)| !matches!(body.state, ContractState::Ended(_)))
    }

    fn check_grains(&self) -> Check {
        ensure(self.funded.keys().all(|id| self.contracts.contains_key(id)), || {
            "funds are for contracts that exist".to_owned()
        })?;
        let supply = self.supply.ok_or_else(|| broken("the supply is unknown"))?;
        let balances: u128 = self.accounts.values().map(|account| u128::from(account.balance.0)).sum();
        let held: u128 = self.escrows.values().map(|escrow| u128::from(escrow.held().0)).sum();
        let fees = self.reservations.held_fees();
        ensure(u128::from(supply.0) == balances + held + fees, || {
            format!(
                "the supply is {supply}, but accounts have {balances}, escrows hold {held} and reservations {fees}"
            )
        })
    }

    /// What the faucet has and what was claimed from it is its fund.
    fn check_faucet(&self) -> Check {
        let Some(rule) = &self.faucet else {
            return ensure(self.claimed.is_empty(), || "there are claims, but no faucet".to_owned());
        };
        let claims: u128 = self.claimed.values().map(|claims| u128::from(claims.count)).sum();
        let left = self.accounts.get(&faucet::ACCOUNT).map_or(0, |account| account.balance.0);
        ensure(u128::from(left) + claims * u128::from(rule.amount.0) == u128::from(rule.fund.0), || {
            format!("the faucet had {}, {claims} claims were made, and {left} grains are left", rule.fund)
        })?;
        let within = |claims: &FaucetClaims| (1..=rule.claims_per_bot).contains(&claims.count);
        ensure(self.claimed.iter().all(|(bot, claims)| within(claims) && self.bots.contains_key(bot)), || {
            "claims are those of bots, within the limit".to_owned()
        })
    }

    fn check_profiles(&self) -> Check {
        let odd = self.profiles.iter().find(|(bot, name)| self.bots.get(bot) != Some(name));
        ensure(odd.is_none(), || format!("a profile is not that of its bot: {odd:?}"))
    }

    fn check_contracts(&self) -> Check {
        ensure(self.escrows.keys().eq(self.contracts.keys()), || {
            "there is one escrow for each contract".to_owned()
        })?;
        for (id, body) in &self.contracts {
            let escrow = &self.escrows[id];
            let terms = &body.signed.terms;
            let funded = self.funded.get(id).copied().unwrap_or_default();
            let put_in = terms.deposit().and_then(|deposit| deposit.checked_add(Grains(funded)));
            ensure(put_in == Some(escrow.deposit) && terms.price() >= put_in, || {
                format!(
                    "contract {id} costs {:?}, {put_in:?} were put in, its deposit is {}",
                    terms.price(),
                    escrow.deposit
                )
            })?;
            let sum =
                escrow.paid.0.checked_add(escrow.refunded.0).and_then(|s| s.checked_add(escrow.held().0));
            ensure(sum == Some(escrow.deposit.0), || {
                format!("contract {id} has {escrow:?}, which doesn't add up")
            })?;
            ensure(escrow.covered_ms <= terms.duration_s * 1000, || {
                format!("contract {id} lasts {} s, covered are {} ms", terms.duration_s, escrow.covered_ms)
            })?;
            let worth = u128::from(terms.rate.0) * u128::from(escrow.covered_ms) / 1000;
            ensure(u128::from(escrow.paid.0) == worth, || {
                format!("contract {id} has paid {}, its covered time is worth {worth}", escrow.paid)
            })?;
            let paid_for = Escrow { refunded: Grains::ZERO, ..*escrow }.funds_ms(terms.rate);
            ensure(escrow.covered_ms <= paid_for, || {
                format!("contract {id} is paid for {paid_for} ms, covered are {} ms", escrow.covered_ms)
            })?;
            let ended = matches!(body.state, ContractState::Ended(_));
            let claimed = match body.state {
                ContractState::Ended(EndReason::NotApproved | EndReason::OutOfFunds) => 0,
                ContractState::Ended(_) => {
                    let reach_ms = u128::from(limits::REPORT_COVERS_MS + limits::CLOCK_SLACK_MS);
                    (u128::from(terms.rate.0) * reach_ms).div_ceil(1000) + 1
                }
                _ => u128::MAX,
            };
            ensure(u128::from(escrow.held().0) <= claimed, || {
                format!("contract {id} has ended, but {} are held", escrow.held())
            })?;
            ensure(ended || escrow.refunded == Grains::ZERO, || {
                format!("contract {id} goes on, but {} went back", escrow.refunded)
            })?;
            ensure(!body.state.may_run() || !body.is_out_of_funds(escrow), || {
                format!("contract {id} is {:?} without funds: {escrow:?}", body.state)
            })?;
            if let ContractState::Paused { since_ms } = body.state {
                let rest_ms = escrow.runs_ms(terms.rate);
                ensure(since_ms >= body.starts_ms && rest_ms < limits::PREPAID_S * 1000, || {
                    format!("contract {id} is paused since {since_ms} ms with funds for {rest_ms} ms")
                })?;
            }
            ensure(ended == (body.ended_ms > 0), || format!("contract {id} is {:?}", body.state))?;
            let started = body.starts_ms > 0;
            let needs_start = body.state.may_run() || matches!(body.state, ContractState::Paused { .. });
            ensure(started || !needs_start, || format!("contract {id} runs without a start"))?;
            ensure(body.state != ContractState::Agreed || !started, || {
                format!("contract {id} waits for its approvers and has started")
            })?;
        }
        Ok(())
    }

    fn check_nodes(&self) -> Check {
        ensure(self.drained.iter().all(|node| self.nodes.contains_key(node)), || {
            "what is drained is a node".to_owned()
        })?;
        ensure(self.capacities.keys().eq(self.nodes.keys()), || {
            "there are books for each node and no other".to_owned()
        })?;
        for (id, node) in &self.nodes {
            let books = &self.capacities[id];
            ensure(books.total == node.capacity, || format!("node {id} has another capacity in its books"))?;
            let mut used = Capacity::default();
            let mut contracts = Vec::new();
            for (contract, body) in self.running().filter(|(_, body)| body.signed.terms.node == *id) {
                used = used
                    .checked_add(&body.signed.terms.resources)
                    .ok_or_else(|| broken(format_args!("the contracts of node {id} overflow")))?;
                contracts.push(*contract);
            }
            for body in self.reservations.on_node(id) {
                used = used
                    .checked_add(&body.signed.reservation.resources)
                    .ok_or_else(|| broken(format_args!("the reservations of node {id} overflow")))?;
            }
            ensure(books.used == used, || {
                format!("node {id} has {:?} in use, its contracts and reservations have {used:?}", books.used)
            })?;
            let addressed = self.addressed.get(id).map_or(&[][..], |a| &a.contracts);
            ensure(contracts == addressed, || {
                format!("node {id} runs {contracts:?}, but committed to are {addressed:?}")
            })?;
        }
        ensure(
            self.addressed.iter().all(|(id, a)| self.nodes.contains_key(id) && !a.contracts.is_empty()),
            || "contracts are addressed to registered nodes, and no empty set is kept".to_owned(),
        )
    }

    fn check_trust(&self) -> Check {
        for (id, node) in &self.nodes {
            let class = self.trusts.get(id).map_or(TrustClass::Plain, |trust| trust.class);
            ensure(node.trust == class, || {
                format!("node {id} is {:?}, what is known of its TPM makes it {class:?}", node.trust)
            })?;
        }
        for (id, trust) in &self.trusts {
            ensure(self.nodes.get(id).is_some_and(|node| node.session == trust.session), || {
                format!("what is known of the TPM of node {id} is not of its present boot")
            })?;
            ensure(trust.reasons.len() <= limits::TRUST_REASONS, || {
                format!("node {id} has too many reasons")
            })?;
            ensure(trust.class == TrustClass::Attested || !trust.reasons.is_empty(), || {
                format!("node {id} is {:?} without a reason", trust.class)
            })?;
        }
        ensure(self.quotes.keys().eq(self.trusts.keys()), || {
            "the last quote is kept of nodes whose TPM ever spoke, and of no other".to_owned()
        })?;
        for (id, quote) in &self.quotes {
            let trust = &self.trusts[id];
            let same = (quote.attestation.key_hash(), quote.attestation.height, quote.header.height)
                == (trust.key, trust.height, trust.height)
                && quote.header.time_ms == trust.quoted_ms;
            ensure(same && quote.node.session <= trust.session, || {
                format!("the quote that is kept of node {id} is not the one that it was weighed by")
            })?;
        }
        let endorsed: Vec<_> =
            self.trusts.iter().filter_map(|(id, trust)| Some((trust.endorsement_key?, *id))).collect();
        let endorsements: BTreeMap<_, _> = endorsed.iter().copied().collect();
        ensure(endorsements == self.endorsements && endorsements.len() == endorsed.len(), || {
            "each endorsement key speaks for one node, and no other is kept".to_owned()
        })?;
        let tpms: BTreeMap<_, _> = self.trusts.iter().map(|(id, trust)| (trust.key, *id)).collect();
        ensure(tpms == self.tpms && tpms.len() == self.trusts.len(), || {
            "each TPM speaks for one node, and no other is kept".to_owned()
        })
    }

    /// Names and ports are exactly those of what exists.
    fn check_names(&self) -> Check {
        let mut claims = BTreeMap::new();
        let mut claim = |key: StateKey, holder: Vec<u8>| claims.insert(key, holder);
        for (id, name) in &self.bots {
            let name = name.parse().map_err(broken)?;
            claim(StateKey::BotName(name), croft_protocol::encode(id));
        }
        for (id, farm) in &self.farms {
            claim(StateKey::FarmName(farm.name.clone()), croft_protocol::encode(id));
            ensure(self.bots.contains_key(&farm.owner), || format!("farm {id} has no owner"))?;
        }
        for (id, node) in &self.nodes {
            claim(StateKey::NodeName(node.farm.0, node.name.clone()), croft_protocol::encode(id));
            ensure(self.farms.contains_key(&node.farm), || format!("node {id} has no farm"))?;
        }
        for (id, body) in self.running() {
            let terms = &body.signed.terms;
            claim(StateKey::ContractName(terms.user, terms.name.clone()), croft_protocol::encode(id));
            for port in &terms.ports {
                claim(StateKey::Port(terms.node, *port), croft_protocol::encode(id));
            }
        }
        for (id, body) in self.reservations.holding() {
            for port in &body.ports {
                claim(StateKey::Port(body.signed.reservation.node, *port), croft_protocol::encode(id));
            }
        }
        let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) =
            (claims.iter().collect(), self.claims.iter().collect());
        ensure(ours == theirs, || {
            let odd: Vec<_> = ours.symmetric_difference(&theirs).map(|(key, _)| key).collect();
            format!("names and ports are not those of what exists: {odd:?}")
        })
    }
}
