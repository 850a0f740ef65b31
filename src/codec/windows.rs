//! Memory for large zstd windows, of which the process has one budget.
//!
//! Problem: a frame may ask for a window of 128 MiB, and every thread that decodes such a frame holds one: a hostile store, or one that somebody
//! wrote with `zstd --long`, would take that many times the memory that everything else takes together. Idea: windows as Cinder makes them are free; a larger one is
//! held out of a budget that the largest one fills, from the frame's header to the frame's end. Who finds no room waits his turn, first come, first served.
//!
//! A decoder that nobody reads from holds its window too, for the reader that comes back. So whoever waits has the idle ones dropped
//! ([`IdleWindows`]), and while somebody waits none becomes idle. Two readers of such frames then start their streams anew for each other, which is slow; it is right,
//! and it ends.
//!
//! Invariants: windows above [`FREE_BYTES`] hold at most [`HELD_BYTES_MAX`] together; who waits holds none, so there is no circle; nobody waits for longer than
//! [`WAIT_MAX`].

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A window up to this is not counted, in bytes: Cinder's has 2 MiB, those of level 19 have 8 MiB.
pub(super) const FREE_BYTES: u64 = 8 << 20;

/// Most bytes of larger windows at a time. It is the largest window there may be, so each finds room in the end.
pub(super) const HELD_BYTES_MAX: u64 = 128 << 20;

/// Longest wait for a window. Whoever holds one gives it back after a read of his, which takes seconds; a store that stands still may take longer.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Who keeps decoders that nobody reads from.
pub(crate) trait IdleWindows: Send + Sync {
    /// Drops those that hold a large window.
    fn let_go(&self);
}

/// One budget.
pub(super) struct Windows {
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    held: u64,
    /// Tickets of those who wait, in order.
    queue: VecDeque<u64>,
    next_ticket: u64,
    idle: Vec<Weak<dyn IdleWindows>>,
}

/// Room for one window, until it is dropped.
pub(super) struct Held<'a> {
    windows: &'a Windows,
    bytes: u64,
}

/// The budget of this process.
pub(super) static WINDOWS: Windows = Windows::new();

/// Names somebody who keeps idle decoders.
pub(crate) fn add_idle(idle: Weak<dyn IdleWindows>) {
    let mut state = WINDOWS.lock();
    state.idle.retain(|other| other.strong_count() > 0);
    state.idle.push(idle);
}

/// Whether somebody waits, so that no decoder with a large window may become idle.
pub(crate) fn are_wanted() -> bool {
    !WINDOWS.lock().queue.is_empty()
}

impl Windows {
    const fn new() -> Self {
        let state = State { held: 0, queue: VecDeque::new(), next_ticket: 0, idle: Vec::new() };
        Self { state: Mutex::new(state), freed: Condvar::new() }
    }

    /// Room for a window of `bytes`, at most [`HELD_BYTES_MAX`]; waits for it, and gives up (`None`) after [`WAIT_MAX`].
    pub(super) fn hold(&self, bytes: u64) -> Option<Held<'_>> {
        self.hold_until(bytes, Instant::now() + WAIT_MAX)
    }

    fn hold_until(&self, bytes: u64, end: Instant) -> Option<Held<'_>> {
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back(ticket);
        let may_go = |state: &State| {
            state.queue.front() == Some(&ticket) && state.held.saturating_add(bytes) <= HELD_BYTES_MAX
        };
        if !may_go(&state) {
            // Not with the lock: what is dropped gives its room back. Who puts a decoder aside from now on sees that somebody waits.
            let idle = state.idle.clone();
            drop(state);
            idle.iter().filter_map(Weak::upgrade).for_each(|idle| idle.let_go());
            state = self.lock();
        }
        while !may_go(&state) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.queue.retain(|other| *other != ticket);
                self.freed.notify_all();
                return None;
            }
            (state, _) = self.freed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        state.queue.pop_front();
        state.held += bytes;
        // There may be room for the next one as well.
        self.freed.notify_all();
        Some(Held { windows: self, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.windows.lock().held -= self.bytes;
        self.windows.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn windows_that_fit_together_are_held_together_and_others_wait() {
        let windows = Windows::new();
        let first = windows.hold(100 * MIB).unwrap();
        let second = windows.hold(28 * MIB).unwrap();
        let now = Instant::now();
        assert!(windows.hold_until(16 * MIB, now).is_none(), "there is no room");
        drop(first);
        let third = windows.hold_until(100 * MIB, now).unwrap();
        drop((second, third));
        assert!(windows.hold_until(HELD_BYTES_MAX, now).is_some());
        assert_eq!(windows.lock().held, 0);
    }

    #[test]
    fn many_threads_never_hold_more_and_all_come_through() {
        let (windows, held, passed) = (Windows::new(), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (windows, held, passed) = (&windows, &held, &passed);
                scope.spawn(move || {
                    for round in 0..50 {
                        let bytes = (16 + (thread * 31 + round * 17) % 113) * MIB;
                        let room = windows.hold(bytes).unwrap();
                        assert!(held.fetch_add(bytes, Ordering::SeqCst) + bytes <= HELD_BYTES_MAX);
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        drop(room);
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 400);
    }
}
