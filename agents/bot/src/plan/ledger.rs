//! What `croft ledger` was asked for, checked.

use croft_protocol::api::{ContractQuery, FarmQuery, NodeQuery, Phase, Phases};
use croft_protocol::name::is_country;
use croft_protocol::record::TrustClass;
use croft_protocol::{Capacity, Hash, Kind, RecordId};

use super::{LedgerAction, PlanError, QueryPlan, QuerySubject, Thing, farm_and_node, subject};
use crate::flags::{
    ContractQueryFlags, FarmQueryFlags, HistoryKind, LedgerCommand, LogFlags, NodeQueryFlags, QueryCommand,
    StateFlag, TrustFlag,
};

const KINDS: [(&str, Kind); 20] = [
    ("bot", Kind::Bot),
    ("farm", Kind::Farm),
    ("node", Kind::Node),
    ("offer", Kind::Offer),
    ("contract", Kind::Contract),
    ("approval", Kind::Approval),
    ("report", Kind::Report),
    ("recipe", Kind::Recipe),
    ("release", Kind::Release),
    ("transfer", Kind::Transfer),
    ("validators", Kind::Validators),
    ("release-keys", Kind::ReleaseKeys),
    ("channel", Kind::Channel),
    ("farm-policy", Kind::FarmPolicy),
    ("outcome", Kind::Outcome),
    ("profile", Kind::Profile),
    ("funding", Kind::Funding),
    ("reservation", Kind::Reservation),
    ("drain", Kind::Drain),
    ("keys", Kind::Keys),
];

pub(super) fn action(command: LedgerCommand) -> Result<LedgerAction, PlanError> {
    Ok(match command {
        LedgerCommand::Get(flags) => LedgerAction::Get(thing(&flags.thing)?),
        LedgerCommand::History(flags) => LedgerAction::History(thing(&flags.thing)?),
        LedgerCommand::Log(LogFlags { from, count, follow }) => LedgerAction::Log { from, count, follow },
        LedgerCommand::Query(query) => LedgerAction::Query(query_plan(query)?),
        LedgerCommand::Verify { path } => LedgerAction::Verify { path },
    })
}

fn thing(words: &[String]) -> Result<Thing, PlanError> {
    let no_thing = || PlanError::Target {
        text: words.join(" ").chars().take(80).collect(),
        what: "a thing on the ledger",
        example: "bot NAME, farm NAME, node FARM/NAME, report FARM/NODE, contract NAME, or KIND:ID",
    };
    match words {
        [kind, text] => {
            let kind = match kind.as_str() {
                "bot" => HistoryKind::Bot,
                "farm" => HistoryKind::Farm,
                "node" => HistoryKind::Node,
                "report" => HistoryKind::Report,
                "contract" => HistoryKind::Contract,
                _ => return Err(no_thing()),
            };
            subject(kind, text).map(Thing::Named)
        }
        [one] if one == "validators" => Ok(Thing::Id(RecordId::validators())),
        [one] => {
            let (kind, id) = one.split_once(':').ok_or_else(no_thing)?;
            let kind = KINDS.into_iter().find(|(name, _)| *name == kind).ok_or_else(no_thing)?.1;
            let id: Hash = id.parse().map_err(|_| no_thing())?;
            Ok(Thing::Id(RecordId { kind, id }))
        }
        _ => Err(no_thing()),
    }
}

fn query_plan(command: QueryCommand) -> Result<QueryPlan, PlanError> {
    let (subject, page) = match command {
        QueryCommand::Nodes(mut flags) => {
            let country = checked_country(flags.country.take())?;
            let page = (flags.page.proved, flags.page.limit);
            (nodes(flags, country), page)
        }
        QueryCommand::Farms(FarmQueryFlags { owner, country, region, page }) => {
            let query = FarmQuery { owner: None, country: checked_country(country)?, region };
            (QuerySubject::Farms { owner, query }, (page.proved, page.limit))
        }
        QueryCommand::Contracts(flags) => {
            let page = (flags.page.proved, flags.page.limit);
            (contracts(flags)?, page)
        }
    };
    Ok(QueryPlan { subject, proved: page.0, limit: page.1 })
}

fn checked_country(country: Option<String>) -> Result<Option<String>, PlanError> {
    match country {
        Some(country) if !is_country(&country) => Err(PlanError::Country { country }),
        country => Ok(country),
    }
}

fn nodes(flags: NodeQueryFlags, country: Option<String>) -> QuerySubject {
    let free = Capacity {
        cpu_millis: u64::from(flags.cpu.unwrap_or(0)),
        memory_bytes: flags.memory.unwrap_or(0),
        ssd_bytes: flags.ssd.unwrap_or(0),
        hdd_bytes: flags.hdd.unwrap_or(0),
        public_addresses: flags.public_addresses.unwrap_or(0),
    };
    let trust = flags.trust.map(|trust| match trust {
        TrustFlag::Plain => TrustClass::Plain,
        TrustFlag::Sealed => TrustClass::Sealed,
        TrustFlag::Attested => TrustClass::Attested,
    });
    let query = NodeQuery {
        farm: None,
        owner: None,
        country,
        region: flags.region,
        free,
        max_per_hour: flags.max_price,
        trust,
    };
    QuerySubject::Nodes { farm: flags.farm, owner: flags.owner, query }
}

fn contracts(flags: ContractQueryFlags) -> Result<QuerySubject, PlanError> {
    let node = flags.node.as_deref().map(farm_and_node).transpose()?;
    let mut phases = Vec::new();
    for state in flags.state {
        match state {
            StateFlag::Live => phases.extend(Phases::LIVE.iter()),
            StateFlag::All => phases.extend(Phases::ALL.iter()),
            StateFlag::Agreed => phases.push(Phase::Agreed),
            StateFlag::Approved => phases.push(Phase::Approved),
            StateFlag::Active => phases.push(Phase::Active),
            StateFlag::Degraded => phases.push(Phase::Degraded),
            StateFlag::Ended => phases.push(Phase::Ended),
            StateFlag::Paused => phases.push(Phase::Paused),
        }
    }
    let phases = Phases::of(&phases).unwrap_or(Phases::LIVE);
    let query = ContractQuery { phases, ..ContractQuery::default() };
    let expires_within_s = flags.expires_within;
    Ok(QuerySubject::Contracts { user: flags.user, farmer: flags.farmer, node, expires_within_s, query })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Subject, name};

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn things_are_named_by_kind_and_name_or_by_kind_and_id() {
        let of = |text: &str| thing(&words(text));
        let bot = name("alice").unwrap();
        assert_eq!(of("bot alice").unwrap(), Thing::Named(Subject::Bot(bot)));
        let (farm, node) = (name("attic").unwrap(), name("n1").unwrap());
        assert_eq!(of("node attic/n1").unwrap(), Thing::Named(Subject::Node { farm, node }));
        let id = Hash([7; 32]);
        let transfer = RecordId { kind: Kind::Transfer, id };
        assert_eq!(of(&format!("transfer:{id}")).unwrap(), Thing::Id(transfer));
        assert_eq!(of("validators").unwrap(), Thing::Id(RecordId::validators()));
        for bad in ["alice", "cat tom", "bot:12", "cat:00", "transfer alice"] {
            let error = of(bad).unwrap_err().to_string();
            assert_eq!(
                error,
                format!(
                    "'{bad}' is not a thing on the ledger: write bot NAME, farm NAME, node FARM/NAME, \
                     report FARM/NODE, contract NAME, or KIND:ID"
                )
            );
        }
    }
}
