//! Is a GlusterFS volume a store like any other? With the real server and its real client, which `scripts/services/test.sh` starts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/genuine.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod genuine;
#[path = "common/gluster.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod gluster;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use gluster::{World, cinderfs, ends, inside, told};
use rustix::process::{Pid, Signal, kill_process};

/// For what comes by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// In which a client gives up a server that is silent: the volume's `network.ping-timeout`, and as long again until it notices.
const GIVEN_UP: Duration = Duration::from_secs(14);

/// Where `cinderfs` mounts shares.
const OURS: &str = "/run/cinderfs/shares/";

/// A process that was stopped, and goes on at the end whatever happens.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn new(pids: Vec<Pid>) -> Self {
        pids.iter().for_each(|&pid| kill_process(pid, Signal::STOP).unwrap());
        Self(pids)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().for_each(|&pid| {
            let _ = kill_process(pid, Signal::CONT);
        });
    }
}

#[track_caller]
fn count_backups(store: &str) -> usize {
    ends(&["list", store, "-f", "value", "-c", "ID"], 0).0.lines().count()
}

fn is_mounted_by_us() -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {OURS}"))
}

/// Processes whose command line has both words.
fn processes(one: &str, other: &str) -> Vec<Pid> {
    let has = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        line.contains(one) && line.contains(other)
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| has(&line)))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .collect()
}

#[track_caller]
fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "not {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs a server; scripts/services/test.sh"]
fn genuine_backups_are_their_volumes() {
    let world = World::new();
    let share = told("SHARE");
    let cinders = world.mount_as_cinder();
    for entry in fs::read_dir(genuine::root()).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            let status = Command::new("cp").arg("-a").arg(entry.join(".")).arg(&cinders.0).status();
            assert!(status.unwrap().success());
        }
    }
    // What is mounted is used, and left; HOST:/VOLUME is enough to find it.
    let url = format!("glusterfs://{}", share.replace(":/", "/"));
    for word in [&share, &url] {
        assert_eq!(count_backups(word), genuine::BACKUPS, "{word}");
        assert!(!is_mounted_by_us());
        assert!(fs::read_dir(&cinders.0).unwrap().count() > 0);
    }
    drop(cinders);
    // What is not is mounted.
    let mount = world.mount(&[]);
    assert!(is_mounted_by_us());
    for backup in genuine::backups() {
        let image = fs::read(mount.0.join("backups").join(&backup.id).join("volume.img")).unwrap();
        backup.check("from a GlusterFS volume", &image);
    }
    let some = &genuine::backups_of("zstd-chain")[3];
    ends(&["restore", &world.conf(), &some.id, &world.text("image"), "--progress", "none"], 0);
    some.check("restored", &fs::read(world.path("image")).unwrap());
    assert!(is_mounted_by_us(), "it belongs to the daemon");
    ends(&["umount", &world.text("mnt")], 0);
    soon("unmounted", || !is_mounted_by_us());
    assert_eq!(count_backups(&url), genuine::BACKUPS);
    assert!(!is_mounted_by_us());
}

#[test]
#[ignore = "needs a server; scripts/services/test.sh"]
fn the_share_of_a_killed_daemon_is_unmounted() {
    let world = World::new();
    let mount = world.mount(&[]);
    assert!(is_mounted_by_us());
    for pid in processes("--daemon", &world.text("mnt")) {
        kill_process(pid, Signal::KILL).unwrap();
    }
    soon("unmounted", || !is_mounted_by_us());
    soon("ended", || processes("glusterfs", OURS).is_empty());
    drop(mount);
}

#[test]
#[ignore = "needs a server; scripts/services/test.sh"]
fn backups_are_made_and_removed_and_a_killed_run_leaves_nothing() {
    let world = World::new();
    let (conf, brick) = (world.conf(), PathBuf::from(told("BRICK")));
    let hidden = || {
        let names = fs::read_dir(&brick).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".cinderfs")).count()
    };
    let mut bytes: Vec<u8> = (0..5u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let disk = world.text("disk");
    fs::write(&disk, &bytes).unwrap();
    let full = ends(&["create", &conf, &disk, "--object-size", "1M"], 0).0;
    bytes[3_000_000..3_100_000].fill(9);
    fs::write(&disk, &bytes).unwrap();
    let next = ends(&["create", &conf, &disk, "--incremental", "--progress", "none"], 0).0;
    ends(&["restore", &conf, &next, &world.text("image"), "--progress", "none"], 0);
    assert!(fs::read(world.path("image")).unwrap() == bytes);
    assert_eq!(hidden(), 0);

    // Killed in the middle: what it left is not seen, and goes with the next run.
    let large: Vec<u8> = (0..8u32 << 20).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(world.path("large"), large).unwrap();
    let mut child: Child = cinderfs()
        .args(["create", &conf, &world.text("large"), "--object-size", "1M", "--progress", "none"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Beyond its lock, which tells later runs that this one is dead.
    let begun = || {
        let folders = fs::read_dir(&brick).unwrap().map(|entry| entry.unwrap().path());
        let mut hidden = folders.filter(|path| path.to_string_lossy().contains("/.cinderfs"));
        hidden.any(|path| fs::read_dir(path).is_ok_and(|entries| entries.count() > 1))
    };
    soon("begun", begun);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_mounted_by_us(), "nobody could take it away");
    assert_eq!(count_backups(&conf), 2);
    assert!(!is_mounted_by_us(), "the next one does");
    assert_eq!(hidden(), 1);
    let third = ends(&["create", &conf, &disk, "--progress", "none"], 0).0;
    assert_eq!(hidden(), 0);
    ends(&["delete", &conf, &full], 2);
    ends(&["delete", &conf, &full, "--cascade"], 0);
    ends(&["delete", &conf, &third], 0);
    assert_eq!(count_backups(&conf), 0);
    assert_eq!(hidden(), 0);
    let mut find = Command::new("find");
    find.arg(&brick).args(["-name", ".glusterfs", "-prune", "-o", "-type", "f", "-print"]);
    let left = find.output().unwrap().stdout;
    assert!(left.is_empty(), "{}", String::from_utf8_lossy(&left));
}

// > The log says that a store answers again only after the store has answered, and never for what this machine, or a client
// > of a share, remembers of it.
#[test]
#[ignore = "needs a server; scripts/services/test.sh"]
fn a_server_that_is_silent_for_a_while_is_an_error_in_time_and_no_more() {
    let world = World::new();
    let cinders = world.mount_as_cinder();
    let status = Command::new("cp").arg("-a").arg(genuine::root().join("ext4/.")).arg(&cinders.0).status();
    assert!(status.unwrap().success());
    drop(cinders);
    let (others, backup) = (&genuine::backups_of("ext4")[..2], &genuine::backups_of("ext4")[2]);
    let mount = world.mount(&["-o", &format!("store_timeout=3,log={}", world.text("log"))]);
    let image = mount.0.join("backups").join(&backup.id).join("volume.img");
    let says_again = || fs::read_to_string(world.path("log")).unwrap().contains("answers again");
    let brick = Pid::from_raw(told("BRICK_PID").parse().unwrap()).unwrap();
    let stopped = Stopped::new(vec![brick]);
    let error = fs::read(&image).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    // The client gives the server up meanwhile, and then answers by itself. Nothing is gone for that.
    let is_there_or_fails = |error: std::io::Error| {
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    };
    let latest = mount.0.join("volumes").join(&backup.volume_id).join("latest");
    let began = Instant::now();
    while began.elapsed() < GIVEN_UP {
        for folder in [&mount.0.join("backups"), &latest] {
            fs::read_dir(folder).map_or_else(is_there_or_fails, |entries| {
                assert!(entries.flatten().count() >= 2, "{folder:?}");
            });
        }
        for other in others {
            let path = mount.0.join("backups").join(&other.id).join("volume.img");
            fs::metadata(path).map_or_else(is_there_or_fails, drop);
        }
        assert!(!says_again(), "{}", fs::read_to_string(world.path("log")).unwrap());
        thread::sleep(Duration::from_millis(100));
    }
    drop(stopped);
    soon("read again", || fs::read(&image).is_ok());
    backup.check("after a while of silence", &fs::read(&image).unwrap());
    soon("told", says_again);
    ends(&["umount", &world.text("mnt")], 0);
    soon("unmounted", || !is_mounted_by_us());
}

#[test]
#[ignore = "needs a server; scripts/services/test.sh"]
fn a_share_whose_server_does_not_answer_is_given_up_with_all_that_mounts_it() {
    let world = World::new();
    let brick = Pid::from_raw(told("BRICK_PID").parse().unwrap()).unwrap();
    let glusterd = processes("glusterd", "glusterd.vol");
    assert!(!glusterd.is_empty());
    let stopped = Stopped::new([glusterd, vec![brick]].concat());
    let (conf, mountpoint) = (world.conf(), world.text("mnt"));
    let (_, said) = ends(&["mount", "-o", "store_timeout=5", &conf, &mountpoint], 1);
    // Whether mount(8) was given up first or the whole, their limits are the same.
    assert!(said.contains("did not answer"), "{said}");
    assert!(!is_mounted_by_us());
    assert_eq!(processes("glusterfs", OURS), []);
    drop(stopped);
    soon("listed again", || cinderfs().args(["list", &conf]).output().unwrap().status.success());
    assert!(!is_mounted_by_us());
}

#[test]
#[ignore = "needs a server; scripts/services/test.sh"]
fn a_mount_whose_client_died_is_passed_over() {
    let world = World::new();
    let cinders = world.mount_as_cinder();
    for pid in processes("glusterfs", cinders.0.to_str().unwrap()) {
        kill_process(pid, Signal::KILL).unwrap();
    }
    soon("dead", || fs::metadata(&cinders.0).is_err());
    assert_eq!(count_backups(&world.conf()), 0);
    assert!(fs::metadata(&cinders.0).is_err(), "it is not ours to mend");
    assert!(!is_mounted_by_us());
}

#[test]
#[ignore = "needs a server; scripts/services/test.sh"]
fn others_than_root_are_told_what_root_has_to_run_and_a_wrong_volume_what_is_wrong() {
    let world = World::new();
    let (conf, share) = (world.conf(), told("SHARE"));
    let by_nobody = |store: &str| {
        let mut command = inside("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.args([env!("CARGO_BIN_EXE_cinderfs"), "list", store, "-f", "value"]).output().unwrap()
    };
    let output = by_nobody(&conf);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(12), "{said}");
    let command = format!("mount -t glusterfs -o nosuid,nodev,noexec {share} DIRECTORY");
    assert!(said.contains(&command), "{said}");
    let cinders = world.mount_as_cinder();
    let _ = fs::set_permissions(Path::new(&cinders.0).parent().unwrap(), fs::Permissions::from_mode(0o755));
    assert!(by_nobody(&conf).status.success());
    drop(cinders);
    let host = share.split(':').next().unwrap();
    let (_, said) = ends(&["list", &format!("glusterfs://{host}/nothing")], 10);
    assert!(
        said.contains("cannot mount the share") && said.contains("failed to fetch volume file"),
        "{said}"
    );
    assert!(!is_mounted_by_us());
}
