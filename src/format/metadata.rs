//! `<prefix>_metadata`: what a backup is.
//!
//! ```text
//! {
//!   "backup_description": null,             string or null
//!   "backup_id": "4bae1e8d-…",
//!   "backup_name": null,                    string or null
//!   "created_at": "2024-03-02 14:01:07+00:00",   str(datetime): microseconds if the database kept them; or "None"
//!   "objects": [                            [] for an incremental without change
//!     { "<prefix>-00001": {                 exactly one key
//!         "compression": "zlib",
//!         "length": 67108864,               *plain* bytes; the stored length is written nowhere
//!         "cinderfs_restart_points": "…",   ours, see `points`; Cinder has none
//!         "md5": "e033a5a1…",               of the plain bytes
//!         "offset": 0 } } ],                where in the volume
//!   "parent_id": null,                      null: a full backup
//!   "version": "1.0.0",
//!   "volume_id": "184d9841-…",
//!   "volume_meta": "{…}"                    JSON in a string, null or absent
//! }
//! ```
//!
//! Keys other than these are ignored, as Cinder ignores them. An incremental can list 100,000 objects, and a catalog
//! only wants to know how many; so objects go to a sink as they are parsed and nobody holds the document whole.

use std::fmt;
use std::io::{self, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json::{Guard, parse_error};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Md5;

/// Longest document accepted, in bytes. An object takes about 250 bytes, so this is some two million objects: a volume
/// of 64 GiB of which every second 32 KiB block changed.
pub const METADATA_BYTES_MAX: u64 = 512 << 20;

/// Most objects accepted in one backup. Each costs some 60 bytes of memory while the backup is open.
pub const OBJECTS_MAX: u64 = 2_000_000;

/// Longest compressed object accepted, in plain bytes. Cinder holds an object in memory several times over when it restores,
/// and makes them 2 GB by default; we decode up to this much to reach an object's end.
pub const PLAIN_BYTES_MAX: u64 = 64 << 30;

/// Largest volume offset accepted: what Linux can seek to.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// Longest name or description kept, in bytes. Cinder's are of at most 255 characters; a catalog keeps those of every
/// backup, so a hostile one of megabytes is cut.
const TEXT_BYTES_MAX: usize = 4096;

/// Longest object name looked at, in bytes: the bound of [`crate::types::ObjectName`] and some room for what a copied
/// bucket has before it.
const NAME_BYTES_MAX: usize = 8192;

/// Longest text of one object's restart points that is looked at, in bytes: half a million points, of 64 GiB every 128 KiB.
pub const POINTS_TEXT_BYTES_MAX: usize = 4 << 20;

/// The only version of the document there is.
const VERSION: &str = "1.0.0";

/// A `_metadata` document without its objects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BackupMetadata {
    /// The backup's id, unchecked.
    pub backup_id: String,
    /// The volume's id, unchecked.
    pub volume_id: String,
    /// The parent's id, unchecked; `None` for a full backup.
    pub parent_id: Option<String>,
    /// The name that the user gave.
    pub name: Option<String>,
    /// The description that the user gave.
    pub description: Option<String>,
    /// When the backup was made; `None` where Cinder wrote `None`, or what is no time.
    pub created_at: Option<jiff::Timestamp>,
    /// What `volume_meta` tells.
    pub volume: VolumeMetadata,
}

/// The part of `volume_meta` that we show.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VolumeMetadata {
    /// The volume's name.
    pub display_name: Option<String>,
    /// The volume's size in GiB. Only an upper bound for the backup: Cinder reads to the end of what it is given.
    pub size_gib: Option<u64>,
}

/// One data object, as the metadata claims it. Nothing but the block digests proves any of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectRecord {
    /// The object's name, relative to the container, unchecked.
    pub name: String,
    /// How it is compressed.
    pub codec: Codec,
    /// Where in the volume its plain bytes belong, in bytes.
    pub offset: u64,
    /// Plain length in bytes; `offset + len_bytes` does not overflow [`OFFSET_MAX`].
    pub len_bytes: u64,
    /// Of the plain bytes; genuine Cinder always writes it and never checks it.
    pub md5: Option<Md5>,
    /// Where a reader may begin in it, as [`points`](super::points) writes it, unchecked; at most [`POINTS_TEXT_BYTES_MAX`] long.
    pub points: Option<String>,
}

/// Reads a document, giving each object to `on_object` in order. An error of `on_object` ends the parse.
pub fn parse(
    reader: impl Read,
    on_object: &mut dyn FnMut(ObjectRecord) -> Result<()>,
) -> Result<BackupMetadata> {
    let guard = Guard::new(reader, METADATA_BYTES_MAX);
    let mut deserializer =
        serde_json::Deserializer::from_reader(io::BufReader::with_capacity(64 << 10, guard));
    let mut failure = None;
    let seed = Document { on_object, failure: &mut failure };
    let parsed = seed.deserialize(&mut deserializer).and_then(|metadata| {
        deserializer.end()?;
        Ok(metadata)
    });
    match (failure, parsed) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(parse_error(error)),
        (None, Ok(metadata)) => Ok(metadata),
    }
}

/// The text of `volume_meta` as it stands in a document; `None` for null, for none, and for what is no text, which Cinder
/// cannot restore. The rest of the document is not looked at: [`parse`] does that.
pub fn volume_meta_text(reader: impl Read) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Outer {
        volume_meta: Option<Shown>,
    }
    let guard = Guard::new(reader, METADATA_BYTES_MAX);
    let reader = io::BufReader::with_capacity(64 << 10, guard);
    let outer: Outer = serde_json::from_reader(reader).map_err(parse_error)?;
    Ok(outer.volume_meta.and_then(|Shown(text)| text))
}

/// `str(datetime)` of Python, always UTC: with or without microseconds, with or without an offset. A backup is not given
/// up for a time that cannot be read.
fn created_at(text: &str) -> Option<jiff::Timestamp> {
    if let Ok(timestamp) = text.parse() {
        return Some(timestamp);
    }
    let naive: jiff::civil::DateTime = text.parse().ok()?;
    Some(naive.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// Reads the JSON in `volume_meta`. It is for show only, so what cannot be read is left out.
fn volume_metadata(text: &str) -> VolumeMetadata {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(rename = "volume-base-metadata")]
        base: Option<Base>,
    }
    #[derive(Deserialize)]
    struct Base {
        display_name: Option<String>,
        size: Option<u64>,
    }
    let base = serde_json::from_str::<Outer>(text).ok().and_then(|outer| outer.base);
    base.map_or_else(VolumeMetadata::default, |base| VolumeMetadata {
        display_name: cut(base.display_name),
        size_gib: base.size,
    })
}

/// A text that the backup does not depend on: a value of another type is as good as none, and is not kept.
#[derive(Default)]
struct Shown(Option<String>);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Shown;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Shown, E> {
                Ok(Shown(Some(text.to_owned())))
            }

            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Shown, E> {
                Ok(Shown(Some(text)))
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Shown, M::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Shown(None))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Shown, S::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Shown(None))
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Shown, E> {
                Ok(Shown(None))
            }

            fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Shown, E> {
                Ok(Shown(None))
            }

            fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Shown, E> {
                Ok(Shown(None))
            }

            fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Shown, E> {
                Ok(Shown(None))
            }

            fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Shown, E> {
                Ok(Shown(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// What is for show only, cut to what may be kept.
fn cut(text: Option<String>) -> Option<String> {
    text.map(|text| match text.len() {
        0..=TEXT_BYTES_MAX => text,
        _ => {
            let end = (0..=TEXT_BYTES_MAX).rev().find(|&end| text.is_char_boundary(end));
            text[..end.unwrap_or(0)].to_owned()
        }
    })
}

struct Document<'a> {
    on_object: &'a mut dyn FnMut(ObjectRecord) -> Result<()>,
    failure: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = BackupMetadata;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = BackupMetadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup's metadata")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<BackupMetadata, M::Error> {
        let mut metadata = BackupMetadata::default();
        let (mut backup_id, mut volume_id, mut version, mut has_objects) =
            (None, None, None::<String>, false);
        let mut stop = |error: Error| {
            let message = M::Error::custom(&error);
            *self.failure = Some(error);
            message
        };
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "backup_id" => backup_id = Some(map.next_value()?),
                "volume_id" => volume_id = Some(map.next_value()?),
                "parent_id" => metadata.parent_id = map.next_value()?,
                "backup_name" => metadata.name = cut(map.next_value()?),
                "backup_description" => metadata.description = cut(map.next_value()?),
                "created_at" => {
                    let Shown(text) = map.next_value()?;
                    metadata.created_at = text.as_deref().and_then(created_at);
                }
                "version" => version = Some(map.next_value()?),
                "volume_meta" => {
                    let Shown(text) = map.next_value()?;
                    metadata.volume = text.as_deref().map(volume_metadata).unwrap_or_default();
                }
                "objects" if has_objects => return Err(M::Error::custom("the key \"objects\" stands twice")),
                "objects" => {
                    has_objects = true;
                    map.next_value_seed(Objects { on_object: &mut *self.on_object, stop: &mut stop })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match version.as_deref() {
            Some(VERSION) => {}
            Some(other) => {
                let shown: String = other.chars().take(32).collect();
                let message = format!("metadata version {shown:?} is not known, expected {VERSION:?}");
                return Err(stop(Error::new(ErrorKind::Unsupported, message)));
            }
            None => return Err(M::Error::missing_field("version")),
        }
        if !has_objects {
            return Err(M::Error::missing_field("objects"));
        }
        metadata.backup_id = backup_id.ok_or_else(|| M::Error::missing_field("backup_id"))?;
        metadata.volume_id = volume_id.ok_or_else(|| M::Error::missing_field("volume_id"))?;
        Ok(metadata)
    }
}

struct Objects<'a, F> {
    on_object: &'a mut dyn FnMut(ObjectRecord) -> Result<()>,
    stop: &'a mut F,
}

impl<'de, F: FnMut(Error) -> E, E: serde::de::Error> DeserializeSeed<'de> for Objects<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Error) -> E, E: serde::de::Error> Visitor<'de> for Objects<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut entries: S) -> Result<(), S::Error> {
        let mut count = 0;
        while let Some(ObjectEntry(name, value)) = entries.next_element()? {
            count += 1;
            let record = if count > OBJECTS_MAX {
                let message = format!("the backup lists more than {OBJECTS_MAX} objects");
                Err(Error::new(ErrorKind::LimitExceeded, message))
            } else {
                record(name, value)
            };
            if let Err(error) = record.and_then(&mut *self.on_object) {
                let message = S::Error::custom(&error);
                (self.stop)(error);
                return Err(message);
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct ObjectValue {
    compression: String,
    length: u64,
    offset: u64,
    md5: Option<String>,
    #[serde(default, rename = "cinderfs_restart_points")]
    points: Shown,
}

/// A map of exactly one key, the object's name.
struct ObjectEntry(String, ObjectValue);

impl<'de> Deserialize<'de> for ObjectEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = ObjectEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object's name and its value")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<ObjectEntry, M::Error> {
                let (name, value) =
                    map.next_entry()?.ok_or_else(|| M::Error::custom("an object without a name"))?;
                match map.next_key::<String>()? {
                    None => Ok(ObjectEntry(name, value)),
                    Some(_) => Err(M::Error::custom("an entry of `objects` names two objects")),
                }
            }
        }
        deserializer.deserialize_map(One)
    }
}

fn record(name: String, value: ObjectValue) -> Result<ObjectRecord> {
    let refuse = |kind, why: String| {
        let shown: String = name.chars().take(128).collect();
        Err(Error::new(kind, format!("object {shown:?}: {why}")))
    };
    if name.len() > NAME_BYTES_MAX {
        return refuse(
            ErrorKind::UnsafeName,
            format!("a name of {} bytes is longer than any path", name.len()),
        );
    }
    let Some(codec) = Codec::from_name(&value.compression) else {
        let shown: String = value.compression.chars().take(32).collect();
        let why = format!("compression {shown:?} is not known, expected none, zlib, bz2 or zstd");
        return refuse(ErrorKind::Unsupported, why);
    };
    if value.offset.checked_add(value.length).is_none_or(|end| end > OFFSET_MAX) {
        let why = format!("offset {} and length {} lie beyond any volume", value.offset, value.length);
        return refuse(ErrorKind::Malformed, why);
    }
    if codec != Codec::None && value.length > PLAIN_BYTES_MAX {
        let why = format!(
            "length {} is more than the {PLAIN_BYTES_MAX} accepted of a compressed object",
            value.length
        );
        return refuse(ErrorKind::LimitExceeded, why);
    }
    // A torn or foreign md5 proves nothing; where it is needed, its absence is an error with a name.
    let md5 = value.md5.as_deref().and_then(|digits| Md5::from_hex(digits.as_bytes()));
    // A longer one is as good as none: reads take longer then.
    let points = value.points.0.filter(|text| text.len() <= POINTS_TEXT_BYTES_MAX);
    Ok(ObjectRecord { name, codec, offset: value.offset, len_bytes: value.length, md5, points })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects_of(text: &str) -> Result<(BackupMetadata, Vec<ObjectRecord>)> {
        let mut objects = Vec::new();
        let metadata = parse(text.as_bytes(), &mut |object| {
            objects.push(object);
            Ok(())
        })?;
        Ok((metadata, objects))
    }

    const GENUINE: &str = r#"{
  "backup_description": null,
  "backup_id": "b",
  "backup_name": "n\ud83d\ude00\"",
  "created_at": "2024-01-02 03:04:05.000006+00:00",
  "objects": [
    {
      "p-00001": {
        "compression": "ZLIB",
        "length": 10,
        "md5": "00112233445566778899aabbccddeeff",
        "offset": 20
      }
    }
  ],
  "parent_id": null,
  "version": "1.0.0",
  "volume_id": "v",
  "volume_meta": "{\"version\": 2, \"volume-base-metadata\": {\"size\": 3, \"display_name\": \"d\"}}"
}"#;

    #[test]
    fn reads_what_cinder_writes() {
        for text in [GENUINE.to_string(), GENUINE.replace(",\n", ", \n"), GENUINE.replace('\n', "") + "\n"] {
            let (metadata, objects) = objects_of(&text).unwrap();
            assert_eq!(metadata.name.as_deref(), Some("n😀\""));
            assert_eq!(metadata.created_at.unwrap().to_string(), "2024-01-02T03:04:05.000006Z");
            assert_eq!(metadata.volume, VolumeMetadata { display_name: Some("d".into()), size_gib: Some(3) });
            assert_eq!(objects.len(), 1);
            assert_eq!((objects[0].codec, objects[0].offset, objects[0].len_bytes), (Codec::Zlib, 20, 10));
        }
    }

    #[test]
    fn absent_null_and_none_are_fine() {
        let text = r#"{"backup_id":"b","created_at":"None","objects":[],"version":"1.0.0","volume_id":"v","extra":[{}]}"#;
        let (metadata, objects) = objects_of(text).unwrap();
        assert_eq!((metadata.created_at, metadata.parent_id, objects.len()), (None, None, 0));
        for time in ["2024-01-02 03:04:05", "2024-01-02 03:04:05+00:00", "2024-01-02T03:04:05Z"] {
            assert_eq!(created_at(time).unwrap().to_string(), "2024-01-02T03:04:05Z");
        }
        for none in ["", "None", "last tuesday", "20r4-01-02 03:04:05"] {
            assert_eq!(created_at(none), None);
        }
        for meta in [
            "null",
            "{\"version\": [2]}",
            "[1]",
            "true",
            "-1",
            "0.5",
            "\"\"",
            "\"not json\"",
            "\"{\\\"version\\\": 2}\"",
            "\"{\\\"volume-base-metadata\\\": null}\"",
        ] {
            let with = text.replace("\"version\"", &format!("\"volume_meta\":{meta},\"version\""));
            assert_eq!(objects_of(&with).unwrap().0.volume, VolumeMetadata::default(), "{meta}");
        }
    }

    #[test]
    fn texts_of_megabytes_are_cut_and_names_of_them_refused() {
        let long = "ü".repeat(1 << 20);
        let text = GENUINE.replace("\"backup_name\": \"n", &format!("\"backup_name\": \"{long}"));
        let name = objects_of(&text).unwrap().0.name.unwrap();
        assert!(name.len() <= TEXT_BYTES_MAX && name.starts_with("üü"));
        let error = objects_of(&GENUINE.replace("p-00001", &long)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafeName, "{error}");
    }

    #[test]
    fn each_refusal_has_its_kind_and_its_words() {
        let cases = [
            ("1.0.0", "2.0.0", ErrorKind::Unsupported, "version \"2.0.0\""),
            ("ZLIB", "lz4", ErrorKind::Unsupported, "compression \"lz4\""),
            ("\"offset\": 20", "\"offset\": -1", ErrorKind::Malformed, "-1"),
            ("\"offset\": 20", "\"offset\": 9223372036854775800", ErrorKind::Malformed, "beyond any volume"),
            ("\"length\": 10", "\"length\": 18446744073709551615", ErrorKind::Malformed, "beyond any volume"),
            ("\"length\": 10", "\"length\": 1e400", ErrorKind::Malformed, "number out of range"),
            ("\"length\": 10,", "", ErrorKind::Malformed, "length"),
            ("\"backup_id\"", "\"backup_ix\"", ErrorKind::Malformed, "backup_id"),
            ("  \"parent_id\"", "  \"objects\": [], \"parent_id\"", ErrorKind::Malformed, "twice"),
            ("    }\n  ]", "    , \"q\": 1}\n  ]", ErrorKind::Malformed, "two objects"),
        ];
        for (from, to, kind, words) in cases {
            assert!(GENUINE.contains(from), "{from}");
            let error = objects_of(&GENUINE.replace(from, to)).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error} should tell {words}");
        }
        for cut in 0..GENUINE.len() {
            if GENUINE.is_char_boundary(cut) {
                assert_eq!(objects_of(&GENUINE[..cut]).unwrap_err().kind(), ErrorKind::Malformed, "{cut}");
            }
        }
        assert!(objects_of(&format!("{GENUINE} x")).is_err());
        assert!(objects_of(&format!("\u{feff}{GENUINE}")).is_err());
    }

    #[test]
    fn the_sinks_error_comes_out_as_it_is() {
        let error =
            parse(GENUINE.as_bytes(), &mut |_| Err(Error::new(ErrorKind::UnsafeName, "no"))).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::UnsafeName, "no"));
    }
}
