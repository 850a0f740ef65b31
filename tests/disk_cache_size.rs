//! Is there one disk cache, of one size, whatever mounts ask for, whoever is killed, and whatever the disk holds?

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::blocks::BlockRing;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::store::posix::PosixStore;

use mount::*;
use store::*;

const MIB: u64 = 1 << 20;

/// A mount with almost no memory cache, and a disk cache of `mib`.
fn mount(store: &Path, cache: &Path, mib: u64) -> Mount {
    mount_with(store, cache, &format!("disk_cache={mib}M"))
}

fn mount_with(store: &Path, cache: &Path, options: &str) -> Mount {
    Setup::default().options("cache_size=4M").options(options).cache_dir(cache).mount(store)
}

/// Reads through the mount what the kernel does not have.
fn read_through(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What the ring files are called that a daemon has open, one for each inode.
fn rings_of(mount: &Mount) -> Vec<PathBuf> {
    let folder = format!("/proc/{}/fd", mount.pid().as_raw_nonzero());
    let links = fs::read_dir(folder).unwrap().map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
    let mut rings: Vec<_> = links.filter(|link| link.to_str().unwrap().contains("blocks/ring")).collect();
    rings.dedup();
    rings
}

fn ring_len(cache: &Path) -> u64 {
    fs::metadata(cache.join("blocks/ring")).unwrap().len()
}

/// Data objects become unreadable, so that what is read came from a cache.
fn without_objects(store: &Path, id: &str) {
    for name in names(&store.join(id)).iter().filter(|name| name.contains("-0000")) {
        fs::remove_file(store.join(id).join(name)).unwrap();
    }
}

// > The size of a disk cache in use stays: a later mount that asks for another one shares it, and says both.
#[test]
fn the_size_in_use_wins_and_the_later_mount_says_both() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let images = [("a", noise(1, 16 << 20)), ("b", noise(2, 16 << 20))];
    for (id, bytes) in &images {
        Backup::new(id, id, bytes.clone()).put(&store);
    }
    let mut first = mount(&store, &cache, 64);
    let later = mount(&store, &cache, 96);
    assert!(read_through(&first.image("a")) == images[0].1 && read_through(&later.image("b")) == images[1].1);
    assert!(
        later.log().contains("size of 64 MiB") && later.log().contains("the 96 MiB asked for"),
        "{}",
        later.log()
    );
    assert!(!first.log().contains("WARN"), "{}", first.log());
    let ring = cache.join("blocks/ring");
    for mount in [&first, &later] {
        assert_eq!(rings_of(mount), [ring.as_path()]);
    }
    assert_eq!((names(&cache.join("blocks")), ring_len(&cache)), (vec!["ring".to_owned()], 64 * MIB));
    // Each has what the other read.
    images.iter().for_each(|(id, _)| without_objects(&store, id));
    assert!(read_through(&first.image("b")) == images[1].1 && read_through(&later.image("a")) == images[0].1);

    // One is killed: the other still holds the size. Then nobody does.
    first.kill();
    let third = mount(&store, &cache, 80);
    assert!(third.log().contains("size of 64 MiB"), "{}", third.log());
    assert!(read_through(&third.image("b")) == images[1].1);
    drop((third, later));
    let same = mount(&store, &cache, 64);
    assert!(!same.log().contains("WARN") && read_through(&same.image("a")) == images[0].1);
    drop(same);
    let alone = mount(&store, &cache, 80);
    assert!(alone.log().contains("had a size of 64 MiB, gets the 80 MiB"), "{}", alone.log());
    assert_eq!(ring_len(&cache), 80 * MIB);
    drop(alone);
    // The other way round: the process that had it has not quite ended when its mount is gone.
    let left = mount(&store, &cache, 80);
    let ending = left.root().to_owned();
    assert!(run(Command::new("umount").arg(&ending)).status.success());
    let next = mount(&store, &cache, 72);
    assert_eq!(ring_len(&cache), 72 * MIB, "{}", next.log());
}

#[test]
fn a_background_mount_says_it_on_its_terminal() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    Backup::new("a", "v", noise(1, 1 << 20)).put(&store);
    let _first = mount(&store, &cache, 64);
    let mountpoint = folder.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let _cleared = Cleared(mountpoint.clone());
    let mut command = cinderfs();
    command
        .env("CINDERFS_CACHE_DIR", &cache)
        .args(["mount", "-o", "disk_cache=96M"])
        .args([&store, &mountpoint]);
    let output = run(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("64 MiB") && said.contains("96 MiB"), "{said}");
}

#[test]
fn a_mount_gives_up_a_cache_that_was_removed() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let bytes = noise(1, 16 << 20);
    Backup::new("a", "v", bytes.clone()).put(&store);
    let free = || mount_with(&store, &cache, "no_sandbox,disk_cache=64M");
    let mounts = [free(), free()];
    assert!(read_through(&mounts[0].image("a")) == bytes);
    fs::remove_dir_all(&cache).unwrap();
    for mount in &mounts {
        assert!(read_through(&mount.image("a")) == bytes);
        assert_eq!(rings_of(mount), [cache.join("blocks/ring")], "nothing deleted is held");
        assert!(mount.log().contains("was removed"), "{}", mount.log());
    }
    without_objects(&store, "a");
    for mount in &mounts {
        assert!(read_through(&mount.image("a")) == bytes, "they share the new one");
    }
}

/// With its rights given up it cannot make the directory again. It goes on without, and the space is free; a file alone it
/// makes again.
#[test]
fn a_restricted_mount_goes_on_without_a_cache_that_was_removed() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let bytes = noise(1, 16 << 20);
    Backup::new("a", "v", bytes.clone()).put(&store);
    let mounted = mount(&store, &cache, 64);
    assert!(read_through(&mounted.image("a")) == bytes);
    fs::remove_file(cache.join("blocks/ring")).unwrap();
    assert!(read_through(&mounted.image("a")) == bytes);
    assert_eq!(rings_of(&mounted), [cache.join("blocks/ring")], "{}", mounted.log());
    fs::remove_dir_all(&cache).unwrap();
    for _ in 0..2 {
        assert!(read_through(&mounted.image("a")) == bytes);
    }
    let log = mounted.log();
    assert_eq!(log.matches("cannot write, reading goes on without it").count(), 1, "{log}");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", mounted.pid().as_raw_nonzero())).unwrap();
    let descriptors = descriptors.map(|entry| entry.unwrap().path());
    let rings =
        descriptors.filter(|path| fs::read_link(path).unwrap().to_str().unwrap().contains("blocks/ring"));
    let taken: u64 = rings.map(|ring| fs::metadata(ring).unwrap().blocks()).sum();
    assert_eq!(taken, 0, "{log}");
    assert!(!cache.exists());
    drop(mounted);
    let again = mount(&store, &cache, 64);
    assert!(read_through(&again.image("a")) == bytes && cache.join("blocks/ring").exists());
}

/// Opens the cache with a size of its own again and again and reads through it, until it is killed or a byte is wrong.
#[test]
#[ignore = "the second process of another test"]
fn second_process() {
    let path = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let size: u64 = std::env::var("TEST_SIZE").unwrap().parse().unwrap();
    let bytes = noise(1, 8 << 20);
    loop {
        assert!(read_cached(&path("TEST_STORE"), &path("TEST_CACHE"), size) == bytes, "wrong bytes");
    }
}

fn read_cached(store: &Path, cache: &Path, size: u64) -> Vec<u8> {
    let options = CatalogOptions {
        cache_bytes_max: 0,
        disk_cache: Some(Arc::new(BlockRing::open(&CacheDir::open(cache).unwrap(), size).unwrap())),
        ..CatalogOptions::default()
    };
    let catalog = Catalog::open(Arc::new(PosixStore::open(store).unwrap()), options).unwrap();
    let image = catalog.image(catalog.snapshot().get("a").unwrap()).unwrap();
    let mut bytes = vec![0; image.len_bytes() as usize];
    assert_eq!(image.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

struct Second(Child);

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_of_different_sizes_may_be_killed_at_any_moment() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let bytes = noise(1, 8 << 20);
    Backup::new("a", "v", bytes.clone()).put(&store);
    for round in 0..30 {
        let mut seconds: Vec<_> = [64, 80, 96]
            .map(|mib| {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command
                    .args(["--exact", "second_process", "--ignored"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                command
                    .env("TEST_STORE", &store)
                    .env("TEST_CACHE", &cache)
                    .env("TEST_SIZE", (mib * MIB).to_string());
                Second(command.spawn().unwrap())
            })
            .into();
        std::thread::sleep(Duration::from_millis(20 + round * 37 % 300));
        for second in &mut seconds {
            assert!(
                second.0.try_wait().unwrap().is_none(),
                "it ended by itself: it failed, or read wrong bytes"
            );
        }
        seconds.clear();
        // All are dead, so this size is had, and one ring is left.
        let size = (64 + round % 7) * MIB;
        assert!(read_cached(&store, &cache, size) == bytes);
        assert_eq!((names(&cache.join("blocks")), ring_len(&cache)), (vec!["ring".to_owned()], size));
    }
    // What they left keeps what is read.
    without_objects(&store, "a");
    assert!(read_cached(&store, &cache, (64 + 29 % 7) * MIB) == bytes);
}

struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

// > A disk cache larger than its file system has room for is told of at the mount, and the mount works.
#[test]
fn a_cache_larger_than_its_disk_warns_at_mount_and_fails_no_read() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let bytes = noise(1, 40 << 20);
    Backup::new("a", "v", bytes.clone()).put(&store);
    fs::create_dir(&cache).unwrap();
    let _cleared = Unmounted(cache.clone());
    let tmpfs = ["-t", "tmpfs", "-o", "size=16M,mode=700", "none"];
    assert!(run(Command::new("mount").args(tmpfs).arg(&cache)).status.success());
    let small = mount(&store, &cache, 64);
    let warned = small.log();
    assert!(warned.contains("may grow to 64 MiB") && warned.contains("room for 1"), "{warned}");
    for _ in 0..3 {
        assert!(read_through(&small.image("a")) == bytes);
    }
    let full = small.log();
    assert_eq!(full.matches("cannot write, reading goes on without it").count(), 1, "{full}");
    let maps = fs::read_to_string(format!("/proc/{}/maps", small.pid().as_raw_nonzero())).unwrap();
    assert!(!maps.contains("blocks/ring"), "what is not mapped raises no SIGBUS");
    // Cut short and punched under its feet, on a full disk.
    let ring = File::options().write(true).open(cache.join("blocks/ring")).unwrap();
    for len in [10 * MIB, 100_000, 0] {
        ring.set_len(len).unwrap();
        assert!(read_through(&small.image("a")) == bytes, "{len}");
    }
    drop(small);
    assert!(cache.join("blocks/ring").metadata().unwrap().blocks() * 512 <= 16 * MIB);

    // A disk without room for a page: the mount goes on without the cache, says so, and leaves nothing half made.
    fs::remove_dir_all(cache.join("blocks")).unwrap();
    fs::create_dir(cache.join("images")).unwrap();
    let filler = File::create(cache.join("images/filler")).unwrap();
    let mut at = 0;
    while filler.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
    }
    let without = mount(&store, &cache, 64);
    assert!(without.log().contains("No space left"), "{}", without.log());
    assert!(read_through(&without.image("a")) == bytes);
    assert!(names(&cache).iter().all(|name| name != "blocks") || names(&cache.join("blocks")).is_empty());
}

#[test]
fn a_disk_without_room_in_mid_run_keeps_what_is_there() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let images = [("a", noise(1, 8 << 20)), ("b", noise(2, 32 << 20))];
    for (id, bytes) in &images {
        Backup::new(id, id, bytes.clone()).put(&store);
    }
    fs::create_dir(&cache).unwrap();
    let _cleared = Unmounted(cache.clone());
    let tmpfs = ["-t", "tmpfs", "-o", "size=96M,mode=700", "none"];
    assert!(run(Command::new("mount").args(tmpfs).arg(&cache)).status.success());
    let mount = mount(&store, &cache, 64);
    assert!(read_through(&mount.image("a")) == images[0].1);
    assert!(!mount.log().contains("WARN"), "{}", mount.log());
    // Somebody else takes all the rest.
    let filler = File::create(cache.join("filler")).unwrap();
    let mut at = 0;
    while filler.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
    }
    assert!(read_through(&mount.image("b")) == images[1].1);
    assert!(mount.log().contains("cannot write"), "{}", mount.log());
    without_objects(&store, "a");
    assert!(read_through(&mount.image("a")) == images[0].1, "what was there is there");
}

#[test]
fn a_large_ring_opens_at_once_with_little_memory() {
    let folder = open_folder();
    let store = folder.path().join("store");
    let bytes = noise(1, 16 << 20);
    Backup::new("a", "v", bytes.clone()).put(&store);
    let rss_kib = |mib: u64| {
        let cache = folder.path().join(format!("cache-{mib}"));
        let started = std::time::Instant::now();
        drop(BlockRing::open(&CacheDir::open(&cache).unwrap(), mib * MIB).unwrap());
        assert!(started.elapsed() < Duration::from_secs(1));
        let mount = mount(&store, &cache, mib);
        assert!(read_through(&mount.image("a")) == bytes);
        let status = fs::read_to_string(format!("/proc/{}/status", mount.pid().as_raw_nonzero())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let (small, large) = (rss_kib(64), rss_kib(100 << 10));
    // Runs differ by what threads happen to hold; a table in memory would take 100 MiB and more.
    assert!(large < small + (32 << 10), "KiB: {small} and {large}");
}
