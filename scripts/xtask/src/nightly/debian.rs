//! Which packages of the distribution have files in the image: found by asking dpkg about each file, never from a list.
//!
//! ```text
//! manifests: files of this machine, with their libraries ─┐
//! archives that static programs link ─────────────────────┼─> dpkg-query -S ─> packages, versions
//! microcode that the boot file holds ─────────────────────┘
//! ```
//! Must never pass over a file that no package has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use croft_image_builder::build::VIRTIOFSD;
use croft_image_builder::manifest::Manifest;
use croft_image_builder::{Vmm, elf};

use super::sbom::Component;
use crate::repo;

/// What every static program links of the distribution: the C library, and what the compiler adds to it.
const ARCHIVES: [&str; 3] = ["libc.a", "libgcc.a", "libgcc_eh.a"];
/// Folders that are also below `/usr`; packages list their files by either path.
const MERGED: [&str; 4] = ["/lib/", "/lib64/", "/bin/", "/sbin/"];

/// An installed package, and which of its files are taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    architecture: String,
    files: BTreeSet<PathBuf>,
}

impl Package {
    pub(super) fn component(&self) -> Component {
        let Self { name, version, architecture, files } = self;
        let escaped = version.replace('+', "%2B").replace('~', "%7E");
        let purl = format!("pkg:deb/debian/{name}@{escaped}?arch={architecture}");
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        Component::other("library", name, version, Some(purl))
            .described(&format!("in the image: {}", files.join(", ")))
    }
}

/// The files of this machine that an image takes as they are, by the manifests of the tree at `root`.
pub(super) fn collected(root: &Path, vmm: Vmm) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for name in ["node.toml", "guest.toml"] {
        let manifest = Manifest::load(&root.join("image/manifests").join(name))?;
        for file in manifest.file.iter().filter(|file| file.vmm.is_none_or(|only| only == vmm)) {
            let Some(host) = &file.host else {
                if file.libraries {
                    bail!(
                        "{} in {name} takes libraries, but is no file of the distribution: say here whose",
                        file.path
                    );
                }
                continue;
            };
            if file.libraries {
                files.extend(elf::closure(host)?.into_values());
            }
            files.insert(host.clone());
        }
    }
    Ok(files)
}

/// The archives that our programs and virtiofsd link, where the compiler finds them.
pub(super) fn linked() -> Result<BTreeSet<PathBuf>> {
    let of_virtiofsd = VIRTIOFSD.libraries.iter().map(|(_, library)| *library);
    ARCHIVES.into_iter().chain(of_virtiofsd).map(archive).collect()
}

fn archive(name: &str) -> Result<PathBuf> {
    let text = repo::capture(Command::new("cc").arg(format!("-print-file-name={name}")))?;
    let path = Path::new(text.trim());
    // The compiler prints the bare name of what it does not find.
    if !path.is_absolute() {
        bail!("the compiler finds no {name}, which static programs link: run scripts/setup");
    }
    path.canonicalize().with_context(|| format!("can't find {}", path.display()))
}

/// Whose these files are, in the order of the packages' names.
pub(super) fn packages(files: &BTreeSet<PathBuf>) -> Result<Vec<Package>> {
    let mut owned: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for file in files {
        owned.entry(owner(file)?).or_default().insert(file.clone());
    }
    owned.into_iter().map(|(package, files)| describe(&package, files)).collect()
}

/// The package that installed a file: `libc6:amd64`.
fn owner(file: &Path) -> Result<String> {
    for path in aliases(file) {
        let mut query = Command::new("dpkg-query");
        let output = query.arg("--search").arg(&path).output().context("can't start dpkg-query")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(package) = owner_of(&text, &path) {
            return Ok(package.to_owned());
        }
    }
    bail!(
        "no installed package has {}, which the image takes: install it from the distribution",
        file.display()
    )
}

/// Finds a path in what `dpkg-query --search` prints: `package[, package…]: path`, and lines about diversions.
fn owner_of<'a>(text: &'a str, path: &str) -> Option<&'a str> {
    let listed = text.lines().filter(|line| !line.starts_with("diversion by "));
    let packages = listed.filter_map(|line| line.split_once(": ")).find(|(_, of)| *of == path)?.0;
    packages.split(", ").next()
}

/// The same file by the other path that merged folders give it.
fn aliases(file: &Path) -> Vec<String> {
    let path = file.display().to_string();
    let mut paths = vec![path.clone()];
    let bare = path.strip_prefix("/usr").filter(|bare| MERGED.iter().any(|folder| bare.starts_with(folder)));
    paths.extend(bare.map(str::to_owned));
    if MERGED.iter().any(|folder| path.starts_with(folder)) {
        paths.push(format!("/usr{path}"));
    }
    paths
}

fn describe(package: &str, files: BTreeSet<PathBuf>) -> Result<Package> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Version} ${Architecture}\n", package]);
    let text = repo::capture(&mut query)?;
    let fields = text.lines().next().and_then(|line| line.split_once(' '));
    let (version, architecture) = fields
        .filter(|(version, _)| !version.is_empty())
        .with_context(|| format!("{package} has no version, though the image takes files of it"))?;
    let name = package.split(':').next().unwrap_or(package).to_owned();
    Ok(Package { name, version: version.to_owned(), architecture: architecture.to_owned(), files })
}

/// Each file of microcode in a boot file, by the list that was made with it, and the packages that they come from.
pub(super) fn microcode(sums: &str) -> Result<Vec<Component>> {
    let (mut components, mut packaged) = (Vec::new(), Vec::new());
    for line in sums.lines() {
        let (sum, path) =
            line.split_once("  ").with_context(|| format!("{line:?} is no sum and path of microcode"))?;
        let path = Path::new(path);
        // CROFT_FIRMWARE may name a folder that no package has: the sum says what it is all the same.
        let package =
            owner(path).and_then(|package| describe(&package, BTreeSet::from([path.to_owned()]))).ok();
        let version = package.as_ref().map_or("unknown", |package| package.version.as_str());
        let name = path.iter().rev().take(2).collect::<Vec<_>>();
        let name = name.into_iter().rev().collect::<PathBuf>().display().to_string();
        components.push(Component::other("firmware", &name, version, None).hashed(sum));
        packaged.extend(package.map(|_| path.to_owned()));
    }
    let packages = packages(&packaged.into_iter().collect())?;
    components.extend(packages.iter().map(Package::component));
    Ok(components)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_owner_is_found_by_either_path_of_a_merged_folder() {
        for path in ["/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6"] {
            assert_eq!(owner(Path::new(path)).unwrap(), "libc6:amd64");
        }
        assert_eq!(aliases(Path::new("/usr/sbin/mke2fs")), ["/usr/sbin/mke2fs", "/sbin/mke2fs"]);
        assert_eq!(aliases(Path::new("/usr/share/x")), ["/usr/share/x"]);
    }

    #[test]
    fn a_diversion_and_a_longer_path_are_no_owner() {
        let text = "diversion by dash from: /bin/sh\nzsh: /bin/sh.old\ndash, other: /bin/sh\n";
        assert_eq!(owner_of(text, "/bin/sh"), Some("dash"));
        assert_eq!(owner_of(text, "/bin"), None);
    }

    #[test]
    fn a_file_of_no_package_is_named() {
        let text = packages(&BTreeSet::from([PathBuf::from("/nowhere/mke2fs")])).unwrap_err().to_string();
        assert!(
            text.starts_with("no installed package has /nowhere/mke2fs, which the image takes"),
            "{text}"
        );
    }

    #[test]
    fn the_image_takes_more_than_the_package_of_its_tools() {
        let files = collected(&repo::root(), Vmm::Alioth).unwrap();
        let found = packages(&files).unwrap();
        let names: Vec<&str> = found.iter().map(|package| package.name.as_str()).collect();
        for name in ["e2fsprogs", "libc6", "libext2fs2", "libuuid1"] {
            assert!(names.iter().any(|found| found.starts_with(name)), "{name} is missing: {names:?}");
        }
        let all: usize = found.iter().map(|package| package.files.len()).sum();
        assert_eq!(all, files.len(), "each file has its package");
        let json = serde_json::to_string(&found[0].component()).unwrap();
        assert!(json.contains("pkg:deb/debian/") && json.contains("in the image: /"), "{json}");
    }

    #[test]
    fn an_archive_that_is_not_there_is_named() {
        let text = archive("libcroft-none.a").unwrap_err().to_string();
        assert_eq!(
            text,
            "the compiler finds no libcroft-none.a, which static programs link: run scripts/setup"
        );
        assert!(archive("libc.a").unwrap().is_absolute());
    }

    #[test]
    fn libraries_of_what_is_not_the_distributions_are_never_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("image/manifests");
        fs::create_dir_all(&folder).unwrap();
        let file = "name = \"node\"\n[[file]]\npath = \"/x\"\nmode = \"0755\"\npart = \"x\"\ninput = \"x\"\nlibraries = true\n";
        fs::write(folder.join("node.toml"), file).unwrap();
        let text = collected(dir.path(), Vmm::Alioth).unwrap_err().to_string();
        assert_eq!(
            text,
            "/x in node.toml takes libraries, but is no file of the distribution: say here whose"
        );
    }

    #[test]
    fn microcode_of_no_package_is_listed_by_name_and_sum() {
        let listed = microcode("aabb  /nowhere/intel-ucode/06-cf-02\n").unwrap();
        let json = serde_json::to_value(&listed).unwrap();
        assert_eq!(json[0]["type"], "firmware");
        assert_eq!(json[0]["name"], "intel-ucode/06-cf-02");
        assert_eq!(json[0]["version"], "unknown");
        assert_eq!(json[0]["hashes"][0]["content"], "aabb");
        assert!(microcode("").unwrap().is_empty());
        let text = microcode("aabb").unwrap_err().to_string();
        assert_eq!(text, "\"aabb\" is no sum and path of microcode");
    }
}
