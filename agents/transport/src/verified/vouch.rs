//! Replicas that vouch for this node's TPM: each proves to itself that the attestation key lives in it.
//!
//! A voucher is checked like everything else that a replica says: it must be of this chain, by this replica, about this
//! node and this key.

use croft_protocol::attestation::{Credential, Introduction, SignedVoucher};
use croft_protocol::{Hash, PublicKey};

use super::Verified;
use crate::client::{ClientError, ReplicaProblem, chain};

impl Verified {
    /// Asks the pinned replicas one after the other until so many have vouched. `open` lets the TPM open a credential;
    /// its error ends only that replica's attempt. Returns what was given and who refused why.
    pub async fn vouchers<Opening>(
        &self,
        need: usize,
        introduction: &Introduction,
        open: impl Fn(Credential) -> Opening,
    ) -> (Vec<SignedVoucher>, Vec<ReplicaProblem>)
    where
        Opening: Future<Output = Result<Vec<u8>, String>>,
    {
        let (mut given, mut problems) = (Vec::new(), Vec::new());
        for member in self.inner.members.order() {
            if given.len() >= need {
                break;
            }
            let client = member.client();
            let me = client.key();
            let cause = match client.vouch(introduction, &open).await {
                Ok(signed) => match check(&signed, &me, introduction, member.key(), self) {
                    None => {
                        member.is_well();
                        given.push(signed);
                        continue;
                    }
                    Some(lie) => {
                        self.inner.members.accuse(&member, lie).await;
                        lie.to_owned()
                    }
                },
                Err(ClientError::Failed { failure, .. }) => failure.to_string(),
                Err(error) => {
                    let cause = chain(&error);
                    member.failed(&cause);
                    cause
                }
            };
            problems.push(super::problem(&member, cause));
        }
        (given, problems)
    }
}

/// What is wrong with a voucher.
fn check(
    signed: &SignedVoucher,
    me: &PublicKey,
    introduction: &Introduction,
    replica: PublicKey,
    verified: &Verified,
) -> Option<&'static str> {
    let voucher = &signed.voucher;
    let about_us = voucher.node == *me
        && voucher.key == Hash::of_bytes(&introduction.key)
        && voucher.endorsement == Hash::of_bytes(&introduction.endorsement);
    if signed.by != replica || signed.verify(verified.chain()).is_err() {
        Some("its voucher is not signed by it")
    } else if !about_us {
        Some("its voucher is about something else")
    } else {
        None
    }
}
