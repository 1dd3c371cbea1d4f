//! Messages on a stream: 4 bytes of length, little-endian, then that many bytes of borsh.
//!
//! Every read and write has a limit on bytes and one on time. Memory is taken as bytes arrive, never
//! because a length promises them. It must never hand on a value that was not decoded to its last byte.

use std::time::Duration;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::api::{Request, Response};
use croft_protocol::{DecodeError, limits};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::endpoint::{Connection, LostError};

/// What is reserved before the first byte of a frame is there.
const FIRST_ALLOCATION_BYTES: usize = 16 * 1024;

/// Why a frame was not read or written. The stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the other end ended the stream before {what} was complete")]
    Ended { what: &'static str },
    #[error("the other end is too slow: {what} took more than {limit_ms} ms")]
    Slow { what: &'static str, limit_ms: u64 },
    #[error("{what} has {len} bytes, more than the limit of {limit}: split it")]
    Oversized { what: &'static str, len: usize, limit: usize },
    #[error("the stream broke off in {what}")]
    Io { what: &'static str, source: std::io::Error },
}

fn slow(what: &'static str, within: Duration) -> FrameError {
    FrameError::Slow { what, limit_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX) }
}

/// Writes one value as one frame within a time.
///
/// # Errors
/// [`FrameError::Oversized`] before anything is written, [`FrameError::Slow`] when the reader holds us up.
pub async fn write<W, T>(
    stream: &mut W,
    what: &'static str,
    value: &T,
    limit: usize,
    within: Duration,
) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
    T: BorshSerialize + ?Sized,
{
    let bytes = encode(what, value, limit)?;
    write_encoded(stream, what, &bytes, within).await
}

/// A value as a frame, with its length before it.
///
/// # Errors
/// [`FrameError::Oversized`].
pub fn encode<T>(what: &'static str, value: &T, limit: usize) -> Result<Vec<u8>, FrameError>
where
    T: BorshSerialize + ?Sized,
{
    let mut bytes = vec![0; 4];
    value.serialize(&mut bytes).map_err(|source| FrameError::Io { what, source })?;
    let len = bytes.len() - 4;
    let prefix = u32::try_from(len).ok().filter(|_| len <= limit);
    let Some(prefix) = prefix else { return Err(FrameError::Oversized { what, len, limit }) };
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(bytes)
}

/// Writes what [`encode`] made.
///
/// # Errors
/// [`FrameError::Slow`], [`FrameError::Io`].
pub async fn write_encoded<W>(
    stream: &mut W,
    what: &'static str,
    bytes: &[u8],
    within: Duration,
) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    let write = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    match tokio::time::timeout(within, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(FrameError::Io { what, source }),
        Err(_) => Err(slow(what, within)),
    }
}

/// Reads exactly one value within a time.
///
/// # Errors
/// [`FrameError`]; also when the stream ends before the first byte.
pub async fn read<R, T>(
    stream: &mut R,
    what: &'static str,
    limit: usize,
    within: Duration,
) -> Result<T, FrameError>
where
    R: AsyncRead + Unpin,
    T: BorshDeserialize,
{
    read_or_end(stream, what, limit, within).await?.ok_or(FrameError::Ended { what })
}

/// Reads one value, or `None` when the stream ends cleanly between frames.
///
/// # Errors
/// [`FrameError`].
pub async fn read_or_end<R, T>(
    stream: &mut R,
    what: &'static str,
    limit: usize,
    within: Duration,
) -> Result<Option<T>, FrameError>
where
    R: AsyncRead + Unpin,
    T: BorshDeserialize,
{
    let deadline = Instant::now() + within;
    let bytes =
        timeout_at(deadline, read_bytes(stream, what, limit)).await.map_err(|_| slow(what, within))??;
    match bytes {
        Some(bytes) => Ok(Some(croft_protocol::decode(what, &bytes, limit)?)),
        None => Ok(None),
    }
}

/// Reads the length of the next frame, for readers whose limit depends on it; [`read_body`] goes on.
///
/// # Errors
/// [`FrameError`].
pub async fn read_length<R>(stream: &mut R, what: &'static str, within: Duration) -> Result<usize, FrameError>
where
    R: AsyncRead + Unpin,
{
    let len = tokio::time::timeout(within, read_prefix(stream, what)).await;
    len.map_err(|_| slow(what, within))??.ok_or(FrameError::Ended { what })
}

/// Reads a value of `len` bytes after [`read_length`]. The caller has checked that it wants this many.
///
/// # Errors
/// [`FrameError`].
pub async fn read_body<R, T>(
    stream: &mut R,
    what: &'static str,
    len: usize,
    within: Duration,
) -> Result<T, FrameError>
where
    R: AsyncRead + Unpin,
    T: BorshDeserialize,
{
    let bytes = tokio::time::timeout(within, read_exactly(stream, what, len)).await;
    let bytes = bytes.map_err(|_| slow(what, within))??;
    Ok(croft_protocol::decode(what, &bytes, len)?)
}

async fn read_bytes<R>(
    stream: &mut R,
    what: &'static str,
    limit: usize,
) -> Result<Option<Vec<u8>>, FrameError>
where
    R: AsyncRead + Unpin,
{
    let Some(len) = read_prefix(stream, what).await? else { return Ok(None) };
    if len > limit {
        return Err(DecodeError::TooLarge { what, len, limit }.into());
    }
    read_exactly(stream, what, len).await.map(Some)
}

async fn read_prefix<R>(stream: &mut R, what: &'static str) -> Result<Option<usize>, FrameError>
where
    R: AsyncRead + Unpin,
{
    let mut prefix = [0; 4];
    let mut got = 0;
    while got < prefix.len() {
        let read = stream.read(&mut prefix[got..]).await;
        match read.map_err(|source| FrameError::Io { what, source })? {
            0 if got == 0 => return Ok(None),
            0 => return Err(FrameError::Ended { what }),
            n => got += n,
        }
    }
    Ok(Some(u32::from_le_bytes(prefix) as usize))
}

async fn read_exactly<R>(stream: &mut R, what: &'static str, len: usize) -> Result<Vec<u8>, FrameError>
where
    R: AsyncRead + Unpin,
{
    let mut bytes = Vec::with_capacity(len.min(FIRST_ALLOCATION_BYTES));
    let read = stream.take(len as u64).read_to_end(&mut bytes).await;
    read.map_err(|source| FrameError::Io { what, source })?;
    if bytes.len() < len { Err(FrameError::Ended { what }) } else { Ok(bytes) }
}

/// Reads frames one after the other and keeps what has come of the next one, so that waiting for it may be
/// given up at any moment without losing the stream.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The length and the bytes of the next frame, as far as they have come.
    buffer: Vec<u8>,
    last_bytes: usize,
}

impl FrameReader {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next value, or `None` when the stream ends cleanly between frames. Dropping the future loses
    /// nothing. It waits for as long as it takes: the caller knows how long that may be.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is of no more use.
    pub async fn next<R, T>(
        &mut self,
        stream: &mut R,
        what: &'static str,
        limit: usize,
    ) -> Result<Option<T>, FrameError>
    where
        R: AsyncRead + Unpin,
        T: BorshDeserialize,
    {
        loop {
            if let Some(bytes) = self.take(what, limit)? {
                self.last_bytes = bytes.len();
                return Ok(Some(croft_protocol::decode(what, &bytes, limit)?));
            }
            let read = stream.read_buf(&mut self.buffer).await;
            if read.map_err(|source| FrameError::Io { what, source })? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Ended { what }) };
            }
        }
    }

    /// Size of the last frame that [`Self::next`] gave, in bytes.
    #[must_use]
    pub fn last_bytes(&self) -> usize {
        self.last_bytes
    }

    /// The first frame in the buffer, if it is whole.
    fn take(&mut self, what: &'static str, limit: usize) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > limit {
            return Err(DecodeError::TooLarge { what, len, limit }.into());
        }
        if self.buffer.len() < 4 + len {
            return Ok(None);
        }
        let rest = self.buffer.split_off(4 + len);
        let mut frame = std::mem::replace(&mut self.buffer, rest);
        frame.drain(..4);
        Ok(Some(frame))
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Exchange {
    /// No byte of the request left: asking again elsewhere is safe.
    #[error("the request was not sent")]
    NotSent(#[source] LostError),
    #[error("the request was sent, but not answered")]
    Unanswered(#[source] FrameError),
}

/// Asks one question on a stream of its own and reads the one answer.
///
/// # Errors
/// [`Exchange`] says whether the request may have arrived.
pub async fn request(
    connection: &Connection,
    request: &Request,
    limit: usize,
    within: Duration,
) -> Result<Response, Exchange> {
    let deadline = Instant::now() + within;
    let (_, mut recv) = ask(connection, request, within).await?;
    let rest = deadline.saturating_duration_since(Instant::now());
    read(&mut recv, "the response", limit, rest).await.map_err(Exchange::Unanswered)
}

/// Sends a request and leaves the stream open for answers; our end of it is finished unless we say more on it.
pub(crate) async fn ask(
    connection: &Connection,
    request: &Request,
    within: Duration,
) -> Result<(quinn::SendStream, quinn::RecvStream), Exchange> {
    const WHAT: &str = "the request";
    let limit = request_limit(request);
    let bytes = encode(WHAT, request, limit).map_err(Exchange::Unanswered)?;
    let deadline = Instant::now() + within;
    let (mut send, recv) = timeout_at(deadline, connection.open())
        .await
        .map_err(|_| Exchange::Unanswered(slow("opening a stream", within)))?
        .map_err(Exchange::NotSent)?;
    let rest = deadline.saturating_duration_since(Instant::now());
    write_encoded(&mut send, WHAT, &bytes, rest).await.map_err(Exchange::Unanswered)?;
    if !matches!(request, Request::Relay { .. } | Request::RelayTo { .. } | Request::Vouch(_)) {
        // Fails only when the other end has stopped the stream; then reading says why.
        let _ = send.finish();
    }
    Ok((send, recv))
}

/// How large the frame of a request may be.
#[must_use]
pub fn request_limit(request: &Request) -> usize {
    match request {
        Request::PutBlob { .. } => limits::BLOB_BYTES + 64,
        _ => limits::REQUEST_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_frame_arrives_whole_and_the_end_is_seen() {
        let (mut a, mut b) = tokio::io::duplex(8);
        let writer = tokio::spawn(async move {
            write(&mut a, "a word", "a word longer than the pipe", 100, SECOND).await.unwrap();
        });
        let word: String = read(&mut b, "a word", 100, SECOND).await.unwrap();
        assert_eq!(word, "a word longer than the pipe");
        writer.await.unwrap();
        assert_eq!(read_or_end::<_, String>(&mut b, "a word", 100, SECOND).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(&101u32.to_le_bytes()).await.unwrap();
        let error = read::<_, String>(&mut b, "a word", 100, SECOND).await.unwrap_err();
        assert_eq!(error.to_string(), "a word has 101 bytes, more than the limit of 100");
        let error = write(&mut a, "a word", &[0u8; 101][..], 100, SECOND).await.unwrap_err();
        assert_eq!(error.to_string(), "a word has 105 bytes, more than the limit of 100: split it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_gave_up_waiting_goes_on_where_it_was() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let mut reader = FrameReader::new();
        let frames = [encode("a word", "one", 100).unwrap(), encode("a word", "two", 100).unwrap()].concat();
        for byte in &frames[..frames.len() - 1] {
            a.write_all(&[*byte]).await.unwrap();
            let read = reader.next::<_, String>(&mut b, "a word", 100);
            if let Ok(word) = tokio::time::timeout(SECOND, read).await {
                assert_eq!(word.unwrap().unwrap(), "one");
            }
        }
        a.write_all(&frames[frames.len() - 1..]).await.unwrap();
        assert_eq!(reader.next::<_, String>(&mut b, "a word", 100).await.unwrap().unwrap(), "two");
        a.write_all(&[1]).await.unwrap();
        drop(a);
        let error = reader.next::<_, String>(&mut b, "a word", 100).await.unwrap_err();
        assert_eq!(error.to_string(), "the other end ended the stream before a word was complete");
    }

    #[tokio::test]
    async fn a_torn_frame_is_named() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(&[10, 0, 0, 0, 1, 2]).await.unwrap();
        drop(a);
        let error = read::<_, String>(&mut b, "a word", 100, SECOND).await.unwrap_err();
        assert_eq!(error.to_string(), "the other end ended the stream before a word was complete");
    }

    #[tokio::test]
    async fn bytes_that_are_no_value_or_more_than_one_are_refused() {
        for bytes in [&[2, 0, 0, 0, 9, 9][..], &[6, 0, 0, 0, 1, 0, 0, 0, b'x', b'y'][..]] {
            let (mut a, mut b) = tokio::io::duplex(64);
            a.write_all(bytes).await.unwrap();
            let error = read::<_, String>(&mut b, "a word", 100, SECOND).await.unwrap_err();
            assert!(error.to_string().starts_with("a word is malformed: "), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_trickles_is_cut_off_at_the_limit() {
        let (mut a, mut b) = tokio::io::duplex(64);
        tokio::spawn(async move {
            a.write_all(&100u32.to_le_bytes()).await.unwrap();
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if a.write_all(&[0]).await.is_err() {
                    break;
                }
            }
        });
        let before = Instant::now();
        let error = read::<_, String>(&mut b, "a word", 100, SECOND).await.unwrap_err();
        assert_eq!(error.to_string(), "the other end is too slow: a word took more than 1000 ms");
        assert_eq!(before.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_cut_off_at_the_limit() {
        let (mut a, _b) = tokio::io::duplex(8);
        let error = write(&mut a, "a word", "much too long for the pipe", 100, SECOND).await.unwrap_err();
        assert_eq!(error.to_string(), "the other end is too slow: a word took more than 1000 ms");
    }
}
