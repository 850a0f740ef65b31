//! What can go wrong, with the rules for saying so.
//!
//! Rules:
//! 1. The message says which thing, where, what was expected and what was found. It is one line, without a full stop.
//! 2. The kind is for programs: exit codes and errno are chosen by kind, in one `match` without a wildcard each.
//! 3. Missing ([`ErrorKind::ObjectNotFound`]) and damaged ([`ErrorKind::Truncated`], [`ErrorKind::HashMismatch`], …)
//!    are different kinds: the first can be cured by bringing a file back, the second cannot.
//! 4. A caller that knows more adds it with [`Error::context`]; nobody repeats what an inner message says already.
//! 5. Text from a store is quoted with `{:?}`, so that it can neither break a line nor drive a terminal.
//!
//! An [`Error`] is cheap to clone, because all readers that wait for one decode get the same one.

use std::fmt;
use std::sync::Arc;

use crate::types::ObjectName;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// The store itself does not exist.
    StoreNotFound,
    /// The store, or an object in it, may not be read by this user.
    AccessDenied,
    /// The store failed to answer: EIO, ESTALE, a timeout.
    StoreIo,
    /// An object that is named somewhere is not in the store.
    ObjectNotFound,
    /// A name that would lead out of the store or its container.
    UnsafeName,
    /// An object ends before what it must hold.
    Truncated,
    /// A document is not what Cinder writes: torn or foreign JSON, impossible values.
    Malformed,
    /// A version or setting that this program does not know.
    Unsupported,
    /// A bound of this program was exceeded; the message names it.
    LimitExceeded,
    /// A compressed stream is damaged.
    Codec,
    /// Plain bytes do not have the digest they must have.
    HashMismatch,
    /// No backup in the chain holds data for a range that is not zeros.
    NoData,
    /// The chain has a gap, a cycle or a foreign link, or is too deep.
    ChainBroken,
    /// What a backup builds on is not in the one container that is seen, and may be in another one.
    OutOfSight,
    /// No such backup, or no usable one.
    BackupNotFound,
    /// More than one backup fits the words given.
    Ambiguous,
    /// The call itself is wrong: options, targets, mountpoints.
    Usage,
    /// The target of a restore or the mountpoint failed: disk full, permission, busy.
    Target,
    /// The source of a new backup failed, or changed while it was read.
    Source,
    /// The user or a signal ended it.
    Interrupted,
}

impl ErrorKind {
    /// Whether it says something about the backup, and not about the store's health at this moment or about the call.
    pub fn is_damage(self) -> bool {
        match self {
            Self::ObjectNotFound
            | Self::UnsafeName
            | Self::Truncated
            | Self::Malformed
            | Self::Unsupported
            | Self::LimitExceeded
            | Self::Codec
            | Self::HashMismatch
            | Self::NoData
            | Self::ChainBroken => true,
            Self::StoreNotFound
            | Self::AccessDenied
            | Self::StoreIo
            | Self::OutOfSight
            | Self::BackupNotFound
            | Self::Ambiguous
            | Self::Usage
            | Self::Target
            | Self::Source
            | Self::Interrupted => false,
        }
    }
}

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A failure: its kind, a message for people, and what caused it.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

impl Error {
    /// A failure that starts here.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    /// A failure that another error caused.
    pub fn caused_by(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: Some(source.into()) }))
    }

    /// The same kind of failure, with what its caller was about: `while …`, `object …`.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind: self.0.kind, message: message.into(), source: Some(Box::new(self)) }))
    }

    /// The same with the object that it is about, unless it names it already: names are long.
    #[must_use]
    pub(crate) fn of_object(self, name: &ObjectName) -> Self {
        let name = format!("{name:?}");
        if self.to_string().contains(&name) { self } else { self.context(format!("object {name}")) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the operating system said, where that is what caused it.
    pub fn io_kind(&self) -> Option<std::io::ErrorKind> {
        let source = self.0.source.as_ref()?;
        match source.downcast_ref::<std::io::Error>() {
            Some(error) => Some(error.kind()),
            None => source.downcast_ref::<Self>()?.io_kind(),
        }
    }
}

/// Adds context to the error of a result.
pub trait ResultExt<T> {
    /// [`Error::context`] on the error, with the message made only then.
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| error.context(message()))
    }
}

impl fmt::Display for Error {
    /// The whole story in one line, outermost first: `outer: inner: cause`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_reads_from_the_outside_in() {
        let inner = Error::caused_by(ErrorKind::StoreIo, "cannot read \"a\"", std::io::Error::other("boom"));
        let outer = inner.context("block 7");
        assert_eq!(outer.to_string(), "block 7: cannot read \"a\": boom");
        assert_eq!(outer.kind(), ErrorKind::StoreIo);
    }

    #[test]
    fn an_objects_name_is_told_once() {
        let name = ObjectName::parse("c/o").unwrap();
        let told = |message: &str| Error::new(ErrorKind::StoreIo, message).of_object(&name).to_string();
        assert_eq!(told("the stream broke"), "object \"c/o\": the stream broke");
        assert_eq!(told("cannot read object \"c/o\" at byte 7"), "cannot read object \"c/o\" at byte 7");
    }
}
