//! Right bytes? Random histories of a volume, against a byte array that every layer is painted on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/history.rs"]
mod history;
#[path = "common/painted.rs"]
mod painted;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Read as _;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::restore::{OnDamage, RestoreOptions, Target, restore};
use cinderfs::image::{Image, Part, Verification};
use cinderfs::store::Store;
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::memory::MemoryStore;
use cinderfs::store::posix::PosixStore;
use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::SeekFrom;

use cases::Watchdog;
use history::{Built, History, histories};
use painted::Painted;

/// Cache sizes in bytes: none, less than an image, more than all.
const CACHE_BYTES: &[u64] = &[0, 64 << 10, 64 << 20];

/// Restart points are about so far apart, in plain bytes.
const RESTART_SPACING_BYTES: u64 = 1000;

/// Readers at a time.
const THREADS: usize = 4;

fn open(store: Arc<dyn Store>, cache_bytes_max: u64) -> Catalog {
    // Points as close as the streams allow, so that small histories have many.
    let restart_spacing_bytes = Some(RESTART_SPACING_BYTES);
    let options = CatalogOptions { cache_bytes_max, restart_spacing_bytes, ..CatalogOptions::default() };
    Catalog::open(store, options).unwrap()
}

fn memory_store(built: &Built) -> MemoryStore {
    let store = MemoryStore::new();
    built.specs.iter().for_each(|spec| spec.write_to_memory(&store));
    store
}

fn image_of(catalog: &Catalog, expected: &Painted) -> Arc<Image> {
    let snapshot = catalog.snapshot();
    let entry = snapshot.get(&expected.id).unwrap();
    assert!(entry.problem.is_none(), "{:?}", entry.problem);
    catalog.image(entry).unwrap()
}

/// A read as its test asks for it: a place and a length in 65536ths of the image, the end a little beyond it.
type Read = (u16, u16);

fn reads() -> impl Strategy<Value = Vec<Read>> {
    let len = prop_oneof![3 => 0..500u16, 1 => any::<u16>()];
    prop::collection::vec((any::<u16>(), len), 1..12)
}

/// Reads that range and compares.
fn check_read(image: &Image, expected: &Painted, (at, len): Read) {
    let total = expected.bytes.len() + 10;
    let at = total * usize::from(at) / 65535;
    let len = 1 + total * usize::from(len) / 65535;
    let mut buf = vec![0xEE; len];
    match (expected.read(at..at + len), image.read_at(&mut buf, at as u64)) {
        (Some(bytes), Ok(n)) => assert!(buf[..n] == *bytes, "{} bytes at {at} of {}", len, expected.id),
        (None, Err(error)) => assert_eq!(error.kind(), ErrorKind::NoData),
        (Some(_), Err(error)) => panic!("{len} bytes at {at} of {}: {error}", expected.id),
        (None, Ok(_)) => panic!("{len} bytes at {at} of {} are not proven", expected.id),
    }
}

/// Everything at once, part by part: what may be lost, what is a hole, no gap and no overlap.
fn check_whole(image: &Image, expected: &Painted) {
    let mut next = 0;
    let visited = image.visit(0..u64::MAX, &mut |range, part| {
        let range = range.start as usize..range.end as usize;
        assert_eq!(range.start, next);
        next = range.end;
        match part {
            Part::Data(bytes) => assert!(expected.read(range.clone()) == Some(bytes), "{range:?}"),
            Part::Zeros => assert!(range.clone().all(|at| expected.bytes[at] == 0), "{range:?}"),
            Part::Lost(error) => {
                assert!(expected.unproven[range.clone()].iter().all(|&unproven| unproven), "{error}");
            }
        }
        Ok(())
    });
    visited.unwrap();
    assert_eq!(next, expected.bytes.len());
}

/// What an image says about itself.
fn check_shape(image: &Arc<Image>, expected: &Painted) {
    let len = expected.bytes.len() as u64;
    assert_eq!(image.len_bytes(), len, "length of {}", expected.id);
    assert!(image.chain().iter().map(|id| id.as_str()).eq(expected.chain.iter().map(String::as_str)));
    let verification = expected.block_bytes.map_or(Verification::Md5, |_| Verification::Sha256);
    assert_eq!(image.verification(), verification);
    if let Some(block_bytes) = expected.block_bytes {
        assert_eq!(image.block_bytes(), block_bytes as u64);
    }

    let mut ranges: Vec<_> = image.groups().into_iter().flatten().collect();
    ranges.sort_by_key(|range| range.start);
    let ends = ranges.iter().map(|range| range.end);
    assert!(ranges.iter().all(|range| !range.is_empty()));
    assert!(
        ranges.iter().map(|range| range.start).chain([len]).eq([0].into_iter().chain(ends)),
        "{ranges:?}"
    );

    assert_eq!(image.data_bytes(), Some(expected.data_bytes() as u64));
    let runs = expected.runs();
    for (i, (range, hole)) in runs.iter().enumerate() {
        // From the run's ends and its middle: the place itself, or the next run, which is of the other kind.
        for at in [range.start, range.start + range.len() / 2, range.end - 1] {
            let next = runs.get(i + 1).map(|(range, _)| range.start as u64);
            let (here, there) = (at as u64, next);
            let (data, hole) = if *hole { (there, here) } else { (Some(here), there.unwrap_or(len)) };
            assert_eq!(image.seek_data(at as u64).unwrap(), data, "data from {at} of {runs:?}");
            assert_eq!(image.seek_hole(at as u64).unwrap(), hole, "hole from {at} of {runs:?}");
        }
    }
    for at in [len, len + 1, u64::MAX] {
        assert_eq!(image.seek_data(at).unwrap(), None);
        assert_eq!(image.read_at(&mut [0; 3], at).unwrap(), 0);
    }
}

/// All images of a history: first by many readers at once, then one by one, then what they say of themselves.
fn check_history(history: &History, reads: &[Read], cache_bytes: u64) {
    let _watchdog = Watchdog::new();
    let built = history.build(0);
    let catalog = open(Arc::new(memory_store(&built)), cache_bytes);
    assert_eq!(catalog.snapshot().entries().count(), built.images.len());
    let images: Vec<_> = built.images.iter().map(|expected| image_of(&catalog, expected)).collect();
    for (image, expected) in images.iter().zip(&built.images) {
        check_shape(image, expected);
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (images, built) = (&images, &built);
            scope.spawn(move || {
                // Each begins elsewhere, so that they meet in different images and blocks.
                for (i, &read) in reads.iter().enumerate().cycle().skip(thread).take(reads.len()) {
                    for index in 0..images.len() {
                        let index = (index + thread * i) % images.len();
                        check_read(&images[index], &built.images[index], read);
                    }
                }
            });
        }
    });
    for (image, expected) in images.iter().zip(&built.images) {
        check_whole(image, expected);
        assert_eq!(image.damage().blocks > 0, !expected.is_whole());
    }
}

#[track_caller]
fn check_histories(cases: u32, block_bytes: &'static [usize], len: RangeInclusive<usize>) {
    let strategy = (histories(block_bytes, len, 7), reads(), select(CACHE_BYTES));
    let run = cases::runner(cases, block_bytes[0] as u64).run(&strategy, |(history, reads, cache_bytes)| {
        check_history(&history, &reads, cache_bytes);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn blocks_of_a_few_bytes() {
    check_histories(350, &[1, 7], 0..=500);
}

#[test]
fn blocks_of_a_sector_and_odd_ones() {
    check_histories(350, &[512, 1000, 4096], 0..=40_000);
}

#[test]
fn blocks_as_cinder_makes_them() {
    check_histories(350, &[32768], 0..=500_000);
}

#[test]
fn blocks_as_large_as_a_window_and_larger() {
    check_histories(60, &[1 << 20, 65536, 3 << 20], 0..=5_000_000);
}

/// A fault of the store: of data objects or of digests, at places in 65536ths of what an object may hold.
#[derive(Clone, Debug)]
enum Trouble {
    /// Nothing is wrong with it.
    ShortReads(usize),
    Away(u64),
    AwayOnOpen(u64),
    Flip(u32, u8),
    FlipOnce(u32, u8),
    Ends(u64),
}

fn troubles() -> impl Strategy<Value = Vec<(bool, Trouble)>> {
    let trouble = prop_oneof![
        (1..300usize).prop_map(Trouble::ShortReads),
        (1..4u64).prop_map(Trouble::Away),
        (1..4u64).prop_map(Trouble::AwayOnOpen),
        (0..3000u32, 0..8u8).prop_map(|(at, bit)| Trouble::Flip(at, bit)),
        (0..3000u32, 0..8u8).prop_map(|(at, bit)| Trouble::FlipOnce(at, bit)),
        (0..3000u64).prop_map(Trouble::Ends),
    ];
    prop::collection::vec((prop::bool::weighted(0.8), trouble), 1..4)
}

impl Trouble {
    fn rule(&self, is_of_data: bool) -> Rule {
        let flip = |at: u32, bit| Fault::FlipBit { offset_bytes: u64::from(at), bit };
        let rule = match *self {
            Self::ShortReads(most) => Rule::new(Operation::Read, Fault::ShortRead(most)),
            Self::Away(times) => Rule::new(Operation::Read, Fault::Error(ErrorKind::StoreIo)).times(times),
            Self::AwayOnOpen(times) => {
                Rule::new(Operation::Open, Fault::Error(ErrorKind::StoreIo)).times(times)
            }
            Self::Flip(at, bit) => Rule::new(Operation::Read, flip(at, bit)),
            Self::FlipOnce(at, bit) => {
                let place = u64::from(at)..u64::from(at) + 1;
                Rule::new(Operation::Read, flip(at, bit)).bytes(place).times(1)
            }
            Self::Ends(at) => Rule::new(Operation::Read, Fault::EndAt(at)),
        };
        rule.names(if is_of_data { "*-0*" } else { "*_sha256file" })
    }
}

/// Reads everything while the store fails: right bytes, or none.
fn check_under_faults(image: &Image, expected: &Painted, must_succeed: bool) {
    let mut next = 0;
    let visited = image.visit(0..u64::MAX, &mut |range, part| {
        let range = range.start as usize..range.end as usize;
        assert_eq!(range.start, next);
        next = range.end;
        match part {
            Part::Data(bytes) => assert!(expected.read(range.clone()) == Some(bytes), "{range:?}"),
            Part::Zeros => assert!(range.clone().all(|at| expected.bytes[at] == 0), "{range:?}"),
            Part::Lost(error) => {
                let unproven = expected.unproven[range.clone()].contains(&true);
                assert!(!must_succeed || unproven, "{range:?}: {error}");
            }
        }
        Ok(())
    });
    visited.unwrap();
    assert_eq!(next, expected.bytes.len());
}

#[test]
fn a_failing_store_gives_right_bytes_or_none_and_all_of_them_afterwards() {
    type Troubled = (Arc<FaultStore<MemoryStore>>, Vec<Arc<Image>>, Vec<Painted>);
    let kept: RefCell<Vec<Troubled>> = RefCell::default();
    let strategy = (histories(&[7, 512, 1000, 4096], 0..=20_000, 4), troubles(), select(CACHE_BYTES));
    let run = cases::runner(250, 3).run(&strategy, |(history, troubles, cache_bytes)| {
        let _watchdog = Watchdog::new();
        let built = history.build(0);
        let store = Arc::new(FaultStore::new(memory_store(&built), []));
        let catalog = open(store.clone(), cache_bytes);
        let images: Vec<_> = built.images.iter().map(|expected| image_of(&catalog, expected)).collect();
        store.set_script(troubles.iter().map(|(is_of_data, trouble)| trouble.rule(*is_of_data)));
        let harmless = troubles.iter().all(|(_, trouble)| matches!(trouble, Trouble::ShortReads(_)));
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    for (image, expected) in images.iter().zip(&built.images) {
                        scope.spawn(move || check_under_faults(image, expected, harmless));
                    }
                }
            });
        }
        store.set_script([]);
        // A store that did not answer is asked again at once; damage, and a failed proof by md5, are believed a while.
        let away = |trouble: &Trouble| {
            matches!(trouble, Trouble::ShortReads(_) | Trouble::Away(_) | Trouble::AwayOnOpen(_))
        };
        if troubles.iter().all(|(_, trouble)| away(trouble)) {
            let proven = images.iter().zip(&built.images).filter(|(_, e)| e.block_bytes.is_some());
            proven.for_each(|(image, expected)| check_whole(image, expected));
        }
        kept.borrow_mut().push((store, images, built.images));
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
    std::thread::sleep(Duration::from_millis(3200));
    for (_, images, expected) in kept.into_inner() {
        for (image, expected) in images.iter().zip(&expected) {
            check_whole(image, expected);
            assert_eq!(
                image.damage().blocks > 0,
                !expected.is_whole(),
                "damage is forgotten when it is gone"
            );
        }
    }
}

fn restore_to(image: &Arc<Image>, target: &Path, force: bool) -> cinderfs::Result<u64> {
    let cancel = AtomicBool::new(false);
    let options = RestoreOptions { force, on_damage: OnDamage::Stop, threads: 3, cancel: &cancel };
    restore(image, Target::Path(target.into()), &options, &|_| {}).map(|report| report.hole_bytes)
}

/// Bytes of a file that are not in holes.
fn allocated(path: &Path) -> usize {
    let (file, mut at, mut bytes) = (File::open(path).unwrap(), 0, 0);
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        bytes += at - data;
    }
    bytes as usize
}

/// Bytes of the pages that hold data.
fn pages_with_data(expected: &Painted, page: usize) -> usize {
    let total = expected.bytes.len();
    let is_data = |start: &usize| (*start..total.min(start + page)).any(|at| !expected.is_hole(at));
    (0..total).step_by(page).filter(is_data).map(|start| page.min(total - start)).sum()
}

#[test]
fn restored_files_and_pipes_hold_the_image_and_nothing_else() {
    let strategy = (histories(&[512, 1000, 32768], 0..=300_000, 3), select(CACHE_BYTES));
    let run = cases::runner(60, 4).run(&strategy, |(history, cache_bytes)| {
        let _watchdog = Watchdog::new();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        fs::create_dir(&root).unwrap();
        let built = history.build(0);
        built.specs.iter().for_each(|spec| spec.write_to_folder(&root));
        let catalog = open(Arc::new(PosixStore::open(&root).unwrap()), cache_bytes);
        for expected in &built.images {
            let image = image_of(&catalog, expected);
            let (new, old) = (folder.path().join("new"), folder.path().join("old"));
            fs::write(&old, vec![0xDD; expected.bytes.len() + 5000]).unwrap();
            if !expected.is_whole() {
                assert_eq!(restore_to(&image, &new, false).unwrap_err().kind(), ErrorKind::NoData);
                assert!(!new.exists());
                continue;
            }
            let holes = [restore_to(&image, &new, false).unwrap(), restore_to(&image, &old, true).unwrap()];
            assert_eq!(restore_to(&image, &old, false).unwrap_err().kind(), ErrorKind::Usage);
            if expected.block_bytes.is_some() {
                assert_eq!(holes, [(expected.bytes.len() - expected.data_bytes()) as u64; 2]);
            }
            for path in [&new, &old] {
                assert!(fs::read(path).unwrap() == expected.bytes, "{path:?} of {}", expected.id);
                let most = pages_with_data(expected, 4096);
                assert!(allocated(path).div_ceil(4096) <= most.div_ceil(4096), "{path:?} is not sparse");
                fs::remove_file(path).unwrap();
            }
            let pipe = folder.path().join("pipe");
            rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
                .unwrap();
            let piped = std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut bytes = Vec::new();
                    File::open(&pipe).unwrap().read_to_end(&mut bytes).unwrap();
                    bytes
                });
                restore_to(&image, &pipe, false).unwrap();
                reader.join().unwrap()
            });
            assert!(piped == expected.bytes, "through a pipe: {}", expected.id);
            fs::remove_file(&pipe).unwrap();
        }
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
}
