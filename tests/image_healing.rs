//! What one backup has lost is taken from another that has the same bytes at the same place.

#![expect(clippy::unwrap_used, reason = "a test states what must be")]

use std::path::Path;
use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::{Image, Part};
use cinderfs::store::posix::PosixStore;

/// Two full backups of one volume, which grew between them, and an incremental on each.
const STORE: &str = "tests/fixtures/stores/grew";
const OLD_FULL: &str = "80fbeb0b-3228-41b2-a896-9ee565dac97b";
const NEW_FULL: &str = "f8335d9f-89b4-4544-a887-d7f7cdbbba59";

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn folder_of(store: &Path, id: &str) -> std::path::PathBuf {
    store.join(&id[..2]).join(&id[2..4]).join(id)
}

fn image(store: &Path, id: &str) -> (Catalog, Arc<Image>) {
    let store = Arc::new(PosixStore::open(store).unwrap());
    let catalog = Catalog::open(store, CatalogOptions::default()).unwrap();
    let image = catalog.image(catalog.snapshot().get(id).unwrap()).unwrap();
    (catalog, image)
}

/// Each block: its bytes, or `None` where it is lost.
fn blocks(image: &Image) -> Vec<Option<Vec<u8>>> {
    let mut blocks = Vec::new();
    image
        .visit(0..image.len_bytes(), &mut |part, what| {
            blocks.push(match what {
                Part::Data(bytes) => Some(bytes.to_vec()),
                Part::Zeros => Some(vec![0; (part.end - part.start) as usize]),
                Part::Lost(_) => None,
            });
            Ok(())
        })
        .unwrap();
    blocks
}

#[test]
fn a_lost_object_is_healed_as_far_as_another_backup_goes() {
    let right = blocks(&image(Path::new(STORE), OLD_FULL).1);
    let elsewhere = blocks(&image(Path::new(STORE), NEW_FULL).1);
    let folder = tempfile::tempdir().unwrap();
    copy(Path::new(STORE), folder.path());
    // The first object of the older full backup: the first half of its volume.
    let objects = std::fs::read_dir(folder_of(folder.path(), OLD_FULL)).unwrap();
    let first = objects.map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().ends_with("-00001")).unwrap();
    std::fs::remove_file(first).unwrap();

    let (catalog, damaged) = image(folder.path(), OLD_FULL);
    let read = blocks(&damaged);
    let half = right.len() / 2;
    let (mut healed, mut lost) = (0, 0);
    for (i, block) in read.iter().enumerate() {
        let is_zeros = right[i].iter().flatten().all(|&byte| byte == 0);
        match block {
            Some(_) => assert_eq!(block, &right[i], "block {i}"),
            None => {
                assert!(i < half && elsewhere[i] != right[i] && !is_zeros, "block {i} was there to be had");
            }
        }
        lost += u64::from(block.is_none());
        healed += u64::from(i < half && block.is_some() && !is_zeros);
    }
    assert!(healed > 0, "the fixture's backups share blocks");
    assert_eq!((damaged.damage().healed_blocks, damaged.damage().blocks), (healed, lost));
    drop(catalog);

    // Alone it has nobody to ask.
    let (catalog, _) = image(folder.path(), OLD_FULL);
    for entry in catalog.snapshot().entries().filter(|entry| entry.id.as_str() != OLD_FULL) {
        std::fs::remove_dir_all(folder_of(folder.path(), entry.id.as_str())).unwrap();
    }
    let (_catalog, alone) = image(folder.path(), OLD_FULL);
    let zeros = |block: &Option<Vec<u8>>| block.iter().flatten().all(|&byte| byte == 0);
    let still_there = |i: usize| i >= half || zeros(&right[i]);
    for (i, block) in blocks(&alone).iter().enumerate() {
        assert_eq!(block.is_some(), still_there(i), "block {i}");
    }
    assert_eq!(alone.damage().healed_blocks, 0);
}
