//! A record beside the store: which backup it is of, in what it differs, and what comes of that in Cinder.

use std::sync::Arc;

use serde_json::Value;

use super::Record;
use crate::catalog::{Entry, Snapshot};

/// One column in which a record and the store differ.
#[derive(Clone, PartialEq, Debug)]
pub struct Difference {
    /// The column.
    pub key: &'static str,
    /// What the record says; null where it says nothing.
    pub record: Value,
    /// What the store says.
    pub store: Value,
    /// What comes of it in Cinder; `None` when nothing does.
    pub harm: Option<&'static str>,
}

/// The backup of the store that a record is of: by container and prefix, else by id, else by prefix alone, since the store's
/// root may be another folder here than it is for Cinder. `here` is the store's own name where it is a container itself.
pub fn find(snapshot: &Snapshot, record: &Record, here: Option<&str>) -> Option<Arc<Entry>> {
    let prefix = record.text("service_metadata");
    let container = record.text("container").map(plain_container);
    let has_prefix = |entry: &&Arc<Entry>| Some(entry.prefix.as_str()) == prefix;
    let in_place = |entry: &&Arc<Entry>| match (entry.container.as_str(), here) {
        ("", Some(here)) => container == Some(here),
        (of_entry, _) => container == Some(of_entry),
    };
    let placed = snapshot.entries().find(|entry| has_prefix(entry) && in_place(entry));
    let by_id = || snapshot.get(record.text("id")?);
    let by_prefix = || {
        let mut fitting = snapshot.entries().filter(has_prefix);
        fitting.next().filter(|_| fitting.next().is_none())
    };
    placed.or_else(by_id).or_else(by_prefix).cloned()
}

fn plain_container(container: &str) -> &str {
    match container.trim_matches('/') {
        "." => "",
        other => other,
    }
}

/// In what a record differs from that of the same backup made from the store.
pub fn compare(record: &Record, store: &Record) -> Vec<Difference> {
    let null = Value::Null;
    let mut differences = Vec::new();
    for key in [
        "id",
        "parent_id",
        "container",
        "service_metadata",
        "size",
        "volume_id",
        "data_timestamp",
        "object_count",
        "display_name",
        "display_description",
    ] {
        let (told, found) = (record.0.get(key).unwrap_or(&null), store.0.get(key).unwrap_or(&null));
        let is_absent = !record.0.contains_key(key);
        let harm = match key {
            "container" => {
                let same = |value: &Value| value.as_str().map(|name| plain_container(name).to_owned());
                (same(told) != same(found))
                    .then_some("Cinder would not find it there, unless its store begins at another folder")
            }
            // That of a snapshot is older than the backup: only none is wrong.
            "data_timestamp" => told.is_null().then_some("the volume's next incremental would fail"),
            _ if told == found && !is_absent => continue,
            "id" => Some("Cinder would know it by another id, and not find what builds on it"),
            "parent_id" if found.is_null() && told.is_null() => continue,
            "parent_id" if told.is_null() => {
                Some("Cinder would take it for a full backup, and restore wrong data without an error")
            }
            "parent_id" => Some("Cinder would restore it on top of another backup"),
            "service_metadata" => Some("Cinder would look for other objects"),
            "size" if told.as_u64() < found.as_u64() => {
                Some("Cinder would restore it to a volume that is too small")
            }
            "volume_id" => Some("Cinder would show it as a backup of another volume"),
            "object_count" | "display_name" | "display_description" if is_absent => {
                Some("the import would end in `error`")
            }
            _ => None,
        };
        if harm.is_some() || !matches!(key, "container" | "data_timestamp") {
            differences.push(Difference { key, record: told.clone(), store: found.clone(), harm });
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::record;
    use super::*;

    #[test]
    fn each_difference_says_what_comes_of_it() {
        let store = record();
        let with = |key: &str, value: Value| {
            let mut changed = record();
            changed.0.insert(key.to_owned(), value);
            compare(&changed, &store)
        };
        let without = |key: &str| {
            let mut changed = record();
            changed.0.remove(key);
            compare(&changed, &store)
        };
        for key in store.0.keys().filter(|key| !matches!(key.as_str(), "container")) {
            let found = without(key);
            assert_eq!(found.len(), 1, "{key}");
            assert_eq!(found[0].key, key);
            assert!(found[0].harm.is_some(), "{key}");
        }
        for (key, value, is_harmful) in [
            ("parent_id", json!(null), true),
            ("parent_id", json!("other"), true),
            ("container", json!("team/one"), true),
            ("service_metadata", json!("backup2"), true),
            ("id", json!("4321"), true),
            ("volume_id", json!("w"), true),
            ("size", json!(1), true),
            ("size", json!(3), false),
            ("object_count", json!(0), false),
            ("display_name", json!(null), false),
            ("data_timestamp", json!(null), true),
        ] {
            let found = with(key, value);
            assert_eq!(found.len(), 1, "{key}");
            assert_eq!(found[0].harm.is_some(), is_harmful, "{key}");
        }
        assert_eq!(with("container", json!("12/34/1234/")), []);
        assert_eq!(with("data_timestamp", json!("2023-01-01T00:00:00Z")), []);
        assert_eq!(with("more", json!(1)), []);
    }
}
