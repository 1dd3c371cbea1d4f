//! How the newest header was reached from the pinned validators, so that the next run can check it again and
//! needs nobody's help.
//!
//! It must never take over what another run kept without checking it: a disk is not to be trusted more than a
//! replica.

use croft_light::{HANDOVERS, HandoverWalk, LightClient, LightError, Tip};
use croft_protocol::{ChainId, Hash, SignedHeader};

use super::Evidence;

/// A handover with 64 signatures is 9 KiB.
const TRAIL_BYTES: usize = 4 * 1024 * 1024;

/// The way from the pinned validators to the newest header: handovers, each by another set, and then that header.
#[derive(Debug, Clone)]
pub struct Trail {
    pinned: Hash,
    light: LightClient,
    /// In their order. No set stands here twice.
    handovers: Vec<SignedHeader>,
    /// The last header that did not follow, for the proof.
    refused: Option<SignedHeader>,
}

impl Trail {
    /// Goes on from what an earlier run kept, if it leads from the pinned validators anywhere.
    pub(crate) fn resume(chain: ChainId, pinned: Hash, kept: Option<&[u8]>) -> Self {
        let fresh =
            || Self { pinned, light: LightClient::new(chain, pinned), handovers: Vec::new(), refused: None };
        let Some(bytes) = kept else { return fresh() };
        let Some(headers) = decode(bytes) else {
            tracing::warn!(
                "what an earlier run kept of this grid can't be read: starting from the pinned validators"
            );
            return fresh();
        };
        // A newer pin may name a set that the way passed through.
        let from = headers.iter().rposition(|h| h.header.validators == pinned);
        let headers = &headers[from.unwrap_or(0)..];
        let mut trail = fresh();
        let walked = headers.split_last().map_or(Ok(()), |(tip, handovers)| {
            handovers.iter().try_for_each(|handover| trail.pass(handover))?;
            trail.accept(tip, None).map(|_| ())
        });
        match walked {
            Ok(()) => trail,
            Err(error) => {
                tracing::warn!(%error, "what an earlier run kept is not of this grid: starting from the pinned validators");
                fresh()
            }
        }
    }

    pub(crate) fn light(&self) -> &LightClient {
        &self.light
    }

    /// Believes a header as a tip.
    pub(super) fn accept(&mut self, signed: &SignedHeader, now_ms: Option<u64>) -> Result<Tip, LightError> {
        let before = self.light.trusted();
        match self.light.accept_tip(signed, now_ms) {
            Ok(tip) => {
                if self.light.trusted() != before {
                    self.remember(signed);
                }
                Ok(tip)
            }
            Err(error) => {
                if matches!(error, LightError::NotFollowing { .. }) {
                    self.refused = Some(signed.clone());
                }
                Err(error)
            }
        }
    }

    /// Takes the handover that was asked for, unless another task has gone on meanwhile.
    pub(super) fn step(
        &mut self,
        walk: &mut HandoverWalk,
        asked: Hash,
        handover: &SignedHeader,
    ) -> Result<(), LightError> {
        if self.light.trusted() != asked {
            return Ok(());
        }
        walk.step(&mut self.light, handover)?;
        self.remember(handover);
        Ok(())
    }

    fn pass(&mut self, handover: &SignedHeader) -> Result<(), LightError> {
        self.light.accept_handover(handover)?;
        self.remember(handover);
        Ok(())
    }

    /// Adds a handover, and leaves out the way round where a set is back.
    fn remember(&mut self, handover: &SignedHeader) {
        let next = handover.header.next_validators;
        if next == self.pinned {
            self.handovers.clear();
            return;
        }
        if let Some(at) = self.handovers.iter().position(|known| known.header.next_validators == next) {
            self.handovers.truncate(at + 1);
            return;
        }
        self.handovers.push(handover.clone());
        // So long a way is given up; the next run starts from the pinned validators.
        if self.handovers.len() > HANDOVERS {
            self.handovers.clear();
        }
    }

    /// Both headers of a broken word, if the last one that was refused broke it.
    pub(super) fn not_following(&self) -> Option<Evidence> {
        Some(Evidence { known: self.light.newest()?.clone(), other: self.refused.clone()? })
    }

    /// Height and bytes of what is to be kept.
    pub(super) fn encoded(&self) -> Option<(u64, Vec<u8>)> {
        let newest = self.light.newest()?;
        // The newest header may itself be the last handover: then it stands here once.
        let before = self.handovers.iter().filter(|handover| handover.header.height < newest.header.height);
        let way: Vec<&SignedHeader> = before.chain([newest]).collect();
        Some((newest.header.height, croft_protocol::encode(&way)))
    }

    /// How far the ledger of a grid was seen by whoever kept this; `None` when it is of another grid or none at all.
    #[must_use]
    pub fn height_of(chain: &ChainId, bytes: &[u8]) -> Option<u64> {
        let headers = decode(bytes)?;
        headers.last().map(|newest| newest.header).filter(|h| h.chain == *chain).map(|h| h.height)
    }
}

fn decode(bytes: &[u8]) -> Option<Vec<SignedHeader>> {
    let way: Vec<SignedHeader> = croft_protocol::decode("kept headers", bytes, TRAIL_BYTES).ok()?;
    (1..=HANDOVERS + 1).contains(&way.len()).then_some(way)
}
