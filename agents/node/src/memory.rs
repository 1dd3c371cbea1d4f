//! What the node itself takes of the machine's memory, for the console and the bench.

use std::fs;
use std::path::Path;

/// `idle memory: N KiB in processes, M KiB in the root file system`, beyond the kernel's own.
pub fn idle() -> String {
    let processes = resident_kib(Path::new("/proc"));
    let root = croft_storage::capacity::capacity(Path::new("/"))
        .map_or(0, |room| (room.total_bytes - room.free_bytes) >> 10);
    format!("idle memory: {processes} KiB in processes, {root} KiB in the root file system")
}

/// Proportional set sizes of all processes (proc(5), `smaps_rollup`): a shared page counts once.
fn resident_kib(proc: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(proc) else { return 0 };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|entry| fs::read_to_string(entry.path().join("smaps_rollup")).ok())
        .filter_map(|text| {
            let line = text.lines().find(|line| line.starts_with("Pss:"))?.to_owned();
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_add_up_and_the_rest_of_proc_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for (name, pss) in [("1", 100), ("42", 23), ("self", 1000)] {
            fs::create_dir(dir.path().join(name)).unwrap();
            let text = format!("Rss: 5000 kB\nPss:   {pss} kB\nPss_Dirty: 7 kB\n");
            fs::write(dir.path().join(name).join("smaps_rollup"), text).unwrap();
        }
        assert_eq!(resident_kib(dir.path()), 123);
    }
}
