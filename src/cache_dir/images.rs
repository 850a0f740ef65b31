//! Whole images that were written down, verified: one sparse file each, and a record that says what it is.
//!
//! ```text
//!   images/<key>.img     the bytes of the volume, 0600
//!   images/<key>.json    the record: which backup, which content, and the file as it was left
//!   images/<key>.whole*  being written       images/<key>.lock  held (flock) by who writes or removes
//! ```
//!
//! Problem: such a file is handed to the kernel, which reads it without asking anybody again, so nothing but a finished,
//! untouched file may be taken for one. Idea: the record is written last, and holds the inode number, size and times of
//! the file; a file that was written to since, truncated, copied or put in another's place has others.
//!
//! Invariants: a file without a record that fits is not used; whatever a killed process leaves is removed by the next
//! one, which sees by the lock that nobody is at it; files that are not ours (owner, rights, kind), or lie where others may
//! put files, are not used for anybody.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use serde::{Deserialize, Serialize};

use super::CacheDir;
use crate::error::{Error, ErrorKind, Result};

/// The folder in the cache directory.
pub(super) const FOLDER: &str = "images";

/// The form of the records; others are not read.
const RECORD_VERSION: u32 = 1;

/// Longest record read, in bytes. Ours have some 600.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// Hexadecimal digits of a key.
const KEY_LEN: usize = 32;

/// What an image file is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The backup that it is the image of.
    pub backup_id: String,
    /// The backup's volume.
    pub volume_id: Option<String>,
    /// Length in bytes.
    pub image_bytes: u64,
    /// Names the content: hexadecimal sha256.
    pub content: String,
    /// The version of the document that holds the digests, as the store told it when they were compared.
    pub digests_version: Option<String>,
    /// When the file was made, or last checked as a whole.
    pub verified_at: String,
    file: Option<Stamp>,
}

/// The file as it was left. The device is not part of it: its number may change when the machine starts again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stamp {
    ino: u64,
    bytes: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

/// An image file and what is known of it.
#[derive(Debug)]
pub enum State {
    /// There is none.
    Missing,
    /// There is something that is no finished image file of ours; the reason.
    Unusable(String),
    /// There is one, and it is not as it was left; the reason. Its bytes may be right all the same.
    Changed(Record, String),
    /// There is one, opened.
    Ready(Record, File),
}

/// The image files of a cache directory. The folder may be missing until [`claim`](Self::claim).
#[derive(Clone, Debug)]
pub struct Images {
    folder: PathBuf,
}

/// The right to write or remove one image file, against all other processes, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    images: Images,
    key: String,
    lock_path: PathBuf,
    _lock: File,
}

impl Record {
    /// Of an image whose file is not known yet.
    pub fn new(backup_id: &str, volume_id: Option<&str>, image_bytes: u64, content: &str) -> Self {
        Self {
            version: RECORD_VERSION,
            backup_id: backup_id.to_owned(),
            volume_id: volume_id.map(str::to_owned),
            image_bytes,
            content: content.to_owned(),
            digests_version: None,
            verified_at: String::new(),
            file: None,
        }
    }

    /// Notes the version of the document that holds the digests.
    #[must_use]
    pub fn digests(self, version: Option<&str>) -> Self {
        Self { digests_version: version.map(str::to_owned), ..self }
    }
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        Self {
            ino: file.ino(),
            bytes: file.size(),
            mtime: (file.mtime(), file.mtime_nsec()),
            ctime: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Images {
    /// Those of `cache`.
    pub fn of(cache: &CacheDir) -> Self {
        Self::below(cache.path())
    }

    /// Those of the cache directory at `path`, which need not exist.
    pub fn below(path: &Path) -> Self {
        Self { folder: path.join(FOLDER) }
    }

    /// Where they lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the image file of this key is, if there is one.
    pub fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.img"))
    }

    /// Looks at an image file. Where there is none this costs one failing `open`.
    pub fn state(&self, key: &str) -> State {
        let path = self.path(key);
        let (file, found) = match open_own(&path) {
            Ok(Some(opened)) => opened,
            Ok(None) => return State::Missing,
            Err(why) => return State::Unusable(why),
        };
        if let Err(why) = self.check_folders() {
            return State::Unusable(why);
        }
        let record = match self.record(key) {
            Ok(Some(record)) => record,
            Ok(None) => return State::Unusable("it has no record, so it was not finished".to_owned()),
            Err(why) => return State::Unusable(why),
        };
        if found.size() != record.image_bytes {
            let why = format!("it has {} bytes, expected {}", found.size(), record.image_bytes);
            return State::Changed(record, why);
        }
        if record.file != Some(Stamp::of(&found)) {
            return State::Changed(record, "it was written to or replaced since it was hydrated".to_owned());
        }
        State::Ready(record, file)
    }

    /// The keys of all image files, sorted.
    pub fn keys(&self) -> Result<Vec<String>> {
        let names = self.names()?;
        let keys: BTreeSet<_> = names.iter().filter_map(|name| key_of(name, ".img")).collect();
        Ok(keys.into_iter().map(str::to_owned).collect())
    }

    /// Bytes that an image file takes on its disk, holes left out.
    pub fn stored_bytes(&self, key: &str) -> u64 {
        fs::metadata(self.path(key)).map_or(0, |file| file.blocks().saturating_mul(512))
    }

    /// Bytes that can still be written.
    pub fn free_bytes(&self) -> Result<u64> {
        let space =
            rustix::fs::statvfs(&self.folder).map_err(|e| failed("measure", &self.folder, e.into()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Claims an image file; `None` while another process holds it. Makes the folder.
    pub fn claim(&self, key: &str) -> Result<Option<Claim>> {
        if !is_key(key) {
            return Err(Error::new(ErrorKind::Usage, format!("{key:?} is no key of an image file")));
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|error| failed("make", &self.folder, error))?;
        let lock_path = self.folder.join(format!("{key}.lock"));
        loop {
            let lock = open_options(true).create(true).open(&lock_path);
            let lock = lock.map_err(|error| failed("open", &lock_path, error))?;
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(failed("lock", &lock_path, error.into())),
            }
            let held = lock.metadata().map_err(|error| failed("look at", &lock_path, error))?;
            // Who held it before us has removed it; the next one would lock another file of this name.
            let is_named = fs::symlink_metadata(&lock_path).is_ok_and(|named| named.ino() == held.ino());
            if is_named {
                return Ok(Some(Claim { images: self.clone(), key: key.to_owned(), lock_path, _lock: lock }));
            }
        }
    }

    /// Removes what killed processes left: half-written files, and image files without a record.
    pub fn sweep(&self) -> Result<()> {
        let names = self.names()?;
        let keys: BTreeSet<_> = names.iter().filter_map(|name| key_of(name, "")).collect();
        for key in keys {
            let is_whole = |ending: &str| names.contains(&OsString::from(format!("{key}.{ending}")));
            let of_key = names.iter().filter(|name| key_of(name, "") == Some(key)).count();
            if is_whole("img") && is_whole("json") && of_key == 2 {
                continue;
            }
            // Whoever holds it is at work.
            if let Some(claim) = self.claim(key)? {
                claim.sweep()?;
            }
        }
        Ok(())
    }

    /// Refuses files, however good, of a folder in which somebody else may have put them.
    fn check_folders(&self) -> std::result::Result<(), String> {
        for folder in [self.folder.parent(), Some(&*self.folder)].into_iter().flatten() {
            let found =
                fs::metadata(folder).map_err(|error| format!("{folder:?} cannot be looked at: {error}"))?;
            check_owner(folder, &found)?;
        }
        Ok(())
    }

    fn record(&self, key: &str) -> std::result::Result<Option<Record>, String> {
        let path = self.folder.join(format!("{key}.json"));
        let Some((file, _)) = open_own(&path)? else { return Ok(None) };
        let mut text = Vec::new();
        let read = file.take(RECORD_BYTES_MAX).read_to_end(&mut text);
        read.map_err(|error| format!("its record cannot be read: {error}"))?;
        let record: Record =
            serde_json::from_slice(&text).map_err(|error| format!("its record is no record: {error}"))?;
        if record.version != RECORD_VERSION {
            return Err(format!("its record has version {}, expected {RECORD_VERSION}", record.version));
        }
        Ok(Some(record))
    }

    fn names(&self) -> Result<BTreeSet<OsString>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.map_err(|error| failed("list", &self.folder, error))?,
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        names.collect::<io::Result<_>>().map_err(|error| failed("list", &self.folder, error))
    }
}

impl Claim {
    /// Where the image is to be written before it is [published](Self::publish). Names that begin with this one are
    /// removed when their writer is gone.
    pub fn new_path(&self) -> PathBuf {
        self.images.folder.join(format!("{}.whole", self.key))
    }

    /// Removes what was not finished, and an image file that has no record.
    pub fn sweep(&self) -> Result<()> {
        let names = self.images.names()?;
        let has = |ending: &str| names.contains(&OsString::from(format!("{}.{ending}", self.key)));
        let complete = has("img") && has("json");
        for name in names.iter().filter(|name| key_of(name, "") == Some(&self.key)) {
            let is_part = key_of(name, ".img").is_some() || key_of(name, ".json").is_some();
            if key_of(name, ".lock").is_none() && !(complete && is_part) {
                remove(&self.images.folder.join(name))?;
            }
        }
        Ok(())
    }

    /// Makes the file at [`new_path`](Self::new_path), which is complete and durable, the image file of this key.
    pub fn publish(&self, record: Record) -> Result<()> {
        let path = self.images.path(&self.key);
        // A record that outlives its file could only lie about the next one.
        self.remove()?;
        fs::rename(self.new_path(), &path).map_err(|error| failed("name", &path, error))?;
        self.confirm(record)
    }

    /// Records the image file as it is now.
    pub fn confirm(&self, mut record: Record) -> Result<()> {
        let (path, folder) = (self.images.path(&self.key), &self.images.folder);
        self.sync_folder()?;
        let file = fs::symlink_metadata(&path).map_err(|error| failed("look at", &path, error))?;
        record.file = Some(Stamp::of(&file));
        record.verified_at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|error| Error::caused_by(ErrorKind::Target, "cannot write a record", error))?;
        let final_path = folder.join(format!("{}.json", self.key));
        let write = || -> io::Result<()> {
            let prefix = format!("{}.json.", self.key);
            let mut new = tempfile::Builder::new().prefix(&prefix).tempfile_in(folder)?;
            new.write_all(&text)?;
            new.as_file().sync_all()?;
            new.persist(&final_path)?;
            Ok(())
        };
        write().map_err(|error| failed("write", &final_path, error))?;
        self.sync_folder()
    }

    /// Removes the image file; whoever has it open keeps it. The record goes first. Whether there was one.
    pub fn remove(&self) -> Result<bool> {
        remove(&self.images.folder.join(format!("{}.json", self.key)))?;
        remove(&self.images.path(&self.key))
    }

    fn sync_folder(&self) -> Result<()> {
        let folder = &self.images.folder;
        let synced = File::open(folder).and_then(|opened| opened.sync_all());
        synced.map_err(|error| failed("sync", folder, error))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it is still held: see `Images::claim`.
        if let Err(error) = remove(&self.lock_path) {
            tracing::debug!("{error}");
        }
    }
}

/// Opens a file of ours for reading; `None` where there is none, and the reason where it is not one.
fn open_own(path: &Path) -> std::result::Result<Option<(File, fs::Metadata)>, String> {
    let opened = open_options(false).open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (found, file) = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{path:?} cannot be opened: {error}")),
    };
    if !found.is_file() {
        return Err(format!("{path:?} is no regular file"));
    }
    check_owner(path, &found)?;
    Ok(Some((file, found)))
}

/// Refuses what somebody other than us or root may have written.
fn check_owner(path: &Path, found: &fs::Metadata) -> std::result::Result<(), String> {
    let (mode, owner) = (found.permissions().mode() & 0o777, found.uid());
    if owner != rustix::process::geteuid().as_raw() && owner != 0 {
        return Err(format!("{path:?} belongs to user {owner}"));
    }
    if mode & 0o022 != 0 {
        return Err(format!("{path:?} may be written to by others (mode {mode:o})"));
    }
    Ok(())
}

/// Neither follows a link nor waits for a pipe; a new file is its owner's alone.
fn open_options(write: bool) -> OpenOptions {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(write).mode(0o600).custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
    options
}

fn is_key(text: &str) -> bool {
    text.len() == KEY_LEN && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The key that a name begins with, if a dot follows it and the name ends so.
fn key_of<'n>(name: &'n std::ffi::OsStr, ending: &str) -> Option<&'n str> {
    let name = name.to_str()?;
    let (key, rest) = (name.get(..KEY_LEN)?, name.get(KEY_LEN..)?);
    let fits = if ending.is_empty() { rest.starts_with('.') } else { rest == ending };
    (is_key(key) && fits).then_some(key)
}

/// Whether there was one.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path, error)),
    }
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::caused_by(ErrorKind::Target, format!("cannot {what} {path:?}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn images() -> (tempfile::TempDir, Images) {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::of(&CacheDir::open(folder.path()).unwrap());
        (folder, images)
    }

    fn publish(images: &Images, bytes: &[u8]) {
        let claim = images.claim(KEY).unwrap().unwrap();
        fs::write(claim.new_path(), bytes).unwrap();
        fs::set_permissions(claim.new_path(), fs::Permissions::from_mode(0o600)).unwrap();
        claim.publish(Record::new("b", Some("v"), bytes.len() as u64, "content")).unwrap();
    }

    #[track_caller]
    fn is_ready(images: &Images) -> bool {
        matches!(images.state(KEY), State::Ready(..))
    }

    #[test]
    fn only_an_untouched_file_is_ready() {
        let (_folder, images) = images();
        assert!(matches!(images.state(KEY), State::Missing));
        type Touch = fn(&Images);
        let touches: [(&str, Touch); 7] = [
            ("written to", |images| {
                use std::os::unix::fs::FileExt as _;
                let file = OpenOptions::new().write(true).open(images.path(KEY)).unwrap();
                file.write_all_at(b"x", 1).unwrap();
                // Back to the old time, as `cp -p` and rsync do.
                let old = File::open(images.path(KEY)).unwrap().metadata().unwrap().modified().unwrap();
                file.set_modified(old).unwrap();
            }),
            ("truncated", |images| {
                OpenOptions::new().write(true).open(images.path(KEY)).unwrap().set_len(2).unwrap();
            }),
            ("replaced", |images| {
                fs::copy(images.path(KEY), images.folder().join("copy")).unwrap();
                fs::rename(images.folder().join("copy"), images.path(KEY)).unwrap();
            }),
            ("open to others", |images| {
                fs::set_permissions(images.path(KEY), fs::Permissions::from_mode(0o666)).unwrap();
            }),
            ("without record", |images| {
                fs::remove_file(images.folder().join(format!("{KEY}.json"))).unwrap();
            }),
            ("with a foreign record", |images| {
                fs::write(images.folder().join(format!("{KEY}.json")), b"{\"version\": 2}").unwrap();
            }),
            ("a link", |images| {
                fs::rename(images.path(KEY), images.folder().join("other")).unwrap();
                std::os::unix::fs::symlink("other", images.path(KEY)).unwrap();
            }),
        ];
        for (what, touch) in touches {
            publish(&images, b"bytes");
            assert!(is_ready(&images), "before it was {what}");
            touch(&images);
            assert!(!is_ready(&images), "after it was {what}");
        }
    }

    // > A cache directory that belongs to somebody else, or that others may write to, is not used.
    #[test]
    fn a_folder_that_others_may_write_has_no_image() {
        let (cache, images) = images();
        publish(&images, b"bytes");
        for folder in [cache.path(), images.folder()] {
            for (bits, is_fine) in [(0o720, false), (0o1777, false), (0o755, true)] {
                fs::set_permissions(folder, fs::Permissions::from_mode(bits)).unwrap();
                assert_eq!(is_ready(&images), is_fine, "{folder:?} {bits:o}");
            }
            // Root alone can give it away.
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(folder, Some(65534), None).unwrap();
                assert!(!is_ready(&images), "{folder:?}");
                std::os::unix::fs::chown(folder, Some(0), None).unwrap();
            }
        }
        assert!(is_ready(&images));
    }

    #[test]
    fn a_claim_keeps_others_out_and_leaves_no_lock() {
        let (_folder, images) = images();
        let claim = images.claim(KEY).unwrap().unwrap();
        assert!(images.claim(KEY).unwrap().is_none());
        drop(claim);
        assert_eq!(images.names().unwrap().len(), 0);
        assert!(images.claim(KEY).unwrap().is_some());
        assert_eq!(images.claim("../../x").unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn what_a_killed_writer_left_goes_and_what_is_written_or_foreign_stays() {
        let (_folder, images) = images();
        let busy = "f".repeat(KEY_LEN);
        let holder = images.claim(&busy).unwrap().unwrap();
        fs::write(holder.new_path(), "at work").unwrap();
        publish(&images, b"whole");
        for left in ["whole", "whole.aB3.partial", "json.x1", "lock"] {
            fs::write(images.folder().join(format!("{KEY}.{left}")), "left").unwrap();
        }
        let orphan = "a".repeat(KEY_LEN);
        fs::write(images.path(&orphan), "no record").unwrap();
        fs::write(images.folder().join("notes.txt"), "somebody's").unwrap();
        images.sweep().unwrap();
        let left: Vec<_> = images.names().unwrap().into_iter().map(|n| n.into_string().unwrap()).collect();
        let expected = [
            format!("{KEY}.img"),
            format!("{KEY}.json"),
            format!("{busy}.lock"),
            format!("{busy}.whole"),
            "notes.txt".to_owned(),
        ];
        assert_eq!(left, expected);
        assert!(is_ready(&images));
        assert_eq!(images.keys().unwrap(), [KEY]);
    }
}
