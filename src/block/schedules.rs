//! Cache and flights in thousands of orders of their threads, used as an image uses them: what is missing is claimed, what is led
//! is decoded, and only then others are waited for.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::{BlockCache, Claim, Flights, Lead, VerifiedBlock, hash_of};
use crate::sync::scheduled::in_any_order;
use crate::types::BlockHash;
use Fate::{Fails, Panics, Succeeds};

const BLOCKS: usize = 4;

/// What happens to a reader that leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Succeeds,
    Fails,
    Panics,
}

struct World {
    flights: Flights,
    cache: BlockCache,
    blocks: Vec<(BlockHash, Vec<u8>)>,
    /// Leaders that decode a block at this moment.
    leading: Vec<AtomicUsize>,
    decodes: Vec<AtomicUsize>,
}

impl World {
    fn new(cache_bytes: u64) -> Self {
        let count = || (0..BLOCKS).map(|_| AtomicUsize::new(0)).collect();
        let blocks = (0..BLOCKS).map(|n| vec![n as u8 + 1; 10 * n + 1]);
        Self {
            flights: Flights::default(),
            cache: BlockCache::new(cache_bytes),
            blocks: blocks.map(|bytes| (hash_of(&bytes), bytes)).collect(),
            leading: count(),
            decodes: count(),
        }
    }

    fn decode(&self, n: usize) -> Arc<VerifiedBlock> {
        let (hash, bytes) = &self.blocks[n];
        shuttle::thread::yield_now();
        self.decodes[n].fetch_add(1, SeqCst);
        let block = Arc::new(VerifiedBlock::verify(bytes, hash).ok().unwrap());
        self.cache.insert(*hash, block.clone());
        block
    }

    fn lead(&self, n: usize, lead: Lead<'_>, fate: Fate) -> Option<Arc<VerifiedBlock>> {
        assert_eq!(self.leading[n].fetch_add(1, SeqCst), 0, "two lead the same block");
        shuttle::thread::yield_now();
        let block = (fate == Succeeds).then(|| self.decode(n));
        assert_eq!(self.leading[n].fetch_sub(1, SeqCst), 1);
        match (block, fate) {
            (Some(block), _) => {
                lead.land(block.clone());
                Some(block)
            }
            (None, Panics) => {
                let panicking = AssertUnwindSafe(move || {
                    let _lead = lead;
                    resume_unwind(Box::new("a decoder's bug"));
                });
                assert!(catch_unwind(panicking).is_err());
                None
            }
            (None, _) => None,
        }
    }

    /// Reads these blocks. `None` for one that this reader itself could not get; all others must come.
    fn read(&self, wanted: &[usize], fate: Fate) -> HashMap<usize, Option<Arc<VerifiedBlock>>> {
        let mut found = HashMap::new();
        let missing = wanted.iter().filter(|&&n| match self.cache.get(&self.blocks[n].0) {
            Some(block) => found.insert(n, Some(block)).is_some(),
            None => true,
        });
        let missing: Vec<usize> = missing.copied().collect();
        let (mut leads, mut follows) = (Vec::new(), Vec::new());
        for n in missing {
            match self.flights.claim(self.blocks[n].0) {
                Claim::Follow(follow) => follows.push((n, follow)),
                Claim::Lead(lead) => match self.cache.get(&self.blocks[n].0) {
                    Some(block) => {
                        lead.land(block.clone());
                        found.insert(n, Some(block));
                    }
                    None => leads.push((n, lead)),
                },
            }
        }
        for (n, lead) in leads {
            found.insert(n, self.lead(n, lead, fate));
        }
        for (n, follow) in follows {
            let block = follow.wait().or_else(|| (fate == Succeeds).then(|| self.decode(n)));
            found.insert(n, block);
        }
        found
    }

    fn check(&self, wanted: &[usize], fate: Fate) {
        let found = self.read(wanted, fate);
        for n in wanted {
            match &found[n] {
                Some(block) => assert_eq!(block.bytes(), self.blocks[*n].1),
                None => assert_ne!(fate, Succeeds),
            }
        }
    }
}

/// Readers of these blocks, each with its fate, in any order; then what must hold in the end.
fn readers(cache_bytes: u64, readers: &'static [(&'static [usize], Fate)], at_end: fn(&World)) {
    in_any_order(move || {
        let world = Arc::new(World::new(cache_bytes));
        let threads: Vec<_> = readers
            .iter()
            .map(|&(wanted, fate)| {
                let world = world.clone();
                shuttle::thread::spawn(move || world.check(wanted, fate))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(world.flights.is_idle(), "a flight is left");
        assert!(world.cache.held_bytes() <= cache_bytes);
        at_end(&world);
    });
}

#[test]
fn each_block_is_decoded_once_and_everybody_gets_it() {
    let all: &[(&[usize], Fate)] =
        &[(&[0, 1, 2, 3], Succeeds), (&[3, 2, 1, 0], Succeeds), (&[1, 3], Succeeds), (&[2, 0], Succeeds)];
    readers(1 << 20, all, |world| {
        assert!(world.decodes.iter().all(|decodes| decodes.load(SeqCst) == 1));
    });
}

#[test]
fn whoever_follows_a_leader_that_fails_tries_for_itself() {
    let some_fail: &[(&[usize], Fate)] =
        &[(&[0, 1], Fails), (&[1, 0], Panics), (&[0, 1, 2], Succeeds), (&[2, 1], Succeeds), (&[2, 0], Fails)];
    readers(1 << 20, some_fail, |_| ());
}

#[test]
fn without_room_in_the_cache_everybody_gets_it_all_the_same() {
    let all: &[(&[usize], Fate)] =
        &[(&[0, 1, 2], Succeeds), (&[2, 1, 0], Succeeds), (&[1, 2], Panics), (&[1, 0], Succeeds)];
    readers(0, all, |_| ());
    readers(230, all, |_| ());
}
