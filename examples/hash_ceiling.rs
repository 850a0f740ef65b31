//! What no backup that looks at every byte can beat: read a file and hash its blocks, on all cores, and do nothing with it.
//!
//!     hash_ceiling FILE
//!
//! Prints the seconds that it took, as JSON. Blocks are 32 KiB, as Cinder's; each thread reads a mebibyte at a time.

#![allow(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use sha2::{Digest, Sha256};

const PIECE_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: usize = 32 << 10;

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).ok_or_else(|| std::io::Error::other("hash_ceiling FILE"))?;
    let begun = Instant::now();
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let threads = thread::available_parallelism()?.get();
    let next = AtomicU64::new(0);
    let work = || -> std::io::Result<u8> {
        let mut piece = vec![0; PIECE_BYTES as usize];
        // So that nothing is left out as unused.
        let mut all = 0;
        loop {
            let at = next.fetch_add(PIECE_BYTES, Ordering::Relaxed);
            if at >= len {
                return Ok(all);
            }
            let piece = &mut piece[..PIECE_BYTES.min(len - at) as usize];
            file.read_exact_at(piece, at)?;
            all = piece.chunks(BLOCK_BYTES).fold(all, |all, block| all ^ Sha256::digest(block)[0]);
        }
    };
    let all = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| std::io::Error::other("a panic")));
        joined.map(|result| result.and_then(|all| all)).try_fold(0, |all, one| one.map(|one| all ^ one))
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{{\"seconds\": {seconds:.6}, \"bytes\": {len}, \"threads\": {threads}, \"all\": {all}}}");
    Ok(())
}
