//! What the image builder reads.

use std::cell::OnceCell;

use croft_image_builder::{Archive, Entry, Kind, Manifest, compress, cpio, elf, read};

use crate::check::{bounded, bounded_message, text};
use crate::scene::{rewrite, written};
use crate::targets::texts::place;
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "cpio",
        decodes: "a cpio archive (newc)",
        sent_by: "an image",
        files: &["image/builder/src/cpio.rs"],
        seeds: || vec![("archive".to_owned(), archive().to_bytes())],
        rounds: 2_000,
        run: archive_again,
    },
    Target {
        name: "initramfs",
        decodes: "segments of an initramfs, packed and plain",
        sent_by: "an image",
        files: &["image/builder/src/initramfs.rs"],
        seeds: segments,
        rounds: 300,
        run: initramfs,
    },
    Target {
        name: "image-recipe",
        decodes: "what goes into an image (manifests/*.toml)",
        sent_by: "people",
        files: &["image/builder/src/manifest.rs"],
        seeds: || vec![written("recipe.toml", RECIPE)],
        rounds: 800,
        run: recipe,
    },
    Target {
        name: "elf",
        decodes: "what an executable needs",
        sent_by: "the builder's machine",
        files: &["image/builder/src/elf.rs"],
        seeds: || vec![("static".to_owned(), program())],
        rounds: 300,
        run: executable,
    },
];

const RECIPE: &str = r#"name = "node"

[[directory]]
path = "/run"
mode = "755"

[[symlink]]
path = "/lib"
target = "usr/lib"

[[character_device]]
path = "/dev/console"
mode = "600"
major = 5
minor = 1

[[file]]
path = "/etc/hostname"
mode = "644"
part = "base"
text = "node\n"
"#;

fn archive() -> Archive {
    let console = Entry { kind: Kind::CharacterDevice { major: 5, minor: 1 }, mode: 0o600 };
    let mut archive = Archive::new();
    for (path, entry) in [
        ("/init", Entry::file(*b"#!init", 0o755)),
        ("/lib", Entry::symlink("usr/lib")),
        ("/dev/console", console),
        ("/etc/empty", Entry::file(*b"", 0o600)),
    ] {
        archive.insert(path, entry).expect("the path is free");
    }
    archive
}

/// What an archive holds must survive being written: the kernel sees what the builder saw.
fn archive_again(bytes: &[u8]) {
    match bounded("cpio archive", bytes.len(), || cpio::parse(bytes)) {
        Ok((archive, used)) => {
            assert!(used <= bytes.len());
            let again = cpio::parse(&archive.to_bytes()).map(|(archive, _)| archive);
            assert_eq!(again.as_ref().ok(), Some(&archive), "an archive is not read as it is written");
            for (path, _) in archive.iter() {
                assert!(
                    !path.split('/').any(|part| matches!(part, "" | "." | "..")),
                    "'{path}' is in an archive"
                );
            }
        }
        Err(error) => assert!(error.to_string().len() <= 4 * 1024 + 4 * bytes.len()),
    }
}

fn initramfs(bytes: &[u8]) {
    if let Err(error) = read(bytes) {
        bounded_message("initramfs", &error.to_string());
    }
}

fn recipe(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(recipe) = bounded("recipe", bytes.len(), || Manifest::parse(text, place())) {
        for file in &recipe.file {
            let sources = [file.input.is_some(), file.host.is_some(), file.text.is_some()];
            assert_eq!(sources.iter().filter(|there| **there).count(), 1);
            assert!(file.mode.0 <= 0o7777, "{:o}", file.mode.0);
        }
    }
}

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fn executable(bytes: &[u8]) {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a folder can be made"));
        let path = folder.path().join("program");
        rewrite(&path, bytes);
        match bounded("executable", bytes.len(), || elf::inspect(&path)) {
            Ok(needs) => assert_eq!(elf::require_static(&path).is_ok(), needs.is_static()),
            Err(error) => bounded_message("executable", &error.to_string()),
        }
    });
}

fn segments() -> Vec<Seed> {
    let packed = compress(&archive(), 3).bytes;
    let plain = archive().to_bytes();
    let mut both = packed.clone();
    both.resize(both.len().next_multiple_of(4), 0);
    both.extend_from_slice(&plain);
    vec![("packed".to_owned(), packed), ("plain".to_owned(), plain), ("both".to_owned(), both)]
}

/// The header of a static program for x86-64 with one segment, as the gABI has it, and an interpreter's name.
fn program() -> Vec<u8> {
    let mut elf = vec![0_u8; 64 + 56];
    elf[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    elf[16..18].copy_from_slice(&2_u16.to_le_bytes());
    elf[18..20].copy_from_slice(&62_u16.to_le_bytes());
    elf[20..24].copy_from_slice(&1_u32.to_le_bytes());
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
    elf[52..54].copy_from_slice(&64_u16.to_le_bytes());
    elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
    elf[56..58].copy_from_slice(&1_u16.to_le_bytes());
    elf[58..60].copy_from_slice(&64_u16.to_le_bytes());
    let name = b"/lib64/ld-linux-x86-64.so.2\0";
    elf[64..68].copy_from_slice(&3_u32.to_le_bytes());
    elf[72..80].copy_from_slice(&120_u64.to_le_bytes());
    elf[96..104].copy_from_slice(&(name.len() as u64).to_le_bytes());
    elf[104..112].copy_from_slice(&(name.len() as u64).to_le_bytes());
    elf.extend_from_slice(name);
    elf
}
