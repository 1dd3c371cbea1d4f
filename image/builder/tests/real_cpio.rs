//! Our archives as other tools see them: GNU cpio and zstd.

use std::io::Write as _;
use std::process::{Command, Stdio};

use croft_image_builder::{Archive, Entry, Kind, append_segment, compress};

fn sample() -> Archive {
    let mut archive = Archive::new();
    archive.insert("/init", Entry::file(*b"#!init", 0o755)).unwrap();
    archive.insert("/usr/bin/node", Entry::file(vec![7; 4099], 0o700)).unwrap();
    archive.insert("/lib", Entry::symlink("usr/lib")).unwrap();
    let console = Entry { kind: Kind::CharacterDevice { major: 5, minor: 1 }, mode: 0o600 };
    archive.insert("/dev/console", console).unwrap();
    archive
}

/// Output of `tool` fed with `input`; `None`, said aloud, when it is not installed.
fn through(tool: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(tool)
        .args(arguments)
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: {tool} is not installed (scripts/setup installs it)");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool}: {errors}");
    assert!(!errors.contains("warning"), "{tool}: {errors}");
    Some(output.stdout)
}

#[test]
fn gnu_cpio_lists_what_we_wrote() {
    let Some(listing) = through("cpio", &["-t"], &sample().to_bytes()) else { return };
    assert_eq!(
        String::from_utf8(listing).unwrap().lines().collect::<Vec<_>>(),
        ["dev", "dev/console", "init", "lib", "usr", "usr/bin", "usr/bin/node"]
    );
}

#[test]
fn gnu_cpio_sees_modes_owners_times_and_devices() {
    let Some(listing) = through("cpio", &["-tvn"], &sample().to_bytes()) else { return };
    let listing = String::from_utf8(listing).unwrap();
    let line = |path: &str| {
        let line = listing.lines().find(|line| line.contains(path)).expect(path);
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("dev/console"), "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console");
    assert_eq!(line("init"), "-rwxr-xr-x 1 0 0 6 Jan 1 1970 init");
    assert_eq!(line("lib ->"), "lrwxrwxrwx 1 0 0 7 Jan 1 1970 lib -> usr/lib");
    assert_eq!(line("usr/bin/node"), "-rwx------ 1 0 0 4099 Jan 1 1970 usr/bin/node");
}

#[test]
fn the_zstd_tool_unpacks_what_we_compressed() {
    let compressed = compress(&sample(), 19).bytes;
    let Some(unpacked) = through("zstd", &["-dc"], &compressed) else { return };
    assert_eq!(unpacked, sample().to_bytes());
}

#[test]
fn gnu_cpio_reads_an_appended_segment() {
    let mut segment = Vec::new();
    append_segment(&mut segment, &[("/etc/croft/boot.toml", b"[grid]\n")]).unwrap();
    let Some(listing) = through("cpio", &["-t"], &segment) else { return };
    assert_eq!(String::from_utf8(listing).unwrap(), "etc\netc/croft\netc/croft/boot.toml\n");
}
