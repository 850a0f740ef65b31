//! Writes stores in Cinder's format, for tests.
//!
//! Problem: a test that writes with the code that it tests cannot find a mistake that both share. Idea: this writer knows
//! nothing of `cinderfs` but the store it fills; the documents are plain text, put together as Cinder and Python's `json`
//! put them together, in each of the layouts that are in the wild.
//!
//! A [`BackupSpec`] says what a backup holds; [`BackupSpec::files`] are the store's objects, the metadata last, as Cinder
//! writes them.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]

use std::fs;
use std::io::Write as _;
use std::path::Path;

use cinderfs::store::memory::MemoryStore;
use cinderfs::types::ObjectName;
use md5::Md5;
use sha2::{Digest, Sha256};

/// One backup, as its metadata tells it.
#[derive(Clone, Debug)]
pub(crate) struct BackupSpec {
    pub(crate) id: String,
    pub(crate) volume_id: String,
    pub(crate) parent_id: Option<String>,
    pub(crate) name: Option<String>,
    /// As `str(datetime)`: `2024-01-02 03:04:05+00:00`.
    pub(crate) created_at: String,
    pub(crate) naming: Naming,
    pub(crate) json: Json,
    pub(crate) objects: Vec<ObjectSpec>,
    /// Block length in bytes and the digest of each block; `None` leaves the digest file out.
    pub(crate) digests: Option<(usize, Vec<[u8; 32]>)>,
}

/// One data object.
#[derive(Clone, Debug)]
pub(crate) struct ObjectSpec {
    pub(crate) offset: usize,
    pub(crate) plain: Vec<u8>,
    pub(crate) packing: Packing,
}

/// How the store's objects are called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Naming {
    /// Since Cinder 10.0.3, a container for each backup.
    New,
    /// Cinder up to 10.0.2, a container for each backup.
    Old,
    /// Since Cinder 10.0.3, in a nested container with a name, which holds many backups.
    Named,
    /// A bucket of Swift or S3 that was copied to a disk.
    Bucket,
}

/// How the documents are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Json {
    Python3,
    /// With a space after each comma.
    Python2,
    /// In one line: other writers'.
    Compact,
}

/// How an object is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Packing {
    /// Not at all; the word in the metadata.
    Plain(&'static str),
    Zlib {
        level: u32,
        junk: usize,
    },
    Bz2 {
        level: u32,
        streams: usize,
    },
    Zstd {
        level: i32,
        frames: usize,
    },
}

impl Packing {
    fn word(self) -> &'static str {
        match self {
            Self::Plain(word) => word,
            Self::Zlib { level, .. } => ["zlib", "gzip", "ZLIB"][level as usize % 3],
            Self::Bz2 { level, .. } => ["bz2", "bzip2"][level as usize % 2],
            Self::Zstd { .. } => "zstd",
        }
    }

    /// The bytes that the store holds.
    pub(crate) fn pack(self, plain: &[u8]) -> Vec<u8> {
        let parts = |n: usize| plain.chunks(plain.len().div_ceil(n.max(1)).max(1));
        match self {
            Self::Plain(_) => plain.to_vec(),
            Self::Zlib { level, junk } => {
                let mut encoder =
                    flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
                encoder.write_all(plain).unwrap();
                let mut packed = encoder.finish().unwrap();
                packed.resize(packed.len() + junk, 0xA5);
                packed
            }
            Self::Bz2 { level, streams } => {
                let one = |part: &[u8]| {
                    let level = bzip2::Compression::new(level);
                    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), level);
                    encoder.write_all(part).unwrap();
                    encoder.finish().unwrap()
                };
                if plain.is_empty() { one(plain) } else { parts(streams).flat_map(one).collect() }
            }
            Self::Zstd { level, frames } => {
                let one = |part: &[u8]| zstd::bulk::compress(part, level).unwrap();
                if plain.is_empty() { one(plain) } else { parts(frames).flat_map(one).collect() }
            }
        }
    }
}

impl BackupSpec {
    /// A backup of defaults, to be filled in.
    pub(crate) fn new(id: &str, volume_id: &str) -> Self {
        Self {
            id: id.into(),
            volume_id: volume_id.into(),
            parent_id: None,
            name: None,
            created_at: "2024-01-02 03:04:05+00:00".into(),
            naming: Naming::New,
            json: Json::Python3,
            objects: Vec::new(),
            digests: None,
        }
    }

    /// The container, relative to the store's root.
    pub(crate) fn container(&self) -> String {
        match self.naming {
            Naming::New | Naming::Old => format!("{}/{}/{}", &self.id[..2], &self.id[2..4], self.id),
            Naming::Named => "team/one".into(),
            Naming::Bucket => "volumebackups".into(),
        }
    }

    /// Begins the name of each object, relative to the container.
    pub(crate) fn prefix(&self) -> String {
        let (id, volume_id) = (&self.id, &self.volume_id);
        let time: String = self.created_at.chars().filter(char::is_ascii_digit).take(14).collect();
        match self.naming {
            Naming::New | Naming::Named => format!("volume_{volume_id}_{time}_backup_{id}"),
            Naming::Old => "backup".into(),
            Naming::Bucket => format!("volume_{volume_id}/{time}/az_nova_backup_{id}"),
        }
    }

    /// The name of data object `index`, relative to the store's root.
    pub(crate) fn object_path(&self, index: usize) -> String {
        format!("{}/{}-{:05}", self.container(), self.prefix(), index + 1)
    }

    /// Names relative to the store's root, and bytes, in the order in which Cinder writes them.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        self.files_packed_by(|object| object.packing.pack(&object.plain))
    }

    /// The same, where all objects hold the same bytes, packed before.
    pub(crate) fn files_with(&self, stored: &[u8]) -> Vec<(String, Vec<u8>)> {
        self.files_packed_by(|_| stored.to_vec())
    }

    fn files_packed_by(&self, pack: impl Fn(&ObjectSpec) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
        let stem = format!("{}/{}", self.container(), self.prefix());
        let objects = self.objects.iter().enumerate();
        let mut files: Vec<_> = objects.map(|(i, object)| (self.object_path(i), pack(object))).collect();
        if let Some((block_bytes, digests)) = &self.digests {
            files.push((format!("{stem}_sha256file"), self.sha256file(*block_bytes, digests).into_bytes()));
        }
        files.push((format!("{stem}_metadata"), self.metadata().into_bytes()));
        files
    }

    /// Puts the backup into a store in memory.
    pub(crate) fn write_to_memory(&self, store: &MemoryStore) {
        for (name, bytes) in self.files() {
            store.insert(ObjectName::parse(&name).unwrap(), bytes);
        }
    }

    /// Puts the backup beneath a folder.
    pub(crate) fn write_to_folder(&self, root: &Path) {
        for (name, bytes) in self.files() {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    fn metadata(&self) -> String {
        let prefix = self.prefix();
        let object = |(i, object): (usize, &ObjectSpec)| {
            let value = Value::Dict(vec![
                ("compression".into(), text(object.packing.word())),
                ("length".into(), Value::Raw(object.plain.len().to_string())),
                ("md5".into(), text(&hex(&Md5::digest(&object.plain)))),
                ("offset".into(), Value::Raw(object.offset.to_string())),
            ]);
            Value::Dict(vec![(format!("{prefix}-{:05}", i + 1), value)])
        };
        let volume_meta = format!(
            "{{\"version\": 2, \"volume-base-metadata\": {{\"id\": \"{}\", \"display_name\": \"vol\"}}}}",
            self.volume_id
        );
        let document = Value::Dict(vec![
            ("backup_description".into(), Value::Raw("null".into())),
            ("backup_id".into(), text(&self.id)),
            ("backup_name".into(), optional(&self.name)),
            ("created_at".into(), text(&self.created_at)),
            ("objects".into(), Value::List(self.objects.iter().enumerate().map(object).collect())),
            ("parent_id".into(), optional(&self.parent_id)),
            ("version".into(), text("1.0.0")),
            ("volume_id".into(), text(&self.volume_id)),
            ("volume_meta".into(), text(&volume_meta)),
        ]);
        document.render(self.json)
    }

    fn sha256file(&self, block_bytes: usize, digests: &[[u8; 32]]) -> String {
        let document = Value::Dict(vec![
            ("backup_description".into(), Value::Raw("null".into())),
            ("backup_id".into(), text(&self.id)),
            ("backup_name".into(), optional(&self.name)),
            ("chunk_size".into(), Value::Raw(block_bytes.to_string())),
            ("created_at".into(), text(&self.created_at)),
            ("sha256s".into(), Value::List(digests.iter().map(|digest| text(&hex(digest))).collect())),
            ("version".into(), text("1.0.0")),
            ("volume_id".into(), text(&self.volume_id)),
        ]);
        document.render(self.json)
    }
}

/// The digest of each block; a short last block is hashed as it is.
pub(crate) fn digests_of(volume: &[u8], block_bytes: usize) -> Vec<[u8; 32]> {
    volume.chunks(block_bytes).map(|block| Sha256::digest(block).into()).collect()
}

/// What `json.dumps` was given.
enum Value {
    /// Already text.
    Raw(String),
    List(Vec<Value>),
    Dict(Vec<(String, Value)>),
}

impl Value {
    fn render(&self, json: Json) -> String {
        let mut out = String::new();
        self.render_into(json, 0, &mut out);
        out
    }

    fn render_into(&self, json: Json, depth: usize, out: &mut String) {
        let (open, close, len) = match self {
            Self::Raw(raw) => return out.push_str(raw),
            Self::List(items) => ('[', ']', items.len()),
            Self::Dict(items) => ('{', '}', items.len()),
        };
        let (comma, colon) = match json {
            Json::Python3 => (",", ": "),
            Json::Python2 => (", ", ": "),
            Json::Compact => (",", ":"),
        };
        let line = |depth: usize, out: &mut String| {
            if json != Json::Compact && len > 0 {
                out.push('\n');
                out.extend(std::iter::repeat_n("  ", depth));
            }
        };
        out.push(open);
        for i in 0..len {
            if i > 0 {
                out.push_str(comma);
            }
            line(depth + 1, out);
            match self {
                Self::Raw(_) => {}
                Self::List(items) => items[i].render_into(json, depth + 1, out),
                Self::Dict(items) => {
                    out.push_str(&quoted(&items[i].0));
                    out.push_str(colon);
                    items[i].1.render_into(json, depth + 1, out);
                }
            }
        }
        line(depth, out);
        out.push(close);
    }
}

fn text(text: &str) -> Value {
    Value::Raw(quoted(text))
}

fn optional(value: &Option<String>) -> Value {
    value.as_deref().map_or(Value::Raw("null".into()), text)
}

/// A JSON string as `ensure_ascii` writes it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for unit in text.encode_utf16() {
        match u8::try_from(unit) {
            Ok(b'"') => out.push_str("\\\""),
            Ok(b'\\') => out.push_str("\\\\"),
            Ok(byte @ 0x20..0x7f) => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\u{unit:04x}")),
        }
    }
    out.push('"');
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
