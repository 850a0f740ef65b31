//! What does `create` read when it is told what changed?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/new_backup.rs"]
mod new_backup;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::sync::atomic::Ordering;

use cinderfs::writer::create::{Base, NewBackup};
use cinderfs::writer::source::changed::Changed;

use new_backup::{MemorySource, check, make, volume};

const LEN: usize = (5 << 20) + 1000;
const BLOCK: usize = 4096;

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..LEN).map(|_| next() | 1).collect()
}

fn list(ranges: &[Range<usize>]) -> Option<Changed> {
    let entries = ranges.iter().map(|range| {
        format!(r#"{{"offset":{},"length":{},"exists":"true"}}"#, range.start, range.end - range.start)
    });
    let text = format!("[{}]", entries.collect::<Vec<_>>().join(","));
    Some(Changed::parse(text.as_bytes(), LEN as u64).unwrap())
}

/// The numbers of the blocks that a list touches, and of the last.
fn blocks(ranges: &[Range<usize>]) -> BTreeSet<usize> {
    let listed = ranges.iter().flat_map(|range| range.start / BLOCK..=(range.end - 1) / BLOCK);
    listed.chain([(LEN - 1) / BLOCK]).collect()
}

fn bytes_of(blocks: &BTreeSet<usize>) -> u64 {
    blocks.iter().map(|block| (LEN - block * BLOCK).min(BLOCK) as u64).sum()
}

#[test]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
fn only_the_blocks_that_the_list_touches_are_read() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path();
    let full = NewBackup { block_bytes: BLOCK as u64, ..NewBackup::full(volume()) };
    let old = noise(7);
    let parent = make(store, &MemorySource::new(old.clone()), &full).unwrap();
    for ranges in [
        vec![],
        // Several in a piece of a MiB, joined and apart; over the border of two; whole pieces.
        vec![5000..5001, 8192..12288, 12288..12289, 40_000..50_000],
        vec![(1 << 20) - 1..(1 << 20) + 1, (2 << 20) - 4096..2 << 20],
        vec![100_000..3 << 20],
        vec![0..LEN],
        (0..200).map(|i| i * 16_384..i * 16_384 + 512).collect(),
    ] {
        let mut new = old.clone();
        for range in &ranges {
            new[range.start] ^= 6;
            new[range.end - 1] ^= 8;
        }
        if let Some(range) = ranges.last().filter(|range| range.len() > 4096) {
            new[range.clone()].fill(0); // a hole for the source
        }
        let source = MemorySource::new(new.clone());
        let child =
            NewBackup { base: Base::Backup(parent.id.clone()), changed: list(&ranges), ..full.clone() };
        let made = make(store, &source, &child).unwrap();
        check(store, &made, &child, &new, Some(&old));
        let read = source.read.load(Ordering::Relaxed);
        let is_hole =
            |block: &usize| new[block * BLOCK..LEN.min((block + 1) * BLOCK)].iter().all(|&b| b == 0);
        let (holes, data): (BTreeSet<_>, BTreeSet<_>) = blocks(&ranges).into_iter().partition(is_hole);
        // A part that is only half a hole is read whole.
        assert!((bytes_of(&data)..=bytes_of(&data) + bytes_of(&holes)).contains(&read), "{ranges:?}: {read}");
        assert!(!holes.is_empty() || read == bytes_of(&data), "{ranges:?}: {read}");
        assert_eq!(made.progress.unlisted_bytes, 0);
    }
}

#[test]
fn a_block_without_a_digest_in_the_parent_is_read_though_not_listed() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path();
    let full = NewBackup { block_bytes: BLOCK as u64, ..NewBackup::full(volume()) };
    let bytes = noise(9);
    let parent = make(store, &MemorySource::new(bytes.clone()), &full).unwrap();
    let digests = store.join(parent.metadata_name.as_str().replace("_metadata", "_sha256file"));
    let mut text = fs::read(&digests).unwrap();
    let first = text.windows(11).position(|window| window == b"\"sha256s\": ").unwrap() + 13;
    for block in [0, 5, 6, 300] {
        text[first + 72 * block + 20] = b'X';
    }
    fs::write(&digests, text).unwrap();
    let mut new = bytes.clone();
    new[7 * BLOCK] ^= 1;
    let source = MemorySource::new(new.clone());
    let listed = 7 * BLOCK..7 * BLOCK + 1;
    let child = NewBackup {
        base: Base::Backup(parent.id),
        changed: list(std::slice::from_ref(&listed)),
        ..full.clone()
    };
    let made = make(store, &source, &child).unwrap();
    let mut old = bytes;
    for block in [0, 5, 6, 300] {
        old[block * BLOCK] ^= 1;
    }
    check(store, &made, &child, &new, Some(&old));
    assert_eq!(
        source.read.load(Ordering::Relaxed),
        bytes_of(&BTreeSet::from([0, 5, 6, 7, 300, (LEN - 1) / BLOCK]))
    );
}
