//! Where repaired files go: into a folder, by a rename, or into an object store, by one request. As one.

use crate::error::Result;
use crate::store::objects::Content;
use crate::types::{BackupId, ObjectName};
use crate::writer::destination::{FinishedFile, NewFile, Target};
use crate::writer::staging::replace::{Ready as ReadyFile, Replacing};
use crate::writer::staging::{FileName, Hook, StagedFile};
use crate::writer::upload::replacing::ObjectReplacing;

/// Room for new files of one backup, in which this run is alone. Dropped, it leaves nothing.
pub(super) enum Place<'a> {
    Folder(Replacing),
    Objects(ObjectReplacing<'a>),
}

/// A new file, which nobody sees.
pub(super) enum File {
    Staged(StagedFile),
    Spooled(Box<dyn NewFile>),
}

/// A file that is complete and has no name yet.
pub(super) enum Ready {
    File(ReadyFile),
    Object(Content),
}

impl<'a> Place<'a> {
    /// For the backup `id`, whose document this is. [`ErrorKind::Usage`](crate::ErrorKind::Usage) when another run writes, repairs or
    /// deletes it.
    pub(super) fn begin(
        target: Target<'_>,
        id: &BackupId,
        metadata_name: &ObjectName,
        stop: &'a (dyn Fn() -> bool + Sync),
        hook: Option<Hook>,
    ) -> Result<Self> {
        Ok(match target {
            Target::Folder(root) => Self::Folder(Replacing::begin(root, id, hook)?),
            Target::Objects { store, .. } => {
                Self::Objects(ObjectReplacing::begin(store, id, metadata_name, stop)?)
            }
        })
    }

    pub(super) fn create_file(&self, name: FileName) -> Result<File> {
        Ok(match self {
            Self::Folder(replacing) => File::Staged(replacing.create_file(name)?),
            Self::Objects(replacing) => File::Spooled(replacing.create_file(name)?),
        })
    }

    /// Makes a file ready to take its place. [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) when it is too long for the store.
    pub(super) fn complete(&self, file: File) -> Result<Ready> {
        Ok(match (self, file) {
            (Self::Folder(replacing), File::Staged(file)) => Ready::File(replacing.complete(file)?),
            (Self::Objects(replacing), File::Spooled(file)) => match file.finish()? {
                FinishedFile::Held(content) => Ready::Object(replacing.checked(content)?),
                FinishedFile::Staged(_) => return Err(foreign()),
            },
            _ => return Err(foreign()),
        })
    }

    /// Gives the file this name, in the place of what has it. In a folder it looks like what it replaces, or like `like` beside it.
    pub(super) fn replace(&self, ready: &Ready, name: &ObjectName, like: &ObjectName) -> Result<()> {
        match (self, ready) {
            (Self::Folder(replacing), Ready::File(ready)) => replacing.replace(ready, name, like),
            (Self::Objects(replacing), Ready::Object(content)) => replacing.replace(content, name),
            _ => Err(foreign()),
        }
    }
}

impl File {
    pub(super) fn bytes(&self) -> &dyn NewFile {
        match self {
            Self::Staged(file) => file,
            Self::Spooled(file) => &**file,
        }
    }
}

fn foreign() -> crate::Error {
    crate::Error::new(crate::ErrorKind::Target, "a bug gave a file to another store than it was made for")
}
