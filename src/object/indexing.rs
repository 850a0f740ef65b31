//! What happens to restart points behind the readers' backs: packed, saved, found again.
//!
//! Problem: a point as its decoder gives it holds 32 KiB (zlib) to megabytes (zstd), 2 GB have a thousand of them, and they
//! are worth keeping for the next run. Idea: they are packed in the background some at a time, and written to the index
//! store when there are enough new ones; then only their places stay in memory.
//!
//! Invariants: states in memory are bounded for the whole process, with or without an index store; losing points costs
//! time only; no reader waits for packing or saving.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sha2::{Digest, Sha256};

use super::holders::Holders;
use super::seek_index::{Entry, SeekIndex, State};
use crate::cache_dir::seek_indexes::{SavedIndex, SavedPoint, SeekIndexKey, SeekIndexStore};
use crate::codec::{Codec, ObjectStream, RestartPoint};
use crate::error::Result;
use crate::store::{ObjectSource, read_exact_at};
use crate::workers::Workers;

/// States in memory, of all objects of a process, in bytes. Packed, they are those of some 16 GB of zlib.
const HELD_BYTES_MAX: i64 = 16 << 20;

/// Bytes of raw states after which an object's are packed: eight of zlib's or more, one of zstd's.
pub(super) const PACK_BYTES: usize = 512 << 10;

/// New points that are worth a file, at least.
const SAVE_MIN: usize = 8;

/// A file is written anew when there is one new point for so many, or for so many bytes of what is written again. With both, a
/// pass of 2 GB writes some megabytes in all, and a process that is killed in the middle of one loses little.
const SAVE_SHARE: usize = 16;
const SAVED_AGAIN_BYTES: u64 = 64 << 10;

/// However long the file is, it is worth writing when a share like this is new: then all writes together come to a few times
/// the last one.
const SAVE_SHARE_MAX: usize = 3;

/// Stored bytes at an object's beginning and at its end that identify it, together with its lengths. A zlib stream ends with the
/// checksum of all plain bytes, a bz2 stream too.
const SAMPLE_BYTES: u64 = 4096;

/// What all objects of a process share.
pub struct Indexing {
    store: Option<Arc<SeekIndexStore>>,
    workers: Arc<Workers>,
    decoders: Arc<Workers>,
    is_on: bool,
    spacing_bytes: Option<u64>,
    held_bytes: AtomicI64,
    holders: Holders,
}

impl Indexing {
    /// Restart points are kept in `store`, where there is one; without `is_on` none are noted or used. As many threads as
    /// `workers` has are kept for decoding ahead.
    pub fn new(store: Option<Arc<SeekIndexStore>>, workers: Arc<Workers>, is_on: bool) -> Self {
        let decoders = Arc::new(Workers::new(workers.threads()));
        let held_bytes = AtomicI64::new(0);
        Self { store, workers, decoders, is_on, spacing_bytes: None, held_bytes, holders: Holders::default() }
    }

    /// The same with points about so many plain bytes apart, instead of what suits the codec.
    #[must_use]
    pub fn with_spacing(self, spacing_bytes: Option<u64>) -> Self {
        Self { spacing_bytes: spacing_bytes.map(|bytes| bytes.max(1)), ..self }
    }

    /// Bytes of states in memory.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed).max(0).unsigned_abs()
    }

    /// Who does what may wait for readers: reading ahead, packing and saving points.
    pub(crate) fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// Who decodes ahead, inside one stream. Not the same threads: those may all be waiting for their turn with that stream,
    /// which comes when the block is decoded that is queued behind them.
    pub(crate) fn decoders(&self) -> &Arc<Workers> {
        &self.decoders
    }

    /// How far apart points of an object of `len_bytes` plain bytes should be; `None` when it needs none.
    pub(crate) fn spacing_bytes(&self, codec: Codec, len_bytes: u64) -> Option<u64> {
        let usual = (codec.spacing_bytes()?, codec.indexed_above_bytes()?);
        let (spacing, above) = self.spacing_bytes.map_or(usual, |bytes| (bytes, bytes));
        (self.is_on && len_bytes > above).then_some(spacing)
    }

    /// How far apart two points may be, in plain bytes, for what lies between them to be as good as indexed.
    pub(super) fn dense_bytes(&self, codec: Codec) -> u64 {
        let usual = codec.spacing_bytes().max(codec.indexed_above_bytes()).unwrap_or(0);
        let spacing = self.spacing_bytes.unwrap_or(usual);
        spacing.saturating_add(spacing / 2)
    }

    /// Who holds states in memory.
    pub(super) fn holders(&self) -> &Holders {
        &self.holders
    }

    /// Whether there is memory for more states.
    pub(super) fn has_room(&self) -> bool {
        self.held_bytes.load(Ordering::Relaxed) < HELD_BYTES_MAX
    }

    /// Whether so little is left that room should be made, before readers can note nothing.
    pub(super) fn needs_room(&self) -> bool {
        self.held_bytes.load(Ordering::Relaxed) >= HELD_BYTES_MAX / 4 * 3
    }

    /// Whether there is so much that none need be made soon.
    pub(super) fn has_much_room(&self) -> bool {
        self.held_bytes.load(Ordering::Relaxed) < HELD_BYTES_MAX / 2
    }

    /// Accounts for a change of the states that an object holds.
    pub(super) fn account(&self, before: usize, after: usize) {
        self.held_bytes.fetch_add(after as i64 - before as i64, Ordering::Relaxed);
    }

    /// What is known of an object from an earlier run.
    pub(super) fn load(&self, key: &SeekIndexKey) -> Option<SavedIndex> {
        self.store.as_ref()?.load(key)
    }

    /// Deletes what was known of an object and turned out to be wrong.
    pub(super) fn forget(&self, key: &SeekIndexKey) {
        if let Some(store) = &self.store {
            store.forget(key);
        }
    }

    /// Takes points out of the store that turned out to be wrong.
    pub(super) fn keep_some(&self, key: &SeekIndexKey, is_good: &mut dyn FnMut(&SavedPoint) -> bool) {
        if let Some(store) = &self.store {
            store.keep_some(key, is_good);
        }
    }

    /// Whether an index in this state should be written to the store.
    pub(super) fn is_worth_saving(&self, index: &SeekIndex, is_last: bool) -> bool {
        let (unsaved, all) = (index.unsaved(), index.entries().len());
        let again_bytes_max = SAVED_AGAIN_BYTES.saturating_mul(unsaved as u64);
        let is_cheap = unsaved >= all / SAVE_SHARE && index.file_bytes() <= again_bytes_max;
        // Where the disk is full, each further try costs as much and gives as little.
        let is_enough =
            unsaved >= index.failed_at() + SAVE_MIN && (is_cheap || unsaved >= all / SAVE_SHARE_MAX);
        self.store.is_some() && unsaved > 0 && (is_last || is_enough)
    }

    /// Writes an index to the store; states that lie in the `saved` file of before are copied from it.
    pub(super) fn save(
        &self,
        key: &SeekIndexKey,
        known_to: u64,
        entries: &[Entry],
        saved: Option<&SavedIndex>,
        stream: &ObjectStream,
    ) -> Option<Result<SavedIndex>> {
        let store = self.store.as_ref()?;
        let (known_to, mut last) = (Cell::new(known_to), 0);
        let mut points = entries.iter().filter_map(|entry| match point_of(entry, saved) {
            // Of a damaged file, what is good; what is lost of it is no longer known.
            None | Some(Err(_)) => {
                known_to.set(known_to.get().min(last));
                None
            }
            Some(Ok(point)) => {
                last = point.plain_offset;
                let is_raw = matches!(entry.state, State::Raw(_));
                Some(Ok(if is_raw { stream.pack(point) } else { point }))
            }
        });
        Some(store.save_some(key, &known_to, &mut points))
    }
}

/// The point with its state; `None` when that was in a file that is not open.
pub(super) fn point_of(entry: &Entry, saved: Option<&SavedIndex>) -> Option<Result<RestartPoint>> {
    let state = match &entry.state {
        State::Raw(state) | State::Packed(state) | State::Given(state) => Ok(state.clone()),
        State::Saved(position) => saved?.state(*position),
    };
    let (plain_offset, stored_bits) = (entry.plain_offset, entry.stored_bits);
    Some(state.map(|state| RestartPoint { plain_offset, stored_bits, state }))
}

/// What identifies the content of an object: its codec and lengths, and samples of its stored bytes. The same object in a
/// copy of the store, or under another mountpoint, has the same key.
pub(super) fn key_of(codec: Codec, plain_bytes: u64, source: &dyn ObjectSource) -> Result<SeekIndexKey> {
    let stored_bytes = source.stat().len_bytes;
    let mut hasher = Sha256::new();
    hasher.update(b"cinderfs seek index\0");
    hasher.update(codec.name());
    hasher.update(plain_bytes.to_le_bytes());
    hasher.update(stored_bytes.to_le_bytes());
    let mut sample = vec![0; SAMPLE_BYTES.min(stored_bytes) as usize];
    let tail_at = stored_bytes - sample.len() as u64;
    if !source.is_local() {
        // Both in one journey.
        source.will_need(tail_at, sample.len() as u64);
    }
    for offset in [0, tail_at] {
        read_exact_at(source, &mut sample, offset)?;
        hasher.update(&sample);
    }
    Ok(SeekIndexKey(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt as _;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::super::cursors::IdleCursors;
    use super::super::{NothingElse, ObjectReader};
    use super::*;
    use crate::cache_dir::CacheDir;
    use crate::store::memory::MemoryStore;
    use crate::store::{ObjectStat, ObjectVersion, Ownership, Store as _};
    use crate::types::ObjectName;

    #[test]
    fn an_index_with_lost_points_does_not_claim_to_know_what_they_led_to() {
        let folder = tempfile::tempdir().unwrap();
        let store = SeekIndexStore::open(&CacheDir::open(folder.path()).unwrap(), 1 << 20).unwrap();
        let key = SeekIndexKey([7; 32]);
        let point = |plain_offset, state| RestartPoint { plain_offset, stored_bits: 0, state };
        let states = [1u8, 2, 3].map(|byte| Arc::from([byte; 100]));
        let mut points = [100, 200, 300].into_iter().zip(states).map(|(at, state)| Ok(point(at, state)));
        let saved = store.save(&key, 400, &mut points).unwrap();
        let path = std::fs::read_dir(store.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::File::options().write(true).open(path).unwrap().write_all_at(b"x", 96 + 150).unwrap();

        let in_file = (0..3).map(|n| Entry::new(100 * (n as u64 + 1), 0, State::Saved(n)));
        let own = Entry::raw(point(400, [4; 100].into()), super::super::passes::Pass::new());
        let entries: Vec<_> = in_file.chain([own]).collect();
        let memory = MemoryStore::new();
        let name = ObjectName::parse("a").unwrap();
        memory.insert(name.clone(), *b"x");
        let workers = Arc::new(Workers::new(0));
        let stream = ObjectStream::new(Codec::Bz2, memory.open(&name).unwrap(), workers.clone());
        let indexing = Indexing::new(Some(Arc::new(store)), workers, true);
        let now = indexing.save(&key, 500, &entries, Some(&saved), &stream).unwrap().unwrap();
        let offsets: Vec<_> = now.points().iter().map(|point| point.plain_offset).collect();
        assert!(
            offsets.starts_with(&[100]) && offsets.ends_with(&[400]) && !offsets.contains(&200),
            "{offsets:?}"
        );
        assert_eq!(now.known_to(), 100);
        assert_eq!(indexing.load(&key).unwrap().known_to(), 100, "in the file");
    }

    /// Notes whether it is read by another thread than the one that asks.
    struct Watched {
        stat: ObjectStat,
        bytes: Vec<u8>,
        asks: std::thread::ThreadId,
        helped: Arc<AtomicBool>,
    }

    impl ObjectSource for Watched {
        fn stat(&self) -> &ObjectStat {
            &self.stat
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            if std::thread::current().id() != self.asks {
                self.helped.store(true, Ordering::Relaxed);
            }
            let rest = &self.bytes[self.bytes.len().min(offset as usize)..];
            let len = rest.len().min(buf.len());
            buf[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        }
    }

    #[test]
    fn blocks_are_decoded_ahead_while_all_workers_wait() {
        let plain: Vec<u8> =
            (0..1_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(1));
        encoder.write_all(&plain).unwrap();
        let bytes = encoder.finish().unwrap();
        // The only worker waits, as it does for its turn with an object that somebody else is reading.
        let workers = Arc::new(Workers::new(1));
        let (release, held) = mpsc::channel::<()>();
        assert!(workers.submit(move || held.recv().unwrap_or(())));
        let indexing = Arc::new(Indexing::new(None, workers, true));
        let helped = Arc::new(AtomicBool::new(false));
        let until = Instant::now() + Duration::from_secs(20);
        while !helped.load(Ordering::Relaxed) {
            assert!(Instant::now() < until, "nothing is decoded ahead");
            let stat = ObjectStat {
                len_bytes: bytes.len() as u64,
                version: ObjectVersion("1".into()),
                modified: None,
                owner: Ownership { mode: 0o600, uid: 0, gid: 0 },
            };
            let asks = std::thread::current().id();
            let source = Arc::new(Watched { stat, bytes: bytes.clone(), asks, helped: helped.clone() });
            let cursors = Arc::new(IdleCursors::new(32 << 20));
            let name = ObjectName::parse("object").unwrap();
            let len_bytes = plain.len() as u64;
            let reader =
                ObjectReader::new(name, Codec::Bz2, len_bytes, None, source, cursors, indexing.clone());
            let mut window = vec![0; 250_000];
            for (n, expected) in plain.chunks(window.len()).enumerate() {
                let offset = (n * window.len()) as u64;
                reader.read_at(&mut window, offset, &mut NothingElse).unwrap();
                assert!(window == expected);
            }
        }
        drop(release);
    }

    #[test]
    fn short_objects_have_no_points() {
        let indexing = Indexing::new(None, Arc::new(Workers::new(0)), true);
        assert_eq!(indexing.spacing_bytes(Codec::Bz2, 1 << 20), None);
        assert_eq!(indexing.spacing_bytes(Codec::Bz2, (1 << 20) + 1), Some(64 << 10));
        assert_eq!(indexing.spacing_bytes(Codec::Zlib, 2 << 20), None);
        let indexing = indexing.with_spacing(Some(1000));
        assert_eq!(indexing.spacing_bytes(Codec::Bz2, 1001), Some(1000));
    }
}
