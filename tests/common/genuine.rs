//! The backups that genuine Cinder made, and what their bytes must be.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// How many genuine backups there are. Whoever adds or removes one says so here.
pub(crate) const BACKUPS: usize = 303;
/// How many stores they lie in.
pub(crate) const STORES: usize = 99;

/// One backup as the Cinder that made it knows it.
pub(crate) struct Genuine {
    /// The store's folder below [`root`].
    pub(crate) store: String,
    pub(crate) id: String,
    /// 1 for the first backup of its store.
    pub(crate) order: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) parent_id: Option<String>,
    pub(crate) volume_id: String,
    /// The folder below the store.
    pub(crate) container: String,
    pub(crate) prefix: String,
    /// Files that hold data. (Cinder's DB says 0 for releases up to 10.0.0 and one too many up to 13.)
    pub(crate) objects: u64,
}

impl Genuine {
    /// The store's root.
    pub(crate) fn store_path(&self) -> PathBuf {
        root().join(&self.store)
    }

    fn count_objects(&self) -> u64 {
        let files = std::fs::read_dir(self.store_path().join(&self.container)).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let number =
            |name: String| Some(name.strip_prefix(&self.prefix)?.strip_prefix('-')?.parse::<u64>().is_ok());
        names.filter_map(number).filter(|&is_number| is_number).count() as u64
    }

    /// Fails unless `bytes` is the whole volume as it was when the backup was made.
    #[track_caller]
    pub(crate) fn check(&self, how: &str, bytes: &[u8]) {
        assert_eq!(bytes.len() as u64, self.bytes, "length of {self} {how}");
        assert_eq!(sha256(bytes), self.sha256, "bytes of {self} {how}");
    }
}

impl std::fmt::Display for Genuine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} #{} ({})", self.store, self.order, self.id)
    }
}

/// The folder that holds the stores; itself a store of all backups.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores")
}

/// All genuine backups, by store, in the order they were made in.
pub(crate) fn backups() -> Vec<Genuine> {
    let text = std::fs::read_to_string(root().join("expected.json")).unwrap();
    let stores: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(stores.len(), STORES, "stores in expected.json");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut all: Vec<Genuine> = Vec::new();
    for (store, value) in &stores {
        for (id, value) in value["backups"].as_object().unwrap() {
            all.push(Genuine {
                store: store.clone(),
                id: id.clone(),
                order: value["order"].as_u64().unwrap(),
                bytes: value["bytes"].as_u64().unwrap(),
                sha256: text(&value["sha256"]),
                parent_id: value["parent_id"].as_str().map(str::to_owned),
                volume_id: text(&value["volume_id"]),
                container: text(&value["container"]),
                prefix: text(&value["prefix"]),
                objects: 0,
            });
            let backup = all.last_mut().unwrap();
            backup.objects = backup.count_objects();
            let in_database = value["objects"].as_u64().unwrap();
            let differs = in_database == 0 || in_database == backup.objects + 1;
            assert!(in_database == backup.objects || store.starts_with("release-") && differs, "{backup}");
        }
    }
    assert_eq!(all.len(), BACKUPS, "backups in expected.json");
    all.sort_by(|a, b| (&a.store, a.order).cmp(&(&b.store, b.order)));
    all
}

/// The backups of one store.
pub(crate) fn backups_of(store: &str) -> Vec<Genuine> {
    let found: Vec<_> = backups().into_iter().filter(|backup| backup.store == store).collect();
    assert!(!found.is_empty(), "no store {store}");
    found
}

/// Lower-case hexadecimal sha256.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
