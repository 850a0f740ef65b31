"""A volume with a real ext4 on it, backed up by genuine Cinder: what a user who lost one file has.

About 45 % of it are files of this machine's /usr, 25 % random data (what compressed and encrypted files are), the rest was never
written. Files are wanted near the volume's start, near its end, and at the end of its last object of full size, which is the deepest that
a stream can be entered: the object after it is small.
"""

import errno
import json
import os
import random
import re
import shutil

import kit
import readers
import volumes

FILES_SHARE, RANDOM_SHARE = 0.45, 0.25
RANDOM_FILE_BYTES = 32 << 20
WANTED_BYTES = range(64 << 10, 1 << 20)
PIECE_BYTES = 8 << 20
EXTENT = re.compile(r"^ *\d+: +\d+\.\. *\d+: +(\d+)\.\.", re.M)  # number: logical..: physical..
SOURCES = ["/usr/lib", "/usr/share", "/usr/bin"]


def volume(run):
    """The volume, its store with one full backup, and in `wanted` the two files: where, path, sha256."""
    if os.geteuid() != 0:
        raise kit.Missing("needs root, to make a file system and mount it")
    size = run.args.restore_size
    name = os.path.join(run.stores, "ext4-%d" % size)
    image, store = name + ".img", name

    def make():
        kit.say("making an ext4 volume of %d MiB" % (size >> 20))
        wanted = build(run, image, size)
        kit.say("backing it up")
        backup_id = run.cinder().back_up(image, store)
        container = os.path.dirname(next(path for path in kit.files_of(store) if path.endswith("_metadata")))
        prefix = next(path for path in os.listdir(container) if path.endswith("_metadata")).removesuffix("_metadata")
        objects = sum(path[-5:].isdigit() for path in os.listdir(container))
        return json.dumps({"wanted": wanted, "made by": run.cinder().what, "backups": [{
            "id": backup_id, "container": os.path.relpath(container, store), "prefix": prefix, "objects": objects,
            "sha256": readers.sha256(image)}]}).encode()
    report = volumes.once(name + ".json", make)
    made = volumes.Volume("ext4, %d MiB" % (size >> 20), "zlib", size, store, report, image)
    made.wanted = report["wanted"]
    return made


def build(run, image, size):
    with open(image, "wb") as file:
        file.truncate(size)
    kit.timed(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image])
    where = run.folder("ext4-")
    with kit.loop_mount(image, where, "ext4", "rw"):
        names = wanted_names()
        copy_files(where, int(size * FILES_SHARE), int(size * RANDOM_SHARE))
        wanted = []
        for what, path in placed_files(where, names, size).items():
            wanted.append({"what": "file at %.0f %% of the volume" % (100 * place(path) / size), "where": what,
                           "path": os.path.relpath(path, where), "bytes": os.path.getsize(path), "sha256": readers.sha256(path)})
    os.rmdir(where)
    return wanted


def wanted_names():
    """Files of this machine that could be wanted, in an order that a seed decides."""
    names = [os.path.join(here, name) for here, _, files in os.walk(SOURCES[0]) for name in files]
    random.Random("wanted").shuffle(names)
    return (path for path in names if not os.path.islink(path) and os.path.getsize(path) in WANTED_BYTES)


def placed_files(where, names, size):
    """Files at chosen places: all room is taken in pieces, the pieces at those places get files' bytes, the others are freed."""
    pieces = {}
    while True:
        path = os.path.join(where, "piece-%04d" % len(pieces))
        try:
            with open(path, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, PIECE_BYTES)
        except OSError as error:
            os.unlink(path)
            if error.errno != errno.ENOSPC or not pieces:
                raise
            break
        pieces[path] = place(path)
    border = size // volumes.OBJECT_SIZE * volumes.OBJECT_SIZE
    deep = [path for path, at in pieces.items() if at + PIECE_BYTES <= border]
    chosen = {"start": min(pieces, key=pieces.get), **({"deep": max(deep, key=pieces.get)} if deep else {}),
              "end": max(pieces, key=pieces.get)}
    for path in pieces:
        if path not in chosen.values():
            os.unlink(path)
    for path in set(chosen.values()):
        with open(next(names), "rb") as source, open(path, "r+b") as target:
            target.write(source.read())
            target.truncate()
    return chosen


def copy_files(where, files_bytes, random_bytes):
    """Folders of this machine in an order that a seed decides, with files of random data between."""
    dice, names = random.Random("ext4"), []
    for source in SOURCES:
        for here, folders, files in os.walk(source):
            folders.sort()
            names.append((here, sorted(files)))
    dice.shuffle(names)
    left, random_left, number = files_bytes, random_bytes, 0
    every = files_bytes // max(random_bytes // RANDOM_FILE_BYTES, 1)
    due = left
    for here, files in names:
        target = where + here
        for name in files:
            path = os.path.join(here, name)
            try:
                length = os.path.getsize(path)
                if os.path.islink(path) or not 0 < length <= left // 4:
                    continue
                is_new = not os.path.isdir(target)
                os.makedirs(target, exist_ok=True)
                shutil.copyfile(path, os.path.join(target, name))
            except OSError:
                continue
            # What it takes on the disk: many of this machine's files are small.
            left -= -(-length // 4096) * 4096 + (4096 if is_new else 0)
        while left < due and random_left > 0:
            with open(os.path.join(where, "media-%03d" % number), "wb") as out:
                random_left -= out.write(dice.randbytes(min(RANDOM_FILE_BYTES, random_left)))
            number, due = number + 1, due - every
        if left < files_bytes // 50:
            break


def place(path):
    """Byte offset in the volume of a file's first byte."""
    return int(EXTENT.findall(kit.output_of("filefrag", "-s", "-e", "-b1", path))[0])
