//! Which calls are under way, and since when.
//!
//! Idea: a call writes the number of the last look into a free slot, and 0 when it ends. So it costs two writes and reads no clock.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

/// Calls that are noted at a time: more than there are threads.
const SLOTS: usize = 256;

thread_local! {
    /// Where this thread found a slot last.
    static LAST: Cell<usize> = const { Cell::new(0) };
}

pub(super) struct UnderWay {
    /// The tick at which a call began, plus 1; 0 for none.
    slots: Box<[Slot]>,
    /// The tick at which one ended, plus 1.
    answered: AtomicU32,
}

/// Threads write to slots side by side.
#[derive(Default)]
#[repr(align(64))]
struct Slot(AtomicU32);

/// One call; it ends when this is dropped.
pub(super) struct Call<'a> {
    all: &'a UnderWay,
    slot: &'a Slot,
    began: u32,
}

impl Default for UnderWay {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot::default()).collect(), answered: AtomicU32::new(0) }
    }
}

impl UnderWay {
    /// Notes a call at `tick`; `None` when too many are under way.
    pub(super) fn begin(&self, tick: u32) -> Option<Call<'_>> {
        let last = LAST.get();
        let began = tick.saturating_add(1);
        (0..SLOTS).map(|n| (last + n) % SLOTS).find_map(|at| {
            let slot = self.slots.get(at)?;
            let is_free = slot.0.load(Ordering::Relaxed) == 0;
            let is_mine =
                is_free && slot.0.compare_exchange(0, began, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            is_mine.then(|| {
                LAST.set(at);
                Call { all: self, slot, began }
            })
        })
    }

    /// How many ticks ago the oldest call began.
    pub(super) fn oldest(&self, tick: u32) -> u32 {
        let began = self.slots.iter().map(|slot| slot.0.load(Ordering::Relaxed)).filter(|began| *began > 0);
        began.min().map_or(0, |began| tick.saturating_sub(began - 1))
    }

    /// Whether a call has ended within that many ticks.
    pub(super) fn answered_within(&self, tick: u32, ticks: u32) -> bool {
        let answered = self.answered.load(Ordering::Relaxed);
        answered > 0 && tick.saturating_sub(answered - 1) <= ticks
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.slot.0.store(0, Ordering::Relaxed);
        if self.all.answered.load(Ordering::Relaxed) != self.began {
            // When it began is good enough, and never later than when it ended.
            self.all.answered.fetch_max(self.began, Ordering::Relaxed);
        }
    }
}
