//! Files of a backup that is there, written anew in the place of damaged ones.
//!
//! Problem: a file that is mended where it stands is worse than before when the run is killed half way. Idea: the new one is written
//! into the hidden folder of the backup's id, as a new backup's would be, made durable, and renamed over the old one.
//!
//! Invariants: under its name stands the old file or the whole new one, whenever the run ends; who holds the folder's lock is alone with
//! this backup among runs that write or delete; a killed run leaves nothing but the folder, which the next one removes.

use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use super::disk::{Disk, Hook, failed, is_folder, look_at, open_folder};
use super::file::{Parts, StagedFile};
use super::hidden::{self, Hidden, PARTS};
use super::store::StoreRoot;
use super::{FileName, remove};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{BackupId, ObjectName};

/// Room for new files of one backup. Dropped, it leaves nothing.
#[derive(Debug)]
pub(in crate::writer) struct Replacing {
    store: StoreRoot,
    disk: Disk,
    hidden: Hidden,
    parts: Arc<Parts>,
}

/// A file that is complete, durable, and has no name yet.
#[derive(Debug)]
pub(in crate::writer) struct Ready(String);

impl Replacing {
    /// For files of the backup `id`. [`ErrorKind::Usage`] when another run writes or deletes it, [`ErrorKind::Target`] and
    /// [`ErrorKind::AccessDenied`] where the store may not be written.
    pub(in crate::writer) fn begin(store_root: &Path, id: &BackupId, hook: Option<Hook>) -> Result<Self> {
        let disk = Disk::with(hook);
        let store = StoreRoot::open(store_root)?;
        hidden::remove_dead(&store, &disk)?;
        let mut hidden = Hidden::create(&store, &disk, id)?;
        let made = disk
            .make_folder(hidden.folder(), PARTS, 0o700)
            .and_then(|()| open_folder(hidden.folder(), PARTS))
            .and_then(|parts| disk.sync_folder(store.root(), hidden.name()).map(|()| parts));
        match made {
            Ok(parts) => {
                let parts = Arc::new(Parts::new(disk.clone(), parts));
                Ok(Self { store, disk, hidden, parts })
            }
            Err(errno) => {
                remove(&mut hidden, &store, &disk);
                Err(failed(format!("cannot make a folder in the store {:?}", store.location()), errno))
            }
        }
    }

    /// A new file, which nobody sees.
    pub(in crate::writer) fn create_file(&self, name: FileName) -> Result<StagedFile> {
        self.parts.create(name)
    }

    /// Makes a file durable.
    pub(in crate::writer) fn complete(&self, file: StagedFile) -> Result<Ready> {
        file.complete().map(Ready)
    }

    /// Gives the file this name, in the place of what has it. Owner and permissions are those of the file it replaces, or of `like`
    /// beside it where there is none.
    pub(in crate::writer) fn replace(
        &self,
        ready: &Ready,
        name: &ObjectName,
        like: &ObjectName,
    ) -> Result<()> {
        let failed = |errno| failed(format!("cannot replace {name:?}"), errno);
        let (folder, file) = split(name);
        let folder = self.store.open_folder(folder).map_err(failed)?;
        let old = look_at(&folder, file).map_err(failed)?;
        if old.as_ref().is_some_and(is_folder) {
            return Err(Error::new(ErrorKind::Target, format!("cannot replace {name:?}: it is a folder")));
        }
        let model = match old {
            Some(stat) => Some(stat),
            None => look_at(&folder, split(like).1).map_err(failed)?,
        };
        if let Some(stat) = model {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(self.parts.folder(), ready.0.as_str(), flags, Mode::empty())
                .and_then(|part| self.disk.set_mode(part, file, stat.st_mode & 0o777))
                .map_err(failed)?;
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            // Who is not root keeps what he writes.
            if let Err(errno) =
                rustix::fs::chownat(self.parts.folder(), ready.0.as_str(), Some(uid), Some(gid), flags)
            {
                tracing::debug!(?name, %errno, "the new file does not get the owner of the old one");
            }
        }
        self.disk.replace_file(self.parts.folder(), &ready.0, &folder, file).map_err(failed)?;
        self.disk.sync_folder(&folder, file).map_err(failed)
    }
}

impl Drop for Replacing {
    fn drop(&mut self) {
        remove(&mut self.hidden, &self.store, &self.disk);
    }
}

/// The folder, `.` for the root, and the name in it.
fn split(name: &ObjectName) -> (&str, &str) {
    name.as_str().rsplit_once('/').unwrap_or((".", name.as_str()))
}
