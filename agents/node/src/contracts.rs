//! The contracts of this node: pulled with proofs, kept for a boot without a ledger.
//!
//! The ledger's entry for the node commits to the whole set, so a replica can't hide a contract; each record is
//! proved to be the latest, and both parties' signatures are checked again. It must never forget a contract that
//! the ledger did not prove to be gone.

use std::collections::BTreeMap;

use croft_light::{ContractError, verify_contract, verify_node_contracts, verify_value};
use croft_protocol::contract::KeptContract;
use croft_protocol::{
    Body, ChainId, ContractBody, ContractId, Escrow, NodeId, Record, RecordId, StateKey, limits,
};

use crate::ledger::{Ledger, LedgerError};

/// Contracts in one question: each may carry a sealed workload.
const PER_QUESTION: usize = 16;

/// What the ledger proves, as of one tip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    pub height: u64,
    /// Of the newest machine that registered with this node's key; 0 before any did.
    pub session: u64,
    /// Each with its money.
    pub contracts: BTreeMap<ContractId, (ContractBody, Escrow)>,
    /// Contracts that can't be taken, with why. Never run.
    pub refused: Vec<(ContractId, String)>,
}

/// Pulls everything that is addressed to `node`, and the latest state of what was `known` before.
///
/// # Errors
/// [`LedgerError`] when no replica gives a proved answer.
pub async fn pull(
    ledger: &Ledger,
    node: &NodeId,
    known: impl Iterator<Item = ContractId>,
) -> Result<Pulled, LedgerError> {
    let own = StateKey::Record(RecordId::node(node));
    let keys = vec![StateKey::NodeContracts(*node), own.clone()];
    let (height, session, listed) = ledger
        .prove(keys, |tip, proved| {
            let session = verify_value(tip, &own, &proved[1])?.map_or(0, |bytes| session_of(&bytes));
            match verify_node_contracts(tip, node, &proved[0]) {
                Err(ContractError::Light(lie)) => Err(lie),
                listed => Ok((tip.height(), session, listed)),
            }
        })
        .await?;
    let mut pulled = Pulled { height, session, contracts: BTreeMap::new(), refused: Vec::new() };
    let mut wanted: Vec<ContractId> = known.collect();
    match listed {
        Ok(listed) => wanted.extend(listed),
        Err(error) => tracing::error!("{error}"),
    }
    wanted.sort_unstable();
    wanted.dedup();
    for ids in wanted.chunks(PER_QUESTION) {
        let records = ids.iter().map(|id| StateKey::Record(RecordId::contract(id)));
        let keys = records.chain(ids.iter().map(|id| StateKey::Escrow(*id))).collect();
        let (height, verified) = ledger
            .prove(keys, |tip, proved| {
                let mut verified = Vec::new();
                for (at, (id, record)) in ids.iter().zip(proved).enumerate() {
                    let escrow = verify_value(tip, &StateKey::Escrow(*id), &proved[ids.len() + at])?;
                    match verify_contract(tip, node, id, record) {
                        Err(ContractError::Light(lie)) => return Err(lie),
                        contract => verified.push((*id, contract, escrow)),
                    }
                }
                Ok((tip.height(), verified))
            })
            .await?;
        pulled.height = pulled.height.max(height);
        for (id, contract, escrow) in verified {
            let escrow = escrow.and_then(|bytes| borsh_escrow(&bytes));
            match (contract, escrow) {
                (Ok(contract), Some(escrow)) => {
                    pulled.contracts.insert(id, (contract.body().clone(), escrow));
                }
                (Ok(_), None) => pulled.refused.push((id, "its escrow can't be read".to_owned())),
                (Err(error), _) => pulled.refused.push((id, crate::ledger::chain_of(&error))),
            }
        }
    }
    Ok(pulled)
}

/// Of a node's record.
fn session_of(bytes: &[u8]) -> u64 {
    match croft_protocol::decode::<Record>("record", bytes, limits::RECORD_BYTES).map(|record| record.body) {
        Ok(Body::Node(node)) => node.session,
        _ => 0,
    }
}

fn borsh_escrow(bytes: &[u8]) -> Option<Escrow> {
    croft_protocol::decode("an escrow", bytes, limits::RECORD_BYTES).ok()
}

/// Why a contract that an earlier boot kept is not acted on before it is pulled again.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error("the stored contract {contract} can't be read")]
    Malformed { contract: ContractId },
    #[error("the stored contract {contract} holds other terms than its id")]
    OtherTerms { contract: ContractId },
    #[error("the stored contract {contract} is addressed to node {node}: was the disk moved?")]
    OtherNode { contract: ContractId, node: NodeId },
    #[error("the stored contract {contract} is not signed for this grid by both parties")]
    Unsigned { contract: ContractId, source: croft_protocol::keys::BadSignature },
}

/// Checks a contract that an earlier boot proved and kept: the signatures hold without the ledger.
///
/// # Errors
/// [`KeptError`] names the contract and what is wrong with it.
pub fn check_kept(
    chain: &ChainId,
    node: &NodeId,
    id: &ContractId,
    bytes: Option<&[u8]>,
) -> Result<KeptContract, KeptError> {
    let contract = *id;
    let decode = |bytes| croft_protocol::decode("kept contract", bytes, limits::RECORD_BYTES).ok();
    let kept: KeptContract = bytes.and_then(decode).ok_or(KeptError::Malformed { contract })?;
    let body = &kept.body;
    let terms = &body.signed.terms;
    if terms.id() != contract {
        return Err(KeptError::OtherTerms { contract });
    }
    if terms.node != *node {
        return Err(KeptError::OtherNode { contract, node: terms.node });
    }
    body.signed.verify(chain).map_err(|source| KeptError::Unsigned { contract, source })?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_protocol::contract::{ContractState, Quorum, SignedTerms, Terms};
    use croft_protocol::keys::Domain;
    use croft_protocol::{Capacity, FarmId, Grains, Hash, Name, PublicKey, Rate, SecretKey, Signature};

    const CHAIN: ChainId = ChainId(Hash([7; 32]));
    const NODE: PublicKey = PublicKey([9; 32]);

    fn kept() -> (ContractId, KeptContract) {
        let (user, farmer) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let terms = Terms {
            name: Name::new("web").unwrap(),
            user: user.public(),
            farmer: farmer.public(),
            farm: FarmId(Hash::ZERO),
            node: NODE,
            resources: Capacity::default(),
            ports: vec![],
            rate: Rate(1),
            duration_s: 100,
            grace_s: 50,
            prepaid_s: None,
            capacity_version: 1,
            quorum: Quorum::default(),
            sealed: vec![1, 2, 3],
            expires_ms: u64::MAX,
            nonce: [0; 16],
        };
        let signed = SignedTerms {
            user: user.sign_as_bot(Domain::TERMS, &CHAIN, &terms),
            farmer: farmer.sign_as_bot(Domain::TERMS, &CHAIN, &terms),
            terms,
        };
        let id = signed.terms.id();
        let body =
            ContractBody { signed, state: ContractState::Approved, agreed_ms: 1, starts_ms: 1, ended_ms: 0 };
        (id, KeptContract { body, paid_until_ms: 7, held: Grains(5) })
    }

    fn refusal(node: &NodeId, chain: &ChainId, id: &ContractId, kept: &KeptContract) -> String {
        check_kept(chain, node, id, Some(&croft_protocol::encode(kept))).unwrap_err().to_string()
    }

    #[test]
    fn a_kept_contract_holds_without_the_ledger() {
        let (id, body) = kept();
        assert_eq!(check_kept(&CHAIN, &NODE, &id, Some(&croft_protocol::encode(&body))).unwrap(), body);
    }

    #[test]
    fn a_disk_that_lies_is_believed_no_more_than_a_replica() {
        let (id, body) = kept();
        let other = PublicKey([8; 32]);
        assert!(refusal(&other, &CHAIN, &id, &body).ends_with("was the disk moved?"));
        assert!(refusal(&NODE, &ChainId(Hash::ZERO), &id, &body).ends_with("for this grid by both parties"));
        assert!(refusal(&NODE, &CHAIN, &ContractId(Hash::ZERO), &body).ends_with("other terms than its id"));
        let mut altered = body.clone();
        altered.body.signed.terms.rate = Rate(0);
        assert!(refusal(&NODE, &CHAIN, &id, &altered).ends_with("other terms than its id"));
        let mut unsigned = body;
        unsigned.body.signed.farmer = Signature([0; 64]).into();
        assert!(refusal(&NODE, &CHAIN, &id, &unsigned).ends_with("both parties"));
        let error = check_kept(&CHAIN, &NODE, &id, Some(&[1, 2])).unwrap_err();
        assert_eq!(error.to_string(), format!("the stored contract {id} can't be read"));
    }
}
