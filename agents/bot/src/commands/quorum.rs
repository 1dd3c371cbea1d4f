//! Approvers: who must sign a contract before any node may run it, who did, and deciding. It must never take a name
//! for a bot that the ledger does not call so.

use croft_protocol::api::{ContractQuery, Phase, Phases, Query};
use croft_protocol::contract::{Approver, Quorum};
use croft_protocol::{Body, Command, ContractId, ContractState, Grains, Kind, Name, RecordId, units};
use croft_skills::Hook;
use croft_skills::hooks::{self, Decision};
use serde::Serialize;

use super::show::{self, BotNames};
use super::{Acting, CommandError, Context, target};
use crate::deploy_file::ApprovalFile;
use crate::exit::Failure;
use crate::grid::{Contract, Grid, GridError, now_ms};
use crate::plan::ContractTarget;
use crate::skills::OwnSkill;
use crate::terminal::{printable, push, show_duration, table};

#[derive(Debug, thiserror::Error)]
enum QuorumError {
    #[error("contract '{name}' is {state}, and waits for no approvers any more")]
    NotWaiting { name: Name, state: String },
    #[error("bot '{bot}' is no approver of contract '{name}': those are {approvers}")]
    NotApprover { bot: Name, name: Name, approvers: String },
    #[error("contract '{name}' does not wait for bot '{bot}': 'croft approvals' lists what does")]
    NotAsked { bot: Name, name: Name },
    #[error("bot '{bot}' has {decision} contract '{name}' already")]
    Decided { bot: Name, name: Name, decision: &'static str },
}

/// An approver, as people read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ApproverView {
    pub(super) bot: String,
    pub(super) weight: u32,
    pub(super) required: bool,
    /// `approved`, `refused`, or `waiting`.
    pub(super) decision: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct QuorumView {
    /// Weight that must approve.
    pub(super) threshold: u32,
    /// Weight that approved.
    pub(super) approved: u64,
    pub(super) approvers: Vec<ApproverView>,
}

impl QuorumView {
    /// Whom it waits for, with their weights.
    pub(super) fn waits_for(&self) -> String {
        let waiting = self.approvers.iter().filter(|a| a.decision == "waiting");
        let names: Vec<String> = waiting
            .map(|a| format!("{} ({}{})", a.bot, a.weight, if a.required { ", required" } else { "" }))
            .collect();
        format!("{}, has {} of {}", names.join(", "), self.approved, self.threshold)
    }
}

/// Who approves a contract and who did; `None` for one without approvers. Proved.
pub(super) async fn view(grid: &Grid, contract: &Contract) -> Result<Option<QuorumView>, GridError> {
    let quorum = &contract.body.signed.terms.quorum;
    if quorum.approvers.is_empty() {
        return Ok(None);
    }
    let mut names = BotNames::default();
    let mut approved = 0;
    let mut approvers = Vec::with_capacity(quorum.approvers.len());
    for approver in &quorum.approvers {
        let vote = grid.record(RecordId::approval(&contract.id, &approver.bot)).await?;
        let decision = match vote.map(|record| record.body) {
            Some(Body::Approval(vote)) if vote.approved => {
                approved += u64::from(approver.weight);
                "approved"
            }
            Some(Body::Approval(_)) => "refused",
            _ => "waiting",
        };
        let bot = names.name(grid, approver.bot).await?;
        approvers.push(ApproverView { bot, weight: approver.weight, required: approver.required, decision });
    }
    Ok(Some(QuorumView { threshold: quorum.threshold, approved, approvers }))
}

/// The quorum of a deploy file, its names looked up on the ledger.
pub(super) async fn resolve(grid: &Grid, file: Option<&ApprovalFile>) -> Result<Quorum, Failure> {
    let Some(file) = file else { return Ok(Quorum::default()) };
    let mut approvers = Vec::with_capacity(file.approvers.len());
    for approver in &file.approvers {
        let bot = grid.bot_named(&approver.bot).await?.ok_or_else(|| {
            Failure::not_found(CommandError::NoBot { bot: approver.bot.clone(), grid: grid.name().clone() })
                .remedy("correct [approval] in the deploy file: approvers are bots of this grid")
        })?;
        approvers.push(Approver { bot, weight: approver.weight, required: approver.required });
    }
    Ok(Quorum { threshold: file.threshold, approvers })
}

#[derive(Serialize)]
struct Decided {
    name: Name,
    contract: ContractId,
    owner: String,
    decision: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    quorum: QuorumView,
    refunded: Grains,
    height: u64,
}

/// What a skill said to one contract.
#[derive(Serialize)]
struct SkillDecision {
    name: Name,
    contract: ContractId,
    owner: String,
    /// `approved`, `refused`, or `open`.
    decision: &'static str,
    /// Why it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    log: Vec<String>,
}

#[derive(Serialize)]
struct SkillDecisions {
    skill: Name,
    version: u32,
    decisions: Vec<SkillDecision>,
}

/// Lets a skill decide about one contract, or all that wait for this bot. Where it has no answer, nothing is decided.
pub(super) async fn approve_by_skill(
    c: &mut Context<'_>,
    contract: Option<&ContractTarget>,
    skill: &Name,
) -> Result<(), Failure> {
    let skill = OwnSkill::load(&c.home, skill, Hook::Approval)?;
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let mut waiting = Vec::new();
    for contract in waiting_for(&acting).await? {
        if decision_of(&acting, &contract).await?.is_none() {
            waiting.push(contract);
        }
    }
    if let Some(target) = contract {
        let wanted = target::find(&acting, target, &waiting).await?;
        waiting.retain(|contract| contract.id == wanted.id);
        if waiting.is_empty() {
            let (bot, name) = (acting.name.clone(), wanted.body.signed.terms.name.clone());
            return Err(Failure::refused(QuorumError::NotAsked { bot, name }));
        }
    }
    let mut decisions = Vec::new();
    let mut broken = None;
    let mut names = BotNames::default();
    for contract in waiting {
        let terms = &contract.body.signed.terms;
        let owner = names.name(&acting.grid, terms.user).await?;
        let (mut decision, mut reason, log) = match request(&acting, &contract, owner.clone()).await? {
            None => ("open", Some("its node or farm is not on the ledger any more".to_owned()), Vec::new()),
            Some(request) => {
                let (answer, log) = skill.decide(request);
                match answer {
                    Ok(Decision::Approve) => ("approved", None, log),
                    Ok(Decision::Refuse) => ("refused", None, log),
                    Ok(Decision::Abstain) => {
                        ("open", Some("the skill leaves it to a person".to_owned()), log)
                    }
                    Err(fault) => ("open", Some(format!("the skill had no answer: {fault}")), log),
                }
            }
        };
        if reason.is_none() {
            let approve = decision == "approved";
            let command = Command::Approve { contract: contract.id, approve };
            // What the ledger refuses, because somebody was faster, keeps nobody from the others.
            if let Err(error) = acting.grid.submit(&acting.key, &command).await {
                let Some(rejection) = error.rejection() else {
                    broken = Some(error);
                    break;
                };
                (decision, reason) = ("open", Some(format!("the ledger refused: {rejection}")));
            }
        }
        let name = terms.name.clone();
        decisions.push(SkillDecision { name, contract: contract.id, owner, decision, reason, log });
    }
    acting.grid.close().await;
    let decided = SkillDecisions { skill: skill.name().clone(), version: skill.version(), decisions };
    c.terminal.result(&decided, skill_text)?;
    // What was decided before is said first.
    broken.map_or(Ok(()), |error| Err(error.into()))
}

fn skill_text(d: &SkillDecisions) -> String {
    if d.decisions.is_empty() {
        return "nothing waits for this bot\n".to_owned();
    }
    let mut text = String::new();
    for one in &d.decisions {
        push!(text, "'{}' of {} is {} by skill '{}'", one.name, one.owner, one.decision, d.skill);
        match &one.reason {
            Some(reason) => push!(text, ": {}\n", printable(reason)),
            None => text.push('\n'),
        }
        for line in &one.log {
            push!(text, "  {}\n", printable(line));
        }
    }
    text
}

/// What a contract is, in typed terms; `None` when its node or farm is gone.
async fn request(
    acting: &Acting,
    contract: &Contract,
    owner: String,
) -> Result<Option<hooks::Request>, GridError> {
    let terms = &contract.body.signed.terms;
    let Some(node) = acting.grid.node(terms.node).await? else { return Ok(None) };
    let Some(farm) = acting.grid.farm(terms.farm).await? else { return Ok(None) };
    let approved = view(&acting.grid, contract).await?.map_or(0, |quorum| quorum.approved);
    Ok(Some(hooks::Request {
        now_ms: now_ms(),
        name: terms.name.to_string(),
        owner,
        owner_key: terms.user.to_string(),
        farm: farm.name.to_string(),
        country: farm.country,
        trust: node.body.trust.into(),
        resources: (&terms.resources).into(),
        // What exceeds all grains is no contract; the ledger has none such.
        price: terms.price().map_or(u64::MAX, |price| price.0),
        duration_s: terms.duration_s,
        approved,
        threshold: terms.quorum.threshold,
    }))
}

pub(super) async fn approve(
    c: &mut Context<'_>,
    contract: &ContractTarget,
    refuse: bool,
) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let waiting = waiting_for(&acting).await?;
    let contract = target::find(&acting, contract, &waiting).await?;
    let name = contract.body.signed.terms.name.clone();
    let bot = acting.name.clone();
    if !contract.body.signed.terms.quorum.approvers.iter().any(|a| a.bot == acting.id()) {
        let approvers = match view(&acting.grid, &contract).await? {
            Some(quorum) => quorum.approvers.into_iter().map(|a| a.bot).collect::<Vec<_>>().join(", "),
            None => "none".to_owned(),
        };
        return Err(Failure::refused(QuorumError::NotApprover { bot, name, approvers }));
    }
    if let Some(decision) = decision_of(&acting, &contract).await? {
        return Err(Failure::refused(QuorumError::Decided { bot, name, decision }));
    }
    if contract.body.state != ContractState::Agreed {
        let state = show::state_cell(contract.body.state);
        return Err(Failure::refused(QuorumError::NotWaiting { name, state }));
    }
    let command = Command::Approve { contract: contract.id, approve: !refuse };
    acting.grid.submit(&acting.key, &command).await?;
    let unknown = || GridError::OutcomeUnknown { grid: acting.grid.name().clone() };
    let after = acting.grid.contract(contract.id).await?.ok_or_else(unknown)?;
    let quorum = view(&acting.grid, &after).await?.ok_or_else(unknown)?;
    let owner = BotNames::default().name(&acting.grid, after.body.signed.terms.user).await?;
    acting.grid.close().await;
    let decided = Decided {
        name,
        contract: after.id,
        owner,
        decision: if refuse { "refused" } else { "approved" },
        state: show::state(after.body.state),
        reason: show::end_reason(after.body.state),
        quorum,
        refunded: after.escrow.refunded,
        height: after.record.height,
    };
    c.terminal.result(&decided, decided_text)
}

fn decided_text(d: &Decided) -> String {
    let mut text = format!("'{}' of {} is {} by this bot\n", d.name, d.owner, d.decision);
    match (d.state, d.reason) {
        ("agreed", _) => push!(text, "  it waits for {}\n", d.quorum.waits_for()),
        (_, Some(reason)) => {
            push!(text, "  it has ended: {reason}; {} went back to {}\n", d.refunded, d.owner);
        }
        _ => push!(
            text,
            "  the quorum is reached with {} of {}: its node runs it\n",
            d.quorum.approved,
            d.quorum.threshold
        ),
    }
    text
}

async fn decision_of(acting: &Acting, contract: &Contract) -> Result<Option<&'static str>, GridError> {
    let vote = acting.grid.record(RecordId::approval(&contract.id, &acting.id())).await?;
    Ok(match vote.map(|record| record.body) {
        Some(Body::Approval(vote)) if vote.approved => Some("approved"),
        Some(Body::Approval(_)) => Some("refused"),
        _ => None,
    })
}

/// Contracts that wait for their quorum and name this bot. A replica may hide some; none is made up.
async fn waiting_for(acting: &Acting) -> Result<Vec<Contract>, GridError> {
    let phases = Phases::of(&[Phase::Agreed]).unwrap_or(Phases::LIVE);
    let query = Query::Contracts(ContractQuery { phases, ..ContractQuery::default() });
    let found = acting.grid.find_unproved(&query).await?;
    let mut ids: Vec<ContractId> =
        found.into_iter().filter(|id| id.kind == Kind::Contract).map(|id| ContractId(id.id)).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut contracts = acting.grid.contracts(&ids).await?;
    let me = acting.id();
    contracts.retain(|c| {
        let names_me = c.body.signed.terms.quorum.approvers.iter().any(|a| a.bot == me);
        names_me && c.body.state == ContractState::Agreed
    });
    contracts.sort_by_key(|c| (c.body.agreed_ms, c.id));
    Ok(contracts)
}

#[derive(Serialize)]
struct Approvals {
    bot: Name,
    approvals: Vec<Waiting>,
}

#[derive(Serialize)]
struct Waiting {
    name: Name,
    contract: ContractId,
    owner: String,
    /// What this bot said already.
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<&'static str>,
    quorum: QuorumView,
    cpu_millis: u64,
    memory_bytes: u64,
    price: Option<Grains>,
    duration_s: u64,
    agreed_ms: u64,
    /// Then it ends by itself.
    waits_until_ms: u64,
}

pub(super) async fn approvals(c: &mut Context<'_>, all: bool) -> Result<(), Failure> {
    let acting = c.acting()?;
    let mut names = BotNames::default();
    let mut waiting = Vec::new();
    for contract in waiting_for(&acting).await? {
        let decision = decision_of(&acting, &contract).await?;
        if decision.is_some() && !all {
            continue;
        }
        let Some(quorum) = view(&acting.grid, &contract).await? else { continue };
        let terms = &contract.body.signed.terms;
        waiting.push(Waiting {
            name: terms.name.clone(),
            contract: contract.id,
            owner: names.name(&acting.grid, terms.user).await?,
            decision,
            quorum,
            cpu_millis: terms.resources.cpu_millis,
            memory_bytes: terms.resources.memory_bytes,
            price: terms.price(),
            duration_s: terms.duration_s,
            agreed_ms: contract.body.agreed_ms,
            waits_until_ms: contract.body.agreed_ms.saturating_add(terms.duration_s.saturating_mul(1000)),
        });
    }
    acting.grid.close().await;
    let approvals = Approvals { bot: acting.name.clone(), approvals: waiting };
    c.terminal.result(&approvals, approvals_text)
}

fn approvals_text(a: &Approvals) -> String {
    if a.approvals.is_empty() {
        return format!("nothing waits for '{}'\n", a.bot);
    }
    let row = |w: &Waiting| {
        let mine = w.quorum.approvers.iter().find(|approver| approver.bot == a.bot.as_str());
        vec![
            format!("{}/{}", w.owner, w.name),
            w.contract.0.short(),
            w.decision.unwrap_or("waiting").to_owned(),
            mine.map_or_else(String::new, |m| {
                format!("{}{}", m.weight, if m.required { ", required" } else { "" })
            }),
            format!("{} of {}", w.quorum.approved, w.quorum.threshold),
            show::cpus(w.cpu_millis),
            units::show_bytes(w.memory_bytes),
            w.price.map_or_else(|| "-".to_owned(), |p| p.0.to_string()),
            show_duration(w.duration_s),
            show_duration(w.waits_until_ms.saturating_sub(now_ms()) / 1000),
        ]
    };
    let rows: Vec<Vec<String>> = a.approvals.iter().map(row).collect();
    let head = ["CONTRACT", "ID", "DECISION", "WEIGHT", "APPROVED", "CPU", "MEMORY", "PRICE", "FOR", "WAITS"];
    let mut text = table(&head, &rows);
    text.push_str("'croft approve OWNER/NAME' approves one, with --refuse it is refused\n");
    text
}
