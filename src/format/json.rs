//! A guard in front of the JSON parser.
//!
//! Problem: a document of a store may be a gigabyte of `[`, one endless string, or simply endless; the parser would
//! recurse or allocate along. Idea: the guard looks at every byte as it streams by, knows just enough of JSON's grammar to
//! tell strings from structure, and fails the read when a bound is passed. The parser behind it stays simple.
//!
//! Invariant: the guard passes bytes through unchanged, or fails; it never judges whether the JSON is well-formed.

use std::io::{self, Read};

use crate::error::{Error, ErrorKind};

/// Deepest nesting accepted. Cinder's documents nest 4 deep (document, objects, entry, value).
pub const NESTING_MAX: u32 = 32;

/// Longest string accepted, in bytes. The longest that Cinder writes is `volume_meta`, a few KiB, or some MiB on a
/// volume with very much metadata of its own.
pub const STRING_BYTES_MAX: u64 = 16 << 20;

/// Passes a JSON document through and fails when it is larger, deeper or wordier than allowed.
pub struct Guard<R> {
    inner: R,
    bytes_left: u64,
    bytes_max: u64,
    nesting: u32,
    string: Option<u64>,
    escaped: bool,
}

impl<R: Read> Guard<R> {
    /// Guards `inner`, which may hold at most `bytes_max` bytes.
    pub fn new(inner: R, bytes_max: u64) -> Self {
        Self { inner, bytes_left: bytes_max, bytes_max, nesting: 0, string: None, escaped: false }
    }

    fn inspect(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for &byte in bytes {
            if let Some(string_bytes) = &mut self.string {
                *string_bytes += 1;
                if *string_bytes > STRING_BYTES_MAX {
                    return Err(limit(format!("a string is longer than {STRING_BYTES_MAX} bytes")));
                }
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.string = None,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => self.string = Some(0),
                    b'[' | b'{' => {
                        self.nesting += 1;
                        if self.nesting > NESTING_MAX {
                            return Err(limit(format!("JSON is nested more than {NESTING_MAX} deep")));
                        }
                    }
                    b']' | b'}' => self.nesting = self.nesting.saturating_sub(1),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn limit(message: String) -> Error {
    Error::new(ErrorKind::LimitExceeded, message)
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.bytes_left = self
            .bytes_left
            .checked_sub(n as u64)
            .ok_or_else(|| limit(format!("the document is longer than {} bytes", self.bytes_max)))
            .map_err(io::Error::other)?;
        self.inspect(&buf[..n]).map_err(io::Error::other)?;
        Ok(n)
    }
}

/// What a parser's failure means: an error that the guard or the source raised keeps its kind, the rest is malformed.
pub fn parse_error(error: serde_json::Error) -> Error {
    if error.is_io() {
        let io_error = io::Error::from(error);
        return match io_error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(other) => Error::caused_by(ErrorKind::StoreIo, "cannot read the document", other),
        };
    }
    let what =
        if error.is_eof() { "the JSON is torn: it ends too early" } else { "not the JSON Cinder writes" };
    Error::caused_by(ErrorKind::Malformed, what, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(document: impl Read, bytes_max: u64) -> Result<serde_json::Value, Error> {
        serde_json::from_reader(io::BufReader::new(Guard::new(document, bytes_max))).map_err(parse_error)
    }

    #[test]
    fn a_document_in_bounds_passes_unchanged() {
        let text = br#"{"a": ["]]]]", "\"[[[", {"b": "\\"}]}"#;
        let value = through(&text[..], 100).unwrap();
        assert_eq!(value, serde_json::from_slice::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn bounds_are_named() {
        let endless = || io::repeat(b'[');
        let error = through(endless(), u64::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(error.to_string().contains("nested more than 32 deep"), "{error}");
        let error = through(Read::chain(&b"\""[..], io::repeat(b'x')), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("string is longer"), "{error}");
        let error = through(io::repeat(b' '), 1000).unwrap_err();
        assert!(error.to_string().contains("longer than 1000 bytes"), "{error}");
    }

    #[test]
    fn torn_is_told_from_foreign() {
        assert!(through(&b"{\"a\": "[..], 100).unwrap_err().to_string().contains("torn"));
        assert!(through(&b"hello"[..], 100).unwrap_err().to_string().contains("not the JSON"));
    }
}
