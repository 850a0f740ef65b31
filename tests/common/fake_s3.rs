//! An S3 of a few lines that keeps no bytes, and does one wrong thing with what is put into it.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use cinderfs::store::objects::ObjectStore;
use cinderfs::store::remote::settings::{S3Settings, Secret};
use cinderfs::store::remote::{self, Access, Limits};
use md5::{Digest, Md5};

use super::http_server::{self, Head};

/// What the server does beside what it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It encrypts, and its ETags are no digests.
    Encrypts,
    /// It puts the parts together, and the connection ends without an answer.
    NoAnswer,
    /// It forgets the parts when they are to be put together.
    Forgets,
    /// The second part hangs.
    Hangs,
    /// The first signature is too old.
    Skewed,
}

#[derive(Default)]
pub(crate) struct FakeS3 {
    fault: Mutex<Option<Fault>>,
    /// Length and ETag.
    pub(crate) objects: Mutex<BTreeMap<String, (usize, String)>>,
    /// Lengths so far, by upload.
    pub(crate) uploads: Mutex<BTreeMap<String, usize>>,
    pub(crate) requests: Mutex<Vec<String>>,
    is_hanging: Mutex<bool>,
    hangs: Condvar,
}

impl FakeS3 {
    pub(crate) fn start(deadline: Duration, fault: Option<Fault>) -> (Arc<Self>, Arc<dyn ObjectStore>) {
        let server = Arc::new(Self { fault: Mutex::new(fault), ..Self::default() });
        let shared = server.clone();
        let endpoint = http_server::listen(move |head, reader, _| shared.serve(head, reader));
        let store = remote::s3(S3Settings {
            bucket: "b".into(),
            endpoint: Some(endpoint),
            region: "r".into(),
            keys: Some((Secret::new("a"), Secret::new("s"))),
            session_token: None,
            customer_key: None,
            access: Access::default(),
            limits: Limits { deadline, connections: 4 },
        });
        (server, store.unwrap().into_objects().unwrap())
    }

    /// Waits until a request hangs.
    pub(crate) fn wait_for_hang(&self) {
        let is_hanging = self.is_hanging.lock().unwrap();
        drop(self.hangs.wait_while(is_hanging, |hangs| !*hangs).unwrap());
    }

    fn serve(&self, head: &Head, reader: &mut BufReader<&TcpStream>) -> Option<()> {
        let (method, target) = (&*head.method, &*head.target);
        let mut body = vec![0; head.header("content-length: ").and_then(|n| n.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        self.requests.lock().unwrap().push(format!("{method} {target}"));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let answer = self.answer(method, path.strip_prefix("/b/")?, query, &body)?;
        let stream = reader.get_mut();
        stream.write_all(b"HTTP/1.1 ").and_then(|()| stream.write_all(answer.as_bytes())).ok()
    }

    fn answer(&self, method: &str, name: &str, query: &str, body: &[u8]) -> Option<String> {
        let fault = *self.fault.lock().unwrap();
        let told = |status: &str, headers: &str, body: &str| {
            Some(format!("{status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()))
        };
        let error = |status: &str, code: &str| {
            told(status, "", &format!("<Error><Code>{code}</Code><Message>m</Message></Error>"))
        };
        let parameter =
            |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let upload = parameter("uploadId").map(str::to_owned);
        let (etag, headers) = match fault {
            Some(Fault::Encrypts) => ("e".repeat(32), "x-amz-server-side-encryption: aws:kms\r\n"),
            _ => (Md5::digest(body).iter().map(|byte| format!("{byte:02x}")).collect(), ""),
        };
        let headers = format!("{headers}etag: \"{etag}\"\r\n");
        let mut uploads = self.uploads.lock().unwrap();
        match (method, upload) {
            ("POST", None) => {
                uploads.insert("u".to_owned(), 0);
                let begun = "InitiateMultipartUploadResult";
                told(
                    "200 OK",
                    "",
                    &format!("<{begun}><Bucket>b</Bucket><Key>o</Key><UploadId>u</UploadId></{begun}>"),
                )
            }
            ("PUT", Some(_)) if fault == Some(Fault::Hangs) && parameter("partNumber") == Some("2") => {
                drop(uploads);
                *self.is_hanging.lock().unwrap() = true;
                self.hangs.notify_all();
                loop {
                    std::thread::park();
                }
            }
            ("PUT", Some(upload)) => {
                *uploads.get_mut(&upload)? += body.len();
                told("200 OK", &headers, "")
            }
            ("POST", Some(upload)) => {
                let Some(len) = uploads.remove(&upload).filter(|_| fault != Some(Fault::Forgets)) else {
                    return error("404 Not Found", "NoSuchUpload");
                };
                self.objects.lock().unwrap().insert(name.to_owned(), (len, format!("{etag}-3")));
                if fault == Some(Fault::NoAnswer) {
                    return None;
                }
                let ended = "CompleteMultipartUploadResult";
                let told_etag = format!("<ETag>\"{etag}-3\"</ETag>");
                told("200 OK", "", &format!("<{ended}><Bucket>b</Bucket><Key>o</Key>{told_etag}</{ended}>"))
            }
            ("DELETE", Some(upload)) => {
                uploads.remove(&upload);
                Some("204 No Content\r\n\r\n".to_owned())
            }
            ("DELETE", None) => {
                self.objects.lock().unwrap().remove(name);
                Some("204 No Content\r\n\r\n".to_owned())
            }
            ("PUT", None) if fault == Some(Fault::Skewed) => {
                *self.fault.lock().unwrap() = None;
                error("403 Forbidden", "RequestTimeTooSkewed")
            }
            ("PUT", None) => {
                self.objects.lock().unwrap().insert(name.to_owned(), (body.len(), etag));
                told("200 OK", &headers, "")
            }
            _ => match self.objects.lock().unwrap().get(name) {
                Some((len, etag)) => {
                    Some(format!("200 OK\r\netag: \"{etag}\"\r\ncontent-length: {len}\r\n\r\n"))
                }
                None => Some("404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()),
            },
        }
    }
}
