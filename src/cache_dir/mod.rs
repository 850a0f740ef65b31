//! What is kept between runs: restart points, verified blocks, whole images, what was verified when.
//!
//! Problem: what was found out by decoding a 2 GB stream is worth seconds, and is lost when the process ends. Idea: one
//! directory per user, outside the store (Cinder counts the files of a container), with a part for each kind of knowledge.
//! It can be deleted at any time, also while it is used.
//!
//! Invariants: whatever lies here is a claim until it was checked, so a damaged or foreign file costs time and never a
//! byte; it holds bytes of volumes, so nobody but its owner may read it, and nobody else may put a file here; each part has
//! a bound in bytes. Nothing here is needed: who cannot open it goes on without.

pub mod blocks;
pub mod images;
mod part;
pub mod seek_indexes;
pub mod verified;

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use self::part::Part;
use crate::error::{Error, ErrorKind, Result};

/// The environment variable that names the directory.
pub const VARIABLE: &str = "CINDERFS_CACHE_DIR";

/// What the parts are called.
const PARTS: [&str; 5] = [seek_indexes::PART, "blocks", images::FOLDER, SCRATCH, verified::PART];

/// Where files without a name are made, for who may not write elsewhere.
const SCRATCH: &str = "scratch";

/// Tells backup programs to leave the directory out, see <https://bford.info/cachedir/>.
const TAG_NAME: &str = "CACHEDIR.TAG";
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # Here cinderfs keeps what it can find out again. It may be deleted at any time.\n\
    # For information about cache directory tags, see https://bford.info/cachedir/\n";

/// A cache directory that exists and belongs to this user alone.
#[derive(Clone, Debug)]
pub struct CacheDir {
    path: PathBuf,
}

impl CacheDir {
    /// Where it lies unless told otherwise: `$CINDERFS_CACHE_DIR`, else `/var/cache/cinderfs` for root, else `cinderfs` in
    /// `$XDG_CACHE_HOME` or `~/.cache`. `None` when none of them is known.
    ///
    /// An empty variable is as good as none. A relative one is taken from the working directory when it is ours, and
    /// ignored when it is not, as the XDG specification wants.
    pub fn location() -> Option<PathBuf> {
        location(|name| std::env::var_os(name), rustix::process::geteuid().is_root())
    }
    /// Whether the user named it, and so means that one.
    pub fn is_named() -> bool {
        std::env::var_os(VARIABLE).is_some_and(|told| !told.is_empty())
    }

    /// Opens the directory at `path`, and makes it and what is missing above it (mode 0700).
    ///
    /// [`ErrorKind::Usage`] when it belongs to somebody else, may be written by others, or holds files that no cache of
    /// ours has; [`ErrorKind::Target`] when it cannot be made or entered. A disk that is full or read-only is no reason
    /// to fail as long as the directory is there.
    pub fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|error| unusable(path, error))?;
        let directory = match open_directory(&path) {
            Err(Errno::NOENT) => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
                made.map_err(|error| unusable(&path, error))?;
                open_directory(&path)
            }
            opened => opened,
        };
        let directory = directory.map_err(|errno| unusable(&path, errno))?;
        check_is_ours(&path, directory.as_fd())?;
        tag(&path, &directory)?;
        Ok(Self { path })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the sub-directory `name`, and makes it (mode 0700) where it is missing. The errors are those of
    /// [`open`](Self::open).
    fn part(&self, name: &'static str) -> Result<Part> {
        Part::open(self, name)
    }

    /// The folders that are written to while a store is read, as far as they exist: not images, nor stamps of what was verified.
    pub fn written(&self) -> Vec<PathBuf> {
        let written = PARTS.iter().filter(|part| ![images::FOLDER, verified::PART].contains(part));
        let written = written.map(|part| self.path.join(part));
        written.filter(|folder| folder.is_dir()).collect()
    }

    /// A folder for temporary files, which is made where it is missing.
    pub fn scratch(&self) -> Result<PathBuf> {
        Ok(self.part(SCRATCH)?.path().to_owned())
    }

    /// Size in bytes of the file system that it lies on.
    fn disk_bytes(&self) -> Result<u64> {
        let disk = rustix::fs::statvfs(&self.path).map_err(|errno| unusable(&self.path, errno))?;
        Ok(disk.f_blocks.saturating_mul(disk.f_frsize))
    }
}

/// The rules of [`CacheDir::location`].
fn location(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(told) = variable(VARIABLE).filter(|told| !told.is_empty()) {
        return std::path::absolute(told).ok();
    }
    if is_root {
        return Some(PathBuf::from("/var/cache/cinderfs"));
    }
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("cinderfs"))
}

/// Links on the way are followed: the administrator may have put the cache on another disk. What counts is who owns the
/// directory they lead to.
fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
}

/// Refuses a directory in which somebody else may have put something. `path` is for the message.
fn check_is_ours(path: &Path, directory: impl AsFd) -> Result<()> {
    let stat = rustix::fs::fstat(directory).map_err(|errno| unusable(path, errno))?;
    let we = rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(unusable(path, Errno::NOTDIR));
    }
    if stat.st_uid != we {
        let owner = stat.st_uid;
        return Err(refused(path, &format!("belongs to user {owner} and not to user {we}")));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.intersects(Mode::WGRP | Mode::WOTH) {
        let mode = mode.as_raw_mode();
        return Err(refused(path, &format!("may be written by others (mode {mode:o})")));
    }
    Ok(())
}

/// Puts the tag into the directory. A directory that holds other things gets none: the tag would keep somebody's files
/// out of his backups.
fn tag(path: &Path, directory: &OwnedFd) -> Result<()> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut opened = rustix::fs::openat(directory, TAG_NAME, flags, Mode::empty());
    if matches!(opened, Err(Errno::NOENT)) {
        if let Some(name) = foreign_entry(directory).map_err(|errno| unusable(path, errno))? {
            return Err(refused(path, &format!("holds other files, like {name:?}")));
        }
        let mode = Mode::RUSR | Mode::WUSR;
        opened = rustix::fs::openat(directory, TAG_NAME, flags | OFlags::CREATE, mode);
    }
    // Whoever comes second, or after one that was killed here, completes it; a tag of other words is left as it is.
    let written = opened.map_err(io::Error::from).map(File::from).and_then(|file| {
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        if len >= TAG.len() {
            return Ok(());
        }
        let mut there = vec![0; len];
        file.read_exact_at(&mut there, 0)?;
        if TAG.as_bytes().starts_with(&there) { file.write_all_at(TAG.as_bytes(), 0) } else { Ok(()) }
    });
    if let Err(error) = written {
        // A full or read-only disk, most likely. What lies here can be used all the same.
        tracing::debug!("cannot write {TAG_NAME} in the cache directory {path:?}: {error}");
    }
    Ok(())
}

/// The name of something that no cache of ours has.
fn foreign_entry(directory: &OwnedFd) -> Result<Option<String>, Errno> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        // The second-last: a file system of its own for the cache.
        let is_known = PARTS.iter().any(|part| part.as_bytes() == name)
            || [b".".as_slice(), b"..", b"lost+found", TAG_NAME.as_bytes()].contains(&name);
        if !is_known {
            return Ok(Some(String::from_utf8_lossy(name).into_owned()));
        }
    }
    Ok(None)
}

fn refused(path: &Path, why: &str) -> Error {
    let message = format!("cache directory {path:?} {why}; set {VARIABLE} to another directory");
    Error::new(ErrorKind::Usage, message)
}

fn unusable(path: &Path, error: impl Into<io::Error>) -> Error {
    let message = format!("cannot use cache directory {path:?} (set {VARIABLE} to use another one)");
    Error::caused_by(ErrorKind::Target, message, error.into())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn its_place_follows_the_environment() {
        let at = |variables: &[(&str, &str)], is_root| {
            let find = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            };
            location(find, is_root).map(|path| path.to_str().unwrap().to_owned())
        };
        let here = std::env::current_dir().unwrap().to_str().unwrap().to_owned();
        let some = |path: &str| Some(path.to_owned());
        assert_eq!(at(&[], true), some("/var/cache/cinderfs"));
        assert_eq!(at(&[], false), None);
        assert_eq!(at(&[("HOME", "/h")], false), some("/h/.cache/cinderfs"));
        assert_eq!(at(&[("HOME", "/h")], true), some("/var/cache/cinderfs"));
        assert_eq!(at(&[("HOME", "h")], false), None);
        assert_eq!(at(&[("HOME", "")], false), None);
        assert_eq!(at(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], false), some("/x/cinderfs"));
        assert_eq!(at(&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")], false), some("/h/.cache/cinderfs"));
        assert_eq!(at(&[("HOME", "/h"), ("XDG_CACHE_HOME", "")], false), some("/h/.cache/cinderfs"));
        assert_eq!(at(&[("XDG_CACHE_HOME", "/x")], false), some("/x/cinderfs"));
        assert_eq!(at(&[(VARIABLE, "/c")], true), some("/c"));
        assert_eq!(at(&[(VARIABLE, "/c"), ("XDG_CACHE_HOME", "/x")], false), some("/c"));
        assert_eq!(at(&[(VARIABLE, "")], true), some("/var/cache/cinderfs"));
        assert_eq!(at(&[(VARIABLE, "a/b")], true), Some(format!("{here}/a/b")));
    }

    #[test]
    fn what_is_missing_is_made_for_its_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        for _ in 0..2 {
            assert_eq!(CacheDir::open(&path).unwrap().path(), path);
            assert_eq!([mode(&path), mode(&root.path().join("a"))], [0o700; 2]);
            assert_eq!(fs::read_to_string(path.join(TAG_NAME)).unwrap(), TAG);
        }
        // Killed while it wrote the tag.
        fs::write(path.join(TAG_NAME), &TAG[..20]).unwrap();
        CacheDir::open(&path).unwrap();
        assert_eq!(fs::read_to_string(path.join(TAG_NAME)).unwrap(), TAG);
        fs::write(path.join(TAG_NAME), "mine").unwrap();
        CacheDir::open(&path).unwrap();
        assert_eq!(fs::read_to_string(path.join(TAG_NAME)).unwrap(), "mine");
    }

    #[test]
    fn many_may_open_it_at_once() {
        let root = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let path = root.path().join(format!("{round}/cache"));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| CacheDir::open(&path).unwrap().part(seek_indexes::PART).unwrap());
                }
            });
            assert_eq!(fs::read_to_string(path.join(TAG_NAME)).unwrap(), TAG);
        }
    }

    // > A cache directory that belongs to somebody else, or that others may write to, is not used.
    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for (bits, is_fine) in [(0o700, true), (0o755, true), (0o720, false), (0o702, false), (0o1777, false)]
        {
            let path = root.path().join(format!("{bits:o}"));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
            let opened = CacheDir::open(&path);
            assert_eq!(opened.is_ok(), is_fine, "{bits:o}: {opened:?}");
            if let Err(error) = opened {
                assert_eq!(error.kind(), ErrorKind::Usage);
                assert!(error.to_string().contains(VARIABLE), "{error}");
                assert!(error.to_string().contains("written by others"), "{error}");
            }
        }
        // The same holds for a part.
        let cache = CacheDir::open(&root.path().join("cache")).unwrap();
        cache.part("blocks").unwrap();
        let part = cache.path().join("blocks");
        assert_eq!(mode(&part), 0o700);
        fs::set_permissions(&part, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(cache.part("blocks").unwrap_err().kind(), ErrorKind::Usage);
    }

    // > A cache directory that belongs to somebody else, or that others may write to, is not used.
    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(root.path(), Some(65534), None).unwrap();
            root.path()
        } else {
            Path::new("/usr")
        };
        let error = CacheDir::open(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("belongs to user"), "{error}");
        assert!(!path.join(TAG_NAME).exists());
    }

    #[test]
    fn somebody_s_files_are_not_declared_a_cache() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.odt"), "x").unwrap();
        let error = CacheDir::open(root.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("thesis.odt"), "{error}");
        assert!(!root.path().join(TAG_NAME).exists());
        fs::remove_file(root.path().join("thesis.odt")).unwrap();
        fs::create_dir(root.path().join("lost+found")).unwrap();
        CacheDir::open(root.path()).unwrap();
    }

    #[test]
    fn links_lead_to_the_cache_and_not_out_of_it() {
        let root = tempfile::tempdir().unwrap();
        let [real, link, outside] = ["real", "link", "outside"].map(|name| root.path().join(name));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let cache = CacheDir::open(&link).unwrap();
        assert!(real.join(TAG_NAME).exists());
        symlink(&outside, real.join("blocks")).unwrap();
        assert_eq!(cache.part("blocks").unwrap_err().kind(), ErrorKind::Target);
        fs::remove_file(real.join(TAG_NAME)).unwrap();
        symlink(outside.join("tag"), real.join(TAG_NAME)).unwrap();
        CacheDir::open(&link).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn where_no_directory_can_be_the_error_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        symlink("nowhere", root.path().join("dangling")).unwrap();
        for name in ["file", "file/below", "dangling"] {
            let error = CacheDir::open(&root.path().join(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Target, "{error}");
            assert!(error.to_string().contains(VARIABLE), "{error}");
        }
        assert!(CacheDir::open(Path::new("/proc/self/cache")).is_err());
    }
}
