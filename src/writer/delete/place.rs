//! Files taken out of a folder or out of an object store, as one.

use super::files;
use crate::error::Result;
use crate::types::BackupId;
use crate::writer::Target;
use crate::writer::staging::Hook;
use crate::writer::staging::removal::{Doomed, Found, Lock as FolderLock, Remover};
use crate::writer::upload::deletion::{Deletion, ObjectRemover};

/// A store to take backups out of.
pub(super) enum Place {
    Folder(Remover),
    Objects(ObjectRemover),
}

/// The lock on one backup's id. Objects know no locks: a marker says who deletes once it is begun.
pub(super) enum Lock<'a> {
    Folder(FolderLock<'a>),
    Objects(Deletion<'a>),
}

impl Place {
    pub(super) fn open(target: Target<'_>, hook: Option<Hook>) -> Result<Self> {
        Ok(match target {
            Target::Folder(root) => Self::Folder(Remover::open(root, hook)?),
            Target::Objects { store, .. } => Self::Objects(ObjectRemover::new(store.clone())),
        })
    }

    pub(super) fn clean_up(&self) -> Result<(Vec<BackupId>, u64)> {
        match self {
            Self::Folder(remover) => remover.clean_up(),
            Self::Objects(remover) => Ok((Vec::new(), remover.clean_up()?)),
        }
    }

    pub(super) fn lock(&self, id: &BackupId) -> Result<Lock<'_>> {
        Ok(match self {
            Self::Folder(remover) => Lock::Folder(remover.lock(id)?),
            Self::Objects(remover) => Lock::Objects(remover.deletion(id)),
        })
    }
}

impl files::Names for Place {
    fn names(&self, folder: &str, prefix: &str) -> Result<Vec<Found>> {
        match self {
            Self::Folder(remover) => remover.names(folder, prefix),
            Self::Objects(remover) => remover.names(folder, prefix),
        }
    }
}

impl Lock<'_> {
    pub(super) fn remove(&mut self, doomed: &Doomed<'_>) -> Result<()> {
        match self {
            Self::Folder(lock) => lock.remove(doomed),
            Self::Objects(deletion) => deletion.remove(doomed),
        }
    }
}
