//! Do stores behind HTTP behave as every store does, against real servers?
//!
//! Run by `scripts/services/test.sh`, which starts the servers.

#![cfg(feature = "remote")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/servers.rs"]
mod servers;

use std::sync::Arc;

use cinderfs::ErrorKind;
use cinderfs::store::Store;
use cinderfs::store::remote::settings::{S3Settings, Secret};
use cinderfs::store::remote::words::Word;
use cinderfs::store::remote::{self, Limits};

use conformance::{Bench, conforms, listed, name, read};
use servers::{Bucket, Kind, maybe_told, open, told};

conforms!(replaced s3, Bucket::new(Kind::S3));
conforms!(replaced swift, Bucket::new(Kind::Swift));
conforms!(replaced keystone, Bucket::new(Kind::Keystone));
conforms!(replaced gcs, Bucket::new(Kind::Gcs));

const ALL: [Kind; 4] = [Kind::S3, Kind::Swift, Kind::Keystone, Kind::Gcs];

/// Opens what `word` names with this server's environment, but for some of its words.
fn open_with(kind: Kind, word: &str, other: &[(&str, Option<&str>)]) -> Arc<dyn Store> {
    let env = |name: &str| match other.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => value.map(str::to_owned),
        None => maybe_told(kind, name),
    };
    Word::parse(word).unwrap().unwrap().open(&env).unwrap()
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn what_is_not_there_and_who_may_not_are_told_apart() {
    for kind in ALL {
        let word = match kind {
            Kind::S3 => format!("s3://none?endpoint={}", told(kind, "S3_ENDPOINT")),
            Kind::Gcs => "gs://none".to_owned(),
            _ => "swift:none".to_owned(),
        };
        let error = open(kind, &word).unwrap().list("").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreNotFound, "{kind:?}: {error}");
        if kind == Kind::Gcs {
            continue; // The emulator knows nobody.
        }
        let wrong = if kind == Kind::S3 { "AWS_SECRET_ACCESS_KEY" } else { "OS_PASSWORD" };
        let store = open_with(kind, &word, &[(wrong, Some("s3cret"))]);
        let error = store.list("").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AccessDenied, "{kind:?}: {error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
        let error = store.open(&name("a")).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AccessDenied, "{kind:?}: {error}");
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn an_account_is_a_store_whose_containers_are_folders() {
    let (first, second) = (Bucket::new(Kind::Swift), Bucket::new(Kind::Swift));
    first.put("a/b_metadata", b"1");
    second.put("c_metadata", b"22");
    let account = first.open("swift:");
    let mut expected = [format!("{}/a/b_metadata", first.name), format!("{}/c_metadata", second.name)];
    expected.sort();
    let mut found = listed(&*account, "_metadata");
    found.retain(|name| name.starts_with(&first.name) || name.starts_with(&second.name));
    assert_eq!(found, expected);
    assert_eq!(read(&*account, &format!("{}/c_metadata", second.name)).unwrap(), b"22");
    for missing in ["c_metadata", "no/c_metadata"] {
        let error = account.open(&name(missing)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ObjectNotFound, "{error}");
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn an_application_credential_and_a_clouds_yaml_open_the_same_account() {
    let bucket = Bucket::new(Kind::Keystone);
    bucket.put("o", b"content");
    let told = |name: &str| told(Kind::Keystone, name);
    let word = format!("swift:{}", bucket.name);
    let (id, secret) = (told("APPLICATION_CREDENTIAL_ID"), told("APPLICATION_CREDENTIAL_SECRET"));
    let credential = [
        ("OS_AUTH_TYPE", Some("v3applicationcredential")),
        ("OS_APPLICATION_CREDENTIAL_ID", Some(&*id)),
        ("OS_APPLICATION_CREDENTIAL_SECRET", Some(&*secret)),
        ("OS_USERNAME", None),
        ("OS_PASSWORD", None),
        ("OS_PROJECT_NAME", None),
    ];
    assert_eq!(read(&*open_with(Kind::Keystone, &word, &credential), "o").unwrap(), b"content");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clouds.yaml");
    let text = format!(
        "clouds:\n  c:\n    region_name: RegionOne\n    auth:\n      auth_url: {}\n      username: {}\n      password: {}\n      \
         project_name: {}\n      user_domain_name: Default\n      project_domain_id: default\n",
        told("OS_AUTH_URL"),
        told("OS_USERNAME"),
        told("OS_PASSWORD"),
        told("OS_PROJECT_NAME")
    );
    std::fs::write(&file, text).unwrap();
    let cloud = [("OS_CLOUD", Some("c")), ("OS_CLIENT_CONFIG_FILE", file.to_str())];
    assert_eq!(read(&*open_with(Kind::Keystone, &word, &cloud), "o").unwrap(), b"content");
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn objects_of_a_customers_key_are_read_with_it() {
    let bucket = Bucket::new(Kind::S3);
    // The key is 32 times `k`, and its MD5.
    let headers = [
        "x-amz-server-side-encryption-customer-algorithm:AES256",
        "x-amz-server-side-encryption-customer-key:a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=",
        "x-amz-server-side-encryption-customer-key-md5:mT2HRsMGJ5IX5C+0rreZ8Q==",
    ];
    let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    bucket.put_signed("o", &bytes, &headers);
    bucket.put("plain", b"plain");
    let error = read(&*bucket.store(), "o").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
    assert!(error.to_string().contains("SSE-C"), "{error}");
    let with_key = |key: &str| {
        let env = |name: &str| maybe_told(Kind::S3, name);
        let settings = S3Settings::from_env(&bucket.name, maybe_told(Kind::S3, "S3_ENDPOINT"), None, &env);
        let customer_key = Some(("AES256".to_owned(), Secret::new(key.repeat(32))));
        remote::s3(S3Settings { customer_key, ..settings }).unwrap()
    };
    assert!(read(&*with_key("k"), "o").unwrap() == bytes);
    assert_eq!(read(&*with_key("k"), "plain").unwrap(), b"plain");
    let error = read(&*with_key("x"), "o").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_server_that_is_not_there_is_the_stores_failure_and_soon() {
    let limits = Limits { deadline: std::time::Duration::from_secs(2), ..Limits::default() };
    for (endpoint, told) in
        [("http://127.0.0.1:9", "cannot connect"), ("http://none.invalid", "cannot find the address")]
    {
        let env = |name: &str| maybe_told(Kind::S3, name);
        let settings = S3Settings::from_env("b", Some(endpoint.to_owned()), None, &env);
        let error = remote::s3(S3Settings { limits, ..settings }).unwrap().list("").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_certificate_of_a_private_ca_is_believed_when_told_to() {
    let bucket = Bucket::new(Kind::S3);
    bucket.put("o", b"content");
    let word = format!("s3://{}?endpoint={}", bucket.name, told(Kind::S3, "TLS_ENDPOINT"));
    let before = std::time::Instant::now();
    let error = open(Kind::S3, &word).unwrap().list("").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIo);
    assert!(error.to_string().contains("is not trusted"), "{error}");
    assert!(before.elapsed() < Limits::default().deadline, "it was asked again and again");
    let ca = told(Kind::S3, "CA");
    let store = open_with(Kind::S3, &word, &[("AWS_CA_BUNDLE", Some(&ca))]);
    assert_eq!(listed(&*store, ""), ["o"]);
    assert_eq!(read(&*store, "o").unwrap(), b"content");
    let env = |name: &str| maybe_told(Kind::S3, name);
    let settings = S3Settings::from_env(&bucket.name, maybe_told(Kind::S3, "TLS_ENDPOINT"), None, &env);
    let access = remote::Access { is_insecure: true, ..settings.access.clone() };
    assert_eq!(read(&*remote::s3(S3Settings { access, ..settings }).unwrap(), "o").unwrap(), b"content");
}
