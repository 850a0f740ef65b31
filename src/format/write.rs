//! Writing what Cinder writes, byte for byte.
//!
//! Problem: backups of ours must be taken for Cinder's by Cinder and by whatever else reads them. Cinder 29 on Python 3
//! writes `json.dumps(…, sort_keys=True, indent=2)` in ASCII without a line feed at the end; a list of digests is 2.25 GiB
//! of it for a volume of 1 TiB, and the digests are known in any order. Idea: the documents have fixed keys, so they are
//! written as text, key by key, in sorted order, and nothing is ever held whole:
//!
//! ```text
//! MetadataWriter::begin(head)  .object(…) .object(…) …  .finish()      in the order of the volume
//! Sha256FileLayout::new(head, count)
//!     header()                     up to `"sha256s": [\n`
//!     encode_entries(first, …)     at entry_offset(first), 72 bytes a digest, the last 71; in any order
//!     trailer()                    at trailer_offset()
//! ```
//!
//! Keys of our own may stand in an object's value, where Cinder ignores them; they are sorted in among its own.
//!
//! Invariants: what is written is ASCII; a document of Cinder 29 that is read and written again is the same bytes (the
//! tests do so with every one we have). Nothing here does I/O: bytes are appended to a buffer of the caller's.

mod volume_meta;

#[cfg(test)]
mod tests;

use serde_json::Value;

pub use self::volume_meta::VolumeMeta;
use super::names::{METADATA_SUFFIX, SHA256FILE_SUFFIX};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{BackupId, BlockHash, Md5, ObjectName, VolumeId};

/// The version of both documents.
const VERSION: &str = "1.0.0";

/// How many bytes an entry of the list of digests takes; the last takes one less.
pub const ENTRY_BYTES: u64 = 72;

/// `volume_<volume>_<YYYYmmddHHMMSS>_backup_<backup>`, in UTC: what begins every name of a backup since Cinder 10.0.3.
pub fn object_prefix(volume: &VolumeId, time: jiff::Timestamp, backup: &BackupId) -> String {
    format!("volume_{volume}_{}_backup_{backup}", time.strftime("%Y%m%d%H%M%S"))
}

/// `volume_<volume>/<YYYYmmddHHMMSS>/az_<zone>_backup_<backup>`, in UTC: the same in object stores, relative to the bucket or container.
///
/// [`ErrorKind::Usage`] for an availability zone that cannot stand in a name.
pub fn object_store_prefix(
    volume: &VolumeId,
    time: jiff::Timestamp,
    zone: &str,
    backup: &BackupId,
) -> Result<String> {
    let prefix = format!("volume_{volume}/{}/az_{zone}_backup_{backup}", time.strftime("%Y%m%d%H%M%S"));
    if zone.contains('/') || zone.chars().any(char::is_control) || ObjectName::parse(&prefix).is_err() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("the availability zone {zone:?} cannot be in a name"),
        ));
    }
    Ok(prefix)
}

/// `<id[0:2]>/<id[2:4]>/<id>`: the container of a backup that was not given one.
///
/// [`ErrorKind::UnsafeName`] for an id that makes no path so, as one of two letters; give such a one a container.
pub fn default_container(backup: &BackupId) -> Result<ObjectName> {
    let id = backup.as_str(); // ASCII
    let (first, second) = (&id[..id.len().min(2)], &id[id.len().min(2)..id.len().min(4)]);
    ObjectName::parse(&format!("{first}/{second}/{id}"))
}

/// `<prefix>-<number>`: five digits, more past 99,999. Objects are numbered from 1.
pub fn object_name(prefix: &str, number: u64) -> String {
    format!("{prefix}-{number:05}")
}

/// `<prefix>_metadata`.
pub fn metadata_name(prefix: &str) -> String {
    format!("{prefix}{METADATA_SUFFIX}")
}

/// `<prefix>_sha256file`.
pub fn sha256file_name(prefix: &str) -> String {
    format!("{prefix}{SHA256FILE_SUFFIX}")
}

/// `created_at` as Python's `str(datetime)` writes it: microseconds only if there are any.
pub fn created_at_text(time: jiff::Timestamp) -> String {
    let text = time.strftime("%Y-%m-%d %H:%M:%S.%6f").to_string();
    format!("{}+00:00", text.strip_suffix(".000000").unwrap_or(&text))
}

/// `_metadata` without its objects. Nothing is checked: the ids are the caller's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MetadataHead {
    /// The description that the user gave.
    pub description: Option<String>,
    /// The backup's id.
    pub backup_id: String,
    /// The name that the user gave.
    pub name: Option<String>,
    /// [`created_at_text`] of when the backup was made.
    pub created_at: String,
    /// The parent's id; `None` for a full backup.
    pub parent_id: Option<String>,
    /// The volume's id.
    pub volume_id: String,
    /// [`VolumeMeta::to_text`], or `None`.
    pub volume_meta: Option<String>,
}

/// A data object, as `_metadata` tells of it.
#[derive(Clone, Copy, Debug)]
pub struct NewObject<'a> {
    /// [`object_name`].
    pub name: &'a str,
    /// `zlib`, `bz2`, `zstd` or `none`.
    pub compression: &'a str,
    /// Where in the volume its plain bytes belong, in bytes.
    pub offset: u64,
    /// How many plain bytes.
    pub len_bytes: u64,
    /// Of the plain bytes.
    pub md5: Md5,
    /// Keys of our own, in any order. Numbers must be whole, and keys neither stand twice nor be one of Cinder's.
    pub extra: &'a [(&'a str, Value)],
}

/// Writes a `_metadata` document object by object.
#[derive(Debug)]
pub struct MetadataWriter<'a> {
    head: &'a MetadataHead,
    is_empty: bool,
}

impl<'a> MetadataWriter<'a> {
    /// Appends what precedes the objects to `out`.
    pub fn begin(head: &'a MetadataHead, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(b"{\n");
        text_or_null(out, "backup_description", head.description.as_deref());
        text_or_null(out, "backup_id", Some(&head.backup_id));
        text_or_null(out, "backup_name", head.name.as_deref());
        text_or_null(out, "created_at", Some(&head.created_at));
        out.extend_from_slice(b"  \"objects\": [");
        Self { head, is_empty: true }
    }

    /// Appends an object to `out`. [`ErrorKind::Usage`] when an extra key or value cannot be written; `out` is as it was
    /// then.
    pub fn object(&mut self, object: &NewObject<'_>, out: &mut Vec<u8>) -> Result<()> {
        let own = [
            ("compression", Value::from(object.compression)),
            ("length", Value::from(object.len_bytes)),
            ("md5", Value::from(object.md5.to_string())),
            ("offset", Value::from(object.offset)),
        ];
        let own = own.iter().map(|(key, value)| (*key, value));
        let mut keys: Vec<_> = own.chain(object.extra.iter().map(|(key, value)| (*key, value))).collect();
        // By code points, as Python sorts: the order of UTF-8 bytes is the same.
        keys.sort_by_key(|(key, _)| *key);
        if let Some(pair) = keys.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(refused(object, format!("the key {:?} stands twice", pair[0].0)));
        }
        let before = out.len();
        out.extend_from_slice(if self.is_empty { b"\n    {\n      " } else { b",\n    {\n      " });
        string(out, object.name);
        out.extend_from_slice(b": {");
        for (i, (key, content)) in keys.into_iter().enumerate() {
            out.extend_from_slice(if i == 0 { b"\n        " } else { b",\n        " });
            string(out, key);
            out.extend_from_slice(b": ");
            if let Err(error) = value(out, content, 4) {
                out.truncate(before);
                return Err(refused(object, format!("the key {key:?}: {error}")));
            }
        }
        out.extend_from_slice(b"\n      }\n    }");
        self.is_empty = false;
        Ok(())
    }

    /// Appends the rest of the document to `out`.
    pub fn finish(self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.is_empty { b"],\n" } else { b"\n  ],\n" });
        text_or_null(out, "parent_id", self.head.parent_id.as_deref());
        text_or_null(out, "version", Some(VERSION));
        text_or_null(out, "volume_id", Some(&self.head.volume_id));
        text_or_null(out, "volume_meta", self.head.volume_meta.as_deref());
        end(out);
    }
}

fn refused(object: &NewObject<'_>, why: String) -> Error {
    Error::new(ErrorKind::Usage, format!("object {:?} cannot be written: {why}", object.name))
}

/// `_sha256file` without its digests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sha256FileHead {
    /// The description that the user gave.
    pub description: Option<String>,
    /// The backup's id.
    pub backup_id: String,
    /// The name that the user gave.
    pub name: Option<String>,
    /// Bytes in a block.
    pub block_bytes: u64,
    /// [`created_at_text`] of when the backup was made.
    pub created_at: String,
    /// The volume's id.
    pub volume_id: String,
}

impl Sha256FileHead {
    /// What both documents say.
    pub fn of(metadata: &MetadataHead, block_bytes: u64) -> Self {
        Self {
            description: metadata.description.clone(),
            backup_id: metadata.backup_id.clone(),
            name: metadata.name.clone(),
            block_bytes,
            created_at: metadata.created_at.clone(),
            volume_id: metadata.volume_id.clone(),
        }
    }
}

/// Where everything in a `_sha256file` document stands, so that its digests can be written in any order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sha256FileLayout {
    header: Vec<u8>,
    count: u64,
    trailer: Vec<u8>,
}

impl Sha256FileLayout {
    /// The layout of a document with `count` digests: one for each block, the short one at the volume's end included.
    ///
    /// [`ErrorKind::LimitExceeded`] when no file could hold them.
    pub fn new(head: &Sha256FileHead, count: u64) -> Result<Self> {
        let mut header = b"{\n".to_vec();
        text_or_null(&mut header, "backup_description", head.description.as_deref());
        text_or_null(&mut header, "backup_id", Some(&head.backup_id));
        text_or_null(&mut header, "backup_name", head.name.as_deref());
        header.extend_from_slice(format!("  \"chunk_size\": {},\n", head.block_bytes).as_bytes());
        text_or_null(&mut header, "created_at", Some(&head.created_at));
        header.extend_from_slice(b"  \"sha256s\": [");
        let mut trailer = Vec::new();
        if count == 0 {
            trailer.extend_from_slice(b"],\n");
        } else {
            header.push(b'\n');
            trailer.extend_from_slice(b"  ],\n");
        }
        text_or_null(&mut trailer, "version", Some(VERSION));
        text_or_null(&mut trailer, "volume_id", Some(&head.volume_id));
        end(&mut trailer);
        let ends = (header.len() + trailer.len()) as u64;
        let fits = count.checked_mul(ENTRY_BYTES).and_then(|bytes| bytes.checked_add(ends));
        if fits.is_none_or(|bytes| bytes > i64::MAX as u64) {
            let message = format!("no file holds the digests of {count} blocks");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        Ok(Self { header, count, trailer })
    }

    /// How many digests there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What stands at the beginning of the file.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where the digest of block `index` stands in the file. For [`count`](Self::count) and above, the end of the list.
    pub fn entry_offset(&self, index: u64) -> u64 {
        let list_bytes = (self.count * ENTRY_BYTES).saturating_sub(1);
        self.header.len() as u64 + list_bytes.min(index.saturating_mul(ENTRY_BYTES))
    }

    /// The entries of the blocks from `first` on, which stand at [`entry_offset`](Self::entry_offset) of `first`.
    ///
    /// [`ErrorKind::Usage`] when there are not so many blocks.
    pub fn encode_entries(&self, first: u64, digests: &[BlockHash]) -> Result<Vec<u8>> {
        let end =
            first.checked_add(digests.len() as u64).filter(|&end| end <= self.count).ok_or_else(|| {
                let message = format!(
                    "{} digests from block {first} on, expected {} in all",
                    digests.len(),
                    self.count
                );
                Error::new(ErrorKind::Usage, message)
            })?;
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut entries = Vec::with_capacity(digests.len() * ENTRY_BYTES as usize);
        for BlockHash(bytes) in digests {
            entries.extend_from_slice(b"    \"");
            for byte in bytes {
                let (high, low) = (byte >> 4, byte & 15);
                entries.extend_from_slice(&[DIGITS[usize::from(high)], DIGITS[usize::from(low)]]);
            }
            entries.extend_from_slice(b"\",\n");
        }
        if end == self.count && !digests.is_empty() {
            entries.truncate(entries.len() - 2);
            entries.push(b'\n');
        }
        Ok(entries)
    }

    /// Where [`trailer`](Self::trailer) stands.
    pub fn trailer_offset(&self) -> u64 {
        self.entry_offset(self.count)
    }

    /// What stands at the end of the file.
    pub fn trailer(&self) -> &[u8] {
        &self.trailer
    }

    /// The length of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.trailer_offset() + self.trailer.len() as u64
    }
}

/// A line of the outermost object.
fn text_or_null(out: &mut Vec<u8>, key: &str, text: Option<&str>) {
    out.extend_from_slice(b"  ");
    string(out, key);
    out.extend_from_slice(b": ");
    match text {
        Some(text) => string(out, text),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\n");
}

/// Ends the outermost object, whose last line has a comma too many.
fn end(out: &mut Vec<u8>) {
    out.truncate(out.len() - 2);
    out.extend_from_slice(b"\n}");
}

/// A string as `ensure_ascii` has it: all but printable ASCII as `\uXXXX`, beyond the BMP as two surrogates.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            ' '..='~' => out.push(c as u8),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
    out.push(b'"');
}

/// A value that stands `depth` levels deep, its own keys sorted. Fails for what Python would write otherwise than we.
fn value(out: &mut Vec<u8>, content: &Value, depth: usize) -> Result<(), &'static str> {
    // Deeper ones would be refused by our own reader.
    if depth >= super::json::NESTING_MAX as usize {
        return Err("it is nested too deep");
    }
    let line = |out: &mut Vec<u8>, index: usize, depth: usize| {
        out.extend_from_slice(if index == 0 { b"\n" } else { b",\n" });
        out.resize(out.len() + 2 * depth, b' ');
    };
    match content {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) if number.is_f64() => return Err("it is no whole number"),
        Value::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::String(text) => string(out, text),
        Value::Array(list) if list.is_empty() => out.extend_from_slice(b"[]"),
        Value::Array(list) => {
            out.push(b'[');
            for (i, item) in list.iter().enumerate() {
                line(out, i, depth + 1);
                value(out, item, depth + 1)?;
            }
            out.push(b'\n');
            out.resize(out.len() + 2 * depth, b' ');
            out.push(b']');
        }
        Value::Object(map) if map.is_empty() => out.extend_from_slice(b"{}"),
        Value::Object(map) => {
            out.push(b'{');
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_by_key(|(key, _)| key.as_str());
            for (i, (key, item)) in keys.into_iter().enumerate() {
                line(out, i, depth + 1);
                string(out, key);
                out.extend_from_slice(b": ");
                value(out, item, depth + 1)?;
            }
            out.push(b'\n');
            out.resize(out.len() + 2 * depth, b' ');
            out.push(b'}');
        }
    }
    Ok(())
}
