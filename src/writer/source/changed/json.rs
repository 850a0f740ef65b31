//! The lists that are JSON.
//!
//! They are read entry by entry. The first entry decides of what form the list is, and all must be of it. Keys that are not
//! needed are passed over: QEMU adds some from release to release.

use std::fmt;
use std::io::BufRead;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::{ROUNDED_BYTES, Ranges, range_of, read_error, refuse};
use crate::error::{Error, ErrorKind, Result};
use crate::format::json::Guard;

/// Who prints lists of this form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// `nbdinfo --json --map=qemu:dirty-bitmap:NAME`.
    Nbdinfo,
    /// `qemu-img map` through `x-dirty-bitmap`.
    QemuMap,
    /// `"dirty": true`.
    Dirty,
    /// `rbd diff`.
    Rbd,
}

#[derive(Deserialize)]
struct Entry {
    offset: Option<u64>,
    start: Option<u64>,
    length: Option<u64>,
    #[serde(rename = "type")]
    number: Option<u64>,
    description: Option<String>,
    data: Option<bool>,
    zero: Option<bool>,
    dirty: Option<bool>,
    exists: Option<Exists>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Exists {
    Flag(#[expect(dead_code, reason = "either way it changed")] bool),
    Text(String),
}

impl Entry {
    fn form(&self) -> Option<Form> {
        let Self { offset, start, number, description, data, zero, dirty, exists, .. } = self;
        match (dirty, exists, description) {
            (Some(_), None, None) if data.is_none() && (offset.is_some() != start.is_some()) => {
                Some(Form::Dirty)
            }
            (None, Some(_), None) if offset.is_some() && start.is_none() && data.is_none() => Some(Form::Rbd),
            (None, None, Some(_)) if offset.is_some() && start.is_none() && number.is_some() => {
                Some(Form::Nbdinfo)
            }
            // Its `offset` is a place in the file that holds the image.
            (None, None, None) if start.is_some() && data.is_some() && zero.is_some() => Some(Form::QemuMap),
            _ => None,
        }
    }

    /// Whether the range changed.
    fn is_changed(&self, form: Form) -> Result<bool> {
        match form {
            Form::Dirty => Ok(self.dirty == Some(true)),
            Form::Rbd => match &self.exists {
                Some(Exists::Flag(_)) => Ok(true),
                Some(Exists::Text(text)) if text == "true" || text == "false" => Ok(true),
                _ => Err(refuse("its \"exists\" is neither true nor false")),
            },
            Form::Nbdinfo => match (self.number, self.description.as_deref()) {
                (Some(0), Some("clean")) => Ok(false),
                (Some(1), Some("dirty")) => Ok(true),
                (_, description) => {
                    let shown: String = description.unwrap_or_default().chars().take(64).collect();
                    Err(refuse(format!(
                        "it is described as {shown:?}, not as clean or dirty; the list must be made with --map=qemu:dirty-bitmap:NAME"
                    )))
                }
            },
            Form::QemuMap => match (self.zero, self.data) {
                (Some(false), Some(data)) => Ok(!data),
                _ => Err(refuse(
                    "it is zero, which is said of an image's allocation, not of its dirty bitmap; \
                     `nbdinfo --json --map=qemu:dirty-bitmap:NAME` tells them apart",
                )),
            },
        }
    }
}

/// What is known of the list so far.
struct List<'a> {
    ranges: &'a mut Ranges,
    form: Option<Form>,
    entries: u64,
    /// Whether the entries follow each other from the first byte on, and the end of the last.
    is_gapless: bool,
    end: u64,
    has_clean: bool,
    has_dirty: bool,
}

impl List<'_> {
    fn add(&mut self, entry: &Entry) -> Result<()> {
        let Some(form) = entry.form() else {
            return Err(refuse(
                "it has no known set of keys: expected offset or start, length, and what changed",
            ));
        };
        if *self.form.get_or_insert(form) != form {
            return Err(refuse("it is of another form than those before it"));
        }
        let start = if form == Form::QemuMap { entry.start } else { entry.offset.or(entry.start) };
        let (Some(start), Some(length)) = (start, entry.length) else {
            return Err(refuse("it has no place or no length"));
        };
        let range = range_of(start, length)?;
        self.is_gapless &= range.start == self.end;
        self.end = range.end;
        if entry.is_changed(form)? {
            self.has_dirty = true;
            self.ranges.add(range)?;
        } else {
            self.has_clean = true;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let len_bytes = self.ranges.len_bytes;
        let must_be_whole = match self.form {
            // Only `rbd diff` prints an empty list, for no change.
            None | Some(Form::Rbd) => false,
            Some(Form::Nbdinfo | Form::QemuMap) => true,
            Some(Form::Dirty) => self.has_clean,
        };
        if must_be_whole {
            if !self.is_gapless {
                return Err(refuse("its ranges do not follow each other: it is torn, or out of order"));
            }
            if self.end < len_bytes || self.end - len_bytes > ROUNDED_BYTES {
                return Err(refuse(format!(
                    "it is of {} bytes, but the volume has {len_bytes}: it is torn, or of another volume",
                    self.end
                )));
            }
        }
        if self.form == Some(Form::QemuMap) && !self.has_dirty {
            return Err(refuse(
                "nothing in it is dirty, or it is no dirty bitmap: what qemu-img map prints of either is the same; \
                 use `nbdinfo --json --map=qemu:dirty-bitmap:NAME`",
            ));
        }
        Ok(())
    }
}

/// Adds what the list says to `ranges`.
pub(super) fn parse(list: impl BufRead, ranges: &mut Ranges) -> Result<()> {
    let mut state =
        List { ranges, form: None, entries: 0, is_gapless: true, end: 0, has_clean: false, has_dirty: false };
    let mut failure = None;
    let mut parser =
        serde_json::Deserializer::from_reader(std::io::BufReader::new(Guard::new(list, u64::MAX)));
    let parsed = Entries { state: &mut state, failure: &mut failure }.deserialize(&mut parser);
    let parsed = parsed.and_then(|()| parser.end());
    if let Some(ours) = failure {
        return Err(ours.context(format!("entry {}", state.entries)));
    }
    parsed.map_err(json_error)?;
    state.finish()
}

fn json_error(error: serde_json::Error) -> Error {
    if error.is_io() {
        return read_error(error.into());
    }
    let what = if error.is_eof() { "its JSON ends too early" } else { "its JSON is not a list of ranges" };
    Error::caused_by(ErrorKind::Usage, what, error)
}

/// Hands the entries of an array over one by one, so that none is kept.
struct Entries<'a, 'b> {
    state: &'a mut List<'b>,
    failure: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Entries<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of ranges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Entry>()? {
            self.state.entries += 1;
            if let Err(error) = self.state.add(&entry) {
                *self.failure = Some(error);
                return Err(serde::de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
