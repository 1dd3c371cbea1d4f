//! `croft logs`: output of a microVM, from its node through a relay that can't read it.

use croft_protocol::Name;
use croft_protocol::peer::{LogLine, NodeRequest};

use super::{Acting, Context, contracts};
use crate::exit::Failure;
use crate::grid::Contract;
use crate::peers::NodePeer;
use crate::terminal::printable;

#[derive(Debug, thiserror::Error)]
enum LogsError {
    #[error("'{contract}' has several microVMs, choose one as {contract}/VM: {known}")]
    WhichVm { contract: Name, known: String },
    #[error("'{contract}' has no microVM '{vm}'; it has {known}")]
    NoVm { contract: Name, vm: Name, known: String },
    #[error("'{contract}' has no microVM yet on node '{node}': see 'croft explain {contract}'")]
    NoVms { contract: Name, node: Name },
}

pub(super) async fn logs(
    c: &mut Context<'_>,
    name: &Name,
    vm: Option<Name>,
    follow: bool,
    tail_lines: u32,
) -> Result<(), Failure> {
    let acting = c.acting()?;
    let contract = contracts::any(&acting, name).await?;
    let node = node_of(&acting, &contract).await?;
    let vm = choose(&acting, &node, &contract, vm).await?;
    let request = NodeRequest::Logs { contract: contract.id, vm, tail_lines, follow };
    let mut stream = node.logs(&acting.grid, request).await?;
    loop {
        let lines = tokio::select! {
            () = c.stop.wait() => break,
            lines = stream.next() => lines?,
        };
        let Some(lines) = lines else { break };
        for line in &lines {
            c.terminal.item(line, text)?;
        }
    }
    acting.grid.close().await;
    Ok(())
}

fn text(line: &LogLine) -> String {
    printable(&line.text)
}

/// The node of a contract, by the name that it has on the ledger.
pub(super) async fn node_of(acting: &Acting, contract: &Contract) -> Result<NodePeer, Failure> {
    let id = contract.body.signed.terms.node;
    let node = acting
        .grid
        .node(id)
        .await?
        .ok_or_else(|| Failure::not_found(format!("node {id} is not on the ledger")))?;
    Ok(NodePeer { id, name: node.body.name })
}

/// The microVM that is meant: what runs where is known to the node only.
async fn choose(
    acting: &Acting,
    node: &NodePeer,
    contract: &Contract,
    vm: Option<Name>,
) -> Result<Name, Failure> {
    let explanation = node.explain(&acting.grid, contract.id).await?;
    let names: Vec<Name> = explanation.vms.into_iter().map(|vm| vm.name).collect();
    let name = || contract.body.signed.terms.name.clone();
    let known = || names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    match (vm, &names[..]) {
        (_, []) => Err(Failure::not_found(LogsError::NoVms { contract: name(), node: node.name.clone() })),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(Failure::usage(LogsError::WhichVm { contract: name(), known: known() })),
        (Some(vm), _) if names.contains(&vm) => Ok(vm),
        (Some(vm), _) => Err(Failure::not_found(LogsError::NoVm { contract: name(), vm, known: known() })),
    }
}
