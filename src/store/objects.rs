//! Stores that objects are put into whole: what HTTP can do, and files can do as well.
//!
//! Problem: such a store has no folders, no links, no locks and no rename; an object appears under its name when its last byte is there, or
//! not at all. Idea: four operations, each of which is whole or has not happened, and each of which the caller may stop at once.
//!
//! Invariants: what [`ObjectStore::put`] has accepted is what the store has, byte for byte as far as the store can tell; it tries again
//! what may pass, and nothing is left half.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use md5::{Digest, Md5 as Md5Hasher};

use super::{ListedObject, Listing, ObjectVersion, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Md5, ObjectName};

/// How much of a file is read at once, in bytes.
const READ_BYTES: usize = 256 << 10;

/// Says whether the caller wants to wait no longer; asked several times a second.
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// A store that objects are put into.
pub trait ObjectStore: Store {
    /// Puts an object in, in the place of any other of its name, and returns the version that listings tell of it. What
    /// passes is tried again until the store's deadline.
    ///
    /// [`ErrorKind::StoreNotFound`] where there is no such container or bucket, [`ErrorKind::AccessDenied`], [`ErrorKind::Target`] when
    /// the store is full or the object too large for it, [`ErrorKind::StoreIo`], [`ErrorKind::Interrupted`] when told to stop.
    fn put(&self, name: &ObjectName, content: &Content, stop: Stop<'_>) -> Result<ObjectVersion>;

    /// Takes an object out. That there is none is fine. Errors as of [`put`](Self::put).
    fn remove(&self, name: &ObjectName, stop: Stop<'_>) -> Result<()>;

    /// All objects whose name begins with `prefix`, sorted by name. Unlike [`Store::list`] it fails where a part cannot be seen. Errors as
    /// of [`put`](Self::put).
    fn list_below(&self, prefix: &str, stop: Stop<'_>) -> Result<Vec<ListedObject>>;

    /// Makes the container or bucket that an object of this name is put into. That it is there is fine.
    ///
    /// [`ErrorKind::Unsupported`] where that is for somebody else to do.
    fn make_container(&self, name: &ObjectName, stop: Stop<'_>) -> Result<()>;

    /// What lies in the containers beside this one whose objects' names begin with one of these and end so; `None` where this store is
    /// all that there is. A container that cannot be looked into is in [`Listing::unreadable`].
    ///
    /// Fails where it cannot be told which containers there are: [`ErrorKind::AccessDenied`], [`ErrorKind::StoreIo`],
    /// [`ErrorKind::LimitExceeded`].
    fn beside(&self, _prefixes: &[String], _suffix: &str, _stop: Stop<'_>) -> Result<Option<Beside>> {
        Ok(None)
    }

    /// Whether names begin with a container, which is no part of the name that Cinder knows an object by.
    fn has_containers(&self) -> bool;

    /// The longest object, in bytes.
    fn object_bytes_max(&self) -> u64;
}

/// What lies in the containers beside one that is a store.
pub struct Beside {
    /// All containers, as folders.
    pub store: Arc<dyn Store>,
    /// How many were looked into.
    pub containers: usize,
    /// What was looked for, by its names in [`store`](Self::store).
    pub listing: Listing,
}

/// The bytes of an object that is put in; a clone shares them.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Bytes(Arc<Vec<u8>>),
    /// The first bytes of a file that nobody changes any more.
    File(Arc<File>, u64),
}

impl Content {
    /// Some bytes.
    pub fn of(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Bytes(Arc::new(bytes.into()))
    }

    /// How many bytes it has.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len_bytes) => *len_bytes,
        }
    }

    /// Fills `buf` from `offset`.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = match self {
            Self::Bytes(bytes) => {
                let part =
                    usize::try_from(offset).ok().and_then(|at| bytes.get(at..at.checked_add(buf.len())?));
                part.map(|part| buf.copy_from_slice(part)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Self::File(file, _) => file.read_exact_at(buf, offset),
        };
        read.map_err(|error| Error::caused_by(ErrorKind::Target, "cannot read a temporary file again", error))
    }

    /// Their md5.
    pub fn md5(&self) -> Result<Md5> {
        let mut hasher = Md5Hasher::new();
        match self {
            Self::Bytes(bytes) => hasher.update(&**bytes),
            Self::File(_, len_bytes) => {
                let mut buffer = vec![0; READ_BYTES];
                let mut at = 0;
                while at < *len_bytes {
                    let part = (*len_bytes - at).min(READ_BYTES as u64) as usize;
                    self.read_exact_at(&mut buffer[..part], at)?;
                    hasher.update(&buffer[..part]);
                    at += part as u64;
                }
            }
        }
        Ok(Md5(hasher.finalize().into()))
    }
}
