//! A place for backups, as each driver of Cinder's sees it, and the names of these drivers.
//!
//! Invariant: a class that Cinder does not have is refused; a secret is in no message.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};

/// A place for backups, as one driver sees it.
#[derive(Clone, Debug)]
pub enum Driver {
    /// A directory.
    Posix {
        /// `backup_posix_path`.
        path: PathBuf,
    },
    /// An NFS share, mounted beneath a directory.
    Nfs(Share),
    /// A GlusterFS volume, mounted beneath a directory.
    Glusterfs(Share),
    /// OpenStack Swift.
    Swift(Box<Swift>),
    /// An S3 bucket.
    S3(Box<S3>),
    /// A bucket of Google Cloud Storage.
    Gcs(Gcs),
}

impl Driver {
    /// The word for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Posix { .. } => "posix",
            Self::Nfs(_) => "nfs",
            Self::Glusterfs(_) => "glusterfs",
            Self::Swift(_) => "swift",
            Self::S3(_) => "s3",
            Self::Gcs(_) => "gcs",
        }
    }
}

/// A share that has to be mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Share {
    /// `host:/path` or `host:volume`.
    pub source: String,
    /// Options for mount(8), if any.
    pub options: Option<String>,
    /// The directory that mountpoints are made in, each named by the md5 of its source.
    pub mount_base: PathBuf,
    /// How often to try.
    pub attempts: u64,
}

/// Access to OpenStack Swift.
#[derive(Clone, Debug)]
pub struct Swift {
    /// `backup_swift_url`: the storage URL without its account, `None` for what the catalogue says.
    pub storage_url: Option<String>,
    /// `backup_swift_auth_url`.
    pub auth_url: Option<String>,
    /// `per_user` or `single_user`.
    pub is_single_user: bool,
    /// 1, 2 or 3.
    pub auth_version: u64,
    /// The account's user name.
    pub user: Option<String>,
    /// Its key.
    pub key: Option<Secret>,
    /// Project or tenant.
    pub project: Option<String>,
    /// Domain of the user.
    pub user_domain: Option<String>,
    /// Domain of the project.
    pub project_domain: Option<String>,
    /// Region to take from the catalogue.
    pub region: Option<String>,
    /// Which endpoint of the catalogue is taken, where it is asked: the last word of `swift_catalog_info`.
    pub interface: Option<String>,
    /// CA file to check the server with.
    pub ca_file: Option<PathBuf>,
    /// Whether the server's certificate is not checked.
    pub is_insecure: bool,
}

/// Access to an S3 bucket.
#[derive(Clone, Debug)]
pub struct S3 {
    /// Where the server listens.
    pub endpoint: String,
    /// Who asks.
    pub access_key: Secret,
    /// And proves it.
    pub secret_key: Secret,
    /// The bucket.
    pub bucket: String,
    /// Whether the server's certificate is checked.
    pub verifies_tls: bool,
    /// CA file to check the server with.
    pub ca_file: Option<PathBuf>,
    /// Connections at once.
    pub connections: u64,
    /// Algorithm and key that objects are encrypted with by the server (SSE-C).
    pub customer_key: Option<(String, Secret)>,
}

/// Access to a bucket of Google Cloud Storage.
#[derive(Clone, Debug)]
pub struct Gcs {
    /// The bucket.
    pub bucket: String,
    /// The id of the project whose it is.
    pub project: Option<String>,
    /// The service account's file.
    pub credential_file: Option<PathBuf>,
    /// A proxy for all requests; may hold a password.
    pub proxy: Option<Secret>,
}

/// Text that is in no message.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The module of a driver: `nfs` of `cinder.backup.drivers.nfs.NFSBackupDriver`, of `cinder.backup.drivers.nfs` (until Queens)
/// and of `cinder.backup.services.nfs` (until Havana).
pub(super) fn driver_name(word: &str) -> Result<&str> {
    ["cinder.backup.drivers.", "cinder.backup.services."]
        .iter()
        .find_map(|start| word.strip_prefix(start))
        .map(|rest| rest.split('.').next().unwrap_or(rest))
        .ok_or_else(|| unsupported(word, "it is not one of Cinder's own, cinder.backup.drivers.…"))
}

/// The classes of Cinder's own drivers, by module.
const CLASSES: [(&str, &str); 7] = [
    ("posix", "PosixBackupDriver"),
    ("nfs", "NFSBackupDriver"),
    ("glusterfs", "GlusterfsBackupDriver"),
    ("swift", "SwiftBackupDriver"),
    ("s3", "S3BackupDriver"),
    ("gcs", "GoogleBackupDriver"),
    ("google", "GoogleBackupDriver"),
];

/// Refuses a class that its module does not have; cinder-backup would not start.
pub(super) fn check_class(word: &str) -> Result<()> {
    let module = driver_name(word)?;
    let class = word.rsplit_once(module).and_then(|(_, rest)| rest.strip_prefix('.'));
    match (CLASSES.iter().find(|(known, _)| *known == module), class) {
        (Some((_, expected)), Some(class)) if class != *expected => {
            Err(unsupported(word, &format!("the class of that driver is {expected}")))
        }
        _ => Ok(()),
    }
}

pub(super) fn unsupported(driver: &str, why: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("backup_driver = {driver:?}: {why}"))
}
