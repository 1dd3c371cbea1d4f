//! What a farm's machines boot from, made by the commands that a farmer would type.

use croft_protocol::addition::{Expectation, Validated};
use croft_protocol::boot::BootConfig;

use super::releases::efi_program;
use super::world::{World, fields_are_documented};

/// A file that firmware would start.
fn boot_file(world: &World) -> String {
    let path = world.file("croft.efi", "");
    std::fs::write(&path, efi_program(1)).unwrap();
    path
}

/// Where the addition is in a medium, whatever the file system around it.
fn addition_in(medium: &[u8]) -> Validated {
    let at = medium.windows(8).position(|bytes| bytes == b"CROFTADD").expect("it is on the medium");
    let body = u32::from_le_bytes(medium[at + 10..at + 14].try_into().unwrap()) as usize;
    Validated::open(&medium[at..at + 14 + body + 64], &Expectation::default()).unwrap()
}

#[test]
fn a_medium_carries_the_farms_own_settings_signed_by_its_owner() {
    let world = World::with_farm();
    let boot_file = boot_file(&world);
    let boot = world.file("farm.toml", &world.boot_config());
    let expected = BootConfig::parse(&world.boot_config()).unwrap();
    for (medium, size) in [("usb", 30 << 20), ("iso", 30 << 20)] {
        let out = world.home().with_extension(medium).display().to_string();
        let line = format!("farm image --farm attic --boot-file {boot_file} --boot-config {boot} --bot bob");
        let line = format!("{line} --medium {medium} --out {out}");
        let made = world.json(&line);
        fields_are_documented("farm image", &made);
        assert_eq!((&made["farm"], &made["medium"]), (&"attic".into(), &medium.into()));
        assert_eq!(made["signed"], false);
        let bytes = std::fs::read(&out).unwrap();
        assert_eq!(made["bytes"].as_u64().unwrap(), bytes.len() as u64);
        assert!(bytes.len() > size, "{} bytes", bytes.len());
        assert_eq!(addition_in(&bytes).boot_config(), expected);
        let text = world.text(&line);
        assert!(text.contains("keep it like a key") && text.contains("croft media flash"), "{text}");
        assert!(text.contains("the boot file is not signed"), "{text}");
        assert_eq!(std::fs::read(&out).unwrap(), bytes, "equal input, equal bytes");
    }
    let out = world.home().with_extension("netboot");
    let line = format!("farm image --farm attic --boot-file {boot_file} --boot-config {boot} --bot bob");
    world.text(&format!("{line} --medium netboot --out {}", out.display()));
    assert!(out.is_dir());
}

#[test]
fn what_keeps_a_medium_from_being_made_is_named_with_the_remedy() {
    let world = World::with_farm();
    let boot_file = boot_file(&world);
    let no_boot_file = world.file("vmlinuz", "MZ, and then no EFI program");
    let boot = world.file("farm.toml", &world.boot_config());
    let out = world.home().with_extension("img").display().to_string();
    let refusals = [
        (
            format!("--farm attic --boot-file {boot_file}"),
            "farm 'attic' has no boot configuration at ",
            "write one with 'croft farm new attic', or name it with --boot-config",
        ),
        (
            format!("--farm cellar --boot-file {boot_file} --boot-config {boot}"),
            "is the boot configuration of farm 'attic', not of 'cellar'",
            "",
        ),
        (
            format!("--farm attic --boot-file {boot_file} --boot-config {no_boot_file}"),
            "is no boot configuration",
            "",
        ),
        (format!("--farm attic --boot-file {out}.missing --boot-config {boot}"), "can't read ", ".missing"),
        (
            format!("--farm attic --boot-file {no_boot_file} --boot-config {boot}"),
            "vmlinuz is no boot file: make one with 'cargo xtask image --boot-file'",
            "",
        ),
    ];
    for (arguments, what, remedy) in refusals {
        let output = world.run(&format!("farm image {arguments} --out {out} --bot bob"));
        assert_ne!(output.code, 0, "{arguments}");
        assert!(output.err.contains(what) && output.err.contains(remedy), "{arguments}: {}", output.err);
    }
    // Alice can't sign for bob's farm.
    let line = format!("farm image --farm attic --boot-file {boot_file} --boot-config {boot} --out {out}");
    let output = world.run(&format!("{line} --bot alice"));
    assert!(output.err.contains("sign it as the farm's owner: --bot OWNER"), "{}", output.err);
    assert!(!std::path::Path::new(&out).exists(), "nothing half-made is left");
}

#[test]
fn what_is_no_disk_is_not_written_to() {
    let world = World::with_farm();
    let image = world.file("usb.img", &"x".repeat(512));
    let output = world.run(&format!("media flash {image} {image} --yes-erase {image}"));
    assert_eq!(output.code, 4, "{}", output.err);
    assert!(output.err.contains("is no block device"), "{}", output.err);
    assert_eq!(std::fs::read(&image).unwrap(), vec![b'x'; 512]);
}

#[test]
fn secure_boot_keys_are_made_once_and_never_overwritten() {
    let world = World::with_farm();
    let folder = world.home().with_extension("keys");
    let line = format!("media keys {}", folder.display());
    let text = world.text(&line);
    assert!(text.contains("Keep PK and KEK offline"), "{text}");
    let key = |role: &str| std::fs::read(folder.join(format!("{role}.key"))).unwrap();
    let before = ["PK", "KEK", "db"].map(key);
    let again = world.run(&line);
    assert_ne!(again.code, 0);
    assert_eq!(["PK", "KEK", "db"].map(key), before);
}

#[test]
fn an_image_or_a_signed_boot_file_replaces_no_device() {
    let world = World::with_farm();
    let (boot_file, keys) = (boot_file(&world), world.home().with_extension("keys").display().to_string());
    let boot = world.file("farm.toml", &world.boot_config());
    world.text(&format!("media keys {keys}"));
    let out = world.home().with_extension("out");
    let image = format!("farm image --farm attic --boot-file {boot_file} --boot-config {boot} --bot bob");
    let signed = format!("media sign {boot_file} --keys {keys}");
    // A socket stands for a device, which only root can make.
    let listener = std::os::unix::net::UnixListener::bind(&out).unwrap();
    for line in [format!("{image} --medium usb"), format!("{image} --medium iso"), signed.clone()] {
        let output = world.run(&format!("{line} --out {}", out.display()));
        assert_eq!(output.code, 2, "{line}: {}", output.err);
        let says = format!("{} is there and is no regular file: name another one", out.display());
        assert!(output.err.contains(&says), "{line}: {}", output.err);
        assert!(!out.is_file(), "{line}");
    }
    drop(listener);
    std::fs::remove_file(&out).unwrap();
    world.text(&format!("{signed} --out {}", out.display()));
    let text = world.text(&format!("{signed} --out {}", out.display()));
    assert!(text.contains("is signed by"), "a file is made anew: {text}");

    let signed_file = out.display().to_string();
    let line = format!("farm image --farm attic --boot-file {signed_file} --boot-config {boot} --bot bob");
    let text = world.text(&format!("{line} --out {}", out.with_extension("img").display()));
    assert!(!text.contains("not signed"), "{text}");
}
