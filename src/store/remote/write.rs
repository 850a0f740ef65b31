//! Objects put into a store behind HTTP, whole.
//!
//! Problem: a backup goes on for hours, and each of its thousand requests may fail in passing; what a server has taken half must not be
//! seen, and who presses Ctrl-C waits for no deadline. Idea: an object is one request wherever it may be, as Cinder's are, so that its ETag is the md5 of
//! its bytes; long ones go to S3 and Google in parts, each of which is tried again by itself. Swift takes an object of up to 5 GB in one
//! request, and segments are not wanted: Cinder's own delete would leave them behind.
//!
//! Invariant: whoever stops waiting leaves no request behind, and no parts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream;
use http::Method;
use http::header::{CONTENT_LENGTH, ETAG, HeaderValue};
use md5::{Digest, Md5 as Md5Hasher};
use opendal::{Buffer, Operator};

use super::engine::Progress;
use super::failure::Failed;
use super::http::{bare_etag, body_of};
use super::swift::{Account, encoded};
use super::upload::confirm;
use super::{Backend, Naming, RemoteStore, missing, stat_of, version};
use crate::error::{Error, ErrorKind, Result};
use crate::store::objects::{Content, ObjectStore, Stop};
use crate::store::{ListedObject, ObjectVersion};
use crate::types::{Md5, ObjectName};

/// Longest object that is put in with one request where parts are possible, in bytes.
const WHOLE_BYTES_MAX: u64 = 64 << 20;

/// The same of Google's, whose parts go through another of its interfaces: all that is in memory anyway.
const GOOGLE_WHOLE_BYTES_MAX: u64 = 256 << 20;

/// Length of a part, in bytes. 10,000 are possible.
const PART_BYTES: u64 = 32 << 20;

/// Longest object in parts, in bytes.
const PARTS_BYTES_MAX: u64 = 10_000 * PART_BYTES;

/// Longest object of Swift, in bytes, as it is set up unless told otherwise.
const SWIFT_BYTES_MAX: u64 = 5 << 30;

/// How much of a body is read at once, in bytes.
const PIECE_BYTES: u64 = 256 << 10;

/// How often a caller is asked whether to stop.
const STOP_EVERY: Duration = Duration::from_millis(50);

/// How long the parts of an upload that failed are tried to be given up.
const ABORT_MAX: Duration = Duration::from_secs(10);

impl RemoteStore {
    /// Waits for `task` unless told to stop.
    fn unless<T>(&self, stop: Stop<'_>, task: impl Future<Output = Result<T>>) -> Result<T> {
        self.engine.wait(async {
            let stopped = async {
                while !stop() {
                    tokio::time::sleep(STOP_EVERY).await;
                }
            };
            match select(Box::pin(stopped), Box::pin(task)).await {
                Either::Left(_) => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
                Either::Right((outcome, _)) => outcome,
            }
        })
    }

    async fn put_in_bucket(
        &self,
        operator: &Operator,
        naming: Naming,
        path: &str,
        content: &Content,
        stop: Stop<'_>,
    ) -> Result<ObjectVersion> {
        let failed = |error: opendal::Error| Failed::from_opendal(&error).error;
        let len_bytes = content.len_bytes();
        let whole_bytes_max = match naming {
            Naming::Etag => WHOLE_BYTES_MAX,
            Naming::Generation => GOOGLE_WHOLE_BYTES_MAX,
        };
        if len_bytes <= whole_bytes_max {
            let meta = operator.write(path, bytes_of(content, 0, len_bytes)?).await.map_err(failed)?;
            let word = match naming {
                Naming::Etag => meta.etag().map(bare_etag),
                Naming::Generation => meta.version(),
            };
            if let Some(word) = word {
                return Ok(version(word, len_bytes));
            }
            return Ok(stat_of(&operator.stat(path).await.map_err(failed)?, naming)?.version);
        }
        let mut writer = operator.writer(path).await.map_err(failed)?;
        let mut digests = Md5Hasher::new();
        let parts = async {
            let mut at = 0;
            while at < len_bytes {
                if stop() {
                    return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
                }
                let part = bytes_of(content, at, PART_BYTES.min(len_bytes - at))?;
                digests.update(Md5Hasher::digest(part.to_bytes()));
                writer.write(part).await.map_err(failed)?;
                at += PART_BYTES;
            }
            writer.close().await.map_err(failed)
        };
        if let Err(error) = parts.await {
            if let Ok(Err(left)) = tokio::time::timeout(ABORT_MAX, writer.abort()).await {
                tracing::warn!("parts of an upload may be left in the store: {left}");
            }
            return Err(error);
        }
        let meta = operator.stat(path).await.map_err(failed)?;
        let composed = Md5(digests.finalize().into());
        let told = meta.etag().map(bare_etag).and_then(|etag| etag.split_once('-'));
        let is_other = told.is_some_and(|(digest, _)| digest.len() == 32 && digest != composed.to_string());
        if is_other && naming == Naming::Etag || meta.content_length() != len_bytes {
            return Err(Error::new(
                ErrorKind::StoreIo,
                "the store has put other bytes together than were sent",
            ));
        }
        Ok(stat_of(&meta, naming)?.version)
    }

    /// The container's and the object's name there.
    fn swift_place<'a>(
        &'a self,
        container: Option<&'a str>,
        name: &'a ObjectName,
    ) -> Result<(&'a str, &'a str)> {
        match container {
            Some(container) => Ok((container, name.as_str())),
            None => name.as_str().split_once('/').ok_or_else(|| missing(name)),
        }
    }
}

impl Account {
    async fn put(
        &self,
        url: &reqwest::Url,
        content: &Content,
        md5: Md5,
        progress: Progress,
    ) -> Result<(), Failed> {
        let mut request = reqwest::Request::new(Method::PUT, url.clone());
        let header = |text: String| {
            HeaderValue::from_str(&text)
                .map_err(|_| Failed::lasting(Error::new(ErrorKind::StoreIo, "a digest is no header")))
        };
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(content.len_bytes()));
        request.headers_mut().insert(ETAG, header(md5.to_string())?);
        *request.body_mut() = Some(body_of_content(content.clone(), progress));
        let answer = self.tokens.send_once(request).await?;
        let headers = answer.headers().clone();
        let body = body_of(answer).await?;
        confirm(url, md5, &headers, &body)
    }

    async fn put_container(&self, url: &reqwest::Url) -> Result<(), Failed> {
        let mut request = reqwest::Request::new(Method::PUT, url.clone());
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
        self.tokens.send(request).await.map(drop)
    }
}

impl ObjectStore for RemoteStore {
    fn put(&self, name: &ObjectName, content: &Content, stop: Stop<'_>) -> Result<ObjectVersion> {
        let len_bytes = content.len_bytes();
        let put = async {
            match &self.backend {
                Backend::Bucket(operator, naming) => {
                    self.put_in_bucket(operator, *naming, name.as_str(), content, stop).await
                }
                Backend::Swift { account, container, .. } => {
                    let (container, path) = self.swift_place(container.as_deref(), name)?;
                    let below = format!("/{}/{}", encoded(container), encoded_path(path));
                    let md5 = content.md5()?;
                    let put = |progress: Progress| {
                        let below = &below;
                        async move { account.put(&account.url(below).await?, content, md5, progress).await }
                    };
                    self.tries().run_sending(put).await?;
                    Ok(version(&md5.to_string(), len_bytes))
                }
            }
        };
        self.unless(stop, put).map_err(|error| match error.kind() {
            ErrorKind::ObjectNotFound | ErrorKind::StoreNotFound => Error::caused_by(
                ErrorKind::StoreNotFound,
                format!("there is no such container in {:?}", self.location),
                error,
            ),
            ErrorKind::Interrupted => error,
            _ => error.context(format!("cannot write object {name:?}")),
        })
    }

    fn remove(&self, name: &ObjectName, stop: Stop<'_>) -> Result<()> {
        let remove = async {
            let (operator, path, _) = self.place(name).await?;
            let remove =
                |_| async { operator.delete(path).await.map_err(|error| Failed::from_opendal(&error)) };
            self.tries().run(remove).await
        };
        match self.unless(stop, remove) {
            Err(error) if error.kind() == ErrorKind::ObjectNotFound => Ok(()),
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                Err(error.context(format!("cannot delete object {name:?}")))
            }
            outcome => outcome,
        }
    }

    fn list_below(&self, prefix: &str, stop: Stop<'_>) -> Result<Vec<ListedObject>> {
        let list = async {
            match &self.backend {
                Backend::Bucket(operator, naming) => self.bucket(operator, *naming, prefix, "").await,
                Backend::Swift { account, container: Some(name), .. } => {
                    self.container(account, name, "", prefix, "").await
                }
                Backend::Swift { account, container: None, .. } => {
                    let (container, prefix) = prefix.split_once('/').unwrap_or((prefix, ""));
                    let folder = format!("{container}/");
                    self.container(account, container, &folder, prefix, "").await
                }
            }
        };
        let listed = self.unless(stop, list).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => error,
            ErrorKind::ObjectNotFound => Error::caused_by(
                ErrorKind::StoreNotFound,
                format!("there is no store {:?}", self.location),
                error,
            ),
            _ => error.context(format!("cannot list what begins with {prefix:?}")),
        })?;
        if let Some((name, error)) = listed.unreadable.into_iter().next() {
            return Err(error.context(format!("cannot tell what {name:?} is")));
        }
        let mut objects = listed.objects;
        objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    fn make_container(&self, name: &ObjectName, stop: Stop<'_>) -> Result<()> {
        match &self.backend {
            Backend::Bucket(..) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("there is no bucket {:?}; make it first", self.location),
            )),
            Backend::Swift { account, container, .. } => {
                let (container, _) = self.swift_place(container.as_deref(), name)?;
                let below = format!("/{}", encoded(container));
                let make = |_| async { account.put_container(&account.url(&below).await?).await };
                self.unless(stop, self.tries().run(make))
                    .map_err(|error| error.context(format!("cannot make container {container:?}")))
            }
        }
    }

    fn has_containers(&self) -> bool {
        matches!(&self.backend, Backend::Swift { container: None, .. })
    }

    fn object_bytes_max(&self) -> u64 {
        match &self.backend {
            Backend::Bucket(..) => PARTS_BYTES_MAX,
            Backend::Swift { .. } => SWIFT_BYTES_MAX,
        }
    }
}

/// A path in a URL; `/` stays.
fn encoded_path(path: &str) -> String {
    path.split('/').map(encoded).collect::<Vec<_>>().join("/")
}

/// A part of the content, shared where it is in memory.
fn bytes_of(content: &Content, offset: u64, len_bytes: u64) -> Result<Buffer> {
    let (from, len) = (offset as usize, len_bytes as usize);
    Ok(Buffer::from(match content {
        Content::Bytes(bytes) => Bytes::from_owner(Shared(bytes.clone())).slice(from..from + len),
        Content::File(..) => {
            let mut part = vec![0; len];
            content.read_exact_at(&mut part, offset)?;
            Bytes::from(part)
        }
    }))
}

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The content as a body, of which every part that is taken is noted.
fn body_of_content(content: Content, progress: Progress) -> reqwest::Body {
    let pieces = stream::unfold(0, move |at| {
        progress.note();
        let len = PIECE_BYTES.min(content.len_bytes() - at);
        let piece = match len {
            0 => None,
            _ => {
                Some(bytes_of(&content, at, len).map(|piece| piece.to_bytes()).map_err(std::io::Error::other))
            }
        };
        std::future::ready(piece.map(|piece| (piece, at + len)))
    });
    reqwest::Body::wrap_stream(pieces)
}
