//! Is a store said not to answer while it does: one object fails for ever, or all bytes come slowly?
//!
//! A server of a few lines speaks Swift; its objects are told apart by their names.

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/swift_store.rs"]
mod swift_store;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cinderfs::ErrorKind;
use cinderfs::store::deadline::DeadlineStore;
use cinderfs::store::{ObjectSource, Store, read_exact_at};
use cinderfs::types::ObjectName;
use http_server::{Head, listen};
use swift_store::swift_store;

const LEN: usize = 1 << 20;

/// Bytes that are sent at once.
const PIECE: usize = 16 << 10;

#[derive(Default)]
struct Server {
    /// Bytes that it sends in a second, over all connections; no limit where there is none.
    rate: Option<usize>,
    /// When the next piece may be sent.
    next: Mutex<Option<Instant>>,
    gets: AtomicUsize,
}

fn byte(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 24) as u8
}

impl Server {
    fn start(rate: Option<usize>) -> (Arc<Self>, String) {
        let server = Arc::new(Self { rate, ..Self::default() });
        let shared = server.clone();
        let base = listen(move |head, reader, base| shared.serve(head, reader.get_mut(), base));
        (server, base)
    }

    fn serve(&self, head: &Head, stream: &mut &TcpStream, host: &str) -> Option<()> {
        let told = |status: &str, headers: &str, body: &[u8]| {
            let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
            [head.as_bytes(), body].concat()
        };
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let answer = if path.starts_with("/auth") {
            let headers = format!("x-auth-token: t\r\nx-storage-url: {host}/v1/a\r\n");
            told("200 OK", &headers, b"")
        } else if path == "/v1/a" {
            let containers: &[u8] = br#"[{"name": "bad"}, {"name": "c"}]"#;
            told("200 OK", "", if query.contains("marker=") { b"[]" } else { containers })
        } else if path == "/v1/a/c" {
            self.gets.fetch_add(1, Ordering::Relaxed);
            let object =
                |n: usize| format!(r#"{{"name": "{n:05}", "bytes": 1, "hash": "h", "last_modified": ""}}"#);
            let all = (0..20_000).map(object).collect::<Vec<_>>().join(",");
            told(
                "200 OK",
                "",
                if query.contains("marker=") { "[]".into() } else { format!("[{all}]") }.as_bytes(),
            )
        } else if head.method == "HEAD" {
            format!("HTTP/1.1 200 OK\r\netag: e\r\ncontent-length: {LEN}\r\n\r\n").into_bytes()
        } else {
            self.gets.fetch_add(1, Ordering::Relaxed);
            let all: Vec<u8> = (0..LEN).map(byte).collect();
            match path.rsplit('/').next() {
                Some("bad") => told("503 Slow Down", "", b""),
                Some("hung") => loop {
                    thread::park();
                },
                Some("whole") => told("200 OK", "etag: e\r\n", &all),
                _ => {
                    let (from, to) = head.header("range: bytes=").unwrap().split_once('-').unwrap();
                    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                    let headers = format!("content-range: bytes {from}-{to}/{LEN}\r\netag: e\r\n");
                    told("206 Partial Content", &headers, &all[from..=to])
                }
            }
        };
        answer.chunks(PIECE).try_for_each(|piece| {
            self.wait_for_turn(piece.len());
            stream.write_all(piece).ok()
        })
    }

    fn wait_for_turn(&self, len: usize) {
        let Some(rate) = self.rate else { return };
        let mut next = self.next.lock().unwrap();
        let turn = next.unwrap_or_else(Instant::now).max(Instant::now());
        *next = Some(turn + Duration::from_secs_f64(len as f64 / rate as f64));
        drop(next);
        thread::sleep(turn.saturating_duration_since(Instant::now()));
    }
}

/// A store as mounts and commands have it.
fn armed(base: &str, deadline: Duration, connections: usize) -> DeadlineStore {
    let store = DeadlineStore::new(swift_store(base, deadline, connections), deadline);
    store.arm();
    store
}

fn open(store: &dyn Store, name: &str) -> Arc<dyn ObjectSource> {
    store.open(&ObjectName::parse(name).unwrap()).unwrap()
}

/// Reads here and there as long as `goes_on`, and tells how often.
fn read_good(store: &DeadlineStore, goes_on: &AtomicBool) -> usize {
    let object = open(store, "good");
    let mut buf = [0; 100];
    let mut count = 0;
    while goes_on.load(Ordering::Relaxed) {
        let at = (count * 7919 * 4096) % (LEN - 100);
        read_exact_at(&*object, &mut buf, at as u64).unwrap_or_else(|error| panic!("{error}"));
        assert!(buf.iter().enumerate().all(|(n, got)| *got == byte(at + n)));
        count += 1;
        // Other requests go out in between.
        thread::sleep(Duration::from_millis(1));
    }
    count
}

// > An object store answers as long as anything comes from it: an object of which requests only fail is an error for who reads it, and bytes
// > that come slowly are waited for.
//
#[test]
fn an_object_that_fails_for_ever_is_nobody_elses_failure() {
    for bad in ["bad", "hung"] {
        let (_, base) = Server::start(None);
        let store = armed(&base, Duration::from_secs(1), 8);
        let goes_on = AtomicBool::new(true);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| read_good(&store, &goes_on))).collect();
            let failing = scope.spawn(|| {
                let object = open(&store, bad);
                for _ in 0..3 {
                    let error = object.read_at(&mut [0; 100], 0).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::StoreIo);
                    let why = if bad == "bad" { "answered 503" } else { "did not answer" };
                    assert!(error.to_string().contains(why), "{error}");
                    assert!(store.is_answering(), "{bad}");
                }
            });
            let failed = failing.join();
            goes_on.store(false, Ordering::Relaxed);
            failed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 10));
        });
    }
}

#[test]
fn one_that_answers_with_failures_answers_also_when_nobody_else_asks() {
    let (_, base) = Server::start(None);
    let store = armed(&base, Duration::from_secs(1), 8);
    let (good, bad) = (open(&store, "good"), open(&store, "bad"));
    bad.read_at(&mut [0; 100], 0).unwrap_err();
    assert!(store.is_answering() && !store.look().is_stalled);
    thread::scope(|scope| {
        for at in 0..8 {
            let good = &good;
            scope.spawn(move || assert_eq!(good.read_at(&mut [0; 100], at << 14).unwrap(), 100));
        }
    });
}

#[test]
fn bytes_that_come_slowly_are_waited_for() {
    // Each read takes longer than the deadline, and waits for one of two connections even longer.
    let (_, base) = Server::start(Some(1 << 20));
    let store = armed(&base, Duration::from_secs(2), 2);
    let object = open(&store, "good");
    thread::scope(|scope| {
        for reader in 0..6 {
            let object = &object;
            scope.spawn(move || {
                let (at, mut buf) = (reader * 1000, vec![0; LEN - 100_000]);
                read_exact_at(&**object, &mut buf, at).unwrap_or_else(|error| panic!("{error}"));
                assert!(buf.iter().enumerate().all(|(n, got)| *got == byte(at as usize + n)));
            });
        }
        assert_eq!(store.list("").unwrap().objects.len(), 20_000);
    });
    assert!(store.is_answering() && !store.look().is_hung);
}

#[test]
fn what_was_not_asked_for_is_believed_the_second_time() {
    let (server, base) = Server::start(None);
    let store = armed(&base, Duration::from_secs(600), 8);
    let error = open(&store, "whole").read_at(&mut [0; 100], 0).unwrap_err();
    assert!(error.to_string().contains("answered 200 OK when asked for bytes"), "{error}");
    assert_eq!(server.gets.load(Ordering::Relaxed), 2);
    assert!(store.is_answering());
}
