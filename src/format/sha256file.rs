//! `<prefix>_sha256file`: the digest of every block of the whole volume.
//!
//! ```text
//! {
//!   "backup_description": …, "backup_id": …, "backup_name": …,     (each on its own line)
//!   "chunk_size": 32768,                                            the block, in bytes
//!   "created_at": …,
//!   "sha256s": [\n
//!     "c35020473aed1b4642cd726cad727b63fff2824ad68cedd7ffb73c7cbd890479",\n     72 bytes; 73 where Python 2 wrote `, \n`
//!     …
//!     "3ebf1f822f975e9d52f8501b77624fdf768186bef07abe30955eb57b71da4b6a"\n      the last has no comma: 71 bytes
//!   ],
//!   "version": "1.0.0", "volume_id": …
//! }
//! ```
//!
//! Problem: one list of 72 bytes for each 32 KiB is 2.25 GiB of JSON for a 1 TiB volume, and a mount wants one entry of
//! it. Idea: the entries stand at a fixed stride. [`find_layout`] reads only the ends of the file: it proves by parsing
//! that what precedes and what follows the list is a document of Cinder's, and that the list's length fits the stride.
//! Each entry is checked again, punctuation included, when it is read. A file of another layout (compact JSON is legal)
//! goes through [`parse_stream`].
//!
//! Invariant: an entry that is read by offset is exactly one line as Cinder writes it, or an error; whatever damage the
//! file has, it costs the blocks whose lines it hit.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json::{Guard, parse_error};
use crate::error::{Error, ErrorKind, Result};
use crate::types::BlockHash;

/// How much of the file's head is searched for the beginning of the list, in bytes. Before it stand a name and a
/// description of at most 255 characters (12 bytes each when escaped).
pub const HEAD_BYTES: usize = 64 << 10;

/// How much of the file's tail is searched for the end of the list, in bytes. After it stand a version and an id.
pub const TAIL_BYTES: usize = 4 << 10;

/// Largest block accepted, in bytes. A block is hashed whole before any byte of it is served, so it must fit in memory
/// several times, for each thread; Cinder's default is 32 KiB.
pub const BLOCK_BYTES_MAX: u64 = 16 << 20;

/// Longest document that is parsed as a stream, in bytes; by stride there is no bound.
pub const STREAM_BYTES_MAX: u64 = 64 << 30;

const VERSION: &str = "1.0.0";
const INDENT: &[u8] = b"    \"";
const DIGEST_DIGITS: u64 = 64;

/// The document without its digests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Unchecked; `None` where the key is missing.
    pub backup_id: Option<String>,
    /// Unchecked; `None` where the key is missing.
    pub volume_id: Option<String>,
    /// Bytes in a block, 1 to [`BLOCK_BYTES_MAX`]. The last block of a volume may be shorter and is hashed as it is.
    pub block_bytes: u64,
}

/// Where the digests stand in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StrideLayout {
    first: u64,
    stride: u64,
    count: u64,
}

impl StrideLayout {
    /// How many digests there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The bytes of the file that hold the entries of `blocks`. `blocks` must end at [`count`](Self::count) or before.
    pub fn bytes_of(&self, blocks: Range<u64>) -> Range<u64> {
        let end = self.first + blocks.end * self.stride;
        let last_is_short =
            if blocks.end == self.count && blocks.end > blocks.start { self.last_shorter_by() } else { 0 };
        self.first + blocks.start * self.stride..end - last_is_short
    }

    /// How many bytes an entry takes, at the most.
    pub fn stride(&self) -> u64 {
        self.stride
    }

    /// The digest in one entry's bytes; `None` when they are not a line as Cinder writes it.
    pub fn decode(&self, entry: &[u8]) -> Option<BlockHash> {
        let digits_end = INDENT.len() + DIGEST_DIGITS as usize;
        let digits = entry.get(INDENT.len()..digits_end)?;
        let end = entry.get(digits_end..)?;
        let ends_well = match self.stride {
            72 => matches!(end, b"\",\n" | b"\"\n"),
            _ => matches!(end, b"\", \n" | b"\"\n"),
        };
        if !entry.starts_with(INDENT) || !ends_well {
            return None;
        }
        BlockHash::from_hex(digits)
    }

    /// The last entry lacks the comma, and the space of Python 2.
    fn last_shorter_by(&self) -> u64 {
        self.stride - 71
    }
}

#[derive(Deserialize)]
struct Ends {
    backup_id: Option<String>,
    volume_id: Option<String>,
    chunk_size: Option<u64>,
    version: Option<String>,
}

/// The document with the digests left out, to prove where they were.
#[derive(Deserialize)]
struct WithoutDigests {
    sha256s: [Cut; 1],
    #[serde(flatten)]
    ends: Ends,
}

/// Stands for the digests that were left out. A list of digests does not hold it.
#[derive(Deserialize)]
enum Cut {
    #[serde(rename = "cut")]
    Here,
}

impl Ends {
    fn check(self) -> Result<Header> {
        match self.version.as_deref() {
            Some(VERSION) => {}
            other => {
                let shown: String = other.unwrap_or("none").chars().take(32).collect();
                let message = format!("digest file version {shown:?} is not known, expected {VERSION:?}");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        match self.chunk_size {
            Some(block_bytes @ 1..=BLOCK_BYTES_MAX) => {
                Ok(Header { backup_id: self.backup_id, volume_id: self.volume_id, block_bytes })
            }
            Some(other) => Err(Error::new(
                ErrorKind::LimitExceeded,
                format!("chunk_size is {other} bytes, expected 1 to {BLOCK_BYTES_MAX}"),
            )),
            None => Err(Error::new(ErrorKind::Malformed, "chunk_size is missing")),
        }
    }
}

/// Finds the digests by stride from the ends of a file of `file_bytes` bytes: its first [`HEAD_BYTES`] and last
/// [`TAIL_BYTES`] (or all of it, where it is shorter).
///
/// `None` when the document is not laid out as Cinder's: parse it as a stream then. An error when it is, and says
/// something that cannot be served.
pub fn find_layout(head: &[u8], tail: &[u8], file_bytes: u64) -> Option<Result<(Header, StrideLayout)>> {
    const LIST: &[u8] = b"\"sha256s\": [\n";
    const LIST_END: &[u8] = b"\n  ]";
    let list = find(head, LIST)?;
    let first = (list + LIST.len()) as u64;
    // Searched from the end: what follows the list is short, and in an intact file the first hit is the right one.
    let end_in_tail = rfind(tail, LIST_END)? + 1;
    let end = file_bytes - tail.len() as u64 + end_in_tail as u64;
    let list_bytes = end.checked_sub(first)?;
    let stride = stride_at(head, list + LIST.len(), list_bytes)?;
    let count = (list_bytes + (stride - 71)) / stride;
    if count == 0 || count * stride - (stride - 71) != list_bytes {
        return None;
    }
    // Only a parse tells that the list found is the top-level one, and not words in a description.
    let mut document = head[..list].to_vec();
    document.extend_from_slice(b"\"sha256s\": [\"cut\"");
    document.extend_from_slice(&tail[end_in_tail..]);
    let WithoutDigests { sha256s: [Cut::Here], ends } = serde_json::from_slice(&document).ok()?;
    Some(ends.check().map(|header| (header, StrideLayout { first, stride, count })))
}

/// 72 or 73, by how the first line of the list ends.
fn stride_at(head: &[u8], first: usize, list_bytes: u64) -> Option<u64> {
    if list_bytes == 71 {
        return Some(72); // one digest, no comma: both look the same
    }
    match head.get(first + 69..)? {
        [b'"', b',', b'\n', ..] => Some(72),
        [b'"', b',', b' ', b'\n', ..] => Some(73),
        _ => None,
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).rposition(|window| window == needle)
}

/// Reads a document of any layout, giving each digest to `on_digest` in order. An error of `on_digest` ends the parse.
pub fn parse_stream(reader: impl Read, on_digest: &mut dyn FnMut(BlockHash) -> Result<()>) -> Result<Header> {
    let guard = Guard::new(reader, STREAM_BYTES_MAX);
    let mut deserializer =
        serde_json::Deserializer::from_reader(io::BufReader::with_capacity(256 << 10, guard));
    let mut failure = None;
    let seed = Document { on_digest, failure: &mut failure };
    let parsed = seed.deserialize(&mut deserializer).and_then(|ends| {
        deserializer.end()?;
        Ok(ends)
    });
    match (failure, parsed) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(parse_error(error)),
        (None, Ok(ends)) => ends.check(),
    }
}

struct Document<'a> {
    on_digest: &'a mut dyn FnMut(BlockHash) -> Result<()>,
    failure: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = Ends;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Ends, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Ends;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a digest file")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Ends, M::Error> {
        let mut ends = Ends { backup_id: None, volume_id: None, chunk_size: None, version: None };
        let mut has_digests = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "backup_id" => ends.backup_id = map.next_value()?,
                "volume_id" => ends.volume_id = map.next_value()?,
                "chunk_size" => ends.chunk_size = map.next_value()?,
                "version" => ends.version = map.next_value()?,
                "sha256s" if has_digests => return Err(M::Error::custom("the key \"sha256s\" stands twice")),
                "sha256s" => {
                    has_digests = true;
                    map.next_value_seed(Digests {
                        on_digest: &mut *self.on_digest,
                        failure: &mut *self.failure,
                    })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if has_digests { Ok(ends) } else { Err(M::Error::missing_field("sha256s")) }
    }
}

struct Digests<'a> {
    on_digest: &'a mut dyn FnMut(BlockHash) -> Result<()>,
    failure: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Digests<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Digests<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of digests")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut digests: S) -> Result<(), S::Error> {
        while let Some(digest) = digests.next_element::<HexDigest>()? {
            if let Err(error) = (self.on_digest)(digest.0) {
                let message = S::Error::custom(&error);
                *self.failure = Some(error);
                return Err(message);
            }
        }
        Ok(())
    }
}

/// A digest parsed without keeping its text.
struct HexDigest(BlockHash);

impl<'de> Deserialize<'de> for HexDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hex;
        impl Visitor<'_> for Hex {
            type Value = HexDigest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 lower-case hexadecimal digits")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HexDigest, E> {
                let hash = BlockHash::from_hex(text.as_bytes());
                hash.map(HexDigest)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Other("other text"), &self))
            }
        }
        deserializer.deserialize_str(Hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(count: u8, separator: &str, description: &str) -> Vec<u8> {
        let digests: Vec<_> = (0..count).map(|i| format!("    \"{}\"", BlockHash([i; 32]))).collect();
        let list = match count {
            0 => "[]".to_string(),
            _ => format!("[\n{}\n  ]", digests.join(separator)),
        };
        let description = serde_json::to_string(description).unwrap();
        let lines = [
            format!("{{\n  \"backup_description\": {description}"),
            "  \"backup_id\": \"b\"".into(),
            "  \"chunk_size\": 1000".into(),
            format!("  \"sha256s\": {list}"),
            "  \"version\": \"1.0.0\"".into(),
            "  \"volume_id\": \"v\"\n}".into(),
        ];
        lines.join(separator).into_bytes()
    }

    fn layout(document: &[u8]) -> Option<Result<(Header, StrideLayout)>> {
        let head = &document[..document.len().min(HEAD_BYTES)];
        let tail = &document[document.len().saturating_sub(TAIL_BYTES)..];
        find_layout(head, tail, document.len() as u64)
    }

    fn by_stride(document: &[u8]) -> Vec<Option<BlockHash>> {
        let (header, layout) = layout(document).unwrap().unwrap();
        assert_eq!(header.block_bytes, 1000);
        let entry = |i| {
            let bytes = layout.bytes_of(i..i + 1);
            layout.decode(&document[bytes.start as usize..bytes.end as usize])
        };
        (0..layout.count()).map(entry).collect()
    }

    fn by_stream(document: &[u8]) -> Result<Vec<BlockHash>> {
        let mut digests = Vec::new();
        parse_stream(document, &mut |digest| {
            digests.push(digest);
            Ok(())
        })?;
        Ok(digests)
    }

    #[test]
    fn both_separators_by_stride_and_by_stream() {
        let tricky = "\"sha256s\": [\n    \"00\"\n  ], \\ \"";
        for separator in [",\n", ", \n"] {
            for count in [1, 2, 3, 200] {
                for description in ["", tricky] {
                    let document = document(count, separator, description);
                    let expected: Vec<_> = (0..count).map(|i| BlockHash([i; 32])).collect();
                    assert_eq!(by_stream(&document).unwrap(), expected);
                    assert_eq!(by_stride(&document), expected.into_iter().map(Some).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn a_list_elsewhere_in_the_document_is_not_that_of_the_digests() {
        let list =
            "\"sha256s\": [\n    \"c35020473aed1b4642cd726cad727b63fff2824ad68cedd7ffb73c7cbd890479\"\n  ]";
        let with = |keys: &str| format!("{{{keys}, \"chunk_size\": 1, \"version\": \"1.0.0\"}}").into_bytes();
        assert_eq!(layout(&with(list)).unwrap().unwrap().1.count(), 1);
        for (keys, digests) in [
            (format!("\"x\": {{{list}}}"), None),
            (format!("{list}, \"sha256s\": []"), None),
            (format!("\"x\": {{{list}}}, \"sha256s\": []"), Some(0)),
        ] {
            let document = with(&keys);
            assert!(layout(&document).is_none(), "{keys}");
            assert_eq!(by_stream(&document).ok().map(|digests| digests.len()), digests, "{keys}");
        }
    }

    #[test]
    fn other_layouts_are_left_to_the_stream() {
        assert!(layout(&document(0, ",\n", "")).is_none());
        assert!(layout(&document(3, ",", "")).is_none());
        let compact = serde_json::to_vec(
            &serde_json::from_slice::<serde_json::Value>(&document(3, ",\n", "")).unwrap(),
        )
        .unwrap();
        assert!(layout(&compact).is_none());
        assert_eq!(by_stream(&compact).unwrap().len(), 3);
        let mut longer = document(3, ",\n", "");
        let at = find(&longer, b"\n  ]").unwrap();
        longer.insert(at, b' ');
        assert!(layout(&longer).is_none());
        assert_eq!(by_stream(&longer).unwrap().len(), 3);
    }

    #[test]
    fn damage_costs_the_lines_it_hits() {
        let good = document(5, ",\n", "");
        let at = find(&good, &b"02".repeat(32)).unwrap();
        for (place, byte) in [(at, b'G'), (at + 64, b'\''), (at + 65, b';'), (at - 3, b'\t')] {
            let mut bad = good.clone();
            bad[place] = byte;
            let read = by_stride(&bad);
            let lost: Vec<_> = (0..5).filter(|&i| read[i] != Some(BlockHash([i as u8; 32]))).collect();
            assert_eq!(lost, [2], "{place}");
            assert_eq!(read[2], None);
        }
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let text = String::from_utf8(document(3, ",\n", "")).unwrap();
        for (from, to, words) in [
            ("1.0.0", "1.1.0", "version \"1.1.0\""),
            ("1000", "0", "chunk_size is 0"),
            ("1000", "16777217", "chunk_size is 16777217"),
            ("  \"chunk_size\": 1000,\n", "", "chunk_size is missing"),
        ] {
            let bad = text.replace(from, to);
            for error in
                [layout(bad.as_bytes()).unwrap().unwrap_err(), by_stream(bad.as_bytes()).unwrap_err()]
            {
                assert!(error.to_string().contains(words), "{error} should tell {words}");
            }
        }
        for cut in 0..text.len() {
            assert!(by_stream(&text.as_bytes()[..cut]).is_err());
            assert!(layout(&text.as_bytes()[..cut]).is_none());
        }
    }
}
