//! What went wrong between here and a server, in our kinds and words.
//!
//! Idea: a failure has an [`Error`] and one more bit, whether the same request may succeed a moment later. It travels through OpenDAL as the
//! source of its error and is taken out again on the other side.
//!
//! Invariants: no message holds a token, a key, or the query of a URL; text of a server is quoted, and short.

use std::error::Error as StdError;

use http::StatusCode;
use reqwest::Url;
use rustls::{CertificateError, InvalidMessage};

use super::said::{clipped, words_of};
use crate::error::{Error, ErrorKind};

/// A failed request.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// Whether it may succeed when it is sent again.
    pub(super) is_passing: bool,
    /// Whether the server has answered, if only that it failed.
    pub(super) is_answer: bool,
    /// Whether something else came than what was asked for. That may come of a moment, or of a server that knows no better.
    pub(super) is_wrong: bool,
    /// Whether what came is of another protocol: of a server that was never heard this is the last word, of others a moment's.
    pub(super) is_foreign: bool,
    /// Whether the server does not know who we are: a token that has expired says so.
    pub(super) is_unknown_token: bool,
}

impl Failed {
    /// A failure that comes again.
    pub(super) fn lasting(error: Error) -> Self {
        Self {
            error,
            is_passing: false,
            is_answer: false,
            is_wrong: false,
            is_foreign: false,
            is_unknown_token: false,
        }
    }

    /// A failure that may pass.
    pub(super) fn passing(error: Error) -> Self {
        Self { is_passing: true, ..Self::lasting(error) }
    }

    /// Something came that was not asked for.
    pub(super) fn wrong(error: Error) -> Self {
        Self { is_answer: true, is_wrong: true, ..Self::passing(error) }
    }

    /// As OpenDAL carries it.
    pub(super) fn into_opendal(self) -> opendal::Error {
        let kind = match self.error.kind() {
            ErrorKind::ObjectNotFound => opendal::ErrorKind::NotFound,
            ErrorKind::AccessDenied => opendal::ErrorKind::PermissionDenied,
            _ => opendal::ErrorKind::Unexpected,
        };
        let is_passing = self.is_passing;
        opendal::Error::new(kind, "request failed").with_temporary(is_passing).set_source(Carried(self))
    }

    /// What OpenDAL carried, or what it says itself.
    pub(super) fn from_opendal(error: &opendal::Error) -> Self {
        let is_passing = error.is_temporary();
        let mut cause: Option<&(dyn StdError + 'static)> = error.source();
        while let Some(source) = cause {
            if let Some(Carried(carried)) = source.downcast_ref::<Carried>() {
                return Self {
                    error: carried.error.clone(),
                    is_passing,
                    is_answer: carried.is_answer,
                    is_wrong: carried.is_wrong,
                    is_foreign: carried.is_foreign,
                    is_unknown_token: false,
                };
            }
            cause = source.source();
        }
        let kind = match error.kind() {
            opendal::ErrorKind::NotFound => ErrorKind::ObjectNotFound,
            opendal::ErrorKind::PermissionDenied => ErrorKind::AccessDenied,
            opendal::ErrorKind::ConfigInvalid => ErrorKind::Usage,
            _ => ErrorKind::StoreIo,
        };
        let mut words = clipped(error.message());
        if let Some(source) = error.source() {
            words = format!("{words}: {}", clipped(&source.to_string()));
        }
        // OpenDAL has no kind for having found no credentials.
        if words.contains("credential") && kind != ErrorKind::Usage {
            tracing::debug!("{words}");
            let message = "no credentials were found, or none that can be used";
            return Self::lasting(Error::new(ErrorKind::AccessDenied, message));
        }
        Self { is_passing, ..Self::lasting(Error::new(kind, words)) }
    }
}

/// A failure on its way through OpenDAL.
#[derive(Debug)]
struct Carried(Failed);

impl std::fmt::Display for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.error.fmt(f)
    }
}

impl StdError for Carried {}

/// A URL without what may be secret in it.
pub(super) fn shown(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Why no answer came, or not the whole of it.
pub(super) fn of_transport(url: &Url, error: &reqwest::Error) -> Failed {
    let host = shown(url);
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(source) = cause {
        let tls = tls_error(source);
        if let Some(tls) = tls {
            let failed = |message| Error::new(ErrorKind::StoreIo, message);
            // Neither a certificate nor what listens there gets better by asking again; alerts and torn connections may.
            return match tls {
                rustls::Error::InvalidCertificate(why) => {
                    Failed::lasting(failed(format!("the certificate of {host} {}", of_certificate(why))))
                }
                rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) if error.is_connect() => {
                    let message = format!("{host} does not speak TLS; is it an http: URL?");
                    Failed::lasting(failed(message))
                }
                other => Failed::passing(failed(format!(
                    "TLS with {host} failed: {}",
                    clipped(&other.to_string())
                ))),
            };
        }
        cause = source.source();
    }
    let story = story(error);
    // An alert of TLS, to who has not begun with it, is the first that comes.
    if url.scheme() == "http" && story == "invalid HTTP version parsed" {
        let message = format!("{host} does not speak HTTP; is it an https: URL?");
        let failed = Failed::passing(Error::new(ErrorKind::StoreIo, message));
        return Failed { is_foreign: true, ..failed };
    }
    let message = if story.contains("dns error") || story.contains("failed to lookup") {
        format!("cannot find the address of {host}: {story}")
    } else if error.is_timeout() {
        format!("{host} did not answer in time")
    } else if error.is_connect() {
        format!("cannot connect to {host}: {story}")
    } else if error.is_builder() {
        return Failed::lasting(Error::new(ErrorKind::Usage, format!("cannot ask {host}: {story}")));
    } else {
        format!("the connection to {host} broke: {story}")
    };
    Failed::passing(Error::new(ErrorKind::StoreIo, message))
}

/// Why a server's certificate will not do.
fn of_certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::NotValidForNameContext { presented, .. } => {
            // `DnsName("host")`, `IpAddress(1.2.3.4)`
            let name = |told: &String| {
                let inner = told.split_once('(').map_or(&**told, |(_, inner)| inner.trim_end_matches(')'));
                inner.trim_matches('"').to_owned()
            };
            let names = presented.iter().map(name).collect::<Vec<_>>().join(", ");
            format!("is for other names: {}", clipped(&names))
        }
        CertificateError::NotValidForName => "is for another name".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet, or the clock of this machine is slow".to_owned()
        }
        other => format!(
            "is not trusted ({}); a private CA's certificate is given by OS_CACERT, AWS_CA_BUNDLE or the cinder.conf",
            clipped(&format!("{other:?}"))
        ),
    }
}

/// The error of TLS itself, which lies in one or more I/O errors that do not tell it as their source.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut inner = error;
    while let Some(next) = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        inner = next;
    }
    inner.downcast_ref()
}

/// The innermost causes of an error; its outer ones say "error sending request".
pub(super) fn story(error: &(dyn StdError + 'static)) -> String {
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        last = source.to_string();
        // `failed to lookup …` stands below `dns error`.
        if last.starts_with("dns error:") {
            break;
        }
        cause = source.source();
    }
    clipped(&last)
}

/// Whether a request was signed too long ago, or the clocks differ.
pub(super) fn is_skewed(error: &Error) -> bool {
    error.to_string().contains("RequestTimeTooSkewed")
}

/// A server's words at the end of a message, where there are any.
fn quoted(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words:?}") }
}

/// What an answer that is no success says.
pub(super) fn of_status(url: &Url, status: StatusCode, text: &[u8]) -> Failed {
    let host = shown(url);
    let words = words_of(status, text);
    let said = quoted(&words);
    let make = |kind, why: &str| Error::new(kind, format!("{host} answered {}{why}{said}", status.as_u16()));
    let is_code = |code: &str| words.split(',').next() == Some(code);
    let mut failed = match status {
        StatusCode::UNAUTHORIZED => {
            Failed::lasting(make(ErrorKind::AccessDenied, ", it does not accept the credentials"))
        }
        StatusCode::FORBIDDEN if words.contains("QuotaExceeded") => {
            Failed::lasting(make(ErrorKind::Target, ", a quota is used up"))
        }
        StatusCode::FORBIDDEN => Failed::lasting(make(ErrorKind::AccessDenied, ", access is denied")),
        StatusCode::NOT_FOUND if words.contains("NoSuchBucket") => {
            Failed::lasting(make(ErrorKind::StoreNotFound, ", there is no such bucket"))
        }
        // Neither the bucket nor the object: what was to be put together.
        StatusCode::NOT_FOUND if words.contains("NoSuchUpload") => {
            Failed::lasting(make(ErrorKind::StoreIo, ", it does not know the upload any more"))
        }
        StatusCode::NOT_FOUND => {
            Failed::lasting(make(ErrorKind::ObjectNotFound, ", it has nothing of that name"))
        }
        StatusCode::PRECONDITION_FAILED => {
            Failed::lasting(make(ErrorKind::StoreIo, ", the object was replaced while it was read"))
        }
        // What arrived is not what its digest was told of.
        StatusCode::UNPROCESSABLE_ENTITY => {
            Failed::passing(make(ErrorKind::StoreIo, ", the bytes were changed on the way"))
        }
        StatusCode::BAD_REQUEST if words.contains("BadDigest") => {
            Failed::passing(make(ErrorKind::StoreIo, ", the bytes were changed on the way"))
        }
        // What S3 says where 408 is meant.
        StatusCode::BAD_REQUEST if is_code("RequestTimeout") => {
            Failed::passing(make(ErrorKind::StoreIo, ", it waited too long for the request"))
        }
        StatusCode::BAD_REQUEST if words.contains("EntityTooLarge") => {
            Failed::lasting(make(ErrorKind::Target, ", the object is too large for it"))
        }
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::INSUFFICIENT_STORAGE => Failed::lasting(make(
            ErrorKind::Target,
            ", the object is too large for it, or a quota is used up",
        )),
        // Most servers' words, which is not what a request of ours could do wrong else.
        StatusCode::BAD_REQUEST if words.contains("HTTPS") => {
            Failed::lasting(make(ErrorKind::StoreIo, ", is it an https: URL?"))
        }
        // What S3 says of objects that a customer's key has encrypted, and we have no key or another one.
        StatusCode::BAD_REQUEST => Failed::lasting(make(
            ErrorKind::AccessDenied,
            ", the request does not suit it; an object that is encrypted with a customer's key (SSE-C) needs that key",
        )),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Failed::passing(make(ErrorKind::StoreIo, ", it is too busy"))
        }
        // Swift's rate limit.
        _ if status.as_u16() == 498 => Failed::passing(make(ErrorKind::StoreIo, ", it is too busy")),
        _ if status.is_server_error() => {
            Failed::passing(make(ErrorKind::StoreIo, ", it has a problem of its own"))
        }
        _ if status.is_redirection() => {
            Failed::lasting(make(ErrorKind::StoreIo, ", it points to another host, which is not followed"))
        }
        _ => Failed::lasting(make(ErrorKind::StoreIo, "")),
    };
    failed.is_answer = true;
    failed.is_unknown_token = status == StatusCode::UNAUTHORIZED;
    failed
}

/// The same where a token was asked for, with a password and nothing else: then the request was sent to another place than it was made for.
pub(super) fn of_token_status(url: &Url, status: StatusCode, text: &[u8]) -> Failed {
    let failed = of_status(url, status, text);
    let why = match status {
        StatusCode::BAD_REQUEST if failed.error.kind() == ErrorKind::AccessDenied => {
            "the authentication URL is wrong, or does not take such settings"
        }
        StatusCode::NOT_FOUND => "the authentication URL is wrong",
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE | StatusCode::NOT_IMPLEMENTED => {
            "the authentication URL is wrong, or of another version than is set"
        }
        _ => return failed,
    };
    let words = words_of(status, text);
    let said = quoted(&words);
    let message = format!("{why}: {} answered {}{said}", shown(url), status.as_u16());
    Failed { error: Error::new(ErrorKind::Usage, message), is_passing: false, ..failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_is_found_in_errors_of_io() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::other(std::io::Error::other(tls.clone()));
        assert_eq!(tls_error(&wrapped), Some(&tls));
        assert_eq!(tls_error(&std::io::Error::other("x")), None);
    }

    fn status(code: u16, text: &str) -> Failed {
        let url = Url::parse("https://user:pw@host:444/bucket/key?X-Signature=secret").unwrap();
        of_status(&url, StatusCode::from_u16(code).unwrap(), text.as_bytes())
    }

    #[test]
    fn statuses_become_kinds_and_tell_no_secret() {
        let cases = [
            (401, ErrorKind::AccessDenied, false),
            (403, ErrorKind::AccessDenied, false),
            (404, ErrorKind::ObjectNotFound, false),
            (412, ErrorKind::StoreIo, false),
            (429, ErrorKind::StoreIo, true),
            (498, ErrorKind::StoreIo, true),
            (500, ErrorKind::StoreIo, true),
            (503, ErrorKind::StoreIo, true),
            (301, ErrorKind::StoreIo, false),
        ];
        for (code, kind, is_passing) in cases {
            let failed = status(code, "");
            assert_eq!((failed.error.kind(), failed.is_passing), (kind, is_passing), "{code}");
            let text = failed.error.to_string();
            assert!(text.starts_with(&format!("https://host:444 answered {code}")), "{text}");
            assert!(!text.contains("secret") && !text.contains("pw"), "{text}");
        }
        assert!(status(401, "").is_unknown_token);
    }

    #[test]
    fn a_servers_words_are_found_and_quoted() {
        let xml =
            "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>no\nsuch\x1b</Message></Error>";
        let failed = status(404, xml);
        assert_eq!(failed.error.kind(), ErrorKind::StoreNotFound);
        assert!(failed.error.to_string().ends_with(r#": "NoSuchBucket, no such\u{1b}""#), "{}", failed.error);
        let json = "{\"error\": {\"code\": 401, \"message\": \"The request you have made requires authentication.\"}}";
        assert!(status(401, json).error.to_string().ends_with("requires authentication\""));
        let timeout = "<Error><Code>RequestTimeout</Code><Message>Your socket connection to the server was not read from or written to within the timeout period.</Message></Error>";
        let failed = status(400, timeout);
        assert_eq!((failed.error.kind(), failed.is_passing), (ErrorKind::StoreIo, true), "{}", failed.error);
        assert!(!status(400, "<Error><Code>InvalidRequest</Code></Error>").is_passing);
        let upload = status(404, "<Error><Code>NoSuchUpload</Code><Message>none</Message></Error>");
        assert_eq!((upload.error.kind(), upload.is_passing), (ErrorKind::StoreIo, false));
        assert!(status(500, &"x".repeat(5000)).error.to_string().len() < 400);
    }

    #[test]
    fn what_is_no_place_for_tokens_is_told_as_that() {
        let url = Url::parse("http://h:5000/v1.00").unwrap();
        let token = |code: u16, text: &str| {
            of_token_status(&url, StatusCode::from_u16(code).unwrap(), text.as_bytes()).error
        };
        for code in [400, 404, 405] {
            let error = token(code, "<h1>No</h1>");
            assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
            let text = error.to_string();
            assert!(text.starts_with("the authentication URL is wrong") && text.contains("h:5000 answered"));
            assert!(text.ends_with(": \"No\"") && !text.contains("SSE-C"), "{text}");
        }
        assert_eq!(token(401, "").kind(), ErrorKind::AccessDenied);
        let told = token(400, "Client sent an HTTP request to an HTTPS server.").to_string();
        assert!(told.contains("is it an https: URL?"), "{told}");
    }

    #[test]
    fn a_certificate_is_told_without_types() {
        let presented = vec!["DnsName(\"a.example\")".to_owned(), "IpAddress(127.0.0.1)".to_owned()];
        let expected = rustls::pki_types::ServerName::try_from("b.example").unwrap();
        let other = CertificateError::NotValidForNameContext { expected, presented };
        assert_eq!(of_certificate(&other), "is for other names: a.example, 127.0.0.1");
        assert_eq!(of_certificate(&CertificateError::Expired), "has expired");
        assert!(of_certificate(&CertificateError::UnknownIssuer).contains("OS_CACERT"));
    }

    #[test]
    fn a_failure_comes_through_opendal_as_it_was() {
        for code in [401, 404, 503] {
            let before = status(code, "words");
            let (text, kind, is_passing) = (before.error.to_string(), before.error.kind(), before.is_passing);
            let after = Failed::from_opendal(&before.into_opendal().with_context("key", "value"));
            assert_eq!(
                (after.error.to_string(), after.error.kind(), after.is_passing, after.is_answer),
                (text, kind, is_passing, true)
            );
        }
    }
}
