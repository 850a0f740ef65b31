//! Do records of backups in object stores name the container or bucket, and the driver, that Cinder finds them by?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/whole.rs"]
mod whole;

use cinderfs::writer::records::Record;
use serde_json::{Value, json};
use whole::{VOLUME, World, spanning};

const SWIFT: &str = "cinder.backup.drivers.swift.SwiftBackupDriver";
const S3: &str = "cinder.backup.drivers.s3.S3BackupDriver";

/// What `record export` prints of one backup: the service, and the record's columns.
#[track_caller]
fn exported(world: &World, store: &str, words: &[&str]) -> (String, Value) {
    let (text, _) = world.run(&[&["record", "export", store, "-f", "json"], words].concat(), 0);
    let row: Value = serde_json::from_str(&text).unwrap();
    let record = Record::decode(row["backup_url"].as_str().unwrap()).unwrap();
    (row["backup_service"].as_str().unwrap().to_owned(), Value::Object(record.fields().clone()))
}

fn url(fields: &Value) -> String {
    // As Python's `base64` does it.
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = fields.to_string();
    let digits = |piece: &[u8]| {
        let number =
            (0..3).fold(0, |number, at| number << 8 | u32::from(piece.get(at).copied().unwrap_or(0)));
        let digit = |at: usize| {
            if at <= piece.len() { DIGITS[(number >> (18 - 6 * at) & 63) as usize] as char } else { '=' }
        };
        (0..4).map(digit).collect::<String>()
    };
    text.as_bytes().chunks(3).map(digits).collect()
}

// > The records of backups in an object store name its container or bucket, and unless told the class of the store's own driver.
#[test]
fn records_name_the_container_and_the_driver() {
    let (world, [base, child]) = spanning(true);
    let conf = format!("[DEFAULT]\nbackup_driver = {SWIFT}\nbackup_swift_container = c1\n");
    let swift_conf = world.file("swift.conf", conf.as_bytes());
    let conf = format!(
        "[DEFAULT]\nbackup_driver = {S3}\nbackup_s3_endpoint_url = {}\n\
         backup_s3_store_bucket = c1\nbackup_s3_store_access_key = a\nbackup_s3_store_secret_key = s\n",
        world.base
    );
    let s3_conf = world.file("s3.conf", conf.as_bytes());
    for (store, service) in [
        (world.word(true, "c1"), SWIFT),
        (world.word(true, ""), SWIFT),
        (swift_conf, SWIFT),
        (world.word(false, "c1"), S3),
        (world.word(false, ""), S3),
        (s3_conf, S3),
    ] {
        let (told, fields) = exported(&world, &store, &[&base]);
        assert_eq!((&*told, &fields["service"]), (service, &json!(service)), "{store}");
        let document = world.server.names("c1", "_metadata").remove(0);
        let (prefix, time) = (document.strip_suffix("_metadata").unwrap(), &fields["created_at"]);
        let children = u64::from(store == world.word(true, "") || store == world.word(false, ""));
        let expected = json!({
            "container": "c1", "created_at": time, "data_timestamp": time, "display_description": null,
            "display_name": "base", "driver_info": {}, "id": base, "num_dependent_backups": children,
            "object_count": 1, "parent_id": null, "service": service, "service_metadata": prefix, "size": 1,
            "status": "available", "volume_id": VOLUME,
        });
        assert_eq!(fields, expected, "{store}");
        let (lines, _) = world.run(&["record", "export", &store, &base, "--command"], 0);
        assert!(lines.starts_with(&format!("cinder backup-import {service} ")), "{lines}");
        let (told, _) = exported(&world, &store, &[&base, "--driver", "my.own.Driver"]);
        assert_eq!(told, "my.own.Driver");

        // The right record fits, and one for a container called "." does not.
        let (said, _) = world.run(&["record", "import", &store, &url(&fields), "-f", "json"], 0);
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["agrees"], true);
        for wrong in [".", "c2", "c1/12"] {
            let mut fields = fields.clone();
            fields["container"] = wrong.into();
            let (said, _) = world.run(&["record", "import", &store, &url(&fields), "-f", "json"], 3);
            assert!(said.contains("Cinder would not find it there"), "{wrong}: {said}");
        }
    }
    // What builds on a backup of another container has a record there where both are seen.
    let whole = world.word(true, "");
    assert_eq!(exported(&world, &whole, &[&child]).1["container"], "c2");
    world.run(&["record", "export", "swift:c2", &child], 1);
}
