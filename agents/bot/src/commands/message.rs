//! `croft message`: writing to another bot, and reading what others wrote.
//!
//! ```text
//!   send: text ─sign, seal─> the receiver listens? ─yes─> handed over, TLS through the relay
//!                                                  └─no──> mailboxes at two replicas
//!   read: mailboxes of all replicas, calls ─open, who, when, known?─> shown ─> remembered ─> dropped at the replicas
//! ```
//! A message is shown before it is remembered, and remembered before any replica forgets it: after a crash it may come
//! once more, and is never lost. What cannot be opened, is not signed by a bot of the grid, or is too old goes without
//! being shown, and is counted.

mod seen;

use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_protocol::api::Service;
use croft_protocol::message::{Message, MessageError, MessageId, message_key};
use croft_protocol::peer::{BotRequest, BotResponse};
use croft_protocol::seal::SealingKey;
use croft_protocol::{BotId, ChainId, Hash, Name, PublicKey, SecretKey, limits};
use croft_skills::Hook;
use croft_skills::hooks::{self, Reaction};
use croft_transport::verified::VerifiedError;
use croft_transport::{Relayed, frame, peer_accept};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use self::seen::{Seen, Verdict};
use super::show::BotNames;
use super::{Acting, CommandError, Context};
use crate::exit::Failure;
use crate::grid::{Grid, now_ms};
use crate::home::{Home, HomeError};
use crate::peers;
use crate::plan::MessageText;
use crate::skills::OwnSkill;
use crate::terminal::{printable, push, show_time};

/// Who follows looks into the mailboxes this often; calls come at once.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// A caller has this long to say what it wants.
const CALL_TIME: Duration = Duration::from_secs(15);
/// Finding out whether the receiver listens, and handing over, may take this long; then the mailbox has it.
const DELIVERY_TIME: Duration = Duration::from_secs(30);
/// Calls that are taken at the same time; more are hung up on, and their messages go to the mailbox.
const AT_ONCE: usize = 16;
/// A frame with the largest message.
const FRAME_BYTES: usize = limits::SEALED_MESSAGE_BYTES + 64;

/// Why a message is not sent or not read.
#[derive(Debug, thiserror::Error)]
enum MessageProblem {
    #[error(
        "bot '{bot}' takes no messages: it has published no key for them; its owner does that with 'croft bot update'"
    )]
    NoKey { bot: Name },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is no text: messages are UTF-8")]
    NoText { path: PathBuf },
    #[error("the message is not sent")]
    Message(#[from] MessageError),
    #[error("bot '{bot}' did not take the message: {reason}")]
    Refused { bot: Name, reason: String },
    #[error("the kernel gives no randomness for a message")]
    Randomness(#[source] getrandom::Error),
}

#[derive(Serialize)]
pub(super) struct Sent {
    to: Name,
    id: MessageId,
    time_ms: u64,
    /// Of what goes over the network.
    bytes: usize,
    /// `directly` or `mailbox`.
    pub(super) delivered: &'static str,
    /// Mailboxes that have it.
    mailboxes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
}

fn text_of(text: &MessageText) -> Result<String, Failure> {
    let path = match text {
        MessageText::Given(text) => return Ok(text.clone()),
        MessageText::File(path) => path,
    };
    let bytes = read_bounded(path)
        .map_err(|source| Failure::usage(MessageProblem::Read { path: path.clone(), source }))?;
    if bytes.len() > limits::MESSAGE_BYTES {
        return Err(Failure::usage(MessageProblem::Message(MessageError::TooLarge { len: bytes.len() })));
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage(MessageProblem::NoText { path: path.clone() }))
}

/// The file, or one byte more than a message may have.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limits::MESSAGE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) async fn send(c: &mut Context<'_>, to: &Name, text: &MessageText) -> Result<(), Failure> {
    let text = text_of(text)?;
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let grid = &acting.grid;
    let Some(receiver) = grid.bot_named(to).await? else {
        let error = CommandError::NoBot { bot: to.clone(), grid: grid.name().clone() };
        return Err(Failure::not_found(error));
    };
    let sent = post(&acting, to, receiver, text).await?;
    acting.grid.close().await;
    c.terminal.result(&sent, |s| match s.expires_ms {
        None => format!("bot '{}' has the message\n", s.to),
        Some(expires_ms) => format!(
            "bot '{}' does not listen now: the message waits for it until {}\n",
            s.to,
            show_time(expires_ms)
        ),
    })
}

/// Seals a message and brings it to its receiver, or into its mailboxes.
pub(super) async fn post(acting: &Acting, to: &Name, receiver: BotId, text: String) -> Result<Sent, Failure> {
    let grid = &acting.grid;
    let key = grid.profile(receiver).await?.and_then(|profile| profile.encryption_key);
    let key = key.ok_or_else(|| Failure::not_found(MessageProblem::NoKey { bot: to.clone() }))?;
    let id = MessageId::generate().map_err(|e| Failure::failed(MessageProblem::Randomness(e)))?;
    let message = Message { id, from: acting.id(), to: receiver, time_ms: now_ms(), text };
    let sealed = message
        .seal(&acting.key, &grid.pin().chain, &key)
        .map_err(|e| Failure::usage(MessageProblem::Message(e)))?;
    let mut sent = Sent {
        to: to.clone(),
        id,
        time_ms: message.time_ms,
        bytes: sealed.len(),
        delivered: "directly",
        mailboxes: 0,
        expires_ms: None,
    };
    match timeout(DELIVERY_TIME, deliver(grid, receiver, &sealed)).await {
        Ok(Some(BotResponse::Taken)) => {}
        Ok(Some(BotResponse::Refused { reason })) => {
            let reason = peers::bounded(reason);
            return Err(Failure::refused(MessageProblem::Refused { bot: to.clone(), reason }));
        }
        Ok(None) | Err(_) => {
            let left = grid.verified().leave_mail(receiver, &sealed).await.map_err(|e| grid.error(e))?;
            sent.delivered = "mailbox";
            sent.mailboxes = left.replicas.len();
            sent.expires_ms = Some(left.expires_ms);
        }
    }
    Ok(sent)
}

/// Hands it to the receiver, if that listens. Whatever goes wrong on the way, the mailbox is there.
async fn deliver(grid: &Grid, to: BotId, sealed: &[u8]) -> Option<BotResponse> {
    let called = grid.verified().peer_for(to, Service::Messages).await;
    let mut stream =
        called.inspect_err(|error| tracing::debug!(%error, "the receiver is not called")).ok()?;
    let request = BotRequest::Deliver { sealed: sealed.to_vec() };
    frame::write(&mut stream, "the message", &request, FRAME_BYTES, CALL_TIME).await.ok()?;
    frame::read(&mut stream, "the answer", limits::PEER_MESSAGE_BYTES, CALL_TIME).await.ok()
}

/// A message as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    id: MessageId,
    from: String,
    from_id: BotId,
    time_ms: u64,
    text: String,
    /// A skill's word for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
}

impl Shown {
    fn lines(&self) -> String {
        let mut text = format!("{}  from '{}'", show_time(self.time_ms), self.from);
        if let Some(mark) = &self.mark {
            push!(text, " [{}]", printable(mark));
        }
        for line in self.text.lines() {
            push!(text, "\n  {}", printable(line));
        }
        text
    }
}

/// What came of looking into the mailboxes.
struct ReadView {
    messages: Vec<Shown>,
    /// What was not shown, and never will be.
    refused: Vec<String>,
    /// Ahead of this machine's clock; they stay in the mailbox.
    early: usize,
    /// Replicas that were not asked.
    silent: Vec<String>,
}

/// What came of one sealed message.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Shown,
    Known,
    Early,
    Refused(String),
}

/// A bot's messages as they come in.
struct Inbox {
    me: BotId,
    /// The present one first; what was written to a former key is read too.
    sealing: Vec<SealingKey>,
    grid: Grid,
    home: Home,
    names: BotNames,
    skill: Option<OwnSkill>,
}

/// New messages, before anything is remembered. Nobody else of this home reads meanwhile.
struct Batch {
    seen: Seen,
    news: Vec<Shown>,
    /// In the order in which they came in.
    outcomes: Vec<Outcome>,
    lock: std::fs::File,
}

impl Inbox {
    /// Opens and judges what came in; new messages in the order of their times.
    async fn judge(&mut self, sealed: &[Vec<u8>]) -> Result<Batch, Failure> {
        let chain = self.grid.pin().chain;
        let mut outcomes = vec![Outcome::Known; sealed.len()];
        let mut opened = Vec::new();
        for (at, sealed) in sealed.iter().enumerate() {
            match self.open(sealed, &chain) {
                Err(error) => outcomes[at] = Outcome::Refused(error.to_string()),
                Ok((message, key)) if let Some(reason) = self.refused_key(message.from, key).await? => {
                    outcomes[at] = Outcome::Refused(reason);
                }
                Ok((message, _)) => match self.names.registered(&self.grid, message.from).await? {
                    None => {
                        let from = message.from.short();
                        outcomes[at] = Outcome::Refused(format!("its sender {from} is no bot on this grid"));
                    }
                    Some(name) => opened.push((at, message, name)),
                },
            }
        }
        opened.sort_by_key(|(_, message, _)| (message.time_ms, message.id));
        let lock = self.home.lock_messages(self.grid.name())?;
        let mut seen = self.seen()?;
        let (now_ms, mut news) = (now_ms(), Vec::new());
        seen.forget_old(now_ms);
        for (at, message, from) in opened {
            outcomes[at] = match seen.judge(&message, now_ms) {
                Verdict::Known => Outcome::Known,
                Verdict::Early => Outcome::Early,
                Verdict::Old => Outcome::Refused(format!("it was written at {}", show_time(message.time_ms))),
                Verdict::New => {
                    seen.remember(&message);
                    let Message { id, from: from_id, time_ms, text, .. } = message;
                    let shown = Shown { id, from, from_id, time_ms, text, mark: None };
                    news.extend(self.reacted(shown));
                    Outcome::Shown
                }
            };
        }
        Ok(Batch { seen, news, outcomes, lock })
    }

    /// What a skill makes of a message; `None` when it is not shown.
    fn reacted(&self, shown: Shown) -> Option<Shown> {
        let Some(skill) = &self.skill else { return Some(shown) };
        let message = hooks::Message {
            sender: shown.from.clone(),
            sender_key: shown.from_id.to_string(),
            time_ms: shown.time_ms,
            text: shown.text.clone(),
        };
        match skill.react(message) {
            Reaction::Show => Some(shown),
            Reaction::Mark(word) => Some(Shown { mark: Some(word), ..shown }),
            Reaction::Hide => None,
        }
    }

    fn open(&self, sealed: &[u8], chain: &ChainId) -> Result<(Message, PublicKey), MessageError> {
        let mut opened = Err(MessageError::NotForUs);
        for key in &self.sealing {
            opened = Message::open(sealed, chain, &self.me, key);
            if !matches!(opened, Err(MessageError::NotForUs)) {
                break;
            }
        }
        opened
    }

    /// Why a message that a key of its sender signed is not believed: whoever holds a former one could have written it
    /// yesterday, whatever time it says.
    async fn refused_key(&self, from: BotId, key: PublicKey) -> Result<Option<String>, Failure> {
        match self.grid.verified().check_key(from, key).await {
            Ok(()) => Ok(None),
            Err(VerifiedError::Key(refusal)) => {
                Ok(Some(format!("{refusal}; if it was written before, its sender has to send it again")))
            }
            Err(error) => Err(self.grid.error(error).into()),
        }
    }

    fn seen(&self) -> Result<Seen, HomeError> {
        let Some(bytes) = self.home.messages_seen(self.grid.name(), &self.me)? else {
            return Ok(Seen::default());
        };
        Seen::read(&bytes).map_err(|error| HomeError::Damaged {
            path: self.home.messages_seen_path(self.grid.name(), &self.me),
            reason: error.to_string(),
        })
    }

    /// From now on these are known. Only after they have been shown.
    fn remember(&self, batch: &Batch) -> Result<(), HomeError> {
        // What a skill hid is known too.
        if !batch.outcomes.contains(&Outcome::Shown) {
            return Ok(());
        }
        self.home.keep_messages_seen(self.grid.name(), &self.me, &croft_protocol::encode(&batch.seen))
    }

    /// What waits at the replicas, shown by `show`, remembered, and dropped there.
    async fn empty(
        &mut self,
        mut show: impl FnMut(&mut Batch) -> Result<(), Failure>,
    ) -> Result<ReadView, Failure> {
        let (found, silent) = self.grid.verified().fetch_mail().await.map_err(|e| self.grid.error(e))?;
        let silent = silent.into_iter().map(|p| format!("{}: {}", p.replica.address, p.cause)).collect();
        let mut view = ReadView { messages: Vec::new(), refused: Vec::new(), early: 0, silent };
        let sealed: Vec<Vec<u8>> =
            found.iter().flat_map(|at| &at.mail).map(|mail| mail.sealed.clone()).collect();
        if sealed.is_empty() {
            return Ok(view);
        }
        let mut batch = self.judge(&sealed).await?;
        show(&mut batch)?;
        self.remember(&batch)?;
        let Batch { news, outcomes, lock, seen: _ } = batch;
        drop(lock);
        let mut outcomes = outcomes.into_iter();
        for at in &found {
            let mut done: Vec<Hash> = Vec::new();
            for (mail, outcome) in at.mail.iter().zip(outcomes.by_ref()) {
                match outcome {
                    Outcome::Early => view.early += 1,
                    Outcome::Refused(reason) => {
                        view.refused.push(reason);
                        done.push(mail.id());
                    }
                    Outcome::Shown | Outcome::Known => done.push(mail.id()),
                }
            }
            self.grid.verified().drop_mail(&at.replica, &done).await;
        }
        view.messages = news;
        Ok(view)
    }
}

async fn inbox(c: &mut Context<'_>, skill: Option<&Name>) -> Result<(Name, SecretKey, Inbox), Failure> {
    let skill = skill.map(|name| OwnSkill::load(&c.home, name, Hook::Messages)).transpose()?;
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let Acting { name, key, grid } = acting;
    let mut sealing = vec![message_key(&key)];
    if c.home.key_files(&name)?.len() > 1 {
        // What was sealed before a key was replaced.
        sealing.extend(c.all_keys(&name)?.iter().map(message_key));
    }
    match grid.profile(key.id()).await?.and_then(|profile| profile.encryption_key) {
        None => return Err(Failure::not_found(MessageProblem::NoKey { bot: name })),
        Some(published) if !sealing.iter().any(|ours| ours.public() == published) => c.note(
            "the published key for messages is not this bot's: nothing that is sealed to it can be read here; 'croft bot update' publishes ours",
        ),
        Some(published) if published != sealing[0].public() => {
            c.note("the published key for messages is that of a key that was replaced: 'croft bot update' publishes the present one's");
        }
        Some(_) => {}
    }
    let inbox =
        Inbox { me: key.id(), sealing, grid, home: c.home.clone(), names: BotNames::default(), skill };
    Ok((name, key, inbox))
}

pub(super) async fn read(c: &mut Context<'_>, follow: bool, skill: Option<&Name>) -> Result<(), Failure> {
    let (name, key, mut inbox) = inbox(c, skill).await?;
    if follow {
        return follow_on(c, name, key, inbox).await;
    }
    // With JSON the whole result is one document, so it is written at once, before anything is remembered.
    let terminal = &mut *c.terminal;
    let mut said = false;
    let mut view = inbox
        .empty(|batch| {
            said = true;
            if terminal.is_json() {
                let shown = Messages { messages: &batch.news };
                return terminal.result(&shown, |_| String::new());
            }
            batch.news.iter().try_for_each(|shown| terminal.item(shown, Shown::lines))
        })
        .await?;
    let new = view.messages.len();
    if !said && terminal.is_json() {
        terminal.result(&Messages { messages: &[] }, |_| String::new())?;
    } else if new == 0 && !terminal.is_json() {
        terminal.result(&(), |()| "no new messages\n".to_owned())?;
    }
    notes(c, &mut view);
    trouble(c, &inbox);
    inbox.grid.close().await;
    Ok(())
}

#[derive(Serialize)]
struct Messages<'a> {
    messages: &'a [Shown],
}

fn notes(c: &mut Context<'_>, view: &mut ReadView) {
    view.refused.sort_unstable();
    view.refused.dedup();
    for reason in view.refused.iter().take(AT_ONCE) {
        c.note(&format!("a message is not shown: {}", printable(reason)));
    }
    if view.early > 0 {
        c.note(&format!(
            "{} messages wait whose time is ahead of this machine's clock: check the clock, and read again later",
            view.early
        ));
    }
    for silent in &view.silent {
        c.note(&format!("a mailbox could not be looked into: {}", printable(silent)));
    }
}

/// Says why a skill was not heard.
fn trouble(c: &mut Context<'_>, inbox: &Inbox) {
    if let Some(trouble) = inbox.skill.as_ref().and_then(OwnSkill::take_trouble) {
        c.note(&trouble);
    }
}

/// A message that somebody hands over, and where the answer goes.
type Call = (Vec<u8>, oneshot::Sender<BotResponse>);

#[derive(Serialize)]
struct Listening {
    time_ms: u64,
    event: &'static str,
    bot: Name,
}

#[derive(Serialize)]
struct Arrived<'a> {
    event: &'static str,
    #[serde(flatten)]
    shown: &'a Shown,
}

async fn follow_on(c: &mut Context<'_>, name: Name, key: SecretKey, mut inbox: Inbox) -> Result<(), Failure> {
    let mut listener = inbox.grid.verified().listen_for(Service::Messages);
    let (calls, mut called) = mpsc::channel::<Call>(AT_ONCE);
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let listening = Listening { time_ms: now_ms(), event: "listening", bot: name };
    c.terminal.item(&listening, |l| format!("{}  bot '{}' listens", show_time(l.time_ms), l.bot))?;
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = c.stop.wait() => break,
            _ = every.tick() => {
                let terminal = &mut *c.terminal;
                let mut view = match inbox.empty(|batch| show_all(terminal, &batch.news)).await {
                    Ok(view) => view,
                    // A grid that can't be asked now is asked again; a screen that is gone ends it.
                    Err(failure) if failure.exit == crate::exit::Exit::Unreachable => {
                        c.note(&format!("the mailboxes can't be looked into now: {}", failure.message()));
                        continue;
                    }
                    Err(failure) => return Err(failure),
                };
                notes(c, &mut view);
                trouble(c, &inbox);
            }
            Some((sealed, answer)) = called.recv() => {
                let batch = match inbox.judge(&[sealed]).await {
                    Ok(batch) => batch,
                    // Whoever called leaves it in the mailbox.
                    Err(failure) if failure.exit == crate::exit::Exit::Unreachable => {
                        let reason = "its grid can't be asked just now: leave it in the mailbox".to_owned();
                        let _ = answer.send(BotResponse::Refused { reason });
                        continue;
                    }
                    Err(failure) => return Err(failure),
                };
                show_all(c.terminal, &batch.news)?;
                inbox.remember(&batch)?;
                trouble(c, &inbox);
                // Whoever hung up meanwhile leaves it in the mailbox, and it is known then.
                let _ = answer.send(answer_of(&batch.outcomes[0]));
            }
            call = listener.accept() => {
                let Some(call) = call else { break };
                let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
                let (key, calls) = (key.clone(), calls.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Err(error) = take(call, &key, calls).await {
                        tracing::debug!(error, "a call came to nothing");
                    }
                });
            }
        }
    }
    inbox.grid.close().await;
    Ok(())
}

fn show_all(terminal: &mut crate::terminal::Terminal, news: &[Shown]) -> Result<(), Failure> {
    news.iter().try_for_each(|shown| {
        terminal.item(&Arrived { event: "message", shown }, |arrived| arrived.shown.lines())
    })
}

fn answer_of(outcome: &Outcome) -> BotResponse {
    match outcome {
        Outcome::Shown | Outcome::Known => BotResponse::Taken,
        Outcome::Early => {
            BotResponse::Refused { reason: "its time is ahead of this bot's clock: check yours".to_owned() }
        }
        Outcome::Refused(reason) => BotResponse::Refused { reason: reason.clone() },
    }
}

/// One call from beginning to end.
async fn take(call: Relayed, key: &SecretKey, calls: mpsc::Sender<Call>) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let (mut stream, _) = peer_accept(call.stream, key).await.map_err(|e| text(&e))?;
    let BotRequest::Deliver { sealed } =
        frame::read(&mut stream, "the message", FRAME_BYTES, CALL_TIME).await.map_err(|e| text(&e))?;
    let (answer, answered) = oneshot::channel();
    calls.send((sealed, answer)).await.map_err(|e| text(&e))?;
    let response = answered.await.map_err(|e| text(&e))?;
    frame::write(&mut stream, "the answer", &response, limits::PEER_MESSAGE_BYTES, CALL_TIME)
        .await
        .map_err(|e| text(&e))?;
    peers::finish(&mut stream).await;
    Ok(())
}
