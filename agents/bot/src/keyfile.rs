//! A bot's key as it lies in a file: open, or behind a passphrase.
//!
//! ```text
//!   open     64 hex digits: the seed
//!   locked   TOML: name, id, what Argon2id (RFC 9106) costs, salt, nonce, and the seed sealed with XChaCha20-Poly1305
//!   words    24 words (BIP-39, English) whose entropy is the seed; for paper, never written to a file here
//! ```
//! Name, id and costs are part of what is sealed, so none of them can be exchanged. It must never show a key or a
//! passphrase, spend more memory or time than 2 GiB and 16 passes because a file says so, or tell a wrong passphrase from
//! an altered file: that nobody can.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use bip39::{Language, Mnemonic};
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use croft_protocol::hash::{ParseHexError, parse_hex};
use croft_protocol::{Name, PublicKey, SecretKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// What a locked key's file begins with.
const FORMAT: &str = "croft-key-1";
/// Four words of a dictionary have more; eight random letters have less than a thief needs a day for.
const PASSPHRASE_CHARS: usize = 12;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 24;
const SEED_BYTES: usize = 32;
const SEALED_BYTES: usize = SEED_BYTES + 16;
const WORDS: usize = 24;

/// Why a key can't be had, or not be locked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    #[error(
        "this is not the passphrase of bot '{name}', or its file was altered: try again, or restore the file"
    )]
    Passphrase { name: Name },
    #[error(
        "a passphrase has at least {PASSPHRASE_CHARS} characters, this one has {chars}: take four words or more"
    )]
    Short { chars: usize },
    #[error("the two passphrases differ: try again")]
    Differ,
    #[error(
        "the file says '{found}' where '{FORMAT}' is expected: it is of another program, or of a newer croft"
    )]
    Format { found: String },
    #[error("{what} is {found}, at most {most} is allowed: nothing that croft made asks for so much")]
    Costs { what: &'static str, found: u32, most: u32 },
    #[error("the costs of the passphrase make no sense ({reason}): restore the file")]
    Senseless { reason: String },
    #[error("the file's {what} is damaged: restore it from a backup")]
    Damaged { what: &'static str },
    #[error("what was sealed for {id} is the key of another bot: restore the file from a backup")]
    OtherKey { id: PublicKey },
    #[error("a recovery phrase has {WORDS} words, these are {found}")]
    WordCount { found: usize },
    #[error("word {number} of the phrase is in no list of BIP-39: look at its spelling")]
    Word { number: usize },
    #[error(
        "the words don't belong together: one is wrong or in another place; compare them with what was written down"
    )]
    Checksum,
    #[error("the kernel gives no randomness")]
    Randomness,
    #[error("there is not enough memory to check the passphrase ({kib} KiB)")]
    Memory { kib: u32 },
}

/// What a person knows. Wiped from memory when dropped.
pub struct Passphrase(Zeroizing<String>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

impl Passphrase {
    /// As it was typed, or the first line of a file; the end of the line does not count.
    #[must_use]
    pub fn new(mut text: String) -> Self {
        let end = text.find(['\r', '\n']).unwrap_or(text.len());
        let line = Zeroizing::new(text[..end].to_owned());
        zeroize::Zeroize::zeroize(&mut text);
        Self(line)
    }

    /// Whether it may lock a key.
    ///
    /// # Errors
    /// [`KeyFileError::Short`].
    pub fn strong_enough(self) -> Result<Self, KeyFileError> {
        let chars = self.0.chars().count();
        if chars < PASSPHRASE_CHARS { Err(KeyFileError::Short { chars }) } else { Ok(self) }
    }

    /// # Errors
    /// [`KeyFileError::Differ`].
    pub fn repeated(self, again: &Self) -> Result<Self, KeyFileError> {
        if self.0 == again.0 { Ok(self) } else { Err(KeyFileError::Differ) }
    }
}

/// What it costs to try a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Costs {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Costs {
    /// RFC 9106, section 4, for machines with little memory; next to nothing in tests.
    const OURS: Self = Self { memory_kib: if cfg!(test) { 64 } else { 64 * 1024 }, passes: 3, lanes: 4 };
    /// A file may ask for no more.
    const MOST: Self = Self { memory_kib: 2 * 1024 * 1024, passes: 16, lanes: 16 };

    fn argon2(self) -> Result<Argon2<'static>, KeyFileError> {
        let limits = [
            ("memory_kib", self.memory_kib, Self::MOST.memory_kib),
            ("passes", self.passes, Self::MOST.passes),
            ("lanes", self.lanes, Self::MOST.lanes),
        ];
        if let Some((what, found, most)) = limits.into_iter().find(|(_, found, most)| found > most) {
            return Err(KeyFileError::Costs { what, found, most });
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(|e| KeyFileError::Senseless { reason: e.to_string() })?;
        Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }

    fn cipher(self, passphrase: &Passphrase, salt: &[u8]) -> Result<XChaCha20Poly1305, KeyFileError> {
        let argon2 = self.argon2()?;
        let mut key = Zeroizing::new([0; 32]);
        // Whatever else could be wrong was looked at when the parameters were made.
        argon2
            .hash_password_into(passphrase.0.as_bytes(), salt, &mut *key)
            .map_err(|_| KeyFileError::Memory { kib: self.memory_kib })?;
        Ok(XChaCha20Poly1305::new((&*key).into()))
    }
}

/// A key behind a passphrase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedKey {
    format: String,
    pub name: Name,
    pub id: PublicKey,
    salt: String,
    nonce: String,
    sealed: String,
    costs: Costs,
}

impl LockedKey {
    /// Locks a key.
    ///
    /// # Errors
    /// [`KeyFileError::Randomness`], [`KeyFileError::Memory`].
    pub fn seal(name: &Name, key: &SecretKey, passphrase: &Passphrase) -> Result<Self, KeyFileError> {
        let (mut salt, mut nonce) = ([0; SALT_BYTES], [0; NONCE_BYTES]);
        getrandom::fill(&mut salt).map_err(|_| KeyFileError::Randomness)?;
        getrandom::fill(&mut nonce).map_err(|_| KeyFileError::Randomness)?;
        let mut locked = Self {
            format: FORMAT.to_owned(),
            name: name.clone(),
            id: key.public(),
            salt: hex::encode(salt),
            nonce: hex::encode(nonce),
            sealed: String::new(),
            costs: Costs::OURS,
        };
        let cipher = locked.costs.cipher(passphrase, &salt)?;
        let (seed, aad) = (Zeroizing::new(key.seed()), locked.bound());
        let sealed = cipher.encrypt((&nonce).into(), Payload { msg: &*seed, aad: &aad });
        locked.sealed = hex::encode(sealed.map_err(|_| KeyFileError::Damaged { what: "seed" })?);
        Ok(locked)
    }

    /// The key, for whoever knows the passphrase.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn open(&self, passphrase: &Passphrase) -> Result<SecretKey, KeyFileError> {
        if self.format != FORMAT {
            return Err(KeyFileError::Format { found: self.format.chars().take(40).collect() });
        }
        let salt: [u8; SALT_BYTES] = field("salt", &self.salt)?;
        let nonce: [u8; NONCE_BYTES] = field("nonce", &self.nonce)?;
        let sealed: [u8; SEALED_BYTES] = field("sealed key", &self.sealed)?;
        let cipher = self.costs.cipher(passphrase, &salt)?;
        let opened = cipher.decrypt((&nonce).into(), Payload { msg: &sealed, aad: &self.bound() });
        let opened =
            Zeroizing::new(opened.map_err(|_| KeyFileError::Passphrase { name: self.name.clone() })?);
        let seed: &[u8; SEED_BYTES] =
            opened.as_slice().try_into().map_err(|_| KeyFileError::Damaged { what: "seed" })?;
        let key = SecretKey::from_seed(seed);
        if key.public() != self.id {
            return Err(KeyFileError::OtherKey { id: self.id });
        }
        Ok(key)
    }

    /// What is sealed along without being secret.
    fn bound(&self) -> Vec<u8> {
        let Costs { memory_kib, passes, lanes } = self.costs;
        croft_protocol::encode(&(FORMAT, &self.name, self.id, &self.salt, memory_kib, passes, lanes))
    }

    /// The file's text.
    ///
    /// # Errors
    /// Never for what [`Self::seal`] made.
    pub fn to_text(&self) -> Result<String, toml::ser::Error> {
        Ok(format!(
            "# The key of a bot, behind a passphrase: 'croft bot import' reads it.\n{}",
            toml::to_string(self)?
        ))
    }
}

fn field<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], KeyFileError> {
    parse_hex::<N>(what, text).map_err(|_| KeyFileError::Damaged { what })
}

/// What a key file holds.
#[derive(Debug)]
pub enum KeyFile {
    Open(SecretKey),
    Locked(LockedKey),
}

/// Text that is neither.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("it is no key")]
    Open(#[source] ParseHexError),
    #[error("{reason}")]
    Locked { reason: String },
}

impl KeyFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`ParseError`], which repeats nothing of the text.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.contains("format") {
            // The message alone: the whole error quotes the line.
            let locked: LockedKey = toml::from_str(text)
                .map_err(|e: toml::de::Error| ParseError::Locked { reason: e.message().to_owned() })?;
            return Ok(Self::Locked(locked));
        }
        let seed = parse_hex::<SEED_BYTES>("a secret key", text.trim()).map_err(|mut source| {
            // Whatever it is, it was meant to be secret.
            "…".clone_into(&mut source.text);
            ParseError::Open(source)
        })?;
        Ok(Self::Open(SecretKey::from_seed(&Zeroizing::new(seed))))
    }

    /// Whose key it is; needs no passphrase. Of a locked key that is what its file says, until it is opened.
    #[must_use]
    pub fn id(&self) -> PublicKey {
        match self {
            Self::Open(key) => key.public(),
            Self::Locked(locked) => locked.id,
        }
    }
}

/// The text of an open key's file.
#[must_use]
pub fn open_text(key: &SecretKey) -> Zeroizing<String> {
    let digits = Zeroizing::new(hex::encode(Zeroizing::new(key.seed())));
    Zeroizing::new(format!("{}\n", *digits))
}

/// The key as 24 words.
///
/// # Errors
/// Never: a seed is 32 bytes, which BIP-39 knows.
pub fn to_words(key: &SecretKey) -> Result<Zeroizing<String>, KeyFileError> {
    let mnemonic = Mnemonic::from_entropy_in(Language::English, &*Zeroizing::new(key.seed()))
        .map_err(|_| KeyFileError::Checksum)?;
    let mut text = Zeroizing::new(String::with_capacity(WORDS * 9));
    for (number, word) in mnemonic.words().enumerate() {
        if number > 0 {
            text.push(' ');
        }
        text.push_str(word);
    }
    Ok(text)
}

/// The key of 24 words, however they are spaced and whatever their case.
///
/// # Errors
/// [`KeyFileError::WordCount`], [`KeyFileError::Word`], [`KeyFileError::Checksum`]; none repeats a word.
pub fn from_words(text: &str) -> Result<SecretKey, KeyFileError> {
    let mut clean = Zeroizing::new(String::with_capacity(text.len()));
    let mut found = 0;
    for word in text.split_whitespace() {
        if found > 0 {
            clean.push(' ');
        }
        clean.push_str(&Zeroizing::new(word.to_lowercase()));
        found += 1;
    }
    if found != WORDS {
        return Err(KeyFileError::WordCount { found });
    }
    let mnemonic = Mnemonic::parse_in_normalized(Language::English, &clean).map_err(|error| match error {
        bip39::Error::UnknownWord(index) => KeyFileError::Word { number: index + 1 },
        bip39::Error::BadWordCount(found) => KeyFileError::WordCount { found },
        _ => KeyFileError::Checksum,
    })?;
    let entropy = Zeroizing::new(mnemonic.to_entropy());
    let seed: &[u8; SEED_BYTES] =
        entropy.as_slice().try_into().map_err(|_| KeyFileError::WordCount { found })?;
    Ok(SecretKey::from_seed(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> Name {
        Name::new("alice").unwrap()
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.to_owned())
    }

    fn locked() -> (SecretKey, LockedKey) {
        let key = SecretKey::from_seed(&[7; 32]);
        let locked = LockedKey::seal(&alice(), &key, &passphrase("correct horse battery")).unwrap();
        (key, locked)
    }

    #[test]
    fn a_locked_key_opens_with_its_passphrase_and_with_no_other() {
        let (key, locked) = locked();
        let text = locked.to_text().unwrap();
        assert!(!text.contains(&hex::encode(key.seed())) && !text.contains("horse"), "{text}");
        let KeyFile::Locked(read) = KeyFile::parse(&text).unwrap() else { panic!("it is locked: {text}") };
        assert_eq!((&read, read.id), (&locked, key.public()));
        let opened = read.open(&passphrase("correct horse battery\n")).unwrap();
        assert_eq!(opened.seed(), key.seed());
        let error = read.open(&passphrase("correct horse batterz")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this is not the passphrase of bot 'alice', or its file was altered: try again, or restore the file"
        );
        assert_eq!(format!("{:?}", passphrase("secret")), "Passphrase(…)");
    }

    #[test]
    fn two_locks_of_one_key_have_nothing_in_common() {
        let (_, first) = locked();
        let (_, second) = locked();
        assert_ne!(first.salt, second.salt);
        assert_ne!(first.nonce, second.nonce);
        assert_ne!(first.sealed, second.sealed);
    }

    #[test]
    fn no_field_of_a_locked_key_can_be_exchanged() {
        let (_, good) = locked();
        let other = SecretKey::from_seed(&[8; 32]).public();
        let flip = |text: &str| {
            let first = if text.starts_with('0') { "1" } else { "0" };
            format!("{first}{}", &text[1..])
        };
        let altered = [
            LockedKey { name: Name::new("mallory").unwrap(), ..good.clone() },
            LockedKey { id: other, ..good.clone() },
            LockedKey { salt: flip(&good.salt), ..good.clone() },
            LockedKey { nonce: flip(&good.nonce), ..good.clone() },
            LockedKey { sealed: flip(&good.sealed), ..good.clone() },
            LockedKey { costs: Costs { passes: 4, ..good.costs }, ..good.clone() },
        ];
        for locked in altered {
            let error = locked.open(&passphrase("correct horse battery")).unwrap_err();
            assert!(matches!(error, KeyFileError::Passphrase { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_that_asks_for_too_much_is_refused_before_anything_is_computed() {
        let (_, good) = locked();
        let open = |costs, format: &str| {
            let locked = LockedKey { costs, format: format.to_owned(), ..good.clone() };
            locked.open(&passphrase("correct horse battery")).unwrap_err().to_string()
        };
        let greedy = Costs { memory_kib: u32::MAX, ..good.costs };
        assert_eq!(
            open(greedy, FORMAT),
            "memory_kib is 4294967295, at most 2097152 is allowed: nothing that croft made asks for so much"
        );
        assert!(open(Costs { passes: 17, ..good.costs }, FORMAT).starts_with("passes is 17, at most 16"));
        assert!(open(Costs { lanes: 17, ..good.costs }, FORMAT).starts_with("lanes is 17, at most 16"));
        let nothing = open(Costs { memory_kib: 0, ..good.costs }, FORMAT);
        assert!(nothing.starts_with("the costs of the passphrase make no sense ("), "{nothing}");
        assert!(
            open(good.costs, "croft-key-2").starts_with("the file says 'croft-key-2' where 'croft-key-1'")
        );
        let damaged = LockedKey { sealed: "12".to_owned(), ..good.clone() };
        let error = damaged.open(&passphrase("correct horse battery")).unwrap_err();
        assert_eq!(error.to_string(), "the file's sealed key is damaged: restore it from a backup");
    }

    #[test]
    fn what_is_no_key_file_is_named_and_not_repeated() {
        let error = KeyFile::parse("5ecret").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("5ecret"));
        let error = KeyFile::parse("format = \"croft-key-1\"\nsecret = \"5ecret\"\n").unwrap_err();
        assert!(!error.to_string().contains("5ecret"), "{error}");
        let key = SecretKey::from_seed(&[9; 32]);
        let KeyFile::Open(read) = KeyFile::parse(&open_text(&key)).unwrap() else { panic!("it is open") };
        assert_eq!(read.seed(), key.seed());
    }

    #[test]
    fn a_weak_or_mistyped_passphrase_locks_nothing() {
        assert_eq!(passphrase("hunter2").strong_enough().unwrap_err(), KeyFileError::Short { chars: 7 });
        // Characters, not bytes.
        assert_eq!(passphrase("ééééééé").strong_enough().unwrap_err(), KeyFileError::Short { chars: 7 });
        assert!(passphrase("four words or more").strong_enough().is_ok());
        let differ = passphrase("four words or more").repeated(&passphrase("four words or mroe"));
        assert_eq!(differ.unwrap_err().to_string(), "the two passphrases differ: try again");
    }

    #[test]
    fn the_words_of_bip_39_are_the_seed_itself() {
        // The test vector of 32 zero bytes in BIP-39.
        let zero = SecretKey::from_seed(&[0; 32]);
        let words = to_words(&zero).unwrap();
        assert_eq!(*words, "abandon ".repeat(23) + "art");
        for seed in [[0; 32], [0xff; 32], [0x5a; 32]] {
            let key = SecretKey::from_seed(&seed);
            let spaced = to_words(&key).unwrap().to_uppercase().replace(' ', "\n  ");
            assert_eq!(from_words(&spaced).unwrap().seed(), seed);
        }
    }

    #[test]
    fn wrong_words_are_told_by_number_and_never_repeated() {
        let words = to_words(&SecretKey::from_seed(&[3; 32])).unwrap();
        let mut list: Vec<&str> = words.split(' ').collect();
        assert_eq!(from_words(&list[..23].join(" ")).unwrap_err(), KeyFileError::WordCount { found: 23 });
        list.swap(1, 2);
        assert_eq!(from_words(&list.join(" ")).unwrap_err(), KeyFileError::Checksum);
        list[4] = "croft";
        let error = from_words(&list.join(" ")).unwrap_err();
        assert_eq!(error.to_string(), "word 5 of the phrase is in no list of BIP-39: look at its spelling");
    }
}
