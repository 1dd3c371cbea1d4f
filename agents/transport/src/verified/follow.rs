//! Following the ledger through whichever replica works.
//!
//! ```text
//!   connecting ──> following ── block believed ──> caller
//!       ^              │ ended, silent, lied, too old
//!       └──────────────┘ the next connection says `Resumed`: what came meanwhile must be read
//! ```

use std::sync::Arc;

use croft_light::Tip;
use croft_protocol::api::{Concern, Event};
use croft_protocol::{PublicKey, Record};

use super::members::Member;
use super::{Miss, Verified, VerifiedError};
use crate::client::{Answer, ClientError, Follow, chain};

/// What a follower hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// A final block. What of it concerns the follower is the replica's word: it says when to look again.
    Block {
        /// `None` when a later header is known already.
        tip: Option<Box<Tip>>,
        records: Vec<Record>,
    },
    /// By the replica's word.
    Presence { key: PublicKey, connected: bool },
    /// Another connection: something may have happened meanwhile, so look again.
    Resumed,
}

/// A stream of final headers and what concerns us. It goes on at another replica by itself.
#[derive(Debug)]
pub struct Following {
    verified: Verified,
    concerning: Vec<Concern>,
    at: Option<(Arc<Member>, Follow)>,
    /// Heard, but not looked at yet: kept here so that dropping the future of `next` loses nothing.
    pending: Option<Answer<Event>>,
    /// Whether there was a connection before.
    resuming: bool,
}

impl Verified {
    /// Final headers from now on, with the records that concern some things. The first event is the tip without
    /// records: what is read after it misses nothing.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica lets us follow.
    pub async fn follow(&self, concerning: Vec<Concern>) -> Result<Following, VerifiedError> {
        let mut following =
            Following { verified: self.clone(), concerning, at: None, pending: None, resuming: false };
        following.connect().await?;
        Ok(following)
    }
}

impl Following {
    /// Whom we follow, if anybody at the moment.
    #[must_use]
    pub fn replica(&self) -> Option<PublicKey> {
        self.at.as_ref().map(|(member, _)| member.key())
    }

    /// The next event. Dropping the future loses nothing, so it can be waited for among other things.
    ///
    /// # Errors
    /// [`VerifiedError`] when no replica can be followed at the moment: try again after a pause.
    pub async fn next(&mut self) -> Result<Followed, VerifiedError> {
        loop {
            self.verified.check_halted()?;
            if self.at.is_none() {
                self.connect().await?;
                return Ok(Followed::Resumed);
            }
            if self.pending.is_none() {
                let Some((member, follow)) = &mut self.at else { continue };
                match follow.next().await {
                    Ok(event) => self.pending = Some(event),
                    Err(error) => {
                        // A replica that drops us for being slow says so; it is no worse than the others.
                        member.failed(&chain(&error));
                        self.at = None;
                        continue;
                    }
                }
            }
            let (Some((member, _)), Some(event)) = (&self.at, &self.pending) else { continue };
            let heard = match &event.value {
                Event::Block { header, records } => match self.verified.believe(member, header).await {
                    Ok(tip) => Ok(Followed::Block { tip: Some(Box::new(tip)), records: records.clone() }),
                    Err(Miss::Behind(VerifiedError::NotBelieved { source, .. })) if is_back(&source) => {
                        Ok(Followed::Block { tip: None, records: records.clone() })
                    }
                    Err(miss) => Err(miss),
                },
                Event::Presence { key, connected } => {
                    Ok(Followed::Presence { key: *key, connected: *connected })
                }
                Event::Failed(failure) => {
                    let replica = member.key();
                    Err(Miss::of_client(ClientError::Failed { replica, failure: failure.clone() }))
                }
            };
            self.pending = None;
            match heard {
                Ok(followed) => {
                    self.verified.inner.members.praise(member);
                    return Ok(followed);
                }
                Err(Miss::Final(error)) => {
                    self.at = None;
                    return Err(error);
                }
                Err(Miss::Elsewhere(error) | Miss::Behind(error)) => {
                    tracing::debug!(error = chain(&error), "following another replica");
                    member.failed(&chain(&error));
                    self.at = None;
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), VerifiedError> {
        if self.resuming {
            tracing::debug!("the stream of blocks ended: following again");
        }
        let concerning = &self.concerning;
        let connect = |member: Arc<Member>| async move {
            let followed = member.client().follow(concerning.clone()).await;
            followed.map(|follow| (member, follow)).map_err(Miss::of_client)
        };
        self.at = Some(self.verified.race(0, connect).await?);
        self.resuming = true;
        Ok(())
    }
}

fn is_back(error: &croft_light::LightError) -> bool {
    matches!(error, croft_light::LightError::Back { .. })
}
