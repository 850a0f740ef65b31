//! Stores behind HTTP: OpenStack Swift, S3, Google Cloud Storage.
//!
//! Problem: Cinder writes to buckets more often than to disks, and reading a backup there should cost the bytes that are needed and a few
//! journeys to the server. Idea: OpenDAL speaks with the servers; we say what to fetch, how long to try, and what a failure means.
//!
//! - [`words`]: `swift:…`, `s3://…`, `gs://…`.
//! - [`settings`]: credentials and servers, from the environment, a `clouds.yaml` ([`clouds`]), AWS's own file ([`aws_config`]) or a cinder.conf.
//! - [`http`], [`failure`], [`said`]: one transport beneath OpenDAL, what errors mean, and what servers say of them.
//! - [`names`]: addresses of servers, remembered.
//! - [`token`], [`mod@swift`]: what Swift needs beyond OpenDAL; [`google`]: what Google's needs.
//! - [`engine`], [`pulse`], [`lost`]: threads, retries, deadlines, whether anything comes, and what did not.
//! - [`mod@buckets`], [`beside`]: which buckets a server has, and what lies in those beside the one that is the store.
//! - [`listing`], [`mod@pages`], [`told`]: what there is, page by page, and what is told of each object.
//! - [`object`], [`window`]: ranged reads, a little ahead of who reads on.
//! - [`mod@write`], [`body`], [`upload`]: whole objects, as the server confirms them.
//!
//! Invariants: an object's bytes are of the one that was opened, or the read fails; nothing is asked of a server before the first call; no
//! credential is in a message or a location.

mod ahead;
mod aws_config;
mod beside;
mod body;
mod buckets;
mod clouds;
mod engine;
mod failure;
mod google;
mod http;
mod listing;
mod lost;
mod names;
mod object;
mod pages;
mod pulse;
mod said;
pub mod settings;
mod swift;
mod token;
mod told;
mod upload;
mod window;
pub mod words;
mod write;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opendal::services::Swift;
use opendal::{OperationContext, Operator};

use self::buckets::Buckets;
pub use self::engine::Limits;
use self::engine::{Engine, Tries};
use self::failure::Failed;
pub use self::http::Access;
use self::http::{Renewed, Transport, clients};
use self::listing::Wanted;
use self::lost::WHOLE;
use self::object::{RemoteObject, Source};
use self::settings::{GcsSettings, S3Settings, SwiftSettings};
use self::swift::{Account, check_container, encoded};
use self::token::Tokens;
use self::told::{Naming, stat_of, word_of};
use self::window::Shelf;
use super::objects::ObjectStore;
use super::{ListedObject, Listing, ObjectSource, ObjectStat, Part, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// What people call an account of Swift.
const WHOLE_ACCOUNT: &str = "swift:";

/// An S3 bucket, or all of a server's, which are folders then.
pub fn s3(settings: S3Settings) -> Result<Arc<dyn Store>> {
    let (engine, bucket) = (Engine::new(settings.limits), settings.bucket.clone());
    bucket_store(Buckets::s3(settings, engine.tries().clone())?, &bucket, engine)
}

/// A bucket of Google Cloud Storage, or all of a project's, which are folders then.
pub fn gcs(settings: GcsSettings) -> Result<Arc<dyn Store>> {
    let (engine, bucket) = (Engine::new(settings.limits), settings.bucket.clone());
    bucket_store(Buckets::gcs(settings, engine.tries().clone())?, &bucket, engine)
}

fn bucket_store(buckets: Buckets, bucket: &str, engine: Engine) -> Result<Arc<dyn Store>> {
    let buckets = Arc::new(buckets);
    if bucket.is_empty() {
        let location = buckets.location(None);
        return RemoteStore::new(location, Backend::Buckets { buckets, operators: Mutex::default() }, engine);
    }
    let (operator, location) = (buckets.operator(bucket)?, buckets.location(Some(bucket)));
    RemoteStore::new(location, Backend::Bucket { operator, name: bucket.to_owned(), buckets }, engine)
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
    let account = Arc::new(Account { clients, tokens });
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
    /// Of what it is one container.
    whole: Option<String>,
    backend: Backend,
    engine: Arc<Engine>,
    shelf: Arc<Shelf>,
}

enum Backend {
    Bucket {
        operator: Operator,
        name: String,
        buckets: Arc<Buckets>,
    },
    /// All of a server's.
    Buckets {
        buckets: Arc<Buckets>,
        operators: Mutex<HashMap<String, Operator>>,
    },
    Swift {
        account: Arc<Account>,
        container: Option<String>,
        /// By container; the account's URL is known only after the first authentication.
        operators: Mutex<HashMap<String, Operator>>,
    },
}

/// Whether what was given up a moment ago is tried.
#[derive(Clone, Copy)]
enum Trying {
    /// It is: a listing counts what it gives up itself.
    Now,
    /// It is not.
    UnlessLost,
}

impl RemoteStore {
    #[expect(clippy::new_ret_no_self, reason = "all that is made of it is a store")]
    fn new(location: String, backend: Backend, engine: Engine) -> Result<Arc<dyn Store>> {
        let whole = match &backend {
            Backend::Bucket { buckets, .. } => Some(buckets.location(None)),
            Backend::Swift { container: Some(_), .. } => Some(WHOLE_ACCOUNT.to_owned()),
            Backend::Buckets { .. } | Backend::Swift { container: None, .. } => None,
        };
        Ok(Arc::new(Self { location, whole, backend, engine: Arc::new(engine), shelf: Arc::default() }))
    }

    fn tries(&self) -> &Tries {
        self.engine.tries()
    }

    /// The operator for an object, its name there, and how it is told from others.
    async fn place<'a>(&self, name: &'a ObjectName) -> Result<(Operator, &'a str, Naming)> {
        let whole = name.as_str();
        let (operator, path, naming) = match &self.backend {
            Backend::Bucket { operator, buckets, .. } => (operator.clone(), whole, buckets.naming()),
            Backend::Swift { container: Some(container), .. } => {
                (self.of_container(container).await?, whole, Naming::Etag)
            }
            Backend::Swift { container: None, .. } | Backend::Buckets { .. } => {
                let (container, path) = whole.split_once('/').ok_or_else(|| missing(name))?;
                (self.of_container(container).await?, path, self.naming())
            }
        };
        check_ends(path)?;
        Ok((operator, path, naming))
    }

    fn naming(&self) -> Naming {
        match &self.backend {
            Backend::Bucket { buckets, .. } | Backend::Buckets { buckets, .. } => buckets.naming(),
            Backend::Swift { .. } => Naming::Etag,
        }
    }

    async fn of_container(&self, container: &str) -> Result<Operator> {
        let (Backend::Swift { operators, .. } | Backend::Buckets { operators, .. }) = &self.backend else {
            return Err(Error::new(ErrorKind::StoreIo, "a bucket has no containers"));
        };
        let lock = || operators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(operator) = lock().get(container) {
            return Ok(operator.clone());
        }
        let operator = match &self.backend {
            Backend::Swift { account, .. } => {
                let session = self.tries().run(|_| account.tokens.session()).await?;
                let builder = Swift::default().endpoint(&session.storage_url).container(&encoded(container));
                let transport = Transport::new(
                    account.clients.clone(),
                    Some(Renewed::Swift(account.tokens.clone())),
                    None,
                );
                operator_of(Operator::new(builder), transport)?
            }
            Backend::Bucket { buckets, .. } | Backend::Buckets { buckets, .. } => {
                buckets.operator(container)?
            }
        };
        lock().insert(container.to_owned(), operator.clone());
        Ok(operator)
    }

    async fn stat(&self, name: &ObjectName, trying: Trying) -> Result<(ObjectStat, Source)> {
        let (operator, path, naming) = self.place(name).await?;
        let ask = |_| async { operator.stat(path).await.map_err(|error| Failed::from_opendal(&error)) };
        let meta = match trying {
            Trying::Now => self.tries().run(ask).await,
            Trying::UnlessLost => self.tries().run_for(name, WHOLE, ask).await,
        };
        let meta = meta.map_err(|error| match error.kind() {
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
}

impl Store for RemoteStore {
    fn location(&self) -> &str {
        &self.location
    }

    fn allow_ahead(&self, bytes_max: u64) -> u64 {
        self.shelf.allow(bytes_max)
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
        let (stat, source) = self.engine.wait(self.stat(name, Trying::UnlessLost))?;
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

    fn silence(&self) -> Option<Duration> {
        Some(self.tries().silence())
    }

    fn rest(&self) -> Result<()> {
        self.engine.rest()
    }

    fn part(&self) -> Option<Part<'_>> {
        let (Backend::Bucket { name, .. } | Backend::Swift { container: Some(name), .. }) = &self.backend
        else {
            return None;
        };
        Some(Part { whole: self.whole.as_deref()?, container: name })
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

fn missing(name: &ObjectName) -> Error {
    Error::new(ErrorKind::ObjectNotFound, format!("there is no object {name:?}"))
}
