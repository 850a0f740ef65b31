//! Who holds states of restart points in memory.
//!
//! Problem: states have one bound for the whole process. Objects that were read once and lie idle may hold all of it, each with
//! too little to be packed, and whoever reads now could note nothing. Idea: all who hold some are on a list; when room is
//! short, one job packs and saves theirs, largest first, and where there is no file for them every other one goes.
//!
//! Invariants: nobody waits for it; at most one such job at a time, and a pause after one that did not help.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::ObjectReader;
use super::indexing::Indexing;

/// After room could not be made, for how long nobody tries again: whoever reads asks after each 256 KiB.
const PAUSE: Duration = Duration::from_millis(200);

/// The readers that hold states.
#[derive(Default)]
pub(super) struct Holders(Mutex<State>);

#[derive(Default)]
struct State {
    readers: Vec<Weak<ObjectReader>>,
    is_busy: bool,
    not_before: Option<Instant>,
}

/// The right to make room, until it is dropped.
pub(super) struct MakingRoom(Arc<Indexing>);

impl Holders {
    /// Puts a reader on the list; it sees to it that this is once.
    pub(super) fn add(&self, reader: Weak<ObjectReader>) {
        let mut state = self.lock();
        // Those that are gone make place before the list grows.
        if state.readers.len() == state.readers.capacity() {
            state.readers.retain(|reader| reader.strong_count() > 0);
        }
        state.readers.push(reader);
    }

    fn largest_first(&self) -> Vec<Arc<ObjectReader>> {
        let mut readers: Vec<_> = self.lock().readers.iter().filter_map(Weak::upgrade).collect();
        readers.sort_by_cached_key(|reader| std::cmp::Reverse(reader.held_bytes()));
        readers
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MakingRoom {
    /// `None` when somebody is at it, or it did not help a moment ago.
    pub(super) fn begin(indexing: &Arc<Indexing>) -> Option<Self> {
        let mut state = indexing.holders().lock();
        if state.is_busy || state.not_before.is_some_and(|time| Instant::now() < time) {
            return None;
        }
        state.is_busy = true;
        drop(state);
        Some(Self(indexing.clone()))
    }

    /// Makes room, as far as there is some to be made.
    pub(super) fn run(self) {
        let indexing = &self.0;
        let readers = indexing.holders().largest_first();
        for reader in readers.iter().take_while(|_| !indexing.has_much_room()) {
            reader.tidy(true);
        }
        // There is no file for what is left, so fewer must do.
        for reader in readers.iter().take_while(|_| !indexing.has_much_room()) {
            reader.thin();
        }
        indexing.holders().lock().not_before = indexing.needs_room().then(|| Instant::now() + PAUSE);
    }
}

impl Drop for MakingRoom {
    fn drop(&mut self) {
        self.0.holders().lock().is_busy = false;
    }
}
