//! FUSE requests, answered from the [`Tree`]: types in, types out, and no request left without an answer.
//!
//! Each request runs inside [`guarded`], so a bug in one answers EIO and leaves the mount standing. Everything that would
//! change something is EROFS; the kernel mostly says so itself, because the mount is `ro`.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::desk::{Asker, Desk, Held, Refuse, Wants};
use super::errno::Errno;
use super::replies::{IO_BYTES, answer, answer_held, file_attr, file_type, guarded, send_xattr};
use super::tree::{Answer, Source, Tree};

/// How long the kernel may believe a name and its attributes. Names that are missing are not believed at all, so that a
/// new backup shows at once.
const TTL: Duration = Duration::from_secs(1);

/// Nodes carry their identity in the inode number, and no number is given twice while the kernel knows it.
const GENERATION: Generation = Generation(0);

/// Largest request, in bytes: 256 pages, the most the kernel allows by default.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Read-ahead requests in flight. The kernel's default of 12 stops growing a sequential reader before the threads are busy.
const BACKGROUND_REQUESTS_MAX: u16 = 64;

/// Unit of `statfs`, in bytes.
const STATFS_UNIT_BYTES: u32 = 4096;

thread_local! {
    /// Each serving thread reads into its own buffer, which is not zeroed again for each request.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file system that the kernel talks to.
pub struct CinderFs {
    served: Arc<Served>,
    desk: Desk,
}

/// What requests are answered from, by whichever thread.
struct Served {
    tree: Tree,
    /// How many file systems may lie below a file that the kernel reads in an image's place; 0 for no such files.
    stack_depth: AtomicU32,
}

impl CinderFs {
    /// Serves a tree with so many threads.
    pub fn new(tree: Tree, threads: usize) -> Self {
        let served = Served { tree, stack_depth: AtomicU32::new(0) };
        Self { served: Arc::new(served), desk: Desk::new(threads) }
    }

    pub(super) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Lets the kernel read files in the place of images, where it knows how. Below such a file may lie `stack_depth`
    /// file systems, 1 or 2.
    pub fn passthrough(self, stack_depth: u32) -> Self {
        self.served.stack_depth.store(stack_depth, Ordering::Relaxed);
        self
    }

    /// Works at a request that may take the store, here or, where this thread has to stay free and the answer is not at hand, elsewhere.
    fn serve<R: Refuse + 'static>(
        &self,
        request: &Request,
        wants: Wants,
        reply: R,
        is_at_hand: impl FnOnce(&Tree) -> bool,
        work: impl FnOnce(&Served, &Held<R>) + Send + 'static,
    ) {
        let (owed, asker) = (Arc::new(Held::new(reply)), Asker(request.pid()));
        let at_work = self.desk.enter();
        if at_work.is_last() && !is_at_hand(&self.served.tree) {
            let (served, reply) = (self.served.clone(), owed.clone());
            self.desk.hand_over(owed, asker, wants, Box::new(move || work(&served, &reply)));
        } else {
            self.desk.work(owed.clone(), asker, || work(&self.served, &owed));
        }
    }
}

impl Served {
    fn list(
        &self,
        handle: FileHandle,
        offset: u64,
        mut add: impl FnMut(&Tree, u64) -> Answer<bool>,
    ) -> Answer<()> {
        let mut index = offset;
        while self.tree.entry(handle.0, index)?.is_some() && !add(&self.tree, index)? {
            index += 1;
        }
        Ok(())
    }
}

/// Nothing is at hand that has to be looked for.
fn never(_: &Tree) -> bool {
    false
}

/// A name that is not UTF-8 is nowhere in the tree.
fn text(name: &OsStr) -> Answer<&str> {
    name.to_str().ok_or(Errno(libc::ENOENT))
}

impl Filesystem for CinderFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            // A link's target is part of its inode, so a cached one is right for as long as the name is.
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
        ];
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not know this");
            }
        }
        // The largest write also sets the largest read, in pages.
        let _previous = config.set_max_write(REQUEST_BYTES_MAX);
        if let Err(most) = config.set_max_readahead(REQUEST_BYTES_MAX) {
            let _previous = config.set_max_readahead(most);
        }
        let _previous = config.set_max_background(BACKGROUND_REQUESTS_MAX);
        let is_known = self.served.stack_depth.load(Ordering::Relaxed) > 0
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        let depth = self.served.stack_depth.load(Ordering::Relaxed);
        if !is_known || config.set_max_stack_depth(depth).is_err() {
            self.served.stack_depth.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.serve(request, Wants::Names, reply, never, move |served, held| {
            answer_held!(held, "lookup", served.tree.lookup(parent.0, text(&name)?), |reply, attr| {
                reply.entry(&TTL, &file_attr(&attr), GENERATION);
            }, else |attr| served.tree.forget(attr.ino, 1));
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        // No answer is expected, and there is nobody to tell.
        let _ = guarded("forget", || {
            self.served.tree.forget(ino.0, lookups);
            Ok(())
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let handle = handle.map(|handle| handle.0);
        self.serve(request, Wants::Names, reply, never, move |served, held| {
            answer_held!(held, "getattr", served.tree.getattr(ino.0, handle), |reply, attr| {
                reply.attr(&TTL, &file_attr(&attr));
            }, else |_| ());
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(reply, "readlink", self.served.tree.readlink(ino.0), |target| reply.data(target.as_bytes()));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve(request, Wants::Names, reply, never, move |served, held| {
            let open = || {
                if flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & libc::O_TRUNC != 0 {
                    return Err(Errno(libc::EROFS));
                }
                let unsupported = || Err(std::io::ErrorKind::Unsupported.into());
                served.tree.open(ino.0, &|file| match served.stack_depth.load(Ordering::Relaxed) {
                    0 => unsupported(),
                    _ => held.with(|reply| reply.open_backing(file)).unwrap_or_else(unsupported),
                })
            };
            answer_held!(held, "open", open(), |reply, opened| {
                let (handle, flags) = (FileHandle(opened.number), FopenFlags::FOPEN_NOFLUSH);
                match opened.source() {
                    Source::Cached => reply.opened(handle, flags | FopenFlags::FOPEN_KEEP_CACHE),
                    // Without the flag the kernel drops the pages it has.
                    Source::CachedAnew => reply.opened(handle, flags),
                    Source::Uncached => reply.opened(handle, flags | FopenFlags::FOPEN_DIRECT_IO),
                    Source::Passthrough(id) => reply.opened_passthrough(handle, flags, id),
                }
            }, else |opened| drop(served.tree.release(opened.number)));
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        tracing::trace!(ino = ino.0, offset, size, "read");
        let len = size as usize;
        let is_at_hand = |tree: &Tree| tree.is_at_hand(handle.0, offset, len);
        self.serve(request, Wants::Bytes, reply, is_at_hand, move |served, held| {
            BUFFER.with_borrow_mut(|buffer| {
                answer_held!(held, "read", served.tree.read(handle.0, offset, len, buffer), |reply, ()| {
                    reply.data(buffer);
                }, else |()| ());
            });
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        answer!(reply, "release", self.served.tree.release(handle.0), |()| reply.ok());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(request, Wants::Names, reply, never, move |served, held| {
            answer_held!(held, "opendir", served.tree.opendir(ino.0), |reply, handle| {
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }, else |handle| drop(served.tree.release(handle)));
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut fill = || {
            self.served.list(handle, offset, |tree, index| {
                let Some((ino, kind, name)) = tree.entry(handle.0, index)? else { return Ok(true) };
                Ok(reply.add(INodeNo(ino), index + 1, file_type(kind), name))
            })
        };
        answer!(reply, "readdir", fill(), |()| reply.ok());
    }

    fn readdirplus(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.serve(request, Wants::Names, reply, never, move |served, held| {
            let fill = || {
                served.list(handle, offset, |tree, index| {
                    let Some(listed) = tree.entry_attr(handle.0, index)? else { return Ok(true) };
                    // Unknown attributes are not to be believed for any time; the kernel asks when it needs them.
                    let ttl = if listed.known { TTL } else { Duration::ZERO };
                    let attr = file_attr(&listed.attr);
                    let add = |reply: &mut ReplyDirectoryPlus| {
                        reply.add(attr.ino, index + 1, listed.name, &ttl, &attr, GENERATION)
                    };
                    // What was refused has no room.
                    let full = held.with(add).unwrap_or(true);
                    if full && listed.counted {
                        tree.forget(listed.attr.ino, 1);
                    }
                    Ok(full)
                })
            };
            // References that a refused listing took stay until the mount ends: some names, kept twice.
            answer_held!(held, "readdirplus", fill(), |reply, ()| reply.ok(), else |()| ());
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        answer!(reply, "releasedir", self.served.tree.release(handle.0), |()| reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        answer!(reply, "statfs", Ok(self.served.tree.totals()), |totals| {
            let units = totals.bytes.div_ceil(u64::from(STATFS_UNIT_BYTES));
            reply.statfs(units, 0, 0, totals.files, 0, IO_BYTES, 255, STATFS_UNIT_BYTES);
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // The kernel asks every file for security labels; that must not cost opening an image.
        let Some(name) = name.to_str().filter(|name| name.starts_with("user.")).map(str::to_owned) else {
            return reply.error(fuser::Errno::from_i32(libc::ENODATA));
        };
        self.serve(request, Wants::Names, reply, never, move |served, held| {
            let value = || {
                let found = served.tree.xattrs(ino.0)?.into_iter().find(|(known, _)| *known == name);
                Ok(found.ok_or(Errno(libc::ENODATA))?.1.into_bytes())
            };
            let value = guarded("getxattr", value);
            held.take().into_iter().for_each(|reply| send_xattr(reply, size, value.clone()));
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(request, Wants::Names, reply, never, move |served, held| {
            let names = || {
                let xattrs = served.tree.xattrs(ino.0)?;
                Ok(xattrs
                    .into_iter()
                    .flat_map(|(name, _)| name.into_bytes().into_iter().chain([0]))
                    .collect())
            };
            let names = guarded("listxattr", names);
            held.take().into_iter().for_each(|reply| send_xattr(reply, size, names.clone()));
        });
    }

    fn access(&self, _request: &Request, _ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // Not asked while `default_permissions` is on.
        if mask.contains(AccessFlags::W_OK) { reply.error(fuser::Errno::EROFS) } else { reply.ok() }
    }

    fn lseek(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(request, Wants::Names, reply, never, move |served, held| {
            let seek = || match whence {
                libc::SEEK_DATA => served.tree.seek(handle.0, offset, true),
                libc::SEEK_HOLE => served.tree.seek(handle.0, offset, false),
                _ => Err(Errno(libc::EINVAL)),
            };
            answer_held!(held, "lseek", seek(), |reply, found| {
                match i64::try_from(found) {
                    Ok(found) => reply.offset(found),
                    Err(_) => reply.error(fuser::Errno::EOVERFLOW),
                }
            }, else |_| ());
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    // -- everything below would change something --

    fn setattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(fuser::Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _ino_in: INodeNo,
        _handle_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _handle_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(fuser::Errno::EROFS);
    }
}
