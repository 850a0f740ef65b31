//! What a dead run left in a store, made up: the next run cleans it up, and harms nothing that is not named there.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use cinderfs::writer::staging::remove_leftovers;

use super::Input;
use super::files::folder;

/// A backup in a container of its own making, one beside it, and files that are no backup's.
const FILES: [&str; 7] = [
    "team/one/p-00001",
    "team/one/p-00002",
    "team/one/p_sha256file",
    "team/one/p_metadata",
    "team/one/other",
    "b1/b2/id/p_metadata",
    "top",
];

/// Files outside of the store stay; inside, one goes only if its number is written down.
pub(super) fn leftovers(data: &[u8]) {
    let folder = folder();
    let (root, outside) = (folder.path().join("store"), folder.path().join("outside"));
    for name in ["team/one", "b1/b2/id", ".cinderfs-id/parts", ".cinderfs-id/tree"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::create_dir_all(outside.join("team/one")).unwrap();
    symlink(&outside, root.join("out")).unwrap();
    let mut files: Vec<_> = FILES.iter().map(|name| root.join(name)).collect();
    files.push(outside.join("team/one/p-00001"));
    files.push(outside.join("p-00001"));
    files.iter().for_each(|path| fs::write(path, path.to_str().unwrap()).unwrap());

    let mut input = Input::new(data);
    let what = input.byte();
    let text = filled_in(&String::from_utf8_lossy(input.rest()), &files);
    let hidden = root.join(".cinderfs-id");
    let (first, second) = text.split_once('\0').unwrap_or((&text, ""));
    if what & 1 == 0 {
        File::create(hidden.join("lock")).unwrap();
    }
    match what >> 1 & 3 {
        0 => fs::write(hidden.join("journal"), &text).unwrap(),
        1 => fs::write(hidden.join("deletion"), &text).unwrap(),
        2 => {
            fs::write(hidden.join("journal"), first).unwrap();
            fs::write(hidden.join("deletion"), second).unwrap();
        }
        _ => {
            // Links where files and folders are looked for.
            let name = ["journal", "deletion", "lock", "parts/x", "tree/x"][usize::from(what >> 3) % 5];
            let _ = fs::remove_file(hidden.join(name));
            symlink(if what & 128 == 0 { &files[7] } else { &outside }, hidden.join(name)).unwrap();
            let _ = fs::write(hidden.join("parts/y"), first);
        }
    }

    let numbers: Vec<_> = files.iter().map(|path| fs::metadata(path).unwrap().ino()).collect();
    for _ in 0..2 {
        remove_leftovers(&root).unwrap();
        for (n, (path, number)) in files.iter().zip(&numbers).enumerate() {
            let is_named = text.contains(&number.to_string());
            assert!(is_named && n < FILES.len() || is_whole(path), "{path:?} went by {text:?}");
        }
    }
}

fn is_whole(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes == path.to_str().unwrap().as_bytes())
}

/// `@0` to `@8` become the numbers of those files, `#0` to `#8` what a list of files to be removed says of them.
fn filled_in(text: &str, files: &[std::path::PathBuf]) -> String {
    let mut filled = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let file = chars.peek().and_then(|next| next.to_digit(10)).and_then(|n| files.get(n as usize));
        match (c, file) {
            ('@' | '#', Some(path)) => {
                let stat = fs::metadata(path).unwrap();
                filled.push_str(&stat.ino().to_string());
                if c == '#' {
                    filled.push_str(&format!(" {} {}.{}", stat.len(), stat.mtime(), stat.mtime_nsec()));
                }
                chars.next();
            }
            _ => filled.push(c),
        }
    }
    filled
}
