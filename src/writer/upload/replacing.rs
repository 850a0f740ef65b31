//! Objects of a backup that is there, put anew in the place of damaged ones.
//!
//! Idea: an object store does by itself what a folder takes a rename for: under its name stands the old object or the whole new one. What
//! is left to do is to be alone: a marker says who repairs, as it says who writes or deletes, and is looked at before each object.
//! New objects wait in files without a name, so that nothing is put in before all is ready.
//!
//! | cut short | what is left | the next run |
//! | --- | --- | --- |
//! | anywhere | each object old or new, and a marker | the marker goes |
//!
//! Invariants: nothing is taken out but this run's marker, and what dead runs' markers tell of; a marker of a repair names nothing that
//! anybody may remove, also when the backup's metadata is gone meanwhile.

use std::sync::Arc;

use super::crew::Crew;
use super::files::SpooledFile;
use super::marker::{self, Marker};
use super::other;
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::METADATA_SUFFIX;
use crate::store::objects::{Content, ObjectStore, Stop};
use crate::types::{BackupId, ObjectName};
use crate::writer::destination::NewFile;
use crate::writer::staging::FileName;

/// One backup whose objects may be replaced. Dropped, it takes out its marker.
pub(in crate::writer) struct ObjectReplacing<'a> {
    store: Arc<dyn ObjectStore>,
    marker: Marker,
    /// Sends nothing: it keeps the marker fresh.
    crew: Crew,
    stop: Stop<'a>,
}

impl<'a> ObjectReplacing<'a> {
    /// Begins to repair the backup `id`, whose document this is. What dead runs left beside it is removed first.
    ///
    /// [`ErrorKind::Usage`] when another run writes, repairs or deletes it; else as the store fails.
    pub(in crate::writer) fn begin(
        store: &Arc<dyn ObjectStore>,
        id: &BackupId,
        metadata_name: &ObjectName,
        stop: Stop<'a>,
    ) -> Result<Self> {
        let (container, _) = marker::parted(&**store, metadata_name.as_str());
        let marker = Marker::of_repair(container, id)?;
        if !marker::is_free(store, container, marker.name())? {
            return Err(Error::new(ErrorKind::Usage, marker.taken(id)));
        }
        marker.put(&**store, stop)?;
        let (again, beating) = (marker.clone(), store.clone());
        let beat = move |stop: Stop<'_>| again.put_again(&*beating, stop);
        let crew = Crew::start(store.clone(), Box::new(beat));
        let replacing = Self { store: store.clone(), marker, crew, stop };
        marker::remove_dead(store, container, Some(&replacing.marker), stop)?;
        // Another run may have put in its own meanwhile.
        replacing.marker.check(&**store)?;
        Ok(replacing)
    }

    /// A new file, which has no name and is gone with this run.
    pub(in crate::writer) fn create_file(&self, name: FileName) -> Result<Box<dyn NewFile>> {
        Ok(Box::new(SpooledFile::new(Arc::default(), name)?))
    }

    /// The content, unless it is too long for one object: [`ErrorKind::Unsupported`].
    pub(in crate::writer) fn checked(&self, content: Content) -> Result<Content> {
        let (len_bytes, bytes_max) = (content.len_bytes(), self.store.object_bytes_max());
        if len_bytes <= bytes_max {
            return Ok(content);
        }
        let message = format!("the new object would have {len_bytes} bytes, the store takes {bytes_max}");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    /// Puts an object in, in the place of what has its name, and looks whether it is there.
    ///
    /// [`ErrorKind::Target`] when another run took this one for dead; [`ErrorKind::StoreIo`] when the store then has another object;
    /// [`ErrorKind::Interrupted`], unless it is the document: broken off, that could come to life when the backup is deleted.
    pub(in crate::writer) fn replace(&self, content: &Content, name: &ObjectName) -> Result<()> {
        let never = || false;
        // Nothing is sent by it; this tells what it found when it put in the marker again.
        self.crew.settle(&never)?;
        self.marker.check(&*self.store)?;
        let stop: Stop<'_> = if name.as_str().ends_with(METADATA_SUFFIX) { &never } else { self.stop };
        let version = self.store.put(name, content, stop)?;
        if self.store.version_of(name)? == version { Ok(()) } else { Err(other(name)) }
    }
}

impl Drop for ObjectReplacing<'_> {
    fn drop(&mut self) {
        self.crew.end();
        match self.marker.is_there(&*self.store) {
            Ok(true) => self.marker.remove(&*self.store),
            Ok(false) => {} // another run's by now
            Err(error) => {
                tracing::warn!("the marker {:?} stays until the next run: {error}", self.marker.name());
            }
        }
    }
}
