//! Asks time servers once (RFC 4330, RFC 5905): a codec without I/O, and a query of several servers at a time.
//!
//! Answers are strangers' bytes: only one that echoes our random request, from a server that is itself synchronised,
//! near, and quick, counts. Never blocks for longer than its limit, and needs no port open to the world.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::clock::{self, Offset, UnixTime, median};
use crate::dns;

/// UDP port of time servers.
pub const PORT: u16 = 123;
const PACKET_LEN: usize = 48;
/// Version 4, client.
const REQUEST_FIRST_BYTE: u8 = 4 << 3 | 3;
/// Seconds from 1900 to 1970.
const NTP_TO_UNIX_S: i64 = 2_208_988_800;
/// A sample that travelled longer than this may be off by half of it.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(2);
/// RFC 5905 MAXDIST: a server that may itself be off by more is no help.
const ROOT_DISTANCE_MAX: Duration = Duration::from_millis(1_500);
/// When most have answered, how much longer the rest is waited for: one dead server must not cost the whole limit.
const GRACE: Duration = Duration::from_millis(300);
/// A lost request is repeated after this time.
const RETRY: Duration = Duration::from_millis(900);
/// More servers than this bring nothing, and load on them.
const SERVERS_MAX: usize = 8;

/// One server's answer, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub offset: Offset,
    pub round_trip: Duration,
    pub stratum: u8,
}

/// What to send, and what is needed to read the answer.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    nonce: u64,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum AnswerError {
    #[error("answer of {0} bytes is too short")]
    Short(usize),
    #[error("answer is of mode {0}, not of a server")]
    Mode(u8),
    #[error("answer of NTP version {0}")]
    Version(u8),
    #[error("answer does not belong to our request")]
    NotOurs,
    #[error("server tells us to go away ({0})")]
    KissOfDeath(String),
    #[error("server is not synchronised")]
    Unsynchronised,
    #[error("server has stratum {0}")]
    Stratum(u8),
    #[error("server's own time may be off by {0} ms")]
    RootDistance(u64),
    #[error("server's timestamps contradict each other")]
    Timestamps,
    #[error("round trip of {0} ms is too long to measure by")]
    RoundTrip(u64),
}

impl Request {
    /// `nonce` goes out in place of our time: it tells nothing about our clock, and nobody can guess it.
    pub fn new(nonce: u64) -> Self {
        Self { nonce }
    }

    pub fn encode(&self) -> [u8; PACKET_LEN] {
        let mut bytes = [0; PACKET_LEN];
        bytes[0] = REQUEST_FIRST_BYTE;
        bytes[40..48].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }

    /// `sent` is our clock's time of the request, `waited` what passed until the answer by a clock that never jumps.
    pub fn read(&self, bytes: &[u8], sent: UnixTime, waited: Duration) -> Result<Sample, AnswerError> {
        let packet: &[u8; PACKET_LEN] = bytes.first_chunk().ok_or(AnswerError::Short(bytes.len()))?;
        let field = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| packet[at + i]));
        let (leap, version, mode) = (packet[0] >> 6, packet[0] >> 3 & 7, packet[0] & 7);
        if mode != 4 {
            return Err(AnswerError::Mode(mode));
        }
        if !(3..=4).contains(&version) {
            return Err(AnswerError::Version(version));
        }
        if field(24) != self.nonce {
            return Err(AnswerError::NotOurs);
        }
        match packet[1] {
            0 => {
                let code = packet[12..16]
                    .iter()
                    .filter(|byte| byte.is_ascii_graphic())
                    .map(|byte| char::from(*byte));
                return Err(AnswerError::KissOfDeath(code.collect()));
            }
            1..=15 if leap == 3 => return Err(AnswerError::Unsynchronised),
            1..=15 => {}
            stratum => return Err(AnswerError::Stratum(stratum)),
        }
        // 16.16 fixed point seconds.
        let short = |at: usize| {
            (u64::from(u32::from_be_bytes(std::array::from_fn(|i| packet[at + i]))) * 1_000) >> 16
        };
        let root_distance_ms = short(4) / 2 + short(8);
        if u128::from(root_distance_ms) > ROOT_DISTANCE_MAX.as_millis() {
            return Err(AnswerError::RootDistance(root_distance_ms));
        }
        let (received, transmitted) = (field(32), field(40));
        if received == 0 || transmitted == 0 {
            return Err(AnswerError::Timestamps);
        }
        let (received, transmitted) = (unix_time(received), unix_time(transmitted));
        let held = received.until(transmitted).as_nanos();
        let waited_nanos = i64::try_from(waited.as_nanos()).unwrap_or(i64::MAX);
        if held < 0 || held > waited_nanos {
            return Err(AnswerError::Timestamps);
        }
        let round_trip = Duration::from_nanos((waited_nanos - held) as u64);
        if round_trip > ROUND_TRIP_MAX {
            return Err(AnswerError::RoundTrip(round_trip.as_millis() as u64));
        }
        // ((T2 - T1) + (T3 - T4)) / 2, in 128 bits: a clock without battery is decades off.
        let forth = i128::from(sent.until(received).as_nanos());
        let back = i128::from(sent.after(waited).until(transmitted).as_nanos());
        let offset = Offset::from_nanos(i128::midpoint(forth, back) as i64);
        Ok(Sample { offset, round_trip, stratum: packet[1] })
    }
}

/// RFC 4330 3: the first bit tells the eras apart, so this is right from 1968 to 2104.
fn unix_time(ntp: u64) -> UnixTime {
    let seconds = (ntp >> 32) as i64;
    let era = if seconds & 0x8000_0000 == 0 { 1 << 32 } else { 0 };
    let nanos = (((ntp & 0xffff_ffff) * 1_000_000_000) >> 32) as i64;
    UnixTime::from_nanos((seconds + era - NTP_TO_UNIX_S) * 1_000_000_000 + nanos)
}

/// Why one server gave no sample.
#[derive(Debug, Error)]
pub enum ServerError {
    #[error("no answer: NTP may be blocked")]
    NoAnswer,
    #[error("can't reach it")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error(transparent)]
    Name(#[from] dns::ResolveError),
}

#[derive(Debug)]
pub struct Measurement {
    /// Median of all samples.
    pub offset: Offset,
    pub samples: Vec<Sample>,
    /// Server as configured, and why it gave none.
    pub failures: Vec<(String, ServerError)>,
}

impl Measurement {
    /// For `clock::choose_time`, which may have to leave some of them out.
    pub fn offsets(&self) -> Vec<Offset> {
        self.samples.iter().map(|sample| sample.offset).collect()
    }
}

#[derive(Debug, Error)]
pub enum QueryError {
    #[error("no time server is configured, and DHCP named none: set ntp in boot.toml")]
    NoServers,
    #[error("no time server could be used: {}", .0.iter().map(|(server, why)| format!("{server}: {why}")).collect::<Vec<_>>().join("; "))]
    NoSample(Vec<(String, ServerError)>),
}

/// Asks all servers at a time, and gives up on the slow ones after `timeout`.
pub async fn query(servers: &[SocketAddr], timeout: Duration) -> Result<Measurement, QueryError> {
    let label = |server: &SocketAddr| {
        if server.port() == PORT { server.ip().to_string() } else { server.to_string() }
    };
    let targets = servers.iter().map(|server| (label(server), Target::Address(*server))).collect();
    query_all(targets, Vec::new(), timeout).await
}

/// Like `query`, for names or addresses as they stand in the configuration; names are resolved with `resolvers`.
pub async fn query_names(
    names: &[String],
    resolvers: &[IpAddr],
    timeout: Duration,
) -> Result<Measurement, QueryError> {
    let target = |name: &String| match name.parse::<IpAddr>() {
        Ok(address) => Target::Address(SocketAddr::new(address, PORT)),
        Err(_) => Target::Name(name.clone()),
    };
    query_all(names.iter().map(|name| (name.clone(), target(name))).collect(), resolvers.to_vec(), timeout)
        .await
}

enum Target {
    Address(SocketAddr),
    Name(String),
}

async fn query_all(
    mut targets: Vec<(String, Target)>,
    resolvers: Vec<IpAddr>,
    timeout: Duration,
) -> Result<Measurement, QueryError> {
    if targets.is_empty() {
        return Err(QueryError::NoServers);
    }
    targets.truncate(SERVERS_MAX);
    let mut deadline = Instant::now() + timeout;
    let mut waiting: BTreeMap<usize, String> =
        targets.iter().map(|(label, _)| label.clone()).enumerate().collect();
    let majority = waiting.len() / 2 + 1;
    let mut tasks = JoinSet::new();
    for (place, (_, target)) in targets.into_iter().enumerate() {
        let resolvers = resolvers.clone();
        tasks.spawn(async move { (place, query_one(target, &resolvers, timeout).await) });
    }
    let (mut samples, mut failures) = (Vec::new(), Vec::new());
    while let Ok(Some(finished)) = timeout_at(deadline, tasks.join_next()).await {
        // A task neither panics nor is cancelled while the set lives.
        let Ok((place, result)) = finished else { continue };
        match (result, waiting.remove(&place)) {
            (Ok(sample), _) => samples.push(sample),
            (Err(error), label) => failures.push((label.unwrap_or_default(), error)),
        }
        if samples.len() >= majority {
            deadline = deadline.min(Instant::now() + GRACE);
        }
    }
    failures.extend(waiting.into_values().map(|label| (label, ServerError::NoAnswer)));
    let mut offsets: Vec<Offset> = samples.iter().map(|sample| sample.offset).collect();
    match median(&mut offsets) {
        Some(offset) => Ok(Measurement { offset, samples, failures }),
        None => Err(QueryError::NoSample(failures)),
    }
}

async fn query_one(target: Target, resolvers: &[IpAddr], timeout: Duration) -> Result<Sample, ServerError> {
    let server = match target {
        Target::Address(address) => address,
        Target::Name(name) => {
            let addresses = dns::resolve(&name, resolvers, timeout).await?;
            SocketAddr::new(addresses[0], PORT)
        }
    };
    let local: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    let mut buffer = [0u8; 512];
    // The caller's limit ends this loop.
    loop {
        let request = Request::new(getrandom::u64().map_err(io::Error::other)?);
        let (sent, began) = (clock::now(), Instant::now());
        socket.send(&request.encode()).await?;
        while let Ok(received) = timeout_at(began + RETRY, socket.recv(&mut buffer)).await {
            match request.read(&buffer[..received?], sent, began.elapsed()) {
                // Late, repeated or forged: ours may still come.
                Err(AnswerError::NotOurs | AnswerError::Short(_) | AnswerError::Mode(_)) => {}
                result => return Ok(result?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u64 = 0x1122_3344_5566_7788;
    const SENT: UnixTime = UnixTime::from_secs(1_800_000_000);
    const WAITED: Duration = Duration::from_millis(100);

    fn ntp(time: UnixTime) -> u64 {
        let nanos = time.as_nanos();
        let seconds = (nanos.div_euclid(1_000_000_000) + NTP_TO_UNIX_S) as u64;
        ((seconds & 0xffff_ffff) << 32) | (((nanos.rem_euclid(1_000_000_000) as u64) << 32) / 1_000_000_000)
    }

    /// A server `ahead_ms` ahead of us, that answers in the middle of the round trip and takes 10 ms.
    fn answer(ahead_ms: i64) -> [u8; 48] {
        let middle = SENT.plus(Offset::from_millis(45 + ahead_ms));
        let mut bytes = [0; 48];
        bytes[0] = 4 << 3 | 4;
        bytes[1] = 2;
        bytes[24..32].copy_from_slice(&NONCE.to_be_bytes());
        bytes[32..40].copy_from_slice(&ntp(middle).to_be_bytes());
        bytes[40..48].copy_from_slice(&ntp(middle.plus(Offset::from_millis(10))).to_be_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Sample, AnswerError> {
        Request::new(NONCE).read(bytes, SENT, WAITED)
    }

    fn changed(at: usize, value: &[u8]) -> [u8; 48] {
        let mut bytes = answer(0);
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    }

    #[test]
    fn an_offset_is_measured_between_the_four_times() {
        for ahead_ms in [0, 1_500, -1_500, 86_400_000, -1_700_000_000_000] {
            let sample = read(&answer(ahead_ms)).unwrap();
            let error = sample.offset.as_nanos() - ahead_ms * 1_000_000;
            assert!(error.abs() < 1_000, "{ahead_ms}: {error} ns");
            assert_eq!(sample.round_trip.as_millis(), 90);
            assert_eq!(sample.stratum, 2);
        }
    }

    #[test]
    fn times_after_2036_are_in_the_next_era() {
        assert_eq!(unix_time(1 << 32).as_nanos(), ((1i64 << 32) + 1 - NTP_TO_UNIX_S) * 1_000_000_000);
        assert_eq!(unix_time(ntp(UnixTime::from_secs(0))).as_nanos(), 0);
        assert_eq!(unix_time(ntp(UnixTime::from_secs(4_000_000_000))), UnixTime::from_secs(4_000_000_000));
    }

    #[test]
    fn an_answer_that_cannot_be_trusted_is_refused_with_its_reason() {
        assert_eq!(read(&[0; 47]), Err(AnswerError::Short(47)));
        assert_eq!(read(&changed(0, &[4 << 3 | 3])), Err(AnswerError::Mode(3)));
        assert_eq!(read(&changed(0, &[1 << 3 | 4])), Err(AnswerError::Version(1)));
        assert_eq!(read(&changed(24, &[0])), Err(AnswerError::NotOurs));
        assert_eq!(read(&changed(0, &[3 << 6 | 4 << 3 | 4])), Err(AnswerError::Unsynchronised));
        assert_eq!(read(&changed(1, &[16])), Err(AnswerError::Stratum(16)));
        assert_eq!(read(&changed(8, &[0, 2, 0, 0])), Err(AnswerError::RootDistance(2000)));
        assert_eq!(read(&changed(40, &[0; 8])), Err(AnswerError::Timestamps));
        assert_eq!(
            read(&changed(32, &answer(20)[32..40])),
            Err(AnswerError::Timestamps),
            "received after sent"
        );
        let mut kiss = changed(1, &[0]);
        kiss[12..16].copy_from_slice(b"RATE");
        assert_eq!(read(&kiss).unwrap_err().to_string(), "server tells us to go away (RATE)");
        let slow = Request::new(NONCE).read(&answer(0), SENT, Duration::from_secs(5));
        assert_eq!(slow, Err(AnswerError::RoundTrip(4990)));
    }

    #[test]
    fn the_request_tells_nothing_but_the_nonce() {
        let bytes = Request::new(NONCE).encode();
        assert_eq!(bytes[0], 0x23);
        assert!(bytes[1..40].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[40..48], NONCE.to_be_bytes());
    }

    /// A server on loopback that answers each request `ahead_ms` ahead of us, or with what `spoil` makes of it.
    async fn server(ahead_ms: i64, spoil: fn(&mut [u8; 48])) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut request = [0; 48];
            while let Ok((_, from)) = socket.recv_from(&mut request).await {
                let time = ntp(clock::now().plus(Offset::from_millis(ahead_ms))).to_be_bytes();
                let mut bytes = [0; 48];
                bytes[0] = 4 << 3 | 4;
                bytes[1] = 1;
                bytes[24..32].copy_from_slice(&request[40..48]);
                bytes[32..40].copy_from_slice(&time);
                bytes[40..48].copy_from_slice(&time);
                spoil(&mut bytes);
                socket.send_to(&bytes, from).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn several_servers_are_asked_and_the_median_counts() {
        let good = |_: &mut [u8; 48]| {};
        let servers =
            [server(60_000, good).await, server(61_000, good).await, server(-9_000_000, good).await];
        let measurement = query(&servers, Duration::from_secs(20)).await.unwrap();
        assert_eq!(measurement.samples.len(), 3);
        let off_by_ms = (measurement.offset.as_nanos() - 60_000_000_000) / 1_000_000;
        assert!(off_by_ms.abs() < 1_000, "off by {off_by_ms} ms");
    }

    #[tokio::test]
    async fn silent_and_refusing_servers_are_named() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let kiss = server(0, |bytes| {
            bytes[1] = 0;
            bytes[12..16].copy_from_slice(b"DENY");
        })
        .await;
        let servers = [silent.local_addr().unwrap(), kiss];
        let error = query(&servers, Duration::from_secs(2)).await.unwrap_err().to_string();
        assert!(error.contains(&format!("{kiss}: server tells us to go away (DENY)")), "{error}");
        assert!(error.contains(&format!("{}: no answer: NTP may be blocked", servers[0])), "{error}");
    }

    #[tokio::test]
    async fn a_dead_server_does_not_cost_the_whole_limit() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let good = |_: &mut [u8; 48]| {};
        let servers = [server(0, good).await, server(0, good).await, silent.local_addr().unwrap()];
        let measurement = query(&servers, Duration::from_secs(3600)).await.unwrap();
        assert_eq!(measurement.samples.len(), 2);
        assert_eq!(measurement.failures.len(), 1);
    }

    #[tokio::test]
    async fn without_servers_there_is_a_remedy() {
        let error = query(&[], Duration::from_secs(1)).await.unwrap_err().to_string();
        assert_eq!(error, "no time server is configured, and DHCP named none: set ntp in boot.toml");
    }
}
