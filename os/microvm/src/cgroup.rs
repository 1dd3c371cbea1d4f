//! One control group (v2) per VM: limits for the VMM and its helpers together, usage, out-of-memory events,
//! and the hammer that ends all of them at once.
//!
//! Must never touch a group that it did not make, except those below the given root when sweeping.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// Period of the processor limit in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses smaller quotas.
const MIN_CPU_QUOTA_US: u64 = 1_000;
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// How often a killed group is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Limits of a VM's processes on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) cpu_millis: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) pids: u32,
}

/// Whether a host without the needed controllers is acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// Limits are what a contract sells: refuse to run without them.
    #[default]
    Required,
    /// Set what the host has; for development machines.
    BestEffort,
}

/// Why a control group could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("{root} is not a cgroup v2 directory: mount cgroup2 there (the node's init does)")]
    NotCgroup2 { root: PathBuf, source: io::Error },
    #[error("the {controller} controller is not available in {root}: enable it in the kernel and its parent")]
    NoController { root: PathBuf, controller: &'static str },
    #[error("can't make the control group {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("can't set {file} to {value}")]
    Set { file: PathBuf, value: String, source: io::Error },
    #[error("processes of {path} are still there {} s after they were killed: the kernel holds them", waited.as_secs())]
    Stuck { path: PathBuf, waited: Duration },
    #[error("can't remove the control group {path}")]
    Remove { path: PathBuf, source: io::Error },
}

/// What a VM has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub cpu_us: u64,
    pub memory_bytes: u64,
}

/// The directory below which all VMs' groups live.
#[derive(Debug, Clone)]
pub(crate) struct CgroupRoot {
    path: PathBuf,
    enforcement: Enforcement,
}

impl CgroupRoot {
    /// Makes the directory and passes the controllers on to its children.
    pub(crate) fn open(path: &Path, enforcement: Enforcement) -> Result<Self, CgroupError> {
        if !path.exists() {
            let create = |source| CgroupError::Create { path: path.to_owned(), source };
            fs::create_dir(path).map_err(create)?;
        }
        for directory in [path.parent(), Some(path)].into_iter().flatten() {
            enable_controllers(directory, enforcement)?;
        }
        Ok(Self { path: path.to_owned(), enforcement })
    }

    /// Names of the groups that exist.
    pub(crate) fn children(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.path)?.filter_map(Result::ok);
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        Ok(directories.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// An existing group, to end what an earlier run left.
    pub(crate) fn existing(&self, name: &str) -> Cgroup {
        Cgroup { path: self.path.join(name) }
    }

    /// Makes a group with limits.
    pub(crate) fn create(&self, name: &str, limits: Limits) -> Result<Cgroup, CgroupError> {
        let path = self.path.join(name);
        fs::create_dir(&path).map_err(|source| CgroupError::Create { path: path.clone(), source })?;
        let cgroup = Cgroup { path };
        for (file, value) in settings(limits) {
            match cgroup.set(file, &value) {
                Err(_) if self.enforcement == Enforcement::BestEffort => {
                    tracing::debug!(group = %cgroup.path.display(), file, "limit not set");
                }
                result => result?,
            }
        }
        Ok(cgroup)
    }
}

fn enable_controllers(directory: &Path, enforcement: Enforcement) -> Result<(), CgroupError> {
    let available = fs::read_to_string(directory.join("cgroup.controllers"))
        .map_err(|source| CgroupError::NotCgroup2 { root: directory.to_owned(), source })?;
    let file = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).unwrap_or_default();
    for controller in CONTROLLERS {
        if enabled.split_whitespace().any(|known| known == controller) {
            continue;
        }
        let present = available.split_whitespace().any(|known| known == controller);
        if !present && enforcement == Enforcement::BestEffort {
            continue;
        }
        if !present {
            return Err(CgroupError::NoController { root: directory.to_owned(), controller });
        }
        let value = format!("+{controller}");
        fs::write(&file, &value).map_err(|source| CgroupError::Set { file: file.clone(), value, source })?;
    }
    Ok(())
}

fn settings(limits: Limits) -> Vec<(&'static str, String)> {
    let quota = (u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000).max(MIN_CPU_QUOTA_US);
    vec![
        ("cpu.max", format!("{quota} {CPU_PERIOD_US}")),
        // In proportion to what was paid for; 1 to 10000, 100 is one processor.
        ("cpu.weight", (limits.cpu_millis / 10).clamp(1, 10_000).to_string()),
        ("memory.max", limits.memory_bytes.to_string()),
        // Half a VM is of no use.
        ("memory.oom.group", "1".to_owned()),
        ("pids.max", limits.pids.to_string()),
    ]
}

/// A VM's control group.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn set(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let file = self.path.join(file);
        // Not `fs::write`: these files exist or the controller is missing, they are never created.
        let opened = fs::OpenOptions::new().write(true).open(&file);
        opened
            .and_then(|mut opened| io::Write::write_all(&mut opened, value.as_bytes()))
            .map_err(|source| CgroupError::Set { file, value: value.to_owned(), source })
    }

    /// True when the kernel killed something of the group for want of memory.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        self.value("memory.events", "oom_kill").unwrap_or(0) > 0
    }

    fn value(&self, file: &str, key: &str) -> Option<u64> {
        value(&self.path, file, key)
    }

    fn is_populated(&self) -> bool {
        self.value("cgroup.events", "populated").unwrap_or(0) > 0
    }

    /// Kills everything in the group and waits until it is gone, at most for `limit`.
    pub(crate) async fn kill(&self, limit: Duration) -> Result<(), CgroupError> {
        if !self.path.exists() {
            return Ok(());
        }
        self.set("cgroup.kill", "1")?;
        let started = Instant::now();
        while self.is_populated() {
            if started.elapsed() > limit {
                return Err(CgroupError::Stuck { path: self.path.clone(), waited: limit });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Removes the empty group.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CgroupError::Remove { path: self.path.clone(), source: error })
            }
            _ => Ok(()),
        }
    }
}

fn value(group: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(group.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// What the processes of a group have used; nothing when the group is gone.
pub(crate) fn usage(group: &Path) -> Usage {
    let memory = fs::read_to_string(group.join("memory.current"));
    Usage {
        cpu_us: value(group, "cpu.stat", "usage_usec").unwrap_or(0),
        memory_bytes: memory.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_kernels_units() {
        let settings = settings(Limits { cpu_millis: 1500, memory_bytes: 300 << 20, pids: 64 });
        let get = |name: &str| settings.iter().find(|(file, _)| *file == name).unwrap().1.clone();
        assert_eq!(get("cpu.max"), "150000 100000");
        assert_eq!(get("cpu.weight"), "150");
        assert_eq!(get("memory.max"), (300 << 20).to_string());
        assert_eq!(get("memory.oom.group"), "1");
        assert_eq!(get("pids.max"), "64");
    }

    #[test]
    fn a_tiny_share_stays_within_what_the_kernel_accepts() {
        let settings = settings(Limits { cpu_millis: 1, memory_bytes: 1, pids: 1 });
        assert_eq!((settings[0].1.as_str(), settings[1].1.as_str()), ("1000 100000", "1"));
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            CgroupRoot::open(&dir.path().join("croft"), Enforcement::Required).unwrap_err().to_string();
        assert!(error.contains("is not a cgroup v2 directory: mount cgroup2 there"), "{error}");
    }

    #[test]
    fn a_missing_controller_is_named_unless_limits_are_optional() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("croft");
        fs::create_dir(&root).unwrap();
        for directory in [dir.path(), &root] {
            fs::write(directory.join("cgroup.controllers"), "cpu pids\n").unwrap();
            fs::write(directory.join("cgroup.subtree_control"), "").unwrap();
        }
        let error = CgroupRoot::open(&root, Enforcement::Required).unwrap_err().to_string();
        assert!(error.starts_with("the memory controller is not available in "), "{error}");
        CgroupRoot::open(&root, Enforcement::BestEffort).unwrap();
    }

    #[test]
    fn usage_and_out_of_memory_are_read_from_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup { path: dir.path().to_owned() };
        assert!(!cgroup.was_out_of_memory());
        fs::write(dir.path().join("memory.events"), "low 0\noom 1\noom_kill 2\noom_group_kill 1\n").unwrap();
        fs::write(dir.path().join("cpu.stat"), "usage_usec 1234\nuser_usec 1\n").unwrap();
        fs::write(dir.path().join("memory.current"), "4096\n").unwrap();
        assert!(cgroup.was_out_of_memory());
        assert_eq!(usage(dir.path()), Usage { cpu_us: 1234, memory_bytes: 4096 });
    }
}
