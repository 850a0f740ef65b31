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
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::images::Images;
use cinderfs::catalog::Catalog;
use cinderfs::frontend::hydrate::{HydrateOptions, Hydrated, hydrate};
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
fn a_digest_that_is_wrong_once_keeps_no_image_from_being_hydrated() {
    let plain = mixed(9, 24 * MIB);
    let packing = Packing::Plain("none");
    let (server, _catalog, image) = served(&plain, packing);
    let folder = tempfile::tempdir().unwrap();
    let images = Images::of(&CacheDir::open(folder.path()).unwrap());
    // A digit, which is none then; a letter would become a capital one, and stay what it says.
    let digits = {
        let objects = server.objects.lock().unwrap();
        objects.iter().find(|(name, _)| name.ends_with("_sha256file")).unwrap().1.bytes.clone()
    };
    let at = (30_000..).find(|&at| digits[at].is_ascii_digit()).unwrap();
    *server.wrong.lock().unwrap() = Some(("_sha256file".to_owned(), at, 1));
    let options = HydrateOptions {
        threads: 2,
        cancel: &AtomicBool::new(false),
        waiting: &|| (),
        observer: &|_| (),
        origin: None,
    };
    let hydrated = hydrate(&image, None, &images, &options).unwrap();
    assert!(matches!(hydrated, Hydrated::Written(_)), "{hydrated:?}");
    assert_eq!(server.wrong.lock().unwrap().as_ref().unwrap().2, 0, "nothing was wrong");
    assert!(std::fs::read(images.path(&image.key())).unwrap() == plain, "wrong bytes");
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
