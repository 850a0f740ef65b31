//! One file of pseudo-random bytes, served by FUSE out of memory: the most that any FUSE file system can do here.
//!
//! `scripts/bench.sh` reads this file and an image of `cinderfs` in the same run and prints the ratio. So that the ratio
//! tells what `cinderfs` costs and nothing else, the mount is made alike: the same library, threads, cloned descriptors,
//! request size, read-ahead and page cache use. What is missing is all the work.
//!
//! Usage: `fuse_ceiling MOUNTPOINT BYTES [THREADS]`. The file is `MOUNTPOINT/volume.img`. Prints `ready` and serves until
//! SIGINT or SIGTERM, then unmounts.
#![allow(clippy::print_stdout, reason = "`ready` tells the caller when to start")]

use std::error::Error;
use std::ffi::OsStr;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry,
    ReplyOpen, Request,
};

/// How long the kernel may keep names and attributes. Nothing here ever changes.
const TTL: Duration = Duration::from_secs(3600);

/// Read-ahead of the mount. The kernel grants 128 KiB at most when a file system asks for it during the handshake; more
/// takes root and a write to `/sys`.
const READ_AHEAD_KIB: u32 = 1024;

const FILE: INodeNo = INodeNo(2);
const FILE_NAME: &str = "volume.img";

struct Memory {
    bytes: Vec<u8>,
}

impl Memory {
    /// Incompressible bytes that are the same in every run (xorshift64).
    fn new(len_bytes: usize) -> Self {
        let mut bytes = vec![0u8; len_bytes];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for word in bytes.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        Self { bytes }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o555, 0),
            FILE => (FileType::RegularFile, 0o444, self.bytes.len() as u64),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Memory {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Either may be refused by an old kernel, which then reads with what it has.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_PARALLEL_DIROPS);
        if let Err(granted) = config.set_max_readahead(READ_AHEAD_KIB * 1024) {
            let _ = config.set_max_readahead(granted);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes) if parent == INodeNo::ROOT && name == FILE_NAME => {
                reply.entry(&TTL, &attributes, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = self.bytes.len().min(offset as usize);
        let end = self.bytes.len().min(start + size as usize);
        reply.data(&self.bytes[start..end]);
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        for (index, (inode, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(inode, index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

/// Raises the read-ahead of the file system mounted at `mountpoint`; `false` where that is not allowed.
fn raise_read_ahead(mountpoint: &Path) -> Result<bool, Box<dyn Error>> {
    let device = std::fs::metadata(mountpoint)?.st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    Ok(std::fs::write(knob, READ_AHEAD_KIB.to_string()).is_ok())
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: fuse_ceiling MOUNTPOINT BYTES [THREADS]";
    let mut args = std::env::args().skip(1);
    let mountpoint = args.next().ok_or(usage)?;
    let len_bytes: usize = args.next().ok_or(usage)?.parse()?;
    let threads = match args.next() {
        Some(count) => count.parse()?,
        None => std::thread::available_parallelism()?.get(),
    };

    let mut options = fuser::Config::default();
    options.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::DefaultPermissions,
        MountOption::FSName("fuse_ceiling".into()),
    ];
    options.n_threads = Some(threads);
    options.clone_fd = true;

    // Caught before there is a mount that a signal could leave behind.
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    let session = fuser::Session::new(Memory::new(len_bytes), &mountpoint, &options)?.spawn()?;
    let raised = raise_read_ahead(Path::new(&mountpoint))?;
    println!("ready, {threads} threads, read-ahead {}", if raised { "1 MiB" } else { "as granted" });
    signals.forever().next();
    session.umount_and_join()?;
    Ok(())
}
