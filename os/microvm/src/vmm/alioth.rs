//! alioth 0.12 by its command line: it has no API, boots at once, and ends when the guest powers off.
//!
//! It wants a terminal as standard input and writes the serial console to standard output. It has no serials
//! for disks (the guest goes by position) and no filter of its own (the jail's is all there is).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{BoxFuture, ConsoleKind, InputKind, Machine, Vmm, VmmError};
use crate::spec::KernelFormat;

/// The guest's context id; see cloud-hypervisor.
const GUEST_CID: u32 = 3;
/// Mandatory on the command line. The guest sets its own MTU from its configuration.
const MTU: u16 = 1500;

/// The stand-in VMM.
#[derive(Debug, Clone)]
pub struct Alioth {
    binary: PathBuf,
}

impl Alioth {
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into() }
    }
}

impl Vmm for Alioth {
    fn name(&self) -> &'static str {
        "alioth"
    }

    fn binary(&self) -> &Path {
        &self.binary
    }

    fn arguments(&self, machine: &Machine) -> Vec<String> {
        let mut arguments = vec!["-l".to_owned(), "warn".to_owned(), "boot".to_owned()];
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        let path = |path: &Path| path.display().to_string();
        let kernel = match machine.kernel_format {
            KernelFormat::Elf => "--pvh",
            KernelFormat::BzImage => "--kernel",
        };
        add(kernel, path(&machine.kernel));
        add("--initramfs", path(&machine.initramfs));
        add("--cmdline", machine.command_line.clone());
        add("--cpu", format!("count={}", machine.vcpus));
        let mut memory = format!("size={},backend=memfd", machine.memory_bytes);
        if !machine.shares.is_empty() {
            memory.push_str(",shared=true");
        }
        add("--memory", memory);
        for disk in &machine.disks {
            let mut value = format!("file,path={}", disk.path.display());
            if disk.readonly {
                value.push_str(",readonly=true");
            }
            add("--blk", value);
        }
        for nic in &machine.nics {
            add("--net", format!("tap,if={},mac={},mtu={MTU}", nic.tap, nic.mac));
        }
        for share in &machine.shares {
            let mut value = String::from("vu");
            // Writing to a String does not fail.
            let _ = write!(value, ",socket={},tag={}", share.socket.display(), share.tag);
            add("--fs", value);
        }
        add("--vsock", format!("uds,cid={GUEST_CID},path={}", machine.vsock.display()));
        arguments.push("--entropy".to_owned());
        arguments
    }

    fn input(&self) -> InputKind {
        InputKind::Terminal
    }

    fn console(&self) -> ConsoleKind {
        ConsoleKind::Output
    }

    fn boot<'a>(
        &'a self,
        _api: &'a Path,
        _machine: &'a Machine,
        _limit: Duration,
    ) -> BoxFuture<'a, Result<(), VmmError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// There is nobody to ask; the guest's own heartbeat has to do.
    fn ping<'a>(&'a self, _api: &'a Path, _limit: Duration) -> BoxFuture<'a, Result<(), VmmError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// It can't be asked; the owner kills it.
    fn power_off<'a>(&'a self, _api: &'a Path, _limit: Duration) -> BoxFuture<'a, Result<(), VmmError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_becomes_its_command_line() {
        let arguments = Alioth::new("/usr/bin/alioth").arguments(&super::super::machine());
        let expected = [
            "-l",
            "warn",
            "boot",
            "--pvh",
            "/kernel",
            "--initramfs",
            "/initramfs",
            "--cmdline",
            "console=ttyS0 dm-mod.create=\"root,,,ro,0 8 verity\"",
            "--cpu",
            "count=2",
            "--memory",
            "size=268435456,backend=memfd,shared=true",
            "--blk",
            "file,path=/disks/root,readonly=true",
            "--blk",
            "file,path=/disks/data",
            "--net",
            "tap,if=tap0,mac=02:00:00:00:00:01,mtu=1500",
            "--fs",
            "vu,socket=/run/fs-shared.sock,tag=shared",
            "--vsock",
            "uds,cid=3,path=/run/vsock.sock",
            "--entropy",
        ];
        assert_eq!(arguments, expected);
    }

    #[test]
    fn a_bzimage_is_booted_as_linux() {
        let mut machine = super::super::machine();
        machine.kernel_format = KernelFormat::BzImage;
        let arguments = Alioth::new("a").arguments(&machine);
        assert!(arguments.windows(2).any(|pair| pair == ["--kernel", "/kernel"]), "{arguments:?}");
    }
}
