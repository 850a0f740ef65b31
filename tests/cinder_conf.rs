//! Does a `cinder.conf` lead to the backups that cinder-backup makes, and a share to where it is mounted?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder for configuration files and what they lead to.
struct World(TempDir);

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn conf(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("[DEFAULT]\n{text}")).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// A mount of any kind, gone at the end whatever happens.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores").join(name)
}

fn cinderfs(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(words)
        .env_remove("CINDERFS_LOG")
        .env("CINDERFS_CACHE_DIR", "/nonexistent/cache")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What it prints on stdout and stderr.
#[track_caller]
fn ends(words: &[&str], code: i32) -> (String, String) {
    let output = cinderfs(words);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{words:?}: {stderr}");
    (stdout, stderr)
}

const POSIX: &str = "backup_driver = cinder.backup.drivers.posix.PosixBackupDriver\n";

#[test]
fn the_store_that_a_cinder_conf_names_is_listed() {
    let world = World::new();
    let store = fixture("ext4");
    let expected = ends(&["list", store.to_str().unwrap(), "-f", "json"], 0).0;
    let plain = world.conf("cinder.conf", &format!("{POSIX}backup_posix_path = {}\n", store.display()));
    assert_eq!(ends(&["list", &plain, "-f", "json"], 0), (expected.clone(), String::new()));
    // A distribution's file, the operator's, and a folder of pieces, which win.
    let dist = world.conf(
        "dist.conf",
        &format!("{POSIX}state_path = /nonexistent\nbackup_posix_path = $state_path/ext4\n"),
    );
    let own = world.conf("own.conf", "backup_workers = 4\n");
    world.conf("own.conf.d/10-state.conf", &format!("state_path = {}\n", store.parent().unwrap().display()));
    let both = format!("{dist},{own}");
    assert_eq!(ends(&["list", &both, "-f", "json"], 0), (expected, String::new()));
    let (_, stderr) = ends(&["list", &dist], 10);
    assert!(stderr.contains("/nonexistent/ext4") && stderr.contains("backup_posix_path"), "{stderr}");
}

#[test]
fn variables_that_cinder_backup_would_take_options_from_win_over_files() {
    let world = World::new();
    let conf = world.conf("cinder.conf", &format!("{POSIX}backup_posix_path = /nonexistent\nplace = ext4\n"));
    let list = |path: &str| {
        Command::new(env!("CARGO_BIN_EXE_cinderfs"))
            .args(["list", &conf, "-f", "json"])
            .env("OS_DEFAULT__BACKUP_POSIX_PATH", path)
            .output()
            .unwrap()
    };
    let path = fixture("$place");
    let output = list(path.to_str().unwrap());
    let expected = ends(&["list", fixture("ext4").to_str().unwrap(), "-f", "json"], 0).0;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let output = list("/$nothing");
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("OS_DEFAULT__… of the environment: backup_posix_path"), "{stderr}");
}

// > Of a cinder.conf and files beside it that are told with it later ones win, and behind all of them come, in the same order, the
// > `*.conf` files of their `.d` folders; a `cinder-backup.conf` that is not told is not read, and named on stderr.
#[test]
fn files_are_read_in_cinder_backups_order() {
    let world = World::new();
    let store = fixture("ext4");
    let expected = ends(&["list", store.to_str().unwrap(), "-f", "json"], 0).0;
    let main = world.conf("cinder.conf", &format!("{POSIX}backup_posix_path = {}\n", store.display()));
    let own = world.conf("cinder-backup.conf", "backup_posix_path = /nonexistent/own\n");
    let (stdout, stderr) = ends(&["list", &main, "-f", "json"], 0);
    assert_eq!(stdout, expected);
    assert!(stderr.contains(&format!("{own} is not read")) && stderr.contains(&format!("{main},{own}")));
    let both = format!("{main},{own}");
    let (_, stderr) = ends(&["list", &both], 10);
    assert!(stderr.contains("/nonexistent/own") && !stderr.contains("is not read"), "{stderr}");
    world.conf("cinder.conf.d/10.conf", &format!("backup_posix_path = {}\n", store.display()));
    assert_eq!(ends(&["list", &both, "-f", "json"], 0), (expected.clone(), String::new()));
    world.conf("cinder-backup.conf.d/10.conf", "backup_posix_path = /nonexistent/last\n");
    let (_, stderr) = ends(&["list", &both], 10);
    assert!(stderr.contains("/nonexistent/last"), "{stderr}");
}

#[test]
fn a_store_is_mounted_by_its_cinder_conf() {
    let world = World::new();
    let conf =
        world.conf("cinder.conf", &format!("{POSIX}backup_posix_path = {}\n", fixture("ext4").display()));
    let mountpoint = world.path("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let guard = Mounted(mountpoint.clone());
    // From another working directory than the daemon's, with a relative path.
    let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(["mount", "cinder.conf", "mnt"])
        .current_dir(world.0.path())
        .env("CINDERFS_CACHE_DIR", "/nonexistent/cache")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let backups = fs::read_dir(mountpoint.join("backups")).unwrap().count();
    assert_eq!(backups, 3);
    ends(&["umount", mountpoint.to_str().unwrap()], 0);
    drop(guard);
    assert!(Path::new(&conf).exists());
}

#[test]
fn new_backups_are_written_as_the_cinder_conf_says() {
    let world = World::new();
    fs::create_dir(world.path("store")).unwrap();
    let conf = world.conf(
        "cinder.conf",
        &format!(
            "{POSIX}backup_posix_path = {}\nbackup_compression_algorithm = zstd\nbackup_file_size = 1048576\n\
             backup_sha_block_size_bytes = 65536\nbackup_container = nightly/db\n",
            world.path("store").display()
        ),
    );
    let source = world.path("disk.img");
    fs::write(&source, vec![7; 3 << 20]).unwrap();
    let create = |words: &[&str]| {
        let all = [&["create", &conf, source.to_str().unwrap()], words].concat();
        ends(&all, 0).0.trim().to_owned()
    };
    let document = |container: &str| -> Value {
        let files =
            fs::read_dir(world.path("store").join(container)).unwrap().map(|entry| entry.unwrap().path());
        let metadata = files.filter(|path| path.to_string_lossy().ends_with("_metadata")).max().unwrap();
        serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap()
    };
    let full = create(&[]);
    let objects = document("nightly/db")["objects"].as_array().unwrap().clone();
    assert_eq!(objects.len(), 3);
    assert_eq!(objects[0].as_object().unwrap().values().next().unwrap()["compression"], "zstd");
    let (shown, _) = ends(&["show", &conf, &full, "-f", "json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["block_bytes"], 65536, "{shown}");
    // What the call says counts more.
    create(&["--container", "other", "--compression", "none", "--object-size", "2M"]);
    let objects = document("other")["objects"].as_array().unwrap().clone();
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[0].as_object().unwrap().values().next().unwrap()["compression"], "none");
}

#[test]
fn what_is_not_followed_is_told_and_what_cannot_be_is_refused() {
    let world = World::new();
    let told = world.conf(
        "told.conf",
        &format!("{POSIX}backup_posix_path = {}\nbackup_tape_robot = yes\n", fixture("ext4").display()),
    );
    let (_, stderr) = ends(&["list", &told], 0);
    assert!(stderr.contains("told.conf sets what cinderfs does not follow: backup_tape_robot"), "{stderr}");
    let half = world.conf(
        "half.conf",
        "backup_driver = cinder.backup.drivers.s3\nbackup_s3_endpoint_url = http://127.0.0.1:1\n\
         backup_s3_store_access_key = a\nbackup_s3_store_secret_key = b\nbackup_s3_sse_customer_key = s3cret\n",
    );
    let (_, stderr) = ends(&["list", "--store-timeout", "1", &half], 1);
    let warning = "half.conf: backup_s3_sse_customer_key is set and backup_s3_sse_customer_algorithm is not";
    assert!(stderr.contains(warning) && !stderr.contains("s3cret"), "{stderr}");
    assert!(!stderr.contains("does not follow"), "{stderr}");
    let tries = world.conf(
        "tries.conf",
        "backup_driver = cinder.backup.drivers.s3\nbackup_s3_endpoint_url = http://127.0.0.1:1\n\
         backup_s3_store_access_key = a\nbackup_s3_store_secret_key = b\nbackup_s3_timeout = 5\nbackup_s3_flurb = 1\n",
    );
    let (_, stderr) = ends(&["list", "--store-timeout", "1", &tries], 1);
    let says = |of: &str| stderr.contains(&format!("tries.conf sets what cinderfs does not follow: {of}\n"));
    assert!(says("backup_s3_flurb"), "{stderr}");
    assert!(says("backup_s3_timeout; how long a store is tried is what the store timeout says"), "{stderr}");
    for (text, expected) in [
        ("backup_driver = cinder.backup.drivers.ceph.CephBackupDriver\n", "Ceph RBD are not supported yet"),
        ("backup_driver = cinder.backup.drivers.tsm\n", "dsmc"),
        ("backup_driver = my.Driver\n", "my.Driver"),
        ("backup_driver = cinder.backup.drivers.nfs\n", "backup_share is not set"),
        ("nonsense\n", "line 2: no ':' or '=' found in assignment"),
        ("backup_driver = cinder.backup.drivers.posix\nbackup_posix_path = $where\n", "refers to $where"),
    ] {
        let conf = world.conf("refused.conf", text);
        let (_, stderr) = ends(&["list", &conf], 2);
        assert!(stderr.contains(expected) && stderr.contains("refused.conf"), "{text}: {stderr}");
        assert!(!stderr.contains("hint: "), "it is a cinder.conf: {stderr}");
    }
    let missing = world.path("nope.conf").to_str().unwrap().to_owned();
    let (_, stderr) = ends(&["list", &format!("{told},{missing}")], 10);
    assert!(stderr.contains(&format!("cannot read {missing:?}")), "{stderr}");
    // A file that is no configuration.
    let (_, stderr) = ends(&["list", "/bin/true"], 2);
    assert!(stderr.contains("it is not UTF-8") && stderr.contains("read as a cinder.conf"), "{stderr}");
}

#[test]
fn a_share_is_found_where_it_is_mounted() {
    let world = World::new();
    let mountpoint = world.path("share");
    fs::create_dir(&mountpoint).unwrap();
    // bindfs calls its mounts by the folder behind them; with this type and name the kernel's table shows what it does for GlusterFS.
    let behind = world.path("nas:/vol");
    fs::create_dir(world.path("nas:")).unwrap();
    assert!(Command::new("cp").arg("-r").args([&fixture("ext4"), &behind]).status().unwrap().success());
    let status = Command::new("bindfs")
        .args(["-o", "subtype=glusterfs"])
        .args([&behind, &mountpoint])
        .status()
        .unwrap();
    assert!(status.success());
    let _guard = Mounted(mountpoint.clone());
    let expected = ends(&["list", fixture("ext4").to_str().unwrap(), "-f", "json"], 0).0;
    let share = behind.to_str().unwrap().replace(":/vol", ":vol");
    let conf = world.conf(
        "cinder.conf",
        &format!(
            "backup_driver = cinder.backup.drivers.glusterfs.GlusterfsBackupDriver\nglusterfs_backup_share = {share}\n"
        ),
    );
    assert_eq!(ends(&["list", &conf, "-f", "json"], 0).0, expected);
    assert!(mountpoint.read_dir().unwrap().count() > 0, "it is not ours to unmount");
}

#[test]
fn a_share_that_cannot_be_mounted_is_told_with_what_to_do() {
    let share = "192.0.2.1.invalid:/exports/cinder";
    // Its server cannot be found, or this machine has nothing to mount it with; it may well exist.
    let (_, stderr) = ends(&["list", share], 1);
    assert!(stderr.contains(&format!("cannot mount the share {share}")), "{stderr}");
    // Others than root are told what root has to run.
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args([env!("CARGO_BIN_EXE_cinderfs"), "list", share])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(12), "{stderr}");
    assert!(
        stderr.contains("mount -t nfs -o nosuid,nodev,noexec 192.0.2.1.invalid:/exports/cinder"),
        "{stderr}"
    );
}

#[test]
fn a_share_of_our_own_mount_is_called_by_its_name() {
    let world = World::new();
    let disk = world.path("disk");
    fs::write(&disk, [7; 4096]).unwrap();
    // In the place of mount(8), in a namespace of its own: nobody can write to what it mounts.
    let program = world.path("mount");
    fs::write(&program, "#!/bin/sh\nfor last; do :; done\nPATH=$REST mount -t tmpfs -o ro none \"$last\"\n")
        .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let rest = std::env::var("PATH").unwrap();
    let output = Command::new("unshare")
        .args(["--mount", env!("CARGO_BIN_EXE_cinderfs"), "create", "nfs://nas.invalid/export"])
        .arg(&disk)
        .env("PATH", format!("{}:{rest}", world.0.path().display()))
        .env("REST", &rest)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("in the store \"nas.invalid:/export\""), "{stderr}");
    assert!(!stderr.contains("/run/cinderfs"), "{stderr}");
}
