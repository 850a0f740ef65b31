//! What Swift says beyond OpenDAL: which containers an account has, and which objects a container has.
//!
//! OpenDAL's own listing tells neither the ETag of an SLO nor that a DLO's length is not known; both come from here, a page at a time.

use std::sync::Arc;

use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::engine::{Progress, Tries};
use super::failure::Failed;
use super::http::{Clients, noted_body_of};
use super::listing::{CONTAINERS_MAX, too_many};
use super::token::Tokens;
use crate::error::{Error, ErrorKind, Result};

/// A container, as the account lists it.
#[derive(Deserialize)]
struct Container {
    name: String,
}

/// An object, as its container lists it.
#[derive(Deserialize)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// The MD5 of the stored bytes; of the manifest, for an SLO.
    pub(super) hash: String,
    /// What HEAD says of an SLO.
    pub(super) slo_etag: Option<String>,
    pub(super) last_modified: String,
}

/// An account, by its tokens.
pub(super) struct Account {
    pub(super) clients: Clients,
    pub(super) tokens: Arc<Tokens>,
}

impl Account {
    /// The names of all containers.
    pub(super) async fn containers(&self, tries: &Tries) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.pages(
            tries,
            ("", ""),
            CONTAINERS_MAX,
            |container: &Container| &container.name,
            |container| {
                names.push(container.name);
                Ok(())
            },
        )
        .await?;
        Ok(names)
    }

    /// All objects of a container whose names begin with `prefix`, each handed to `take` as its page comes, whose error
    /// ends it. [`ErrorKind::LimitExceeded`] when the server lists more than `listed_max`.
    pub(super) async fn objects(
        &self,
        tries: &Tries,
        container: &str,
        prefix: &str,
        listed_max: u64,
        take: impl FnMut(Listed) -> Result<()>,
    ) -> Result<()> {
        check_container(container)?;
        let below = format!("/{}", encoded(container));
        self.pages(tries, (&below, prefix), listed_max, |object: &Listed| &object.name, take).await
    }

    /// Pages of the listing of what lies below the account and begins with a prefix, from the first to an empty one.
    async fn pages<T: DeserializeOwned>(
        &self,
        tries: &Tries,
        (below, prefix): (&str, &str),
        listed_max: u64,
        name: impl Fn(&T) -> &String,
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let mut marker = String::new();
        let mut listed: u64 = 0;
        loop {
            let page: Vec<T> = tries.run(|progress| self.page(below, prefix, &marker, progress)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            let last = name(last).clone();
            // Swift sorts by bytes; what does not go on would never end.
            if last <= marker {
                let message = format!("the listing goes back from {marker:?} to {last:?}");
                return Err(Error::new(ErrorKind::StoreIo, message));
            }
            marker = last;
            listed += page.len() as u64;
            if listed > listed_max {
                return Err(too_many(listed_max));
            }
            page.into_iter().try_for_each(&mut take)?;
        }
    }

    /// The URL of what lies `below` the account, which is encoded.
    pub(super) async fn url(&self, below: &str) -> Result<reqwest::Url, Failed> {
        let session = self.tokens.session().await?;
        reqwest::Url::parse(&format!("{}{below}", session.storage_url)).map_err(|error| {
            let message = format!("the storage URL {:?} is none: {error}", session.storage_url);
            Failed::lasting(Error::new(ErrorKind::StoreIo, message))
        })
    }

    async fn page<T: DeserializeOwned>(
        &self,
        below: &str,
        prefix: &str,
        marker: &str,
        progress: Progress,
    ) -> Result<Vec<T>, Failed> {
        let mut url = self.url(below).await?;
        url.query_pairs_mut().append_pair("format", "json");
        if !prefix.is_empty() {
            url.query_pairs_mut().append_pair("prefix", prefix);
        }
        if !marker.is_empty() {
            url.query_pairs_mut().append_pair("marker", marker);
        }
        let answer = self.tokens.send(reqwest::Request::new(Method::GET, url)).await?;
        // An empty container may answer without a body.
        let is_empty = answer.status() == http::StatusCode::NO_CONTENT;
        let body = noted_body_of(answer, &progress).await?;
        if is_empty {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&body).map_err(|error| {
            Failed::wrong(Error::new(
                ErrorKind::StoreIo,
                format!("a listing is not what Swift writes: {error}"),
            ))
        })
    }
}

/// Refuses what a URL's path takes for the account itself or for what is above it.
pub(super) fn check_container(name: &str) -> Result<()> {
    if matches!(name, "" | "." | "..") {
        let message = format!("container name {name:?} cannot be asked for");
        return Err(Error::new(ErrorKind::UnsafeName, message));
    }
    Ok(())
}

/// A name as a component of a URL's path; not for those that [`check_container`] refuses.
pub(super) fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(byte as char),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_are_encoded_as_one_component() {
        assert_eq!(encoded("My backups/ü?"), "My%20backups%2F%C3%BC%3F");
        assert_eq!(encoded("volume-backups_1.x~"), "volume-backups_1.x~");
    }

    #[test]
    fn a_listing_is_read_as_swift_writes_it() {
        let text = r#"[{"bytes": 0, "hash": "d41d8cd98f00b204e9800998ecf8427e", "name": "a/b_metadata",
            "content_type": "application/octet-stream", "last_modified": "2026-02-01T13:04:05.123456"},
            {"bytes": 7, "hash": "0", "slo_etag": "\"1\"", "name": "c", "last_modified": ""}]"#;
        let listed: Vec<Listed> = serde_json::from_str(text).unwrap();
        assert_eq!((listed[0].name.as_str(), listed[0].bytes), ("a/b_metadata", 0));
        assert_eq!(listed[1].slo_etag.as_deref(), Some("\"1\""));
    }
}
