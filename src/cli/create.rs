//! `cinderfs create`: a new backup of a file or device.
//!
//! The engine is [`crate::writer::create`]; here are the words, the signals, the progress and the summary.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, ValueEnum};
use indicatif::BinaryBytes;
use jiff::Timestamp;

use super::args::{StoreArg, Writable, threads};
use super::exit::{Failure, Outcome, note};
use super::made::MadeArgs;
use super::progress::{Mode, Reporter};
use super::restore::THREADS_MAX;
use super::signals::{Signals, is_interrupted};
use super::watch::Watch;
use super::{made, perhaps_unseen, render, select, sizes};
use crate::catalog::{Catalog, Entry};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind};
use crate::types::{ObjectName, VolumeId, count};
use crate::writer::create::{self as engine, Base, Created, NewBackup};
use crate::writer::snapshot::{self, Prepared, SnapshotKind};
use crate::writer::source::changed::Changed;
use crate::writer::source::host::Host;
use crate::writer::source::{FileSource, Source, identity, image_format};

const EXAMPLES: &str = "\
Examples:
  cinderfs create /backup_mount disk.img --name monday
  cinderfs create /backup_mount /dev/vg/db --snapshot lvm --compression zstd
  cinderfs create /backup_mount disk.img --incremental --name tuesday

  id=$(cinderfs create /backup_mount disk.img)
  cinderfs create /backup_mount disk.img -f json

The id of the new backup goes to stdout, all else to stderr. Until the backup is whole, nothing of it can be seen in the store. \
An incremental takes over the volume's id, and the size of blocks, but not the compression.

Exit codes: 0 made; 1 failed, or there is no backup to build on; 2 wrong usage, or Cinder would refuse it; \
10 store not found; 12 the store may not be changed; 130, 143 interrupted, and nothing is left.";

/// Make a backup of a file or block device, as Cinder would
///
/// The backup is one that Cinder restores and chains onto. The source must not change while it is read: give a snapshot
/// of it. Where it ends early or cannot be read, there is no backup.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    store: StoreArg,
    /// What to back up: a raw image file or a block device
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// Name of the backup
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Description of the backup
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Folder of the store to put it in, may be nested; one of its own, named by its id, unless told
    #[arg(long, value_name = "NAME", value_parser = container)]
    container: Option<ObjectName>,
    /// Store only what changed since the volume's newest usable backup
    #[arg(long)]
    incremental: bool,
    /// Store only what changed since this backup: an id, a unique name, or a unique prefix of an id
    #[arg(long, value_name = "BACKUP")]
    parent: Option<String>,
    /// Read only what this list tells: of nbdinfo, qemu-img or rbd diff (JSON), or of thin_delta (XML), made since the parent
    #[arg(long, value_name = "FILE")]
    changed_from: Option<PathBuf>,
    /// With --changed-from, read all the same, store what changed, and tell what the list lacks
    #[arg(long, requires = "changed_from")]
    paranoid: bool,
    /// What to read instead of a source that may change
    #[arg(long, value_name = "KIND", default_value = "auto", value_parser = snapshot_kind())]
    snapshot: Kind,
    /// Back up a source that is in use, or an image of another format than raw, as it is
    #[arg(long)]
    force: bool,
    /// Id of the volume; else the parent's, that in the source's name (`volume-<id>`, `volume-<id>.img`), or one that follows from the device or path
    #[arg(long, value_name = "ID", value_parser = volume_id)]
    volume_id: Option<VolumeId>,
    /// Display name of the volume; the parent's, or the source's file name, unless told
    #[arg(long, value_name = "NAME")]
    volume_name: Option<String>,
    /// How to compress [default: the cinder.conf's, else zlib]
    #[arg(long, value_enum, value_name = "CODEC")]
    compression: Option<Compression>,
    /// Plain bytes of an object, a multiple of the block size, with K, M, G or T for powers of 1024 [default: the cinder.conf's, else 128M]
    #[arg(long, value_name = "BYTES", value_parser = sizes::bytes)]
    object_size: Option<u64>,
    /// Bytes that have a digest each; a chain has one size, so with a parent its own [default: the parent's, the cinder.conf's, else 32K]
    #[arg(long, value_name = "BYTES", value_parser = sizes::bytes)]
    block_size: Option<u64>,
    /// A property of the volume, kept with the backup; may be repeated
    #[arg(long, value_name = "KEY=VALUE", action = ArgAction::Append, value_parser = property)]
    property: Vec<(String, String)>,
    /// Work on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// How to show progress, on stderr
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
    #[command(flatten)]
    made: MadeArgs,
}

/// A kind of snapshot, as clap wants it.
#[derive(Clone, Copy, Debug)]
struct Kind(SnapshotKind);

fn snapshot_kind() -> impl TypedValueParser<Value = Kind> {
    PossibleValuesParser::new(SnapshotKind::ALL.map(SnapshotKind::name)).map(|name| {
        let known = SnapshotKind::ALL.into_iter().find(|kind| kind.name() == name);
        Kind(known.unwrap_or(SnapshotKind::Auto))
    })
}

/// How to compress, as Cinder's `backup_compression_algorithm` spells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Compression {
    Zlib,
    Bz2,
    Zstd,
    None,
}

impl Compression {
    pub(super) fn codec(self) -> Codec {
        match self {
            Self::Zlib => Codec::Zlib,
            Self::Bz2 => Codec::Bz2,
            Self::Zstd => Codec::Zstd,
            Self::None => Codec::None,
        }
    }
}

pub(super) fn container(word: &str) -> Result<ObjectName, String> {
    ObjectName::parse(word).map_err(|error| error.to_string())
}

fn volume_id(word: &str) -> Result<VolumeId, String> {
    VolumeId::parse(word).map_err(|error| error.to_string())
}

fn property(word: &str) -> Result<(String, String), String> {
    match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Runs `create`. `quiet` takes away the bar and the summary.
pub(crate) fn run(args: &CreateArgs, quiet: bool) -> Result<Outcome, Failure> {
    let output = args.made.choose()?;
    let store = store_to_fill(&args.store)?;
    // Before the snapshot, which a signal must not leave behind.
    let signals = Signals::watch()?;
    let catalog = match args.store.catalog_to_write() {
        Err(failure) if failure.kind() == ErrorKind::StoreNotFound => made_catalog(args, &store, failure)?,
        catalog => catalog?,
    };
    let _watch = Watch::start(store.location(), args.store.timeout());
    let mut new = new_backup(args, &catalog)?;
    refuse_odd_source(args, &store)?;
    let prepared = snapshot::prepare(&args.source, args.snapshot.0, args.force)?;
    for warning in prepared.warnings() {
        note(&format!("cinderfs: warning: {}\n", render::visible(warning)));
    }
    let name = args.source.to_string_lossy().into_owned();
    let source = Ready { file: FileSource::open_as(prepared.path_to_read(), name)?, prepared: &prepared };
    if let Some(list) = &args.changed_from {
        new.changed = Some(Changed::read(list, source.len_bytes())?);
    }
    let reporter = Reporter::new(args.progress, quiet, 0);
    let started = Instant::now();
    let result = engine::create(
        store.target(),
        &catalog,
        &source,
        &new,
        Timestamp::now(),
        &signals.cancel,
        &|progress| {
            reporter.update_backup(progress);
        },
    );
    let seconds = started.elapsed().as_secs_f64();
    let result = result.map_err(|error| prepared.explain(error));
    drop(source);
    // The backup is what it is; but a snapshot that stays fills its pool.
    if let Err(error) = prepared.finish() {
        note(&format!("cinderfs: warning: {}\n", render::visible(&error.to_string())));
    }
    let created = match result {
        Ok(created) => created,
        Err(error) => {
            drop(reporter);
            let failure = perhaps_unseen(made::advised(error), &catalog.snapshot());
            let failure = args.store.advise_of_container(failure, args.container.as_ref());
            return Err(signals.blame(failure));
        }
    };
    reporter.finish(|| made::summary_json(&created, seconds));
    if !quiet && args.progress != Mode::Json {
        note(&summary(&created, seconds, &args.source));
    }
    made::print_made(output.as_ref(), &created, args.name.as_deref())?;
    Ok(Outcome::Done)
}

/// The store to write to. Who has none yet is told how to come by one.
fn store_to_fill(store: &StoreArg) -> Result<Writable, Failure> {
    store.writable().map_err(|failure| match failure.kind() {
        ErrorKind::StoreNotFound => {
            failure.hint("is its share mounted? A new store is an empty directory, which `mkdir` makes")
        }
        _ => failure,
    })
}

/// The catalog of a container that was not there and is made now, as Cinder's driver makes it; `failure` where it is for somebody else to
/// make, or nothing could be put in.
fn made_catalog(args: &CreateArgs, store: &Writable, failure: Failure) -> Result<Catalog, Failure> {
    let Writable::Objects(objects) = store else { return Err(failure) };
    let needs_parent = args.incremental || args.parent.is_some();
    if needs_parent || objects.has_containers() || std::fs::metadata(&args.source).is_err() {
        return Err(failure);
    }
    // Whatever the object, it is the container that is meant.
    match objects.make_container(&ObjectName::parse("_metadata")?, &is_interrupted) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            Err(failure.hint("buckets are not made by cinderfs; make it first"))
        }
        made => {
            made?;
            args.store.catalog_to_write()
        }
    }
}

/// Refuses what could be backed up, but hardly is what somebody wants.
fn refuse_odd_source(args: &CreateArgs, store: &Writable) -> Result<(), Failure> {
    let shown = &args.source;
    if let Writable::Folder(store) = store
        && let (Ok(source), Ok(store)) = (shown.canonicalize(), store.canonicalize())
        && source.starts_with(&store)
    {
        let message = format!("source {shown:?} lies in the store itself");
        return Err(Failure::new(ErrorKind::Usage, message).hint(
            "a store holds backups, and a backup of one of their files restores no volume; keep images elsewhere",
        ));
    }
    let Some(format) = image_format::look(shown).filter(|_| !args.force) else { return Ok(()) };
    let message = format!("source {shown:?} is a {format} image, whose bytes are not those of a volume");
    Err(Failure::new(ErrorKind::Usage, message).hint(format!(
        "`qemu-img convert -f {format} -O raw` makes a raw one of it; --force backs it up as it is"
    )))
}

fn new_backup(args: &CreateArgs, catalog: &Catalog) -> Result<NewBackup, Failure> {
    let snapshot = catalog.snapshot();
    let parent = match &args.parent {
        None => None,
        Some(words) => {
            let volume = args.volume_id.as_ref().map(|id| id.as_str().to_owned());
            let entries = select::newest_first(&snapshot);
            let usable = |entry: &std::sync::Arc<Entry>| select::is_usable(&catalog.image(entry));
            let entry = select::backup(&entries, words, None, &usable)
                .map_err(|failure| perhaps_unseen(failure, &snapshot))?;
            if let (Some(asked), Some(theirs)) = (volume, &entry.volume_id)
                && asked != theirs.as_str()
            {
                return Err(Failure::new(
                    ErrorKind::Usage,
                    format!("the parent backup {} is of volume {theirs}, not of {asked}", entry.id),
                ));
            }
            Some(entry)
        }
    };
    let known = identity::identify(&Host::default(), &args.source)?;
    let volume_id = match (&args.volume_id, parent.as_ref().and_then(|parent| parent.volume_id.clone())) {
        (Some(told), _) => told.clone(),
        (None, Some(parents)) => parents,
        (None, None) => known.volume_id,
    };
    let base = match parent {
        Some(parent) => Base::Backup(parent.id.clone()),
        None if args.incremental => Base::Newest,
        None => Base::Nothing,
    };
    let display_name = Some(known.display_name).filter(|name| !name.is_empty());
    let volume_name = args.volume_name.clone().or(match base {
        Base::Nothing => display_name,
        Base::Newest | Base::Backup(_) => None,
    });
    let configured = args.store.place()?.defaults()?;
    let mut new = NewBackup {
        base,
        volume_name,
        properties: args.property.clone(),
        name: args.name.clone(),
        description: args.description.clone(),
        container: args.container.clone().or(configured.container),
        codec: args.compression.map_or(configured.codec, Compression::codec),
        object_bytes: args.object_size.or(configured.object_bytes),
        block_bytes: args.block_size.or(configured.block_bytes).unwrap_or(engine::BLOCK_BYTES),
        adopts_blocks: args.block_size.is_none(),
        paranoid: args.paranoid,
        ..NewBackup::full(volume_id)
    };
    new.threads = threads(args.threads);
    Ok(new)
}

/// A source that was made ready, and must not change until it is read.
struct Ready<'a> {
    file: FileSource,
    prepared: &'a Prepared,
}

impl Source for Ready<'_> {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, Error> {
        self.file.next_data(offset)
    }

    fn check_len(&self) -> Result<(), Error> {
        self.file.check_len()?;
        self.prepared.check_unchanged()
    }
}

fn summary(created: &Created, seconds: f64, source: &Path) -> String {
    let kind = match &created.parent_id {
        None => "full backup".to_owned(),
        Some(parent) => format!("incremental backup on {parent}"),
    };
    let progress = created.progress;
    let rate = progress.total_bytes as f64 / seconds.max(0.001);
    let mut text = format!(
        "{kind} of {}, volume {}\n{} in {seconds:.1} s ({}/s): {} stored as {} in {}\n",
        render::visible(&source.to_string_lossy()),
        created.volume_id,
        BinaryBytes(progress.total_bytes),
        BinaryBytes(rate as u64),
        BinaryBytes(progress.changed_bytes),
        BinaryBytes(progress.stored_bytes),
        count(created.objects, "object"),
    );
    if progress.unlisted_bytes > 0 {
        text.push_str(&format!(
            "cinderfs: warning: {} changed that the list does not tell; they are stored, but the list is not to be trusted\n",
            BinaryBytes(progress.unlisted_bytes)
        ));
    }
    text
}
