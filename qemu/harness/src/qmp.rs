//! QEMU's machine protocol (QEMU docs, interop/qmp-spec): one JSON object per line over a Unix socket.
//!
//! ```text
//! QEMU connects -> greeting -> qmp_capabilities -> commands <-> replies
//!                                                   events -> kept, waited for
//! ```
//!
//! Every command has a time limit, and a line a size limit. Must never mistake an event for a reply.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

/// QEMU answers at once, but a busy host runs it late.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// The longest answers are register dumps of a few kilobytes.
const MESSAGE_MAX_BYTES: u64 = 1 << 20;
/// Events kept for late waiters.
const EVENTS_MAX: usize = 1000;

/// Why a command brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU did not answer {command} within {limit:?}")]
    Timeout { command: String, limit: Duration },
    #[error("QEMU refused {command}: {message}")]
    Refused { command: String, message: String },
    #[error("QEMU closed its control socket before it answered {command}: the machine has ended")]
    Closed { command: String },
    #[error("QEMU sent something that is no QMP greeting: {message}")]
    Greeting { message: String },
    #[error("no event {event} from QEMU within {limit:.1?}; there were: {seen}")]
    NoEvent { event: String, limit: Duration, seen: String },
    #[error("the monitor could not do {command:?}: {message}")]
    Monitor { command: String, message: String },
    #[error("cannot speak to QEMU")]
    Io(#[from] std::io::Error),
}

/// An event, and its place among all events of this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub index: u64,
    pub name: String,
    pub data: Value,
}

#[derive(Debug, Default)]
struct Events {
    kept: VecDeque<Event>,
    next: u64,
}

/// The control connection of one machine.
#[derive(Debug)]
pub struct Qmp {
    line: tokio::sync::Mutex<CommandLine>,
    events: Arc<Mutex<Events>>,
    changed: watch::Receiver<u64>,
}

#[derive(Debug)]
struct CommandLine {
    writer: OwnedWriteHalf,
    replies: mpsc::Receiver<Value>,
    next_id: u64,
}

impl Qmp {
    /// Takes over a connection that QEMU opened, and negotiates.
    pub async fn negotiate(stream: UnixStream) -> Result<Self, QmpError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeting = tokio::time::timeout(COMMAND_LIMIT, read_message(&mut reader))
            .await
            .map_err(|_| QmpError::Timeout { command: "the connection".into(), limit: COMMAND_LIMIT })??;
        match greeting {
            Some(greeting) if greeting.get("QMP").is_some() => {}
            other => return Err(QmpError::Greeting { message: other.unwrap_or_default().to_string() }),
        }
        let (reply_sender, replies) = mpsc::channel(16);
        let (change_sender, changed) = watch::channel(0);
        let events = Arc::new(Mutex::new(Events::default()));
        tokio::spawn(read_all(reader, reply_sender, events.clone(), change_sender));
        let line = CommandLine { writer, replies, next_id: 1 };
        let qmp = Self { line: tokio::sync::Mutex::new(line), events, changed };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and returns its answer.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut line = self.line.lock().await;
        let exchange = line.exchange(command, arguments);
        tokio::time::timeout(COMMAND_LIMIT, exchange)
            .await
            .map_err(|_| QmpError::Timeout { command: command.into(), limit: COMMAND_LIMIT })?
    }

    /// Runs a command of the human monitor; what it prints is the answer.
    pub async fn monitor(&self, command: &str) -> Result<String, QmpError> {
        let arguments = json!({ "command-line": command });
        let answer = self.execute("human-monitor-command", arguments).await?;
        Ok(answer.as_str().unwrap_or_default().replace("\r\n", "\n"))
    }

    /// `running`, `paused`, `shutdown`, `prelaunch`… (QMP `RunState`).
    pub async fn status(&self) -> Result<String, QmpError> {
        let answer = self.execute("query-status", json!({})).await?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Writes what is on the screen to `file` as PNG.
    pub async fn screendump(&self, file: &Path) -> Result<(), QmpError> {
        self.execute("screendump", json!({ "filename": file, "format": "png" })).await.map(drop)
    }

    /// Index that the next event will have, to wait for what happens from now on.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).next
    }

    /// The first event `name` with an index of at least `from` (0: since power-on).
    pub async fn wait_event(&self, name: &str, from: u64, limit: Duration) -> Result<Event, QmpError> {
        let mut changed = self.changed.clone();
        let search = async {
            loop {
                changed.borrow_and_update();
                if let Some(event) = self.find_event(name, from) {
                    return Some(event);
                }
                if changed.changed().await.is_err() {
                    return self.find_event(name, from);
                }
            }
        };
        let found = tokio::time::timeout(limit, search).await.ok().flatten();
        found.ok_or_else(|| QmpError::NoEvent { event: name.into(), limit, seen: self.event_names() })
    }

    fn find_event(&self, name: &str, from: u64) -> Option<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.kept.iter().find(|event| event.index >= from && event.name == name).cloned()
    }

    fn event_names(&self) -> String {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<&str> = events.kept.iter().map(|event| event.name.as_str()).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }
}

impl CommandLine {
    async fn exchange(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        request.push('\n');
        let closed = || QmpError::Closed { command: command.into() };
        self.writer.write_all(request.as_bytes()).await.map_err(|_| closed())?;
        loop {
            let mut reply = self.replies.recv().await.ok_or_else(closed)?;
            // An answer to a command that ran out of time is not ours.
            if reply["id"] != json!(id) {
                continue;
            }
            if let Some(error) = reply.get("error") {
                let message = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(QmpError::Refused { command: command.into(), message });
            }
            return Ok(reply["return"].take());
        }
    }
}

async fn read_message(reader: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Option<Value>> {
    let mut line = String::new();
    if reader.take(MESSAGE_MAX_BYTES).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(std::io::Error::from)
}

async fn read_all(
    mut reader: BufReader<OwnedReadHalf>,
    replies: mpsc::Sender<Value>,
    events: Arc<Mutex<Events>>,
    changed: watch::Sender<u64>,
) {
    while let Ok(Some(message)) = read_message(&mut reader).await {
        let Value::Object(mut message) = message else { continue };
        if let Some(next) = keep_event(&mut message, &events) {
            changed.send_replace(next);
        } else if replies.send(Value::Object(message)).await.is_err() {
            return;
        }
    }
}

/// Keeps an event and returns the index of its successor; `None` when the message is a reply.
fn keep_event(message: &mut Map<String, Value>, events: &Mutex<Events>) -> Option<u64> {
    let name = message.get("event")?.as_str()?.to_owned();
    let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
    let index = events.next;
    events.next += 1;
    events.kept.push_back(Event { index, name, data: message.remove("data").unwrap_or_default() });
    if events.kept.len() > EVENTS_MAX {
        events.kept.pop_front();
    }
    Some(events.next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU of few words: answers each request with what `answer` makes of it.
    async fn fake(answer: impl Fn(&Value) -> Vec<Value> + Send + 'static) -> Result<Qmp, QmpError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let greeting = json!({ "QMP": { "version": {} } }).to_string() + "\n";
            writer.write_all(greeting.as_bytes()).await.unwrap();
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let request: Value = serde_json::from_str(&line).unwrap();
                let messages = if request["execute"] == "qmp_capabilities" {
                    vec![json!({ "return": {}, "id": request["id"] })]
                } else {
                    answer(&request)
                };
                for message in messages {
                    writer.write_all(format!("{message}\r\n").as_bytes()).await.unwrap();
                }
            }
        });
        Qmp::negotiate(ours).await
    }

    #[tokio::test]
    async fn a_reply_is_told_from_events_and_late_replies() {
        let qmp = fake(|request| {
            vec![
                json!({ "event": "RESET", "data": { "guest": true } }),
                json!({ "return": "late", "id": 0 }),
                json!({ "return": { "status": "running" }, "id": request["id"] }),
            ]
        })
        .await
        .unwrap();
        assert_eq!(qmp.status().await.unwrap(), "running");
        let event = qmp.wait_event("RESET", 0, Duration::from_secs(5)).await.unwrap();
        assert_eq!(event, Event { index: 0, name: "RESET".into(), data: json!({ "guest": true }) });
        assert_eq!(qmp.next_event(), 1);
    }

    #[tokio::test]
    async fn a_refusal_names_command_and_reason() {
        let qmp = fake(|request| {
            vec![json!({ "error": { "class": "GenericError", "desc": "no such disk" }, "id": request["id"] })]
        })
        .await
        .unwrap();
        let error = qmp.execute("eject", json!({ "device": "cd" })).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused eject: no such disk");
    }

    #[tokio::test]
    async fn silence_is_an_error_after_a_while() {
        let qmp = fake(|_| Vec::new()).await.unwrap();
        tokio::time::pause();
        let error = qmp.execute("stop", json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU did not answer stop within 30s");
        let error = qmp.wait_event("SHUTDOWN", 0, Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(error.to_string(), "no event SHUTDOWN from QEMU within 2.0s; there were: none");
    }

    #[tokio::test]
    async fn what_is_no_qmp_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"SSH\": 2}\n").await.unwrap();
        let error = Qmp::negotiate(ours).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU sent something that is no QMP greeting: {\"SSH\":2}");
    }

    #[tokio::test]
    async fn a_machine_that_ended_is_said_to_have() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        theirs.shutdown().await.unwrap();
        drop(theirs);
        let error = Qmp::negotiate(ours).await.unwrap_err();
        assert!(
            error.to_string().ends_with("before it answered qmp_capabilities: the machine has ended"),
            "{error}"
        );
    }
}
