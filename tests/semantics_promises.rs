//! Is every promise of `docs/SEMANTICS.md` shown by a test?
//!
//! A test quotes the promises that it shows in comments of the form `// > text` directly above its `#[test]`, in as many lines
//! as needed; an empty line or another comment parts two quotes.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The promises, without their numbers: each is one numbered line of the document.
fn promises() -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/SEMANTICS.md")).unwrap();
    let numbered = text.lines().filter_map(|line| {
        let (number, promise) = line.split_once(". ")?;
        Some((number.parse::<usize>().ok()?, promise.to_owned()))
    });
    let numbered: Vec<_> = numbered.collect();
    let numbers: Vec<usize> = numbered.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=numbered.len()).collect::<Vec<_>>(), "the promises are numbered in order");
    numbered.into_iter().map(|(_, promise)| promise).collect()
}

/// Each quoted promise and the test functions that quote it.
fn quotes() -> BTreeMap<String, Vec<String>> {
    let mut files: Vec<_> =
        fs::read_dir(root().join("tests")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let parts = files.iter().filter_map(|file| fs::read_dir(file.with_extension("")).ok());
    let parts: Vec<_> = parts.flatten().map(|entry| entry.unwrap().path()).collect();
    files.extend(parts);
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    // A bug cannot be ordered; the unit test beside the code that answers for one shows what becomes of it.
    files.push(root().join("src/frontend/fuse/replies.rs"));
    files.push(root().join("src/cache_dir/mod.rs"));
    files.push(root().join("src/cache_dir/images.rs"));
    files.push(root().join("src/cache_dir/verified.rs"));
    let mut quotes = BTreeMap::<String, Vec<String>>::new();
    for file in files.iter().filter(|file| !file.ends_with("semantics_promises.rs")) {
        let (mut open, mut above) = (String::new(), Vec::new());
        let mut is_test = false;
        for (index, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            let place = format!("{}:{}", file.display(), index + 1);
            let line = line.trim();
            if let Some(text) = line.strip_prefix("// > ") {
                open = if open.is_empty() { text.to_owned() } else { format!("{open} {text}") };
                continue;
            }
            if !open.is_empty() {
                above.push(std::mem::take(&mut open));
            }
            is_test |= line == "#[test]";
            if line.is_empty() || line.starts_with("//") || line.starts_with("#[") {
                continue;
            }
            if !above.is_empty() {
                assert!(is_test && line.starts_with("fn "), "{place}: a quote stands above a test");
            }
            for quote in above.drain(..) {
                quotes.entry(quote).or_default().push(place.clone());
            }
            is_test = false;
        }
        assert!(above.is_empty() && open.is_empty(), "{}: a quote stands above a test", file.display());
    }
    quotes
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_promise_is_quoted_by_a_test_and_every_quote_is_a_promise() {
    let promises: BTreeSet<String> = promises().into_iter().collect();
    assert!(promises.len() > 40, "found {} promises only", promises.len());
    let quotes = quotes();
    let unproven: Vec<_> = promises.iter().filter(|promise| !quotes.contains_key(*promise)).collect();
    assert!(unproven.is_empty(), "no test quotes {unproven:#?}");
    let unknown: Vec<_> = quotes.iter().filter(|(quote, _)| !promises.contains(*quote)).collect();
    assert!(unknown.is_empty(), "docs/SEMANTICS.md does not say {unknown:#?}");
}
