//! Who takes the mount away when the daemon may not.
//!
//! Problem: a daemon that gave up its rights may neither unmount nor start `fusermount3`, and still must not leave a dead mount
//! behind. Idea: before that it starts this same program anew as the *unmounter*, a process that can do this one thing to this one
//! mountpoint, and sleeps until it is asked:
//!
//! ```text
//!   daemon                              unmounter
//!   start --------------------------->  signals ignored
//!         <------- ready -------------
//!   mount, restrict, serve
//!   lazy|now 0:57 ------------------->  the mount table: is it still 0:57 that stands there? then unmount
//!         <------- gone --------------  or: hidden KIND, failed REASON
//!   exit                                end of file: exit
//! ```
//!
//! Invariants: whoever speaks through the pipe can have a cinderfs mount taken from that mountpoint, and nothing else. The
//! unmounter holds nothing of the mount, so a daemon that is killed leaves a dead mount as it ever did. Signals
//! that are meant for the daemon and reach its whole group (Ctrl-C, systemd) do not end it early.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::daemon::this_program;
use super::unmount::{self, Taken};
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::{self, CapabilitySet};

/// Longest line in either direction, in bytes: a message with a path in it.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// The words between daemon and unmounter.
const READY: &str = "ready";
const GONE: &str = "gone";
const HIDDEN: &str = "hidden ";
const FAILED: &str = "failed ";
const LAZY: &str = "lazy ";
const NOW: &str = "now ";

/// Takes one mount away: itself, or by the other process.
#[derive(Debug)]
pub(super) struct Unmounter {
    mountpoint: PathBuf,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// `None` once it was told to end.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Unmounter {
    /// This process will do it.
    pub(super) fn here(mountpoint: &Path) -> Self {
        Self { mountpoint: mountpoint.to_owned(), process: None }
    }

    /// Another process will do it. It is there when this returns.
    pub(super) fn start(mountpoint: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::caused_by(ErrorKind::Target, "cannot start the process that unmounts at the end", error)
        };
        let mut child = this_program()
            .args(["umount", "--on-request", "--"])
            .arg(mountpoint)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Whoever waits for the daemon's output must not wait for this process; what fails it tells the daemon.
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::Error::other("it has no pipes")));
        };
        let mut process = Process { child, requests: Some(requests), answers: BufReader::new(answers) };
        match line(&mut process.answers).map_err(failed)?.as_deref() {
            Some(READY) => Ok(Self { mountpoint: mountpoint.to_owned(), process: Some(process) }),
            said => Err(failed(io::Error::other(format!("it said {said:?}")))),
        }
    }

    /// Takes the file system `device` away from the mountpoint if it stands there on top, `lazy` also when it is in use.
    pub(super) fn take_away(&mut self, device: &str, lazy: bool) -> Result<Taken> {
        let Some(process) = &mut self.process else {
            return unmount::take_away(&self.mountpoint, device, lazy);
        };
        let failed = |why: String| {
            let message = format!("cannot unmount {:?}: {why}", self.mountpoint);
            Err(Error::new(ErrorKind::Target, message))
        };
        match process.ask(&format!("{}{device}\n", if lazy { LAZY } else { NOW })) {
            Ok(Some(answer)) if answer == GONE => Ok(Taken::Gone),
            Ok(Some(answer)) => match (answer.strip_prefix(HIDDEN), answer.strip_prefix(FAILED)) {
                (Some(kind), _) => Ok(Taken::Hidden(kind.to_owned())),
                (_, Some(why)) => Err(Error::new(ErrorKind::Target, why)),
                _ => failed(format!("the process for this said {answer:?}")),
            },
            Ok(None) => failed("the process for this is gone".to_owned()),
            Err(error) => failed(format!("the process for this cannot be reached: {error}")),
        }
    }
}

impl Process {
    fn ask(&mut self, request: &str) -> io::Result<Option<String>> {
        let Some(requests) = &mut self.requests else { return Ok(None) };
        requests.write_all(request.as_bytes())?;
        line(&mut self.answers)
    }
}

impl Drop for Process {
    /// Lets it end, so that it is not seen any more when the daemon is gone.
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// One line without its end; `None` at the end of the stream.
fn line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    stream.take(LINE_BYTES_MAX).read_line(&mut line)?;
    Ok(line.strip_suffix('\n').map(str::to_owned))
}

/// Is the unmounter of `mountpoint`: answers requests on stdin until it is closed.
pub fn serve(mountpoint: &Path) -> Result<()> {
    let failed = |error: io::Error| Error::caused_by(ErrorKind::Target, "the unmounter failed", error);
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).map_err(failed)?;
    }
    // Others have to start `fusermount3`, which gets the rights that it needs from its file.
    if rustix::process::geteuid().is_root() {
        let _ = sandbox::keep(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH);
    }
    answer(io::stdin().lock(), io::stdout().lock(), |device, lazy| {
        unmount::take_away(mountpoint, device, lazy)
    })
    .map_err(failed)
}

fn answer(
    mut requests: impl BufRead,
    mut answers: impl Write,
    mut take_away: impl FnMut(&str, bool) -> Result<Taken>,
) -> io::Result<()> {
    let mut say = |words: &str| {
        // One line each, whatever stands in a path.
        let words = words.replace('\n', " ");
        answers.write_all(format!("{words}\n").as_bytes())?;
        answers.flush()
    };
    say(READY)?;
    while let Some(request) = line(&mut requests)? {
        let taken = match (request.strip_prefix(LAZY), request.strip_prefix(NOW)) {
            (Some(device), _) => take_away(device, true),
            (_, Some(device)) => take_away(device, false),
            _ => Err(Error::new(ErrorKind::Usage, "unknown request")),
        };
        match taken {
            Ok(Taken::Gone) => say(GONE)?,
            Ok(Taken::Hidden(kind)) => say(&format!("{HIDDEN}{kind}"))?,
            Err(error) => say(&format!("{FAILED}{error}"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_gets_one_line() {
        let mut answers = Vec::new();
        let mut asked = Vec::new();
        answer(&b"now 0:57\nlazy 0:57\nmount /etc\nnow 0:58\ntorn"[..], &mut answers, |device, lazy| {
            asked.push((device.to_owned(), lazy));
            match (device, lazy) {
                ("0:58", _) => Ok(Taken::Hidden("ext4".to_owned())),
                (_, true) => Ok(Taken::Gone),
                (_, false) => Err(Error::new(ErrorKind::Target, "in\nuse")),
            }
        })
        .unwrap();
        let said = "ready\nfailed in use\ngone\nfailed unknown request\nhidden ext4\n";
        assert_eq!(String::from_utf8(answers).unwrap(), said);
        assert_eq!(asked.len(), 3, "{asked:?}");
    }

    #[test]
    fn a_line_without_end_is_not_read_for_ever() {
        assert_eq!(line(&mut BufReader::new(io::repeat(b'x'))).unwrap(), None);
    }
}
