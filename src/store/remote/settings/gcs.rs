//! Access to a bucket of Google Cloud Storage, or to all of a project's.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use super::super::engine::Limits;
use super::super::http::Access;
use super::Env;
use crate::cinder_conf::backup::Gcs;

/// Longest credential file that is read, in bytes. Google's have some 2,400.
const CREDENTIAL_BYTES_MAX: u64 = 1 << 20;

/// Access to a bucket of Google Cloud Storage, or to all of a project's.
#[derive(Clone, Debug)]
pub struct GcsSettings {
    /// Its name; empty for all of them, which are folders then.
    pub bucket: String,
    /// Where the server listens; Google's where there is none.
    pub endpoint: Option<String>,
    /// The service account's file; without it what Google's own tools would find.
    pub credential_file: Option<String>,
    /// The id of the project whose bucket it is, if that was told; the credential file may tell it too.
    pub project: Option<String>,
    /// Whether requests are sent without credentials, as emulators take them.
    pub is_anonymous: bool,
    /// How the server is reached.
    pub access: Access,
    /// How hard it is tried.
    pub limits: Limits,
}

impl GcsSettings {
    /// A bucket by its name, everything else as the environment says.
    pub fn from_env(bucket: &str, endpoint: Option<String>, env: Env<'_>) -> Self {
        let emulator = env("STORAGE_EMULATOR_HOST");
        // With `http://` before it, a URL with a password and a typing error in it would be one without.
        let is_url = |text: &str| text.contains("://") || text.contains('@');
        let emulator = emulator.map(|host| if is_url(&host) { host } else { format!("http://{host}") });
        let endpoint = endpoint.or(emulator);
        let credential_file = env("GOOGLE_APPLICATION_CREDENTIALS");
        Self {
            bucket: bucket.to_owned(),
            is_anonymous: endpoint.is_some() && credential_file.is_none(),
            endpoint,
            credential_file,
            project: env("GOOGLE_CLOUD_PROJECT"),
            access: Access { ca_file: env("SSL_CERT_FILE").map(Into::into), ..Access::default() },
            limits: Limits::default(),
        }
    }

    /// As cinder-backup is told.
    pub fn from_conf(conf: &Gcs) -> Self {
        Self {
            bucket: conf.bucket.clone(),
            endpoint: None,
            credential_file: conf.credential_file.as_ref().map(|file| file.to_string_lossy().into_owned()),
            project: conf.project.clone(),
            is_anonymous: false,
            access: Access { proxy: conf.proxy.clone(), ..Access::default() },
            limits: Limits::default(),
        }
    }

    /// The id of the project whose bucket it is, which is asked for when its buckets are listed.
    pub(in crate::store::remote) fn project(&self) -> Option<String> {
        let told = || self.keys()?.get("project_id")?.as_str().map(str::to_owned);
        self.project.clone().or_else(told)
    }

    /// The file of a token that somebody else renews, which the credential file names where it belongs to no account of Google's.
    pub(super) fn subject_file(&self) -> Option<PathBuf> {
        Some(self.keys()?.get("credential_source")?.get("file")?.as_str()?.into())
    }

    /// What is in the credential file.
    fn keys(&self) -> Option<serde_json::Value> {
        let file = File::open(self.credential_file.as_ref()?).ok()?;
        let text = std::io::read_to_string(file.take(CREDENTIAL_BYTES_MAX)).ok()?;
        serde_json::from_str(&text).ok()
    }
}
