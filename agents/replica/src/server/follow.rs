//! Streams of final headers with what concerns one follower.
//!
//! The first event is the tip without records: from then on nothing is missed. A follower that can't keep
//! up is told so and dropped; it catches up by reading. This must never hold up the making of blocks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use croft_protocol::api::{Concern, Event, Failure};
use croft_protocol::{Body, BotId, NodeId, PublicKey, Record, RecordId, encode, limits};
use croft_transport::{FrameError, SendStream, frame};
use tokio::io::AsyncWrite;
use tokio::sync::broadcast::error::RecvError;

use super::Server;
use crate::chain::{Chain, FinalBlock};
use crate::presence::Presence;
use crate::store::PAGE_BYTES;

/// Streams that one connection may follow.
pub(super) const FOLLOWS_PER_CONNECTION: usize = 8;
/// Things that one stream may be about.
const CONCERNS: usize = 512;
/// A follower that does not take an event for this long is dropped.
const EVENT_TIME: Duration = Duration::from_secs(10);

/// What a follower wants to hear of, ready to be looked up.
#[derive(Debug, Default)]
struct Concerns {
    records: BTreeSet<RecordId>,
    nodes: BTreeSet<NodeId>,
    bots: BTreeSet<BotId>,
    presence: BTreeSet<PublicKey>,
}

impl Concerns {
    fn new(concerning: Vec<Concern>) -> Result<Self, Failure> {
        if concerning.len() > CONCERNS {
            let (got, limit) = (concerning.len() as u64, CONCERNS as u64);
            return Err(Failure::TooMuch { what: "things to follow".to_owned(), got, limit });
        }
        let mut concerns = Self::default();
        for concern in concerning {
            match concern {
                Concern::Record(id) => concerns.records.insert(id),
                Concern::Node(node) => concerns.nodes.insert(node),
                Concern::Bot(bot) => concerns.bots.insert(bot),
                Concern::Presence(key) => concerns.presence.insert(key),
            };
        }
        Ok(concerns)
    }

    fn include(&self, record: &Record) -> bool {
        if self.records.contains(&record.id) {
            return true;
        }
        match &record.body {
            Body::Contract(contract) => {
                let terms = &contract.signed.terms;
                self.nodes.contains(&terms.node)
                    || self.bots.contains(&terms.user)
                    || self.bots.contains(&terms.farmer)
                    || terms.quorum.approvers.iter().any(|approver| self.bots.contains(&approver.bot))
            }
            Body::Transfer(transfer) => {
                self.bots.contains(&transfer.from) || self.bots.contains(&transfer.to)
            }
            Body::Drain(drain) => self.nodes.contains(&drain.node),
            Body::Reservation(reservation) => {
                let held = &reservation.signed.reservation;
                self.bots.contains(&held.user) || self.bots.contains(&held.farmer)
            }
            _ => false,
        }
    }

    /// A block as one event, or as several where its records would not fit into one.
    fn events(&self, block: &FinalBlock) -> Vec<Event> {
        let mut pages = vec![Vec::new()];
        let mut bytes = 0;
        for record in block.records.iter().filter(|record| self.include(record)) {
            let size = encode(record).len();
            if bytes + size > PAGE_BYTES && bytes > 0 {
                pages.push(Vec::new());
                bytes = 0;
            }
            bytes += size;
            pages.last_mut().expect("there is always a page").push(record.clone());
        }
        let header = || Box::new(block.header.clone());
        pages.into_iter().map(|records| Event::Block { header: header(), records }).collect()
    }
}

pub(super) async fn send<W>(stream: &mut W, event: &Event) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    frame::write(stream, "an event", event, limits::RESPONSE_BYTES, EVENT_TIME).await
}

/// Feeds one follower until either side ends it.
pub(super) async fn run(server: &Arc<Server>, concerning: Vec<Concern>, stream: &mut SendStream) {
    let hung_up = stream.stopped();
    let followed = tokio::select! {
        followed = follow(&server.chain, &server.presence, concerning, stream) => followed,
        _ = hung_up => return,
    };
    match followed {
        Ok(failure) => {
            // Whoever is too slow for events may be too slow for the reason.
            let _ = send(stream, &Event::Failed(failure)).await;
            let _ = stream.finish();
        }
        Err(error) => tracing::debug!(cause = crate::chain_of(&error), "a follower is gone"),
    }
}

/// Returns why the stream can't go on, or how it broke.
async fn follow<W>(
    chain: &Chain,
    presence: &Presence,
    concerning: Vec<Concern>,
    stream: &mut W,
) -> Result<Failure, FrameError>
where
    W: AsyncWrite + Unpin,
{
    let concerns = match Concerns::new(concerning) {
        Ok(concerns) => concerns,
        Err(failure) => return Ok(failure),
    };
    // Before the tip is read, so that no block falls between.
    let mut blocks = chain.subscribe();
    let mut changes = presence.subscribe();
    let tip = chain.latest().tip().clone();
    let mut seen = tip.header.height;
    send(stream, &Event::Block { header: Box::new(tip), records: Vec::new() }).await?;
    send_presence(presence, &concerns, stream).await?;
    loop {
        tokio::select! {
            block = blocks.recv() => match block {
                Ok(block) if block.header.header.height <= seen => {}
                Ok(block) => {
                    seen = block.header.header.height;
                    for event in concerns.events(&block) {
                        send(stream, &event).await?;
                    }
                }
                Err(RecvError::Lagged(blocks)) => {
                    let what = format!("you are {blocks} blocks too far behind and were dropped");
                    let remedy = "read what you missed by height, then follow again".to_owned();
                    return Ok(Failure::Quota { what, remedy });
                }
                Err(RecvError::Closed) => return Ok(stopping()),
            },
            change = changes.recv() => match change {
                Ok((key, connected)) if concerns.presence.contains(&key) => {
                    send(stream, &Event::Presence { key, connected }).await?;
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => send_presence(presence, &concerns, stream).await?,
                Err(RecvError::Closed) => return Ok(stopping()),
            },
        }
    }
}

fn stopping() -> Failure {
    Failure::Busy { what: "it is stopping".to_owned() }
}

async fn send_presence<W>(presence: &Presence, concerns: &Concerns, stream: &mut W) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    for key in &concerns.presence {
        let connected = presence.is_connected(key);
        send(stream, &Event::Presence { key: *key, connected }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::testing::Grid;

    struct Followed {
        grid: Grid,
        chain: Arc<Chain>,
        reader: DuplexStream,
        task: tokio::task::JoinHandle<Result<Failure, FrameError>>,
    }

    fn start(pipe_bytes: usize) -> Followed {
        let grid = Grid::new();
        let chain = Arc::new(Chain::new(grid.store().0));
        let (reader, mut writer) = duplex(pipe_bytes);
        let (followed, concerning) = (chain.clone(), vec![Concern::Bot(grid.user.public())]);
        let task = tokio::spawn(async move {
            let result = follow(&followed, &Presence::new(), concerning, &mut writer).await;
            if let Ok(failure) = &result {
                let _ = send(&mut writer, &Event::Failed(failure.clone())).await;
            }
            result
        });
        Followed { grid, chain, reader, task }
    }

    impl Followed {
        fn commit(&self) {
            let block = self.grid.block(self.chain.store(), &[]);
            self.chain.commit(block, || {}).unwrap();
        }

        async fn read(&mut self) -> Event {
            frame::read(&mut self.reader, "an event", limits::RESPONSE_BYTES, EVENT_TIME).await.unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_reads_nothing_is_dropped_and_blocks_go_on() {
        let followed = start(64);
        let begin = Instant::now();
        for _ in 0..100 {
            followed.commit();
        }
        let error = followed.task.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the other end is too slow: an event took more than 10000 ms");
        assert_eq!(begin.elapsed(), EVENT_TIME);
        assert_eq!(followed.chain.latest().height(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_falls_behind_is_told_what_to_do() {
        let mut followed = start(64);
        let Event::Block { header, .. } = followed.read().await else { panic!() };
        assert_eq!(header.header.height, 0);
        // Not a moment for the follower in between.
        for _ in 0..70 {
            followed.commit();
        }
        let Event::Failed(failure) = followed.read().await else { panic!() };
        assert_eq!(
            failure.to_string(),
            "quota: you are 6 blocks too far behind and were dropped; read what you missed by height, then follow again"
        );
        followed.task.await.unwrap().unwrap();
    }
}
