//! A small HTTP/1.1 client for the tests: one request per connection, everything with a time limit.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep_until, timeout};

/// One request; emulated machines take their time.
const REQUEST: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_millis(250);
const SILENCE: Duration = Duration::from_secs(3);
/// Answers are small.
const ANSWER_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// `GET path`.
///
/// # Errors
/// When there is no connection or no HTTP answer in time.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    request(address, "GET", path, "").await
}

/// `PUT path` with a body.
///
/// # Errors
/// As [`get`].
pub async fn put(address: SocketAddr, path: &str, body: &str) -> Result<Answer> {
    request(address, "PUT", path, body).await
}

/// Asks again and again until an answer is 200, or the time is over.
///
/// A new request starts every 250 ms beside those that still wait: a first packet that was lost, because nobody
/// listened yet, is repeated by the emulated network only after seconds, and would be measured instead of the answer.
///
/// # Errors
/// Names the last failure.
pub async fn wait_for_ok(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer> {
    let deadline = Instant::now() + limit;
    let mut last = "nothing was heard".to_owned();
    let mut requests = FuturesUnordered::new();
    let mut next = interval(PROBE_EVERY);
    loop {
        tokio::select! {
            _ = next.tick() => requests.push(get(address, path)),
            Some(result) = requests.next() => match result {
                Ok(answer) if answer.status == 200 => return Ok(answer),
                Ok(answer) => last = format!("status {}", answer.status),
                Err(error) => last = format!("{error:#}"),
            },
            () = sleep_until(deadline) => bail!("http://{address}{path} did not answer within {limit:?}: {last}"),
        }
    }
}

/// Whether nothing answers there any more. A port that nobody serves may stay mute instead of refusing, so silence is
/// believed after 3 s: many times what an answer takes.
pub async fn is_silent(address: SocketAddr) -> bool {
    !matches!(timeout(SILENCE, get(address, "/")).await, Ok(Ok(_)))
}

/// Asks twice a second in the background, and remembers when an answer was 200.
pub struct Watch {
    answered: Arc<Mutex<Vec<Instant>>>,
    asks: JoinHandle<()>,
}

impl Watch {
    /// Begins to ask.
    #[must_use]
    pub fn start(address: SocketAddr, path: &'static str) -> Self {
        let answered = Arc::new(Mutex::new(vec![Instant::now()]));
        let kept = answered.clone();
        let asks = tokio::spawn(async move {
            let mut next = interval(2 * PROBE_EVERY);
            let mut requests = FuturesUnordered::new();
            loop {
                tokio::select! {
                    _ = next.tick() => requests.push(get(address, path)),
                    Some(result) = requests.next() => if result.is_ok_and(|answer| answer.status == 200) {
                        kept.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                    },
                }
            }
        });
        Self { answered, asks }
    }

    /// The longest time without an answer since the start, also if it lasts. Ends the asking.
    #[must_use]
    pub fn longest_gap(self) -> Duration {
        self.asks.abort();
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.push(Instant::now());
        longest_gap(&answered)
    }
}

fn longest_gap(answered: &[Instant]) -> Duration {
    let gaps = answered.iter().zip(answered.iter().skip(1)).map(|(one, next)| *next - *one);
    gaps.max().unwrap_or_default()
}

async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.context("no connection")?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.context("the request broke off")?;
        let mut bytes = Vec::new();
        stream.take(ANSWER_BYTES).read_to_end(&mut bytes).await.context("the answer broke off")?;
        parse(&String::from_utf8_lossy(&bytes))
    };
    timeout(REQUEST, exchange).await.context("no answer in time")?
}

fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP status")?;
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_lies_between_two_answers() {
        let start = Instant::now();
        let at =
            |seconds: &[u64]| seconds.iter().map(|s| start + Duration::from_secs(*s)).collect::<Vec<_>>();
        assert_eq!(longest_gap(&at(&[0, 1, 9, 10])), Duration::from_secs(8));
        assert_eq!(longest_gap(&at(&[0])), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_gap_that_lasts_counts() {
        let start = Instant::now();
        let answered = [0, 9, 10].map(|seconds| start - Duration::from_secs(30 - seconds)).to_vec();
        let watch = Watch { answered: Arc::new(Mutex::new(answered)), asks: tokio::spawn(async {}) };
        assert!(watch.longest_gap() >= Duration::from_secs(20));
    }

    #[test]
    fn an_answer_is_status_and_body() {
        let answer = parse("HTTP/1.1 201 Created\r\nServer: x\r\n\r\nhello").unwrap();
        assert_eq!(answer, Answer { status: 201, body: "hello".into() });
        assert!(parse("nonsense").is_err());
        assert!(parse("HTTP/1.1 abc\r\n\r\n").is_err());
    }
}
