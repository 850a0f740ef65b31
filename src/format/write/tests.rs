//! Is what we write what Cinder writes?

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
        let digests: Vec<_> =
            digests.map(|digest| BlockHash::from_hex(digest.as_str().unwrap().as_bytes()).unwrap()).collect();
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
        let time =
            |key: &str| text(base, key).map(|text| format!("{text}Z").parse::<jiff::Timestamp>().unwrap());
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
    assert!(String::from_utf8(out).unwrap().contains("\n  \"sha256s\": [],\n  \"version\": \"1.0.0\",\n"));
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
