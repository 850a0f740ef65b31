//! Does `verify` see what a reader sees? Each named damage of `tests/damage` is verified, and the report must tell of each backup
//! what the case's verdict says.
//!
//! `CINDERFS_DAMAGE=name cargo test --test verify_damage` runs the cases whose names contain the word.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, where a panic is the report")]
#![allow(dead_code, reason = "the kit is also another test's")]

#[path = "common/damage/mod.rs"]
mod kit;

use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::verify::findings::{Cinder, Severity, Verdict};
use cinderfs::frontend::verify::{Report, VerifyOptions, verify};
use cinderfs::store::posix::PosixStore;
use kit::case::{Case, Is, Step};
use kit::world::World;

const WORKERS: usize = 4;

/// Bombs of terabytes must not be read to their end, so a few times what `verify` reads behind an object's end shows as much.
const BOMB_MIB_MAX: u64 = 64;

/// What a bomb of zeros that is all right may decode to, in bytes: that is read to its end.
const ZEROS_BYTES_MAX: u64 = 128 << 20;

fn cases() -> VecDeque<Case> {
    let wanted = std::env::var("CINDERFS_DAMAGE").unwrap_or_default();
    let folders = fs::read_dir(kit::cases_folder()).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = folders
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.contains(&wanted))
        .collect();
    names.sort();
    names.iter().map(|name| Case::read(name)).collect()
}

fn report(world: &World) -> Report {
    let store = Arc::new(PosixStore::open(&world.root()).unwrap());
    let options = CatalogOptions { cache_bytes_max: 32 << 20, ..CatalogOptions::default() };
    let catalog = Catalog::open(store, options).unwrap();
    let cancel = AtomicBool::new(false);
    let options = VerifyOptions { threads: 2, ..VerifyOptions::everything(&cancel) };
    verify(&catalog, None, &options, &|_| {}).unwrap()
}

/// The same damage, of a size at which a debug build has read it within seconds. What `tests/damage.rs` does is not made smaller.
fn smaller(step: &Step) -> Step {
    match step {
        Step::Bomb { file, codec, mib, byte } => Step::Bomb {
            file: file.clone(),
            codec: codec.clone(),
            mib: (*mib).min(BOMB_MIB_MAX),
            byte: *byte,
        },
        Step::Build(build) => Step::Build(build.with_zeros_up_to(ZEROS_BYTES_MAX)),
        step => step.clone(),
    }
}

fn check(case: &Case) -> Vec<String> {
    let mut world = World::of(case);
    for step in &case.damage {
        kit::mutate::apply(&smaller(step), &mut world);
    }
    let report = report(&world);
    let mut wrong = Vec::new();
    for (id, verdict) in world.verdicts(case) {
        let mut complain = |what: String| wrong.push(format!("{}: backup {id}: {what}", case.name));
        let found = report.backups.iter().find(|backup| backup.id.as_str() == id);
        let (found, is) = match (found, verdict.is) {
            (None, Is::Absent) => continue,
            (None, _) => {
                complain("is not told of".into());
                continue;
            }
            (Some(found), is) => (found, is),
        };
        let lost: Vec<(u64, u64)> = found.lost.kept().iter().map(|range| (range.start, range.end)).collect();
        match is {
            Is::Absent => complain("is told of".into()),
            Is::Unusable if found.verdict != Verdict::Unusable => complain(format!("is {:?}", found.verdict)),
            Is::Lost if found.verdict != Verdict::Damaged => complain(format!("is {:?}", found.verdict)),
            Is::Lost | Is::Equal if lost != verdict.lost => {
                complain(format!("lost are {lost:?}, not {:?}", verdict.lost));
            }
            Is::Equal if found.verdict == Verdict::Unusable => complain("is unusable".into()),
            _ => {}
        }
        let damage = report.findings.iter().filter(|finding| {
            finding.kind.severity() == Severity::Damage && finding.backups.contains(&found.id)
        });
        let is_blamed = damage.count() > 0;
        if matches!(is, Is::Lost | Is::Unusable) != is_blamed
            && (is != Is::Equal || found.verdict == Verdict::Good)
        {
            complain(format!("is {:?}, and findings of damage: {is_blamed}", found.verdict));
        }
        if found.verdict == Verdict::Unchecked || found.cinder == Cinder::Unknown && is == Is::Equal {
            complain(format!("is {:?}, Cinder {:?}", found.verdict, found.cinder));
        }
    }
    wrong
}

// > What `verify` calls lost is what a reader of the mount cannot have.
#[test]
fn what_is_told_is_what_a_reader_sees() {
    let (queue, wrong) = (Mutex::new(cases()), Mutex::new(Vec::new()));
    assert!(!queue.lock().unwrap().is_empty());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some(case) = queue.lock().unwrap().pop_front() else { return };
                    let found = check(&case);
                    wrong.lock().unwrap().extend(found);
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    assert!(wrong.is_empty(), "{} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
