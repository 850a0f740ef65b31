//! Does the listing of a bucket end, and tell all that there is, whatever its pages are?

#![cfg(feature = "remote")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/bucket.rs"]
mod bucket;
#[path = "common/http_server.rs"]
mod http_server;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bucket::{Bucket, PAGE};
use cinderfs::ErrorKind;

const UNAVAILABLE: (&str, &str) = ("503 Slow Down", "");
const SKEWED: (&str, &str) = (
    "403 Forbidden",
    "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>",
);

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number:06}_metadata")).collect()
}

fn fill(bucket: &Bucket, count: usize) {
    bucket.objects().extend(names(count).into_iter().map(|name| (name, Arc::new(vec![1]))));
}

#[test]
fn pages_that_come_again_are_an_error() {
    let (bucket, store) = Bucket::start(4);
    for period in [1, 3] {
        let count = AtomicUsize::new(0);
        bucket.list_by(move |_, _| {
            let next = count.fetch_add(1, Ordering::SeqCst) % period;
            let body = format!(
                "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t{next}</NextContinuationToken></ListBucketResult>"
            );
            Some(("200 OK", body))
        });
        let error = store.list("_metadata").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
        assert!(error.to_string().contains("circle"), "{error}");
    }
}

#[test]
fn an_object_without_an_etag_hides_no_other() {
    let (bucket, store) = Bucket::start(4);
    bucket.list_by(|_, _| {
        let etag = "<ETag>&quot;e&quot;</ETag>";
        let objects = [("a_metadata", ""), ("b_metadata", etag), ("c", ""), ("d_metadata", etag)];
        let contents = objects.map(|(name, etag)| {
            format!("<Contents><Key>{name}</Key><LastModified>2024-03-01T01:01:07.000Z</LastModified>{etag}<Size>1</Size></Contents>")
        });
        let body = format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
            contents.concat()
        );
        Some(("200 OK", body))
    });
    let listing = store.list("_metadata").unwrap();
    let listed: Vec<_> = listing.objects.iter().map(|object| object.name.as_str()).collect();
    assert_eq!(listed, ["b_metadata", "d_metadata"]);
    let unreadable: Vec<_> =
        listing.unreadable.iter().map(|(name, error)| (name.as_str(), error.kind())).collect();
    assert_eq!(unreadable, [("a_metadata", ErrorKind::StoreIo)]);
    assert!(listing.unreadable[0].1.to_string().contains("\"a_metadata\""));
}

#[test]
fn a_listing_outlives_its_signatures() {
    let count = 3 * PAGE + 1;
    let (bucket, store) = Bucket::start(4);
    fill(&bucket, count);
    // Of each page but the first, and of the one that was asked for anew.
    let faults = Mutex::new(VecDeque::from([
        Some(UNAVAILABLE),
        Some(SKEWED),
        None,
        Some(SKEWED),
        None,
        Some(UNAVAILABLE),
        Some(SKEWED),
    ]));
    bucket.list_by(move |_, _| {
        let fault = faults.lock().unwrap().pop_front().flatten();
        fault.map(|(status, body)| (status, body.to_owned()))
    });
    let listing = store.list("_metadata").unwrap();
    assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
    let listed: Vec<_> = listing.objects.iter().map(|object| object.name.to_string()).collect();
    assert!(listed == names(count), "{} of {count}", listed.len());
    let anew = bucket.take_requests().iter().filter(|request| request.contains("start-after=")).count();
    assert_eq!(anew, 2, "no page that was there is asked for again");
}

#[test]
fn clocks_that_differ_are_an_error() {
    let (bucket, store) = Bucket::start(4);
    bucket.list_by(|_, _| Some((SKEWED.0, SKEWED.1.to_owned())));
    let error = store.list("_metadata").unwrap_err();
    assert!(error.to_string().contains("RequestTimeTooSkewed"), "{error}");
    assert_eq!(bucket.take_requests().len(), 2);
}
