//! Which backups a store holds, and which are unusable and why.
//!
//! Problem: there is no database to ask. What backups exist, what they build on, and whether they can be read follows
//! from the `_metadata` documents alone, and the store changes while a mount looks at it. Idea: a scan lists these
//! documents, reads those that are new or changed, and makes a [`Snapshot`] that never changes; front-ends ask for a new
//! one whenever somebody looks.
//!
//! Invariants: each `_metadata` document is behind an entry with a unique id, and has a reason there where it cannot be
//! used (copies of one backup share an entry, and so do a readable backup and torn documents under its id); a backup in
//! progress has no such document and is not there; what was known stays known when the store cannot be listed.

mod closing;
mod current;
mod entries;
mod scan;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use self::current::{Current, SCAN_INTERVAL};
pub use self::entries::{Entry, Snapshot};
use self::scan::Scan;
use crate::backup::Backup;
use crate::block::VerifiedBlock;
use crate::byte_lru::ByteLru;
use crate::cache_dir::blocks::BlockRing;
use crate::cache_dir::seek_indexes::SeekIndexStore;
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::SHA256FILE_SUFFIX;
use crate::image::{self, Copies, Engine, Image, LostBlock};
use crate::object::indexing::Indexing;
use crate::open_files;
use crate::store::{ListedObject, ObjectVersion, Store};
use crate::types::{BackupId, ObjectName};
use crate::workers::Workers;

/// For how long a document is believed to be damaged that the store says is unchanged: a disk or a server may have given wrong bytes for once, and a mount
/// should not have to be made anew for that. Reading it again takes its share of the scanning's time.
const DAMAGE_BELIEVED: Duration = Duration::from_secs(20);

/// Opened backups are kept up to this, in bytes: about a million objects.
const BACKUP_BYTES_MAX: u64 = 64 << 20;

/// And of that, what was read before anybody asked for it.
const UNASKED_BACKUP_BYTES_MAX: u64 = BACKUP_BYTES_MAX / 2;

/// Opened images are kept up to this, in bytes.
const IMAGE_BYTES_MAX: u64 = 64 << 20;

/// Most objects in all backups of a chain together. An open image holds all of them, at about 100 bytes each.
const CHAIN_OBJECTS_MAX: u64 = 4_000_000;

/// Other backups asked for a copy of a lost block. Each costs a look at one of its digests.
const COPIES_TRIED_MAX: usize = 256;

/// Threads that work ahead, at most: beyond, the store is what limits.
const WORKERS_MAX: usize = 16;

/// Settings of a [`Catalog`].
#[derive(Clone, Debug)]
pub struct CatalogOptions {
    /// Bound on the block cache, in bytes.
    pub cache_bytes_max: u64,
    /// Bound on decoders that wait to go on, in bytes. Each stream that is being read needs one: 60 KiB for zlib, 4 MiB for
    /// bz2, 3 MiB for zstd as Cinder writes it. With fewer than streams, each read starts its stream anew.
    pub idle_decoder_bytes_max: usize,
    /// Whether restart points are noted and used. Those that the metadata tells are used in any case.
    pub restart_points: bool,
    /// Where restart points are kept between runs, if anywhere.
    pub seek_indexes: Option<Arc<SeekIndexStore>>,
    /// How far apart restart points are, in plain bytes, whatever the codec; `None` for what suits each one. For tests and
    /// tuning: close points cost memory and time.
    pub restart_spacing_bytes: Option<u64>,
    /// Threads that work ahead of readers; with 0 nothing is done ahead, and points are not kept.
    pub workers: usize,
    /// Where verified blocks are kept between runs, if anywhere.
    pub disk_cache: Option<Arc<BlockRing>>,
}

impl Default for CatalogOptions {
    fn default() -> Self {
        Self {
            cache_bytes_max: 256 << 20,
            idle_decoder_bytes_max: 32 << 20,
            restart_points: true,
            seek_indexes: None,
            restart_spacing_bytes: None,
            workers: thread::available_parallelism().map_or(1, Into::into).min(WORKERS_MAX),
            disk_cache: None,
        }
    }
}

/// The backups of one store, kept up to date, and their images. A clone is the same catalog.
#[derive(Clone)]
pub struct Catalog(Arc<Shared>);

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("location", &self.store().location()).finish_non_exhaustive()
    }
}

struct Shared {
    engine: Arc<Engine>,
    current: Mutex<Current>,
    scanning: Mutex<Scan>,
    is_scanning: AtomicBool,
    backups: Mutex<Backups>,
    images: Mutex<ByteLru<BackupId, Opened>>,
    /// What an image counts for at least.
    image_bytes_min: u64,
}

/// Opened backups, by document and version.
type Backups = ByteLru<(ObjectName, ObjectVersion), Arc<Backup>>;

/// An image, or why there is none, and of which versions of which documents.
#[derive(Clone)]
struct Opened {
    documents: Vec<ObjectVersion>,
    image: Result<Arc<Image>>,
    at: Instant,
}

impl Catalog {
    /// A catalog of `store`; scans it once.
    pub fn open(store: Arc<dyn Store>, options: CatalogOptions) -> Result<Self> {
        let workers = Arc::new(Workers::new(options.workers));
        let indexing = Indexing::new(options.seek_indexes, workers, options.restart_points)
            .with_spacing(options.restart_spacing_bytes);
        let mut engine =
            Engine::new(store, options.cache_bytes_max, options.idle_decoder_bytes_max, Arc::new(indexing));
        if let Some(disk) = options.disk_cache {
            engine = engine.with_disk(disk);
        }
        let engine = Arc::new(engine);
        let mut scan = Scan::default();
        let started = Instant::now();
        let backups = Mutex::new(ByteLru::new(BACKUP_BYTES_MAX));
        let snapshot = scan.run(&**engine.store(), &|name, backup| keep_unasked(&backups, name, backup))?;
        let shared = Arc::new(Shared {
            current: Mutex::new(Current::new(snapshot, started)),
            scanning: Mutex::new(scan),
            is_scanning: AtomicBool::new(false),
            backups,
            images: Mutex::new(ByteLru::new(IMAGE_BYTES_MAX)),
            image_bytes_min: IMAGE_BYTES_MAX / open_files::images_max(),
            engine,
        });
        let copies: Weak<dyn Copies> = Arc::downgrade(&(shared.clone() as Arc<dyn Copies>));
        shared.engine.set_copies(copies);
        Ok(Self(shared))
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        self.0.engine.store()
    }

    /// The current state, from a new scan when the last one is older than a moment; while another thread is at it, the
    /// last known state. The error when the store cannot be listed; [`snapshot`](Self::snapshot) still knows what it held.
    pub fn refresh(&self) -> Result<Arc<Snapshot>> {
        self.0.refresh()
    }

    /// The state now, from a scan however short ago the last one was. What has not changed since is not read again.
    pub fn rescan(&self) -> Result<Arc<Snapshot>> {
        self.0.scan(lock(&self.0.scanning))
    }

    /// The state at the last scan.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot()
    }

    /// The image of a backup; the error says why it has none. Opened images are shared and kept for a while.
    pub fn image(&self, entry: &Entry) -> Result<Arc<Image>> {
        self.0.image(entry)
    }

    /// Tells that a backup will be read from its beginning on: while its image is opened, a store far away is asked for the objects that come
    /// first, as far as the chain's documents are in memory. Nobody waits for that.
    pub fn expect(&self, entry: &Entry) {
        let snapshot = self.snapshot();
        let Ok(chain) = snapshot.chain(&entry.id) else { return };
        if let Some(layers) = chain.iter().map(|entry| self.0.held_backup(entry)).collect() {
            image::expect(&self.0.engine, layers);
        }
    }

    /// The objects of a backup, whether or not its chain has an image. Opened backups are shared and kept for a while.
    pub fn backup(&self, entry: &Entry) -> Result<Arc<Backup>> {
        self.0.backup(entry)
    }

    /// About how much memory the states of restart points take now, in bytes.
    pub fn restart_state_bytes(&self) -> u64 {
        self.0.engine.restart_state_bytes()
    }

    /// Saves the restart points that were noted and not saved yet. To be called before the process ends.
    pub fn keep_indexes(&self) {
        self.0.engine.keep_indexes();
    }
}

impl Copies for Shared {
    /// Asks the other backups of the same volume first, the newest first, then those of other volumes.
    fn find(&self, lost: &LostBlock<'_>) -> Option<(Arc<VerifiedBlock>, BackupId)> {
        let snapshot = self.snapshot();
        let summary = &lost.backup.summary;
        let is_sibling = |entry: &Entry| entry.volume_id.as_ref() == Some(&summary.volume_id);
        let others =
            || snapshot.entries().rev().filter(|entry| entry.problem.is_none() && entry.id != summary.id);
        let siblings = others().filter(|entry| is_sibling(entry));
        let strangers = others().filter(|entry| !is_sibling(entry));
        siblings.chain(strangers).take(COPIES_TRIED_MAX).find_map(|entry| {
            let block = self.image(entry).ok()?.copy_of(lost)?;
            Some((block, entry.id.clone()))
        })
    }
}

impl Shared {
    fn store(&self) -> &Arc<dyn Store> {
        self.engine.store()
    }

    fn image(&self, entry: &Entry) -> Result<Arc<Image>> {
        let snapshot = self.snapshot();
        let chain = snapshot.chain(&entry.id)?;
        let mut documents: Vec<_> = chain.iter().map(|entry| entry.metadata_stat.version.clone()).collect();
        let known = lock(&self.images).get(&entry.id).cloned();
        // What is opened for the first time tells its version itself.
        match known.is_some().then(|| self.digest_version(entry)).transpose() {
            Ok(None) => {}
            Ok(Some(version)) => documents.push(version),
            // What was known stays known when the store fails: the image may live on what is cached of it. In a store that
            // was deleted or unmounted nothing is found, so that alone does not say that the digests are gone.
            Err(error) => {
                let had_digests = known.as_ref().filter(|opened| {
                    opened.image.is_ok()
                        && opened.documents.len() > documents.len()
                        && opened.documents.starts_with(&documents)
                });
                if let Some(opened) = had_digests
                    && match error.kind() {
                        ErrorKind::StoreIo => true,
                        ErrorKind::ObjectNotFound => self.scan(lock(&self.scanning)).is_err(),
                        _ => false,
                    }
                {
                    return opened.image.clone();
                }
            }
        }
        if let Some(opened) = known.as_ref().filter(|opened| opened.documents == documents) {
            // What the documents are to blame for is believed until they change, or for longer; what the store is, may soon pass.
            let may_pass = opened.image.as_ref().is_err_and(|error| scan::is_of_the_store(error.kind()));
            let believed = if may_pass { SCAN_INTERVAL } else { DAMAGE_BELIEVED };
            if opened.image.is_ok() || opened.at.elapsed() < believed {
                return opened.image.clone();
            }
        }
        let image = self.open_image(&chain);
        if known.is_none()
            && let Some(version) = image.as_ref().ok().and_then(|image| image.hash_table()?.version())
        {
            documents.push(version.clone());
        }
        // Each has a file open, so there may be only so many, however small they are. One is always kept, or each question would open it anew.
        let cost = image.as_ref().map_or(1024, |image| image.memory_bytes().max(self.image_bytes_min));
        let cost = cost.min(IMAGE_BYTES_MAX);
        let opened = Opened { documents, image: image.clone(), at: Instant::now() };
        lock(&self.images).insert(entry.id.clone(), opened, cost);
        for entry in chain {
            self.forget_if_gone(entry);
        }
        image
    }

    fn open_image(&self, chain: &[&Arc<Entry>]) -> Result<Arc<Image>> {
        let objects: u64 = chain.iter().map(|entry| entry.object_count).sum();
        if objects > CHAIN_OBJECTS_MAX {
            let message =
                format!("the chain has {objects} objects, at most {CHAIN_OBJECTS_MAX} are accepted");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        let layers = chain.iter().map(|entry| self.backup(entry)).collect::<Result<Vec<_>>>()?;
        Image::open(&self.engine, layers).map(Arc::new)
    }

    /// An opened backup, if it is in memory.
    fn held_backup(&self, entry: &Entry) -> Option<Arc<Backup>> {
        lock(&self.backups).get(&key_of(entry)).cloned()
    }

    fn backup(&self, entry: &Entry) -> Result<Arc<Backup>> {
        if let Some(backup) = self.held_backup(entry) {
            return Ok(backup);
        }
        let listed = ListedObject { name: entry.metadata_name.clone(), stat: entry.metadata_stat.clone() };
        let backup = Arc::new(Backup::open_listed(&**self.store(), &listed)?);
        if backup.version != entry.metadata_stat.version {
            return Err(Error::new(
                ErrorKind::StoreIo,
                format!("backup metadata {:?} has changed since the store was listed", entry.metadata_name),
            ));
        }
        let cost = (backup.memory_bytes() as u64).min(BACKUP_BYTES_MAX);
        lock(&self.backups).insert(key_of(entry), backup.clone(), cost);
        Ok(backup)
    }

    fn digest_version(&self, entry: &Entry) -> Result<ObjectVersion> {
        let stem = entry.metadata_name.as_str().strip_suffix(crate::format::names::METADATA_SUFFIX);
        let name = ObjectName::parse(&format!("{}{SHA256FILE_SUFFIX}", stem.unwrap_or_default()))?;
        self.store().version_of(&name)
    }
}

fn key_of(entry: &Entry) -> (ObjectName, ObjectVersion) {
    (entry.metadata_name.clone(), entry.metadata_stat.version.clone())
}

/// Keeps what a scan has read, for who opens it next, as long as there is room.
fn keep_unasked(backups: &Mutex<Backups>, name: &ObjectName, backup: Backup) {
    let (key, cost) = ((name.clone(), backup.version.clone()), backup.memory_bytes() as u64);
    let mut backups = lock(backups);
    if backups.bytes() + cost <= UNASKED_BACKUP_BYTES_MAX {
        backups.insert(key, Arc::new(backup), cost);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these protect is replaced whole, so a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
