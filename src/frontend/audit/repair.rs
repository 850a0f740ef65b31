//! The right bytes in place of the wrong ones.
//!
//! Problem: a volume of terabytes differs in some megabytes, and is to be right again without being restored anew. Idea: what an audit
//! found is compared again, block by block, and only blocks that still differ are written, verified as all that leaves an image.
//!
//! Invariants: no byte behind the volume's end is written, and no block that is right; what was written is durable, and has been read
//! again, past the page cache where the system allows, before it is called repaired. Whatever cannot be repaired is told.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Advice;

use super::{Ranges, digests_of, part_blocks};
use crate::block::{hash_of, is_zeros};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Digests, Image, Part};
use crate::types::{BlockHash, BlockIndex};

/// A target that is opened to be repaired.
pub struct Repair {
    file: File,
    path: PathBuf,
}

/// What a repair did.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// Bytes that were written.
    pub written_bytes: u64,
    /// What is not right even so: the backup is damaged there, or the target does not keep what is written.
    pub left: Ranges,
    /// Why, of the first such block.
    pub reason: Option<Error>,
}

impl Repair {
    /// Opens a file or a device for writing. [`ErrorKind::Target`] when it cannot be, or is a device shorter than `len_bytes`. Whether
    /// somebody uses it is the caller's question.
    pub fn open(path: &Path, len_bytes: u64) -> Result<Self> {
        let failed = |error| failed("open for repair", path, error);
        // Without waiting: it may have become a pipe by now.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            let end = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(failed)?;
            if end < len_bytes {
                let message = format!("device {path:?} has {end} bytes, the image {len_bytes}");
                return Err(Error::new(ErrorKind::Target, message));
            }
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Makes `ranges` of the target hold what `image` does, and tells `observer` how many of their bytes are done. What was written
    /// stays when it fails or `cancel` becomes true.
    pub fn run(
        &self,
        image: &Image,
        ranges: &Ranges,
        cancel: &AtomicBool,
        observer: &dyn Fn(u64),
    ) -> Result<Repaired> {
        let digests = digests_of(image)?;
        let mut repaired = Repaired::default();
        self.each_wrong(digests, ranges, cancel, observer, &mut |run| {
            image.visit(run, &mut |range, part| {
                let bytes = match part {
                    Part::Data(bytes) => bytes,
                    Part::Zeros => {
                        return self
                            .write_zeros(&range)
                            .map(|()| repaired.written_bytes += range.end - range.start);
                    }
                    Part::Lost(error) => {
                        repaired.reason.get_or_insert_with(|| error.clone());
                        return Ok(());
                    }
                };
                self.write(bytes, range.start)?;
                repaired.written_bytes += bytes.len() as u64;
                Ok(())
            })
        })?;
        self.file.sync_all().map_err(|error| failed("sync", &self.path, error))?;
        for range in ranges.iter() {
            let len = std::num::NonZeroU64::new(range.end - range.start);
            // Advice that is not taken costs nothing but trust in the page cache.
            let _ = rustix::fs::fadvise(&self.file, range.start, len, Advice::DontNeed);
        }
        self.each_wrong(digests, ranges, cancel, &|_| {}, &mut |run| {
            repaired.left.push(run);
            Ok(())
        })?;
        if !repaired.left.is_empty() && repaired.reason.is_none() {
            let message = format!("{:?} does not give back what was written to it", self.path);
            repaired.reason = Some(Error::new(ErrorKind::Target, message));
        }
        Ok(repaired)
    }

    /// Gives each run of blocks in `ranges` that differ to `on_run`.
    fn each_wrong(
        &self,
        digests: Digests<'_>,
        ranges: &Ranges,
        cancel: &AtomicBool,
        observer: &dyn Fn(u64),
        on_run: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let step = part_blocks(digests.block_bytes());
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        let mut done = 0;
        for range in ranges.iter() {
            let all = digests.blocks_of(range);
            for start in all.clone().step_by(step as usize) {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
                }
                let blocks = start..all.end.min(start + step);
                digests.read_into(blocks.clone(), &mut expected)?;
                let looked_at = digests.range_of(blocks.clone());
                let mut run: Option<Range<u64>> = None;
                for (block, expected) in blocks.zip(&expected) {
                    let place = digests.range_of(block..block + 1);
                    if self.holds(digests, BlockIndex(block), expected.as_ref(), &place, &mut bytes) {
                        continue;
                    }
                    match &mut run {
                        Some(run) if run.end == place.start => run.end = place.end,
                        run => {
                            if let Some(run) = run.replace(place) {
                                on_run(run)?;
                            }
                        }
                    }
                }
                if let Some(run) = run {
                    on_run(run)?;
                }
                done += looked_at.end - looked_at.start;
                observer(done);
            }
        }
        Ok(())
    }

    /// Whether the target has the block that it must have. What cannot be read it has not.
    fn holds(
        &self,
        digests: Digests<'_>,
        block: BlockIndex,
        expected: Option<&BlockHash>,
        place: &Range<u64>,
        bytes: &mut Vec<u8>,
    ) -> bool {
        bytes.resize((place.end - place.start) as usize, 0);
        let is_read = self.file.read_exact_at(bytes, place.start).is_ok();
        match expected {
            Some(hash) if digests.is_zero(block, hash) => is_read && is_zeros(bytes),
            Some(hash) => is_read && hash_of(bytes) == *hash,
            None => false,
        }
    }

    fn write_zeros(&self, range: &Range<u64>) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut at = range.start;
        while at < range.end {
            let part = ZEROS.len().min((range.end - at) as usize);
            self.write(&ZEROS[..part], at)?;
            at += part as u64;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(|error| failed("write to", &self.path, error))
    }
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::caused_by(ErrorKind::Target, format!("cannot {what} {path:?}"), error)
}
