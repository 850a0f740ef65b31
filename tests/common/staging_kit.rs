//! Small backups that are written through `writer::staging`, and what a store holds then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cinderfs::Result;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::format::write::{
    MetadataHead, MetadataWriter, NewObject, Sha256FileHead, Sha256FileLayout, VolumeMeta, created_at_text,
    object_name, object_prefix,
};
use cinderfs::store::posix::PosixStore;
use cinderfs::types::{BackupId, BlockHash, Md5, ObjectName, VolumeId};
use cinderfs::writer::staging::{FileName, Hook, Staging};
use md5::Md5 as Md5Hasher;
use sha2::{Digest, Sha256};

const BLOCK_BYTES: usize = 4096;
/// The last ends in a short block.
const OBJECT_BYTES: [usize; 3] = [20480, 8192, 5000];

/// Path below the root -> permissions and content; folders have none, links their target.
pub(crate) type Tree = BTreeMap<String, (u32, Option<Vec<u8>>)>;

/// Everything in a folder.
pub(crate) fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                None
            } else if metadata.is_symlink() {
                Some(fs::read_link(&path).unwrap().to_str().unwrap().into())
            } else if metadata.is_file() {
                Some(fs::read(&path).unwrap())
            } else {
                Some(b"neither".to_vec())
            };
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if name == "lost+found" {
                continue;
            }
            tree.insert(name, (metadata.permissions().mode() & 0o7777, content));
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    tree
}

/// This process's, without changing it.
pub(crate) fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(line.trim(), 8).unwrap()
}

/// Everything in a store but what is being written.
pub(crate) fn visible(root: &Path) -> Tree {
    let mut tree = tree(root);
    tree.retain(|path, _| !path.starts_with(".cinderfs-"));
    tree
}

/// What is being written.
pub(crate) fn hidden_folders(root: &Path) -> BTreeSet<String> {
    tree(root).into_keys().filter(|path| path.starts_with(".cinderfs-")).collect()
}

/// A full backup of three objects.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    pub(crate) id: BackupId,
    pub(crate) container: ObjectName,
    pub(crate) prefix: String,
    volume: VolumeId,
    time: jiff::Timestamp,
}

impl Backup {
    pub(crate) fn new(id: &str, container: &str) -> Self {
        let id = BackupId::parse(id).unwrap();
        let volume = VolumeId::parse("volume-of-tests").unwrap();
        let time = "2024-01-02T03:04:05Z".parse().unwrap();
        let prefix = object_prefix(&volume, time, &id);
        Self { id, container: ObjectName::parse(container).unwrap(), prefix, volume, time }
    }

    pub(crate) fn metadata_name(&self) -> ObjectName {
        self.container.join(&FileName::Metadata.with(&self.prefix)).unwrap()
    }

    fn volume_bytes(&self) -> Vec<u8> {
        let seed = Sha256::digest(self.id.as_str());
        (0..OBJECT_BYTES.iter().sum()).map(|i: usize| seed[i % 32] ^ (i / 32) as u8).collect()
    }

    /// The content of every file.
    fn files(&self) -> Vec<(FileName, Vec<u8>)> {
        let volume = self.volume_bytes();
        let head = MetadataHead {
            backup_id: self.id.to_string(),
            name: Some("Sicherung \u{1f600}".into()),
            created_at: created_at_text(self.time),
            volume_id: self.volume.to_string(),
            volume_meta: Some(VolumeMeta::new(&self.volume, 1, None, self.time).to_text()),
            ..MetadataHead::default()
        };
        let mut metadata = Vec::new();
        let mut writer = MetadataWriter::begin(&head, &mut metadata);
        let mut files = Vec::new();
        let mut offset = 0;
        for (i, len) in OBJECT_BYTES.into_iter().enumerate() {
            let number = i as u64 + 1;
            let plain = &volume[offset..offset + len];
            let object = NewObject {
                name: &object_name(&self.prefix, number),
                compression: "none",
                offset: offset as u64,
                len_bytes: len as u64,
                md5: Md5(Md5Hasher::digest(plain).into()),
                extra: &[("cinderfs", serde_json::json!([1, 2]))],
            };
            writer.object(&object, &mut metadata).unwrap();
            files.push((FileName::Object(number), plain.to_vec()));
            offset += len;
        }
        writer.finish(&mut metadata);
        let digests: Vec<_> =
            volume.chunks(BLOCK_BYTES).map(|block| BlockHash(Sha256::digest(block).into())).collect();
        let head = Sha256FileHead::of(&head, BLOCK_BYTES as u64);
        let layout = Sha256FileLayout::new(&head, digests.len() as u64).unwrap();
        let entries = layout.encode_entries(0, &digests).unwrap();
        files.push((FileName::Digests, [layout.header(), &entries, layout.trailer()].concat()));
        files.push((FileName::Metadata, metadata));
        files
    }

    pub(crate) fn begin(&self, root: &Path) -> Result<Staging> {
        Staging::begin(root, &self.id, &self.container, &self.prefix)
    }

    pub(crate) fn write_files(&self, staging: &Staging) {
        self.try_write_files(staging).unwrap();
    }

    fn try_write_files(&self, staging: &Staging) -> Result<()> {
        let mut open = Vec::new();
        for (name, bytes) in self.files() {
            let mut file = staging.create_file(name)?;
            match name {
                FileName::Digests => {
                    let middle = bytes.len() / 2;
                    file.write_at(&bytes[middle..], middle as u64)?;
                    file.write_at(&bytes[..middle], 0)?;
                }
                _ => bytes.chunks(16384).try_for_each(|piece| file.append(piece))?,
            }
            open.push(file);
        }
        // In another order than they began.
        open.into_iter().rev().try_for_each(|file| file.finish())
    }

    /// Writes and publishes it.
    pub(crate) fn write(&self, root: &Path, hook: Option<Hook>) -> Result<()> {
        let staging = Staging::begin_with(root, &self.id, &self.container, &self.prefix, hook)?;
        self.try_write_files(&staging)?;
        assert_eq!(staging.publish()?, self.metadata_name());
        Ok(())
    }

    /// What a store holds that held `before`, with the backup.
    pub(crate) fn added_to(&self, before: &Tree) -> Tree {
        let mut tree = before.clone();
        let components: Vec<_> = self.container.as_str().split('/').collect();
        for depth in 1..=components.len() {
            let mode = if depth == components.len() { 0o770 } else { 0o777 & !umask() };
            tree.entry(components[..depth].join("/")).or_insert((mode, None));
        }
        for (name, bytes) in self.files() {
            let path = format!("{}/{}", self.container, name.with(&self.prefix));
            assert!(tree.insert(path, (0o660, Some(bytes))).is_none());
        }
        tree
    }

    /// Removes it and the folders that were not there before.
    pub(crate) fn remove_from(&self, root: &Path, before: &Tree) {
        for (path, (_, content)) in self.added_to(before).iter().rev() {
            if before.contains_key(path) {
                continue;
            }
            match content {
                Some(_) => fs::remove_file(root.join(path)).unwrap(),
                None => fs::remove_dir(root.join(path)).unwrap(),
            }
        }
    }

    /// Fails unless our own reader gives the volume, verified.
    #[track_caller]
    pub(crate) fn check_image(&self, root: &Path) {
        let catalog =
            Catalog::open(Arc::new(PosixStore::open(root).unwrap()), CatalogOptions::default()).unwrap();
        let snapshot = catalog.snapshot();
        let mut entries = snapshot.entries();
        let entry = entries.find(|entry| entry.id == self.id).unwrap();
        let image = catalog.image(entry).unwrap();
        let expected = self.volume_bytes();
        let mut bytes = vec![0; expected.len()];
        image.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == expected, "{}", self.id);
    }
}

/// A store with three backups of others: one in the container that ours will share, one beside, one below `ab`.
pub(crate) fn store() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Backup::new("11111111-other", "team/one").write(folder.path(), None).unwrap();
    Backup::new("22222222-other", "team").write(folder.path(), None).unwrap();
    Backup::new("abab0000-other", "ab/ab/abab0000-other").write(folder.path(), None).unwrap();
    fs::write(folder.path().join("team/one/notes.txt"), "mine").unwrap();
    folder
}

/// Ours: in a container that exists, and in three that do not, with less and less of their path.
pub(crate) fn ours() -> [Backup; 4] {
    [
        Backup::new("abcd1234-ours", "team/one"),
        Backup::new("abcd1234-ours", "team/two"),
        Backup::new("abcd1234-ours", "ab/cd/abcd1234-ours"),
        Backup::new("abcd1234-ours", "new/cd/abcd1234-ours"),
    ]
}

pub(crate) fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// Runs a command that must succeed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A small ext4 in a file; unmounted with its value.
pub(crate) struct SmallFileSystem {
    mountpoint: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl SmallFileSystem {
    pub(crate) fn new(bytes: u64, files: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mountpoint = folder.path().join("mounted");
        fs::create_dir(&mountpoint).unwrap();
        Self::with(bytes, files, mountpoint, folder)
    }

    pub(crate) fn at(bytes: u64, files: u32, mountpoint: &Path) -> Self {
        Self::with(bytes, files, mountpoint.to_owned(), tempfile::tempdir().unwrap())
    }

    fn with(bytes: u64, files: u32, mountpoint: PathBuf, folder: tempfile::TempDir) -> Self {
        let image = folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-N", &files.to_string()]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mountpoint));
        Self { mountpoint, _folder: Some(folder) }
    }

    /// Of what was made in that file.
    #[allow(dead_code, reason = "each test binary uses its part of the kit")]
    pub(crate) fn of(image: &Path, mountpoint: &Path) -> Self {
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(mountpoint));
        Self { mountpoint: mountpoint.to_owned(), _folder: None }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.mountpoint
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mountpoint).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // A process that is just being started may have our files open for a moment.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = Command::new("umount").arg(&self.mountpoint).output();
            if output.as_ref().is_ok_and(|output| output.status.success()) {
                return;
            }
            if Instant::now() >= deadline {
                assert!(std::thread::panicking(), "not unmounted: {output:?}");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
