//! When a copy is dated, and what its source tells of holes.

use super::*;
use crate::catalog::CatalogOptions;
use crate::store::memory::MemoryStore;

const VOLUME: &str = "11111111-2222-4333-8444-555555555555";

/// Backups `b0`, `b1`, … of one volume made at these times, `None` for `None`, and one of another volume in 2024.
fn snapshot(times: &[&str]) -> Arc<Snapshot> {
    let store = MemoryStore::new();
    let put = |id: &str, volume: &str, time: &str| {
        let text = format!(
            r#"{{"backup_id": "{id}", "created_at": "{time}", "objects": [], "version": "1.0.0", "volume_id": "{volume}"}}"#
        );
        let name = format!("{id}/volume_{volume}_1_backup_{id}_metadata");
        store.insert(ObjectName::parse(&name).unwrap(), text.into_bytes());
    };
    for (i, time) in times.iter().enumerate() {
        put(&format!("b{i}"), VOLUME, time);
    }
    put("other", "22222222-2222-4333-8444-555555555555", "2024-03-01 01:01:07.000001+00:00");
    Catalog::open(Arc::new(store), CatalogOptions::default()).unwrap().snapshot()
}

#[track_caller]
fn dated(times: &[&str], expected: &str) {
    let snapshot = snapshot(times);
    let entry = snapshot.get("b0").unwrap();
    let time = creation_time(&snapshot, entry);
    assert_eq!(time.to_string(), expected, "{times:?}");
    for other in snapshot.entries().filter(|other| other.volume_id == entry.volume_id) {
        let order = (other.created_at.cmp(&entry.created_at), other.created_at.cmp(&Some(time)));
        let is_apart = order.0.is_gt() == order.1.is_gt();
        assert!(is_apart, "{times:?}: {time} is on the other side of {:?}", other.created_at);
    }
}

#[test]
fn a_copy_is_dated_behind_what_it_shows_and_before_what_is_later() {
    let first = "2024-03-01 01:01:07+00:00";
    dated(&[first], "2024-03-01T01:01:08Z");
    dated(&[first, "2024-03-02 01:01:07+00:00", "2024-02-01 01:01:07+00:00"], "2024-03-01T01:01:08Z");
    dated(&["2024-03-01 01:01:07.9+00:00"], "2024-03-01T01:01:08Z");
    dated(&[first, first], "2024-03-01T01:01:08Z");
    // The next is as early as a copy would be: of a copy made before, say.
    dated(&[first, "2024-03-01 01:01:08+00:00"], "2024-03-01T01:01:07.5Z");
    dated(&[first, "2024-03-01 01:01:07.000002+00:00"], "2024-03-01T01:01:07.000001Z");
    dated(&[first, "2024-03-01 01:01:07.000001+00:00"], "2024-03-01T01:01:07Z");
    // No time comes after the last one.
    dated(&["9999-12-30 21:59:59+00:00", first], "9999-12-30T22:00:00Z");
    dated(&["9999-12-30 22:00:00+00:00", first], "9999-12-30T22:00:00Z");
}

#[test]
fn a_copy_without_a_date_stays_the_oldest() {
    dated(&["None", "2024-03-01 01:01:07+00:00", "2024-02-01 00:00:00+00:00"], "2024-01-31T23:59:59Z");
    dated(&["None"], "1970-01-01T00:00:00Z");
    dated(&["None", "None"], "1970-01-01T00:00:00Z");
}
