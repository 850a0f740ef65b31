//! What the small HTTP servers of tests share: a port, a thread for each connection, the head of a request, names in URLs, and ETags.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};

use md5::{Digest, Md5};

/// A request without its body. Header names are in small letters, as our client sends them.
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) target: String,
    lines: Vec<String>,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> Option<Self> {
        let mut lines = reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let first = lines.next()?;
        let mut words = first.split(' ').map(str::to_owned);
        Some(Self { method: words.next()?, target: words.next()?, lines: lines.collect() })
    }

    /// The headers, each a line.
    #[allow(dead_code, reason = "for who hands requests on")]
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// What stands behind `name`, which ends with a colon and a space, and may go on with how the value begins.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix(name))
    }
}

/// Calls `serve` with each request, what comes behind its head, and what all URLs begin with, which is returned as well; ends a
/// connection when it says `None`. The stream is to be written to.
pub(crate) fn listen<S>(serve: S) -> String
where
    S: Fn(&Head, &mut BufReader<&TcpStream>, &str) -> Option<()> + Clone + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let told = base.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (serve, base) = (serve.clone(), base.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                while let Some(head) = Head::read(&mut reader) {
                    if serve(&head, &mut reader, &base).is_none() {
                        return;
                    }
                }
            });
        }
    });
    told
}

/// The ETag of an object that was put in whole.
#[allow(dead_code, reason = "each server uses a part of this")]
pub(crate) fn etag(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name out of a URL.
#[allow(dead_code, reason = "each server uses a part of this")]
pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}
