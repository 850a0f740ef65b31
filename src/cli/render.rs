//! Rows and fields as the OpenStack client prints them: table, json, yaml, value, csv.
//!
//! Problem: scripts written for `openstack volume backup list -f …` should work with `cinderfs list -f …`, and the text
//! in the cells was written by whoever may write to the store.
//! Idea: cells are JSON values; each format is one function over them. The formats follow cliff, the OpenStack
//! client's framework: `None`, `True` and `False` where it prints Python values, `null` where it prints JSON.
//!
//! Invariant: no control character and no direction override of a cell reaches the output, in any format. JSON and
//! YAML escape them in their own way and lose nothing; the others show `\n`, `\x1b`, `\u{202e}`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::{Map, Value};
use unicode_width::UnicodeWidthStr;

/// How rows and fields are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// Columns in a frame, for people.
    Table,
    /// One JSON array or object.
    Json,
    /// One YAML document.
    Yaml,
    /// Bare values: those of a row on one line, those of one backup on a line each.
    Value,
    /// Comma-separated, with a header, everything but numbers quoted.
    Csv,
}

/// Prints rows under their column titles. Each row has as many cells as there are titles.
pub(crate) fn list(
    out: &mut dyn Write,
    format: Format,
    titles: &[&str],
    rows: &[Vec<Value>],
) -> io::Result<()> {
    match format {
        Format::Table => table(out, titles, rows, true),
        Format::Csv => csv(out, titles, rows),
        Format::Value => {
            for row in rows {
                let cells: Vec<Cow<'_, str>> = row.iter().map(cell).collect();
                writeln!(out, "{}", cells.join(" "))?;
            }
            Ok(())
        }
        Format::Json => {
            let objects: Vec<Value> = rows.iter().map(|row| object(titles, row)).collect();
            writeln!(out, "{}", json(&Value::Array(objects), true))
        }
        Format::Yaml => {
            let objects: Vec<Value> = rows.iter().map(|row| object(titles, row)).collect();
            yaml(out, &Value::Array(objects))
        }
    }
}

/// Prints the fields of one thing.
pub(crate) fn one(out: &mut dyn Write, format: Format, fields: &Map<String, Value>) -> io::Result<()> {
    let pairs = || {
        fields.iter().map(|(key, value)| vec![Value::from(key.as_str()), value.clone()]).collect::<Vec<_>>()
    };
    match format {
        // The values are of many types; all of them start at the left.
        Format::Table => table(out, &["Field", "Value"], &pairs(), false),
        Format::Csv => csv(out, &["Field", "Value"], &pairs()),
        Format::Value => fields.values().try_for_each(|value| writeln!(out, "{}", cell(value))),
        Format::Json => writeln!(out, "{}", json(&Value::Object(fields.clone()), true)),
        Format::Yaml => yaml(out, &Value::Object(fields.clone())),
    }
}

/// Width of a report: that of a terminal, and of a mail.
const REPORT_COLUMNS: usize = 80;

/// Text in lines of at most 80 columns, unless a word is longer than that.
pub(crate) fn wrapped(first: &str, indent: &str, text: &str) -> String {
    let mut all = first.to_owned();
    let mut column = first.chars().count();
    let mut is_first = true;
    for word in text.split(' ') {
        let len = word.chars().count();
        if !is_first && column + 1 + len > REPORT_COLUMNS {
            all.push('\n');
            all.push_str(indent);
            column = indent.chars().count();
        } else if !is_first {
            all.push(' ');
            column += 1;
        }
        all.push_str(word);
        column += len;
        is_first = false;
    }
    all
}

/// The text with everything escaped that could move the cursor, ring, colour, hide or reorder what is on a terminal.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_unsafe(c) && c.is_ascii() => _ = write!(shown, "\\x{:02x}", u32::from(c)),
            c if is_unsafe(c) => _ = write!(shown, "\\u{{{:x}}}", u32::from(c)),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Control characters (C0, DEL, C1), line separators, and marks that change the direction of text or have no width.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn object(titles: &[&str], row: &[Value]) -> Value {
    Value::Object(titles.iter().map(|title| (*title).to_owned()).zip(row.iter().cloned()).collect())
}

/// A value where Python's `str` would be: safe for a terminal and without line breaks.
pub(crate) fn cell(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number.to_string().into(),
        Value::String(text) => visible(text),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(cell).collect::<Vec<_>>().join(", ").into()
        }
        Value::Array(_) | Value::Object(_) => json(value, false).into(),
    }
}

fn table(out: &mut dyn Write, titles: &[&str], rows: &[Vec<Value>], numbers_right: bool) -> io::Result<()> {
    // cliff prints an empty line for an empty list, and no frame.
    let Some(first) = rows.first() else { return writeln!(out) };
    let right: Vec<bool> = first.iter().map(|value| numbers_right && value.is_number()).collect();
    let cells: Vec<Vec<Cow<'_, str>>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let mut widths: Vec<usize> = titles.iter().map(|title| title.width()).collect();
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let rule: String =
        widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect::<String>() + "+";
    let line = |cells: &[Cow<'_, str>]| {
        let mut line = String::new();
        for ((cell, width), right) in cells.iter().zip(&widths).zip(&right) {
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            let (before, after) = if *right { (&*padding, "") } else { ("", &*padding) };
            _ = write!(line, "| {before}{cell}{after} ");
        }
        line + "|"
    };
    let titles: Vec<Cow<'_, str>> = titles.iter().map(|title| Cow::Borrowed(*title)).collect();
    writeln!(out, "{rule}\n{}\n{rule}", line(&titles))?;
    for row in &cells {
        writeln!(out, "{}", line(row))?;
    }
    writeln!(out, "{rule}")
}

/// As Python's csv module under QUOTE_NONNUMERIC: numbers and booleans bare, `None` empty.
fn csv(out: &mut dyn Write, titles: &[&str], rows: &[Vec<Value>]) -> io::Result<()> {
    let header: Vec<String> = titles.iter().map(|title| quoted(title)).collect();
    writeln!(out, "{}", header.join(","))?;
    rows.iter().try_for_each(|row| csv_row(out, row))
}

/// One line of it.
pub(crate) fn csv_row(out: &mut dyn Write, row: &[Value]) -> io::Result<()> {
    let cells: Vec<String> = row
        .iter()
        .map(|value| match value {
            Value::Null => quoted(""),
            Value::Bool(_) | Value::Number(_) => cell(value).into_owned(),
            _ => quoted(&cell(value)),
        })
        .collect();
    writeln!(out, "{}", cells.join(","))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// JSON text in which unsafe characters of strings are `\uXXXX`.
pub(crate) fn json(value: &Value, pretty: bool) -> String {
    // `Display` of a value cannot fail; `#` is the pretty form with two spaces.
    let plain = if pretty { format!("{value:#}") } else { value.to_string() };
    if !plain.contains(|c: char| c >= '\x7f' && is_unsafe(c)) {
        return plain;
    }
    // Below 0x7f the serializer has escaped what stands in strings, and the line breaks left are its own. Above, all
    // unsafe characters stand in strings and lie in the basic plane: one escape of four digits each.
    let mut safe = String::with_capacity(plain.len() + 16);
    for c in plain.chars() {
        match c {
            '\x7f'.. if is_unsafe(c) => _ = write!(safe, "\\u{:04x}", u32::from(c)),
            c => safe.push(c),
        }
    }
    safe
}

/// YAML in block style. Strings are double-quoted as in JSON, which is YAML too: no word of a store can turn into a
/// boolean, a date, a tag or an anchor.
fn yaml(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    let mut text = String::new();
    yaml_block(&mut text, value, 0, true);
    out.write_all(text.trim_start_matches(['\n', ' ']).as_bytes())
}

/// Appends `value` after a key's `:` or an item's `-`. `at_line_start` says that a block begins on a new line.
fn yaml_block(text: &mut String, value: &Value, indent: usize, at_line_start: bool) {
    let mut fresh = at_line_start;
    let mut begin = |text: &mut String| {
        if fresh {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
        }
        // The first key of an item stands on the line of its `-`; the others begin their own.
        fresh = true;
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                begin(text);
                text.push('-');
                match item {
                    Value::Object(fields) if !fields.is_empty() => {
                        text.push(' ');
                        yaml_block(text, item, indent + 2, false);
                    }
                    _ => yaml_block(text, item, indent + 2, true),
                }
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                begin(text);
                let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
                    && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b' ');
                if plain {
                    text.push_str(key);
                } else {
                    text.push_str(&json(&Value::from(key.as_str()), false));
                }
                text.push(':');
                yaml_block(text, value, indent + 2, true);
            }
        }
        scalar_or_empty => {
            text.push(' ');
            text.push_str(&json(scalar_or_empty, false));
        }
    }
    if indent == 0 {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TITLES: [&str; 4] = ["ID", "Name", "Size", "Incremental"];

    fn rows() -> Vec<Vec<Value>> {
        vec![
            vec![json!("b1"), json!("日本 ü"), json!(10), json!(false)],
            vec![json!("b2"), json!(null), json!(1), json!(true)],
            vec![json!("b3"), json!("a\x1b[2J\n\"q\"\u{202e}\u{9b}"), json!(null), json!(null)],
        ]
    }

    fn printed(format: Format, rows: &[Vec<Value>]) -> String {
        let mut out = Vec::new();
        list(&mut out, format, &TITLES, rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn printed_one(format: Format, fields: Value) -> String {
        let mut out = Vec::new();
        one(&mut out, format, fields.as_object().unwrap()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_stay_straight_and_numbers_stand_right() {
        assert_eq!(
            printed(Format::Table, &rows()),
            "\
+----+-----------------------------+------+-------------+
| ID | Name                        | Size | Incremental |
+----+-----------------------------+------+-------------+
| b1 | 日本 ü                      |   10 | False       |
| b2 | None                        |    1 | True        |
| b3 | a\\x1b[2J\\n\"q\"\\u{202e}\\u{9b} | None | None        |
+----+-----------------------------+------+-------------+
"
        );
    }

    #[test]
    fn an_empty_list_is_an_empty_line_or_an_empty_document() {
        assert_eq!(printed(Format::Table, &[]), "\n");
        assert_eq!(printed(Format::Value, &[]), "");
        assert_eq!(printed(Format::Csv, &[]), "\"ID\",\"Name\",\"Size\",\"Incremental\"\n");
        assert_eq!(printed(Format::Json, &[]), "[]\n");
        assert_eq!(printed(Format::Yaml, &[]), "[]\n");
    }

    #[test]
    fn values_of_a_row_share_a_line() {
        assert_eq!(
            printed(Format::Value, &rows()),
            "b1 日本 ü 10 False\nb2 None 1 True\nb3 a\\x1b[2J\\n\"q\"\\u{202e}\\u{9b} None None\n"
        );
    }

    #[test]
    fn csv_quotes_all_but_numbers() {
        assert_eq!(
            printed(Format::Csv, &rows()),
            "\"ID\",\"Name\",\"Size\",\"Incremental\"\n\
             \"b1\",\"日本 ü\",10,False\n\
             \"b2\",\"\",1,True\n\
             \"b3\",\"a\\x1b[2J\\n\"\"q\"\"\\u{202e}\\u{9b}\",\"\",\"\"\n"
        );
    }

    #[test]
    fn json_is_an_array_of_objects_that_loses_nothing() {
        let text = printed(Format::Json, &rows()[2..]);
        assert_eq!(
            text,
            "[\n  {\n    \"ID\": \"b3\",\n    \"Name\": \"a\\u001b[2J\\n\\\"q\\\"\\u202e\\u009b\",\n    \
             \"Size\": null,\n    \"Incremental\": null\n  }\n]\n"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()[0]["Name"], rows()[2][1]);
        assert!(printed(Format::Json, &rows()).contains("日本 ü"));
    }

    #[test]
    fn yaml_quotes_what_a_store_wrote() {
        assert_eq!(
            printed(Format::Yaml, &rows()[1..]),
            "- ID: \"b2\"\n  Name: null\n  Size: 1\n  Incremental: true\n\
             - ID: \"b3\"\n  Name: \"a\\u001b[2J\\n\\\"q\\\"\\u202e\\u009b\"\n  Size: null\n  Incremental: null\n"
        );
        assert_eq!(
            printed_one(
                Format::Yaml,
                json!({"chain": ["b2", "no"], "damage": {"blocks": 1, "ranges": [{"length": 5, "offset": 0}]},
                       "empty": [], "none": {}, "yes: &a": "*a", "deep": [[1, []], {}]})
            ),
            "chain:\n  - \"b2\"\n  - \"no\"\ndamage:\n  blocks: 1\n  ranges:\n    - length: 5\n      offset: 0\n\
             empty: []\nnone: {}\n\"yes: &a\": \"*a\"\ndeep:\n  -\n    - 1\n    - []\n  - {}\n"
        );
    }

    #[test]
    fn one_thing_is_a_line_per_field() {
        let fields =
            json!({"chain": ["b2", "b1"], "damage": {"blocks": 0}, "id": "b2", "name": null, "size": 3});
        assert_eq!(
            printed_one(Format::Table, fields.clone()),
            "\
+--------+--------------+
| Field  | Value        |
+--------+--------------+
| chain  | b2, b1       |
| damage | {\"blocks\":0} |
| id     | b2           |
| name   | None         |
| size   | 3            |
+--------+--------------+
"
        );
        assert_eq!(printed_one(Format::Value, fields.clone()), "b2, b1\n{\"blocks\":0}\nb2\nNone\n3\n");
        assert_eq!(
            printed_one(Format::Csv, fields.clone()),
            "\"Field\",\"Value\"\n\"chain\",\"b2, b1\"\n\"damage\",\"{\"\"blocks\"\":0}\"\n\"id\",\"b2\"\n\
             \"name\",\"\"\n\"size\",3\n"
        );
        assert_eq!(printed_one(Format::Json, json!({"id": "b2"})), "{\n  \"id\": \"b2\"\n}\n");
    }

    #[test]
    fn no_format_lets_a_control_character_through() {
        let hostile: String =
            ('\0'..='\u{a0}').chain('\u{2000}'..='\u{206f}').chain(['\u{feff}', '\u{61c}']).collect();
        let nested = json!([{ "k": hostile }]);
        for format in [Format::Table, Format::Json, Format::Yaml, Format::Value, Format::Csv] {
            let row = vec![json!(hostile), nested.clone(), json!([hostile]), json!(1)];
            let text = printed(format, &[row]) + &printed_one(format, json!({"a": hostile, "b": nested}));
            assert!(!text.contains(|c| is_unsafe(c) && c != '\n'), "{format:?}: {text:?}");
        }
        assert_eq!(
            printed(Format::Value, &[vec![json!(hostile), json!(0), json!(0), json!(0)]]).lines().count(),
            1
        );
    }
}
