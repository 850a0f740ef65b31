//! A source that holds still while it is read.
//!
//! Problem: a volume that is written to while it is read gives a backup of a state that never was. Idea: a snapshot is taken before reading
//! and read instead, and dropped afterwards in every outcome; where there is none, a source that somebody uses is refused.
//!
//! | kind | of | how | left by a killed run |
//! | --- | --- | --- | --- |
//! | `reflink` | a file on XFS, btrfs, bcachefs, … | `FICLONE` into a file without a name | nothing |
//! | `btrfs` | a file in a btrfs subvolume | `btrfs subvolume snapshot -r` in the subvolume's root folder | dropped by the next run |
//! | `lvm` | an LVM volume, thin or not | `lvcreate --snapshot`, tagged `cinderfs` | dropped by the next run in its group |
//! | `zfs` | a file on ZFS, a ZFS volume | `zfs snapshot`, and `zfs clone` of a volume's | dropped by the next run of that source |
//!
//! `auto` takes a reflink of a file, or else a ZFS snapshot; an LVM or ZFS snapshot of a device; and goes without where neither can be
//! had. When it could be had but fails (a full pool, no permission) that is fatal only if the source is in use.
//!
//! **Consistency.** A snapshot has what a disk has after a power cut: all that was written before, nothing of what was written after.
//! File systems and databases recover from that with their journals. What programs or a guest hold in memory is not in it; freezing
//! them first (`fsfreeze`, the guest agent, a database's own command) is the caller's to do, around the start of `create`. Only LVM, for a file
//! system that is mounted on the volume by this very machine, has the kernel write it out first.
//!
//! **Dropping.** [`Prepared`] drops its snapshot when it is dropped, so whoever holds one must return and not exit the
//! process; SIGINT and SIGTERM must be turned into an error by handlers that are set *before* [`prepare`]. The programs themselves do not
//! see a Ctrl-C. What a SIGKILL leaves is known by its name: see `marker`.
//!
//! Invariant: only snapshots whose name this program made are ever dropped.

mod btrfs;
mod command;
mod lvm;
mod marker;
mod reflink;
mod zfs;

pub(in crate::writer) use self::marker::Marker as Maker;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use self::command::Call;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::writer::source::host::{FAILED, Host, is_block};
use crate::writer::source::in_use::{self, Use, cannot_open};

/// How long udev has for making the name of a device.
const DEVICE_WAIT: Duration = Duration::from_secs(15);

/// How often, and for how long at first, a snapshot is tried to be dropped: udev may be looking into it.
const DROP_TRIES: u32 = 6;
const DROP_PAUSE: Duration = Duration::from_millis(100);

/// Which snapshot to take.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum SnapshotKind {
    /// The best that can be had, or none.
    #[default]
    Auto,
    /// None: the source itself is read.
    None,
    /// Of an LVM volume.
    Lvm,
    /// Of a btrfs subvolume.
    Btrfs,
    /// A reflink of a file.
    Reflink,
    /// Of a ZFS volume or file system.
    Zfs,
}

impl SnapshotKind {
    /// All kinds, in the order of the documentation.
    pub const ALL: [Self; 6] = [Self::Auto, Self::None, Self::Lvm, Self::Btrfs, Self::Reflink, Self::Zfs];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Lvm => "lvm",
            Self::Btrfs => "btrfs",
            Self::Reflink => "reflink",
            Self::Zfs => "zfs",
        }
    }
}

impl std::str::FromStr for SnapshotKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        let names = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!("snapshot kind {name:?} is unknown; expected one of {names}"),
            )
        })
    }
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A snapshot that was taken.
struct Taken {
    path: PathBuf,
    file: Option<File>,
    /// The last is dropped first.
    undo: Vec<Guard>,
    name: String,
    /// What may run full while it is read.
    room: Option<lvm::Room>,
}

/// Why no snapshot was taken.
enum Declined {
    /// The source is of no such kind.
    Unfit(String),
    /// It should have worked.
    Failed(Error),
}

impl From<Error> for Declined {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs a command when it is dropped.
#[derive(Debug)]
struct Guard {
    host: Host,
    undo: Option<Call>,
}

impl Guard {
    /// Before the snapshot is made: a program that is given up on may have made it.
    fn new(host: &Host, undo: Call) -> Self {
        Self { host: host.clone(), undo: Some(undo) }
    }

    /// Makes the snapshot. When that fails, the guard tries to drop it all the same, without a word.
    fn make(&self, call: Call) -> Result<()> {
        call.run(&self.host).map(|_| ())
    }

    /// Drops the snapshot, and tells if that does not work.
    fn undo(&mut self) -> Result<()> {
        let Some(undo) = self.undo.take() else { return Ok(()) };
        let mut pause = DROP_PAUSE;
        let start = Instant::now();
        for _ in 1..DROP_TRIES {
            if undo.run(&self.host).is_ok() {
                return Ok(());
            }
            // It hangs, and would again.
            if start.elapsed() >= command::TIMEOUT {
                break;
            }
            thread::sleep(pause);
            pause *= 2;
        }
        undo.run(&self.host).map(|_| ())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Once: the snapshot may never have been made.
        if let Some(undo) = self.undo.take() {
            let _ = undo.run(&self.host);
        }
    }
}

fn drop_leftover(host: &Host, undo: &Call) {
    match undo.run(host) {
        Ok(_) => tracing::warn!("dropped the snapshot of a run that was killed: {}", undo.shown()),
        Err(error) => tracing::warn!("the snapshot of a run that was killed is still there: {error}"),
    }
}

/// Waits until udev has made a device's name.
fn await_device(path: &Path) -> Result<()> {
    let deadline = Instant::now() + DEVICE_WAIT;
    while !path.exists() {
        if Instant::now() >= deadline {
            return Err(Error::new(
                FAILED,
                format!("the snapshot was made, but there is no device {path:?}"),
            ));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A source that may be read; keeps its snapshot, or its claim to the device, while it lives.
#[derive(Debug)]
pub struct Prepared {
    source: PathBuf,
    path_to_read: PathBuf,
    kept: Option<File>,
    undo: Vec<Guard>,
    snapshot: Option<String>,
    room: Option<lvm::Room>,
    warnings: Vec<String>,
    /// What a file was like that is read itself.
    before: Option<State>,
}

/// What changes when a file is written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    device: u64,
    number: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            number: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Makes the source at `path` ready to be read. Refused when it is in use and no snapshot is taken, unless `force`; the error says
/// who uses it. [`ErrorKind::Usage`] when it is no regular file or block device, or cannot have the kind of snapshot asked for.
pub fn prepare(path: &Path, kind: SnapshotKind, force: bool) -> Result<Prepared> {
    prepare_on(&Host::default(), path, kind, force)
}

/// [`prepare`] on a given machine.
pub fn prepare_on(host: &Host, path: &Path, kind: SnapshotKind, force: bool) -> Result<Prepared> {
    let metadata = fs::metadata(path).map_err(|e| cannot_open(path, e))?;
    let found = in_use::look(host, path)?;
    let mut prepared = Prepared {
        source: path.to_owned(),
        path_to_read: path.to_owned(),
        kept: None,
        undo: Vec::new(),
        snapshot: None,
        room: None,
        warnings: Vec::new(),
        before: None,
    };
    let mut declined = Vec::new();
    for &candidate in candidates(kind, is_block(&metadata)) {
        match take(host, path, &metadata, candidate) {
            Ok(taken) => {
                prepared.path_to_read = taken.path;
                prepared.kept = taken.file;
                prepared.undo = taken.undo;
                prepared.room = taken.room;
                prepared.snapshot = Some(taken.name);
                return Ok(prepared);
            }
            Err(Declined::Unfit(why)) if kind == SnapshotKind::Auto => {
                declined.push(why.to_string());
            }
            Err(Declined::Unfit(why)) => {
                let message = format!("no {candidate} snapshot of source {path:?} can be taken: {why}");
                return Err(Error::new(ErrorKind::Usage, message));
            }
            Err(Declined::Failed(error)) => {
                let error = error.context(format!("{candidate} snapshot of source {path:?}"));
                if kind != SnapshotKind::Auto || (!found.uses.is_empty() && !force) {
                    return Err(error);
                }
                prepared.warnings.push(format!("no snapshot: {error}"));
                break;
            }
        }
    }
    if !found.uses.is_empty() {
        let uses = list(&found.uses);
        if !force {
            let advice = match declined.is_empty() {
                true => "end that use, have a snapshot read with --snapshot,".to_owned(),
                false => format!("no snapshot of it can be taken ({}); end that use,", declined.join(", ")),
            };
            let message =
                format!("source {path:?} is in use: {uses}; {advice} or read it as it is with --force");
            return Err(Error::new(FAILED, message));
        }
        prepared.warnings.push(format!("source {path:?} is in use and read all the same: {uses}"));
    }
    prepared.kept = found.claim;
    prepared.before = (metadata.is_file() && !force).then(|| State::of(&metadata));
    Ok(prepared)
}

fn list(uses: &[Use]) -> String {
    /// More would only hide the first.
    const SHOWN_MAX: usize = 4;
    let mut text: Vec<String> = uses.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    if uses.len() > SHOWN_MAX {
        text.push(format!("{} more", uses.len() - SHOWN_MAX));
    }
    text.join("; ")
}

/// What to try, in this order.
fn candidates(kind: SnapshotKind, is_device: bool) -> &'static [SnapshotKind] {
    use SnapshotKind::{Auto, Btrfs, Lvm, None, Reflink, Zfs};
    match (kind, is_device) {
        (Auto, true) => &[Lvm, Zfs],
        (Auto, false) => &[Reflink, Zfs],
        (None, _) => &[],
        (Lvm, _) => &[Lvm],
        (Btrfs, _) => &[Btrfs],
        (Reflink, _) => &[Reflink],
        (Zfs, _) => &[Zfs],
    }
}

fn take(host: &Host, path: &Path, metadata: &Metadata, kind: SnapshotKind) -> Result<Taken, Declined> {
    match (kind, is_block(metadata)) {
        (SnapshotKind::Lvm, true) => lvm::take(host, metadata.rdev()),
        (SnapshotKind::Zfs, true) => zfs::take_of_volume(host, path),
        (SnapshotKind::Zfs, false) => zfs::take_of_file(host, path),
        (SnapshotKind::Reflink, false) => reflink::take(host, path),
        (SnapshotKind::Btrfs, false) => btrfs::take(host, path),
        (SnapshotKind::Lvm, false) => Err(Declined::Unfit("it is a file, not an LVM volume".into())),
        (SnapshotKind::Reflink | SnapshotKind::Btrfs, true) => {
            Err(Declined::Unfit("it is a device, not a file".into()))
        }
        (SnapshotKind::Auto | SnapshotKind::None, _) => Err(Declined::Unfit("none was asked for".into())),
    }
}

impl Prepared {
    /// What is to be opened and read, while this lives. A link of `/proc` for a file without a name.
    pub fn path_to_read(&self) -> &Path {
        &self.path_to_read
    }

    /// The snapshot that is read, for people; `None` when the source itself is.
    pub fn snapshot(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }

    /// What the user should be told.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// To be asked when all was read and before it is published: fails when a file was written to meanwhile that was read itself.
    /// Says nothing of devices, and nothing with `force`.
    pub fn check_unchanged(&self) -> Result<()> {
        let Some(before) = self.before else { return Ok(()) };
        let metadata = fs::metadata(&self.source).map_err(|e| cannot_open(&self.source, e))?;
        if State::of(&metadata) == before {
            return Ok(());
        }
        let message = format!(
            "source {:?} was changed while it was read; have a snapshot read with --snapshot, or read it as it is with --force",
            self.source
        );
        Err(Error::new(FAILED, message))
    }

    /// Explains an error of reading, when the snapshot is the cause. To be called before [`Self::finish`].
    pub fn explain(&self, error: Error) -> Error {
        match &self.room {
            Some(room) if error.kind() == FAILED => room.explain(error),
            _ => error,
        }
    }

    /// Drops the snapshot, and tells if that does not work: it is then still there. To be called when nothing reads it any more.
    pub fn finish(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        self.kept = None;
        let mut result = Ok(());
        while let Some(mut guard) = self.undo.pop() {
            let undone = guard.undo();
            if result.is_ok() {
                result = undone.context(|| {
                    let name = self.snapshot.as_deref().unwrap_or("the snapshot");
                    format!("{name} could not be dropped and is still there")
                });
            }
        }
        result
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::error!("{error}");
        }
    }
}
