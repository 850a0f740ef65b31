//! What every store must do. Each function is one property; `conforms!` makes a test of each for a given store.

use std::collections::HashSet;

use cinderfs::ErrorKind;
use cinderfs::store::{ListedObject, Store, read_exact_at};
use cinderfs::types::ObjectName;

/// A store under test, with the means to change what it holds.
pub(crate) trait Bench {
    /// The store.
    fn store(&self) -> &dyn Store;
    /// Puts an object in, in place of any other of that name.
    fn put(&self, name: &str, bytes: &[u8]);
    /// Takes an object out.
    fn remove(&self, name: &str);
}

/// Makes a module `$store` with a test of each property; `$bench` makes a fresh [`Bench`].
macro_rules! conforms {
    ($store:ident, $bench:expr) => {
        conforms!(@files [cfg(all())] $store, $bench);
    };
    // Files on a server.
    (shared $store:ident, $bench:expr) => {
        conforms!(@files [ignore = "needs servers; scripts/services/test.sh"] $store, $bench);
    };
    (@files $attribute:tt $store:ident, $bench:expr) => {
        mod $store {
            use super::*;
            conforms!(@each $attribute $bench,
                an_empty_store_lists_nothing, lists_by_suffix_sorted_and_nested, any_utf8_name_is_a_name,
                a_missing_object_is_not_found, reads_across_and_past_the_end, an_empty_object_is_an_object,
                no_offset_is_too_big, an_open_object_outlives_its_name, the_version_follows_the_content,
                the_listing_tells_what_open_tells,
                what_was_listed_is_read_as_it_was_listed_or_not_at_all, many_threads_read_the_right_bytes);
        }
    };
    // A server, whose objects are replaced whole and known by what is in them.
    (replaced $store:ident, $bench:expr) => {
        mod $store {
            use super::*;
            conforms!(@each [ignore = "needs servers; scripts/services/test.sh"] $bench,
                an_empty_store_lists_nothing, lists_by_suffix_sorted_and_nested, any_utf8_name_is_a_name,
                a_missing_object_is_not_found, reads_across_and_past_the_end, an_empty_object_is_an_object,
                no_offset_is_too_big, a_replaced_object_is_never_mixed, the_version_tells_contents_apart,
                the_listing_tells_what_open_tells,
                what_was_listed_is_read_as_it_was_listed_or_not_at_all, many_threads_read_the_right_bytes);
        }
    };
    (@each $attribute:tt $bench:expr, $($property:ident),*) => {
        $(#[test] #$attribute fn $property() { conformance::$property(&$bench); })*
    };
}
pub(crate) use conforms;

pub(crate) fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

/// The names that a listing holds, in its order.
pub(crate) fn listed(store: &dyn Store, suffix: &str) -> Vec<String> {
    let listing = store.list(suffix).unwrap();
    assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
    listing.objects.iter().map(|object| object.name.to_string()).collect()
}

/// The whole object.
pub(crate) fn read(store: &dyn Store, object: &str) -> cinderfs::Result<Vec<u8>> {
    let source = store.open(&name(object))?;
    let mut bytes = vec![0; source.stat().len_bytes as usize];
    read_exact_at(&*source, &mut bytes, 0)?;
    assert_eq!(source.read_at(&mut [0; 8], bytes.len() as u64)?, 0, "longer than it said");
    Ok(bytes)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

pub(crate) fn an_empty_store_lists_nothing(bench: &dyn Bench) {
    assert!(listed(bench.store(), "").is_empty());
    assert!(!bench.store().location().is_empty());
}

pub(crate) fn lists_by_suffix_sorted_and_nested(bench: &dyn Bench) {
    for object in
        ["b/x_metadata", "a/z_metadata", "a/z-00001", "a/b/c/d_metadata", "a.b/_metadata", "top_metadata"]
    {
        bench.put(object, b"{}");
    }
    bench.put("a/z_metadata.tmp", b"");
    let expected = ["a.b/_metadata", "a/b/c/d_metadata", "a/z_metadata", "b/x_metadata", "top_metadata"];
    for _ in 0..3 {
        assert_eq!(listed(bench.store(), "_metadata"), expected);
    }
    assert_eq!(listed(bench.store(), "-00001"), ["a/z-00001"]);
    assert_eq!(listed(bench.store(), "").len(), 7);
    assert!(listed(bench.store(), "_sha256file").is_empty());
}

pub(crate) fn any_utf8_name_is_a_name(bench: &dyn Bench) {
    let mut names =
        ["volume_1/2024/az nova/backup_1-00001", "ünï/…/😀", "a\nb/c\"d'", "-rf", "a/..b/.c", "*?[x]\\"];
    for object in names {
        bench.put(object, object.as_bytes());
    }
    names.sort_unstable();
    assert_eq!(listed(bench.store(), ""), names);
    for object in names {
        assert_eq!(read(bench.store(), object).unwrap(), object.as_bytes());
    }
}

pub(crate) fn a_missing_object_is_not_found(bench: &dyn Bench) {
    bench.put("a/b", b"x");
    for missing in ["c", "a/c", "c/b", "a", "a/b/c"] {
        let error = bench.store().open(&name(missing)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ObjectNotFound, "{missing}: {error}");
        assert!(error.to_string().contains(&format!("{missing:?}")), "does not name the object: {error}");
    }
}

pub(crate) fn reads_across_and_past_the_end(bench: &dyn Bench) {
    let bytes = pattern(100_000);
    bench.put("o", &bytes);
    let source = bench.store().open(&name("o")).unwrap();
    assert_eq!(source.stat().len_bytes, 100_000);
    for (offset, len) in [(0, 1), (0, 100_000), (99_999, 1), (1, 65_537), (50_000, 50_000)] {
        let mut buf = vec![0; len];
        read_exact_at(&*source, &mut buf, offset as u64).unwrap();
        assert!(buf == bytes[offset..offset + len], "{offset}+{len}");
    }
    let mut buf = vec![7; 1000];
    let mut got = 0;
    loop {
        match source.read_at(&mut buf[got..], 99_900 + got as u64).unwrap() {
            0 => break,
            n => got += n,
        }
    }
    assert_eq!(buf[..got], bytes[99_900..]);
    for at in [100_000, 100_001] {
        assert_eq!(source.read_at(&mut buf, at).unwrap(), 0);
    }
    assert_eq!(source.read_at(&mut [], 0).unwrap(), 0);
    let error = read_exact_at(&*source, &mut buf, 99_900).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Truncated);
}

pub(crate) fn an_empty_object_is_an_object(bench: &dyn Bench) {
    bench.put("c/empty", b"");
    assert_eq!(listed(bench.store(), "empty"), ["c/empty"]);
    assert_eq!(read(bench.store(), "c/empty").unwrap(), b"");
}

pub(crate) fn no_offset_is_too_big(bench: &dyn Bench) {
    bench.put("o", b"abc");
    let source = bench.store().open(&name("o")).unwrap();
    for at in [i64::MAX as u64 - 1, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX] {
        assert_eq!(source.read_at(&mut [0; 4096], at).unwrap(), 0, "{at}");
        let error = read_exact_at(&*source, &mut [0; 2], at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated);
    }
}

pub(crate) fn an_open_object_outlives_its_name(bench: &dyn Bench) {
    bench.put("c/o", b"old content");
    let old = bench.store().open(&name("c/o")).unwrap();
    bench.put("c/o", b"new");
    let new = bench.store().open(&name("c/o")).unwrap();
    bench.remove("c/o");
    assert!(bench.store().open(&name("c/o")).is_err());
    assert!(listed(bench.store(), "").is_empty());
    for (source, content) in [(&old, &b"old content"[..]), (&new, b"new")] {
        let mut buf = vec![0; content.len()];
        read_exact_at(&**source, &mut buf, 0).unwrap();
        assert_eq!(buf, content);
        assert_eq!(source.stat().len_bytes, content.len() as u64);
    }
}

pub(crate) fn the_version_follows_the_content(bench: &dyn Bench) {
    let version = || bench.store().open(&name("o")).unwrap().stat().version.clone();
    let mut seen = HashSet::new();
    for content in [&b"1"[..], b"2", b"33", b"2"] {
        bench.put("o", content);
        assert_eq!(version(), version(), "changes without a change");
        assert!(seen.insert(version()), "stays at {:?}", version());
        // Two replacements within one tick of a file system's clock differ in inode only, and inodes are used again.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[allow(dead_code, reason = "for servers only")]
pub(crate) fn a_replaced_object_is_never_mixed(bench: &dyn Bench) {
    let (old, new) = (pattern(3_000_000), vec![7; 3_000_000]);
    bench.put("c/o", &old);
    let source = bench.store().open(&name("c/o")).unwrap();
    let mut buf = vec![0; 1000];
    read_exact_at(&*source, &mut buf, 0).unwrap();
    bench.put("c/o", &new);
    for offset in (0..2_900_000).step_by(100_000) {
        match read_exact_at(&*source, &mut buf, offset) {
            Ok(()) => assert!(buf == old[offset as usize..][..1000], "bytes of another object at {offset}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}"),
        }
    }
    assert!(read_exact_at(&*source, &mut buf, 2_999_000).is_err(), "this was not fetched before");
    assert!(read(bench.store(), "c/o").unwrap() == new);
    bench.remove("c/o");
    assert_eq!(read(bench.store(), "c/o").unwrap_err().kind(), ErrorKind::ObjectNotFound);
}

#[allow(dead_code, reason = "for servers only")]
pub(crate) fn the_version_tells_contents_apart(bench: &dyn Bench) {
    let version = || bench.store().open(&name("o")).unwrap().stat().version.clone();
    let mut seen = HashSet::new();
    for content in [&b"1"[..], b"2", b"33", b""] {
        bench.put("o", content);
        assert_eq!(version(), version(), "changes without a change");
        assert!(seen.insert(version()), "stays at {:?}", version());
    }
}

pub(crate) fn the_listing_tells_what_open_tells(bench: &dyn Bench) {
    for object in ["c/a", "c/d/b", "e"] {
        bench.put(object, object.as_bytes());
    }
    let listing = bench.store().list("").unwrap();
    assert_eq!(listing.objects.len(), 3);
    for object in listing.objects {
        assert_eq!(object.stat, *bench.store().open(&object.name).unwrap().stat(), "{}", object.name);
        assert!(object.stat.owner.mode <= 0o7777);
    }
}

pub(crate) fn what_was_listed_is_read_as_it_was_listed_or_not_at_all(bench: &dyn Bench) {
    let store = bench.store();
    for (object, content) in [("c/a_metadata", "one"), ("c/a_sha256file", "digests"), ("c/a-00001", "data")] {
        bench.put(object, content.as_bytes());
    }
    let whole = |listed: &ListedObject| -> cinderfs::Result<_> {
        let source = store.open_listed(listed)?;
        let mut bytes = vec![0; source.stat().len_bytes as usize];
        read_exact_at(&*source, &mut bytes, 0)?;
        Ok((source.stat().version.clone(), bytes))
    };
    let (listing, others) = store.list_with("_metadata", "_sha256file").unwrap();
    assert_eq!(
        listing.objects.iter().map(|listed| listed.name.as_str()).collect::<Vec<_>>(),
        ["c/a_metadata"]
    );
    assert!(others.iter().all(|listed| listed.name.as_str() == "c/a_sha256file"), "{others:?}");
    for listed in listing.objects.iter().chain(&others) {
        let expected = read(store, listed.name.as_str()).unwrap();
        assert_eq!(whole(listed).unwrap(), (listed.stat.version.clone(), expected));
    }
    let listed = &listing.objects[0];
    bench.put("c/a_metadata", b"two, and longer");
    match whole(listed) {
        Ok((version, bytes)) => {
            assert_ne!(version, listed.stat.version);
            assert_eq!(bytes, b"two, and longer");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}"),
    }
    bench.remove("c/a_metadata");
    let error = whole(listed).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ObjectNotFound, "{error}");
}

pub(crate) fn many_threads_read_the_right_bytes(bench: &dyn Bench) {
    let bytes = pattern(300_000);
    bench.put("c/o", &bytes);
    let store = bench.store();
    let shared = store.open(&name("c/o")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16usize {
            let (shared, bytes) = (&shared, &bytes);
            scope.spawn(move || {
                let own = store.open(&name("c/o")).unwrap();
                for round in 0..100 {
                    let (offset, len) = ((thread * 7919 + round * 2741) % 290_000, 1 + (round * 97) % 10_000);
                    let mut buf = vec![0; len];
                    read_exact_at(if round % 2 == 0 { &**shared } else { &*own }, &mut buf, offset as u64)
                        .unwrap();
                    assert!(buf == bytes[offset..offset + len], "{offset}+{len}");
                }
                assert_eq!(listed(store, "o"), ["c/o"]);
            });
        }
    });
}
