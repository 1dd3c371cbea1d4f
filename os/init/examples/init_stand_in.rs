//! A stand-in for `/usr/bin/node`, to boot `init` by itself in an emulator: speaks to init as node does, then does
//! what the kernel command line asks for.
//!
//! `node.do=idle` (the default), `crash`, `hang`, `poweroff`, `reboot`, `orphans`, `mount`, `pivot`: see `main`. It must never
//! be part of an image that is released.

use croft_init::log::Kmsg;
use croft_init::notify::{Message, Notifier};
use croft_init::stage::Stage;
use std::process::Command;
use std::time::Duration;

fn main() {
    match std::env::var("CROFT_STAND_IN").as_deref() {
        Ok("parent") => {
            // Not waited for on purpose.
            let _ = Command::new("/proc/self/exe").env("CROFT_STAND_IN", "child").spawn();
            return;
        }
        Ok(_) => return,
        Err(_) => {}
    }
    let log = Kmsg::open();
    let notifier = Notifier::from_env().expect("init hands over a socket").expect("started by init");
    let ask = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let ask =
        ask.split_whitespace().find_map(|word| word.strip_prefix("node.do=")).unwrap_or("idle").to_owned();
    let root = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    println!("stand-in: does {ask:?}, {} mounts, root {:?}", root.lines().count(), root.lines().last());
    let oom = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let blocked = status.lines().find(|line| line.starts_with("SigBlk")).unwrap_or_default();
    println!("stand-in: {blocked}");
    println!("stand-in: oom score {}, {files}", oom.trim());
    let _ = Stage::Network.begin(&log).ok("stand-in");
    notifier.send(&Message::Alive).expect("init listens");
    match ask.as_str() {
        "crash" => panic!("the stand-in was asked to crash"),
        "hang" => loop {
            std::thread::park();
        },
        "poweroff" => {
            notifier.send(&Message::Poweroff("the stand-in was asked to".into())).expect("init listens");
        }
        "reboot" => {
            notifier.send(&Message::Reboot("the stand-in was asked to".into())).expect("init listens");
        }
        "orphans" => {
            // Each child leaves a grandchild behind, which only PID 1 can reap.
            for _ in 0..200 {
                let mut child =
                    Command::new("/proc/self/exe").env("CROFT_STAND_IN", "parent").spawn().expect("spawn");
                let _ = child.wait();
            }
            println!("stand-in: made 200 orphans");
        }
        "mount" => {
            let mounted = rustix::mount::mount(
                "/dev/vda",
                "/data",
                "ext4",
                rustix::mount::MountFlags::NOSUID,
                None::<&std::ffi::CStr>,
            );
            std::fs::write("/data/written-before-the-end", "safe").expect("write");
            println!("stand-in: /data is {mounted:?}");
            notifier.send(&Message::Poweroff("the stand-in has written".into())).expect("init listens");
        }
        "pivot" => {
            println!("stand-in: a jail can be pivoted: {:?}", pivot());
            notifier.send(&Message::Poweroff("the stand-in was asked to".into())).expect("init listens");
        }
        _ => {}
    }
    notifier.send(&Message::Ready).expect("init listens");
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if notifier.send(&Message::Alive).is_err() {
            return;
        }
        if ask == "orphans" {
            let zombies = std::fs::read_dir("/proc")
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| {
                    std::fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| stat.contains(") Z "))
                })
                .count();
            println!("stand-in: {zombies} zombies");
            let _ = notifier.send(&Message::Poweroff("the orphans are counted".into()));
        }
    }
}

/// As a jail does it: a namespace of its own, a new root, the old one gone.
fn pivot() -> rustix::io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    #[allow(unsafe_code, reason = "rustix marks every unshare as unsafe because of CLONE_FILES")]
    // SAFETY: only the mount namespace is unshared; no descriptor table is touched.
    unsafe {
        rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)?;
    }
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)?;
    rustix::mount::mount("jail", "/tmp", "tmpfs", MountFlags::NODEV, None::<&std::ffi::CStr>)?;
    rustix::process::chdir("/tmp")?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
}
