//! Do several mounts of one bucket see what others write into it and take out of it?

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/whole.rs"]
mod whole;

use std::fs;

use mount::{Mount, PATIENCE, Setup, names, within};
use whole::World;

/// All mounts show exactly these backups before long.
#[track_caller]
fn show(mounts: &[Mount], ids: &[&String]) {
    let mut expected: Vec<String> = ids.iter().map(|id| (*id).clone()).collect();
    expected.sort();
    for mount in mounts {
        within(PATIENCE, "the bucket as it is now", || names(&mount.path("backups")) == expected);
    }
}

// > Any number of mounts may serve one bucket, and all of them see what `create` and `delete` do to it meanwhile.
#[test]
fn mounts_of_one_bucket_see_what_is_made_and_deleted() {
    for is_swift in [true, false] {
        let world = World::new(&["c1"]);
        let store = world.word(is_swift, "c1");
        let mut first: Vec<u8> = (0..300_000_u32).map(|n| (n / 7 % 251) as u8).collect();
        let base = world.create(&first, &store, &["--name", "base"]);
        let mounted = |word: &String| Setup::default().environment(&world.environment()).mount(word.as_ref());
        let mounts = [mounted(&store), mounted(&store), mounted(&world.word(is_swift, ""))];
        show(&mounts, &[&base]);
        let before = first.clone();
        first[150_000..200_000].fill(3);
        let child = world.create(&first, &store, &["--incremental"]);
        show(&mounts, &[&base, &child]);
        std::thread::scope(|scope| {
            for mount in &mounts {
                scope.spawn(|| {
                    assert!(fs::read(mount.image(&child)).unwrap() == first);
                    assert!(fs::read(mount.image(&base)).unwrap() == before);
                });
            }
        });
        world.run(&["delete", "-q", &store, &child], 0);
        show(&mounts, &[&base]);
        for mount in &mounts {
            // The kernel may keep a name for a moment longer.
            within(PATIENCE, "the image gone", || !mount.image(&child).exists());
            assert!(fs::read(mount.image(&base)).unwrap() == before);
        }
    }
}
