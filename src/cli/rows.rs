//! Rows printed as they come.
//!
//! [`render::list`] lays out rows that are all there; the map of a volume may have millions. Here the widths of a table's columns are
//! known beforehand, and nothing is held. JSON is a list with one object on each line, as `qemu-img map` prints it.

use std::borrow::Cow;
use std::io::{self, Write};

use serde_json::{Map, Value};
use unicode_width::UnicodeWidthStr as _;

use super::render::{self, Format};

/// A column of rows that come one by one.
pub(crate) struct Column {
    /// Its title in tables and CSV.
    pub(crate) title: &'static str,
    /// Its key in JSON and YAML.
    pub(crate) key: &'static str,
    /// How wide its cells are; the title's width at least. Numbers stand at the right.
    pub(crate) width: usize,
    pub(crate) is_number: bool,
}

/// Prints rows.
pub(crate) struct Rows<'a> {
    out: &'a mut dyn Write,
    format: Format,
    columns: Vec<&'a Column>,
    count: u64,
}

impl<'a> Rows<'a> {
    /// Nothing is printed before the first row.
    pub(crate) fn new(out: &'a mut dyn Write, format: Format, columns: Vec<&'a Column>) -> Self {
        Self { out, format, columns, count: 0 }
    }

    /// Prints one row, which has a cell for each column.
    pub(crate) fn add(&mut self, cells: &[Value]) -> io::Result<()> {
        self.count += 1;
        match self.format {
            Format::Table => {
                if self.count == 1 {
                    self.head()?;
                }
                self.line(cells.iter().map(render::cell))
            }
            Format::Json => {
                let object: Map<String, Value> =
                    self.columns.iter().map(|c| c.key.to_owned()).zip(cells.iter().cloned()).collect();
                let before = if self.count == 1 { "[" } else { ",\n" };
                write!(self.out, "{before}{}", render::json(&Value::Object(object), false))
            }
            Format::Yaml => {
                let keys: Vec<&str> = self.columns.iter().map(|c| c.key).collect();
                render::list(self.out, Format::Yaml, &keys, &[cells.to_vec()])
            }
            Format::Value => render::list(self.out, Format::Value, &[], &[cells.to_vec()]),
            Format::Csv => {
                if self.count == 1 {
                    self.csv_head()?;
                }
                render::csv_row(self.out, cells)
            }
        }
    }

    /// Ends the list, and gives back where it was printed.
    pub(crate) fn finish(mut self) -> io::Result<&'a mut dyn Write> {
        match (self.format, self.count) {
            (Format::Table, 1..) => self.rule(),
            (Format::Json, 0) => writeln!(self.out, "[]"),
            (Format::Json, 1..) => writeln!(self.out, "]"),
            (Format::Yaml, 0) => writeln!(self.out, "[]"),
            (Format::Csv, 0) => self.csv_head(),
            (Format::Table, 0) | (Format::Yaml | Format::Csv, 1..) | (Format::Value, _) => Ok(()),
        }?;
        Ok(self.out)
    }

    fn csv_head(&mut self) -> io::Result<()> {
        let titles: Vec<&str> = self.columns.iter().map(|column| column.title).collect();
        render::list(self.out, Format::Csv, &titles, &[])
    }

    fn head(&mut self) -> io::Result<()> {
        self.rule()?;
        let titles: Vec<_> = self.columns.iter().map(|column| column.title.into()).collect();
        self.line(titles.into_iter())?;
        self.rule()
    }

    fn rule(&mut self) -> io::Result<()> {
        let rule: String =
            self.columns.iter().map(|column| format!("+{}", "-".repeat(column.columns() + 2))).collect();
        writeln!(self.out, "{rule}+")
    }

    fn line<'c>(&mut self, cells: impl Iterator<Item = Cow<'c, str>>) -> io::Result<()> {
        for (cell, column) in cells.zip(&self.columns) {
            let padding = " ".repeat(column.columns().saturating_sub(cell.width()));
            match column.is_number {
                true => write!(self.out, "| {padding}{cell} ")?,
                false => write!(self.out, "| {cell}{padding} ")?,
            }
        }
        writeln!(self.out, "|")
    }
}

impl Column {
    fn columns(&self) -> usize {
        self.width.max(self.title.width())
    }
}

/// Digits of the largest number that a column may hold.
pub(crate) fn digits(largest: u64) -> usize {
    largest.to_string().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn printed(format: Format, rows: &[[Value; 2]]) -> String {
        let columns = [
            Column { title: "Start", key: "start", width: digits(1_000_000), is_number: true },
            Column { title: "State", key: "state", width: 3, is_number: false },
        ];
        let mut out = Vec::new();
        let mut printer = Rows::new(&mut out, format, columns.iter().collect());
        rows.iter().for_each(|row| printer.add(row).unwrap());
        printer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn rows_look_as_if_they_had_come_together() {
        let rows = [[json!(0), json!("data")], [json!(4096), json!("z\u{202e}")]];
        assert_eq!(
            printed(Format::Table, &rows),
            "\
+---------+-------+
|   Start | State |
+---------+-------+
|       0 | data  |
|    4096 | z\\u{202e} |
+---------+-------+
"
        );
        let json = printed(Format::Json, &rows);
        assert_eq!(json, "[{\"start\":0,\"state\":\"data\"},\n{\"start\":4096,\"state\":\"z\\u202e\"}]\n");
        assert_eq!(
            printed(Format::Yaml, &rows),
            "- start: 0\n  state: \"data\"\n- start: 4096\n  state: \"z\\u202e\"\n"
        );
        assert_eq!(printed(Format::Value, &rows), "0 data\n4096 z\\u{202e}\n");
        assert_eq!(printed(Format::Csv, &rows), "\"Start\",\"State\"\n0,\"data\"\n4096,\"z\\u{202e}\"\n");
    }

    #[test]
    fn no_rows_are_a_document_all_the_same() {
        assert_eq!(printed(Format::Table, &[]), "");
        assert_eq!(printed(Format::Json, &[]), "[]\n");
        assert_eq!(printed(Format::Yaml, &[]), "[]\n");
        assert_eq!(printed(Format::Csv, &[]), "\"Start\",\"State\"\n");
    }
}
