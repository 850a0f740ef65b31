//! A program that is watched: how long it takes, how much memory it takes, how it ends.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing that a file says may keep one command busy for longer.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(60);

/// Most memory of one command, in MiB, where a case does not say another bound.
pub(crate) const PEAK_MIB_MAX: u64 = 300;

/// How a program ended.
pub(crate) struct Ended {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) peak_kib: u64,
}

/// Runs `cinderfs`; what it prints goes through files in `scratch`. An error when it hangs, panics or grows.
pub(crate) fn cinderfs(words: &[&str], scratch: &Path, peak_kib_max: u64) -> Result<Ended, String> {
    let (out, err) = (scratch.join("stdout"), scratch.join("stderr"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(words)
        .env_remove("CINDERFS_LOG")
        .env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let (started, mut peak_kib) = (Instant::now(), 0);
    let status = loop {
        peak_kib = peak_kib.max(peak_of(child.id()));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > TIME_MAX {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("{words:?} did not end within {TIME_MAX:?}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let text = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let ended = Ended { code: status.code(), stdout: text(&out), stderr: text(&err), peak_kib };
    if ended.stderr.contains("panicked") || ended.code.is_none_or(|code| code == 101) {
        return Err(format!("{words:?} panicked or was killed ({status}): {}", ended.stderr));
    }
    if ended.peak_kib > peak_kib_max {
        return Err(format!("{words:?} took {} KiB of memory, at most {peak_kib_max}", ended.peak_kib));
    }
    Ok(ended)
}

/// The high-water mark of a `cinderfs`, in KiB; 0 when it has ended. It only rises, so looking often is enough.
pub(crate) fn peak_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // For a moment after the spawn it is still the image, and the memory, of this process.
    if !status.starts_with("Name:\tcinderfs\n") {
        return 0;
    }
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
