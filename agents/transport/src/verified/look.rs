//! Looking around: do all replicas tell of one history?
//!
//! ```text
//!   tips of the active replicas ── each believed? ──> one height that all have ── the same header? ──> fine
//!                                    │ no: blamed                                 └─ both final: halted
//! ```
//! Light checks each header against the newest one that is known. This also catches histories that split
//! where their tips stand at different heights, and a history that was exchanged as a whole.

use std::sync::{Arc, Weak};
use std::time::Duration;

use croft_light::{LightError, compare};
use croft_protocol::SignedHeader;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::members::Member;
use super::{Inner, Miss, Verified, VerifiedError, lock};
use crate::client::{ClientError, chain};

/// How often the replicas' tips are compared: once for each block of an idle grid.
const EVERY: Duration = Duration::from_secs(10);
/// A replica that does not tell its tip within this time is not compared.
const TIP: Duration = Duration::from_secs(6);

impl Verified {
    /// Starts comparing, with the first request.
    pub(super) fn tend(&self) {
        let mut tending = lock(&self.inner.tending);
        if tending.is_none() {
            *tending = Some(tokio::spawn(run(Arc::downgrade(&self.inner))));
        }
    }

    /// One comparison of all active replicas.
    pub(super) async fn look(&self) {
        let anchor = self.newest();
        let members = self.inner.members.active();
        let mut tips = join_all(members.into_iter().map(tip_of)).await;
        // From low to high, so that none of them is older than what became known a moment before.
        tips.sort_by_key(|(_, tip)| tip.as_ref().map_or(0, |tip| tip.header.height));
        let (mut good, mut behind) = (Vec::new(), Vec::new());
        for (member, tip) in tips {
            let Some(tip) = tip else { continue };
            match self.believe(&member, &tip).await {
                Ok(_) => {
                    member.is_well();
                    good.push((member, tip));
                }
                Err(Miss::Behind(error)) => {
                    // A block behind is nothing on a busy grid; minutes are.
                    match error {
                        VerifiedError::NotBelieved { source, .. }
                            if matches!(*source, LightError::Back { .. }) =>
                        {
                            member.is_at(tip.header.height);
                        }
                        error => member.failed(&chain(&error)),
                    }
                    behind.push((member, tip));
                }
                Err(Miss::Elsewhere(error) | Miss::Final(error)) => member.failed(&chain(&error)),
            }
        }
        if let Some(common) = anchor.or_else(|| good.first().map(|(_, tip)| tip.clone())) {
            for (member, tip) in &good {
                if tip.header.height > common.header.height {
                    self.compare_at(member, &common).await;
                }
            }
        }
        if let Some((witness, _)) = good.last() {
            for (member, tip) in &behind {
                self.compare_late(member, tip, witness).await;
            }
        }
        self.inner.members.rotate();
        self.inner.looked.send_replace(true);
    }

    /// Does it tell of the same header at a height that is known?
    async fn compare_at(&self, member: &Member, known: &SignedHeader) {
        match member.client().header(known.header.height).await {
            Ok(answer) => {
                if let Err(error) = compare(known, &answer.value) {
                    let _ = self.blame(member, error).await;
                }
            }
            // A replica that joined later may not have old headers.
            Err(ClientError::Failed { .. }) => {}
            Err(error) => member.failed(&chain(&error)),
        }
    }

    /// A replica that is behind: is what it has a part of the history that is known?
    async fn compare_late(&self, member: &Member, tip: &SignedHeader, witness: &Member) {
        let height = tip.header.height;
        let seen = lock(&self.inner.state).seen.iter().find(|h| h.header.height == height).cloned();
        let known = match seen {
            Some(known) => known,
            None => match witness.client().header(height).await {
                Ok(answer) => answer.value,
                Err(_) => return,
            },
        };
        // Both may be of a time before validators that are trusted now; only what those signed is a proof.
        let trusted = {
            let state = lock(&self.inner.state);
            let light = state.trail.light();
            light.trusted() == known.header.validators
                || light.newest().is_some_and(|newest| newest.header.validators == known.header.validators)
        };
        if !trusted || croft_light::verify_certificate(&known).is_err() {
            return;
        }
        if let Err(error @ LightError::Contradiction(_)) = compare(&known, tip) {
            let _ = self.blame(member, error).await;
        }
    }
}

async fn tip_of(member: Arc<Member>) -> (Arc<Member>, Option<SignedHeader>) {
    let asked = timeout(TIP, member.client().tip()).await;
    let tip = match asked {
        Ok(Ok(answer)) => Some(answer.value),
        Ok(Err(error)) => {
            member.failed(&chain(&error));
            None
        }
        Err(_) => {
            member.failed("it does not tell its tip");
            None
        }
    };
    (member, tip)
}

async fn run(inner: Weak<Inner>) {
    while let Some(inner) = inner.upgrade() {
        let verified = Verified { inner };
        if verified.evidence().is_some() {
            return;
        }
        verified.look().await;
        drop(verified);
        sleep(EVERY).await;
    }
}
