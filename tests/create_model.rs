//! Is every backup of a random history the volume's bytes, and just what Cinder would have written?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/new_backup.rs"]
mod new_backup;

use cinderfs::ErrorKind;
use cinderfs::codec::Codec;
use cinderfs::types::ObjectName;
use cinderfs::writer::create::{Base, Created, NewBackup};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use cases::{Watchdog, runner};
use new_backup::{MemorySource, check, make, volume};

/// What happens to the volume between two backups.
#[derive(Clone, Debug)]
enum Edit {
    Noise(Index, usize, u64),
    Text(Index, usize),
    Zeros(Index, usize),
    /// To this share of its length, or to more.
    Resize(Index, bool),
}

#[derive(Clone, Debug)]
struct Step {
    edits: Vec<Edit>,
    /// The backup that this one builds on and whose volume was edited; `None` for a full one.
    parent: Option<Index>,
    codec: Codec,
    object_blocks: u64,
    threads: usize,
    in_named_container: bool,
}

#[derive(Clone, Debug)]
struct Story {
    block_bytes: u64,
    len: usize,
    hole_bytes: usize,
    steps: Vec<Step>,
}

fn edit() -> impl Strategy<Value = Edit> {
    let len = prop_oneof![1usize..2000, 1usize..60_000];
    prop_oneof![
        4 => (any::<Index>(), len.clone(), any::<u64>()).prop_map(|(at, len, seed)| Edit::Noise(at, len, seed)),
        4 => (any::<Index>(), len.clone()).prop_map(|(at, len)| Edit::Text(at, len)),
        4 => (any::<Index>(), len).prop_map(|(at, len)| Edit::Zeros(at, len)),
        1 => (any::<Index>(), any::<bool>()).prop_map(|(len, grows)| Edit::Resize(len, grows)),
    ]
}

fn story() -> impl Strategy<Value = Story> {
    let step = (
        prop::collection::vec(edit(), 0..6),
        prop::option::weighted(0.8, any::<Index>()),
        select(vec![Codec::None, Codec::Zlib, Codec::Bz2, Codec::Zstd]),
        prop_oneof![1u64..5, 1u64..64],
        1usize..6,
        any::<bool>(),
    )
        .prop_map(|(edits, parent, codec, object_blocks, threads, in_named_container)| Step {
            edits,
            parent,
            codec,
            object_blocks,
            threads,
            in_named_container,
        })
        .boxed();
    (select(vec![512u64, 1000, 4096, 32768]), 1usize..200_000, select(vec![512usize, 4096, 1 << 30]))
        .prop_flat_map(move |(block_bytes, len, hole_bytes)| {
            prop::collection::vec(step.clone(), 1..7).prop_map(move |steps| Story {
                block_bytes,
                len,
                hole_bytes,
                steps,
            })
        })
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    let volume_len = bytes.len();
    let range = |at: &Index, len: usize| {
        let start = at.index(volume_len);
        start..volume_len.min(start + len)
    };
    match edit {
        Edit::Noise(at, len, seed) => {
            let mut state = seed | 1;
            for byte in &mut bytes[range(at, *len)] {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
        }
        Edit::Text(at, len) => {
            let range = range(at, *len);
            bytes[range].iter_mut().zip(b"a volume, a backup; ".iter().cycle()).for_each(|(a, b)| *a = *b);
        }
        Edit::Zeros(at, len) => {
            let range = range(at, *len);
            bytes[range].fill(0);
        }
        Edit::Resize(len, grows) => {
            let len = if *grows { bytes.len() + len.index(3000) } else { len.index(bytes.len()) + 1 };
            bytes.resize(len, 0);
        }
    }
}

/// A backup, what it was to be, the volume then, and as of the parent.
type Made = (Created, NewBackup, Vec<u8>, Option<Vec<u8>>);

fn tell(story: &Story) {
    let _watchdog = Watchdog::new();
    let store = tempfile::tempdir().unwrap();
    let mut made: Vec<Made> = Vec::new();
    for step in &story.steps {
        let parent = step.parent.filter(|_| !made.is_empty()).map(|parent| parent.index(made.len()));
        let old = parent.map(|parent| made[parent].2.clone());
        let mut bytes = old.clone().unwrap_or_else(|| vec![0; story.len]);
        step.edits.iter().for_each(|edit| apply(&mut bytes, edit));
        let mut new = NewBackup::full(volume());
        new.codec = step.codec;
        new.block_bytes = story.block_bytes;
        new.object_bytes = Some(story.block_bytes * step.object_blocks);
        new.threads = step.threads;
        new.container = step.in_named_container.then(|| ObjectName::parse("team/one").unwrap());
        if let Some(parent) = parent {
            new.base = Base::Backup(made[parent].0.id.clone());
        }
        let mut source = MemorySource::new(bytes);
        source.hole_bytes = story.hole_bytes;
        let result = make(store.path(), &source, &new);
        let blocks = |bytes: &[u8]| bytes.len().div_ceil(story.block_bytes as usize);
        if old.as_deref().is_some_and(|old| blocks(&source.bytes) > blocks(old)) {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Usage);
            continue;
        }
        let created = result.unwrap();
        assert!(made.iter().all(|(before, ..)| before.created_at < created.created_at));
        made.push((created, new, source.bytes, old));
    }
    for (created, new, bytes, old) in &made {
        check(store.path(), created, new, bytes, old.as_deref());
    }
}

// > The image of a new backup is the volume as it was read, to the byte, with a sha256 for every block.
#[test]
fn random_histories_are_backed_up_as_they_were() {
    runner(100, 0x0c1e_a7e5)
        .run(&story(), |story| {
            tell(&story);
            Ok(())
        })
        .unwrap();
}
