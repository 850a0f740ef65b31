//! What the options of each driver say: defaults, what is needed, and what cannot be.

use std::path::PathBuf;

use super::drivers::{Driver, Gcs, S3, Secret, Share, Swift};
use crate::cinder_conf::CinderConf;
use crate::cinder_conf::DEFAULT;
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};

/// Options by driver.
pub(super) struct Reader<'a> {
    conf: &'a CinderConf,
}

impl<'a> Reader<'a> {
    pub(super) fn new(conf: &'a CinderConf) -> Self {
        Self { conf }
    }

    pub(super) fn posix(&self) -> Result<Driver> {
        let path = self.conf.text_or(DEFAULT, "backup_posix_path", "$state_path/backup")?;
        Ok(Driver::Posix { path: path.into() })
    }

    pub(super) fn nfs(&self) -> Result<Share> {
        Ok(Share {
            source: self.needed("backup_share")?,
            options: self.optional("backup_mount_options")?,
            mount_base: self
                .conf
                .text_or(DEFAULT, "backup_mount_point_base", "$state_path/backup_mount")?
                .into(),
            attempts: self.conf.number(DEFAULT, "backup_mount_attempts")?.unwrap_or(3).max(1),
        })
    }

    pub(super) fn glusterfs(&self) -> Result<Share> {
        let base = self.conf.text_or(DEFAULT, "glusterfs_backup_mount_point", "$state_path/backup_mount")?;
        Ok(Share {
            source: self.needed("glusterfs_backup_share")?,
            options: None,
            mount_base: base.into(),
            attempts: 1,
        })
    }

    pub(super) fn swift(&self) -> Result<Swift> {
        self.conf.number(DEFAULT, "backup_swift_retry_attempts")?;
        self.conf.number(DEFAULT, "backup_swift_retry_backoff")?;
        let how = self.conf.text_or(DEFAULT, "backup_swift_auth", "per_user")?;
        let is_single_user = match how.as_str() {
            "single_user" => true,
            "per_user" => false,
            _ => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("backup_swift_auth = {how:?}, expected per_user or single_user"),
                ));
            }
        };
        let version = self.conf.text_or(DEFAULT, "backup_swift_auth_version", "1")?;
        let auth_version = match version.trim_end_matches(".0") {
            "1" => 1,
            "2" => 2,
            "3" => 3,
            _ => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("backup_swift_auth_version = {version:?}, expected 1, 2 or 3"),
                ));
            }
        };
        let project = match self.optional("backup_swift_project")? {
            Some(project) => Some(project),
            None => self.optional("backup_swift_tenant")?,
        };
        let storage_url = self.optional("backup_swift_url")?;
        let asks_catalogue = !is_single_user && storage_url.is_none();
        Ok(Swift {
            interface: if asks_catalogue { self.catalogue_interface()? } else { None },
            storage_url,
            auth_url: if is_single_user {
                Some(self.needed("backup_swift_auth_url")?)
            } else {
                self.optional("backup_swift_auth_url")?
            },
            is_single_user,
            auth_version,
            user: if is_single_user {
                Some(self.needed("backup_swift_user")?)
            } else {
                self.optional("backup_swift_user")?
            },
            key: self.optional("backup_swift_key")?.map(Secret::new),
            project,
            user_domain: self.optional("backup_swift_user_domain")?,
            project_domain: self.optional("backup_swift_project_domain")?,
            region: self.optional("backup_swift_region_name")?,
            ca_file: self.optional("backup_swift_ca_cert_file")?.map(PathBuf::from),
            is_insecure: self.conf.flag(DEFAULT, "backup_swift_auth_insecure", false)?,
        })
    }

    /// Of `<service type>:<service name>:<endpoint type>`.
    fn catalogue_interface(&self) -> Result<Option<String>> {
        let Some(info) = self.optional("swift_catalog_info")? else { return Ok(None) };
        match info.split(':').collect::<Vec<_>>()[..] {
            ["object-store", _, interface] => Ok(Some(interface.to_owned())),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("swift_catalog_info = {info:?}, expected object-store:NAME:INTERFACE"),
            )),
        }
    }

    pub(super) fn s3(&self) -> Result<S3> {
        self.conf.number(DEFAULT, "backup_s3_retry_max_attempts")?;
        self.check_seconds("backup_s3_timeout")?;
        let algorithm = self.optional("backup_s3_sse_customer_algorithm")?;
        let key = self.optional("backup_s3_sse_customer_key")?.map(Secret::new);
        Ok(S3 {
            endpoint: self.needed("backup_s3_endpoint_url")?,
            access_key: Secret::new(self.needed("backup_s3_store_access_key")?),
            secret_key: Secret::new(self.needed("backup_s3_store_secret_key")?),
            bucket: self.conf.text_or(DEFAULT, "backup_s3_store_bucket", "volumebackups")?,
            verifies_tls: self.conf.flag(DEFAULT, "backup_s3_verify_ssl", true)?,
            ca_file: self.optional("backup_s3_ca_cert_file")?.map(PathBuf::from),
            connections: self.conf.number(DEFAULT, "backup_s3_max_pool_connections")?.unwrap_or(10).max(1),
            // Cinder writes unencrypted unless it has both, and warns of half a pair.
            customer_key: algorithm.zip(key),
        })
    }

    /// What is to be said of one half of a pair of options that the driver takes together or not at all.
    pub(super) fn half_a_pair(&self, driver: &Driver) -> Result<Option<String>> {
        let Driver::S3(_) = driver else { return Ok(None) };
        let [key, algorithm] = ["backup_s3_sse_customer_key", "backup_s3_sse_customer_algorithm"];
        let (there, missing) = match (self.optional(key)?, self.optional(algorithm)?) {
            (Some(_), None) => (key, algorithm),
            (None, Some(_)) => (algorithm, key),
            _ => return Ok(None),
        };
        Ok(Some(format!("{there} is set and {missing} is not; without both, nothing is encrypted (SSE-C)")))
    }

    pub(super) fn gcs(&self) -> Result<Gcs> {
        self.conf.number(DEFAULT, "backup_gcs_num_retries")?;
        Ok(Gcs {
            bucket: self.needed("backup_gcs_bucket")?,
            project: self.optional("backup_gcs_project_id")?,
            credential_file: self.optional("backup_gcs_credential_file")?.map(PathBuf::from),
            proxy: self.optional("backup_gcs_proxy_url")?.map(Secret::new),
        })
    }

    pub(super) fn compression(&self) -> Result<Option<Codec>> {
        let Some(word) = self.conf.text(DEFAULT, "backup_compression_algorithm")? else { return Ok(None) };
        let codec = Codec::from_name(&word).ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!("backup_compression_algorithm = {word:?}, expected none, zlib, bz2 or zstd"),
            )
        })?;
        Ok(Some(codec))
    }

    pub(super) fn size(&self, option: &str) -> Result<Option<u64>> {
        match self.conf.number(DEFAULT, option)? {
            Some(0) => Err(Error::new(ErrorKind::Usage, format!("{option} = 0, expected at least 1 byte"))),
            bytes => Ok(bytes),
        }
    }

    /// Whether it is a time in seconds, if it is set; oslo.config takes fractions.
    fn check_seconds(&self, option: &str) -> Result<()> {
        let Some(text) = self.optional(option)? else { return Ok(()) };
        match text.trim().parse::<f64>() {
            Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(()),
            _ => Err(Error::new(ErrorKind::Usage, format!("{option} = {text:?} is no time in seconds"))),
        }
    }

    fn optional(&self, option: &str) -> Result<Option<String>> {
        self.conf.text_if_any(DEFAULT, option)
    }

    fn needed(&self, option: &str) -> Result<String> {
        self.optional(option)?.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{option} is not set, and the driver needs it"))
        })
    }
}
