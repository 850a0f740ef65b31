//! A store in container `c` of a small Swift.

use std::sync::Arc;
use std::time::Duration;

use cinderfs::store::Store;
use cinderfs::store::remote::settings::{Secret, SwiftAuth, SwiftSettings};
use cinderfs::store::remote::{self, Access, Limits};

pub(crate) fn swift_store(base: &str, deadline: Duration, connections: usize) -> Arc<dyn Store> {
    let auth = SwiftAuth::V1 { url: format!("{base}/auth"), user: "u".into(), key: Secret::new("k") };
    let store = remote::swift(SwiftSettings {
        container: Some("c".into()),
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
