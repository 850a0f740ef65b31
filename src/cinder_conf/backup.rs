//! What the options of each backup driver mean (Cinder 29, `cinder/backup/drivers/*.py`, with the older names of the drivers).
//!
//! Invariants: a driver or option that decides where backups are, and that we cannot follow, is an error that names it; one that
//! only changes how they are written or fetched, and that we do not follow, is in [`BackupConf::ignored`].

use std::fmt;
use std::path::PathBuf;

use super::CinderConf;
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};

const DEFAULT: &str = "DEFAULT";

/// Object size of the drivers for files unless told, in bytes: `backup_file_size`.
const FILE_BYTES: u64 = 1_999_994_880;
/// Object size of the drivers for object stores unless told, in bytes.
const OBJECT_BYTES: u64 = 52_428_800;
/// Hash block size unless told, in bytes.
const BLOCK_BYTES: u64 = 32_768;

/// What cinder-backup is told about backups.
#[derive(Clone, Debug)]
pub struct BackupConf {
    /// Where they live.
    pub driver: Driver,
    /// How cinder-backup compresses, if that is set; zlib else.
    pub compression: Option<Codec>,
    /// How long its objects are before compression, in bytes, if that is set; a multiple of the block's length.
    pub object_bytes: Option<u64>,
    /// How long its hash blocks are, in bytes, if that is set; 32 KiB else.
    pub block_bytes: Option<u64>,
    /// The container it would write to unless the caller names one.
    pub container: Option<String>,
    /// Options that are set, that belong to backups, and that we do not follow, sorted.
    pub ignored: Vec<String>,
    /// What cinder-backup starts with and warns of, a line each.
    pub warnings: Vec<String>,
}

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

impl BackupConf {
    pub(super) fn of(conf: &CinderConf) -> Result<Self> {
        let word = conf.text_or(DEFAULT, "backup_driver", "cinder.backup.drivers.swift.SwiftBackupDriver")?;
        let read = Reader { conf };
        check_class(&word)?;
        let (driver, sizes) = match driver_name(&word)? {
            "posix" => (read.posix()?, FILE_SIZES),
            "nfs" => (Driver::Nfs(read.nfs()?), FILE_SIZES),
            "glusterfs" => (Driver::Glusterfs(read.glusterfs()?), FILE_SIZES),
            "swift" => (Driver::Swift(Box::new(read.swift()?)), SWIFT_SIZES),
            "s3" => (Driver::S3(Box::new(read.s3()?)), S3_SIZES),
            "gcs" | "google" => (Driver::Gcs(read.gcs()?), GCS_SIZES),
            "ceph" => return Err(unsupported(&word, "backups in Ceph RBD are not supported yet")),
            "tsm" => {
                return Err(unsupported(
                    &word,
                    "only IBM's dsmc reads these backups; restore one with it, then open the file",
                ));
            }
            _ => {
                return Err(unsupported(
                    &word,
                    "the known drivers are posix, nfs, glusterfs, swift, s3 and gcs",
                ));
            }
        };
        let container = match &driver {
            Driver::Swift(_) => Some(conf.text_or(DEFAULT, "backup_swift_container", "volumebackups")?),
            // The bucket itself.
            Driver::S3(_) | Driver::Gcs(_) => None,
            _ => conf.text_if_any(DEFAULT, "backup_container")?,
        };
        let block_bytes = read.size(sizes.block)?;
        let object_bytes = read.size(sizes.object)?;
        let (object, block) =
            (object_bytes.unwrap_or(sizes.object_default), block_bytes.unwrap_or(BLOCK_BYTES));
        if !object.is_multiple_of(block) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{} = {object} is no multiple of {} = {block}, as cinder-backup demands",
                    sizes.object, sizes.block
                ),
            ));
        }
        Ok(Self {
            compression: read.compression()?,
            ignored: ignored(conf, &driver),
            warnings: read.half_a_pair(&driver)?.into_iter().collect(),
            driver,
            object_bytes,
            block_bytes,
            container,
        })
    }
}

/// The names of the options that say how long objects and blocks are.
struct Sizes {
    object: &'static str,
    object_default: u64,
    block: &'static str,
}

const FILE_SIZES: Sizes =
    Sizes { object: "backup_file_size", object_default: FILE_BYTES, block: "backup_sha_block_size_bytes" };
const SWIFT_SIZES: Sizes = Sizes {
    object: "backup_swift_object_size",
    object_default: OBJECT_BYTES,
    block: "backup_swift_block_size",
};
const S3_SIZES: Sizes =
    Sizes { object: "backup_s3_object_size", object_default: OBJECT_BYTES, block: "backup_s3_block_size" };
const GCS_SIZES: Sizes =
    Sizes { object: "backup_gcs_object_size", object_default: OBJECT_BYTES, block: "backup_gcs_block_size" };

/// The module of a driver: `nfs` of `cinder.backup.drivers.nfs.NFSBackupDriver`, of `cinder.backup.drivers.nfs` (until Queens)
/// and of `cinder.backup.services.nfs` (until Havana).
fn driver_name(word: &str) -> Result<&str> {
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
fn check_class(word: &str) -> Result<()> {
    let module = driver_name(word)?;
    let class = word.rsplit_once(module).and_then(|(_, rest)| rest.strip_prefix('.'));
    match (CLASSES.iter().find(|(known, _)| *known == module), class) {
        (Some((_, expected)), Some(class)) if class != *expected => {
            Err(unsupported(word, &format!("the class of that driver is {expected}")))
        }
        _ => Ok(()),
    }
}

fn unsupported(driver: &str, why: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("backup_driver = {driver:?}: {why}"))
}

/// Options by driver.
struct Reader<'a> {
    conf: &'a CinderConf,
}

impl Reader<'_> {
    fn posix(&self) -> Result<Driver> {
        let path = self.conf.text_or(DEFAULT, "backup_posix_path", "$state_path/backup")?;
        Ok(Driver::Posix { path: path.into() })
    }

    fn nfs(&self) -> Result<Share> {
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

    fn glusterfs(&self) -> Result<Share> {
        let base = self.conf.text_or(DEFAULT, "glusterfs_backup_mount_point", "$state_path/backup_mount")?;
        Ok(Share {
            source: self.needed("glusterfs_backup_share")?,
            options: None,
            mount_base: base.into(),
            attempts: 1,
        })
    }

    fn swift(&self) -> Result<Swift> {
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
            key: self.optional("backup_swift_key")?.map(Secret),
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

    fn s3(&self) -> Result<S3> {
        self.conf.number(DEFAULT, "backup_s3_retry_max_attempts")?;
        self.check_seconds("backup_s3_timeout")?;
        let algorithm = self.optional("backup_s3_sse_customer_algorithm")?;
        let key = self.optional("backup_s3_sse_customer_key")?.map(Secret);
        Ok(S3 {
            endpoint: self.needed("backup_s3_endpoint_url")?,
            access_key: Secret(self.needed("backup_s3_store_access_key")?),
            secret_key: Secret(self.needed("backup_s3_store_secret_key")?),
            bucket: self.conf.text_or(DEFAULT, "backup_s3_store_bucket", "volumebackups")?,
            verifies_tls: self.conf.flag(DEFAULT, "backup_s3_verify_ssl", true)?,
            ca_file: self.optional("backup_s3_ca_cert_file")?.map(PathBuf::from),
            connections: self.conf.number(DEFAULT, "backup_s3_max_pool_connections")?.unwrap_or(10).max(1),
            // Cinder writes unencrypted unless it has both, and warns of half a pair.
            customer_key: algorithm.zip(key),
        })
    }

    /// What is to be said of one half of a pair of options that the driver takes together or not at all.
    fn half_a_pair(&self, driver: &Driver) -> Result<Option<String>> {
        let Driver::S3(_) = driver else { return Ok(None) };
        let [key, algorithm] = ["backup_s3_sse_customer_key", "backup_s3_sse_customer_algorithm"];
        let (there, missing) = match (self.optional(key)?, self.optional(algorithm)?) {
            (Some(_), None) => (key, algorithm),
            (None, Some(_)) => (algorithm, key),
            _ => return Ok(None),
        };
        Ok(Some(format!("{there} is set and {missing} is not; without both, nothing is encrypted (SSE-C)")))
    }

    fn gcs(&self) -> Result<Gcs> {
        self.conf.number(DEFAULT, "backup_gcs_num_retries")?;
        Ok(Gcs {
            bucket: self.needed("backup_gcs_bucket")?,
            project: self.optional("backup_gcs_project_id")?,
            credential_file: self.optional("backup_gcs_credential_file")?.map(PathBuf::from),
            proxy: self.optional("backup_gcs_proxy_url")?.map(Secret),
        })
    }

    fn compression(&self) -> Result<Option<Codec>> {
        let Some(word) = self.conf.text(DEFAULT, "backup_compression_algorithm")? else { return Ok(None) };
        let codec = Codec::from_name(&word).ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!("backup_compression_algorithm = {word:?}, expected none, zlib, bz2 or zstd"),
            )
        })?;
        Ok(Some(codec))
    }

    fn size(&self, option: &str) -> Result<Option<u64>> {
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

/// Options that we follow, or that say nothing about where backups are, how they are read, or what is in them: service intervals,
/// notifications, which storage class a new bucket gets.
const FOLLOWED: &str = "backup_driver backup_posix_path backup_container backup_file_size backup_sha_block_size_bytes \
    backup_share backup_mount_options backup_mount_point_base backup_mount_attempts glusterfs_backup_share \
    glusterfs_backup_mount_point backup_compression_algorithm \
    backup_swift_url backup_swift_auth_url backup_swift_auth backup_swift_auth_version backup_swift_tenant \
    backup_swift_user_domain backup_swift_project_domain backup_swift_project backup_swift_user backup_swift_key \
    backup_swift_container backup_swift_object_size backup_swift_block_size backup_swift_ca_cert_file backup_swift_auth_insecure backup_swift_region_name \
    backup_s3_endpoint_url backup_s3_store_access_key backup_s3_store_secret_key backup_s3_store_bucket \
    backup_s3_object_size backup_s3_block_size backup_s3_max_pool_connections \
    backup_s3_verify_ssl backup_s3_ca_cert_file backup_s3_sse_customer_key \
    backup_s3_sse_customer_algorithm \
    backup_gcs_bucket backup_gcs_object_size backup_gcs_block_size backup_gcs_credential_file \
    backup_gcs_proxy_url \
    backup_api_class backup_manager backup_metadata_version backup_name_template backup_object_number_per_notification \
    backup_service_inithost_offload backup_timer_interval backup_use_same_host backup_use_temp_snapshot \
    backup_workers backup_max_operations backup_enable_progress_timer backup_swift_enable_progress_timer \
    backup_s3_enable_progress_timer backup_gcs_enable_progress_timer backup_driver_init_check_interval \
    backup_driver_stats_polling_interval backup_driver_status_check_interval backup_native_threads_pool_size \
    backup_create_containers backup_swift_create_storage_policy backup_gcs_bucket_location backup_gcs_storage_class \
    backup_gcs_project_id backup_gcs_user_agent backup_gcs_reader_chunk_size backup_gcs_writer_chunk_size \
    backup_s3_md5_validation backup_gcs_retry_error_codes backup_s3_retry_mode";

/// How long and how often each driver of Cinder's tries. We wait for a store as long as the caller says, in seconds and not in tries: a
/// create that runs for hours should outlive a server that is restarted, whatever a driver would make of it.
const TRIES: [(&str, &[&str]); 3] = [
    ("swift", &["backup_swift_retry_attempts", "backup_swift_retry_backoff"]),
    ("s3", &["backup_s3_timeout", "backup_s3_retry_max_attempts"]),
    ("gcs", &["backup_gcs_num_retries"]),
];

/// Whether the option says how long or how often a store is tried.
pub fn is_about_tries(option: &str) -> bool {
    TRIES.iter().any(|(_, options)| options.contains(&option))
}

/// Options for backups that are set, that are not [`FOLLOWED`], and that do not belong to another driver's matters.
fn ignored(conf: &CinderConf, driver: &Driver) -> Vec<String> {
    let is_anothers_tries =
        |name: &str| TRIES.iter().any(|(of, options)| *of != driver.name() && options.contains(&name));
    let mut names: Vec<_> = conf
        .names(DEFAULT)
        .filter(|name| {
            name.starts_with("backup_")
                && !name.starts_with("backup_ceph_")
                && !name.starts_with("backup_tsm_")
        })
        .filter(|name| !FOLLOWED.split_whitespace().any(|followed| followed == *name))
        .filter(|name| !is_anothers_tries(name))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(text: &str) -> Result<BackupConf> {
        CinderConf::from_text(&format!("[DEFAULT]\n{text}"))?.backup()
    }

    #[test]
    fn drivers_are_known_by_class_and_by_their_old_names() {
        for word in ["drivers.nfs.NFSBackupDriver", "drivers.nfs", "services.nfs"] {
            let conf =
                backup(&format!("backup_driver = cinder.backup.{word}\nbackup_share = h:/x\n")).unwrap();
            let Driver::Nfs(share) = conf.driver else { panic!("{word}: {:?}", conf.driver) };
            assert_eq!(share.source, "h:/x");
            assert_eq!(share.mount_base, PathBuf::from("/var/lib/cinder/backup_mount"));
        }
        for word in
            ["cinder.backup.drivers.ceph.CephBackupDriver", "cinder.backup.drivers.tsm", "my.own.Driver", ""]
        {
            let error = backup(&format!("backup_driver = {word}\n")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{word}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_mistyped_class_is_refused() {
        let of = |word: &str| backup(&format!("backup_driver = cinder.backup.drivers.{word}\n"));
        let error = of("swift.SwiftBackupDrivr").unwrap_err();
        assert!(error.to_string().ends_with("the class of that driver is SwiftBackupDriver"), "{error}");
        for right in ["swift.SwiftBackupDriver", "swift", "posix.PosixBackupDriver", "posix"] {
            assert!(of(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn files_have_cinders_defaults() {
        let conf = backup("backup_driver = cinder.backup.drivers.posix.PosixBackupDriver\n").unwrap();
        let Driver::Posix { path } = &conf.driver else { panic!("{:?}", conf.driver) };
        assert_eq!(path, &PathBuf::from("/var/lib/cinder/backup"));
        assert_eq!((conf.object_bytes, conf.block_bytes), (None, None));
        assert_eq!(conf.compression, None);
        assert_eq!(conf.container, None);
        assert!(conf.ignored.is_empty());
    }

    #[test]
    fn swift_is_what_cinder_takes_when_nothing_is_said() {
        let conf = backup(
            "backup_swift_auth = single_user\nbackup_swift_auth_version = 3\nbackup_swift_auth_url = http://k:5000/v3\n\
             backup_swift_user = u\nbackup_swift_key = s3cret\nbackup_swift_project = p\nbackup_swift_object_size = 65536\n",
        )
        .unwrap();
        let Driver::Swift(swift) = &conf.driver else { panic!("{:?}", conf.driver) };
        assert_eq!((swift.auth_version, swift.project.as_deref()), (3, Some("p")));
        assert_eq!(swift.key.as_ref().unwrap().reveal(), "s3cret");
        assert!(!format!("{conf:?}").contains("s3cret"), "secrets are in no message");
        assert_eq!(conf.container.as_deref(), Some("volumebackups"));
        assert_eq!(conf.object_bytes, Some(65536));
    }

    #[test]
    fn s3_needs_its_keys_and_takes_both_halves_of_sse_c() {
        let text = "backup_driver = cinder.backup.drivers.s3.S3BackupDriver\nbackup_s3_endpoint_url = http://h\n\
                    backup_s3_store_access_key = a\n";
        let error = backup(text).unwrap_err();
        assert!(error.to_string().contains("backup_s3_store_secret_key"), "{error}");
        let text =
            format!("{text}backup_s3_store_secret_key = b\nbackup_s3_sse_customer_algorithm = AES256\n");
        let half = backup(&text).unwrap();
        let Driver::S3(s3) = &half.driver else { panic!("{:?}", half.driver) };
        assert!(s3.customer_key.is_none());
        let said = "backup_s3_sse_customer_algorithm is set and backup_s3_sse_customer_key is not";
        assert!(half.warnings.len() == 1 && half.warnings[0].starts_with(said), "{:?}", half.warnings);
        let both = backup(&format!("{text}backup_s3_sse_customer_key = k\n")).unwrap();
        let Driver::S3(s3) = &both.driver else { panic!("{:?}", both.driver) };
        assert_eq!(s3.customer_key.as_ref().unwrap().0, "AES256");
        assert!(both.warnings.is_empty(), "{:?}", both.warnings);
        let other = text.replace("customer_algorithm = AES256", "customer_key = s3cret");
        let half = backup(&other).unwrap().warnings.join("");
        assert!(half.starts_with("backup_s3_sse_customer_key is set") && !half.contains("s3cret"), "{half}");
    }

    #[test]
    fn what_is_not_followed_is_named() {
        let conf = backup(
            "backup_driver = cinder.backup.drivers.posix.PosixBackupDriver\nbackup_swift_service_auth = true\n\
             backup_future_setting = 1\nbackup_workers = 4\nbackup_ceph_user = x\n",
        )
        .unwrap();
        assert_eq!(conf.ignored, ["backup_future_setting", "backup_swift_service_auth"]);
    }

    #[test]
    fn how_long_and_how_often_cinder_tries_is_not_followed_and_told_of_the_driver_in_use() {
        let all = "backup_s3_timeout = 0.5\nbackup_s3_retry_max_attempts = 4\nbackup_swift_retry_attempts = 3\n\
                   backup_swift_retry_backoff = 2\nbackup_gcs_num_retries = 3\n";
        let s3 = "backup_driver = cinder.backup.drivers.s3.S3BackupDriver\nbackup_s3_endpoint_url = http://h\n\
                  backup_s3_store_access_key = a\nbackup_s3_store_secret_key = b\n";
        let gcs = "backup_driver = cinder.backup.drivers.gcs.GoogleBackupDriver\nbackup_gcs_bucket = b\n";
        let ignored = |text: &str| backup(&format!("{text}{all}")).unwrap().ignored;
        assert_eq!(ignored(s3), ["backup_s3_retry_max_attempts", "backup_s3_timeout"]);
        assert_eq!(ignored(""), ["backup_swift_retry_attempts", "backup_swift_retry_backoff"]);
        assert_eq!(ignored(gcs), ["backup_gcs_num_retries"]);
        assert!(ignored("backup_driver = cinder.backup.drivers.posix\n").is_empty());
        assert!(is_about_tries("backup_s3_timeout") && !is_about_tries("backup_s3_max_pool_connections"));
        for wrong in
            ["backup_s3_timeout = soon", "backup_s3_timeout = -1", "backup_s3_retry_max_attempts = x"]
        {
            let error = backup(&format!("{s3}{wrong}\n")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{wrong}");
        }
    }

    #[test]
    fn sizes_and_words_that_cinder_refuses_are_refused() {
        let posix = "backup_driver = cinder.backup.drivers.posix\n";
        for wrong in [
            "backup_file_size = 100000",
            "backup_file_size = 0",
            "backup_sha_block_size_bytes = x",
            "backup_compression_algorithm = lzma",
        ] {
            let error = backup(&format!("{posix}{wrong}\n")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{wrong}");
        }
        let conf = backup(&format!("{posix}backup_compression_algorithm = BZIP2\n")).unwrap();
        assert_eq!(conf.compression, Some(Codec::Bz2));
    }
}
