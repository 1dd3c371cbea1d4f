//! `croft farm serve`: the farmer's bot. It answers proposals at the farm's prices and does nothing else.
//!
//! ```text
//!   call through the relay ─TLS─> proposal ─who, signature, ledger, prices─> signed | refused, logged
//! ```
//! It keeps no state: the same terms get the same signature again (ed25519 is deterministic), and capacity
//! that two users want at once is decided by the ledger. It must never sign for a caller other than the
//! terms' user, below the farm's prices, or beyond what the ledger says is free.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use croft_market::{FarmerPolicy, OfferedNode, ProposalRefusal, check_proposal};
use croft_protocol::contract::PublishedPort;
use croft_protocol::keys::Domain;
use croft_protocol::peer::{FarmRequest, FarmResponse};
use croft_protocol::{
    BotId, ContractId, FarmId, Grains, Name, PriceList, SecretKey, Signature, Terms, limits,
};
use croft_transport::{FrameError, PeerError, Relayed, frame, peer_accept};
use serde::Serialize;
use tokio::sync::mpsc;

use super::show::BotNames;
use super::{CommandError, Context, farm};
use crate::exit::Failure;
use crate::grid::{Grid, GridError, now_ms};
use crate::peers;
use crate::terminal::{printable, push, show_time};

/// Calls that are answered at the same time; more wait at the replica.
const AT_ONCE: usize = 32;
/// A caller has this long to say what it wants, and to take the answer.
const CALL_MS: u64 = 15_000;

/// What the farmer's bot needs to decide.
struct Farmer {
    key: SecretKey,
    grid: Grid,
    farms: Vec<(FarmId, Name)>,
    policy: FarmerPolicy,
}

/// Why terms are not signed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the call comes from {caller}, but the terms are {user}'s: users propose for themselves")]
    Caller { caller: BotId, user: BotId },
    #[error("the user's signature is wrong: sign the terms that are sent")]
    Signature,
    #[error("farm {farm} is not served here: ask the farm's owner")]
    Farm { farm: FarmId },
    #[error("farm '{farm}' does not belong to this bot any more")]
    NotOurs { farm: Name },
    #[error("there is no node {node} on this grid: look it up again")]
    UnknownNode { node: croft_protocol::NodeId },
    #[error(transparent)]
    Market(#[from] ProposalRefusal),
}

impl Refusal {
    fn is_fatal(&self) -> bool {
        match self {
            Self::Market(refusal) => refusal.is_final(),
            _ => true,
        }
    }
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the caller did not prove who it is")]
    Peer(#[from] PeerError),
    #[error("the conversation broke off")]
    Frame(#[from] FrameError),
    #[error("the ledger can't be asked")]
    Grid(#[from] GridError),
}

/// One line of the log.
#[derive(Debug, Serialize)]
struct Decision {
    time_ms: u64,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contract: Option<ContractId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<Grains>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct Serving {
    time_ms: u64,
    event: &'static str,
    bot: Name,
    farms: Vec<Name>,
}

pub(super) async fn serve(c: &mut Context<'_>, names: &[Name]) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let mut farms: Vec<(FarmId, Name)> = Vec::new();
    for (id, body) in farm::farms_of(&acting.grid, Some(acting.id())).await? {
        if names.is_empty() || names.contains(&body.name) {
            farms.push((id, body.name));
        }
    }
    for name in names {
        if !farms.iter().any(|(_, known)| known == name) {
            let error = CommandError::NoFarm { farm: name.clone(), grid: acting.grid.name().clone() };
            return Err(Failure::not_found(error).remedy(format!(
                "only farms of bot '{}' are served: choose their owner with --bot",
                acting.name
            )));
        }
    }
    if farms.is_empty() {
        return Err(Failure::not_found(format!("bot '{}' has no farm", acting.name))
            .remedy("open one with 'croft farm new', or choose its owner with --bot"));
    }
    let mut listener = acting.grid.verified().listen();
    let names: Vec<Name> = farms.iter().map(|(_, name)| name.clone()).collect();
    let serving = Serving { time_ms: now_ms(), event: "serving", bot: acting.name.clone(), farms: names };
    c.terminal.item(&serving, |s| {
        let farms: Vec<&str> = s.farms.iter().map(Name::as_str).collect();
        format!("{}  bot '{}' serves {}", show_time(s.time_ms), s.bot, farms.join(", "))
    })?;

    let farmer = Arc::new(Farmer {
        key: acting.key.clone(),
        grid: acting.grid,
        farms,
        policy: FarmerPolicy::default(),
    });
    let permits = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let (decisions, mut decided) = mpsc::channel::<Decision>(AT_ONCE);
    loop {
        tokio::select! {
            () = c.stop.wait() => break,
            Some(decision) = decided.recv() => c.terminal.item(&decision, Decision::line)?,
            call = listener.accept() => {
                let Some(call) = call else { break };
                // A caller beyond the limit is hung up on, and tries again.
                let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
                let (farmer, decisions) = (farmer.clone(), decisions.clone());
                tokio::spawn(async move {
                    let decision = farmer.answer(call).await;
                    drop(permit);
                    // Nobody reads any more when we are about to end.
                    let _ = decisions.send(decision).await;
                });
            }
        }
    }
    farmer.grid.close().await;
    Ok(())
}

impl Decision {
    fn line(&self) -> String {
        let mut text = format!("{}  {}", show_time(self.time_ms), self.event);
        if let Some(name) = &self.name {
            push!(text, " '{name}'");
        }
        if let Some(user) = &self.user {
            push!(text, " of {user}");
        }
        if let Some(node) = &self.node {
            push!(text, " on {node}");
        }
        if let Some(price) = self.price {
            push!(text, " for {price}");
        }
        if let Some(reason) = &self.reason {
            push!(text, ": {}", printable(reason));
        }
        text
    }

    fn failed(error: CallError) -> Self {
        Self {
            time_ms: now_ms(),
            event: "failed",
            user: None,
            contract: None,
            name: None,
            node: None,
            price: None,
            reason: Some(Failure::failed(error).message()),
        }
    }
}

impl Farmer {
    /// One call from beginning to end.
    async fn answer(&self, call: Relayed) -> Decision {
        match self.converse(call).await {
            Ok(decision) => decision,
            Err(error) => Decision::failed(error),
        }
    }

    async fn converse(&self, call: Relayed) -> Result<Decision, CallError> {
        let within = Duration::from_millis(CALL_MS);
        let (mut stream, caller) = peer_accept(call.stream, &self.key).await?;
        let FarmRequest::Propose { terms, user } =
            frame::read(&mut stream, "the proposal", limits::PEER_MESSAGE_BYTES, within).await?;
        let decided = self.decide(&terms, &user, caller).await?;
        let response = match &decided {
            Ok(farmer) => FarmResponse::Signed { farmer: *farmer },
            Err(refusal) => FarmResponse::Refused { fatal: refusal.is_fatal(), reason: refusal.to_string() },
        };
        frame::write(&mut stream, "the answer", &response, limits::PEER_MESSAGE_BYTES, within).await?;
        peers::finish(&mut stream).await;
        let mut names = BotNames::default();
        let user = names.name(&self.grid, caller).await?;
        let node = self.grid.node(terms.node).await?.map(|n| n.body.name.to_string());
        Ok(Decision {
            time_ms: now_ms(),
            event: if decided.is_ok() { "signed" } else { "refused" },
            user: Some(user),
            contract: Some(terms.id()),
            node: Some(node.unwrap_or_else(|| terms.node.short())),
            price: terms.price(),
            name: Some(terms.name),
            reason: decided.err().map(|refusal| refusal.to_string()),
        })
    }

    /// Signs, or says why not.
    async fn decide(
        &self,
        terms: &Terms,
        user: &Signature,
        caller: BotId,
    ) -> Result<Result<Signature, Refusal>, GridError> {
        if caller != terms.user {
            return Ok(Err(Refusal::Caller { caller, user: terms.user }));
        }
        let chain = self.grid.pin().chain;
        if terms.user.verify(Domain::TERMS, &chain, terms, user).is_err() {
            return Ok(Err(Refusal::Signature));
        }
        let sign = || self.key.sign(Domain::TERMS, &chain, terms);
        // Asked again after it was agreed, because the first answer got lost: the same answer.
        if terms.farmer == self.key.public() && self.grid.contract(terms.id()).await?.is_some() {
            return Ok(Ok(sign()));
        }
        Ok(match self.check(terms).await? {
            Ok(()) => Ok(sign()),
            Err(refusal) => Err(refusal),
        })
    }

    async fn check(&self, terms: &Terms) -> Result<Result<(), Refusal>, GridError> {
        let Some((farm, name)) = self.farms.iter().find(|(id, _)| *id == terms.farm) else {
            return Ok(Err(Refusal::Farm { farm: terms.farm }));
        };
        let Some(body) = self.grid.farm(*farm).await?.filter(|f| f.owner == self.key.public()) else {
            return Ok(Err(Refusal::NotOurs { farm: name.clone() }));
        };
        let Some(node) = self.grid.node(terms.node).await? else {
            return Ok(Err(Refusal::UnknownNode { node: terms.node }));
        };
        // A list that is too long is refused below; it need not be looked up.
        let asked: Vec<_> =
            terms.ports.iter().take(limits::PORTS_PER_CONTRACT).map(|p| (terms.node, *p)).collect();
        let taken = self.grid.ports_taken(&asked).await?;
        let taken_ports: BTreeSet<PublishedPort> =
            asked.iter().zip(taken).filter(|(_, taken)| *taken).map(|((_, port), _)| *port).collect();
        let connected = self.grid.presence_unproved(&[node.id]).await?.first().copied();
        let prices: PriceList = body.prices;
        let offered = OfferedNode {
            node: node.id,
            farm: node.body.farm,
            farmer: self.key.public(),
            prices: &prices,
            capacity: &node.capacity,
            taken_ports: &taken_ports,
            contracts: node.contracts.len(),
            connected,
        };
        Ok(check_proposal(terms, &offered, &self.policy, now_ms()).map_err(Refusal::from))
    }
}
