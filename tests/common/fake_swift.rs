//! A Swift of a few lines, which does one wrong thing at a time with what is put into it.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use cinderfs::store::Store;

use super::http_server::{self, Head, decoded, etag};
use super::swift_store::{store_in, swift_store};

/// What the server does with a PUT, beside taking it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It answers this and forgets the bytes.
    Status(u16),
    /// The connection ends when half of the bytes are read.
    Reset,
    /// The bytes are stored, and the connection ends without an answer.
    NoAnswer,
    /// Other bytes are stored, and their ETag is told.
    WrongEtag,
    /// Other bytes are stored, and nothing is told of it.
    Rot,
    /// The token is not known any more.
    Expired,
    /// No answer; the bytes are stored when they are let [arrive](FakeSwift::arrive).
    Hang,
    /// The answer comes so much later.
    Late(Duration),
}

#[derive(Clone)]
pub(crate) struct Object {
    pub(crate) bytes: Vec<u8>,
    pub(crate) modified: String,
}

/// What happens beside a PUT.
pub(crate) type OnPut = Box<dyn FnMut(&str, &mut BTreeMap<String, Object>) + Send>;

/// What a server holds and how it fails.
#[derive(Default)]
pub(crate) struct FakeSwift {
    base: OnceLock<String>,
    pub(crate) objects: Mutex<BTreeMap<String, Object>>,
    /// The next PUTs of a name that ends so.
    faults: Mutex<Vec<(String, Fault)>>,
    tokens: AtomicUsize,
    /// Every request but authentication fails.
    pub(crate) is_down: AtomicBool,
    /// Its listings have no end.
    pub(crate) is_endless: AtomicBool,
    /// It goes down when a name that ends so is deleted.
    down_after: Mutex<Option<String>>,
    /// Is told each name that is put in, and what there is before.
    pub(crate) on_put: Mutex<Option<OnPut>>,
    /// All markers become another run's when a name that ends so is put in.
    taken_over_with: Mutex<Option<String>>,
    /// The byte there of a name that ends so is wrong in so many answers.
    pub(crate) wrong: Mutex<Option<(String, usize, usize)>>,
    /// What such a byte is there.
    pub(crate) wrong_byte: Mutex<Option<u8>>,
    /// Looking at a name that begins so fails.
    unseen: Mutex<Option<String>>,
    /// Listings tell all names, whatever the prefix.
    pub(crate) is_blind_to_prefixes: AtomicBool,
    /// Method and name of all requests.
    pub(crate) requests: Mutex<Vec<String>>,
    /// What was read of which object, both ends included.
    pub(crate) ranges: Mutex<Vec<(String, u64, u64)>>,
    hanging: Mutex<bool>,
    /// What hangs.
    late: Mutex<Vec<(String, Object)>>,
    released: Condvar,
}

const MODIFIED: &str = "2026-02-03T04:05:06.000000";

impl FakeSwift {
    pub(crate) fn start(deadline: Duration) -> (Arc<Self>, Arc<dyn Store>) {
        let server = Arc::new(Self::default());
        let shared = server.clone();
        let base = http_server::listen(move |head, reader, base| shared.serve(head, reader, base));
        server.base.set(base).unwrap();
        let store = server.client(deadline);
        (server, store)
    }

    /// What another process opens.
    pub(crate) fn client(&self, deadline: Duration) -> Arc<dyn Store> {
        swift_store(self.base.get().unwrap(), deadline, 16)
    }

    /// The whole account, which has the container of a [`client`](Self::client) only.
    pub(crate) fn account(&self, deadline: Duration) -> Arc<dyn Store> {
        store_in(None, self.base.get().unwrap(), deadline, 16)
    }

    /// The next PUT of a name that ends so meets this.
    pub(crate) fn fail(&self, ending: &str, fault: Fault) {
        self.faults.lock().unwrap().push((ending.to_owned(), fault));
    }

    /// Every request fails from the moment on at which a name is deleted that ends so.
    pub(crate) fn down_after(&self, ending: &str) {
        *self.down_after.lock().unwrap() = Some(ending.to_owned());
    }

    /// Another run takes over all markers while a name is put in that ends so.
    pub(crate) fn take_over_with(&self, ending: &str) {
        *self.taken_over_with.lock().unwrap() = Some(ending.to_owned());
    }

    /// HEADs of names that begin so are answered with an error of the server.
    pub(crate) fn refuse_to_show(&self, beginning: &str) {
        *self.unseen.lock().unwrap() = Some(beginning.to_owned());
    }

    pub(crate) fn faults_left(&self) -> usize {
        self.faults.lock().unwrap().len()
    }

    pub(crate) fn forgive(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// What hangs arrives; nobody is told.
    pub(crate) fn arrive(&self) {
        self.objects.lock().unwrap().extend(self.late.lock().unwrap().drain(..));
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Waits until a request hangs.
    pub(crate) fn wait_for_hang(&self) {
        let mut hanging = self.hanging.lock().unwrap();
        while !*hanging {
            hanging = self.released.wait(hanging).unwrap();
        }
    }

    fn serve(&self, head: &Head, reader: &mut BufReader<&TcpStream>, host: &str) -> Option<()> {
        let (method, target) = (&*head.method, &*head.target);
        let header = |name: &str| head.header(name).map(str::to_owned);
        let mut body = vec![0; header("content-length: ").and_then(|n| n.parse().ok()).unwrap_or(0)];
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let name = path.strip_prefix("/v1/a/c").map(|name| decoded(name.trim_start_matches('/')));
        let fault = match (method, &name) {
            ("PUT", Some(name)) => {
                let mut faults = self.faults.lock().unwrap();
                let at = faults.iter().position(|(ending, _)| name.ends_with(ending));
                at.map(|at| faults.remove(at).1)
            }
            _ => None,
        };
        if fault == Some(Fault::Reset) {
            let half = body.len() / 2;
            reader.read_exact(&mut body[..half]).ok()?;
            return None;
        }
        reader.read_exact(&mut body).ok()?;
        if name.is_some() {
            self.requests.lock().unwrap().push(format!("{method} {}", name.as_deref().unwrap_or_default()));
        }
        let token = format!("t{}", self.tokens.load(Ordering::Relaxed));
        let answer = match name {
            // The account, which has this container only.
            None if path == "/v1/a" => {
                let body = if query.contains("marker=") { "[]" } else { "[{\"name\": \"c\"}]" };
                format!("200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
            }
            None => {
                let new = self.tokens.fetch_add(1, Ordering::Relaxed) + 1;
                format!("200 OK\r\nx-auth-token: t{new}\r\nx-storage-url: {host}/v1/a\r\ncontent-length: 0\r\n\r\n")
                    .into_bytes()
            }
            Some(_) if self.is_down.load(Ordering::Relaxed) => status(503),
            Some(name)
                if method == "HEAD"
                    && self.unseen.lock().unwrap().as_deref().is_some_and(|part| name.starts_with(part)) =>
            {
                status(503)
            }
            Some(_) if header("x-auth-token: ") != Some(token) => status(401),
            Some(name) if name.is_empty() => self.listing(query),
            Some(name) => self.object(method, &name, &header, body, fault)?,
        };
        // In one piece: a second would wait for the client's delayed acknowledgement of the first.
        reader.get_mut().write_all(&[b"HTTP/1.1 ", &*answer].concat()).ok()
    }

    fn object(
        &self,
        method: &str,
        name: &str,
        header: &dyn Fn(&str) -> Option<String>,
        mut body: Vec<u8>,
        fault: Option<Fault>,
    ) -> Option<Vec<u8>> {
        let mut objects = self.objects.lock().unwrap();
        match method {
            "PUT" => {
                let sent = etag(&body);
                assert_eq!(header("etag: ").as_deref(), Some(&*sent), "the digest goes with {name}");
                match fault {
                    Some(Fault::Status(code)) => return Some(status(code)),
                    Some(Fault::Expired) => {
                        self.tokens.fetch_add(1, Ordering::Relaxed);
                        return Some(status(401));
                    }
                    Some(Fault::Hang) => {
                        drop(objects);
                        let object = Object { bytes: body, modified: MODIFIED.to_owned() };
                        self.late.lock().unwrap().push((name.to_owned(), object));
                        *self.hanging.lock().unwrap() = true;
                        self.released.notify_all();
                        loop {
                            std::thread::park();
                        }
                    }
                    Some(Fault::Late(time)) => {
                        drop(objects);
                        std::thread::sleep(time);
                        objects = self.objects.lock().unwrap();
                    }
                    Some(Fault::WrongEtag | Fault::Rot) => body[0] ^= 1,
                    Some(Fault::NoAnswer | Fault::Reset) | None => {}
                }
                let told = if fault == Some(Fault::Rot) { sent } else { etag(&body) };
                if self.taken_over_with.lock().unwrap().as_deref().is_some_and(|end| name.ends_with(end)) {
                    let markers = objects.iter_mut().filter(|(name, _)| name.starts_with(".cinderfs-"));
                    markers.for_each(|(_, marker)| marker.bytes = b"{}".to_vec());
                }
                if let Some(on_put) = &mut *self.on_put.lock().unwrap() {
                    on_put(name, &mut objects);
                }
                objects.insert(name.to_owned(), Object { bytes: body, modified: MODIFIED.to_owned() });
                if fault == Some(Fault::NoAnswer) {
                    return None;
                }
                Some(format!("201 Created\r\netag: {told}\r\ncontent-length: 0\r\n\r\n").into_bytes())
            }
            "DELETE" if self.down_after.lock().unwrap().as_deref().is_some_and(|end| name.ends_with(end)) => {
                *self.down_after.lock().unwrap() = None;
                self.is_down.store(true, Ordering::Relaxed);
                objects.remove(name);
                Some(status(204))
            }
            "DELETE" => Some(status(if objects.remove(name).is_some() { 204 } else { 404 })),
            _ => {
                let Some(Object { bytes, .. }) = objects.get(name) else { return Some(status(404)) };
                let (etag, len) = (etag(bytes), bytes.len());
                if method == "HEAD" {
                    return Some(
                        format!("200 OK\r\netag: {etag}\r\ncontent-length: {len}\r\n\r\n").into_bytes(),
                    );
                }
                let range = header("range: bytes=")?;
                let (from, to) = range.split_once('-')?;
                let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
                let to = to.min(len - 1);
                self.ranges.lock().unwrap().push((name.to_owned(), from as u64, to as u64));
                let head = format!(
                    "206 Partial Content\r\ncontent-range: bytes {from}-{to}/{len}\r\netag: {etag}\r\ncontent-length: {}\r\n\r\n",
                    to + 1 - from
                );
                let mut body = bytes[from..=to].to_vec();
                if let Some((ending, at, left)) = &mut *self.wrong.lock().unwrap()
                    && *left > 0
                    && (from..=to).contains(at)
                    && name.ends_with(&**ending)
                {
                    *left -= 1;
                    let right = body[*at - from];
                    body[*at - from] = self.wrong_byte.lock().unwrap().unwrap_or(right ^ 0x20);
                }
                Some([head.as_bytes(), &body].concat())
            }
        }
    }

    fn listing(&self, query: &str) -> Vec<u8> {
        let parameter = |key: &str| {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            decoded(found.unwrap_or_default())
        };
        let (mut prefix, marker) = (parameter("prefix"), parameter("marker"));
        if self.is_endless.load(Ordering::Relaxed) {
            let from: u64 = marker.trim_start_matches(&*prefix).parse().map_or(0, |last: u64| last + 1);
            let one = |n| format!(r#"{{"name":"{prefix}{n:012}","bytes":1,"hash":"","last_modified":""}}"#);
            let body = format!("[{}]", (from..from + 300_000).map(one).collect::<Vec<_>>().join(","));
            return format!("200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
        }
        if self.is_blind_to_prefixes.load(Ordering::Relaxed) {
            prefix.clear();
        }
        let objects = self.objects.lock().unwrap();
        let listed: Vec<_> = objects
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix) && **name > marker)
            .take(7)
            .map(|(name, object)| {
                serde_json::json!({"name": name, "bytes": object.bytes.len(), "hash": etag(&object.bytes),
                    "last_modified": object.modified})
            })
            .collect();
        let body = serde_json::Value::from(listed).to_string();
        format!("200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }
}

fn status(code: u16) -> Vec<u8> {
    format!("{code} X\r\n{}\r\n", if code == 204 { "" } else { "content-length: 0\r\n" }).into_bytes()
}
