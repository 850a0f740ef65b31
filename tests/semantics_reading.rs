//! What reads of a mount return: the right bytes, or an error; holes, page cache, request sizes.

#![expect(clippy::single_range_in_vec_init, reason = "a backup with one extent has a list of one range")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Advice, SeekFrom, Timestamps, XattrFlags, fadvise};
use rustix::io::Errno;

use mount::*;
use store::*;

const PAGE: usize = 4096;

/// The sizes of the reads that the daemon was asked for, in order.
fn requests(mount: &Mount) -> Vec<u64> {
    let log = mount.log();
    let sizes = log
        .lines()
        .filter(|line| line.contains(": read "))
        .map(|line| line.split_once(" size=").unwrap().1.split(' ').next().unwrap().parse().unwrap());
    sizes.collect()
}

/// Takes a file's pages out of the page cache.
fn forget_pages(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

// > A byte that a read returns has been compared with the sha256 of its block, or in a backup without a
// > usable `_sha256file` with the md5 of its object.
#[test]
fn no_flipped_bit_reaches_a_reader() {
    let folder = open_folder();
    let store = folder.path().join("store");
    let image = noise(3, 16 * BLOCK);
    let proven = Backup::new("proven", "v", image.clone());
    let plain = Backup::new("plain", "v", image.clone())
        .extents(&[0..8 * BLOCK, 8 * BLOCK..16 * BLOCK])
        .without_digests();
    for backup in [&proven, &plain] {
        backup.put(&store);
        flip(&backup.file(&store, "-00001"), 5 * BLOCK + 77);
    }
    let mount = Mount::new(&store);
    for (id, lost) in [("proven", 5 * BLOCK..6 * BLOCK), ("plain", 0..8 * BLOCK)] {
        let file = File::open(mount.image(id)).unwrap();
        fadvise(&file, 0, None, Advice::Random).unwrap();
        let mut page = vec![0; PAGE];
        for offset in (0..image.len()).step_by(PAGE) {
            match file.read_exact_at(&mut page, offset as u64) {
                Ok(()) => assert!(
                    page == image[offset..offset + PAGE] && !lost.contains(&offset),
                    "{id} at {offset}"
                ),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO));
                    assert!(lost.contains(&offset), "{id} at {offset}: nothing is wrong there");
                }
            }
        }
        let blocks = lost.len() / BLOCK;
        let ranges = serde_json::json!([{ "length": lost.len(), "offset": lost.start }]);
        assert_eq!(mount.document(id)["damage"]["ranges"], ranges);
        assert!(mount.document(id)["damage"]["blocks"].as_u64().unwrap() <= blocks as u64);
        let log = mount.log();
        let told =
            log.lines().filter(|line| line.contains("lost: ") && line.contains(&format!("backup={id} ")));
        assert!(told.count() <= blocks, "{log}");
    }
}

// > Reading a damaged block that cannot be healed fails with EIO, in whole pages of 4 KiB where blocks are
// > smaller, and what lies beside it stays readable.
//
// > A read with `O_DIRECT` that touches a damaged block fails as a whole.
//
// > A block that is lost is logged once, with backup, offset, object, expected and actual digest, and is
// > counted in `damage` of `metadata.json`; where only an md5 proves an object, each 32 KiB of it are a
// > block.
#[test]
fn a_damaged_block_is_eio_and_its_neighbours_are_not() {
    let folder = open_folder();
    let store = folder.path().join("store");
    let image = noise(4, 64 * BLOCK);
    let backup = Backup::new("b", "v", image.clone());
    backup.put(&store);
    flip(&backup.file(&store, "-00001"), 9 * BLOCK + 1);
    let small = Backup::new("small", "v", image[..64 * PAGE].to_vec()).block(512);
    small.put(&store);
    flip(&small.file(&store, "-00001"), 10 * PAGE + 512 * 3);
    let mount = Mount::new(&store);

    // A page in the middle of the block first: it is the block that is lost and counted, not the page.
    let file = File::open(mount.image("b")).unwrap();
    fadvise(&file, 0, None, Advice::Random).unwrap();
    assert_eq!(errno(file.read_exact_at(&mut [0; 10], (9 * BLOCK + 3 * PAGE) as u64)), libc::EIO);
    let lost = serde_json::json!({ "blocks": 1, "healed_blocks": 0, "on_damage": "eio",
        "ranges": [{ "length": BLOCK, "offset": 9 * BLOCK }] });
    assert_eq!(mount.document("b")["damage"], lost);

    let target = folder.path().join("copy");
    let dd = run(Command::new("dd")
        .arg(format!("if={}", mount.image("b").display()))
        .arg(format!("of={}", target.display()))
        .args(["bs=4k", "conv=noerror,sync"]));
    assert!(stderr(&dd).contains("Input/output error"), "{}", stderr(&dd));
    let copy = fs::read(target).unwrap();
    let mut expected = image.clone();
    expected[9 * BLOCK..10 * BLOCK].fill(0);
    assert!(copy == expected, "dd lost more than the block, or less");
    for _ in 0..2 {
        forget_pages(&file);
        assert!(fs::read(mount.image("b")).is_err());
    }
    assert_eq!(mount.document("b")["damage"], lost);
    let log = mount.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("lost: ")).collect();
    assert_eq!(told.len(), 1, "{log}");
    let (expected, actual) = (sha256(&image[9 * BLOCK..10 * BLOCK]), {
        let mut block = image[9 * BLOCK..10 * BLOCK].to_vec();
        block[1] ^= 0x10;
        sha256(&block)
    });
    let object = backup.file(Path::new(""), "-00001");
    for word in ["backup=b", &format!("offset={}", 9 * BLOCK), object.to_str().unwrap(), &expected, &actual] {
        assert!(told[0].contains(word), "{word} is not in {}", told[0]);
    }

    // Where blocks are smaller than pages, a page of them is lost.
    let file = File::open(mount.image("small")).unwrap();
    for page in 0..64 {
        let mut bytes = vec![0; PAGE];
        match file.read_exact_at(&mut bytes, (page * PAGE) as u64) {
            Ok(()) => assert!(page != 10 && bytes == image[page * PAGE..][..PAGE]),
            Err(error) => assert_eq!((page, error.raw_os_error()), (10, Some(libc::EIO))),
        }
    }
    assert_eq!(mount.document("small")["damage"]["blocks"], 1);

    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(mount.image("b")).unwrap();
    let mut bytes = vec![0; 4 * BLOCK];
    direct.read_exact_at(&mut bytes, (4 * BLOCK) as u64).unwrap();
    assert!(bytes == image[4 * BLOCK..8 * BLOCK]);
    assert_eq!(errno(direct.read_at(&mut bytes, (8 * BLOCK) as u64)), libc::EIO);
}

// > A damaged block is healed where another backup of the store has the same bytes at the same place, and is
// > counted as `healed_blocks` in `metadata.json`.
#[test]
fn a_damaged_block_is_taken_from_another_backup() {
    let folder = open_folder();
    let image = noise(13, 8 * BLOCK);
    let [damaged, whole] = ["damaged", "whole"].map(|id| Backup::new(id, "v", image.clone()));
    damaged.put(folder.path());
    whole.put(folder.path());
    flip(&damaged.file(folder.path(), "-00001"), 3 * BLOCK);
    let mount = Mount::new(folder.path());
    assert!(fs::read(mount.image("damaged")).unwrap() == image);
    let damage = &mount.document("damaged")["damage"];
    assert_eq!((&damage["blocks"], &damage["healed_blocks"]), (&0.into(), &1.into()));
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

// > A block that is repaired in the store is readable within 5 seconds, without a remount.
#[test]
fn a_repaired_block_is_readable_again() {
    let folder = open_folder();
    let image = noise(12, 8 * BLOCK);
    let proven = Backup::new("proven", "v", image.clone());
    let plain = Backup::new("plain", "v", image.clone()).without_digests();
    let mount = Mount::new(folder.path());
    for backup in [&proven, &plain] {
        backup.put(folder.path());
        let object = backup.file(folder.path(), "-00001");
        flip(&object, 3 * BLOCK);
        let path = mount.image(&backup.id);
        within(PATIENCE, "the backup", || path.exists());
        let file = File::open(&path).unwrap();
        assert_eq!(errno(file.read_exact_at(&mut [0; 10], 3 * BLOCK as u64)), libc::EIO);
        assert_ne!(mount.document(&backup.id)["damage"]["blocks"], 0);
        flip(&object, 3 * BLOCK);
        let mut bytes = vec![0; image.len()];
        within(Duration::from_secs(5), "the repaired block", || file.read_exact_at(&mut bytes, 0).is_ok());
        assert!(bytes == image);
        assert_eq!(mount.document(&backup.id)["damage"]["blocks"], 0, "{}", backup.id);
    }
}

// > What was read stays in the page cache over closing and opening again; an image is never opened for direct
// > I/O.
//
// > Sequential reads ask for up to 1 MiB at a time where root mounted, and for up to 128 KiB else.
#[test]
fn pages_are_kept_and_asked_for_in_large_requests() {
    let folder = open_folder();
    let store = folder.path().join("store");
    // Larger than the block cache, so that only the page cache can hold all of it.
    let image = noise(5, 12 << 20);
    let backup = Backup::new("b", "v", image.clone());
    backup.put(&store);
    let mount = Setup::default()
        .options("cache_size=4M")
        .log("info,cinderfs::frontend::fuse::fs=trace")
        .mount(&store);
    // Three tries, because anybody on this machine may drop its caches at this moment.
    let object = backup.file(&store, "-00001");
    let is_kept = (0..3).any(|_| {
        fs::write(&object, &image).unwrap();
        forget_pages(&File::open(mount.image("b")).unwrap());
        let before = requests(&mount).len();
        within(PATIENCE, "the image", || fs::read(mount.image("b")).is_ok_and(|bytes| bytes == image));
        let asked = requests(&mount).split_off(before);
        assert_eq!(asked.iter().max(), Some(&(1 << 20)), "{asked:?}");
        // The object is emptied where it is, so that a descriptor that is still open has lost it too.
        File::options().write(true).truncate(true).open(&object).unwrap();
        let again = fs::read(mount.image("b"));
        asked.len() < 40
            && requests(&mount).len() == before + asked.len()
            && again.is_ok_and(|bytes| bytes == image)
    });
    assert!(is_kept, "the daemon was asked again: {:?}", requests(&mount));
    forget_pages(&File::open(mount.image("b")).unwrap());
    assert!(fs::read(mount.image("b")).is_err(), "the store has it no more");
    drop(mount);

    backup.put(&store);
    open_to_nobody(&store);
    let mount = Setup::default()
        .by_nobody()
        .options("allow_other")
        .log("info,cinderfs::frontend::fuse::fs=trace")
        .mount(&store);
    assert!(fs::read(mount.image("b")).unwrap() == image);
    assert_eq!(requests(&mount).iter().max(), Some(&(128 << 10)));
}

fn open_to_nobody(store: &Path) {
    let chmod = run(Command::new("chmod").args(["-R", "a+rX"]).arg(store));
    assert!(chmod.status.success(), "{}", stderr(&chmod));
}

// > Verified blocks are kept in one cache that all images share and `cache_size=` bounds.
#[test]
fn the_block_cache_is_shared_and_bounded() {
    let folder = open_folder();
    let image = noise(11, 12 << 20);
    let backups = ["a", "b"].map(|id| Backup::new(id, "v", image.clone()));
    for (cache_size, holds) in [("64M", true), ("4M", false)] {
        for backup in &backups {
            backup.put(folder.path());
        }
        let mount = Setup::default().options(&format!("cache_size={cache_size}")).mount(folder.path());
        // Past the page cache.
        let read = |id: &str| {
            let mut bytes = vec![0; image.len()];
            let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(mount.image(id))?;
            file.read_exact_at(&mut bytes, 0).map(|()| bytes)
        };
        assert!(read("a").unwrap() == image);
        for backup in &backups {
            File::options().write(true).truncate(true).open(backup.file(folder.path(), "-00001")).unwrap();
        }
        for id in ["a", "b"] {
            assert_eq!(read(id).is_ok_and(|bytes| bytes == image), holds, "{id} with {cache_size}");
        }
    }
}

/// A loop mount that is taken away on drop.
struct Loop(std::path::PathBuf);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

// > An image can be loop-mounted.
#[test]
fn a_file_system_in_an_image_is_mounted_and_read() {
    let mount = Mount::new(&fixture("ext4"));
    let folder = open_folder();
    let backup = names(&mount.path("backups")).remove(0);
    let output = run(Command::new("mount")
        .args(["-t", "ext4", "-o", "loop,ro,noload"])
        .arg(mount.image(&backup))
        .arg(folder.path()));
    assert!(output.status.success(), "{}", stderr(&output));
    let inner = Loop(folder.path().to_owned());
    assert_eq!(fs::read_to_string(folder.path().join("etc/hostname")).unwrap().trim(), "fixture");
    drop(inner);
}

// > An open `volume.img` goes on serving the backup it was opened from, also after that backup is replaced or
// > deleted, as far as the store still has its objects.
#[test]
fn an_open_image_stays_what_it_was() {
    let folder = open_folder();
    let (old, new) = (noise(6, 8 * BLOCK), noise(7, 6 * BLOCK));
    let (backup, other) = (Backup::new("b", "v", old.clone()), Backup::new("other", "v", new.clone()));
    backup.put(folder.path());
    other.put(folder.path());
    let mount = Mount::new(folder.path());
    let read = |file: &File| {
        let mut bytes = Vec::new();
        forget_pages(file);
        (&*file).read_to_end(&mut bytes).map(|_| bytes)
    };
    // Once read, its data objects are open; the folder is moved so that they keep their bytes.
    let open = File::open(mount.image("b")).unwrap();
    assert!(read(&open).unwrap() == old);
    let gone = File::open(mount.image("other")).unwrap();
    assert!(read(&gone).unwrap() == new);
    Backup::new("b", "v", new.clone()).put(folder.path());
    other.remove(folder.path());
    within(PATIENCE, "the new image", || fs::read(mount.image("b")).is_ok_and(|bytes| bytes == new));
    within(PATIENCE, "the deletion", || fs::metadata(mount.image("other")).is_err());
    for (file, expected) in [(&open, &old), (&gone, &new)] {
        assert_eq!(file.metadata().unwrap().len(), expected.len() as u64);
        for offset in (0..expected.len()).step_by(PAGE) {
            let mut bytes = vec![0; PAGE];
            match file.read_exact_at(&mut bytes, offset as u64) {
                Ok(()) => {
                    assert!(bytes == expected[offset..offset + PAGE], "bytes of another backup at {offset}");
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
            }
        }
    }
}

/// The borders of data and holes, as a program that copies sparsely finds them.
fn map(file: &File, len: u64) -> Vec<(u64, u64)> {
    let mut data = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(error) => {
                assert_eq!(error, Errno::NXIO);
                break;
            }
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        data.push((start, at));
    }
    data
}

// > `SEEK_DATA` and `SEEK_HOLE` on `volume.img` tell holes and data apart, and fail with ENXIO at or past its
// > end; `SEEK_DATA` also where only a hole follows.
//
// > A hole is a whole block of zeros, and reads as zeros.
#[test]
fn holes_are_told_from_data() {
    let folder = open_folder();
    let block = BLOCK as u64;
    let image = |zeros: &[usize], len: usize| {
        let mut image = noise(8, len);
        zeros.iter().for_each(|zero| image[zero * BLOCK..len.min((zero + 1) * BLOCK)].fill(0));
        image
    };
    let len = 6 * BLOCK + 1000;
    for (id, zeros) in
        [("none", &[][..]), ("middle", &[1, 2, 4]), ("ends", &[0, 5, 6]), ("all", &[0, 1, 2, 3, 4, 5, 6])]
    {
        Backup::new(id, id, image(zeros, len)).put(folder.path());
    }
    // Half a block of zeros is no hole.
    let mut half = image(&[], 2 * BLOCK);
    half[BLOCK..2 * BLOCK - 1].fill(0);
    Backup::new("half", "half", half).put(folder.path());
    // Data that became zero in an incremental is a hole, although the full backup has data there.
    let changed = Backup { volume: "none".into(), ..Backup::new("child", "v", image(&[2], len)) };
    changed.on("none", &[2 * BLOCK..3 * BLOCK]).put(folder.path());
    let mount = Mount::new(folder.path());
    let end = len as u64;
    for (id, expected) in [
        ("none", vec![(0, end)]),
        ("middle", vec![(0, block), (3 * block, 4 * block), (5 * block, end)]),
        ("ends", vec![(block, 5 * block)]),
        ("all", vec![]),
        ("half", vec![(0, 2 * block)]),
        ("child", vec![(0, 2 * block), (3 * block, end)]),
    ] {
        let file = File::open(mount.image(id)).unwrap();
        let len = file.metadata().unwrap().len();
        assert_eq!(map(&file, len), expected, "{id}");
        for beyond in [len, len + 1, 1 << 50] {
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(beyond)), Err(Errno::NXIO), "{id}");
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(beyond)), Err(Errno::NXIO), "{id}");
        }
    }
    let middle = File::open(mount.image("middle")).unwrap();
    let seek = |whence| rustix::fs::seek(&middle, whence);
    assert_eq!(seek(SeekFrom::Data(block + 5)), Ok(3 * block), "from inside a hole");
    assert_eq!(seek(SeekFrom::Hole(block + 5)), Ok(block + 5));
    assert_eq!(seek(SeekFrom::Data(5)), Ok(5), "from inside data");
    assert_eq!(seek(SeekFrom::Hole(len as u64 - 1)), Ok(end), "the end is a hole");
    let ends = File::open(mount.image("ends")).unwrap();
    assert_eq!(rustix::fs::seek(&ends, SeekFrom::Data(5 * block)), Err(Errno::NXIO), "only a hole follows");
    assert!(fs::read(mount.image("ends")).unwrap() == image(&[0, 5, 6], len));
    assert!(fs::read(mount.image("child")).unwrap() == image(&[2], len));
    // What cp makes of it.
    let copy = folder.path().join("copy");
    let cp = run(Command::new("cp").args(["--sparse=auto"]).arg(mount.image("middle")).arg(&copy));
    assert!(cp.status.success(), "{}", stderr(&cp));
    assert!(fs::read(&copy).unwrap() == image(&[1, 2, 4], len));
}

// > Every call that would change something fails with EROFS.
#[test]
fn every_change_is_erofs() {
    let folder = open_folder();
    let image = noise(9, BLOCK);
    Backup::new("b", "v", image.clone()).named("db").put(folder.path());
    let mount = Setup::default().options("allow_other,uid=65534,gid=65534").mount(folder.path());
    let rofs = |what: &str, answer: std::io::Result<()>| {
        assert_eq!(answer.map_err(|error| error.raw_os_error()), Err(Some(libc::EROFS)), "{what}");
    };
    let os = |answer: rustix::io::Result<()>| answer.map_err(std::io::Error::from);
    for parent in ["", "backups", "backups/b", "volumes", "volumes/v", "names"] {
        let new = mount.path(parent).join("new");
        rofs("create", File::create(&new).map(drop));
        rofs("mkdir", fs::create_dir(&new));
        rofs("symlink", std::os::unix::fs::symlink("x", &new));
        rofs("link", fs::hard_link(mount.image("b"), &new));
        rofs("rename into", fs::rename(mount.image("b"), &new));
        let mknod = rustix::fs::mknodat(rustix::fs::CWD, &new, rustix::fs::FileType::Fifo, 0o600.into(), 0);
        rofs("mknod", os(mknod));
    }
    for existing in ["backups", "backups/b", "volumes/v", "names"] {
        rofs("rmdir", fs::remove_dir(mount.path(existing)));
        rofs("rename", fs::rename(mount.path(existing), mount.path("backups/new")));
    }
    for existing in ["volumes/v/latest", "names/db", "backups/b/volume.img", "backups/b/metadata.json"] {
        rofs("unlink", fs::remove_file(mount.path(existing)));
    }
    for file in ["backups/b/volume.img", "backups/b/metadata.json"] {
        let path = mount.path(file);
        rofs("write", File::options().write(true).open(&path).map(drop));
        rofs("append", File::options().append(true).open(&path).map(drop));
        rofs("read and write", File::options().read(true).write(true).open(&path).map(drop));
        rofs("truncate on opening", File::options().write(true).truncate(true).open(&path).map(drop));
        rofs("truncate", run_truncate(&path));
        rofs("chmod", fs::set_permissions(&path, fs::Permissions::from_mode(0o777)));
        rofs("chown", chown(&path, Some(1), Some(1)));
        let now = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = Timestamps { last_access: now, last_modification: now };
        let set = rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty());
        rofs("utimens", os(set));
        rofs("setxattr", os(rustix::fs::setxattr(&path, "user.x", b"1", XattrFlags::empty())));
        rofs("removexattr", os(rustix::fs::removexattr(&path, "user.cinder.backup_id")));
        // An open file cannot be written to either.
        let mut open = File::open(&path).unwrap();
        assert_eq!(errno(open.write(b"x")), libc::EBADF);
    }
    // The same for the owner without root's power.
    let touch = run(as_nobody(Path::new("touch")).arg(mount.image("b")));
    assert!(stderr(&touch).contains("Read-only file system"), "{}", stderr(&touch));
    // Nothing changed, and reading leaves no trace.
    assert!(fs::read(mount.image("b")).unwrap() == image);
    let stat = fs::metadata(mount.image("b")).unwrap();
    assert_eq!(stat.accessed().unwrap(), stat.modified().unwrap());
}

/// truncate(2) of a path, without opening it for writing first.
fn run_truncate(path: &Path) -> std::io::Result<()> {
    let output = run(Command::new("python3")
        .args([
            "-c",
            "import os, sys\ntry: os.truncate(sys.argv[1], 1)\nexcept OSError as e: sys.exit(e.errno)",
        ])
        .arg(path));
    match output.status.code() {
        Some(0) => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code.unwrap())),
    }
}

/// A file whose every use fails: one of a mount whose daemon was killed, bound over another.
struct Broken(std::path::PathBuf);

impl Broken {
    fn over(path: &Path) -> Self {
        let folder = open_folder();
        Backup::new("dead", "v", noise(1, PAGE)).put(folder.path());
        let mut mount = Mount::new(folder.path());
        rustix::mount::mount_bind(mount.image("dead"), path).unwrap();
        let broken = Self(path.to_owned());
        mount.kill();
        broken
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

// > A missing, truncated or damaged object, a store that fails, and a digest that does not match are EIO.
//
// > What the store does not let the daemon read is EACCES.
//
// > When the store fails while an image is opened, or while its metadata or that of a backup beneath it is read,
// > `volume.img` is listed and using it says EIO (EACCES where it may not be read), because the backup may be whole.
#[test]
fn a_store_that_fails_is_an_error_and_never_data() {
    let folder = open_folder();
    let store = folder.path().join("store");
    let image = noise(10, 4 * BLOCK);
    let halves = [0..2 * BLOCK, 2 * BLOCK..4 * BLOCK];
    let backup = |id: &str| {
        let backup = Backup::new(id, "v", image.clone()).extents(&halves);
        backup.put(&store);
        backup.file(&store, "-00001")
    };
    fs::create_dir(&store).unwrap();
    fs::remove_file(backup("missing")).unwrap();
    File::options().write(true).open(backup("truncated")).unwrap().set_len(100).unwrap();
    flip(&backup("damaged"), 3);
    let broken_object = Broken::over(&backup("broken"));
    backup("silent");
    let digests = Backup::new("silent", "v", vec![]).file(&store, "_sha256file");
    let silent = Broken::over(&digests);
    let mount = Mount::new(&store);
    let read = |id: &str, offset: usize| -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE];
        File::open(mount.image(id))?.read_exact_at(&mut bytes, offset as u64)?;
        Ok(bytes)
    };
    for id in ["missing", "truncated", "damaged", "broken"] {
        assert_eq!(errno(read(id, PAGE)), libc::EIO, "{id}");
        assert!(
            read(id, 3 * BLOCK).unwrap() == image[3 * BLOCK..][..PAGE],
            "{id}: the other object is whole"
        );
    }
    assert_eq!(names(&mount.path("backups/silent")), ["metadata.json", "volume.img"]);
    assert_eq!(errno(read("silent", 0)), libc::EIO);
    assert_eq!(mount.document("silent")["status"], "error");
    // And when it answers again, all is well.
    drop((silent, broken_object));
    within(PATIENCE, "the image after the failure", || read("silent", 0).is_ok());
    within(PATIENCE, "the object after the failure", || read("broken", PAGE).is_ok());
    assert!(read("broken", PAGE).unwrap() == image[PAGE..2 * PAGE]);
    drop(mount);

    // Root may read everything, so the daemon is nobody here.
    let secret = backup("secret");
    open_to_nobody(&store);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let mount = Setup::default().by_nobody().options("allow_other").mount(&store);
    let file = File::open(mount.image("secret")).unwrap();
    assert_eq!(errno(file.read_exact_at(&mut [0; 10], 0)), libc::EACCES);
    let mut bytes = vec![0; PAGE];
    file.read_exact_at(&mut bytes, 2 * BLOCK as u64).unwrap();
    assert!(bytes == image[2 * BLOCK..][..PAGE]);
    assert_eq!(mount.document("secret")["damage"]["blocks"], 0, "it is not damaged");
}
