//! Agreements, approvals, ends; and where every grain and every millisecond of a CPU goes.

use croft_protocol::contract::{Approver, PublishedPort, Transport};
use croft_protocol::keys::Domain;
use croft_protocol::record::WorkloadState::Running;
use croft_protocol::{Command, Grains, Hash, Rate, Rejection, SecretKey};

use super::*;
use crate::memory::{ALLOWANCE, Scenario, key, name};

fn port(port: u16) -> PublishedPort {
    PublishedPort { transport: Transport::Tcp, port }
}

type Change = fn(&mut Terms);

fn refusal(change: impl FnOnce(&mut Terms)) -> String {
    let mut scenario = Scenario::new();
    let mut terms = scenario.terms("web");
    change(&mut terms);
    scenario.agree(terms).expect_err("the terms must be refused").to_string()
}

#[test]
fn an_agreement_escrows_the_price_and_sells_the_capacity() {
    let mut scenario = Scenario::new();
    let free = scenario.free();
    let mut terms = scenario.terms("web");
    terms.ports = vec![port(80), port(443)];
    let id = scenario.agree(terms.clone()).unwrap();
    let body = scenario.contract(&id);
    assert_eq!(body.state, ContractState::Approved, "without approvers it may run at once");
    assert_eq!((body.agreed_ms, body.starts_ms), (scenario.now_ms(), scenario.now_ms()));
    assert_eq!(scenario.escrow(&id).deposit, Grains(10_000));
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - 10_000));
    assert_eq!(Some(scenario.free()), free.checked_sub(&terms.resources));
    let node = scenario.node_id();
    assert_eq!(scenario.ledger.node_contracts(&node).unwrap().contracts, [id]);
    let holder: Option<ContractId> = scenario.ledger.read(&StateKey::Port(node, port(443))).unwrap();
    assert_eq!(holder, Some(id));
    assert_eq!(scenario.ledger.capacity(&node).unwrap().unwrap().version, 2);
}

fn settle_what_nobody_reports(scenario: &mut Scenario, id: ContractId) {
    let (other, at_ms) = (scenario.other.clone(), scenario.now_ms() + limits::FINAL_REPORT_MS);
    scenario.ledger.submit_at(at_ms, &other, Command::Settle { contract: id }).unwrap();
}

#[test]
fn a_closed_contract_leaves_nothing_behind_but_its_records() {
    let mut scenario = Scenario::new();
    let before = scenario.ledger.state().clone();
    let mut terms = scenario.terms("web");
    terms.ports = vec![port(80)];
    let id = scenario.agree(terms).unwrap();
    let user = scenario.user.clone();
    scenario.ledger.submit(&user, Command::Close { contract: id }).unwrap();
    let body = scenario.contract(&id);
    assert_eq!(body.state, ContractState::Ended(EndReason::ClosedByUser));
    assert_eq!(body.ended_ms, scenario.now_ms());
    // But for the millisecond that its node may have run, and that it does not report in time.
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - 1));
    settle_what_nobody_reports(&mut scenario, id);
    assert_eq!(scenario.balance(&scenario.user), ALLOWANCE);
    let new: Vec<_> =
        scenario.ledger.state().keys().filter(|key| !before.contains_key(key)).cloned().collect();
    assert_eq!(new, [StateKey::Record(RecordId::contract(&id)), StateKey::Escrow(id)]);
}

#[test]
fn either_party_may_bring_and_close_a_contract_and_nobody_else() {
    let mut scenario = Scenario::new();
    let (user, farmer, other) = (scenario.user.clone(), scenario.farmer.clone(), scenario.other.clone());
    let terms = scenario.terms("web");
    let id = terms.id();
    let agree = Command::Agree(Box::new(scenario.sign(terms)));
    let only = format!("only the user or the farmer of the contract may do this, not {}", other.public());
    let refused = scenario.ledger.submit(&other, agree.clone()).unwrap_err();
    assert_eq!(refused.to_string(), only);
    scenario.ledger.submit(&farmer, agree.clone()).unwrap();
    let twice = scenario.ledger.submit(&user, agree.clone()).unwrap_err();
    assert_eq!(twice.to_string(), format!("contract {id} exists already"));

    let close = Command::Close { contract: id };
    assert_eq!(scenario.ledger.submit(&other, close.clone()).unwrap_err().to_string(), only);
    scenario.ledger.submit(&farmer, close.clone()).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Ended(EndReason::ClosedByFarmer));
    settle_what_nobody_reports(&mut scenario, id);
    for command in
        [close, Command::Settle { contract: id }, Command::Fund { contract: id, amount: Grains(1) }]
    {
        let ended = scenario.ledger.submit(&user, command).unwrap_err();
        assert_eq!(ended.to_string(), format!("contract {id} has already ended"));
    }
    let again = scenario.ledger.submit(&user, agree).unwrap_err();
    assert_eq!(again, Rejection::Duplicate { contract: id }, "an ended contract can't be brought again");
}

#[test]
fn an_unknown_contract_is_named() {
    let mut scenario = Scenario::new();
    let (user, contract) = (scenario.user.clone(), ContractId(Hash([3; 32])));
    for command in [
        Command::Close { contract },
        Command::Settle { contract },
        Command::Approve { contract, approve: true },
        Command::Fund { contract, amount: Grains(1) },
    ] {
        let text = scenario.ledger.submit(&user, command).unwrap_err().to_string();
        assert_eq!(text, format!("there is no contract {contract} on this grid"));
    }
}

#[test]
fn both_parties_must_have_signed_these_very_terms() {
    let mut scenario = Scenario::new();
    let user = scenario.user.clone();
    let good = scenario.sign(scenario.terms("web"));
    let mut by_one = good.clone();
    by_one.farmer = by_one.user.clone();
    let mut other_terms = good.clone();
    other_terms.terms.rate = Rate(1);
    let mut other_chain = good;
    let chain = croft_protocol::ChainId(Hash([1; 32]));
    other_chain.user = user.sign_as_bot(Domain::TERMS, &chain, &other_chain.terms);
    for (signed, party) in
        [(by_one, scenario.farmer.public()), (other_terms, user.public()), (other_chain, user.public())]
    {
        let refused = scenario.ledger.submit(&user, Command::Agree(Box::new(signed))).unwrap_err();
        assert_eq!(refused.to_string(), format!("the contract is not signed by {party}"));
    }
}

#[test]
fn terms_out_of_bounds_are_refused_with_the_bounds() {
    let cases: [(Change, &str); 12] = [
        (|t| t.duration_s = 0, "the duration in seconds is out of bounds: 0, allowed are 1 to 315360000"),
        (
            |t| t.duration_s = limits::DURATION_S + 1,
            "the duration in seconds is out of bounds: 315360001, allowed are 1 to 315360000",
        ),
        (
            |t| t.grace_s = limits::GRACE_S + 1,
            "the grace period in seconds is out of bounds: 7776001, allowed are at most 7776000",
        ),
        (|t| t.resources.cpu_millis = 0, "the CPU in millis is out of bounds: 0, allowed are 1 and more"),
        (|t| t.resources.memory_bytes = 0, "the memory in bytes is out of bounds: 0, allowed are 1 and more"),
        (
            |t| t.sealed.clear(),
            "the length of the sealed workload in bytes is out of bounds: 0, allowed are 1 to 65536",
        ),
        (
            |t| t.sealed = vec![0; limits::SEALED_WORKLOAD_BYTES + 1],
            "the length of the sealed workload in bytes is out of bounds: 65537, allowed are 1 to 65536",
        ),
        (
            |t| t.ports = (1..=65).map(port).collect(),
            "the number of ports is out of bounds: 65, allowed are at most 64",
        ),
        (
            |t| t.ports = vec![port(2), port(1)],
            "the command is malformed: ports must be in ascending order, each once, none 0",
        ),
        (
            |t| t.ports = vec![port(1), port(1)],
            "the command is malformed: ports must be in ascending order, each once, none 0",
        ),
        (
            |t| t.ports = vec![port(0)],
            "the command is malformed: ports must be in ascending order, each once, none 0",
        ),
        (|t| t.rate = Rate(u64::MAX), "the amount overflows"),
    ];
    for (change, says) in cases {
        assert_eq!(refusal(change), says);
    }
}

#[test]
fn terms_are_void_after_their_time() {
    let now_ms = Scenario::new().now_ms();
    assert_eq!(
        refusal(|terms| terms.expires_ms = now_ms),
        format!("the contract's terms are void since {now_ms} ms, it is {} ms: negotiate again", now_ms + 1)
    );
}

#[test]
fn the_parties_farm_and_node_must_belong_together() {
    let scenario = Scenario::new();
    let stranger = key(50).public();
    let unknown = refusal(|t| t.farm = croft_protocol::FarmId(Hash([1; 32])));
    assert!(unknown.starts_with("there is no farm 0101"), "{unknown}");
    let unknown = refusal(|t| t.node = stranger);
    assert_eq!(unknown, format!("there is no node {stranger} on this grid"));
    let unknown = refusal(|t| t.farmer = stranger);
    assert!(unknown.starts_with(&format!("{stranger} is no bot on this grid")), "{unknown}");
    let other = scenario.other.public();
    let not_owner = refusal(|t| t.farmer = other);
    assert_eq!(not_owner, format!("only the owner of farm 'green' may do this, not {other}"));

    // A second farm of the same farmer doesn't own the first one's node.
    let mut scenario = Scenario::new();
    let farmer = scenario.farmer.clone();
    let prices = croft_protocol::PriceList::default();
    let create = Command::CreateFarm { name: name("red"), country: "nl".to_owned(), region: None, prices };
    scenario.ledger.submit(&farmer, create).unwrap();
    let mut terms = scenario.terms("web");
    terms.farm = croft_protocol::FarmId::new(&farmer.public(), &name("red"));
    let node = scenario.node_id();
    let refused = scenario.agree(terms).unwrap_err().to_string();
    assert_eq!(refused, format!("the command is malformed: node {node} is not of farm 'red'"));
}

#[test]
fn a_user_pays_in_advance_or_not_at_all() {
    let says = refusal(|terms| terms.rate = Rate(1001));
    let user = Scenario::new().user.public();
    assert_eq!(
        says,
        format!("{user} has 1 000 000 grains, but 1 001 000 grains are needed: top up the wallet")
    );
}

#[test]
fn a_user_runs_one_contract_of_a_name_at_a_time() {
    let mut scenario = Scenario::new();
    let first = scenario.agree(scenario.terms("web")).unwrap();
    let mut again = scenario.terms("web");
    again.nonce = [3; 16];
    let refused = scenario.agree(again.clone()).unwrap_err().to_string();
    assert_eq!(refused, "contract name 'web' is taken: choose another name");
    let user = scenario.user.clone();
    scenario.ledger.submit(&user, Command::Close { contract: first }).unwrap();
    scenario.agree(again).expect("the name is free again");
}

#[test]
fn no_capacity_is_sold_twice() {
    let mut scenario = Scenario::new();
    let mut most = scenario.terms("most");
    most.resources.cpu_millis = 7500;
    scenario.agree(most).unwrap();
    let node = scenario.node_id();

    let mut current = scenario.terms("web");
    current.capacity_version = 2;
    let shortage = "CPUs: 1.000 needed, 0.500 free";
    assert_eq!(
        scenario.agree(current).unwrap_err().to_string(),
        format!("node {node} has too little free ({shortage}): ask for less or choose another node")
    );
    assert_eq!(
        scenario.agree(scenario.terms("web")).unwrap_err().to_string(),
        format!(
            "stale: the terms rely on capacity version 1 of node {node}, which is at 2, and it no longer fits \
             ({shortage}): negotiate again"
        )
    );
    let mut small = scenario.terms("small");
    small.resources.cpu_millis = 500;
    scenario.agree(small).expect("an older version does no harm while it fits");
}

#[test]
fn a_capacity_version_that_never_was_is_stale_even_if_it_fits() {
    let node = Scenario::new().node_id();
    assert_eq!(
        refusal(|terms| terms.capacity_version = 2),
        format!("stale: the terms rely on capacity version 2 of node {node}, which is at 1: negotiate again")
    );
}

#[test]
fn a_port_of_a_node_leads_to_one_contract() {
    let mut scenario = Scenario::new();
    let with = |scenario: &Scenario, called: &str, ports| {
        let mut terms = scenario.terms(called);
        terms.ports = ports;
        terms
    };
    let first = with(&scenario, "a", vec![port(80)]);
    scenario.agree(first).unwrap();
    let second = with(&scenario, "b", vec![port(80)]);
    let node = scenario.node_id();
    assert_eq!(
        scenario.agree(second).unwrap_err().to_string(),
        format!("port 80/tcp of node {node} is taken by another contract: choose another port")
    );
    let udp = PublishedPort { transport: Transport::Udp, port: 80 };
    let third = with(&scenario, "c", vec![udp]);
    scenario.agree(third).expect("the same number over UDP is another port");
}

#[test]
fn a_node_has_a_limited_number_of_contracts() {
    let mut scenario = Scenario::new();
    for i in 0..limits::CONTRACTS_PER_NODE {
        let mut terms = scenario.terms(&format!("c{i}"));
        terms.resources = Capacity { cpu_millis: 1, memory_bytes: 1, ..Capacity::default() };
        terms.rate = Rate(1);
        scenario.agree(terms).unwrap();
    }
    let listed = scenario.ledger.node_contracts(&scenario.node_id()).unwrap().contracts;
    assert!(listed.len() == limits::CONTRACTS_PER_NODE && listed.is_sorted());
    let mut one_more = scenario.terms("more");
    one_more.rate = Rate(1);
    let node = scenario.node_id();
    assert_eq!(
        scenario.agree(one_more).unwrap_err().to_string(),
        format!("node {node} already has 256 contracts: choose another node")
    );
}

/// A grid with a contract that three approvers decide on.
fn with_quorum(threshold: u32, approvers: &[(u32, bool)]) -> (Scenario, ContractId, Vec<SecretKey>) {
    let mut scenario = Scenario::new();
    let keys: Vec<_> = (0..approvers.len()).map(|i| key(70 + i as u8)).collect();
    let mut terms = scenario.terms("web");
    terms.quorum.threshold = threshold;
    for (key, (i, (weight, required))) in keys.iter().zip(approvers.iter().enumerate()) {
        scenario.add_bot(&format!("approver-{i}"), key);
        let approver = Approver { bot: key.public(), weight: *weight, required: *required };
        terms.quorum.approvers.push(approver);
    }
    let id = scenario.agree(terms).unwrap();
    (scenario, id, keys)
}

fn vote(scenario: &mut Scenario, id: ContractId, key: &SecretKey, approve: bool) -> Result<(), Rejection> {
    scenario.ledger.submit(key, Command::Approve { contract: id, approve }).map(|_| ())
}

#[test]
fn a_contract_waits_for_the_weight_of_its_approvers() {
    let (mut scenario, id, keys) = with_quorum(3, &[(1, false), (1, false), (2, false)]);
    assert_eq!(scenario.contract(&id).state, ContractState::Agreed);
    assert_eq!(scenario.contract(&id).starts_ms, 0);
    vote(&mut scenario, id, &keys[0], true).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Agreed);
    vote(&mut scenario, id, &keys[2], true).unwrap();
    let body = scenario.contract(&id);
    assert_eq!((body.state, body.starts_ms), (ContractState::Approved, scenario.now_ms()));
    assert_eq!(scenario.escrow(&id).covered_until_ms, scenario.now_ms());
    vote(&mut scenario, id, &keys[1], false).expect("a late vote stands on the record");
    assert_eq!(scenario.contract(&id).state, ContractState::Approved, "and changes nothing");
}

#[test]
fn a_required_approver_must_approve_and_ends_it_by_refusing() {
    let (mut scenario, id, keys) = with_quorum(2, &[(2, false), (1, true)]);
    vote(&mut scenario, id, &keys[0], true).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Agreed, "the weight alone is not enough");
    vote(&mut scenario, id, &keys[1], false).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Ended(EndReason::NotApproved));
    assert_eq!(scenario.balance(&scenario.user), ALLOWANCE);
    assert_eq!(scenario.free(), scenario.node_body().capacity);
}

#[test]
fn a_quorum_out_of_reach_ends_the_contract() {
    let (mut scenario, id, keys) = with_quorum(3, &[(1, false), (1, false), (2, false)]);
    vote(&mut scenario, id, &keys[0], false).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Agreed);
    vote(&mut scenario, id, &keys[1], false).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Ended(EndReason::NotApproved));
    let late = vote(&mut scenario, id, &keys[2], true).unwrap_err();
    assert_eq!(late, Rejection::Ended { contract: id });
}

#[test]
fn only_approvers_decide_and_each_once() {
    let (mut scenario, id, keys) = with_quorum(2, &[(1, false), (1, false)]);
    let other = scenario.other.clone();
    let text = vote(&mut scenario, id, &other, true).unwrap_err().to_string();
    let says =
        |key: &SecretKey| format!("{} is no approver of contract {id}, or has decided already", key.public());
    assert_eq!(text, says(&other));
    vote(&mut scenario, id, &keys[0], true).unwrap();
    for again in [true, false] {
        assert_eq!(vote(&mut scenario, id, &keys[0], again).unwrap_err().to_string(), says(&keys[0]));
    }
}

#[test]
fn a_quorum_that_nobody_could_reach_is_refused() {
    let fred = Scenario::new().farmer.public();
    let approver = |bot, weight| Approver { bot, weight, required: false };
    let with = |threshold, approvers: Vec<Approver>| refusal(|t| t.quorum = Quorum { threshold, approvers });
    assert_eq!(
        with(1, Vec::new()),
        "the approval threshold is out of bounds: 1, allowed are 0 to 0, the sum of the weights"
    );
    assert_eq!(
        with(0, vec![approver(fred, 2)]),
        "the approval threshold is out of bounds: 0, allowed are 1 to 2, the sum of the weights"
    );
    assert_eq!(
        with(3, vec![approver(fred, 2)]),
        "the approval threshold is out of bounds: 3, allowed are 1 to 2, the sum of the weights"
    );
    assert_eq!(
        with(1, vec![approver(fred, 0)]),
        "an approver's weight is out of bounds: 0, allowed are 1 and more"
    );
    assert_eq!(
        with(1, vec![approver(fred, 1), approver(fred, 1)]),
        format!("the command is malformed: approver {fred} stands in the quorum twice")
    );
    let stranger = key(50).public();
    let unknown = with(1, vec![approver(stranger, 1)]);
    assert!(unknown.starts_with(&format!("{stranger} is no bot")), "{unknown}");
    assert_eq!(
        with(1, vec![approver(fred, 1); 17]),
        "the number of approvers is out of bounds: 17, allowed are at most 16"
    );
}

#[test]
fn a_contract_that_waits_as_long_as_it_would_last_is_over() {
    let (mut scenario, id, keys) = with_quorum(1, &[(1, false)]);
    let (other, agreed_ms) = (scenario.other.clone(), scenario.contract(&id).agreed_ms);
    let settle = Command::Settle { contract: id };
    let early = scenario.ledger.submit_at(agreed_ms + 999_999, &other, settle.clone()).unwrap();
    assert!(early.records.is_empty());
    let mut by_vote = scenario.clone();
    scenario.ledger.submit_at(agreed_ms + 1_000_000, &other, settle).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Ended(EndReason::NotApproved));
    let approve = Command::Approve { contract: id, approve: true };
    by_vote.ledger.submit_at(agreed_ms + 1_000_000, &keys[0], approve).unwrap();
    assert_eq!(by_vote.contract(&id).state, ContractState::Ended(EndReason::NotApproved));
}

#[test]
fn anyone_may_settle_and_settling_twice_changes_nothing() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let start = scenario.now_ms();
    scenario.report(start, start + 100_000, vec![(id, Running, 100_000)]).unwrap();
    let settle = Command::Settle { contract: id };
    let other = scenario.other.clone();
    for _ in 0..2 {
        let receipt = scenario.ledger.submit(&other, settle.clone()).unwrap();
        assert!(receipt.records.is_empty());
        assert_eq!(scenario.escrow(&id).paid, Grains(1000));
    }
    scenario.ledger.submit_at(start + 1_000_000, &other, settle.clone()).unwrap();
    let body = scenario.contract(&id);
    assert_eq!((body.state, body.ended_ms), (ContractState::Ended(EndReason::Expired), start + 1_000_000));
    settle_what_nobody_reports(&mut scenario, id);
    assert_eq!(scenario.balance(&scenario.farmer), Grains(ALLOWANCE.0 + 1000));
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - 1000), "no report, no pay");
}

#[test]
fn a_silent_node_makes_its_contract_degraded() {
    let mut scenario = Scenario::new();
    let mut terms = scenario.terms("web");
    terms.duration_s = 86_400;
    let id = scenario.agree(terms).unwrap();
    let start = scenario.now_ms();
    scenario.report(start, start + 1000, vec![(id, Running, 1000)]).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Active);
    let (other, settle) = (scenario.other.clone(), Command::Settle { contract: id });
    let limit = start + 1000 + limits::REPORT_COVERS_MS;
    scenario.ledger.submit_at(limit, &other, settle.clone()).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Active);
    scenario.ledger.submit_at(limit + 1, &other, settle).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Degraded);
}

#[test]
fn a_close_after_the_end_of_its_time_is_an_expiry() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let (farmer, at_ms) = (scenario.farmer.clone(), scenario.now_ms() + 1_000_000);
    scenario.ledger.submit_at(at_ms, &farmer, Command::Close { contract: id }).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Ended(EndReason::Expired));
}

#[test]
fn a_farmer_may_use_the_own_farm() {
    let mut scenario = Scenario::new();
    scenario.user = scenario.farmer.clone();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let start = scenario.now_ms();
    scenario.report(start, start + 10_000, vec![(id, Running, 10_000)]).unwrap();
    assert_eq!(scenario.balance(&scenario.farmer), Grains(ALLOWANCE.0 - 9900));
    let farmer = scenario.farmer.clone();
    scenario.ledger.submit(&farmer, Command::Close { contract: id }).unwrap();
    settle_what_nobody_reports(&mut scenario, id);
    assert_eq!(scenario.balance(&scenario.farmer), ALLOWANCE);
}

#[test]
fn events_tell_what_happened() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let (user, farmer, node) = (scenario.user.public(), scenario.farmer.public(), scenario.node_id());
    let agreed =
        Event::Contract { contract: id, user, farmer, node, from: None, to: ContractState::Approved };
    assert_eq!(scenario.ledger.events(), [Event::Capacity { node }, agreed]);
    let start = scenario.now_ms();
    scenario.report(start, start + 500, vec![(id, Running, 500)]).unwrap();
    let paid = Event::Paid { contract: id, to: farmer, amount: Grains(5) };
    assert_eq!(scenario.ledger.events()[0], paid);
    let key = scenario.user.clone();
    scenario.ledger.submit(&key, Command::Close { contract: id }).unwrap();
    // A grain stays for the millisecond until the close.
    let refunded = Event::Refunded { contract: id, to: user, amount: Grains(9994) };
    assert_eq!(scenario.ledger.events()[0], refunded);
}
