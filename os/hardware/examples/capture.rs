//! Prints the parts of a machine that the inventory reads, in the format of `tests/trees`: run it on a machine that
//! is not covered yet, look through the output (serial numbers!) and add it there with its test.
//!
//! It reads only. `capture [root]`, `/` by default.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILES: &[&str] = &[
    "hidden",
    "size",
    "removable",
    "ro",
    "serial",
    "partition",
    "start",
    "queue/rotational",
    "queue/logical_block_size",
    "type",
    "address",
    "speed",
    "carrier",
    "bonding_slave/perm_hwaddr",
    "device/model",
    "device/vendor",
    "device/serial",
    "device/name",
    "device/vpd_pg80",
    "device/device",
];

fn main() {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "/".into()));
    let mut capture =
        Capture { root: fs::canonicalize(&root).expect("the root exists"), lines: BTreeSet::new() };
    capture.excerpt(
        "proc/cpuinfo",
        &["processor", "vendor_id", "model name", "physical id", "core id", "flags"],
    );
    capture.excerpt("proc/meminfo", &["MemTotal"]);
    capture.folder("dev", &["kvm"]);
    for cpu in capture.names("sys/devices/system/cpu").iter().filter(|name| name.starts_with("cpu")) {
        for id in ["physical_package_id", "die_id", "core_id"] {
            capture.file(&format!("sys/devices/system/cpu/{cpu}/topology/{id}"));
        }
    }
    capture.file("sys/devices/system/memory/block_size_bytes");
    capture.memory_blocks();
    for class in ["sys/block", "sys/class/net"] {
        for name in capture.names(class) {
            capture.device(&format!("{class}/{name}"));
        }
    }
    capture.folder(
        "sys/class/dmi/id",
        &["sys_vendor", "product_name", "product_serial", "product_uuid", "bios_vendor", "bios_version"],
    );
    if capture.root.join("sys/firmware/efi").exists() {
        capture.lines.insert("sys/firmware/efi/".into());
    }
    for name in ["SecureBoot", "SetupMode"] {
        capture.file(&format!("sys/firmware/efi/efivars/{name}-8be4df61-93ca-11d2-aa0d-00e098032b8c"));
    }
    capture.folder("sys/class/tpm/tpm0", &["tpm_version_major"]);
    for line in &capture.lines {
        println!("{line}");
    }
}

struct Capture {
    root: PathBuf,
    lines: BTreeSet<String>,
}

impl Capture {
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn folder(&mut self, folder: &str, files: &[&str]) {
        for file in files {
            self.file(&format!("{folder}/{file}"));
        }
    }

    /// One device: the link to it, its files under their real place, and its driver.
    fn device(&mut self, path: &str) {
        self.link(path);
        let Some(real) = self.real(path) else { return };
        self.link(&format!("{real}/device"));
        if let Some(device) = self.real(&format!("{real}/device")) {
            self.lines.insert(format!("{device}/"));
            self.link(&format!("{device}/driver"));
        }
        for file in FILES {
            self.file(&format!("{real}/{file}"));
        }
        for holder in self.names(&format!("{real}/holders")) {
            self.lines.insert(format!("{real}/holders/{holder}/"));
        }
        for child in self.names(&real) {
            if self.root.join(&real).join(&child).join("partition").exists() {
                self.folder(&format!("{real}/{child}"), &["partition", "start", "size"]);
            }
        }
        for part in real.split('/').filter(|part| part.len() == 12 && part.contains('.')) {
            self.folder(&format!("sys/bus/pci/devices/{part}"), &["vendor", "device"]);
        }
    }

    /// Some of the lines `key : value` of a long file.
    fn excerpt(&mut self, path: &str, keys: &[&str]) {
        let text = fs::read_to_string(self.root.join(path)).unwrap_or_default();
        let wanted = |line: &&str| line.split_once(':').is_some_and(|(key, _)| keys.contains(&key.trim()));
        let lines: Vec<&str> = text.lines().filter(wanted).collect();
        self.lines.insert(format!("{path} <<\n{}\n>>", lines.join("\n")));
    }

    /// Runs of blocks in one state as one line.
    fn memory_blocks(&mut self) {
        let folder = "sys/devices/system/memory";
        let names = self.names(folder);
        let mut numbers: Vec<u32> =
            names.iter().filter_map(|name| name.strip_prefix("memory")?.parse().ok()).collect();
        numbers.sort_unstable();
        let state = |number: u32| {
            let path = self.root.join(format!("{folder}/memory{number}/state"));
            fs::read_to_string(path).unwrap_or_default().trim().to_owned()
        };
        let mut runs: Vec<(u32, u32, String)> = Vec::new();
        for (number, state) in numbers.into_iter().map(|number| (number, state(number))) {
            match runs.last_mut() {
                Some((_, last, same)) if *last + 1 == number && *same == state => *last = number,
                _ => runs.push((number, number, state)),
            }
        }
        for (first, last, state) in runs {
            self.lines.insert(format!("{folder}/memory{{{first}..{last}}}/state = {state}"));
        }
    }

    fn link(&mut self, path: &str) {
        if let Ok(target) = fs::read_link(self.root.join(path)) {
            self.lines.insert(format!("{path} -> {}", target.display()));
        }
    }

    fn real(&self, path: &str) -> Option<String> {
        let real = fs::canonicalize(self.root.join(path)).ok()?;
        Some(real.strip_prefix(&self.root).ok()?.to_str()?.to_owned())
    }

    fn file(&mut self, path: &str) {
        let full = self.root.join(path);
        if let Some(line) = describe(path, &full) {
            self.lines.insert(line);
        }
    }
}

fn describe(path: &str, full: &Path) -> Option<String> {
    if full.starts_with("/dev") || path.starts_with("dev/") {
        return full.exists().then(|| format!("{path} ="));
    }
    // A class folder may be a link: the files are below what it points to as well as below it.
    let bytes = match fs::read(full) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(_) => return Some(format!("{path} !")),
    };
    Some(match std::str::from_utf8(&bytes) {
        Ok(text) if text.trim().lines().count() > 1 => format!("{path} <<\n{}\n>>", text.trim_end()),
        Ok(text) if !text.contains(|c: char| c.is_control() && c != '\n') => {
            format!("{path} = {}", text.trim_end_matches('\n'))
        }
        _ => format!(
            "{path} =x {}",
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
        ),
    })
}
