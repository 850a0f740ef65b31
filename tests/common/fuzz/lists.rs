//! What users hand over: lists of changed ranges, records of Cinder's database, `cinder.conf`.

use cinderfs::cinder_conf::CinderConf;
use cinderfs::writer::records::{Record, compare};
use cinderfs::writer::source::changed::Changed;

use super::Input;

/// Ranges are sorted, apart and within the volume, and questions about them are answered as each range says.
pub(super) fn changed(data: &[u8]) {
    let mut input = Input::new(data);
    let len_bytes = match input.byte() {
        0 => input.any_size(),
        power => 1 << (power % 44),
    };
    let offsets = [0, input.any_size(), len_bytes / 2, len_bytes];
    let Ok(changed) = Changed::parse(input.rest(), len_bytes) else { return };
    let ranges = changed.ranges();
    assert!(ranges.iter().all(|range| range.start < range.end && range.end <= len_bytes), "{ranges:?}");
    assert!(ranges.windows(2).all(|two| two[0].end < two[1].start), "{ranges:?}");
    assert_eq!(changed.bytes(), ranges.iter().map(|range| range.end - range.start).sum::<u64>());
    for offset in offsets {
        let next = ranges.iter().find(|range| range.end > offset);
        assert_eq!(changed.next(offset), next.map(|range| range.start.max(offset)..range.end));
        let end = offset.saturating_add(4096);
        let touches = ranges.iter().any(|range| range.start < end && offset < range.end);
        assert_eq!(changed.touches(offset..end), touches && offset < end);
    }
}

/// What was read is what is written.
pub(super) fn record(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(record) = Record::decode(text) else { return };
    let again = Record::decode(&record.encode()).unwrap();
    // A number that has no exact form may move a last digit; all else is the same.
    if !again.encode().eq(&record.encode()) {
        assert!(record.fields().keys().eq(again.fields().keys()));
    }
    // From itself it differs in what is missing in both.
    let differences = compare(&record, &record);
    assert!(differences.iter().all(|difference| difference.record.is_null() && difference.store.is_null()));
}

/// No secret is quoted, and nothing else happens.
pub(super) fn cinder_conf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match CinderConf::from_text(text).and_then(|conf| conf.backup()) {
        Ok(backup) => drop(format!("{backup:?}")),
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
}
