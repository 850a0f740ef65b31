//! How a STORE word is spelled: configuration files, shares, `file:` URLs and paths.
//!
//! Invariant: a path that exists is taken for nothing else.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::cli::exit::Failure;
use crate::error::ErrorKind;
#[cfg(feature = "remote")]
use crate::store::remote::words::Word;
use crate::store::share::{Share, ShareKind};

/// Whether a store behind HTTP can be given by this word.
#[cfg(feature = "remote")]
pub(in crate::cli) fn is_word(word: &str) -> bool {
    Word::parse(word).is_some_and(|parsed| parsed.is_ok())
}

#[cfg(not(feature = "remote"))]
pub(in crate::cli) fn is_word(_: &str) -> bool {
    false
}

#[cfg(feature = "fuse")]
/// The word as another process in another working directory has to be given it.
pub(in crate::cli) fn absolute_word(word: &OsStr) -> OsString {
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
pub(super) fn configuration_files(word: &OsStr) -> Option<Vec<PathBuf>> {
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
pub(super) fn share_of(word: &OsStr) -> Result<Option<Share>, Failure> {
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

/// The path of a STORE word: itself, or that of its file:// URL.
pub(super) fn directory_of(word: &OsStr) -> Result<PathBuf, Failure> {
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
pub(super) fn scheme_of(word: &[u8]) -> Option<(&str, &[u8])> {
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
