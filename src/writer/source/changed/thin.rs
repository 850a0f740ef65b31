//! The list that is XML: what `thin_delta` prints, with `--verbose` and without.
//!
//! ```text
//! <superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="64">
//!   <diff left="1" right="2">
//!     <same begin="0" length="2"/>
//!     <different begin="2" length="2"/>          verbose: <different> <range begin="2" … length="2"/> … </different>
//!   </diff>
//! </superblock>
//! ```
//!
//! A whole XML parser would understand far more than may be accepted here. This one knows elements and attributes, in this
//! very nesting, and nothing else: no text, no entities, no comments.

use std::io::{BufRead, Read};

use super::{Ranges, range_of, read_error, refuse};
use crate::error::Result;

/// Longest tag, in bytes; the superblock's has some 200.
const TAG_BYTES_MAX: u64 = 4096;

/// A data block is this many sectors of 512 bytes times n, and at most [`BLOCK_SECTORS_MAX`]: 64 KiB to 1 GiB, as dm-thin has it.
const BLOCK_SECTORS_MIN: u64 = 128;
const BLOCK_SECTORS_MAX: u64 = 2 << 20;
const SECTOR_BYTES: u64 = 512;

/// Where in the nesting the parser is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Start,
    Superblock,
    Diff,
    /// In a list of ranges that changed, or did not.
    Kind {
        name: &'static str,
    },
    DiffEnded,
    End,
}

/// Which elements of `diff` there are, and whether what they list changed.
const KINDS: [(&str, bool); 4] =
    [("same", false), ("different", true), ("left_only", true), ("right_only", true)];

/// Adds what the list says to `ranges`.
pub(super) fn parse(mut list: impl BufRead, ranges: &mut Ranges) -> Result<()> {
    let mut place = Place::Start;
    let mut block_bytes = 0;
    let mut text = Vec::new();
    while next_tag(&mut list, &mut text)? {
        let tag = std::str::from_utf8(&text).map_err(|_| refuse("its XML is not UTF-8"))?;
        place = step(place, tag, &mut block_bytes, ranges)
            .map_err(|error| error.context(format!("in \"<{}>\"", shown(tag))))?;
    }
    if place != Place::End {
        return Err(refuse("its XML ends too early"));
    }
    Ok(())
}

fn shown(tag: &str) -> String {
    tag.chars().take(100).flat_map(char::escape_debug).collect()
}

/// The text between the next `<` and `>`; false at the end. Only white space may stand between tags.
fn next_tag(list: &mut impl BufRead, text: &mut Vec<u8>) -> Result<bool> {
    loop {
        let buffer = list.fill_buf().map_err(read_error)?;
        let Some(&byte) = buffer.first() else { return Ok(false) };
        list.consume(1);
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'<' => break,
            _ => return Err(refuse("its XML has text between the elements")),
        }
    }
    text.clear();
    list.by_ref().take(TAG_BYTES_MAX).read_until(b'>', text).map_err(read_error)?;
    match text.pop() {
        Some(b'>') => Ok(true),
        _ => Err(refuse("its XML is torn within a tag, or has one too long")),
    }
}

fn step(place: Place, tag: &str, block_bytes: &mut u64, ranges: &mut Ranges) -> Result<Place> {
    if place == Place::Start && tag.starts_with("?xml ") && tag.ends_with('?') {
        return Ok(place);
    }
    if let Some(name) = tag.strip_prefix('/') {
        return match (place, name.trim_end()) {
            (Place::Kind { name }, closed) if name == closed => Ok(Place::Diff),
            (Place::Diff, "diff") => Ok(Place::DiffEnded),
            (Place::DiffEnded, "superblock") => Ok(Place::End),
            _ => Err(refuse("this does not end there")),
        };
    }
    let (tag, is_closed) = match tag.strip_suffix('/') {
        Some(tag) => (tag, true),
        None => (tag, false),
    };
    let tag = tag.trim_end();
    let (name, attributes) = tag.split_at(tag.find(|c: char| c.is_ascii_whitespace()).unwrap_or(tag.len()));
    match place {
        Place::Start if name == "superblock" && !is_closed => {
            let sectors =
                number(attributes, "data_block_size")?.ok_or_else(|| refuse("data_block_size is missing"))?;
            if sectors == 0 || sectors > BLOCK_SECTORS_MAX || sectors % BLOCK_SECTORS_MIN != 0 {
                return Err(refuse(format!("no thin pool has data blocks of {sectors} sectors")));
            }
            *block_bytes = sectors * SECTOR_BYTES;
            Ok(Place::Superblock)
        }
        Place::Superblock if name == "diff" => {
            check(attributes)?;
            Ok(if is_closed { Place::DiffEnded } else { Place::Diff })
        }
        Place::Diff => {
            let kind = KINDS.iter().find(|kind| kind.0 == name);
            let &(name, is_changed) = kind.ok_or_else(|| refuse("this is no known kind of difference"))?;
            if is_closed {
                add(attributes, is_changed, *block_bytes, ranges)?;
                return Ok(Place::Diff);
            }
            if !attributes.trim().is_empty() {
                return Err(refuse("this should be closed"));
            }
            Ok(Place::Kind { name })
        }
        Place::Kind { name: kind } if name == "range" && is_closed => {
            add(attributes, kind != "same", *block_bytes, ranges)?;
            Ok(place)
        }
        _ => Err(refuse("this is not what thin_delta prints there")),
    }
}

fn add(attributes: &str, is_changed: bool, block_bytes: u64, ranges: &mut Ranges) -> Result<()> {
    let bytes = |name| -> Result<u64> {
        let blocks = number(attributes, name)?.ok_or_else(|| refuse(format!("{name} is missing")))?;
        blocks.checked_mul(block_bytes).ok_or_else(|| refuse(format!("{name} is impossible")))
    };
    let range = range_of(bytes("begin")?, bytes("length")?)?;
    if is_changed { ranges.add(range) } else { Ok(()) }
}

/// Whether the attributes are well-formed.
fn check(attributes: &str) -> Result<()> {
    number(attributes, "").map(|_| ())
}

/// The number that attribute `wanted` has, if it is there.
fn number(attributes: &str, wanted: &str) -> Result<Option<u64>> {
    let mut rest = attributes;
    let mut found = None;
    loop {
        let trimmed = rest.trim_start();
        if trimmed.is_empty() {
            return Ok(found);
        }
        // There is a space before each.
        let (name, behind) = trimmed.split_once('=').ok_or_else(|| refuse("an attribute has no value"))?;
        let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if trimmed.len() == rest.len() || name.is_empty() || !is_name(name) {
            return Err(refuse("this is not well-formed"));
        }
        let quote = behind.chars().next().filter(|c| matches!(c, '"' | '\''));
        let value = quote.and_then(|quote| behind[1..].split_once(quote));
        let (value, behind) = value.ok_or_else(|| refuse("a value is not in quotes"))?;
        if name == wanted {
            let digits = value.bytes().all(|b| b.is_ascii_digit());
            let number = if digits { value.parse().ok() } else { None };
            let number = number.ok_or_else(|| refuse(format!("{name} is no number")))?;
            if found.replace(number).is_some() {
                return Err(refuse(format!("{name} stands there twice")));
            }
        }
        rest = behind;
    }
}
