//! HTTP as all three kinds of stores use it.
//!
//! Problem: OpenDAL signs requests and reads answers, but what it makes of failures differs from service to service, Swift's tokens
//! expire beneath it, and it trusts that a server did what it was asked. Idea: one transport beneath it that sends each request,
//! renews a token, and looks at the answer before anybody reads it.
//!
//! Invariants: an answer that is no success is an error with our kind and words; an answer to a ranged request is that range, and one
//! to a request for a given ETag has it; nothing is sent to another host than the one that was asked.

use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_MATCH, RANGE,
};
use http::{Method, Request, Response, StatusCode};
use opendal::raw::Operation;
use opendal::{Buffer, HttpBody, HttpTransport};
use reqwest::redirect;

use super::engine::{Limits, Progress, Tries};
use super::failure::{self, Failed};
use super::google::GoogleTokens;
use super::names::Names;
use super::settings::Secret;
use super::token::Tokens;
use super::upload::Upload;
use crate::error::{Error, ErrorKind, Result};

/// Time for the name, the connection and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest silence of a server that was asked for something, until its answer begins and in the midst of it.
const READ_TIMEOUT_MAX: Duration = Duration::from_secs(20);

/// How many silences a deadline lasts, so that there is time for another connection.
const SILENCES_MAX: u32 = 3;

/// Connections kept open for the next request.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// Redirections followed, all on one host.
const REDIRECTS_MAX: usize = 5;

/// Bytes of an error's text that are looked at.
const ERROR_BYTES_MAX: usize = 4096;

/// Longest answer that is read whole, a page of a listing for instance: 10,000 names of 1 KiB with what is said about each.
const PAGE_BYTES_MAX: usize = 32 << 20;

/// The header that Swift wants a token in.
pub(super) const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// What Google's objects are named by: in the URL of a request, in a header of its answer.
const IF_GENERATION: &str = "ifGenerationMatch";
const GENERATION: HeaderName = HeaderName::from_static("x-goog-generation");

/// How servers are reached.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The only CA certificates that are believed, a PEM file; the system's where there is none.
    pub ca_file: Option<PathBuf>,
    /// Whether certificates are not checked at all.
    pub is_insecure: bool,
    /// A proxy for all requests; may hold a password.
    pub proxy: Option<Secret>,
}

/// What requests are sent with.
#[derive(Clone)]
pub(super) struct Clients {
    /// For what is asked: silence ends a request before its deadline does.
    pub(super) asking: reqwest::Client,
    /// For what has a body: reqwest takes the time until the answer begins for silence, however long the body is. Who sends has to see that
    /// bytes are taken, as [`Tries::run_sending`] does.
    pub(super) sending: reqwest::Client,
}

/// Clients for `access`. [`ErrorKind::Usage`] when the CA file or the proxy is none.
pub(super) fn clients(access: &Access, limits: Limits) -> Result<Clients> {
    let silence_max = READ_TIMEOUT_MAX.min(limits.deadline / SILENCES_MAX);
    let names = Arc::new(Names::default());
    let build = |builder: reqwest::ClientBuilder| {
        builder.build().map_err(|error| {
            Error::new(ErrorKind::StoreIo, format!("cannot set up HTTPS: {}", failure::story(&error)))
        })
    };
    Ok(Clients {
        asking: build(builder(access, names.clone())?.read_timeout(silence_max))?,
        sending: build(builder(access, names)?)?,
    })
}

fn builder(access: &Access, names: Arc<Names>) -> Result<reqwest::ClientBuilder> {
    static PROVIDER: Once = Once::new();
    // Fails only where the process has one already, which will do.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("cinderfs/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .dns_resolver(names)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .redirect(redirect::Policy::custom(|attempt| {
            let first = attempt.previous().first();
            let stays = first.is_some_and(|first| first.origin() == attempt.url().origin());
            if stays && attempt.previous().len() <= REDIRECTS_MAX { attempt.follow() } else { attempt.stop() }
        }));
    if let Some(file) = &access.ca_file {
        let usage = |why: String| Error::new(ErrorKind::Usage, format!("the CA file {file:?} {why}"));
        let text = std::fs::read(file).map_err(|error| usage(format!("cannot be read: {error}")))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&text)
            .map_err(|error| usage(format!("is not PEM: {}", failure::story(&error))))?;
        if certificates.is_empty() {
            return Err(usage("holds no certificate".to_owned()));
        }
        builder = builder.tls_certs_only(certificates);
    }
    if access.is_insecure {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if let Some(proxy) = &access.proxy {
        // Not quoted: it may hold a password.
        let proxy = reqwest::Proxy::all(proxy.reveal())
            .map_err(|_| Error::new(ErrorKind::Usage, "the proxy's URL is not one"))?;
        builder = builder.proxy(proxy);
    }
    Ok(builder)
}

/// Sends a request and returns the answer, which is a success.
pub(super) async fn send(
    client: &reqwest::Client,
    request: reqwest::Request,
) -> Result<reqwest::Response, Failed> {
    send_to(client, request, failure::of_status).await
}

/// The same, where `told` says what an answer is that is no success.
pub(super) async fn send_to(
    client: &reqwest::Client,
    request: reqwest::Request,
    told: impl FnOnce(&reqwest::Url, StatusCode, &[u8]) -> Failed,
) -> Result<reqwest::Response, Failed> {
    let is_head = request.method() == Method::HEAD;
    let url = request.url().clone();
    let answer = client.execute(request).await.map_err(|error| failure::of_transport(&url, &error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let text = if is_head { Vec::new() } else { head_of(answer).await };
    Err(told(&url, status, &text))
}

/// An answer's body, of no more than [`PAGE_BYTES_MAX`].
pub(super) async fn body_of(answer: reqwest::Response) -> Result<Vec<u8>, Failed> {
    noted_body_of(answer, &Progress::default()).await
}

/// The same, where each piece is noted as it comes.
pub(super) async fn noted_body_of(answer: reqwest::Response, progress: &Progress) -> Result<Vec<u8>, Failed> {
    let url = answer.url().clone();
    let mut body = Vec::new();
    let mut stream = answer.bytes_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| failure::of_transport(&url, &error))?;
        progress.note();
        if body.len() + piece.len() > PAGE_BYTES_MAX {
            return Err(too_long(PAGE_BYTES_MAX));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn too_long(bytes_max: usize) -> Failed {
    let message = format!("an answer has more than {bytes_max} bytes");
    Failed::lasting(Error::new(ErrorKind::LimitExceeded, message))
}

/// What an error's text begins with; nothing where it cannot be read.
async fn head_of(answer: reqwest::Response) -> Vec<u8> {
    let mut head = Vec::new();
    let mut stream = answer.bytes_stream();
    while let Some(Ok(piece)) = stream.next().await {
        let room = ERROR_BYTES_MAX - head.len();
        head.extend_from_slice(&piece[..piece.len().min(room)]);
        if head.len() == ERROR_BYTES_MAX {
            break;
        }
    }
    head
}

/// Tokens that are renewed beneath OpenDAL.
pub(super) enum Renewed {
    /// Requests get that of the moment.
    Swift(Arc<Tokens>),
    /// Requests have one.
    Google(Arc<GoogleTokens>),
}

/// What OpenDAL sends its requests with.
pub(super) struct Transport {
    clients: Clients,
    tokens: Option<Renewed>,
    pages: Option<Pages>,
}

/// How pages of a listing are got. OpenDAL's listing is at its end after a failure and takes any text for an empty page, so
/// neither may reach it: a page is read whole here, as often as it takes, and is one.
pub(super) struct Pages {
    pub(super) tries: Tries,
    /// What stands in each page.
    pub(super) mark: &'static str,
}

impl Transport {
    pub(super) fn new(clients: Clients, tokens: Option<Renewed>, pages: Option<Pages>) -> Self {
        Self { clients, tokens, pages }
    }

    async fn page(&self, request: reqwest::Request, pages: &Pages) -> Result<Response<HttpBody>, Failed> {
        let (request, client) = (&request, &self.clients.asking);
        let get = |progress: Progress| async move {
            let again = request.try_clone().ok_or_else(|| {
                Failed::lasting(Error::new(ErrorKind::StoreIo, "a listing cannot be asked for twice"))
            })?;
            let answer = match &self.tokens {
                Some(Renewed::Google(google)) => {
                    let used = request.headers().get(AUTHORIZATION);
                    let outcome = google.judge(used, send(client, again).await).await;
                    // Sent again, it would have the same token.
                    outcome.map_err(|failed| match failed.is_unknown_token {
                        true => Failed { is_passing: false, ..failed },
                        false => failed,
                    })?
                }
                _ => send(client, again).await?,
            };
            let (status, headers) = (answer.status(), answer.headers().clone());
            let body = noted_body_of(answer, &progress).await?;
            let mark = pages.mark.as_bytes();
            if !body.windows(mark.len()).any(|part| part == mark) {
                let message =
                    format!("{} sent no listing; is it such a server?", failure::shown(request.url()));
                return Err(Failed::lasting(Error::new(ErrorKind::StoreIo, message)));
            }
            Ok((status, headers, Bytes::from(body)))
        };
        let (status, headers, body) = pages.tries.run(get).await.map_err(Failed::lasting)?;
        Ok(whole(status, headers, body))
    }

    async fn exchange(&self, request: Request<Buffer>) -> Result<Response<HttpBody>, Failed> {
        let (parts, body) = request.into_parts();
        let url = reqwest::Url::parse(&parts.uri.to_string()).map_err(|error| {
            Failed::lasting(Error::new(
                ErrorKind::Usage,
                format!("{:?} is no URL: {error}", parts.uri.to_string()),
            ))
        })?;
        let body = body.to_bytes();
        let request = build(&parts.method, &url, parts.headers.clone(), &body);
        match (&self.pages, parts.extensions.get()) {
            (Some(pages), Some(Operation::List)) => return self.page(request, pages).await,
            (Some(pages), Some(Operation::Write)) => {
                let upload = Upload { method: parts.method, url, headers: parts.headers, body };
                return upload.send(&self.clients.sending, &pages.tries).await;
            }
            _ => {}
        }
        let answer = match &self.tokens {
            None => send(&self.clients.asking, request).await?,
            Some(Renewed::Swift(tokens)) => tokens.send(request).await?,
            Some(Renewed::Google(google)) => {
                let used = request.headers().get(AUTHORIZATION).cloned();
                google.judge(used.as_ref(), send(&self.clients.asking, request).await).await?
            }
        };
        if parts.method == Method::GET {
            check(&url, &parts.headers, answer.status(), answer.headers()).map_err(|wrong| {
                let error =
                    |why: &str| Error::new(ErrorKind::StoreIo, format!("{}: {why}", failure::shown(&url)));
                match wrong {
                    Wrong::Range(why) => Failed::wrong(error(&why)),
                    Wrong::Object => Failed::lasting(error("the object was replaced while it was read")),
                }
            })?;
        }
        let bytes_max = if parts.headers.contains_key(RANGE) { usize::MAX } else { PAGE_BYTES_MAX };
        Ok(streamed(answer, parts.method == Method::HEAD, bytes_max))
    }
}

/// An answer that was read already.
pub(super) fn whole(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<HttpBody> {
    let len = body.len() as u64;
    let whole = futures_util::stream::iter([Ok(Buffer::from(body))]);
    let mut response = Response::new(HttpBody::new(whole, Some(len)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn build(method: &Method, url: &reqwest::Url, headers: HeaderMap, body: &Bytes) -> reqwest::Request {
    let mut request = reqwest::Request::new(method.clone(), url.clone());
    *request.headers_mut() = headers;
    if !body.is_empty() {
        *request.body_mut() = Some(body.clone().into());
    }
    request
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        self.exchange(request).await.map_err(Failed::into_opendal)
    }
}

/// What an answer is that was not asked for.
#[derive(Debug)]
enum Wrong {
    /// Other bytes, or all of them.
    Range(String),
    /// Bytes of another object.
    Object,
}

/// Whether the answer to a GET is what was asked for. Some servers do not know what a request names its object by.
fn check(
    url: &reqwest::Url,
    asked: &HeaderMap,
    status: StatusCode,
    answered: &HeaderMap,
) -> Result<(), Wrong> {
    let text = |headers: &HeaderMap, name: HeaderName| {
        headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    if let Some(range) = text(asked, RANGE).and_then(|range| range.strip_prefix("bytes=").map(str::to_owned))
    {
        if status != StatusCode::PARTIAL_CONTENT {
            return Err(Wrong::Range(format!("the server answered {status} when asked for bytes {range}")));
        }
        let got = text(answered, CONTENT_RANGE).unwrap_or_default();
        let got = got.strip_prefix("bytes ").and_then(|got| got.split('/').next()).unwrap_or_default().trim();
        if got != range {
            return Err(Wrong::Range(format!("the server sent bytes {got:?} when asked for {range:?}")));
        }
    }
    let generation =
        url.query_pairs().find(|(key, _)| key == IF_GENERATION).map(|(_, value)| value.into_owned());
    for (wanted, got) in [(text(asked, IF_MATCH), ETAG), (generation, GENERATION)] {
        if let (Some(wanted), Some(got)) = (wanted, text(answered, got))
            && bare_etag(&wanted) != bare_etag(&got)
        {
            return Err(Wrong::Object);
        }
    }
    Ok(())
}

/// An ETag without what servers put around it.
pub(super) fn bare_etag(etag: &str) -> &str {
    let etag = etag.trim();
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')
}

/// The answer as OpenDAL reads it, which keeps pages of listings whole in memory.
fn streamed(answer: reqwest::Response, is_head: bool, bytes_max: usize) -> Response<HttpBody> {
    let mut room = bytes_max;
    let url = answer.url().clone();
    let length = answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer
        .bytes_stream()
        .try_filter(|piece| std::future::ready(!piece.is_empty()))
        .map_err(move |error| failure::of_transport(&url, &error))
        .and_then(move |piece| {
            let fits = room.checked_sub(piece.len());
            room = fits.unwrap_or(0);
            std::future::ready(fits.map(|_| Buffer::from(piece)).ok_or_else(|| too_long(bytes_max)))
        })
        .map_err(Failed::into_opendal);
    let body = HttpBody::new(body, length.filter(|_| !is_head));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(HeaderName, &'static str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (name.clone(), http::HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn an_answer_that_is_not_what_was_asked_for_is_none() {
        let asked = headers(&[(RANGE, "bytes=10-19"), (IF_MATCH, "\"a\"")]);
        let url = |text: &str| reqwest::Url::parse(text).unwrap();
        let is_right = |status, of: &[_]| check(&url("http://h/o"), &asked, status, &headers(of)).is_ok();
        let partial = StatusCode::PARTIAL_CONTENT;
        assert!(is_right(partial, &[(CONTENT_RANGE, "bytes 10-19/100"), (ETAG, "a")]));
        assert!(is_right(partial, &[(CONTENT_RANGE, "bytes 10-19/*")]));
        assert!(!is_right(StatusCode::OK, &[(ETAG, "a")]));
        assert!(!is_right(partial, &[(ETAG, "a")]));
        assert!(!is_right(partial, &[(CONTENT_RANGE, "bytes 10-18/100"), (ETAG, "a")]));
        assert!(!is_right(partial, &[(CONTENT_RANGE, "bytes 0-9/100"), (ETAG, "a")]));
        assert!(!is_right(partial, &[(CONTENT_RANGE, "bytes 10-19/100"), (ETAG, "\"b\"")]));
        let of_google = |at: &'static str| {
            let url = url("http://h/o?alt=media&ifGenerationMatch=12");
            check(&url, &HeaderMap::new(), StatusCode::OK, &headers(&[(GENERATION, at)])).is_ok()
        };
        assert!(of_google("12") && !of_google("13"));
    }

    #[test]
    fn etags_are_compared_without_their_quotes() {
        for etag in ["abc", "\"abc\"", "W/\"abc\"", " \"abc\" "] {
            assert_eq!(bare_etag(etag), "abc");
        }
    }
}
