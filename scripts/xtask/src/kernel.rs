//! `cargo xtask kernel`: the kernels of the node and of its microVMs.
//!
//! The fragments in kernel-config/ over `allnoconfig`, on the distribution's source package. A
//! result is filed under a key of everything that went into it, so a second run has nothing to do:
//!
//! ```text
//!   fragments + source + compiler -> key -> <cache>/kernel/<key>/ there? -> its path
//!                                                  |no
//!                          unpack -> configure -> every request granted? -> build -> file under key
//!                                                          |no
//!                                                  each loss with file and line
//! ```
//!
//! Must never hand out a kernel that lacks a requested value, nor a half-written one.

pub(crate) mod boot_file;
mod build;
pub(crate) mod fragment;
mod microcode;
mod progress;
mod source;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use sha2::{Digest as _, Sha256};

use crate::repo;
use fragment::Request;

/// Part of every key: raise it when the same inputs give another result.
const RECIPE_REVISION: &str = "2";

/// Which of the two kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flavor {
    /// For the machine itself: drivers, KVM, network, hardening.
    Node,
    /// For the microVMs: as small as boots fast.
    Guest,
}

impl Flavor {
    pub(crate) const ALL: [Self; 2] = [Self::Guest, Self::Node];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Guest => "guest",
        }
    }

    /// The fragments under `kernel-config/<name>/`, in the order in which they are applied.
    pub(crate) fn fragments(self) -> &'static [&'static str] {
        match self {
            Self::Node => &["base", "kvm-host", "drivers", "network", "hardening"],
            Self::Guest => &["base", "virtio", "filesystems", "network", "hardening"],
        }
    }

    /// Their files, relative to the source tree.
    pub(crate) fn fragment_files(self) -> Vec<PathBuf> {
        let file =
            |fragment: &&str| PathBuf::from(format!("kernel-config/{}/{fragment}.config", self.name()));
        self.fragments().iter().map(file).collect()
    }
}

/// What `all` on the command line stands for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Selection {
    Node,
    Guest,
    All,
}

impl Selection {
    fn flavors(self) -> Vec<Flavor> {
        match self {
            Self::Node => vec![Flavor::Node],
            Self::Guest => vec![Flavor::Guest],
            Self::All => Flavor::ALL.to_vec(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which kernels to build.
    #[arg(value_enum, default_value = "all")]
    which: Selection,
    /// The kernel's source tarball [default: the package linux-source-6.12].
    #[arg(long, value_name = "TARBALL")]
    source: Option<PathBuf>,
    /// Compilers at a time [default: one per CPU].
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Print where this kernel is, and build nothing.
    #[arg(long, value_name = "KERNEL", conflicts_with_all = ["check", "jobs", "keep_objects"])]
    print_path: Option<Flavor>,
    /// Only configure, and check that every requested value is in the result.
    #[arg(long)]
    check: bool,
    /// Keep the unpacked source and the objects (about 3 GB), so that the next change builds fast.
    #[arg(long)]
    keep_objects: bool,
}

/// How to build; the same for every flavor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) source: Option<PathBuf>,
    pub(crate) jobs: Option<usize>,
    pub(crate) keep_objects: bool,
}

/// A kernel that is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    /// The directory of all four files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The files of a result. `vmlinux` is an ELF without symbols; `System.map` has them.
const FILES: [&str; 4] = ["bzImage", "vmlinux", "config", "System.map"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let options = Options {
        source: arguments.source.clone(),
        jobs: arguments.jobs,
        keep_objects: arguments.keep_objects,
    };
    if let Some(flavor) = arguments.print_path {
        let kernel = find(flavor, &options)?;
        let kernel = kernel.with_context(|| {
            format!(
                "the {} kernel isn't built yet: run `cargo xtask kernel {}`",
                flavor.name(),
                flavor.name()
            )
        })?;
        println!("{}", kernel.dir().display());
        return Ok(());
    }
    for flavor in arguments.which.flavors() {
        let recipe = Recipe::read(flavor, &options)?;
        if arguments.check {
            let count = build::configure_only(&recipe)?;
            println!("kernel {}: all {count} requested values are in the result", flavor.name());
        } else {
            let kernel = build::build(&recipe, &options)?;
            println!("{}", kernel.dir().display());
        }
    }
    if !arguments.keep_objects {
        build::remove_work()?;
    }
    Ok(())
}

/// The kernels for the present fragments, source and compiler, in the order of [`Flavor::ALL`]: from
/// the cache, or built now.
pub(crate) fn ensure_all() -> Result<Vec<Kernel>> {
    let options = Options::default();
    let recipes = Flavor::ALL.iter().map(|flavor| Recipe::read(*flavor, &options));
    let recipes = recipes.collect::<Result<Vec<_>>>()?;
    let there = recipes.iter().map(Recipe::result).collect::<Result<Vec<_>>>()?;
    if there.iter().all(Option::is_some) {
        return Ok(there.into_iter().flatten().collect());
    }
    let built = recipes.iter().map(|recipe| build::build(recipe, &options)).collect();
    build::remove_work()?;
    built
}

/// What microcode a boot file with this much room for it gets: sum and path of each, as `sha256sum` prints them.
pub(crate) fn microcode_sums(room_kb: u32) -> Result<String> {
    let folder = microcode::folder();
    Ok(microcode::collect(&folder, u64::from(room_kb) * 1_000)?.sums(&folder))
}

/// The kernel for the present fragments, source and compiler, if it was built before.
pub(crate) fn find(flavor: Flavor, options: &Options) -> Result<Option<Kernel>> {
    Recipe::read(flavor, options)?.result()
}

/// Everything that goes into a kernel.
#[derive(Debug)]
pub(crate) struct Recipe {
    flavor: Flavor,
    /// Name as shown, text.
    fragments: Vec<(String, String)>,
    requests: Vec<Request>,
    source: source::Tarball,
    /// Compiler and linker, as they name themselves.
    toolchain: String,
}

impl Recipe {
    fn read(flavor: Flavor, options: &Options) -> Result<Self> {
        let root = repo::root();
        let read = |file: PathBuf| {
            let text = fs::read_to_string(root.join(&file))
                .with_context(|| format!("can't read {}", file.display()))?;
            Ok((file.display().to_string(), text))
        };
        let fragments = flavor.fragment_files().into_iter().map(read).collect::<Result<Vec<_>>>()?;
        let requests = fragment::combine(&fragments)?;
        build::require_tools()?;
        let source = source::find(options.source.as_deref())?;
        let first_line = |program: &str| -> Result<String> {
            let text = repo::capture(Command::new(program).arg("--version").env("LC_ALL", "C"))?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        };
        let toolchain = format!("{} / {}", first_line("gcc")?, first_line("ld")?);
        Ok(Self { flavor, fragments, requests, source, toolchain })
    }

    /// The fragments as one file, for `KCONFIG_ALLCONFIG`.
    fn allconfig(&self) -> String {
        let mut text = String::new();
        for (file, content) in &self.fragments {
            let _ = writeln!(text, "# {file}\n{content}");
        }
        text
    }

    /// Flavor and a hash of all inputs. Comments in fragments count too: the file in the image
    /// then always comes from the fragments that one reads.
    fn key(&self) -> String {
        let mut hash = Sha256::new();
        let parts = [RECIPE_REVISION, self.flavor.name(), self.source.sha256.as_str(), &self.toolchain];
        for part in parts.into_iter().chain([self.allconfig().as_str()]) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        format!("{}-{}", self.flavor.name(), &hex::encode(hash.finalize())[..16])
    }

    fn result(&self) -> Result<Option<Kernel>> {
        let dir = kernel_cache()?.join(self.key());
        // Results appear by rename, so a directory that exists is whole.
        Ok(dir.is_dir().then_some(Kernel { dir }))
    }
}

fn kernel_cache() -> Result<PathBuf> {
    Ok(repo::cache()?.join("kernel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(fragment: &str, source: &str, toolchain: &str) -> Recipe {
        Recipe {
            flavor: Flavor::Guest,
            fragments: vec![("guest/base.config".to_owned(), fragment.to_owned())],
            requests: Vec::new(),
            source: source::Tarball { path: PathBuf::from("/usr/src/x.tar.xz"), sha256: source.to_owned() },
            toolchain: toolchain.to_owned(),
        }
    }

    #[test]
    fn the_key_changes_with_each_input_and_with_nothing_else() {
        let base = recipe("CONFIG_A=y\n", "00", "gcc 12 / ld 2.40");
        assert_eq!(base.key(), recipe("CONFIG_A=y\n", "00", "gcc 12 / ld 2.40").key());
        let others = [
            recipe("CONFIG_B=y\n", "00", "gcc 12 / ld 2.40"),
            recipe("CONFIG_A=y\n", "01", "gcc 12 / ld 2.40"),
            recipe("CONFIG_A=y\n", "00", "gcc 13 / ld 2.40"),
        ];
        for other in others {
            assert_ne!(base.key(), other.key());
        }
        let mut moved = recipe("CONFIG_A=y\n", "00", "gcc 12 / ld 2.40");
        moved.source.path = PathBuf::from("/elsewhere/x.tar.xz");
        assert_eq!(base.key(), moved.key());
    }

    #[test]
    fn every_fragment_file_is_used_and_parses() {
        for flavor in Flavor::ALL {
            let dir = repo::root().join("kernel-config").join(flavor.name());
            let mut on_disk: Vec<String> = fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            let mut listed: Vec<String> =
                flavor.fragments().iter().map(|name| format!("{name}.config")).collect();
            on_disk.sort();
            listed.sort();
            assert_eq!(on_disk, listed, "fragments of the {} kernel", flavor.name());
            let read = |file: PathBuf| {
                (file.display().to_string(), fs::read_to_string(repo::root().join(&file)).unwrap())
            };
            let fragments: Vec<_> = flavor.fragment_files().into_iter().map(read).collect();
            assert!(fragment::combine(&fragments).unwrap().len() > 100);
        }
    }

    #[test]
    fn kernels_have_no_loadable_modules_and_name_the_mitigations() {
        for flavor in Flavor::ALL {
            let read = |file: PathBuf| fs::read_to_string(repo::root().join(file)).unwrap();
            let text: String = flavor.fragment_files().into_iter().map(read).collect();
            // allnoconfig switches every one of these off, though CPU_MITIGATIONS stays on.
            let named = [
                "# CONFIG_MODULES is not set",
                "CONFIG_MITIGATION_RETPOLINE=y",
                "CONFIG_VMAP_STACK=y",
                "CONFIG_X86_PM_TIMER=y",
            ];
            for line in named {
                assert!(
                    text.lines().any(|other| other == line),
                    "the {} kernel must ask for {line}",
                    flavor.name()
                );
            }
        }
    }
}
