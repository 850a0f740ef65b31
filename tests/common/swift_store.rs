//! A store in container `c` of a small Swift, or in all its containers.

use std::sync::Arc;
use std::time::Duration;

use cinderfs::store::Store;
use cinderfs::store::remote::settings::{Secret, SwiftAuth, SwiftSettings};
use cinderfs::store::remote::{self, Access, Limits};

pub(crate) fn swift_store(base: &str, deadline: Duration, connections: usize) -> Arc<dyn Store> {
    store_in(Some("c"), base, deadline, connections)
}

pub(crate) fn store_in(
    container: Option<&str>,
    base: &str,
    deadline: Duration,
    connections: usize,
) -> Arc<dyn Store> {
    let auth = SwiftAuth::V1 { url: format!("{base}/auth"), user: "u".into(), key: Secret::new("k") };
    let store = remote::swift(SwiftSettings {
        container: container.map(str::to_owned),
        auth,
        storage_url: None,
        storage_url_prefix: None,
        region: None,
        interface: None,
        access: Access::default(),
        limits: Limits { deadline, connections },
    });
    store.unwrap()
}
