//! Does an NFS share behave as every store does? With the kernel's server and client, where `scripts/vm/run.sh nfs` has them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, unused_imports, unused_macros, reason = "a part of each kit is used")]

#[path = "common/conformance.rs"]
mod conformance;

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cinderfs::store::posix::PosixStore;
use cinderfs::store::share::{Attached, Share, ShareKind};
use cinderfs::store::{Store, read_exact_at};
use conformance::{Bench, listed, name};

/// A share that cinder-backup has mounted, empty, and for one test at a time.
struct Mounted {
    store: PosixStore,
    attached: Attached,
    _alone: MutexGuard<'static, ()>,
}

impl Mounted {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let share = std::env::var("TEST_NFS_SHARE").expect("TEST_NFS_SHARE; run scripts/vm/run.sh nfs");
        let share = Share::new(ShareKind::Nfs, &share).unwrap();
        let attached = share.attach(Some(Duration::from_secs(20))).unwrap();
        assert!(!attached.is_ours());
        for entry in fs::read_dir(attached.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        let store = PosixStore::open(attached.path()).unwrap();
        Self { store, attached, _alone: alone }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.attached.path().join(name)
    }
}

impl Bench for Mounted {
    fn store(&self) -> &dyn Store {
        &self.store
    }
    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A name that no lister of a suffix asks for.
        let new = self.path(".new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, path).unwrap();
    }
    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
}

/// A test of each property that is of NFS as well.
macro_rules! conforms_over_nfs {
    ($($property:ident),*) => {
        $(#[test]
        #[ignore = "needs NFS; scripts/vm/run.sh nfs"]
        fn $property() {
            conformance::$property(&Mounted::new());
        })*
    };
}
conforms_over_nfs!(
    an_empty_store_lists_nothing,
    lists_by_suffix_sorted_and_nested,
    any_utf8_name_is_a_name,
    a_missing_object_is_not_found,
    reads_across_and_past_the_end,
    an_empty_object_is_an_object,
    no_offset_is_too_big,
    the_version_follows_the_content,
    the_listing_tells_what_open_tells,
    what_was_listed_is_read_as_it_was_listed_or_not_at_all,
    many_threads_read_the_right_bytes
);

/// As of every store; but a file that is open goes on under a name of the client's own, `.nfs` and a number, which is no object's.
#[test]
#[ignore = "needs NFS; scripts/vm/run.sh nfs"]
fn an_open_object_outlives_its_name() {
    let bench = Mounted::new();
    let object = "c/o_metadata";
    bench.put(object, b"old content");
    let old = bench.store().open(&name(object)).unwrap();
    bench.put(object, b"new");
    let new = bench.store().open(&name(object)).unwrap();
    bench.remove(object);
    assert!(bench.store().open(&name(object)).is_err());
    assert!(listed(bench.store(), "_metadata").is_empty());
    for (source, content) in [(&old, &b"old content"[..]), (&new, b"new")] {
        let mut buf = vec![0; content.len()];
        read_exact_at(&**source, &mut buf, 0).unwrap();
        assert_eq!(buf, content);
    }
}
