//! Tap devices: the host's end of a guest's network card (Documentation/networking/tuntap.rst).
//!
//! A tap belongs to the namespace in which `/dev/net/tun` was opened; callers are inside it already.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use thiserror::Error;

const DEVICE: &str = "/dev/net/tun";

/// Whoever may open the tap without privilege: the VMM's user and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Error)]
pub enum TapError {
    #[error("can't open {DEVICE}: the kernel lacks TUN, or the device file is missing")]
    Open(#[source] io::Error),
    #[error("can't attach to tap {name}: it is in use by another process, or it isn't ours")]
    Attach { name: String, source: io::Error },
    #[error("can't give tap {name} to user {uid} and group {gid}")]
    Own { name: String, uid: u32, gid: u32, source: io::Error },
}

#[allow(unsafe_code, reason = "the tun ioctls have no safe wrapper in rustix or nix")]
mod ioctl {
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(set_persist, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));
    nix::ioctl_write_int_bad!(set_owner, nix::request_code_write!(b'T', 204, size_of::<libc::c_int>()));
    nix::ioctl_write_int_bad!(set_group, nix::request_code_write!(b'T', 206, size_of::<libc::c_int>()));
}

/// Attaches to tap `name` of the thread's namespace, and creates it where there is none. Frames carry the virtio
/// header and no packet information, as both VMMs want it.
#[allow(unsafe_code, reason = "the tun ioctls have no safe wrapper in rustix or nix")]
pub(crate) fn open(name: &str) -> Result<OwnedFd, TapError> {
    let file: File = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(TapError::Open)?;
    // SAFETY: all bits zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    debug_assert!(name.len() < request.ifr_name.len());
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and `request` outlives the call.
    unsafe { ioctl::set_interface(file.as_raw_fd(), &raw const request) }
        .map_err(|errno| TapError::Attach { name: name.to_owned(), source: errno.into() })?;
    Ok(file.into())
}

/// Makes sure that tap `name` exists, outlives its users, and can be opened by `owner`.
#[allow(unsafe_code, reason = "the tun ioctls have no safe wrapper in rustix or nix")]
pub(crate) fn ensure(name: &str, owner: Owner) -> Result<(), TapError> {
    let tap = match open(name) {
        // A VMM holds it: it was made whole before that one started.
        Err(TapError::Attach { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
        tap => tap?,
    };
    let Owner { uid, gid } = owner;
    let failed = |errno: nix::Error| TapError::Own { name: name.to_owned(), uid, gid, source: errno.into() };
    // SAFETY: the descriptor is open; these calls take plain numbers.
    unsafe {
        ioctl::set_owner(tap.as_raw_fd(), uid as libc::c_int).map_err(failed)?;
        ioctl::set_group(tap.as_raw_fd(), gid as libc::c_int).map_err(failed)?;
        ioctl::set_persist(tap.as_raw_fd(), 1).map_err(failed)?;
    }
    Ok(())
}
