//! Skills that a person added: `skills/NAME.skill`, each checked again whenever it is read.

use std::fs;
use std::io;
use std::path::PathBuf;

use croft_protocol::Name;
use croft_skills::SignedSkill;
use croft_skills::file::ReplaceError;

use super::{Home, HomeError, known, lock, read, write};

/// Why a skill is not added.
#[derive(Debug, thiserror::Error)]
pub enum AddSkillError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Replace(#[from] ReplaceError),
}

impl Home {
    /// Names of the skills that are here, sorted.
    pub fn skills(&self) -> Result<Vec<Name>, HomeError> {
        self.names("skills", ".skill")
    }

    /// A skill, with its signature checked.
    pub fn skill(&self, name: &Name) -> Result<SignedSkill, HomeError> {
        self.find_skill(name)?.ok_or_else(|| self.no_skill(name))
    }

    fn find_skill(&self, name: &Name) -> Result<Option<SignedSkill>, HomeError> {
        let path = self.skill_path(name);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let damaged = |reason: String| HomeError::Damaged { path: path.clone(), reason };
        let skill = SignedSkill::decode(&bytes).map_err(|error| damaged(error.to_string()))?;
        if skill.manifest().name != *name {
            return Err(damaged(format!("it is skill '{}'", skill.manifest().name)));
        }
        Ok(Some(skill))
    }

    fn no_skill(&self, name: &Name) -> HomeError {
        let (name, home) = (name.clone(), self.root.clone());
        let known = self.skills().map_or_else(|_| "none".to_owned(), |names| known("skills", &names));
        HomeError::NoSkill { name, home, known }
    }

    /// Keeps a skill, in the place of an older one of the same author. Gives the version that was there; the same one
    /// when nothing changed.
    pub fn add_skill(&self, skill: &SignedSkill) -> Result<Option<u32>, AddSkillError> {
        let name = &skill.manifest().name;
        let _lock = lock(&self.root.join("skills"))?;
        let present = self.find_skill(name)?;
        if let Some(present) = &present
            && !skill.replaces(present)?
        {
            return Ok(Some(present.manifest().version));
        }
        write(&self.skill_path(name), &skill.encode())?;
        Ok(present.map(|present| present.manifest().version))
    }

    /// Removes a skill; a damaged one too.
    pub fn remove_skill(&self, name: &Name) -> Result<(), HomeError> {
        let path = self.skill_path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(self.no_skill(name)),
            Err(source) => Err(HomeError::Write { path, source }),
        }
    }

    fn skill_path(&self, name: &Name) -> PathBuf {
        self.root.join("skills").join(format!("{name}.skill"))
    }
}

#[cfg(test)]
mod tests {
    use croft_protocol::SecretKey;
    use croft_skills::Hook;

    use super::*;

    fn skill(author: u8, version: u32) -> SignedSkill {
        let key = SecretKey::from_seed(&[author; 32]);
        let name = Name::new("night").unwrap();
        SignedSkill::sign(&key, name, version, vec![Hook::Pricing], version.to_le_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_skill_is_kept_until_it_is_removed_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let name = Name::new("night").unwrap();
        let error = home.skill(&name).unwrap_err().to_string();
        assert!(
            error.contains("there is no skill 'night' in") && error.contains("it has no skills"),
            "{error}"
        );
        assert_eq!(home.add_skill(&skill(1, 2)).unwrap(), None);
        assert_eq!(home.add_skill(&skill(1, 2)).unwrap(), Some(2));
        assert_eq!(home.add_skill(&skill(1, 3)).unwrap(), Some(2));
        assert_eq!(home.skill(&name).unwrap(), skill(1, 3));
        let error = home.add_skill(&skill(1, 2)).unwrap_err().to_string();
        assert!(error.contains("is here in version 3, and version 2 is older"), "{error}");
        assert!(matches!(home.add_skill(&skill(2, 9)), Err(AddSkillError::Replace(_))));
        assert_eq!(home.skills().unwrap(), std::slice::from_ref(&name));
        home.remove_skill(&name).unwrap();
        assert!(home.remove_skill(&name).is_err());
        assert_eq!(home.add_skill(&skill(1, 1)).unwrap(), None);
    }

    #[test]
    fn a_skill_that_was_tampered_with_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let name = Name::new("night").unwrap();
        home.add_skill(&skill(1, 2)).unwrap();
        let mut bytes = skill(1, 2).encode();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(home.skill_path(&name), bytes).unwrap();
        let error = home.skill(&name).unwrap_err().to_string();
        assert!(error.contains("night.skill is not what croft wrote there: skill 'night' is not"), "{error}");
        fs::write(home.skill_path(&Name::new("day").unwrap()), skill(1, 2).encode()).unwrap();
        let error = home.skill(&Name::new("day").unwrap()).unwrap_err().to_string();
        assert!(error.contains("it is skill 'night'"), "{error}");
    }
}
