//! The hidden folder that a backup is written in, and what dead runs left.
//!
//! ```text
//! <store>/.cinderfs-<backup id>/      0700
//!            lock                     locked (flock) as long as its run lives; holds the id of its host's boot
//!            parts/                   files being written, under numbers
//!            tree/<container>/        the files under their names, for the moment of publishing
//!            journal                  what is given its name file by file
//!            deletion                 what is removed file by file, while the backup of this id is deleted
//! ```
//!
//! Problem: a killed run cannot clean up, and nobody else knows whether a folder's run is dead or slow. Idea: the kernel
//! drops a lock when its process dies, however it dies. Who gets the lock of a folder may remove it.
//!
//! Where the store is shared by hosts, a lock of another host may not be seen here (NFS mounted with `nolock`, GlusterFS). There
//! a free lock counts only for runs of this very boot of this host, and for folders in which nothing was written for
//! [`IDLE_AFTER`]: a living run writes digests all the time.
//!
//! A folder without a lock file is one whose run was killed (or has not yet come) between making the two, or whose remover
//! was killed at the very end. It is empty, and removing an empty folder harms nobody: a run that lives finds its folder
//! gone, and makes it anew. So whoever has locked a file looks again whether that file still has its name.
//!
//! A file that is removed while it is open is only renamed in its folder by NFS, and by some file systems in user space; it goes when it is
//! closed. So the lock is closed before its folder goes.
//!
//! Invariants: only what this program puts there is removed, so a folder that holds anything else stays, with its lock; the
//! lock goes last.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::disk::{Disk, failed, is_folder, is_same, look_at, open_folder};
use super::{journal, removal, store::StoreRoot};
use crate::error::{Error, ErrorKind, Result};
use crate::store::posix::HIDDEN_FOLDER_PREFIX;
use crate::types::BackupId;
use crate::waiting::Waiting;

const LOCK: &str = "lock";
pub(super) const PARTS: &str = "parts";
pub(super) const TREE: &str = "tree";
pub(super) const JOURNAL: &str = "journal";
pub(super) const DELETION: &str = "deletion";

/// How often a folder is made anew that another removes at the same moment, or whose lock another has for a moment, to
/// find out whether its run is dead.
const ATTEMPTS_MAX: u32 = 40;

/// Between two attempts: two seconds in all, in which a dead run's folder of some thousand files is removed.
const ATTEMPT_EVERY: Duration = Duration::from_millis(50);

/// How long nothing was written to a dead run's folder, where its lock proves nothing. Long, because a run may be suspended
/// with its host; nothing but room is lost meanwhile.
const IDLE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How deep folders of ours nest: as deep as a container's name.
const NESTING_MAX: u32 = 64;

/// A hidden folder whose lock is ours.
#[derive(Debug)]
pub(super) struct Hidden {
    name: String,
    folder: OwnedFd,
    /// `None` once it was removed.
    lock: Option<OwnedFd>,
}

impl Hidden {
    /// A new folder for this backup. What a dead run of the same id left is removed.
    ///
    /// [`ErrorKind::Usage`] when a living run writes this very backup.
    pub(super) fn create(store: &StoreRoot, disk: &Disk, id: &BackupId) -> Result<Self> {
        let name = format!("{HIDDEN_FOLDER_PREFIX}{id}");
        let what = || format!("cannot make the folder {name:?} in the store {:?}", store.location());
        for attempt in 0..ATTEMPTS_MAX {
            match disk.make_folder(store.root(), &name, 0o700) {
                Ok(()) => match Self::lock_new(store, disk, &name) {
                    Ok(Some(hidden)) => return Ok(hidden),
                    Ok(None) => {}
                    Err(errno) => {
                        let _ = disk.remove_folder(store.root(), &name);
                        return Err(failed(what(), errno));
                    }
                },
                Err(Errno::EXIST) => match Self::claim(store, disk, &name) {
                    Ok(Claim::Dead(dead)) => {
                        dead.clean_up(store, disk)?;
                        continue;
                    }
                    Ok(Claim::Gone) => continue,
                    Ok(Claim::Living) => {}
                    Ok(Claim::Foreign) => {
                        let message = format!("{name:?} in the store {:?} is in the way", store.location());
                        return Err(Error::new(ErrorKind::Target, message));
                    }
                    Err(errno) => return Err(failed(what(), errno)),
                },
                Err(errno) => return Err(failed(what(), errno)),
            }
            if attempt + 1 < ATTEMPTS_MAX {
                std::thread::sleep(ATTEMPT_EVERY);
            }
        }
        let message = format!("backup {id} is being written by another run, which has the lock of {name:?}");
        Err(Error::new(ErrorKind::Usage, message))
    }

    /// `None` when a cleaner took the new folder for a dead run's.
    fn lock_new(store: &StoreRoot, disk: &Disk, name: &str) -> Result<Option<Self>, Errno> {
        let folder = match open_folder(store.root(), name) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let lock = match disk.make_file(&folder, LOCK, 0o600) {
            Err(Errno::NOENT | Errno::EXIST) => return Ok(None),
            other => other?,
        };
        // Who has it only looks whether its run is dead, and removes it or lets it go. Left to itself it would count as that of a living run
        // where locks prove nothing.
        let mut locked = disk.lock(&lock, LOCK);
        for _ in 1..ATTEMPTS_MAX {
            if locked != Err(Errno::WOULDBLOCK) || !has_its_name(store, name, &folder, &lock)? {
                break;
            }
            std::thread::sleep(ATTEMPT_EVERY);
            locked = disk.lock(&lock, LOCK);
        }
        let locked = match locked {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => Err(errno),
            Ok(()) => has_its_name(store, name, &folder, &lock),
        };
        let locked = match locked {
            Ok(true) => disk.write_all_at(&lock, LOCK, boot_id().as_bytes(), 0).map(|()| true),
            other => other,
        };
        match locked {
            Ok(true) => Ok(Some(Self { name: name.to_owned(), folder, lock: Some(lock) })),
            Ok(false) => Ok(None),
            Err(errno) => {
                let _ = disk.remove_file(&folder, LOCK);
                Err(errno)
            }
        }
    }

    /// Takes over what a dead run left under this name.
    pub(super) fn claim(store: &StoreRoot, disk: &Disk, name: &str) -> Result<Claim, Errno> {
        let folder = match open_folder(store.root(), name) {
            Err(Errno::NOENT) => return Ok(Claim::Gone),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Claim::Foreign),
            other => other?,
        };
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let lock = match rustix::fs::openat(&folder, LOCK, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                return match disk.remove_folder(store.root(), name) {
                    Ok(()) | Err(Errno::NOENT) => Ok(Claim::Gone),
                    // It may have got its lock just now.
                    Err(Errno::NOTEMPTY | Errno::EXIST) => match look_at(&folder, LOCK)? {
                        Some(_) => Ok(Claim::Living),
                        None => Ok(Claim::Foreign),
                    },
                    Err(errno) => Err(errno),
                };
            }
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Ok(Claim::Foreign),
            other => other?,
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&lock)?.st_mode) != FileType::RegularFile {
            return Ok(Claim::Foreign);
        }
        match disk.lock(&lock, LOCK) {
            Err(Errno::WOULDBLOCK) => return Ok(Claim::Living),
            other => other?,
        }
        if !has_its_name(store, name, &folder, &lock)? {
            return Ok(Claim::Gone);
        }
        if !store.has_sure_locks && !is_of_this_boot(&lock)? && !is_idle(&folder)? {
            return Ok(Claim::Living);
        }
        Ok(Claim::Dead(Self { name: name.to_owned(), folder, lock: Some(lock) }))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> &str {
        self.name.strip_prefix(HIDDEN_FOLDER_PREFIX).unwrap_or_default()
    }

    pub(super) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// Takes back what a dead run had given its name, or goes on with what it removed, and removes the folder.
    pub(super) fn clean_up(mut self, store: &StoreRoot, disk: &Disk) -> Result<()> {
        journal::roll_back(store, disk, &self.folder)
            .and_then(|()| removal::finish(store, disk, &self.folder, self.id()))
            .map_err(|error| error.context(format!("cannot clean up {:?} after a killed run", self.name)))?;
        self.remove(store, disk).map_err(|errno| failed(format!("cannot remove {:?}", self.name), errno))
    }

    /// Removes the folder. What the journal tells must have been settled.
    pub(super) fn remove(&mut self, store: &StoreRoot, disk: &Disk) -> Result<(), Errno> {
        for name in [PARTS, TREE] {
            remove_below(disk, &self.folder, name, NESTING_MAX)?;
        }
        for name in [JOURNAL, DELETION] {
            gone_is_fine(disk.remove_file(&self.folder, name))?;
        }
        for entry in Dir::read_from(&self.folder)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b".." | b"lock") {
                return Err(Errno::NOTEMPTY);
            }
        }
        gone_is_fine(disk.remove_file(&self.folder, LOCK))?;
        self.unlock();
        gone_is_fine(disk.remove_folder(store.root(), &self.name))
    }

    fn unlock(&mut self) {
        if let Some(lock) = self.lock.take() {
            // Closing alone would leave it locked as long as a process that is just being started has a copy.
            let _ = rustix::fs::flock(lock, rustix::fs::FlockOperation::Unlock);
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        self.unlock();
    }
}

/// What a hidden folder is found to be.
pub(super) enum Claim {
    /// Its run is dead, and its lock is ours now.
    Dead(Hidden),
    /// Its run lives, or another cleans it up.
    Living,
    /// There is nothing any more.
    Gone,
    /// This program did not make it.
    Foreign,
}

/// Removes what dead runs left in the store. What cannot be removed is told to the log, and left to the next.
pub(super) fn remove_dead(store: &StoreRoot, disk: &Disk) -> Result<u64> {
    let read = |errno| failed(format!("cannot read the store {:?}", store.location()), errno);
    let mut found = Vec::new();
    let waiting = Waiting::begin("the names in its folder");
    for entry in Dir::read_from(store.root()).map_err(read)? {
        let entry = entry.map_err(read)?;
        // An id is what its run had, so other names are not of ours.
        let id = entry.file_name().to_str().ok().and_then(|name| name.strip_prefix(HIDDEN_FOLDER_PREFIX));
        if id.is_some_and(|id| BackupId::parse(id).is_ok()) {
            found.extend(entry.file_name().to_str().map(str::to_owned));
        }
    }
    drop(waiting);
    let mut removed = 0;
    for name in found {
        let outcome = match Hidden::claim(store, disk, &name) {
            Ok(Claim::Dead(dead)) => dead.clean_up(store, disk).map(|()| removed += 1),
            Ok(Claim::Living | Claim::Gone | Claim::Foreign) => Ok(()),
            Err(errno) => Err(failed(format!("cannot look whether the run of {name:?} lives"), errno)),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "a hidden folder stays");
        }
    }
    Ok(removed)
}

/// Whether folder and lock are still what their names say.
fn has_its_name(store: &StoreRoot, name: &str, folder: &OwnedFd, lock: &OwnedFd) -> Result<bool, Errno> {
    let named = |at, name: &str, fd: &OwnedFd| {
        let stat = rustix::fs::fstat(fd)?;
        Ok::<_, Errno>(look_at(at, name)?.is_some_and(|named| is_same(&named, &stat)))
    };
    Ok(named(store.root().as_fd(), name, folder)? && named(folder.as_fd(), LOCK, lock)?)
}

/// Another after each start of the kernel; empty where the system tells none.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn is_of_this_boot(lock: &OwnedFd) -> Result<bool, Errno> {
    let mut written = [0; 64];
    let len = rustix::io::retry_on_intr(|| rustix::io::pread(lock, &mut written, 0))?;
    let boot = boot_id();
    Ok(!boot.is_empty() && written[..len] == *boot.as_bytes())
}

/// Whether nothing was written to the folder for long.
fn is_idle(folder: &OwnedFd) -> Result<bool, Errno> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let before = i64::try_from(now.saturating_sub(IDLE_AFTER.as_secs())).unwrap_or(0);
    let newest = |folder: &OwnedFd| {
        let mut newest = rustix::fs::fstat(folder)?.st_mtime;
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            if entry.file_name().to_bytes() == b".." {
                continue;
            }
            match rustix::fs::statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => newest = newest.max(stat.st_mtime),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(newest)
    };
    let parts = match open_folder(folder, PARTS) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => i64::MIN,
        other => newest(&other?)?,
    };
    Ok(newest(folder)?.max(parts) < before)
}

/// Removes `name` of `at` with all below.
fn remove_below(disk: &Disk, at: &OwnedFd, name: &str, nesting_left: u32) -> Result<(), Errno> {
    let folder = match open_folder(at, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if nesting_left == 0 {
        return Err(Errno::LOOP);
    }
    // Entries are removed behind the reader's back, which POSIX allows; a second round takes what a file system skipped.
    loop {
        let mut removed = false;
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { return Err(Errno::NOTEMPTY) };
            if matches!(name, "." | "..") {
                continue;
            }
            match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
                Ok(stat) if is_folder(&stat) => remove_below(disk, &folder, name, nesting_left - 1)?,
                Ok(_) => gone_is_fine(disk.remove_file(&folder, name))?,
            }
            removed = true;
        }
        if !removed {
            return gone_is_fine(disk.remove_folder(at, name));
        }
    }
}

pub(super) fn gone_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};

    use super::super::disk::Step;
    use super::*;

    /// As when another run looks for dead ones between the making of a lock and its locking.
    #[test]
    fn a_new_folder_that_another_run_looks_at_is_not_given_up() {
        for has_sure_locks in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let lock = folder.path().join(".cinderfs-x").join(LOCK);
            let looks = std::sync::atomic::AtomicU32::new(0);
            let hook = move |step, _: &str| {
                if step == Step::Lock && looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                    let looker = File::open(&lock).unwrap();
                    rustix::fs::flock(&looker, rustix::fs::FlockOperation::LockExclusive).unwrap();
                    std::thread::spawn(move || {
                        std::thread::sleep(2 * ATTEMPT_EVERY);
                        drop(looker);
                    });
                }
                Ok(())
            };
            let disk = Disk::with(Some(std::sync::Arc::new(hook)));
            let mut store = StoreRoot::open(folder.path()).unwrap();
            store.has_sure_locks = has_sure_locks;
            let id = BackupId::parse("x").unwrap();
            Hidden::create(&store, &disk, &id).unwrap();
        }
    }

    #[test]
    fn a_lock_that_other_hosts_cannot_see_proves_nothing_of_their_runs() {
        let folder = tempfile::tempdir().unwrap();
        let hidden = folder.path().join(".cinderfs-x");
        let old = SystemTime::now() - IDLE_AFTER - Duration::from_secs(60);
        let make = |boot: &str| {
            fs::create_dir_all(hidden.join(PARTS)).unwrap();
            fs::write(hidden.join(LOCK), boot).unwrap();
            fs::write(hidden.join("parts/.1"), "").unwrap();
        };
        let age = |name: &str| {
            let file = File::open(hidden.join(name)).unwrap();
            file.set_times(FileTimes::new().set_modified(old)).unwrap();
        };
        let mut store = StoreRoot::open(folder.path()).unwrap();
        let disk = Disk::default();
        for (has_sure_locks, boot, aged, removed) in [
            (true, "of another host", &[][..], 1),
            (false, "of another host", &[], 0),
            (false, "", &[], 0),
            (false, "of another host", &[LOCK, PARTS, "."], 0),
            (false, "of another host", &["parts/.1", PARTS, "."], 0),
            (false, "of another host", &["parts/.1", LOCK, "."], 0),
            (false, "of another host", &["parts/.1", LOCK, PARTS, "."], 1),
            (false, &boot_id(), &[], 1),
        ] {
            make(boot);
            aged.iter().for_each(|name| age(name));
            store.has_sure_locks = has_sure_locks;
            assert_eq!(remove_dead(&store, &disk).unwrap(), removed, "{has_sure_locks} {boot} {aged:?}");
            assert_eq!(hidden.exists(), removed == 0);
            let _ = fs::remove_dir_all(&hidden);
        }
        // One that lives writes its boot down, and has its lock.
        let id = BackupId::parse("x").unwrap();
        let living = Hidden::create(&store, &disk, &id).unwrap();
        assert_eq!(fs::read_to_string(hidden.join(LOCK)).unwrap(), boot_id());
        assert_eq!(boot_id().len(), 36);
        assert_eq!(remove_dead(&store, &disk).unwrap(), 0);
        drop(living);
        assert_eq!(remove_dead(&store, &disk).unwrap(), 1);
    }
}
