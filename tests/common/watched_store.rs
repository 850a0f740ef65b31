//! A store in memory that tells which stored bytes were read, and lets a test hold a read until it says so.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use cinderfs::Result;
use cinderfs::store::memory::MemoryStore;
use cinderfs::store::{Listing, ObjectSource, ObjectStat, Store};
use cinderfs::types::ObjectName;

/// Longest that anything is held: a test that fails must not hang.
const HELD_MAX: Duration = Duration::from_secs(60);

/// The store; a clone is the same one.
#[derive(Clone, Default)]
pub(crate) struct WatchedStore {
    pub(crate) inner: Arc<MemoryStore>,
    watch: Arc<Watch>,
}

#[derive(Default)]
struct Watch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Each read of a data object: the object's name, and what was delivered.
    reads: Vec<(String, Range<u64>)>,
    /// Which reads are held: objects whose name contains this, stored bytes.
    gates: Vec<(String, Range<u64>)>,
    held: usize,
    /// How often a data object was opened.
    opened: usize,
}

struct WatchedSource {
    name: String,
    inner: Arc<dyn ObjectSource>,
    watch: Arc<Watch>,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl WatchedStore {
    /// Stored bytes of data objects read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes_of("")
    }

    /// Those of objects whose name contains `part`.
    pub(crate) fn read_bytes_of(&self, part: &str) -> u64 {
        let state = self.watch.lock();
        let ours = state.reads.iter().filter(|(name, _)| name.contains(part));
        ours.map(|(_, range)| range.end - range.start).sum()
    }

    /// The end of the furthest read of objects whose name contains `part`.
    pub(crate) fn read_to(&self, part: &str) -> u64 {
        let state = self.watch.lock();
        let ours = state.reads.iter().filter(|(name, _)| name.contains(part));
        ours.map(|(_, range)| range.end).max().unwrap_or(0)
    }

    /// All reads of data objects so far, runs of reads that follow each other as one; for the message of a failed test.
    pub(crate) fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (_, range) in &self.watch.lock().reads {
            match runs.iter_mut().rfind(|run| run.end == range.start) {
                Some(run) => run.end = range.end,
                None => runs.push(range.clone()),
            }
        }
        runs
    }

    /// Forgets what was read so far; returns its bytes.
    pub(crate) fn take_read_bytes(&self) -> u64 {
        let reads = std::mem::take(&mut self.watch.lock().reads);
        reads.iter().map(|(_, range)| range.end - range.start).sum()
    }

    /// How often data objects were opened.
    pub(crate) fn opened(&self) -> usize {
        self.watch.lock().opened
    }

    /// Holds reads that touch these stored bytes of objects whose name contains `part`.
    pub(crate) fn hold(&self, part: &str, bytes: Range<u64>) {
        self.watch.lock().gates.push((part.to_owned(), bytes));
    }

    /// Lets all go on.
    pub(crate) fn release(&self) {
        self.watch.lock().gates.clear();
        self.watch.changed.notify_all();
    }

    /// How many reads are held now.
    pub(crate) fn held(&self) -> usize {
        self.watch.lock().held
    }

    /// Lets all go on when it is dropped, also when the test fails.
    pub(crate) fn released_at_end(&self) -> Released {
        Released(self.clone())
    }
}

/// See [`WatchedStore::released_at_end`].
pub(crate) struct Released(WatchedStore);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Store for WatchedStore {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        self.inner.list(suffix)
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        let inner = self.inner.open(name)?;
        let name = name.as_str();
        if name.ends_with("_metadata") || name.ends_with("_sha256file") {
            return Ok(inner);
        }
        self.watch.lock().opened += 1;
        Ok(Arc::new(WatchedSource { name: name.to_owned(), inner, watch: self.watch.clone() }))
    }
}

impl ObjectSource for WatchedSource {
    fn stat(&self) -> &ObjectStat {
        self.inner.stat()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let end = offset + buf.len() as u64;
        let started = Instant::now();
        let mut state = self.watch.lock();
        let is_held = |state: &State| {
            let mut gates = state.gates.iter();
            gates.any(|(part, bytes)| self.name.contains(part) && bytes.start < end && offset < bytes.end)
        };
        if is_held(&state) {
            state.held += 1;
            while is_held(&state) && started.elapsed() < HELD_MAX {
                state = self.watch.changed.wait_timeout(state, HELD_MAX).unwrap().0;
            }
            state.held -= 1;
        }
        drop(state);
        let n = self.inner.read_at(buf, offset)?;
        self.watch.lock().reads.push((self.name.clone(), offset..offset + n as u64));
        Ok(n)
    }
}
