//! What lies beside the container or bucket that is the store.
//!
//! Problem: an incremental may lie in another container than the backup it builds on, and nothing in either says so; who deletes the one
//! has to know of the other. Idea: the same account or server once more, with all its containers as folders, of which only those names are
//! listed that can be meant.
//!
//! Invariant: a container that was not looked into is told as such, or the look fails.

use std::sync::{Arc, Mutex};

use super::listing::{Bounds, LISTED_MAX, Wanted};
use super::{Backend, RemoteStore, WHOLE_ACCOUNT};
use crate::error::{Error, ErrorKind, Result};
use crate::store::objects::{Beside, Stop};
use crate::store::{Listing, Store as _};

/// Containers that are looked into, at most: each takes a request or more.
const LOOKED_INTO_MAX: usize = 10_000;

impl RemoteStore {
    /// The account or server that this is one container of, and its name there.
    fn of_whole(&self) -> Option<(Arc<Self>, &str)> {
        let (backend, location, name) = match &self.backend {
            Backend::Bucket { buckets, name, .. } => {
                let backend = Backend::Buckets { buckets: buckets.clone(), operators: Mutex::default() };
                (backend, buckets.location(None), name)
            }
            Backend::Swift { account, container: Some(name), .. } => {
                let (account, operators) = (account.clone(), Mutex::default());
                (Backend::Swift { account, container: None, operators }, WHOLE_ACCOUNT.to_owned(), name)
            }
            Backend::Buckets { .. } | Backend::Swift { container: None, .. } => return None,
        };
        let (engine, shelf) = (self.engine.clone(), self.shelf.clone());
        Some((Arc::new(Self { location, whole: None, backend, engine, shelf }), name))
    }

    /// As [`beside`](crate::store::objects::ObjectStore::beside).
    pub(super) fn look_beside(
        &self,
        prefixes: &[String],
        suffix: &str,
        stop: Stop<'_>,
    ) -> Result<Option<Beside>> {
        let Some((whole, ours)) = self.of_whole() else { return Ok(None) };
        let look = async {
            let mut names = whole.containers().await?;
            names.retain(|name| name != ours);
            if names.len() > LOOKED_INTO_MAX {
                let message = format!(
                    "{:?} has {} containers, of which at most {LOOKED_INTO_MAX} are looked into",
                    whole.location(),
                    names.len()
                );
                return Err(Error::new(ErrorKind::LimitExceeded, message));
            }
            let containers = names.len();
            let (bounds, mut objects) = (Bounds::new(LISTED_MAX), Vec::new());
            for prefix in prefixes {
                let wanted = Wanted { prefix, suffix, also: None };
                objects.extend(whole.of_each(names.clone(), wanted, &bounds).await?);
            }
            objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            objects.dedup_by(|a, b| a.name == b.name);
            Ok((containers, Listing { objects, unreadable: bounds.into_reports(whole.location()) }))
        };
        let (containers, listing) = self.unless(stop, look)?;
        Ok(Some(Beside { store: whole.clone(), containers, listing }))
    }
}
