//! What a store behind HTTP holds.
//!
//! Problem: a listing is many requests, of which some may fail while others do not, and what a server lists need not end. Idea: what a
//! listing goes through and what it keeps are bounded, and a part that is not answered for is told as such as long as others are; where none
//! is, the store does not answer, and the listing fails at once instead of part by part.
//!
//! Invariant: what is wanted is told, or told to be unknown, or the listing fails.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _};
use opendal::options::ListOptions;
use opendal::{HttpTransporter, Operator};

use super::engine::{FIRST_PATIENCE, Tries};
use super::failure::{self, Failed};
use super::pages::{Watch, Watched};
use super::swift::{Account, Listed};
use super::told::{stat_of, stat_of_swift};
use super::{Backend, RemoteStore, Trying};
use crate::error::{Error, ErrorKind, Result};
use crate::store::reports::Reports;
use crate::store::{ListedObject, Listing};
use crate::types::ObjectName;

/// Containers listed at once.
const CONTAINERS_AT_ONCE: usize = 4;

/// Containers of an account, at most.
pub(super) const CONTAINERS_MAX: u64 = 1_000_000;

/// Objects that are asked about one by one, at once.
const STATS_AT_ONCE: usize = 8;

/// Objects that a listing goes through, at most: a hostile server's pages need not end. 10,000 backups of 1 TiB have some 200 million.
pub(super) const LISTED_MAX: u64 = 1 << 30;

/// Objects that a listing keeps, at most: they take some 160 bytes each. A scan keeps two of each backup, `verify` all.
const KEPT_MAX: u64 = 10_000_000;

/// Parts of a listing that may be given up while others are answered for.
const GIVEN_UP_MAX: u32 = 4;

/// Which objects a listing tells.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) prefix: &'a str,
    pub(super) suffix: &'a str,
    /// Another suffix, of what is told if it can be.
    pub(super) also: Option<&'a str>,
}

impl Wanted<'_> {
    /// Whether a name is wanted. A server or a proxy that does not heed the prefix tells others' names too.
    fn has(&self, name: &str) -> bool {
        let suffixes = std::iter::once(self.suffix).chain(self.also);
        name.starts_with(self.prefix) && suffixes.into_iter().any(|suffix| name.ends_with(suffix))
    }

    /// Whether it has to be said that an object of this name cannot be told.
    fn is_missed(&self, name: &str) -> bool {
        name.ends_with(self.suffix)
    }
}

/// What one listing may take, all its parts together.
pub(super) struct Bounds {
    listed_max: u64,
    room: Cell<u64>,
    /// Answers so far.
    answers: Cell<u64>,
    given_up: Cell<u32>,
    reports: RefCell<Reports>,
}

impl Bounds {
    /// Goes through `listed_max` objects in each bucket or container.
    pub(super) fn new(listed_max: u64) -> Self {
        Self {
            listed_max,
            room: Cell::new(KEPT_MAX),
            answers: Cell::default(),
            given_up: Cell::default(),
            reports: RefCell::default(),
        }
    }

    /// What lies at `place` cannot be told.
    fn report(&self, place: String, error: Error) {
        self.reports.borrow_mut().add(place, error);
    }

    /// What could not be told, of the store at `location`.
    pub(super) fn into_reports(self, location: &str) -> Vec<(String, Error)> {
        self.reports.into_inner().finish(location)
    }

    /// Something is kept.
    fn keep(&self) -> Result<()> {
        self.room.set(self.room.get().checked_sub(1).ok_or_else(|| too_many(KEPT_MAX))?);
        Ok(())
    }

    /// The server said something.
    fn note_answer(&self) {
        self.answers.set(self.answers.get() + 1);
    }

    /// What became of a part of the listing. The outer error: the server answers for no part any more, or for too few.
    async fn part<T>(&self, tries: &Tries, part: impl Future<Output = Result<T>>) -> Result<Result<T>> {
        let (before, begun) = (self.answers.get(), Instant::now());
        // Tries end when the next pause would be behind the deadline, and each pause is twice as long.
        let long = tries.limits().deadline.min(FIRST_PATIENCE) / 3;
        let outcome = part.await;
        match &outcome {
            // It was tried again and again, or another part was; a server that is asked in vain may answer, with errors.
            Err(error)
                if error.kind() == ErrorKind::StoreIo && (begun.elapsed() >= long || tries.is_failing()) =>
            {
                let given_up = self.given_up.get() + 1;
                self.given_up.set(given_up);
                if self.answers.get() == before || given_up > GIVEN_UP_MAX {
                    return Err(error.clone());
                }
            }
            _ => self.note_answer(),
        }
        Ok(outcome)
    }
}

impl RemoteStore {
    /// All objects of a bucket that are wanted by their names there; `folder` goes before these. What cannot be told is reported to `bounds`.
    pub(super) async fn bucket(
        &self,
        operator: &Operator,
        folder: &str,
        wanted: Wanted<'_>,
        bounds: &Bounds,
    ) -> Result<Vec<ListedObject>> {
        let mut objects = Vec::new();
        let watch = Arc::new(Watch::default());
        let transport = Watched::new(operator.context().http_transport().clone(), watch.clone());
        let context = operator.context().with_http_transport(HttpTransporter::new(transport));
        let operator = operator.clone().with_context(context);
        let mut looked: u64 = 0;
        let mut last: Option<String> = None;
        // Once more each time that the signature has become too old.
        loop {
            let options =
                ListOptions { recursive: true, start_after: last.clone(), ..ListOptions::default() };
            let failed = |error: opendal::Error| Failed::from_opendal(&error).error;
            let begin = last.clone();
            let mut lister = operator.lister_options(wanted.prefix, options).await.map_err(failed)?;
            loop {
                let entry = match lister.try_next().await.map_err(failed) {
                    Ok(Some(entry)) => entry,
                    Ok(None) => return Ok(objects),
                    Err(error) if failure::is_skewed(&error) && watch.may_begin_anew() => break,
                    Err(error) => return Err(error),
                };
                looked += 1;
                if looked > bounds.listed_max {
                    return Err(too_many(bounds.listed_max));
                }
                let path = entry.path();
                if begin.as_deref().is_some_and(|begin| path <= begin) {
                    continue;
                }
                watch.note_entry();
                last = Some(path.to_owned());
                if entry.metadata().is_dir() || !wanted.has(path) {
                    continue;
                }
                let text = format!("{folder}{path}");
                let stat = || {
                    stat_of(entry.metadata(), self.naming())
                        .map_err(|error| error.context(format!("object {text:?}")))
                };
                let told = ObjectName::parse(&text).and_then(|name| Ok(ListedObject { name, stat: stat()? }));
                match told {
                    Ok(object) => {
                        bounds.keep()?;
                        objects.push(object);
                    }
                    Err(error) if wanted.is_missed(&text) => bounds.report(text, error),
                    Err(_) => {}
                }
            }
        }
    }

    /// All objects of a Swift container that are wanted by their names there; `folder` goes before these.
    pub(super) async fn container(
        &self,
        account: &Account,
        container: &str,
        folder: &str,
        wanted: Wanted<'_>,
        bounds: &Bounds,
    ) -> Result<Vec<ListedObject>> {
        let mut objects = Vec::new();
        let mut manifests = Vec::new();
        let take = |listed: Listed| {
            bounds.note_answer();
            if !wanted.has(&listed.name) || listed.name.ends_with('/') {
                return Ok(());
            }
            let text = format!("{folder}{}", listed.name);
            match ObjectName::parse(&text) {
                Ok(name) => {
                    bounds.keep()?;
                    // A manifest of segments that lie elsewhere, or really empty.
                    if listed.bytes == 0 {
                        manifests.push(name);
                    } else {
                        objects.push(ListedObject { name, stat: stat_of_swift(&listed) });
                    }
                }
                Err(error) if wanted.is_missed(&text) => bounds.report(text, error),
                Err(_) => {}
            }
            Ok(())
        };
        account.objects(self.tries(), container, wanted.prefix, bounds.listed_max, take).await?;
        let mut stats = futures_util::stream::iter(manifests)
            .map(|name| async move { (bounds.part(self.tries(), self.stat(&name, Trying::Now)).await, name) })
            .buffer_unordered(STATS_AT_ONCE);
        while let Some((outcome, name)) = stats.next().await {
            match outcome? {
                Ok((stat, _)) => objects.push(ListedObject { name, stat }),
                // Deleted since.
                Err(error) if error.kind() == ErrorKind::ObjectNotFound => {}
                Err(error) if wanted.is_missed(name.as_str()) => {
                    bounds.report(name.to_string(), error);
                }
                Err(_) => {}
            }
        }
        Ok(objects)
    }

    /// The names of all containers or buckets.
    pub(super) async fn containers(&self) -> Result<Vec<String>> {
        match &self.backend {
            Backend::Swift { account, .. } => account.containers(self.tries()).await,
            Backend::Bucket { buckets, .. } | Backend::Buckets { buckets, .. } => buckets.names().await,
        }
    }

    /// All objects of one container or bucket that are wanted by their names there; `folder` goes before these.
    pub(super) async fn of_one(
        &self,
        container: &str,
        folder: &str,
        wanted: Wanted<'_>,
        bounds: &Bounds,
    ) -> Result<Vec<ListedObject>> {
        match &self.backend {
            Backend::Swift { account, .. } => {
                self.container(account, container, folder, wanted, bounds).await
            }
            Backend::Bucket { operator, .. } => self.bucket(operator, folder, wanted, bounds).await,
            Backend::Buckets { .. } => {
                let operator = self.of_container(container).await?;
                let listed = self.bucket(&operator, folder, wanted, bounds).await;
                listed.inspect(|_| bounds.note_answer())
            }
        }
    }

    /// All objects of these containers that are wanted by their names there, each with its container before it.
    pub(super) async fn of_each(
        &self,
        names: Vec<String>,
        wanted: Wanted<'_>,
        bounds: &Bounds,
    ) -> Result<Vec<ListedObject>> {
        let mut listings = futures_util::stream::iter(names)
            .map(|container| async move {
                let folder = format!("{container}/");
                let part = self.of_one(&container, &folder, wanted, bounds);
                (bounds.part(self.tries(), part).await, container)
            })
            .buffer_unordered(CONTAINERS_AT_ONCE);
        let mut all = Vec::new();
        let mut missing = Vec::new();
        while let Some((outcome, container)) = listings.next().await {
            let outcome = outcome.map_err(|error| error.context(format!("container {container:?}")))?;
            match outcome {
                Ok(objects) => all.extend(objects),
                Err(error)
                    if matches!(error.kind(), ErrorKind::ObjectNotFound | ErrorKind::StoreNotFound) =>
                {
                    missing.push((container, error));
                }
                Err(error) => bounds.report(container, error),
            }
        }
        drop(listings);
        if missing.is_empty() {
            return Ok(all);
        }
        // Deleted since, unless the account goes on to list them.
        let names: HashSet<String> = self.containers().await?.into_iter().collect();
        for (container, error) in missing.into_iter().filter(|(container, _)| names.contains(container)) {
            let message = "the account lists this container, and the server says there is none";
            bounds.report(container, Error::caused_by(ErrorKind::StoreIo, message, error));
        }
        Ok(all)
    }

    /// All objects that are wanted, sorted by name.
    pub(super) fn listing(&self, wanted: Wanted<'_>) -> Result<Listing> {
        let bounds = Bounds::new(LISTED_MAX);
        let listed = self.engine.wait(async {
            match &self.backend {
                Backend::Bucket { name, .. } | Backend::Swift { container: Some(name), .. } => {
                    self.of_one(name, "", wanted, &bounds).await
                }
                Backend::Buckets { .. } | Backend::Swift { container: None, .. } => {
                    self.of_each(self.containers().await?, wanted, &bounds).await
                }
            }
        });
        let mut objects = listed.map_err(|error| match error.kind() {
            ErrorKind::ObjectNotFound | ErrorKind::StoreNotFound => Error::caused_by(
                ErrorKind::StoreNotFound,
                format!("there is no store {:?}", self.location),
                error,
            ),
            _ => error.context(format!("cannot list the store {:?}", self.location)),
        })?;
        objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        objects.dedup_by(|a, b| a.name == b.name);
        Ok(Listing { objects, unreadable: bounds.into_reports(&self.location) })
    }
}

pub(super) fn too_many(listed_max: u64) -> Error {
    Error::new(ErrorKind::LimitExceeded, format!("the store lists more than {listed_max} objects"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded() {
        let bounds = Bounds { room: Cell::new(2), ..Bounds::new(1) };
        bounds.keep().unwrap();
        bounds.keep().unwrap();
        assert_eq!(bounds.keep().unwrap_err().kind(), ErrorKind::LimitExceeded);
    }
}
