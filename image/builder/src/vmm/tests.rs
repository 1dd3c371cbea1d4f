//! Every way to a VMM, without this machine's environment and without a network.

use super::*;

/// A file that passes for a static x86-64 program.
fn static_elf() -> Vec<u8> {
    let mut elf = vec![0u8; 64];
    elf[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    elf[16] = 2;
    elf[18] = 62;
    elf[20] = 1;
    elf[52] = 64;
    elf[54] = 56;
    elf[58] = 64;
    elf
}

fn no_download(_: &Path) -> Result<(), String> {
    Err("the pinned download failed: (6) could not resolve host".into())
}

struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn put(&self, path: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn surroundings<'a>(&self, download: &'a dyn Fn(&Path) -> Result<(), String>) -> Surroundings<'a> {
        Surroundings {
            named: None,
            search_path: Some(self.directory.path().join("bin").into()),
            cache: self.directory.path().join("cache"),
            sha256: hex::encode(Sha256::digest(static_elf())),
            download,
        }
    }
}

#[test]
fn the_named_file_comes_first() {
    let machine = Machine::new();
    machine.put("bin/cloud-hypervisor", &static_elf());
    let named = machine.put("mine", &static_elf());
    let around = Surroundings { named: Some(named.clone().into()), ..machine.surroundings(&no_download) };
    let choice = choose(Wanted::Auto, &around).unwrap();
    assert_eq!(choice.vmm(), Vmm::CloudHypervisor);
    assert!(matches!(&choice, Choice::CloudHypervisor { binary, .. } if *binary == named), "{choice:?}");
    assert!(choice.reason().ends_with("mine (CROFT_CLOUD_HYPERVISOR)"), "{}", choice.reason());
}

#[test]
fn a_named_file_that_cannot_run_is_an_error_not_a_fallback() {
    let machine = Machine::new();
    machine.put("bin/cloud-hypervisor", &static_elf());
    let named = machine.put("mine", b"#!/bin/sh");
    let around = Surroundings { named: Some(named.into()), ..machine.surroundings(&no_download) };
    let error = choose(Wanted::Auto, &around).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CROFT_CLOUD_HYPERVISOR names a file that can't be used: correct it, or unset it"
    );
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.ends_with("mine is no ELF file"), "{cause}");
}

#[test]
fn a_static_binary_on_the_path_is_taken() {
    let machine = Machine::new();
    let binary = machine.put("bin/cloud-hypervisor", &static_elf());
    let choice = choose(Wanted::Auto, &machine.surroundings(&no_download)).unwrap();
    assert!(
        matches!(&choice, Choice::CloudHypervisor { binary: found, .. } if *found == binary),
        "{choice:?}"
    );
}

#[test]
fn a_dynamic_binary_on_the_path_is_passed_over_and_named() {
    let machine = Machine::new();
    let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    machine.put("bin/cloud-hypervisor", &me);
    let choice = choose(Wanted::Auto, &machine.surroundings(&no_download)).unwrap();
    assert_eq!(choice.vmm(), Vmm::Alioth);
    assert!(choice.reason().contains("cloud-hypervisor is linked dynamically"), "{}", choice.reason());
}

#[test]
fn a_download_with_the_right_digest_is_kept() {
    let machine = Machine::new();
    let download = |to: &Path| std::fs::write(to, static_elf()).map_err(|error| error.to_string());
    let choice = choose(Wanted::Auto, &machine.surroundings(&download)).unwrap();
    assert_eq!(choice.reason(), "cloud-hypervisor: v53.0, pinned download");
    let again = choose(Wanted::Auto, &machine.surroundings(&no_download)).unwrap();
    assert_eq!(again, choice, "the second build must not need the network");
}

#[test]
fn a_download_with_another_digest_is_refused_with_both_digests() {
    let machine = Machine::new();
    let download = |to: &Path| std::fs::write(to, b"evil").map_err(|error| error.to_string());
    let around = machine.surroundings(&download);
    let choice = choose(Wanted::Auto, &around).unwrap();
    assert_eq!(choice.vmm(), Vmm::Alioth);
    let expected = format!(
        "the download has SHA-256 {} instead of the pinned {}",
        hex::encode(Sha256::digest(b"evil")),
        around.sha256
    );
    assert!(choice.reason().contains(&expected), "{}", choice.reason());
}

#[test]
fn without_any_source_one_line_says_why_it_is_alioth() {
    let machine = Machine::new();
    let around = machine.surroundings(&no_download);
    let choice = choose(Wanted::Auto, &around).unwrap();
    assert_eq!(
        choice.reason(),
        "alioth, because there is no cloud-hypervisor: it is not on the PATH; \
         the pinned download failed: (6) could not resolve host"
    );
    let error = choose(Wanted::Only(Vmm::CloudHypervisor), &around).unwrap_err().to_string();
    assert!(error.starts_with("no usable cloud-hypervisor: it is not on the PATH; "), "{error}");
    assert!(error.ends_with("or use --vmm alioth"), "{error}");
}

#[test]
fn a_failed_download_is_not_tried_again_at_once() {
    let machine = Machine::new();
    let _ = choose(Wanted::Auto, &machine.surroundings(&no_download)).unwrap();
    let download = |_: &Path| panic!("tried again");
    let choice = choose(Wanted::Auto, &machine.surroundings(&download)).unwrap();
    assert!(choice.reason().contains("not tried again for an hour; remove "), "{}", choice.reason());
}

#[test]
fn alioth_can_be_asked_for() {
    let machine = Machine::new();
    machine.put("bin/cloud-hypervisor", &static_elf());
    let choice = choose(Wanted::Only(Vmm::Alioth), &machine.surroundings(&no_download)).unwrap();
    assert_eq!(choice, Choice::Alioth { reason: "alioth: asked for".into() });
}

#[test]
fn an_unknown_vmm_is_refused_with_the_known_ones() {
    let error = "qemu".parse::<Wanted>().unwrap_err();
    assert_eq!(error, "there is no VMM \"qemu\": write auto, cloud-hypervisor or alioth");
}
