//! A backup that is put into an object store, and seen when its last object is there.
//!
//! Problem: there is no hidden folder to write into and no rename; whatever is put in has its final name at once, and a run that is killed leaves
//! objects that nobody can tell from those of a backup that Cinder is just writing. Idea: Cinder's own order, the metadata last, without which
//! there is no backup; and a marker, `.cinderfs-<backup id>`, put in before all else and taken out behind it ([`marker`]). Objects
//! are sent by a [`crew`](crew::Crew) while the pipeline makes the next ones.
//!
//! ```text
//! Upload::begin(store, …)         the marker; what dead runs left goes
//!   .create_file(Object(place))   in memory ([`files`])
//!   .number_object(place, 1)      now its name is known, and it is sent; waits while too much is on its way
//!   .settle()                     all are there, then `_sha256file`; a listing tells the same versions as each answer did
//!   .publish()                    `_metadata`; the marker goes
//! drop                            metadata, digests, objects go, then the marker; all stays when nobody knows whether `_metadata` arrives yet
//! ```
//!
//! Invariants:
//! - every name that begins with the prefix is one that Cinder would have given, so a backup is restorable as soon as it is visible;
//! - `_metadata` is put in only after a listing has shown everything else, each in the version that was put in;
//! - nothing is removed but this run's objects and those that a dead run's marker tells of, and of the latter only while there is no
//!   metadata;
//! - memory: windows that are not numbered yet, [`HELD_BYTES_MAX`] or one, and what is being sent, [`crew::SENT_BYTES_MAX`] or one.

mod crew;
pub(in crate::writer) mod deletion;
mod files;
mod marker;
mod removal;
pub(in crate::writer) mod replacing;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use self::crew::{Crew, Job};
use self::files::{Files, HeldFile, SpooledFile};
use self::marker::Marker;
use super::destination::{Destination, FinishedFile, NewFile};
use super::staging::FileName;
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectVersion;
use crate::store::objects::{Content, ObjectStore};
use crate::types::{BackupId, ObjectName};

/// What objects may take that have no number yet, in bytes of the volume: three of the usual size. With what is being sent, and the
/// windows that are read, a run stays below 300 MiB, and below 400 MiB with very many threads.
const HELD_BYTES_MAX: u64 = 150 << 20;

/// How many windows may be ahead of the first without a number, however small they are.
const WINDOWS_AHEAD_MAX: u64 = 4096;

/// Plain bytes of an object unless told, as Cinder has it.
pub(super) const OBJECT_BYTES: u64 = 52_428_800;

/// Most plain bytes of an object. It is in memory until the store has it, twice for a moment where it does not shrink.
pub(super) const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// The container unless told, as Cinder has it.
const CONTAINER: &str = "volumebackups";

/// Objects that a listing does not show, and which are asked about one by one: listings of Swift may be behind.
const ASKED_MAX: usize = 1000;

/// A backup on its way. Dropped, it leaves nothing.
pub(super) struct Upload<'a> {
    store: Arc<dyn ObjectStore>,
    cancel: &'a AtomicBool,
    id: BackupId,
    /// What goes before Cinder's names in the store: nothing, or the container and a slash.
    folder: String,
    prefix: String,
    marker: Marker,
    files: Arc<Files>,
    crew: Crew,
    is_published: bool,
    /// The metadata may arrive yet, so nothing may go.
    is_unknown: bool,
}

impl<'a> Upload<'a> {
    /// Begins to write the backup `id` with names that begin with `prefix`. What dead runs left is removed first; what cannot be is told to
    /// the log.
    ///
    /// [`ErrorKind::Usage`] for a container where there can be none, or names that are taken; else as the store fails.
    pub(super) fn begin(
        store: &Arc<dyn ObjectStore>,
        id: &BackupId,
        container: Option<&ObjectName>,
        prefix: &str,
        cancel: &'a AtomicBool,
    ) -> Result<Self> {
        let folder = folder_of(&**store, container)?;
        let stop = || cancel.load(Ordering::Relaxed);
        let marker = Marker::new(&folder, prefix, id)?;
        match marker.put(&**store, &stop) {
            Err(error) if error.kind() == ErrorKind::StoreNotFound => {
                store.make_container(marker.name(), &stop)?;
                marker.put(&**store, &stop)?;
            }
            outcome => outcome?,
        }
        // Whatever begins with the prefix from here on is this run's.
        let check =
            store.list_below(&format!("{folder}{prefix}"), &stop).and_then(|taken| match taken.first() {
                None => Ok(()),
                Some(taken) => {
                    let message = format!("the store holds {:?}: names that begin so are taken", taken.name);
                    Err(Error::new(ErrorKind::Usage, message))
                }
            });
        if let Err(error) = check {
            marker.remove(&**store);
            return Err(error);
        }
        let (again, beating) = (marker.clone(), store.clone());
        let beat = move |stop: &(dyn Fn() -> bool + Sync)| again.put_again(&*beating, stop);
        let upload = Self {
            crew: Crew::start(store.clone(), Box::new(beat)),
            store: store.clone(),
            cancel,
            id: id.clone(),
            folder,
            prefix: prefix.to_owned(),
            marker,
            files: Arc::default(),
            is_published: false,
            is_unknown: false,
        };
        marker::remove_dead(store, &upload.folder, Some(&upload.marker), &stop)?;
        Ok(upload)
    }

    fn object(&self, name: FileName) -> Result<ObjectName> {
        ObjectName::parse(&format!("{}{}", self.folder, name.with(&self.prefix)))
    }

    fn stop(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    fn document(&self, name: FileName) -> Result<Content> {
        self.files.take(name).ok_or_else(|| Error::new(ErrorKind::Usage, format!("{name} was not written")))
    }

    /// Whether the store has these, in the versions that it told when they were put in, and nothing else beside them.
    fn check(&self, mut expected: HashMap<ObjectName, ObjectVersion>) -> Result<()> {
        let stop = || self.stop();
        for listed in self.store.list_below(&format!("{}{}", self.folder, self.prefix), &stop)? {
            match expected.remove(&listed.name) {
                Some(version) if version == listed.stat.version => {}
                Some(_) => return Err(other(&listed.name)),
                None => {
                    let message = format!("{:?} came into the store beside this backup", listed.name);
                    return Err(Error::new(ErrorKind::StoreIo, message));
                }
            }
        }
        if expected.len() > ASKED_MAX {
            let message = format!("{} objects of the backup are not in the store", expected.len());
            return Err(Error::new(ErrorKind::StoreIo, message));
        }
        for (name, version) in expected {
            if self.stop() {
                return Err(interrupted());
            }
            if self.store.version_of(&name)? != version {
                return Err(other(&name));
            }
        }
        Ok(())
    }
}

fn other(name: &ObjectName) -> Error {
    Error::new(ErrorKind::StoreIo, format!("object {name:?} is no longer the one that was put in"))
}

const UNKNOWN_MESSAGE: &str = "the backup may be complete or not, and stays until the next run sees which";

/// Whether the store has said that it did not take an object.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::AccessDenied | ErrorKind::StoreNotFound | ErrorKind::Target)
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "the backup was interrupted")
}

/// What goes before Cinder's names.
fn folder_of(store: &dyn ObjectStore, container: Option<&ObjectName>) -> Result<String> {
    let usage = |message: String| Err(Error::new(ErrorKind::Usage, message));
    match (store.has_containers(), container) {
        (true, None) => Ok(format!("{CONTAINER}/")),
        (true, Some(name)) if name.as_str().contains('/') => {
            usage(format!("container {name:?} is none of an object store: its name holds a '/'"))
        }
        (true, Some(name)) => Ok(format!("{name}/")),
        (false, None) => Ok(String::new()),
        (false, Some(name)) => {
            usage(format!("container {name:?} cannot be in {:?}, which is one itself", store.location()))
        }
    }
}

impl Destination for Upload<'_> {
    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn create_file(&self, name: FileName) -> Result<Box<dyn NewFile>> {
        Ok(match name {
            FileName::Object(_) => Box::new(HeldFile::new(self.files.clone(), name)),
            FileName::Digests | FileName::Metadata => Box::new(SpooledFile::new(self.files.clone(), name)?),
        })
    }

    fn link_file(&self, name: FileName, file: &FinishedFile) -> Result<Option<u64>> {
        let FinishedFile::Held(content) = file else { return Ok(None) };
        self.files.put(name, content.clone());
        Ok(Some(content.len_bytes()))
    }

    fn number_object(&self, name: FileName, number: u64) -> Result<()> {
        let content = self.document(name)?;
        let name = self.object(FileName::Object(number))?;
        self.crew.put(Job { name, content }, &|| self.stop())
    }

    fn windows_ahead_max(&self, object_bytes: u64) -> u64 {
        (HELD_BYTES_MAX / object_bytes.max(1)).clamp(1, WINDOWS_AHEAD_MAX)
    }

    fn settle(&self) -> Result<()> {
        let stop = || self.stop();
        let mut there = self.crew.settle(&stop)?;
        let digests = self.object(FileName::Digests)?;
        let version = self.store.put(&digests, &self.document(FileName::Digests)?, &stop)?;
        there.insert(digests, version);
        self.check(there)
    }

    fn publish(mut self: Box<Self>) -> Result<ObjectName> {
        // Whoever takes this run for dead puts his claim in the marker's place before he looks for the metadata: either we see that, or
        // he sees the metadata.
        self.marker.check(&*self.store)?;
        let name = self.object(FileName::Metadata)?;
        let document = self.document(FileName::Metadata)?;
        if self.stop() {
            return Err(interrupted());
        }
        // Not to be stopped: what is broken off may arrive when the objects are gone.
        if let Err(error) = self.store.put(&name, &document, &|| false) {
            self.is_unknown = !is_refusal(&error);
            return Err(if self.is_unknown { error.context(UNKNOWN_MESSAGE) } else { error });
        }
        self.marker.check(&*self.store)?;
        self.is_published = true;
        self.crew.end();
        self.marker.remove(&*self.store);
        Ok(name)
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        self.crew.end();
        if self.is_unknown {
            return;
        }
        let told = self.crew.told();
        if let Err(error) = removal::take_back(&self.store, &self.folder, &self.prefix, &told, &self.marker) {
            let id = &self.id;
            tracing::warn!("what was written of backup {id} stays until the next run: {error}");
        }
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
