//! Does damage of an object with restart points cost little, and its points nothing?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/restart_kit.rs"]
mod restart_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/watched_store.rs"]
mod watched_store;

use std::fs;
use std::time::Duration;

use cinderfs::cache_dir::seek_indexes::SavedIndex;
use cinderfs::store::Store;

use cases::Watchdog;
use restart_kit::*;
use store_kit::Packing;
use volume::{BLOCK, MIB, full, mixed};

/// Flips a bit in the middle of the stored object; returns the plain bytes that lie between the points around it.
fn damage(kit: &Kit, saved: &SavedIndex) -> std::ops::Range<u64> {
    let source = kit.store.inner.open(&kit.object).unwrap();
    let mut stored = vec![0; kit.stored_bytes as usize];
    assert_eq!(source.read_at(&mut stored, 0).unwrap(), stored.len());
    let at = stored.len() / 2;
    for byte in &mut stored[at..at + 64] {
        *byte ^= 0x5A;
    }
    kit.store.inner.insert(kit.object.clone(), stored);
    let before = saved.points().iter().rfind(|point| point.stored_bits / 8 <= at as u64).unwrap();
    let after = saved.points().iter().find(|point| point.stored_bits / 8 > at as u64).unwrap();
    before.plain_offset..after.plain_offset
}

// > In a compressed object with restart points, damage costs what lies between it and the next point.
#[test]
fn damage_costs_the_stretch_that_it_lies_in_and_no_index() {
    for &(name, packing, spacing) in HARMED {
        let _watchdog = Watchdog::new();
        check_damage(&Kit::new(name, mixed(8, 16 * MIB), packing).spaced(spacing));
    }
}

fn check_damage(kit: &Kit) {
    let saved = kit.make_index();
    let stretch = damage(kit, &saved);
    let bytes = fs::read(kit.index_path()).unwrap();
    let block = BLOCK as u64;
    for round in 0..2 {
        let (catalog, image) = kit.open(Some(kit.indexes()));
        let lost = lost(&image, &kit.plain);
        assert!(!lost.is_empty(), "a flipped byte went unnoticed");
        let is_near = |at: &u64| at + block > stretch.start && *at < stretch.end;
        let far: Vec<_> = lost.iter().filter(|at| !is_near(at)).collect();
        assert!(
            far.is_empty(),
            "{}, round {round}: lost outside the damaged stretch {stretch:?}: {far:?}",
            kit.id
        );
        catalog.keep_indexes();
        drop((catalog, image));
        assert!(
            fs::read(kit.index_path()).unwrap() == bytes,
            "{}, round {round}: the index was thrown away",
            kit.id
        );
    }
}

// > A damaged block of a bz2 stream costs the blocks of the volume whose bytes it holds, with no index and on the first
// > read; with several, what lies between them is lost as well.
#[test]
fn a_damaged_bz2_block_costs_its_own_bytes_without_any_index() {
    let _watchdog = Watchdog::new();
    for level in [1, 9] {
        let kit = Kit::new("bz", mixed(8, 16 * MIB), Packing::Bz2 { level, streams: 1 });
        // Only to know where the blocks lie: no reader below is given it.
        let saved = kit.make_index();
        let stretch = damage(&kit, &saved);
        let block = BLOCK as u64;
        let depends = |at: &u64| {
            let plain = &kit.plain[*at as usize..(*at + block) as usize];
            at + block > stretch.start && *at < stretch.end && plain.iter().any(|&byte| byte != 0)
        };
        let expected: Vec<u64> = (0..kit.plain.len() as u64).step_by(BLOCK).filter(depends).collect();
        let (_catalog, image) = kit.open(None);
        assert_eq!(lost(&image, &kit.plain), expected, "level {level}, in order; {stretch:?}");
        let (_catalog, image) = kit.open(None);
        kit.check(&image, kit.plain.len() - 100_000, 70_000); // behind the damage first
        assert_eq!(lost(&image, &kit.plain), expected, "level {level}, from behind; {stretch:?}");
        // Damaged once more: what lies between is out of reach, the rest is not.
        let source = kit.store.inner.open(&kit.object).unwrap();
        let mut stored = vec![0; kit.stored_bytes as usize];
        assert_eq!(source.read_at(&mut stored, 0).unwrap(), stored.len());
        let at = stored.len() / 4 * 3;
        stored[at..at + 64].iter_mut().for_each(|byte| *byte ^= 0x5A);
        kit.store.inner.insert(kit.object.clone(), stored);
        let last =
            saved.points().iter().find(|point| point.stored_bits / 8 > at as u64).unwrap().plain_offset;
        let (_catalog, image) = kit.open(None);
        let lost = lost(&image, &kit.plain);
        assert!(
            lost.iter().all(|&at| at + block > stretch.start && at < last),
            "{lost:?}, {stretch:?}, {last}"
        );
        assert!(expected.iter().all(|at| lost.contains(at)));
    }
}

/// An object with a wrong block is opened anew now and then, in case it was repaired; its points stay known.
#[test]
fn points_outlive_the_suspicion_of_their_object_without_a_cache_directory() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(8, 24 * MIB), ZLIB);
    let mut spec = full("a", &kit.plain, ZLIB);
    let bad =
        (0..300).rev().find(|n| kit.plain[n * BLOCK..(n + 1) * BLOCK].iter().any(|&byte| byte != 0)).unwrap();
    spec.digests.as_mut().unwrap().1[bad] = [1; 32];
    put(&kit.store, &spec);
    let (_catalog, image) = kit.open(None);
    for round in 0..2 {
        assert_eq!(lost(&image, &kit.plain), [(bad * BLOCK) as u64], "round {round}: one block is lost");
        std::thread::sleep(Duration::from_millis(3200));
        kit.store.take_read_bytes();
        kit.check(&image, 20 * MIB, 4096);
        let read = kit.store.take_read_bytes();
        assert!(read < kit.stored_bytes / 4, "round {round}: {read} bytes were fetched for one read");
    }
}
