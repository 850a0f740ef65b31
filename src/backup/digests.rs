//! The digests of a volume's blocks, read as they are needed.
//!
//! By stride, each lookup is one small positioned read of the `_sha256file`. We do not map that file: it belongs to the
//! store, old Cinder truncates it in place when a backup is overwritten, and NFS lets it go stale; a mapping would turn
//! either into SIGBUS and the death of every image in the process, where a read turns it into an error for one block.
//! The page cache makes the reads as cheap as a mapping, and scanning gigabytes of digests leaves our memory flat.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::ahead::Ahead;
use super::gathered::Gathered;
use super::kept::KeptPages;
use super::packed::{PackedHashes, Packer};
use super::pages::{DigestPages, PAGE_BLOCKS, Page};
use crate::cache_dir::blocks::BlockRing;
use crate::error::{Error, ErrorKind, Result, ResultExt as _};
use crate::format::sha256file::{self, HEAD_BYTES, Header, StrideLayout, TAIL_BYTES};
use crate::store::anew::Anew;
use crate::store::{ObjectSource, ObjectVersion, SourceReader, Store, read_exact_at};
use crate::types::{BlockHash, BlockIndex, ObjectName};

/// How much of the head is read at first, in bytes. What stands before the list hardly ever takes more, and whoever lists a store far
/// away opens a thousand of these.
const HEAD_BYTES_FIRST: usize = 8 << 10;

/// Digests read at once by a scan: a quarter MiB of the file.
const SCAN_BLOCKS: u64 = 3640;

/// How often all digests are read where one of them is none.
const TRIES: usize = 2;

/// The digest of every block of a volume.
pub struct BlockHashTable {
    header: Header,
    digests: Digests,
}

enum Digests {
    Stride {
        source: Arc<dyn ObjectSource>,
        layout: StrideLayout,
        /// Of the document's head and tail, as the layout was found in them.
        ends: BlockHash,
        kept: Option<Box<KeptPages>>,
        ahead: Ahead,
        /// Where pages are held in memory, and this file's number there.
        held: Option<(Arc<DigestPages>, u64)>,
        gathered: Gathered,
    },
    Packed(PackedHashes),
}

impl BlockHashTable {
    /// Opens a `_sha256file`. [`ErrorKind::Malformed`] when it is no such document, torn for instance;
    /// [`ErrorKind::Unsupported`] or [`ErrorKind::LimitExceeded`] when its version or block size cannot be served.
    pub fn open(source: Arc<dyn ObjectSource>) -> Result<Self> {
        let stored = source.stat().len_bytes;
        let mut tail = vec![0; TAIL_BYTES.min(stored as usize)];
        let tail_at = stored - tail.len() as u64;
        if !source.is_local() {
            // Both in one journey.
            source.will_need(0, HEAD_BYTES_FIRST as u64);
            source.will_need(tail_at, tail.len() as u64);
        }
        read_exact_at(&*source, &mut tail, tail_at)?;
        let mut head = Vec::new();
        for wanted in [HEAD_BYTES_FIRST, HEAD_BYTES] {
            let known = head.len();
            head.resize(wanted.min(stored as usize), 0);
            read_exact_at(&*source, &mut head[known..], known as u64)?;
            if let Some(found) = sha256file::find_layout(&head, &tail, stored) {
                let (header, layout) = found?;
                let ends = BlockHash(Sha256::new().chain_update(&head).chain_update(&tail).finalize().into());
                let ahead = Ahead::new(stored);
                let gathered = Gathered::default();
                let digests =
                    Digests::Stride { source, layout, ends, kept: None, ahead, held: None, gathered };
                return Ok(Self { header, digests });
            }
        }
        let mut packer = Packer::new();
        let header = sha256file::parse_stream(SourceReader::new(&*source, 0), &mut |hash| packer.push(hash))?;
        Ok(Self { header, digests: Digests::Packed(packer.finish()?) })
    }

    /// A table whose digests were computed here: of an object that was checked by its md5.
    pub(crate) fn computed(block_bytes: u64, hashes: Vec<BlockHash>) -> Self {
        let header = Header { backup_id: None, volume_id: None, block_bytes };
        Self { header, digests: Digests::Packed(PackedHashes::Memory(hashes)) }
    }

    /// What the document says beside its digests.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The version of the document, where it is read anew for each lookup.
    pub fn version(&self) -> Option<&ObjectVersion> {
        match &self.digests {
            Digests::Stride { source, .. } => Some(&source.stat().version),
            Digests::Packed(_) => None,
        }
    }

    /// Bytes in a block; the last block may be shorter.
    pub fn block_bytes(&self) -> u64 {
        self.header.block_bytes
    }

    /// Whether they come from a server, where going through all of them is not to be done by the way.
    pub fn is_far(&self) -> bool {
        matches!(&self.digests, Digests::Stride { source, .. } if source.is_far())
    }

    /// How many blocks there are.
    pub fn count(&self) -> u64 {
        match &self.digests {
            Digests::Stride { layout, .. } => layout.count(),
            Digests::Packed(hashes) => hashes.len(),
        }
    }

    /// The same table, which keeps what is read of it on disk and answers from there when the store fails. `name` is its
    /// file's.
    pub(crate) fn kept_in(mut self, ring: &Arc<BlockRing>, name: &ObjectName) -> Self {
        if let Digests::Stride { source, layout, ends, kept, .. } = &mut self.digests {
            let pages = KeptPages::new(ring.clone(), name.as_str(), source.stat(), ends, *layout);
            *kept = Some(Box::new(pages));
        }
        self
    }

    /// The same table, whose file, `name` of `store`, is opened anew when its descriptor has gone stale.
    pub(crate) fn anew_from(mut self, store: &Arc<dyn Store>, name: &ObjectName) -> Self {
        if let Digests::Stride { source, .. } = &mut self.digests {
            *source = Anew::wrap(source.clone(), store, name);
        }
        self
    }

    /// The same table, which holds what is asked of it in memory.
    pub(crate) fn held_in(mut self, pages: &Arc<DigestPages>) -> Self {
        if let Digests::Stride { held, .. } = &mut self.digests {
            *held = Some((pages.clone(), pages.next_file()));
        }
        self
    }

    /// The digests of `blocks`, which must lie below [`count`](Self::count). An entry that is not a digest, as damage
    /// leaves it, is an error of its own block only; a store that cannot be read is the error of them all.
    pub fn get(&self, blocks: Range<u64>) -> Vec<Result<BlockHash>> {
        if let Digests::Stride { held, .. } = &self.digests {
            if let Some(digests) = self.held(&blocks) {
                return digests;
            }
            if let Some((pages, file)) = held {
                return self.get_held(blocks, pages, *file);
            }
        }
        self.look_up(blocks, LookUp::Blocks)
    }

    /// The digests of `blocks` where memory or this machine's disk has them.
    pub fn at_hand(&self, blocks: &Range<u64>) -> Option<Vec<Result<BlockHash>>> {
        self.held(blocks).or_else(|| {
            let Digests::Stride { layout, kept, .. } = &self.digests else { return None };
            let lines = kept.as_deref().filter(|kept| !kept.is_doubted())?.lines(blocks)?;
            Some(decoded(layout, blocks, &lines))
        })
    }

    /// Tells the store that whoever reads on will come to `blocks`. Ranges that follow each other leave none out.
    pub fn announce(&self, blocks: &Range<u64>) {
        if let Digests::Stride { source, layout, ahead, kept, gathered, .. } = &self.digests
            && !source.is_local()
            && gathered.get().is_none()
            && !blocks.is_empty()
            && !kept.as_ref().is_some_and(|kept| !kept.is_doubted() && kept.holds(blocks))
        {
            ahead.announce(&**source, &layout.bytes_of(blocks.clone()));
        }
    }

    /// The digests of `blocks` where they can be told without asking the store.
    pub fn held(&self, blocks: &Range<u64>) -> Option<Vec<Result<BlockHash>>> {
        let Digests::Stride { held, gathered, .. } = &self.digests else {
            return Some(self.look_up(blocks.clone(), LookUp::Scan { keep: false }));
        };
        if let Some(hashes) = gathered.get() {
            return Some(of_packed(hashes, blocks));
        }
        let (pages, file) = held.as_ref()?;
        let mut digests = Vec::with_capacity((blocks.end - blocks.start) as usize);
        for page in pages_of(blocks) {
            let held: Page = pages.get(*file, page)?;
            let lines = (page * PAGE_BLOCKS..).zip(held.iter());
            digests.extend(lines.filter(|(block, _)| blocks.contains(block)).map(|(_, digest)| Ok(*digest)));
        }
        Some(digests)
    }

    /// Forgets what is held in memory around a block that is not what its digest says.
    pub fn doubt(&self, block: BlockIndex) {
        if let Digests::Stride { source, kept, held, gathered, .. } = &self.digests {
            gathered.doubt();
            if let Some((pages, file)) = held {
                pages.forget(*file, block.0 / PAGE_BLOCKS);
            }
            if let Some(kept) = kept {
                kept.doubt();
            }
            source.doubt();
        }
    }

    /// The digests of `blocks`, read page by page, all that are missing at once.
    fn get_held(&self, blocks: Range<u64>, pages: &DigestPages, file: u64) -> Vec<Result<BlockHash>> {
        let whole = pages_of(&blocks);
        let read = (whole.start * PAGE_BLOCKS)..(whole.end * PAGE_BLOCKS).min(self.count());
        let mut lines = self.look_up(read, LookUp::Blocks).into_iter();
        let mut digests = Vec::with_capacity((blocks.end - blocks.start) as usize);
        for page in whole {
            let len = PAGE_BLOCKS.min(self.count() - page * PAGE_BLOCKS) as usize;
            let found: Vec<_> = lines.by_ref().take(len).collect();
            // A store that fails says nothing of the file.
            let failure = found.iter().find_map(|line| match line {
                Err(error) if error.kind() != ErrorKind::Malformed => Some(error.clone()),
                _ => None,
            });
            if let Some(error) = failure {
                return blocks.map(|_| Err(error.clone())).collect();
            }
            let lines = (page * PAGE_BLOCKS..).zip(&found);
            let wanted = lines.filter(|(block, _)| blocks.contains(block));
            digests.extend(wanted.map(|(_, line)| line.clone()));
            if let Ok(held) = found.into_iter().collect::<Result<Vec<_>>>() {
                pages.keep(file, page, held.into());
            }
        }
        digests
    }

    /// Puts the digests of `blocks`, which must lie below [`count`](Self::count), into `digests`, for whoever goes through many:
    /// an entry that is not a digest comes as `None`, and nothing is kept of the file. It reads as much at once as it is asked for.
    pub fn read_into(&self, blocks: Range<u64>, digests: &mut Vec<Option<BlockHash>>) -> Result<()> {
        digests.clear();
        match &self.digests {
            Digests::Packed(hashes) => digests.extend(blocks.map(|block| hashes.get(block))),
            Digests::Stride { gathered, .. } if let Some(hashes) = gathered.get() => {
                digests.extend(blocks.map(|block| hashes.get(block)));
            }
            Digests::Stride { source, layout, kept, .. } => {
                let how = LookUp::Scan { keep: false };
                let lines = lines(&**source, layout, kept.as_deref(), &blocks, how, &|| ())
                    .context(|| "cannot read the digests")?;
                digests.extend(lines.chunks(layout.stride() as usize).map(|line| layout.decode(line)));
            }
        }
        Ok(())
    }

    fn look_up(&self, blocks: Range<u64>, how: LookUp) -> Vec<Result<BlockHash>> {
        match &self.digests {
            Digests::Packed(hashes) => of_packed(hashes, &blocks),
            Digests::Stride { source, layout, kept, ahead, gathered, .. } => {
                if let Some(hashes) = gathered.get() {
                    return of_packed(hashes, &blocks);
                }
                let kept = kept.as_deref();
                let announce = || ahead.touch(&**source, layout.bytes_of(blocks.clone()).start);
                let lines = match lines(&**source, layout, kept, &blocks, how, &announce) {
                    Ok(lines) => lines,
                    Err(error) => {
                        let error = error.context("cannot read the digest");
                        return blocks.map(|_| Err(error.clone())).collect();
                    }
                };
                decoded(layout, &blocks, &lines)
            }
        }
    }

    /// Reads all digests once, where they are far away, and answers from this machine from then on: 32 bytes each, in memory or a temporary file.
    /// Without effect where one of them stays damaged or there is no room. Fails when the store does.
    pub fn gather(&self) -> Result<()> {
        let Digests::Stride { source, gathered, .. } = &self.digests else { return Ok(()) };
        if !source.is_far() || gathered.is_done() {
            return Ok(());
        }
        for _ in 0..TRIES {
            match self.packed()? {
                Packed::All(hashes) => {
                    gathered.set(hashes);
                    break;
                }
                // The store may have given it wrong for once.
                Packed::Damaged(block) => self.doubt(block),
                Packed::NoRoom(error) => {
                    tracing::debug!("the digests are fetched again: {error}");
                    break;
                }
            }
        }
        Ok(())
    }

    fn packed(&self) -> Result<Packed> {
        let (mut packer, mut stopped) = (Packer::new(), None);
        self.scan(BlockIndex(0), &mut |block, digest| {
            stopped = match digest.map(|digest| packer.push(digest)) {
                Some(Ok(())) => return ControlFlow::Continue(()),
                Some(Err(error)) => Some(Packed::NoRoom(error)),
                None => Some(Packed::Damaged(block)),
            };
            ControlFlow::Break(())
        })?;
        Ok(stopped.unwrap_or_else(|| packer.finish().map_or_else(Packed::NoRoom, Packed::All)))
    }

    /// Visits the digests from block `from` to the last, in large reads, until `visit` breaks. An entry that is not a
    /// digest comes as `None`.
    pub fn scan(
        &self,
        from: BlockIndex,
        visit: &mut dyn FnMut(BlockIndex, Option<BlockHash>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut next = from.0;
        let keep = matches!(&self.digests, Digests::Stride { kept: Some(kept), .. } if kept.keeps_scans());
        // Start small: most scans end within a few blocks.
        let mut batch = 64;
        while next < self.count() {
            let end = self.count().min(next + batch);
            for (index, digest) in (next..end).zip(self.look_up(next..end, LookUp::Scan { keep })) {
                let digest = match digest {
                    Err(error) if error.kind() != ErrorKind::Malformed => return Err(error),
                    other => other.ok(),
                };
                if visit(BlockIndex(index), digest).is_break() {
                    return Ok(());
                }
            }
            next = end;
            batch = SCAN_BLOCKS.min(batch * 4);
        }
        Ok(())
    }
}

/// What came of gathering all digests.
enum Packed {
    All(PackedHashes),
    /// The first entry that is no digest.
    Damaged(BlockIndex),
    NoRoom(Error),
}

/// What digests are looked up for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LookUp {
    /// To read their blocks, and soon those beside them.
    Blocks,
    /// To look at them only, at many.
    Scan { keep: bool },
}

fn of_packed(hashes: &PackedHashes, blocks: &Range<u64>) -> Vec<Result<BlockHash>> {
    blocks.clone().map(|block| hashes.get(block).ok_or_else(|| bad_entry(block))).collect()
}

fn decoded(layout: &StrideLayout, blocks: &Range<u64>, lines: &[u8]) -> Vec<Result<BlockHash>> {
    let entries = lines.chunks(layout.stride() as usize);
    blocks.clone().zip(entries).map(|(i, line)| layout.decode(line).ok_or_else(|| bad_entry(i))).collect()
}

/// The pages that `blocks` lie in.
fn pages_of(blocks: &Range<u64>) -> Range<u64> {
    blocks.start / PAGE_BLOCKS..blocks.end.div_ceil(PAGE_BLOCKS)
}

/// The lines of `blocks`, from the store or, when it fails or is far away, from what was kept of it. `announce` is called before the
/// store is asked for blocks' sake.
fn lines(
    source: &dyn ObjectSource,
    layout: &StrideLayout,
    kept: Option<&KeptPages>,
    blocks: &Range<u64>,
    how: LookUp,
    announce: &dyn Fn(),
) -> Result<Vec<u8>> {
    // What was kept of this very version is what the store would say.
    let is_kept_enough = |kept: &&KeptPages| {
        let is_unchanged = || source.is_changed().is_ok_and(|is_changed| !is_changed);
        kept.failed_lately() || source.is_far() && !kept.is_doubted() && is_unchanged()
    };
    if let Some(kept) = kept.filter(is_kept_enough)
        && let Some(lines) = kept.lines(blocks)
    {
        return Ok(lines);
    }
    if how == LookUp::Blocks {
        announce();
    }
    let keeps = how != (LookUp::Scan { keep: false });
    let wanted = layout.bytes_of(blocks.clone());
    // What is to be kept is fetched once, and not again for its page's sake.
    let read_blocks = match kept {
        Some(kept) if keeps && source.is_far() => kept.whole_pages(blocks),
        _ => blocks.clone(),
    };
    let bytes = layout.bytes_of(read_blocks.clone());
    let mut lines = vec![0; (bytes.end - bytes.start) as usize];
    let read = read_unchanged(source, &mut lines, bytes.start);
    let Some(kept) = kept else { return read.map(|()| lines).map_err(Unread::error) };
    match read {
        Ok(()) => {
            kept.note(false);
            if keeps {
                kept.keep(&read_blocks, |page, at| {
                    let known = at
                        .checked_sub(bytes.start)
                        .and_then(|from| lines.get(from as usize..)?.get(..page.len()));
                    match known {
                        Some(known) => page.copy_from_slice(known),
                        None => read_unchanged(source, page, at).map_err(Unread::error)?,
                    }
                    Ok(())
                });
            }
            lines.truncate((wanted.end - bytes.start) as usize);
            lines.drain(..(wanted.start - bytes.start) as usize);
            Ok(lines)
        }
        Err(Unread::Changed(error)) => Err(error),
        Err(Unread::Failed(error)) => {
            kept.note(true);
            kept.lines(blocks).ok_or(error)
        }
    }
}

/// Why digests could not be read.
enum Unread {
    /// The store failed, which says nothing of the file.
    Failed(Error),
    /// The file is another one by now, cut short or overwritten: what was kept of it is not to be used.
    Changed(Error),
}

impl Unread {
    fn error(self) -> Error {
        let (Self::Failed(error) | Self::Changed(error)) = self;
        error
    }
}

/// Fills `buf` from the file as it was opened.
fn read_unchanged(source: &dyn ObjectSource, buf: &mut [u8], at: u64) -> Result<(), Unread> {
    read_exact_at(source, buf, at).map_err(|error| match error.kind() {
        ErrorKind::Truncated => Unread::Changed(error),
        _ => Unread::Failed(error),
    })?;
    // Looked at after the read: digests of another backup would verify that backup's bytes as this one's.
    match source.is_changed().map_err(Unread::Failed)? {
        true => Err(Unread::Changed(Error::new(
            ErrorKind::StoreIo,
            "its file was overwritten since the backup was opened",
        ))),
        false => Ok(()),
    }
}

fn bad_entry(index: u64) -> Error {
    Error::new(
        ErrorKind::Malformed,
        format!("the digest of block {index} is damaged: not 64 hexadecimal digits in its place"),
    )
}
