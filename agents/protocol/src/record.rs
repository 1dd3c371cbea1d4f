//! What the ledger keeps: immutable versions of things, each naming the one it supersedes.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::contract::{ContractBody, ContractId};
use crate::directory::Profile;
use crate::header::ValidatorSet;
use crate::identity::KeysBody;
use crate::release::{ChannelBody, FarmPolicy, OutcomeBody, ReleaseBody, ReleaseId, ReleaseKeys};
use crate::reservation::ReservationBody;
use crate::trouble::NodeTrouble;
use crate::{BotId, Capacity, Grains, Hash, Name, NodeId, PriceList, PublicKey};

#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Bot,
    Farm,
    Node,
    Offer,
    Contract,
    Approval,
    Report,
    Recipe,
    Release,
    Transfer,
    Validators,
    ReleaseKeys,
    Channel,
    FarmPolicy,
    Outcome,
    Profile,
    Funding,
    Reservation,
    Drain,
    Keys,
}

/// A farm: hash of its owner and first name.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct FarmId(pub Hash);

impl FarmId {
    #[must_use]
    pub fn new(owner: &BotId, name: &Name) -> Self {
        Self(Hash::of("croft/farm/1", &(owner, name)))
    }
}

impl std::fmt::Display for FarmId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A thing of which there are versions.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
pub struct RecordId {
    pub kind: Kind,
    /// A key (bot, node), or a hash that the kind defines.
    pub id: Hash,
}

impl RecordId {
    #[must_use]
    pub fn bot(id: &BotId) -> Self {
        Self { kind: Kind::Bot, id: Hash(id.0) }
    }
    #[must_use]
    pub fn node(id: &NodeId) -> Self {
        Self { kind: Kind::Node, id: Hash(id.0) }
    }
    /// The reports of one node are versions of one thing.
    #[must_use]
    pub fn report(id: &NodeId) -> Self {
        Self { kind: Kind::Report, id: Hash(id.0) }
    }
    #[must_use]
    pub fn farm(id: &FarmId) -> Self {
        Self { kind: Kind::Farm, id: id.0 }
    }
    #[must_use]
    pub fn contract(id: &ContractId) -> Self {
        Self { kind: Kind::Contract, id: id.0 }
    }
    /// The approval of one contract by one bot.
    #[must_use]
    pub fn approval(contract: &ContractId, approver: &BotId) -> Self {
        Self { kind: Kind::Approval, id: Hash::of("croft/approval/1", &(contract, approver)) }
    }
    /// One transfer: its author and sequence number.
    #[must_use]
    pub fn transfer(author: &PublicKey, sequence: u64) -> Self {
        Self { kind: Kind::Transfer, id: Hash::of("croft/transfer/1", &(author, sequence)) }
    }
    /// A recipe: its author and its name, which is the author's to give.
    #[must_use]
    pub fn recipe(author: &BotId, name: &Name) -> Self {
        Self { kind: Kind::Recipe, id: Hash::of("croft/recipe/1", &(author, name)) }
    }
    /// One payment into an escrow: its author and sequence number.
    #[must_use]
    pub fn funding(author: &PublicKey, sequence: u64) -> Self {
        Self { kind: Kind::Funding, id: Hash::of("croft/funding/1", &(author, sequence)) }
    }
    /// What was reserved for a contract.
    #[must_use]
    pub fn reservation(contract: &ContractId) -> Self {
        Self { kind: Kind::Reservation, id: contract.0 }
    }
    /// Whether a node is being emptied.
    #[must_use]
    pub fn drain(node: &NodeId) -> Self {
        Self { kind: Kind::Drain, id: Hash(node.0) }
    }
    /// The one validator set of the grid.
    #[must_use]
    pub fn validators() -> Self {
        Self { kind: Kind::Validators, id: Hash::ZERO }
    }
    #[must_use]
    pub fn release(id: &ReleaseId) -> Self {
        Self { kind: Kind::Release, id: id.0 }
    }
    /// The one set of release keys of the grid.
    #[must_use]
    pub fn release_keys() -> Self {
        Self { kind: Kind::ReleaseKeys, id: Hash::ZERO }
    }
    /// A line of releases, by its name.
    #[must_use]
    pub fn channel(name: &Name) -> Self {
        Self { kind: Kind::Channel, id: Hash::of("croft/channel/1", name) }
    }
    /// What a farm's owner decided about upgrades.
    #[must_use]
    pub fn farm_policy(farm: &FarmId) -> Self {
        Self { kind: Kind::FarmPolicy, id: farm.0 }
    }
    /// What a bot says of itself.
    #[must_use]
    pub fn profile(bot: &BotId) -> Self {
        Self { kind: Kind::Profile, id: Hash(bot.0) }
    }
    /// The keys that followed a bot's first one.
    #[must_use]
    pub fn keys(bot: &BotId) -> Self {
        Self { kind: Kind::Keys, id: Hash(bot.0) }
    }
    /// What became of one release on one node.
    #[must_use]
    pub fn outcome(release: &ReleaseId, node: &NodeId) -> Self {
        Self { kind: Kind::Outcome, id: Hash::of("croft/release-outcome/1", &(release, node)) }
    }
}

/// One immutable version of one thing. Its hash is SHA-256 of its encoding.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Record {
    pub id: RecordId,
    /// 1, 2, 3, ...
    pub version: u64,
    /// Hash of the record that this one supersedes; `None` exactly in version 1.
    pub prev: Option<Hash>,
    pub body: Body,
    /// Who signed the command that made it; the zero key for genesis.
    pub author: PublicKey,
    /// Height of the block that carries it.
    pub height: u64,
    /// Time of that block: milliseconds since 1970, UTC.
    pub time_ms: u64,
}

impl Record {
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of_bytes(&crate::encode(self))
    }
}

/// What a record says. The variant belongs to its [`Kind`].
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    Bot(BotBody),
    Farm(FarmBody),
    Node(NodeBody),
    Contract(Box<ContractBody>),
    Approval(ApprovalBody),
    Report(ReportBody),
    Transfer(TransferBody),
    Validators(ValidatorSet),
    Release(Box<ReleaseBody>),
    ReleaseKeys(ReleaseKeys),
    Channel(ChannelBody),
    FarmPolicy(FarmPolicy),
    Outcome(OutcomeBody),
    Recipe(RecipeBody),
    Profile(Profile),
    Funding(FundingBody),
    Reservation(Box<ReservationBody>),
    Drain(DrainBody),
    Keys(KeysBody),
}

impl Body {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Bot(_) => Kind::Bot,
            Self::Farm(_) => Kind::Farm,
            Self::Node(_) => Kind::Node,
            Self::Contract(_) => Kind::Contract,
            Self::Approval(_) => Kind::Approval,
            Self::Report(_) => Kind::Report,
            Self::Transfer(_) => Kind::Transfer,
            Self::Validators(_) => Kind::Validators,
            Self::Release(_) => Kind::Release,
            Self::ReleaseKeys(_) => Kind::ReleaseKeys,
            Self::Channel(_) => Kind::Channel,
            Self::FarmPolicy(_) => Kind::FarmPolicy,
            Self::Outcome(_) => Kind::Outcome,
            Self::Recipe(_) => Kind::Recipe,
            Self::Profile(_) => Kind::Profile,
            Self::Funding(_) => Kind::Funding,
            Self::Reservation(_) => Kind::Reservation,
            Self::Drain(_) => Kind::Drain,
            Self::Keys(_) => Kind::Keys,
        }
    }
}

/// What an expert wrote down for others to deploy. The ledger keeps the text and who wrote it; what it means, and whether
/// it means anything, the deployer's bot decides. Its versions are those of its record.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct RecipeBody {
    pub author: BotId,
    pub name: Name,
    /// One line for lists.
    pub title: String,
    /// A deploy file with parameters, in TOML.
    pub text: String,
    /// Why nobody should deploy it any more; until then it is offered.
    pub withdrawn: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct BotBody {
    /// Unique on the ledger.
    pub name: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct FarmBody {
    pub owner: BotId,
    /// Unique on the ledger.
    pub name: Name,
    /// ISO 3166-1 alpha-2, lower case.
    pub country: String,
    /// Where in the country, as its owner calls it: `flanders`, `ile-de-france`.
    pub region: Option<Name>,
    pub prices: PriceList,
}

/// How much a node's identity is worth.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum TrustClass {
    /// Key on disk: whoever copies the disk has it.
    Plain,
    /// Key held by a TPM.
    Sealed,
    /// TPM quote over the measured boot matches a release.
    Attested,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct NodeBody {
    pub farm: FarmId,
    /// Unique within its farm.
    pub name: Name,
    /// X25519 public key to which workloads are sealed.
    pub sealing_key: [u8; 32],
    pub capacity: Capacity,
    pub hardware: HardwareSummary,
    pub trust: TrustClass,
    /// Where published ports can be reached: host names or addresses.
    pub addresses: Vec<String>,
    /// Version of the Croft image that it runs.
    pub release: String,
    /// One per boot, greater than all before, so that one key can't run twice.
    pub session: u64,
    /// What is wrong with the machine and what to do, as its screen shows it; see [`crate::trouble::check`].
    pub troubles: Vec<NodeTrouble>,
}

/// What a buyer wants to know of the machine; the full inventory stays on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct HardwareSummary {
    pub cpu_model: String,
    pub threads: u32,
    pub vendor: String,
    pub product: String,
    /// SHA-256 of the full inventory as the node measured it.
    pub inventory: Hash,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct ApprovalBody {
    pub contract: ContractId,
    pub approver: BotId,
    pub approved: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct TransferBody {
    pub from: BotId,
    pub to: BotId,
    pub amount: Grains,
    pub memo: String,
}

/// Grains that somebody paid into a contract's escrow after the agreement.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct FundingBody {
    pub from: BotId,
    pub contract: ContractId,
    pub amount: Grains,
}

/// What a farm's owner proposes to everybody who has a contract on a node: to leave it, by agreement. A contract whose
/// user does not answer goes on until its term ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct DrainBody {
    pub node: NodeId,
    /// `None` when the node takes new contracts again.
    pub draining: Option<Draining>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Draining {
    /// Block time since which it takes no new contracts: milliseconds since 1970, UTC.
    pub since_ms: u64,
    /// When the owner wants to work on it; `None` when that is not said.
    pub until_ms: Option<u64>,
}

/// What a node says of the contracts addressed to it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct ReportBody {
    pub node: NodeId,
    pub session: u64,
    /// The covered time: milliseconds since 1970, UTC. Pay is for contracts that ran within it.
    pub from_ms: u64,
    pub until_ms: u64,
    pub contracts: Vec<ContractReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct ContractReport {
    pub contract: ContractId,
    pub state: WorkloadState,
    /// Milliseconds within the report's time during which the whole workload ran.
    pub ran_ms: u64,
    /// For people: why it is in this state. Never decides anything.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadState {
    /// Verified; being fetched or started.
    Preparing,
    /// Every microVM runs and is healthy.
    Running,
    /// Something in it failed; the node is trying again.
    Failing,
    /// The node won't run it: wrong seal, impossible description, wrong bytes.
    Refused,
    /// Ended by itself, as its restart policy allows.
    Finished,
}
