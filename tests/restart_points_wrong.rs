//! Are bytes right whatever the saved restart points say, and wherever they are kept?

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
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cinderfs::catalog::CatalogOptions;
use cinderfs::codec::RestartPoint;
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use cases::Watchdog;
use restart_kit::*;
use volume::{MIB, Random, mixed};

/// As in a cache directory that was copied from another machine by name, or after a collision of keys.
#[test]
fn points_of_another_object_are_found_out_by_many_readers_at_once() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(3, 16 * MIB), ZLIB);
    let other = Kit::new("b", mixed(4, 16 * MIB), ZLIB);
    let (own, foreign) = (kit.make_index(), other.make_index());
    let key = kit.key();
    for threads in [1, 4] {
        let store = kit.indexes();
        store.forget(&key);
        let points = foreign.points().iter().enumerate().map(|(n, point)| {
            let (plain_offset, stored_bits) = (point.plain_offset, point.stored_bits);
            Ok(RestartPoint { plain_offset, stored_bits, state: foreign.state(n)? })
        });
        store.save(&key, foreign.known_to(), &mut points.collect::<Vec<_>>().into_iter()).unwrap();
        let (catalog, image) = kit.open(Some(store.clone()));
        kit.check_at_random(&image, threads, 40, threads);
        if let Some(left) = store.load(&key) {
            assert_ne!(left.points(), foreign.points(), "the wrong index is still there");
        }
        read_all(&image, &kit.plain);
        catalog.keep_indexes();
        drop((catalog, image));
        let rebuilt = store.load(&key).expect("a new index after the wrong one");
        assert_eq!(rebuilt.known_to(), own.known_to());
        let own_bits = |at| own.points().iter().find(|p| p.plain_offset == at).map(|p| p.stored_bits);
        let is_own = |p: &cinderfs::cache_dir::seek_indexes::SavedPoint| {
            own_bits(p.plain_offset).is_none_or(|bits| bits == p.stored_bits)
        };
        assert!(rebuilt.points().iter().all(is_own), "the new index has points of the wrong one");
    }
}

/// What a bug of a writer, or somebody with a purpose, might leave: right checksums over wrong points.
// > Restart points that reads have found are kept in the cache directory and serve later mounts; those that `create` wrote into the metadata serve all mounts, without a cache directory and with `seek_index=off` too. Points that are damaged, foreign or wrong cost time and never a byte.
#[test]
fn points_that_are_wrong_under_right_checksums_never_reach_a_reader() {
    for &(name, packing, spacing) in HARMED {
        let _watchdog = Watchdog::new();
        check_wrong_points(&Kit::new(name, mixed(5, 12 * MIB), packing).spaced(spacing));
    }
}

fn check_wrong_points(kit: &Kit) {
    let own = kit.make_index();
    let key = kit.key();
    let states: Vec<Arc<[u8]>> = (0..own.points().len()).map(|n| own.state(n).unwrap()).collect();
    let count = states.len();
    assert!(count >= 4, "{count} points");
    type Change = fn(&mut RestartPoint, usize, &[Arc<[u8]>]);
    let changes: [(&str, Change); 8] = [
        ("bits up", |point, _, _| point.stored_bits += 1),
        ("bits down", |point, _, _| point.stored_bits -= 3),
        ("bits far", |point, n, _| point.stored_bits += 8 * 4321 * n as u64),
        ("bits beyond", |point, _, _| point.stored_bits = u64::MAX),
        ("offset", |point, _, _| point.plain_offset += 32768),
        ("offset by one", |point, _, _| point.plain_offset -= 1),
        ("state of another", |point, n, states| point.state = states[(n + 1) % states.len()].clone()),
        ("state of noise", |point, n, _| {
            let mut state = point.state.to_vec();
            let mut random = Random::new(n as u64 + 1);
            for _ in 0..state.len().min(20) {
                let at = random.below(state.len());
                state[at] ^= 1 << random.below(8);
            }
            point.state = state.into();
        }),
    ];
    for (seed, (what, change)) in changes.into_iter().enumerate() {
        for every in [1, 2] {
            let store = kit.indexes();
            store.forget(&key);
            let points = own.points().iter().enumerate().map(|(n, point)| {
                let (plain_offset, stored_bits) = (point.plain_offset, point.stored_bits);
                let mut point = RestartPoint { plain_offset, stored_bits, state: states[n].clone() };
                if n % every == 0 {
                    change(&mut point, n, &states);
                }
                Ok(point)
            });
            let points: Vec<_> = points.collect();
            store.save(&key, own.known_to(), &mut points.into_iter()).unwrap();
            let (_catalog, image) = kit.open(Some(store.clone()));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                kit.check_at_random(&image, 4, 10, seed as u64);
            }));
            assert!(result.is_ok(), "{}, {what}, every {every}: expected right bytes, see above", kit.id);
        }
    }
}

// > Restart points that reads have found are kept in the cache directory and serve later mounts; those that `create` wrote into the metadata serve all mounts, without a cache directory and with `seek_index=off` too. Points that are damaged, foreign or wrong cost time and never a byte.
#[test]
fn files_that_are_damaged_or_deleted_while_they_are_used_change_no_byte() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(6, 12 * MIB), ZLIB);
    let _ = kit.make_index();
    let path = kit.index_path();
    let good = fs::read(&path).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(9);
            while !stop.load(Ordering::Relaxed) {
                match random.below(8) {
                    0 => drop(fs::remove_dir_all(path.parent().unwrap())),
                    1 => drop(fs::write(&path, &good[..random.below(good.len())])),
                    2 | 3 => drop(fs::write(&path, &good)),
                    _ => {
                        if let Ok(file) = fs::OpenOptions::new().write(true).open(&path) {
                            let at = random.below(good.len()) as u64;
                            let _ = file.write_at(&[random.next() as u8], at);
                        }
                    }
                }
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..6 {
                let (catalog, image) = kit.open_with(CatalogOptions {
                    workers: 2,
                    seek_indexes: Some(kit.indexes()),
                    ..options()
                });
                kit.check_at_random(&image, 4, 20, round);
                catalog.keep_indexes();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        assert!(result.is_ok(), "expected right bytes from each read, see above");
    });
}

/// A file system in memory, unmounted when dropped.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new(size: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a file system, which needs root");
        let folder = tempfile::tempdir().unwrap();
        let data = std::ffi::CString::new(format!("size={size},mode=700")).unwrap();
        rustix::mount::mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), data.as_c_str()).unwrap();
        Self(folder)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_or_read_only_cache_directory_changes_no_byte() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(7, 12 * MIB), ZLIB);
    let _ = kit.make_index();
    let name = kit.index_path().file_name().unwrap().to_owned();
    let index = fs::read(kit.index_path()).unwrap();
    // Too small for the index, and read-only with a damaged one.
    let full = Tmpfs::new("16k");
    let store = indexes(full.0.path());
    for round in 0..2 {
        let (catalog, image) = kit.open(Some(store.clone()));
        read_all(&image, &kit.plain);
        kit.check_at_random(&image, 2, 10, round);
        catalog.keep_indexes();
    }
    let left: u64 =
        fs::read_dir(store.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(left < 16 << 10, "{left} bytes are left of files that did not fit");
    drop((store, full));

    let read_only = Tmpfs::new("64m");
    let store = indexes(read_only.0.path());
    for damaged in [false, true] {
        let mut bytes = index.clone();
        if damaged {
            // One of the states.
            bytes[1000] ^= 1;
        }
        let data = c"size=64m";
        rustix::mount::mount_remount(read_only.0.path(), MountFlags::empty(), data).unwrap();
        fs::write(store.path().join(&name), &bytes).unwrap();
        fs::set_permissions(store.path().join(&name), fs::Permissions::from_mode(0o600)).unwrap();
        rustix::mount::mount_remount(read_only.0.path(), MountFlags::RDONLY, data).unwrap();
        let (catalog, image) = kit.open(Some(store.clone()));
        kit.check_at_random(&image, 4, 10, 5);
        read_all(&image, &kit.plain);
        catalog.keep_indexes();
    }
}
