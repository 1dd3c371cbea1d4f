//! Random histories against a model that is too simple to be wrong: balances, sold and reserved CPU, what each contract
//! has been paid, what reservations cost, and who the validators are. The ledger in memory checks every invariant after each block by itself.

use std::collections::BTreeMap;

use croft_protocol::contract::{Approver, PublishedPort, Transport};
use croft_protocol::header::Validator;
use croft_protocol::market::{CLAIM_MS, NOTICE_MS, RESERVATION_MS};
use croft_protocol::record::WorkloadState;
use croft_protocol::reservation::slot_of;
use croft_protocol::{
    Capacity, Command, ContractId, ContractState, Faucet, Grains, Hash, Rate, Rejection, SecretKey, Terms,
    ValidatorSet, limits,
};
use proptest::prelude::*;

use crate::memory::{ALLOWANCE, Scenario, key, name};
use crate::state::StateReadExt;

#[derive(Debug, Clone)]
enum Op {
    Transfer {
        from: usize,
        to: usize,
        amount: u64,
    },
    Agree {
        slot: usize,
        cpu: u64,
        rate: u64,
        duration_s: u64,
        prepaid_s: Option<u64>,
        port: Option<u16>,
        waits: bool,
    },
    Fund {
        slot: usize,
        by: usize,
        amount: u64,
    },
    Approve {
        slot: usize,
        approve: bool,
    },
    Close {
        slot: usize,
        by: usize,
    },
    Settle {
        slot: usize,
    },
    Report {
        covers_ms: u64,
        percent: u64,
        state: WorkloadState,
    },
    Resize {
        cpu: u64,
    },
    Reserve {
        slot: usize,
        cpu: u64,
        fee: u64,
        hold_ms: u64,
        port: Option<u16>,
    },
    /// Agrees on what was reserved last under this name.
    Use {
        slot: usize,
    },
    ClaimFee {
        slot: usize,
        by: usize,
    },
    Claim {
        bot: usize,
    },
    /// Power of each possible validator, 0 for none; who signs; how many records ago the present one was.
    Validators {
        powers: [u64; CANDIDATES],
        signers: [bool; CANDIDATES],
        old: usize,
    },
}

/// Of [`Scenario::terms`].
const GRACE_MS: u64 = 3_600_000;

/// Keys that may become validators: 101, 102, ...; the first four are it in the beginning.
const CANDIDATES: usize = 6;

/// Enough for three of the six claims that the bots may make.
const FAUCET: Faucet =
    Faucet { fund: Grains(70_000), amount: Grains(20_000), every_s: 600, claims_per_bot: 2 };

fn op() -> impl Strategy<Value = Op> {
    let slot = 0_usize..4;
    let state = prop::sample::select(vec![
        WorkloadState::Preparing,
        WorkloadState::Running,
        WorkloadState::Failing,
        WorkloadState::Refused,
        WorkloadState::Finished,
    ]);
    prop_oneof![
        1 => (0_usize..3, 0_usize..3, 0_u64..400_000)
            .prop_map(|(from, to, amount)| Op::Transfer { from, to, amount }),
        3 => (slot.clone(), 0_u64..5000, 0_u64..500, 1_u64..2000, prop::option::of(1_u16..3), any::<bool>())
            .prop_map(|(slot, cpu, rate, duration_s, port, waits)| {
                Op::Agree { slot, cpu, rate, duration_s, prepaid_s: None, port, waits }
            }),
        // Such as are paid by the hour.
        3 => (slot.clone(), 0_u64..60, 3000_u64..15_000, 3500_u64..6000, prop::bool::weighted(0.2))
            .prop_map(|(slot, rate, duration_s, prepaid_s, waits)| {
                Op::Agree { slot, cpu: 1000, rate, duration_s, prepaid_s: Some(prepaid_s), port: None, waits }
            }),
        2 => (slot.clone(), 0_usize..3, prop_oneof![0_u64..50_000, 0_u64..500_000])
            .prop_map(|(slot, by, amount)| Op::Fund { slot, by, amount }),
        2 => (slot.clone(), prop::bool::weighted(0.8)).prop_map(|(slot, approve)| Op::Approve { slot, approve }),
        1 => (slot.clone(), 0_usize..3).prop_map(|(slot, by)| Op::Close { slot, by }),
        1 => slot.prop_map(|slot| Op::Settle { slot }),
        6 => (0_u64..1_500_000, prop_oneof![Just(100_u64), 0_u64..=100], state)
            .prop_map(|(covers_ms, percent, state)| Op::Report { covers_ms, percent, state }),
        1 => (0_u64..9000).prop_map(|cpu| Op::Resize { cpu }),
        1 => (0_usize..3).prop_map(|bot| Op::Claim { bot }),
        4 => (0_usize..4, 0_u64..4000, 0_u64..50_000, 0_u64..700_000, prop::option::of(1_u16..3))
            .prop_map(|(slot, cpu, fee, hold_ms, port)| Op::Reserve { slot, cpu, fee, hold_ms, port }),
        3 => (0_usize..4).prop_map(|slot| Op::Use { slot }),
        3 => (0_usize..4, 0_usize..3).prop_map(|(slot, by)| Op::ClaimFee { slot, by }),
        // Mostly small steps that many sign, or nothing would ever pass.
        3 => (
            prop::array::uniform6(prop_oneof![1 => Just(0_u64), 4 => Just(1), 1 => 1_u64..4]),
            prop::array::uniform6(prop::bool::weighted(0.9)),
            prop_oneof![6 => Just(0_usize), 1 => 1_usize..3],
        )
            .prop_map(|(powers, signers, old)| Op::Validators { powers, signers, old }),
    ]
}

#[derive(Debug, Clone)]
struct Contract {
    id: ContractId,
    cpu: u64,
    port: Option<u16>,
    rate: u64,
    duration_ms: u64,
    deposit: u64,
    paused_ms: Option<u64>,
    agreed_ms: u64,
    /// `None` while it waits for its approver.
    starts_ms: Option<u64>,
    covered_ms: u64,
    covered_until_ms: u64,
    paid: u64,
}

impl Contract {
    fn price(&self) -> u64 {
        self.rate * self.duration_ms / 1000
    }

    /// For how much more it pays.
    fn runs_ms(&self) -> u64 {
        let funds_ms = (self.deposit * 1000).checked_div(self.rate).unwrap_or(u64::MAX);
        funds_ms.saturating_sub(self.covered_ms)
    }

    fn is_due(&self, now_ms: u64) -> bool {
        let over = now_ms >= self.starts_ms.unwrap_or(self.agreed_ms) + self.duration_ms;
        over || self.paused_ms.is_some_and(|since| now_ms >= since + GRACE_MS)
    }

    fn cover(&mut self, from_ms: u64, until_ms: u64, ran_ms: u64, farmer: &mut u64) {
        let from = from_ms.max(self.starts_ms.unwrap()).max(self.covered_until_ms);
        self.covered_ms += ran_ms.min(until_ms.saturating_sub(from)).min(self.runs_ms());
        self.covered_until_ms = self.covered_until_ms.max(until_ms);
        let owed = self.rate * self.covered_ms / 1000;
        *farmer += owed - self.paid;
        self.paid = owed;
    }

    /// What stays held when it ends now.
    fn claim(&self, now_ms: u64) -> u64 {
        let Some(expires_ms) = self.expires_ms().filter(|_| self.paused_ms.is_none()) else { return 0 };
        let reach_ms = limits::REPORT_COVERS_MS + limits::CLOCK_SLACK_MS;
        let ran_ms = now_ms.min(expires_ms).saturating_sub(self.covered_until_ms).min(reach_ms);
        let worth = (self.rate * (self.covered_ms + ran_ms)).div_ceil(1000);
        (worth - self.paid).min(self.deposit - self.paid)
    }

    fn expires_ms(&self) -> Option<u64> {
        self.starts_ms.map(|start| start + self.duration_ms)
    }
}

#[derive(Debug, Clone)]
struct Reserved {
    terms: Terms,
    fee: u64,
    /// Capacity and port.
    holds: bool,
    /// Its fee is in escrow.
    is_open: bool,
}

impl Reserved {
    fn cpu(&self) -> u64 {
        if self.holds { self.terms.resources.cpu_millis } else { 0 }
    }

    fn has(&self, port: u16) -> bool {
        self.holds && self.terms.ports.iter().any(|own| own.port == port)
    }
}

/// Bots by number: 0 the user, 1 the farmer, 2 the approver.
struct Model {
    balances: [u64; 3],
    cpu: u64,
    /// The running contract in each slot.
    running: BTreeMap<usize, Contract>,
    last: BTreeMap<usize, ContractId>,
    /// By contract, so in the order in which the ledger goes through them.
    reserved: BTreeMap<ContractId, Reserved>,
    /// The newest reservation under each name.
    reserved_last: BTreeMap<usize, ContractId>,
    /// Contracts that ended, when, and what is still held for them.
    ended: BTreeMap<ContractId, (Contract, u64, u64)>,
    reported_ms: u64,
    /// What the faucet has, and of each bot its claims and the time of the last one.
    faucet: u64,
    claims: [(u32, u64); 3],
    powers: [u64; CANDIDATES],
    /// Every version of the validators record, by the hash that a change would name.
    validator_records: Vec<Hash>,
}

impl Model {
    fn used(&self) -> u64 {
        let running: u64 = self.running.values().map(|contract| contract.cpu).sum();
        running + self.reserved.values().map(Reserved::cpu).sum::<u64>()
    }

    fn is_taken(&self, port: Option<u16>) -> bool {
        port.is_some_and(|port| {
            self.running.values().any(|other| other.port == Some(port))
                || self.reserved.values().any(|other| other.has(port))
        })
    }

    /// Capacity is free again some seconds after the expiry, whoever does anything.
    fn expire(&mut self, now_ms: u64) {
        for reserved in self.reserved.values_mut() {
            reserved.holds &= slot_of(now_ms) <= slot_of(reserved.terms.expires_ms);
        }
    }

    fn resize(&mut self, cpu: u64) {
        self.cpu = cpu;
        let holding: Vec<ContractId> =
            self.reserved.iter().filter(|(_, one)| one.holds).map(|(id, _)| *id).collect();
        for id in holding {
            if self.used() <= cpu {
                break;
            }
            let one = self.reserved.get_mut(&id).unwrap();
            (one.holds, one.is_open) = (false, false);
            self.balances[0] += one.fee;
        }
    }

    fn end(&mut self, slot: usize, now_ms: u64) {
        let contract = self.running.remove(&slot).unwrap();
        let claim = contract.claim(now_ms);
        self.balances[0] += contract.deposit - contract.paid - claim;
        self.ended.insert(contract.id, (contract, now_ms, claim));
    }

    fn report(&mut self, from_ms: u64, until_ms: u64, ran_ms: u64, now_ms: u64) {
        self.reported_ms = until_ms;
        for (contract, ended_ms, held) in self.ended.values_mut() {
            if *held == 0 || now_ms >= *ended_ms + limits::FINAL_REPORT_MS {
                continue;
            }
            let end_ms = (*ended_ms).min(contract.expires_ms().unwrap());
            let paid = contract.paid;
            // The rest went back already.
            let whole = std::mem::replace(&mut contract.deposit, paid + *held);
            contract.cover(from_ms, until_ms.min(end_ms), ran_ms, &mut self.balances[1]);
            contract.deposit = whole;
            *held -= contract.paid - paid;
            if until_ms >= end_ms {
                self.balances[0] += std::mem::take(held);
            }
        }
        let mut over = Vec::new();
        for (slot, contract) in &mut self.running {
            let Some(expires) = contract.expires_ms().filter(|_| contract.paused_ms.is_none()) else {
                continue;
            };
            contract.cover(from_ms, until_ms.min(expires), ran_ms, &mut self.balances[1]);
            let left_ms = expires - contract.covered_until_ms;
            if now_ms >= expires {
                over.push(*slot);
            } else if contract.runs_ms() < limits::FUNDED_LEAST_MS.min(left_ms) {
                contract.paused_ms = Some(now_ms);
            }
        }
        for slot in over {
            self.end(slot, now_ms);
        }
    }
}

struct World {
    scenario: Scenario,
    model: Model,
    nonce: u8,
}

impl World {
    fn key(&self, bot: usize) -> SecretKey {
        [&self.scenario.user, &self.scenario.farmer, &self.scenario.other][bot].clone()
    }

    fn submit(&mut self, at_ms: u64, key: &SecretKey, command: Command) -> Result<(), Rejection> {
        self.scenario.ledger.submit_at(at_ms, key, command).map(|_| ())
    }

    /// Does it to both; says whether the model and the ledger expect and find success.
    fn step(&mut self, now_ms: u64, op: &Op) -> (bool, Result<(), Rejection>) {
        self.model.expire(now_ms);
        match *op {
            Op::Transfer { from, to, amount } => self.transfer(now_ms, from, to, amount),
            Op::Agree { .. } => self.agree(now_ms, op),
            Op::Fund { slot, by, amount } => self.fund(now_ms, slot, by, amount),
            Op::Approve { slot, approve } => self.approve(now_ms, slot, approve),
            Op::Close { slot, by } => self.close(now_ms, slot, by),
            Op::Settle { slot } => self.settle(now_ms, slot),
            Op::Report { covers_ms, percent, state } => self.report(now_ms, covers_ms, percent, state),
            Op::Resize { cpu } => {
                let mut node = self.scenario.node_body();
                node.capacity.cpu_millis = cpu;
                self.model.resize(cpu);
                let key = self.scenario.node.clone();
                (
                    true,
                    self.submit(now_ms, &key, Command::RegisterNode { node, join: None, attestation: None }),
                )
            }
            Op::Claim { bot } => self.claim(now_ms, bot),
            Op::Reserve { .. } => self.reserve(now_ms, op),
            Op::Use { slot } => self.use_reserved(now_ms, slot),
            Op::ClaimFee { slot, by } => self.claim_fee(now_ms, slot, by),
            Op::Validators { powers, signers, old } => self.validators(now_ms, powers, signers, old),
        }
    }

    fn claim(&mut self, now_ms: u64, bot: usize) -> (bool, Result<(), Rejection>) {
        let model = &mut self.model;
        let (count, last_ms) = model.claims[bot];
        let waited = count == 0 || now_ms >= last_ms + FAUCET.every_s * 1000;
        let expected = count < FAUCET.claims_per_bot && waited && model.faucet >= FAUCET.amount.0;
        if expected {
            model.claims[bot] = (count + 1, now_ms);
            model.faucet -= FAUCET.amount.0;
            model.balances[bot] += FAUCET.amount.0;
        }
        (expected, self.submit(now_ms, &self.key(bot), Command::ClaimFaucet))
    }

    fn transfer(
        &mut self,
        now_ms: u64,
        from: usize,
        to: usize,
        amount: u64,
    ) -> (bool, Result<(), Rejection>) {
        let expected = from != to && amount > 0 && self.model.balances[from] >= amount;
        if expected {
            self.model.balances[from] -= amount;
            self.model.balances[to] += amount;
        }
        let to = self.key(to).public();
        let command = Command::Transfer { to, amount: Grains(amount), memo: String::new() };
        (expected, self.submit(now_ms, &self.key(from), command))
    }

    fn agree(&mut self, now_ms: u64, op: &Op) -> (bool, Result<(), Rejection>) {
        let Op::Agree { slot, cpu, rate, duration_s, prepaid_s, port, waits } = *op else { unreachable!() };
        let node = self.scenario.node_id();
        let mut terms = self.scenario.terms("web");
        self.nonce = self.nonce.wrapping_add(1);
        terms.nonce = [self.nonce; 16];
        terms.name = name(&format!("slot-{slot}"));
        terms.expires_ms = now_ms;
        terms.resources = Capacity { cpu_millis: cpu, memory_bytes: 1 << 20, ..Capacity::default() };
        (terms.rate, terms.duration_s, terms.prepaid_s) = (Rate(rate), duration_s, prepaid_s);
        terms.ports =
            port.iter().map(|port| PublishedPort { transport: Transport::Tcp, port: *port }).collect();
        terms.capacity_version = self.scenario.ledger.capacity(&node).unwrap().unwrap().version;
        if waits {
            terms.quorum.threshold = 1;
            let bot = self.scenario.other.public();
            terms.quorum.approvers = vec![Approver { bot, weight: 1, required: false }];
        }
        let contract = Contract {
            id: terms.id(),
            cpu,
            port,
            rate,
            duration_ms: duration_s * 1000,
            deposit: rate * prepaid_s.unwrap_or(duration_s),
            paused_ms: None,
            agreed_ms: now_ms,
            starts_ms: (!waits).then_some(now_ms),
            covered_ms: 0,
            covered_until_ms: if waits { 0 } else { now_ms },
            paid: 0,
        };
        let model = &mut self.model;
        let least_s = limits::PREPAID_S.min(duration_s);
        let expected = cpu > 0
            && prepaid_s.is_none_or(|s| (least_s..=duration_s).contains(&s))
            && model.used() + cpu <= model.cpu
            && !model.running.contains_key(&slot)
            && !model.is_taken(port)
            && model.balances[0] >= contract.deposit;
        if expected {
            model.balances[0] -= contract.deposit;
            model.last.insert(slot, contract.id);
            model.running.insert(slot, contract);
        }
        let command = Command::Agree(Box::new(self.scenario.sign(terms)));
        (expected, self.submit(now_ms, &self.key(0), command))
    }

    fn reserve(&mut self, now_ms: u64, op: &Op) -> (bool, Result<(), Rejection>) {
        let Op::Reserve { slot, cpu, fee, hold_ms, port } = *op else { unreachable!() };
        let mut terms = self.scenario.terms("web");
        self.nonce = self.nonce.wrapping_add(1);
        terms.nonce = [self.nonce; 16];
        terms.name = name(&format!("slot-{slot}"));
        terms.expires_ms = now_ms + hold_ms;
        terms.resources = Capacity { cpu_millis: cpu, memory_bytes: 1 << 20, ..Capacity::default() };
        terms.ports =
            port.iter().map(|port| PublishedPort { transport: Transport::Tcp, port: *port }).collect();
        terms.capacity_version =
            self.scenario.ledger.capacity(&self.scenario.node_id()).unwrap().unwrap().version;
        let model = &mut self.model;
        let in_time = (NOTICE_MS..=RESERVATION_MS + limits::CLOCK_SLACK_MS).contains(&hold_ms);
        let open = model.reserved.values().filter(|one| one.holds).count();
        let expected = in_time
            && cpu > 0
            && !model.running.contains_key(&slot)
            && open < limits::RESERVATIONS_PER_USER as usize
            && model.used() + cpu <= model.cpu
            && !model.is_taken(port)
            && model.balances[0] >= fee;
        if expected {
            model.balances[0] -= fee;
            model.reserved_last.insert(slot, terms.id());
            let reserved = Reserved { terms: terms.clone(), fee, holds: true, is_open: true };
            model.reserved.insert(terms.id(), reserved);
        }
        let announcement = self.scenario.announcement(terms, Grains(fee));
        (expected, self.submit(now_ms, &self.key(1), Command::AnnounceReservation(Box::new(announcement))))
    }

    fn use_reserved(&mut self, now_ms: u64, slot: usize) -> (bool, Result<(), Rejection>) {
        let Some(id) = self.model.reserved_last.get(&slot).copied() else {
            // Some block must come, in which what expired is freed.
            return self.claim_fee(now_ms, slot, 1);
        };
        let model = &mut self.model;
        let mut reserved = model.reserved[&id].clone();
        let terms = reserved.terms.clone();
        let (cpu, deposit) = (terms.resources.cpu_millis, terms.rate.0 * terms.duration_s);
        let port = terms.ports.first().map(|port| port.port);
        let back = if reserved.is_open { reserved.fee } else { 0 };
        let known = model.running.values().any(|one| one.id == id) || model.ended.contains_key(&id);
        let expected = !known
            && terms.expires_ms >= now_ms
            && !model.running.contains_key(&slot)
            && model.used() - reserved.cpu() + cpu <= model.cpu
            && (reserved.holds || !model.is_taken(port))
            && model.balances[0] + back >= deposit;
        if expected {
            model.balances[0] = model.balances[0] + back - deposit;
            (reserved.holds, reserved.is_open) = (false, false);
            model.reserved.insert(id, reserved);
            model.last.insert(slot, id);
            let contract = Contract {
                id,
                cpu,
                port,
                rate: terms.rate.0,
                duration_ms: terms.duration_s * 1000,
                deposit,
                paused_ms: None,
                agreed_ms: now_ms,
                starts_ms: Some(now_ms),
                covered_ms: 0,
                covered_until_ms: now_ms,
                paid: 0,
            };
            model.running.insert(slot, contract);
        }
        let command = Command::Agree(Box::new(self.scenario.sign(terms)));
        (expected, self.submit(now_ms, &self.key(0), command))
    }

    fn claim_fee(&mut self, now_ms: u64, slot: usize, by: usize) -> (bool, Result<(), Rejection>) {
        let contract = self.model.reserved_last.get(&slot).copied();
        let contract = contract.unwrap_or(ContractId(Hash::ZERO));
        let model = &mut self.model;
        let mut expected = false;
        if let Some(one) = model.reserved.get_mut(&contract) {
            let expires_ms = one.terms.expires_ms;
            let late = now_ms > expires_ms + CLAIM_MS;
            expected = one.is_open && now_ms > expires_ms && (late || by == 1);
            if expected {
                model.balances[usize::from(!late)] += one.fee;
                (one.holds, one.is_open) = (false, false);
            }
        }
        (expected, self.submit(now_ms, &self.key(by), Command::ClaimReservation { contract }))
    }

    fn contract(&self, slot: usize) -> ContractId {
        self.model.last.get(&slot).copied().unwrap_or(ContractId(croft_protocol::Hash::ZERO))
    }

    fn approve(&mut self, now_ms: u64, slot: usize, approve: bool) -> (bool, Result<(), Rejection>) {
        let command = Command::Approve { contract: self.contract(slot), approve };
        let waiting = self.model.running.get_mut(&slot).filter(|contract| contract.starts_ms.is_none());
        let expected = waiting.is_some();
        if let Some(contract) = waiting {
            if approve && now_ms < contract.agreed_ms + contract.duration_ms {
                contract.starts_ms = Some(now_ms);
                contract.covered_until_ms = now_ms;
            } else {
                self.model.end(slot, now_ms);
            }
        }
        (expected, self.submit(now_ms, &self.key(2), command))
    }

    fn fund(&mut self, now_ms: u64, slot: usize, by: usize, amount: u64) -> (bool, Result<(), Rejection>) {
        let command = Command::Fund { contract: self.contract(slot), amount: Grains(amount) };
        let model = &mut self.model;
        let contract = model.running.get_mut(&slot).filter(|contract| {
            !contract.is_due(now_ms)
                && (1..=contract.price() - contract.deposit).contains(&amount)
                && model.balances[by] >= amount
        });
        let expected = contract.is_some();
        if let Some(contract) = contract {
            model.balances[by] -= amount;
            contract.deposit += amount;
            let left_ms = contract.expires_ms().map_or(0, |at| at - now_ms);
            let enough = contract.runs_ms() >= left_ms.min(limits::PREPAID_S * 1000);
            if enough && contract.paused_ms.take().is_some() {
                contract.covered_until_ms = contract.covered_until_ms.max(now_ms);
            }
        }
        (expected, self.submit(now_ms, &self.key(by), command))
    }

    fn close(&mut self, now_ms: u64, slot: usize, by: usize) -> (bool, Result<(), Rejection>) {
        let command = Command::Close { contract: self.contract(slot) };
        let expected = by < 2 && self.model.running.contains_key(&slot);
        if expected {
            self.model.end(slot, now_ms);
        }
        (expected, self.submit(now_ms, &self.key(by), command))
    }

    fn settle(&mut self, now_ms: u64, slot: usize) -> (bool, Result<(), Rejection>) {
        let command = Command::Settle { contract: self.contract(slot) };
        let running = self.model.running.get(&slot).map(|contract| contract.is_due(now_ms));
        if running == Some(true) {
            self.model.end(slot, now_ms);
            return (true, self.submit(now_ms, &self.key(2), command));
        }
        let id = self.contract(slot);
        let mut expected = running.is_some();
        if let Some((_, ended_ms, held)) = self.model.ended.get_mut(&id) {
            expected = *held > 0;
            if now_ms >= *ended_ms + limits::FINAL_REPORT_MS {
                self.model.balances[0] += std::mem::take(held);
            }
        }
        (expected, self.submit(now_ms, &self.key(2), command))
    }

    fn report(
        &mut self,
        now_ms: u64,
        covers_ms: u64,
        percent: u64,
        state: WorkloadState,
    ) -> (bool, Result<(), Rejection>) {
        let from_ms = (now_ms - covers_ms.min(limits::REPORT_COVERS_MS)).max(self.model.reported_ms);
        let ran_ms = (now_ms - from_ms) * percent / 100;
        // What waits for its approver must not have run, so it is left out.
        let lines = self.model.running.values().filter(|contract| contract.starts_ms.is_some());
        let ended = self.model.ended.values().map(|(contract, ..)| contract);
        let lines = lines.chain(ended).map(|contract| (contract.id, state, ran_ms)).collect();
        let report = self.scenario.report_body(from_ms, now_ms, lines);
        self.model.report(from_ms, now_ms, ran_ms, now_ms);
        let node = self.scenario.node.clone();
        (true, self.submit(now_ms, &node, Command::Report(report)))
    }

    fn validators(
        &mut self,
        now_ms: u64,
        powers: [u64; CANDIDATES],
        signers: [bool; CANDIDATES],
        old: usize,
    ) -> (bool, Result<(), Rejection>) {
        let now = self.model.powers;
        // Only present validators sign: that others may not is a test of its own.
        let signs = |at: usize| signers[at] && now[at] > 0;
        let mut signed = self.scenario.ledger.sign_change(validator_set(powers), &[]);
        let records = &self.model.validator_records;
        let named = records.len().saturating_sub(1 + old);
        signed.change.prev = records[named];
        for at in (0..CANDIDATES).filter(|at| signs(*at)) {
            signed.add(signed.change.sign(&candidate(at), &self.scenario.ledger.chain()));
        }
        let total: u64 = now.iter().sum();
        let signing: u64 = (0..CANDIDATES).filter(|at| signs(*at)).map(|at| now[at]).sum();
        let stays: u64 = (0..CANDIDATES).map(|at| now[at].min(powers[at])).sum();
        let expected =
            named + 1 == records.len() && powers != now && 3 * signing > 2 * total && 3 * stays >= 2 * total;
        let result = self.submit(now_ms, &self.key(2), Command::SetValidators(Box::new(signed)));
        if expected {
            self.model.powers = powers;
            self.model.validator_records.push(self.scenario.ledger.records().last().unwrap().hash());
        }
        (expected, result)
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        for (bot, balance) in self.model.balances.iter().enumerate() {
            prop_assert_eq!(self.scenario.balance(&self.key(bot)), Grains(*balance), "bot {}", bot);
        }
        let faucet = self.scenario.ledger.account(&croft_protocol::faucet::ACCOUNT).unwrap().balance;
        prop_assert_eq!(faucet, Grains(self.model.faucet));
        let node = self.scenario.node_id();
        let books = self.scenario.ledger.capacity(&node).unwrap().unwrap();
        prop_assert_eq!(books.used.cpu_millis, self.model.used());
        prop_assert_eq!(books.total.cpu_millis, self.model.cpu);
        for contract in self.model.running.values() {
            let (body, escrow) = (self.scenario.contract(&contract.id), self.scenario.escrow(&contract.id));
            prop_assert_eq!(body.expires_ms(), contract.expires_ms());
            prop_assert_eq!(
                body.state.may_run(),
                contract.starts_ms.is_some() && contract.paused_ms.is_none()
            );
            let paused = contract.paused_ms.map(|since_ms| ContractState::Paused { since_ms });
            prop_assert!(paused.is_none_or(|paused| body.state == paused), "{:?}", body.state);
            prop_assert_eq!(escrow.paid, Grains(contract.paid));
            prop_assert_eq!(escrow.held(), Grains(contract.deposit - contract.paid));
        }
        for (id, (contract, _, held)) in &self.model.ended {
            let escrow = self.scenario.escrow(id);
            prop_assert_eq!((escrow.paid, escrow.held()), (Grains(contract.paid), Grains(*held)));
        }
        for (slot, id) in &self.model.last {
            let ended = matches!(self.scenario.contract(id).state, ContractState::Ended(_));
            prop_assert_eq!(ended, !self.model.running.contains_key(slot));
        }
        let ledger = &self.scenario.ledger;
        let set = validator_set(self.model.powers);
        prop_assert_eq!(ledger.tip().header.next_validators, set.hash());
        prop_assert_eq!(ledger.validators().unwrap().set, set);
        // Nobody is left out of the chain of sets, and nobody slips in.
        let headers = ledger.headers();
        if let [.., before, tip] = headers {
            prop_assert_eq!(tip.header.validators, before.header.next_validators);
            prop_assert_eq!(tip.validators.hash(), tip.header.validators);
        }
        Ok(())
    }
}

fn candidate(at: usize) -> SecretKey {
    key(101 + u8::try_from(at).unwrap())
}

fn validator_set(powers: [u64; CANDIDATES]) -> ValidatorSet {
    let all = powers.iter().enumerate().filter(|(_, power)| **power > 0);
    let mut validators: Vec<_> =
        all.map(|(at, power)| Validator { key: candidate(at).public(), power: *power }).collect();
    validators.sort_by_key(|validator| validator.key);
    ValidatorSet { validators }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::with_cases(32)
    })]

    #[test]
    fn random_histories_are_those_of_the_model(
        ops in prop::collection::vec((1_u64..900_000, op()), 1..40),
    ) {
        let mut scenario = Scenario::with_faucet(FAUCET);
        scenario.ledger.add_keys([candidate(4), candidate(5)]);
        let model = Model {
            balances: [ALLOWANCE.0; 3],
            cpu: scenario.node_body().capacity.cpu_millis,
            running: BTreeMap::new(),
            last: BTreeMap::new(),
            reserved: BTreeMap::new(),
            reserved_last: BTreeMap::new(),
            ended: BTreeMap::new(),
            reported_ms: 0,
            faucet: FAUCET.fund.0,
            claims: [(0, 0); 3],
            powers: [1, 1, 1, 1, 0, 0],
            validator_records: vec![scenario.ledger.validators().unwrap().record],
        };
        let mut now_ms = scenario.now_ms();
        let mut world = World { scenario, model, nonce: 0 };
        for (after_ms, op) in ops {
            now_ms += after_ms;
            let (expected, found) = world.step(now_ms, &op);
            prop_assert_eq!(found.is_ok(), expected, "{:?}: {:?}", op, found);
            world.compare()?;
        }
    }
}
