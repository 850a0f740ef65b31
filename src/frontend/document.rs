//! One backup as a document: what `show` prints and what `metadata.json` in a mount holds.
//!
//! Keys are snake_case and sorted, as in the OpenStack client; every key is always there, `null` where its value is
//! unknown, so that scripts need not ask twice. Strings are what the store says, unescaped; JSON carries them safely.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::catalog::Entry;
use crate::error::Error;
use crate::image::{Image, Verification};

/// `created_at` as people and file names have it: `2024-03-01T01:01:07Z`, UTC, whole seconds.
pub fn timestamp_text(created_at: Timestamp) -> String {
    Timestamp::from_second(created_at.as_second()).unwrap_or(created_at).to_string()
}

/// The name of what proves an image's bytes: `sha256` or `md5`.
pub fn verification_text(verification: Verification) -> &'static str {
    match verification {
        Verification::Sha256 => "sha256",
        Verification::Md5 => "md5",
    }
}

/// A backup, and either its opened image or the reason why it has none.
pub fn backup_document(entry: &Entry, image: Result<&Image, &Error>) -> Value {
    let facts = image.map(|image| Facts {
        chain: image.chain().iter().map(ToString::to_string).collect(),
        image_bytes: image.len_bytes(),
        block_bytes: image.block_bytes(),
        data_bytes: image.data_bytes(),
        verification: verification_text(image.verification()),
        damaged_blocks: image.damage().blocks,
        damaged_ranges: image.damage().ranges,
    });
    document(entry, facts)
}

/// What only an opened image knows.
struct Facts {
    chain: Vec<String>,
    image_bytes: u64,
    block_bytes: u64,
    data_bytes: Option<u64>,
    verification: &'static str,
    damaged_blocks: u64,
    damaged_ranges: Vec<std::ops::Range<u64>>,
}

fn document(entry: &Entry, facts: Result<Facts, &Error>) -> Value {
    let (facts, failure) = match facts {
        Ok(facts) => (Some(facts), None),
        // What the metadata itself shows to be wrong says more than the failure to open that follows from it.
        Err(error) => (None, Some(entry.problem.as_ref().unwrap_or(error).to_string())),
    };
    let facts = facts.as_ref();
    let ranges = facts.map_or(&[][..], |facts| &facts.damaged_ranges).iter();
    let ranges: Vec<_> =
        ranges.map(|range| json!({"length": range.end - range.start, "offset": range.start})).collect();
    let keys = [
        ("block_bytes", json!(facts.map(|facts| facts.block_bytes))),
        ("chain", json!(facts.map(|facts| &facts.chain))),
        ("container", json!(entry.container)),
        ("created_at", json!(entry.created_at.map(timestamp_text))),
        ("damage", json!({"blocks": facts.map_or(0, |facts| facts.damaged_blocks), "ranges": ranges})),
        ("data_bytes", json!(facts.and_then(|facts| facts.data_bytes))),
        ("description", json!(entry.description)),
        ("fail_reason", json!(failure)),
        ("id", json!(entry.id.as_str())),
        ("image_bytes", json!(facts.map(|facts| facts.image_bytes))),
        ("is_incremental", json!(entry.parent_id.is_some())),
        ("name", json!(entry.name)),
        ("object_count", json!(entry.object_count)),
        ("object_prefix", json!(entry.prefix)),
        ("parent_id", json!(entry.parent_id.as_ref().map(|id| id.as_str()))),
        ("size", json!(entry.volume_size_gib)),
        ("status", json!(if facts.is_some() { "available" } else { "error" })),
        ("verification", json!(facts.map(|facts| facts.verification))),
        ("volume_id", json!(entry.volume_id.as_ref().map(|id| id.as_str()))),
        ("volume_name", json!(entry.volume_name)),
    ];
    Value::Object(keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

/// The document's text, indented, one line break at the end.
pub fn document_text(document: &Value) -> String {
    format!("{document:#}\n")
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
            created_at: Some("2024-03-01T01:01:07.5Z".parse().unwrap()),
            name: Some("nightly \"\u{1b}[31m\n".to_owned()),
            description: None,
            volume_name: Some("wéb".to_owned()),
            volume_size_gib: Some(1),
            container: "2c/d1/b2".to_owned(),
            prefix: "backup".to_owned(),
            object_count: 3,
            metadata_name: ObjectName::parse("2c/d1/b2/backup_metadata").unwrap(),
            metadata_stat: ObjectStat {
                len_bytes: 1,
                version: ObjectVersion("1".into()),
                modified: None,
                owner: Ownership { mode: 0o660, uid: 1, gid: 2 },
            },
            problem: None,
        }
    }

    fn facts() -> Facts {
        Facts {
            chain: vec!["b2".to_owned(), "b1".to_owned()],
            image_bytes: 1 << 30,
            block_bytes: 32768,
            data_bytes: None,
            verification: "md5",
            damaged_blocks: 2,
            damaged_ranges: vec![0..512, 32768..98304],
        }
    }

    #[test]
    fn times_are_whole_utc_seconds() {
        let time: Timestamp = "2024-03-01T02:01:07.999+01:00".parse().unwrap();
        assert_eq!(timestamp_text(time), "2024-03-01T01:01:07Z");
        assert_eq!(timestamp_text(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00Z");
        for extreme in [Timestamp::MIN, Timestamp::MAX] {
            assert!(!timestamp_text(extreme).contains(['/', '\0']));
        }
    }

    #[test]
    fn every_key_is_there_and_sorted() {
        for document in [document(&entry(), Ok(facts())), document(&entry(), Err(&damage()))] {
            let keys: Vec<_> = document.as_object().unwrap().keys().cloned().collect();
            assert_eq!(
                keys.join(" "),
                "block_bytes chain container created_at damage data_bytes description fail_reason id image_bytes \
                 is_incremental name object_count object_prefix parent_id size status verification volume_id \
                 volume_name"
            );
            assert!(keys.is_sorted());
        }
    }

    fn damage() -> Error {
        Error::new(ErrorKind::Malformed, "the digests are torn")
    }

    #[test]
    fn an_opened_backup_tells_what_its_image_knows() {
        let document = document(&entry(), Ok(facts()));
        assert_eq!(document["status"], "available");
        assert_eq!(document["fail_reason"], Value::Null);
        assert_eq!(document["chain"], json!(["b2", "b1"]));
        assert_eq!(document["created_at"], "2024-03-01T01:01:07Z");
        assert_eq!(document["verification"], "md5");
        assert_eq!(
            document["damage"],
            json!({"blocks": 2, "ranges": [{"length": 512, "offset": 0}, {"length": 65536, "offset": 32768}]})
        );
        assert_eq!((&document["size"], &document["image_bytes"]), (&json!(1), &json!(1u64 << 30)));
    }

    #[test]
    fn an_unusable_backup_tells_its_reason() {
        let mut entry = entry();
        let told = document(&entry, Err(&damage()));
        assert_eq!(
            (&told["status"], &told["fail_reason"]),
            (&json!("error"), &json!("the digests are torn"))
        );
        assert_eq!(told["chain"], Value::Null);
        entry.problem = Some(Error::new(ErrorKind::ChainBroken, "parent b1 is missing"));
        assert_eq!(document(&entry, Err(&damage()))["fail_reason"], "parent b1 is missing");
    }

    #[test]
    fn hostile_text_stays_inside_its_string() {
        let text = document_text(&document(&entry(), Ok(facts())));
        assert!(text.ends_with("}\n") && !text.contains('\u{1b}'));
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["name"], "nightly \"\u{1b}[31m\n");
    }
}
