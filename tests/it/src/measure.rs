//! What the kernel says of processes under measurement.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Processor time that a process has taken so far.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    // proc_pid_stat(5): the name in parentheses may hold anything; utime and stime are fields 14 and 15.
    let rest = text.rsplit_once(')').context("no name")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).context("no processor times");
    let ticks = ticks(11)? + ticks(12)?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Memory that it has in RAM, and how much of that is its own: of what several processes share, its part.
///
/// # Errors
/// When there is no such process, or it is somebody else's.
pub fn memory(pid: u32) -> Result<(f64, f64)> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    let bytes = |field: &str| -> Result<f64> {
        let line =
            text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024.0)
    };
    Ok((bytes("Rss:")?, bytes("Pss:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_a_missing_one_is_named() {
        let (resident, own) = memory(std::process::id()).unwrap();
        assert!(resident >= own && own > 0.0, "{resident} {own}");
        assert!(cpu(std::process::id()).unwrap() < Duration::from_secs(3600));
        assert!(cpu(u32::MAX).unwrap_err().to_string().contains("/proc/4294967295/stat"));
    }
}
