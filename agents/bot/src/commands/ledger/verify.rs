//! `croft ledger verify`: a whole ledger of this machine, checked without asking anybody.

use std::path::{Path, PathBuf};

use croft_protocol::{ChainId, Genesis, Grains, Name};
use croft_replica::store::{self, FileDisk, OpenError, Verified, VerifyError};
use croft_replica::{ConfigError, ReplicaConfig};
use serde::Serialize;

use crate::commands::Context;
use crate::exit::Failure;

const CONFIG: &str = "replica.toml";

#[derive(Debug, thiserror::Error)]
enum VerifyCommandError {
    #[error(
        "there is neither replica.toml nor {} in {path}: name a replica's folder or its replica.toml",
        store::FILE
    )]
    NoLedger { path: PathBuf },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the ledger in {path} is not whole")]
    NotWhole { path: PathBuf, source: VerifyError },
}

#[derive(Serialize)]
struct VerifyView {
    /// Always true: what is wrong is an error.
    whole: bool,
    grid: Name,
    chain: ChainId,
    pinned: Option<&'static str>,
    first: u64,
    height: u64,
    records: u64,
    values: u64,
    handovers: u64,
    contracts: u64,
    supply: Grains,
    file: PathBuf,
}

pub(super) fn verify(c: &mut Context<'_>, path: &Path) -> Result<(), Failure> {
    let (file, genesis) = find(path)?;
    let not_whole = |source| VerifyCommandError::NotWhole { path: file.clone(), source };
    let verified = FileDisk::open_existing(&file).map_err(VerifyError::from).and_then(|disk| {
        let mut progress = c.progress();
        let mut started = false;
        let verified = store::verify(&disk, genesis.as_ref(), |_, all| {
            if !started {
                progress.start("checking blocks", all);
                started = true;
            }
            progress.advance(1);
        });
        if started {
            progress.finish();
        }
        verified
    });
    let verified = verified.map_err(|error| match error {
        VerifyError::Open(error @ OpenError::Missing { .. }) => Failure::not_found(error),
        VerifyError::Open(error @ OpenError::InUse { .. }) => Failure::failed(error),
        error => Failure::failed(not_whole(error)).remedy(
            "restore it from a copy, or begin anew from another replica; keep the file if you want to know why",
        ),
    })?;
    let pinned = match &genesis {
        Some(_) => Some("genesis"),
        None => is_pinned(c, &verified)?.then_some("pin"),
    };
    let Verified { grid, chain, first, height, records, values, handovers, contracts, supply } = verified;
    let view = VerifyView {
        whole: true,
        grid,
        chain,
        pinned,
        first,
        height,
        records,
        values,
        handovers,
        contracts,
        supply,
        file,
    };
    c.terminal.result(&view, text)
}

/// Whether this home trusts the chain.
fn is_pinned(c: &Context<'_>, verified: &Verified) -> Result<bool, Failure> {
    for name in c.home.grids()? {
        if c.home.grid(Some(&name))?.chain == verified.chain {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The ledger's file, and what its grid began with where that is known from elsewhere.
fn find(path: &Path) -> Result<(PathBuf, Option<Genesis>), Failure> {
    let config = if path.is_dir() { path.join(CONFIG) } else { path.to_owned() };
    if path.is_dir() && !config.exists() {
        let file = path.join(store::FILE);
        if file.exists() {
            return Ok((file, None));
        }
        return Err(Failure::not_found(VerifyCommandError::NoLedger { path: path.to_owned() }));
    }
    if path.file_name().is_some_and(|name| name == store::FILE) {
        return Ok((path.to_owned(), None));
    }
    let config = ReplicaConfig::load(&config).map_err(|error| match error {
        error @ ConfigError::Read { .. } => Failure::not_found(VerifyCommandError::Config(error)),
        error => Failure::usage(VerifyCommandError::Config(error)),
    })?;
    Ok((config.dir.join(store::FILE), Some(config.genesis)))
}

fn text(v: &VerifyView) -> String {
    let anchor = match v.pinned {
        Some("genesis") => "the genesis beside it",
        Some(_) => "a pin of this home",
        None => "nothing: compare the chain id yourself",
    };
    let since = match v.first {
        0 => String::new(),
        first => format!(" from {first} on, where a snapshot began it"),
    };
    format!(
        "the ledger of grid '{}' is whole: {} blocks{since}, {} records, {} values, {} contracts, {} handovers\n  \
         chain   {}, compared with {anchor}\n  supply  {}, all of it accounted for\n  file    {}\n",
        v.grid,
        v.height - v.first + 1,
        v.records,
        v.values,
        v.contracts,
        v.handovers,
        v.chain,
        v.supply,
        v.file.display()
    )
}
