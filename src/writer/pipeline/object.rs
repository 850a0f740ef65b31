//! One object while it is written: stored bytes to its file, plain bytes to its md5.

use std::sync::{Arc, Mutex, PoisonError};

use super::md5::Md5State;
use crate::codec::Codec;
use crate::error::{Result, ResultExt};
use crate::format::points::{Place, PointsWriter};
use crate::store::{ObjectSource, ObjectStat, ObjectVersion, Ownership};
use crate::types::Md5;
use crate::writer::destination::{Destination, FinishedFile, NewFile};
use crate::writer::encode::{EncodedPiece, Encoder, ObjectAssembler, copy_plain};
use crate::writer::staging::FileName;

/// How much is gathered before it is written, in bytes.
const WRITE_BYTES: usize = 256 << 10;

/// What zeros are made of, for md5.
pub(super) static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Between states of md5 over zeros that are remembered, in bytes.
const STATE_BYTES: u64 = 1 << 20;

/// How many such states are remembered, at most: those of an object of 4 GiB, in 400 KiB.
const STATES_MAX: u64 = 4096;

/// What all objects of a backup share.
pub(super) struct Objects<'a> {
    pub(super) destination: &'a dyn Destination,
    pub(super) encoder: &'a Encoder,
    pub(super) block_bytes: u64,
    /// Between restart points that are written down, in plain bytes at least.
    pub(super) point_spacing_bytes: u64,
    pub(super) zero_digests: ZeroDigests,
    /// The last object of zeros that may get more names.
    pub(super) last_zeros: Mutex<Option<(FinishedFile, ObjectRecord)>>,
}

impl Objects<'_> {
    /// A window of zeros, which are `pieces`, as one object.
    pub(super) fn zeros(&self, offset: u64, len_bytes: u64, pieces: &[EncodedPiece]) -> Result<ObjectRecord> {
        self.once(offset, len_bytes, || {
            let mut object = ObjectWriter::begin(self, offset)?;
            object.append_zeros(pieces)?;
            Ok(object)
        })
    }

    /// Ends the object of a window, all of which is zeros.
    pub(super) fn end_zeros(&self, object: ObjectWriter<'_>) -> Result<ObjectRecord> {
        let (offset, len_bytes) = (object.offset, object.len_bytes());
        self.once(offset, len_bytes, || Ok(object))
    }

    /// One more name for the file of the zeros before, if they are as many, else the object that `make` makes.
    fn once<'o>(
        &self,
        offset: u64,
        len_bytes: u64,
        make: impl FnOnce() -> Result<ObjectWriter<'o>>,
    ) -> Result<ObjectRecord> {
        // Whoever else has one waits for the first, so that there is but one file.
        let mut last = self.last_zeros.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((file, record)) = &*last
            && record.len_bytes == len_bytes
            && let Some(stored_bytes) = self.destination.link_file(self.name_at(offset), file)?
        {
            return Ok(ObjectRecord { offset, stored_bytes, ..record.clone() });
        }
        let (file, record) = make()?.finish_file()?;
        // The volume's last window may be shorter, and is no use to others.
        if last.as_ref().is_none_or(|(_, known)| known.len_bytes <= len_bytes) {
            *last = Some((file, record.clone()));
        }
        Ok(record)
    }

    fn name_at(&self, offset: u64) -> FileName {
        made_as(offset, self.block_bytes)
    }
}

/// Objects are made under numbers that rise with their place in the volume, since nobody knows yet how many come before.
fn made_as(offset: u64, block_bytes: u64) -> FileName {
    FileName::Object(offset / block_bytes + 1)
}

/// md5 over zeros. There may be thousands of objects that hold nothing else, or begin with nothing else, and md5 is slow.
#[derive(Default)]
pub(super) struct ZeroDigests(Mutex<Vec<Md5State>>);

impl ZeroDigests {
    /// The state after so many zeros.
    fn after(&self, len_bytes: u64) -> Md5State {
        let wanted = (len_bytes / STATE_BYTES).min(STATES_MAX);
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever else wants one waits for what it would otherwise compute itself.
        while (states.len() as u64) < wanted {
            let mut state = states.last().cloned().unwrap_or_default();
            update_with_zeros(&mut state, STATE_BYTES);
            states.push(state);
        }
        let state = wanted.checked_sub(1).and_then(|last| states.get(last as usize)).cloned();
        drop(states);
        let mut state = state.unwrap_or_default();
        update_with_zeros(&mut state, len_bytes - wanted * STATE_BYTES);
        state
    }
}

pub(super) fn update_with_zeros(hasher: &mut Md5State, mut len_bytes: u64) {
    while len_bytes > 0 {
        let part = len_bytes.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..part as usize]);
        len_bytes -= part;
    }
}

/// A finished object, as `_metadata` tells of it.
#[derive(Clone)]
pub(super) struct ObjectRecord {
    pub(super) codec: Codec,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
    /// 0 for one more name of another one's file.
    pub(super) stored_bytes: u64,
    pub(super) md5: Md5,
    pub(super) points: Option<String>,
}

impl ObjectRecord {
    /// What it was called while it was made.
    pub(super) fn made_as(&self, block_bytes: u64) -> FileName {
        made_as(self.offset, block_bytes)
    }
}

/// An object that is being written.
pub(super) struct ObjectWriter<'a> {
    objects: &'a Objects<'a>,
    offset: u64,
    file: File,
    assembler: ObjectAssembler,
    /// `None` while all plain bytes are zeros.
    md5: Option<Md5State>,
    points: PointsWriter,
    last_point: u64,
}

impl<'a> ObjectWriter<'a> {
    /// An object that begins at `offset` of the volume.
    pub(super) fn begin(objects: &'a Objects<'a>, offset: u64) -> Result<Self> {
        Ok(Self {
            offset,
            file: File::create(objects, offset).context(|| called(offset))?,
            assembler: ObjectAssembler::new(objects.encoder),
            md5: None,
            points: PointsWriter::default(),
            last_point: 0,
            objects,
        })
    }

    /// Where it ends in the volume so far.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.assembler.plain_bytes()
    }

    /// Its plain bytes so far.
    pub(super) fn len_bytes(&self) -> u64 {
        self.assembler.plain_bytes()
    }

    /// Whether all its plain bytes are zeros so far.
    pub(super) fn is_zeros(&self) -> bool {
        self.md5.is_none()
    }

    /// To which the plain bytes of each run of data must be added, in order.
    pub(super) fn md5(&mut self) -> &mut Md5State {
        // Without data there are zeros only.
        let so_far = self.assembler.plain_bytes();
        self.md5.get_or_insert_with(|| self.objects.zero_digests.after(so_far))
    }

    /// Appends a run of zeros. Behind data they are to be added to [`md5`](Self::md5).
    pub(super) fn append_zeros(&mut self, pieces: &[EncodedPiece]) -> Result<()> {
        self.append(pieces, self.objects.encoder.codec() == Codec::None)
    }

    /// Appends a run of data; its plain bytes are to be added to [`md5`](Self::md5).
    pub(super) fn append_data(&mut self, pieces: &[EncodedPiece]) -> Result<()> {
        self.md5();
        self.append(pieces, false)
    }

    fn append(&mut self, pieces: &[EncodedPiece], leave_holes: bool) -> Result<()> {
        let begin = self.offset;
        for piece in pieces {
            let file = &mut self.file;
            let appended = self
                .assembler
                .append(piece, |stored| match leave_holes {
                    true => file.skip(stored.len() as u64),
                    false => file.put(stored),
                })
                .context(|| called(begin))?;
            for point in appended.entry_points() {
                if point.plain_offset - self.last_point >= self.objects.point_spacing_bytes {
                    let (plain_offset, stored_offset) = (point.plain_offset, point.stored_offset);
                    self.points.push(Place { plain_offset, stored_offset });
                    self.last_point = plain_offset;
                }
            }
        }
        Ok(())
    }

    /// Completes the object and makes it durable. One that does not shrink is stored as it is.
    pub(super) fn finish(self) -> Result<ObjectRecord> {
        Ok(self.finish_file()?.1)
    }

    fn finish_file(self) -> Result<(FinishedFile, ObjectRecord)> {
        let begin = self.offset;
        self.finish_unnamed().context(|| called(begin))
    }

    fn finish_unnamed(self) -> Result<(FinishedFile, ObjectRecord)> {
        let Self { objects, offset, mut file, assembler, md5, points, .. } = self;
        let finished = assembler.finish(|stored| file.put(stored))?;
        let md5 = md5.unwrap_or_else(|| objects.zero_digests.after(finished.plain_bytes));
        let md5 = Md5(md5.finalize());
        file.flush()?;
        let mut record = ObjectRecord {
            codec: finished.codec,
            offset,
            len_bytes: finished.plain_bytes,
            stored_bytes: finished.stored_bytes,
            md5,
            points: points.finish(),
        };
        if let Some(patch) = finished.patch {
            file.file.write_at(&patch.bytes, patch.offset)?;
        }
        if !finished.is_in_vain() {
            return Ok((file.finish()?, record));
        }
        let staged: Arc<dyn ObjectSource> = Arc::new(Staged::new(file.file));
        let mut plain = File::create(objects, offset)?;
        let mut buffer = vec![0; WRITE_BYTES];
        copy_plain(&finished, staged, &mut buffer, |bytes| plain.put(bytes))?;
        (record.codec, record.stored_bytes, record.points) = (Codec::None, record.len_bytes, None);
        Ok((plain.finish()?, record))
    }
}

/// What to call an object in an error: its place, since its number is only known when all objects before it are there.
fn called(offset: u64) -> String {
    format!("the object that begins at byte {offset} of the volume")
}

/// A staged file that is written from its beginning to its end.
struct File {
    file: Box<dyn NewFile>,
    gathered: Vec<u8>,
    /// Where the gathered bytes belong.
    at: u64,
}

impl File {
    fn create(objects: &Objects<'_>, offset: u64) -> Result<Self> {
        let file = objects.destination.create_file(objects.name_at(offset))?;
        Ok(Self { file, gathered: Vec::new(), at: 0 })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.gathered.len() + bytes.len() > WRITE_BYTES {
            self.flush()?;
        }
        if bytes.len() >= WRITE_BYTES {
            self.file.write_at(bytes, self.at)?;
            self.at += bytes.len() as u64;
        } else {
            self.gathered.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Leaves a hole.
    fn skip(&mut self, len_bytes: u64) -> Result<()> {
        self.flush()?;
        self.at += len_bytes;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.gathered.is_empty() {
            self.file.write_at(&self.gathered, self.at)?;
            self.at += self.gathered.len() as u64;
            self.gathered.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<FinishedFile> {
        self.flush()?;
        if self.file.len_bytes() < self.at {
            self.file.write_at(&[0], self.at - 1)?;
        }
        self.file.finish()
    }
}

/// A staged file to be read again.
struct Staged {
    file: Box<dyn NewFile>,
    stat: ObjectStat,
}

impl Staged {
    fn new(file: Box<dyn NewFile>) -> Self {
        let stat = ObjectStat {
            len_bytes: file.len_bytes(),
            version: ObjectVersion("staged".into()),
            modified: None,
            owner: Ownership { mode: 0, uid: 0, gid: 0 },
        };
        Self { file, stat }
    }
}

impl ObjectSource for Staged {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }
}
