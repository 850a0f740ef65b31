//! Real mounts for tests: the real binary on a store, and nothing left behind, also when the test fails.
//!
//! A [`Mount`] runs `cinderfs mount -f`, so that its daemon is a child whose process id is known. Dropping it unmounts, lazily
//! where something is still open, and ends the daemon. Without root or /dev/fuse it panics: such a test must not pass.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, where a panic is the report")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use tempfile::TempDir;

/// How long a mount may take to come or go; machines that run all tests at once are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Who tests are when they must not be root.
pub(crate) const NOBODY: u32 = 65534;

/// How to mount.
#[derive(Default)]
pub(crate) struct Setup {
    options: Vec<String>,
    filter: Option<String>,
    cache_dir: Option<PathBuf>,
    env: Vec<(String, PathBuf)>,
    by_nobody: bool,
    files_max: Option<u32>,
}

/// A mounted store.
pub(crate) struct Mount {
    root: PathBuf,
    log: PathBuf,
    daemon: Child,
    /// Where the root of the daemon's own mount namespace shows, if it has one.
    namespace: Option<PathBuf>,
    /// Holds the mountpoint and the log.
    _folder: TempDir,
}

impl Setup {
    pub(crate) fn options(mut self, options: &str) -> Self {
        self.options.extend(["-o".to_owned(), options.to_owned()]);
        self
    }

    /// What `CINDERFS_LOG` says.
    pub(crate) fn log(mut self, filter: &str) -> Self {
        self.filter = Some(filter.to_owned());
        self
    }

    /// Other variables.
    pub(crate) fn environment(mut self, words: &[(String, String)]) -> Self {
        self.env.extend(words.iter().map(|(name, value)| (name.clone(), value.into())));
        self
    }

    /// What `CINDERFS_CACHE_DIR` says.
    pub(crate) fn cache_dir(mut self, path: &Path) -> Self {
        self.cache_dir = Some(path.to_owned());
        self
    }

    /// Another variable.
    pub(crate) fn env(mut self, name: &str, value: &Path) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// How many files the daemon may have open.
    pub(crate) fn files_max(mut self, files: u32) -> Self {
        self.files_max = Some(files);
        self
    }

    /// Mounts as the user nobody, through fusermount3, in a mount namespace where /dev/fuse is open to all and `allow_other`
    /// is allowed to users, whatever this machine says.
    pub(crate) fn by_nobody(mut self) -> Self {
        self.by_nobody = true;
        self
    }

    /// Mounts and waits until the mount answers.
    #[track_caller]
    pub(crate) fn mount(self, store: &Path) -> Mount {
        require_root_and_fuse();
        let folder = open_folder();
        let (root, log) = (folder.path().join("mnt"), folder.path().join("log"));
        fs::create_dir(&root).unwrap();
        let mut command = if self.by_nobody {
            std::os::unix::fs::chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
            as_nobody_with_fuse(folder.path())
        } else {
            // When the test is killed, its daemons unmount and end.
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "TERM", "--"]);
            if let Some(files) = self.files_max {
                command.args(["prlimit", &format!("--nofile={files}:{files}"), "--"]);
            }
            command.arg(env!("CARGO_BIN_EXE_cinderfs"));
            command
        };
        command.args(["mount", "-f"]).args(&self.options).arg(store).arg(&root);
        // Its own, unless the test has one: what one test leaves behind must not help another.
        let cache = folder.path().join("cache");
        if self.by_nobody && self.cache_dir.is_none() {
            fs::DirBuilder::new().mode(0o700).create(&cache).unwrap();
            std::os::unix::fs::chown(&cache, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        command.env("CINDERFS_CACHE_DIR", self.cache_dir.as_ref().unwrap_or(&cache));
        command.envs(self.env);
        command.env("CINDERFS_LOG", self.filter.as_deref().unwrap_or("info"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let daemon = spawn(&mut command);
        let namespace = self.by_nobody.then(|| PathBuf::from(format!("/proc/{}/root", daemon.id())));
        let mut mount = Mount { root, log, daemon, namespace, _folder: folder };
        let started = Instant::now();
        // Root may not look into nobody's mount, so it is the log that tells.
        while !mount.said("mounted") {
            if let Some(status) = mount.daemon.try_wait().unwrap() {
                panic!("cinderfs mount ended with {status}: {}", mount.log());
            }
            assert!(started.elapsed() < PATIENCE, "no mount: {}", mount.log());
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(namespace) = &mount.namespace {
            mount.root = namespace.join(mount.root.strip_prefix("/").unwrap());
        }
        mount
    }
}

impl Mount {
    /// Mounts with no options.
    #[track_caller]
    pub(crate) fn new(store: &Path) -> Self {
        Setup::default().mount(store)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    pub(crate) fn image(&self, backup: &str) -> PathBuf {
        self.path(&format!("backups/{backup}/volume.img"))
    }

    /// What `metadata.json` says now.
    #[track_caller]
    pub(crate) fn document(&self, backup: &str) -> serde_json::Value {
        let text = fs::read(self.path(&format!("backups/{backup}/metadata.json"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// What the daemon has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn said(&self, word: &str) -> bool {
        self.log().lines().any(|line| line.contains(&format!(": {word} ")))
    }

    /// Process id of the daemon.
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.daemon)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Kills the daemon, so that the mount is dead.
    pub(crate) fn kill(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    /// Waits for the daemon's end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.daemon.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the daemon does not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.namespace.is_some() {
            // Its mount table is not ours; the mount goes with the daemon.
            if matches!(self.daemon.try_wait(), Ok(None)) {
                self.signal(rustix::process::Signal::TERM);
            }
        } else {
            take_away(&self.root);
        }
        let started = Instant::now();
        while matches!(self.daemon.try_wait(), Ok(None)) {
            if started.elapsed() > PATIENCE {
                let _ = self.daemon.kill();
                let _ = self.daemon.wait();
                take_away(&self.root);
                assert!(thread::panicking(), "the daemon did not end after its mount was taken away");
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Takes away whatever cinderfs mounts stand at a path when it is dropped; for mounts whose daemon is in the background.
pub(crate) struct Cleared(pub(crate) PathBuf);

impl Drop for Cleared {
    fn drop(&mut self) {
        take_away(&self.0);
    }
}

/// Unmounts what stands at `path`, as often as something does; lazily where it is in use.
fn take_away(path: &Path) {
    for _ in 0..4 {
        if mount_line(path).is_none() {
            return;
        }
        if rustix::mount::unmount(path, UnmountFlags::NOFOLLOW).is_err() {
            let _ = rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
        }
    }
}

/// The line of the mount table for `path`.
pub(crate) fn mount_line(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let wanted = path.to_str().unwrap().replace('\\', "\\134").replace(' ', "\\040");
    table.lines().rfind(|line| line.split(' ').nth(4) == Some(&*wanted)).map(str::to_owned)
}

/// The binary under test, with a clean environment.
pub(crate) fn cinderfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.env_remove("CINDERFS_LOG").stdin(Stdio::null());
    command.env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command
}

/// A folder that others may enter.
pub(crate) fn open_folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("cinderfs-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The mount table has real paths.
    assert_eq!(folder.path(), folder.path().canonicalize().unwrap());
    folder
}

/// A command that runs as nobody, without any privilege.
pub(crate) fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let (uid, gid) = (NOBODY.to_string(), NOBODY.to_string());
    command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "--"]).arg(program);
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// `cinderfs` as nobody in a mount namespace of its own. The binary is copied, because the build directory may be closed to
/// others, and not by this process, because a sibling test that forks meanwhile would keep the copy busy.
fn as_nobody_with_fuse(folder: &Path) -> Command {
    const SCRIPT: &str = "set -e
        cp \"$0\" cinderfs
        mknod -m 666 fuse c 10 229
        echo user_allow_other >fuse.conf
        mount --bind fuse /dev/fuse
        mount --bind fuse.conf /etc/fuse.conf
        exec setpriv --reuid 65534 --regid 65534 --clear-groups -- ./cinderfs \"$@\"";
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "--",
        "sh",
        "-c",
        SCRIPT,
        env!("CARGO_BIN_EXE_cinderfs"),
    ]);
    command.current_dir(folder).env_remove("CINDERFS_CACHE_DIR");
    command
}

/// Runs to the end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped())).wait_with_output().unwrap()
}

#[track_caller]
fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// Waits until `holds`; panics with `what` when it does not within `limit`.
#[track_caller]
pub(crate) fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The errno of a failure.
#[track_caller]
pub(crate) fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// The names in a folder, sorted.
#[track_caller]
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Where a link leads.
#[track_caller]
pub(crate) fn target(link: &Path) -> String {
    let target = fs::read_link(link).unwrap_or_else(|error| panic!("{link:?}: {error}"));
    target.into_os_string().into_string().unwrap()
}

/// Permission bits, owner and group.
#[track_caller]
pub(crate) fn rights(path: &Path) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    (stat.mode() & 0o7777, stat.uid(), stat.gid())
}

#[track_caller]
fn require_root_and_fuse() {
    assert!(rustix::process::geteuid().is_root(), "the tests of mounts need root");
    assert!(Path::new("/dev/fuse").exists(), "the tests of mounts need /dev/fuse");
}
