//! Is an error's text of gigabytes neither read nor told whole?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/http_server.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod http_server;
#[path = "common/swift_store.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod swift_store;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::store::objects::Content;
use cinderfs::types::ObjectName;
use swift_store::swift_store;

/// How long the server says that its text is, in bytes.
const TEXT_BYTES: u64 = 1 << 40;

/// What the buffers of both ends may hold of it, and some more.
const SENT_BYTES_MAX: u64 = 64 << 20;

/// The longest message, in characters.
const MESSAGE_MAX: usize = 600;

/// What a line of the text begins with; the escape would clear a terminal.
const LINE: &str = "<b>no\x1b[2J</b> entry for you, ";

/// Sends text until nobody reads it any more.
fn talk(stream: &mut impl Write, sent: &AtomicU64) -> Option<()> {
    let text = LINE.repeat(1000);
    loop {
        stream.write_all(text.as_bytes()).ok()?;
        sent.fetch_add(text.len() as u64, Ordering::SeqCst);
    }
}

#[test]
fn a_text_without_end_costs_neither_time_nor_memory() {
    for refusing in ["/auth", "/v1/a"] {
        let sent = Arc::new(AtomicU64::new(0));
        let counted = sent.clone();
        let base = http_server::listen(move |head, reader, base| {
            let stream = reader.get_mut();
            if head.target.starts_with(refusing) {
                write!(stream, "HTTP/1.1 403 No\r\ncontent-length: {TEXT_BYTES}\r\n\r\n").ok()?;
                return talk(stream, &counted);
            }
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nx-auth-token: t\r\nx-storage-url: {base}/v1/a\r\ncontent-length: 0\r\n\r\n"
            )
            .ok()
        });
        let store = swift_store(&base, Duration::from_secs(60), 4);
        let objects = store.clone().into_objects().unwrap();
        let put = objects.put(&ObjectName::parse("o").unwrap(), &Content::of("x"), &|| false);
        let errors = [store.list("").unwrap_err(), put.unwrap_err()];
        for error in errors {
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::AccessDenied, "{text}");
            assert!(text.contains("entry for you"), "{text}");
            assert!(text.chars().count() < MESSAGE_MAX, "{} characters: {text}", text.chars().count());
            assert!(!text.contains('\x1b'), "{text:?}");
        }
        let sent = sent.load(Ordering::SeqCst);
        assert!(0 < sent && sent < SENT_BYTES_MAX, "{sent} bytes of {refusing}");
    }
}
