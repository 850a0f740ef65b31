//! Is a backup in an object store mended by whole objects, each old or new, whatever fails and whoever else writes?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/swift_store.rs"]
mod swift_store;
#[path = "common/fake_swift.rs"]
mod fake_swift;
#[path = "common/new_backup.rs"]
mod new_backup;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::Codec;
use cinderfs::store::Store;
use cinderfs::types::BackupId;
use cinderfs::writer::create::{NewBackup, create};
use cinderfs::writer::repair::{Finding, Outcome, RepairOptions, repair};

use fake_swift::{FakeSwift, Fault, Object};
use new_backup::{MemorySource, volume};

/// With some restart points in each.
const OBJECT_BYTES: usize = 512 << 10;

/// Long enough for a busy machine, short enough to wait for.
const DEADLINE: Duration = Duration::from_secs(4);

/// Noted by the server as later than any clock.
const FUTURE: &str = "2999-01-01T00:00:00.000000";

/// It shrinks, but not by much.
fn content() -> Vec<u8> {
    let mixed = |i: u32| (i ^ i >> 15).wrapping_mul(0x85eb_ca6b) >> 26;
    (0..4 * OBJECT_BYTES as u32 + 700).map(|i| mixed(i.wrapping_mul(2_654_435_761)) as u8).collect()
}

fn make(store: &Arc<dyn Store>) -> String {
    let objects = store.clone().into_objects().unwrap();
    let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
    let now = "2026-02-03T04:05:06Z".parse().unwrap();
    let new = NewBackup {
        codec: Codec::Zlib,
        object_bytes: Some(OBJECT_BYTES as u64),
        ..NewBackup::full(volume())
    };
    let source = MemorySource::new(content());
    let never = AtomicBool::new(false);
    create(&objects, &catalog, &source, &new, now, &never, &|_| {}).unwrap().id.to_string()
}

/// The image as whoever opens the store now reads it.
fn read(store: &Arc<dyn Store>, id: &str) -> cinderfs::Result<Vec<u8>> {
    let catalog = Catalog::open(store.clone(), CatalogOptions::default())?;
    let image = catalog.image(&catalog.snapshot().get(id).unwrap().clone())?;
    let mut bytes = vec![1; content().len()];
    let mut at = 0;
    while at < bytes.len() {
        at += image.read_at(&mut bytes[at..], at as u64)?;
    }
    Ok(bytes)
}

/// A server with two backups of one volume, the first of them damaged: of five objects the second is rotten and the fourth gone, and
/// its metadata tells restart points of the second as another encoder would have made them.
struct Damaged {
    server: Arc<FakeSwift>,
    /// Of each client.
    deadline: Duration,
    id: String,
    prefix: String,
    /// As all of it was before.
    right: BTreeMap<String, Vec<u8>>,
    /// As it was found.
    found: BTreeMap<String, Vec<u8>>,
}

impl Damaged {
    fn new(deadline: Duration) -> Self {
        let (server, store) = FakeSwift::start(deadline);
        let (id, _) = (make(&store), make(&store));
        let document = server.names().into_iter().find(|name| name.ends_with(&format!("{id}_metadata")));
        let prefix = document.unwrap().strip_suffix("_metadata").unwrap().to_owned();
        let right = bytes(&server);
        {
            let mut objects = server.objects.lock().unwrap();
            let rotten = &mut objects.get_mut(&format!("{prefix}-00002")).unwrap().bytes;
            let at = rotten.len() / 2;
            rotten[at..at + 40].iter_mut().for_each(|byte| *byte ^= 0x5a);
            objects.remove(&format!("{prefix}-00004")).unwrap();
            let document = &mut objects.get_mut(&format!("{prefix}_metadata")).unwrap().bytes;
            let text = String::from_utf8(document.clone()).unwrap();
            let entry = text.find("-00002").unwrap();
            let key = "\"cinderfs_restart_points\": \"";
            let at = entry + text[entry..].find(key).unwrap() + key.len();
            *document = format!("{}7{}", &text[..at], &text[at..]).into_bytes();
        }
        server.requests.lock().unwrap().clear();
        let found = bytes(&server);
        Self { server, deadline, id, prefix, right, found }
    }

    /// As another process opens it, which knows nothing of what failed.
    fn store(&self) -> Arc<dyn Store> {
        self.server.client(self.deadline)
    }

    fn repair_with(
        &self,
        dry_run: bool,
        cancel: &AtomicBool,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> cinderfs::Result<Vec<Finding>> {
        let options = RepairOptions { dry_run, threads: 1, cancel, progress, hook: None };
        let objects = self.store().into_objects().unwrap();
        repair((&objects).into(), &BackupId::parse(&self.id).unwrap(), &options)
    }

    fn repair(&self) -> cinderfs::Result<Vec<Finding>> {
        self.repair_with(false, &AtomicBool::new(false), &|_, _| {})
    }

    /// What of the store was put in or taken out, without the prefix.
    fn changes(&self) -> Vec<String> {
        let requests = self.server.requests.lock().unwrap();
        let changes =
            requests.iter().filter(|request| !request.starts_with("GET") && !request.starts_with("HEAD"));
        changes.map(|request| request.replace(&self.prefix, "").replace(&self.id, "ID")).collect()
    }

    fn marker(&self) -> String {
        format!(".cinderfs-{}", self.id)
    }

    /// Everything is as it was, and nothing else is there.
    #[track_caller]
    fn check_whole(&self, what: &str) {
        assert!(bytes(&self.server) == self.right, "{what}: {:?}", self.server.names());
    }

    /// Each object is old or new, at most a marker is beside them, and the backup reads as before: healed from the other one.
    #[track_caller]
    fn check_old_or_new(&self, what: &str) {
        for (name, now) in bytes(&self.server).iter().filter(|(name, _)| **name != self.marker()) {
            let is_one = [&self.found, &self.right].iter().any(|state| state.get(name) == Some(now));
            assert!(is_one, "{what}: {name} is neither old nor new");
        }
        let missing: Vec<_> = self.found.keys().filter(|name| !self.server.names().contains(name)).collect();
        assert!(missing.is_empty(), "{what}: {missing:?} were removed");
        assert!(read(&self.store(), &self.id).unwrap() == content(), "{what}");
    }
}

fn bytes(server: &FakeSwift) -> BTreeMap<String, Vec<u8>> {
    let objects = server.objects.lock().unwrap();
    objects.iter().map(|(name, object)| (name.clone(), object.bytes.clone())).collect()
}

fn is_all_repaired(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| matches!(finding.outcome, Outcome::Repaired))
}

// > `repair` in an object store puts its marker in first, then, when all new objects are ready, `_metadata` where its restart points change,
// > each object, and the digests, looks at each behind its request, and takes nothing out but its marker; `--dry-run` puts nothing in.
#[test]
fn objects_come_back_out_of_another_backup_behind_the_metadata_and_before_the_digests() {
    let damaged = Damaged::new(DEADLINE);
    let findings = damaged.repair_with(true, &AtomicBool::new(false), &|_, _| {}).unwrap();
    assert_eq!(findings.len(), 2);
    assert!(findings.iter().all(|finding| matches!(finding.outcome, Outcome::Repairable)), "{findings:?}");
    assert_eq!(damaged.changes(), [""; 0], "a dry run");

    let findings = damaged.repair().unwrap();
    assert!(findings.len() == 2 && is_all_repaired(&findings), "{findings:?}");
    let expected = ["PUT .cinderfs-ID", "PUT _metadata", "PUT -00002", "PUT -00004", "DELETE .cinderfs-ID"];
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

/// A run that is killed behind the request for `name`.
fn kill_behind(damaged: &Damaged, name: &str) {
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
}

fn revive(damaged: &Damaged) {
    *damaged.server.on_put.lock().unwrap() = None;
    damaged.server.is_down.store(false, Ordering::Relaxed);
}

// > A run of `repair` in an object store that is killed or fails at any moment leaves each object old or new and at most its marker, of which
// > the next run takes out nothing but itself, whatever became of the backup; and the next `repair` does the rest.
#[test]
fn a_run_that_is_killed_between_two_requests_leaves_old_or_new() {
    for name in ["_metadata", "-00002", "-00004"] {
        let damaged = Damaged::new(Duration::from_secs(1));
        kill_behind(&damaged, name);
        let error = damaged.repair().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreIo, "{name}: {error}");
        revive(&damaged);
        assert!(damaged.server.names().contains(&damaged.marker()), "{name}");
        assert!(
            bytes(&damaged.server)[&format!("{}{name}", damaged.prefix)]
                == damaged.right[&format!("{}{name}", damaged.prefix)]
        );
        damaged.check_old_or_new(name);
        let findings = damaged.repair().unwrap();
        assert!(is_all_repaired(&findings), "{name}: {findings:?}");
        damaged.check_whole(name);
    }
}

// > A run of `repair` in an object store that is killed or fails at any moment leaves each object old or new and at most its marker, of which
// > the next run takes out nothing but itself, whatever became of the backup; and the next `repair` does the rest.
#[test]
fn what_a_dead_repair_had_is_not_taken_out_though_the_metadata_is_gone() {
    let damaged = Damaged::new(Duration::from_secs(1));
    kill_behind(&damaged, "-00002");
    damaged.repair().unwrap_err();
    revive(&damaged);
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
            let damaged = Damaged::new(Duration::from_secs(1));
            (0..1000).for_each(|_| damaged.server.fail(name, Fault::Status(fault)));
            let error = damaged.repair().unwrap_err();
            let expected = if fault == 403 { ErrorKind::AccessDenied } else { ErrorKind::Target };
            assert_eq!(error.kind(), expected, "{name}: {error}");
            damaged.server.forgive();
            assert!(!damaged.server.names().contains(&damaged.marker()), "{name} {fault}");
            damaged.check_old_or_new(name);
            assert!(is_all_repaired(&damaged.repair().unwrap()), "{name} {fault}");
            damaged.check_whole(name);
        }
    }
}

#[test]
fn what_passes_is_not_seen_and_bytes_that_changed_on_the_way_are() {
    for fault in [Fault::Status(503), Fault::Reset, Fault::NoAnswer, Fault::WrongEtag, Fault::Expired] {
        for name in ["_metadata", "-00004"] {
            let damaged = Damaged::new(DEADLINE);
            damaged.server.fail(name, fault);
            let findings = damaged.repair().unwrap_or_else(|error| panic!("{fault:?} of {name}: {error}"));
            assert_eq!(damaged.server.faults_left(), 0);
            assert!(is_all_repaired(&findings), "{fault:?} of {name}: {findings:?}");
            damaged.check_whole(name);
        }
    }
    let damaged = Damaged::new(DEADLINE);
    damaged.server.fail("-00004", Fault::Rot);
    let error = damaged.repair().unwrap_err();
    assert!(error.to_string().contains("no longer the one that was put in"), "{error}");
    assert!(is_all_repaired(&damaged.repair().unwrap()));
    damaged.check_whole("rot");
}

/// The deadline is far away: without being stopped at once this would go on for an hour.
#[test]
fn an_interruption_ends_a_request_that_hangs_and_takes_the_marker_out() {
    let damaged = Damaged::new(Duration::from_secs(3600));
    let cancel = AtomicBool::new(false);
    damaged.server.fail("-00002", Fault::Hang);
    let error = std::thread::scope(|scope| {
        let run = scope.spawn(|| damaged.repair_with(false, &cancel, &|_, _| {}));
        damaged.server.wait_for_hang();
        cancel.store(true, Ordering::Relaxed);
        run.join().unwrap().unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    assert!(!damaged.server.names().contains(&damaged.marker()));
    damaged.check_old_or_new("interrupted");
}

// > What is no longer what was found damaged, or came back meanwhile, stays and is told as `refused`; where the document is another one, or gone,
// > `repair` ends, and puts nothing more in.
#[test]
fn what_somebody_replaced_meanwhile_stays() {
    // It came back while others were looked at.
    let damaged = Damaged::new(DEADLINE);
    let back = format!("{}-00004", damaged.prefix);
    let bring_back = |done, total| {
        if done == total {
            let object = Object { bytes: damaged.right[&back].clone(), modified: FUTURE.into() };
            damaged.server.objects.lock().unwrap().insert(back.clone(), object);
        }
    };
    let findings = damaged.repair_with(false, &AtomicBool::new(false), &bring_back).unwrap();
    assert!(matches!(findings[0].outcome, Outcome::Repaired), "{findings:?}");
    assert!(
        matches!(&findings[1].outcome, Outcome::Refused(error) if error.to_string().contains("replaced"))
    );
    assert!(!damaged.changes().iter().any(|change| change.ends_with("-00004")), "{:?}", damaged.changes());

    // It is put in between two requests of the repair.
    let damaged = Damaged::new(DEADLINE);
    let others = format!("{}-00004", damaged.prefix);
    let name = others.clone();
    *damaged.server.on_put.lock().unwrap() = Some(Box::new(move |put, objects| {
        if put.ends_with("-00002") {
            objects.insert(name.clone(), Object { bytes: b"another".to_vec(), modified: FUTURE.into() });
        }
    }));
    let findings = damaged.repair().unwrap();
    assert!(matches!(findings[0].outcome, Outcome::Repaired), "{findings:?}");
    assert!(matches!(findings[1].outcome, Outcome::Refused(_)), "{findings:?}");
    assert_eq!(bytes(&damaged.server)[&others], b"another");
}

// > What is no longer what was found damaged, or came back meanwhile, stays and is told as `refused`; where the document is another one, or gone,
// > `repair` ends, and puts nothing more in.
#[test]
fn a_backup_that_somebody_deletes_or_writes_gets_no_object() {
    for (when, is_gone) in [(".cinderfs-", false), ("-00002", true), ("-00002", false)] {
        let damaged = Damaged::new(DEADLINE);
        let document = format!("{}_metadata", damaged.prefix);
        *damaged.server.on_put.lock().unwrap() = Some(Box::new(move |put, objects| {
            // Once the document was read behind the marker, any PUT is one of what is ready.
            if !put.contains(when) {
                return;
            }
            match objects.get_mut(&document) {
                Some(object) if !is_gone => object.bytes.push(b'\n'),
                _ => drop(objects.remove(&document)),
            }
        }));
        if when.starts_with('.') {
            // Behind the marker the document is read anew, so what it is then counts.
            assert!(is_all_repaired(&damaged.repair().unwrap()));
            continue;
        }
        let error = damaged.repair().unwrap_err();
        assert!(error.to_string().contains("metadata was replaced"), "{error}");
        let puts = damaged.changes();
        assert_eq!(puts, ["PUT .cinderfs-ID", "PUT _metadata", "PUT -00002", "DELETE .cinderfs-ID"]);
    }
}

// > `repair` refuses a backup in an object store that a living run writes, repairs or deletes, and ends when another run takes over its marker,
// > which then stays.
#[test]
fn two_runs_do_not_repair_one_backup() {
    let damaged = Damaged::new(DEADLINE);
    let prefix = &damaged.prefix;
    let claim =
        serde_json::json!({"cinderfs": 1, "prefix": prefix, "run": "elsewhere", "names": ["_metadata"]});
    let marker = Object { bytes: claim.to_string().into_bytes(), modified: FUTURE.into() };
    damaged.server.objects.lock().unwrap().insert(damaged.marker(), marker);
    let error = damaged.repair().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    assert!(error.to_string().contains("another run"), "{error}");
    assert_eq!(damaged.changes(), [""; 0]);
    // A dry run needs no place.
    assert_eq!(damaged.repair_with(true, &AtomicBool::new(false), &|_, _| {}).unwrap().len(), 2);

    damaged.server.objects.lock().unwrap().remove(&damaged.marker());
    damaged.server.take_over_with("-00002");
    let error = damaged.repair().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target, "{error}");
    assert!(!damaged.changes().iter().any(|change| change == "PUT -00004"));
    assert_eq!(bytes(&damaged.server)[&damaged.marker()], b"{}", "the other run's");
    damaged.check_old_or_new("taken over");
}
