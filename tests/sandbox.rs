//! What a daemon can still do, and that it does all it has to.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "sandbox/probes.rs"]
mod probes;
#[path = "common/store.rs"]
mod store;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use mount::*;
use store::*;

const READ_ALL: &str = "0000000000000004";
const READ_ALL_AND_ADMIN: &str = "0000000000200004";

/// A folder with a `store` of one backup `b`.
fn place() -> (tempfile::TempDir, std::path::PathBuf, Backup) {
    let folder = open_folder();
    let store = folder.path().join("store");
    let backup = Backup::new("b", "v", noise(1, 64 * BLOCK));
    backup.put(&store);
    (folder, store, backup)
}

/// One field of each thread's status, which must agree.
#[track_caller]
fn status(pid: Pid, field: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    let mut values = Vec::new();
    for task in tasks {
        // One that looks through the store ends when it has.
        let Ok(text) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap();
        values.push(line.trim().to_owned());
    }
    assert!(values.len() > 3, "all threads are looked at");
    values.dedup();
    assert_eq!(values.len(), 1, "{field} differs between threads: {values:?}");
    values.remove(0)
}

/// The process that unmounts for a daemon.
fn unmounter_of(daemon: Pid) -> Option<Pid> {
    let path = format!("/proc/{0}/task/{0}/children", daemon.as_raw_nonzero());
    let children = fs::read_to_string(path).ok()?;
    Pid::from_raw(children.split_ascii_whitespace().next()?.parse().ok()?)
}

fn command_line(pid: Pid) -> String {
    let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}

/// Reads everything through the mount, and sees a backup come.
#[track_caller]
fn works(mount: &Mount, store: &Path, backup: &Backup) {
    assert!(fs::read(mount.image(&backup.id)).unwrap() == backup.image);
    let another = Backup::new("c", "v", noise(2, 64 * BLOCK));
    another.put(store);
    within(PATIENCE, "the new backup", || names(&mount.path("backups")).contains(&"c".to_owned()));
    assert!(fs::read(mount.image("c")).unwrap() == another.image);
}

// > Unless `no_sandbox` is given, each thread of the daemon runs without a way to new privileges, under a seccomp filter,
// > and with no capability but, where root mounted, `CAP_DAC_READ_SEARCH`, and `CAP_SYS_ADMIN` where the kernel reads hydrated images.
//
// > The daemon leaves no core dump.
#[test]
fn the_daemon_keeps_what_it_needs_only() {
    let (folder, store, backup) = place();
    // Cinder's files are closed to others.
    for ending in ["-00001", "_sha256file", "_metadata"] {
        fs::set_permissions(backup.file(&store, ending), fs::Permissions::from_mode(0o600)).unwrap();
        chown(backup.file(&store, ending), Some(1234), Some(1234)).unwrap();
    }
    let cache = folder.path().join("cache");
    let setup = || Setup::default().cache_dir(&cache).log("debug").options("disk_cache=64M");
    let mut mount = setup().mount(&store);
    works(&mount, &store, &backup);
    let status_of = |mount: &Mount| {
        ["NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"]
            .map(|field| status(mount.pid(), field))
    };
    let none = "0000000000000000";
    assert_eq!(status_of(&mount), ["1", "2", READ_ALL, READ_ALL, none, none, none]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.pid().as_raw_nonzero())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_ascii_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
    assert!(mount.log().contains("landlock (ABI "), "this kernel is to have landlock: {}", mount.log());
    assert!(!mount.log().contains("without "), "{}", mount.log());
    mount.signal(Signal::TERM);
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
    assert_eq!(mount_line(mount.root()), None);
    drop(mount);

    let mount = setup().options("no_sandbox").mount(&store);
    assert_eq!(status(mount.pid(), "Seccomp"), "0");
    assert_eq!(status(mount.pid(), "NoNewPrivs"), "0");
    assert_eq!(unmounter_of(mount.pid()), None);
    drop(mount);

    let hydrated = run(cinderfs().env("CINDERFS_CACHE_DIR", &cache).arg("hydrate").arg(&store).arg("b"));
    assert!(hydrated.status.success(), "{}", stderr(&hydrated));
    let mount = setup().mount(&store);
    assert_eq!(status(mount.pid(), "CapEff"), READ_ALL_AND_ADMIN);
    assert!(fs::read(mount.image("b")).unwrap() == backup.image);
    drop(mount);
    let mount = setup().options("passthrough=off").mount(&store);
    assert_eq!(status(mount.pid(), "CapEff"), READ_ALL);
}

#[test]
fn who_is_not_root_is_restricted_too_and_unmounts() {
    let (_folder, store, backup) = place();
    let mut mount = Setup::default().by_nobody().log("debug").options("allow_other").mount(&store);
    works(&mount, &store, &backup);
    assert_eq!(status(mount.pid(), "NoNewPrivs"), "1");
    assert_eq!(status(mount.pid(), "Seccomp"), "2");
    assert_eq!(status(mount.pid(), "CapEff"), "0000000000000000");
    // What may leave no core dump belongs to root: others of the same user cannot look into its memory.
    let memory = fs::metadata(format!("/proc/{}/mem", mount.pid().as_raw_nonzero())).unwrap();
    assert_eq!(memory.uid(), 0);
    let unmounter = unmounter_of(mount.pid()).unwrap();
    mount.signal(Signal::TERM);
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
    assert!(!mount.log().contains("WARN"), "it unmounted at the first go: {}", mount.log());
    assert_eq!(command_line(unmounter), "", "it ended before its daemon");
}

// > Once it serves, the daemon can start no program, open no socket, unmount nothing and signal no other process; a
// > process of its own, `cinderfs umount --on-request`, unmounts for it, and ends with it.
#[test]
fn the_unmounter_outlives_signals_and_ends_with_its_daemon() {
    let (_folder, store, _) = place();
    for is_killed in [false, true] {
        let mut mount = Mount::new(&store);
        let unmounter = unmounter_of(mount.pid()).unwrap();
        assert!(command_line(unmounter).contains("umount --on-request"), "{}", command_line(unmounter));
        // As a service manager does to all processes of a service, this one first.
        for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
            kill_process(unmounter, signal).unwrap();
        }
        if is_killed {
            mount.kill();
        } else {
            mount.signal(Signal::TERM);
            assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
            assert_eq!(mount_line(mount.root()), None);
        }
        within(PATIENCE, "the unmounter's end", || command_line(unmounter).is_empty());
    }
}

#[test]
fn the_background_is_restricted_too() {
    let (folder, store, backup) = place();
    let (mountpoint, log) = (folder.path().join("mnt"), folder.path().join("log"));
    fs::create_dir(&mountpoint).unwrap();
    for (words, said) in [(&[][..], 1), (&["--no-sandbox"], 0)] {
        let _cleared = Cleared(mountpoint.clone());
        let option = format!("log={}", log.display());
        let mut command = cinderfs();
        command.args(["-vv", "mount", "-o", &option]).args(words).args([&store, &mountpoint]);
        let output = run(&mut command);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(fs::read(mountpoint.join("backups/b/volume.img")).unwrap() == backup.image);
        let output = run(cinderfs().arg("umount").arg(&mountpoint));
        assert!(output.status.success(), "{}", stderr(&output));
        within(PATIENCE, "the daemon's last word", || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("unmounted by somebody else"))
        });
        let log_text = fs::read_to_string(&log).unwrap();
        assert_eq!(log_text.matches("gave up what it does not need: one thread").count(), said, "{log_text}");
        fs::remove_file(&log).unwrap();
    }
}

/// Digests in a layout that is not Cinder's go to a temporary file when they are many.
// > Once it serves, the daemon can open no file but those of the store (to read), of the cache directory (to write, hydrated
// > images to read) and `/dev/fuse`; where it has no cache directory, it can also use the directory for temporary files.
#[test]
fn temporary_files_have_a_place() {
    let (folder, store, _) = place();
    let mut image = vec![0; 512 * (262_144 + 8)];
    let at = image.len() - 512;
    image[at..].copy_from_slice(&noise(3, 512));
    let backup = Backup::new("many", "w", image).block(512);
    backup.put(&store);
    let path = backup.file(&store, "_sha256file");
    let document: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::write(&path, serde_json::to_vec(&document).unwrap()).unwrap();
    let nowhere = folder.path().join("nowhere");
    fs::write(&nowhere, "a file").unwrap();
    for cache in [None, Some(&*nowhere)] {
        let mut setup = Setup::default();
        if let Some(cache) = cache {
            setup = setup.cache_dir(cache);
        }
        let mount = setup.mount(&store);
        let read = fs::read(mount.image("many"));
        assert!(read.is_ok_and(|bytes| bytes == backup.image), "{cache:?}: {}", mount.log());
        let maps = fs::read_to_string(format!("/proc/{}/maps", mount.pid().as_raw_nonzero())).unwrap();
        let is_in_cache = maps.contains("/cache/scratch/");
        assert_eq!(is_in_cache, cache.is_none(), "{maps}");
    }
}
