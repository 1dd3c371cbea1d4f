//! The file that a skill is passed around as: what it says of itself, whose word that is, and the component.
//!
//! ```text
//!   "croft-skill\0\x01\0\0\0" │ manifest: name, version, hooks, hash, author │ signature │ component
//! ```
//! Whoever has a [`SignedSkill`] has one whose bounds, hash and signature hold. That says who wrote it, not that it is any
//! good: what it can do is bounded where it runs. A skill belongs to no grid, so its signature covers none.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::keys::{BadSignature, Domain};
use croft_protocol::{BotId, ChainId, Hash, Name, SecretKey, Signature};
use serde::Serialize;

use crate::limits;

/// What a skill's author signs.
pub const SKILL: Domain = Domain("croft/skill/1");
/// In the place of a grid.
const NO_GRID: ChainId = ChainId(Hash::ZERO);
/// What such a file begins with.
const MAGIC: [u8; 16] = *b"croft-skill\0\x01\0\0\0";

/// What a skill can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    Pricing,
    Scoring,
    Approval,
    Messages,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::Pricing, Self::Scoring, Self::Approval, Self::Messages];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pricing => "pricing",
            Self::Scoring => "scoring",
            Self::Approval => "approval",
            Self::Messages => "messages",
        }
    }

    /// The interface that a component exports for it.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Self::Pricing => "croft:skill/pricing@1.0.0",
            Self::Scoring => "croft:skill/scoring@1.0.0",
            Self::Approval => "croft:skill/approval@1.0.0",
            Self::Messages => "croft:skill/messages@1.0.0",
        }
    }

    /// The function in it.
    #[must_use]
    pub fn function(self) -> &'static str {
        match self {
            Self::Pricing => "price",
            Self::Scoring => "surcharge",
            Self::Approval => "decide",
            Self::Messages => "react",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no hook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no hook: those are pricing, scoring, approval and messages")]
pub struct UnknownHook {
    pub text: String,
}

impl FromStr for Hook {
    type Err = UnknownHook;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|hook| hook.name() == text);
        known.ok_or_else(|| UnknownHook { text: text.chars().take(80).collect() })
    }
}

/// What a skill says of itself.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Manifest {
    pub name: Name,
    /// From 1; each change has a higher one.
    pub version: u32,
    /// In their order, each once, at least one.
    pub hooks: Vec<Hook>,
    /// SHA-256 of the component.
    pub component: Hash,
    pub author: BotId,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct Content {
    manifest: Manifest,
    signature: Signature,
    component: Vec<u8>,
}

/// A skill whose bounds, hash and signature hold.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedSkill {
    manifest: Manifest,
    signature: Signature,
    component: Vec<u8>,
}

/// Why bytes are no skill.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkillFileError {
    #[error("it has {len} bytes, a skill has at most {limit}: leave out what it does not need")]
    TooLarge { len: usize, limit: usize },
    #[error("it is no skill of this format: pack one with 'croft skill pack'")]
    NotASkill,
    #[error("it is damaged: {reason}")]
    Malformed { reason: String },
    #[error("skill '{name}' has version 0: versions begin with 1")]
    Version { name: Name },
    #[error("skill '{name}' must list its hooks in their order, each once, and have one")]
    Hooks { name: Name },
    #[error("skill '{name}' is not the component that its author signed: get it anew")]
    Component { name: Name },
    #[error("skill '{name}' is not signed by the author that it names: get it anew")]
    Signature { name: Name, source: BadSignature },
}

/// Why a skill must not take the place of another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceError {
    #[error(
        "skill '{name}' is {present}'s here, this one is signed by {author}: remove the one that is there first, if you trust this author"
    )]
    Author { name: Name, present: BotId, author: BotId },
    #[error(
        "skill '{name}' is here in version {present}, and version {version} is older: remove it first, if you want to go back"
    )]
    Older { name: Name, present: u32, version: u32 },
    #[error(
        "skill '{name}' is here in version {version} with another component: its author must count the version up"
    )]
    Same { name: Name, version: u32 },
}

impl SignedSkill {
    /// Signs a component.
    ///
    /// # Errors
    /// [`SkillFileError`] when version, hooks or size are out of bounds.
    pub fn sign(
        key: &SecretKey,
        name: Name,
        version: u32,
        hooks: Vec<Hook>,
        component: Vec<u8>,
    ) -> Result<Self, SkillFileError> {
        let hash = Hash::of_bytes(&component);
        let manifest = Manifest { name, version, hooks, component: hash, author: key.public() };
        let signature = key.sign(SKILL, &NO_GRID, &manifest);
        let skill = Self::check(Content { manifest, signature, component })?;
        let len = skill.encode().len();
        if len > limits::FILE_BYTES {
            return Err(SkillFileError::TooLarge { len, limit: limits::FILE_BYTES });
        }
        Ok(skill)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`SkillFileError`] says what does not hold.
    pub fn decode(bytes: &[u8]) -> Result<Self, SkillFileError> {
        if bytes.len() > limits::FILE_BYTES {
            return Err(SkillFileError::TooLarge { len: bytes.len(), limit: limits::FILE_BYTES });
        }
        let content = bytes.strip_prefix(&MAGIC).ok_or(SkillFileError::NotASkill)?;
        let content = borsh::from_slice(content).map_err(|error| {
            let reason = error.to_string().chars().take(limits::REASON_CHARS).collect();
            SkillFileError::Malformed { reason }
        })?;
        Self::check(content)
    }

    fn check(content: Content) -> Result<Self, SkillFileError> {
        let Content { manifest, signature, component } = content;
        let name = || manifest.name.clone();
        if manifest.version == 0 {
            return Err(SkillFileError::Version { name: name() });
        }
        if manifest.hooks.is_empty() || !manifest.hooks.is_sorted_by(|a, b| a < b) {
            return Err(SkillFileError::Hooks { name: name() });
        }
        if Hash::of_bytes(&component) != manifest.component {
            return Err(SkillFileError::Component { name: name() });
        }
        manifest
            .author
            .verify(SKILL, &NO_GRID, &manifest, &signature)
            .map_err(|source| SkillFileError::Signature { name: name(), source })?;
        Ok(Self { manifest, signature, component })
    }

    /// The file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { manifest, signature, component } = self;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(croft_protocol::encode(&(manifest, signature, component)));
        bytes
    }

    /// Whether it may take the place of the one with the same name that is there. `false` when it is that one.
    ///
    /// # Errors
    /// [`ReplaceError`] when it is somebody else's, or older.
    pub fn replaces(&self, present: &Self) -> Result<bool, ReplaceError> {
        let (new, old) = (&self.manifest, &present.manifest);
        let name = new.name.clone();
        if new.author != old.author {
            return Err(ReplaceError::Author { name, present: old.author, author: new.author });
        }
        if new.version < old.version {
            return Err(ReplaceError::Older { name, present: old.version, version: new.version });
        }
        if new.version == old.version && new != old {
            return Err(ReplaceError::Same { name, version: new.version });
        }
        Ok(new != old)
    }

    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    #[must_use]
    pub fn component(&self) -> &[u8] {
        &self.component
    }
}

impl fmt::Debug for SignedSkill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedSkill").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&[n; 32])
    }

    fn skill(author: u8, version: u32, component: &[u8]) -> SignedSkill {
        let name = Name::new("night").unwrap();
        SignedSkill::sign(&key(author), name, version, vec![Hook::Pricing], component.to_vec()).unwrap()
    }

    #[test]
    fn a_signed_skill_is_read_as_it_was_written() {
        let skill = skill(1, 3, b"component");
        let again = SignedSkill::decode(&skill.encode()).unwrap();
        assert_eq!(again, skill);
        assert_eq!(again.manifest().author, key(1).public());
        assert_eq!(again.component(), b"component");
    }

    #[test]
    fn every_changed_byte_of_a_skill_file_is_noticed() {
        let good = skill(1, 3, b"component").encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(SignedSkill::decode(&bad).is_err(), "byte {at}");
        }
        for len in 0..good.len() {
            assert!(SignedSkill::decode(&good[..len]).is_err(), "{len} bytes");
        }
        let mut more = good;
        more.push(0);
        assert!(matches!(SignedSkill::decode(&more), Err(SkillFileError::Malformed { .. })));
    }

    #[test]
    fn what_is_no_skill_says_what_is_wrong_with_it() {
        let says = |error: SkillFileError| error.to_string();
        assert_eq!(
            says(SignedSkill::decode(b"\0asm\x01\0\0\0").unwrap_err()),
            "it is no skill of this format: pack one with 'croft skill pack'"
        );
        let large = says(SignedSkill::decode(&vec![0; limits::FILE_BYTES + 1]).unwrap_err());
        assert!(large.starts_with("it has 1048577 bytes, a skill has at most 1048576"), "{large}");
        let name = || Name::new("night").unwrap();
        let sign = |version, hooks| SignedSkill::sign(&key(1), name(), version, hooks, vec![1]).unwrap_err();
        assert_eq!(says(sign(0, vec![Hook::Pricing])), "skill 'night' has version 0: versions begin with 1");
        for hooks in [vec![], vec![Hook::Scoring, Hook::Pricing], vec![Hook::Pricing, Hook::Pricing]] {
            assert!(says(sign(1, hooks)).contains("must list its hooks in their order"));
        }
        let full = vec![0; limits::FILE_BYTES];
        let full = SignedSkill::sign(&key(1), name(), 1, vec![Hook::Pricing], full).unwrap_err();
        assert!(matches!(full, SkillFileError::TooLarge { .. }));
    }

    #[test]
    fn a_signature_of_somebody_else_or_for_something_else_does_not_count() {
        let good = skill(1, 3, b"component");
        let mut forged = good.clone();
        forged.manifest.author = key(2).public();
        assert!(matches!(SignedSkill::decode(&forged.encode()), Err(SkillFileError::Signature { .. })));
        let mut other = good;
        other.signature = key(1).sign(Domain::MESSAGE, &NO_GRID, &other.manifest);
        let error = SignedSkill::decode(&other.encode()).unwrap_err();
        assert_eq!(error.to_string(), "skill 'night' is not signed by the author that it names: get it anew");
    }

    #[test]
    fn a_skill_gives_way_only_to_a_newer_one_of_its_author() {
        let present = skill(1, 3, b"three");
        assert_eq!(skill(1, 4, b"four").replaces(&present), Ok(true));
        assert_eq!(present.replaces(&present), Ok(false));
        let older = skill(1, 2, b"two").replaces(&present).unwrap_err().to_string();
        assert!(older.contains("is here in version 3, and version 2 is older: remove it first"), "{older}");
        let same = skill(1, 3, b"other").replaces(&present).unwrap_err().to_string();
        assert!(same.contains("must count the version up"), "{same}");
        let author = skill(2, 9, b"nine").replaces(&present).unwrap_err().to_string();
        assert!(author.contains(&format!("signed by {}", key(2).public())), "{author}");
    }

    #[test]
    fn a_hook_is_read_by_its_name() {
        for hook in Hook::ALL {
            assert_eq!(hook.name().parse(), Ok(hook));
        }
        let error = "prices".parse::<Hook>().unwrap_err().to_string();
        assert!(error.contains("'prices' is no hook: those are pricing, scoring"), "{error}");
    }
}
