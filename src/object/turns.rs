//! Who decodes which stretch of an object, and who waits.
//!
//! Problem: readers of different stretches have nothing to do with each other and should use all cores; readers of the same
//! stretch would decode the same bytes twice, unless the second one waits and goes on where the first one stopped. Idea: a
//! reader waits while somebody who decodes stands between the restart point it would begin from and the bytes it wants. As
//! points are noted while a stretch is decoded, it splits, and those who wait for its beginning go on at once.
//!
//! Of readers that wait for one stretch the lowest offset goes first, since a stream only goes forward; a reader ahead of
//! its time ([`Urgency::Ahead`]) lets everyone pass whom somebody waits for; and whoever was overtaken often goes next.
//!
//! Invariants: a reader that decodes waits for nobody here; each wait ends, because a turn ends when it is dropped.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::seek_index::SeekIndex;
use crate::cache_dir::seek_indexes::SavedIndex;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How often a reader may be overtaken by others with lower offsets.
const OVERTAKEN_MAX: u32 = 16;

/// Whether somebody waits for what is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// Nobody waits yet.
    Ahead,
    /// A reader waits.
    Wanted,
}

/// The readers of one object, and the index that they share.
#[derive(Default)]
pub(super) struct Turns {
    state: Mutex<Traffic>,
}

/// What [`Turns`] protects.
#[derive(Default)]
pub(super) struct Traffic {
    /// The object's restart points.
    pub(super) index: SeekIndex,
    /// The file that holds the states which are not in memory.
    pub(super) saved: Option<Arc<SavedIndex>>,
    runners: Vec<Runner>,
    waiting: Vec<Waiting>,
    next_ticket: u64,
}

/// Somebody who decodes, and the plain offset that he has come to.
struct Runner {
    ticket: u64,
    at: u64,
}

struct Waiting {
    ticket: u64,
    wanted: Range<u64>,
    urgency: Urgency,
    overtaken: u32,
    /// Of this one alone: waking all for one to go on costs more than decoding a block.
    may_go: Arc<Condvar>,
}

/// The right to decode towards an offset. Ends when dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Turns {
    pub(super) fn lock(&self) -> MutexGuard<'_, Traffic> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody decodes between the place where a reader of `wanted` would begin and its end: who is before it
    /// leaves his decoder there, and who is in it is about to pass the rest.
    pub(super) fn enter(&self, wanted: Range<u64>, urgency: Urgency) -> Turn<'_> {
        let mut traffic = self.lock();
        let ticket = traffic.next_ticket;
        traffic.next_ticket += 1;
        if traffic.must_wait(ticket, &wanted, urgency, 0) {
            let may_go = Arc::new(Condvar::new());
            let own =
                Waiting { ticket, wanted: wanted.clone(), urgency, overtaken: 0, may_go: may_go.clone() };
            traffic.waiting.push(own);
            loop {
                traffic = may_go.wait(traffic).unwrap_or_else(PoisonError::into_inner);
                let own = traffic.waiting.iter().find(|other| other.ticket == ticket);
                let overtaken = own.map_or(0, |own| own.overtaken);
                if !traffic.must_wait(ticket, &wanted, urgency, overtaken) {
                    break;
                }
            }
            traffic.waiting.retain(|other| other.ticket != ticket);
        }
        let start = traffic.index.stretch_start(wanted.start);
        let Traffic { index, waiting, .. } = &mut *traffic;
        for other in waiting {
            let offset = other.wanted.start;
            let is_same = offset >= start && index.stretch_start(offset) == start;
            other.overtaken = other.overtaken.saturating_add(u32::from(is_same && other.ticket < ticket));
        }
        traffic.runners.push(Runner { ticket, at: start });
        Turn { turns: self, ticket }
    }
}

impl Traffic {
    fn must_wait(&self, ticket: u64, wanted: &Range<u64>, urgency: Urgency, overtaken: u32) -> bool {
        let offset = wanted.start;
        let start = self.index.stretch_start(offset);
        if self.runners.iter().any(|runner| (start..wanted.end).contains(&runner.at)) {
            return true;
        }
        // Those of the same stretch, and whoever has more right to it.
        let others = self.waiting.iter().filter(|other| other.ticket != ticket);
        others.filter(|other| other.wanted.start >= start).any(|other| {
            if self.index.stretch_start(other.wanted.start) != start {
                return false;
            }
            // Whoever is tired of waiting is as good as wanted: somebody may have come to wait for what is read ahead.
            let is_tired = |overtaken| overtaken >= OVERTAKEN_MAX;
            let is_wanted = |urgency, overtaken| urgency == Urgency::Wanted || is_tired(overtaken);
            let own = (is_wanted(urgency, overtaken), is_tired(overtaken));
            match (is_wanted(other.urgency, other.overtaken), is_tired(other.overtaken)).cmp(&own) {
                std::cmp::Ordering::Greater => true,
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Equal if own.1 => other.ticket < ticket,
                std::cmp::Ordering::Equal => (other.wanted.start, other.ticket) < (offset, ticket),
            }
        })
    }

    /// Those who need not wait any longer.
    fn free(&self) -> Vec<Arc<Condvar>> {
        let free = self.waiting.iter().filter(|waiting| {
            let Waiting { ticket, wanted, urgency, overtaken, .. } = waiting;
            !self.must_wait(*ticket, wanted, *urgency, *overtaken)
        });
        free.map(|waiting| waiting.may_go.clone()).collect()
    }
}

impl Turn<'_> {
    /// Tells that decoding has come to `at`; `change` may alter the index at the same time.
    pub(super) fn reach<T>(&self, at: u64, change: impl FnOnce(&mut SeekIndex) -> T) -> T {
        let mut traffic = self.turns.lock();
        if let Some(own) = traffic.runners.iter_mut().find(|runner| runner.ticket == self.ticket) {
            own.at = at;
        }
        let result = change(&mut traffic.index);
        let free = traffic.free();
        drop(traffic);
        free.iter().for_each(|waiting| waiting.notify_one());
        result
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut traffic = self.turns.lock();
        traffic.runners.retain(|runner| runner.ticket != self.ticket);
        let free = traffic.free();
        drop(traffic);
        free.iter().for_each(|waiting| waiting.notify_one());
    }
}

#[cfg(test)]
mod schedules;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::super::seek_index::{Entry, State};
    use super::*;

    fn turns(points: &[u64]) -> Turns {
        let turns = Turns::default();
        for &plain_offset in points {
            let state = State::Raw([].into());
            turns.lock().index.add(Entry::new(plain_offset, 0, state));
        }
        turns
    }

    fn at(offset: u64) -> Range<u64> {
        offset..offset + 1
    }

    fn wait_for_waiting(turns: &Turns, count: usize) {
        while turns.lock().waiting.len() < count {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn readers_of_different_stretches_do_not_wait() {
        let turns = turns(&[100, 200]);
        let _turns = [turns.enter(at(50), Urgency::Wanted), turns.enter(at(150), Urgency::Ahead)];
        let far = turns.enter(at(250), Urgency::Wanted);
        // Once it has passed an offset, it is in nobody's way there.
        far.reach(400, |_| ());
        let _behind = turns.enter(at(300), Urgency::Wanted);
    }

    #[test]
    fn those_who_wait_go_by_urgency_and_offset() {
        let turns = turns(&[]);
        let first = turns.enter(at(10), Urgency::Wanted);
        let (sender, order) = mpsc::channel();
        std::thread::scope(|scope| {
            let waiting =
                [(30, Urgency::Wanted), (20, Urgency::Ahead), (40, Urgency::Wanted), (20, Urgency::Wanted)];
            for (count, (offset, urgency)) in waiting.into_iter().enumerate() {
                let (turns, sender) = (&turns, sender.clone());
                scope.spawn(move || {
                    let _turn = turns.enter(at(offset), urgency);
                    sender.send((offset, urgency)).unwrap();
                });
                wait_for_waiting(turns, count + 1);
            }
            drop(first);
        });
        let order: Vec<_> = order.try_iter().collect();
        let wanted = |offset| (offset, Urgency::Wanted);
        assert_eq!(order, [wanted(20), wanted(30), wanted(40), (20, Urgency::Ahead)]);
    }

    #[test]
    fn a_point_noted_on_the_way_frees_those_behind_it() {
        let turns = turns(&[]);
        let runner = turns.enter(at(1000), Urgency::Wanted);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(turns.enter(at(500), Urgency::Wanted)));
            wait_for_waiting(&turns, 1);
            runner.reach(400, |index| index.add(Entry::new(400, 0, State::Raw([].into()))));
            std::thread::sleep(Duration::from_millis(10));
            assert!(!waiting.is_finished());
            runner.reach(600, |_| ());
            waiting.join().unwrap();
            // Who has come into what is wanted is about to pass the rest of it.
            let waiting = scope.spawn(|| drop(turns.enter(500..700, Urgency::Wanted)));
            wait_for_waiting(&turns, 1);
            runner.reach(700, |_| ());
            waiting.join().unwrap();
        });
    }

    #[test]
    fn nobody_is_overtaken_in_another_stretch() {
        let turns = turns(&[100]);
        let first = turns.enter(at(150), Urgency::Wanted);
        std::thread::scope(|scope| {
            scope.spawn(|| drop(turns.enter(at(200), Urgency::Ahead)));
            wait_for_waiting(&turns, 1);
            // Its ticket is higher than that of the one who waits, whose stretch is another one.
            (0..50).for_each(|offset| drop(turns.enter(at(offset), Urgency::Wanted)));
            let overtaken = turns.lock().waiting[0].overtaken;
            drop(first);
            assert_eq!(overtaken, 0, "or it would pass for wanted");
        });
    }

    #[test]
    fn nobody_is_overtaken_for_ever() {
        let turns = turns(&[]);
        let mut turn = Some(turns.enter(at(0), Urgency::Wanted));
        std::thread::scope(|scope| {
            let far = scope.spawn(|| drop(turns.enter(at(1_000_000), Urgency::Wanted)));
            wait_for_waiting(&turns, 1);
            for offset in 1..200 {
                // The next one of the sequential reader waits before the present one is done.
                let (turns, (sender, entered)) = (&turns, mpsc::channel());
                scope.spawn(move || sender.send(turns.enter(at(offset), Urgency::Wanted)).ok());
                while turns.lock().waiting.len() < 2 && !far.is_finished() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                drop(turn.take());
                turn = entered.recv_timeout(Duration::from_secs(20)).ok();
                if turn.is_none() || far.is_finished() {
                    assert!(turn.is_some() && offset > u64::from(OVERTAKEN_MAX));
                    return;
                }
            }
            panic!("the far reader was overtaken 200 times");
        });
    }
}
