//! Who answers a request, and who answers it when the first one does not.
//!
//! Problem: a request is served by the thread that took it from the kernel, which is the quickest way; when the store hangs, all
//! threads soon hang with it, and then nobody takes requests that need no store. Idea: of the threads that fuser runs one is the
//! *spare* one, which stays here after its first answer. A *watch* looks around four times a second:
//!
//! ```text
//!   request -> a thread that takes requests: works, answers
//!                  | the store is slow, and all of them are at work
//!                  v
//!              the spare thread takes requests: what is at hand it answers,
//!              all else it hands to a thread of ours, or lets it wait in line
//!   watch: has the store stalled, requests that are too old are answered with EIO, wherever they are
//!   and who asked has been killed: the same, for nobody waits for more
//! ```
//!
//! The reply lies where both its thread and the watch can take it, and whoever takes it answers; what the other comes up with later is
//! dropped. So threads are [expendable] here.
//!
//! Invariants: each request is answered once; while one thread takes requests it waits for nothing that the store has to do; at most
//! [`THREADS_MAX`] threads are started, of which some are always left for names.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::expendable;
use crate::store::deadline::{LOOK_EVERY, Look};

/// Threads for what the spare thread hands on.
const THREADS_MAX: usize = 64;

/// Of these, so many may read.
const READERS_MAX: usize = 56;

/// How long an idle thread stays.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// How old a request may get, in looks, once the store has stalled: longer than a probe takes.
const STALLED_LOOKS: u32 = 8;

/// How old a request is, in looks, when it is asked whether anybody waits for it still: most are answered before.
const ABANDONED_LOOKS: u32 = 2;

/// A reply that can say no.
pub(super) trait Refuse: Send {
    /// Answers EIO.
    fn refuse(self);
}

/// A reply that is still owed.
pub(super) struct Held<R>(Mutex<Option<R>>);

impl<R> Held<R> {
    pub(super) fn new(reply: R) -> Self {
        Self(Mutex::new(Some(reply)))
    }

    /// The reply, unless somebody else has answered.
    pub(super) fn take(&self) -> Option<R> {
        lock(&self.0).take()
    }

    /// Does something with the reply, which stays; nothing once somebody else has answered.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut R) -> T) -> Option<T> {
        lock(&self.0).as_mut().map(act)
    }
}

/// A reply of whatever kind, as the watch sees it.
pub(super) trait Owed: Send + Sync {
    fn refuse(&self);
}

impl<R: Refuse> Owed for Held<R> {
    fn refuse(&self) {
        if let Some(reply) = self.take() {
            reply.refuse();
        }
    }
}

/// What a request wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wants {
    Bytes,
    Names,
}

/// The thread that a request is for; 0 where the kernel asks for itself, or for one whose number means nothing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asker(pub(super) u32);

/// Where requests come in.
#[derive(Clone)]
pub(super) struct Desk(Arc<Shared>);

struct Shared {
    /// Threads that fuser runs, the spare one included.
    threads: usize,
    /// How many of them are at work.
    busy: AtomicUsize,
    /// The spare thread waits here.
    is_parked: AtomicBool,
    /// It is to take requests.
    is_crowded: AtomicBool,
    is_over: AtomicBool,
    parking: Mutex<()>,
    unparking: Condvar,
    looks: AtomicU32,
    seats: Mutex<Vec<Weak<Seat>>>,
    line: Mutex<Line>,
    changed: Condvar,
}

/// What a thread is at.
#[derive(Default)]
struct Seat {
    request: Mutex<Option<Request>>,
}

/// A request that is not answered yet.
struct Request {
    owed: Arc<dyn Owed>,
    since: u32,
    asker: Asker,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
    readers: usize,
}

struct Job {
    request: Request,
    wants: Wants,
    work: Box<dyn FnOnce() + Send>,
}

thread_local! {
    static SEAT: RefCell<Option<(Weak<Shared>, Arc<Seat>)>> = const { RefCell::new(None) };
}

/// A thread that has taken a request; dropped when it can take another one.
pub(super) struct AtWork<'d> {
    shared: &'d Shared,
    is_last: bool,
}

/// A request that is worked at; dropped when that is over.
struct Seated(Arc<Seat>);

impl Desk {
    /// For `threads` threads that work, and the spare one.
    pub(super) fn new(threads: usize) -> Self {
        Self(Arc::new(Shared {
            threads: threads + 1,
            busy: AtomicUsize::new(0),
            is_parked: AtomicBool::new(false),
            is_crowded: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            parking: Mutex::default(),
            unparking: Condvar::new(),
            looks: AtomicU32::new(0),
            seats: Mutex::default(),
            line: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// How many threads fuser is to run.
    pub(super) fn threads(&self) -> usize {
        self.0.threads
    }

    /// This thread has taken a request.
    pub(super) fn enter(&self) -> AtWork<'_> {
        let busy = self.0.busy.fetch_add(1, Ordering::AcqRel) + 1;
        let is_last = busy >= self.0.threads && !self.0.is_parked.load(Ordering::Acquire);
        AtWork { shared: &self.0, is_last }
    }

    /// Works at a request on this thread.
    pub(super) fn work(&self, owed: Arc<dyn Owed>, asker: Asker, work: impl FnOnce()) {
        let since = self.0.looks.load(Ordering::Relaxed);
        let _seated = self.0.seat(Request { owed, since, asker });
        work();
    }

    /// Lets another thread work at a request.
    pub(super) fn hand_over(
        &self,
        owed: Arc<dyn Owed>,
        asker: Asker,
        wants: Wants,
        work: Box<dyn FnOnce() + Send>,
    ) {
        let request = Request { owed, since: self.0.looks.load(Ordering::Relaxed), asker };
        let mut line = lock(&self.0.line);
        line.waiting.push_back(Job { request, wants, work });
        if line.idle < line.waiting.len() && line.threads < THREADS_MAX {
            let shared = self.0.clone();
            // Where none can be had, those that are there do it.
            let started = thread::Builder::new().name("serve".to_owned()).spawn(move || shared.serve());
            line.threads += usize::from(started.is_ok());
        }
        drop(line);
        self.0.changed.notify_one();
    }

    /// Starts the watch. `device` is a descriptor of the FUSE connection; `look` tells of the store, whose timeout is `timeout`; `over` is
    /// called when the connection has ended.
    pub(super) fn watch(
        &self,
        device: OwnedFd,
        timeout: Duration,
        look: impl Fn() -> Look + Send + 'static,
        over: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        let shared = self.0.clone();
        let timeout = u32::try_from(timeout.as_millis() / LOOK_EVERY.as_millis()).unwrap_or(u32::MAX);
        let watch = move || {
            while !has_ended(&device) {
                thread::sleep(LOOK_EVERY);
                shared.look(look(), timeout);
            }
            shared.is_over.store(true, Ordering::Release);
            shared.unpark();
            over();
        };
        thread::Builder::new().name("watch".to_owned()).spawn(watch).map(drop)
    }

    /// Starts the thread that answers requests whose askers were `killed`, which is asked for those among some.
    pub(super) fn let_go(&self, killed: impl Fn(&[u32]) -> Vec<u32> + Send + 'static) -> std::io::Result<()> {
        let shared = self.0.clone();
        // Not the watch: it must not wait for who knows.
        let let_go = move || {
            while !shared.is_over.load(Ordering::Acquire) {
                thread::sleep(LOOK_EVERY);
                shared.let_go(&killed);
            }
        };
        thread::Builder::new().name("killed".to_owned()).spawn(let_go).map(drop)
    }
}

impl AtWork<'_> {
    /// Whether no other thread is left to take requests.
    pub(super) fn is_last(&self) -> bool {
        self.is_last
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.shared.busy.fetch_sub(1, Ordering::AcqRel);
        self.shared.park();
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        *lock(&self.0.request) = None;
    }
}

impl Shared {
    fn is_needed(&self) -> bool {
        self.is_crowded.load(Ordering::Acquire) || self.is_over.load(Ordering::Acquire)
    }

    /// Makes this thread the spare one if there is none.
    fn park(&self) {
        if self.is_parked.load(Ordering::Acquire) || self.is_needed() {
            return;
        }
        let mut parking = lock(&self.parking);
        if self.is_needed() || self.is_parked.swap(true, Ordering::AcqRel) {
            return;
        }
        while !self.is_needed() {
            parking = self.unparking.wait(parking).unwrap_or_else(PoisonError::into_inner);
        }
        self.is_parked.store(false, Ordering::Release);
    }

    fn unpark(&self) {
        drop(lock(&self.parking));
        self.unparking.notify_all();
    }

    fn look(&self, store: Look, timeout: u32) {
        let now = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        let busy = self.busy.load(Ordering::Acquire);
        let is_crowded = store.is_slow && busy + 1 >= self.threads;
        self.is_crowded.store(is_crowded, Ordering::Release);
        if is_crowded {
            self.unpark();
        }
        let patience = match store {
            Look { is_stalled: true, .. } => STALLED_LOOKS.min(timeout),
            Look { is_hung: true, .. } => timeout,
            _ => return,
        };
        let is_old = |request: &Request| now.saturating_sub(request.since) > patience;
        let mut refused = Vec::new();
        self.each_seated(|request| refused.extend(is_old(request).then(|| request.owed.clone())));
        lock(&self.line).waiting.retain(|job| {
            let is_old = is_old(&job.request);
            if is_old {
                refused.push(job.request.owed.clone());
            }
            !is_old
        });
        refused.iter().for_each(|owed| owed.refuse());
    }

    /// Shows each request that a thread is at.
    fn each_seated(&self, mut show: impl FnMut(&Request)) {
        lock(&self.seats).retain(|seat| {
            let Some(seat) = seat.upgrade() else { return false };
            lock(&seat.request).iter().for_each(&mut show);
            true
        });
    }

    /// Answers those that were killed, of whom `killed` knows.
    fn let_go(&self, killed: &dyn Fn(&[u32]) -> Vec<u32>) {
        let now = self.looks.load(Ordering::Relaxed);
        let mut waiting: Vec<(u32, Arc<dyn Owed>)> = Vec::new();
        let mut note = |request: &Request| {
            if request.asker != Asker(0) && now.saturating_sub(request.since) >= ABANDONED_LOOKS {
                waiting.push((request.asker.0, request.owed.clone()));
            }
        };
        self.each_seated(&mut note);
        lock(&self.line).waiting.iter().for_each(|job| note(&job.request));
        if waiting.is_empty() {
            return;
        }
        let askers: Vec<u32> = waiting.iter().map(|(asker, _)| *asker).collect();
        let killed = killed(&askers);
        waiting.iter().filter(|(asker, _)| killed.contains(asker)).for_each(|(_, owed)| owed.refuse());
    }

    /// Notes what this thread is at.
    fn seat(self: &Arc<Self>, request: Request) -> Seated {
        let seat = SEAT.with_borrow_mut(|own| match own {
            Some((desk, seat)) if std::ptr::eq(desk.as_ptr(), Arc::as_ptr(self)) => seat.clone(),
            _ => {
                let seat = Arc::<Seat>::default();
                lock(&self.seats).push(Arc::downgrade(&seat));
                *own = Some((Arc::downgrade(self), seat.clone()));
                expendable::declare();
                seat
            }
        });
        *lock(&seat.request) = Some(request);
        Seated(seat)
    }

    /// Does what was handed over, until there is nothing for a while.
    fn serve(self: &Arc<Self>) {
        let mut line = lock(&self.line);
        loop {
            let has_room = line.readers < READERS_MAX;
            let next = line.waiting.iter().position(|job| job.wants == Wants::Names || has_room);
            if let Some(job) = next.and_then(|at| line.waiting.remove(at)) {
                let reads = usize::from(job.wants == Wants::Bytes);
                line.readers += reads;
                drop(line);
                let seated = self.seat(job.request);
                if catch_unwind(AssertUnwindSafe(job.work)).is_err() {
                    tracing::error!("a bug stopped a request");
                }
                drop(seated);
                line = lock(&self.line);
                line.readers -= reads;
                continue;
            }
            line.idle += 1;
            let (again, waited) =
                self.changed.wait_timeout(line, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
            line = again;
            line.idle -= 1;
            if waited.timed_out() && line.waiting.is_empty() {
                line.threads -= 1;
                return;
            }
        }
    }
}

/// Whether the kernel has ended the connection.
fn has_ended(device: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_told = poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0);
    is_told
        && polled.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these protect is changed by single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
