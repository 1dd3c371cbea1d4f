//! The farm's addition, from the server that the machine could boot from over the network.
//!
//! ```text
//!   links ──DISCOVER as firmware──> boot files ──beside each: farm.bin──> HTTP | TFTP ──bytes──> Validated
//! ```
//! Works alike for iPXE, UEFI HTTP boot and PXE, and asks nothing of the loader: whatever a loader hands to a kernel
//! could replace files of the signed image. Servers are strangers: the size, time and number of everything is bounded,
//! and what does not check is no addition. It must never choose between two that check: the machine would belong to
//! whoever answers first.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use croft_network::{BootOffer, LinkStatus, Network};
use croft_protocol::addition::{Expectation, Validated};
use croft_protocol::limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::ledger::chain_of;

const FILE: &str = "farm.bin";
/// How long servers have to answer; a proxy on a busy rack takes a second.
const ASK_LIMIT: Duration = Duration::from_secs(4);
/// One file, from connecting to its last byte.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// Files that are fetched in one round.
const PLACES_MAX: usize = 8;
/// Links that are asked in one round.
const LINKS_MAX: usize = 16;
const HTTP_PORT: u16 = 80;
const TFTP_PORT: u16 = 69;
/// Status line and fields of an answer.
const HEAD_BYTES: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// RFC 2348; fits into one Ethernet frame. The addition has at most a dozen blocks of it.
const BLOCK_BYTES: usize = 1_428;
/// A lost packet is sent again this often, after this long.
const TFTP_TRIES: u32 = 5;
const TFTP_RETRY: Duration = Duration::from_secs(1);

/// Where an addition would be, beside a boot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Http { server: SocketAddrV4, path: String },
    Tftp { server: Ipv4Addr, path: String },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { server, path } => write!(f, "http://{server}{path}"),
            Self::Tftp { server, path } => write!(f, "tftp://{server}/{path}"),
        }
    }
}

/// Why a place gave no addition.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{place}: no answer within {seconds} s")]
    Silent { place: Place, seconds: u64 },
    #[error("{place} can't be fetched")]
    Io { place: Place, source: io::Error },
    #[error("{place}: the server says {said}")]
    Refused { place: Place, said: String },
    #[error("{place}: the answer is no {protocol}")]
    Garbled { place: Place, protocol: &'static str },
    #[error("{place} has more than the {} bytes of an addition", limits::ADDITION_BYTES)]
    TooLarge { place: Place },
}

/// What one round on the network found.
#[derive(Debug, Default)]
pub struct Round {
    /// Each addition that checks, and where it is. More than one: they differ.
    pub found: Vec<(String, Validated)>,
    /// Why the others don't count, for whoever stands before the machine.
    pub reasons: Vec<String>,
}

/// Asks on every link that has an address.
pub async fn look(network: &Network) -> Round {
    let mut round = Round::default();
    let is_uefi = Path::new("/sys/firmware/efi").exists();
    let status = network.status();
    let ready = |link: &&LinkStatus| link.carrier && link.address().is_some_and(|net| net.addr().is_ipv4());
    let mut places: Vec<Place> = Vec::new();
    let mut asked = 0;
    for link in status.links.iter().filter(ready).take(LINKS_MAX) {
        asked += 1;
        match croft_network::ask_boot_file(link.index, &link.name, link.mac, is_uefi, ASK_LIMIT).await {
            Ok(offers) if offers.is_empty() => {
                round.reasons.push(format!("on {} no server offers a boot file", link.name));
            }
            Ok(offers) => {
                for offer in offers {
                    match beside(&offer) {
                        Some(place) if places.len() < PLACES_MAX && !places.contains(&place) => {
                            places.push(place);
                        }
                        Some(_) => {}
                        None => round.reasons.push(format!(
                            "{} is at no address that can be used: name it by IPv4 address",
                            offer.file
                        )),
                    }
                }
            }
            Err(error) => round.reasons.push(format!("{}: {error}", link.name)),
        }
    }
    if asked == 0 {
        let error = network.wait_uplink(croft_network::WaitLimits::default()).await.err();
        round.reasons.push(error.map_or_else(|| "no link has an address".to_owned(), |e| chain_of(&e)));
    }
    for place in places {
        match fetch(&place, FETCH_LIMIT).await {
            Ok(bytes) => take(&mut round, &place, &bytes),
            Err(error) => round.reasons.push(chain_of(&error)),
        }
    }
    round
}

/// An addition counts when it checks, and once however many servers have it.
fn take(round: &mut Round, place: &Place, bytes: &[u8]) {
    match Validated::open(bytes, &Expectation::default()) {
        Ok(addition) => {
            if !round.found.iter().any(|(_, other)| other.get() == addition.get()) {
                round.found.push((place.to_string(), addition));
            }
        }
        Err(error) => round.reasons.push(format!("{place} is refused: {}", chain_of(&error))),
    }
}

/// The addition's place beside an offered boot file; `None` where its address is none that can be used.
pub(crate) fn beside(offer: &BootOffer) -> Option<Place> {
    let in_folder = |path: &str| {
        let folder = path.rfind('/').map_or("", |end| &path[..=end]);
        (!folder.split('/').any(|part| part == "..")).then(|| format!("{folder}{FILE}"))
    };
    let Some((scheme, rest)) = offer.file.split_once("://") else {
        let path = in_folder(offer.file.trim_start_matches('/'))?;
        return Some(Place::Tftp { server: offer.server, path });
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_once('/')?;
    match scheme.to_ascii_lowercase().as_str() {
        "http" => {
            let server = host
                .parse()
                .or_else(|_| host.parse().map(|address: Ipv4Addr| SocketAddrV4::new(address, HTTP_PORT)))
                .ok()?;
            Some(Place::Http { server, path: in_folder(&format!("/{path}"))? })
        }
        "tftp" => Some(Place::Tftp { server: host.parse().ok()?, path: in_folder(path)? }),
        _ => None,
    }
}

async fn fetch(place: &Place, limit: Duration) -> Result<Vec<u8>, FetchError> {
    let fetched = async {
        match place {
            Place::Http { server, path } => fetch_http(place, *server, path).await,
            Place::Tftp { server, path } => fetch_tftp(place, (*server, TFTP_PORT), path).await,
        }
    };
    let silent = |_| FetchError::Silent { place: place.clone(), seconds: limit.as_secs() };
    timeout(limit, fetched).await.map_err(silent)?
}

/// HTTP/1.0 (RFC 1945): the answer ends with its connection, and comes in one piece.
async fn fetch_http(place: &Place, server: SocketAddrV4, path: &str) -> Result<Vec<u8>, FetchError> {
    let failed = |source| FetchError::Io { place: place.clone(), source };
    let mut stream = TcpStream::connect(server).await.map_err(failed)?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {server}\r\nUser-Agent: croft-node\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    let most = (HEAD_BYTES + limits::ADDITION_BYTES + 1) as u64;
    stream.take(most).read_to_end(&mut answer).await.map_err(failed)?;
    body(place, &answer)
}

/// The content of an HTTP answer with status 200.
pub(crate) fn body(place: &Place, answer: &[u8]) -> Result<Vec<u8>, FetchError> {
    let garbled = || FetchError::Garbled { place: place.clone(), protocol: "HTTP" };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(start)) = head.parse(answer) else { return Err(garbled()) };
    if let Some(code) = head.code.filter(|code| *code != 200) {
        let said = format!("{code} {}", printable(head.reason.unwrap_or_default().as_bytes()));
        return Err(FetchError::Refused { place: place.clone(), said: said.trim().to_owned() });
    }
    let named = |name: &str| head.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    if named("transfer-encoding").is_some() {
        return Err(garbled());
    }
    let rest = &answer[start..];
    let said = named("content-length").map(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
    let length: usize = match said {
        Some(length) => length.ok_or_else(garbled)?,
        None => rest.len(),
    };
    if length > limits::ADDITION_BYTES {
        return Err(FetchError::TooLarge { place: place.clone() });
    }
    // A connection that broke off leaves less than was said.
    rest.get(..length).map(<[u8]>::to_vec).ok_or_else(garbled)
}

/// TFTP (RFC 1350, 2347, 2348), one block at a time.
async fn fetch_tftp(place: &Place, server: (Ipv4Addr, u16), path: &str) -> Result<Vec<u8>, FetchError> {
    let failed = |source| FetchError::Io { place: place.clone(), source };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.map_err(failed)?;
    let mut packet = read_request(path);
    let mut to: std::net::SocketAddr = (server.0, server.1).into();
    let mut reader = Reader::default();
    // The server answers from a port of its own, which stays the same.
    let mut is_bound = false;
    let mut tries = 0;
    let mut buffer = vec![0; BLOCK_BYTES + 64];
    loop {
        socket.send_to(&packet, to).await.map_err(failed)?;
        let answer = timeout(TFTP_RETRY, async {
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await?;
                if from.ip() == to.ip() && (!is_bound || from == to) {
                    return io::Result::Ok((len, from));
                }
            }
        });
        let Ok(answer) = answer.await else {
            tries += 1;
            if tries == TFTP_TRIES {
                let seconds = (TFTP_RETRY * TFTP_TRIES).as_secs();
                return Err(FetchError::Silent { place: place.clone(), seconds });
            }
            continue;
        };
        let (len, from) = answer.map_err(failed)?;
        (is_bound, to) = (true, from);
        match reader.take(&buffer[..len]) {
            Step::Acknowledge(block) => packet = acknowledgement(block),
            Step::Whole(block) => {
                // The last word is for the server's sake; nothing waits for it.
                let _ = socket.send_to(&acknowledgement(block), to).await;
                return Ok(reader.content);
            }
            Step::Refused(said) => return Err(FetchError::Refused { place: place.clone(), said }),
            Step::Garbled => return Err(FetchError::Garbled { place: place.clone(), protocol: "TFTP" }),
            Step::TooLarge => return Err(FetchError::TooLarge { place: place.clone() }),
            Step::Again => {}
        }
        tries = 0;
    }
}

fn read_request(path: &str) -> Vec<u8> {
    let mut packet = vec![0, 1];
    for word in [path, "octet", "blksize", &BLOCK_BYTES.to_string()] {
        packet.extend_from_slice(word.as_bytes());
        packet.push(0);
    }
    packet
}

fn acknowledgement(block: u16) -> Vec<u8> {
    let [high, low] = block.to_be_bytes();
    vec![0, 4, high, low]
}

/// What a packet of the server means for a file that is being read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Acknowledge(u16),
    Whole(u16),
    /// An old block: what was said last is said again.
    Again,
    Refused(String),
    Garbled,
    TooLarge,
}

/// The receiving side of TFTP without a socket.
#[derive(Debug)]
pub(crate) struct Reader {
    block_bytes: usize,
    last: u16,
    pub(crate) content: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        // RFC 1350: as long as no option was agreed to.
        Self { block_bytes: 512, last: 0, content: Vec::new() }
    }
}

impl Reader {
    pub(crate) fn take(&mut self, packet: &[u8]) -> Step {
        match packet {
            [0, 3, high, low, data @ ..] => self.data(u16::from_be_bytes([*high, *low]), data),
            [0, 5, _, code, words @ ..] => Step::Refused(format!("error {code}: {}", printable(words))),
            [0, 6, options @ ..] if self.last == 0 && self.content.is_empty() => self.options(options),
            [0, 6, ..] => Step::Again,
            _ => Step::Garbled,
        }
    }

    fn data(&mut self, block: u16, data: &[u8]) -> Step {
        if block != self.last.wrapping_add(1) {
            return Step::Again;
        }
        if data.len() > self.block_bytes {
            return Step::Garbled;
        }
        self.content.extend_from_slice(data);
        if self.content.len() > limits::ADDITION_BYTES {
            return Step::TooLarge;
        }
        self.last = block;
        if data.len() < self.block_bytes { Step::Whole(block) } else { Step::Acknowledge(block) }
    }

    fn options(&mut self, options: &[u8]) -> Step {
        let mut words = options.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word));
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            // A server may choose less than was asked for, never more.
            match (name.eq_ignore_ascii_case("blksize"), value.parse()) {
                (true, Ok(bytes @ 8..=BLOCK_BYTES)) => self.block_bytes = bytes,
                (true, _) => return Step::Garbled,
                (false, _) => {}
            }
        }
        Step::Acknowledge(0)
    }
}

/// A server's words go on our console: bounded, and nothing that could move its cursor.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().filter(|c| !c.is_control()).take(80).collect::<String>().trim().to_owned()
}

#[cfg(test)]
#[path = "netboot_tests.rs"]
mod tests;
