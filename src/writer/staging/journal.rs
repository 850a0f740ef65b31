//! What is given its name file by file, and how it is taken back.
//!
//! ```text
//! cinderfs journal 1
//! container "team/one"            as JSON strings: a name may hold a line feed
//! prefix "volume_…"
//! 4711 -00001                     the file's number in its file system, and what follows the prefix
//! …
//! 4799 _sha256file
//! 4800 _metadata                  last: it makes the backup
//! end
//! ```
//!
//! Problem: a run that is killed between two of many renames leaves files that nobody else can tell from another
//! writer's. Idea: what will be renamed is written down before, with what identifies a file whatever its name. If the
//! metadata document has its name, the backup is whole, since it comes last; if not, what has its name loses it.
//!
//! Invariants: only a file with the number written down is removed, and only beneath the store; a journal without its
//! last line is one before the first rename.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::FileName;
use super::disk::{Disk, failed, look_at};
use super::hidden::{JOURNAL, gone_is_fine};
use super::store::{StoreRoot, check_container, check_prefix};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

const FIRST_LINE: &str = "cinderfs journal 1";
const LAST_LINE: &str = "end";

/// Longest journal read, in bytes: an entry for each of two million objects.
const JOURNAL_BYTES_MAX: u64 = 128 << 20;

/// How much is gathered before it is written, in bytes.
const WRITE_BYTES: usize = 256 << 10;

/// Writes the journal into the hidden folder, durably.
pub(super) fn write(
    disk: &Disk,
    hidden: &OwnedFd,
    container: &ObjectName,
    prefix: &str,
    files: impl Iterator<Item = (u64, FileName)>,
) -> Result<(), Errno> {
    let file = disk.make_file(hidden, JOURNAL, 0o600)?;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text =
        format!("{FIRST_LINE}\ncontainer {}\nprefix {}\n", quoted(container.as_str()), quoted(prefix));
    let mut offset = 0;
    for (number, name) in files {
        text.push_str(&format!("{number} {}\n", name.suffix()));
        if text.len() >= WRITE_BYTES {
            disk.write_all_at(&file, JOURNAL, text.as_bytes(), offset)?;
            offset += text.len() as u64;
            text.clear();
        }
    }
    text.push_str(LAST_LINE);
    text.push('\n');
    disk.write_all_at(&file, JOURNAL, text.as_bytes(), offset)?;
    disk.sync_file(&file, JOURNAL)?;
    disk.sync_folder(hidden, JOURNAL)
}

/// What a whole journal says.
struct Journal {
    container: ObjectName,
    prefix: String,
    /// In the order in which they get their names.
    files: Vec<(u64, FileName)>,
}

/// `None` when there is no journal, or not all of it.
fn read(hidden: &OwnedFd) -> Result<Option<Journal>> {
    let broken = |errno| failed("cannot read its journal", errno);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(hidden, JOURNAL, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.map_err(broken)?,
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file).map_err(broken)?.st_mode) != FileType::RegularFile {
        return Err(Error::new(ErrorKind::Malformed, "its journal is no regular file"));
    }
    parse(BufReader::new(File::from(file)))
}

fn parse(reader: impl BufRead) -> Result<Option<Journal>> {
    let mut reader = reader.take(JOURNAL_BYTES_MAX);
    let mut line = String::new();
    let mut next = || {
        line.clear();
        let failed = |error| Error::caused_by(ErrorKind::StoreIo, "cannot read its journal", error);
        match reader.read_line(&mut line) {
            // Torn within a character: not all of it.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(None),
            other => other.map_err(failed).map(|_| line.strip_suffix('\n').map(str::to_owned)),
        }
    };
    let malformed = || Error::new(ErrorKind::Malformed, "its journal is not of this program's making");
    let quoted = |line: &str, key: &str| {
        let text = line.strip_prefix(key)?.strip_prefix(' ')?;
        serde_json::from_str::<String>(text).ok()
    };
    match next()? {
        None => return Ok(None),
        Some(line) if line != FIRST_LINE => return Err(malformed()),
        Some(_) => {}
    }
    let Some(line) = next()? else { return Ok(None) };
    let container = ObjectName::parse(&quoted(&line, "container").ok_or_else(malformed)?)?;
    check_container(&container)?;
    let Some(line) = next()? else { return Ok(None) };
    let prefix = quoted(&line, "prefix").ok_or_else(malformed)?;
    check_prefix(&prefix)?;
    let mut files = Vec::new();
    while let Some(line) = next()? {
        if line == LAST_LINE {
            return match files.last() {
                Some((_, FileName::Metadata)) => Ok(Some(Journal { container, prefix, files })),
                _ => Err(malformed()),
            };
        }
        let entry = line
            .split_once(' ')
            .and_then(|(number, suffix)| Some((number.parse().ok()?, FileName::of_suffix(suffix)?)));
        files.push(entry.ok_or_else(malformed)?);
    }
    Ok(None)
}

/// Settles what the journal of a dead run tells: the backup is whole, or nothing of it has its name any more.
pub(super) fn roll_back(store: &StoreRoot, disk: &Disk, hidden: &OwnedFd) -> Result<()> {
    let Some(Journal { container, prefix, files }) = read(hidden)? else { return Ok(()) };
    let folder = match store.open_folder(container.as_str()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(|errno| failed(format!("cannot open container {container:?}"), errno))?,
    };
    let settled = take_back(disk, &folder, &container, &prefix, &files);
    settled.map_err(|errno| failed(format!("cannot take back names in container {container:?}"), errno))
}

/// Takes the names of `files` back, the last first, unless the last of them has its name.
fn take_back(
    disk: &Disk,
    folder: &OwnedFd,
    container: &ObjectName,
    prefix: &str,
    files: &[(u64, FileName)],
) -> Result<(), Errno> {
    let is_whole = match files.last() {
        Some(&(number, name)) => has_its_name(folder, &name.with(prefix), number)?,
        None => true,
    };
    if !is_whole {
        remove_named(disk, folder, prefix, files)?;
    }
    disk.sync_folder(folder, container.as_str())
}

/// Takes the names of `files` back, the last first.
pub(super) fn remove_named(
    disk: &Disk,
    folder: &OwnedFd,
    prefix: &str,
    files: &[(u64, FileName)],
) -> Result<(), Errno> {
    for &(number, name) in files.iter().rev() {
        let name = name.with(prefix);
        if has_its_name(folder, &name, number)? {
            gone_is_fine(disk.remove_file(folder, &name))?;
        }
    }
    Ok(())
}

fn has_its_name(folder: &OwnedFd, name: &str, number: u64) -> Result<bool, Errno> {
    let Some(stat) = look_at(folder.as_fd(), name)? else { return Ok(false) };
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_ino == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "cinderfs journal 1\ncontainer \"team/one\"\nprefix \"p\\n\"\n5 -00001\n6 -100000\n7 _sha256file\n8 _metadata\nend\n";

    #[test]
    fn a_torn_journal_is_none() {
        for cut in 0..WHOLE.len() {
            assert!(parse(&WHOLE.as_bytes()[..cut]).unwrap().is_none(), "{cut}");
        }
        let journal = parse(WHOLE.as_bytes()).unwrap().unwrap();
        assert_eq!((journal.container.as_str(), journal.prefix.as_str()), ("team/one", "p\n"));
        let numbers: Vec<_> = journal.files.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [5, 6, 7, 8]);
        assert_eq!(journal.files[1].1, FileName::Object(100_000));
    }

    #[test]
    fn a_journal_of_others_is_refused() {
        for (from, to) in [
            ("journal 1", "journal 2"),
            ("team/one", "../one"),
            ("team/one", "/etc"),
            ("team/one", ".cinderfs-x/parts"),
            ("\"p\\n\"", "\"../p\""),
            ("\"p\\n\"", "\"\""),
            ("\"p\\n\"", "p"),
            ("-00001", "-1"),
            ("-00001", "-00000"),
            ("-100000", "-0100000"),
            ("-00001", "/../x"),
            ("5 ", "-5 "),
            ("8 _metadata\n", ""),
        ] {
            let text = WHOLE.replacen(from, to, 1);
            assert_ne!(text, WHOLE);
            assert!(parse(text.as_bytes()).is_err(), "{from} {to}");
        }
    }
}
