//! What is needed to reach each kind of store, and where it is said.
//!
//! Problem: credentials are in the environment as each vendor's own tools read it, in a `clouds.yaml`, or in the cinder.conf; on a command line
//! everybody could see them. Idea: one type for each kind of store, made from any of these. The environment is a function, so that
//! tests need none.
//!
//! Invariant: a secret is a [`Secret`], which no message shows.

mod gcs;
mod s3;
mod swift;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use self::gcs::GcsSettings;
pub use self::s3::S3Settings;
pub use self::swift::{Domain, Identity, SwiftAuth, SwiftSettings};
pub use crate::cinder_conf::backup::Secret;
use crate::cinder_conf::backup::{BackupConf, Driver};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// A variable of the environment; `None` where it is unset or empty.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own environment.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What is needed to reach a store of whichever kind.
#[derive(Clone, Debug)]
pub enum Settings {
    /// A container of Swift, or an account.
    Swift(Box<SwiftSettings>),
    /// An S3 bucket.
    S3(Box<S3Settings>),
    /// A bucket of Google Cloud Storage.
    Gcs(Box<GcsSettings>),
}

impl Settings {
    /// What a cinder.conf says about a store behind HTTP; `None` when its driver writes to files.
    pub fn from_conf(conf: &BackupConf, env: Env<'_>) -> Option<Result<Self>> {
        match &conf.driver {
            Driver::Swift(swift) => {
                // An account of Cinder's own holds what was written with `--container` as well; a user's holds anything.
                let container = conf.container.as_deref().filter(|_| !swift.is_single_user);
                let settings = SwiftSettings::from_conf(swift, container, env);
                Some(settings.map(|settings| Self::Swift(Box::new(settings))))
            }
            Driver::S3(s3) => Some(Ok(Self::S3(Box::new(S3Settings::from_conf(s3, env))))),
            Driver::Gcs(gcs) => Some(Ok(Self::Gcs(Box::new(GcsSettings::from_conf(gcs))))),
            Driver::Posix { .. } | Driver::Nfs(_) | Driver::Glusterfs(_) => None,
        }
    }

    /// The module of Cinder's driver for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Swift(_) => "swift",
            Self::S3(_) => "s3",
            Self::Gcs(_) => "gcs",
        }
    }

    /// The store. Nothing is asked of its server yet.
    pub fn open(&self) -> Result<Arc<dyn Store>> {
        match self {
            Self::Swift(settings) => super::swift((**settings).clone()),
            Self::S3(settings) => super::s3((**settings).clone()),
            Self::Gcs(settings) => super::gcs((**settings).clone()),
        }
    }

    /// The same, tried for so long.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        let limits = match &mut self {
            Self::Swift(settings) => &mut settings.limits,
            Self::S3(settings) => &mut settings.limits,
            Self::Gcs(settings) => &mut settings.limits,
        };
        limits.deadline = deadline;
        self
    }

    /// Files and folders that are read again while the store is in use, to renew credentials.
    pub fn read_again(&self, env: Env<'_>) -> Vec<PathBuf> {
        let home = || env("HOME").map(PathBuf::from);
        match self {
            Self::Gcs(settings) if settings.is_anonymous => Vec::new(),
            Self::Gcs(settings) => match &settings.credential_file {
                Some(file) => {
                    // What renews a token in a container replaces its whole folder.
                    let folder = settings.subject_file().and_then(|file| Some(file.parent()?.to_owned()));
                    [file.into()].into_iter().chain(folder).collect()
                }
                None => home().map(|home| home.join(".config/gcloud")).into_iter().collect(),
            },
            Self::S3(settings) if settings.keys.is_some() => Vec::new(),
            Self::S3(_) => {
                let named = ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"];
                let mut paths: Vec<PathBuf> = named.into_iter().filter_map(env).map(PathBuf::from).collect();
                paths.extend(home().map(|home| home.join(".aws")));
                // What mounts such a file into a container replaces its whole folder.
                let token = env("AWS_WEB_IDENTITY_TOKEN_FILE").map(PathBuf::from);
                paths.extend(token.and_then(|token| token.parent().map(Path::to_owned)));
                paths
            }
            Self::Swift(_) => Vec::new(),
        }
    }
}
/// Refuses a URL that has a user or a password in it: messages and the mount table quote URLs. [`ErrorKind::Usage`], without quoting it.
pub(super) fn check_plain(what: &str, url: &str) -> Result<()> {
    let is_plain = match reqwest::Url::parse(url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => {
            url.username().is_empty() && url.password().is_none()
        }
        // `user:password@host` is a URL of the scheme `user`.
        _ => !url.contains('@'),
    };
    if is_plain {
        return Ok(());
    }
    let message = format!("{what} has a user or a password in it, which all users of this machine could see");
    Err(Error::new(ErrorKind::Usage, message))
}

fn connections(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).clamp(1, 64)
}
#[cfg(test)]
mod tests;
