//! Who keeps the mount of a share for a daemon, and takes it away behind it.
//!
//! Problem: a daemon that gave up its rights may not unmount the share that it was mounted for, and one that is killed cannot.
//! Idea: this same program, started anew before, uses the mount as well, waits for the end of its stdin, which comes when the daemon is
//! gone, however it went, and then takes the mount away if nobody else uses it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::daemon::this_program;
use crate::error::{Error, ErrorKind, Result};
use crate::store::share;

const READY: &str = "ready\n";

/// The process, for as long as this lives.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    /// `None` once it was told to end.
    stdin: Option<ChildStdin>,
}

impl Keeper {
    /// Starts it for the share that is mounted at `mountpoint`; it uses the mount when this returns.
    pub fn start(mountpoint: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::caused_by(
                ErrorKind::Target,
                "cannot start the process that keeps the share mounted",
                error,
            )
        };
        let mut child = this_program()
            .args(["umount", "--keep-share", "--"])
            .arg(mountpoint)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut said = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout.take(READY.len() as u64)).read_line(&mut said).map_err(failed)?;
        }
        if said != READY {
            return Err(failed(io::Error::other("it did not begin")));
        }
        Ok(Self { child, stdin })
    }
}

impl Drop for Keeper {
    /// Lets it end, so that the mount is gone when the daemon is.
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// Is the keeper of the share that is mounted at `mountpoint`, until stdin ends.
pub fn serve(mountpoint: &Path) -> Result<()> {
    let failed =
        |error: io::Error| Error::caused_by(ErrorKind::Target, "the keeper of a share failed", error);
    // Signals that are meant for the daemon do not end it early.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).map_err(failed)?;
    }
    let _share = share::join(mountpoint)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush()).map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut io::sink()).map_err(failed)?;
    Ok(())
}
