//! Does a share whose server is away make backups look gone? Behind a client of a few lines that does what those of file servers may do then: it says
//! of everything that it is not there, and of each folder that it is at its end.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};
use mount::{Mount, PATIENCE, errno, names, open_folder, within};
use store::{BLOCK, Backup, noise};

const FULL: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const CHILD: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const OTHER: &str = "aaaaaaaa-0000-4000-8000-000000000003";

/// What a client shows, and whether it reaches its server.
struct Client {
    folder: PathBuf,
    is_away: Arc<AtomicBool>,
    /// How often the export was withdrawn: what was opened before is stale for good.
    withdrawn: Arc<AtomicU32>,
    /// By their number, less 1.
    paths: Mutex<Vec<PathBuf>>,
}

impl Client {
    fn reach(&self) -> Result<(), Errno> {
        if self.is_away.load(Ordering::SeqCst) { Err(Errno::from_i32(libc::ENOENT)) } else { Ok(()) }
    }

    fn handle(&self) -> FileHandle {
        FileHandle(u64::from(self.withdrawn.load(Ordering::SeqCst)))
    }

    fn number(&self, path: &Path) -> u64 {
        let mut paths = self.paths.lock().unwrap();
        let known = paths.iter().position(|known| known == path);
        let at = known.unwrap_or_else(|| {
            paths.push(path.to_owned());
            paths.len() - 1
        });
        at as u64 + 1
    }

    fn path(&self, ino: INodeNo) -> PathBuf {
        self.folder.join(&self.paths.lock().unwrap()[u64::from(ino) as usize - 1])
    }

    fn attr(&self, path: &Path) -> Result<FileAttr, Errno> {
        let stat = fs::symlink_metadata(path).map_err(|_| Errno::from_i32(libc::ENOENT))?;
        let time = UNIX_EPOCH + Duration::from_secs(stat.mtime() as u64);
        Ok(FileAttr {
            ino: INodeNo(self.number(path.strip_prefix(&self.folder).unwrap())),
            size: stat.len(),
            blocks: stat.blocks(),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if stat.is_dir() { FileType::Directory } else { FileType::RegularFile },
            perm: (stat.mode() & 0o7777) as u16,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Client {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.reach().and_then(|()| self.attr(&self.path(parent).join(name))) {
            Ok(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        // It remembers these.
        match self.attr(&self.path(ino)) {
            Ok(attr) => reply.attr(&Duration::ZERO, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if self.reach().is_ok() {
            let folder = self.path(ino);
            let mut names: Vec<_> =
                fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            for (index, name) in names.iter().enumerate().skip(offset as usize) {
                let attr = self.attr(&folder.join(name)).unwrap();
                if reply.add(attr.ino, index as u64 + 1, attr.kind, name) {
                    break;
                }
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.reach() {
            Ok(()) => reply.opened(self.handle(), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let read = self.reach().map(|()| File::open(self.path(ino)).unwrap().read_at(&mut bytes, offset));
        match read {
            Ok(_) if handle != self.handle() => reply.error(Errno::from_i32(libc::ESTALE)),
            Ok(n) => reply.data(&bytes[..n.unwrap()]),
            Err(_) => reply.error(Errno::from_i32(libc::ENOTCONN)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.reach() {
            Ok(()) => reply.statfs(1, 1, 1, 1, 1, 4096, 255, 4096),
            Err(_) => reply.error(Errno::from_i32(libc::ENOTCONN)),
        }
    }
}

/// A share, a folder in which it is mounted, and the server's switch.
struct Share {
    is_away: Arc<AtomicBool>,
    withdrawn: Arc<AtomicU32>,
    _session: fuser::BackgroundSession,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Share {
    /// With a full backup, an incremental on it, and one of another volume.
    fn new() -> Self {
        let folder = open_folder();
        let (behind, path) = (folder.path().join("behind"), folder.path().join("share"));
        let image = noise(1, 2 * BLOCK);
        Backup::new(FULL, "v", image.clone()).named("m").put(&behind);
        #[expect(clippy::single_range_in_vec_init, reason = "one object")]
        let child = Backup::new(CHILD, "v", image.clone()).on(FULL, &[0..BLOCK]);
        child.at("2024-03-02 01:01:07+00:00").named("m").put(&behind);
        Backup::new(OTHER, "w", image).put(&behind);
        fs::create_dir(&path).unwrap();
        let (is_away, withdrawn): (Arc<AtomicBool>, Arc<AtomicU32>) = Default::default();
        let client = Client {
            folder: behind,
            is_away: is_away.clone(),
            withdrawn: withdrawn.clone(),
            paths: Mutex::new(vec![PathBuf::new()]),
        };
        let session = fuser::spawn_mount(client, &path, &fuser::Config::default()).unwrap();
        Self { is_away, withdrawn, _session: session, path, _folder: folder }
    }

    fn is_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::SeqCst);
    }
}

/// Whether it is right; fails when it is an error other than EIO.
#[track_caller]
fn is_right<T: PartialEq>(what: &str, outcome: io::Result<T>, right: impl FnOnce(&T) -> bool) -> bool {
    match outcome {
        Ok(value) => {
            assert!(right(&value), "{what} is another");
            true
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: {error}");
            false
        }
    }
}

// > What a file server is said not to have is believed only while it answers: a share that is away makes no backup, no
// > object and no digest look gone, whatever its client says.
#[test]
fn nothing_is_gone_because_a_share_is_away() {
    let share = Share::new();
    let mount = Mount::new(&share.path);
    let names_of = |path: &str| {
        let entries = fs::read_dir(mount.path(path))?;
        entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
    };
    let image = |id: &str| fs::read(mount.image(id));
    // One was read before, the others were not.
    assert!(image(OTHER).is_ok());
    share.is_away(true);
    let is_latest = |names: &Vec<_>| names.len() == 2;
    within(PATIENCE, "the share is missed", || {
        let found = [
            is_right("the list", names_of("backups"), |names| names.len() == 3),
            is_right("an image", image(CHILD), |bytes| *bytes == noise(1, 2 * BLOCK)),
            is_right("another", image(OTHER), |bytes| *bytes == noise(1, 2 * BLOCK)),
        ];
        is_right("the volume", names_of("volumes/v"), |names| names.len() == 3);
        is_right("the latest", names_of("names/m/latest"), is_latest);
        !found[0] && !found[1]
    });
    assert_eq!(errno(File::open(mount.image(FULL))), libc::EIO);
    assert_eq!(
        fs::read_link(mount.path("volumes/v/latest")).unwrap(),
        Path::new("../../backups").join(CHILD)
    );
    // Nor for commands.
    let cinderfs = |verb: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        let output = command.arg(verb).arg(&share.path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for verb in ["list", "verify"] {
        let (code, said) = cinderfs(verb);
        assert_eq!(code, Some(1), "{verb}: {said}");
        assert!(said.contains("does not answer"), "{verb}: {said}");
    }
    share.is_away(false);
    within(PATIENCE, "all is well", || {
        [FULL, CHILD, OTHER].iter().all(|id| image(id).is_ok_and(|bytes| bytes == noise(1, 2 * BLOCK)))
    });
    assert_eq!(names(&mount.path("backups")), [FULL, CHILD, OTHER]);
    // None has lost its digests.
    for id in [FULL, CHILD, OTHER] {
        assert_eq!(mount.document(id)["verification"], "sha256", "{id}");
    }
}

// > An image that was open while a file server was away, or withdrew its export, is read again once it is back, without a
// > remount.
#[test]
fn what_was_open_while_the_export_was_withdrawn_is_read_again() {
    let share = Share::new();
    let mount = Mount::new(&share.path);
    // Opened, so that the daemon holds its digests open, and not read, so that it holds none in memory.
    let open: Vec<_> = [FULL, CHILD, OTHER].map(|id| File::open(mount.image(id)).unwrap()).into();
    let image = |file: &File| {
        let mut bytes = vec![0; 2 * BLOCK];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    share.is_away(true);
    assert_eq!(errno(image(&open[0])), libc::EIO);
    share.withdrawn.fetch_add(1, Ordering::SeqCst);
    share.is_away(false);
    within(PATIENCE, "read again", || {
        open.iter().all(|file| image(file).is_ok_and(|bytes| bytes == noise(1, 2 * BLOCK)))
    });
}
