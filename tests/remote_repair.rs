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
use cinderfs::store::objects::ObjectStore;
use cinderfs::types::BackupId;
use cinderfs::writer::create::{NewBackup, create};
use cinderfs::writer::repair::{Finding, Outcome, RepairOptions, repair};

use fake_swift::{FakeSwift, Fault, Object};
use new_backup::{MemorySource, volume};

const OBJECT_BYTES: usize = 128 << 10;

/// Long enough for a busy machine, short enough to wait for.
const DEADLINE: Duration = Duration::from_secs(4);

/// Noted by the server as later than any clock.
const FUTURE: &str = "2999-01-01T00:00:00.000000";

fn content() -> Vec<u8> {
    (0..4 * OBJECT_BYTES as u32 + 700).map(|i| (i.wrapping_mul(2_654_435_761) >> 21) as u8).collect()
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

/// A server with two backups of one volume, the first of them damaged: of five objects the second is rotten and the fourth gone, as
/// are its digests from the middle on where that is wanted; and its metadata tells restart points of another encoder.
struct Damaged {
    server: Arc<FakeSwift>,
    store: Arc<dyn Store>,
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
        Self { server, store, id, prefix, right, found }
    }

    fn objects(&self) -> Arc<dyn ObjectStore> {
        self.store.clone().into_objects().unwrap()
    }

    fn repair_with(
        &self,
        dry_run: bool,
        cancel: &AtomicBool,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> cinderfs::Result<Vec<Finding>> {
        let options = RepairOptions { dry_run, threads: 1, cancel, progress, hook: None };
        repair((&self.objects()).into(), &BackupId::parse(&self.id).unwrap(), &options)
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
        assert!(read(&self.store, &self.id).unwrap() == content(), "{what}");
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
    damaged.server.objects.lock().unwrap().remove(&format!("{}_sha256file", damaged.prefix));
    // Without digests a missing object has no proof but its md5, and the image none of the other backup's.
    damaged.server.objects.lock().unwrap().insert(
        format!("{}_sha256file", damaged.prefix),
        Object {
            bytes: damaged.right[&format!("{}_sha256file", damaged.prefix)].clone(),
            modified: FUTURE.into(),
        },
    );
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
    assert!(read(&damaged.store, &damaged.id).unwrap() == content());

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
