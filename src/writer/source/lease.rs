//! Whether anybody has a file open for writing, as the kernel counts it.
//!
//! A read lease is granted only when nobody does: loop devices, swap and processes of other users and namespaces included. It
//! is given back at once: a writer that comes while it is held waits for that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What the kernel knows of a file's writers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Writers {
    None,
    Some,
    /// The file is another user's, or its file system grants no leases.
    Unknown,
}

/// Asks the kernel. `file` must be a regular file, opened for reading only.
pub(super) fn writers(file: &File) -> Writers {
    // A writer that comes in between is announced by this signal, which else ends the process.
    let seen = Arc::new(AtomicBool::new(false));
    let Ok(handler) = signal_hook::flag::register(signal_hook::consts::SIGIO, seen) else {
        return Writers::Unknown;
    };
    let granted = set_lease(file, libc::F_RDLCK);
    let found = match &granted {
        Ok(()) => match set_lease(file, libc::F_UNLCK) {
            Ok(()) => Writers::None,
            Err(_) => Writers::Unknown,
        },
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Writers::Some,
        Err(_) => Writers::Unknown,
    };
    // The handler stays with the process and does nothing any more.
    signal_hook::low_level::unregister(handler);
    found
}

#[expect(unsafe_code, reason = "no safe crate here has leases")]
fn set_lease(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and F_SETLEASE takes an integer, no pointer.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
