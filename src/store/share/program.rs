//! mount(8), which may hang.
//!
//! Problem: of a server that does not answer mount(8) and its helpers say so after minutes or never, and those that a command leaves
//! behind may succeed when nobody wants the mount any more. Idea: what is not done in time is killed. A helper may have left its
//! parent and its group behind, as glusterfs does; but all of them have the mountpoint among their arguments, which nobody else uses.
//!
//! Invariant: of a call that is given up no helper goes on, unless the kernel does not let it be killed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Most characters of mount(8)'s own message that are repeated.
const MESSAGE_CHARS_MAX: usize = 1000;

/// Most bytes of it that are read.
const MESSAGE_BYTES_MAX: u64 = 1 << 16;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long processes may take to end when they are killed.
const ENDING: Duration = Duration::from_secs(1);

/// How a call ended.
pub(super) enum Outcome {
    Mounted,
    /// What it said about it, in one line.
    Refused(String),
    /// It was given up.
    Late,
}

/// Runs `command`, which mounts something at `mountpoint`, until `deadline` at most.
pub(super) fn run(
    command: &mut Command,
    mountpoint: &Path,
    deadline: Option<Instant>,
) -> io::Result<Outcome> {
    // No pipe: a helper that goes on would hold its other end.
    let mut said = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?);
    let mut child = command.spawn()?;
    match wait(&mut child, deadline)? {
        Some(status) if status.success() => Ok(Outcome::Mounted),
        Some(_) => Ok(Outcome::Refused(message(&mut said)?)),
        None => {
            let until = Instant::now() + ENDING;
            loop {
                kill_helpers(mountpoint);
                let is_over = wait(&mut child, Some(Instant::now() + LOOK_EVERY))?.is_some();
                if is_over && !kill_helpers(mountpoint) || Instant::now() > until {
                    return Ok(Outcome::Late);
                }
            }
        }
    }
}

/// `None` when it has not ended by then.
fn wait(child: &mut Child, deadline: Option<Instant>) -> io::Result<Option<ExitStatus>> {
    let Some(deadline) = deadline else { return child.wait().map(Some) };
    loop {
        match child.try_wait()? {
            None if Instant::now() < deadline => thread::sleep(LOOK_EVERY),
            status => return Ok(status),
        }
    }
}

/// The first line; the rest points to dmesg(1) and manuals.
fn message(said: &mut File) -> io::Result<String> {
    said.rewind()?;
    let mut bytes = Vec::new();
    said.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim().lines().next().unwrap_or_default().chars().take(MESSAGE_CHARS_MAX).collect())
}

/// Whether there was one.
fn kill_helpers(mountpoint: &Path) -> bool {
    let mut found = false;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        // That of a process which has ended is empty.
        if fs::read(entry.path().join("cmdline")).is_ok_and(|words| is_helper(&words, mountpoint)) {
            found |= kill_process(pid, Signal::KILL).is_ok();
        }
    }
    found
}

/// Whether `/proc/PID/cmdline` is mount(8)'s, or a helper's, for this mountpoint.
fn is_helper(cmdline: &[u8], mountpoint: &Path) -> bool {
    let words: Vec<&[u8]> = cmdline.split(|&b| b == 0).collect();
    // A script's name comes second.
    let is_program = words.iter().take(2).any(|word| {
        let name = Path::new(OsStr::from_bytes(word)).file_name().unwrap_or_default().as_bytes();
        name.starts_with(b"mount") || name == b"glusterfs"
    });
    is_program && words.contains(&mountpoint.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_known_by_their_name_and_the_mountpoint() {
        let is = |line: &str| is_helper(line.replace(' ', "\0").as_bytes(), Path::new("/run/x"));
        assert!(is("mount -t nfs -- h:/v /run/x ") && is("/sbin/mount.nfs h:/v /run/x -o rw "));
        assert!(is("/bin/sh /sbin/mount.glusterfs h:/v /run/x -o rw "));
        assert!(is("/usr/sbin/glusterfs --process-name fuse --volfile-id=/v /run/x "));
        assert!(!is("cinderfs umount --keep-share -- /run/x ") && !is("ls /run/x ") && !is(""));
        assert!(!is("mount -t nfs -- h:/v /run/xy ") && !is("mountpoint /run "));
    }
}
