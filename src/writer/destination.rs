//! Where the files of a new backup go.
//!
//! Problem: a file system has folders, locks and renames, and bytes may be written anywhere in a file; an object store has none of these, and an
//! object appears whole, under its final name. Idea: what the pipeline needs of either is little: a file that is written and read again, one
//! more object with the bytes of another, and an object's final number as soon as it is known.
//!
//! | | [`Staging`] | [`upload`] |
//! | --- | --- | --- |
//! | a file while it is written | in a hidden folder | an object in memory; the documents in a temporary file |
//! | an object's number | given to all at the end | needed before anything of it is sent: in the order of the volume |
//! | objects ahead of the first without a number | any | few, for they are in memory |
//! | one more object of the same zeros | a hard link | sent once more |
//! | published | renamed, the metadata last | the metadata is sent last |
//!
//! Invariant: whatever fails, nothing of the backup is visible.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::create;
use super::staging::{self, FileName, StagedFile, Staging};
use super::upload;
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::PLAIN_BYTES_MAX;
use crate::format::write::ENTRY_BYTES;
use crate::store::objects::{Content, ObjectStore};
use crate::types::ObjectName;

/// Where a backup is written to.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// A store in this directory.
    Folder(&'a Path),
    /// A store that objects are put into whole.
    Objects {
        /// It.
        store: &'a Arc<dyn ObjectStore>,
        /// The availability zone that Cinder's drivers put in the names; `nova` is their default.
        zone: &'a str,
    },
}

impl Target<'_> {
    /// The usual plain length of an object in bytes, and the longest.
    pub(super) fn object_bytes(self) -> (u64, u64) {
        match self {
            Self::Folder(_) => (create::OBJECT_BYTES, PLAIN_BYTES_MAX),
            Self::Objects { .. } => (upload::OBJECT_BYTES, upload::OBJECT_BYTES_MAX),
        }
    }

    /// [`ErrorKind::Usage`] when the digests of so long a volume would be too long for the store.
    pub(super) fn check_digests(self, block_bytes: u64, len_bytes: u64) -> Result<()> {
        let Self::Objects { store, .. } = self else { return Ok(()) };
        // What stands around them is short.
        let document_bytes = len_bytes.div_ceil(block_bytes).saturating_mul(ENTRY_BYTES);
        let bytes_max = store.object_bytes_max();
        if document_bytes < bytes_max - bytes_max / 1000 {
            return Ok(());
        }
        let message = format!(
            "the list of digests would have {document_bytes} bytes, the store takes {bytes_max}: give a larger block size"
        );
        Err(Error::new(ErrorKind::Usage, message))
    }
}

impl<'a> From<&'a Path> for Target<'a> {
    fn from(path: &'a Path) -> Self {
        Self::Folder(path)
    }
}

impl<'a> From<&'a PathBuf> for Target<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::Folder(path)
    }
}

impl<'a> From<&'a Arc<dyn ObjectStore>> for Target<'a> {
    fn from(store: &'a Arc<dyn ObjectStore>) -> Self {
        Self::Objects { store, zone: "nova" }
    }
}

/// What the files of one backup are written to; from all threads.
pub(super) trait Destination: Sync {
    /// What every object's name begins with, as the documents have it.
    fn prefix(&self) -> &str;

    /// A new file. One of an object is created under a number that rises with its place in the volume; one that was dropped
    /// unfinished may be created again, also while the first is still there to be read.
    fn create_file(&self, name: FileName) -> Result<Box<dyn NewFile>>;

    /// One more object with the bytes of one that is finished; the bytes that it takes. `None` where it must be written once more.
    fn link_file(&self, name: FileName, file: &FinishedFile) -> Result<Option<u64>>;

    /// An object that was finished under `name` is number `number`. They are told in order. May wait until there is room.
    fn number_object(&self, name: FileName, number: u64) -> Result<()>;

    /// How many windows of this many bytes may be begun behind the first of which an object has no number yet; 1 at least.
    fn windows_ahead_max(&self, object_bytes: u64) -> u64;

    /// All files are finished: waits until they are in the store, nothing but their names missing.
    fn settle(&self) -> Result<()>;

    /// Makes the backup visible; the name of its metadata document in the store.
    fn publish(self: Box<Self>) -> Result<ObjectName>;
}

/// A file that is being written. Dropped unfinished, it leaves nothing.
pub(super) trait NewFile: Send + Sync {
    /// Writes all `bytes` at `offset`, from any thread. What nobody wrote reads as zeros.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Reads back at `offset`; returns how many bytes were read, 0 only at or past the end (or for an empty `buf`).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// How long it is, in bytes.
    fn len_bytes(&self) -> u64;

    /// The file is complete.
    fn finish(self: Box<Self>) -> Result<FinishedFile>;

    /// Writes behind what there is.
    fn append(&self, bytes: &[u8]) -> Result<()> {
        self.write_at(bytes, self.len_bytes())
    }
}

/// A file that is complete and may get more names.
#[derive(Clone)]
pub(super) enum FinishedFile {
    Staged(staging::FinishedFile),
    Held(Content),
}

impl Destination for Staging {
    fn prefix(&self) -> &str {
        Staging::prefix(self)
    }

    fn create_file(&self, name: FileName) -> Result<Box<dyn NewFile>> {
        Ok(Box::new(Staging::create_file(self, name)?))
    }

    fn link_file(&self, name: FileName, file: &FinishedFile) -> Result<Option<u64>> {
        match file {
            FinishedFile::Staged(file) => Ok(Staging::link_file(self, name, file)?.then_some(0)),
            FinishedFile::Held(_) => Ok(None),
        }
    }

    fn number_object(&self, _: FileName, _: u64) -> Result<()> {
        Ok(())
    }

    /// Between windows with data lie many without, which take no time; and md5 of what has data keeps one core busy for each few windows.
    fn windows_ahead_max(&self, _: u64) -> u64 {
        4096
    }

    fn settle(&self) -> Result<()> {
        self.renumber_objects()
    }

    fn publish(self: Box<Self>) -> Result<ObjectName> {
        Staging::publish(*self)
    }
}

impl NewFile for StagedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        StagedFile::write_at(self, bytes, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        StagedFile::read_at(self, buf, offset)
    }

    fn len_bytes(&self) -> u64 {
        StagedFile::len_bytes(self)
    }

    fn finish(self: Box<Self>) -> Result<FinishedFile> {
        self.finish_to_link().map(FinishedFile::Staged)
    }
}
