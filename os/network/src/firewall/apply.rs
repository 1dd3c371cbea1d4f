//! Hands a batch to the kernel and reads its verdict. The call is short and local: the kernel has done all of it when
//! `send` returns.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use thiserror::Error;

use crate::firewall::encode::{Batch, delete_table, replace_table};
use crate::firewall::{Ruleset, TABLE};

/// Room in the socket beyond the batch itself: the kernel accounts for its own bookkeeping.
const SEND_BUFFER_SLACK_BYTES: usize = 1 << 20;
/// One answer quotes the header of the message that it answers, and little else.
const ANSWER_BYTES: usize = 64 * 1024;
/// `NLMSG_ERROR`: an error, or with number 0 the asked-for confirmation.
const NLMSG_ERROR: u16 = 2;
/// The kernel asks for a repetition when another change came between.
const ATTEMPTS: u32 = 5;

#[derive(Debug, Error)]
pub enum ApplyError {
    #[error("can't open a netfilter socket: the kernel needs NF_TABLES")]
    Open(#[source] io::Error),
    #[error("can't send the ruleset of {len} bytes to the kernel")]
    Send { len: usize, source: io::Error },
    #[error(
        "the kernel refuses {what} of table {TABLE}: a NFT_* option may be missing; the table before stays in force"
    )]
    Refused { what: String, source: io::Error },
    #[error("the kernel did not confirm the ruleset")]
    NoAnswer(#[source] io::Error),
}

/// Replaces the whole table in one transaction, for the network namespace of the calling thread. After an error the
/// former table is in force, unchanged.
pub fn apply(ruleset: &Ruleset) -> Result<(), ApplyError> {
    commit(&replace_table(TABLE, &ruleset.chains()))
}

/// Removes the table. A node that runs never wants this; tests and diagnosis do.
pub fn remove() -> Result<(), ApplyError> {
    commit(&delete_table(TABLE))
}

fn commit(batch: &Batch) -> Result<(), ApplyError> {
    let socket = open(batch.bytes.len()).map_err(|errno| ApplyError::Open(errno.into()))?;
    for attempt in 1.. {
        match exchange(&socket, batch) {
            Err(ApplyError::Refused { source, .. })
                if attempt < ATTEMPTS
                    && matches!(source.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
            result => return result,
        }
    }
    unreachable!("the last attempt returns")
}

fn open(len: usize) -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // A batch goes in one piece. Forced past the system's limit where we may; else the usual size must do.
    let bytes = len + SEND_BUFFER_SLACK_BYTES;
    if setsockopt(&socket, sockopt::SndBufForce, &bytes).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &bytes)?;
    }
    Ok(socket)
}

fn exchange(socket: &OwnedFd, batch: &Batch) -> Result<(), ApplyError> {
    let len = batch.bytes.len();
    sendto(socket.as_raw_fd(), &batch.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())
        .map_err(|errno| ApplyError::Send { len, source: errno.into() })?;
    let mut buffer = vec![0; ANSWER_BYTES];
    let mut confirmed = false;
    let mut refused = None;
    // All answers are in the queue already: an empty queue is the end.
    loop {
        let received = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) if confirmed || refused.is_some() => break,
            Err(errno) => return Err(ApplyError::NoAnswer(errno.into())),
        };
        for (sequence, number) in answers(&buffer[..received]) {
            if number == 0 {
                confirmed |= sequence == batch.last_sequence();
            } else if refused.is_none() {
                let what =
                    batch.what.get(sequence as usize).cloned().unwrap_or_else(|| "the batch".to_owned());
                refused = Some(ApplyError::Refused { what, source: io::Error::from_raw_os_error(number) });
            }
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Sequence number and error number of each answer in a datagram.
fn answers(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        if len < 16 || len > bytes.len() {
            break;
        }
        if let (NLMSG_ERROR, Some(number)) = (kind, bytes.get(16..20)) {
            let number = i32::from_ne_bytes([number[0], number[1], number[2], number[3]]);
            found.push((sequence, number.saturating_neg()));
        }
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_until_the_first_broken_one() {
        let mut bytes = Vec::new();
        for (sequence, number) in [(3u32, 0i32), (5, -2)] {
            bytes.extend(36u32.to_ne_bytes());
            bytes.extend(NLMSG_ERROR.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(number.to_ne_bytes());
            bytes.extend([0; 16]);
        }
        assert_eq!(answers(&bytes), [(3, 0), (5, 2)]);
        assert_eq!(answers(&bytes[..50]), [(3, 0)]);
        assert_eq!(answers(&[0; 40]), []);
        assert_eq!(answers(&[]), []);
    }
}
