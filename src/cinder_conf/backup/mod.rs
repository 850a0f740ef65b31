//! What the options of each backup driver mean (Cinder 29, `cinder/backup/drivers/*.py`, with the older names of the drivers).
//!
//! - [`drivers`]: which drivers there are, and how each sees its place.
//! - [`options`]: what is read of each driver's options.
//! - [`followed`]: which options are told because they are not followed.
//!
//! Invariants: a driver or option that decides where backups are, and that we cannot follow, is an error that names it; one that
//! only changes how they are written or fetched, and that we do not follow, is in [`BackupConf::ignored`].

mod drivers;
mod followed;
mod options;

pub use self::drivers::{Driver, Gcs, S3, Secret, Share, Swift};
use self::drivers::{check_class, driver_name, unsupported};
use self::followed::ignored;
pub use self::followed::is_about_tries;
use self::options::Reader;
use super::{CinderConf, DEFAULT};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};

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

impl BackupConf {
    pub(super) fn of(conf: &CinderConf) -> Result<Self> {
        let word = conf.text_or(DEFAULT, "backup_driver", "cinder.backup.drivers.swift.SwiftBackupDriver")?;
        let read = Reader::new(conf);
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

#[cfg(test)]
mod tests;
