//! Whether there is a picture, how wide it is, and what the terminal can show of it.

use std::env;
use std::io::{self, IsTerminal};

use clap::ValueEnum;

use super::exit::Failure;
use super::picture::{Picture, Style};
use super::render::Format;
use crate::error::ErrorKind;

/// When a picture is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum When {
    /// With a table on a terminal.
    Auto,
    /// With a table, wherever it goes.
    Always,
    /// Not at all.
    Never,
}

/// Columns of a terminal that does not tell.
const COLUMNS: usize = 80;

/// Fewest and most columns that are used.
const COLUMNS_MIN: usize = 40;
const COLUMNS_MAX: usize = 200;

impl When {
    /// Whether to draw one.
    pub(crate) fn is_now(self, format: Format) -> bool {
        match self {
            Self::Always => format == Format::Table,
            Self::Auto => format == Format::Table && io::stdout().is_terminal(),
            Self::Never => false,
        }
    }
}

/// Refuses `--summary` with a format for programs: a list without its rows would say that there is nothing.
pub(crate) fn check_summary(is_summary: bool, format: Format) -> Result<(), Failure> {
    if is_summary && format != Format::Table {
        return Err(Failure::new(
            ErrorKind::Usage,
            "--summary leaves out the rows, of which --format would print all",
        ));
    }
    Ok(())
}

/// A picture as stdout can show it, below rows unless it stands alone.
pub(crate) fn drawn(picture: &Picture, is_alone: bool) -> String {
    let text = picture.render(style());
    if is_alone { text } else { format!("\n{text}") }
}

/// How wide stdout is.
pub(crate) fn columns() -> usize {
    let told = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let set = || env::var("COLUMNS").ok()?.parse().ok();
    told.filter(|&columns| columns > 0).or_else(set).unwrap_or(COLUMNS).clamp(COLUMNS_MIN, COLUMNS_MAX)
}

/// What stdout can show.
fn style() -> Style {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find(|name| is_set(name));
    let charset = locale.and_then(|name| env::var(name).ok()).unwrap_or_default().to_ascii_lowercase();
    Style {
        colour: io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb,
        unicode: charset.contains("utf-8") || charset.contains("utf8"),
    }
}
