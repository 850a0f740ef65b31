//! Objects in memory, and encoders.

use std::io::Write;
use std::sync::Arc;

use cinderfs::codec::{Codec, Decoder, decoder};
use cinderfs::store::{ObjectSource, ObjectStat, ObjectVersion, Ownership};
use cinderfs::{Error, ErrorKind, Result};

type ReadAt = dyn Fn(&mut [u8], u64) -> Result<usize> + Send + Sync;

/// An object whose bytes a closure gives.
pub(crate) struct Object {
    stat: ObjectStat,
    read_at: Box<ReadAt>,
}

impl Object {
    pub(crate) fn new(
        len_bytes: u64,
        read_at: impl Fn(&mut [u8], u64) -> Result<usize> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let stat = ObjectStat {
            len_bytes,
            version: ObjectVersion("1".into()),
            modified: None,
            owner: Ownership { mode: 0o600, uid: 0, gid: 0 },
        };
        Arc::new(Self { stat, read_at: Box::new(read_at) })
    }

    /// `stored`, read at most `read_bytes_max` at a time.
    pub(crate) fn of(stored: Vec<u8>, read_bytes_max: usize) -> Arc<Self> {
        Self::new(stored.len() as u64, move |buf, offset| {
            let rest = &stored[stored.len().min(offset as usize)..];
            let n = rest.len().min(buf.len()).min(read_bytes_max);
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        })
    }

    /// `head`, then `body` again and again.
    pub(crate) fn endless(head: Vec<u8>, body: Vec<u8>) -> Arc<Self> {
        Self::new(1 << 40, move |buf, offset| {
            for (i, byte) in buf.iter_mut().enumerate() {
                let at = offset as usize + i;
                *byte = head.get(at).copied().unwrap_or_else(|| body[(at - head.len()) % body.len()]);
            }
            Ok(buf.len())
        })
    }
}

impl ObjectSource for Object {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        (self.read_at)(buf, offset)
    }
}

pub(crate) fn open(codec: Codec, stored: &[u8]) -> Box<dyn Decoder> {
    decoder(codec, Object::of(stored.to_vec(), usize::MAX)).unwrap()
}

/// Reads to the end or the error, `read_bytes` at a time; checks that the last state stays.
pub(crate) fn drain(decoder: &mut dyn Decoder, read_bytes: usize) -> (Vec<u8>, Option<Error>) {
    let (mut plain, mut buf) = (Vec::new(), vec![0; read_bytes]);
    loop {
        match decoder.read(&mut buf) {
            Ok(0) => {
                assert_eq!(decoder.read(&mut buf).unwrap(), 0, "data after the end");
                return (plain, None);
            }
            Ok(n) => plain.extend_from_slice(&buf[..n]),
            Err(error) => {
                let again = decoder.read(&mut buf).expect_err("data after an error");
                assert_eq!((again.kind(), again.to_string()), (error.kind(), error.to_string()));
                return (plain, Some(error));
            }
        }
    }
}

/// All plain bytes of an undamaged object.
pub(crate) fn plain(codec: Codec, stored: &[u8]) -> Vec<u8> {
    let (plain, error) = drain(&mut *open(codec, stored), 65_536);
    assert!(error.is_none(), "{codec}: {error:?}");
    plain
}

/// What a damaged object gives: the bytes before, and the error with its words.
pub(crate) fn failure(codec: Codec, stored: &[u8]) -> (Vec<u8>, ErrorKind, String) {
    let (plain, error) = drain(&mut *open(codec, stored), 65_536);
    let error = error.expect("an error");
    (plain, error.kind(), error.to_string())
}

pub(crate) fn zlib(plain: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn bz2(plain: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// One frame with content size and checksum.
pub(crate) fn zstd(plain: &[u8], level: i32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.set_pledged_src_size(Some(plain.len() as u64)).unwrap();
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// One frame without content size.
pub(crate) fn zstd_unsized(plain: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn encode(codec: Codec, plain: &[u8]) -> Vec<u8> {
    match codec {
        Codec::None => plain.to_vec(),
        Codec::Zlib => zlib(plain, 6),
        Codec::Bz2 => bz2(plain, 9),
        Codec::Zstd => zstd(plain, 3),
    }
}

pub(crate) const ALL: [Codec; 4] = [Codec::None, Codec::Zlib, Codec::Bz2, Codec::Zstd];
pub(crate) const COMPRESSED: [Codec; 3] = [Codec::Zlib, Codec::Bz2, Codec::Zstd];

/// Bytes that compress some: words, runs and noise, the same for the same length.
pub(crate) fn mixed(len: usize) -> Vec<u8> {
    let (mut bytes, mut state) = (Vec::with_capacity(len + 300), 0x2545_f491_4f6c_dd1du64);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match state % 4 {
            0 => bytes.extend_from_slice(&state.to_le_bytes()),
            1 => bytes.extend_from_slice(&[(state >> 8) as u8; 200][..(state >> 16) as usize % 200]),
            _ => bytes.extend_from_slice(format!("volume {} backup ", (state >> 8) % 1000).as_bytes()),
        }
    }
    bytes.truncate(len);
    bytes
}
