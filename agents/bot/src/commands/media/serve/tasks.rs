//! The three servers: sockets around what `croft_media::serve` decides.
//!
//! Strangers speak to them, so sessions, connections, waiting and reading are bounded. They must never wait for whoever
//! reads the events.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_media::serve::dhcp::{Asked, Ignored, Mac, Offers};
use croft_media::serve::folder::{Folder, Served};
use croft_media::serve::http::{Answer, HEAD_BYTES, Request};
use croft_media::serve::tftp::{Next, ReadRequest, Refusal, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Happening, Interface};
use crate::grid::now_ms;

/// Machines of a rack that load at the same time; further ones wait, or ask again.
const AT_ONCE: usize = 64;
/// Of these for one address, or one host keeps the rack from booting.
const SESSIONS_PER_ADDRESS: usize = 4;
const CONNECTIONS_PER_ADDRESS: usize = 8;
/// Longest datagram that is looked at.
const DATAGRAM_BYTES: usize = 2_048;
/// TFTP: what was sent last is sent again after this, and so often.
const RETRY: Duration = Duration::from_secs(1);
const TRIES: u32 = 6;
/// One file, however slow the machine.
const SESSION_LIMIT: Duration = Duration::from_secs(15 * 60);
/// HTTP: a machine that asks for nothing, or takes nothing, for so long is hung up on.
const IDLE: Duration = Duration::from_secs(30);
const REQUESTS_PER_CONNECTION: usize = 1_000;
const CHUNK_BYTES: usize = 64 * 1024;
/// After an error of the socket itself, which may come at once again.
const PAUSE: Duration = Duration::from_millis(100);

fn tell(events: &mpsc::Sender<Happening>, event: Happening) {
    // Whoever watches is slower than a rack at times; the machines come first.
    let _ = events.try_send(event);
}

fn event(event: &'static str, machine: String, by: &'static str) -> Happening {
    Happening { time_ms: now_ms(), event, machine, by, file: None, bytes: None, reason: None }
}

/// Who is served now.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<BTreeSet<SocketAddr>>>);

/// One machine's place, until it is dropped.
struct Place {
    of: SocketAddr,
    places: Places,
}

impl Places {
    /// `None` when all are taken, when this address has `most`, or this very socket has one.
    fn take(&self, of: SocketAddr, most: usize) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = taken.iter().filter(|other| other.ip() == of.ip()).count();
        let is_free = taken.len() < AT_ONCE && of_address < most && taken.insert(of);
        is_free.then(|| Place { of, places: self.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.of);
    }
}

/// Answers machines that boot; one datagram, one answer, no state.
pub(super) async fn dhcp(socket: UdpSocket, port: u16, offers: Offers, events: mpsc::Sender<Happening>) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok((len, SocketAddr::V4(from))) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let answered = Asked::read(&buffer[..len], port).and_then(|asked| {
            let answer = offers.answer(&asked, from)?;
            Ok((asked, answer))
        });
        match answered {
            Ok((asked, answer)) => {
                let mut said = event("asks", Mac(asked.mac).to_string(), asked.client.words());
                said.file = Some(answer.boot_file);
                // Lost on the way is lost: firmware asks again.
                if let Err(error) = socket.send_to(&answer.bytes, answer.to).await {
                    said.reason = Some(format!("the answer can't be sent: {error}"));
                }
                tell(&events, said);
            }
            Err(ignored @ (Ignored::Architecture { machine, .. } | Ignored::Lacks { machine, .. })) => {
                let mut said = event("is not served", machine.to_string(), "DHCP");
                said.reason = Some(ignored.to_string());
                tell(&events, said);
            }
            Err(_) => {}
        }
    }
}

/// Opens a session for each read request; a machine that repeats one has its session already.
pub(super) async fn tftp(
    socket: UdpSocket,
    interface: Interface,
    folder: Arc<Folder>,
    events: mpsc::Sender<Happening>,
) {
    let sessions = Places::default();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let opened = ReadRequest::read(&buffer[..len]).and_then(|request| {
            let served = folder.file(&request.name).map_err(|_| Refusal::NotFound);
            served.map(|served| (request, served))
        });
        let (request, served) = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                if let Some(packet) = refusal.packet() {
                    let _ = socket.send_to(&packet, from).await;
                }
                continue;
            }
        };
        // A machine beyond the limit hears nothing and asks again.
        let Some(place) = sessions.take(from, SESSIONS_PER_ADDRESS) else { continue };
        let (interface, events) = (interface.clone(), events.clone());
        tokio::spawn(async move {
            let session = Session::new(&request, served.bytes);
            let sent = timeout(SESSION_LIMIT, send(&interface, from, session, &served)).await;
            drop(place);
            let mut said = event("took", from.ip().to_string(), "TFTP");
            said.bytes = Some(served.bytes);
            said.file = Some(served.name);
            if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                (said.event, said.bytes, said.reason) = ("did not take", None, Some(error.to_string()));
            }
            tell(&events, said);
        });
    }
}

/// One file to one machine, from a port of its own (RFC 1350, 4).
async fn send(
    interface: &Interface,
    to: SocketAddr,
    mut session: Session,
    served: &Served,
) -> io::Result<()> {
    let socket = interface.udp_socket(0)?;
    socket.connect(to).await?;
    let retry = session.timeout_s.map_or(RETRY, |seconds| Duration::from_secs(seconds.into()));
    let mut buffer = vec![0; DATAGRAM_BYTES];
    let mut tries = 0;
    loop {
        if let Some(options) = session.options() {
            socket.send(options).await?;
        } else {
            for (number, at, len) in session.window() {
                let mut packet = vec![0; 4 + len];
                packet[1] = 3;
                packet[2..4].copy_from_slice(&number.to_be_bytes());
                // From the cache of the system after the first machine.
                let got = served.file.read_at(&mut packet[4..], at)?;
                packet.truncate(4 + got);
                socket.send(&packet).await?;
            }
        }
        let deadline = Instant::now() + retry;
        loop {
            let Ok(received) = timeout_at(deadline, socket.recv(&mut buffer)).await else {
                tries += 1;
                if tries == TRIES {
                    return Err(io::Error::other("the machine does not answer any more"));
                }
                break;
            };
            match session.take(&buffer[..received?]) {
                Next::Send => {
                    tries = 0;
                    break;
                }
                Next::Wait => {}
                Next::Done => return Ok(()),
                Next::Failed(said) => return Err(io::Error::other(format!("the machine says {said}"))),
            }
        }
    }
}

/// Serves connections, so many at a time.
pub(super) async fn http(listener: TcpListener, folder: Arc<Folder>, events: mpsc::Sender<Happening>) {
    let connections = Arc::new(Semaphore::new(AT_ONCE));
    let places = Places::default();
    loop {
        // Never closed.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Hung up on; waiting would take what others need.
        let Some(place) = places.take(from, CONNECTIONS_PER_ADDRESS) else {
            let mut said = event("is not served", from.ip().to_string(), "HTTP");
            said.reason = Some(format!("it has {CONNECTIONS_PER_ADDRESS} connections already"));
            tell(&events, said);
            continue;
        };
        let (folder, events) = (folder.clone(), events.clone());
        tokio::spawn(async move {
            let served = connection(stream, from, &folder, &events).await;
            drop((place, permit));
            if let Err(error) = served {
                tracing::debug!(%from, %error, "a connection broke off");
            }
        });
    }
}

async fn connection(
    mut stream: TcpStream,
    from: SocketAddr,
    folder: &Folder,
    events: &mpsc::Sender<Happening>,
) -> io::Result<()> {
    let mut pending = Vec::with_capacity(1_024);
    for _ in 0..REQUESTS_PER_CONNECTION {
        let deadline = Instant::now() + IDLE;
        let request = loop {
            match Request::read(&pending) {
                Ok(Some((request, end))) => {
                    pending.drain(..end);
                    break request;
                }
                Ok(None) => {}
                Err(refusal) => return write(&mut stream, refusal.answer().as_bytes()).await,
            }
            let mut part = (&mut stream).take((HEAD_BYTES + 1 - pending.len().min(HEAD_BYTES)) as u64);
            if timeout_at(deadline, part.read_buf(&mut pending)).await?? == 0 {
                return Ok(());
            }
        };
        let file = folder.file(&request.path);
        let answer = match &file {
            Ok(served) => request.answer(served.bytes),
            Err(_) => request.not_found(),
        };
        let sent = reply(&mut stream, &answer, file.as_ref().ok()).await;
        if let (Some((_, count)), Ok(served)) = (answer.body, &file) {
            let mut said = event("took", from.ip().to_string(), "HTTP");
            (said.file, said.bytes) = (Some(served.name.clone()), Some(count));
            if let Err(error) = &sent {
                (said.event, said.bytes, said.reason) = ("did not take", None, Some(error.to_string()));
            }
            tell(events, said);
        }
        sent?;
        if !request.keep_alive {
            return Ok(());
        }
    }
    Ok(())
}

async fn reply(stream: &mut TcpStream, answer: &Answer, served: Option<&Served>) -> io::Result<()> {
    write(stream, answer.head.as_bytes()).await?;
    let (Some((mut at, mut left)), Some(served)) = (answer.body, served) else { return Ok(()) };
    let mut buffer = vec![0; CHUNK_BYTES];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let got = served.file.read_at(&mut buffer[..most], at)?;
        if got == 0 {
            return Err(io::Error::other("the file became shorter"));
        }
        write(stream, &buffer[..got]).await?;
        (at, left) = (at + got as u64, left - got as u64);
    }
    Ok(())
}

/// A machine that takes nothing for a while is gone.
async fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    timeout(IDLE, stream.write_all(bytes)).await?
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use croft_media::esp::Contents;
    use croft_media::netboot;

    use super::*;

    fn folder(boot_file: &[u8]) -> (tempfile::TempDir, Arc<Folder>) {
        let dir = tempfile::tempdir().unwrap();
        netboot::write(dir.path(), &Contents { boot_file, addition: Some(b"farm") }).unwrap();
        let folder = Arc::new(Folder::open(dir.path()).unwrap());
        (dir, folder)
    }

    fn boot_file() -> Vec<u8> {
        (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
    }

    fn loopback(name: &str) -> Interface {
        Interface { name: name.to_owned(), address: Ipv4Addr::LOCALHOST }
    }

    /// A machine at this address of the loopback, which has many.
    async fn machine(last: u8) -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).await.unwrap()
    }

    /// The port of the session that answers, however busy this machine is; `None` when none does.
    async fn answered(machine: &UdpSocket) -> Option<u16> {
        answered_within(machine, Duration::from_secs(30)).await
    }

    async fn answered_within(machine: &UdpSocket, limit: Duration) -> Option<u16> {
        let mut buffer = vec![0; 4_096];
        let received = timeout(limit, machine.recv_from(&mut buffer)).await.ok()?;
        let (len, from) = received.unwrap();
        assert_eq!(&buffer[..len], b"\0\x06tsize\0800000\0");
        Some(from.port())
    }

    /// Who would answer has done so by then, or is only slow.
    const MUTE: Duration = Duration::from_millis(300);
    const READ: &[u8] = b"\0\x01croft.efi\0octet\0tsize\x000\0";

    #[tokio::test]
    async fn a_repeated_read_request_has_its_session_already() {
        let (_dir, folder) = folder(&boot_file());
        let socket = loopback("lo").udp_socket(0).unwrap();
        let server = socket.local_addr().unwrap();
        let serving = tokio::spawn(tftp(socket, loopback("lo"), folder, mpsc::channel(8).0));
        let machine = machine(1).await;
        machine.send_to(READ, server).await.unwrap();
        let session = answered(&machine).await.expect("a session");
        machine.send_to(READ, server).await.unwrap();
        // Only the session itself repeats itself, and later.
        assert!(answered_within(&machine, MUTE).await.is_none_or(|port| port == session));
        // It ends, and the machine begins anew.
        machine.send_to(b"\0\x05\0\0stop\0", (Ipv4Addr::LOCALHOST, session)).await.unwrap();
        let again = async {
            loop {
                machine.send_to(READ, server).await.unwrap();
                if let Some(port) = answered_within(&machine, MUTE).await.filter(|port| *port != session) {
                    return port;
                }
            }
        };
        timeout(Duration::from_secs(60), again).await.expect("the place is free again");
        serving.abort();
    }

    #[tokio::test]
    async fn one_address_holds_some_tftp_sessions_and_leaves_the_others_to_others() {
        let (_dir, folder) = folder(&boot_file());
        let socket = loopback("lo").udp_socket(0).unwrap();
        let server = socket.local_addr().unwrap();
        let serving = tokio::spawn(tftp(socket, loopback("lo"), folder, mpsc::channel(8).0));
        let mut greedy = Vec::new();
        for _ in 0..SESSIONS_PER_ADDRESS {
            let socket = machine(1).await;
            socket.send_to(READ, server).await.unwrap();
            assert!(answered(&socket).await.is_some());
            greedy.push(socket);
        }
        let (one_more, other) = (machine(1).await, machine(2).await);
        one_more.send_to(READ, server).await.unwrap();
        other.send_to(READ, server).await.unwrap();
        assert!(answered(&other).await.is_some());
        assert_eq!(answered_within(&one_more, MUTE).await, None);
        serving.abort();
    }

    #[tokio::test]
    async fn a_tftp_session_goes_by_the_interface_and_by_no_other() {
        let (_dir, folder) = folder(&boot_file());
        let socket = loopback("lo").udp_socket(0).unwrap();
        let server = socket.local_addr().unwrap();
        let (events, mut happened) = mpsc::channel(8);
        // That the interface is not there is how it shows here that the session wants it.
        let serving = tokio::spawn(tftp(socket, loopback("croft-none"), folder, events));
        machine(1).await.send_to(READ, server).await.unwrap();
        let said = happened.recv().await.unwrap();
        assert_eq!((said.event, said.by), ("did not take", "TFTP"));
        assert!(said.reason.unwrap().contains("No such device"));
        serving.abort();
    }

    #[tokio::test]
    async fn one_address_holds_some_http_connections_and_leaves_the_others_to_others() {
        let (_dir, folder) = folder(b"kernel");
        let listener = loopback("lo").tcp_listener(0).unwrap();
        let server = listener.local_addr().unwrap();
        let (events, mut happened) = mpsc::channel(64);
        let serving = tokio::spawn(http(listener, folder, events));
        let ask = async |last: u8| -> (TcpStream, bool) {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into()).unwrap();
            let mut stream = socket.connect(server).await.unwrap();
            let mut answer = [0; 15];
            // A connection that was hung up on may refuse either.
            let is_answered = stream.write_all(b"HEAD /croft.efi HTTP/1.1\r\n\r\n").await.is_ok()
                && stream.read_exact(&mut answer).await.is_ok();
            assert!(!is_answered || &answer == b"HTTP/1.1 200 OK");
            (stream, is_answered)
        };
        let mut greedy = Vec::new();
        for _ in 0..CONNECTIONS_PER_ADDRESS {
            let (stream, is_answered) = ask(1).await;
            assert!(is_answered);
            greedy.push(stream);
        }
        assert!(!ask(1).await.1);
        let said = happened.recv().await.unwrap();
        assert_eq!((said.event, said.machine.as_str()), ("is not served", "127.0.0.1"));
        assert_eq!(said.reason.unwrap(), "it has 8 connections already");
        assert!(ask(2).await.1);
        greedy.pop();
        let again = async { while !ask(1).await.1 {} };
        timeout(Duration::from_secs(60), again).await.expect("the place is free again");
        serving.abort();
    }

    #[tokio::test]
    async fn a_file_comes_over_http_whole_in_parts_and_again_on_the_same_connection() {
        let content = boot_file();
        let (_dir, folder) = folder(&content);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let (events, mut happened) = mpsc::channel(8);
        let serving = tokio::spawn(http(listener, folder, events));
        let mut stream = TcpStream::connect(server).await.unwrap();
        let ask = b"HEAD /croft.efi HTTP/1.1\r\n\r\nGET /../x HTTP/1.1\r\n\r\nGET /croft.efi HTTP/1.1\r\nRange: bytes=-8\r\n\r\nGET /croft.efi HTTP/1.0\r\n\r\n";
        stream.write_all(ask).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert!(all.ends_with(&content));
        let heads = String::from_utf8_lossy(&all[..all.len() - content.len()]).into_owned();
        let status: Vec<&str> = heads.matches("HTTP/1.1 200").chain(heads.matches("HTTP/1.1 404")).collect();
        assert_eq!(status.len(), 3, "{heads}");
        assert!(heads.contains("HTTP/1.1 206 Partial Content\r\nContent-Length: 8\r\n"), "{heads}");
        let took = happened.recv().await.unwrap();
        assert_eq!((took.event, took.bytes, took.file.as_deref()), ("took", Some(8), Some("croft.efi")));
        serving.abort();
    }

    /// A machine that reads by TFTP and loses the first packet of each kind.
    #[tokio::test]
    async fn a_file_comes_over_tftp_though_packets_are_lost() {
        let content = boot_file();
        let (_dir, folder) = folder(&content);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = socket.local_addr().unwrap();
        let (events, mut happened) = mpsc::channel(8);
        let serving = tokio::spawn(tftp(socket, loopback("lo"), folder, events));
        let machine = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        machine.send_to(b"\0\x02croft.efi\0octet\0", server).await.unwrap();
        let mut buffer = vec![0; 4_096];
        let (len, _) = machine.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"\0\x05\0\x04files are only read here\0");

        machine
            .send_to(b"\0\x01/croft.efi\0octet\0blksize\x001024\0windowsize\08\0tsize\x000\0", server)
            .await
            .unwrap();
        let (len, session) = machine.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"\0\x06blksize\x001024\0windowsize\08\0tsize\0800000\0");
        assert_ne!(session, server, "a session has its own port");
        machine.send_to(&[0, 4, 0, 0], session).await.unwrap();
        let (mut got, mut last, mut lost) = (Vec::new(), 0_u16, false);
        loop {
            let (len, _) = machine.recv_from(&mut buffer).await.unwrap();
            let number = u16::from_be_bytes([buffer[2], buffer[3]]);
            if number == 3 && !lost {
                lost = true;
                machine.send_to(&[0, 4, 0, 2], session).await.unwrap();
                continue;
            }
            if number != last + 1 {
                continue;
            }
            last = number;
            got.extend_from_slice(&buffer[4..len]);
            let is_last = len < 1_028;
            if number.is_multiple_of(8) || is_last {
                let [high, low] = number.to_be_bytes();
                machine.send_to(&[0, 4, high, low], session).await.unwrap();
            }
            // Sent again from block 3 on: the window ends elsewhere now.
            if number % 8 == 2 && number > 2 {
                let [high, low] = number.to_be_bytes();
                machine.send_to(&[0, 4, high, low], session).await.unwrap();
            }
            if is_last {
                break;
            }
        }
        assert!(got == content, "{} bytes", got.len());
        let took = happened.recv().await.unwrap();
        assert_eq!((took.event, took.by, took.bytes), ("took", "TFTP", Some(800_000)));
        serving.abort();
    }
}
