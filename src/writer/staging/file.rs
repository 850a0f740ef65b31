//! A file of a backup while it is written.
//!
//! Its bytes are made durable when it is finished, on the thread that wrote them, so that others go on meanwhile and an
//! error of the disk comes out there. An incremental may consist of 100,000 tiny objects, though, and a disk makes some
//! hundreds of files durable in a second: after the first few, small ones wait for one `syncfs` at the end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::FileName;
use super::disk::{Disk, failed};
use super::hidden::gone_is_fine;
use crate::error::{Error, ErrorKind, Result};
use crate::waiting::Waiting;

/// A file this long is made durable by itself, in bytes: that takes as long as writing it.
const SYNC_ALONE_BYTES: u64 = 1 << 20;

/// How many smaller files are made durable by themselves: for a few it is quicker than for the whole file system, where
/// others may write as well.
const SYNC_ALONE_FILES: u64 = 32;

/// Whole, as Cinder sets it.
const FILE_MODE: u32 = 0o660;

/// A finished file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Finished {
    pub(super) name: FileName,
    /// In whose name it lies among the parts.
    pub(super) part: u64,
    /// The file's number in its file system.
    pub(super) number: u64,
}

impl Finished {
    pub(super) fn part_name(&self) -> String {
        part_name(self.part)
    }
}

/// A file that is complete and may get more names.
#[derive(Clone, Copy, Debug)]
pub struct FinishedFile(Finished);

/// No prefix begins with a dot, so no part begins with one.
fn part_name(part: u64) -> String {
    format!(".{part}")
}

/// What is being written for one backup.
#[derive(Debug)]
pub(super) struct Parts {
    disk: Disk,
    folder: OwnedFd,
    /// Whether `syncfs` makes files durable here.
    may_sync_all: bool,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: u64,
    small: u64,
    finished: Vec<Finished>,
    is_unsynced: bool,
}

impl Parts {
    pub(super) fn new(disk: Disk, folder: OwnedFd) -> Self {
        let may_sync_all = can_sync_all(&folder);
        Self { disk, folder, may_sync_all, next: AtomicU64::new(1), state: Mutex::default() }
    }

    pub(super) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn create(self: &Arc<Self>, name: FileName) -> Result<StagedFile> {
        let part = self.next.fetch_add(1, Ordering::Relaxed);
        let made = self.disk.make_file(&self.folder, &part_name(part), FILE_MODE);
        let file = made.map_err(|errno| failed(format!("cannot make {}", name.kind()), errno))?;
        self.state().open += 1;
        Ok(StagedFile {
            parts: Arc::clone(self),
            file,
            name,
            part,
            end: 0,
            len: AtomicU64::new(0),
            finished: false,
        })
    }

    /// See [`Staging::link_file`](super::Staging::link_file).
    pub(super) fn link(&self, name: FileName, file: &FinishedFile) -> Result<bool> {
        let part = self.next.fetch_add(1, Ordering::Relaxed);
        match self.disk.link_file(&self.folder, &file.0.part_name(), &part_name(part)) {
            Ok(()) => {}
            // No links here, or no more of this file; some file systems in user space say what they like.
            Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK | Errno::ACCESS | Errno::INVAL) => {
                return Ok(false);
            }
            Err(errno) => return Err(failed(format!("cannot make {name}"), errno)),
        }
        self.state().finished.push(Finished { name, part, number: file.0.number });
        Ok(true)
    }

    /// Object numbers from 1 without a gap, in the order of those there are.
    pub(super) fn renumber_objects(&self) -> Result<()> {
        let mut state = self.state();
        if state.open > 0 {
            let message = format!("{} files of the backup are still being written", state.open);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        state.finished.sort_unstable_by_key(|file| file.name);
        // Two of one number stay two of one number, for `settle` to refuse.
        let (mut last, mut number) = (None, 0);
        for file in &mut state.finished {
            if let FileName::Object(old) = file.name {
                number += u64::from(last != Some(old));
                last = Some(old);
                file.name = FileName::Object(number);
            }
        }
        Ok(())
    }

    /// All files, durable, in the order of their names' kinds and numbers; and nothing may be open.
    pub(super) fn settle(&self) -> Result<Vec<Finished>> {
        let (mut files, is_unsynced) = {
            let state = self.state();
            if state.open > 0 {
                let message = format!("{} files of the backup are still being written", state.open);
                return Err(Error::new(ErrorKind::Usage, message));
            }
            (state.finished.clone(), state.is_unsynced)
        };
        files.sort_unstable_by_key(|file| file.name);
        if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let message = format!("{} was written twice", pair[0].name);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let objects = files.iter().filter(|file| matches!(file.name, FileName::Object(_))).count() as u64;
        let expected = (1..=objects).map(FileName::Object).chain([FileName::Digests, FileName::Metadata]);
        for (i, expected) in expected.enumerate() {
            if files.get(i).map(|file| file.name) != Some(expected) {
                return Err(Error::new(ErrorKind::Usage, format!("{expected} was not written")));
            }
        }
        if is_unsynced {
            self.sync_all().map_err(|errno| failed("cannot make the backup's files durable", errno))?;
        }
        Ok(files)
    }

    #[cfg(target_os = "linux")]
    fn sync_all(&self) -> Result<(), Errno> {
        self.disk.sync_all(&self.folder, "parts")
    }

    #[cfg(not(target_os = "linux"))]
    fn sync_all(&self) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }
}

/// The kernel does not pass `syncfs` on to file systems in user space (GlusterFS is one), and others lack it.
#[cfg(target_os = "linux")]
fn can_sync_all(folder: &OwnedFd) -> bool {
    const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
    rustix::fs::fstatfs(folder).is_ok_and(|stat| stat.f_type as u64 != FUSE_SUPER_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn can_sync_all(_: &OwnedFd) -> bool {
    false
}

/// A file of a backup that is being written. Dropped before it is [finished](StagedFile::finish), it is removed.
///
/// All writing fails with [`ErrorKind::Target`] when the store is full or a quota used up, [`ErrorKind::StoreIo`] when
/// it fails otherwise.
#[derive(Debug)]
pub struct StagedFile {
    parts: Arc<Parts>,
    file: OwnedFd,
    name: FileName,
    part: u64,
    end: u64,
    len: AtomicU64,
    finished: bool,
}

impl StagedFile {
    /// Which file of the backup it is.
    pub fn name(&self) -> FileName {
        self.name
    }

    /// Writes `bytes` behind what was appended before, whatever [`write_at`](Self::write_at) wrote.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Writes all `bytes` at `offset`, from any thread. What nobody wrote reads as zeros.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let written = self.parts.disk.write_all_at(&self.file, &self.name.suffix(), bytes, offset);
        written
            .map_err(|errno| failed(format!("cannot write {} at byte {offset}", self.name.kind()), errno))?;
        self.len.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Reads back at `offset`; returns how many bytes were read, 0 only at or past the end (or for an empty `buf`).
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let _waiting = Waiting::begin(format_args!("the reading of {:?}", self.name.suffix()));
        rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut *buf, offset)).map_err(|errno| {
            let message = format!("cannot read {} again at byte {offset}", self.name.kind());
            Error::caused_by(ErrorKind::StoreIo, message, errno)
        })
    }

    /// How long the file is, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// The file is complete: makes it durable, and part of what is published.
    pub fn finish(self) -> Result<()> {
        self.finish_to_link().map(drop)
    }

    /// The same for a file that may get more names.
    pub fn finish_to_link(mut self) -> Result<FinishedFile> {
        let sync_failed = |errno| failed(format!("cannot make {} durable", self.name.kind()), errno);
        let is_small = self.len_bytes() < SYNC_ALONE_BYTES;
        let waits = {
            let mut state = self.parts.state();
            state.small += u64::from(is_small);
            is_small && self.parts.may_sync_all && state.small > SYNC_ALONE_FILES
        };
        if !waits {
            self.parts.disk.sync_file(&self.file, &self.name.suffix()).map_err(sync_failed)?;
        }
        let number = rustix::fs::fstat(&self.file).map_err(sync_failed)?.st_ino;
        self.finished = true;
        let finished = Finished { name: self.name, part: self.part, number };
        let mut state = self.parts.state();
        state.finished.push(finished);
        state.is_unsynced |= waits;
        drop(state);
        Ok(FinishedFile(finished))
    }
}

impl StagedFile {
    /// The file is complete and durable, and waits among the parts for its name; what it is called there.
    pub(super) fn complete(mut self) -> Result<String> {
        let sync_failed = |errno| failed(format!("cannot make {} durable", self.name.kind()), errno);
        self.parts.disk.sync_file(&self.file, &self.name.suffix()).map_err(sync_failed)?;
        self.finished = true;
        Ok(part_name(self.part))
    }
}

impl io::Write for StagedFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.append(buf).map(|()| buf.len()).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.finished {
            // The hidden folder may have gone before.
            let removed = self.parts.disk.remove_file(&self.parts.folder, &part_name(self.part));
            if let Err(errno) = gone_is_fine(removed) {
                tracing::debug!(name = %self.name, %errno, "an unfinished file stays until its folder goes");
            }
        }
        self.parts.state().open -= 1;
    }
}
