//! Are backups that were created in stores behind HTTP the volume's bytes, and named and laid out as Cinder's own?
//!
//! Run by `scripts/services/test.sh`, which starts the servers.

#![cfg(feature = "remote")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/as_cinder.rs"]
mod as_cinder;
#[path = "common/cinder.rs"]
mod cinder;
#[path = "common/conformance.rs"]
#[allow(unused_macros, unused_imports, reason = "this test uses a part of the kit")]
mod conformance;
#[path = "common/driver.rs"]
mod driver;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/new_backup.rs"]
mod new_backup;
#[path = "common/servers.rs"]
mod servers;

use std::sync::Arc;

use cinderfs::backup::Backup;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::Codec;
use cinderfs::image::Verification;
use cinderfs::store::Store;
use cinderfs::types::ObjectName;
use cinderfs::writer::Target;
use cinderfs::writer::create::{Base, Created, NewBackup, create};
use cinderfs::writer::delete::{self, DeleteOptions};

use conformance::listed;
use new_backup::{MemorySource, VOLUME, volume};
use serde_json::json;
use servers::{Bucket, Kind};

const ALL: [Kind; 4] = [Kind::S3, Kind::Swift, Kind::Keystone, Kind::Gcs];

const MIB: usize = 1 << 20;

/// Noise, text and zeros, a third each, in runs of half a megabyte.
fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        match bytes.len() / (MIB / 2) % 3 {
            0 => {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend(state.to_le_bytes());
            }
            1 => bytes.extend(format!("line {}\n", bytes.len()).bytes()),
            _ => bytes.extend([0; 4096]),
        }
    }
    bytes.truncate(len);
    bytes
}

fn made(store: &Arc<dyn Store>, bytes: &[u8], new: &NewBackup) -> cinderfs::Result<Created> {
    let objects = store.clone().into_objects().expect("a store that objects are put into");
    let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
    let source = MemorySource::new(bytes.to_vec());
    let now = "2026-02-03T04:05:06Z".parse().unwrap();
    let target = Target::Objects { store: &objects, zone: "az 1" };
    create(target, &catalog, &source, new, now, &Default::default(), &|_| {})
}

/// The image of a backup is these bytes, and its names are Cinder's.
fn check(store: &Arc<dyn Store>, folder: &str, created: &Created, bytes: &[u8]) {
    let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
    let entry = catalog.snapshot().get(created.id.as_str()).unwrap().clone();
    let image = catalog.image(&entry).unwrap();
    assert_eq!(image.verification(), Verification::Sha256);
    assert_eq!(image.len_bytes(), bytes.len() as u64);
    let mut read = vec![1; bytes.len()];
    let mut at = 0;
    while at < read.len() {
        at += image.read_at(&mut read[at..], at as u64).unwrap();
    }
    assert!(read == bytes, "the image is another one");

    let prefix = format!(
        "volume_{VOLUME}/{}/az_az 1_backup_{}",
        created.created_at.strftime("%Y%m%d%H%M%S"),
        created.id
    );
    let backup = Backup::open(&**store, &entry.metadata_name).unwrap();
    let mut expected: Vec<String> =
        (1..=backup.objects.len()).map(|number| format!("{folder}{prefix}-{number:05}")).collect();
    let found: Vec<String> =
        backup.objects.iter().map(|object| backup.object_name(object).unwrap().to_string()).collect();
    assert_eq!(found, expected, "in the order of the volume");
    assert!(backup.objects.windows(2).all(|pair| pair[0].offset < pair[1].offset));
    expected.extend([format!("{folder}{prefix}_metadata"), format!("{folder}{prefix}_sha256file")]);
    let there: Vec<String> =
        listed(&**store, "").into_iter().filter(|name| name.contains(created.id.as_str())).collect();
    assert_eq!(there, expected, "nothing else, and no marker");
}

fn settings(codec: Codec, object_bytes: u64) -> NewBackup {
    NewBackup { codec, object_bytes: Some(object_bytes), ..NewBackup::full(volume()) }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn full_and_incremental_backups_are_the_volume() {
    for kind in ALL {
        let bucket = Bucket::new(kind);
        let store = bucket.store();
        let mut bytes = content(9 * MIB + 12_345);
        for codec in [Codec::Zlib, Codec::Zstd, Codec::None] {
            let new = settings(codec, MIB as u64);
            let full = made(&store, &bytes, &new).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
            check(&store, "", &full, &bytes);
            bytes[3 * MIB + 5] ^= 1;
            bytes[7 * MIB..7 * MIB + 100_000].iter_mut().for_each(|byte| *byte ^= 0x55);
            let newest = NewBackup { base: Base::Newest, ..new };
            let incremental = made(&store, &bytes, &newest).unwrap();
            assert_eq!(incremental.parent_id.as_ref(), Some(&full.id));
            assert_eq!(incremental.objects, 2);
            check(&store, "", &incremental, &bytes);
            let unchanged = made(&store, &bytes, &newest).unwrap();
            assert_eq!(unchanged.objects, 0);
            check(&store, "", &unchanged, &bytes);
        }
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_container_is_made_where_there_is_none() {
    for kind in [Kind::Swift, Kind::Keystone] {
        let bucket = Bucket::new(kind);
        let name = format!("{} of its own", bucket.name);
        let new = settings(Codec::Zlib, MIB as u64);
        let bytes = content(2 * MIB);
        let store = bucket.open(&format!("swift:{name}"));
        // The catalog of a container that is not there cannot be opened; the account's can.
        let account = bucket.open("swift:");
        let container = Some(ObjectName::parse(&name).unwrap());
        let created = made(&account, &bytes, &NewBackup { container, ..new }).unwrap();
        check(&store, "", &created, &bytes);
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn objects_too_long_for_one_request_go_in_parts() {
    for kind in ALL {
        let bucket = Bucket::new(kind);
        let store = bucket.store();
        let bytes: Vec<u8> = content(MIB / 2).repeat(200);
        let created = made(&store, &bytes, &settings(Codec::None, 100 * MIB as u64)).unwrap();
        assert_eq!(created.objects, 1);
        check(&store, "", &created, &bytes);
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn deleted_backups_leave_nothing_and_parents_stay() {
    for kind in ALL {
        let bucket = Bucket::new(kind);
        let store = bucket.store();
        let objects = store.clone().into_objects().unwrap();
        let mut bytes = content(3 * MIB);
        let new = settings(Codec::Zlib, MIB as u64);
        let full = made(&store, &bytes, &new).unwrap();
        bytes[5] ^= 1;
        let child = made(&store, &bytes, &NewBackup { base: Base::Newest, ..new }).unwrap();
        let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
        let options = DeleteOptions::default();
        let plan = |id| delete::plan(&catalog, &objects, std::slice::from_ref(id), &options);
        assert_eq!(plan(&full.id).unwrap_err().kind(), cinderfs::ErrorKind::Usage, "the child builds on it");
        let planned = plan(&child.id).unwrap();
        let mut gone = Vec::new();
        delete::delete(&objects, &planned, &options, &|| false, &mut |backup| {
            gone.push(backup.entry.id.clone());
        })
        .unwrap();
        assert_eq!(gone, std::slice::from_ref(&child.id));
        bytes[5] ^= 1;
        check(&store, "", &full, &bytes);
        assert!(!listed(&*store, "").iter().any(|name| name.contains(child.id.as_str())));
    }
}

fn genuine_cinder_restores_them_and_goes_on_with_them(kind: Kind) {
    let bucket = Bucket::new(kind);
    let store = bucket.store();
    let mut cinder = driver::of(&bucket);
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let mut bytes = content(5 * MIB + 4321);
    for codec in [Codec::Zlib, Codec::Zstd, Codec::Bz2] {
        let new = settings(codec, MIB as u64);
        let full = made(&store, &bytes, &new).unwrap();
        bytes[2 * MIB + 7..3 * MIB].iter_mut().for_each(|byte| *byte ^= 0x33);
        let tip = made(&store, &bytes, &NewBackup { base: Base::Newest, ..new }).unwrap();
        assert!(cinder.restores(tip.id.as_str(), bytes.len()) == bytes, "{kind:?} {codec}");

        bytes[MIB + 99] ^= 1;
        std::fs::write(&image, &bytes).unwrap();
        let parent = tip.id.as_str();
        let made = cinder.does(&json!({"command": "backup", "image": image, "parent": parent,
            "created_at": "2026-02-04T00:00:00"}));
        let id = made["backup_id"].as_str().unwrap();
        let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
        let entry = catalog.snapshot().get(id).unwrap().clone();
        assert_eq!(entry.object_count, 1, "Cinder took our digests for its own");
        let mut read = vec![1; bytes.len()];
        assert_eq!(catalog.image(&entry).unwrap().read_at(&mut read, 0).unwrap(), read.len());
        assert!(read == bytes, "{kind:?} {codec}, Cinder's");
        // Cinder deletes all of them, to the last object.
        for id in [id, parent, full.id.as_str()] {
            cinder.does(&json!({"command": "delete", "backup_id": id}));
        }
        assert_eq!(listed(&*store, ""), [""; 0]);
    }
    // The names that other tests give to genuine backups are its own.
    let backups = genuine::backups_of("release-7.0.3-zlib");
    as_cinder::upload(&bucket, &backups);
    for backup in &backups {
        backup.check("restored by Cinder", &cinder.restores(&backup.id, backup.bytes as usize));
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn genuine_cinder_restores_them_from_s3_and_goes_on_with_them() {
    genuine_cinder_restores_them_and_goes_on_with_them(Kind::S3);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn genuine_cinder_restores_them_from_swift_and_goes_on_with_them() {
    genuine_cinder_restores_them_and_goes_on_with_them(Kind::Swift);
}
