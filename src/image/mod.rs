//! The virtual disk, the one type that front-ends see.
//!
//! Problem: a reader wants "bytes 5 to 9 of the volume as of this backup", and between it and the store lie a chain,
//! compressed objects, digests and a cache. Idea: an [`Image`] puts these together once, when it is opened, and then
//! answers for any range with parts that are proven, known to be zeros, or lost with a reason.
//!
//! - [`view`]: a range of blocks with digests, read through extents, objects and the cache.
//! - [`unproven`]: backups without `_sha256file`; each object becomes such a view once its md5 is right.
//! - [`groups`]: how several readers share it.
//! - [`holes`]: where data begins and ends, from the digests alone.
//! - [`ending`]: the exact length, where only the last block's digest can tell.
//! - [`readahead`]: who reads on and on, and what he will want next.
//! - [`lately`]: which blocks need not be tried again at once.
//! - [`copies`]: where else a lost block may be found.
//! - [`objects`]: what the image reads from, object by object.
//! - [`damage`]: what was lost so far.
//! - [`digests`]: the digests themselves, for whoever compares images without reading them.
//! - [`materialised`]: the whole image as a file beside the store.
//!
//! Invariants: no byte leaves an image that was not compared with a digest (zeros stand in for lost ones where a caller asks for that by name); damage costs the blocks it hits, not the
//! object around them; an image never changes, so whoever has read a byte may keep it.

mod copies;
mod damage;
mod digests;
mod ending;
mod engine;
mod expected;
mod groups;
mod holes;
mod lately;
mod materialised;
mod objects;
mod readahead;
mod unproven;
mod view;

pub use copies::{Copies, LostBlock};
pub use damage::Damage;
pub use digests::Digests;
pub use engine::Engine;
pub use expected::expect;
pub use materialised::Materialised;
pub use objects::{Holder, StoredObject};

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use self::damage::DamageLog;
use self::unproven::UnprovenView;
use self::view::View;
use crate::backup::{Backup, BlockHashTable, DataObject, DigestFile};
use crate::block::VerifiedBlock;
use crate::chain::extent_map::{Extent, ExtentMap, ObjectIndex, Piece};
use crate::chain::length::image_len;
use crate::error::{Error, ErrorKind, Result};
use crate::object::{ObjectReader, proof};
use crate::types::{BackupId, BlockHash, BlockIndex};

/// Most bytes answered at once by [`Image::visit`], so that a large range does not need large memory. A multiple of the
/// kernel's largest read.
const WINDOW_BYTES: u64 = 4 << 20;

/// How far ahead of who reads on and on objects are opened, in bytes: two or three of the default size for an object store. To open one
/// takes three journeys, and 60 ms are 100 MB of a fast volume.
const PREPARED_AHEAD_BYTES: u64 = 128 << 20;

/// How far ahead of him what he will read is announced where restart points tell where it lies, in bytes.
const ANNOUNCED_AHEAD_BYTES: u64 = 32 << 20;

/// And most blocks: each costs some hundred bytes beside its own, and a hostile block is as small as one byte.
const WINDOW_BLOCKS: u64 = 4096;

/// What proves an image's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verification {
    /// Each block has its sha256 in the backup's `_sha256file`.
    Sha256,
    /// There is no usable `_sha256file`: each object is checked whole against its md5 before any byte of it is served.
    Md5,
}

impl Verification {
    /// The word for people and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
        }
    }
}

/// What an image has for a range.
#[derive(Debug)]
pub enum Part<'a> {
    /// Bytes that were compared with their digest.
    Data(&'a [u8]),
    /// The digest says that all bytes are zero; no object was read.
    Zeros,
    /// The bytes cannot be had.
    Lost(&'a Error),
}

/// What a reader gets in place of a block that is damaged and cannot be healed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDamage {
    /// An error.
    #[default]
    Error,
    /// Zeros. Only where the backup is damaged: what the store fails to deliver stays an error.
    Zeros,
}

impl OnDamage {
    /// The word for people and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "eio",
            Self::Zeros => "zero",
        }
    }
}

/// The whole volume as of one backup.
pub struct Image {
    id: BackupId,
    chain: Vec<BackupId>,
    len_bytes: u64,
    layers: Arc<[Arc<Backup>]>,
    content: Content,
    damage: DamageLog,
    /// Zeros have stood in for lost bytes since [`Image::take_stand_ins`] was asked last.
    has_stand_ins: AtomicBool,
    /// Bytes that some object holds.
    stored_bytes: u64,
    data_bytes: OnceLock<u64>,
    count_started: OnceLock<()>,
    content_hash: OnceLock<BlockHash>,
    engine: Arc<Engine>,
    /// Tells it apart among the images of its engine.
    number: u64,
}

enum Content {
    Proven(View),
    Unproven(UnprovenView),
}

impl Image {
    /// Opens the image of the newest backup of `layers`, which are a whole chain, the full backup first.
    pub fn open(engine: &Arc<Engine>, layers: Vec<Arc<Backup>>) -> Result<Self> {
        let Some(tip) = layers.last() else {
            return Err(Error::new(ErrorKind::ChainBroken, "a chain has at least one backup"));
        };
        let table = match tip.digests(&**engine.store())? {
            DigestFile::Usable(table) => {
                let name = tip.digest_name()?;
                let table = table.anew_from(engine.store(), &name).held_in(engine.digests());
                Some(match engine.disk() {
                    Some(disk) => table.kept_in(disk, &name),
                    None => table,
                })
            }
            DigestFile::Missing => None,
            // A torn document proves nothing, and the objects' md5 may.
            DigestFile::Torn(error) => {
                tracing::warn!(backup = %tip.summary.id, "{error}; checking objects by md5 instead");
                None
            }
        };
        let size_bytes = tip.summary.metadata.volume.size_gib.and_then(|gib| gib.checked_mul(1 << 30));
        let len_bytes = image_len(
            layers.len(),
            |layer| {
                layers[layer].objects.iter().map(|object| object.offset..object.offset + object.len_bytes)
            },
            table.as_ref().map(|table| (table.count(), table.block_bytes())),
            size_bytes,
        )?;
        let len_bytes = match &table {
            Some(table) => ending::settle(engine, &layers, table, len_bytes)?,
            None => len_bytes,
        };
        let id = tip.summary.id.clone();
        let chain = layers.iter().rev().map(|layer| layer.summary.id.clone()).collect();
        let map = ExtentMap::paint(extents(&layers), len_bytes);
        let stored_bytes = map.extents().iter().map(|extent| extent.len).sum();
        let layers: Arc<[Arc<Backup>]> = layers.into();
        let content = match table {
            Some(table) => {
                Content::Proven(View::new(engine.clone(), layers.clone(), map, Arc::new(table)).healing())
            }
            None => Content::Unproven(UnprovenView::new(engine.clone(), layers.clone(), map)),
        };
        let (data_bytes, count_started) = (OnceLock::new(), OnceLock::new());
        Ok(Self {
            id,
            chain,
            len_bytes,
            layers,
            content,
            damage: DamageLog::default(),
            has_stand_ins: AtomicBool::new(false),
            stored_bytes,
            data_bytes,
            count_started,
            content_hash: OnceLock::new(),
            number: engine.next_image(),
            engine: engine.clone(),
        })
    }

    /// The backup that this is the image of.
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// Exact length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The unit of verification in bytes: the hash block.
    pub fn block_bytes(&self) -> u64 {
        match &self.content {
            Content::Proven(view) => view.table().block_bytes(),
            Content::Unproven(_) => proof::PROOF_BLOCK_BYTES,
        }
    }

    /// What proves the bytes.
    pub fn verification(&self) -> Verification {
        match &self.content {
            Content::Proven(_) => Verification::Sha256,
            Content::Unproven(_) => Verification::Md5,
        }
    }

    /// The ids of the chain, this backup first, the full one last.
    pub fn chain(&self) -> &[BackupId] {
        &self.chain
    }

    /// Gives every byte of `range` to `visitor`, in order and without a gap; what lies beyond the image's end is left
    /// out. An error of the visitor ends the visit and is returned; lost bytes are no error here.
    pub fn visit(
        &self,
        range: Range<u64>,
        visitor: &mut dyn FnMut(Range<u64>, Part<'_>) -> Result<()>,
    ) -> Result<()> {
        let end = range.end.min(self.len_bytes);
        let block_bytes = self.block_bytes();
        let window = WINDOW_BYTES.min(WINDOW_BLOCKS.saturating_mul(block_bytes)).max(block_bytes);
        let mut at = range.start;
        while at < end {
            let until = end.min(at.saturating_add(window) / window * window);
            let mut watch = |part: Range<u64>, what: Part<'_>| {
                match what {
                    Part::Lost(error) => self.damage.lost(&self.id, &self.whole_blocks(&part), error),
                    Part::Data(_) | Part::Zeros => self.damage.read(&self.proven_with(&part)),
                }
                visitor(part, what)
            };
            match &self.content {
                Content::Proven(view) => view.visit(at..until, &mut watch)?,
                Content::Unproven(view) => view.visit(at..until, &mut watch)?,
            }
            at = until;
        }
        Ok(())
    }

    /// `part` widened to the blocks that it lies in: a block is lost as a whole, however little of it was asked for.
    fn whole_blocks(&self, part: &Range<u64>) -> Range<u64> {
        let block_bytes = self.block_bytes();
        let end = part.end.div_ceil(block_bytes).saturating_mul(block_bytes);
        let blocks = part.start / block_bytes * block_bytes..end.min(self.len_bytes);
        match &self.content {
            Content::Proven(_) => blocks,
            // What is lost with one object says nothing of its neighbours in the image.
            Content::Unproven(view) => view
                .map()
                .pieces(blocks)
                .map(Piece::image)
                .find(|piece| piece.contains(&part.start))
                .unwrap_or(part.clone()),
        }
    }

    /// What is proven when `part` is: its blocks, unless the blocks are those of objects, which need not begin where blocks of
    /// the image do.
    fn proven_with(&self, part: &Range<u64>) -> Range<u64> {
        match &self.content {
            Content::Proven(_) => self.whole_blocks(part),
            Content::Unproven(_) => part.clone(),
        }
    }

    /// Fills `buf` with verified bytes from `offset`; returns how many, less than asked only at the end of the image.
    /// When any of the bytes is lost, the reason; then what is in `buf` means nothing.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.read_as(OnDamage::Error, buf, offset)
    }

    /// [`read_at`](Self::read_at), with zeros for lost bytes where the caller wants that.
    pub fn read_as(&self, on_damage: OnDamage, buf: &mut [u8], offset: u64) -> Result<usize> {
        let end = offset.saturating_add(buf.len() as u64).min(self.len_bytes);
        if offset >= end {
            return Ok(0);
        }
        self.visit(offset..end, &mut |range, part| {
            let target = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            match part {
                Part::Data(bytes) => target.copy_from_slice(bytes),
                Part::Zeros => target.fill(0),
                Part::Lost(error) if on_damage == OnDamage::Zeros && self.is_lost_for_good(error) => {
                    // Before the bytes are given out, so that whoever asks for it later knows of them.
                    if !self.has_stand_ins.swap(true, Ordering::Relaxed) {
                        tracing::error!(backup = %self.id, offset = range.start, "zeros stand in for lost bytes");
                    }
                    target.fill(0);
                }
                Part::Lost(error) => return Err(error.clone()),
            }
            Ok(())
        })?;
        Ok((end - offset) as usize)
    }

    /// Whether this reason of [`Part::Lost`] says that the backup is damaged, and not that the store fails at this moment. In a
    /// store that was unmounted or is being deleted nothing is found: a missing object is damage only while the backup's
    /// own document is still there.
    pub fn is_lost_for_good(&self, error: &Error) -> bool {
        let is_there = || {
            let document = self.layers.last().and_then(|tip| tip.metadata_name().ok());
            document.is_some_and(|name| self.engine.store().open(&name).is_ok())
        };
        match error.kind() {
            ErrorKind::ObjectNotFound => is_there(),
            kind => kind.is_damage(),
        }
    }

    /// Whether zeros have stood in for lost bytes since this was asked last.
    pub fn take_stand_ins(&self) -> bool {
        self.has_stand_ins.swap(false, Ordering::Relaxed)
    }

    /// Whether `range` can be read without asking the store, as far as can be told without reading it.
    pub fn is_at_hand(&self, range: Range<u64>) -> bool {
        let range = range.start..range.end.min(self.len_bytes);
        match &self.content {
            _ if range.is_empty() => true,
            Content::Proven(view) => view.is_at_hand(&range),
            Content::Unproven(_) => false,
        }
    }

    /// Tells that a reader is about to read `range`. Where he reads on and on, what he will want next is fetched into the
    /// block cache by threads that have nothing else to do.
    pub fn read_ahead(self: &Arc<Self>, range: Range<u64>) {
        let end = range.end.min(self.len_bytes);
        if range.start >= end {
            return;
        }
        let (next, window_bytes) = {
            let mut readers = self.engine.readers();
            (readers.note(self.number, range.start..end), readers.window_bytes())
        };
        if !next.is_empty() {
            self.prepare(next.clone());
        }
        for window in readahead::windows(next.start..next.end.min(self.len_bytes), window_bytes) {
            let image = Arc::downgrade(self);
            let fetch = move || {
                let Some(image) = image.upgrade() else { return };
                match &image.content {
                    Content::Proven(view) => view.fetch(window),
                    Content::Unproven(view) => view.fetch(window),
                }
            };
            if !self.engine.workers().submit(fetch) {
                return;
            }
        }
    }

    /// Tells that somebody reads on and on, and is at `range`: objects that he will come to before long are opened by threads that have nothing
    /// else to do, and a store far away begins to send them. Ranges that follow each other leave none out.
    pub fn prepare(self: &Arc<Self>, range: Range<u64>) {
        let Content::Proven(view) = &self.content else { return };
        let ahead = |bytes: u64| {
            let start = if range.start == 0 { 0 } else { range.start.saturating_add(bytes) };
            start.min(self.len_bytes)..range.end.saturating_add(bytes).min(self.len_bytes)
        };
        let (near, soon) = (ahead(ANNOUNCED_AHEAD_BYTES), ahead(PREPARED_AHEAD_BYTES));
        if near.is_empty() || view.is_materialised() {
            return;
        }
        let image = Arc::downgrade(self);
        self.engine.workers().submit(move || {
            if let Some(image) = image.upgrade()
                && let Content::Proven(view) = &image.content
            {
                // What was read before need not be sent again.
                if !view.is_on_disk(&soon) {
                    view.prepare(soon);
                }
                if !view.is_on_disk(&near) {
                    view.announce_all(near);
                }
            }
        });
    }

    /// Which object of the chain holds each byte.
    pub fn extent_map(&self) -> &ExtentMap {
        match &self.content {
            Content::Proven(view) => view.map(),
            Content::Unproven(view) => view.map(),
        }
    }

    /// The digests of all blocks; `None` where the backup has none.
    pub fn digests(&self) -> Option<Digests<'_>> {
        match &self.content {
            Content::Proven(view) => Some(Digests::of(view)),
            Content::Unproven(_) => None,
        }
    }

    /// What is known of an object that the extent map names, without opening it.
    pub fn holder(&self, index: ObjectIndex) -> Result<Holder<'_>> {
        objects::holder(&self.layers, index)
    }

    /// The objects that the image reads from, each once, in the order in which they are first needed.
    pub fn objects(&self) -> Vec<StoredObject<'_>> {
        objects::of(&self.engine, &self.layers, self.extent_map())
    }

    /// The image cut into groups of ranges, each group read fastest by one reader in order, different groups by different
    /// readers: what lies in one object is one group. Together they are the whole image, each byte once.
    pub fn groups(&self) -> Vec<Vec<Range<u64>>> {
        match &self.content {
            Content::Proven(view) => groups::groups(view.map(), view.table().block_bytes()),
            Content::Unproven(view) => groups::groups(view.map(), 1),
        }
    }

    /// The first offset >= `offset` that is data; `None` when only holes follow.
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        match &self.content {
            Content::Proven(view) if offset < self.len_bytes => holes::seek_data(view, offset),
            Content::Unproven(_) if offset < self.len_bytes => Ok(Some(offset)),
            Content::Proven(_) | Content::Unproven(_) => Ok(None),
        }
    }

    /// The first offset >= `offset` that is in a hole; the image's length when data goes on to the end.
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        match &self.content {
            Content::Proven(view) if offset < self.len_bytes => holes::seek_hole(view, offset),
            Content::Proven(_) | Content::Unproven(_) => Ok(self.len_bytes),
        }
    }

    /// What a file of this image would take on a disk, in bytes: those that are not holes, and until that is known those that its objects
    /// hold.
    pub fn allocated_bytes(self: &Arc<Self>) -> u64 {
        self.data_bytes().unwrap_or(self.stored_bytes)
    }

    /// Bytes that are not holes, once that is known: small images know at once, large ones count in the background
    /// after the first call and say `None` until then. Those whose digests are far away say so until somebody [counts](Self::count_data).
    pub fn data_bytes(self: &Arc<Self>) -> Option<u64> {
        let Content::Proven(view) = &self.content else { return Some(self.len_bytes) };
        if let Some(&known) = self.data_bytes.get() {
            return Some(known);
        }
        if view.table().is_far() {
            return None;
        }
        if view.table().count() <= holes::COUNT_AT_ONCE_MAX {
            return self.count_data();
        }
        if self.count_started.set(()).is_ok() {
            let image = self.clone();
            let counter = std::thread::Builder::new().name("count-holes".into());
            let started = counter.spawn(move || image.count_data());
            if let Err(error) = started {
                tracing::warn!(backup = %self.id, "cannot count holes in the background: {error}");
            }
        }
        None
    }

    /// Counts now, however long it takes. `None` when the digests cannot be read.
    pub fn count_data(&self) -> Option<u64> {
        let Content::Proven(view) = &self.content else { return Some(self.len_bytes) };
        if let Some(&known) = self.data_bytes.get() {
            return Some(known);
        }
        match holes::data_bytes(view) {
            Ok(bytes) => Some(*self.data_bytes.get_or_init(|| bytes)),
            Err(error) => {
                tracing::warn!(backup = %self.id, "cannot count holes: {error}");
                None
            }
        }
    }

    /// The table of digests that prove the bytes; `None` where only each object's md5 does.
    pub fn hash_table(&self) -> Option<&BlockHashTable> {
        match &self.content {
            Content::Proven(view) => Some(view.table()),
            Content::Unproven(_) => None,
        }
    }

    /// The backups of the chain, the full one first, in the order of [`ObjectIndex::layer`].
    pub fn layers(&self) -> &[Arc<Backup>] {
        &self.layers
    }

    /// About how much memory this value holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let map = self.extent_map();
        let layers: usize = self.layers.iter().map(|layer| layer.memory_bytes()).sum();
        (size_of_val(map.extents()) + layers + 4096) as u64
    }

    /// Damage seen so far.
    pub fn damage(&self) -> Damage {
        let healed_blocks = match &self.content {
            Content::Proven(view) => view.healed_blocks(),
            Content::Unproven(_) => 0,
        };
        Damage { healed_blocks, ..self.damage.seen() }
    }

    /// The block that another image has lost, if this image has the same one at the same place and can read it.
    pub fn copy_of(&self, lost: &LostBlock<'_>) -> Option<Arc<VerifiedBlock>> {
        match &self.content {
            Content::Proven(view) => view.copy_of(lost),
            Content::Unproven(_) => None,
        }
    }
}

/// All extents of a chain in the order in which they hide each other.
fn extents(layers: &[Arc<Backup>]) -> impl Iterator<Item = Extent> {
    let numbered = |n: usize| u32::try_from(n).unwrap_or(u32::MAX); // CHAIN_MAX and OBJECTS_MAX are far below
    layers.iter().enumerate().flat_map(move |(layer, backup)| {
        backup.objects.iter().enumerate().map(move |(object, data)| Extent {
            start: data.offset,
            len: data.len_bytes,
            object: ObjectIndex { layer: numbered(layer), object: numbered(object) },
            object_offset: 0,
        })
    })
}

/// Opens the object that a piece of the map names.
fn open_object(engine: &Engine, layers: &[Arc<Backup>], index: ObjectIndex) -> Result<Arc<ObjectReader>> {
    let (backup, object) = object_of(layers, index)?;
    let points = object.points.as_ref();
    engine.objects().get(backup.object_name(object)?, object.codec, object.len_bytes, points)
}

fn object_of(layers: &[Arc<Backup>], index: ObjectIndex) -> Result<(&Backup, &DataObject)> {
    let backup = layers.get(index.layer as usize);
    backup
        .and_then(|backup| backup.objects.get(index.object as usize).map(|object| (&**backup, object)))
        .ok_or_else(|| Error::new(ErrorKind::NoData, "the extent map names an object that is not there"))
}

/// The bytes of the image that a block holds.
fn block_range(table: &BlockHashTable, len_bytes: u64, block: BlockIndex) -> Range<u64> {
    let start = block.0 * table.block_bytes();
    start..(start + table.block_bytes()).min(len_bytes)
}
