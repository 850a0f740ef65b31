//! What a verification finds, in words that programs and people share.
//!
//! Problem: "damaged" alone helps nobody at night. Whoever reads the report asks what is hit, what it costs, and whether Cinder
//! could restore the backup all the same. Idea: one [`Finding`] for each thing that is wrong, with the backups and ranges it
//! touches and Cinder's answer; and one [`BackupReport`] for each backup that was asked for, which sums them up.
//!
//! Genuine Cinder verifies nothing when it restores: it notices only a list of files that is not the list of objects, and streams
//! that their own decompressor refuses. What else is wrong it writes to the volume. That is what [`Cinder`] says.

use std::ops::Range;

use crate::types::BackupId;

/// Most ranges that are kept of one finding; the bytes of all are counted.
pub const RANGES_MAX: usize = 256;

/// What is wrong. The names are stable: programs may rely on them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// The backup cannot be used: its metadata, its chain, or its digests contradict each other.
    BackupUnusable,
    /// What the backup builds on is not in the one container that was looked at.
    ParentElsewhere,
    /// An object that the metadata lists is not there.
    ObjectMissing,
    /// An object's stream cannot be decoded to its end.
    ObjectDamaged,
    /// An object decodes to other bytes than it should.
    ObjectWrong,
    /// An object has fewer plain bytes than the metadata tells.
    ObjectTooShort,
    /// An object has more plain bytes than the metadata tells.
    ObjectTooLong,
    /// An object that asks for more than this program gives: a window, a number of empty pieces.
    ObjectBeyondLimits,
    /// Neither a digest nor an md5 proves an object.
    ObjectUnproven,
    /// The store did not give an object; nothing is known of it.
    ObjectUnreadable,
    /// Bytes behind the end of an object's stream, which nobody reads.
    TrailingBytes,
    /// A zstd object has frames such as Cinder does not write and may not read.
    ForeignFrames,
    /// An object's md5 is not the one in the metadata, and the digests prove its bytes.
    Md5Wrong,
    /// A digest is not that of its block, and the md5 proves the bytes.
    DigestWrong,
    /// A digest is no digest any more.
    DigestDamaged,
    /// The document of digests is not there.
    DigestsMissing,
    /// The document of digests cannot be read to its end.
    DigestsTorn,
    /// No object holds data for a range that is not zeros.
    NoData,
    /// The bytes of an ancestor are not those that the backup's digests tell.
    ChainInconsistent,
    /// A chain whose backups have blocks of different sizes.
    BlockSizeChanged,
    /// A file that begins with the backup's prefix and is none of its objects.
    Stray,
    /// Another document of the same backup.
    Copy,
    /// Objects without metadata, written lately: perhaps a backup in progress.
    InProgress,
    /// Objects without metadata: what an interrupted or half-deleted backup leaves.
    Orphans,
    /// A hidden folder, or the marker in an object store, of a run of this program that is writing, or was killed.
    Leftovers,
    /// A folder or file that could not be looked at.
    Unreadable,
    /// Releases 22 to 28 of Cinder restore this backup wrongly to a new volume.
    ZeroDefect,
}

impl Kind {
    /// The word for documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::BackupUnusable => "backup_unusable",
            Self::ParentElsewhere => "parent_elsewhere",
            Self::ObjectMissing => "object_missing",
            Self::ObjectDamaged => "object_damaged",
            Self::ObjectWrong => "object_wrong",
            Self::ObjectTooShort => "object_too_short",
            Self::ObjectTooLong => "object_too_long",
            Self::ObjectBeyondLimits => "object_beyond_limits",
            Self::ObjectUnproven => "object_unproven",
            Self::ObjectUnreadable => "object_unreadable",
            Self::TrailingBytes => "trailing_bytes",
            Self::ForeignFrames => "foreign_frames",
            Self::Md5Wrong => "md5_wrong",
            Self::DigestWrong => "digest_wrong",
            Self::DigestDamaged => "digest_damaged",
            Self::DigestsMissing => "digests_missing",
            Self::DigestsTorn => "digests_torn",
            Self::NoData => "no_data",
            Self::ChainInconsistent => "chain_inconsistent",
            Self::BlockSizeChanged => "block_size_changed",
            Self::Stray => "stray",
            Self::Copy => "copy",
            Self::InProgress => "in_progress",
            Self::Orphans => "orphans",
            Self::Leftovers => "leftovers",
            Self::Unreadable => "unreadable",
            Self::ZeroDefect => "cinder_22_to_28",
        }
    }

    /// What to do about it, if anything.
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Self::BackupUnusable => Some(
                "backup_unusable: put the document or the parent back from a copy of the store, or fix what the message names",
            ),
            Self::ParentElsewhere => Some(
                "parent_elsewhere: verify all containers at once: STORE swift: is an account, gs:// a project, s3://?endpoint=URL a server",
            ),
            Self::ObjectMissing
            | Self::ObjectDamaged
            | Self::ObjectWrong
            | Self::ObjectTooShort
            | Self::ObjectTooLong => Some(
                "object_*: `cinderfs repair` mends what other backups of the store still hold; for the rest put the object back from a copy of \
                 the store, or save what can be read with `restore --on-damage zero`, and make a new full backup while the volume still exists",
            ),
            Self::DigestWrong | Self::DigestDamaged | Self::DigestsTorn | Self::DigestsMissing => Some(
                "digest*: the data may be whole; `cinderfs repair` makes the _sha256file anew where objects' md5 prove it; else put it back from \
                 a copy, or make the next backup a full one",
            ),
            Self::NoData | Self::ChainInconsistent => Some(
                "no_data, chain_inconsistent: an ancestor is not the one that the backup was made on; look for another copy of it",
            ),
            Self::Stray => {
                Some("stray: move files that are not Cinder's out of the backup's folder, and restore again")
            }
            Self::ForeignFrames => Some(
                "foreign_frames: cinderfs reads it; for Cinder make a backup of its own of it with `cinderfs consolidate`",
            ),
            Self::Orphans => Some("orphans: remove the files if no backup is being made there"),
            Self::ObjectUnreadable | Self::Unreadable => Some(
                "unreadable: see whether the store's server, share or disk answers, and who may read there, and run it again",
            ),
            Self::ZeroDefect => Some(
                "cinder_22_to_28: restore with `cinderfs restore`, Cinder 29, or onto an existing volume; `cinderfs audit` finds what was \
                 restored wrongly",
            ),
            Self::ObjectBeyondLimits
            | Self::ObjectUnproven
            | Self::TrailingBytes
            | Self::Md5Wrong
            | Self::BlockSizeChanged
            | Self::Copy
            | Self::InProgress
            | Self::Leftovers => None,
        }
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::BackupUnusable
            | Self::ObjectMissing
            | Self::ObjectDamaged
            | Self::ObjectWrong
            | Self::ObjectTooShort
            | Self::ObjectTooLong
            | Self::ObjectBeyondLimits
            | Self::ObjectUnproven
            | Self::DigestWrong
            | Self::DigestDamaged
            | Self::DigestsTorn
            | Self::NoData
            | Self::ChainInconsistent => Severity::Damage,
            Self::ParentElsewhere
            | Self::ObjectUnreadable
            | Self::TrailingBytes
            | Self::ForeignFrames
            | Self::Md5Wrong
            | Self::DigestsMissing
            | Self::Stray
            | Self::Orphans
            | Self::Unreadable => Severity::Warning,
            Self::BlockSizeChanged | Self::Copy | Self::InProgress | Self::Leftovers | Self::ZeroDefect => {
                Severity::Note
            }
        }
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Something that was stored is wrong, torn or gone.
    Damage,
    /// Not as it should be, and no stored byte is wrong.
    Warning,
    /// Good to know.
    Note,
}

impl Severity {
    /// The word for people and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Damage => "damage",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Whether genuine Cinder, of the newest release known here (29.0.0), would restore a backup. The worse ones are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cinder {
    /// Rightly.
    Yes,
    /// Not known: something was not looked at.
    Unknown,
    /// To its end and without an error, with wrong bytes.
    Wrongly,
    /// It ends with an error.
    No,
}

impl Cinder {
    /// The word for people and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Unknown => "unknown",
            Self::Wrongly => "wrongly",
            Self::No => "no",
        }
    }
}

/// Ranges in order, of which not too many are kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    kept: Vec<Range<u64>>,
    bytes: u64,
    is_cut: bool,
}

impl Ranges {
    /// The ranges, sorted and apart from each other, the first [`RANGES_MAX`] of them.
    pub fn kept(&self) -> &[Range<u64>] {
        &self.kept
    }

    /// Bytes in all ranges, those that are not kept included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there are more than are kept.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds a range that does not begin before the last one's end.
    pub fn push(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.bytes += range.end - range.start;
        let is_full = self.kept.len() == RANGES_MAX;
        match self.kept.last_mut() {
            Some(last) if last.end == range.start && !self.is_cut => last.end = range.end,
            _ if is_full => self.is_cut = true,
            _ => self.kept.push(range),
        }
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.push(range));
        all
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// Whom it touches: the backup that it lies in first, then those that build on it and suffer from it.
    pub backups: Vec<BackupId>,
    /// The object or document, relative to the store's root, or the place where something lies.
    pub object: Option<String>,
    /// Ranges of the volume.
    pub ranges: Ranges,
    /// The story in one line.
    pub message: String,
    /// Whether Cinder would restore the backups it touches in spite of this.
    pub cinder: Cinder,
    /// Why.
    pub reason: &'static str,
}

impl Finding {
    /// A finding of which no more is known yet.
    pub fn new(kind: Kind, message: impl Into<String>, cinder: Cinder, reason: &'static str) -> Self {
        let (backups, object, ranges) = Default::default();
        Self { kind, backups, object, ranges, message: message.into(), cinder, reason }
    }

    /// In this object.
    #[must_use]
    pub fn object(self, name: impl Into<String>) -> Self {
        Self { object: Some(name.into()), ..self }
    }

    /// Touches this backup as well.
    #[must_use]
    pub fn of(mut self, backup: &BackupId) -> Self {
        self.touch(backup);
        self
    }

    /// Touches this backup as well.
    pub fn touch(&mut self, backup: &BackupId) {
        if !self.backups.contains(backup) {
            self.backups.push(backup.clone());
        }
    }
}

/// What is to be said of a backup in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All of it was checked now, and all of it is right.
    Good,
    /// Something of it, or of what it builds on, is damaged.
    Damaged,
    /// It has no image.
    Unusable,
    /// What was checked is right; the rest was not asked for, or could not be read.
    Unchecked,
}

impl Verdict {
    /// The word for people and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Damaged => "damaged",
            Self::Unusable => "unusable",
            Self::Unchecked => "unchecked",
        }
    }
}

/// What became of one backup that was to be verified.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// Which one.
    pub id: BackupId,
    /// In one word.
    pub verdict: Verdict,
    /// Whether Cinder would restore it.
    pub cinder: Cinder,
    /// Why, where it is not yes.
    pub reason: &'static str,
    /// Plain bytes of the objects of its chain.
    pub total_bytes: u64,
    /// How many of them were checked now.
    pub checked_bytes: u64,
    /// Ranges of the image that no reader can have, as far as they were looked for.
    pub lost: Ranges,
    /// Bytes that are damaged in its chain, and that a reader gets out of another backup.
    pub healed_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "lists of ranges, some of them short")]
    fn ranges_that_meet_are_one_and_all_are_counted() {
        let mut ranges: Ranges = [0..5, 5..9, 20..20].into_iter().collect();
        assert_eq!(ranges.kept(), [0..9]);
        for n in 1..1000 {
            ranges.push(n * 10..n * 10 + 1);
        }
        assert_eq!((ranges.kept().len(), ranges.bytes(), ranges.is_cut()), (RANGES_MAX, 9 + 999, true));
    }

    #[test]
    fn worse_answers_are_greater() {
        assert!(
            Cinder::Yes < Cinder::Unknown
                && Cinder::Unknown < Cinder::Wrongly
                && Cinder::Wrongly < Cinder::No
        );
    }
}
