//! Are objects put into Swift once and whole, and only those that were meant taken out, whatever the server makes of it?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/swift_store.rs"]
mod swift_store;
#[path = "common/fake_swift.rs"]
mod fake_swift;

use std::sync::atomic::Ordering;
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::store::objects::Content;
use cinderfs::types::ObjectName;

use fake_swift::{FakeSwift, Fault};

/// A server is taken for silent after a third of it.
const DEADLINE: Duration = Duration::from_secs(6);

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

#[test]
fn what_takes_longer_to_be_sent_than_a_server_may_be_silent_is_sent_once() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let store = store.into_objects().unwrap();
    server.fail("o", Fault::Late(DEADLINE / 2));
    store.put(&name("o"), &Content::of(vec![7; 100_000]), &|| false).unwrap();
    assert_eq!(*server.requests.lock().unwrap(), ["PUT o"]);
}

#[test]
fn a_listing_without_an_end_is_given_up() {
    let (server, store) = FakeSwift::start(Duration::from_secs(60));
    server.is_endless.store(true, Ordering::Relaxed);
    let error = store.into_objects().unwrap().list_below("x", &|| false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
}
