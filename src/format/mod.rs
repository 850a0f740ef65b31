//! The bytes Cinder writes.
//!
//! ```text
//! <store>/<container>/<prefix>-00001 … -NNNNN     data objects, numbered from 1; the number widens past 99999
//!                    /<prefix>_sha256file         JSON: the digest of every block of the *whole* volume
//!                    /<prefix>_metadata           JSON: what the backup is, and its objects; written last
//! ```
//!
//! | driver | container | prefix |
//! | --- | --- | --- |
//! | POSIX, NFS, GlusterFS | the user's `--container`, else `<id[0:2]>/<id[2:4]>/<id>` | `volume_<volume>_<YYYYmmddHHMMSS>_backup_<id>` |
//! | the same, Cinder <= 10.0.2 | the same | `backup` |
//! | Swift, S3, GCS | given, or `volumebackups` | `volume_<volume>/<time>/az_<az>_backup_<id>` |
//!
//! Both documents are `json.dumps(…, sort_keys=True, indent=2)`. Python 3 separates with `,\n`, Python 2 (Cinder up to
//! 15) with `, \n`; so a digest takes 72 or 73 bytes. Nothing in a name or a document is to be trusted: genuine Cinder
//! restores without checking `md5`, `length` or any digest, so wrong ones are found in the wild.
//!
//! Nothing here opens, reads or writes a file: these modules turn bytes into values, and are shared by whoever reads or
//! writes backups.

pub mod json;
pub mod names;
pub mod metadata;
pub mod sha256file;
pub mod points;
pub mod write;
