//! NFS and GlusterFS shares: the mount that exists, or one of our own.
//!
//! Problem: Cinder's NFS and GlusterFS drivers mount a share before they back up, and whoever wants to read what they wrote may
//! stand on a machine where nobody has. Idea: look into the kernel's table of mounts ([`table`]) first, because the share is
//! mounted wherever cinder-backup runs; else mount it with mount(8) beneath a folder of our own, and take it away when the last
//! of our processes is done with it.
//!
//! Invariants: nothing is mounted over what another program uses; a mount of ours is in use while anybody holds a shared lock on the
//! file `.used` beside its mountpoint, and taken away by who finds himself the last; what a killed process left the next one takes away
//! and mounts anew, since its server, its export or its options may have changed; nothing is executed from a share
//! (`nosuid,nodev,noexec`); mount(8) is given up in time, and then mounts nothing any more ([`program`]).

mod client_log;
mod program;
mod table;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, ErrorKind, Result};
use crate::types;
use client_log::ClientLog;
use program::Outcome;
use table::Table;

/// Where shares are mounted by us. Root's, gone after a reboot, as the mounts are.
const FOLDER: &str = "/run/cinderfs/shares";

/// Options of every mount of ours: a share holds data, whatever its files claim to be.
const SAFE_OPTIONS: &str = "nosuid,nodev,noexec";

/// How many mounts may lie over each other where one of ours was left.
const LAYERS_MAX: usize = 8;

/// What kind of server a share is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShareKind {
    /// `host:/path`.
    Nfs,
    /// `host:volume`, also `host:/volume`.
    Glusterfs,
}

impl ShareKind {
    /// The type that mount(8) takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nfs => "nfs",
            Self::Glusterfs => "glusterfs",
        }
    }

    /// The types that the kernel's table shows.
    fn shown_as(self) -> &'static [&'static str] {
        match self {
            Self::Nfs => &["nfs", "nfs4"],
            Self::Glusterfs => &["fuse.glusterfs"],
        }
    }

    /// What has to be installed on Debian, Ubuntu, and on RHEL.
    fn packages(self) -> &'static str {
        match self {
            Self::Nfs => "nfs-common or nfs-utils",
            Self::Glusterfs => "glusterfs-client or glusterfs-fuse",
        }
    }
}

/// A share that a store lies on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Share {
    kind: ShareKind,
    source: String,
    options: Option<String>,
    attempts: u64,
    /// The types that the kernel's table shows it under.
    shown_as: &'static [&'static str],
}

impl Share {
    /// A share by its kind and source. [`ErrorKind::Usage`] when the source has not the form `HOST:PATH`.
    pub fn new(kind: ShareKind, source: &str) -> Result<Self> {
        let host = source.rsplit_once(':').map(|(host, path)| (host, !path.is_empty()));
        let plain =
            !source.contains(|c: char| c.is_control() || c.is_whitespace()) && !source.starts_with('-');
        match host {
            Some((host, true)) if !host.is_empty() && plain => Ok(Self {
                kind,
                source: source.to_owned(),
                options: None,
                attempts: 1,
                shown_as: kind.shown_as(),
            }),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("{source:?} is no {} share, expected HOST:PATH", kind.name()),
            )),
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> ShareKind {
        self.kind
    }

    /// The same, mounted with these options, as for mount(8) behind `-o`; a leading `-o` is taken off, as
    /// `backup_mount_options` may have it.
    #[must_use]
    pub fn with_options(self, options: Option<&str>) -> Self {
        let options = options.map(|text| text.trim().trim_start_matches("-o").trim().to_owned());
        Self { options: options.filter(|text| !text.is_empty()), ..self }
    }

    /// The same, tried so often.
    #[must_use]
    pub fn with_attempts(self, attempts: u64) -> Self {
        Self { attempts: attempts.max(1), ..self }
    }

    /// Whether it is mounted anywhere.
    pub fn is_mounted(&self) -> Result<bool> {
        Ok(!self.mounted()?.is_empty())
    }

    /// The share's directory: where it is mounted already, else a mount of ours, for which there is this much time.
    /// [`ErrorKind::AccessDenied`] when this user may not mount, with the command that root would run; [`ErrorKind::StoreNotFound`] when
    /// there is no such share; [`ErrorKind::StoreIo`] when its server does not answer, or this machine cannot mount such.
    pub fn attach(&self, within: Option<Duration>) -> Result<Attached> {
        self.attach_in(Path::new(FOLDER), "mount".as_ref(), within)
    }

    fn attach_in(&self, folder: &Path, program: &Path, within: Option<Duration>) -> Result<Attached> {
        let deadline = within.map(|within| Instant::now() + within);
        let own = folder.join(types::Md5(Md5::digest(self.key().as_bytes()).into()).to_string());
        // A mount of ours is shared with others of us, not taken for somebody else's.
        if let Some(path) = self.mounted()?.into_iter().find(|path| *path != own && !is_dead(path)) {
            return Ok(Attached { path, ours: None });
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(
                ErrorKind::AccessDenied,
                format!(
                    "the share {self} is not mounted, and only root may mount it; let root run: {}; then give that directory",
                    self.command_line(Path::new("DIRECTORY"))
                ),
            ));
        }
        prepare(folder)?;
        let gate = Gate::close(&own)?;
        if !is_used(&own)? {
            self.take_away(&own)?;
            if let Err(error) = self.mount(&own, program, deadline) {
                gate.remove(&own);
                return Err(error);
            }
        }
        let ours = Ours::use_of(own.clone())?;
        drop(gate);
        Ok(Attached { path: own, ours: Some(ours) })
    }

    /// The same for all words that name this share.
    fn key(&self) -> String {
        match parts(self.kind, &self.source) {
            Some((host, path)) => format!("{} {host}:{path}", self.kind.name()),
            None => self.source.clone(),
        }
    }

    /// Where it is mounted.
    fn mounted(&self) -> Result<Vec<PathBuf>> {
        let table = Table::read().map_err(|error| cannot(Path::new(table::FILE), "read", error))?;
        Ok(table.mountpoints(self.shown_as, |source| same_source(self.kind, source, &self.source)))
    }

    /// Takes away what is mounted at a mountpoint of ours that nobody uses.
    fn take_away(&self, own: &PathBuf) -> Result<()> {
        for _ in 0..LAYERS_MAX {
            if !self.mounted()?.contains(own) {
                break;
            }
            unmount(own, UnmountFlags::DETACH).map_err(|errno| cannot(own, "unmount", errno.into()))?;
        }
        Ok(())
    }

    fn mount(&self, mountpoint: &PathBuf, program: &Path, deadline: Option<Instant>) -> Result<()> {
        match DirBuilder::new().mode(0o700).create(mountpoint) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(cannot(mountpoint, "make", error));
            }
            _ => {}
        }
        let began = Instant::now();
        let log = ClientLog::of(self.kind, mountpoint);
        let mut said = String::new();
        for _ in 0..self.attempts {
            let mut command = Command::new(program);
            command.args(["-t", self.kind.name(), "-o", &self.all_options(), "--", &self.source]);
            let outcome = program::run(command.arg(mountpoint), mountpoint, deadline)
                .map_err(|error| Error::caused_by(ErrorKind::StoreIo, "cannot run mount(8)", error))?;
            match outcome {
                Outcome::Mounted => return Ok(()),
                Outcome::Refused(message) => said = message,
                Outcome::Late => {
                    self.take_away(mountpoint)?;
                    let _ = fs::remove_dir(mountpoint);
                    let seconds = began.elapsed().as_secs();
                    let message = format!(
                        "cannot mount the share {self}: its server did not answer mount(8) within {seconds} s"
                    );
                    return Err(Error::new(ErrorKind::StoreIo, message));
                }
            }
        }
        let _ = fs::remove_dir(mountpoint);
        let reason = log.and_then(|log| log.reason());
        let hint = if needs_program(&said) {
            format!("; install {}", self.kind.packages())
        } else if let Some(reason) = &reason {
            format!("; the client's log says {reason:?}")
        } else {
            String::new()
        };
        Err(Error::new(
            refusal(&said, reason.as_deref()),
            format!("cannot mount the share {self}: mount(8) says {said:?}{hint}"),
        ))
    }

    fn all_options(&self) -> String {
        match &self.options {
            // Ours last: of two that contradict each other the last one wins.
            Some(options) => format!("{options},{SAFE_OPTIONS}"),
            None => SAFE_OPTIONS.to_owned(),
        }
    }

    fn command_line(&self, mountpoint: &Path) -> String {
        format!(
            "mount -t {} -o {} {} {}",
            self.kind.name(),
            self.all_options(),
            self.source,
            mountpoint.display()
        )
    }
}

/// Whether this machine has nothing to mount such a share with.
fn needs_program(said: &str) -> bool {
    said.contains("helper program") || said.contains("unknown filesystem type")
}

/// What kind of failure it is that mount(8) and the client's log tell: no share of that name, unless they say that nobody could be asked.
fn refusal(said: &str, reason: Option<&str>) -> ErrorKind {
    /// What mount.nfs(8) says, and glusterfs, of servers that cannot be found or reached.
    const UNREACHABLE: [&str; 8] = [
        "Connection refused",
        "Connection timed out",
        "timed out",
        "No route to host",
        "Network is unreachable",
        "Failed to resolve server",
        "DNS resolution failed",
        "failed to connect",
    ];
    let is_unreachable =
        |text: &str| UNREACHABLE.iter().any(|words| text.to_lowercase().contains(&words.to_lowercase()));
    if needs_program(said) || is_unreachable(said) || reason.is_some_and(is_unreachable) {
        ErrorKind::StoreIo
    } else {
        ErrorKind::StoreNotFound
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// Joins those who use a mount of ours, by its mountpoint: another process of ours, which keeps it for a daemon that may not
/// unmount. [`ErrorKind::Usage`] when nothing of ours is there.
pub fn join(mountpoint: &Path) -> Result<Attached> {
    join_in(Path::new(FOLDER), mountpoint)
}

fn join_in(folder: &Path, mountpoint: &Path) -> Result<Attached> {
    if mountpoint.parent() != Some(folder) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{mountpoint:?} is no mount of a share by cinderfs"),
        ));
    }
    Ok(Attached { path: mountpoint.to_owned(), ours: Some(Ours::use_of(mountpoint.to_owned())?) })
}

/// A share's directory, for as long as this lives.
#[derive(Debug)]
pub struct Attached {
    path: PathBuf,
    ours: Option<Ours>,
}

impl Attached {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is mounted only for us.
    pub fn is_ours(&self) -> bool {
        self.ours.is_some()
    }
}

#[derive(Debug)]
struct Ours {
    mountpoint: PathBuf,
    /// Locked shared.
    used: File,
}

impl Ours {
    fn use_of(mountpoint: PathBuf) -> Result<Self> {
        let used = open_lock(&mountpoint.with_extension("used"))?;
        flock(&used, FlockOperation::LockShared)
            .map_err(|errno| cannot(&mountpoint, "lock", errno.into()))?;
        Ok(Self { mountpoint, used })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let gate = Gate::close(&self.mountpoint);
        // Only the last one of us gets it.
        let Ok(gate) = gate else { return };
        if flock(&self.used, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        // Detached: a descriptor that is still being closed must not keep it.
        match unmount(&self.mountpoint, UnmountFlags::DETACH) {
            Ok(()) => {
                let _ = fs::remove_dir(&self.mountpoint);
                gate.remove(&self.mountpoint);
            }
            Err(errno) => tracing::warn!(mountpoint = ?self.mountpoint, "cannot unmount: {errno}"),
        }
    }
}

/// Held while a mount of ours is made or taken away, and while its users change: one process at a time.
struct Gate(#[expect(dead_code, reason = "closing the file opens the gate")] File);

impl Gate {
    fn close(mountpoint: &Path) -> Result<Self> {
        let path = mountpoint.with_extension("lock");
        loop {
            let file = open_lock(&path)?;
            flock(&file, FlockOperation::LockExclusive)
                .map_err(|errno| cannot(mountpoint, "lock", errno.into()))?;
            // Who was here before may have taken the file away meanwhile; then others have another one.
            let ours = file.metadata().map_err(|error| cannot(&path, "look at", error))?;
            if fs::symlink_metadata(&path).is_ok_and(|there| there.ino() == ours.ino()) {
                return Ok(Self(file));
            }
        }
    }

    /// Takes away the files of a mountpoint at which nothing is mounted, and opens the gate.
    fn remove(self, mountpoint: &Path) {
        let _ = fs::remove_file(mountpoint.with_extension("used"));
        let _ = fs::remove_file(mountpoint.with_extension("lock"));
    }
}

/// Makes `folder`, which only its owner may write to.
fn prepare(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| cannot(folder, "make", error))?;
    let stat = fs::symlink_metadata(folder).map_err(|error| cannot(folder, "look at", error))?;
    if !stat.is_dir() || stat.uid() != rustix::process::geteuid().as_raw() || stat.mode() & 0o022 != 0 {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{folder:?} must be a directory of this user's that nobody else may write to"),
        ));
    }
    Ok(())
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| cannot(path, "open", error))
}

fn cannot(path: &Path, what: &str, error: io::Error) -> Error {
    Error::caused_by(ErrorKind::StoreIo, format!("cannot {what} {path:?}"), error)
}

/// Whether nothing can be read there any more: the client is gone, or the export.
fn is_dead(path: &Path) -> bool {
    // What stat(2) tells may be remembered from before.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    matches!(rustix::fs::open(path, flags, Mode::empty()), Err(Errno::NOTCONN | Errno::STALE))
}

/// Whether somebody uses a mount of ours. To be asked behind the gate, where nobody begins to.
fn is_used(mountpoint: &Path) -> Result<bool> {
    let used = open_lock(&mountpoint.with_extension("used"))?;
    match flock(&used, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(cannot(mountpoint, "lock", errno.into())),
    }
}

/// Whether two words name the same share.
fn same_source(kind: ShareKind, one: &str, other: &str) -> bool {
    parts(kind, one).is_some_and(|one| Some(one) == parts(kind, other))
}

/// Host and path: slashes at the end do not count, and for GlusterFS the one behind the colon.
fn parts(kind: ShareKind, source: &str) -> Option<(String, &str)> {
    let (host, path) = source.rsplit_once(':')?;
    let path = match kind {
        ShareKind::Nfs if path.trim_end_matches('/').is_empty() => "/",
        ShareKind::Nfs => path.trim_end_matches('/'),
        ShareKind::Glusterfs => path.trim_matches('/'),
    };
    Some((host.trim_matches(['[', ']']).to_lowercase(), path))
}

#[cfg(test)]
mod tests;
