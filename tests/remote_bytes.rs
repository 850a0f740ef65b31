//! What does it cost to look at backups in an object store, and to read a little of them? The server counts.

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;
#[path = "common/swift_server.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod swift_server;

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use mount::{Mount, Setup, names, run, stderr, stdout};
use store::{Backup, noise};
use swift_server::SwiftServer;
use tempfile::TempDir;

/// Small, so that a small volume has many digests.
const BLOCK: usize = 512;
const LEN: usize = 16 << 20;
const OBJECT: usize = 1 << 20;
const DIGESTS: &str = "_sha256file";

/// What opening takes of a digest file: its head, and its tail.
const ENDS: u64 = 12 << 10;

/// What one read takes of it: a window, or two where it lies in both.
const WINDOWS: u64 = 64 << 10;

struct World {
    server: Arc<SwiftServer>,
    folder: TempDir,
    backups: Vec<Backup>,
}

impl World {
    /// Backups, the first of which has zeros in a quarter of its volume.
    fn new(ids: &[&str]) -> Self {
        let folder = mount::open_folder();
        let extents: Vec<_> = (0..LEN).step_by(OBJECT).map(|at| at..at + OBJECT).collect();
        let backups = ids.iter().zip(1..).map(|(id, seed)| {
            let mut image = noise(seed, LEN);
            if seed == 1 {
                image[LEN / 4..LEN / 2].fill(0);
            }
            let backup = Backup::new(id, &format!("v{id}"), image).block(BLOCK).extents(&extents);
            backup.put(&folder.path().join("store"));
            backup
        });
        let backups = backups.collect();
        Self { server: SwiftServer::start(&folder.path().join("store")), folder, backups }
    }

    fn conf(&self) -> PathBuf {
        self.server.conf_in(self.folder.path())
    }

    fn mount(&self, options: &str) -> Mount {
        // The same disk cache for all mounts.
        let cache = self.folder.path().join("mounts-cache");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&cache).unwrap();
        Setup::default().cache_dir(&cache).options(options).mount(&self.conf())
    }

    /// What a command says that ends well.
    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.arg(words[0]).arg(self.conf()).args(&words[1..]).env_remove("CINDERFS_LOG");
        command.env("CINDERFS_CACHE_DIR", self.folder.path().join("cache"));
        let output = run(&mut command);
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        stdout(&output).to_owned()
    }

    fn digest_bytes(&self) -> u64 {
        fs::metadata(self.backups[0].file(&self.folder.path().join("store"), DIGESTS)).unwrap().len()
    }

    /// Bytes fetched of digests since this was asked last.
    fn fetched(&self) -> u64 {
        self.server.take_sent(DIGESTS).0
    }
}

/// One page, and nothing that the kernel adds to it.
fn page(mount: &Mount, id: &str, at: usize) -> Vec<u8> {
    let file = File::open(mount.image(id)).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, at as u64).unwrap();
    bytes
}

// > Of an image whose digests come from a server, an object store's or a network file system's, `st_blocks` counts what its objects hold.
#[test]
fn looking_at_images_and_reading_a_little_of_one_fetches_few_digests() {
    let world = World::new(&["a", "b", "c"]);
    assert!(world.digest_bytes() > 2 << 20);
    let mount = world.mount("store_timeout=30");
    for round in 0..2 {
        for id in names(&mount.path("backups")) {
            let stat = fs::metadata(mount.image(&id)).unwrap();
            assert_eq!((stat.len(), stat.blocks()), (LEN as u64, LEN as u64 / 512));
            assert_eq!(names(&mount.path(&format!("backups/{id}"))), ["metadata.json", "volume.img"]);
            assert_eq!(mount.document(&id)["data_bytes"], serde_json::Value::Null);
        }
        let du = run(Command::new("du").arg("-s").arg(mount.root()));
        assert!(du.status.success(), "{}", stderr(&du));
        let most = if round == 0 { 3 * ENDS } else { 0 };
        let fetched = world.fetched();
        assert!(fetched <= most, "round {round}: {fetched}");
    }
    let middle = LEN / 2 + 8192;
    assert!(page(&mount, "b", middle) == world.backups[1].image[middle..middle + 4096]);
    let fetched = world.fetched();
    assert!(fetched > 0 && fetched <= WINDOWS, "{fetched}");
}

#[test]
fn commands_fetch_the_digests_that_they_need_once() {
    let world = World::new(&["a", "b", "c"]);
    world.run(&["list"]);
    let fetched = world.fetched();
    assert!(fetched > 0 && fetched <= 3 * ENDS, "list: {fetched}");
    let shown = world.run(&["show", "a", "-f", "json"]);
    assert!(shown.contains("\"data_bytes\": null"), "{shown}");
    let fetched = world.fetched();
    assert!(fetched > 0 && fetched <= ENDS, "show: {fetched}");
    // Each of them, once, and the ends twice at most.
    let all = world.digest_bytes();
    let once = |words: &[&str]| {
        let said = world.run(words);
        let fetched = world.fetched();
        assert!(fetched >= all - ENDS && fetched <= all + 2 * ENDS, "{words:?}: {fetched} of {all}");
        said
    };
    let counted = once(&["show", "a", "-f", "value", "-c", "data_bytes"]);
    assert_eq!(counted.trim(), (LEN / 4 * 3).to_string());
    let mapped = once(&["map", "a", "-f", "json"]);
    assert!(mapped.contains("\"zero\":true"), "{mapped}");
    world.server.take_sent("");
    let target = world.folder.path().join("restored");
    once(&["restore", "-q", "a", target.to_str().unwrap()]);
    assert!(fs::read(&target).unwrap() == world.backups[0].image);
    // And of the objects nothing twice.
    let (fetched, _) = world.server.take_sent("");
    assert!(fetched <= (LEN + OBJECT) as u64, "{fetched} bytes of objects");
}

// > With `disk_cache=SIZE` a mount of an object store asks for no byte of objects that an earlier mount has read, and of their digests for
// > the ends of the file only.
#[test]
fn what_an_earlier_mount_has_read_is_not_fetched_again() {
    let world = World::new(&["a", "b"]);
    // One that lists many objects.
    let path = world.backups[0].file(&world.folder.path().join("store"), "_metadata");
    let mut metadata = world.backups[0].metadata();
    metadata["of another writer"] = vec![0; 1 << 20].into();
    fs::write(&path, serde_json::to_vec(&metadata).unwrap()).unwrap();
    let document = fs::metadata(path).unwrap().len();
    assert!(document > 2 << 20);
    for round in 0..3 {
        let mount = world.mount("disk_cache=256M");
        let image = fs::read(mount.image("a")).unwrap();
        assert!(image == world.backups[0].image, "round {round}");
        drop(mount);
        let (digests, _) = world.server.take_sent(DIGESTS);
        let (documents, _) = world.server.take_sent("a_metadata");
        assert_eq!(documents, document, "each byte of it is fetched once");
        world.server.take_sent("b_metadata");
        let (objects, answers) = world.server.take_sent("");
        if round == 0 {
            // Readers that come at the same time may ask for a part of them twice.
            assert!(digests < 2 * world.digest_bytes(), "{digests}");
            assert!(objects >= LEN as u64 / 4 * 3, "{objects}");
        } else {
            assert!(digests <= 2 * ENDS, "round {round}: {digests} bytes of digests");
            assert_eq!((objects, answers), (0, 0), "round {round}");
        }
    }
}
