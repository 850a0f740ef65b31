//! All files of one backup, written and published.
//!
//! Problem: whatever a new backup is made of, a volume or a chain, the way from its bytes to the store must be the same, and must
//! end in all or nothing. Idea: what is to be written is put down first; one function stages it, asks once more whether it is
//! still wanted, and publishes it.
//!
//! Invariant: when it fails, nothing of the backup is visible.

use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;

use super::destination::{Destination, Target};
use super::encode::Encoder;
use super::pipeline::{self, Plan, Progress};
use super::source::Source;
use super::source::changed::Changed;
use super::staging::Staging;
use super::upload::Upload;
use crate::backup::BlockHashTable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::write::{MetadataHead, default_container, object_prefix, object_store_prefix};
use crate::types::{BackupId, ObjectName, VolumeId};

/// What is to be written.
pub(super) struct Files<'a> {
    pub(super) id: &'a BackupId,
    pub(super) volume_id: &'a VolumeId,
    pub(super) created_at: Timestamp,
    /// A container of its own unless told.
    pub(super) container: Option<&'a ObjectName>,
    pub(super) head: &'a MetadataHead,
    pub(super) source: &'a dyn Source,
    pub(super) encoder: &'a Encoder,
    pub(super) parent: Option<&'a BlockHashTable>,
    pub(super) changed: Option<&'a Changed>,
    pub(super) paranoid: bool,
    pub(super) object_bytes: u64,
    pub(super) block_bytes: u64,
    pub(super) threads: usize,
    pub(super) cancel: &'a AtomicBool,
    pub(super) on_progress: &'a (dyn Fn(&Progress) + Sync),
}

/// What was written.
pub(super) struct Written {
    /// Where the metadata document is.
    pub(super) metadata_name: ObjectName,
    pub(super) progress: Progress,
    pub(super) objects: u64,
}

impl Files<'_> {
    /// Writes them to the target, and publishes them unless `may_publish` fails at the last moment.
    pub(super) fn write(
        &self,
        target: Target<'_>,
        may_publish: impl FnOnce() -> Result<()>,
    ) -> Result<Written> {
        let destination: Box<dyn Destination + '_> = match target {
            Target::Folder(root) => {
                let container = match self.container {
                    Some(container) => container.clone(),
                    None => default_container(self.id)?,
                };
                let prefix = object_prefix(self.volume_id, self.created_at, self.id);
                Box::new(Staging::begin(root, self.id, &container, &prefix)?)
            }
            Target::Objects { store, zone } => {
                let prefix = object_store_prefix(self.volume_id, self.created_at, zone, self.id)?;
                Box::new(Upload::begin(store, self.id, self.container, &prefix, self.cancel)?)
            }
        };
        let (progress, objects) = pipeline::run(&Plan {
            source: self.source,
            encoder: self.encoder,
            destination: &*destination,
            head: self.head,
            parent: self.parent,
            changed: self.changed,
            paranoid: self.paranoid,
            object_bytes: self.object_bytes,
            block_bytes: self.block_bytes,
            threads: self.threads,
            cancel: self.cancel,
            on_progress: self.on_progress,
        })?;
        destination.settle()?;
        may_publish()?;
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "the backup was interrupted"));
        }
        Ok(Written { metadata_name: destination.publish()?, progress, objects })
    }
}
