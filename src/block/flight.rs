//! Many readers of one missing block, one decode.
//!
//! Problem: two kernel read-ahead requests, or ten virtual machines that boot from one template, miss the same block at
//! the same time; decoding it once for each wastes seconds of CPU. Idea: the first to claim a missing block leads, the
//! others wait for what it lands with.
//!
//! Rules that keep this free of deadlock: a leader never waits for another flight while it leads one; a reader that
//! needs several blocks claims them all, serves what it leads, and only then waits for the rest. A leader that gives up,
//! even by a panic, lands with nothing, and a waiter then tries for itself: its copy may lie in another object.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError};

use super::VerifiedBlock;
use crate::sync::{Condvar, Mutex};
use crate::types::BlockHash;

/// The blocks that are being decoded now.
#[derive(Default)]
pub struct Flights {
    flights: Mutex<HashMap<BlockHash, Arc<Flight>>>,
}

#[derive(Default)]
struct Flight {
    landed: Mutex<Option<Option<Arc<VerifiedBlock>>>>,
    landing: Condvar,
}

/// What a claim gave.
pub enum Claim<'a> {
    /// Nobody was on it: the caller decodes.
    Lead(Lead<'a>),
    /// Somebody is on it: the caller may wait.
    Follow(Follow),
}

/// The duty to land a block. Dropping it lands with nothing.
pub struct Lead<'a> {
    flights: &'a Flights,
    hash: BlockHash,
    flight: Arc<Flight>,
}

/// The right to wait for a block.
pub struct Follow {
    flight: Arc<Flight>,
}

impl Flights {
    /// Claims a block that was not in the cache a moment ago.
    pub fn claim(&self, hash: BlockHash) -> Claim<'_> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        match flights.entry(hash) {
            Entry::Occupied(entry) => Claim::Follow(Follow { flight: entry.get().clone() }),
            Entry::Vacant(entry) => {
                let flight = entry.insert(Arc::default()).clone();
                Claim::Lead(Lead { flights: self, hash, flight })
            }
        }
    }

    /// Whether nothing is being decoded.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        // On one real thread a panic of one of its tasks poisons what another has just locked.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Lead<'_> {
    /// Gives the block to all who wait. The caller has put it into the cache before, so that nobody who comes later
    /// leads again.
    pub fn land(self, block: Arc<VerifiedBlock>) {
        self.finish(Some(block));
    }

    fn finish(&self, block: Option<Arc<VerifiedBlock>>) {
        let mut flights = self.flights.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let is_mine = flights.get(&self.hash).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
        if is_mine {
            flights.remove(&self.hash);
        }
        drop(flights);
        let mut landed = self.flight.landed.lock().unwrap_or_else(PoisonError::into_inner);
        if landed.is_none() {
            *landed = Some(block);
            // Nobody can come to follow any more, and waking nobody is a system call too.
            let somebody_follows = Arc::strong_count(&self.flight) > 1;
            if somebody_follows {
                self.flight.landing.notify_all();
            }
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.finish(None);
    }
}

impl Follow {
    /// Waits for the leader; `None` when it could not get the block.
    pub fn wait(self) -> Option<Arc<VerifiedBlock>> {
        let mut landed = self.flight.landed.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = &*landed {
                return result.clone();
            }
            landed = self.flight.landing.wait(landed).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{BlockCache, hash_of};
    use super::*;

    #[test]
    fn of_many_readers_one_decodes() {
        let (flights, cache, decodes) = (Flights::default(), BlockCache::new(1 << 20), AtomicUsize::new(0));
        let (start, hash) = (Barrier::new(8), hash_of(b"block"));
        let read = || match cache.get(&hash) {
            Some(block) => block,
            None => match flights.claim(hash) {
                Claim::Follow(follow) => follow.wait().unwrap(),
                Claim::Lead(lead) => {
                    // As in the image: between the look into the cache and the claim another may have landed.
                    if let Some(block) = cache.get(&hash) {
                        lead.land(block.clone());
                        return block;
                    }
                    decodes.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    let block = Arc::new(VerifiedBlock::verify(b"block", &hash).ok().unwrap());
                    cache.insert(hash, block.clone());
                    lead.land(block.clone());
                    block
                }
            },
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    assert_eq!(read().bytes(), b"block");
                });
            }
        });
        assert_eq!(decodes.load(Ordering::SeqCst), 1);
        assert!(flights.is_idle());
    }

    #[test]
    fn a_leader_that_panics_lets_the_others_try() {
        let (flights, hash) = (Flights::default(), hash_of(b"x"));
        let Claim::Lead(lead) = flights.claim(hash) else { panic!("the first claim leads") };
        let Claim::Follow(follow) = flights.claim(hash) else { panic!("the second claim follows") };
        let panicked = std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    let _lead = lead;
                    panic!("decoder bug");
                })
                .join()
        });
        assert!(panicked.is_err());
        assert!(follow.wait().is_none());
        assert!(matches!(flights.claim(hash), Claim::Lead(_)));
    }
}
