//! Bounds, disks that are full, and what goes when there is too much.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use cinderfs::ErrorKind;
use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::SeekIndexStore;
use cinderfs::codec::RestartPoint;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{PLENTY, World, age, holds, hours, key, name, names, open, points, save};

#[test]
fn the_least_recently_used_goes_first() {
    let world = World::new();
    // Each file takes 32 KiB on disk: eight fit, and seven stay when one is too many.
    let store = world.store((8 * 32) << 10);
    let point = |n: u8| [RestartPoint { plain_offset: 0, stored_bits: 0, state: vec![n; 30_000].into() }];
    let there = || (0..100).filter(|&n| store.known_to(&key(n)).is_some()).collect::<Vec<_>>();
    for n in 0..8 {
        save(&store, &key(n), 1, &point(n)).unwrap();
        age(&store.path().join(name(&key(n))), hours(20 - u64::from(n)));
    }
    assert_eq!(there(), [0, 1, 2, 3, 4, 5, 6, 7]);
    // Two are used, by another process for what it matters: one by its table, one by a state. Asking how far it goes is no use.
    let other = world.store(PLENTY);
    let one = save(&other, &key(1), 1, &point(1)).unwrap();
    age(&store.path().join(name(&key(1))), hours(19));
    assert_eq!(one.state(0).unwrap()[..], point(1)[0].state[..]);
    other.load(&key(3)).unwrap();
    other.known_to(&key(0)).unwrap();
    save(&store, &key(8), 1, &point(8)).unwrap();
    assert_eq!(there(), [1, 3, 4, 5, 6, 7, 8]);
    save(&store, &key(9), 1, &point(9)).unwrap();
    assert_eq!(there(), [1, 3, 4, 5, 6, 7, 8, 9]);
    save(&store, &key(10), 1, &point(10)).unwrap();
    assert_eq!(there(), [1, 3, 6, 7, 8, 9, 10]);
    // A clock that was wrong keeps no file for ever.
    let future = SystemTime::now() + hours(1000);
    fs::File::open(store.path().join(name(&key(6)))).unwrap().set_modified(future).unwrap();
    store.load(&key(6)).unwrap();
    let noted = fs::metadata(store.path().join(name(&key(6)))).unwrap().modified().unwrap();
    assert!(noted <= SystemTime::now());
}

#[test]
fn a_bound_below_the_working_set_holds() {
    let world = World::new();
    let bound = 1 << 20;
    let store = world.store(bound);
    let mut survivors = 0;
    for round in 0..3 {
        for n in 0..60 {
            let points = points(&key(n), round, 10, 10_000);
            assert!(holds(&save(&store, &key(n), round, &points).unwrap(), round, &points));
            let len = |name: &String| fs::metadata(store.path().join(name)).unwrap().len();
            let sum: u64 = names(&store).iter().map(len).sum();
            assert!(sum <= bound, "{sum}");
            survivors = names(&store).len();
        }
    }
    assert!(survivors > 10, "{survivors}");
    // One that fits but for the reserve takes the place of all others; one that is too large takes none.
    let sized = |len| [RestartPoint { plain_offset: 0, stored_bits: 0, state: vec![1; len].into() }];
    save(&store, &key(70), 1, &sized((1 << 20) - 200)).unwrap();
    assert_eq!(names(&store), HashSet::from([name(&key(70))]));
    assert!(save(&store, &key(71), 1, &sized(1 << 20)).is_err());
    assert_eq!(names(&store), HashSet::from([name(&key(70))]));
}

#[test]
fn leftovers_of_killed_writers_go_and_other_files_stay() {
    let world = World::new();
    let store = world.store(PLENTY);
    for (n, leftover) in ["aa.0123.tmp", "bb.4567.tmp", "notes.txt"].iter().enumerate() {
        fs::write(store.path().join(leftover), "x").unwrap();
        if n != 1 {
            age(&store.path().join(leftover), hours(1));
        }
    }
    save(&store, &key(1), 1, &points(&key(1), 1, 3, 100)).unwrap();
    let expected = [name(&key(1)), "bb.4567.tmp".to_owned(), "notes.txt".to_owned()];
    assert_eq!(names(&store), HashSet::from(expected));
}

#[test]
fn the_directory_may_be_deleted_at_any_time() {
    let world = World::new();
    let store = world.store(PLENTY);
    let points = points(&key(1), 1, 5, 100);
    let saved = save(&store, &key(1), 1, &points).unwrap();
    fs::remove_dir_all(world.cache()).unwrap();
    assert!(store.load(&key(1)).is_none());
    assert!(!holds(&saved, 1, &points));
    store.forget(&key(1));
    assert!(holds(&save(&store, &key(1), 1, &points).unwrap(), 1, &points));
    assert!(holds(&world.store(PLENTY).load(&key(1)).unwrap(), 1, &points));
}

/// A small file system in memory, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"size=1m,mode=700").unwrap();
        Self(at)
    }

    /// A child that another test starts holds all our descriptors until it has become its program; the disk is busy then.
    fn make_read_only(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(errno) = rustix::mount::mount_remount(&self.0, MountFlags::RDONLY, c"") {
            assert!(errno == rustix::io::Errno::BUSY && Instant::now() < end, "{errno}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_or_read_only_disk_is_an_error_and_keeps_what_it_has() {
    let world = World::new();
    let disk = SmallDisk::mount(world.root.path().join("disk"));
    let dir = CacheDir::open(&disk.0).unwrap();
    assert_eq!(SeekIndexStore::bytes_max_default(&dir), (1 << 20) / 20);
    let store = open(&disk.0, PLENTY);
    let [small, large] = [30, 3000].map(|count| points(&key(1), 1, count, 2000));
    save(&store, &key(1), 1, &small).unwrap();
    let error = save(&store, &key(1), 2, &large).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(names(&store), HashSet::from([name(&key(1))]));
    assert!(holds(&store.load(&key(1)).unwrap(), 1, &small));

    age(&store.path().join(name(&key(1))), hours(9));
    disk.make_read_only();
    let store = open(&disk.0, PLENTY);
    assert!(holds(&store.load(&key(1)).unwrap(), 1, &small));
    store.forget(&key(1));
    assert!(holds(&store.load(&key(1)).unwrap(), 1, &small));
    let error = save(&store, &key(1), 2, &small).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(error.to_string().contains("CINDERFS_CACHE_DIR"), "{error}");
    assert_eq!(CacheDir::open(&disk.0.join("below")).unwrap_err().kind(), ErrorKind::Target);
}
