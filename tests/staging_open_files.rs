//! Does writing leave nothing behind where a file that is removed while it is open stays under another name, as on NFS?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder mounted by bindfs, whose library renames what is removed while it is open, as NFS does.
struct Bound(PathBuf);

impl Bound {
    fn new(folder: &Path, at: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        fs::create_dir_all(at).unwrap();
        assert!(Command::new("bindfs").args([folder, at]).status().unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[track_caller]
fn cinderfs(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(words)
        .env("CINDERFS_CACHE_DIR", "/nonexistent/cache")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words:?}: {said}");
    assert!(!said.contains("hidden folder"), "{said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[track_caller]
fn hidden(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn no_hidden_folder_stays_where_removed_files_stay_until_they_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (behind, at, disk) =
        (folder.path().join("behind"), folder.path().join("at"), folder.path().join("disk"));
    let bound = Bound::new(&behind, &at);
    fs::write(at.join("x"), "").unwrap();
    let open = fs::File::open(at.join("x")).unwrap();
    fs::remove_file(at.join("x")).unwrap();
    assert_eq!(hidden(&behind).len(), 1, "bindfs is what this test needs");
    drop(open);

    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let (store, disk) = (at.to_str().unwrap(), disk.to_str().unwrap());
    let full = cinderfs(&["create", store, disk]);
    assert_eq!(hidden(&behind), [""; 0]);
    // In a container that others share, files get their names one by one.
    let first = cinderfs(&["create", store, disk, "--container", "shared"]);
    let second = cinderfs(&["create", store, disk, "--container", "shared"]);
    assert_eq!(hidden(&behind), [""; 0]);
    for id in [&full, &first, &second] {
        cinderfs(&["delete", store, id]);
        assert_eq!(hidden(&behind), [""; 0]);
    }
    drop(bound);
}
