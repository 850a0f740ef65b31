//! Image files that are no plain bytes of a volume.
//!
//! Problem: `disk.qcow2` holds a volume in a form of its own. Backed up as it is, every block of it is verified, and what comes back is
//! no disk that Cinder could attach. Idea: such files begin with words of their own. A volume's first sector might hold them too, since its
//! owner writes what he likes; so this only ever leads to a question, and devices are not looked at.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// How much of a file is looked at, in bytes.
const HEAD_BYTES: usize = 512;

/// What stands where in the beginning of which format.
const MARKS: [(&str, usize, &[u8]); 6] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("vhdx", 0, b"vhdxfile"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 64, &[0x7f, 0x10, 0xda, 0xbe]),
];

/// The format of the image file at `path`, as qemu-img calls it; `None` for a raw image, a device, and what cannot be read.
pub fn look(path: &Path) -> Option<&'static str> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let mut head = [0; HEAD_BYTES];
    let n = file.read_at(&mut head, 0).ok()?;
    of(&head[..n])
}

fn of(head: &[u8]) -> Option<&'static str> {
    let found = MARKS.iter().find(|(_, at, mark)| head.get(*at..).is_some_and(|rest| rest.starts_with(mark)));
    found.map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        assert_eq!(of(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        assert_eq!(of(b"# Disk DescriptorFile\nversion=1"), Some("vmdk"));
        let mut vdi = vec![b'<'; 512];
        assert_eq!(of(&vdi), None);
        vdi[64..68].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        assert_eq!(of(&vdi), Some("vdi"));
        for raw in [&b""[..], b"QFI", b"\0QFI\xfb", &[0; 512]] {
            assert_eq!(of(raw), None, "{raw:?}");
        }
        assert_eq!(look(Path::new("/dev/null")), None);
        assert_eq!(look(Path::new("/nonexistent")), None);
    }
}
