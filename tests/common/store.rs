//! Small stores for tests, written as Cinder's POSIX driver does: data objects, `_sha256file`, `_metadata` last.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};
use serde_json::{Value, json};
use sha2::Sha256;

/// Bytes of a hash block unless told otherwise.
pub(crate) const BLOCK: usize = 32768;

/// A backup to be written.
#[derive(Clone)]
pub(crate) struct Backup {
    pub(crate) id: String,
    pub(crate) volume: String,
    /// The whole volume as of this backup.
    pub(crate) image: Vec<u8>,
    pub(crate) created_at: String,
    pub(crate) parent: Option<String>,
    pub(crate) display_name: Option<String>,
    pub(crate) size_gib: u64,
    pub(crate) block_bytes: usize,
    /// What the objects hold, one each; all of the image in one object where empty.
    pub(crate) extents: Vec<Range<usize>>,
    pub(crate) digests: bool,
}

impl Backup {
    /// A full backup.
    pub(crate) fn new(id: &str, volume: &str, image: Vec<u8>) -> Self {
        Self {
            id: id.to_owned(),
            volume: volume.to_owned(),
            image,
            created_at: "2024-03-01 01:01:07+00:00".to_owned(),
            parent: None,
            display_name: None,
            size_gib: 1,
            block_bytes: BLOCK,
            extents: Vec::new(),
            digests: true,
        }
    }

    pub(crate) fn at(mut self, created_at: &str) -> Self {
        self.created_at = created_at.to_owned();
        self
    }

    pub(crate) fn named(mut self, display_name: &str) -> Self {
        self.display_name = Some(display_name.to_owned());
        self
    }

    pub(crate) fn gib(mut self, size_gib: u64) -> Self {
        self.size_gib = size_gib;
        self
    }

    pub(crate) fn block(mut self, block_bytes: usize) -> Self {
        self.block_bytes = block_bytes;
        self
    }

    /// One object each for these ranges of the image.
    pub(crate) fn extents(mut self, extents: &[Range<usize>]) -> Self {
        self.extents = extents.to_vec();
        self
    }

    /// Builds on another backup and holds only these ranges.
    pub(crate) fn on(self, parent: &str, extents: &[Range<usize>]) -> Self {
        Self { parent: Some(parent.to_owned()), ..self.extents(extents) }
    }

    /// Has no `_sha256file`.
    pub(crate) fn without_digests(mut self) -> Self {
        self.digests = false;
        self
    }

    fn prefix(&self) -> String {
        format!("volume_{}_20240301010107_backup_{}", self.volume, self.id)
    }

    /// Where one of its files lies: `-00001`, `_sha256file`, `_metadata`.
    pub(crate) fn file(&self, store: &Path, ending: &str) -> PathBuf {
        store.join(&self.id).join(self.prefix() + ending)
    }

    /// Writes it.
    pub(crate) fn put(&self, store: &Path) -> &Self {
        self.put_unfinished(store);
        fs::write(self.file(store, "_metadata"), pretty(&self.metadata())).unwrap();
        self
    }

    /// Writes all but `_metadata`, as a backup in progress looks.
    pub(crate) fn put_unfinished(&self, store: &Path) {
        fs::create_dir_all(store.join(&self.id)).unwrap();
        for (number, extent) in (1..).zip(self.pieces()) {
            fs::write(self.file(store, &format!("-{number:05}")), &self.image[extent]).unwrap();
        }
        if self.digests {
            let blocks = self.image.chunks(self.block_bytes);
            let digests: Vec<String> = blocks.map(|block| hex(&Sha256::digest(block))).collect();
            let document = json!({
                "backup_description": null, "backup_id": self.id, "backup_name": null, "chunk_size": self.block_bytes,
                "created_at": self.created_at, "sha256s": digests, "version": "1.0.0", "volume_id": self.volume,
            });
            fs::write(self.file(store, "_sha256file"), pretty(&document)).unwrap();
        }
    }

    /// Takes it out, `_metadata` first.
    pub(crate) fn remove(&self, store: &Path) {
        fs::remove_file(self.file(store, "_metadata")).unwrap();
        fs::remove_dir_all(store.join(&self.id)).unwrap();
    }

    pub(crate) fn metadata(&self) -> Value {
        let objects: Vec<Value> = (1..)
            .zip(self.pieces())
            .map(|(number, extent)| {
                let bytes = &self.image[extent.clone()];
                json!({ format!("{}-{number:05}", self.prefix()): {
                    "compression": "none", "length": bytes.len(), "md5": hex(&Md5::digest(bytes)), "offset": extent.start,
                } })
            })
            .collect();
        let meta = json!({ "version": 2, "volume-base-metadata": {
            "id": self.volume, "size": self.size_gib, "display_name": self.display_name,
        } });
        json!({
            "backup_description": null, "backup_id": self.id, "backup_name": format!("name of {}", self.id),
            "created_at": self.created_at, "objects": objects, "parent_id": self.parent, "version": "1.0.0",
            "volume_id": self.volume, "volume_meta": meta.to_string(),
        })
    }

    fn pieces(&self) -> Vec<Range<usize>> {
        #[expect(clippy::single_range_in_vec_init, reason = "one object that holds all")]
        if self.extents.is_empty() && self.parent.is_none() {
            vec![0..self.image.len()]
        } else {
            self.extents.clone()
        }
    }
}

/// Bytes that repeat nowhere, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

/// A genuine store of the fixtures.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores").join(name)
}

/// Turns one bit of a file over.
pub(crate) fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// As Python's `json.dumps(…, indent=2)` writes it, except that non-ASCII is not escaped.
fn pretty(document: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(document).unwrap()
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
