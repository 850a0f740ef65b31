//! The images of a store with a flipped bit, as the library and the program give them.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::{Image, Part, Verification};
use cinderfs::store::memory::MemoryStore;
use cinderfs::types::ObjectName;

use super::blame::{Blame, Excuse, Flip, Verdict, judge};
use super::model::{Backup, Store};
use super::verified::{self, Known, Verified};

/// What a reader got of one image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// As if nothing was wrong.
    Right,
    /// All of it, out of another backup or proven by md5.
    Saved,
    /// All but these ranges.
    Lost(Vec<Range<u64>>),
    /// Nothing.
    Unusable,
}

/// How the images are read, so that the decoders' short cuts are taken too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// In order, on one thread.
    InOrder,
    /// In order, with restart points every 64 KiB.
    Dense,
    /// In pieces from the end to the start with such points, and then in order.
    Backwards,
    /// In order, with threads that work ahead.
    Ahead,
}

/// What is read at once from the end to the start.
const PIECE_BYTES: u64 = 192 << 10;

/// What became of one flip, in all images that it touches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Must be 0.
    pub(crate) wrong_bytes: u64,
    pub(crate) images: u64,
    pub(crate) unusable: u64,
    pub(crate) lost_blocks: u64,
    pub(crate) healed_blocks: u64,
    pub(crate) by_md5: u64,
    /// Blocks that depend on the bit in a plain decoder, and were served right.
    pub(crate) spared_blocks: u64,
    pub(crate) harmless: Option<&'static str>,
    /// What `verify` said of it in the library.
    pub(crate) verified: Option<Verified>,
    /// How the program must end then.
    pub(crate) program: i32,
    /// What is not as it must be.
    pub(crate) complaints: Vec<String>,
}

/// A store in memory that is given one bad bit at a time.
pub(crate) struct Bench {
    memory: Arc<MemoryStore>,
    /// What `verify` says of the store before anything is flipped.
    known: Known,
}

fn object_name(name: &str) -> ObjectName {
    ObjectName::parse(name).unwrap()
}

impl Bench {
    pub(crate) fn of(store: &Store) -> Self {
        let memory = Arc::new(MemoryStore::new());
        for file in &store.files {
            memory.insert(object_name(&file.name), file.bytes.clone());
        }
        let known = verified::known(&memory);
        Self { memory, known }
    }

    /// Reads every image that the flip can touch, or with `all` every one of the store.
    pub(crate) fn try_flip(&self, store: &Store, flip: Flip, way: Way, all: bool) -> Outcome {
        let file = &store.files[flip.file];
        let mut changed = file.bytes.to_vec();
        changed[flip.byte] ^= 1 << flip.bit;
        self.memory.insert(object_name(&file.name), changed);
        let verdict = judge(store, flip);
        let mut outcome = Outcome { harmless: verdict.harmless, ..Outcome::default() };
        let mut seen = Vec::new();
        for (index, backup) in store.backups.iter().enumerate() {
            if all || backup.chain.contains(&file.backup) {
                outcome.images += 1;
                let of_image = self.read(backup, &verdict.blames[index], way, &mut outcome);
                seen.push((index, of_image));
            }
        }
        let found = verified::judge(&self.memory, store, flip, &verdict, &seen);
        (outcome.verified, outcome.program) = (Some(found.verified(&self.known)), found.exit_code());
        outcome.complaints.extend(found.complaints);
        self.memory.insert(object_name(&file.name), file.bytes.clone());
        outcome
    }

    /// A catalog of its own for each image, so that no other reader's cache helps.
    fn read(&self, backup: &Backup, blame: &Blame, way: Way, outcome: &mut Outcome) -> Seen {
        let options = CatalogOptions {
            workers: if way == Way::Ahead { 2 } else { 0 },
            restart_spacing_bytes: matches!(way, Way::Dense | Way::Backwards).then_some(64 << 10),
            ..CatalogOptions::default()
        };
        let catalog = Catalog::open(self.memory.clone(), options).unwrap();
        let snapshot = catalog.snapshot();
        let image = snapshot.get(&backup.id).map(|entry| catalog.image(entry));
        let Some(Ok(image)) = image else {
            outcome.unusable += 1;
            if !blame.may_be_unusable {
                let why = image.map(|image| image.err().map(|error| error.to_string()));
                outcome.complaints.push(format!("backup {} is unusable: {why:?}", backup.id));
            }
            return Seen::Unusable;
        };
        if blame.is_unusable {
            outcome.complaints.push(format!("backup {} is usable", backup.id));
        }
        outcome.by_md5 += u64::from(image.verification() == Verification::Md5);
        if way == Way::Backwards {
            for start in (0..backup.image.len()).step_by(PIECE_BYTES as usize).rev() {
                let start = start as u64;
                compare(backup, &image, start..start + PIECE_BYTES, &mut |_| {}, outcome);
            }
        }
        if way == Way::Ahead {
            image.read_ahead(0..PIECE_BYTES);
        }
        let mut lost = Vec::new();
        compare(backup, &image, 0..u64::MAX, &mut |range| lost.push(range), outcome);
        outcome.healed_blocks += image.damage().healed_blocks;
        let healed = image.damage().healed_blocks;
        check_losses(backup, blame, &lost, healed, outcome);
        match (lost.is_empty(), healed > 0 || image.verification() == Verification::Md5) {
            (false, _) => Seen::Lost(lost),
            (true, true) => Seen::Saved,
            (true, false) => Seen::Right,
        }
    }
}

/// Reads a range, counts wrong bytes, and tells of lost ones.
fn compare(
    backup: &Backup,
    image: &Image,
    range: Range<u64>,
    lost: &mut dyn FnMut(Range<u64>),
    outcome: &mut Outcome,
) {
    let (mut at, end) = (range.start, range.end.min(backup.image.len() as u64));
    let visited = image.visit(range, &mut |part_range, part| {
        let truth = backup.image.get(part_range.start as usize..part_range.end as usize);
        match part {
            Part::Data(bytes) => outcome.wrong_bytes += wrong_bytes(truth, bytes),
            Part::Zeros => {
                outcome.wrong_bytes +=
                    wrong_bytes(truth, &vec![0; (part_range.end - part_range.start) as usize]);
            }
            Part::Lost(_) => lost(part_range.clone()),
        }
        at = part_range.end;
        Ok(())
    });
    if let Err(error) = visited {
        outcome.complaints.push(format!("a visit failed: {error}"));
    }
    if at < end {
        // A short image is a wrong one, unless somebody said so.
        outcome.wrong_bytes += end - at;
    }
}

/// Beyond the volume's end, where there is no truth, every byte is wrong.
fn wrong_bytes(truth: Option<&[u8]>, found: &[u8]) -> u64 {
    let wrong = match truth {
        None => found.len(),
        Some(truth) if truth == found => 0,
        Some(truth) => truth.iter().zip(found).filter(|(truth, found)| truth != found).count(),
    };
    wrong as u64
}

/// Whether all of a range lies in these, which are sorted.
pub(super) fn covers(range: &Range<u64>, ranges: &[Range<u64>]) -> bool {
    let mut at = range.start;
    for other in ranges {
        if other.start <= at && at < other.end {
            at = other.end;
        }
    }
    at >= range.end
}

/// What is lost must be blamed; what is blamed must be lost where nothing can save it.
fn check_losses(backup: &Backup, blame: &Blame, lost: &[Range<u64>], healed: u64, outcome: &mut Outcome) {
    for range in lost {
        // Where the metadata says that the last object is longer, the last block is, too, and lost.
        let end = range.end.min(backup.image.len() as u64);
        let whole = backup.blocks(&(range.start..end.max(range.start + 1)));
        outcome.lost_blocks += (whole.end.saturating_sub(whole.start)).div_ceil(backup.block_bytes);
        if range.start >= end || !covers(&(range.start..end), &blame.may_lose) {
            let complaint = format!("backup {}: {range:?} is lost, and nothing is wrong there", backup.id);
            outcome.complaints.push(complaint);
        }
    }
    let mut unexplained = 0;
    for range in &blame.may_lose {
        for start in (range.start..range.end).step_by(backup.block_bytes as usize) {
            let block = backup.blocks(&(start..start + 1));
            if !covers(&block, lost) {
                outcome.spared_blocks += 1;
                let is_excused = match blame.excuse {
                    Excuse::Any => true,
                    Excuse::Copy => backup.has_equal_block(&block),
                    Excuse::None => false,
                };
                unexplained += u64::from(!is_excused);
            }
        }
    }
    let healed = if blame.excuse == Excuse::None { 0 } else { healed };
    if unexplained > healed {
        outcome
            .complaints
            .push(format!("backup {}: {unexplained} blocks are right, and cannot be", backup.id));
    }
}

/// A copy of a store on disk, for the program.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn of(store: &Store) -> Self {
        let folder = tempfile::Builder::new().prefix("bit-rot-").tempdir().unwrap();
        for file in &store.files {
            let path = folder.path().join("store").join(&file.name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &file.bytes).unwrap();
        }
        Self(folder)
    }

    /// Restores one image of the store with the flip, with zeros for what is lost; then `verify` looks at the whole store.
    pub(crate) fn restore_and_verify(&self, store: &Store, flip: Flip, index: usize, outcome: &mut Outcome) {
        let (file, backup) = (&store.files[flip.file], &store.backups[index]);
        let path = self.0.path().join("store").join(&file.name);
        let mut changed = file.bytes.to_vec();
        changed[flip.byte] ^= 1 << flip.bit;
        fs::write(&path, changed).unwrap();
        let Verdict { blames, .. } = judge(store, flip);
        let (target, map) = (self.0.path().join("image"), self.0.path().join("map"));
        let ended = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
            .arg("restore")
            .args([self.0.path().join("store").as_os_str(), backup.id.as_ref(), target.as_os_str()])
            .args(["--on-damage", "zero", "--loss-map"])
            .arg(&map)
            .env_remove("CINDERFS_LOG")
            .env("CINDERFS_CACHE_DIR", self.0.path().join("cache"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        match ended.status.code() {
            Some(0 | 3) => {
                let lost = lost_by_map(&map);
                let found = fs::read(&target).unwrap();
                let is_lost = |at: u64| lost.iter().any(|range| range.contains(&at));
                let wrong = |at: usize| found.get(at) != backup.image.get(at) && !is_lost(at as u64);
                let len = found.len().max(backup.image.len());
                outcome.wrong_bytes += (0..len).filter(|&at| wrong(at)).count() as u64;
                if lost.is_empty() != (ended.status.code() == Some(0)) {
                    outcome.complaints.push(format!("restore ended with {} and lost {lost:?}", ended.status));
                }
                // Healing was judged when the library read it, and the blocks were counted.
                let mut found = Outcome::default();
                check_losses(backup, &blames[index], &lost, u64::MAX, &mut found);
                outcome
                    .complaints
                    .extend(found.complaints.into_iter().map(|what| format!("restore: {what}")));
            }
            Some(1) if blames[index].may_be_unusable => {}
            _ => {
                let says = String::from_utf8_lossy(&ended.stderr).into_owned();
                outcome.complaints.push(format!("restore ended with {}: {says}", ended.status));
            }
        }
        for path in [&target, &map] {
            let _ = fs::remove_file(path); // an unusable backup leaves none
        }
        verified::by_program(self.0.path(), &file.name, outcome);
        fs::write(&path, &file.bytes).unwrap();
    }
}

/// The `-` lines of a mapfile; nothing is lost where there is none.
fn lost_by_map(map: &Path) -> Vec<Range<u64>> {
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
    let text = fs::read_to_string(map).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [pos, size, "-"] => Some(number(pos)..number(pos) + number(size)),
            _ => None,
        })
        .collect()
}
