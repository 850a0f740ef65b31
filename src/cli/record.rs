//! `cinderfs record`: the way back after Cinder's database is lost.
//!
//! Records are made and compared by [`crate::writer::records`].

use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::args::{OutputArgs, StoreArg};
use super::exit::{Failure, Outcome, note};
use super::render::{self, Format};
use super::{perhaps_unseen, print, select, store_note, unseen};
use crate::catalog::{Catalog, Entry};
use crate::error::{Error, ErrorKind};
use crate::writer::records::{self, Difference, Exporter, RECORD_BYTES_MAX, Record};

const EXAMPLES: &str = "\
Examples:
  cinderfs record export /backup_mount --command | sh -x
  cinderfs record export /backup_mount db@latest --command
  cinderfs record export /backup_mount 52e81dfa -f json
  cinderfs record import /backup_mount eyJpZCI6IC4uLn0=";

const EXPORT_EXAMPLES: &str = "\
Examples:
  cinderfs record export /backup_mount 52e81dfa
  cinderfs record export /backup_mount 52e81dfa --all -f json
  cinderfs record export /backup_mount --command | sh -x
  cinderfs record export /backup_mount -f value |
      xargs -n2 cinder backup-import

Cinder takes an incremental before its parents, and fails to restore it then; so parents come first. A \
backup that is in Cinder's database already is refused there, which does no harm. After an import compare `openstack \
volume backup list` with `cinderfs list`.

Exit codes: 0 done; 1 the backup has no record that Cinder could use; 3 some backups of the store were left out, \
and stderr tells why.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  cinderfs record import /backup_mount eyJpZCI6IC4uLn0=
  cinder backup-export 52e81dfa-2bf5-4963-a49c-9e26e5a1b3a3 -f json |
      cinderfs record import /backup_mount -

This only looks. To import the record, give it to `cinder backup-import`, after those of the backups that it builds \
on. Where it is lost or does not fit, `cinderfs record export` makes it anew.

Exit codes: 0 the backup is there, and Cinder would restore it by this record; 1 no record, or no such backup; 3 \
the record and the store disagree in what matters, or the backup cannot be used; 10 store not found.";

/// Records of Cinder's database, made from the store or compared with it
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RecordArgs {
    #[command(subcommand)]
    verb: RecordVerb,
}

#[derive(Subcommand, Debug)]
enum RecordVerb {
    Export(ExportArgs),
    Import(ImportArgs),
}

/// Print what `cinder backup-import` takes, made from the store alone
///
/// Without BACKUP the records of all backups, parents first. With BACKUP that one's, as `openstack volume backup record export`
/// prints it; what it builds on must be imported before it, and --all or --command print these too.
#[derive(Args, Debug)]
#[command(after_long_help = EXPORT_EXAMPLES)]
struct ExportArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backup: an id, a unique name, a unique prefix of an id, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP")]
    backup: Option<String>,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// All that BACKUP builds on too, parents first; without BACKUP all backups, which needs no telling
    #[arg(long)]
    all: bool,
    /// Print command lines for a shell, parents first: cinder backup-import SERVICE URL
    #[arg(long, conflicts_with_all = ["format", "columns"])]
    command: bool,
    /// The class of Cinder's backup driver that is to restore them (`backup_driver` in cinder.conf) [default: that of the store]
    #[arg(long, value_name = "CLASS")]
    driver: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Print what a record says, and in what the store disagrees
///
/// RECORD is what `cinder backup-export` or `openstack volume backup record export` prints as backup_url, the whole JSON of
/// it, or a line of `cinderfs record export`; `-` reads it from stdin. Nothing is changed, neither in the store nor in Cinder.
#[derive(Args, Debug)]
#[command(after_long_help = IMPORT_EXAMPLES)]
struct ImportArgs {
    #[command(flatten)]
    store: StoreArg,
    /// The record, or `-` for stdin; a word before it, as the service is in `cinder backup-import`, is passed over
    #[arg(value_name = "RECORD", required = true, num_args = 1..=2)]
    record: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Columns of `export`; those before [`SHOWN`] unless told.
const COLUMNS: [&str; 4] = ["backup_service", "backup_url", "id", "parent_id"];
const SHOWN: usize = 2;

/// Runs `record`.
pub(crate) fn run(args: &RecordArgs) -> Result<Outcome, Failure> {
    match &args.verb {
        RecordVerb::Export(args) => export(args),
        RecordVerb::Import(args) => import(args),
    }
}

fn export(args: &ExportArgs) -> Result<Outcome, Failure> {
    let mut chosen = args.output.choose(&COLUMNS)?;
    if !args.output.names_columns() {
        chosen.truncate(SHOWN);
    }
    let catalog = args.store.catalog()?;
    let snapshot = catalog.snapshot();
    let entries = select::newest_first(&snapshot);
    let driver = args.driver.as_deref().unwrap_or(args.store.place()?.driver());
    let exporter = Exporter::new(&catalog, driver);
    let row = |entry: &Entry, record: &Record| {
        let parent = entry.parent_id.as_ref().map(|id| id.as_str());
        [json!(driver), json!(record.encode()), json!(entry.id.as_str()), json!(parent)]
    };
    let (mut rows, mut left_out) = (Vec::new(), false);
    if let Some(words) = &args.backup {
        let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
        let entry = select::backup(&entries, words, args.volume.as_deref(), &usable)
            .map_err(|failure| perhaps_unseen(failure, &snapshot))?;
        let chain = records::chain(&snapshot, &entry)?;
        if !args.all && !args.command {
            let record = exporter.record(&entry)?;
            let row = row(&entry, &record);
            let fields: Map<String, Value> =
                chosen.iter().map(|&column| (COLUMNS[column].to_owned(), row[column].clone())).collect();
            print(|out| render::one(out, args.output.format, &fields))?;
            if chain.len() > 1 {
                let count = crate::types::count(chain.len() as u64 - 1, "backup");
                note(&format!(
                    "cinderfs: {count} that it builds on must be imported before it; --all prints them too\n"
                ));
            }
            return Ok(Outcome::Done);
        }
        for entry in &chain {
            rows.push(row(entry, &exporter.record(entry)?));
        }
    } else {
        let volume = args.volume.as_deref().map(|words| select::volume(&entries, words)).transpose()?;
        let ours: Vec<_> = entries
            .into_iter()
            .filter(|entry| volume.is_none() || entry.volume_id.is_none() || entry.volume_id == volume)
            .collect();
        for entry in records::parents_first(&ours) {
            match exporter.record(&entry) {
                Ok(record) => rows.push(row(&entry, &record)),
                Err(error) => {
                    left_out = true;
                    let error = error.to_string();
                    note(&format!("cinderfs: {} is left out: {}\n", entry.id, render::visible(&error)));
                }
            }
        }
        note(&store_note(&snapshot)?);
        left_out |= unseen(&snapshot).is_some();
    }
    if args.command {
        let line = |row: &[Value; 4]| {
            let words = row[..SHOWN].iter().map(|word| shell_word(word.as_str().unwrap_or_default()));
            format!("cinder backup-import {}\n", words.collect::<Vec<_>>().join(" "))
        };
        let text: String = rows.iter().map(line).collect();
        print(|out| out.write_all(text.as_bytes()))?;
    } else {
        let titles: Vec<&str> = chosen.iter().map(|&column| COLUMNS[column]).collect();
        let rows: Vec<Vec<Value>> =
            rows.iter().map(|row| chosen.iter().map(|&column| row[column].clone()).collect()).collect();
        print(|out| render::list(out, args.output.format, &titles, &rows))?;
    }
    Ok(if left_out { Outcome::Damaged } else { Outcome::Done })
}

/// A word that a shell takes for itself alone.
fn shell_word(word: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+/=:@,".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''")).into()
}

fn import(args: &ImportArgs) -> Result<Outcome, Failure> {
    let text = match args.record.as_slice() {
        [only] if only == "-" => read_stdin()?,
        words => words.join(" "),
    };
    let record = Record::decode(&url_of(&text)?).map_err(|error| {
        Failure::from(error).hint("expected the backup_url that `cinder backup-export` prints")
    })?;
    let catalog = args.store.catalog()?;
    let snapshot = catalog.snapshot();
    let Some(entry) = records::find(&snapshot, &record, catalog.store().part().map(|part| part.container))
    else {
        let said = |key: &str| record.fields().get(key).map_or("nothing".to_owned(), Value::to_string);
        let message = format!(
            "the store holds no backup with the id {}, container {}, prefix {} of the record",
            said("id"),
            said("container"),
            said("service_metadata")
        );
        let failure = Failure::new(ErrorKind::BackupNotFound, message)
            .hint("is it another store? `cinderfs list STORE` shows what is in this one");
        return Err(perhaps_unseen(failure, &snapshot));
    };
    let compared = Compared::new(&catalog, args.store.place()?.driver(), &entry, &record);
    let mut document = compared.document();
    let known: Vec<&str> = document.keys().map(String::as_str).collect();
    let chosen = args.output.choose(&known)?;
    let chosen: Vec<String> = chosen.iter().map(|&column| known[column].to_owned()).collect();
    document.retain(|key, _| chosen.contains(key));
    if args.output.format == Format::Table {
        spread(&mut document, "record");
    }
    print(|out| render::one(out, args.output.format, &document))?;
    note(&compared.verdict(records::chain(&snapshot, &entry).map_or(0, |chain| chain.len() - 1)));
    Ok(if compared.agrees() { Outcome::Done } else { Outcome::Damaged })
}

/// A record beside what the store says.
struct Compared<'a> {
    entry: &'a Entry,
    record: &'a Record,
    differences: Vec<Difference>,
    /// Why the backup cannot be restored by any record.
    problem: Option<Error>,
}

impl<'a> Compared<'a> {
    fn new(catalog: &Catalog, usual: &str, entry: &'a Arc<Entry>, record: &'a Record) -> Self {
        // Whatever the driver: what it cannot restore is not the record's fault.
        let service = record.fields().get("service").and_then(Value::as_str).unwrap_or(usual);
        let found = Exporter::new(catalog, service).record(entry).and_then(|found| {
            catalog.image(entry)?;
            Ok(found)
        });
        let differences = found.as_ref().map(|found| records::compare(record, found)).unwrap_or_default();
        Self { entry, record, differences, problem: found.err() }
    }

    /// Whether Cinder would restore the backup by the record.
    fn agrees(&self) -> bool {
        self.problem.is_none() && self.differences.iter().all(|difference| difference.harm.is_none())
    }

    /// What the record says, and what the store says to it. Keys are sorted.
    fn document(&self) -> Map<String, Value> {
        let mut document = Map::new();
        document.insert("agrees".into(), json!(self.agrees()));
        document.insert("differences".into(), self.differences.iter().map(said).collect());
        document.insert("fail_reason".into(), json!(self.problem.as_ref().map(Error::to_string)));
        document.insert("in_store".into(), json!(self.entry.metadata_name.as_str()));
        document.insert("record".into(), Value::Object(self.record.fields().clone()));
        document
    }

    /// What it comes to, and what to do next. `beneath` is how many backups this one builds on.
    fn verdict(&self, beneath: usize) -> String {
        let id = &self.entry.id;
        match (&self.problem, self.agrees()) {
            (Some(_), _) => format!("cinderfs: backup {id} cannot be used; fail_reason tells why\n"),
            (None, false) => format!(
                "cinderfs: the record does not fit backup {id}; differences tells what would come of it\n\
                 hint: `cinderfs record export STORE {id}` prints one that fits\n"
            ),
            (None, true) => {
                let first = match beneath {
                    0 => String::new(),
                    n => format!(
                        "; {} that it builds on must be imported before it\n\
                         hint: `cinderfs record export STORE {id} --command` prints all of them",
                        crate::types::count(n as u64, "backup")
                    ),
                };
                format!("cinderfs: Cinder can import this record, and restore backup {id} by it{first}\n")
            }
        }
    }
}

/// The columns of the object at `key`, each in a row of its own: whole it is wider than any terminal.
fn spread(document: &mut Map<String, Value>, key: &str) {
    if let Some(Value::Object(columns)) = document.remove(key) {
        document.extend(columns.into_iter().map(|(column, value)| (format!("{key}.{column}"), value)));
    }
}

fn said(difference: &Difference) -> Value {
    let Difference { key, record, store, harm } = difference;
    let harm = harm.unwrap_or("which does no harm");
    json!(format!("{key}: {record} in the record, {store} in the store; {harm}"))
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    // One more than fits, so that what is too long is seen to be.
    let limit = 2 * RECORD_BYTES_MAX as u64 + 1;
    io::stdin().lock().take(limit).read_to_string(&mut text).map_err(|error| {
        Failure::new(ErrorKind::Malformed, format!("cannot read a record from stdin: {error}"))
    })?;
    Ok(text)
}

/// The `backup_url` in what the client, or this program, prints: itself, JSON that has it, or the last word of a line.
fn url_of(text: &str) -> Result<Cow<'_, str>, Failure> {
    let text = text.trim();
    if text.starts_with('{') {
        let url = serde_json::from_str::<Value>(text).ok();
        let url = url.as_ref().and_then(|record| record.get("backup_url")?.as_str());
        let missing = || Failure::new(ErrorKind::Malformed, "the JSON has no backup_url");
        return url.map(|url| url.to_owned().into()).ok_or_else(missing);
    }
    if text.lines().count() > 1 {
        let message = "expected one record, found several lines";
        return Err(Failure::new(ErrorKind::Malformed, message).hint("give them one by one"));
    }
    Ok(text.split_whitespace().next_back().unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for plain in ["cinder.backup.drivers.posix.PosixBackupDriver", "eyJpZCI6+/==", "a-b_c:d,e@f"] {
            assert_eq!(shell_word(plain), plain);
        }
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("a b;$(c)`d`"), "'a b;$(c)`d`'");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
    }

    #[test]
    fn a_url_is_found_in_what_is_printed() {
        for text in [
            "Zm9v",
            " Zm9v\n",
            "cinder.backup.drivers.posix.PosixBackupDriver Zm9v",
            "cinder backup-import x Zm9v\n",
            r#"{"backup_service": "x", "backup_url": "Zm9v"}"#,
        ] {
            assert_eq!(url_of(text).unwrap(), "Zm9v", "{text}");
        }
        for text in ["{}", "{", "{\"backup_url\": 1}", "Zm9v\nZm9v"] {
            assert_eq!(url_of(text).unwrap_err().kind(), ErrorKind::Malformed, "{text}");
        }
    }
}
