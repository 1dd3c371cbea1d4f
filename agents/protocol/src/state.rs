//! What the state map holds, and so what can be proved to exist, to be absent, and to be the latest.
//!
//! The ledger keeps `StateKey -> bytes`. The map's leaf key is SHA-256 of a domain and the encoded
//! [`StateKey`]; its leaf value is plain SHA-256 of the bytes. For a record those bytes are its encoding,
//! so its leaf is its hash.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::contract::{ContractId, PublishedPort};
use crate::{Grains, Hash, Name, NodeId, PublicKey, RecordId, ReleaseId};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StateKey {
    /// -> the latest [`crate::Record`] of a thing.
    Record(RecordId),
    /// -> [`Account`].
    Account(PublicKey),
    /// -> [`PublicKey`] of the bot.
    BotName(Name),
    /// -> [`crate::FarmId`].
    FarmName(Name),
    /// -> [`NodeId`]: the farm's id and the node's name.
    NodeName(Hash, Name),
    /// -> [`ContractId`]: the user's running contract of this name.
    ContractName(PublicKey, Name),
    /// -> [`crate::NodeCapacity`].
    Capacity(NodeId),
    /// -> [`NodeContracts`]: every contract addressed to the node that has not ended.
    NodeContracts(NodeId),
    /// -> [`ContractId`] that holds a published port.
    Port(NodeId, PublishedPort),
    /// -> [`crate::Escrow`].
    Escrow(ContractId),
    /// -> [`Grains`]: all there are, to check conservation against.
    Supply,
    /// -> [`crate::TrustPolicy`] of the genesis.
    TrustPolicy,
    /// -> [`crate::trust::RecentHeaders`]: what a quote may name.
    RecentHeaders,
    /// -> [`crate::NodeTrust`], of nodes whose TPM ever spoke for them.
    NodeTrust(NodeId),
    /// -> [`NodeId`] for which the TPM with this attestation key speaks.
    TpmKey(Hash),
    /// -> [`crate::release::Trials`] of a release that a node has told of.
    Trials(ReleaseId),
    /// -> [`crate::Faucet`] of a test grid's genesis.
    Faucet,
    /// -> [`crate::faucet::FaucetClaims`] of a bot that ever claimed.
    FaucetClaims(PublicKey),
    /// -> [`crate::release::Tried`] of a release, of a farmer one of whose nodes has told of it.
    FarmerTrials(ReleaseId, PublicKey),
    /// -> [`Grains`]: the fee of a reservation that is neither used nor claimed.
    HeldFee(ContractId),
    /// -> [`crate::reservation::NodeReservations`]: those that hold capacity of the node.
    NodeReservations(NodeId),
    /// -> [`crate::reservation::OpenReservations`] of a bot that has some.
    OpenReservations(PublicKey),
    /// -> [`crate::reservation::ReservationQueue`], while some wait for their expiry.
    ReservationQueue,
    /// -> [`crate::reservation::ReservationSlot`] of a slot in which some expire.
    ReservationSlot(u64),
    /// -> [`crate::BotId`] whose key this is or was, of bots that ever replaced one: their first keys too.
    KeyOwner(PublicKey),
    /// -> [`crate::trust::WeighedQuote`] of a node whose TPM ever spoke for it: the last one.
    NodeQuote(NodeId),
    /// -> [`NodeId`] for which the TPM with this endorsement key speaks, where enough vouchers named it.
    Endorsement(Hash),
}

impl StateKey {
    /// The leaf's key in the state map.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of("croft/state-key/1", self)
    }
}

/// Anybody who signs commands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
pub struct Account {
    pub balance: Grains,
    pub next_sequence: u64,
}

/// The commitment that keeps a replica from hiding a contract: in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct NodeContracts {
    pub contracts: Vec<ContractId>,
}
