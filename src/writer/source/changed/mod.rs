//! What changed since the parent, as somebody else tells it: `--changed-from FILE`.
//!
//! Problem: a hypervisor, a Ceph cluster or a thin pool knows what was written since the last backup, and a terabyte need not
//! be read to find a gigabyte; but a range that is missing from the list would be missing from the backup, and nobody would notice.
//! Idea: the parsers take exactly what these programs print, and anything else is an error. A list that is read wrongly or only in part
//! never comes out as "nothing changed".
//!
//! | printed by | looks like | changed is |
//! | --- | --- | --- |
//! | `nbdinfo --json --map=qemu:dirty-bitmap:NAME URI` | `[{"offset": 0, "length": 65536, "type": 1, "description": "dirty"}, …]` | `dirty` |
//! | `qemu-img map --output=json --image-opts driver=nbd,…,x-dirty-bitmap=qemu:dirty-bitmap:NAME` | `[{"start": 0, "length": 65536, "zero": false, "data": false, …}, …]` | neither zero nor data (sic) |
//! | scripts over either | `[{"start": 0, "length": 65536, "dirty": true}, …]` | `dirty` |
//! | `rbd diff --format json --from-snap OLD POOL/IMAGE@NEW` | `[{"offset": 0, "length": 4096, "exists": "true"}, …]` | every entry: one that does not exist was discarded |
//! | `thin_delta --snap1 OLD --snap2 NEW DEVICE` | `<superblock data_block_size="128"><diff><different begin="2" length="2"/>…` | all but `same`, in data blocks |
//!
//! What QEMU and nbdinfo print maps a whole image, so it must reach from the volume's first byte to its last without a gap: a torn
//! list is noticed. `qemu-img map` prints the same words for an image's allocation, where they mean the opposite; a list
//! with a `zero` in it, or without a single dirty range, cannot be told from one and is refused. `[]` is what `rbd diff` prints when nothing changed.
//!
//! Whether the list begins where the parent was taken, only its maker knows; `--paranoid` reads all the same and compares.
//!
//! Invariants: the ranges are sorted, disjoint, not adjacent, not empty and within the volume. Memory is bounded: of too many
//! ranges, neighbours become one, so that more is read, never less.

mod json;
mod thin;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result, ResultExt};

/// Longest list accepted, in bytes. A petabyte in objects of 4 MiB, each listed by `rbd diff`, takes 15 GiB; what is longer
/// than this is no quicker than reading the volume.
const LIST_BYTES_MAX: u64 = 4 << 30;

/// Most ranges held, 16 bytes each. Twice as many may be waiting to be merged.
const RANGES_MAX: usize = 1 << 20;

/// What ranges are rounded to when there are too many, in bytes; doubled until they fit.
const COARSE_BYTES_MIN: u64 = 1 << 20;

/// How far a list may reach beyond the volume, in bytes: images are rounded up to sectors and clusters.
const ROUNDED_BYTES: u64 = 64 << 10;

/// Which parts of a volume changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    ranges: Vec<Range<u64>>,
}

impl Changed {
    /// Reads a list from a file. `len_bytes` is the volume's length. Errors name the file.
    pub fn read(path: &Path, len_bytes: u64) -> Result<Self> {
        let context = || format!("list of changed ranges {path:?}");
        let file = File::open(path)
            .map_err(|e| Error::caused_by(ErrorKind::Usage, "cannot open it", e))
            .context(context)?;
        Self::parse(file, len_bytes).context(context)
    }

    /// Reads a list, whatever of the known ones it is. [`ErrorKind::Usage`] when it is none, is torn, or is of a volume of another length
    /// than `len_bytes`; [`ErrorKind::LimitExceeded`] when it is too long.
    pub fn parse(list: impl Read, len_bytes: u64) -> Result<Self> {
        Self::parse_bounded(list, len_bytes, RANGES_MAX)
    }

    fn parse_bounded(list: impl Read, len_bytes: u64, ranges_max: usize) -> Result<Self> {
        let mut list = BufReader::new(Bounded { inner: list, bytes_left: LIST_BYTES_MAX });
        let mut ranges = Ranges::new(len_bytes, ranges_max);
        loop {
            let buffer = list.fill_buf().map_err(read_error)?;
            let Some(&first) = buffer.first() else { return Err(refuse("it is empty")) };
            match first {
                b' ' | b'\t' | b'\r' | b'\n' => list.consume(1),
                b'[' => break json::parse(list, &mut ranges)?,
                b'<' => break thin::parse(list, &mut ranges)?,
                _ => {
                    let known = "the JSON of nbdinfo, qemu-img or rbd diff, or the XML of thin_delta";
                    return Err(refuse(format!("it begins with {:?}; expected {known}", char::from(first))));
                }
            }
        }
        Ok(ranges.finish())
    }

    /// The changed ranges in bytes: sorted, disjoint, not adjacent, not empty, within the volume.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// The first changed range at or behind `offset`, cut off before it.
    pub fn next(&self, offset: u64) -> Option<Range<u64>> {
        let range = self.ranges.get(self.ranges.partition_point(|range| range.end <= offset))?;
        Some(range.start.max(offset)..range.end)
    }

    /// Whether any byte of `range` changed.
    pub fn touches(&self, range: Range<u64>) -> bool {
        !range.is_empty() && self.next(range.start).is_some_and(|next| next.start < range.end)
    }

    /// How many bytes changed at most.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

fn refuse(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, why)
}

/// What a failed read means: a bound keeps its kind.
fn read_error(error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(other) => Error::caused_by(ErrorKind::Usage, "cannot read it", other),
    }
}

/// Ends endless lists.
struct Bounded<R> {
    inner: R,
    bytes_left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.bytes_left = self.bytes_left.checked_sub(n as u64).ok_or_else(|| {
            let message = format!("it is longer than {LIST_BYTES_MAX} bytes");
            std::io::Error::other(Error::new(ErrorKind::LimitExceeded, message))
        })?;
        Ok(n)
    }
}

/// Collects ranges in any order.
struct Ranges {
    len_bytes: u64,
    ranges: Vec<Range<u64>>,
    ranges_max: usize,
    coarse_bytes: u64,
}

impl Ranges {
    fn new(len_bytes: u64, ranges_max: usize) -> Self {
        Self { len_bytes, ranges: Vec::new(), ranges_max, coarse_bytes: 1 }
    }

    /// Adds a range that the list gives; it may overlap others.
    fn add(&mut self, range: Range<u64>) -> Result<()> {
        let len_bytes = self.len_bytes;
        if range.start >= len_bytes {
            if range.start - len_bytes < ROUNDED_BYTES {
                return Ok(());
            }
            let Range { start, end } = range;
            return Err(refuse(format!("it has bytes {start} to {end} of a volume of {len_bytes} bytes")));
        }
        let range = self.coarse(range);
        match self.ranges.last_mut() {
            // Lists are sorted, mostly.
            Some(last) if last.start <= range.start && range.start <= last.end => {
                last.end = last.end.max(range.end);
            }
            _ => self.ranges.push(range),
        }
        if self.ranges.len() >= 2 * self.ranges_max {
            self.merge();
            while self.ranges.len() > self.ranges_max {
                self.coarse_bytes = (self.coarse_bytes * 2).max(COARSE_BYTES_MIN);
                let mut ranges = std::mem::take(&mut self.ranges);
                for range in &mut ranges {
                    *range = self.coarse(range.clone());
                }
                self.ranges = ranges;
                self.merge();
            }
        }
        Ok(())
    }

    fn coarse(&self, range: Range<u64>) -> Range<u64> {
        let start = range.start - range.start % self.coarse_bytes;
        let end = range.end.checked_next_multiple_of(self.coarse_bytes).unwrap_or(u64::MAX);
        start..end.min(self.len_bytes)
    }

    fn merge(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.ranges.dedup_by(|next, kept| {
            let joins = next.start <= kept.end;
            if joins {
                kept.end = kept.end.max(next.end);
            }
            joins
        });
    }

    fn finish(mut self) -> Changed {
        self.merge();
        self.ranges.shrink_to_fit();
        Changed { ranges: self.ranges }
    }
}

/// `start .. start + length`, which must not be empty or too long for its type.
fn range_of(start: u64, length: u64) -> Result<Range<u64>> {
    match start.checked_add(length) {
        Some(end) if length > 0 => Ok(start..end),
        _ => Err(refuse(format!("it has an impossible range: {length} bytes at {start}"))),
    }
}

#[cfg(test)]
mod tests;
