//! Keys that follow a bot's first one.
//!
//! ```text
//!   rotate: key N written ──> grids/GRID/keys/BOT: it is next ──> on the ledger? ──yes──> the same file: it holds
//!                                                                      └─ not yet, or nobody knows: it stays next
//!   import --later: key N written; 'croft bot rotate --resume' asks the ledger whether it holds
//! ```
//! A key is written before the ledger hears of it, and none is ever removed: which one holds on which grid, the ledger
//! says. It must never write a key into a file that others can read, or over another key.

use std::fs;
use std::io;
use std::path::PathBuf;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::identity::Link;
use croft_protocol::{BotId, Name, PublicKey};

use super::{Home, HomeError, read, read_key_file, write, write_new};
use crate::files;
use crate::keyfile::KeyFile;

/// A few hundred bytes for each link.
const SUCCESSOR_BYTES: usize = 16 * 1024;
/// Keys of one bot that are looked for: it may have replaced some on each of several grids.
const LATER_KEYS: usize = 64;

/// What this home knows of a bot's keys on a grid.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Successor {
    pub bot: BotId,
    /// What leads to the key that holds.
    pub links: Vec<Link>,
    /// A key that is here, and that the ledger has perhaps been told of.
    pub next: Option<PublicKey>,
}

impl Home {
    /// Every key of a bot, the first one first.
    pub fn key_files(&self, name: &Name) -> Result<Vec<KeyFile>, HomeError> {
        Ok(self.numbered_keys(name)?.into_iter().map(|(_, file)| file).collect())
    }

    /// The same with their numbers, in which somebody may have left gaps.
    pub fn numbered_keys(&self, name: &Name) -> Result<Vec<(usize, KeyFile)>, HomeError> {
        let mut files = vec![(0, self.key_file(name)?)];
        for number in 1..=LATER_KEYS {
            let path = self.later_key_path(name, number);
            match fs::metadata(&path) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(HomeError::Read { path, source }),
            }
            match read_key_file(&path)? {
                KeyFile::Locked(locked) if locked.name != *name => {
                    return Err(HomeError::OtherBot { path, found: locked.name, name: name.clone() });
                }
                file => files.push((number, file)),
            }
        }
        Ok(files)
    }

    /// Keeps a key that is to follow those that are here.
    pub fn add_key(&self, name: &Name, text: &str) -> Result<(), HomeError> {
        for number in 1..=LATER_KEYS {
            if write_new(&self.later_key_path(name, number), text.as_bytes())? {
                return Ok(());
            }
        }
        // One more would never be found again.
        let home = self.root().to_owned();
        Err(HomeError::TooManyKeys { name: name.clone(), home, limit: LATER_KEYS })
    }

    /// Held while a bot's keys are changed; `None` when another process does. Freed when the file is closed.
    pub fn lock_keys(&self, name: &Name) -> Result<Option<fs::File>, HomeError> {
        let path = self.root().join("bots").join(format!("{name}.keys"));
        files::try_lock(&path).map_err(|source| HomeError::Write { path, source })
    }

    /// The bot whose key with this name is here, on a grid where its keys are known; else the one of its first key here.
    pub fn bot_id(&self, grid: &Name, name: &Name) -> Result<BotId, HomeError> {
        let first = self.key_file(name)?.id();
        Ok(self.successor(grid, name)?.map_or(first, |known| known.bot))
    }

    /// Puts another form of the same key in place of the present one; there is always one of the two. 0 is the first.
    pub fn rewrite_key(&self, name: &Name, number: usize, text: &str) -> Result<(), HomeError> {
        let path = if number == 0 { self.key_path(name) } else { self.later_key_path(name, number) };
        write(&path, text.as_bytes())
    }

    /// Which key signs for a bot on a grid, and which one is to follow; `None` as long as nobody replaced its first one.
    pub fn successor(&self, grid: &Name, name: &Name) -> Result<Option<Successor>, HomeError> {
        let path = self.successor_path(grid, name);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        croft_protocol::decode("what is known of a bot's keys", &bytes, SUCCESSOR_BYTES)
            .map(Some)
            .map_err(|e| HomeError::Damaged { path, reason: e.to_string() })
    }

    pub fn keep_successor(&self, grid: &Name, name: &Name, known: &Successor) -> Result<(), HomeError> {
        write(&self.successor_path(grid, name), &croft_protocol::encode(known))
    }

    fn later_key_path(&self, name: &Name, number: usize) -> PathBuf {
        self.root().join("bots").join(format!("{name}.keys")).join(format!("{number}.key"))
    }

    fn successor_path(&self, grid: &Name, name: &Name) -> PathBuf {
        self.grid_dir(grid).join("keys").join(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use croft_protocol::SecretKey;

    use super::*;
    use crate::keyfile::open_text;

    fn text(n: u8) -> zeroize::Zeroizing<String> {
        open_text(&SecretKey::from_seed(&[n; 32]))
    }

    #[test]
    fn later_keys_are_kept_beside_the_first_and_never_one_over_another_or_out_of_reach() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let name = Name::new("alice").unwrap();
        home.import_bot(&name, &text(0)).unwrap();
        for number in 1..=LATER_KEYS {
            home.add_key(&name, &text(u8::try_from(number).unwrap())).unwrap();
        }
        let ids: Vec<_> = home.key_files(&name).unwrap().iter().map(KeyFile::id).collect();
        let all = (0..=LATER_KEYS).map(|n| SecretKey::from_seed(&[u8::try_from(n).unwrap(); 32]).public());
        assert_eq!(ids, all.collect::<Vec<_>>());
        let full = home.add_key(&name, &text(99)).unwrap_err().to_string();
        assert!(full.contains("bot 'alice' has 64 later keys in"), "{full}");
        assert_eq!(home.bots().unwrap().as_slice(), std::slice::from_ref(&name), "later keys are no bots");
        // As the message says: one is moved away, the others stay what they are.
        fs::remove_file(home.later_key_path(&name, 5)).unwrap();
        let numbers: Vec<_> = home.numbered_keys(&name).unwrap().iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..=LATER_KEYS).filter(|number| *number != 5).collect::<Vec<_>>());
        home.rewrite_key(&name, LATER_KEYS, &text(98)).unwrap();
        home.add_key(&name, &text(99)).unwrap();
        let ids: Vec<_> = home.key_files(&name).unwrap().iter().map(KeyFile::id).collect();
        assert_eq!(ids[5], SecretKey::from_seed(&[99; 32]).public());
        assert_eq!(ids[LATER_KEYS], SecretKey::from_seed(&[98; 32]).public());
    }

    #[test]
    fn what_is_known_of_a_grid_holds_there_only() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let [name, here, there] = ["alice", "here", "there"].map(|n| Name::new(n).unwrap());
        let bot = SecretKey::from_seed(&[1; 32]).public();
        let known = Successor { bot, links: Vec::new(), next: Some(bot) };
        home.keep_successor(&here, &name, &known).unwrap();
        assert_eq!(home.successor(&here, &name).unwrap(), Some(known));
        assert_eq!(home.successor(&there, &name).unwrap(), None);
        fs::write(home.successor_path(&here, &name), b"x").unwrap();
        let damaged = home.successor(&here, &name).unwrap_err().to_string();
        assert!(damaged.contains("keys/alice is not what croft wrote there"), "{damaged}");
    }
}
