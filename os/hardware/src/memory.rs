//! Main memory: `/proc/meminfo` and `/sys/devices/system/memory`.

use crate::tree::{Tree, excerpt};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the kernel can use; 0 when it does not say.
    pub total_bytes: u64,
    /// What is built in, counted in blocks of memory that are online; a little more than the total.
    pub installed_bytes: Option<u64>,
}

pub(crate) fn read(tree: &Tree) -> Memory {
    let path = "proc/meminfo";
    let text = tree.text(path).unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).map(str::trim);
    let total_bytes =
        total.and_then(|value| value.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024));
    if total_bytes.is_none() {
        let found =
            total.map_or("no line MemTotal".into(), |value| format!("MemTotal is {:?}", excerpt(value)));
        tree.find(path, &format!("{found}: the size of the memory is unknown"));
    }
    let installed_bytes = installed(tree).filter(|installed| *installed >= total_bytes.unwrap_or(0));
    Memory { total_bytes: total_bytes.unwrap_or(0), installed_bytes }
}

fn installed(tree: &Tree) -> Option<u64> {
    let folder = "sys/devices/system/memory";
    let block = tree.quiet_text(&format!("{folder}/block_size_bytes"))?;
    let block = u64::from_str_radix(block.trim_start_matches("0x"), 16).ok()?;
    let online = tree
        .names(folder)
        .iter()
        .filter(|name| name.strip_prefix("memory").is_some_and(|rest| rest.parse::<u32>().is_ok()))
        .filter(|name| tree.quiet_text(&format!("{folder}/{name}/state")).as_deref() == Some("online"))
        .count();
    block.checked_mul(u64::try_from(online).ok()?).filter(|bytes| *bytes > 0)
}
