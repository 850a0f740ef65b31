//! Does a GlusterFS volume behave as every store does, and does genuine Cinder restore from it what was made there?
//!
//! With the real server and its real client, which `scripts/services/test.sh` starts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/cinder.rs"]
mod cinder;
#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/gluster.rs"]
mod gluster;

use std::fs;
use std::time::Duration;

use cinder::Cinder;
use cinderfs::store::Store;
use cinderfs::store::posix::PosixStore;
use cinderfs::store::share::{Attached, Share, ShareKind};
use conformance::{Bench, conforms};
use gluster::{Mounted, World, ends, told};
use serde_json::json;

/// A volume that cinder-backup has mounted.
struct Volume {
    store: PosixStore,
    attached: Attached,
    mounted: Mounted,
    world: World,
}

impl Volume {
    fn new() -> Self {
        let world = World::new();
        let mounted = world.mount_as_cinder();
        let share = Share::new(ShareKind::Glusterfs, &told("SHARE")).unwrap();
        let attached = share.attach(Some(Duration::from_secs(20))).unwrap();
        assert!(!attached.is_ours());
        let store = PosixStore::open(attached.path()).unwrap();
        Self { store, attached, mounted, world }
    }
}

impl Bench for Volume {
    fn store(&self) -> &dyn Store {
        &self.store
    }
    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.mounted.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A name that no lister of a suffix asks for.
        let new = self.mounted.0.join(".new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, path).unwrap();
    }
    fn remove(&self, name: &str) {
        fs::remove_file(self.mounted.0.join(name)).unwrap();
    }
}

conforms!(shared gluster_volume, Volume::new());

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn genuine_cinder_restores_what_was_made_there_and_goes_on_with_it() {
    let world = World::new();
    let mounted = world.mount_as_cinder();
    let (conf, disk) = (world.conf(), world.text("disk"));
    let mut bytes: Vec<u8> = (0..5u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut cinder = Cinder::new(mounted.0.to_str().unwrap(), &[]);
    let mut words = vec!["create", "-q", "--object-size", "1M", &conf, &disk];
    for change in [0, 1] {
        bytes[3_000_000..3_100_000].fill(change);
        fs::write(&disk, &bytes).unwrap();
        let id = ends(&words, 0).0;
        assert!(cinder.restores(&id, bytes.len()) == bytes, "change {change}");
        words.push("--incremental");
        if change == 0 {
            continue;
        }
        bytes[77] ^= 1;
        fs::write(&disk, &bytes).unwrap();
        let job =
            json!({"command": "backup", "image": disk, "parent": id, "created_at": "2060-01-01T00:00:00"});
        let made = cinder.does(&job);
        ends(&["restore", "-q", &conf, made["backup_id"].as_str().unwrap(), &world.text("image")], 0);
        assert!(fs::read(world.path("image")).unwrap() == bytes, "Cinder's");
    }
}
