//! The kernel's table of mounts, as far as shares are concerned.
//!
//! A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): `36 35 98:0 /root /mountpoint options [fields] - type source options`.
//! Blanks, tabs, line ends and backslashes in names are written in octal.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The file.
pub(super) const FILE: &str = "/proc/self/mountinfo";

pub(super) struct Table(Vec<u8>);

impl Table {
    pub(super) fn read() -> io::Result<Self> {
        fs::read(FILE).map(Self)
    }

    /// The directories at which whole file systems of one of these types are mounted whose source fits, the newest first.
    pub(super) fn mountpoints(&self, types: &[&str], fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let lines = self.0.split(|&b| b == b'\n').rev();
        lines
            .filter_map(parse)
            .filter(|m| types.contains(&m.kind) && fits(&m.source))
            .map(|m| m.path)
            .collect()
    }
}

struct Mount<'a> {
    path: PathBuf,
    kind: &'a str,
    source: String,
}

fn parse(line: &[u8]) -> Option<Mount<'_>> {
    let mut words = line.split(|&b| b == b' ');
    let (root, path) = (words.nth(3)?, words.next()?);
    // A bind mount of a folder in the share is not the share.
    if root != b"/" {
        return None;
    }
    let mut words = words.skip_while(|&word| word != b"-").skip(1);
    let (kind, source) = (words.next()?, words.next()?);
    Some(Mount {
        path: OsString::from_vec(unescaped(path)).into(),
        kind: str::from_utf8(kind).ok()?,
        source: String::from_utf8(unescaped(source)).ok()?,
    })
}

/// `\040` and its like as bytes.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, behind)) = rest.split_first() {
        let octal = behind
            .get(..3)
            .filter(|digits| byte == b'\\' && digits.iter().all(|b| (b'0'..=b'7').contains(b)));
        let value =
            octal.and_then(|d| u8::try_from(d.iter().fold(0u32, |v, b| v * 8 + u32::from(b - b'0'))).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &behind[3..];
            }
            None => {
                out.push(byte);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_found_by_type_and_source() {
        let text = b"22 1 0:20 / / rw - ext4 /dev/vda rw\n\
            30 22 0:41 / /var/lib/cinder/m\\040p rw,relatime shared:7 master:1 - nfs4 h:/back\\040up rw,vers=4.2\n\
            31 22 0:41 /deep /other rw - nfs4 h:/back\\040up rw\n\
            32 22 0:42 / /g rw - fuse.glusterfs h:vol rw\n\
            33 22 0:43 / /h rw - nfs h:/back\\040up rw\nrubbish\n\n36 35 - \n";
        let table = Table(text.to_vec());
        let found = |types: &[&str], wanted: &str| table.mountpoints(types, |source| source == wanted);
        assert_eq!(
            found(&["nfs", "nfs4"], "h:/back up"),
            [PathBuf::from("/h"), "/var/lib/cinder/m p".into()]
        );
        assert_eq!(found(&["fuse.glusterfs"], "h:vol"), [PathBuf::from("/g")]);
        assert!(found(&["nfs"], "h:vol").is_empty());
        assert_eq!(unescaped(b"a\\011\\999\\7\\"), b"a\t\\999\\7\\");
    }
}
