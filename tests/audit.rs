//! Does an audit find what differs, know what Cinder restored wrongly, and repair it?
//!
//! Needs root and a loop device, and fails without them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/store.rs"]
mod store;

#[path = "audit/kit.rs"]
mod kit;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use kit::{Chain, MIB};
use store::{BLOCK, Backup, noise};

const B: u64 = BLOCK as u64;

#[test]
fn a_right_target_is_equal_wherever_it_has_holes() {
    let chain = Chain::new();
    let target = chain.target("right", chain.volume());
    let told = chain.audit(&target, &[]);
    assert_eq!((told.code, &told.json["equal"]), (0, &true.into()));
    // Zeros that are holes, and something behind the end.
    let file = File::create(&target).unwrap();
    file.set_len(chain.volume().len() as u64 + 5000).unwrap();
    for (n, block) in chain.volume().chunks(BLOCK).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, n as u64 * B).unwrap();
        }
    }
    let told = chain.audit(&target, &[]);
    assert_eq!((told.code, &told.json["equal"]), (0, &true.into()), "{}", told.json);
    assert_eq!(told.json["target_bytes"], chain.volume().len() as u64 + 5000);
}

#[test]
fn the_defect_of_cinder_22_to_28_is_known_and_repaired() {
    let chain = Chain::new();
    let target = chain.target("restored", &chain.restored_by_cinder_28());
    let told = chain.audit(&target, &[]);
    assert_eq!(told.code, 3);
    let mib = MIB as u64;
    // The second object of zeros is not a whole piece of them, and was restored.
    assert_eq!(
        told.findings(),
        [(2 * mib, 2 * mib, "stale_data", Some("i2")), (6 * mib, mib / 2, "stale_data", Some("i2"))]
    );
    assert!(told.json["repaired"].is_null());
    assert_eq!(fs::read(&target).unwrap(), chain.restored_by_cinder_28(), "an audit writes nothing");

    let told = chain.audit(&target, &["--repair", "--yes"]);
    assert_eq!((told.code, &told.json["repaired"]["written_bytes"]), (0, &(2 * mib + mib / 2).into()));
    assert!(fs::read(&target).unwrap() == chain.volume());
    assert_eq!(chain.audit(&target, &[]).code, 0);
}

#[test]
fn what_is_wrong_is_told_apart() {
    let chain = Chain::new();
    let mut bytes = chain.volume().to_vec();
    bytes[..BLOCK].fill(0);
    bytes[3 * BLOCK + 5] ^= 1;
    bytes[4 * BLOCK + 5] ^= 1;
    // What the first backup held where a later one has other data.
    bytes[9 * MIB..9 * MIB + BLOCK].copy_from_slice(&chain.backups[0].image[9 * MIB..9 * MIB + BLOCK]);
    bytes.truncate(bytes.len() - BLOCK - 1);
    let target = chain.target("wrong", &bytes);
    let told = chain.audit(&target, &[]);
    assert_eq!(told.code, 3);
    let len = chain.volume().len() as u64;
    let last = len / B * B;
    assert_eq!(
        told.findings(),
        [
            (0, B, "zeros", None),
            (3 * B, 2 * B, "other", None),
            (9 * MIB as u64, B, "older_data", Some("f1")),
            (last - B, len - last + B, "missing", None),
        ]
    );
    // A file grows to its length, and no further.
    let told = chain.audit(&target, &["--repair", "--yes", "--threads", "2"]);
    assert_eq!(told.code, 0, "{}", told.json);
    assert!(fs::read(&target).unwrap() == chain.volume());
}

#[test]
fn nothing_behind_the_end_and_nothing_right_is_written() {
    let chain = Chain::new();
    let mut bytes = chain.volume().to_vec();
    let end = bytes.len();
    bytes[end - 1] ^= 1;
    bytes.extend(noise(9, 10_000));
    let target = chain.target("long", &bytes);
    assert_eq!(
        chain.audit(&target, &["--repair", "--yes"]).json["repaired"]["written_bytes"],
        end as u64 % B
    );
    bytes[end - 1] ^= 1;
    assert!(fs::read(&target).unwrap() == bytes);
}

#[test]
fn a_damaged_backup_repairs_the_rest_and_says_so() {
    let chain = Chain::new();
    let mut bytes = chain.volume().to_vec();
    for at in [0, 5 * BLOCK, MIB + 3 * BLOCK] {
        bytes[at] ^= 1;
    }
    store::flip(&chain.backups[0].file(&chain.store(), "-00001"), 5 * BLOCK + 9);
    let target = chain.target("half", &bytes);
    let told = chain.audit(&target, &["--repair", "--yes"]);
    assert_eq!(told.code, 3);
    let repaired = &told.json["repaired"];
    assert_eq!(repaired["left"], serde_json::json!([{ "start": 5 * B, "length": B }]));
    assert!(repaired["reason"].as_str().unwrap().contains("-00001"), "{repaired}");
    bytes[0] ^= 1;
    bytes[MIB + 3 * BLOCK] ^= 1;
    assert!(fs::read(&target).unwrap() == bytes);
}

#[test]
fn a_target_in_use_or_in_the_store_is_left_alone() {
    let chain = Chain::new();
    let wrong = chain.restored_by_cinder_28();
    let target = chain.target("used", &wrong);
    let mut open = fs::OpenOptions::new().append(true).open(&target).unwrap();
    let told = chain.fails(&target, &["--repair", "--yes"], 2);
    assert!(told.contains("is in use: process"), "{told}");
    // To look at it is always allowed.
    assert_eq!(chain.audit(&target, &[]).code, 3);
    assert!(fs::read(&target).unwrap() == wrong);
    assert_eq!(chain.audit(&target, &["--repair", "--yes", "--force"]).code, 0);
    open.flush().unwrap();

    let object = chain.backups[0].file(&chain.store(), "-00001");
    assert!(chain.fails(&object, &[], 2).contains("lies inside the store"));
    let link = chain.target("link", &[]);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&object, &link).unwrap();
    assert!(chain.fails(&link, &["--repair", "--yes"], 2).contains("lies inside the store"));
}

#[test]
fn a_wrong_call_is_told_before_the_work() {
    let chain = Chain::new();
    let target = chain.target("any", &chain.restored_by_cinder_28());
    assert!(chain.fails(&target, &["--repair"], 2).contains("--yes repairs without asking"));
    assert!(chain.fails(&target, &["--yes"], 2).contains("--repair"));
    assert!(chain.fails(&target.with_extension("none"), &[], 2).contains("cannot open target"));
    Backup { id: "m5".into(), ..chain.backups[0].clone() }.without_digests().put(&chain.store());
    let told = chain.fails_of("m5", &target, &[], 1);
    assert!(told.contains("backup m5 has no usable digests") && told.contains("hint: "), "{told}");
}

#[test]
fn a_device_is_repaired_unless_it_is_mounted_or_too_small() {
    let chain = Chain::new();
    let device = kit::LoopDevice::over(&chain.target("backing", &chain.restored_by_cinder_28()));
    assert_eq!(chain.audit(&device.path, &[]).code, 3);
    assert_eq!(chain.audit(&device.path, &["--repair", "--yes"]).code, 0);
    assert!(device.bytes() == chain.volume());

    let small = kit::LoopDevice::over(&chain.target("small", &chain.volume()[..8 * MIB]));
    assert_eq!(chain.audit(&small.path, &[]).code, 3);
    assert!(chain.fails(&small.path, &["--repair", "--yes"], 1).contains("bytes, the image"));

    let used = kit::LoopDevice::over(&chain.target("mounted", &vec![0; 12 * MIB]));
    kit::run("mkfs.ext4", &["-q", "-F", used.path.to_str().unwrap()]);
    let mounted = kit::Mounted::of(&used, &chain.target_path("mnt"));
    let told = chain.fails(&used.path, &["--repair", "--yes"], 2);
    assert!(told.contains("is mounted at"), "{told}");
    drop(mounted);
}

#[test]
fn people_see_what_is_wrong_and_what_to_do() {
    let chain = Chain::new();
    let target = chain.target("restored", &chain.restored_by_cinder_28());
    let output = chain.run("i4", &target, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "| 2097152 | 2097152 | stale_data | i2     |",
        "DIFFERENT: 2.50 MiB (",
        "    2.50 MiB stale_data: should be zeros; as Cinder 22 to 28 restore wrongly",
        "nothing was written; --repair writes the right bytes",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let widest = text.lines().skip_while(|line| line.contains("compared with")).map(str::len).max();
    assert!(widest.unwrap() <= 80 + target.to_str().unwrap().len(), "{text}");
}

#[test]
fn what_the_defect_would_hit_is_told_from_digests_alone() {
    use cinderfs::frontend::audit::risk::{Risk, at_risk};
    let chain = Chain::new();
    let catalog = chain.catalog();
    let snapshot = catalog.snapshot();
    let image = |id: &str| catalog.image(snapshot.get(id).unwrap()).unwrap();
    let mut ranges = Vec::new();
    let older = |id: &cinderfs::types::BackupId| Some(image(id.as_str()));
    let risk = at_risk(&image("i4"), &older, &mut |range| {
        ranges.push(range);
        Ok(())
    });
    let mib = MIB as u64;
    assert_eq!(ranges, [2 * mib..4 * mib, 6 * mib..6 * mib + mib / 2]);
    assert_eq!(risk.unwrap(), Risk { bytes: 5 * mib / 2, ranges: 2, unknown_bytes: 0 });
    // It is where the wrong restore differs, no more and no less.
    let wrong = chain.restored_by_cinder_28();
    let differs = |block: usize| {
        let end = ((block + 1) * BLOCK).min(wrong.len());
        wrong[block * BLOCK..end] != chain.volume()[block * BLOCK..end]
    };
    for block in 0..wrong.len().div_ceil(BLOCK) {
        let is_told = ranges.iter().any(|range| range.contains(&(block as u64 * B)));
        assert_eq!(is_told, differs(block), "block {block}");
    }
    // Neither before the zeros, nor where nothing tells.
    for id in ["f1", "i2"] {
        assert_eq!(at_risk(&image(id), &older, &mut |_| panic!()).unwrap(), Risk::default(), "{id}");
    }
    let risk = at_risk(&image("i4"), &|_| None, &mut |_| panic!()).unwrap();
    assert!(risk.bytes == 0 && risk.unknown_bytes > 3 * mib, "{risk:?}");
}
