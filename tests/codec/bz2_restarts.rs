//! bz2 objects entered at their blocks, alone and with threads that decode ahead.

mod forge;
mod kinds;

use std::sync::Arc;

use cinderfs::codec::{Codec, ObjectStream, Recording, RestartPoint};
use cinderfs::store::ObjectSource as _;
use cinderfs::workers::Workers;

use crate::kit::{Object, bz2, drain, mixed};

fn stream(stored: Vec<u8>, threads: usize) -> ObjectStream {
    ObjectStream::new(Codec::Bz2, Object::of(stored, usize::MAX), Arc::new(Workers::new(threads)))
}

/// A stream of its own over an object: streams share what their decoders have decoded, and a point that others have been behind
/// would not be tried.
fn fresh(object: &Arc<Object>, threads: usize) -> ObjectStream {
    ObjectStream::new(Codec::Bz2, object.clone(), Arc::new(Workers::new(threads)))
}

/// Reads all, which must be `plain`, and takes every point.
fn all_points(stream: &ObjectStream, plain: &[u8]) -> Vec<RestartPoint> {
    let mut decoder = stream.start().unwrap();
    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
    let (given, error) = drain(&mut *decoder, 50_000);
    assert!(error.is_none(), "{error:?}");
    assert!(given == plain, "{} bytes, expected {}", given.len(), plain.len());
    decoder.take_points()
}

/// Reads from `point` to the end of `plain`, and perhaps finds that it is the end.
fn restart(stream: &ObjectStream, point: &RestartPoint, plain: &[u8], is_end: bool) {
    let at = point.plain_offset as usize;
    let mut decoder = stream.resume(point).unwrap();
    let (mut got, mut filled) = (vec![0; plain.len() - at], 0);
    while filled < got.len() {
        let room = got.len().min(filled + 70_000);
        let read = decoder.read(&mut got[filled..room]).unwrap_or_else(|error| panic!("{point:?}: {error}"));
        assert!(read > 0, "{point:?}: the end after {filled} bytes");
        filled += read;
    }
    assert!(got == plain[at..], "{point:?}: other bytes");
    if is_end {
        assert_eq!(decoder.read(&mut [0; 9]).unwrap(), 0, "{point:?}: bytes behind the end");
    }
}

/// Restarts at every block of an object that holds `plain`; returns how many points there are.
fn restart_everywhere(stored: Vec<u8>, plain: &[u8], threads: usize) -> usize {
    let object = Object::of(stored, usize::MAX);
    let points = all_points(&fresh(&object, threads), plain);
    points.iter().for_each(|point| restart(&fresh(&object, threads), point, plain, true));
    points.len()
}

#[test]
fn points_are_noted_only_where_they_are_wanted_and_not_too_close() {
    let bytes = mixed(3_000_000);
    let stored = bz2(&bytes, 1);
    let all = restart_everywhere(stored.clone(), &bytes, 2);
    assert!(all >= 10, "{all} points");
    let stream = stream(stored, 0);
    // Every block, although few are wished for: a point costs nothing.
    let mut decoder = stream.start().unwrap();
    decoder.record(Some(Recording { from: 0, spacing_bytes: 4 << 20 }));
    drain(&mut *decoder, 50_000);
    assert_eq!(decoder.take_points().len(), all);
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
    let points = restart_everywhere(bz2(&one, 9).repeat(many), &one.repeat(many), 2);
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
