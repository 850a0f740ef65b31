//! What is wrong with an object of which everything was seen, and what Cinder makes of it.
//!
//! Pure. Where digests and md5 disagree, the one that fits is believed: a right md5 says that a digest was hit, right digests say
//! that the md5 was.

use std::ops::Range;

use super::findings::{Cinder, Kind};
use super::object::{End, Pass, push};
use crate::backup::DataObject;
use crate::codec::{Codec, Frames};
use crate::error::ErrorKind;
use crate::types::{Md5, count};

/// What is wrong with an object.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) message: String,
    pub(super) cinder: Cinder,
    pub(super) reason: &'static str,
    /// Ranges of the volume, sorted, that a look at the whole image must judge.
    pub(super) bad: Vec<Range<u64>>,
}
/// What an object has beside its plain bytes.
#[derive(Default)]
pub(super) struct Rest {
    /// Stored bytes behind the end of its stream.
    pub(super) trailing: u64,
    /// Of zstd.
    pub(super) frames: Option<Frames>,
}

/// Most plain bytes of a frame that does not tell its length, which Cinder's decompressor (python-zstd) gives.
const UNSIZED_BYTES_MAX: u64 = 131_072;

/// What Cinder's decompressor, which takes a stream for one frame, makes of others.
fn judge_frames(frames: &Frames, len_bytes: u64) -> Option<Fault> {
    let Frames { count, sized, each_fits_before_the_rest } = *frames;
    let (message, cinder, reason) = match (count, sized) {
        (0, _) | (1, 1) => return None,
        (1, _) if len_bytes <= UNSIZED_BYTES_MAX => return None,
        (1, _) => (
            "its frame does not tell its length, which Cinder's always do".to_owned(),
            Cinder::No,
            "its decompressor gives at most 128 KiB of a frame without a length",
        ),
        (_, 0) if len_bytes <= UNSIZED_BYTES_MAX => (
            format!("{count} frames without a length, where Cinder writes one with"),
            Cinder::Wrongly,
            "its decompressor gives the first frame, and ignores the others",
        ),
        (_, 0) => (
            format!("{count} frames without a length, where Cinder writes one with"),
            Cinder::Unknown,
            "its decompressor gives the first frame if that has at most 128 KiB, and refuses it else",
        ),
        (_, _) if sized < count => (
            format!("{count} frames, {sized} with a length, where Cinder writes one"),
            Cinder::Unknown,
            "what its decompressor does with such is not known",
        ),
        (_, _) if each_fits_before_the_rest => (
            format!("{count} frames, where Cinder writes one; python-zstd before 1.5.5 refuses them"),
            Cinder::Yes,
            "its decompressor takes frames smaller than what follows them",
        ),
        _ => (
            format!("{count} frames, where Cinder writes one"),
            Cinder::Unknown,
            "its decompressor refuses some frames that are larger than what follows them",
        ),
    };
    Some(Fault { kind: Kind::ForeignFrames, message, cinder, reason, bad: Vec::new() })
}

impl Pass {
    pub(super) fn judge(&mut self, object: &DataObject, end: End, actual: Md5, rest: &Rest) -> Option<Fault> {
        let whole = object.offset..object.offset + object.len_bytes;
        let has_md5 = object.md5 == Some(actual);
        let fault = |kind, message, cinder, reason, bad| Some(Fault { kind, message, cinder, reason, bad });
        let block_bytes = self.layer.digests.as_ref().map_or(1, |table| table.block_bytes().max(1));
        let behind = |plain: u64| {
            let at = (object.offset + plain).min(whole.end);
            // A block of which a part is missing is missing.
            let start = if at < whole.end { (at / block_bytes * block_bytes).max(whole.start) } else { at };
            start..whole.end
        };
        match end {
            End::Failed(plain, error) => {
                let bad = self.bad_with(behind(plain));
                let (kind, cinder, reason) = match error.kind() {
                    ErrorKind::LimitExceeded => {
                        (Kind::ObjectBeyondLimits, Cinder::Unknown, "Cinder has other limits")
                    }
                    _ => (Kind::ObjectDamaged, Cinder::No, "its decompressor refuses the stream"),
                };
                fault(kind, error.to_string(), cinder, reason, bad)
            }
            End::At(plain) if plain < object.len_bytes => {
                let message = format!("its plain bytes end at {plain}, expected {}", object.len_bytes);
                let (cinder, reason) = unnoticed(has_md5);
                fault(Kind::ObjectTooShort, message, cinder, reason, self.bad_with(behind(plain)))
            }
            End::At(plain) if plain > object.len_bytes => {
                let message = format!("it has {plain} plain bytes, expected {}", object.len_bytes);
                let (cinder, reason) = match unnoticed(has_md5) {
                    (Cinder::Wrongly, _) if self.is_behind_the_volume(behind_end(object, plain)) => {
                        (Cinder::No, "it writes behind the end of the volume, which a device refuses")
                    }
                    (Cinder::Wrongly, _)
                        if self.differ.is_empty() && self.is_covered(behind_end(object, plain)) =>
                    {
                        (Cinder::Yes, "the objects behind it overwrite what is too much")
                    }
                    answer => answer,
                };
                let bad = self.bad_without_digests(&whole);
                fault(Kind::ObjectTooLong, message, cinder, reason, bad)
            }
            End::Beyond => {
                let message =
                    format!("it goes on behind the {} plain bytes that it should have", object.len_bytes);
                let bad = self.bad_without_digests(&whole);
                fault(Kind::ObjectTooLong, message, Cinder::Wrongly, WRITES_ALL, bad)
            }
            End::At(_) => self.judge_bytes(object, actual, rest),
        }
    }

    /// Whether later objects of the backup are written over a range.
    fn is_covered(&self, range: Range<u64>) -> bool {
        let later = self.layer.backup.objects.iter().skip(self.index as usize + 1);
        let mut over: Vec<_> = later.map(|o| o.offset..o.offset + o.len_bytes).collect();
        over.sort_by_key(|over| over.start);
        let reach =
            over.iter().fold(range.start, |at, over| if over.start <= at { at.max(over.end) } else { at });
        reach >= range.end
    }

    fn is_behind_the_volume(&self, range: Range<u64>) -> bool {
        self.layer.len_bytes.is_some_and(|len| range.end > len)
    }

    /// An object of the right length.
    fn judge_bytes(&mut self, object: &DataObject, actual: Md5, rest: &Rest) -> Option<Fault> {
        let fault = |kind, message, cinder, reason, bad| Some(Fault { kind, message, cinder, reason, bad });
        let Some(expected) = object.md5 else {
            return match (self.differ.is_empty(), self.unproven.is_empty()) {
                (true, true) => self.judge_rest(object, rest),
                (true, false) => {
                    let message = "the metadata has no md5 of it, and not all of it has digests".to_owned();
                    let bad = std::mem::take(&mut self.unproven);
                    fault(Kind::ObjectUnproven, message, Cinder::Unknown, "nothing proves its bytes", bad)
                }
                (false, _) => {
                    let message = "its bytes do not have their digests".to_owned();
                    fault(Kind::ObjectWrong, message, Cinder::Wrongly, WRITES_ALL, self.bad_with(0..0))
                }
            };
        };
        let is_md5_right = actual == expected;
        let message = || format!("md5 is {actual}, expected {expected}");
        match (is_md5_right, self.differ.is_empty(), self.unproven.is_empty()) {
            (true, true, _) => self.judge_rest(object, rest),
            (true, false, _) => {
                let what = if self.all_near { "was hit" } else { "is another one" };
                let message = format!("its md5 is right, but the digest of a block {what}");
                let reason = "it reads no digests, and the md5 is right";
                fault(Kind::DigestWrong, message, Cinder::Yes, reason, self.bad_with(0..0))
            }
            (false, true, true) => {
                let reason = "it compares no md5, and the digests prove the bytes";
                fault(Kind::Md5Wrong, message(), Cinder::Yes, reason, Vec::new())
            }
            (false, true, false) => {
                let bad = std::mem::take(&mut self.unproven);
                fault(Kind::ObjectWrong, message(), Cinder::Wrongly, WRITES_ALL, bad)
            }
            (false, false, _) => {
                fault(Kind::ObjectWrong, message(), Cinder::Wrongly, WRITES_ALL, self.bad_with(0..0))
            }
        }
    }

    /// An object of the right bytes.
    fn judge_rest(&self, object: &DataObject, rest: &Rest) -> Option<Fault> {
        let trailing = rest.trailing;
        if let Some(mut fault) =
            rest.frames.as_ref().and_then(|frames| judge_frames(frames, object.len_bytes))
        {
            // Then it shows in whatever is built on it as well, as far as it shows there at all.
            if fault.cinder == Cinder::Wrongly {
                fault.bad.push(object.offset..object.offset + object.len_bytes);
            }
            return Some(fault);
        }
        if trailing == 0 || object.codec == Codec::None {
            return None;
        }
        let message = format!("stored behind the end of its stream: {}", count(trailing, "byte"));
        let (cinder, reason) = match object.codec {
            Codec::Zstd => (Cinder::No, "its decompressor refuses what follows the frame"),
            Codec::Zlib | Codec::Bz2 | Codec::None => (Cinder::Yes, "it ignores them"),
        };
        Some(Fault { kind: Kind::TrailingBytes, message, cinder, reason, bad: Vec::new() })
    }

    /// The blocks that differ, and `more`.
    fn bad_with(&mut self, more: Range<u64>) -> Vec<Range<u64>> {
        let mut bad = std::mem::take(&mut self.differ);
        if !more.is_empty() {
            push(&mut bad, more);
        }
        bad
    }

    /// The blocks that differ; without digests all of it, since an md5 over more bytes proves nothing for a reader.
    fn bad_without_digests(&mut self, whole: &Range<u64>) -> Vec<Range<u64>> {
        match &self.layer.digests {
            None => vec![whole.clone()],
            // Its last block, if the object ends within it: what is wrong there is the length.
            Some(table) => {
                let start = whole.end / table.block_bytes().max(1) * table.block_bytes();
                self.bad_with(start.max(whole.start)..whole.end)
            }
        }
    }
}

/// The bytes of the volume that an object's plain bytes reach into behind its end.
fn behind_end(object: &DataObject, plain: u64) -> Range<u64> {
    object.offset + object.len_bytes..object.offset + plain
}

const WRITES_ALL: &str = "it writes what it decodes, and compares nothing";

/// Cinder's answer to a length that is not the one told, which it does not look at.
fn unnoticed(has_md5: bool) -> (Cinder, &'static str) {
    match has_md5 {
        true => (Cinder::Yes, "it ignores the length, and the md5 is right"),
        false => (Cinder::Wrongly, WRITES_ALL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_with_its_length_is_what_cinder_reads() {
        let judged = |count, sized, each_fits_before_the_rest, len| {
            let frames = Frames { count, sized, each_fits_before_the_rest };
            judge_frames(&frames, len).map(|fault| fault.cinder)
        };
        assert_eq!(judged(1, 1, true, 1 << 30), None);
        assert_eq!(judged(1, 0, true, UNSIZED_BYTES_MAX), None);
        assert_eq!(judged(1, 0, true, UNSIZED_BYTES_MAX + 1), Some(Cinder::No));
        assert_eq!(judged(2, 0, true, 9), Some(Cinder::Wrongly));
        assert_eq!(judged(2, 0, true, UNSIZED_BYTES_MAX + 1), Some(Cinder::Unknown));
        assert_eq!(judged(2, 1, true, 9), Some(Cinder::Unknown));
        assert_eq!(judged(3, 3, true, 9), Some(Cinder::Yes));
        assert_eq!(judged(3, 3, false, 9), Some(Cinder::Unknown));
    }
}
