//! Records: what Cinder's database holds of a backup, as `cinder backup-export` prints and `cinder backup-import` takes it.
//!
//! ```text
//! backup_service   cinder.backup.drivers.posix.PosixBackupDriver
//! backup_url       base64 of {"id": "…", "parent_id": …, "container": "12/34/1234…", "service_metadata": "<prefix>", …}
//! ```
//!
//! Problem: when Cinder's database is lost, Cinder knows none of its backups, and the store does not hold their records. Idea: all
//! that a record needs stands in `_metadata` and in its path; so records are made from the store alone, and records that
//! somebody kept are compared with it.
//!
//! | key | what Cinder does without it |
//! | --- | --- |
//! | `id`, `size` | refuses the record |
//! | `container`, `service_metadata`, `object_count`, `display_name`, `display_description` | the import ends in `error` |
//! | `parent_id` | takes an incremental for a full backup, and restores wrong data without an error |
//! | `data_timestamp` | the volume's next incremental fails |
//! | `num_dependent_backups` | allows to delete what others build on |
//! | `volume_id`, `created_at` | shows zeros, the time of the import |
//!
//! Invariant: a record that comes from here has all of these.

mod comparing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

pub use self::comparing::{Difference, compare, find};
use crate::catalog::{Catalog, Entry, Snapshot};
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata;
use crate::store::SourceReader;
use crate::types::BackupId;

/// The class of Cinder's POSIX driver. Its NFS and GlusterFS drivers write the same stores under names of their own.
pub const POSIX_DRIVER: &str = "cinder.backup.drivers.posix.PosixBackupDriver";

/// Longest record read, in bytes of base64. Cinder's own take one to two thousand.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// What a column of text in Cinder's database holds, in characters.
const TEXT_CHARS_MAX: usize = 255;

/// What its columns of ids hold.
const ID_CHARS_MAX: usize = 36;

const GIB_BYTES: u64 = 1 << 30;

/// A backup's record.
#[derive(Clone, PartialEq, Debug)]
pub struct Record(Map<String, Value>);

impl Record {
    /// Reads a `backup_url`. [`ErrorKind::Malformed`] when it is none, [`ErrorKind::LimitExceeded`] when it is endless.
    pub fn decode(url: &str) -> Result<Self> {
        if url.len() > RECORD_BYTES_MAX {
            let message =
                format!("the record has {} bytes, at most {RECORD_BYTES_MAX} are accepted", url.len());
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        let malformed = |what: &str| Error::new(ErrorKind::Malformed, format!("the record is {what}"));
        let json = crate::base64::decode(url).ok_or_else(|| malformed("not base64"))?;
        match serde_json::from_slice(&json) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(malformed("no JSON object")),
            Err(error) => Err(Error::caused_by(ErrorKind::Malformed, "the record holds no JSON", error)),
        }
    }

    /// The `backup_url`.
    pub fn encode(&self) -> String {
        crate::base64::encode(Value::Object(self.0.clone()).to_string().as_bytes())
    }

    /// The columns of the backup's row.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }
}

/// The backups of `entries`, each after those it builds on as far as these are there, else the oldest first.
pub fn parents_first(entries: &[Arc<Entry>]) -> Vec<Arc<Entry>> {
    let mut oldest_first: Vec<&Arc<Entry>> = entries.iter().collect();
    oldest_first.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    let by_id: HashMap<&BackupId, &Arc<Entry>> = entries.iter().map(|entry| (&entry.id, entry)).collect();
    let (mut done, mut order) = (HashSet::new(), Vec::with_capacity(entries.len()));
    for entry in oldest_first {
        let mut path = Vec::new();
        let mut next = Some(entry);
        // A circle ends at the first that is done.
        while let Some(entry) = next.filter(|entry| done.insert(&entry.id)) {
            path.push(Arc::clone(entry));
            next = entry.parent_id.as_ref().and_then(|parent| by_id.get(parent).copied());
        }
        order.extend(path.into_iter().rev());
    }
    order
}

/// The backup and all that it builds on, the full one first. An error when the chain is broken.
pub fn chain(snapshot: &Snapshot, entry: &Arc<Entry>) -> Result<Vec<Arc<Entry>>> {
    if let Some(problem) = &entry.problem {
        return Err(problem.clone());
    }
    let mut chain = vec![entry.clone()];
    // A backup without a problem has a chain that ends.
    while let Some(parent) = chain.last().and_then(|last| last.parent_id.as_ref()) {
        let parent = snapshot.get(parent.as_str()).ok_or_else(|| {
            Error::new(ErrorKind::ChainBroken, format!("the parent backup {parent} is not in the store"))
        })?;
        chain.push(parent.clone());
    }
    chain.reverse();
    Ok(chain)
}

/// Makes records of one store's backups.
pub struct Exporter<'a> {
    catalog: &'a Catalog,
    /// The class of the driver that is to restore them.
    driver: String,
    /// How many backups build directly on each.
    children: BTreeMap<BackupId, u64>,
}

impl<'a> Exporter<'a> {
    /// Records for the backup driver of this class.
    pub fn new(catalog: &'a Catalog, driver: &str) -> Self {
        let mut children = BTreeMap::new();
        for parent in catalog.snapshot().entries().filter_map(|entry| entry.parent_id.as_ref()) {
            *children.entry(parent.clone()).or_default() += 1;
        }
        Self { catalog, driver: driver.to_owned(), children }
    }

    /// The record of a backup. An error when Cinder could not restore it: the reason why it is unusable,
    /// [`ErrorKind::Unsupported`] when this driver does not find it where it lies or the database cannot hold its names.
    pub fn record(&self, entry: &Entry) -> Result<Record> {
        if let Some(problem) = &entry.problem {
            return Err(problem.clone());
        }
        let volume_id = entry.volume_id.as_ref().map(|id| id.as_str()).unwrap_or_default();
        for (what, text, chars_max) in [
            ("id", entry.id.as_str(), ID_CHARS_MAX),
            ("volume's id", volume_id, ID_CHARS_MAX),
            ("container's name", &entry.container, TEXT_CHARS_MAX),
            ("prefix", &entry.prefix, TEXT_CHARS_MAX),
        ] {
            if text.chars().count() > chars_max {
                let message =
                    format!("the {what} is longer than the {chars_max} characters of Cinder's database");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        self.check_driver(entry)?;
        let part = self.catalog.store().part();
        let container = match (entry.container.is_empty(), part) {
            (true, Some(part)) => part.container,
            (true, None) => ".",
            (false, _) => &entry.container,
        };
        let time = data_time(entry);
        let mut fields = Map::new();
        let mut put = |key: &str, value: Value| {
            fields.insert(key.to_owned(), value);
        };
        put("container", json!(container));
        put("created_at", json!(time));
        put("data_timestamp", json!(time));
        put("display_description", json!(entry.description.as_deref().map(cut)));
        put("display_name", json!(entry.name.as_deref().map(cut)));
        put("driver_info", json!({}));
        put("id", json!(entry.id.as_str()));
        put("num_dependent_backups", json!(self.children.get(&entry.id).copied().unwrap_or(0)));
        put("object_count", json!(entry.object_count));
        put("parent_id", json!(entry.parent_id.as_ref().map(|id| id.as_str())));
        put("service", json!(self.driver));
        put("service_metadata", json!(entry.prefix));
        put("size", json!(self.size_gib(entry)?));
        put("status", json!("available"));
        put("volume_id", json!(volume_id));
        Ok(Record(fields))
    }

    /// The volume's size as the metadata tells it, or what its data needs where that is more.
    fn size_gib(&self, entry: &Entry) -> Result<u64> {
        let needed = match (self.catalog.image(entry), entry.volume_size_gib) {
            (Ok(image), _) => image.len_bytes().div_ceil(GIB_BYTES),
            // Cinder restores also what has no digests that could be served.
            (Err(_), Some(_)) => 1,
            (Err(error), None) => return Err(error),
        };
        Ok(needed.max(entry.volume_size_gib.unwrap_or(0)).max(1))
    }

    /// [`ErrorKind::Unsupported`] when the driver looks for other names than those there are.
    fn check_driver(&self, entry: &Entry) -> Result<()> {
        let unsupported = |why: &str| Err(Error::new(ErrorKind::Unsupported, why));
        if entry.container.is_empty() && entry.object_count > 0 && !self.names_are_those_here(entry)? {
            return unsupported(
                "the store's root lies inside the backup's container; give the folder that holds the container",
            );
        }
        let of_folders = [".posix", ".nfs", ".glusterfs"].iter().any(|kind| self.driver.contains(kind));
        let of_objects = [".swift", ".s3", ".gcs"].iter().any(|kind| self.driver.contains(kind));
        let is_in_folder = match self.catalog.store().part() {
            Some(_) => !entry.container.is_empty(),
            None => entry.container.contains('/'),
        };
        if is_in_folder && of_objects {
            return unsupported(
                "it lies in a folder of the container, where drivers of object stores do not find it",
            );
        }
        if of_folders && entry.prefix.contains('/') {
            return unsupported(
                "it is a copy of one in an object store, with slashes in its objects' names, which drivers of folders do not restore; give the class of the object store's driver by --driver",
            );
        }
        Ok(())
    }

    /// Whether the objects' names in the metadata begin with the prefix as it is seen here.
    fn names_are_those_here(&self, entry: &Entry) -> Result<bool> {
        let source = self.catalog.store().open(&entry.metadata_name)?;
        let mut are_here = true;
        metadata::parse(SourceReader::new(&*source, 0), &mut |object| {
            are_here &= object.name.starts_with(&entry.prefix);
            Ok(())
        })?;
        Ok(are_here)
    }
}

/// When the backup was made, as Cinder writes times: `2024-01-02T03:04:05Z`. Where the metadata does not tell, when it was
/// written: Cinder looks for the newest backup by this time, and fails where there is none.
fn data_time(entry: &Entry) -> String {
    let written = || {
        let modified = entry.metadata_stat.modified.unwrap_or(SystemTime::UNIX_EPOCH);
        jiff::Timestamp::try_from(modified).unwrap_or_default()
    };
    entry.created_at.unwrap_or_else(written).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A text as far as the database holds it.
fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn record() -> Record {
        let fields = json!({
            "container": "12/34/1234", "data_timestamp": "2024-01-02T03:04:05Z", "display_description": null,
            "display_name": "n", "id": "1234", "object_count": 2, "parent_id": "p",
            "service_metadata": "backup", "size": 2, "volume_id": "v",
        });
        let Value::Object(fields) = fields else { unreachable!() };
        Record(fields)
    }

    #[test]
    fn a_record_comes_back() {
        let record = record();
        assert_eq!(Record::decode(&record.encode()).unwrap(), record);
        assert_eq!(compare(&record, &record), []);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let long = "A".repeat(RECORD_BYTES_MAX + 1);
        for (url, kind) in [
            ("", ErrorKind::Malformed),
            ("%", ErrorKind::Malformed),
            ("Zm9v", ErrorKind::Malformed),
            (&crate::base64::encode(b"[1]"), ErrorKind::Malformed),
            (&crate::base64::encode(&[b'['; 100_000]), ErrorKind::Malformed),
            (&long, ErrorKind::LimitExceeded),
        ] {
            assert_eq!(Record::decode(url).unwrap_err().kind(), kind);
        }
    }
}
