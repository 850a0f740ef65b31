//! A snapshot of an LVM volume.
//!
//! Of a volume in a thin pool it takes no room of its own. Of others it needs room in the group for what is written meanwhile: as much
//! as the volume has, or all that is free. If that does not suffice, the kernel gives the snapshot up: every read of it fails from then on,
//! with a mere I/O error, and so does the backup, instead of going wrong. [`Room`] tells what that error means.

use serde::Deserialize;

use super::command::Call;
use super::marker::Marker;
use super::{Declined, Guard, Taken, await_device};
use crate::error::{Error, ErrorKind, Result};
use crate::writer::source::host::{FAILED, Host};
use crate::writer::source::identity::lvm_names;

/// Every snapshot of ours has it, and none is dropped without.
const TAG: &str = "cinderfs";

/// A snapshot that holds less than one part in so many of its volume would be full at once.
const ROOM_PARTS_MAX: u64 = 100;

#[derive(Deserialize)]
struct Report {
    report: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    lv: Vec<Volume>,
}

/// One line of `lvs`; all values are text there.
#[derive(Deserialize)]
struct Volume {
    lv_name: String,
    #[serde(default)]
    lv_size: String,
    #[serde(default)]
    pool_lv: String,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    vg_free: String,
    #[serde(default)]
    lv_tags: String,
    #[serde(default)]
    lv_snapshot_invalid: String,
}

/// The room of a snapshot that is not thin.
#[derive(Debug)]
pub(super) struct Room {
    host: Host,
    group: String,
    snapshot: String,
    bytes: u64,
}

impl Room {
    /// Explains an error of reading the snapshot, when it ran full.
    pub(super) fn explain(&self, error: Error) -> Error {
        let Self { host, group, snapshot, bytes } = self;
        let found = lvs(host, "lv_name,lv_snapshot_invalid", &format!("{group}/{snapshot}"));
        // In numbers where `report/binary_values_as_numeric` is set.
        let is_invalid =
            |volume: &Volume| matches!(volume.lv_snapshot_invalid.as_str(), "snapshot invalid" | "1");
        if !found.is_ok_and(|volumes| volumes.iter().any(is_invalid)) {
            return error;
        }
        error.context(format!(
            "the snapshot ran full: more than its {bytes} bytes were changed while it was read; make room in the group {group}"
        ))
    }
}

/// Takes a snapshot of the LVM volume that is `device`.
pub(super) fn take(host: &Host, device: rustix::fs::Dev) -> Result<Taken, Declined> {
    let folder = host.block(device).join("dm");
    let uuid = Host::text(&folder.join("uuid")).unwrap_or_default();
    // Parts of volumes have a suffix after the two ids.
    let is_volume = uuid.strip_prefix("LVM-").is_some_and(|ids| !ids.contains('-'));
    let names = Host::text(&folder.join("name")).filter(|_| is_volume).and_then(|name| lvm_names(&name));
    let Some((group, name)) = names else {
        return Err(Declined::Unfit("it is no LVM volume".into()));
    };
    let found = lvs(host, "lv_name,lv_size,pool_lv,origin,vg_free", &format!("{group}/{name}"))?;
    let Some(volume) = found.first().filter(|volume| volume.lv_name == name) else {
        return Err(Declined::Failed(Error::new(
            FAILED,
            format!("lvs does not know the volume {group}/{name}"),
        )));
    };
    let mut room_bytes = None;
    let is_thin = !volume.pool_lv.is_empty();
    if !is_thin && !volume.origin.is_empty() {
        return Err(Declined::Unfit("it is an LVM snapshot itself".into()));
    }
    drop_leftovers(host, &group);

    let snapshot = Marker::new(host)?.name();
    let mut arguments = vec!["--yes".to_owned(), "--snapshot".into(), "--permission".into(), "r".into()];
    arguments.extend(["--addtag".into(), TAG.into(), "--name".into(), snapshot.clone()]);
    if is_thin {
        // Else it is made, but not there.
        arguments.extend(["--setactivationskip".into(), "n".into()]);
    } else {
        let (size, free) = (bytes(&volume.lv_size)?, bytes(&volume.vg_free)?);
        let room = size.min(free);
        if room < size.div_ceil(ROOM_PARTS_MAX) {
            let message =
                format!("the group {group} has {free} bytes free, too few for a snapshot of {size} bytes");
            return Err(Declined::Failed(Error::new(FAILED, message)));
        }
        arguments.extend(["--size".into(), format!("{room}b")]);
        room_bytes = Some(room);
    }
    arguments.push(format!("{group}/{name}"));

    let guard = Guard::new(host, remove(&group, &snapshot));
    guard.make(Call::new("lvcreate", arguments))?;
    let path = host.dev.join(&group).join(&snapshot);
    await_device(&path)?;
    let name = format!("LVM snapshot {group}/{snapshot}");
    let room = room_bytes.map(|bytes| Room { host: host.clone(), group, snapshot, bytes });
    Ok(Taken { path, file: None, undo: vec![guard], name, room })
}

fn remove(group: &str, snapshot: &str) -> Call {
    Call::new("lvremove", ["--yes", &format!("{group}/{snapshot}")])
}

fn lvs(host: &Host, columns: &str, what: &str) -> Result<Vec<Volume>> {
    let arguments = ["--reportformat", "json", "--units", "b", "--nosuffix", "--options", columns, what];
    let text = Call::new("lvs", arguments).run(host)?;
    let report: Report = serde_json::from_str(&text)
        .map_err(|e| Error::caused_by(ErrorKind::Unsupported, "lvs printed something unknown", e))?;
    Ok(report.report.into_iter().flat_map(|group| group.lv).collect())
}

fn bytes(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::new(ErrorKind::Unsupported, format!("lvs printed {text:?} for a size")))
}

fn drop_leftovers(host: &Host, group: &str) {
    let Ok(volumes) = lvs(host, "lv_name,origin,lv_tags", group) else { return };
    for volume in volumes {
        let is_ours = volume.lv_tags.split(',').any(|tag| tag == TAG) && !volume.origin.is_empty();
        let marker = Marker::parse(&volume.lv_name).filter(|_| is_ours);
        if marker.is_some_and(|marker| marker.is_abandoned(host)) {
            super::drop_leftover(host, &remove(group, &volume.lv_name));
        }
    }
}
