//! Which refused registrations are remembered for the farmer, and who hears of them.

use std::sync::PoisonError;

use croft_ledger::StateReadExt;
use croft_protocol::api::{Failure, RefusedNode, Response};
use croft_protocol::command::SignedJoin;
use croft_protocol::keys::Domain;
use croft_protocol::{Command, FarmId, Name, NodeId, Rejection, SignedCommand};

use super::Server;
use super::answer::failed;
use crate::ordering::Verdict;
use crate::refused::Refused;
use crate::store::StoreError;

/// Of a refusal's text: what one line of a list bears.
const REASON_CHARACTERS: usize = 512;

/// A registration, before it is known what comes of it.
pub(super) struct Attempt {
    node: NodeId,
    farm: FarmId,
    name: Name,
    join: Option<SignedJoin>,
}

impl Attempt {
    pub(super) fn of(command: &SignedCommand) -> Option<Self> {
        let Command::RegisterNode { node, join, .. } = &command.body.command else { return None };
        let (author, farm) = (command.body.author, node.farm);
        Some(Self { node: author, farm, name: node.name.clone(), join: join.clone() })
    }
}

impl Server {
    /// Takes note of what came of a registration whose author's signature was good.
    pub(super) async fn note(&self, attempt: Attempt, verdict: &Verdict) {
        let rejection = match verdict {
            Verdict::Final { .. } => {
                self.with_refused(|refused| refused.forget(&attempt.farm, &attempt.node));
                return;
            }
            // Of the moment, not of the machine.
            Verdict::Failed(_)
            | Verdict::Rejected(
                Rejection::Busy { .. }
                | Rejection::RateLimited { .. }
                | Rejection::Sequence { .. }
                | Rejection::Expired { .. },
            ) => return,
            Verdict::Rejected(rejection) => rejection,
        };
        let Attempt { node, farm, name, join } = attempt;
        // Whether it concerns the farm is looked up last: it takes a read and a signature.
        let time_ms = match self.concerns_farm(node, farm, join).await {
            Ok(Some(time_ms)) => time_ms,
            Ok(None) => return,
            Err(failure) => {
                tracing::debug!(%failure, "a refused registration is not remembered");
                return;
            }
        };
        let reason = rejection.to_string().chars().take(REASON_CHARACTERS).collect();
        self.with_refused(|refused| {
            refused.note(farm, RefusedNode { node, name, reason, time_ms, count: 1 });
        });
    }

    /// The block time if the farm's owner signed the machine's permission, good or no longer, or the node is the farm's
    /// already. Else anybody could fill the farm's list.
    async fn concerns_farm(
        &self,
        node: NodeId,
        farm: FarmId,
        join: Option<SignedJoin>,
    ) -> Result<Option<u64>, Failure> {
        let snapshot = self.chain.latest();
        self.blocking(move || {
            let broken = |error| failed(StoreError::State(error));
            let header = snapshot.tip().header;
            let is_member = snapshot.node(&node).map_err(broken)?.is_some_and(|known| known.farm == farm);
            let is_invited = match (join, snapshot.farm(&farm).map_err(broken)?) {
                (Some(SignedJoin { join, signature }), Some(known)) if !is_member => {
                    join.farm == farm
                        && known.owner.verify(Domain::JOIN, &header.chain, &join, &signature).is_ok()
                }
                _ => false,
            };
            Ok((is_member || is_invited).then_some(header.time_ms))
        })
        .await
    }

    pub(super) fn refused(&self, farm: FarmId) -> Response {
        let now_ms = self.chain.latest().tip().header.time_ms;
        Response::Refused(self.with_refused(|refused| refused.of(&farm, now_ms)))
    }

    fn with_refused<T>(&self, change: impl FnOnce(&mut Refused) -> T) -> T {
        change(&mut self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
