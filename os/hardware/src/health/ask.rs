//! The two questions, as the kernel takes them (linux/nvme_ioctl.h, scsi/sg.h). Both only read.

#![allow(unsafe_code, reason = "neither ioctl has a safe wrapper in rustix or nix")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{NVME_LOG_BYTES, SENSE_BYTES};

/// A healthy disk answers in milliseconds, one that spins up in seconds; a boot must not wait longer.
const LIMIT_MS: u32 = 5_000;

/// `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Debug, Default)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    dwords_2_3: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    /// Command dwords 10 to 15.
    dwords_10: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

/// `struct sg_io_hdr`.
#[repr(C)]
#[derive(Debug)]
struct SgHeader {
    interface: i32,
    direction: i32,
    command_bytes: u8,
    sense_bytes: u8,
    segments: u16,
    data_bytes: u32,
    data: *mut u8,
    command: *const u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    pack_id: i32,
    user: *mut u8,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_written: u8,
    host_status: u16,
    driver_status: u16,
    residual: i32,
    duration_ms: u32,
    info: u32,
}

mod request {
    nix::ioctl_readwrite!(nvme_admin, b'N', 0x41, super::NvmeCommand);
    nix::ioctl_readwrite_bad!(sg_io, 0x2285, super::SgHeader);
}

fn open(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(device)
}

/// Log page 02h of the controller.
pub(super) fn nvme_log(device: &Path) -> io::Result<Vec<u8>> {
    const GET_LOG_PAGE: u8 = 0x02;
    const SMART: u32 = 0x02;
    let file = open(device)?;
    let mut page = vec![0_u8; NVME_LOG_BYTES];
    let mut command = NvmeCommand {
        opcode: GET_LOG_PAGE,
        // Of the whole controller.
        namespace: u32::MAX,
        address: page.as_mut_ptr() as u64,
        data_bytes: NVME_LOG_BYTES as u32,
        timeout_ms: LIMIT_MS,
        ..NvmeCommand::default()
    };
    // Number of dwords, counted from zero, above the page's number.
    command.dwords_10[0] = ((NVME_LOG_BYTES as u32 / 4 - 1) << 16) | SMART;
    // SAFETY: the structure has the kernel's layout (72 bytes, asserted below); it names a buffer of exactly the length
    // that it says, which lives until the call returns, and nothing of it is kept by the kernel.
    let status = unsafe { request::nvme_admin(file.as_raw_fd(), &raw mut command) }?;
    match status {
        0 => Ok(page),
        status => Err(io::Error::other(format!("NVMe status {status:#x}"))),
    }
}

/// Sense data with the disk's registers after SMART RETURN STATUS.
pub(super) fn ata_status(device: &Path) -> io::Result<Vec<u8>> {
    const SMART: u8 = 0xb0;
    const RETURN_STATUS: u8 = 0xda;
    /// Non-data (3), shifted to its place.
    const PROTOCOL: u8 = 3 << 1;
    /// CK_COND: the registers are wanted back.
    const CHECK: u8 = 0x20;
    let file = open(device)?;
    let mut command = [0_u8; 16];
    command[..3].copy_from_slice(&[0x85, PROTOCOL, CHECK]);
    command[4] = RETURN_STATUS;
    command[10] = 0x4f;
    command[12] = 0xc2;
    command[14] = SMART;
    let mut sense = vec![0_u8; SENSE_BYTES];
    let mut header = SgHeader {
        interface: i32::from(b'S'),
        // SG_DXFER_NONE.
        direction: -1,
        command_bytes: command.len() as u8,
        sense_bytes: SENSE_BYTES as u8,
        segments: 0,
        data_bytes: 0,
        data: std::ptr::null_mut(),
        command: command.as_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: LIMIT_MS,
        flags: 0,
        pack_id: 0,
        user: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_written: 0,
        host_status: 0,
        driver_status: 0,
        residual: 0,
        duration_ms: 0,
        info: 0,
    };
    // SAFETY: the structure has the kernel's layout (88 bytes, asserted below); command and sense buffer have exactly the
    // lengths that it says and live until the call returns, and there is no data buffer.
    unsafe { request::sg_io(file.as_raw_fd(), &raw mut header) }?;
    if header.host_status != 0 {
        return Err(io::Error::other(format!(
            "the controller gives up (host status {:#x})",
            header.host_status
        )));
    }
    sense.truncate(usize::from(header.sense_written));
    Ok(sense)
}

const _: () = assert!(size_of::<NvmeCommand>() == 72 && size_of::<SgHeader>() == 88);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_answers_with_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(nvme_log(file.path()).is_err());
        assert!(ata_status(file.path()).is_err());
        assert_eq!(nvme_log(Path::new("/nonexistent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
