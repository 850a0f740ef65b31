//! What writing objects costs and gives: stored bytes, speed on one core and on several, time of a random read.
//!
//! Usage: `encode_cost FILE CODEC [THREADS [OBJECT]]`. FILE is held in memory. Threads (default 1) take pieces in turns; pieces of
//! each thread's turn are assembled in order. With OBJECT the object is written there. Speed is in MB (10^6 bytes) a second of
//! the wall clock. Then blocks of 32 KiB at random places are decoded from the entry point before each: the object is in
//! memory, so this is the decoder's time alone. Text on stdout.
#![allow(clippy::print_stdout, reason = "output is what the program is for")]

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cinderfs::codec::{Codec, Decoder, ObjectStream, RestartPoint, decoder};
use cinderfs::store::memory::MemoryStore;
use cinderfs::store::{ObjectSource, Store};
use cinderfs::types::ObjectName;
use cinderfs::workers::Workers;
use cinderfs::writer::encode::{EncodedPiece, Encoder, EntryPoint, ObjectAssembler};

const BLOCK_BYTES: usize = 32 * 1024;
const SEEKS: usize = 4000;

fn source(bytes: &[u8]) -> Result<Arc<dyn ObjectSource>, Box<dyn Error>> {
    let (store, name) = (MemoryStore::new(), ObjectName::parse("container/object")?);
    store.insert(name.clone(), bytes);
    Ok(store.open(&name)?)
}

/// All pieces of `plain`, in order, made by `threads` threads.
fn encode(encoder: &Encoder, plain: &[u8], threads: usize) -> cinderfs::Result<Vec<EncodedPiece>> {
    let pieces: Vec<&[u8]> = plain.chunks(encoder.piece_bytes(BLOCK_BYTES)).collect();
    let next = AtomicUsize::new(0);
    let mut made: Vec<(usize, cinderfs::Result<EncodedPiece>)> = std::thread::scope(|scope| {
        let work = || {
            let mut made = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                match pieces.get(n) {
                    Some(piece) => made.push((n, encoder.encode_piece(piece))),
                    None => return made,
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
    });
    made.sort_by_key(|(n, _)| *n);
    made.into_iter().map(|(_, piece)| piece).collect()
}

/// A decoder at `entry`, and what it needs to begin there.
fn enter(stream: &ObjectStream, object: &[u8], entry: &EntryPoint) -> cinderfs::Result<Box<dyn Decoder>> {
    let at = |stored_bits, state: &[u8]| RestartPoint {
        plain_offset: entry.plain_offset,
        stored_bits,
        state: state.into(),
    };
    match stream.codec() {
        Codec::Bz2 => stream.resume(&at((entry.stored_offset + 4) * 8, &[9])),
        Codec::Zstd => {
            // As a frame of its own; a reader has a restart point for it.
            let end = object.len().min(entry.stored_offset as usize + 600_000);
            let rest = &object[entry.stored_offset as usize..end];
            let frame = [&object[..4], &[0], &object[5..6], rest].concat();
            let frame = source(&frame)
                .map_err(|e| cinderfs::Error::new(cinderfs::ErrorKind::Usage, e.to_string()))?;
            decoder(Codec::Zstd, frame)
        }
        Codec::Zlib | Codec::None => stream.resume(&at(entry.stored_offset * 8, &[])),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, codec, rest @ ..] = &args[..] else {
        return Err("usage: encode_cost FILE CODEC [THREADS [OBJECT]]".into());
    };
    let codec = Codec::from_name(codec).ok_or("no such codec")?;
    let threads: usize = rest.first().map_or(Ok(1), |threads| threads.parse())?;
    let plain = std::fs::read(path)?;
    let encoder = Encoder::new(codec, None)?;

    let started = Instant::now();
    let pieces = encode(&encoder, &plain, threads)?;
    let encoded = started.elapsed().as_secs_f64();
    let (mut object, mut entries) = (Vec::new(), Vec::new());
    let mut assembler = ObjectAssembler::new(&encoder);
    for piece in &pieces {
        let appended = assembler.append(piece, |bytes| {
            object.extend_from_slice(bytes);
            Ok(())
        })?;
        entries.extend(appended.entry_points());
    }
    let finished = assembler.finish(|bytes| {
        object.extend_from_slice(bytes);
        Ok(())
    })?;
    if let Some(patch) = finished.patch {
        object[patch.offset as usize..][..patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
    let (plain_mb, stored) = (plain.len() as f64 / 1e6, finished.stored_bytes);
    println!(
        "{codec}: {stored} stored of {} plain bytes ({:.4}), {:.0} MB/s with {threads} threads, {} entry points",
        plain.len(),
        stored as f64 / plain.len() as f64,
        plain_mb / encoded,
        entries.len(),
    );
    if let Some(path) = rest.get(1) {
        std::fs::write(path, &object)?;
    }
    if entries.is_empty() {
        return Ok(());
    }

    let stream = ObjectStream::new(codec, source(&object)?, Arc::new(Workers::new(0)));
    let (mut seconds, mut number) = (Vec::new(), 0x9E37_79B9_7F4A_7C15u64);
    let mut block = vec![0; BLOCK_BYTES];
    while seconds.len() < SEEKS {
        number = (number ^ number >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9).wrapping_add(1);
        let offset = (number >> 20) as usize % (plain.len() / BLOCK_BYTES) * BLOCK_BYTES;
        let after = entries.partition_point(|entry| entry.plain_offset <= offset as u64);
        let Some(entry) = after.checked_sub(1).map(|n| entries[n]) else { continue };
        let mut decoder = None;
        if codec == Codec::Zstd {
            decoder = Some(enter(&stream, &object, &entry)?); // Copies, so not counted.
        }
        let started = Instant::now();
        let mut decoder = match decoder {
            Some(decoder) => decoder,
            None => enter(&stream, &object, &entry)?,
        };
        let mut at = entry.plain_offset as usize;
        while at < offset + BLOCK_BYTES {
            let wanted = if at < offset { offset - at } else { offset + BLOCK_BYTES - at };
            let room = wanted.min(BLOCK_BYTES);
            match decoder.read(&mut block[..room])? {
                0 => return Err("the object ends too soon".into()),
                read => at += read,
            }
        }
        seconds.push(started.elapsed().as_secs_f64());
        black_box(&block);
    }
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize] * 1e6;
    let mean = seconds.iter().sum::<f64>() / seconds.len() as f64 * 1e6;
    println!(
        "random block: p50 {:.0} us, p90 {:.0} us, p99 {:.0} us, mean {mean:.0} us",
        at(0.5),
        at(0.9),
        at(0.99)
    );
    Ok(())
}
