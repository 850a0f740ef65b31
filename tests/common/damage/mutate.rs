//! Does to a store what a case says.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use serde_json::Value;

use super::case::Step;
use super::forge;
use super::world::{World, copy};

/// A hole begins after so many bytes of units.
const BEFORE_HOLE_BYTES: u64 = 64 << 10;

pub(crate) fn apply(step: &Step, world: &mut World) {
    match step {
        Step::Flip { file, at, bit, find } => edit(&world.path(file), |bytes| {
            let begin = find.as_ref().map_or(0, |find| position(bytes, find, 0));
            let at = if *at < 0 { bytes.len() as i64 + at } else { begin as i64 + at };
            bytes[at as usize] ^= 1 << bit;
        }),
        Step::Truncate { file, to } => {
            let path = world.path(file);
            let len = fs::metadata(&path).unwrap().len();
            let to = if *to < 0 { len - to.unsigned_abs() } else { *to as u64 };
            assert!(to < len, "{file} has {len} bytes");
            OpenOptions::new().write(true).open(path).unwrap().set_len(to).unwrap();
        }
        Step::Remove { file } => remove(&world.path(file)),
        Step::Append { file, hex } => edit(&world.path(file), |bytes| {
            let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            bytes.extend(digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()));
        }),
        Step::Replace { file, from, to, nth } => edit(&world.path(file), |bytes| {
            let at = position(bytes, from, *nth);
            bytes.splice(at..at + from.len(), to.bytes());
        }),
        Step::Write { file, text } => {
            let path = world.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Step::Set { file, at, value } => edit_json(&world.path(file), |document| set(document, at, value)),
        Step::Unset { file, at } => edit_json(&world.path(file), |document| unset(document, at)),
        Step::RenameObject { file, index, to } => edit_json(&world.path(file), |document| {
            let entry = document["objects"][*index].as_object_mut().unwrap();
            let (_, value) = std::mem::take(entry).into_iter().next().unwrap();
            entry.insert(to.clone(), value);
        }),
        Step::Layout { file, style } => edit(&world.path(file), |bytes| layout(bytes, style)),
        Step::Fill { file, head, unit, bytes, sparse } => {
            fill(&world.path(file), head, unit, *bytes, *sparse).unwrap();
        }
        Step::Directory { file } => {
            let path = world.path(file);
            remove(&path);
            fs::create_dir(path).unwrap();
        }
        Step::Fifo { file } => {
            let path = world.path(file);
            remove(&path);
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        }
        Step::Symlink { file, to } => {
            let (path, outside) = (world.path(file), world.outside().join("copy"));
            copy(&path, &outside);
            remove(&path);
            symlink(to.replace("{outside}", outside.to_str().unwrap()), path).unwrap();
        }
        Step::Copy { from, to } => copy(&world.path(from), &world.path(to)),
        Step::Move { from, to } => {
            let to = world.path(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::rename(world.path(from), to).unwrap();
        }
        Step::ForeignName { folder } => {
            let path = world.path(folder).join(OsStr::from_bytes(b"not \xff utf-8\x1b[31m_metadata"));
            fs::write(path, "{}").unwrap();
        }
        Step::Recode { file, how } => forge::recode(world, file, how),
        Step::Bomb { file, codec, mib, byte } => {
            forge::bomb(&world.path(file), codec, *mib, *byte).unwrap();
        }
        Step::Build(build) => {
            let truth = build.write(&world.root());
            world.truth.insert(build.id.clone(), truth);
        }
    }
}

/// Changes a file, which must then be another.
fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let before = fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let mut bytes = before.clone();
    change(&mut bytes);
    assert_ne!(bytes, before, "{path:?} is as it was");
    fs::write(path, bytes).unwrap();
}

fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    edit(path, |bytes| {
        let mut document = serde_json::from_slice(bytes).unwrap();
        change(&mut document);
        *bytes = serde_json::to_vec_pretty(&document).unwrap();
    });
}

fn set(document: &mut Value, at: &str, value: &Value) {
    let (parent, last) = at.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent:?}")) {
        Value::Array(list) if last == "-" => list.push(value.clone()),
        Value::Array(list) => list[last.parse::<usize>().unwrap()] = value.clone(),
        Value::Object(map) => drop(map.insert(last.into(), value.clone())),
        other => panic!("{parent:?} is {other}"),
    }
}

fn unset(document: &mut Value, at: &str) {
    let (parent, last) = at.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent:?}")) {
        Value::Array(list) => drop(list.remove(last.parse().unwrap())),
        Value::Object(map) => assert!(map.shift_remove(last).is_some(), "no {at:?}"),
        other => panic!("{parent:?} is {other}"),
    }
}

/// Where `text` begins the `nth` time.
fn position(bytes: &[u8], text: &str, nth: usize) -> usize {
    let mut hits = bytes.windows(text.len()).enumerate().filter(|(_, window)| *window == text.as_bytes());
    hits.nth(nth).unwrap_or_else(|| panic!("no {text:?} number {nth}")).0
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

fn layout(bytes: &mut Vec<u8>, style: &str) {
    let compact = || serde_json::to_vec(&serde_json::from_slice::<Value>(bytes).unwrap()).unwrap();
    *bytes = match style {
        "compact" => compact(),
        "python2" => String::from_utf8(bytes.clone()).unwrap().replace(",\n", ", \n").into_bytes(),
        "bom" => [b"\xef\xbb\xbf", &bytes[..]].concat(),
        "newline" => [&bytes[..], b"\n"].concat(),
        other => panic!("no layout {other:?}"),
    };
}

fn fill(path: &Path, head: &str, unit: &str, bytes: u64, sparse: bool) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(head.as_bytes())?;
    let units = unit.repeat((64 << 10) / unit.len());
    let end = if sparse { BEFORE_HOLE_BYTES } else { bytes };
    let mut written = head.len() as u64;
    while written < end {
        file.write_all(units.as_bytes())?;
        written += units.len() as u64;
    }
    file.into_inner()?.set_len(bytes.max(written))
}
