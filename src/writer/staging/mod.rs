//! Nothing of a backup is visible until all of it is there.
//!
//! Problem: writing a backup takes hours, and may end at any moment: killed, cancelled, disk full. Cinder writes in place,
//! so it leaves objects without metadata, or a torn document; and in a container that backups share, whoever wrote them is
//! hard to tell. Idea: a backup is written into a hidden folder of the store's root, `.cinderfs-<backup id>`, which no
//! lister of Cinder or of ours enters. When all files are there and durable, they get their names: by one rename of a
//! folder, or file by file, the metadata last ([`publish`](Staging::publish)). The next run finds what a killed one left
//! by its free lock, and removes it.
//!
//! ```text
//! Staging::begin(store, id, container, prefix)   removes what dead runs left; refuses what exists
//!   .create_file(FileName::Object(1))            a StagedFile: append, write_at, read_at, finish; any number at once
//!   .publish()                                   all or nothing
//! drop                                           nothing
//! ```
//!
//! Invariants:
//! - A name that begins with the prefix is in the store's sight only while the backup is published, and the name of the metadata
//!   document only when everything else is there and durable.
//! - No name that exists is ever replaced, and only files that this run, or a dead one, made are removed: a dead run's
//!   lock is free, and its files have the numbers in its journal.
//! - No path leads out of the store: a container's folder is opened beneath its root, all else by single names of which
//!   no link is followed.
//! - Whatever fails, the backup is either published and durable, or nothing of it is visible. The exception is a store that
//!   also fails while files are taken back: the error tells so, and the next run takes them back.

mod disk;
mod file;
mod hidden;
mod journal;
mod publish;
pub(in crate::writer) mod removal;
pub(in crate::writer) mod replace;
mod store;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use self::disk::Disk;
pub use self::disk::{Hook, Step};
use self::disk::{failed, open_folder};
use self::file::Parts;
pub use self::file::{FinishedFile, StagedFile};
use self::hidden::{Hidden, PARTS};
use self::publish::{Failure, Publication};
use self::store::{StoreRoot, check_clash, check_container, check_prefix};
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::{METADATA_SUFFIX, SHA256FILE_SUFFIX};
use crate::format::write;
use crate::types::{BackupId, ObjectName};

/// A file of a backup, in the order in which they get their names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum FileName {
    /// A data object, numbered from 1.
    Object(u64),
    /// `_sha256file`.
    Digests,
    /// `_metadata`.
    Metadata,
}

impl FileName {
    /// The file's whole name, relative to its container.
    pub fn with(self, prefix: &str) -> String {
        match self {
            Self::Object(number) => write::object_name(prefix, number),
            Self::Digests => write::sha256file_name(prefix),
            Self::Metadata => write::metadata_name(prefix),
        }
    }

    /// What it is, without a number: that of an object may not be its final one, and whoever knows which it is says so.
    fn kind(self) -> &'static str {
        match self {
            Self::Object(_) => "an object",
            Self::Digests => "the digest file",
            Self::Metadata => "the metadata document",
        }
    }

    fn suffix(self) -> String {
        self.with("")
    }

    fn of_suffix(suffix: &str) -> Option<Self> {
        let number = || suffix.strip_prefix('-')?.parse().ok().filter(|&number| number > 0);
        let name = match suffix {
            SHA256FILE_SUFFIX => Self::Digests,
            METADATA_SUFFIX => Self::Metadata,
            _ => Self::Object(number()?),
        };
        (name.suffix() == suffix).then_some(name)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(number) => write!(f, "object {number}"),
            Self::Digests | Self::Metadata => f.write_str(self.kind()),
        }
    }
}

/// A backup that is being written, and nobody sees. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Staging {
    store: StoreRoot,
    disk: Disk,
    hidden: Hidden,
    parts: Arc<Parts>,
    container: ObjectName,
    prefix: String,
    id: BackupId,
    /// The hidden folder holds what the next run needs.
    is_left: bool,
}

impl Staging {
    /// Begins to write the backup `id` into `container` of the store in the directory `store_root`, with names that begin
    /// with `prefix`. What dead runs left in the store is removed first; what cannot be is told to the log.
    ///
    /// [`ErrorKind::Usage`] when the container holds the backup or files that begin with the prefix, when a living run
    /// writes it, or when prefix or container cannot be ones (a container may be nested, and may exist);
    /// [`ErrorKind::UnsafeName`] when it leads out of the store; [`ErrorKind::StoreNotFound`], [`ErrorKind::AccessDenied`];
    /// [`ErrorKind::Target`] when the store is read-only or full. Whether another container holds the same backup is for
    /// whoever has a catalog to say.
    pub fn begin(store_root: &Path, id: &BackupId, container: &ObjectName, prefix: &str) -> Result<Self> {
        Self::begin_with(store_root, id, container, prefix, None)
    }

    /// As [`Staging::begin`], with a hook that is told each step. For tests.
    pub fn begin_with(
        store_root: &Path,
        id: &BackupId,
        container: &ObjectName,
        prefix: &str,
        hook: Option<Hook>,
    ) -> Result<Self> {
        check_container(container)?;
        check_prefix(prefix)?;
        let disk = Disk::with(hook);
        let store = StoreRoot::open(store_root)?;
        hidden::remove_dead(&store, &disk)?;
        let (depth, nearest) = store.nearest(container)?;
        if depth == container.as_str().split('/').count() {
            check_clash(&nearest, container, prefix, id)?;
        }
        let device = |folder| rustix::fs::fstat(folder).map(|stat| stat.st_dev);
        let look_failed = |errno| failed(format!("cannot look at container {container:?}"), errno);
        if device(&nearest).map_err(look_failed)? != device(store.root()).map_err(look_failed)? {
            let message =
                format!("container {container:?} lies on another file system than the store's root");
            return Err(Error::new(ErrorKind::Target, message));
        }
        let mut hidden = Hidden::create(&store, &disk, id)?;
        let made = disk
            .make_folder(hidden.folder(), PARTS, 0o700)
            .and_then(|()| open_folder(hidden.folder(), PARTS))
            .and_then(|parts| disk.sync_folder(store.root(), hidden.name()).map(|()| parts));
        let parts = match made {
            Ok(parts) => parts,
            Err(errno) => {
                remove(&mut hidden, &store, &disk);
                let what = format!("cannot make a folder in the store {:?}", store.location());
                return Err(failed(what, errno));
            }
        };
        let parts = Arc::new(Parts::new(disk.clone(), parts));
        let (container, prefix, id) = (container.clone(), prefix.to_owned(), id.clone());
        Ok(Self { store, disk, hidden, parts, container, prefix, id, is_left: false })
    }

    /// A new file of the backup; from any thread, in any order, several at once. One that was dropped unfinished may be
    /// created again, also while the first is still there to be read.
    pub fn create_file(&self, name: FileName) -> Result<StagedFile> {
        self.parts.create(name)
    }

    /// One more file of the backup, with the bytes of one that is finished: one file with several names in the store. `false`
    /// where the file system has no such, or the file has as many as it may have; then the bytes must be written once more.
    pub fn link_file(&self, name: FileName, file: &FinishedFile) -> Result<bool> {
        self.parts.link(name, file)
    }

    /// What every file's name begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where the files will be.
    pub fn container(&self) -> &ObjectName {
        &self.container
    }

    /// Numbers the finished objects anew from 1 without a gap, in the order of the numbers that they were made with. For a
    /// writer that knows an object's place in the volume before it knows how many come before it. No object may be
    /// unfinished: [`ErrorKind::Usage`] otherwise.
    pub fn renumber_objects(&self) -> Result<()> {
        self.parts.renumber_objects()
    }

    /// Makes the backup visible; the name of its metadata document. Objects must be numbered from 1 without a gap, digests
    /// and metadata be there, and no file be unfinished: [`ErrorKind::Usage`] otherwise.
    ///
    /// After an error nothing of the backup is visible. Errors are those of [`begin`](Self::begin) and of writing.
    pub fn publish(mut self) -> Result<ObjectName> {
        let files = self.parts.settle()?;
        let publication = Publication {
            store: &self.store,
            disk: &self.disk,
            hidden: &self.hidden,
            parts: self.parts.folder(),
            container: &self.container,
            prefix: &self.prefix,
            id: &self.id,
            files: &files,
        };
        let name = self.container.join(&FileName::Metadata.with(&self.prefix))?;
        match publication.run() {
            Ok(()) => Ok(name),
            Err(Failure { error, is_left }) => {
                self.is_left = is_left;
                Err(error)
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.is_left {
            remove(&mut self.hidden, &self.store, &self.disk);
        }
    }
}

/// Removes the hidden folder, or leaves that to the next run.
fn remove(hidden: &mut Hidden, store: &StoreRoot, disk: &Disk) {
    if let Err(errno) = hidden.remove(store, disk) {
        tracing::warn!(folder = hidden.name(), %errno, "the hidden folder stays until the next run");
    }
}

/// Removes what dead runs left in the store, and takes back what they had half published; how many they were. A living
/// run's folder is not touched. What cannot be removed is told to the log.
pub fn remove_leftovers(store_root: &Path) -> Result<u64> {
    let store = StoreRoot::open(store_root)?;
    hidden::remove_dead(&store, &Disk::default())
}
