//! Who is connected, and over which connection they can be called.
//!
//! It must never keep a connection alive, and never let one key hold more than its share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_protocol::PublicKey;
use croft_protocol::api::Service;
use croft_transport::Connection;
use tokio::sync::broadcast;

/// Connections of one key. A machine that reboots leaves one behind until it times out.
const CONNECTIONS_PER_KEY: usize = 8;
/// Comings and goings that a follower may be behind; then it reads all that concern it anew.
const CHANGES_BEHIND: usize = 1_024;

#[derive(Debug)]
struct Entry {
    connection: Connection,
    /// What it takes calls for; one thing, since a call does not say what it is about.
    listens: Option<Service>,
}

/// Everybody who is connected.
#[derive(Debug)]
pub(crate) struct Presence {
    connected: Mutex<BTreeMap<PublicKey, Vec<Entry>>>,
    changes: broadcast::Sender<(PublicKey, bool)>,
}

/// Takes its connection out when dropped.
#[derive(Debug)]
pub(crate) struct Present {
    presence: Arc<Presence>,
    key: PublicKey,
    id: usize,
}

impl Presence {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { connected: Mutex::default(), changes: broadcast::Sender::new(CHANGES_BEHIND) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PublicKey, Vec<Entry>>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection. Where a key has too many, its oldest one has to go.
    pub(crate) fn enter(self: &Arc<Self>, connection: Connection) -> Present {
        let (key, id) = (connection.peer(), connection.id());
        let mut connected = self.lock();
        let entries = connected.entry(key).or_default();
        if entries.len() >= CONNECTIONS_PER_KEY {
            let oldest = entries.remove(0);
            oldest
                .connection
                .close("a newer connection of the same key took its place: close those you don't use");
        }
        entries.push(Entry { connection, listens: None });
        if entries.len() == 1 {
            // Fails only when nobody follows.
            let _ = self.changes.send((key, true));
        }
        Present { presence: self.clone(), key, id }
    }

    pub(crate) fn is_connected(&self, key: &PublicKey) -> bool {
        self.lock().contains_key(key)
    }

    pub(crate) fn connections(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    /// The newest connection over which a key takes calls of a kind.
    pub(crate) fn listener(&self, key: &PublicKey, service: Service) -> Option<Connection> {
        let connected = self.lock();
        let mut entries = connected.get(key)?.iter().rev();
        let listening = entries.find(|e| e.listens == Some(service) && e.connection.is_open())?;
        Some(listening.connection.clone())
    }

    /// Who comes and goes from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<(PublicKey, bool)> {
        self.changes.subscribe()
    }
}

impl Present {
    /// From now on this connection takes calls of this kind.
    pub(crate) fn listen(&self, service: Service) {
        if let Some(entries) = self.presence.lock().get_mut(&self.key) {
            entries.iter_mut().filter(|e| e.connection.id() == self.id).for_each(|e| {
                e.listens = Some(service);
            });
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut connected = self.presence.lock();
        let Some(entries) = connected.get_mut(&self.key) else { return };
        entries.retain(|entry| entry.connection.id() != self.id);
        if entries.is_empty() {
            connected.remove(&self.key);
            let _ = self.presence.changes.send((self.key, false));
        }
    }
}
