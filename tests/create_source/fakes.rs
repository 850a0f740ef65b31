//! LVM and ZFS: which commands are run, in which order, with programs that record them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cinderfs::writer::snapshot::{SnapshotKind, prepare_on};
use cinderfs::writer::source::host::Host;
use cinderfs::writer::source::identity::{Origin, identify};
use cinderfs::{Error, ErrorKind, Result};
use tempfile::TempDir;

use crate::kit::{Loop, image, soon};

/// A machine with programs that write down how they are called, and a loop device in the part of a volume.
pub(crate) struct Machine {
    root: TempDir,
    pub(crate) device: Loop,
    pub(crate) host: Host,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let device = Loop::new(&image(root.path(), "disk", 1), &[]);
        let host = Host::with_root(root.path());
        for folder in ["sys", "dev", "bin"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        Self { root, device, host }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// `body` gets the arguments as they are, and `$root`.
    pub(crate) fn program(&self, name: &str, body: &str) {
        let path = self.path(&format!("bin/{name}"));
        let root = self.root.path().display();
        let script = format!(
            "#!/bin/sh\nroot='{root}'\nPATH=/usr/bin:/bin\n\
             {{ printf %s \"{name}\"; printf ' [%s]' \"$@\"; echo; }} >>\"$root/log\"\n{body}\n"
        );
        // By another process: what this one has open for writing, a program that another test starts may hold open, and
        // then it cannot be run.
        let mut install = Command::new("install");
        let mut install =
            install.args(["-m", "755", "/dev/stdin"]).arg(&path).stdin(Stdio::piped()).spawn().unwrap();
        install.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(install.wait().unwrap().success());
    }

    /// The calls since the last time, with the snapshot's name as `NAME`.
    pub(crate) fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("log"));
        log.lines().map(named).collect()
    }

    fn with_lvm(self, lvs: &str) -> Self {
        let rdev = fs::metadata(&self.device.0).unwrap().rdev();
        let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let folder = self.path(&format!("sys/dev/block/{major}:{minor}/dm"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("uuid"), format!("LVM-{}\n", "a1".repeat(32))).unwrap();
        fs::write(folder.join("name"), "cinder--volumes-web--1\n").unwrap();
        fs::write(self.path("lvs.json"), lvs).unwrap();
        fs::create_dir(self.path("dev/cinder-volumes")).unwrap();
        self.program("lvs", "cat \"$root/lvs.json\"");
        self.program(
            "lvcreate",
            "while [ $# -gt 1 ]; do [ \"$1\" = --name ] && name=$2; shift; done; ln -s /dev/null \"$root/dev/cinder-volumes/$name\"",
        );
        self.program("lvremove", "rm \"$root/dev/$2\"");
        self
    }

    fn with_zfs(self) -> Self {
        fs::create_dir_all(self.path("dev/zvol/tank/vols")).unwrap();
        symlink(&self.device.0, self.path("dev/zvol/tank/vols/web+1")).unwrap();
        fs::write(self.path("listed"), "").unwrap();
        self.program(
            "zfs",
            "case $1 in list) cat \"$root/listed\" ;; clone) ln -s /dev/null \"$root/dev/zvol/$7\" ;; \
             destroy) case $2 in *@*) ;; *) rm \"$root/dev/zvol/$2\" ;; esac ;; esac",
        );
        self
    }
}

/// The line with each snapshot's name as `NAME`.
fn named(line: &str) -> String {
    let mut words = line.split("cinderfs-snapshot-");
    let mut text = words.next().unwrap_or_default().to_owned();
    for word in words {
        text.push_str("NAME");
        text.push_str(word.trim_start_matches(|c: char| c.is_ascii_hexdigit() || c == '-'));
    }
    text
}

const THICK: &str = r#"{ "report": [ { "lv": [
    {"lv_name":"web-1", "lv_size":"10737418240", "pool_lv":"", "origin":"", "vg_free":"4294967296"} ] } ] }"#;
const THIN: &str = r#"{"report":[{"lv":[{"lv_name":"web-1","lv_size":"10737418240","pool_lv":"pool","origin":"","vg_free":"0"}]}]}"#;
const LVS: &str = "lvs [--reportformat] [json] [--units] [b] [--nosuffix] [--options]";
const CREATE: &str = "lvcreate [--yes] [--snapshot] [--permission] [r] [--addtag] [cinderfs] [--name] [NAME]";

#[test]
fn lvm_volumes_get_a_snapshot_with_the_room_there_is() {
    for (lvs, room) in [(THICK, "[--size] [4294967296b]"), (THIN, "[--setactivationskip] [n]")] {
        let machine = Machine::new().with_lvm(lvs);
        for kind in [SnapshotKind::Auto, SnapshotKind::Lvm] {
            let prepared = prepare_on(&machine.host, &machine.device.0, kind, false).unwrap();
            assert!(prepared.path_to_read().starts_with(machine.path("dev/cinder-volumes")), "{prepared:?}");
            File::open(prepared.path_to_read()).unwrap();
            let made = [
                format!("{LVS} [lv_name,lv_size,pool_lv,origin,vg_free] [cinder-volumes/web-1]"),
                format!("{LVS} [lv_name,origin,lv_tags] [cinder-volumes]"),
                format!("{CREATE} {room} [cinder-volumes/web-1]"),
            ];
            assert_eq!(machine.calls(), made);
            prepared.finish().unwrap();
            assert_eq!(machine.calls(), ["lvremove [--yes] [cinder-volumes/NAME]"]);
        }
        assert_eq!(identify(&machine.host, &machine.device.0).unwrap().origin, Origin::Device);
        assert_eq!(identify(&machine.host, &machine.device.0).unwrap().display_name, "web-1");
    }
}

#[test]
fn a_group_without_room_is_fatal_only_for_a_volume_in_use() -> Result<()> {
    let machine = Machine::new().with_lvm(&THICK.replace("4294967296", "4096"));
    let prepare = |kind, force| prepare_on(&machine.host, &machine.device.0, kind, force);
    // A losetup of another test may try the device.
    let idle = soon(|| prepare(SnapshotKind::Auto, false));
    assert_eq!(idle.path_to_read(), machine.device.0);
    assert!(idle.warnings()[0].contains("too few"), "{:?}", idle.warnings());
    drop(idle);
    let _writer = fs::OpenOptions::new().write(true).open(&machine.device.0).unwrap();
    for kind in [SnapshotKind::Auto, SnapshotKind::Lvm] {
        let error = prepare(kind, false).unwrap_err().to_string();
        assert!(error.contains("4096 bytes free"), "{error}");
    }
    assert_eq!(prepare(SnapshotKind::Auto, true)?.warnings().len(), 2);
    assert!(!machine.calls().iter().any(|call| call.starts_with("lvcreate")));
    Ok(())
}

#[test]
fn a_snapshot_that_fails_half_way_is_dropped() {
    let machine = Machine::new().with_lvm(THIN);
    machine.program("lvcreate", "echo 'device is on fire' >&2; exit 5");
    let error = prepare_on(&machine.host, &machine.device.0, SnapshotKind::Lvm, true).unwrap_err();
    assert!(error.to_string().contains("device is on fire"), "{error}");
    assert_eq!(machine.calls().last().unwrap(), "lvremove [--yes] [cinder-volumes/NAME]");
    for program in ["lvs", "lvcreate", "lvremove"] {
        fs::remove_file(machine.path("bin").join(program)).unwrap();
    }
    let error = prepare_on(&machine.host, &machine.device.0, SnapshotKind::Lvm, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("\"lvs\" is not installed"), "{error}");
}

#[test]
fn a_snapshot_that_cannot_be_dropped_is_told() {
    let machine = Machine::new().with_lvm(THIN);
    machine.program("lvremove", "[ -e \"$root/once\" ] || { touch \"$root/once\"; exit 5; }");
    prepare_on(&machine.host, &machine.device.0, SnapshotKind::Lvm, false).unwrap().finish().unwrap();
    let tries = machine.calls().iter().filter(|call| call.starts_with("lvremove")).count();
    assert_eq!(tries, 2, "udev had it open for a moment");
    machine.program("lvremove", "echo busy >&2; exit 5");
    let prepared = prepare_on(&machine.host, &machine.device.0, SnapshotKind::Lvm, false).unwrap();
    let error = prepared.finish().unwrap_err().to_string();
    for words in ["LVM snapshot cinder-volumes/", "is still there", "lvremove --yes", "busy"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_snapshot_that_ran_full_is_what_an_error_of_reading_is_blamed_on() {
    let machine = Machine::new().with_lvm(THICK);
    let prepared = prepare_on(&machine.host, &machine.device.0, SnapshotKind::Lvm, false).unwrap();
    let explained = |invalid: &str, kind| {
        let lvs = r#"{"report":[{"lv":[{"lv_name":"s","lv_snapshot_invalid":"INVALID"}]}]}"#;
        fs::write(machine.path("lvs.json"), lvs.replace("INVALID", invalid)).unwrap();
        prepared.explain(Error::new(kind, "cannot read")).to_string()
    };
    for invalid in ["snapshot invalid", "1"] {
        let text = explained(invalid, ErrorKind::Source);
        assert!(text.contains("ran full: more than its 4294967296 bytes"), "{text}");
        assert!(text.ends_with(": cannot read"), "{text}");
        assert_eq!(explained(invalid, ErrorKind::Target), "cannot read", "it is the store that failed");
    }
    for invalid in ["", "0", "unknown"] {
        assert_eq!(explained(invalid, ErrorKind::Source), "cannot read");
    }
    let call = machine.calls().pop().unwrap();
    assert_eq!(call, format!("{LVS} [lv_name,lv_snapshot_invalid] [cinder-volumes/NAME]"));
    machine.program("lvs", "exit 5");
    assert_eq!(prepared.explain(Error::new(ErrorKind::Source, "cannot read")).to_string(), "cannot read");
    prepared.finish().unwrap();
}

/// Names whose process cannot be: this machine's (`lives` is one of ours), with another process.
pub(crate) fn names_like(lives: &str) -> (String, String, String) {
    let parts: Vec<&str> = lives.split('-').collect();
    let with = |at: usize, value: &str| {
        let mut parts = parts.clone();
        parts[at] = value;
        parts.join("-")
    };
    (with(5, "7ffffff0"), with(2, "00000001"), with(3, "00000001"))
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn leftovers_in_the_group_are_dropped_but_nothing_else() {
    let machine = Machine::new().with_lvm(THIN);
    let first = prepare_on(&machine.host, &machine.device.0, SnapshotKind::Lvm, false).unwrap();
    let ours = name_of(first.path_to_read());
    let (dead, foreign, before) = names_like(&ours);
    let line = |name: &str, origin: &str, tags: &str| {
        format!(
            r#"{{"lv_name":"{name}","lv_size":"1","pool_lv":"p","vg_free":"0","origin":"{origin}","lv_tags":"{tags}"}}"#
        )
    };
    let untagged = format!("{dead}1");
    let lines = [
        line("web-1", "", ""),
        line(&ours, "web-1", "cinderfs"),
        line(&dead, "web-1", "a,cinderfs"),
        line(&foreign, "web-1", "cinderfs"),
        line(&before, "web-2", "cinderfs"),
        line(&untagged, "web-1", "other"),
        line("cinderfs-snapshot-of-mine", "web-1", "cinderfs"),
    ];
    fs::write(machine.path("lvs.json"), format!(r#"{{"report":[{{"lv":[{}]}}]}}"#, lines.join(","))).unwrap();
    let _ = machine.calls();
    let second = prepare_on(&machine.host, &machine.device.0, SnapshotKind::Lvm, false).unwrap();
    let log = fs::read_to_string(machine.path("log")).unwrap();
    let removed: Vec<&str> = log.lines().filter(|line| line.starts_with("lvremove")).collect();
    let expected = [&dead, &before].map(|name| format!("lvremove [--yes] [cinder-volumes/{name}]"));
    assert_eq!(removed, expected);
    drop((first, second));
}

#[test]
fn zfs_volumes_are_read_from_a_clone_of_a_snapshot() {
    let machine = Machine::new().with_zfs();
    let volume = machine.path("dev/zvol/tank/vols/web+1");
    for kind in [SnapshotKind::Auto, SnapshotKind::Zfs] {
        let prepared = prepare_on(&machine.host, &volume, kind, false).unwrap();
        assert!(prepared.path_to_read().starts_with(machine.path("dev/zvol/tank/vols")), "{prepared:?}");
        let made = [
            "zfs [list] [-H] [-o] [name] [-t] [volume] [-d] [1] [tank/vols]",
            "zfs [list] [-H] [-o] [name] [-t] [snapshot] [-d] [1] [tank/vols/web 1]",
            "zfs [snapshot] [tank/vols/web 1@NAME]",
            "zfs [clone] [-o] [readonly=on] [-o] [volmode=dev] [tank/vols/web 1@NAME] [tank/vols/NAME]",
        ];
        assert_eq!(machine.calls(), made);
        drop(prepared);
        assert_eq!(
            machine.calls(),
            ["zfs [destroy] [tank/vols/NAME]", "zfs [destroy] [tank/vols/web 1@NAME]"]
        );
    }
    // What is left is dropped, the clone first.
    let prepared = prepare_on(&machine.host, &volume, SnapshotKind::Zfs, false).unwrap();
    let (dead, foreign, _) = names_like(&name_of(prepared.path_to_read()));
    drop(prepared);
    File::create(machine.path(&format!("dev/zvol/tank/vols/{dead}"))).unwrap();
    let listed = format!(
        "tank/vols\ntank/vols/{dead}\ntank/vols/{foreign}\ntank/vols/web 1@{dead}\ntank/vols/web 1@daily\n"
    );
    fs::write(machine.path("listed"), listed).unwrap();
    let _ = machine.calls();
    let prepared = prepare_on(&machine.host, &volume, SnapshotKind::Zfs, false).unwrap();
    let destroyed: Vec<_> = machine.calls().into_iter().filter(|call| call.contains("destroy")).collect();
    assert_eq!(destroyed, ["zfs [destroy] [tank/vols/NAME]", "zfs [destroy] [tank/vols/web 1@NAME]"]);
    drop(prepared);
}

#[test]
fn a_clone_that_fails_takes_its_snapshot_along() {
    let machine = Machine::new().with_zfs();
    machine.program("zfs", "[ \"$1\" != clone ] || { echo 'no such property' >&2; exit 1; }");
    let volume = machine.path("dev/zvol/tank/vols/web+1");
    let error = prepare_on(&machine.host, &volume, SnapshotKind::Zfs, true).unwrap_err();
    assert!(error.to_string().contains("no such property"), "{error}");
    let calls = machine.calls();
    assert_eq!(
        calls[calls.len() - 2..],
        ["zfs [destroy] [tank/vols/NAME]", "zfs [destroy] [tank/vols/web 1@NAME]"]
    );
}
