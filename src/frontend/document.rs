//! A backup as a JSON document: what `show` prints and what `metadata.json` in a mount holds.
//!
//! Problem: people and programs look at one backup through two doors, and must see the same words.
//! Idea: one function makes the document; front-ends choose only how it is printed.
//!
//! Invariants: every key is always there, `null` where nothing is known; keys are sorted.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::catalog::Entry;
use crate::error::Error;
use crate::image::{Image, OnDamage};

/// The `status` of a backup that can be read.
pub const STATUS_AVAILABLE: &str = "available";

/// The `status` of a backup that cannot be read; `fail_reason` says why.
pub const STATUS_ERROR: &str = "error";

/// Bytes of a GiB, the unit of Cinder's volume sizes.
const GIB_BYTES: u64 = 1 << 30;

/// The volume's size in GiB: what the metadata says, else the image's length rounded up; `None` when neither is known.
pub fn size_gib(entry: &Entry, image_bytes: Option<u64>) -> Option<u64> {
    entry.volume_size_gib.or_else(|| image_bytes.map(|bytes| bytes.div_ceil(GIB_BYTES)))
}

/// Whether the backup stores changes only; `None` when its metadata could not be read.
pub fn is_incremental(entry: &Entry) -> Option<bool> {
    entry.parent_id.as_ref().map(|_| true).or_else(|| entry.volume_id.as_ref().map(|_| false))
}

/// The document of one backup, with snake_case keys in sorted order.
///
/// `image` is what the catalog answered for `entry`: the opened image, or why there is none. Sizes are in bytes, except
/// `size`, which is in GiB as everywhere in Cinder.
pub fn backup_document(entry: &Entry, image: Result<&Arc<Image>, &Error>) -> Map<String, Value> {
    mounted_document(entry, image, OnDamage::Error)
}

/// [`backup_document`] in a mount that answers reads of lost blocks as `on_damage` says.
pub fn mounted_document(
    entry: &Entry,
    image: Result<&Arc<Image>, &Error>,
    on_damage: OnDamage,
) -> Map<String, Value> {
    // What the catalog knew before it tried is the better reason: it does not change from one open to the next.
    let fail_reason = entry.problem.as_ref().or(image.err());
    let image = if fail_reason.is_none() { image.ok() } else { None };
    let damage = image.map(|image| image.damage()).unwrap_or_default();
    let ranges: Vec<Value> = damage
        .ranges
        .iter()
        .map(|range| json!({ "length": range.end.saturating_sub(range.start), "offset": range.start }))
        .collect();
    let chain: Vec<&str> =
        image.map(|image| image.chain().iter().map(|id| id.as_str()).collect()).unwrap_or_default();

    let mut document = Map::new();
    let mut put = |key: &str, value: Value| {
        document.insert(key.to_owned(), value);
    };
    put("block_bytes", json!(image.map(|image| image.block_bytes())));
    put("chain", json!(chain));
    put("container", json!(entry.container));
    put("created_at", json!(entry.created_at.map(|time| time.to_string())));
    put(
        "damage",
        json!({
            "blocks": damage.blocks,
            "healed_blocks": damage.healed_blocks,
            "on_damage": on_damage.name(),
            "ranges": ranges,
        }),
    );
    put("data_bytes", json!(image.and_then(|image| image.data_bytes())));
    put("description", json!(entry.description));
    put("fail_reason", json!(fail_reason.map(Error::to_string)));
    put("id", json!(entry.id.as_str()));
    put("image_bytes", json!(image.map(|image| image.len_bytes())));
    put("is_incremental", json!(is_incremental(entry)));
    put("name", json!(entry.name));
    put("object_count", json!(entry.object_count));
    put("object_prefix", json!(entry.prefix));
    put("parent_id", json!(entry.parent_id.as_ref().map(|id| id.as_str())));
    put("size", json!(size_gib(entry, image.map(|image| image.len_bytes()))));
    put("status", json!(if fail_reason.is_none() { STATUS_AVAILABLE } else { STATUS_ERROR }));
    put("verification", json!(image.map(|image| image.verification().name())));
    put("volume_id", json!(entry.volume_id.as_ref().map(|id| id.as_str())));
    put("volume_name", json!(entry.volume_name));
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::store::{ObjectStat, ObjectVersion, Ownership};
    use crate::types::{BackupId, ObjectName, VolumeId};

    fn entry() -> Entry {
        Entry {
            id: BackupId::parse("b2").unwrap(),
            volume_id: Some(VolumeId::parse("v1").unwrap()),
            parent_id: Some(BackupId::parse("b1").unwrap()),
            created_at: Some("2024-03-01T01:01:07Z".parse().unwrap()),
            name: Some("nightly".into()),
            description: None,
            volume_name: Some("db".into()),
            volume_size_gib: Some(7),
            container: "b2/xx/b2".into(),
            prefix: "backup".into(),
            object_count: 3,
            metadata_name: ObjectName::parse("b2/xx/b2/backup_metadata").unwrap(),
            metadata_stat: ObjectStat {
                len_bytes: 1,
                version: ObjectVersion("1".into()),
                modified: None,
                owner: Ownership { mode: 0o640, uid: 0, gid: 0 },
            },
            problem: None,
        }
    }

    #[test]
    fn an_unusable_backup_has_every_key_and_its_reason() {
        let error = Error::new(ErrorKind::ChainBroken, "parent b1 is not in the store");
        let document = backup_document(&entry(), Err(&error));
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"block_bytes":null,"chain":[],"container":"b2/xx/b2","created_at":"2024-03-01T01:01:07Z","#
                .to_owned()
                + r#""damage":{"blocks":0,"healed_blocks":0,"on_damage":"eio","ranges":[]},"data_bytes":null,"description":null,"#
                + r#""fail_reason":"parent b1 is not in the store","id":"b2","image_bytes":null,"#
                + r#""is_incremental":true,"name":"nightly","object_count":3,"object_prefix":"backup","#
                + r#""parent_id":"b1","size":7,"status":"error","verification":null,"volume_id":"v1","#
                + r#""volume_name":"db"}"#
        );
        assert!(document.keys().is_sorted());
    }

    #[test]
    fn the_problem_of_the_listing_comes_before_that_of_opening() {
        let mut entry = entry();
        entry.problem = Some(Error::new(ErrorKind::Malformed, "torn JSON"));
        let opening = Error::new(ErrorKind::BackupNotFound, "unusable");
        assert_eq!(backup_document(&entry, Err(&opening))["fail_reason"], "torn JSON");
    }

    #[test]
    fn sizes_are_rounded_up_to_gib() {
        let mut entry = entry();
        assert_eq!(size_gib(&entry, Some(1)), Some(7));
        entry.volume_size_gib = None;
        assert_eq!(size_gib(&entry, Some(GIB_BYTES)), Some(1));
        assert_eq!(size_gib(&entry, Some(GIB_BYTES + 1)), Some(2));
        assert_eq!(size_gib(&entry, None), None);
    }

    #[test]
    fn an_unread_backup_is_neither_full_nor_incremental() {
        let mut entry = entry();
        entry.parent_id = None;
        assert_eq!(is_incremental(&entry), Some(false));
        entry.volume_id = None;
        assert_eq!(is_incremental(&entry), None);
    }
}
