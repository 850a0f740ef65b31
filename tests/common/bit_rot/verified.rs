//! What `verify` says of a store with a flipped bit, and whether it may.
//!
//! Two ways to be wrong: to call a store right of which a reader does not get all, and to call something lost that no reader misses.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::verify::findings::{Finding, Kind, Severity, Verdict as Found};
use cinderfs::frontend::verify::{self, Report, VerifyOptions};
use cinderfs::store::memory::MemoryStore;

use super::blame::{Flip, Verdict};
use super::model::Store;
use super::trial::{Outcome, Seen, covers};

/// What it came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verified {
    /// Damage is found.
    Damage,
    /// Nothing but a warning or a note.
    Warned,
    /// Not a word more than before.
    Right,
}

/// Findings that do not come from a flipped bit.
pub(crate) struct Known(HashSet<(Kind, String)>);

/// What it says of the store as it is now.
pub(crate) fn known(memory: &Arc<MemoryStore>) -> Known {
    let report = run(memory);
    assert!(!report.is_damaged() && report.failure.is_none(), "{report:?}");
    Known(report.findings.into_iter().map(|finding| (finding.kind, finding.message)).collect())
}

/// What it said of a flip, and what is wrong with that.
pub(super) struct Judged {
    report: Report,
    pub(super) complaints: Vec<String>,
}

impl Judged {
    pub(super) fn verified(&self, known: &Known) -> Verified {
        let is_new = |finding: &&Finding| !known.0.contains(&(finding.kind, finding.message.clone()));
        let worst = self.report.findings.iter().filter(is_new).map(|finding| finding.kind.severity()).min();
        match worst {
            Some(Severity::Damage) => Verified::Damage,
            Some(Severity::Warning | Severity::Note) => Verified::Warned,
            None => Verified::Right,
        }
    }

    pub(super) fn exit_code(&self) -> i32 {
        if self.report.is_damaged() { 3 } else { 0 }
    }
}

fn run(memory: &Arc<MemoryStore>) -> Report {
    let options = CatalogOptions { workers: 0, ..CatalogOptions::default() };
    let catalog = Catalog::open(memory.clone(), options).unwrap();
    let cancel = AtomicBool::new(false);
    let options = VerifyOptions::everything(&cancel);
    verify::verify(&catalog, None, &options, &|_| ()).unwrap()
}

/// Verifies the whole store with the library, and compares with what readers got of the images.
pub(super) fn judge(
    memory: &Arc<MemoryStore>,
    store: &Store,
    flip: Flip,
    verdict: &Verdict,
    seen: &[(usize, Seen)],
) -> Judged {
    let (report, mut complaints) = (run(memory), Vec::new());
    let mut complain = |what: String| complaints.push(format!("verify: {what}"));
    if let Some(error) = &report.failure {
        complain(format!("the store did not fail, and it says {error}"));
    }
    if seen.iter().any(|(_, seen)| *seen != Seen::Right) {
        if !report.is_damaged() {
            complain("a reader does not get what is there, and nothing is damaged".into());
        }
        if !is_named(&report, store, flip) {
            complain(format!("no damage names the file: {:?}", report.findings));
        }
    }
    for (index, backup) in store.backups.iter().enumerate() {
        let of_backup = report.backups.iter().find(|found| found.id.as_str() == backup.id);
        let seen = seen.iter().find(|(other, _)| *other == index).map_or(&Seen::Right, |(_, seen)| seen);
        let Some(found) = of_backup else {
            // One whose id cannot be read is another one, of which nothing is known.
            if *seen != Seen::Unusable {
                complain(format!("backup {} is not in the report", backup.id));
            }
            continue;
        };
        let blame = &verdict.blames[index];
        if (found.verdict == Found::Unusable) != (*seen == Seen::Unusable) {
            complain(format!("backup {} is {}, and readers see {seen:?}", backup.id, found.verdict.name()));
        }
        let kept = found.lost.kept();
        if let Seen::Lost(lost) = seen {
            // It may find more than a reader who came by restart points, never less.
            if let Some(range) = lost.iter().find(|range| !found.lost.is_cut() && !covers(range, kept)) {
                complain(format!("backup {}: {range:?} is lost, and it has {kept:?}", backup.id));
            }
        }
        let len = backup.image.len() as u64;
        for range in kept {
            // Where the metadata says that the last object is longer, the image is.
            if range.start < len && !covers(&(range.start..range.end.min(len)), &blame.may_lose) {
                complain(format!("backup {}: {range:?} is called lost, and is not", backup.id));
            }
        }
    }
    Judged { report, complaints }
}

/// Whether what is called damage names the file of the flip, or its backup.
fn is_named(report: &Report, store: &Store, flip: Flip) -> bool {
    let (file, id) = (&store.files[flip.file], &store.backups[store.files[flip.file].backup].id);
    report.findings.iter().filter(|finding| finding.kind.severity() == Severity::Damage).any(|finding| {
        finding.object.as_deref() == Some(&file.name)
            || finding.message.contains(&file.name)
            || finding.backups.iter().any(|backup| backup.as_str() == id)
    })
}

/// The program on the same store ends as the library says, and names the folder of the file: a wrong digest is told with the object of its block.
pub(super) fn by_program(folder: &Path, name: &str, outcome: &mut Outcome) {
    let ended = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(["verify", "-f", "json"])
        .arg(folder.join("store"))
        .env_remove("CINDERFS_LOG")
        .env("CINDERFS_CACHE_DIR", folder.join("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let says = String::from_utf8_lossy(&ended.stdout).into_owned();
    if ended.status.code() != Some(outcome.program) {
        let expected = outcome.program;
        outcome.complaints.push(format!("verify ended with {}, not with {expected}: {says}", ended.status));
    }
    let folder = name.rsplit_once('/').map_or(name, |(folder, _)| folder);
    if outcome.program == 3 && !says.contains(folder) {
        outcome.complaints.push(format!("verify does not name {name}: {says}"));
    }
}
