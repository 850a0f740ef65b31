//! Swift's tokens: got from tempauth (v1) or Keystone (v3), and got again when they have expired.
//!
//! Problem: OpenDAL sends the one token it was given, and a mount lives longer than that. Idea: [`Tokens`] has the session of the moment; who
//! is told that its token is unknown asks for another one, once.
//!
//! A server may also not know a token that it has just given: its proxies share no cache, or the store and who gives tokens disagree. One more
//! token settles the first, and nothing the second, so then the credentials count as refused.
//!
//! Invariants: requests that fail together renew once; a password goes to the authentication URL only and is in no message; credentials that
//! were refused are not tried again for a while, so that no server locks a user out on our account, and nobody gets token after token in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderValue};
use http::{HeaderName, Method};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::failure::{Failed, of_token_status};
use super::http::{Clients, TOKEN, body_of, send, send_to};
use super::settings::{Domain, Identity, SwiftAuth, SwiftSettings, check_plain};
use crate::error::{Error, ErrorKind};

const SUBJECT_TOKEN: HeaderName = HeaderName::from_static("x-subject-token");

/// How long a refusal is believed. Keystone locks a user out that is refused too often (`lockout_failure_attempts`), and each further try can prolong it.
const REFUSAL_TIME: Duration = Duration::from_secs(30);

/// How many tokens in a row may be unknown from the start before the credentials count as refused.
const UNKNOWN_TOKENS_MAX: u32 = 2;

/// How often one request is sent again with another token. More than one only where others' requests find their tokens known.
const RENEWALS_MAX: u32 = 2;

/// What one authentication gave.
pub(super) struct Session {
    token: HeaderValue,
    /// The account's URL, without a slash at its end.
    pub(super) storage_url: String,
    /// Whether the store has known the token at any time.
    was_known: AtomicBool,
}

impl Session {
    fn new(token: &str, storage_url: &str) -> Result<Self, Failed> {
        // A server may tell a URL that settings could not.
        check_plain("the storage URL", storage_url).map_err(Failed::lasting)?;
        let storage_url = storage_url.trim_end_matches('/').to_owned();
        Ok(Self { token: header("the token", token)?, storage_url, was_known: AtomicBool::new(false) })
    }

    /// Notes what a request came to that had the token.
    fn note<T>(&self, outcome: &Result<T, Failed>) {
        // Where no answer came, nothing is known.
        if outcome.as_ref().map_or_else(|failed| failed.is_answer && !failed.is_unknown_token, |_| true) {
            self.was_known.store(true, Ordering::Relaxed);
        }
    }
}

/// Credentials that were not accepted.
struct Refusal {
    at: Instant,
    error: Error,
}

impl Refusal {
    fn is_believed(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < REFUSAL_TIME
    }
}

/// What the last authentications came to.
#[derive(Default)]
struct Known {
    session: Option<Arc<Session>>,
    refusal: Option<Refusal>,
    /// Tokens in a row that the store has not known at any time.
    unknown_tokens: u32,
}

/// The session of the moment.
pub(super) struct Tokens {
    clients: Clients,
    settings: SwiftSettings,
    known: Mutex<Known>,
}

impl Tokens {
    pub(super) fn new(clients: Clients, settings: SwiftSettings) -> Self {
        Self { clients, settings, known: Mutex::default() }
    }

    /// The session; authenticates where there is none yet.
    pub(super) async fn session(&self) -> Result<Arc<Session>, Failed> {
        self.session_unless(None).await
    }

    /// The session, or a new one where it is that which was `stale` by what its request came to.
    async fn session_unless(&self, stale: Option<(&Arc<Session>, &Failed)>) -> Result<Arc<Session>, Failed> {
        let mut known = self.known.lock().await;
        if let Some(session) = &known.session
            && !stale.is_some_and(|(stale, _)| Arc::ptr_eq(stale, session))
        {
            return Ok(session.clone());
        }
        if let Some(refusal) = &known.refusal
            && refusal.is_believed(Instant::now())
        {
            return Err(Failed::lasting(refusal.error.clone()));
        }
        if let Some((stale, failed)) = stale {
            let was_known = stale.was_known.load(Ordering::Relaxed);
            known.unknown_tokens = if was_known { 0 } else { known.unknown_tokens + 1 };
            if known.unknown_tokens == UNKNOWN_TOKENS_MAX {
                let error =
                    failed.error.clone().context("the store does not know the tokens it was just given");
                let refusal = Refusal { at: Instant::now(), error: error.clone() };
                *known = Known { refusal: Some(refusal), ..Known::default() };
                return Err(Failed::lasting(error));
            }
            tracing::debug!("the Swift token has expired, another one is asked for");
        }
        match authenticate(&self.clients.asking, &self.settings).await {
            Ok(session) => {
                let session = Arc::new(session);
                (known.session, known.refusal) = (Some(session.clone()), None);
                Ok(session)
            }
            Err(mut failed) => {
                let is_refused = std::mem::take(&mut failed.is_unknown_token);
                failed.error = failed.error.context("cannot get a Swift token");
                if is_refused {
                    let refusal = Refusal { at: Instant::now(), error: failed.error.clone() };
                    *known = Known { refusal: Some(refusal), ..Known::default() };
                }
                Err(failed)
            }
        }
    }

    /// Sends a request whose body comes once. A token that is not known any more is a failure that passes, with the next one.
    pub(super) async fn send_once(&self, mut request: reqwest::Request) -> Result<reqwest::Response, Failed> {
        let session = self.session().await?;
        request.headers_mut().insert(TOKEN, session.token.clone());
        let outcome = send(&self.clients.sending, request).await;
        session.note(&outcome);
        match outcome {
            Err(mut failed) if failed.is_unknown_token && self.settings.auth.is_renewable() => {
                let renewed = self.session_unless(Some((&session, &failed))).await?;
                failed.is_passing = renewed.token != session.token;
                Err(failed)
            }
            outcome => outcome,
        }
    }

    /// Sends a request with the token; again with a new one where the server does not know it any more.
    pub(super) async fn send(&self, mut request: reqwest::Request) -> Result<reqwest::Response, Failed> {
        let mut session = self.session().await?;
        let mut renewals = 0;
        loop {
            request.headers_mut().insert(TOKEN, session.token.clone());
            // Bodies that are streams come once; those of ours do not.
            let again =
                request.try_clone().filter(|_| renewals < RENEWALS_MAX && self.settings.auth.is_renewable());
            let outcome = send(&self.clients.asking, request).await;
            session.note(&outcome);
            match (outcome, again) {
                (Err(failed), Some(again)) if failed.is_unknown_token => {
                    session = self.session_unless(Some((&session, &failed))).await?;
                    (request, renewals) = (again, renewals + 1);
                }
                (outcome, _) => return outcome,
            }
        }
    }
}

async fn authenticate(client: &reqwest::Client, settings: &SwiftSettings) -> Result<Session, Failed> {
    match &settings.auth {
        SwiftAuth::Token { token, storage_url } => Session::new(token.reveal(), storage_url),
        SwiftAuth::V1 { url, user, key } => {
            let mut request = reqwest::Request::new(Method::GET, parsed(url)?);
            request.headers_mut().insert(HeaderName::from_static("x-auth-user"), header("the user", user)?);
            request
                .headers_mut()
                .insert(HeaderName::from_static("x-auth-key"), header("the key", key.reveal())?);
            let answer = send_to(client, request, of_token_status).await?;
            let text = |name: &'static str| text_of(answer.headers(), &HeaderName::from_static(name));
            let token = text("x-auth-token").or_else(|| text("x-storage-token"));
            let storage = settings.storage_url.clone().or_else(|| text("x-storage-url"));
            match (token, storage) {
                (Some(token), Some(storage)) => Session::new(&token, &storage),
                _ => Err(strange(url, "no token and storage URL in its answer")),
            }
        }
        SwiftAuth::V3 { url, identity } => {
            let mut request = reqwest::Request::new(Method::POST, parsed(&tokens_url(url))?);
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(http::header::CONTENT_TYPE, json);
            *request.body_mut() = Some(document(identity).to_string().into());
            let answer = send_to(client, request, of_token_status).await?;
            let token = text_of(answer.headers(), &SUBJECT_TOKEN);
            let body = body_of(answer).await?;
            let told: Value =
                serde_json::from_slice(&body).map_err(|_| strange(url, "no JSON in its answer"))?;
            let token = token.ok_or_else(|| strange(url, "no token in its answer"))?;
            Session::new(&token, &storage_url(settings, url, &told)?)
        }
    }
}

/// The account's URL: as set, or made of a prefix and the project, or what the catalogue says.
fn storage_url(settings: &SwiftSettings, url: &str, told: &Value) -> Result<String, Failed> {
    if let Some(storage) = &settings.storage_url {
        return Ok(storage.clone());
    }
    if let Some(prefix) = &settings.storage_url_prefix {
        let project = told["token"]["project"]["id"].as_str();
        return project
            .map(|project| format!("{prefix}{project}"))
            .ok_or_else(|| strange(url, "a token without a project; backups lie in a project's account"));
    }
    let region = settings.region.as_deref();
    let interface = settings.interface.as_deref().unwrap_or("public");
    catalogued(told, region, interface).ok_or_else(|| {
        let place = region.map_or_else(String::new, |region| format!(" in region {region:?}"));
        strange(url, &format!("no {interface} object-store endpoint{place} in its catalogue"))
    })
}

/// The endpoint of the object store that `interface` names.
fn catalogued(told: &Value, region: Option<&str>, interface: &str) -> Option<String> {
    let services = told["token"]["catalog"].as_array()?;
    let store = services.iter().filter(|service| service["type"] == "object-store");
    let mut endpoints = store.filter_map(|service| service["endpoints"].as_array()).flatten();
    let found = endpoints.find(|endpoint| {
        let is_there =
            region.is_none_or(|region| endpoint["region"] == region || endpoint["region_id"] == region);
        endpoint["interface"] == interface && is_there
    })?;
    found["url"].as_str().map(str::to_owned)
}

/// What Keystone is asked with.
fn document(identity: &Identity) -> Value {
    let domain = |domain: &Domain| match domain {
        Domain::Id(id) => json!({ "id": id }),
        Domain::Name(name) => json!({ "name": name }),
    };
    match identity {
        Identity::Password { user, user_id, user_domain, password, project, project_id, project_domain } => {
            let mut who = json!({ "password": password.reveal() });
            match user_id {
                Some(id) => who["id"] = json!(id),
                None => {
                    who["name"] = json!(user);
                    who["domain"] = domain(user_domain);
                }
            }
            let mut auth = json!({ "identity": { "methods": ["password"], "password": { "user": who } } });
            match (project_id, project) {
                (Some(id), _) => auth["scope"] = json!({ "project": { "id": id } }),
                (None, Some(name)) => {
                    auth["scope"] = json!({ "project": { "name": name, "domain": domain(project_domain) } });
                }
                // The user's default project.
                (None, None) => {}
            }
            json!({ "auth": auth })
        }
        Identity::ApplicationCredential { id, name, user, user_domain, secret } => {
            let mut credential = json!({ "secret": secret.reveal() });
            match id {
                Some(id) => credential["id"] = json!(id),
                None => {
                    credential["name"] = json!(name);
                    credential["user"] = json!({ "name": user, "domain": domain(user_domain) });
                }
            }
            json!({ "auth": { "identity": {
                "methods": ["application_credential"], "application_credential": credential } } })
        }
    }
}

/// Where Keystone gives tokens: `url` may end with its version or not.
fn tokens_url(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if url.ends_with("/v3") { format!("{url}/auth/tokens") } else { format!("{url}/v3/auth/tokens") }
}

fn text_of(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// A secret for a header.
fn header(what: &str, text: &str) -> Result<HeaderValue, Failed> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        // As of a value that stands on the line below its option.
        let why =
            if text.starts_with('\n') { "begins with a line break" } else { "holds what no header may hold" };
        Failed::lasting(Error::new(ErrorKind::Usage, format!("{what} {why}")))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn parsed(url: &str) -> Result<reqwest::Url, Failed> {
    reqwest::Url::parse(url).map_err(|error| {
        Failed::lasting(Error::new(
            ErrorKind::Usage,
            format!("the authentication URL {url:?} is none: {error}"),
        ))
    })
}

fn strange(url: &str, what: &str) -> Failed {
    Failed::lasting(Error::new(ErrorKind::StoreIo, format!("{url:?} gave {what}")))
}

#[cfg(test)]
mod tests {
    use super::super::settings::Secret;
    use super::*;

    #[test]
    fn a_storage_url_that_a_server_tells_has_no_password() {
        let failed = Session::new("t", "http://u:hunter2@h/v1/a").err().unwrap();
        assert!(!failed.error.to_string().contains("hunter2"), "{}", failed.error);
        assert_eq!(Session::new("t", "http://h/v1/a/").ok().unwrap().storage_url, "http://h/v1/a");
    }

    #[test]
    fn what_cannot_be_sent_is_named() {
        let told = |text: &str| header("the key", text).unwrap_err().error.to_string();
        assert_eq!(told("\nhunter2"), "the key begins with a line break");
        assert_eq!(told("hunter2\r"), "the key holds what no header may hold");
    }

    #[test]
    fn a_refusal_is_believed_for_a_while() {
        let refusal = Refusal { at: Instant::now(), error: Error::new(ErrorKind::AccessDenied, "no") };
        assert!(refusal.is_believed(refusal.at + REFUSAL_TIME / 2));
        assert!(!refusal.is_believed(refusal.at + REFUSAL_TIME));
    }

    #[test]
    fn the_tokens_url_has_its_version_once() {
        for url in ["http://k:5000", "http://k:5000/", "http://k:5000/v3", "http://k:5000/v3/"] {
            assert_eq!(tokens_url(url), "http://k:5000/v3/auth/tokens");
        }
        assert_eq!(tokens_url("https://h/identity"), "https://h/identity/v3/auth/tokens");
    }

    #[test]
    fn the_catalogues_endpoint_of_the_region_and_the_interface_is_taken() {
        let endpoint = |interface, region, url| json!({"interface": interface, "region": region, "url": url});
        let told = json!({"token": {"catalog": [
            {"type": "volumev3", "endpoints": [endpoint("public", "a", "http://cinder")]},
            {"type": "object-store", "endpoints": [
                endpoint("internal", "a", "http://i"), endpoint("public", "a", "http://a"),
                endpoint("public", "b", "http://b")]}]}});
        assert_eq!(catalogued(&told, None, "public").as_deref(), Some("http://a"));
        assert_eq!(catalogued(&told, Some("b"), "public").as_deref(), Some("http://b"));
        assert_eq!(catalogued(&told, Some("c"), "public"), None);
        assert_eq!(catalogued(&told, Some("a"), "internal").as_deref(), Some("http://i"));
        assert_eq!(catalogued(&told, Some("b"), "internal"), None);
        assert_eq!(catalogued(&json!({"token": {"catalog": 7}}), None, "public"), None);
    }

    #[test]
    fn keystone_is_asked_in_its_own_words() {
        let named = |name: &str| Domain::Name(name.to_owned());
        let identity = Identity::Password {
            user: "u".into(),
            user_id: None,
            user_domain: named("D"),
            password: Secret::new("p"),
            project: Some("x".into()),
            project_id: None,
            project_domain: Domain::Id("default".into()),
        };
        let expected = json!({"auth": {
            "identity": {"methods": ["password"],
                "password": {"user": {"name": "u", "domain": {"name": "D"}, "password": "p"}}},
            "scope": {"project": {"name": "x", "domain": {"id": "default"}}}}});
        assert_eq!(document(&identity), expected);
        let identity = Identity::ApplicationCredential {
            id: Some("i".into()),
            name: None,
            user: None,
            user_domain: named("D"),
            secret: Secret::new("s"),
        };
        let expected = json!({"auth": {"identity": {"methods": ["application_credential"],
            "application_credential": {"id": "i", "secret": "s"}}}});
        assert_eq!(document(&identity), expected);
    }
}
