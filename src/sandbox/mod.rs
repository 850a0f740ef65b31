//! A process that gives up what it does not need any more.
//!
//! Problem: a daemon decodes bytes that anybody may have written, for days, often as root. If one of its decoders were ever
//! subverted, everything that the process may do would be lost with it. Idea: once it is set up it tells what it goes on
//! needing, and gives the rest back to the kernel for good:
//!
//! ```text
//!   landlock       files: some to be read, some to be written, nothing else opened; no mounts; no TCP unless told
//!   seccomp        no programs, no sockets (of IP to connect with, if told), no tracing, no mounts, no namespaces, no parts of the kernel that nobody here uses
//!   capabilities   those told, of those there were; none to be had again
//!   no_new_privs   no program started later could have more rights
//!   core dumps     none, and no tracing by other processes of the same user: memory holds bytes of volumes
//! ```
//!
//! Invariants: everything that holds, holds for each thread, because [`Needs::restrict`] is called while there is one thread, and
//! threads inherit it; nothing can be taken back; what is open stays open. A kernel that lacks a part is no reason to fail: the
//! other parts hold, and the log says which do not.
//!
//! This module knows files, devices and capabilities, and nothing of what they are for.

mod capabilities;
mod landlock;
mod seccomp;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

pub use self::capabilities::keep;
pub use rustix::thread::CapabilitySet;

/// What a process goes on needing.
#[derive(Debug)]
pub struct Needs {
    read: Vec<OwnedFd>,
    write: Vec<OwnedFd>,
    devices: Vec<OwnedFd>,
    capabilities: CapabilitySet,
    has_network: bool,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            read: Vec::new(),
            write: Vec::new(),
            devices: Vec::new(),
            capabilities: CapabilitySet::empty(),
            has_network: false,
        }
    }
}

/// What looking up a host's name reads. Where such a file is a link, its folder is what counts: there it is replaced, and a rule goes
/// with the file.
const NAMES: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
];

impl Needs {
    /// Files in this folder and below will be read.
    pub fn read(&mut self, folder: impl AsFd) -> io::Result<()> {
        self.read.push(folder.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// The same by its path.
    pub fn read_at(&mut self, folder: &Path) -> io::Result<()> {
        self.read.push(open(folder)?);
        Ok(())
    }

    /// Files in this folder and below will be read, written, made, renamed and removed.
    pub fn write_at(&mut self, folder: &Path) -> io::Result<()> {
        self.write.push(open(folder)?);
        Ok(())
    }

    /// This device will be opened and spoken to.
    pub fn device(&mut self, path: &Path) -> io::Result<()> {
        self.devices.push(open(path)?);
        Ok(())
    }

    /// Connections will be made over IP, to hosts by their names. Those that are there are used in any case.
    pub fn network(&mut self) {
        self.has_network = true;
        for name in NAMES {
            let file = Path::new(name);
            let folder = std::fs::canonicalize(file).ok().filter(|real| real.parent() != file.parent());
            let place = folder.as_deref().and_then(Path::parent).unwrap_or(file);
            // What is not there is not read.
            let _ = self.read_at(place);
        }
    }

    /// These capabilities will be used, as far as the process has them.
    pub fn capability(&mut self, capability: CapabilitySet) {
        self.capabilities |= capability;
    }

    /// Gives up everything else. To be called while the process has one thread.
    pub fn restrict(self) -> Report {
        let mut report = Report::default();
        report.note("one thread", one_thread());
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        report.note("no core dumps", no_core_dumps());
        report.note("landlock", landlock::restrict(&self));
        let no_new_privs = rustix::thread::set_no_new_privs(true);
        report.note("no_new_privs", no_new_privs.map(|()| String::new()).map_err(|errno| errno.to_string()));
        report.note("capabilities", keep(self.capabilities));
        // Last: what is above uses calls that it refuses.
        report.note("seccomp", seccomp::restrict(self.has_network));
        report
    }
}

/// Which parts hold, and why others do not.
#[derive(Default, Debug)]
pub struct Report {
    parts: Vec<(&'static str, Result<String, String>)>,
}

impl Report {
    fn note(&mut self, part: &'static str, outcome: Result<String, String>) {
        self.parts.push((part, outcome));
    }

    /// Parts that do not hold, each with the reason.
    pub fn missing(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.parts.iter().filter_map(|(part, outcome)| Some((*part, outcome.as_ref().err()?.as_str())))
    }

    /// Says once what holds (debug) and what does not (info).
    pub fn log(&self) {
        tracing::debug!("this process gave up what it does not need: {self}");
        for (part, why) in self.missing() {
            tracing::info!("without {part} this process keeps more rights than it needs: {why}");
        }
    }
}

impl fmt::Display for Report {
    /// The parts that hold, with their details: `no core dumps, landlock (ABI 6), …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.parts.iter().filter_map(|(part, outcome)| Some((part, outcome.as_ref().ok()?)));
        for (n, (part, detail)) in held.enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{part}")?;
            if !detail.is_empty() {
                write!(f, " ({detail})")?;
            }
        }
        Ok(())
    }
}

/// A descriptor that only names a file.
fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Landlock and capabilities belong to threads, and are inherited: threads from before would go free.
fn one_thread() -> Result<String, String> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|error| error.to_string())?.count();
    if threads == 1 { Ok(String::new()) } else { Err(format!("{threads} threads were there before")) }
}

/// Also takes `/proc/PID` from other processes of the same user, and the right to trace this one.
fn no_core_dumps() -> Result<String, String> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)
        .and_then(|()| rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map(|()| String::new())
        .map_err(|errno| errno.to_string())
}
