//! Which errno a failure becomes: the one place that decides.

use crate::error::{Error, ErrorKind};

use super::namespace::Opens;

/// An errno for the kernel, positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl From<&Error> for Errno {
    fn from(error: &Error) -> Self {
        Self::of(error.kind())
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        Self::of(error.kind())
    }
}

impl Errno {
    /// The errno of a kind of failure while a file of the mount is used.
    pub fn of(kind: ErrorKind) -> Self {
        Self(match kind {
            ErrorKind::AccessDenied => libc::EACCES,
            // The bytes exist but cannot be had, or cannot be vouched for: to a reader of a disk that is a bad sector.
            // A missing object is one too. ENOENT would deny the file that was opened.
            ErrorKind::StoreNotFound
            | ErrorKind::StoreIo
            | ErrorKind::ObjectNotFound
            | ErrorKind::UnsafeName
            | ErrorKind::Truncated
            | ErrorKind::Malformed
            | ErrorKind::Unsupported
            | ErrorKind::LimitExceeded
            | ErrorKind::Codec
            | ErrorKind::HashMismatch
            | ErrorKind::NoData
            | ErrorKind::ChainBroken
            | ErrorKind::OutOfSight
            | ErrorKind::Target
            | ErrorKind::Source => libc::EIO,
            // It was there when its name was looked up. ESTALE makes the kernel look the name up again.
            ErrorKind::BackupNotFound => libc::ESTALE,
            // Words of a command line have no business here; should they come, the call was wrong.
            ErrorKind::Ambiguous | ErrorKind::Usage => libc::EINVAL,
            ErrorKind::Interrupted => libc::EINTR,
        })
    }
}

/// What it says about a backup that its image fails to open: whether the backup or the store is at fault.
pub fn opens(error: &Error) -> Opens {
    match error.kind() {
        ErrorKind::StoreNotFound | ErrorKind::AccessDenied | ErrorKind::StoreIo | ErrorKind::Interrupted => {
            Opens::Unreachable
        }
        ErrorKind::ObjectNotFound
        | ErrorKind::UnsafeName
        | ErrorKind::Truncated
        | ErrorKind::Malformed
        | ErrorKind::Unsupported
        | ErrorKind::LimitExceeded
        | ErrorKind::Codec
        | ErrorKind::HashMismatch
        | ErrorKind::NoData
        | ErrorKind::ChainBroken
        | ErrorKind::OutOfSight
        | ErrorKind::BackupNotFound
        | ErrorKind::Ambiguous
        | ErrorKind::Usage
        | ErrorKind::Target
        | ErrorKind::Source => Opens::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_eio_and_never_looks_like_a_missing_file() {
        use ErrorKind::*;
        for kind in [ObjectNotFound, Truncated, Malformed, Codec, HashMismatch, NoData, ChainBroken, StoreIo]
        {
            assert_eq!(Errno::of(kind), Errno(libc::EIO), "{kind:?}");
        }
        assert_eq!(Errno::of(AccessDenied), Errno(libc::EACCES));
        assert_eq!(Errno::of(BackupNotFound), Errno(libc::ESTALE));
    }

    #[test]
    fn a_store_that_does_not_answer_does_not_make_a_backup_unusable() {
        assert_eq!(opens(&Error::new(ErrorKind::StoreIo, "timeout")), Opens::Unreachable);
        assert_eq!(opens(&Error::new(ErrorKind::Malformed, "torn")), Opens::No);
    }
}
