//! What stands in a mount, and what `stat` and `getxattr` say of it: names, sizes, times, permissions, attributes.

#![expect(clippy::single_range_in_vec_init, reason = "a backup with one extent has a list of one range")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, SystemTime};

use mount::*;
use store::*;

/// Every path below a folder with its kind, sorted; links with their targets, which are not followed.
fn tree(folder: &Path, below: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for name in names(folder) {
        let (path, shown) = (folder.join(&name), format!("{below}/{name}"));
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            lines.push(format!("{shown}/"));
            lines.extend(tree(&path, &shown));
        } else if kind.is_symlink() {
            lines.push(format!("{shown} -> {}", target(&path)));
        } else {
            assert!(kind.is_file());
            lines.push(shown);
        }
    }
    lines
}

// > The root holds three folders: `backups`, `names` and `volumes`.
//
// > `/backups/<backup-id>/` holds `metadata.json` and, when the backup is usable, `volume.img`.
//
// > `/volumes/<volume-id>/<created_at>` is a link to `../../backups/<backup-id>`; `created_at` is UTC in
// > whole seconds, as in `2024-03-01T01:01:07Z`.
#[test]
fn the_tree_holds_exactly_what_is_promised() {
    let folder = open_folder();
    let image = noise(1, 2 * BLOCK);
    let full = Backup::new("aaaaaaaa-1", "vol-1", image.clone()).named("db");
    full.put(folder.path());
    let newer = full.clone().at("2024-03-02 01:01:07.987654+02:00");
    Backup { id: "bbbbbbbb-1".into(), ..newer }.on("aaaaaaaa-1", &[0..BLOCK]).put(folder.path());
    Backup::new("cccccccc-1", "vol-2", image)
        .at("2023-12-31 23:59:59+00:00")
        .named("täglich")
        .put(folder.path());
    let mount = Mount::new(folder.path());
    let expected = [
        "/backups/",
        "/backups/aaaaaaaa-1/",
        "/backups/aaaaaaaa-1/metadata.json",
        "/backups/aaaaaaaa-1/volume.img",
        "/backups/bbbbbbbb-1/",
        "/backups/bbbbbbbb-1/metadata.json",
        "/backups/bbbbbbbb-1/volume.img",
        "/backups/cccccccc-1/",
        "/backups/cccccccc-1/metadata.json",
        "/backups/cccccccc-1/volume.img",
        "/names/",
        "/names/db -> ../volumes/vol-1",
        "/names/täglich -> ../volumes/vol-2",
        "/volumes/",
        "/volumes/vol-1/",
        "/volumes/vol-1/2024-03-01T01:01:07Z -> ../../backups/aaaaaaaa-1",
        "/volumes/vol-1/2024-03-01T23:01:07Z -> ../../backups/bbbbbbbb-1",
        "/volumes/vol-1/latest -> ../../backups/bbbbbbbb-1",
        "/volumes/vol-2/",
        "/volumes/vol-2/2023-12-31T23:59:59Z -> ../../backups/cccccccc-1",
        "/volumes/vol-2/latest -> ../../backups/cccccccc-1",
    ];
    assert_eq!(tree(mount.root(), ""), expected);
    // The links lead where they say: the same file by all three ways.
    let by_id = fs::metadata(mount.image("cccccccc-1")).unwrap();
    let by_name = fs::metadata(mount.path("names/täglich/latest/volume.img")).unwrap();
    assert_eq!((by_name.dev(), by_name.ino()), (by_id.dev(), by_id.ino()));
    // `find -type d` of GNU trusts the link count.
    assert_eq!(fs::metadata(mount.path("backups")).unwrap().nlink(), 5);
}

// > Backups of one volume that were made in the same second all get `-<short id>` appended to their name: 8
// > characters of the backup's id, more until they differ.
//
// > A backup without `created_at` is called `undated-<short id>`, and counts as older than all others.
#[test]
fn backups_of_one_second_or_of_no_time_have_names_of_their_own() {
    let folder = open_folder();
    for id in ["11111111-aaaa", "11111111-bbbb", "22222222-cccc"] {
        Backup::new(id, "v", noise(1, BLOCK)).put(folder.path());
    }
    Backup::new("zzzzzzzz-dddd", "v", noise(1, BLOCK)).at("None").put(folder.path());
    let alone = Backup::new("33333333-eeee", "w", noise(1, BLOCK)).at("None");
    alone.put(folder.path());
    let mount = Mount::new(folder.path());
    let second = "2024-03-01T01:01:07Z";
    let expected = [
        format!("{second}-11111111-aaa"),
        format!("{second}-11111111-bbb"),
        format!("{second}-22222222"),
        "latest".to_owned(),
        "undated-zzzzzzzz".to_owned(),
    ];
    assert_eq!(names(&mount.path("volumes/v")), expected);
    assert_eq!(
        target(&mount.path(&format!("volumes/v/{second}-11111111-bbb"))),
        "../../backups/11111111-bbbb"
    );
    assert_eq!(target(&mount.path("volumes/v/latest")), "../../backups/22222222-cccc");
    assert_eq!(names(&mount.path("volumes/w")), ["latest", "undated-33333333"]);
}

// > `/volumes/<volume-id>/latest` is a link to the volume's newest backup that has no problem and whose image
// > opens; without one there is no `latest`.
#[test]
fn latest_skips_what_cannot_be_used() {
    let folder = open_folder();
    let backup = |id: &str, day: u32| {
        Backup::new(id, "v", noise(1, 2 * BLOCK)).at(&format!("2024-03-0{day} 01:01:07+00:00"))
    };
    backup("good", 1).put(folder.path());
    // Its metadata is right; only opening it shows that the digests are another backup's.
    let mixed = backup("mixed-up", 2);
    mixed.put(folder.path());
    fs::copy(backup("good", 1).file(folder.path(), "_sha256file"), mixed.file(folder.path(), "_sha256file"))
        .unwrap();
    backup("orphan", 3).on("nowhere", &[]).put(folder.path());
    let lonely = Backup { volume: "w".into(), ..backup("lonely", 1).on("nowhere", &[]) };
    lonely.put(folder.path());
    let mount = Mount::new(folder.path());
    assert_eq!(target(&mount.path("volumes/v/latest")), "../../backups/good");
    assert_eq!(names(&mount.path("volumes/w")), ["2024-03-01T01:01:07Z"]);
    assert_eq!(errno(fs::read_link(mount.path("volumes/w/latest"))), libc::ENOENT);
    assert_eq!(names(&mount.path("backups/mixed-up")), ["metadata.json"]);
    assert_eq!(errno(fs::metadata(mount.image("mixed-up"))), libc::ENOENT);
}

// > `/names/<display name>` is a link to `../volumes/<volume-id>`; a volume is called what its newest backup
// > with a display name says.
//
// > Volumes that share a display name all get `-<short id>` appended.
//
// > In display names `/`, NUL, other control characters and marks that change the direction of writing become
// > `_`; `.` and `..` become `_` and `__`; names over 255 bytes are cut at a character; a volume whose name
// > is empty has no link.
#[test]
fn display_names_are_made_harmless_and_unique() {
    let folder = open_folder();
    let put = |id: &str, volume: &str, day: u32, name: Option<&str>| {
        let backup = Backup::new(id, volume, noise(1, 4096)).at(&format!("2024-03-0{day} 01:01:07+00:00"));
        Backup { display_name: name.map(str::to_owned), ..backup }.put(folder.path());
    };
    put("a1", "renamed", 1, Some("old"));
    put("a2", "renamed", 2, Some("new"));
    put("a3", "renamed", 3, None);
    put("b1", "11111111-x", 1, Some("web"));
    put("b2", "22222222-x", 1, Some("web"));
    put("c1", "v-dot", 1, Some("."));
    put("c2", "v-dots", 1, Some(".."));
    put("c3", "v-escape", 1, Some("../../etc/passwd"));
    put("c4", "v-control", 1, Some("a\0b\nc\x1b[2Jd\u{202e}e"));
    put("c5", "v-long", 1, Some(&"€".repeat(200)));
    put("c6", "v-empty", 1, Some(""));
    put("c7", "v-none", 1, None);
    let mount = Mount::new(folder.path());
    let long = "€".repeat(85);
    let mut expected = [
        ("new", "renamed"),
        ("web-11111111", "11111111-x"),
        ("web-22222222", "22222222-x"),
        ("_", "v-dot"),
        ("__", "v-dots"),
        (".._.._etc_passwd", "v-escape"),
        ("a_b_c_[2Jd_e", "v-control"),
        (&long, "v-long"),
    ];
    expected.sort_unstable();
    let links = names(&mount.path("names"));
    let found: Vec<_> = links.iter().map(|name| (&**name, target(&mount.path("names").join(name)))).collect();
    let expected: Vec<_> = expected.map(|(name, volume)| (name, format!("../volumes/{volume}"))).into();
    assert_eq!(found, expected);
    assert_eq!(names(&mount.path("volumes")).len(), 10, "also those without a link");
}

// > A backup that cannot be resolved is listed, has no `volume.img`, and tells its reason as `fail_reason` in
// > `metadata.json`.
//
// > A container without `_metadata` is a backup in progress and is not shown.
//
// > A backup whose metadata does not tell its volume is shown in `/backups` only.
#[test]
fn unusable_backups_say_why_and_unfinished_ones_do_not_show() {
    let folder = open_folder();
    let full = Backup::new("full", "v", noise(1, BLOCK));
    full.put(folder.path());
    let backup = |id: &str| Backup { id: id.into(), ..full.clone() };
    backup("in-progress").put_unfinished(folder.path());
    backup("orphan").on("missing-parent", &[]).put(folder.path());
    backup("snake-1").on("snake-2", &[]).put(folder.path());
    backup("snake-2").on("snake-1", &[]).put(folder.path());
    let change = |id: &str, what: fn(String) -> String| {
        let path = backup(id).put(folder.path()).file(folder.path(), "_metadata");
        fs::write(&path, what(fs::read_to_string(&path).unwrap())).unwrap();
    };
    change("torn", |text| text[..text.len() / 2].to_owned());
    change("version", |text| text.replace("1.0.0", "2.0.0"));
    let mount = Mount::new(folder.path());
    assert_eq!(names(&mount.path("backups")), ["full", "orphan", "snake-1", "snake-2", "torn", "version"]);
    for (id, reason) in [
        ("orphan", "missing-parent"),
        ("snake-1", "circle"),
        ("snake-2", "circle"),
        ("torn", "EOF"),
        ("version", "2.0.0"),
    ] {
        assert_eq!(names(&mount.path(&format!("backups/{id}"))), ["metadata.json"], "{id}");
        assert_eq!(errno(fs::metadata(mount.image(id))), libc::ENOENT);
        let document = mount.document(id);
        assert_eq!(document["status"], "error", "{id}");
        let told = document["fail_reason"].as_str().unwrap();
        assert!(told.contains(reason), "{id}: {told}");
    }
    assert!(mount.document("full")["fail_reason"].is_null());
    let linked =
        names(&mount.path("volumes/v")).into_iter().map(|name| target(&mount.path("volumes/v").join(name)));
    assert!(linked.clone().any(|link| link.ends_with("/orphan")));
    assert!(!linked.clone().any(|link| link.ends_with("/torn")), "its volume is unknown");
    assert_eq!(names(&mount.path("volumes")), ["v"]);
}

// > A name that is not UTF-8 or is not in the tree is ENOENT; one over 255 bytes is ENAMETOOLONG.
#[test]
fn wrong_names_have_their_errors() {
    let folder = open_folder();
    Backup::new("b", "v", noise(1, 4096)).put(folder.path());
    let mount = Mount::new(folder.path());
    for parent in ["", "backups", "backups/b", "volumes", "volumes/v", "names"] {
        let parent = mount.path(parent);
        for missing in [&b"missing"[..], b"\xff\xfe", b"VOLUME.IMG", b"...", &[b'x'; 255]] {
            assert_eq!(errno(fs::symlink_metadata(parent.join(OsStr::from_bytes(missing)))), libc::ENOENT);
        }
        for len in [256, 1000] {
            assert_eq!(errno(fs::symlink_metadata(parent.join("x".repeat(len)))), libc::ENAMETOOLONG);
        }
    }
    assert_eq!(errno(fs::metadata(mount.path("backups/b/volume.img/x"))), libc::ENOTDIR);
}

// > Inode numbers are the same on every mount of the same store.
#[test]
fn inode_numbers_outlive_the_mount() {
    let numbers = |mount: &Mount| -> Vec<u64> {
        let paths = tree(mount.root(), "");
        let path = |line: &String| mount.path(line.split(" -> ").next().unwrap().trim_matches('/'));
        let numbers: Vec<u64> =
            paths.iter().map(|line| fs::symlink_metadata(path(line)).unwrap().ino()).collect();
        // A listing tells the same numbers as stat.
        let listed = fs::read_dir(mount.path("backups")).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (std::os::unix::fs::DirEntryExt::ino(&entry), entry.metadata().unwrap().ino())
        });
        listed.for_each(|(listed, stated)| assert_eq!(listed, stated));
        numbers
    };
    let store = fixture("branch");
    let first = numbers(&Mount::new(&store));
    assert_eq!(first, numbers(&Mount::new(&store)));
    let distinct: std::collections::BTreeSet<_> = first.iter().collect();
    assert_eq!(distinct.len(), first.len());
}

// > `volume.img` has the exact length of the volume as of this backup.
//
// > `st_blocks` of `volume.img` counts what is not a hole, in units of 512 bytes rounded up.
//
// > The holes of an image of more than 262,144 blocks are counted in the background from the first `stat` on,
// > and until that is done `st_blocks` counts what its objects hold.
#[test]
fn sizes_are_those_of_the_volume_and_of_its_data() {
    let folder = open_folder();
    for (id, len) in [("one", 1), ("odd", 100_001), ("blocks", 3 * BLOCK), ("short", 3 * BLOCK + 513)] {
        let mut image = noise(7, len);
        if len > 2 * BLOCK {
            image[BLOCK..2 * BLOCK].fill(0);
        }
        Backup::new(id, id, image).put(folder.path());
    }
    let mut sparse = vec![0; 262_145 * 512];
    sparse[1_000_000] = 1;
    Backup::new("large", "large", sparse).block(512).put(folder.path());
    let mount = Mount::new(folder.path());
    for (id, len, data) in [
        ("one", 1, 1),
        ("odd", 100_001, 100_001 - BLOCK),
        ("blocks", 3 * BLOCK, 2 * BLOCK),
        ("short", 3 * BLOCK + 513, 2 * BLOCK + 513),
    ] {
        let stat = fs::metadata(mount.image(id)).unwrap();
        assert_eq!((stat.len(), stat.blocks()), (len as u64, data.div_ceil(512) as u64), "{id}");
        assert_eq!(fs::read(mount.image(id)).unwrap().len(), len);
    }
    let stat = || fs::metadata(mount.image("large")).unwrap();
    assert_eq!((stat().len(), stat().blocks()), (262_145 * 512, 262_145));
    within(PATIENCE, "the count of large holes", || stat().blocks() == 1);
    // Each link of a chain has the length that the volume had then.
    let mount = Mount::new(&fixture("grew"));
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("expected.json")).unwrap()).unwrap();
    let backups = expected["grew"]["backups"].as_object().unwrap();
    assert_eq!(names(&mount.path("backups")).len(), backups.len());
    for (id, backup) in backups {
        assert_eq!(fs::metadata(mount.image(id)).unwrap().len(), backup["bytes"].as_u64().unwrap(), "{id}");
    }
}

// > `metadata.json` is the document that `show --format json` prints, as of the moment it is opened; an open
// > file of it does not change.
#[test]
fn metadata_json_is_what_show_prints() {
    use std::os::unix::fs::FileExt;
    let folder = open_folder();
    let backup = Backup::new("b", "v", noise(1, 4 * BLOCK)).named("db");
    backup.put(folder.path());
    Backup::new("orphan", "v", vec![]).on("gone", &[]).put(folder.path());
    let mount = Mount::new(folder.path());
    for id in ["b", "orphan"] {
        let shown = run(cinderfs().args(["show", "--format", "json"]).arg(folder.path()).arg(id));
        let file = fs::read_to_string(mount.path(&format!("backups/{id}/metadata.json"))).unwrap();
        assert_eq!(file, stdout(&shown), "{id}: {}", stderr(&shown));
        assert_eq!(
            fs::metadata(mount.path(&format!("backups/{id}/metadata.json"))).unwrap().len(),
            file.len() as u64
        );
    }
    let path = mount.path("backups/b/metadata.json");
    let (open, before) = (fs::File::open(&path).unwrap(), fs::read(&path).unwrap());
    flip(&backup.file(folder.path(), "-00001"), 5);
    assert_eq!(errno(fs::read(mount.image("b"))), libc::EIO);
    assert_eq!(mount.document("b")["damage"]["blocks"], 1, "a new opening tells of the damage");
    let mut old = vec![0; before.len() + 100];
    let n = open.read_at(&mut old, 0).unwrap();
    assert!(old[..n] == before, "the open file changed");
}

// > `statfs` tells the sum of the volumes' sizes as total, and nothing free.
#[test]
fn statfs_sums_the_volumes() {
    let folder = open_folder();
    Backup::new("a1", "a", noise(1, BLOCK)).gib(2).put(folder.path());
    Backup::new("a2", "a", noise(1, BLOCK)).gib(5).at("2024-03-02 01:01:07+00:00").put(folder.path());
    Backup::new("b1", "b", noise(1, BLOCK)).gib(1).put(folder.path());
    let mount = Mount::new(folder.path());
    for path in ["", "backups/a1/volume.img"] {
        let stat = rustix::fs::statvfs(mount.path(path)).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 6 << 30, "the newest backup tells a volume's size");
        assert_eq!((stat.f_bfree, stat.f_bavail, stat.f_ffree, stat.f_namemax), (0, 0, 0, 255));
    }
}

// > All times of `volume.img`, of `metadata.json`, of the backup's folder and of links to it are
// > `created_at`; without one, the time its metadata file was written.
//
// > The times of the root, `/backups`, `/volumes` and `/names` tell when the mount last saw a backup come, go
// > or change.
#[test]
fn times_tell_when_backups_were_made() {
    let folder = open_folder();
    Backup::new("dated", "v", noise(1, BLOCK)).at("2024-03-01 01:01:07+00:00").put(folder.path());
    let undated = Backup::new("undated", "w", noise(1, BLOCK)).at("None");
    undated.put(folder.path());
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let file = fs::File::options().write(true).open(undated.file(folder.path(), "_metadata")).unwrap();
    file.set_modified(written).unwrap();
    let before = SystemTime::now();
    let mount = Mount::new(folder.path());
    let times = |path: &str| {
        let stat = fs::symlink_metadata(mount.path(path)).unwrap();
        assert_eq!((stat.atime(), stat.ctime()), (stat.mtime(), stat.mtime()), "{path}");
        stat.modified().unwrap()
    };
    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_254_867);
    for path in ["backups/dated", "backups/dated/volume.img", "backups/dated/metadata.json"] {
        assert_eq!(times(path), made, "{path}");
    }
    assert_eq!(times("volumes/v/2024-03-01T01:01:07Z"), made);
    assert_eq!(times("volumes/v/latest"), made);
    for path in ["backups/undated/volume.img", "backups/undated", "volumes/w/undated-undated"] {
        assert_eq!(times(path), written, "{path}");
    }
    let first = times("backups");
    assert!(first >= before && first <= SystemTime::now());
    for path in ["", "volumes", "names"] {
        assert_eq!(times(path), first, "{path}");
    }
    // Looking again changes nothing; a backup that comes does.
    std::thread::sleep(Duration::from_millis(1200));
    names(&mount.path("backups"));
    assert_eq!(times("backups"), first);
    Backup::new("new", "v", noise(1, BLOCK)).at("2024-03-02 01:01:07+00:00").put(folder.path());
    within(PATIENCE, "the time of a new backup", || {
        names(&mount.path("backups"));
        times("backups") > first && times("") > first
    });
}

/// A store of one volume with a private and a public backup, and of another with a public one.
fn store_with_secrets(folder: &Path) {
    for (id, volume, mode, owner) in
        [("private", "mixed", 0o640, 7), ("public", "mixed", 0o644, 8), ("other", "open", 0o666, 9)]
    {
        let backup = Backup::new(id, volume, noise(1, BLOCK)).named(&format!("name of {id}"));
        backup.put(folder);
        let path = backup.file(folder, "_metadata");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(owner), Some(owner + 100)).unwrap();
    }
}

// > `volume.img` and `metadata.json` have the read bits, the owner and the group of the backup's own metadata
// > file, and no other bits.
//
// > A backup's folder may be entered and listed by whoever may read its metadata file.
//
// > A volume's folder and `/names` have only the bits that all backups they speak of have; where owners
// > differ they belong to root.
//
// > The root, `/backups` and `/volumes` are 0555: ids are no secret to whoever may enter the mount.
#[test]
fn rights_follow_the_metadata_files() {
    let folder = open_folder();
    store_with_secrets(folder.path());
    let mount = Mount::new(folder.path());
    for (id, mode, folder_mode, owner) in
        [("private", 0o440, 0o550, 7), ("public", 0o444, 0o555, 8), ("other", 0o444, 0o555, 9)]
    {
        for file in ["volume.img", "metadata.json"] {
            assert_eq!(
                rights(&mount.path(&format!("backups/{id}/{file}"))),
                (mode, owner, owner + 100),
                "{id}/{file}"
            );
        }
        assert_eq!(rights(&mount.path(&format!("backups/{id}"))), (folder_mode, owner, owner + 100), "{id}");
    }
    // Two groups share it and only one of its backups is for everybody: root alone.
    assert_eq!(rights(&mount.path("volumes/mixed")), (0o500, 0, 0));
    assert_eq!(rights(&mount.path("volumes/open")), (0o555, 9, 109));
    assert_eq!(rights(&mount.path("names")), (0o500, 0, 0));
    for path in ["", "backups", "volumes"] {
        assert_eq!(rights(&mount.path(path)), (0o555, 0, 0), "{path:?}");
    }
}

/// Whether nobody may do this.
fn nobody_may(program: &str, path: &Path) -> bool {
    run(as_nobody(Path::new(program)).arg(path)).status.success()
}

// > Only who mounted may enter the mount, unless `allow_other` or `allow_root` lets others in.
//
// > `default_permissions` is on, so the kernel enforces these bits, also under `allow_other`.
#[test]
fn others_see_what_the_store_would_show_them() {
    let folder = open_folder();
    store_with_secrets(folder.path());
    let closed = Mount::new(folder.path());
    assert!(!nobody_may("ls", closed.root()), "without allow_other nobody may enter");
    let mount = Setup::default().options("allow_other").mount(folder.path());
    assert!(nobody_may("ls", &mount.path("backups")), "ids are no secret");
    assert!(nobody_may("cat", &mount.image("public")) && nobody_may("cat", &mount.image("other")));
    assert!(nobody_may("ls", &mount.path("volumes/open")));
    for secret in ["backups/private/volume.img", "backups/private/metadata.json"] {
        assert!(!nobody_may("cat", &mount.path(secret)), "{secret}");
        assert!(!nobody_may("stat", &mount.path(secret)), "{secret}");
    }
    for secret in ["backups/private", "volumes/mixed", "names"] {
        assert!(!nobody_may("ls", &mount.path(secret)), "{secret}");
    }
    assert!(fs::read(mount.image("private")).is_ok(), "root may");
    let line = mount_line(mount.root()).unwrap();
    assert!(line.contains("allow_other") && line.contains("default_permissions"), "{line}");
    let line = mount_line(closed.root()).unwrap();
    assert!(!line.contains("allow_other") && line.contains("default_permissions"), "{line}");
}

// > `uid=` and `gid=` put everything in that owner's and group's name and leave the bits as they are.
//
// > The mount is `ro,nosuid,nodev,noatime`.
#[test]
fn options_change_the_owner_and_nothing_else() {
    let folder = open_folder();
    store_with_secrets(folder.path());
    let mount = Setup::default().options(&format!("allow_other,uid={NOBODY},gid=4711")).mount(folder.path());
    for path in
        ["", "backups", "volumes", "names", "backups/private", "backups/other/volume.img", "volumes/mixed"]
    {
        let (_, uid, gid) = rights(&mount.path(path));
        assert_eq!((uid, gid), (NOBODY, 4711), "{path}");
    }
    assert_eq!(rights(&mount.image("private")).0, 0o440);
    assert_eq!(rights(&mount.path("volumes/mixed")).0, 0o500);
    assert!(nobody_may("cat", &mount.image("private")), "it is nobody's now");
    let line = mount_line(mount.root()).unwrap();
    let options: Vec<&str> = line.split(' ').nth(5).unwrap().split(',').collect();
    for option in ["ro", "nosuid", "nodev", "noatime"] {
        assert!(options.contains(&option), "{option}: {line}");
    }
    assert!(line.contains(" - fuse.cinderfs cinderfs:"), "{line}");
}

fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut buf = vec![0; 1000];
    match rustix::fs::getxattr(path, format!("user.cinder.{name}"), &mut buf[..]) {
        Ok(len) => Some(String::from_utf8(buf[..len].to_vec()).unwrap()),
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::NODATA, "{path:?} {name}");
            None
        }
    }
}

// > `volume.img`, `metadata.json` and the backup's folder have `user.cinder.backup_id`, and
// > `user.cinder.volume_id`, `user.cinder.parent_id` and `user.cinder.created_at` where the backup has them;
// > a full backup has no `parent_id`.
//
// > `user.cinder.verified` is `sha256` where each block is compared with its digest, and `md5` where each
// > object is checked as a whole because there is no usable `_sha256file`; a backup without an image has
// > none.
#[test]
fn extended_attributes_tell_what_a_backup_is() {
    let folder = open_folder();
    Backup::new("full", "v", noise(1, BLOCK)).put(folder.path());
    Backup::new("child", "v", noise(1, BLOCK)).on("full", &[]).at("None").put(folder.path());
    Backup::new("plain", "v", noise(1, BLOCK)).without_digests().put(folder.path());
    Backup::new("orphan", "v", vec![]).on("gone", &[]).put(folder.path());
    fs::create_dir_all(folder.path().join("torn")).unwrap();
    fs::write(folder.path().join("torn/volume_v_1_backup_torn_metadata"), "{").unwrap();
    let mount = Mount::new(folder.path());
    let time = Some("2024-03-01T01:01:07Z");
    for (id, volume, parent, created_at, verified) in [
        ("full", Some("v"), None, time, Some("sha256")),
        ("child", Some("v"), Some("full"), None, Some("sha256")),
        ("plain", Some("v"), None, time, Some("md5")),
        ("orphan", Some("v"), Some("gone"), time, None),
        ("torn", None, None, None, None),
    ] {
        for file in ["", "metadata.json", "volume.img"] {
            let path = mount.path(&format!("backups/{id}/{file}"));
            if file == "volume.img" && verified.is_none() {
                assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
                continue;
            }
            let mut names = Vec::new();
            for (name, expected) in [
                ("backup_id", Some(id)),
                ("volume_id", volume),
                ("parent_id", parent),
                ("created_at", created_at),
                ("verified", verified),
                ("on_damage", verified.map(|_| "eio")),
            ] {
                assert_eq!(xattr(&path, name).as_deref(), expected, "{path:?} {name}");
                names.extend(expected.map(|_| format!("user.cinder.{name}\0")));
            }
            let mut listed = vec![0; 1000];
            let len = rustix::fs::listxattr(&path, &mut listed[..]).unwrap();
            assert_eq!(String::from_utf8_lossy(&listed[..len]), names.concat());
        }
    }
    assert_eq!(fs::read(mount.image("plain")).unwrap(), noise(1, BLOCK));
    let short = rustix::fs::getxattr(mount.image("full"), "user.cinder.verified", &mut [0u8; 3][..]);
    assert_eq!(short, Err(rustix::io::Errno::RANGE));
    let mut buf = [0u8; 100];
    assert_eq!(rustix::fs::listxattr(mount.path("volumes"), &mut buf[..]), Ok(0));
}
