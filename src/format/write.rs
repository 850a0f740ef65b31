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

use serde_json::Value;

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

/// What `volume_meta` tells of the volume. What Cinder's database knows and we do not is null, or what an ordinary
/// volume has there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeMeta {
    /// The volume's id.
    pub id: String,
    /// The volume's size in GiB, rounded up.
    pub size_gib: u64,
    /// The volume's name; Cinder gives it to a new volume that the backup is restored to.
    pub display_name: Option<String>,
    /// The volume's description.
    pub display_description: Option<String>,
    /// When the volume was made; where that is not known, the backup.
    pub created_at: jiff::Timestamp,
    /// When the volume's row was changed.
    pub updated_at: Option<jiff::Timestamp>,
    /// Who owns it.
    pub user_id: Option<String>,
    /// Whose it is.
    pub project_id: Option<String>,
    /// Where it lies, as `host@backend#pool`.
    pub host: Option<String>,
    /// The availability zone.
    pub availability_zone: Option<String>,
    /// The id of its type.
    pub volume_type_id: Option<String>,
    /// The volume's own metadata: `--property` of `openstack volume set`. Cinder gives them to the restored volume.
    pub properties: Vec<(String, String)>,
}

impl VolumeMeta {
    /// A volume of which no more is known.
    pub fn new(
        id: &VolumeId,
        size_gib: u64,
        display_name: Option<String>,
        created_at: jiff::Timestamp,
    ) -> Self {
        Self {
            id: id.to_string(),
            size_gib,
            display_name,
            display_description: None,
            created_at,
            updated_at: None,
            user_id: None,
            project_id: None,
            host: None,
            availability_zone: None,
            volume_type_id: None,
            properties: Vec::new(),
        }
    }

    /// The JSON that `volume_meta` holds as a string: one line, the columns of the volume's row as Cinder 29 orders them.
    pub fn to_text(&self) -> String {
        enum Column<'a> {
            Null,
            Bool(bool),
            Text(&'a str),
            OrNull(&'a Option<String>),
            Number(u64),
        }
        use Column::{Bool, Null, Number, OrNull, Text};
        let time = |time: jiff::Timestamp| time.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string();
        let created_at = time(self.created_at);
        let updated_at = self.updated_at.map(time);
        let columns = [
            ("id", Text(&self.id)),
            ("_name_id", Null),
            ("use_quota", Bool(true)),
            ("ec2_id", Null),
            ("user_id", OrNull(&self.user_id)),
            ("project_id", OrNull(&self.project_id)),
            ("snapshot_id", Null),
            ("cluster_name", Null),
            ("host", OrNull(&self.host)),
            ("size", Number(self.size_gib)),
            ("availability_zone", OrNull(&self.availability_zone)),
            ("status", Text("available")),
            ("attach_status", Text("detached")),
            ("migration_status", Null),
            ("scheduled_at", Null),
            ("launched_at", Null),
            ("terminated_at", Null),
            ("display_name", OrNull(&self.display_name)),
            ("display_description", OrNull(&self.display_description)),
            ("provider_location", Null),
            ("provider_auth", Null),
            ("provider_geometry", Null),
            ("provider_id", Null),
            ("volume_type_id", OrNull(&self.volume_type_id)),
            ("source_volid", Null),
            ("encryption_key_id", Null),
            ("consistencygroup_id", Null),
            ("group_id", Null),
            ("bootable", Bool(false)),
            ("multiattach", Bool(false)),
            ("replication_status", Null),
            ("replication_extended_status", Null),
            ("replication_driver_data", Null),
            ("previous_status", Null),
            ("service_uuid", Null),
            ("shared_targets", Bool(true)),
            ("deleted_at", Null),
            ("deleted", Bool(false)),
            ("created_at", Text(&created_at)),
            ("updated_at", OrNull(&updated_at)),
        ];
        let mut out = b"{\"version\": 2, \"volume-base-metadata\": {".to_vec();
        for (i, (key, column)) in columns.iter().enumerate() {
            separate(&mut out, i, key);
            match column {
                Null | OrNull(None) => out.extend_from_slice(b"null"),
                Bool(true) => out.extend_from_slice(b"true"),
                Bool(false) => out.extend_from_slice(b"false"),
                Text(text) => string(&mut out, text),
                OrNull(Some(text)) => string(&mut out, text),
                Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
            }
        }
        out.push(b'}');
        if !self.properties.is_empty() {
            out.extend_from_slice(b", \"volume-metadata\": {");
            for (i, (key, text)) in self.properties.iter().enumerate() {
                separate(&mut out, i, key);
                string(&mut out, text);
            }
            out.push(b'}');
        }
        out.push(b'}');
        String::from_utf8(out).unwrap_or_default() // always ASCII
    }
}

fn separate(out: &mut Vec<u8>, index: usize, key: &str) {
    if index > 0 {
        out.extend_from_slice(b", ");
    }
    string(out, key);
    out.extend_from_slice(b": ");
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// Every file of the genuine stores whose name ends so.
    fn genuine(suffix: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores")];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.to_str().unwrap().ends_with(suffix) {
                    let bytes = fs::read(&path).unwrap();
                    found.push((path, bytes));
                }
            }
        }
        found
    }

    /// Whether Python 2 wrote it.
    fn is_python2(document: &[u8]) -> bool {
        document.windows(3).any(|window| window == b", \n")
    }

    fn text(document: &Value, key: &str) -> Option<String> {
        match document.get(key).unwrap_or_else(|| panic!("no key {key}")) {
            Value::Null => None,
            other => Some(other.as_str().unwrap().to_owned()),
        }
    }

    fn head(document: &Value) -> MetadataHead {
        MetadataHead {
            description: text(document, "backup_description"),
            backup_id: text(document, "backup_id").unwrap(),
            name: text(document, "backup_name"),
            created_at: text(document, "created_at").unwrap(),
            parent_id: text(document, "parent_id"),
            volume_id: text(document, "volume_id").unwrap(),
            volume_meta: text(document, "volume_meta"),
        }
    }

    #[track_caller]
    fn assert_same(written: &[u8], genuine: &[u8], path: &Path) {
        let differs = written.iter().zip(genuine).position(|(a, b)| a != b);
        let at = differs.unwrap_or(written.len().min(genuine.len()));
        let around = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[at.saturating_sub(40)..(at + 40).min(bytes.len())]).into_owned()
        };
        assert!(written == genuine, "{path:?} at {at}: {:?} {:?}", around(written), around(genuine));
    }

    #[test]
    fn every_genuine_metadata_document_is_written_again_as_it_was() {
        let mut equal = 0;
        let mut objects_most = 0;
        for (path, bytes) in genuine(METADATA_SUFFIX) {
            if is_python2(&bytes) {
                continue;
            }
            let document: Value = serde_json::from_slice(&bytes).unwrap();
            let head = head(&document);
            let mut out = Vec::new();
            let mut writer = MetadataWriter::begin(&head, &mut out);
            let objects = document["objects"].as_array().unwrap();
            objects_most = objects_most.max(objects.len());
            for entry in objects {
                let (name, value) = entry.as_object().unwrap().iter().next().unwrap();
                let object = NewObject {
                    name,
                    compression: value["compression"].as_str().unwrap(),
                    offset: value["offset"].as_u64().unwrap(),
                    len_bytes: value["length"].as_u64().unwrap(),
                    md5: Md5::from_hex(value["md5"].as_str().unwrap().as_bytes()).unwrap(),
                    extra: &[],
                };
                writer.object(&object, &mut out).unwrap();
            }
            writer.finish(&mut out);
            assert_same(&out, &bytes, &path);
            equal += 1;
        }
        assert_eq!(equal, 210, "documents of Python 3");
        assert!(objects_most > 1);
    }

    #[test]
    fn every_genuine_digest_file_is_written_again_as_it_was_in_any_order() {
        let mut equal = 0;
        for (path, bytes) in genuine(SHA256FILE_SUFFIX) {
            if is_python2(&bytes) {
                continue;
            }
            let document: Value = serde_json::from_slice(&bytes).unwrap();
            let digests = document["sha256s"].as_array().unwrap().iter();
            let digests: Vec<_> = digests
                .map(|digest| BlockHash::from_hex(digest.as_str().unwrap().as_bytes()).unwrap())
                .collect();
            let head = Sha256FileHead {
                description: text(&document, "backup_description"),
                backup_id: text(&document, "backup_id").unwrap(),
                name: text(&document, "backup_name"),
                block_bytes: document["chunk_size"].as_u64().unwrap(),
                created_at: text(&document, "created_at").unwrap(),
                volume_id: text(&document, "volume_id").unwrap(),
            };
            let layout = Sha256FileLayout::new(&head, digests.len() as u64).unwrap();
            let mut file = vec![0; layout.file_bytes() as usize];
            let mut put = |offset: u64, bytes: &[u8]| {
                let place = &mut file[offset as usize..offset as usize + bytes.len()];
                assert!(place.iter().all(|&byte| byte == 0), "{path:?}: written twice at {offset}");
                place.copy_from_slice(bytes);
            };
            put(layout.trailer_offset(), layout.trailer());
            // In pieces of 3, from the last to the first.
            let pieces: Vec<_> = digests.chunks(3).enumerate().collect();
            for (i, piece) in pieces.into_iter().rev() {
                let first = 3 * i as u64;
                put(layout.entry_offset(first), &layout.encode_entries(first, piece).unwrap());
            }
            put(0, layout.header());
            assert_same(&file, &bytes, &path);
            let error = layout.encode_entries(digests.len() as u64, &[BlockHash([0; 32])]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            equal += 1;
        }
        assert_eq!(equal, 210, "documents of Python 3");
    }

    #[test]
    fn the_volume_meta_of_cinder_29_is_written_again_as_it_was() {
        let mut equal = 0;
        for (path, bytes) in genuine(METADATA_SUFFIX) {
            let document: Value = serde_json::from_slice(&bytes).unwrap();
            let older = path.to_str().unwrap().contains("/release-") || is_python2(&bytes);
            let Some(genuine) = document["volume_meta"].as_str().filter(|_| !older) else { continue };
            let base = &serde_json::from_str::<Value>(genuine).unwrap()["volume-base-metadata"];
            let time = |key: &str| {
                text(base, key).map(|text| format!("{text}Z").parse::<jiff::Timestamp>().unwrap())
            };
            let volume = VolumeMeta {
                display_description: text(base, "display_description"),
                updated_at: time("updated_at"),
                user_id: text(base, "user_id"),
                project_id: text(base, "project_id"),
                host: text(base, "host"),
                availability_zone: text(base, "availability_zone"),
                volume_type_id: text(base, "volume_type_id"),
                ..VolumeMeta::new(
                    &VolumeId::parse(base["id"].as_str().unwrap()).unwrap(),
                    base["size"].as_u64().unwrap(),
                    text(base, "display_name"),
                    time("created_at").unwrap(),
                )
            };
            assert_same(volume.to_text().as_bytes(), genuine.as_bytes(), &path);
            equal += 1;
        }
        assert!(equal >= 40, "{equal}");
    }

    #[test]
    fn names_are_those_of_genuine_backups() {
        let mut equal = 0;
        for (path, bytes) in genuine(METADATA_SUFFIX) {
            let document: Value = serde_json::from_slice(&bytes).unwrap();
            let file = path.file_name().unwrap().to_str().unwrap();
            if file == "backup_metadata" {
                continue;
            }
            let id = BackupId::parse(document["backup_id"].as_str().unwrap()).unwrap();
            let volume = VolumeId::parse(document["volume_id"].as_str().unwrap()).unwrap();
            let time: jiff::Timestamp = document["created_at"].as_str().unwrap().parse().unwrap();
            assert_eq!(created_at_text(time), document["created_at"].as_str().unwrap());
            let prefix = object_prefix(&volume, time, &id);
            assert_eq!(metadata_name(&prefix), file);
            assert!(path.with_file_name(sha256file_name(&prefix)).exists());
            for (i, entry) in document["objects"].as_array().unwrap().iter().enumerate() {
                let name = entry.as_object().unwrap().keys().next().unwrap();
                assert_eq!(*name, object_name(&prefix, i as u64 + 1));
            }
            let folder = path.parent().unwrap();
            if !folder.ends_with("team/one") {
                assert!(folder.ends_with(default_container(&id).unwrap().as_path()), "{folder:?}");
            }
            equal += 1;
        }
        assert!(equal > 200, "{equal}");
        assert_eq!(object_name("p", 99_999), "p-99999");
        assert_eq!(object_name("p", 100_000), "p-100000");
        for bad in ["ab", "ab..cd", "a"] {
            let error = default_container(&BackupId::parse(bad).unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsafeName, "{bad}");
        }
        assert_eq!(default_container(&BackupId::parse("abc").unwrap()).unwrap().as_str(), "ab/c/abc");
    }

    #[test]
    fn microseconds_appear_only_if_there_are_any() {
        let text = |time: &str| created_at_text(time.parse().unwrap());
        assert_eq!(text("2024-03-02T14:01:07Z"), "2024-03-02 14:01:07+00:00");
        assert_eq!(text("2024-03-02T14:01:07.000000900Z"), "2024-03-02 14:01:07+00:00");
        assert_eq!(text("2024-03-02T14:01:07.000120Z"), "2024-03-02 14:01:07.000120+00:00");
        assert_eq!(text("1969-12-31T23:59:59.5Z"), "1969-12-31 23:59:59.500000+00:00");
    }

    #[test]
    fn keys_of_our_own_stand_where_python_sorts_them() {
        let head = MetadataHead::default();
        let mut out = Vec::new();
        let mut writer = MetadataWriter::begin(&head, &mut out);
        let extra = [
            ("restart_points", serde_json::json!([[0, 2], [], {"b": null, "a": {}, "\u{e9}": true}])),
            ("cinderfs", serde_json::json!(u64::MAX)),
            ("A", serde_json::json!(-1)),
            ("\u{1f600}", serde_json::json!("\u{7f}\u{1f600}\u{0}\"\\/\r\n\t\u{8}\u{c}~")),
        ];
        let object = NewObject {
            name: "o-00001",
            compression: "zlib",
            offset: 5,
            len_bytes: 7,
            md5: Md5([0xab; 16]),
            extra: &extra,
        };
        writer.object(&object, &mut out).unwrap();
        let before = out.clone();
        for bad in [
            vec![("md5", Value::Null)],
            vec![("x", Value::Null), ("y", Value::Null), ("x", Value::Null)],
            vec![("x", serde_json::json!([1, 1.5]))],
            vec![("x", (0..40).fold(Value::Null, |inner, _| Value::Array(vec![inner])))],
        ] {
            let object = NewObject { extra: &bad, ..object };
            assert_eq!(writer.object(&object, &mut out).unwrap_err().kind(), ErrorKind::Usage);
            assert_eq!(out, before);
        }
        writer.finish(&mut out);
        // Printed by Python's `json.dumps(…, sort_keys=True, indent=2)`.
        let python = r#"{
  "backup_description": null,
  "backup_id": "",
  "backup_name": null,
  "created_at": "",
  "objects": [
    {
      "o-00001": {
        "A": -1,
        "cinderfs": 18446744073709551615,
        "compression": "zlib",
        "length": 7,
        "md5": "abababababababababababababababab",
        "offset": 5,
        "restart_points": [
          [
            0,
            2
          ],
          [],
          {
            "a": {},
            "b": null,
            "\u00e9": true
          }
        ],
        "\ud83d\ude00": "\u007f\ud83d\ude00\u0000\"\\/\r\n\t\b\f~"
      }
    }
  ],
  "parent_id": null,
  "version": "1.0.0",
  "volume_id": "",
  "volume_meta": null
}"#;
        assert_eq!(String::from_utf8(out).unwrap(), python);
    }

    #[test]
    fn documents_without_objects_or_digests_are_lists_without_a_line() {
        let head = MetadataHead::default();
        let mut out = Vec::new();
        MetadataWriter::begin(&head, &mut out).finish(&mut out);
        assert!(String::from_utf8(out).unwrap().contains("\n  \"objects\": [],\n  \"parent_id\": null,\n"));
        let layout = Sha256FileLayout::new(&Sha256FileHead::default(), 0).unwrap();
        let out = [layout.header(), layout.trailer()].concat();
        assert_eq!(out.len() as u64, layout.file_bytes());
        assert!(
            String::from_utf8(out).unwrap().contains("\n  \"sha256s\": [],\n  \"version\": \"1.0.0\",\n")
        );
        let error = Sha256FileLayout::new(&Sha256FileHead::default(), u64::MAX / 70).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn properties_stand_in_volume_metadata() {
        let id = VolumeId::parse("v").unwrap();
        let mut volume = VolumeMeta::new(&id, 3, None, jiff::Timestamp::UNIX_EPOCH);
        volume.properties = vec![("z".into(), "\u{e4}".into()), ("a".into(), String::new())];
        let text = volume.to_text();
        assert!(text.ends_with("}, \"volume-metadata\": {\"z\": \"\\u00e4\", \"a\": \"\"}}"), "{text}");
        serde_json::from_str::<Value>(&text).unwrap();
    }
}
