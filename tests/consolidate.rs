//! Is a consolidated backup the image of its chain, whatever that is made of?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/consolidate_kit.rs"]
mod consolidate_kit;
#[path = "common/history.rs"]
mod history;
#[path = "common/painted.rs"]
mod painted;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::ErrorKind;
use cinderfs::backup::Backup;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::Codec;
use cinderfs::image::Verification;
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::posix::PosixStore;
use cinderfs::types::BlockHash;
use cinderfs::writer::consolidate::{Consolidated, Consolidation, consolidate};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use cases::{Watchdog, runner};
use consolidate_kit::*;
use history::{Built, histories};
use painted::Painted;
use store_kit::{BackupSpec, Naming, ObjectSpec, digests_of};
use volume::{BLOCK, MIB, id, mixed};

/// It is a full backup of that image, with its digests, and stands alone.
fn check(store: &Path, made: &Consolidated, expected: &Painted, spec: &BackupSpec, wanted: &Consolidation) {
    let id = made.created.id.as_str();
    let catalog = open(store);
    let entry = entry(&catalog, id);
    assert_eq!(entry.parent_id, None);
    assert_eq!(entry.volume_id.as_ref().unwrap().as_str(), spec.volume_id);
    let image = catalog.image(&entry).unwrap();
    assert_eq!(image.verification(), Verification::Sha256);
    assert_eq!(image.chain().len(), 1);
    assert!(made.chain.iter().map(|id| id.as_str()).eq(expected.chain.iter().map(String::as_str)));
    assert!(image_bytes(store, id) == expected.bytes, "the image is another one");
    let block_bytes = expected.block_bytes.unwrap_or(BLOCK);
    let hashes: Vec<_> = digests_of(&expected.bytes, block_bytes).into_iter().map(BlockHash).collect();
    assert_eq!(digests(store, id), (block_bytes as u64, hashes));
    if let Some((_, theirs)) = &spec.digests {
        assert!(digests(store, id).1.iter().map(|hash| hash.0).eq(theirs.iter().copied()));
    }
    // Cinder wants all bytes of a full backup in objects, each within its window.
    let backup = Backup::open(&**catalog.store(), &entry.metadata_name).unwrap();
    let mut at = 0;
    for object in &backup.objects {
        assert_eq!(object.offset, at);
        assert!(object.len_bytes <= wanted.object_bytes.unwrap_or(128 << 20));
        assert!(object.codec == wanted.codec || object.codec == Codec::None);
        at += object.len_bytes;
    }
    assert_eq!(at, expected.bytes.len() as u64);
    assert_eq!(backup.objects.len() as u64, made.created.objects);
}

#[derive(Clone, Debug)]
struct Choice {
    which: Index,
    codec: Codec,
    object_blocks: u64,
    threads: usize,
    is_named: bool,
}

fn choice() -> impl Strategy<Value = Choice> {
    let object_blocks = prop_oneof![1u64..4, 1u64..64];
    (any::<Index>(), select(&CODECS[..]), object_blocks, 1usize..6, any::<bool>()).prop_map(
        |(which, codec, object_blocks, threads, is_named)| Choice {
            which,
            codec,
            object_blocks,
            threads,
            is_named,
        },
    )
}

/// Trees of backups by genuine and foreign writers, with shrinks, odd lengths, and links without digests; two of each are
/// consolidated, then all others go.
// > A consolidated backup is a full one with an id of its own, and needs none of its chain.
#[test]
fn a_consolidated_backup_is_the_image_of_its_chain_and_needs_none_of_it() {
    let strategy = (histories(&[512, 1000, 4096, 32768], 1..=200_000, 6), [choice(), choice()]);
    let counts = std::cell::RefCell::new((0, 0));
    runner(80, 0xc0_5011)
        .run(&strategy, |(history, choices)| {
            let _watchdog = Watchdog::new();
            let Built { specs, images } = history.build(1);
            let folder = folder();
            let store = folder.path();
            specs.iter().for_each(|spec| spec.write_to_folder(store));
            let mut made = Vec::new();
            for choice in &choices {
                let at = choice.which.index(specs.len());
                let (spec, expected) = (&specs[at], &images[at]);
                let block_bytes = expected.block_bytes.unwrap_or(BLOCK) as u64;
                let wanted = Consolidation {
                    codec: choice.codec,
                    object_bytes: Some(choice.object_blocks * block_bytes),
                    container: choice.is_named.then(|| "team/one".try_into_name()),
                    threads: choice.threads,
                    ..Consolidation::default()
                };
                let before = tree(store);
                let result = make(store, &spec.id, &wanted);
                if expected.bytes.is_empty() {
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::Usage);
                    check_same(&tree(store), &before);
                } else if !expected.is_whole() {
                    let error = result.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::NoData, "{error}");
                    check_same(&tree(store), &before);
                    counts.borrow_mut().1 += 1;
                } else {
                    let result = result.unwrap();
                    let now = tree(store);
                    assert!(
                        before.iter().all(|(path, bytes)| now.get(path) == Some(bytes)),
                        "others were touched"
                    );
                    check(store, &result, expected, spec, &wanted);
                    made.push((result, expected, spec, wanted));
                    counts.borrow_mut().0 += 1;
                }
            }
            let kept: Vec<_> = made.iter().map(|(made, ..)| made.created.id.as_str()).collect();
            remove_others(store, &kept);
            made.iter().for_each(|(made, expected, spec, wanted)| check(store, made, expected, spec, wanted));
            Ok(())
        })
        .unwrap();
    let (whole, refused) = counts.into_inner();
    assert!(
        std::env::var_os("PROPTEST_CASES").is_some() || (whole > 100 && refused > 0),
        "{whole} {refused}"
    );
}

trait TryIntoName {
    fn try_into_name(&self) -> cinderfs::types::ObjectName;
}

impl TryIntoName for str {
    fn try_into_name(&self) -> cinderfs::types::ObjectName {
        cinderfs::types::ObjectName::parse(self).unwrap()
    }
}

#[test]
fn zeros_that_the_digests_tell_are_not_read() {
    let folder = folder();
    let mut bytes = vec![0; 24 * MIB + 100];
    bytes[..2 * MIB].copy_from_slice(&mixed(1, 2 * MIB));
    bytes[20 * MIB..21 * MIB].copy_from_slice(&mixed(2, MIB));
    let mut spec = BackupSpec::new(&id("z"), &id("vz"));
    spec.digests = Some((BLOCK, digests_of(&bytes, BLOCK)));
    spec.naming = Naming::New;
    for start in (0..bytes.len()).step_by(MIB) {
        let plain = bytes[start..bytes.len().min(start + MIB)].to_vec();
        spec.objects.push(ObjectSpec { offset: start, plain, packing: ZLIB });
    }
    spec.write_to_folder(folder.path());
    let is_zeros = |object: &ObjectSpec| object.plain.iter().all(|&byte| byte == 0);
    let zeros = spec.objects.iter().enumerate().filter(|(_, object)| is_zeros(object));
    let rules = zeros.map(|(i, _)| {
        Rule::new(Operation::Open, Fault::Error(ErrorKind::StoreIo)).names(spec.object_path(i))
    });
    let store = FaultStore::new(PosixStore::open(folder.path()).unwrap(), rules);
    let catalog = Catalog::open(Arc::new(store), CatalogOptions::default()).unwrap();
    for codec in CODECS {
        let wanted = Consolidation { codec, object_bytes: Some(4 << 20), ..Consolidation::default() };
        let entry = entry(&catalog, &spec.id);
        let cancel = AtomicBool::new(false);
        let made = consolidate(folder.path(), &catalog, &entry, &wanted, &cancel, &|_| {}).unwrap();
        assert!(image_bytes(folder.path(), made.created.id.as_str()) == bytes, "{codec:?}");
        // An existing volume that Cinder restores to must get its zeros written.
        assert_eq!(made.created.progress.changed_bytes, bytes.len() as u64);
        assert_eq!(made.created.objects, 7);
    }
}
