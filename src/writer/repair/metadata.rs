//! Restart points in a `_metadata` document, told anew.
//!
//! An object that is compressed again has its restart points elsewhere. The document is not written anew for that: whatever else it says,
//! in whatever layout, stays to the byte. Pure.

use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::{self, ObjectRecord};
use crate::format::points::RESTART_POINTS_KEY;

/// `document` with the restart points of the object `name` (as the document calls it) replaced, or taken out with `None`. `Ok(None)`
/// where it tells none or the same ones. [`ErrorKind::Unsupported`] where they stand in a way that this does not understand.
pub(super) fn with_points(document: &[u8], name: &str, points: Option<&str>) -> Result<Option<Vec<u8>>> {
    let old = records(document)?;
    let told = old.iter().find(|record| record.name == name).and_then(|record| record.points.as_deref());
    if told == points || told.is_none() {
        return Ok(None);
    }
    let odd = || {
        let message = format!("the metadata tells restart points of {name:?} in an unknown layout");
        Error::new(ErrorKind::Unsupported, message)
    };
    let new = edited(document, name, points).ok_or_else(odd)?;
    // The judge of an edit of text is whoever reads the text.
    let mut expected = old;
    for record in expected.iter_mut().filter(|record| record.name == name) {
        record.points = points.map(str::to_owned);
    }
    if records(&new)? != expected { Err(odd()) } else { Ok(Some(new)) }
}

fn records(document: &[u8]) -> Result<Vec<ObjectRecord>> {
    let mut records = Vec::new();
    metadata::parse(document, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}

fn edited(document: &[u8], name: &str, points: Option<&str>) -> Option<Vec<u8>> {
    let entry_at = find(document, format!("\"{name}\"").as_bytes())?;
    let entry = &document[entry_at..];
    let entry = &entry[..find(entry, b"}")?];
    let key = format!("\"{RESTART_POINTS_KEY}\"");
    let key_at = find(entry, key.as_bytes())?;
    let value = key_at + key.len();
    let open = value + find(&entry[value..], b"\"")? + 1;
    let close = open + find(&entry[open..], b"\"")?;
    let (from, to, with) = match points {
        Some(points) => (open, close, points),
        None => {
            let comma = close + 1 + find(&entry[close + 1..], b",")? + 1;
            let next = comma + find(&entry[comma..], b"\"")?;
            (key_at, next, "")
        }
    };
    let mut new = document[..entry_at + from].to_vec();
    new.extend_from_slice(with.as_bytes());
    new.extend_from_slice(&document[entry_at + to..]);
    Some(new)
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{
  "backup_description": null,
  "backup_id": "b",
  "backup_name": "odd \"p-00001\" name",
  "created_at": "2024-03-01 01:01:07+00:00",
  "objects": [
    {
      "p-00001": {
        "cinderfs_restart_points": "4:9x2",
        "compression": "zlib",
        "length": 10,
        "md5": "0cc175b9c0f1b6a831c399e269772661",
        "offset": 0
      }
    },
    {
      "p-00002": {"cinderfs_restart_points": "4:9x2", "compression": "zlib", "length": 10, "md5": "0cc175b9c0f1b6a831c399e269772661", "offset": 10}
    }
  ],
  "parent_id": null,
  "version": "1.0.0",
  "volume_id": "v",
  "volume_meta": null
}"#;

    fn edit(name: &str, points: Option<&str>) -> Option<String> {
        let new = with_points(DOCUMENT.as_bytes(), name, points).unwrap();
        new.map(|new| String::from_utf8(new).unwrap())
    }

    #[test]
    fn only_the_points_of_that_object_change() {
        let (head, tail) = DOCUMENT.rsplit_once("4:9x2").unwrap();
        assert_eq!(edit("p-00002", Some("1:1")).unwrap(), format!("{head}1:1{tail}"));
        let gone = DOCUMENT.replacen("\"cinderfs_restart_points\": \"4:9x2\",\n        ", "", 1);
        assert_eq!(edit("p-00001", None).unwrap(), gone);
        assert_eq!(edit("p-00001", Some("4:9x2")), None);
        assert_eq!(edit("p-00003", Some("4:9x2")), None);
    }
}
