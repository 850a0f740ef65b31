//! `cinderfs delete`: backups leave the store.
//!
//! The engine is [`crate::writer::delete`]; here are the words, the table of what would go, and the summary.

use std::sync::atomic::Ordering;

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::args::{OutputArgs, StoreArg};
use super::exit::{Failure, Outcome, note};
use super::place::is_word;
use super::signals::{Signals, is_interrupted};
use super::watch::Watch;
use super::{perhaps_unseen, print, render, select};
use crate::catalog::Catalog;
use crate::error::ErrorKind;
use crate::types::BackupId;
use crate::writer::delete::{self as engine, DeleteOptions, DoomedBackup, Leftovers, Plan};

const EXAMPLES: &str = "\
Examples:
  cinderfs delete /backup_mount 52e81dfa --dry-run
  cinderfs delete /backup_mount 52e81dfa --cascade
  cinderfs delete /backup_mount 52e81dfa a65a7b7f
  cinderfs delete /backup_mount --leftovers

The metadata goes first, so that no half-deleted backup is ever shown. A run that was killed after that is \
finished by the next `delete` or `create` in this store, of whichever backup, or by --leftovers. Cinder's database \
does not hear of it: delete the backup there as well, or there alone.

Exit codes: 0 deleted; 1 failed; 2 wrong usage, or others build on the backup and --cascade is not given; 12 \
the store may not be changed, or a part of it cannot be read; 130, 143 interrupted between two backups, of \
which those told as deleted are.";

/// Delete backups, with their files and nothing else
///
/// A backup that others build on is refused, and these are named; those in other containers of the account or server are looked for as
/// well. Files go that the backup lists, and those that by their
/// names can be no other's; whatever else begins with its prefix stays, and is told. Unusable backups can be deleted too.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backups: ids, unique names, unique prefixes of ids, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP", required_unless_present = "leftovers")]
    backups: Vec<String>,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Delete also what builds on them, the newest first
    #[arg(long)]
    cascade: bool,
    /// Print what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete although a part of the store, or of the account or server whose container it is, cannot be read, where backups may lie that
    /// build on these
    #[arg(long)]
    force: bool,
    /// Only remove what killed runs of cinderfs left; what others left, or living runs have, stays
    #[arg(long, conflicts_with_all = ["backups", "volume", "cascade", "dry_run", "force"])]
    leftovers: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Columns of `--dry-run`.
const COLUMNS: [&str; 6] = ["ID", "Name", "Created At", "Objects", "Bytes", "Container"];

/// How many files that stay are named; the rest is counted.
const KEPT_SHOWN_MAX: usize = 8;

/// Runs `delete`. `quiet` takes away the summary.
pub(crate) fn run(args: &DeleteArgs, quiet: bool) -> Result<Outcome, Failure> {
    let chosen = args.output.choose(&COLUMNS)?;
    let store = args.store.writable()?;
    let _watch = Watch::start(store.location(), args.store.timeout());
    let leftovers = match args.dry_run {
        true => Leftovers::default(),
        false => engine::remove_leftovers(store.target()).map_err(|error| args.store.advise(error.into()))?,
    };
    let say = |text: String| {
        if !quiet {
            note(&format!("cinderfs: {text}\n"));
        }
    };
    for id in &leftovers.deleted {
        say(format!("finished the deletion of {id}, which a killed run had begun"));
    }
    if args.leftovers {
        say(match leftovers.runs {
            0 => "there was nothing left of killed runs".to_owned(),
            runs => format!("removed what {} had left", crate::types::count(runs, "killed run")),
        });
        return Ok(Outcome::Done);
    }
    let signals = Signals::watch()?;
    let catalog = args.store.catalog_to_write()?;
    let ids = choose(args, &catalog, &leftovers.deleted)?;
    if ids.is_empty() {
        return Ok(Outcome::Done);
    }
    let options = DeleteOptions {
        cascade: args.cascade,
        despite_unseen: args.force,
        stop: Some(is_interrupted),
        ..DeleteOptions::default()
    };
    let plan =
        engine::plan(&catalog, store.target(), &ids, &options).map_err(|error| match error.kind() {
            ErrorKind::Usage if engine::is_elsewhere(&error) => {
                Failure::from(error).hint(elsewhere_hint(catalog.store().part().map(|part| part.whole)))
            }
            ErrorKind::Interrupted => signals.blame(error.into()),
            ErrorKind::Usage => Failure::from(error).hint("--cascade deletes these too"),
            ErrorKind::AccessDenied | ErrorKind::StoreIo => {
                Failure::from(error).hint("--force deletes all the same")
            }
            _ => error.into(),
        })?;
    note(&kept_note(&plan));
    match plan.containers_beside {
        0 => {}
        1 => say("1 other container holds no backup that builds on what is to go".to_owned()),
        count => say(format!("{count} other containers hold no backup that builds on what is to go")),
    }
    if args.dry_run {
        let titles: Vec<&str> = chosen.iter().map(|&column| COLUMNS[column]).collect();
        let rows: Vec<Vec<Value>> = plan
            .backups
            .iter()
            .map(|backup| {
                let row = row(backup);
                chosen.iter().map(|&column| row[column].clone()).collect()
            })
            .collect();
        print(|out| render::list(out, args.output.format, &titles, &rows))?;
        return Ok(Outcome::Done);
    }
    let stop = || signals.cancel.load(Ordering::Relaxed);
    engine::delete(store.target(), &plan, &options, &stop, &mut |backup| {
        let count = crate::types::count(backup.object_count(), "object");
        let bytes = BinaryBytes(backup.stored_bytes());
        say(format!("deleted {}: {count}, {bytes}", backup.entry.id));
    })
    .map_err(|error| signals.blame(error.into()))?;
    Ok(Outcome::Done)
}

/// What to do about backups that build on these in other containers of `whole`.
fn elsewhere_hint(whole: Option<&str>) -> String {
    match whole.filter(|word| is_word(word)) {
        Some(word) => format!(
            "delete these first; STORE {word} is all containers, and there --cascade deletes these too"
        ),
        None => "delete these first, where they are".to_owned(),
    }
}

/// The ids that the words name, each once. What was finished deleting just now needs no more.
fn choose(args: &DeleteArgs, catalog: &Catalog, deleted: &[BackupId]) -> Result<Vec<BackupId>, Failure> {
    let snapshot = catalog.snapshot();
    let entries = select::newest_first(&snapshot);
    let mut ids = Vec::new();
    for words in &args.backups {
        match select::backup(&entries, words, args.volume.as_deref(), &|entry| {
            select::is_usable(&catalog.image(entry))
        }) {
            Ok(entry) => ids.push(entry.id.clone()),
            Err(failure) => {
                let is_done = !words.is_empty() && deleted.iter().any(|id| id.as_str().starts_with(words));
                if !(failure.kind() == ErrorKind::BackupNotFound && is_done) {
                    return Err(perhaps_unseen(failure, &snapshot));
                }
            }
        }
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

fn row(backup: &DoomedBackup) -> Vec<Value> {
    let entry = &backup.entry;
    vec![
        json!(entry.id.as_str()),
        json!(entry.name),
        json!(entry.created_at.map(|time| time.to_string())),
        json!(backup.object_count()),
        json!(backup.stored_bytes()),
        json!(entry.container),
    ]
}

/// What begins with a prefix of theirs and stays.
fn kept_note(plan: &Plan) -> String {
    let (mut text, mut count) = (String::new(), 0);
    for (name, why) in plan.backups.iter().flat_map(DoomedBackup::kept) {
        count += 1;
        if count <= KEPT_SHOWN_MAX {
            text.push_str(&format!("cinderfs: {} stays: {}\n", render::visible(&name), why.reason()));
        }
    }
    if count > KEPT_SHOWN_MAX {
        text.push_str(&format!("cinderfs: and {} more stay\n", count - KEPT_SHOWN_MAX));
    }
    text
}
