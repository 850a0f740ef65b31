//! What object stores answer, and the files that say how to reach them.
//!
//! The XML of S3 and the JSON of Google are read by OpenDAL, Swift's by us. All three come as they come to a mount: a server on this machine answers each
//! request for a page with the input. Files lie in a folder of their own, and the environment that names them is made up.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cinderfs::store::Store;
use cinderfs::store::remote::settings::{GcsSettings, S3Settings, Secret, SwiftAuth, SwiftSettings};
use cinderfs::store::remote::{self, Access, Limits};

use super::server;

/// Nothing but what the input says is waited for.
const LIMITS: Limits = Limits { deadline: Duration::from_millis(200), connections: 4 };

/// What the name of each listed object must end with.
const SUFFIX: &str = "_metadata";

/// What each request is answered with, and whether Swift's pages have no end.
static ANSWER: Mutex<(Vec<u8>, bool)> = Mutex::new((Vec::new(), false));

/// S3, Google, a container of Swift, an account of it: each a store at the server.
fn stores() -> &'static [Arc<dyn Store>; 4] {
    static STORES: OnceLock<[Arc<dyn Store>; 4]> = OnceLock::new();
    STORES.get_or_init(|| {
        let base = server::listen(|head, reader, base| {
            let (body, is_endless) = ANSWER.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let body = match head.target.as_str() {
                "/auth" => Vec::new(),
                target if target.contains("&marker=") && !is_endless => b"[]".to_vec(),
                _ => body,
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nx-storage-url: {base}/v1/a\r\nx-auth-token: t\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let mut stream = *reader.get_ref();
            stream.write_all(&[head.as_bytes(), &body].concat()).ok()
        });
        let s3 = S3Settings {
            bucket: "b".into(),
            endpoint: Some(base.clone()),
            region: "r".into(),
            keys: Some((Secret::new("a"), Secret::new("s"))),
            session_token: None,
            customer_key: None,
            access: Access::default(),
            limits: LIMITS,
        };
        let gcs = GcsSettings {
            bucket: "b".into(),
            endpoint: Some(base.clone()),
            credential_file: None,
            is_anonymous: true,
            project: None,
            access: Access::default(),
            limits: LIMITS,
        };
        let swift = |container: Option<&str>| SwiftSettings {
            container: container.map(str::to_owned),
            auth: SwiftAuth::V1 {
                url: format!("{base}/auth"),
                user: "u".into(),
                key: Secret::new("k"),
            },
            storage_url: None,
            storage_url_prefix: None,
            region: None,
            interface: None,
            access: Access::default(),
            limits: LIMITS,
        };
        [
            remote::s3(s3).unwrap(),
            remote::gcs(gcs).unwrap(),
            remote::swift(swift(Some("c"))).unwrap(),
            remote::swift(swift(None)).unwrap(),
        ]
    })
}

/// The listing ends, and has only names that can be asked for, with the ending, none twice.
pub(super) fn listing(data: &[u8]) {
    let Some((&which, body)) = data.split_first() else { return };
    *ANSWER.lock().unwrap_or_else(PoisonError::into_inner) = (body.to_vec(), which >= 128);
    let listed = stores()[usize::from(which) % 4].list(SUFFIX);
    let is_good = good().iter().any(|seed| seed == data);
    let Ok(listing) = listed else {
        assert!(!is_good, "a page as the server writes it is refused: {listed:?}");
        return;
    };
    assert!(
        !is_good
            || listing
                .objects
                .iter()
                .any(|listed| listed.name.as_str().ends_with("/az_nova_backup_b_metadata"))
    );
    let mut names: Vec<_> = listing.objects.iter().map(|listed| listed.name.as_str()).collect();
    for name in &names {
        assert!(name.ends_with(SUFFIX) && !name.starts_with('/') && !name.contains('\0'), "{name:?}");
        assert!(!name.split('/').any(|part| matches!(part, "" | "." | "..")), "{name:?}");
    }
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a name is there twice");
}

/// A file of this process with these bytes.
fn file(name: &str, data: &[u8]) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let path = FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path().join(name);
    fs::write(&path, data).unwrap();
    path
}

/// What is wrong with it is told in one line, without a password of it.
pub(super) fn clouds(data: &[u8]) {
    const SECRET: &str = "s3cr3t";
    let path = file("clouds.yaml", data);
    let env = |name: &str| match name {
        "OS_CLIENT_CONFIG_FILE" => path.to_str().map(str::to_owned),
        "OS_CLOUD" => Some("one".to_owned()),
        _ => None,
    };
    let told = match SwiftSettings::from_env(Some("c"), &env) {
        Ok(settings) => {
            assert_eq!(settings.container.as_deref(), Some("c"));
            String::new()
        }
        Err(error) => error.to_string(),
    };
    assert!(!told.contains('\n') || data.contains(&b'\n') || data.contains(&b'\\'), "{told}");
    // Where the file says it once, as the password's value.
    if data.windows(SECRET.len()).filter(|bytes| *bytes == SECRET.as_bytes()).count() == 1
        && data.windows(20).any(|bytes| bytes == b"password: \"s3cr3t\"\n  ")
    {
        assert!(!told.contains(SECRET), "{told}");
    }
}

/// The region is one of the lines', or there is none.
pub(super) fn aws_config(data: &[u8]) {
    let path = file("config", data);
    for profile in [None, Some("two")] {
        let env = |name: &str| match name {
            "AWS_CONFIG_FILE" => path.to_str().map(str::to_owned),
            "AWS_PROFILE" => profile.map(str::to_owned),
            _ => None,
        };
        let region = S3Settings::from_env("b", None, None, &env).region;
        assert!(!region.contains('\n'), "{region:?}");
        // The bucket's own word where the file has none.
        let is_there = data.windows(region.len().max(1)).any(|bytes| bytes == region.as_bytes());
        let of_nothing = S3Settings::from_env("b", None, None, &|_| None).region;
        assert!(is_there || region == of_nothing, "{region:?}");
    }
}

fn texts(kind: u8, texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| [&[kind], text.as_bytes()].concat()).collect()
}

/// Pages as the servers write them: one, a truncated one whose next is the same, an empty one, folders, bad names.
pub(super) fn listings() -> Vec<Vec<u8>> {
    let name = "volume_v/20240301010107/az_nova_backup_b_metadata";
    let s3 = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\
         <Prefix></Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><Contents><Key>{name}</Key>\
         <LastModified>2024-03-01T01:01:07.000Z</LastModified><ETag>&quot;e033a5a1e033a5a1e033a5a1e033a5a1&quot;</ETag><Size>7</Size>\
         <StorageClass>STANDARD</StorageClass></Contents><Contents><Key>a/../b_metadata</Key><LastModified>2024-03-01T01:01:07Z</LastModified>\
         <ETag>\"x-2\"</ETag><Size>0</Size></Contents></ListBucketResult>"
    );
    let more = s3.replace(
        "<IsTruncated>false</IsTruncated>",
        "<IsTruncated>true</IsTruncated><NextContinuationToken>n</NextContinuationToken>",
    );
    let folders = s3.replace(
        "</ListBucketResult>",
        "<CommonPrefixes><Prefix>f/</Prefix></CommonPrefixes></ListBucketResult>",
    );
    let gcs = format!(
        "{{\"kind\": \"storage#objects\", \"items\": [{{\"kind\": \"storage#object\", \"name\": \"{name}\", \"bucket\": \"b\", \
         \"generation\": \"1709254867000000\", \"metageneration\": \"1\", \"size\": \"7\", \"md5Hash\": \"4DOloeAzpaHgM6Wh4DOloQ==\", \
         \"etag\": \"CNDq\", \"updated\": \"2024-03-01T01:01:07.000Z\", \"contentType\": \"application/octet-stream\"}}]}}"
    );
    let next = gcs.replace("\"items\"", "\"nextPageToken\": \"n\", \"prefixes\": [\"f/\"], \"items\"");
    let swift = format!(
        "[{{\"bytes\": 7, \"hash\": \"e033a5a1e033a5a1e033a5a1e033a5a1\", \"name\": \"{name}\", \
         \"content_type\": \"application/octet-stream\", \"last_modified\": \"2024-03-01T01:01:07.123456\"}}, \
         {{\"bytes\": 0, \"hash\": \"0\", \"name\": \"z/\\u0000_metadata\", \"slo_etag\": \"\\\"1\\\"\", \"last_modified\": \"\"}}, \
         {{\"subdir\": \"f/\"}}]"
    );
    let account = "[{\"count\": 2, \"bytes\": 9, \"name\": \"volumebackups\", \"last_modified\": \"2024-03-01T01:01:07.123456\"}]";
    let mut seeds = texts(
        0,
        &[&s3, &more, &folders, "<ListBucketResult/>", "<Error><Code>NoSuchBucket</Code></Error>", ""],
    );
    seeds.extend(texts(1, &[&gcs, &next, "{\"kind\": \"storage#objects\"}", "{}", "[]"]));
    let plain = swift.split_once(", {").map_or(String::new(), |(first, _)| format!("{first}]"));
    seeds.extend(texts(2, &[&plain, &swift, "[]", "{}"]));
    seeds.extend(texts(130, &[&plain]));
    seeds.extend(texts(3, &[account, &swift, "[]"]));
    seeds
}

/// Those that must be read.
fn good() -> &'static [Vec<u8>] {
    static GOOD: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let seeds = listings();
        let first = [0, 1, 2].into_iter().filter_map(|which| seeds.iter().find(|seed| seed[0] == which));
        first.cloned().collect()
    })
}

pub(super) fn clouds_yamls() -> Vec<Vec<u8>> {
    [
        "clouds:\n  one:\n    auth:\n      auth_url: http://k:5000/v3\n      username: u\n      password: \"s3cr3t\"\n      \
         project_name: p\n      user_domain_name: d\n      project_domain_id: default\n    region_name: R\n    verify: false\n",
        "clouds:\n  one:\n    auth_type: v3applicationcredential\n    auth: {auth_url: 'http://k:5000', application_credential_id: i, \
         application_credential_secret: s}\n    identity_api_version: 3\n    interface: internal\n",
        "a: &a {auth_url: x, password: y}\nclouds:\n  one: {auth: *a, profile: vendor}\n  two: {auth: {<<: *a, username: u}}\n",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nclouds: {one: *c}\n",
        "--- !t\n? [a, b]\n: |\n  text\n  more\n...\n---\n'clouds': {\"one\": {auth_type: token, auth: {token: 7, auth_url: 1.5}}}\n",
        "clouds: {one: {interface: [public, admin], auth: ~}}\n",
        "clouds:\n  one: [s3cr3t\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(super) fn aws_configs() -> Vec<Vec<u8>> {
    [
        "[default]\n# region = no\nregion = eu-west-1\ns3 =\n  region = nested\n[profile \"two\"]\noutput=json\nregion=eu-north-1\n",
        "[profile two]\nregion =\n[ default ]\nregion=x\r\n[profiles]\nregion = y\n",
        "region = outside\n[default\nregion = open\n[profile\ttwo]\nregion==\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
