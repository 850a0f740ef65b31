//! What servers tell of an object without its bytes, and which word tells it from others of its name.
//!
//! Invariant: HEAD and a listing tell the same of one object.

use std::time::{Duration, SystemTime};

use opendal::Metadata;
use opendal::options::ReaderOptions;

use super::http::bare_etag;
use super::swift::Listed;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{ObjectStat, ObjectVersion, Ownership};

/// Who may read an object: a server knows accounts and no users of this machine, so it is whoever has the credentials, which is us.
const MODE: u32 = 0o400;

/// What distinguishes an object from another one of its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    Etag,
    /// Google's number, which is the same in all its interfaces, as its ETags are not.
    Generation,
}

impl Naming {
    /// Reads the object that has this word and no other.
    pub(super) fn only(self, word: &str) -> ReaderOptions {
        let mut options = ReaderOptions::default();
        match self {
            Self::Etag => options.if_match = Some(quoted(word)),
            Self::Generation => options.if_version_match = Some(word.to_owned()),
        }
        options
    }
}

/// As `If-Match` wants it. Swift and GCS tell some ETags bare.
pub(super) fn quoted(etag: &str) -> String {
    format!("\"{}\"", bare_etag(etag))
}

fn owner() -> Ownership {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Ownership { mode: MODE, uid, gid }
}

pub(super) fn stat_of(meta: &Metadata, naming: Naming) -> Result<ObjectStat> {
    let word = match naming {
        Naming::Etag => meta.etag().map(bare_etag),
        Naming::Generation => meta.version(),
    };
    let len_bytes = meta.content_length();
    let word = word.ok_or_else(|| {
        Error::new(ErrorKind::StoreIo, "the server tells no ETag, so what is read could be of two objects")
    })?;
    let modified = meta.last_modified().map(SystemTime::from).map(whole_seconds);
    Ok(ObjectStat { len_bytes, version: version(word, len_bytes), modified, owner: owner() })
}

pub(super) fn stat_of_swift(listed: &Listed) -> ObjectStat {
    let etag = bare_etag(listed.slo_etag.as_deref().unwrap_or(&listed.hash));
    let modified = format!("{}Z", listed.last_modified.trim_end_matches('Z')).parse::<jiff::Timestamp>();
    // HEAD tells the next whole second.
    let modified = modified.ok().map(|at| {
        let seconds = at.as_second() + i64::from(at.subsec_nanosecond() > 0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    });
    ObjectStat { len_bytes: listed.bytes, version: version(etag, listed.bytes), modified, owner: owner() }
}

pub(super) fn version(word: &str, len_bytes: u64) -> ObjectVersion {
    ObjectVersion(format!("{word}:{len_bytes}").into())
}

/// What [`version`] was made of: the ETag or the generation.
pub(super) fn word_of(version: &ObjectVersion) -> &str {
    version.0.rsplit_once(':').map_or(&*version.0, |(word, _)| word)
}

/// Listings tell fractions that HEAD does not.
fn whole_seconds(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swifts_listing_tells_what_head_tells() {
        let listed = |slo: Option<&str>| Listed {
            name: "a".into(),
            bytes: 5,
            hash: "h".into(),
            slo_etag: slo.map(str::to_owned),
            last_modified: "1970-01-01T00:00:01.000001".into(),
        };
        let stat = stat_of_swift(&listed(None));
        assert_eq!(&*stat.version.0, "h:5");
        assert_eq!(stat.modified, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2)));
        assert_eq!(&*stat_of_swift(&listed(Some("\"s\""))).version.0, "s:5");
    }
}
