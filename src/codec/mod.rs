//! Compressed streams: none, zlib, bz2, zstd.
//!
//! Problem: an object holds up to 2 GB of plain bytes in one stream, and the stream is hostile until its blocks have
//! been verified. Idea: a [`Decoder`] is a cursor that only moves forward, with bounded memory whatever the stream
//! says. It may note on its way where decoding could start again ([`RestartPoint`]); what is made of that is the
//! business of [`crate::object`], which keeps points and reuses cursors.
//!
//! Invariants: a decoder never allocates by what the stream claims beyond the named bounds; it never reads the stored
//! bytes whole; its end is the stream's own end, as genuine Cinder sees it (bytes after a zlib stream are ignored, bz2
//! streams are concatenated).

mod restart;
mod input;
mod stream;
mod none;
mod verbatim;
pub(crate) mod zlib;
mod bz2;
mod zstd;
pub(crate) mod windows;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::restart::{Needed, Recording, RestartPoint};
use self::stream::StreamDecoder;
pub use self::verbatim::Verbatim;
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectSource;
use crate::workers::Workers;

/// How an object is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Codec {
    /// Stored as it is.
    None,
    /// One RFC 1950 stream (never an RFC 1952 gzip file, though Cinder also calls it `gzip`).
    Zlib,
    /// One or more bzip2 streams.
    Bz2,
    /// Zstandard frames.
    Zstd,
}

impl Codec {
    /// The codec by the name in `compression`, as Cinder spells it, in any case; `None` for an unknown name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "none" | "off" | "no" => Some(Self::None),
            "zlib" | "gzip" => Some(Self::Zlib),
            "bz2" | "bzip2" => Some(Self::Bz2),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// How far apart restart points should be, in plain bytes, unless readers come back to a place often; `None` where
    /// any byte is there at once.
    pub fn spacing_bytes(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Zlib => Some(2 << 20),
            // Every block, but for tiny ones: a point costs nothing to note, a block that is skipped 20 ms.
            Self::Bz2 => Some(bz2::POINT_SPACING_BYTES),
            Self::Zstd => Some(zstd::SPACING_BYTES),
        }
    }

    /// How long an object must be for restart points to be of use, in plain bytes, if they are as far apart as usual.
    pub fn indexed_above_bytes(self) -> Option<u64> {
        match self {
            // The length of a block: a shorter object has no point, or one that saves milliseconds.
            Self::Bz2 => Some(1 << 20),
            Self::None | Self::Zlib | Self::Zstd => self.spacing_bytes(),
        }
    }

    /// How dense points may become where readers come back often, in plain bytes; `None` where that would cost too much.
    pub fn dense_spacing_bytes(self) -> Option<u64> {
        match self {
            Self::Zlib => Some(512 << 10),
            Self::Zstd => Some(16 << 20),
            Self::None | Self::Bz2 => None,
        }
    }

    /// The name that Cinder writes.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Bz2 => "bz2",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The frames of a zstd stream, as far as others who read it care.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frames {
    /// How many there are that hold data.
    pub count: u64,
    /// How many of them tell their length.
    pub sized: u64,
    /// Whether each one but the last of all, skippable ones included, is smaller than all that follow it together.
    pub each_fits_before_the_rest: bool,
}

/// A cursor over the plain bytes of one object; it only moves forward.
pub trait Decoder: Send {
    /// Decodes the next plain bytes into `out`; returns how many, 0 only at the end of the plain bytes (or for an empty
    /// `out`). What was decoded before an error is returned first.
    ///
    /// Fails with [`ErrorKind::Truncated`] when the object ends before its stream,
    /// [`ErrorKind::Codec`] when the stream is damaged,
    /// [`ErrorKind::LimitExceeded`] when it asks for more than the bounds, and with the
    /// store's error when the object cannot be read. After an error the decoder is spent and gives the same error again.
    fn read(&mut self, out: &mut [u8]) -> Result<usize>;

    /// Notes restart points from now on, as `recording` says, or (`None`) no more. Decoders that cannot, do not.
    fn record(&mut self, _recording: Option<Recording>) {}

    /// Takes the restart points passed since the last call, in order; each lies at or before the bytes given so far.
    fn take_points(&mut self) -> Vec<RestartPoint> {
        Vec::new()
    }

    /// Takes points that were taken before, once more: by now their states hold what follows them, and pack smaller.
    fn take_followed(&mut self) -> Vec<RestartPoint> {
        Vec::new()
    }

    /// How many stored bytes the stream took, once its plain bytes have ended well; `None` before, and where the stream's end
    /// is not known apart from the object's.
    fn stored_end(&self) -> Option<u64> {
        None
    }

    /// Which frames a zstd stream had, once its plain bytes have ended well; `None` before, and for other codecs.
    fn frames(&self) -> Option<Frames> {
        None
    }

    /// About how much memory this decoder holds, in bytes, points that were not taken included.
    fn memory_bytes(&self) -> usize;

    /// Whether it holds a window out of the process's budget for large ones, for which others may wait.
    fn holds_large_window(&self) -> bool {
        false
    }
}

/// The stream of one object, and what its decoders share.
pub struct ObjectStream {
    codec: Codec,
    source: Arc<dyn ObjectSource>,
    /// Who may decode ahead, where a codec's parts are independent.
    workers: Arc<Workers>,
    /// What the decoders of a bz2 object share.
    bz2: Mutex<Option<Arc<bz2::Object>>>,
}

impl ObjectStream {
    /// The stream of `source`. Reads nothing yet.
    pub fn new(codec: Codec, source: Arc<dyn ObjectSource>, workers: Arc<Workers>) -> Self {
        Self { codec, source, workers, bz2: Mutex::default() }
    }

    /// Who decodes ahead.
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// How it is compressed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Its stored bytes.
    pub fn source(&self) -> &Arc<dyn ObjectSource> {
        &self.source
    }

    /// A decoder at the object's start. Reads nothing yet.
    pub fn start(&self) -> Result<Box<dyn Decoder>> {
        self.start_for(None)
    }

    /// The same for a reader that is about to need only so much, as far as that is known.
    pub fn start_for(&self, needed: Option<Needed>) -> Result<Box<dyn Decoder>> {
        let source = self.source.clone();
        match self.codec {
            Codec::None => Ok(Box::new(none::NoneDecoder::new(source))),
            Codec::Zlib => Ok(Box::new(StreamDecoder::at(zlib::Zlib::new()?, source, 0, needed))),
            Codec::Bz2 => Ok(Box::new(bz2::Bz2Decoder::start(self.bz2()))),
            Codec::Zstd => Ok(Box::new(StreamDecoder::at(zstd::Zstd::new()?, source, 0, needed))),
        }
    }

    /// A decoder that goes on from `point`, whose first byte is that at `point.plain_offset`.
    ///
    /// Fails with [`ErrorKind::Codec`] when the point cannot be one of this stream; a wrong one
    /// that is not noticed here leads to wrong bytes or a failed read.
    pub fn resume(&self, point: &RestartPoint) -> Result<Box<dyn Decoder>> {
        self.resume_for(point, None)
    }

    /// The same for a reader that is about to need only so much, as far as that is known.
    pub fn resume_for(&self, point: &RestartPoint, needed: Option<Needed>) -> Result<Box<dyn Decoder>> {
        let source = self.source.clone();
        match self.codec {
            Codec::Zlib => {
                let (stream, offset) = zlib::Zlib::resume(point, source.stat().len_bytes)?;
                Ok(Box::new(StreamDecoder::at(stream, source, offset, needed)))
            }
            Codec::Zstd => {
                let (stream, offset) = zstd::Zstd::resume(point)?;
                Ok(Box::new(StreamDecoder::at(stream, source, offset, needed)))
            }
            Codec::Bz2 => Ok(Box::new(bz2::Bz2Decoder::resume(self.bz2(), point)?)),
            Codec::None => {
                let message = format!("{}: no restart at plain offset {}", self.codec, point.plain_offset);
                Err(Error::new(ErrorKind::Codec, message))
            }
        }
    }

    /// The state of a point of this stream at which what follows refers to nothing before it, as our writer makes them: behind a full
    /// flush of zlib, at the head of a bz2 stream, where an independent job of zstd begins. Reads a frame's header of zstd, of
    /// which all these points must be.
    ///
    /// Fails with [`ErrorKind::Codec`] when there can be no such points, and with the store's error.
    pub fn state_of_nothing(&self) -> Result<Arc<[u8]>> {
        match self.codec {
            Codec::Zlib | Codec::Bz2 => Ok(Arc::new([])),
            Codec::Zstd => zstd::state_of_nothing(&*self.source),
            Codec::None => Err(Error::new(ErrorKind::Codec, format!("{}: no restart points", self.codec))),
        }
    }

    /// Whether parts of the stream can be found by marks of their own.
    pub fn has_marks(&self) -> bool {
        self.codec == Codec::Bz2
    }

    /// Restart points behind damage, found by the marks of blocks alone; `from_bits` is a point's at or before the damage (0: the object's
    /// start), `len_bytes` the plain length of the whole. Empty where nothing can be found so. Decodes all that follows; fails only
    /// where the store does.
    pub fn points_behind_damage(&self, from_bits: u64, len_bytes: u64) -> Result<Vec<RestartPoint>> {
        match self.codec {
            Codec::Bz2 => bz2::points_behind_damage(&self.bz2(), from_bits, len_bytes),
            Codec::None | Codec::Zlib | Codec::Zstd => Ok(Vec::new()),
        }
    }

    /// Forgets what was decoded for others, because the stored bytes were not those of the object. Decoders that were made before keep what
    /// they know.
    pub fn forget_decoded(&self) {
        // Those that are waited for are filed under the old one.
        drop(self.shared_bz2().take());
    }

    fn bz2(&self) -> Arc<bz2::Object> {
        let new = || bz2::Object::new(self.source.clone(), self.workers.clone());
        self.shared_bz2().get_or_insert_with(new).clone()
    }

    fn shared_bz2(&self) -> MutexGuard<'_, Option<Arc<bz2::Object>>> {
        self.bz2.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same point with a smaller state, if the codec knows one. Costs about as much as decoding what the state holds,
    /// so it is done beside the reading.
    pub fn pack(&self, point: RestartPoint) -> RestartPoint {
        match self.codec {
            Codec::Zlib => zlib::pack(point),
            Codec::Zstd => zstd::pack(&*self.source, point),
            Codec::None | Codec::Bz2 => point,
        }
    }
}

/// A decoder at the start of an object, on the caller's thread alone. Reads nothing yet.
pub fn decoder(codec: Codec, source: Arc<dyn ObjectSource>) -> Result<Box<dyn Decoder>> {
    ObjectStream::new(codec, source, Arc::new(Workers::new(0))).start()
}
