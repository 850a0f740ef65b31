//! The backups of a store at one moment.
//!
//! Invariant: a snapshot never changes, and no two of its entries have one id.

use std::collections::HashMap;
use std::sync::Arc;

use crate::chain::resolve::CHAIN_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectStat;
use crate::types::{BackupId, ObjectName, VolumeId};

/// A backup of the store as its metadata tells it, usable or not.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Unique in a [`Snapshot`]. Taken from the path when the metadata cannot be read.
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
pub struct Snapshot {
    entries: Vec<Arc<Entry>>,
    by_id: HashMap<BackupId, usize>,
    shadowed: Vec<(ObjectName, Option<BackupId>)>,
    unreadable: Vec<(String, Error)>,
}

impl Snapshot {
    /// All backups, ordered by creation time, then id.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    /// The backup of this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Entry>> {
        self.by_id.get(id).map(|&index| &self.entries[index])
    }

    /// Folders of the store that could not be read, with the reason: what they hold is not in this snapshot.
    pub fn unreadable(&self) -> &[(String, Error)] {
        &self.unreadable
    }

    /// Documents that are behind no entry: another one stands for their id, or they tell none and neither does their name.
    pub fn shadowed(&self) -> &[(ObjectName, Option<BackupId>)] {
        &self.shadowed
    }

    /// A snapshot of these backups.
    pub fn new(mut entries: Vec<Arc<Entry>>) -> Self {
        entries.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        let by_id = entries.iter().enumerate().map(|(index, entry)| (entry.id.clone(), index)).collect();
        Self { entries, by_id, ..Self::default() }
    }

    pub(super) fn with_shadowed(self, shadowed: Vec<(ObjectName, Option<BackupId>)>) -> Self {
        Self { shadowed, ..self }
    }

    pub(super) fn with_unreadable(self, unreadable: Vec<(String, Error)>) -> Self {
        Self { unreadable, ..self }
    }

    /// The chain of a backup that has no problem, the full one first.
    pub(super) fn chain(&self, id: &BackupId) -> Result<Vec<&Arc<Entry>>> {
        let mut chain = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            if chain.len() > CHAIN_MAX as usize {
                return Err(Error::new(ErrorKind::ChainBroken, "the chain has no end"));
            }
            let entry = self.get(id.as_str()).ok_or_else(|| gone(id))?;
            if let Some(problem) = &entry.problem {
                return Err(problem.clone());
            }
            chain.push(entry);
            next = entry.parent_id.as_ref();
        }
        chain.reverse();
        Ok(chain)
    }
}

fn gone(id: &BackupId) -> Error {
    Error::new(ErrorKind::BackupNotFound, format!("the backup {id} is no longer in the store"))
}
