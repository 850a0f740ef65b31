//! Does the disk cache keep what it should, within its bound, and never change a byte?
//!
//! That a block came from the disk cache is shown by data objects that cannot be read any more.

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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::blocks::{BlockRing, SIZE_BYTES_MIN};
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::Image;
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::posix::PosixStore;
use cinderfs::{ErrorKind, Result};

use mount::*;
use store::*;

type Faulty = Arc<FaultStore<PosixStore>>;

/// A catalog whose memory keeps no block.
fn open(store: &Path, cache: Option<&Path>, script: impl IntoIterator<Item = Rule>) -> (Catalog, Faulty) {
    let faulty = Arc::new(FaultStore::new(PosixStore::open(store).unwrap(), script));
    let options = CatalogOptions {
        cache_bytes_max: 0,
        disk_cache: cache
            .map(|path| Arc::new(BlockRing::open(&CacheDir::open(path).unwrap(), SIZE_BYTES_MIN).unwrap())),
        ..CatalogOptions::default()
    };
    (Catalog::open(faulty.clone(), options).unwrap(), faulty)
}

fn image(catalog: &Catalog, id: &str) -> Arc<Image> {
    catalog.image(catalog.snapshot().get(id).unwrap()).unwrap()
}

fn read(image: &Image, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let n = image.read_at(&mut bytes, offset)?;
    bytes.truncate(n);
    Ok(bytes)
}

fn read_all(image: &Image) -> Result<Vec<u8>> {
    read(image, 0, image.len_bytes() as usize)
}

/// No data object can be opened or read.
fn without_objects() -> [Rule; 2] {
    [Operation::Open, Operation::Read]
        .map(|operation| Rule::new(operation, Fault::Error(ErrorKind::StoreIo)).names("*-0000*"))
}

/// Nothing can be listed, opened or read.
fn unreachable() -> [Rule; 3] {
    [Operation::List, Operation::Open, Operation::Read]
        .map(|operation| Rule::new(operation, Fault::Error(ErrorKind::StoreIo)))
}

fn ring_file(cache: &Path) -> PathBuf {
    cache.join("blocks/ring")
}

#[test]
fn what_was_read_is_there_after_a_restart_for_all_images_that_share_it() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let bytes = noise(1, 5 << 20);
    Backup::new("a", "v", bytes.clone()).put(&store);
    Backup::new("clone", "w", bytes[1 << 20..].to_vec()).put(&store);
    let (catalog, _) = open(&store, None, without_objects());
    assert!(read_all(&image(&catalog, "a")).is_err(), "else this test shows nothing");
    let (catalog, _) = open(&store, Some(&cache), []);
    assert!(read_all(&image(&catalog, "a")).unwrap() == bytes);
    drop(catalog);
    let (catalog, _) = open(&store, Some(&cache), without_objects());
    for _ in 0..2 {
        assert!(read_all(&image(&catalog, "a")).unwrap() == bytes);
        assert!(read_all(&image(&catalog, "clone")).unwrap() == bytes[1 << 20..]);
    }
    assert_eq!(read(&image(&catalog, "a"), 12345, 678).unwrap(), bytes[12345..][..678]);
}

#[test]
fn blocks_of_all_sizes_live_in_one_cache() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let sizes = [(512, 100_000), (1000, 54_321), (4096, 1 << 20), (32768, 3_000_000), (1 << 20, 5_000_000)];
    let mut images: Vec<_> =
        sizes.into_iter().map(|(block, len)| (block, noise(block as u64, len))).collect();
    images.push((16 << 20, noise(7, 20 << 20)));
    for (block, bytes) in &images {
        let id = format!("of-{block}");
        Backup::new(&id, &id, bytes.clone()).block(*block).put(&store);
    }
    let (catalog, faulty) = open(&store, Some(&cache), []);
    for (block, bytes) in &images {
        assert!(read_all(&image(&catalog, &format!("of-{block}"))).unwrap() == *bytes, "{block}");
    }
    faulty.set_script(without_objects());
    let (again, _) = open(&store, Some(&cache), without_objects());
    for (block, bytes) in &images {
        for catalog in [&catalog, &again] {
            assert!(read_all(&image(catalog, &format!("of-{block}"))).unwrap() == *bytes, "{block}");
        }
    }
}

#[test]
fn an_image_of_which_all_is_cached_outlives_its_store() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let mut bytes = noise(1, 21 << 20);
    bytes[3 << 20..11 << 20].fill(0);
    Backup::new("b", "v", bytes.clone()).put(&store);
    let (catalog, faulty) = open(&store, None, []);
    assert!(read_all(&image(&catalog, "b")).unwrap() == bytes);
    faulty.set_script(unreachable());
    assert!(read_all(&image(&catalog, "b")).is_err(), "else this test shows nothing");

    let (catalog, faulty) = open(&store, Some(&cache), []);
    let opened = image(&catalog, "b");
    assert!(read_all(&opened).unwrap() == bytes);
    // One that was just started has read no digest itself.
    let (later, other) = open(&store, Some(&cache), []);
    let opened_later = image(&later, "b");
    faulty.set_script(unreachable());
    other.set_script(unreachable());
    for (catalog, opened) in [(&catalog, &opened), (&later, &opened_later)] {
        assert!(read_all(opened).unwrap() == bytes);
        assert!(Arc::ptr_eq(&image(catalog, "b"), opened), "what was known stays known");
        assert_eq!(opened.seek_data(4 << 20).unwrap(), Some(11 << 20));
        assert_eq!(opened.seek_hole(1 << 20).unwrap(), 3 << 20);
    }
    std::thread::sleep(Duration::from_millis(1100));
    assert!(catalog.refresh().is_err());
    assert!(read_all(&image(&catalog, "b")).unwrap() == bytes);
    faulty.set_script([]);
    std::thread::sleep(Duration::from_millis(1100));
    catalog.refresh().unwrap();
    assert!(read_all(&image(&catalog, "b")).unwrap() == bytes);
}

#[test]
fn digests_that_were_overwritten_are_not_served_from_disk() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let backup = Backup::new("b", "v", noise(1, 2 << 20));
    backup.put(&store);
    let (catalog, faulty) = open(&store, Some(&cache), []);
    let opened = image(&catalog, "b");
    // Only this half's digests come into memory, and all of them onto the disk.
    let mut half = vec![0; 1 << 20];
    assert_eq!(opened.read_at(&mut half, 0).unwrap(), half.len());
    let digests = backup.file(&store, "_sha256file");
    let text = fs::read(&digests).unwrap();
    for changed in [&text[..text.len() / 2], &text[..]] {
        let file = File::options().write(true).open(&digests).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(changed, 0).unwrap();
        for _ in 0..2 {
            assert!(read_all(&opened).is_err(), "the file was overwritten in place");
            opened.read_at(&mut half, 0).unwrap();
            assert!(
                half == backup.image[..half.len()],
                "what is in memory is of this image, as it was opened"
            );
        }
    }
    // Another backup takes its place, and then the store fails: nothing of the old one may answer for it.
    let other = Backup::new("b", "v", noise(2, 2 << 20));
    other.put(&store);
    std::thread::sleep(Duration::from_millis(1100));
    catalog.refresh().unwrap();
    let opened = image(&catalog, "b");
    faulty.set_script(unreachable());
    let failed = read_all(&opened);
    assert!(failed.is_err(), "its digests were never read");
}

// > With `disk_cache=SIZE` verified blocks are also kept in the cache directory, at most SIZE bytes in one sparse file that all mounts share; each is compared with its sha256 again when it is read back.
#[test]
fn damage_to_the_file_at_any_time_changes_no_byte() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let bytes = noise(1, 12 << 20);
    Backup::new("b", "v", bytes.clone()).put(&store);
    let (catalog, faulty) = open(&store, Some(&cache), []);
    let (opened, done, damaged) = (image(&catalog, "b"), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(5);
            let file = File::options().read(true).write(true).open(ring_file(&cache)).unwrap();
            let data_at = 4096 + (SIZE_BYTES_MIN / 4096 / 128) * 4096;
            while !done.load(Ordering::Relaxed) {
                // The header with the count, the table, and the data that this image takes.
                let at = match random.below(8) {
                    0 => random.below(4096),
                    1..4 => random.below(data_at),
                    _ => data_at + random.below(16 << 20),
                };
                let mut piece = vec![0; 1 + random.below(300) as usize];
                file.read_exact_at(&mut piece, at).unwrap();
                let nth = random.below(piece.len() as u64) as usize;
                match random.below(3) {
                    0 => piece.fill(random.below(256) as u8),
                    1 => piece[nth] ^= 1 << random.below(8),
                    _ => piece.rotate_left(nth),
                }
                file.write_all_at(&piece, at).unwrap();
                damaged.fetch_add(1, Ordering::Relaxed);
            }
        });
        for seed in 1..4 {
            let (opened, done, bytes) = (&opened, &done, &bytes);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !done.load(Ordering::Relaxed) {
                    let at = random.below(bytes.len() as u64) as usize;
                    let len = 1 + random.below(400_000) as usize;
                    let end = bytes.len().min(at + len);
                    assert!(read(opened, at as u64, len).unwrap() == bytes[at..end]);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        done.store(true, Ordering::Relaxed);
    });
    assert!(damaged.load(Ordering::Relaxed) > 1000);
    // One pass mends it: what failed its check is forgotten, the next put it back.
    for _ in 0..3 {
        assert!(read_all(&opened).unwrap() == bytes);
    }
    faulty.set_script(without_objects());
    let again = open(&store, Some(&cache), []).0;
    for _ in 0..2 {
        assert!(read_all(&image(&again, "b")).unwrap() == bytes);
    }
    let last = open(&store, Some(&cache), without_objects()).0;
    assert!(read_all(&image(&last, "b")).unwrap() == bytes);
}

// > With `disk_cache=SIZE` verified blocks are also kept in the cache directory, at most SIZE bytes in one sparse file that all mounts share; each is compared with its sha256 again when it is read back.
#[test]
fn the_bound_holds_when_far_more_is_read() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    let bytes = noise(1, 200 << 20);
    Backup::new("b", "v", bytes.clone()).put(&store);
    let (catalog, faulty) = open(&store, Some(&cache), []);
    let opened = image(&catalog, "b");
    for start in (0..bytes.len()).step_by(10 << 20) {
        let end = bytes.len().min(start + (10 << 20));
        assert!(read(&opened, start as u64, end - start).unwrap() == bytes[start..end]);
        // Used again and again, so it stays.
        assert!(read(&opened, 1 << 20, 1 << 20).unwrap() == bytes[1 << 20..2 << 20]);
        let stat = fs::metadata(ring_file(&cache)).unwrap();
        assert!(stat.len() <= SIZE_BYTES_MIN && stat.blocks() * 512 <= SIZE_BYTES_MIN + (1 << 20));
    }
    assert_eq!(names(&cache.join("blocks")), ["ring"]);
    faulty.set_script(without_objects());
    let newest = bytes.len() - (30 << 20);
    assert!(read(&opened, newest as u64, 30 << 20).unwrap() == bytes[newest..]);
    assert!(read(&opened, 1 << 20, 1 << 20).unwrap() == bytes[1 << 20..2 << 20]);
    assert!(read(&opened, 50 << 20, 1 << 20).is_err(), "the oldest gave way");
}

/// Reads the image of the store that the environment names, again and again, until it is killed or an image is wrong.
#[test]
#[ignore = "the second process of other tests"]
fn second_process() {
    let path = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let (catalog, _) = open(&path("TEST_STORE"), Some(&path("TEST_CACHE")), []);
    let mut random = Random(u64::from(std::process::id()));
    loop {
        for id in ["a", "b"] {
            let (seed, len) = if id == "a" { (1, IMAGE_BYTES) } else { (2, IMAGE_BYTES) };
            let bytes = noise(seed, len);
            let opened = image(&catalog, id);
            for _ in 0..200 {
                let (at, len) = (random.below(len as u64) as usize, 1 + random.below(600_000) as usize);
                let end = bytes.len().min(at + len);
                assert!(read(&opened, at as u64, len).unwrap() == bytes[at..end], "wrong bytes");
            }
        }
    }
}

const IMAGE_BYTES: usize = 40 << 20;

struct Second(Child);

impl Second {
    fn start(store: &Path, cache: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "second_process", "--ignored"]).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.env("TEST_STORE", store).env("TEST_CACHE", cache).spawn().unwrap())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_share_a_cache_under_load_and_may_be_killed_at_any_moment() {
    let folder = open_folder();
    let (store, cache) = (folder.path().join("store"), folder.path().join("cache"));
    // Together more than the cache holds, so the ring goes round and round.
    let images = [("a", noise(1, IMAGE_BYTES)), ("b", noise(2, IMAGE_BYTES))];
    for (id, bytes) in &images {
        Backup::new(id, id, bytes.clone()).put(&store);
    }
    let (catalog, faulty) = open(&store, Some(&cache), []);
    let mut random = Random(3);
    let check = |random: &mut Random, until: Instant| {
        while Instant::now() < until {
            let (id, bytes) = &images[random.below(2) as usize];
            let at = random.below(bytes.len() as u64) as usize;
            let end = bytes.len().min(at + 300_000);
            assert!(read(&image(&catalog, id), at as u64, end - at).unwrap() == bytes[at..end], "{id}");
        }
    };
    let mut lasting = Second::start(&store, &cache);
    for _ in 0..8 {
        let mut killed = Second::start(&store, &cache);
        let lives = Duration::from_millis(300 + random.below(500));
        check(&mut random, Instant::now() + lives);
        assert!(killed.0.try_wait().unwrap().is_none(), "it ended by itself: it read wrong bytes");
        killed.0.kill().unwrap();
        killed.0.wait().unwrap();
        check(&mut random, Instant::now() + Duration::from_millis(50));
    }
    assert!(lasting.0.try_wait().unwrap().is_none(), "it ended by itself: it read wrong bytes");
    drop(lasting);
    // What they left is a cache that works. What lay in the ring when the first pass found it may be overwritten by what the
    // pass adds; the second puts it back.
    let (id, bytes) = &images[0];
    for _ in 0..3 {
        assert!(read_all(&image(&catalog, id)).unwrap() == *bytes);
    }
    faulty.set_script(without_objects());
    assert!(read_all(&image(&catalog, id)).unwrap() == *bytes);
    let (again, _) = open(&store, Some(&cache), without_objects());
    assert!(read_all(&image(&again, id)).unwrap() == *bytes);
}

// > A disk cache that cannot be opened stops the mount where `CINDERFS_CACHE_DIR` names its directory; elsewhere, and where the disk is read-only or full, the mount says so and works without it; one that fails later fails no read.
#[test]
fn a_disk_cache_that_fills_the_disk_fails_no_read() {
    let folder = open_folder();
    let store = folder.path().join("store");
    let bytes = noise(1, 12 << 20);
    Backup::new("b", "v", bytes.clone()).put(&store);
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let _cleared = Unmounted(small.clone());
    sh(&format!("mount -t tmpfs -o size=8M,mode=700 none {}", small.display()));
    let (catalog, _) = open(&store, Some(&small), []);
    let opened = image(&catalog, "b");
    for _ in 0..3 {
        assert!(read_all(&opened).unwrap() == bytes, "a full disk fails no read");
    }
    let (again, _) = open(&store, Some(&small), without_objects());
    assert!(read(&image(&again, "b"), 0, 1 << 20).unwrap() == bytes[..1 << 20], "what fitted is there");
}

struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[track_caller]
fn sh(script: &str) {
    let output = run(Command::new("sh").args(["-ec", script]));
    assert!(output.status.success(), "{script}: {}", stderr(&output));
}

/// Reads through the mount what the kernel does not have.
fn read_through(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

// > An image of which every block is in the disk cache stays readable while the store fails or is gone, as long as the mount stands.
#[test]
fn a_mount_goes_on_when_its_store_fails_or_goes_away() {
    let folder = open_folder();
    let (disk, root, cache) =
        (folder.path().join("disk"), folder.path().join("root"), folder.path().join("cache"));
    fs::create_dir(&root).unwrap();
    let _cleared = Unmounted(root.clone());
    sh(&format!(
        "truncate -s 128M {disk}; mkfs.ext4 -q -F {disk}; mount -o loop {disk} {root}",
        disk = disk.display(),
        root = root.display()
    ));
    let bytes = noise(1, 24 << 20);
    let store = root.join("store");
    Backup::new("b", "v", bytes.clone()).put(&store);
    let elsewhere = folder.path().join("store");
    Backup::new("b", "v", bytes.clone()).put(&elsewhere);
    // The block cache holds a sixth of the image.
    let cached = Setup::default().options("cache_size=4M,disk_cache=64M").cache_dir(&cache).mount(&store);
    let plain = Setup::default().options("cache_size=4M").mount(&store);
    let vanishing =
        Setup::default().options("cache_size=4M,disk_cache=64M").cache_dir(&cache).mount(&elsewhere);
    for mount in [&cached, &plain, &vanishing] {
        assert!(read_through(&mount.image("b")).unwrap() == bytes);
    }
    fs::rename(&store, root.join("moved")).unwrap();
    assert!(read_through(&cached.image("b")).unwrap() == bytes, "moved away");
    sh(&format!("xfs_io -x -c shutdown {}", root.display()));
    fs::remove_dir_all(&elsewhere).unwrap();
    assert!(read_through(&plain.image("b")).is_err(), "else this test shows nothing");
    for round in 0..3 {
        for mount in [&cached, &vanishing] {
            let read = read_through(&mount.image("b"));
            let read = read.unwrap_or_else(|error| panic!("{round}: {error}: {}", mount.log()));
            assert!(read == bytes);
            // The kernel asks for names again.
            std::thread::sleep(Duration::from_millis(600));
        }
    }
    assert_eq!(
        errno(fs::read_dir(vanishing.path("backups"))),
        libc::EIO,
        "a listing says that something is wrong"
    );
}

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % bound
    }
}
