//! The command line's grammar: the verbs, and the words that several of them share.
//!
//! Each verb's own words stand beside its code. Doc comments here are what `--help` prints.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::cache;
use super::exit::Failure;
use super::place::Place;
use super::render::Format;
use super::signals::is_interrupted;
use crate::cache_dir::CacheDir;
use crate::catalog::{Catalog, CatalogOptions};
use crate::error::ErrorKind;
use crate::store::deadline::{self, DeadlineStore, TIMEOUT_SECONDS, TIMEOUT_SECONDS_MAX};
use crate::store::objects::ObjectStore;
use crate::types::ObjectName;
use crate::writer::Target;

const EXAMPLES: &str = "\
Examples:
  cinderfs list /backup_mount                        every backup, newest first
  cinderfs mount /backup_mount /mnt                  every backup as an image
  cinderfs show /backup_mount 52e81dfa -f json       one backup, for scripts
  cinderfs map /backup_mount db@latest               what lies where in it
  cinderfs diff /backup_mount 52e81dfa 37bf0e4f      what changed between two
  cinderfs audit /backup_mount db@latest /dev/vg/db  is that volume as it was?
  cinderfs restore /backup_mount db@latest disk.img  one backup to a file
  cinderfs create /backup_mount disk.img             a new backup
  cinderfs consolidate /backup_mount db@latest       a full one of a chain
  cinderfs index /backup_mount                       makes first reads quick
  cinderfs hydrate /backup_mount db@latest           a whole image, kept here
  cinderfs delete /backup_mount 52e81dfa --dry-run   what would go
  cinderfs repair /backup_mount 52e81dfa --dry-run   what could be mended
  cinderfs record export /backup_mount --command     for Cinder's lost database

Exit codes:
  0         done
  1         failed; stderr says why
  2         wrong usage
  3         finished, but some data is damaged or missing
  10        store not found
  12        access denied by the store
  130, 143  ended by SIGINT, SIGTERM

Environment:
  CINDERFS_LOG        what to log to stderr: error, warn (the default), info,
                      debug, trace, or by module: cinderfs::object=trace,warn
  CINDERFS_CACHE_DIR  where the index, the disk cache and hydrated images lie:
                      /var/cache/cinderfs as root, $XDG_CACHE_HOME/cinderfs or
                      ~/.cache/cinderfs for others unless told; may be deleted
                      at any time";

/// Every OpenStack Cinder volume backup as a verified, read-only disk image
///
/// Reads the backups that Cinder's POSIX, NFS, GlusterFS, Swift, S3 and GCS drivers wrote, full and incremental, without OpenStack.
/// Every block is compared with its digest before a byte of it is handed out. Reading never changes the store.
#[derive(Parser, Debug)]
#[command(name = "cinderfs", version, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Words that every verb takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Log more: -v info, -vv debug, -vvv trace
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Log less and show no progress: -q errors only, -qq nothing
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
}

impl Global {
    /// `-v` counted up and `-q` counted down from 0.
    pub(crate) fn verbosity(&self) -> i16 {
        i16::from(self.verbose) - i16::from(self.quiet)
    }
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    #[cfg(feature = "fuse")]
    Mount(super::mount::MountArgs),
    #[cfg(feature = "fuse")]
    #[command(alias = "unmount")]
    Umount(super::umount::UmountArgs),
    Index(super::index::IndexArgs),
    List(super::list::ListArgs),
    Show(super::show::ShowArgs),
    Map(super::map::MapArgs),
    Diff(super::diff::DiffArgs),
    Audit(super::audit::AuditArgs),
    Create(super::create::CreateArgs),
    Consolidate(super::consolidate::ConsolidateArgs),
    Restore(super::restore::RestoreArgs),
    Hydrate(super::hydrate::HydrateArgs),
    Delete(super::delete::DeleteArgs),
    Repair(super::repair::RepairArgs),
    Record(super::record::RecordArgs),
    Verify(super::verify::VerifyArgs),
}

impl Verb {
    /// Whether it goes on serving others, who do not see its stderr.
    pub(crate) fn is_daemon(&self) -> bool {
        match self {
            #[cfg(feature = "fuse")]
            Self::Mount(_) => true,
            #[cfg(feature = "fuse")]
            Self::Umount(_) => false,
            Self::Index(_)
            | Self::List(_)
            | Self::Show(_)
            | Self::Map(_)
            | Self::Diff(_)
            | Self::Audit(_)
            | Self::Create(_)
            | Self::Consolidate(_)
            | Self::Restore(_)
            | Self::Hydrate(_) => false,
            Self::Delete(_) | Self::Repair(_) | Self::Record(_) | Self::Verify(_) => false,
        }
    }
}

/// How to print rows or fields, as in the OpenStack client.
#[derive(Args, Debug)]
pub(crate) struct OutputArgs {
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Print this column only; may be repeated
    #[arg(short, long = "column", value_name = "COLUMN")]
    columns: Vec<String>,
}

impl OutputArgs {
    /// As if the call had said so.
    pub(crate) fn new(format: Format, columns: Vec<String>) -> Self {
        Self { format, columns }
    }

    /// Which of the `known` columns to print, in their own order, as the OpenStack client does; all unless told.
    pub(crate) fn choose(&self, known: &[&str]) -> Result<Vec<usize>, Failure> {
        if self.columns.is_empty() {
            return Ok((0..known.len()).collect());
        }
        let mut chosen =
            self.columns.iter().map(|word| column(known, word)).collect::<Result<Vec<_>, _>>()?;
        chosen.sort_unstable();
        chosen.dedup();
        Ok(chosen)
    }

    /// Whether the call says which columns it wants.
    pub(crate) fn names_columns(&self) -> bool {
        !self.columns.is_empty()
    }

    /// Whether the call says that it wants this one.
    pub(crate) fn names(&self, column: &str) -> bool {
        self.columns.iter().any(|word| word.eq_ignore_ascii_case(column))
    }
}

/// The column that a word names, whatever its case.
pub(crate) fn column(known: &[&str], word: &str) -> Result<usize, Failure> {
    known.iter().position(|title| title.eq_ignore_ascii_case(word)).ok_or_else(|| {
        Failure::new(ErrorKind::Usage, format!("there is no column {word:?}"))
            .hint(format!("the columns are {}", known.join(", ")))
    })
}

/// The store's word
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub(crate) struct StoreWord {
    /// Where the backups are: a directory (Cinder's `backup_posix_path`, a mounted share, a copy), its file:// URL, an NFS share as
    /// HOST:/PATH, a GlusterFS volume as glusterfs://HOST/VOLUME, a bucket as s3://BUCKET?endpoint=URL, swift:CONTAINER or
    /// gs://BUCKET (without its name for all of them), or the cinder.conf that says all this
    #[arg(value_name = "STORE")]
    pub(crate) location: OsString,
}

#[cfg(feature = "fuse")]
impl StoreWord {
    /// The word as another process in another working directory has to be given it.
    pub(crate) fn for_child(&self, timeout: Option<Duration>) -> Result<OsString, Failure> {
        let word = self.location.clone();
        deadline::in_time(timeout, &self.location, "its place", move || {
            Ok(super::place::absolute_word(&word))
        })
    }
}

/// The store
#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct StoreArg {
    #[command(flatten)]
    word: StoreWord,
    /// How long the store may take for an answer, 0 for ever; then reading fails, and so does writing to an object store;
    /// writing to a folder tells what it waits for
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT_SECONDS, value_parser = clap::value_parser!(u64).range(..=TIMEOUT_SECONDS_MAX))]
    store_timeout: u64,
    /// Found out once; holds the mount of a share.
    #[arg(skip)]
    place: OnceCell<Place>,
}

impl StoreArg {
    /// The store that a word names, for a verb that can do without one.
    pub(crate) fn at(location: OsString) -> Self {
        Self { word: StoreWord { location }, store_timeout: TIMEOUT_SECONDS, place: OnceCell::new() }
    }

    /// How long the store may take for an answer; `None` for ever.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        (self.store_timeout > 0).then(|| Duration::from_secs(self.store_timeout))
    }

    /// Where the word leads. A share that is not mounted is mounted for as long as this argument lives.
    pub(crate) fn place(&self) -> Result<&Place, Failure> {
        self.place_in(self.timeout())
    }

    /// The same; fails when the store does not answer in that time.
    pub(crate) fn place_in(&self, timeout: Option<Duration>) -> Result<&Place, Failure> {
        if let Some(place) = self.place.get() {
            return Ok(place);
        }
        let word = self.word.location.clone();
        let place = deadline::in_time(timeout, &self.word.location, "its place", move || {
            Place::resolve(&word, timeout)
        })?;
        Ok(self.place.get_or_init(|| place))
    }

    /// The store that the word names, for a verb that writes to it.
    pub(crate) fn writable(&self) -> Result<Writable, Failure> {
        let place = self.place()?;
        if let Some(path) = place.directory() {
            return Ok(Writable::Folder(path.to_owned()));
        }
        let store = place.open(&self.word.location, self.timeout())?.store();
        let location = store.location().to_owned();
        match store.into_objects() {
            Some(store) => Ok(Writable::Objects(store)),
            None => Err(Failure::new(ErrorKind::Usage, format!("{location} can only be read"))),
        }
    }

    /// The directory that the word names, which exists; `None` for a store that is in none.
    pub(crate) fn directory(&self) -> Result<Option<PathBuf>, Failure> {
        Ok(self.place()?.directory().map(Path::to_owned))
    }

    /// Adds to why the store could not be read what to do about it.
    pub(crate) fn advise(&self, failure: Failure) -> Failure {
        match self.place.get() {
            Some(place) => place.advise(failure),
            None => failure,
        }
    }

    /// The same for a backup that was to be written into this container.
    pub(crate) fn advise_of_container(&self, failure: Failure, container: Option<&ObjectName>) -> Failure {
        match (self.place.get(), container) {
            (Some(place), Some(_)) => place.advise_of_containers(failure),
            _ => failure,
        }
    }

    /// Fails when the cache directory lies inside the store.
    pub(crate) fn refuse_cache_inside(&self, cache_dir: &Path) -> Result<(), Failure> {
        match self.place()?.directory() {
            Some(path) => cache::refuse_inside_store(cache_dir, path),
            None => Ok(()),
        }
    }

    /// Opens the store and reads which backups it holds.
    pub(crate) fn catalog(&self) -> Result<Catalog, Failure> {
        self.catalog_with(options())
    }

    /// The same with restart points of earlier runs, for a command that reads data.
    pub(crate) fn catalog_to_read(&self) -> Result<Catalog, Failure> {
        let catalog = self.catalog_with(self.options_to_read()?)?;
        // A command keeps little else, so what comes from far away may take all the memory that makes it faster.
        catalog.store().allow_ahead(u64::MAX);
        Ok(catalog)
    }

    /// A catalog for a command that writes to the store: once it is open, reading waits for the store as writing does.
    pub(crate) fn catalog_to_write(&self) -> Result<Catalog, Failure> {
        self.waiting_catalog(options())
    }

    /// The same with restart points of earlier runs.
    pub(crate) fn catalog_to_read_and_write(&self) -> Result<Catalog, Failure> {
        self.waiting_catalog(self.options_to_read()?)
    }

    fn options_to_read(&self) -> Result<CatalogOptions, Failure> {
        if let Some(cache_dir) = CacheDir::location() {
            self.refuse_cache_inside(&cache_dir)?;
        }
        Ok(CatalogOptions { seek_indexes: cache::seek_indexes_if_any(), ..options() })
    }

    fn waiting_catalog(&self, options: CatalogOptions) -> Result<Catalog, Failure> {
        let store = self.store()?;
        let catalog = Catalog::open(store.clone(), options).map_err(|error| self.advise(error.into()))?;
        store.disarm()?;
        Ok(catalog)
    }

    /// The same with settings of the caller's.
    pub(crate) fn catalog_with(&self, options: CatalogOptions) -> Result<Catalog, Failure> {
        Catalog::open(self.store()?, options).map_err(|error| self.advise(error.into()))
    }

    fn store(&self) -> Result<Arc<DeadlineStore>, Failure> {
        let opened = self.place()?.open(&self.word.location, self.timeout())?;
        // So it still looks for a signal now and then.
        let timeout = self.timeout().unwrap_or(FOR_EVER);
        let store = DeadlineStore::cancelled_by(opened.store(), timeout, is_interrupted);
        store.arm();
        Ok(Arc::new(store))
    }
}

/// Where a verb writes to.
pub(crate) enum Writable {
    /// A store in this directory.
    Folder(PathBuf),
    /// One that objects are put into.
    Objects(Arc<dyn ObjectStore>),
}

impl Writable {
    /// What the writer knows it by.
    pub(crate) fn target(&self) -> Target<'_> {
        match self {
            Self::Folder(path) => path.into(),
            Self::Objects(store) => store.into(),
        }
    }

    /// What people call it.
    pub(crate) fn location(&self) -> &Path {
        match self {
            Self::Folder(path) => path,
            Self::Objects(store) => Path::new(store.location()),
        }
    }
}

fn options() -> CatalogOptions {
    CatalogOptions { cache_bytes_max: CACHE_BYTES_MAX, ..CatalogOptions::default() }
}

/// How many threads to work on: as many as told, else one per processor.
pub(crate) fn threads(told: Option<u64>) -> usize {
    match told {
        Some(threads) => usize::try_from(threads).unwrap_or(1),
        None => thread::available_parallelism().map_or(1, usize::from),
    }
}

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// Bound on the block cache of one command, in bytes. Each block is read once, so it only has to hold what threads
/// decode for each other.
const CACHE_BYTES_MAX: u64 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    /// Terminals are 80 columns wide: what is laid out by hand fits, and what does not is left to clap, whole.
    #[test]
    fn nothing_in_the_help_is_broken_twice() {
        let top = Cli::command();
        for verb in std::iter::once(&top).chain(top.get_subcommands()) {
            let Some(help) = verb.get_after_long_help() else { continue };
            for paragraph in help.to_string().split("\n\n") {
                let is_prose = !paragraph.contains('\n') && !paragraph.starts_with(' ');
                let fits = paragraph.lines().all(|line| line.chars().count() < 80);
                assert!(is_prose || fits, "{}: {paragraph}", verb.get_name());
            }
        }
        let help = top.get_after_long_help().unwrap().to_string();
        for word in ["cinderfs index", "cinderfs hydrate", "disk cache", "hydrated images"] {
            assert!(help.contains(word), "{word}");
        }
    }

    #[test]
    fn columns_keep_their_order_and_ignore_case() {
        let output = |columns: &[&str]| OutputArgs {
            format: Format::Table,
            columns: columns.iter().map(|&word| word.to_owned()).collect(),
        };
        let known = ["ID", "Name", "Created At"];
        assert_eq!(output(&[]).choose(&known).unwrap(), [0, 1, 2]);
        assert_eq!(output(&["created at", "ID", "ID"]).choose(&known).unwrap(), [0, 2]);
        assert_eq!(output(&["ID", "Sise"]).choose(&known).unwrap_err().code(), 2);
    }
}
