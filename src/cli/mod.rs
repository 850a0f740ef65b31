//! The command line; the only module that prints.
//!
//! Results go to stdout, everything else (errors, hints, logs, progress) to stderr. One file per verb.

mod args;
mod exit;
mod list;
mod logging;
mod memory;
#[cfg(feature = "fuse")]
mod mount;
mod progress;
mod render;
mod restore;
mod select;
mod show;
#[cfg(feature = "fuse")]
mod umount;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;
pub use exit::Outcome;

use crate::error::{Error, ErrorKind};
use args::Verb;
use exit::Failure;

/// Runs the command that the process was called with, and returns its exit code.
pub fn main() -> ExitCode {
    memory::tame_the_allocator();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // A reader that went away (`--help | head`) has seen what it wanted.
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
        }
    };
    exit::conclude(run(cli))
}

fn run(cli: Cli) -> Result<Outcome, Failure> {
    let verbosity = cli.global.verbosity();
    logging::start(verbosity, cli.verb.is_daemon())?;
    match cli.verb {
        #[cfg(feature = "fuse")]
        Verb::Mount(args) => mount::run(&args, verbosity),
        #[cfg(feature = "fuse")]
        Verb::Umount(args) => umount::run(&args),
        Verb::List(args) => list::run(&args),
        Verb::Show(args) => show::run(&args),
        Verb::Restore(args) => restore::run(&args, verbosity < 0),
    }
}

/// What is said of a store without backups: the usual reason is a share that is not mounted.
const EMPTY_NOTE: &str =
    "cinderfs: the store holds no backups; is it the right folder, and is its share mounted?\n";

/// What is said of folders that could not be read, in one line however many they are.
fn unreadable_note(unreadable: &[(String, Error)]) -> String {
    let Some((_, first)) = unreadable.first() else { return String::new() };
    let count = unreadable.len();
    format!("cinderfs: {count} folder(s) or file(s) could not be read, so backups may be missing: {first}\n")
}

/// Prints a result on stdout. A reader that stops reading (`| head`) is no failure; a full disk is one.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::caused_by(ErrorKind::Target, "cannot write to stdout", error).into()),
        Ok(()) => Ok(()),
    }
}
