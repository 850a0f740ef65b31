//! Is `gs://` all buckets of a project of Google's, with a chain that spans two of them?

#![cfg(feature = "remote")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]

#[path = "common/http_server.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod http_server;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use http_server::{Head, listen};
use store_kit::{ObjectSpec, Packing, digests_of};
use volume::{BLOCK, MIB, full, mixed};

/// Objects by bucket and name.
type Project = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

const NAME: &str = "the-project";

/// As much of Google's JSON interface as who only reads needs.
fn serve(project: &Project, head: &Head, stream: &mut &TcpStream) -> Option<()> {
    let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
    let json = |value: serde_json::Value| {
        let body = value.to_string().into_bytes();
        (format!("200 OK\r\ncontent-length: {}", body.len()), body)
    };
    let described = |name: &str, bytes: &[u8]| {
        serde_json::json!({"name": name, "size": bytes.len().to_string(), "generation": "7", "etag": "e",
            "updated": "2024-01-02T03:04:05.000Z"})
    };
    let object = path.strip_prefix("/storage/v1/b/").and_then(|rest| rest.split_once("/o"));
    let (told, body) = match object {
        None if path == "/storage/v1/b" && query.contains(&format!("project={NAME}")) => {
            let items: Vec<_> = project.keys().map(|name| serde_json::json!({"name": name})).collect();
            json(serde_json::json!({"kind": "storage#buckets", "items": items}))
        }
        Some((bucket, "")) => {
            let items: Vec<_> =
                project.get(bucket)?.iter().map(|(name, bytes)| described(name, bytes)).collect();
            json(serde_json::json!({"kind": "storage#objects", "items": items}))
        }
        Some((bucket, name)) => {
            let name = name[1..].replace("%2F", "/");
            let bytes = project.get(bucket)?.get(&name)?;
            match head.header("range: bytes=").and_then(|range| range.split_once('-')) {
                Some((first, last)) if query.contains("alt=media") => {
                    let first: usize = first.parse().unwrap();
                    let end = last.parse::<usize>().map_or(bytes.len(), |last| bytes.len().min(last + 1));
                    let body = bytes[first..end].to_vec();
                    let range = format!("bytes {first}-{}/{}", end - 1, bytes.len());
                    let told = format!(
                        "206 Partial Content\r\ncontent-length: {}\r\ncontent-range: {range}",
                        body.len()
                    );
                    (told, body)
                }
                _ if query.contains("alt=media") => {
                    (format!("200 OK\r\ncontent-length: {}", bytes.len()), bytes.clone())
                }
                _ => json(described(&name, bytes)),
            }
        }
        None => ("400 Bad Request\r\ncontent-length: 0".to_owned(), Vec::new()),
    };
    write!(stream, "HTTP/1.1 {told}\r\nx-goog-generation: 7\r\netag: \"e\"\r\n\r\n").ok()?;
    stream.write_all(&body).ok()
}

fn cinderfs(server: &str, project: Option<&str>, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.args(words).env("STORAGE_EMULATOR_HOST", server).env("CINDERFS_CACHE_DIR", "/nonexistent/cache");
    command.env_remove("GOOGLE_APPLICATION_CREDENTIALS").env_remove("GOOGLE_CLOUD_PROJECT");
    command.envs(project.map(|project| ("GOOGLE_CLOUD_PROJECT", project)));
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn all_buckets_of_a_project_are_one_store() {
    let plain = mixed(3, 2 * MIB);
    let parent = full("a", &plain, Packing::Plain("none"));
    let mut changed = plain.clone();
    changed[..BLOCK].copy_from_slice(&plain[BLOCK..2 * BLOCK]);
    let mut child = full("b", &changed, Packing::Plain("none"));
    (child.volume_id, child.parent_id) = (parent.volume_id.clone(), Some(parent.id.clone()));
    child.created_at = "2024-01-03 03:04:05+00:00".into();
    child.objects =
        vec![ObjectSpec { offset: 0, plain: changed[..BLOCK].to_vec(), packing: Packing::Plain("none") }];
    child.digests = Some((BLOCK, digests_of(&changed, BLOCK)));
    let project = Project::from([
        ("one".to_owned(), parent.files().into_iter().collect()),
        ("two.b".to_owned(), child.files().into_iter().collect()),
        ("empty".to_owned(), BTreeMap::new()),
    ]);
    let project = Arc::new(project);
    let server = listen(move |head, reader, _| serve(&project, head, reader.get_mut()));
    let list = cinderfs(&server, Some(NAME), &["list", "gs://", "-f", "value", "-c", "ID", "-c", "Status"]);
    let text = String::from_utf8(list.stdout).unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [format!("{} available", parent.id), format!("{} available", child.id)]);
    let restored = cinderfs(&server, Some(NAME), &["restore", "gs://", &child.id, "-"]);
    assert!(restored.stdout == changed, "{}", String::from_utf8_lossy(&restored.stderr));
    // Without the project's name nothing is asked for.
    let refused = cinderfs(&server, None, &["list", "gs://"]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("GOOGLE_CLOUD_PROJECT"), "{stderr}");
}
