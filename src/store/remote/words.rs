//! The words for stores behind HTTP: `swift:CONTAINER`, `s3://BUCKET?endpoint=URL`, `gs://BUCKET`; `swift:`, `s3://?endpoint=URL` and
//! `gs://` for all containers of an account, all buckets of a server or of a project.
//!
//! Invariant: a word with credentials in it is refused and not quoted; command lines are read by everybody on a machine.

use std::sync::Arc;

use reqwest::Url;

use super::settings::{Env, GcsSettings, S3Settings, Settings, SwiftSettings};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// What such a word says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// A container of the Swift account that the environment names, or all of them.
    Swift {
        /// Its name; `None` for all.
        container: Option<String>,
    },
    /// An S3 bucket, or all of a server's.
    S3 {
        /// Its name; empty for all.
        bucket: String,
        /// Where the server listens.
        endpoint: Option<String>,
        /// The region that signatures name.
        region: Option<String>,
    },
    /// A bucket of Google Cloud Storage, or all of a project's.
    Gcs {
        /// Its name; empty for all.
        bucket: String,
        /// Where the server listens.
        endpoint: Option<String>,
    },
}

impl Word {
    /// What `word` says; `None` when it is not of this kind, [`ErrorKind::Usage`] when it is and is wrong.
    pub fn parse(word: &str) -> Option<Result<Self>> {
        let (scheme, rest) = word.split_once(':')?;
        match scheme {
            "swift" => Some(swift_of(rest)),
            "s3" | "gs" => Some(bucket_of(scheme, word)),
            _ => None,
        }
    }

    /// What is needed to reach the store.
    pub fn settings(&self, env: Env<'_>) -> Result<Settings> {
        Ok(match self {
            Self::Swift { container } => {
                Settings::Swift(Box::new(SwiftSettings::from_env(container.as_deref(), env)?))
            }
            Self::S3 { bucket, endpoint, region } => {
                S3Settings::check_pair(env)?;
                Settings::S3(Box::new(S3Settings::from_env(bucket, endpoint.clone(), region.clone(), env)))
            }
            Self::Gcs { bucket, endpoint } => {
                let settings = GcsSettings::from_env(bucket, endpoint.clone(), env);
                if bucket.is_empty() && settings.project().is_none() {
                    let message = "gs:// is all buckets of a project, and nothing names one: set GOOGLE_CLOUD_PROJECT to its id, or GOOGLE_APPLICATION_CREDENTIALS to a file with a project_id";
                    return Err(usage(message.to_owned()));
                }
                Settings::Gcs(Box::new(settings))
            }
        })
    }

    /// The store. Nothing is asked of its server yet.
    pub fn open(&self, env: Env<'_>) -> Result<Arc<dyn Store>> {
        self.settings(env)?.open()
    }
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}

fn swift_of(rest: &str) -> Result<Word> {
    let name = rest.strip_prefix("//").unwrap_or(rest).trim_end_matches('/');
    if name.contains('/') {
        return Err(usage(format!(
            "swift:{rest:?} names more than a container; expected swift:CONTAINER, or swift: for all of them"
        )));
    }
    if matches!(name, "." | "..") {
        return Err(usage(format!("{name:?} is no container's name; expected swift:CONTAINER")));
    }
    Ok(Word::Swift { container: (!name.is_empty()).then(|| name.to_owned()) })
}

fn bucket_of(scheme: &str, word: &str) -> Result<Word> {
    let expected = match scheme {
        "s3" => "expected s3://BUCKET?endpoint=URL, or s3://?endpoint=URL for all buckets",
        _ => "expected gs://BUCKET, or gs:// for all buckets of a project",
    };
    let url = Url::parse(word).map_err(|_| usage(format!("the {scheme}: URL cannot be read; {expected}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(usage(format!(
            "the {scheme}: URL holds credentials, which all users of this machine could see; give them by the environment or the cinder.conf"
        )));
    }
    let bucket = url.host_str().unwrap_or_default().to_owned();
    let is_more = !matches!(url.path(), "" | "/") || url.port().is_some() || url.fragment().is_some();
    let unnamed = || Err(usage(format!("{word:?} does not name a bucket and nothing else; {expected}")));
    if is_more {
        return unnamed();
    }
    let (mut endpoint, mut region) = (None, None);
    for (key, value) in url.query_pairs() {
        match &*key {
            "endpoint" => endpoint = Some(endpoint_of(&value)?),
            "region" if scheme == "s3" => region = Some(value.into_owned()),
            _ => return Err(usage(format!("the {scheme}: URL has an unknown setting {key:?}; {expected}"))),
        }
    }
    // All buckets that Amazon has of somebody are in many places; those of a server are one, and Google's have one server.
    let is_whole = match scheme {
        "s3" => endpoint.is_some() && word.starts_with("s3://?"),
        _ => word == "gs://" || word.starts_with("gs://?"),
    };
    if bucket.is_empty() && !is_whole {
        return unnamed();
    }
    Ok(match scheme {
        "s3" => Word::S3 { bucket, endpoint, region },
        _ => Word::Gcs { bucket, endpoint },
    })
}

fn endpoint_of(text: &str) -> Result<String> {
    let is_http = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    match Url::parse(text).ok().filter(is_http) {
        Some(url) if !url.username().is_empty() || url.password().is_some() => Err(usage(
            "the endpoint holds credentials; give them by the environment or the cinder.conf".to_owned(),
        )),
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err(usage(format!("endpoint {text:?} is no http: or https: URL"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(word: &str) -> Word {
        Word::parse(word).unwrap().unwrap()
    }

    #[test]
    fn words_say_which_store() {
        let swift = |name: Option<&str>| Word::Swift { container: name.map(str::to_owned) };
        assert_eq!(right("swift:volumebackups"), swift(Some("volumebackups")));
        assert_eq!(right("swift:My backups"), swift(Some("My backups")));
        assert_eq!(right("swift://c"), swift(Some("c")));
        assert_eq!(right("swift:"), swift(None));
        let s3 = |bucket: &str, endpoint: Option<&str>, region: Option<&str>| Word::S3 {
            bucket: bucket.to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: region.map(str::to_owned),
        };
        assert_eq!(right("s3://b"), s3("b", None, None));
        assert_eq!(
            right("s3://B_k.t/?endpoint=http://127.0.0.1:19000/&region=r"),
            s3("B_k.t", Some("http://127.0.0.1:19000"), Some("r"))
        );
        assert_eq!(right("s3://b?endpoint=https%3A%2F%2Fh%2Fs3"), s3("b", Some("https://h/s3"), None));
        assert_eq!(right("s3://?endpoint=http://h:1"), s3("", Some("http://h:1"), None));
        assert_eq!(right("gs://b"), Word::Gcs { bucket: "b".into(), endpoint: None });
        assert_eq!(right("gs://"), Word::Gcs { bucket: String::new(), endpoint: None });
        let endpoint = Some("http://h".to_owned());
        assert_eq!(right("gs://?endpoint=http://h"), Word::Gcs { bucket: String::new(), endpoint });
        for other in ["/srv", "host:/x", "nfs://h/x", "swift", "file:///x"] {
            assert!(Word::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn wrong_words_are_refused_and_secrets_are_not_quoted() {
        for word in [
            "swift:a/b",
            "swift:.",
            "swift:..",
            "swift://../",
            "s3:b",
            "s3://",
            "s3://?region=r",
            "s3:///?endpoint=http://h",
            "s3:?endpoint=http://h",
            "gs:",
            "gs:///",
            "gs:?endpoint=http://h",
            "s3://b/prefix",
            "s3://b:9",
            "s3://b?endpoint=h:1",
            "s3://b?endpoint=ftp://h",
            "s3://b?acces_key=s3cret",
            "s3://key:s3cret@b",
            "s3://b?endpoint=http://u:s3cret@h",
            "gs://b?region=x",
        ] {
            let error = Word::parse(word).unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{word}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
