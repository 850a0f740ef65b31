//! Shares with a stand-in for mount(8) that mounts memory under the share's name; the real servers are in scripts.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

/// A folder for mounts, gone with all of them whatever happens.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts: run it as root");
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Self(place)
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("shares")
    }

    /// A program that takes mount(8)'s arguments.
    fn program(&self, body: &str) -> PathBuf {
        let path = self.0.path().join("mount");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.folder()).into_iter().flatten().flatten() {
            let _ = unmount(entry.path(), UnmountFlags::DETACH);
        }
    }
}

#[test]
fn the_same_share_by_other_words() {
    let nfs = |one, other| same_source(ShareKind::Nfs, one, other);
    assert!(nfs("h:/a", "H:/a/") && nfs("[fe80::1]:/a", "fe80::1:/a") && nfs("h:/", "h://"));
    assert!(!nfs("h:/a", "h:/ab") && !nfs("h:/a", "g:/a") && !nfs("h:/", "h:/a") && !nfs("h", "h"));
    assert!(same_source(ShareKind::Glusterfs, "h:vol", "h:/vol"));
}

#[test]
fn words_that_are_no_share_are_refused() {
    for word in ["", "host", ":/x", "host:", "h:/a b", "-o:/x", "h:/a\nb"] {
        assert_eq!(Share::new(ShareKind::Nfs, word).unwrap_err().kind(), ErrorKind::Usage, "{word:?}");
    }
    let share = Share::new(ShareKind::Nfs, "h:/x").unwrap();
    assert_eq!(
        share.clone().with_options(Some(" -o vers=4,ro ")).all_options(),
        "vers=4,ro,nosuid,nodev,noexec"
    );
    assert_eq!(share.with_options(Some("")).all_options(), SAFE_OPTIONS);
}

#[test]
fn a_failed_mount_says_what_mount_says_and_leaves_nothing() {
    let place = Place::new();
    let program =
        place.program("echo \"mount: $6: bad option; you might need a helper program\" >&2; exit 32");
    let share = Share::new(ShareKind::Nfs, "h:/x").unwrap().with_attempts(3);
    let error = share.attach_in(&place.folder(), &program, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIo, "it is this machine that cannot");
    let text = error.to_string();
    assert!(
        text.contains("h:/x") && text.contains("bad option") && text.contains("install nfs-common"),
        "{text}"
    );
    let left: Vec<_> = fs::read_dir(place.folder()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn only_a_share_that_its_server_does_not_have_is_not_found() {
    for (said, reason, kind) in [
        (
            "mount.nfs: mounting nas:/srv/no failed, reason given by server: No such file or directory",
            None,
            ErrorKind::StoreNotFound,
        ),
        ("mount.nfs: access denied by server while mounting nas:/x", None, ErrorKind::StoreNotFound),
        ("mount.nfs: Failed to resolve server nas: Name or service not known", None, ErrorKind::StoreIo),
        ("mount.nfs: Connection refused for nas:/x on /run/x", None, ErrorKind::StoreIo),
        ("mount: /x: unknown filesystem type 'nfs'.", None, ErrorKind::StoreIo),
        (
            "Mounting glusterfs on /run/x failed.",
            Some("failed to fetch volume file (key:/no)"),
            ErrorKind::StoreNotFound,
        ),
        ("Mounting glusterfs on /run/x failed.", Some("DNS resolution failed on host h"), ErrorKind::StoreIo),
        (
            "Mounting glusterfs on /run/x failed.",
            Some("failed to connect with remote-host: h (No data available)"),
            ErrorKind::StoreIo,
        ),
    ] {
        assert_eq!(refusal(said, reason), kind, "{said} {reason:?}");
    }
}

/// A share whose mounts are memory.
fn in_memory(source: &str) -> Share {
    Share { shown_as: &["tmpfs"], ..Share::new(ShareKind::Nfs, source).unwrap() }
}

const MOUNTS_MEMORY: &str = "exec mount -t tmpfs -o \"$4\" \"$6\" \"$7\"";

#[test]
fn a_share_is_mounted_once_for_all_and_taken_away_by_the_last() {
    let place = Place::new();
    let program = place.program(MOUNTS_MEMORY);
    let share = in_memory(&format!("h:/{}", std::process::id()));
    let first = share.attach_in(&place.folder(), &program, None).unwrap();
    let second = share.attach_in(&place.folder(), &program, None).unwrap();
    assert!(first.is_ours() && second.is_ours());
    assert_eq!(first.path(), second.path());
    assert_eq!(share.mounted().unwrap(), [first.path()]);
    fs::write(first.path().join("x"), "1").unwrap();
    let path = first.path().to_owned();
    drop(first);
    assert_eq!(fs::read(path.join("x")).unwrap(), b"1", "the second one goes on");
    drop(second);
    assert!(share.mounted().unwrap().is_empty());
    assert!(!path.exists());
}

#[test]
fn a_mount_that_exists_is_used_and_left_alone() {
    let place = Place::new();
    let share = in_memory(&format!("h:/existing-{}", std::process::id()));
    fs::create_dir(place.folder()).unwrap();
    let elsewhere = place.folder().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", &share.source]).arg(&elsewhere).status().unwrap();
    assert!(status.success());
    let attached = share.attach_in(&place.folder(), Path::new("/bin/false"), None).unwrap();
    assert!(!attached.is_ours());
    assert_eq!(attached.path(), elsewhere);
    drop(attached);
    assert_eq!(share.mounted().unwrap(), [elsewhere]);
}

/// What is not dropped while the tests run.
static ABANDONED: Mutex<Vec<Attached>> = Mutex::new(Vec::new());

/// As when the process that uses it is killed: the lock goes, the mount stays.
fn abandon(attached: Attached) {
    let Some(Ours { used, .. }) = &attached.ours else { panic!("not ours") };
    flock(used, FlockOperation::Unlock).unwrap();
    // Not forgotten: a search for leaks is not to find it.
    ABANDONED.lock().unwrap().push(attached);
}

#[test]
fn what_a_killed_process_left_is_mounted_anew_and_taken_away() {
    let place = Place::new();
    let program = place.program(MOUNTS_MEMORY);
    let share = in_memory(&format!("h:/left-{}", std::process::id()));
    let left = share.attach_in(&place.folder(), &program, None).unwrap();
    fs::write(left.path().join("old"), "").unwrap();
    abandon(left);
    let next = share.attach_in(&place.folder(), &program, None).unwrap();
    assert!(next.is_ours());
    assert_eq!(share.mounted().unwrap(), [next.path()]);
    assert!(!next.path().join("old").exists(), "its server may be another one now");
    // One that somebody uses stays as it is.
    fs::write(next.path().join("new"), "").unwrap();
    let third = share.attach_in(&place.folder(), Path::new("/bin/false"), None).unwrap();
    assert!(third.path().join("new").exists());
    drop((next, third));
    assert!(share.mounted().unwrap().is_empty());
}

#[test]
fn other_words_for_a_share_lead_to_the_same_mount() {
    let place = Place::new();
    let program = place.program(MOUNTS_MEMORY);
    let id = std::process::id();
    let first = in_memory(&format!("h:/words-{id}")).attach_in(&place.folder(), &program, None).unwrap();
    let second = in_memory(&format!("H:/words-{id}/"))
        .attach_in(&place.folder(), Path::new("/bin/false"), None)
        .unwrap();
    assert!(second.is_ours(), "it must not be taken away by the first one");
    assert_eq!(first.path(), second.path());
}

#[test]
fn a_mount_that_takes_too_long_is_given_up_with_all_that_it_started() {
    let place = Place::new();
    // One helper waits, another leaves its parent and its session, as glusterfs does; both would mount after a while.
    let program = place.program(
        "case $1 in -t) setsid \"$0\" helper \"$6\" \"$7\" & \"$0\" helper \"$6\" \"$7\";; \
         *) sleep 3; mount -t tmpfs \"$2\" \"$3\";; esac",
    );
    let share = in_memory(&format!("h:/late-{}", std::process::id()));
    let error = share.attach_in(&place.folder(), &program, Some(Duration::from_millis(300))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIo);
    assert!(error.to_string().contains("did not answer mount(8)"), "{error}");
    let folder = place.folder();
    let is_ours = |line: &[u8]| String::from_utf8_lossy(line).contains(folder.to_str().unwrap());
    let left = fs::read_dir("/proc").unwrap().flatten();
    let left: Vec<_> = left
        .filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| is_ours(&line)))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(share.mounted().unwrap().is_empty());
    // The next one is not held up by it.
    let next = share.attach_in(&place.folder(), &place.program(MOUNTS_MEMORY), None).unwrap();
    assert!(next.is_ours());
}

#[test]
fn a_second_process_can_take_the_mount_over() {
    let place = Place::new();
    let program = place.program(MOUNTS_MEMORY);
    let share = in_memory(&format!("h:/joined-{}", std::process::id()));
    let first = share.attach_in(&place.folder(), &program, None).unwrap();
    let keeper = join_in(&place.folder(), first.path()).unwrap();
    drop(first);
    assert_eq!(share.mounted().unwrap(), [keeper.path()]);
    drop(keeper);
    assert!(share.mounted().unwrap().is_empty());
    assert_eq!(join(Path::new("/etc")).unwrap_err().kind(), ErrorKind::Usage);
}
