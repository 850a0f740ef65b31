//! Does a cinder.conf say to us what it says to genuine Cinder? On random files, with genuine oslo.config beside us.
//!
//! Run by `scripts/services/test.sh`, which installs Cinder.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use cinderfs::cinder_conf::{CinderConf, Driver};
use serde_json::{Value, json};

/// Sets of files that are compared.
const SETS: u64 = 2000;

/// Cinder's defaults, which an empty value means as well.
const OBJECT_BYTES: u64 = 1_999_994_880;
const BLOCK_BYTES: u64 = 32_768;

/// Genuine Cinder's options, asked over a pipe.
struct Genuine {
    process: Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Genuine {
    fn start() -> Self {
        let python = std::env::var("TEST_CINDER_PYTHON").expect("run scripts/services/test.sh");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/genuine-cinder/options.py");
        let mut process =
            Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap()).lines();
        assert_eq!(answers.next().unwrap().unwrap(), "ready");
        Self { asks: process.stdin.take().unwrap(), process, answers }
    }

    fn options(&mut self, files: &[PathBuf], folders: &[PathBuf]) -> Value {
        writeln!(self.asks, "{}", json!([files, folders])).unwrap();
        serde_json::from_str(&self.answers.next().unwrap().unwrap()).unwrap()
    }
}

impl Drop for Genuine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A small generator of numbers; the seed is told when a comparison fails.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    /// What an option is set to.
    fn value(&mut self, option: &str) -> String {
        const SIZES: [&str; 9] = ["32768", "65536", "0", "1", "", " 131072 ", "+65536", "6553x", "1_048_576"];
        const CODECS: [&str; 10] =
            ["zlib", "none", "off", "no", "bz2", "bzip2", "zstd", "gzip", "ZLIB", "\"zstd\""];
        const PIECES: [&str; 28] = [
            "a",
            "/b",
            "c d",
            "$state_path",
            "${state_path}",
            "$backup_container",
            "$backup_posix_path",
            "$nope",
            "$$",
            "\\$",
            "$",
            "${",
            "}",
            "\"",
            "'",
            "#",
            ";",
            "=",
            ":",
            " ",
            "\t",
            "é",
            "%(x)s",
            "[x]",
            ",",
            "$1",
            "$DEFAULT.state_path",
            "\\",
        ];
        match option {
            "backup_file_size" | "backup_sha_block_size_bytes" => self.of(&SIZES).to_owned(),
            "backup_compression_algorithm" => self.of(&CODECS).to_owned(),
            _ => (0..self.below(4)).map(|_| self.of(&PIECES)).collect(),
        }
    }

    fn text(&mut self) -> String {
        const OPTIONS: [&str; 8] = [
            "backup_posix_path",
            "backup_posix_path",
            "backup_container",
            "state_path",
            "state_path",
            "backup_file_size",
            "backup_sha_block_size_bytes",
            "backup_compression_algorithm",
        ];
        const ENDS: [&str; 6] = ["\n", "\n", "\n", "\r\n", " \n", "\x0c\n"];
        let mut text = String::new();
        if self.below(20) > 0 {
            text += "[DEFAULT]\n";
        }
        for _ in 0..self.below(7) {
            let line = match self.below(24) {
                0 => self.of(&["[DEFAULT]", "[default]", "[other]", "[Other]", "[ DEFAULT ]"]).to_owned(),
                1 => self.of(&["# a = b", "; a = b", "#", "  # indented", ""]).to_owned(),
                2 => self.of(&["[]", "[open", "nonsense", "= v", ": v", " = v"]).to_owned(),
                3 | 4 => format!("{}{}", self.of(&[" ", "\t", "    "]), self.value("")),
                _ => {
                    let option = self.of(&OPTIONS);
                    let equals = self.of(&["=", " = ", ":", " : ", "= ", " =\t"]);
                    let quote = self.of(&["", "", "", "", "\"", "'"]);
                    format!("{option}{equals}{quote}{}{quote}", self.value(option))
                }
            };
            text += &line;
            text += self.of(&ENDS);
        }
        text
    }
}

/// Whether `ours` is what genuine Cinder would start with. `Ok(false)` where it would not, nor we.
fn compare(ours: Result<CinderConf, cinderfs::Error>, genuine: &Value) -> Result<bool, String> {
    let ours = ours.and_then(|conf| conf.backup());
    let failing = match genuine.as_object() {
        // Of an option that backups may not need.
        Some(options) if options.is_empty() => return Ok(false),
        None => Some("the whole of it".to_owned()),
        Some(options) => options
            .iter()
            .find(|(_, answer)| answer[0] == "error")
            .map(|(name, why)| format!("{name}: {why}")),
    };
    let (ours, genuine) = match (ours, failing) {
        (Ok(ours), None) => (ours, genuine),
        (Ok(ours), Some(why)) => return Err(format!("taken as {ours:?}, genuine Cinder refuses {why}")),
        (Err(_), Some(_)) => return Ok(false),
        (Err(error), None) => {
            let error = error.to_string();
            // Cinder finds these out when it makes a backup; and it has defaults that we need not know.
            let is_later = ["which no file sets", "is no multiple of", "expected at least 1 byte"]
                .iter()
                .any(|why| error.contains(why));
            return if is_later {
                Ok(false)
            } else {
                Err(format!("{error}; genuine Cinder takes {genuine}"))
            };
        }
    };
    let value = |name: &str| genuine[name][1].clone();
    let number = |name: &str, default: u64| value(name).as_u64().unwrap_or(default);
    let Driver::Posix { path } = &ours.driver else { return Err(format!("{:?}", ours.driver)) };
    let codec = ours.compression.map(|codec| codec.to_string());
    let known = match value("backup_compression_algorithm").as_str().map(str::to_lowercase).as_deref() {
        Some("none" | "off" | "no") => "none",
        Some("zlib" | "gzip") => "zlib",
        Some("bz2" | "bzip2") => "bz2",
        Some("zstd") => "zstd",
        other => return Err(format!("{other:?}")),
    };
    let same = [
        ("path", json!(path), value("backup_posix_path")),
        (
            "container",
            json!(ours.container.clone().unwrap_or_default()),
            json!(value("backup_container").as_str().unwrap_or_default()),
        ),
        ("codec", json!(codec.as_deref().unwrap_or("zlib")), json!(known)),
        (
            "object",
            json!(ours.object_bytes.unwrap_or(OBJECT_BYTES)),
            json!(number("backup_file_size", OBJECT_BYTES)),
        ),
        (
            "block",
            json!(ours.block_bytes.unwrap_or(BLOCK_BYTES)),
            json!(number("backup_sha_block_size_bytes", BLOCK_BYTES)),
        ),
    ];
    match same.into_iter().find(|(_, ours, genuine)| ours != genuine) {
        Some((what, ours, genuine)) => Err(format!("{what}: {ours}, genuine Cinder has {genuine}")),
        None => Ok(true),
    }
}

/// Writes a set of files; which are told, and the folders beside them.
fn files_in(folder: &Path, random: &mut Random) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for name in ["cinder.conf", "more.conf"].iter().take(1 + random.below(2)) {
        let file = folder.join(name);
        std::fs::write(&file, random.text()).unwrap();
        if random.below(4) == 0 {
            let beside = folder.join(format!("{name}.d"));
            std::fs::create_dir(&beside).unwrap();
            for name in ["20.conf", "10.conf", "ignored.txt"] {
                std::fs::write(beside.join(name), random.text()).unwrap();
            }
            folders.push(beside);
        }
        files.push(file);
    }
    // The driver is not what is compared.
    let first = std::fs::read_to_string(&files[0]).unwrap();
    let driver = "[DEFAULT]\nbackup_driver = cinder.backup.drivers.posix.PosixBackupDriver\n";
    std::fs::write(&files[0], format!("{driver}\n{first}")).unwrap();
    (files, folders)
}

// > What a cinder.conf and the files beside it say of backups is what genuine Cinder takes from them, and what it refuses there is refused.
#[test]
#[ignore = "needs genuine Cinder; scripts/services/test.sh"]
fn random_files_say_what_they_say_to_genuine_cinder() {
    let mut genuine = Genuine::start();
    let mut taken = 0;
    for seed in 1..=SETS {
        let folder = tempfile::tempdir().unwrap();
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let (files, folders) = files_in(folder.path(), &mut random);
        let answer = genuine.options(&files, &folders);
        match compare(CinderConf::read(&files), &answer) {
            Ok(is_taken) => taken += u64::from(is_taken),
            Err(why) => {
                let beside = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
                let all = files.iter().cloned().chain(beside.map(|entry| entry.unwrap().path()));
                for file in all {
                    println!("{file:?}: {:?}", std::fs::read_to_string(&file).unwrap());
                }
                panic!("seed {seed}: {why}");
            }
        }
    }
    println!("of {SETS} sets {taken} are taken by both");
    assert!(taken > SETS / 5, "{taken}");
}
