//! What the daemon takes while others read.

use std::fs;
use std::path::Path;
use std::time::Instant;

/// One look at a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Since the watch began, in seconds.
    pub(crate) at: f64,
    pub(crate) rss_kib: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
    /// Backups in the store, as the readers know them.
    pub(crate) images: u64,
    /// Inodes that the kernel knows of this mount, and open files and folders, as the daemon last said.
    pub(crate) inodes: u64,
    pub(crate) handles: u64,
}

/// Takes samples of one process.
pub(crate) struct Watch {
    pid: i32,
    began: Instant,
    pub(crate) samples: Vec<Sample>,
}

impl Watch {
    pub(crate) fn new(pid: i32) -> Self {
        Self { pid, began: Instant::now(), samples: Vec::new() }
    }

    pub(crate) fn look(&mut self, log: &str, images: usize) -> Sample {
        let (inodes, handles) = said(log);
        let sample = Sample {
            at: self.began.elapsed().as_secs_f64(),
            rss_kib: self.status("VmRSS:"),
            threads: self.status("Threads:"),
            descriptors: self.descriptors().len() as u64,
            images: images as u64,
            inodes,
            handles,
        };
        self.samples.push(sample);
        sample
    }

    fn status(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Where its descriptors lead.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        // One that is closed meanwhile is none.
        let paths = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        paths.map(|path| path.to_string_lossy().into_owned()).collect()
    }

    /// The names of its threads, sorted.
    pub(crate) fn threads(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        let names = entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok());
        let mut names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
        names.sort();
        names
    }

    /// The samples of a part of the time, in hundredths.
    pub(crate) fn part(&self, percent: std::ops::Range<u64>) -> &[Sample] {
        let at = |share: u64| (self.samples.len() as u64 * share / 100) as usize;
        &self.samples[at(percent.start)..at(percent.end)]
    }
}

/// The mean of something.
pub(crate) fn mean(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    samples.iter().map(of).sum::<u64>() / (samples.len() as u64).max(1)
}

/// The most of something.
pub(crate) fn most(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    samples.iter().map(of).max().unwrap_or(0)
}

/// The daemon's last words on inodes and handles.
fn said(log: &str) -> (u64, u64) {
    let Some(line) = log.lines().rfind(|line| line.contains("the tree has changed")) else { return (0, 0) };
    let number = |key: &str| {
        let (_, rest) = line.split_once(key).unwrap();
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    (number("inodes="), number("handles="))
}

/// Processes that were told of a path.
pub(crate) fn processes_with(path: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("cmdline"));
    let words = entries.filter_map(|file| fs::read(file).ok());
    let words = words.map(|words| String::from_utf8_lossy(&words).replace('\0', " "));
    words.filter(|words| words.contains(path.to_str().unwrap())).collect()
}
