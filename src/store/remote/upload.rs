//! A request with a body: sent again until the server has taken it, and looked at whether it has taken the right bytes.
//!
//! Idea: the body is in memory, so that it can be sent as often as it takes; its md5 goes with it, which makes the server refuse other bytes, and
//! what the server says of what it has stored is compared once more.
//!
//! Invariant: a success means that the server has these bytes, as far as it can tell: where it encrypts them, its word is all there is.

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response};
use md5::{Digest, Md5 as Md5Hasher};
use opendal::HttpBody;

use super::engine::{Progress, Tries};
use super::failure::{self, Failed};
use super::http::{bare_etag, body_of, send, whole};
use crate::base64;
use crate::error::{Error, ErrorKind};
use crate::types::Md5;

/// How much of a body is handed on at once, in bytes; each part that the connection takes is a sign of life.
const PIECE_BYTES: usize = 64 << 10;

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

/// What a request of OpenDAL is made of. Where it signs, headers that are added later are no part of that, and need not be.
pub(super) struct Upload {
    pub(super) method: Method,
    pub(super) url: reqwest::Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Upload {
    pub(super) async fn send(
        mut self,
        client: &reqwest::Client,
        tries: &Tries,
    ) -> Result<Response<HttpBody>, Failed> {
        let md5 = Md5(Md5Hasher::digest(&self.body).into());
        // What begins or ends an upload in parts is XML.
        let is_data = !self.body.is_empty() && !self.headers.contains_key(CONTENT_TYPE)
            || self.method == Method::PUT && !self.body.is_empty();
        if is_data && let Ok(value) = HeaderValue::from_str(&base64::encode(&md5.0)) {
            self.headers.insert(CONTENT_MD5, value);
        }
        self.headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        let act = |progress| {
            let mut request = reqwest::Request::new(self.method.clone(), self.url.clone());
            request.headers_mut().clone_from(&self.headers);
            if !self.body.is_empty() {
                *request.body_mut() = Some(body_of_bytes(self.body.clone(), progress));
            }
            async {
                let answer = send(client, request).await?;
                let (status, headers) = (answer.status(), answer.headers().clone());
                let body = Bytes::from(body_of(answer).await?);
                if is_data {
                    confirm(&self.url, md5, &headers, &body)?;
                }
                Ok(whole(status, headers, body))
            }
        };
        // It was tried as often as may be.
        tries.run_sending(act).await.map_err(Failed::lasting)
    }
}

/// A body in memory, of which every part that is taken is noted.
fn body_of_bytes(bytes: Bytes, progress: Progress) -> reqwest::Body {
    let pieces = stream::unfold(bytes, move |mut rest| {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        progress.note();
        std::future::ready((!piece.is_empty()).then_some((Ok::<_, std::io::Error>(piece), rest)))
    });
    reqwest::Body::wrap_stream(pieces)
}

/// Whether the server says that it has stored bytes with this md5: S3 and Swift in their ETag, Google in the JSON that it answers.
pub(super) fn confirm(url: &reqwest::Url, md5: Md5, headers: &HeaderMap, body: &[u8]) -> Result<(), Failed> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let encryption = text("x-amz-server-side-encryption").is_some_and(|algorithm| algorithm != "AES256");
    if encryption || headers.contains_key("x-amz-server-side-encryption-customer-algorithm") {
        return Ok(());
    }
    let told = serde_json::from_slice::<serde_json::Value>(body).ok();
    let of_google = told.as_ref().and_then(|told| told["md5Hash"].as_str()).and_then(base64::decode);
    let etag = text(ETAG.as_str()).map(bare_etag);
    let is_right = match (of_google, etag) {
        (Some(stored), _) => stored == md5.0,
        (None, Some(etag)) => etag.eq_ignore_ascii_case(&md5.to_string()),
        (None, None) => return Err(wrong(url, "does not tell the digest of what it has stored")),
    };
    if is_right { Ok(()) } else { Err(wrong(url, "has stored other bytes than were sent")) }
}

fn wrong(url: &reqwest::Url, what: &str) -> Failed {
    Failed::passing(Error::new(ErrorKind::StoreIo, format!("{} {what}", failure::shown(url))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_what_the_server_says() {
        let url = reqwest::Url::parse("http://h/o").unwrap();
        let md5 = Md5(Md5Hasher::digest(b"hello").into());
        let says = |headers: &[(&'static str, &'static str)], body: &str| {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            confirm(&url, md5, &headers, body.as_bytes()).is_ok()
        };
        assert!(says(&[("etag", "\"5d41402abc4b2a76b9719d911017c592\"")], ""));
        assert!(says(&[("etag", "5D41402ABC4B2A76B9719D911017C592")], ""));
        assert!(!says(&[("etag", "\"5d41402abc4b2a76b9719d911017c593\"")], ""));
        assert!(!says(&[], ""));
        assert!(says(&[("etag", "CJ3")], r#"{"md5Hash": "XUFAKrxLKna5cZ2REBfFkg=="}"#));
        assert!(!says(&[("etag", "CJ3")], r#"{"md5Hash": "XUFAKrxLKna5cZ2REBfFkQ=="}"#));
        assert!(says(&[("etag", "x"), ("x-amz-server-side-encryption", "aws:kms")], ""));
        assert!(says(&[("etag", "x"), ("x-amz-server-side-encryption-customer-algorithm", "AES256")], ""));
        assert!(!says(&[("etag", "x"), ("x-amz-server-side-encryption", "AES256")], ""));
    }
}
