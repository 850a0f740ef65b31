//! A server of several containers in memory, that speaks Swift (with tempauth) and S3, and commands that are run on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tempfile::TempDir;

use crate::http_server::{self, Head, decoded, etag};

/// By name.
pub(crate) type Objects = BTreeMap<String, Arc<Vec<u8>>>;

#[derive(Default)]
pub(crate) struct Whole {
    containers: Mutex<BTreeMap<String, Objects>>,
    /// Containers that may not be looked into.
    pub(crate) closed: Mutex<BTreeSet<String>>,
    /// Nobody may ask which containers there are.
    pub(crate) hides_containers: AtomicBool,
    /// What was listed: containers, each with its query.
    pub(crate) listed: Mutex<Vec<String>>,
}

/// A server, and a folder for what commands need.
pub(crate) struct World {
    pub(crate) server: Arc<Whole>,
    pub(crate) base: String,
    pub(crate) folder: TempDir,
}

impl World {
    /// With these containers, empty.
    pub(crate) fn new(containers: &[&str]) -> Self {
        let server = Arc::new(Whole::default());
        server.all().extend(containers.iter().map(|name| ((*name).to_owned(), Objects::new())));
        let shared = server.clone();
        let base = http_server::listen(move |head, reader, base| shared.serve(head, reader, base));
        Self { server, base, folder: tempfile::tempdir().unwrap() }
    }

    /// The word for a container, or all of them.
    pub(crate) fn word(&self, is_swift: bool, container: &str) -> String {
        match is_swift {
            true => format!("swift:{container}"),
            false => format!("s3://{container}?endpoint={}", self.base),
        }
    }

    /// What commands are told.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let auth = format!("{}/auth/v1.0", self.base);
        let words = [
            ("OS_IDENTITY_API_VERSION", "1"),
            ("OS_AUTH_URL", &auth),
            ("OS_USERNAME", "u"),
            ("OS_PASSWORD", "k"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_REGION", "r"),
        ];
        words.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Runs a command, which ends with this code; what it printed.
    #[track_caller]
    pub(crate) fn run(&self, words: &[&str], code: i32) -> (String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
            .args(words)
            .env_remove("CINDERFS_LOG")
            .env_remove("OS_CLOUD")
            .env("CINDERFS_CACHE_DIR", self.folder.path().join("cache"))
            .envs(self.environment())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {out}{err}");
        (out, err)
    }

    /// A file of these bytes.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Makes a backup of these bytes, all of one volume; its id.
    #[track_caller]
    pub(crate) fn create(&self, bytes: &[u8], store: &str, words: &[&str]) -> String {
        let source = self.file("source", bytes);
        let all = [&["create", "-q", store, &source, "--volume-id", VOLUME], words].concat();
        self.run(&all, 0).0.trim().to_owned()
    }
}

/// A server with a full backup in `c1` and an incremental on it in `c2`: their ids.
pub(crate) fn spanning(is_swift: bool) -> (World, [String; 2]) {
    let world = World::new(&["c1", "c2", "photos"]);
    let mut bytes = vec![7; 100_000];
    let whole = world.word(is_swift, "");
    let base = world.create(&bytes, &whole, &["--container", "c1", "--name", "base"]);
    bytes[50_000] = 1;
    let child = world.create(&bytes, &whole, &["--container", "c2", "--name", "inc", "--incremental"]);
    (world, [base, child])
}

pub(crate) const VOLUME: &str = "184d9841-802a-41bb-a91f-68f01522f6d7";

impl Whole {
    pub(crate) fn all(&self) -> MutexGuard<'_, BTreeMap<String, Objects>> {
        self.containers.lock().unwrap()
    }

    /// Names in a container that hold this.
    pub(crate) fn names(&self, container: &str, part: &str) -> Vec<String> {
        self.all()[container].keys().filter(|name| name.contains(part)).cloned().collect()
    }

    fn serve(&self, head: &Head, reader: &mut BufReader<&TcpStream>, base: &str) -> Option<()> {
        let mut body = vec![0; head.header("content-length: ").and_then(|n| n.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let answer = if path.starts_with("/auth") {
            let told = format!("x-auth-token: t\r\nx-storage-url: {base}/v1/a\r\n");
            answer("200 OK", &told, b"")
        } else {
            let (is_swift, path) = match path.strip_prefix("/v1/a") {
                Some(path) => (true, path),
                None => (false, path),
            };
            let (container, object) =
                path[1.min(path.len())..].split_once('/').unwrap_or((&path[1.min(path.len())..], ""));
            self.answer(head, is_swift, (&decoded(container), &decoded(object)), query, body)
        };
        reader.get_mut().write_all(&answer).ok()
    }

    fn answer(
        &self,
        head: &Head,
        is_swift: bool,
        (container, object): (&str, &str),
        query: &str,
        body: Vec<u8>,
    ) -> Vec<u8> {
        if container.is_empty() {
            if self.hides_containers.load(Ordering::SeqCst) {
                return answer("403 Forbidden", "", b"");
            }
            return self.containers_told(is_swift, query);
        }
        if self.closed.lock().unwrap().contains(container) {
            return answer("403 Forbidden", "", b"");
        }
        let mut all = self.all();
        if object.is_empty() && head.method == "PUT" {
            all.entry(container.to_owned()).or_default();
            return answer("201 Created", "", b"");
        }
        let Some(objects) = all.get_mut(container) else {
            let text: &[u8] = if is_swift { b"" } else { b"<Error><Code>NoSuchBucket</Code></Error>" };
            return answer("404 Not Found", "", text);
        };
        if object.is_empty() {
            self.listed.lock().unwrap().push(format!("{container}?{query}"));
            return listing(objects, is_swift, query);
        }
        let told = |bytes: &[u8]| match is_swift {
            true => format!("etag: {}\r\n", etag(bytes)),
            false => format!("etag: \"{}\"\r\n", etag(bytes)),
        };
        match (&*head.method, objects.get(object).cloned()) {
            ("PUT", _) => {
                let told = told(&body);
                objects.insert(object.to_owned(), Arc::new(body));
                answer("201 Created", &told, b"")
            }
            (_, None) => answer("404 Not Found", "", b""),
            ("DELETE", _) => {
                objects.remove(object);
                b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()
            }
            ("HEAD", Some(bytes)) => {
                let head =
                    format!("HTTP/1.1 200 OK\r\n{}content-length: {}\r\n\r\n", told(&bytes), bytes.len());
                head.into_bytes()
            }
            (_, Some(bytes)) => match head.header("range: bytes=").and_then(|range| range.split_once('-')) {
                None => answer("200 OK", &told(&bytes), &bytes),
                Some((first, last)) => {
                    let (first, last) = (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap());
                    let last = last.min(bytes.len() - 1);
                    let range = format!("content-range: bytes {first}-{last}/{}\r\n", bytes.len());
                    answer("206 Partial Content", &(told(&bytes) + &range), &bytes[first..=last])
                }
            },
        }
    }

    fn containers_told(&self, is_swift: bool, query: &str) -> Vec<u8> {
        let all = self.all();
        if is_swift {
            let behind = parameter(query, "marker");
            let told =
                all.keys().filter(|name| **name > behind).map(|name| serde_json::json!({"name": name}));
            return answer("200 OK", "", serde_json::Value::Array(told.collect()).to_string().as_bytes());
        }
        let bucket = |name: &String| format!("<Bucket><Name>{name}</Name></Bucket>");
        let buckets: String = all.keys().map(bucket).collect();
        let text = format!(
            "<ListAllMyBucketsResult><Owner><ID>1</ID></Owner><Buckets>{buckets}</Buckets></ListAllMyBucketsResult>"
        );
        answer("200 OK", "", text.as_bytes())
    }
}

/// The whole listing in one page.
fn listing(objects: &Objects, is_swift: bool, query: &str) -> Vec<u8> {
    let (prefix, marker) = (parameter(query, "prefix"), parameter(query, "marker"));
    let behind = marker.max(parameter(query, "start-after"));
    let wanted = objects.iter().filter(|(name, _)| name.starts_with(&prefix) && **name > behind);
    if is_swift {
        let told = wanted.map(|(name, bytes)| {
            serde_json::json!({"name": name, "bytes": bytes.len(), "hash": etag(bytes),
                "last_modified": "2024-03-01T01:01:07.000000"})
        });
        return answer("200 OK", "", serde_json::Value::Array(told.collect()).to_string().as_bytes());
    }
    let contents: String = wanted
        .map(|(name, bytes)| {
            format!(
                "<Contents><Key>{name}</Key><LastModified>2024-03-01T01:01:07.000Z</LastModified><ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>",
                etag(bytes),
                bytes.len()
            )
        })
        .collect();
    let text = format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>");
    answer("200 OK", "", text.as_bytes())
}

fn parameter(query: &str, key: &str) -> String {
    let found = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    decoded(found.unwrap_or_default())
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
