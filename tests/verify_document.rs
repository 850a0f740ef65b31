//! Does the README tell the truth about the document that `verify -f json` prints? Programs are written by it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/store.rs"]
mod store;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use store::{BLOCK, Backup, flip, noise};

const ID: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const LISTS: [&str; 5] =
    ["backups[]", "findings[]", "backups[].lost_ranges[]", "findings[].backups[]", "findings[].ranges[]"];

/// The words in the first column of the tables: keys, and kinds.
fn told() -> (BTreeSet<String>, BTreeSet<String>) {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let (_, text) = text.split_once("<!-- verify-json:begin -->").unwrap();
    let (text, _) = text.split_once("<!-- verify-json:end -->").unwrap();
    let words = |table: &str| {
        let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        let words = cells.flat_map(|cell| cell.split(", ")).map(|word| word.trim_matches('`').to_owned());
        words.collect()
    };
    let (keys, kinds) = text.split_once("\n\n").unwrap();
    (words(keys), words(kinds))
}

/// The paths of all values that are no objects, with `[]` for each step into a list.
fn paths(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                paths(value, &format!("{path}{dot}{key}"), all);
            }
        }
        Value::Array(values) => {
            let path = format!("{path}[]");
            assert!(LISTS.contains(&&*path), "{path} is a list");
            assert!(!values.is_empty(), "{path} is empty, so the test does not see what is in it");
            values.iter().for_each(|value| paths(value, &path, all));
        }
        _ => drop(all.insert(path.to_owned())),
    }
}

#[test]
fn the_readme_tells_every_key_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let backup = Backup::new(ID, "bbbbbbbb-0000-4000-8000-000000000001", noise(1, 4 * BLOCK));
    backup.put(&store);
    flip(&backup.file(&store, "-00001"), 50);
    let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(["verify", "-f", "json"])
        .arg(&store)
        .env("CINDERFS_CACHE_DIR", folder.path().join("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let mut found = BTreeSet::new();
    paths(&serde_json::from_slice(&output.stdout).unwrap(), "", &mut found);
    for (list, row) in [("backups[].lost_ranges[]", ".offset"), ("findings[].ranges[]", ".offset")] {
        // The row of a list of ranges says what is in one.
        assert!(
            found.remove(&format!("{list}{row}")) && found.remove(&format!("{list}.length")),
            "{found:?}"
        );
        found.insert(list.to_owned());
    }
    let (keys, _) = told();
    assert_eq!(keys, found);
}

#[test]
fn the_readme_tells_every_kind_and_no_other() {
    let source = include_str!("../src/frontend/verify/findings.rs");
    let (_, names) = source.split_once("/// The word for documents.").unwrap();
    let (names, _) = names.split_once("/// What to do about it").unwrap();
    let words = names.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\","));
    assert_eq!(told().1, words.map(str::to_owned).collect());
}
