//! What a replica answers, over QUIC.
//!
//! One bidirectional stream per request: the client writes one frame and finishes; the replica writes one
//! frame, or for [`Request::Follow`] one per event until either side ends the stream. A frame is its
//! length as 4 bytes, little-endian, and that many bytes of borsh. [`Request::Relay`] turns the stream into
//! a pipe after the answer.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::Serialize;

use crate::attestation::{Credential, Introduction, SignedVoucher};
use crate::header::{Genesis, SignedHeader};
use crate::record::{FarmId, Record, RecordId};
use crate::{BotId, Hash, NodeId, PublicKey, Rejection, SignedCommand, StateKey};

pub use crate::query::{
    BotQuery, ContractQuery, Cursor, FarmQuery, InvalidQuery, NodeQuery, Phase, Phases, Query,
};

/// Version of this protocol, in the ALPN of the connection.
pub const ALPN: &[u8] = b"croft/1";

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Request {
    /// The grid's genesis: -> [`Response::Genesis`].
    Genesis,
    /// The newest final header: -> [`Response::Header`].
    Tip,
    /// The final header at a height: -> [`Response::Header`].
    Header { height: u64 },
    /// Waits until the command is final or rejected: -> [`Response::Final`] or [`Response::Rejected`].
    Submit(Box<SignedCommand>),
    /// Latest values with proofs against the tip: -> [`Response::Values`].
    Get { keys: Vec<StateKey> },
    /// Records by their position in the log, with proofs against the tip: -> [`Response::Records`].
    Range { first: u64, count: u32 },
    /// Every version of a thing, oldest first, with proofs against the tip: -> [`Response::Records`].
    History { id: RecordId, first_version: u64, count: u32 },
    /// Search by index. `prove` asks for each found record's proof: -> [`Response::FoundProved`], else
    /// -> [`Response::Found`]. No proof shows that nothing was left out.
    Query { query: Query, after: Option<Cursor>, count: u32, prove: bool },
    /// Final headers from now on, with the records that concern some things: stream of [`Event`].
    Follow { concerning: Vec<Concern> },
    /// Which of these blobs the replica has: -> [`Response::Blobs`].
    HasBlobs { hashes: Vec<Hash> },
    /// -> [`Response::Blob`].
    GetBlob { hash: Hash },
    /// -> [`Response::BlobStored`].
    PutBlob { bytes: Vec<u8> },
    /// From now on streams for the caller's key may come in over this connection: -> [`Response::Listening`].
    Listen,
    /// A pipe to whoever listens under this key: -> [`Response::Relayed`], then raw bytes.
    Relay { to: PublicKey },
    /// Which of these are connected now: -> [`Response::Presence`].
    Presence { keys: Vec<PublicKey> },
    /// Height, validators, peers, queue: -> [`Response::Status`].
    Status,
    /// Only from a replica that this one knows: -> [`Response::Replicating`], then the messages of the caller, one
    /// frame each, until it ends the stream. Bulky ones have a stream of their own, so that votes never wait.
    Replicate { bulk: bool },
    /// The newest final header that these validators certified and that names others for the next: ->
    /// [`Response::Header`], or [`Failure::NotFound`] when they are the present ones or never were any.
    Handover { validators: Hash },
    /// A view of the newest height, to be copied: -> [`Response::SnapshotOpened`]. Only for validators and those
    /// whom the replica's owner names; it ends when it is not used.
    SnapshotOpen,
    /// All of its values except records, page by page: -> [`Response::SnapshotValues`].
    SnapshotValues { id: u64, after: Option<StateKey> },
    /// Records from a position on, as the log of `size` records has them: -> [`Response::SnapshotRecords`]. For
    /// the same askers; needs no open view.
    SnapshotRecords { first: u64, size: u64 },
    /// A node asks this replica to vouch for its TPM: -> [`Response::Credential`]; the node writes the secret in it as
    /// one frame of bytes on the same stream: -> [`Response::Vouched`].
    Vouch(Box<Introduction>),
    /// A sealed message for a bot that takes no calls now: -> [`Response::MailLeft`]. Only bots may leave any, for
    /// bots; leaving the same again changes nothing.
    LeaveMail { to: BotId, sealed: Vec<u8> },
    /// The caller's own mail with numbers above this one, oldest first: -> [`Response::Mail`].
    FetchMail { after: u64 },
    /// The caller has these of its messages, by the hash of what is sealed: -> [`Response::MailDropped`].
    DropMail { mail: Vec<Hash> },
    /// As [`Request::Listen`], for calls of one kind; a connection takes one kind of calls.
    ListenFor { service: Service },
    /// As [`Request::Relay`], to whoever listens for this kind of calls.
    RelayTo { to: PublicKey, service: Service },
    /// Machines of a farm that this replica saw refused lately: -> [`Response::Refused`]. Nothing proves it.
    Refused { farm: FarmId },
}

/// What a call is about, so that several programs of one bot can each take theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Service {
    /// Questions to nodes and farmers' bots: what [`Request::Listen`] and [`Request::Relay`] mean.
    Calls,
    /// Messages from bot to bot.
    Messages,
}

/// A message in a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Mail {
    /// Grows with each message of its receiver.
    pub number: u64,
    pub sealed: Vec<u8>,
}

impl Mail {
    /// What [`Request::DropMail`] calls it.
    #[must_use]
    pub fn id(&self) -> Hash {
        Hash::of_bytes(&self.sealed)
    }
}

/// What the replica writes on a stream that it opens to a listener, before the raw bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct IncomingRelay {
    /// Who asked, by the key of its own connection. The TLS inside proves it again.
    pub from: PublicKey,
}

/// What a follower wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Concern {
    Record(RecordId),
    /// Contracts addressed to this node.
    Node(NodeId),
    /// Contracts and transfers of this bot.
    Bot(BotId),
    /// When these come and go.
    Presence(PublicKey),
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Event {
    /// A final block and what of it concerns the follower.
    Block {
        header: Box<SignedHeader>,
        records: Vec<Record>,
    },
    Presence {
        key: PublicKey,
        connected: bool,
    },
    /// The stream can't begin or can't go on; it is the last event.
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Response {
    Genesis(Box<Genesis>),
    Header(Box<SignedHeader>),
    /// The command is final: its block and the hashes of the records that it made.
    Final {
        height: u64,
        records: Vec<Hash>,
    },
    Rejected(Rejection),
    Values {
        tip: Box<SignedHeader>,
        values: Vec<ProvedValue>,
    },
    Records {
        tip: Box<SignedHeader>,
        records: Vec<ProvedRecord>,
    },
    Found(Page),
    FoundProved(Box<ProvedPage>),
    /// In the order of the question.
    Blobs(Vec<bool>),
    Blob(Vec<u8>),
    BlobStored {
        hash: Hash,
    },
    Listening,
    Relayed,
    Presence(Vec<bool>),
    Status(Box<Status>),
    Replicating,
    SnapshotOpened {
        tip: Box<SignedHeader>,
        id: u64,
        /// How many values there are beside the records.
        values: u64,
    },
    SnapshotValues {
        /// In the order of their encoded keys, proved against the tip of the view.
        values: Vec<(StateKey, ProvedValue)>,
        more: bool,
    },
    SnapshotRecords {
        records: Vec<Record>,
        /// That the log up to the last of them is how the log that was asked for begins (RFC 6962, section
        /// 2.1.2); empty when it is all of it.
        proof: Vec<u8>,
    },
    /// The request can't be answered.
    Failed(Failure),
    /// To be opened by the node's TPM.
    Credential(Box<Credential>),
    Vouched(Box<SignedVoucher>),
    /// It is kept until it is fetched and dropped, or until this time: milliseconds since 1970, UTC.
    MailLeft {
        expires_ms: u64,
    },
    Mail {
        mail: Vec<Mail>,
        /// Whether there is more after the last of these.
        more: bool,
    },
    /// So many of them were here.
    MailDropped {
        count: u32,
    },
    /// At most [`crate::limits::REFUSED_PER_FARM`], each node once, in the order of their ids.
    Refused(Vec<RefusedNode>),
}

/// A machine whose registration a replica saw refused, and that is not registered since, as far as that replica knows.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct RefusedNode {
    pub node: NodeId,
    /// As it calls itself.
    pub name: crate::Name,
    /// The ledger's words, with what to do.
    pub reason: String,
    /// Block time of the last refusal: milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// How often, since the replica remembers.
    pub count: u32,
}

/// A value of the state map, or its absence, as of the tip that comes with it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ProvedValue {
    pub value: Option<Vec<u8>>,
    /// Encoded proof; `light` knows its form.
    pub proof: Vec<u8>,
}

/// A record of the log with its position.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ProvedRecord {
    pub index: u64,
    pub record: Record,
    /// Encoded RFC 6962 inclusion proof; `light` knows its form.
    pub proof: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Page {
    /// Height that the answer is of.
    pub height: u64,
    pub records: Vec<Record>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// A page with proofs against its tip.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ProvedPage {
    pub tip: SignedHeader,
    pub things: Vec<ProvedThing>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// What a search found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ProvedThing {
    pub id: RecordId,
    /// Under [`StateKey::Record`].
    pub record: ProvedValue,
    /// Of a node, under [`StateKey::Capacity`].
    pub capacity: Option<ProvedValue>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Status {
    pub name: crate::Name,
    pub chain: crate::ChainId,
    pub height: u64,
    pub time_ms: u64,
    pub records: u64,
    pub validators: crate::ValidatorSet,
    pub connections: u32,
    pub waiting: u32,
    pub blob_bytes: u64,
    /// How far back it can answer.
    pub kept: Kept,
    /// Of a replica that decides with others.
    pub agreement: Option<Agreement>,
}

/// How a replica is that decides with others.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Agreement {
    /// Whether it is among the validators of the next block.
    pub validator: bool,
    /// Why it signs nothing, if so.
    pub not_signing: Option<String>,
    /// Why it can't store blocks, if so.
    pub trouble: Option<String>,
    /// Height and round that are being decided; none while there is nothing to decide.
    pub deciding: Option<(u64, u32)>,
    /// The other replicas that it knows of.
    pub peers: Vec<PeerStatus>,
    /// Proofs of misbehaviour that it keeps.
    pub evidence: u32,
}

/// Another replica as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct PeerStatus {
    pub key: PublicKey,
    pub address: String,
    pub connected: bool,
    /// As it said last.
    pub height: u64,
}

/// From which heights on a replica has what. Records it has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Kept {
    /// Every header from here on; of those before only some.
    pub headers: u64,
    /// Commands of blocks, for replicas that were away; `None` while it has none.
    pub commands: Option<u64>,
    /// Proofs of values.
    pub proofs: u64,
    /// Rows of outdated nodes of the state map that it still has.
    pub stale_rows: u64,
}

/// Why a request can't be answered.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    #[error("the request is malformed: {reason}")]
    Malformed { reason: String },
    #[error("the request asks for {got} {what}, at most {limit} are allowed")]
    TooMuch { what: String, got: u64, limit: u64 },
    #[error("there is no {what} here")]
    NotFound { what: String },
    #[error("{key} is not connected to this replica: is the machine on and online?")]
    NotListening { key: PublicKey },
    #[error("{what} may not do this: {remedy}")]
    NotAllowed { what: String, remedy: String },
    #[error("quota: {what}; {remedy}")]
    Quota { what: String, remedy: String },
    #[error("the replica can't write: {reason}; its owner must look after it")]
    Storage { reason: String },
    #[error("the replica is busy: {what}; try again in a moment")]
    Busy { what: String },
    #[error("the page to go on with is no good: {reason}; search again from the start")]
    Cursor { reason: String },
    #[error(transparent)]
    Key(crate::KeyRefusal),
}
