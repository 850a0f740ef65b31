//! A sub-directory of the cache directory, and the files in it.
//!
//! Problem: the directory is ours, but what lies in it may be anything by the time it is opened: a link, a pipe, somebody
//! else's file; and whoever clears caches may take the directory away under a running mount. Idea: files are opened by
//! descriptor of their directory, without following links, and looked at before they are read; a file appears under its
//! name only when it is complete.
//!
//! Invariant: nothing outside the directory is opened, made or removed.

use std::fs::{File, Metadata};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{CacheDir, check_is_ours, open_directory, unusable};
use crate::error::Result;

/// What the name of a file that is being written ends with.
pub(super) const TEMPORARY_SUFFIX: &str = ".tmp";

/// How many names are tried for a temporary file. The first is taken but for a chance of 2^-64.
const NAMES_MAX: u32 = 8;

/// One part of a cache directory, opened.
#[derive(Debug)]
pub(super) struct Part {
    cache: CacheDir,
    name: &'static str,
    path: PathBuf,
    directory: RwLock<Arc<OwnedFd>>,
}

impl Part {
    pub(super) fn open(cache: &CacheDir, name: &'static str) -> Result<Self> {
        let path = cache.path().join(name);
        let directory = RwLock::new(Arc::new(open_part(cache, name, &path)?));
        Ok(Self { cache: cache.clone(), name, path, directory })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn directory(&self) -> Arc<OwnedFd> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The directory, opened once more: what is locked through it is locked by this caller alone.
    pub(super) fn reopen(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = self.directory();
        let opened = rustix::io::retry_on_intr(|| rustix::fs::openat(&directory, ".", flags, Mode::empty()))?;
        Ok(opened.into())
    }

    /// Makes the directory again, after somebody removed it.
    fn renew(&self) -> Result<()> {
        let cache = CacheDir::open(self.cache.path())?;
        let directory = open_part(&cache, self.name, &self.path)?;
        *self.directory.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(directory);
        Ok(())
    }

    /// Opens a file for reading. An error when it is not a plain file that only we may write.
    pub(super) fn open_file(&self, name: &str) -> io::Result<(File, Metadata)> {
        // NONBLOCK: opening a pipe that was put here must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let directory = self.directory();
        let file = rustix::io::retry_on_intr(|| rustix::fs::openat(&directory, name, flags, Mode::empty()))?;
        let file = File::from(file);
        let metadata = file.metadata()?;
        let is_ours = metadata.is_file()
            && metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.mode() & 0o022 == 0;
        if is_ours { Ok((file, metadata)) } else { Err(io::Error::other("not a file of ours")) }
    }

    /// Begins a file that will be called `name`.
    pub(super) fn create(&self, name: &str) -> Result<Temporary<'_>> {
        let created = match Temporary::create(self, name) {
            Err(Errno::NOENT) => {
                self.renew()?;
                Temporary::create(self, name)
            }
            created => created,
        };
        created.map_err(|errno| unusable(&self.path, errno))
    }

    /// Removes a file. That it is gone already is fine.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(self.directory(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Calls `visit` with each plain file's name, length in bytes and time of modification in nanoseconds since 1970.
    pub(super) fn visit_files(&self, mut visit: impl FnMut(&str, u64, i128)) -> io::Result<()> {
        let directory = self.directory();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if let Some((len, modified)) = self.stat(name) {
                visit(name, len, modified);
            }
        }
        Ok(())
    }

    /// Length and time of modification, as [`visit_files`](Self::visit_files) tells them, of a plain file.
    pub(super) fn stat(&self, name: &str) -> Option<(u64, i128)> {
        let stat = rustix::fs::statat(self.directory(), name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
        let modified = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        is_file.then(|| (u64::try_from(stat.st_size).unwrap_or(0), modified))
    }
}

fn open_part(cache: &CacheDir, name: &str, path: &Path) -> Result<OwnedFd> {
    let root = open_directory(cache.path()).map_err(|errno| unusable(cache.path(), errno))?;
    check_is_ours(cache.path(), &root)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::io::retry_on_intr(|| rustix::fs::openat(&root, name, flags, Mode::empty()));
    let opened = match open() {
        Err(Errno::NOENT) => match rustix::fs::mkdirat(&root, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => open(),
            Err(errno) => Err(errno),
        },
        opened => opened,
    };
    let opened = opened.map_err(|errno| unusable(path, errno))?;
    check_is_ours(path, &opened)?;
    Ok(opened)
}

/// A file without its final name yet. It is removed when it is dropped before [`publish`](Self::publish).
#[derive(Debug)]
pub(super) struct Temporary<'a> {
    part: &'a Part,
    /// The directory that it was made in, which may have been renewed since.
    directory: Arc<OwnedFd>,
    file: File,
    name: String,
    is_published: bool,
}

impl<'a> Temporary<'a> {
    fn create(part: &'a Part, final_name: &str) -> Result<Self, Errno> {
        let directory = part.directory();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut result = Err(Errno::EXIST);
        for _ in 0..NAMES_MAX {
            let random = RandomState::new().build_hasher().finish();
            let name = format!("{final_name}.{random:016x}{TEMPORARY_SUFFIX}");
            result = rustix::fs::openat(&directory, &name, flags, Mode::RUSR | Mode::WUSR)
                .map(|file| (name, file));
            if !matches!(result, Err(Errno::EXIST | Errno::INTR)) {
                break;
            }
        }
        let (name, file) = result?;
        Ok(Self { part, directory, file: file.into(), name, is_published: false })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Puts it in the place of whatever is called `name`.
    pub(super) fn publish(mut self, name: &str) -> Result<()> {
        let renamed = rustix::fs::renameat(&self.directory, &self.name, &self.directory, name);
        renamed.map_err(|errno| unusable(self.part.path(), errno))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_published {
            // Where this fails, it is removed by age.
            let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}
