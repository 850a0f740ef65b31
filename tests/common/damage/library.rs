//! Through the library: a catalog, its images, reads from several threads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cinderfs::Error;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::{Image, Part};
use cinderfs::store::posix::PosixStore;

use super::case::{Case, Is, Verdict};
use super::world::{Truth, World};

const THREADS: u64 = 4;
const READS: u64 = 40;
/// Of images larger than this only a few ranges are read at random: each may decode all that precedes it.
const LARGE_BYTES: u64 = 100 << 20;
const READ_BYTES_MAX: u64 = 100_000;

pub(crate) fn check(case: &Case, world: &World, wrong: &mut Vec<String>) {
    let store = Arc::new(PosixStore::open(&world.root()).unwrap());
    let catalog =
        match Catalog::open(store, CatalogOptions { cache_bytes_max: 32 << 20, ..CatalogOptions::default() })
        {
            Ok(catalog) => catalog,
            Err(error) => return wrong.push(format!("the library: no catalog: {error}")),
        };
    let snapshot = catalog.snapshot();
    let mut listed: BTreeMap<String, _> =
        snapshot.entries().map(|entry| (entry.id.to_string(), entry)).collect();
    for (id, verdict) in world.verdicts(case) {
        let mut complain = |what: String| wrong.push(format!("the library: backup {id}: {what}"));
        let entry = match (listed.remove(&id), verdict.is) {
            (None, Is::Absent) => continue,
            (None, _) => {
                complain("is not listed".into());
                continue;
            }
            (Some(_), Is::Absent) => {
                complain("is listed".into());
                continue;
            }
            (Some(entry), _) => entry,
        };
        match (catalog.image(entry), verdict.is) {
            (Err(error), Is::Unusable) => check_reason(&error, &verdict, &mut complain),
            (Err(error), _) => complain(format!("is unusable: {error:?}")),
            (Ok(_), Is::Unusable) => complain("is usable".into()),
            (Ok(image), _) => match world.truth.get(&id) {
                Some(truth) => check_image(&image, truth, &verdict, &mut complain),
                None => complain("has an image of which nobody knows the truth".into()),
            },
        }
    }
    for id in listed.keys() {
        wrong.push(format!("the library: backup {id} is listed, and the case does not know it"));
    }
}

fn check_reason(error: &Error, verdict: &Verdict, complain: &mut dyn FnMut(String)) {
    let (kind, text) = (format!("{:?}", error.kind()), error.to_string());
    if !any_of(verdict.kind.as_deref(), |word| word == kind) {
        complain(format!("the kind is {kind}, not {:?}: {text}", verdict.kind));
    }
    if !any_of(verdict.says.as_deref(), |word| text.contains(word)) {
        complain(format!("the reason does not tell {:?}: {text}", verdict.says));
    }
    if text.contains(|c: char| c.is_control()) || text.len() > 2000 {
        complain(format!("the reason is no short line: {text:?}"));
    }
}

fn check_image(image: &Arc<Image>, truth: &Truth, verdict: &Verdict, complain: &mut dyn FnMut(String)) {
    if image.len_bytes() != truth.len() {
        return complain(format!("has {} bytes, not {}", image.len_bytes(), truth.len()));
    }
    if image.verification().name() != verdict.verification {
        complain(format!("is verified by {}, not {}", image.verification().name(), verdict.verification));
    }
    if verdict.verification == "sha256" {
        let at_border = |at: u64| at.is_multiple_of(image.block_bytes()) || at == image.len_bytes();
        if !verdict.lost.iter().all(|&(start, end)| at_border(start) && at_border(end)) {
            complain(format!("the case itself cuts through a block of {} bytes", image.block_bytes()));
        }
    }
    // At random first, while nothing is in the cache; then all in order; then what the image remembers.
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (image, found) = (&image, &found);
            scope.spawn(move || {
                if let Err(what) = read_at_random(image, truth, verdict, thread + 1) {
                    found.lock().unwrap().push(what);
                }
            });
        }
    });
    if let Some(what) = found.into_inner().unwrap().into_iter().next() {
        complain(what);
    }
    read_in_order(image, truth, verdict, complain);
    let remembered: Vec<_> = image.damage().ranges.iter().map(|range| (range.start, range.end)).collect();
    if remembered != verdict.lost {
        complain(format!("remembers the damage {remembered:?}, not {:?}", verdict.lost));
    }
}

fn read_at_random(image: &Image, truth: &Truth, verdict: &Verdict, seed: u64) -> Result<(), String> {
    let mut random = super::forge::Random(seed);
    let len = truth.len();
    for _ in 0..if len > LARGE_BYTES { 2 } else { READS } {
        let (offset, wanted) = (random.below(len + 100), 1 + random.below(READ_BYTES_MAX));
        let mut bytes = vec![0xEE; wanted as usize];
        let end = len.min(offset + wanted);
        let is_lost = verdict.lost.iter().any(|&(start, stop)| start < end && offset < stop);
        match image.read_at(&mut bytes, offset) {
            Ok(_) if is_lost => return Err(format!("bytes {offset} to {end} were read, and are lost")),
            Err(error) if !is_lost => return Err(format!("bytes {offset} to {end} are lost: {error}")),
            Err(_) => {}
            Ok(n) if n as u64 != end.saturating_sub(offset) => {
                return Err(format!("a read at {offset} of {wanted} gave {n} bytes"));
            }
            Ok(n) if n > 0 && !truth.has(offset, &bytes[..n]) => {
                return Err(format!("WRONG BYTES at {offset} to {end}"));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

fn read_in_order(image: &Image, truth: &Truth, verdict: &Verdict, complain: &mut dyn FnMut(String)) {
    let mut lost: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    let mut found = Vec::new();
    let visited = image.visit(0..u64::MAX, &mut |range, part| {
        if range.start != at {
            found.push(format!("a visit jumped from {at} to {}", range.start));
        }
        at = range.end;
        match part {
            Part::Data(bytes) if truth.has(range.start, bytes) => {}
            Part::Zeros if truth.has_zeros(range.start, range.end - range.start) => {}
            Part::Data(_) | Part::Zeros => {
                found.push(format!("WRONG BYTES at {} to {}", range.start, range.end));
            }
            Part::Lost(error) => {
                check_reason(error, verdict, &mut |what| found.push(format!("at {}: {what}", range.start)));
                match lost.last_mut() {
                    Some(last) if last.1 == range.start => last.1 = range.end,
                    _ => lost.push((range.start, range.end)),
                }
            }
        }
        Ok(())
    });
    found.into_iter().take(3).for_each(&mut *complain);
    if let Err(error) = visited {
        complain(format!("a visit failed: {error}"));
    }
    if at != truth.len() {
        complain(format!("a visit ended at {at}"));
    }
    if lost != verdict.lost {
        complain(format!("lost are {lost:?}, not {:?}", verdict.lost));
    }
}

/// Whether a word of `one|another` fits.
pub(crate) fn any_of(words: Option<&str>, fits: impl Fn(&str) -> bool) -> bool {
    words.is_some_and(|words| words.split('|').any(fits))
}
