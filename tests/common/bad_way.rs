//! A bad way to a real server: a proxy that hands requests on, and does to some of them what networks and busy servers do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::http_server::{Head, listen};

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The answer comes so much later.
    Late(Duration),
    /// There is no answer until the way is [good](BadWay::heal) again.
    Hang,
    /// The connection is reset before an answer.
    Reset,
    /// The connection is reset in the middle of the body.
    ResetInBody,
    /// The connection ends in the middle of the body.
    Cut,
    /// Half of the body, and a head that says that this is all.
    Half,
    /// One byte of the body is another.
    WrongByte,
    /// This answer, and the server is not asked.
    Status(u16),
    /// What is no HTTP.
    Garbage,
}

/// A fault, how often it happens, and to which requests.
struct Plan {
    fault: Fault,
    times: usize,
    /// A part of the target.
    part: &'static str,
}

/// A proxy before one server.
pub(crate) struct BadWay {
    server: String,
    plan: Mutex<Option<Plan>>,
    healed: Condvar,
    met: Mutex<usize>,
    /// The only token that is known, where one is asked for.
    token: Mutex<Option<String>>,
}

/// For a fault that lasts until it is healed.
pub(crate) const ALWAYS: usize = usize::MAX;

impl BadWay {
    /// One to `server`, as in `127.0.0.1:80`, and what URLs through it begin with.
    pub(crate) fn to(server: &str) -> (Arc<Self>, String) {
        let way = Arc::new(Self {
            server: server.to_owned(),
            plan: Mutex::default(),
            healed: Condvar::new(),
            met: Mutex::default(),
            token: Mutex::default(),
        });
        let shared = way.clone();
        let base = listen(move |head: &Head, reader: &mut BufReader<&TcpStream>, _: &str| {
            shared.serve(head, reader)
        });
        (way, base)
    }

    /// The next so many requests that are no upload, and whose target has `part` in it, meet this.
    pub(crate) fn fail(&self, part: &'static str, fault: Fault, times: usize) {
        *self.met.lock().unwrap() = 0;
        *self.plan.lock().unwrap() = Some(Plan { fault, times, part });
    }

    /// From now on requests without this token are refused.
    #[allow(dead_code, reason = "for servers with tokens")]
    pub(crate) fn only(&self, token: &str) {
        *self.token.lock().unwrap() = Some(format!("Bearer {token}"));
    }

    /// Nothing is wrong any more.
    pub(crate) fn heal(&self) {
        *self.plan.lock().unwrap() = None;
        self.healed.notify_all();
    }

    /// How many requests met the last fault.
    pub(crate) fn met(&self) -> usize {
        *self.met.lock().unwrap()
    }

    fn fault_for(&self, head: &Head) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap();
        let plan = plan.as_mut().filter(|plan| plan.times > 0 && head.target.contains(plan.part))?;
        // A body is wrong only where there is one.
        let is_of_body =
            matches!(plan.fault, Fault::ResetInBody | Fault::Cut | Fault::Half | Fault::WrongByte);
        if is_of_body && head.method != "GET" {
            return None;
        }
        plan.times -= usize::from(plan.times != ALWAYS);
        *self.met.lock().unwrap() += 1;
        Some(plan.fault)
    }

    fn serve(&self, head: &Head, reader: &mut BufReader<&TcpStream>) -> Option<()> {
        let fault = self.fault_for(head);
        let mut client = *reader.get_ref();
        let mut body = vec![0; head.header("content-length: ").and_then(|len| len.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let token = self.token.lock().unwrap().clone();
        if token.is_some_and(|token| head.header("authorization: ") != Some(&token)) {
            return client.write_all(b"HTTP/1.1 401 X\r\ncontent-length: 0\r\n\r\n").ok();
        }
        match fault {
            Some(Fault::Late(time)) => std::thread::sleep(time),
            Some(Fault::Hang) => {
                let plan = self.plan.lock().unwrap();
                drop(self.healed.wait_while(plan, |plan| plan.is_some()).unwrap());
                return None;
            }
            Some(Fault::Reset) => return reset(client),
            Some(Fault::Status(status)) => {
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                return client.write_all(answer.as_bytes()).ok();
            }
            Some(Fault::Garbage) => {
                let _ = client.write_all(b"220 mail.example.org ESMTP\r\n");
                return None;
            }
            _ => {}
        }
        let (mut told, mut bytes) = self.ask(head, &body)?;
        let half = bytes.len() / 2;
        match fault {
            Some(Fault::WrongByte) => bytes[half] ^= 0x10,
            Some(Fault::Half) => {
                bytes.truncate(half);
                told = told.into_iter().map(|line| with_length(line, half)).collect();
            }
            _ => {}
        }
        let mut answer: Vec<u8> = told.iter().flat_map(|line| [line.as_bytes(), b"\r\n"].concat()).collect();
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(&bytes);
        if let Some(Fault::Cut | Fault::ResetInBody) = fault {
            let _ = client.write_all(&answer[..answer.len() - (bytes.len() - half)]);
            return if fault == Some(Fault::Cut) { None } else { reset(client) };
        }
        client.write_all(&answer).ok()
    }

    /// The server's answer: the lines of its head, and its body.
    fn ask(&self, head: &Head, body: &[u8]) -> Option<(Vec<String>, Vec<u8>)> {
        let mut server = TcpStream::connect(&self.server).ok()?;
        // The signature of a request holds the host that the client asked for.
        let kept = head.lines().filter(|line| !line.starts_with("connection:"));
        let lines = kept.map(|line| format!("{line}\r\n")).collect::<String>();
        let asked = format!("{} {} HTTP/1.1\r\n{lines}connection: close\r\n\r\n", head.method, head.target);
        server.write_all(&[asked.as_bytes(), body].concat()).ok()?;
        let mut reader = BufReader::new(server);
        let mut told: Vec<String> =
            reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        // The way to the client stays.
        told.retain(|line| !line.to_lowercase().starts_with("connection:"));
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).ok()?;
        Some((told, bytes))
    }
}

fn with_length(line: String, bytes: usize) -> String {
    match line.split_once(':') {
        Some((name, _)) if name.eq_ignore_ascii_case("content-length") => format!("{name}: {bytes}"),
        _ => line,
    }
}

/// Ends a connection so that the other side sees an error, and loses what it has not read.
fn reset(client: &TcpStream) -> Option<()> {
    socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)).unwrap();
    None
}
