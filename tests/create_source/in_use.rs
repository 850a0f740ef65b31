//! Who uses a source, and which volume it is.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cinderfs::ErrorKind;
use cinderfs::writer::snapshot::{SnapshotKind, prepare};
use cinderfs::writer::source::host::Host;
use cinderfs::writer::source::identity::{Origin, identify};
use cinderfs::writer::source::in_use::{Use, look};

use crate::kit::{Disk, Loop, MIB, Mounted, call, image, soon};

fn uses(path: &Path) -> Vec<Use> {
    look(&Host::default(), path).unwrap().uses
}

/// Refused, unless it is forced, with these words.
fn refused(path: &Path, words: &[&str]) {
    let error = prepare(path, SnapshotKind::None, false).expect_err("it is in use").to_string();
    for word in words.iter().chain(&["is in use", "--snapshot", "--force"]) {
        assert!(error.contains(word), "{word:?} is not in {error}");
    }
    let forced = prepare(path, SnapshotKind::None, true).unwrap();
    assert_eq!(forced.path_to_read(), path);
    assert!(forced.warnings()[0].contains(words[0]), "{:?}", forced.warnings());
}

fn free(path: &Path) {
    let prepared = soon(|| prepare(path, SnapshotKind::None, false));
    assert_eq!((prepared.path_to_read(), prepared.snapshot(), prepared.warnings()), (path, None, &[][..]));
}

/// A process with the path open on its descriptor 3.
struct Holder(Child);

impl Holder {
    fn new(path: &Path, how: &str) -> Self {
        let script = format!("exec 3{how} \"$1\"; echo ready; exec sleep 600");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(path).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_file_that_is_open_for_writing_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk image", 1);
    free(&path);
    {
        let reader = Holder::new(&path, "<");
        assert_eq!(uses(&path), [], "process {} only reads", reader.0.id());
    }
    for how in [">>", "<>"] {
        let writer = Holder::new(&path, how);
        refused(&path, &[&*format!("process {} (", writer.0.id()), "has it open for writing"]);
        // By another name.
        let link = folder.path().join(if how == "<>" { "link" } else { "other link" });
        symlink(&path, &link).unwrap();
        refused(&link, &["for writing"]);
    }
    free(&path);
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    refused(&path, &["for writing"]);
    drop(writer);
    free(&path);
}

#[test]
fn a_writer_that_cannot_be_found_is_noticed_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 1);
    // Opened under another name, so that its process does not show this one.
    let other = image(folder.path(), "other", 1);
    call("mount", &[&"--bind", &path, &other]);
    let bound = Mounted(other);
    let writer = Holder::new(&bound.0, "<>");
    assert_eq!(uses(&path), [Use::UnknownWriter]);
    refused(&path, &["a process has it open for writing"]);
    drop(writer);
    free(&path);
}

#[test]
fn a_file_behind_a_writable_loop_device_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 16);
    call("mkfs.ext4", &[&"-q", &path]);
    {
        let readable = Loop::new(&path, &["--read-only"]);
        assert_eq!(uses(&path), [], "{} only reads", readable.name());
    }
    let device = Loop::new(&path, &[]);
    refused(&path, &[&format!("loop device {} writes to it", device.name())]);
    let mounted = Mounted::new(&device.0, folder.path().join("m n t"), "ro");
    refused(&path, &[&format!("{} is mounted at {:?}", device.name(), mounted.0)]);
}

#[test]
fn a_mounted_device_is_in_use_whatever_the_file_system() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let disk = Disk::new(kind, if kind == "xfs" { 320 } else { 128 });
        let (device, at) = (disk.device.name(), disk.path().to_owned());
        refused(&disk.device.0, &[&format!("{device} is mounted at {at:?}")]);
        call("umount", &[&at]);
        free(&disk.device.0);
    }
}

#[test]
fn an_idle_device_is_claimed_while_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 16);
    call("mkfs.ext4", &[&"-q", &path]);
    let device = Loop::new(&path, &[]);
    let prepared = soon(|| prepare(&device.0, SnapshotKind::Auto, false));
    assert_eq!((prepared.path_to_read(), prepared.snapshot()), (&*device.0, None));
    let at = folder.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let mount = || Command::new("mount").arg(&device.0).arg(&at).output().unwrap().status.success();
    assert!(!mount(), "nobody can mount it meanwhile");
    let mut begin = [0; 512];
    std::io::Read::read_exact(&mut File::open(prepared.path_to_read()).unwrap(), &mut begin).unwrap();
    prepared.finish().unwrap();
    assert!(mount());
    drop(Mounted(at));
}

#[test]
fn a_device_that_is_claimed_or_written_to_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&image(folder.path(), "disk", 16), &[]);
    let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
    refused(&device.0, &["held open exclusively"]);
    drop(claim);
    let writer = Holder::new(&device.0, "<>");
    refused(&device.0, &[&format!("process {}", writer.0.id())]);
    drop(writer);
    free(&device.0);
    // A loop device on a loop device.
    let upper = Loop::new(&device.0, &[]);
    refused(&device.0, &[&format!("loop device {} writes to it", upper.name())]);
}

#[test]
fn a_disk_with_a_partition_in_use_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 64);
    let device = Loop::new(&path, &["--partscan"]);
    // Told to the kernel, which may not be able to read a table.
    call("addpart", &[&device.0, &"1", &"2048", &"32768"]);
    call("addpart", &[&device.0, &"2", &"65536", &"8192"]);
    let part = |n: u32| device.0.with_file_name(format!("{}p{n}", device.name()));
    call("mkfs.ext4", &[&"-q", &part(1)]);
    let mounted = Mounted::new(&part(1), folder.path().join("mnt"), "ro");
    let words = format!("{}p1 is mounted at {:?}", device.name(), mounted.0);
    refused(&device.0, &[&words]);
    refused(&part(1), &[&words]);
    // The other partition is nobody's.
    free(&part(2));
    drop(mounted);
}

#[test]
fn swap_is_in_use() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = folder.path().join("swap");
    fs::write(&path, vec![0; 4 * MIB as usize]).unwrap();
    let device = Loop::new(&path, &[]);
    call("mkswap", &[&device.0]);
    struct Off<'a>(&'a Path);
    impl Drop for Off<'_> {
        fn drop(&mut self) {
            let _ = Command::new("swapoff").arg(self.0).status();
        }
    }
    call("swapon", &[&device.0]);
    let off = Off(&device.0);
    refused(&device.0, &[&format!("{} is used for swap", device.name())]);
    drop(off);
    free(&device.0);
}

#[test]
fn what_is_no_volume_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    call("mkfifo", &[&fifo]);
    for path in [folder.path(), &fifo, Path::new("/dev/null"), &folder.path().join("missing")] {
        for kind in SnapshotKind::ALL {
            let error = prepare(path, kind, true).expect_err("not a volume");
            assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 1);
    let prepared = soon(|| prepare(&path, SnapshotKind::None, false));
    fs::read(prepared.path_to_read()).unwrap();
    prepared.check_unchanged().unwrap();
    FileExt::write_all_at(&OpenOptions::new().write(true).open(&path).unwrap(), b"x", 0).unwrap();
    let error = prepared.check_unchanged().unwrap_err();
    assert!(error.to_string().contains("changed while it was read"), "{error}");
    let forced = prepare(&path, SnapshotKind::None, true).unwrap();
    fs::write(&path, b"another").unwrap();
    forced.check_unchanged().unwrap();
}

// > Without `--volume-id` a volume is known by the id in the name that Cinder gave it, or else by one that follows from its device or path.
#[test]
fn a_volume_is_known_by_cinders_name_or_by_its_place() {
    let host = Host::default();
    let folder = tempfile::tempdir().unwrap();
    let id = "184d9841-802a-41bb-a91f-68f01522f6d7";
    let path = image(folder.path(), &format!("volume-{id}"), 1);
    let of = |path: &Path| identify(&host, path).unwrap();
    let found = of(&path);
    assert_eq!((found.volume_id.as_str(), found.origin), (id, Origin::Cinder));
    assert_eq!(found.display_name, format!("volume-{id}"));
    // As RBD and udev link them.
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    assert_eq!(of(&link).volume_id, found.volume_id);

    let plain = image(folder.path(), "web.img", 1);
    let first = of(&plain);
    assert_eq!((first.origin, first.display_name.as_str()), (Origin::Path, "web.img"));
    fs::remove_file(&plain).unwrap();
    image(folder.path(), "web.img", 2);
    assert_eq!(of(&plain), first, "a restored image is the same volume");
    let other = image(folder.path(), "db.img", 1);
    assert_ne!(of(&other).volume_id, first.volume_id);
}

#[test]
fn a_device_with_a_mark_is_the_same_volume_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&image(folder.path(), "disk", 1), &[]);
    let root = tempfile::tempdir().unwrap();
    let host = Host::with_root(root.path());
    let rdev = std::os::unix::fs::MetadataExt::rdev(&fs::metadata(&device.0).unwrap());
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let block = root.path().join(format!("sys/dev/block/{major}:{minor}"));
    fs::create_dir_all(block.join("device")).unwrap();
    assert_eq!(identify(&host, &device.0).unwrap().origin, Origin::Path);
    fs::write(block.join("serial"), "0000\n").unwrap();
    assert_eq!(identify(&host, &device.0).unwrap().origin, Origin::Path, "zeros are no mark");
    fs::write(block.join("device/wwid"), "t10.ATA     X\n").unwrap();
    let marked = identify(&host, &device.0).unwrap();
    assert_eq!(marked.origin, Origin::Device);
    let link = folder.path().join("other");
    symlink(&device.0, &link).unwrap();
    assert_eq!(identify(&host, &link).unwrap().volume_id, marked.volume_id);
    fs::write(block.join("partition"), "1\n").unwrap();
    fs::write(block.join("start"), "2048\n").unwrap();
    assert_ne!(identify(&host, &link).unwrap().volume_id, marked.volume_id);
}
