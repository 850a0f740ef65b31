//! Opened objects, kept for the next read.
//!
//! Problem: a read of a chain touches objects all over the store, an incremental may have 100,000 of them, and a process
//! may have 1,024 files open. Idea: the most recently used ones stay open.
//!
//! Who wants an object that somebody else is opening waits for that: each question is a journey to a store far away, and one that fails is
//! asked once.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use lru::LruCache;

use super::ObjectReader;
use super::cursors::IdleCursors;
use super::indexing::Indexing;
use crate::codec::Codec;
use crate::codec::windows::{self, IdleWindows};
use crate::error::Result;
use crate::store::Store;
use crate::types::ObjectName;

/// Most objects kept open. With the idle decoders' it stays well below the usual limit of 1,024 open files.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// The opened objects of a store.
pub struct ObjectPool {
    store: Arc<dyn Store>,
    cursors: Arc<IdleCursors>,
    indexing: Arc<Indexing>,
    open: Mutex<LruCache<Key, Arc<ObjectReader>>>,
    /// Those that somebody is opening.
    opening: Mutex<HashMap<Key, Arc<Opening>>>,
}

type Key = (ObjectName, Codec, u64);

/// What becomes of an object that is being opened, for those who wait; `None` until then, and for ever where a bug stopped whoever opened it.
type Opening = OnceLock<Result<Arc<ObjectReader>>>;

impl ObjectPool {
    /// A pool for `store` that keeps idle decoders of about `idle_decoder_bytes_max` bytes.
    pub fn new(store: Arc<dyn Store>, idle_decoder_bytes_max: usize, indexing: Arc<Indexing>) -> Self {
        let cursors = Arc::new(IdleCursors::new(idle_decoder_bytes_max));
        let idle: Weak<dyn IdleWindows> = Arc::downgrade(&(cursors.clone() as Arc<dyn IdleWindows>));
        windows::add_idle(idle);
        let open = Mutex::new(LruCache::new(OPEN_MAX));
        Self { store, cursors, indexing, open, opening: Mutex::default() }
    }

    /// The object `name`, which is compressed as `codec` says and should hold `len_bytes` plain bytes; `points` is what its backup
    /// tells of restart points, as [`format::points`](crate::format::points) writes it.
    pub fn get(
        &self,
        name: ObjectName,
        codec: Codec,
        len_bytes: u64,
        points: Option<&Arc<str>>,
    ) -> Result<Arc<ObjectReader>> {
        let key = (name, codec, len_bytes);
        let known = self.lock().get(&key).cloned();
        if let Some(reader) = known.as_ref().filter(|reader| !reader.is_stale()) {
            return Ok(reader.clone());
        }
        // Opened without the lock: a slow store must not stop readers of what is open.
        let opening = self.opening().entry(key.clone()).or_default().clone();
        let opened = opening.get_or_init(|| self.open(&key, points, known)).clone();
        let mut openings = self.opening();
        if openings.get(&key).is_some_and(|other| Arc::ptr_eq(other, &opening)) {
            openings.remove(&key);
        }
        opened
    }

    /// Opens an object; `known` is a reader of it that is to be replaced.
    fn open(
        &self,
        key: &Key,
        points: Option<&Arc<str>>,
        known: Option<Arc<ObjectReader>>,
    ) -> Result<Arc<ObjectReader>> {
        let (name, codec, len_bytes) = key;
        let source = self.store.open(name)?;
        let (cursors, indexing) = (self.cursors.clone(), self.indexing.clone());
        let told = points.cloned();
        let reader = ObjectReader::new(name.clone(), *codec, *len_bytes, told, source, cursors, indexing);
        if let Some(known) = known {
            reader.inherit(&known);
        }
        let mut open = self.lock();
        // Somebody may have opened it between our looks; two readers of one object would decode it twice.
        if let Some(other) = open.get(key)
            && !other.is_stale()
        {
            return Ok(other.clone());
        }
        let replaced = open.push(key.clone(), reader.clone());
        drop(open);
        if let Some((_, old)) = replaced {
            old.retire();
        }
        Ok(reader)
    }

    /// Saves the restart points of all opened objects.
    pub fn keep_indexes(&self) {
        let open: Vec<_> = self.lock().iter().map(|(_, reader)| reader.clone()).collect();
        open.iter().for_each(|reader| reader.keep_index());
    }

    /// The names of all opened objects.
    pub fn opened(&self) -> Vec<ObjectName> {
        self.lock().iter().map(|((name, ..), _)| name.clone()).collect()
    }

    /// Closes objects that are gone, each once nobody reads it.
    pub fn close(&self, names: &HashSet<ObjectName>) {
        let mut open = self.lock();
        let keys: Vec<_> =
            open.iter().map(|(key, _)| key).filter(|key| names.contains(&key.0)).cloned().collect();
        let closed: Vec<_> = keys.iter().filter_map(|key| open.pop(key)).collect();
        // Dropped without the lock: that may cost I/O.
        drop(open);
        drop(closed);
    }

    /// What is shared about restart points.
    pub(crate) fn indexing(&self) -> &Indexing {
        &self.indexing
    }

    /// The store that the objects are in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Key, Arc<ObjectReader>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opening(&self) -> MutexGuard<'_, HashMap<Key, Arc<Opening>>> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::super::NothingElse;
    use super::*;
    use crate::cache_dir::CacheDir;
    use crate::cache_dir::seek_indexes::SeekIndexStore;
    use crate::store::memory::MemoryStore;
    use crate::workers::Workers;

    const LEN: u64 = 400_000;

    fn name(n: usize) -> ObjectName {
        ObjectName::parse(&format!("object-{n}")).unwrap()
    }

    /// With little to find twice, so that a stream of it has many blocks, between which points may lie.
    fn noise(len: usize) -> Vec<u8> {
        let mut seed = 1u64;
        let noise = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u8 & 15
        });
        noise.take(len).collect()
    }

    /// A pool over many objects of the same bytes, with points in `folder`.
    fn pool(folder: &Path, workers: &Arc<Workers>) -> (ObjectPool, Arc<SeekIndexStore>) {
        let plain = noise(LEN as usize);
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&plain).unwrap();
        let stored = encoder.finish().unwrap();
        let store = MemoryStore::new();
        (0..=OPEN_MAX.get()).for_each(|n| store.insert(name(n), stored.clone()));
        let indexes = SeekIndexStore::open(&CacheDir::open(folder).unwrap(), 1 << 30).unwrap();
        let indexes = Arc::new(indexes);
        let indexing = Indexing::new(Some(indexes.clone()), workers.clone(), true);
        let indexing = Arc::new(indexing.with_spacing(Some(60_000)));
        (ObjectPool::new(Arc::new(store), 1 << 20, indexing), indexes)
    }

    fn get(pool: &ObjectPool, n: usize) -> Arc<ObjectReader> {
        pool.get(name(n), Codec::Zlib, LEN, None).unwrap()
    }

    fn read(reader: &ObjectReader, offset: u64) {
        reader.read_at(&mut [0], offset, &mut NothingElse).unwrap();
    }

    fn files(indexes: &SeekIndexStore) -> usize {
        std::fs::read_dir(indexes.path()).unwrap().count()
    }

    #[track_caller]
    fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < end, "expected {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_opens_an_object_does_not_save_the_points_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let workers = Arc::new(Workers::new(1));
        let (pool, indexes) = pool(folder.path(), &workers);
        let (release, held) = mpsc::channel::<()>();
        assert!(workers.submit(move || {
            let _ = held.recv();
        }));
        read(&get(&pool, 0), LEN - 1);
        (1..=OPEN_MAX.get()).for_each(|n| drop(get(&pool, n)));
        assert_eq!(pool.lock().len(), OPEN_MAX.get());
        assert_eq!(files(&indexes), 0, "the worker is busy");
        drop(release);
        wait_until("the points of the object that was closed", || files(&indexes) == 1);
    }

    #[test]
    fn states_that_others_leave_no_room_for_go_to_a_file_and_not_away() {
        let folder = tempfile::tempdir().unwrap();
        let workers = Arc::new(Workers::new(1));
        let (pool, indexes) = pool(folder.path(), &workers);
        let reader = get(&pool, 0);
        read(&reader, LEN / 2);
        let noted = reader.turns.lock().index.unsaved();
        assert!((2..8).contains(&noted), "{noted} points");
        pool.indexing.account(0, 1 << 30);
        read(&reader, LEN / 2 + 1);
        wait_until("a file", || files(&indexes) == 1 && reader.turns.lock().index.held_bytes() == 0);
        assert_eq!(reader.turns.lock().index.entries().len(), noted);
    }

    /// A worker that waits until the sender is dropped, with a queue behind it that is full.
    fn busy(workers: &Workers) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        assert!(workers.submit(move || {
            begun.send(()).unwrap();
            let _ = held.recv();
        }));
        has_begun.recv().unwrap();
        while workers.submit(|| ()) {}
        release
    }

    #[test]
    fn idle_objects_leave_room_for_the_points_of_those_that_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let workers = Arc::new(Workers::new(1));
        let (pool, _) = pool(folder.path(), &workers);
        // Nobody had time to pack the points of any of them, and nobody reads them again.
        let release = busy(&workers);
        let idle = (0..OPEN_MAX.get() - 1).find(|&n| {
            read(&get(&pool, n), LEN - 1);
            !pool.indexing.has_room()
        });
        let idle = idle.expect("objects that fill the memory for states");
        drop(release);
        wait_until("an empty queue", || {
            let (sender, done) = mpsc::channel();
            workers.submit(move || sender.send(()).unwrap()) && done.recv().is_ok()
        });
        let active = get(&pool, idle + 1);
        wait_until("points of the object that is read", || {
            read(&active, 0);
            read(&active, LEN - 1);
            !active.turns.lock().index.entries().is_empty()
        });
        assert!((0..idle).any(|n| !get(&pool, n).turns.lock().index.entries().is_empty()), "theirs are kept");
    }

    #[test]
    fn what_was_decoded_without_room_for_points_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let (pool, _) = pool(folder.path(), &Arc::new(Workers::new(0)));
        let reader = get(&pool, 0);
        pool.indexing.account(0, 1 << 30);
        read(&reader, LEN / 2);
        pool.indexing.account(1 << 30, 0);
        read(&reader, LEN - 1);
        let first = reader.turns.lock().index.entries()[0].plain_offset;
        assert!(first > LEN / 2, "no point was noted before {first}");
        assert_eq!(reader.known_to(), 0);
        for _ in 0..100 {
            if reader.explore().unwrap() == LEN {
                break;
            }
        }
        assert_eq!(reader.known_to(), LEN);
        let first = reader.turns.lock().index.entries()[0].plain_offset;
        assert!(first < LEN / 4, "explored, and still no point before {first}");
        // Without any room there is an end all the same.
        let reader = get(&pool, 1);
        pool.indexing.account(0, 1 << 30);
        assert_eq!(reader.explore().unwrap_err().kind(), crate::error::ErrorKind::LimitExceeded);
    }

    /// Panics once when a worker reads it.
    struct Panicking {
        inner: Arc<dyn crate::store::ObjectSource>,
        panics: std::sync::atomic::AtomicBool,
    }

    impl crate::store::ObjectSource for Panicking {
        fn stat(&self) -> &crate::store::ObjectStat {
            self.inner.stat()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            let is_worker = std::thread::current().name() == Some("worker");
            let panics = is_worker && self.panics.swap(false, std::sync::atomic::Ordering::AcqRel);
            assert!(!panics, "a bug");
            self.inner.read_at(buf, offset)
        }
    }

    #[test]
    fn a_job_that_panics_does_not_end_the_packing_of_an_object() {
        let folder = tempfile::tempdir().unwrap();
        let workers = Arc::new(Workers::new(1));
        let (pool, indexes) = pool(folder.path(), &workers);
        let panics = std::sync::atomic::AtomicBool::new(true);
        // Packing a point of zstd looks at the object once more.
        let len = 4 << 20;
        let stored = zstd::encode_all(std::io::Cursor::new(noise(len)), 3).unwrap();
        let store = MemoryStore::new();
        store.insert(name(0), stored);
        let source = Arc::new(Panicking { inner: store.open(&name(0)).unwrap(), panics });
        let indexing = Indexing::new(Some(indexes.clone()), workers, true).with_spacing(Some(200_000));
        let (cursors, indexing) = (pool.cursors.clone(), Arc::new(indexing));
        let reader =
            ObjectReader::new(name(0), Codec::Zstd, len as u64, None, source.clone(), cursors, indexing);
        wait_until("points that are saved", || {
            read(&reader, 0);
            read(&reader, len as u64 - 1);
            files(&indexes) == 1
        });
        assert!(!source.panics.load(std::sync::atomic::Ordering::Acquire), "nothing panicked");
    }
}
