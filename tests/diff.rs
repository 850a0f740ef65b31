//! Does a diff tell every block that differs, from the digests alone?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/store.rs"]
mod store;

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::diff::{Change, Differences, diff};
use cinderfs::store::posix::PosixStore;
use cinderfs::writer::source::changed::Changed;
use store::{BLOCK, Backup, flip, noise};

type Ranges = Vec<(Range<u64>, Change)>;

fn compare(store: &Path, threads: usize) -> cinderfs::Result<(Ranges, Differences)> {
    let store = Arc::new(PosixStore::open(store).unwrap());
    let catalog = Catalog::open(store, CatalogOptions { workers: 0, ..CatalogOptions::default() }).unwrap();
    let snapshot = catalog.snapshot();
    let image = |id: &str| catalog.image(snapshot.get(id).unwrap()).unwrap();
    let mut ranges = Vec::new();
    let found = diff(&image("a1"), &image("b2"), threads, &AtomicBool::new(false), &mut |range, change| {
        ranges.push((range, change));
        Ok(())
    })?;
    Ok((ranges, found))
}

fn cinderfs(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.args(words).env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.env_remove("CINDERFS_LOG").env_remove("COLUMNS").env("LC_ALL", "C").output().unwrap()
}

/// Two volumes; the objects are taken out of the store, since nobody needs them.
fn put(store: &Path, old: Vec<u8>, new: Vec<u8>, block_bytes: usize) {
    for (id, bytes) in [("a1", old), ("b2", new)] {
        let backup = Backup::new(id, &format!("v-{id}"), bytes).block(block_bytes);
        backup.put(store);
        std::fs::remove_file(backup.file(store, "-00001")).unwrap();
    }
}

/// What a comparison of the bytes says, block by block.
fn model(old: &[u8], new: &[u8], block_bytes: usize) -> Vec<(Range<u64>, Change)> {
    let mut ranges: Vec<(Range<u64>, Change)> = Vec::new();
    for (n, block) in new.chunks(block_bytes).enumerate() {
        let start = (n * block_bytes) as u64;
        let range = start..start + block.len() as u64;
        let change = match old.chunks(block_bytes).nth(n) {
            Some(before) if before == block => Change::Same,
            _ if block.iter().all(|&byte| byte == 0) => Change::Zeroed,
            _ => Change::Data,
        };
        match ranges.last_mut() {
            Some((last, of)) if *of == change => last.end = range.end,
            _ => ranges.push((range, change)),
        }
    }
    if old.len() > new.len() {
        ranges.push((new.len() as u64..old.len() as u64, Change::Removed));
    }
    ranges
}

// > `diff` tells every block that differs between two backups, and which of them became zeros, from digests alone.
#[test]
fn every_block_that_differs_is_told() {
    // The last one has several parts for several threads.
    for (seed, old_len, new_len, block) in [
        (1, 5000, 5000, 100),
        (2, 5000, 5050, 100),
        (3, 5050, 4999, 100),
        (4, 900, 60_000, 512),
        (5, 70_000 * 64, 70_001 * 64, 64),
    ] {
        let old = noise(seed, old_len);
        let mut new = old.clone();
        new.resize(new_len, 7);
        for (n, piece) in new.chunks_mut(3 * block + 11).enumerate() {
            match (n as u64 + seed) % 5 {
                0 => piece.fill(0),
                1 => piece[0] ^= 1,
                _ => {}
            }
        }
        let expected = model(&old, &new, block);
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), old, new, block);
        for threads in [1, 3] {
            let (ranges, found) = compare(folder.path(), threads).unwrap();
            assert_eq!(ranges, expected, "seed {seed}");
            let bytes = |wanted: &[Change]| -> u64 {
                ranges
                    .iter()
                    .filter(|(_, of)| wanted.contains(of))
                    .map(|(range, _)| range.end - range.start)
                    .sum()
            };
            assert_eq!(found.changed_bytes, bytes(&[Change::Data, Change::Zeroed]));
            assert_eq!(found.zeroed_bytes, bytes(&[Change::Zeroed]));
            assert_eq!(found.ranges, ranges.iter().filter(|(_, of)| *of != Change::Same).count() as u64);
        }
    }
}

// > A block whose digest is damaged is `unknown` in `diff`, and counts as changed.
#[test]
fn a_damaged_digest_is_not_taken_for_equal() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(1, 8 * BLOCK);
    put(folder.path(), bytes.clone(), bytes, BLOCK);
    for id in ["a1", "b2"] {
        // The same damage in both.
        let file = Backup::new(id, &format!("v-{id}"), Vec::new()).file(folder.path(), "_sha256file");
        let list = std::fs::read_to_string(&file).unwrap().find("sha256s").unwrap();
        flip(&file, list + 13 + 72 * 3 + 30);
    }
    let (ranges, found) = compare(folder.path(), 1).unwrap();
    let block = BLOCK as u64;
    assert_eq!(ranges[1], (3 * block..4 * block, Change::Unknown));
    assert_eq!((found.unknown_bytes, found.changed_bytes), (block, block));
}

// > `diff` refuses backups without digests, or with blocks of different sizes.
#[test]
fn what_digests_cannot_tell_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(1, 8 * BLOCK);
    Backup::new("a1", "v", bytes.clone()).put(folder.path());
    Backup::new("b2", "v", bytes.clone()).block(BLOCK * 2).put(folder.path());
    assert_eq!(compare(folder.path(), 1).unwrap_err().kind(), ErrorKind::Unsupported);
    let output = cinderfs(&["diff", folder.path().to_str().unwrap(), "a1", "b2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "cinderfs: the digests of a1 are of 32768 bytes each, those of b2 of 65536: they say nothing about each other\n\
         hint: restore or mount both, and compare the images: cmp -l, or qemu-img compare\n"
    );
    std::fs::remove_dir_all(folder.path().join("b2")).unwrap();
    Backup::new("b2", "v", bytes).without_digests().put(folder.path());
    assert!(compare(folder.path(), 1).unwrap_err().to_string().contains("b2 has no usable digests"));
}

// > The JSON of `diff` is a list that `create --changed-from` takes, and a torn one is refused there.
#[test]
fn its_json_is_a_list_for_create() {
    let folder = tempfile::tempdir().unwrap();
    let old = noise(1, 9 * BLOCK + 5);
    let mut new = old.clone();
    new[BLOCK] ^= 1;
    new[4 * BLOCK..6 * BLOCK].fill(0);
    let len = new.len() as u64;
    put(folder.path(), old.clone(), new, BLOCK);
    let store = folder.path().to_str().unwrap();
    let list = |old: &str, new: &str| {
        let output = cinderfs(&["diff", store, old, new, "-f", "json", "-q"]);
        assert!(output.status.success(), "{output:?}");
        Changed::parse(&*output.stdout, len).unwrap()
    };
    let block = BLOCK as u64;
    assert_eq!(list("a1", "b2").ranges(), [block..2 * block, 4 * block..6 * block]);
    assert_eq!(list("b2", "b2").ranges(), [] as [Range<u64>; 0]);
    // A torn one is noticed.
    let output = cinderfs(&["diff", store, "a1", "b2", "-f", "json"]);
    let torn = String::from_utf8(output.stdout).unwrap();
    let torn = torn.rsplit_once(",\n").unwrap().0.to_owned() + "]";
    assert!(Changed::parse(torn.as_bytes(), len).is_err());
}

#[test]
fn people_see_ranges_a_picture_and_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let old = noise(1, 16 * BLOCK);
    let mut new = old[..12 * BLOCK].to_vec();
    new[BLOCK] ^= 1;
    new[4 * BLOCK..6 * BLOCK].fill(0);
    put(folder.path(), old, new, BLOCK);
    let store = folder.path().to_str().unwrap();
    let output = cinderfs(&["diff", store, "a1", "b2", "--picture", "always"]);
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "cinderfs: these are backups of different volumes\n"
    );
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "\
+--------+--------+---------+
|  Start | Length | Change  |
+--------+--------+---------+
|  32768 |  32768 | data    |
| 131072 |  65536 | zeroed  |
| 393216 | 131072 | removed |
+--------+--------+---------+

        0 B ..................................CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC
  64.00 KiB ....................................................................
 128.00 KiB ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ
 192.00 KiB ....................................................................
 256.00 KiB ....................................................................
 320.00 KiB ....................................................................

  32.00 KiB C  8.3% changed
  64.00 KiB Z 16.7% zeroed
 288.00 KiB . 75.0% same
 128.00 KiB R 33.3% removed: behind the end of the newer one
a1 -> b2: 96.00 KiB of 384.00 KiB changed (25.0 %) in 3 ranges
64.00 KiB of that zeroed, 128.00 KiB shorter
"
    );
    let output = cinderfs(&["diff", store, "a1", "b2", "-f", "csv"]);
    let rows = "32768,32768,\"data\",True\n131072,65536,\"zeroed\",True\n393216,131072,\"removed\",True\n";
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("\"Start\",\"Length\",\"Change\",\"Dirty\"\n{rows}")
    );
    // An empty list would say that nothing changed.
    for verb in [&["diff", store, "a1", "b2"][..], &["map", store, "a1"]] {
        let output = cinderfs(&[verb, &["--summary", "-f", "json"]].concat());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{verb:?}");
    }
    let output = cinderfs(&["diff", store, "a1", "a1"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "a1 -> a1: 512.00 KiB without a difference\n");
}
