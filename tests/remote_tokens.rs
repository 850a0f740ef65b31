//! Is a token of a real Keystone renewed when it has expired? They live for seconds here, and the tests wait as long. And one of Google's, which a
//! server of a few lines gives out and a gate before the emulator asks for?
//!
//! Run by `scripts/services/test.sh`, which starts the servers.

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, unused_imports, unused_macros, reason = "a part of each kit is used")]

#[path = "common/as_cinder.rs"]
mod as_cinder;
#[path = "common/bad_way.rs"]
mod bad_way;
#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/servers.rs"]
mod servers;

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use as_cinder::upload;
use bad_way::BadWay;
use conformance::{Bench as _, listed, name};
use genuine::Genuine;
use http_server::{Head, listen};
use mount::{Mount, Setup};
use servers::{Bucket, Kind, told};

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_token_that_expires_is_renewed() {
    let bucket = Bucket::new(Kind::Keystone);
    let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    bucket.put("o", &bytes);
    let store = bucket.store();
    let source = store.open(&name("o")).unwrap();
    let life: u64 = told(Kind::Keystone, "TOKEN_SECONDS").parse().unwrap();
    let mut buf = [0; 100];
    for offset in [0, 50_000, 90_000] {
        assert_eq!(source.read_at(&mut buf, offset).unwrap(), 100);
        assert_eq!(buf, bytes[offset as usize..][..100]);
        std::thread::sleep(Duration::from_secs(life + 2));
    }
    assert_eq!(listed(&*store, ""), ["o"]);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_mount_outlives_its_token() {
    let bucket = Bucket::new(Kind::Keystone);
    bucket.upload(&genuine::root().join("ext4"), "");
    let (word, environment) = bucket.word();
    let mount = Setup::default().environment(&environment).log("debug").mount(word.as_ref());
    let life: u64 = told(Kind::Keystone, "TOKEN_SECONDS").parse().unwrap();
    std::thread::sleep(Duration::from_secs(life + 2));
    for backup in genuine::backups_of("ext4") {
        backup.check("mounted", &fs::read(mount.image(&backup.id)).unwrap());
    }
    assert!(mount.log().contains("the Swift token has expired"), "{}", mount.log());
}

/// Who gives out Google's access tokens, and the gate that knows the last of them.
struct Google {
    bucket: Bucket,
    given: Arc<AtomicUsize>,
    /// Tokens that no gate knows are given out.
    gives_wrong: Arc<AtomicBool>,
    gate: Arc<BadWay>,
    environment: Vec<(String, String)>,
    _folder: tempfile::TempDir,
}

impl Google {
    /// With tokens that live so long, and a bucket with these backups.
    fn new(seconds: u64, backups: &[Genuine]) -> Self {
        let bucket = Bucket::new(Kind::Gcs);
        upload(&bucket, backups);
        let (gate, base) = BadWay::to(bucket.address());
        gate.only("none yet");
        let (given, gives_wrong): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let known = (given.clone(), gives_wrong.clone(), gate.clone());
        let giver = listen(move |head: &Head, reader: &mut BufReader<&TcpStream>, _: &str| {
            let (given, gives_wrong, gate) = &known;
            let len = head.header("content-length: ")?.parse().ok()?;
            reader.read_exact(&mut vec![0; len]).ok()?;
            let token = format!("token-{}", given.fetch_add(1, Ordering::SeqCst));
            if !gives_wrong.load(Ordering::SeqCst) {
                gate.only(&token);
            }
            let body =
                serde_json::json!({"access_token": token, "token_type": "Bearer", "expires_in": seconds,
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})
                .to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            reader.get_mut().write_all(answer.as_bytes()).ok()
        });
        // An account of somebody else's, whose tokens are exchanged at a place that the file names.
        let folder = tempfile::tempdir().unwrap();
        let (subject, keys) = (folder.path().join("subject/token"), folder.path().join("keys.json"));
        fs::create_dir(subject.parent().unwrap()).unwrap();
        fs::write(&subject, "somebody").unwrap();
        let json = serde_json::json!({"type": "external_account", "audience": "cinderfs",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": format!("{giver}/token"),
            "credential_source": {"file": subject, "format": {"type": "text"}}});
        fs::write(&keys, json.to_string()).unwrap();
        let environment = [
            ("STORAGE_EMULATOR_HOST", base),
            ("GOOGLE_APPLICATION_CREDENTIALS", keys.to_str().unwrap().to_owned()),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
        Self { bucket, given, gives_wrong, gate, environment, _folder: folder }
    }

    fn given(&self) -> usize {
        self.given.load(Ordering::SeqCst)
    }

    fn mount(&self) -> Mount {
        let setup = Setup::default().environment(&self.environment).options("store_timeout=10");
        setup.mount(Path::new(&self.bucket.word().0))
    }
}

/// Whoever signs wants a token to be good for two minutes more.
const ENDING: u64 = 120;

// > An access token of Google's is asked for once, and again before it ends or when a server refuses it; who reads does not
// > notice.
#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn googles_token_is_asked_for_once_and_renewed_when_it_ends_or_is_refused() {
    let backups = genuine::backups_of("ext4");
    let google = Google::new(3600, &backups);
    let mount = google.mount();
    let check = |mount: &Mount, at: usize| {
        let backup = &backups[at];
        backup.check("with a token", &fs::read(mount.image(&backup.id)).unwrap());
    };
    check(&mount, 0);
    assert_eq!(google.given(), 1, "one for all requests");
    // Long before its end.
    google.gate.only("none of those that were given");
    check(&mount, 1);
    assert_eq!(google.given(), 2);
    drop(mount);

    let life = 5;
    let google = Google::new(ENDING + life, &backups);
    let mount = google.mount();
    check(&mount, 0);
    let before = google.given();
    std::thread::sleep(Duration::from_secs(life));
    check(&mount, 1);
    assert!(google.given() > before, "the last one has ended");
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn googles_tokens_that_nobody_knows_are_told_and_not_tried_for_ever() {
    let google = Google::new(3600, &genuine::backups_of("ext4")[..1]);
    google.gives_wrong.store(true, Ordering::SeqCst);
    let mut list = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    let environment = google.environment.iter().map(|(name, value)| (name, value));
    let output = list.arg("list").arg(google.bucket.word().0).envs(environment).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(12), "{said}");
    assert!(said.contains("does not accept the credentials"), "{said}");
    assert!(google.given() <= 2, "{}", google.given());
}
