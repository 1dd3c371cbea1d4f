//! How things of the ledger look, in text and in JSON, the same in every command.

use std::collections::BTreeMap;
use std::net::IpAddr;

use croft_protocol::contract::{PublishedPort, Transport};
use croft_protocol::record::{Draining, TrustClass, WorkloadState};
use croft_protocol::{
    BotId, Capacity, ContractState, EndReason, Grains, NodeTrouble, ReservationBody, ReservationState, units,
};
use serde::Serialize;

use crate::grid::{Contract, Grid, GridError, now_ms};
use crate::terminal::{printable, show_time};

/// A published port and where to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PortView {
    pub(crate) published: u16,
    pub(crate) transport: Transport,
    /// One for each address of the node.
    pub(crate) urls: Vec<String>,
}

/// Published TCP ports are mostly web servers; the URL also shows host and port to whoever wants another.
pub(crate) fn ports(ports: &[PublishedPort], addresses: &[String]) -> Vec<PortView> {
    ports
        .iter()
        .map(|port| {
            let scheme = match (port.transport, port.port) {
                (Transport::Tcp, 443 | 8443) => "https",
                (Transport::Tcp, _) => "http",
                (Transport::Udp, _) => "udp",
            };
            let url = |address: &String| match address.parse::<IpAddr>() {
                Ok(IpAddr::V6(v6)) => format!("{scheme}://[{v6}]:{}", port.port),
                _ => format!("{scheme}://{address}:{}", port.port),
            };
            PortView {
                published: port.port,
                transport: port.transport,
                urls: addresses.iter().map(url).collect(),
            }
        })
        .collect()
}

/// The ports in one cell: the first URL of each, or the bare port.
pub(crate) fn ports_cell(ports: &[PortView]) -> String {
    let shown = ports.iter().map(|p| {
        p.urls
            .first()
            .cloned()
            .unwrap_or_else(|| PublishedPort { transport: p.transport, port: p.published }.to_string())
    });
    let text = shown.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}

pub(crate) fn state(state: ContractState) -> &'static str {
    match state {
        ContractState::Agreed => "agreed",
        ContractState::Approved => "approved",
        ContractState::Active => "active",
        ContractState::Degraded => "degraded",
        ContractState::Ended(_) => "ended",
        ContractState::Paused { .. } => "paused",
    }
}

/// After the name of the node that has it: `has trouble with disk sda: REASON: REMEDY`.
pub(crate) fn trouble(trouble: &NodeTrouble) -> String {
    let subject = if trouble.subject.is_empty() { "" } else { " " };
    printable(&format!("has trouble with {}{subject}{}: {trouble}", trouble.kind, trouble.subject))
}

pub(crate) fn end_reason(state: ContractState) -> Option<&'static str> {
    let ContractState::Ended(reason) = state else { return None };
    Some(match reason {
        EndReason::ClosedByUser => "closed by user",
        EndReason::ClosedByFarmer => "closed by farmer",
        EndReason::Expired => "expired",
        EndReason::NotApproved => "not approved",
        EndReason::OutOfFunds => "out of funds",
    })
}

/// Until when a contract can run on what it has, if it always does; `None` where that is until its expiry, or where
/// it has ended.
pub(crate) fn funded_until_ms(contract: &Contract) -> Option<u64> {
    let (body, escrow) = (&contract.body, &contract.escrow);
    let full = body.signed.terms.price().is_some_and(|price| escrow.deposit >= price);
    let runs_ms = escrow.runs_ms(body.signed.terms.rate);
    (body.state.may_run() && !full).then(|| escrow.covered_until_ms.saturating_add(runs_ms))
}

/// What a paused contract needs to go on.
pub(crate) fn missing(contract: &Contract) -> Option<Grains> {
    matches!(contract.body.state, ContractState::Paused { .. })
        .then(|| contract.body.missing_to_resume(&contract.escrow, now_ms()))
}

/// State and reason in one.
pub(crate) fn state_cell(contract_state: ContractState) -> String {
    match end_reason(contract_state) {
        Some(reason) => format!("{}: {reason}", state(contract_state)),
        None => state(contract_state).to_owned(),
    }
}

/// What was reserved, at which fee, and what became of it.
pub(crate) fn reservation(body: &ReservationBody) -> String {
    let held = &body.signed.reservation;
    let state = match body.state {
        ReservationState::Held => "held",
        ReservationState::Used => "used, at no cost",
        ReservationState::Claimed => "not used, and its fee paid",
        ReservationState::Withdrawn => "withdrawn by its node, at no cost",
        ReservationState::Lapsed => "not used, and its fee not claimed",
    };
    format!("reserved for contract {} at {}: {state}", held.contract.0.short(), held.fee)
}

/// Whether a node takes new contracts.
pub(crate) fn drain(draining: Option<Draining>) -> String {
    match draining {
        None => "takes new contracts again".to_owned(),
        Some(Draining { until_ms: None, .. }) => "takes no new contracts: it is being emptied".to_owned(),
        Some(Draining { until_ms: Some(until_ms), .. }) => {
            format!("takes no new contracts: it is being emptied until {}", show_time(until_ms))
        }
    }
}

pub(crate) fn workload_state(state: WorkloadState) -> &'static str {
    match state {
        WorkloadState::Preparing => "preparing",
        WorkloadState::Running => "running",
        WorkloadState::Failing => "failing",
        WorkloadState::Refused => "refused",
        WorkloadState::Finished => "finished",
    }
}

pub(crate) fn trust(trust: TrustClass) -> &'static str {
    match trust {
        TrustClass::Plain => "plain",
        TrustClass::Sealed => "sealed",
        TrustClass::Attested => "attested",
    }
}

/// A share of a thousand as `99.5 %`.
pub(crate) fn permille(permille: u16) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}

pub(crate) fn cpus(millis: u64) -> String {
    if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        let text = format!("{}.{:03}", millis / 1000, millis % 1000);
        text.trim_end_matches('0').to_owned()
    }
}

/// `free / total` of one resource.
pub(crate) fn of_total(free: &Capacity, total: &Capacity, pick: impl Fn(&Capacity) -> u64) -> String {
    format!("{} / {}", units::show_bytes(pick(free)), units::show_bytes(pick(total)))
}

/// Names of bots by their ids, each asked for once.
#[derive(Default)]
pub(crate) struct BotNames(BTreeMap<BotId, Option<String>>);

impl BotNames {
    /// A bot's name, or the first digits of its id where it has none.
    pub(crate) async fn name(&mut self, grid: &Grid, id: BotId) -> Result<String, GridError> {
        if let Some(name) = self.registered(grid, id).await? {
            return Ok(name);
        }
        Ok(id.short())
    }

    pub(crate) async fn registered(&mut self, grid: &Grid, id: BotId) -> Result<Option<String>, GridError> {
        if let Some(known) = self.0.get(&id) {
            return Ok(known.clone());
        }
        let name = grid.bot(id).await?.map(|b| b.name.to_string());
        self.0.insert(id, name.clone());
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_urls_that_can_be_opened() {
        let port = |transport, port| PublishedPort { transport, port };
        let addresses = ["192.0.2.1".to_owned(), "2001:db8::1".to_owned(), "n.example".to_owned()];
        let shown = ports(&[port(Transport::Tcp, 18080), port(Transport::Udp, 53)], &addresses);
        assert_eq!(
            shown[0].urls,
            ["http://192.0.2.1:18080", "http://[2001:db8::1]:18080", "http://n.example:18080"]
        );
        assert_eq!(shown[1].urls[0], "udp://192.0.2.1:53");
        assert_eq!(ports_cell(&ports(&[port(Transport::Tcp, 80)], &[])), "80/tcp");
    }

    #[test]
    fn cpus_read_as_people_write_them() {
        assert_eq!((cpus(500).as_str(), cpus(2000).as_str(), cpus(1250).as_str()), ("0.5", "2", "1.25"));
    }
}
