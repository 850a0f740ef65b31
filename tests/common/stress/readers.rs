//! Readers of everything in every way, who compare every byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{Advice, SeekFrom};

use super::life::{Content, Image, Life};
use super::pattern::{BLOCK, Random};

/// What was read, and what came of it.
#[derive(Default)]
pub(crate) struct Tally {
    /// Rounds by kind of reading.
    pub(crate) rounds: Mutex<BTreeMap<&'static str, u64>>,
    pub(crate) reads: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Errors of backups that somebody was deleting, by errno.
    pub(crate) gone: Mutex<BTreeMap<i32, u64>>,
    /// Rounds on backups that somebody was deleting, which ended well.
    pub(crate) served_while_deleted: AtomicU64,
    /// What must not be.
    pub(crate) complaints: Mutex<Vec<String>>,
}

/// Why a round ended early.
enum Stop {
    Failed(io::Error),
    Wrong(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<rustix::io::Errno> for Stop {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Failed(errno.into())
    }
}

type Round = Result<(), Stop>;

/// One reader.
pub(crate) struct Reader<'t> {
    pub(crate) life: &'t Life,
    pub(crate) mount: &'t Path,
    pub(crate) tally: &'t Tally,
    pub(crate) random: Random,
    pub(crate) stop: &'t AtomicBool,
}

impl Reader<'_> {
    /// Reads until told to stop, or until something is wrong.
    pub(crate) fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let image = self.choose();
            let (kind, outcome) = self.round(&image);
            *self.tally.rounds.lock().unwrap().entry(kind).or_default() += 1;
            let is_going = image.is_going.load(Ordering::SeqCst);
            match outcome {
                Ok(()) => {
                    self.tally.served_while_deleted.fetch_add(u64::from(is_going), Ordering::Relaxed);
                }
                Err(Stop::Failed(error)) if is_going && is_clean(&error) => {
                    let errno = error.raw_os_error().unwrap_or(0);
                    *self.tally.gone.lock().unwrap().entry(errno).or_default() += 1;
                }
                Err(Stop::Failed(error)) => self.complain(kind, &image, &error.to_string()),
                Err(Stop::Wrong(what)) => self.complain(kind, &image, &what),
            }
        }
    }

    /// Reads one image again and again until that fails: what becomes of readers whose mount ends.
    pub(crate) fn run_until_the_mount_ends(mut self) -> io::Error {
        loop {
            let image = self.choose();
            match self.preads(&image) {
                Ok(()) => {}
                Err(Stop::Failed(error)) => return error,
                Err(Stop::Wrong(what)) => {
                    self.complain("preads", &image, &what);
                    return io::Error::other(what);
                }
            }
        }
    }

    fn complain(&self, kind: &str, image: &Image, what: &str) {
        let is_going = image.is_going.load(Ordering::SeqCst);
        let words = format!("{kind} of {} (being deleted: {is_going}): {what}", image.id);
        self.tally.complaints.lock().unwrap().push(words);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Any image, and rather one that is being deleted.
    fn choose(&mut self) -> Arc<Image> {
        let images = self.life.images();
        let going: Vec<_> =
            images.iter().filter(|image| image.is_going.load(Ordering::Relaxed)).cloned().collect();
        let among = if going.is_empty() || !self.random.one_in(4) { &images } else { &going };
        among[self.random.below(among.len() as u64) as usize].clone()
    }

    fn round(&mut self, image: &Arc<Image>) -> (&'static str, Round) {
        match self.random.below(8) {
            0 | 1 => ("sequential", self.sequential(image)),
            2 | 3 => ("preads", self.preads(image)),
            // A page that cannot be had is a signal to the process.
            4 if image.is_lasting => ("mmap", self.mapped(image)),
            4 | 5 => ("holes", self.holes(image)),
            6 => ("metadata", self.metadata(image)),
            _ => ("listings", self.listings()),
        }
    }

    fn open(&mut self, image: &Image) -> io::Result<File> {
        let path = self.mount.join(format!("backups/{}/volume.img", image.id));
        let flags = if self.random.one_in(4) { rustix::fs::OFlags::DIRECT.bits() as i32 } else { 0 };
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        // Or the kernel would soon answer everything by itself.
        if !self.random.one_in(4) {
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        Ok(file)
    }

    /// Compares what was read at `offset`.
    fn compare(&self, image: &Image, offset: u64, bytes: &[u8]) -> Round {
        self.tally.reads.fetch_add(1, Ordering::Relaxed);
        self.tally.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut expected = vec![0; bytes.len()];
        image.fill(offset, &mut expected);
        match bytes.iter().zip(&expected).position(|(one, other)| one != other) {
            None => Ok(()),
            Some(at) => {
                let message = format!("WRONG BYTE at {} of a read of {}", offset + at as u64, bytes.len());
                Err(Stop::Wrong(message))
            }
        }
    }

    /// As dd does it.
    fn sequential(&mut self, image: &Image) -> Round {
        let mut file = self.open(image)?;
        let mut buffer = vec![0; [64 << 10, 128 << 10, 1 << 20][self.random.below(3) as usize]];
        let mut at = 0;
        loop {
            match file.read(&mut buffer)? {
                0 if at == image.len() => return Ok(()),
                0 => return Err(Stop::Wrong(format!("ends at {at}, not at {}", image.len()))),
                n if at + n as u64 > image.len() => {
                    return Err(Stop::Wrong(format!("goes on behind {}", image.len())));
                }
                n => {
                    self.compare(image, at, &buffer[..n])?;
                    at += n as u64;
                }
            }
        }
    }

    fn preads(&mut self, image: &Image) -> Round {
        let file = self.open(image)?;
        let mut buffer = vec![0; 200_000];
        for _ in 0..1 + self.random.below(40) {
            let longest = [100, 5000, 70_000, 200_000][self.random.below(4) as usize];
            let len = 1 + self.random.below(longest) as usize;
            // Also at and behind the end.
            let at = self.random.below(image.len() + 1000);
            let mut n = 0;
            // What lies before an error comes short.
            loop {
                match file.read_at(&mut buffer[n..len], at + n as u64)? {
                    0 => break,
                    more => n += more,
                }
            }
            let expected = image.len().saturating_sub(at).min(len as u64);
            if n as u64 != expected {
                return Err(Stop::Wrong(format!("a read of {len} at {at} is {n} long, not {expected}")));
            }
            if n > 0 {
                self.compare(image, at, &buffer[..n])?;
            }
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "a mapping is what is tested")]
    fn mapped(&mut self, image: &Image) -> Round {
        let file = self.open(image)?;
        // SAFETY: an image never changes while it is open, and nobody deletes this one.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        for _ in 0..1 + self.random.below(20) {
            let at = self.random.below(map.len() as u64);
            let end = (at + 1 + self.random.below(50_000)).min(map.len() as u64);
            self.compare(image, at, &map[at as usize..end as usize])?;
        }
        Ok(())
    }

    /// Walks over data and holes; together they are the volume's zeros.
    fn holes(&mut self, image: &Image) -> Round {
        let file = self.open(image)?;
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            at = rustix::fs::seek(&file, SeekFrom::Hole(start))?;
            found.push(start..at);
            if at == image.len() {
                break;
            }
        }
        let mut expected: Vec<std::ops::Range<u64>> = Vec::new();
        for block in (0..image.len().div_ceil(BLOCK)).filter(|&block| !image.is_zero(block)) {
            let (start, end) = (block * BLOCK, image.len().min((block + 1) * BLOCK));
            match expected.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => expected.push(start..end),
            }
        }
        if found != expected {
            return Err(Stop::Wrong(format!("the data are said to lie in {found:?}, not {expected:?}")));
        }
        Ok(())
    }

    /// What is told of one backup.
    fn metadata(&mut self, image: &Image) -> Round {
        let folder = self.mount.join("backups").join(&image.id);
        let stat = fs::metadata(folder.join("volume.img"))?;
        if stat.len() != image.len() || stat.mode() & 0o222 != 0 {
            return Err(Stop::Wrong(format!("stat says {} bytes, mode {:o}", stat.len(), stat.mode())));
        }
        let text = fs::read(folder.join("metadata.json"))?;
        let document: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| Stop::Wrong(format!("metadata.json: {error}")))?;
        // Of a chain that is half deleted it tells that the parent is missing.
        let is_bad = document["status"] != "available" || document["image_bytes"] != image.len();
        if document["id"] != image.id.as_str() || (is_bad && !image.is_going.load(Ordering::SeqCst)) {
            return Err(Stop::Wrong(format!("metadata.json says {document}")));
        }
        let mut value = [0; 64];
        let n = rustix::fs::getxattr(folder.join("volume.img"), "user.cinder.volume_id", &mut value)?;
        if &value[..n] != image.volume_id.as_bytes() {
            return Err(Stop::Wrong(format!(
                "its volume is said to be {:?}",
                String::from_utf8_lossy(&value[..n])
            )));
        }
        Ok(())
    }

    /// All that lasts is listed, and all that is listed can be looked at, unless it goes meanwhile.
    fn listings(&mut self) -> Round {
        let before: Vec<_> = self.life.images();
        let names = |folder: &Path| -> io::Result<Vec<String>> {
            fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string().unwrap())).collect()
        };
        let listed = names(&self.mount.join("backups"))?;
        for image in &before {
            let is_there = listed.contains(&image.id);
            if !is_there && !image.is_going.load(Ordering::SeqCst) {
                return Err(Stop::Wrong(format!("{} is not listed", image.id)));
            }
        }
        for name in names(&self.mount.join("names"))? {
            match fs::metadata(self.mount.join("names").join(&name)) {
                Err(error) if !is_clean(&error) => return Err(error.into()),
                _ => {}
            }
        }
        for image in before.iter().filter(|image| image.is_lasting) {
            let Content::Pattern { generation: 4, .. } = &image.content else { continue };
            let folder = self.mount.join("volumes").join(&image.volume_id);
            let leads_to = fs::read_link(folder.join("latest"))?;
            if !leads_to.ends_with(&image.id) || names(&folder)?.len() != 6 {
                return Err(Stop::Wrong(format!("latest leads to {leads_to:?}, not to {}", image.id)));
            }
        }
        Ok(())
    }
}

/// What a reader may be told of a backup that is deleted.
fn is_clean(error: &io::Error) -> bool {
    [libc::ENOENT, libc::EIO, libc::ESTALE].contains(&error.raw_os_error().unwrap_or(0))
}
