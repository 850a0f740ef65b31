//! Images that lie whole in the cache directory: handed to the kernel where it takes them, else one more source.
//!
//! Problem: the kernel can read a file of ours in an image's place without asking us (passthrough), nine times as fast as
//! through us, but only for privileged daemons, and one inode is either read so or through us, never both at once. Idea:
//! the first open of an image decides how it is read, and all opens share that handle until the last is closed; where
//! passthrough is refused, the file is a source of blocks like an object, verified at each read.
//!
//! Invariants: one inode has one backing id at a time, alive as long as a handle of it; what is handed to the kernel was
//! verified as a whole when it was written and has not been touched since; a file that is not used is told about once.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fuser::BackingId;

use crate::cache_dir::images::Images;
use crate::frontend::hydrate;
use crate::image::{Image, Materialised};

/// `f_type` of overlayfs, which containers have their files on. Its type differs between processors.
const OVERLAYFS_MAGIC: i128 = 0x794c_7630;

/// Most keys remembered of which was said that their file is not used.
const SAID_MAX: usize = 4096;

/// Makes a file known to the kernel, to be read in place of an image.
pub type Register<'r> = &'r dyn Fn(&File) -> io::Result<BackingId>;

/// Where to look for whole images.
pub struct Hydrated {
    images: Images,
    passthrough: bool,
    refused: OnceLock<()>,
    said: Mutex<HashSet<String>>,
}

/// How one image is read while it is open.
#[derive(Default)]
pub struct Backing {
    /// Held by the kernel's name for it, from the first open to the last release.
    id: Option<BackingId>,
    /// Read by us.
    source: OnceLock<Arc<Materialised>>,
}

impl Hydrated {
    /// Looks among `images`; `passthrough` tells whether the kernel may be given a file.
    pub fn new(images: Images, passthrough: bool) -> Self {
        Self { images, passthrough, refused: OnceLock::new(), said: Mutex::default() }
    }

    /// For the first open of an image. [`lend`](Self::lend) follows, once the handle is the one that all share.
    pub fn first_open(&self, image: &Image, register: Register<'_>) -> Backing {
        let mut backing = Backing::default();
        let Some((file, path)) = self.find(image) else { return backing };
        if self.passthrough {
            match register(&file) {
                Ok(id) => backing.id = Some(id),
                Err(error) if self.refused.set(()).is_ok() => {
                    tracing::info!(
                        "hydrated images are read by this process, passthrough is refused: {error}"
                    );
                }
                Err(_) => {}
            }
        }
        backing.keep(file, &path);
        backing
    }

    /// Lets the image look into the file that its handle has. How it is read stays with the first open, but what was
    /// hydrated meanwhile is found. Also where the kernel reads the file: some requests come to us all the same.
    pub fn lend(&self, image: &Image, backing: &Backing, is_first: bool) {
        if !is_first
            && backing.source.get().is_none()
            && let Some((file, path)) = self.find(image)
        {
            backing.keep(file, &path);
        }
        if let Some(source) = backing.source.get() {
            image.look_into(source);
        }
    }

    fn find(&self, image: &Image) -> Option<(File, PathBuf)> {
        match hydrate::find(image, &self.images) {
            Ok(found) => found.map(|file| (file, self.images.path(&image.key()))),
            Err(why) => {
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.len() < SAID_MAX && said.insert(image.key()) {
                    let path = self.images.path(&image.key());
                    tracing::warn!(backup = %image.id(), ?path, "the hydrated image is not used: {why}");
                }
                None
            }
        }
    }
}

impl Backing {
    /// The first file is kept until the last handle is released; one that is refuted is not replaced before.
    fn keep(&self, file: File, path: &Path) {
        self.source.get_or_init(|| Arc::new(Materialised::new(file, path)));
    }

    /// What the kernel reads in the image's place, if it does.
    pub fn id(&self) -> Option<&BackingId> {
        self.id.as_ref()
    }
}

/// How many file systems may lie on each other below a file that is handed to the kernel. 1 unless the folder lies on an
/// overlay: with 2, no overlay can be mounted on top of our mount any more.
pub fn stack_depth(folder: &Path) -> u32 {
    let existing = folder.ancestors().find_map(|folder| rustix::fs::statfs(folder).ok());
    if existing.is_some_and(|fs| i128::from(fs.f_type) == OVERLAYFS_MAGIC) { 2 } else { 1 }
}
