//! A new backup, told: by `create` and `consolidate` alike.

use clap::Args;
use serde_json::{Map, Value, json};

use super::args::OutputArgs;
use super::exit::Failure;
use super::print;
use super::render::{self, Format};
use crate::error::{Error, ErrorKind};
use crate::writer::create::Created;

/// How to print what was made: its id and nothing else unless told.
#[derive(Args, Debug)]
pub(crate) struct MadeArgs {
    /// Print more of the new backup than its id, and how
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Print this column only; may be repeated
    #[arg(short, long = "column", value_name = "COLUMN")]
    columns: Vec<String>,
}

impl MadeArgs {
    /// What to print; to be asked before anything is made. `None`: the id.
    pub(crate) fn choose(&self) -> Result<Option<OutputArgs>, Failure> {
        if self.format.is_none() && self.columns.is_empty() {
            return Ok(None);
        }
        let format = self.format.unwrap_or(Format::Table);
        let output = OutputArgs::new(format, self.columns.clone());
        output.choose(&FIELDS)?;
        Ok(Some(output))
    }
}

/// What `-f` and `-c` print of a new backup, as `show` calls it; sorted.
const FIELDS: [&str; 9] = [
    "changed_bytes",
    "created_at",
    "id",
    "image_bytes",
    "name",
    "object_count",
    "parent_id",
    "stored_bytes",
    "volume_id",
];

/// Prints the id of a new backup, or what else was asked for.
pub(super) fn print_made(
    output: Option<&OutputArgs>,
    created: &Created,
    name: Option<&str>,
) -> Result<(), Failure> {
    // Who does not get to read the id must not take the backup for failed.
    let is_there = |failure: Failure| failure.hint(format!("backup {} was made all the same", created.id));
    let Some(output) = output else {
        return print(|out| writeln!(out, "{}", created.id)).map_err(is_there);
    };
    let document = json!({
        "changed_bytes": created.progress.changed_bytes,
        "created_at": created.created_at.to_string(),
        "id": created.id.as_str(),
        "image_bytes": created.progress.total_bytes,
        "name": name,
        "object_count": created.objects,
        "parent_id": created.parent_id.as_ref().map(|id| id.as_str()),
        "stored_bytes": created.progress.stored_bytes,
        "volume_id": created.volume_id.as_str(),
    });
    let chosen = output.choose(&FIELDS)?;
    let fields: Map<String, Value> =
        chosen.iter().map(|&field| (FIELDS[field].to_owned(), document[FIELDS[field]].clone())).collect();
    print(|out| render::one(out, output.format, &fields)).map_err(is_there)
}

/// The last line of `--progress json`.
pub(super) fn summary_json(created: &Created, seconds: f64) -> Value {
    json!({
        "backup_id": created.id.as_str(),
        "parent_id": created.parent_id.as_ref().map(|id| id.as_str()),
        "volume_id": created.volume_id.as_str(),
        "created_at": created.created_at.to_string(),
        "volume_bytes": created.progress.total_bytes,
        "changed_bytes": created.progress.changed_bytes,
        "stored_bytes": created.progress.stored_bytes,
        "unlisted_bytes": created.progress.unlisted_bytes,
        "objects": created.objects,
        "seconds": (seconds * 1000.0).round() / 1000.0,
    })
}

/// Why there is no backup, and what to do about it where that does not say so itself.
pub(super) fn advised(error: Error) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error);
    match kind {
        ErrorKind::Target => failure.hint(
            "no backup was made; make room in the store, or make it writable, and run this again, which removes what may be left",
        ),
        ErrorKind::Source => failure.hint("no backup was made; those before it are as they were"),
        _ => failure,
    }
}
