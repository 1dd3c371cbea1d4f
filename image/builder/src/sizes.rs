//! The size table: what each part of the boot file costs, and the verdict against the budget.
//!
//! Must never round in the image's favour: the budget is compared in bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::initramfs::Contribution;
use crate::vmm::Vmm;

/// Budget of the whole boot file, kernel included: what old machines load over a slow network.
pub const BUDGET_BYTES: u64 = 32_000_000;
/// Where we want to be.
pub const GOAL_BYTES: u64 = 24_000_000;

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSize {
    pub part: String,
    pub uncompressed_bytes: u64,
    pub compressed_bytes: u64,
}

/// The table, written to `sizes.json` beside the image. Rows in falling compressed size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    pub vmm: Vmm,
    pub parts: Vec<PartSize>,
    pub total_bytes: u64,
    pub budget_bytes: u64,
    pub goal_bytes: u64,
}

impl Sizes {
    /// From the shares of the initramfs, the part of each path, and the kernel's size.
    #[must_use]
    pub fn new(
        vmm: Vmm,
        contributions: &[Contribution],
        parts: &BTreeMap<String, String>,
        kernel_bytes: u64,
    ) -> Self {
        let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for share in contributions {
            let part = parts.get(&share.path).map_or(crate::manifest::LAYOUT, String::as_str);
            let sum = sums.entry(part).or_default();
            sum.0 += share.uncompressed_bytes;
            sum.1 += share.compressed_bytes;
        }
        let kernel = sums.entry("node kernel").or_default();
        kernel.0 += kernel_bytes;
        kernel.1 += kernel_bytes;
        let mut parts: Vec<PartSize> = sums
            .into_iter()
            .map(|(part, (uncompressed_bytes, compressed_bytes))| PartSize {
                part: part.to_owned(),
                uncompressed_bytes,
                compressed_bytes,
            })
            .collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.compressed_bytes));
        let total_bytes = parts.iter().map(|part| part.compressed_bytes).sum();
        Self { vmm, parts, total_bytes, budget_bytes: BUDGET_BYTES, goal_bytes: GOAL_BYTES }
    }

    #[must_use]
    pub fn within_budget(&self) -> bool {
        self.total_bytes <= self.budget_bytes
    }

    /// The table as text, with a verdict in the last line.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.parts.iter().map(|part| part.part.len()).max().unwrap_or(0).max("total".len());
        let mut out =
            format!("{:width$}  {:>13}  {:>11}  {:>5}\n", "part", "uncompressed", "in the file", "share");
        for part in &self.parts {
            let share = part.compressed_bytes as f64 * 100.0 / self.total_bytes.max(1) as f64;
            let (raw, packed) = (kilobytes(part.uncompressed_bytes), kilobytes(part.compressed_bytes));
            let _ = writeln!(out, "{:width$}  {raw:>13}  {packed:>11}  {share:>4.0}%", part.part);
        }
        let raw = self.parts.iter().map(|part| part.uncompressed_bytes).sum();
        let _ = writeln!(
            out,
            "{:width$}  {:>13}  {:>11}  {}",
            "total",
            kilobytes(raw),
            kilobytes(self.total_bytes),
            self.verdict()
        );
        out
    }

    fn verdict(&self) -> String {
        let megabytes = |bytes: u64| bytes / 1_000_000;
        let (budget, goal) = (megabytes(self.budget_bytes), megabytes(self.goal_bytes));
        if self.total_bytes <= self.goal_bytes {
            format!("within the goal of {goal} MB")
        } else if self.within_budget() {
            format!("within the budget of {budget} MB, above the goal of {goal} MB")
        } else {
            let over = kilobytes(self.total_bytes - self.budget_bytes);
            format!("OVER the budget of {budget} MB by {over}")
        }
    }
}

/// Rounded up, so that nothing looks smaller than it is.
fn kilobytes(bytes: u64) -> String {
    format!("{} kB", bytes.div_ceil(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(kernel_bytes: u64) -> Sizes {
        let share = |path: &str, raw, packed| Contribution {
            path: path.into(),
            uncompressed_bytes: raw,
            compressed_bytes: packed,
        };
        let parts = BTreeMap::from([
            ("init".to_owned(), "init".to_owned()),
            ("usr/sbin/mke2fs".to_owned(), "filesystem tools".to_owned()),
            ("usr/lib/libc.so.6".to_owned(), "filesystem tools".to_owned()),
        ]);
        let shares = [
            share("init", 1_000_000, 400_000),
            share("usr", 112, 12),
            share("usr/sbin/mke2fs", 100_000, 50_000),
            share("usr/lib/libc.so.6", 2_000_000, 900_000),
        ];
        Sizes::new(Vmm::Alioth, &shares, &parts, kernel_bytes)
    }

    #[test]
    fn files_of_one_part_are_added_up() {
        let table = sizes(5_000_000).table();
        assert!(table.contains("filesystem tools        2100 kB       950 kB    15%"), "{table}");
        assert!(table.contains("layout                     1 kB         1 kB     0%"), "{table}");
        assert!(table.ends_with("within the goal of 24 MB\n"), "{table}");
    }

    #[test]
    fn the_verdict_follows_the_bytes() {
        let rest = sizes(0).total_bytes;
        let verdict = |total: u64| sizes(total - rest).verdict();
        assert_eq!(verdict(GOAL_BYTES), "within the goal of 24 MB");
        assert_eq!(verdict(GOAL_BYTES + 1), "within the budget of 32 MB, above the goal of 24 MB");
        assert!(sizes(BUDGET_BYTES - rest).within_budget());
        assert_eq!(verdict(BUDGET_BYTES + 1), "OVER the budget of 32 MB by 1 kB");
        assert!(!sizes(BUDGET_BYTES + 1 - rest).within_budget());
    }

    #[test]
    fn the_json_reads_back() {
        let json = serde_json::to_string(&sizes(1)).unwrap();
        assert_eq!(serde_json::from_str::<Sizes>(&json).unwrap(), sizes(1));
    }
}
