//! Every call that changes the store, in one place.
//!
//! Problem: whether a run that is killed or fails at any point leaves the store clean can only be shown by killing it and
//! failing it at every point. Idea: all calls that change the store go through [`Disk`], which tells a hook before each.
//! Without a hook that costs a comparison.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::store::posix::errno_kind;
use crate::waiting::Waiting;

/// A call that changes the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Step {
    /// A folder is made.
    MakeFolder,
    /// An empty file is made.
    MakeFile,
    /// A file or folder gets its permissions.
    SetMode,
    /// A file is locked.
    Lock,
    /// Bytes are written to a file.
    Write,
    /// A file's bytes are made durable.
    SyncFile,
    /// A folder's names are made durable.
    SyncFolder,
    /// The whole file system is made durable.
    SyncAll,
    /// A file gets its name, if nothing has it or in the place of a damaged one. Said of an `EINVAL`, the file system cannot do so in one step.
    MoveFile,
    /// A file gets a second name, for the same end. Said of an `EPERM`, the file system has no links.
    LinkFile,
    /// A folder gets its name, if nothing has it.
    MoveFolder,
    /// A file is removed.
    RemoveFile,
    /// An empty folder is removed.
    RemoveFolder,
}

impl Step {
    /// What it is, in words that its name follows.
    fn words(self) -> &'static str {
        match self {
            Self::MakeFolder => "the making of folder",
            Self::MakeFile => "the making of file",
            Self::SetMode => "the permissions of",
            Self::Lock => "the lock of",
            Self::Write => "the writing of",
            Self::SyncFile | Self::SyncFolder => "the durability of",
            Self::SyncAll => "the durability of all with",
            Self::MoveFile | Self::LinkFile | Self::MoveFolder => "the name",
            Self::RemoveFile => "the removal of file",
            Self::RemoveFolder => "the removal of folder",
        }
    }
}

/// Is told each step before it is taken, and the name that it is about (the new name of what is moved). An error is
/// taken for the step's own, and the step is not taken. For tests.
pub type Hook = Arc<dyn Fn(Step, &str) -> io::Result<()> + Send + Sync>;

/// The calls that change a store.
#[derive(Clone, Default)]
pub(super) struct Disk {
    hook: Option<Hook>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("hooked", &self.hook.is_some()).finish()
    }
}

impl Disk {
    pub(super) fn with(hook: Option<Hook>) -> Self {
        Self { hook }
    }

    /// Begins a step, which is under way as long as what this returns lives.
    fn step(&self, step: Step, name: &str) -> Result<Waiting, Errno> {
        if let Some(hook) = &self.hook {
            hook(step, name).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        Ok(Waiting::begin(format_args!("{} {name:?}", step.words())))
    }

    /// `EXIST` when the name is taken. The umask applies.
    pub(super) fn make_folder(&self, at: impl AsFd, name: &str, mode: u32) -> Result<(), Errno> {
        let _waiting = self.step(Step::MakeFolder, name)?;
        rustix::fs::mkdirat(at, name, Mode::from_raw_mode(mode))
    }

    /// A new file with exactly these permissions. `EXIST` when the name is taken, be it by a link that leads nowhere.
    pub(super) fn make_file(&self, at: impl AsFd, name: &str, mode: u32) -> Result<OwnedFd, Errno> {
        let _waiting = self.step(Step::MakeFile, name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::io::retry_on_intr(|| {
            rustix::fs::openat(at.as_fd(), name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let moded = self.set_mode(&made, name, mode);
        if moded.is_err() {
            // Nothing refers to it yet.
            let _ = rustix::fs::unlinkat(at, name, AtFlags::empty());
        }
        moded.map(|()| made)
    }

    pub(super) fn set_mode(&self, file: impl AsFd, name: &str, mode: u32) -> Result<(), Errno> {
        let _waiting = self.step(Step::SetMode, name)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
    }

    /// `WOULDBLOCK` when another has it.
    pub(super) fn lock(&self, file: impl AsFd, name: &str) -> Result<(), Errno> {
        let _waiting = self.step(Step::Lock, name)?;
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::io::retry_on_intr(|| rustix::fs::flock(file.as_fd(), operation))
    }

    pub(super) fn write_all_at(
        &self,
        file: impl AsFd,
        name: &str,
        mut bytes: &[u8],
        mut offset: u64,
    ) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let _waiting = self.step(Step::Write, name)?;
            match rustix::io::retry_on_intr(|| rustix::io::pwrite(file.as_fd(), bytes, offset))? {
                0 => return Err(Errno::IO),
                n => {
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }

    pub(super) fn sync_file(&self, file: impl AsFd, name: &str) -> Result<(), Errno> {
        let _waiting = self.step(Step::SyncFile, name)?;
        rustix::io::retry_on_intr(|| rustix::fs::fsync(file.as_fd()))
    }

    pub(super) fn sync_folder(&self, folder: impl AsFd, name: &str) -> Result<(), Errno> {
        let _waiting = self.step(Step::SyncFolder, name)?;
        match rustix::io::retry_on_intr(|| rustix::fs::fsync(folder.as_fd())) {
            // Some file systems in user space cannot, and make names durable as they are made.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(()),
            other => other,
        }
    }

    #[cfg(target_os = "linux")]
    pub(super) fn sync_all(&self, anything: impl AsFd, name: &str) -> Result<(), Errno> {
        let _waiting = self.step(Step::SyncAll, name)?;
        rustix::io::retry_on_intr(|| rustix::fs::syncfs(anything.as_fd()))
    }

    /// Gives a file its name. `EXIST` when something has that name already, which is never replaced.
    pub(super) fn move_file(
        &self,
        from_at: impl AsFd,
        from: &str,
        to_at: impl AsFd,
        to: &str,
    ) -> Result<(), Errno> {
        let renamed =
            self.step(Step::MoveFile, to).and_then(|_waiting| rename_noreplace(&from_at, from, &to_at, to));
        match renamed {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            other => return other,
        }
        // NFS knows no such flag. A second link is never put over a name either; killed between the two calls, the file
        // has both names, and the journal knows it by its number.
        let linked = self
            .step(Step::LinkFile, to)
            .and_then(|_waiting| rustix::fs::linkat(&from_at, from, &to_at, to, AtFlags::empty()));
        match linked {
            Ok(()) => return self.remove_file(from_at, from),
            Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK) => {}
            Err(errno) => return Err(errno),
        }
        // Neither do file systems without links. The name holds the backup's id, so nobody else makes it in between.
        match look_at(&to_at, to)? {
            None => {
                let _waiting = Waiting::begin(format_args!("the name {to:?}"));
                rustix::fs::renameat(from_at, from, to_at, to)
            }
            Some(_) => Err(Errno::EXIST),
        }
    }

    /// Gives a folder its name. `EXIST` (or `NOTEMPTY`, `NOTDIR`) when something has that name already; where the file
    /// system cannot tell, an empty folder may be replaced.
    pub(super) fn move_folder(
        &self,
        from_at: impl AsFd,
        from: &str,
        to_at: impl AsFd,
        to: &str,
    ) -> Result<(), Errno> {
        let renamed =
            self.step(Step::MoveFolder, to).and_then(|_waiting| rename_noreplace(&from_at, from, &to_at, to));
        match renamed {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                let _waiting = Waiting::begin(format_args!("the name {to:?}"));
                rustix::fs::renameat(from_at, from, to_at, to)
            }
            other => other,
        }
    }

    /// Gives a file one more name in its folder. `EXIST` when the name is taken.
    pub(super) fn link_file(&self, at: impl AsFd, from: &str, to: &str) -> Result<(), Errno> {
        let _waiting = self.step(Step::LinkFile, to)?;
        rustix::fs::linkat(&at, from, &at, to, AtFlags::empty())
    }

    /// Gives a file its name, in the place of what has it.
    pub(super) fn replace_file(
        &self,
        from_at: impl AsFd,
        from: &str,
        to_at: impl AsFd,
        to: &str,
    ) -> Result<(), Errno> {
        let _waiting = self.step(Step::MoveFile, to)?;
        rustix::fs::renameat(from_at, from, to_at, to)
    }

    pub(super) fn remove_file(&self, at: impl AsFd, name: &str) -> Result<(), Errno> {
        let _waiting = self.step(Step::RemoveFile, name)?;
        rustix::fs::unlinkat(at, name, AtFlags::empty())
    }

    pub(super) fn remove_folder(&self, at: impl AsFd, name: &str) -> Result<(), Errno> {
        let _waiting = self.step(Step::RemoveFolder, name)?;
        rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)
    }
}

#[cfg(target_os = "linux")]
fn rename_noreplace(from_at: impl AsFd, from: &str, to_at: impl AsFd, to: &str) -> Result<(), Errno> {
    rustix::fs::renameat_with(from_at, from, to_at, to, RenameFlags::NOREPLACE)
}

#[cfg(not(target_os = "linux"))]
fn rename_noreplace(_: impl AsFd, _: &str, _: impl AsFd, _: &str) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}

/// Opens the folder `name`, one component, of `at` for reading its entries and making it durable.
pub(super) fn open_folder(at: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let _waiting = Waiting::begin(format_args!("folder {name:?}"));
    rustix::io::retry_on_intr(|| rustix::fs::openat(at.as_fd(), name, flags, Mode::empty()))
}

/// What a name of `at` is; no link is followed. `None` when there is nothing.
pub(super) fn look_at(at: impl AsFd, name: &str) -> Result<Option<Stat>, Errno> {
    let _waiting = Waiting::begin(format_args!("what {name:?} is"));
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether two descriptions are of one file.
pub(super) fn is_same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

pub(super) fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// The failure to do `what` to the store.
pub(super) fn failed(what: impl fmt::Display, errno: Errno) -> Error {
    let (kind, why) = match errno {
        Errno::NOSPC => (ErrorKind::Target, ": the store's file system is full"),
        Errno::DQUOT => (ErrorKind::Target, ": the quota on the store's file system is used up"),
        Errno::ROFS => (ErrorKind::Target, ": the store is read-only"),
        Errno::FBIG => (ErrorKind::Target, ": the store's file system holds no file so long"),
        Errno::ACCESS | Errno::PERM => {
            (ErrorKind::AccessDenied, ": this user may not write there in the store")
        }
        Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS => {
            (ErrorKind::Unsupported, ": the store's file system lacks what writing needs")
        }
        Errno::NOENT => (ErrorKind::Target, ": somebody else removed it"),
        Errno::EXIST | Errno::NOTDIR | Errno::NOTEMPTY | Errno::NAMETOOLONG => (ErrorKind::Target, ""),
        other => (errno_kind(other), ""),
    };
    Error::caused_by(kind, format!("{what}{why}"), errno)
}
