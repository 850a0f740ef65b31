//! Names that stay beneath a directory, whatever symbolic links lie in it.
//!
//! Problem: a name without `..` can still lead out, through a symbolic link that someone put into the store; and
//! checking the path first is no help, because it can change between the check and the use. Idea: let the kernel resolve
//! the whole name in one step with `openat2(RESOLVE_BENEATH)`, which follows links that stay inside and refuses the
//! others. Where that call is missing (before Linux 5.6, other systems, a seccomp filter that does not know it), walk
//! component by component with `O_NOFOLLOW`, which refuses every link, also harmless ones.
//!
//! Invariant: a descriptor from here names something beneath the root, or, with [`Resolution::Kernel`], something
//! mounted beneath it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// How often a resolution that raced with a rename is tried. Such a race is over in microseconds; someone who renames
/// without end must not hold us.
#[cfg(target_os = "linux")]
const ATTEMPTS_MAX: u32 = 64;

/// Who keeps a name beneath the store's root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// The kernel: links that stay inside the store are followed.
    Kernel,
    /// This program, one component at a time: no link is followed.
    Portable,
}

impl Resolution {
    /// [`Resolution::Kernel`] where the running kernel offers it.
    ///
    /// Asked on `/` and not on the store, so that no answer of the store's file system is taken for the kernel's.
    pub fn detect() -> Self {
        #[cfg(target_os = "linux")]
        {
            let answer = rustix::fs::open("/", PATH_ONLY | DIRECTORY, Mode::empty())
                .and_then(|slash| openat2_beneath(slash.as_fd(), Path::new("."), PATH_ONLY | DIRECTORY));
            // ENOSYS from an old kernel, EPERM from a seccomp filter that was written before the call.
            if !matches!(answer, Err(Errno::NOSYS | Errno::PERM)) {
                return Self::Kernel;
            }
        }
        Self::Portable
    }
}

/// A descriptor that only names a file: opening has no side effect and needs no permission on the file itself.
#[cfg(target_os = "linux")]
pub(super) const PATH_ONLY: OFlags = OFlags::PATH;
/// The closest to `O_PATH` elsewhere.
#[cfg(not(target_os = "linux"))]
pub(super) const PATH_ONLY: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// A directory and everything beneath it.
#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
    resolution: Resolution,
}

impl Beneath {
    /// Opens `root` as a path of this process. Fails as well when the directory may not be entered.
    pub(crate) fn open(root: &Path, resolution: Resolution) -> Result<Self, Errno> {
        let root = rustix::fs::open(root, PATH_ONLY | DIRECTORY, Mode::empty())?;
        let beneath = Self { root, resolution };
        // Naming a directory needs no permission on it, looking up a name in it does: tell now, not at the first object.
        beneath.open_file(Path::new("."), PATH_ONLY | DIRECTORY)?;
        Ok(beneath)
    }

    pub(super) fn resolution(&self) -> Resolution {
        self.resolution
    }

    /// Names the root, and gives no right to it.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The root, opened for reading its entries. `ENOENT` when it has been removed.
    pub(crate) fn read_root(&self) -> Result<OwnedFd, Errno> {
        let root = rustix::fs::openat(&self.root, ".", OFlags::RDONLY | DIRECTORY, Mode::empty())?;
        // A removed directory can still be opened by its descriptor, and reads as empty: that would be a lie.
        match rustix::fs::fstat(&root)?.st_nlink {
            0 => Err(Errno::NOENT),
            _ => Ok(root),
        }
    }

    /// Opens the file of that relative name. `EXDEV` when it leads out, `ELOOP` when a link may not be followed.
    pub(crate) fn open_file(&self, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        match self.resolution {
            #[cfg(target_os = "linux")]
            Resolution::Kernel => openat2_beneath(self.root.as_fd(), name, flags),
            #[cfg(not(target_os = "linux"))]
            Resolution::Kernel => Err(Errno::NOSYS),
            Resolution::Portable => open_by_component(self.root.as_fd(), name, flags),
        }
    }
}

/// Opens the sub-folder `name`, one component, of `folder` for reading its entries.
///
/// One component of which no link is followed cannot lead out, so plain `openat` does for both resolutions.
pub(super) fn open_folder(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(folder, name, OFlags::RDONLY | OFlags::NOFOLLOW | DIRECTORY, Mode::empty())
}

#[cfg(target_os = "linux")]
fn openat2_beneath(root: BorrowedFd<'_>, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS_MAX {
        result = rustix::fs::openat2(root, name, flags, Mode::empty(), resolve);
        match result {
            // EAGAIN: a rename somewhere made the kernel unsure whether a `..` in a link stayed inside.
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            _ => break,
        }
    }
    result
}

fn open_by_component(root: BorrowedFd<'_>, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut components = name.as_os_str().as_encoded_bytes().split(|&byte| byte == b'/').peekable();
    let mut folder: Option<OwnedFd> = None;
    while let Some(component) = components.next() {
        let at = folder.as_ref().map_or(root, AsFd::as_fd);
        // Names are checked long before; this makes the walk safe by itself.
        if component.is_empty() || component == b".." {
            return Err(Errno::XDEV);
        }
        let last = components.peek().is_none();
        let flags = if last { flags } else { PATH_ONLY | DIRECTORY } | OFlags::NOFOLLOW;
        let opened = rustix::io::retry_on_intr(|| rustix::fs::openat(at, component, flags, Mode::empty()));
        let opened = opened.map_err(|errno| link_or(at, component, errno))?;
        if last {
            // Without following, `O_PATH` opens a link itself where other opens refuse it.
            let may_be_link = flags.contains(PATH_ONLY);
            if may_be_link
                && FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) == FileType::Symlink
            {
                return Err(Errno::LOOP);
            }
            return Ok(opened);
        }
        folder = Some(opened);
    }
    Err(Errno::NOENT)
}

/// `ELOOP` when the component is a symbolic link: systems disagree on the errno (ELOOP, ENOTDIR, EMLINK, EFTYPE).
fn link_or(folder: BorrowedFd<'_>, component: &[u8], errno: Errno) -> Errno {
    match rustix::fs::statat(folder, component, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => Errno::LOOP,
        _ => errno,
    }
}
