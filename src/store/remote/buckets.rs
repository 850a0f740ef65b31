//! The buckets of a server of S3 or Google's: one of them opened, and which there are.
//!
//! Problem: a chain of backups may span buckets, and OpenDAL knows one bucket at a time. Idea: what is needed to reach a bucket is kept
//! without its name, and the list of names, which OpenDAL cannot ask for, is one request of our own, signed by what it signs with.
//!
//! Invariant: a list that cannot be had, or is not one, is an error and never an empty one.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use http::Method;
use http::header::HOST;
use opendal::services::{Gcs, S3};
use opendal::{HttpTransporter, Operator};
use reqsign_aws_v4::{Credential, DefaultCredentialProvider, RequestSigner, StaticCredentialProvider};
use reqsign_core::{Context, OsEnv, ProvideCredentialChain, Signer};
use reqsign_file_read_tokio::TokioFileRead;
use reqsign_google as google;
use reqwest::Url;
use serde::Deserialize;

use super::engine::Tries;
use super::failure::Failed;
use super::google::{GoogleTokens, SCOPE};
use super::http::{Clients, Pages, Renewed, Transport, body_of, clients, send};
use super::listing::{CONTAINERS_MAX, too_many};
use super::settings::{GcsSettings, S3Settings, check_plain};
use super::told::Naming;
use crate::error::{Error, ErrorKind, Result};

/// What stands in each list of S3's buckets.
const MARK: &str = "<ListAllMyBucketsResult";

/// Most bytes of a credential file that are looked at; it has some 2 KiB.
const CREDENTIAL_BYTES_MAX: u64 = 1 << 20;

/// Access to the buckets of a server.
pub(super) struct Buckets {
    kind: Kind,
    clients: Clients,
    tries: Tries,
}

enum Kind {
    S3(Box<S3Settings>, Signer<Credential>),
    /// Without tokens, requests are sent without credentials.
    Gcs(Box<GcsSettings>, Option<(Arc<GoogleTokens>, Signer<google::Credential>)>),
}

impl Buckets {
    pub(super) fn s3(settings: S3Settings, tries: Tries) -> Result<Self> {
        if let Some(endpoint) = &settings.endpoint {
            check_plain("the endpoint", endpoint)?;
        }
        let clients = clients(&settings.access, settings.limits)?;
        let signer = signer_of(&settings, &clients);
        Ok(Self { kind: Kind::S3(Box::new(settings), signer), clients, tries })
    }

    pub(super) fn gcs(mut settings: GcsSettings, tries: Tries) -> Result<Self> {
        if let Some(endpoint) = &settings.endpoint {
            check_plain("the endpoint", endpoint)?;
        }
        if let Some(file) = &mut settings.credential_file {
            // OpenDAL only says that there are no credentials.
            let failed = |error| {
                let what = format!("cannot read the credential file {file:?}");
                Error::caused_by(ErrorKind::AccessDenied, what, error)
            };
            // It is read again later, in another working directory.
            let path = std::path::absolute(&*file).map_err(failed)?;
            let mut text = Vec::new();
            let read =
                File::open(&path).and_then(|opened| opened.take(CREDENTIAL_BYTES_MAX).read_to_end(&mut text));
            read.map_err(failed)?;
            // Of what is in it only the place is told.
            let keys: serde_json::Value = serde_json::from_slice(&text).map_err(|error| {
                let at = format!("line {}, column {}", error.line(), error.column());
                Error::new(ErrorKind::AccessDenied, format!("the credential file {file:?} is not JSON: {at}"))
            })?;
            if let Some(host) = keys.get("token_uri").and_then(|uri| others_host(uri.as_str()?)) {
                let what = format!("the credential file {file:?} names {host:?} in token_uri");
                let message = format!("{what}, and tokens are asked for at oauth2.googleapis.com only");
                return Err(Error::new(ErrorKind::AccessDenied, message));
            }
            *file = path.to_string_lossy().into_owned();
        }
        let clients = clients(&settings.access, settings.limits)?;
        let tokens = (!settings.is_anonymous).then(|| {
            let tokens = Arc::new(GoogleTokens::new(settings.credential_file.as_deref()));
            let signer = google::RequestSigner::new("storage").with_scope(SCOPE);
            let signer = Signer::new(context_of(&clients), tokens.lender(), signer);
            (tokens, signer)
        });
        Ok(Self { kind: Kind::Gcs(Box::new(settings), tokens), clients, tries })
    }

    /// How objects are told from others of their name.
    pub(super) fn naming(&self) -> Naming {
        match &self.kind {
            Kind::S3(..) => Naming::Etag,
            Kind::Gcs(..) => Naming::Generation,
        }
    }

    /// What people call a bucket, or all of them.
    pub(super) fn location(&self, bucket: Option<&str>) -> String {
        let (scheme, endpoint) = match &self.kind {
            Kind::S3(settings, _) => ("s3", &settings.endpoint),
            Kind::Gcs(settings, _) => ("gs", &settings.endpoint),
        };
        let bucket = bucket.unwrap_or_default();
        match endpoint {
            Some(endpoint) => format!("{scheme}://{bucket}?endpoint={endpoint}"),
            None => format!("{scheme}://{bucket}"),
        }
    }

    /// What requests for objects of a bucket go through. Nothing is asked.
    pub(super) fn operator(&self, bucket: &str) -> Result<Operator> {
        match &self.kind {
            Kind::S3(settings, _) => {
                let mut builder = S3::default()
                    .bucket(bucket)
                    .region(&settings.region)
                    // It is for machines at Amazon, and elsewhere an address that hangs.
                    .disable_ec2_metadata();
                if let Some(endpoint) = &settings.endpoint {
                    builder = builder.endpoint(endpoint);
                }
                if let Some((access, secret)) = &settings.keys {
                    builder = builder
                        .access_key_id(access.reveal())
                        .secret_access_key(secret.reveal())
                        .disable_config_load();
                }
                if let Some(token) = &settings.session_token {
                    builder = builder.session_token(token.reveal());
                }
                if let Some((algorithm, key)) = &settings.customer_key {
                    builder =
                        builder.server_side_encryption_with_customer_key(algorithm, key.reveal().as_bytes());
                }
                super::operator_of(Operator::new(builder), self.transport("<ListBucketResult"))
            }
            Kind::Gcs(settings, tokens) => {
                let mut builder = Gcs::default().bucket(bucket);
                if let Some(endpoint) = &settings.endpoint {
                    builder = builder.endpoint(endpoint);
                }
                builder = match tokens {
                    Some((tokens, _)) => builder.credential_provider_chain(tokens.lender()),
                    None => builder.skip_signature(),
                };
                super::operator_of(Operator::new(builder), self.transport("storage#objects"))
            }
        }
    }

    fn transport(&self, mark: &'static str) -> Transport {
        let pages = Pages { tries: self.tries.clone(), mark };
        let renewed = match &self.kind {
            Kind::Gcs(_, Some((tokens, _))) => Some(Renewed::Google(tokens.clone())),
            Kind::Gcs(_, None) | Kind::S3(..) => None,
        };
        Transport::new(self.clients.clone(), renewed, Some(pages))
    }

    /// The names of all buckets that these credentials may list. [`ErrorKind::AccessDenied`] where they may list none.
    pub(super) async fn names(&self) -> Result<Vec<String>> {
        let url = self.list_url()?;
        let (mut names, mut token) = (Vec::new(), None);
        loop {
            let page = self.tries.run(|_| self.page(&url, token.as_deref())).await?;
            let told = match &self.kind {
                Kind::S3(..) => names_of_s3(&page),
                Kind::Gcs(..) => names_of_google(&page),
            };
            let (more, next) =
                told.ok_or_else(|| Error::new(ErrorKind::StoreIo, "the server sent no list of buckets"))?;
            names.extend(more);
            if names.len() as u64 > CONTAINERS_MAX {
                return Err(too_many(CONTAINERS_MAX));
            }
            match next {
                Some(next) if Some(&next) == token.as_ref() => {
                    return Err(Error::new(ErrorKind::StoreIo, "the list of buckets goes round in a circle"));
                }
                Some(next) => token = Some(next),
                None => return Ok(names),
            }
        }
    }

    /// Where the list is asked for.
    fn list_url(&self) -> Result<Url> {
        let (endpoint, path) = match &self.kind {
            Kind::S3(settings, _) => {
                let usual = || format!("https://s3.{}.amazonaws.com", settings.region);
                (settings.endpoint.clone().unwrap_or_else(usual), "")
            }
            Kind::Gcs(settings, _) => {
                let usual = || "https://storage.googleapis.com".to_owned();
                (settings.endpoint.clone().unwrap_or_else(usual), "storage/v1/b")
            }
        };
        let endpoint = if endpoint.contains("://") { endpoint } else { format!("https://{endpoint}") };
        let mut url = Url::parse(&format!("{}/{path}", endpoint.trim_end_matches('/'))).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("endpoint {endpoint:?} is no URL: {error}"))
        })?;
        if let Kind::Gcs(settings, _) = &self.kind {
            let project = settings.project().ok_or_else(|| {
                let message = "the buckets cannot be listed: set GOOGLE_CLOUD_PROJECT to the project's id";
                Error::new(ErrorKind::AccessDenied, message)
            })?;
            url.query_pairs_mut()
                .append_pair("project", &project)
                .append_pair("fields", "kind,nextPageToken,items/name");
        }
        Ok(url)
    }

    async fn page(&self, url: &Url, token: Option<&str>) -> Result<String, Failed> {
        let mut url = url.clone();
        if let Some(token) = token {
            let key = match &self.kind {
                Kind::S3(..) => "continuation-token",
                Kind::Gcs(..) => "pageToken",
            };
            url.query_pairs_mut().append_pair(key, token);
        }
        let malformed = |error: http::Error| {
            Failed::lasting(Error::caused_by(ErrorKind::Usage, "the endpoint cannot be asked", error))
        };
        let request = http::Request::builder().method(Method::GET).uri(url.as_str()).body(());
        let (mut parts, ()) = request.map_err(malformed)?.into_parts();
        let signed = match &self.kind {
            Kind::S3(_, signer) => signer.sign(&mut parts, None).await,
            Kind::Gcs(_, Some((_, signer))) => signer.sign(&mut parts, None).await,
            Kind::Gcs(_, None) => Ok(()),
        };
        signed.map_err(|error| {
            let message = "no credentials were found, or none that can be used, to list the buckets";
            Failed::lasting(Error::caused_by(ErrorKind::AccessDenied, message, error))
        })?;
        let mut request = reqwest::Request::new(Method::GET, url);
        *request.headers_mut() = parts.headers;
        request.headers_mut().remove(HOST);
        let body = body_of(send(&self.clients.asking, request).await?).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

fn context_of(clients: &Clients) -> Context {
    let transport = HttpTransporter::new(Transport::new(clients.clone(), None, None));
    Context::new().with_file_read(TokioFileRead).with_http_send(transport).with_env(OsEnv)
}

/// The host of a URL for tokens that is none of Google's: what signs for us knows no other, and would fail there without saying why.
fn others_host(uri: &str) -> Option<String> {
    let host = Url::parse(uri).ok()?.host_str()?.to_owned();
    let is_googles = [".googleapis.com", ".google.com"].iter().any(|end| host.ends_with(end));
    (!is_googles).then_some(host)
}

/// Signs with the keys that were told, or those that AWS's own tools would find, as OpenDAL does.
fn signer_of(settings: &S3Settings, clients: &Clients) -> Signer<Credential> {
    let provider = match &settings.keys {
        Some((access, secret)) => {
            let keys = StaticCredentialProvider::new(access.reveal(), secret.reveal());
            ProvideCredentialChain::new().push(match &settings.session_token {
                Some(token) => keys.with_session_token(token.reveal()),
                None => keys,
            })
        }
        None => ProvideCredentialChain::new().push(DefaultCredentialProvider::builder().no_imds().build()),
    };
    Signer::new(context_of(clients), provider, RequestSigner::new("s3", &settings.region))
}

/// The names in a page of the list, and what the next page is asked for by, if there is one. `None` for anything else.
fn names_of_s3(page: &str) -> Option<(Vec<String>, Option<String>)> {
    let (_, list) = page.split_once(MARK)?;
    let text = |from: &str| Some(from.split_once('<')?.0.to_owned()).filter(|text| !text.contains('&'));
    let names = list.split("<Name>").skip(1).map(text).collect::<Option<Vec<_>>>()?;
    let next = match list.split_once("<ContinuationToken>") {
        Some((_, from)) => Some(text(from)?).filter(|token| !token.is_empty()),
        None => None,
    };
    Some((names, next))
}

/// The same of Google's, which may leave out what is empty.
fn names_of_google(page: &str) -> Option<(Vec<String>, Option<String>)> {
    let page: GooglePage = serde_json::from_str(page).ok()?;
    let is_one = page.kind == "storage#buckets";
    is_one.then(|| (page.items.into_iter().map(|bucket| bucket.name).collect(), page.next_page_token))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GooglePage {
    kind: String,
    #[serde(default)]
    items: Vec<GoogleBucket>,
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct GoogleBucket {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_from_what_is_a_list_and_from_nothing_else() {
        let page = |rest: &str| {
            format!("<?xml?><ListAllMyBucketsResult xmlns=\"x\">{rest}</ListAllMyBucketsResult>")
        };
        let owner = "<Owner><ID>1</ID><DisplayName>me</DisplayName></Owner>";
        let bucket =
            |name: &str| format!("<Bucket><Name>{name}</Name><CreationDate>2024</CreationDate></Bucket>");
        let told = |rest: &str| names_of_s3(&page(rest));
        let two = format!("{owner}<Buckets>{}{}</Buckets>", bucket("a"), bucket("b.c_D"));
        assert_eq!(told(&two).unwrap(), (vec!["a".to_owned(), "b.c_D".to_owned()], None));
        assert_eq!(told(&format!("{owner}<Buckets></Buckets>")).unwrap().0.len(), 0);
        let more = format!("{two}<ContinuationToken>x</ContinuationToken>");
        assert_eq!(told(&more).unwrap().1.as_deref(), Some("x"));
        assert!(told(&bucket("a&amp;b")).is_none(), "a name that would be another one");
        assert!(names_of_s3("<html><Name>a</Name></html>").is_none());
        assert!(names_of_s3("<ListAllMyBucketsResult><Name>a").is_none(), "cut short");
        let google = |page: &str| names_of_google(page).map(|(names, next)| (names.join(" "), next));
        let two = r#"{"kind": "storage#buckets", "items": [{"name": "a", "id": "1"}, {"name": "b"}], "nextPageToken": "n"}"#;
        assert_eq!(google(two), Some(("a b".to_owned(), Some("n".to_owned()))));
        assert_eq!(google(r#"{"kind": "storage#buckets"}"#), Some((String::new(), None)));
        assert_eq!(google(r#"{"kind": "storage#objects", "items": []}"#), None);
    }
}
