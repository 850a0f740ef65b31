//! Words for lengths of time, as systemd writes them: `90s`, `2h`, `1h 30min`, `30d`.

use std::time::Duration;

/// The units with their seconds. systemd knows more words for months and years, which nobody needs here.
const UNITS: [(&[&str], u64); 5] = [
    (&["s", "sec", "second", "seconds"], 1),
    (&["m", "min", "minute", "minutes"], 60),
    (&["h", "hr", "hour", "hours"], 3600),
    (&["d", "day", "days"], 86_400),
    (&["w", "week", "weeks"], 604_800),
];

/// Reads a span; a number without a unit is seconds. The error says what is expected.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is no length of time; expected one like 90s, 2h, 1h30m or 30d");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(expected());
    }
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit = match UNITS.iter().find(|(words, _)| words.contains(&unit)) {
            Some((_, seconds)) => *seconds,
            None if unit.is_empty() && after.is_empty() && number == text.trim() => 1,
            None => return Err(expected()),
        };
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        seconds = part.and_then(|part| seconds.checked_add(part)).ok_or_else(expected)?;
        rest = after.trim_start();
    }
    Ok(Duration::from_secs(seconds))
}

/// A length of time in the largest unit that suits it: `3 h`, `12 days`.
pub(super) fn said(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_those_of_systemd() {
        for (text, seconds) in [
            ("90s", 90),
            ("90", 90),
            ("2h", 7200),
            ("1h30m", 5400),
            ("1h 30min", 5400),
            (" 30d ", 30 * 86_400),
            ("2 weeks 1 day", 15 * 86_400),
            ("0", 0),
        ] {
            assert_eq!(span(text).map(|span| span.as_secs()), Ok(seconds), "{text}");
        }
        for text in
            ["", "h", "2 parsecs", "-1h", "1.5h", "1h30", "99999999999999999999s", "18446744073709551615w"]
        {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_said_in_one_unit() {
        assert_eq!(
            [said(0), said(119), said(120), said(7200), said(86_400), said(172_800)],
            ["0 s", "119 s", "2 min", "2 h", "24 h", "2 days"]
        );
    }
}
