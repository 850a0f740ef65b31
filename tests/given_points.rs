//! Do reads of what `create` wrote begin at the restart points in the metadata, and are they right whatever those say?
//!
//! Cost is asserted as stored bytes fetched, which no other load on the machine changes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/new_backup.rs"]
mod new_backup;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/watched_store.rs"]
mod watched_store;

use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::Codec;
use cinderfs::format::points::{self, RESTART_POINTS_KEY};
use cinderfs::image::Image;
use cinderfs::store::Store as _;
use cinderfs::types::ObjectName;
use cinderfs::writer::create::NewBackup;
use serde_json::Value;

use new_backup::{MemorySource, make};
use volume::{BLOCK, MIB, Random, mixed};
use watched_store::WatchedStore;

const CODECS: [Codec; 3] = [Codec::Zlib, Codec::Bz2, Codec::Zstd];
const LEN: usize = 14 * MIB + 5000;
const OBJECT_BYTES: usize = 7 * MIB;

/// Of the volume of which there are many lies.
const SHORT: usize = 5 * MIB + 5000;

/// A volume, and the store that `create` made of it.
struct Kit {
    store: WatchedStore,
    plain: Vec<u8>,
    metadata: ObjectName,
    id: String,
}

impl Kit {
    fn new(codec: Codec) -> Self {
        Self::of(codec, LEN, OBJECT_BYTES)
    }

    fn of(codec: Codec, len: usize, object_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plain = mixed(7, len);
        let mut new = NewBackup::full(new_backup::volume());
        (new.codec, new.object_bytes) = (codec, Some(object_bytes as u64));
        let created = make(folder.path(), &MemorySource::new(plain.clone()), &new).unwrap();
        let store = WatchedStore::default();
        let metadata = created.metadata_name;
        let (container, _) = metadata.as_str().rsplit_once('/').unwrap();
        for file in std::fs::read_dir(folder.path().join(container)).unwrap() {
            let file = file.unwrap();
            let name = format!("{container}/{}", file.file_name().to_str().unwrap());
            store.inner.insert(ObjectName::parse(&name).unwrap(), std::fs::read(file.path()).unwrap());
        }
        Self { store, plain, metadata, id: created.id.as_str().to_owned() }
    }

    /// The image in a process of its own, with nothing in memory and nothing kept.
    fn open(&self, restart_points: bool) -> (Catalog, Arc<Image>) {
        let options = CatalogOptions { restart_points, workers: 0, ..CatalogOptions::default() };
        let catalog = Catalog::open(Arc::new(self.store.clone()), options).unwrap();
        let image = catalog.image(catalog.snapshot().get(&self.id).unwrap()).unwrap();
        (catalog, image)
    }

    #[track_caller]
    fn check(&self, image: &Image, at: usize, len: usize) {
        let mut read = vec![0xEE; len.min(self.plain.len() - at)];
        let mut filled = 0;
        while filled < read.len() {
            filled += image.read_at(&mut read[filled..], (at + filled) as u64).unwrap();
        }
        assert!(read == self.plain[at..at + read.len()], "wrong bytes: {len} at {at}");
    }

    /// Puts another text for the restart points of each object, which `change` makes of the right one and the object's number.
    fn lie(&self, change: impl Fn(&str, usize) -> Value) {
        let source = self.store.inner.open(&self.metadata).unwrap();
        let mut bytes = vec![0; source.stat().len_bytes as usize];
        assert_eq!(source.read_at(&mut bytes, 0).unwrap(), bytes.len());
        let mut document: Value = serde_json::from_slice(&bytes).unwrap();
        for (n, object) in document["objects"].as_array_mut().unwrap().iter_mut().enumerate() {
            let object = object.as_object_mut().unwrap().values_mut().next().unwrap();
            if let Some(text) = object.get_mut(RESTART_POINTS_KEY) {
                *text = change(text.as_str().unwrap(), n);
            }
        }
        self.store.inner.insert(self.metadata.clone(), document.to_string().into_bytes());
    }

    /// Random reads, each in a process of its own; the most stored bytes that one of them fetched.
    fn dearest_cold_read(&self, seed: u64, count: usize) -> u64 {
        let mut random = Random::new(seed);
        let reads = (0..count).map(|_| {
            let (_catalog, image) = self.open(false);
            self.store.take_read_bytes();
            self.check(&image, random.below(LEN / 4096) * 4096, 4096);
            self.store.take_read_bytes()
        });
        reads.max().unwrap()
    }
}

/// What one cold read may fetch: what lies between two points, and what is read ahead of the decoder.
fn bound(codec: Codec) -> u64 {
    match codec {
        Codec::None => 32 << 10,
        Codec::Zlib => (256 + 128) << 10,
        Codec::Bz2 => (900 + 64) << 10,
        Codec::Zstd => (128 + 128) << 10,
    }
}

#[test]
fn a_cold_random_read_fetches_one_chunk() {
    for codec in CODECS.into_iter().chain([Codec::None]) {
        let kit = Kit::new(codec);
        let dearest = kit.dearest_cold_read(3, 60);
        assert!(dearest <= bound(codec), "{codec}: {dearest} stored bytes for one read");
        if codec != Codec::None {
            // Without points it takes more, so the bound tells something.
            kit.lie(|_, _| Value::Null);
            let dearest = kit.dearest_cold_read(3, 60);
            assert!(dearest > 3 * bound(codec), "{codec}: {dearest} stored bytes for one read");
        }
    }
}

/// Makes a text out of the right one of an object, by the object's number.
type Lie<'a> = &'a dyn Fn(&str, usize) -> Value;

#[test]
fn points_that_lie_change_no_byte() {
    let shifted = |text: &str, by: u64| {
        let mut writer = points::PointsWriter::default();
        for point in points::parse(text, 100_000).unwrap() {
            writer.push(points::Place { stored_offset: point.stored_offset + by, ..point });
        }
        Value::from(writer.finish().unwrap())
    };
    let exchanged = |text: &str, _: usize| {
        let mut writer = points::PointsWriter::default();
        for point in points::parse(text, 100_000).unwrap() {
            let (plain_offset, stored_offset) = (point.plain_offset + 65536, point.stored_offset);
            writer.push(points::Place { plain_offset, stored_offset });
        }
        Value::from(writer.finish().unwrap())
    };
    let lies: [(&str, Lie<'_>); 12] = [
        ("a byte further", &|text, _| shifted(text, 1)),
        ("far further", &|text, _| shifted(text, 70_001)),
        ("other plain bytes", &exchanged),
        ("at the same place", &|text, _| Value::from(format!("{text},1:1x40"))),
        ("without order", &|_, _| Value::from("131072:500000,1:1,999999:3,1:18446744073709551615")),
        ("beyond the end", &|_, _| Value::from("9000000000:9000000000x7")),
        ("dense", &|_, _| Value::from("16384:9000x1000")),
        ("endless", &|_, _| Value::from("1:1x18446744073709551615")),
        ("millions", &|_, _| Value::from(format!("1:1{}", ",1".repeat(2_500_000)))),
        ("too large", &|_, _| Value::from("99999999999999999999:1")),
        ("no text", &|_, _| serde_json::json!([{"a": 7}])),
        ("nonsense", &|text, _| Value::from(format!("{text},x"))),
    ];
    for codec in CODECS {
        let kit = Kit::of(codec, SHORT, 5 * MIB / 2);
        let right = {
            let source = kit.store.inner.open(&kit.metadata).unwrap();
            let mut bytes = vec![0; source.stat().len_bytes as usize];
            source.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        for (what, lie) in lies {
            kit.store.inner.insert(kit.metadata.clone(), right.clone());
            kit.lie(lie);
            for restart_points in [false, true] {
                let (_catalog, image) = kit.open(restart_points);
                let mut random = Random::new(11);
                for _ in 0..25 {
                    kit.check(&image, random.below(SHORT / 4096) * 4096, 4096);
                }
                kit.check(&image, 0, SHORT);
                let damage = image.damage();
                assert_eq!(damage.blocks, 0, "{codec}, points {what}");
            }
        }
        // Those of another object.
        kit.store.inner.insert(kit.metadata.clone(), right);
        let texts = std::cell::RefCell::new(Vec::new());
        kit.lie(|text, _| {
            texts.borrow_mut().push(text.to_owned());
            Value::from(text)
        });
        kit.lie(|_, n| Value::from(texts.borrow()[1 - n.min(1)].as_str()));
        let (_catalog, image) = kit.open(true);
        kit.check(&image, SHORT / 3, 4096);
        kit.check(&image, 0, SHORT);
    }
}

#[test]
fn a_wrong_point_costs_itself_alone() {
    for codec in CODECS {
        let kit = Kit::new(codec);
        let wrong = std::cell::Cell::new(0);
        kit.lie(|text, n| {
            let mut points = points::parse(text, 100_000).unwrap();
            let middle = points.len() / 2;
            if n == 0 {
                points[middle].stored_offset += 5;
                wrong.set(points[middle].plain_offset as usize);
            }
            let mut writer = points::PointsWriter::default();
            points.into_iter().for_each(|point| writer.push(point));
            Value::from(writer.finish().unwrap())
        });
        let (_catalog, image) = kit.open(false);
        let mut at = wrong.get();
        // A block of zeros is known without a point.
        while kit.plain[at..at + BLOCK].iter().all(|&byte| byte == 0) {
            at += BLOCK;
        }
        kit.store.take_read_bytes();
        kit.check(&image, at, 4096);
        let dear = kit.store.take_read_bytes();
        assert!(dear > bound(codec), "{codec}: nothing was wrong there: {dear} stored bytes");
        let mut dearest = 0;
        for n in 1..=20 {
            let elsewhere = OBJECT_BYTES - n * 300_000;
            if !(wrong.get()..wrong.get() + MIB).contains(&elsewhere) {
                kit.check(&image, elsewhere, 4096);
                dearest = dearest.max(kit.store.take_read_bytes());
            }
        }
        assert!(dearest <= bound(codec), "{codec}: {dearest} stored bytes for one read");
    }
}

#[test]
fn in_order_no_stored_byte_is_fetched_twice() {
    for codec in CODECS {
        let kit = Kit::new(codec);
        let (_catalog, image) = kit.open(true);
        for at in (0..LEN).step_by(128 << 10) {
            kit.check(&image, at, 128 << 10);
        }
        let fetched = kit.store.take_read_bytes();
        let objects = kit.store.inner.list("").unwrap().objects;
        let is_data = |name: &str| !name.ends_with("_metadata") && !name.ends_with("_sha256file");
        let names = objects.iter().filter(|object| is_data(object.name.as_str()));
        let stored: u64 =
            names.map(|object| kit.store.inner.open(&object.name).unwrap().stat().len_bytes).sum();
        assert!(fetched <= stored + stored / 10, "{codec}: {fetched} fetched of {stored}");
    }
}

#[test]
fn stretches_between_points_are_decoded_side_by_side() {
    for codec in CODECS {
        let kit = Kit::new(codec);
        let (_catalog, image) = kit.open(true);
        let _released = kit.store.released_at_end();
        // The beginning of the first object does not come; all else can be read.
        kit.store.hold("-00001", 100..101);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| kit.check(&image, 0, 4096));
            while kit.store.held() == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            kit.check(&image, 2 * MIB, OBJECT_BYTES - 2 * MIB);
            assert!(!first.is_finished(), "{codec}");
            kit.store.release();
            first.join().unwrap();
        });
    }
}

#[test]
fn an_object_whose_points_are_told_is_indexed_without_decoding() {
    for codec in CODECS {
        let kit = Kit::new(codec);
        let (catalog, image) = kit.open(true);
        let objects = image.objects();
        for object in objects.iter().filter(|object| object.needs_restart_points()) {
            assert_eq!(object.open().unwrap().known_to(), object.len_bytes(), "{codec}");
        }
        let fetched = kit.store.take_read_bytes();
        assert!(fetched < 100, "{codec}: {fetched} stored bytes");
        kit.check(&image, 0, LEN);
        assert_eq!(catalog.restart_state_bytes(), 0, "{codec}: points of our own were noted");
    }
}
