//! The pinned replicas: which of them to ask first, and what is wrong with the others.
//!
//! ```text
//!   resting ──connected──> active (at most three) ──failed twice, lied──> resting, another one takes its place
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_protocol::api::{Cursor, Page, Query, RefusedNode, Status};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{FarmId, Genesis, Hash, PublicKey};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{Miss, Verified, VerifiedError, lock};
use crate::client::{Client, ClientError, ReplicaProblem};
use crate::endpoint::Endpoint;

/// Replicas that are kept connected: with one down and one lying, one is left.
const ACTIVE: usize = 3;
/// A liar is left alone for so long, as in `client`.
const LIAR: Duration = Duration::from_secs(600);
/// For what every replica is asked at once and the slow ones are left out.
const EACH: Duration = Duration::from_secs(2);
/// A replica that does not say how it is by then is away. A connection takes up to five seconds.
const STATUS: Duration = Duration::from_secs(8);

/// One pinned replica.
#[derive(Debug)]
pub(super) struct Member {
    index: usize,
    address: ReplicaAddress,
    client: Client,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// Since it was good for something last.
    failures: u32,
    lied_until: Option<Instant>,
    height: Option<u64>,
    problem: Option<String>,
}

impl Member {
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) fn key(&self) -> PublicKey {
        self.address.key
    }

    pub(super) fn address(&self) -> &ReplicaAddress {
        &self.address
    }

    /// It sent a header of this height that is believed.
    pub(super) fn is_at(&self, height: u64) {
        lock(&self.health).height = Some(height);
    }

    /// It is of use.
    pub(super) fn is_well(&self) {
        let mut health = lock(&self.health);
        health.failures = 0;
        if health.lied_until.is_none_or(|until| until <= Instant::now()) {
            health.lied_until = None;
            health.problem = None;
        }
    }

    pub(super) fn failed(&self, cause: &str) {
        let mut health = lock(&self.health);
        health.failures = health.failures.saturating_add(1);
        if health.lied_until.is_none() {
            health.problem = Some(cause.to_owned());
        }
    }

    /// No honest replica says this: nothing is asked of it for a while.
    pub(super) async fn lied(&self, what: &str) {
        {
            let mut health = lock(&self.health);
            health.failures = health.failures.saturating_add(1);
            health.lied_until = Some(Instant::now() + LIAR);
            health.problem = Some(format!("it lied: {what}"));
        }
        self.client.report_lie(&self.address.key, what).await;
    }

    fn is_liar(&self) -> bool {
        lock(&self.health).lied_until.is_some_and(|until| until > Instant::now())
    }

    pub(super) fn failures(&self) -> u32 {
        lock(&self.health).failures
    }
}

#[derive(Debug)]
pub(super) struct Members {
    /// In the order in which this client tries them: its own, so that not everybody asks the first one.
    all: Vec<Arc<Member>>,
    preferred: AtomicUsize,
    active: watch::Sender<BTreeSet<usize>>,
}

impl Members {
    pub(super) fn new(endpoint: &Endpoint, mut replicas: Vec<ReplicaAddress>) -> Result<Self, ClientError> {
        let me = endpoint.key();
        replicas.sort_by_key(|replica| Hash::of("croft/replica-order", &(me, replica.key)));
        replicas.dedup();
        let mut all = Vec::with_capacity(replicas.len());
        for (index, address) in replicas.into_iter().enumerate() {
            let client = Client::over(endpoint.clone(), vec![address.clone()])?;
            all.push(Arc::new(Member { index, address, client, health: Mutex::default() }));
        }
        let active = watch::Sender::new((0..all.len().min(ACTIVE)).collect());
        Ok(Self { all, preferred: AtomicUsize::new(0), active })
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get(&self, index: usize) -> Arc<Member> {
        self.all[index].clone()
    }

    /// Whom to ask, the most promising first. Liars are left out, unless nobody else is pinned.
    pub(super) fn order(&self) -> Vec<Arc<Member>> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let active = self.active.borrow().clone();
        let mut order: Vec<_> =
            self.all.iter().filter(|member| self.all.len() == 1 || !member.is_liar()).cloned().collect();
        order.sort_by_key(|member| {
            (member.failures(), !active.contains(&member.index), member.index != preferred, member.index)
        });
        order
    }

    /// As [`Self::order`], with those that are connected and well in turn.
    pub(super) fn order_from(&self, turn: usize) -> Vec<Arc<Member>> {
        let mut order = self.order();
        let active = self.active.borrow().clone();
        let well = order.iter().take_while(|m| m.failures() == 0 && active.contains(&m.index)).count();
        if well > 0 {
            order[..well].rotate_left(turn % well);
        }
        order
    }

    /// Those that are kept connected.
    pub(super) fn active(&self) -> Vec<Arc<Member>> {
        let active = self.active.borrow();
        active.iter().map(|index| self.all[*index].clone()).collect()
    }

    pub(super) fn watch_active(&self) -> watch::Receiver<BTreeSet<usize>> {
        self.active.subscribe()
    }

    /// It gave a good answer.
    pub(super) fn praise(&self, member: &Member) {
        self.preferred.store(member.index, Ordering::Relaxed);
        member.is_well();
    }

    /// No honest replica says this. The only one that is pinned is not set aside: there is nobody else to ask.
    pub(super) async fn accuse(&self, member: &Member, what: &str) {
        if self.all.len() > 1 {
            member.lied(what).await;
        } else {
            member.failed(what);
        }
    }

    /// Puts others in the place of active replicas that are of no use.
    pub(super) fn rotate(&self) {
        if self.all.len() <= ACTIVE {
            return;
        }
        let useless = |member: &Member| member.is_liar() || member.failures() >= 2;
        self.active.send_if_modified(|active| {
            let before = active.clone();
            for index in before.iter().filter(|index| useless(&self.all[**index])) {
                let fresh = self.all.iter().find(|other| !active.contains(&other.index) && !useless(other));
                if let Some(fresh) = fresh {
                    active.remove(index);
                    active.insert(fresh.index);
                }
            }
            *active != before
        });
    }

    /// What is wrong with those that are not asked.
    pub(super) fn set_aside(&self) -> Vec<ReplicaProblem> {
        let liars = self.all.iter().filter(|member| self.all.len() > 1 && member.is_liar());
        let with_cause = liars.filter_map(|member| {
            let cause = lock(&member.health).problem.clone()?;
            Some(super::problem(member, format!("{cause}; ask its owner, or pin another")))
        });
        with_cause.collect()
    }
}

/// What is known of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaView {
    pub replica: ReplicaAddress,
    pub connected: bool,
    /// Of the last header of it that was believed.
    pub height: Option<u64>,
    /// Why it is not used, if so.
    pub problem: Option<String>,
    /// What it says of itself.
    pub status: Option<Status>,
}

/// What replicas say without proof: good for finding, never for believing.
#[derive(Debug, Clone, Copy)]
pub struct Unproved<'a>(&'a Verified);

impl Verified {
    /// What replicas say without proof.
    #[must_use]
    pub fn unproved(&self) -> Unproved<'_> {
        Unproved(self)
    }
}

impl Unproved<'_> {
    async fn ask<T, Asked>(&self, ask: impl Fn(Client) -> Asked) -> Result<T, VerifiedError>
    where
        Asked: Future<Output = Result<crate::Answer<T>, ClientError>>,
    {
        let ask = &ask;
        let asked = |member: Arc<Member>| async move {
            ask(member.client()).await.map(|answer| answer.value).map_err(Miss::of_client)
        };
        self.0.race(0, asked).await
    }

    /// The genesis: its hash is the chain id, so it is its own proof.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica has it.
    pub async fn genesis(&self) -> Result<Genesis, VerifiedError> {
        self.ask(|client| async move { client.genesis().await }).await
    }

    /// Searches; the replica may hide things.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica answers.
    pub async fn query(
        &self,
        query: &Query,
        after: Option<&Cursor>,
        count: u32,
    ) -> Result<Page, VerifiedError> {
        self.ask(|client| async move { client.query(query.clone(), after.cloned(), count).await }).await
    }

    /// Who is connected to any of the replicas that we are connected to.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica answers.
    pub async fn presence(&self, keys: &[PublicKey]) -> Result<Vec<bool>, VerifiedError> {
        let ask = |member: Arc<Member>| async move {
            timeout(EACH, member.client.presence(keys.to_vec())).await.ok()?.ok().map(|answer| answer.value)
        };
        let said = join_all(self.0.inner.members.active().into_iter().map(ask)).await;
        let either = |mut all: Vec<bool>, some: Vec<bool>| {
            all.iter_mut().zip(some).for_each(|(all, some)| *all |= some);
            all
        };
        match said.into_iter().flatten().reduce(either) {
            Some(present) => Ok(present),
            // Nobody in time: whoever answers first, with the reason if nobody does.
            None => self.ask(|client| async move { client.presence(keys.to_vec()).await }).await,
        }
    }

    /// Machines of a farm that replicas saw refused lately, each once as it was refused last. Only the replica that a
    /// machine spoke to knows; one that does not answer in time is left out.
    pub async fn refused(&self, farm: FarmId) -> Vec<RefusedNode> {
        let ask = |member: Arc<Member>| async move {
            timeout(EACH, member.client.refused(farm)).await.ok()?.ok().map(|answer| answer.value)
        };
        let said = join_all(self.0.inner.members.order().into_iter().map(ask)).await;
        let mut newest: BTreeMap<PublicKey, RefusedNode> = BTreeMap::new();
        for one in said.into_iter().flatten().flatten() {
            if newest.get(&one.node).is_none_or(|known| known.time_ms < one.time_ms) {
                newest.insert(one.node, one);
            }
        }
        newest.into_values().collect()
    }

    /// What one replica says of itself.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica answers.
    pub async fn status(&self) -> Result<Status, VerifiedError> {
        self.ask(|client| async move { client.status().await }).await
    }

    /// What is known of each pinned replica, and what it says of itself. Waits for the slow ones a little.
    pub async fn replicas(&self) -> Vec<ReplicaView> {
        let view = |member: Arc<Member>| async move {
            let said = timeout(STATUS, member.client.status()).await;
            let (status, cause) = match said {
                Ok(Ok(answer)) => (Some(answer.value), None),
                Ok(Err(error)) => (None, Some(crate::client::chain(&error))),
                Err(_) => (None, Some("it does not answer".to_owned())),
            };
            let connected = member.client.current().await.is_some();
            let health = lock(&member.health);
            // One that answers now has only its lies against it.
            let lied = health.lied_until.is_some_and(|until| until > Instant::now());
            let problem = health.problem.clone().filter(|_| lied || status.is_none()).or(cause);
            ReplicaView { replica: member.address.clone(), connected, height: health.height, problem, status }
        };
        let mut views = join_all(self.0.inner.members.all.iter().cloned().map(view)).await;
        views.sort_by_key(|view| view.replica.key);
        views
    }
}
