//! `-o k=v,...`: ours, and the words of mount(8) that `/etc/fstab` passes along.
//!
//! An unknown word is an error that names it: a mistyped `cache_sise=1G` must not be a silent default. Words that ask
//! for what the mount does anyway, or that speak to mount(8) and systemd, are accepted and ignored.

use std::path::PathBuf;
use std::time::Duration;

use crate::cache_dir::blocks;
use crate::error::{Error, ErrorKind, Result};
use crate::image::OnDamage;
use crate::store::deadline::{TIMEOUT_SECONDS, TIMEOUT_SECONDS_MAX};

/// Default bound on the block cache, in bytes.
pub const CACHE_BYTES_DEFAULT: u64 = 256 << 20;

/// Smallest block cache, in bytes: some of the largest blocks in use (1 MiB) must fit.
const CACHE_BYTES_MIN: u64 = 4 << 20;

/// Most threads that may be asked for; each has a read buffer, and the disks behind the store are fewer.
const THREADS_MAX: usize = 64;

/// Threads without `threads=`: one per core within these bounds. One alone would let a slow read hold up a listing, and more
/// than 16 readers wait for one another in the store.
const THREADS_DEFAULT: std::ops::RangeInclusive<usize> = 2..=16;

/// Accepted and ignored. `exec`, `suid` and `dev` too: the mount stays `nosuid,nodev` whatever fstab's defaults say.
const IGNORED: [&str; 38] = [
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "noexec",
    "nofail",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "ro",
    "silent",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
    "noowner",
];

/// How to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// `allow_other`: other users may enter, as far as the permission bits let them.
    pub allow_other: bool,
    /// `allow_root`: root may enter besides the user who mounted.
    pub allow_root: bool,
    /// `uid=`: owner of everything.
    pub uid: Option<u32>,
    /// `gid=`: group of everything.
    pub gid: Option<u32>,
    /// `cache_size=`: bound on the block cache, in bytes.
    pub cache_bytes_max: u64,
    /// `disk_cache=`: bound on the verified blocks kept in the cache directory, in bytes; 0 for none.
    pub disk_cache_bytes_max: u64,
    /// `threads=`: how many threads serve requests.
    pub threads: Option<usize>,
    /// `log=`: where the daemon in the background logs to.
    pub log: Option<PathBuf>,
    /// `passthrough=on|off`: whether the kernel may read hydrated images itself.
    pub passthrough: bool,
    /// `seek_index=on|off`: whether restart points are noted, kept and used. Those that the metadata tells are used in any case.
    pub seek_index: bool,
    /// `store_timeout=`: how long a call of the store may take; `None` for ever.
    pub store_timeout: Option<Duration>,
    /// `no_sandbox` not given: the daemon gives up what it does not need.
    pub sandbox: bool,
    /// `on_damage=eio|zero`: what a reader gets in place of a lost block.
    pub on_damage: OnDamage,
    /// `nonempty`: the mountpoint may hold files, which the mount hides.
    pub nonempty: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            allow_other: false,
            allow_root: false,
            uid: None,
            gid: None,
            cache_bytes_max: CACHE_BYTES_DEFAULT,
            disk_cache_bytes_max: 0,
            threads: None,
            log: None,
            passthrough: true,
            seek_index: true,
            store_timeout: Some(Duration::from_secs(TIMEOUT_SECONDS)),
            sandbox: true,
            on_damage: OnDamage::Error,
            nonempty: false,
        }
    }
}

impl MountOptions {
    /// Reads the values of all `-o`; of a repeated option the last counts. [`ErrorKind::Usage`] names the word that is
    /// wrong.
    pub fn parse<S: AsRef<str>>(lists: &[S]) -> Result<Self> {
        let mut options = Self::default();
        for word in lists.iter().flat_map(|list| words(list.as_ref())) {
            options.take(&word)?;
        }
        if options.allow_other && options.allow_root {
            return Err(usage("allow_other and allow_root exclude each other".to_owned()));
        }
        Ok(options)
    }

    /// How many threads serve requests.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(1, Into::into);
            cores.clamp(*THREADS_DEFAULT.start(), *THREADS_DEFAULT.end())
        })
    }

    fn take(&mut self, word: &str) -> Result<()> {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        };
        let bad = |expected: &str| usage(format!("option {word:?}: expected {expected}"));
        match (key, value) {
            ("allow_other", None) => self.allow_other = true,
            ("allow_root", None) => self.allow_root = true,
            ("nonempty", None) => self.nonempty = true,
            ("no_sandbox", None) => self.sandbox = false,
            ("uid", Some(id)) => self.uid = Some(parse_id(id).ok_or_else(|| bad("a numeric user id"))?),
            ("gid", Some(id)) => self.gid = Some(parse_id(id).ok_or_else(|| bad("a numeric group id"))?),
            ("cache_size", Some(size)) => {
                let bytes = parse_bytes(size).ok_or_else(|| bad("bytes, with K, M, G or T after them"))?;
                if bytes < CACHE_BYTES_MIN {
                    return Err(bad("at least 4M"));
                }
                self.cache_bytes_max = bytes;
            }
            ("disk_cache", Some(size)) => {
                let bytes = parse_bytes(size).ok_or_else(|| bad("bytes, with K, M, G or T after them"))?;
                if bytes < blocks::SIZE_BYTES_MIN {
                    return Err(bad("at least 64M"));
                }
                self.disk_cache_bytes_max = bytes;
            }
            ("threads", Some(count)) => {
                let count = count.parse().ok().filter(|n| (1..=THREADS_MAX).contains(n));
                self.threads = Some(count.ok_or_else(|| bad("a number from 1 to 64"))?);
            }
            ("store_timeout", Some(seconds)) => {
                let seconds = seconds.parse().ok().filter(|n| *n <= TIMEOUT_SECONDS_MAX);
                let seconds = seconds.ok_or_else(|| bad("seconds from 1 to 3600, or 0 to wait for ever"))?;
                self.store_timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
            }
            ("passthrough", Some("on")) => self.passthrough = true,
            ("passthrough", Some("off")) => self.passthrough = false,
            ("passthrough", _) => return Err(bad("passthrough=on or passthrough=off")),
            ("seek_index", Some("on")) => self.seek_index = true,
            ("seek_index", Some("off")) => self.seek_index = false,
            ("seek_index", _) => return Err(bad("seek_index=on or seek_index=off")),
            ("on_damage", Some("eio")) => self.on_damage = OnDamage::Error,
            ("on_damage", Some("zero")) => self.on_damage = OnDamage::Zeros,
            ("on_damage", _) => return Err(bad("on_damage=eio or on_damage=zero")),
            ("log", Some(path)) if !path.is_empty() => self.log = Some(path.into()),
            ("log", _) => return Err(bad("log=FILE")),
            ("uid" | "gid" | "cache_size" | "disk_cache" | "threads" | "store_timeout", None) => {
                return Err(bad("a value after '='"));
            }
            ("allow_other" | "allow_root" | "nonempty" | "no_sandbox" | "ro" | "rw", Some(_)) => {
                return Err(bad("no value"));
            }
            ("rw", None) => {
                return Err(usage("option \"rw\": a backup cannot be written to; use ro".to_owned()));
            }
            (key, None) if IGNORED.contains(&key) => {}
            (key, _) if key.starts_with("x-") || key.starts_with("X-") || key == "comment" => {}
            _ => return Err(usage(format!("unknown mount option {word:?}"))),
        }
        Ok(())
    }
}

/// Splits at commas that no backslash escapes, as libfuse does; empty words fall away.
fn words(list: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match (c, words.last_mut()) {
            (',', _) => words.push(String::new()),
            ('\\', Some(word)) => word.extend(chars.next()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A user or group id; the highest number means "none" to the kernel and is not one.
fn parse_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// `256M` as bytes; suffixes are powers of 1024, in either case, with or without `B` or `iB`.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions> {
        MountOptions::parse(&[list])
    }

    #[test]
    fn our_options() {
        let options = MountOptions::parse(&[
            "allow_other,uid=1000,gid=0,cache_size=64M",
            "threads=3,log=/var/log/a\\,b,passthrough=off,seek_index=off,no_sandbox,nonempty,cache_size=1g,disk_cache=2T,store_timeout=5,on_damage=zero",
        ])
        .unwrap();
        assert_eq!(
            options,
            MountOptions {
                allow_other: true,
                allow_root: false,
                uid: Some(1000),
                gid: Some(0),
                cache_bytes_max: 1 << 30,
                disk_cache_bytes_max: 2 << 40,
                threads: Some(3),
                log: Some("/var/log/a,b".into()),
                passthrough: false,
                seek_index: false,
                store_timeout: Some(Duration::from_secs(5)),
                sandbox: false,
                on_damage: OnDamage::Zeros,
                nonempty: true,
            }
        );
        assert_eq!(parse("store_timeout=0").unwrap().store_timeout, None);
        assert_eq!(parse("").unwrap(), MountOptions::default());
        assert!(THREADS_DEFAULT.contains(&MountOptions::default().threads()));
    }

    #[test]
    fn what_fstab_passes_is_ignored() {
        let fstab = "ro,defaults,noauto,user,nofail,_netdev,x-systemd.automount,X-mount.mkdir=0755,comment=a b,\
                     nosuid,nodev,noexec,noatime,,relatime";
        assert_eq!(parse(fstab).unwrap(), MountOptions::default());
    }

    #[test]
    fn a_wrong_word_is_named() {
        for (list, named) in [
            ("cache_sise=1G", "\"cache_sise=1G\""),
            ("ro,rw", "\"rw\""),
            ("uid=root", "\"uid=root\""),
            ("uid=4294967295", "numeric user id"),
            ("gid=-1", "numeric group id"),
            ("uid", "after '='"),
            ("threads=0", "1 to 64"),
            ("threads=65", "1 to 64"),
            ("cache_size=1Q", "bytes"),
            ("cache_size=", "bytes"),
            ("cache_size=1", "at least 4M"),
            ("cache_size=99999999999T", "bytes"),
            ("disk_cache", "after '='"),
            ("disk_cache=big", "bytes"),
            ("disk_cache=63M", "at least 64M"),
            ("log=", "log=FILE"),
            ("store_timeout=3601", "1 to 3600"),
            ("store_timeout=soon", "1 to 3600"),
            ("passthrough", "passthrough=off"),
            ("passthrough=maybe", "passthrough=off"),
            ("seek_index=maybe", "seek_index=off"),
            ("on_damage=stop", "on_damage=zero"),
            ("on_damage", "on_damage=eio"),
            ("allow_other=yes", "no value"),
            ("no_sandbox=off", "no value"),
            ("allow_other,allow_root", "exclude"),
            ("big\u{1b}[31m", "\"big\\u{1b}[31m\""),
        ] {
            let error = parse(list).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(named), "{list}: {error}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("17", 17), ("64K", 65536), ("1MiB", 1 << 20), ("2Gb", 2 << 30), ("1t", 1 << 40)]
        {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
    }
}
