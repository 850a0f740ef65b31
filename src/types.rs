//! Newtypes for what could be swapped: ids, names, digests.
//!
//! All of these arrive from JSON or from directory listings that anybody may have written. A value of one of these
//! types has been checked; what it promises stands on the type.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// Longest id accepted, in bytes. Cinder's are UUIDs of 36; its database column holds 36 as well.
const ID_BYTES_MAX: usize = 128;

/// Longest object name accepted, in bytes: `PATH_MAX` less room for the store's own root.
const OBJECT_NAME_BYTES_MAX: usize = 3072;

/// Longest component of an object name, in bytes: `NAME_MAX` of the file systems that stores live on.
const COMPONENT_BYTES_MAX: usize = 255;

fn check_id(what: &str, id: &str) -> Result<()> {
    let fits = !id.is_empty() && id.len() <= ID_BYTES_MAX && !id.starts_with('.');
    if fits && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Ok(());
    }
    let shown: String = id.chars().take(64).collect();
    Err(Error::new(
        ErrorKind::Malformed,
        format!(
            "{what} {shown:?} is not an id: expected 1 to {ID_BYTES_MAX} letters, digits, '-', '_' or '.'"
        ),
    ))
}

/// The id of a backup: a UUID where Cinder made it. Safe as a file name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackupId(Arc<str>);

/// The id of a volume: a UUID where Cinder made it. Safe as a file name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(Arc<str>);

macro_rules! id_type {
    ($name:ident, $what:literal) => {
        impl $name {
            /// Accepts what can stand as one file name; [`ErrorKind::Malformed`] otherwise.
            pub fn parse(id: &str) -> Result<Self> {
                check_id($what, id)?;
                Ok(Self(id.into()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}
id_type!(BackupId, "backup id");
id_type!(VolumeId, "volume id");

/// The name of an object, relative to the store's root, `/` between components.
///
/// Never empty or absolute, no component is empty, `.` or `..`, and there is no NUL byte: joined to a root it cannot
/// lexically leave it. (Symbolic links are the store's business.)
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// Checks a name from a listing or from metadata; [`ErrorKind::UnsafeName`] tells what is wrong with it.
    pub fn parse(name: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let shown: String = name.chars().take(128).collect();
            Err(Error::new(ErrorKind::UnsafeName, format!("object name {shown:?} {why}")))
        };
        if name.is_empty() {
            return refuse("is empty");
        }
        if name.len() > OBJECT_NAME_BYTES_MAX {
            return refuse("is longer than a path may be");
        }
        if name.starts_with('/') {
            return refuse("is an absolute path; names are relative to their container");
        }
        if name.contains('\0') {
            return refuse("holds a NUL byte");
        }
        for component in name.split('/') {
            match component {
                "" => return refuse("has an empty component"),
                "." | ".." => {
                    return refuse("has a component that leads elsewhere in the store or out of it");
                }
                _ if component.len() > COMPONENT_BYTES_MAX => {
                    return refuse("has a component over 255 bytes");
                }
                _ => {}
            }
        }
        Ok(Self(name.into()))
    }

    /// `self/name`, checked as [`ObjectName::parse`] checks.
    pub fn join(&self, name: &str) -> Result<Self> {
        Self::parse(&format!("{}/{name}", self.0))
    }

    /// The name as text, relative to the store's root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a relative path.
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Which block of an image, counted from 0: bytes `[index * block_bytes, (index + 1) * block_bytes)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BlockIndex(pub u64);

/// The sha256 of a block's plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 32]);

/// The md5 of an object's plain bytes, as `_metadata` claims it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Md5(pub [u8; 16]);

macro_rules! digest_type {
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// Reads exactly the lower-case hexadecimal digits that Cinder writes; `None` for anything else.
            pub fn from_hex(digits: &[u8]) -> Option<Self> {
                let mut bytes = [0u8; $bytes];
                if digits.len() != 2 * $bytes {
                    return None;
                }
                // Without a branch for each digit: whole digest files are read through this.
                let mut seen = 0;
                for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                    let (high, low) = (HEX[usize::from(pair[0])], HEX[usize::from(pair[1])]);
                    seen |= high | low;
                    *byte = high << 4 | low & 0xf;
                }
                (seen & NO_DIGIT == 0).then_some(Self(bytes))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
digest_type!(BlockHash, 32);
digest_type!(Md5, 16);

/// What no hexadecimal digit's value has.
const NO_DIGIT: u8 = 0x80;

/// The value of each lower-case hexadecimal digit; [`NO_DIGIT`] for all other bytes.
const HEX: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// So many of something, for messages: `1 object`, `2 objects`.
pub(crate) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names_cannot_leave_the_store() {
        for bad in ["", "/etc/passwd", "../../etc/passwd", "a/../b", "a//b", "a/", "./a", "a\0b"] {
            assert_eq!(ObjectName::parse(bad).unwrap_err().kind(), ErrorKind::UnsafeName, "{bad:?}");
        }
        assert!(ObjectName::parse(&"x".repeat(256)).is_err());
        for good in ["backup-00001", "volume_1/2024/az_nova_backup_2-00001", "a/..b/c..", "ü/…"] {
            assert_eq!(ObjectName::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn ids_are_safe_file_names() {
        for bad in ["", ".", "..", "a/b", ".hidden", "a b", "ä", "a\n"] {
            assert!(BackupId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(VolumeId::parse("184d9841-802a-41bb-a91f-68f01522f6d7").is_ok());
    }

    #[test]
    fn digests_read_lower_case_hexadecimal_only() {
        let text = "00112233445566778899aabbccddeeff";
        assert_eq!(Md5::from_hex(text.as_bytes()).unwrap().to_string(), text);
        assert!(Md5::from_hex(text.to_uppercase().as_bytes()).is_none());
        assert!(Md5::from_hex(&text.as_bytes()[1..]).is_none());
    }
}
