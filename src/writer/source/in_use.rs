//! Who else uses the source.
//!
//! Problem: what is written to a volume while it is read is partly in the backup and partly not, and the backup looks good until it is
//! restored. Idea: two questions that the kernel answers without a gap decide: may a block device be opened exclusively, may a
//! read lease be had on a file. What `/proc` and `/sys` tell says who it is, and finds the processes that
//! write to a device without claiming it, as far as this user may see them.
//!
//! Known gaps: processes of others when not run as root; writers on another machine (NFS, shared disks).

use std::fmt;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Dev;

use super::host::{FAILED, Host, is_block, names, unescape};
use super::lease::{Writers, writers};
use crate::error::{Error, ErrorKind, Result};

/// Most devices followed from one: partitions, and what device-mapper stacks over them.
const DEVICES_MAX: usize = 256;

/// Most open files of processes looked at; a machine with more is not searched to the end.
const OPEN_FILES_MAX: usize = 4 << 20;

/// A way in which a source is in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Use {
    /// It, or what lies on it, is a mounted file system.
    Mounted {
        /// The device that is mounted.
        device: String,
        /// Where.
        at: PathBuf,
    },
    /// It, or what lies on it, is swap.
    Swap {
        /// The device or file.
        device: String,
    },
    /// Another device lies on it: device-mapper, RAID.
    Held {
        /// The device that lies on it.
        by: String,
    },
    /// It is the file behind a loop device that can be written to.
    Loop {
        /// The loop device.
        device: String,
    },
    /// A process has it open for writing.
    Writer {
        /// The process.
        pid: u32,
        /// The process's name.
        name: String,
    },
    /// Somebody unknown has the device claimed for itself.
    Claimed,
    /// Somebody unknown has the file open for writing.
    UnknownWriter,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, at } => write!(f, "{device} is mounted at {at:?}"),
            Self::Swap { device } => write!(f, "{device} is used for swap"),
            Self::Held { by } => write!(f, "device {by} lies on it"),
            Self::Loop { device } => write!(f, "loop device {device} writes to it"),
            Self::Writer { pid, name } => write!(f, "process {pid} ({name:?}) has it open for writing"),
            Self::Claimed => f.write_str("it is held open exclusively"),
            Self::UnknownWriter => f.write_str("a process has it open for writing"),
        }
    }
}

/// What was found out about a source.
#[derive(Debug)]
pub struct InUse {
    /// How it is used; empty when it is not.
    pub uses: Vec<Use>,
    /// The claim to a block device that nobody uses: while this is open, it cannot be mounted.
    pub claim: Option<File>,
}

/// Looks for uses of the block device or regular file at `path`. Errors: it cannot be opened, or is neither.
pub fn look(host: &Host, path: &Path) -> Result<InUse> {
    let metadata = fs::metadata(path).map_err(|e| cannot_open(path, e))?;
    if is_block(&metadata) {
        look_at_device(host, path, metadata.rdev())
    } else if metadata.is_file() {
        look_at_file(host, path, &metadata)
    } else {
        let message = format!("source {path:?} is neither a regular file nor a block device");
        Err(Error::new(ErrorKind::Usage, message))
    }
}

/// The failure to open the source.
pub(crate) fn cannot_open(path: &Path, error: std::io::Error) -> Error {
    cannot_open_as("source", FAILED, path, error)
}

/// The same for what is called otherwise, and fails otherwise.
pub(super) fn cannot_open_as(role: &str, kind: ErrorKind, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => ErrorKind::Usage,
        _ => kind,
    };
    Error::caused_by(kind, format!("cannot open {role} {path:?}"), error)
}

fn look_at_device(host: &Host, path: &Path, device: Dev) -> Result<InUse> {
    let mut uses = Vec::new();
    let devices = stacked(host, device, &mut uses);
    add_mounts_and_swap(host, &devices, &mut uses);
    let is_ours = |metadata: &Metadata| is_block(metadata) && metadata.rdev() == device;
    add_loops(host, &is_ours, &mut uses);
    let is_candidate = |target: &Path| target.starts_with("/dev");
    add_writers(host, &is_candidate, &is_ours, &mut uses);

    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path);
    let claim = match opened {
        Ok(claim) => Some(claim),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let is_explained = uses
                .iter()
                .any(|found| matches!(found, Use::Mounted { .. } | Use::Swap { .. } | Use::Held { .. }));
            if !is_explained {
                uses.push(Use::Claimed);
            }
            None
        }
        Err(error) => return Err(cannot_open(path, error)),
    };
    let claim = claim.filter(|_| uses.is_empty());
    Ok(InUse { uses, claim })
}

fn look_at_file(host: &Host, path: &Path, metadata: &Metadata) -> Result<InUse> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|e| cannot_open(path, e))?;
    let mut uses = Vec::new();
    let is_ours = |other: &Metadata| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino());
    let found = writers(&file);
    if found == Writers::None {
        return Ok(InUse { uses, claim: None });
    }
    for loop_device in add_loops(host, &is_ours, &mut uses) {
        add_mounts_and_swap(host, &stacked(host, loop_device, &mut Vec::new()), &mut uses);
    }
    for swap in swaps(host) {
        if fs::metadata(&swap).is_ok_and(|other| is_ours(&other)) {
            uses.push(Use::Swap { device: format!("{swap:?}") });
        }
    }
    let name = path.canonicalize().ok().and_then(|path| path.file_name().map(ToOwned::to_owned));
    let is_candidate = |target: &Path| metadata.nlink() > 1 || target.file_name() == name.as_deref();
    add_writers(host, &is_candidate, &is_ours, &mut uses);
    if found == Writers::Some && uses.is_empty() {
        uses.push(Use::UnknownWriter);
    }
    Ok(InUse { uses, claim: None })
}

/// The device, its partitions and all that lies on any of them, by number and name.
fn stacked(host: &Host, device: Dev, uses: &mut Vec<Use>) -> Vec<(Dev, String)> {
    let mut devices: Vec<(Dev, String)> = Vec::new();
    let mut waiting = vec![host.block(device)];
    while let Some(folder) = waiting.pop() {
        let number = Host::text(&folder.join("dev")).and_then(|text| {
            let (major, minor) = text.split_once(':')?;
            Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
        });
        // A device that is not in /sys still is what it is.
        let number = number.or(devices.is_empty().then_some(device));
        let Some(number) = number.filter(|number| !devices.iter().any(|known| known.0 == *number)) else {
            continue;
        };
        if devices.len() >= DEVICES_MAX {
            break;
        }
        devices.push((number, device_name(&folder)));
        for holder in names(&folder.join("holders")) {
            let by = host.sys.join("class/block").join(&holder);
            uses.push(Use::Held { by: device_name(&by) });
            waiting.push(by);
        }
        for name in names(&folder) {
            let part = folder.join(name);
            if part.join("partition").is_file() {
                waiting.push(part);
            }
        }
    }
    devices
}

/// The kernel's name of a device, with device-mapper's.
fn device_name(folder: &Path) -> String {
    let canonical = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = canonical.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match Host::text(&folder.join("dm/name")) {
        Some(mapped) => format!("{name} ({mapped})"),
        None => name,
    }
}

fn add_mounts_and_swap(host: &Host, devices: &[(Dev, String)], uses: &mut Vec<Use>) {
    let name_of =
        |number: Dev| devices.iter().find(|device| device.0 == number).map(|device| device.1.clone());
    let rdev = |path: &Path| fs::metadata(path).ok().filter(is_block).map(|metadata| metadata.rdev());
    for mount in host.mounts() {
        // btrfs has a number of its own there, but names a device.
        let by_source = || rdev(&mount.source).filter(|_| mount.source.starts_with("/dev")).and_then(name_of);
        if let Some(device) = name_of(mount.device).or_else(by_source) {
            uses.push(Use::Mounted { device, at: mount.at });
        }
    }
    for swap in swaps(host) {
        if let Some(device) = rdev(&swap).and_then(name_of) {
            uses.push(Use::Swap { device });
        }
    }
}

fn swaps(host: &Host) -> Vec<PathBuf> {
    let text = Host::text(&host.proc.join("swaps")).unwrap_or_default();
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape).collect()
}

/// Loop devices over the source that can be written to.
fn add_loops(host: &Host, is_ours: &dyn Fn(&Metadata) -> bool, uses: &mut Vec<Use>) -> Vec<Dev> {
    let blocks = host.sys.join("block");
    let mut found = Vec::new();
    for name in names(&blocks).filter(|name| name.as_bytes().starts_with(b"loop")) {
        let folder = blocks.join(&name);
        let Some(backing) = Host::text(&folder.join("loop/backing_file")) else { continue };
        let is_writable = Host::text(&folder.join("ro")).as_deref() != Some("1");
        if is_writable && fs::metadata(&backing).is_ok_and(|metadata| is_ours(&metadata)) {
            uses.push(Use::Loop { device: name.to_string_lossy().into_owned() });
            let number = Host::text(&folder.join("dev")).unwrap_or_default();
            let number = number.split_once(':').and_then(|(major, minor)| {
                Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
            });
            found.extend(number);
        }
    }
    found
}

/// Processes that have the source open for writing. Only files that `is_candidate` says may be the source are
/// looked at closer: one on a dead network file system would hang.
fn add_writers(
    host: &Host,
    is_candidate: &dyn Fn(&Path) -> bool,
    is_ours: &dyn Fn(&Metadata) -> bool,
    uses: &mut Vec<Use>,
) {
    let mut left = OPEN_FILES_MAX;
    for process in names(&host.proc) {
        let Some(pid) = process.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let folder = host.proc.join(&process);
        for number in names(&folder.join("fd")) {
            left = left.saturating_sub(1);
            if left == 0 {
                tracing::warn!("too many open files on this machine: not all were looked at");
                return;
            }
            let link = folder.join("fd").join(&number);
            let may_be = fs::read_link(&link).is_ok_and(|target| is_candidate(&target));
            if may_be && fs::metadata(&link).is_ok_and(|metadata| is_ours(&metadata)) && {
                let info = Host::text(&folder.join("fdinfo").join(&number)).unwrap_or_default();
                is_for_writing(&info)
            } {
                let name = Host::text(&folder.join("comm")).unwrap_or_default();
                uses.push(Use::Writer { pid, name });
                break;
            }
        }
    }
}

/// Whether a file was opened for writing, by its `fdinfo`.
fn is_for_writing(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| libc::c_int::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR))
}
