//! Where containers live.
//!
//! Problem: a store may be a directory, memory in a test, or a bucket behind HTTP, and everything above must not care.
//! Idea: two operations on a store (list by suffix, open) and two on an object (stat, read at an offset) are all that
//! reading a backup needs. Decorators (faults, later retries and caches) wrap the same traits.
//!
//! Invariants, shown for each store by `tests/store_conformance.rs`:
//! - a name never leads out of the store, whatever symbolic links lie in it;
//! - a failed read is an error; bytes that the store did not deliver are never made up;
//! - an opened object goes on naming the same object when its name is given to another one.

pub mod posix;
pub mod memory;
pub mod fault;
pub mod deadline;
pub(crate) mod anew;
pub mod share;
pub mod objects;
pub(crate) mod reports;
#[cfg(feature = "remote")]
pub mod remote;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::objects::ObjectStore;
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// A place that holds containers. One value serves all threads.
pub trait Store: Send + Sync {
    /// What people call this store: a path or a URL, without secrets.
    fn location(&self) -> &str;

    /// All objects, in all containers, whose name ends with `suffix`, sorted by name.
    ///
    /// Fails only when the store as a whole cannot be listed; a folder that cannot be read is reported in
    /// [`Listing::unreadable`], so that one bad container does not hide the others.
    fn list(&self, suffix: &str) -> Result<Listing>;

    /// [`list`](Self::list), and what the store has seen meanwhile of objects whose name ends with `also`: nothing, where that would take
    /// another look.
    fn list_with(&self, suffix: &str, _also: &str) -> Result<(Listing, Vec<ListedObject>)> {
        Ok((self.list(suffix)?, Vec::new()))
    }

    /// Opens an object for reading. [`ErrorKind::ObjectNotFound`] when there is none of that name,
    /// [`ErrorKind::UnsafeName`] when the name leads out of the store.
    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>>;

    /// Opens an object that a listing has told of lately. A store to which each question is a journey takes the listing's word for what
    /// [`open`](Self::open) would have to ask; an object that was deleted or replaced since is found out by the first read at the latest,
    /// which then fails with [`ErrorKind::ObjectNotFound`] or [`ErrorKind::StoreIo`].
    fn open_listed(&self, listed: &ListedObject) -> Result<Arc<dyn ObjectSource>> {
        self.open(&listed.name)
    }

    /// The version that an object has now, for who has an older one to go on with: a store that is slow may fail.
    fn version_of(&self, name: &ObjectName) -> Result<ObjectVersion> {
        Ok(self.open(name)?.stat().version.clone())
    }

    /// Whether the store answers, as far as is known without asking it.
    fn is_answering(&self) -> bool {
        true
    }

    /// Asks for something that nobody on the way remembers: whether the store answers now. [`ErrorKind::StoreIo`] when it does not. What it
    /// otherwise says may come out of the memory of this machine, or be what a client of a share makes of a server that it does not reach:
    /// that there is no such object, and that a folder is at its end.
    fn hello(&self) -> Result<()> {
        Ok(())
    }

    /// Lets it fetch more ahead of readers than it does of its own accord; how many of `bytes_max` bytes of memory it will take for that. 0
    /// where nothing is fetched ahead.
    fn allow_ahead(&self, bytes_max: u64) -> u64 {
        let _ = bytes_max;
        0
    }

    /// How long nothing has come to those who wait for something, where calls end by themselves when nothing comes for too long, however
    /// long they take while something comes. `None` where they may hang.
    fn silence(&self) -> Option<Duration> {
        None
    }

    /// How many calls are worth having under way at once, where each is a journey; 1 where threads would only stand in each other's way.
    fn calls_at_once(&self) -> usize {
        1
    }

    /// Ends threads of its own, which have to be idle; the next call starts them again.
    fn rest(&self) -> Result<()> {
        Ok(())
    }

    /// Of what this store is one container. `None` where nothing that backups here build on, or that builds on them, can lie elsewhere.
    fn part(&self) -> Option<Part<'_>> {
        None
    }

    /// The same store to be written to, where objects are put into it whole. `None` for one of files, which are written by
    /// their paths, and for decorators.
    fn into_objects(self: Arc<Self>) -> Option<Arc<dyn ObjectStore>> {
        None
    }
}

/// A store as one container of an account or a server, of which others may hold backups of the same chains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part<'a> {
    /// What people call all of it.
    pub whole: &'a str,
    /// The container's or bucket's own name.
    pub container: &'a str,
}

/// What [`Store::list`] found.
#[derive(Debug, Default)]
pub struct Listing {
    /// The objects, sorted by name.
    pub objects: Vec<ListedObject>,
    /// Folders and objects that could not be read, with the reason; what they hold is unknown. Where they are many, not each has a reason of
    /// its own, and the last one tells how many more there are.
    pub unreadable: Vec<(String, Error)>,
}

/// One object of a [`Listing`].
#[derive(Clone, Debug)]
pub struct ListedObject {
    /// The object's name.
    pub name: ObjectName,
    /// What the store says about it.
    pub stat: ObjectStat,
}

/// What a store says about an object without its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStat {
    /// Stored (compressed) length in bytes.
    pub len_bytes: u64,
    /// Changes when the object's content may have changed.
    pub version: ObjectVersion,
    /// When the object was last written, if the store knows.
    pub modified: Option<SystemTime>,
    /// Who may read it.
    pub owner: Ownership,
}

/// An opaque word that changes when an object's content may have changed: device, inode, size and times of a file, or an
/// ETag.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectVersion(pub Box<str>);

/// Who may read an object, as POSIX says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ownership {
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One opened object.
pub trait ObjectSource: Send + Sync {
    /// What the store said when the object was opened.
    fn stat(&self) -> &ObjectStat;

    /// Reads at `offset` into `buf`; returns how many bytes were read, 0 only at or past the end (or for an empty
    /// `buf`). Fewer bytes than asked for do not mean the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Reads what is in memory already of the bytes at `offset`, some of `buf` at least; `None` where nothing is, or the caller had better
    /// [read](ObjectSource::read_at). Returns at once.
    fn read_at_hand(&self, _buf: &mut [u8], _offset: u64) -> Option<usize> {
        None
    }

    /// Says that `len` bytes from `offset` on will soon be read, so that they may be fetched meanwhile. Returns at once, and means nothing
    /// where a store cannot.
    fn will_need(&self, _offset: u64, _len: u64) {}

    /// Says that somebody will soon read from `offset` on, and on to the end. As [`ObjectSource::will_need`] otherwise.
    fn will_read_on(&self, _offset: u64) {}

    /// Says that what was read led to wrong bytes: what is kept of it in memory is asked for again. Whether there was any. Returns at once.
    fn doubt(&self) -> bool {
        false
    }

    /// Whether the object's bytes may have been overwritten in place since it was opened, as Cinder up to 10.0.2 does
    /// where backups share a name. A store in which objects are only ever replaced whole never says so.
    fn is_changed(&self) -> Result<bool> {
        Ok(false)
    }

    /// Whether reading it takes no longer than this machine's own disks do; what lies behind a network or another
    /// process may take for ever.
    fn is_local(&self) -> bool {
        false
    }

    /// Whether its bytes come from a server: what can be done without is not read then.
    fn is_far(&self) -> bool {
        false
    }

    /// Whether a failure may be that of what is open here, for good, while the store would give the same object to who opens it anew.
    fn may_go_stale(&self) -> bool {
        false
    }
}

/// Fills `buf` from `offset`; [`ErrorKind::Truncated`] when the object ends first.
pub fn read_exact_at(source: &dyn ObjectSource, mut buf: &mut [u8], offset: u64) -> Result<()> {
    let (mut at, end) = (offset, offset.saturating_add(buf.len() as u64));
    while !buf.is_empty() {
        match source.read_at(buf, at)? {
            0 => {
                return Err(Error::new(
                    ErrorKind::Truncated,
                    format!("the object ends at byte {at}, expected bytes up to {end}"),
                ));
            }
            n => {
                buf = &mut buf[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}

/// Reads an object from a given offset to its end as a stream.
pub struct SourceReader<'a> {
    source: &'a dyn ObjectSource,
    offset: u64,
}

impl<'a> SourceReader<'a> {
    /// Starts at `offset`.
    pub fn new(source: &'a dyn ObjectSource, offset: u64) -> Self {
        Self { source, offset }
    }
}

impl io::Read for SourceReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read_at(buf, self.offset).map_err(io::Error::other)?;
        self.offset += n as u64;
        Ok(n)
    }
}
