//! Stores behind HTTP: OpenStack Swift, S3, Google Cloud Storage.
//!
//! Problem: Cinder writes to buckets more often than to disks, and reading a backup there should cost the bytes that are needed and a few
//! journeys to the server. Idea: OpenDAL speaks with the servers; we say what to fetch, how long to try, and what a failure means.
//!
//! - [`words`]: `swift:…`, `s3://…`, `gs://…`.
//! - [`settings`]: credentials and servers, from the environment, a `clouds.yaml` ([`clouds`]), AWS's own file ([`aws_config`]) or a cinder.conf.
//! - [`http`], [`failure`]: one transport beneath OpenDAL, and what errors mean.
//! - [`names`]: addresses of servers, remembered.
//! - [`token`], [`mod@swift`]: what Swift needs beyond OpenDAL.
//! - [`engine`]: threads, retries, deadlines.
//! - [`object`], [`window`]: ranged reads, a little ahead of who reads on.
//! - [`mod@write`], [`upload`]: whole objects, as the server confirms them.
//!
//! Invariants: an object's bytes are of the one that was opened, or the read fails; nothing is asked of a server before the first call; no
//! credential is in a message or a location.

mod ahead;
mod aws_config;
mod clouds;
mod engine;
mod failure;
mod http;
mod names;
mod object;
pub mod settings;
mod swift;
mod token;
mod upload;
mod window;
pub mod words;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, TryStreamExt as _};
use opendal::options::{ListOptions, ReaderOptions};
use opendal::services::{Gcs, S3, Swift};
use opendal::{Metadata, OperationContext, Operator};

pub use self::engine::Limits;
use self::engine::{Engine, Tries};
use self::failure::Failed;
pub use self::http::Access;
use self::http::{Pages, Transport, bare_etag, clients};
use self::object::{RemoteObject, Source};
use self::settings::{GcsSettings, S3Settings, SwiftSettings, check_plain};
use self::swift::{Account, Listed, check_container, encoded};
use self::token::Tokens;
use self::window::Shelf;
use super::objects::ObjectStore;
use super::{ListedObject, Listing, ObjectSource, ObjectStat, ObjectVersion, Ownership, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// Who may read an object: a server knows accounts and no users of this machine, so it is whoever has the credentials, which is us.
const MODE: u32 = 0o400;

/// Containers listed at once.
const CONTAINERS_AT_ONCE: usize = 4;

/// Objects that are asked about one by one, at once.
const STATS_AT_ONCE: usize = 8;

/// Objects that a listing goes through, at most: a hostile server's pages need not end. 10,000 backups of 1 TiB have some 200 million.
const LISTED_MAX: u64 = 1 << 30;

/// An S3 bucket.
pub fn s3(settings: S3Settings) -> Result<Arc<dyn Store>> {
    let mut builder = S3::default()
        .bucket(&settings.bucket)
        .region(&settings.region)
        // It is for machines at Amazon, and elsewhere an address that hangs.
        .disable_ec2_metadata();
    if let Some(endpoint) = &settings.endpoint {
        check_plain("the endpoint", endpoint)?;
        builder = builder.endpoint(endpoint);
    }
    if let Some((access, secret)) = &settings.keys {
        builder =
            builder.access_key_id(access.reveal()).secret_access_key(secret.reveal()).disable_config_load();
    }
    if let Some(token) = &settings.session_token {
        builder = builder.session_token(token.reveal());
    }
    if let Some((algorithm, key)) = &settings.customer_key {
        builder = builder.server_side_encryption_with_customer_key(algorithm, key.reveal().as_bytes());
    }
    let engine = Engine::new(settings.limits);
    let pages = Pages { tries: engine.tries().clone(), mark: "<ListBucketResult" };
    let transport = Transport::new(clients(&settings.access, settings.limits)?, None, Some(pages));
    let operator = operator_of(Operator::new(builder), transport)?;
    let location = match &settings.endpoint {
        Some(endpoint) => format!("s3://{}?endpoint={endpoint}", settings.bucket),
        None => format!("s3://{}", settings.bucket),
    };
    RemoteStore::new(location, Backend::Bucket(operator, Naming::Etag), engine)
}

/// A bucket of Google Cloud Storage.
pub fn gcs(settings: GcsSettings) -> Result<Arc<dyn Store>> {
    let mut builder = Gcs::default().bucket(&settings.bucket);
    if let Some(endpoint) = &settings.endpoint {
        check_plain("the endpoint", endpoint)?;
        builder = builder.endpoint(endpoint);
    }
    if let Some(file) = &settings.credential_file {
        // OpenDAL only says that there are no credentials.
        let failed = |error| {
            let what = format!("cannot read the credential file {file:?}");
            Error::caused_by(ErrorKind::AccessDenied, what, error)
        };
        // It is read again later, in another working directory.
        let file =
            std::path::absolute(file).and_then(|path| File::open(&path).map(|_| path)).map_err(failed)?;
        builder = builder.credential_path(&file.to_string_lossy());
    }
    if settings.is_anonymous {
        builder = builder.skip_signature();
    }
    let engine = Engine::new(settings.limits);
    let pages = Pages { tries: engine.tries().clone(), mark: "storage#objects" };
    let transport = Transport::new(clients(&settings.access, settings.limits)?, None, Some(pages));
    let operator = operator_of(Operator::new(builder), transport)?;
    let location = match &settings.endpoint {
        Some(endpoint) => format!("gs://{}?endpoint={endpoint}", settings.bucket),
        None => format!("gs://{}", settings.bucket),
    };
    RemoteStore::new(location, Backend::Bucket(operator, Naming::Generation), engine)
}

/// A container of Swift, or an account whose containers are folders.
pub fn swift(settings: SwiftSettings) -> Result<Arc<dyn Store>> {
    settings.check_urls()?;
    if let Some(container) = &settings.container {
        check_container(container)?;
    }
    let clients = clients(&settings.access, settings.limits)?;
    let (container, limits) = (settings.container.clone(), settings.limits);
    let location = format!("swift:{}", container.as_deref().unwrap_or_default());
    let tokens = Arc::new(Tokens::new(clients.clone(), settings));
    let account = Account { clients, tokens };
    RemoteStore::new(
        location,
        Backend::Swift { account, container, operators: Mutex::default() },
        Engine::new(limits),
    )
}

fn operator_of(built: opendal::Result<Operator>, transport: Transport) -> Result<Operator> {
    let operator = built.map_err(|error| Failed::from_opendal(&error).error)?;
    let transport = opendal::HttpTransporter::new(transport);
    Ok(operator.with_context(OperationContext::new().with_http_transport(transport)))
}

/// A store behind HTTP.
struct RemoteStore {
    location: String,
    backend: Backend,
    engine: Arc<Engine>,
    shelf: Arc<Shelf>,
}

enum Backend {
    Bucket(Operator, Naming),
    Swift {
        account: Account,
        container: Option<String>,
        /// By container; the account's URL is known only after the first authentication.
        operators: Mutex<HashMap<String, Operator>>,
    },
}

/// What distinguishes an object from another one of its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    Etag,
    /// Google's number, which is the same in all its interfaces, as its ETags are not.
    Generation,
}

/// Which objects a listing tells.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    prefix: &'a str,
    suffix: &'a str,
    /// Another suffix, of what is told if it can be.
    also: Option<&'a str>,
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

impl Naming {
    /// Reads the object that has this word and no other.
    fn only(self, word: &str) -> ReaderOptions {
        let mut options = ReaderOptions::default();
        match self {
            Self::Etag => options.if_match = Some(quoted(word)),
            Self::Generation => options.if_version_match = Some(word.to_owned()),
        }
        options
    }
}

impl RemoteStore {
    #[expect(clippy::new_ret_no_self, reason = "all that is made of it is a store")]
    fn new(location: String, backend: Backend, engine: Engine) -> Result<Arc<dyn Store>> {
        Ok(Arc::new(Self { location, backend, engine: Arc::new(engine), shelf: Arc::default() }))
    }

    fn tries(&self) -> &Tries {
        self.engine.tries()
    }

    /// The operator for an object, its name there, and how it is told from others.
    async fn place<'a>(&self, name: &'a ObjectName) -> Result<(Operator, &'a str, Naming)> {
        let whole = name.as_str();
        let (operator, path, naming) = match &self.backend {
            Backend::Bucket(operator, naming) => (operator.clone(), whole, *naming),
            Backend::Swift { container: Some(container), .. } => {
                (self.of_container(container).await?, whole, Naming::Etag)
            }
            Backend::Swift { container: None, .. } => {
                let (container, path) = whole.split_once('/').ok_or_else(|| missing(name))?;
                (self.of_container(container).await?, path, Naming::Etag)
            }
        };
        check_ends(path)?;
        Ok((operator, path, naming))
    }

    async fn of_container(&self, container: &str) -> Result<Operator> {
        let Backend::Swift { account, operators, .. } = &self.backend else {
            return Err(Error::new(ErrorKind::StoreIo, "only Swift has containers"));
        };
        let lock = || operators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(operator) = lock().get(container) {
            return Ok(operator.clone());
        }
        let session = self.tries().run(|_| account.tokens.session()).await?;
        let builder = Swift::default().endpoint(&session.storage_url).container(&encoded(container));
        let transport = Transport::new(account.clients.clone(), Some(account.tokens.clone()), None);
        let operator = operator_of(Operator::new(builder), transport)?;
        lock().insert(container.to_owned(), operator.clone());
        Ok(operator)
    }

    async fn stat(&self, name: &ObjectName) -> Result<(ObjectStat, Source)> {
        let (operator, path, naming) = self.place(name).await?;
        let run = self
            .tries()
            .run(|_| async { operator.stat(path).await.map_err(|error| Failed::from_opendal(&error)) });
        let meta = run.await.map_err(|error| match error.kind() {
            ErrorKind::ObjectNotFound => missing(name),
            _ => error.context(format!("cannot open object {name:?}")),
        })?;
        let stat = stat_of(&meta, naming)?;
        let options = naming.only(word_of(&stat.version));
        Ok((stat, Source { operator: operator.clone(), path: path.to_owned(), options }))
    }

    /// What a request for an object in the version that a listing told says. Nothing is asked of the server.
    async fn source_of(&self, listed: &ListedObject) -> Result<Source> {
        let (operator, path, naming) = self.place(&listed.name).await?;
        Ok(Source { operator, path: path.to_owned(), options: naming.only(word_of(&listed.stat.version)) })
    }

    /// All objects of a bucket that are wanted.
    async fn bucket(
        &self,
        operator: &Operator,
        naming: Naming,
        wanted: Wanted<'_>,
        listed_max: u64,
    ) -> Result<Listing> {
        let mut listing = Listing::default();
        let options = ListOptions { recursive: true, ..ListOptions::default() };
        let failed = |error: opendal::Error| Failed::from_opendal(&error).error;
        let mut lister = operator.lister_options(wanted.prefix, options).await.map_err(failed)?;
        let mut looked: u64 = 0;
        while let Some(entry) = lister.try_next().await.map_err(failed)? {
            looked += 1;
            if looked > listed_max {
                return Err(too_many(listed_max));
            }
            if entry.metadata().is_dir() || !wanted.has(entry.path()) {
                continue;
            }
            match ObjectName::parse(entry.path()) {
                Ok(name) => {
                    let stat = stat_of(entry.metadata(), naming)?;
                    listing.objects.push(ListedObject { name, stat });
                }
                Err(error) if wanted.is_missed(entry.path()) => {
                    listing.unreadable.push((entry.path().to_owned(), error));
                }
                Err(_) => {}
            }
        }
        Ok(listing)
    }

    /// All objects of a Swift container that are wanted by their names there; `folder` goes before these.
    async fn container(
        &self,
        account: &Account,
        container: &str,
        folder: &str,
        wanted: Wanted<'_>,
        listed_max: u64,
    ) -> Result<Listing> {
        let mut listing = Listing::default();
        let mut manifests = Vec::new();
        let take = |listed: Listed| {
            if !wanted.has(&listed.name) || listed.name.ends_with('/') {
                return;
            }
            let text = format!("{folder}{}", listed.name);
            match ObjectName::parse(&text) {
                // A manifest of segments that lie elsewhere, or really empty.
                Ok(name) if listed.bytes == 0 => manifests.push(name),
                Ok(name) => listing.objects.push(ListedObject { name, stat: stat_of_swift(&listed) }),
                Err(error) if wanted.is_missed(&text) => listing.unreadable.push((text, error)),
                Err(_) => {}
            }
        };
        account.objects(self.tries(), container, wanted.prefix, listed_max, take).await?;
        let mut stats = futures_util::stream::iter(manifests)
            .map(|name| async move { (self.stat(&name).await, name) })
            .buffer_unordered(STATS_AT_ONCE);
        while let Some((outcome, name)) = stats.next().await {
            match outcome {
                Ok((stat, _)) => listing.objects.push(ListedObject { name, stat }),
                // Deleted since.
                Err(error) if error.kind() == ErrorKind::ObjectNotFound => {}
                Err(error) if wanted.is_missed(name.as_str()) => {
                    listing.unreadable.push((name.to_string(), error));
                }
                Err(_) => {}
            }
        }
        Ok(listing)
    }

    /// All objects of an account that are wanted.
    async fn account(&self, account: &Account, wanted: Wanted<'_>) -> Result<Listing> {
        let names = account.containers(self.tries()).await?;
        let mut listings = futures_util::stream::iter(names)
            .map(|container| async move {
                let folder = format!("{container}/");
                (self.container(account, &container, &folder, wanted, LISTED_MAX).await, container)
            })
            .buffer_unordered(CONTAINERS_AT_ONCE);
        let mut all = Listing::default();
        while let Some((outcome, container)) = listings.next().await {
            match outcome {
                Ok(listing) => {
                    all.objects.extend(listing.objects);
                    all.unreadable.extend(listing.unreadable);
                }
                // Deleted since.
                Err(error) if error.kind() == ErrorKind::ObjectNotFound => {}
                Err(error) => all.unreadable.push((container, error)),
            }
        }
        Ok(all)
    }

    /// All objects that are wanted, sorted by name.
    fn listing(&self, wanted: Wanted<'_>) -> Result<Listing> {
        let listed = self.engine.wait(async {
            match &self.backend {
                Backend::Bucket(operator, naming) => self.bucket(operator, *naming, wanted, LISTED_MAX).await,
                Backend::Swift { account, container: Some(name), .. } => {
                    self.container(account, name, "", wanted, LISTED_MAX).await
                }
                Backend::Swift { account, container: None, .. } => self.account(account, wanted).await,
            }
        });
        let mut listing = listed.map_err(|error| match error.kind() {
            ErrorKind::ObjectNotFound | ErrorKind::StoreNotFound => Error::caused_by(
                ErrorKind::StoreNotFound,
                format!("there is no store {:?}", self.location),
                error,
            ),
            _ => error.context(format!("cannot list the store {:?}", self.location)),
        })?;
        listing.objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        listing.objects.dedup_by(|a, b| a.name == b.name);
        Ok(listing)
    }
}

impl Store for RemoteStore {
    fn location(&self) -> &str {
        &self.location
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        self.listing(Wanted { prefix: "", suffix, also: None })
    }

    fn list_with(&self, suffix: &str, also: &str) -> Result<(Listing, Vec<ListedObject>)> {
        let mut listing = self.listing(Wanted { prefix: "", suffix, also: Some(also) })?;
        let others =
            listing.objects.extract_if(.., |object| !object.name.as_str().ends_with(suffix)).collect();
        Ok((listing, others))
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        let (stat, source) = self.engine.wait(self.stat(name))?;
        Ok(Arc::new(RemoteObject::new(name.clone(), stat, source, self.engine.clone(), self.shelf.clone())))
    }

    fn open_listed(&self, listed: &ListedObject) -> Result<Arc<dyn ObjectSource>> {
        let source = self.engine.wait(self.source_of(listed))?;
        let (name, stat) = (listed.name.clone(), listed.stat.clone());
        Ok(Arc::new(RemoteObject::new(name, stat, source, self.engine.clone(), self.shelf.clone())))
    }

    fn calls_at_once(&self) -> usize {
        self.tries().limits().connections
    }

    fn is_answering(&self) -> bool {
        self.tries().is_answering()
    }

    fn has_deadlines(&self) -> bool {
        true
    }

    fn rest(&self) -> Result<()> {
        self.engine.rest()
    }

    fn into_objects(self: Arc<Self>) -> Option<Arc<dyn ObjectStore>> {
        Some(self)
    }
}

/// OpenDAL takes spaces off both ends, and would ask for another object, or delete it.
fn check_ends(path: &str) -> Result<()> {
    if path.trim() != path {
        let message = format!("object name {path:?} begins or ends with a space, which cannot be asked for");
        return Err(Error::new(ErrorKind::UnsafeName, message));
    }
    Ok(())
}

fn too_many(listed_max: u64) -> Error {
    Error::new(ErrorKind::LimitExceeded, format!("the store lists more than {listed_max} objects"))
}

fn missing(name: &ObjectName) -> Error {
    Error::new(ErrorKind::ObjectNotFound, format!("there is no object {name:?}"))
}

/// As `If-Match` wants it. Swift and GCS tell some ETags bare.
fn quoted(etag: &str) -> String {
    format!("\"{}\"", bare_etag(etag))
}

fn owner() -> Ownership {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Ownership { mode: MODE, uid, gid }
}

fn stat_of(meta: &Metadata, naming: Naming) -> Result<ObjectStat> {
    let word = match naming {
        Naming::Etag => meta.etag().map(bare_etag),
        Naming::Generation => meta.version(),
    };
    let len_bytes = meta.content_length();
    let word = word.ok_or_else(|| {
        Error::new(ErrorKind::StoreIo, "the server tells no ETag, so what is read could be of two objects")
    })?;
    let modified = meta.last_modified().map(SystemTime::from).map(whole_seconds);
    Ok(ObjectStat { len_bytes, version: version(word, len_bytes), modified, owner: owner() })
}

fn stat_of_swift(listed: &Listed) -> ObjectStat {
    let etag = bare_etag(listed.slo_etag.as_deref().unwrap_or(&listed.hash));
    let modified = format!("{}Z", listed.last_modified.trim_end_matches('Z')).parse::<jiff::Timestamp>();
    // HEAD tells the next whole second.
    let modified = modified.ok().map(|at| {
        let seconds = at.as_second() + i64::from(at.subsec_nanosecond() > 0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    });
    ObjectStat { len_bytes: listed.bytes, version: version(etag, listed.bytes), modified, owner: owner() }
}

fn version(word: &str, len_bytes: u64) -> ObjectVersion {
    ObjectVersion(format!("{word}:{len_bytes}").into())
}

/// What [`version`] was made of: the ETag or the generation.
fn word_of(version: &ObjectVersion) -> &str {
    version.0.rsplit_once(':').map_or(&*version.0, |(word, _)| word)
}

/// Listings tell fractions that HEAD does not.
fn whole_seconds(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swifts_listing_tells_what_head_tells() {
        let listed = |slo: Option<&str>| Listed {
            name: "a".into(),
            bytes: 5,
            hash: "h".into(),
            slo_etag: slo.map(str::to_owned),
            last_modified: "1970-01-01T00:00:01.000001".into(),
        };
        let stat = stat_of_swift(&listed(None));
        assert_eq!(&*stat.version.0, "h:5");
        assert_eq!(stat.modified, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2)));
        assert_eq!(&*stat_of_swift(&listed(Some("\"s\""))).version.0, "s:5");
    }
}
