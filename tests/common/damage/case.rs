//! `case.json`: what is damaged, and what must become of it.
//!
//! A file is named `@1_metadata`, `@2-00003`, `@1_sha256file`: the number is the backup's `order` in the fixture, the
//! rest follows its prefix. `@1/` is its container. Any other name is a path beneath the store's root. In all texts
//! `{id 1}`, `{volume 1}`, `{prefix 1}` and `{container 1}` stand for those of backup 1.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use serde_json::Value;

use super::world::Fixture;

/// One case.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// The folder's name.
    #[serde(skip)]
    pub(crate) name: String,
    /// What the case shows, in one line.
    pub(crate) why: String,
    /// The genuine store it begins with.
    pub(crate) store: String,
    /// Most memory of one command, in MiB, where 300 do not do.
    peak_mib: Option<u64>,
    /// What is done to the store, in order.
    pub(crate) damage: Vec<Step>,
    /// By `order`, or by id for backups that the fixture does not have. What is not named must be equal.
    #[serde(default)]
    pub(crate) verdict: BTreeMap<String, Verdict>,
}

/// What is done to a store.
#[derive(Clone, Deserialize, Debug)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Step {
    /// Flips one bit: at a byte (from the end when negative), counted from the first `find` if that is given.
    Flip { file: String, at: i64, bit: u8, find: Option<String> },
    /// Cuts the file to a length (or by so many bytes when negative).
    Truncate { file: String, to: i64 },
    /// Removes a file or folder.
    Remove { file: String },
    /// Appends bytes.
    Append { file: String, hex: String },
    /// Replaces a text where it stands the `nth` time, counted from 0.
    Replace {
        file: String,
        from: String,
        to: String,
        #[serde(default)]
        nth: usize,
    },
    /// Writes a file, and the folders to it.
    Write { file: String, text: String },
    /// Sets a value in a JSON document; the last part of the pointer may be new, `-` appends to a list.
    Set { file: String, at: String, value: Value },
    /// Removes a value from a JSON document.
    Unset { file: String, at: String },
    /// Gives another name to an entry of `objects`.
    RenameObject { file: String, index: usize, to: String },
    /// Writes a JSON document anew: `compact`, `python2`, `bom`, `newline`.
    Layout { file: String, style: String },
    /// A document of `head`, then `unit` over and over, `bytes` long in all. `sparse`: after 64 KiB of units a hole.
    Fill {
        file: String,
        head: String,
        unit: String,
        bytes: u64,
        #[serde(default)]
        sparse: bool,
    },
    /// A folder in a file's place.
    Directory { file: String },
    /// A FIFO in a file's place.
    Fifo { file: String },
    /// A symbolic link in a file's place. `{outside}` is a folder beside the store with a copy of the file.
    Symlink { file: String, to: String },
    /// Copies a file or folder.
    Copy { from: String, to: String },
    /// Moves a file or folder.
    Move { from: String, to: String },
    /// Makes a file whose name is not UTF-8, in a folder.
    ForeignName { folder: String },
    /// Compresses an object's plain bytes in another way; see `forge::recode`.
    Recode { file: String, how: String },
    /// Replaces an object by a stream of `mib` MiB of one byte.
    Bomb { file: String, codec: String, mib: u64, byte: u8 },
    /// Adds a full backup that is made here.
    Build(super::forge::Build),
}

/// What must become of a backup.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Words")]
pub(crate) struct Verdict {
    pub(crate) is: Is,
    /// Ranges of the image that cannot be read, start and end in bytes.
    pub(crate) lost: Vec<(u64, u64)>,
    /// The `ErrorKind` of what is lost or unusable; `one|another` where ranges differ.
    pub(crate) kind: Option<String>,
    /// Stands in the reason; `one|another` where ranges differ.
    pub(crate) says: Option<String>,
    /// What verifies it.
    pub(crate) verification: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Is {
    /// All bytes are those of the true image.
    Equal,
    /// All bytes but those in `lost`.
    Lost,
    /// Listed with a reason, and there is no image.
    Unusable,
    /// Not listed.
    Absent,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(Is),
    Many(More),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct More {
    is: Is,
    #[serde(default)]
    lost: Vec<(u64, u64)>,
    kind: Option<String>,
    says: Option<String>,
    verification: Option<String>,
}

impl From<Words> for Verdict {
    fn from(words: Words) -> Self {
        let more = match words {
            Words::One(is) => More { is, lost: Vec::new(), kind: None, says: None, verification: None },
            Words::Many(more) => more,
        };
        let verification = more.verification.unwrap_or_else(|| "sha256".into());
        Self { is: more.is, lost: more.lost, kind: more.kind, says: more.says, verification }
    }
}

impl Verdict {
    pub(crate) fn equal() -> Self {
        Words::One(Is::Equal).into()
    }
}

impl Case {
    /// Reads a case; panics where it does not say what it must.
    pub(crate) fn read(name: &str) -> Self {
        let path = super::cases_folder().join(name).join("case.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let bare: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let store = bare["store"].as_str().unwrap_or_else(|| panic!("{path:?}: no store"));
        let mut text = text.clone();
        for fixture in Fixture::all_of(store) {
            for (word, value) in [
                ("id", &fixture.id),
                ("volume", &fixture.volume_id),
                ("prefix", &fixture.prefix),
                ("container", &fixture.container),
            ] {
                text = text.replace(&format!("{{{word} {}}}", fixture.order), value);
            }
        }
        let mut case: Self = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        case.name = name.into();
        case.complain();
        case
    }

    /// Most memory of one command, in KiB.
    pub(crate) fn peak_kib_max(&self) -> u64 {
        self.peak_mib.unwrap_or(super::watch::PEAK_MIB_MAX) << 10
    }

    /// The verdict on a backup of the fixture.
    pub(crate) fn of(&self, order: u64) -> Verdict {
        self.verdict.get(&order.to_string()).cloned().unwrap_or_else(Verdict::equal)
    }

    fn complain(&self) {
        let name = &self.name;
        assert!(!self.why.is_empty() && !self.why.contains('\n'), "{name}: why, in one line");
        assert!(!self.damage.is_empty(), "{name}: no damage");
        for (backup, verdict) in &self.verdict {
            let has_reason = verdict.kind.is_some() && verdict.says.is_some();
            let is_damaged = matches!(verdict.is, Is::Lost | Is::Unusable);
            assert_eq!(has_reason, is_damaged, "{name}: backup {backup}: kind and says go with damage");
            assert_eq!(verdict.lost.is_empty(), verdict.is != Is::Lost, "{name}: backup {backup}: ranges");
            for range in &verdict.lost {
                assert!(range.0 < range.1, "{name}: backup {backup}: {range:?}");
            }
            assert!(
                verdict.lost.windows(2).all(|pair| pair[0].1 < pair[1].0),
                "{name}: backup {backup}: order"
            );
        }
    }
}
