//! How far a long command is: a bar on a terminal, NDJSON for programs, nothing in a log file.
//!
//! Everything goes to stderr, because stdout may be the image itself.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, WeakProgressBar};
use serde_json::{Value, json};

use super::exit::note;
use crate::writer::create::Progress;

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Mode {
    /// A bar if stderr is a terminal, else nothing.
    Auto,
    /// A JSON object per line, about two per second, and one with a summary at the end.
    Json,
    /// Nothing.
    None,
}

/// Between two JSON lines. Fast enough to draw a bar from, slow enough not to fill a journal.
const JSON_INTERVAL: Duration = Duration::from_millis(500);

/// The bar redraws this often even when nothing arrives, so that a stalled store shows as a falling rate.
const BAR_INTERVAL: Duration = Duration::from_millis(500);

/// What the bar says. With all of it there are ten columns and more for the bar itself on a terminal of 80.
const BAR: &str = "{wide_bar} {percent:>3}%  {done} of {total}  {rate}/s  ETA {eta}{msg}";

/// The same on a terminal where there is no room for the bar itself: cut off at its edge, since a line that wraps is not found again
/// when the terminal gets another width.
const NARROW_BAR: &str = "{percent:>3}%  {done} of {total}  {rate}/s  ETA {eta}{wide_msg}";

/// Columns that there must be for the bar itself.
const COLUMNS_MIN: u16 = 74;

/// Columns of a terminal that does not tell.
const COLUMNS: u16 = 80;

/// How much of the past the rate remembers, in seconds.
const RATE_SECONDS: f64 = 8.0;

/// The bar that is shown, for who has something to say meanwhile.
static BAR_SHOWN: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Does something with stderr while no bar stands there; where one is shown, its place is behind that.
pub(super) fn above_bar<T>(act: impl FnOnce() -> T) -> T {
    match shown_bar() {
        Some(bar) => bar.suspend(act),
        None => act(),
    }
}

/// Takes the bar away.
pub(super) fn clear() {
    if let Some(bar) = shown_bar() {
        bar.finish_and_clear();
    }
}

fn shown_bar() -> Option<ProgressBar> {
    BAR_SHOWN.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
}

/// Shows the progress of one command. Dropping it takes the bar away.
pub(crate) struct Reporter {
    shown: Shown,
    mode: Mode,
}

enum Shown {
    Nothing,
    /// Drawn once there is something to do; its clock runs from the beginning.
    Bar {
        bar: ProgressBar,
        drawn: OnceLock<()>,
        /// Whether it is [`NARROW_BAR`].
        is_narrow: AtomicBool,
    },
    Json {
        started: Instant,
        meter: Mutex<Meter>,
    },
}

impl Reporter {
    /// `quiet` takes the bar away, but not what was asked for with `--progress json`. Where the total is not known yet, 0, there
    /// is no bar before [`update`](Self::update) tells it.
    pub(crate) fn new(mode: Mode, quiet: bool, total_bytes: u64) -> Self {
        let shown = match mode {
            Mode::Auto if !quiet && io::stderr().is_terminal() => Shown::bar(total_bytes),
            Mode::Auto | Mode::None => Shown::Nothing,
            Mode::Json => Shown::Json { started: Instant::now(), meter: Mutex::default() },
        };
        Self { shown, mode }
    }

    /// Tells how many bytes of how many are done. Cheap enough to call for every block.
    pub(crate) fn update(&self, done_bytes: u64, total_bytes: u64) {
        self.update_with(done_bytes, total_bytes, || json!({}));
    }

    /// The same of a backup that is being made, with how much of it changed and how much is stored.
    pub(crate) fn update_backup(&self, progress: &Progress) {
        let Progress { done_bytes, total_bytes, changed_bytes, stored_bytes, .. } = *progress;
        // First, for the clock of the bar may draw it at any moment.
        if let Shown::Bar { bar, .. } = &self.shown {
            let (changed, stored) = (short_bytes(changed_bytes), short_bytes(stored_bytes));
            bar.set_message(format!("  {changed} changed, {stored} stored"));
        }
        self.update_with(
            done_bytes,
            total_bytes,
            || json!({ "bytes_changed": changed_bytes, "bytes_stored": stored_bytes }),
        );
    }

    /// The same with more to tell in each JSON line: the keys of an object.
    pub(super) fn update_with(&self, done_bytes: u64, total_bytes: u64, more: impl FnOnce() -> Value) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar { bar, drawn, is_narrow } => {
                let is_now = columns() < COLUMNS_MIN;
                if is_narrow.swap(is_now, Ordering::Relaxed) != is_now {
                    bar.set_style(style(is_now));
                }
                if bar.length() != Some(total_bytes) {
                    bar.set_length(total_bytes);
                }
                bar.set_position(done_bytes);
                if total_bytes > 0 {
                    drawn.get_or_init(|| draw(bar));
                }
            }
            Shown::Json { started, meter } => {
                let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(mut line) = meter.line(started.elapsed(), done_bytes, total_bytes) {
                    if let (Value::Object(line), Value::Object(more)) = (&mut line, more()) {
                        line.extend(more);
                    }
                    note(&format!("{line}\n"));
                }
            }
        }
    }

    /// Ends the display; in JSON mode with the summary as last line.
    pub(crate) fn finish(self, summary: impl FnOnce() -> Value) {
        if self.mode == Mode::Json {
            note(&format!("{}\n", json!({ "summary": summary() })));
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Shown::Bar { bar, .. } = &self.shown {
            bar.finish_and_clear();
        }
    }
}

impl Shown {
    fn bar(total_bytes: u64) -> Self {
        let is_narrow = columns() < COLUMNS_MIN;
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden())
            .with_style(style(is_narrow));
        let drawn = OnceLock::new();
        if total_bytes > 0 {
            drawn.get_or_init(|| draw(&bar));
        }
        Self::Bar { bar, drawn, is_narrow: AtomicBool::new(is_narrow) }
    }
}

fn columns() -> u16 {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        // As the bar's own library takes it.
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => size.ws_col,
        _ => COLUMNS,
    }
}

fn style(is_narrow: bool) -> ProgressStyle {
    let template = if is_narrow { NARROW_BAR } else { BAR };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style
        .with_key("done", |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&short_bytes(state.pos()));
        })
        .with_key("total", |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&short_bytes(state.len().unwrap_or(0)));
        })
        .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&short_bytes(state.per_sec() as u64));
        })
}

/// A size in three digits and the letter that options take for its unit: `1.23G`.
fn short_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = "BKMGTPE".chars();
    let mut unit = units.next();
    while value >= 999.5
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = Some(next);
    }
    let digits = match value {
        _ if unit == Some('B') => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", unit.unwrap_or('B'))
}

fn draw(bar: &ProgressBar) {
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.enable_steady_tick(BAR_INTERVAL);
    *BAR_SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.downgrade());
}

/// When a line is due and what it says; knows no clock.
#[derive(Default)]
struct Meter {
    /// When the last line was due, since the start, and how many bytes were done then.
    last: Option<(Duration, u64)>,
    bytes_per_second: f64,
}

impl Meter {
    fn line(&mut self, elapsed: Duration, done_bytes: u64, total_bytes: u64) -> Option<Value> {
        let (last_elapsed, last_done) = self.last.unwrap_or_default();
        let step = elapsed.saturating_sub(last_elapsed);
        if step < JSON_INTERVAL {
            return None;
        }
        let seconds = step.as_secs_f64();
        let now = done_bytes.saturating_sub(last_done) as f64 / seconds;
        // Exponential forgetting, by time and not by number of lines; the first line has no past.
        let weight = if self.last.is_none() { 1.0 } else { 1.0 - (-seconds / RATE_SECONDS).exp() };
        self.bytes_per_second += weight * (now - self.bytes_per_second);
        self.last = Some((elapsed, done_bytes));
        let left = total_bytes.saturating_sub(done_bytes);
        let eta = (left as f64 / self.bytes_per_second).ceil();
        Some(json!({
            "bytes_done": done_bytes,
            "bytes_total": total_bytes,
            "bytes_per_second": self.bytes_per_second.round() as u64,
            // Not known while nothing moves.
            "eta_seconds": if eta.is_finite() { json!(eta as u64) } else { json!(if left == 0 { Some(0) } else { None }) },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(meter: &mut Meter, milliseconds: u64, done: u64) -> Option<String> {
        meter.line(Duration::from_millis(milliseconds), done, 10_000).map(|line| line.to_string())
    }

    #[test]
    fn a_line_every_half_second() {
        let mut meter = Meter::default();
        assert_eq!(line(&mut meter, 0, 0), None);
        assert_eq!(line(&mut meter, 499, 900), None);
        assert_eq!(
            line(&mut meter, 500, 1000).unwrap(),
            r#"{"bytes_done":1000,"bytes_total":10000,"bytes_per_second":2000,"eta_seconds":5}"#
        );
        assert_eq!(line(&mut meter, 999, 1500), None);
        assert_eq!(
            line(&mut meter, 1000, 2000).unwrap(),
            r#"{"bytes_done":2000,"bytes_total":10000,"bytes_per_second":2000,"eta_seconds":4}"#
        );
    }

    #[test]
    fn sizes_take_five_columns_at_most() {
        for (bytes, shown) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "0.98K"),
            (1024, "1.00K"),
            (10_234, "9.99K"),
            (10_235, "10.0K"),
            (102_400, "100K"),
            (20 << 20, "20.0M"),
            (1023 << 20, "1.00G"),
            (3 << 40, "3.00T"),
            (u64::MAX, "16.0E"),
        ] {
            assert_eq!(short_bytes(bytes), shown);
        }
        for shift in 0..64 {
            for step in 0..1000 {
                assert!(short_bytes((1 << shift) + ((1 << shift) / 1000) * step).len() <= 5);
            }
        }
    }

    #[test]
    fn no_bar_is_drawn_before_the_total_is_known() {
        let reporter = Reporter { shown: Shown::bar(0), mode: Mode::Auto };
        let is_drawn = || matches!(&reporter.shown, Shown::Bar { drawn, .. } if drawn.get().is_some());
        reporter.update(0, 0);
        assert!(!is_drawn());
        reporter.update(0, 10);
        assert!(is_drawn());
    }

    #[test]
    fn a_stall_lowers_the_rate_and_raises_the_time_left() {
        let mut meter = Meter::default();
        line(&mut meter, 1000, 1000).unwrap();
        // One memory span of silence leaves 1/e of the rate.
        assert_eq!(
            line(&mut meter, 9000, 1000).unwrap(),
            r#"{"bytes_done":1000,"bytes_total":10000,"bytes_per_second":368,"eta_seconds":25}"#
        );
    }

    #[test]
    fn the_time_left_is_unknown_before_anything_moves_and_zero_at_the_end() {
        let mut meter = Meter::default();
        assert_eq!(
            line(&mut meter, 600, 0).unwrap(),
            r#"{"bytes_done":0,"bytes_total":10000,"bytes_per_second":0,"eta_seconds":null}"#
        );
        let mut empty = Meter::default();
        assert!(empty.line(Duration::from_secs(1), 0, 0).unwrap()["eta_seconds"] == 0);
    }
}
