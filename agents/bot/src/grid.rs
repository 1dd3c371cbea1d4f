//! A grid as this bot sees it: everything that is acted on has been proved.
//!
//! ```text
//!   replica ──answer with proofs──> light client ──> what the ledger says
//!      ^                               │ the newest header goes into the home
//!      └── set aside when it lied ─────┘
//! ```
//! It must never hand out an answer of a replica that was not verified, except where its name says
//! `unproved`; and it must never go back behind the newest header that any run of this home has seen.

mod search;

use std::time::{Duration, SystemTime};

use borsh::BorshDeserialize;
use croft_light::{Fault, LightClient, LightError, Tip, verify_history, verify_value};
use croft_protocol::api::{Concern, Failure as ReplicaFailure, Page, Query, Status};
use croft_protocol::boot::GridPin;
use croft_protocol::contract::PublishedPort;
use croft_protocol::record::{BotBody, FarmBody, FarmId, NodeBody};
use croft_protocol::state::{Account, NodeContracts};
use croft_protocol::{
    Body, BotId, Command, CommandBody, ContractBody, ContractId, DecodeError, Escrow, Name, NodeCapacity,
    NodeId, PublicKey, Record, RecordId, Rejection, SecretKey, SignedCommand, SignedHeader, StateKey, limits,
};
use croft_transport::{Client, ClientError, Follow};
use tokio::sync::Mutex;

pub use search::{FoundPage, FoundThing};

use crate::exit::{Exit, Failure};
use crate::home::{Home, HomeError};

/// A command is void after so many blocks: some minutes of a busy grid, hours of an idle one.
const EXPIRES_AFTER_BLOCKS: u64 = 600;
/// How often a command is signed again because another process of the same bot was faster.
const SEQUENCE_ATTEMPTS: usize = 5;
/// How long to look for a command whose replica went away before it said what became of it.
const OUTCOME_MS: u64 = 20_000;
/// Records of one search that are looked at.
const FOUND_LIMIT: usize = 2048;

/// Why the grid can't be asked, or says no.
#[derive(Debug, thiserror::Error)]
pub enum GridError {
    #[error("grid '{grid}'")]
    Client { grid: Name, source: Box<ClientError> },
    #[error("grid '{grid}': the answer of replica {} is not believed", replica.short())]
    NotBelieved { grid: Name, replica: PublicKey, source: Box<LightError> },
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
            Self::Client { source, .. } => match &**source {
                ClientError::Rejected { rejection, .. } => Some(rejection),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether somebody is not connected to any replica.
    #[must_use]
    pub fn is_not_listening(&self) -> bool {
        matches!(self, Self::Client { source, .. }
            if matches!(&**source, ClientError::Failed { failure: ReplicaFailure::NotListening { .. }, .. }))
    }

    /// Whether a peer was called through a relay and did not prove itself.
    #[must_use]
    pub fn is_peers(&self) -> bool {
        matches!(self, Self::Client { source, .. } if matches!(&**source, ClientError::Peer { .. }))
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Client { source, .. } => match &**source {
                ClientError::Rejected { .. } => Exit::Refused,
                ClientError::Failed { failure, .. } => match failure {
                    ReplicaFailure::NotFound { .. } => Exit::NotFound,
                    ReplicaFailure::NotListening { .. } | ReplicaFailure::Busy { .. } => Exit::Unreachable,
                    ReplicaFailure::Quota { .. } => Exit::Refused,
                    _ => Exit::Failed,
                },
                ClientError::Bind(_) | ClientError::BlobTampered { .. } => Exit::Failed,
                ClientError::NoReplica
                | ClientError::Unavailable { .. }
                | ClientError::OutcomeUnknown { .. }
                | ClientError::StreamEnded { .. }
                | ClientError::Peer { .. } => Exit::Unreachable,
            },
            Self::OutcomeUnknown { .. } => Exit::Unreachable,
            _ => Exit::Failed,
        }
    }
}

impl From<GridError> for Failure {
    fn from(error: GridError) -> Self {
        let exit = error.exit();
        let remedy = matches!(&error, GridError::Client { source, .. }
            if matches!(**source, ClientError::Unavailable { .. }))
        .then_some(
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
}

/// A command that is on the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Final {
    pub sequence: u64,
    /// `None` when the replica went away before it answered, and the ledger only shows that the author's
    /// number was used: whoever needs to be sure looks at what the command should have changed.
    pub height: Option<u64>,
}

/// Proved values and the header that they are of.
#[derive(Debug, Clone)]
pub struct Proved {
    pub tip: Tip,
    pub values: Vec<Option<Vec<u8>>>,
}

pub struct Grid {
    pin: GridPin,
    home: Home,
    client: Client,
    light: Mutex<LightClient>,
}

impl Grid {
    /// Gets ready to ask; nothing is sent yet.
    pub fn open(home: &Home, pin: GridPin, me: &SecretKey) -> Result<Self, GridError> {
        let mut light = LightClient::new(pin.chain, pin.validators);
        if let Some(bytes) = home.tip(&pin.name)? {
            let known = decode_header(&bytes).map_err(|source| GridError::Malformed {
                grid: pin.name.clone(),
                what: "the kept tip",
                source,
            })?;
            // Its validators were trusted when it was kept, perhaps through a handover.
            light = LightClient::new(pin.chain, known.header.validators);
            light.accept_tip(&known, None).map_err(|source| GridError::NotBelieved {
                grid: pin.name.clone(),
                replica: PublicKey([0; 32]),
                source: Box::new(source),
            })?;
        }
        let client = Client::new(me, pin.replicas.clone())
            .map_err(|e| GridError::Client { grid: pin.name.clone(), source: Box::new(e) })?;
        Ok(Self { pin, home: home.clone(), client, light: Mutex::new(light) })
    }

    #[must_use]
    pub fn pin(&self) -> &GridPin {
        &self.pin
    }

    #[must_use]
    pub fn name(&self) -> &Name {
        &self.pin.name
    }

    /// For what is no read of the ledger: blobs, relay, presence.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Says good-bye, so that the replica need not find out by silence.
    pub async fn close(&self) {
        self.client.close().await;
    }

    pub(crate) fn client_error(&self, source: ClientError) -> GridError {
        GridError::Client { grid: self.pin.name.clone(), source: Box::new(source) }
    }

    // Reading.

    /// The newest final header.
    pub async fn tip(&self) -> Result<Tip, GridError> {
        let mut attempt = Attempts::new(self);
        loop {
            let answer = self.client.tip().await.map_err(|e| self.client_error(e))?;
            match self.believe(&answer.value).await {
                Ok(tip) => return Ok(tip),
                Err(error) => attempt.failed(answer.replica, error).await?,
            }
        }
    }

    /// Who certified the newest header that is known.
    pub async fn validators(&self) -> Vec<croft_protocol::Validator> {
        let light = self.light.lock().await;
        light.newest().map(|n| n.validators.validators.clone()).unwrap_or_default()
    }

    /// The latest values under some keys. All of one call's values are of one header, as long as they are at
    /// most [`limits::KEYS_PER_GET`]; beyond that the header is the last one.
    pub async fn get(&self, keys: &[StateKey]) -> Result<Proved, GridError> {
        let mut values = Vec::with_capacity(keys.len());
        let mut tip = None;
        for some in keys.chunks(limits::KEYS_PER_GET) {
            let proved = self.get_some(some).await?;
            values.extend(proved.values);
            tip = Some(proved.tip);
        }
        let tip = match tip {
            Some(tip) => tip,
            None => self.tip().await?,
        };
        Ok(Proved { tip, values })
    }

    async fn get_some(&self, keys: &[StateKey]) -> Result<Proved, GridError> {
        let mut attempt = Attempts::new(self);
        loop {
            let answer = self.client.get(keys.to_vec()).await.map_err(|e| self.client_error(e))?;
            let (header, proved) = answer.value;
            let verified = match self.believe(&header).await {
                Ok(tip) => keys
                    .iter()
                    .zip(&proved)
                    .map(|(key, value)| verify_value(&tip, key, value))
                    .collect::<Result<Vec<_>, _>>()
                    .map(|values| Proved { tip, values }),
                Err(error) => Err(error),
            };
            match verified {
                Ok(proved) => return Ok(proved),
                Err(error) => attempt.failed(answer.replica, error).await?,
            }
        }
    }

    async fn believe(&self, header: &SignedHeader) -> Result<Tip, LightError> {
        let mut light = self.light.lock().await;
        let tip = light.accept_tip(header, Some(now_ms()))?;
        drop(light);
        let bytes = croft_protocol::encode(header);
        let height = header.header.height;
        // A home that can't be written is no reason not to read; the next run starts where this one did.
        let kept = self.home.keep_tip(&self.pin.name, &bytes, |known| {
            decode_header(known).is_ok_and(|known| known.header.height < height)
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "the newest header can't be kept");
        }
        Ok(tip)
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

    pub async fn farm_named(&self, name: &Name) -> Result<Option<(FarmId, FarmBody)>, GridError> {
        let id: Option<FarmId> = self.value("a farm's name", StateKey::FarmName(name.clone())).await?;
        let Some(id) = id else { return Ok(None) };
        Ok(self.farm(id).await?.map(|farm| (id, farm)))
    }

    pub async fn node_named(&self, farm: &FarmId, name: &Name) -> Result<Option<NodeId>, GridError> {
        self.value("a node's name", StateKey::NodeName(farm.0, name.clone())).await
    }

    pub async fn nodes(&self, ids: &[NodeId]) -> Result<Vec<Node>, GridError> {
        let keys: Vec<StateKey> = ids
            .iter()
            .flat_map(|id| {
                [StateKey::Record(RecordId::node(id)), StateKey::Capacity(*id), StateKey::NodeContracts(*id)]
            })
            .collect();
        let proved = self.get(&keys).await?;
        let mut nodes = Vec::with_capacity(ids.len());
        for (id, values) in ids.iter().zip(proved.values.chunks_exact(3)) {
            let Some(record) = self.decode::<Record>("a node", values[0].as_deref())? else { continue };
            let Body::Node(body) = &record.body else {
                return Err(self.other_record(format!("node {id}")));
            };
            let contracts: Option<NodeContracts> = self.decode("a node's contracts", values[2].as_deref())?;
            nodes.push(Node {
                id: *id,
                body: body.clone(),
                capacity: self.decode("a node's capacity", values[1].as_deref())?.unwrap_or_default(),
                contracts: contracts.unwrap_or_default().contracts,
                record,
            });
        }
        Ok(nodes)
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
        let mut attempt = Attempts::new(self);
        let mut records: Vec<Record> = Vec::new();
        loop {
            let next = records.len() as u64 + 1;
            let page = limits::RECORDS_PER_PAGE as u32;
            let answer = self.client.history(id, next, page).await.map_err(|e| self.client_error(e))?;
            let (header, proved) = answer.value;
            let verified = match self.believe(&header).await {
                Ok(tip) => verify_history(&tip, &id, &proved).map(|page| {
                    let follows = page.first().is_none_or(|first| {
                        first.version == next && first.prev == records.last().map(Record::hash)
                    });
                    (tip, follows, page.into_iter().cloned().collect::<Vec<_>>())
                }),
                Err(error) => Err(error),
            };
            match verified {
                Ok((tip, true, page)) if page.is_empty() => return Ok((tip, records)),
                Ok((tip, true, page)) => {
                    records.extend(page);
                    // The latest is the end: one proof instead of one more page.
                    let latest = self.record(id).await?.map(|r| r.hash());
                    if latest == records.last().map(Record::hash) {
                        return Ok((tip, records));
                    }
                }
                Ok((tip, false, page)) => {
                    let first = &page[0];
                    let error = LightError::Record {
                        height: tip.height(),
                        index: 0,
                        id,
                        reason: format!(
                            "version {} does not follow version {}",
                            first.version,
                            records.len()
                        ),
                    };
                    attempt.failed(answer.replica, error).await?;
                }
                Err(error) => attempt.failed(answer.replica, error).await?,
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
            let answer = self
                .client
                .query(query.clone(), after.clone(), page)
                .await
                .map_err(|e| self.client_error(e))?;
            let Page { records, next, .. } = answer.value;
            found.extend(records.into_iter().map(|r| r.id));
            if next.is_none() || next == after || found.len() >= FOUND_LIMIT {
                found.truncate(FOUND_LIMIT);
                return Ok(found);
            }
            after = next;
        }
    }

    /// Who is connected to the replica that we are connected to.
    pub async fn presence_unproved(&self, keys: &[PublicKey]) -> Result<Vec<bool>, GridError> {
        let mut present = Vec::with_capacity(keys.len());
        for some in keys.chunks(limits::KEYS_PER_GET) {
            let answer = self.client.presence(some.to_vec()).await.map_err(|e| self.client_error(e))?;
            present.extend(answer.value);
        }
        Ok(present)
    }

    pub async fn status_unproved(&self) -> Result<Status, GridError> {
        Ok(self.client.status().await.map_err(|e| self.client_error(e))?.value)
    }

    /// Events that tell when to look again.
    pub async fn follow(&self, concerning: Vec<Concern>) -> Result<Follow, GridError> {
        self.client.follow(concerning).await.map_err(|e| self.client_error(e))
    }

    // Writing.

    /// Signs a command and brings it to the ledger; returns once it is final.
    pub async fn submit(&self, key: &SecretKey, command: &Command) -> Result<Final, GridError> {
        let author = key.public();
        let mut attempts = 0;
        loop {
            let proved = self.get(&[StateKey::Account(author)]).await?;
            let account: Account =
                self.decode("an account", proved.values[0].as_deref())?.unwrap_or_default();
            let body = CommandBody {
                chain: self.pin.chain,
                author,
                sequence: account.next_sequence,
                expires_height: proved.tip.height() + EXPIRES_AFTER_BLOCKS,
                command: command.clone(),
            };
            let sequence = body.sequence;
            match self.client.submit(SignedCommand::sign(body, key)).await {
                Ok(answer) => return Ok(Final { sequence, height: Some(answer.value.height) }),
                Err(ClientError::Rejected { rejection, .. })
                    if matches!(*rejection, Rejection::Sequence { .. }) && attempts < SEQUENCE_ATTEMPTS =>
                {
                    attempts += 1;
                }
                Err(ClientError::OutcomeUnknown { .. }) => {
                    self.wait_for_sequence(author, sequence).await?;
                    return Ok(Final { sequence, height: None });
                }
                Err(error) => return Err(self.client_error(error)),
            }
        }
    }

    /// Waits until a sequence number is used.
    async fn wait_for_sequence(&self, author: PublicKey, sequence: u64) -> Result<(), GridError> {
        let look = async {
            loop {
                // The client paces its own attempts to reconnect.
                if let Ok(account) = self.account(author).await
                    && account.next_sequence > sequence
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::time::timeout(Duration::from_millis(OUTCOME_MS), look)
            .await
            .map_err(|_| GridError::OutcomeUnknown { grid: self.pin.name.clone() })
    }
}

/// Gives every replica a chance, and honest latecomers a second one.
struct Attempts<'a> {
    grid: &'a Grid,
    left: usize,
}

impl<'a> Attempts<'a> {
    fn new(grid: &'a Grid) -> Self {
        Self { grid, left: grid.pin.replicas.len() + 1 }
    }

    async fn failed(&mut self, replica: PublicKey, error: LightError) -> Result<(), GridError> {
        let fault = error.fault();
        self.left -= 1;
        if fault == Fault::Lie && self.grid.pin.replicas.len() > 1 {
            self.grid.client.report_lie(&replica, &error.to_string()).await;
        }
        if self.left > 0 && matches!(fault, Fault::Lie | Fault::Lag) {
            return Ok(());
        }
        Err(GridError::NotBelieved { grid: self.grid.pin.name.clone(), replica, source: Box::new(error) })
    }
}

fn decode_header(bytes: &[u8]) -> Result<SignedHeader, DecodeError> {
    croft_protocol::decode("the kept tip", bytes, limits::RESPONSE_BYTES)
}

/// Milliseconds since 1970, UTC, by this machine's clock.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
