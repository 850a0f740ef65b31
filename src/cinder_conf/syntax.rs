//! The lines of one configuration file, as oslo.config takes them (`oslo_config/iniparser.py`, read in release 10.x).
//!
//! Problem: it looks like an INI file and is none: a line that begins with blanks goes on with the value above, a blank line ends
//! it, `:` assigns as well as `=`, an option may stand several times, and quotes around a value are taken off. Comments take a
//! whole line; a `#` behind a value belongs to the value.

use std::collections::BTreeMap;
use std::fmt;

use super::DEFAULT;

/// Section, option, and each value that the option was given, in order.
pub(super) type Sections = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// Why a file is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Counted from 1.
    line: usize,
    what: &'static str,
}

impl fmt::Display for SyntaxError {
    /// Without the line's text: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// The sections of `text`.
pub(super) fn parse(text: &str) -> Result<Sections, SyntaxError> {
    let mut parser = Parser::default();
    // Python reads text files with universal newlines.
    let lines = text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'));
    for line in lines {
        parser.number += 1;
        parser.line(line.trim_end())?;
    }
    parser.flush()?;
    Ok(parser.sections)
}

#[derive(Default)]
struct Parser {
    sections: Sections,
    section: Option<String>,
    /// The option that a continuation line goes on with, and the lines of its value so far.
    open: Option<(String, Vec<String>)>,
    number: usize,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), SyntaxError> {
        if line.is_empty() {
            return self.flush();
        }
        if line.starts_with([' ', '\t']) {
            let Some((_, value)) = &mut self.open else { return self.fail("unexpected continuation line") };
            value.push(line.trim_start().to_owned());
            return Ok(());
        }
        self.flush()?;
        if let Some(rest) = line.strip_prefix('[') {
            let Some(name) = rest.strip_suffix(']') else {
                return self.fail("invalid section (must end with ])");
            };
            if name.is_empty() {
                return self.fail("empty section name");
            }
            let name = normalised(name);
            self.sections.entry(name.clone()).or_default();
            self.section = Some(name);
        } else if !line.starts_with(['#', ';']) {
            let Some((key, value)) = line.split_once([':', '=']) else {
                return self.fail("no ':' or '=' found in assignment");
            };
            if key.trim().is_empty() {
                return self.fail("key cannot be empty");
            }
            self.open = Some((key.trim().to_owned(), vec![unquoted(value.trim()).to_owned()]));
        }
        Ok(())
    }

    /// Ends the assignment that is open.
    fn flush(&mut self) -> Result<(), SyntaxError> {
        let Some((key, value)) = self.open.take() else { return Ok(()) };
        let Some(section) = &self.section else {
            return self.fail("section must be started before assignment");
        };
        let values = self.sections.entry(section.clone()).or_default().entry(key).or_default();
        values.push(value.join("\n"));
        Ok(())
    }

    fn fail(&self, what: &'static str) -> Result<(), SyntaxError> {
        Err(SyntaxError { line: self.number, what })
    }
}

/// `[DEFAULT]` is a word of its own, the case of all others does not count.
fn normalised(section: &str) -> String {
    if section == DEFAULT { section.to_owned() } else { section.to_lowercase() }
}

/// `value` without the quotes around it. A single quote character is both its ends, as in Python.
fn unquoted(value: &str) -> &str {
    let Some(quote) = value.chars().next().filter(|first| matches!(first, '"' | '\'')) else { return value };
    match value.strip_suffix(quote) {
        Some(rest) if rest.is_empty() => rest,
        Some(rest) => &rest[1..],
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `oslo_config.iniparser` answers for the same text was looked up by running it.
    #[test]
    fn lines_are_taken_as_oslo_config_takes_them() {
        let text = "# head\n[DEFAULT]\na=1\nb : 2 # not a comment\nc = \"q  \"\nd = 'x\ne=\nf = one,\n  two,\n\tthree\n\n\
                    a = again\nurl = http://h:1/x=y\nq = \"\n[Backend-One]\n; note\na=3\n[DEFAULT]\ng: 1=2\n";
        let sections = parse(text).unwrap();
        let value = |section: &str, key: &str| sections[section][key].join("|");
        assert_eq!(value("DEFAULT", "a"), "1|again");
        assert_eq!(value("DEFAULT", "b"), "2 # not a comment");
        assert_eq!(value("DEFAULT", "c"), "q  ");
        assert_eq!(value("DEFAULT", "d"), "'x");
        assert_eq!(value("DEFAULT", "e"), "");
        assert_eq!(value("DEFAULT", "f"), "one,\ntwo,\nthree");
        assert_eq!(value("DEFAULT", "url"), "http://h:1/x=y");
        assert_eq!(value("DEFAULT", "q"), "");
        assert_eq!(value("DEFAULT", "g"), "1=2");
        assert_eq!(value("backend-one", "a"), "3");
        assert_eq!(parse("[DEFAULT]\r\na=1\r\n\r\n").unwrap()["DEFAULT"]["a"], ["1"]);
    }

    #[test]
    fn what_oslo_config_refuses_is_refused_with_its_line() {
        for (text, line, what) in [
            ("a=1\n[x]\n", 2, "section must be started before assignment"),
            ("[DEFAULT\n", 1, "invalid section (must end with ])"),
            ("[]\n", 1, "empty section name"),
            ("[x]\n=1\n", 2, "key cannot be empty"),
            ("[x]\nword\n", 2, "no ':' or '=' found in assignment"),
            ("[x]\n  more\n", 2, "unexpected continuation line"),
            ("[x]\na=1\n\n  more\n", 4, "unexpected continuation line"),
        ] {
            assert_eq!(parse(text), Err(SyntaxError { line, what }), "{text:?}");
        }
    }
}
