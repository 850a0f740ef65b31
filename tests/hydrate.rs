//! Are hydrated images handed to the kernel, and only when every byte of them is right?
//!
//! Needs root, /dev/fuse, a kernel with FUSE passthrough (6.9), losetup and qemu-img.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/genuine.rs"]
mod genuine;
#[path = "hydrate/kernel.rs"]
mod kernel;
#[path = "common/mount.rs"]
mod mount;
#[path = "hydrate/opens.rs"]
mod opens;
#[path = "common/store.rs"]
mod store;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mount::{Mount, NOBODY, PATIENCE, Setup, cinderfs, names, open_folder, run, stderr, stdout, within};
use serde_json::Value;
use store::{BLOCK, Backup, flip, noise};
use tempfile::TempDir;

const ID: &str = "11111111-2222-4333-8444-555555555555";
const VOLUME: &str = "99999999-2222-4333-8444-555555555555";

/// A store and a cache directory.
struct World {
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let folder = open_folder();
        fs::create_dir(folder.path().join("store")).unwrap();
        Self { folder }
    }

    /// With a backup of `blocks` blocks, every fourth one a hole.
    fn with_backup(blocks: usize) -> (Self, Backup) {
        let world = Self::new();
        let mut image = noise(7, blocks * BLOCK);
        for block in image.chunks_mut(BLOCK).skip(1).step_by(4) {
            block.fill(0);
        }
        let backup = Backup::new(ID, VOLUME, image);
        backup.put(&world.store());
        (world, backup)
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn images(&self) -> PathBuf {
        self.cache().join("images")
    }

    /// The only file with this ending.
    #[track_caller]
    fn only(&self, ending: &str) -> PathBuf {
        let found: Vec<_> = names(&self.images()).into_iter().filter(|n| n.ends_with(ending)).collect();
        let [name] = found.as_slice() else { panic!("{found:?}") };
        self.images().join(name)
    }

    fn command(&self, store: &Path, words: &[&str]) -> Command {
        let mut command = cinderfs();
        command.env("CINDERFS_CACHE_DIR", self.cache()).arg("hydrate").arg(store).args(words);
        command
    }

    fn call(&self, words: &[&str]) -> Output {
        run(&mut self.command(&self.store(), words))
    }

    #[track_caller]
    fn hydrate(&self, words: &[&str]) -> Output {
        let output = self.call(words);
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        output
    }

    /// Mounts; the log has each read that reaches the daemon.
    #[track_caller]
    fn mount(&self, options: &str) -> Mount {
        self.setup(options).mount(&self.store())
    }

    fn setup(&self, options: &str) -> Setup {
        let setup = Setup::default().log("cinderfs::frontend::fuse::fs=trace,info").cache_dir(&self.cache());
        if options.is_empty() { setup } else { setup.options(options) }
    }

    /// Takes the data away, so that only what is hydrated can be read.
    fn lose_objects(&self, backup: &Backup) {
        fs::remove_file(backup.file(&self.store(), "-00001")).unwrap();
    }
}

/// Reads that reached the daemon.
fn reads(mount: &Mount) -> usize {
    mount.log().lines().filter(|line| line.contains(": read ino=")).count()
}

#[test]
fn a_hydrated_image_is_read_when_its_objects_are_gone() {
    let (world, backup) = World::with_backup(200);
    world.hydrate(&[ID]);
    world.lose_objects(&backup);
    for options in ["", "passthrough=off", "passthrough=off,cache_size=4M"] {
        let mount = world.mount(options);
        assert!(fs::read(mount.image(ID)).unwrap() == backup.image, "{options}");
        assert_eq!(reads(&mount) == 0, options.is_empty());
    }
    // Not because objects do not matter.
    world.hydrate(&["--drop", ID]);
    assert!(fs::read(world.mount("").image(ID)).is_err());
}

/// Backups without digests are handed to the kernel as well; through the daemon they need their objects.
#[test]
fn a_backup_that_only_md5_proves_is_hydrated_too() {
    let world = World::new();
    let backup = Backup::new(ID, VOLUME, noise(3, 40 * BLOCK)).without_digests();
    backup.put(&world.store());
    world.hydrate(&[ID]);
    world.hydrate(&["--check", ID]);
    let mount = world.mount("");
    assert!(fs::read(mount.image(ID)).unwrap() == backup.image);
    assert_eq!(reads(&mount), 0);
    drop(mount);
    assert!(fs::read(world.mount("passthrough=off").image(ID)).unwrap() == backup.image);
}

// > A hydrated file that was written to, cut, replaced or copied, that others may write to, or that has other digests than the backup is not used.
#[test]
fn a_file_that_is_not_as_it_was_left_is_not_used() {
    let other_id = "22222222-2222-4333-8444-555555555555";
    let (world, backup) = World::with_backup(40);
    let other = Backup::new(other_id, VOLUME, noise(8, backup.image.len()));
    other.put(&world.store());
    type Touch = fn(&World);
    let touches: [(&str, Touch); 7] = [
        ("a changed byte under the old time", |world| {
            let image = world.only(".img");
            let time = fs::metadata(&image).unwrap().modified().unwrap();
            flip(&image, 70_000);
            OpenOptions::new().write(true).open(&image).unwrap().set_modified(time).unwrap();
        }),
        ("a shorter file", |world| {
            OpenOptions::new().write(true).open(world.only(".img")).unwrap().set_len(5000).unwrap();
        }),
        ("a copy in its place", |world| {
            let (image, copy) = (world.only(".img"), world.images().join("copy"));
            fs::copy(&image, &copy).unwrap();
            fs::rename(copy, image).unwrap();
        }),
        ("no record", |world| fs::remove_file(world.only(".json")).unwrap()),
        ("a torn record", |world| fs::write(world.only(".json"), "{\"version\": 1").unwrap()),
        ("a file that others may write to", |world| {
            fs::set_permissions(world.only(".img"), fs::Permissions::from_mode(0o622)).unwrap();
            forge_record(world);
        }),
        ("somebody's file", |world| {
            std::os::unix::fs::chown(world.only(".img"), Some(NOBODY), None).unwrap();
            forge_record(world);
        }),
    ];
    for (what, touch) in touches {
        world.hydrate(&[ID]);
        touch(&world);
        let mount = world.mount("");
        for _ in 0..2 {
            assert!(fs::read(mount.image(ID)).unwrap() == backup.image, "{what}");
        }
        assert!(reads(&mount) > 0, "{what}");
        let told = mount.log().matches("the hydrated image is not used").count();
        assert_eq!(told, 1, "{what}: {}", mount.log());
        drop(mount);
        world.hydrate(&[ID]);
        let mount = world.mount("");
        assert!(fs::read(mount.image(ID)).unwrap() == backup.image, "{what}");
        assert_eq!(reads(&mount), 0, "{what} is not mended: {}", mount.log());
    }
    // Another backup's image and record under this one's name.
    let ours = world.only(".img");
    world.hydrate(&["--drop", ID]);
    world.hydrate(&[other_id]);
    fs::rename(world.only(".img"), &ours).unwrap();
    fs::rename(world.only(".json"), ours.with_extension("json")).unwrap();
    let mount = world.mount("");
    assert!(fs::read(mount.image(ID)).unwrap() == backup.image);
    assert!(reads(&mount) > 0);
}

/// Makes the record say that the image file is as it was left.
fn forge_record(world: &World) {
    let (image, path) = (fs::metadata(world.only(".img")).unwrap(), world.only(".json"));
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["file"]["mtime"] = serde_json::json!([image.mtime(), image.mtime_nsec()]);
    record["file"]["ctime"] = serde_json::json!([image.ctime(), image.ctime_nsec()]);
    fs::write(&path, record.to_string()).unwrap();
}

// > Where the kernel does not read it itself, a hydrated image is a source of blocks, each compared at each read, and no object is needed.
#[test]
fn without_passthrough_each_block_is_compared() {
    let (world, backup) = World::with_backup(100);
    world.hydrate(&[ID]);
    flip(&world.only(".img"), 2 * BLOCK + 5);
    forge_record(&world);
    let mount = world.mount("passthrough=off");
    assert!(fs::read(mount.image(ID)).unwrap() == backup.image);
    assert_eq!(mount.log().matches("not used any more").count(), 1, "{}", mount.log());
    drop(mount);

    // And --check finds it.
    let output = world.call(&["--check", ID]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("offset 65536 length 32768"), "{}", stderr(&output));
    assert_eq!(names(&world.images()), [""; 0]);
    let missing = world.call(&["--check", ID]);
    assert_eq!(missing.status.code(), Some(1), "{}", stderr(&missing));
    assert!(stderr(&missing).contains("not hydrated"), "{}", stderr(&missing));
}

/// Digests may be copied or replaced under a backup; the record says which ones were compared.
// > A hydrated file that was written to, cut, replaced or copied, that others may write to, or that has other digests than the backup is not used.
#[test]
fn a_store_that_was_copied_keeps_its_images_and_other_digests_do_not() {
    let (world, backup) = World::with_backup(40);
    world.hydrate(&[ID]);
    let digests = backup.file(&world.store(), "_sha256file");
    let text = fs::read(&digests).unwrap();
    fs::remove_file(&digests).unwrap();
    fs::write(&digests, &text).unwrap(); // the same in another file
    let mount = world.mount("");
    assert!(fs::read(mount.image(ID)).unwrap() == backup.image);
    assert_eq!(reads(&mount), 0);
    drop(mount);

    let mut changed = backup.clone();
    changed.image[3 * BLOCK] ^= 1;
    let metadata = backup.file(&world.store(), "_metadata");
    let documents = fs::read(&metadata).unwrap();
    changed.put(&world.store());
    fs::write(&metadata, documents).unwrap(); // the same backup by its metadata
    let mount = world.mount("");
    assert!(fs::read(mount.image(ID)).unwrap() == changed.image);
    assert!(reads(&mount) > 0);
}

#[test]
fn a_damaged_backup_is_refused_and_nothing_of_it_is_kept() {
    let (world, backup) = World::with_backup(100);
    for block in [2, 3, 50] {
        flip(&backup.file(&world.store(), "-00001"), block * BLOCK + 9);
    }
    let whole_id = "33333333-2222-4333-8444-555555555555";
    Backup::new(whole_id, VOLUME, noise(4, BLOCK)).put(&world.store());
    let output = world.call(&[ID, whole_id]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    for range in ["offset 65536 length 65536", "offset 1638400 length 32768"] {
        assert!(stderr(&output).contains(range), "{}", stderr(&output));
    }
    // The other one is there, alone.
    let listed = world.hydrate(&["--list", "-f", "value", "-c", "ID", "-c", "Status"]);
    assert_eq!(stdout(&listed), format!("{whole_id} ready\n"));
    assert_eq!(names(&world.images()).len(), 2);

    fs::remove_file(backup.file(&world.store(), "-00001")).unwrap();
    let output = world.call(&[ID, "--progress", "json"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let summary: Value = serde_json::from_str(stderr(&output).lines().last().unwrap()).unwrap();
    assert_eq!(summary["summary"]["status"], "damaged", "{summary}");
    assert_eq!(summary["summary"]["damaged_ranges"][0], serde_json::json!([0, BLOCK]));
}

#[test]
fn a_killed_run_leaves_nothing_that_is_used_and_the_next_one_cleans_up() {
    let (world, backup) = World::with_backup(3000);
    let mut child = world.command(&world.store(), &[ID]).stderr(Stdio::null()).spawn().unwrap();
    let is_writing = || {
        let names = fs::read_dir(world.images()).into_iter().flatten();
        names.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".partial"))
    };
    within(PATIENCE, "it begins to write", is_writing);
    child.kill().unwrap();
    child.wait().unwrap();
    let left = names(&world.images());
    assert!(left.iter().all(|name| !name.ends_with(".json") && !name.ends_with(".img")), "{left:?}");
    assert!(left.iter().any(|name| name.ends_with(".partial")), "{left:?}");
    let mount = world.mount("");
    assert!(fs::read(mount.image(ID)).unwrap() == backup.image);
    assert!(reads(&mount) > 0);
    drop(mount);
    // A run for another backup cleans up too.
    let other = "44444444-2222-4333-8444-555555555555";
    Backup::new(other, VOLUME, noise(5, BLOCK)).put(&world.store());
    world.hydrate(&[other]);
    assert_eq!(names(&world.images()).len(), 2, "{:?}", names(&world.images()));
    world.hydrate(&[ID]);
    assert_eq!(names(&world.images()).len(), 4, "{:?}", names(&world.images()));
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let (world, _) = World::with_backup(3000);
    let child = world.command(&world.store(), &[ID]).stderr(Stdio::piped()).spawn().unwrap();
    within(PATIENCE, "it begins to write", || {
        fs::read_dir(world.images()).is_ok_and(|names| names.count() > 1)
    });
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    assert!(stderr(&output).contains("was interrupted; nothing of it was kept"), "{}", stderr(&output));
    assert_eq!(names(&world.images()), [""; 0]);
}

#[test]
fn two_processes_that_hydrate_one_image_write_it_once() {
    let (world, backup) = World::with_backup(1000);
    let spawn = || world.command(&world.store(), &[ID]).stderr(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = (0..3).map(|_| spawn()).collect();
    let mut written = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        written += usize::from(stderr(&output).contains("of data"));
    }
    assert_eq!(written, 1);
    let image = world.only(".img");
    assert!(fs::read(&image).unwrap() == backup.image);
    assert_eq!(names(&world.images()).len(), 2);
    assert_eq!(fs::metadata(&image).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.images()).unwrap().mode() & 0o777, 0o700);
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < backup.image.len() as u64, "it is not sparse");
    // Made once: nothing is written again.
    let before = fs::metadata(&image).unwrap();
    world.hydrate(&[ID]);
    let after = fs::metadata(&image).unwrap();
    assert_eq!((before.ino(), before.ctime_nsec()), (after.ino(), after.ctime_nsec()));
}

#[test]
fn too_small_a_disk_is_told_before_anything_is_written() {
    let (world, _) = World::with_backup(3000);
    fs::create_dir(world.cache()).unwrap();
    let script = "mount -t tmpfs -o size=48m,mode=700 tmpfs \"$1\" && CINDERFS_CACHE_DIR=\"$1\" \"$2\" hydrate \"$3\" \"$4\"; \
                  code=$?; ls \"$1/images\"; exit $code";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"]);
    command.arg(world.cache()).arg(env!("CARGO_BIN_EXE_cinderfs")).arg(world.store()).arg(ID);
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("the image needs 70.31 MiB"), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
}

#[test]
fn what_is_there_is_listed_and_dropped_without_the_store() {
    let (world, backup) = World::with_backup(40);
    let backup = backup.named("db");
    backup.put(&world.store());
    assert_eq!(stdout(&world.hydrate(&["--list", "-f", "json"])), "[]\n");
    world.hydrate(&["name of 11111111-2222-4333-8444-555555555555", "--volume", VOLUME]);
    backup.remove(&world.store());
    let list = world.hydrate(&["--list", "-f", "json"]);
    let rows: Value = serde_json::from_slice(&list.stdout).unwrap();
    let row = &rows.as_array().unwrap()[..];
    assert_eq!(row.len(), 1);
    assert_eq!(row[0]["ID"], ID);
    assert_eq!(row[0]["Volume"], VOLUME);
    assert_eq!(row[0]["Size"], backup.image.len());
    let stored = row[0]["Stored"].as_u64().unwrap() as usize;
    // The file system may need a block of its own to tell where data is.
    assert!((30 * BLOCK..32 * BLOCK).contains(&stored), "{stored}");
    assert_eq!(row[0]["Status"], "ready");
    // Without a word about any store, and it knows where it came from.
    let list =
        run(cinderfs().args(["hydrate", "--list", "-f", "json"]).env("CINDERFS_CACHE_DIR", world.cache()));
    let rows: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(rows[0]["Store"], world.store().to_str().unwrap());
    assert_eq!(rows[0]["Volume Name"], "db");
    let dropped = world.hydrate(&["--drop", &ID[..5]]);
    let freed = indicatif::BinaryBytes(stored as u64);
    assert_eq!(stderr(&dropped), format!("dropped {ID}, {freed} freed\n"));
    assert_eq!(names(&world.images()), [""; 0]);
    assert_eq!(world.call(&["--drop", ID]).status.code(), Some(1));
    assert_eq!(world.call(&[]).status.code(), Some(2));
    assert_eq!(world.call(&["--list", "--drop", ID]).status.code(), Some(2));
}

#[test]
fn a_cache_inside_the_store_is_refused() {
    let (world, _) = World::with_backup(4);
    let mut command = world.command(&world.store(), &[ID]);
    let output = run(command.env("CINDERFS_CACHE_DIR", world.store().join("cache")));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(!world.store().join("cache").exists());
}
