//! Is a server that refuses a password left in peace, before it locks the user out?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/swift_store.rs"]
mod swift_store;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cinderfs::ErrorKind;
use swift_store::swift_store;

/// A Swift with nothing in it.
#[derive(Default)]
struct Server {
    /// The password is not right any more, and no token is.
    is_refusing: AtomicBool,
    logins: AtomicUsize,
    requests: AtomicUsize,
}

impl Server {
    fn answer(&self, target: &str, base: &str) -> String {
        let is_login = target.starts_with("/auth");
        let count = if is_login { &self.logins } else { &self.requests };
        count.fetch_add(1, Ordering::SeqCst);
        let (head, body) = match (self.is_refusing.load(Ordering::SeqCst), is_login) {
            (true, _) => ("401 Unauthorized".to_owned(), ""),
            (false, true) => (format!("200 OK\r\nx-auth-token: t\r\nx-storage-url: {base}/v1/a"), ""),
            (false, false) => ("200 OK".to_owned(), "[]"),
        };
        format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }
}

#[test]
fn a_password_that_was_refused_is_not_tried_with_each_request() {
    let server = Arc::new(Server::default());
    let shared = server.clone();
    let base = http_server::listen(move |head, reader, base| {
        reader.get_mut().write_all(shared.answer(&head.target, base).as_bytes()).ok()
    });
    let store = swift_store(&base, Duration::from_secs(60), 4);
    assert!(store.list("").unwrap().objects.is_empty());
    server.is_refusing.store(true, Ordering::SeqCst);
    let before = server.requests.load(Ordering::SeqCst);
    for _ in 0..9 {
        let error = store.list("").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
        assert!(error.to_string().contains("cannot get a Swift token"), "{error}");
    }
    assert_eq!(server.logins.load(Ordering::SeqCst), 2, "one at the start, one that was refused");
    assert_eq!(server.requests.load(Ordering::SeqCst), before + 1, "a dead token is not shown again");
}
