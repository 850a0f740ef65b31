//! Who takes the mount away when the daemon may not.
//!
//! Problem: a daemon that gave up its rights may neither unmount nor start `fusermount3`, and still must not leave a dead mount
//! behind. Idea: before that it starts a [companion], the *unmounter*, a process that can do this one thing to this
//! one mountpoint, and sleeps until it is asked:
//!
//! ```text
//!   daemon                              unmounter
//!   start --------------------------->  signals ignored
//!         <------- ready -------------
//!   mount, restrict, serve
//!   killed 12 34 -------------------->  /proc, which the daemon may not look into either: were these killed?
//!         <------- killed 34 ---------
//!   lazy|now 0:57 ------------------->  the mount table: is it still 0:57 that stands there? then unmount
//!         <------- gone --------------  or: hidden KIND, failed REASON
//!   exit                                end of file: exit
//! ```
//!
//! Invariants: whoever speaks through the pipe can have a cinderfs mount taken from that mountpoint, and learn which threads were killed, and
//! nothing else. The unmounter holds nothing of the mount, so a daemon that is killed leaves a dead mount as it ever did.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use super::companion::{self, Companion, line};
use super::killed;
use super::unmount::{self, Taken};
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::{self, CapabilitySet};

/// The words between daemon and unmounter.
const GONE: &str = "gone";
const HIDDEN: &str = "hidden ";
const FAILED: &str = "failed ";
const LAZY: &str = "lazy ";
const NOW: &str = "now ";
const KILLED: &str = "killed";

/// Takes one mount away: itself, or by the other process.
#[derive(Debug)]
pub(super) struct Unmounter {
    mountpoint: PathBuf,
    process: Option<Companion>,
}

impl Unmounter {
    /// This process will do it.
    pub(super) fn here(mountpoint: &Path) -> Self {
        Self { mountpoint: mountpoint.to_owned(), process: None }
    }

    /// Another process will do it. It is there when this returns.
    pub(super) fn start(mountpoint: &Path) -> Result<Self> {
        let message = "cannot start the process that unmounts at the end";
        let process = Companion::start("--on-request", mountpoint)
            .map_err(|error| Error::caused_by(ErrorKind::Target, message, error))?;
        Ok(Self { mountpoint: mountpoint.to_owned(), process: Some(process) })
    }

    /// Those of `threads` that were killed and have not ended, as far as that can be told.
    pub(super) fn killed(&mut self, threads: &[u32]) -> Vec<u32> {
        let threads = &threads[..threads.len().min(killed::ASKED_MAX)];
        let Some(process) = &mut self.process else { return killed::among(threads) };
        match process.ask(&with_numbers(KILLED, threads)) {
            Ok(Some(answer)) => numbers(answer.strip_prefix(KILLED).unwrap_or_default()),
            Ok(None) | Err(_) => Vec::new(),
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
        match process.ask(&format!("{}{device}", if lazy { LAZY } else { NOW })) {
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

/// Is the unmounter of `mountpoint`: answers requests on stdin until it is closed.
pub fn serve(mountpoint: &Path) -> Result<()> {
    let failed = |error: io::Error| Error::caused_by(ErrorKind::Target, "the unmounter failed", error);
    companion::begin().map_err(failed)?;
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
    companion::say_ready(&mut answers)?;
    while let Some(request) = line(&mut requests)? {
        if let Some(threads) = request.strip_prefix(KILLED) {
            companion::say(&mut answers, &with_numbers(KILLED, &killed::among(&numbers(threads))))?;
            continue;
        }
        let taken = match (request.strip_prefix(LAZY), request.strip_prefix(NOW)) {
            (Some(device), _) => take_away(device, true),
            (_, Some(device)) => take_away(device, false),
            _ => Err(Error::new(ErrorKind::Usage, "unknown request")),
        };
        match taken {
            Ok(Taken::Gone) => companion::say(&mut answers, GONE)?,
            Ok(Taken::Hidden(kind)) => companion::say(&mut answers, &format!("{HIDDEN}{kind}"))?,
            Err(error) => companion::say(&mut answers, &format!("{FAILED}{error}"))?,
        }
    }
    Ok(())
}

/// A word and numbers behind it.
fn with_numbers(word: &str, numbers: &[u32]) -> String {
    numbers.iter().fold(word.to_owned(), |line, number| format!("{line} {number}"))
}

fn numbers(words: &str) -> Vec<u32> {
    words.split_whitespace().take(killed::ASKED_MAX).filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_gets_one_line() {
        let mut answers = Vec::new();
        let mut asked = Vec::new();
        let requests = b"now 0:57\nkilled 0 4294967295 x\nlazy 0:57\nmount /etc\nnow 0:58\ntorn";
        answer(&requests[..], &mut answers, |device, lazy| {
            asked.push((device.to_owned(), lazy));
            match (device, lazy) {
                ("0:58", _) => Ok(Taken::Hidden("ext4".to_owned())),
                (_, true) => Ok(Taken::Gone),
                (_, false) => Err(Error::new(ErrorKind::Target, "in\nuse")),
            }
        })
        .unwrap();
        let said = "ready\nfailed in use\nkilled\ngone\nfailed unknown request\nhidden ext4\n";
        assert_eq!(String::from_utf8(answers).unwrap(), said);
        assert_eq!(asked.len(), 3, "{asked:?}");
    }
}
