//! One new backup of a source: what it builds on, what it is called, its pipeline, its publishing.
//!
//! Problem: a backup must be one that genuine Cinder restores and chains onto, so what Cinder refuses is refused here as
//! well, before anything is read; and what would make Cinder fail half-way (more blocks than the parent has) too. Idea:
//! everything that can be known before is checked first; then the volume is read once; then the backup is published.
//!
//! Invariant: whatever fails, nothing of the backup is visible, and the source and all other backups are as they were.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::{Timestamp, ToSpan};

use super::destination::Target;
use super::encode::Encoder;
use super::files::{Files, Written};
pub use super::pipeline::Progress;
use super::source::Source;
use super::source::changed::Changed;
use crate::backup::{Backup, BlockHashTable, DigestFile};
use crate::catalog::{Catalog, Entry, Snapshot};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::metadata::OBJECTS_MAX;
use crate::format::sha256file::BLOCK_BYTES_MAX;
use crate::format::write::{MetadataHead, VolumeMeta, created_at_text};
use crate::types::{BackupId, ObjectName, VolumeId};

/// Plain bytes of an object unless told. Cinder holds an object several times over when it restores: some 0.3 GB with
/// this, where its own default of 2 GB takes 4.9 GB; and what a reader must decode at most without restart points is half
/// a second of zlib.
pub const OBJECT_BYTES: u64 = 128 << 20;

/// Bytes of a block unless told, as Cinder has it.
pub const BLOCK_BYTES: u64 = 32 << 10;

/// Smallest block, in bytes: a sector. Its digest takes 72 bytes of the digest file.
pub(super) const BLOCK_BYTES_MIN: u64 = 512;

const GIB: u64 = 1 << 30;

/// What a new backup builds on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Base {
    /// Nothing: a full backup.
    Nothing,
    /// The newest usable backup of the volume.
    Newest,
    /// This backup.
    Backup(BackupId),
}

/// What a new backup is to be.
#[derive(Clone, Debug)]
pub struct NewBackup {
    /// What it builds on.
    pub base: Base,
    /// The volume's id. That of the parent, if there is one, must be the same.
    pub volume_id: VolumeId,
    /// The volume's display name; the parent's unless told.
    pub volume_name: Option<String>,
    /// The volume's own metadata.
    pub properties: Vec<(String, String)>,
    /// The backup's name.
    pub name: Option<String>,
    /// The backup's description.
    pub description: Option<String>,
    /// Where it is put; a container of its own unless told.
    pub container: Option<ObjectName>,
    /// How objects are compressed.
    pub codec: Codec,
    /// The codec's level; Cinder's unless told.
    pub level: Option<i32>,
    /// Plain bytes of an object; unless told, [`OBJECT_BYTES`] or somewhat less; in an object store 52,428,800, as Cinder has it.
    pub object_bytes: Option<u64>,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Whether a parent's blocks go before [`block_bytes`](Self::block_bytes), which then is for a full backup.
    pub adopts_blocks: bool,
    /// Where the source may differ from the parent, if somebody else knows; all else is taken from the parent unread.
    pub changed: Option<Changed>,
    /// Whether to read all the same, and to see whether what `changed` tells is right.
    pub paranoid: bool,
    /// Threads that work at it; fewer where they would take too much memory.
    pub threads: usize,
}

impl NewBackup {
    /// A full backup with the usual settings.
    pub fn full(volume_id: VolumeId) -> Self {
        Self {
            base: Base::Nothing,
            volume_id,
            volume_name: None,
            properties: Vec::new(),
            name: None,
            description: None,
            container: None,
            codec: Codec::Zlib,
            level: None,
            object_bytes: None,
            block_bytes: BLOCK_BYTES,
            adopts_blocks: false,
            changed: None,
            paranoid: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// The size of its objects and blocks in bytes, checked: [`ErrorKind::Usage`] when a volume of that length can have no
    /// such ones.
    pub(super) fn sizes(&self, target: Target<'_>, block_bytes: u64, len_bytes: u64) -> Result<(u64, u64)> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Usage, message));
        if !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
            return refuse(format!(
                "the block size is {block_bytes} bytes, expected {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}"
            ));
        }
        let (usual_bytes, bytes_max) = target.object_bytes();
        let object_bytes = self.object_bytes.unwrap_or(usual_bytes - usual_bytes % block_bytes);
        if object_bytes == 0 || !object_bytes.is_multiple_of(block_bytes) || object_bytes > bytes_max {
            return refuse(format!(
                "the object size is {object_bytes} bytes, expected a multiple of the block size of {block_bytes}, at most {bytes_max}"
            ));
        }
        target.check_digests(block_bytes, len_bytes)?;
        let windows = len_bytes.div_ceil(object_bytes);
        if windows > OBJECTS_MAX {
            return refuse(format!(
                "objects of {object_bytes} bytes would be {windows}, at most {OBJECTS_MAX} can be read again"
            ));
        }
        Ok((object_bytes, block_bytes))
    }
}

/// A backup that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Created {
    /// Its id.
    pub id: BackupId,
    /// Its parent's.
    pub parent_id: Option<BackupId>,
    /// The volume's.
    pub volume_id: VolumeId,
    /// When it was made, as its metadata has it.
    pub created_at: Timestamp,
    /// Where its metadata document is.
    pub metadata_name: ObjectName,
    /// What was read and stored.
    pub progress: Progress,
    /// How many objects it has.
    pub objects: u64,
}

/// Makes a backup of `source` in the store that is `target`, of which `catalog` is the catalog. `now` is the
/// time; `cancel` ends it with [`ErrorKind::Interrupted`]; `on_progress` is called often, from several threads.
///
/// Fails with [`ErrorKind::Usage`] for what Cinder refuses too, [`ErrorKind::BackupNotFound`] without a parent to build
/// on, [`ErrorKind::Source`] when the source cannot be read or shrinks, and as the store does.
pub fn create<'t>(
    target: impl Into<Target<'t>>,
    catalog: &Catalog,
    source: &dyn Source,
    new: &NewBackup,
    now: Timestamp,
    cancel: &AtomicBool,
    on_progress: &(dyn Fn(&Progress) + Sync),
) -> Result<Created> {
    if new.changed.is_some() && new.base == Base::Nothing {
        let message =
            "what changed since a backup says nothing to a full one: give --incremental or --parent";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let (target, len_bytes) = (target.into(), source.len_bytes());
    if !new.adopts_blocks {
        new.sizes(target, new.block_bytes, len_bytes)?; // a wrong call is one whatever the store holds
    }
    let snapshot = catalog.refresh()?;
    let parent = find_parent(catalog, &snapshot, new)?;
    let digests =
        parent.as_ref().map(|parent| parent_digests(catalog, parent, new, len_bytes)).transpose()?;
    // The parent's, where there is one; `parent_digests` refuses what differs.
    let block_bytes = digests.as_ref().map_or(new.block_bytes, BlockHashTable::block_bytes);
    let (object_bytes, block_bytes) = new.sizes(target, block_bytes, len_bytes)?;

    let id = new_id()?;
    let created_at = creation_time(&snapshot, &new.volume_id, now)?;
    let volume_name = new.volume_name.clone().or_else(|| parent.as_ref()?.volume_name.clone());
    let mut volume = VolumeMeta::new(&new.volume_id, len_bytes.div_ceil(GIB), volume_name, created_at);
    volume.properties.clone_from(&new.properties);
    let head = MetadataHead {
        description: new.description.clone(),
        backup_id: id.to_string(),
        name: new.name.clone(),
        created_at: created_at_text(created_at),
        parent_id: parent.as_ref().map(|parent| parent.id.to_string()),
        volume_id: new.volume_id.to_string(),
        volume_meta: Some(volume.to_text()),
    };
    let encoder = Encoder::new(new.codec, new.level)?;
    let files = Files {
        id: &id,
        volume_id: &new.volume_id,
        created_at,
        container: new.container.as_ref(),
        head: &head,
        source,
        encoder: &encoder,
        parent: digests.as_ref(),
        changed: new.changed.as_ref(),
        paranoid: new.paranoid,
        object_bytes,
        block_bytes,
        threads: new.threads,
        cancel,
        on_progress,
    };
    let Written { metadata_name, progress, objects } = files.write(target, || {
        let Some(parent) = &parent else { return Ok(()) };
        // A backup without its parent is worth nothing; it may have been deleted in the hours since.
        let message = || format!("the parent backup {} is gone", parent.id);
        catalog.store().open(&parent.metadata_name).map(drop).context(message)
    })?;
    let parent_id = parent.map(|parent| parent.id.clone());
    Ok(Created {
        id,
        parent_id,
        volume_id: new.volume_id.clone(),
        created_at,
        metadata_name,
        progress,
        objects,
    })
}

fn find_parent(catalog: &Catalog, snapshot: &Snapshot, new: &NewBackup) -> Result<Option<Arc<Entry>>> {
    let volume = &new.volume_id;
    match &new.base {
        Base::Nothing => Ok(None),
        Base::Newest => {
            let ours = || snapshot.entries().rev().filter(|entry| entry.volume_id.as_ref() == Some(volume));
            let usable = |entry: &&Arc<Entry>| entry.problem.is_none() && catalog.image(entry).is_ok();
            if let Some(entry) = ours().find(usable) {
                return Ok(Some(entry.clone()));
            }
            let message = match ours().count() {
                0 => format!("volume {volume} has no backup in this store to build on: make a full backup"),
                count => {
                    format!("none of the {count} backups of volume {volume} is usable: make a full backup")
                }
            };
            Err(Error::new(ErrorKind::BackupNotFound, message))
        }
        Base::Backup(id) => {
            let Some(entry) = snapshot.get(id.as_str()) else {
                let message = format!("the parent backup {id} is not in the store");
                return Err(Error::new(ErrorKind::BackupNotFound, message));
            };
            catalog.image(entry).context(|| format!("backup {id} cannot be built on"))?;
            match &entry.volume_id {
                Some(other) if other != volume => {
                    let message = format!("the parent backup {id} is of volume {other}, not of {volume}");
                    Err(Error::new(ErrorKind::Usage, message))
                }
                _ => Ok(Some(entry.clone())),
            }
        }
    }
}

/// The parent's digests, if a backup with these measures can be built on them; Cinder refuses the same.
fn parent_digests(
    catalog: &Catalog,
    parent: &Entry,
    new: &NewBackup,
    len_bytes: u64,
) -> Result<BlockHashTable> {
    let id = &parent.id;
    let refuse = |why: String| Error::new(ErrorKind::Usage, format!("backup {id} cannot be built on: {why}"));
    let store = &**catalog.store();
    let table = match Backup::open(store, &parent.metadata_name)?.digests(store)? {
        DigestFile::Usable(table) => table,
        DigestFile::Missing => {
            return Err(refuse("its digest file is missing; make a full backup".to_owned()));
        }
        DigestFile::Torn(error) => {
            return Err(refuse(format!("its digest file is damaged ({error}); make a full backup")));
        }
    };
    let block_bytes = table.block_bytes();
    if !new.adopts_blocks && block_bytes != new.block_bytes {
        return Err(refuse(format!(
            "its hash block size is {block_bytes} bytes, here it is {}; give --block-size {block_bytes} or none, or make a full backup",
            new.block_bytes
        )));
    }
    let size_gib = len_bytes.div_ceil(GIB);
    if let Some(theirs) = parent.volume_size_gib.filter(|&theirs| size_gib > theirs) {
        return Err(refuse(format!(
            "the volume has grown from {theirs} to {size_gib} GiB since; make a full backup"
        )));
    }
    let count = len_bytes.div_ceil(block_bytes);
    if count > table.count() {
        return Err(refuse(format!(
            "the volume has grown from {} to {count} blocks since; make a full backup",
            table.count()
        )));
    }
    Ok(table)
}

/// Now, in whole seconds as Cinder's database has it; but later than every backup of the volume, so that the newest is the
/// one that was made last, also after the clock was set back or within a second.
fn creation_time(snapshot: &Snapshot, volume: &VolumeId, now: Timestamp) -> Result<Timestamp> {
    let beyond =
        |error| Error::caused_by(ErrorKind::Usage, "no time comes after that of the newest backup", error);
    let now = Timestamp::from_second(now.as_second()).map_err(beyond)?;
    let ours = snapshot.entries().filter(|entry| entry.volume_id.as_ref() == Some(volume));
    let Some(newest) = ours.filter_map(|entry| entry.created_at).max() else { return Ok(now) };
    if now > newest {
        return Ok(now);
    }
    let next = Timestamp::from_second(newest.as_second())
        .and_then(|time| time.checked_add(1.second()))
        .map_err(beyond)?;
    if next.as_second() - now.as_second() > 60 {
        tracing::warn!(
            "the newest backup of volume {volume} is of {newest}, later than now; this one gets {next}"
        );
    }
    Ok(next)
}

/// A random UUID, version 4: unlike the parent's, and unlike what any other machine makes.
pub(super) fn new_id() -> Result<BackupId> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::caused_by(ErrorKind::Target, "the system gives no random numbers", error))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    BackupId::parse(&parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_4() {
        let ids: Vec<_> = (0..64).map(|_| new_id().unwrap()).collect();
        for id in &ids {
            let parts: Vec<_> = id.as_str().split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{id}");
            assert!(parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']), "{id}");
        }
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
    }
}
