//! A grid as this bot sees it: everything that is acted on has been proved.
//!
//! ```text
//!   croft_transport::verified ── proved values of several replicas ──> what the ledger says
//!        └── newest header, proof of a broken word ──> home
//! ```
//! It must never hand out an answer of a replica that was not verified, except where its name says
//! `unproved`; and it must never go back behind the newest header that any run of this home has seen.

mod attested;
mod search;

use std::time::SystemTime;

use borsh::BorshDeserialize;
use croft_light::{LightError, Tip, verify_history};
use croft_protocol::api::{Concern, Failure as ReplicaFailure, Page, ProvedRecord, Query, RefusedNode};
use croft_protocol::boot::GridPin;
use croft_protocol::contract::PublishedPort;
use croft_protocol::record::{BotBody, Draining, FarmBody, FarmId, NodeBody};
use croft_protocol::release::{FarmPolicy, Trials};
use croft_protocol::reservation::NodeReservations;
use croft_protocol::state::{Account, NodeContracts};
use croft_protocol::{
    Body, BotId, ChainId, Command, ContractBody, ContractId, DecodeError, Escrow, Genesis, Name,
    NodeCapacity, NodeId, NodeTrust, Profile, PublicKey, Record, RecordId, Rejection, ReleaseId, SecretKey,
    StateKey, limits,
};
use croft_transport::ClientError;
use croft_transport::verified::{Following, Keep, Trail, Trusted, Verified, VerifiedError};

pub use attested::Attested;
pub use search::{FoundPage, FoundThing};

use crate::exit::{Exit, Failure};
use crate::home::{Home, HomeError};

/// A command that is on the ledger.
pub use croft_transport::verified::Final;

/// A command is void after so many blocks: some minutes of a busy grid, hours of an idle one.
const EXPIRES_AFTER_BLOCKS: u64 = 600;
/// Records of one search that are looked at.
pub(crate) const FOUND_LIMIT: usize = 2048;
/// Values that are read of each node.
const KEYS_OF_NODE: usize = 6;

/// Why the grid can't be asked, or says no.
#[derive(Debug, thiserror::Error)]
pub enum GridError {
    #[error("grid '{grid}'")]
    Ledger { grid: Name, source: Box<VerifiedError> },
    #[error("grid '{grid}': {what} can't be read: update croft")]
    Malformed { grid: Name, what: &'static str, source: DecodeError },
    #[error("grid '{grid}': the record of {what} is that of another thing: its validators are broken")]
    OtherRecord { grid: Name, what: String },
    #[error(
        "grid '{grid}': nobody knows what became of the command, and it is not on the ledger: look with 'croft ps', 'croft wallet show' or 'croft bot show' before you try again"
    )]
    OutcomeUnknown { grid: Name },
    #[error(transparent)]
    Home(#[from] HomeError),
}

impl GridError {
    /// The ledger's reason, if it is the ledger that said no.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Ledger { source, .. } => source.rejection(),
            _ => None,
        }
    }

    fn client(&self) -> Option<&ClientError> {
        match self {
            Self::Ledger { source, .. } => match &**source {
                VerifiedError::Client(error) => Some(error),
                _ => None,
            },
            _ => None,
        }
    }

    /// Why a key does not stand for somebody, if that is what is wrong.
    #[must_use]
    pub fn key_refusal(&self) -> Option<String> {
        match self {
            Self::Ledger { source, .. } => match &**source {
                VerifiedError::Key(refusal) => Some(refusal.to_string()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether somebody is not connected to any replica.
    #[must_use]
    pub fn is_not_listening(&self) -> bool {
        matches!(
            self.client(),
            Some(ClientError::Failed { failure: ReplicaFailure::NotListening { .. }, .. })
        )
    }

    /// Whether a peer was called through a relay and did not prove itself.
    #[must_use]
    pub fn is_peers(&self) -> bool {
        matches!(self.client(), Some(ClientError::Peer { .. }))
    }

    fn exit(&self) -> Exit {
        match (self.client(), self) {
            (Some(error), _) => match error {
                ClientError::Rejected { .. } => Exit::Refused,
                ClientError::Failed { failure, .. } => match failure {
                    ReplicaFailure::NotFound { .. } => Exit::NotFound,
                    ReplicaFailure::NotListening { .. } | ReplicaFailure::Busy { .. } => Exit::Unreachable,
                    ReplicaFailure::Quota { .. } | ReplicaFailure::Key(_) => Exit::Refused,
                    _ => Exit::Failed,
                },
                ClientError::Bind(_) | ClientError::BlobTampered { .. } => Exit::Failed,
                ClientError::NoReplica
                | ClientError::Unavailable { .. }
                | ClientError::OutcomeUnknown { .. }
                | ClientError::StreamEnded { .. }
                | ClientError::Peer { .. } => Exit::Unreachable,
            },
            (None, Self::OutcomeUnknown { .. }) => Exit::Unreachable,
            (None, Self::Ledger { source, .. }) if matches!(**source, VerifiedError::Key(_)) => Exit::Refused,
            (None, Self::Ledger { source, .. })
                if matches!(**source, VerifiedError::OutcomeUnknown { .. }) =>
            {
                Exit::Unreachable
            }
            _ => Exit::Failed,
        }
    }
}

impl From<GridError> for Failure {
    fn from(error: GridError) -> Self {
        let exit = error.exit();
        let remedy = matches!(error.client(), Some(ClientError::Unavailable { .. })).then_some(
            "start it with 'croft grid up' if it is yours, else check your network and the grid's pin",
        );
        let failure = Self::new(exit, error);
        match remedy {
            Some(remedy) => failure.remedy(remedy),
            None => failure,
        }
    }
}

/// What the ledger holds of a contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    pub id: ContractId,
    pub record: Record,
    pub body: ContractBody,
    pub escrow: Escrow,
}

/// What the ledger holds of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub record: Record,
    pub body: NodeBody,
    pub capacity: NodeCapacity,
    pub contracts: Vec<ContractId>,
    /// Contracts for which capacity is held.
    pub reserved: Vec<ContractId>,
    /// Its farm empties it.
    pub draining: Option<Draining>,
    /// What the ledger knows of its TPM, if that ever spoke for it.
    pub trust: Option<NodeTrust>,
}

/// Proved values and the header that they are of.
#[derive(Debug, Clone)]
pub struct Proved {
    pub tip: Tip,
    pub values: Vec<Option<Vec<u8>>>,
}

pub struct Grid {
    pin: GridPin,
    verified: Verified,
}

impl Grid {
    /// Gets ready to ask; nothing is sent yet.
    pub fn open(home: &Home, pin: GridPin, me: &SecretKey) -> Result<Self, GridError> {
        let keep = InHome { home: home.clone(), grid: pin.name.clone(), chain: pin.chain };
        let trusted =
            Trusted { chain: pin.chain, validators: pin.validators, replicas: pin.replicas.clone() };
        let verified = Verified::open(me, trusted, keep)
            .map_err(|e| GridError::Ledger { grid: pin.name.clone(), source: Box::new(e.into()) })?;
        Ok(Self { pin, verified })
    }

    #[must_use]
    pub fn pin(&self) -> &GridPin {
        &self.pin
    }

    #[must_use]
    pub fn name(&self) -> &Name {
        &self.pin.name
    }

    /// For what is no read of the ledger: blobs and relayed calls.
    #[must_use]
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// Says good-bye, so that replicas need not find out by silence, and keeps what was seen.
    pub async fn close(&self) {
        self.verified.close().await;
    }

    pub(crate) fn error(&self, source: VerifiedError) -> GridError {
        GridError::Ledger { grid: self.pin.name.clone(), source: Box::new(source) }
    }

    // Reading.

    /// The newest final header.
    pub async fn tip(&self) -> Result<Tip, GridError> {
        self.verified.tip().await.map_err(|e| self.error(e))
    }

    /// Who certified the newest header that is known.
    pub fn validators(&self) -> Vec<croft_protocol::Validator> {
        self.verified.validators().map(|set| set.validators).unwrap_or_default()
    }

    /// The latest values under some keys. All of one call's values are of one header, as long as they are at
    /// most [`limits::KEYS_PER_GET`]; beyond that the header is the last one.
    pub async fn get(&self, keys: &[StateKey]) -> Result<Proved, GridError> {
        let mut values = Vec::with_capacity(keys.len());
        let mut tip = None;
        for some in keys.chunks(limits::KEYS_PER_GET) {
            let (at, proved) = self.verified.get(some).await.map_err(|e| self.error(e))?;
            values.extend(proved);
            tip = Some(at);
        }
        let tip = match tip {
            Some(tip) => tip,
            None => self.tip().await?,
        };
        Ok(Proved { tip, values })
    }

    async fn value<T: BorshDeserialize>(
        &self,
        what: &'static str,
        key: StateKey,
    ) -> Result<Option<T>, GridError> {
        let proved = self.get(&[key]).await?;
        self.decode(what, proved.values[0].as_deref())
    }

    fn decode<T: BorshDeserialize>(
        &self,
        what: &'static str,
        bytes: Option<&[u8]>,
    ) -> Result<Option<T>, GridError> {
        bytes
            .map(|bytes| croft_protocol::decode(what, bytes, limits::RECORD_BYTES))
            .transpose()
            .map_err(|source| GridError::Malformed { grid: self.pin.name.clone(), what, source })
    }

    fn other_record(&self, what: impl Into<String>) -> GridError {
        GridError::OtherRecord { grid: self.pin.name.clone(), what: what.into() }
    }

    /// The latest version of a thing.
    pub async fn record(&self, id: RecordId) -> Result<Option<Record>, GridError> {
        let record: Option<Record> = self.value("a record", StateKey::Record(id)).await?;
        match record {
            Some(record) if record.id != id => Err(self.other_record(format!("{:?} {}", id.kind, id.id))),
            other => Ok(other),
        }
    }

    pub async fn account(&self, key: PublicKey) -> Result<Account, GridError> {
        Ok(self.value("an account", StateKey::Account(key)).await?.unwrap_or_default())
    }

    pub async fn bot(&self, id: BotId) -> Result<Option<BotBody>, GridError> {
        match self.record(RecordId::bot(&id)).await? {
            None => Ok(None),
            Some(Record { body: Body::Bot(body), .. }) => Ok(Some(body)),
            Some(_) => Err(self.other_record(format!("bot {id}"))),
        }
    }

    /// What a bot says of itself, if it ever did.
    pub async fn profile(&self, id: BotId) -> Result<Option<Profile>, GridError> {
        match self.record(RecordId::profile(&id)).await? {
            None => Ok(None),
            Some(Record { body: Body::Profile(profile), .. }) => Ok(Some(profile)),
            Some(_) => Err(self.other_record(format!("the profile of bot {id}"))),
        }
    }

    pub async fn bot_named(&self, name: &Name) -> Result<Option<BotId>, GridError> {
        self.value("a bot's name", StateKey::BotName(name.clone())).await
    }

    pub async fn farm(&self, id: FarmId) -> Result<Option<FarmBody>, GridError> {
        match self.record(RecordId::farm(&id)).await? {
            None => Ok(None),
            Some(Record { body: Body::Farm(body), .. }) => Ok(Some(body)),
            Some(_) => Err(self.other_record(format!("farm {id}"))),
        }
    }

    /// How many nodes tried a release.
    pub async fn trials(&self, release: ReleaseId) -> Result<Trials, GridError> {
        Ok(self.value("a release's trials", StateKey::Trials(release)).await?.unwrap_or_default())
    }

    /// What a farm's owner decided about upgrades.
    pub async fn farm_policy(&self, farm: FarmId) -> Result<Option<FarmPolicy>, GridError> {
        match self.record(RecordId::farm_policy(&farm)).await? {
            None => Ok(None),
            Some(Record { body: Body::FarmPolicy(policy), .. }) => Ok(Some(policy)),
            Some(_) => Err(self.other_record(format!("the policy of farm {farm}"))),
        }
    }

    pub async fn farm_named(&self, name: &Name) -> Result<Option<(FarmId, FarmBody)>, GridError> {
        let id: Option<FarmId> = self.value("a farm's name", StateKey::FarmName(name.clone())).await?;
        let Some(id) = id else { return Ok(None) };
        Ok(self.farm(id).await?.map(|farm| (id, farm)))
    }

    pub async fn node_named(&self, farm: &FarmId, name: &Name) -> Result<Option<NodeId>, GridError> {
        self.value("a node's name", StateKey::NodeName(farm.0, name.clone())).await
    }

    pub async fn nodes(&self, ids: &[NodeId]) -> Result<Vec<Node>, GridError> {
        let mut nodes = Vec::with_capacity(ids.len());
        // All that is said of one node is of one header.
        for some in ids.chunks(limits::KEYS_PER_GET / KEYS_OF_NODE) {
            nodes.extend(self.some_nodes(some).await?);
        }
        Ok(nodes)
    }

    async fn some_nodes(&self, ids: &[NodeId]) -> Result<Vec<Node>, GridError> {
        let keys: Vec<StateKey> = ids
            .iter()
            .flat_map(|id| {
                [
                    StateKey::Record(RecordId::node(id)),
                    StateKey::Capacity(*id),
                    StateKey::NodeContracts(*id),
                    StateKey::NodeTrust(*id),
                    StateKey::NodeReservations(*id),
                    StateKey::Record(RecordId::drain(id)),
                ]
            })
            .collect();
        let proved = self.get(&keys).await?;
        let mut nodes = Vec::with_capacity(ids.len());
        for (id, values) in ids.iter().zip(proved.values.chunks_exact(KEYS_OF_NODE)) {
            let Some(record) = self.decode::<Record>("a node", values[0].as_deref())? else { continue };
            let Body::Node(body) = &record.body else {
                return Err(self.other_record(format!("node {id}")));
            };
            let contracts: Option<NodeContracts> = self.decode("a node's contracts", values[2].as_deref())?;
            let reserved: Option<NodeReservations> =
                self.decode("a node's reservations", values[4].as_deref())?;
            let draining = match self.decode::<Record>("a drain", values[5].as_deref())?.map(|r| r.body) {
                None => None,
                Some(Body::Drain(drain)) => drain.draining,
                Some(_) => return Err(self.other_record(format!("the drain of node {id}"))),
            };
            nodes.push(Node {
                draining,
                id: *id,
                body: body.clone(),
                capacity: self.decode("a node's capacity", values[1].as_deref())?.unwrap_or_default(),
                contracts: contracts.unwrap_or_default().contracts,
                reserved: reserved.unwrap_or_default().contracts,
                trust: self.decode("the trust in a node", values[3].as_deref())?,
                record,
            });
        }
        Ok(nodes)
    }

    /// Which of some nodes their farms empty, in the order of the question.
    pub async fn drained(&self, ids: &[NodeId]) -> Result<Vec<bool>, GridError> {
        let keys: Vec<StateKey> = ids.iter().map(|id| StateKey::Record(RecordId::drain(id))).collect();
        let mut drained = Vec::with_capacity(ids.len());
        for (id, value) in ids.iter().zip(self.get(&keys).await?.values) {
            drained.push(match self.decode::<Record>("a drain", value.as_deref())?.map(|r| r.body) {
                None => false,
                Some(Body::Drain(drain)) => drain.draining.is_some(),
                Some(_) => return Err(self.other_record(format!("the drain of node {id}"))),
            });
        }
        Ok(drained)
    }

    pub async fn node(&self, id: NodeId) -> Result<Option<Node>, GridError> {
        Ok(self.nodes(&[id]).await?.pop())
    }

    /// Which of some ports of some nodes are given out already, in the order of the question.
    pub async fn ports_taken(&self, ports: &[(NodeId, PublishedPort)]) -> Result<Vec<bool>, GridError> {
        let keys: Vec<StateKey> = ports.iter().map(|(node, port)| StateKey::Port(*node, *port)).collect();
        Ok(self.get(&keys).await?.values.iter().map(Option::is_some).collect())
    }

    pub async fn contracts(&self, ids: &[ContractId]) -> Result<Vec<Contract>, GridError> {
        let keys: Vec<StateKey> = ids
            .iter()
            .flat_map(|id| [StateKey::Record(RecordId::contract(id)), StateKey::Escrow(*id)])
            .collect();
        let proved = self.get(&keys).await?;
        let mut contracts = Vec::with_capacity(ids.len());
        for (id, values) in ids.iter().zip(proved.values.chunks_exact(2)) {
            let Some(record) = self.decode::<Record>("a contract", values[0].as_deref())? else { continue };
            let body = match &record.body {
                Body::Contract(body) if body.signed.terms.id() == *id => (**body).clone(),
                _ => return Err(self.other_record(format!("contract {id}"))),
            };
            let escrow = self.decode("an escrow", values[1].as_deref())?.unwrap_or_default();
            contracts.push(Contract { id: *id, record, body, escrow });
        }
        Ok(contracts)
    }

    pub async fn contract(&self, id: ContractId) -> Result<Option<Contract>, GridError> {
        Ok(self.contracts(&[id]).await?.pop())
    }

    /// The running contract that a user calls by this name.
    pub async fn contract_named(&self, user: BotId, name: &Name) -> Result<Option<ContractId>, GridError> {
        self.value("a contract's name", StateKey::ContractName(user, name.clone())).await
    }

    /// Every version of a thing, oldest first, each in the log and naming the one before it; and the header
    /// that shows it.
    pub async fn history(&self, id: RecordId) -> Result<(Tip, Vec<Record>), GridError> {
        let mut records: Vec<Record> = Vec::new();
        loop {
            let next = records.len() as u64 + 1;
            let last = records.last().map(Record::hash);
            let check = |tip: &Tip, proved: &Vec<ProvedRecord>| {
                let page: Vec<Record> = verify_history(tip, &id, proved)?.into_iter().cloned().collect();
                match page.first() {
                    Some(first) if first.version != next || first.prev != last => Err(LightError::Record {
                        height: tip.height(),
                        index: 0,
                        id,
                        reason: format!("version {} does not follow version {}", first.version, next - 1),
                    }),
                    _ => Ok((*tip, page)),
                }
            };
            let page = limits::RECORDS_PER_PAGE as u32;
            let ask = |client: croft_transport::Client| async move { client.history(id, next, page).await };
            let (tip, page) = self.verified.prove(ask, check).await.map_err(|e| self.error(e))?;
            if page.is_empty() {
                return Ok((tip, records));
            }
            records.extend(page);
            // The latest is the end: one proof instead of one more page.
            let latest = self.record(id).await?.map(|r| r.hash());
            if latest == records.last().map(Record::hash) {
                return Ok((tip, records));
            }
        }
    }

    // What a replica says without proof: good for finding, never for believing.

    /// Ids of what a search finds; the replica may hide some. At most two thousand.
    pub async fn find_unproved(&self, query: &Query) -> Result<Vec<RecordId>, GridError> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = limits::RECORDS_PER_PAGE as u32;
            let asked = self.verified.unproved().query(query, after.as_ref(), page).await;
            let Page { records, next, .. } = asked.map_err(|e| self.error(e))?;
            found.extend(records.into_iter().map(|r| r.id));
            if next.is_none() || next == after || found.len() >= FOUND_LIMIT {
                found.truncate(FOUND_LIMIT);
                return Ok(found);
            }
            after = next;
        }
    }

    /// Who is connected to one of the replicas that we are connected to.
    pub async fn presence_unproved(&self, keys: &[PublicKey]) -> Result<Vec<bool>, GridError> {
        let mut present = Vec::with_capacity(keys.len());
        for some in keys.chunks(limits::KEYS_PER_GET) {
            let said = self.verified.unproved().presence(some).await;
            present.extend(said.map_err(|e| self.error(e))?);
        }
        Ok(present)
    }

    /// Machines of a farm that replicas saw refused lately.
    pub async fn refused_unproved(&self, farm: FarmId) -> Vec<RefusedNode> {
        self.verified.unproved().refused(farm).await
    }

    /// The genesis; whoever relies on it compares its chain id with the pinned one.
    pub async fn genesis_unproved(&self) -> Result<Genesis, GridError> {
        self.verified.unproved().genesis().await.map_err(|e| self.error(e))
    }

    /// Events that tell when to look again.
    pub async fn follow(&self, concerning: Vec<Concern>) -> Result<Following, GridError> {
        self.verified.follow(concerning).await.map_err(|e| self.error(e))
    }

    // Writing.

    /// Signs a command and brings it to the ledger; returns once it is proved to be final.
    pub async fn submit(&self, key: &SecretKey, command: &Command) -> Result<Final, GridError> {
        self.verified.submit(key, command, EXPIRES_AFTER_BLOCKS).await.map_err(|e| self.error(e))
    }
}

/// What outlives a run, in the home. A home that can't be written is no reason not to read.
#[derive(Debug)]
struct InHome {
    home: Home,
    grid: Name,
    chain: ChainId,
}

impl Keep for InHome {
    fn now_ms(&self) -> Option<u64> {
        Some(now_ms())
    }

    fn trail(&self) -> Option<Vec<u8>> {
        self.home.tip(&self.grid).unwrap_or_else(|error| {
            tracing::warn!(%error, "what an earlier run saw of the grid can't be read");
            None
        })
    }

    fn keep_trail(&self, height: u64, bytes: &[u8]) {
        let is_newer = |kept: &[u8]| Trail::height_of(&self.chain, kept).is_none_or(|kept| kept < height);
        if let Err(error) = self.home.keep_tip(&self.grid, bytes, is_newer) {
            tracing::warn!(%error, "the newest header can't be kept");
        }
    }

    fn evidence(&self) -> Option<Vec<u8>> {
        self.home.contradiction(&self.grid).unwrap_or_else(|error| {
            tracing::warn!(%error, "what an earlier run kept of the grid can't be read");
            None
        })
    }

    fn keep_evidence(&self, bytes: &[u8]) {
        if let Err(error) = self.home.keep_contradiction(&self.grid, bytes) {
            tracing::error!(%error, "the proof that the grid's validators broke their word can't be kept");
        }
    }

    fn evidence_place(&self) -> String {
        self.home.contradiction_path(&self.grid).display().to_string()
    }
}

/// Milliseconds since 1970, UTC, by this machine's clock.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
