//! Does a map tell who holds each byte, and what is zeros, without a gap?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/store.rs"]
mod store;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::map::{MapEntry, State, map};
use cinderfs::image::Image;
use cinderfs::store::posix::PosixStore;
use serde_json::Value;
use store::{BLOCK, Backup, fixture, flip, noise};

fn catalog(store: &Path) -> Catalog {
    let store = Arc::new(PosixStore::open(store).unwrap());
    Catalog::open(store, CatalogOptions { workers: 0, ..CatalogOptions::default() }).unwrap()
}

fn image(store: &Path, id: &str) -> Arc<Image> {
    let catalog = catalog(store);
    catalog.image(catalog.snapshot().get(id).unwrap()).unwrap()
}

fn entries(image: &Image, threads: usize) -> Vec<MapEntry> {
    let mut entries = Vec::new();
    map(image, threads, &AtomicBool::new(false), &mut |entry| {
        entries.push(entry.clone());
        Ok(())
    })
    .unwrap();
    entries
}

fn cinderfs(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.args(words).env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    let output =
        command.env_remove("CINDERFS_LOG").env_remove("COLUMNS").env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// Sorted, not empty, without a gap, from 0 to the end, and no two neighbours could be one.
fn check_shape(entries: &[MapEntry], len_bytes: u64) {
    let mut at = 0;
    for entry in entries {
        assert!(entry.image.start == at && entry.image.end > at, "{entry:?}");
        at = entry.image.end;
    }
    assert_eq!(at, len_bytes);
    for pair in entries.windows(2) {
        let len = pair[0].image.end - pair[0].image.start;
        let next = pair[0].held.map(|(object, offset)| (object, offset + len));
        assert!(pair[0].state != pair[1].state || next != pair[1].held, "{pair:?}");
    }
}

#[test]
fn genuine_backups_are_zero_exactly_where_whole_blocks_are() {
    for name in ["ext4", "zeros", "branch", "unaligned", "grew", "emulated-python2", "release-7.0.3-zlib"] {
        let catalog = catalog(&fixture(name));
        let snapshot = catalog.snapshot();
        for entry in snapshot.entries() {
            let image = catalog.image(entry).unwrap();
            let entries = entries(&image, 3);
            check_shape(&entries, image.len_bytes());
            let mut bytes = vec![0; image.len_bytes() as usize];
            image.read_at(&mut bytes, 0).unwrap();
            let block = image.block_bytes() as usize;
            for (n, block_bytes) in bytes.chunks(block).enumerate() {
                let is_zero = block_bytes.iter().all(|&byte| byte == 0);
                let at = (n * block) as u64;
                let entry = entries.iter().find(|entry| entry.image.contains(&at)).unwrap();
                assert_eq!(entry.state, if is_zero { State::Zeros } else { State::Data }, "{name} {at}");
            }
        }
    }
}

/// A chain of three, of which the second stores zeros, and the third the last block anew.
fn chain(store: &Path) -> [Backup; 3] {
    let first = Backup::new("f1", "v1", noise(1, 20 * BLOCK + 100));
    let mut zeroed = first.image.clone();
    zeroed[4 * BLOCK..8 * BLOCK].fill(0);
    let second = Backup { image: zeroed, ..first.clone() };
    #[expect(clippy::single_range_in_vec_init, reason = "one object")]
    let second = Backup { id: "i2".into(), ..second }.on("f1", &[4 * BLOCK..8 * BLOCK]);
    let mut newest = second.image.clone();
    newest[20 * BLOCK..].copy_from_slice(&noise(3, 100));
    let third = Backup { id: "i3".into(), image: newest, ..second.clone() };
    #[expect(clippy::single_range_in_vec_init, reason = "one object")]
    let third = third.on("i2", &[20 * BLOCK..20 * BLOCK + 100]);
    for backup in [&first, &second, &third] {
        backup.put(store);
    }
    [first, second, third]
}

#[test]
fn json_is_that_of_qemu_img_and_ours() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let store = folder.path().to_str().unwrap();
    let output = cinderfs(&["map", store, "i3", "-f", "json"]);
    assert_eq!(text(&output).lines().count(), 4, "an entry on each line: {}", text(&output));
    let list: Value = serde_json::from_str(text(&output)).unwrap();
    let keys: Vec<&String> = list[0].as_object().unwrap().keys().collect();
    assert_eq!(keys[..6], ["start", "length", "depth", "present", "zero", "data"]);
    let told = list.as_array().unwrap().iter().map(|entry| {
        let number = |key: &str| entry[key].as_u64().unwrap();
        (number("start"), number("length"), number("depth"), entry["zero"] == true, number("object_offset"))
    });
    let block = BLOCK as u64;
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (0, 4 * block, 2, false, 0),
            (4 * block, 4 * block, 1, true, 0),
            (8 * block, 12 * block, 2, false, 8 * block),
            (20 * block, 100, 0, false, 0),
        ]
    );
    assert!(list[1]["object"].as_str().unwrap().ends_with("_backup_i2-00001"));
    assert_eq!(
        (&list[1]["backup"], &list[1]["present"], &list[1]["data"]),
        (&"i2".into(), &true.into(), &false.into())
    );
    assert_eq!((&list[1]["compression"], &list[1]["state"]), (&"none".into(), &"zero".into()));
}

#[test]
fn what_cannot_be_had_is_lost_in_whole_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let image_bytes = noise(1, 10 * BLOCK);
    // Nobody holds the second half of block 3.
    let backup =
        Backup::new("f1", "v1", image_bytes).extents(&[0..3 * BLOCK + BLOCK / 2, 4 * BLOCK..10 * BLOCK]);
    backup.put(folder.path());
    let found = entries(&image(folder.path(), "f1"), 1);
    let block = BLOCK as u64;
    let lost: Vec<_> = found
        .iter()
        .filter(|e| e.state == State::Lost)
        .map(|e| (e.image.clone(), e.held.is_some()))
        .collect();
    assert_eq!(lost, [(3 * block..3 * block + block / 2, true), (3 * block + block / 2..4 * block, false)]);
    check_shape(&found, 10 * block);
    // A line of the digest file that is no digest any more.
    let file = backup.file(folder.path(), "_sha256file");
    let digits = std::fs::read_to_string(&file).unwrap().find("sha256s").unwrap();
    flip(&file, digits + 13 + 72 * 7 + 30);
    let found = entries(&image(folder.path(), "f1"), 2);
    let lost: u64 =
        found.iter().filter(|e| e.state == State::Lost).map(|e| e.image.end - e.image.start).sum();
    assert_eq!(lost, 2 * block);
}

#[test]
fn without_digests_nothing_is_known_to_be_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let backup = Backup::new("f1", "v1", vec![0; 4 * BLOCK]).extents(&[0..BLOCK, 2 * BLOCK..4 * BLOCK]);
    backup.without_digests().put(folder.path());
    let states: Vec<_> = entries(&image(folder.path(), "f1"), 1).into_iter().map(|e| e.state).collect();
    assert_eq!(states, [State::Data, State::Lost, State::Data]);
}

#[test]
fn a_map_of_many_parts_is_the_same_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = noise(5, 512 * 70_000);
    for n in (0..70_000).filter(|n| n % 7 < 3) {
        bytes[n * 512..(n + 1) * 512].fill(0);
    }
    Backup::new("f1", "v1", bytes).block(512).put(folder.path());
    let image = image(folder.path(), "f1");
    let one = entries(&image, 1);
    check_shape(&one, image.len_bytes());
    assert_eq!(one.len(), 20_000);
    assert_eq!(entries(&image, 4), one);
}

#[test]
fn people_see_a_table_and_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let store = folder.path().to_str().unwrap();
    let output = cinderfs(&["map", store, "i3", "--picture", "always"]);
    assert_eq!(
        text(&output),
        "\
+--------+--------+-------+----------+--------+--------+-------+
|  Start | Length | State | Backup   | Object | Offset | Codec |
+--------+--------+-------+----------+--------+--------+-------+
|      0 | 131072 | data  | f1       | 00001  |      0 | none  |
| 131072 | 131072 | zero  | i2       | 00001  |      0 | none  |
| 262144 | 393216 | data  | f1       | 00001  | 262144 | none  |
| 655360 |    100 | data  | i3       | 00001  |      0 | none  |
+--------+--------+-------+----------+--------+--------+-------+

        0 B ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ
 106.68 KiB ZZZZZZZZZZZZZZ......................................................
 213.37 KiB ...........................ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ
 320.05 KiB ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ
 426.73 KiB ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ
 533.42 KiB ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ

      100 B A <0.1% i3 2024-03-01T01:01:07Z name of i3
 512.00 KiB Z 80.0% f1 2024-03-01T01:01:07Z name of f1 (full)
 128.00 KiB . 20.0% zeros
"
    );
    assert_eq!(
        text(&cinderfs(&["map", store, "i3", "-c", "Depth", "-c", "Start", "-f", "value"])),
        "0 2\n131072 1\n262144 2\n655360 0\n"
    );
    let summary = cinderfs(&["map", store, "i3", "--summary"]);
    assert!(text(&summary).starts_with("        0 B ZZZ") && text(&summary).ends_with("zeros\n"));
}
