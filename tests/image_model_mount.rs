//! Right bytes through a real mount? A sample of the random histories, as many backups of one store in a directory.
//!
//! Needs FUSE, and fails without it.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/history.rs"]
mod history;
#[path = "common/mountpoint_guard.rs"]
mod mountpoint_guard;
#[path = "common/painted.rs"]
mod painted;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use proptest::strategy::{Strategy as _, ValueTree as _};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use history::histories;
use mountpoint_guard::Mountpoint;
use painted::Painted;

/// Histories of each kind of blocks; each has up to seven backups.
const HISTORIES: usize = 10;

/// Readers of one image at a time.
const THREADS: usize = 4;

/// Reads of each of them.
const READS: u64 = 40;

/// The kernel asks for whole pages, in bytes.
const PAGE: usize = 4096;

/// The bytes of a range up to the end of the file, and what ended the reading, if it was not that.
fn pread(file: &File, range: Range<usize>) -> (Vec<u8>, Option<io::Error>) {
    let (mut bytes, mut filled) = (vec![0; range.len()], 0);
    let error = loop {
        match file.read_at(&mut bytes[filled..], (range.start + filled) as u64) {
            Ok(0) => break None,
            Ok(n) => filled += n,
            Err(error) => break Some(error),
        }
    };
    bytes.truncate(filled);
    (bytes, error)
}

fn check_read(file: &File, expected: &Painted, range: Range<usize>) {
    let len = expected.bytes.len();
    let (bytes, error) = pread(file, range.clone());
    let start = range.start.min(len);
    assert!(bytes == expected.bytes[start..start + bytes.len()], "{range:?} of {}", expected.id);
    assert!(!expected.unproven[start..start + bytes.len()].contains(&true), "{range:?} of {}", expected.id);
    // A byte that cannot be had takes its page with it.
    let pages = range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE);
    match error {
        None => assert_eq!(bytes.len(), range.end.min(len) - start, "{range:?} of {}", expected.id),
        Some(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
            assert!(expected.read(pages).is_none(), "{range:?} of {}: {error}", expected.id);
        }
    }
}

/// Ranges of odd lengths all over the image and beyond its end; the same ones in each run.
fn ranges(seed: u64, len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut state = seed.wrapping_add(1);
    let mut below = move |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound.max(1)
    };
    (0..READS).map(move |i| {
        let at = below(len + 10);
        let most = if i % 4 == 0 { len + 10 } else { 9000.min(len + 10) };
        at..at + 1 + below(most)
    })
}

fn check_image(path: &Path, expected: &Painted) {
    let file = File::open(path).unwrap();
    let len = expected.bytes.len();
    let stat = file.metadata().unwrap();
    assert_eq!(stat.size(), len as u64, "{}", expected.id);
    assert_eq!(stat.blocks(), (expected.data_bytes() as u64).div_ceil(512), "{}", expected.id);

    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let file = &file;
            scope.spawn(move || {
                ranges(thread as u64, len).for_each(|range| check_read(file, expected, range));
            });
        }
    });
    if expected.is_whole() {
        assert!(fs::read(path).unwrap() == expected.bytes, "{}", expected.id);
    } else {
        assert_eq!(fs::read(path).unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
    }

    let runs = expected.runs();
    for (i, (range, hole)) in runs.iter().enumerate() {
        let next = runs.get(i + 1).map(|(range, _)| range.start as u64);
        for at in [range.start as u64, (range.end - 1) as u64] {
            let (data, hole) =
                if *hole { (next.ok_or(Errno::NXIO), at) } else { (Ok(at), next.unwrap_or(len as u64)) };
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(at)), data, "data from {at} of {runs:?}");
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(at)), Ok(hole), "hole from {at} of {runs:?}");
        }
    }
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(len as u64)), Err(Errno::NXIO));
}

#[test]
fn a_sample_of_histories_reads_right_through_a_mount() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    fs::create_dir(&root).unwrap();
    let kinds = [
        histories(&[1, 7], 0..=500, 7),
        histories(&[512, 1000, 4096], 0..=40_000, 7),
        histories(&[32768], 0..=500_000, 7),
        histories(&[1 << 20, 65536, 3 << 20], 0..=5_000_000, 7),
    ];
    let mut runner = cases::runner(1, 5);
    let mut images = Vec::new();
    for number in 0..kinds.len() * HISTORIES {
        let history = kinds[number % kinds.len()].new_tree(&mut runner).unwrap().current();
        let built = history.build(number);
        built.specs.iter().for_each(|spec| spec.write_to_folder(&root));
        images.extend(built.images);
    }
    // The smallest cache, so that blocks go and come again.
    let mount = Mountpoint::with(&root, &["-o", "cache_size=4M"]);
    assert_eq!(fs::read_dir(mount.path().join("backups")).unwrap().count(), images.len());
    for expected in &images {
        check_image(&mount.image(&expected.id), expected);
    }
    mount.unmount();
}
