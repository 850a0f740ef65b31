//! How the file comes into being, who uses it, and what becomes of one that is too large, too small or gone.
//!
//! Problem: mounts that share a cache directory may ask for different sizes, and whoever clears caches removes the file under
//! a running mount. If each went on with a file of its own, the caches together would outgrow every size that was asked for,
//! in files that have no name. Idea: the file that is in use wins. Who uses it holds a shared lock on it, so who comes
//! later can tell: he takes it with the size that it has, and says so, or makes a new one when nobody is left. Who finds
//! that his file has lost its name gives it up.
//!
//! | lock (`flock`) | on | held |
//! | --- | --- | --- |
//! | shared | the ring file | as long as it is used |
//! | exclusive | the folder | while the file is looked for or made, and while a stretch of the ring is given away |
//!
//! A new file is made under another name and moved to its own when it is complete and locked, so nobody sees a half-made one,
//! and two that start at once share one. Locks end with their process, however it ends.
//!
//! Nothing is mapped and nothing is allocated ahead: a disk without room is an error of one write.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::layout::Layout;
use super::{LOCK_PATIENCE, PART};
use crate::cache_dir::CacheDir;
use crate::cache_dir::part::Part;
use crate::error::{Error, ErrorKind, Result};

const NAME: &str = "ring";
const UNFINISHED: &str = "ring.new";

/// Longest wait for another process that makes the file, which takes a few system calls.
const MAKING_PATIENCE: Duration = Duration::from_secs(2);

/// How long a mount that asks for another size waits for the last user to end: `umount` returns before the process does.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);

/// A ring file that this process uses, and which is therefore not replaced by another size.
#[derive(Debug)]
pub(super) struct RingFile {
    pub(super) layout: Layout,
    /// Header and data. The kernel reads ahead by what was read last through a descriptor, so look-ups have their own.
    data: File,
    table: File,
    folder: File,
}

impl RingFile {
    /// Opens the ring of a cache directory; makes one of at most `bytes_max` bytes where there is none, or one of another
    /// size that nobody uses. [`ErrorKind::Target`] when that cannot be done.
    pub(super) fn open(cache: &CacheDir, bytes_max: u64) -> Result<Self> {
        Self::open_patiently(cache, bytes_max, ENDING_PATIENCE)
    }

    /// As [`open`](Self::open), for who is waited for.
    pub(super) fn reopen(cache: &CacheDir, bytes_max: u64) -> Result<Self> {
        Self::open_patiently(cache, bytes_max, Duration::ZERO)
    }

    fn open_patiently(cache: &CacheDir, bytes_max: u64, patience: Duration) -> Result<Self> {
        let unusable = |error| {
            let message = format!("cannot open the disk cache in {:?}", cache.path().join(PART));
            Error::caused_by(ErrorKind::Target, message, error)
        };
        let part = cache.part(PART).map_err(|error| error.context("cannot open the disk cache"))?;
        Self::open_in(&part, bytes_max, patience).map_err(unusable)
    }

    fn open_in(part: &Part, bytes_max: u64, patience: Duration) -> io::Result<Self> {
        let Some(wanted) = Layout::of_size(bytes_max) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its size has no room for a record"));
        };
        let folder = part.reopen()?;
        let (started, step) = (Instant::now(), Duration::from_millis(20));
        loop {
            lock(&folder, FlockOperation::NonBlockingLockExclusive, MAKING_PATIENCE)?;
            let opened = open_alone(&folder, part, wanted);
            unlock(&folder);
            let (data, table, layout) = opened?;
            if layout != wanted {
                if started.elapsed() < patience {
                    std::thread::sleep(step);
                    continue;
                }
                tracing::warn!(
                    "the disk cache in {:?} is in use with a size of {} and is used as it is, not with the {} asked \
                     for; its size changes when a mount asks for another one and no other mount uses it",
                    part.path(),
                    Bytes(layout.file_bytes()),
                    Bytes(wanted.file_bytes()),
                );
            }
            warn_of_room(&folder, part, &data, layout);
            return Ok(Self { layout, data, table, folder });
        }
    }

    /// For header and data.
    pub(super) fn data(&self) -> &File {
        &self.data
    }

    /// For buckets.
    pub(super) fn table(&self) -> &File {
        &self.table
    }

    /// Whether it has no name any more: somebody removed or replaced it.
    pub(super) fn is_gone(&self) -> bool {
        // Where even this cannot be told, reads will say what is wrong.
        self.data.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Frees what a file without a name takes on the disk. Whoever still reads it finds nothing in it.
    pub(super) fn give_back_space(&self) {
        if self.is_gone()
            && let Err(error) = self.data.set_len(0)
        {
            tracing::debug!("the removed file of the disk cache keeps its space: {error}");
        }
    }

    /// Does what only one process may do at a time. An error when others do not let go for [`LOCK_PATIENCE`].
    pub(super) fn alone<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        lock(&self.folder, FlockOperation::NonBlockingLockExclusive, LOCK_PATIENCE)?;
        let done = act();
        unlock(&self.folder);
        done
    }
}

/// Looks for the file or makes it, while nobody else does. It has another layout than `wanted` only when others use it.
fn open_alone(folder: &File, part: &Part, wanted: Layout) -> io::Result<(File, File, Layout)> {
    let path = part.path();
    match open_file(folder, NAME, OFlags::empty()) {
        Ok(file) => match Layout::of_file(&file) {
            Some(layout) if layout == wanted || !is_idle(&file)? => {
                lock(&file, FlockOperation::NonBlockingLockShared, LOCK_PATIENCE)?;
                return Ok((file, open_file(folder, NAME, OFlags::empty())?, layout));
            }
            Some(layout) => tracing::warn!(
                "the disk cache in {path:?} had a size of {}, gets the {} asked for, and begins empty",
                Bytes(layout.file_bytes()),
                Bytes(wanted.file_bytes()),
            ),
            // Who uses it finds that it has lost its name.
            None => tracing::warn!("the disk cache in {path:?} was damaged and begins empty"),
        },
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    make(folder, wanted).inspect_err(|_| {
        // What cannot be removed is overwritten by the next who makes one.
        let _ = rustix::fs::unlinkat(folder, UNFINISHED, AtFlags::empty());
    })
}

fn make(folder: &File, layout: Layout) -> io::Result<(File, File, Layout)> {
    match rustix::fs::unlinkat(folder, UNFINISHED, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let file = open_file(folder, UNFINISHED, OFlags::CREATE | OFlags::EXCL)?;
    file.set_len(layout.file_bytes())?;
    file.write_all_at(&layout.header(), 0)?;
    lock(&file, FlockOperation::NonBlockingLockShared, LOCK_PATIENCE)?;
    let table = open_file(folder, UNFINISHED, OFlags::empty())?;
    rustix::fs::renameat(folder, UNFINISHED, folder, NAME)?;
    Ok((file, table, layout))
}

fn open_file(folder: &File, name: &str, more: OFlags) -> Result<File, Errno> {
    // NONBLOCK: opening a pipe that was put here must not wait.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(folder, name, flags, mode))?.into())
}

/// Whether no other process uses the file. Only to be asked under the folder's lock: nobody begins to use it then.
fn is_idle(file: &File) -> io::Result<bool> {
    match rustix::io::retry_on_intr(|| flock(file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Says so when the disk has no room for what the file may become. Not an error: somebody may make room, and until then all
/// goes on without what does not fit.
fn warn_of_room(folder: &File, part: &Part, file: &File, layout: Layout) {
    let (Ok(disk), Ok(metadata)) = (rustix::fs::fstatvfs(folder), file.metadata()) else { return };
    let needed = layout.file_bytes().saturating_sub(metadata.blocks().saturating_mul(512));
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed > free {
        tracing::warn!(
            "the disk cache in {:?} may grow to {}, by {} more, but its file system has room for {}; when that is full, \
             nothing new is kept",
            part.path(),
            Bytes(layout.file_bytes()),
            Bytes(needed),
            Bytes(free),
        );
    }
}

/// Takes a lock on a file, which ends with the file's last descriptor or [`unlock`].
pub(super) fn lock(file: &File, how: FlockOperation, patience: Duration) -> io::Result<()> {
    let step = Duration::from_micros(200);
    let mut left = patience;
    loop {
        match flock(file, how) {
            Err(Errno::WOULDBLOCK) if !left.is_zero() => {
                std::thread::sleep(step);
                left = left.saturating_sub(step);
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process holds its lock"));
            }
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn unlock(file: &File) {
    // Nothing can be done about a failure; the lock ends with the process.
    let _ = flock(file, FlockOperation::Unlock);
}

/// A size as it is said.
struct Bytes(u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut unit = (1, "bytes");
        for larger in [(1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB"), (1 << 40, "TiB")] {
            if self.0 >= larger.0 {
                unit = larger;
            }
        }
        match unit {
            (1, name) => write!(f, "{} {name}", self.0),
            (size, name) if self.0.is_multiple_of(size) => write!(f, "{} {name}", self.0 / size),
            (size, name) => write!(f, "{:.1} {name}", self.0 as f64 / size as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_short() {
        let said = |bytes| Bytes(bytes).to_string();
        assert_eq!([said(0), said(1023), said(64 << 20)], ["0 bytes", "1023 bytes", "64 MiB"]);
        assert_eq!([said(3 << 29), said(5 << 40), said(4096)], ["1.5 GiB", "5 TiB", "4 KiB"]);
    }
}
