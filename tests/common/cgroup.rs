//! A memory cgroup with a limit, of either version of the kernel's interface.
//!
//! Version 1 has a hierarchy for each controller, and any folder in memory's takes processes. Version 2 has one hierarchy, where a folder has the
//! files of a controller only if its parent hands it down (`cgroup.subtree_control`), which a parent that has processes of its own cannot, unless it is
//! the root. So there the folder is made under the nearest ancestor of our own cgroup that hands memory down, or can be made to; on a
//! system that systemd runs that is a slice, or the root.
//!
//! RLIMIT_AS is no substitute: it counts what a program maps, not what it uses, and the page cache not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often memory is looked at.
const LOOKS: Duration = Duration::from_millis(3);

/// What the files of a memory cgroup are called.
struct Files {
    limit: &'static str,
    /// What is counted now.
    now: &'static str,
    /// The most that was counted; version 2 has it since Linux 5.19.
    most: &'static str,
    /// File and first word of the line that tells how often something was killed.
    kills: (&'static str, &'static str),
    /// The word of `memory.stat` for what is in no file's pages.
    own: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    now: "memory.usage_in_bytes",
    most: "memory.max_usage_in_bytes",
    kills: ("memory.oom_control", "oom_kill "),
    own: "total_rss ",
};
const V2: Files = Files {
    limit: "memory.max",
    now: "memory.current",
    most: "memory.peak",
    kills: ("memory.events", "oom_kill "),
    own: "anon ",
};

/// Where a cgroup may be made, by what the kernel tells of mounts and of this process.
#[derive(PartialEq, Eq, Debug)]
enum Place {
    /// Version 1: in this folder.
    V1(PathBuf),
    /// Version 2: in one of these, nearest first.
    V2(Vec<PathBuf>),
}

/// `mountinfo` and `cgroup` are those of `/proc/self`. Memory is version 1's where that has a hierarchy for it: a controller belongs to one version only.
fn place(mountinfo: &str, cgroup: &str) -> Option<Place> {
    // ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS [FIELD…] - TYPE SOURCE OPTIONS
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        Some((*left.get(3)?, *left.get(4)?, *right.first()?, *right.get(2)?))
    });
    let mut second = None;
    for (root, place, kind, options) in mounts {
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => {
                return Some(Place::V1(place.into()));
            }
            "cgroup2" if second.is_none() => second = Some((root, Path::new(place))),
            _ => {}
        }
    }
    let (root, place) = second?;
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A path outside of what is mounted begins with `/..`; then there is the mounted root alone.
    let own = Path::new(own).strip_prefix(root).unwrap_or(Path::new(""));
    let is_inside = own.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let own = if is_inside { own } else { Path::new("") };
    Some(Place::V2(own.ancestors().map(|part| place.join(part)).collect()))
}

/// Whether a `cgroup.controllers` or `cgroup.subtree_control` names memory.
fn names_memory(text: &str) -> bool {
    text.split_whitespace().any(|word| word == "memory")
}

/// Makes a folder of version 2 with the files of memory; or tells why not.
fn make_second(parent: &Path, name: &str) -> Result<PathBuf, String> {
    let told = |what: &str, error: std::io::Error| format!("{}: {what}: {error}", parent.display());
    let read = |file: &str| fs::read_to_string(parent.join(file)).map_err(|error| told(file, error));
    if !names_memory(&read("cgroup.controllers")?) {
        return Err(format!("{}: it has no memory controller", parent.display()));
    }
    if !names_memory(&read("cgroup.subtree_control")?) {
        let asked = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        asked.map_err(|error| told("memory cannot be handed down", error))?;
    }
    let path = parent.join(name);
    fs::create_dir(&path).map_err(|error| told("mkdir", error))?;
    Ok(path)
}

/// A memory cgroup, removed when dropped.
pub(crate) struct Cgroup {
    path: PathBuf,
    files: &'static Files,
    /// The most that was seen to be counted, in bytes.
    seen: AtomicU64,
}

impl Cgroup {
    /// With a limit, and no swap. Fails where there can be none: such a test must not pass.
    pub(crate) fn new(name: &str, limit_bytes: u64) -> Self {
        let name = format!("cinderfs-{}-{name}", std::process::id());
        let read = |file| fs::read_to_string(file).unwrap();
        let place = place(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let (path, files) = match Self::make(place, &name) {
            Ok(made) => made,
            Err(why) => panic!(
                "NO MEMORY CGROUP CAN BE MADE, AND THIS TEST NEEDS ONE:\n{why}\n\
                 It needs root and /sys/fs/cgroup, writable. In a container of cgroup version 2, where no process may be beside those of the \
                 test: mkdir /sys/fs/cgroup/all; for p in $(cat /sys/fs/cgroup/cgroup.procs); do echo $p >/sys/fs/cgroup/all/cgroup.procs; done. \
                 Where nothing is mounted: mount -t cgroup2 none /sys/fs/cgroup"
            ),
        };
        let cgroup = Self { path, files, seen: AtomicU64::new(0) };
        fs::write(cgroup.path.join(files.limit), limit_bytes.to_string()).unwrap();
        // Version 1 has no limit of its own for swap. A kernel without swap has not this file.
        let swap = cgroup.path.join("memory.swap.max");
        if swap.exists() {
            fs::write(swap, "0").unwrap();
        }
        cgroup
    }

    fn make(place: Option<Place>, name: &str) -> Result<(PathBuf, &'static Files), String> {
        match place {
            None => Err("no hierarchy of cgroups is mounted".into()),
            Some(Place::V1(folder)) => {
                let path = folder.join(name);
                fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                Ok((path, &V1))
            }
            Some(Place::V2(parents)) => {
                let mut reasons = Vec::new();
                for parent in parents {
                    match make_second(&parent, name) {
                        Ok(path) => return Ok((path, &V2)),
                        Err(why) => reasons.push(why),
                    }
                }
                Err(reasons.join("\n"))
            }
        }
    }

    /// Runs there.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.path).arg(program);
        command
    }

    /// How many programs were killed because the limit was reached.
    pub(crate) fn kills(&self) -> u64 {
        let (file, word) = self.files.kills;
        self.number(file, word)
    }

    /// The most bytes that the kernel counted, the page cache of files included; where it does not keep that, the most that [`Self::watch`] saw.
    pub(crate) fn most(&self) -> u64 {
        let seen = self.seen.load(Ordering::Relaxed);
        let is_kept = self.path.join(self.files.most).exists();
        if is_kept { seen.max(self.number(self.files.most, "")) } else { seen }
    }

    fn number(&self, file: &str, word: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("{file} without {word:?}: {text}")).trim().parse().unwrap()
    }

    /// Runs something in it; the most memory in bytes that was in no file's pages.
    pub(crate) fn watch(&self, run: impl FnOnce()) -> u64 {
        let is_over = AtomicBool::new(false);
        let look = || {
            self.seen.fetch_max(self.number(self.files.now, ""), Ordering::Relaxed);
            self.number("memory.stat", self.files.own)
        };
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !is_over.load(Ordering::Relaxed) {
                    most = most.max(look());
                    std::thread::sleep(LOOKS);
                }
                most.max(look())
            });
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            is_over.store(true, Ordering::Relaxed);
            let most = watcher.join().unwrap();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            most
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What was counted here and is still cached goes to the parent.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1_MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n";
    const V2_MOUNTS: &str = "24 30 0:22 / /proc rw shared:14 - proc proc rw\n\
        35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";

    fn second(mounts: &str, cgroup: &str) -> Vec<String> {
        match place(mounts, cgroup) {
            Some(Place::V2(places)) => {
                places.iter().map(|place| place.to_str().unwrap().to_owned()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_version_is_taken_where_it_has_memory() {
        let found = place(V1_MOUNTS, "4:memory:/a\n0::/\n");
        assert_eq!(found, Some(Place::V1("/sys/fs/cgroup/memory".into())));
    }

    #[test]
    fn in_the_second_the_own_cgroup_is_asked_first_and_the_root_last() {
        let found = second(V2_MOUNTS, "0::/user.slice/user-0.slice/session-1.scope\n");
        let expected =
            ["/user.slice/user-0.slice/session-1.scope", "/user.slice/user-0.slice", "/user.slice", "/"];
        assert_eq!(found, expected.map(|path| format!("/sys/fs/cgroup{path}")));
        assert_eq!(second(V2_MOUNTS, "0::/\n"), ["/sys/fs/cgroup/"]);
    }

    #[test]
    fn what_is_mounted_is_a_part_of_the_hierarchy_in_a_container() {
        let mounts = V2_MOUNTS.replace("0:30 / /sys", "0:30 /docker/c0 /sys");
        assert_eq!(second(&mounts, "0::/docker/c0/all\n"), ["/sys/fs/cgroup/all", "/sys/fs/cgroup/"]);
        // Not ours, or moved out of it.
        assert_eq!(second(&mounts, "0::/other\n"), ["/sys/fs/cgroup/"]);
        assert_eq!(second(V2_MOUNTS, "0::/../other\n"), ["/sys/fs/cgroup/"]);
    }

    #[test]
    fn nothing_mounted_is_no_place() {
        assert_eq!(place("24 30 0:22 / /proc rw shared:14 - proc proc rw\nnonsense\n", "0::/\n"), None);
    }

    #[test]
    fn a_controller_is_a_word_of_the_list() {
        assert!(names_memory("cpuset cpu io memory pids\n"));
        assert!(!names_memory("cpuset cpu memory_recursiveprot\n") && !names_memory("\n"));
    }

    /// The kernel's own answer, so that a limit that limits nothing is found here.
    #[test]
    fn what_a_program_takes_is_seen_and_more_than_the_limit_kills_it() {
        let cgroup = Cgroup::new("kit", 64 << 20);
        let dd = |mib: u64, count: u64| {
            let mut command = cgroup.command("dd");
            let words = [format!("bs={mib}M"), format!("count={count}")];
            let output = command.args(["if=/dev/zero", "of=/dev/null"]).args(words).output().unwrap();
            output.status.success()
        };
        let own = cgroup.watch(|| assert!(dd(32, 100)));
        assert!((30 << 20..64 << 20).contains(&own), "{own} bytes");
        assert_eq!(cgroup.kills(), 0);
        assert!((30 << 20..=64 << 20).contains(&cgroup.most()), "{} bytes", cgroup.most());
        assert!(!dd(128, 1));
        assert_eq!(cgroup.kills(), 1);
        let path = cgroup.path.clone();
        drop(cgroup);
        assert!(!path.exists());
    }

    /// A folder stands for a cgroup: why it cannot be used is told.
    #[test]
    fn a_parent_that_cannot_hand_memory_down_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let why = make_second(folder.path(), "x").unwrap_err();
        assert!(why.contains("cgroup.controllers"), "{why}");
        fs::write(folder.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
        let why = make_second(folder.path(), "x").unwrap_err();
        assert!(why.contains("no memory controller"), "{why}");
        fs::write(folder.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        fs::write(folder.path().join("cgroup.subtree_control"), "cpu\n").unwrap();
        let made = make_second(folder.path(), "x").unwrap();
        assert!(made.is_dir());
        let asked = fs::read_to_string(folder.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(asked, "+memory");
    }
}
