//! Does a consolidated backup take its chain's place, and stay what the volume was?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/consolidate_kit.rs"]
mod consolidate_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use cinderfs::writer::consolidate::Consolidation;
use cinderfs::writer::create::{Base, Created, NewBackup, create};
use cinderfs::writer::source::FileSource;
use serde_json::Value;

use consolidate_kit::*;
use volume::{BLOCK, MIB};

/// An incremental of `bytes` on the newest backup of the volume.
fn incremental(store: &Path, volume: &str, bytes: &[u8], now: &str) -> Created {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let new = NewBackup { base: Base::Newest, ..NewBackup::full(volume.parse_id()) };
    let source = FileSource::open(file.path()).unwrap();
    let now = now.parse().unwrap();
    create(store, &open(store), &source, &new, now, &AtomicBool::new(false), &|_| {}).unwrap()
}

trait ParseId {
    fn parse_id(&self) -> cinderfs::types::VolumeId;
}

impl ParseId for str {
    fn parse_id(&self) -> cinderfs::types::VolumeId {
        cinderfs::types::VolumeId::parse(self).unwrap()
    }
}

#[test]
fn the_chain_goes_on_from_the_new_backup_where_it_is_the_newest() {
    let chain = Chain::new(2 * MIB + 77, 3, ZLIB);
    let (store, volume) = (chain.store(), chain.specs[0].volume_id.clone());
    let made = make(&store, chain.tip(), &Consolidation::default()).unwrap();
    assert_eq!(made.created.created_at.to_string(), "2024-03-03T01:01:08Z");
    let mut bytes = chain.images[2].clone();
    bytes[5 * BLOCK] ^= 1;
    let next = incremental(&store, &volume, &bytes, "2024-03-04T00:00:00Z");
    assert_eq!(next.parent_id.as_ref(), Some(&made.created.id));
    assert_eq!(next.progress.changed_bytes, BLOCK as u64);
    remove_others(&store, &[made.created.id.as_str(), next.id.as_str()]);
    assert!(image_bytes(&store, next.id.as_str()) == bytes);
    // And so on: a chain that was consolidated is consolidated again.
    let again = make(&store, next.id.as_str(), &Consolidation::default()).unwrap();
    remove_others(&store, &[again.created.id.as_str()]);
    assert!(image_bytes(&store, again.created.id.as_str()) == bytes);
}

#[test]
fn the_ancestors_can_be_deleted() {
    let chain = Chain::new(MIB + 7, 3, ZLIB);
    let output = chain.run(&["consolidate", chain.tip()]);
    let id = text(&output.stdout).trim_end();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = chain.run(&["delete", &chain.specs[0].id, "--cascade"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let catalog = open(&chain.store());
    let left: Vec<_> = catalog.snapshot().entries().map(|entry| entry.id.to_string()).collect();
    assert_eq!(left, [id]);
    assert!(image_bytes(&chain.store(), id) == chain.images[2]);
}

// > It is dated directly behind the backup that it was made of, and before all later ones of the volume, so that old data never becomes the latest.
#[test]
fn old_data_does_not_become_the_latest() {
    let chain = Chain::new(MIB, 3, ZLIB);
    let (store, volume) = (chain.store(), chain.specs[0].volume_id.clone());
    let made = make(&store, &chain.specs[1].id, &Consolidation::default()).unwrap();
    assert_eq!(made.created.created_at.to_string(), "2024-03-02T01:01:08Z");
    let target = chain.folder.path().join("latest");
    let output = chain.run(&["restore", &format!("{volume}@latest"), target.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(fs::read(target).unwrap() == chain.images[2], "latest is an older one");
    let next = incremental(&store, &volume, &chain.images[2], "2024-03-04T00:00:00Z");
    assert_eq!((next.parent_id.unwrap().as_str(), next.progress.changed_bytes), (chain.tip(), 0));
    assert!(image_bytes(&store, made.created.id.as_str()) == chain.images[1]);
}

// > A consolidated backup is a full one with an id of its own, and needs none of its chain.
#[test]
fn what_the_volume_was_stays_and_who_the_backup_is_changes() {
    let chain = Chain::new(MIB, 2, ZLIB);
    let document = |id: &str| -> Value {
        let catalog = open(&chain.store());
        let entry = entry(&catalog, id);
        serde_json::from_slice(&fs::read(chain.store().join(entry.metadata_name.as_str())).unwrap()).unwrap()
    };
    let metas = [
        "{\"version\": 2, \"volume-base-metadata\": {\"size\": 7, \"display_name\": \"\u{fc} \u{1f4be}\", \"host\": null}, \"volume-metadata\": {\"k\": \"v\"}}",
        "{\"version\": 1}",
        "no JSON",
    ];
    let path = chain.store().join(chain.specs[1].files().last().unwrap().0.clone());
    let sound: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let lists = [
        (Some(metas[0]), Some(metas[0])),
        (Some(metas[1]), Some(metas[1])),
        (Some(metas[2]), None),
        (None, None),
    ];
    for (given, kept) in lists {
        let mut changed = sound.clone();
        changed["volume_meta"] = given.map_or(Value::Null, Value::from);
        fs::write(&path, serde_json::to_vec_pretty(&changed).unwrap()).unwrap();
        let wanted = Consolidation { name: Some("n\u{e4}me".into()), ..Consolidation::default() };
        let made = make(&chain.store(), chain.tip(), &wanted).unwrap();
        let new = document(made.created.id.as_str());
        assert_eq!(new["volume_meta"], kept.map_or(Value::Null, Value::from));
        assert_eq!(new["volume_id"], sound["volume_id"]);
        assert_eq!(new["backup_name"], "n\u{e4}me");
        assert_eq!(new["backup_description"], format!("consolidated from {}", chain.tip()));
        assert_eq!((&new["parent_id"], &new["version"]), (&Value::Null, &Value::from("1.0.0")));
        assert_ne!(new["backup_id"], sound["backup_id"]);
    }
}
