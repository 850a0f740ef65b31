//! Do odd digests, odd block sizes and failing objects stay right, bounded and quick?
//!
//! Speed is asserted as stored bytes read, which no other load on the machine changes.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/watched_store.rs"]
mod watched_store;

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::{Image, Materialised};
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::memory::MemoryStore;
use cinderfs::store::{Listing, ObjectSource, ObjectStat, Store};
use cinderfs::types::ObjectName;
use cinderfs::{ErrorKind, Result};
use sha2::{Digest, Sha256};
use watched_store::WatchedStore;

fn name(name: &str) -> ObjectName {
    ObjectName::parse(name).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn digests(plain: &[u8], block_bytes: usize) -> Vec<String> {
    plain.chunks(block_bytes).map(|block| hex(&Sha256::digest(block))).collect()
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that compress a little, and in which no block equals another.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 & 0x3F
    };
    (0..len).map(|_| next()).collect()
}

/// Puts a full backup of one object into the store.
fn put_full(
    store: &MemoryStore,
    id: &str,
    codec: &str,
    stored: Vec<u8>,
    len: usize,
    block: usize,
    sha: &[String],
) {
    let object = format!("{id}/backup-00001");
    let metadata = format!(
        r#"{{"backup_id":"{id}","created_at":"2024-01-02 03:04:05+00:00","objects":[{{"backup-00001":
           {{"compression":"{codec}","length":{len},"md5":"","offset":0}}}}],"parent_id":null,"version":"1.0.0","volume_id":"v"}}"#
    );
    let lines: Vec<_> = sha.iter().map(|digest| format!("    \"{digest}\"")).collect();
    let digests = format!(
        "{{\n  \"backup_id\": \"{id}\",\n  \"chunk_size\": {block},\n  \"sha256s\": [\n{}\n  ],\n  \"version\": \"1.0.0\",\n  \
         \"volume_id\": \"v\"\n}}",
        lines.join(",\n")
    );
    store.insert(name(&object), stored);
    store.insert(name(&format!("{id}/backup_metadata")), metadata.into_bytes());
    store.insert(name(&format!("{id}/backup_sha256file")), digests.into_bytes());
}

fn image(catalog: &Catalog, id: &str) -> Arc<Image> {
    catalog.image(catalog.snapshot().get(id).unwrap()).unwrap()
}

fn open(store: impl Store + 'static, cache_bytes_max: u64) -> Catalog {
    Catalog::open(Arc::new(store), CatalogOptions { cache_bytes_max, ..CatalogOptions::default() }).unwrap()
}

/// A digest says nothing of the length, and another backup's block of that digest may have another one.
#[test]
fn a_cached_block_of_another_length_is_not_this_block() {
    let store = MemoryStore::new();
    let plain = noise(2000);
    let right = digests(&plain, 1000);
    put_full(&store, "right", "none", plain.clone(), 2000, 1000, &right);
    // The same digests, said of blocks of 500 and of 1500 bytes.
    let short: Vec<_> = [&right[0], &right[1], &right[0], &right[1]].map(String::clone).into();
    put_full(&store, "short", "none", plain.clone(), 2000, 500, &short);
    put_full(&store, "long", "none", plain.clone(), 2000, 1500, &right);
    let catalog = open(store, 1 << 20);
    let mut buf = vec![0; 2000];
    assert_eq!(image(&catalog, "right").read_at(&mut buf, 0).unwrap(), 2000);
    assert_eq!(buf, plain);
    for id in ["short", "long"] {
        for offset in [0, 500, 1500] {
            let error = image(&catalog, id).read_at(&mut buf[..10], offset).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HashMismatch, "{id} {offset}");
        }
    }
    assert_eq!(image(&catalog, "right").read_at(&mut buf, 0).unwrap(), 2000);
}

/// A hash block is larger than what is asked for at once: it must be kept, or the stream is decoded anew for each read.
#[test]
fn large_blocks_are_decoded_once() {
    let store = WatchedStore::default();
    let (len, block) = (48 << 20, 8 << 20);
    let plain = noise(len);
    let stored = zlib(&plain);
    let stored_bytes = stored.len() as u64;
    put_full(&store.inner, "b", "zlib", stored, len, block, &digests(&plain, block));
    let catalog = open(store.clone(), 32 << 20);
    let image = image(&catalog, "b");
    let mut buf = vec![0; 1 << 20];
    for at in (0..len).step_by(buf.len()) {
        image.read_at(&mut buf, at as u64).unwrap();
        assert!(buf == plain[at..at + buf.len()]);
    }
    let read = store.read_bytes();
    assert!(read < 2 * stored_bytes, "{read} bytes read of an object of {stored_bytes}");
}

/// After a failed large read the kernel asks for each page by itself. A small object without restart points is decoded a second time,
/// in case it was read wrong for once; a large one is not, and neither is decoded for each page.
#[test]
fn a_lost_block_is_not_decoded_again_for_each_page() {
    for (len, times) in [(32 << 20, 2), (80 << 20, 1)] {
        let store = WatchedStore::default();
        let block = 32 << 10;
        let plain = noise(len);
        let stored = zlib(&plain);
        let stored_bytes = stored.len() as u64;
        let mut sha = digests(&plain, block);
        let bad = sha.len() - 3;
        sha[bad] = "00".repeat(32);
        put_full(&store.inner, "b", "zlib", stored, len, block, &sha);
        let catalog = open(store.clone(), 32 << 20);
        let image = image(&catalog, "b");
        let mut page = vec![0; 4096];
        for at in (bad * block..(bad + 1) * block).step_by(page.len()) {
            assert_eq!(image.read_at(&mut page, at as u64).unwrap_err().kind(), ErrorKind::HashMismatch);
        }
        let read = store.read_bytes();
        let most = times * stored_bytes + stored_bytes / 10;
        assert!(read < most, "{read} bytes read of an object of {stored_bytes}");
    }
}

// A store that is gone may not even say so.
#[test]
fn what_lies_whole_beside_the_store_is_read_without_opening_an_object() {
    let store = WatchedStore::default();
    let (len, block) = (4 << 20, 32 << 10);
    let plain = noise(len);
    put_full(&store.inner, "b", "zlib", zlib(&plain), len, block, &digests(&plain, block));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&plain).unwrap();
    let catalog = open(store.clone(), 0);
    let image = image(&catalog, "b");
    let mut buf = vec![0; len];
    let whole = Arc::new(Materialised::new(file.reopen().unwrap(), file.path()));
    image.look_into(&whole);
    assert_eq!(image.read_at(&mut buf, 0).unwrap(), len);
    assert!(buf == plain);
    assert_eq!(store.opened(), 0);
    // Not because it is never opened.
    drop(whole);
    image.read_at(&mut buf, 0).unwrap();
    assert_eq!(store.opened(), 1);
}

/// A page of a lost block is asked for by itself; what is lost is the block, once.
#[test]
fn damage_is_counted_in_blocks_and_forgotten_when_they_are_read() {
    let store = MemoryStore::new();
    let plain = noise(10_500);
    put_damaged(&store, &plain);
    let catalog = open(store, 1 << 20);
    let image = image(&catalog, "b");
    let mut buf = [0; 10];
    for offset in [1990, 1000, 1500, 10_490] {
        assert!(image.read_at(&mut buf, offset).is_err());
    }
    let damage = image.damage();
    assert_eq!((damage.blocks, damage.ranges), (2, vec![1000..2000, 10_000..10_500]));
    // The block comes back through the cache, where another backup's block with the same digest is by now.
    let other = self::image(&catalog, "good");
    assert_eq!(other.read_at(&mut vec![0; 3000], 0).unwrap(), 3000);
    assert!(image.read_at(&mut buf, 1200).is_ok());
    assert_eq!(image.damage().ranges.first(), Some(&(10_000..10_500)));
}

/// Backup `b` with two damaged blocks in its object, and `good` with the first of them as it was, at another place.
fn put_damaged(store: &MemoryStore, plain: &[u8]) {
    let mut bad = plain.to_vec();
    bad[1234] ^= 1;
    bad[10_400] ^= 1;
    put_full(store, "b", "none", bad, plain.len(), 1000, &digests(plain, 1000));
    let mut other = vec![7; 1000];
    other.extend_from_slice(plain);
    other[11_400] ^= 2;
    put_full(store, "good", "none", other.clone(), other.len(), 1000, &digests(&other, 1000));
}

/// A descriptor may stay stale after the server is back; the object must be opened again.
#[test]
fn an_object_that_could_not_be_read_is_opened_anew() {
    let store = MemoryStore::new();
    let plain = noise(1000);
    put_full(&store, "b", "none", plain.clone(), 1000, 1000, &digests(&plain, 1000));
    let stale = Arc::new(Stale { inner: store, opened: AtomicU64::new(0) });
    let catalog = Catalog::open(stale, CatalogOptions::default()).unwrap();
    let image = image(&catalog, "b");
    let mut buf = vec![0; 1000];
    assert_eq!(image.read_at(&mut buf, 0).unwrap_err().kind(), ErrorKind::StoreIo);
    std::thread::sleep(std::time::Duration::from_millis(3200));
    assert_eq!(image.read_at(&mut buf, 0).unwrap(), 1000);
    assert_eq!(buf, plain);
}

/// The first descriptor of each data object fails for good.
struct Stale<S> {
    inner: S,
    opened: AtomicU64,
}

impl<S: Store> Store for Stale<S> {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        self.inner.list(suffix)
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        if name.as_str().contains("backup-") && self.opened.fetch_add(1, Ordering::Relaxed) == 0 {
            let stale = MemoryStore::new();
            stale.insert(name.clone(), vec![0; 1000]);
            let fails = Rule::new(Operation::Read, Fault::Error(ErrorKind::StoreIo));
            return FaultStore::new(stale, [fails]).open(name);
        }
        self.inner.open(name)
    }
}

/// A block of one byte costs hundreds of bytes while it is looked for; a read must not do that for a MiB of them at once.
#[test]
fn tiny_blocks_are_looked_up_few_at_a_time() {
    let store = MemoryStore::new();
    let plain = noise(1 << 18);
    put_full(&store, "b", "none", plain.clone(), plain.len(), 1, &digests(&plain, 1));
    let largest_bytes = Arc::<AtomicU64>::default();
    let catalog = open(Largest { inner: store, largest_bytes: largest_bytes.clone() }, 1 << 20);
    let mut buf = vec![0; plain.len()];
    assert_eq!(image(&catalog, "b").read_at(&mut buf, 0).unwrap(), plain.len());
    assert!(buf == plain);
    let largest = largest_bytes.load(Ordering::Relaxed);
    assert!(largest <= 4096 * 73, "{largest} bytes of digests at once");
}

/// Notes the largest read of any digest file.
struct Largest<S> {
    inner: S,
    largest_bytes: Arc<AtomicU64>,
}

struct LargestSource(Arc<dyn ObjectSource>, Arc<AtomicU64>);

impl<S: Store> Store for Largest<S> {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        self.inner.list(suffix)
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        let source = self.inner.open(name)?;
        let has_digests = name.as_str().ends_with("_sha256file");
        Ok(if has_digests { Arc::new(LargestSource(source, self.largest_bytes.clone())) } else { source })
    }
}

impl ObjectSource for LargestSource {
    fn stat(&self) -> &ObjectStat {
        self.0.stat()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.1.fetch_max(buf.len() as u64, Ordering::Relaxed);
        self.0.read_at(buf, offset)
    }
}

/// Puts an incremental on `parent` that stores these blocks plain, each as an object of its own.
fn put_incremental(
    store: &MemoryStore,
    id: &str,
    parent: &str,
    plain: &[u8],
    block: usize,
    changed: &[usize],
) {
    let mut objects = Vec::new();
    for (n, &index) in changed.iter().enumerate() {
        let suffix = format!("backup-{:05}", n + 1);
        let bytes = &plain[index * block..(index + 1) * block];
        objects.push(format!(
            r#"{{"{suffix}":{{"compression":"none","length":{block},"md5":"","offset":{}}}}}"#,
            index * block
        ));
        store.insert(name(&format!("{id}/{suffix}")), bytes.to_vec());
    }
    // The digests, and a metadata document to be replaced.
    put_full(store, &format!("{id}/x"), "none", Vec::new(), plain.len(), block, &digests(plain, block));
    let metadata = format!(
        r#"{{"backup_id":"{id}","created_at":"2024-01-03 03:04:05+00:00","objects":[{}],"parent_id":"{parent}","version":"1.0.0","volume_id":"v"}}"#,
        objects.join(",")
    );
    let sha256file = store.open(&name(&format!("{id}/x/backup_sha256file"))).unwrap();
    let mut document = vec![0; sha256file.stat().len_bytes as usize];
    sha256file.read_at(&mut document, 0).unwrap();
    let document = String::from_utf8(document).unwrap().replace(&format!("{id}/x"), id);
    for object in ["backup-00001", "backup_metadata", "backup_sha256file"] {
        store.remove(&name(&format!("{id}/x/{object}")));
    }
    store.insert(name(&format!("{id}/backup_metadata")), metadata.into_bytes());
    store.insert(name(&format!("{id}/backup_sha256file")), document.into_bytes());
}

/// Between two pieces of one window another thread may take the decoder further; that must not make anybody start anew.
#[test]
fn threads_that_read_a_chain_in_order_decode_its_object_once() {
    const THREADS: usize = 4;
    let store = WatchedStore::default();
    let (len, block, window) = (24 << 20, 32 << 10, 1 << 20);
    let mut plain = noise(len);
    let stored = zlib(&plain);
    let stored_bytes = stored.len() as u64;
    put_full(&store.inner, "full", "zlib", stored, len, block, &digests(&plain, block));
    let changed: Vec<usize> = (0..len / block).filter(|index| index % 11 == 5).collect();
    for &index in &changed {
        plain[index * block] ^= 0x80;
    }
    put_incremental(&store.inner, "inc", "full", &plain, block, &changed);
    let changed_bytes = (changed.len() * block) as u64;
    let catalog = open(store.clone(), 64 << 20);
    let image = image(&catalog, "inc");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (image, plain) = (&image, &plain);
            scope.spawn(move || {
                let mut buf = vec![0; window];
                for at in (thread * window..len).step_by(THREADS * window) {
                    assert_eq!(image.read_at(&mut buf, at as u64).unwrap(), window);
                    assert!(buf == plain[at..at + window], "at {at}");
                }
            });
        }
    });
    let read = store.read_bytes();
    assert!(
        read < 2 * (stored_bytes + changed_bytes),
        "{read} bytes read of {}",
        stored_bytes + changed_bytes
    );
}
