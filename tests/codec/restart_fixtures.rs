//! Does every object that genuine Cinder wrote restart from every point that there is in it?
//!
//! The plain bytes are those of another decoder, and have the md5 that Cinder wrote beside the object.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cinderfs::codec::{Codec, Decoder, ObjectStream, Recording, RestartPoint};
use cinderfs::store::ObjectSource;
use cinderfs::types::Md5;
use cinderfs::workers::Workers;
use md5::{Digest as _, Md5 as Md5Hasher};
use serde_json::Value;

use crate::kit::{Object, drain};

/// Plain bytes read from every point at least: more than the window of zlib, so that each byte of it is used that ever is.
const AT_LEAST_BYTES: usize = 64 << 10;

/// From every so many points all is read to the end.
const TO_THE_END_EVERY: usize = 16;

/// What was seen of the objects of one codec.
#[derive(Debug, Default)]
struct Seen {
    objects: usize,
    /// Objects that have a point.
    with_points: usize,
    points: usize,
    /// Points that begin at each bit of a byte.
    bits: [usize; 8],
    to_the_end: usize,
}

fn metadata_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            metadata_files(&path, found);
        } else if path.to_str().unwrap().ends_with("_metadata") {
            found.push(path);
        }
    }
}

/// The plain bytes as a library gives them that is asked for all at once.
fn by_library(codec: Codec, stored: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match codec {
        Codec::None => plain.extend_from_slice(stored),
        Codec::Zlib => drop(flate2::read::ZlibDecoder::new(stored).read_to_end(&mut plain).unwrap()),
        Codec::Bz2 => drop(bzip2::read::MultiBzDecoder::new(stored).read_to_end(&mut plain).unwrap()),
        Codec::Zstd => plain = zstd::decode_all(stored).unwrap(),
    }
    plain
}

/// Reads to the end and takes every point that there is.
fn every_point(stream: &ObjectStream, plain: &[u8]) -> Vec<RestartPoint> {
    let mut decoder = stream.start().unwrap();
    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
    let (mut points, mut given, mut buf) = (Vec::new(), 0, vec![0; 4096]);
    loop {
        let len = decoder.read(&mut buf).unwrap();
        assert!(plain[given..].starts_with(&buf[..len]), "recording changed the bytes at {given}");
        given += len;
        points.extend(decoder.take_points());
        for followed in decoder.take_followed() {
            let at = followed.plain_offset;
            *points.iter_mut().find(|point| point.plain_offset == at).unwrap() = followed;
        }
        if len == 0 {
            assert_eq!(given, plain.len());
            return points;
        }
    }
}

/// Reads `plain` and no byte else.
fn reads(decoder: &mut dyn Decoder, plain: &[u8]) -> bool {
    let (mut buf, mut rest) = (vec![0; 40_000], plain);
    while !rest.is_empty() {
        let room = buf.len().min(rest.len());
        match decoder.read(&mut buf[..room]).unwrap() {
            0 => return false,
            len if rest.starts_with(&buf[..len]) => rest = &rest[len..],
            _ => return false,
        }
    }
    true
}

fn restarts_everywhere(codec: Codec, name: &str, stored: Vec<u8>, plain: &[u8], seen: &mut Seen) {
    let source: Arc<dyn ObjectSource> = Object::of(stored, usize::MAX);
    // One each time: decoders of one stream may share what they decoded, and then a point would not be tried.
    let stream = || ObjectStream::new(codec, source.clone(), Arc::new(Workers::new(0)));
    let points = every_point(&stream(), plain);
    for (n, point) in points.iter().enumerate() {
        let at = point.plain_offset as usize;
        let next_end = points.get(n + 2).map_or(plain.len(), |after| after.plain_offset as usize);
        let is_last = n % TO_THE_END_EVERY == 0 || n + 1 == points.len();
        let end = if is_last { plain.len() } else { plain.len().min(next_end.max(at + AT_LEAST_BYTES)) };
        let packed = stream().pack(point.clone());
        assert!(packed.state.len() <= point.state.len());
        for (how, point) in [("raw", point), ("packed", &packed)] {
            if how == "packed" && point.state == points[n].state {
                continue;
            }
            let what = || format!("{name}: {how} point {n} of {} at {at}", points.len());
            let mut decoder = stream().resume(point).unwrap_or_else(|error| panic!("{}: {error}", what()));
            assert!(reads(&mut *decoder, &plain[at..end]), "{}: other bytes up to {end}", what());
            if is_last {
                let (rest, error) = drain(&mut *decoder, 100);
                assert!(rest.is_empty() && error.is_none(), "{}: behind the end: {error:?}", what());
                seen.to_the_end += 1;
            }
        }
        seen.bits[point.stored_bits as usize % 8] += 1;
    }
    seen.objects += 1;
    seen.with_points += usize::from(!points.is_empty());
    seen.points += points.len();
}

/// Every object of which the metadata of any fixture says that it is compressed so.
fn every_object_restarts(codec: Codec) -> Seen {
    let (mut documents, mut seen) = (Vec::new(), Seen::default());
    metadata_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores"), &mut documents);
    for document in &documents {
        let metadata: Value = serde_json::from_slice(&fs::read(document).unwrap()).unwrap();
        for entry in metadata["objects"].as_array().unwrap() {
            let (name, object) = entry.as_object().unwrap().iter().next().unwrap();
            if Codec::from_name(object["compression"].as_str().unwrap()) != Some(codec) {
                continue;
            }
            let path = document.parent().unwrap().join(name);
            let stored = fs::read(&path).unwrap();
            let plain = by_library(codec, &stored);
            let md5 = Md5(Md5Hasher::digest(&plain).into());
            assert_eq!(md5.to_string(), object["md5"].as_str().unwrap(), "{name}");
            restarts_everywhere(codec, path.to_str().unwrap(), stored, &plain, &mut seen);
        }
    }
    seen
}

#[test]
fn every_zlib_object_restarts_from_every_point() {
    let seen = every_object_restarts(Codec::Zlib);
    assert!(seen.objects >= 279 && seen.with_points >= 38 && seen.points >= 203, "{seen:?}");
    assert!(seen.bits.iter().all(|n| *n >= 13), "{seen:?}");
}

/// Nearly all are one block, and the start of an object is no point.
#[test]
fn every_bz2_object_restarts_from_every_point() {
    let seen = every_object_restarts(Codec::Bz2);
    assert!(seen.objects >= 211 && seen.points >= 1, "{seen:?}");
}

#[test]
fn every_zstd_object_restarts_from_every_point() {
    let seen = every_object_restarts(Codec::Zstd);
    assert!(seen.objects >= 147 && seen.with_points >= 15 && seen.points >= 233, "{seen:?}");
}
