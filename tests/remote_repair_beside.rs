//! Does a repair in an object store leave alone what somebody else writes meanwhile, and who else repairs or deletes?

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

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::writer::delete::{self, DeleteOptions};
use cinderfs::writer::repair::{Outcome, RepairOptions};

use fake_swift::Object;
use repair_kit::{Damaged, FUTURE, bytes, is_all_repaired, options};

// > What is no longer the object that was found damaged stays and is told as `refused`; where the metadata is another one, or gone,
// > `repair` ends and puts nothing more in.
#[test]
fn what_somebody_replaced_meanwhile_stays() {
    // It came back while others were looked at.
    let damaged = Damaged::new();
    let back = format!("{}-00004", damaged.prefix);
    let never = AtomicBool::new(false);
    let bring_back = |done, total| {
        if done == total {
            let object = Object { bytes: damaged.right[&back].clone(), modified: FUTURE.into() };
            damaged.server.objects.lock().unwrap().insert(back.clone(), object);
        }
    };
    let findings = damaged.repair_with(RepairOptions { progress: &bring_back, ..options(&never) }).unwrap();
    assert!(matches!(findings[0].outcome, Outcome::Repaired), "{findings:?}");
    assert!(
        matches!(&findings[1].outcome, Outcome::Refused(error) if error.to_string().contains("replaced"))
    );
    assert!(!damaged.changes().iter().any(|change| change.ends_with("-00004")), "{:?}", damaged.changes());

    // It is put in between two requests of the repair.
    let damaged = Damaged::new();
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

// > What is no longer the object that was found damaged stays and is told as `refused`; where the metadata is another one, or gone,
// > `repair` ends and puts nothing more in.
#[test]
fn a_backup_that_somebody_deletes_or_writes_gets_no_object() {
    for (when, is_gone) in [(".cinderfs-", false), ("-00002", true), ("-00002", false)] {
        let damaged = Damaged::new();
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
        assert_eq!(puts, ["PUT .cinderfs-ID", "PUT -00002", "DELETE .cinderfs-ID"]);
    }
}

// > `repair` refuses a backup in an object store that a living run writes, repairs or deletes, as `delete` refuses one that is repaired,
// > and ends when another run takes over its marker, which then stays.
#[test]
fn two_runs_do_not_repair_one_backup() {
    // Two that live.
    let damaged = Damaged::new();
    let others = Mutex::new(Vec::new());
    let never = AtomicBool::new(false);
    let meanwhile = |done, total| {
        if done == total && others.lock().unwrap().is_empty() {
            // The server's clock is late.
            damaged.server.objects.lock().unwrap().get_mut(&damaged.marker()).unwrap().modified =
                FUTURE.into();
            others.lock().unwrap().push(damaged.repair().map(drop));
            let catalog = Catalog::open(damaged.store(), CatalogOptions::default()).unwrap();
            let (objects, options) = (damaged.objects(), DeleteOptions::default());
            let plan = delete::plan(&catalog, &objects, &[damaged.backup_id()], &options).unwrap();
            let deleted = delete::delete(&objects, &plan, &options, &|| false, &mut |_| {});
            others.lock().unwrap().push(deleted.map(drop));
        }
    };
    let findings = damaged.repair_with(RepairOptions { progress: &meanwhile, ..options(&never) }).unwrap();
    assert!(is_all_repaired(&findings), "{findings:?}");
    damaged.check_whole("repaired by the first");
    let others: Vec<_> = others.into_inner().unwrap().into_iter().map(Result::unwrap_err).collect();
    assert_eq!(others.len(), 2, "{others:?}");
    assert!(
        others.iter().all(|error| error.to_string().contains("another run writes, repairs")),
        "{others:?}"
    );

    let damaged = Damaged::new();
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
    assert_eq!(damaged.dry_run().unwrap().len(), 2);

    damaged.server.objects.lock().unwrap().remove(&damaged.marker());
    damaged.server.take_over_with("-00002");
    let error = damaged.repair().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target, "{error}");
    assert!(!damaged.changes().iter().any(|change| change == "PUT -00004"));
    assert_eq!(bytes(&damaged.server)[&damaged.marker()], b"{}", "the other run's");
    damaged.check_old_or_new("taken over");
}
