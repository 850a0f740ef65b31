//! A folder whose files fail: a small FUSE file system in front of a real one.
//!
//! Root is stopped by no permission, and no file can be told to give ESTALE; this can. It shows the files of one folder, flat; no page of them is cached,
//! so every read of a reader comes here. Files that exist can be written, none can be made.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

/// What a sick file does. The late ones begin after its first read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It cannot be opened: EIO.
    Unopenable,
    /// It cannot be read: EIO.
    Unreadable,
    /// It cannot be read: ESTALE.
    Stale,
    /// Late: it is not there any more, for those who have it open neither.
    Gone,
    /// A read gives half of what it could.
    Short,
    /// A bit in its middle is wrong.
    Wrong,
    /// A read takes 100 ms.
    Slow,
    /// Late: it ends at half its length.
    Truncated,
    /// Late: other bytes stand in it, under the same name and for those who have it open.
    Overwritten,
    /// Late: another file of other bytes was renamed over it; those who have it open read the old one.
    Replaced,
}

impl Fault {
    pub(crate) const ALL: [Self; 10] = [
        Self::Unopenable,
        Self::Unreadable,
        Self::Stale,
        Self::Gone,
        Self::Short,
        Self::Wrong,
        Self::Slow,
        Self::Truncated,
        Self::Overwritten,
        Self::Replaced,
    ];

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Unopenable => "open fails: EIO",
            Self::Unreadable => "read fails: EIO",
            Self::Stale => "read fails: ESTALE",
            Self::Gone => "gone while it is read: ENOENT",
            Self::Short => "short reads",
            Self::Wrong => "a wrong bit",
            Self::Slow => "each read takes 100 ms",
            Self::Truncated => "cut to half while it is read",
            Self::Overwritten => "overwritten while it is read",
            Self::Replaced => "another renamed over it while it is read",
        }
    }

    pub(crate) fn is_late(self) -> bool {
        matches!(self, Self::Gone | Self::Truncated | Self::Overwritten | Self::Replaced)
    }
}

/// Which files are sick, by the end or a part of their names, and how.
#[derive(Default)]
struct State {
    rule: Option<(String, Fault)>,
    reads: u64,
    opens: u64,
    names: Vec<String>,
    open: HashMap<u64, (String, Arc<File>)>,
}

/// What stands behind the name of a file that was renamed over another. No name of a file has it.
const NEW: char = '/';

struct Sick {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
    next: AtomicU64,
}

/// A mounted one; dropping it unmounts.
pub(crate) struct SickFolder {
    state: Arc<Mutex<State>>,
    _session: fuser::BackgroundSession,
}

impl SickFolder {
    /// Shows what is in `folder` at `at`.
    pub(crate) fn cover(folder: &Path, at: &Path) -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let sick = Sick { folder: folder.to_owned(), state: state.clone(), next: AtomicU64::new(1) };
        let mut config = fuser::Config::default();
        config.n_threads = Some(4);
        let session = fuser::spawn_mount(sick, at, &config).unwrap();
        Self { state, _session: session }
    }

    /// Makes the files with `word` in their names sick.
    pub(crate) fn begin(&self, word: &str, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        (state.rule, state.reads, state.opens) = (Some((word.to_owned(), fault)), 0, 0);
    }

    /// Whether somebody has opened a sick file, or tried to, since it [began](Self::begin) to be sick.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.state.lock().unwrap().opens > 0
    }

    /// Makes all well.
    pub(crate) fn end(&self) {
        self.state.lock().unwrap().rule = None;
    }
}

impl Sick {
    /// What is wrong with a file now.
    fn fault(&self, name: &str) -> Option<Fault> {
        let state = self.state.lock().unwrap();
        let (word, fault) = state.rule.as_ref()?;
        (name.contains(word.as_str()) && (!fault.is_late() || state.reads > 0)).then_some(*fault)
    }

    fn number(&self, name: &str) -> u64 {
        let names = &mut self.state.lock().unwrap().names;
        let index = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        index as u64 + 2
    }

    fn name(&self, ino: INodeNo) -> Result<String, Errno> {
        let names = &self.state.lock().unwrap().names;
        names.get((u64::from(ino) as usize).wrapping_sub(2)).cloned().ok_or(Errno::from_i32(libc::ENOENT))
    }

    /// The file that has this name now: the new one, where another was renamed over it.
    fn named(&self, name: &str) -> String {
        match self.fault(name) {
            Some(Fault::Replaced) => format!("{name}{NEW}"),
            _ => name.to_owned(),
        }
    }

    fn attr(&self, name: Option<&str>) -> Result<FileAttr, Errno> {
        let path = name.map_or(self.folder.clone(), |name| self.folder.join(name.trim_end_matches(NEW)));
        let stat = fs::symlink_metadata(path).map_err(errno)?;
        let fault = name.and_then(|name| self.fault(name));
        let is_new = name.is_some_and(|name| name.ends_with(NEW));
        if fault == Some(Fault::Gone) {
            return Err(Errno::from_i32(libc::ENOENT));
        }
        let mut mtime = stat.modified().map_err(errno)?;
        if is_new || matches!(fault, Some(Fault::Truncated | Fault::Overwritten)) {
            mtime += Duration::from_secs(1);
        }
        Ok(FileAttr {
            ino: INodeNo(name.map_or(1, |name| self.number(name))),
            size: if fault == Some(Fault::Truncated) { stat.len() / 2 } else { stat.len() },
            blocks: stat.blocks(),
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind: if stat.is_dir() { FileType::Directory } else { FileType::RegularFile },
            perm: (stat.mode() & 0o7777) as u16,
            nlink: 1,
            uid: stat.uid(),
            gid: stat.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn bytes(&self, fh: FileHandle, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let (name, file) = {
            let state = self.state.lock().unwrap();
            state.open.get(&u64::from(fh)).cloned().ok_or(Errno::from_i32(libc::EBADF))?
        };
        let fault = self.fault(&name);
        {
            let mut state = self.state.lock().unwrap();
            if state.rule.as_ref().is_some_and(|(word, _)| name.contains(word.as_str())) {
                state.reads += 1;
            }
        }
        let mut bytes = vec![0; size as usize];
        let mut read = file.read_at(&mut bytes, offset).map_err(errno)?;
        let len = file.metadata().map_err(errno)?.len();
        match fault {
            Some(Fault::Unreadable) => return Err(Errno::from_i32(libc::EIO)),
            Some(Fault::Stale) => return Err(Errno::from_i32(libc::ESTALE)),
            Some(Fault::Gone) => return Err(Errno::from_i32(libc::ENOENT)),
            Some(Fault::Short) => read = read.div_ceil(2),
            Some(Fault::Wrong) => {
                if let Some(byte) = (len / 2).checked_sub(offset).and_then(|at| bytes.get_mut(at as usize)) {
                    *byte ^= 1;
                }
            }
            Some(Fault::Slow) => thread::sleep(Duration::from_millis(100)),
            Some(Fault::Truncated) => read = read.min((len / 2).saturating_sub(offset) as usize),
            Some(Fault::Overwritten) => bytes.iter_mut().for_each(|byte| *byte ^= 0x55),
            // Also when all is well again: it is that file which is open.
            _ if name.ends_with(NEW) => bytes.iter_mut().for_each(|byte| *byte ^= 0x55),
            Some(Fault::Replaced | Fault::Unopenable) | None => {}
        }
        bytes.truncate(read);
        Ok(bytes)
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

impl Filesystem for Sick {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(name.to_str().map(|name| self.named(name)).as_deref()) {
            Ok(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let name = if ino == INodeNo::ROOT { Ok(None) } else { self.name(ino).map(Some) };
        match name.and_then(|name| self.attr(name.as_deref())) {
            Ok(attr) => reply.attr(&Duration::ZERO, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut names: Vec<String> = fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        for (index, name) in names.iter().enumerate().skip(offset as usize) {
            let (ino, next) = (INodeNo(self.number(name)), index as u64 + 1);
            if reply.add(ino, next, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.name(ino).and_then(|name| {
            {
                let mut state = self.state.lock().unwrap();
                if state.rule.as_ref().is_some_and(|(word, _)| name.contains(word.as_str())) {
                    state.opens += 1;
                }
            }
            match self.fault(&name) {
                Some(Fault::Unopenable) => return Err(Errno::from_i32(libc::EIO)),
                Some(Fault::Gone) => return Err(Errno::from_i32(libc::ENOENT)),
                _ => {}
            }
            let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
            let file = OpenOptions::new()
                .read(true)
                .write(writes)
                .open(self.folder.join(name.trim_end_matches(NEW)));
            Ok((name, Arc::new(file.map_err(errno)?)))
        });
        match opened {
            Ok(opened) => {
                let fh = self.next.fetch_add(1, Ordering::Relaxed);
                self.state.lock().unwrap().open.insert(fh, opened);
                reply.opened(FileHandle(fh), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.bytes(fh, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = self.state.lock().unwrap().open.get(&u64::from(fh)).cloned();
        match file.map(|(_, file)| file.write_all_at(data, offset)) {
            Some(Ok(())) => reply.written(data.len() as u32),
            _ => reply.error(Errno::from_i32(libc::EIO)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.state.lock().unwrap().open.remove(&u64::from(fh));
        reply.ok();
    }
}
