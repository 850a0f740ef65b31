//! A store of made-up documents, opened and read as a mount would.

use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::document::backup_document;
use cinderfs::image::{Image, Part};
use cinderfs::store::memory::MemoryStore;
use cinderfs::types::ObjectName;
use cinderfs::writer::records::{Exporter, POSIX_DRIVER, Record, chain, parents_first};

/// The objects of the store, in the order in which an input has them, a line `%%` between two.
const NAMES: [&str; 8] = [
    "c/a_metadata",
    "c/a_sha256file",
    "c/a-00001",
    "c/b_metadata",
    "c/b_sha256file",
    "c/b-00001",
    "c/b-00002",
    "d/e/backup_metadata",
];

/// Between two objects of an input.
pub(super) const BETWEEN: &[u8] = b"\n%%\n";

/// Bytes read at each of some places of an image.
const READ_BYTES: usize = 200_000;

/// However the store is opened and read, reads agree with each other, and with where holes are.
pub(super) fn catalog(data: &[u8]) {
    let store = MemoryStore::new();
    let mut rest = data;
    for name in NAMES {
        let end = rest.windows(BETWEEN.len()).position(|window| window == BETWEEN);
        let (object, next) = end.map_or((rest, &[][..]), |end| (&rest[..end], &rest[end + BETWEEN.len()..]));
        if !object.is_empty() {
            store.insert(ObjectName::parse(name).unwrap(), object);
        }
        rest = next;
    }
    let options = CatalogOptions {
        workers: 0,
        cache_bytes_max: 1 << 20,
        restart_spacing_bytes: Some(1000),
        ..CatalogOptions::default()
    };
    let catalog = Catalog::open(Arc::new(store), options).unwrap();
    let snapshot = catalog.snapshot();
    let exporter = Exporter::new(&catalog, POSIX_DRIVER);
    let entries: Vec<_> = snapshot.entries().cloned().collect();
    assert_eq!(parents_first(&entries).len(), entries.len());
    for entry in &entries {
        let image = catalog.image(entry);
        assert!(entry.problem.is_none() || image.is_err(), "{:?}", entry.problem);
        let document = backup_document(entry, image.as_ref());
        assert!(!document.is_empty());
        if let Ok(record) = exporter.record(entry) {
            assert!(Record::decode(&record.encode()).unwrap() == record);
        }
        let _ = chain(&snapshot, entry);
        if let Ok(image) = image {
            read(&image);
        }
    }
}

fn read(image: &Arc<Image>) {
    let len = image.len_bytes();
    let block = image.block_bytes().max(1);
    let _ = image.objects();
    for at in [0, block / 2, len / 2, len.saturating_sub(block + 1), len] {
        let mut buf = vec![0xAA; READ_BYTES];
        let read = image.read_at(&mut buf, at);
        if let Ok(n) = read {
            assert_eq!(n as u64, (len - at.min(len)).min(READ_BYTES as u64));
        }
        // Again, in smaller steps: the same bytes, and lost ones only if some were lost before.
        let mut next = at.min(len);
        let end = len.min(at + (READ_BYTES / 2) as u64);
        let visited = image.visit(at..end, &mut |range, part| {
            assert!(range.start == next && range.end > range.start && range.end <= end.max(at));
            next = range.end;
            let there =
                read.as_ref().ok().map(|_| &buf[(range.start - at) as usize..((range.end - at) as usize)]);
            match (part, there) {
                (Part::Data(bytes), Some(there)) => assert!(bytes == there, "{range:?}"),
                (Part::Zeros, Some(there)) => assert!(there.iter().all(|&byte| byte == 0), "{range:?}"),
                (Part::Lost(error), Some(_)) => panic!("{range:?} was read before: {error}"),
                (Part::Data(_) | Part::Zeros | Part::Lost(_), None) => {}
            }
            Ok(())
        });
        if visited.is_ok() && at < len {
            assert_eq!(next, end);
        }
        if let (Ok(data), Ok(hole)) = (image.seek_data(at), image.seek_hole(at)) {
            assert!(data.is_none_or(|data| data >= at && data < len), "{data:?} from {at} of {len}");
            assert!(hole <= len.max(at) && (hole >= at || at >= len), "{hole} from {at} of {len}");
            assert!(at >= len || data != Some(at) || hole > at, "{at} is both data and hole");
        }
    }
}
