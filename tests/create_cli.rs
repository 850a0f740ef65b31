//! What does who runs `create` for the first time see? Sources that are none, names, sizes, what is printed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/staging_kit.rs"]
mod staging_kit;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use staging_kit::SmallFileSystem;
use tempfile::TempDir;

const ID: &str = "184d9841-802a-41bb-a91f-68f01522f6d7";

/// A process that a test starts has, for a moment, all files open that another test just writes; they are in use then.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A folder with an empty store and an image of noise, which does not get smaller.
struct World {
    _turn: MutexGuard<'static, ()>,
    folder: TempDir,
    store: PathBuf,
    image: PathBuf,
}

impl World {
    fn new(len: usize) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let (store, image) = (folder.path().join("store"), folder.path().join("disk.img"));
        fs::create_dir(&store).unwrap();
        fs::write(&image, noise(len)).unwrap();
        Self { _turn: turn, folder, store, image }
    }

    fn names(&self) -> usize {
        fs::read_dir(&self.store).unwrap().count()
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn cinderfs(verb: &str, store: &Path, source: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .arg(verb)
        .arg(store)
        .arg(source)
        .args(words)
        .env_remove("CINDERFS_LOG")
        .env("CINDERFS_CACHE_DIR", "/nonexistent/cache")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs `create`; what it prints on stdout and stderr.
#[track_caller]
fn create(store: &Path, source: &Path, words: &[&str], code: i32) -> (String, String) {
    let output = cinderfs("create", store, source, words);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{words:?}: {stderr}");
    (stdout, stderr)
}

#[test]
fn what_is_no_volume_is_refused_and_why() {
    let world = World::new(100_000);
    let (printed, said) = create(&world.folder.path().join("none"), &world.image, &[], 10);
    assert_eq!(printed, "");
    assert!(said.contains("hint: is its share mounted? A new store is an empty directory"), "{said}");

    // A file of the store, also under another name; but not a link in it that leads elsewhere.
    create(&world.store, &world.image, &["--container", "c"], 0);
    let object = fs::read_dir(world.store.join("c")).unwrap().next().unwrap().unwrap().path();
    let link = world.folder.path().join("link");
    symlink(&object, &link).unwrap();
    for source in [&object, &link] {
        let (_, said) = create(&world.store, source, &["--force"], 2);
        assert!(said.contains("lies in the store itself\nhint: "), "{said}");
    }
    symlink(&world.image, world.store.join("out")).unwrap();
    create(&world.store, &world.store.join("out"), &[], 0);

    let qcow2 = world.folder.path().join("disk.qcow2");
    fs::write(&qcow2, [b"QFI\xfb\0\0\0\x03".as_slice(), &noise(5000)].concat()).unwrap();
    let (_, said) = create(&world.store, &qcow2, &[], 2);
    assert!(said.contains("is a qcow2 image") && said.contains("hint: `qemu-img convert -f qcow2 -O raw`"));
    create(&world.store, &qcow2, &["--force"], 0);
}

#[test]
fn a_copy_named_as_cinder_names_volumes_is_that_volume() {
    let world = World::new(5000);
    for name in ["volume-ID", "volume-ID.img", "volume-ID.raw"] {
        let image = world.folder.path().join(name.replace("ID", ID));
        fs::write(&image, noise(5000)).unwrap();
        let (printed, _) = create(&world.store, &image, &["-f", "value", "-c", "volume_id"], 0);
        assert_eq!(printed, format!("{ID}\n"), "{name}");
    }
}

#[test]
fn the_block_size_is_the_parents_unless_another_is_asked_for() {
    let world = World::new(300_000);
    let (store, image) = (&world.store, &world.image);
    create(store, image, &["--block-size", "8K", "--name", "full", "--compression", "zstd"], 0);
    let before = world.names();
    for words in [["--incremental", "--block-size=32K"], ["--parent=full", "--block-size=32768"]] {
        let (_, said) = create(store, image, &words, 2);
        assert!(said.contains("its hash block size is 8192 bytes, here it is 32768"), "{said}");
    }
    let (_, said) = create(store, image, &["--incremental", "--object-size", "12K"], 2);
    assert!(said.contains("a multiple of the block size of 8192"), "{said}");
    assert_eq!(world.names(), before);
    let mut bytes = fs::read(image).unwrap();
    bytes[100_000] ^= 1;
    fs::write(image, &bytes).unwrap();
    let words = ["--incremental", "-f", "json"];
    let (printed, _) = create(store, image, &words, 0);
    let made: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&made["changed_bytes"], &made["object_count"]), (&8192.into(), &1.into()), "{made}");
    create(store, image, &["--parent", "full", "--object-size", "24K"], 0);
    // A full backup does not care.
    let (printed, _) = create(store, image, &["-f", "value", "-c", "id"], 0);
    let shown = cinderfs("show", store, Path::new(printed.trim_end()), &["-f", "value", "-c", "block_bytes"]);
    assert_eq!(shown.stdout, b"32768\n");
}

#[test]
fn what_was_made_is_printed_as_asked_for() {
    let world = World::new(5000);
    let (id, _) = create(&world.store, &world.image, &["--name", "mon"], 0);
    assert_eq!(id.len(), 37, "an id and a line feed: {id:?}");
    let (printed, said) = create(&world.store, &world.image, &["--incremental", "-f", "json", "-q"], 0);
    assert_eq!(said, "");
    let made: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(made["parent_id"], id.trim_end());
    assert_eq!((&made["image_bytes"], &made["stored_bytes"]), (&5000.into(), &0.into()));
    let (printed, _) = create(&world.store, &world.image, &["-c", "Name", "-f", "csv", "--name", "x"], 0);
    assert_eq!(printed, "\"Field\",\"Value\"\n\"name\",\"x\"\n");
    // Found out before anything is made.
    let before = world.names();
    let (_, said) = create(&world.store, &world.image, &["-c", "size"], 2);
    assert!(said.contains("there is no column \"size\"\nhint: the columns are changed_bytes, "), "{said}");
    assert_eq!(world.names(), before);
    let words = ["-f", "yaml", "-c", "id", "--name", "whole"];
    let output = cinderfs("consolidate", &world.store, Path::new("mon"), &words);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.starts_with("id: \"") && printed.lines().count() == 1, "{printed}");
}

#[test]
fn who_does_not_get_to_read_the_id_is_told_that_the_backup_is_there() {
    let world = World::new(5000);
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.arg("create").arg(&world.store).arg(&world.image).env_remove("CINDERFS_LOG");
    command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write to stdout") && said.contains(" was made all the same\n"), "{said}");
    assert_eq!(world.names(), 1);
}

/// What a terminal of so many columns is sent, line by line, without what moves the cursor.
fn frames(world: &World, columns: usize) -> Vec<String> {
    let command = format!(
        "stty rows 24 cols {columns}; exec {} create {} {} --compression bz2 --object-size 64K --threads 1",
        env!("CARGO_BIN_EXE_cinderfs"),
        world.store.display(),
        world.image.display()
    );
    let output = Command::new("script")
        .args(["-qefc", &command, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("CINDERFS_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let (mut plain, mut is_escape) = (String::new(), false);
    for c in text.chars() {
        match c {
            '\x1b' => is_escape = true,
            '[' if is_escape => {}
            _ if is_escape => is_escape = !c.is_ascii_alphabetic(),
            _ => plain.push(c),
        }
    }
    plain.split(['\r', '\n']).filter(|line| line.contains('%')).map(str::to_owned).collect()
}

#[test]
fn the_bar_fits_the_terminal_and_tells_what_is_stored() {
    let world = World::new(6 << 20);
    for columns in [100, 80, 50] {
        let frames = frames(&world, columns);
        assert!(!frames.is_empty());
        for frame in &frames {
            assert!(frame.chars().count() <= columns, "{columns} columns: {frame:?}");
            assert!(frame.contains(" of 6.00M  ") && frame.contains("/s  ETA "), "{frame:?}");
            // Below that there is no room for all of it.
            assert!(columns < 74 || frame.contains(" changed, ") && frame.contains(" stored"), "{frame:?}");
            assert_eq!(frame.starts_with(['█', '░']), columns >= 74, "{frame:?}");
        }
    }
}

#[test]
fn a_full_store_names_the_object_and_says_what_to_do() {
    let world = World::new(12 << 20);
    let small = SmallFileSystem::new(8 << 20, 60);
    let words = ["--object-size", "2M", "--threads", "1", "--compression", "none"];
    let (printed, said) = create(small.root(), &world.image, &words, 1);
    assert_eq!(printed, "");
    let begins = |at: u64| {
        format!("the object that begins at byte {at} of the volume: cannot write an object at byte ")
    };
    let is_named = |said: &str| (1..6).any(|window| said.contains(&begins(window << 21)));
    assert!(said.starts_with("cinderfs: the object") && is_named(&said), "{said}");
    assert!(
        said.contains("the store's file system is full") && said.contains("hint: no backup was made"),
        "{said}"
    );
    let left = || {
        fs::read_dir(small.root())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != "lost+found")
    };
    assert_eq!(left().count(), 0);

    let mut bytes = noise(12 << 20);
    fs::write(&world.image, vec![0; bytes.len()]).unwrap();
    create(small.root(), &world.image, &["--compression", "zstd"], 0);
    bytes[..2 << 20].fill(0);
    fs::write(&world.image, &bytes).unwrap();
    let (_, said) = create(small.root(), &world.image, &[&words[..], &["--incremental"]].concat(), 1);
    assert!(is_named(&said), "{said}");
    assert_eq!(left().count(), 1);
}
