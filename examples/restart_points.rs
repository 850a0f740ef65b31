//! The restart points that a cache directory holds, for `scripts/bench.sh`.
//!
//! How much of a store one cold read fetches is judged by the distance between the restart points around it, and only the
//! index knows where they are.
//!
//! Usage: `restart_points CACHE_DIR`. One line of JSON on stdout: for each index a list of points, each `[plain offset in
//! bytes, stored offset in bits]`.
#![allow(clippy::print_stdout, reason = "the list is what this program is for")]

use std::error::Error;
use std::path::Path;

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::{SeekIndexKey, SeekIndexStore};

/// Far above what any benchmark leaves behind: nothing may be evicted by being looked at.
const BYTES_MAX: u64 = 1 << 40;

/// The key that a file of an index is named by: 64 hexadecimal digits.
fn key(file_name: &str) -> Option<SeekIndexKey> {
    let mut key = [0; 32];
    for (n, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(file_name.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    (file_name.len() == 64).then_some(SeekIndexKey(key))
}

fn main() -> Result<(), Box<dyn Error>> {
    let place = std::env::args().nth(1).ok_or("usage: restart_points CACHE_DIR")?;
    let store = SeekIndexStore::open(&CacheDir::open(Path::new(&place))?, BYTES_MAX)?;
    let mut indexes = Vec::new();
    for file in std::fs::read_dir(store.path())? {
        let Some(key) = file?.file_name().to_str().and_then(key) else { continue };
        let index = store.load(&key).ok_or("an index cannot be used")?;
        let points = index.points().iter().map(|at| format!("[{},{}]", at.plain_offset, at.stored_bits));
        indexes.push(format!("[{}]", points.collect::<Vec<_>>().join(",")));
    }
    println!("[{}]", indexes.join(","));
    Ok(())
}
