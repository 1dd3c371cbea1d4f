//! Who holds which key now, by proof.
//!
//! ```text
//!   a key that somebody proved ──KeyOwner──> its bot, or itself ──Keys──> present? ──> who it is
//!                                                                       └─ replaced at a height: refused
//!   whom we want to reach ──Keys──> the key that it shows
//! ```
//! Asked anew each time: an answer of a minute ago would let a stolen key act for a minute more.

use borsh::BorshDeserialize;
use croft_protocol::identity::{KeysBody, check_key};
use croft_protocol::{Body, BotId, PublicKey, Record, RecordId, StateKey, limits};

use super::{Verified, VerifiedError};

impl Verified {
    /// Who speaks with a key that was proved. Nodes, validators and most bots are their keys.
    ///
    /// # Errors
    /// [`VerifiedError::Key`] for a key that was replaced, with the height; [`VerifiedError`] when nobody can say.
    pub async fn identity_of(&self, key: PublicKey) -> Result<PublicKey, VerifiedError> {
        // Most keys were never replaced: one question tells.
        let (_, values) = self.get(&[StateKey::KeyOwner(key)]).await?;
        let Some(bot) = read::<BotId>("the owner of a key", values.first())? else { return Ok(key) };
        self.check_key(bot, key).await?;
        Ok(bot)
    }

    /// The key with which somebody shows itself and signs now.
    ///
    /// # Errors
    /// [`VerifiedError`] when nobody can say.
    pub async fn present_key(&self, identity: PublicKey) -> Result<PublicKey, VerifiedError> {
        Ok(self.keys(identity).await?.map_or(identity, |keys| keys.present(&identity)))
    }

    /// Whether a key signs for somebody now.
    ///
    /// # Errors
    /// [`VerifiedError::Key`] when it does not; [`VerifiedError`] when nobody can say.
    pub async fn check_key(&self, identity: PublicKey, key: PublicKey) -> Result<(), VerifiedError> {
        let asked = [StateKey::KeyOwner(key), StateKey::Record(RecordId::keys(&identity))];
        let (_, values) = self.get(&asked).await?;
        let owner = read::<BotId>("the owner of a key", values.first())?;
        let keys = keys_in(values.get(1))?;
        Ok(check_key(&identity, &key, owner.as_ref(), keys.as_ref())?)
    }

    /// The keys that followed a bot's first one, if any did.
    ///
    /// # Errors
    /// [`VerifiedError`] when nobody can say.
    pub async fn keys(&self, bot: BotId) -> Result<Option<KeysBody>, VerifiedError> {
        let (_, values) = self.get(&[StateKey::Record(RecordId::keys(&bot))]).await?;
        keys_in(values.first())
    }

    /// The bot of a key and the keys that followed its first one: for whoever holds one of its keys and nothing else.
    ///
    /// # Errors
    /// [`VerifiedError`] when nobody can say.
    pub async fn owner_of(&self, key: PublicKey) -> Result<(BotId, KeysBody), VerifiedError> {
        let (_, values) = self.get(&[StateKey::KeyOwner(key)]).await?;
        let bot = read::<BotId>("the owner of a key", values.first())?.unwrap_or(key);
        Ok((bot, self.keys(bot).await?.unwrap_or_default()))
    }
}

fn keys_in(value: Option<&Option<Vec<u8>>>) -> Result<Option<KeysBody>, VerifiedError> {
    let record: Option<Record> = read("the keys of a bot", value)?;
    Ok(match record.map(|record| record.body) {
        Some(Body::Keys(keys)) => Some(keys),
        _ => None,
    })
}

fn read<T: BorshDeserialize>(
    what: &'static str,
    value: Option<&Option<Vec<u8>>>,
) -> Result<Option<T>, VerifiedError> {
    let Some(Some(bytes)) = value else { return Ok(None) };
    let decoded = croft_protocol::decode(what, bytes, limits::RECORD_BYTES);
    decoded.map(Some).map_err(|source| VerifiedError::Malformed { what, source })
}
