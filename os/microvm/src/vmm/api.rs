//! HTTP/1.1 over a Unix socket, as much as a VMM's API needs: one request per connection, bounded answers,
//! a time limit over everything.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Larger answers are not from the VMMs that we know.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
const MAX_HEADERS: usize = 32;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the API socket can't be reached")]
    Connect(#[source] io::Error),
    #[error("the API connection failed")]
    Io(#[source] io::Error),
    #[error("the API did not answer {method} {path} within {} ms", limit.as_millis())]
    Timeout { method: &'static str, path: String, limit: Duration },
    #[error("the answer to {method} {path} is not HTTP: {reason}")]
    Malformed { method: &'static str, path: String, reason: String },
    #[error("{method} {path} was answered with status {status}: {body}")]
    Status { method: &'static str, path: String, status: u16, body: String },
}

/// Sends a request and returns the body of a 2xx answer.
pub(crate) async fn request(
    socket: &Path,
    method: &'static str,
    path: &str,
    body: Option<&[u8]>,
    limit: Duration,
) -> Result<Vec<u8>, ApiError> {
    let exchange = exchange(socket, method, path, body);
    let timeout = || ApiError::Timeout { method, path: path.to_owned(), limit };
    let (status, body) = tokio::time::timeout(limit, exchange).await.map_err(|_| timeout())??;
    if (200..300).contains(&status) {
        Ok(body)
    } else {
        let body = String::from_utf8_lossy(&body).into_owned();
        Err(ApiError::Status { method, path: path.to_owned(), status, body })
    }
}

async fn exchange(
    socket: &Path,
    method: &'static str,
    path: &str,
    body: Option<&[u8]>,
) -> Result<(u16, Vec<u8>), ApiError> {
    let mut stream = UnixStream::connect(socket).await.map_err(ApiError::Connect)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    if let Some(body) = body {
        head.push_str("Content-Type: application/json\r\nContent-Length: ");
        head.push_str(&body.len().to_string());
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    stream.write_all(&bytes).await.map_err(ApiError::Io)?;
    let mut answer = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        let malformed =
            |reason: &str| ApiError::Malformed { method, path: path.to_owned(), reason: reason.to_owned() };
        match parse(&answer) {
            Parsed::Complete(status, body) => return Ok((status, body)),
            Parsed::Bad(reason) => return Err(malformed(&reason)),
            Parsed::Partial if answer.len() > MAX_ANSWER_BYTES => return Err(malformed("it is too long")),
            Parsed::Partial => {}
        }
        match stream.read(&mut buffer).await.map_err(ApiError::Io)? {
            0 => return Err(malformed("it ends early")),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Partial,
    Complete(u16, Vec<u8>),
    Bad(String),
}

fn parse(answer: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(answer) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(error) => return Parsed::Bad(error.to_string()),
    };
    let Some(status) = response.code else { return Parsed::Bad("it has no status".to_owned()) };
    // RFC 9110, section 15.
    if !(100..600).contains(&status) {
        return Parsed::Bad(format!("its status is {status}"));
    }
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = match length
        .map(|header| std::str::from_utf8(header.value).ok().and_then(|v| v.trim().parse().ok()))
    {
        // 204 and answers without a body say nothing.
        None => 0_usize,
        Some(Some(length)) if length <= MAX_ANSWER_BYTES => length,
        Some(_) => return Parsed::Bad("its length is not valid".to_owned()),
    };
    match answer.get(head..head + length) {
        Some(body) => Parsed::Complete(status, body.to_vec()),
        None => Parsed::Partial,
    }
}

/// For [`crate::fuzzing`]: status and body of an answer that is whole.
pub(crate) fn answer_of(bytes: &[u8]) -> Result<Option<(u16, Vec<u8>)>, String> {
    match parse(bytes) {
        Parsed::Partial => Ok(None),
        Parsed::Complete(status, body) => Ok(Some((status, body))),
        Parsed::Bad(reason) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Answers one request with `answer` and returns what was asked.
    async fn ask(answer: &'static [u8], body: Option<&'static [u8]>) -> (Result<Vec<u8>, ApiError>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            let mut buffer = vec![0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        });
        let result = request(&path, "PUT", "/api/v1/vm.boot", body, LIMIT).await;
        (result, server.await.unwrap())
    }

    #[tokio::test]
    async fn a_request_carries_its_body_and_length() {
        let (result, asked) =
            ask(b"HTTP/1.1 200 \r\nServer: x\r\nContent-Length: 2\r\n\r\nok", Some(b"{}")).await;
        assert_eq!(result.unwrap(), b"ok");
        assert!(asked.starts_with("PUT /api/v1/vm.boot HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with("Content-Length: 2\r\n\r\n{}"), "{asked}");
    }

    #[tokio::test]
    async fn an_empty_answer_is_a_success() {
        assert_eq!(ask(b"HTTP/1.1 204 No Content\r\n\r\n", None).await.0.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_refusal_shows_what_the_vmm_said() {
        let error =
            ask(b"HTTP/1.1 500 \r\nContent-Length: 12\r\n\r\nno such disk", None).await.0.unwrap_err();
        assert_eq!(error.to_string(), "PUT /api/v1/vm.boot was answered with status 500: no such disk");
    }

    #[tokio::test]
    async fn answers_that_end_early_or_are_not_http_are_errors() {
        let error = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", None).await.0.unwrap_err();
        assert!(error.to_string().ends_with("it ends early"), "{error}");
        let error = ask(b"HTTP/1.1 004 \r\n\r\n", None).await.0.unwrap_err();
        assert!(error.to_string().ends_with("its status is 4"), "{error}");
        let error = ask(b"what?\r\n\r\n", None).await.0.unwrap_err();
        assert!(error.to_string().contains("is not HTTP"), "{error}");
        let error = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", None).await.0.unwrap_err();
        assert!(error.to_string().ends_with("its length is not valid"), "{error}");
    }

    #[tokio::test]
    async fn a_silent_vmm_is_given_up_after_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let _listener = UnixListener::bind(&path).unwrap();
        let limit = Duration::from_millis(20);
        let error = request(&path, "GET", "/api/v1/vmm.ping", None, limit).await.unwrap_err();
        assert_eq!(error.to_string(), "the API did not answer GET /api/v1/vmm.ping within 20 ms");
    }

    proptest! {
        #[test]
        fn answers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&bytes);
            let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
            answer.extend(&bytes);
            let _ = parse(&answer);
        }
    }
}
