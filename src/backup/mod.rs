//! One opened backup: its objects and its digests.
//!
//! Problem: a chain of 30 incrementals opens 30 documents of which the objects are needed and only the newest one's
//! digests; several images share the same parents. Idea: [`Backup`] holds the objects in a compact form and is shared by
//! all chains it is part of; [`BlockHashTable`] is opened for the tip of a chain only.
//!
//! Invariants: every object's name begins with the backup's own place in the store; offsets and lengths do not overflow.

mod ahead;
mod digests;
mod gathered;
mod kept;
mod packed;
mod pages;

pub use digests::BlockHashTable;
pub use pages::DigestPages;

use std::io::Read;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::metadata::{self, BackupMetadata, METADATA_BYTES_MAX, ObjectRecord};
use crate::format::names::{METADATA_SUFFIX, Place, SHA256FILE_SUFFIX};
use crate::store::{ListedObject, ObjectSource, ObjectStat, ObjectVersion, SourceReader, Store};
use crate::types::{BackupId, BlockHash, Md5, ObjectName, VolumeId};

/// Most text of restart points that one opened backup keeps, in bytes, all objects together: our writer tells at most two million
/// points, of some six bytes each. Objects beyond are read without.
const POINTS_BYTES_MAX: usize = 16 << 20;

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
    /// sha256 of the document: two with the same one are copies.
    pub fingerprint: BlockHash,
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
    /// Where a reader may begin in it, as [`points`](crate::format::points) writes it, unchecked. Nobody has looked at it yet.
    pub points: Option<Arc<str>>,
}

/// An opened backup.
#[derive(Debug)]
pub struct Backup {
    /// What it is.
    pub summary: Arc<Summary>,
    /// Its objects in the order of the metadata: where two overlap, the later one wins.
    pub objects: Vec<DataObject>,
    /// Of all their restart points' texts.
    points_bytes: usize,
    /// The version of the document that this was read from.
    pub version: ObjectVersion,
    /// What a listing has told of its digests.
    digests: Option<ObjectStat>,
}

/// What a backup has for digests.
pub enum DigestFile {
    /// One for each block.
    Usable(BlockHashTable),
    /// There is no such document; Cinder needs it only to make the next incremental.
    Missing,
    /// The document ends too early or is no JSON of Cinder's.
    Torn(Error),
}

impl Summary {
    /// Reads a `_metadata` document, checking each of its objects and keeping none.
    pub fn read(name: &ObjectName, source: &dyn ObjectSource) -> Result<Self> {
        read_document(name, source, &mut |_, _| Ok(()))
    }
}

impl Backup {
    /// Opens the backup whose `_metadata` document is `name`.
    pub fn open(store: &dyn Store, name: &ObjectName) -> Result<Self> {
        let opened = store.open(name).and_then(|source| Self::read(name, &*source));
        opened.context(|| format!("backup metadata {name:?}"))
    }

    /// Opens the backup whose `_metadata` document a listing has told of.
    pub fn open_listed(store: &dyn Store, listed: &ListedObject) -> Result<Self> {
        let opened = store.open_listed(listed).and_then(|source| Self::read(&listed.name, &*source));
        opened.context(|| format!("backup metadata {:?}", listed.name))
    }

    /// Reads a `_metadata` document whole.
    pub fn read(name: &ObjectName, source: &dyn ObjectSource) -> Result<Self> {
        let (mut objects, mut points_bytes) = (Vec::new(), 0);
        let summary = read_document(name, source, &mut |suffix, object| {
            let points = object.points.filter(|text| points_bytes + text.len() <= POINTS_BYTES_MAX);
            points_bytes += points.as_ref().map_or(0, String::len);
            objects.push(DataObject {
                suffix: suffix.into(),
                offset: object.offset,
                len_bytes: object.len_bytes,
                md5: object.md5,
                codec: object.codec,
                points: points.map(Arc::from),
            });
            Ok(())
        })?;
        objects.shrink_to_fit();
        if source.is_changed()? {
            return Err(Error::new(ErrorKind::StoreIo, "the document was overwritten while it was read"));
        }
        Ok(Self {
            summary: Arc::new(summary),
            objects,
            points_bytes,
            version: source.stat().version.clone(),
            digests: None,
        })
    }

    /// The same, knowing what a listing has told of its digests.
    pub(crate) fn with_digests(self, listed: Option<ObjectStat>) -> Self {
        Self { digests: listed, ..self }
    }

    /// The store's name of an object of this backup.
    pub fn object_name(&self, object: &DataObject) -> Result<ObjectName> {
        self.summary.place.name(&object.suffix)
    }

    /// The store's name of the document that this was read from.
    pub(crate) fn metadata_name(&self) -> Result<ObjectName> {
        self.summary.place.name(METADATA_SUFFIX)
    }

    /// The store's name of the digests of this backup.
    pub(crate) fn digest_name(&self) -> Result<ObjectName> {
        self.summary.place.name(SHA256FILE_SUFFIX)
    }

    /// Opens the digests of the whole volume as of this backup. An error when there are some that contradict this backup
    /// or cannot be served.
    pub fn digests(&self, store: &dyn Store) -> Result<DigestFile> {
        let name = self.digest_name()?;
        let listed = self.digests.clone().map(|stat| ListedObject { name: name.clone(), stat });
        let opened = listed.map(|listed| store.open_listed(&listed).and_then(BlockHashTable::open));
        let opened = match opened {
            Some(Ok(table)) => Ok(table),
            // What was listed may be there no more, or in another version.
            Some(Err(error)) if !store.is_answering() => Err(error),
            _ => store.open(&name).and_then(BlockHashTable::open),
        };
        let table = match opened.context(|| format!("digest file {name:?}")) {
            Ok(table) => table,
            Err(error) if error.kind() == ErrorKind::ObjectNotFound => return Ok(DigestFile::Missing),
            // Cut before it was opened, or while it is read: it proves nothing, and the objects' md5 may.
            Err(error) if matches!(error.kind(), ErrorKind::Malformed | ErrorKind::Truncated) => {
                return Ok(DigestFile::Torn(error));
            }
            Err(error) => return Err(error),
        };
        let agrees = |claim: &Option<String>, id: &str| claim.as_deref().is_none_or(|claimed| claimed == id);
        let (header, summary) = (table.header(), &self.summary);
        if agrees(&header.backup_id, summary.id.as_str())
            && agrees(&header.volume_id, summary.volume_id.as_str())
        {
            return Ok(DigestFile::Usable(table));
        }
        Err(Error::new(
            ErrorKind::Malformed,
            format!(
                "digest file {name:?} is of backup {:?} of volume {:?}, expected backup {:?} of volume {:?}",
                header.backup_id, header.volume_id, summary.id, summary.volume_id
            ),
        ))
    }

    /// About how much memory this value holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.objects.len() * (size_of::<DataObject>() + 24) + self.points_bytes + 1024
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
    let mut document = HashingReader { inner: SourceReader::new(source, 0), hasher: Sha256::new() };
    let metadata = metadata::parse(&mut document, &mut |object| {
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
        fingerprint: BlockHash(document.hasher.finalize().into()),
    })
}

/// Hashes a document while it is parsed.
struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}
