//! The corpus on disk: files made from the targets' seeds, and inputs that once broke a target.
//!
//! Must never remove a regression: they are written by hand.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::Target;

/// Where the corpus is.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Where the inputs are that once broke a target.
#[must_use]
pub fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

/// Files of a folder by name; none where there is no folder.
fn files(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    entries
        .map(|entry| {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, std::fs::read(path)?))
        })
        .collect()
}

/// Everything that is on disk for a target, in the order of its names: the corpus, then the regressions.
///
/// # Errors
/// When a file can't be read.
pub fn inputs(target: &Target) -> io::Result<Vec<Vec<u8>>> {
    let mut inputs: Vec<_> = files(&root().join(target.name))?.into_values().collect();
    inputs.extend(files(&regressions().join(target.name))?.into_values());
    Ok(inputs)
}

/// What of the corpus differs from the targets' seeds: `missing a/b`, `outdated a/b`, `unknown a/b`.
///
/// # Errors
/// When a file can't be read.
pub fn differences(targets: &[Target]) -> io::Result<Vec<String>> {
    let mut differences = Vec::new();
    for target in targets {
        let seeds: BTreeMap<String, Vec<u8>> = (target.seeds)().into_iter().collect();
        let mut found = files(&root().join(target.name))?;
        for (name, bytes) in seeds {
            match found.remove(&name) {
                None => differences.push(format!("missing {}/{name}", target.name)),
                Some(old) if old != bytes => differences.push(format!("outdated {}/{name}", target.name)),
                Some(_) => {}
            }
        }
        differences.extend(found.into_keys().map(|name| format!("unknown {}/{name}", target.name)));
    }
    for folder in [root(), regressions()] {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !targets.iter().any(|target| target.name == name) {
                differences.push(format!("unknown {name}, there is no such target"));
            }
        }
    }
    Ok(differences)
}

/// Makes the corpus anew.
///
/// # Errors
/// When a file can't be written.
pub fn write(targets: &[Target]) -> io::Result<()> {
    if root().exists() {
        std::fs::remove_dir_all(root())?;
    }
    for target in targets {
        let folder = root().join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in (target.seeds)() {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
