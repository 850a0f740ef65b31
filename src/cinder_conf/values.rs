//! What an option is in the end.
//!
//! Invariants: of several files the last one that has the option wins, and in it the last assignment; `$name` and `${name}` are
//! filled in with other options of any file, `$$` and `\$` are a dollar sign, and a name that nothing is known of is an error, as in
//! oslo.config. Nesting is bounded, so a value that refers to itself ends.

use super::{CinderConf, DEFAULT};
use crate::error::{Error, ErrorKind, Result};

/// How deep options may refer to each other. Cinder's own go two deep.
const DEPTH_MAX: u32 = 16;

/// Most references that are followed for one value, so that empty values which refer to each other end as well.
const REFERENCES_MAX: u32 = 10_000;

/// Most bytes of one value with everything filled in.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// Options that others refer to by default, with Cinder's defaults.
const KNOWN_DEFAULTS: [(&str, &str); 1] = [("state_path", "/var/lib/cinder")];

impl CinderConf {
    /// The option as text, everything filled in; `None` where no file has it.
    pub(super) fn text(&self, section: &str, option: &str) -> Result<Option<String>> {
        let Some(raw) = self.raw(section, option) else { return Ok(None) };
        self.fill_in(section, raw, &mut Budget::default())
            .map(Some)
            .map_err(|error| error.context(option.to_owned()))
    }

    /// The option as text, or `default` with everything filled in.
    pub(super) fn text_or(&self, section: &str, option: &str, default: &str) -> Result<String> {
        match self.text(section, option)? {
            Some(text) => Ok(text),
            None => self.fill_in(section, default, &mut Budget::default()),
        }
    }

    /// The option as text, `None` also where it is empty.
    pub(super) fn text_if_any(&self, section: &str, option: &str) -> Result<Option<String>> {
        Ok(self.text(section, option)?.filter(|text| !text.is_empty()))
    }

    /// The option as a whole number that is not negative; `None` also where it is empty.
    pub(super) fn number(&self, section: &str, option: &str) -> Result<Option<u64>> {
        let Some(text) = self.text(section, option)? else { return Ok(None) };
        match text.trim() {
            "" => Ok(None),
            digits => whole_number(digits)
                .map(Some)
                .ok_or_else(|| Error::new(ErrorKind::Usage, format!("{option} = {text:?} is no number"))),
        }
    }

    /// The option as yes or no.
    pub(super) fn flag(&self, section: &str, option: &str, default: bool) -> Result<bool> {
        let Some(text) = self.text(section, option)? else { return Ok(default) };
        match text.to_lowercase().as_str() {
            "true" | "1" | "on" | "yes" => Ok(true),
            "false" | "0" | "off" | "no" => Ok(false),
            _ => Err(Error::new(ErrorKind::Usage, format!("{option} = {text:?}, expected true or false"))),
        }
    }

    /// The names of all options of a section that any file has.
    pub(super) fn names(&self, section: &str) -> impl Iterator<Item = &str> {
        self.files
            .iter()
            .filter_map(move |(_, sections)| sections.get(section))
            .flat_map(|s| s.keys().map(String::as_str))
    }

    fn raw(&self, section: &str, option: &str) -> Option<&str> {
        let values = self.files.iter().rev().find_map(|(_, sections)| sections.get(section)?.get(option))?;
        values.last().map(String::as_str)
    }

    fn fill_in(&self, section: &str, raw: &str, budget: &mut Budget) -> Result<String> {
        // As oslo.config does first of all: it counts what a dollar sign before it means.
        let raw = raw.replace("\\$", "$$");
        let mut out = String::new();
        let mut rest = &*raw;
        while let Some(at) = rest.find('$') {
            let (before, behind) = (&rest[..at], &rest[at + 1..]);
            out.push_str(before);
            let (piece, left) = match reference(behind) {
                Reference::Escaped => ("$".to_owned(), &behind[1..]),
                Reference::Name { name, len } => (self.referred(section, name, budget)?, &behind[len..]),
                Reference::None => ("$".to_owned(), behind),
            };
            out.push_str(&piece);
            if out.len() > VALUE_BYTES_MAX {
                return Err(Error::new(
                    ErrorKind::LimitExceeded,
                    format!("a value grows beyond {VALUE_BYTES_MAX} bytes when references are filled in"),
                ));
            }
            rest = left;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// The value of another option, given by `option` or `section.option`.
    fn referred(&self, section: &str, name: &str, budget: &mut Budget) -> Result<String> {
        // `[DEFAULT]` is no group of oslo.config's, and `$DEFAULT.name` nothing it knows.
        let (group, option) =
            name.split_once('.').filter(|(group, _)| *group != DEFAULT).unwrap_or((section, name));
        for (group, option) in [(group, option), (section, name)] {
            if let Some(raw) = self.raw(group, option) {
                budget.enter()?;
                let filled = self.fill_in(group, raw, budget)?;
                budget.depth -= 1;
                return Ok(filled);
            }
        }
        match KNOWN_DEFAULTS.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => Ok((*value).to_owned()),
            None => Err(Error::new(
                ErrorKind::Usage,
                format!("refers to ${name}, which no file sets; write its value in its place"),
            )),
        }
    }
}

/// A number as Python writes it: single underscores may stand between digits.
fn whole_number(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let is_well_formed =
        digits.split('_').all(|group| group.bytes().next().is_some_and(|b| b.is_ascii_digit()));
    is_well_formed.then(|| digits.replace('_', "").parse().ok()).flatten()
}

/// How deep references are followed now, and how many were.
#[derive(Default)]
struct Budget {
    depth: u32,
    references: u32,
}

impl Budget {
    fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        self.references += 1;
        if self.depth > DEPTH_MAX || self.references > REFERENCES_MAX {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("options refer to each other more than {DEPTH_MAX} deep or {REFERENCES_MAX} times"),
            ));
        }
        Ok(())
    }
}

enum Reference<'a> {
    /// `$$`.
    Escaped,
    /// A name, and how many bytes it takes behind the dollar sign.
    Name { name: &'a str, len: usize },
    /// A dollar sign that means itself.
    None,
}

/// What stands behind a dollar sign.
fn reference(behind: &str) -> Reference<'_> {
    if behind.starts_with('$') {
        return Reference::Escaped;
    }
    let (body, braces) = behind.strip_prefix('{').map_or((behind, 0), |body| (body, 2));
    let len = body.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.')).count();
    let name = &body[..len];
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins_well || (braces > 0 && !body[len..].starts_with('}')) {
        return Reference::None;
    }
    Reference::Name { name, len: len + braces }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> CinderConf {
        CinderConf::from_text(&format!("[DEFAULT]\n{text}")).unwrap()
    }

    #[test]
    fn references_are_filled_in() {
        let conf = conf(
            "a = $b/x\nb = ${c}y\nc = 1\nd = \\$c $$c $ $1 ${c\ne = $other.key\nf = $state_path/b\ng = $h\n[other]\nkey = v\n",
        );
        let text = |option: &str| conf.text("DEFAULT", option).unwrap().unwrap();
        assert_eq!(text("a"), "1y/x");
        assert_eq!(text("d"), "$c $c $ $1 ${c");
        assert_eq!(text("e"), "v");
        assert_eq!(text("f"), "/var/lib/cinder/b");
        let error = conf.text("DEFAULT", "g").unwrap_err();
        assert!(error.to_string().contains("g: refers to $h"), "{error}");
        assert_eq!(conf.text("DEFAULT", "nothing").unwrap(), None);
    }

    #[test]
    fn values_that_refer_to_themselves_end() {
        assert_eq!(conf("a = $a\n").text("DEFAULT", "a").unwrap_err().kind(), ErrorKind::Usage);
        // Each refers to the one before ten times, and all are empty: 10^15 references.
        let mut text = "a0 =\n".to_owned();
        for i in 1..16 {
            text += &format!("a{i} = {}\n", format!("$a{}", i - 1).repeat(10));
        }
        assert_eq!(conf(&text).text("DEFAULT", "a15").unwrap_err().kind(), ErrorKind::Usage);
        // Each doubles the one before: 2^12 times 512 bytes are within the depth and beyond the bound on length.
        let mut text = format!("a0 = {}\n", "x".repeat(512));
        for i in 1..13 {
            text += &format!("a{i} = $a{0}$a{0}\n", i - 1);
        }
        assert_eq!(conf(&text).text("DEFAULT", "a12").unwrap_err().kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn numbers_and_flags() {
        let conf =
            conf("n = 42\nlong = +1_000\nempty = \nodd = 1__0\nm = -1\nyes = On\nno = 0\nwhat = maybe\n");
        assert_eq!(conf.number("DEFAULT", "n").unwrap(), Some(42));
        assert_eq!(conf.number("DEFAULT", "none").unwrap(), None);
        assert_eq!(conf.number("DEFAULT", "empty").unwrap(), None);
        assert_eq!(conf.number("DEFAULT", "long").unwrap(), Some(1000));
        assert_eq!(conf.number("DEFAULT", "odd").unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(conf.number("DEFAULT", "m").unwrap_err().kind(), ErrorKind::Usage);
        assert!(conf.flag("DEFAULT", "yes", false).unwrap());
        assert!(!conf.flag("DEFAULT", "no", true).unwrap());
        assert_eq!(conf.flag("DEFAULT", "what", true).unwrap_err().kind(), ErrorKind::Usage);
    }
}
