//! What a `cinder.conf` says about backups.
//!
//! Problem: an operator has already written down where backups live, in the files that cinder-backup reads, and will not write
//! it down again for us. Idea: read these files as oslo.config does, and turn the backup section into one [`BackupConf`]: which
//! driver, which place, and what that driver would write with.
//!
//! The variables of the environment that oslo.config takes options from count as well, where they are set for us: in a container, say, whose
//! cinder-backup is told that way.
//!
//! - [`syntax`]: the lines of one file.
//! - [`values`]: what an option is in the end: the last file wins, `$other` is filled in.
//! - [`backup`]: what the options of each backup driver mean.
//!
//! Invariants: what cinder-backup would refuse to start with is refused; a setting that changes what we would read or write, and
//! that we do not follow, is named in [`BackupConf::ignored`]; no message quotes a secret.

pub mod backup;
mod syntax;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use backup::{BackupConf, Driver};
use syntax::Sections;

use crate::error::{Error, ErrorKind, Result};
use crate::types::count;

/// The section of options that are in no group.
const DEFAULT: &str = "DEFAULT";

/// Most bytes of one file. Cinder's sample file with every option and its help has about 250 KB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Most files that are read. Deployment tools make one for each back end, some dozens.
const FILES_MAX: usize = 1024;

/// Begins the names of variables that set options of `[DEFAULT]`; the option's name follows, in capital letters.
const VARIABLE: &str = "OS_DEFAULT__";

/// The files of one service, as oslo.config reads them together.
#[derive(Debug, Default)]
pub struct CinderConf {
    /// In the order in which they were read; later ones win.
    files: Vec<(PathBuf, Sections)>,
}

impl CinderConf {
    /// Reads `files` in this order, and behind all of them, in the same order, the `*.conf` files of the folder beside each that is
    /// named like it with `.d` added, sorted: as cinder-backup does with what lies in `/etc/cinder` when it is started without
    /// `--config-file`. Variables of the environment win over all files. [`ErrorKind::StoreNotFound`] when a file is not there, [`ErrorKind::AccessDenied`] when it may not be read,
    /// [`ErrorKind::Usage`] when oslo.config would not take it.
    pub fn read(files: &[PathBuf]) -> Result<Self> {
        let mut all = files.to_vec();
        for file in files {
            all.extend(beside(file)?);
        }
        if all.len() > FILES_MAX {
            return Err(Error::new(
                ErrorKind::LimitExceeded,
                format!("{} configuration files, expected at most {FILES_MAX}", all.len()),
            ));
        }
        let mut conf = Self::default();
        for file in all {
            let text = text_of(&file)?;
            let sections = syntax::parse(&text)
                .map_err(|error| Error::new(ErrorKind::Usage, format!("{file:?} {error}")))?;
            conf.files.push((file, sections));
        }
        conf.add_variables(std::env::vars_os());
        Ok(conf)
    }

    /// Adds what variables say of options in `[DEFAULT]`, as they stand there: oslo.config takes neither quotes nor blanks off.
    fn add_variables(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) {
        let options: BTreeMap<_, _> = variables
            .filter_map(|(name, value)| {
                let option = name.to_str()?.strip_prefix(VARIABLE)?.to_lowercase();
                Some((option, vec![value.into_string().ok()?]))
            })
            .collect();
        if !options.is_empty() {
            let sections = Sections::from([(DEFAULT.to_owned(), options)]);
            self.files.push((PathBuf::from(format!("{VARIABLE}… of the environment")), sections));
        }
    }

    /// What they say about backups.
    pub fn backup(&self) -> Result<BackupConf> {
        BackupConf::of(self).map_err(|error| self.located(error))
    }

    /// The error with the file that it is about: messages about an option begin with its name.
    fn located(&self, error: Error) -> Error {
        let message = error.to_string();
        let option = message.split([' ', ':']).next().unwrap_or_default();
        let has = |sections: &Sections| sections.get(DEFAULT).is_some_and(|set| set.contains_key(option));
        match (self.files.iter().rev().find(|(_, sections)| has(sections)), &self.files[..]) {
            (Some((file, _)), _) | (None, [(file, _)]) => error.context(file.display().to_string()),
            (None, [(file, _), others @ ..]) => {
                error.context(format!("{} and {}", file.display(), count(others.len() as u64, "more file")))
            }
            (None, []) => error,
        }
    }

    /// The configuration of one text, for tests and for documents that are no files.
    pub fn from_text(text: &str) -> Result<Self> {
        let sections =
            syntax::parse(text).map_err(|error| Error::new(ErrorKind::Usage, error.to_string()))?;
        Ok(Self { files: vec![(PathBuf::from("cinder.conf"), sections)] })
    }
}

/// The `cinder-backup.conf` beside a `cinder.conf` of `files` that is none of them; cinder-backup started without `--config-file`
/// reads both.
pub fn untold(files: &[PathBuf]) -> Option<PathBuf> {
    let told: Vec<PathBuf> = files.iter().filter_map(|file| fs::canonicalize(file).ok()).collect();
    let beside = files.iter().filter(|file| file.file_name().is_some_and(|name| name == "cinder.conf"));
    beside
        .map(|file| file.with_file_name("cinder-backup.conf"))
        .find(|other| fs::canonicalize(other).is_ok_and(|found| found.is_file() && !told.contains(&found)))
}

/// The `*.conf` files of `FILE.d`, sorted by name; none where there is no such folder. Hidden ones are not read, such as what editors
/// leave.
fn beside(file: &Path) -> Result<Vec<PathBuf>> {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(unreadable(&folder, error)),
    };
    let mut files = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let path = entry.map_err(|error| unreadable(&folder, error))?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|extension| extension == "conf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn text_of(file: &Path) -> Result<String> {
    let opened = fs::File::open(file).map_err(|error| unreadable(file, error))?;
    let mut bytes = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(file, error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("{file:?} has more than {FILE_BYTES_MAX} bytes"),
        ));
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::new(ErrorKind::Usage, format!("{file:?} is no text: it is not UTF-8")))
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::StoreNotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::AccessDenied,
        _ => ErrorKind::StoreIo,
    };
    Error::caused_by(kind, format!("cannot read {path:?}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_win_and_the_folders_beside_files_come_behind_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("dist.conf"), "[DEFAULT]\nstate_path = /dist\nbackup_posix_path = $state_path/b\n")
            .unwrap();
        fs::write(path("cinder.conf"), "[DEFAULT]\nstate_path = /main\n").unwrap();
        fs::create_dir(path("cinder.conf.d")).unwrap();
        fs::write(path("cinder.conf.d/20.conf"), "[DEFAULT]\nstate_path = /twenty\n").unwrap();
        fs::write(path("cinder.conf.d/10.conf"), "[DEFAULT]\nstate_path = /ten\n").unwrap();
        fs::write(path("cinder.conf.d/30.conf.rpmsave"), "[DEFAULT]\nstate_path = /old\n").unwrap();
        let conf = CinderConf::read(&[path("dist.conf"), path("cinder.conf")]).unwrap();
        assert_eq!(conf.text("DEFAULT", "backup_posix_path").unwrap().as_deref(), Some("/twenty/b"));
        let conf = CinderConf::read(&[path("dist.conf")]).unwrap();
        assert_eq!(conf.text("DEFAULT", "backup_posix_path").unwrap().as_deref(), Some("/dist/b"));
        // What `oslo.config` takes of the same files, when they are its default ones, was looked up by running it.
        let conf = CinderConf::read(&[path("cinder.conf"), path("dist.conf")]).unwrap();
        assert_eq!(conf.text("DEFAULT", "backup_posix_path").unwrap().as_deref(), Some("/twenty/b"));
        fs::create_dir(path("dist.conf.d")).unwrap();
        fs::write(path("dist.conf.d/10.conf"), "[DEFAULT]\nstate_path = /late\n").unwrap();
        let conf = CinderConf::read(&[path("cinder.conf"), path("dist.conf")]).unwrap();
        assert_eq!(conf.text("DEFAULT", "backup_posix_path").unwrap().as_deref(), Some("/late/b"));
    }

    #[test]
    fn what_an_editor_leaves_in_a_folder_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("cinder.conf"), "[DEFAULT]\nbackup_posix_path = /b\n").unwrap();
        fs::create_dir(path("cinder.conf.d")).unwrap();
        std::os::unix::fs::symlink("root@host.1234", path("cinder.conf.d/.#10.conf")).unwrap();
        fs::write(path("cinder.conf.d/.10.conf"), "nonsense").unwrap();
        let conf = CinderConf::read(&[path("cinder.conf")]).unwrap();
        assert_eq!(conf.text("DEFAULT", "backup_posix_path").unwrap().as_deref(), Some("/b"));
    }

    #[test]
    fn a_file_of_cinder_backups_own_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("cinder.conf"), "").unwrap();
        fs::write(path("other.conf"), "").unwrap();
        assert_eq!(untold(&[path("cinder.conf")]), None);
        fs::write(path("cinder-backup.conf"), "").unwrap();
        assert_eq!(untold(&[path("cinder.conf")]), Some(path("cinder-backup.conf")));
        assert_eq!(untold(&[path("./cinder.conf"), path("cinder-backup.conf")]), None);
        assert_eq!(untold(&[path("other.conf")]), None);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let wrong = |text: &str, more: &str| {
            fs::write(path("cinder.conf"), format!("[DEFAULT]\n{text}")).unwrap();
            fs::write(path("more.conf"), format!("[DEFAULT]\n{more}")).unwrap();
            let conf = CinderConf::read(&[path("cinder.conf"), path("more.conf")]).unwrap();
            conf.backup().unwrap_err().to_string()
        };
        let (one, other) =
            (path("cinder.conf").display().to_string(), path("more.conf").display().to_string());
        let s3 = "backup_driver = cinder.backup.drivers.s3.S3BackupDriver\n";
        let told = wrong(s3, "x = 1\n");
        assert!(
            told.starts_with(&format!("{one} and 1 more file: backup_s3_endpoint_url is not set")),
            "{told}"
        );
        let told = wrong("", "backup_swift_auth = bogus\n");
        assert!(told.starts_with(&format!("{other}: backup_swift_auth = \"bogus\"")), "{told}");
        let told = wrong("backup_driver = cinder.backup.drivers.ceph.CephBackupDriver\n", "");
        assert!(told.starts_with(&format!("{one}: backup_driver = ")), "{told}");
        let told = wrong(s3, "backup_s3_endpoint_url = http://$host_ipp\n");
        assert!(told.starts_with(&format!("{other}: backup_s3_endpoint_url: refers to $host_ipp")), "{told}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cinder.conf");
        let error = CinderConf::read(std::slice::from_ref(&path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreNotFound);
        fs::write(&path, [0x5b, 0xff, 0x5d]).unwrap();
        assert_eq!(CinderConf::read(std::slice::from_ref(&path)).unwrap_err().kind(), ErrorKind::Usage);
        fs::write(&path, "[DEFAULT]\n\nnonsense\n").unwrap();
        let error = CinderConf::read(std::slice::from_ref(&path)).unwrap_err();
        assert!(error.to_string().ends_with("line 3: no ':' or '=' found in assignment"), "{error}");
        let huge = fs::File::create(&path).unwrap();
        huge.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert_eq!(CinderConf::read(&[path]).unwrap_err().kind(), ErrorKind::LimitExceeded);
    }
}
