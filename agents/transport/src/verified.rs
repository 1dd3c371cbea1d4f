//! One view of a grid through several replicas: everything is proved, and no single replica matters.
//!
//! ```text
//!   question ──> preferred replica ── answer ──> light client ── proved ──> caller
//!                  │ slow: the next one too         │ no proof, old, contradicts
//!                  │ down: the next one             └── lied: set aside, the next one
//!                  v
//!   tend, every 10 s: tips of up to three replicas compared ── two final headers at one height ──> halted
//! ```
//! Validators that hand over to others are followed from the pinned ones on. It must never hand out what no
//! proof backs, except where a name says `unproved`; never go back behind the newest header that this or an
//! earlier run has seen; and never act on a grid again whose validators contradicted themselves.

mod blobs;
mod follow;
mod identity;
mod keep;
mod look;
mod mail;
mod members;
mod peers;
mod submit;
#[cfg(test)]
mod tests;
mod trail;
mod vouch;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_light::{
    Contradiction, Fault, HANDOVERS, HandoverWalk, LightError, Tip, verify_certificate, verify_value,
};
use croft_protocol::api::{Failure, ProvedValue};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{ChainId, Hash, KeyRefusal, PublicKey, SecretKey, SignedHeader, StateKey, ValidatorSet};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Answer, Client, ClientError, ReplicaProblem};
use crate::endpoint::Endpoint;
pub use follow::{Followed, Following};
pub use keep::{Evidence, Keep};
pub use mail::{Left, MailAt};
use members::{Member, Members};
pub use members::{ReplicaView, Unproved};
pub use peers::Listener;
pub use submit::Final;
pub use trail::Trail;

/// A replica that has not answered by then is slow: the next one is asked as well, and the first good answer
/// counts.
const SLOW: Duration = Duration::from_millis(1_500);
/// How long a read goes on asking replicas that are a little behind what is known already.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two rounds of that.
const ROUND: Duration = Duration::from_millis(150);
/// The first answer of all waits so long for what the other replicas say of their tips.
const SECOND_OPINION: Duration = Duration::from_millis(300);
/// Headers that are remembered to compare late replicas with.
const SEEN: usize = 64;
/// The newest header is kept for the next run at most this often.
const KEEP_EVERY: Duration = Duration::from_secs(2);

/// Why the grid gives no answer that can be acted on.
#[derive(Debug, thiserror::Error)]
pub enum VerifiedError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the answer of replica {} is not believed", replica.short())]
    NotBelieved { replica: PublicKey, source: Box<LightError> },
    #[error(
        "the validators of this grid signed two histories, {evidence}: nothing is done on it any more; the proof is in {place}: show it to the grid's owners, and remove it only when they have settled which history holds"
    )]
    Contradicted { evidence: Box<Evidence>, place: String },
    #[error(
        "nobody knows what became of command {sequence} of {}, and it is not on the ledger: look again before it is signed anew",
        author.short()
    )]
    OutcomeUnknown { author: PublicKey, sequence: u64 },
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error("{what} on the ledger can't be read: update this program")]
    Malformed { what: &'static str, source: croft_protocol::DecodeError },
}

impl VerifiedError {
    /// The ledger's own no, if it is one.
    #[must_use]
    pub fn rejection(&self) -> Option<&croft_protocol::Rejection> {
        match self {
            Self::Client(ClientError::Rejected { rejection, .. }) => Some(rejection),
            _ => None,
        }
    }
}

/// Why one replica's answer is of no use.
#[derive(Debug)]
enum Miss {
    /// Another replica may do better.
    Elsewhere(VerifiedError),
    /// It is honest and behind: another one, or itself in a moment.
    Behind(VerifiedError),
    /// No replica will say anything else.
    Final(VerifiedError),
}

impl Miss {
    fn of_client(error: ClientError) -> Self {
        match &error {
            ClientError::Failed {
                failure:
                    Failure::Malformed { .. } | Failure::TooMuch { .. } | Failure::Quota { .. } | Failure::Key(_),
                ..
            }
            | ClientError::Rejected { .. } => Self::Final(error.into()),
            _ => Self::Elsewhere(error.into()),
        }
    }
}

/// Whether a replica only does not have what another may have.
fn is_absence(error: &VerifiedError) -> bool {
    matches!(error, VerifiedError::Client(ClientError::Failed { failure: Failure::NotFound { .. }, .. }))
}

/// What is trusted of a grid.
#[derive(Debug, Clone)]
pub struct Trusted {
    pub chain: ChainId,
    /// Hash of the pinned validator set.
    pub validators: Hash,
    pub replicas: Vec<ReplicaAddress>,
}

/// A grid, seen through its replicas. Clones share it.
#[derive(Debug, Clone)]
pub struct Verified {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    chain: ChainId,
    members: Members,
    keep: Box<dyn Keep>,
    state: Mutex<State>,
    /// Held while handovers are followed: one walk serves all.
    walking: tokio::sync::Mutex<()>,
    /// One command at a time, so that sequence numbers don't race.
    submitting: tokio::sync::Mutex<()>,
    /// Whether the replicas' tips have been compared once.
    looked: watch::Sender<bool>,
    tending: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

#[derive(Debug)]
struct State {
    trail: Trail,
    /// The newest headers that were believed, newest last.
    seen: VecDeque<SignedHeader>,
    halted: Option<Evidence>,
    kept: Option<Instant>,
    /// Whether there is something newer than what was kept.
    unkept: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.tending).take() {
            task.abort();
        }
        self.keep_now();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Verified {
    /// Goes on from what the last run kept. Opens no connection before it is asked something.
    ///
    /// # Errors
    /// [`ClientError::NoReplica`], [`ClientError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(me: &SecretKey, trusted: Trusted, keep: impl Keep) -> Result<Self, ClientError> {
        let Trusted { chain, validators, replicas } = trusted;
        if replicas.is_empty() {
            return Err(ClientError::NoReplica);
        }
        let endpoint = Endpoint::client(me).map_err(Box::new)?;
        let members = Members::new(&endpoint, replicas)?;
        let trail = Trail::resume(chain, validators, keep.trail().as_deref());
        let halted = keep.evidence().and_then(|bytes| Evidence::read(&bytes));
        if let Some(evidence) = &halted {
            let place = keep.evidence_place();
            tracing::error!(%evidence, place, "this grid's validators contradicted themselves: nothing is done on it");
        }
        let state = State { trail, seen: VecDeque::new(), halted, kept: None, unkept: false };
        let inner = Inner {
            endpoint,
            chain,
            members,
            keep: Box::new(keep),
            state: Mutex::new(state),
            walking: tokio::sync::Mutex::new(()),
            submitting: tokio::sync::Mutex::new(()),
            looked: watch::Sender::new(false),
            tending: Mutex::new(None),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    #[must_use]
    pub fn chain(&self) -> &ChainId {
        &self.inner.chain
    }

    /// Our own key.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.inner.endpoint.key()
    }

    /// The newest header that was believed, of this or an earlier run.
    #[must_use]
    pub fn newest(&self) -> Option<SignedHeader> {
        lock(&self.inner.state).trail.light().newest().cloned()
    }

    /// Who certified it.
    #[must_use]
    pub fn validators(&self) -> Option<ValidatorSet> {
        self.newest().map(|newest| newest.validators)
    }

    /// The proof that the validators contradicted themselves, if they did; nothing is done on the grid then.
    #[must_use]
    pub fn evidence(&self) -> Option<Evidence> {
        lock(&self.inner.state).halted.clone()
    }

    /// Keeps what is known and ends all connections with a word.
    pub async fn close(&self) {
        if let Some(task) = lock(&self.inner.tending).take() {
            task.abort();
        }
        self.inner.keep_now();
        self.inner.endpoint.close("done").await;
    }

    // Reading.

    /// The newest final header.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica has one that can be believed.
    pub async fn tip(&self) -> Result<Tip, VerifiedError> {
        self.race(0, |member| async move {
            let answer = member.client().tip().await.map_err(Miss::of_client)?;
            self.believe(&member, &answer.value).await
        })
        .await
    }

    /// The final header at a height. `None` where no replica has it any more, or where it was certified by validators
    /// who have handed over since: what those sign today proves nothing.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica answers.
    pub async fn header(&self, height: u64) -> Result<Option<SignedHeader>, VerifiedError> {
        let trusted = self.tip().await?.header().validators;
        let found = self
            .race(0, |member| async move {
                let signed = member.client().header(height).await.map_err(Miss::of_client)?.value;
                let header = signed.header;
                if (header.chain, header.height) != (self.inner.chain, height) {
                    let (theirs, ours) = (header.chain, self.inner.chain);
                    let error = if theirs == ours {
                        LightError::OtherHeight { height: header.height, asked: height }
                    } else {
                        LightError::WrongChain { theirs, ours }
                    };
                    return Err(self.blame(&member, error).await);
                }
                match verify_certificate(&signed) {
                    Ok(()) => Ok(signed),
                    Err(error) => Err(self.blame(&member, error).await),
                }
            })
            .await;
        match found {
            Ok(signed) => Ok(Some(signed).filter(|signed| signed.header.validators == trusted)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Values of the state map, each proved present or absent, all of one header.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica gives proofs.
    pub async fn get(&self, keys: &[StateKey]) -> Result<(Tip, Vec<Option<Vec<u8>>>), VerifiedError> {
        self.get_from(0, keys).await
    }

    /// As [`Self::get`], of a header of at least this height.
    async fn get_from(
        &self,
        height: u64,
        keys: &[StateKey],
    ) -> Result<(Tip, Vec<Option<Vec<u8>>>), VerifiedError> {
        let check = |tip: &Tip, proved: &Vec<ProvedValue>| {
            let values = keys.iter().zip(proved).map(|(key, value)| verify_value(tip, key, value));
            Ok((*tip, values.collect::<Result<_, _>>()?))
        };
        self.prove_from(height, |client| async move { client.get(keys.to_vec()).await }, check).await
    }

    /// Asks for something that comes with a header until `check` accepts a replica's answer against that header.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica gives proofs.
    pub async fn prove<T, A, Asked>(
        &self,
        ask: impl Fn(Client) -> Asked,
        check: impl Fn(&Tip, &A) -> Result<T, LightError>,
    ) -> Result<T, VerifiedError>
    where
        Asked: Future<Output = Result<Answer<(SignedHeader, A)>, ClientError>>,
    {
        self.prove_from(0, ask, check).await
    }

    async fn prove_from<T, A, Asked>(
        &self,
        height: u64,
        ask: impl Fn(Client) -> Asked,
        check: impl Fn(&Tip, &A) -> Result<T, LightError>,
    ) -> Result<T, VerifiedError>
    where
        Asked: Future<Output = Result<Answer<(SignedHeader, A)>, ClientError>>,
    {
        let (ask, check) = (&ask, &check);
        self.race(height, |member| async move {
            let answer = ask(member.client()).await.map_err(Miss::of_client)?;
            let (header, proved) = answer.value;
            let tip = self.believe(&member, &header).await?;
            if tip.height() < height {
                let known = height;
                let source = Box::new(LightError::Back { height: tip.height(), known });
                return Err(Miss::Behind(VerifiedError::NotBelieved { replica: member.key(), source }));
            }
            match check(&tip, &proved) {
                Ok(value) => Ok(value),
                Err(error) => Err(self.blame(&member, error).await),
            }
        })
        .await
    }

    /// Lets replicas answer, the most promising first, the next one as soon as one fails or is slow, until one
    /// answer is good.
    async fn race<T, Run>(&self, height: u64, run: impl Fn(Arc<Member>) -> Run) -> Result<T, VerifiedError>
    where
        Run: Future<Output = Result<T, Miss>>,
    {
        self.race_from(0, height, run).await
    }

    /// As [`Self::race`], with the replicas that are well in turn: so that several questions go to several of them.
    async fn race_from<T, Run>(
        &self,
        turn: usize,
        height: u64,
        run: impl Fn(Arc<Member>) -> Run,
    ) -> Result<T, VerifiedError>
    where
        Run: Future<Output = Result<T, Miss>>,
    {
        self.tend();
        self.check_halted()?;
        let deadline = Instant::now() + PATIENCE;
        let mut liars = true;
        loop {
            let behind = match self.round(turn, &run).await {
                Ok(value) => {
                    self.second_opinion().await?;
                    return Ok(value);
                }
                // A liar is set aside now: the others get another chance before it is all that we have to tell.
                Err(Miss::Elsewhere(error)) if std::mem::take(&mut liars) && self.is_lie(&error) => continue,
                Err(Miss::Final(error) | Miss::Elsewhere(error)) => return Err(error),
                Err(Miss::Behind(error)) => error,
            };
            if Instant::now() >= deadline {
                return Err(behind);
            }
            tracing::debug!(height, "every replica is behind what is known: asking again");
            sleep(ROUND).await;
        }
    }

    /// Whether it tells of a liar where others are pinned too.
    fn is_lie(&self, error: &VerifiedError) -> bool {
        matches!(error, VerifiedError::NotBelieved { source, .. } if source.fault() == Fault::Lie)
            && self.inner.members.count() > 1
    }

    /// Each replica once.
    async fn round<T, Run>(&self, turn: usize, run: impl Fn(Arc<Member>) -> Run) -> Result<T, Miss>
    where
        Run: Future<Output = Result<T, Miss>>,
    {
        let mut order = self.inner.members.order_from(turn).into_iter();
        let mut running = FuturesUnordered::new();
        let (mut behind, mut elsewhere, mut problems) = (None, None, Vec::new());
        loop {
            if running.is_empty() {
                match order.next() {
                    Some(member) => running.push(attempt(member, &run)),
                    None => break,
                }
            }
            let more = order.len() > 0;
            tokio::select! {
                Some((member, result)) = running.next() => match result {
                    Ok(value) => {
                        self.inner.members.praise(&member);
                        return Ok(value);
                    }
                    Err(Miss::Final(error)) => return Err(Miss::Final(error)),
                    Err(Miss::Behind(error)) => behind = Some(error),
                    Err(Miss::Elsewhere(error)) => {
                        if !is_absence(&error) {
                            member.failed(&crate::client::chain(&error));
                        }
                        match error {
                            VerifiedError::Client(ClientError::Unavailable { problems: some }) => {
                                problems.extend(some);
                            }
                            error => elsewhere = Some(error),
                        }
                    }
                },
                () = sleep(SLOW), if more => {
                    running.extend(order.next().map(|member| attempt(member, &run)));
                }
            }
        }
        // What is only late comes right by itself; what a replica said tells more than that others are silent.
        Err(match (behind, elsewhere) {
            (Some(error), _) => Miss::Behind(error),
            (None, Some(error)) => Miss::Elsewhere(error),
            (None, None) => {
                problems.extend(self.inner.members.set_aside());
                Miss::Elsewhere(ClientError::Unavailable { problems }.into())
            }
        })
    }

    /// The first answer of a run waits a moment for the other replicas' tips.
    async fn second_opinion(&self) -> Result<(), VerifiedError> {
        if !*self.inner.looked.borrow() {
            let mut looked = self.inner.looked.subscribe();
            let _ = timeout(SECOND_OPINION, looked.wait_for(|looked| *looked)).await;
        }
        self.check_halted()
    }

    /// Nobody is left to ask: all are set aside.
    fn unavailable(&self) -> VerifiedError {
        ClientError::Unavailable { problems: self.inner.members.set_aside() }.into()
    }

    fn check_halted(&self) -> Result<(), VerifiedError> {
        match &lock(&self.inner.state).halted {
            None => Ok(()),
            Some(evidence) => Err(self.inner.contradicted(evidence)),
        }
    }

    // Believing.

    /// Checks a header, follows handovers up to it, and remembers it.
    async fn believe(&self, member: &Member, signed: &SignedHeader) -> Result<Tip, Miss> {
        let unknown = match self.inner.accept(signed) {
            Ok(tip) => {
                member.is_at(tip.height());
                return Ok(tip);
            }
            Err(error @ LightError::UnknownValidators { .. }) => error,
            Err(error) => return Err(self.blame(member, error).await),
        };
        self.walk(member, signed, unknown).await?;
        match self.inner.accept(signed) {
            Ok(tip) => {
                member.is_at(tip.height());
                Ok(tip)
            }
            Err(error) => Err(self.blame(member, error).await),
        }
    }

    /// From the trusted validators to those of a header, by the handovers that a replica has.
    async fn walk(&self, member: &Member, to: &SignedHeader, unknown: LightError) -> Result<(), Miss> {
        let _alone = self.inner.walking.lock().await;
        let mut walk = HandoverWalk::new();
        for _ in 0..=HANDOVERS {
            let next = walk.next(lock(&self.inner.state).trail.light(), to);
            let Some(asked) = next else { return Ok(()) };
            let handover = match member.client().handover(asked).await {
                Ok(answer) => answer.value,
                Err(ClientError::Failed { failure: Failure::NotFound { .. }, .. }) => {
                    return Err(self.blame(member, unknown).await);
                }
                Err(error) => return Err(Miss::of_client(error)),
            };
            let stepped = lock(&self.inner.state).trail.step(&mut walk, asked, &handover);
            match stepped {
                Ok(()) => {
                    let height = handover.header.height;
                    tracing::info!(height, "the grid's validators handed over to others");
                    self.inner.believed(&handover);
                }
                Err(error) => return Err(self.blame(member, error).await),
            }
        }
        Ok(())
    }

    /// What becomes of a replica whose answer is not believed.
    async fn blame(&self, member: &Member, error: LightError) -> Miss {
        if let Some(evidence) = self.inner.convict(&error) {
            return Miss::Final(self.inner.contradicted(&evidence));
        }
        let fault = error.fault();
        if fault == Fault::Lie {
            self.inner.members.accuse(member, &error.to_string()).await;
        }
        let miss = VerifiedError::NotBelieved { replica: member.key(), source: Box::new(error) };
        match fault {
            Fault::Lag => Miss::Behind(miss),
            _ => Miss::Elsewhere(miss),
        }
    }
}

async fn attempt<T, Run>(
    member: Arc<Member>,
    run: &impl Fn(Arc<Member>) -> Run,
) -> (Arc<Member>, Result<T, Miss>)
where
    Run: Future<Output = Result<T, Miss>>,
{
    let result = run(member.clone()).await;
    (member, result)
}

impl Inner {
    fn accept(&self, signed: &SignedHeader) -> Result<Tip, LightError> {
        let now_ms = self.keep.now_ms();
        let tip = lock(&self.state).trail.accept(signed, now_ms)?;
        self.believed(signed);
        Ok(tip)
    }

    fn believed(&self, signed: &SignedHeader) {
        self.keep.saw_header(&signed.header);
        let mut state = lock(&self.state);
        let news = state.seen.back().is_none_or(|newest| newest.header.height < signed.header.height);
        if news {
            if state.seen.len() == SEEN {
                state.seen.pop_front();
            }
            state.seen.push_back(signed.clone());
            state.unkept = true;
        }
        let due = state.kept.is_none_or(|kept| kept.elapsed() >= KEEP_EVERY);
        drop(state);
        if due {
            self.keep_now();
        }
    }

    /// Keeps the newest header, and how it was reached, for the next run.
    fn keep_now(&self) {
        let mut state = lock(&self.state);
        if !std::mem::take(&mut state.unkept) {
            return;
        }
        state.kept = Some(Instant::now());
        let Some((height, bytes)) = state.trail.encoded() else { return };
        drop(state);
        self.keep.keep_trail(height, &bytes);
    }

    /// The proof in an error that says that the validators broke their word. From then on nothing is done.
    fn convict(&self, error: &LightError) -> Option<Evidence> {
        let evidence = match error {
            LightError::Contradiction(contradiction) => {
                let Contradiction { known, other } = (**contradiction).clone();
                Evidence { known, other }
            }
            LightError::NotFollowing { .. } => lock(&self.state).trail.not_following()?,
            _ => return None,
        };
        let mut state = lock(&self.state);
        if let Some(earlier) = &state.halted {
            return Some(earlier.clone());
        }
        state.halted = Some(evidence.clone());
        drop(state);
        self.keep.keep_evidence(&croft_protocol::encode(&evidence));
        let place = self.keep.evidence_place();
        tracing::error!(%evidence, place, "this grid's validators contradicted themselves: nothing is done on it any more");
        Some(evidence)
    }

    fn contradicted(&self, evidence: &Evidence) -> VerifiedError {
        VerifiedError::Contradicted {
            evidence: Box::new(evidence.clone()),
            place: self.keep.evidence_place(),
        }
    }
}

fn problem(member: &Member, cause: String) -> ReplicaProblem {
    ReplicaProblem { replica: member.address().clone(), cause }
}
