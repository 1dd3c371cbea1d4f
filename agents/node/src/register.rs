//! Registration and reports: what the node says on the ledger.
//!
//! ```text
//!   Unregistered ──register──> Registered ──report, report, ...──>
//!        ▲  no ledger: again later  │ StaleSession: another machine runs with our key
//! ```
//! Phases are types: only a [`Registered`] can report. It must never report time that it did not observe, nor go on
//! reporting when the ledger has seen a newer session of its key.

use std::sync::Arc;

use croft_protocol::boot::BootConfig;
use croft_protocol::command::SignedJoin;
use croft_protocol::record::{ContractReport, HardwareSummary, NodeBody, ReportBody, TrustClass};
use croft_protocol::{
    Body, Capacity, Command, FarmId, Name, NodeId, Record, RecordId, Rejection, StateKey, limits,
};

use crate::ledger::{Ledger, LedgerError};
use crate::time::Time;

/// What this machine says of itself, whatever its session.
#[derive(Debug, Clone)]
pub struct Profile {
    pub name: Name,
    pub sealing_key: [u8; 32],
    pub capacity: Capacity,
    pub hardware: HardwareSummary,
    pub trust: TrustClass,
    pub addresses: Vec<String>,
    pub release: String,
}

/// The node's name: as configured, or from its key.
#[must_use]
pub fn name(boot: &BootConfig, id: &NodeId) -> Name {
    boot.node
        .name
        .clone()
        .unwrap_or_else(|| Name::new(&format!("node-{}", id.short())).expect("hex digits end a name well"))
}

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the ledger refuses this node: {0}")]
    Refused(Rejection),
}

/// A node that the ledger has not heard of in this boot.
pub struct Unregistered {
    pub id: NodeId,
    pub join: SignedJoin,
    pub profile: Profile,
    pub ledger: Arc<Ledger>,
    pub time: Arc<Time>,
}

/// A node with a session.
pub struct Registered {
    id: NodeId,
    farm: FarmId,
    session: u64,
    profile: Profile,
    ledger: Arc<Ledger>,
    time: Arc<Time>,
    /// Where the reports of earlier boots ended: nothing before is covered again.
    pub reported_until_ms: u64,
}

impl Unregistered {
    /// Registers with a session newer than every one before. Returns the block height too.
    ///
    /// # Errors
    /// [`RegisterError`]; the node stays unregistered and may try again.
    pub async fn register(self) -> Result<(Registered, u64), (Self, RegisterError)> {
        match self.try_register().await {
            Ok((session, reported_until_ms, height)) => {
                let Self { id, join, profile, ledger, time } = self;
                let farm = join.join.farm;
                Ok((Registered { id, farm, session, profile, ledger, time, reported_until_ms }, height))
            }
            Err(error) => Err((self, error)),
        }
    }

    async fn try_register(&self) -> Result<(u64, u64, u64), RegisterError> {
        let keys =
            vec![StateKey::Record(RecordId::node(&self.id)), StateKey::Record(RecordId::report(&self.id))];
        let (_, values) = self.ledger.read(keys).await?;
        let mut bodies = values.iter().map(|value| {
            let record: Record =
                croft_protocol::decode("record", value.as_ref()?, limits::RECORD_BYTES).ok()?;
            Some(record.body)
        });
        let known = match bodies.next().flatten() {
            Some(Body::Node(node)) => Some(node),
            _ => None,
        };
        let reported_until_ms = match bodies.next().flatten() {
            Some(Body::Report(report)) => report.until_ms,
            _ => 0,
        };
        let session = known.as_ref().map_or(1, |node| node.session + 1);
        let node = body(&self.profile, self.join.join.farm, session);
        let join = known.is_none().then(|| self.join.clone());
        let height = self.ledger.submit(Command::RegisterNode { node, join }).await.map_err(refused)?;
        Ok((session, reported_until_ms, height))
    }
}

fn refused(error: LedgerError) -> RegisterError {
    match error.rejection() {
        Some(rejection) => RegisterError::Refused(rejection.clone()),
        None => RegisterError::Ledger(error),
    }
}

fn body(profile: &Profile, farm: FarmId, session: u64) -> NodeBody {
    NodeBody {
        farm,
        name: profile.name.clone(),
        sealing_key: profile.sealing_key,
        capacity: profile.capacity,
        hardware: profile.hardware.clone(),
        trust: profile.trust,
        addresses: profile.addresses.clone(),
        release: profile.release.clone(),
        session,
    }
}

impl Registered {
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Says that the node is reached elsewhere now.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub async fn set_addresses(&mut self, addresses: Vec<String>) -> Result<(), RegisterError> {
        if addresses == self.profile.addresses {
            return Ok(());
        }
        let profile = Profile { addresses, ..self.profile.clone() };
        let node = body(&profile, self.farm, self.session);
        self.ledger.submit(Command::RegisterNode { node, join: None }).await.map_err(refused)?;
        self.profile = profile;
        Ok(())
    }

    /// Reports. Returns until when the report covers, which may be less than asked for.
    ///
    /// # Errors
    /// [`RegisterError::Refused`] with the ledger's reason.
    pub async fn report(
        &mut self,
        from_ms: u64,
        until_ms: u64,
        contracts: &[ContractReport],
    ) -> Result<u64, RegisterError> {
        let until_ms = until_ms.min(self.time.header_ms() + limits::CLOCK_SLACK_MS / 2);
        let earliest = until_ms.saturating_sub(limits::REPORT_COVERS_MS);
        let from_ms = from_ms.max(self.reported_until_ms).max(earliest).min(until_ms);
        let contracts = contracts
            .iter()
            .map(|line| ContractReport { ran_ms: line.ran_ms.min(until_ms - from_ms), ..line.clone() })
            .collect();
        let report = ReportBody { node: self.id, session: self.session, from_ms, until_ms, contracts };
        self.ledger.submit(Command::Report(report)).await.map_err(refused)?;
        self.reported_until_ms = until_ms;
        Ok(until_ms)
    }
}
