//! Through the program: `list`, `show`, `restore`, by what they print and how they exit.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use super::case::{Case, Is, Verdict};
use super::library::any_of;
use super::watch::{Ended, cinderfs};
use super::world::{Truth, World};

/// Longer images are restored, and of their holes nothing is compared.
const COMPARED_BYTES_MAX: u64 = 256 << 20;

pub(crate) fn check(case: &Case, world: &World, wrong: &mut Vec<String>) {
    let root = world.root();
    let program = Program {
        store: root.to_str().unwrap(),
        scratch: world.scratch("results"),
        peak_kib_max: case.peak_kib_max(),
    };
    fs::create_dir(&program.scratch).unwrap();
    let verdicts = world.verdicts(case);
    if let Err(what) = program.list(&verdicts) {
        wrong.push(format!("list: {what}"));
    }
    for (id, verdict) in &verdicts {
        if let Err(what) = program.show(id, verdict) {
            wrong.push(format!("show {id}: {what}"));
        }
        if let Err(what) = program.restore(id, verdict, world.truth.get(id)) {
            wrong.push(format!("restore {id}: {what}"));
        }
    }
}

struct Program<'a> {
    store: &'a str,
    scratch: std::path::PathBuf,
    peak_kib_max: u64,
}

impl Program<'_> {
    fn run(&self, words: &[&str], code: i32) -> Result<Ended, String> {
        let ended = cinderfs(words, &self.scratch, self.peak_kib_max)?;
        if ended.code == Some(code) {
            return Ok(ended);
        }
        Err(format!("exit {:?} instead of {code}: {}", ended.code, ended.stderr))
    }

    fn list(&self, verdicts: &[(String, Verdict)]) -> Result<(), String> {
        let ended = self.run(&["list", self.store, "-f", "json", "-c", "ID", "-c", "Status"], 0)?;
        let rows: Value = serde_json::from_str(&ended.stdout).map_err(|error| error.to_string())?;
        let mut found: Vec<_> = rows
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| (row["ID"].as_str().unwrap_or("?"), row["Status"].as_str().unwrap_or("?")))
            .collect();
        let mut expected: Vec<_> = verdicts
            .iter()
            .filter(|(_, verdict)| verdict.is != Is::Absent)
            .map(|(id, verdict)| (id.as_str(), status(verdict)))
            .collect();
        found.sort_unstable();
        expected.sort_unstable();
        if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
    }

    fn show(&self, id: &str, verdict: &Verdict) -> Result<(), String> {
        let words = ["show", self.store, id, "-f", "json"];
        if verdict.is == Is::Absent {
            return self.run(&words, 1).map(|_| ());
        }
        let ended = self.run(&words, 0)?;
        let document: Value = serde_json::from_str(&ended.stdout).map_err(|error| error.to_string())?;
        let reason = document["fail_reason"].as_str();
        let says = verdict.says.as_deref().filter(|_| verdict.is == Is::Unusable);
        let verification = Some(verdict.verification.as_str()).filter(|_| verdict.is != Is::Unusable);
        if document["status"] != status(verdict) || document["verification"].as_str() != verification {
            return Err(format!("status or verification: {document}"));
        }
        match (reason, says) {
            (None, None) => Ok(()),
            (Some(reason), says) if any_of(says, |word| reason.contains(word)) => Ok(()),
            _ => Err(format!("the reason {reason:?} does not tell {says:?}")),
        }
    }

    fn restore(&self, id: &str, verdict: &Verdict, truth: Option<&Truth>) -> Result<(), String> {
        let (target, map) = (self.scratch.join("image"), self.scratch.join("map"));
        let words = ["restore", self.store, id, target.to_str().unwrap()];
        let _ = fs::remove_file(&target); // of a restore that should have failed
        let zero = ["--on-damage", "zero", "--loss-map", map.to_str().unwrap()];
        if verdict.is != Is::Equal {
            let ended = self.run(&words, 1)?;
            let says = verdict.says.as_deref().unwrap_or(id);
            if !any_of(Some(says), |word| ended.stderr.contains(word)) {
                return Err(format!("stderr does not tell {says:?}: {}", ended.stderr));
            }
            if target.exists() {
                return Err("a failed restore left its target behind".into());
            }
        }
        match verdict.is {
            Is::Absent | Is::Unusable => return Ok(()),
            Is::Equal => self.run(&words, 0)?,
            Is::Lost => self.run(&[&words[..], &zero].concat(), 3)?,
        };
        let truth = truth.ok_or("restored what nobody knows")?;
        compare(&target, truth, &verdict.lost)?;
        fs::remove_file(&target).unwrap();
        if verdict.is == Is::Lost {
            let found = lost_by_map(&fs::read_to_string(&map).unwrap());
            fs::remove_file(&map).unwrap();
            if found != verdict.lost {
                return Err(format!("the loss map tells {found:?}, not {:?}", verdict.lost));
            }
        }
        Ok(())
    }
}

fn status(verdict: &Verdict) -> &'static str {
    if verdict.is == Is::Unusable { "error" } else { "available" }
}

/// The true bytes, and zeros where they are lost.
fn compare(target: &Path, truth: &Truth, lost: &[(u64, u64)]) -> Result<(), String> {
    let file = fs::File::open(target).map_err(|error| error.to_string())?;
    let len = file.metadata().unwrap().len();
    if len != truth.len() {
        return Err(format!("the target has {len} bytes, not {}", truth.len()));
    }
    if len > COMPARED_BYTES_MAX {
        return Ok(());
    }
    let mut bytes = vec![0xEE; len as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut at = 0;
    for &(start, end) in lost.iter().chain([&(len, len)]) {
        if !truth.has(at, &bytes[at as usize..start as usize]) {
            return Err(format!("WRONG BYTES between {at} and {start}"));
        }
        if bytes[start as usize..end as usize].iter().any(|&byte| byte != 0) {
            return Err(format!("not zeros between {start} and {end}"));
        }
        at = end;
    }
    Ok(())
}

/// The `-` lines of a mapfile.
fn lost_by_map(map: &str) -> Vec<(u64, u64)> {
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
    let mut lost = Vec::new();
    for line in map.lines().filter(|line| !line.starts_with('#')) {
        if let [pos, size, "-"] = line.split_whitespace().collect::<Vec<_>>()[..] {
            lost.push((number(pos), number(pos) + number(size)));
        }
    }
    lost
}
