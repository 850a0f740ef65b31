//! Files of a backup while they are made: objects in memory, documents in a temporary file.
//!
//! An object must be whole before it is sent: zstd's length stands in its head, one that did not shrink is stored as it was, and what failed
//! is sent again. The list of digests takes 2.25 GiB for each TiB of the volume and is written in any order, so it goes to an unlinked
//! file, of which nothing stays when the run is killed.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::error::{Error, ErrorKind, Result};
use crate::store::objects::Content;
use crate::writer::destination::{FinishedFile, NewFile};
use crate::writer::staging::FileName;

/// What is finished and not on its way yet.
#[derive(Default)]
pub(super) struct Files(Mutex<HashMap<FileName, Content>>);

impl Files {
    pub(super) fn put(&self, name: FileName, content: Content) {
        lock(&self.0).insert(name, content);
    }

    pub(super) fn take(&self, name: FileName) -> Option<Content> {
        lock(&self.0).remove(&name)
    }
}

/// A file in memory.
pub(super) struct HeldFile {
    files: Arc<Files>,
    name: FileName,
    bytes: Mutex<Vec<u8>>,
}

impl HeldFile {
    pub(super) fn new(files: Arc<Files>, name: FileName) -> Self {
        Self { files, name, bytes: Mutex::default() }
    }
}

impl NewFile for HeldFile {
    fn write_at(&self, new: &[u8], offset: u64) -> Result<()> {
        let mut bytes = lock(&self.bytes);
        let (from, end) = (offset as usize, offset as usize + new.len());
        if from == bytes.len() {
            bytes.extend_from_slice(new);
            return Ok(());
        }
        if end > bytes.len() {
            bytes.resize(end, 0);
        }
        bytes[from..end].copy_from_slice(new);
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let bytes = lock(&self.bytes);
        let rest = &bytes[bytes.len().min(offset as usize)..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn len_bytes(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }

    fn finish(self: Box<Self>) -> Result<FinishedFile> {
        let mut bytes = std::mem::take(&mut *lock(&self.bytes));
        // It grew by doubling.
        bytes.shrink_to_fit();
        let content = Content::Bytes(Arc::new(bytes));
        self.files.put(self.name, content.clone());
        Ok(FinishedFile::Held(content))
    }
}

/// A file that has no name.
pub(super) struct SpooledFile {
    files: Arc<Files>,
    name: FileName,
    file: File,
    len: AtomicU64,
}

impl SpooledFile {
    pub(super) fn new(files: Arc<Files>, name: FileName) -> Result<Self> {
        let file = tempfile::tempfile().map_err(|error| failed("make", &error))?;
        Ok(Self { files, name, file, len: AtomicU64::new(0) })
    }
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    let folder = std::env::temp_dir();
    let message = format!("cannot {what} a temporary file in {folder:?}, which TMPDIR names: {error}");
    Error::new(ErrorKind::Target, message)
}

impl NewFile for SpooledFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| failed("write", &error))?;
        self.len.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset).map_err(|error| failed("read", &error))
    }

    fn len_bytes(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn finish(self: Box<Self>) -> Result<FinishedFile> {
        let Self { files, name, file, len } = *self;
        let content = Content::File(Arc::new(file), len.into_inner());
        files.put(name, content.clone());
        Ok(FinishedFile::Held(content))
    }
}
