//! Real servers for stores behind HTTP, as `scripts/services` starts them, and curl as the means to change what they hold.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cinderfs::store::Store;
use cinderfs::store::remote::words::Word;

use super::conformance::Bench;

/// A kind of server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    S3,
    Swift,
    /// The same Swift, an account of its own.
    Apart,
    Keystone,
    Gcs,
}

/// A bucket or container of its own on a server.
pub(crate) struct Bucket {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    store: Arc<dyn Store>,
    /// Headers that a token is in, and what URLs begin with.
    token: Mutex<(Vec<String>, Instant)>,
    base: String,
}

/// Shorter than the tokens that `scripts/services/test.sh` has made live.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(10);

/// What `scripts/services/test.sh` says about a server: `S3_ENDPOINT` of the S3 server and so on, each with the kind before it.
#[track_caller]
pub(crate) fn told(kind: Kind, name: &str) -> String {
    maybe_told(kind, name).unwrap_or_else(|| panic!("{kind:?} has no {name}; run scripts/services/test.sh"))
}

/// As the store's own code asks for its environment.
pub(crate) fn maybe_told(kind: Kind, name: &str) -> Option<String> {
    let kind = format!("{kind:?}").to_uppercase();
    std::env::var(format!("TEST_{kind}_{name}")).ok()
}

/// The answer's text; fails unless it is a success.
#[track_caller]
pub(crate) fn curl(arguments: &[String], body: Option<&[u8]>) -> String {
    let mut words = words(&["--fail-with-body", "-g", "--path-as-is"]);
    words.extend_from_slice(arguments);
    if body.is_some() {
        words.extend(
            ["--data-binary", "@-", "-H", "Content-Type: application/octet-stream"].map(str::to_owned),
        );
    }
    run_curl(&words, body.unwrap_or_default())
}

/// What curl prints; fails when it does.
#[track_caller]
fn run_curl(arguments: &[String], input: &[u8]) -> String {
    let mut command = Command::new("curl");
    command.arg("-sS").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("curl");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "curl {arguments:?}: {text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn words(of: &[&str]) -> Vec<String> {
    of.iter().map(|word| (*word).to_owned()).collect()
}

/// A name in a URL; `/` stays.
pub(crate) fn encoded(name: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(b);
    name.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Bucket {
    /// A new one.
    pub(crate) fn new(kind: Kind) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let name = format!("t{now}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (token, base) = access(kind);
        let word = match kind {
            Kind::S3 => format!("s3://{name}?endpoint={}", told(kind, "S3_ENDPOINT")),
            Kind::Gcs => format!("gs://{name}"),
            Kind::Swift | Kind::Apart | Kind::Keystone => format!("swift:{name}"),
        };
        let store = open(kind, &word).unwrap();
        let bucket = Self { kind, name, store, token: Mutex::new((token, Instant::now())), base };
        bucket.make();
        bucket
    }

    fn make(&self) {
        match self.kind {
            Kind::Gcs => {
                let url = format!("{}/storage/v1/b?project=test", self.base);
                let body = format!("{{\"name\": {:?}}}", self.name);
                self.curl(&["-X", "POST", &url], Some(body.as_bytes()));
            }
            _ => drop(self.curl(&["-X", "PUT", &format!("{}/{}", self.base, self.name)], Some(b""))),
        }
    }

    /// The store as `word` says it, with this server's environment.
    pub(crate) fn open(&self, word: &str) -> Arc<dyn Store> {
        open(self.kind, word).unwrap()
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    pub(crate) fn url(&self, object: &str) -> String {
        format!("{}/{}/{}", self.base, self.name, encoded(object))
    }

    pub(crate) fn curl(&self, arguments: &[&str], body: Option<&[u8]>) -> String {
        curl(&[self.signed(body.unwrap_or_default()), words(arguments)].concat(), body)
    }

    /// Options that make a request with this body ours.
    fn signed(&self, body: &[u8]) -> Vec<String> {
        let mut token = self.token.lock().unwrap();
        if self.kind == Kind::Keystone && token.1.elapsed() > TOKEN_AGE_MAX {
            *token = (access(self.kind).0, Instant::now());
        }
        let mut options = token.0.clone();
        if self.kind == Kind::S3 {
            // What curl 7.88 leaves out, and the signature has to hold.
            let hash = format!("X-Amz-Content-Sha256: {}", super::genuine::sha256(body));
            options.extend(["--header".to_owned(), hash]);
        }
        options
    }

    /// Puts many objects in at once, each by its name and with the bytes of a file.
    pub(crate) fn upload_all<'a>(&self, objects: impl Iterator<Item = (&'a str, &'a Path)>) {
        let line = |option: &str, value: &str| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{option} \"{value}\"\n")
        };
        let requests = objects.map(|(object, file)| {
            let (method, url) = self.way_in(object);
            let signed = self.signed(&std::fs::read(file).unwrap());
            let mut lines: String = signed.chunks(2).map(|option| line(&option[0], &option[1])).collect();
            lines += &line("--header", "Content-Type: application/octet-stream");
            lines += &line("--request", method);
            lines += &line("--data-binary", &format!("@{}", file.to_str().unwrap()));
            lines += &line("--url", &url);
            lines + "--output /dev/null\n--fail\n--globoff\n--path-as-is\n"
        });
        let config = requests.collect::<Vec<_>>().join("--next\n");
        run_curl(&words(&["--parallel", "--parallel-max", "8", "--config", "-"]), config.as_bytes());
    }

    /// Everything below a folder, by its path from there.
    pub(crate) fn upload(&self, folder: &Path, below: &str) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let object = format!("{below}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                self.upload(&entry.path(), &format!("{object}/"));
            } else {
                self.put_at(&object, &std::fs::read(entry.path()).unwrap());
            }
        }
    }

    /// Where the server listens, which no proxy leads to.
    pub(crate) fn address(&self) -> &str {
        self.base.split('/').nth(2).unwrap()
    }

    /// What a command is called with, and its environment.
    pub(crate) fn word(&self) -> (String, Vec<(String, String)>) {
        let word = match self.kind {
            Kind::S3 => format!("s3://{}?endpoint={}", self.name, told(self.kind, "S3_ENDPOINT")),
            Kind::Gcs => format!("gs://{}", self.name),
            Kind::Swift | Kind::Apart | Kind::Keystone => format!("swift:{}", self.name),
        };
        let start = format!("TEST_{}_", format!("{:?}", self.kind).to_uppercase());
        let told =
            std::env::vars().filter_map(|(name, value)| Some((name.strip_prefix(&start)?.to_owned(), value)));
        (word, told.collect())
    }

    /// Puts an object in with headers that curl 7.88 cannot sign.
    pub(crate) fn put_signed(&self, object: &str, bytes: &[u8], headers: &[&str]) {
        let mut python = Command::new("python3");
        python
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services/s3_put.py"))
            .arg(self.url(object))
            .args(headers);
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"] {
            python.env(name, told(self.kind, name));
        }
        let mut child = python.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        assert!(child.wait().unwrap().success(), "s3_put.py {object}");
    }

    /// Sends an object as an upload of S3 in these parts, of which all but the last have 5 MiB at least.
    pub(crate) fn put_in_parts(&self, name: &str, parts: &[&[u8]]) {
        let url = self.url(name);
        let begun = self.curl(&["-X", "POST", &format!("{url}?uploads=")], Some(b""));
        let id = begun.split("<UploadId>").nth(1).unwrap().split('<').next().unwrap().to_owned();
        let mut done = String::new();
        for (number, part) in (1..).zip(parts) {
            let way = format!("{url}?partNumber={number}&uploadId={id}");
            let answer = self.curl(&["-i", "-X", "PUT", &way], Some(part)).to_lowercase();
            let etag = answer.split("etag: ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
            done += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        }
        let end = format!("<CompleteMultipartUpload>{done}</CompleteMultipartUpload>");
        self.curl(&["-X", "POST", &format!("{url}?uploadId={id}")], Some(end.as_bytes()));
        let told = self.curl(&["-I", &url], None).to_lowercase();
        assert!(told.contains(&format!("-{}\"\r\n", parts.len())), "{told}");
    }

    fn put_at(&self, object: &str, bytes: &[u8]) {
        let (method, url) = self.way_in(object);
        self.curl(&["-X", method, &url], Some(bytes));
    }

    /// Method and URL to put an object in.
    fn way_in(&self, object: &str) -> (&'static str, String) {
        match self.kind {
            Kind::Gcs => {
                let name = encoded(object).replace('/', "%2F");
                let path = format!("upload/storage/v1/b/{}/o?uploadType=media&name={name}", self.name);
                ("POST", format!("{}/{path}", self.base))
            }
            _ => ("PUT", self.url(object)),
        }
    }
}

/// The store that `word` names, with the environment of this kind of server.
pub(crate) fn open(kind: Kind, word: &str) -> cinderfs::Result<Arc<dyn Store>> {
    Word::parse(word).expect("a word for a store behind HTTP")?.open(&|name| maybe_told(kind, name))
}

fn access(kind: Kind) -> (Vec<String>, String) {
    match kind {
        Kind::S3 => {
            let user = format!("{}:{}", told(kind, "AWS_ACCESS_KEY_ID"), told(kind, "AWS_SECRET_ACCESS_KEY"));
            let signed = words(&["--aws-sigv4", "aws:amz:default:s3", "--user", &user]);
            (signed, told(kind, "S3_ENDPOINT"))
        }
        Kind::Gcs => (Vec::new(), told(kind, "STORAGE_EMULATOR_HOST")),
        Kind::Swift | Kind::Apart => {
            let user = format!("X-Auth-User: {}", told(kind, "OS_USERNAME"));
            let key = format!("X-Auth-Key: {}", told(kind, "OS_PASSWORD"));
            let url = told(kind, "OS_AUTH_URL");
            let answer = curl(&words(&["-i", "-H", &user, "-H", &key, &url]), None);
            let token = format!("X-Auth-Token: {}", header(&answer, "x-auth-token"));
            (words(&["--header", &token]), header(&answer, "x-storage-url"))
        }
        Kind::Keystone => {
            let url = format!("{}/auth/tokens", told(kind, "OS_AUTH_URL"));
            let ask = serde_json::json!({"auth": {
                "identity": {"methods": ["password"], "password": {"user": {
                    "name": told(kind, "OS_USERNAME"), "domain": {"id": "default"}, "password": told(kind, "OS_PASSWORD")}}},
                "scope": {"project": {"name": told(kind, "OS_PROJECT_NAME"), "domain": {"id": "default"}}}}});
            let json = "Content-Type: application/json";
            let answer = curl(&words(&["-i", "-H", json, "-d", &ask.to_string(), &url]), None);
            let body = answer.split("\r\n\r\n").last().unwrap();
            let told: serde_json::Value = serde_json::from_str(body).unwrap();
            let services = told["token"]["catalog"].as_array().unwrap();
            let store = services.iter().find(|service| service["type"] == "object-store").unwrap();
            let base = store["endpoints"][0]["url"].as_str().unwrap().to_owned();
            let token = format!("X-Auth-Token: {}", header(&answer, "x-subject-token"));
            (words(&["--header", &token]), base)
        }
    }
}

fn header(answer: &str, name: &str) -> String {
    let mut lines = answer.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .unwrap_or_else(|| panic!("no {name}: {answer}"));
    value.trim().to_owned()
}

impl Bench for Bucket {
    fn store(&self) -> &dyn Store {
        &*self.store
    }
    fn put(&self, object: &str, bytes: &[u8]) {
        self.put_at(object, bytes);
    }
    fn remove(&self, object: &str) {
        let url = match self.kind {
            Kind::Gcs => {
                let name = encoded(object).replace('/', "%2F");
                format!("{}/storage/v1/b/{}/o/{name}", self.base, self.name)
            }
            _ => self.url(object),
        };
        self.curl(&["-X", "DELETE", &url], None);
    }
}
