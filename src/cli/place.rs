//! What the word STORE means.
//!
//! Problem: backups lie in a directory, on a share that may not be mounted, or where a `cinder.conf` says, and a user gives one word for
//! any of them. Idea: what exists is what it is, a directory or a configuration file; what does not exist and looks like a URL or a
//! share is one. All of them end in a directory or in a bucket behind HTTP.
//!
//! Invariants: an existing path is never taken for anything else; what a cinder.conf sets and we do not follow is told; no server is asked
//! for anything before the store is [opened](Place::open) and used.

mod words;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs;
use std::io;
#[cfg(not(feature = "remote"))]
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "fuse")]
pub(super) use self::words::absolute_word;
pub(super) use self::words::is_word;
#[cfg(not(feature = "remote"))]
use self::words::scheme_of;
use self::words::{configuration_files, directory_of, share_of};
use super::exit::{Failure, call_share, note};
use super::render;
use crate::cinder_conf::backup::is_about_tries;
use crate::cinder_conf::{self, BackupConf, CinderConf, Driver};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind};
use crate::store::posix::PosixStore;
#[cfg(feature = "remote")]
use crate::store::remote::settings::{Settings, environment};
#[cfg(feature = "remote")]
use crate::store::remote::words::Word;
use crate::store::share::{Attached, Share, ShareKind};
use crate::store::{Store, deadline};
use crate::types::ObjectName;
use crate::writer::records::POSIX_DRIVER;

/// The module of the driver for directories.
const POSIX: &str = "posix";

/// A store's place, found.
#[derive(Debug)]
pub(super) struct Place {
    at: At,
    /// The module of Cinder's driver that writes there.
    kind: &'static str,
    conf: Option<BackupConf>,
    /// Keeps the share mounted.
    #[cfg_attr(not(feature = "fuse"), expect(dead_code, reason = "held, and handed over by mounts only"))]
    share: RefCell<Option<Attached>>,
}

#[derive(Debug)]
enum At {
    Directory(PathBuf),
    #[cfg(feature = "remote")]
    Remote(Settings),
}

/// A store, opened.
pub(super) enum Opened {
    /// In a directory; its own type tells the mount which folder that is.
    Directory(Arc<PosixStore>),
    /// Behind HTTP.
    #[cfg(feature = "remote")]
    Remote(Arc<dyn Store>),
}

impl Opened {
    /// The store, of whichever kind.
    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Directory(store) => store.clone(),
            #[cfg(feature = "remote")]
            Self::Remote(store) => store.clone(),
        }
    }
}

/// How a new backup is written unless the call says otherwise: as the cinder.conf says, else as suits us.
#[derive(Debug)]
pub(super) struct Defaults {
    pub(super) codec: Codec,
    pub(super) object_bytes: Option<u64>,
    pub(super) block_bytes: Option<u64>,
    pub(super) container: Option<ObjectName>,
}

impl Place {
    /// Where `word` leads; mounts a share that is not mounted, if that is done within this time.
    pub(super) fn resolve(word: &OsStr, within: Option<Duration>) -> Result<Self, Failure> {
        if let Some(files) = configuration_files(word) {
            let conf = CinderConf::read(&files).map_err(|error| {
                let is_named_so = files.iter().all(|file| file.extension().is_some_and(|end| end == "conf"));
                let is_other = matches!(error.kind(), ErrorKind::Usage | ErrorKind::LimitExceeded);
                match Failure::from(error) {
                    failure if is_other && !is_named_so => failure.hint(
                        "STORE is a file, so it is read as a cinder.conf; give a directory for anything else",
                    ),
                    failure => failure,
                }
            })?;
            let conf = conf.backup()?;
            if let Some(file) = cinder_conf::untold(&files) {
                let file = render::visible(&file.to_string_lossy()).into_owned();
                note(&format!(
                    "cinderfs: {file} is not read, though cinder-backup may read it too\n\
                     hint: if it does, give STORE as {},{file}\n",
                    word.display()
                ));
            }
            return Self::configured(word, conf, within);
        }
        if let Some(share) = share_of(word)? {
            return Self::shared(&share, share.kind().name(), None, within);
        }
        if let Some(at) = remote_of(word)? {
            let kind = match &at {
                At::Directory(_) => POSIX,
                #[cfg(feature = "remote")]
                At::Remote(settings) => settings.name(),
            };
            return Ok(Self { at, kind, conf: None, share: RefCell::default() });
        }
        let at = At::Directory(existing_directory(directory_of(word)?)?);
        Ok(Self { at, kind: POSIX, conf: None, share: RefCell::default() })
    }

    /// The class of Cinder's driver that writes there.
    pub(super) fn driver(&self) -> &'static str {
        match self.kind {
            "nfs" => "cinder.backup.drivers.nfs.NFSBackupDriver",
            "glusterfs" => "cinder.backup.drivers.glusterfs.GlusterfsBackupDriver",
            "swift" => "cinder.backup.drivers.swift.SwiftBackupDriver",
            "s3" => "cinder.backup.drivers.s3.S3BackupDriver",
            "gcs" => "cinder.backup.drivers.gcs.GoogleBackupDriver",
            _ => POSIX_DRIVER,
        }
    }

    /// The directory; `None` for a store behind HTTP.
    pub(super) fn directory(&self) -> Option<&Path> {
        match &self.at {
            At::Directory(path) => Some(path),
            #[cfg(feature = "remote")]
            At::Remote(_) => None,
        }
    }

    /// How a store behind HTTP is reached; `None` for a directory. Who writes there opens it by this.
    #[cfg(feature = "remote")]
    #[cfg_attr(not(feature = "fuse"), expect(dead_code, reason = "asked by mounts so far"))]
    pub(super) fn remote_settings(&self) -> Option<&Settings> {
        match &self.at {
            At::Directory(_) => None,
            At::Remote(settings) => Some(settings),
        }
    }

    /// Opens the store that `word` names. Fails when it does not answer in that time; one behind HTTP is not asked yet, and keeps to that time later.
    pub(super) fn open(&self, word: &OsStr, timeout: Option<Duration>) -> Result<Opened, Failure> {
        match &self.at {
            At::Directory(path) => {
                let path = path.clone();
                let open = move || Ok::<_, Failure>(Arc::new(PosixStore::open(&path)?));
                Ok(Opened::Directory(deadline::in_time(timeout, word, "its folder", open)?))
            }
            #[cfg(feature = "remote")]
            At::Remote(settings) => {
                let settings = settings.clone().with_deadline(timeout.unwrap_or(FOR_EVER));
                Ok(Opened::Remote(settings.open()?))
            }
        }
    }

    /// Adds to why the store could not be read what to do about it.
    pub(super) fn advise(&self, failure: Failure) -> Failure {
        #[cfg(feature = "remote")]
        if let At::Remote(settings) = &self.at {
            let profile = environment("AWS_PROFILE")
                .map(|name| format!("the profile {name:?} of AWS_PROFILE in ~/.aws"));
            let driver = self.conf.as_ref().map(|conf| &conf.driver);
            let (credentials, name) = match (settings, driver) {
                (_, Some(Driver::Swift(swift))) if swift.is_single_user => {
                    ("backup_swift_user and backup_swift_key in the cinder.conf", "backup_swift_container")
                }
                (_, Some(Driver::S3(_))) => (
                    "backup_s3_store_access_key and backup_s3_store_secret_key in the cinder.conf",
                    "backup_s3_store_bucket",
                ),
                (_, Some(Driver::Gcs(_))) => {
                    ("backup_gcs_credential_file in the cinder.conf", "backup_gcs_bucket")
                }
                (Settings::Swift(_), _) => (
                    "OS_CLOUD, or OS_AUTH_URL, OS_USERNAME, OS_PASSWORD and OS_PROJECT_NAME",
                    "the container",
                ),
                (Settings::S3(s3), _) if s3.keys.is_none() && profile.is_some() => {
                    (profile.as_deref().unwrap_or_default(), "the bucket")
                }
                (Settings::S3(_), _) => {
                    ("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION", "the bucket")
                }
                (Settings::Gcs(_), _) => ("GOOGLE_APPLICATION_CREDENTIALS", "the bucket"),
            };
            return match failure.kind() {
                ErrorKind::AccessDenied => failure.hint(format!("check {credentials}")),
                ErrorKind::StoreNotFound => {
                    failure.hint(format!("check the name of {name}, and the endpoint"))
                }
                _ => failure,
            };
        }
        failure
    }

    /// Adds to why nothing could be put into a container what names all of them, where the store is a single one.
    pub(super) fn advise_of_containers(&self, failure: Failure) -> Failure {
        #[cfg(feature = "remote")]
        if let At::Remote(settings) = &self.at
            && !self.has_containers()
            && failure.kind() == ErrorKind::Usage
        {
            let all = match settings {
                Settings::Swift(_) => "swift:",
                Settings::S3(_) => "s3://?endpoint=URL",
                Settings::Gcs(_) => "gs://",
            };
            return failure.hint(format!("the store {all} is all containers, and takes --container"));
        }
        failure
    }

    /// How a new backup is written here unless the call says otherwise.
    pub(super) fn defaults(&self) -> Result<Defaults, Failure> {
        let Some(conf) = &self.conf else {
            return Ok(Defaults {
                codec: Codec::Zlib,
                object_bytes: None,
                block_bytes: None,
                container: None,
            });
        };
        // A store that is a container itself is written to without naming it.
        let container = conf.container.as_deref().filter(|_| self.has_containers());
        let container = container.map(ObjectName::parse).transpose();
        Ok(Defaults {
            codec: conf.compression.unwrap_or(Codec::Zlib),
            object_bytes: conf.object_bytes,
            block_bytes: conf.block_bytes,
            container: container.map_err(|error| error.context("backup_container of the cinder.conf"))?,
        })
    }

    fn has_containers(&self) -> bool {
        match &self.at {
            At::Directory(_) => true,
            #[cfg(feature = "remote")]
            At::Remote(Settings::Swift(settings)) => settings.container.is_none(),
            #[cfg(feature = "remote")]
            At::Remote(Settings::S3(settings)) => settings.bucket.is_empty(),
            #[cfg(feature = "remote")]
            At::Remote(Settings::Gcs(settings)) => settings.bucket.is_empty(),
        }
    }

    #[cfg(feature = "fuse")]
    /// Has the share, if it is mounted for us only, kept by whom `take_over` makes out of its mountpoint.
    pub(super) fn hand_over<T>(
        &self,
        take_over: impl FnOnce(&Path) -> crate::Result<T>,
    ) -> Result<Option<T>, Failure> {
        let mut share = self.share.borrow_mut();
        let Some(ours) = share.as_ref().filter(|share| share.is_ours()) else { return Ok(None) };
        let keeper = take_over(ours.path())?;
        *share = None;
        Ok(Some(keeper))
    }

    fn configured(word: &OsStr, conf: BackupConf, within: Option<Duration>) -> Result<Self, Failure> {
        let (tries, others): (Vec<_>, _) =
            conf.ignored.iter().cloned().partition(|name| is_about_tries(name));
        for (names, instead) in
            [(others, ""), (tries, "; how long a store is tried is what the store timeout says")]
        {
            if names.is_empty() {
                continue;
            }
            note(&format!(
                "cinderfs: {} sets what cinderfs does not follow: {}{instead}\n",
                word.display(),
                render::visible(&names.join(", "))
            ));
        }
        for warning in &conf.warnings {
            note(&format!("cinderfs: {}: {warning}\n", word.display()));
        }
        let share = |kind, share: &cinder_conf::backup::Share| -> Result<Share, Failure> {
            let found = Share::new(kind, &share.source)?;
            Ok(found.with_options(share.options.as_deref()).with_attempts(share.attempts))
        };
        let kind = conf.driver.name();
        match &conf.driver {
            Driver::Posix { path } => {
                let path = existing_directory(path.clone()).map_err(|failure| {
                    failure.hint(format!("{} names it as backup_posix_path", word.display()))
                })?;
                Ok(Self { at: At::Directory(path), kind, conf: Some(conf), share: RefCell::default() })
            }
            Driver::Nfs(wanted) => Self::shared(&share(ShareKind::Nfs, wanted)?, kind, Some(conf), within),
            Driver::Glusterfs(wanted) => {
                Self::shared(&share(ShareKind::Glusterfs, wanted)?, kind, Some(conf), within)
            }
            #[cfg(not(feature = "remote"))]
            driver @ (Driver::Swift(_) | Driver::S3(_) | Driver::Gcs(_)) => Err(without(driver.name())),
            #[cfg(feature = "remote")]
            Driver::Swift(_) | Driver::S3(_) | Driver::Gcs(_) => {
                let settings = Settings::from_conf(&conf, &environment);
                let settings =
                    settings.unwrap_or_else(|| Err(Error::new(ErrorKind::Usage, "it names no bucket")));
                let settings = settings.map_err(|error| error.context(word.display().to_string()))?;
                Ok(Self { at: At::Remote(settings), kind, conf: Some(conf), share: RefCell::default() })
            }
        }
    }

    fn shared(
        share: &Share,
        kind: &'static str,
        conf: Option<BackupConf>,
        within: Option<Duration>,
    ) -> Result<Self, Failure> {
        // What hangs is ended, and told, before the caller gives up.
        let attached = share.attach(within.map(|within| within * 9 / 10))?;
        if attached.is_ours() {
            call_share(attached.path(), &share.to_string());
        }
        let at = At::Directory(attached.path().to_owned());
        Ok(Self { at, kind, conf, share: RefCell::new(Some(attached)) })
    }
}

/// How long a store behind HTTP is tried where nothing limits it.
#[cfg(feature = "remote")]
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The store behind HTTP that a word names.
#[cfg(feature = "remote")]
fn remote_of(word: &OsStr) -> Result<Option<At>, Failure> {
    let parsed = word.to_str().filter(|_| fs::symlink_metadata(word).is_err()).and_then(Word::parse);
    let Some(parsed) = parsed else { return Ok(None) };
    Ok(Some(At::Remote(parsed?.settings(&environment)?)))
}

#[cfg(not(feature = "remote"))]
fn remote_of(word: &OsStr) -> Result<Option<At>, Failure> {
    match scheme_of(word.as_bytes()) {
        Some((scheme @ ("swift" | "s3" | "gs"), _)) => Err(without(scheme)),
        _ => Ok(None),
    }
}

#[cfg(not(feature = "remote"))]
fn without(kind: &str) -> Failure {
    Failure::new(ErrorKind::Usage, format!("{kind}: this cinderfs was built without object stores"))
        .hint("build it with the feature `remote`, which is on by default")
}

fn existing_directory(path: PathBuf) -> Result<PathBuf, Failure> {
    match fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => Ok(path),
        Ok(_) => Err(Failure::new(ErrorKind::Usage, format!("{path:?} is not a directory"))),
        Err(error) => {
            let kind = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::StoreNotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::AccessDenied,
                _ => ErrorKind::StoreIo,
            };
            Err(Error::caused_by(kind, format!("cannot open the store {path:?}"), error).into())
        }
    }
}
