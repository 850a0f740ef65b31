//! An image file, or a block device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::Source;
use super::in_use::cannot_open_as;
use crate::error::{Error, ErrorKind, Result};

/// What it is to its reader, and the kind of its failures.
#[derive(Clone, Copy, Debug)]
struct Role {
    word: &'static str,
    kind: ErrorKind,
}

const SOURCE: Role = Role { word: "source", kind: ErrorKind::Source };
const TARGET: Role = Role { word: "target", kind: ErrorKind::Target };

/// A regular file, of which holes are not read, or a block device.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    name: String,
    role: Role,
    len_bytes: u64,
    knows_holes: bool,
}

impl FileSource {
    /// Opens the file or device at `path` for reading. [`ErrorKind::Usage`] when it is neither, is empty, or is not there;
    /// [`ErrorKind::Source`] when it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, path.to_string_lossy().into_owned())
    }

    /// The same, called `name`: for a snapshot that people know by its original.
    pub fn open_as(path: &Path, name: String) -> Result<Self> {
        Self::open_in(SOURCE, path, name)
    }

    /// The same for what a backup was restored to and is to be compared with: errors call it the target, and are of
    /// [`ErrorKind::Target`].
    pub fn open_target(path: &Path) -> Result<Self> {
        Self::open_in(TARGET, path, path.to_string_lossy().into_owned())
    }

    fn open_in(role: Role, path: &Path, name: String) -> Result<Self> {
        let failed = |error| cannot_open_as(role.word, role.kind, path, error);
        // Looked at before it is opened: a pipe would wait for its writer, and some devices act when they are opened.
        let kind = fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let message = format!("the {} {path:?} is neither a file nor a block device", role.word);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let opened = file.metadata().map_err(failed)?.file_type();
        if !opened.is_file() && !opened.is_block_device() {
            let message = format!("the {} {path:?} is neither a file nor a block device", role.word);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let mut source = Self { file, name, role, len_bytes: 0, knows_holes: opened.is_file() };
        source.len_bytes = source.len_now()?;
        if source.len_bytes == 0 {
            return Err(Error::new(ErrorKind::Usage, format!("the {} {path:?} is empty", role.word)));
        }
        Ok(source)
    }

    /// Where it ends at this moment; a device tells by a seek to its end.
    fn len_now(&self) -> Result<u64> {
        rustix::fs::seek(&self.file, SeekFrom::End(0)).map_err(|errno| {
            let message = format!("cannot tell the length of the {} {:?}", self.role.word, self.name);
            Error::caused_by(self.role.kind, message, errno)
        })
    }

    fn has_shrunk(&self, now: u64) -> Error {
        let message = format!(
            "the {} {:?} has become shorter while it was read: {now} bytes, expected {}",
            self.role.word, self.name, self.len_bytes
        );
        Error::new(self.role.kind, message)
    }
}

impl Source for FileSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => return Err(self.has_shrunk(offset)),
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let message =
                        format!("cannot read the {} {:?} at byte {offset}", self.role.word, self.name);
                    return Err(Error::caused_by(self.role.kind, message, error));
                }
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let rest = (offset < self.len_bytes).then_some(offset..self.len_bytes);
        if !self.knows_holes || rest.is_none() {
            return Ok(rest);
        }
        // The file's own position moves, which nobody else uses.
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // No data behind it, or the file has become shorter, which is found out at the end.
            Err(Errno::NXIO) => return Ok(None),
            // The file system knows no holes; or it fails, as reading will, which tells where.
            Err(_) => return Ok(rest),
        };
        if start >= self.len_bytes {
            return Ok(None);
        }
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).unwrap_or(self.len_bytes);
        let end = if end > start { end.min(self.len_bytes) } else { self.len_bytes };
        Ok(Some(start..end))
    }

    fn check_len(&self) -> Result<()> {
        match self.len_now()? {
            now if now < self.len_bytes => Err(self.has_shrunk(now)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_told_and_a_shrunken_file_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        file.as_file().write_all_at(&[7; 4096], 4 << 20).unwrap();
        let source = FileSource::open(file.path()).unwrap();
        let data = source.next_data(0).unwrap().unwrap();
        assert!(data.start <= 4 << 20 && data.end >= (4 << 20) + 4096, "{data:?}");
        assert_eq!(source.next_data(8 << 20).unwrap(), None);
        let mut buf = [1; 8];
        source.read_exact_at(&mut buf, (4 << 20) - 4).unwrap();
        assert_eq!(buf, [0, 0, 0, 0, 7, 7, 7, 7]);
        source.check_len().unwrap();

        file.as_file().set_len(5 << 20).unwrap();
        let error = source.read_exact_at(&mut buf, (5 << 20) - 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.to_string().contains("5242880 bytes, expected 8388608"), "{error}");
        assert_eq!(source.check_len().unwrap_err().kind(), ErrorKind::Source);
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        File::create(&empty).unwrap();
        for (path, kind) in [
            (folder.path(), ErrorKind::Usage),
            (&empty, ErrorKind::Usage),
            (Path::new("/dev/null"), ErrorKind::Usage),
            (&folder.path().join("none"), ErrorKind::Usage),
        ] {
            assert_eq!(FileSource::open(path).unwrap_err().kind(), kind, "{path:?}");
        }
    }
}
