//! Which volume a source is.
//!
//! Problem: a backup belongs to a volume by its id, and an incremental finds its parent by it, so the same source must have the same id
//! every night, and two sources never the same. Idea: where Cinder made the source, its id stands in the name. Elsewhere it is derived from
//! what the source is known by:
//!
//! 1. A name that Cinder gives: `volume-<uuid>` as a file (NFS), an LVM volume (also as device-mapper escapes it:
//!    `vg-volume--1a2b…`), an RBD or ZFS device, in an iSCSI target's path; a copy of one, `volume-<uuid>.img` or `.raw`; or a UUID and
//!    nothing else.
//! 2. A block device's own mark: the UUID of a device-mapper or RAID device, else the world-wide name or serial number of a disk; for
//!    a partition, with the sector where it begins. Such an id stays the same under other names, after a restart, and on another machine.
//! 3. Else the machine (`/etc/machine-id`) and the canonical path. It stays the same after a restart, and when an image is replaced by a restored
//!    one, which its number in the file system would not. It changes when the file is renamed; `--volume-id` gives the old one.
//!
//! Derived ids are UUIDs of version 8 (RFC 9562): Cinder takes any, and nobody can read the machine's id in them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Dev;
use sha2::{Digest, Sha256};

use super::host::{Host, is_block};
use super::in_use::cannot_open;
use crate::error::Result;
use crate::types::VolumeId;

/// What Cinder's database takes, in characters.
const NAME_CHARS_MAX: usize = 255;

/// Which volume a source is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The volume's id.
    pub volume_id: VolumeId,
    /// Where the id comes from.
    pub origin: Origin,
    /// What people know it by: the name of the file or device, of the LVM volume behind `dm-3`.
    pub display_name: String,
}

/// Where an id comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Cinder's own, from the source's name.
    Cinder,
    /// Derived from a mark of the device: the same under any name and on any machine.
    Device,
    /// Derived from machine and path: another after a renaming.
    Path,
}

/// The volume's length in GiB as Cinder has it: rounded up, at least 1.
pub fn size_gib(len_bytes: u64) -> u64 {
    len_bytes.div_ceil(1 << 30).max(1)
}

/// Finds out which volume the source at `path` is. Not of a snapshot: of what it was taken from.
pub fn identify(host: &Host, path: &Path) -> Result<Identity> {
    let failed = |e| cannot_open(path, e);
    let metadata = fs::metadata(path).map_err(failed)?;
    let canonical = path.canonicalize().map_err(failed)?;
    let device = is_block(&metadata).then(|| metadata.rdev());
    let mapped = device.and_then(|device| Host::text(&host.block(device).join("dm/name")));
    let mapped = mapped.map(|name| match lvm_names(&name) {
        Some((_, volume)) => volume,
        None => name,
    });

    // Followed link by link: `/dev/rbd/pool/volume-…` says more than `/dev/rbd0`.
    let mut names: Vec<String> = links(path).iter().filter_map(|path| file_name(path)).collect();
    names.extend(file_name(&canonical));
    names.extend(mapped.clone());
    let display_name =
        mapped.or_else(|| file_name(path)).or_else(|| file_name(&canonical)).unwrap_or_default();
    let display_name = display_name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();

    let of_cinder = names.iter().find_map(|name| cinder_id(name));
    let (id, origin) = match (of_cinder, device.and_then(|device| mark(host, device))) {
        (Some(id), _) => (id, Origin::Cinder),
        (None, Some(mark)) => (derived_id("device", mark.as_bytes(), b""), Origin::Device),
        (None, None) => {
            let machine = Host::text(&host.etc.join("machine-id")).filter(|id| !id.is_empty());
            let machine =
                machine.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
            (derived_id("path", machine.as_bytes(), canonical.as_os_str().as_bytes()), Origin::Path)
        }
    };
    Ok(Identity { volume_id: VolumeId::parse(&id)?, origin, display_name })
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// The path, and where each symbolic link of its last component leads.
fn links(path: &Path) -> Vec<PathBuf> {
    /// As the kernel follows them.
    const LINKS_MAX: usize = 40;
    let mut paths = vec![path.to_owned()];
    while paths.len() < LINKS_MAX
        && let Some(last) = paths.last()
        && let Ok(target) = fs::read_link(last)
    {
        let target = last.parent().unwrap_or(Path::new("")).join(target);
        paths.push(target);
    }
    paths
}

/// The id in a name that Cinder gives a volume.
pub fn cinder_id(name: &str) -> Option<String> {
    let volume = name.strip_prefix("volume-");
    let copy = volume.and_then(|name| name.strip_suffix(".img").or_else(|| name.strip_suffix(".raw")));
    if let Some(id) = uuid(copy.or(volume).unwrap_or(name)) {
        return Some(id);
    }
    // ip-10.0.0.1:3260-iscsi-iqn.2010-10.org.openstack:volume-<uuid>-lun-1
    let (_, behind) = name.split_once("iqn.").and_then(|(_, target)| target.split_once(":volume-"))?;
    let (id, unit) = behind.split_at_checked(36)?;
    let unit = unit.strip_prefix("-lun-")?;
    (!unit.is_empty() && unit.bytes().all(|b| b.is_ascii_digit())).then(|| uuid(id)).flatten()
}

/// The UUID that all of `text` is, in lower case.
fn uuid(text: &str) -> Option<String> {
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
    is_uuid.then(|| text.to_ascii_lowercase())
}

/// Group and volume of an LVM volume, from its name in device-mapper: they are joined by a hyphen, and hyphens in
/// them are doubled.
pub(crate) fn lvm_names(mapped: &str) -> Option<(String, String)> {
    let bytes = mapped.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], bytes.get(i + 1)) {
            (b'-', Some(b'-')) => i += 2,
            (b'-', _) => {
                let (group, volume) = (mapped[..i].replace("--", "-"), mapped[i + 1..].replace("--", "-"));
                return (!group.is_empty() && !volume.is_empty()).then_some((group, volume));
            }
            _ => i += 1,
        }
    }
    None
}

/// What a block device is known by wherever it is.
fn mark(host: &Host, device: Dev) -> Option<String> {
    let folder = host.block(device);
    if let Some(start) = Host::text(&folder.join("start")).filter(|_| folder.join("partition").is_file()) {
        let disk = folder.canonicalize().ok()?.parent()?.to_owned();
        return Some(format!("{}\nfrom sector {start}", disk_mark(&disk)?));
    }
    disk_mark(&folder)
}

fn disk_mark(folder: &Path) -> Option<String> {
    const MARKS: [&str; 6] = ["dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial"];
    MARKS.iter().find_map(|name| {
        let text = Host::text(&folder.join(name))?;
        // Emulated disks have a mark of zeros, or an empty one.
        let is_mark = text.bytes().any(|b| b.is_ascii_alphanumeric() && b != b'0');
        is_mark.then(|| format!("{name}\n{text}"))
    })
}

fn derived_id(what: &str, a: &[u8], b: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [b"cinderfs volume id".as_slice(), what.as_bytes(), a, b] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut id: [u8; 16] = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "184d9841-802a-41bb-a91f-68f01522f6d7";

    #[test]
    fn cinder_names_hold_the_id() {
        for name in [
            ID.to_owned(),
            ID.to_uppercase(),
            format!("volume-{ID}"),
            format!("volume-{ID}.img"),
            format!("volume-{ID}.raw"),
            format!("ip-10.0.0.1:3260-iscsi-iqn.2010-10.org.openstack:volume-{ID}-lun-1"),
        ] {
            assert_eq!(cinder_id(&name).as_deref(), Some(ID), "{name}");
        }
        for name in [
            format!("_snapshot-{ID}"),
            format!("snapshot-{ID}"),
            format!("volume-{ID}.184d9841"),
            format!("volume-{ID}.qcow2"),
            format!("volume-{ID}.img.raw"),
            format!("{ID}.img"),
            format!("volume-{ID}-lun-1"),
            format!("volume-{}", &ID[1..]),
            format!("volume-{}", ID.replace('-', "0")),
            format!("x-iqn.2010-10.org.openstack:volume-{ID}-lun-"),
            "x-iqn.2010-10.org.openstack:volume-ü".to_owned(),
            String::new(),
        ] {
            assert_eq!(cinder_id(&name), None, "{name}");
        }
    }

    #[test]
    fn device_mapper_names_are_taken_apart() {
        let names = |mapped| lvm_names(mapped).map(|(group, volume)| format!("{group} {volume}"));
        let mapped = format!("cinder--volumes-volume--{}", ID.replace('-', "--"));
        assert_eq!(names(&mapped).unwrap(), format!("cinder-volumes volume-{ID}"));
        assert_eq!(names("vg-a--").as_deref(), Some("vg a-"));
        assert_eq!(names("vg"), None);
        assert_eq!(names("vg-"), None);
        assert_eq!(names("-lv"), None);
    }

    #[test]
    fn sizes_are_rounded_up_to_gib() {
        assert_eq!([0, 1, 1 << 30, (1 << 30) + 1].map(size_gib), [1, 1, 1, 2]);
    }

    #[test]
    fn derived_ids_are_uuids_and_do_not_run_together() {
        let id = derived_id("path", b"a", b"bc");
        assert_eq!(uuid(&id).as_deref(), Some(id.as_str()));
        assert_eq!((&id[14..15], "89ab".contains(&id[19..20])), ("8", true));
        assert_eq!(id, derived_id("path", b"a", b"bc"));
        assert!(id != derived_id("path", b"ab", b"c") && id != derived_id("device", b"a", b"bc"));
        // What was published must stay: another id would begin another volume.
        assert_eq!(derived_id("path", b"machine", b"/a"), "31d7cbeb-2253-830d-b7bb-5515a010e6bc");
    }
}
