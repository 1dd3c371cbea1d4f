//! The one boot file: the node's kernel linked again with the initramfs and the command line inside.
//!
//! ```text
//!   node kernel's objects ── with initramfs, command line ──make──> bzImage ──> <cache>/boot/<key>.efi
//!     └ kept as <kernel cache>/<kernel key>.objects.tar.zst; made anew where they are missing
//! ```
//! Firmware starts it as an EFI program, iPXE and other loaders as a bzImage, kexec as a kernel: the same bytes
//! everywhere. What a loader passes as command line is not heard: whoever can edit a boot entry must not be able to
//! name another init. Must never hand out a file whose configuration does not hold what was asked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::build::{self, REVISION};
use super::microcode::{self, Microcode};
use super::{Flavor, Options, Recipe, kernel_cache, source};
use crate::repo;

/// What the kernel is told: both consoles, the last one for PID 1's own; messages that a farmer can use; that the
/// EFI stub takes no initramfs from a loader, whose files would replace those of the signed one; and that a kexec, which
/// is a restart to drivers, leaves the watchdog counting, which is to catch a next kernel that hangs. For every other end
/// init disarms it.
pub(crate) const COMMAND_LINE: [&str; 8] = [
    "console=tty0",
    "console=ttyS0,115200",
    "loglevel=6",
    "printk.devkmsg=on",
    "printk.time=1",
    "panic=30",
    "noinitrd",
    "watchdog.stop_on_reboot=0",
];

/// Longer ones are cut by the kernel (COMMAND_LINE_SIZE of x86).
const COMMAND_LINE_BYTES: usize = 2_047;
/// Name inside the objects: no path of this machine gets into the file.
const INITRAMFS: &str = "croft.cpio.zst";
/// Folder of the microcode inside the objects, and the same as seen from the source, which is how Kconfig wants it.
const MICROCODE: &str = "croft-microcode";
const MICROCODE_FROM_SOURCE: &str = "croft-node/croft-microcode";
/// In the objects of a boot file that was linked: the key of their kernel.
const LINKED: &str = ".croft-linked";

/// Makes the boot file of an initramfs (zstd over cpio), or finds it where the same was made before. With `keep_work` the
/// linked objects stay for the next one, which then takes a quarter of the time.
///
/// # Errors
/// When the kernel can't be linked, or would not hold what was asked for.
pub(crate) fn make(
    initramfs: &Path,
    command_line: &[String],
    microcode_kb: u32,
    keep_work: bool,
) -> Result<PathBuf> {
    let command_line = checked(command_line)?;
    let recipe = Recipe::read(Flavor::Node, &Options::default())?;
    let content = fs::read(initramfs).with_context(|| format!("can't read {}", initramfs.display()))?;
    let folder = microcode::folder();
    let microcode = microcode::collect(&folder, u64::from(microcode_kb) * 1_000)?;
    eprintln!("kernel node: {}", microcode.describe(&folder));
    let key = key(&recipe, &content, &command_line, &microcode);
    let file = repo::cache()?.join("boot").join(format!("{key}.efi"));
    if file.is_file() {
        if !keep_work {
            build::remove_work()?;
        }
        return Ok(file);
    }
    // Without the headers the relinked kernel would quietly lose what the plugins give.
    build::require(&recipe)?;
    let lock = build::lock()?;
    let tree = source::unpack(&recipe.source)?;
    let objects = restore(&recipe, &tree)?;
    fs::write(objects.join(INITRAMFS), &content).context("can't write the initramfs beside the objects")?;
    let place = objects.join(MICROCODE);
    build::remove_dir(&place)?;
    microcode.write(&place).with_context(|| format!("can't write {}", place.display()))?;
    configure(&tree, &objects, &command_line, &microcode)?;
    eprintln!("kernel node: linking the boot file (about a minute)");
    repo::capture(build::make(&tree, &objects).args(["-s", &format!("-j{}", build::jobs(None)), "bzImage"]))?;
    let parent = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("can't create {}", parent.display()))?;
    let partial = file.with_extension("partial");
    fs::copy(objects.join("arch/x86/boot/bzImage"), &partial)
        .with_context(|| format!("can't write {}", partial.display()))?;
    fs::rename(&partial, &file).with_context(|| format!("can't rename {}", partial.display()))?;
    forget_old(parent, &file)?;
    if keep_work {
        fs::write(objects.join(LINKED), recipe.key()).context("can't mark the linked objects")?;
        return Ok(file);
    }
    // What is left is configured for this one file: the archive has what the next one starts from.
    build::remove_dir(&objects)?;
    drop(lock);
    build::remove_work()?;
    Ok(file)
}

/// Boot files that are kept for a change of mind.
const KEPT: usize = 6;

fn forget_old(dir: &Path, newest: &Path) -> Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))? {
        let path = entry?.path();
        if path != newest && path.extension().is_some_and(|extension| extension == "efi") {
            files.push((path.metadata()?.modified()?, path));
        }
    }
    files.sort();
    let surplus = files.len().saturating_sub(KEPT - 1);
    for (_, path) in files.drain(..surplus) {
        fs::remove_file(&path).with_context(|| format!("can't remove {}", path.display()))?;
    }
    Ok(())
}

/// The command line as one text that Kconfig takes as a string.
fn checked(arguments: &[String]) -> Result<String> {
    let line = arguments.join(" ");
    if let Some(bad) =
        line.chars().find(|c| !c.is_ascii_graphic() && *c != ' ' || ['"', '\\', '$'].contains(c))
    {
        bail!(
            "the command line has the character {bad:?}, which a kernel configuration can't hold: leave it out"
        );
    }
    if line.len() > COMMAND_LINE_BYTES {
        bail!("the command line has {} bytes, the kernel takes {COMMAND_LINE_BYTES}: shorten it", line.len());
    }
    Ok(line)
}

fn key(recipe: &Recipe, initramfs: &[u8], command_line: &str, microcode: &Microcode) -> String {
    let mut hash = Sha256::new();
    let key = recipe.key();
    let parts = [REVISION.as_bytes(), key.as_bytes(), initramfs, command_line.as_bytes()];
    let blobs = microcode.blobs.iter().flat_map(|blob| [blob.name.as_bytes(), &blob.bytes]);
    for part in parts.into_iter().chain(blobs) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())[..16].to_owned()
}

/// The objects of the node's kernel at the one place where make believes them.
fn restore(recipe: &Recipe, tree: &Path) -> Result<PathBuf> {
    let objects = build::objects(recipe)?;
    let linked = objects.join(LINKED);
    if fs::read_to_string(&linked).is_ok_and(|key| key == recipe.key()) {
        // Whoever breaks off from here on leaves objects that nobody believes.
        fs::remove_file(&linked).with_context(|| format!("can't remove {}", linked.display()))?;
        return Ok(objects);
    }
    let archive = archive(recipe)?;
    if !archive.is_file() {
        eprintln!("kernel node: its objects are not here: building them once");
        build::configure(recipe, tree, &objects)?;
        build::compile(recipe, tree, &objects, None, true)?;
        return keep(recipe).map(|()| objects);
    }
    build::remove_dir(&objects)?;
    fs::create_dir_all(&objects).with_context(|| format!("can't create {}", objects.display()))?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--zstd").arg("--file").arg(&archive).arg("--directory").arg(&objects);
    repo::capture(&mut tar)?;
    Ok(objects)
}

/// Keeps the objects of a kernel that was just built. Must run before anything in them changes.
pub(super) fn keep(recipe: &Recipe) -> Result<()> {
    let (objects, archive) = (build::objects(recipe)?, archive(recipe)?);
    let partial = archive.with_extension("partial");
    eprintln!("kernel {}: keeping its objects for boot files", recipe.flavor.name());
    let mut tar = Command::new("tar");
    // Whole objects only: the final link makes these again.
    for made_again in ["./vmlinux", "./vmlinux.unstripped", "./.tmp_vmlinux*", "./arch/x86/boot/bzImage"] {
        tar.arg(format!("--exclude={made_again}"));
    }
    tar.arg("--create").arg("--use-compress-program=zstd -3 -T0").arg("--file").arg(&partial);
    repo::capture(tar.arg("--directory").arg(&objects).arg("."))?;
    fs::rename(&partial, &archive).with_context(|| format!("can't rename {}", partial.display()))?;
    Ok(())
}

fn archive(recipe: &Recipe) -> Result<PathBuf> {
    Ok(kernel_cache()?.join(format!("{}.objects.tar.zst", recipe.key())))
}

/// Asks for initramfs and command line, and checks that they were granted.
fn configure(tree: &Path, objects: &Path, command_line: &str, microcode: &Microcode) -> Result<()> {
    let path = objects.join(".config");
    let before = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let mut wanted = vec![
        format!("CONFIG_INITRAMFS_SOURCE=\"{INITRAMFS}\""),
        "CONFIG_CMDLINE_BOOL=y".to_owned(),
        format!("CONFIG_CMDLINE=\"{command_line}\""),
        "CONFIG_CMDLINE_OVERRIDE=y".to_owned(),
        format!("CONFIG_EXTRA_FIRMWARE=\"{}\"", microcode.setting()),
    ];
    if !microcode.blobs.is_empty() {
        wanted.push(format!("CONFIG_EXTRA_FIRMWARE_DIR=\"{MICROCODE_FROM_SOURCE}\""));
    }
    fs::write(&path, replaced(&before, &wanted))
        .with_context(|| format!("can't write {}", path.display()))?;
    repo::capture(build::make(tree, objects).arg("-s").arg("olddefconfig"))?;
    let after = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let refused: Vec<&str> =
        wanted.iter().map(String::as_str).filter(|line| !after.lines().any(|got| got == *line)).collect();
    if !refused.is_empty() {
        bail!("the kernel's configuration does not take {}: see kernel-config/node", refused.join(", "));
    }
    Ok(())
}

/// A configuration with some values set, whatever they were.
fn replaced(config: &str, wanted: &[String]) -> String {
    let name = |line: &str| line.split_once('=').map_or(line, |(name, _)| name).to_owned();
    let names: Vec<String> = wanted.iter().map(|line| name(line)).collect();
    let is_ours = |line: &&str| {
        let bare = line.strip_prefix("# ").and_then(|l| l.strip_suffix(" is not set")).unwrap_or(line);
        names.contains(&name(bare))
    };
    let kept = config.lines().filter(|line| !is_ours(line));
    let mut text: String = kept.chain(wanted.iter().map(String::as_str)).collect::<Vec<_>>().join("\n");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_set_whatever_they_were_and_nothing_else_changes() {
        let before = "CONFIG_A=y\nCONFIG_INITRAMFS_SOURCE=\"\"\n# CONFIG_CMDLINE_BOOL is not set\nCONFIG_CMDLINE_X=y\n";
        let wanted = ["CONFIG_INITRAMFS_SOURCE=\"x\"".to_owned(), "CONFIG_CMDLINE_BOOL=y".to_owned()];
        assert_eq!(
            replaced(before, &wanted),
            "CONFIG_A=y\nCONFIG_CMDLINE_X=y\nCONFIG_INITRAMFS_SOURCE=\"x\"\nCONFIG_CMDLINE_BOOL=y\n"
        );
    }

    #[test]
    fn the_nodes_command_line_can_be_configured_and_keeps_the_watchdog_over_a_kexec() {
        let line = checked(&COMMAND_LINE.map(str::to_owned)).unwrap();
        assert!(line.split(' ').any(|argument| argument == "watchdog.stop_on_reboot=0"), "{line}");
    }

    #[test]
    fn a_command_line_that_can_not_be_configured_is_refused_with_the_reason() {
        let line = |text: &str| checked(&[text.to_owned()]);
        assert_eq!(line("console=ttyS0,115200").unwrap(), "console=ttyS0,115200");
        assert!(line("a=\"b\"").unwrap_err().to_string().contains("has the character '\"'"));
        assert!(line("a\nCONFIG_X=y").unwrap_err().to_string().contains("'\\n'"));
        let long = line(&"x".repeat(2_048)).unwrap_err().to_string();
        assert_eq!(long, "the command line has 2048 bytes, the kernel takes 2047: shorten it");
    }
}
