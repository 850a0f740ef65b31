//! Chains to consolidate, and what a store holds before and after.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::Result;
use cinderfs::backup::{Backup, DigestFile};
use cinderfs::catalog::{Catalog, CatalogOptions, Entry};
use cinderfs::codec::Codec;
use cinderfs::store::posix::PosixStore;
use cinderfs::types::BlockHash;
use cinderfs::writer::consolidate::{Consolidated, Consolidation, consolidate};
use tempfile::TempDir;

use crate::store_kit::{BackupSpec, ObjectSpec, Packing, digests_of};
use crate::volume::{BLOCK, Random, id, mixed};

pub(crate) const CODECS: [Codec; 4] = [Codec::None, Codec::Zlib, Codec::Bz2, Codec::Zstd];

/// That nothing was added, removed or changed.
#[track_caller]
pub(crate) fn check_same(now: &Tree, before: &Tree) {
    let names = |tree: &Tree, other: &Tree| -> Vec<PathBuf> {
        tree.iter()
            .filter(|(path, bytes)| other.get(*path) != Some(bytes))
            .map(|(path, _)| path.clone())
            .collect()
    };
    let (new, old) = (names(now, before), names(before, now));
    assert!(new.is_empty() && old.is_empty(), "new or changed: {new:?}, gone or changed: {old:?}");
}

/// Every file beneath a folder, hidden ones included.
pub(crate) type Tree = BTreeMap<PathBuf, Vec<u8>>;

pub(crate) fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                tree.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    tree
}

pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("cinderfs-test-").tempdir().unwrap()
}

pub(crate) fn open(store: &Path) -> Catalog {
    Catalog::open(Arc::new(PosixStore::open(store).unwrap()), CatalogOptions::default()).unwrap()
}

pub(crate) fn entry(catalog: &Catalog, id: &str) -> Arc<Entry> {
    catalog.snapshot().get(id).unwrap_or_else(|| panic!("no backup {id}")).clone()
}

pub(crate) fn make(store: &Path, id: &str, wanted: &Consolidation) -> Result<Consolidated> {
    let catalog = open(store);
    consolidate(store, &catalog, &entry(&catalog, id), wanted, &AtomicBool::new(false), &|_| {})
}

pub(crate) fn image_bytes(store: &Path, id: &str) -> Vec<u8> {
    let catalog = open(store);
    let image = catalog.image(&entry(&catalog, id)).unwrap();
    let mut bytes = vec![0xEE; image.len_bytes() as usize];
    assert_eq!(image.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

pub(crate) fn digests(store: &Path, id: &str) -> (u64, Vec<BlockHash>) {
    let catalog = open(store);
    let store = &**catalog.store();
    let backup = Backup::open(store, &entry(&catalog, id).metadata_name).unwrap();
    let DigestFile::Usable(table) = backup.digests(store).unwrap() else { panic!("{id} has no digests") };
    (table.block_bytes(), table.get(0..table.count()).into_iter().collect::<Result<_>>().unwrap())
}

/// Removes all files of all backups but those of `kept`.
pub(crate) fn remove_others(store: &Path, kept: &[&str]) {
    for path in tree(store).into_keys() {
        let text = path.to_str().unwrap();
        if !kept.iter().any(|id| text.contains(&format!("_backup_{id}"))) {
            fs::remove_file(path).unwrap();
        }
    }
}

/// A chain of some MiB: a full backup and incrementals, each of which changed a run of blocks, a day apart.
pub(crate) struct Chain {
    pub(crate) folder: TempDir,
    pub(crate) specs: Vec<BackupSpec>,
    pub(crate) images: Vec<Vec<u8>>,
}

impl Chain {
    pub(crate) fn new(len: usize, links: usize, packing: Packing) -> Self {
        let mut bytes = mixed(3, len);
        let mut random = Random::new(9);
        let (mut specs, mut images): (Vec<BackupSpec>, Vec<Vec<u8>>) = Default::default();
        for link in 0..links {
            let mut spec = BackupSpec::new(&id(&format!("c{link}")), &id("vc"));
            let mut extent = 0..len;
            if link > 0 {
                spec.parent_id = Some(specs[link - 1].id.clone());
                let start = random.below(len / BLOCK / 2) * BLOCK;
                extent = start..(start + 10 * BLOCK).min(len);
                bytes[extent.clone()].copy_from_slice(&mixed(50 + link as u64, extent.len()));
            }
            spec.created_at = format!("2024-03-{:02} 01:01:07+00:00", link + 1);
            spec.digests = Some((BLOCK, digests_of(&bytes, BLOCK)));
            spec.objects.push(ObjectSpec { offset: extent.start, plain: bytes[extent].to_vec(), packing });
            specs.push(spec);
            images.push(bytes.clone());
        }
        let folder = folder();
        specs.iter().for_each(|spec| spec.write_to_folder(&folder.path().join("store")));
        Self { folder, specs, images }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn tip(&self) -> &str {
        &self.specs.last().unwrap().id
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.arg(words[0]).arg(self.store()).args(&words[1..]);
        command.env("CINDERFS_CACHE_DIR", self.folder.path().join("cache")).env_remove("CINDERFS_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Flips a bit of the stored object of a link, in byte `at`; returns the object as it was.
    pub(crate) fn damage(&self, link: usize, at: usize) -> Vec<u8> {
        let path = self.store().join(self.specs[link].object_path(0));
        let sound = fs::read(&path).unwrap();
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
        sound
    }
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

pub(crate) const PLAIN: Packing = Packing::Plain("none");

pub(crate) const ZLIB: Packing = Packing::Zlib { level: 6, junk: 0 };
