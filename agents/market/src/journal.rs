//! Where a bot writes what it is about to do, before it does it.
//!
//! ```text
//!   outputs: Write(entry) ──durable?──> the next output        (no: nothing after it is done, the bot starts again)
//! ```
//! The machines give entries; whoever runs them keeps the journal. It must never say that an entry is durable before it
//! is.

/// An append-only list of entries of one kind.
pub trait Journal<E> {
    /// Why an entry could not be written.
    type Error: std::error::Error;

    /// Returns when the entry survives a crash.
    ///
    /// # Errors
    /// When it may not: the caller must not go on.
    fn write(&mut self, entry: &E) -> Result<(), Self::Error>;

    /// Everything that was written, oldest first.
    ///
    /// # Errors
    /// When it can't be read.
    fn entries(&self) -> Result<Vec<E>, Self::Error>;
}

/// A journal in memory, for tests and simulators: it outlives the bot, not the process.
#[derive(Debug, Clone)]
pub struct MemoryJournal<E>(pub Vec<E>);

impl<E> Default for MemoryJournal<E> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<E: Clone> Journal<E> for MemoryJournal<E> {
    type Error = std::convert::Infallible;

    fn write(&mut self, entry: &E) -> Result<(), Self::Error> {
        self.0.push(entry.clone());
        Ok(())
    }

    fn entries(&self) -> Result<Vec<E>, Self::Error> {
        Ok(self.0.clone())
    }
}
