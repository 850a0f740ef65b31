//! A full backup out of a chain, without the volume.
//!
//! Problem: a chain only grows. Cinder deletes newest first, so its oldest backups stay for as long as anything builds on
//! them, and a full backup of the volume means reading all of the volume again. Idea: the image of a backup is the source of a new
//! full one. Every block is compared with its digest while it is read, so what is written is what the backup's own digests
//! prove; zeros that the digests tell are neither read nor compressed.
//!
//! What the new backup is called and dated:
//! - Its id is new, and so is its container. It is of the same volume, with the same `volume_meta`, and has no parent.
//! - It is dated directly behind the backup that it was made of, and before every later one of the volume, whenever it is made:
//!   it shows the volume as it was then. Cinder and we build the next incremental on the newest backup of the volume, and
//!   `latest` restores that one. If the consolidated backup was the newest, the new one is now, and the chain goes on from it; if
//!   it was not, the newest stays what it was, where today's date would make old data the latest.
//!
//! Invariants: a block that cannot be proven ends it, and nothing is left; no other backup is touched.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::de::IgnoredAny;

use super::create::{BLOCK_BYTES, BLOCK_BYTES_MIN, Created, NewBackup, Progress, new_id};
use super::destination::Target;
use super::encode::Encoder;
use super::files::{Files, Written};
use super::source::Source;
use crate::catalog::{Catalog, Entry, Snapshot};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::metadata::volume_meta_text;
use crate::format::sha256file::BLOCK_BYTES_MAX;
use crate::format::write::{MetadataHead, created_at_text};
use crate::image::{Image, Part, Verification};
use crate::store::SourceReader;
use crate::types::{BackupId, ObjectName};

/// How much is told to be data at once, in bytes, without a look at its digests: as much as is read at once.
const DATA_BYTES: u64 = 1 << 20;

/// Holes from this length on are remembered, in bytes: finding their end again takes as long as reading their digests.
const LONG_HOLE_BYTES: u64 = 256 << 20;

/// What a consolidated backup is to be.
#[derive(Clone, Debug)]
pub struct Consolidation {
    /// Its name.
    pub name: Option<String>,
    /// Its description; unless told, which backup it was made of.
    pub description: Option<String>,
    /// Where it is put; a container of its own unless told.
    pub container: Option<ObjectName>,
    /// How objects are compressed.
    pub codec: Codec,
    /// The codec's level; Cinder's unless told.
    pub level: Option<i32>,
    /// Plain bytes of an object, as in [`NewBackup`].
    pub object_bytes: Option<u64>,
    /// Bytes of a block; unless told those of the backup, so that its digests stay the same; [`BLOCK_BYTES`] where it has none.
    pub block_bytes: Option<u64>,
    /// Threads that work at it; fewer where they would take too much memory.
    pub threads: usize,
}

impl Default for Consolidation {
    fn default() -> Self {
        Self {
            name: None,
            description: None,
            container: None,
            codec: Codec::Zlib,
            level: None,
            object_bytes: None,
            block_bytes: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What was consolidated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consolidated {
    /// The new backup.
    pub created: Created,
    /// The backups that it was made of, the newest first; it needs none of them.
    pub chain: Vec<BackupId>,
    /// Blocks that were lost in the chain and taken from another backup's copy.
    pub healed_blocks: u64,
}

/// Makes a full backup of the image of `entry`, a backup of `catalog`, whose store is `target`.
/// `cancel` ends it with [`ErrorKind::Interrupted`]; `on_progress` is called often, from several threads.
///
/// Fails with [`ErrorKind::Usage`] for sizes that cannot be, and an image without a byte; with the reason and the place when a
/// block of the image cannot be proven; and as the store does.
pub fn consolidate<'t>(
    target: impl Into<Target<'t>>,
    catalog: &Catalog,
    entry: &Entry,
    wanted: &Consolidation,
    cancel: &AtomicBool,
    on_progress: &(dyn Fn(&Progress) + Sync),
) -> Result<Consolidated> {
    let target = target.into();
    let in_backup = || format!("backup {}", entry.id);
    let image = catalog.image(entry).context(in_backup)?;
    let Some(volume_id) = entry.volume_id.clone() else {
        return Err(Error::new(ErrorKind::BackupNotFound, format!("backup {} has no volume", entry.id)));
    };
    let len_bytes = image.len_bytes();
    if len_bytes == 0 {
        return Err(Error::new(ErrorKind::Usage, format!("the image of backup {} is empty", entry.id)));
    }
    let block_bytes = wanted.block_bytes.unwrap_or_else(|| usual_block_bytes(&image));
    let (object_bytes, block_bytes) =
        NewBackup { object_bytes: wanted.object_bytes, ..NewBackup::full(volume_id.clone()) }.sizes(
            target,
            block_bytes,
            len_bytes,
        )?;
    let snapshot = catalog.refresh()?;
    let created_at = creation_time(&snapshot, entry);
    let id = new_id()?;
    let described = || format!("consolidated from {}", entry.id);
    let head = MetadataHead {
        description: Some(wanted.description.clone().unwrap_or_else(described)),
        backup_id: id.to_string(),
        name: wanted.name.clone(),
        created_at: created_at_text(created_at),
        parent_id: None,
        volume_id: volume_id.to_string(),
        volume_meta: volume_meta(catalog, entry).context(in_backup)?,
    };
    let encoder = Encoder::new(wanted.codec, wanted.level)?;
    let source = ImageSource::new(image.clone());
    let files = Files {
        id: &id,
        volume_id: &volume_id,
        created_at,
        container: wanted.container.as_ref(),
        head: &head,
        source: &source,
        encoder: &encoder,
        parent: None,
        changed: None,
        paranoid: false,
        object_bytes,
        block_bytes,
        threads: wanted.threads,
        cancel,
        on_progress,
    };
    let Written { metadata_name, progress, objects } = files.write(target, || Ok(()))?;
    let healed_blocks = image.damage().healed_blocks;
    let created = Created { id, parent_id: None, volume_id, created_at, metadata_name, progress, objects };
    Ok(Consolidated { created, chain: image.chain().to_vec(), healed_blocks })
}

/// Those of the backup, as the next incremental must have them too. One that only foreign writers could have chosen so small
/// is given up.
fn usual_block_bytes(image: &Image) -> u64 {
    let theirs = image.block_bytes();
    let is_usable =
        image.verification() == Verification::Sha256 && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&theirs);
    if is_usable { theirs } else { BLOCK_BYTES }
}

/// Between this backup and the next later one of its volume: the next whole second if that lies between, else the middle. Cinder's
/// records have whole seconds.
///
/// A backup without a date counts as older than all that have one; its copy is dated before those. Where there are none, it is of
/// the year 1970, which nothing that is made later can be older than.
fn creation_time(snapshot: &Snapshot, entry: &Entry) -> Timestamp {
    let ours = snapshot.entries().filter(|other| other.volume_id == entry.volume_id);
    let later = ours.filter_map(|other| other.created_at).filter(|&time| Some(time) > entry.created_at).min();
    let Some(of_data) = entry.created_at else {
        let second = SignedDuration::from_secs(1);
        return later.and_then(|later| later.checked_sub(second).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
    };
    let next_second =
        of_data.as_second().checked_add(1).and_then(|second| Timestamp::from_second(second).ok());
    match (next_second, later) {
        (Some(next), None) => next,
        (Some(next), Some(later)) if next < later => next,
        (_, Some(later)) => {
            let micros = of_data.as_microsecond().midpoint(later.as_microsecond());
            Timestamp::from_microsecond(micros).unwrap_or(of_data).max(of_data)
        }
        (None, None) => of_data,
    }
}

/// `volume_meta` as the backup has it; `None` where Cinder could not restore it, which it only finds out at the end.
fn volume_meta(catalog: &Catalog, entry: &Entry) -> Result<Option<String>> {
    let document = catalog.store().open(&entry.metadata_name)?;
    let text = volume_meta_text(SourceReader::new(&*document, 0))?;
    let (kept, lost): (Option<String>, _) = match text {
        Some(text) if serde_json::from_str::<IgnoredAny>(&text).is_err() => (None, true),
        other => (other, false),
    };
    if lost {
        tracing::warn!(backup = %entry.id, "its volume_meta is no JSON and is left out");
    }
    Ok(kept)
}

/// The image of a backup, proven block by block.
struct ImageSource {
    image: Arc<Image>,
    name: String,
    /// The last one that was found.
    long_hole: Mutex<Range<u64>>,
}

impl ImageSource {
    fn new(image: Arc<Image>) -> Self {
        let name = format!("backup {}", image.id());
        Self { image, name, long_hole: Mutex::default() }
    }

    fn next_data_at(&self, offset: u64) -> Result<u64> {
        let known = self.long_hole.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.contains(&offset) {
            return Ok(known.end);
        }
        let end = self.image.len_bytes();
        let start = self.image.seek_data(offset).context(|| self.name.clone())?.unwrap_or(end);
        if start - offset >= LONG_HOLE_BYTES {
            *self.long_hole.lock().unwrap_or_else(PoisonError::into_inner) = offset..start;
        }
        Ok(start)
    }
}

impl Source for ImageSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len_bytes(&self) -> u64 {
        self.image.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.len_bytes() {
            let message = format!("{} ends at byte {}, asked for byte {end}", self.name, self.len_bytes());
            return Err(Error::new(ErrorKind::Source, message));
        }
        self.image.visit(offset..end, &mut |range, part| {
            let target = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            match part {
                Part::Data(bytes) => target.copy_from_slice(bytes),
                Part::Zeros => target.fill(0),
                Part::Lost(error) => {
                    let place = format!("{}, image bytes {} to {}", self.name, range.start, range.end);
                    return Err(error.clone().context(place));
                }
            }
            Ok(())
        })
    }

    /// Holes as the digests tell them. The end of the data is not looked for: where much of it follows, that would be
    /// reading all digests ahead.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let len = self.len_bytes();
        if offset >= len {
            return Ok(None);
        }
        let start = self.next_data_at(offset)?;
        let end = (start / DATA_BYTES + 1).saturating_mul(DATA_BYTES).min(len);
        Ok((start < len).then_some(start..end))
    }

    /// An image never changes.
    fn check_len(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
