//! What a node may run: the contracts addressed to it, each with proof, signatures and quorum.

use croft_protocol::api::ProvedValue;
use croft_protocol::keys::BadSignature;
use croft_protocol::state::NodeContracts;
use croft_protocol::{
    Body, ContractBody, ContractId, ContractState, DecodeError, NodeId, PublicKey, Record, RecordId,
    StateKey, Terms, limits,
};

use crate::proof::verify_value;
use crate::tip::{LightError, Tip};

/// Why a contract, or a node's list of them, is not acted on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    #[error(transparent)]
    Light(#[from] LightError),
    #[error("the contracts of node {node} can't be read: update this node's image")]
    List { node: NodeId, source: DecodeError },
    #[error(
        "the contracts of node {node} stand in no order or are too many: the grid's validators are broken"
    )]
    ListOrder { node: NodeId },
    #[error("there is no contract {contract} on this grid")]
    Absent { contract: ContractId },
    #[error("contract {contract} can't be read: update this node's image")]
    Malformed { contract: ContractId, source: DecodeError },
    #[error("the record of contract {contract} is that of another thing: the grid's validators are broken")]
    OtherRecord { contract: ContractId },
    #[error("contract {contract} is addressed to node {node}, not to {ours}")]
    OtherNode { contract: ContractId, node: NodeId, ours: NodeId },
    #[error("a party did not sign contract {contract}: the grid's validators are broken")]
    Unsigned { contract: ContractId, source: BadSignature },
    #[error("contract {contract} must not run: it is {state:?}, without its approvers' quorum or over")]
    MustNotRun { contract: ContractId, state: ContractState },
}

/// Every contract addressed to a node that has not ended, as of the tip, in ascending order.
///
/// # Errors
/// [`ContractError`] when that is not proved.
pub fn verify_node_contracts(
    tip: &Tip,
    node: &NodeId,
    proved: &ProvedValue,
) -> Result<Vec<ContractId>, ContractError> {
    let Some(bytes) = verify_value(tip, &StateKey::NodeContracts(*node), proved)? else {
        return Ok(Vec::new());
    };
    let limit = 4 + limits::CONTRACTS_PER_NODE * 32;
    let list: NodeContracts = croft_protocol::decode("list of contracts", &bytes, limit)
        .map_err(|source| ContractError::List { node: *node, source })?;
    if !list.contracts.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(ContractError::ListOrder { node: *node });
    }
    Ok(list.contracts)
}

/// A contract that is on the ledger as of some tip, addressed to this node, and signed by both parties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedContract {
    id: ContractId,
    record: Record,
    body: ContractBody,
}

impl VerifiedContract {
    #[must_use]
    pub fn id(&self) -> ContractId {
        self.id
    }

    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.body.signed.terms
    }

    #[must_use]
    pub fn body(&self) -> &ContractBody {
        &self.body
    }

    /// The record that carries it: its version, author, height and time.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    #[must_use]
    pub fn user(&self) -> PublicKey {
        self.terms().user
    }

    /// Whether its quorum is reached and it has not ended, so that the node may run it. Whether its time is
    /// over is the clock's business: see [`ContractBody::expires_ms`].
    ///
    /// # Errors
    /// [`ContractError::MustNotRun`] with the state that it is in.
    pub fn check_may_run(&self) -> Result<(), ContractError> {
        let (contract, state) = (self.id, self.body.state);
        if state.may_run() && self.body.starts_ms > 0 {
            Ok(())
        } else {
            Err(ContractError::MustNotRun { contract, state })
        }
    }
}

/// The latest version of a contract, in whatever state, with everything about it checked again that can be
/// checked without trusting the validators: the terms have this id, name this node, and are signed by both.
///
/// # Errors
/// [`ContractError`] names what is missing.
pub fn verify_contract(
    tip: &Tip,
    node: &NodeId,
    contract: &ContractId,
    proved: &ProvedValue,
) -> Result<VerifiedContract, ContractError> {
    let (id, contract) = (RecordId::contract(contract), *contract);
    let bytes =
        verify_value(tip, &StateKey::Record(id), proved)?.ok_or(ContractError::Absent { contract })?;
    let record: Record = croft_protocol::decode("contract", &bytes, limits::RECORD_BYTES)
        .map_err(|source| ContractError::Malformed { contract, source })?;
    let body = match &record.body {
        Body::Contract(body) if record.id == id && body.signed.terms.id() == contract => (**body).clone(),
        _ => return Err(ContractError::OtherRecord { contract }),
    };
    let addressed = body.signed.terms.node;
    if addressed != *node {
        return Err(ContractError::OtherNode { contract, node: addressed, ours: *node });
    }
    body.signed.verify(&tip.header().chain).map_err(|source| ContractError::Unsigned { contract, source })?;
    Ok(VerifiedContract { id: contract, record, body })
}
