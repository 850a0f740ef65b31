//! Do stores behind HTTP behave as every store does, against real servers?
//!
//! Run by `scripts/services/test.sh`, which starts the servers.

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/servers.rs"]
mod servers;

use std::path::Path;
use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::store::Store;

use conformance::{Bench, conforms};
use servers::{Bucket, Kind};

conforms!(replaced s3, Bucket::new(Kind::S3));
conforms!(replaced swift, Bucket::new(Kind::Swift));
conforms!(replaced keystone, Bucket::new(Kind::Keystone));
conforms!(replaced gcs, Bucket::new(Kind::Gcs));

const ALL: [Kind; 4] = [Kind::S3, Kind::Swift, Kind::Keystone, Kind::Gcs];

/// Everything below a folder, by its path from there.
fn upload(bucket: &Bucket, folder: &Path, below: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let object = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            upload(bucket, &entry.path(), &format!("{object}/"));
        } else {
            bucket.put(&object, &std::fs::read(entry.path()).unwrap());
        }
    }
}

/// Fails unless each backup of `store` is in the catalog and right.
fn check_images(store: Arc<dyn Store>, of: &str, how: &str) {
    let catalog = Catalog::open(store, CatalogOptions::default()).unwrap();
    let snapshot = catalog.snapshot();
    for backup in genuine::backups_of(of) {
        let entry = snapshot.entries().find(|entry| entry.id.as_str() == backup.id).expect("listed");
        let image = catalog.image(entry).unwrap();
        let mut bytes = vec![0; image.len_bytes() as usize];
        image.read_at(&mut bytes, 0).unwrap();
        backup.check(how, &bytes);
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn genuine_backups_are_their_volumes() {
    for kind in ALL {
        for store in ["ext4", "bz2-chain"] {
            let bucket = Bucket::new(kind);
            upload(&bucket, &genuine::root().join(store), "");
            check_images(bucket.store(), store, &format!("from {kind:?}"));
        }
    }
}
