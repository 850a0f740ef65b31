//! What is known of an object before an image is looked at, and what a look shows.

use std::collections::BTreeMap;
use std::ops::Range;

use super::findings::{Cinder, Kind, Ranges};
use crate::chain::extent_map::ObjectIndex;
use crate::error::Error;

/// What is known of an object of the chain.
pub(super) enum Known<'a> {
    /// It was not checked in this run.
    Nothing,
    /// It was; these ranges of the volume are to be read, because it is damaged, or because no digest speaks of them.
    Checked { bad: &'a [Range<u64>], unproven: &'a [Range<u64>], is_faulty: bool },
}

/// Why a range had to be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Cause {
    /// An object is damaged there.
    Object(ObjectIndex),
    /// No object covers it, and it is not zeros.
    Gap,
    /// Its digest is no digest.
    DigestDamaged,
    /// Its digest differs by a few bits from that of the backup which stored it.
    DigestHit,
    /// Its digest is another one than that of the backup which stored it.
    Ancestor,
    /// Nothing proves it but reading it.
    Unproven,
}

impl Cause {
    /// What is wrong where a range is lost for this cause, unless the object's own finding tells it.
    pub(super) fn kind(self) -> Option<Kind> {
        match self {
            Self::Object(_) => None,
            Self::Gap => Some(Kind::NoData),
            Self::DigestDamaged => Some(Kind::DigestDamaged),
            Self::DigestHit => Some(Kind::DigestWrong),
            Self::Ancestor | Self::Unproven => Some(Kind::ChainInconsistent),
        }
    }

    /// Whether Cinder would write wrong bytes where a reader gets none, or others.
    pub(super) fn cinder(self) -> Cinder {
        match self {
            // Judged with the object.
            Self::Object(_) | Self::DigestDamaged | Self::DigestHit => Cinder::Yes,
            Self::Gap | Self::Ancestor | Self::Unproven => Cinder::Wrongly,
        }
    }
}

/// What a reader would see.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// What nobody can have.
    pub(super) lost: Ranges,
    /// The same by cause, with the first reason.
    pub(super) lost_by_cause: BTreeMap<Cause, (Ranges, Option<Error>)>,
    /// What differs from the chain's own bytes, and is had from another backup or is known to be zeros.
    pub(super) saved_by_cause: BTreeMap<Cause, Ranges>,
    /// Bytes of the above that came from other backups.
    pub(super) healed_bytes: u64,
    /// Bytes of the image of which nothing is known: not checked, or not given by the store.
    pub(super) unread_bytes: u64,
    /// Damaged objects of which something shows in this image.
    pub(super) visible: Vec<ObjectIndex>,
    /// Why something could not be read for the store's sake.
    pub(super) failure: Option<Error>,
    /// Whether the chain's backups have blocks of different sizes.
    pub(super) block_size_changed: bool,
}
