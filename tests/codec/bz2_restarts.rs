//! bz2 objects entered at their blocks: genuine ones, and with threads that decode ahead.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cinderfs::codec::{Codec, ObjectStream, Recording};
use cinderfs::workers::Workers;

use crate::kit::{Object, bz2, drain, mixed};

fn stream(stored: Vec<u8>, threads: usize) -> ObjectStream {
    ObjectStream::new(Codec::Bz2, Object::of(stored, usize::MAX), Arc::new(Workers::new(threads)))
}

/// Reads all, then from every point; returns how many points there are.
fn restart_everywhere(stored: Vec<u8>, spacing_bytes: u64, threads: usize) -> usize {
    let stream = stream(stored, threads);
    let mut decoder = stream.start().unwrap();
    decoder.record(Some(Recording { from: 0, spacing_bytes }));
    let (plain, error) = drain(&mut *decoder, 50_000);
    assert!(error.is_none(), "{error:?}");
    let points = decoder.take_points();
    for point in &points {
        let (rest, error) = drain(&mut *stream.resume(point).unwrap(), 50_000);
        assert!(rest == plain[point.plain_offset as usize..] && error.is_none(), "{point:?}: {error:?}");
    }
    points.len()
}

fn objects(folder: &Path, found: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            objects(&path, found);
        } else {
            let stored = fs::read(&path).unwrap();
            if stored.starts_with(b"BZh") {
                found.push(stored);
            }
        }
    }
}

#[test]
fn every_genuine_object_restarts_at_every_block() {
    let mut found = Vec::new();
    objects(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores"), &mut found);
    assert!(found.len() >= 10, "{} objects", found.len());
    for (n, stored) in found.into_iter().enumerate() {
        restart_everywhere(stored, 1, n % 3);
    }
}

#[test]
fn points_are_noted_only_where_they_are_wanted_and_not_too_close() {
    let bytes = mixed(3_000_000);
    let stored = bz2(&bytes, 1);
    let all = restart_everywhere(stored.clone(), 4 << 20, 2);
    assert!(all >= 10, "{all} points");
    let stream = stream(stored, 0);
    let mut decoder = stream.start().unwrap();
    decoder.record(Some(Recording { from: 1_500_000, spacing_bytes: 4 << 20 }));
    let mut buf = vec![0; 1_000_000];
    let mut given = 0;
    loop {
        let len = decoder.read(&mut buf).unwrap();
        given += len as u64;
        let points = decoder.take_points();
        assert!(points.iter().all(|point| (1_500_000..=given).contains(&point.plain_offset)));
        if len == 0 {
            break;
        }
    }
    // Without a wish there are none.
    let mut decoder = stream.start().unwrap();
    drain(&mut *decoder, 50_000);
    assert!(decoder.take_points().is_empty());
}

#[test]
fn small_streams_one_after_the_other_restart_in_each() {
    let (one, many) = (mixed(90_000), 20);
    let points = restart_everywhere(bz2(&one, 9).repeat(many), 1, 2);
    assert_eq!(points, many - 1);
}

#[test]
fn readers_that_leave_leave_nothing_that_stops_others() {
    // More readers that pause with blocks ahead of them than there is room for.
    let bytes = mixed(6_000_000);
    let stored = bz2(&bytes, 1);
    let stream = stream(stored, 3);
    let mut paused = Vec::new();
    for _ in 0..12 {
        let mut decoder = stream.start().unwrap();
        let mut buf = vec![0; 1_500_000];
        assert_eq!(decoder.read(&mut buf).unwrap(), buf.len());
        paused.push(decoder);
    }
    for (n, mut decoder) in paused.into_iter().enumerate() {
        if n % 2 == 0 {
            assert!(drain(&mut *decoder, 100_000).0 == bytes[1_500_000..]);
        }
    }
}
