//! How the file is divided, and how it comes into being.
//!
//! ```text
//! 0     magic (16), buckets (u64), data bytes (u64), sha256 of these 32 bytes (32)       written once
//! 512   how much of the ring was ever given away (u64), its complement (u64)             see `ring`
//! 4096  the table
//! …     the data
//! ```
//!
//! All numbers are little-endian. A file is made under another name and moved to its own when it is complete, under a lock
//! on the folder, so no process sees a half-made one, and two that start at once share one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{lock, unlock};

/// What records of a page and more are aligned to, and the size of a bucket, in bytes.
pub(super) const PAGE: u64 = 4096;

/// Where the count of what was given away stands.
pub(super) const GIVEN_AT: u64 = 512;

/// The table's share of the file: an entry of 32 bytes for each 4 KiB of data. Blocks of 8 KiB and more leave at least half of
/// it free, so no bucket overflows before the ring does; of blocks of 512 bytes an eighth of the ring finds room.
const TABLE_SHARE: u64 = 128;

/// Longest wait for another process that makes the file, which takes a few system calls.
const MAKING_PATIENCE: Duration = Duration::from_secs(2);

const MAGIC: &[u8; 16] = b"cinderfs ring 1\n";
const FIXED_BYTES: usize = 32;
const HEADER_BYTES: usize = FIXED_BYTES + 32;

/// How a file is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Buckets in the table, at least one.
    pub(super) buckets: u64,
    /// Bytes in the ring, a multiple of [`PAGE`], at least one.
    pub(super) data_bytes: u64,
}

impl Layout {
    /// For a file of at most `bytes_max` bytes; `None` when nothing fits.
    fn of_size(bytes_max: u64) -> Option<Self> {
        let pages = bytes_max.min(i64::MAX as u64) / PAGE;
        let buckets = (pages / TABLE_SHARE).max(1);
        let data_pages = pages.checked_sub(1 + buckets).filter(|pages| *pages > 0)?;
        Some(Self { buckets, data_bytes: data_pages * PAGE })
    }

    pub(super) fn table_at(&self) -> u64 {
        PAGE
    }

    pub(super) fn data_at(&self) -> u64 {
        PAGE + self.buckets * PAGE
    }

    fn file_bytes(&self) -> u64 {
        self.data_at() + self.data_bytes
    }

    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..16].copy_from_slice(MAGIC);
        header[16..24].copy_from_slice(&self.buckets.to_le_bytes());
        header[24..FIXED_BYTES].copy_from_slice(&self.data_bytes.to_le_bytes());
        let digest = Sha256::digest(&header[..FIXED_BYTES]);
        header[FIXED_BYTES..].copy_from_slice(&digest);
        header
    }
}

/// Opens the ring in `folder`, which is made where it is missing; makes a new one unless there is one of just this size.
pub(super) fn open(folder: &Path, bytes_max: u64) -> io::Result<(File, Layout)> {
    let Some(layout) = Layout::of_size(bytes_max) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "its size has no room for a record"));
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let making = File::open(folder)?;
    lock(&making, MAKING_PATIENCE)?;
    let opened = open_alone(folder, layout);
    unlock(&making);
    Ok((opened?, layout))
}

fn open_alone(folder: &Path, layout: Layout) -> io::Result<File> {
    let (path, unfinished) = (folder.join("ring"), folder.join("ring.new"));
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    match options.open(&path) {
        Ok(file) if is_of(&file, layout)? => return Ok(file),
        Ok(_) => tracing::info!("the disk cache has a new size, or was damaged, and begins empty"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = options.create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.set_len(layout.file_bytes())?;
    file.write_all_at(&layout.header(), 0)?;
    std::fs::rename(&unfinished, &path)?;
    Ok(file)
}

fn is_of(file: &File, layout: Layout) -> io::Result<bool> {
    let mut header = [0; HEADER_BYTES];
    let whole = file.metadata()?.len() == layout.file_bytes();
    Ok(whole && file.read_exact_at(&mut header, 0).is_ok() && header == layout.header())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_layout_is_larger_than_asked_for() {
        for bytes_max in [0, 4096, 8191, 12287] {
            assert_eq!(Layout::of_size(bytes_max), None);
        }
        for bytes_max in [12288, 12289, 1 << 20, 64 << 20, (10 << 30) + 17, 1 << 44, u64::MAX] {
            let layout = Layout::of_size(bytes_max).unwrap();
            assert!(layout.file_bytes() <= bytes_max && layout.data_bytes >= PAGE && layout.buckets >= 1);
            assert!(bytes_max < 1 << 20 || layout.data_bytes > bytes_max / 16 * 15 || bytes_max == u64::MAX);
        }
    }

    #[test]
    fn what_is_there_is_kept_only_when_it_is_just_this() {
        let folder = tempfile::tempdir().unwrap();
        let ring = folder.path().join("ring");
        let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&ring).unwrap());
        open(folder.path(), 1 << 20).unwrap();
        let first = inode();
        let (old, layout) = open(folder.path(), 1 << 20).unwrap();
        assert_eq!(inode(), first);
        open(folder.path(), 2 << 20).unwrap();
        assert_ne!(inode(), first, "another size");
        old.write_all_at(b"goes on", layout.data_at()).unwrap();
        let second = inode();
        std::fs::write(folder.path().join("ring.new"), b"left by a killed process").unwrap();
        let file = OpenOptions::new().write(true).open(&ring).unwrap();
        file.write_all_at(b"x", 20).unwrap();
        open(folder.path(), 2 << 20).unwrap();
        assert_ne!(inode(), second, "a damaged header");
        let third = inode();
        OpenOptions::new().write(true).open(&ring).unwrap().set_len(5000).unwrap();
        open(folder.path(), 2 << 20).unwrap();
        assert_ne!(inode(), third, "cut short");
        std::fs::remove_file(&ring).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &ring).unwrap();
        assert!(open(folder.path(), 2 << 20).is_err(), "a link is not followed");
    }
}
