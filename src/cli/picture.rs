//! A volume as a picture in the terminal: one cell for each slice of it.
//!
//! Problem: ten thousand ranges tell nobody whether last night changed a log file or the whole database. Idea: the ranges are
//! painted, as they come, on a few hundred cells; each cell counts the bytes of each class and shows the most of them: by
//! colour which class, by shade how much, and where two classes share a cell, the newer one speckled over the other. Without
//! colour, letters do: capitals where at least half of the cell is something.
//!
//! Invariants: pure, cells in, text out; the picture has at most [`LINES`] lines of cells and no line is wider than asked for
//! (labels of the legend are cut); memory does not depend on how many ranges are painted.

use std::fmt::Write as _;
use std::ops::Range;

use indicatif::BinaryBytes;
use unicode_width::UnicodeWidthChar as _;

/// Lines of cells. Enough to see where, few enough to leave the rows above on the screen.
const LINES: usize = 6;

/// Room for the offset at which a line begins.
const LABEL_COLUMNS: usize = 11;

/// Fewest bytes that are worth a cell: a sector.
const CELL_BYTES_MIN: u64 = 512;

/// What fills a part of a cell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Class {
    /// What it is, for the legend.
    pub(crate) label: String,
    pub(crate) ink: Ink,
}

/// How a class is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ink {
    /// As the paper: a dot where nothing else is.
    Paper,
    /// Shaded by how much of the cell it is: the letter where there is no colour, and one of the terminal's 256 colours.
    Fill(char, u8),
    /// Whatever little there is of it marks the cell.
    Alarm,
}

/// What the terminal can show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Style {
    pub(crate) colour: bool,
    pub(crate) unicode: bool,
}

/// The cells.
pub(crate) struct Picture {
    len_bytes: u64,
    columns: usize,
    classes: Vec<Class>,
    /// For each cell the classes in it, with their bytes.
    cells: Vec<Vec<(usize, u64)>>,
    totals: Vec<u64>,
}

/// What is drawn for a cell: a character, its colour, and the colour behind it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Glyph {
    shape: char,
    colour: Option<u8>,
    behind: Option<u8>,
}

const RED: u8 = 160;
const WHITE: u8 = 231;
const GREY: u8 = 244;

impl Picture {
    /// An empty picture of a volume, `width` columns wide at most. Earlier classes are drawn over later ones.
    pub(crate) fn new(len_bytes: u64, width: usize, classes: Vec<Class>) -> Self {
        let columns = width.saturating_sub(LABEL_COLUMNS + 1).max(1);
        let worth = usize::try_from(len_bytes.div_ceil(CELL_BYTES_MIN)).unwrap_or(usize::MAX);
        let cells = vec![Vec::new(); (columns * LINES).min(worth)];
        let totals = vec![0; classes.len()];
        Self { len_bytes, columns, classes, cells, totals }
    }

    /// Paints a range with a class. What lies behind the volume's end only counts in the legend.
    pub(crate) fn add(&mut self, range: Range<u64>, class: usize) {
        let Some(total) = self.totals.get_mut(class) else { return };
        *total += range.end.saturating_sub(range.start);
        let (count, end) = (self.cells.len() as u128, range.end.min(self.len_bytes));
        if range.start >= end {
            return;
        }
        let mut cell = (u128::from(range.start) * count / u128::from(self.len_bytes)) as usize;
        let mut at = range.start;
        while at < end && cell < self.cells.len() {
            let until = self.cell(cell).end.min(end);
            if until > at {
                let parts = &mut self.cells[cell];
                match parts.iter_mut().find(|(of, _)| *of == class) {
                    Some((_, bytes)) => *bytes += until - at,
                    None => parts.push((class, until - at)),
                }
                at = until;
            }
            cell += 1;
        }
    }

    /// The bytes of the volume that a cell stands for.
    fn cell(&self, cell: usize) -> Range<u64> {
        let border = |n: usize| (u128::from(self.len_bytes) * n as u128).div_ceil(self.cells.len() as u128);
        border(cell) as u64..border(cell + 1) as u64
    }

    /// The picture and its legend.
    pub(crate) fn render(&self, style: Style) -> String {
        let mut text = String::new();
        for (line, cells) in self.cells.chunks(self.columns).enumerate() {
            let start = self.cell(line * self.columns).start;
            _ = write!(text, "{:>LABEL_COLUMNS$} ", BinaryBytes(start).to_string());
            let glyphs = cells.iter().enumerate().map(|(n, parts)| {
                let range = self.cell(line * self.columns + n);
                self.glyph(parts, range.end - range.start, style)
            });
            paint(&mut text, glyphs, style);
            text.push('\n');
        }
        text.push('\n');
        let width = LABEL_COLUMNS + 1 + self.columns;
        for (class, total) in self.classes.iter().zip(&self.totals) {
            if *total == 0 {
                continue;
            }
            _ = write!(text, "{:>LABEL_COLUMNS$} ", BinaryBytes(*total).to_string());
            paint(&mut text, [sample(class.ink, style)].into_iter(), style);
            let percent = 100.0 * *total as f64 / self.len_bytes.max(1) as f64;
            let label = format!(" {:>5} {}", said_percent(percent), class.label);
            text.push_str(cut(&label, width.saturating_sub(LABEL_COLUMNS + 2)).trim_end());
            text.push('\n');
        }
        text
    }

    fn glyph(&self, parts: &[(usize, u64)], cell_bytes: u64, style: Style) -> Glyph {
        let ink = |class: usize| self.classes[class].ink;
        if parts.iter().any(|&(class, _)| ink(class) == Ink::Alarm) {
            return sample(Ink::Alarm, style);
        }
        let fills: Vec<(usize, u64)> =
            parts.iter().copied().filter(|&(class, _)| matches!(ink(class), Ink::Fill(..))).collect();
        // Of equal ones the newer.
        let Some(&(most, most_bytes)) =
            fills.iter().max_by_key(|(class, bytes)| (*bytes, usize::MAX - class))
        else {
            return sample(Ink::Paper, style);
        };
        let filled: u64 = fills.iter().map(|(_, bytes)| bytes).sum();
        let Ink::Fill(letter, colour) = ink(most) else { return sample(Ink::Paper, style) };
        if !(style.colour && style.unicode) {
            let shape = if 2 * filled >= cell_bytes { letter } else { letter.to_ascii_lowercase() };
            return Glyph { shape, colour: Some(colour), behind: None };
        }
        let newest = fills.iter().filter(|(class, _)| *class != most).min();
        match newest.map(|&(class, bytes)| (ink(class), bytes)) {
            Some((Ink::Fill(_, over), bytes)) if 2 * filled >= cell_bytes => {
                let shape = if 2 * bytes >= most_bytes { '▒' } else { '░' };
                Glyph { shape, colour: Some(over), behind: Some(colour) }
            }
            _ => {
                let eighths = filled.saturating_mul(8) / cell_bytes.max(1);
                let shape = ['░', '░', '░', '▒', '▒', '▓', '▓', '█'][eighths.min(7) as usize];
                Glyph { shape, colour: Some(colour), behind: None }
            }
        }
    }
}

/// A cell full of one class.
fn sample(ink: Ink, style: Style) -> Glyph {
    let is_drawn = style.colour && style.unicode;
    match ink {
        Ink::Paper => {
            Glyph { shape: if style.unicode { '·' } else { '.' }, colour: Some(GREY), behind: None }
        }
        Ink::Fill(letter, colour) => {
            Glyph { shape: if is_drawn { '█' } else { letter }, colour: Some(colour), behind: None }
        }
        Ink::Alarm => Glyph { shape: '!', colour: Some(WHITE), behind: Some(RED) },
    }
}

/// Appends glyphs, with a change of colour only where there is one.
fn paint(text: &mut String, glyphs: impl Iterator<Item = Glyph>, style: Style) {
    let mut current = (None, None);
    for glyph in glyphs {
        let wanted = (glyph.colour, glyph.behind);
        if style.colour && wanted != current {
            text.push_str("\x1b[0");
            if let Some(colour) = glyph.colour {
                _ = write!(text, ";38;5;{colour}");
            }
            if let Some(behind) = glyph.behind {
                _ = write!(text, ";48;5;{behind}");
            }
            text.push('m');
            current = wanted;
        }
        text.push(glyph.shape);
    }
    if current != (None, None) {
        text.push_str("\x1b[0m");
    }
}

/// As much of a label as fits.
fn cut(label: &str, columns: usize) -> String {
    let mut left = columns;
    label
        .chars()
        .take_while(|c| {
            let width = c.width().unwrap_or(0);
            let fits = width <= left;
            left = left.saturating_sub(width);
            fits
        })
        .collect()
}

/// A share in few characters that is never 0 for something, and 100 for all only.
fn said_percent(percent: f64) -> String {
    match percent {
        p if p > 0.0 && p < 0.1 => "<0.1%".to_owned(),
        p if p < 100.0 => format!("{:.1}%", p.min(99.9)),
        _ => "100%".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { colour: false, unicode: false };
    const FULL: Style = Style { colour: true, unicode: true };

    fn picture(len_bytes: u64, width: usize) -> Picture {
        let class = |label: &str, ink| Class { label: label.into(), ink };
        let classes = vec![
            class("newer", Ink::Fill('A', 208)),
            class("older, 日本", Ink::Fill('B', 68)),
            class("zeros", Ink::Paper),
            class("lost", Ink::Alarm),
        ];
        Picture::new(len_bytes, width, classes)
    }

    #[test]
    fn letters_say_which_and_capitals_how_much() {
        // 6 lines of 8 cells, 4 KiB each.
        let mut picture = picture(48 * 4096, 20);
        picture.add(0..8 * 4096, 1);
        picture.add(8 * 4096..8 * 4096 + 1024, 0);
        picture.add(8 * 4096 + 1024..40 * 4096, 2);
        picture.add(40 * 4096..47 * 4096 + 4095, 1);
        picture.add(48 * 4096 - 1..48 * 4096, 3);
        assert_eq!(
            picture.render(PLAIN),
            "        0 B BBBBBBBB
  32.00 KiB a.......
  64.00 KiB ........
  96.00 KiB ........
 128.00 KiB ........
 160.00 KiB BBBBBBB!

   1.00 KiB A  0.5%
  64.00 KiB B 33.3%
 127.00 KiB . 66.1%
        1 B ! <0.1%
"
        );
    }

    #[test]
    fn colours_say_which_and_shades_how_much() {
        let mut picture = picture(48 * 4096, 20);
        for (cell, filled) in [4096, 3000, 2000, 100, 0, 0, 0, 0].into_iter().enumerate() {
            let start = cell as u64 * 4096;
            picture.add(start..start + filled, 1);
            picture.add(start + filled..start + 4096, 2);
        }
        // Two in one cell.
        picture.add(8 * 4096..8 * 4096 + 1000, 0);
        picture.add(8 * 4096 + 1000..9 * 4096, 1);
        let text = picture.render(FULL);
        let mut lines = text.lines();
        assert_eq!(lines.next().unwrap(), "        0 B \x1b[0;38;5;68m█▓▒░\x1b[0;38;5;244m····\x1b[0m");
        assert_eq!(
            lines.next().unwrap(),
            "  32.00 KiB \x1b[0;38;5;208;48;5;68m░\x1b[0;38;5;244m·······\x1b[0m"
        );
    }

    #[test]
    fn each_byte_is_in_one_cell_and_no_line_is_too_wide() {
        for (len, width) in
            [(1u64, 80), (512, 80), (1_000_003, 80), (u64::MAX / 2, 80), (1 << 40, 33), (700, 5)]
        {
            let mut picture = picture(len, width);
            let mut at = 0;
            for cell in 0..picture.cells.len() {
                let range = picture.cell(cell);
                assert!(range.start == at && range.end > at, "{len} {cell}");
                at = range.end;
            }
            assert_eq!(at, len);
            let third = len / 3;
            picture.add(0..third, 0);
            picture.add(third..len, 1);
            let counted: u64 = picture.cells.iter().flatten().map(|(_, bytes)| bytes).sum();
            assert_eq!(counted, len);
            for line in picture.render(PLAIN).lines() {
                assert!(unicode_width::UnicodeWidthStr::width(line) <= width.max(13), "{line:?}");
            }
        }
        assert_eq!(picture(0, 80).render(PLAIN), "\n");
    }

    #[test]
    fn shares_are_never_rounded_to_nothing_or_all() {
        assert_eq!(said_percent(0.0001), "<0.1%");
        assert_eq!(said_percent(99.999), "99.9%");
        assert_eq!(said_percent(100.0), "100%");
        assert_eq!(said_percent(12.34), "12.3%");
    }
}
