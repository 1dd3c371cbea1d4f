//! `cargo xtask image`: the node image, with everything that goes into it.
//!
//! ```text
//! VMM chosen -> kernels -> virtiofsd, alioth -> init, node, guest -> assembled -> size table
//!                 (each from the cache when nothing changed; cargo looks at our own programs itself)
//! ```
//!
//! Must never put programs into an image that were built with the caller's flags.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use croft_image_builder::build::{self, ALIOTH, VIRTIOFSD};
use croft_image_builder::image::{Image, Recipe};
use croft_image_builder::initramfs::COMPRESSION_LEVEL;
use croft_image_builder::vmm::{self, Choice, Surroundings, Wanted};
use croft_image_builder::{Vmm, image};
use croft_qemu_harness::accelerator::{self, Accelerator};

use crate::kernel::boot_file::COMMAND_LINE;
use crate::{kernel, repo};

/// Our programs: package, and the name under which the manifests ask for it.
const OURS: [(&str, &str); 3] = [("croft-init", "init"), ("croft-node", "node"), ("croft-guest", "guest")];

/// AMD's whole, and Intel's for some years; what keeps the boot file within its goal.
const MICROCODE_KB: u32 = 3_000;

/// Media without a farm's part: as croft-media's program calls them, and their files.
pub(crate) const MEDIA: [(&str, &str); 2] = [("usb", "croft-usb.img"), ("iso", "croft.iso")];

/// Beside the boot file: which microcode it holds, as `sha256sum` prints it.
pub(crate) const MICROCODE_SUMS: &str = "microcode";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// auto (cloud-hypervisor where one can be had), cloud-hypervisor, or alioth.
    #[arg(long, default_value = "auto", value_name = "VMM")]
    vmm: Wanted,
    /// Where the image goes [default: target/image/VMM].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A bzImage for the node instead of the one that `cargo xtask kernel` builds.
    #[arg(long, value_name = "BZIMAGE", requires = "guest_kernel")]
    node_kernel: Option<PathBuf>,
    /// A directory with vmlinux and bzImage for microVMs, instead of what `cargo xtask kernel` builds.
    #[arg(long, value_name = "DIR", requires = "node_kernel")]
    guest_kernel: Option<PathBuf>,
    /// Link kernel, initramfs and command line into one boot file, DIR/croft.efi: what media are made of.
    #[arg(long, conflicts_with = "node_kernel")]
    boot_file: bool,
    /// Another argument on the boot file's command line: for machines under test.
    #[arg(long = "append", value_name = "ARGUMENT", requires = "boot_file")]
    append: Vec<String>,
    /// Wrap the boot file as a USB image and a disc without a farm's part: DIR/croft-usb.img and DIR/croft.iso.
    #[arg(long, requires = "boot_file")]
    media: bool,
    /// The version in /etc/croft/release, by which the ledger knows the image [default: that of this source].
    #[arg(long, value_name = "VERSION", value_parser = parse_release)]
    release: Option<String>,
    /// A boot file for machines under test: what the harness tells kernels that it boots itself is on its command line.
    #[arg(long, requires = "boot_file")]
    for_tests: bool,
    /// Leave the kernel's linked objects (2 GB in the cache) for another boot file that is linked right after this one; the
    /// first without this removes them.
    #[arg(long, requires = "boot_file")]
    keep_work: bool,
    /// Room for processors' microcode in the boot file, taken from /lib/firmware or CROFT_FIRMWARE; 0 for none.
    #[arg(long, value_name = "KB", default_value_t = MICROCODE_KB)]
    microcode_kb: u32,
    /// Print where this image is or would be, and build nothing.
    #[arg(long)]
    print_path: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cache = repo::cache()?;
    let choice = vmm::choose(arguments.vmm, &Surroundings::of_this_machine(&cache))?;
    let out = arguments.out.clone().unwrap_or_else(|| default_directory(choice.vmm()));
    eprintln!("image: {}", choice.reason());
    if arguments.print_path {
        println!("{}", out.display());
        return Ok(());
    }
    let kernels = match (&arguments.node_kernel, &arguments.guest_kernel) {
        (Some(node), Some(guest)) => Kernels { node: node.clone(), guest: guest.clone() },
        _ => Kernels::built()?,
    };
    let release = arguments.release.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    let image = make(&choice, &kernels, &cache, &out, release)?;
    println!("{}", image.sizes.table());
    if arguments.boot_file {
        let mut append = arguments.append.clone();
        if arguments.for_tests {
            append.extend(for_tests());
        }
        let file = step("boot file", || boot_file(&image.initramfs, &append, arguments, &out))?;
        println!("{}", file.display());
        if arguments.media {
            for file in step("media", || media(&file, &out))? {
                println!("{}", file.display());
            }
        }
    }
    println!("{}", out.display());
    if !image.sizes.within_budget() {
        bail!("the image is larger than its budget; the table above says what takes the space");
    }
    Ok(())
}

/// As nodes read it: three numbers without leading zeros, none larger than theirs (`ReleaseVersion`).
pub(crate) fn parse_release(text: &str) -> Result<String, String> {
    let parse = || {
        let mut parts = text.split('.');
        let (major, minor) = (parts.next()?.parse::<u16>().ok()?, parts.next()?.parse::<u16>().ok()?);
        let patch = parts.next()?.parse::<u32>().ok()?;
        // One text per version: also neither a sign nor a fourth part.
        (format!("{major}.{minor}.{patch}") == text).then(|| text.to_owned())
    };
    parse().ok_or_else(|| "write three numbers such as 1.4.20, up to 65535.65535.4294967295".to_owned())
}

/// What an emulated machine must be told. The counter's frequency is rounded to a megahertz: it is measured anew each
/// time, and a boot file that differs in its last digits would be linked again.
fn for_tests() -> Vec<String> {
    let accelerator = match accelerator::decide(true).accelerator {
        Accelerator::Tcg { tsc_khz } => {
            Accelerator::Tcg { tsc_khz: tsc_khz.map(|khz| (khz + 500) / 1_000 * 1_000) }
        }
        Accelerator::Kvm => Accelerator::Kvm,
    };
    accelerator.kernel_arguments()
}

/// Links the boot file and puts it beside what it was made of.
fn boot_file(initramfs: &Path, append: &[String], arguments: &Arguments, out: &Path) -> Result<PathBuf> {
    let command_line: Vec<String> =
        COMMAND_LINE.map(str::to_owned).into_iter().chain(append.iter().cloned()).collect();
    let made =
        kernel::boot_file::make(initramfs, &command_line, arguments.microcode_kb, arguments.keep_work)?;
    let file = out.join("croft.efi");
    fs::copy(&made, &file).with_context(|| format!("cannot write {}", file.display()))?;
    let sums = out.join(MICROCODE_SUMS);
    fs::write(&sums, kernel::microcode_sums(arguments.microcode_kb)?)
        .with_context(|| format!("cannot write {}", sums.display()))?;
    Ok(file)
}

/// Makes the media without a farm's part of a boot file. By a program of croft-media, so that this one stays quick to build.
fn media(boot_file: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()));
    let mut made = Vec::new();
    for (medium, name) in MEDIA {
        let file = absolute(&out.join(name))?;
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(repo::root());
        cargo.args(["run", "--quiet", "--locked", "-p", "croft-media", "--example", "media", "--", medium]);
        repo::capture(cargo.arg(absolute(boot_file)?).arg(&file))?;
        // Written for its owner alone, as one with a farm's permission to join must be: this one has none.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))
            .with_context(|| format!("cannot give {} its mode", file.display()))?;
        made.push(file);
    }
    Ok(made)
}

/// What boots: the node's bzImage, and the directory with the guests' vmlinux and bzImage.
struct Kernels {
    node: PathBuf,
    guest: PathBuf,
}

impl Kernels {
    fn built() -> Result<Self> {
        let kernels = step("kernels", kernel::ensure_all)?;
        let [guest, node] = &kernels[..] else { bail!("expected two kernels, there are {}", kernels.len()) };
        Ok(Self { node: node.dir().join("bzImage"), guest: guest.dir().to_owned() })
    }
}

/// Where images are, one directory per VMM.
pub(crate) fn default_directory(vmm: Vmm) -> PathBuf {
    repo::root().join("target/image").join(vmm.name())
}

/// The image that is there; with cloud-hypervisor if there are both.
pub(crate) fn existing() -> Result<PathBuf> {
    let directories = [Vmm::CloudHypervisor, Vmm::Alioth].map(default_directory);
    let found = directories.into_iter().find(|directory| image::open(directory).is_ok());
    found.context("there is no image yet: run `cargo xtask image`")
}

/// Builds what is missing and assembles the image in `out`.
fn make(choice: &Choice, kernels: &Kernels, cache: &Path, out: &Path, version: &str) -> Result<Image> {
    let mut inputs = BTreeMap::new();
    inputs.insert("guest-vmlinux".to_owned(), kernels.guest.join("vmlinux"));
    inputs.insert("guest-bzimage".to_owned(), kernels.guest.join("bzImage"));

    let mut progress = |line: String| eprintln!("image: {line}");
    inputs.insert("virtiofsd".to_owned(), VIRTIOFSD.install(cache, &mut progress)?);
    match choice {
        Choice::CloudHypervisor { binary, .. } => {
            inputs.insert("cloud-hypervisor".to_owned(), binary.clone());
        }
        Choice::Alioth { .. } => {
            inputs.insert("alioth".to_owned(), ALIOTH.install(cache, &mut progress)?);
        }
    }

    let packages = OURS.map(|(package, _)| package);
    let mut programs = step("init, node, guest", || Ok(build::build_ours(&repo::root(), cache, &packages)?))?;
    for (package, input) in OURS {
        let program = programs.remove(package).with_context(|| format!("{package} was not built"))?;
        inputs.insert(input.to_owned(), program);
    }

    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let release = out.join("release");
    fs::write(&release, format!("{version}\n"))
        .with_context(|| format!("cannot write {}", release.display()))?;
    inputs.insert("release".to_owned(), release);

    // For tests that run the parts one by one.
    let mut listing = String::new();
    for (name, path) in &inputs {
        let _ = writeln!(listing, "{name}={}", path.display());
    }
    fs::write(out.join("inputs"), listing).with_context(|| format!("cannot write to {}", out.display()))?;

    let recipe = Recipe {
        vmm: choice.vmm(),
        manifests: repo::root().join("image/manifests"),
        inputs,
        kernel: kernels.node.clone(),
        level: COMPRESSION_LEVEL,
    };
    step("assembled", || Ok(recipe.make(out)?))
}

/// Runs one step and says how long it took.
fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = work()?;
    eprintln!("image: {name}: {:.1} s", started.elapsed().as_secs_f32());
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_what_nodes_read_as_one_and_nothing_else() {
        for good in ["0.1.0", "1.4.20", "65535.65535.4294967295"] {
            assert_eq!(parse_release(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "1.4",
            "1.4.20.1",
            "1.04.20",
            "+1.4.20",
            " 1.4.20",
            "65536.0.0",
            "0.65536.0",
            "0.0.4294967296",
        ] {
            let text = parse_release(bad).unwrap_err();
            assert_eq!(text, "write three numbers such as 1.4.20, up to 65535.65535.4294967295", "{bad}");
        }
    }
}
