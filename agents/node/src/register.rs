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
    Body, Capacity, Command, FarmId, Name, NodeId, NodeTrouble, NodeTrust, Record, RecordId, Rejection,
    StateKey, limits, trouble,
};

use crate::ledger::{Ledger, LedgerError, chain_of};
use crate::time::Time;
use crate::troubles;
use crate::witness::{Witness, WitnessError};

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
    /// All that is wrong, in any number and order.
    pub troubles: Vec<NodeTrouble>,
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
    /// The TPM that holds the node's key.
    pub witness: Option<Arc<Witness>>,
}

/// What the ledger makes of this node, and why it is not more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub class: TrustClass,
    pub reasons: Vec<String>,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.class {
            TrustClass::Plain => "plain",
            TrustClass::Sealed => "sealed",
            TrustClass::Attested => "attested",
        })?;
        if self.reasons.is_empty() { Ok(()) } else { write!(f, " ({})", self.reasons.join("; ")) }
    }
}

/// A node with a session.
pub struct Registered {
    id: NodeId,
    farm: FarmId,
    session: u64,
    profile: Profile,
    ledger: Arc<Ledger>,
    time: Arc<Time>,
    witness: Option<Arc<Witness>>,
    /// Whether the ledger may know another profile than this one: an answer was lost.
    unsure: bool,
    /// Why there is no quote, in the node's own words on the ledger.
    no_quote: Option<NodeTrouble>,
    /// As it registered last.
    standing: Standing,
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
            Ok(Entered { session, reported_until_ms, height, standing, no_quote }) => {
                let Self { id, join, profile, ledger, time, witness } = self;
                let farm = join.join.farm;
                let registered = Registered {
                    id,
                    farm,
                    session,
                    profile,
                    ledger,
                    time,
                    witness,
                    unsure: false,
                    no_quote,
                    standing,
                    reported_until_ms,
                };
                Ok((registered, height))
            }
            Err(error) => Err((self, error)),
        }
    }

    async fn try_register(&self) -> Result<Entered, RegisterError> {
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
        let session = next_session(known.as_ref().map_or(0, |node| node.session), random_step());
        let node = body(&self.profile, None, self.join.join.farm, session);
        let join = known.is_none().then(|| self.join.clone());
        let (ledger, id) = (&self.ledger, &self.id);
        let (height, standing, no_quote) = submit(ledger, self.witness.as_deref(), id, node, join).await?;
        Ok(Entered { session, reported_until_ms, height, standing, no_quote })
    }
}

/// A registration that is final.
struct Entered {
    session: u64,
    reported_until_ms: u64,
    height: u64,
    standing: Standing,
    no_quote: Option<NodeTrouble>,
}

/// Later than every one before. By how much is chance: two machines with one key that start at the same moment must not
/// take the same number, or both would go on.
fn next_session(known: u64, step: u16) -> u64 {
    known.saturating_add(1).saturating_add(step.into())
}

fn random_step() -> u16 {
    let mut bytes = [0; 2];
    // Without randomness there are no keys either.
    let _ = getrandom::fill(&mut bytes);
    u16::from_le_bytes(bytes)
}

/// Registers with a quote where the TPM gives one. Returns the height, what the ledger makes of it, and why there is no
/// quote where that does not go away by itself.
async fn submit(
    ledger: &Ledger,
    witness: Option<&Witness>,
    id: &NodeId,
    mut node: NodeBody,
    join: Option<SignedJoin>,
) -> Result<(u64, Standing, Option<NodeTrouble>), RegisterError> {
    let mut reasons = Vec::new();
    let mut no_quote = None;
    let attestation = match witness {
        None => None,
        Some(witness) => match witness.attest(ledger, id, &node).await {
            Ok(attestation) => Some(Box::new(attestation)),
            Err(error) => {
                let reason = chain_of(&error);
                tracing::warn!(reason, "the node registers without a quote");
                if !matches!(error, WitnessError::Ledger(_) | WitnessError::NoHeader) {
                    let trouble = troubles::no_quote(&reason);
                    node.troubles.push(trouble.clone());
                    node.troubles = trouble::bounded(node.troubles);
                    no_quote = Some(trouble);
                }
                reasons.push(reason);
                None
            }
        },
    };
    let submitted = ledger.submit(Command::RegisterNode { node, join, attestation }).await;
    if let (Err(_), Some(witness)) = (&submitted, witness) {
        witness.not_taken();
    }
    let height = submitted.map_err(refused)?;
    if witness.is_none() {
        return Ok((height, Standing { class: TrustClass::Plain, reasons }, no_quote));
    }
    let mut standing = standing(ledger, id).await?;
    standing.reasons.extend(reasons);
    Ok((height, standing, no_quote))
}

/// What the ledger makes of the node now.
async fn standing(ledger: &Ledger, id: &NodeId) -> Result<Standing, RegisterError> {
    let (_, values) = ledger.read(vec![StateKey::NodeTrust(*id)]).await?;
    let trust = values.first().and_then(Option::as_ref).and_then(|bytes| {
        croft_protocol::decode::<NodeTrust>("trust in this node", bytes, limits::RECORD_BYTES).ok()
    });
    Ok(trust.map_or(Standing { class: TrustClass::Plain, reasons: Vec::new() }, |trust| Standing {
        class: trust.class,
        reasons: trust.reasons,
    }))
}

fn refused(error: LedgerError) -> RegisterError {
    match error.rejection() {
        Some(rejection) => RegisterError::Refused(rejection.clone()),
        None => RegisterError::Ledger(error),
    }
}

fn body(profile: &Profile, no_quote: Option<&NodeTrouble>, farm: FarmId, session: u64) -> NodeBody {
    let troubles = profile.troubles.iter().chain(no_quote).cloned().collect();
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
        troubles: trouble::bounded(troubles),
    }
}

impl Registered {
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }

    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Registers once more with a new quote where that may be worth more: replicas vouch meanwhile, a release is in
    /// force that was unknown, or the last quote grows old. Returns whether the ledger makes anything else of the node.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub async fn improve(&mut self) -> Result<bool, RegisterError> {
        let Some(witness) = self.witness.clone() else { return Ok(false) };
        if self.standing.class == TrustClass::Attested && !witness.is_due(self.time.header_ms()) {
            return Ok(false);
        }
        let node = body(&self.profile, None, self.farm, self.session);
        // Only what is new is worth a record.
        let Some(attestation) = witness.better(&self.ledger, &self.id, &node).await else { return Ok(false) };
        let attestation = Some(Box::new(attestation));
        let command = Command::RegisterNode { node, join: None, attestation };
        let submitted = self.ledger.submit(command).await;
        if submitted.is_err() {
            witness.not_taken();
        }
        submitted.map_err(refused)?;
        self.no_quote = None;
        let standing = standing(&self.ledger, &self.id).await?;
        let changed = standing != self.standing;
        self.standing = standing;
        Ok(changed)
    }

    /// Says where the node is reached now, and what is wrong with it. Neither needs a new quote. Returns whether that took
    /// a record.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub async fn tell(
        &mut self,
        addresses: Vec<String>,
        troubles: Vec<NodeTrouble>,
    ) -> Result<bool, RegisterError> {
        let profile = Profile { addresses, troubles, ..self.profile.clone() };
        let say = |profile: &Profile| body(profile, self.no_quote.as_ref(), self.farm, self.session);
        let node = say(&profile);
        if node == say(&self.profile) && !self.unsure {
            self.profile = profile;
            return Ok(false);
        }
        self.unsure = true;
        self.ledger
            .submit(Command::RegisterNode { node, join: None, attestation: None })
            .await
            .map_err(refused)?;
        (self.profile, self.unsure) = (profile, false);
        Ok(true)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_grow_and_two_machines_rarely_take_the_same() {
        assert_eq!(next_session(0, 0), 1);
        assert_eq!(next_session(7, u16::MAX), 8 + 65_535);
        assert_eq!(next_session(u64::MAX, 3), u64::MAX);
        let different: std::collections::BTreeSet<u16> = (0..64).map(|_| random_step()).collect();
        assert!(different.len() > 32, "{different:?}");
    }

    #[test]
    fn a_standing_says_why_it_is_not_more() {
        let reasons = vec!["no boot file was measured".to_owned(), "and another".to_owned()];
        let standing = Standing { class: TrustClass::Sealed, reasons };
        assert_eq!(standing.to_string(), "sealed (no boot file was measured; and another)");
        let best = Standing { class: TrustClass::Attested, reasons: Vec::new() };
        assert_eq!(best.to_string(), "attested");
    }
}
