//! A damaged backup in a small Swift, of which another backup has all that is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::Codec;
use cinderfs::store::Store;
use cinderfs::store::objects::ObjectStore;
use cinderfs::types::BackupId;
use cinderfs::writer::create::{NewBackup, create};
use cinderfs::writer::repair::{Finding, Outcome, RepairOptions, repair};

use super::fake_swift::FakeSwift;
use super::new_backup::{MemorySource, volume};

/// With some restart points in each.
pub(crate) const OBJECT_BYTES: usize = 512 << 10;

/// For what is answered in the end; long enough for a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Noted by the server as later than any clock.
pub(crate) const FUTURE: &str = "2999-01-01T00:00:00.000000";

/// It shrinks, but not by much.
pub(crate) fn content() -> Vec<u8> {
    let mixed = |i: u32| (i ^ i >> 15).wrapping_mul(0x85eb_ca6b) >> 26;
    (0..4 * OBJECT_BYTES as u32 + 700).map(|i| mixed(i.wrapping_mul(2_654_435_761)) as u8).collect()
}

pub(crate) fn make(store: &Arc<dyn Store>) -> String {
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
pub(crate) fn read(store: &Arc<dyn Store>, id: &str) -> cinderfs::Result<Vec<u8>> {
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
pub(crate) struct Damaged {
    pub(crate) server: Arc<FakeSwift>,
    pub(crate) id: String,
    pub(crate) prefix: String,
    /// As all of it was before.
    pub(crate) right: BTreeMap<String, Vec<u8>>,
    /// As it was found.
    pub(crate) found: BTreeMap<String, Vec<u8>>,
}

impl Damaged {
    pub(crate) fn new() -> Self {
        let (server, store) = FakeSwift::start(DEADLINE);
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
        Self { server, id, prefix, right, found }
    }

    /// As another process opens it, which knows nothing of what failed.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        self.server.client(DEADLINE)
    }

    pub(crate) fn objects(&self) -> Arc<dyn ObjectStore> {
        self.store().into_objects().unwrap()
    }

    pub(crate) fn backup_id(&self) -> BackupId {
        BackupId::parse(&self.id).unwrap()
    }

    /// Repairs through a client with this deadline.
    pub(crate) fn repair_within(
        &self,
        deadline: Duration,
        cancel: &AtomicBool,
    ) -> cinderfs::Result<Vec<Finding>> {
        let objects = self.server.client(deadline).into_objects().unwrap();
        repair(&objects, &self.backup_id(), &options(cancel))
    }

    pub(crate) fn repair_with(&self, options: RepairOptions<'_>) -> cinderfs::Result<Vec<Finding>> {
        repair(&self.objects(), &self.backup_id(), &options)
    }

    pub(crate) fn repair(&self) -> cinderfs::Result<Vec<Finding>> {
        self.repair_within(DEADLINE, &AtomicBool::new(false))
    }

    /// Without changing anything.
    pub(crate) fn dry_run(&self) -> cinderfs::Result<Vec<Finding>> {
        let never = AtomicBool::new(false);
        self.repair_with(RepairOptions { dry_run: true, ..options(&never) })
    }

    /// What of the store was put in or taken out, without the prefix.
    pub(crate) fn changes(&self) -> Vec<String> {
        let requests = self.server.requests.lock().unwrap();
        let changes =
            requests.iter().filter(|request| !request.starts_with("GET") && !request.starts_with("HEAD"));
        changes.map(|request| request.replace(&self.prefix, "").replace(&self.id, "ID")).collect()
    }

    pub(crate) fn marker(&self) -> String {
        format!(".cinderfs-{}", self.id)
    }

    /// Everything is as it was, and nothing else is there.
    #[track_caller]
    pub(crate) fn check_whole(&self, what: &str) {
        assert!(bytes(&self.server) == self.right, "{what}: {:?}", self.server.names());
    }

    /// The same, but for the restart points that the metadata tells.
    #[track_caller]
    pub(crate) fn check_whole_but_for_points(&self, what: &str) {
        self.check_old_or_new(what);
        let mut now = bytes(&self.server);
        let document = format!("{}_metadata", self.prefix);
        now.insert(document.clone(), self.right[&document].clone());
        assert!(now == self.right, "{what}: {:?}", self.server.names());
        self.server.objects.lock().unwrap().retain(|name, _| name.starts_with(&self.prefix));
        assert!(read(&self.store(), &self.id).unwrap() == content(), "{what}: by itself");
    }

    /// Each object is old or new, at most a marker is beside them, and the backup reads as before: healed from the other one.
    #[track_caller]
    pub(crate) fn check_old_or_new(&self, what: &str) {
        for (name, now) in bytes(&self.server).iter().filter(|(name, _)| **name != self.marker()) {
            let is_one = [&self.found, &self.right].iter().any(|state| state.get(name) == Some(now));
            assert!(is_one, "{what}: {name} is neither old nor new");
        }
        let missing: Vec<_> = self.found.keys().filter(|name| !self.server.names().contains(name)).collect();
        assert!(missing.is_empty(), "{what}: {missing:?} were removed");
        assert!(read(&self.store(), &self.id).unwrap() == content(), "{what}");
    }
}

/// One object after the other.
pub(crate) fn options(cancel: &AtomicBool) -> RepairOptions<'_> {
    RepairOptions { dry_run: false, threads: 1, cancel, progress: &|_, _| {}, hook: None }
}

pub(crate) fn bytes(server: &FakeSwift) -> BTreeMap<String, Vec<u8>> {
    let objects = server.objects.lock().unwrap();
    objects.iter().map(|(name, object)| (name.clone(), object.bytes.clone())).collect()
}

pub(crate) fn is_all_repaired(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| matches!(finding.outcome, Outcome::Repaired))
}
