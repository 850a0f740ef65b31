//! Which ranges were restored and which were lost, as a mapfile of GNU ddrescue.
//!
//! Problem: who restores a damaged backup wants to go on with what is lost: with another copy, with a file system's own tools, with
//! `ddrescueview`. Idea: the form that such tools read already: comments, the current position, then position, size and
//! status of each range of the whole image, `+` for restored and `-` for replaced by zeros.
//!
//! Invariants: the lines cover the image without gap or overlap; the map has its name only when it is complete, so none that is there
//! tells less than was lost; whatever could prevent that is found out before the hours of restoring, as far as it can be.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::exit::Failure;
use crate::error::{Error, ErrorKind};
use crate::frontend::restore::Report;

/// The file of `--loss-map`, prepared before the restore and written after it.
pub(super) struct LossMap {
    path: PathBuf,
    file: Draft,
}

enum Draft {
    /// Beside its final name.
    Beside(NamedTempFile),
    /// A pipe or a terminal.
    Stream(File),
}

impl LossMap {
    /// For the file `path`, which must not be `target`. One that is there stays as it is until the new one is complete.
    pub(super) fn prepare(path: &Path, target: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::from(cannot(&format!("cannot write the loss map {path:?}"), error));
        let (full, existing) = (resolved(path), fs::metadata(path).ok());
        let is_target = full == resolved(target)
            || existing.as_ref().is_some_and(|ours| {
                fs::metadata(target).is_ok_and(|other| (other.dev(), other.ino()) == (ours.dev(), ours.ino()))
            });
        if is_target {
            let message = format!("the loss map {path:?} is the target itself");
            return Err(Failure::new(ErrorKind::Usage, message));
        }
        let file = match &existing {
            Some(stat) if !stat.is_file() => {
                Draft::Stream(OpenOptions::new().write(true).open(path).map_err(failed)?)
            }
            // As a new file of `open` would have; the umask takes its share.
            _ => {
                let folder = full.parent().unwrap_or(Path::new("/"));
                let mut draft = tempfile::Builder::new();
                let rights = existing.as_ref().map_or(0o666, |stat| stat.mode() & 0o777);
                let draft = draft.prefix(".loss-map-").permissions(Permissions::from_mode(rights));
                Draft::Beside(draft.tempfile_in(folder).map_err(failed)?)
            }
        };
        Ok(Self { path: full, file })
    }

    /// Writes what `report` tells, and gives the file its name.
    pub(super) fn write(self, report: &Report, backup_id: &str) -> Result<(), Failure> {
        let text = text(report, backup_id);
        let written = match self.file {
            Draft::Stream(mut file) => file.write_all(text.as_bytes()),
            Draft::Beside(mut file) => file
                .write_all(text.as_bytes())
                .and_then(|()| file.as_file().sync_all())
                .and_then(|()| file.persist(&self.path).map(drop).map_err(|error| error.error)),
        };
        written.map_err(|error| {
            cannot(&format!("the restore is complete, but its loss map {:?} is not", self.path), error).into()
        })
    }
}

fn cannot(what: &str, error: io::Error) -> Error {
    Error::caused_by(ErrorKind::Target, what, error)
}

/// The path without links; of a file that is not there yet, its folder's. What cannot be resolved stays and fails later.
fn resolved(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = || Some(fs::canonicalize(folder).ok()?.join(path.file_name()?));
    fs::canonicalize(path).ok().or_else(new).unwrap_or_else(|| path.to_owned())
}

/// The whole file.
fn text(report: &Report, backup_id: &str) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "# Mapfile. Created by cinderfs version {}\n# Backup: {backup_id}\n# current_pos  current_status  \
         current_pass\n0x{:08X}     +               1\n#      pos        size  status\n",
        env!("CARGO_PKG_VERSION"),
        report.image_bytes,
    );
    let mut line = |range: Range<u64>, status| {
        if !range.is_empty() {
            _ = writeln!(text, "0x{:08X}  0x{:08X}  {status}", range.start, range.end - range.start);
        }
    };
    let mut done = 0;
    for range in merged(&report.damaged, report.image_bytes) {
        line(done..range.start, '+');
        done = range.end;
        line(range, '-');
    }
    line(done..report.image_bytes, '+');
    text
}

/// The ranges sorted, disjoint, within the image; neighbours joined. A mapfile must not overlap or leave gaps.
pub(super) fn merged(ranges: &[Range<u64>], image_bytes: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges
        .iter()
        .map(|range| range.start..range.end.min(image_bytes))
        .filter(|range| !range.is_empty())
        .collect();
    sorted.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of damaged ranges, some of them short")]
mod tests {
    use super::*;

    fn map_lines(image_bytes: u64, damaged: &[Range<u64>]) -> Vec<String> {
        let text = text(&Report::with_damage(image_bytes, damaged), "b1");
        text.lines().skip(5).map(str::to_owned).collect()
    }

    #[test]
    fn it_is_a_ddrescue_mapfile() {
        assert_eq!(
            text(&Report::with_damage(0x1_0000_0000, &[0x8000..0x1_0000]), "b1"),
            format!(
                "# Mapfile. Created by cinderfs version {}\n\
                 # Backup: b1\n\
                 # current_pos  current_status  current_pass\n\
                 0x100000000     +               1\n\
                 #      pos        size  status\n\
                 0x00000000  0x00008000  +\n\
                 0x00008000  0x00008000  -\n\
                 0x00010000  0xFFFF0000  +\n",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn it_covers_the_image_without_overlap() {
        assert_eq!(map_lines(0x20, &[]), ["0x00000000  0x00000020  +"]);
        assert_eq!(map_lines(0, &[]), Vec::<String>::new());
        assert_eq!(map_lines(0x20, &[0..0x20]), ["0x00000000  0x00000020  -"]);
        // Out of order, touching, overlapping, past the end, empty.
        assert_eq!(
            map_lines(0x20, &[0x18..0x40, 4..6, 2..5, 6..8, 9..9, 0x30..0x40]),
            [
                "0x00000000  0x00000002  +",
                "0x00000002  0x00000006  -",
                "0x00000008  0x00000010  +",
                "0x00000018  0x00000008  -",
            ]
        );
    }

    #[test]
    fn it_is_never_the_target() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        let prepare = |path: &Path| LossMap::prepare(path, &target).map(|_| ());
        assert_eq!(prepare(&directory.path().join("./target")).unwrap_err().code(), 2, "a new target");
        fs::write(&target, "precious").unwrap();
        fs::hard_link(&target, &link).unwrap();
        for path in [&target, &link] {
            assert_eq!(prepare(path).unwrap_err().code(), 2);
        }
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn a_failed_restore_leaves_no_new_map_and_an_old_one_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let (map, target) = (directory.path().join("map"), directory.path().join("target"));
        let names = || fs::read_dir(directory.path()).unwrap().count();
        drop(LossMap::prepare(&map, &target).unwrap());
        assert_eq!(names(), 0);
        fs::write(&map, "an old map").unwrap();
        fs::set_permissions(&map, Permissions::from_mode(0o640)).unwrap();
        drop(LossMap::prepare(&map, &target).unwrap());
        assert_eq!((fs::read(&map).unwrap(), names()), (b"an old map".to_vec(), 1));
        LossMap::prepare(&map, &target).unwrap().write(&Report::with_damage(1, &[]), "b1").unwrap();
        assert_eq!(fs::read_to_string(&map).unwrap(), text(&Report::with_damage(1, &[]), "b1"));
        assert_eq!((fs::metadata(&map).unwrap().mode() & 0o777, names()), (0o640, 1));
        let nowhere = LossMap::prepare(&directory.path().join("no/map"), &target).map(|_| ());
        assert_eq!(nowhere.unwrap_err().code(), 1);
    }
}
