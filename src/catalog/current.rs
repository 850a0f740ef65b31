//! The state of the store as it was looked at last, and when it is looked at again.
//!
//! Invariants: nobody waits long for a scan; what was known stays known when the store cannot be listed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::scan::Scan;
use super::{Shared, Snapshot, keep_unasked, lock};
use crate::error::{Error, Result};

/// A snapshot younger than this is current: whoever lists a directory asks several times.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// A store that takes long to scan is scanned less often, so that scanning takes at most a tenth of the time.
const SCAN_SHARE: u32 = 10;

/// And a store is scanned at least this often while somebody looks.
const SCAN_INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Who asks for the current state waits no longer than this for a scan, and then gets the last one.
const SCAN_WAIT_MAX: Duration = Duration::from_secs(1);

pub(super) struct Current {
    pub(super) snapshot: Arc<Snapshot>,
    /// Why the last scan failed, if it did.
    failure: Option<Error>,
    scanned: Instant,
    interval: Duration,
}

impl Current {
    pub(super) fn new(snapshot: Arc<Snapshot>, started: Instant) -> Self {
        let interval = (started.elapsed() * SCAN_SHARE).clamp(SCAN_INTERVAL, SCAN_INTERVAL_MAX);
        Self { snapshot, failure: None, scanned: Instant::now(), interval }
    }
}

impl Shared {
    pub(super) fn refresh(self: &Arc<Self>) -> Result<Arc<Snapshot>> {
        let (snapshot, failure, is_current) = {
            let current = lock(&self.current);
            let is_current = current.scanned.elapsed() < current.interval;
            (current.snapshot.clone(), current.failure.clone(), is_current)
        };
        // A store that fails may have lost what was known; one that does not answer says nothing.
        let believed =
            |failure: Error| if self.store().is_answering() { Err(failure) } else { Ok(snapshot.clone()) };
        let known = || failure.clone().map_or_else(|| Ok(snapshot.clone()), believed);
        if is_current || self.is_scanning.swap(true, Ordering::AcqRel) {
            return known();
        }
        // On a thread of its own, so that nobody waits for a store that takes its time.
        let (shared, (sender, scanned)) = (self.clone(), mpsc::sync_channel(1));
        let scan = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| shared.scan(lock(&shared.scanning))));
            shared.is_scanning.store(false, Ordering::Release);
            // Nobody listens when it took too long, or a bug stopped it.
            let _ = outcome.map(|outcome| sender.send(outcome));
        };
        if thread::Builder::new().name("scan".to_owned()).spawn(scan).is_err() {
            self.is_scanning.store(false, Ordering::Release);
            return known();
        }
        match scanned.recv_timeout(SCAN_WAIT_MAX) {
            Ok(outcome) => outcome.or_else(believed),
            Err(_) => known(),
        }
    }

    /// Scans now, however short ago the last scan was.
    pub(super) fn scan(&self, mut scan: MutexGuard<'_, Scan>) -> Result<Arc<Snapshot>> {
        let started = Instant::now();
        let scanned = scan.run(&**self.store(), &|name, backup| keep_unasked(&self.backups, name, backup));
        let mut current = lock(&self.current);
        match &scanned {
            Ok(snapshot) => {
                let before = std::mem::replace(&mut *current, Current::new(snapshot.clone(), started));
                drop(current);
                if !Arc::ptr_eq(&before.snapshot, snapshot) {
                    self.forget_gone(&before.snapshot, snapshot);
                }
            }
            Err(error) => {
                if current.failure.is_none() {
                    tracing::warn!("cannot list the store: {error}");
                }
                let snapshot = current.snapshot.clone();
                *current = Current { failure: Some(error.clone()), ..Current::new(snapshot, started) };
            }
        }
        scanned
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        lock(&self.current).snapshot.clone()
    }
}
