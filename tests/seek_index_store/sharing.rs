//! Several processes and threads at one directory, some of them killed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cinderfs::cache_dir::seek_indexes::{SavedIndex, SeekIndexStore};
use cinderfs::{ErrorKind, Result};

use super::{World, age, each_point, hours, key, names, open, points};

/// Tells a child process of this test binary which directory to write to.
const CHILD_DIRECTORY: &str = "SEEK_INDEX_TEST_DIRECTORY";

/// What the processes and threads under load save: a generation says how far it knows, so that a reader can tell.
fn save_generation(store: &SeekIndexStore, n: u8, generation: u64) -> Result<SavedIndex> {
    // As in earnest, most of the time goes into making the states, while the file is open.
    let points = each_point(key(n), generation, 3 + generation % 40, 20_000);
    store.save(&key(n), generation, &mut points.map(Ok))
}

/// Loads an object's index, which must be one that somebody saved. Says how many states were there and how many gone.
fn check_generation(store: &SeekIndexStore, n: u8) -> Option<(u64, u64)> {
    let saved = store.load(&key(n))?;
    let generation = saved.known_to();
    let expected = points(&key(n), generation, 3 + generation % 40, 20_000);
    assert_eq!(saved.points().len(), expected.len(), "generation {generation}");
    let (mut good, mut gone) = (0, 0);
    for (index, (found, expected)) in saved.points().iter().zip(&expected).enumerate() {
        assert_eq!((found.plain_offset, found.stored_bits), (expected.plain_offset, expected.stored_bits));
        match saved.state(index) {
            Ok(state) => {
                assert_eq!(state, expected.state, "generation {generation} point {index}");
                good += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoData, "{error}");
                gone += 1;
            }
        }
    }
    Some((good, gone))
}

/// A process that saves without end, to be killed.
struct Writer(Child);

impl Writer {
    fn start(directory: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sharing::child_that_saves_without_end", "--ignored", "--nocapture"])
            .env(CHILD_DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut writer = Self(child);
        let lines = BufReader::new(writer.0.stdout.take().unwrap()).lines();
        let begun = lines.map(Result::unwrap).any(|line| line.contains("first index saved"));
        assert!(begun, "the writer ended before it began");
        writer
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "started by other tests, which kill it"]
fn child_that_saves_without_end() {
    let directory = std::env::var_os(CHILD_DIRECTORY).expect("only other tests start this one");
    let store = open(Path::new(&directory), 2_000_000);
    for generation in 1.. {
        for n in 0..8 {
            save_generation(&store, n, generation).unwrap();
        }
        if generation == 1 {
            println!("first index saved");
        }
    }
}

#[test]
fn processes_and_threads_share_a_directory_while_others_evict() {
    let world = World::new();
    let writers = [Writer::start(&world.cache()), Writer::start(&world.cache())];
    let (good, gone, missing) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (world, is_over, good, gone, missing) = (&world, &is_over, &good, &gone, &missing);
            scope.spawn(move || {
                let store = world.store(1_000_000);
                for generation in 1.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    for n in 0..8 {
                        match check_generation(&store, n) {
                            Some(states) => {
                                good.fetch_add(states.0, Ordering::Relaxed);
                                gone.fetch_add(states.1, Ordering::Relaxed);
                            }
                            None => {
                                missing.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                    let n = match thread {
                        0 => {
                            store.forget(&key((generation % 8) as u8));
                            continue;
                        }
                        1 => generation % 8,
                        _ => 100 + generation % 50,
                    };
                    save_generation(&store, n as u8, generation).unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_secs(2));
        is_over.store(true, Ordering::Relaxed);
    });
    drop(writers);
    let counts = [good, gone, missing].map(AtomicU64::into_inner);
    println!("{counts:?}");
    assert!(counts[0] > 100 && counts[2] > 0, "too little happened: {counts:?}");
    // What is left is bounded, and usable by whoever comes next. Two killed writers may have left one file each.
    let store = world.store(1_000_000);
    save_generation(&store, 200, 1).unwrap();
    let indexes = names(&store).into_iter().filter(|name| !name.ends_with(".tmp"));
    let sum: u64 = indexes.map(|name| fs::metadata(store.path().join(name)).unwrap().len()).sum();
    assert!(sum <= 1_000_000, "{sum}");
    assert!((0..8).all(|n| save_generation(&store, n, u64::MAX >> 8).is_ok()));
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_usable_directory() {
    let world = World::new();
    let (mut good, mut left_behind) = (0, 0);
    for round in 0..40u64 {
        let writer = Writer::start(&world.cache());
        std::thread::sleep(Duration::from_micros(round * 311 % 5000));
        drop(writer);
        let store = world.store(2_000_000);
        for n in 0..8 {
            let (states, gone) = check_generation(&store, n).unwrap_or_default();
            assert_eq!(gone, 0, "nobody else is there");
            good += states;
        }
        let leftovers: Vec<_> = names(&store).into_iter().filter(|name| name.ends_with(".tmp")).collect();
        left_behind += leftovers.len();
        assert!(leftovers.len() <= 1);
        for leftover in leftovers {
            age(&store.path().join(leftover), hours(1));
        }
        save_generation(&store, 9, round).unwrap();
        assert!(names(&store).iter().all(|name| !name.ends_with(".tmp")), "cleaned up");
        // The next writer starts at the first generation again, and must have something to save.
        (0..10).for_each(|n| store.forget(&key(n)));
    }
    println!("{good} states, {left_behind} killed in the middle");
    assert!(good > 500 && left_behind > 0, "{good} states, {left_behind} killed in the middle");
}
