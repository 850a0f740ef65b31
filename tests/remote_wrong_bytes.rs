//! Bytes that a network changed on their way from an object store.

#![cfg(feature = "remote")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]

#[path = "common/fake_swift.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod fake_swift;
#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/restart_kit.rs"]
mod restart_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/swift_store.rs"]
mod swift_store;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/watched_store.rs"]
mod watched_store;

use std::sync::Arc;
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::catalog::Catalog;
use cinderfs::image::Image;

use fake_swift::{FakeSwift, Object};
use restart_kit::{options, read_all};
use store_kit::Packing;
use volume::{MIB, full, mixed};

fn served(plain: &[u8], packing: Packing) -> (Arc<FakeSwift>, Catalog, Arc<Image>) {
    let (server, store) = FakeSwift::start(Duration::from_secs(30));
    let spec = full("a", plain, packing);
    for (name, bytes) in spec.files_with(&packing.pack(plain)) {
        let modified = "2026-02-03T04:05:06.000000".to_owned();
        server.objects.lock().unwrap().insert(name, Object { bytes, modified });
    }
    let catalog = Catalog::open(store, options()).unwrap();
    let image = catalog.image(catalog.snapshot().get(&spec.id).unwrap()).unwrap();
    (server, catalog, image)
}

#[test]
fn what_is_wrong_once_is_asked_for_again() {
    let plain = mixed(7, 6 * MIB);
    for packing in [
        Packing::Plain("none"),
        Packing::Zlib { level: 6, junk: 0 },
        Packing::Bz2 { level: 9, streams: 1 },
        Packing::Zstd { level: 3, frames: 1 },
    ] {
        let (server, _catalog, image) = served(&plain, packing);
        *server.wrong.lock().unwrap() = Some(("-00001".to_owned(), 654_321, 1));
        read_all(&image, &plain);
        assert_eq!(server.wrong.lock().unwrap().as_ref().unwrap().2, 0, "{packing:?}: nothing was wrong");
    }
}

#[test]
fn what_stays_wrong_is_an_error() {
    let plain = mixed(8, 2 * MIB);
    for packing in [Packing::Plain("none"), Packing::Zlib { level: 6, junk: 0 }] {
        let (server, _catalog, image) = served(&plain, packing);
        *server.wrong.lock().unwrap() = Some(("-00001".to_owned(), 654_321, usize::MAX));
        let mut bytes = vec![0; plain.len()];
        let error = image.read_at(&mut bytes, 0).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::HashMismatch | ErrorKind::Codec), "{error}");
    }
}
