//! Are genuine backups the right bytes without a mount: through `restore` and through the library? And are they listed?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mountpoint_guard.rs"]
mod mountpoint_guard;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::store::posix::PosixStore;
use genuine::{BACKUPS, Genuine, backups, root};
use mountpoint_guard::{cinderfs, run};
use serde_json::Value;

fn restore(store: &Path, backup: &Genuine) -> Command {
    let mut command = cinderfs();
    command.args(["-q", "restore"]).arg(store).arg(&backup.id);
    command
}

#[test]
fn every_backup_restores_to_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    for backup in backups() {
        let target = folder.path().join(&backup.id);
        run(restore(&root(), &backup).arg(&target));
        backup.check("restored to a new file", &fs::read(&target).unwrap());
        fs::remove_file(&target).unwrap();
    }
}

/// What is a hole in the image must become zeros in a file that had other bytes there, and nothing may stay behind.
#[test]
fn every_backup_restores_over_an_existing_file() {
    let folder = tempfile::tempdir().unwrap();
    for backup in backups() {
        let target = folder.path().join(&backup.id);
        let other = match backup.order % 3 {
            0 => backup.bytes,
            1 => backup.bytes + 70_001,
            _ => backup.bytes / 2,
        };
        let junk = vec![0xa5; other as usize];
        fs::write(&target, &junk).unwrap();
        let refused = restore(&backup.store_path(), &backup).arg(&target).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{backup}");
        assert!(fs::read(&target).unwrap() == junk, "{backup}: a refused restore changed its target");
        run(restore(&backup.store_path(), &backup).arg(&target).arg("--force"));
        backup.check("restored over a file", &fs::read(&target).unwrap());
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn every_backup_restores_to_stdout() {
    for backup in backups() {
        let output = run(restore(&backup.store_path(), &backup).arg("-"));
        backup.check("restored to stdout", &output.stdout);
    }
}

#[test]
fn every_backup_reads_through_the_library() {
    let store = Arc::new(PosixStore::open(&root()).unwrap());
    let catalog =
        Catalog::open(store, CatalogOptions { cache_bytes_max: 8 << 20, ..CatalogOptions::default() })
            .unwrap();
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.entries().count(), BACKUPS);
    for (n, backup) in backups().iter().enumerate() {
        let entry = snapshot.get(&backup.id).unwrap();
        let image = catalog.image(entry).unwrap();
        assert_eq!(image.len_bytes(), backup.bytes, "{backup}");
        let step = [1 << 20, 65_537, 4_001][n % 3];
        let mut bytes = Vec::new();
        let mut buffer = vec![0xa5; step];
        loop {
            match image.read_at(&mut buffer, bytes.len() as u64).unwrap() {
                0 => break,
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
        backup.check("through the library", &bytes);
        assert_eq!(image.chain().len() as u64, chain_len(backup), "{backup}");
    }
}

/// How many backups the image is made of, from expected.json alone.
fn chain_len(backup: &Genuine) -> u64 {
    let all = genuine::backups_of(&backup.store);
    let (mut len, mut parent) = (1, backup.parent_id.clone());
    while let Some(id) = parent {
        parent = all.iter().find(|other| other.id == id).unwrap().parent_id.clone();
        len += 1;
    }
    len
}

#[test]
fn list_has_every_backup() {
    let output = run(cinderfs().arg("list").arg(root()).args(["-f", "json"]));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.len(), BACKUPS);
    for backup in backups() {
        let mut found = rows.iter().filter(|row| row["ID"] == *backup.id);
        let row = found.next().unwrap_or_else(|| panic!("{backup} is not listed"));
        assert!(found.next().is_none(), "{backup} is listed twice");
        assert_eq!(row["Status"], "available", "{backup}");
        assert_eq!(row["Incremental"], backup.parent_id.is_some(), "{backup}");
    }
}

#[test]
fn show_tells_every_backup() {
    for backup in backups() {
        let output =
            run(cinderfs().arg("show").arg(backup.store_path()).arg(&backup.id).args(["-f", "json"]));
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown["id"], *backup.id);
        assert_eq!(shown["parent_id"].as_str(), backup.parent_id.as_deref(), "{backup}");
        assert_eq!(shown["is_incremental"], backup.parent_id.is_some(), "{backup}");
        assert_eq!(shown["object_count"], backup.objects, "{backup}");
        assert_eq!(shown["image_bytes"], backup.bytes, "{backup}");
        assert_eq!(shown["container"], *backup.container, "{backup}");
        assert_eq!(shown["chain"].as_array().unwrap().len() as u64, chain_len(&backup), "{backup}");
    }
}
