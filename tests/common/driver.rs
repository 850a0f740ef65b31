//! Genuine Cinder's drivers for object stores, at work on a bucket of a real server.

use super::cinder::Cinder;
use super::servers::{self, Bucket, Kind};

/// The driver for this kind of server.
pub(crate) fn of(bucket: &Bucket) -> Cinder {
    let (word, names): (_, &[&str]) = match bucket.kind {
        Kind::S3 => ("s3", &["S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
        _ => ("swift", &["OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD"]),
    };
    let told = |name: &&str| ((*name).to_owned(), servers::told(bucket.kind, name));
    Cinder::new(&format!("{word}:{}", bucket.name), &names.iter().map(told).collect::<Vec<_>>())
}
