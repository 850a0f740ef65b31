//! Finding objects by the end of their name.
//!
//! Problem: Cinder spreads backups over folders three deep, a container can hold 100,000 data objects beside the one
//! `_metadata` that we look for, and a mount looks again and again to follow what appears and vanishes.
//!
//! Idea: read folders without asking about each entry. `readdir` tells the type of an entry, so only what matches is
//! looked at (`fstatat`); where a file system does not tell types, every entry is. A folder's entries cannot change
//! without its times changing, so a rescan reads only folders whose times changed, and takes from memory the matching
//! names and sub-folders of the others. Each matching file is looked at on every rescan all the same, because Cinder
//! overwrites `_metadata` in place, which its folder does not notice.
//!
//! When may memory be trusted? Two changes within one tick of the file system's clock leave the same times, so times
//! that were fresh when the folder was read prove nothing (git calls such index entries racy). A folder is remembered as
//! settled when it was read at least [`SETTLED_AFTER`] after we first saw the very same times: any later change then gets
//! a later time. Only our own monotonic clock is asked for that; comparing the folder's time with our wall clock would
//! fail where a file server's clock is behind ours. The price is that each folder is read twice before it is
//! remembered. Times of a file system that keeps none for folders (0), and memories older than [`TRUSTED_FOR`], are not
//! trusted at all.
//!
//! A folder that a backup is being written in ([`HIDDEN_FOLDER_PREFIX`]) is not entered: nothing in it is a backup yet. A
//! writer makes it in its store's root, which may lie deeper than the root of this walk, so that the name counts anywhere.
//!
//! Invariants:
//! - no symbolic link to a folder is followed, so no folder is seen twice and there are no circles;
//! - a walk holds at most [`DEPTH_MAX`] + 2 descriptors, and keeps at most [`NAMES_MAX`] names, and
//!   bounded [`Reports`], however large the store;
//! - what the walk did not visit is forgotten after it, so that vanished folders do not pile up.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use super::beneath::{Beneath, PATH_ONLY, open_folder};
use super::{errno_kind, object_error, object_stat, require_regular};
use crate::error::{Error, ErrorKind, Result};
use crate::store::reports::Reports;
use crate::store::{ListedObject, Listing};
use crate::types::ObjectName;

/// Folders nested deeper than this are reported, not read. Cinder nests 3 deep; a copied bucket some more.
const DEPTH_MAX: usize = 32;

/// Matching names and sub-folders kept in one walk. A store of 250,000 backups, each in a folder of its own, has about
/// a million; each costs some 200 bytes.
const NAMES_MAX: usize = 2_000_000;

/// Begins the name of a folder that a backup is being written in; the backup's id follows.
pub const HIDDEN_FOLDER_PREFIX: &str = ".cinderfs-";

/// How long a folder's times must have been the same before a reading of it is remembered. The coarsest clock of a file
/// system in use ticks every 2 s (FAT); ext4, XFS and NFS tick within milliseconds.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// How long a memory is trusted: bounds the harm of a file system whose folders' times do not follow their entries.
const TRUSTED_FOR: Duration = Duration::from_secs(300);

/// How many suffixes are remembered side by side; the program looks for `_metadata` and little else.
const SUFFIXES_MAX: usize = 4;

/// What identifies a folder's content: device, inode, modification and change time.
type Stamp = (u64, u64, (i64, u64), (i64, u64));

/// What a folder held when it was read.
#[derive(Debug)]
struct Folder {
    stamp: Stamp,
    /// When the stamp was first seen.
    first_seen: Instant,
    /// When we asked for the stamp, before we read the names.
    read_at: Instant,
    /// False if reading stopped early: the names are not all.
    complete: bool,
    /// Entries that end with the suffix, other than folders.
    matching: Vec<Box<str>>,
    folders: Vec<Box<str>>,
    /// Names that are not UTF-8, as far as they can be shown.
    foreign: Vec<String>,
}

impl Folder {
    fn new(stamp: Stamp, first_seen: Instant, read_at: Instant) -> Self {
        let (matching, folders, foreign) = Default::default();
        Self { stamp, first_seen, read_at, complete: true, matching, folders, foreign }
    }

    fn is_trusted(&self, stamp: Stamp) -> bool {
        self.complete
            && self.stamp == stamp
            && stamp.2.0 > 0
            && self.read_at.saturating_duration_since(self.first_seen) >= SETTLED_AFTER
            && self.read_at.elapsed() < TRUSTED_FOR
    }

    fn names(&self) -> usize {
        self.matching.len() + self.folders.len() + self.foreign.len()
    }
}

/// Folders by name relative to the root; the root's is empty.
type Folders = HashMap<Box<str>, Folder>;

/// The folders of the last walk for each of the last few suffixes.
#[derive(Debug, Default)]
pub(super) struct FolderCache {
    /// Most recently used first. Locked only to take or put a whole map, never during I/O: a walk that hangs on a dead
    /// server must not hold up another.
    by_suffix: Mutex<Vec<(Box<str>, Folders)>>,
    folders_read: AtomicU64,
}

impl FolderCache {
    pub(super) fn folders_read(&self) -> u64 {
        self.folders_read.load(Ordering::Relaxed)
    }

    /// Walks everything beneath `root`; fails only when the root itself cannot be read, or the store does not answer `hello` behind it: what
    /// was not found then may be there.
    pub(super) fn list(
        &self,
        root: &Beneath,
        suffix: &str,
        location: &str,
        hello: &dyn Fn() -> Result<()>,
    ) -> Result<Listing> {
        let failed = |errno: Errno| {
            let kind = match errno_kind(errno) {
                ErrorKind::ObjectNotFound => ErrorKind::StoreNotFound,
                kind => kind,
            };
            Error::caused_by(kind, format!("cannot list the store {location:?}"), errno)
        };
        let mut walk = Walk {
            root,
            suffix: suffix.as_bytes(),
            remembered: self.take(suffix),
            visited: Folders::new(),
            names_left: NAMES_MAX,
            objects: Vec::new(),
            reports: Reports::default(),
            cache: self,
        };
        let walked = root.read_root().and_then(|fd| walk.folder(fd, "", 0));
        let Walk { visited, mut objects, reports, .. } = walk;
        walked.map_err(failed).and_then(|()| hello())?;
        self.put(suffix, visited);
        objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Listing { objects, unreadable: reports.finish(location) })
    }

    fn take(&self, suffix: &str) -> Folders {
        let mut all = self.by_suffix.lock().unwrap_or_else(PoisonError::into_inner);
        match all.iter().position(|(known, _)| **known == *suffix) {
            Some(index) => all.remove(index).1,
            None => Folders::new(),
        }
    }

    fn put(&self, suffix: &str, folders: Folders) {
        let mut all = self.by_suffix.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| **known != *suffix);
        all.insert(0, (suffix.into(), folders));
        all.truncate(SUFFIXES_MAX);
    }
}

/// One walk.
struct Walk<'a> {
    root: &'a Beneath,
    suffix: &'a [u8],
    /// From the last walk; what is visited moves to `visited`.
    remembered: Folders,
    visited: Folders,
    names_left: usize,
    objects: Vec<ListedObject>,
    reports: Reports,
    cache: &'a FolderCache,
}

impl Walk<'_> {
    /// Visits the folder `path`, opened as `fd`, and all below. Fails when the folder itself cannot be read; what was
    /// found before the failure stays in the listing.
    fn folder(&mut self, fd: OwnedFd, path: &str, depth: usize) -> Result<(), Errno> {
        // The stamp is taken before reading: a change in between makes it too old, and the next walk reads again.
        // The server may have answered at any moment between the question and its arrival here: the question's time
        // is the one that counts for a reading, the arrival's for a first sight.
        let asked = Instant::now();
        let stamp = stamp(&rustix::fs::fstat(&fd)?);
        let (folder, read) = match self.remembered.remove(path) {
            Some(known) if known.is_trusted(stamp) => (known, Ok(())),
            known => {
                let seen = known.filter(|known| known.stamp == stamp).map(|known| known.first_seen);
                let mut folder = Folder::new(stamp, seen.unwrap_or_else(Instant::now), asked);
                let read = self.read(fd.as_fd(), path, &mut folder);
                folder.complete &= read.is_ok();
                self.cache.folders_read.fetch_add(1, Ordering::Relaxed);
                (folder, read)
            }
        };
        match self.names_left.checked_sub(folder.names()) {
            Some(left) => self.names_left = left,
            None => {
                let message = format!(
                    "the store holds over {NAMES_MAX} folders and matching names; the rest is not listed"
                );
                self.report(path.to_owned(), Error::new(ErrorKind::LimitExceeded, message));
                return read;
            }
        }
        for name in &folder.foreign {
            let message = format!("{name:?} is not a UTF-8 name");
            self.report(name.clone(), Error::new(ErrorKind::UnsafeName, message));
        }
        for name in &folder.matching {
            self.entry(fd.as_fd(), path, name);
        }
        for name in &folder.folders {
            let below = join(path, name);
            if depth == DEPTH_MAX {
                let message = format!("folder {below:?} is nested over {DEPTH_MAX} deep");
                self.report(below, Error::new(ErrorKind::LimitExceeded, message));
                continue;
            }
            let walked = match open_folder(fd.as_fd(), OsStr::new(&**name)) {
                Ok(opened) => self.folder(opened, &below, depth + 1),
                // Vanished, or replaced by a file or a link, since its name was read.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(errno),
            };
            if let Err(errno) = walked {
                let error =
                    Error::caused_by(errno_kind(errno), format!("cannot read folder {below:?}"), errno);
                self.report(below, error);
            }
        }
        self.visited.insert(path.into(), folder);
        read
    }

    /// Reads the names in a folder, without looking at files that do not match.
    fn read(&self, fd: BorrowedFd<'_>, path: &str, folder: &mut Folder) -> Result<(), Errno> {
        for entry in Dir::read_from(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let matches = name.ends_with(self.suffix);
            let is_folder = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => {
                    match rustix::fs::statat(fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                        Err(Errno::NOENT) => continue,
                        // It may be a folder; whatever is done with it next reports the failure, if it lasts.
                        Err(_) => !matches,
                    }
                }
                _ => false,
            };
            let is_hidden = is_folder && name.starts_with(HIDDEN_FOLDER_PREFIX.as_bytes());
            if is_hidden || (!is_folder && !matches) {
                continue;
            }
            match std::str::from_utf8(name) {
                Ok(name) if is_folder => folder.folders.push(name.into()),
                Ok(name) => folder.matching.push(name.into()),
                Err(_) => folder.foreign.push(join(path, &String::from_utf8_lossy(name))),
            }
            if folder.names() > self.names_left {
                folder.complete = false;
                break;
            }
        }
        // The order of `readdir` is the file system's; reports should not depend on it.
        folder.folders.sort_unstable();
        folder.foreign.sort_unstable();
        Ok(())
    }

    /// Lists the entry, or reports why it is none.
    fn entry(&mut self, folder: BorrowedFd<'_>, path: &str, name: &str) {
        let full = join(path, name);
        match self.look_at(folder, &full, name) {
            Ok(Some(object)) => self.objects.push(object),
            Ok(None) => {}
            Err(error) => self.report(full, error),
        }
    }

    /// `None` when it has vanished.
    fn look_at(&self, folder: BorrowedFd<'_>, full: &str, name: &str) -> Result<Option<ListedObject>> {
        let full = ObjectName::parse(full)?;
        let failed = |errno| object_error(&full, self.root.resolution(), errno);
        let mut stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(failed)?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = self.root.open_file(full.as_path(), PATH_ONLY).map_err(failed)?;
            stat = rustix::fs::fstat(&target).map_err(failed)?;
        }
        require_regular(&full, &stat)?;
        Ok(Some(ListedObject { name: full, stat: object_stat(&stat) }))
    }

    fn report(&mut self, what: String, error: Error) {
        self.reports.add(what, error);
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

#[expect(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
fn stamp(stat: &Stat) -> Stamp {
    let mtime = (stat.st_mtime as i64, stat.st_mtime_nsec as u64);
    let ctime = (stat.st_ctime as i64, stat.st_ctime_nsec as u64);
    (stat.st_dev as u64, stat.st_ino as u64, mtime, ctime)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::posix::Resolution;

    #[test]
    fn vanished_folders_and_old_suffixes_leave_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        for container in ["a/b", "c"] {
            fs::create_dir_all(folder.path().join(container)).unwrap();
        }
        let root = Beneath::open(folder.path(), Resolution::detect()).unwrap();
        let cache = FolderCache::default();
        let remembered = |suffix: &str| {
            cache.list(&root, suffix, "test", &|| Ok(())).unwrap();
            let all = cache.by_suffix.lock().unwrap();
            let mut names: Vec<_> = all[0].1.keys().map(|name| name.to_string()).collect();
            names.sort_unstable();
            (all.len(), names.join(" "))
        };
        assert_eq!(remembered("x"), (1, " a a/b c".into()));
        fs::remove_dir_all(folder.path().join("a")).unwrap();
        assert_eq!(remembered("x"), (1, " c".into()));
        for suffix in ["1", "2", "3", "4", "5", "6", "6"] {
            remembered(suffix);
        }
        assert_eq!(remembered("7").0, SUFFIXES_MAX);
    }

    #[test]
    fn only_a_reading_of_settled_times_is_trusted() {
        let Some(now) = Instant::now().checked_sub(Duration::from_millis(1)) else {
            panic!("the clock began now")
        };
        let stamp: Stamp = (1, 2, (1_700_000_000, 5), (1_700_000_000, 5));
        let (seen, just_before) = (now - SETTLED_AFTER, now - SETTLED_AFTER + Duration::from_nanos(1));
        assert!(Folder::new(stamp, seen, now).is_trusted(stamp));
        assert!(!Folder::new(stamp, just_before, now).is_trusted(stamp), "read before the times settled");
        assert!(!Folder { complete: false, ..Folder::new(stamp, seen, now) }.is_trusted(stamp));
        for other in [
            (9, 2, stamp.2, stamp.3),
            (1, 9, stamp.2, stamp.3),
            (1, 2, (stamp.2.0, 6), stamp.3),
            (1, 2, stamp.2, (stamp.3.0, 6)),
        ] {
            assert!(!Folder::new(stamp, seen, now).is_trusted(other));
        }
        let timeless = (1, 2, (0, 0), (0, 0));
        assert!(!Folder::new(timeless, seen, now).is_trusted(timeless));
        if let Some(long_ago) = now.checked_sub(TRUSTED_FOR + SETTLED_AFTER) {
            assert!(!Folder::new(stamp, long_ago, long_ago + SETTLED_AFTER).is_trusted(stamp), "too old");
        }
    }
}
