//! Small chains of backups for tests that take backups away or write records of them, and the program.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::store::posix::PosixStore;
use cinderfs::types::BackupId;

use crate::store_kit::{BackupSpec, Naming, ObjectSpec, Packing, digests_of};

const BLOCK_BYTES: usize = 512;

/// A backup and what its image must be.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) spec: BackupSpec,
    pub(crate) volume: Vec<u8>,
}

impl Made {
    /// A full backup of three objects, the last one ending in a short block.
    pub(crate) fn full(id: &str, volume_id: &str, naming: Naming) -> Self {
        let volume: Vec<u8> = (0..5 * BLOCK_BYTES + 100)
            .map(|i| (i / 7) as u8 ^ id.bytes().fold(i as u8, |sum, byte| sum.wrapping_mul(31) ^ byte))
            .collect();
        let mut spec = BackupSpec { naming, ..BackupSpec::new(id, volume_id) };
        for (i, plain) in volume.chunks(2 * BLOCK_BYTES).enumerate() {
            let packing = [Packing::Zlib { level: 6, junk: 0 }, Packing::Plain("none")][i % 2];
            spec.objects.push(ObjectSpec { offset: i * 2 * BLOCK_BYTES, plain: plain.to_vec(), packing });
        }
        spec.digests = Some((BLOCK_BYTES, digests_of(&volume, BLOCK_BYTES)));
        Self { spec, volume }
    }

    /// What changed since: two blocks, two objects.
    pub(crate) fn child(&self, id: &str, day: u8) -> Self {
        let mut made = self.clone();
        made.spec.id = id.into();
        made.spec.parent_id = Some(self.spec.id.clone());
        made.spec.created_at = format!("2024-01-{day:02} 03:04:05+00:00");
        made.spec.objects.clear();
        for block in [0, 3 + usize::from(day) % 2] {
            let range = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            made.volume[range.clone()].iter_mut().for_each(|byte| *byte = byte.wrapping_add(day));
            let plain = made.volume[range.clone()].to_vec();
            made.spec.objects.push(ObjectSpec {
                offset: range.start,
                plain,
                packing: Packing::Plain("none"),
            });
        }
        made.spec.digests = Some((BLOCK_BYTES, digests_of(&made.volume, BLOCK_BYTES)));
        made
    }

    pub(crate) fn id(&self) -> BackupId {
        BackupId::parse(&self.spec.id).unwrap()
    }

    pub(crate) fn put(&self, root: &Path) -> &Self {
        self.spec.write_to_folder(root);
        self
    }

    /// Names relative to the store's root.
    pub(crate) fn file_names(&self) -> BTreeSet<String> {
        self.spec.files().into_iter().map(|(name, _)| name).collect()
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.spec.files().iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

/// A tree of backups of one volume: `aaaa` full, `bbbb` and `dddd` on it, `cccc` on `bbbb`.
pub(crate) fn family(naming: Naming) -> [Made; 4] {
    let full = Made::full("aaaa0000-1", "volume-1", naming);
    let b = full.child("bbbb0000-2", 3);
    let c = b.child("cccc0000-3", 4);
    let d = full.child("dddd0000-4", 5);
    [full, b, c, d]
}

pub(crate) fn catalog(root: &Path) -> Catalog {
    Catalog::open(Arc::new(PosixStore::open(root).unwrap()), CatalogOptions::default()).unwrap()
}

/// Fails unless the store lists exactly these backups, each with its right bytes.
#[track_caller]
pub(crate) fn check_store(root: &Path, backups: &[&Made], when: &str) {
    let catalog = catalog(root);
    let snapshot = catalog.snapshot();
    let ids: BTreeSet<_> = snapshot.entries().map(|entry| entry.id.to_string()).collect();
    let expected: BTreeSet<_> = backups.iter().map(|made| made.spec.id.clone()).collect();
    assert_eq!(ids, expected, "{when}");
    for made in backups {
        let image = catalog.image(snapshot.get(&made.spec.id).unwrap()).unwrap();
        let mut bytes = vec![0; made.volume.len() + 1];
        assert_eq!(image.len_bytes(), made.volume.len() as u64, "{when}");
        let len = image.read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..len] == made.volume, "{when}: {}", made.spec.id);
    }
}

/// Every file of a folder, relative to it; what is being written or deleted left out.
pub(crate) fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if name.starts_with(".cinderfs-") {
                continue;
            }
            match fs::symlink_metadata(&path).unwrap().is_dir() {
                true => folders.push(path),
                false => _ = found.insert(name),
            }
        }
    }
    found
}

/// The hidden folders of a store.
pub(crate) fn hidden(root: &Path) -> Vec<String> {
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".cinderfs-")).collect()
}

pub(crate) fn cinderfs(words: &[&str]) -> Output {
    command(words).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command
        .args(words)
        .env_remove("CINDERFS_LOG")
        .env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Fails unless the program ends with this code and says this on stderr.
#[track_caller]
pub(crate) fn ends(words: &[&str], code: i32, message: &str) -> Output {
    let output = cinderfs(words);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {}", stderr(&output));
    assert!(stderr(&output).contains(message), "{words:?}: {}", stderr(&output));
    output
}
