//! Is this device, or this file, the volume as it was backed up?
//!
//! Problem: Cinder compares nothing when it restores, and its releases 22 to 28 restore wrongly to a new volume: where an incremental
//! backup turned data into zeros, the older backup's data stays. Nobody notices until a database does. Idea: a backup lists
//! the digest of every block of the volume, so a device is compared with it at the speed at which it can be read, without opening an
//! object. What differs is then looked for among the digests of the backups beneath: that tells the defect from any other damage.
//!
//! - [`compare`]: one part of the target against the digests.
//! - [`ranges`]: what was found, bounded.
//! - [`repair`]: the right bytes in place of the wrong ones.
//! - [`risk`]: which backups that defect would hit, from their digests alone.
//!
//! Invariants: an audit writes nothing and opens no object; what was not compared is told as a finding, never as equal; memory
//! depends on neither length nor number of findings.

mod compare;
mod ranges;
mod repair;
pub mod risk;

pub use self::ranges::Ranges;
pub use self::repair::{Repair, Repaired};

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use self::compare::{Comparer, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Digests, Image};
use crate::in_order::in_order;
use crate::types::BackupId;
use crate::writer::source::Source;

/// Read at once by one thread, in bytes, where a block is not longer: large enough for a disk, small enough for the memory of 24 threads.
const PART_BYTES: u64 = 4 << 20;

/// Most blocks in a part: hostile blocks are as small as one byte.
const PART_BLOCKS_MAX: u64 = 4096;

/// Most findings that a report names one by one; beyond, they are only counted.
pub const FINDINGS_MAX: usize = 100_000;

/// Most backups beneath that wrong blocks are looked for in. Each costs a read of its digests where something is wrong.
const OLDER_MAX: usize = 64;

/// Opens the image of a backup of the chain, if it can be had.
pub type Older<'a> = dyn Fn(&BackupId) -> Option<Arc<Image>> + Sync + 'a;

/// What is wrong with a range of the target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Wrong {
    /// The backup has zeros here that an incremental backup stored, and the target has the data of a backup beneath: what Cinder 22
    /// to 28 leave when they restore to a new volume.
    StaleData,
    /// It has the data of a backup beneath, in another way.
    OlderData,
    /// It has zeros in place of data.
    Zeros,
    /// It has bytes that no backup of the chain has here.
    Other,
    /// It cannot be read.
    Unreadable,
    /// It ends before.
    Missing,
    /// Nobody knows: the digest of the backup is damaged.
    Unknown,
}

impl Wrong {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::StaleData,
        Self::OlderData,
        Self::Zeros,
        Self::Other,
        Self::Unreadable,
        Self::Missing,
        Self::Unknown,
    ];

    /// The word for people and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::StaleData => "stale_data",
            Self::OlderData => "older_data",
            Self::Zeros => "zeros",
            Self::Other => "other",
            Self::Unreadable => "unreadable",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

/// A range of the volume that is not as it was backed up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Which bytes, whole blocks.
    pub image: Range<u64>,
    /// How they differ.
    pub wrong: Wrong,
    /// The backup whose bytes they are instead.
    pub of: Option<BackupId>,
}

/// What an audit found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The volume's length as of the backup.
    pub image_bytes: u64,
    /// The target's length.
    pub target_bytes: u64,
    /// Findings in order, the first [`FINDINGS_MAX`] of them.
    pub findings: Vec<Finding>,
    /// How many there are in all.
    pub finding_count: u64,
    /// Bytes of each kind, in the order of [`Wrong::ALL`].
    pub wrong_bytes: [u64; 7],
    /// All that is wrong; where there are very many ranges, with some of what lies between.
    pub wrong: Ranges,
}

impl Report {
    /// Whether the target holds the volume, byte for byte. It may go on behind it.
    pub fn is_equal(&self) -> bool {
        self.finding_count == 0
    }

    /// Bytes of one kind.
    pub fn bytes_of(&self, wrong: Wrong) -> u64 {
        self.wrong_bytes[wrong as usize]
    }

    /// Bytes that are not as they were backed up.
    pub fn all_wrong_bytes(&self) -> u64 {
        self.wrong_bytes.iter().sum()
    }

    fn note(&mut self, finding: Finding) {
        self.wrong_bytes[finding.wrong as usize] += finding.image.end - finding.image.start;
        self.wrong.push(finding.image.clone());
        let continues = |last: &Finding| {
            last.image.end == finding.image.start && (last.wrong, &last.of) == (finding.wrong, &finding.of)
        };
        match self.findings.last_mut() {
            // The last one that is named is the last one of all, unless there are more than are named.
            Some(last) if self.finding_count <= FINDINGS_MAX as u64 && continues(last) => {
                last.image.end = finding.image.end;
            }
            _ => {
                self.finding_count += 1;
                if self.findings.len() < FINDINGS_MAX {
                    self.findings.push(finding);
                }
            }
        }
    }
}

/// Compares `target` with `image`, and tells `observer` how many bytes are done.
///
/// [`ErrorKind::Unsupported`] when the backup has no digests. Ends with [`ErrorKind::Interrupted`] once `cancel` is true. A target
/// that cannot be read somewhere is a finding, not an error.
pub fn audit(
    image: &Image,
    target: &dyn Source,
    older: &Older<'_>,
    threads: usize,
    cancel: &AtomicBool,
    observer: &dyn Fn(u64),
) -> Result<Report> {
    let digests = digests_of(image)?;
    let mut report =
        Report { image_bytes: image.len_bytes(), target_bytes: target.len_bytes(), ..Report::default() };
    let blocks = part_blocks(digests.block_bytes());
    let comparer = Comparer::new(image, digests, target, older);
    in_order(
        digests.count().div_ceil(blocks),
        threads,
        cancel,
        Part::default,
        |part, n| comparer.compare(part, n * blocks..digests.count().min((n + 1) * blocks)),
        |n, findings| {
            findings.into_iter().for_each(|finding| report.note(finding));
            observer(digests.range_of(0..digests.count().min((n + 1) * blocks)).end);
            Ok(())
        },
    )?;
    Ok(report)
}

fn digests_of(image: &Image) -> Result<Digests<'_>> {
    image.digests().ok_or_else(|| {
        let message = format!("backup {} has no usable digests to compare a target with", image.id());
        Error::new(ErrorKind::Unsupported, message)
    })
}

/// How many blocks are compared at once.
fn part_blocks(block_bytes: u64) -> u64 {
    (PART_BYTES / block_bytes).clamp(1, PART_BLOCKS_MAX)
}
