//! A few lines of Swift: tempauth, and one container that is a folder of this machine.

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::http_server::{self, Head};

pub(crate) struct SwiftServer {
    folder: PathBuf,
    base: OnceLock<String>,
    /// Says nothing as long as this is set.
    pub(crate) is_silent: AtomicBool,
    /// What holds this in its path is answered with 503.
    pub(crate) failing: Mutex<Option<String>>,
    /// The number of the only token that is known.
    tokens: AtomicUsize,
    /// Requests for a part of the container's listing.
    pub(crate) listings: AtomicUsize,
    /// The requests for objects: what they name, and how many bytes they got.
    sent: Mutex<Vec<(String, u64)>>,
}

impl SwiftServer {
    /// Serves `folder` as container `c`, whose user is `u` and whose key is `k`.
    pub(crate) fn start(folder: &Path) -> Arc<Self> {
        let server = Arc::new(Self {
            folder: folder.to_owned(),
            base: OnceLock::new(),
            is_silent: AtomicBool::new(false),
            failing: Mutex::default(),
            tokens: AtomicUsize::new(1),
            listings: AtomicUsize::new(0),
            sent: Mutex::default(),
        });
        let shared = server.clone();
        let base = http_server::listen(move |head, reader, base| shared.serve(head, reader.get_mut(), base));
        server.base.set(base).unwrap();
        server
    }

    pub(crate) fn auth_url(&self) -> String {
        format!("{}/auth/v1.0", self.base.get().unwrap())
    }

    /// A cinder.conf in `folder` that leads here.
    #[allow(dead_code, reason = "not every test has one")]
    pub(crate) fn conf_in(&self, folder: &Path) -> PathBuf {
        let path = folder.join("cinder.conf");
        let text = format!(
            "[DEFAULT]\nbackup_driver = cinder.backup.drivers.swift.SwiftBackupDriver\n\
             backup_swift_auth = single_user\nbackup_swift_auth_version = 1\nbackup_swift_auth_url = {}\n\
             backup_swift_user = u\nbackup_swift_key = k\n",
            self.auth_url()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The tokens that it gave out are not known any more.
    pub(crate) fn forget_tokens(&self) {
        self.tokens.fetch_add(1, Ordering::SeqCst);
    }

    /// Bytes sent of objects whose names end so since this was asked last for one of them, and in how many answers, those without bytes
    /// included.
    pub(crate) fn take_sent(&self, ending: &str) -> (u64, usize) {
        let mut sent = self.sent.lock().unwrap();
        let taken: Vec<_> = sent.extract_if(.., |(name, _)| name.ends_with(ending)).collect();
        (taken.iter().map(|(_, bytes)| bytes).sum(), taken.len())
    }

    /// How many were given out or forgotten.
    pub(crate) fn token(&self) -> usize {
        self.tokens.load(Ordering::SeqCst)
    }

    fn serve(&self, head: &Head, stream: &mut &TcpStream, base: &str) -> Option<()> {
        while self.is_silent.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let token = format!("t{}", self.token());
        // Listings name objects behind the question mark.
        let path = head.target.split('?').next().unwrap_or_default();
        let is_failing = self.failing.lock().unwrap().as_deref().is_some_and(|part| path.contains(part));
        let answer = if is_failing {
            answer("503 Slow Down", "x: y", b"", true)
        } else if head.target.starts_with("/auth") {
            match head.header("x-auth-key: ") {
                Some("k") => {
                    let head = format!("x-auth-token: {token}\r\nx-storage-url: {base}/v1/a");
                    answer("200 OK", &head, b"", true)
                }
                _ => answer("401 Unauthorized", "x: y", b"", true),
            }
        } else if head.header("x-auth-token: ") != Some(&token) {
            answer("401 Unauthorized", "x: y", b"", true)
        } else {
            self.answer(&head.target, head.method == "GET", head.header("range: bytes="))
        };
        stream.write_all(&answer).ok()
    }

    fn answer(&self, target: &str, is_get: bool, range: Option<&str>) -> Vec<u8> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path == "/v1/a" {
            let page = if query.contains("marker=") { "[]" } else { "[{\"name\": \"c\"}]" };
            return answer("200 OK", "x: y", page.as_bytes(), true);
        }
        if path == "/v1/a/c" {
            self.listings.fetch_add(1, Ordering::SeqCst);
            let mut objects = Vec::new();
            if !query.contains("marker=") {
                collect(&self.folder, "", &mut objects);
            }
            objects.sort();
            let told = objects.iter().map(|(name, bytes)| {
                let hash = format!("e{bytes}");
                serde_json::json!({"name": name, "bytes": bytes, "hash": hash, "last_modified": "2024-01-01T00:00:00.000000"})
            });
            let page = serde_json::Value::Array(told.collect()).to_string();
            return answer("200 OK", "x: y", page.as_bytes(), true);
        }
        let object = path.strip_prefix("/v1/a/c/").map(|name| std::fs::read(self.folder.join(name)));
        let Some(Ok(bytes)) = object else { return answer("404 Not Found", "x: y", b"", true) };
        let etag = format!("etag: e{}\r\nlast-modified: Mon, 01 Jan 2024 00:00:00 GMT", bytes.len());
        let note = |bytes: usize| self.sent.lock().unwrap().push((path.to_owned(), bytes as u64));
        match range.and_then(|range| range.split_once('-')) {
            Some((from, to)) => {
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                note(to + 1 - from);
                let head = format!("{etag}\r\ncontent-range: bytes {from}-{to}/{}", bytes.len());
                answer("206 Partial Content", &head, &bytes[from..=to], true)
            }
            None => {
                note(if is_get { bytes.len() } else { 0 });
                answer("200 OK", &etag, &bytes, is_get)
            }
        }
    }
}

fn answer(status: &str, head: &str, body: &[u8], has_body: bool) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), if has_body { body } else { b"" }].concat()
}

/// Everything below a folder, with its length.
fn collect(folder: &Path, below: &str, objects: &mut Vec<(String, u64)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        match entry.metadata().unwrap() {
            meta if meta.is_dir() => collect(&entry.path(), &format!("{name}/"), objects),
            meta => objects.push((name, meta.len())),
        }
    }
}
