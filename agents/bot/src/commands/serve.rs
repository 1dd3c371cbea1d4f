//! `croft farm serve`: the farmer's bot. It negotiates by the farm's policy and does nothing else.
//!
//! ```text
//!   call through the relay ─TLS─> a message of its caller ──> Office (desk, journal) ──> the answer, logged
//!                                                               └──> a person is asked, where the policy says so
//! ```
//! Without a policy file it sells at the farm's prices on the ledger, to everybody. A skill may name prices within the policy. It must never hear a message from
//! anybody but its author, sign below the policy's floor, or promise what the ledger says is not free.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use croft_market::policy::{PolicyFileError, UnknownBot};
use croft_market::{Policy, PolicyFile};
use croft_protocol::market::NegotiationId;
use croft_protocol::peer::{FarmRequest, FarmResponse};
use croft_protocol::{BotId, ContractId, FarmId, Grains, Name, NodeId, SecretKey, limits};
use croft_skills::Hook;
use croft_transport::{FrameError, PeerError, Relayed, frame, peer_accept};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use super::show::BotNames;
use super::{Acting, CommandError, Context, farm};
use crate::exit::Failure;
use crate::grid::{GridError, now_ms};
use crate::market::office::{Deal, News, Office, OfficeError, Todo};
use crate::peers;
use crate::skills::OwnSkill;
use crate::terminal::{printable, push, show_duration, show_time};

/// Calls that are answered at the same time; more wait at the replica.
const AT_ONCE: usize = 32;
/// A caller has this long to say what it wants, and to take the answer.
const CALL_MS: u64 = 15_000;
/// How often it is looked whether time has made something due.
const TICK_MS: u64 = 1_000;
/// Questions that wait for a person; whoever comes later is told no.
const QUESTIONS: usize = 16;
/// A policy file is written by hand: what is larger, is another file.
const POLICY_BYTES: u64 = 64 * 1024;

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
enum PolicyProblem {
    #[error("there is no policy file {path}: see its format with 'croft farm serve --help'")]
    Missing { path: String },
    #[error("can't read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is no text: see its format with 'croft farm serve --help'")]
    NotText { path: String },
    #[error("{path}")]
    File { path: String, source: PolicyFileError },
    #[error("{path}")]
    Customer { path: String, source: UnknownBot },
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the caller did not prove who it is")]
    Peer(#[from] PeerError),
    #[error("the conversation broke off")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Office(#[from] OfficeError),
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
    /// The policy file, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// The skill that names prices, with its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    skill: Option<String>,
    /// Reservations that stand from before.
    promised: usize,
}

pub(super) async fn serve(
    c: &mut Context<'_>,
    names: &[Name],
    policy: Option<&Path>,
    skill: Option<&Name>,
) -> Result<(), Failure> {
    let skill = skill.map(|name| OwnSkill::load(&c.home, name, Hook::Pricing)).transpose()?;
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let farms = farms(&acting, names).await?;
    let sells_by = match policy {
        Some(path) => read_policy(&acting, path).await?,
        None => Policy::default(),
    };
    let dir = c.home.desk_dir(acting.grid.name(), &acting.name);
    let mut listener = acting.grid.verified().listen();
    let ids: BTreeSet<FarmId> = farms.keys().copied().collect();
    let Acting { name, key, grid } = acting;
    let shown = skill.as_ref().map(|skill| format!("{} {}", skill.name(), skill.version()));
    let (office, to_do) = Office::open(&key, grid, ids, sells_by, skill, &dir).map_err(office_failure)?;
    let office = Arc::new(office);
    let serving = Serving {
        time_ms: now_ms(),
        event: "serving",
        bot: name,
        farms: farms.into_values().collect(),
        policy: policy.map(|path| path.display().to_string()),
        skill: shown,
        promised: office.promised().map_err(office_failure)?,
    };
    c.terminal.item(&serving, |s| {
        let farms: Vec<&str> = s.farms.iter().map(Name::as_str).collect();
        let skill =
            s.skill.as_ref().map_or_else(String::new, |skill| format!(", at prices of skill {skill}"));
        format!("{}  bot '{}' serves {}{skill}", show_time(s.time_ms), s.bot, farms.join(", "))
    })?;

    let permits = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let (results, mut heard) = mpsc::channel(AT_ONCE);
    let ledger = tokio::spawn(bring(office.clone(), to_do, results.clone()));
    let mut questions = Questions::default();
    let mut names = BotNames::default();
    let mut ticks = interval(Duration::from_millis(TICK_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let news = tokio::select! {
            () = c.stop.wait() => break,
            Some(result) = heard.recv() => result,
            _ = ticks.tick() => office.tick().await.map_err(CallError::from),
            (negotiation, deal, yes) = questions.answer() => {
                questions.go_on(c);
                decided(&office, negotiation, deal, yes).await
            }
            call = listener.accept() => {
                let Some(call) = call else { break };
                // A caller beyond the limit is hung up on, and tries again.
                let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
                let (office, key, results) = (office.clone(), key.clone(), results.clone());
                tokio::spawn(async move {
                    let result = converse(&office, &key, call).await;
                    drop(permit);
                    // Nobody reads any more when we are about to end.
                    let _ = results.send(result).await;
                });
                continue;
            }
        };
        match news {
            Ok(news) => {
                for news in news {
                    tell(c, &office, &mut questions, &mut names, news).await?;
                }
            }
            Err(CallError::Office(error)) if error.is_fatal() => return Err(office_failure(error)),
            Err(error) => c.terminal.item(&Decision::failed(error), Decision::line)?,
        }
    }
    // What it was about is in the journal.
    ledger.abort();
    office.grid().close().await;
    Ok(())
}

/// Brings announcements and claims to the ledger, one by one, so that nobody waits for it to answer a message.
async fn bring(
    office: Arc<Office>,
    mut to_do: mpsc::Receiver<Todo>,
    results: mpsc::Sender<Result<Vec<News>, CallError>>,
) {
    while let Some(todo) = to_do.recv().await {
        let news = office.carry_out(todo).await.map_err(CallError::from);
        if results.send(news).await.is_err() {
            return;
        }
    }
}

/// The farms that are served, each of the acting bot.
async fn farms(acting: &Acting, names: &[Name]) -> Result<BTreeMap<FarmId, Name>, Failure> {
    let mut farms = BTreeMap::new();
    for (id, body) in farm::farms_of(&acting.grid, Some(acting.id())).await? {
        if names.is_empty() || names.contains(&body.name) {
            farms.insert(id, body.name);
        }
    }
    for name in names {
        if !farms.values().any(|known| known == name) {
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
    Ok(farms)
}

/// Reads a policy and looks up the bots that it names.
async fn read_policy(acting: &Acting, file: &Path) -> Result<Policy, Failure> {
    use std::io::Read as _;
    let path = || file.display().to_string();
    let read = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Failure::not_found(PolicyProblem::Missing { path: path() }),
        _ => Failure::failed(PolicyProblem::Read { path: path(), source }),
    };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(read)?;
    opened.take(POLICY_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    let text =
        String::from_utf8(bytes).map_err(|_| Failure::usage(PolicyProblem::NotText { path: path() }))?;
    let parsed = PolicyFile::parse(&text)
        .map_err(|source| Failure::usage(PolicyProblem::File { path: path(), source }))?;
    let mut bots: BTreeMap<Name, BotId> = BTreeMap::new();
    for name in parsed.names() {
        if let Some(id) = acting.grid.bot_named(name).await? {
            bots.insert(name.clone(), id);
        }
    }
    parsed
        .resolve(|name| bots.get(name).copied())
        .map_err(|source| Failure::not_found(PolicyProblem::Customer { path: path(), source }))
}

fn office_failure(error: OfficeError) -> Failure {
    match error {
        OfficeError::Grid(error) => error.into(),
        error => Failure::failed(error),
    }
}

/// One call from beginning to end.
async fn converse(office: &Office, key: &SecretKey, call: Relayed) -> Result<Vec<News>, CallError> {
    let within = Duration::from_millis(CALL_MS);
    let (mut stream, caller) = peer_accept(call.stream, key).await?;
    let FarmRequest::Negotiate { message } =
        frame::read(&mut stream, "the message", limits::PEER_MESSAGE_BYTES, within).await?;
    let (response, news) = match office.hear(caller, message).await {
        Ok(heard) => heard,
        Err(error) => match error.key_refusal() {
            // The caller is told: it may not know yet that its key was replaced.
            Some(reason) => (FarmResponse::Refused { reason }, Vec::new()),
            None => return Err(error.into()),
        },
    };
    frame::write(&mut stream, "the answer", &response, limits::PEER_MESSAGE_BYTES, within).await?;
    peers::finish(&mut stream).await;
    Ok(news)
}

/// Brings a person's answer to the desk; `None` where nobody was there.
async fn decided(
    office: &Office,
    negotiation: NegotiationId,
    deal: Deal,
    yes: Option<bool>,
) -> Result<Vec<News>, CallError> {
    let mut news = office.decide(negotiation, yes == Some(true)).await?;
    if yes.is_none() {
        let reason = "its policy says that a person is asked, and nobody is at the terminal: run 'croft farm serve' at one, or set mode = \"automatic\" under [approval]";
        news = vec![News::Refused {
            user: deal.user,
            node: Some(deal.node),
            deal: Some(deal),
            reason: reason.to_owned(),
        }];
    }
    Ok(news)
}

async fn tell(
    c: &mut Context<'_>,
    office: &Office,
    questions: &mut Questions,
    names: &mut BotNames,
    news: News,
) -> Result<(), Failure> {
    if let News::Ask { negotiation, deal } = news {
        let user = name_of(office, names, deal.user).await;
        let price = deal.price.unwrap_or_default();
        let question = format!(
            "'{}' of {} for {price} over {}: sign? [y/N] ",
            deal.name,
            printable(&user),
            show_duration(deal.duration_s)
        );
        if questions.ask(c, negotiation, deal, question) {
            return Ok(());
        }
        // Too many wait already. Left unsaid: the buyer sees the offer expire, and may come again.
        return c.terminal.item(&Decision::unasked(user), Decision::line);
    }
    let decision = Decision::of(office, names, news).await;
    c.terminal.item(&decision, Decision::line)
}

/// The name of a bot, or the beginning of its id where the ledger can't be asked now.
async fn name_of(office: &Office, names: &mut BotNames, bot: BotId) -> String {
    names.name(office.grid(), bot).await.unwrap_or_else(|_| bot.short())
}

/// What waits for a person: one question at a time.
#[derive(Default)]
struct Questions {
    asked: Option<(NegotiationId, Deal, oneshot::Receiver<Option<String>>)>,
    waiting: VecDeque<(NegotiationId, Deal, String)>,
}

impl Questions {
    /// Returns whether it will be asked.
    fn ask(&mut self, c: &Context<'_>, negotiation: NegotiationId, deal: Deal, question: String) -> bool {
        if self.waiting.len() >= QUESTIONS {
            return false;
        }
        self.waiting.push_back((negotiation, deal, question));
        self.go_on(c);
        true
    }

    /// Asks the next one, if nothing is being asked.
    fn go_on(&mut self, c: &Context<'_>) {
        if self.asked.is_none()
            && let Some((negotiation, deal, question)) = self.waiting.pop_front()
        {
            self.asked = Some((negotiation, deal, c.environment.ask_aside(question)));
        }
    }

    /// The next answer, or `None` where nobody is there to give one; never, while nothing was asked.
    async fn answer(&mut self) -> (NegotiationId, Deal, Option<bool>) {
        let Some((.., answer)) = &mut self.asked else { return std::future::pending().await };
        let answer = answer.await.ok().flatten();
        let Some((negotiation, deal, _)) = self.asked.take() else { return std::future::pending().await };
        let yes = answer.map(|text| matches!(text.trim(), "y" | "Y" | "yes"));
        (negotiation, deal, yes)
    }
}

impl Decision {
    fn new(event: &'static str) -> Self {
        let (user, contract, name, node, price, reason) = Default::default();
        Self { time_ms: now_ms(), event, user, contract, name, node, price, reason }
    }

    fn failed(error: CallError) -> Self {
        Self { reason: Some(Failure::failed(error).message()), ..Self::new("failed") }
    }

    fn unasked(user: String) -> Self {
        let reason = format!("{QUESTIONS} questions wait for an answer: answer them");
        Self { user: Some(user), reason: Some(reason), ..Self::new("refused") }
    }

    async fn of(office: &Office, names: &mut BotNames, news: News) -> Self {
        let (event, user, node, deal, reason) = match news {
            News::Skill { reason } => return Self { reason: Some(reason), ..Self::new("skill") },
            News::Signed(deal) => ("signed", deal.user, Some(deal.node), Some(deal), None),
            News::Refused { user, node, deal, reason } => ("refused", user, node, deal, Some(reason)),
            News::Ask { deal, .. } => ("asked", deal.user, Some(deal.node), Some(deal), None),
            News::Reservation { event, held, reason } => {
                let user = name_of(office, names, held.user).await;
                let node = node_name(office, Some(held.node)).await;
                return Self {
                    user: Some(user),
                    contract: Some(held.contract),
                    node,
                    reason: Some(reason),
                    ..Self::new(event)
                };
            }
        };
        let mut decision = Self::new(event);
        decision.user = Some(name_of(office, names, user).await);
        decision.node = node_name(office, node).await;
        decision.reason = reason;
        if let Some(deal) = deal {
            decision.contract = Some(deal.contract);
            decision.price = deal.price;
            decision.name = Some(deal.name);
        }
        decision
    }

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
}

async fn node_name(office: &Office, node: Option<NodeId>) -> Option<String> {
    let id = node?;
    let found: Result<_, GridError> = office.grid().node(id).await;
    Some(found.ok().flatten().map_or_else(|| id.short(), |node| node.body.name.to_string()))
}
