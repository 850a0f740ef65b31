//! How a mount begins and ends: background, signals, refusals, unmounting, dead mounts, other users.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Signal;
use tempfile::TempDir;

use mount::*;
use store::*;

/// A folder with a `store` of one backup `b` and an empty `mnt`.
fn place() -> (TempDir, PathBuf, PathBuf) {
    let folder = open_folder();
    let [store, mountpoint] = ["store", "mnt"].map(|name| folder.path().join(name));
    Backup::new("b", "v", noise(1, 64 * BLOCK)).put(&store);
    fs::create_dir(&mountpoint).unwrap();
    (folder, store, mountpoint)
}

#[track_caller]
fn fails(command: &mut Command, code: i32, message: &str) -> Output {
    let output = run(command);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {}", stderr(&output));
    assert!(stderr(&output).contains(message), "{message:?} is not in {}", stderr(&output));
    assert_eq!(stdout(&output), "");
    output
}

fn umount(mountpoint: &Path) -> Command {
    let mut command = cinderfs();
    command.arg("umount").arg(mountpoint);
    command
}

/// Runs what unmounts until the mount is in use no more. This test's files are closed; but a sibling test that starts a program
/// at this moment holds copies of them until the program runs.
#[track_caller]
fn unmounts(mut attempt: impl FnMut() -> Output) {
    within(PATIENCE, "an unmounting that is not in use", || {
        let output = attempt();
        let in_use = stderr(&output).contains("in use") || stderr(&output).contains("busy");
        assert!(output.status.success() || in_use, "{}", stderr(&output));
        output.status.success()
    });
}

/// The process that serves a mountpoint in the background: its arguments name it.
fn daemon_of(mountpoint: &Path) -> Option<u32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let mut processes: Vec<u32> = processes.collect();
    processes.retain(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
        words.contains(&&b"--daemon"[..]) && words.contains(&mountpoint.as_os_str().as_encoded_bytes())
    });
    assert!(processes.len() <= 1);
    processes.pop()
}

// > `cinderfs mount` returns 0 when the mount answers, and otherwise with its error after taking away what it began;
// > it prints nothing, except where the store holds no backup or a part of it cannot be read.
#[test]
fn the_background_mount_is_ready_when_the_command_returns() {
    let (folder, store, mountpoint) = place();
    let _cleared = Cleared(mountpoint.clone());
    // Relative paths, from a working directory that the daemon must let go of.
    let output = run(cinderfs().current_dir(folder.path()).args(["mount", "store", "mnt"]));
    // All its output is here, so the daemon holds neither stream open.
    assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), "", ""));
    assert_eq!(fs::read(mountpoint.join("backups/b/volume.img")).unwrap().len(), 64 * BLOCK);
    let daemon = daemon_of(&mountpoint).unwrap();
    assert_eq!(fs::read_link(format!("/proc/{daemon}/cwd")).unwrap(), Path::new("/"));
    for (descriptor, leads_to) in [(0, "/dev/null"), (1, "/dev/null")] {
        assert_eq!(fs::read_link(format!("/proc/{daemon}/fd/{descriptor}")).unwrap(), Path::new(leads_to));
    }
    unmounts(|| run(&mut umount(&mountpoint)));
    assert_eq!(mount_line(&mountpoint), None);
    within(PATIENCE, "the daemon's end", || daemon_of(&mountpoint).is_none());

    let missing = folder.path().join("missing");
    fails(cinderfs().arg("mount").arg(&missing).arg(&mountpoint), 10, "cannot open the store");
    // The kernel refuses after the daemon has begun: the mountpoint is right and the options are not.
    let log = folder.path().join("no/such/log");
    let option = format!("log={}", log.display());
    fails(
        cinderfs().args(["mount", "-o", &option]).arg(&store).arg(&mountpoint),
        1,
        "cannot write to the log",
    );
    assert_eq!((mount_line(&mountpoint), daemon_of(&mountpoint)), (None, None));
}

// > With `log=FILE` the daemon in the background appends its log to that file.
#[test]
fn the_background_logs_to_a_file() {
    let (folder, store, mountpoint) = place();
    let _cleared = Cleared(mountpoint.clone());
    flip(&Backup::new("b", "v", vec![]).file(&store, "-00001"), 0);
    fs::write(folder.path().join("log"), "old\n").unwrap();
    let mut command = cinderfs();
    command.current_dir(folder.path()).args(["-v", "mount", "-o", "log=log"]).args([&store, &mountpoint]);
    assert!(run(&mut command).status.success());
    assert_eq!(errno(fs::read(mountpoint.join("backups/b/volume.img"))), libc::EIO);
    unmounts(|| run(&mut umount(&mountpoint)));
    within(PATIENCE, "the daemon's end", || daemon_of(&mountpoint).is_none());
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.starts_with("old\n") && log.contains("mounted") && log.contains("lost: "), "{log}");
}

/// Whatever stands in them, paths reach the kernel, fusermount3 and the mount table as they are.
#[test]
fn odd_paths_are_mounted_and_unmounted() {
    let (folder, store, mountpoint) = place();
    let odd = |name: &str| folder.path().join(format!("{name} a,b\\c=d 'ü'\t"));
    let (odd_store, odd_mountpoint) = (odd("store"), odd("mnt"));
    fs::rename(store, &odd_store).unwrap();
    fs::rename(mountpoint, &odd_mountpoint).unwrap();
    let link = folder.path().join("link");
    symlink(&odd_mountpoint, &link).unwrap();
    let _cleared = Cleared(odd_mountpoint.clone());
    for way_in in [&odd_mountpoint, &link] {
        for way_out in [&link, &odd_mountpoint] {
            assert!(run(cinderfs().arg("mount").arg(&odd_store).arg(way_in)).status.success());
            assert_eq!(names(&odd_mountpoint.join("backups")), ["b"]);
            unmounts(|| run(&mut umount(way_out)));
            assert!(names(&odd_mountpoint).is_empty());
        }
    }
    assert!(run(Command::new("chmod").args(["-R", "a+rX"]).arg(&odd_store)).status.success());
    let mut mount = Setup::default().by_nobody().options("allow_other").mount(&odd_store);
    assert_eq!(names(&mount.path("backups")), ["b"]);
    mount.signal(Signal::TERM);
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
}

// > A mountpoint that is, contains or lies inside the store or the cache is refused, by whatever path it is
// > named.
#[test]
fn a_mountpoint_keeps_away_from_the_store_and_the_cache() {
    let (folder, store, _) = place();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("outer/inner-store")).unwrap();
    fs::create_dir_all(path("cache/below")).unwrap();
    fs::create_dir_all(path("store/empty/deep")).unwrap();
    fs::create_dir(path("bound")).unwrap();
    symlink(&store, path("link")).unwrap();
    symlink("store/empty", path("link-inside")).unwrap();
    mount_bind(&store, path("bound")).unwrap();
    struct Bound(PathBuf);
    impl Drop for Bound {
        fn drop(&mut self) {
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }
    let _bound = Bound(path("bound"));
    let refused = |store: &Path, mountpoint: &Path, message: &str| {
        let options = ["mount", "-f", "-o", "nonempty"];
        fails(
            cinderfs().args(options).arg(store).arg(mountpoint).env("CINDERFS_CACHE_DIR", path("cache")),
            2,
            message,
        );
        assert_eq!(mount_line(mountpoint).filter(|line| line.contains("cinderfs:")), None);
    };
    refused(&store, &store, "is the store");
    refused(&store, &path("store/empty"), "lies inside the store");
    refused(&store, &path("store/empty/deep"), "lies inside the store");
    refused(&store, folder.path(), "would hide the store");
    refused(&store, &path("link"), "is the store");
    refused(&path("link"), &store, "is the store");
    refused(&store, &path("link-inside"), "lies inside the store");
    refused(&store, &path("outer/../store/empty"), "lies inside the store");
    refused(&store, &path("bound"), "is the store");
    refused(&store, &path("bound/empty"), "lies inside the store");
    refused(&path("bound"), &path("store/empty/deep"), "lies inside the store");
    refused(&path("outer/inner-store"), &path("outer"), "would hide the store");
    refused(&store, &path("cache"), "is the cache");
    refused(&store, &path("cache/below"), "lies inside the cache");
}

// > A mountpoint that is missing, not a directory, or not empty (unless `-o nonempty`) is refused.
//
// > An unknown mount option is refused with exit code 2.
#[test]
fn wrong_mountpoints_and_options_are_refused() {
    let (folder, store, mountpoint) = place();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let full = folder.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "x").unwrap();
    // The same in the foreground and in the background.
    for flags in [&["mount", "-f"][..], &["mount"]] {
        let mount = |options: &[&str], at: &Path, code: i32, message: &str| {
            fails(cinderfs().args(flags).args(options).arg(&store).arg(at), code, message);
        };
        mount(&[], &folder.path().join("missing"), 1, "missing");
        mount(&[], &file, 2, "is not a directory");
        mount(&[], &full, 2, "is not empty");
        for (option, message) in [
            ("cache_sise=1G", "unknown mount option \"cache_sise=1G\""),
            ("ro,bogus", "unknown mount option \"bogus\""),
            ("rw", "a backup cannot be written to"),
            ("cache_size=many", "cache_size=many"),
            ("uid=root", "a numeric user id"),
            ("direct_io", "unknown mount option"),
        ] {
            mount(&["-o", option], &mountpoint, 2, message);
        }
        assert_eq!((mount_line(&mountpoint), mount_line(&full)), (None, None));
    }
    let _cleared = Cleared(full.clone());
    assert!(
        run(cinderfs()
            .args(["mount", "-o", "nonempty,cache_size=8M,threads=2,_netdev"])
            .arg(&store)
            .arg(&full))
        .status
        .success()
    );
    assert_eq!(names(&full), ["backups", "names", "volumes"]);
    unmounts(|| run(&mut umount(&full)));
    assert_eq!(names(&full), ["precious"]);
}

// > SIGINT, SIGTERM and SIGHUP unmount and exit with 0; files that are still open then fail, and no dead
// > mount is left behind.
#[test]
fn signals_unmount_and_exit_0_also_while_files_are_open() {
    let (_folder, store, _) = place();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for busy in [false, true] {
            let mut mount = Mount::new(&store);
            let open = busy.then(|| File::open(mount.image("b")).unwrap());
            mount.signal(signal);
            assert_eq!(mount.wait().code(), Some(0), "{signal:?}: {}", mount.log());
            assert_eq!(mount_line(mount.root()), None, "{signal:?}");
            assert!(names(mount.root()).is_empty(), "the mountpoint answers again");
            let log = mount.log();
            assert!(!log.contains(" WARN "), "{log}");
            let told = log.lines().filter(|line| line.starts_with("cinderfs: "));
            assert!(told.clone().all(|line| line.contains("it is detached")), "{log}");
            assert_eq!(told.count(), usize::from(busy), "{log}");
            if let Some(open) = open {
                assert!(open.read_at(&mut [0; 10], 0).is_err());
            }
        }
    }
    // And while somebody reads as fast as he can.
    let mut mount = Mount::new(&store);
    let (path, stop) = (mount.image("b"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut bytes = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut file) = File::open(&path) else { return };
                    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
                    bytes.clear();
                    let _ = file.read_to_end(&mut bytes);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        mount.signal(Signal::TERM);
        let status = mount.wait();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(status.code(), Some(0), "{}", mount.log());
    });
    assert_eq!(mount_line(mount.root()), None);
}

// > After `umount` by somebody else the daemon exits with 0.
#[test]
fn the_daemon_ends_with_its_mount() {
    let (_folder, store, _) = place();
    for words in [&["umount"][..], &["fusermount3", "-u"], &["umount", "--lazy"]] {
        let mut mount = Mount::new(&store);
        unmounts(|| run(Command::new(words[0]).args(&words[1..]).arg(mount.root())));
        assert_eq!(mount.wait().code(), Some(0), "{words:?}: {}", mount.log());
        assert_eq!(mount_line(mount.root()), None);
    }
}

// > `cinderfs umount` takes away only mounts of cinderfs, also ones whose daemon was killed; one that is in
// > use only with `--lazy`.
#[test]
fn umount_takes_away_mounts_of_cinderfs_only() {
    let (folder, store, mountpoint) = place();
    fails(&mut umount(&mountpoint), 2, "nothing is mounted");
    fails(&mut umount(Path::new("/proc")), 2, "not one of cinderfs");
    let bound = folder.path().join("bound");
    fs::create_dir(&bound).unwrap();
    mount_bind(&store, &bound).unwrap();
    let foreign = run(&mut umount(&bound));
    unmount(&bound, UnmountFlags::DETACH).unwrap();
    assert_eq!(foreign.status.code(), Some(2), "{}", stderr(&foreign));

    let mut mount = Mount::new(&store);
    let open = File::open(mount.image("b")).unwrap();
    fails(&mut umount(mount.root()), 1, "--lazy");
    assert!(mount_line(mount.root()).is_some());
    assert!(run(umount(mount.root()).arg("--lazy")).status.success());
    assert_eq!(mount_line(mount.root()), None);
    open.read_exact_at(&mut [0; 10], 0).unwrap();
    drop(open);
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
}

// > When the daemon was killed, what the kernel does not have cached is ENOTCONN at once and every name after
// > 1 second, until `cinderfs umount` takes the mount away.
//
// > Mounting at a dead mount fails and tells how to take it away.
#[test]
fn a_dead_mount_says_so_and_can_be_taken_away() {
    let (_folder, store, _) = place();
    let mut mount = Mount::new(&store);
    let open = File::open(mount.image("b")).unwrap();
    let unread = mount.path("volumes");
    mount.kill();
    assert_eq!(errno(fs::read_dir(unread)), libc::ENOTCONN);
    std::thread::sleep(Duration::from_millis(1100));
    for path in ["", "backups", "backups/b/volume.img"] {
        assert_eq!(errno(fs::metadata(mount.path(path))), libc::ENOTCONN, "{path}");
    }
    assert!(open.read_at(&mut [0; 10], 0).is_err());
    let advice = format!("cinderfs umount \"{}\"", mount.root().display());
    for flags in [&["mount", "-f"][..], &["mount"]] {
        fails(cinderfs().args(flags).arg(&store).arg(mount.root()), 1, &advice);
    }
    drop(open);
    assert!(mount_line(mount.root()).is_some());
    unmounts(|| run(&mut umount(mount.root())));
    assert_eq!(mount_line(mount.root()), None);
    assert!(names(mount.root()).is_empty());
    // Now it can be mounted again.
    let _cleared = Cleared(mount.root().to_owned());
    assert!(run(cinderfs().arg("mount").arg(&store).arg(mount.root())).status.success());
    assert_eq!(names(&mount.path("backups")), ["b"]);
    unmounts(|| run(&mut umount(mount.root())));
}

// > Who is not root mounts and unmounts through `fusermount3`.
#[test]
fn nobody_mounts_and_unmounts_through_fusermount3() {
    let (_folder, store, _) = place();
    assert!(run(Command::new("chmod").args(["-R", "a+rX"]).arg(&store)).status.success());
    let nobody = |mount: &Mount, words: &[&str]| {
        let pid = mount.pid().as_raw_nonzero().to_string();
        run(Command::new("nsenter")
            .args([
                "--mount",
                "--target",
                &pid,
                "--",
                "setpriv",
                "--reuid",
                "65534",
                "--regid",
                "65534",
                "--clear-groups",
                "--",
            ])
            .args(words))
    };
    let inside = |mount: &Mount| {
        let root = mount.root().to_str().unwrap();
        root[root.find("/tmp/").unwrap()..].to_owned()
    };
    // By a signal, alone and busy; by the command; the daemon is 0 each time.
    let mut mount = Setup::default().by_nobody().mount(&store);
    let image = format!("{}/backups/b/volume.img", inside(&mount));
    assert!(nobody(&mount, &["cat", &image]).stdout == noise(1, 64 * BLOCK));
    assert!(fs::read_dir(mount.root()).is_err(), "not even root may look, without allow_other");
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid().as_raw_nonzero())).unwrap();
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    mount.signal(Signal::TERM);
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());

    let mut mount = Setup::default().by_nobody().options("allow_other").mount(&store);
    let open = File::open(mount.image("b")).unwrap();
    mount.signal(Signal::INT);
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
    drop(open);

    let mut mount = Setup::default().by_nobody().options("allow_root").mount(&store);
    assert_eq!(names(&mount.path("backups")), ["b"], "root may look");
    let binary = format!("{}/cinderfs", Path::new(&inside(&mount)).parent().unwrap().display());
    unmounts(|| nobody(&mount, &[&binary, "umount", &inside(&mount)]));
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
}
