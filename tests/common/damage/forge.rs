//! Makes what no genuine Cinder writes: bombs, foreign streams, and backups of any block size.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use bzip2::write::BzEncoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compress, Compression, FlushCompress};
use md5::Md5;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::world::{Truth, World, hex};

/// A small generator, the same in each run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn bz2(plain: &[u8]) -> Vec<u8> {
    let mut encoder = BzEncoder::new(Vec::new(), bzip2::Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, 3).unwrap()
}

fn zstd_without_size(plain: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(plain, 3).unwrap()
}

/// A skippable frame with 5 bytes.
const SKIPPABLE: &[u8] = b"\x50\x2a\x4d\x18\x05\x00\x00\x00index";

/// Compresses the plain bytes of an object of the fixture in another way.
pub(crate) fn recode(world: &World, file: &str, how: &str) {
    let (fixture, suffix) = world.owner(file).unwrap();
    let metadata: Value =
        serde_json::from_slice(&fs::read(world.path(&format!("@{}_metadata", fixture.order))).unwrap())
            .unwrap();
    let name = format!("{}{suffix}", fixture.prefix);
    let objects = metadata["objects"].as_array().unwrap();
    let object = objects.iter().find_map(|entry| entry.get(&name)).unwrap();
    let offset = object["offset"].as_u64().unwrap() as usize;
    let Truth::Bytes(image) = &world.truth[&fixture.id] else { panic!("no bytes") };
    let plain = &image[offset..offset + object["length"].as_u64().unwrap() as usize];
    let (first, second) = plain.split_at(plain.len() / 2);
    let longer = || [plain, &[7; 70_000]].concat();
    let stored = match how {
        "zlib" => zlib(plain),
        "zlib-two-streams" => [zlib(first), zlib(second)].concat(),
        "zlib-longer" => zlib(&longer()),
        "zlib-shorter" => zlib(first),
        "gzip-file" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        "bz2-two-streams" => [bz2(first), bz2(second)].concat(),
        "bz2-longer" => bz2(&longer()),
        "bz2-shorter" => bz2(first),
        "zstd-two-frames" => [zstd(first), zstd(second)].concat(),
        "zstd-without-size" => [zstd_without_size(first), zstd_without_size(second)].concat(),
        "zstd-skippable" => [SKIPPABLE, &zstd(plain), SKIPPABLE].concat(),
        "zstd-longer" => zstd(&longer()),
        "zstd-shorter" => zstd(first),
        "none-longer" => longer(),
        "none-shorter" => first.to_vec(),
        other => panic!("no such way: {other:?}"),
    };
    fs::write(world.path(file), stored).unwrap();
}

/// Writes a stream of `mib` MiB of one byte, without ever compressing so much.
pub(crate) fn bomb(path: &Path, codec: &str, mib: u64, byte: u8) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    match codec {
        // Each MiB ends at a full flush, which forgets what was before: so all are the same.
        "zlib" => {
            let (plain, mut piece) = (vec![byte; 1 << 20], Vec::with_capacity(1 << 16));
            let mut deflate = Compress::new(Compression::best(), false);
            deflate.compress_vec(&plain, &mut piece, FlushCompress::Full).unwrap();
            assert_eq!(deflate.total_in(), 1 << 20);
            file.write_all(&[0x78, 0xda])?;
            (0..mib).try_for_each(|_| file.write_all(&piece))?;
        }
        "bz2" => {
            let stream = bz2(&vec![byte; 16 << 20]);
            (0..mib.div_ceil(16)).try_for_each(|_| file.write_all(&stream))?;
        }
        // A window of 128 MiB, and blocks that say "this byte 131,072 times".
        "zstd" => {
            file.write_all(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3])?;
            let blocks = mib * 8;
            for i in 0..blocks {
                let header = u32::from(i + 1 == blocks) | 1 << 1 | (128 << 10) << 3;
                file.write_all(&header.to_le_bytes()[..3])?;
                file.write_all(&[byte])?;
            }
        }
        "none" => {
            let plain = vec![byte; 1 << 20];
            (0..mib).try_for_each(|_| file.write_all(&plain))?;
        }
        other => panic!("no codec {other:?}"),
    }
    file.flush()
}

/// A full backup that is made here, as Cinder would.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Build {
    pub(crate) id: String,
    /// Length of the volume.
    bytes: u64,
    block_bytes: u64,
    object_bytes: u64,
    compression: String,
    /// `random`; `zeros`, where the objects are bombs that decode to all of it; `bomb`, where they are bombs of other
    /// bytes than the digests tell.
    content: String,
}

impl Build {
    /// The same backup; where it is all zeros, no longer than this.
    #[allow(dead_code, reason = "one test binary wants it smaller")]
    pub(crate) fn with_zeros_up_to(&self, bytes_max: u64) -> Self {
        let bytes = if self.content == "zeros" { self.bytes.min(bytes_max) } else { self.bytes };
        Self { bytes, object_bytes: self.object_bytes.min(bytes), ..self.clone() }
    }

    /// Writes the backup and returns what it holds.
    pub(crate) fn write(&self, root: &Path) -> Truth {
        let folder = root.join("built").join(&self.id);
        fs::create_dir_all(&folder).unwrap();
        let truth = match self.content.as_str() {
            "random" => {
                let mut random = Random(self.bytes + self.block_bytes);
                let words = (0..self.bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes());
                Truth::Bytes(Arc::new(words.take(self.bytes as usize).collect()))
            }
            "zeros" | "bomb" => Truth::Zeros(self.bytes),
            other => panic!("no content {other:?}"),
        };
        let mut objects = Vec::new();
        for (index, offset) in (0..self.bytes).step_by(self.object_bytes as usize).enumerate() {
            let name = format!("backup-{:05}", index + 1);
            let len = self.object_bytes.min(self.bytes - offset);
            let md5 = match &truth {
                Truth::Bytes(bytes) => {
                    let plain = &bytes[offset as usize..(offset + len) as usize];
                    let stored = match self.compression.as_str() {
                        "none" => plain.to_vec(),
                        "zlib" => zlib(plain),
                        "bz2" => bz2(plain),
                        _ => zstd(plain),
                    };
                    fs::write(folder.join(&name), stored).unwrap();
                    hex(&Md5::digest(plain))
                }
                Truth::Zeros(_) => {
                    let byte = if self.content == "zeros" { 0 } else { b'a' };
                    bomb(&folder.join(&name), &self.compression, len.div_ceil(1 << 20), byte).unwrap();
                    "00000000000000000000000000000000".into()
                }
            };
            let value =
                json!({ "compression": self.compression, "length": len, "md5": md5, "offset": offset });
            objects.push(Value::Object(Map::from_iter([(name, value)])));
        }
        self.document(&folder, "metadata", &[("objects", json!(objects)), ("parent_id", Value::Null)]);
        let digests = self.digests(&truth);
        self.document(
            &folder,
            "sha256file",
            &[("chunk_size", json!(self.block_bytes)), ("sha256s", json!(digests))],
        );
        truth
    }

    fn digests(&self, truth: &Truth) -> Vec<String> {
        let of_len = |len: u64| hex(&Sha256::digest(vec![0; len as usize]));
        match truth {
            Truth::Bytes(bytes) => {
                bytes.chunks(self.block_bytes as usize).map(|block| hex(&Sha256::digest(block))).collect()
            }
            Truth::Zeros(bytes) if self.content == "zeros" => {
                assert!(bytes.is_multiple_of(self.block_bytes));
                vec![of_len(self.block_bytes); (bytes / self.block_bytes) as usize]
            }
            Truth::Zeros(bytes) => {
                (0..bytes / self.block_bytes).map(|i| hex(&Sha256::digest(i.to_le_bytes()))).collect()
            }
        }
    }

    fn document(&self, folder: &Path, kind: &str, more: &[(&str, Value)]) {
        let mut document = json!({
            "backup_description": null,
            "backup_id": self.id,
            "backup_name": null,
            "created_at": "2024-05-01 00:00:00+00:00",
            "version": "1.0.0",
            "volume_id": "built",
        });
        for (key, value) in more {
            document[key] = value.clone();
        }
        fs::write(folder.join(format!("backup_{kind}")), serde_json::to_vec_pretty(&document).unwrap())
            .unwrap();
    }
}
