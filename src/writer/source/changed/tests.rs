#![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

use proptest::prelude::*;

use super::*;

/// As qemu-img 10.0.2, nbdinfo 1.14.2 and thin_delta 0.9.0 print it.
const NBDINFO: &str = r#"[
{ "offset": 0, "length": 65536, "type": 0, "description": "clean"},
{ "offset": 65536, "length": 65536, "type": 1, "description": "dirty"},
{ "offset": 131072, "length": 393216, "type": 0, "description": "clean"},
{ "offset": 524288, "length": 65536, "type": 1, "description": "dirty"},
{ "offset": 589824, "length": 458752, "type": 0, "description": "clean"}
]
"#;
const QEMU_MAP: &str = r#"[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 0},
{ "start": 65536, "length": 65536, "depth": 0, "present": false, "zero": false, "data": false, "compressed": false},
{ "start": 131072, "length": 393216, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 131072},
{ "start": 524288, "length": 65536, "depth": 0, "present": false, "zero": false, "data": false, "compressed": false},
{ "start": 589824, "length": 458752, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 589824}]
"#;
const QEMU_ALLOCATION: &str = r#"[{ "start": 0, "length": 65536, "depth": 0, "present": false, "zero": true, "data": false, "compressed": false},
{ "start": 65536, "length": 983040, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 458752}]
"#;
const THIN: &str = r#"<superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="64">
  <diff left="1" right="2">
    <same begin="0" length="2"/>
    <different begin="2" length="2"/>
    <left_only begin="10" length="2"/>
    <right_only begin="12" length="3"/>
  </diff>
</superblock>
"#;
const THIN_VERBOSE: &str = r#"<superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="64">
  <diff left="1" right="2">
    <same>
      <range begin="0" data_begin="0" length="2"/>
    </same>
    <different>
      <range begin="2" left_data_begin="2" right_data_begin="20" length="2"/>
    </different>
    <left_only>
      <range begin="10" data_begin="10" length="2"/>
    </left_only>
    <right_only>
      <range begin="12" data_begin="30" length="3"/>
    </right_only>
  </diff>
</superblock>
"#;
const RBD: &str =
    r#"[{"offset":65536,"length":4096,"exists":"true"},{"offset":524288,"length":65536,"exists":"false"}]"#;
const MIB: u64 = 1 << 20;

fn parsed(list: &str) -> Vec<Range<u64>> {
    Changed::parse(list.as_bytes(), MIB).unwrap().ranges
}

fn refused(list: &str) -> String {
    let error = Changed::parse(list.as_bytes(), MIB).expect_err(list);
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    error.to_string()
}

#[test]
fn what_the_programs_print_is_read() {
    let qemu = [65536..131072, 524288..589824];
    assert_eq!(parsed(NBDINFO), qemu);
    assert_eq!(parsed(QEMU_MAP), qemu);
    assert_eq!(parsed(RBD), [65536..69632, 524288..589824]);
    let thin = [131072..262144, 655360..983040];
    assert_eq!(parsed(THIN), thin);
    assert_eq!(parsed(THIN_VERBOSE), thin);
    assert_eq!(parsed(&THIN.replace('"', "'")), thin);
    assert_eq!(parsed(&format!("<?xml version=\"1.0\"?>\n{THIN}")), thin);
    assert_eq!(parsed(r#"[{"start":0,"length":512,"dirty":true}]"#), [0..512]);
    assert_eq!(
        parsed(r#"[{"offset":9,"length":1,"exists":true},{"offset":0,"length":9,"exists":true}]"#),
        [0..10]
    );
}

#[test]
fn nothing_changed_is_said_in_known_words_only() {
    for nothing in [
        "[]",
        " [ ]\n",
        r#"[{"offset":0,"length":1048576,"type":0,"description":"clean"}]"#,
        r#"[{"start":0,"length":1048576,"dirty":false}]"#,
        r#"<superblock data_block_size="128"><diff left="1" right="1"><same begin="0" length="4"/></diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff left="1" right="1"/></superblock>"#,
    ] {
        assert_eq!(parsed(nothing), [], "{nothing}");
    }
    for strange in [
        "",
        "\n",
        "{}",
        "null",
        "[[]]",
        "[{}]",
        "[] []",
        "[",
        "[1]",
        "offset length exists",
        r#"{"ranges":[]}"#,
        r#"[{"offset":0,"length":1048576,"type":0,"description":"data"}]"#,
        r#"[{"offset":0,"length":1048576,"type":1,"description":"clean"}]"#,
        r#"[{"size":917504,"percent":87.5,"type":0,"description":"clean"}]"#,
        r#"[{"start":0,"length":1048576,"zero":false,"data":true}]"#,
        r#"[{"start":0,"length":1048576}]"#,
        r#"[{"offset":0,"length":1048576}]"#,
        r#"[{"offset":0,"length":4096,"exists":"maybe"}]"#,
        r#"[{"offset":0,"length":4096,"exists":1}]"#,
        r#"[{"offset":0,"length":0,"exists":"true"}]"#,
        r#"[{"offset":-1,"length":4096,"exists":"true"}]"#,
        r#"[{"offset":0.5,"length":4096,"exists":"true"}]"#,
        r#"[{"offset":0,"offset":4096,"length":4096,"exists":"true"}]"#,
        r#"[{"offset":18446744073709551615,"length":4096,"exists":"true"}]"#,
        r#"[{"offset":1114112,"length":4096,"exists":"true"}]"#,
        r#"[{"offset":0,"length":4096,"exists":"true"},{"start":0,"length":1044480,"dirty":false}]"#,
        r#"[{"start":0,"length":4096,"dirty":false}]"#,
        r#"[{"start":0,"length":4194304,"dirty":false}]"#,
        "<superblock>",
        "<diff/>",
        r#"<superblock data_block_size="128"/>"#,
        r#"<superblock data_block_size="128"></superblock>"#,
        r#"<superblock data_block_size="0"><diff/></superblock>"#,
        r#"<superblock data_block_size="129"><diff/></superblock>"#,
        r#"<superblock data_block_size="x"><diff/></superblock>"#,
        r#"<superblock data_block_size="128"><diff/><diff/></superblock>"#,
        r#"<superblock data_block_size="128"><diff><new begin="0" length="1"/></diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff><different begin="0"/></diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff><different begin="0" length="999999999999999999"/></diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff><different begin="99" length="1"/></diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff><different begin="0" length="1"></diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff><different><same/></different></diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff><!-- --></diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff>x</diff></superblock>"#,
        r#"<superblock data_block_size="128"><diff/></superblock>x"#,
        r#"<superblock data_block_size="128"><diff/></superblock><superblock data_block_size="128">"#,
    ] {
        refused(strange);
    }
}

#[test]
fn an_allocation_map_is_not_taken_for_a_dirty_bitmap() {
    assert!(refused(QEMU_ALLOCATION).contains("nbdinfo"), "{}", refused(QEMU_ALLOCATION));
    let hole = NBDINFO
        .replace("\"type\": 0, \"description\": \"clean\"", "\"type\": 3, \"description\": \"hole,zero\"");
    assert!(refused(&hole).contains("hole,zero"), "{}", refused(&hole));
}

#[test]
fn a_torn_list_is_refused_wherever_it_is_torn() {
    for list in [NBDINFO, QEMU_MAP, THIN, THIN_VERBOSE, RBD] {
        for end in 0..list.trim_end().len() {
            refused(&list[..end]);
        }
    }
    // Torn between entries and closed again, it has too few bytes.
    let lines: Vec<&str> = NBDINFO.lines().collect();
    for skipped in 1..6 {
        let mut kept = lines.clone();
        kept.remove(skipped);
        refused(&kept.join("\n").replace("},\n]", "}\n]"));
    }
}

#[test]
fn a_list_may_reach_into_the_last_cluster_but_not_beyond() {
    let list = |end: u64| format!(r#"[{{"offset":0,"length":{end},"type":1,"description":"dirty"}}]"#);
    assert_eq!(parsed(&list(MIB + 65536)), [0..MIB]);
    assert!(refused(&list(MIB + 65537)).contains("another volume"));
    assert!(refused(&list(MIB - 1)).contains("another volume"));
}

#[test]
fn endless_input_ends() {
    for start in ["[", "<", "[\"", "<superblock "] {
        for more in [b'[', b' ', b'x', b'"'] {
            let endless = start.as_bytes().chain(std::io::repeat(more).take(40 << 20));
            assert!(Changed::parse(endless, MIB).is_err(), "{start} {more}");
        }
    }
}

#[test]
fn ranges_are_found_by_place() {
    let changed = Changed::parse(RBD.as_bytes(), MIB).unwrap();
    assert_eq!(changed.next(0), Some(65536..69632));
    assert_eq!(changed.next(69631), Some(69631..69632));
    assert_eq!(changed.next(69632), Some(524288..589824));
    assert_eq!(changed.next(589824), None);
    assert!(changed.touches(0..65537) && changed.touches(69631..70000));
    assert!(!changed.touches(0..65536) && !changed.touches(69632..524288) && !changed.touches(70000..70000));
    assert_eq!(changed.bytes(), 4096 + 65536);
}

proptest! {
    /// A byte is changed when a range of the list holds it; of too many ranges more bytes are, never fewer.
    #[test]
    fn ranges_hold_what_the_list_has(
        list in prop::collection::vec((0u64..8 * MIB, 1u64..100_000), 1..60),
        ranges_max in 1usize..40,
    ) {
        let len = 8 * MIB;
        let entries: Vec<String> = list.iter()
            .map(|(offset, length)| format!(r#"{{"offset":{offset},"length":{length},"exists":"true"}}"#))
            .collect();
        let text = format!("[{}]", entries.join(","));
        let exact = Changed::parse(text.as_bytes(), len).unwrap();
        let bounded = Changed::parse_bounded(text.as_bytes(), len, ranges_max).unwrap();
        prop_assert!(bounded.ranges.len() < 2 * ranges_max);
        for changed in [&exact, &bounded] {
            prop_assert!(changed.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert!(changed.ranges.iter().all(|range| range.start < range.end && range.end <= len));
        }
        let mut model = vec![false; len as usize];
        for (offset, length) in list {
            model[offset as usize..((offset + length).min(len)) as usize].fill(true);
        }
        let painted = |changed: &Changed| {
            let mut bytes = vec![false; len as usize];
            changed.ranges.iter().for_each(|range| bytes[range.start as usize..range.end as usize].fill(true));
            bytes
        };
        prop_assert!(painted(&exact) == model);
        prop_assert!(painted(&bounded).iter().zip(&model).all(|(found, wanted)| *found || !wanted));
    }

    /// Whatever one byte is turned into, the list is refused or reads on as a list of ranges; it never panics.
    #[test]
    fn hostile_lists_do_not_panic(which in 0usize..5, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut list = [NBDINFO, QEMU_MAP, THIN, THIN_VERBOSE, RBD][which].as_bytes().to_vec();
        let at = at.index(list.len());
        list[at] = byte;
        let _ = Changed::parse(&list[..], MIB);
    }
}
