//! Targets of a restore: what may be overwritten, and what is known to be zeros already.
//!
//! Problem: a restore takes hours and may fail at the end, and a half-written image looks like a whole one. Idea: a file
//! is written beside its final name and renamed when it is complete, whether it is new or replaces another. A device can
//! only be written in place, so its failure says that it is incomplete; a pipe takes bytes in order.
//!
//! Invariants: nothing that exists is touched without `force` (pipes and character devices apart); a device in use is not
//! touched at all; opening a target never waits where a signal would not be seen.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use tempfile::TempPath;

use super::Target;
use crate::error::{Error, ErrorKind, Result};

/// Zeros written at once where a target cannot be told to have a hole.
const ZEROS: &[u8] = &[0; 128 << 10];

/// Ends the name of a new file until it is complete. Between the target's name and this stand some random letters: two
/// restores to one target must not write into one file.
const PARTIAL_SUFFIX: &str = ".partial";

/// An opened target.
pub(super) enum Sink {
    /// A regular file that reads as zeros where nothing was written.
    Blank { file: File, path: PathBuf, partial: Option<TempPath>, replaces_file: bool, turn: Mutex<()> },
    /// A block device, of which nothing is known.
    Device { file: File, path: PathBuf },
    /// Something that takes bytes in order.
    Stream { file: Mutex<File>, path: PathBuf },
}

impl Sink {
    pub(super) fn open(target: &Target, len_bytes: u64, force: bool, cancel: &AtomicBool) -> Result<Self> {
        let path = match target {
            Target::Stdout => {
                // A duplicate, so that nobody's buffer lies between: the bytes are large, and binary.
                let stdout = io::stdout().as_fd().try_clone_to_owned();
                let file =
                    Mutex::new(stdout.map_err(|error| failed("open", Path::new("stdout"), error))?.into());
                return Ok(Self::Stream { file, path: "stdout".into() });
            }
            Target::Path(path) => path,
        };
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("target {path:?} names a folder, expected a file"),
            ));
        }
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The name is taken all the same, which would come out when the whole image is written.
                if std::fs::symlink_metadata(path).is_ok() {
                    let message = format!("target {path:?} is a symbolic link that leads nowhere");
                    return Err(Error::new(ErrorKind::Usage, message));
                }
                Self::create(path, len_bytes, None)
            }
            Err(error) => Err(failed("look at", path, error)),
            Ok(metadata) => Self::open_existing(path, &metadata, len_bytes, force, cancel),
        }
    }

    /// A new file beside its final name, with the permissions of the one it replaces, if any.
    fn create(path: &Path, len_bytes: u64, replaces: Option<Permissions>) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::new(ErrorKind::Usage, format!("target {path:?} names no file")));
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut prefix = name.to_owned();
        prefix.push(".");
        // Readable by its owner alone, and removed when it is dropped.
        let partial = tempfile::Builder::new().prefix(&prefix).suffix(PARTIAL_SUFFIX).tempfile_in(folder);
        let partial = partial.map_err(|error| match std::fs::metadata(folder) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Error::new(
                ErrorKind::Target,
                format!("cannot create {path:?}: the folder {folder:?} does not exist"),
            ),
            _ => failed("create", path, without_path(error)),
        });
        let (file, partial) = partial?.into_parts();
        let replaces_file = replaces.is_some();
        if let Some(permissions) = replaces {
            file.set_permissions(permissions).map_err(|error| failed("create", path, error))?;
        }
        let sink = Self::Blank {
            file,
            path: path.into(),
            partial: Some(partial),
            replaces_file,
            turn: Mutex::default(),
        };
        sink.set_len(len_bytes)?;
        Ok(sink)
    }

    fn open_existing(
        path: &Path,
        metadata: &Metadata,
        len_bytes: u64,
        force: bool,
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let kind = metadata.file_type();
        if kind.is_fifo() {
            let file = Mutex::new(open_pipe(path, cancel)?);
            return Ok(Self::Stream { file, path: path.into() });
        }
        if kind.is_char_device() {
            let file =
                OpenOptions::new().write(true).open(path).map_err(|error| failed("open", path, error))?;
            return Ok(Self::Stream { file: Mutex::new(file), path: path.into() });
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("target {path:?} is neither a file nor a block device"),
            ));
        }
        if !force {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("target {path:?} exists; --force overwrites it"),
            ));
        }
        if kind.is_file() {
            // Replaced when the new one is complete, wherever symbolic links lead.
            let path = path.canonicalize().map_err(|error| failed("look at", path, error))?;
            OpenOptions::new().write(true).open(&path).map_err(|error| failed("overwrite", &path, error))?;
            return Self::create(&path, len_bytes, Some(metadata.permissions()));
        }
        // O_EXCL on a block device fails when it is mounted or otherwise in use.
        let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or(0);
        let opened = OpenOptions::new().write(true).custom_flags(exclusive).open(path);
        let mut file = opened.map_err(|error| failed("open for exclusive use", path, error))?;
        let device_bytes =
            io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(|e| failed("measure", path, e))?;
        if device_bytes < len_bytes {
            let message = format!("device {path:?} has {device_bytes} bytes, the image {len_bytes}");
            return Err(Error::new(ErrorKind::Target, message));
        }
        Ok(Self::Device { file, path: path.into() })
    }

    /// Whether ranges may be written in any order.
    pub(super) fn seeks(&self) -> bool {
        match self {
            Self::Blank { .. } | Self::Device { .. } => true,
            Self::Stream { .. } => false,
        }
    }

    /// The right to write, for a while. The kernel lets one thread at a time write to a file, and the others spin
    /// meanwhile, on cores that could decode; here they sleep. Devices take writes side by side.
    ///
    /// Lock order: this comes first. Nobody who leads a flight or decodes asks for it.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self {
            Self::Blank { turn, .. } => Some(turn.lock().unwrap_or_else(PoisonError::into_inner)),
            Self::Device { .. } | Self::Stream { .. } => None,
        }
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = match self {
            Self::Blank { file, .. } | Self::Device { file, .. } => file.write_all_at(bytes, offset),
            Self::Stream { file, .. } => file.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes),
        };
        written.map_err(|error| failed("write to", self.path(), error))
    }

    /// Makes a range read as zeros.
    pub(super) fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        if let Self::Blank { .. } = self {
            return Ok(());
        }
        if let Self::Device { file, .. } = self {
            // Zeroes the range, and gives thin storage its space back, where the device can; else we write.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(file, flags, range.start, range.end - range.start).is_ok() {
                return Ok(());
            }
        }
        let mut at = range.start;
        while at < range.end {
            let part = ZEROS.len().min((range.end - at) as usize);
            self.write(at, &ZEROS[..part])?;
            at += part as u64;
        }
        Ok(())
    }

    /// Makes what was written durable, and gives a new file its name.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Stream { .. } => Ok(()),
            Self::Device { file, path } | Self::Blank { file, path, partial: None, .. } => {
                file.sync_all().map_err(|error| failed("sync", &path, error))
            }
            Self::Blank { file, path, partial: Some(partial), replaces_file, .. } => {
                file.sync_all().map_err(|error| failed("sync", &path, error))?;
                if replaces_file {
                    return partial.persist(&path).map_err(|refused| failed("replace", &path, refused.error));
                }
                let named = partial.persist_noclobber(&path).or_else(|refused| {
                    // Not every file system can do it in one step; who creates the target meanwhile loses it then.
                    match refused.error.kind() {
                        io::ErrorKind::AlreadyExists => Err(refused),
                        _ if std::fs::symlink_metadata(&path).is_ok() => Err(refused),
                        _ => refused.path.persist(&path),
                    }
                });
                named.map_err(|refused| {
                    // It is complete: what took hours is not thrown away because the name is taken by now.
                    let message = match refused.path.keep() {
                        Ok(kept) => {
                            format!("cannot give {path:?} its name; the complete image is left at {kept:?}")
                        }
                        Err(_) => format!("cannot give {path:?} its name"),
                    };
                    Error::caused_by(ErrorKind::Target, message, refused.error)
                })
            }
        }
    }

    /// Removes a new file, so that what it was to replace stays as it was. Tells when the target is left half written.
    pub(super) fn abandon(self) -> Option<String> {
        if let Self::Device { path, .. } = &self {
            return Some(format!("{path:?} is incomplete, and what it held before is gone"));
        }
        if let Self::Blank { partial: Some(partial), path, .. } = self
            && let Err(error) = partial.close()
        {
            tracing::warn!("cannot remove what was written for {path:?}: {error}");
        }
        None
    }

    fn set_len(&self, len_bytes: u64) -> Result<()> {
        match self {
            Self::Blank { file, path, .. } => {
                file.set_len(len_bytes).map_err(|error| failed("size", path, error))
            }
            Self::Device { .. } | Self::Stream { .. } => Ok(()),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Blank { path, .. } | Self::Device { path, .. } | Self::Stream { path, .. } => path,
        }
    }
}

/// Opens a named pipe as soon as it has a reader. The plain call would wait for one, deaf to signals.
fn open_pipe(path: &Path, cancel: &AtomicBool) -> Result<File> {
    const TRY_AGAIN: Duration = Duration::from_millis(50);
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    loop {
        match OpenOptions::new().write(true).custom_flags(nonblocking).open(path) {
            Ok(file) => {
                let blocking = rustix::fs::fcntl_setfl(&file, OFlags::empty());
                return blocking.map(|()| file).map_err(|error| failed("open", path, error.into()));
            }
            Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {}
            Err(error) => return Err(failed("open", path, error)),
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, format!("interrupted: {path:?} had no reader")));
        }
        std::thread::sleep(TRY_AGAIN);
    }
}

/// The error alone: `tempfile` adds a name that nobody knows.
fn without_path(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.source()?.downcast_ref::<io::Error>()?.raw_os_error());
    inner.or(error.raw_os_error()).map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::caused_by(ErrorKind::Target, format!("cannot {what} {path:?}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<Sink> {
        Sink::open(&Target::Path(path.into()), 4, false, &AtomicBool::new(false))
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn two_restores_to_one_target_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        let (first, second) = (open(&target).unwrap(), open(&target).unwrap());
        first.write(0, b"aaaa").unwrap();
        second.write(0, b"bb").unwrap();
        first.finish().unwrap();
        second.write(2, b"bb").unwrap();
        // The name is taken; the second image is complete and is not thrown away.
        let error = second.finish().unwrap_err();
        assert_eq!(std::fs::read(&target).unwrap(), b"aaaa");
        let left = names(folder.path());
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(error.to_string().contains(&left[1]), "{error}");
        assert_eq!(std::fs::read(folder.path().join(&left[1])).unwrap(), b"bbbb");
    }

    #[test]
    fn a_restore_that_ends_early_leaves_nothing_and_takes_nobodys_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk.partial"), "somebody's").unwrap();
        let target = folder.path().join("disk");
        open(&target).unwrap().abandon();
        drop(open(&target).unwrap());
        assert!(
            Sink::open(&Target::Path(target.clone()), u64::MAX, false, &AtomicBool::new(false)).is_err(),
            "no file is that long"
        );
        assert_eq!(names(folder.path()), ["disk.partial"]);
        assert_eq!(std::fs::read(folder.path().join("disk.partial")).unwrap(), b"somebody's");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_refused_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        std::os::unix::fs::symlink("nowhere", &target).unwrap();
        assert_eq!(open(&target).map(|_| ()).unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn what_is_overwritten_stays_until_the_new_one_is_complete() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (file, target) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "precious").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("file", &target).unwrap();
        let forced = || Sink::open(&Target::Path(target.clone()), 4, true, &AtomicBool::new(false)).unwrap();
        let sink = forced();
        sink.write(0, b"new").unwrap();
        assert_eq!(sink.abandon(), None);
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let sink = forced();
        sink.write(1, b"new").unwrap();
        sink.finish().unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"\0new");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(folder.path()), ["file", "link"]);
    }

    #[test]
    fn a_folder_that_is_named_or_missing_is_told_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let slash = PathBuf::from(format!("{}/new/", folder.path().display()));
        assert_eq!(open(&slash).map(|_| ()).unwrap_err().kind(), ErrorKind::Usage);
        let error = open(&folder.path().join("missing/disk")).map(|_| ()).unwrap_err().to_string();
        assert!(error.ends_with("missing\" does not exist"), "{error}");
    }

    #[test]
    fn a_pipe_without_a_reader_can_be_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let rights = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rights).unwrap();
        let cancelled = AtomicBool::new(true);
        let error = Sink::open(&Target::Path(pipe), 4, false, &cancelled).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }
}
