//! What is told of an account of Swift when its server answers for some of its containers, or for none?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/swift_store.rs"]
mod swift_store;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::store::{Listing, Store};
use http_server::{Head, listen};
use swift_store::store_in;

/// How requests for a container or an object are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Right,
    Status(u16),
    Hangs,
}

/// How it is answered for, and its objects' lengths.
type Container = (Way, BTreeMap<String, usize>);

#[derive(Default)]
struct Server {
    /// By name.
    containers: Mutex<BTreeMap<String, Container>>,
    /// By the end of its name.
    objects: Mutex<Option<(String, Way)>>,
    /// Listed by the account once, and gone then.
    deleted: Mutex<Option<String>>,
    /// Paths that were asked for.
    asked: Mutex<Vec<String>>,
}

impl Server {
    fn start(deadline_seconds: u64) -> (Arc<Self>, Arc<dyn Store>) {
        let server = Arc::new(Self::default());
        let shared = server.clone();
        let base = listen(move |head, reader, base| shared.serve(head, reader.get_mut(), base));
        (server, store_in(None, &base, Duration::from_secs(deadline_seconds), 16))
    }

    /// Containers of one object each.
    fn fill(&self, count: usize) {
        let object = |at: usize| BTreeMap::from([(format!("o{at:02}_metadata"), 2)]);
        let container = |at| (format!("c{at:02}"), (Way::Right, object(at)));
        self.containers.lock().unwrap().extend((0..count).map(container));
    }

    fn set(&self, container: &str, way: Way) {
        self.containers.lock().unwrap().get_mut(container).unwrap().0 = way;
    }

    fn set_all(&self, way: Way) {
        self.containers.lock().unwrap().values_mut().for_each(|(of, _)| *of = way);
    }

    /// What was asked for since, each once.
    fn take_asked(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.asked.lock().unwrap()).into_iter().collect()
    }

    fn serve(&self, head: &Head, stream: &mut &TcpStream, host: &str) -> Option<()> {
        let told = |body: &str| format!("200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let is_first = !query.contains("marker=");
        let answer = match path.strip_prefix("/v1/a") {
            None => {
                format!(
                    "200 OK\r\nx-auth-token: t\r\nx-storage-url: {host}/v1/a\r\ncontent-length: 0\r\n\r\n"
                )
            }
            Some("") => {
                let mut names: Vec<String> = self.containers.lock().unwrap().keys().cloned().collect();
                if is_first {
                    names.extend(self.deleted.lock().unwrap().take());
                }
                names.retain(|_| is_first);
                let names = names.iter().map(|name| serde_json::json!({"name": name}));
                told(&serde_json::Value::Array(names.collect()).to_string())
            }
            Some(path) => {
                self.asked.lock().unwrap().push(path.to_owned());
                let (container, object) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
                let (mut way, objects) = self
                    .containers
                    .lock()
                    .unwrap()
                    .get(container)
                    .cloned()
                    .unwrap_or((Way::Status(404), BTreeMap::new()));
                if let (false, Some((ending, of))) = (object.is_empty(), self.objects.lock().unwrap().clone())
                {
                    way = if object.ends_with(&ending) { of } else { Way::Right };
                }
                match way {
                    Way::Hangs => loop {
                        std::thread::park();
                    },
                    Way::Status(code) => format!("{code} X\r\ncontent-length: 0\r\n\r\n"),
                    Way::Right if object.is_empty() => {
                        let objects = objects.iter().filter(|_| is_first).map(|(name, bytes)| {
                            serde_json::json!({"name": name, "bytes": bytes, "hash": "h", "last_modified": ""})
                        });
                        told(&serde_json::Value::Array(objects.collect()).to_string())
                    }
                    Way::Right if head.method == "HEAD" => {
                        "200 OK\r\netag: h\r\ncontent-length: 2\r\n\r\n".to_owned()
                    }
                    Way::Right => {
                        "206 Partial Content\r\netag: h\r\ncontent-range: bytes 0-1/2\r\ncontent-length: 2\r\n\r\n{}".to_owned()
                    }
                }
            }
        };
        stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).ok()
    }
}

fn unreadable(listing: &Listing) -> BTreeMap<&str, ErrorKind> {
    listing.unreadable.iter().map(|(name, error)| (name.as_str(), error.kind())).collect()
}

#[test]
fn where_no_container_is_answered_for_the_listing_fails_with_the_first() {
    for way in [Way::Status(503), Way::Hangs] {
        let (server, store) = Server::start(2);
        server.fill(41);
        server.set_all(way);
        let error = store.list("_metadata").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
        let said = error.to_string();
        assert!(said.contains("container \"c"), "{said}");
        assert!(way == Way::Hangs || said.contains("503"), "{said}");
        let asked = server.take_asked();
        assert!(asked.len() <= 4, "{asked:?}");
        server.set_all(Way::Right);
        assert_eq!(store.list("_metadata").unwrap().objects.len(), 41);
    }
}

#[test]
fn a_container_that_fails_hides_no_other() {
    let (server, store) = Server::start(2);
    server.fill(20);
    server.set("c00", Way::Status(403));
    server.set("c07", Way::Status(503));
    server.set("c08", Way::Hangs);
    let listing = store.list("_metadata").unwrap();
    assert_eq!(listing.objects.len(), 17);
    let expected =
        [("c00", ErrorKind::AccessDenied), ("c07", ErrorKind::StoreIo), ("c08", ErrorKind::StoreIo)];
    assert_eq!(unreadable(&listing), BTreeMap::from(expected));
    // Many of them are no single ones.
    for at in 5..19 {
        server.set(&format!("c{at:02}"), Way::Status(503));
    }
    server.take_asked();
    assert_eq!(store.list("_metadata").unwrap_err().kind(), ErrorKind::StoreIo);
    assert!(server.take_asked().len() < 15);
}

// > What lies in a part of the store that the store fails to list stays known as it was, and so do all backups where it fails altogether; an older one is not taken for the latest in the place of one that it fails to give.
#[test]
fn what_is_in_a_container_that_fails_stays_known() {
    let (server, store) = Server::start(1);
    server.fill(3);
    let catalog = Catalog::open(store, CatalogOptions { workers: 0, ..CatalogOptions::default() }).unwrap();
    let documents = || catalog.snapshot().shadowed().len() + catalog.snapshot().entries().count();
    assert_eq!(documents(), 3);
    server.set("c01", Way::Status(503));
    assert_eq!(catalog.rescan().unwrap().unreadable()[0].0, "c01");
    assert_eq!(documents(), 3);
    server.set_all(Way::Status(503));
    catalog.rescan().unwrap_err();
    assert_eq!(documents(), 3);
    server.set_all(Way::Right);
    server.containers.lock().unwrap().get_mut("c01").unwrap().1.clear();
    catalog.rescan().unwrap();
    assert_eq!(documents(), 2);
}

#[test]
fn of_containers_that_fail_by_the_thousand_each_is_known() {
    let (server, store) = Server::start(30);
    server.fill(1200);
    let catalog = Catalog::open(store, CatalogOptions { workers: 0, ..CatalogOptions::default() }).unwrap();
    let documents = || catalog.snapshot().shadowed().len() + catalog.snapshot().entries().count();
    assert_eq!(documents(), 1200);
    for at in 0..1100 {
        server.set(&format!("c{at:02}"), Way::Status(404));
    }
    let snapshot = catalog.rescan().unwrap();
    assert_eq!(documents(), 1200, "what is in a container that fails stays known");
    let names: BTreeSet<_> = snapshot.unreadable().iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.len() == 1100 && names.contains("c1099"), "{}", names.len());
}

#[test]
fn a_container_that_the_account_goes_on_to_list_is_not_believed_to_be_gone() {
    let (server, store) = Server::start(2);
    server.fill(3);
    *server.deleted.lock().unwrap() = Some("gone".to_owned());
    let listing = store.list("_metadata").unwrap();
    assert!(server.take_asked().contains("/gone"));
    assert_eq!((listing.objects.len(), unreadable(&listing)), (3, BTreeMap::new()));
    server.set("c01", Way::Status(404));
    let listing = store.list("_metadata").unwrap();
    assert_eq!(listing.objects.len(), 2);
    assert_eq!(unreadable(&listing), BTreeMap::from([("c01", ErrorKind::StoreIo)]));
}

#[test]
fn where_no_manifest_is_answered_for_their_container_fails_with_the_first() {
    let (server, store) = Server::start(2);
    server.fill(1);
    let manifests = (0..40).map(|at| (format!("m{at:02}_metadata"), 0));
    server.containers.lock().unwrap().get_mut("c00").unwrap().1.extend(manifests);
    for way in [Way::Status(503), Way::Hangs] {
        *server.objects.lock().unwrap() = Some(("_metadata".to_owned(), way));
        server.take_asked();
        let listing = store.list("_metadata").unwrap();
        assert_eq!(unreadable(&listing), BTreeMap::from([("c00", ErrorKind::StoreIo)]));
        let asked = server.take_asked();
        assert!(asked.len() <= 9, "the container and eight: {asked:?}");
    }
    *server.objects.lock().unwrap() = Some(("m17_metadata".to_owned(), Way::Status(503)));
    let listing = store.list("_metadata").unwrap();
    assert_eq!(listing.objects.len(), 40);
    assert_eq!(unreadable(&listing), BTreeMap::from([("c00/m17_metadata", ErrorKind::StoreIo)]));
}
