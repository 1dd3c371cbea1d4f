//! Resolves a name to addresses (RFC 1035): the few questions that a node asks. A static binary has no usable
//! resolver in its C library.
//!
//! Asks the given resolvers in turn, IPv4 and IPv6 at a time, over UDP and for truncated answers over TCP. Answers are
//! strangers' bytes: they must repeat id and question, and every count and length is bounded. Keeps nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::{
    DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRcode, DnsRecord, DnsRecordData, DnsRepr,
};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

const PORT: u16 = 53;
/// RFC 1035 2.3.4.
const NAME_LEN_MAX: usize = 253;
const LABEL_LEN_MAX: usize = 63;
/// An alias of an alias of an alias: more is a loop or a joke.
const ALIASES_MAX: usize = 8;
/// Addresses of one name that we look at.
const ADDRESSES_MAX: usize = 32;
/// Without EDNS an answer over UDP has at most 512 bytes; some servers don't care.
const UDP_ANSWER_LEN_MAX: usize = 4096;
/// Before the next resolver is asked.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Times that the list of resolvers is gone through.
const ROUNDS: usize = 3;

#[derive(Debug, Error)]
pub enum ResolveError {
    #[error("{name:?} is not a host name: {why}")]
    BadName { name: String, why: &'static str },
    #[error("no resolver to ask for {name}: DHCP named none, set dns for a link in boot.toml")]
    NoResolvers { name: String },
    #[error("{name} does not exist, says resolver {resolver}")]
    NotFound { name: String, resolver: IpAddr },
    #[error("{name} has no address, says resolver {resolver}")]
    NoAddress { name: String, resolver: IpAddr },
    #[error("no resolver could tell the address of {name}: {}", .tried.iter().map(|(server, why)| format!("{server}: {why}")).collect::<Vec<_>>().join("; "))]
    NoAnswer { name: String, tried: Vec<(IpAddr, ServerError)> },
}

/// Why one resolver was no help.
#[derive(Debug, Error)]
pub enum ServerError {
    #[error("no answer")]
    Silent,
    #[error("{0}")]
    Io(io::Error),
    #[error("answered with error {0}")]
    Refused(&'static str),
    #[error("answer makes no sense")]
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Addresses(Vec<IpAddr>),
    NotFound,
    Truncated,
    Refused(&'static str),
}

/// Bytes that are no answer to our question; a right one may still come.
#[derive(Debug, PartialEq, Eq)]
struct NotOurs;

/// All addresses of `name`, IPv4 first. An address stands for itself.
pub async fn resolve(
    name: &str,
    resolvers: &[IpAddr],
    timeout: Duration,
) -> Result<Vec<IpAddr>, ResolveError> {
    let resolvers: Vec<SocketAddr> = resolvers.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
    resolve_at(name, &resolvers, timeout).await
}

/// Like `resolve`, for resolvers on any port.
pub async fn resolve_at(
    name: &str,
    resolvers: &[SocketAddr],
    timeout: Duration,
) -> Result<Vec<IpAddr>, ResolveError> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let question = Name::parse(name)?;
    let name = question.to_string();
    if resolvers.is_empty() {
        return Err(ResolveError::NoResolvers { name });
    }
    let deadline = Instant::now() + timeout;
    let mut tried: Vec<(IpAddr, ServerError)> = Vec::new();
    for resolver in std::iter::repeat_n(resolvers, ROUNDS).flatten() {
        if Instant::now() >= deadline {
            break;
        }
        let until = deadline.min(Instant::now() + PATIENCE);
        let (v4, v6) = tokio::join!(
            ask(&question, Family::V4, *resolver, until),
            ask(&question, Family::V6, *resolver, until)
        );
        let error = match (v4, v6) {
            (Ok(Answer::NotFound), _) | (_, Ok(Answer::NotFound)) => {
                return Err(ResolveError::NotFound { name, resolver: resolver.ip() });
            }
            // One family may fail alone: middle boxes drop what they don't know.
            (v4, v6) => match [v4, v6].map(addresses) {
                [Ok(mut v4), Ok(v6)] => {
                    v4.extend(v6);
                    if v4.is_empty() {
                        return Err(ResolveError::NoAddress { name, resolver: resolver.ip() });
                    }
                    return Ok(v4);
                }
                [Ok(found), Err(_)] | [Err(_), Ok(found)] if !found.is_empty() => return Ok(found),
                [Err(error), _] | [_, Err(error)] => error,
            },
        };
        tried.retain(|(server, _)| *server != resolver.ip());
        tried.push((resolver.ip(), error));
    }
    if tried.is_empty() {
        tried = resolvers.iter().map(|resolver| (resolver.ip(), ServerError::Silent)).collect();
    }
    Err(ResolveError::NoAnswer { name, tried })
}

fn addresses(answer: Result<Answer, ServerError>) -> Result<Vec<IpAddr>, ServerError> {
    match answer? {
        Answer::Addresses(addresses) => Ok(addresses),
        Answer::NotFound => Ok(Vec::new()),
        Answer::Refused(why) => Err(ServerError::Refused(why)),
        Answer::Truncated => Err(ServerError::Malformed),
    }
}

async fn ask(name: &Name, family: Family, server: SocketAddr, until: Instant) -> Result<Answer, ServerError> {
    let id = getrandom::u32().map_err(|error| ServerError::Io(io::Error::other(error)))? as u16;
    let exchange = async {
        match ask_udp(name, family, id, server).await? {
            Answer::Truncated => ask_tcp(name, family, id, server).await,
            answer => Ok(answer),
        }
    };
    match timeout_at(until, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(ServerError::Malformed),
        Ok(Err(error)) => Err(ServerError::Io(error)),
        Err(_) => Err(ServerError::Silent),
    }
}

async fn ask_udp(name: &Name, family: Family, id: u16, server: SocketAddr) -> io::Result<Answer> {
    // A port of its own and connected: an answer must hit port, id and question, and come from the resolver.
    let local: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(&name.query(family, id)).await?;
    let mut buffer = vec![0; UDP_ANSWER_LEN_MAX];
    loop {
        let received = socket.recv(&mut buffer).await?;
        if let Ok(answer) = read_answer(&buffer[..received], name, family, id) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(name: &Name, family: Family, id: u16, server: SocketAddr) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let query = name.query(family, id);
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend(query);
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    match read_answer(&buffer, name, family, id) {
        Ok(Answer::Truncated) | Err(NotOurs) => Err(io::ErrorKind::InvalidData.into()),
        Ok(answer) => Ok(answer),
    }
}

/// A host name in wire form without compression, lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name(Vec<u8>);

impl Name {
    fn parse(text: &str) -> Result<Self, ResolveError> {
        let bad = |why| ResolveError::BadName { name: text.chars().take(80).collect(), why };
        let trimmed = text.strip_suffix('.').unwrap_or(text);
        if trimmed.is_empty() {
            return Err(bad("it is empty"));
        }
        if trimmed.len() > NAME_LEN_MAX {
            return Err(bad("it has more than 253 characters"));
        }
        let mut wire = Vec::with_capacity(trimmed.len() + 2);
        for label in trimmed.split('.') {
            if label.is_empty() || label.len() > LABEL_LEN_MAX {
                return Err(bad("each part between dots has 1 to 63 characters"));
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
                return Err(bad("only letters, digits, hyphens and dots are possible"));
            }
            wire.push(label.len() as u8);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        wire.push(0);
        Ok(Self(wire))
    }

    /// From an answer; `None` where it is broken or too long.
    fn read(packet: &DnsPacket<&[u8]>, bytes: &[u8]) -> Option<Self> {
        let mut wire = Vec::new();
        for label in packet.parse_name(bytes) {
            let label = label.ok()?;
            if wire.len() + label.len() > NAME_LEN_MAX + 1 {
                return None;
            }
            wire.push(label.len() as u8);
            wire.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        wire.push(0);
        Some(Self(wire))
    }

    fn query(&self, family: Family, id: u16) -> Vec<u8> {
        let question = DnsQuestion { name: &self.0, type_: family.query_type() };
        let repr = DnsRepr {
            transaction_id: id,
            opcode: DnsOpcode::Query,
            flags: DnsFlags::RECURSION_DESIRED,
            question,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DnsPacket::new_unchecked(&mut bytes[..]));
        bytes
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = &self.0[..];
        let mut dot = "";
        while let Some((&len, tail)) = rest.split_first().filter(|(len, _)| **len != 0) {
            let (label, tail) = tail.split_at(usize::from(len));
            write!(f, "{dot}{}", String::from_utf8_lossy(label))?;
            (rest, dot) = (tail, ".");
        }
        Ok(())
    }
}

impl Family {
    fn query_type(self) -> DnsQueryType {
        match self {
            Self::V4 => DnsQueryType::A,
            Self::V6 => DnsQueryType::Aaaa,
        }
    }

    fn read(self, data: &DnsRecordData<'_>) -> Option<IpAddr> {
        match (self, data) {
            (Self::V4, DnsRecordData::A(address)) => Some(Ipv4Addr::from(address.octets()).into()),
            (Self::V6, DnsRecordData::Other(DnsQueryType::Aaaa, octets)) => {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(*octets).ok()?).into())
            }
            _ => None,
        }
    }
}

fn read_answer(bytes: &[u8], name: &Name, family: Family, id: u16) -> Result<Answer, NotOurs> {
    let packet = DnsPacket::new_checked(bytes).map_err(|_| NotOurs)?;
    let is_answer = packet.flags().contains(DnsFlags::RESPONSE) && packet.opcode() == DnsOpcode::Query;
    if packet.transaction_id() != id || !is_answer || packet.question_count() != 1 {
        return Err(NotOurs);
    }
    let (mut rest, question) = DnsQuestion::parse(packet.payload()).map_err(|_| NotOurs)?;
    if question.type_ != family.query_type() || Name::read(&packet, question.name).as_ref() != Some(name) {
        return Err(NotOurs);
    }
    if packet.flags().contains(DnsFlags::TRUNCATED) {
        return Ok(Answer::Truncated);
    }
    match packet.rcode() {
        DnsRcode::NoError => {}
        DnsRcode::NXDomain => return Ok(Answer::NotFound),
        DnsRcode::ServFail => return Ok(Answer::Refused("server failure")),
        DnsRcode::Refused => return Ok(Answer::Refused("refused")),
        _ => return Ok(Answer::Refused("of another kind")),
    }
    let mut aliases: Vec<(Name, Name)> = Vec::new();
    let mut found: Vec<(Name, IpAddr)> = Vec::new();
    for _ in 0..packet.answer_record_count() {
        let (tail, record) = DnsRecord::parse(rest).map_err(|_| NotOurs)?;
        rest = tail;
        let owner = Name::read(&packet, record.name).ok_or(NotOurs)?;
        if let DnsRecordData::Cname(target) = record.data {
            aliases.push((owner, Name::read(&packet, target).ok_or(NotOurs)?));
        } else if let Some(address) = family.read(&record.data) {
            found.push((owner, address));
        }
        if found.len() == ADDRESSES_MAX {
            break;
        }
    }
    // Only what belongs to the question, or to what it is an alias of.
    let mut target = name.clone();
    for _ in 0..ALIASES_MAX {
        let Some((_, next)) = aliases.iter().find(|(owner, _)| *owner == target) else { break };
        target = next.clone();
    }
    Ok(Answer::Addresses(
        found.into_iter().filter(|(owner, _)| *owner == target).map(|(_, address)| address).collect(),
    ))
}

/// For [`crate::fuzzing`].
pub(crate) fn answer_of(bytes: &[u8], name: &str, v6: bool, id: u16) -> Result<Vec<IpAddr>, String> {
    let name = Name::parse(name).map_err(|error| error.to_string())?;
    let family = if v6 { Family::V6 } else { Family::V4 };
    match read_answer(bytes, &name, family, id) {
        Ok(Answer::Addresses(addresses)) => Ok(addresses),
        Ok(Answer::NotFound | Answer::Truncated | Answer::Refused(_)) => Ok(Vec::new()),
        Err(NotOurs) => Err("it is no answer to this question".to_owned()),
    }
}

/// For [`crate::fuzzing`].
pub(crate) fn question_of(name: &str, v6: bool, id: u16) -> Result<Vec<u8>, String> {
    let family = if v6 { Family::V6 } else { Family::V4 };
    Name::parse(name).map(|name| name.query(family, id)).map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
