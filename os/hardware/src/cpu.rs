//! Processors: `/proc/cpuinfo` and `/sys/devices/system/cpu`.

use crate::tree::{Tree, clean};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What the processors can do for virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Virtualisation {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    pub vendor: Option<String>,
    pub model: Option<String>,
    pub sockets: u32,
    pub cores: u32,
    /// What the scheduler sees, and what is sold.
    pub threads: u32,
    pub virtualisation: Virtualisation,
    /// Whether `/dev/kvm` is there: switched on in the firmware and known to the kernel. Only a virtual machine that
    /// runs proves more.
    pub kvm: bool,
    /// This machine is itself a virtual one.
    pub virtual_machine: bool,
    /// Flags that decide about speed or trust and that all processors have, sorted.
    pub flags: Vec<String>,
}

/// Flags that decide about speed or trust: hashes, ciphers, random numbers, memory encryption.
const FLAGS_OF_USE: &[&str] = &[
    "aes",
    "avx2",
    "avx512f",
    "rdrand",
    "rdseed",
    "sev",
    "sev_es",
    "sev_snp",
    "sha_ni",
    "tdx_guest",
    "vaes",
];

pub(crate) fn read(tree: &Tree) -> Cpu {
    let text = tree.text("proc/cpuinfo").unwrap_or_default();
    let values = |key: &str| -> Vec<&str> {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim())
            .collect()
    };
    let listed = values("processor").len();
    if listed == 0 {
        tree.find("proc/cpuinfo", "names no processor: one is assumed");
    }
    let threads = u32::try_from(listed.max(1)).unwrap_or(u32::MAX);
    let flags = common_flags(&values("flags"));
    let has = |flag: &str| flags.contains(flag);
    let (sockets, cores) = topology(tree, &text);
    Cpu {
        vendor: values("vendor_id").first().and_then(|name| clean(name)),
        model: values("model name").first().and_then(|name| clean(name)),
        sockets: sockets.clamp(1, threads),
        cores: cores.clamp(1, threads),
        threads,
        virtualisation: if has("vmx") {
            Virtualisation::Vmx
        } else if has("svm") {
            Virtualisation::Svm
        } else {
            Virtualisation::None
        },
        kvm: tree.exists("dev/kvm"),
        virtual_machine: has("hypervisor"),
        flags: FLAGS_OF_USE.iter().filter(|flag| has(flag)).map(ToString::to_string).collect(),
    }
}

fn common_flags<'a>(lists: &[&'a str]) -> BTreeSet<&'a str> {
    let mut lists = lists.iter().map(|list| list.split_whitespace().collect::<BTreeSet<_>>());
    let first = lists.next().unwrap_or_default();
    lists.fold(first, |common, list| common.intersection(&list).copied().collect())
}

/// Sockets and cores: from sysfs, else from `/proc/cpuinfo`, else one socket with a core per thread.
fn topology(tree: &Tree, cpuinfo: &str) -> (u32, u32) {
    let mut cores = BTreeSet::new();
    for name in tree.names("sys/devices/system/cpu") {
        let number = name
            .strip_prefix("cpu")
            .filter(|rest| rest.bytes().all(|b| b.is_ascii_digit()) && !rest.is_empty());
        if number.is_none() {
            continue;
        }
        let topology = format!("sys/devices/system/cpu/{name}/topology");
        // Some hypervisors say -1 for "unknown": one package then.
        let id = |file: &str| {
            tree.quiet_text(&format!("{topology}/{file}")).and_then(|text| text.parse::<i64>().ok())
        };
        if let (Some(package), Some(core)) = (id("physical_package_id"), id("core_id")) {
            let die = id("die_id").unwrap_or(0);
            cores.insert((package, die, core));
        }
    }
    if cores.is_empty() {
        let mut package = 0;
        for (key, value) in cpuinfo.lines().filter_map(|line| line.split_once(':')) {
            match (key.trim(), value.trim().parse::<i64>()) {
                ("physical id", Ok(id)) => package = id,
                ("core id", Ok(id)) => drop(cores.insert((package, 0, id))),
                _ => {}
            }
        }
    }
    if cores.is_empty() {
        return (1, u32::MAX);
    }
    let sockets: BTreeSet<i64> = cores.iter().map(|(package, ..)| *package).collect();
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    (count(sockets.len()), count(cores.len()))
}
