//! Is a backup in an object store mended by whole objects, each old or new, whatever fails?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/fake_swift.rs"]
mod fake_swift;
#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/new_backup.rs"]
mod new_backup;
#[path = "common/repair_kit.rs"]
mod repair_kit;
#[path = "common/swift_store.rs"]
mod swift_store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::writer::repair::{Outcome, repair};

use fake_swift::Fault;
use repair_kit::{DEADLINE, Damaged, bytes, content, is_all_repaired, make, options, read};

/// How long a run is served by nobody before it is no more.
const KILLED_WITHIN: Duration = Duration::from_secs(1);

// > `repair` in an object store puts in its marker first, then, when all new objects are ready, each object, the digests, and `_metadata`
// > last where its restart points change; it takes out nothing but its marker, and `--dry-run` puts nothing in.
#[test]
fn objects_come_back_out_of_another_backup_and_then_the_metadata_tells_of_them() {
    let damaged = Damaged::new();
    let findings = damaged.dry_run().unwrap();
    assert_eq!(findings.len(), 2);
    assert!(findings.iter().all(|finding| matches!(finding.outcome, Outcome::Repairable)), "{findings:?}");
    assert_eq!(damaged.changes(), [""; 0], "a dry run");

    let findings = damaged.repair().unwrap();
    assert!(findings.len() == 2 && is_all_repaired(&findings), "{findings:?}");
    let expected = ["PUT .cinderfs-ID", "PUT -00002", "PUT -00004", "PUT _metadata", "DELETE .cinderfs-ID"];
    assert_eq!(damaged.changes(), expected);
    damaged.check_whole("repaired");
    // Without the other backup's help.
    let prefix = &damaged.prefix;
    damaged.server.objects.lock().unwrap().retain(|name, _| name.starts_with(&**prefix));
    assert!(read(&damaged.store(), &damaged.id).unwrap() == content());

    // Digests come back out of the objects, which are whole now.
    let digests = format!("{prefix}_sha256file");
    damaged.server.objects.lock().unwrap().remove(&digests).unwrap();
    damaged.server.requests.lock().unwrap().clear();
    let findings = damaged.repair().unwrap();
    assert!(findings.len() == 1 && is_all_repaired(&findings), "{findings:?}");
    assert_eq!(damaged.changes(), ["PUT .cinderfs-ID", "PUT _sha256file", "DELETE .cinderfs-ID"]);
    assert!(bytes(&damaged.server)[&digests] == damaged.right[&digests]);
    assert!(damaged.repair().unwrap().is_empty());
}

// > `repair` in an object store puts in its marker first, then, when all new objects are ready, each object, the digests, and `_metadata`
// > last where its restart points change; it takes out nothing but its marker, and `--dry-run` puts nothing in.
#[test]
fn a_wrong_digest_is_mended_behind_the_objects() {
    let damaged = Damaged::new();
    {
        let mut objects = damaged.server.objects.lock().unwrap();
        let digests = &mut objects.get_mut(&format!("{}_sha256file", damaged.prefix)).unwrap().bytes;
        let at = digests.windows(11).position(|key| key == b"\"sha256s\": ").unwrap();
        let first = digests[at + 11..].iter().position(u8::is_ascii_hexdigit).unwrap() + at + 11;
        digests[first] = if digests[first] == b'0' { b'1' } else { b'0' };
    }
    let findings = damaged.repair().unwrap();
    assert!(findings.len() == 3 && is_all_repaired(&findings), "{findings:?}");
    let expected = ["-00002", "-00004", "_sha256file", "_metadata"].map(|name| format!("PUT {name}"));
    assert_eq!(damaged.changes()[1..5], expected);
    damaged.check_whole("repaired");
}

// > Where STORE is a whole account or server, the marker of `repair` lies in the container of the backup.
#[test]
fn a_backup_of_a_whole_account_is_repaired_in_its_container() {
    let damaged = Damaged::new();
    let account = damaged.server.account(DEADLINE).into_objects().unwrap();
    let never = AtomicBool::new(false);
    let findings = repair(&account, &damaged.backup_id(), &options(&never)).unwrap();
    assert!(findings.len() == 2 && is_all_repaired(&findings), "{findings:?}");
    let expected = ["PUT .cinderfs-ID", "PUT -00002", "PUT -00004", "PUT _metadata", "DELETE .cinderfs-ID"];
    assert_eq!(damaged.changes(), expected);
    damaged.check_whole("repaired");
}

/// Repairs, and is killed behind the request for `name`.
fn be_killed_behind(damaged: &Damaged, name: &str) {
    let (server, name) = (Arc::downgrade(&damaged.server), name.to_owned());
    *damaged.server.on_put.lock().unwrap() = Some(Box::new(move |put, objects| {
        if put.ends_with(&name) {
            server.upgrade().unwrap().is_down.store(true, Ordering::Relaxed);
            let markers = objects.iter_mut().filter(|(name, _)| name.starts_with(".cinderfs-"));
            // Its process is one that is no more.
            markers.for_each(|(_, marker)| {
                let mut claim: serde_json::Value = serde_json::from_slice(&marker.bytes).unwrap();
                let run = claim["run"].as_str().unwrap().to_owned();
                let mut parts: Vec<&str> = run.split('-').collect();
                let at = parts.len() - 3;
                parts[at] = "7ffffff0";
                claim["run"] = parts.join("-").into();
                marker.bytes = claim.to_string().into_bytes();
            });
        }
    }));
    // The deadline is short, and may be over before that on a busy machine.
    while !damaged.server.is_down.load(Ordering::Relaxed) {
        let error = damaged.repair_within(KILLED_WITHIN, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
    }
    *damaged.server.on_put.lock().unwrap() = None;
    damaged.server.is_down.store(false, Ordering::Relaxed);
}

// > A run of `repair` in an object store that is killed or fails at any moment leaves each object old or new and at most its marker, with
// > which the next run removes nothing else, whatever became of the backup; the next `repair` does the rest, but for restart points of
// > objects that such a run has replaced, which cost time.
#[test]
fn a_run_that_is_killed_between_two_requests_leaves_old_or_new() {
    for name in ["-00002", "-00004", "_metadata"] {
        let damaged = Damaged::new();
        be_killed_behind(&damaged, name);
        assert!(damaged.server.names().contains(&damaged.marker()), "{name}");
        assert!(
            bytes(&damaged.server)[&format!("{}{name}", damaged.prefix)]
                == damaged.right[&format!("{}{name}", damaged.prefix)]
        );
        damaged.check_old_or_new(name);
        let findings = damaged.repair().unwrap();
        assert!(is_all_repaired(&findings), "{name}: {findings:?}");
        damaged.check_whole_but_for_points(name);
    }
}

// > A run of `repair` in an object store that is killed or fails at any moment leaves each object old or new and at most its marker, with
// > which the next run removes nothing else, whatever became of the backup; the next `repair` does the rest, but for restart points of
// > objects that such a run has replaced, which cost time.
#[test]
fn what_a_dead_repair_had_is_not_taken_out_though_the_metadata_is_gone() {
    let damaged = Damaged::new();
    be_killed_behind(&damaged, "-00002");
    damaged.server.objects.lock().unwrap().remove(&format!("{}_metadata", damaged.prefix)).unwrap();
    let before: Vec<_> = damaged.server.names();
    make(&damaged.store());
    let after = damaged.server.names();
    let gone: Vec<_> = before.iter().filter(|name| !after.contains(name)).collect();
    assert_eq!(gone, [&damaged.marker()]);
}

#[test]
fn a_request_that_fails_for_good_leaves_old_or_new_and_no_marker() {
    for name in ["_metadata", "-00002", "-00004"] {
        for fault in [403, 507] {
            let damaged = Damaged::new();
            (0..1000).for_each(|_| damaged.server.fail(name, Fault::Status(fault)));
            let error = damaged.repair().unwrap_err();
            let expected = if fault == 403 { ErrorKind::AccessDenied } else { ErrorKind::Target };
            assert_eq!(error.kind(), expected, "{name}: {error}");
            damaged.server.forgive();
            assert!(!damaged.server.names().contains(&damaged.marker()), "{name} {fault}");
            damaged.check_old_or_new(name);
            assert!(is_all_repaired(&damaged.repair().unwrap()), "{name} {fault}");
            damaged.check_whole_but_for_points(name);
        }
    }
}

#[test]
fn what_passes_is_not_seen_and_bytes_that_changed_on_the_way_are() {
    for fault in [Fault::Status(503), Fault::Reset, Fault::NoAnswer, Fault::WrongEtag, Fault::Expired] {
        for name in ["_metadata", "-00004"] {
            let damaged = Damaged::new();
            damaged.server.fail(name, fault);
            let findings = damaged.repair().unwrap_or_else(|error| panic!("{fault:?} of {name}: {error}"));
            assert_eq!(damaged.server.faults_left(), 0);
            assert!(is_all_repaired(&findings), "{fault:?} of {name}: {findings:?}");
            damaged.check_whole(name);
        }
    }
    let damaged = Damaged::new();
    damaged.server.fail("-00004", Fault::Rot);
    let error = damaged.repair().unwrap_err();
    assert!(error.to_string().contains("no longer the one that was put in"), "{error}");
    assert!(is_all_repaired(&damaged.repair().unwrap()));
    damaged.check_whole("rot");
}

/// The deadline is far away: without being stopped at once this would go on for an hour.
#[test]
fn an_interruption_ends_a_request_that_hangs_and_takes_the_marker_out() {
    let damaged = Damaged::new();
    let cancel = AtomicBool::new(false);
    damaged.server.fail("-00002", Fault::Hang);
    let error = std::thread::scope(|scope| {
        let run = scope.spawn(|| damaged.repair_within(Duration::from_secs(3600), &cancel));
        damaged.server.wait_for_hang();
        cancel.store(true, Ordering::Relaxed);
        run.join().unwrap().unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    assert!(!damaged.server.names().contains(&damaged.marker()));
    damaged.check_old_or_new("interrupted");
}
