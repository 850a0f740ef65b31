//! A store in a directory: Cinder's POSIX driver, and the mount points of its NFS and GlusterFS drivers.
//!
//! Problem: names come from metadata that anybody may have written, files are anything that a directory can hold, and
//! the directory may lie on a server that stops answering. Idea: the store holds one descriptor of its root, every name
//! is resolved beneath that descriptor by [`beneath`], and what was opened is looked at (`fstat`) before it is used, so
//! that nothing depends on a path still meaning what it meant a moment ago.
//!
//! Invariants:
//! - no path is ever resolved from the process's own root or working directory, except the store's root, once;
//! - only regular files are objects; opening anything else is an error and never waits;
//! - an errno becomes an [`ErrorKind`] in [`errno_kind`] alone.
//!
//! The descriptor keeps the directory that was there at [`PosixStore::open`]: if another one takes its path, the store
//! goes on naming the old one.

pub(crate) mod beneath;
mod walk;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use self::beneath::Beneath;
pub use self::beneath::Resolution;
pub use self::walk::HIDDEN_FOLDER_PREFIX;
use super::{Listing, ObjectSource, ObjectStat, ObjectVersion, Ownership, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// File systems that read from a disk of this machine or from memory, by `f_type`: ext2 to ext4, XFS, btrfs, tmpfs, ZFS, F2FS,
/// bcachefs, FAT, exFAT, ISO 9660, SquashFS, EROFS. Not overlayfs, which may lie on anything.
const LOCAL_MAGICS: [u32; 12] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0x2fc1_2fc1,
    0xf2f5_2010,
    0xca45_1a4e,
    0x4d44,
    0x2011_bab0,
    0x9660,
    0x7371_7368,
    0xe0f5_e1e2,
];

/// File systems that read from a server, or from a process that may: NFS, CIFS and SMB, Ceph, FUSE (GlusterFS among others), 9P, AFS.
/// What is in neither list may be either.
const FAR_MAGICS: [u32; 8] =
    [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x517b, 0x00c3_6400, 0x6573_5546, 0x0102_1997, 0x5346_414f];

/// Where the bytes of a file are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// On a disk of this machine.
    Here,
    /// At a server.
    Far,
    Unknown,
}

/// Devices remembered.
const DEVICES_MAX: usize = 64;

/// A store in a directory. Reads only.
#[derive(Debug)]
pub struct PosixStore {
    root: Beneath,
    location: Box<str>,
    /// Devices, and where each is. Asking is a call over the network for some.
    devices: Mutex<Vec<(u64, Reach)>>,
    folders: walk::FolderCache,
}

impl PosixStore {
    /// Opens the directory `root`, which may itself be reached through symbolic links.
    ///
    /// [`ErrorKind::StoreNotFound`] when it is missing or not a directory, [`ErrorKind::AccessDenied`] when this user
    /// may not enter it, [`ErrorKind::StoreIo`] when the file system fails.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, Resolution::detect())
    }

    /// As [`PosixStore::open`], with a given way to keep names beneath the root.
    /// [`ErrorKind::Unsupported`] when this system has no such way.
    pub fn open_with(root: &Path, resolution: Resolution) -> Result<Self> {
        let failed = |errno: Errno| {
            let kind = match errno_kind(errno) {
                ErrorKind::ObjectNotFound => ErrorKind::StoreNotFound,
                _ if errno == Errno::NOSYS => ErrorKind::Unsupported,
                kind => kind,
            };
            Error::caused_by(kind, format!("cannot open the store {root:?}"), errno)
        };
        Ok(Self {
            root: Beneath::open(root, resolution).map_err(failed)?,
            location: root.to_string_lossy().into(),
            devices: Mutex::default(),
            folders: walk::FolderCache::default(),
        })
    }

    /// Where an opened file lies.
    #[expect(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
    fn reach(&self, file: impl AsFd, stat: &Stat) -> Reach {
        let device = stat.st_dev as u64;
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reach)) = devices.iter().find(|(known, _)| *known == device) {
            return *reach;
        }
        drop(devices);
        let reach = match rustix::fs::fstatfs(file).map(|fs| fs.f_type as u64 as u32) {
            Ok(magic) if LOCAL_MAGICS.contains(&magic) => Reach::Here,
            Ok(magic) if FAR_MAGICS.contains(&magic) => Reach::Far,
            _ => Reach::Unknown,
        };
        devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers of file systems that have gone are given to others; those are asked about anew after a while.
        if devices.len() == DEVICES_MAX {
            devices.clear();
        }
        devices.push((device, reach));
        reach
    }

    /// Names the root directory, whatever has its path by now; gives no right to it.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.root()
    }

    /// How many folders [`Store::list`] has read so far; one that it remembered is not counted.
    pub fn folders_read(&self) -> u64 {
        self.folders.folders_read()
    }
}

impl Store for PosixStore {
    fn location(&self) -> &str {
        &self.location
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        self.folders.list(&self.root, suffix, &self.location, &|| self.hello())
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        // O_NONBLOCK: a FIFO without a writer would else wait forever. O_NOCTTY: a terminal must not become ours.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let failed = |errno| object_error(name, self.root.resolution(), errno);
        let file = self.root.open_file(name.as_path(), flags).map_err(|errno| match failed(errno) {
            missing if missing.kind() == ErrorKind::ObjectNotFound => self.hello().err().unwrap_or(missing),
            other => other,
        })?;
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        require_regular(name, &stat)?;
        // It was for FIFOs only. A file system in user space may honour it on a regular file and answer EAGAIN.
        rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(failed)?;
        let (written, reach) = (Written::of(&stat), self.reach(&file, &stat));
        Ok(Arc::new(PosixObject { file, name: name.clone(), stat: object_stat(&stat), written, reach }))
    }

    fn hello(&self) -> Result<()> {
        let failed = |errno| {
            let message = format!("the store {:?} does not answer", self.location);
            Error::caused_by(errno_kind(errno), message, errno)
        };
        let root = self.root();
        let stat = rustix::fs::fstat(root).map_err(failed)?;
        if self.reach(root, &stat) == Reach::Here {
            return Ok(());
        }
        // The one question that neither the kernel nor the clients of NFS and GlusterFS answer out of their memory.
        match rustix::fs::fstatfs(root).map_err(failed) {
            Err(error) if error.kind() == ErrorKind::StoreIo => Err(error),
            // An answer, whatever it is.
            _ => Ok(()),
        }
    }
}

/// One opened regular file. The descriptor goes on naming it when its name is given to another file.
struct PosixObject {
    file: OwnedFd,
    name: ObjectName,
    stat: ObjectStat,
    written: Written,
    reach: Reach,
}

/// What changes when bytes of a file are changed in place.
#[derive(PartialEq, Eq)]
struct Written {
    size: i64,
    mtime: i64,
    mtime_nsec: u64,
}

impl Written {
    // Not the time of the last status change: taking a name away from the file changes that and no byte.
    fn of(stat: &Stat) -> Self {
        Self { size: stat.st_size, mtime: stat.st_mtime, mtime_nsec: stat.st_mtime_nsec }
    }
}

impl ObjectSource for PosixObject {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        // No file reaches beyond `off_t`, whose larger values the kernel refuses instead of calling them the end.
        let room = (i64::MAX as u64).saturating_sub(offset);
        let len = usize::try_from(room).map_or(buf.len(), |room| room.min(buf.len()));
        if len == 0 {
            return Ok(0);
        }
        rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut buf[..len], offset)).map_err(
            |errno| {
                let message = format!("cannot read object {:?} at byte {offset}", self.name);
                // A descriptor that was opened names a file: whatever goes wrong now is the store's failure.
                let kind = match errno_kind(errno) {
                    ErrorKind::AccessDenied => ErrorKind::AccessDenied,
                    _ => ErrorKind::StoreIo,
                };
                Error::caused_by(kind, message, errno)
            },
        )
    }

    fn will_need(&self, offset: u64, len: u64) {
        let Some(len) = std::num::NonZeroU64::new(len).filter(|_| offset <= i64::MAX as u64) else { return };
        // A file system that cannot fetches nothing, and reads say what is wrong.
        let _ = rustix::fs::fadvise(&self.file, offset, Some(len), rustix::fs::Advice::WillNeed);
    }

    fn is_changed(&self) -> Result<bool> {
        let now = rustix::fs::fstat(&self.file).map_err(|errno| {
            Error::caused_by(ErrorKind::StoreIo, format!("cannot look at object {:?}", self.name), errno)
        })?;
        Ok(Written::of(&now) != self.written)
    }

    fn is_local(&self) -> bool {
        self.reach == Reach::Here
    }

    fn is_far(&self) -> bool {
        self.reach == Reach::Far
    }

    fn may_go_stale(&self) -> bool {
        self.reach != Reach::Here
    }
}

/// What kind of failure an errno from resolving or opening a name is.
///
/// Everything that does not clearly speak of the name or of permission is the store's failure (EIO, ESTALE, ETIMEDOUT,
/// EMFILE, …): it says nothing about whether the object is there.
pub fn errno_kind(errno: Errno) -> ErrorKind {
    match errno {
        // A name that the file system cannot hold (ENAMETOOLONG) names nothing in it.
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => ErrorKind::ObjectNotFound,
        // What open(2) says of a socket, and of a device that nothing drives; neither is an object.
        Errno::NXIO | Errno::NODEV => ErrorKind::ObjectNotFound,
        Errno::ACCESS | Errno::PERM => ErrorKind::AccessDenied,
        Errno::XDEV | Errno::LOOP => ErrorKind::UnsafeName,
        _ => ErrorKind::StoreIo,
    }
}

/// The failure to resolve or open `name`.
fn object_error(name: &ObjectName, resolution: Resolution, errno: Errno) -> Error {
    let message = match (errno, resolution) {
        (Errno::XDEV, _) => format!("object {name:?} leads out of the store through a symbolic link"),
        (Errno::LOOP, Resolution::Kernel) => {
            format!("object {name:?} leads through a link of /proc or in circles; neither is followed")
        }
        (Errno::LOOP, Resolution::Portable) => format!(
            "object {name:?} leads through a symbolic link, and this system cannot keep links inside the store"
        ),
        (Errno::NXIO | Errno::NODEV, _) => {
            format!("object {name:?} is a socket or device, not a regular file")
        }
        _ => format!("cannot open object {name:?}"),
    };
    Error::caused_by(errno_kind(errno), message, errno)
}

/// [`ErrorKind::ObjectNotFound`] unless `stat` is of a regular file.
fn require_regular(name: &ObjectName, stat: &Stat) -> Result<()> {
    let found = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::Symlink => "a symbolic link",
        FileType::BlockDevice | FileType::CharacterDevice => "a device",
        _ => "of unknown type",
    };
    Err(Error::new(ErrorKind::ObjectNotFound, format!("object {name:?} is {found}, not a regular file")))
}

#[expect(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
fn object_stat(stat: &Stat) -> ObjectStat {
    let (mtime, mtime_ns) = (stat.st_mtime as i64, stat.st_mtime_nsec as u32);
    let len_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    // The change time is in it because a program can put the modification time back, as `cp -p` and `touch -r` do.
    let version = format!(
        "{}:{}:{len_bytes}:{mtime}.{mtime_ns:09}:{}.{:09}",
        stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec
    );
    ObjectStat {
        len_bytes,
        version: ObjectVersion(version.into()),
        modified: system_time(mtime, mtime_ns),
        owner: Ownership { mode: stat.st_mode as u32 & 0o7777, uid: stat.st_uid, gid: stat.st_gid },
    }
}

/// `None` for a time that this system cannot tell; files can claim any, by billions of years.
fn system_time(seconds: i64, nanoseconds: u32) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base?.checked_add(Duration::from_nanos(nanoseconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_that_says_nothing_of_the_object_is_the_stores_failure() {
        for errno in [Errno::IO, Errno::STALE, Errno::TIMEDOUT, Errno::MFILE, Errno::AGAIN, Errno::NOTCONN] {
            assert_eq!(errno_kind(errno), ErrorKind::StoreIo, "{errno:?}");
        }
        for errno in [Errno::NOENT, Errno::NOTDIR] {
            assert_eq!(errno_kind(errno), ErrorKind::ObjectNotFound, "{errno:?}");
        }
        for errno in [Errno::ACCESS, Errno::PERM] {
            assert_eq!(errno_kind(errno), ErrorKind::AccessDenied, "{errno:?}");
        }
    }

    #[test]
    fn times_before_1970_and_absurd_ones_are_told_or_not_told() {
        assert_eq!(system_time(-1, 500_000_000), UNIX_EPOCH.checked_sub(Duration::from_millis(500)));
        assert_eq!(system_time(1, 5), UNIX_EPOCH.checked_add(Duration::new(1, 5)));
        for absurd in [i64::MIN, i64::MAX] {
            let told = system_time(absurd, 999_999_999);
            assert!(told.is_none_or(|time| (time > UNIX_EPOCH) == (absurd > 0)), "{told:?}");
        }
    }
}
