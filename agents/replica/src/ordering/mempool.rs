//! Commands that wait for their block, by author and sequence number.
//!
//! A command whose predecessor is missing waits a moment for it. Authors take turns, so that one who sends
//! much delays only himself. No I/O and no clock: time comes in as an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use croft_ledger::SEQUENCE_WINDOW;
use croft_protocol::{PublicKey, Rejection, SignedCommand, encode, limits};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Verdict;

/// Commands that may wait in all: ten full blocks.
const WAITING: usize = 10 * limits::COMMANDS_PER_BLOCK;
/// Their bytes: bounds the memory that strangers can fill.
const WAITING_BYTES: usize = 8 * limits::BLOCK_BYTES;
/// How long a command waits for the one before it.
const GAP: Duration = Duration::from_secs(3);
/// Streams that may wait for one and the same command: a submitter who lost his connection asks again.
const ANSWERS: usize = 4;

#[derive(Debug)]
struct Waiting {
    command: SignedCommand,
    bytes: usize,
    arrived: Instant,
    answers: Vec<oneshot::Sender<Verdict>>,
}

/// A command and those who wait for its fate.
#[derive(Debug)]
pub struct Taken {
    pub command: SignedCommand,
    answers: Vec<oneshot::Sender<Verdict>>,
}

impl Taken {
    /// Tells everybody who waits.
    pub fn answer(self, verdict: Verdict) {
        for answer in self.answers {
            // Whoever hung up learns it from the ledger.
            let _ = answer.send(verdict.clone());
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub struct Mempool {
    authors: BTreeMap<PublicKey, BTreeMap<u64, Waiting>>,
    count: usize,
    bytes: usize,
    /// Whose turn was last.
    served: Option<PublicKey>,
    /// What came in here and other replicas have not heard of yet.
    fresh: VecDeque<(PublicKey, u64)>,
}

impl Mempool {
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Queues an admitted command.
    ///
    /// # Errors
    /// [`Rejection::Busy`] when the queue is full, [`Rejection::Sequence`] when another command has the same
    /// sequence number.
    pub fn insert(
        &mut self,
        command: SignedCommand,
        now: Instant,
    ) -> Result<oneshot::Receiver<Verdict>, Rejection> {
        let busy = Rejection::Busy { waiting: self.count as u64 };
        let (sender, receiver) = oneshot::channel();
        let (author, sequence) = (command.body.author, command.body.sequence);
        let queue = self.authors.get_mut(&author);
        if let Some(known) = queue.and_then(|queue| queue.get_mut(&sequence)) {
            if known.command != command {
                let queue = &self.authors[&author];
                let after =
                    (sequence..=sequence.saturating_add(SEQUENCE_WINDOW)).find(|s| !queue.contains_key(s));
                let free = after.unwrap_or(sequence);
                return Err(Rejection::Sequence { author, got: sequence, expected: free });
            }
            known.answers.retain(|answer| !answer.is_closed());
            if known.answers.len() >= ANSWERS {
                return Err(busy);
            }
            known.answers.push(sender);
            return Ok(receiver);
        }
        let bytes = encode(&command).len();
        let full = self.count >= WAITING || self.bytes + bytes > WAITING_BYTES;
        let queue = self.authors.entry(author).or_default();
        if full || queue.len() as u64 >= SEQUENCE_WINDOW {
            if queue.is_empty() {
                self.authors.remove(&author);
            }
            return Err(busy);
        }
        queue.insert(sequence, Waiting { command, bytes, arrived: now, answers: vec![sender] });
        if self.fresh.len() >= WAITING {
            // Nobody takes them: this replica has no others to tell.
            self.fresh.pop_front();
        }
        self.fresh.push_back((author, sequence));
        self.count += 1;
        self.bytes += bytes;
        Ok(receiver)
    }

    /// As [`Self::insert`], of a command that another replica passes on: nobody here waits for it.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn insert_passed_on(&mut self, command: SignedCommand, now: Instant) -> Result<(), Rejection> {
        let number = (command.body.author, command.body.sequence);
        self.insert(command, now)?;
        // It was put at the end, unless it was known: then it may still be on its way to others from here.
        if self.fresh.back() == Some(&number) {
            self.fresh.pop_back();
        }
        Ok(())
    }

    /// Whether this very command waits here.
    #[must_use]
    pub fn knows(&self, command: &SignedCommand) -> bool {
        let queue = self.authors.get(&command.body.author);
        queue.and_then(|q| q.get(&command.body.sequence)).is_some_and(|known| known.command == *command)
    }

    /// Commands that came in here since the last call, up to a number of bytes, at least one.
    pub fn take_fresh(&mut self, limit_bytes: usize) -> Vec<SignedCommand> {
        let mut commands = Vec::new();
        let mut bytes = 0;
        while let Some((author, sequence)) = self.fresh.front() {
            if let Some(waiting) = self.authors.get(author).and_then(|queue| queue.get(sequence)) {
                bytes += waiting.bytes;
                if bytes > limit_bytes && !commands.is_empty() {
                    break;
                }
                commands.push(waiting.command.clone());
            }
            self.fresh.pop_front();
        }
        commands
    }

    /// What [`Self::take_batch`] would take; it stays, until [`Self::settle`] tells what became of it.
    ///
    /// # Errors
    /// Whatever `next` fails with.
    pub fn peek_batch<E>(
        &mut self,
        next: impl FnMut(&PublicKey) -> Result<u64, E>,
    ) -> Result<Vec<SignedCommand>, E> {
        let picked = self.pick(next)?;
        Ok(picked.iter().map(|(author, sequence)| self.authors[author][sequence].command.clone()).collect())
    }

    /// Tells whoever waits for a command what became of it, and forgets it.
    pub fn settle(&mut self, command: &SignedCommand, verdict: Verdict) {
        if self.knows(command)
            && let Some(taken) = self.remove(&command.body.author, command.body.sequence)
        {
            taken.answer(verdict);
        }
    }

    /// Takes what fits into one block: of each author in turn the next in sequence. `next` tells an author's
    /// next sequence number on the ledger.
    ///
    /// # Errors
    /// Whatever `next` fails with; then nothing was taken.
    pub fn take_batch<E>(&mut self, next: impl FnMut(&PublicKey) -> Result<u64, E>) -> Result<Vec<Taken>, E> {
        let picked = self.pick(next)?;
        Ok(picked.iter().filter_map(|(author, sequence)| self.remove(author, *sequence)).collect())
    }

    /// Author and sequence number of what goes into the next block, in order.
    fn pick<E>(
        &mut self,
        mut next: impl FnMut(&PublicKey) -> Result<u64, E>,
    ) -> Result<Vec<(PublicKey, u64)>, E> {
        let mut expected = Vec::with_capacity(self.authors.len());
        for author in self.authors.keys() {
            expected.push((*author, next(author)?));
        }
        let turn = expected.partition_point(|(author, _)| Some(*author) <= self.served);
        expected.rotate_left(turn);
        for (author, sequence) in &expected {
            self.drop_used(author, *sequence);
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while !expected.is_empty() {
            let before = batch.len();
            let mut still = Vec::with_capacity(expected.len());
            for (author, sequence) in expected {
                let size = self.authors.get(&author).and_then(|q| q.get(&sequence)).map(|w| w.bytes);
                let Some(size) = size else { continue };
                if batch.len() >= limits::COMMANDS_PER_BLOCK || bytes + size > limits::BLOCK_BYTES {
                    return Ok(batch);
                }
                bytes += size;
                self.served = Some(author);
                batch.push((author, sequence));
                still.push((author, sequence + 1));
            }
            if batch.len() == before {
                break;
            }
            expected = still;
        }
        Ok(batch)
    }

    fn remove(&mut self, author: &PublicKey, sequence: u64) -> Option<Taken> {
        let queue = self.authors.get_mut(author)?;
        let waiting = queue.remove(&sequence)?;
        if queue.is_empty() {
            self.authors.remove(author);
        }
        self.count -= 1;
        self.bytes -= waiting.bytes;
        Some(Taken { command: waiting.command, answers: waiting.answers })
    }

    /// Rejects what was overtaken by another command with its sequence number.
    fn drop_used(&mut self, author: &PublicKey, expected: u64) {
        let Some(queue) = self.authors.get(author) else { return };
        let used: Vec<u64> = queue.range(..expected).map(|(sequence, _)| *sequence).collect();
        for got in used {
            if let Some(taken) = self.remove(author, got) {
                taken.answer(Verdict::Rejected(Rejection::Sequence { author: *author, got, expected }));
            }
        }
    }

    /// Rejects what waited too long for its predecessor, and what was overtaken by another command with its number.
    pub fn drop_gaps<E>(
        &mut self,
        now: Instant,
        mut next: impl FnMut(&PublicKey) -> Result<u64, E>,
    ) -> Result<(), E> {
        let mut late = Vec::new();
        for (author, queue) in &self.authors {
            let expected = next(author)?;
            let has_gap = !queue.contains_key(&expected);
            let old = |waiting: &Waiting| now >= waiting.arrived + GAP;
            let of = queue.iter().filter(|(got, waiting)| **got < expected || has_gap && old(waiting));
            late.extend(of.map(|(got, _)| (*author, *got, expected)));
        }
        for (author, got, expected) in late {
            if let Some(taken) = self.remove(&author, got) {
                taken.answer(Verdict::Rejected(Rejection::Sequence { author, got, expected }));
            }
        }
        Ok(())
    }

    /// Commands that could go into the next block and have waited for long, of each author the first, at most so
    /// many. A proposer may have refused them, or never heard of them.
    ///
    /// # Errors
    /// Whatever `next` fails with.
    pub fn overdue<E>(
        &self,
        now: Instant,
        most: usize,
        mut next: impl FnMut(&PublicKey) -> Result<u64, E>,
    ) -> Result<Vec<SignedCommand>, E> {
        let mut overdue = Vec::new();
        for (author, queue) in &self.authors {
            if overdue.len() >= most {
                break;
            }
            let first = queue.get(&next(author)?);
            overdue.extend(first.filter(|w| now >= w.arrived + GAP).map(|w| w.command.clone()));
        }
        Ok(overdue)
    }

    /// Has a command that waits here told to the other replicas once more.
    pub fn pass_on_again(&mut self, command: &SignedCommand) {
        let number = (command.body.author, command.body.sequence);
        if self.knows(command) && !self.fresh.contains(&number) && self.fresh.len() < WAITING {
            self.fresh.push_back(number);
        }
    }

    /// When [`Self::drop_gaps`] may have something to do.
    #[must_use]
    pub fn next_gap(&self) -> Option<Instant> {
        let waiting = self.authors.values().flat_map(BTreeMap::values);
        waiting.map(|waiting| waiting.arrived + GAP).min()
    }

    /// Takes everything, to be answered with a failure.
    pub fn drain(&mut self) -> Vec<Taken> {
        self.count = 0;
        self.bytes = 0;
        self.fresh.clear();
        let queues = std::mem::take(&mut self.authors).into_values();
        let waiting = queues.flat_map(BTreeMap::into_values);
        waiting.map(|w| Taken { command: w.command, answers: w.answers }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use croft_protocol::{ChainId, Command, CommandBody, ContractId, SecretKey};

    use super::*;

    fn command(seed: u8, sequence: u64, expires: u64) -> SignedCommand {
        let key = SecretKey::from_seed(&[seed; 32]);
        let body = CommandBody {
            chain: ChainId(croft_protocol::Hash::ZERO),
            author: key.public(),
            sequence,
            expires_height: expires,
            command: Command::Settle { contract: ContractId(croft_protocol::Hash::ZERO) },
        };
        SignedCommand::sign(body, &key)
    }

    fn key(seed: u8) -> PublicKey {
        SecretKey::from_seed(&[seed; 32]).public()
    }

    fn take(pool: &mut Mempool, from: u64) -> Vec<(PublicKey, u64)> {
        let batch = pool.take_batch(|_| Ok::<_, Infallible>(from)).unwrap();
        batch.into_iter().map(|t| (t.command.body.author, t.command.body.sequence)).collect()
    }

    #[test]
    fn one_author_may_have_several_in_sequence_in_one_batch_in_any_order_of_arrival() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let _answers: Vec<_> = [2, 0, 1].map(|s| pool.insert(command(1, s, 9), now).unwrap()).into();
        assert_eq!(take(&mut pool, 0), [(key(1), 0), (key(1), 1), (key(1), 2)]);
        assert!(pool.is_empty());
    }

    #[test]
    fn what_was_overtaken_is_rejected_whatever_else_its_author_has_here() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let mut answers = [7, 8].map(|s| pool.insert(command(1, s, 9), now).unwrap());
        pool.drop_gaps(now, |_| Ok::<_, Infallible>(8)).unwrap();
        let expected = Verdict::Rejected(Rejection::Sequence { author: key(1), got: 7, expected: 8 });
        assert_eq!(answers[0].try_recv(), Ok(expected));
        assert!(answers[1].try_recv().is_err(), "its turn is now");
        assert_eq!(pool.len(), 1);
    }

    #[test]
    fn what_could_be_final_and_waits_for_long_is_found_and_told_again() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let _answers: Vec<_> = [(1, 0), (1, 1), (2, 0), (3, 4)]
            .map(|(seed, s)| pool.insert(command(seed, s, 9), now).unwrap())
            .into();
        assert_eq!(pool.take_fresh(usize::MAX).len(), 4);
        let overdue = |pool: &Mempool, at, most| pool.overdue(at, most, |_| Ok::<_, Infallible>(0)).unwrap();
        assert_eq!(overdue(&pool, now + GAP - Duration::from_millis(1), 9), []);
        let found = overdue(&pool, now + GAP, 9);
        let mut expected = vec![command(1, 0, 9), command(2, 0, 9)];
        expected.sort_by_key(|command| command.body.author);
        assert_eq!(found, expected, "of each author the first, and none with a gap before it");
        assert_eq!(overdue(&pool, now + GAP, 1).len(), 1);
        for command in found.iter().chain(&found) {
            pool.pass_on_again(command);
        }
        assert_eq!(pool.take_fresh(usize::MAX), found, "each once");
        pool.pass_on_again(&command(7, 0, 9));
        assert_eq!(pool.take_fresh(usize::MAX), [], "what does not wait here is not told");
    }

    #[test]
    fn a_gap_is_waited_for_and_then_rejected_with_the_missing_number() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let mut answer = pool.insert(command(1, 5, 9), now).unwrap();
        assert_eq!(take(&mut pool, 3), []);
        pool.drop_gaps(now, |_| Ok::<_, Infallible>(3)).unwrap();
        assert_eq!(pool.len(), 1);
        assert_eq!(pool.next_gap(), Some(now + GAP));
        pool.drop_gaps(now + GAP, |_| Ok::<_, Infallible>(3)).unwrap();
        let expected = Rejection::Sequence { author: key(1), got: 5, expected: 3 };
        assert_eq!(answer.try_recv().unwrap(), Verdict::Rejected(expected));
        assert_eq!((pool.len(), pool.bytes), (0, 0));
    }

    #[test]
    fn a_number_that_was_used_meanwhile_is_rejected() {
        let mut pool = Mempool::default();
        let mut answer = pool.insert(command(1, 5, 9), Instant::now()).unwrap();
        assert_eq!(take(&mut pool, 6), []);
        let expected = Rejection::Sequence { author: key(1), got: 5, expected: 6 };
        assert_eq!(answer.try_recv().unwrap(), Verdict::Rejected(expected));
    }

    #[test]
    fn the_same_command_twice_waits_once_and_both_hear_of_it() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let mut answers: Vec<_> = (0..ANSWERS).map(|_| pool.insert(command(1, 0, 9), now).unwrap()).collect();
        assert_eq!(pool.len(), 1);
        assert_eq!(pool.insert(command(1, 0, 9), now).unwrap_err(), Rejection::Busy { waiting: 1 });
        let verdict = Verdict::Final { height: 1, records: Vec::new() };
        let batch = pool.take_batch(|_| Ok::<_, Infallible>(0)).unwrap();
        for taken in batch {
            taken.answer(verdict.clone());
        }
        assert!(answers.iter_mut().all(|answer| answer.try_recv().unwrap() == verdict));
    }

    #[test]
    fn another_command_with_the_same_number_is_told_the_next_free_one() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let _answers = [0, 1].map(|s| pool.insert(command(1, s, 9), now).unwrap());
        let expected = Rejection::Sequence { author: key(1), got: 0, expected: 2 };
        assert_eq!(pool.insert(command(1, 0, 10), now).unwrap_err(), expected);
    }

    #[test]
    fn who_sends_much_delays_only_himself() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let many: Vec<_> = (0..20u64).map(|s| pool.insert(command(1, s, 9), now).unwrap()).collect();
        let one = pool.insert(command(2, 0, 9), now).unwrap();
        let batch = take(&mut pool, 0);
        let place = batch.iter().position(|(author, _)| *author == key(2)).unwrap();
        assert!(place < 2, "place {place}");
        drop((many, one));
    }

    #[test]
    fn a_block_is_never_over_its_limit_and_the_next_goes_on_with_the_next_author() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let mut answers = Vec::new();
        for seed in 0..40 {
            for sequence in 0..SEQUENCE_WINDOW {
                answers.push(pool.insert(command(seed, sequence, 9), now).unwrap());
            }
        }
        let first = pool.take_batch(|_| Ok::<_, Infallible>(0)).unwrap();
        assert_eq!(first.len(), limits::COMMANDS_PER_BLOCK);
        let last = first.last().unwrap().command.body.author;
        let mut used: BTreeMap<PublicKey, u64> = BTreeMap::new();
        for taken in &first {
            *used.entry(taken.command.body.author).or_default() += 1;
        }
        let second = pool.take_batch(|author| Ok::<_, Infallible>(used[author])).unwrap();
        let after = used.keys().find(|author| **author > last).or(used.keys().next()).unwrap();
        assert_eq!(second[0].command.body.author, *after);
    }

    #[test]
    fn a_full_queue_says_how_many_wait() {
        let mut pool = Mempool::default();
        let now = Instant::now();
        let answers: Vec<_> =
            (0..SEQUENCE_WINDOW).map(|s| pool.insert(command(1, s, 9), now).unwrap()).collect();
        let error = pool.insert(command(1, SEQUENCE_WINDOW, 9), now).unwrap_err();
        assert_eq!(error, Rejection::Busy { waiting: SEQUENCE_WINDOW });
        assert_eq!(pool.drain().len(), answers.len());
        assert_eq!((pool.len(), pool.bytes), (0, 0));
    }
}
