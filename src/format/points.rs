//! Where a reader may begin in an object, as an extra key of its entry in `_metadata`.
//!
//! ```text
//! "cinderfs_restart_points": "262144:1832x3,1790,524288:2210"
//!
//! points = item *( "," item )
//! item   = [ plain ":" ] stored [ "x" count ]       decimal, no leading zeros; count at least 2
//! ```
//!
//! Each item is `count` points (1 unless told). A point lies `plain` plain bytes and `stored` stored bytes behind the one
//! before it, the first behind the object's beginning; `plain` is that of the item before where it is not told, so the
//! first item tells it. What a decoder finds there: see
//! [`EntryPoint`](crate::writer::encode::EntryPoint). A `none` object has no points, and no key.
//!
//! Reads of the object begin at them without any index ([`crate::object`]). They are claims like everything else here: a reader that starts at
//! a wrong one gets bytes of which the digests do not fit, decodes from the object's beginning, and forgets that point.
//!
//! Invariant: reading takes memory and time for as many points as the caller allows, whatever the text says.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use crate::error::{Error, ErrorKind, Result};

/// The extra key. Cinder ignores it; it sorts before Cinder's own.
pub const RESTART_POINTS_KEY: &str = "cinderfs_restart_points";

/// A restart point as it is written down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Plain offset in the object, in bytes.
    pub plain_offset: u64,
    /// Stored offset in the object, in bytes.
    pub stored_offset: u64,
}

/// Writes the text, point by point.
#[derive(Clone, Debug, Default)]
pub struct PointsWriter {
    text: String,
    last: (u64, u64),
    /// Plain and stored bytes of the item that is not written yet, and how many points it is.
    item: (u64, u64, u64),
    /// Of the last item that was written.
    plain: u64,
}

impl PointsWriter {
    /// Adds a point. One that does not lie behind the one before it in both ways is left out.
    pub fn push(&mut self, point: Place) {
        let (plain, stored) = self.last;
        if point.plain_offset <= plain || point.stored_offset <= stored {
            return;
        }
        self.last = (point.plain_offset, point.stored_offset);
        let step = (point.plain_offset - plain, point.stored_offset - stored);
        if (self.item.0, self.item.1) == step {
            self.item.2 += 1;
        } else {
            self.write_item();
            self.item = (step.0, step.1, 1);
        }
    }

    /// The text; `None` without points.
    pub fn finish(mut self) -> Option<String> {
        self.write_item();
        (!self.text.is_empty()).then_some(self.text)
    }

    fn write_item(&mut self) {
        let (plain, stored, count) = self.item;
        if count == 0 {
            return;
        }
        if !self.text.is_empty() {
            self.text.push(',');
        }
        // Writing to a string does not fail.
        if plain != self.plain {
            _ = write!(self.text, "{plain}:");
        }
        _ = write!(self.text, "{stored}");
        if count > 1 {
            _ = write!(self.text, "x{count}");
        }
        self.plain = plain;
    }
}

/// Reads the text. [`ErrorKind::Malformed`] when it is no such text, [`ErrorKind::LimitExceeded`] when it tells more than
/// `points_max` points.
pub fn parse(text: &str, points_max: usize) -> Result<Vec<Place>> {
    let (mut points, mut is_over) = (Vec::new(), false);
    each(text, &mut |point| {
        is_over = points.len() >= points_max;
        if is_over {
            return ControlFlow::Break(());
        }
        points.push(point);
        ControlFlow::Continue(())
    })?;
    if is_over {
        let message = format!("more than {points_max} restart points in one object");
        return Err(Error::new(ErrorKind::LimitExceeded, message));
    }
    Ok(points)
}

/// Gives each point of the text to `visit`, in order, until that breaks off: a few bytes may tell more points than can be counted.
/// [`ErrorKind::Malformed`] when it is no such text, as far as it was read.
pub fn each(text: &str, visit: &mut dyn FnMut(Place) -> ControlFlow<()>) -> Result<()> {
    let malformed = || {
        let shown: String = text.chars().take(64).collect();
        Error::new(ErrorKind::Malformed, format!("{shown:?} does not tell restart points"))
    };
    let number = |digits: &str| {
        let is_plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        digits.parse::<u64>().ok().filter(|_| is_plain)
    };
    let (mut plain_step, mut plain_offset, mut stored_offset) = (None, 0u64, 0u64);
    for item in text.split(',') {
        let rest = match item.split_once(':') {
            Some((plain, rest)) => {
                plain_step = Some(number(plain).ok_or_else(malformed)?);
                rest
            }
            None => item,
        };
        let (stored, count) = match rest.split_once('x') {
            Some((stored, count)) => {
                (stored, number(count).filter(|&count| count > 1).ok_or_else(malformed)?)
            }
            None => (rest, 1),
        };
        let (plain_step, stored_step) =
            (plain_step.ok_or_else(malformed)?, number(stored).ok_or_else(malformed)?);
        for _ in 0..count {
            plain_offset = plain_offset.checked_add(plain_step).ok_or_else(malformed)?;
            stored_offset = stored_offset.checked_add(stored_step).ok_or_else(malformed)?;
            if visit(Place { plain_offset, stored_offset }).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(points: &[(u64, u64)]) -> Option<String> {
        let mut writer = PointsWriter::default();
        points.iter().for_each(|&(plain_offset, stored_offset)| {
            writer.push(Place { plain_offset, stored_offset });
        });
        writer.finish()
    }

    #[test]
    fn what_is_alike_is_told_once() {
        assert_eq!(text_of(&[]), None);
        assert_eq!(text_of(&[(4, 9)]).unwrap(), "4:9");
        assert_eq!(text_of(&[(4, 9), (8, 18), (12, 20), (13, 22), (14, 25)]).unwrap(), "4:9x2,2,1:2,3");
        assert_eq!(
            text_of(&[(4, 9), (4, 10), (5, 9)]).unwrap(),
            "4:9",
            "no point lies where another one does"
        );
    }

    #[test]
    fn hostile_texts_are_errors() {
        for bad in [
            "", "5", "a:5", "4:", ":4", "4:9,", "4:9x1", "4:9x0", "04:9", "4:+9", "4:0", "0:4", "4:9:9",
            "4:9xx2",
        ] {
            assert_eq!(parse(bad, 100).unwrap_err().kind(), ErrorKind::Malformed, "{bad}");
        }
        for long in ["1:1x101", "1:1x99,1x2", "1:1x18446744073709551615"] {
            assert_eq!(parse(long, 100).unwrap_err().kind(), ErrorKind::LimitExceeded, "{long}");
        }
        assert!(parse("18446744073709551615:1x2", 100).is_err());
        assert!(parse("1:99999999999999999999", 100).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(steps in prop::collection::vec((1u64..4, 1u64..4), 0..50)) {
            let mut at = (0, 0);
            let points: Vec<_> = steps.iter().map(|step| { at = (at.0 + step.0, at.1 + step.1); at }).collect();
            let read = match text_of(&points) {
                None => Vec::new(),
                Some(text) => parse(&text, 50).unwrap(),
            };
            let read: Vec<_> = read.iter().map(|point| (point.plain_offset, point.stored_offset)).collect();
            prop_assert_eq!(read, points);
        }
    }
}
