//! Objects put into a store behind HTTP, whole.
//!
//! Problem: a backup goes on for hours, and each of its thousand requests may fail in passing; what a server has taken half must not be
//! seen, and who presses Ctrl-C waits for no deadline. Idea: an object is one request wherever it may be, as Cinder's are, so that its ETag is the md5 of
//! its bytes; long ones go to S3 and Google in parts, each of which is tried again by itself. Swift takes an object of up to 5 GB in one
//! request, and segments are not wanted: Cinder's own delete would leave them behind.
//!
//! Invariant: whoever stops waiting leaves no request behind, and no parts.

use std::future::Future;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::Method;
use http::header::{CONTENT_LENGTH, ETAG, HeaderValue};
use opendal::{Metadata, Operator};

use super::body::{body_of_content, bytes_of};
use super::engine::Progress;
use super::failure::{self, Failed};
use super::http::{bare_etag, body_of};
use super::listing::{Bounds, Wanted};
use super::swift::{Account, encoded};
use super::told::{Naming, stat_of, version};
use super::upload::confirm;
use super::{Backend, RemoteStore, check_ends, missing};
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::OBJECTS_MAX;
use crate::store::objects::{Beside, Content, ObjectStore, Stop};
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

/// Objects below one prefix, at most, since all of them are kept: a backup's, its two documents and a marker, and some to spare.
const BELOW_MAX: u64 = OBJECTS_MAX + 16;

/// How often a caller is asked whether to stop.
const STOP_EVERY: Duration = Duration::from_millis(50);

/// How long the parts of an upload that failed are tried to be given up.
const ABORT_MAX: Duration = Duration::from_secs(10);

impl RemoteStore {
    /// Waits for `task` unless told to stop.
    pub(super) fn unless<T>(&self, stop: Stop<'_>, task: impl Future<Output = Result<T>>) -> Result<T> {
        self.engine.wait(unless(stop, task))
    }

    /// What is said of an object that may be there.
    async fn found(&self, operator: &Operator, path: &str) -> Result<Option<Metadata>> {
        let stat = |_| async {
            match operator.stat(path).await.map_err(|error| Failed::from_opendal(&error)) {
                Ok(meta) => Ok(Some(meta)),
                Err(failed) if failed.error.kind() == ErrorKind::ObjectNotFound => Ok(None),
                Err(failed) => Err(failed),
            }
        };
        self.tries().run(stat).await
    }

    async fn put_in_bucket(
        &self,
        operator: &Operator,
        naming: Naming,
        path: &str,
        content: &Content,
        stop: Stop<'_>,
    ) -> Result<ObjectVersion> {
        let whole_bytes_max = match naming {
            Naming::Etag => WHOLE_BYTES_MAX,
            Naming::Generation => GOOGLE_WHOLE_BYTES_MAX,
        };
        let put = || async {
            if content.len_bytes() <= whole_bytes_max {
                unless(stop, self.put_whole(operator, naming, path, content)).await
            } else {
                self.put_in_parts(operator, naming, path, content, stop).await
            }
        };
        match put().await {
            // Its signature has become too old while it was tried; the next one is made now.
            Err(error) if failure::is_skewed(&error) => put().await,
            outcome => outcome,
        }
    }

    async fn put_whole(
        &self,
        operator: &Operator,
        naming: Naming,
        path: &str,
        content: &Content,
    ) -> Result<ObjectVersion> {
        let failed = |error: opendal::Error| Failed::from_opendal(&error).error;
        let len_bytes = content.len_bytes();
        let meta = operator.write(path, bytes_of(content, 0, len_bytes)?).await.map_err(failed)?;
        let word = match naming {
            Naming::Etag => meta.etag().map(bare_etag),
            Naming::Generation => meta.version(),
        };
        if let Some(word) = word {
            return Ok(version(word, len_bytes));
        }
        let meta = self.found(operator, path).await?.ok_or_else(not_there)?;
        Ok(stat_of(&meta, naming)?.version)
    }

    /// The server has confirmed each part, and is told the ETags of those that it puts together. What it says of the whole is no digest of it
    /// where it encrypts; its length is looked at.
    async fn put_in_parts(
        &self,
        operator: &Operator,
        naming: Naming,
        path: &str,
        content: &Content,
        stop: Stop<'_>,
    ) -> Result<ObjectVersion> {
        let failed = |error: opendal::Error| Failed::from_opendal(&error).error;
        let len_bytes = content.len_bytes();
        let version_of = |meta: &Metadata| stat_of(meta, naming).map(|stat| stat.version);
        let before = unless(stop, self.found(operator, path)).await?;
        let before = before.as_ref().map(version_of).transpose()?;
        let mut writer = operator.writer(path).await.map_err(failed)?;
        let mut is_sent = false;
        let parts = async {
            let mut at = 0;
            while at < len_bytes {
                writer.write(bytes_of(content, at, PART_BYTES.min(len_bytes - at))?).await.map_err(failed)?;
                at += PART_BYTES;
            }
            is_sent = true;
            writer.close().await.map_err(failed)
        };
        // Here and not further out, where the parts would be forgotten.
        let outcome = unless(stop, parts).await.map(drop);
        if let Err(error) = outcome {
            // The answer to its last request may be all that was lost.
            if is_sent
                && error.kind() != ErrorKind::Interrupted
                && let Ok(Some(meta)) = unless(stop, self.found(operator, path)).await
                && meta.content_length() == len_bytes
                && let now = version_of(&meta)?
                && before.is_none_or(|before| before != now)
            {
                return Ok(now);
            }
            match tokio::time::timeout(ABORT_MAX, writer.abort()).await {
                Ok(Ok(())) => {}
                Ok(Err(left)) => tracing::warn!("parts of an upload may be left in the store: {left}"),
                Err(_) => {
                    tracing::warn!("parts of an upload may be left in the store, which does not answer");
                }
            }
            return Err(error);
        }
        let meta = unless(stop, self.found(operator, path)).await?.ok_or_else(not_there)?;
        if meta.content_length() != len_bytes {
            return Err(Error::new(
                ErrorKind::StoreIo,
                "the store has put other bytes together than were sent",
            ));
        }
        version_of(&meta)
    }

    /// The container's and the object's name there.
    fn swift_place<'a>(
        &'a self,
        container: Option<&'a str>,
        name: &'a ObjectName,
    ) -> Result<(&'a str, &'a str)> {
        let (container, path) = match container {
            Some(container) => (container, name.as_str()),
            None => name.as_str().split_once('/').ok_or_else(|| missing(name))?,
        };
        check_ends(path)?;
        Ok((container, path))
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
                Backend::Bucket { .. } | Backend::Buckets { .. } => {
                    let (operator, path, naming) = self.place(name).await?;
                    self.put_in_bucket(&operator, naming, path, content, stop).await
                }
                Backend::Swift { account, container, .. } => {
                    let (container, path) = self.swift_place(container.as_deref(), name)?;
                    let below = format!("/{}/{}", encoded(container), encoded_path(path));
                    let md5 = content.md5()?;
                    let put = |progress: Progress| {
                        let below = &below;
                        async move { account.put(&account.url(below).await?, content, md5, progress).await }
                    };
                    unless(stop, self.tries().run_sending(put)).await?;
                    Ok(version(&md5.to_string(), len_bytes))
                }
            }
        };
        self.engine.wait(put).map_err(|error| match error.kind() {
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
        let wanted = Wanted { prefix, suffix: "", also: None };
        let bounds = Bounds::new(BELOW_MAX);
        let list = async {
            match &self.backend {
                Backend::Bucket { name, .. } | Backend::Swift { container: Some(name), .. } => {
                    self.of_one(name, "", wanted, &bounds).await
                }
                Backend::Buckets { .. } | Backend::Swift { container: None, .. } => {
                    let (container, prefix) = prefix.split_once('/').unwrap_or((prefix, ""));
                    self.of_one(container, &format!("{container}/"), Wanted { prefix, ..wanted }, &bounds)
                        .await
                }
            }
        };
        let mut objects = self.unless(stop, list).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => error,
            ErrorKind::ObjectNotFound | ErrorKind::StoreNotFound => Error::caused_by(
                ErrorKind::StoreNotFound,
                format!("there is no store {:?}", self.location),
                error,
            ),
            _ => error.context(format!("cannot list what begins with {prefix:?}")),
        })?;
        if let Some((name, error)) = bounds.into_reports(&self.location).into_iter().next() {
            return Err(error.context(format!("cannot tell what {name:?} is")));
        }
        objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    fn make_container(&self, name: &ObjectName, stop: Stop<'_>) -> Result<()> {
        match &self.backend {
            Backend::Bucket { buckets, .. } | Backend::Buckets { buckets, .. } => {
                let container = match self.has_containers() {
                    true => name.as_str().split('/').next(),
                    false => None,
                };
                let bucket =
                    container.map_or_else(|| self.location.clone(), |name| buckets.location(Some(name)));
                let message = format!("there is no bucket {bucket:?}; make it first");
                Err(Error::new(ErrorKind::Unsupported, message))
            }
            Backend::Swift { account, container, .. } => {
                let (container, _) = self.swift_place(container.as_deref(), name)?;
                let below = format!("/{}", encoded(container));
                let make = |_| async { account.put_container(&account.url(&below).await?).await };
                self.unless(stop, self.tries().run(make))
                    .map_err(|error| error.context(format!("cannot make container {container:?}")))
            }
        }
    }

    fn beside(&self, prefixes: &[String], suffix: &str, stop: Stop<'_>) -> Result<Option<Beside>> {
        self.look_beside(prefixes, suffix, stop)
    }

    fn has_containers(&self) -> bool {
        matches!(&self.backend, Backend::Swift { container: None, .. } | Backend::Buckets { .. })
    }

    fn object_bytes_max(&self) -> u64 {
        match &self.backend {
            Backend::Bucket { .. } | Backend::Buckets { .. } => PARTS_BYTES_MAX,
            Backend::Swift { .. } => SWIFT_BYTES_MAX,
        }
    }
}

/// Waits for `task` unless told to stop.
async fn unless<T>(stop: Stop<'_>, task: impl Future<Output = Result<T>>) -> Result<T> {
    let stopped = async {
        while !stop() {
            tokio::time::sleep(STOP_EVERY).await;
        }
    };
    match select(Box::pin(stopped), Box::pin(task)).await {
        Either::Left(_) => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
        Either::Right((outcome, _)) => outcome,
    }
}

fn not_there() -> Error {
    Error::new(ErrorKind::StoreIo, "the store does not have what it said it took")
}

/// A path in a URL; `/` stays.
fn encoded_path(path: &str) -> String {
    path.split('/').map(encoded).collect::<Vec<_>>().join("/")
}
