//! Which objects a run looks at, and in which order.
//!
//! Problem: a store of 100 TB is not read in a night. Idea: each object is one unit of work, and a run takes a share of them: a
//! part that its name decides, a random one, or those that were looked at longest ago. What was found damaged and has not changed
//! since comes first, whatever the share: a report that forgets it would be a lie.
//!
//! Pure: what was checked when is told by the caller.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::cache_dir::verified::Stamp;

/// Which share of the objects.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Subset {
    /// All of them.
    All,
    /// Part `part` (from 1) of `of` parts; the object's name decides, so that all parts together are all objects.
    Part {
        /// Which one, 1 to `of`.
        part: u64,
        /// How many there are.
        of: u64,
    },
    /// About this share of the stored bytes, 0 to 1, drawn anew each time.
    Share(f64),
    /// At least one object, and no more than this many stored bytes: those that were checked longest ago.
    Bytes(u64),
}

/// An object that may be looked at.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Which backup, in the run's own count.
    pub(super) layer: u32,
    /// Which of its objects.
    pub(super) object: u32,
    /// How many bytes the store holds of it.
    pub(super) stored_bytes: u64,
    /// The first bytes of a digest of its name: decides its part.
    pub(super) draw: u64,
    /// Its last check, if it has not changed since.
    pub(super) stamp: Option<Stamp>,
}

impl Item {
    /// What was checked longest ago comes first; what was never checked, or was found damaged, before it.
    fn age(&self) -> (u64, u32, u32) {
        let at = self.stamp.filter(|stamp| stamp.is_good).map_or(0, |stamp| stamp.at);
        (at, self.layer, self.object)
    }
}

/// A number that a name decides, the same in each run.
pub(super) fn draw_of(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The items to look at, in order. `fresh_since` leaves out what was checked then or later, and was good; `seed` is for
/// [`Subset::Share`].
pub(super) fn choose(mut items: Vec<Item>, subset: Subset, fresh_since: Option<u64>, seed: u64) -> Vec<Item> {
    let is_bad = |item: &Item| item.stamp.is_some_and(|stamp| !stamp.is_good);
    let is_fresh = |item: &Item| {
        item.stamp.zip(fresh_since).is_some_and(|(stamp, since)| stamp.is_good && stamp.at >= since)
    };
    items.retain(|item| !is_fresh(item));
    match subset {
        Subset::All => {}
        Subset::Part { part, of } => {
            items.retain(|item| is_bad(item) || item.draw % of.max(1) == (part.max(1) - 1) % of.max(1));
        }
        Subset::Share(share) => {
            let all: u64 = items.iter().map(|item| item.stored_bytes).sum();
            items.sort_by_cached_key(|item| {
                (!is_bad(item), draw_of(&format!("{seed} {} {} {}", item.draw, item.layer, item.object)))
            });
            keep_bytes(&mut items, (all as f64 * share.clamp(0.0, 1.0)).ceil() as u64);
        }
        Subset::Bytes(bytes) => {
            items.sort_by_cached_key(|item| (!is_bad(item), item.age()));
            keep_bytes(&mut items, bytes);
        }
    }
    // One backup after the other, since each costs an open document: the one first that holds what waits longest.
    let mut oldest = HashMap::new();
    for item in &items {
        let age = oldest.entry(item.layer).or_insert(u64::MAX);
        *age = item.age().0.min(*age);
    }
    items.sort_by_cached_key(|item| (oldest.get(&item.layer).copied(), item.layer, item.age()));
    items
}

/// The first items up to so many stored bytes, and at least one. One that does not fit is left to the next run, so that nothing
/// smaller overtakes it.
fn keep_bytes(items: &mut Vec<Item>, bytes: u64) {
    let mut left = bytes;
    let fits = |(index, item): &(usize, &Item)| {
        let fits = item.stored_bytes <= left || *index == 0;
        left = left.saturating_sub(item.stored_bytes);
        fits
    };
    let count = items.iter().enumerate().take_while(fits).count();
    items.truncate(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn items(count: u32) -> Vec<Item> {
        (0..count)
            .map(|object| Item {
                layer: object / 10,
                object,
                stored_bytes: 10,
                draw: draw_of(&format!("object {object}")),
                stamp: None,
            })
            .collect()
    }

    fn objects(items: &[Item]) -> Vec<u32> {
        let mut objects: Vec<u32> = items.iter().map(|item| item.object).collect();
        objects.sort_unstable();
        objects
    }

    #[test]
    fn all_parts_are_all_objects_once() {
        let mut all = Vec::new();
        for part in 1..=7 {
            let chosen = choose(items(100), Subset::Part { part, of: 7 }, None, 0);
            assert!(chosen.len() > 3, "part {part} has {}", chosen.len());
            assert_eq!(objects(&chosen), objects(&choose(items(100), Subset::Part { part, of: 7 }, None, 1)));
            all.extend(chosen);
        }
        assert_eq!(objects(&all), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_share_is_about_that_share_and_another_one_each_time() {
        let share = |seed| objects(&choose(items(100), Subset::Share(0.25), None, seed));
        assert_eq!(share(1).len(), 25);
        assert_ne!(share(1), share(2));
        assert_eq!(choose(items(3), Subset::Share(0.0), None, 1).len(), 1, "something is always looked at");
        assert_eq!(choose(items(3), Subset::Share(1.0), None, 1).len(), 3);
    }

    #[test]
    fn night_after_night_everything_has_its_turn() {
        let mut stamps = HashMap::new();
        for night in 1..=10 {
            let mut known = items(100);
            for item in &mut known {
                item.stamp = stamps.get(&item.object).copied();
            }
            let chosen = choose(known, Subset::Bytes(105), None, 0);
            assert_eq!(chosen.len(), 10, "night {night}");
            for item in chosen {
                let before = stamps.insert(item.object, Stamp { at: night * DAY, is_good: true });
                assert_eq!(before, None, "night {night} repeats an object");
            }
        }
        assert_eq!(stamps.len(), 100);
    }

    #[test]
    fn what_is_fresh_is_left_out_and_what_was_damaged_is_not() {
        let mut known = items(4);
        known[0].stamp = Some(Stamp { at: 100 * DAY, is_good: true });
        known[1].stamp = Some(Stamp { at: 99 * DAY, is_good: true });
        known[2].stamp = Some(Stamp { at: 100 * DAY, is_good: false });
        let chosen = choose(known.clone(), Subset::All, Some(100 * DAY), 0);
        assert_eq!(objects(&chosen), [1, 2, 3]);
        let first = choose(known.clone(), Subset::Bytes(10), None, 0);
        assert_eq!(objects(&first), [2], "the damaged one first");
        for part in 1..=2 {
            let part = choose(known.clone(), Subset::Part { part, of: 2 }, None, 0);
            assert!(objects(&part).contains(&2), "in each part");
        }
    }
}
