//! How a command ends: its outcome, its failure, its exit code.
//!
//! Problem: scripts decide by exit code, people by the message, and both must agree over all commands.
//! Idea: commands return an [`Outcome`] or a [`Failure`]; this is the one place where either becomes a number.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use super::{progress, render};
use crate::error::{Error, ErrorKind};

/// Exit code of a command that did not do what it was asked for.
const FAILED: u8 = 1;
/// Exit code of a wrong call; clap uses the same.
const USAGE: u8 = 2;
/// Exit code of a command that finished although some data is damaged or missing.
const DAMAGED: u8 = 3;
/// Exit code when the store does not exist.
const STORE_NOT_FOUND: u8 = 10;
/// Exit code when the store may not be read.
const ACCESS_DENIED: u8 = 12;
/// Shells add this to the number of the signal that ended a command.
const SIGNAL_BASE: u8 = 128;
const SIGINT: u8 = 2;

/// How a command that came to its end came to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// Everything was done, except that some data is damaged or missing.
    Damaged,
    /// Another process did the work, has told its error itself, and ended with this code.
    Child(u8),
}

impl Outcome {
    /// The exit code: 0, 3, or that of the other process.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Damaged => DAMAGED,
            Self::Child(code) => code,
        }
    }
}

/// Why a command did not come to its end, and perhaps what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    hint: Option<String>,
    signal: Option<u8>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error::new(kind, message).into()
    }

    /// Adds what to do about it, in one line.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Notes that this signal ended the command.
    #[must_use]
    pub(crate) fn by_signal(mut self, signal: u8) -> Self {
        self.signal = Some(signal);
        self
    }

    /// What kind of failure it is.
    pub(crate) fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    /// What went wrong.
    pub(crate) fn error(&self) -> &Error {
        &self.error
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self.signal {
            Some(signal) => SIGNAL_BASE.saturating_add(signal),
            None => code(self.error.kind()),
        }
    }

    /// Tells it on stderr. Text that came from a store cannot drive the terminal.
    pub(crate) fn print(&self) {
        let mut text = format!("cinderfs: {}\n", render::visible(&self.error.to_string()));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {}\n", render::visible(hint)));
        }
        note(&text);
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, hint: None, signal: None }
    }
}

/// A share that is mounted for this process only, and where.
static SHARE: OnceLock<(String, String)> = OnceLock::new();

/// From now on what people read names the share, and not a mountpoint of ours: a digest that nobody knows, and soon gone.
pub(super) fn call_share(mountpoint: &Path, share: &str) {
    let _ = SHARE.set((mountpoint.to_string_lossy().into_owned(), render::visible(share).into_owned()));
}

/// Writes to stderr, above the bar where one is shown; a stderr that nobody reads is no reason to fail.
pub(crate) fn note(text: &str) {
    let named = SHARE.get().map(|(mountpoint, share)| text.replace(mountpoint, share));
    let text = named.as_deref().unwrap_or(text);
    let _ = progress::above_bar(|| io::stderr().lock().write_all(text.as_bytes()));
}

/// The process's exit code for what a command returned; tells a failure on stderr first.
pub(crate) fn conclude(result: Result<Outcome, Failure>) -> ExitCode {
    ExitCode::from(match result {
        Ok(outcome) => outcome.code(),
        Err(failure) => {
            failure.print();
            failure.code()
        }
    })
}

/// The exit code of a kind of error.
///
/// Damage is 1 here: 3 is for a command that finished in spite of it, and an error means that it did not.
fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::StoreNotFound => STORE_NOT_FOUND,
        ErrorKind::AccessDenied => ACCESS_DENIED,
        ErrorKind::Usage => USAGE,
        // Without a note of the signal it was the keyboard's.
        ErrorKind::Interrupted => SIGNAL_BASE + SIGINT,
        ErrorKind::StoreIo
        | ErrorKind::ObjectNotFound
        | ErrorKind::UnsafeName
        | ErrorKind::Truncated
        | ErrorKind::Malformed
        | ErrorKind::Unsupported
        | ErrorKind::LimitExceeded
        | ErrorKind::Codec
        | ErrorKind::HashMismatch
        | ErrorKind::NoData
        | ErrorKind::ChainBroken
        | ErrorKind::OutOfSight
        | ErrorKind::BackupNotFound
        | ErrorKind::Ambiguous
        | ErrorKind::Target
        | ErrorKind::Source => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_that_scripts_were_promised() {
        assert_eq!(Outcome::Done.code(), 0);
        assert_eq!(Outcome::Damaged.code(), 3);
        for (kind, expected) in [
            (ErrorKind::HashMismatch, 1),
            (ErrorKind::BackupNotFound, 1),
            (ErrorKind::Ambiguous, 1),
            (ErrorKind::Target, 1),
            (ErrorKind::Usage, 2),
            (ErrorKind::StoreNotFound, 10),
            (ErrorKind::AccessDenied, 12),
            (ErrorKind::Interrupted, 130),
        ] {
            assert_eq!(Failure::new(kind, "").code(), expected, "{kind:?}");
        }
        assert_eq!(Failure::new(ErrorKind::Interrupted, "").by_signal(15).code(), 143);
        assert_eq!(Failure::new(ErrorKind::Interrupted, "").by_signal(2).code(), 130);
    }
}
