//! Threads that have no object left help those that have one.
//!
//! Problem: an object is decoded from its beginning to its end by one thread, as Cinder does it, since only that proves the stream;
//! so the last objects of a run, or one huge one, would keep one core busy and the others idle. Idea: what is decoded goes in
//! parts through two [`Lane`]s, md5 and digests. A part is taken by whoever has time: a thread without an object, else the thread that has
//! decoded it, as if there were no lanes. bz2 blocks are decoded ahead by as many threads as have no object.
//!
//! Invariants: a lane takes its parts in order, one at a time; no more than [`PARTS_MAX`] wait in it; nobody waits for help that
//! has not begun.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, TryLockError};
use std::time::Duration;

use super::run::lock;
use crate::workers::Workers;

/// Parts that wait in a lane: enough to even out how fast threads are.
const PARTS_MAX: usize = 3;

/// How long who decodes waits for room before he looks whether a helper has gone.
const PATIENCE: Duration = Duration::from_millis(20);

/// Plain bytes of an object. Its buffer goes back where it came from.
pub(super) struct Part {
    /// Where in the volume they begin.
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
    home: Arc<Buffers>,
}

/// Buffers of one object, used again and again.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// A part with a buffer of this length, of no particular bytes.
    pub(super) fn part(self: &Arc<Self>, at: u64, len: usize) -> Part {
        let mut bytes = lock(&self.0).pop().unwrap_or_default();
        bytes.resize(len, 0);
        Part { at, bytes, home: self.clone() }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        lock(&self.home.0).push(std::mem::take(&mut self.bytes));
    }
}

/// What is done with the parts of an object.
pub(super) trait Take: Send + 'static {
    /// Takes the part behind the last one.
    fn take(&mut self, part: &Part);
}

/// Work on the parts of one object, in their order.
pub(super) struct Lane<W> {
    /// Locked by who works.
    work: Mutex<W>,
    parts: Mutex<VecDeque<Arc<Part>>>,
    has_room: Condvar,
}

impl<W: Take> Lane<W> {
    pub(super) fn new(work: W) -> Arc<Self> {
        Arc::new(Self { work: Mutex::new(work), parts: Mutex::default(), has_room: Condvar::new() })
    }

    /// Adds a part. It may be taken later, by another thread.
    pub(super) fn put(self: &Arc<Self>, part: Arc<Part>, crew: &Crew) {
        lock(&self.parts).push_back(part);
        let is_worked_on = matches!(self.work.try_lock(), Err(TryLockError::WouldBlock));
        if !is_worked_on && !crew.call(self.clone()) {
            return self.help();
        }
        loop {
            let parts = lock(&self.parts);
            if parts.len() <= PARTS_MAX {
                return;
            }
            drop(self.has_room.wait_timeout(parts, PATIENCE));
            if lock(&self.parts).len() > PARTS_MAX {
                self.help();
            }
        }
    }

    /// Takes what is left, and gives the work away.
    pub(super) fn finish<T>(&self, end: impl FnOnce(&mut W) -> T) -> T {
        let mut work = lock(&self.work);
        self.take_all(&mut work);
        end(&mut work)
    }

    fn take_all(&self, work: &mut W) {
        loop {
            let Some(part) = lock(&self.parts).pop_front() else { return };
            self.has_room.notify_all();
            work.take(&part);
        }
    }
}

/// Something that a thread can help with.
pub(super) trait Help: Send + Sync {
    /// Does what is there to do, unless somebody is at it.
    fn help(&self);
}

impl<W: Take> Help for Lane<W> {
    fn help(&self) {
        if let Ok(mut work) = self.work.try_lock() {
            self.take_all(&mut work);
        }
    }
}

/// The threads of a run.
pub(super) struct Crew {
    state: Mutex<State>,
    changed: Condvar,
    ahead: Arc<Workers>,
}

struct State {
    /// Threads that may have an object.
    busy: usize,
    /// Threads that wait for a call.
    idle: usize,
    calls: Vec<Arc<dyn Help>>,
}

/// A thread that may have an object.
pub(super) struct Busy<'a>(&'a Crew);

impl Crew {
    /// A crew of so many threads, each of which calls [`Crew::begin`].
    pub(super) fn new(threads: usize) -> Self {
        let state = State { busy: threads, idle: 0, calls: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), ahead: Arc::new(Workers::new(0)) }
    }

    /// Who decodes ahead: nobody while each thread has an object.
    pub(super) fn ahead(&self) -> &Arc<Workers> {
        &self.ahead
    }

    pub(super) fn begin(&self) -> Busy<'_> {
        Busy(self)
    }

    /// Asks a thread that waits for one, if there is any.
    fn call(&self, help: Arc<dyn Help>) -> bool {
        let mut state = lock(&self.state);
        if state.calls.len() >= state.idle {
            return false;
        }
        state.calls.push(help);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Helps until no thread has an object.
    pub(super) fn help(&self, busy: Busy<'_>) {
        drop(busy);
        self.ahead.allow_one_more();
        let mut state = lock(&self.state);
        loop {
            if let Some(call) = state.calls.pop() {
                drop(state);
                call.help();
                state = lock(&self.state);
            } else if state.busy == 0 {
                return;
            } else {
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

impl Drop for Busy<'_> {
    /// Also where a bug ends the thread, so that no other one waits for ever.
    fn drop(&mut self) {
        lock(&self.0.state).busy -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread::{self, ThreadId};

    use super::*;

    #[derive(Default)]
    struct Seen(Vec<u64>, HashSet<ThreadId>);

    impl Take for Seen {
        fn take(&mut self, part: &Part) {
            assert_eq!(part.bytes, [part.at as u8; 3]);
            self.0.push(part.at);
            self.1.insert(thread::current().id());
        }
    }

    fn decode(lanes: &[Arc<Lane<Seen>>], crew: &Crew, is_alone: bool) {
        let buffers = Arc::new(Buffers::default());
        for at in 0..2000 {
            let mut part = buffers.part(at, 3);
            part.bytes.fill(at as u8);
            let part = Arc::new(part);
            lanes.iter().for_each(|lane| lane.put(part.clone(), crew));
            if at == 0 {
                // The first part is left to who waits for a call, if anybody does.
                while !lock(&lanes[0].parts).is_empty() {
                    thread::yield_now();
                }
                let is_own = lanes[0].finish(|seen| seen.1.contains(&thread::current().id()));
                assert_eq!(is_own, is_alone);
            }
        }
        let kept = lock(&buffers.0).len();
        assert!(kept <= 2 * (PARTS_MAX + 3), "{kept} buffers");
    }

    #[test]
    fn parts_are_taken_in_order_by_whoever_has_time() {
        for threads in [1, 2, 4] {
            let crew = Crew::new(threads);
            let lanes = [Lane::new(Seen::default()), Lane::new(Seen::default())];
            thread::scope(|scope| {
                for number in 0..threads {
                    let (crew, lanes) = (&crew, &lanes);
                    scope.spawn(move || {
                        let busy = crew.begin();
                        if number == 0 {
                            while lock(&crew.state).idle + 1 < threads {
                                thread::yield_now();
                            }
                            decode(lanes, crew, threads == 1);
                        }
                        crew.help(busy);
                    });
                }
            });
            for lane in &lanes {
                assert_eq!(lane.finish(|seen| seen.0.clone()), (0..2000).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_thread_that_a_bug_ends_stops_nobody() {
        let crew = Crew::new(2);
        thread::scope(|scope| {
            let stopped = scope.spawn(|| {
                let _busy = crew.begin();
                std::panic::resume_unwind(Box::new("a bug"));
            });
            scope.spawn(|| crew.help(crew.begin()));
            assert!(stopped.join().is_err());
        });
    }
}
