//! Locks of `std`, or of shuttle while [`in_any_order`] runs a test.
//!
//! shuttle runs all threads of a test on one real thread and decides at each lock who goes on, so a mark on that thread
//! tells locks which ones to be; they are made within the test. A deadlock is a panic that prints the schedule.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};

/// Orders that are tried of each kind; a few seconds for all tests together. `CINDERFS_SCHEDULES` sets another number.
const ORDERS: usize = 5000;

/// Most switches of thread that a run of the second kind puts where they hurt most.
const SWITCHES: usize = 4;

/// What a thread of a test may take of the stack, in bytes.
const STACK_BYTES: usize = 256 << 10;

thread_local! {
    static IS_SCHEDULED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `test`, which starts threads by `shuttle::thread`, in many orders, the same ones each time.
pub(crate) fn in_any_order(test: impl Fn() + Send + Sync + Clone + 'static) {
    let orders = std::env::var("CINDERFS_SCHEDULES").map_or(ORDERS, |text| text.parse().unwrap());
    let mut config = shuttle::Config::new();
    config.stack_size = STACK_BYTES;
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        shuttle::Runner::new(scheduler, config.clone()).run(test.clone());
    };
    IS_SCHEDULED.set(true);
    run(Box::new(RandomScheduler::new_from_seed(1, orders)));
    run(Box::new(PctScheduler::new_from_seed(2, SWITCHES, orders)));
    IS_SCHEDULED.set(false);
}

/// As [`std::sync::Mutex`].
#[derive(Debug)]
pub(crate) enum Mutex<T> {
    Real(std::sync::Mutex<T>),
    Scheduled(shuttle::sync::Mutex<T>),
}

/// As [`std::sync::MutexGuard`].
pub(crate) enum MutexGuard<'a, T> {
    Real(std::sync::MutexGuard<'a, T>),
    Scheduled(shuttle::sync::MutexGuard<'a, T>),
}

/// As [`std::sync::Condvar`].
#[derive(Debug)]
pub(crate) enum Condvar {
    Real(std::sync::Condvar),
    Scheduled(shuttle::sync::Condvar),
}

fn wrapped<A, B>(result: LockResult<A>, wrap: impl Fn(A) -> B) -> LockResult<B> {
    result.map(&wrap).map_err(|poisoned| PoisonError::new(wrap(poisoned.into_inner())))
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        match IS_SCHEDULED.get() {
            true => Self::Scheduled(shuttle::sync::Mutex::new(value)),
            false => Self::Real(std::sync::Mutex::new(value)),
        }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match self {
            Self::Real(mutex) => wrapped(mutex.lock(), MutexGuard::Real),
            Self::Scheduled(mutex) => wrapped(mutex.lock(), MutexGuard::Scheduled),
        }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Real(guard) => guard,
            Self::Scheduled(guard) => guard,
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Real(guard) => guard,
            Self::Scheduled(guard) => guard,
        }
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        match IS_SCHEDULED.get() {
            true => Self::Scheduled(shuttle::sync::Condvar::new()),
            false => Self::Real(std::sync::Condvar::new()),
        }
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        match (self, guard) {
            (Self::Real(condvar), MutexGuard::Real(guard)) => wrapped(condvar.wait(guard), MutexGuard::Real),
            (Self::Scheduled(condvar), MutexGuard::Scheduled(guard)) => {
                wrapped(condvar.wait(guard), MutexGuard::Scheduled)
            }
            _ => panic!("a lock was made outside of the test that uses it"),
        }
    }

    pub(crate) fn notify_one(&self) {
        match self {
            Self::Real(condvar) => condvar.notify_one(),
            Self::Scheduled(condvar) => condvar.notify_one(),
        }
    }

    pub(crate) fn notify_all(&self) {
        match self {
            Self::Real(condvar) => condvar.notify_all(),
            Self::Scheduled(condvar) => condvar.notify_all(),
        }
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}
