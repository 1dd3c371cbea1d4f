//! The Buildroot external tree uses the same fragments, in the same order, as `cargo xtask kernel`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Finding;
use crate::kernel::Flavor;

const TREE: &str = "kernel-config/buildroot";
/// The setting that lists the fragments.
const FRAGMENTS: &str = "BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES";
/// Buildroot's variable for the external tree's path; its name comes from external.desc.
const TREE_VARIABLE: &str = "$(BR2_EXTERNAL_CROFT_PATH)/../";
/// What Buildroot requires of an external tree.
const REQUIRED: [&str; 3] = ["external.desc", "external.mk", "Config.in"];

fn defconfig(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::Node => "configs/croft_x86_64_defconfig",
        Flavor::Guest => "configs/croft_guest_x86_64_defconfig",
    }
}

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let read = |name: &str| {
        let file = root.join(TREE).join(name);
        fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))
    };
    for name in REQUIRED {
        read(name)?;
    }
    let mut findings = description(&read("external.desc")?);
    for flavor in Flavor::ALL {
        let name = defconfig(flavor);
        let expected: Vec<String> =
            flavor.fragment_files().iter().map(|file| file.display().to_string()).collect();
        for fragment in expected.iter().filter(|fragment| !root.join(fragment).is_file()) {
            findings.push(Finding::new(fragment, 0, "is listed as a fragment but doesn't exist"));
        }
        findings.extend(fragments(&format!("{TREE}/{name}"), &read(name)?, &expected));
    }
    Ok(findings)
}

fn description(text: &str) -> Vec<Finding> {
    if text.lines().any(|line| line == "name: CROFT") {
        return Vec::new();
    }
    let text = format!("must say `name: CROFT`, since the defconfigs use {TREE_VARIABLE}");
    vec![Finding::new(&format!("{TREE}/external.desc"), 0, text)]
}

/// The defconfig lists exactly these fragments, in this order.
fn fragments(file: &str, defconfig: &str, expected: &[String]) -> Vec<Finding> {
    let mut settings = defconfig.lines().enumerate().filter_map(|(index, line)| {
        let value = line.strip_prefix(FRAGMENTS)?.strip_prefix('=')?;
        Some((index + 1, value.trim_matches('"')))
    });
    let Some((line, value)) = settings.next() else {
        return vec![Finding::new(file, 0, format!("doesn't set {FRAGMENTS}"))];
    };
    if let Some((line, _)) = settings.next() {
        return vec![Finding::new(file, line, format!("sets {FRAGMENTS} twice"))];
    }
    let mut listed = Vec::new();
    for word in value.split_whitespace() {
        match word.strip_prefix(TREE_VARIABLE) {
            Some(path) => listed.push(format!("kernel-config/{path}")),
            None => {
                return vec![Finding::new(file, line, format!("{word} doesn't start with {TREE_VARIABLE}"))];
            }
        }
    }
    if listed == expected {
        return Vec::new();
    }
    let text = format!("lists {}, but `cargo xtask kernel` applies {}", listed.join(" "), expected.join(" "));
    vec![Finding::new(file, line, text)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo;

    #[test]
    fn the_external_tree_uses_every_fragment_once_and_in_order() {
        assert_eq!(check(&repo::root()).unwrap(), []);
    }

    #[test]
    fn another_order_a_gap_and_a_repetition_are_found() {
        let expected =
            ["kernel-config/guest/base.config".to_owned(), "kernel-config/guest/virtio.config".to_owned()];
        let setting = |files: &[&str]| {
            let files: Vec<String> =
                files.iter().map(|file| format!("{TREE_VARIABLE}guest/{file}.config")).collect();
            format!("BR2_x86_64=y\n{FRAGMENTS}=\"{}\"\n", files.join(" "))
        };
        assert_eq!(fragments("d", &setting(&["base", "virtio"]), &expected), []);
        for wrong in
            [&["virtio", "base"][..], &["base"], &["base", "virtio", "virtio"], &["base", "virtio", "x"]]
        {
            let found = fragments("d", &setting(wrong), &expected);
            assert_eq!(found.len(), 1, "{wrong:?}");
            assert!(found[0].to_string().starts_with("d:2: lists kernel-config/guest/"), "{}", found[0]);
        }
        assert_eq!(fragments("d", "", &expected)[0].to_string(), format!("d: doesn't set {FRAGMENTS}"));
    }

    #[test]
    fn a_path_of_one_machine_is_refused() {
        let found = fragments("d", &format!("{FRAGMENTS}=\"/src/croft/base.config\"\n"), &[]);
        assert!(found[0].to_string().contains("/src/croft/base.config doesn't start with"), "{}", found[0]);
    }
}
