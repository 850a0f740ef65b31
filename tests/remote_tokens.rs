//! Is a token of a real Keystone renewed when it has expired? They live for seconds here, and the tests wait as long.
//!
//! Run by `scripts/services/test.sh`, which starts the servers.

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, unused_imports, unused_macros, reason = "a part of each kit is used")]

#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/servers.rs"]
mod servers;

use std::time::Duration;

use conformance::{Bench as _, listed, name};
use mount::Setup;
use servers::{Bucket, Kind, told};

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_token_that_expires_is_renewed() {
    let bucket = Bucket::new(Kind::Keystone);
    let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    bucket.put("o", &bytes);
    let store = bucket.store();
    let source = store.open(&name("o")).unwrap();
    let life: u64 = told(Kind::Keystone, "TOKEN_SECONDS").parse().unwrap();
    let mut buf = [0; 100];
    for offset in [0, 50_000, 90_000] {
        assert_eq!(source.read_at(&mut buf, offset).unwrap(), 100);
        assert_eq!(buf, bytes[offset as usize..][..100]);
        std::thread::sleep(Duration::from_secs(life + 2));
    }
    assert_eq!(listed(&*store, ""), ["o"]);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_mount_outlives_its_token() {
    let bucket = Bucket::new(Kind::Keystone);
    bucket.upload(&genuine::root().join("ext4"), "");
    let (word, environment) = bucket.word();
    let mount = Setup::default().environment(&environment).log("debug").mount(word.as_ref());
    let life: u64 = told(Kind::Keystone, "TOKEN_SECONDS").parse().unwrap();
    std::thread::sleep(Duration::from_secs(life + 2));
    for backup in genuine::backups_of("ext4") {
        backup.check("mounted", &std::fs::read(mount.image(&backup.id)).unwrap());
    }
    assert!(mount.log().contains("the Swift token has expired"), "{}", mount.log());
}
