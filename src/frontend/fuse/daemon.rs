//! The process that serves a mount in the background.
//!
//! Problem: `cinderfs mount` must return only when the mount answers, and must tell why it does not; yet a process with threads
//! cannot fork. Idea: the parent starts this same program anew as the *child*, which mounts in a session of its own and
//! reports through a pipe. The pipe is the child's standard input, so no descriptor's number has to be passed along:
//!
//! ```text
//!   parent                                   child
//!   spawn --------------------------------->  setsid, mount      errors go to the shared stderr
//!   read the pipe <----- one byte -----------  ready             stdout and stderr leave the terminal first
//!   return 0                                  serve
//!   end of file instead: return the child's exit code
//! ```
//!
//! The child's stderr then leads to a file (`-o log=`), to syslog through a thread, or nowhere. Whatever this process says,
//! panics included, is said there, and nobody needs to know.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::error::{Error, ErrorKind, Result};

/// What the child writes when the mount answers.
const READY: u8 = b'R';

/// Where syslog listens.
const SYSLOG_SOCKET: &str = "/dev/log";

/// Longest line sent to syslog, in bytes: what every syslog takes in one datagram.
const SYSLOG_LINE_BYTES_MAX: u64 = 2048;

/// Starts this program again with `arguments`, and waits until it is ready or dead. Returns the exit code for the parent:
/// 0, or what the child exited with after it told its error itself.
pub fn start(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<u8> {
    let failed = |error: io::Error| Error::caused_by(ErrorKind::Target, "cannot start the daemon", error);
    let (mut reports, report) = io::pipe().map_err(failed)?;
    let mut child = this_program()
        .args(arguments)
        .stdin(Stdio::from(report))
        // Colours are for terminals, and its stderr is one only for now.
        .env("NO_COLOR", "1")
        .spawn()
        .map_err(failed)?;
    // The write end lives in the child alone (`Command` has closed ours), so its death ends this read.
    let mut byte = [0];
    if matches!(reports.read(&mut byte), Ok(1)) && byte[0] == READY {
        return Ok(0);
    }
    let status = child.wait().map_err(failed)?;
    match (status.code(), status.signal()) {
        // A success without a mount: it was told to end before it was ready.
        (Some(0), _) => {
            Err(Error::new(ErrorKind::Interrupted, "the daemon was ended before the mount was ready"))
        }
        (Some(code), _) => Ok(u8::try_from(code).unwrap_or(1)),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            Err(Error::new(
                ErrorKind::Target,
                format!("the daemon died of signal {signal} before the mount was ready"),
            ))
        }
    }
}

/// This same program, to be started again.
pub(super) fn this_program() -> Command {
    // By its path where that still leads to it, so that `ps` shows the program's name.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let mut command = Command::new(program.as_deref().unwrap_or(Path::new("/proc/self/exe")));
    command.arg0("cinderfs");
    command
}

/// Where the child's stderr will lead.
#[derive(Debug)]
pub struct Child {
    log: Log,
    /// Opened early, because it may not be opened any more when it is needed.
    null: File,
}

#[derive(Debug)]
enum Log {
    File(File),
    Syslog(UnixDatagram),
    Nowhere,
}

impl Child {
    /// Leaves the parent's terminal session and opens the log, so that a log that cannot be written to is an error
    /// while somebody is there to read it.
    pub fn begin(log: Option<&Path>) -> Result<Self> {
        // Fails only for the leader of a process group, which a started child is not.
        let _ = rustix::process::setsid();
        rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
        let log = match log {
            Some(path) => {
                let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
                Log::File(opened.map_err(|error| {
                    Error::caused_by(ErrorKind::Target, format!("cannot write to the log {path:?}"), error)
                })?)
            }
            None => syslog().map_or(Log::Nowhere, Log::Syslog),
        };
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(background)?;
        Ok(Self { log, null })
    }

    /// Tells the parent that the mount answers, and lets go of its terminal and working directory.
    ///
    /// Fails when the parent is gone: then nobody knows of the mount, and it should end.
    pub fn ready(self) -> Result<()> {
        std::env::set_current_dir("/").map_err(background)?;
        // Before the report: whoever waits for the parent's output waits for all that hold it open.
        rustix::stdio::dup2_stdout(&self.null).map_err(background)?;
        match self.log {
            Log::File(file) => rustix::stdio::dup2_stderr(file),
            Log::Syslog(socket) => {
                let (lines, writer) = io::pipe().map_err(background)?;
                let forward = move || forward(BufReader::new(lines), &socket);
                thread::Builder::new().name("log".to_owned()).spawn(forward).map_err(background)?;
                rustix::stdio::dup2_stderr(writer)
            }
            Log::Nowhere => rustix::stdio::dup2_stderr(&self.null),
        }
        .map_err(background)?;
        let reported = rustix::io::write(rustix::stdio::stdin(), &[READY]);
        rustix::stdio::dup2_stdin(&self.null).map_err(background)?;
        match reported {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::caused_by(
                ErrorKind::Interrupted,
                "whoever started the daemon is gone",
                io::Error::from(error),
            )),
        }
    }
}

fn background(error: impl Into<io::Error>) -> Error {
    Error::caused_by(ErrorKind::Target, "cannot go into the background", error.into())
}

fn syslog() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(SYSLOG_SOCKET).ok()?;
    // A syslog that is stuck must not stop the mount.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// Sends lines to syslog until the last writer is gone.
fn forward(mut lines: impl BufRead, socket: &UnixDatagram) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.by_ref().take(SYSLOG_LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            // Lost when syslog is away or too slow.
            Ok(_) => drop(socket.send(&syslog_message(&line))),
        }
    }
}

/// `<priority>tag[pid]: text`, facility daemon.
fn syslog_message(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    let severity = match text.split_ascii_whitespace().take(3).find(|word| matches!(*word, "ERROR" | "WARN"))
    {
        Some("ERROR") => 3,
        Some(_) => 4,
        None => 6,
    };
    let mut message = Vec::new();
    // Writing to memory does not fail.
    let _ = write!(message, "<{}>cinderfs[{}]: {}", 3 << 3 | severity, std::process::id(), text.trim_end());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_syslog_messages() {
        let pid = std::process::id();
        for (line, severity) in
            [("2024-03-01T01:01:07Z  WARN cinderfs: damaged\n", 28), ("t ERROR x\n", 27), ("mounted", 30)]
        {
            let text = String::from_utf8(syslog_message(line.as_bytes())).unwrap();
            assert_eq!(text, format!("<{severity}>cinderfs[{pid}]: {}", line.trim_end()));
        }
    }

    #[test]
    fn long_lines_are_parted_and_a_full_syslog_loses_them() {
        let (socket, peer) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let long = vec![b'x'; 3000];
        forward(&long[..], &socket);
        let mut received = [0; 4096];
        let lens = [peer.recv(&mut received).unwrap(), peer.recv(&mut received).unwrap()];
        assert_eq!(lens[0] - lens[1], 2048 - (3000 - 2048));
        let many = "line\n".repeat(100_000);
        forward(many.as_bytes(), &socket);
    }
}
