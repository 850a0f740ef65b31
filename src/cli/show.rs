//! `cinderfs show`: everything that is known about one backup.

use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value};

use super::args::{OutputArgs, StoreArg};
use super::exit::{Failure, Outcome};
use super::{print, render, require_answers, select};
use crate::backup::BlockHashTable;
use crate::catalog::Entry;
use crate::frontend::document;

const EXAMPLES: &str = "\
Examples:
  cinderfs show /backup_mount 52e81dfa-2bf5-4963-a49c-9e26e5a1b3a3
  cinderfs show /backup_mount 52e8                  a unique prefix of the id
  cinderfs show /backup_mount db@latest -f json     the newest of volume db
  cinderfs show /backup_mount nightly -f value -c fail_reason";

/// Show one backup: its chain, its sizes, what verifies it
///
/// A backup that cannot be used is shown too, with `status` error and the reason in `fail_reason`.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backup: an id, a unique name, a unique prefix of an id, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `show`.
pub(crate) fn run(args: &ShowArgs) -> Result<Outcome, Failure> {
    let catalog = args.store.catalog()?;
    let entries = select::newest_first(&catalog.snapshot());
    let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
    let entry = select::backup(&entries, &args.backup, args.volume.as_deref(), &usable)?;
    let image = catalog.image(&entry);
    if let Ok(image) = &image {
        // A mount counts in the background; here there is nothing to do meanwhile. What is far away is fetched for who asks for it.
        if !image.hash_table().is_some_and(BlockHashTable::is_far) || args.output.names("data_bytes") {
            image.count_data();
        }
    }
    require_answers(&catalog, image.as_ref().err())?;
    let document = document::backup_document(&entry, image.as_ref());

    let known: Vec<&str> = document.keys().map(String::as_str).collect();
    let chosen = args.output.choose(&known)?;
    let fields: Map<String, Value> =
        chosen.iter().map(|&column| (known[column].to_owned(), document[known[column]].clone())).collect();
    print(|out| render::one(out, args.output.format, &fields))?;
    Ok(Outcome::Done)
}
