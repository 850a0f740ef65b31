//! Is a server not asked for what it should not be: with a password that it refused, before it locks the user out, for token after token
//! that it then does not know, and for a container that is its own parent?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/http_server.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod http_server;
#[path = "common/swift_store.rs"]
mod swift_store;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::store::Store;
use cinderfs::store::objects::Content;
use cinderfs::store::remote::settings::{Secret, SwiftAuth, SwiftSettings};
use cinderfs::store::remote::{self, Access, Limits};
use cinderfs::types::ObjectName;
use swift_store::swift_store;

/// A Swift with nothing in it.
#[derive(Default)]
struct Server {
    /// The password is not right any more, and no token is.
    is_refusing: AtomicBool,
    /// So many requests meet a proxy that does not know their token.
    forgotten: AtomicI64,
    logins: AtomicUsize,
    requests: AtomicUsize,
}

impl Server {
    fn answer(&self, target: &str, base: &str) -> String {
        let is_login = target.starts_with("/auth");
        let count = if is_login { &self.logins } else { &self.requests };
        let token = count.fetch_add(1, Ordering::SeqCst);
        let is_forgotten = !is_login && self.forgotten.fetch_sub(1, Ordering::SeqCst) > 0;
        let is_refused = is_forgotten || self.is_refusing.load(Ordering::SeqCst);
        let (head, body) = match (is_refused, is_login) {
            (true, _) => ("401 Unauthorized".to_owned(), ""),
            (false, true) => (format!("200 OK\r\nx-auth-token: t{token}\r\nx-storage-url: {base}/v1/a"), ""),
            (false, false) => ("200 OK".to_owned(), "[]"),
        };
        format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }
}

fn start() -> (Arc<Server>, Arc<dyn Store>) {
    let server = Arc::new(Server::default());
    let shared = server.clone();
    let base = http_server::listen(move |head, reader, base| {
        let len = head.header("content-length: ").and_then(|n| n.parse().ok()).unwrap_or(0);
        reader.read_exact(&mut vec![0; len]).ok()?;
        reader.get_mut().write_all(shared.answer(&head.target, base).as_bytes()).ok()
    });
    (server, swift_store(&base, Duration::from_secs(60), 4))
}

#[test]
fn a_password_that_was_refused_is_not_tried_with_each_request() {
    let (server, store) = start();
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

#[test]
fn one_more_token_is_got_where_a_new_one_is_not_known() {
    let (server, store) = start();
    let logins = || server.logins.load(Ordering::SeqCst);
    store.list("").unwrap();
    // The old one, and the one that was got for it.
    server.forgotten.store(2, Ordering::SeqCst);
    store.list("").unwrap();
    assert_eq!(logins(), 1 + 2);
}

#[test]
fn tokens_that_are_never_known_are_not_got_again_and_again() {
    let put = |store: &Arc<dyn Store>| {
        let store = store.clone().into_objects().unwrap();
        store.put(&ObjectName::parse("o").unwrap(), &Content::of("x"), &|| false).unwrap_err()
    };
    let list = |store: &Arc<dyn Store>| store.list("").unwrap_err();
    for first in [&list as &dyn Fn(&Arc<dyn Store>) -> cinderfs::Error, &put] {
        let (server, store) = start();
        server.forgotten.store(i64::MAX, Ordering::SeqCst);
        for act in [first, &list, &put, &list, &put] {
            let error = act(&store);
            assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
            assert!(error.to_string().contains("does not know the tokens it was just given"), "{error}");
            assert!(error.to_string().contains("answered 401"), "{error}");
        }
        assert_eq!(server.logins.load(Ordering::SeqCst), 2);
        assert_eq!(server.requests.load(Ordering::SeqCst), 2, "a dead token is not shown again");
    }
}

#[test]
fn containers_that_would_be_their_own_parents_are_told_and_not_asked_for() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let shared = asked.clone();
    let base = http_server::listen(move |head, reader, _| {
        let page = if head.target.starts_with("/v1/a?") && !head.target.contains("marker=") {
            r#"[{"name": "."}, {"name": ".."}, {"name": "c"}]"#
        } else {
            "[]"
        };
        shared.lock().unwrap().push(head.target.split('?').next().unwrap().to_owned());
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len());
        reader.get_mut().write_all(answer.as_bytes()).ok()
    });
    let settings = |container: Option<&str>| SwiftSettings {
        container: container.map(str::to_owned),
        auth: SwiftAuth::Token { token: Secret::new("t"), storage_url: format!("{base}/v1/a") },
        storage_url: None,
        storage_url_prefix: None,
        region: None,
        interface: None,
        access: Access::default(),
        limits: Limits { deadline: Duration::from_secs(60), connections: 4 },
    };
    let listing = remote::swift(settings(None)).unwrap().list("").unwrap();
    let mut told: Vec<_> = listing.unreadable.iter().map(|(name, error)| (&**name, error.kind())).collect();
    told.sort_by_key(|(name, _)| *name);
    assert_eq!(told, [(".", ErrorKind::UnsafeName), ("..", ErrorKind::UnsafeName)]);
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|path| path == "/v1/a" || path == "/v1/a/c"), "{asked:?}");
    for name in [".", ".."] {
        assert_eq!(remote::swift(settings(Some(name))).err().unwrap().kind(), ErrorKind::UnsafeName);
    }
}
