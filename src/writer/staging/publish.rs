//! Giving a backup's files their names.
//!
//! Two ways, and either ends with one rename before which there is no backup:
//!
//! - The container does not exist, as always where it is named by the backup's id: it is arranged in the hidden folder with
//!   all files under their names, and renamed into place whole, with those folders above it that are missing too.
//! - It exists, since backups may share one: the files are renamed into it, objects, then digests, then the metadata, each kind
//!   durable before the next. The journal tells what to take back.
//!
//! Somebody else may make the container, or a folder above it, at the same moment: a name that is taken means to look again.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::FileName;
use super::disk::{Disk, failed, open_folder};
use super::file::Finished;
use super::hidden::{Hidden, TREE};
use super::journal;
use super::store::{StoreRoot, check_clash};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{BackupId, ObjectName};

/// How often the folder to rename into is looked for. Each failure means that another run made a folder just then, of
/// which a name has a few.
const ATTEMPTS_MAX: u32 = 64;

/// The container's last folder, whatever the umask, as Cinder makes it; those above it follow the umask.
const CONTAINER_MODE: u32 = 0o770;

/// What is to be published, and where.
#[derive(Debug)]
pub(super) struct Publication<'a> {
    pub(super) store: &'a StoreRoot,
    pub(super) disk: &'a Disk,
    pub(super) hidden: &'a Hidden,
    pub(super) parts: &'a OwnedFd,
    pub(super) container: &'a ObjectName,
    pub(super) prefix: &'a str,
    pub(super) id: &'a BackupId,
    pub(super) files: &'a [Finished],
}

/// Why nothing was published.
pub(super) struct Failure {
    pub(super) error: Error,
    /// Something has its name still, and the journal that tells so must stay for the next run.
    pub(super) is_left: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, is_left: false }
    }
}

impl Publication<'_> {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let components: Vec<_> = self.container.as_str().split('/').collect();
        let tree = self.arrange(&components).map_err(|errno| self.failed(errno))?;
        for _ in 0..ATTEMPTS_MAX {
            let (depth, nearest) = self.store.nearest(self.container)?;
            let (Some(missing), Some(from)) = (components.get(depth), tree.get(depth)) else {
                return match tree.last() {
                    Some(files) => self.publish_each(files, &nearest),
                    None => Ok(()), // a container has components
                };
            };
            match self.disk.move_folder(from, missing, &nearest, missing) {
                // Taken meanwhile; or gone, where a cleaner removed an empty folder above it.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::NOENT) => {}
                Err(errno) => return Err(self.failed(errno).into()),
                Ok(()) => {
                    let Err(errno) = self.disk.sync_folder(&nearest, missing) else { return Ok(()) };
                    let error = self.failed(errno);
                    return Err(match self.disk.move_folder(&nearest, missing, from, missing) {
                        Ok(()) => error.into(),
                        Err(again) => {
                            let message = format!("the backup is there, but cannot be taken back ({again})");
                            Failure { error: error.context(message), is_left: false }
                        }
                    });
                }
            }
        }
        let message = format!("something is in the way of container {:?}", self.container);
        Err(Error::new(ErrorKind::Target, message).into())
    }

    /// The container with all files in it, below the hidden folder; each folder of its path, opened, from the outermost.
    fn arrange(&self, components: &[&str]) -> Result<Vec<OwnedFd>, Errno> {
        let hidden = self.hidden.folder();
        self.disk.make_folder(hidden, TREE, 0o700)?;
        let mut innermost = open_folder(hidden, TREE)?;
        let mut above = Vec::new();
        for (i, component) in components.iter().enumerate() {
            let is_last = i + 1 == components.len();
            self.disk.make_folder(&innermost, component, if is_last { CONTAINER_MODE } else { 0o777 })?;
            let folder = open_folder(&innermost, component)?;
            if is_last {
                self.disk.set_mode(&folder, component, CONTAINER_MODE)?;
            }
            above.push(std::mem::replace(&mut innermost, folder));
        }
        for file in self.files {
            self.disk.move_file(self.parts, &file.part_name(), &innermost, &file.name.with(self.prefix))?;
        }
        above.push(innermost);
        for folder in above.iter().rev() {
            self.disk.sync_folder(folder, TREE)?;
        }
        Ok(above)
    }

    fn publish_each(&self, from: &OwnedFd, container: &OwnedFd) -> Result<(), Failure> {
        check_clash(container, self.container, self.prefix, self.id)?;
        let entries = || self.files.iter().map(|file| (file.number, file.name));
        journal::write(self.disk, self.hidden.folder(), self.container, self.prefix, entries())
            .map_err(|errno| self.failed(errno))?;
        let mut tried = 0;
        let Err(errno) = self.move_each(from, container, &mut tried) else { return Ok(()) };
        let error = self.failed(errno);
        let tried: Vec<_> = entries().take(tried).collect();
        let taken_back = journal::remove_named(self.disk, container, self.prefix, &tried)
            .and_then(|()| self.disk.sync_folder(container, self.container.as_str()));
        Err(match taken_back {
            Ok(()) => error.into(),
            Err(again) => {
                let message = format!(
                    "some files have their names, and could not be taken back ({again}); the next run will"
                );
                Failure { error: error.context(message), is_left: true }
            }
        })
    }

    fn move_each(&self, from: &OwnedFd, container: &OwnedFd, tried: &mut usize) -> Result<(), Errno> {
        for file in self.files {
            // Each kind is durable before the next begins.
            if !matches!(file.name, FileName::Object(_)) && *tried > 0 {
                self.disk.sync_folder(container, self.container.as_str())?;
            }
            *tried += 1;
            let name = file.name.with(self.prefix);
            self.disk.move_file(from, &name, container, &name)?;
        }
        self.disk.sync_folder(container, self.container.as_str())
    }

    fn failed(&self, errno: Errno) -> Error {
        let what = format!("cannot publish the backup in container {:?}", self.container);
        match errno {
            Errno::XDEV => Error::caused_by(
                ErrorKind::Target,
                format!("{what}: it lies on another file system than the store's root"),
                errno,
            ),
            Errno::EXIST => Error::caused_by(
                ErrorKind::Usage,
                format!("{what}: names that begin with {:?} are taken", self.prefix),
                errno,
            ),
            _ => failed(what, errno),
        }
    }
}
