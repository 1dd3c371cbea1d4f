//! The addition: what a farm tells its machines, a small signed file next to the boot file (`CROFT/FARM.BIN`).
//!
//! The boot file is the same for everybody and signed by the release's keys; the addition is the farm's own and
//! signed by the farm's owner. It carries what `boot.toml` carries. Until [`Validated::open`] has checked its
//! form, its bounds and both signatures, it is bytes that anybody may have written. Must never be half believed:
//! one wrong part refuses the whole file.
//!
//! ```text
//!   bytes ── magic, version, length ── canonical body ── bounds ── owner's signature ── join's signature ──▶ Validated
//!                                                                              └── expectation (pinned chain, owner)
//! ```
//!
//! Layout, numbers in little-endian order:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | `CROFTADD` |
//! | 8 | 2 | version, 1 |
//! | 10 | 4 | length n of the body |
//! | 14 | n | [`Addition`] in borsh |
//! | 14 + n | 64 | ed25519 signature by the owner's key that signed the join token, over [`Domain::ADDITION`], the chain and the body |
//!
//! What the signature proves is that nobody altered the file since the owner made it. That this owner has the farm
//! is proved by the ledger, which accepts the join token only if the farm's owner signed it; a machine that knows
//! its owner or its grid already says so in [`Expectation`].

mod network;

use std::net::SocketAddr;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::boot::{
    BootConfig, ClockSettings, FarmJoin, GridPin, InvalidBootConfig, NodeSettings, ReplicaAddress,
};
use crate::command::SignedJoin;
use crate::keys::Domain;
use crate::limits;
use crate::{ChainId, DecodeError, FarmId, Hash, Name, PublicKey, SecretKey, Signature};

pub use network::{Bond, BondMode, InvalidLink, Link, LinkId, LinkUse, ParsePrefixError, Prefix};

impl Domain {
    /// A farm's addition to the boot file.
    pub const ADDITION: Self = Self("croft/addition/1");
}

/// How every addition begins.
pub const MAGIC: [u8; 8] = *b"CROFTADD";
/// The only version so far.
pub const VERSION: u16 = 1;
/// Where it lies on the EFI system partition; 8.3 names, so that no firmware and no tool changes them.
pub const MEDIUM_PATH: &str = "CROFT/FARM.BIN";

const HEADER_BYTES: usize = MAGIC.len() + 2 + 4;
const SIGNATURE_BYTES: usize = 64;

/// All that a farm tells its machines.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Addition {
    pub grid: Grid,
    pub farm: Name,
    /// The bot that has the farm, and that signed this and the join token.
    pub owner: PublicKey,
    /// Permission to join; it names the farm's id.
    pub join: SignedJoin,
    /// Default: `node-` and the first digits of the node's key. Only for media that boot one machine.
    pub node: Option<Name>,
    /// How others reach published ports. Default: the addresses of the uplink.
    pub public_addresses: Vec<String>,
    /// Links that don't simply use DHCP.
    pub links: Vec<Link>,
    /// NTP servers: addresses or names, with an optional `:port`.
    pub ntp: Vec<String>,
}

/// What the node trusts; see [`GridPin`].
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Grid {
    pub name: Name,
    pub chain: ChainId,
    /// Hash of the trusted validator set.
    pub validators: Hash,
    pub replicas: Vec<Replica>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Replica {
    pub address: SocketAddr,
    pub key: PublicKey,
}

/// What a machine knows before it reads an addition. A fresh machine knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expectation {
    pub chain: Option<ChainId>,
    pub owner: Option<PublicKey>,
}

/// An addition whose form, bounds and signatures were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validated(Addition);

/// Why an addition is refused: which part is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddition {
    #[error(
        "the farm's addition has {len} bytes, possible are {min} to {max}: copy {MEDIUM_PATH} again from 'croft farm image'",
        min = HEADER_BYTES + SIGNATURE_BYTES,
        max = limits::ADDITION_BYTES
    )]
    Size { len: usize },
    #[error(
        "this is no farm's addition: it begins with {found}, not with CROFTADD; copy {MEDIUM_PATH} again from 'croft farm image'"
    )]
    Magic { found: String },
    #[error(
        "the farm's addition has version {found}, this release knows {VERSION}: make the addition and the medium with the same release"
    )]
    Version { found: u16 },
    #[error(
        "the farm's addition is cut short or has something appended: it has {has} bytes and says {said}; copy {MEDIUM_PATH} again"
    )]
    Length { said: usize, has: usize },
    #[error("the body of the farm's addition is damaged ({reason}): copy {MEDIUM_PATH} again")]
    Body { reason: String },
    #[error("{part} of the farm's addition: {count} entries, possible are {min} to {max}")]
    Count { part: &'static str, count: usize, min: usize, max: usize },
    #[error(
        "{part} of the farm's addition: '{text}' is not {wanted}; correct it and make the addition again"
    )]
    Text { part: &'static str, text: String, wanted: &'static str },
    #[error(
        "the replica address {address} in the farm's addition is none that a machine can reach: correct it"
    )]
    ReplicaAddress { address: SocketAddr },
    #[error("the replica {key} stands twice in the farm's addition: keep one entry")]
    RepeatedReplica { key: PublicKey },
    #[error("links of the farm's addition")]
    Link(#[source] InvalidLink),
    #[error(
        "the farm's addition was altered after its owner {owner} signed it, or somebody else signed it: copy {MEDIUM_PATH} again"
    )]
    Signature { owner: PublicKey },
    #[error(
        "the join token in the farm's addition was not signed by the farm's owner {owner} for this grid: make a new addition with 'croft farm image'"
    )]
    JoinSignature { owner: PublicKey },
    #[error(
        "the farm's addition is for chain {found}, but this machine belongs to chain {expected}: use an addition of the same grid"
    )]
    OtherChain { expected: ChainId, found: ChainId },
    #[error(
        "the farm's addition is signed by {found}, but this machine belongs to {expected}: use an addition of the same farm"
    )]
    OtherOwner { expected: PublicKey, found: PublicKey },
    #[error(
        "the join token is signed by key {signer}, which the owner's key {found} has replaced: make a new token with 'croft farm new'"
    )]
    OldJoin { signer: PublicKey, found: PublicKey },
}

/// A join token that is void, which matters only to a machine that has not registered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the join token in the farm's addition ended at {expired_ms} ms since 1970 and it is {now_ms} now: make a new addition with 'croft farm image', or correct the clock"
)]
pub struct JoinExpired {
    pub expired_ms: u64,
    pub now_ms: u64,
}

/// Why a boot configuration can't become an addition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FromBootError {
    #[error(transparent)]
    Config(#[from] InvalidBootConfig),
    #[error(transparent)]
    Addition(#[from] InvalidAddition),
}

impl Addition {
    /// The same content as a boot configuration of the farm of `owner`.
    ///
    /// # Errors
    /// [`FromBootError`] names what has no place in an addition.
    pub fn from_boot(config: &BootConfig, owner: PublicKey) -> Result<Self, FromBootError> {
        let links = config.links.iter().map(Link::from_settings).collect::<Result<_, _>>();
        let replicas = config.grid.replicas.iter();
        let addition = Self {
            grid: Grid {
                name: config.grid.name.clone(),
                chain: config.grid.chain,
                validators: config.grid.validators,
                replicas: replicas.map(|r| Replica { address: r.address, key: r.key }).collect(),
            },
            farm: config.farm.name.clone(),
            owner,
            join: config.farm.permission()?,
            node: config.node.name.clone(),
            public_addresses: config.node.public_addresses.clone(),
            links: links.map_err(InvalidAddition::Link)?,
            ntp: config.clock.ntp.clone(),
        };
        addition.check()?;
        Ok(addition)
    }

    /// The bytes of the file, signed by the owner.
    ///
    /// # Errors
    /// [`InvalidAddition`]: nothing is signed that a machine would refuse.
    pub fn seal(&self, owner: &SecretKey) -> Result<Vec<u8>, InvalidAddition> {
        self.check()?;
        if owner.id() != self.owner {
            return Err(InvalidAddition::OtherOwner { expected: self.owner, found: owner.id() });
        }
        let signer = self.check_join()?;
        if signer != owner.public() {
            return Err(InvalidAddition::OldJoin { signer, found: owner.public() });
        }
        let body = crate::encode(self);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + SIGNATURE_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&owner.sign(Domain::ADDITION, &self.grid.chain, self).0);
        if bytes.len() > limits::ADDITION_BYTES {
            return Err(InvalidAddition::Size { len: bytes.len() });
        }
        Ok(bytes)
    }

    /// Bounds and form of every part; no signatures.
    fn check(&self) -> Result<(), InvalidAddition> {
        let replicas = &self.grid.replicas;
        count("the replicas", replicas.len(), 1, limits::VALIDATORS)?;
        count("the public addresses", self.public_addresses.len(), 0, limits::ADDITION_TEXTS)?;
        count("the time servers", self.ntp.len(), 0, limits::ADDITION_TEXTS)?;
        for (at, Replica { address, key }) in replicas.iter().enumerate() {
            let ip = address.ip();
            if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
                return Err(InvalidAddition::ReplicaAddress { address: *address });
            }
            if replicas[..at].iter().any(|other| other.key == *key) {
                return Err(InvalidAddition::RepeatedReplica { key: *key });
            }
        }
        let wanted = "an address or a host name";
        for text in &self.public_addresses {
            host("the public addresses", text, wanted)?;
        }
        for text in &self.ntp {
            host("the time servers", text, wanted)?;
        }
        network::check(&self.links).map_err(InvalidAddition::Link)
    }

    /// The owner's key that signed the join token, and so signs the addition.
    fn check_join(&self) -> Result<PublicKey, InvalidAddition> {
        let SignedJoin { join, signature } = &self.join;
        let wrong = |_| InvalidAddition::JoinSignature { owner: self.owner };
        self.owner.verify(Domain::JOIN, &self.grid.chain, join, signature).map_err(wrong)?;
        Ok(signature.key(&self.owner))
    }
}

impl Validated {
    /// Checks the bytes of a file.
    ///
    /// # Errors
    /// [`InvalidAddition`] names the first part that is wrong, and what to do.
    pub fn open(bytes: &[u8], expected: &Expectation) -> Result<Self, InvalidAddition> {
        let (body, signature) = parts(bytes)?;
        let addition: Addition =
            crate::decode("the addition", body, limits::ADDITION_BYTES).map_err(|error| match error {
                DecodeError::Malformed { reason, .. } => InvalidAddition::Body { reason },
                DecodeError::TooLarge { len, .. } => InvalidAddition::Size { len },
            })?;
        // Borsh has one encoding per value, except where a reader drops something. Nothing may be dropped here.
        if crate::encode(&addition) != body {
            return Err(InvalidAddition::Body { reason: "it is not in its canonical form".to_owned() });
        }
        addition.check()?;
        let (chain, owner) = (addition.grid.chain, addition.owner);
        // Of the key that the join token names; that one is looked at next.
        let signer = addition.join.signature.key(&owner);
        signer
            .verify(Domain::ADDITION, &chain, &addition, &signature)
            .map_err(|_| InvalidAddition::Signature { owner })?;
        addition.check_join()?;
        if let Some(expected) = expected.chain.filter(|expected| *expected != chain) {
            return Err(InvalidAddition::OtherChain { expected, found: chain });
        }
        if let Some(expected) = expected.owner.filter(|expected| *expected != owner) {
            return Err(InvalidAddition::OtherOwner { expected, found: owner });
        }
        Ok(Self(addition))
    }

    #[must_use]
    pub fn get(&self) -> &Addition {
        &self.0
    }

    #[must_use]
    pub fn farm_id(&self) -> FarmId {
        self.0.join.join.farm
    }

    /// Whether the join token still counts, by a clock that is known to be good.
    ///
    /// # Errors
    /// [`JoinExpired`]; a machine that has registered already needs no token.
    pub fn check_time(&self, now_ms: u64) -> Result<(), JoinExpired> {
        let expired_ms = self.0.join.join.expires_ms;
        if now_ms > expired_ms { Err(JoinExpired { expired_ms, now_ms }) } else { Ok(()) }
    }

    /// The same content as the configuration that the node's agent reads.
    #[must_use]
    pub fn boot_config(&self) -> BootConfig {
        let Addition { grid, farm, join, node, public_addresses, links, ntp, .. } = &self.0;
        let replicas = grid.replicas.iter();
        BootConfig {
            grid: GridPin {
                name: grid.name.clone(),
                chain: grid.chain,
                validators: grid.validators,
                replicas: replicas.map(|r| ReplicaAddress { address: r.address, key: r.key }).collect(),
            },
            farm: FarmJoin::new(farm.clone(), join),
            node: NodeSettings { name: node.clone(), public_addresses: public_addresses.clone() },
            links: links.iter().map(Link::to_settings).collect(),
            clock: ClockSettings { ntp: ntp.clone() },
        }
    }
}

/// Body and signature, once the frame around them is right.
fn parts(bytes: &[u8]) -> Result<(&[u8], Signature), InvalidAddition> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Err(InvalidAddition::Magic { found: hex::encode(&bytes[..known]) });
    }
    if !(HEADER_BYTES + SIGNATURE_BYTES..=limits::ADDITION_BYTES).contains(&bytes.len()) {
        return Err(InvalidAddition::Size { len: bytes.len() });
    }
    let found = u16::from_le_bytes([bytes[8], bytes[9]]);
    if found != VERSION {
        return Err(InvalidAddition::Version { found });
    }
    let body = u32::from_le_bytes([bytes[10], bytes[11], bytes[12], bytes[13]]) as usize;
    let said = body.saturating_add(HEADER_BYTES + SIGNATURE_BYTES);
    if said != bytes.len() {
        return Err(InvalidAddition::Length { said, has: bytes.len() });
    }
    let (body, signature) = bytes[HEADER_BYTES..].split_at(body);
    let mut fixed = [0; SIGNATURE_BYTES];
    fixed.copy_from_slice(signature);
    Ok((body, Signature(fixed)))
}

fn count(part: &'static str, count: usize, min: usize, max: usize) -> Result<(), InvalidAddition> {
    if (min..=max).contains(&count) { Ok(()) } else { Err(InvalidAddition::Count { part, count, min, max }) }
}

/// An IP address or a host name (RFC 1123), with an optional port: printable, without spaces, bounded.
fn host(part: &'static str, text: &str, wanted: &'static str) -> Result<(), InvalidAddition> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b".:-[]_".contains(&b);
    if (1..=limits::HOST_BYTES).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    let text = text.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(InvalidAddition::Text { part, text, wanted })
}

#[cfg(test)]
mod tests;
