//! Blobs: named by their hash, so that any replica may send them. Replicas don't copy them from one another, so
//! whoever publishes stores them at two.

use std::sync::Arc;
use std::time::Duration;

use croft_protocol::Hash;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::members::Member;
use super::{Miss, Verified, VerifiedError};

/// Replicas that hold each blob: one may be lost.
const COPIES: usize = 2;
/// Replicas that take longer to say which blobs they have are left out.
const EACH: Duration = Duration::from_secs(5);

impl Verified {
    /// A blob from whichever replica has it, with its hash checked. Several at once come from several replicas.
    ///
    /// # Errors
    /// [`VerifiedError::Client`] when no replica has it, or none with the bytes of its name.
    pub async fn get_blob(&self, hash: Hash) -> Result<Vec<u8>, VerifiedError> {
        self.race_from(usize::from(hash.0[0]), 0, |member: Arc<Member>| async move {
            member.client().get_blob(hash).await.map_err(Miss::of_client)
        })
        .await
    }

    /// Stores a blob at two replicas, or at the only one that takes it; only known bots may.
    ///
    /// # Errors
    /// [`VerifiedError::Client`] with the reason of the last one, when none takes it.
    pub async fn put_blob(&self, bytes: Vec<u8>) -> Result<Hash, VerifiedError> {
        let bytes = &bytes;
        let put = |member: Arc<Member>| async move {
            member.client().put_blob(bytes.clone()).await.map_err(Miss::of_client)
        };
        let mut order = self.inner.members.order().into_iter();
        let (mut stored, mut last) = (None, None);
        let mut copies = 0;
        while copies < COPIES {
            let some: Vec<_> = order.by_ref().take(COPIES - copies).collect();
            if some.is_empty() {
                break;
            }
            for result in join_all(some.into_iter().map(|member| self.single(member, put))).await {
                match result {
                    Ok(hash) => {
                        stored = Some(hash);
                        copies += 1;
                    }
                    Err(error) => last = Some(error),
                }
            }
        }
        match (stored, last) {
            (Some(hash), _) => Ok(hash),
            (None, Some(error)) => Err(error),
            (None, None) => Err(self.unavailable()),
        }
    }

    /// Which of these blobs are at two replicas, in the order of the question; at one, where only one answers.
    ///
    /// # Errors
    /// [`VerifiedError::Client`] when no replica answers.
    pub async fn has_blobs(&self, hashes: &[Hash]) -> Result<Vec<bool>, VerifiedError> {
        let ask = |member: Arc<Member>| async move {
            let client = member.client();
            timeout(EACH, client.has_blobs(hashes.to_vec())).await.ok()?.ok().map(|answer| answer.value)
        };
        self.tend();
        self.check_halted()?;
        let said: Vec<Vec<bool>> =
            join_all(self.inner.members.active().into_iter().map(ask)).await.into_iter().flatten().collect();
        if said.is_empty() {
            // Whoever answers first, with the reason if nobody does.
            let asked = |member: Arc<Member>| async move {
                let answer = member.client().has_blobs(hashes.to_vec()).await;
                answer.map(|answer| answer.value).map_err(Miss::of_client)
            };
            return self.race(0, asked).await;
        }
        let enough = COPIES.min(said.len());
        let copies = |at: usize| said.iter().filter(|has| has.get(at) == Some(&true)).count();
        Ok((0..hashes.len()).map(|at| copies(at) >= enough).collect())
    }
}
