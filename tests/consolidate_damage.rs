//! Does `consolidate` write nothing that it has not proven?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/consolidate_kit.rs"]
mod consolidate_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::fs;

use cinderfs::ErrorKind;
use cinderfs::types::BlockHash;
use cinderfs::writer::consolidate::Consolidation;

use consolidate_kit::*;
use store_kit::{Packing, digests_of};
use volume::{BLOCK, MIB, mixed};

// > `consolidate` compares every block with its digest, or every object with its md5 where there are none; one that cannot be proven ends it, and nothing is left.
#[test]
fn damage_ends_it_with_the_place_and_nothing_left() {
    for packing in [PLAIN, ZLIB, Packing::Zstd { level: 3, frames: 1 }] {
        let chain = Chain::new(4 * MIB + 5, 3, packing);
        // Behind what later backups hide.
        assert!(chain.specs[1..].iter().all(|spec| spec.objects[0].offset < 2 * MIB));
        let at = match packing {
            PLAIN => 3 * MIB + 17,
            _ => {
                fs::metadata(chain.store().join(chain.specs[0].object_path(0))).unwrap().len() as usize * 7
                    / 8
            }
        };
        let sound = chain.damage(0, at);
        let before = tree(&chain.store());
        let output = chain.run(&["consolidate", chain.tip(), "--object-size", "1M"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
        let stderr = text(&output.stderr);
        assert!(stderr.contains(chain.tip()) && stderr.contains("image bytes"), "{stderr}");
        if packing == PLAIN {
            let place = format!("image bytes {} to {}", 3 * MIB, 3 * MIB + BLOCK);
            assert!(stderr.contains(&place), "{stderr}");
        }
        check_same(&tree(&chain.store()), &before);
        // What is whole again is consolidated.
        fs::write(chain.store().join(chain.specs[0].object_path(0)), sound).unwrap();
        make(&chain.store(), chain.tip(), &Consolidation::default()).unwrap();
    }
    // A file that is missing is no other case.
    let chain = Chain::new(MIB, 2, ZLIB);
    fs::remove_file(chain.store().join(chain.specs[0].object_path(0))).unwrap();
    let before = tree(&chain.store());
    let output = chain.run(&["consolidate", chain.tip()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    check_same(&tree(&chain.store()), &before);
}

#[test]
fn damage_that_the_image_does_not_show_does_no_harm() {
    let chain = Chain::new(4 * MIB, 2, PLAIN);
    chain.damage(0, chain.specs[1].objects[0].offset + 5);
    let made = make(&chain.store(), chain.tip(), &Consolidation::default()).unwrap();
    assert!(image_bytes(&chain.store(), made.created.id.as_str()) == chain.images[1]);
    assert_eq!(made.healed_blocks, 0);
}

#[test]
fn a_lost_block_is_taken_from_another_backup_that_has_it() {
    let chain = Chain::new(4 * MIB, 2, PLAIN);
    let copy = make(&chain.store(), &chain.specs[0].id, &Consolidation::default()).unwrap();
    chain.damage(0, 4 * MIB - 1);
    let made = make(&chain.store(), chain.tip(), &Consolidation::default()).unwrap();
    assert_eq!(made.healed_blocks, 1);
    remove_others(&chain.store(), &[made.created.id.as_str()]);
    assert!(image_bytes(&chain.store(), made.created.id.as_str()) == chain.images[1]);
    assert_ne!(copy.created.id, made.created.id);
}

/// Without digests every object is proven by its md5 first; the new backup has digests.
// > `consolidate` compares every block with its digest, or every object with its md5 where there are none; one that cannot be proven ends it, and nothing is left.
#[test]
fn a_chain_without_digests_gets_them() {
    let mut chain = Chain::new(2 * MIB + 1, 3, Packing::Bz2 { level: 1, streams: 1 });
    for spec in &mut chain.specs {
        let names = spec.files();
        let name = names.iter().find(|(name, _)| name.ends_with("_sha256file")).unwrap();
        fs::remove_file(chain.folder.path().join("store").join(&name.0)).unwrap();
    }
    let before = tree(&chain.store());
    for (block_bytes, expected) in [(None, BLOCK), (Some(4096), 4096)] {
        let wanted = Consolidation { block_bytes, ..Consolidation::default() };
        let made = make(&chain.store(), chain.tip(), &wanted).unwrap();
        let id = made.created.id.as_str();
        assert!(image_bytes(&chain.store(), id) == chain.images[2]);
        let hashes: Vec<_> = digests_of(&chain.images[2], expected).into_iter().map(BlockHash).collect();
        assert_eq!(digests(&chain.store(), id), (expected as u64, hashes));
    }
    // Bytes that nothing but the md5 proves are not taken when it does not.
    let made = tree(&chain.store());
    made.keys().filter(|path| !before.contains_key(*path)).for_each(|path| fs::remove_file(path).unwrap());
    let path = chain.store().join(chain.specs[0].object_path(0));
    let other = Packing::Bz2 { level: 1, streams: 1 }.pack(&mixed(77, 2 * MIB + 1));
    fs::write(path, other).unwrap();
    let before = tree(&chain.store());
    let error = make(&chain.store(), chain.tip(), &Consolidation::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HashMismatch, "{error}");
    assert!(error.to_string().contains("image bytes"), "{error}");
    check_same(&tree(&chain.store()), &before);
}
