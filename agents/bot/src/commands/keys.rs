//! `croft bot passphrase|phrase|export|import`: how a bot's key is kept, and how it comes to another machine.
//!
//! ```text
//!   open ──passphrase──▶ locked ──passphrase --remove──▶ open        phrase: 24 words, on paper
//!                        locked ──export──▶ file ──import──▶ locked, in another home
//! ```
//! Nothing here touches a ledger: the key stays the same, and so does the bot. Where a key was replaced (`rotate.rs`), words
//! and export are those of the key that acts on the chosen grid, and a passphrase locks all of them. It must never write an open key
//! anywhere but into the home, or replace a key by another.

use std::path::Path;
use std::rc::Rc;

use croft_protocol::identity::last_key;
use croft_protocol::{BotId, Name, PublicKey, SecretKey};
use serde::Serialize;
use zeroize::Zeroizing;

use super::Context;
use crate::exit::Failure;
use crate::files;
use crate::home::{HomeError, Successor, read_private};
use crate::keyfile::{KeyFile, KeyFileError, LockedKey, Passphrase, from_words, open_text, to_words};
use crate::plan::{KeySource, PassphraseChange};
use crate::terminal::push;

/// How often a person may mistype.
const TRIES: usize = 3;

#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(
        "the key of bot '{bot}' is behind a passphrase, and nobody is here to ask: name a file with it by --passphrase-file or CROFT_PASSPHRASE_FILE"
    )]
    NobodyToAsk { bot: Name },
    #[error("nobody is here to ask for {what}: give it with {option}")]
    Unasked { what: &'static str, option: &'static str },
    #[error("{path} exists: choose another name for the exported key")]
    FileExists { path: std::path::PathBuf },
    #[error("can't write {path}")]
    Write { path: std::path::PathBuf, source: std::io::Error },
    #[error("the key of bot '{bot}' has no passphrase: there is nothing to remove")]
    NotLocked { bot: Name },
    #[error(
        "this home knows that key {key} signs for bot '{bot}' now, and does not have it: bring it with 'croft bot import --later'"
    )]
    NoPresentKey { bot: Name, key: PublicKey },
    #[error("{path} is no file that 'croft bot export' wrote ({reason})")]
    NotExported { path: std::path::PathBuf, reason: String },
    #[error(
        "{path} holds the key of bot '{found}', and its name is sealed with it: leave --name away, or ask for another name on the ledger"
    )]
    OtherName { path: std::path::PathBuf, found: Name },
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        Self::failed(error)
    }
}

/// A key, and what it is locked by.
type Opened = (SecretKey, Option<Rc<Passphrase>>);

impl Context<'_> {
    /// The key with which a bot acts on the chosen grid: its first one, unless this home knows of a later one there.
    pub(crate) fn present_key_of(&self, name: &Name) -> Result<SecretKey, Failure> {
        let files = self.home.key_files(name)?;
        let known = match self.home.grid(self.grid.as_ref()) {
            Ok(pin) => self.home.successor(&pin.name, name)?.map(|known| (pin.chain, known)),
            // Without any grid there is nothing to know.
            Err(HomeError::NoGrid { .. } | HomeError::NoDefaultGrid { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let Some((chain, Successor { bot, links, .. })) = known else {
            return self.key_in(&files[0]);
        };
        let present = last_key(&bot, &links);
        let Some(file) = files.iter().find(|file| file.id() == present) else {
            return Err(Failure::failed(KeysError::NoPresentKey { bot: name.clone(), key: present }));
        };
        self.key_in(file)?.of_bot(bot, links, &chain).map_err(Failure::failed)
    }

    /// Every key of a bot that is in this home, the first one first. A passphrase is asked for once.
    pub(crate) fn all_keys(&self, name: &Name) -> Result<Vec<SecretKey>, Failure> {
        Ok(self.opened(name)?.into_iter().map(|(key, _)| key).collect())
    }

    /// The same with what each is locked by.
    pub(super) fn opened(&self, name: &Name) -> Result<Vec<Opened>, Failure> {
        let mut opened: Vec<Opened> = Vec::new();
        for file in self.home.key_files(name)? {
            opened.push(match file {
                KeyFile::Open(key) => (key, None),
                KeyFile::Locked(locked) => {
                    let before = opened.iter().rev().find_map(|(_, passphrase)| passphrase.clone());
                    let again = before.and_then(|known| Some((locked.open(&known).ok()?, known)));
                    let (key, passphrase) = match again {
                        Some(opened) => opened,
                        None => self.open(&locked).map(|(key, passphrase)| (key, Rc::new(passphrase)))?,
                    };
                    (key, Some(passphrase))
                }
            });
        }
        Ok(opened)
    }

    fn key_in(&self, file: &KeyFile) -> Result<SecretKey, Failure> {
        match file {
            KeyFile::Open(key) => Ok(key.clone()),
            KeyFile::Locked(locked) => Ok(self.open(locked)?.0),
        }
    }

    fn open(&self, locked: &LockedKey) -> Result<(SecretKey, Passphrase), Failure> {
        if let Some(path) = &self.passphrase_file {
            let passphrase = passphrase_in(path)?;
            return Ok((locked.open(&passphrase)?, passphrase));
        }
        let question = format!("passphrase of bot '{}': ", locked.name);
        for left in (0..TRIES).rev() {
            let again = if left + 1 < TRIES { "that was not it; " } else { "" };
            let Some(answer) = self.environment.ask_secret(&format!("{again}{question}")) else { break };
            let passphrase = Passphrase::new(answer);
            match locked.open(&passphrase) {
                Ok(key) => return Ok((key, passphrase)),
                Err(KeyFileError::Passphrase { .. }) if left > 0 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::failed(KeysError::NobodyToAsk { bot: locked.name.clone() }))
    }

    /// A passphrase that is to lock a key: from a file, else asked for twice.
    fn new_passphrase(&self, name: &Name, file: Option<&Path>) -> Result<Passphrase, Failure> {
        if let Some(path) = file {
            return Ok(passphrase_in(path)?.strong_enough()?);
        }
        let ask = |question: &str| {
            let answer = self.environment.ask_secret(question).ok_or_else(|| {
                Failure::failed(KeysError::Unasked {
                    what: "a new passphrase",
                    option: "--new-passphrase-file",
                })
            });
            answer.map(Passphrase::new)
        };
        let first = ask(&format!("new passphrase for bot '{name}': "))?.strong_enough()?;
        Ok(first.repeated(&ask("the same again: ")?)?)
    }
}

fn passphrase_in(path: &Path) -> Result<Passphrase, Failure> {
    Ok(Passphrase::new(read_private(path)?.to_string()))
}

fn text_of(locked: &LockedKey) -> Result<String, Failure> {
    locked.to_text().map_err(Failure::failed)
}

/// A key file's text.
pub(super) fn text_for(
    name: &Name,
    key: &SecretKey,
    passphrase: Option<&Passphrase>,
) -> Result<Zeroizing<String>, Failure> {
    match passphrase {
        Some(passphrase) => Ok(Zeroizing::new(text_of(&LockedKey::seal(name, key, passphrase)?)?)),
        None => Ok(open_text(key)),
    }
}

#[derive(Serialize)]
struct Kept {
    bot: Name,
    id: BotId,
    locked: bool,
}

pub(super) fn passphrase(
    c: &mut Context<'_>,
    name: Option<Name>,
    change: &PassphraseChange,
) -> Result<(), Failure> {
    let name = c.home.acting_name(name.as_ref().or(c.bot.as_ref()))?;
    let file = c.home.key_file(&name)?;
    if matches!((change, &file), (PassphraseChange::Remove, KeyFile::Open(_))) {
        return Err(Failure::failed(KeysError::NotLocked { bot: name }));
    }
    let numbers: Vec<usize> = c.home.numbered_keys(&name)?.into_iter().map(|(number, _)| number).collect();
    let keys = c.all_keys(&name)?;
    let passphrase = match change {
        PassphraseChange::Set(from) => Some(c.new_passphrase(&name, from.as_deref())?),
        PassphraseChange::Remove => None,
    };
    // One after the other: whatever happens in between, each is there, behind the old one or the new one.
    for (number, key) in numbers.iter().zip(&keys) {
        let text = text_for(&name, key, passphrase.as_ref())?;
        c.home.rewrite_key(&name, *number, &text)?;
    }
    let locked = passphrase.is_some();
    c.terminal.result(&Kept { bot: name, id: file.id(), locked }, |kept| {
        if kept.locked {
            format!(
                "the key of bot '{0}' is behind its passphrase now\n  \
                 whoever forgets it has lost the bot: write the recovery phrase down, 'croft bot phrase {0}'\n",
                kept.bot
            )
        } else {
            format!("the key of bot '{}' is open now: whoever reads its file is the bot\n", kept.bot)
        }
    })
}

#[derive(Serialize)]
struct Phrase {
    bot: Name,
    id: BotId,
    words: String,
}

pub(super) fn phrase(c: &mut Context<'_>, name: Option<Name>) -> Result<(), Failure> {
    let name = c.home.acting_name(name.as_ref().or(c.bot.as_ref()))?;
    let key = c.present_key_of(&name)?;
    let words = to_words(&key)?;
    let mut shown = Phrase { bot: name, id: key.id(), words: words.to_string() };
    let done = c.terminal.result(&shown, |p| {
        let mut text = format!("whoever has these words is bot '{}': keep them on paper\n\n", p.bot);
        for (number, word) in p.words.split(' ').enumerate() {
            let end = if number % 6 == 5 { "\n" } else { "" };
            push!(text, "  {:>2} {word:<9}{end}", number + 1);
        }
        text
    });
    zeroize::Zeroize::zeroize(&mut shown.words);
    done
}

#[derive(Serialize)]
struct Exported {
    bot: Name,
    id: BotId,
    file: String,
}

pub(super) fn export(
    c: &mut Context<'_>,
    name: &Name,
    path: &Path,
    new_passphrase: Option<&Path>,
) -> Result<(), Failure> {
    let exists = || Failure::failed(KeysError::FileExists { path: path.to_owned() });
    // Before anybody is asked for anything; the last step decides.
    if path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let present = c.present_key_of(name)?;
    let own = c.opened(name)?.into_iter().find(|(key, _)| key.public() == present.public());
    let (key, own) = own.unwrap_or_else(|| (present.clone(), None));
    let passphrase = match (own, new_passphrase) {
        (Some(own), None) => own,
        (_, file) => Rc::new(c.new_passphrase(name, file)?),
    };
    let text = text_of(&LockedKey::seal(name, &key, &passphrase)?)?;
    let failed = |source| Failure::failed(KeysError::Write { path: path.to_owned(), source });
    if !files::aside(path, text.as_bytes(), true).and_then(|aside| aside.add(path)).map_err(failed)? {
        return Err(exists());
    }
    let exported = Exported { bot: name.clone(), id: present.id(), file: path.display().to_string() };
    c.terminal.result(&exported, |e| {
        format!("the key of bot '{}' is in {}, behind the passphrase\n", e.bot, e.file)
    })
}

pub(super) fn import(
    c: &mut Context<'_>,
    name: Option<Name>,
    from: &KeySource,
    later: bool,
) -> Result<(), Failure> {
    let (name, id, text) = match from {
        KeySource::File(path) => {
            let locked = exported(path)?;
            if name.is_some_and(|name| name != locked.name) {
                let found = locked.name;
                return Err(Failure::usage(KeysError::OtherName { path: path.clone(), found }));
            }
            // A file that nobody can open is no key.
            let (key, _) = c.open(&locked)?;
            (locked.name.clone(), key.public(), Zeroizing::new(text_of(&locked)?))
        }
        KeySource::Words(file) => {
            let words = if let Some(path) = file {
                read_private(path)?
            } else {
                let asked = c.environment.ask_secret("the 24 words of the recovery phrase: ");
                Zeroizing::new(asked.ok_or_else(|| {
                    Failure::failed(KeysError::Unasked { what: "the words", option: "--words-file" })
                })?)
            };
            let name = name.ok_or_else(|| Failure::usage(crate::plan::PlanError::NoImport))?;
            let key = from_words(&words)?;
            (name, key.public(), open_text(&key))
        }
    };
    if later {
        let here = c.home.key_files(&name)?;
        if here.iter().any(|file| file.id() == id) {
            return Err(HomeError::KeyKnown { name, home: c.home.root().to_owned() }.into());
        }
        c.home.add_key(&name, &text)?;
    } else {
        c.home.import_bot(&name, &text)?;
    }
    let locked = matches!(from, KeySource::File(_));
    c.terminal.result(&Kept { bot: name, id, locked }, |kept| {
        let lock = if kept.locked { "" } else { "\n  it is open: 'croft bot passphrase' locks it" };
        if later {
            let Kept { bot, id, .. } = kept;
            return format!(
                "another key of bot '{bot}' is in this home: 'croft bot rotate {bot} --resume' takes it up where it holds\n  key {id}{lock}\n"
            );
        }
        format!("the key of bot '{}' is in this home\n  id {}{lock}\n", kept.bot, kept.id)
    })
}

fn exported(path: &Path) -> Result<LockedKey, Failure> {
    let failed = |reason: String| Failure::failed(KeysError::NotExported { path: path.to_owned(), reason });
    match KeyFile::parse(&read_private(path)?) {
        Ok(KeyFile::Locked(locked)) => Ok(locked),
        Ok(KeyFile::Open(_)) => Err(failed("it holds an open key".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}
