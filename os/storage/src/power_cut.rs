//! A disk in memory that forgets what was not synced, for tests: after a number of operations the power is cut, and
//! [`Disk::after_the_cut`] is one of the states that the next boot may find.
//!
//! Harsher than any real filesystem: each change of a name that no folder sync covers is kept or lost by itself, and
//! bytes that no file sync covers are kept, lost, cut short or turned to garbage.

use crate::files::{Entry, Files, Sink};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

type Id = usize;

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
}

/// A change of a name in a folder, not yet durable.
#[derive(Debug, Clone)]
enum Change {
    Link(PathBuf, Id),
    Unlink(PathBuf),
    /// A new name for what is already there: it brings its file along, whatever became of the old name.
    Rename(PathBuf, PathBuf, Id),
}

#[derive(Debug, Default)]
struct State {
    contents: Vec<Content>,
    names: BTreeMap<PathBuf, Id>,
    durable_names: BTreeMap<PathBuf, Id>,
    changes: Vec<Change>,
    times: BTreeMap<PathBuf, u64>,
    clock: u64,
    operations: usize,
    cut_after: Option<usize>,
    /// Bytes that fit; everything when `None`.
    room: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets this many operations happen, then fails all others.
    pub(crate) fn cut_after(&self, operations: usize) {
        let mut state = self.state();
        state.operations = 0;
        state.cut_after = Some(operations);
    }

    pub(crate) fn operations(&self) -> usize {
        self.state().operations
    }

    pub(crate) fn limit_room(&self, bytes: u64) {
        self.state().room = Some(bytes);
    }

    /// Flips a bit of a file, as a dying disk does.
    pub(crate) fn damage(&self, path: &Path) {
        let mut state = self.state();
        let id = state.names[path];
        let content = &mut state.contents[id];
        let middle = content.current.len() / 2;
        content.current[middle] ^= 1;
        content.durable = content.current.clone();
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    /// What may be there at the next boot; `seed` chooses among the possible states.
    pub(crate) fn after_the_cut(&self, seed: u64) -> Self {
        let state = self.state();
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut names = state.durable_names.clone();
        for change in &state.changes {
            if random.one_of(2) == 0 {
                apply(&mut names, change);
            }
        }
        let contents: Vec<Content> = state
            .contents
            .iter()
            .map(|content| {
                let bytes = if content.durable == content.current {
                    content.durable.clone()
                } else {
                    let keep = random.one_of(content.current.len() as u64 + 1) as usize;
                    match random.one_of(4) {
                        0 => content.durable.clone(),
                        1 => content.current.clone(),
                        2 => content.current[..keep].to_vec(),
                        _ => content
                            .current
                            .iter()
                            .enumerate()
                            .map(|(i, b)| if i < keep { *b } else { 0 })
                            .collect(),
                    }
                };
                Content { durable: bytes.clone(), current: bytes }
            })
            .collect();
        let times = state.times.clone();
        Self(Arc::new(Mutex::new(State {
            contents,
            durable_names: names.clone(),
            names,
            times,
            clock: state.clock,
            ..State::default()
        })))
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Id>, change: &Change) {
    match change {
        Change::Link(path, id) => drop(names.insert(path.clone(), *id)),
        Change::Unlink(path) => drop(names.remove(path)),
        Change::Rename(from, to, id) => {
            if names.get(from) == Some(id) {
                names.remove(from);
            }
            names.insert(to.clone(), *id);
        }
    }
}

impl State {
    fn operate(&mut self) -> io::Result<()> {
        if self.cut_after.is_some_and(|limit| self.operations >= limit) {
            return Err(io::Error::other("the power is cut"));
        }
        self.operations += 1;
        self.clock += 1;
        Ok(())
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }

    fn find(&self, path: &Path) -> io::Result<Id> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

struct Random(u64);

impl Random {
    /// xorshift64*, good enough to choose states.
    fn one_of(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % count
    }
}

struct Writer {
    disk: Disk,
    id: Id,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.operate()?;
        let used: u64 = state.names.values().map(|id| state.contents[*id].current.len() as u64).sum();
        if state.room.is_some_and(|room| used + bytes.len() as u64 > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.contents[self.id].current.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Writer {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        let content = &mut state.contents[self.id];
        content.durable = content.current.clone();
        Ok(())
    }
}

impl Files for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        let mut state = self.state();
        state.operate()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.contents.len();
        state.contents.push(Content::default());
        state.change(Change::Link(path.into(), id));
        let clock = state.clock;
        state.times.insert(path.into(), clock);
        Ok(Box::new(Writer { disk: self.clone(), id }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let state = self.state();
        let bytes = state.contents[state.find(path)?].current.clone();
        Ok(Box::new(io::Cursor::new(bytes)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        let id = state.find(from)?;
        state.change(Change::Rename(from.into(), to.into(), id));
        let time = state.times.remove(from).unwrap_or(0);
        state.times.insert(to.into(), time);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        state.find(path)?;
        state.change(Change::Unlink(path.into()));
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        let concerns = |change: &Change| match change {
            Change::Link(name, _) | Change::Unlink(name) => name.parent() == Some(path),
            Change::Rename(from, to, _) => from.parent() == Some(path) || to.parent() == Some(path),
        };
        let changes = std::mem::take(&mut state.changes);
        for change in changes {
            if concerns(&change) {
                apply(&mut state.durable_names, &change);
            } else {
                state.changes.push(change);
            }
        }
        Ok(())
    }

    /// Folders are made once, before anything of value is written: they are always durable here.
    fn make_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let state = self.state();
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (name, id) in &state.names {
            let Ok(below) = name.strip_prefix(path) else { continue };
            let mut parts = below.components();
            let (Some(first), rest) = (parts.next(), parts.next()) else { continue };
            let text = first.as_os_str().to_str().unwrap().to_owned();
            let entry = Entry {
                name: text.clone(),
                bytes: if rest.is_none() { state.contents[*id].current.len() as u64 } else { 0 },
                folder: rest.is_some(),
                modified_ns: state.times.get(name).copied().unwrap_or(0),
            };
            entries.insert(text, entry);
        }
        Ok(entries.into_values().collect())
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        state.find(path)?;
        let clock = state.clock;
        state.times.insert(path.into(), clock);
        Ok(())
    }
}
