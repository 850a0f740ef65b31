//! TLS in front of servers that speak plain HTTP, with a certificate of a private CA, and a proxy that leads to them by the names of others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A CA, and a certificate of it for `127.0.0.1` and some names.
pub(crate) struct Ca(PathBuf);

/// socat on a port of 127.0.0.1, until it is dropped.
pub(crate) struct Front {
    socat: Child,
    pub(crate) port: u16,
}

fn openssl(folder: &Path, words: &[&str]) {
    let output = Command::new("openssl").args(words).current_dir(folder).output().expect("openssl");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Ca {
    pub(crate) fn new(folder: &Path, names: &[&str]) -> Self {
        let named: String = names.iter().map(|name| format!(",DNS:{name}")).collect();
        fs::write(folder.join("ext"), format!("subjectAltName=IP:127.0.0.1{named}")).unwrap();
        let key = ["-newkey", "rsa:2048", "-nodes"];
        let ca =
            ["req", "-x509", "-days", "2", "-subj", "/CN=private CA", "-keyout", "ca.key", "-out", "ca.pem"];
        openssl(folder, &[&ca[..], &key[..]].concat());
        let request = ["req", "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr"];
        openssl(folder, &[&request[..], &key[..]].concat());
        let sign = ["x509", "-req", "-days", "2", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"];
        let out = ["-CAcreateserial", "-out", "server.pem", "-extfile", "ext"];
        openssl(folder, &[&sign[..], &out[..]].concat());
        Self(folder.to_owned())
    }

    /// Its certificate, for who is to believe it.
    pub(crate) fn file(&self) -> String {
        self.0.join("ca.pem").to_str().unwrap().to_owned()
    }

    /// A private key, as a service account has one.
    pub(crate) fn key(&self) -> String {
        fs::read_to_string(self.0.join("server.key")).unwrap()
    }

    /// TLS before what listens at `address`.
    pub(crate) fn front(&self, address: &str) -> Front {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = format!(
            "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,cert=server.pem,key=server.key,verify=0"
        );
        let socat = Command::new("socat")
            .args([listen, format!("TCP:{address}")])
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("socat");
        let front = Front { socat, port };
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return front;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("socat does not listen");
    }
}

impl Front {
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.socat.kill();
        let _ = self.socat.wait();
    }
}

/// A proxy that knows `CONNECT`, and the heads of what it was asked.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    pub(crate) heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// One that leads `host:port` to a port of 127.0.0.1.
    pub(crate) fn start(ways: BTreeMap<&'static str, u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let noted = heads.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (ways, noted) = (ways.clone(), noted.clone());
                thread::spawn(move || {
                    let Some(head) = head_of(&client) else { return };
                    let way = head.split(' ').nth(1).and_then(|to| ways.get(to).copied());
                    noted.lock().unwrap().push(head);
                    match way.and_then(|port| TcpStream::connect(("127.0.0.1", port)).ok()) {
                        Some(server) => {
                            let _ = (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                            join(client, server);
                        }
                        None => drop((&client).write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")),
                    }
                });
            }
        });
        Self { port, heads }
    }
}

/// A server that answers every request with this JSON; its address.
pub(crate) fn answering(json: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let Some(head) = head_of(&client) else { return };
                let length = head.to_lowercase().lines().find_map(|line| {
                    line.strip_prefix("content-length:").map(|value| value.trim().parse::<u64>().unwrap())
                });
                let _ = std::io::copy(&mut (&client).take(length.unwrap_or(0)), &mut std::io::sink());
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{json}",
                    json.len()
                );
                let _ = (&client).write_all(answer.as_bytes());
            });
        }
    });
    address
}

/// What stands before the empty line.
fn head_of(mut client: &TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Both ways, until both end.
fn join(client: TcpStream, server: TcpStream) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    let (back_from, back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let back = thread::spawn(move || copy(back_from, back_to));
    copy(client, server);
    let _ = back.join();
}
