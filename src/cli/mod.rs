//! The command line; the only module that prints.
//!
//! Results go to stdout, everything else (errors, hints, logs, progress) to stderr. One file per verb.

mod args;
mod audit;
mod cache;
mod canvas;
mod consolidate;
mod create;
mod delete;
mod diff;
mod exit;
mod hydrate;
mod index;
mod list;
mod logging;
mod loss_map;
mod made;
mod map;
mod memory;
#[cfg(feature = "fuse")]
mod mount;
mod picture;
mod place;
mod progress;
mod record;
mod render;
mod repair;
mod restore;
mod rows;
mod select;
mod show;
mod signals;
mod sizes;
mod spans;
#[cfg(feature = "fuse")]
mod umount;
mod verify;
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;
pub use exit::Outcome;

use crate::catalog::{Catalog, Snapshot};
use crate::error::{Error, ErrorKind};
use crate::open_files;
use crate::types::count;
use args::Verb;
use exit::Failure;

/// Runs the command that the process was called with, and returns its exit code.
pub fn main() -> ExitCode {
    memory::tame_the_allocator();
    open_files::ask_for_more();
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
        Verb::Index(args) => index::run(&args, verbosity < 0),
        Verb::Show(args) => show::run(&args),
        Verb::Map(args) => map::run(&args),
        Verb::Diff(args) => diff::run(&args, verbosity < 0),
        Verb::Audit(args) => audit::run(&args, verbosity < 0),
        Verb::Create(args) => create::run(&args, verbosity < 0),
        Verb::Consolidate(args) => consolidate::run(&args, verbosity < 0),
        Verb::Restore(args) => restore::run(&args, verbosity < 0),
        Verb::Hydrate(args) => hydrate::run(&args, verbosity < 0),
        Verb::Delete(args) => delete::run(&args, verbosity < 0),
        Verb::Repair(args) => repair::run(&args, verbosity < 0),
        Verb::Record(args) => record::run(&args),
        Verb::Verify(args) => verify::run(&args, verbosity < 0),
    }
}

/// Why the store did not let us look into a folder, if that happened. Odd files that are no backups do not count.
fn unseen(snapshot: &Snapshot) -> Option<&Error> {
    let is_closed = |error: &&Error| matches!(error.kind(), ErrorKind::AccessDenied | ErrorKind::StoreIo);
    snapshot.unreadable().iter().map(|(_, error)| error).find(is_closed)
}

/// Fails when the store has stopped to answer, for then what was found of backups says nothing of them. `error` is what it came to.
fn require_answers(catalog: &Catalog, error: Option<&Error>) -> Result<(), Failure> {
    let store = catalog.store();
    if store.is_answering() {
        return Ok(());
    }
    let silent =
        || Error::new(ErrorKind::StoreIo, format!("the store {:?} does not answer", store.location()));
    let error = error.filter(|error| error.kind() == ErrorKind::StoreIo);
    Err(error.cloned().unwrap_or_else(silent).into())
}

/// Why a backup was not found: perhaps because it lies where the store did not let us look.
fn perhaps_unseen(failure: Failure, snapshot: &Snapshot) -> Failure {
    match unseen(snapshot) {
        Some(error) if failure.kind() == ErrorKind::BackupNotFound => {
            let context = format!("{}, as far as can be seen", failure.error());
            Failure::from(error.clone().context(context))
                .hint("it may lie in a part of the store that cannot be read")
        }
        _ => failure,
    }
}

/// What is to be said of a store beside its backups, in one line; the error where nothing of it could be seen.
fn store_note(snapshot: &Snapshot) -> Result<String, Failure> {
    let (is_empty, unreadable) = (snapshot.entries().next().is_none(), snapshot.unreadable());
    let unseen = unseen(snapshot);
    if let (true, Some(error)) = (is_empty, unseen) {
        return Err(error.clone().into());
    }
    Ok(match unseen.or(unreadable.first().map(|(_, error)| error)) {
        Some(first) => {
            let places = count(unreadable.len() as u64, "place");
            format!("cinderfs: {places} in the store could not be read; backups may be missing: {first}\n")
        }
        // The usual reason is a share that is not mounted.
        None if is_empty => {
            "cinderfs: the store holds no backups; is it the right one, or a folder whose share is not mounted?\n"
                .to_owned()
        }
        None => String::new(),
    })
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::CatalogOptions;
    use crate::store::fault::{Fault, FaultStore, Operation, Rule};
    use crate::store::memory::MemoryStore;
    use crate::types::ObjectName;

    /// A store of these (torn) documents, of which folder `closed` may not be read.
    fn snapshot(documents: &[&str]) -> Arc<Snapshot> {
        let store = MemoryStore::new();
        for name in documents {
            store.insert(ObjectName::parse(name).unwrap(), b"{".to_vec());
        }
        let closed = Rule::new(Operation::List, Fault::Error(ErrorKind::AccessDenied)).names("closed/*");
        let store = FaultStore::new(store, [closed]);
        Catalog::open(Arc::new(store), CatalogOptions::default()).unwrap().snapshot()
    }

    #[test]
    fn what_cannot_be_seen_is_not_taken_for_nothing() {
        let none = snapshot(&[]);
        assert!(store_note(&none).unwrap().contains("holds no backups"));
        assert!(unseen(&none).is_none());
        let all_closed = snapshot(&["closed/backup_metadata"]);
        assert_eq!(store_note(&all_closed).unwrap_err().kind(), ErrorKind::AccessDenied);
        let some_closed = snapshot(&["closed/backup_metadata", "open/backup_metadata"]);
        assert!(store_note(&some_closed).unwrap().contains("1 place in the store could not be read"));
        assert!(unseen(&some_closed).is_some());
        assert_eq!(store_note(&snapshot(&["open/backup_metadata"])).unwrap(), "");
        let not_found = || Failure::new(ErrorKind::BackupNotFound, "no such backup");
        assert_eq!(perhaps_unseen(not_found(), &none).kind(), ErrorKind::BackupNotFound);
        assert_eq!(perhaps_unseen(not_found(), &some_closed).kind(), ErrorKind::AccessDenied);
        let usage = Failure::new(ErrorKind::Usage, "BACKUP is empty");
        assert_eq!(perhaps_unseen(usage, &some_closed).kind(), ErrorKind::Usage);
    }
}
