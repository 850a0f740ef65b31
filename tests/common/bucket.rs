//! An S3 bucket in memory that many backups are listed from, and that counts what it is asked for.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use cinderfs::store::Store;
use cinderfs::store::remote::settings::{S3Settings, Secret};
use cinderfs::store::remote::{self, Access, Limits};

use crate::http_server::{self, Head, etag};

/// Names in a page of a listing, as S3 and Ceph have it.
pub(crate) const PAGE: usize = 1000;

/// Longest that a request is held: a test that fails must not hang.
const HELD_MAX: Duration = Duration::from_secs(60);

/// Is told each request before it is answered.
type Watch = Box<dyn Fn(&Bucket, &str) + Send + Sync>;

/// What a listing is answered with in place of a page, if anything: a status and a body.
type Lister = Box<dyn Fn(&Bucket, &str) -> Option<(&'static str, String)> + Send + Sync>;

#[derive(Default)]
pub(crate) struct Bucket {
    pub(crate) objects: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    /// Method and name of all requests, and of listings what they ask for.
    requests: Mutex<Vec<String>>,
    watch: Mutex<Option<Arc<Watch>>>,
    lister: Mutex<Option<Arc<Lister>>>,
    under_way: Mutex<usize>,
    moved: Condvar,
    pub(crate) endpoint: Mutex<String>,
}

impl Bucket {
    pub(crate) fn start(connections: usize) -> (Arc<Self>, Arc<dyn Store>) {
        let bucket = Arc::new(Self::default());
        let shared = bucket.clone();
        let endpoint = http_server::listen(move |head, reader, _| shared.serve(head, reader));
        bucket.endpoint.lock().unwrap().clone_from(&endpoint);
        let store = remote::s3(S3Settings {
            bucket: "b".into(),
            endpoint: Some(endpoint),
            region: "r".into(),
            keys: Some((Secret::new("a"), Secret::new("s"))),
            session_token: None,
            customer_key: None,
            access: Access::default(),
            limits: Limits { deadline: HELD_MAX, connections },
        });
        (bucket, store.unwrap())
    }

    /// From now on `watch` is told each request before it is answered.
    pub(crate) fn watch(&self, watch: impl Fn(&Self, &str) + Send + Sync + 'static) {
        *self.watch.lock().unwrap() = Some(Arc::new(Box::new(watch)));
    }

    /// From now on `lister` is asked first how a listing is answered.
    pub(crate) fn list_by(
        &self,
        lister: impl Fn(&Self, &str) -> Option<(&'static str, String)> + Send + Sync + 'static,
    ) {
        *self.lister.lock().unwrap() = Some(Arc::new(Box::new(lister)));
    }

    pub(crate) fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Vec<u8>>>> {
        self.objects.lock().unwrap()
    }

    /// The requests since this was asked last that `are` such.
    pub(crate) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    /// Waits until so many requests wait here.
    pub(crate) fn meet(&self, count: usize) {
        let mut under_way = self.under_way.lock().unwrap();
        *under_way += 1;
        self.moved.notify_all();
        let waited = self.moved.wait_timeout_while(under_way, HELD_MAX, |under_way| *under_way < count);
        assert!(!waited.unwrap().1.timed_out(), "{count} requests do not come together");
    }

    fn serve(&self, head: &Head, reader: &mut BufReader<&TcpStream>) -> Option<()> {
        let (method, target) = (&*head.method, &*head.target);
        let mut body = vec![0; head.header("content-length: ").and_then(|n| n.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path == "/" {
            let list = "<ListAllMyBucketsResult><Buckets><Bucket><Name>b</Name></Bucket></Buckets></ListAllMyBucketsResult>";
            return reader.get_mut().write_all(&answer("200 OK", "", list.as_bytes())).ok();
        }
        let name = path.strip_prefix("/b")?.trim_start_matches('/');
        let request = match name {
            "" => format!("LIST {query}"),
            name => format!("{method} {name}"),
        };
        let watch = self.watch.lock().unwrap().clone();
        self.requests.lock().unwrap().push(request.clone());
        if let Some(watch) = watch {
            watch(self, &request);
        }
        let answer = if name.is_empty() { self.listing(query) } else { self.object(head, name, body) };
        let stream = reader.get_mut();
        stream.write_all(&answer).ok()
    }

    fn object(&self, head: &Head, name: &str, body: Vec<u8>) -> Vec<u8> {
        let mut objects = self.objects();
        match &*head.method {
            "PUT" => {
                let told = format!("etag: \"{}\"\r\n", etag(&body));
                objects.insert(name.to_owned(), Arc::new(body));
                return answer("200 OK", &told, b"");
            }
            "DELETE" => {
                objects.remove(name);
                return b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
            }
            _ => {}
        }
        let Some(bytes) = objects.get(name).cloned() else { return answer("404 Not Found", "", b"") };
        let told = format!("etag: \"{}\"\r\n", etag(&bytes));
        if head.header("if-match: ").is_some_and(|wanted| wanted.trim_matches('"') != etag(&bytes)) {
            return answer("412 Precondition Failed", &told, b"");
        }
        if head.method == "HEAD" {
            let len = bytes.len();
            return format!("HTTP/1.1 200 OK\r\n{told}content-length: {len}\r\n\r\n").into_bytes();
        }
        match head.header("range: bytes=").and_then(|range| range.split_once('-')) {
            None => answer("200 OK", &told, &bytes),
            Some((first, last)) => {
                let (first, last) = (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap());
                let last = last.min(bytes.len() - 1);
                let told = format!("{told}content-range: bytes {first}-{last}/{}\r\n", bytes.len());
                answer("206 Partial Content", &told, &bytes[first..=last])
            }
        }
    }

    fn listing(&self, query: &str) -> Vec<u8> {
        let lister = self.lister.lock().unwrap().clone();
        match lister.and_then(|lister| lister(self, query)) {
            Some((status, body)) => answer(status, "", body.as_bytes()),
            None => self.page(query),
        }
    }

    /// `ListObjectsV2`. The token of the next page is the last name of this one.
    fn page(&self, query: &str) -> Vec<u8> {
        let parameter = |key: &str| {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_default().replace("%2F", "/")
        };
        let prefix = parameter("prefix");
        let behind = parameter("start-after").max(parameter("continuation-token"));
        let objects = self.objects();
        let mut wanted = objects
            .range::<String, _>((std::ops::Bound::Excluded(behind), std::ops::Bound::Unbounded))
            .filter(|(name, _)| name.starts_with(&prefix));
        let page: Vec<_> = wanted.by_ref().take(PAGE).collect();
        let told = |(name, bytes): &(&String, &Arc<Vec<u8>>)| {
            format!(
                "<Contents><Key>{name}</Key><LastModified>2024-03-01T01:01:07.000Z</LastModified><ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>",
                etag(bytes),
                bytes.len()
            )
        };
        let contents: String = page.iter().map(told).collect();
        let next = match (wanted.next(), page.last()) {
            (Some(_), Some((last, _))) => format!(
                "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
            ),
            _ => "<IsTruncated>false</IsTruncated>".to_owned(),
        };
        answer("200 OK", "", format!("<ListBucketResult>{next}{contents}</ListBucketResult>").as_bytes())
    }
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
