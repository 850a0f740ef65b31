//! Hostile or damaged input? Each folder of `tests/damage` is one named damage to a genuine store, with its verdict.
//!
//! `CINDERFS_DAMAGE=name cargo test --test damage` runs the cases whose names contain the word.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, where a panic is the report")]

#[path = "common/damage/mod.rs"]
mod kit;

use std::collections::VecDeque;
use std::fs;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use kit::case::{Case, Is};
use kit::watch::TIME_MAX;

/// Cases side by side: each waits for processes most of the time.
const WORKERS: usize = 4;

/// One case runs a dozen commands; each alone may take [`TIME_MAX`].
const CASE_TIME_MAX: Duration = Duration::from_secs(300);

fn names() -> Vec<String> {
    let folders = fs::read_dir(kit::cases_folder()).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = folders
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_case_ends_as_its_verdict_says() {
    let wanted = std::env::var("CINDERFS_DAMAGE").unwrap_or_default();
    let cases: VecDeque<_> =
        names().iter().filter(|name| name.contains(&wanted)).map(|name| Case::read(name)).collect();
    assert!(!cases.is_empty(), "no case is named {wanted:?}");
    let mut running: Vec<(String, Instant)> = Vec::new();
    let (queue, (tell, told)) = (Arc::new(Mutex::new(cases)), mpsc::channel());
    for _ in 0..WORKERS {
        let (queue, tell) = (queue.clone(), tell.clone());
        std::thread::spawn(move || {
            loop {
                let Some(case) = queue.lock().unwrap().pop_front() else { return };
                tell.send((case.name.clone(), None)).unwrap();
                let run = || kit::run(&case);
                let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                let wrong = wrong.unwrap_or_else(|_| vec!["a panic, see above".into()]);
                tell.send((case.name, Some(wrong))).unwrap();
            }
        });
    }
    drop(tell);
    let mut report = Vec::new();
    loop {
        match told.recv_timeout(Duration::from_secs(1)) {
            Ok((name, None)) => running.push((name, Instant::now())),
            Ok((name, Some(wrong))) => {
                let at = running.iter().position(|(running, _)| *running == name).unwrap();
                let (_, started) = running.swap_remove(at);
                println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
                report.extend(wrong.into_iter().map(|what| format!("{name}: {what}")));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let hung = running.iter().find(|(_, started)| started.elapsed() > CASE_TIME_MAX);
                if let Some((name, _)) = hung {
                    report.push(format!("{name}: hangs"));
                    break;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(report.is_empty(), "{} things are wrong:\n{}", report.len(), report.join("\n"));
}

#[test]
fn the_corpus_is_large_and_has_every_verdict() {
    let cases: Vec<_> = names().iter().map(|name| Case::read(name)).collect();
    assert!(cases.len() >= 45, "only {} cases", cases.len());
    for is in [Is::Lost, Is::Unusable, Is::Absent] {
        let count = cases.iter().filter(|case| case.verdict.values().any(|v| v.is == is)).count();
        assert!(count >= 2, "{count} cases have {is:?}");
    }
    let equal = cases.iter().filter(|case| case.verdict.values().all(|v| v.is == Is::Equal)).count();
    assert!(equal >= 10, "{equal} cases show what does no harm");
    assert!(TIME_MAX < CASE_TIME_MAX);
}

/// A kit that finds nothing wrong would pass with any case: give it wrong verdicts.
#[test]
fn a_wrong_verdict_is_found() {
    let base = r#"{"why": "-", "store": "release-17.4.0-none", "damage":
        [{"do": "flip", "file": "@1-00003", "at": 9000, "bit": 0}], "verdict": VERDICT}"#;
    let lost = r#"{"is": "lost", "lost": [[40960, 42194]], "kind": "HashMismatch", "says": "sha256 is"}"#;
    let right = format!(r#"{{"1": {lost}, "2": {lost}}}"#);
    let run = |verdict: &str| {
        let mut case: Case = serde_json::from_str(&base.replace("VERDICT", verdict)).unwrap();
        case.name = "self-check".into();
        kit::run(&case)
    };
    assert_eq!(run(&right), Vec::<String>::new());
    for (from, to, words) in [
        ("40960", "32768", "lost are [(40960, 42194)], not [(32768, 42194)]"),
        ("HashMismatch", "Codec", "the kind is HashMismatch"),
        ("sha256 is", "nonsense", "does not tell"),
    ] {
        let wrong = run(&right.replace(from, to)).join("\n");
        assert!(wrong.contains(words), "{words:?} is not in {wrong}");
    }
    for (verdict, words) in [
        (r#"{}"#.to_owned(), "are lost"),
        (format!(r#"{{"1": "absent", "2": {lost}}}"#), "is listed"),
        (format!(r#"{{"1": {{"is": "unusable", "kind": "Codec", "says": "x"}}, "2": {lost}}}"#), "is usable"),
        (right.replace("]]", "]], \"verification\": \"md5\""), "is verified by sha256"),
        (right.replace("\"1\":", "\"x\": \"equal\", \"1\":"), "backup x: is not listed"),
    ] {
        let wrong = run(&verdict).join("\n");
        assert!(wrong.contains(words), "{words:?} is not in {wrong}");
    }
}

/// `README.md` is made of the cases; `CINDERFS_BLESS=1` writes it.
#[test]
fn the_readme_lists_every_case() {
    let path = kit::cases_folder().join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (prose, _) = readme.split_once("\n| case |").unwrap();
    let mut text = format!("{prose}\n| case | from | what it shows |\n| --- | --- | --- |\n");
    for name in names() {
        let case = Case::read(&name);
        text.push_str(&format!("| {name} | {} | {} |\n", case.store, case.why));
    }
    if std::env::var_os("CINDERFS_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert!(readme == text, "run it with CINDERFS_BLESS=1 and look at what changed");
}
