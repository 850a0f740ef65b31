//! What the log shows and where it goes: stderr, filtered by `CINDERFS_LOG`, `-v` and `-q`.

use std::env;
use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;

use super::exit::Failure;
use super::progress;
use crate::error::{Error, ErrorKind};

/// The environment variable that holds a filter: `debug`, `cinderfs::object=trace,warn`, ….
const FILTER_VARIABLE: &str = "CINDERFS_LOG";

/// What a command tells in its own words, and a daemon can only log: lost blocks, healed blocks, unreadable folders.
const TOLD_BY_COMMANDS: &str =
    "warn,cinderfs::image::damage=off,cinderfs::image::view=off,cinderfs::catalog::scan=off";

/// Starts logging. `verbosity` counts `-v` up and `-q` down from 0; `is_daemon` is a process that only has the log to
/// tell anything.
pub(crate) fn start(verbosity: i16, is_daemon: bool) -> Result<(), Failure> {
    let from_environment = env::var(FILTER_VARIABLE).unwrap_or_default();
    let words = match (from_environment.trim(), verbosity, is_daemon) {
        ("", 0, false) => TOLD_BY_COMMANDS.to_owned(),
        (words, _, _) => filter_words(words, verbosity),
    };
    let filter = EnvFilter::try_new(&words).map_err(|error| {
        Failure::from(Error::caused_by(ErrorKind::Usage, format!("{FILTER_VARIABLE} is no filter"), error))
            .hint(format!(
                "{FILTER_VARIABLE}=debug, or by module: {FILTER_VARIABLE}=cinderfs::object=trace,warn"
            ))
    })?;
    let colours = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // A caller of the library may have a subscriber already; then that one stays.
    let _ =
        tracing_subscriber::fmt().with_writer(|| Lines).with_ansi(colours).with_env_filter(filter).try_init();
    Ok(())
}

/// Stderr, where each line of the log is written at once, and above the bar.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        progress::above_bar(|| io::stderr().lock().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The filter: what the environment says, then what the flags say, where the later word on one target counts.
fn filter_words(from_environment: &str, verbosity: i16) -> String {
    let from_flags = match verbosity {
        ..=-2 => "off",
        -1 => "error",
        0 => "warn",
        // What HTTP is made of has a lot to say, and not to us.
        1 => "warn,cinderfs=info",
        2 => "warn,cinderfs=debug",
        3.. => "warn,cinderfs=trace",
    };
    match (from_environment.trim(), verbosity) {
        ("", _) => from_flags.to_owned(),
        (words, 0) => words.to_owned(),
        (words, _) => format!("{words},{from_flags}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_raise_and_lower_and_keep_the_modules_of_the_environment() {
        assert_eq!(filter_words("", 0), "warn");
        assert_eq!(filter_words("", 1), "warn,cinderfs=info");
        assert_eq!(filter_words("", 9), "warn,cinderfs=trace");
        assert_eq!(filter_words("", -1), "error");
        assert_eq!(filter_words(" ", -5), "off");
        assert_eq!(filter_words("debug", 0), "debug");
        // The filter keeps one level per target, the last: here `info` for all of ours but one module.
        let filter = EnvFilter::try_new(filter_words("cinderfs::object=trace,debug", 1)).unwrap();
        assert_eq!(filter.to_string(), "cinderfs::object=trace,cinderfs=info,warn");
    }
}
