//! Do records made from the store alone say what Cinder needs, and are records compared with it rightly?
//!
//! That Cinder takes them and restores by them is shown by `scripts/genuine-cinder/records.sh`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/life_kit.rs"]
mod life_kit;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use life_kit::*;
use serde_json::{Value, json};
use store_kit::Naming;

use cinderfs::writer::records::{Exporter, POSIX_DRIVER, Record, parents_first};

fn decoded(url: &str) -> Value {
    Value::Object(Record::decode(url).unwrap().fields().clone())
}

/// Rows of `record export … -f json`.
fn rows(words: &[&str], code: i32, message: &str) -> Vec<Value> {
    let output = ends(&[&["record", "export"], words, &["-f", "json"]].concat(), code, message);
    match serde_json::from_slice(&output.stdout).unwrap() {
        Value::Array(rows) => rows,
        one => vec![one],
    }
}

/// What genuine Cinder's database held for each genuine backup is what the record says.
// > The records that `record export` makes out of the store say what Cinder's database said, parents first.
#[test]
fn records_of_genuine_backups_say_what_cinders_database_said() {
    let root = genuine::root();
    let catalog = catalog(&root);
    let snapshot = catalog.snapshot();
    let exporter = Exporter::new(&catalog, POSIX_DRIVER);
    let all = genuine::backups();
    for backup in &all {
        let entry = snapshot.get(&backup.id).unwrap();
        let record = exporter.record(entry).unwrap();
        let field = |key: &str| record.fields()[key].clone();
        assert_eq!(field("id"), backup.id.as_str());
        assert_eq!(field("parent_id"), json!(backup.parent_id), "{backup}");
        assert_eq!(field("volume_id"), backup.volume_id.as_str(), "{backup}");
        assert_eq!(field("service_metadata"), backup.prefix.as_str(), "{backup}");
        assert_eq!(field("container"), format!("{}/{}", backup.store, backup.container), "{backup}");
        assert_eq!(field("object_count"), backup.objects, "{backup}");
        assert!(field("size").as_u64().unwrap() << 30 >= backup.bytes, "{backup}");
        let children = all.iter().filter(|other| other.parent_id.as_deref() == Some(&backup.id)).count();
        assert_eq!(field("num_dependent_backups"), children as u64, "{backup}");
        let time = field("data_timestamp").as_str().unwrap().to_owned();
        assert!(time.len() == 20 && time.ends_with('Z') && time.starts_with("20"), "{backup}: {time}");
        // One record has all that Cinder asks for, null or not.
        for key in ["display_name", "display_description", "status", "created_at"] {
            assert!(record.fields().contains_key(key), "{backup}: {key}");
        }
    }
}

// > The records that `record export` makes out of the store say what Cinder's database said, parents first.
#[test]
fn parents_come_first() {
    let root = genuine::root();
    let catalog = catalog(&root);
    let entries: Vec<_> = catalog.snapshot().entries().rev().cloned().collect();
    let order = parents_first(&entries);
    assert_eq!(order.len(), genuine::BACKUPS);
    for (at, entry) in order.iter().enumerate() {
        if let Some(parent) = &entry.parent_id {
            assert!(order[..at].iter().any(|earlier| earlier.id == *parent), "{}", entry.id);
        }
    }
    // A child whose clock was behind, and circles.
    let [mut a, mut b, c, _] = family(Naming::New);
    a.spec.created_at = "2030-01-01 00:00:00+00:00".into();
    let folder = tempfile::tempdir().unwrap();
    for made in [&c, &b, &a] {
        made.put(folder.path());
    }
    let ids = |order: Vec<Value>| {
        order.iter().map(|row| decoded(row["backup_url"].as_str().unwrap())["id"].clone()).collect::<Vec<_>>()
    };
    let store = folder.path().to_str().unwrap();
    assert_eq!(ids(rows(&[store], 0, "")), ["aaaa0000-1", "bbbb0000-2", "cccc0000-3"]);
    assert_eq!(ids(rows(&[store, "cccc", "--all"], 0, "")), ["aaaa0000-1", "bbbb0000-2", "cccc0000-3"]);
    assert_eq!(ids(rows(&[store, "bbbb", "--all"], 0, "")), ["aaaa0000-1", "bbbb0000-2"]);
    b.spec.parent_id = Some("cccc0000-3".into());
    b.put(folder.path());
    assert_eq!(ids(rows(&[store], 3, "bbbb0000-2 is left out: the chain runs in a circle")), ["aaaa0000-1"]);
}

#[test]
fn one_backup_is_printed_as_the_openstack_client_does() {
    let [a, b, c, d] = &family(Naming::Named);
    let folder = tempfile::tempdir().unwrap();
    for made in [a, b, c, d] {
        made.put(folder.path());
    }
    let store = folder.path().to_str().unwrap();
    let output = ends(
        &["record", "export", store, "cccc", "-f", "json"],
        0,
        "2 backups that it builds on must be imported before it",
    );
    let one: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(one.as_object().unwrap().keys().collect::<Vec<_>>(), ["backup_service", "backup_url"]);
    assert_eq!(one["backup_service"], "cinder.backup.drivers.posix.PosixBackupDriver");
    let url = one["backup_url"].as_str().unwrap();
    assert_eq!(
        decoded(url),
        json!({
            "container": "team/one", "created_at": "2024-01-04T03:04:05Z", "data_timestamp": "2024-01-04T03:04:05Z",
            "display_description": null, "display_name": null, "driver_info": {}, "id": "cccc0000-3",
            "num_dependent_backups": 0, "object_count": 2, "parent_id": "bbbb0000-2",
            "service": "cinder.backup.drivers.posix.PosixBackupDriver",
            "service_metadata": "volume_volume-1_20240104030405_backup_cccc0000-3", "size": 1,
            "status": "available", "volume_id": "volume-1",
        })
    );
    let output = ends(&["record", "export", store, "cccc", "-f", "value"], 0, "");
    assert_eq!(stdout(&output), format!("{POSIX_DRIVER}\n{url}\n"));
    // A full backup needs nothing before it.
    let output = ends(&["record", "export", store, "aaaa", "-f", "value", "-c", "backup_url"], 0, "");
    assert_eq!(stderr(&output), "");
    assert_eq!(decoded(stdout(&output).trim())["num_dependent_backups"], 2);
    // Lines for a shell: the chain, or everything; two words each.
    let lines = |words: &[&str]| {
        let output = ends(&[&["record", "export", store, "--command"], words].concat(), 0, "");
        stdout(&output).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let chain = lines(&["cccc"]);
    assert_eq!(chain.len(), 3);
    assert_eq!(chain[2], format!("cinder backup-import {POSIX_DRIVER} {url}"));
    assert_eq!(lines(&[]).len(), 4);
    assert_eq!(lines(&["--all"]), lines(&[]));
    let quoted = lines(&["aaaa", "--driver", "my driver; rm -rf 'x'"]);
    assert!(quoted[0].starts_with("cinder backup-import 'my driver; rm -rf '\\''x'\\''' "), "{quoted:?}");
    let list = ends(&["record", "export", store, "-f", "value", "-c", "id", "-c", "parent_id"], 0, "");
    assert!(stdout(&list).starts_with("aaaa0000-1 None\nbbbb0000-2 aaaa0000-1\n"));
    ends(&["record", "export", store, "--command", "-f", "json"], 2, "cannot be used with");
    ends(&["record", "export", store, "x"], 1, "no backup in the store");
}

#[test]
fn what_cinder_could_not_restore_has_no_record() {
    let [a, b, _, _] = &family(Naming::New);
    let bucket = Made::full("eeee0000-9", "volume-9", Naming::Bucket);
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    b.put(root);
    bucket.put(root);
    let store = root.to_str().unwrap();
    ends(&["record", "export", store, "bbbb"], 1, "the parent backup aaaa0000-1 is not in the store");
    ends(&["record", "export", store, "eeee"], 1, "slashes in its objects' names");
    let left = rows(&[store], 3, "bbbb0000-2 is left out: the parent backup");
    assert_eq!(left, [] as [Value; 0]);
    let swift = rows(&[store, "eeee", "--driver", "cinder.backup.drivers.swift.SwiftBackupDriver"], 0, "");
    let record = decoded(swift[0]["backup_url"].as_str().unwrap());
    assert_eq!(record["container"], "volumebackups");
    assert_eq!(record["service_metadata"], "volume_volume-9/20240102030405/az_nova_backup_eeee0000-9");
    // The store's root inside the container, and the root as a container.
    let inside = root.join("volumebackups/volume_volume-9");
    ends(&["record", "export", inside.to_str().unwrap()], 3, "lies inside the backup's container");
    a.put(root);
    let own = root.join(a.spec.container());
    let record = rows(&[own.to_str().unwrap(), "aaaa"], 0, "");
    assert_eq!(decoded(record[0]["backup_url"].as_str().unwrap())["container"], ".");
    // A time that is not there is that of writing; ids that the database does not hold.
    let metadata = own.join(format!("{}_metadata", a.spec.prefix()));
    let text = fs::read_to_string(&metadata).unwrap();
    fs::write(&metadata, text.replace("2024-01-02 03:04:05+00:00", "None")).unwrap();
    let record = rows(&[own.to_str().unwrap(), "aaaa"], 0, "");
    let time = decoded(record[0]["backup_url"].as_str().unwrap())["data_timestamp"].clone();
    let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
    assert!((jiff::Timestamp::now().as_second() - time.as_second()).abs() < 60);
    let long = Made::full(&"f".repeat(37), "volume-9", Naming::New);
    long.put(root);
    ends(&["record", "export", store, "fff"], 1, "longer than the 36 characters");
}

#[test]
fn a_record_is_compared_with_the_store() {
    let [a, b, c, d] = &family(Naming::New);
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for made in [a, b, c, d] {
        made.put(root);
    }
    let store = root.to_str().unwrap();
    let url = rows(&[store, "cccc"], 0, "")[0]["backup_url"].as_str().unwrap().to_owned();
    let import = |record: &str, code: i32, message: &str| -> Value {
        let output = ends(&["record", "import", store, record, "-f", "json"], code, message);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    let told = import(&url, 0, "Cinder can import this record, and restore backup cccc0000-3 by it; ");
    assert_eq!(told["agrees"], true);
    assert_eq!(told["differences"], json!([]));
    assert_eq!(told["record"], decoded(&url));
    assert_eq!(told["in_store"], format!("{}/{}_metadata", c.spec.container(), c.spec.prefix()));
    let changed = |key: &str, value: Option<Value>| {
        let Value::Object(mut fields) = decoded(&url) else { unreachable!() };
        match value {
            Some(value) => _ = fields.insert(key.into(), value),
            None => _ = fields.remove(key),
        }
        encoded(Value::Object(fields).to_string().as_bytes())
    };
    let told = import(&changed("parent_id", None), 3, "the record does not fit backup cccc0000-3; ");
    assert_eq!(told["agrees"], false);
    assert_eq!(
        told["differences"],
        json!([
            "parent_id: null in the record, \"bbbb0000-2\" in the store; Cinder would take it for a full backup, and restore wrong data without an error"
        ])
    );
    // Another root of the store, another id: found by its prefix.
    assert_eq!(import(&changed("container", Some(json!("nfs/x"))), 3, "")["agrees"], false);
    assert_eq!(import(&changed("id", Some(json!("other"))), 3, "")["agrees"], false);
    assert_eq!(import(&changed("display_name", Some(json!("renamed"))), 0, "")["agrees"], true);
    let Value::Object(mut gone) = decoded(&url) else { unreachable!() };
    gone.insert("id".into(), json!("x\u{1b}[2J"));
    gone.insert("service_metadata".into(), json!("y"));
    let output = ends(
        &["record", "import", store, &encoded(Value::Object(gone).to_string().as_bytes())],
        1,
        "of the record\nhint: is it another store?",
    );
    assert!(!output.stderr.contains(&0x1b));
    // What is no record, or a backup that cannot be used.
    for (bad, message) in [
        ("x%", "not base64"),
        ("Zm9v", "holds no JSON"),
        (&encoded(b"[]"), "no JSON object"),
        ("{}", "no backup_url"),
        ("", "holds no JSON"),
    ] {
        import(bad, 1, message);
    }
    fs::remove_dir_all(root.join(b.spec.container())).unwrap();
    let told = import(&url, 3, "backup cccc0000-3 cannot be used; fail_reason tells why");
    assert!(told["fail_reason"].as_str().unwrap().contains("bbbb0000-2 is not in the store"), "{told}");

    // As words of `cinder backup-import`; a table has the record's columns in rows.
    let output = ends(&["record", "import", store, POSIX_DRIVER, &url], 3, "");
    assert!(stdout(&output).contains("| record.service_metadata "), "{}", stdout(&output));

    // What the clients print, from stdin.
    let url = rows(&[store, "dddd"], 0, "")[0]["backup_url"].as_str().unwrap().to_owned();
    for text in [
        format!("{url}\n"),
        format!("{{\"backup_service\": \"x\", \"backup_url\": \"{url}\"}}"),
        format!("cinder backup-import {POSIX_DRIVER} {url}\n"),
    ] {
        let mut child = command(&["record", "import", store, "-", "-f", "value", "-c", "agrees"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, b"True\n");
    }
    let mut child = command(&["record", "import", store, "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It stops reading what is too long.
    let _ = stdin.write_all(&vec![b'A'; 4 << 20]);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("at most 1048576 are accepted"), "{output:?}");
}

/// Base64 by the system's own tool.
fn encoded(bytes: &[u8]) -> String {
    let mut child = std::process::Command::new("base64")
        .arg("-w0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
