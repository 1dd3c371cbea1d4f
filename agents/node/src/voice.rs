//! The tasks that speak with the ledger, so that the main loop never waits for a network.
//!
//! ```text
//!   hear: follow ──> pull with proofs ──> main loop
//!   speak: register ──> reports, settlements <── main loop
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use croft_protocol::api::Concern;
use croft_protocol::record::ContractReport;
use croft_protocol::{Command, ContractId, NodeId, NodeTrouble, Rejection};
use croft_transport::verified::Followed;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::contracts::{self, Pulled};
use crate::ledger::{BackOff, Ledger, chain_of};
use crate::links;
use crate::register::{RegisterError, Registered, Standing, Unregistered};
use crate::time::{Time, sleep_until_some};
use crate::troubles::Telling;

/// Everything is pulled again this often, whatever was heard.
const PULL_EVERY: Duration = Duration::from_secs(60);
/// A node whose TPM could be worth more asks again this often, and whether its last quote grows old: a registration an
/// hour's sixth costs little.
const IMPROVE_EVERY: Duration = Duration::from_secs(600);

/// What the main loop hears.
#[derive(Debug)]
pub enum Heard {
    Pulled(Pulled),
    /// The ledger knows this boot; reports of earlier ones end here.
    Registered {
        session: u64,
        height: u64,
        reported_until_ms: u64,
        /// What the ledger makes of the node.
        standing: Standing,
    },
    /// Another machine registered with this node's key after this one did.
    Superseded {
        reason: String,
    },
    /// Registration failed; it goes on being tried.
    NotRegistered {
        reason: String,
    },
    /// A report is final until then.
    Reported {
        until_ms: u64,
        contracts: Vec<ContractReport>,
    },
    /// A report was not taken.
    NotReported {
        reason: String,
    },
}

/// What the main loop wants said.
#[derive(Debug)]
pub enum Say {
    Report { from_ms: u64, until_ms: u64, contracts: Vec<ContractReport> },
    Settle(ContractId),
}

/// Follows the ledger for ever; sends what it proves of the node's contracts. `trouble` is why it can't, while it can't.
pub async fn hear(
    ledger: Arc<Ledger>,
    time: Arc<Time>,
    node: NodeId,
    known: watch::Receiver<BTreeSet<ContractId>>,
    heard: mpsc::Sender<Heard>,
    trouble: watch::Sender<Option<String>>,
) {
    let mut back_off = BackOff::default();
    loop {
        let reason = match follow(&ledger, &time, node, (&known, &heard), (&mut back_off, &trouble)).await {
            Ok(()) => return,
            Err(reason) => reason,
        };
        trouble.send_replace(Some(reason.clone()));
        let pause = back_off.next();
        tracing::warn!(
            reason,
            pause_ms = pause.as_millis() as u64,
            "the ledger is out of reach; workloads go on"
        );
        sleep(pause).await;
    }
}

/// `Ok` when the main loop is gone.
async fn follow(
    ledger: &Ledger,
    time: &Time,
    node: NodeId,
    (known, heard): (&watch::Receiver<BTreeSet<ContractId>>, &mpsc::Sender<Heard>),
    (back_off, trouble): (&mut BackOff, &watch::Sender<Option<String>>),
) -> Result<(), String> {
    // Follow first, then pull: nothing falls between the two.
    let mut follow = ledger.follow(vec![Concern::Node(node)]).await.map_err(|e| chain_of(&e))?;
    let pull = async || {
        let ids: Vec<ContractId> = known.borrow().iter().copied().collect();
        contracts::pull(ledger, &node, ids.into_iter()).await.map_err(|e| chain_of(&e))
    };
    let pulled = pull().await?;
    links::agree_with_tip(time);
    back_off.reset();
    trouble.send_replace(None);
    if heard.send(Heard::Pulled(pulled)).await.is_err() {
        return Ok(());
    }
    loop {
        let concerned = match timeout(PULL_EVERY, follow.next()).await {
            Ok(heard) => match heard.map_err(|e| chain_of(&e))? {
                Followed::Block { records, .. } => !records.is_empty(),
                Followed::Presence { .. } => false,
                // At another replica: what came in between was not heard.
                Followed::Resumed => true,
            },
            Err(_) => true,
        };
        if concerned && heard.send(Heard::Pulled(pull().await?)).await.is_err() {
            return Ok(());
        }
    }
}

/// Registers, then says what the main loop wants said.
pub async fn speak(
    unregistered: Unregistered,
    (mut addresses, mut troubles): (watch::Receiver<Vec<String>>, watch::Receiver<Vec<NodeTrouble>>),
    mut say: mpsc::Receiver<Say>,
    heard: mpsc::Sender<Heard>,
) {
    let ledger = unregistered.ledger.clone();
    let Some(mut registered) = register(unregistered, &mut troubles, &heard).await else { return };
    let mut telling = Telling::default();
    let mut improve = tokio::time::interval_at(Instant::now() + IMPROVE_EVERY, IMPROVE_EVERY);
    loop {
        tokio::select! {
            what = say.recv() => match what {
                None => return,
                Some(Say::Report { from_ms, until_ms, contracts }) => {
                    if !report(&mut registered, from_ms, until_ms, contracts, &heard).await {
                        return;
                    }
                }
                Some(Say::Settle(contract)) => {
                    match ledger.submit(Command::Settle { contract }).await {
                        Ok(height) => tracing::info!(%contract, height, "contract settled"),
                        Err(error) => tracing::warn!(%contract, error = %chain_of(&error), "not settled yet"),
                    }
                }
            },
            _ = improve.tick() => match registered.improve().await {
                Ok(false) => {}
                Ok(true) => tracing::info!(trust = %registered.standing(), "the ledger knows this node better now"),
                Err(error) => tracing::debug!(error = %chain_of(&error), "no better quote yet"),
            },
            changed = addresses.changed() => {
                if changed.is_err() {
                    return;
                }
                telling.moved(Instant::now());
            }
            changed = troubles.changed() => {
                if changed.is_err() {
                    return;
                }
                telling.troubled(Instant::now());
            }
            () = sleep_until_some(telling.at()) => {
                let (addresses, troubles) =
                    (addresses.borrow_and_update().clone(), troubles.borrow_and_update().clone());
                match registered.tell(addresses, troubles).await {
                    Ok(anew) => telling.told(Instant::now(), anew),
                    // Another machine that has the node's key says what the node is.
                    Err(RegisterError::Refused(Rejection::StaleSession { .. })) => {
                        telling.told(Instant::now(), false);
                    }
                    Err(error) => {
                        tracing::warn!(error = %chain_of(&error), "the ledger does not know yet what changed about the node");
                        telling.failed(Instant::now());
                    }
                }
            }
        }
    }
}

async fn register(
    mut unregistered: Unregistered,
    troubles: &mut watch::Receiver<Vec<NodeTrouble>>,
    heard: &mpsc::Sender<Heard>,
) -> Option<Registered> {
    let mut back_off = BackOff::default();
    loop {
        // What is wrong now: a network that was out of order when the boot came by is there by now.
        unregistered.profile.troubles.clone_from(&troubles.borrow_and_update());
        match unregistered.register().await {
            Ok((registered, height)) => {
                let session = registered.session();
                let reported_until_ms = registered.reported_until_ms;
                let standing = registered.standing().clone();
                heard.send(Heard::Registered { session, height, reported_until_ms, standing }).await.ok()?;
                return Some(registered);
            }
            Err((again, error)) => {
                heard.send(Heard::NotRegistered { reason: chain_of(&error) }).await.ok()?;
                unregistered = again;
                sleep(back_off.next()).await;
            }
        }
    }
}

/// `false` when this node must not speak any more.
async fn report(
    registered: &mut Registered,
    from_ms: u64,
    until_ms: u64,
    contracts: Vec<ContractReport>,
    heard: &mpsc::Sender<Heard>,
) -> bool {
    let result = registered.report(from_ms, until_ms, &contracts).await;
    let what = match result {
        Ok(until_ms) => Heard::Reported { until_ms, contracts },
        Err(RegisterError::Refused(rejection @ Rejection::StaleSession { .. })) => {
            let _ = heard.send(Heard::Superseded { reason: rejection.to_string() }).await;
            return false;
        }
        Err(error) => Heard::NotReported { reason: chain_of(&error) },
    };
    heard.send(what).await.is_ok()
}
