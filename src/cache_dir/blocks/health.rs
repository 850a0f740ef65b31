//! Whether the cache is worth a try: after a failure it is left alone for a while.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the cache is left alone after a failure. Long enough that a full or failing disk is not asked with each read,
/// short enough that space that somebody makes is soon used.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// Reading or writing, each of which can fail alone.
#[derive(Debug)]
pub(super) struct Health {
    what: &'static str,
    has_failed: AtomicBool,
    off_until: Mutex<Option<Instant>>,
}

impl Health {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, has_failed: AtomicBool::new(false), off_until: Mutex::new(None) }
    }

    pub(super) fn is_off(&self) -> bool {
        if !self.has_failed.load(Ordering::Relaxed) {
            return false;
        }
        let off_until = self.off_until.lock().unwrap_or_else(PoisonError::into_inner);
        off_until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn works(&self) {
        if self.has_failed.load(Ordering::Relaxed) {
            let mut off_until = self.off_until.lock().unwrap_or_else(PoisonError::into_inner);
            // Of what was under way when another thread met the failure, success says nothing.
            if off_until.is_some_and(|until| Instant::now() >= until) {
                *off_until = None;
                self.has_failed.store(false, Ordering::Relaxed);
                tracing::info!("the disk cache can {} again", self.what);
            }
        }
    }

    /// Said once, however often it fails before it works again.
    pub(super) fn fails(&self, error: &dyn Display) {
        let mut off_until = self.off_until.lock().unwrap_or_else(PoisonError::into_inner);
        *off_until = Some(Instant::now() + LEFT_ALONE);
        if !self.has_failed.swap(true, Ordering::Relaxed) {
            tracing::warn!("the disk cache cannot {}, reading goes on without it: {error}", self.what);
        }
    }
}
