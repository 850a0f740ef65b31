//! Does every command find the backups of a store behind HTTP, named by a word or by a `cinder.conf`, and does a mount of it go on?

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/swift_server.rs"]
mod swift_server;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use mount::{PATIENCE, Setup};
use swift_server::SwiftServer;
use tempfile::TempDir;

struct World {
    server: Arc<SwiftServer>,
    folder: TempDir,
}

impl World {
    /// A server that has this genuine store.
    fn new(store: &str) -> Self {
        Self {
            server: SwiftServer::start(&genuine::root().join(store)),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn conf(&self) -> PathBuf {
        self.server.conf_in(self.folder.path())
    }

    /// stdout and stderr of a command that gets `key` from its environment and ends with `code`.
    #[track_caller]
    fn run(&self, key: &str, words: &[&str], code: i32) -> (String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
            .args(words)
            .env_remove("CINDERFS_LOG")
            .env_remove("OS_CLOUD")
            .env("CINDERFS_CACHE_DIR", self.folder.path().join("cache"))
            .env("OS_IDENTITY_API_VERSION", "1")
            .env("OS_AUTH_URL", self.server.auth_url())
            .env("OS_USERNAME", "u")
            .env("OS_PASSWORD", key)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {out}{err}");
        (out, err)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

fn backups(of: &str) -> Vec<genuine::Genuine> {
    genuine::backups_of(of)
}

#[test]
fn commands_that_read_take_the_word() {
    let world = World::new("ext4");
    let (listed, _) = world.run("k", &["list", "swift:c", "-f", "value", "-c", "ID"], 0);
    for backup in backups("ext4") {
        assert!(listed.contains(&backup.id), "{listed}");
        let target = world.path(&backup.id);
        world.run("k", &["restore", "-q", "swift:c", &backup.id, &target], 0);
        backup.check("restored", &fs::read(&target).unwrap());
        world.run("k", &["show", "swift:c", &backup.id], 0);
        world.run("k", &["map", "swift:c", &backup.id], 0);
    }
    let (verified, _) = world.run("k", &["verify", "-q", "swift:c"], 0);
    assert!(verified.contains("3 good"), "{verified}");
    let last = &backups("ext4")[2].id;
    let target = world.path(last);
    world.run("k", &["audit", "-q", "swift:c", last, &target], 0);
    world.run("k", &["diff", "-q", "swift:c", &backups("ext4")[0].id, last], 0);
    world.run("k", &["hydrate", "-q", "swift:c", last], 0);
    world.run("k", &["index", "-q", "swift:c"], 0);
    // Cinder's driver would not find them below a folder; they are a copy of what its POSIX driver wrote.
    let (_, told) = world.run("k", &["record", "export", "swift:c"], 3);
    assert!(told.contains("it lies in a folder of the container"), "{told}");
    let posix = cinderfs::writer::records::POSIX_DRIVER;
    world.run("k", &["record", "export", "swift:c", "--driver", posix], 0);
    let (configured, _) =
        world.run("", &["list", world.conf().to_str().unwrap(), "-f", "value", "-c", "ID"], 0);
    assert_eq!(configured, listed);
}

#[test]
fn a_scan_lists_once() {
    let world = World::new("ext4");
    world.run("k", &["list", "swift:c"], 0);
    // One page, and an empty one that ends it.
    assert_eq!(world.server.listings.load(Ordering::SeqCst), 2);
}

#[test]
fn who_may_not_and_what_is_not_there_end_as_scripts_were_promised() {
    let world = World::new("ext4");
    let (_, told) = world.run("wrong", &["list", "swift:c"], 12);
    assert!(told.contains("hint: check OS_CLOUD"), "{told}");
    let (_, told) = world.run("k", &["list", "swift:none"], 10);
    assert!(told.contains("no store \"swift:none\"") && told.contains("hint: "), "{told}");
    for words in [&["delete", "swift:none", "latest"][..], &["delete", "swift:none", "--leftovers"]] {
        let (_, told) = world.run("k", words, 10);
        assert!(told.contains("no store \"swift:none\"") && told.contains("hint: check the name"), "{told}");
    }
    let mountpoint = world.path("mnt");
    fs::create_dir(&mountpoint).unwrap();
    world.run("wrong", &["mount", "swift:c", &mountpoint], 12);
    world.run("k", &["mount", "swift:none", &mountpoint], 10);
}

#[test]
fn a_container_within_a_container_is_refused() {
    let world = World::new("ext4");
    let source = world.path("disk");
    fs::write(&source, [7; 4096]).unwrap();
    let (_, told) = world.run("k", &["create", "swift:c", &source, "--container", "d"], 2);
    assert!(told.contains("which is one itself") && told.contains("hint: the store swift: is all"), "{told}");
}

#[test]
fn an_account_needs_no_usual_container_to_delete() {
    let world = World::new("ext4");
    let (_, told) = world.run("k", &["delete", "swift:", "--leftovers"], 0);
    assert!(told.contains("there was nothing left of killed runs"), "{told}");
}

fn read(image: &Path) -> Vec<u8> {
    fs::read(image).unwrap()
}

// > The daemon of an object store can open, in place of the store's files, those by which host names are looked up and,
// > where credentials are renewed from files, these files; and sockets of IPv4 and IPv6, none of which listens.
#[test]
fn a_mount_gives_up_its_rights_and_gets_other_tokens_all_the_same() {
    let world = World::new("ext4");
    let mount = Setup::default().log("debug").mount(&world.conf());
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid().as_raw_nonzero())).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let threads = fs::read_dir(format!("/proc/{}/task", mount.pid().as_raw_nonzero())).unwrap();
    let mut names = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap());
    assert!(names.all(|name| name != "closing\n"), "it lists while nobody looks");
    assert!(mount.log().contains("one thread, no core dumps"), "{}", mount.log());
    for backup in backups("ext4") {
        world.server.forget_tokens();
        backup.check("mounted", &read(&mount.image(&backup.id)));
    }
    assert!(mount.log().contains("another one is asked for"), "{}", mount.log());
}

// > An object store does the same.
#[test]
fn a_server_that_says_nothing_costs_reads_and_no_remount() {
    let world = World::new("ext4");
    let mount = Setup::default().options("store_timeout=2").mount(&world.conf());
    let backup = &backups("ext4")[0];
    let image = File::open(mount.image(&backup.id)).unwrap();
    world.server.is_silent.store(true, Ordering::SeqCst);
    let error = image.read_at(&mut [0; 4096], 8 << 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert_eq!(fs::read_dir(mount.path("backups")).unwrap().count(), 3);
    world.server.is_silent.store(false, Ordering::SeqCst);
    let started = Instant::now();
    while let Err(error) = image.read_at(&mut [0; 4096], 8 << 20) {
        assert!(started.elapsed() < PATIENCE, "{error}: {}", mount.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    backup.check("afterwards", &read(&mount.image(&backup.id)));
}

// > A server that has never answered, and refuses connections or cannot be found, is given up after 10 seconds.
#[test]
fn a_server_that_is_not_there_is_given_up_soon() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for host in [nobody.to_string(), "nobody.invalid:80".to_owned()] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.args(["list", "--store-timeout", "3600", "swift:c"]);
        command.env("OS_IDENTITY_API_VERSION", "1").env("OS_AUTH_URL", format!("http://{host}/auth/v1.0"));
        command.env("OS_USERNAME", "u").env("OS_PASSWORD", "k").env_remove("OS_CLOUD");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        mount::within(3 * PATIENCE, "the command's end", || child.try_wait().unwrap().is_some());
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("cannot ") && told.contains(", tried for 10 s"), "{told}");
    }
}

/// A server that says the same to everybody; its address.
fn saying(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let _ = client.read(&mut [0; 16384]);
            let _ = client.write_all(words);
        }
    });
    address
}

#[test]
fn a_server_of_another_kind_is_told_at_once() {
    let refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    // What TLS answers to who has not begun with it: an alert.
    let alert = &[0x15, 3, 3, 0, 2, 2, 70];
    for (url, why, code) in [
        (format!("https://{}/v1", saying(refusal)), "does not speak TLS; is it an http: URL?", 1),
        (format!("http://{}/v1", saying(alert)), "does not speak HTTP; is it an https: URL?", 1),
        (format!("http://{}/v1", saying(refusal)), "the authentication URL is wrong", 2),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.args(["list", "--store-timeout", "3600", "swift:c"]).env_remove("OS_CLOUD");
        command.env("OS_IDENTITY_API_VERSION", "1").env("OS_AUTH_URL", url);
        let output = command.env("OS_USERNAME", "u").env("OS_PASSWORD", "k").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(why) && !told.contains("tried for"), "{told}");
        assert_eq!(output.status.code(), Some(code), "{told}");
    }
}
