//! What the kernel reads by itself: the same bytes, holes and sizes, for everybody and for every program.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{SeekFrom, seek};

use super::genuine::{Genuine, backups_of};
use super::mount::{NOBODY, PATIENCE, run, stderr, within};
use super::store::BLOCK;
use super::{ID, World, reads};

#[track_caller]
fn check_holes(path: &Path, image: &[u8]) {
    let file = File::open(path).unwrap();
    let (mut at, mut data_bytes) = (0, 0);
    while (at as usize) < image.len() {
        let Ok(data) = seek(&file, SeekFrom::Data(at)) else { break };
        assert!(image[at as usize..data as usize].iter().all(|&b| b == 0), "hole at {at}");
        let hole = seek(&file, SeekFrom::Hole(data)).unwrap();
        for block in image[data as usize..hole as usize].chunks(BLOCK) {
            assert!(block.iter().any(|&b| b != 0), "data at {data} to {hole}");
        }
        data_bytes += hole - data;
        at = hole;
    }
    assert_eq!(file.metadata().unwrap().blocks(), data_bytes.div_ceil(512));
    let behind = seek(&file, SeekFrom::Data(image.len() as u64)).unwrap_err();
    assert_eq!(behind, rustix::io::Errno::NXIO);
}

const STORES: [&str; 10] = [
    "bz2-chain",
    "branch",
    "grew",
    "none-chain",
    "old-names",
    "texts",
    "unaligned",
    "zeros",
    "zlib-chain",
    "zstd-chain",
];

// > A hydrated image is read by the kernel itself where root mounted with Linux 6.9 or newer when at least one image was hydrated, unless `passthrough=off` is given; its bytes were compared with their digests when it was hydrated, and are not again at each read.
#[test]
fn genuine_backups_are_read_by_the_kernel_alone() {
    let world = World::new();
    for store in STORES {
        let backups: Vec<Genuine> = backups_of(store);
        let ids: Vec<&str> = backups.iter().map(|backup| &*backup.id).collect();
        let path = backups[0].store_path();
        let output = run(&mut world.command(&path, &ids));
        assert!(output.status.success(), "{}", stderr(&output));
        let mount = world.setup("").mount(&path);
        for backup in &backups {
            let bytes = fs::read(mount.image(&backup.id)).unwrap();
            backup.check("through the kernel", &bytes);
            assert_eq!(fs::metadata(mount.image(&backup.id)).unwrap().len(), backup.bytes);
        }
        assert_eq!(reads(&mount), 0, "{store}: {}", mount.log());
        drop(mount);

        let mount = world.setup("passthrough=off").mount(&path);
        for backup in &backups {
            backup.check("through the daemon", &fs::read(mount.image(&backup.id)).unwrap());
        }
        assert!(reads(&mount) > 0);
        assert!(!mount.log().contains("WARN"), "{}", mount.log());
    }
}

#[test]
fn holes_sizes_and_copies_tell_the_truth_through_the_kernel() {
    let (world, backup) = World::with_backup(200);
    world.hydrate(&[ID]);
    let mount = world.mount("");
    let image = mount.image(ID);
    check_holes(&image, &backup.image);
    let copy = world.folder.path().join("copy");
    let copies: [&[&str]; 4] = [
        &["cp", "--sparse=auto", "IMAGE", "COPY"],
        &["dd", "if=IMAGE", "of=COPY", "bs=1M", "status=none"],
        &["dd", "if=IMAGE", "of=COPY", "bs=64K", "iflag=direct", "status=none"],
        &["qemu-img", "convert", "-f", "raw", "-O", "raw", "IMAGE", "COPY"],
    ];
    for words in copies {
        let word = |word: &str| {
            word.replace("IMAGE", image.to_str().unwrap()).replace("COPY", copy.to_str().unwrap())
        };
        let output = run(Command::new(words[0]).args(words[1..].iter().map(|w| word(w))));
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        assert!(fs::read(&copy).unwrap() == backup.image, "{words:?}");
        let is_sparse = fs::metadata(&copy).unwrap().blocks() * 512 < backup.image.len() as u64;
        assert_eq!(is_sparse, words[0] != "dd", "{words:?}");
        fs::remove_file(&copy).unwrap();
    }
    let map = "import mmap, sys; f = open(sys.argv[1], 'rb'); \
               sys.stdout.buffer.write(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ))";
    let mapped = run(Command::new("python3").args(["-c", map]).arg(&image));
    assert!(mapped.stdout == backup.image, "{}", stderr(&mapped));
    assert_eq!(reads(&mount), 0, "{}", mount.log());
}

#[test]
fn a_loop_mount_reads_through_the_kernel() {
    let world = World::new();
    let backup = backups_of("ext4").pop().unwrap();
    assert!(run(&mut world.command(&backup.store_path(), &[&backup.id])).status.success());
    let mount = world.setup("").mount(&backup.store_path());
    let target = world.folder.path().join("fs");
    fs::create_dir(&target).unwrap();
    let output =
        run(Command::new("mount").args(["-o", "loop,ro,noload"]).arg(mount.image(&backup.id)).arg(&target));
    assert!(output.status.success(), "{}", stderr(&output));
    let hostname = fs::read(target.join("etc/hostname"));
    let log = fs::read(target.join("var/log/big.log"));
    within(PATIENCE, "the loop mount is taken away", || {
        run(Command::new("umount").arg(&target)).status.success()
    });
    assert_eq!(hostname.unwrap(), b"fixture\n");
    assert_eq!(log.unwrap().len(), 409_600);
    assert_eq!(reads(&mount), 0, "{}", mount.log());
}

#[test]
fn who_is_not_root_reads_the_same_bytes_through_the_daemon() {
    let (world, backup) = World::with_backup(100);
    fs::create_dir(world.cache()).unwrap();
    std::os::unix::fs::chown(world.cache(), Some(NOBODY), Some(NOBODY)).unwrap();
    let script =
        "cp \"$0\" cinderfs && exec setpriv --reuid 65534 --regid 65534 --clear-groups -- ./cinderfs \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_cinderfs"), "hydrate"]).arg(world.store()).arg(ID);
    command.current_dir(world.folder.path()).env("CINDERFS_CACHE_DIR", world.cache());
    let output = run(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    world.lose_objects(&backup);
    let mount = world.setup("allow_other").by_nobody().mount(&world.store());
    assert!(fs::read(mount.image(ID)).unwrap() == backup.image);
    assert!(reads(&mount) > 0);
    assert!(mount.log().contains("passthrough is refused"), "{}", mount.log());
    drop(mount);
    // What root hydrated is closed to nobody, and no error.
    fs::remove_dir_all(world.cache()).unwrap();
    backup.put(&world.store());
    world.hydrate(&[ID]);
    let mount = world.setup("allow_other").by_nobody().mount(&world.store());
    assert!(fs::read(mount.image(ID)).unwrap() == backup.image);
}

/// The kernel reads on without a daemon.
// > A hydrated image that the kernel reads stays readable through open files after the daemon's end, unlike all else.
#[test]
fn an_open_hydrated_image_outlives_its_daemon() -> io::Result<()> {
    let (world, backup) = World::with_backup(40);
    world.hydrate(&[ID]);
    let mut mount = world.mount("");
    let file = File::open(mount.image(ID))?;
    mount.kill();
    let mut bytes = vec![0; backup.image.len()];
    file.read_exact_at(&mut bytes, 0)?;
    assert!(bytes == backup.image);
    assert!(File::open(mount.image(ID)).is_err());
    Ok(())
}
