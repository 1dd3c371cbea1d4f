//! Mailboxes: sealed messages that wait for bots that take no calls now.
//!
//! ```text
//!   sender ──leave──> mail.redb, under its receiver ──fetch──> receiver ──drop──> gone
//!                          └── nobody fetched it within KEEP_MS ──> gone
//! ```
//! What is in a message nobody here can read; the sender of each is kept for the quotas and told to nobody. It must
//! never hand mail to anybody but its receiver, never forget what it acknowledged before that time is over, and never
//! take more of the disk than its quotas. It is no part of the ledger: a copy of a replica does not have it. Its
//! functions block.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_protocol::api::{Failure, Mail};
use croft_protocol::{BotId, Hash, PublicKey, limits};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::ordering::{Clock, wall_clock};
use crate::store::{RESERVED_BYTES, StoreError, free_bytes};

/// Name of the file in a replica's data folder.
const FILE: &str = "mail.redb";
/// Pages of it kept in memory.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// Free space below which no mail is taken: more than the ledger's reserve, so that mail never starves it.
const KEPT_FREE_BYTES: u64 = 4 * RESERVED_BYTES;
/// What a message costs beside its own bytes, on the disk and in memory.
const OVERHEAD_BYTES: u64 = 1024;
/// How long mail waits. Readers refuse what is older, so that they need not remember for ever what they have had.
const KEEP_MS: u64 = 30 * 86_400_000;
/// Expired mail that one request takes away: a few milliseconds.
const EXPIRED_AT_ONCE: usize = 128;
/// Bytes after which a page of mail is full.
const PAGE_BYTES: usize = 1024 * 1024;

type Key = (&'static [u8; 32], u64);
type Account = (&'static [u8; 32], u64, u64);

/// Receiver and number -> what is sealed.
const MAIL: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("mail");
/// Receiver and number -> sender, expiry, length.
const ROWS: TableDefinition<'_, Key, Account> = TableDefinition::new("rows");
/// Receiver and hash of what is sealed -> number.
const IDS: TableDefinition<'_, (&[u8; 32], &[u8; 32]), u64> = TableDefinition::new("ids");
/// "next" -> the next number.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NEXT: &str = "next";

/// How much may wait. Names are free, so who sends must not be able to fill what belongs to others.
#[derive(Debug, Clone, Copy)]
struct Quotas {
    receiver_messages: u32,
    receiver_bytes: u64,
    /// Of one sender for one receiver.
    pair_messages: u32,
    sender_bytes: u64,
    total_bytes: u64,
}

const QUOTAS: Quotas = Quotas {
    receiver_messages: 1_000,
    receiver_bytes: 8 * 1024 * 1024,
    pair_messages: 100,
    sender_bytes: 8 * 1024 * 1024,
    total_bytes: 256 * 1024 * 1024,
};

/// One message as it is accounted for.
#[derive(Debug, Clone, Copy)]
struct Row {
    from: BotId,
    to: BotId,
    number: u64,
    expires_ms: u64,
    len: u64,
}

impl Row {
    fn cost(&self) -> u64 {
        self.len + OVERHEAD_BYTES
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    messages: u32,
    bytes: u64,
}

impl Used {
    fn add(&mut self, row: &Row) {
        self.messages += 1;
        self.bytes += row.cost();
    }

    /// Whether anything is left.
    fn remove(&mut self, row: &Row) -> bool {
        self.messages -= 1;
        self.bytes -= row.cost();
        self.messages > 0
    }
}

/// Sums over all rows of the file.
#[derive(Debug, Default)]
struct Books {
    receivers: BTreeMap<BotId, Used>,
    senders: BTreeMap<BotId, Used>,
    pairs: BTreeMap<(BotId, BotId), Used>,
    total: Used,
    /// Expiry, receiver, number.
    expiry: BTreeSet<(u64, BotId, u64)>,
}

fn forget<K: Ord>(used: &mut BTreeMap<K, Used>, key: &K, row: &Row) {
    if used.get_mut(key).is_some_and(|used| !used.remove(row)) {
        used.remove(key);
    }
}

impl Books {
    fn add(&mut self, row: &Row) {
        self.receivers.entry(row.to).or_default().add(row);
        self.senders.entry(row.from).or_default().add(row);
        self.pairs.entry((row.from, row.to)).or_default().add(row);
        self.total.add(row);
        self.expiry.insert((row.expires_ms, row.to, row.number));
    }

    fn remove(&mut self, row: &Row) {
        forget(&mut self.receivers, &row.to, row);
        forget(&mut self.senders, &row.from, row);
        forget(&mut self.pairs, &(row.from, row.to), row);
        self.total.remove(row);
        self.expiry.remove(&(row.expires_ms, row.to, row.number));
    }

    fn check(&self, row: &Row, quotas: &Quotas) -> Result<(), Failure> {
        let quota = |what: String, remedy: &str| Err(Failure::Quota { what, remedy: remedy.to_owned() });
        let pair = self.pairs.get(&(row.from, row.to)).copied().unwrap_or_default();
        if pair.messages >= quotas.pair_messages {
            let what = format!("{} of your messages wait for {} already", pair.messages, row.to);
            return quota(what, "send more when it has read them");
        }
        let sender = self.senders.get(&row.from).copied().unwrap_or_default();
        if sender.bytes + row.cost() > quotas.sender_bytes {
            let what = format!("{} messages of yours wait for their receivers", sender.messages);
            return quota(what, "send more when some of them are read");
        }
        let receiver = self.receivers.get(&row.to).copied().unwrap_or_default();
        let over = receiver.bytes + row.cost() > quotas.receiver_bytes;
        if over || receiver.messages >= quotas.receiver_messages {
            let what = format!("the mailbox of {} is full: {} messages wait", row.to, receiver.messages);
            return quota(what, "it has to read some of them first");
        }
        if self.total.bytes + row.cost() > quotas.total_bytes {
            return Err(Failure::Busy { what: "its mailboxes are full".to_owned() });
        }
        Ok(())
    }
}

#[derive(Debug)]
struct State {
    /// `None` after a failure, until it is opened again.
    database: Option<Database>,
    books: Books,
}

impl State {
    fn run<T>(
        &mut self,
        path: &Path,
        now_ms: u64,
        work: impl FnOnce(&Database, &mut Books) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.database.is_none() {
            let (database, books) = open(path)?;
            *self = Self { database: Some(database), books };
        }
        let database = self.database.as_ref().ok_or(StoreError::Closed)?;
        expire(database, &mut self.books, now_ms)?;
        work(database, &mut self.books)
    }
}

/// The mailboxes of one replica.
pub(crate) struct Mailboxes {
    path: PathBuf,
    quotas: Quotas,
    clock: Clock,
    state: Mutex<State>,
}

impl fmt::Debug for Mailboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailboxes").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Mailboxes {
    /// Opens the mailboxes in a replica's data folder, or makes them.
    ///
    /// # Errors
    /// [`StoreError`] when the file can't be read.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_at(dir, QUOTAS, wall_clock())
    }

    fn open_at(dir: &Path, quotas: Quotas, clock: Clock) -> Result<Self, StoreError> {
        let path = Self::path(dir);
        let (database, books) = open(&path)?;
        let state = Mutex::new(State { database: Some(database), books });
        Ok(Self { path, quotas, clock, state })
    }

    /// Where they are.
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Keeps a message durably, and says until when. The same one again changes nothing.
    pub(crate) fn leave(&self, from: BotId, to: BotId, sealed: &[u8]) -> Result<u64, Failure> {
        let limit = limits::SEALED_MESSAGE_BYTES;
        if sealed.len() > limit {
            let (got, limit) = (sealed.len() as u64, limit as u64);
            return Err(Failure::TooMuch { what: "bytes of a sealed message".to_owned(), got, limit });
        }
        if sealed.is_empty() {
            return Err(Failure::Malformed { reason: "there is no message".to_owned() });
        }
        if free_bytes(&self.path).is_ok_and(|free| free < KEPT_FREE_BYTES) {
            return Err(Failure::Storage { reason: "its disk is nearly full".to_owned() });
        }
        let now_ms = (self.clock)();
        self.write(now_ms, |database, books| {
            let id = Hash::of_bytes(sealed);
            let transaction = database.begin_write()?;
            let row = {
                let mut ids = transaction.open_table(IDS)?;
                let mut rows = transaction.open_table(ROWS)?;
                let mut meta = transaction.open_table(META)?;
                let known = ids.get((&to.0, &id.0))?.map(|number| number.value());
                if let Some(number) = known
                    && let Some(row) = rows.get((&to.0, number))?
                {
                    return Ok(Ok(row.value().1));
                }
                let number = meta.get(NEXT)?.map_or(1, |next| next.value());
                let len = sealed.len() as u64;
                let row = Row { from, to, number, expires_ms: now_ms.saturating_add(KEEP_MS), len };
                if let Err(full) = books.check(&row, &self.quotas) {
                    return Ok(Err(full));
                }
                meta.insert(NEXT, number + 1)?;
                ids.insert((&to.0, &id.0), number)?;
                rows.insert((&to.0, number), (&from.0, row.expires_ms, len))?;
                transaction.open_table(MAIL)?.insert((&to.0, number), sealed)?;
                row
            };
            transaction.commit()?;
            books.add(&row);
            Ok(Ok(row.expires_ms))
        })?
    }

    /// A page of a bot's mail with numbers above one, oldest first, and whether there is more.
    pub(crate) fn fetch(&self, of: BotId, after: u64) -> Result<(Vec<Mail>, bool), Failure> {
        let now_ms = (self.clock)();
        self.write(now_ms, |database, _| {
            let transaction = database.begin_read()?;
            let rows = transaction.open_table(ROWS)?;
            let table = transaction.open_table(MAIL)?;
            let (mut mail, mut bytes) = (Vec::new(), 0);
            let Some(first) = after.checked_add(1) else { return Ok((mail, false)) };
            for entry in table.range((&of.0, first)..=(&of.0, u64::MAX))? {
                let (key, sealed) = entry?;
                let number = key.value().1;
                let expired = rows.get((&of.0, number))?.is_none_or(|row| row.value().1 <= now_ms);
                if expired {
                    continue;
                }
                if mail.len() >= limits::MAIL_PER_REQUEST || bytes >= PAGE_BYTES {
                    return Ok((mail, true));
                }
                let sealed = sealed.value().to_vec();
                bytes += sealed.len();
                mail.push(Mail { number, sealed });
            }
            Ok((mail, false))
        })
    }

    /// Removes mail that its receiver has; says how much of it was here.
    pub(crate) fn drop_mail(&self, of: BotId, mail: &[Hash]) -> Result<u32, Failure> {
        self.write((self.clock)(), |database, books| {
            let known: Vec<u64> = {
                let ids = database.begin_read()?.open_table(IDS)?;
                let mut known = BTreeSet::new();
                for id in mail {
                    known.extend(ids.get((&of.0, &id.0))?.map(|number| number.value()));
                }
                known.into_iter().collect()
            };
            let keys: Vec<_> = known.iter().map(|number| (of, *number)).collect();
            remove(database, books, &keys)?;
            Ok(u32::try_from(keys.len()).unwrap_or(u32::MAX))
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request at a time; first some of what has expired goes. After a failure the file is opened anew.
    fn write<T>(
        &self,
        now_ms: u64,
        work: impl FnOnce(&Database, &mut Books) -> Result<T, StoreError>,
    ) -> Result<T, Failure> {
        let state = &mut *self.lock();
        let done = state.run(&self.path, now_ms, work);
        done.map_err(|error| {
            state.database = None;
            tracing::error!(cause = crate::chain_of(&error), "the mailboxes can't be read or written");
            Failure::Storage { reason: "its mailboxes can't be read or written".to_owned() }
        })
    }
}

fn open(path: &Path) -> Result<(Database, Books), StoreError> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    let transaction = database.begin_write()?;
    let mut books = Books::default();
    {
        transaction.open_table(MAIL)?;
        transaction.open_table(IDS)?;
        transaction.open_table(META)?;
        let rows = transaction.open_table(ROWS)?;
        for entry in rows.iter()? {
            let (key, row) = entry?;
            books.add(&row_of(key.value(), row.value()));
        }
    }
    transaction.commit()?;
    Ok((database, books))
}

fn row_of((to, number): (&[u8; 32], u64), (from, expires_ms, len): (&[u8; 32], u64, u64)) -> Row {
    Row { from: PublicKey(*from), to: PublicKey(*to), number, expires_ms, len }
}

fn expire(database: &Database, books: &mut Books, now_ms: u64) -> Result<(), StoreError> {
    let over = books.expiry.iter().take_while(|(expires_ms, ..)| *expires_ms <= now_ms);
    let keys: Vec<_> = over.take(EXPIRED_AT_ONCE).map(|(_, to, number)| (*to, *number)).collect();
    remove(database, books, &keys)
}

fn remove(database: &Database, books: &mut Books, keys: &[(BotId, u64)]) -> Result<(), StoreError> {
    if keys.is_empty() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    let mut gone = Vec::with_capacity(keys.len());
    {
        let mut mail = transaction.open_table(MAIL)?;
        let mut rows = transaction.open_table(ROWS)?;
        let mut ids = transaction.open_table(IDS)?;
        for (to, number) in keys {
            let key = (&to.0, *number);
            if let Some(sealed) = mail.remove(key)? {
                ids.remove((&to.0, &Hash::of_bytes(sealed.value()).0))?;
            }
            gone.extend(rows.remove(key)?.map(|row| row_of(key, row.value())));
        }
    }
    transaction.commit()?;
    for row in &gone {
        books.remove(row);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const ANNA: PublicKey = PublicKey([1; 32]);
    const BEN: PublicKey = PublicKey([2; 32]);
    const EVE: PublicKey = PublicKey([3; 32]);

    struct Post {
        dir: tempfile::TempDir,
        now_ms: Arc<AtomicU64>,
        boxes: Mailboxes,
    }

    fn open(dir: &Path, now_ms: &Arc<AtomicU64>) -> Mailboxes {
        let quotas = Quotas { receiver_messages: 4, pair_messages: 3, ..QUOTAS };
        let now_ms = now_ms.clone();
        Mailboxes::open_at(dir, quotas, Arc::new(move || now_ms.load(Ordering::Relaxed))).unwrap()
    }

    impl Post {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let now_ms = Arc::new(AtomicU64::new(1_000));
            Self { boxes: open(dir.path(), &now_ms), dir, now_ms }
        }

        fn restart(self) -> Self {
            let Self { dir, now_ms, boxes } = self;
            drop(boxes);
            Self { boxes: open(dir.path(), &now_ms), dir, now_ms }
        }

        fn texts(&self, of: BotId) -> Vec<String> {
            let (mail, more) = self.boxes.fetch(of, 0).unwrap();
            assert!(!more);
            mail.into_iter().map(|mail| String::from_utf8(mail.sealed).unwrap()).collect()
        }

        fn left(&self, from: BotId, to: BotId, text: &str) -> Result<u64, String> {
            self.boxes.leave(from, to, text.as_bytes()).map_err(|failure| failure.to_string())
        }
    }

    #[test]
    fn mail_waits_for_its_receiver_over_a_restart_until_it_is_dropped() {
        let post = Post::new();
        assert_eq!(post.left(ANNA, BEN, "one"), Ok(1_000 + KEEP_MS));
        post.left(EVE, BEN, "two").unwrap();
        post.left(BEN, ANNA, "for anna").unwrap();
        let post = post.restart();
        assert_eq!(post.texts(BEN), ["one", "two"]);
        assert_eq!(post.texts(ANNA), ["for anna"]);
        assert_eq!(post.texts(EVE), [""; 0]);
        let id = Hash::of_bytes(b"one");
        assert_eq!(post.boxes.drop_mail(EVE, &[id]).unwrap(), 0, "only its receiver drops it");
        assert_eq!(post.boxes.drop_mail(BEN, &[id, id]).unwrap(), 1);
        assert_eq!(post.boxes.drop_mail(BEN, &[id]).unwrap(), 0);
        assert_eq!(post.restart().texts(BEN), ["two"]);
    }

    #[test]
    fn the_same_message_again_is_one_and_keeps_its_time() {
        let post = Post::new();
        post.left(ANNA, BEN, "one").unwrap();
        post.now_ms.store(5_000, Ordering::Relaxed);
        assert_eq!(post.left(ANNA, BEN, "one"), Ok(1_000 + KEEP_MS));
        assert_eq!(post.texts(BEN), ["one"]);
    }

    #[test]
    fn nobody_fills_what_belongs_to_others_and_reading_makes_room() {
        let post = Post::new();
        for text in ["1", "2", "3"] {
            post.left(EVE, BEN, text).unwrap();
        }
        assert_eq!(
            post.left(EVE, BEN, "4").unwrap_err(),
            format!("quota: 3 of your messages wait for {BEN} already; send more when it has read them")
        );
        post.left(ANNA, BEN, "5").unwrap();
        let full = format!(
            "quota: the mailbox of {BEN} is full: 4 messages wait; it has to read some of them first"
        );
        assert_eq!(post.left(ANNA, BEN, "6").unwrap_err(), full);
        let post = post.restart();
        assert_eq!(post.left(ANNA, BEN, "6").unwrap_err(), full, "a restart forgets no quota");
        post.left(EVE, ANNA, "7").unwrap();
        post.boxes.drop_mail(BEN, &[Hash::of_bytes(b"1")]).unwrap();
        post.left(ANNA, BEN, "6").unwrap();
    }

    #[test]
    fn mail_that_nobody_fetches_goes_when_its_time_is_over() {
        let post = Post::new();
        for text in ["1", "2", "3"] {
            post.left(EVE, BEN, text).unwrap();
        }
        post.now_ms.store(1_000 + KEEP_MS, Ordering::Relaxed);
        assert_eq!(post.texts(BEN), [""; 0]);
        post.left(EVE, BEN, "4").unwrap();
        assert_eq!(post.texts(BEN), ["4"]);
    }

    #[test]
    fn a_message_has_a_size_and_pages_go_on() {
        let post = Post::new();
        let long = "x".repeat(limits::SEALED_MESSAGE_BYTES + 1);
        let error = post.left(ANNA, BEN, &long).unwrap_err();
        assert!(error.contains("asks for 35073 bytes of a sealed message, at most 35072"), "{error}");
        assert!(post.left(ANNA, BEN, "").unwrap_err().contains("there is no message"));
        post.left(ANNA, BEN, "1").unwrap();
        post.left(ANNA, BEN, "2").unwrap();
        let (mail, _) = post.boxes.fetch(BEN, 0).unwrap();
        let (rest, more) = post.boxes.fetch(BEN, mail[0].number).unwrap();
        assert_eq!((rest.len(), more, rest[0].sealed.as_slice()), (1, false, &b"2"[..]));
        assert_eq!(post.boxes.fetch(BEN, u64::MAX).unwrap(), (Vec::new(), false));
    }
}
