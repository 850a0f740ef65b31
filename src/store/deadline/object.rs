//! An object that is read under a deadline.
//!
//! Idea: an expendable thread reads by itself and only notes that it does; for all others a thread of [`Calls`] reads, into a buffer of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::LOOK_EVERY;
use super::calls::{Calls, is_answer};
use crate::error::{Error, ErrorKind, Result};
use crate::expendable;
use crate::store::{ObjectSource, ObjectStat};
use crate::types::ObjectName;

/// Longest read at once, in bytes; callers ask for less.
const READ_BYTES_MAX: usize = 1 << 20;

/// An object whose calls return in time.
pub(super) struct DeadlineObject {
    /// Taken when it is dropped: closing a file may hang as well.
    source: Option<Arc<dyn ObjectSource>>,
    stat: ObjectStat,
    name: ObjectName,
    calls: Arc<Calls>,
    is_far: bool,
    /// When one of its reads under way began, as a tick above 0.
    began: AtomicU32,
}

impl DeadlineObject {
    pub(super) fn new(source: Arc<dyn ObjectSource>, name: ObjectName, calls: Arc<Calls>) -> Self {
        let (stat, is_far) = (source.stat().clone(), source.is_far());
        Self { stat, source: Some(source), name, calls, is_far, began: AtomicU32::new(0) }
    }

    /// Does a call here, where this thread may and the object does not hang; else gives it back.
    fn here<T, F: FnOnce(&dyn ObjectSource) -> Result<T>>(&self, call: F) -> Result<Result<T>, F> {
        let calls = &*self.calls;
        let Some(source) = self.source.as_deref() else { return Err(call) };
        if !expendable::is_this_thread() || calls.is_stalled() {
            return Err(call);
        }
        let tick = calls.tick();
        let began = self.began.load(Ordering::Relaxed);
        let waited = if began == 0 { Duration::ZERO } else { tick.wrapping_sub(began - 1) * LOOK_EVERY };
        // A store that gives up by itself does so, and may wait for what comes slowly.
        if waited > calls.timeout() && !calls.has_judge() {
            let message = format!("object {:?} has not answered for {} s", self.name, waited.as_secs());
            return Ok(Err(Error::new(ErrorKind::StoreIo, message)));
        }
        let Some(under_way) = calls.reads.begin(tick) else { return Err(call) };
        let is_first = began == 0
            && self
                .began
                .compare_exchange(0, tick.saturating_add(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        let outcome = call(source);
        if is_first {
            self.began.store(0, Ordering::Relaxed);
        }
        drop(under_way);
        Ok(outcome)
    }

    /// The same for a call that the store has to answer.
    fn answered_here<T, F: FnOnce(&dyn ObjectSource) -> Result<T>>(&self, call: F) -> Result<Result<T>, F> {
        let began = self.calls.tick();
        let outcome = self.here(call)?;
        self.calls.returned_here(began, is_answer(&outcome));
        Ok(outcome)
    }

    fn source(&self) -> Result<&Arc<dyn ObjectSource>> {
        self.source.as_ref().ok_or_else(|| Error::new(ErrorKind::StoreIo, "the object is closed"))
    }
}

impl ObjectSource for DeadlineObject {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        if let Some(n) = self.read_at_hand(buf, offset) {
            return Ok(n);
        }
        if let Ok(outcome) = self.answered_here(|source| source.read_at(buf, offset)) {
            return outcome;
        }
        let source = self.source()?.clone();
        let len = buf.len().min(READ_BYTES_MAX);
        let mut own = self.calls.buffer();
        let (own, n) =
            self.calls.run(&format_args!("object {:?} at byte {offset}", self.name), move || {
                own.resize(len, 0);
                let n = source.read_at(&mut own, offset)?;
                Ok((own, n))
            })?;
        buf[..n].copy_from_slice(&own[..n]);
        self.calls.keep_buffer(own);
        Ok(n)
    }

    fn read_at_hand(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        // Who fetches ahead holds most of what is read: no thread needs to be sent for that.
        self.source.as_ref()?.read_at_hand(buf, offset)
    }

    fn will_need(&self, offset: u64, len: u64) {
        // Only advice: nobody is sent for it. What has deadlines takes it at once.
        if let (Some(source), true) = (&self.source, self.calls.has_judge()) {
            return source.will_need(offset, len);
        }
        let _ = self.here(|source| {
            source.will_need(offset, len);
            Ok(())
        });
    }

    fn will_read_on(&self, offset: u64) {
        // As above; a store on which this thread could hang has no such thing.
        if let (Some(source), true) = (&self.source, self.calls.has_judge()) {
            source.will_read_on(offset);
        }
    }

    fn doubt(&self) -> bool {
        // Of a store on which this thread could hang nothing is kept.
        self.calls.has_judge() && self.source.as_ref().is_some_and(|source| source.doubt())
    }

    fn is_far(&self) -> bool {
        self.is_far
    }

    fn may_go_stale(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.may_go_stale())
    }

    fn is_changed(&self) -> Result<bool> {
        if let Ok(outcome) = self.answered_here(|source| source.is_changed()) {
            return outcome;
        }
        let source = self.source()?.clone();
        self.calls.run(&format_args!("object {:?}", self.name), move || source.is_changed())
    }
}

impl Drop for DeadlineObject {
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            self.calls.start_and_forget(move || drop(source));
        }
    }
}
