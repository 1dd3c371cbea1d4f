//! HTTP/1.1 without a socket, as much as firmware needs: GET and HEAD of files, whole or one range (RFC 9110, 9112).
//!
//! Must never wait for a head without limit, and never read a body: no request here has one.

/// Longest head of a request; firmware sends some two hundred bytes.
pub const HEAD_BYTES: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;

/// A request whose head was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The path, as the machine wrote it, without a query.
    pub path: String,
    pub is_head: bool,
    /// The connection stays for the next request.
    pub keep_alive: bool,
    range: Option<Range>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    From(u64, Option<u64>),
    Last(u64),
}

/// Why a request is refused; the connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("not a request of HTTP/1.1")]
    Malformed,
    #[error("the head is longer than {HEAD_BYTES} bytes")]
    TooLong,
    #[error("only GET and HEAD are served")]
    Method,
    #[error("no request here has a body")]
    Body,
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub head: String,
    /// First byte and number of bytes of the file that follow.
    pub body: Option<(u64, u64)>,
}

impl Request {
    /// Reads the head at the beginning of `bytes`, and how long it is; `None` when more has to come.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Request::new(&mut headers);
        let end = match head.parse(bytes) {
            Ok(httparse::Status::Complete(end)) if end <= HEAD_BYTES => end,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLong),
            Err(_) => return Err(Refusal::Malformed),
        };
        let named = |name: &str| {
            let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok().map(str::trim)
        };
        let is_head = match head.method {
            Some("GET") => false,
            Some("HEAD") => true,
            _ => return Err(Refusal::Method),
        };
        if named("transfer-encoding").is_some() || named("content-length").is_some_and(|length| length != "0")
        {
            return Err(Refusal::Body);
        }
        let target = head.path.unwrap_or_default();
        // A proxy's form has the server in front (RFC 9112, 3.2.2).
        let target = target
            .strip_prefix("http://")
            .map_or(target, |rest| &rest[rest.find('/').unwrap_or(rest.len())..]);
        let path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
        let connection = named("connection").unwrap_or_default().to_ascii_lowercase();
        let keep_alive = if head.version == Some(1) {
            !connection.contains("close")
        } else {
            connection.contains("keep-alive")
        };
        // Defined for GET alone (RFC 9110, 14.2).
        let range = named("range").and_then(range).filter(|_| !is_head);
        Ok(Some((Self { path, is_head, keep_alive, range }, end)))
    }

    /// The answer with a file of this length.
    #[must_use]
    pub fn answer(&self, file_bytes: u64) -> Answer {
        let part = match self.range {
            None => Some((0, file_bytes)),
            Some(Range::From(first, last)) if first < file_bytes => {
                let end = last.map_or(file_bytes, |last| last.saturating_add(1).min(file_bytes));
                Some((first, end - first))
            }
            Some(Range::Last(count)) if count > 0 && file_bytes > 0 => {
                let count = count.min(file_bytes);
                Some((file_bytes - count, count))
            }
            Some(_) => None,
        };
        let Some((first, count)) = part else {
            let range = format!("Content-Range: bytes */{file_bytes}\r\n");
            return Answer { head: self.head("416 Range Not Satisfiable", 0, &range), body: None };
        };
        let (status, range) = if self.range.is_some() {
            let last = first + count - 1;
            ("206 Partial Content", format!("Content-Range: bytes {first}-{last}/{file_bytes}\r\n"))
        } else {
            ("200 OK", String::new())
        };
        let body = (!self.is_head && count > 0).then_some((first, count));
        Answer { head: self.head(status, count, &range), body }
    }

    /// The answer when there is no such file.
    #[must_use]
    pub fn not_found(&self) -> Answer {
        Answer { head: self.head("404 Not Found", 0, ""), body: None }
    }

    fn head(&self, status: &str, length: u64, more: &str) -> String {
        let connection = if self.keep_alive { "keep-alive" } else { "close" };
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nContent-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\nConnection: {connection}\r\n{more}\r\n"
        )
    }
}

impl Refusal {
    /// The whole answer; the connection ends after it.
    #[must_use]
    pub fn answer(&self) -> String {
        let status = match self {
            Self::Malformed | Self::Body => "400 Bad Request",
            Self::TooLong => "431 Request Header Fields Too Large",
            Self::Method => "405 Method Not Allowed\r\nAllow: GET, HEAD",
        };
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    }
}

/// One range of bytes. Anything else is left out, and the whole file is the answer (RFC 9110, 14.2).
fn range(value: &str) -> Option<Range> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
    };
    match (first.trim(), last.trim()) {
        ("", last) => number(last).map(Range::Last),
        (first, "") => number(first).map(|first| Range::From(first, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Range::From(first, Some(last)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Request {
        let (request, end) = Request::read(text.as_bytes()).unwrap().unwrap();
        assert_eq!(end, text.len());
        request
    }

    fn get(fields: &str) -> Answer {
        read(&format!("GET /croft.efi HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).answer(100)
    }

    #[test]
    fn a_file_is_answered_whole_or_in_the_one_part_that_was_asked_for() {
        let whole = get("");
        assert!(whole.head.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n"), "{}", whole.head);
        assert!(whole.head.ends_with("\r\n\r\n") && whole.head.contains("Connection: keep-alive\r\n"));
        assert_eq!(whole.body, Some((0, 100)));
        for (range, part, said) in [
            ("0-9", (0, 10), "bytes 0-9/100"),
            ("90-", (90, 10), "bytes 90-99/100"),
            ("90-500", (90, 10), "bytes 90-99/100"),
            ("-5", (95, 5), "bytes 95-99/100"),
            ("-500", (0, 100), "bytes 0-99/100"),
        ] {
            let answer = get(&format!("Range: bytes={range}\r\n"));
            assert_eq!(answer.body, Some(part), "{range}");
            assert!(
                answer.head.starts_with("HTTP/1.1 206 ") && answer.head.contains(said),
                "{}",
                answer.head
            );
        }
        for range in ["100-", "100-200", "-0"] {
            let answer = get(&format!("Range: bytes={range}\r\n"));
            assert!(
                answer.head.starts_with("HTTP/1.1 416 ") && answer.head.contains("bytes */100"),
                "{range}"
            );
        }
        for range in ["bytes=5-1", "bytes=0-1,5-6", "lines=1-2", "bytes=+1-2"] {
            assert_eq!(get(&format!("Range: {range}\r\n")).body, Some((0, 100)), "{range}");
        }
    }

    #[test]
    fn head_has_no_body_and_old_machines_end_the_connection() {
        let head = read("HEAD /croft.efi?x HTTP/1.1\r\n\r\n");
        assert_eq!((head.path.as_str(), head.answer(100).body), ("/croft.efi", None));
        assert!(head.answer(100).head.contains("Content-Length: 100\r\n"));
        for range in ["0-9", "100-"] {
            let part = read(&format!("HEAD /croft.efi HTTP/1.1\r\nRange: bytes={range}\r\n\r\n"));
            assert_eq!(part.answer(100), head.answer(100), "a part is of GET alone");
        }
        assert!(!read("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(!read("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").keep_alive);
        assert_eq!(read("GET http://192.0.2.1:8080/boot.ipxe HTTP/1.1\r\n\r\n").path, "/boot.ipxe");
        assert!(head.not_found().head.starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn what_is_no_request_for_a_file_is_refused_with_its_reason() {
        let refused = |text: &str| Request::read(text.as_bytes()).unwrap_err();
        assert_eq!(refused("POST / HTTP/1.1\r\n\r\n"), Refusal::Method);
        assert_eq!(refused("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"), Refusal::Body);
        assert_eq!(refused("\u{16}\u{3}\u{1}"), Refusal::Malformed);
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_BYTES));
        assert_eq!(refused(&long), Refusal::TooLong);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(65))), Refusal::TooLong);
        assert_eq!(Request::read(b"GET / HTTP/1.1\r\nHo").unwrap(), None, "more has to come");
        assert!(
            Refusal::Method.answer().contains("405") && Refusal::Method.answer().contains("Allow: GET, HEAD")
        );
    }
}
