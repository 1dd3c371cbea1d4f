//! What a stranger on the network could speak to: sockets of this machine that wait for someone, as the kernel lists
//! them. A node has none; ports that workloads publish are passed on by the firewall, without a socket.
//!
//! Covers the calling thread's network namespace. Must never call a machine closed when a list can't be read.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// More is no node's; also ends the reading of a list that grows meanwhile.
const LIST_BYTES_MAX: u64 = 4 << 20;
/// Where the kernel lists this thread's sockets.
const FOLDER: &str = "proc/thread-self/net";
/// `TCP_LISTEN` of the kernel's `tcp_states.h`, as the lists show it.
const LISTENING: &str = "0A";
/// First port that the kernel gives to sockets which did not ask for one (`ip_local_port_range`). Datagram sockets have no
/// state "listening": one below was put there by a service, one above belongs to a client.
const EPHEMERAL_FIRST: u16 = 32_768;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// One socket that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub protocol: Protocol,
    pub address: SocketAddr,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(f, "{protocol} {}", self.address)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ListenersError {
    #[error("{path} can't be read, so nobody knows what listens")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}:{line} is no socket of the form that the kernel lists")]
    Malformed { path: PathBuf, line: usize },
}

/// Every socket that waits for a stranger, in order. `root` is `/` but in tests. A kernel without IPv6 has two lists less.
///
/// # Errors
/// When a list can't be read or understood.
pub fn listeners(root: &Path) -> Result<Vec<Listener>, ListenersError> {
    let lists =
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)];
    let mut found = Vec::new();
    for (name, protocol) in lists {
        let path = root.join(FOLDER).join(name);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(LIST_BYTES_MAX).read_to_string(&mut text)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with('6') => continue,
            Err(source) => return Err(ListenersError::Read { path, source }),
            Ok(_) => {}
        }
        for (index, line) in text.lines().enumerate().skip(1) {
            let malformed = || ListenersError::Malformed { path: path.clone(), line: index + 1 };
            let (address, remote, state) = socket(line).ok_or_else(malformed)?;
            let waits = match protocol {
                Protocol::Tcp => state == LISTENING,
                Protocol::Udp => remote.port() == 0 && address.port() < EPHEMERAL_FIRST,
            };
            if waits {
                found.push(Listener { protocol, address });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `  0: 0100007F:1F90 00000000:0000 0A …`: own address, the other's, state.
fn socket(line: &str) -> Option<(SocketAddr, SocketAddr, &str)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    Some((address(words.next()?)?, address(words.next()?)?, words.next()?))
}

/// Words of 32 bits as the processor (x86-64) has them in memory, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_le_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::CloneFlags;
    use std::net::{TcpListener, UdpSocket};

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue\n";

    fn machine(lists: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(FOLDER);
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["tcp", "udp"] {
            std::fs::write(folder.join(name), HEAD).unwrap();
        }
        for (name, lines) in lists {
            std::fs::write(folder.join(name), format!("{HEAD}{lines}")).unwrap();
        }
        root
    }

    #[test]
    fn what_listens_is_found_and_connections_are_not() {
        let root = machine(&[
            ("tcp", "   0: 0100007F:1F90 00000000:0000 0A 0:0\n   1: 0F02000A:D431 0202000A:01BB 01 0:0\n"),
            (
                "tcp6",
                "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0\n",
            ),
            ("udp", "   0: 00000000:0045 00000000:0000 07 0:0\n   1: 00000000:C350 00000000:0000 07 0:0\n"),
        ]);
        let found: Vec<String> = listeners(root.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["TCP 127.0.0.1:8080", "TCP [::]:22", "UDP 0.0.0.0:69"]);
    }

    #[test]
    fn a_list_that_can_not_be_read_or_understood_is_no_empty_list() {
        let root = tempfile::tempdir().unwrap();
        let text = listeners(root.path()).unwrap_err().to_string();
        assert!(text.ends_with("net/tcp can't be read, so nobody knows what listens"), "{text}");
        for bad in ["x", "0: 0100007F:1F90", "0: 0100007:1F90 00000000:0000 0A", "0: 0100007F:1F90 é 0A"] {
            let root = machine(&[("tcp", bad)]);
            let text = listeners(root.path()).unwrap_err().to_string();
            assert!(
                text.ends_with("net/tcp:2 is no socket of the form that the kernel lists"),
                "{bad}: {text}"
            );
        }
    }

    /// In a namespace of its own, where nothing listens but what this test opens.
    #[test]
    fn real_sockets_are_seen_from_the_moment_they_listen() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not root: no namespace to look at");
            return;
        }
        let look = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let root = Path::new("/");
            assert_eq!(listeners(root).unwrap(), []);
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(listeners(root).unwrap(), [], "a client's socket at {client:?} waits for nobody");
            let tcp = TcpListener::bind("0.0.0.0:7000").unwrap();
            let udp = UdpSocket::bind("0.0.0.0:7001").unwrap();
            let found: Vec<String> = listeners(root).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(found, ["TCP 0.0.0.0:7000", "UDP 0.0.0.0:7001"]);
            drop((tcp, udp));
            assert_eq!(listeners(root).unwrap(), []);
        };
        std::thread::spawn(look).join().unwrap();
    }
}
