//! Are long objects whole in S3 or not there at all, with no parts left, whatever the server makes of them?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/fake_s3.rs"]
mod fake_s3;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::store::objects::Content;
use cinderfs::types::ObjectName;

use fake_s3::{FakeS3, Fault};

const DEADLINE: Duration = Duration::from_secs(10);

/// Three parts.
const LONG: usize = 65 << 20;

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

fn long() -> Content {
    Content::of(vec![7; LONG])
}

#[test]
fn parts_become_an_object_also_where_etags_are_no_digests_and_where_the_last_answer_is_lost() {
    for fault in [None, Some(Fault::Encrypts), Some(Fault::NoAnswer)] {
        let (server, store) = FakeS3::start(DEADLINE, fault);
        store
            .put(&name("o"), &long(), &|| false)
            .unwrap_or_else(|error| panic!("{fault:?}: {error}; {:?}", server.requests.lock().unwrap()));
        assert_eq!(server.objects.lock().unwrap()["o"].0, LONG, "{fault:?}");
    }
}

#[test]
fn an_upload_that_the_server_forgot_is_no_missing_bucket() {
    let (server, store) = FakeS3::start(DEADLINE, Some(Fault::Forgets));
    // One of its name and length was there before.
    server.objects.lock().unwrap().insert("o".to_owned(), (LONG, "before".to_owned()));
    let error = store.put(&name("o"), &long(), &|| false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
    assert!(error.to_string().contains("NoSuchUpload"), "{error}");
}

/// The deadline is far away.
#[test]
fn an_interruption_leaves_no_parts() {
    let (server, store) = FakeS3::start(Duration::from_secs(3600), Some(Fault::Hangs));
    let stop = AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        let put = scope.spawn(|| store.put(&name("o"), &long(), &|| stop.load(Ordering::Relaxed)));
        server.wait_for_hang();
        stop.store(true, Ordering::Relaxed);
        put.join().unwrap().unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    assert!(server.uploads.lock().unwrap().is_empty());
}

#[test]
fn a_signature_that_became_too_old_is_made_anew() {
    let (server, store) = FakeS3::start(DEADLINE, Some(Fault::Skewed));
    store.put(&name("o"), &Content::of("x"), &|| false).unwrap();
    assert_eq!(*server.requests.lock().unwrap(), ["PUT /b/o", "PUT /b/o"]);
}

#[test]
fn names_with_spaces_at_their_ends_are_not_those_without() {
    let (server, store) = FakeS3::start(DEADLINE, None);
    for odd in ["x ", " x"] {
        let put = store.put(&name(odd), &Content::of("x"), &|| false).unwrap_err();
        let removed = store.remove(&name(odd), &|| false).unwrap_err();
        assert_eq!((put.kind(), removed.kind()), (ErrorKind::UnsafeName, ErrorKind::UnsafeName));
    }
    assert_eq!(*server.requests.lock().unwrap(), [""; 0]);
}
