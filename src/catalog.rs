//! Which backups a store holds, and which are unusable and why.
//! (interface draft)

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::store::{ObjectStat, Store};
use crate::types::{BackupId, ObjectName, VolumeId};

/// Settings of a [`Catalog`].
#[derive(Clone, Debug)]
pub struct CatalogOptions {
    /// Bound on the block cache, in bytes.
    pub cache_bytes_max: u64,
}

/// A backup of the store as its metadata tells it, usable or not.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Unique in a [`Snapshot`].
    pub id: BackupId,
    /// `None` when the metadata could not be read.
    pub volume_id: Option<VolumeId>,
    /// `None` for a full backup.
    pub parent_id: Option<BackupId>,
    /// When the backup was made; `None` when the metadata says `None` or nothing.
    pub created_at: Option<jiff::Timestamp>,
    /// `backup_name`.
    pub name: Option<String>,
    /// `backup_description`.
    pub description: Option<String>,
    /// The volume's display name, from `volume_meta`.
    pub volume_name: Option<String>,
    /// The volume's size in GiB, from `volume_meta`.
    pub volume_size_gib: Option<u64>,
    /// The container, relative to the store's root; empty for the root itself.
    pub container: String,
    /// Begins every object's name, relative to the container.
    pub prefix: String,
    /// How many data objects it has.
    pub object_count: u64,
    /// The `_metadata` object.
    pub metadata_name: ObjectName,
    /// What the store says about the `_metadata` object.
    pub metadata_stat: ObjectStat,
    /// Why it cannot be used, found without opening its objects: torn JSON, unknown version, missing parent, cycle, ….
    pub problem: Option<Error>,
}

/// The backups of a store at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {}

impl Snapshot {
    /// All backups, ordered by creation time, then id.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        [].iter()
    }

    /// The backup of this id.
    pub fn get(&self, _id: &str) -> Option<&Arc<Entry>> {
        None
    }
}

/// The backups of one store, kept up to date, and their images.
pub struct Catalog {}

impl Catalog {
    /// A catalog of `store`; scans it once.
    pub fn open(_store: Arc<dyn Store>, _options: CatalogOptions) -> Result<Self> {
        Ok(Self {})
    }

    /// Scans the store again when the last scan is older than a moment, and returns the current state.
    pub fn refresh(&self) -> Result<Arc<Snapshot>> {
        Ok(Arc::default())
    }

    /// The state at the last scan.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::default()
    }

    /// The image of a backup; the error says why it has none. Opened images are shared and kept for a while.
    pub fn image(&self, _entry: &Arc<Entry>) -> Result<Arc<Image>> {
        Ok(Arc::new(Image {}))
    }
}

/// The store that a STORE argument names.
pub fn open_store(_location: &Path) -> Result<Arc<dyn Store>> {
    Err(Error::new(crate::error::ErrorKind::Usage, "draft"))
}
