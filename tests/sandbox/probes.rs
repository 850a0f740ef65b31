//! What a restricted process can still do: this test program started again, which tries and tells.

use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{io, thread};

use cinderfs::sandbox::{CapabilitySet, Needs};

/// Where the other process finds its files.
const FOLDER: &str = "CINDERFS_TEST_FOLDER";

/// Set where it keeps all its rights.
const FREE: &str = "CINDERFS_TEST_FREE";

/// All that is tried, by name. Each must be possible without restrictions, or it would show nothing.
fn probes(root: &Path) -> Vec<(&'static str, io::Result<()>)> {
    let [store, images, blocks, outside] =
        ["store", "cache/images", "cache/blocks", "outside"].map(|name| root.join(name));
    let new = |folder: &Path| {
        let path = folder.join("new");
        fs::write(&path, "x")?;
        fs::rename(&path, folder.join("newer"))?;
        fs::remove_file(folder.join("newer"))
    };
    let read = |path: PathBuf| fs::read(path).map(drop);
    let rewrite = |path: PathBuf| File::options().write(true).open(path).map(drop);
    let temporary = File::options()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::TMPFILE.bits().cast_signed())
        .open(&blocks);
    let parent = rustix::process::getppid().unwrap();
    vec![
        ("read the store", read(store.join("object"))),
        ("list the store", fs::read_dir(&store).map(drop)),
        ("read what belongs to others", read(store.join("closed"))),
        ("read an image", read(images.join("image"))),
        ("write to the cache", new(&blocks)),
        ("write over the cache", rewrite(blocks.join("ring"))),
        ("make a temporary file", temporary.map(drop)),
        ("start a thread", thread::Builder::new().spawn(|| ()).map(drop)),
        ("look at a file outside", fs::metadata(outside.join("secret")).map(drop)),
        ("! write over the store", rewrite(store.join("object"))),
        ("! write to the store", new(&store)),
        ("! write over an image", rewrite(images.join("image"))),
        ("! make an image", new(&images)),
        ("! make a folder in the cache", fs::create_dir(root.join("cache/folder"))),
        ("! read outside", read(outside.join("secret"))),
        ("! read outside through a link", read(store.join("link"))),
        ("! list outside", fs::read_dir(&outside).map(drop)),
        ("! write outside", new(&outside)),
        ("! link out of the store", fs::hard_link(store.join("object"), blocks.join("object"))),
        ("! read of this process", read("/proc/self/environ".into())),
        ("! read a device", File::open("/dev/zero").map(drop)),
        ("! give a file away", chown(blocks.join("ring"), Some(7), None)),
        ("! start a program", Command::new("true").stdin(Stdio::null()).status().map(drop)),
        ("! send UDP", UdpSocket::bind("127.0.0.1:0").map(drop)),
        ("! listen", TcpListener::bind("127.0.0.1:0").map(drop)),
        ("! a socket of this machine", UnixDatagram::unbound().map(drop)),
        ("! see whether a process lives", rustix::process::test_kill_process(parent).map_err(Into::into)),
        ("! another root", rustix::process::chroot("/").map_err(Into::into)),
        ("! prepare a mount", {
            let flags = rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC;
            rustix::mount::fsopen("tmpfs", flags).map(drop).map_err(Into::into)
        }),
        ("! mount", rustix::mount::mount_bind(&outside, root.join("target")).map_err(Into::into)),
        ("! unmount", {
            let flags = rustix::mount::UnmountFlags::DETACH;
            rustix::mount::unmount(root.join("target"), flags).map_err(Into::into)
        }),
    ]
}

/// Not a test: the process that tries.
#[test]
#[ignore = "started by the test below"]
fn tries() {
    let root = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    if std::env::var_os(FREE).is_none() {
        let mut needs = Needs::default();
        needs.read(File::open(root.join("store")).unwrap()).unwrap();
        needs.read_at(&root.join("cache")).unwrap();
        needs.write_at(&root.join("cache/blocks")).unwrap();
        needs.capability(CapabilitySet::DAC_READ_SEARCH);
        let report = needs.restrict();
        // The test's own main thread goes free, and it is noticed.
        assert_eq!(report.missing().collect::<Vec<_>>(), [("one thread", "2 threads were there before")]);
    }
    // In a thread, because threads are what serves.
    for (name, outcome) in thread::spawn(move || probes(&root)).join().unwrap() {
        let errno = outcome.map_or_else(|error| error.raw_os_error().unwrap(), |()| 0);
        println!("\nprobe {errno} {name}");
    }
}

/// What each probe came to.
fn run(root: &Path, is_free: bool) -> Vec<(String, i32)> {
    // A mount namespace of its own, because what is free mounts.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "--test-threads=1", "probes::tries"]);
    command.env(FOLDER, root).stdin(Stdio::null());
    if is_free {
        command.env(FREE, "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let probes = text.lines().filter_map(|line| line.strip_prefix("probe ")?.split_once(' '));
    probes.map(|(errno, name)| (name.to_owned(), errno.parse().unwrap())).collect()
}

// > Once it serves, the daemon can open no file but those of the store (to read), of the cache directory (to write, hydrated
// > images to read) and `/dev/fuse`; where it has no cache directory, it can also use the directory for temporary files.
//
// > Once it serves, the daemon can start no program, open no socket, unmount nothing and signal no other process; a
// > process of its own, `cinderfs umount --on-request`, unmounts for it, and ends with it.
#[test]
fn a_restricted_process_does_what_it_needs_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["store", "cache/images", "cache/blocks", "outside", "target"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for name in ["store/object", "store/closed", "cache/images/image", "cache/blocks/ring", "outside/secret"]
    {
        fs::write(root.join(name), "x").unwrap();
    }
    fs::set_permissions(root.join("store/closed"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(root.join("store/closed"), Some(1234), Some(1234)).unwrap();
    symlink(root.join("outside/secret"), root.join("store/link")).unwrap();

    let free = run(root, true);
    assert!(free.len() > 25 && free.iter().all(|(_, errno)| *errno == 0), "{free:#?}");
    fs::remove_file(root.join("cache/blocks/object")).unwrap();
    fs::remove_dir(root.join("cache/folder")).unwrap();
    chown(root.join("cache/blocks/ring"), Some(0), None).unwrap();
    let restricted = run(root, false);
    assert_eq!(restricted.len(), free.len());
    for (name, errno) in restricted {
        // The last is landlock's answer to a link between folders.
        let is_refused = matches!(errno, libc::EPERM | libc::EACCES | libc::EXDEV);
        assert!(if name.starts_with('!') { is_refused } else { errno == 0 }, "{name}: errno {errno}");
    }
}
