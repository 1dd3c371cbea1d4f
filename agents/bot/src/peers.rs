//! Talking to nodes and farmers' bots: TLS through a replica that can't read it.

use std::time::Duration;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::market::SignedMessage;
use croft_protocol::peer::{Explanation, FarmRequest, FarmResponse, LogLine, NodeRequest, NodeResponse};
use croft_protocol::{BotId, ContractId, Name, NodeId, limits};
use croft_transport::{FrameError, PeerStream, frame};
use tokio::io::AsyncWriteExt as _;

use crate::exit::{Exit, Failure};
use crate::grid::{Grid, GridError};
use crate::terminal::printable;

/// An answer that needs no work on the other side but looking something up.
const ANSWER_MS: u64 = 20_000;
/// A caller hangs up as soon as it has its answer.
const HANG_UP_MS: u64 = 5_000;
/// Output that is followed may be silent for a month.
const FOLLOW_MS: u64 = 30 * 86_400_000;

/// Why a peer did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerProblem {
    #[error("node '{name}' is not connected: is the machine on and online? Its farmer knows")]
    NodeOffline { name: Name },
    #[error(
        "node '{name}' does not answer: it has just gone offline, or its replica is another one; try again in a moment"
    )]
    NodeSilent { name: Name, source: GridError },
    #[error("the farmer's bot {} is not connected: its owner must run 'croft farm serve'", farmer.short())]
    FarmerOffline { farmer: BotId },
    #[error("the farmer's bot {} does not answer: try again in a moment", farmer.short())]
    FarmerSilent { farmer: BotId, source: GridError },
    #[error(transparent)]
    Grid(#[from] GridError),
    #[error("the conversation with {whom} broke off")]
    Frame { whom: String, source: FrameError },
    #[error("{whom} refuses: {reason}")]
    Refused { whom: String, reason: String },
    #[error("{whom} answered something else than was asked: it needs an update, or croft does")]
    Nonsense { whom: String },
}

impl From<PeerProblem> for Failure {
    fn from(problem: PeerProblem) -> Self {
        match problem {
            PeerProblem::Grid(error) => error.into(),
            PeerProblem::Refused { .. } => Self::refused(problem),
            PeerProblem::Nonsense { .. } => Self::failed(problem),
            _ => Self::new(Exit::Unreachable, problem),
        }
    }
}

/// A node by its key and name.
#[derive(Debug, Clone)]
pub(crate) struct NodePeer {
    pub(crate) id: NodeId,
    pub(crate) name: Name,
}

impl NodePeer {
    fn whom(&self) -> String {
        format!("node '{}'", self.name)
    }

    async fn call(&self, grid: &Grid) -> Result<PeerStream, PeerProblem> {
        grid.verified().peer(self.id).await.map_err(|error| {
            let error = grid.error(error);
            let name = self.name.clone();
            match error {
                error if error.is_not_listening() => PeerProblem::NodeOffline { name },
                error if error.is_peers() => PeerProblem::NodeSilent { name, source: error },
                error => error.into(),
            }
        })
    }

    /// The node's own account of a contract.
    pub(crate) async fn explain(
        &self,
        grid: &Grid,
        contract: ContractId,
    ) -> Result<Explanation, PeerProblem> {
        let mut stream = self.call(grid).await?;
        write(&mut stream, self.whom(), &NodeRequest::Explain { contract }).await?;
        match read(&mut stream, self.whom(), ANSWER_MS).await? {
            Some(NodeResponse::Explained(explanation)) => Ok(explanation),
            Some(NodeResponse::Refused { reason }) => {
                Err(PeerProblem::Refused { whom: self.whom(), reason: bounded(reason) })
            }
            _ => Err(PeerProblem::Nonsense { whom: self.whom() }),
        }
    }

    /// Output of a microVM: the lines so far, then more if followed.
    pub(crate) async fn logs(&self, grid: &Grid, request: NodeRequest) -> Result<LogStream, PeerProblem> {
        let follow = matches!(request, NodeRequest::Logs { follow: true, .. });
        let mut stream = self.call(grid).await?;
        write(&mut stream, self.whom(), &request).await?;
        Ok(LogStream { stream, whom: self.whom(), follow, first: true })
    }
}

/// Output as it comes.
pub(crate) struct LogStream {
    stream: PeerStream,
    whom: String,
    follow: bool,
    first: bool,
}

impl LogStream {
    /// The next lines; `None` when there are no more.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<LogLine>>, PeerProblem> {
        if !self.first && !self.follow {
            return Ok(None);
        }
        let within = if self.first { ANSWER_MS } else { FOLLOW_MS };
        let response = read(&mut self.stream, self.whom.clone(), within).await?;
        let first = std::mem::replace(&mut self.first, false);
        match response {
            Some(NodeResponse::Logs(lines)) => Ok(Some(lines)),
            Some(NodeResponse::Refused { reason }) => {
                Err(PeerProblem::Refused { whom: self.whom.clone(), reason: bounded(reason) })
            }
            None if !first => Ok(None),
            _ => Err(PeerProblem::Nonsense { whom: self.whom.clone() }),
        }
    }
}

/// Ends an answer in order: the caller has it when it hangs up, or never will. Dropping the stream at once
/// would tell the relay that we hung up, perhaps before it has passed the answer on.
pub(crate) async fn finish(stream: &mut PeerStream) {
    let ended = async {
        stream.shutdown().await?;
        tokio::io::copy(stream, &mut tokio::io::sink()).await
    };
    // Whatever happens here, there is nothing more to say.
    let _ = tokio::time::timeout(Duration::from_millis(HANG_UP_MS), ended).await;
}

/// Brings a message of a negotiation to a farmer's bot; `None` where that has nothing to say to it now.
pub(crate) async fn negotiate(
    grid: &Grid,
    farmer: BotId,
    message: Box<SignedMessage>,
) -> Result<Option<Box<SignedMessage>>, PeerProblem> {
    let whom = || format!("the farmer's bot {}", farmer.short());
    let mut stream = grid.verified().peer(farmer).await.map_err(|error| {
        let error = grid.error(error);
        match error {
            error if error.is_not_listening() => PeerProblem::FarmerOffline { farmer },
            error if error.is_peers() => PeerProblem::FarmerSilent { farmer, source: error },
            error => error.into(),
        }
    })?;
    write(&mut stream, whom(), &FarmRequest::Negotiate { message }).await?;
    match read(&mut stream, whom(), ANSWER_MS).await? {
        Some(FarmResponse::Said { message }) => {
            // Whoever holds an older key of the farmer's can sign, and must not be believed.
            let key = message.signature.key(&farmer);
            grid.verified().check_key(farmer, key).await.map_err(|error| grid.error(error))?;
            Ok(Some(message))
        }
        Some(FarmResponse::Heard) => Ok(None),
        Some(FarmResponse::Refused { reason }) => {
            Err(PeerProblem::Refused { whom: whom(), reason: bounded(reason) })
        }
        None => Err(PeerProblem::Nonsense { whom: whom() }),
    }
}

async fn write<T: BorshSerialize>(
    stream: &mut PeerStream,
    whom: String,
    value: &T,
) -> Result<(), PeerProblem> {
    let within = Duration::from_millis(ANSWER_MS);
    frame::write(stream, "the request", value, limits::PEER_MESSAGE_BYTES, within)
        .await
        .map_err(|source| PeerProblem::Frame { whom, source })
}

async fn read<T: BorshDeserialize>(
    stream: &mut PeerStream,
    whom: String,
    within_ms: u64,
) -> Result<Option<T>, PeerProblem> {
    let within = Duration::from_millis(within_ms);
    frame::read_or_end(stream, "the answer", limits::PEER_MESSAGE_BYTES, within)
        .await
        .map_err(|source| PeerProblem::Frame { whom, source })
}

/// A stranger's text, shortened and in one line.
pub(crate) fn bounded(text: String) -> String {
    let text = printable(&text);
    if text.len() <= limits::TEXT_BYTES { text } else { text.chars().take(limits::TEXT_BYTES / 4).collect() }
}
