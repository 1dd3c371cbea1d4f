//! Contracts: agreed, approved, funded, closed, settled; and their money.
//!
//! Money moves here only: into escrow with the agreement and by whoever funds it later, out of it for covered time,
//! and the rest back to the user at the end. `deposit = paid + refunded + held` holds after every step, and nothing
//! is covered that the deposit does not pay for.
//!
//! What a node ran since its last report is not lost with the end: at most that much stays held until its final
//! report, or until [`limits::FINAL_REPORT_MS`] have passed.

use croft_protocol::contract::{PublishedPort, Quorum};
use croft_protocol::record::{ApprovalBody, FundingBody, Kind};
use croft_protocol::{
    Body, Capacity, ContractBody, ContractId, ContractState, EndReason, Escrow, Grains, NodeId, PublicKey,
    RecordId, Rejection, SignedTerms, StateKey, Terms, limits,
};

use super::{bounds, known_bot, known_farm, known_node, malformed, reservations};
use crate::block::Event;
use crate::state::{StateError, StateRead, StateReadExt};
use crate::work::{Step, Work};

pub(super) fn agree(work: &mut Work<'_>, author: PublicKey, signed: &SignedTerms) -> Step {
    let terms = &signed.terms;
    let id = terms.id();
    if author != terms.user && author != terms.farmer {
        let allowed = "the user or the farmer of the contract".to_owned();
        return Err(Rejection::NotAllowed { author, allowed }.into());
    }
    if work.contract(&id)?.is_some() {
        return Err(Rejection::Duplicate { contract: id }.into());
    }
    check_terms(work, terms)?;
    check_parties(work, terms)?;
    // Before the signatures, of which links of a key's own making would make many.
    super::present_signer(work, &terms.user, &signed.user)?;
    // What was announced was looked at then: its user pays for it, so it stays good.
    if work.reservation(&id)?.is_none_or(|announced| announced.approval != signed.farmer) {
        super::present_signer(work, &terms.farmer, &signed.farmer)?;
    }
    signed.verify(&work.ctx().chain).map_err(|bad| Rejection::Unsigned { party: bad.key })?;

    let name_key = free_name(work, terms)?;
    terms.price().ok_or(Rejection::Overflow)?;
    let deposit = terms.deposit().ok_or(Rejection::Overflow)?;
    let reserved = reservations::use_up(work, id)?;
    address_to_node(work, terms, id)?;
    work.debit(&terms.user, deposit)?;
    work.put(name_key, &id);

    let now_ms = work.now_ms();
    let approved = terms.quorum.approvers.is_empty();
    let starts_ms = if approved { now_ms } else { 0 };
    let escrow = Escrow { deposit, covered_until_ms: starts_ms, ..Escrow::default() };
    work.put(StateKey::Escrow(id), &escrow);
    let body = ContractBody {
        signed: signed.clone(),
        state: ContractState::Agreed,
        agreed_ms: now_ms,
        starts_ms,
        ended_ms: 0,
    };
    let state = if approved { ContractState::Approved } else { ContractState::Agreed };
    change_state(work, author, id, body, state, None)?;
    reservations::used(work, author, reserved)
}

/// The key of a contract's name, which its user has not given to another one that runs.
pub(super) fn free_name(work: &Work<'_>, terms: &Terms) -> Step<StateKey> {
    let name_key = StateKey::ContractName(terms.user, terms.name.clone());
    if work.get(&name_key)?.is_some() {
        let what = "contract name".to_owned();
        return Err(Rejection::NameTaken { what, name: terms.name.clone() }.into());
    }
    Ok(name_key)
}

pub(super) fn check_terms(work: &Work<'_>, terms: &Terms) -> Step {
    if terms.expires_ms < work.now_ms() {
        return Err(Rejection::TermsExpired { expired_ms: terms.expires_ms, now_ms: work.now_ms() }.into());
    }
    if !(1..=limits::DURATION_S).contains(&terms.duration_s) {
        let allowed = format_args!("1 to {}", limits::DURATION_S);
        return Err(bounds("the duration in seconds", terms.duration_s, allowed));
    }
    if terms.grace_s > limits::GRACE_S {
        let allowed = format_args!("at most {}", limits::GRACE_S);
        return Err(bounds("the grace period in seconds", terms.grace_s, allowed));
    }
    let least_s = limits::PREPAID_S.min(terms.duration_s);
    if let Some(prepaid_s) = terms.prepaid_s
        && !(least_s..=terms.duration_s).contains(&prepaid_s)
    {
        let allowed = format_args!("{least_s} to {}", terms.duration_s);
        return Err(bounds("the time that is paid ahead, in seconds,", prepaid_s, allowed));
    }
    for (what, got) in [
        ("the CPU in millis", terms.resources.cpu_millis),
        ("the memory in bytes", terms.resources.memory_bytes),
    ] {
        if got == 0 {
            return Err(bounds(what, got, "1 and more"));
        }
    }
    if terms.sealed.is_empty() || terms.sealed.len() > limits::SEALED_WORKLOAD_BYTES {
        let allowed = format_args!("1 to {}", limits::SEALED_WORKLOAD_BYTES);
        return Err(bounds("the length of the sealed workload in bytes", terms.sealed.len(), allowed));
    }
    if terms.ports.len() > limits::PORTS_PER_CONTRACT {
        let allowed = format_args!("at most {}", limits::PORTS_PER_CONTRACT);
        return Err(bounds("the number of ports", terms.ports.len(), allowed));
    }
    let ascending = terms.ports.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || terms.ports.iter().any(|port| port.port == 0) {
        return Err(malformed("ports must be in ascending order, each once, none 0"));
    }
    check_quorum(work, &terms.quorum)
}

fn check_quorum(work: &Work<'_>, quorum: &Quorum) -> Step {
    let approvers = &quorum.approvers;
    if approvers.len() > limits::APPROVERS_PER_CONTRACT {
        let allowed = format_args!("at most {}", limits::APPROVERS_PER_CONTRACT);
        return Err(bounds("the number of approvers", approvers.len(), allowed));
    }
    for (i, approver) in approvers.iter().enumerate() {
        known_bot(work, &approver.bot)?;
        if approver.weight == 0 {
            return Err(bounds("an approver's weight", 0_u64, "1 and more"));
        }
        if approvers[..i].iter().any(|other| other.bot == approver.bot) {
            return Err(malformed(format!("approver {} stands in the quorum twice", approver.bot)));
        }
    }
    let total: u64 = approvers.iter().map(|approver| u64::from(approver.weight)).sum();
    let least = u32::from(!approvers.is_empty());
    if quorum.threshold < least || u64::from(quorum.threshold) > total {
        let allowed = format_args!("{least} to {total}, the sum of the weights");
        return Err(bounds("the approval threshold", quorum.threshold, allowed));
    }
    Ok(())
}

pub(super) fn check_parties(work: &Work<'_>, terms: &Terms) -> Step {
    known_bot(work, &terms.user)?;
    known_bot(work, &terms.farmer)?;
    let farm = known_farm(work, &terms.farm)?;
    if farm.owner != terms.farmer {
        let allowed = format!("the owner of farm '{}'", farm.name);
        return Err(Rejection::NotAllowed { author: terms.farmer, allowed }.into());
    }
    let node = known_node(work, &terms.node)?;
    if node.farm != terms.farm {
        return Err(malformed(format!("node {} is not of farm '{}'", terms.node, farm.name)));
    }
    Ok(())
}

/// Sells the node's capacity and ports, and commits the node to the contract. All or nothing.
fn address_to_node(work: &mut Work<'_>, terms: &Terms, id: ContractId) -> Step {
    take_room(work, terms, id)?;
    let node = terms.node;
    let mut addressed = work.node_contracts(&node)?;
    let at = addressed.contracts.partition_point(|other| *other < id);
    addressed.contracts.insert(at, id);
    work.put(StateKey::NodeContracts(node), &addressed);
    Ok(())
}

/// Takes capacity and ports of a node, for a contract or for the reservation of one.
pub(super) fn take_room(work: &mut Work<'_>, terms: &Terms, id: ContractId) -> Step {
    let node = terms.node;
    let mut books = work.capacity(&node)?.ok_or_else(|| missing("capacity", &node))?;
    let shortfalls = books.free().shortfalls(&terms.resources);
    // An older version does no harm while it fits; a newer one was never true.
    if terms.capacity_version > books.version
        || (terms.capacity_version < books.version && !shortfalls.is_empty())
    {
        let (got, current) = (terms.capacity_version, books.version);
        return Err(Rejection::Stale { node, got, current, shortfalls }.into());
    }
    if !shortfalls.is_empty() {
        return Err(Rejection::Capacity { node, shortfalls }.into());
    }
    for port in &terms.ports {
        let key = StateKey::Port(node, *port);
        if work.get(&key)?.is_some() {
            return Err(Rejection::PortTaken { node, port: *port }.into());
        }
        work.put(key, &id);
    }
    let taken = work.node_contracts(&node)?.contracts.len() + work.node_reservations(&node)?.contracts.len();
    if taken >= limits::CONTRACTS_PER_NODE {
        return Err(Rejection::NodeFull { node, limit: limits::CONTRACTS_PER_NODE as u64 }.into());
    }
    books.used = books.used.checked_add(&terms.resources).ok_or(Rejection::Overflow)?;
    books.version = books.version.checked_add(1).ok_or(Rejection::Overflow)?;
    work.put(StateKey::Capacity(node), &books);
    work.event(Event::Capacity { node });
    Ok(())
}

/// Gives capacity and ports of a node back.
pub(super) fn free_room(
    work: &mut Work<'_>,
    node: NodeId,
    ports: &[PublishedPort],
    resources: &Capacity,
    id: ContractId,
) -> Step {
    for port in ports {
        work.remove(StateKey::Port(node, *port));
    }
    let mut books = work.capacity(&node)?.ok_or_else(|| missing("capacity", &node))?;
    books.used = books.used.checked_sub(resources).ok_or_else(|| {
        let Capacity { cpu_millis, memory_bytes, .. } = books.used;
        StateError::broken(format_args!(
            "node {node} uses at least what contract {id} has, not {cpu_millis} millis, {memory_bytes} bytes"
        ))
    })?;
    books.version = books.version.checked_add(1).ok_or(Rejection::Overflow)?;
    work.put(StateKey::Capacity(node), &books);
    work.event(Event::Capacity { node });
    Ok(())
}

pub(super) fn approve(work: &mut Work<'_>, author: PublicKey, id: &ContractId, approved: bool) -> Step {
    let mut body = running(work, id)?;
    let quorum = body.signed.terms.quorum.clone();
    let vote = RecordId::approval(id, &author);
    let listed = quorum.approvers.iter().any(|approver| approver.bot == author);
    if !listed || work.record(&vote)?.is_some() {
        return Err(Rejection::NotApprover { author, contract: *id }.into());
    }
    let approval = ApprovalBody { contract: *id, approver: author, approved };
    work.append(vote, Body::Approval(approval), author)?;
    if body.state != ContractState::Agreed {
        // The others sufficed already. The vote stands on the record and changes nothing.
        return Ok(());
    }
    let verdict =
        if due_end(&body, work.now_ms()).is_some() { Verdict::Refused } else { count(work, id, &quorum)? };
    match verdict {
        Verdict::Open => Ok(()),
        Verdict::Refused => end(work, author, *id, body, EndReason::NotApproved),
        Verdict::Approved => {
            body.starts_ms = work.now_ms();
            let mut escrow = escrow_of(work, id)?;
            escrow.covered_until_ms = body.starts_ms;
            work.put(StateKey::Escrow(*id), &escrow);
            let from = body.state;
            change_state(work, author, *id, body, ContractState::Approved, Some(from))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Open,
    Approved,
    /// A required approver refused, or so many that the threshold is out of reach.
    Refused,
}

fn count(work: &Work<'_>, id: &ContractId, quorum: &Quorum) -> Step<Verdict> {
    let (mut approved, mut reachable, mut required_missing) = (0_u64, 0_u64, false);
    for approver in &quorum.approvers {
        let weight = u64::from(approver.weight);
        let vote = match work.record(&RecordId::approval(id, &approver.bot))? {
            None => None,
            Some(record) => match record.body {
                Body::Approval(approval) => Some(approval.approved),
                _ => return Err(StateError::broken("an approval is an approval").into()),
            },
        };
        match vote {
            Some(true) => {
                approved += weight;
                reachable += weight;
            }
            Some(false) if approver.required => return Ok(Verdict::Refused),
            Some(false) => {}
            None => {
                reachable += weight;
                required_missing |= approver.required;
            }
        }
    }
    let threshold = u64::from(quorum.threshold);
    Ok(if reachable < threshold {
        Verdict::Refused
    } else if approved >= threshold && !required_missing {
        Verdict::Approved
    } else {
        Verdict::Open
    })
}

pub(super) fn close(work: &mut Work<'_>, author: PublicKey, id: &ContractId) -> Step {
    let body = known_contract(work, id)?;
    let terms = &body.signed.terms;
    let reason = if author == terms.user {
        EndReason::ClosedByUser
    } else if author == terms.farmer {
        EndReason::ClosedByFarmer
    } else {
        let allowed = "the user or the farmer of the contract".to_owned();
        return Err(Rejection::NotAllowed { author, allowed }.into());
    };
    let body = running(work, id)?;
    let reason = due_end(&body, work.now_ms()).unwrap_or(reason);
    end(work, author, *id, body, reason)
}

/// Pays more into a contract's escrow, at most what its whole duration costs. A paused one goes on once an hour, or
/// what is left, is paid for.
pub(super) fn fund(
    work: &mut Work<'_>,
    author: PublicKey,
    id: &ContractId,
    amount: Grains,
    sequence: u64,
) -> Step {
    known_bot(work, &author)?;
    let body = running(work, id)?;
    let now_ms = work.now_ms();
    if due_end(&body, now_ms).is_some() {
        // Nothing could be had for it any more: whoever settles ends it.
        return Err(Rejection::Ended { contract: *id }.into());
    }
    let price = body.signed.terms.price().ok_or(Rejection::Overflow)?;
    let mut escrow = escrow_of(work, id)?;
    let room = price.0.saturating_sub(escrow.deposit.0);
    if !(1..=room).contains(&amount.0) {
        let allowed = match room {
            0 => "none, since its whole duration is paid for".to_owned(),
            room => format!("1 to {room}, which pay for its whole duration"),
        };
        return Err(bounds("the amount in grains", amount.0, allowed));
    }
    work.debit(&author, amount)?;
    escrow.deposit = escrow.deposit.checked_add(amount).ok_or(Rejection::Overflow)?;
    let funding = FundingBody { from: author, contract: *id, amount };
    work.append(RecordId::funding(&author, sequence), Body::Funding(funding), author)?;
    work.event(Event::Funded { contract: *id, from: author, amount });
    let paused = matches!(body.state, ContractState::Paused { .. });
    let resumes = paused && body.missing_to_resume(&escrow, now_ms) == Grains::ZERO;
    if resumes {
        // The pause is not paid for.
        escrow.covered_until_ms = escrow.covered_until_ms.max(now_ms);
    }
    put_escrow(work, *id, &escrow)?;
    if !resumes {
        return Ok(());
    }
    let from = body.state;
    change_state(work, author, *id, body, ContractState::Approved, Some(from))
}

/// Does what time has made due: ends what is over or waited too long, marks what its node is silent about, and
/// refunds what no final report claimed. What is covered was paid with the report that covers it, so a second
/// settlement changes nothing.
pub(super) fn settle(work: &mut Work<'_>, author: PublicKey, id: &ContractId) -> Step {
    let body = known_contract(work, id)?;
    let now_ms = work.now_ms();
    if let Some(until_ms) = body.final_report_until_ms() {
        return match escrow_of(work, id)?.held() {
            Grains::ZERO => Err(Rejection::Ended { contract: *id }.into()),
            _ if now_ms < until_ms => Ok(()),
            _ => refund_all(work, *id, &body),
        };
    }
    if let Some(reason) = due_end(&body, now_ms) {
        return end(work, author, *id, body, reason);
    }
    let silent_ms = now_ms.saturating_sub(escrow_of(work, id)?.covered_until_ms);
    if body.state == ContractState::Active && silent_ms > limits::REPORT_COVERS_MS {
        let from = body.state;
        return change_state(work, author, *id, body, ContractState::Degraded, Some(from));
    }
    Ok(())
}

/// The end that time has brought, if it has: whichever came first.
fn due_end(body: &ContractBody, now_ms: u64) -> Option<EndReason> {
    let limit_ms = body.signed.terms.duration_s.saturating_mul(1000);
    let waiting = body.state == ContractState::Agreed;
    [
        (body.expires_ms(), EndReason::Expired),
        (body.funds_awaited_until_ms(), EndReason::OutOfFunds),
        // A quorum that is not reached within the contract's own duration never is: capacity and deposit don't
        // wait for ever.
        (waiting.then(|| body.agreed_ms.saturating_add(limit_ms)), EndReason::NotApproved),
    ]
    .into_iter()
    .filter_map(|(at_ms, reason)| at_ms.filter(|at_ms| now_ms >= *at_ms).map(|at_ms| (at_ms, reason)))
    .min_by_key(|(at_ms, _)| *at_ms)
    .map(|(_, reason)| reason)
}

/// What the node's final report may be paid at most: for the time since what is covered, as far back as a report
/// reaches.
fn final_claim(body: &ContractBody, escrow: &Escrow, now_ms: u64) -> Grains {
    if !body.state.may_run() {
        return Grains::ZERO;
    }
    let until_ms = now_ms.min(body.expires_ms().unwrap_or(now_ms));
    let ran_ms = until_ms
        .saturating_sub(escrow.covered_until_ms)
        .min(limits::REPORT_COVERS_MS + limits::CLOCK_SLACK_MS);
    let rate = u128::from(body.signed.terms.rate.0);
    let worth = (rate * (u128::from(escrow.covered_ms) + u128::from(ran_ms))).div_ceil(1000);
    let worth = u64::try_from(worth).unwrap_or(u64::MAX);
    Grains(worth.saturating_sub(escrow.paid.0).min(escrow.held().0))
}

/// Ends a contract: what no final report can claim goes back to its user; capacity, ports and name are free again.
pub(super) fn end(
    work: &mut Work<'_>,
    author: PublicKey,
    id: ContractId,
    mut body: ContractBody,
    reason: EndReason,
) -> Step {
    let terms = body.signed.terms.clone();
    let escrow = escrow_of(work, &id)?;
    let kept = final_claim(&body, &escrow, work.now_ms());
    refund(work, id, &terms, escrow.held().checked_sub(kept).ok_or(Rejection::Overflow)?)?;
    leave_node(work, &terms, id)?;
    work.remove(StateKey::ContractName(terms.user, terms.name));
    body.ended_ms = work.now_ms();
    let from = body.state;
    change_state(work, author, id, body, ContractState::Ended(reason), Some(from))
}

/// Gives the user back what is still held for an ended contract.
pub(super) fn refund_all(work: &mut Work<'_>, id: ContractId, body: &ContractBody) -> Step {
    let held = escrow_of(work, &id)?.held();
    refund(work, id, &body.signed.terms, held)
}

fn refund(work: &mut Work<'_>, id: ContractId, terms: &Terms, amount: Grains) -> Step {
    if amount == Grains::ZERO {
        return Ok(());
    }
    let mut escrow = escrow_of(work, &id)?;
    escrow.refunded = escrow.refunded.checked_add(amount).ok_or(Rejection::Overflow)?;
    put_escrow(work, id, &escrow)?;
    work.credit(&terms.user, amount)?;
    work.event(Event::Refunded { contract: id, to: terms.user, amount });
    Ok(())
}

fn leave_node(work: &mut Work<'_>, terms: &Terms, id: ContractId) -> Step {
    let node = terms.node;
    let mut addressed = work.node_contracts(&node)?;
    let at = addressed
        .contracts
        .binary_search(&id)
        .map_err(|_| StateError::broken(format_args!("running contract {id} is addressed to node {node}")))?;
    addressed.contracts.remove(at);
    if addressed.contracts.is_empty() {
        work.remove(StateKey::NodeContracts(node));
    } else {
        work.put(StateKey::NodeContracts(node), &addressed);
    }
    free_room(work, node, &terms.ports, &terms.resources, id)
}

/// Pays the farmer for `ran_ms` more of covered time that ends at `until_ms`. What is owed is computed from
/// the whole covered time, so that rounding is never repeated. What the deposit does not pay for is not covered.
pub(super) fn pay(work: &mut Work<'_>, id: ContractId, terms: &Terms, ran_ms: u64, until_ms: u64) -> Step {
    let mut escrow = escrow_of(work, &id)?;
    let ran_ms = ran_ms.min(escrow.runs_ms(terms.rate));
    escrow.covered_ms = escrow.covered_ms.checked_add(ran_ms).ok_or(Rejection::Overflow)?;
    escrow.covered_until_ms = escrow.covered_until_ms.max(until_ms);
    let owed = u128::from(terms.rate.0) * u128::from(escrow.covered_ms) / 1000;
    let owed = u64::try_from(owed).unwrap_or(u64::MAX);
    // Never beyond the deposit.
    let due = Grains(owed.saturating_sub(escrow.paid.0).min(escrow.held().0));
    escrow.paid = escrow.paid.checked_add(due).ok_or(Rejection::Overflow)?;
    put_escrow(work, id, &escrow)?;
    if due > Grains::ZERO {
        work.credit(&terms.farmer, due)?;
        work.event(Event::Paid { contract: id, to: terms.farmer, amount: due });
    }
    Ok(())
}

/// Appends the contract's next version and says so.
pub(super) fn change_state(
    work: &mut Work<'_>,
    author: PublicKey,
    id: ContractId,
    mut body: ContractBody,
    to: ContractState,
    from: Option<ContractState>,
) -> Step {
    let Terms { user, farmer, node, .. } = body.signed.terms;
    body.state = to;
    work.append(RecordId::contract(&id), Body::Contract(Box::new(body)), author)?;
    work.event(Event::Contract { contract: id, user, farmer, node, from, to });
    Ok(())
}

/// The one place where escrows change.
fn put_escrow(work: &mut Work<'_>, id: ContractId, escrow: &Escrow) -> Step {
    let spent = escrow.paid.checked_add(escrow.refunded);
    if spent.is_none_or(|spent| spent > escrow.deposit) {
        let Escrow { deposit, paid, refunded, .. } = escrow;
        return Err(StateError::broken(format_args!(
            "contract {id} spends at most its deposit: {paid} paid and {refunded} refunded of {deposit}"
        ))
        .into());
    }
    work.put(StateKey::Escrow(id), escrow);
    Ok(())
}

pub(super) fn escrow_of(work: &Work<'_>, id: &ContractId) -> Step<Escrow> {
    Ok(work.escrow(id)?.ok_or_else(|| {
        StateError::corrupt(&StateKey::Escrow(*id), format_args!("every {:?} has one", Kind::Contract))
    })?)
}

pub(super) fn known_contract(work: &Work<'_>, id: &ContractId) -> Step<ContractBody> {
    Ok(work.contract(id)?.ok_or(Rejection::UnknownContract { contract: *id })?)
}

/// A contract that has not ended.
fn running(work: &Work<'_>, id: &ContractId) -> Step<ContractBody> {
    let body = known_contract(work, id)?;
    match body.state {
        ContractState::Ended(_) => Err(Rejection::Ended { contract: *id }.into()),
        _ => Ok(body),
    }
}

pub(super) fn is_over(body: &ContractBody, now_ms: u64) -> bool {
    body.expires_ms().is_some_and(|expires_ms| now_ms >= expires_ms)
}

fn missing(what: &str, node: &NodeId) -> StateError {
    StateError::corrupt(&StateKey::Capacity(*node), format_args!("a registered node has no {what}"))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_funds;
