//! Decoded blocks, for all readers of all objects of the process.
//!
//! Problem: a block takes 20 ms to decode. Several readers of one object come to need the same block, one of them may be
//! decoding it already, and blocks are decoded before anybody asks; all that in bounded memory, whatever the number of
//! objects. Idea: one table. Who needs a block claims it: it is there, or somebody is decoding it and will be waited for,
//! or the claimer decodes it himself. A block that is only queued is taken by whoever needs it first.
//!
//! Invariants: a block is waited for only while a thread is decoding it, and a thread that decodes waits for nothing but the
//! store: so no circle. Blocks that were read and blocks that were not yet are bounded separately, in bytes: a reader
//! that leaves blocks behind it does not drive out those ahead of another. Results never depend on what is kept.
//!
//! The bounds are bounds of the process, as those of an allocator are, and say nothing about any object; so there is one
//! table for all ([`shared`]), and nobody has to carry it around.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::block::{Block, Decoded, LongBlock};

/// Blocks decoded ahead and not read yet hold at most this much, in bytes; also what is being decoded, by estimate.
const UNREAD_BYTES_MAX: usize = 24 << 20;

/// Blocks that were read are kept for other readers up to this size, in bytes: those of readers that go side by side, and of
/// random ones that soon return.
const READ_BYTES_MAX: usize = 8 << 20;

/// Blocks that may be queued, in work ahead, or unread. Each of them that is in work holds 4 MiB beside its plain bytes.
const AHEAD_BLOCKS_MAX: usize = 16;

/// What a block to come is taken to need: an ordinary one of level 9, with room to spare.
const AHEAD_BLOCK_BYTES: usize = 1 << 20;

/// After this time an unread block is one like any other: its reader has paused, or went elsewhere, and must not keep others
/// from reading ahead.
const UNREAD_FOR: Duration = Duration::from_secs(2);

/// What a block costs beside its plain bytes.
const ENTRY_BYTES: usize = 512;

/// The table of the process.
pub(super) fn shared() -> &'static Arc<DecodedBlocks> {
    static SHARED: LazyLock<Arc<DecodedBlocks>> = LazyLock::new(Arc::default);
    &SHARED
}

/// Which block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    /// The object, by a number that no other has.
    pub(super) object: u64,
    /// The bit at which the block begins.
    pub(super) at: u64,
    /// The level of its stream, which bounds its size.
    pub(super) level: u8,
}

/// Decoded blocks and those being decoded.
#[derive(Default)]
pub(super) struct DecodedBlocks {
    state: Mutex<State>,
}

struct State {
    pending: HashMap<Key, Pending>,
    /// How many of the pending are ahead of a reader.
    pending_ahead: usize,
    unread: LruCache<Key, (Instant, Done)>,
    unread_bytes: usize,
    read: LruCache<Key, Done>,
    read_bytes: usize,
}

struct Pending {
    is_ahead: bool,
    /// `None` while it is queued.
    flight: Option<Arc<Flight>>,
}

enum Done {
    Whole(Arc<Block>),
    /// Taken by the first who claims it.
    Long(Box<LongBlock>),
    /// Known to be too long to be kept.
    TooLong,
}

impl Done {
    fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Done::Whole(block) => block.plain.len(),
                Done::Long(block) => block.first.capacity() + block.decoder.memory_bytes(),
                Done::TooLong => 0,
            }
    }
}

/// A block that a thread is decoding.
#[derive(Default)]
pub(super) struct Flight {
    landed: Mutex<Option<Option<Arc<Block>>>>,
    changed: Condvar,
}

impl Flight {
    /// Waits for it to end. `None` when the block could not be decoded, or is not kept whole.
    pub(super) fn wait(&self) -> Option<Arc<Block>> {
        let mut landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(block) = &*landed {
                return block.clone();
            }
            landed = self.changed.wait(landed).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn land(&self, block: Option<Arc<Block>>) {
        *self.landed.lock().unwrap_or_else(PoisonError::into_inner) = Some(block);
        self.changed.notify_all();
    }
}

/// What a claimer gets.
pub(super) enum Claim {
    /// The block.
    Whole(Arc<Block>),
    /// A block that is too long to be kept, begun.
    Long(Box<LongBlock>),
    /// The task to decode it.
    Lead(Lead),
    /// Somebody else is decoding it.
    Wait(Arc<Flight>),
    /// The task to decode it for himself.
    Alone,
}

/// The task to decode a block. Dropped without a block, it passes to the next claimer.
pub(super) struct Lead {
    table: Arc<DecodedBlocks>,
    key: Key,
    flight: Arc<Flight>,
}

impl Lead {
    /// Files what a reader decoded for himself and for others.
    pub(super) fn read(self, block: Option<&Arc<Block>>) {
        let done = block.map_or(Done::TooLong, |block| Done::Whole(block.clone()));
        self.table.file(self.key, done, true);
        self.flight.land(block.cloned());
    }

    /// Files what was decoded ahead.
    pub(super) fn unread(self, decoded: Decoded) {
        let (done, block) = match decoded {
            Decoded::Whole(block) => {
                let block = Arc::new(block);
                (Done::Whole(block.clone()), Some(block))
            }
            Decoded::Long(block) => (Done::Long(Box::new(block)), None),
        };
        self.table.file(self.key, done, false);
        self.flight.land(block);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // Also after it was filed: then the pending is another's, or none, and the flight has landed.
        let mut state = self.table.lock();
        let is_own = |pending: &Pending| {
            pending.flight.as_ref().is_some_and(|flight| Arc::ptr_eq(flight, &self.flight))
        };
        if state.pending.get(&self.key).is_some_and(is_own) {
            state.remove_pending(&self.key);
            drop(state);
            self.flight.land(None);
        }
    }
}

impl DecodedBlocks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a reader who needs the block now.
    pub(super) fn claim(self: &Arc<Self>, key: Key) -> Claim {
        let mut state = self.lock();
        if let Some(done) = state.take(&key) {
            let (claim, kept) = match done {
                Done::Whole(block) => (Claim::Whole(block.clone()), Done::Whole(block)),
                Done::Long(block) => (Claim::Long(block), Done::TooLong),
                Done::TooLong => (Claim::Alone, Done::TooLong),
            };
            let dropped = state.put_read(key, kept);
            drop(state);
            drop(dropped);
            return claim;
        }
        match state.pending.get(&key) {
            Some(Pending { flight: Some(flight), .. }) => Claim::Wait(flight.clone()),
            _ => {
                state.remove_pending(&key);
                let flight = Arc::new(Flight::default());
                let pending = Pending { is_ahead: false, flight: Some(flight.clone()) };
                state.pending.insert(key, pending);
                Claim::Lead(Lead { table: self.clone(), key, flight })
            }
        }
    }

    /// Notes that somebody means to decode the block ahead: `Some(true)` if he is to queue a job for that, `Some(false)` if it is
    /// there or on its way, `None` if there is no room for it.
    pub(super) fn enqueue(&self, key: Key) -> Option<bool> {
        let mut state = self.lock();
        if state.pending.contains_key(&key) || state.unread.contains(&key) || state.read.contains(&key) {
            return Some(false);
        }
        let dropped = state.age();
        let blocks = state.pending_ahead + state.unread.len();
        let bytes = state.pending_ahead * AHEAD_BLOCK_BYTES + state.unread_bytes;
        let has_room = blocks < AHEAD_BLOCKS_MAX && bytes + AHEAD_BLOCK_BYTES <= UNREAD_BYTES_MAX;
        if has_room {
            state.pending.insert(key, Pending { is_ahead: true, flight: None });
            state.pending_ahead += 1;
        }
        drop(state);
        drop(dropped);
        has_room.then_some(true)
    }

    /// For a job that begins: the task, unless somebody has taken it since, or it is not wanted any more.
    pub(super) fn begin(self: &Arc<Self>, key: Key) -> Option<Lead> {
        let mut state = self.lock();
        let pending = state.pending.get_mut(&key).filter(|pending| pending.flight.is_none())?;
        let flight = Arc::new(Flight::default());
        pending.flight = Some(flight.clone());
        Some(Lead { table: self.clone(), key, flight })
    }

    /// Tells that a reader does not go on to the block he had enqueued.
    pub(super) fn release(&self, key: Key) {
        let mut state = self.lock();
        let is_queued = state.pending.get(&key).is_some_and(|pending| pending.flight.is_none());
        if is_queued {
            state.remove_pending(&key);
        } else if state.pending.get(&key).is_some_and(|pending| pending.is_ahead) {
            state.pending_ahead -= 1;
            if let Some(pending) = state.pending.get_mut(&key) {
                pending.is_ahead = false;
            }
        } else if state.unread.contains(&key)
            && let Some(done) = state.take(&key)
        {
            let dropped = state.put_read(key, done);
            drop(state);
            drop(dropped);
        }
    }

    /// Drops all blocks of an object that nobody reads any more.
    pub(super) fn forget(&self, object: u64) {
        let mut state = self.lock();
        let of_object = |key: &Key| key.object == object;
        let unread = state.unread.iter().map(|(key, _)| *key);
        let keys: Vec<Key> = unread.chain(state.read.iter().map(|(key, _)| *key)).filter(of_object).collect();
        let dropped: Vec<_> = keys.iter().map(|key| state.take(key)).collect();
        drop(state);
        drop(dropped);
    }

    fn file(&self, key: Key, done: Done, is_read: bool) {
        let mut state = self.lock();
        let was_ahead = state.remove_pending(&key);
        let dropped = if is_read || !was_ahead {
            state.put_read(key, done)
        } else {
            state.unread_bytes += done.bytes();
            state.unread.push(key, (Instant::now(), done));
            let mut dropped = state.age();
            // The last one stays: somebody may be about to take it.
            while state.unread_bytes > UNREAD_BYTES_MAX && state.unread.len() > 1 {
                let Some((key, _)) = state.unread.peek_lru() else { break };
                let key = *key;
                dropped.extend(state.take(&key));
            }
            dropped
        };
        drop(state);
        drop(dropped); // freeing megabytes takes a while
    }

    /// Bytes held, by the table's own count.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let state = self.lock();
        state.read_bytes + state.unread_bytes
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            pending: HashMap::new(),
            pending_ahead: 0,
            unread: LruCache::unbounded(),
            unread_bytes: 0,
            read: LruCache::unbounded(),
            read_bytes: 0,
        }
    }
}

impl State {
    /// Removes a pending block; whether it was ahead of a reader.
    fn remove_pending(&mut self, key: &Key) -> bool {
        let was_ahead = self.pending.remove(key).is_some_and(|pending| pending.is_ahead);
        self.pending_ahead -= usize::from(was_ahead);
        was_ahead
    }

    fn take(&mut self, key: &Key) -> Option<Done> {
        if let Some((_, done)) = self.unread.pop(key) {
            self.unread_bytes -= done.bytes();
            return Some(done);
        }
        let done = self.read.pop(key)?;
        self.read_bytes -= done.bytes();
        Some(done)
    }

    /// Keeps a block among those that were read; returns those that had to go, to be dropped without the lock.
    #[must_use]
    fn put_read(&mut self, key: Key, done: Done) -> Vec<Done> {
        let mut dropped: Vec<Done> = self.take(&key).into_iter().collect();
        self.read_bytes += done.bytes();
        self.read.push(key, done);
        while self.read_bytes > READ_BYTES_MAX {
            let Some((_, oldest)) = self.read.pop_lru() else { break };
            self.read_bytes -= oldest.bytes();
            dropped.push(oldest);
        }
        dropped
    }

    /// Makes blocks that nobody came for into ones like any other.
    #[must_use]
    fn age(&mut self) -> Vec<Done> {
        let mut dropped = Vec::new();
        while let Some((key, (since, _))) = self.unread.peek_lru()
            && since.elapsed() > UNREAD_FOR
        {
            let key = *key;
            let Some(done) = self.take(&key) else { break };
            dropped.extend(self.put_read(key, done));
        }
        dropped
    }
}
