//! Does what was known stay known while an object store answers with errors only, and is nothing older taken in its place?

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/swift_server.rs"]
mod swift_server;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use genuine::Genuine;
use mount::{PATIENCE, Setup, cinderfs, errno, names, run, stderr, target, within};
use swift_server::SwiftServer;

/// A server that has this genuine store, and the words that lead to it.
fn served(store: &str) -> (Arc<SwiftServer>, Vec<(String, String)>, Vec<Genuine>) {
    let server = SwiftServer::start(&genuine::root().join(store));
    let words = [
        ("OS_IDENTITY_API_VERSION", "1"),
        ("OS_AUTH_URL", &server.auth_url()),
        ("OS_USERNAME", "u"),
        ("OS_PASSWORD", "k"),
    ];
    let words = words.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    (server, words, genuine::backups_of(store))
}

fn fail(server: &SwiftServer, part: Option<&str>) {
    *server.failing.lock().unwrap() = part.map(str::to_owned);
}

// > What lies in a part of the store that the store fails to list stays known as it was, and so do all backups where it fails altogether; an older one is not taken for the latest in the place of one that it fails to give.
#[test]
fn backups_stay_known_while_every_request_fails() {
    let (server, words, backups) = served("ext4");
    let mount = Setup::default().environment(&words).options("store_timeout=2").mount(Path::new("swift:c"));
    backups[0].check("before", &fs::read(mount.image(&backups[0].id)).unwrap());
    let volume = mount.path(&format!("volumes/{}", backups[0].volume_id));
    let (links, latest) = (names(&volume), target(&volume.join("latest")));
    fail(&server, Some(""));
    // Looked at again, and again in vain.
    within(PATIENCE, "a listing that fails", || fs::read_dir(mount.path("backups")).is_err());
    assert_eq!(errno(fs::read_dir(mount.path("backups"))), libc::EIO);
    for backup in &backups {
        assert!(fs::symlink_metadata(mount.path("backups").join(&backup.id)).is_ok(), "{backup}");
        match fs::read(mount.image(&backup.id)) {
            Ok(bytes) => backup.check("of what was kept", &bytes),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{backup}: {error}"),
        }
    }
    for link in &links {
        assert!(fs::symlink_metadata(volume.join(link)).is_ok(), "{link}");
    }
    assert_eq!(target(&volume.join("latest")), latest);
    fail(&server, None);
    within(PATIENCE, "a listing", || fs::read_dir(mount.path("backups")).is_ok());
    for backup in &backups {
        within(PATIENCE, "the image", || fs::read(mount.image(&backup.id)).is_ok());
        backup.check("afterwards", &fs::read(mount.image(&backup.id)).unwrap());
    }
}

// > What lies in a part of the store that the store fails to list stays known as it was, and so do all backups where it fails altogether; an older one is not taken for the latest in the place of one that it fails to give.
#[test]
fn an_older_backup_is_not_the_latest_because_the_store_fails() {
    let (server, words, backups) = served("ext4");
    let newest = backups.last().unwrap();
    let digests = format!("{}_sha256file", newest.id);
    fail(&server, Some(&digests));
    let folder = tempfile::tempdir().unwrap();
    let restored = folder.path().join("restored");
    let mut command = cinderfs();
    command.args(["restore", "-q", "--store-timeout", "2", "swift:c", "latest"]).arg(&restored);
    command.envs(words.clone()).env("CINDERFS_CACHE_DIR", folder.path());
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("503") && stderr(&output).contains(&newest.id), "{}", stderr(&output));
    assert!(!restored.exists());
    let setup = Setup::default().environment(&words).options("store_timeout=2");
    let mount = setup.mount(Path::new("swift:c"));
    let latest = mount.path(&format!("volumes/{}/latest", newest.volume_id));
    assert!(target(&latest).ends_with(&newest.id), "{}", target(&latest));
    assert_eq!(errno(fs::read(latest.join("volume.img"))), libc::EIO);
    fail(&server, None);
    assert!(run(&mut command).status.success());
    newest.check("restored", &fs::read(&restored).unwrap());
    within(PATIENCE, "the image", || fs::read(latest.join("volume.img")).is_ok());
}
