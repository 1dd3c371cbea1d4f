//! Bringing commands to the ledger, and finding out what became of them.
//!
//! ```text
//!   sign ── submit ──> final, rejected ──proved──> done
//!             │ the replica went away                 ^
//!             └──> look at the ledger ── there ───────┤
//!                    │ number not used                │ number used: by this command?
//!                    └──> the same bytes elsewhere ───┘
//! ```
//! The same bytes may be sent any number of times: author and sequence number make them count once. It must
//! never sign a second command while the first may still become final, nor take a replica's word for what is
//! final.

use std::sync::Arc;
use std::time::Duration;

use croft_protocol::release::ReleaseState;
use croft_protocol::reservation::ReservationState;
use croft_protocol::state::Account;
use croft_protocol::{
    Body, Command, CommandBody, ContractState, FarmId, PublicKey, Record, RecordId, Rejection, ReleaseId,
    SecretKey, SignedCommand, StateKey, limits,
};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, sleep};

use super::members::Member;
use super::{Verified, VerifiedError};
use crate::client::{Answer, ClientError, Submitted, chain};

/// How long a command is brought to one replica after the other.
const UNTIL: Duration = Duration::from_secs(60);
/// A command that is not final by then is brought to the next replica too: the one that has it may be cut off.
const SLOW: Duration = Duration::from_secs(5);
/// Between two looks at the ledger.
const LOOK: Duration = Duration::from_millis(500);
/// How often a command is signed again because another process of the same author was faster.
const SIGNED: usize = 5;

/// A command that is on the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Final {
    pub sequence: u64,
    /// `None` when the replica went away before it said so, and the ledger only shows the command's effect.
    pub height: Option<u64>,
    /// Height of the header that proves it.
    pub proved_at: u64,
}

/// What became of a command.
type Verdict = Result<Final, VerifiedError>;

/// What is known of a command so far.
#[derive(Default)]
struct Fate {
    /// Some replica may have taken it.
    uncertain: bool,
    /// Some replica went away without a word about it.
    vanished: bool,
    rejected: Option<VerifiedError>,
    not_taken: Option<VerifiedError>,
}

impl Verified {
    /// Signs a command with the author's next number and brings it to the ledger; returns once it is proved to be
    /// final. It is void `expires_after` blocks from now.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] with the ledger's reason; [`VerifiedError::OutcomeUnknown`] when nobody knows.
    pub async fn submit(
        &self,
        key: &SecretKey,
        command: &Command,
        expires_after: u64,
    ) -> Result<Final, VerifiedError> {
        let _one_at_a_time = self.inner.submitting.lock().await;
        let author = key.id();
        let mut signed = 0;
        loop {
            let (height, account) = self.account_from(0, author).await?;
            let body = CommandBody {
                chain: self.inner.chain,
                author,
                sequence: account.next_sequence,
                expires_height: height + expires_after,
                command: command.clone(),
            };
            match self.submit_signed(&SignedCommand::sign(body, key)).await {
                Err(error) if signed < SIGNED && is_sequence(&error) => signed += 1,
                done => return done,
            }
        }
    }

    /// Brings a signed command to the ledger, to another replica where one goes away, until the ledger shows it or
    /// it is void.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn submit_signed(&self, command: &SignedCommand) -> Result<Final, VerifiedError> {
        let deadline = Instant::now() + UNTIL;
        let mut fate = Fate::default();
        loop {
            let order = self.inner.members.order();
            if order.is_empty() {
                return Err(self.unavailable());
            }
            if let Some(verdict) = self.bring(order, command, &mut fate).await? {
                return verdict;
            }
            if let Some(error) = fate.rejected.take() {
                return Err(error);
            }
            if !fate.vanished
                && let Some(error) = fate.not_taken.take()
            {
                return Err(error);
            }
            if Instant::now() >= deadline {
                let CommandBody { author, sequence, .. } = command.body;
                return Err(VerifiedError::OutcomeUnknown { author, sequence });
            }
            sleep(LOOK).await;
        }
    }

    /// Brings it to one replica after the other, to the next one also where the one before takes long: the same
    /// bytes count once. `None` when nobody knows more.
    async fn bring(
        &self,
        order: Vec<Arc<Member>>,
        command: &SignedCommand,
        fate: &mut Fate,
    ) -> Result<Option<Verdict>, VerifiedError> {
        let submit = |member: Arc<Member>| async move {
            let answer = member.client().submit(command.clone()).await;
            (member, answer)
        };
        let mut order = order.into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            self.check_halted()?;
            if running.is_empty() {
                let Some(member) = order.next() else { return Ok(None) };
                running.push(submit(member));
            }
            let more = order.len() > 0;
            let verdict = tokio::select! {
                Some((member, answer)) = running.next() => self.heard(&member, command, answer, fate).await?,
                () = sleep(SLOW), if more => {
                    fate.uncertain = true;
                    running.extend(order.next().map(submit));
                    self.look_for(command).await?
                }
            };
            if verdict.is_some() {
                return Ok(verdict);
            }
        }
    }

    /// What one replica's answer means. `None` where others may know more.
    async fn heard(
        &self,
        member: &Arc<Member>,
        command: &SignedCommand,
        answer: Result<Answer<Submitted>, ClientError>,
        fate: &mut Fate,
    ) -> Result<Option<Verdict>, VerifiedError> {
        match answer {
            Ok(answer) => {
                let height = answer.value.height;
                if let Some(proved_at) = self.proved(command, height).await? {
                    self.inner.members.praise(member);
                    return Ok(Some(Ok(done(command, Some(height), proved_at))));
                }
                self.inner
                    .members
                    .accuse(member, "it called a command final that is not on the ledger")
                    .await;
                fate.uncertain = true;
            }
            Err(error @ ClientError::Rejected { .. }) => {
                let error = VerifiedError::from(error);
                // It may be the same command that another replica took: then the ledger shows it.
                if !(fate.uncertain && may_be_its_own(command, &error)) {
                    // One replica may lie or be behind: two that agree will do.
                    if fate.rejected.is_some() || self.inner.members.count() == 1 {
                        return Ok(Some(Err(error)));
                    }
                    fate.rejected = Some(error);
                }
            }
            Err(ClientError::OutcomeUnknown { replica, source }) => {
                let cause = chain(&*source);
                tracing::debug!(replica = %replica.short(), cause, "a replica went away with a command");
                member.failed(&cause);
                (fate.uncertain, fate.vanished) = (true, true);
            }
            Err(error) => {
                member.failed(&chain(&error));
                // One that can't write may still have passed it on to others.
                fate.uncertain |= matches!(error, ClientError::Failed { .. });
                fate.not_taken = Some(error.into());
            }
        }
        if fate.uncertain { self.look_for(command).await } else { Ok(None) }
    }

    /// The height of a header that shows the author's number used, where a replica says that it is final. `None` when
    /// such a header shows that it is not.
    async fn proved(&self, command: &SignedCommand, height: u64) -> Result<Option<u64>, VerifiedError> {
        let CommandBody { author, sequence, .. } = command.body;
        match self.account_from(height, author).await {
            Ok((at, account)) => Ok((account.next_sequence > sequence).then_some(at)),
            // No replica has come so far: it was a lie, or they are slow. The ledger will tell.
            Err(VerifiedError::NotBelieved { .. }) => {
                let (at, account) = self.account_from(0, author).await?;
                Ok((account.next_sequence > sequence).then_some(at))
            }
            Err(error) => Err(error),
        }
    }

    async fn account_from(&self, height: u64, author: PublicKey) -> Result<(u64, Account), VerifiedError> {
        let (tip, values) = self.get_from(height, &[StateKey::Account(author)]).await?;
        Ok((tip.height(), decode("an account", values[0].as_deref())?.unwrap_or_default()))
    }

    /// What the ledger shows of a command that some replica may have taken. `None` when it may still come, or may be
    /// sent again.
    async fn look_for(&self, command: &SignedCommand) -> Result<Option<Verdict>, VerifiedError> {
        let CommandBody { author, sequence, expires_height, .. } = command.body;
        let Ok((at, account)) = self.account_from(0, author).await else {
            // Nobody to ask now: the caller goes on to the next replica.
            self.check_halted()?;
            return Ok(None);
        };
        if account.next_sequence <= sequence {
            let expired = Rejection::Expired { expired: expires_height, height: at };
            return Ok((at > expires_height).then(|| Err(self.rejected(expired))));
        }
        if self.shows(command).await? {
            return Ok(Some(Ok(done(command, None, at))));
        }
        let used = Rejection::Sequence { author, got: sequence, expected: account.next_sequence };
        Ok(Some(Err(self.rejected(used))))
    }

    /// The ledger's no, as we know it from the ledger itself.
    fn rejected(&self, rejection: Rejection) -> VerifiedError {
        ClientError::Rejected { replica: self.key(), rejection: Box::new(rejection) }.into()
    }

    /// Whether the ledger shows what this command does, given that its number is used. Another command of the same
    /// author that does the same is as good.
    async fn shows(&self, command: &SignedCommand) -> Result<bool, VerifiedError> {
        let CommandBody { author, sequence, command, .. } = &command.body;
        let Some(id) = touched(command, author, *sequence) else { return Ok(true) };
        let (_, values) = self.get(&[StateKey::Record(id)]).await?;
        let record: Option<Record> = decode("a record", values[0].as_deref())?;
        Ok(record.is_some_and(|record| effect(command, author, &record)))
    }
}

fn done(command: &SignedCommand, height: Option<u64>, proved_at: u64) -> Final {
    Final { sequence: command.body.sequence, height, proved_at }
}

/// Whether a refusal says no more than that the same command is on the ledger already.
fn may_be_its_own(command: &SignedCommand, error: &VerifiedError) -> bool {
    let replaced = matches!(error.rejection(), Some(Rejection::Key(_)));
    is_sequence(error) || replaced && matches!(command.body.command, Command::RotateKey(_))
}

fn is_sequence(error: &VerifiedError) -> bool {
    matches!(error.rejection(), Some(Rejection::Sequence { .. }))
}

fn decode<T: borsh::BorshDeserialize>(
    what: &'static str,
    bytes: Option<&[u8]>,
) -> Result<Option<T>, VerifiedError> {
    bytes
        .map(|bytes| croft_protocol::decode(what, bytes, limits::RECORD_BYTES))
        .transpose()
        .map_err(|source| VerifiedError::Malformed { what, source })
}

/// The thing of which a command makes a version. `None` where it may leave no trace.
fn touched(command: &Command, author: &PublicKey, sequence: u64) -> Option<RecordId> {
    Some(match command {
        Command::CreateBot(_) => RecordId::bot(author),
        Command::CreateFarm { name, .. } => RecordId::farm(&FarmId::new(author, name)),
        Command::SetPrices { farm, .. } => RecordId::farm(farm),
        Command::RegisterNode { .. } => RecordId::node(author),
        Command::Agree(signed) => RecordId::contract(&signed.terms.id()),
        Command::Approve { contract, .. } => RecordId::approval(contract, author),
        Command::Close { contract } => RecordId::contract(contract),
        Command::Settle { .. } => return None,
        Command::Report(_) => RecordId::report(author),
        Command::Transfer { .. } | Command::ClaimFaucet => RecordId::transfer(author, sequence),
        Command::SetValidators(_) => RecordId::validators(),
        Command::SetReleaseKeys(_) => RecordId::release_keys(),
        Command::PublishRelease(signed) => RecordId::release(&signed.release.id()),
        Command::HaltRelease { channel, version, .. } => {
            RecordId::release(&ReleaseId::new(channel, *version))
        }
        Command::SetFarmPolicy { farm, .. } => RecordId::farm_policy(farm),
        Command::ReleaseOutcome { channel, version, .. } => {
            RecordId::outcome(&ReleaseId::new(channel, *version), author)
        }
        Command::PublishRecipe { name, .. } | Command::WithdrawRecipe { name, .. } => {
            RecordId::recipe(author, name)
        }
        Command::UpdateBot(_) => RecordId::profile(author),
        Command::Fund { .. } => RecordId::funding(author, sequence),
        Command::AnnounceReservation(announcement) => RecordId::reservation(&announcement.terms.id()),
        Command::ClaimReservation { contract } => RecordId::reservation(contract),
        Command::DrainNode { node, .. } | Command::ReopenNode { node } => RecordId::drain(node),
        Command::RotateKey(_) => RecordId::keys(author),
    })
}

/// Whether the latest version of that thing is as the command leaves it, or later.
fn effect(command: &Command, author: &PublicKey, record: &Record) -> bool {
    match (command, &record.body) {
        (Command::CreateBot(bot), Body::Bot(is)) => bot == is,
        (Command::CreateFarm { .. }, Body::Farm(is)) => is.owner == *author,
        (Command::SetPrices { prices, .. }, Body::Farm(is)) => is.prices == *prices,
        // Its trust is the ledger's word, not the node's.
        (Command::RegisterNode { node, .. }, Body::Node(is)) => {
            *node == croft_protocol::record::NodeBody { trust: node.trust, ..is.clone() }
        }
        (Command::Agree(_), Body::Contract(_)) | (Command::AnnounceReservation(_), Body::Reservation(_)) => {
            true
        }
        (Command::Approve { approve, .. }, Body::Approval(is)) => is.approved == *approve,
        (Command::Close { .. }, Body::Contract(is)) => matches!(is.state, ContractState::Ended(_)),
        (Command::Report(report), Body::Report(is)) => {
            is == report || (is.session, is.from_ms) > (report.session, report.from_ms)
        }
        (Command::Transfer { to, amount, memo }, Body::Transfer(is)) => {
            (is.to, is.amount, &is.memo) == (*to, *amount, memo)
        }
        (Command::Fund { contract, amount }, Body::Funding(is)) => {
            (is.contract, is.amount) == (*contract, *amount)
        }
        (Command::ClaimReservation { .. }, Body::Reservation(is)) => {
            matches!(is.state, ReservationState::Claimed | ReservationState::Lapsed)
        }
        (Command::DrainNode { until_ms, .. }, Body::Drain(is)) => {
            is.draining.is_some_and(|is| is.until_ms == *until_ms)
        }
        (Command::ReopenNode { .. }, Body::Drain(is)) => is.draining.is_none(),
        (Command::RotateKey(link), Body::Keys(is)) => is.changes.iter().any(|change| change.link == **link),
        (Command::SetValidators(change), Body::Validators(is)) => change.change.validators == *is,
        (Command::SetReleaseKeys(change), Body::ReleaseKeys(is)) => change.change.keys == *is,
        (Command::PublishRelease(signed), Body::Release(is)) => signed.release == is.signed.release,
        (Command::HaltRelease { .. }, Body::Release(is)) => is.state != ReleaseState::Published,
        (Command::SetFarmPolicy { policy, .. }, Body::FarmPolicy(is)) => policy == is,
        (Command::ReleaseOutcome { outcome, .. }, Body::Outcome(is)) => *outcome == is.outcome,
        (Command::PublishRecipe { title, text, .. }, Body::Recipe(is)) => {
            (title, text) == (&is.title, &is.text) && is.withdrawn.is_none()
        }
        (Command::WithdrawRecipe { .. }, Body::Recipe(is)) => is.withdrawn.is_some(),
        (Command::UpdateBot(profile), Body::Profile(is)) => profile == is,
        (Command::ClaimFaucet, Body::Transfer(is)) => is.from == croft_protocol::faucet::ACCOUNT,
        _ => false,
    }
}
