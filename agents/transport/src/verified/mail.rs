//! Mailboxes at the pinned replicas: mail is left at some of them, and looked for at all.
//!
//! A replica can lose mail or hold it back, and so can one that is away: that is why it is left at several. Nothing
//! that comes from here has been opened, so nothing of it is known.

use std::sync::Arc;
use std::time::Duration;

use croft_protocol::api::Mail;
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{BotId, Hash, PublicKey, limits};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::members::Member;
use super::{Miss, Verified, VerifiedError};
use crate::client::{ReplicaProblem, chain};

/// Replicas at which one message is left.
const COPIES: usize = 2;
/// A replica that does not answer by then is asked another time.
const EACH: Duration = Duration::from_secs(8);
/// Pages and bytes that are taken from one replica at a time: what a mailbox holds. A replica that has more is lying, or
/// gives the rest later.
const PAGES: usize = 64;
const BYTES: usize = 8 * 1024 * 1024;

/// Where a message waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub replicas: Vec<PublicKey>,
    /// When the first of them forgets it: milliseconds since 1970, UTC.
    pub expires_ms: u64,
}

/// What one replica has for us.
#[derive(Debug)]
pub struct MailAt {
    pub replica: ReplicaAddress,
    pub mail: Vec<Mail>,
}

impl Verified {
    /// Leaves a sealed message for a bot at two replicas, or at one where no other takes it.
    ///
    /// # Errors
    /// [`VerifiedError`] of the last replica when none takes it.
    pub async fn leave_mail(&self, to: BotId, sealed: &[u8]) -> Result<Left, VerifiedError> {
        let leave = |member: Arc<Member>| async move {
            member.client().leave_mail(to, sealed.to_vec()).await.map_err(Miss::of_client)
        };
        let mut left = Left { replicas: Vec::new(), expires_ms: u64::MAX };
        let mut refused = None;
        for member in self.inner.members.order() {
            if left.replicas.len() == COPIES {
                break;
            }
            match self.single(member, leave).await {
                Ok(answer) => {
                    left.replicas.push(answer.replica);
                    left.expires_ms = left.expires_ms.min(answer.value);
                }
                Err(error) => refused = Some(error),
            }
        }
        match (left.replicas.is_empty(), refused) {
            (false, _) => Ok(left),
            (true, Some(error)) => Err(error),
            (true, None) => Err(self.unavailable()),
        }
    }

    /// Our mail at every pinned replica, and the replicas that did not answer.
    ///
    /// # Errors
    /// [`VerifiedError`] when the grid's validators contradicted themselves.
    pub async fn fetch_mail(&self) -> Result<(Vec<MailAt>, Vec<ReplicaProblem>), VerifiedError> {
        self.tend();
        self.check_halted()?;
        let fetch = |member: Arc<Member>| async move {
            let fetched = timeout(EACH, fetch_all(&member)).await;
            let replica = member.address().clone();
            match fetched {
                Ok(Ok(mail)) => Ok(MailAt { replica, mail }),
                Ok(Err(cause)) => Err(ReplicaProblem { replica, cause }),
                Err(_) => Err(ReplicaProblem { replica, cause: "it does not answer".to_owned() }),
            }
        };
        let asked = join_all(self.inner.members.order().into_iter().map(fetch)).await;
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for answer in asked {
            match answer {
                Ok(at) => found.push(at),
                Err(problem) => silent.push(problem),
            }
        }
        Ok((found, silent))
    }

    /// Tells a replica that we have some of our mail. One that does not hear it gives it out again.
    pub async fn drop_mail(&self, at: &ReplicaAddress, mail: &[Hash]) {
        let Some(member) = self.inner.members.order().into_iter().find(|m| m.address() == at) else { return };
        for some in mail.chunks(limits::MAIL_PER_REQUEST) {
            let dropped = timeout(EACH, member.client().drop_mail(some.to_vec())).await;
            if !matches!(dropped, Ok(Ok(_))) {
                tracing::debug!(replica = %at.key.short(), "a replica did not hear that its mail is read");
                return;
            }
        }
    }
}

async fn fetch_all(member: &Member) -> Result<Vec<Mail>, String> {
    let mut all: Vec<Mail> = Vec::new();
    let mut bytes = 0;
    for _ in 0..PAGES {
        let after = all.last().map_or(0, |mail| mail.number);
        let answer = member.client().fetch_mail(after).await.map_err(|error| chain(&error))?;
        let (mail, more) = answer.value;
        bytes += mail.iter().map(|mail| mail.sealed.len()).sum::<usize>();
        all.extend(mail);
        if !more || bytes >= BYTES {
            break;
        }
    }
    Ok(all)
}
