//! Answers bots that call through a relay: logs to a contract's user, explanations to its parties.
//!
//! Who calls is known by the key that TLS inside the relayed stream proved, and by what the ledger says of that key. It must never answer anybody else, show a
//! secret, or let a caller hold more than a stream.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_microvm::logs::{LogItem, LogStart, Logs, Source, Subscription};
use croft_protocol::peer::{Explanation, LogLine, NodeRequest, NodeResponse};
use croft_protocol::{BotId, ContractId, Name, PublicKey, SecretKey, limits};
use croft_transport::verified::{Listener, Verified, VerifiedError};
use croft_transport::{PeerStream, Relayed, frame, peer_accept};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

/// Calls at a time; more are hung up.
const CALLS: usize = 32;
/// A caller that says nothing for so long is hung up.
const IDLE: Duration = Duration::from_secs(60);
/// A caller that takes a frame for longer is hung up.
const WRITE: Duration = Duration::from_secs(30);
/// Lines in one frame.
const LINES_PER_FRAME: usize = 64;
/// Text in one frame; a line of 16 KiB more still fits.
const PAGE_BYTES: usize = limits::PEER_MESSAGE_BYTES / 2;
/// What a line takes in a frame besides its text.
const LINE_BYTES: usize = 13;
/// For the other side to end its own.
const HANG_UP: Duration = Duration::from_secs(5);
/// How often it is looked up whether the key of somebody who follows still holds.
const KEY_LOOK: Duration = Duration::from_secs(60);
/// Lines at most when a caller asks for the past.
const TAIL_LINES: usize = 10_000;

/// What the desk knows of one contract.
#[derive(Clone)]
pub struct Entry {
    pub user: BotId,
    pub farmer: BotId,
    pub explanation: Explanation,
    pub logs: BTreeMap<Name, Logs>,
}

/// The contracts as the owner tasks describe them.
#[derive(Clone, Default)]
pub struct Desk {
    entries: Arc<Mutex<BTreeMap<ContractId, Entry>>>,
}

impl Desk {
    pub fn set(&self, contract: ContractId, entry: Entry) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(contract, entry);
    }

    pub fn remove(&self, contract: &ContractId) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(contract);
    }

    fn explain(&self, caller: &BotId, contract: &ContractId) -> Result<Explanation, String> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(contract).ok_or_else(|| unknown(contract))?;
        if *caller != entry.user && *caller != entry.farmer {
            return Err(format!("only the parties of contract {contract} may ask"));
        }
        Ok(entry.explanation.clone())
    }

    fn logs(
        &self,
        caller: &BotId,
        contract: &ContractId,
        vm: &Name,
        tail: u32,
        follow: bool,
    ) -> Result<Subscription, String> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(contract).ok_or_else(|| unknown(contract))?;
        if *caller != entry.user {
            return Err(format!("only the user of contract {contract} may read its logs"));
        }
        let logs = entry.logs.get(vm).ok_or_else(|| {
            let names: Vec<&str> = entry.logs.keys().map(Name::as_str).collect();
            format!("contract {contract} runs no microVM '{vm}' now; it runs: {}", names.join(", "))
        })?;
        Ok(logs.subscribe(LogStart::Tail((tail as usize).min(TAIL_LINES)), follow))
    }
}

fn unknown(contract: &ContractId) -> String {
    format!("this node does not know contract {contract}")
}

/// Answers calls until the listener ends.
pub async fn serve(mut listener: Listener, ledger: Verified, key: SecretKey, desk: Desk) {
    let calls = Arc::new(Semaphore::new(CALLS));
    while let Some(call) = listener.accept().await {
        let Ok(permit) = calls.clone().try_acquire_owned() else {
            tracing::warn!(from = %call.from.short(), "too many calls at a time: hung up");
            continue;
        };
        let (ledger, key, desk) = (ledger.clone(), key.clone(), desk.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(call, &ledger, &key, &desk).await {
                tracing::debug!(error, "a call ended");
            }
            drop(permit);
        });
    }
}

async fn answer(call: Relayed, ledger: &Verified, key: &SecretKey, desk: &Desk) -> Result<(), String> {
    let show = |e: &dyn std::error::Error| crate::ledger::chain_of(e);
    let (mut stream, proved) = peer_accept(call.stream, key).await.map_err(|e| show(&e))?;
    let request: NodeRequest = frame::read(&mut stream, "a request", limits::PEER_MESSAGE_BYTES, IDLE)
        .await
        .map_err(|e| show(&e))?;
    let send = |response: NodeResponse| frame::encode("an answer", &response, limits::PEER_MESSAGE_BYTES);
    let caller = match ledger.identity_of(proved).await {
        Ok(caller) => caller,
        Err(error) => {
            let bytes = send(NodeResponse::Refused { reason: show(&error) }).map_err(|e| show(&e))?;
            frame::write_encoded(&mut stream, "an answer", &bytes, WRITE).await.map_err(|e| show(&e))?;
            hang_up(stream).await;
            return Ok(());
        }
    };
    match request {
        NodeRequest::Explain { contract } => {
            let response = match desk.explain(&caller, &contract) {
                Ok(explanation) => NodeResponse::Explained(explanation),
                Err(reason) => NodeResponse::Refused { reason },
            };
            let bytes = send(response).map_err(|e| show(&e))?;
            frame::write_encoded(&mut stream, "an answer", &bytes, WRITE).await.map_err(|e| show(&e))?;
        }
        NodeRequest::Logs { contract, vm, tail_lines, follow } => {
            let mut lines = match desk.logs(&caller, &contract, &vm, tail_lines, follow) {
                Ok(lines) => lines,
                Err(reason) => {
                    let bytes = send(NodeResponse::Refused { reason }).map_err(|e| show(&e))?;
                    frame::write_encoded(&mut stream, "an answer", &bytes, WRITE)
                        .await
                        .map_err(|e| show(&e))?;
                    let _ = stream.shutdown().await;
                    return Ok(());
                }
            };
            // What is there already goes first and at once, even if it is nothing.
            let mut page = newest_that_fit(&mut lines);
            let mut watch = KeyWatch { ledger, proved, looked: Instant::now() };
            loop {
                let bytes = send(NodeResponse::Logs(page)).map_err(|e| show(&e))?;
                frame::write_encoded(&mut stream, "log lines", &bytes, WRITE).await.map_err(|e| show(&e))?;
                if !follow {
                    break;
                }
                let Some(first) = watch.next(&mut lines).await.map_err(|e| show(&e))? else { break };
                page = vec![line(first)];
                while page.len() < LINES_PER_FRAME
                    && page.iter().map(|line| line.text.len()).sum::<usize>() < PAGE_BYTES
                {
                    let Some(next) = lines.try_next() else { break };
                    page.push(line(next));
                }
            }
        }
    }
    hang_up(stream).await;
    Ok(())
}

/// Whoever follows for a month must not outlive his key.
struct KeyWatch<'a> {
    ledger: &'a Verified,
    proved: PublicKey,
    looked: Instant,
}

impl KeyWatch<'_> {
    /// The next line, as long as the key that asked for it holds.
    async fn next(&mut self, lines: &mut Subscription) -> Result<Option<LogItem>, VerifiedError> {
        loop {
            if self.looked.elapsed() >= KEY_LOOK {
                self.looked = Instant::now();
                // A ledger out of reach ends nothing.
                if let Err(error @ VerifiedError::Key(_)) = self.ledger.identity_of(self.proved).await {
                    return Err(error);
                }
            }
            if let Ok(next) = timeout_at(self.looked + KEY_LOOK, lines.next()).await {
                return Ok(next);
            }
        }
    }
}

/// Ends our side, and lets the other end its own first: what is still on its way would be lost with the stream.
async fn hang_up(mut stream: PeerStream) {
    let ended = async {
        stream.shutdown().await?;
        let mut rest = [0; 64];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // However it ends, there is nobody left to tell.
    let _ = timeout(HANG_UP, ended).await;
}

/// All lines that are there, without the oldest where one frame can't hold them.
fn newest_that_fit(lines: &mut Subscription) -> Vec<LogLine> {
    let mut page = VecDeque::new();
    let mut bytes = 0;
    while let Some(next) = lines.try_next() {
        let next = line(next);
        bytes += next.text.len() + LINE_BYTES;
        page.push_back(next);
        while bytes > PAGE_BYTES {
            let Some(oldest) = page.pop_front() else { break };
            bytes -= oldest.text.len() + LINE_BYTES;
        }
    }
    page.into()
}

fn line(item: LogItem) -> LogLine {
    match item {
        LogItem::Line(line) => LogLine {
            time_ms: line.time_ms,
            stderr: line.source != Source::Stdout,
            text: line.text.to_string(),
        },
        LogItem::Skipped(count) => {
            LogLine { time_ms: 0, stderr: true, text: format!("[{count} lines were dropped here]") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_microvm::spec::LogLimits;
    use croft_protocol::Hash;
    use croft_protocol::record::WorkloadState;

    fn desk() -> (Desk, ContractId) {
        let desk = Desk::default();
        let contract = ContractId(Hash([1; 32]));
        let logs = Logs::new(&LogLimits::default());
        logs.push(Source::Stdout, 5, b"one\ntwo\n");
        desk.set(
            contract,
            Entry {
                user: PublicKey([1; 32]),
                farmer: PublicKey([2; 32]),
                explanation: Explanation { state: WorkloadState::Running, steps: vec![], vms: vec![] },
                logs: BTreeMap::from([(Name::new("web").unwrap(), logs)]),
            },
        );
        (desk, contract)
    }

    #[tokio::test]
    async fn the_user_reads_its_logs() {
        let (desk, contract) = desk();
        let web = Name::new("web").unwrap();
        let mut lines = desk.logs(&PublicKey([1; 32]), &contract, &web, 1, false).unwrap();
        assert_eq!(line(lines.next().await.unwrap()).text, "two");
        assert!(lines.next().await.is_none());
    }

    #[tokio::test]
    async fn a_page_holds_the_newest_lines_that_fit() {
        let logs = Logs::new(&LogLimits::default());
        for n in 0..20 {
            logs.push(Source::Stdout, 5, format!("{n} {}\n", "x".repeat(10_000)).as_bytes());
        }
        let page = newest_that_fit(&mut logs.subscribe(LogStart::Start, false));
        assert!(page.len() < 20 && page.last().unwrap().text.starts_with("19 "));
        let frame = frame::encode("an answer", &NodeResponse::Logs(page), limits::PEER_MESSAGE_BYTES);
        assert!(frame.is_ok(), "the frame holds it");
    }

    #[tokio::test]
    async fn nobody_else_reads_them_and_is_told_why() {
        let (desk, contract) = desk();
        let web = Name::new("web").unwrap();
        for stranger in [PublicKey([2; 32]), PublicKey([3; 32])] {
            let refusal = desk.logs(&stranger, &contract, &web, 1, false).unwrap_err();
            assert_eq!(refusal, format!("only the user of contract {contract} may read its logs"));
        }
        assert!(desk.explain(&PublicKey([2; 32]), &contract).is_ok(), "the farmer may ask how it is");
        let refusal = desk.explain(&PublicKey([3; 32]), &contract).unwrap_err();
        assert_eq!(refusal, format!("only the parties of contract {contract} may ask"));
    }

    #[tokio::test]
    async fn a_wrong_name_is_answered_with_the_right_ones() {
        let (desk, contract) = desk();
        let db = Name::new("db").unwrap();
        let refusal = desk.logs(&PublicKey([1; 32]), &contract, &db, 1, false).unwrap_err();
        assert!(refusal.ends_with("runs no microVM 'db' now; it runs: web"), "{refusal}");
        let other = ContractId(Hash::ZERO);
        assert_eq!(desk.explain(&PublicKey([1; 32]), &other).unwrap_err(), unknown(&other));
    }
}
