//! Does a cinder.conf alone lead to backups in real Swift and S3 and in an emulator of Google's, and back there again?
//!
//! Run by `scripts/services/test.sh`, which starts the servers.

#![cfg(feature = "remote")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, unused_imports, unused_macros, reason = "a part of each kit is used")]

#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/servers.rs"]
mod servers;
#[path = "common/tls_front.rs"]
mod tls_front;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use conformance::Bench as _;
use servers::{Bucket, Kind, told};
use tempfile::TempDir;
use tls_front::{Ca, Proxy, answering};

/// A folder for a cinder.conf and what is restored, and the environment beside the file.
struct World {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

/// What a command ended with and printed.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn conf(&self, text: &str) -> String {
        let path = self.path("cinder.conf");
        std::fs::write(&path, format!("[DEFAULT]\n{text}")).unwrap();
        path
    }

    /// Nothing of the tests' own environment leads to a server.
    fn run(&self, words: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.folder.path())
            .env("CINDERFS_CACHE_DIR", "/nonexistent/cache")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            code: output.status.code().unwrap(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// What a command prints, which ends well and without a word.
    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let ended = self.run(words);
        assert_eq!((ended.code, &*ended.stderr), (0, ""), "{words:?}");
        ended.stdout
    }

    fn restored(&self, conf: &str, id: &str) -> Vec<u8> {
        let target = self.path("restored");
        self.ok(&["restore", "-q", "--force", conf, id, &target]);
        std::fs::read(target).unwrap()
    }

    /// The genuine backups that were uploaded.
    fn genuine_are_restored(&self, conf: &str) {
        let listed = self.ok(&["list", conf, "-f", "value", "-c", "ID"]);
        for backup in genuine::backups_of("ext4") {
            assert!(listed.contains(&backup.id), "{listed}");
            backup.check("restored by a cinder.conf", &self.restored(conf, &backup.id));
        }
    }

    /// A new backup and an increment come back; and their objects, taken from below `bucket`, are named as Cinder's.
    fn made_and_restored(&self, conf: &str, bucket: &Bucket) {
        let mut plain: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7 * 13 % 251) as u8).collect();
        let source = self.path("volume");
        let mut create = |words: &[&str]| {
            plain[1_500_000] ^= 1;
            std::fs::write(&source, &plain).unwrap();
            let all = [&["create", "-q", "--object-size", "1M", conf, &source], words].concat();
            let id = self.ok(&all).trim().to_owned();
            assert!(self.restored(conf, &id) == plain);
            id
        };
        let made = [(create(&[]), 3), (create(&["--incremental"]), 1)];
        let listed = self.ok(&["list", conf, "-f", "value", "-c", "ID"]);
        let there = bucket.store().into_objects().unwrap().list_below("", &|| false).unwrap();
        let there: Vec<_> = there.iter().map(|object| object.name.as_str()).collect();
        for (id, objects) in made {
            assert!(listed.contains(&id), "{listed}");
            let ours: Vec<_> = there.iter().filter(|name| name.contains(&id)).collect();
            let starts = |name: &str| name.starts_with("volume_") && name.matches('/').count() == 2;
            assert!(ours.iter().all(|name| starts(name) && name.contains(&format!("/az_nova_backup_{id}"))));
            let ends: Vec<_> = ours.iter().map(|name| name.rsplit(&*id).next().unwrap().to_owned()).collect();
            let mut expected: Vec<_> = (1..=objects).map(|number| format!("-{number:05}")).collect();
            expected.extend(["_metadata".to_owned(), "_sha256file".to_owned()]);
            assert_eq!(ends, expected);
        }
    }
}

fn s3_conf(bucket: &Bucket, endpoint: &str, more: &str) -> String {
    let (key, secret) = (told(Kind::S3, "AWS_ACCESS_KEY_ID"), told(Kind::S3, "AWS_SECRET_ACCESS_KEY"));
    format!(
        "backup_driver = cinder.backup.drivers.s3.S3BackupDriver\nbackup_s3_endpoint_url = {endpoint}\n\
         backup_s3_store_access_key = {key}\nbackup_s3_store_secret_key = {secret}\n\
         backup_s3_store_bucket = {}\n{more}",
        bucket.name
    )
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn s3_behind_tls_wants_the_ca_of_the_cinder_conf() {
    let bucket = Bucket::new(Kind::S3);
    bucket.upload(&genuine::root().join("ext4"), "");
    let world = World::new();
    let endpoint = told(Kind::S3, "TLS_ENDPOINT");
    let untold = world.run(&["list", &world.conf(&s3_conf(&bucket, &endpoint, ""))]);
    assert_eq!(untold.code, 1, "{}", untold.stderr);
    assert!(
        untold.stderr.contains("is not trusted") && untold.stderr.contains("cinder.conf"),
        "{}",
        untold.stderr
    );
    assert!(!untold.stderr.contains(&told(Kind::S3, "AWS_SECRET_ACCESS_KEY")));
    let none = world.conf(&s3_conf(&bucket, &endpoint, "backup_s3_ca_cert_file = /nonexistent/ca.pem\n"));
    let none = world.run(&["list", &none]);
    assert_eq!(none.code, 2, "{}", none.stderr);
    assert!(none.stderr.contains("/nonexistent/ca.pem"), "{}", none.stderr);
    let ca = format!("backup_s3_ca_cert_file = {}\n", told(Kind::S3, "CA"));
    let conf = world.conf(&s3_conf(&bucket, &endpoint, &ca));
    world.genuine_are_restored(&conf);
    world.made_and_restored(&conf, &bucket);
    let conf = world.conf(&s3_conf(&bucket, &endpoint, "backup_s3_verify_ssl = false\n"));
    world.genuine_are_restored(&conf);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn s3_encrypts_with_the_customers_key_of_the_cinder_conf() {
    let bucket = Bucket::new(Kind::S3);
    let world = World::new();
    let endpoint = told(Kind::S3, "S3_ENDPOINT");
    let key = |key: &str| {
        let key = key.repeat(32);
        let sse = format!("backup_s3_sse_customer_algorithm = AES256\nbackup_s3_sse_customer_key = {key}\n");
        world.conf(&s3_conf(&bucket, &endpoint, &sse))
    };
    world.made_and_restored(&key("k"), &bucket);
    for conf in [key("x"), world.conf(&s3_conf(&bucket, &endpoint, ""))] {
        let ended = world.run(&["verify", "-q", &conf]);
        assert_ne!(ended.code, 0, "{}", ended.stdout);
        let told = format!("{}{}", ended.stdout, ended.stderr);
        assert!(told.contains("SSE-C") || told.contains("denied"), "{told}");
    }
    // Every object, the marker that is gone excepted.
    for object in bucket.store().into_objects().unwrap().list_below("", &|| false).unwrap() {
        let plain = bucket.store().open(&object.name).and_then(|source| source.read_at(&mut [0; 9], 0));
        assert!(plain.is_err(), "{} is read without the key", object.name);
    }
}

// > What a cinder.conf says of how long and how often a store is tried is not followed, and is told on stderr.
#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn what_is_not_followed_is_told_on_stderr_and_the_rest_is() {
    let bucket = Bucket::new(Kind::S3);
    bucket.upload(&genuine::root().join("ext4"), "");
    let world = World::new();
    let more =
        "backup_s3_timeout = 5\nbackup_s3_retry_max_attempts = 9\nbackup_s3_max_pool_connections = 1\n";
    let conf = world.conf(&s3_conf(&bucket, &told(Kind::S3, "S3_ENDPOINT"), more));
    let ended = world.run(&["list", &conf, "-f", "value", "-c", "ID"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (0, genuine::backups_of("ext4").len()));
    let expected =
        "sets what cinderfs does not follow: backup_s3_retry_max_attempts, backup_s3_timeout; how long";
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    assert!(!ended.stderr.contains("pool"), "{}", ended.stderr);
}

fn swift_conf(bucket: &Bucket, more: &str) -> String {
    // The driver that is meant where none is said.
    format!("backup_swift_container = {}\n{more}", bucket.name)
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn swift_with_the_account_of_the_cinder_conf() {
    // All containers of which are looked at, so one without those of all other tests.
    let bucket = Bucket::new(Kind::Apart);
    bucket.upload(&genuine::root().join("ext4"), "");
    let world = World::new();
    let account = |key: &str| {
        let (url, user) = (told(Kind::Apart, "OS_AUTH_URL"), told(Kind::Apart, "OS_USERNAME"));
        let more = format!(
            "backup_swift_auth = single_user\nbackup_swift_auth_version = 1\nbackup_swift_auth_url = {url}\n\
             backup_swift_user = {user}\nbackup_swift_key = {key}\n"
        );
        world.conf(&swift_conf(&bucket, &more))
    };
    let wrong = world.run(&["list", &account("s3cret")]);
    assert_eq!(wrong.code, 12, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("backup_swift_key in the cinder.conf"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("s3cret"), "{}", wrong.stderr);
    let conf = account(&told(Kind::Apart, "OS_PASSWORD"));
    world.genuine_are_restored(&conf);
    world.made_and_restored(&conf, &bucket);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn swift_with_whoever_asks() {
    let bucket = Bucket::new(Kind::Swift);
    bucket.upload(&genuine::root().join("ext4"), "");
    let nobody = World::new();
    let ended = nobody.run(&["list", &nobody.conf(&swift_conf(&bucket, "backup_swift_auth = per_user\n"))]);
    assert_eq!(ended.code, 12, "{}", ended.stderr);
    assert!(ended.stderr.contains("per_user") && ended.stderr.contains("OS_CLOUD"), "{}", ended.stderr);
    let mut world = World::new();
    for name in ["OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD", "OS_IDENTITY_API_VERSION"] {
        world = world.with(name, &told(Kind::Swift, name));
    }
    let conf = world.conf(&swift_conf(&bucket, "backup_swift_auth = per_user\n"));
    world.genuine_are_restored(&conf);
    world.made_and_restored(&conf, &bucket);
    // One container only: an account of somebody's own holds anything.
    let other = Bucket::new(Kind::Swift);
    other.upload(&genuine::root().join("none-chain"), "");
    let listed = world.ok(&["list", &conf, "-f", "value", "-c", "ID"]);
    assert!(genuine::backups_of("none-chain").iter().all(|backup| !listed.contains(&backup.id)), "{listed}");
}

// > Where Swift is written to as the user that asks (`per_user`, the default), each project's backups lie in its own account, and a store is that of
// > the project that asks; who may read all accounts names another one by `OS_STORAGE_URL`.
#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn each_project_has_its_account_and_an_operator_names_it() {
    let bucket = Bucket::new(Kind::Keystone);
    bucket.upload(&genuine::root().join("ext4"), "");
    let who = |user: &str, password: &str, project: &str| {
        let mut world = World::new();
        for name in ["OS_AUTH_URL", "OS_USER_DOMAIN_NAME", "OS_PROJECT_DOMAIN_NAME"] {
            world = world.with(name, &told(Kind::Keystone, name));
        }
        world
            .with("OS_USERNAME", &told(Kind::Keystone, user))
            .with("OS_PASSWORD", &told(Kind::Keystone, password))
            .with("OS_PROJECT_NAME", project)
    };
    let ids = |world: &World, store: &str| world.ok(&["list", store, "-f", "value", "-c", "ID"]);
    let in_test = who("OS_USERNAME", "OS_PASSWORD", "test");
    let in_other = who("OS_USERNAME", "OS_PASSWORD", "other");
    let conf = in_other.conf(&swift_conf(&bucket, ""));
    let plain = vec![5; 100_000];
    let source = in_other.path("volume");
    std::fs::write(&source, &plain).unwrap();
    let made = in_other.ok(&["create", "-q", &conf, &source]);
    assert_eq!(ids(&in_other, &conf), made);
    let conf = in_test.conf(&swift_conf(&bucket, ""));
    in_test.genuine_are_restored(&conf);
    assert!(!ids(&in_test, &conf).contains(made.trim()));

    // No project that owns a container, but the role.
    let other = told(Kind::Keystone, "OTHER_STORAGE_URL");
    let operator = who("OPERATOR_NAME", "OPERATOR_PASSWORD", "service").with("OS_STORAGE_URL", &other);
    let container = format!("swift:{}", bucket.name);
    assert_eq!(ids(&operator, &container), made);
    assert!(operator.restored(&container, made.trim()) == plain);
    let conf = operator.conf(&swift_conf(&bucket, ""));
    assert_eq!(ids(&operator, &conf), made);
    let neighbour = in_test.with("OS_STORAGE_URL", &other).run(&["list", &container]);
    assert_eq!(neighbour.code, 12, "{}", neighbour.stderr);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn swift_with_keystone_and_a_private_ca() {
    let bucket = Bucket::new(Kind::Keystone);
    bucket.upload(&genuine::root().join("ext4"), "");
    let world = World::new();
    let keystone = told(Kind::Keystone, "OS_AUTH_URL");
    let address = keystone.strip_prefix("http://").unwrap().strip_suffix("/v3").unwrap();
    let ca = Ca::new(world.folder.path(), &[]);
    let front = ca.front(address);
    let account = |domain: &str, more: &str| {
        let [user, key, project] =
            ["OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME"].map(|name| told(Kind::Keystone, name));
        let more = format!(
            "backup_swift_auth = single_user\nbackup_swift_auth_version = 3\nbackup_swift_auth_url = {}/v3\n\
             backup_swift_user = {user}\nbackup_swift_key = {key}\nbackup_swift_project = {project}\n\
             backup_swift_user_domain = {domain}\nbackup_swift_project_domain = Default\n{more}",
            front.url()
        );
        world.conf(&swift_conf(&bucket, &more))
    };
    let untold = world.run(&["list", &account("Default", "")]);
    assert_eq!(untold.code, 1, "{}", untold.stderr);
    assert!(untold.stderr.contains("is not trusted"), "{}", untold.stderr);
    let believed = format!("backup_swift_ca_cert_file = {}\n", ca.file());
    let stranger = world.run(&["list", &account("Elsewhere", &believed)]);
    assert_eq!(stranger.code, 12, "{}", stranger.stderr);
    let conf = account("Default", &believed);
    world.genuine_are_restored(&conf);
    world.made_and_restored(&conf, &bucket);
    world.ok(&["list", &account("Default", "backup_swift_auth_insecure = true\n")]);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn google_is_reached_through_the_proxy_with_the_credential_file() {
    let bucket = Bucket::new(Kind::Gcs);
    bucket.upload(&genuine::root().join("ext4"), "");
    let world = World::new();
    let ca = Ca::new(world.folder.path(), &["storage.googleapis.com", "oauth2.googleapis.com"]);
    let emulator = told(Kind::Gcs, "STORAGE_EMULATOR_HOST");
    let storage = ca.front(emulator.strip_prefix("http://").unwrap());
    let tokens = ca.front(&answering(r#"{"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}"#));
    let proxy = Proxy::start(BTreeMap::from([
        ("storage.googleapis.com:443", storage.port),
        ("oauth2.googleapis.com:443", tokens.port),
    ]));
    let world = world.with("SSL_CERT_FILE", &ca.file());
    let credential = serde_json::json!({
        "type": "service_account", "project_id": "test", "private_key_id": "1", "private_key": ca.key(),
        "client_email": "cinder@test.iam.gserviceaccount.com", "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
    });
    let file = world.path("credential.json");
    let conf = world.conf(&format!(
        "backup_driver = cinder.backup.drivers.gcs.GoogleBackupDriver\nbackup_gcs_bucket = {}\n\
         backup_gcs_credential_file = {file}\nbackup_gcs_proxy_url = http://user:s3cret@127.0.0.1:{}\n",
        bucket.name, proxy.port
    ));
    let missing = world.run(&["list", &conf]);
    assert_eq!(missing.code, 12, "{}", missing.stderr);
    assert!(
        missing.stderr.contains("credential file") && missing.stderr.contains(&file),
        "{}",
        missing.stderr
    );
    assert!(proxy.heads.lock().unwrap().is_empty());
    std::fs::write(&file, credential.to_string()).unwrap();
    world.genuine_are_restored(&conf);
    world.made_and_restored(&conf, &bucket);
    let heads = proxy.heads.lock().unwrap();
    for host in ["storage.googleapis.com:443", "oauth2.googleapis.com:443"] {
        assert!(heads.iter().any(|head| head.starts_with(&format!("CONNECT {host} "))), "{heads:?}");
    }
    // `user:s3cret`
    let authorised =
        |head: &String| head.to_lowercase().contains("proxy-authorization: basic dxnlcjpzm2nyzxq=");
    assert!(heads.iter().all(authorised), "{heads:?}");
}
