//! The directory: what a bot says of itself, for others to find it and to write to it.
//!
//! A profile is a record of its own beside the bot's, signed by the bot like every command, and each change is a new
//! version. What it claims decides nothing: whoever relies on a role asks the contract. Its texts are a stranger's:
//! printable characters only, and never read by a machine that decides.

use std::collections::BTreeSet;
use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::{Name, limits};

/// What a bot is on the grid for.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Has farms.
    Farmer,
    /// Deploys workloads.
    User,
    /// Writes recipes.
    Expert,
    /// Co-signs contracts.
    Approver,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Farmer, Self::User, Self::Expert, Self::Approver];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Farmer => "farmer",
            Self::User => "user",
            Self::Expert => "expert",
            Self::Approver => "approver",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a bot says of itself.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Profile {
    /// The bot's own name, as its record has it: the ledger takes no other.
    pub name: Name,
    pub roles: BTreeSet<Role>,
    /// What it offers, in its own words: `gpu`, `web-hosting`.
    pub capabilities: BTreeSet<Name>,
    /// X25519 public key to which messages are sealed; without one nobody can write to it.
    pub encryption_key: Option<[u8; 32]>,
    /// For people.
    pub description: String,
}

/// A profile that the ledger does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProfile {
    #[error("a bot has at most {limit} capabilities, not {count}", limit = limits::CAPABILITIES)]
    Capabilities { count: usize },
    #[error("a description has at most {limit} bytes, not {len}", limit = limits::DESCRIPTION_BYTES)]
    Long { len: usize },
    #[error("a description is one line of printable characters, without {code:#x}: leave that out")]
    Unprintable { code: u32 },
    #[error("the encryption key is no X25519 key: all of its bytes are zero")]
    ZeroKey,
}

impl Profile {
    /// One that says nothing but the name.
    #[must_use]
    pub fn named(name: Name) -> Self {
        Self {
            name,
            roles: BTreeSet::new(),
            capabilities: BTreeSet::new(),
            encryption_key: None,
            description: String::new(),
        }
    }

    /// Checks everything but the name, which only the ledger can.
    ///
    /// # Errors
    /// [`InvalidProfile`] names the culprit.
    pub fn check(&self) -> Result<(), InvalidProfile> {
        if self.capabilities.len() > limits::CAPABILITIES {
            return Err(InvalidProfile::Capabilities { count: self.capabilities.len() });
        }
        if self.description.len() > limits::DESCRIPTION_BYTES {
            return Err(InvalidProfile::Long { len: self.description.len() });
        }
        if let Some(odd) = self.description.chars().find(|c| !is_printable(*c)) {
            return Err(InvalidProfile::Unprintable { code: u32::from(odd) });
        }
        if self.encryption_key == Some([0; 32]) {
            return Err(InvalidProfile::ZeroKey);
        }
        Ok(())
    }
}

/// Whether a character shows itself, and moves nothing around it: no control characters, no line ends, none of the
/// invisible ones that turn the direction of a text around (Unicode TR 36, section 2.10).
#[must_use]
pub fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{61c}' | '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
}

/// Bots by what they say of themselves. Every condition that is given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct BotQuery {
    /// Each of its words is part of the name, a capability or the description; large and small letters are the same.
    pub text: Option<String>,
    pub role: Option<Role>,
    pub capability: Option<Name>,
}

impl BotQuery {
    /// Whether a bot that says this of itself is looked for.
    #[must_use]
    pub fn matches(
        &self,
        name: &Name,
        roles: &BTreeSet<Role>,
        capabilities: &BTreeSet<Name>,
        description: &str,
    ) -> bool {
        self.role.is_none_or(|role| roles.contains(&role))
            && self.capability.as_ref().is_none_or(|one| capabilities.contains(one))
            && self.text.as_ref().is_none_or(|text| {
                let (text, description) = (text.to_lowercase(), description.to_lowercase());
                text.split_whitespace().all(|word| {
                    name.as_str().contains(word)
                        || description.contains(word)
                        || capabilities.iter().any(|one| one.as_str().contains(word))
                })
            })
    }

    /// The same of a profile.
    #[must_use]
    pub fn matches_profile(&self, profile: &Profile) -> bool {
        self.matches(&profile.name, &profile.roles, &profile.capabilities, &profile.description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn profile() -> Profile {
        Profile {
            roles: [Role::Approver].into(),
            capabilities: [name("audits")].into(),
            description: "Signs for Hospitals in Flanders".to_owned(),
            ..Profile::named(name("anna"))
        }
    }

    #[test]
    fn a_profile_is_short_and_shows_what_it_is() {
        assert_eq!(profile().check(), Ok(()));
        let says = |change: &dyn Fn(&mut Profile)| {
            let mut profile = profile();
            change(&mut profile);
            profile.check().unwrap_err().to_string()
        };
        let long = says(&|p| p.description = "x".repeat(513));
        assert_eq!(long, "a description has at most 512 bytes, not 513");
        for (odd, code) in [('\n', "0xa"), ('\u{1b}', "0x1b"), ('\u{202e}', "0x202e"), ('\u{200b}', "0x200b")]
        {
            let error = says(&|p| p.description = format!("good {odd} evil"));
            assert!(error.contains(&format!("without {code}:")), "{error}");
        }
        let many = says(&|p| p.capabilities = (0..17).map(|n| name(&format!("c{n}"))).collect());
        assert_eq!(many, "a bot has at most 16 capabilities, not 17");
        assert!(says(&|p| p.encryption_key = Some([0; 32])).contains("no X25519 key"));
    }

    #[test]
    fn a_search_finds_by_all_words_in_any_case_by_role_and_by_capability() {
        let finds = |text: Option<&str>, role, capability: Option<&str>| {
            let query = BotQuery { text: text.map(str::to_owned), role, capability: capability.map(name) };
            query.matches_profile(&profile())
        };
        assert!(finds(Some("hospital ANNA audit"), Some(Role::Approver), Some("audits")));
        assert!(!finds(Some("hospital bob"), None, None));
        assert!(!finds(None, Some(Role::Farmer), None));
        assert!(!finds(None, None, Some("audit")));
        assert!(finds(None, None, None));
    }
}
