//! What the disk cache costs and gives, on this machine: `disk_cache_speed FOLDER` (needs 2 GiB there).

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a measurement")]

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cinderfs::block::{VerifiedBlock, hash_of};
use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::blocks::BlockRing;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::store::posix::PosixStore;

const BLOCK: usize = 32768;

fn main() {
    let folder = std::env::args_os().nth(1).expect("a folder");
    let folder = Path::new(&folder);
    let bytes = text(512 << 20);
    ring(&folder.join("cache-ring"), &bytes);
    let store = folder.join("store");
    put(&store, &bytes);
    let mut passes = [const { Vec::new() }; 4];
    for round in 0..5 {
        let cache = folder.join(format!("cache-{round}"));
        let pass = |cache: Option<&Path>| {
            let options = CatalogOptions {
                cache_bytes_max: 64 << 20,
                disk_cache: cache
                    .map(|path| Arc::new(BlockRing::open(&CacheDir::open(path).unwrap(), 1 << 30).unwrap())),
                ..CatalogOptions::default()
            };
            let catalog = Catalog::open(Arc::new(PosixStore::open(&store).unwrap()), options).unwrap();
            let image = catalog.image(catalog.snapshot().get("b").unwrap()).unwrap();
            let mut buffer = vec![0; 128 << 10];
            let (started, mut at) = (Instant::now(), 0);
            loop {
                let n = image.read_at(&mut buffer, at).unwrap();
                if n == 0 {
                    return at as f64 / 1e6 / started.elapsed().as_secs_f64();
                }
                at += n as u64;
            }
        };
        passes[0].push(pass(None));
        passes[1].push(pass(Some(&cache)));
        passes[2].push(pass(None));
        passes[3].push(pass(Some(&cache)));
        std::fs::remove_dir_all(&cache).unwrap();
    }
    for (name, pass) in
        ["decode", "decode + fill disk cache", "decode", "from disk cache"].iter().zip(&mut passes)
    {
        pass.sort_by(f64::total_cmp);
        println!("one reader, {name}: median {:.0} MB/s ({:.0} to {:.0})", pass[2], pass[0], pass[4]);
    }
}

fn ring(cache: &Path, bytes: &[u8]) {
    let ring = BlockRing::open(&CacheDir::open(cache).unwrap(), 1 << 30).unwrap();
    let blocks: Vec<_> = bytes.chunks(BLOCK).map(|block| (hash_of(block), block)).collect();
    let report = |what: &str, started: Instant, mut each: Vec<f64>| {
        each.sort_by(f64::total_cmp);
        println!(
            "{what}: {:.0} MB/s; per block p50 {:.1} us, p99 {:.1} us",
            bytes.len() as f64 / 1e6 / started.elapsed().as_secs_f64(),
            each[each.len() / 2],
            each[each.len() / 100 * 99]
        );
    };
    for what in [
        "put, file grows",
        "put again, held",
        "get, checked",
        "get, checked, scattered",
        "hash alone",
        "get, unchecked",
    ] {
        let (started, mut each) = (Instant::now(), Vec::with_capacity(blocks.len()));
        for n in 0..blocks.len() {
            let (hash, block) = &blocks[if what.contains("scattered") { n * 7919 % blocks.len() } else { n }];
            let begun = Instant::now();
            match what {
                "hash alone" => assert!(hash_of(block) == *hash),
                "get, unchecked" => assert!(ring.get(&hash.0, BLOCK, |_| Some(())).is_some()),
                _ if what.starts_with("put") => ring.put(&hash.0, block),
                _ => assert!(
                    ring.get(&hash.0, BLOCK, |bytes| VerifiedBlock::verify(bytes, hash).ok()).is_some()
                ),
            }
            each.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        report(what, started, each);
    }
}

/// Bytes that zlib makes about a third of.
fn text(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let _ =
            write!(bytes, "{:x} the {} quick of {:o}; ", state & 0xffff, state >> 60, state >> 44 & 0xfff);
    }
    bytes.truncate(len);
    bytes
}

fn put(store: &Path, bytes: &[u8]) {
    let folder = store.join("b");
    std::fs::create_dir_all(&folder).unwrap();
    let object = std::fs::File::create(folder.join("backup-00001")).unwrap();
    let mut encoder = flate2::write::ZlibEncoder::new(object, flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap();
    let lines: Vec<_> = bytes.chunks(BLOCK).map(|block| format!("    \"{}\"", hash_of(block))).collect();
    let digests = format!(
        "{{\n  \"backup_id\": \"b\",\n  \"chunk_size\": {BLOCK},\n  \"sha256s\": [\n{}\n  ],\n  \"version\": \"1.0.0\",\n  \
         \"volume_id\": \"v\"\n}}",
        lines.join(",\n")
    );
    std::fs::write(folder.join("backup_sha256file"), digests).unwrap();
    let metadata = format!(
        r#"{{"backup_id":"b","created_at":"2024-01-02 03:04:05+00:00","objects":[{{"backup-00001":
           {{"compression":"zlib","length":{},"md5":"","offset":0}}}}],"parent_id":null,"version":"1.0.0","volume_id":"v"}}"#,
        bytes.len()
    );
    std::fs::write(folder.join("backup_metadata"), metadata).unwrap();
}
