//! A verified copy of the ledger from other replicas, for a replica that is new, was away for too long, or lost
//! its file.
//!
//! ```text
//!   genesis ──handovers──> present validators ──> newest header
//!                                                    │ proves each page, whoever sends it
//!   source ──records──────────────────────> unfinished file ──values of one height──> both roots are right
//!     │ slow, gone, lies                        │ stays                                    │ opened, checked
//!     └──> the next source goes on from there <─┘                                          v
//!                                                                                 renamed: it is the ledger
//! ```
//! What can be proved is checked when it comes, so a source that lies is named with what it lied about, and costs
//! one page. It must never leave under the ledger's name what is not whole, never write over a ledger that is
//! there, and never decide anything by a source's word.

mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use croft_light::{Fault, HandoverWalk, LightClient, LightError, Tip, verify_certificate, verify_value};
use croft_protocol::api::{Failure, ProvedValue, Request, Response};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{
    Genesis, Hash, PublicKey, Record, SecretKey, SignedHeader, StateKey, ValidatorSet, encode,
};
use croft_transport::{BindError, Endpoint};

pub use source::Link;
use source::Source;

use crate::chain_of;
use crate::ordering::Clock;
use crate::store::{
    BuildError, Builder, FILE, FileDisk, OpenError, RESERVED_BYTES, Store, StoreError, UNFINISHED,
    free_bytes, sync_dir,
};

/// How often each source that does not lie is tried.
const ROUNDS: usize = 3;

/// All that a join is told.
#[derive(Clone)]
pub struct JoinPlan {
    /// The replica's data folder. It may hold anything but a ledger.
    pub dir: PathBuf,
    pub genesis: Genesis,
    /// The replica's key, by which others know that it may copy.
    pub key: SecretKey,
    pub replicas: Vec<ReplicaAddress>,
    /// The time, to say how old the copy is. Nothing is decided by it.
    pub clock: Clock,
    pub progress: OnProgress,
}

/// Hears how far it is.
pub type OnProgress = Arc<dyn Fn(&Progress) + Send + Sync>;

/// What happens, for people who wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// This replica is asked; its newest header is verified.
    Source { replica: PublicKey, height: u64 },
    /// A replica is not asked any more, or not now.
    Problem(Problem),
    /// Records that are here and proved.
    Records { have: u64, of: u64 },
    /// Values that are here and proved.
    Values { have: u64, of: u64 },
    /// Nothing is asked any more; the state map is built and compared.
    Building { height: u64 },
}

/// What is wrong with a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub replica: PublicKey,
    pub reason: String,
    /// It sent what no honest replica sends: it is not asked again.
    pub lied: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinReport {
    /// The ledger begins at this height: what a replica signed up to there, its lost log does not know.
    pub height: u64,
    pub records: u64,
    pub values: u64,
    /// Changes of validators before that height.
    pub handovers: usize,
    /// How old its newest header is. What came since is fetched block by block.
    pub age_ms: u64,
    /// Replicas that were no good.
    pub problems: Vec<Problem>,
}

/// Why there is no copy. What was fetched and proved stays for the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("there is a ledger at {path} already: move the file away first if it is damaged")]
    Exists { path: PathBuf },
    #[error("no replica is known to copy from: list the others under 'peers' in replica.toml")]
    NoReplica,
    #[error("no replica could be copied from: {}; join again later, it goes on where it stopped", show(.0))]
    NoSource(Vec<Problem>),
    #[error("validators of this grid signed two headers: stop and tell its owners")]
    Contradiction(#[source] Box<LightError>),
    #[error("{path} has only {free} bytes of disk left, {RESERVED_BYTES} are kept for the ledger: make room")]
    NoSpace { path: PathBuf, free: u64 },
    #[error("can't use the folder {path}: check that it may be written")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the copy can't be written")]
    Store(#[from] StoreError),
    #[error("the copy failed in an unforeseen way: {0}")]
    Panicked(String),
}

fn show(problems: &[Problem]) -> String {
    let one = |p: &Problem| format!("{}: {}", p.replica.short(), p.reason);
    problems.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Copies the ledger from other replicas into an empty data folder.
///
/// # Errors
/// [`JoinError`]; there is no ledger then, and what was fetched and proved stays for the next attempt.
pub async fn join(plan: JoinPlan) -> Result<JoinReport, JoinError> {
    if plan.replicas.is_empty() {
        return Err(JoinError::NoReplica);
    }
    let endpoint = Endpoint::client(&plan.key)?;
    let sources: Vec<Link> =
        plan.replicas.iter().map(|address| Link::new(endpoint.clone(), address.clone())).collect();
    let joined = join_from(&plan, &sources).await;
    for source in &sources {
        source.close().await;
    }
    joined
}

/// Why one source did not get us further.
enum Trouble {
    /// It sent what no honest replica sends.
    Lie(String),
    /// It may be honest.
    Down(String),
    Ours(JoinError),
}

impl From<BuildError> for Trouble {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Open(error) => Self::Ours(error.into()),
            BuildError::Store(error) => Self::Ours(error.into()),
            lie => Self::Lie(chain_of(&lie)),
        }
    }
}

impl From<LightError> for Trouble {
    fn from(error: LightError) -> Self {
        match error.fault() {
            Fault::Validators => Self::Ours(JoinError::Contradiction(Box::new(error))),
            Fault::Lag => Self::Down(error.to_string()),
            _ => Self::Lie(error.to_string()),
        }
    }
}

async fn join_from<S: Source>(plan: &JoinPlan, sources: &[S]) -> Result<JoinReport, JoinError> {
    let builder = match prepare(plan)? {
        Prepared::Builder(builder) => Arc::new(builder),
        Prepared::Whole(report) => return Ok(report),
    };
    let mut join = Join {
        plan,
        builder,
        light: LightClient::new(plan.genesis.chain_id(), plan.genesis.validators.hash()),
        handovers: BTreeMap::new(),
        problems: Vec::new(),
    };
    let mut order = join.highest_first(sources).await?;
    for _ in 0..ROUNDS {
        for source in std::mem::take(&mut order) {
            match join.copy(source).await {
                Ok(mut report) => {
                    report.problems = join.problems;
                    // Whatever still held the file is gone with the builder.
                    drop(join.builder);
                    install(plan)?;
                    return Ok(report);
                }
                Err(trouble) => {
                    if join.problem(source, trouble)? {
                        order.push(source);
                    }
                }
            }
        }
    }
    Err(JoinError::NoSource(join.problems))
}

enum Prepared {
    Builder(Builder),
    /// An earlier attempt did everything but the last step.
    Whole(JoinReport),
}

fn prepare(plan: &JoinPlan) -> Result<Prepared, JoinError> {
    let dir = &plan.dir;
    std::fs::create_dir_all(dir).map_err(|source| JoinError::Folder { path: dir.clone(), source })?;
    let path = dir.join(FILE);
    if path.exists() {
        return Err(JoinError::Exists { path });
    }
    check_space(dir)?;
    let unfinished = dir.join(UNFINISHED);
    match Builder::open(&FileDisk::open_or_create(&unfinished)?, &plan.genesis) {
        Ok(builder) => return Ok(Prepared::Builder(builder)),
        Err(BuildError::Open(error @ (OpenError::InUse { .. } | OpenError::Io { .. }))) => {
            return Err(error.into());
        }
        Err(BuildError::Store(error)) => return Err(error.into()),
        Err(_) => {}
    }
    if let Ok(store) = Store::open_on(Box::new(FileDisk::open_existing(&unfinished)?), &plan.genesis) {
        let report = report(plan, &store)?;
        drop(store);
        install(plan)?;
        return Ok(Prepared::Whole(report));
    }
    // Of another grid or release, or damaged: of no use to anybody.
    std::fs::remove_file(&unfinished)
        .map_err(|source| JoinError::Folder { path: unfinished.clone(), source })?;
    match Builder::open(&FileDisk::open_or_create(&unfinished)?, &plan.genesis) {
        Ok(builder) => Ok(Prepared::Builder(builder)),
        Err(BuildError::Open(error)) => Err(error.into()),
        Err(BuildError::Store(error)) => Err(error.into()),
        Err(error) => Err(StoreError::damaged(error.to_string()).into()),
    }
}

fn check_space(dir: &Path) -> Result<(), JoinError> {
    match free_bytes(dir) {
        Ok(free) if free < RESERVED_BYTES => Err(JoinError::NoSpace { path: dir.to_owned(), free }),
        _ => Ok(()),
    }
}

fn report(plan: &JoinPlan, store: &Store) -> Result<JoinReport, JoinError> {
    let snapshot = store.latest();
    let header = snapshot.tip().header;
    Ok(JoinReport {
        height: header.height,
        records: header.log_size,
        values: snapshot.values()?,
        handovers: snapshot.handovers()?.len(),
        age_ms: (plan.clock)().saturating_sub(header.time_ms),
        problems: Vec::new(),
    })
}

/// Checks the whole file once more as a start does, and gives it its name.
fn install(plan: &JoinPlan) -> Result<(), JoinError> {
    let (unfinished, path) = (plan.dir.join(UNFINISHED), plan.dir.join(FILE));
    drop(Store::open_on(Box::new(FileDisk::open_existing(&unfinished)?), &plan.genesis)?);
    if path.exists() {
        return Err(JoinError::Exists { path });
    }
    std::fs::rename(&unfinished, &path)
        .and_then(|()| sync_dir(&plan.dir))
        .map_err(|source| JoinError::Folder { path, source })
}

struct Join<'a> {
    plan: &'a JoinPlan,
    builder: Arc<Builder>,
    light: LightClient,
    /// By height: headers that hand over to other validators.
    handovers: BTreeMap<u64, SignedHeader>,
    problems: Vec<Problem>,
}

impl Join<'_> {
    fn tell(&self, progress: &Progress) {
        (self.plan.progress)(progress);
    }

    /// Remembers what is wrong with a source; whether it may be asked again.
    fn problem<S: Source>(&mut self, source: &S, trouble: Trouble) -> Result<bool, JoinError> {
        let (reason, lied) = match trouble {
            Trouble::Ours(error) => return Err(error),
            Trouble::Lie(reason) => (reason, true),
            Trouble::Down(reason) => (reason, false),
        };
        let problem = Problem { replica: source.key(), reason, lied };
        self.tell(&Progress::Problem(problem.clone()));
        // Of a source that fails in every round, the last time counts.
        self.problems.retain(|known| known.lied || known.replica != problem.replica);
        self.problems.push(problem);
        Ok(!lied)
    }

    /// The sources that have a verified header, the newest first.
    async fn highest_first<'s, S: Source>(&mut self, sources: &'s [S]) -> Result<Vec<&'s S>, JoinError> {
        let mut found: Vec<(SignedHeader, &S)> = Vec::new();
        let mut silent = Vec::new();
        for source in sources {
            let mut light = self.light.clone();
            let header = match ask(source, Request::Tip).await.and_then(header) {
                Ok(header) => header,
                Err(trouble) => {
                    if self.problem(source, trouble)? {
                        silent.push(source);
                    }
                    continue;
                }
            };
            let mut walked = BTreeMap::new();
            match accept(&mut light, &mut walked, source, &header).await {
                Ok(_) => found.push((header, source)),
                Err(trouble) => drop(self.problem(source, trouble)?),
            }
        }
        found.sort_by_key(|(signed, _)| std::cmp::Reverse(signed.header.height));
        for pair in found.windows(2) {
            let (one, other) = (&pair[0].0, &pair[1].0);
            if one.header.height == other.header.height && one.header != other.header {
                let (known, other) = (one.clone(), other.clone());
                let two = LightError::Contradiction(Box::new(croft_light::Contradiction { known, other }));
                return Err(JoinError::Contradiction(Box::new(two)));
            }
        }
        Ok(found.into_iter().map(|(_, source)| source).chain(silent).collect())
    }

    /// Copies everything that is still missing from one source.
    async fn copy<S: Source>(&mut self, source: &S) -> Result<JoinReport, Trouble> {
        let tip = ask(source, Request::Tip).await.and_then(header)?;
        let height = tip.header.height;
        let tip = accept(&mut self.light, &mut self.handovers, source, &tip).await?;
        self.tell(&Progress::Source { replica: source.key(), height });
        self.records(source, &tip).await?;
        // The values are of one height; so are, from here on, the records.
        let (signed, id, count) = match ask(source, Request::SnapshotOpen).await? {
            Response::SnapshotOpened { tip, id, values } => (*tip, id, values),
            _ => return Err(strange()),
        };
        let tip = accept(&mut self.light, &mut self.handovers, source, &signed).await?;
        self.records(source, &tip).await?;
        self.values(source, &tip, id, count).await?;
        self.older_handovers(source, &signed).await?;
        self.finish(signed).await
    }

    /// Every record that is not here yet, up to the end of the log of `tip`.
    async fn records<S: Source>(&self, source: &S, tip: &Tip) -> Result<(), Trouble> {
        let of = tip.header().log_size;
        let mut have = self.builder.records().map_err(|error| Trouble::Ours(error.into()))?;
        if have > of {
            // Proved against a newer header, which this source does not have yet.
            return Err(Trouble::Down(format!("its log has {of} records, {have} are here already")));
        }
        let mut page = if have < of { Some(records_page(source, have, of).await?) } else { None };
        while let Some((records, proof)) = page.take() {
            check_space(&self.plan.dir).map_err(Trouble::Ours)?;
            let next = have + records.len() as u64;
            let (builder, tip) = (self.builder.clone(), *tip);
            let adding = blocking(move || builder.add_records(&tip, &records, &proof));
            // The next page comes while this one is written.
            let asking =
                async { if next < of { records_page(source, next, of).await.map(Some) } else { Ok(None) } };
            let (added, asked) = tokio::join!(adding, asking);
            have = added?;
            self.tell(&Progress::Records { have, of });
            page = asked?;
        }
        Ok(())
    }

    /// Every value of the height of `tip` that is no record.
    async fn values<S: Source>(&self, source: &S, tip: &Tip, id: u64, of: u64) -> Result<(), Trouble> {
        self.builder.begin_values()?;
        let (mut have, mut after) = (0, None);
        loop {
            check_space(&self.plan.dir).map_err(Trouble::Ours)?;
            let request = Request::SnapshotValues { id, after: after.clone() };
            let Response::SnapshotValues { values, more } = ask(source, request).await? else {
                return Err(strange());
            };
            if values.is_empty() && more {
                return Err(strange());
            }
            let (builder, tip, before) = (self.builder.clone(), *tip, after.take());
            let adding = blocking(move || -> Result<_, Trouble> {
                let values = verified(&tip, before.as_ref(), values)?;
                builder.add_values(&values)?;
                Ok((values.len() as u64, values.into_iter().next_back().map(|(key, _)| key)))
            });
            let (added, last) = adding.await?;
            have += added;
            after = last;
            self.tell(&Progress::Values { have, of });
            if !more {
                return Ok(());
            }
        }
    }

    /// The handovers of every set that the log has named: what clients who trust an old one will ask for.
    async fn older_handovers<S: Source>(&mut self, source: &S, tip: &SignedHeader) -> Result<(), Trouble> {
        let sets = self.builder.validator_sets().map_err(|error| Trouble::Ours(error.into()))?;
        let hashes: BTreeSet<Hash> = sets.iter().map(ValidatorSet::hash).collect();
        for validators in hashes {
            let known = self.handovers.values().any(|signed| signed.header.validators == validators);
            if known || validators == tip.header.next_validators {
                continue;
            }
            let signed = match ask(source, Request::Handover { validators }).await {
                Ok(response) => header(response)?,
                // Named in a block, and replaced before it certified one.
                Err(Trouble::Down(_)) => continue,
                Err(trouble) => return Err(trouble),
            };
            check_handover(tip, &signed, &validators)?;
            if signed.header.height < tip.header.height {
                self.handovers.insert(signed.header.height, signed);
            }
        }
        Ok(())
    }

    async fn finish(&self, tip: SignedHeader) -> Result<JoinReport, Trouble> {
        let header = tip.header;
        self.tell(&Progress::Building { height: header.height });
        let before: Vec<SignedHeader> =
            self.handovers.range(..header.height).map(|(_, h)| h.clone()).collect();
        let handovers = before.len();
        let builder = self.builder.clone();
        let values = blocking(move || builder.finish(&tip, &before)).await?;
        Ok(JoinReport {
            height: header.height,
            records: header.log_size,
            values,
            handovers,
            age_ms: (self.plan.clock)().saturating_sub(header.time_ms),
            problems: Vec::new(),
        })
    }
}

/// Believes a header, along the handovers that lead to it.
async fn accept<S: Source>(
    light: &mut LightClient,
    handovers: &mut BTreeMap<u64, SignedHeader>,
    source: &S,
    signed: &SignedHeader,
) -> Result<Tip, Trouble> {
    let mut walk = HandoverWalk::new();
    while let Some(validators) = walk.next(light, signed) {
        let handover = ask(source, Request::Handover { validators }).await.and_then(header)?;
        walk.step(light, &handover)?;
        handovers.insert(handover.header.height, handover);
    }
    Ok(light.accept_tip(signed, None)?)
}

/// A handover that nobody's trust depends on: of a set that the log names, certified by it.
fn check_handover(tip: &SignedHeader, signed: &SignedHeader, validators: &Hash) -> Result<(), Trouble> {
    let header = &signed.header;
    verify_certificate(signed)?;
    let right = header.chain == tip.header.chain
        && header.validators == *validators
        && header.next_validators != *validators;
    if right {
        return Ok(());
    }
    Err(Trouble::Lie(format!("header {} is no handover of validators {validators}", header.height)))
}

/// Values in order, after a key, none of them a record, each proved to be there.
fn verified(
    tip: &Tip,
    after: Option<&StateKey>,
    values: Vec<(StateKey, ProvedValue)>,
) -> Result<Vec<(StateKey, Vec<u8>)>, Trouble> {
    let mut last = after.map(encode);
    let mut good = Vec::with_capacity(values.len());
    for (key, proved) in values {
        let bytes = encode(&key);
        let in_order = last.as_ref().is_none_or(|last| *last < bytes);
        if !in_order || matches!(key, StateKey::Record(_)) {
            return Err(Trouble::Lie(format!("it sent a value out of order: {key:?}")));
        }
        last = Some(bytes);
        match verify_value(tip, &key, &proved)? {
            Some(value) => good.push((key, value)),
            None => return Err(Trouble::Lie(format!("it sent a value that is not there: {key:?}"))),
        }
    }
    Ok(good)
}

async fn records_page<S: Source>(
    source: &S,
    first: u64,
    size: u64,
) -> Result<(Vec<Record>, Vec<u8>), Trouble> {
    match ask(source, Request::SnapshotRecords { first, size }).await? {
        Response::SnapshotRecords { records, proof } => Ok((records, proof)),
        _ => Err(strange()),
    }
}

async fn ask<S: Source>(source: &S, request: Request) -> Result<Response, Trouble> {
    match source.ask(request).await {
        Ok(Response::Failed(failure @ Failure::Malformed { .. })) => {
            Err(Trouble::Down(format!("it can't be copied from: {failure}")))
        }
        Ok(Response::Failed(failure)) => Err(Trouble::Down(failure.to_string())),
        Ok(response) => Ok(response),
        Err(reason) => Err(Trouble::Down(reason)),
    }
}

fn header(response: Response) -> Result<SignedHeader, Trouble> {
    match response {
        Response::Header(header) => Ok(*header),
        _ => Err(strange()),
    }
}

fn strange() -> Trouble {
    Trouble::Lie("it answered something else than was asked".to_owned())
}

async fn blocking<T: Send + 'static, E: Into<Trouble> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(Trouble::Ours(JoinError::Panicked(error.to_string()))),
    }
}
