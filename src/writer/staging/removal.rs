//! Taking a backup out of a store: the reverse of publishing.
//!
//! ```text
//! cinderfs deletion 1
//! folder "team/one"               as JSON strings: a name may hold a line feed; "" is the store's root
//! 4799 1204 1700000000.5 "volume_…_metadata"      number, length and time of writing of the file; its name
//! …                                               in the order in which they go, the metadata first
//! end
//! ```
//!
//! Problem: a run that is killed half way leaves files that belong to no backup, and nobody can tell them from one that is
//! just being written. Idea: the run holds the hidden folder of the backup's id, as a run that writes that backup would,
//! and writes down there what it is about to remove. The metadata goes first, durably, and with it the backup is gone. If it is
//! still there when the run is found dead, nothing was removed and nothing will be; if not, the rest follows it.
//!
//! Invariants:
//! - a file is removed only where its number, length and time are those written down, and no link is followed to it;
//! - while there is a document of the backup's name, only that document is removed;
//! - of folders only the one that Cinder makes for a single backup is removed, and only when it is empty.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::disk::{Disk, Hook, failed, is_folder, look_at, open_folder};
use super::hidden::{self, DELETION, Hidden, gone_is_fine};
use super::store::StoreRoot;
use crate::error::{Error, ErrorKind, Result};
use crate::format::write;
use crate::store::posix::HIDDEN_FOLDER_PREFIX;
use crate::types::{BackupId, ObjectName};
use crate::waiting::Waiting;

const FIRST_LINE: &str = "cinderfs deletion 1";
const LAST_LINE: &str = "end";

/// Longest list of files read, in bytes: names of 255 bytes for each of two million objects.
const LIST_BYTES_MAX: u64 = 640 << 20;

/// How much is gathered before it is written, in bytes.
const WRITE_BYTES: usize = 256 << 10;

/// What tells a file from another that gets its name, and from itself with other bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::writer) struct Identity {
    number: u64,
    len_bytes: u64,
    modified: (i64, u64),
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self {
            number: stat.st_ino,
            len_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }

    /// Of an object that a store tells a version of, here a hash of that.
    pub(in crate::writer) fn of_version(number: u64, len_bytes: u64) -> Self {
        Self { number, len_bytes, modified: (0, 0) }
    }

    /// Stored length in bytes.
    pub(in crate::writer) fn len_bytes(self) -> u64 {
        self.len_bytes
    }
}

/// A name in a container's folder.
#[derive(Debug)]
pub(in crate::writer) struct Found {
    /// What follows the prefix; as far as it can be shown, where it is not UTF-8.
    pub(in crate::writer) suffix: Box<str>,
    /// `None` for what is never removed: a folder, or a name that is not UTF-8.
    pub(in crate::writer) identity: Option<Identity>,
}

/// What goes with one `_metadata` document.
#[derive(Debug)]
pub(in crate::writer) struct Doomed<'a> {
    /// The folder, relative to the store's root; empty for the root.
    pub(in crate::writer) folder: &'a str,
    /// Begins each file's name.
    pub(in crate::writer) prefix: &'a str,
    /// What follows the prefix, in the order in which they go. The first one is the document.
    pub(in crate::writer) files: &'a [(Box<str>, Identity)],
}

/// A store to take backups out of.
#[derive(Debug)]
pub(in crate::writer) struct Remover {
    store: StoreRoot,
    disk: Disk,
}

/// The lock on one backup's id. Dropped, it leaves nothing but what a next run has to go on with.
#[derive(Debug)]
pub(in crate::writer) struct Lock<'a> {
    remover: &'a Remover,
    hidden: Hidden,
    id: BackupId,
    /// The list must stay for the next run.
    is_left: bool,
}

impl Remover {
    pub(in crate::writer) fn open(store_root: &Path, hook: Option<Hook>) -> Result<Self> {
        Ok(Self { store: StoreRoot::open(store_root)?, disk: Disk::with(hook) })
    }

    /// What dead runs left is removed, and what they began to delete is finished; the ids of the latter, and how many
    /// runs it were in all.
    pub(in crate::writer) fn clean_up(&self) -> Result<(Vec<BackupId>, u64)> {
        let before = self.begun()?;
        let removed = hidden::remove_dead(&self.store, &self.disk)?;
        let after = self.begun()?;
        Ok((before.into_iter().filter(|id| !after.contains(id)).collect(), removed))
    }

    /// The backups of which a run, dead or not, is in the middle of removing files.
    fn begun(&self) -> Result<Vec<BackupId>> {
        let read = |errno| failed(format!("cannot read the store {:?}", self.store.location()), errno);
        let mut ids = Vec::new();
        for entry in Dir::read_from(self.store.root()).map_err(read)? {
            let entry = entry.map_err(read)?;
            let Some(name) = entry.file_name().to_str().ok() else { continue };
            let Some(id) = name.strip_prefix(HIDDEN_FOLDER_PREFIX) else { continue };
            let (Ok(id), Ok(folder)) = (BackupId::parse(id), open_folder(self.store.root(), name)) else {
                continue;
            };
            // One that cannot be read is the cleaner's to complain of.
            if let Ok(Some(list)) = read_list(&folder)
                && !list.is_document_there(&self.store).unwrap_or(true)
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// What in a folder of the store begins with a prefix. No link is followed to the folder.
    pub(in crate::writer) fn names(&self, folder: &str, prefix: &str) -> Result<Vec<Found>> {
        let read = |errno| failed(format!("cannot read container {folder:?}"), errno);
        let opened = open_below(&self.store, folder).map_err(read)?;
        let mut found = Vec::new();
        let _waiting = Waiting::begin(format_args!("the names in container {folder:?}"));
        for entry in Dir::read_from(&opened).map_err(read)? {
            let entry = entry.map_err(read)?;
            let Some(suffix) = entry.file_name().to_bytes().strip_prefix(prefix.as_bytes()) else { continue };
            let identity = match (std::str::from_utf8(suffix), entry.file_name().to_str()) {
                (Ok(_), Ok(name)) => match look_at(&opened, name).map_err(read)? {
                    None => continue,
                    Some(stat) => (!is_folder(&stat)).then(|| Identity::of(&stat)),
                },
                _ => None,
            };
            found.push(Found { suffix: String::from_utf8_lossy(suffix).into(), identity });
        }
        Ok(found)
    }

    /// Waits a moment for the lock of a backup's id. [`ErrorKind::Target`] when another run writes or deletes it.
    pub(in crate::writer) fn lock(&self, id: &BackupId) -> Result<Lock<'_>> {
        let hidden = Hidden::create(&self.store, &self.disk, id).map_err(|error| match error.kind() {
            ErrorKind::Usage => {
                let message = format!("backup {id} is being written or deleted by another run");
                Error::new(ErrorKind::Target, message)
            }
            _ => error,
        })?;
        let lock = Lock { remover: self, hidden, id: id.clone(), is_left: false };
        self.disk
            .sync_folder(self.store.root(), lock.hidden.name())
            .map_err(|errno| failed(format!("cannot lock backup {id}"), errno))?;
        Ok(lock)
    }
}

impl Lock<'_> {
    /// Removes the document, then what goes with it. After an error either nothing was removed, or the document is gone and
    /// the next run removes the rest.
    pub(in crate::writer) fn remove(&mut self, doomed: &Doomed<'_>) -> Result<()> {
        let Remover { store, disk } = self.remover;
        let failed = |errno| failed(format!("cannot delete backup {}", self.id), errno);
        write_list(disk, self.hidden.folder(), doomed).map_err(failed)?;
        let list = List {
            folder: doomed.folder.to_owned(),
            files: doomed
                .files
                .iter()
                .map(|(suffix, identity)| (format!("{}{suffix}", doomed.prefix), *identity))
                .collect(),
        };
        let folder = open_below(store, doomed.folder).map_err(failed)?;
        if let Some((document, identity)) = list.files.first() {
            if !is_there(&folder, document, *identity).map_err(failed)? {
                let message =
                    format!("the metadata of backup {} has changed since it was looked at", self.id);
                return Err(Error::new(ErrorKind::Target, message));
            }
            if let Err(errno) = disk.remove_file(&folder, document) {
                // A server may have removed it and failed to say so.
                self.is_left = !matches!(look_at(&folder, document), Ok(Some(_)));
                return Err(failed(errno));
            }
            self.is_left = true;
            let synced = disk.sync_folder(&folder, doomed.folder);
            synced.map_err(|errno| failed(errno).context(REST_MESSAGE))?;
        }
        let rest = list.remove_rest(store, disk, self.id.as_str()).and_then(|()| {
            gone_is_fine(disk.remove_file(self.hidden.folder(), DELETION))?;
            disk.sync_folder(self.hidden.folder(), DELETION)
        });
        rest.map_err(|errno| failed(errno).context(REST_MESSAGE))?;
        self.is_left = false;
        Ok(())
    }
}

const REST_MESSAGE: &str = "the backup is deleted, and the next run removes what is left of its files";

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        if let Err(errno) = self.hidden.remove(&self.remover.store, &self.remover.disk) {
            tracing::warn!(folder = self.hidden.name(), %errno, "the hidden folder stays until the next run");
        }
    }
}

/// What a whole list says.
#[derive(Debug)]
struct List {
    /// Checked: empty, or an object's name.
    folder: String,
    /// Single names, of which the first is the document's.
    files: Vec<(String, Identity)>,
}

impl List {
    /// Whether there is a document of that name, be it another than the one written down.
    fn is_document_there(&self, store: &StoreRoot) -> Result<bool, Errno> {
        let Some((document, _)) = self.files.first() else { return Ok(true) };
        match open_below(store, &self.folder) {
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
            Ok(folder) => Ok(look_at(&folder, document)?.is_some()),
        }
    }

    /// Removes all but the document, which is gone, and the folder if it was this backup's alone.
    fn remove_rest(&self, store: &StoreRoot, disk: &Disk, id: &str) -> Result<(), Errno> {
        let folder = match open_below(store, &self.folder) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        for (name, identity) in self.files.iter().skip(1) {
            if is_there(&folder, name, *identity)? {
                gone_is_fine(disk.remove_file(&folder, name))?;
            }
        }
        disk.sync_folder(&folder, &self.folder)?;
        let Some((above, own)) = own_folder(&self.folder, id) else { return Ok(()) };
        let above = open_below(store, above)?;
        match disk.remove_folder(&above, own) {
            Ok(()) => disk.sync_folder(&above, own),
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Splits the folder's path before its last component, if that was made for the backup of this id alone. The two above
/// it hold other backups too, and a service may be about to make a folder in them: they stay.
fn own_folder<'a>(folder: &'a str, id: &str) -> Option<(&'a str, &'a str)> {
    let default = write::default_container(&BackupId::parse(id).ok()?).ok()?;
    let above = folder.strip_suffix(default.as_str())?;
    (above.is_empty() || above.ends_with('/')).then_some(())?;
    folder.rsplit_once('/')
}

fn is_there(folder: &OwnedFd, name: &str, identity: Identity) -> Result<bool, Errno> {
    let stat = look_at(folder.as_fd(), name)?;
    Ok(stat.is_some_and(|stat| !is_folder(&stat) && Identity::of(&stat) == identity))
}

/// Opens a folder of the store by a checked name; no link on the way is followed.
fn open_below(store: &StoreRoot, folder: &str) -> Result<OwnedFd, Errno> {
    let mut opened = open_folder(store.root(), ".")?;
    for component in folder.split('/').filter(|component| !component.is_empty()) {
        opened = open_folder(&opened, component)?;
    }
    Ok(opened)
}

/// Goes on with the deletion that a dead run had begun.
pub(super) fn finish(store: &StoreRoot, disk: &Disk, hidden: &OwnedFd, id: &str) -> Result<()> {
    let Some(list) = read_list(hidden)? else { return Ok(()) };
    let finished = match list.is_document_there(store) {
        Ok(true) => Ok(()),
        Ok(false) => list.remove_rest(store, disk, id),
        Err(errno) => Err(errno),
    };
    finished.map_err(|errno| failed(format!("cannot finish the deletion of backup {id}"), errno))
}

fn write_list(disk: &Disk, hidden: &OwnedFd, doomed: &Doomed<'_>) -> Result<(), Errno> {
    let file = disk.make_file(hidden, DELETION, 0o600)?;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = format!("{FIRST_LINE}\nfolder {}\n", quoted(doomed.folder));
    let mut offset = 0;
    for (suffix, identity) in doomed.files {
        let Identity { number, len_bytes, modified: (seconds, nanoseconds) } = identity;
        let name = quoted(&format!("{}{suffix}", doomed.prefix));
        text.push_str(&format!("{number} {len_bytes} {seconds}.{nanoseconds} {name}\n"));
        if text.len() >= WRITE_BYTES {
            disk.write_all_at(&file, DELETION, text.as_bytes(), offset)?;
            offset += text.len() as u64;
            text.clear();
        }
    }
    text.push_str(LAST_LINE);
    text.push('\n');
    disk.write_all_at(&file, DELETION, text.as_bytes(), offset)?;
    disk.sync_file(&file, DELETION)?;
    disk.sync_folder(hidden, DELETION)
}

/// `None` when there is no list, or not all of it: then nothing was removed.
fn read_list(hidden: &OwnedFd) -> Result<Option<List>> {
    let broken = |errno| failed("cannot read what it deletes", errno);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(hidden, DELETION, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.map_err(broken)?,
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file).map_err(broken)?.st_mode) != FileType::RegularFile {
        return Err(Error::new(ErrorKind::Malformed, "the list of what it deletes is no regular file"));
    }
    parse_list(BufReader::new(File::from(file)))
}

fn parse_list(reader: impl BufRead) -> Result<Option<List>> {
    let mut reader = reader.take(LIST_BYTES_MAX);
    let mut line = String::new();
    let mut next = || {
        line.clear();
        match reader.read_line(&mut line) {
            // Torn within a character: not all of it.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(Error::caused_by(ErrorKind::StoreIo, "cannot read what it deletes", error)),
            Ok(_) => Ok(line.strip_suffix('\n').map(str::to_owned)),
        }
    };
    let malformed =
        || Error::new(ErrorKind::Malformed, "the list of what it deletes is not of this program's making");
    match next()? {
        None => return Ok(None),
        Some(line) if line != FIRST_LINE => return Err(malformed()),
        Some(_) => {}
    }
    let Some(line) = next()? else { return Ok(None) };
    let folder: String = line
        .strip_prefix("folder ")
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(malformed)?;
    if !folder.is_empty() {
        ObjectName::parse(&folder)?;
    }
    let mut files = Vec::new();
    loop {
        match next()? {
            None => return Ok(None),
            Some(line) if line == LAST_LINE => break,
            Some(line) => files.push(parse_file(&line).ok_or_else(malformed)?),
        }
    }
    Ok(Some(List { folder, files }))
}

fn parse_file(line: &str) -> Option<(String, Identity)> {
    let mut words = line.splitn(4, ' ');
    let (number, len_bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let (seconds, nanoseconds) = words.next()?.split_once('.')?;
    let modified = (seconds.parse().ok()?, nanoseconds.parse().ok()?);
    let name: String = serde_json::from_str(words.next()?).ok()?;
    let is_single = ObjectName::parse(&name).is_ok() && !name.contains('/');
    is_single.then_some((name, Identity { number, len_bytes, modified }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "cinderfs deletion 1\nfolder \"team/one\"\n5 10 1700000000.5 \"p\\n_metadata\"\n6 0 -3.999999999 \"p\\n-00001\"\nend\n";

    #[test]
    fn a_torn_list_is_none() {
        for cut in 0..WHOLE.len() {
            assert!(parse_list(&WHOLE.as_bytes()[..cut]).unwrap().is_none(), "{cut}");
        }
        let list = parse_list(WHOLE.as_bytes()).unwrap().unwrap();
        assert_eq!(list.folder, "team/one");
        assert_eq!(list.files[0].0, "p\n_metadata");
        let identity = Identity { number: 6, len_bytes: 0, modified: (-3, 999_999_999) };
        assert_eq!(list.files[1], ("p\n-00001".to_owned(), identity));
    }

    #[test]
    fn a_list_of_others_is_refused() {
        for (from, to) in [
            ("deletion 1", "deletion 2"),
            ("team/one", "../one"),
            ("team/one", "/etc"),
            ("\"team/one\"", "team/one"),
            ("\"p\\n-00001\"", "\"../p\""),
            ("\"p\\n-00001\"", "\"a/p\""),
            ("\"p\\n-00001\"", "\"..\""),
            ("\"p\\n-00001\"", "\"\""),
            ("6 0", "6"),
            ("6 0", "-6 0"),
            ("-3.999", "-3,999"),
        ] {
            let text = WHOLE.replacen(from, to, 1);
            assert_ne!(text, WHOLE);
            assert!(parse_list(text.as_bytes()).is_err(), "{from} {to}");
        }
    }

    #[test]
    fn only_the_folder_that_is_named_by_the_id_is_the_backups_own() {
        let id = "abcd-1";
        assert_eq!(own_folder("ab/cd/abcd-1", id), Some(("ab/cd", "abcd-1")));
        assert_eq!(own_folder("nfs/x/ab/cd/abcd-1", id), Some(("nfs/x/ab/cd", "abcd-1")));
        for other in
            ["", "abcd-1", "cd/abcd-1", "ab/cd/abcd-2", "xab/cd/abcd-1", "team/one", "ab/cd/abcd-1/x"]
        {
            assert_eq!(own_folder(other, id), None, "{other}");
        }
    }
}
