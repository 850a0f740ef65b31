//! A store that answers in time, or says that it does not.
//!
//! Problem: a call on a file of a server that hangs does not return, and nothing can make it: not a signal, not a closed
//! descriptor. Whoever waits in it holds what others wait for in turn. Idea: such calls run on threads of their own, and
//! the caller waits for a limited time. A thread that is *stuck* is left behind and joins again when its call returns.
//!
//! ```text
//!   answers --- a call takes longer than the timeout ---> stalled: further calls fail at once, but for a probe now and then
//!      ^                                                      |
//!      +------ a stuck call returns, or a probe does ---------+
//! ```
//!
//! A page cache, or a client of a share, answers for a server that is away. So what ends a stall has, beside its own answer, one to
//! [`Store::hello`].
//!
//! A thread more on the way halves what small reads can do, so it is taken only where it must be:
//! - an object that [is local](ObjectSource::is_local) is read by the caller: this machine's disks have timeouts of their own;
//! - an [expendable](crate::expendable) thread reads by itself, and is left in the call by whoever gave it its work;
//! - opening and listing always take the way, because what lies in a folder may be anybody's mount.
//!
//! A store that gives up calls by itself tells [how long nothing came](Store::silence) and is the one to say whether it answers: a call that it
//! gave up tells nothing but that. Its calls take as long as something comes, to them or, while they wait in line, to others; a listing ends early
//! only when the command is cancelled.
//!
//! What expendable threads have under way is [looked at](DeadlineStore::look) now and then. One that hangs while the store opens others fails
//! the reads of its object only; else the store has stalled.
//!
//! Invariants: a call of a thread that is not expendable returns within the timeout, or within it after the last byte that came; at most [`THREADS_MAX`](calls::THREADS_MAX) threads exist, at most [`STUCK_MAX`](calls::STUCK_MAX) of them stuck (beyond,
//! nothing is tried until one returns), and they end when nobody needs them; a thread that was left behind writes to buffers of its own only.

mod calls;
mod object;
mod under_way;

use std::ffi::OsStr;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use self::calls::Calls;
use self::object::DeadlineObject;
use super::{ListedObject, Listing, ObjectSource, ObjectVersion, Part, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// Who only wants to know whether something has changed does not wait longer than this.
const SLOW: Duration = Duration::from_secs(1);

/// How often the calls under way are to be looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long a call may take unless told, in seconds: longer than a disk that spins up or a server that fails over within NFS's first
/// retries, shorter than what waits for the reader.
pub const TIMEOUT_SECONDS: u64 = 30;

/// The longest that may be asked for, in seconds.
pub const TIMEOUT_SECONDS_MAX: u64 = 3600;

/// A store whose calls return in time.
pub struct DeadlineStore {
    inner: Arc<dyn Store>,
    calls: Arc<Calls>,
}

impl DeadlineStore {
    /// Gives each call to `inner` this much time, from [`arm`](Self::arm) on.
    pub fn new(inner: Arc<dyn Store>, timeout: Duration) -> Self {
        let calls = Arc::new(Calls::new(&inner, timeout));
        Self { inner, calls }
    }

    /// The same without a limit: calls take the time they take, and are noted meanwhile.
    #[must_use]
    pub fn unlimited(inner: Arc<dyn Store>) -> Self {
        Self::new(inner, Duration::MAX)
    }

    /// The same, whose calls end early with [`ErrorKind::Interrupted`] once `is_cancelled` says so.
    #[must_use]
    pub fn cancelled_by(inner: Arc<dyn Store>, timeout: Duration, is_cancelled: fn() -> bool) -> Self {
        let calls = Arc::new(Calls::cancelled_by(&inner, timeout, is_cancelled));
        Self { inner, calls }
    }

    fn listed<T: Send + 'static>(&self, list: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        // Pages come one after the other for as long as it takes, and such a store notices when none does.
        let patience = if self.inner.silence().is_some() { None } else { Some(self.timeout()) };
        self.calls.run_within(patience, &"the list of its objects", list)
    }

    fn opened(
        &self,
        name: &ObjectName,
        open: impl FnOnce() -> Result<Arc<dyn ObjectSource>> + Send + 'static,
    ) -> Result<Arc<dyn ObjectSource>> {
        let source = self.calls.run(&format_args!("object {name:?}"), open)?;
        if source.is_local() {
            return Ok(source);
        }
        Ok(Arc::new(DeadlineObject::new(source, name.clone(), self.calls.clone())))
    }

    /// How long a call may take.
    pub fn timeout(&self) -> Duration {
        self.calls.timeout()
    }

    /// Ends the threads, which must be idle, and goes back to before [`arm`](Self::arm). An error when one is stuck.
    pub fn disarm(&self) -> Result<()> {
        self.calls.disarm()?;
        self.inner.rest()
    }

    /// Looks at what is under way; to be called each [`LOOK_EVERY`] where expendable threads read.
    pub fn look(&self) -> Look {
        self.calls.look()
    }

    /// From now on calls are limited, and threads are started for them. Before, they take the time they take: a process that
    /// is not set up yet may want to have one thread only.
    pub fn arm(&self) {
        self.calls.arm();
    }
}

/// How a store answers.
#[derive(Clone, Copy, Default, Debug)]
pub struct Look {
    /// A call takes longer than a second.
    pub is_slow: bool,
    /// A call takes longer than the timeout.
    pub is_hung: bool,
    /// And all others fail for it.
    pub is_stalled: bool,
}

/// Does something that may hang, on a thread of its own. An error when it takes longer than `timeout`; the thread is left behind then.
pub fn in_time<T: Send + 'static, E: From<Error> + Send + 'static>(
    timeout: Option<Duration>,
    store: &OsStr,
    what: &str,
    act: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let Some(timeout) = timeout else { return act() };
    let (sender, answer) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("store".to_owned()).spawn(move || drop(sender.send(act())));
    let thread = thread.map_err(|error| {
        Error::caused_by(ErrorKind::StoreIo, "cannot start a thread for a call of the store", error)
    })?;
    match answer.recv_timeout(timeout) {
        Ok(outcome) => {
            // Whoever counts threads must not find this one.
            let _ = thread.join();
            outcome
        }
        Err(RecvTimeoutError::Timeout) => {
            let message = format!(
                "the store {store:?} did not answer within {} s when asked for {what}",
                timeout.as_secs()
            );
            Err(Error::new(ErrorKind::StoreIo, message).into())
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::new(ErrorKind::StoreIo, "a bug stopped a call of the store").into())
        }
    }
}

impl fmt::Debug for DeadlineStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineStore").field("location", &self.location()).finish_non_exhaustive()
    }
}

impl Store for DeadlineStore {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        let (inner, suffix) = (self.inner.clone(), suffix.to_owned());
        self.listed(move || inner.list(&suffix))
    }

    fn list_with(&self, suffix: &str, also: &str) -> Result<(Listing, Vec<ListedObject>)> {
        let (inner, suffix, also) = (self.inner.clone(), suffix.to_owned(), also.to_owned());
        self.listed(move || inner.list_with(&suffix, &also))
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        let (inner, wanted) = (self.inner.clone(), name.clone());
        self.opened(name, move || inner.open(&wanted))
    }

    fn open_listed(&self, listed: &ListedObject) -> Result<Arc<dyn ObjectSource>> {
        let (inner, wanted) = (self.inner.clone(), listed.clone());
        self.opened(&listed.name, move || inner.open_listed(&wanted))
    }

    fn calls_at_once(&self) -> usize {
        // The rest is for who else asks meanwhile.
        self.inner.calls_at_once().min(calls::THREADS_MAX / 2)
    }

    fn version_of(&self, name: &ObjectName) -> Result<ObjectVersion> {
        if !self.calls.is_quick() {
            return Err(Error::new(
                ErrorKind::StoreIo,
                format!("the store {:?} does not answer, so {name:?} is not looked at", self.location()),
            ));
        }
        let (inner, wanted) = (self.inner.clone(), name.clone());
        let ask = move || inner.version_of(&wanted);
        self.calls.run_within(Some(SLOW), &format_args!("object {name:?}"), ask)
    }

    fn is_answering(&self) -> bool {
        self.calls.is_answering()
    }

    fn allow_ahead(&self, bytes_max: u64) -> u64 {
        self.inner.allow_ahead(bytes_max)
    }

    fn hello(&self) -> Result<()> {
        let inner = self.inner.clone();
        self.calls.run(&"an answer", move || inner.hello())
    }

    fn part(&self) -> Option<Part<'_>> {
        self.inner.part()
    }
}

#[cfg(test)]
mod tests;
