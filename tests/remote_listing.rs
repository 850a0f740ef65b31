//! How often is a bucket of many backups asked, and for what, until it is known what they are?

#![cfg(feature = "remote")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/bucket.rs"]
mod bucket;
#[path = "common/http_server.rs"]
mod http_server;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bucket::{Bucket, PAGE};
use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::Verification;
use cinderfs::store::Store;
use cinderfs::store::deadline::DeadlineStore;
use cinderfs::types::BackupId;
use cinderfs::writer::Target;
use cinderfs::writer::delete::{self, DeleteOptions};

fn id(number: usize) -> String {
    format!("b0000000-0000-4000-8000-{number:012}")
}

fn prefix(number: usize) -> String {
    format!("volume_a0000000-0000-4000-8000-{number:012}/20240301010107/az_nova_backup_{}", id(number))
}

fn document(number: usize, name: &str) -> Vec<u8> {
    let metadata = serde_json::json!({
        "version": "1.0.0", "backup_id": id(number), "backup_name": name, "backup_description": null, "parent_id": null,
        "volume_id": format!("a0000000-0000-4000-8000-{number:012}"), "created_at": "2024-03-01 01:01:07+00:00",
        "objects": [{format!("{}-00001", prefix(number)): {
            "offset": 0, "length": 32768, "compression": "none", "md5": "0".repeat(32)}}],
    });
    metadata.to_string().into_bytes()
}

fn digests(number: usize) -> Vec<u8> {
    let digests = serde_json::json!({
        "version": "1.0.0", "backup_id": id(number), "backup_name": "n", "backup_description": null,
        "volume_id": format!("a0000000-0000-4000-8000-{number:012}"), "created_at": "2024-03-01 01:01:07+00:00",
        "chunk_size": 32768, "sha256s": ["0".repeat(64)],
    });
    serde_json::to_vec_pretty(&digests).unwrap()
}

/// Puts backups into a bucket that have a document and nothing else.
fn fill(bucket: &Bucket, count: usize) {
    let of = |number| (format!("{}_metadata", prefix(number)), Arc::new(document(number, "n")));
    bucket.objects().extend((0..count).map(of));
}

fn open(store: &Arc<dyn Store>) -> cinderfs::Result<Catalog> {
    Catalog::open(store.clone(), CatalogOptions { workers: 0, ..CatalogOptions::default() })
}

/// Each request once, in order of the words.
#[track_caller]
fn each_once(requests: Vec<String>) -> BTreeSet<String> {
    let count = requests.len();
    let once: BTreeSet<String> = requests.into_iter().collect();
    assert_eq!(once.len(), count, "something was asked for twice");
    once
}

#[test]
fn ten_thousand_backups_take_a_request_each_and_each_page_once() {
    const COUNT: usize = 10_000;
    let (bucket, store) = Bucket::start(16);
    fill(&bucket, COUNT);
    let catalog = open(&store).unwrap();
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.entries().filter(|entry| entry.problem.is_none()).count(), COUNT);
    let asked = each_once(bucket.take_requests());
    let of = |what: &str| asked.iter().filter(|request| request.starts_with(what)).count();
    assert_eq!((of("LIST "), of("GET "), asked.len()), (COUNT / PAGE, COUNT, COUNT + COUNT / PAGE));
    // What has not changed is not read again.
    let changed = format!("{}_metadata", prefix(77));
    bucket.objects().insert(changed.clone(), Arc::new(document(77, "other")));
    let snapshot = catalog.rescan().unwrap();
    assert_eq!(snapshot.get(&id(77)).unwrap().name.as_deref(), Some("other"));
    let asked = each_once(bucket.take_requests());
    assert!(asked.contains(&format!("GET {changed}")), "{asked:?}");
    assert_eq!(asked.len(), COUNT / PAGE + 1);
    // Nor when images are opened, which look for digests.
    for number in [0, 77, 5000] {
        catalog.image(snapshot.get(&id(number)).unwrap()).unwrap();
    }
    let asked = each_once(bucket.take_requests());
    assert!(asked.iter().all(|request| request.ends_with("_sha256file")), "{asked:?}");
}

#[test]
fn the_command_asks_no_more() {
    const COUNT: usize = 1_500;
    let (bucket, _) = Bucket::start(1);
    fill(&bucket, COUNT);
    let digests = |number| (format!("{}_sha256file", prefix(number)), Arc::new(digests(number)));
    bucket.objects().extend((0..COUNT).map(digests));
    let endpoint = bucket.endpoint.lock().unwrap().clone();
    let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(["list", &format!("s3://b?endpoint={endpoint}"), "-f", "value", "-c", "ID", "-c", "Status"])
        .envs([("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_REGION", "r")])
        .env("CINDERFS_CACHE_DIR", "/nonexistent/cache")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    // All of one time: the order of their ids, downwards.
    let expected: Vec<String> = (0..COUNT).rev().map(|number| format!("{} available", id(number))).collect();
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    let asked = each_once(bucket.take_requests());
    let is_document = |request: &&String| request.ends_with("_metadata") && !request.starts_with("LIST ");
    let documents = asked.iter().filter(is_document);
    let others: Vec<_> = documents.clone().filter(|request| !request.starts_with("GET ")).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(documents.count(), COUNT);
    let of = |what: &str| asked.iter().filter(|request| request.starts_with(what)).count();
    // Two requests to learn that a backup's image opens, and two objects of each in the listing.
    assert_eq!(
        (of("LIST "), of("GET "), asked.len()),
        (2 * COUNT / PAGE, 2 * COUNT, 2 * COUNT + 2 * COUNT / PAGE)
    );
}

#[test]
fn as_many_are_asked_for_at_once_as_there_are_connections() {
    let (bucket, store) = Bucket::start(5);
    fill(&bucket, 12);
    bucket.watch(|bucket, request| {
        if request.starts_with("GET ") {
            bucket.meet(5);
        }
    });
    let timed = DeadlineStore::new(store, Duration::from_secs(120));
    timed.arm();
    let catalog = open(&(Arc::new(timed) as Arc<dyn Store>)).unwrap();
    assert_eq!(catalog.snapshot().entries().count(), 12);
}

#[test]
fn what_changes_behind_the_listing_is_read_as_it_is_then() {
    let (bucket, store) = Bucket::start(4);
    fill(&bucket, 30);
    let (replaced, gone) = (format!("{}_metadata", prefix(3)), format!("{}_metadata", prefix(4)));
    let has_changed = Mutex::new(false);
    bucket.watch(move |bucket, request| {
        // Behind the listing and before any document.
        let mut has_changed = has_changed.lock().unwrap();
        if request.starts_with("GET ") && !std::mem::replace(&mut *has_changed, true) {
            let mut objects = bucket.objects();
            objects.insert(replaced.clone(), Arc::new(document(3, "new")));
            objects.remove(&gone);
        }
    });
    let catalog = open(&store).unwrap();
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.entries().count(), 30);
    assert_eq!(snapshot.get(&id(3)).unwrap().name.as_deref(), Some("new"));
    let problem = snapshot.get(&id(4)).unwrap().problem.clone().unwrap();
    assert_eq!(problem.kind(), ErrorKind::ObjectNotFound);
    let snapshot = catalog.rescan().unwrap();
    assert_eq!(snapshot.entries().count(), 29);
}

#[test]
fn digests_that_change_behind_the_listing_are_opened_as_they_are_then() {
    let (bucket, store) = Bucket::start(4);
    fill(&bucket, 3);
    let digests_of = |number| format!("{}_sha256file", prefix(number));
    bucket.objects().extend((0..3).map(|number| (digests_of(number), Arc::new(digests(number)))));
    let catalog = open(&store).unwrap();
    let mut other = digests(1);
    other.push(b'\n');
    bucket.objects().insert(digests_of(1), Arc::new(other));
    bucket.objects().remove(&digests_of(2));
    let snapshot = catalog.snapshot();
    let proof = |number| {
        let entry = snapshot.get(&id(number)).unwrap();
        // Also when it is asked for again.
        [(); 2].map(|()| catalog.image(entry).unwrap().verification())
    };
    assert_eq!(proof(0), [Verification::Sha256; 2]);
    assert_eq!(proof(1), [Verification::Sha256; 2]);
    assert_eq!(proof(2), [Verification::Md5; 2]);
}

#[test]
fn a_cancelled_scan_ends() {
    static IS_CANCELLED: AtomicBool = AtomicBool::new(false);
    let (bucket, store) = Bucket::start(4);
    fill(&bucket, 2_000);
    let gets = AtomicUsize::new(0);
    bucket.watch(move |_, request| {
        if request.starts_with("GET ") && gets.fetch_add(1, Ordering::SeqCst) == 100 {
            IS_CANCELLED.store(true, Ordering::Relaxed);
        }
    });
    let timed =
        DeadlineStore::cancelled_by(store, Duration::from_secs(60), || IS_CANCELLED.load(Ordering::Relaxed));
    timed.arm();
    let error = open(&(Arc::new(timed) as Arc<dyn Store>)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    let gets = bucket.take_requests().len();
    assert!(gets < 130, "{gets} requests, 100 of them before");
}

#[test]
fn a_deletion_reads_each_document_once() {
    let (bucket, store) = Bucket::start(4);
    fill(&bucket, 40);
    // A copy, which goes as well and stands behind it.
    bucket.objects().insert(format!("with-copies/{}_metadata", prefix(7)), Arc::new(document(7, "n")));
    let catalog = open(&store).unwrap();
    let objects = store.into_objects().unwrap();
    let target = || Target::from(&objects);
    let options = DeleteOptions::default();
    let id = BackupId::parse(&id(7)).unwrap();
    let plan = delete::plan(&catalog, target(), &[id], &options).unwrap();
    delete::delete(target(), &plan, &options, &|| false, &mut |_| ()).unwrap();
    let asked = bucket.take_requests();
    let of = |what: &str| asked.iter().filter(|request| request.starts_with(what)).count();
    for number in (0..40).filter(|number| *number != 7) {
        let document = format!("{}_metadata", prefix(number));
        let looks = asked.iter().filter(|request| request.ends_with(&document)).count();
        assert_eq!(looks, 1, "{number}: {asked:#?}");
    }
    let document = format!("{}_metadata", prefix(7));
    let looks = asked.iter().filter(|request| request.ends_with(&format!(" {document}")));
    assert_eq!(
        looks.collect::<Vec<_>>(),
        [
            &format!("GET {document}"),
            // Whether it is still the same.
            &format!("HEAD {document}"),
            &format!("DELETE {document}"),
        ]
    );
    assert_eq!(of("DELETE "), 4, "two documents and two markers: {asked:#?}");
    assert_eq!(catalog.rescan().unwrap().entries().count(), 39);
}
