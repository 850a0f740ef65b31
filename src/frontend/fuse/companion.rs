//! This same program, started anew beside a daemon that is about to give up its rights.
//!
//! Idea: it says that it is there with one line, is spoken to through its stdin, and ends when that does, which happens however
//! the daemon goes.
//!
//! Invariants: signals that are meant for the daemon and reach its whole group (Ctrl-C, systemd) do not end it early; whoever
//! waits for the daemon's output does not wait for it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::daemon::this_program;

/// Longest line in either direction, in bytes: a message with a path in it.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// What it says first.
const READY: &str = "ready";

/// The process, for as long as this lives.
#[derive(Debug)]
pub(super) struct Companion {
    child: Child,
    /// `None` once it was told to end.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Companion {
    /// Starts `umount` with the option `task` for a mountpoint; it is ready when this returns.
    pub(super) fn start(task: &str, mountpoint: &Path) -> io::Result<Self> {
        let mut child = this_program()
            .args(["umount", task, "--"])
            .arg(mountpoint)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What fails it tells the daemon.
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        let mut companion = Self { child, requests: Some(requests), answers: BufReader::new(answers) };
        match line(&mut companion.answers)?.as_deref() {
            Some(READY) => Ok(companion),
            said => Err(io::Error::other(format!("it said {said:?}"))),
        }
    }

    /// What it answers, in one line each way; `None` when it is gone.
    pub(super) fn ask(&mut self, request: &str) -> io::Result<Option<String>> {
        let Some(requests) = &mut self.requests else { return Ok(None) };
        requests.write_all(format!("{request}\n").as_bytes())?;
        line(&mut self.answers)
    }
}

impl Drop for Companion {
    /// Lets it end, so that its work is done, and it is not seen any more, when the daemon is gone.
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// Is such a process from now on: ends with stdin only.
pub(super) fn begin() -> io::Result<()> {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

/// Says that it is ready.
pub(super) fn say_ready(answers: &mut impl Write) -> io::Result<()> {
    say(answers, READY)
}

/// Says one line, whatever stands in `words`.
pub(super) fn say(answers: &mut impl Write, words: &str) -> io::Result<()> {
    answers.write_all(format!("{}\n", words.replace('\n', " ")).as_bytes())?;
    answers.flush()
}

/// One line without its end; `None` at the end of the stream.
pub(super) fn line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    stream.take(LINE_BYTES_MAX).read_line(&mut line)?;
    Ok(line.strip_suffix('\n').map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_end_is_not_read_for_ever() {
        assert_eq!(line(&mut BufReader::new(io::repeat(b'x'))).unwrap(), None);
    }
}
