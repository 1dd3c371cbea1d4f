//! What a virtual machine monitor is to the owner of a VM: a program with a command line, something on its
//! standard input, and a way to boot, ask and end it.
//!
//! Two drivers: [`CloudHypervisor`] over its REST socket, and [`Alioth`], whose command line is all it has.

mod alioth;
pub(crate) mod api;
mod cloud_hypervisor;

use std::fmt::Debug;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

pub use alioth::Alioth;
pub use api::ApiError;
pub use cloud_hypervisor::CloudHypervisor;

use crate::spec::KernelFormat;

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A VM as the VMM sees it; all paths are those inside its jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub vcpus: u8,
    pub memory_bytes: u64,
    pub kernel: PathBuf,
    pub kernel_format: KernelFormat,
    pub initramfs: PathBuf,
    pub command_line: String,
    /// The root image comes first.
    pub disks: Vec<MachineDisk>,
    pub shares: Vec<MachineShare>,
    pub nics: Vec<MachineNic>,
    /// Unix socket of the vsock device; the host listens on `<vsock>_1024`.
    pub vsock: PathBuf,
    /// Where the serial console goes, for VMMs with [`ConsoleKind::Pipe`].
    pub console: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDisk {
    pub path: PathBuf,
    pub serial: String,
    pub readonly: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineShare {
    pub tag: String,
    /// vhost-user socket of its virtiofsd.
    pub socket: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineNic {
    pub tap: String,
    pub mac: String,
}

/// What the VMM gets as standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// A listening Unix socket for its API: it can be dialled before the VMM is ready, and there is no race
    /// for a path.
    ApiSocket,
    /// A terminal.
    Terminal,
}

/// Where the guest's serial console comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleKind {
    /// A named pipe that the VMM opens as a file.
    Pipe,
    /// The VMM's standard output.
    Output,
}

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("{vmm} refused to {what}")]
    Refused { vmm: &'static str, what: &'static str, source: ApiError },
    #[error("{vmm} did not {what} within {} s", limit.as_secs())]
    Timeout { vmm: &'static str, what: &'static str, limit: Duration },
}

/// A kind of VMM.
pub trait Vmm: Debug + Send + Sync + 'static {
    /// For messages.
    fn name(&self) -> &'static str;
    /// The program on the host; statically linked, since a jail holds no libraries.
    fn binary(&self) -> &Path;
    /// Its arguments.
    fn arguments(&self, machine: &Machine) -> Vec<String>;
    fn input(&self) -> InputKind;
    fn console(&self) -> ConsoleKind;
    /// Creates and boots the machine in the VMM that listens on `api`.
    fn boot<'a>(
        &'a self,
        api: &'a Path,
        machine: &'a Machine,
        limit: Duration,
    ) -> BoxFuture<'a, Result<(), VmmError>>;
    /// Asks whether the VMM still works.
    fn ping<'a>(&'a self, api: &'a Path, limit: Duration) -> BoxFuture<'a, Result<(), VmmError>>;
    /// Ends the machine and the VMM in an orderly way; flushes disks.
    fn power_off<'a>(&'a self, api: &'a Path, limit: Duration) -> BoxFuture<'a, Result<(), VmmError>>;
}

#[cfg(test)]
pub(crate) fn machine() -> Machine {
    Machine {
        vcpus: 2,
        memory_bytes: 256 << 20,
        kernel: "/kernel".into(),
        kernel_format: KernelFormat::Elf,
        initramfs: "/initramfs".into(),
        command_line: "console=ttyS0 dm-mod.create=\"root,,,ro,0 8 verity\"".into(),
        disks: vec![
            MachineDisk { path: "/disks/root".into(), serial: "root".into(), readonly: true },
            MachineDisk { path: "/disks/data".into(), serial: "data".into(), readonly: false },
        ],
        shares: vec![MachineShare { tag: "shared".into(), socket: "/run/fs-shared.sock".into() }],
        nics: vec![MachineNic { tap: "tap0".into(), mac: "02:00:00:00:00:01".into() }],
        vsock: "/run/vsock.sock".into(),
        console: "/run/console".into(),
    }
}
