//! Where does an image end, and what lies where no object is? Named cases beside the random ones of `image_model`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/store_kit.rs"]
mod store_kit;

use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::Image;
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::memory::MemoryStore;
use cinderfs::{ErrorKind, Result};
use store_kit::{BackupSpec, ObjectSpec, Packing, digests_of};

const IDS: [&str; 2] = ["10000000-full", "20000000-tip"];
const BLOCK_BYTES: usize = 100;

type Extents<'a> = &'a [(usize, &'a [u8])];

/// A chain of one or two backups, of which the newest has the digests of `volume`.
fn chain(layers: &[Extents<'_>], volume: &[u8]) -> Arc<FaultStore<MemoryStore>> {
    let store = MemoryStore::new();
    for (index, extents) in layers.iter().enumerate() {
        let mut spec = BackupSpec::new(IDS[index], "30000000-vol");
        spec.parent_id = (index > 0).then(|| IDS[0].into());
        let object = |&(offset, plain): &(usize, &[u8])| ObjectSpec {
            offset,
            plain: plain.into(),
            packing: Packing::Zlib { level: 6, junk: 0 },
        };
        spec.objects = extents.iter().map(object).collect();
        spec.digests = Some((BLOCK_BYTES, digests_of(volume, BLOCK_BYTES)));
        spec.write_to_memory(&store);
    }
    Arc::new(FaultStore::new(store, []))
}

/// The image of the newest of `backups` backups.
fn open(store: &Arc<FaultStore<MemoryStore>>, backups: usize) -> Result<Arc<Image>> {
    let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
    let snapshot = catalog.snapshot();
    catalog.image(snapshot.get(IDS[backups - 1]).unwrap())
}

#[track_caller]
fn is(layers: &[Extents<'_>], volume: &[u8]) {
    let image = open(&chain(layers, volume), layers.len()).unwrap();
    assert_eq!(image.len_bytes(), volume.len() as u64);
    let mut bytes = vec![0xEE; volume.len()];
    assert_eq!(image.read_at(&mut bytes, 0).unwrap(), volume.len());
    assert!(bytes == volume);
}

/// `full` with `patch` over it, cut or filled up with zeros to `len`.
fn patched(full: &[u8], at: usize, patch: &[u8], len: usize) -> Vec<u8> {
    let mut volume = full.to_vec();
    volume.resize(len.max(at + patch.len()), 0);
    volume[at..at + patch.len()].copy_from_slice(patch);
    volume.truncate(len);
    volume
}

#[test]
fn a_part_of_the_last_block_does_not_end_the_volume() {
    let full = [7; 350];
    is(&[&[(0, &full)], &[(290, &[1; 20])]], &patched(&full, 290, &[1; 20], 350));
    is(&[&[(0, &full)], &[(300, &[1; 20])]], &patched(&full, 300, &[1; 20], 350));
}

#[test]
fn a_part_of_the_last_block_may_end_the_volume() {
    let full = [7; 350];
    is(&[&[(0, &full)], &[(310, &[1; 20])]], &patched(&full, 310, &[1; 20], 330));
    is(&[&[(0, &full)], &[(340, &[1; 40])]], &patched(&full, 340, &[1; 40], 380));
}

#[test]
fn a_volume_cut_at_a_border_ends_there_whatever_ends_before() {
    let full = [7; 350];
    is(&[&[(0, &full)], &[(220, &[1; 20])]], &patched(&full, 220, &[1; 20], 300));
}

#[test]
fn a_damaged_last_block_leaves_the_rule_for_chains_of_cinder() {
    let full = [7; 350];
    let image = open(&chain(&[&[(0, &full)], &[(300, &[1; 20])]], &[9; 350]), 2).unwrap();
    assert_eq!(image.len_bytes(), 320);
    assert_eq!(image.read_at(&mut [0; 10], 310).unwrap_err().kind(), ErrorKind::HashMismatch);
}

#[test]
fn the_last_block_is_read_only_where_the_extents_disagree() {
    let full = [7; 350];
    let away = || [Rule::new(Operation::Read, Fault::Error(ErrorKind::StoreIo)).names("*-0*")];
    let agree = chain(&[&[(0, &full)], &[(300, &[1; 50])]], &patched(&full, 300, &[1; 50], 350));
    agree.set_script(away());
    assert_eq!(open(&agree, 2).unwrap().len_bytes(), 350);

    let disagree = chain(&[&[(0, &full)], &[(300, &[1; 20])]], &patched(&full, 300, &[1; 20], 350));
    disagree.set_script(away());
    assert_eq!(open(&disagree, 2).err().unwrap().kind(), ErrorKind::StoreIo);
    disagree.set_script([]);
    assert_eq!(open(&disagree, 2).unwrap().len_bytes(), 350);
}

#[test]
fn a_gap_is_zeros_where_the_digest_says_so() {
    // Both within a block and over whole ones.
    is(&[&[(0, &[1; 30]), (60, &[2; 50]), (395, &[3; 5])]], &{
        let mut volume = vec![0; 400];
        volume[..30].fill(1);
        volume[60..110].fill(2);
        volume[395..].fill(3);
        volume
    });
}

#[test]
fn a_gap_is_lost_where_the_digest_speaks_of_data() {
    let image = open(&chain(&[&[(0, &[1; 30]), (60, &[2; 340])]], &[4; 400]), 1).unwrap();
    let error = image.read_at(&mut [0; 5], 10).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoData);
}
