//! What the tree says, in the kernel's words: an answer for each request, whatever becomes of the work at it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fuser::{
    FileAttr, FileType, INodeNo, ReplyAttr, ReplyData, ReplyDirectoryPlus, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyXattr,
};

use super::attr::Attr;
use super::desk::Refuse;
use super::errno::Errno;
use super::namespace::Kind;
use super::tree::Answer;

/// `f_bsize` and `st_blksize`. Programs such as cp and dd size their buffers by it; a page would cost many calls, and a
/// block of the image (32 KiB) is fetched whole anyway.
pub(super) const IO_BYTES: u32 = 128 << 10;

/// Runs what a request asks for; a panic in it becomes EIO, and is logged by the panic hook and here.
pub(super) fn guarded<T>(request: &'static str, work: impl FnOnce() -> Answer<T>) -> Result<T, fuser::Errno> {
    // Unwind safety: the tree's tables are changed by single calls, and its locks outlive a panic.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Errno(errno))) => Err(fuser::Errno::from_i32(errno)),
        Err(_) => {
            tracing::error!(request, "a bug stopped this request; it is answered with EIO");
            Err(fuser::Errno::EIO)
        }
    }
}

/// Sends what `guarded` returned, one way or the other, unless the request was given up meanwhile.
macro_rules! answer_held {
    ($held:ident, $request:literal, $work:expr, |$reply:ident, $value:pat_param| $send:expr, else |$undo:pat_param| $undoing:expr) => {
        match (guarded($request, || $work), $held.take()) {
            (Ok($value), Some($reply)) => $send,
            (Err(errno), Some(reply)) => reply.error(errno),
            (Ok($undo), None) => $undoing,
            (Err(_), None) => {}
        }
    };
}

/// Sends what `guarded` returned, one way or the other.
macro_rules! answer {
    ($reply:ident, $request:literal, $work:expr, |$value:pat_param| $send:expr) => {
        match guarded($request, || $work) {
            Ok($value) => $send,
            Err(errno) => $reply.error(errno),
        }
    };
}

pub(super) use {answer, answer_held};

macro_rules! refuses {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self) {
                self.error(fuser::Errno::EIO);
            }
        })*
    };
}

refuses!(ReplyAttr, ReplyData, ReplyDirectoryPlus, ReplyEntry, ReplyLseek, ReplyOpen, ReplyXattr);

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size_bytes,
        blocks: attr.blocks_512,
        atime: attr.time,
        mtime: attr.time,
        ctime: attr.time,
        crtime: attr.time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: IO_BYTES,
        flags: 0,
    }
}

/// The protocol of xattr calls: size 0 asks for the length, and what does not fit is ERANGE.
pub(super) fn send_xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, fuser::Errno>) {
    match value {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // > A bug that stops one request answers it with EIO, and the mount goes on.
    #[test]
    fn a_panic_becomes_eio() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let outcome: Result<(), _> = guarded("test", || panic!("bug"));
        std::panic::set_hook(quiet);
        assert_eq!(outcome.map_err(|errno| errno.code()), Err(libc::EIO));
        let outcome: Result<(), _> = guarded("test", || Err(Errno(libc::ESTALE)));
        assert_eq!(outcome.map_err(|errno| errno.code()), Err(libc::ESTALE));
    }
}
