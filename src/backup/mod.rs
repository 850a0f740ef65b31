//! One opened backup: its objects and its digests.
//!
//! Problem: a chain of 30 incrementals opens 30 documents of which the objects are needed and only the newest one's
//! digests; several images share the same parents. Idea: [`Backup`] holds the objects in a compact form and is shared by
//! all chains it is part of; [`BlockHashTable`] is opened for the tip of a chain only.
//!
//! Invariants: every object's name begins with the backup's own place in the store; offsets and lengths do not overflow.

mod digests;
mod packed;

pub use digests::BlockHashTable;

use std::sync::Arc;

use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::metadata::{self, BackupMetadata, METADATA_BYTES_MAX, ObjectRecord};
use crate::format::names::{Place, SHA256FILE_SUFFIX};
use crate::store::{ObjectSource, SourceReader, Store};
use crate::types::{BackupId, Md5, ObjectName, VolumeId};

/// What a `_metadata` document says, without its objects.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The document's other keys.
    pub metadata: BackupMetadata,
    /// Checked from `metadata`.
    pub id: BackupId,
    /// Checked from `metadata`.
    pub volume_id: VolumeId,
    /// Checked from `metadata`.
    pub parent_id: Option<BackupId>,
    /// Where the backup lies.
    pub place: Place,
    /// How many objects it lists.
    pub object_count: u64,
}

/// One data object of a [`Backup`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataObject {
    /// What its name adds to the backup's prefix.
    suffix: Box<str>,
    /// Where in the volume its plain bytes belong, in bytes.
    pub offset: u64,
    /// Plain length in bytes, as claimed.
    pub len_bytes: u64,
    /// Of the plain bytes, as claimed.
    pub md5: Option<Md5>,
    /// How it is compressed.
    pub codec: Codec,
}

/// An opened backup.
#[derive(Debug)]
pub struct Backup {
    /// What it is.
    pub summary: Summary,
    /// Its objects in the order of the metadata: where two overlap, the later one wins.
    pub objects: Vec<DataObject>,
}

impl Summary {
    /// Reads a `_metadata` document and counts its objects, checking each of them.
    ///
    /// `None` when `name` cannot be one by its form.
    pub fn read(name: &ObjectName, source: &dyn ObjectSource) -> Option<Result<Self>> {
        Place::of(name, None)?.ok()?;
        Some(read_document(name, source, &mut |_, _| Ok(())))
    }
}

impl Backup {
    /// Opens the backup whose `_metadata` document is `name`.
    pub fn open(store: &dyn Store, name: &ObjectName) -> Result<Self> {
        let source = store.open(name)?;
        let mut objects = Vec::new();
        let summary = read_document(name, &*source, &mut |suffix, object| {
            objects.push(DataObject {
                suffix: suffix.into(),
                offset: object.offset,
                len_bytes: object.len_bytes,
                md5: object.md5,
                codec: object.codec,
            });
            Ok(())
        })?;
        objects.shrink_to_fit();
        Ok(Self { summary, objects })
    }

    /// The store's name of an object of this backup.
    pub fn object_name(&self, object: &DataObject) -> Result<ObjectName> {
        self.summary.place.name(&object.suffix)
    }

    /// Opens the digests of the whole volume as of this backup. [`ErrorKind::ObjectNotFound`] when there are none.
    pub fn digests(&self, store: &dyn Store) -> Result<BlockHashTable> {
        let name = self.summary.place.name(SHA256FILE_SUFFIX)?;
        let source = store.open(&name)?;
        let table = BlockHashTable::open(source).context(|| format!("digest file {name:?}"))?;
        let agrees = |claim: &Option<String>, id: &str| claim.as_deref().is_none_or(|claimed| claimed == id);
        let header = table.header();
        if !agrees(&header.backup_id, self.summary.id.as_str())
            || !agrees(&header.volume_id, self.summary.volume_id.as_str())
        {
            return Err(Error::new(
                ErrorKind::Malformed,
                format!(
                    "digest file {name:?} is of backup {:?} of volume {:?}, expected backup {:?} of volume {:?}",
                    header.backup_id, header.volume_id, self.summary.id, self.summary.volume_id
                ),
            ));
        }
        Ok(table)
    }

    /// About how much memory this value holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.objects.len() * (size_of::<DataObject>() + 24) + 1024
    }
}

fn read_document(
    name: &ObjectName,
    source: &dyn ObjectSource,
    on_object: &mut dyn FnMut(&str, ObjectRecord) -> Result<()>,
) -> Result<Summary> {
    let stored = source.stat().len_bytes;
    if stored > METADATA_BYTES_MAX {
        let message = format!("the document has {stored} bytes, at most {METADATA_BYTES_MAX} are accepted");
        return Err(Error::new(ErrorKind::LimitExceeded, message));
    }
    let place_of = |first: Option<&str>| {
        let not_metadata =
            || Err(Error::new(ErrorKind::Malformed, format!("{name:?} does not name a backup's metadata")));
        Place::of(name, first).unwrap_or_else(not_metadata)
    };
    let mut place = None;
    let mut object_count = 0;
    let metadata = metadata::parse(SourceReader::new(source, 0), &mut |object| {
        if place.is_none() {
            place = Some(place_of(Some(&object.name))?);
        }
        object_count += 1;
        let suffix = match &place {
            Some(place) => place.object_suffix(&object.name)?.to_owned(),
            None => String::new(),
        };
        on_object(&suffix, object)
    })?;
    let place = match place {
        Some(place) => place,
        None => place_of(None)?,
    };
    Ok(Summary {
        id: BackupId::parse(&metadata.backup_id)?,
        volume_id: VolumeId::parse(&metadata.volume_id)?,
        parent_id: metadata.parent_id.as_deref().map(BackupId::parse).transpose()?,
        place,
        object_count,
        metadata,
    })
}

/// Makes the shared form of a backup.
pub fn open_shared(store: &Arc<dyn Store>, name: &ObjectName) -> Result<Arc<Backup>> {
    Backup::open(&**store, name).map(Arc::new).context(|| format!("backup metadata {name:?}"))
}
