//! Does a run that fails, at whatever call and for whatever reason, say so, lose nothing and leave nothing?
//!
//! The calls of the whole program are failed one after the other; disks that are full, quotas, and stores that may not be written are real
//! ones. Needs root, loop devices and btrfs.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/crash_kit.rs"]
mod crash_kit;
#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/staging_kit.rs"]
mod staging_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/tracer.rs"]
mod tracer;
#[path = "common/volume.rs"]
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crash_kit::{CASES, Case, World, printed_id};
use staging_kit::{SmallFileSystem, hidden_folders, tree, visible};
use tracer::{Calls, Fate, run};

/// EIO, ENOSPC and EDQUOT, and what the program says of each.
const ERRORS: [(i32, &str); 3] = [
    (5, "Input/output error"),
    (28, "file system is full"),
    (122, "quota on the store's file system is used up"),
];

// > A run that fails, is interrupted, finds the disk full or its quota used up says why, and leaves nothing in sight.
#[test]
fn a_call_that_fails_ends_it_with_a_reason_and_nothing_in_sight() {
    for case in &CASES {
        let world = World::new();
        let (mut failed, mut done) = (0, 0);
        let mut passed_over = BTreeSet::<&str>::new();
        for at in 0.. {
            let (errno, words) = ERRORS[at as usize % ERRORS.len()];
            let traced = run(&world.run_of(case), Calls::Writing, at, Fate::Fails(errno));
            let call = traced.calls.get(at as usize);
            let when = format!("{}, call {at} ({call:?}) fails with {errno}: {}", case.name, traced.stderr);
            let made = world.check(case, false, &when);
            match traced.code {
                Some(0) => {
                    assert_eq!(Some(traced.stdout.trim_end()), made.as_deref(), "{when}");
                    done += 1;
                    passed_over.extend(call.copied());
                }
                Some(1) => {
                    assert_eq!((made.as_deref(), traced.stdout.as_str()), (None, ""), "{when}");
                    assert!(visible(&world.store()) == world.before, "{when}");
                    assert!(
                        traced.stderr.starts_with("cinderfs: ") && traced.stderr.contains(words),
                        "{when}"
                    );
                    failed += 1;
                }
                other => panic!("{other:?}: {when}"),
            }
            // What left nothing, not even in hiding, cannot hold up the next.
            if tree(&world.store()) != world.before {
                world.check_next_run(&made.into_iter().collect::<Vec<_>>(), &when);
                world.reset();
            }
            if call.is_none() {
                break;
            }
        }
        println!(
            "{}: {failed} failed, {done} done in spite of a failure of one of {passed_over:?}",
            case.name
        );
        assert!(failed > 40 && done > 4, "{failed} {done}");
    }
}

// > Where the store fails so that a backup in sight can be neither finished nor taken back, the error says that; what is listed is whole all the same.
#[test]
fn a_store_that_dies_during_a_run_shows_whole_backups_and_is_cleaned_by_the_next() {
    for case in &CASES[..3] {
        let world = World::new();
        let mut left = 0;
        for at in 0.. {
            let traced = run(&world.run_of(case), Calls::Writing, at, Fate::FailsFromThenOn(5));
            let when = format!("{}, dead from call {at} on: {}", case.name, traced.stderr);
            let made = world.check(case, true, &when);
            left += u32::from(!hidden_folders(&world.store()).is_empty());
            match traced.code {
                Some(0) => assert_eq!(Some(traced.stdout.trim_end()), made.as_deref(), "{when}"),
                Some(1) => assert!(made.is_none() || traced.stderr.contains("taken back"), "{when}"),
                other => panic!("{other:?}: {when}"),
            }
            world.check_next_run(&made.into_iter().collect::<Vec<_>>(), &when);
            world.reset();
            if traced.calls.len() as u64 <= at {
                break;
            }
        }
        assert!(left > 20, "{left}");
    }
}

// > A source that cannot be read, or that becomes shorter, ends the run, and there is no backup.
#[test]
fn a_source_that_cannot_be_read_or_shrinks_ends_it_with_the_place() {
    for case in CASES.iter().filter(|case| !case.name.starts_with("consolidated")) {
        let world = World::new();
        let image = fs::canonicalize(world.image()).unwrap();
        let long = world.source.len() as u64;
        let shrink = |_| fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(long / 3).unwrap();
        let mut met = 0;
        // The first read looks at the format only. It may fail, and a source that is shorter from then on is a shorter volume.
        for at in 1.. {
            let mut reached = true;
            for (fate, words) in [
                (Fate::Fails(5), ["cannot read", "Input/output error"]),
                (Fate::ComesAfter(&shrink), ["disk.img", "short"]),
            ] {
                let traced = run(&world.run_of(case), Calls::Reading(&image), at, fate);
                fs::write(&image, &world.source).unwrap();
                let when = format!("{}, read {at}: {}", case.name, traced.stderr);
                let made = world.check(case, false, &when);
                if traced.calls.len() as u64 <= at {
                    assert_eq!((traced.code, made.is_some()), (Some(0), true), "{when}");
                    reached = false;
                    world.reset();
                    break;
                }
                met += 1;
                assert_eq!((traced.code, made, traced.stdout.as_str()), (Some(1), None, ""), "{when}");
                assert!(words.iter().all(|word| traced.stderr.contains(word)), "{when}");
                assert!(tree(&world.store()) == world.before, "{when}");
            }
            if !reached {
                break;
            }
        }
        assert!(met >= 2, "{met}");
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The most that a file system of these tests has room for.
const ENDLESS: u64 = 64 << 20;

/// Writes a file of so many bytes, or as many as there is room for, to the last; how many.
fn fill(filler: &Path, bytes: u64) -> u64 {
    // Some file systems give room back only when they have time.
    let started = Instant::now();
    let file = loop {
        match fs::File::create(filler) {
            Ok(file) => break file,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "{error}"),
        }
        sync(filler);
    };
    // They also refuse what there would be room for, as long as they do not know where it will lie.
    let mut size = 0;
    for block in [&[7; 4096][..], &[7; 512][..]] {
        loop {
            let before = size;
            while size < bytes && file.write_all_at(block, size).is_ok() {
                size += block.len() as u64;
            }
            let _ = file.sync_all();
            if size == before {
                break;
            }
        }
    }
    size
}

fn give_back(filler: &Path) {
    fs::remove_file(filler).unwrap();
    sync(filler);
}

/// The file system that it lies on.
fn sync(filler: &Path) {
    staging_kit::run(Command::new("sync").arg("-f").arg(filler.parent().unwrap()));
}

/// Runs a case while ever more room is left, until there is enough; how often it was refused, each time with these words.
fn fill_up(world: &mut World, case: &Case, words: &str) -> u32 {
    let filler = world.store().join("filler");
    let mut room = ENDLESS;
    for refused in 0..100 {
        let left = u64::from(refused) * (16 << 10);
        let filled = fill(&filler, room - left);
        assert!(filled < ENDLESS, "there is no end to it");
        if refused == 0 {
            room = filled;
        }
        world.before.insert("filler".to_owned(), tree(&world.store())["filler"].clone());
        let output = world.run_of(case).output().unwrap();
        let when = format!("{}, {left} bytes left: {}", case.name, stderr(&output));
        let made = world.check(case, false, &when);
        if !output.status.success() {
            assert_eq!((output.status.code(), &made), (Some(1), &None), "{when}");
            assert!(stderr(&output).contains(words), "{when}");
            assert!(tree(&world.store()) == world.before, "{when}");
        }
        give_back(&filler);
        world.before.remove("filler");
        if output.status.success() {
            assert_eq!(Some(printed_id(&output)), made, "{when}");
            world.reset();
            return refused;
        }
    }
    panic!("{}: there was never room enough", case.name);
}

// > A run that fails, is interrupted, finds the disk full or its quota used up says why, and leaves nothing in sight.
#[test]
fn a_full_disk_is_told_and_nothing_left_on_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("store")).unwrap();
    let small = SmallFileSystem::at(8 << 20, 200, &folder.path().join("store"));
    let mut world = World::at(folder);
    let mut refused = BTreeMap::new();
    for case in &CASES {
        refused.insert(case.name, fill_up(&mut world, case, "the store's file system is full"));
    }
    println!("{refused:?}");
    // An incremental needs little, and a file system's last blocks come and go: in steps of 16 KiB it may be refused but once.
    let total: u32 = refused.values().sum();
    assert!(refused.values().all(|&times| times >= 1) && total > 30, "{refused:?}");
    drop(small);
}

/// Of btrfs, which has its own: not every kernel has those of ext4.
// > A run that fails, is interrupted, finds the disk full or its quota used up says why, and leaves nothing in sight.
#[test]
fn a_quota_that_is_used_up_is_told_and_nothing_left_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let (image, store) = (folder.path().join("btrfs"), folder.path().join("store"));
    fs::create_dir(&store).unwrap();
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    staging_kit::run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
    let mounted = SmallFileSystem::of(&image, &store);
    staging_kit::run(Command::new("btrfs").args(["quota", "enable"]).arg(&store));
    staging_kit::run(Command::new("btrfs").args(["qgroup", "limit", "24M"]).arg(&store));
    let mut world = World::at(folder);
    let mut refused = BTreeMap::new();
    for case in &CASES[..2] {
        let words = "quota on the store's file system is used up";
        refused.insert(case.name, fill_up(&mut world, case, words));
    }
    println!("{refused:?}");
    assert!(refused.values().all(|&times| times >= 2), "{refused:?}");
    drop(mounted);
}

// > A store that is read-only, or that one may not write, is refused and left as it was.
#[test]
fn a_store_that_may_not_be_written_is_told_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(folder.path().join("store")).unwrap();
    let small = SmallFileSystem::at(8 << 20, 200, &folder.path().join("store"));
    let world = World::at(folder);
    let remount = |how: &str| staging_kit::run(Command::new("mount").args(["-o", how]).arg(small.root()));
    // As somebody who may read all of it: the files of a backup are the service's alone.
    let open = |path: &str| {
        let path = world.store().join(path);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        fs::set_permissions(
            &path,
            fs::Permissions::from_mode(mode | if path.is_dir() { 0o555 } else { 0o444 }),
        )
        .unwrap();
    };
    let nobody = |command: Command| {
        let program = world.image().with_file_name("cinderfs");
        // By another process: what a sibling test starts meanwhile would hold this one's copy open for writing.
        staging_kit::run(
            Command::new("cp").arg("--remove-destination").arg(command.get_program()).arg(&program),
        );
        let mut other = Command::new("setpriv");
        other
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(program)
            .args(command.get_args());
        other.env("CINDERFS_CACHE_DIR", "/nonexistent").env_remove("CINDERFS_LOG");
        other.output().unwrap()
    };
    for case in &CASES {
        remount("remount,ro");
        let output = world.run_of(case).output().unwrap();
        remount("remount,rw");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("the store is read-only"), "{}", stderr(&output));
        assert_eq!(world.check(case, false, case.name), None);

        world.before.keys().chain([&String::new()]).for_each(|path| open(path));
        let opened = tree(&world.store());
        let output = nobody(world.run_of(case));
        assert_eq!(output.status.code(), Some(12), "{}: {}", case.name, stderr(&output));
        assert!(stderr(&output).contains("may not write"), "{}", stderr(&output));
        assert!(tree(&world.store()) == opened, "{}", case.name);
        for (path, (mode, _)) in &world.before {
            fs::set_permissions(world.store().join(path), fs::Permissions::from_mode(*mode)).unwrap();
        }
        assert_eq!(world.check(case, false, case.name), None);
    }
    world.check_next_run(&[], "after all that");
    drop(world);
    drop(small);
}

/// The clock was set back since, or that of another machine was ahead.
// > `--incremental` builds on the volume's newest usable backup, and a new one's `created_at`, in whole seconds of UTC, is later than those of all others of its volume, also when the clock was set back.
#[test]
fn a_parent_from_the_future_is_built_on_and_stays_older() {
    let mut world = World::new();
    let id = world.tip();
    let of_tip = |path: &&String| path.contains(&id) && path.ends_with("_metadata");
    let document = world.store().join(world.before.keys().find(of_tip).unwrap());
    let text = fs::read_to_string(&document).unwrap();
    let date = text.split("\"created_at\": \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    fs::write(&document, text.replace(&date, "2099-12-31 23:59:58+00:00")).unwrap();
    world.before = tree(&world.store());
    for (count, at) in ["2099-12-31T23:59:59Z", "2100-01-01T00:00:00Z"].into_iter().enumerate() {
        let output = world.run_of(&CASES[1]).output().unwrap();
        let made = printed_id(&output);
        assert!(stderr(&output).contains("later than now; this one gets"), "{}", stderr(&output));
        let shown = world.show(&made);
        assert_eq!(
            (shown["created_at"].as_str(), shown["chain"].as_array().unwrap().len()),
            (Some(at), count + 3)
        );
    }
}
