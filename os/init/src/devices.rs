//! Waits until the kernel has found the machine's disks and network cards, and names them.
//!
//! All drivers are built in and devtmpfs makes the nodes, so there is nothing to load and nothing to create. The
//! kernel starts init only when its asynchronous probes are done; what comes later is NVMe namespaces and USB. The
//! wait ends when nothing new has come for a moment, and has a limit: a machine without any disk is a valid machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Nothing new for this long means that all is there.
const QUIET: Duration = Duration::from_millis(100);
/// Controllers that still start, or no network card yet: worth a longer wait, not an endless one.
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// What the kernel shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whole disks by kernel name.
    pub disks: BTreeSet<String>,
    /// Network cards as `name (driver)`.
    pub network_cards: BTreeSet<String>,
    /// Controllers that are not done starting.
    pub starting: BTreeSet<String>,
}

impl Found {
    /// Looks below a `/sys`.
    #[must_use]
    pub fn look(sys: &Path) -> Self {
        let has_device = |class: &str, name: &str| sys.join(class).join(name).join("device").exists();
        Self {
            disks: names(&sys.join("block")).filter(|name| has_device("block", name)).collect(),
            network_cards: names(&sys.join("class/net"))
                .filter(|name| has_device("class/net", name))
                .map(|name| match driver(&sys.join("class/net").join(&name)) {
                    Some(driver) => format!("{name} ({driver})"),
                    None => name,
                })
                .collect(),
            starting: names(&sys.join("class/nvme"))
                .filter(|name| {
                    let state = fs::read_to_string(sys.join("class/nvme").join(name).join("state"));
                    state.is_ok_and(|state| matches!(state.trim(), "new" | "connecting" | "resetting"))
                })
                .collect(),
        }
    }

    fn settled(&self) -> bool {
        self.starting.is_empty() && !self.network_cards.is_empty()
    }

    /// One line for the log; what is missing is said, not left out.
    #[must_use]
    pub fn describe(&self) -> String {
        let disks =
            if self.disks.is_empty() { "no disk".into() } else { format!("disks {}", join(&self.disks)) };
        let cards = if self.network_cards.is_empty() {
            "no network card that this kernel knows".into()
        } else {
            format!("network cards {}", join(&self.network_cards))
        };
        let starting = if self.starting.is_empty() {
            String::new()
        } else {
            format!("; still starting: {}", join(&self.starting))
        };
        format!("{disks}; {cards}{starting}")
    }
}

fn join(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}

fn driver(card: &Path) -> Option<String> {
    let link = fs::read_link(card.join("device/driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// Looks until nothing changes any more.
#[must_use]
pub fn settle() -> Found {
    settle_with(|| Found::look(Path::new("/sys")), Instant::now, || std::thread::sleep(PAUSE))
}

fn settle_with(
    mut look: impl FnMut() -> Found,
    mut now: impl FnMut() -> Instant,
    mut pause: impl FnMut(),
) -> Found {
    let started = now();
    let mut found = look();
    let mut changed = started;
    loop {
        pause();
        let next = look();
        let time = now();
        if next != found {
            found = next;
            changed = time;
        }
        let quiet = time.duration_since(changed) >= QUIET;
        if time.duration_since(started) >= LIMIT || (quiet && found.settled()) {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn with(disks: &[&str], cards: &[&str], starting: &[&str]) -> Found {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Found { disks: set(disks), network_cards: set(cards), starting: set(starting) }
    }

    /// Runs the wait in virtual time over a script of (second, what is there from then on).
    fn settle_over(script: &[(f32, Found)]) -> (Found, Duration) {
        let start = Instant::now();
        let time = Cell::new(start);
        let found = settle_with(
            || {
                let passed = time.get().duration_since(start).as_secs_f32();
                script.iter().rev().find(|(at, _)| *at <= passed).unwrap().1.clone()
            },
            || time.get(),
            || time.set(time.get() + PAUSE),
        );
        (found, time.get().duration_since(start))
    }

    #[test]
    fn a_machine_that_is_complete_does_not_wait() {
        let (found, took) = settle_over(&[(0.0, with(&["vda"], &["eth0 (virtio_net)"], &[]))]);
        assert_eq!(found.describe(), "disks vda; network cards eth0 (virtio_net)");
        assert!(took <= Duration::from_millis(120), "{took:?}");
    }

    #[test]
    fn late_disks_are_waited_for() {
        let script = [
            (0.0, with(&[], &["eth0 (igb)"], &["nvme0"])),
            (3.0, with(&["nvme0n1"], &["eth0 (igb)"], &["nvme0"])),
            (3.1, with(&["nvme0n1"], &["eth0 (igb)"], &[])),
        ];
        let (found, took) = settle_over(&script);
        assert_eq!(found, script[2].1);
        assert!(took < Duration::from_secs(4), "{took:?}");
    }

    #[test]
    fn a_controller_that_never_starts_ends_the_wait_and_is_named() {
        let (found, took) = settle_over(&[(0.0, with(&[], &[], &["nvme0"]))]);
        assert_eq!(
            found.describe(),
            "no disk; no network card that this kernel knows; still starting: nvme0"
        );
        assert!(took <= LIMIT + PAUSE, "{took:?}");
    }

    #[test]
    fn virtual_devices_are_no_hardware() {
        let sys = tempfile::tempdir().unwrap();
        for folder in
            ["block/vda/device", "block/loop0", "class/net/eth0/device", "class/net/lo", "class/nvme/nvme0"]
        {
            fs::create_dir_all(sys.path().join(folder)).unwrap();
        }
        fs::write(sys.path().join("class/nvme/nvme0/state"), "connecting\n").unwrap();
        std::os::unix::fs::symlink(
            "../../../../bus/virtio/drivers/virtio_net",
            sys.path().join("class/net/eth0/device/driver"),
        )
        .unwrap();
        assert_eq!(Found::look(sys.path()), with(&["vda"], &["eth0 (virtio_net)"], &["nvme0"]));
        assert_eq!(Found::look(&sys.path().join("absent")), Found::default());
    }
}
