//! What the word STORE means.
//!
//! Problem: backups lie in a directory, on a share that may not be mounted, or where a `cinder.conf` says, and a user gives one word for
//! any of them. Idea: what exists is what it is, a directory or a configuration file; what does not exist and looks like a URL or a
//! share is one. All of them end in a directory or in a bucket behind HTTP.
//!
//! Invariants: an existing path is never taken for anything else; what a cinder.conf sets and we do not follow is told; no server is asked
//! for anything before the store is [opened](Place::open) and used.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::exit::{Failure, note};
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
        if !conf.ignored.is_empty() {
            let names = conf.ignored.join(", ");
            let tries = conf.ignored.iter().any(|name| is_about_tries(name));
            let instead =
                if tries { "; how long a store is tried is what the store timeout says" } else { "" };
            note(&format!(
                "cinderfs: {} sets what cinderfs does not follow: {}{instead}\n",
                word.display(),
                render::visible(&names)
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
        let at = At::Directory(attached.path().to_owned());
        Ok(Self { at, kind, conf, share: RefCell::new(Some(attached)) })
    }
}

/// How long a store behind HTTP is tried where nothing limits it.
#[cfg(feature = "remote")]
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether a store behind HTTP can be given by this word.
#[cfg(feature = "remote")]
pub(super) fn is_word(word: &str) -> bool {
    Word::parse(word).is_some_and(|parsed| parsed.is_ok())
}

#[cfg(not(feature = "remote"))]
pub(super) fn is_word(_: &str) -> bool {
    false
}

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

#[cfg(feature = "fuse")]
/// The word as another process in another working directory has to be given it.
pub(super) fn absolute_word(word: &OsStr) -> OsString {
    if let Some(files) = configuration_files(word) {
        let files: Vec<OsString> = files.iter().map(|file| absolute(file)).collect();
        return files.join(OsStr::new(","));
    }
    #[cfg(feature = "remote")]
    if word
        .to_str()
        .filter(|_| fs::symlink_metadata(word).is_err())
        .is_some_and(|word| Word::parse(word).is_some())
    {
        return word.to_owned();
    }
    match share_of(word) {
        Ok(Some(_)) => word.to_owned(),
        _ => directory_of(word).map_or_else(|_| word.to_owned(), |path| absolute(&path)),
    }
}

#[cfg(feature = "fuse")]
/// A path from the root, or as it is where that cannot be told.
fn absolute(path: &Path) -> OsString {
    std::path::absolute(path).unwrap_or_else(|_| path.into()).into()
}

/// The files of a word that is a configuration: one that exists, or several with commas between them, of which one does.
fn configuration_files(word: &OsStr) -> Option<Vec<PathBuf>> {
    let is_file = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.is_file());
    if is_file(Path::new(word)) {
        return Some(vec![word.into()]);
    }
    let files: Vec<PathBuf> =
        word.as_bytes().split(|&b| b == b',').map(|name| PathBuf::from(OsStr::from_bytes(name))).collect();
    let is_list = files.len() > 1 && fs::symlink_metadata(word).is_err();
    (is_list && files.iter().any(|file| is_file(file))).then_some(files)
}

/// The share that a word names: `nfs://HOST/PATH`, `glusterfs://HOST/VOLUME`, or `HOST:/PATH` where no such path exists, which is of
/// GlusterFS if it is mounted as that, else of NFS.
fn share_of(word: &OsStr) -> Result<Option<Share>, Failure> {
    let Some(text) = word.to_str().filter(|_| fs::symlink_metadata(word).is_err()) else { return Ok(None) };
    for (start, kind) in [("nfs://", ShareKind::Nfs), ("glusterfs://", ShareKind::Glusterfs)] {
        if let Some(rest) = text.strip_prefix(start) {
            let Some((host, path)) = rest.split_once('/') else {
                return Err(Failure::new(
                    ErrorKind::Usage,
                    format!("{text:?} names no share; expected {start}HOST/PATH"),
                ));
            };
            return Ok(Some(Share::new(kind, &format!("{host}:/{path}"))?));
        }
    }
    let is_share = scheme_of(word.as_bytes()).is_none()
        && text.rsplit_once(":/").is_some_and(|(host, _)| !host.is_empty() && !host.contains('/'));
    if !is_share {
        return Ok(None);
    }
    let glusterfs = Share::new(ShareKind::Glusterfs, text)?;
    Ok(Some(if glusterfs.is_mounted()? { glusterfs } else { Share::new(ShareKind::Nfs, text)? }))
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

/// The path of a STORE word: itself, or that of its file:// URL.
fn directory_of(word: &OsStr) -> Result<PathBuf, Failure> {
    let Some((scheme, rest)) = scheme_of(word.as_bytes()) else { return Ok(word.into()) };
    let usage = |why: &str| Failure::new(ErrorKind::Usage, format!("{word:?} {why}"));
    if scheme != "file" {
        return Err(usage("is no store; expected a directory, HOST:/PATH, s3://, swift: or gs://"));
    }
    let path = rest.strip_prefix(b"//").ok_or_else(|| usage("is no file URL; expected file:///path"))?;
    let path = path.strip_prefix(b"localhost").filter(|path| path.starts_with(b"/")).unwrap_or(path);
    if !path.starts_with(b"/") {
        return Err(usage("names another host; mount its share and give the directory"));
    }
    let path = percent_decoded(path).ok_or_else(|| usage("has a '%' without two hexadecimal digits"))?;
    Ok(OsString::from_vec(path).into())
}

/// Splits a URL after its scheme. `x://…` is always one, `x:…` for the schemes of stores only: colons are legal in
/// directory names, and `./` before such a name makes it a path again.
fn scheme_of(word: &[u8]) -> Option<(&str, &[u8])> {
    let colon = word.iter().position(|&b| b == b':')?;
    let (scheme, rest) = (std::str::from_utf8(&word[..colon]).ok()?, &word[colon + 1..]);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    let is_store = matches!(scheme, "file" | "swift" | "s3" | "gs");
    (is_scheme && (is_store || rest.starts_with(b"//"))).then_some((scheme, rest))
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || (*rest.next()? as char).to_digit(16);
            let value = digit()? << 4 | digit()?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_directories_and_file_urls() {
        let path = |word: &str| directory_of(OsStr::new(word)).map_err(|failure| failure.code());
        assert_eq!(path("/backup_mount"), Ok("/backup_mount".into()));
        assert_eq!(path("./swift:x"), Ok("./swift:x".into()));
        assert_eq!(path("host:dir"), Ok("host:dir".into()));
        assert_eq!(path("file:///srv/a%20b%2f"), Ok("/srv/a b/".into()));
        assert_eq!(path("file://localhost/srv"), Ok("/srv".into()));
        for bad in [
            "swift://c",
            "swift:c",
            "s3://bucket",
            "gs://b",
            "https://x/y",
            "file://host/x",
            "file:x",
            "file:///%2",
            "file:///%zz",
        ] {
            assert_eq!(path(bad), Err(2), "{bad}");
        }
    }

    #[test]
    fn shares_are_known_by_their_colon() {
        let share = |word: &str| share_of(OsStr::new(word)).map(|share| share.map(|share| share.to_string()));
        assert_eq!(share("nas:/exports/b").unwrap().as_deref(), Some("nas:/exports/b"));
        assert_eq!(share("[fe80::1]:/b").unwrap().as_deref(), Some("[fe80::1]:/b"));
        assert_eq!(share("nfs://nas/exports").unwrap().as_deref(), Some("nas:/exports"));
        assert_eq!(share("glusterfs://nas/vol").unwrap().as_deref(), Some("nas:/vol"));
        for word in ["/backup", "./nas:/b", "a/b:/c", "nas:dir", "s3://b", "file:///x", ":/x"] {
            assert_eq!(share(word).unwrap(), None, "{word}");
        }
        assert!(share("nfs://nas").is_err());
    }

    #[cfg(feature = "fuse")]
    #[test]
    fn words_go_to_a_child_as_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            path.into_os_string()
        };
        let both = [file("a.conf"), file("b.conf")].join(OsStr::new(","));
        assert_eq!(absolute_word(&both), both);
        assert_eq!(absolute_word(OsStr::new("nas:/b")), "nas:/b");
        assert_eq!(absolute_word(OsStr::new("src")), std::env::current_dir().unwrap().join("src"));
        assert_eq!(absolute_word(OsStr::new("file:///srv/x")), "/srv/x");
    }
}
