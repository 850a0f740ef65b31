//! Are reads of a mount right, or EIO in time, when the way to real Swift and S3, or to an emulator of Google's, does all that it should not,
//! and right again behind it?
//!
//! Run by `scripts/services/test.sh`, which starts the servers. `remote_faults.rs` asks the same of single reads, with a server of a few lines.

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, unused_imports, unused_macros, reason = "a part of each kit is used")]

#[path = "common/as_cinder.rs"]
mod as_cinder;
#[path = "common/bad_way.rs"]
mod bad_way;
#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/servers.rs"]
mod servers;

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use as_cinder::upload;
use bad_way::{ALWAYS, BadWay, Fault};
use genuine::Genuine;
use mount::{Mount, Setup, within};
use servers::{Bucket, Kind};

/// `store_timeout=`, in seconds.
const TIMEOUT: &str = "store_timeout=3";

/// A read that has not come back by then hangs: twenty times what the store has. Where each try brings some bytes, it takes a third of it.
const HANG: Duration = Duration::from_secs(60);

/// What is in the targets of all requests for data objects, and in no other; and so on.
const DATA: &str = "-0000";
const DIGESTS: &str = "_sha256file";
const ALL: &str = "";

/// The newest backups of volumes that have nothing in common, with their chains behind them.
fn chains(count: usize) -> Vec<Vec<Genuine>> {
    let codecs = ["zlib", "bz2", "zstd", "none"];
    let stores = ["28.0.0", "27.0.0", "26.3.0", "25.3.1", "24.5.0", "23.5.0"];
    let names = stores.iter().flat_map(|release| codecs.map(|codec| format!("release-{release}-{codec}")));
    let chain = |store: String| genuine::backups_of(&store).into_iter().rev().collect();
    names.take(count).map(chain).collect()
}

/// A bucket with some chains.
struct World {
    bucket: Bucket,
    chains: Vec<Vec<Genuine>>,
}

impl World {
    fn new(kind: Kind, chains: usize) -> Self {
        let world = Self { bucket: Bucket::new(kind), chains: self::chains(chains) };
        world.chains.iter().for_each(|chain| upload(&world.bucket, chain));
        world
    }

    /// The bucket, mounted by a way of its own, which fails as `prepare` says while it is mounted.
    fn mount(&self, prepare: impl Fn(&BadWay)) -> (Arc<BadWay>, Mount) {
        let (way, base) = BadWay::to(self.bucket.address());
        prepare(&way);
        let direct = format!("http://{}", self.bucket.address());
        let (word, environment) = self.bucket.word();
        let by_the_way = |text: &str| text.replace(&direct, &base);
        let environment: Vec<_> =
            environment.into_iter().map(|(name, value)| (name, by_the_way(&value))).collect();
        let setup = Setup::default().options(TIMEOUT).environment(&environment);
        (way, setup.mount(by_the_way(&word).as_ref()))
    }
}

/// A whole image; fails when the read hangs.
#[track_caller]
fn read(mount: &Mount, backup: &Genuine) -> io::Result<Vec<u8>> {
    let (image, (sender, receiver)) = (mount.image(&backup.id), mpsc::channel());
    std::thread::spawn(move || sender.send(fs::read(image)));
    receiver.recv_timeout(HANG).unwrap_or_else(|_| panic!("reading {backup} hangs: {}", mount.log()))
}

/// What passes while it is tried again.
const PASSING: [(Fault, usize); 13] = [
    (Fault::Late(Duration::from_millis(200)), ALWAYS),
    (Fault::Reset, 2),
    (Fault::ResetInBody, 2),
    (Fault::Cut, 2),
    (Fault::Half, 1),
    (Fault::Garbage, 1),
    (Fault::WrongByte, 1),
    (Fault::Status(500), 2),
    (Fault::Status(502), 1),
    (Fault::Status(503), 3),
    (Fault::Status(429), 3),
    (Fault::Status(408), 1),
    (Fault::Status(401), 1),
];

fn what_passes_is_not_seen(kind: Kind) {
    let world = World::new(kind, PASSING.len());
    let (way, mount) = world.mount(|way| way.fail(ALL, Fault::Status(503), 2));
    assert_eq!(way.met(), 2, "none while it was mounted");
    for ((fault, times), chain) in PASSING.into_iter().zip(&world.chains) {
        if fault == Fault::Status(401) && kind != Kind::Swift {
            continue; // There is no token that could be renewed; `remote_tokens.rs` has Google's.
        }
        way.fail(DATA, fault, times);
        let bytes = read(&mount, &chain[0]).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        chain[0].check(&format!("{kind:?}, {fault:?}"), &bytes);
        assert!(way.met() == times || times == ALWAYS && way.met() > 1, "{fault:?} was met {}", way.met());
        way.heal();
    }
}

/// What does not pass by itself, and in which objects.
const LASTING: [(&str, Fault); 11] = [
    (DATA, Fault::Late(Duration::from_secs(8))),
    (DATA, Fault::Hang),
    (DATA, Fault::Reset),
    (DATA, Fault::ResetInBody),
    (DATA, Fault::Cut),
    (DATA, Fault::Half),
    (DATA, Fault::Garbage),
    (DATA, Fault::WrongByte),
    (DATA, Fault::Status(503)),
    (DATA, Fault::Status(429)),
    (DIGESTS, Fault::Status(500)),
];

/// A fault without an end, on a way of its own.
fn lasts(world: &World, chain: &[Genuine], part: &'static str, fault: Fault) {
    let (way, mount) = world.mount(|_| ());
    way.fail(part, fault, ALWAYS);
    match read(&mount, &chain[0]) {
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{fault:?}: {error}"),
        // Each try brings something, and the next one goes on behind it.
        Ok(bytes) => {
            assert!(matches!(fault, Fault::Cut | Fault::ResetInBody), "{fault:?} did no harm");
            chain[0].check(&format!("{fault:?}"), &bytes);
        }
    }
    assert!(way.met() > 0, "{fault:?}");
    way.heal();
    within(HANG, &format!("right again after {fault:?}"), || {
        let bytes = read(&mount, &chain[0]);
        bytes.is_ok_and(|bytes| {
            chain[0].check(&format!("after {fault:?}"), &bytes);
            true
        })
    });
    // What was not asked for before is read at once.
    chain[1].check(&format!("parent after {fault:?}"), &read(&mount, &chain[1]).unwrap());
}

fn what_lasts_is_an_error_in_time_and_passes_with_its_cause(kind: Kind) {
    let world = World::new(kind, LASTING.len());
    std::thread::scope(|scope| {
        for ((part, fault), chain) in LASTING.into_iter().zip(&world.chains) {
            let world = &world;
            scope.spawn(move || lasts(world, chain, part, fault));
        }
    });
}

fn wrong_bytes_never_reach_the_reader(kind: Kind) {
    let world = World::new(kind, 3);
    for (chain, (part, times)) in world.chains.iter().zip([(DATA, 1), (DATA, ALWAYS), (DIGESTS, ALWAYS)]) {
        // Who looks for a lost block elsewhere reads the digests of others, and keeps them.
        let (way, mount) = world.mount(|_| ());
        way.fail(part, Fault::WrongByte, times);
        match read(&mount, &chain[0]) {
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{kind:?}: {error}"),
            Ok(bytes) => chain[0].check(&format!("{kind:?}, wrong bytes in {part}"), &bytes),
        }
        assert!(way.met() > 0, "{kind:?}");
    }
}

fn a_store_that_was_away_is_listed_and_read_again(kind: Kind) {
    let world = World::new(kind, 1);
    let (way, mount) = world.mount(|_| ());
    let known = &world.chains[0][0];
    for fault in [Fault::Status(503), Fault::Hang] {
        way.fail(ALL, fault, ALWAYS);
        let error = read(&mount, known).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{kind:?}, {fault:?}");
        way.heal();
    }
    let new = genuine::backups_of("ext4");
    upload(&world.bucket, &new);
    // Listed again, if a listing was under way, when the store is asked again.
    within(2 * HANG, "listed", || mount.image(&new[2].id).exists());
    for backup in [&new[2], known] {
        // What was given up a moment ago is not asked for again at once.
        within(2 * HANG, "read", || read(&mount, backup).is_ok());
        backup.check("read again", &read(&mount, backup).unwrap());
    }
}

/// A module for each server, with each property as a test.
macro_rules! on_the_way_to {
    ($($module:ident: $kind:ident),*) => {
        $(mod $module {
            use super::Kind;
            on_the_way_to!(@each $kind what_passes_is_not_seen what_lasts_is_an_error_in_time_and_passes_with_its_cause
                wrong_bytes_never_reach_the_reader a_store_that_was_away_is_listed_and_read_again);
        })*
    };
    (@each $kind:ident $($property:ident)*) => {
        $(#[test]
        #[ignore = "needs servers; scripts/services/test.sh"]
        fn $property() {
            super::$property(Kind::$kind);
        })*
    };
}
on_the_way_to!(swift: Swift, s3: S3, googles_storage: Gcs);
