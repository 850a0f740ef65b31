//! Backups that come and go, made and deleted by the real program while the store is mounted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::pattern::{BLOCK, Random, Volume};
use crate::genuine;
use crate::mount::{PATIENCE, cinderfs, run, stderr, stdout, within};

/// What the codecs of new chains are, in turn.
const CODECS: [&str; 4] = ["zlib", "zstd", "none", "bz2"];

/// Backups of a chain.
const CHAIN_MAX: usize = 5;

/// Chains that stay.
const LASTING_CHAINS: u64 = 7;

/// Those who make and delete backups.
pub(crate) const CHURNERS: usize = 2;

/// Backups of one churner; with what lasts there are about fifty.
const CHURNED: usize = 8;

/// What of genuine Cinder's comes and goes as well, whole chains of it.
const GENUINE: [&str; CHURNERS] = ["zlib-chain", "bz2-chain"];

/// What an image must hold.
pub(crate) enum Content {
    Pattern { volume: Volume, generation: u64 },
    Genuine(Arc<Vec<u8>>),
}

/// One backup.
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) volume_id: String,
    pub(crate) content: Content,
    /// Nobody will delete it.
    pub(crate) is_lasting: bool,
    /// Somebody has set out to delete it.
    pub(crate) is_going: AtomicBool,
}

impl Image {
    pub(crate) fn len(&self) -> u64 {
        match &self.content {
            Content::Pattern { volume, .. } => volume.len,
            Content::Genuine(bytes) => bytes.len() as u64,
        }
    }

    /// The bytes from `offset` on, which all lie in the image.
    pub(crate) fn fill(&self, offset: u64, bytes: &mut [u8]) {
        match &self.content {
            Content::Pattern { volume, generation } => volume.fill(*generation, offset, bytes),
            Content::Genuine(all) => bytes.copy_from_slice(&all[offset as usize..][..bytes.len()]),
        }
    }

    /// Whether a block is zeros.
    pub(crate) fn is_zero(&self, block: u64) -> bool {
        match &self.content {
            Content::Pattern { volume, generation } => volume.is_zero(block, *generation),
            Content::Genuine(all) => {
                let end = all.len().min(((block + 1) * BLOCK) as usize);
                all[(block * BLOCK) as usize..end].iter().all(|byte| *byte == 0)
            }
        }
    }
}

/// What was done.
#[derive(Default)]
pub(crate) struct Deeds {
    pub(crate) created: AtomicU64,
    pub(crate) copied: AtomicU64,
    pub(crate) deleted: AtomicU64,
}

/// The store, and all that is in it.
pub(crate) struct Life {
    store: PathBuf,
    sources: PathBuf,
    images: Mutex<BTreeMap<String, Arc<Image>>>,
    next_volume: AtomicU64,
    pub(crate) deeds: Deeds,
}

impl Life {
    /// A store of the backups that last.
    pub(crate) fn begin(folder: &Path) -> Self {
        let [store, sources] = ["store", "sources"].map(|name| {
            let path = folder.join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        let life = Self {
            store,
            sources,
            images: Mutex::default(),
            next_volume: AtomicU64::new(1),
            deeds: Deeds::default(),
        };
        thread::scope(|scope| {
            let life = &life;
            for number in 0..LASTING_CHAINS {
                scope.spawn(move || {
                    let mut chain = Chain::new(life, &mut Random(number));
                    for _ in 0..CHAIN_MAX {
                        let image = chain.create_next(life, true);
                        life.show(image);
                    }
                });
            }
        });
        life
    }

    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// All that there are now, those that are being deleted included.
    pub(crate) fn images(&self) -> Vec<Arc<Image>> {
        self.images.lock().unwrap().values().cloned().collect()
    }

    fn show(&self, image: Arc<Image>) {
        self.images.lock().unwrap().insert(image.id.clone(), image);
    }

    /// Makes and deletes backups until told to stop; what it has made is deleted in the end.
    pub(crate) fn churn(&self, number: usize, mount: &Path, stop: &AtomicBool) {
        let mut random = Random(77 + number as u64 + (self.next_volume.load(Ordering::Relaxed) << 8));
        let mut chains: Vec<Chain> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let count: usize = chains.iter().map(|chain| chain.images.len()).sum();
            // Around what there shall be, and well away from it now and then.
            if random.below(2 * CHURNED as u64) >= count as u64 {
                self.grow(number, &mut chains, mount, &mut random);
            } else {
                let at = random.below(chains.len() as u64) as usize;
                let all = random.one_in(2);
                self.shrink(&mut chains[at], all, mount, &mut random);
            }
            chains.retain(|chain| !chain.images.is_empty());
            thread::sleep(Duration::from_millis(random.below(100)));
        }
        for chain in &mut chains {
            self.shrink(chain, true, mount, &mut random);
        }
    }

    fn grow(&self, number: usize, chains: &mut Vec<Chain>, mount: &Path, random: &mut Random) {
        let growing: Vec<usize> = (0..chains.len())
            .filter(|&at| chains[at].volume.is_some() && chains[at].images.len() < CHAIN_MAX)
            .collect();
        if random.one_in(8) && chains.iter().all(|chain| chain.volume.is_some()) {
            let chain = self.copy_genuine(GENUINE[number]);
            for image in &chain.images {
                self.appear(image, mount);
            }
            chains.push(chain);
            return;
        }
        let at = if growing.is_empty() || random.one_in(3) {
            chains.push(Chain::new(self, random));
            chains.len() - 1
        } else {
            growing[random.below(growing.len() as u64) as usize]
        };
        let image = chains[at].create_next(self, false);
        self.appear(&image, mount);
    }

    /// Hands an image to the readers once it is seen in the mount, as it soon must be.
    fn appear(&self, image: &Arc<Image>, mount: &Path) {
        let path = mount.join(format!("backups/{}/volume.img", image.id));
        within(PATIENCE, "a new backup in the mount", || path.exists());
        self.show(image.clone());
    }

    fn shrink(&self, chain: &mut Chain, all: bool, mount: &Path, random: &mut Random) {
        let first = if all { 0 } else { chain.images.len() - 1 };
        let going = chain.images.split_off(first);
        for image in &going {
            image.is_going.store(true, Ordering::SeqCst);
        }
        let names = names_of(mount, &chain.volume_id);
        // Readers come for what is about to go.
        thread::sleep(Duration::from_millis(random.below(150)));
        let mut command = cinderfs();
        command.args(["delete", "--cascade"]).arg(&self.store).arg(&going[0].id);
        let output = run(&mut command);
        assert!(output.status.success(), "{command:?}: {}", stderr(&output));
        for image in &going {
            let path = mount.join("backups").join(&image.id);
            within(PATIENCE, "a deleted backup gone from the mount", || !path.exists());
            self.images.lock().unwrap().remove(&image.id);
            self.deeds.deleted.fetch_add(1, Ordering::Relaxed);
        }
        // The kernel remembers a name that nobody looks at until it needs the memory, and the mount with it.
        for name in names {
            let _ = fs::symlink_metadata(name);
        }
    }

    /// Puts a chain of genuine Cinder's into the store, each backup's metadata last, as Cinder would.
    fn copy_genuine(&self, name: &str) -> Chain {
        let mut backups: Vec<_> =
            genuine::backups().into_iter().filter(|backup| backup.store == name).collect();
        backups.sort_by_key(|backup| backup.order);
        let mut chain =
            Chain { volume: None, volume_id: backups[0].volume_id.clone(), codec: "", images: Vec::new() };
        for backup in backups {
            let output = run(cinderfs().arg("restore").arg(backup.store_path()).args([&*backup.id, "-"]));
            assert!(output.status.success(), "{}", stderr(&output));
            backup.check("by restore", &output.stdout);
            let (from, to) =
                (backup.store_path().join(&backup.container), self.store.join(&backup.container));
            fs::create_dir_all(&to).unwrap();
            let mut files: Vec<_> = fs::read_dir(from).unwrap().map(|file| file.unwrap().path()).collect();
            files.sort_by_key(|file| file.to_str().unwrap().ends_with("_metadata"));
            for file in files {
                // A name that appears with all its bytes: half a `_metadata` is a backup without an image, and rightly so.
                let name = file.file_name().unwrap();
                let part = to.join("part");
                fs::copy(&file, &part).unwrap();
                fs::rename(&part, to.join(name)).unwrap();
            }
            self.deeds.copied.fetch_add(1, Ordering::Relaxed);
            chain.images.push(Arc::new(Image {
                id: backup.id,
                volume_id: backup.volume_id,
                content: Content::Genuine(Arc::new(output.stdout)),
                is_lasting: false,
                is_going: AtomicBool::new(false),
            }));
        }
        chain
    }
}

/// The links that may go with a backup of a volume.
fn names_of(mount: &Path, volume_id: &str) -> Vec<PathBuf> {
    let folders = ["names".to_owned(), format!("volumes/{volume_id}")];
    let entries = folders.iter().filter_map(|folder| fs::read_dir(mount.join(folder)).ok());
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.unwrap().path()).collect();
    names.push(mount.join("volumes").join(volume_id));
    names
}

/// The backups of one volume, each on the one before.
struct Chain {
    /// `None` where genuine Cinder made it.
    volume: Option<Volume>,
    volume_id: String,
    codec: &'static str,
    images: Vec<Arc<Image>>,
}

impl Chain {
    fn new(life: &Life, random: &mut Random) -> Self {
        let seed = life.next_volume.fetch_add(1, Ordering::Relaxed);
        // Sectors, and seldom whole blocks.
        let len = (2 << 20) + random.below(8 << 10) * 512;
        Self {
            volume: Some(Volume { seed, len }),
            volume_id: format!("{seed:08x}-5555-4555-8555-{seed:012x}"),
            codec: CODECS[(seed % CODECS.len() as u64) as usize],
            images: Vec::new(),
        }
    }

    /// Makes the next backup with the real program.
    fn create_next(&mut self, life: &Life, is_lasting: bool) -> Arc<Image> {
        let (volume, generation) = (self.volume.unwrap(), self.images.len() as u64);
        let source = life.sources.join(&self.volume_id);
        let mut bytes = vec![0; volume.len as usize];
        volume.fill(generation, 0, &mut bytes);
        File::create(&source).unwrap().write_all(&bytes).unwrap();
        let mut command = cinderfs();
        command.args([
            "create",
            "--volume-id",
            &self.volume_id,
            "--volume-name",
            &format!("vol {}", volume.seed),
        ]);
        command.args(["--compression", self.codec, "--object-size", "1M", "--threads", "1"]);
        // Programs that other threads start hold it open for a moment.
        command.args(["--snapshot", "none", "--force"]);
        if let Some(parent) = self.images.last() {
            command.args(["--parent", &parent.id]);
        }
        command.arg(&life.store).arg(&source);
        let output = run(&mut command);
        fs::remove_file(&source).unwrap();
        assert!(output.status.success(), "{command:?}: {}", stderr(&output));
        life.deeds.created.fetch_add(1, Ordering::Relaxed);
        let image = Arc::new(Image {
            id: stdout(&output).trim().to_owned(),
            volume_id: self.volume_id.clone(),
            content: Content::Pattern { volume, generation },
            is_lasting,
            is_going: AtomicBool::new(false),
        });
        self.images.push(image.clone());
        image
    }
}
