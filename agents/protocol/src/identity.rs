//! A bot's keys: the first one is its id for ever, later ones sign for it.
//!
//! ```text
//!   first key = id ──Link──> second key ──Link──> third key
//!        └ retired at height h1   └ retired at h2     └ present: signs commands, terms, joins, messages, TLS
//! ```
//! A [`Link`] is signed by the key before and by the new one, so that nobody, the validators neither, can give a bot a
//! key, and nobody takes a key that is not his. Links show that a key is one of the bot's; only the ledger knows which one
//! holds at a height ([`KeysBody`]). So whoever believes a signature has to ask both: [`crate::PublicKey::verify`], and
//! then [`check_key`] with what the ledger proves. A key that was replaced is never anybody's again.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize, Serializer};

use crate::header::ChainId;
use crate::keys::{Domain, SignedWith};
use crate::{BotId, PublicKey, SecretKey, Signature, limits};

/// From one key of a bot to the next.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Link {
    pub key: PublicKey,
    /// By the key before, over [`Domain::KEY_CHANGE`].
    pub by_old: Signature,
    /// By the new one: nobody names a key that he does not hold.
    pub by_new: Signature,
}

/// What both sign.
#[derive(BorshSerialize)]
struct Change<'a> {
    bot: &'a BotId,
    /// 1 for the first change.
    number: u32,
    before: &'a PublicKey,
    key: &'a PublicKey,
}

impl Link {
    /// The link from a bot's present key to another one.
    #[must_use]
    pub fn sign(present: &SecretKey, new: &SecretKey, chain: &ChainId) -> Self {
        let (bot, before, key) = (present.id(), present.public(), new.public());
        let number = number_after(present.links());
        let change = Change { bot: &bot, number, before: &before, key: &key };
        let by = |key: &SecretKey| key.sign(Domain::KEY_CHANGE, chain, &change);
        Self { key, by_old: by(present), by_new: by(new) }
    }

    /// Whether it leads on from the last of `links`.
    #[must_use]
    pub fn follows(&self, bot: &BotId, links: &[Self], chain: &ChainId) -> bool {
        let before = last_key(bot, links);
        let change = Change { bot, number: number_after(links), before: &before, key: &self.key };
        let by =
            |key: &PublicKey, signature| key.verify(Domain::KEY_CHANGE, chain, &change, signature).is_ok();
        by(&before, &self.by_old) && by(&self.key, &self.by_new)
    }
}

fn number_after(links: &[Link]) -> u32 {
    u32::try_from(links.len()).unwrap_or(u32::MAX).saturating_add(1)
}

/// The key to which links lead.
#[must_use]
pub fn last_key(bot: &BotId, links: &[Link]) -> PublicKey {
    links.last().map_or(*bot, |link| link.key)
}

/// Why links show nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLinks {
    #[error("a bot has at most {limit} later keys, these are {len}", limit = limits::KEY_CHANGES)]
    TooMany { len: usize },
    #[error("change {number} of the key of bot {} is not signed by the key before and by the new one", bot.short())]
    Unsigned { bot: BotId, number: usize },
    #[error("the keys of bot {} lead to {}, not to {}", bot.short(), found.short(), key.short())]
    Elsewhere { bot: BotId, key: PublicKey, found: PublicKey },
}

/// Checks every link; returns the key to which they lead.
///
/// # Errors
/// [`BadLinks`] names the first one that shows nothing.
pub fn check_links(bot: &BotId, links: &[Link], chain: &ChainId) -> Result<PublicKey, BadLinks> {
    if links.len() > limits::KEY_CHANGES {
        return Err(BadLinks::TooMany { len: links.len() });
    }
    for (at, link) in links.iter().enumerate() {
        if !link.follows(bot, &links[..at], chain) {
            return Err(BadLinks::Unsigned { bot: *bot, number: at + 1 });
        }
    }
    Ok(last_key(bot, links))
}

/// A signature of a bot, with what leads from its id to the key that signed.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct BotSignature {
    pub links: Vec<Link>,
    pub signature: Signature,
}

impl BotSignature {
    /// The key that it says to be of. Nothing is checked.
    #[must_use]
    pub fn key(&self, bot: &BotId) -> PublicKey {
        last_key(bot, &self.links)
    }
}

impl From<Signature> for BotSignature {
    /// By the bot's first key.
    fn from(signature: Signature) -> Self {
        Self { links: Vec::new(), signature }
    }
}

impl SignedWith for BotSignature {
    fn signed_with(&self, identity: &PublicKey, chain: &ChainId) -> Option<(PublicKey, Signature)> {
        let key = check_links(identity, &self.links, chain).ok()?;
        Some((key, self.signature))
    }
}

/// One change of a bot's key, as the ledger keeps it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeyChange {
    pub link: Link,
    /// The block that carries it: after it in this block, and from the next one on, the key before signs nothing.
    pub height: u64,
}

impl Serialize for KeyChange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut s = serializer.serialize_struct("KeyChange", 2)?;
        s.serialize_field("key", &self.link.key)?;
        s.serialize_field("height", &self.height)?;
        s.end()
    }
}

/// The keys that followed a bot's first one, all of them, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct KeysBody {
    pub changes: Vec<KeyChange>,
}

impl KeysBody {
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        self.changes.iter().map(|change| change.link.clone()).collect()
    }

    /// The key that signs for the bot now.
    #[must_use]
    pub fn present(&self, bot: &BotId) -> PublicKey {
        self.changes.last().map_or(*bot, |change| change.link.key)
    }

    /// The height at which a key of this bot was replaced, if it was one.
    #[must_use]
    pub fn replaced_at(&self, bot: &BotId, key: &PublicKey) -> Option<u64> {
        let before = std::iter::once(*bot).chain(self.changes.iter().map(|change| change.link.key));
        before.zip(&self.changes).find(|(before, _)| before == key).map(|(_, change)| change.height)
    }
}

/// Why a key does not stand for a bot.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
    thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum KeyRefusal {
    #[error(
        "key {} of bot {} was replaced at height {height} and signs nothing any more: if the bot is yours, bring its present key here with 'croft bot import --later' and 'croft bot rotate --resume'",
        key.short(), bot.short()
    )]
    Replaced { bot: BotId, key: PublicKey, height: u64 },
    #[error("key {} is none of bot {}: sign with the bot's own key", key.short(), bot.short())]
    Foreign { bot: BotId, key: PublicKey },
    #[error(
        "key {} is no bot of its own, it followed the first key of bot {}: if it is yours, take it up with 'croft bot rotate --resume'",
        key.short(), bot.short()
    )]
    Follows { bot: BotId, key: PublicKey },
}

impl KeyRefusal {
    /// Of whom the key is, or should be.
    #[must_use]
    pub fn bot(&self) -> &BotId {
        match self {
            Self::Replaced { bot, .. } | Self::Foreign { bot, .. } | Self::Follows { bot, .. } => bot,
        }
    }
}

/// Whether a key stands for an identity, by what the ledger says: whose key it is or was, and which keys followed the
/// identity's first one. `None` where it says nothing, since none was ever replaced.
///
/// # Errors
/// [`KeyRefusal`].
pub fn check_key(
    bot: &BotId,
    key: &PublicKey,
    owner: Option<&BotId>,
    keys: Option<&KeysBody>,
) -> Result<(), KeyRefusal> {
    if let Some(owner) = owner.filter(|owner| *owner != bot) {
        let (owner, key) = (*owner, *key);
        return Err(if *bot == key {
            KeyRefusal::Follows { bot: owner, key }
        } else {
            KeyRefusal::Foreign { bot: *bot, key }
        });
    }
    let (bot, key) = (*bot, *key);
    if keys.map_or(bot, |keys| keys.present(&bot)) == key {
        return Ok(());
    }
    match keys.and_then(|keys| keys.replaced_at(&bot, &key)) {
        Some(height) => Err(KeyRefusal::Replaced { bot, key, height }),
        None => Err(KeyRefusal::Foreign { bot, key }),
    }
}

/// Why a bot's key is not replaced.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
    thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum RefusedChange {
    #[error("it was replaced {limit} times, which is all that a bot may: make another bot", limit = limits::KEY_CHANGES)]
    TooMany,
    #[error("it was replaced at height {height}: the next change is possible from height {next} on")]
    TooSoon { height: u64, next: u64 },
    #[error("key {key} is or was somebody's on this grid: make a new one")]
    InUse { key: PublicKey },
    #[error(
        "it is not signed by the present key and by the new one: sign it again with the bot's present key"
    )]
    Unsigned,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    const CHAIN: ChainId = ChainId(Hash([7; 32]));

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&[n; 32])
    }

    fn next(present: &SecretKey, new: u8) -> SecretKey {
        let mut links = present.links().to_vec();
        links.push(Link::sign(present, &key(new), &CHAIN));
        key(new).of_bot(present.id(), links, &CHAIN).unwrap()
    }

    #[test]
    fn a_later_key_signs_for_the_first_one_and_nobody_elses_does() {
        let third = next(&next(&key(1), 2), 3);
        let id = key(1).public();
        assert_eq!((third.id(), third.public(), third.links().len()), (id, key(3).public(), 2));
        let signature = third.sign_as_bot(Domain::TERMS, &CHAIN, "hello");
        id.verify(Domain::TERMS, &CHAIN, "hello", &signature).unwrap();
        let elsewhere = ChainId(Hash([8; 32]));
        assert!(id.verify(Domain::TERMS, &elsewhere, "hello", &signature).is_err());
        assert!(key(2).public().verify(Domain::TERMS, &CHAIN, "hello", &signature).is_err());
        let mut cut = signature.clone();
        cut.links.pop();
        assert!(id.verify(Domain::TERMS, &CHAIN, "hello", &cut).is_err());
        let mut swapped = signature;
        swapped.links.reverse();
        assert!(id.verify(Domain::TERMS, &CHAIN, "hello", &swapped).is_err());
    }

    #[test]
    fn a_link_needs_both_keys_and_its_place() {
        let (first, id) = (key(1), key(1).public());
        let good = Link::sign(&first, &key(2), &CHAIN);
        assert!(good.follows(&id, &[], &CHAIN));
        let thief = Link { by_new: key(3).sign(Domain::KEY_CHANGE, &CHAIN, "x"), ..good.clone() };
        let taken = Link { by_old: thief.by_new, ..good.clone() };
        for bad in [&thief, &taken] {
            assert!(!bad.follows(&id, &[], &CHAIN));
        }
        let again = check_links(&id, &[good.clone(), good], &CHAIN).unwrap_err();
        let text = format!(
            "change 2 of the key of bot {} is not signed by the key before and by the new one",
            id.short()
        );
        assert_eq!(again.to_string(), text);
    }

    #[test]
    fn more_links_than_a_bot_may_have_are_not_even_looked_at() {
        let link = Link::sign(&key(1), &key(2), &CHAIN);
        let many = vec![link; limits::KEY_CHANGES + 1];
        let error = check_links(&key(1).public(), &many, &CHAIN).unwrap_err();
        assert_eq!(error.to_string(), "a bot has at most 8 later keys, these are 9");
    }

    #[test]
    fn links_to_another_key_make_no_identity() {
        let links = vec![Link::sign(&key(1), &key(2), &CHAIN)];
        let error = key(3).of_bot(key(1).public(), links, &CHAIN).unwrap_err();
        let [bot, found, other] = [1, 2, 3].map(|n| key(n).public().short());
        assert_eq!(error.to_string(), format!("the keys of bot {bot} lead to {found}, not to {other}"));
    }

    #[test]
    fn of_all_keys_the_last_one_holds_and_the_others_name_their_height() {
        let [id, second, third, stranger] = [1, 2, 3, 9].map(|n| key(n).public());
        let two = next(&key(1), 2);
        let change = |present: &SecretKey, new, height| KeyChange {
            link: Link::sign(present, &key(new), &CHAIN),
            height,
        };
        let keys = KeysBody { changes: vec![change(&key(1), 2, 40), change(&two, 3, 90)] };
        assert_eq!(check_key(&id, &third, Some(&id), Some(&keys)), Ok(()));
        let replaced = |key, height| Err(KeyRefusal::Replaced { bot: id, key, height });
        assert_eq!(check_key(&id, &id, Some(&id), Some(&keys)), replaced(id, 40));
        assert_eq!(check_key(&id, &second, Some(&id), Some(&keys)), replaced(second, 90));
        assert_eq!(
            check_key(&id, &stranger, None, Some(&keys)),
            Err(KeyRefusal::Foreign { bot: id, key: stranger })
        );
        assert_eq!(check_key(&id, &id, None, None), Ok(()));
        let follows = check_key(&second, &second, Some(&id), None).unwrap_err();
        assert_eq!(follows, KeyRefusal::Follows { bot: id, key: second });
        let text = format!("no bot of its own, it followed the first key of bot {}", id.short());
        assert!(follows.to_string().contains(&text), "{follows}");
        let foreign = KeyRefusal::Foreign { bot: stranger, key: second };
        assert_eq!(check_key(&stranger, &second, Some(&id), None), Err(foreign));
        let text = check_key(&id, &second, Some(&id), Some(&keys)).unwrap_err().to_string();
        assert_eq!(
            text,
            format!(
                "key {} of bot {} was replaced at height 90 and signs nothing any more: if the bot is yours, bring its present key here with 'croft bot import --later' and 'croft bot rotate --resume'",
                second.short(),
                id.short()
            )
        );
    }
}
