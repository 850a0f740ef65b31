//! Addresses of servers by their names.
//!
//! Problem: a mount outlives outages of name servers, and a process that gave up its rights may not be able to read an `/etc/resolv.conf` that
//! was replaced meanwhile. Idea: the system is asked each time, and where it has no answer, its last one holds: the servers of a store
//! move seldom.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Names remembered, at most. A store has one to three; servers choose those of redirections and catalogues.
const NAMES_MAX: usize = 64;

/// Looks up names, and remembers what was found.
#[derive(Default)]
pub(super) struct Names {
    known: Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>,
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let known = self.known.clone();
        Box::pin(async move {
            // The port is put in by the connection.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found = found.map(Iterator::collect::<Vec<_>>);
            let found = remembered(&known, name.as_str(), found)?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// What was found, or was found before.
fn remembered(
    known: &Mutex<HashMap<String, Vec<SocketAddr>>>,
    name: &str,
    found: std::io::Result<Vec<SocketAddr>>,
) -> std::io::Result<Vec<SocketAddr>> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    match found {
        Ok(found) => {
            if known.len() < NAMES_MAX || known.contains_key(name) {
                known.insert(name.to_owned(), found.clone());
            }
            Ok(found)
        }
        Err(error) => match known.get(name) {
            Some(last) => {
                tracing::debug!(name, "cannot be looked up, so its last addresses are used: {error}");
                Ok(last.clone())
            }
            None => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_holds_until_there_is_another() {
        let known = Mutex::default();
        let address = |last: u8| vec![SocketAddr::from(([127, 0, 0, last], 0))];
        let failed = || Err(std::io::Error::other("no name server"));
        assert!(remembered(&known, "a", failed()).is_err());
        assert_eq!(remembered(&known, "a", Ok(address(1))).unwrap(), address(1));
        assert_eq!(remembered(&known, "a", failed()).unwrap(), address(1));
        assert_eq!(remembered(&known, "a", Ok(address(2))).unwrap(), address(2));
        assert_eq!(remembered(&known, "a", failed()).unwrap(), address(2));
        assert!(remembered(&known, "b", failed()).is_err());
    }
}
