//! Are reads right, or errors, when a server and the way to it do all that they should not?
//!
//! A server of a few lines speaks Swift and does one wrong thing at a time.

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/swift_store.rs"]
mod swift_store;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cinderfs::ErrorKind;
use cinderfs::store::{ObjectSource, Store, read_exact_at};
use cinderfs::types::ObjectName;
use http_server::{Head, listen};
use swift_store::swift_store;

/// What the server does with the next GET of the object, beside answering right.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Status(u16),
    /// The body ends early, as does the connection.
    Cut,
    /// Bytes from elsewhere, and says so.
    OtherRange,
    /// The whole object.
    NoRange,
    /// The range of another object.
    OtherEtag,
    /// Nothing, not even an answer.
    HangUp,
    /// The token is not known any more.
    Expired,
}

#[derive(Default)]
struct Server {
    faults: Mutex<Vec<Fault>>,
    tokens: AtomicUsize,
    gets: AtomicUsize,
    /// The connection ends after this answer.
    is_cut: AtomicBool,
    /// What pages of the container's listing are, one after the other.
    pages: Mutex<Vec<String>>,
}

fn content() -> Vec<u8> {
    (0..1_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

impl Server {
    fn start() -> (Arc<Self>, Arc<dyn Store>) {
        let server = Arc::new(Self::default());
        let shared = server.clone();
        let base = listen(move |head, reader, base| shared.serve(head, reader.get_mut(), base));
        (server, swift_store(&base, Duration::from_secs(3), 4))
    }

    fn serve(&self, head: &Head, stream: &mut &TcpStream, host: &str) -> Option<()> {
        let token = format!("t{}", self.tokens.load(Ordering::Relaxed));
        let answer = if head.target.starts_with("/auth") {
            let new = self.tokens.fetch_add(1, Ordering::Relaxed) + 1;
            format!(
                "200 OK\r\nx-auth-token: t{new}\r\nx-storage-url: {host}/v1/a\r\ncontent-length: 0\r\n\r\n"
            )
            .into_bytes()
        } else if head.header("x-auth-token: ") != Some(&token) {
            b"401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_vec()
        } else if head.method == "HEAD" {
            b"200 OK\r\ncontent-length: 1000000\r\netag: e1\r\n\r\n".to_vec()
        } else if head.target.contains("?format=json") {
            let mut pages = self.pages.lock().unwrap();
            let page = if pages.is_empty() { "[]".to_owned() } else { pages.remove(0) };
            format!("200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len()).into_bytes()
        } else {
            self.object(head.header("range: bytes=").unwrap_or_default())?
        };
        stream.write_all(b"HTTP/1.1 ").and_then(|()| stream.write_all(&answer)).ok()?;
        (!self.is_cut.swap(false, Ordering::Relaxed)).then_some(())
    }

    /// The answer to a GET of the object; `None` to hang up.
    fn object(&self, range: &str) -> Option<Vec<u8>> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        let fault = self.faults.lock().unwrap().pop();
        let (from, to) = range.split_once('-').unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
        let mut all = content();
        let part = |from: usize, to: usize, all: &[u8], etag: &str| {
            let head = format!(
                "206 Partial Content\r\ncontent-range: bytes {from}-{to}/1000000\r\netag: {etag}\r\ncontent-length: {}\r\n\r\n",
                to + 1 - from
            );
            [head.as_bytes(), &all[from..=to]].concat()
        };
        Some(match fault {
            None => part(from, to, &all, "e1"),
            Some(Fault::Status(status)) => format!("{status} X\r\ncontent-length: 0\r\n\r\n").into_bytes(),
            Some(Fault::Cut) => {
                let mut answer = part(from, to, &all, "e1");
                answer.truncate(answer.len() - (to + 1 - from) / 2);
                self.is_cut.store(true, Ordering::Relaxed);
                answer
            }
            Some(Fault::OtherRange) => part(from + 1, to + 1, &all, "e1"),
            Some(Fault::NoRange) => {
                [&b"200 OK\r\netag: e1\r\ncontent-length: 1000000\r\n\r\n"[..], &all].concat()
            }
            Some(Fault::OtherEtag) => {
                all.fill(0);
                part(from, to, &all, "e2")
            }
            Some(Fault::HangUp) => return None,
            Some(Fault::Expired) => {
                self.tokens.fetch_add(1, Ordering::Relaxed);
                b"401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_vec()
            }
        })
    }
}

fn open(store: &dyn Store) -> Arc<dyn ObjectSource> {
    store.open(&ObjectName::parse("o").unwrap()).unwrap()
}

#[test]
fn what_passes_is_not_seen_by_the_reader() {
    let (server, store) = Server::start();
    let passing = [
        Fault::Status(503),
        Fault::Status(429),
        Fault::Status(500),
        Fault::OtherRange,
        Fault::NoRange,
        Fault::HangUp,
        Fault::Expired,
    ];
    for (at, fault) in passing.into_iter().enumerate() {
        let source = open(&*store);
        *server.faults.lock().unwrap() = vec![fault];
        let mut buf = vec![0; 20_000];
        let offset = at * 1000;
        read_exact_at(&*source, &mut buf, offset as u64).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(buf == content()[offset..][..20_000], "{fault:?}");
        assert!(server.faults.lock().unwrap().is_empty(), "{fault:?} was not met");
    }
}

#[test]
fn a_burst_of_failures_is_outlived() {
    let (server, store) = Server::start();
    let source = open(&*store);
    *server.faults.lock().unwrap() = vec![Fault::Status(503), Fault::HangUp, Fault::Status(503)];
    let mut buf = vec![0; 500_000];
    read_exact_at(&*source, &mut buf, 1).unwrap();
    assert!(buf == content()[1..500_001]);
}

#[test]
fn what_lasts_is_an_error_within_the_deadline_and_passes_with_its_cause() {
    let (server, store) = Server::start();
    let source = open(&*store);
    let mut buf = vec![0; 1000];
    *server.faults.lock().unwrap() = vec![Fault::Status(503); 1000];
    let error = source.read_at(&mut buf, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIo);
    assert!(error.to_string().contains("503"), "{error}");
    // Who reads elsewhere while all fails does not try as long.
    let first = server.gets.load(Ordering::Relaxed);
    source.read_at(&mut buf, 900_000).unwrap_err();
    let second = server.gets.load(Ordering::Relaxed) - first;
    assert!(0 < second && second <= first / 2, "{second} tries after {first}");
    server.faults.lock().unwrap().clear();
    // Who asks again at once, as the kernel does, does not wait for another deadline.
    let gets = server.gets.load(Ordering::Relaxed);
    for (source, offset) in [(&source, 0), (&source, 999), (&open(&*store), 500)] {
        let error = source.read_at(&mut buf, offset).unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
    }
    assert_eq!(server.gets.load(Ordering::Relaxed), gets);
    read_exact_at(&*source, &mut buf, 500_000).unwrap();
    assert_eq!(buf, content()[500_000..501_000]);
    let end = Instant::now() + Duration::from_secs(30);
    while read_exact_at(&*source, &mut buf, 0).is_err() {
        assert!(Instant::now() < end, "lost for ever");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(buf, content()[..1000]);
}

#[test]
fn another_object_is_an_error_at_once() {
    let (server, store) = Server::start();
    for fault in [Fault::OtherEtag, Fault::Status(412), Fault::Status(404)] {
        let source = open(&*store);
        *server.faults.lock().unwrap() = vec![fault];
        let before = server.gets.load(Ordering::Relaxed);
        let error = source.read_at(&mut [0; 1000], 0).unwrap_err();
        let expected =
            if matches!(fault, Fault::Status(404)) { ErrorKind::ObjectNotFound } else { ErrorKind::StoreIo };
        assert_eq!(error.kind(), expected, "{fault:?}: {error}");
        assert_eq!(server.gets.load(Ordering::Relaxed), before + 1, "{fault:?}");
    }
}

#[test]
fn a_body_that_is_cut_goes_on_where_it_ended() {
    let (server, store) = Server::start();
    let source = open(&*store);
    *server.faults.lock().unwrap() = vec![Fault::Cut, Fault::Status(502), Fault::Cut];
    let mut whole = vec![0; 1_000_000];
    read_exact_at(&*source, &mut whole, 0).unwrap();
    assert!(whole == content());
}

#[test]
fn a_read_transfers_what_it_asks_for_and_one_that_goes_on_asks_seldom() {
    let (server, store) = Server::start();
    let source = open(&*store);
    let mut buf = vec![0; 16_384];
    for offset in [0, 500_000, 900_000] {
        read_exact_at(&*source, &mut buf, offset).unwrap();
    }
    assert_eq!(server.gets.load(Ordering::Relaxed), 3, "one for each");
    let source = open(&*store);
    for offset in (0..980_000).step_by(16_384) {
        read_exact_at(&*source, &mut buf, offset).unwrap();
        assert!(buf == content()[offset as usize..][..16_384]);
    }
    let gets = server.gets.load(Ordering::Relaxed) - 3;
    assert!(gets <= 6, "{gets} requests for 60 reads in order");
}

#[test]
fn pages_are_put_together_and_one_that_goes_back_is_an_error() {
    let (server, store) = Server::start();
    let page = |names: &[&str]| {
        let object = |name: &&str| {
            format!("{{\"name\":\"{name}\",\"bytes\":1,\"hash\":\"h\",\"last_modified\":\"\"}}")
        };
        format!("[{}]", names.iter().map(object).collect::<Vec<_>>().join(","))
    };
    *server.pages.lock().unwrap() = vec![page(&["a_metadata", "b"]), page(&["c_metadata"])];
    let found: Vec<String> =
        store.list("_metadata").unwrap().objects.iter().map(|object| object.name.to_string()).collect();
    assert_eq!(found, ["a_metadata", "c_metadata"]);
    *server.pages.lock().unwrap() = vec![page(&["b"]), page(&["a"])];
    let error = store.list("").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIo);
    assert!(error.to_string().contains("goes back"), "{error}");
}
