//! Names in the mounted tree: one safe path component each, unique in its folder, the same on every mount.
//!
//! Display names come from whoever owned the volume, so anything may stand in them. Two backups may have been made in one
//! second, and two volumes may share a name. Everybody who shares a name gets a part of the id appended, because
//! an order of arrival ("the second one") would rename things when a backup is deleted.
//!
//! Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

/// Longest component of a path, in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// How much of an id is appended at first: git's and most people's habit, and unique among a volume's UUIDs in practice.
const SHORT_ID_CHARS: usize = 8;

/// How much longer an appended id gets when it was not enough.
const SHORT_ID_STEP: usize = 4;

/// `created_at` as names and attributes have it: `2024-03-01T01:01:07Z`, UTC, whole seconds.
pub fn timestamp(created_at: Timestamp) -> String {
    Timestamp::from_second(created_at.as_second()).unwrap_or(created_at).to_string()
}

/// A display name as one path component: `/`, NUL and other control characters become `_`, `.` and `..` become `_` and
/// `__`, and the name is cut at a character so that it fits [`NAME_BYTES_MAX`]. `None` when nothing is left to show.
pub fn component(display_name: &str) -> Option<String> {
    if display_name.trim().is_empty() {
        return None;
    }
    if display_name.chars().all(|c| c == '.') && display_name.len() <= 2 {
        return Some("_".repeat(display_name.len()));
    }
    // Line and paragraph separators and the marks that reverse the order of writing are as able to fake a listing as
    // control characters are.
    let disguises = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    let safe: String = display_name.chars().map(|c| if c == '/' || disguises(c) { '_' } else { c }).collect();
    Some(cut(&safe, NAME_BYTES_MAX).to_owned())
}

/// The longest beginning of `text` that ends at a character and fits `bytes_max`.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Something to name: `(base, id, always)`; `always` asks for the id even where nobody shares the base.
pub(super) struct Wanted<'a> {
    pub(super) base: String,
    pub(super) id: &'a str,
    pub(super) with_id: bool,
}

/// One name for each wanted one, in the same order: the base alone where it is unique, else `base-<short id>`.
///
/// `None` for what cannot be told apart even by whole ids (made up to be so); the first keeps the name.
pub(super) fn unique(wanted: &[Wanted<'_>]) -> Vec<Option<String>> {
    // Everyone with the same base is lengthened together, and so is whoever is hit by a lengthened name.
    let mut id_chars: Vec<usize> =
        wanted.iter().map(|w| if w.with_id { SHORT_ID_CHARS } else { 0 }).collect();
    loop {
        let names: Vec<String> =
            wanted.iter().zip(&id_chars).map(|(w, n)| with_id(&w.base, w.id, *n)).collect();
        let mut holders: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            holders.entry(name).or_default().push(index);
        }
        let mut grown = false;
        for index in holders.values().filter(|group| group.len() > 1).flatten().copied() {
            let n = &mut id_chars[index];
            if *n < wanted[index].id.len() {
                *n = if *n == 0 { SHORT_ID_CHARS } else { *n + SHORT_ID_STEP };
                grown = true;
            }
        }
        if !grown {
            let mut taken = BTreeSet::new();
            return names.iter().map(|name| taken.insert(name.as_str()).then(|| name.clone())).collect();
        }
    }
}

/// `base-<first chars of id>`, the base shortened where it would not fit.
fn with_id(base: &str, id: &str, id_chars: usize) -> String {
    if id_chars == 0 {
        return base.to_owned();
    }
    let short = cut(id, id_chars.min(NAME_BYTES_MAX / 2));
    format!("{}-{short}", cut(base, NAME_BYTES_MAX - 1 - short.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted<'a>(items: &[(&str, &'a str)]) -> Vec<Wanted<'a>> {
        items.iter().map(|(base, id)| Wanted { base: (*base).into(), id, with_id: false }).collect()
    }

    fn named(items: &[(&str, &str)]) -> Vec<String> {
        unique(&wanted(items)).into_iter().map(Option::unwrap).collect()
    }

    #[test]
    fn times_are_whole_utc_seconds() {
        let time: Timestamp = "2024-03-01T02:01:07.999+01:00".parse().unwrap();
        assert_eq!(timestamp(time), "2024-03-01T01:01:07Z");
        assert_eq!(timestamp(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00Z");
        for extreme in [Timestamp::MIN, Timestamp::MAX] {
            assert!(!timestamp(extreme).contains(['/', '\0']));
        }
    }

    #[test]
    fn hostile_display_names_become_one_component() {
        for (display, expected) in [
            ("web", Some("web")),
            ("../../etc/passwd", Some(".._.._etc_passwd")),
            ("a/b\0c\nd\x1b[2Je\u{7f}\u{9b}", Some("a_b_c_d_[2Je__")),
            (".", Some("_")),
            ("..", Some("__")),
            ("...", Some("...")),
            ("", None),
            (" \t", None),
            ("täglich №1", Some("täglich №1")),
            ("gpj.\u{202e}txt", Some("gpj._txt")),
            ("-rf", Some("-rf")),
        ] {
            assert_eq!(component(display).as_deref(), expected, "{display:?}");
        }
    }

    #[test]
    fn long_display_names_are_cut_at_a_character() {
        let name = component(&"€".repeat(200)).unwrap();
        assert_eq!(name, "€".repeat(85), "85 characters of 3 bytes are 255");
        let name = component(&format!("x{}", "€".repeat(200))).unwrap();
        assert_eq!(name.len(), 1 + 84 * 3);
        let long = component(&"ü".repeat(300)).unwrap();
        for name in named(&[(&long, "aaaaaaaa-1"), (&long, "bbbbbbbb-2")]) {
            assert!(name.len() <= NAME_BYTES_MAX && name.contains('-'), "{name}");
        }
    }

    #[test]
    fn all_that_share_a_name_get_their_short_id() {
        assert_eq!(named(&[("web", "11111111-x"), ("db", "2222")]), ["web", "db"]);
        assert_eq!(
            named(&[("web", "11111111-x"), ("web", "22222222-x"), ("web", "333")]),
            ["web-11111111", "web-22222222", "web-333"]
        );
    }

    #[test]
    fn short_ids_grow_until_they_differ() {
        assert_eq!(
            named(&[("web", "11111111-aaaa"), ("web", "11111111-bbbb"), ("web", "2222")]),
            ["web-11111111-aaa", "web-11111111-bbb", "web-2222"]
        );
    }

    #[test]
    fn a_name_that_looks_like_another_with_its_id_is_told_apart() {
        let names = named(&[("web", "11111111"), ("web", "22222222"), ("web-11111111", "33333333")]);
        assert_eq!(names[2], "web-11111111-33333333");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn names_made_to_collide_are_never_given_twice() {
        // "x" + "a-b" and "x-a" + "b" meet in "x-a-b" whatever is appended.
        let names = unique(&wanted(&[("x", "a-b"), ("x", "c"), ("x-a", "b"), ("x-a", "d"), ("x-a-b", "e")]));
        let given: Vec<_> = names.iter().flatten().collect();
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len());
        assert!(given.len() >= 4);
    }
}
