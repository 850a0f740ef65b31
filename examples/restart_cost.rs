//! What restart points of one zlib object cost and give: time to note and to pack them, their size, time of a seek.
//!
//! A pass that records is compared with one that does not, and with flate2 alone (the same inflater behind its safe
//! interface), in turns within one run. Packing is done by one thread, after the pass, so that both are seen alone.
//!
//! Usage: `restart_cost FILE [ROUNDS]`, where FILE is a zlib object, best of a gigabyte or more; see `scripts/make-store.py`.
//! Text on stdout. Passes and packing are counted in CPU seconds of this thread, medians of ROUNDS (default 5), so that a
//! busy machine blurs them less (that clock ticks too seldom for one seek); seeks are in seconds of the wall clock.
#![allow(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use cinderfs::codec::{Codec, ObjectStream, Recording, RestartPoint};
use cinderfs::store::{ObjectSource, ObjectStat, ObjectVersion, Ownership};
use cinderfs::workers::Workers;

/// Plain bytes taken at a time, as the object layer does: a few blocks.
const PIECE_BYTES: usize = 256 * 1024;

/// Random reads per spacing.
const SEEKS: u64 = 400;

struct FileObject {
    file: File,
    stat: ObjectStat,
}

impl ObjectSource for FileObject {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> cinderfs::Result<usize> {
        let result = self.file.read_at(buf, offset);
        result.map_err(|e| cinderfs::Error::new(cinderfs::ErrorKind::StoreIo, e.to_string()))
    }
}

/// CPU seconds of this thread, from the kernel's scheduler.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(line.split(' ').next().ok_or("schedstat is empty")?.parse::<f64>()? / 1e9)
}

/// One pass; CPU seconds, plain bytes and points.
fn pass(stream: &ObjectStream, spacing_bytes: u64) -> Result<(f64, u64, Vec<RestartPoint>), Box<dyn Error>> {
    let started = cpu_seconds()?;
    let mut decoder = stream.start()?;
    if spacing_bytes > 0 {
        decoder.record(Some(Recording { from: 0, spacing_bytes }));
    }
    let (mut piece, mut plain_bytes, mut points) = (vec![0; PIECE_BYTES], 0, Vec::new());
    loop {
        let read = decoder.read(&mut piece)?;
        if read == 0 {
            break;
        }
        black_box(&piece[..read]);
        plain_bytes += read as u64;
        points.extend(decoder.take_points());
        for followed in decoder.take_followed() {
            points.retain(|point| point.plain_offset != followed.plain_offset);
            points.push(followed);
        }
    }
    Ok((cpu_seconds()? - started, plain_bytes, points))
}

/// One pass with flate2 alone; CPU seconds.
fn bare_pass(path: &str) -> Result<f64, Box<dyn Error>> {
    let started = cpu_seconds()?;
    let file = BufReader::with_capacity(128 * 1024, File::open(path)?);
    let mut decoder = flate2::bufread::ZlibDecoder::new(file);
    let mut piece = vec![0; PIECE_BYTES];
    while decoder.read(&mut piece)? > 0 {
        black_box(&piece);
    }
    Ok(cpu_seconds()? - started)
}

fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn sorted(mut seconds: Vec<f64>) -> Vec<f64> {
    seconds.sort_by(f64::total_cmp);
    seconds
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: restart_cost FILE [ROUNDS]")?;
    let rounds: usize = args.next().map_or(Ok(5), |rounds| rounds.parse())?;
    let file = File::open(&path)?;
    let stat = ObjectStat {
        len_bytes: file.metadata()?.len(),
        version: ObjectVersion("1".into()),
        modified: None,
        owner: Ownership { mode: 0o600, uid: 0, gid: 0 },
    };
    let source = Arc::new(FileObject { file, stat });
    let stream = ObjectStream::new(Codec::Zlib, source, Arc::new(Workers::new(0)));

    const SPACINGS: [u64; 4] = [0, 4 << 20, 2 << 20, 1 << 20];
    let (_, plain_bytes, _) = pass(&stream, 0)?;
    let mut bare = Vec::new();
    let mut passes = [const { Vec::new() }; SPACINGS.len()];
    for _ in 0..rounds {
        bare.push(bare_pass(&path)?);
        for (seconds, spacing_bytes) in passes.iter_mut().zip(SPACINGS) {
            seconds.push(pass(&stream, spacing_bytes)?.0);
        }
    }
    let megabytes = plain_bytes as f64 / 1e6;
    println!("{megabytes:.0} MB plain, {:.0} MB stored", stream.source().stat().len_bytes as f64 / 1e6);
    let passes = passes.map(sorted);
    let plain_seconds = at(&passes[0], 0.5);
    let show = |name: String, seconds: &[f64]| {
        println!(
            "{name}: {:.0} MB/s, {:.3} of the time without recording (fastest and slowest round {:.3} and {:.3})",
            megabytes / at(seconds, 0.5),
            at(seconds, 0.5) / plain_seconds,
            seconds[0] / plain_seconds,
            at(seconds, 1.0) / plain_seconds,
        );
    };
    show("flate2 alone".into(), &sorted(bare));
    show("no recording".into(), &passes[0]);
    for (spacing_bytes, seconds) in SPACINGS.into_iter().zip(&passes).skip(1) {
        show(format!("a point every {} MiB", spacing_bytes >> 20), seconds);
        let points = pass(&stream, spacing_bytes)?.2;
        let count = points.len() as f64;
        let started = cpu_seconds()?;
        let points: Vec<_> = points.into_iter().map(|point| stream.pack(point)).collect();
        let pack_seconds = cpu_seconds()? - started;
        let bytes: usize = points.iter().map(|point| point.state.len() + 24).sum();
        println!(
            "  {count} points; packed {:.0} bytes each, {:.4} % of plain; pack {:.0} us each, {:.4} of a pass",
            bytes as f64 / count,
            bytes as f64 * 100.0 / plain_bytes as f64,
            pack_seconds / count * 1e6,
            pack_seconds / plain_seconds,
        );

        let (mut first, mut seeks) = (Vec::new(), Vec::new());
        let (mut buf, mut random) = (vec![0; PIECE_BYTES], 0x2545_f491_4f6c_dd1du64);
        for _ in 0..SEEKS {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let offset = random % (plain_bytes - 4096) / 4096 * 4096;
            let nearest = points.partition_point(|point| point.plain_offset <= offset);
            let Some(point) = nearest.checked_sub(1).map(|i| &points[i]) else { continue };
            let started = Instant::now();
            let mut decoder = stream.resume(point)?;
            let mut left = (offset - point.plain_offset + 4096) as usize;
            left -= decoder.read(&mut buf[..1])?;
            first.push(started.elapsed().as_secs_f64());
            while left > 0 {
                let room = left.min(buf.len());
                left -= decoder.read(&mut buf[..room])?;
            }
            seeks.push(started.elapsed().as_secs_f64());
        }
        let (first, seeks) = (sorted(first), sorted(seeks));
        println!(
            "  first byte after a restart: {:.0} us (p99 {:.0}); 4 KiB at random: mean {:.2} ms, p50 {:.2}, p99 {:.2}: \
             1/{:.0} and 1/{:.0} of a pass",
            at(&first, 0.5) * 1e6,
            at(&first, 0.99) * 1e6,
            seeks.iter().sum::<f64>() / seeks.len() as f64 * 1e3,
            at(&seeks, 0.5) * 1e3,
            at(&seeks, 0.99) * 1e3,
            plain_seconds / at(&seeks, 0.5),
            plain_seconds / at(&seeks, 0.99),
        );
    }
    Ok(())
}
