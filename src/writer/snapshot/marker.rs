//! The names of snapshots, by which leftovers are known.
//!
//! Problem: a run that is killed leaves its snapshot behind, which slows the source down and fills its pool; but a snapshot of a
//! run that still goes on must not be dropped. Idea: the name says who made it: machine, start of the machine, process and the
//! process's start. The next run drops those whose maker is gone for sure.
//!
//! A process in another container of this machine cannot be seen, so its snapshots stay until the machine was started again.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::writer::source::host::Host;

const PREFIX: &str = "cinderfs-snapshot";

/// Counts the snapshots of this process.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Who made a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::writer) struct Marker {
    machine: u32,
    boot: u32,
    /// The namespace in which `pid` is a number.
    pids: u64,
    pid: u32,
    /// When the process was started, in ticks since the machine was.
    started: u64,
    count: u32,
}

impl Marker {
    /// A new one of this process.
    pub(in crate::writer) fn new(host: &Host) -> Result<Self> {
        let ours = Self::of_this_process(host);
        let mut ours = ours.ok_or_else(|| {
            let message = "a snapshot cannot be marked as ours: /proc does not tell who we are";
            Error::new(ErrorKind::Unsupported, message)
        })?;
        ours.count = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(ours)
    }

    fn of_this_process(host: &Host) -> Option<Self> {
        let pid = fs::read_link(host.proc.join("self")).ok()?.to_str()?.parse().ok()?;
        let pids = fs::read_link(host.proc.join("self/ns/pid")).ok()?;
        let pids = pids.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()?;
        let machine = Host::text(&host.etc.join("machine-id")).filter(|id| !id.is_empty());
        let machine =
            machine.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
        let boot = Host::text(&host.proc.join("sys/kernel/random/boot_id"))?;
        Some(Self {
            machine: short_hash(&machine),
            boot: short_hash(&boot),
            pids,
            pid,
            started: look_at(host, pid)?.started,
            count: 0,
        })
    }

    /// The snapshot's name; letters, digits and hyphens only.
    pub(in crate::writer) fn name(&self) -> String {
        let Self { machine, boot, pids, pid, started, count } = self;
        format!("{PREFIX}-{machine:08x}-{boot:08x}-{pids:x}-{pid:x}-{started:x}-{count:x}")
    }

    /// Reads a name; `None` for one that we would not have written exactly so.
    pub(in crate::writer) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-');
        let mut next = || u64::from_str_radix(parts.next()?, 16).ok();
        let marker = Self {
            machine: next()?.try_into().ok()?,
            boot: next()?.try_into().ok()?,
            pids: next()?,
            pid: next()?.try_into().ok()?,
            started: next()?,
            count: next()?.try_into().ok()?,
        };
        (marker.name() == name).then_some(marker)
    }

    /// Whether its maker is gone for sure, where nobody else has this machine's name.
    pub(in crate::writer) fn is_abandoned(&self, host: &Host) -> bool {
        self.is_of_other_start(host) || self.is_gone(host)
    }

    /// Whether its maker was a process that could be seen from here, and is no more.
    pub(in crate::writer) fn is_gone(&self, host: &Host) -> bool {
        Self::of_this_process(host).is_some_and(|us| {
            (self.machine, self.boot, self.pids) == (us.machine, us.boot, us.pids) && is_gone(host, self)
        })
    }

    /// Whether it was made when this machine had not been started last; or on another one of the same name.
    pub(in crate::writer) fn is_of_other_start(&self, host: &Host) -> bool {
        Self::of_this_process(host).is_some_and(|us| self.machine == us.machine && self.boot != us.boot)
    }
}

fn is_gone(host: &Host, marker: &Marker) -> bool {
    let folder = host.proc.join(marker.pid.to_string());
    match folder.try_exists() {
        // It may be hidden from other users, as `hidepid` and systemd's `ProtectProc` do; a signal tells, though none is sent.
        Ok(false) => has_no_process(marker.pid),
        // The number may be another process's by now, or be kept for a parent that does not ask what became of it.
        Ok(true) => look_at(host, marker.pid)
            .is_some_and(|process| process.started != marker.started || process.is_over),
        Err(_) => false,
    }
}

/// Whether no process has this number. One that may not be sent signals has it.
fn has_no_process(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| matches!(test_kill_process(pid), Err(Errno::SRCH)))
}

/// What `stat` says of a process.
struct Process {
    started: u64,
    /// It has ended, with all of its threads, and only its number is left.
    is_over: bool,
}

/// Its words count from behind the second, the name, which is in parentheses and may hold anything: the state, the 20th, how many threads
/// there are, and the 22nd, when it was started.
fn look_at(host: &Host, pid: u32) -> Option<Process> {
    let text = Host::text(&host.proc.join(pid.to_string()).join("stat"))?;
    let words: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let threads: u64 = words.get(17)?.parse().ok()?;
    let is_over = ["Z", "X"].contains(words.first()?) && threads <= 1;
    Some(Process { started: words.get(19)?.parse().ok()?, is_over })
}

fn short_hash(text: &str) -> u32 {
    let hash = Sha256::digest(text.as_bytes());
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_abandoned_when_its_maker_is_gone() {
        let host = Host::default();
        let ours = Marker::new(&host).unwrap();
        assert_eq!(Marker::parse(&ours.name()).as_ref(), Some(&ours));
        assert!(ours.name().len() < 100);
        assert!(!ours.is_abandoned(&host));
        let with = |change: fn(&mut Marker)| {
            let mut marker = ours.clone();
            change(&mut marker);
            Marker::parse(&marker.name()).unwrap().is_abandoned(&host)
        };
        assert!(with(|m| m.started += 1), "the number is another process's");
        assert!(with(|m| m.pid = u32::MAX / 2), "there is no such process");
        assert!(with(|m| m.boot ^= 1), "the machine was started again");
        assert!(!with(|m| m.machine ^= 1), "it is another machine's");
        assert!(!with(|m| (m.pids, m.pid) = (1, u32::MAX / 2)), "it is another container's");
    }

    #[test]
    fn a_process_that_nobody_asked_after_is_gone() {
        let host = Host::default();
        let mut child = std::process::Command::new("sleep").arg("3600").spawn().unwrap();
        let started = look_at(&host, child.id()).unwrap().started;
        let marker = Marker { pid: child.id(), started, ..Marker::new(&host).unwrap() };
        assert!(!marker.is_gone(&host));
        child.kill().unwrap();
        while !marker.is_gone(&host) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // It is not for want of its number.
        assert!(look_at(&host, child.id()).unwrap().is_over);
        child.wait().unwrap();
        assert!(marker.is_gone(&host));
    }

    #[test]
    fn a_process_that_is_hidden_is_not_gone() {
        let (host, root) = (Host::default(), tempfile::tempdir().unwrap());
        let path = |name: &str| root.path().join(name);
        for folder in ["7/ns", "sys/kernel/random"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        for file in ["self/stat", "sys/kernel/random/boot_id"] {
            fs::write(path(&file.replace("self", "7")), fs::read(host.proc.join(file)).unwrap()).unwrap();
        }
        let link = |to: &std::path::Path, name: &str| std::os::unix::fs::symlink(to, path(name)).unwrap();
        link("7".as_ref(), "self");
        link(&fs::read_link("/proc/self/ns/pid").unwrap(), "7/ns/pid");
        let hiding = Host { proc: root.path().into(), ..Host::default() };
        let mut child = std::process::Command::new("sleep").arg("3600").spawn().unwrap();
        let started = look_at(&host, child.id()).unwrap().started;
        let marker = Marker { pid: child.id(), started, ..Marker::new(&host).unwrap() };
        let is_gone = marker.is_gone(&hiding);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_gone, "it was hidden");
        assert!(marker.is_gone(&hiding) && marker.is_gone(&host));
    }

    #[test]
    fn foreign_names_are_no_markers() {
        let name = Marker::new(&Host::default()).unwrap().name();
        for foreign in [
            "",
            "cinderfs-snapshot",
            "cinderfs-snapshot-of-mine",
            "cinderfs-snapshot-1-2-3-4-5-6",
            &format!("x{name}"),
            &format!("{name}-1"),
            &format!("{name} "),
            &name.to_uppercase(),
            &name[..name.len() - 2],
        ] {
            assert_eq!(Marker::parse(foreign), None, "{foreign}");
        }
    }
}
