//! Does a flipped bit anywhere in a genuine store ever become a wrong byte, or cost more than what depends on it?
//!
//! `CINDERFS_BIT_ROT=N` flips N bits instead of a few, `CINDERFS_BIT_ROT_SEED` draws others, `CINDERFS_BIT_ROT_AT=i` tries flip i alone, and
//! `CINDERFS_BIT_ROT_WRITE=1` writes the figures to `docs/RELIABILITY.md`. `scripts/bit-rot.sh` does these.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/bit_rot/mod.rs"]
mod bit_rot;
#[path = "common/genuine.rs"]
mod genuine;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use bit_rot::blame::Flip;
use bit_rot::model::{Kind, Store};
use bit_rot::report::Report;
use bit_rot::trial::{Bench, Folder, Outcome, Way};

/// In each run of the tests.
const FLIPS: u64 = 300;
/// One flip in so many also goes through the programs `restore` and `verify`.
const RESTORED_SHARE: u64 = 20;
/// One in so many reads all images of the store, also those that it cannot touch.
const ALL_SHARE: u64 = 10;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// The same numbers for the same seed, one after the other (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// All stores, read when they are first needed.
struct Stores {
    names: Vec<String>,
    /// How many of the names, at the front, belong to one release each.
    releases: usize,
    read: Vec<OnceLock<Store>>,
}

impl Stores {
    fn new() -> Self {
        let names: BTreeSet<String> = genuine::backups().into_iter().map(|backup| backup.store).collect();
        let (mut names, others): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.starts_with("release-"));
        let releases = names.len();
        names.extend(others);
        let read = names.iter().map(|_| OnceLock::new()).collect();
        Self { names, releases, read }
    }

    fn get(&self, index: usize) -> &Store {
        self.read[index].get_or_init(|| Store::read(&self.names[index]))
    }
}

/// Which bit is flip `number`, and how the images are read then. Half of them in the few larger stores; each kind of file gets its share.
fn draw(stores: &Stores, random: &mut Random) -> (usize, Flip, Way) {
    let index = match random.below(2) {
        0 => random.below(stores.releases as u64) as usize,
        _ => stores.releases + random.below((stores.names.len() - stores.releases) as u64) as usize,
    };
    let store = stores.get(index);
    let kind = [Kind::Metadata, Kind::Digests, Kind::Object, Kind::Object][random.below(4) as usize];
    let files: Vec<usize> = (0..store.files.len()).filter(|&file| store.files[file].kind == kind).collect();
    let file = files[random.below(files.len() as u64) as usize];
    let len = store.files[file].bytes.len() as u64;
    let byte = match random.below(8) {
        // Heads and ends of streams are short, and matter.
        0 => random.below(len.min(32)),
        1 => len - 1 - random.below(len.min(16)),
        _ => random.below(len),
    };
    let flip = Flip { file, byte: byte as usize, bit: random.below(8) as u8 };
    let way = [Way::InOrder, Way::Dense, Way::Backwards, Way::Ahead][random.below(4) as usize];
    (index, flip, way)
}

/// What the flipped bit is part of.
fn kind_of(store: &Store, flip: Flip) -> String {
    let file = &store.files[flip.file];
    match file.kind {
        Kind::Metadata => "metadata".into(),
        Kind::Digests => "digests".into(),
        Kind::Object => {
            let objects = &store.backups[file.backup].objects;
            let object = objects.iter().find(|object| object.file == flip.file);
            format!("object, {}", object.map_or("of no backup", |object| &object.compression))
        }
    }
}

/// What one thread keeps from flip to flip.
#[derive(Default)]
struct Worker {
    benches: HashMap<usize, Bench>,
    folders: HashMap<usize, Folder>,
}

impl Worker {
    fn run(&mut self, stores: &Stores, seed: u64, number: u64) -> (String, Outcome, bool) {
        let mut random = Random(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        let (index, flip, way) = draw(stores, &mut random);
        let store = stores.get(index);
        let bench = self.benches.entry(index).or_insert_with(|| Bench::of(store));
        let all = random.below(ALL_SHARE) == 0;
        let mut outcome = bench.try_flip(store, flip, way, all);
        let is_restored = random.below(RESTORED_SHARE) == 0;
        if is_restored {
            let touched = (0..store.backups.len())
                .filter(|&other| store.backups[other].chain.contains(&store.files[flip.file].backup));
            let touched: Vec<_> = touched.collect();
            let image = touched[random.below(touched.len() as u64) as usize];
            let folder = self.folders.entry(index).or_insert_with(|| Folder::of(store));
            folder.restore_and_verify(store, flip, image, &mut outcome);
        }
        let Flip { byte, bit, .. } = flip;
        let place = format!(
            "flip {number}, {} {} byte {byte} bit {bit}, {way:?}",
            store.name, store.files[flip.file].name
        );
        if outcome.wrong_bytes > 0 {
            outcome.complaints.push(format!("{} WRONG BYTES", outcome.wrong_bytes));
        }
        for complaint in &mut outcome.complaints {
            *complaint = format!("{place}: {complaint}");
        }
        (kind_of(store, flip), outcome, is_restored)
    }
}

#[test]
fn no_flipped_bit_becomes_a_wrong_byte_or_costs_more_than_what_depends_on_it() {
    let seed = setting("CINDERFS_BIT_ROT_SEED").unwrap_or(2026);
    let (first, end) = match setting("CINDERFS_BIT_ROT_AT") {
        Some(at) => (at, at + 1),
        None => (0, setting("CINDERFS_BIT_ROT").unwrap_or(FLIPS)),
    };
    let (stores, next, report) = (Stores::new(), AtomicU64::new(first), Mutex::new(Report::default()));
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut worker = Worker::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return;
                    }
                    let (kind, outcome, is_restored) = worker.run(&stores, seed, number);
                    let mut report = report.lock().unwrap();
                    report.add(&kind, outcome);
                    report.restores += u64::from(is_restored);
                }
            });
        }
    });
    let report = report.into_inner().unwrap();
    // When it was run, and on what.
    let stamp = std::env::var("CINDERFS_BIT_ROT_STAMP").map(|stamp| format!("{stamp}: ")).unwrap_or_default();
    let text = format!(
        "{stamp}{} random single-bit flips over the genuine stores (seed {seed}), {} of them also through the programs `restore` and `verify`: **{} wrong bytes delivered**.\n\n{}",
        report.flips(),
        report.restores,
        report.wrong_bytes,
        report.table()
    );
    println!("{text}\n{:.0} s", started.elapsed().as_secs_f64());
    assert_eq!(report.flips(), end - first, "a flip has no outcome");
    let worst: Vec<_> = report.complaints.iter().take(20).cloned().collect();
    assert!(report.complaints.is_empty(), "{} complaints:\n{}", report.complaints.len(), worst.join("\n"));
    assert_eq!(report.wrong_bytes, 0);
    if std::env::var_os("CINDERFS_BIT_ROT_WRITE").is_some() {
        write(&text);
    }
}

/// Replaces the figures in the documentation.
fn write(text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/RELIABILITY.md");
    let page = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- bit-rot:begin -->\n", "<!-- bit-rot:end -->");
    let (before, rest) = page.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    fs::write(&path, format!("{before}{begin}{text}{end}{after}")).unwrap();
}
