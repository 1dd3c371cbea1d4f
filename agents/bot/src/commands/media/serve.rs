//! `croft media serve`: boots a rack over the network from one folder.
//!
//! ```text
//!   machine ─DISCOVER─> dhcp (67, 4011): boot file ─> tftp (69) | http ─> files of the folder
//!                         └──────────┬───────────────────┴─ who asked for what ─> one line each
//! ```
//! The DHCP server that gives addresses goes on as it is: this one only adds the boot file for machines that say that
//! they boot from the network. What is answered is decided in `croft_media::serve`; here are sockets, limits and words.
//! It must never serve on more than the one interface that was meant.

mod tasks;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use croft_media::serve::dhcp::{Offers, PROXY_PORT, SERVER_PORT};
use croft_media::serve::folder::{Folder, FolderError};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use serde::Serialize;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use super::super::Context;
use crate::exit::Failure;
use crate::flags::MediaServeFlags;
use crate::grid::now_ms;
use crate::terminal::{printable, push, show_time};

const TFTP_PORT: u16 = 69;
/// Connections that wait to be taken, as tokio has it.
const BACKLOG: i32 = 1_024;
/// Events that wait to be shown; more are left out, never waited for.
const EVENTS: usize = 256;
/// The same of the same machine is said again after this long, so that a rack is readable.
const QUIET_MS: u64 = 60_000;
/// Lines that are remembered for that.
const REMEMBERED: usize = 4_096;

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("the network interfaces of this machine can't be listed")]
    Interfaces(#[source] io::Error),
    #[error(
        "there is no interface '{name}' that is up with an IPv4 address: there is {there}; give it one, or choose another with --interface"
    )]
    NoAddress { name: String, there: String },
    #[error("no interface has an IPv4 address: connect this machine to the rack, and give it one")]
    NoInterface,
    #[error("several interfaces have addresses: choose the rack's with --interface, out of {there}")]
    SeveralInterfaces { there: String },
    #[error("{protocol} port {port} can't be opened: run this as root, for instance through sudo")]
    NotRoot { protocol: &'static str, port: u16 },
    #[error("{protocol} port {port} is in use on this machine: stop {other}, or serve from another machine")]
    InUse { protocol: &'static str, port: u16, other: &'static str },
    #[error("{protocol} port {port} can't be opened")]
    Open { protocol: &'static str, port: u16, source: io::Error },
}

/// What a machine did, for whoever watches.
#[derive(Debug, Serialize)]
struct Happening {
    time_ms: u64,
    event: &'static str,
    /// Hardware address, or IP address once it has one.
    machine: String,
    by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct Serving {
    time_ms: u64,
    event: &'static str,
    folder: PathBuf,
    interface: String,
    address: Ipv4Addr,
    http_port: Option<u16>,
    bios: bool,
}

/// An interface that machines could be reached on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interface {
    name: String,
    address: Ipv4Addr,
}

/// Serves until a signal.
pub(crate) async fn serve(c: &mut Context<'_>, flags: &MediaServeFlags) -> Result<(), Failure> {
    let folder = Folder::open(&flags.folder).map_err(|error| Failure::not_found(ServeError::from(error)))?;
    let there = interfaces().map_err(|error| Failure::failed(ServeError::Interfaces(error)))?;
    let interface = choose(&there, flags.interface.as_deref()).map_err(Failure::usage)?;
    let http_port = (!flags.no_http).then_some(flags.http_port);
    let offers = Offers { address: interface.address, http_port, has_undionly: folder.has_undionly() };
    let folder = Arc::new(folder);
    let (events, mut happened) = mpsc::channel::<Happening>(EVENTS);

    let udp = |port, opened: io::Result<UdpSocket>| {
        opened.map_err(|error| Failure::failed(open_error("UDP", port, error)))
    };
    let server = udp(SERVER_PORT, interface.dhcp_socket(SERVER_PORT))?;
    let proxy = udp(PROXY_PORT, interface.dhcp_socket(PROXY_PORT))?;
    let tftp = udp(TFTP_PORT, interface.udp_socket(TFTP_PORT))?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(tasks::dhcp(server, SERVER_PORT, offers, events.clone()));
    tasks.spawn(tasks::dhcp(proxy, PROXY_PORT, offers, events.clone()));
    tasks.spawn(tasks::tftp(tftp, interface.clone(), folder.clone(), events.clone()));
    if let Some(port) = http_port {
        let opened = interface.tcp_listener(port);
        let listener = opened.map_err(|error| Failure::failed(open_error("TCP", port, error)))?;
        tasks.spawn(tasks::http(listener, folder, events));
    }

    let serving = Serving {
        time_ms: now_ms(),
        event: "serving",
        folder: std::path::absolute(&flags.folder).unwrap_or_else(|_| flags.folder.clone()),
        interface: interface.name,
        address: interface.address,
        http_port,
        bios: offers.has_undionly,
    };
    c.terminal.item(&serving, Serving::line)?;
    let mut said = Said::default();
    loop {
        tokio::select! {
            () = c.stop.wait() => return Ok(()),
            Some(event) = happened.recv() => {
                if said.is_new(&event) {
                    c.terminal.item(&event, Happening::line)?;
                }
            }
        }
    }
}

impl Serving {
    fn line(&self) -> String {
        let http = self.http_port.map_or(String::new(), |port| format!(" by HTTP on port {port} and"));
        let bios = if self.bios {
            ""
        } else {
            "; BIOS machines without iPXE of their own need the package ipxe on this one"
        };
        format!(
            "{}  serves {} on {} ({}){http} by TFTP; addresses come from the DHCP server that is there{bios}",
            show_time(self.time_ms),
            self.folder.display(),
            self.interface,
            self.address,
        )
    }
}

impl Happening {
    fn line(&self) -> String {
        let mut text =
            format!("{}  {}  {} by {}", show_time(self.time_ms), self.machine, self.event, self.by);
        if let Some(file) = &self.file {
            push!(text, ": {}", printable(file));
        }
        if let Some(bytes) = self.bytes {
            push!(text, " ({})", croft_protocol::units::show_bytes(bytes));
        }
        if let Some(reason) = &self.reason {
            push!(text, ": {}", printable(reason));
        }
        text
    }
}

/// Which lines were said a moment ago. Anybody can make machines up, so it forgets rather than grows.
#[derive(Default)]
struct Said(BTreeMap<(String, &'static str, &'static str, Option<String>), u64>);

impl Said {
    fn is_new(&mut self, event: &Happening) -> bool {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        let key = (event.machine.clone(), event.event, event.by, event.file.clone());
        let before = self.0.insert(key, event.time_ms);
        before.is_none_or(|before| event.time_ms.saturating_sub(before) >= QUIET_MS)
    }
}

/// Interfaces that are up and have an IPv4 address, the first of each.
fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in getifaddrs()? {
        let Some(address) = entry.address.as_ref().and_then(|address| address.as_sockaddr_in()) else {
            continue;
        };
        let is_usable = entry.flags.contains(InterfaceFlags::IFF_UP)
            && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        if is_usable && !found.iter().any(|known| known.name == entry.interface_name) {
            found.push(Interface { name: entry.interface_name, address: address.ip() });
        }
    }
    Ok(found)
}

/// The interface that was named, or the only one.
fn choose(there: &[Interface], wanted: Option<&str>) -> Result<Interface, ServeError> {
    let listed = || {
        let listed: Vec<String> = there.iter().map(|i| format!("{} ({})", i.name, i.address)).collect();
        if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
    };
    match (wanted, there) {
        (Some(name), _) => there
            .iter()
            .find(|interface| interface.name == name)
            .cloned()
            .ok_or_else(|| ServeError::NoAddress { name: printable(name), there: listed() }),
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(ServeError::NoInterface),
        (None, _) => Err(ServeError::SeveralInterfaces { there: listed() }),
    }
}

impl Interface {
    /// A socket that speaks on this interface alone. Its address is not enough: Linux takes what is sent to it on any other
    /// interface as well.
    fn socket(&self, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, kind.nonblocking().cloexec(), None)?;
        socket.bind_device(Some(self.name.as_bytes()))?;
        Ok(socket)
    }

    /// Hears what is broadcast, too.
    fn dhcp_socket(&self, port: u16) -> io::Result<UdpSocket> {
        let socket = self.socket(Type::DGRAM)?;
        socket.set_broadcast(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        UdpSocket::from_std(socket.into())
    }

    /// Port 0 is any that is free.
    fn udp_socket(&self, port: u16) -> io::Result<UdpSocket> {
        let socket = self.socket(Type::DGRAM)?;
        socket.bind(&SocketAddr::from((self.address, port)).into())?;
        UdpSocket::from_std(socket.into())
    }

    fn tcp_listener(&self, port: u16) -> io::Result<TcpListener> {
        let socket = self.socket(Type::STREAM)?;
        // Connections of the server before this one don't keep the port.
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((self.address, port)).into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }
}

fn open_error(protocol: &'static str, port: u16, source: io::Error) -> ServeError {
    let other = match port {
        SERVER_PORT | PROXY_PORT => "the DHCP server or other netboot server",
        TFTP_PORT => "the other TFTP server",
        _ => "the other server, choose another port with --http-port",
    };
    match source.kind() {
        io::ErrorKind::PermissionDenied => ServeError::NotRoot { protocol, port },
        io::ErrorKind::AddrInUse => ServeError::InUse { protocol, port, other },
        _ => ServeError::Open { protocol, port, source },
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    fn interface(name: &str, last: u8) -> Interface {
        Interface { name: name.to_owned(), address: Ipv4Addr::new(192, 0, 2, last) }
    }

    #[test]
    fn the_interface_is_named_or_the_only_one() {
        let two = [interface("eth0", 1), interface("eth1", 2)];
        assert_eq!(choose(&two, Some("eth1")).unwrap(), two[1]);
        assert_eq!(choose(&two[..1], None).unwrap(), two[0]);
        let words = |there: &[Interface], wanted| choose(there, wanted).unwrap_err().to_string();
        assert_eq!(
            words(&two, None),
            "several interfaces have addresses: choose the rack's with --interface, out of eth0 (192.0.2.1), eth1 (192.0.2.2)"
        );
        assert_eq!(
            words(&two[..1], Some("eth7")),
            "there is no interface 'eth7' that is up with an IPv4 address: there is eth0 (192.0.2.1); give it one, or choose another with --interface"
        );
        assert!(words(&[], None).starts_with("no interface has an IPv4 address"));
    }

    #[tokio::test]
    async fn every_socket_is_on_the_one_interface() {
        let lo = Interface { name: "lo".to_owned(), address: Ipv4Addr::LOCALHOST };
        let (dhcp, udp, tcp) =
            (lo.dhcp_socket(0).unwrap(), lo.udp_socket(0).unwrap(), lo.tcp_listener(0).unwrap());
        for socket in [SockRef::from(&dhcp), SockRef::from(&udp), SockRef::from(&tcp)] {
            assert_eq!(socket.device().unwrap().as_deref(), Some(&b"lo"[..]));
        }
        assert!(udp.local_addr().unwrap().ip().is_loopback() && tcp.local_addr().unwrap().ip().is_loopback());
    }

    #[test]
    fn a_port_that_can_not_be_opened_says_what_to_do() {
        let words = |port, kind| open_error("UDP", port, io::Error::from(kind)).to_string();
        assert_eq!(
            words(67, io::ErrorKind::AddrInUse),
            "UDP port 67 is in use on this machine: stop the DHCP server or other netboot server, or serve from another machine"
        );
        assert_eq!(
            words(69, io::ErrorKind::PermissionDenied),
            "UDP port 69 can't be opened: run this as root, for instance through sudo"
        );
        assert!(words(8080, io::ErrorKind::AddrInUse).contains("choose another port with --http-port"));
    }

    #[test]
    fn the_same_of_the_same_machine_is_said_once_a_minute() {
        let event = |time_ms, machine: &str| Happening {
            time_ms,
            event: "asks",
            machine: machine.to_owned(),
            by: "UEFI HTTP",
            file: Some("http://192.0.2.1:8080/croft.efi".to_owned()),
            bytes: None,
            reason: None,
        };
        let mut said = Said::default();
        assert!(said.is_new(&event(0, "02:00:00:00:00:01")));
        assert!(!said.is_new(&event(4_000, "02:00:00:00:00:01")));
        assert!(said.is_new(&event(4_000, "02:00:00:00:00:02")));
        assert!(said.is_new(&event(64_000, "02:00:00:00:00:01")));
        let line = event(0, "02:00:00:00:00:01").line();
        assert!(
            line.ends_with("  02:00:00:00:00:01  asks by UEFI HTTP: http://192.0.2.1:8080/croft.efi"),
            "{line}"
        );
    }
}
