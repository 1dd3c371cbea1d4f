//! What an executable needs to run on the node: nothing (static), or a closure of shared libraries.
//!
//! Reads ELF headers only (System V ABI, gABI chapters 4 and 5); must never run the file that it looks
//! at, as `ldd` does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use goblin::elf::Elf;
use goblin::elf::header::{EM_X86_64, ET_DYN, ET_EXEC};

/// Where the dynamic linker looks without `ld.so.cache`, which the image does not have (`ld.so(8)`).
const SYSTEM_DIRECTORIES: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// Debian merged these into `/usr`; the image has symlinks there, so files are placed below `/usr`.
const MERGED: [&str; 4] = ["/lib/", "/lib64/", "/bin/", "/sbin/"];

/// Why a file is no x86-64 program.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is no ELF file")]
    NotElf { path: PathBuf, source: goblin::error::Error },
    #[error("{path} is an ELF file for another processor, not x86-64")]
    WrongMachine { path: PathBuf },
    #[error("{path} is an ELF file, but neither a program nor a shared library")]
    NotLoadable { path: PathBuf },
}

/// Why a file can't stand in the image as a static program.
#[derive(Debug, thiserror::Error)]
pub enum StaticError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("{path} is linked dynamically ({needs}): the node has no such libraries; supply a static build")]
    Dynamic { path: PathBuf, needs: String },
}

/// Why the libraries of a tool could not be gathered.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("{needed}, needed by {by}, is in none of the system library directories: install its package")]
    LibraryMissing { needed: String, by: PathBuf },
}

/// What the dynamic section and program headers ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// `PT_INTERP`: the dynamic linker.
    pub interpreter: Option<String>,
    /// `DT_NEEDED`: library names.
    pub libraries: Vec<String>,
    /// `DT_RUNPATH` and `DT_RPATH`, `$ORIGIN` unexpanded.
    pub runpaths: Vec<String>,
}

impl Needs {
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.interpreter.is_none() && self.libraries.is_empty()
    }
}

/// Reads what the x86-64 program or library at `path` needs.
pub fn inspect(path: &Path) -> Result<Needs, InspectError> {
    let bytes = std::fs::read(path).map_err(|source| InspectError::Read { path: path.into(), source })?;
    let elf = Elf::parse(&bytes).map_err(|source| InspectError::NotElf { path: path.into(), source })?;
    if elf.header.e_machine != EM_X86_64 || !elf.is_64 {
        return Err(InspectError::WrongMachine { path: path.into() });
    }
    if !matches!(elf.header.e_type, ET_EXEC | ET_DYN) {
        return Err(InspectError::NotLoadable { path: path.into() });
    }
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let paths = elf.runpaths.iter().chain(&elf.rpaths);
    Ok(Needs {
        interpreter: elf.interpreter.map(str::to_owned),
        libraries: owned(&elf.libraries),
        runpaths: paths.flat_map(|list| list.split(':')).map(str::to_owned).collect(),
    })
}

/// Accepts static and static-pie x86-64 programs only.
pub fn require_static(path: &Path) -> Result<(), StaticError> {
    let needs = inspect(path)?;
    if needs.is_static() {
        return Ok(());
    }
    let needs = needs.interpreter.into_iter().chain(needs.libraries).collect::<Vec<_>>().join(", ");
    Err(StaticError::Dynamic { path: path.into(), needs })
}

/// The shared libraries and the dynamic linker that `program` needs, transitively.
///
/// Maps the absolute path in the image to the file on this machine. Paths are below `/usr`, in the
/// directories where the linker looks without a cache.
pub fn closure(program: &Path) -> Result<BTreeMap<String, PathBuf>, ClosureError> {
    let mut found = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut waiting = vec![program.to_path_buf()];
    while let Some(file) = waiting.pop() {
        let needs = inspect(&file)?;
        if let Some(interpreter) = &needs.interpreter {
            // libc needs it as a library too, under another path; once loaded it is found by its name.
            seen.extend(Path::new(interpreter).file_name().map(|name| name.to_string_lossy().into_owned()));
            found.insert(image_path(Path::new(interpreter)), PathBuf::from(interpreter));
        }
        for library in &needs.libraries {
            if !seen.insert(library.clone()) {
                continue;
            }
            let source = find_library(library, &file, &needs.runpaths)
                .ok_or_else(|| ClosureError::LibraryMissing { needed: library.clone(), by: file.clone() })?;
            found.insert(image_path(&source), source.clone());
            waiting.push(source);
        }
    }
    Ok(found)
}

fn find_library(name: &str, needed_by: &Path, runpaths: &[String]) -> Option<PathBuf> {
    let origin = needed_by.parent().unwrap_or(Path::new("/")).to_string_lossy();
    let runpaths = runpaths.iter().map(|path| path.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin));
    runpaths
        .chain(SYSTEM_DIRECTORIES.map(str::to_owned))
        .map(|directory| Path::new(&directory).join(name))
        .find(|candidate| inspect(candidate).is_ok())
}

/// Where a host's file belongs in the image: its real directory, its own name, below `/usr`.
///
/// The name stays as asked for (`libc.so.6`), also where it is a symlink to a versioned file.
pub(crate) fn image_path(host: &Path) -> String {
    let directory = host.parent().unwrap_or(Path::new("/"));
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
    let name = host.file_name().unwrap_or_default();
    let path = directory.join(name).to_string_lossy().into_owned();
    if MERGED.iter().any(|merged| path.starts_with(merged)) { format!("/usr{path}") } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest ELF file with these header values and, if wanted, an interpreter.
    pub(crate) fn tiny_elf(machine: u16, kind: u16, interpreter: bool) -> Vec<u8> {
        let mut elf = vec![0u8; 64];
        elf[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        elf[16..18].copy_from_slice(&kind.to_le_bytes());
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[20] = 1;
        elf[52..54].copy_from_slice(&64u16.to_le_bytes());
        elf[54..56].copy_from_slice(&56u16.to_le_bytes());
        elf[58..60].copy_from_slice(&64u16.to_le_bytes());
        if interpreter {
            let text = b"/lib64/ld-linux-x86-64.so.2\0";
            elf[32..40].copy_from_slice(&64u64.to_le_bytes());
            elf[56] = 1;
            let mut header = vec![0u8; 56];
            header[0] = 3;
            header[8..16].copy_from_slice(&120u64.to_le_bytes());
            header[32..40].copy_from_slice(&(text.len() as u64).to_le_bytes());
            header[40..48].copy_from_slice(&(text.len() as u64).to_le_bytes());
            elf.extend_from_slice(&header);
            elf.extend_from_slice(text);
        }
        elf
    }

    fn check(bytes: &[u8]) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tool");
        std::fs::write(&path, bytes).unwrap();
        require_static(&path)
            .map_err(|error| error.to_string().replace(&directory.path().display().to_string(), ""))
    }

    #[test]
    fn static_programs_are_accepted() {
        assert_eq!(check(&tiny_elf(EM_X86_64, ET_EXEC, false)), Ok(()));
        assert_eq!(check(&tiny_elf(EM_X86_64, ET_DYN, false)), Ok(()));
    }

    #[test]
    fn what_cannot_run_on_the_node_is_named() {
        let dynamic = check(&tiny_elf(EM_X86_64, ET_DYN, true)).unwrap_err();
        assert_eq!(
            dynamic,
            "/tool is linked dynamically (/lib64/ld-linux-x86-64.so.2): \
             the node has no such libraries; supply a static build"
        );
        let arm = check(&tiny_elf(183, ET_EXEC, false)).unwrap_err();
        assert_eq!(arm, "/tool is an ELF file for another processor, not x86-64");
        let object = check(&tiny_elf(EM_X86_64, 1, false)).unwrap_err();
        assert_eq!(object, "/tool is an ELF file, but neither a program nor a shared library");
        assert_eq!(check(b"#!/bin/sh\n").unwrap_err(), "/tool is no ELF file");
    }

    #[test]
    fn this_programs_own_closure_holds_the_linker_and_libc() {
        let closure = closure(&std::env::current_exe().unwrap()).unwrap();
        let has =
            |name: &str| closure.keys().any(|path| path.starts_with("/usr/lib") && path.ends_with(name));
        assert!(has("/ld-linux-x86-64.so.2"), "{closure:?}");
        assert!(has("/libc.so.6"), "{closure:?}");
        assert!(closure.values().all(|source| source.exists()));
    }
}
