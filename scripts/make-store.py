#!/usr/bin/env python3
"""Writes a store of Cinder backups, exactly as Cinder 29's POSIX driver would: one full backup and N incrementals.

    make-store.py DIR --codec zlib --size 1G --mix text:40,random:30,zero:30 --incrementals 2 --change 1%

For benchmarks and tests that need volumes larger than the fixtures. The volume is a sequence of pieces of up to 4 MiB, each
text (cut from files of this machine's /usr/share and /usr/lib), random or zero; an incremental changes runs of up to 64 KiB at
random places; with --scatter it changes so many single blocks instead, none beside another, so each becomes an object of
its own. The same seed gives the same ids, layout and random bytes everywhere; text differs between machines unless
--corpus names the same folder. The image does not depend on the codec.

Objects are made by one process each, and no process holds more than a few MiB of one, so 2 GB objects are fine.
Prints JSON: for each backup id, parent, created_at, length and sha256 of the whole image.
"""

import argparse
import bz2
import concurrent.futures
import hashlib
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cinder_restore
import cinder_store as cinder

PIECE_BYTES_MAX = 4 << 20
CHANGE_BYTES_MAX = 64 << 10
CORPUS_BYTES = 128 << 20
CORPUS_FILE_BYTES_MAX = 4 << 20  # so that no one library is the whole corpus
COMPRESSED_SUFFIXES = (".gz", ".xz", ".bz2", ".zst", ".png", ".jpg", ".jpeg", ".mo.gz", ".woff", ".woff2", ".zip", ".jar")


def make_corpus(path, folders, seed, want):
    """Joins files, in an order that the seed decides, to about `want` bytes of what volumes hold."""
    names = []
    for folder in folders:
        for here, subfolders, files in os.walk(folder):
            subfolders.sort()
            names += [os.path.join(here, name) for name in sorted(files) if not name.endswith(COMPRESSED_SUFFIXES)]
    random.Random("%s:corpus" % seed).shuffle(names)
    total = 0
    with open(path, "wb") as out:
        for name in names:
            if total >= want:
                break
            try:
                if os.path.islink(name) or os.path.getsize(name) < 512:
                    continue
                with open(name, "rb") as file:
                    total += out.write(file.read(CORPUS_FILE_BYTES_MAX))
            except OSError:
                continue
    if total < PIECE_BYTES_MAX * 2:
        raise SystemExit("make-store: too few files for text under %s: %d bytes" % (", ".join(folders), total))


class Volume:
    """The volume's bytes in each version (0 = as of the full backup), made on demand and the same every time."""

    def __init__(self, seed, size, block, mix, change, scatter, incrementals, corpus_path):
        self.seed, self.size, self.block = seed, size, block
        with open(corpus_path, "rb") as file:
            self.corpus = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        # At least 64 pieces, so that the mix shows in small volumes too; whole blocks.
        self.piece = max(min(PIECE_BYTES_MAX, size // 64) // block, 1) * block
        count = -(-size // self.piece)
        kinds = []
        for kind, share in mix:
            kinds += [kind] * round(count * share / 100)
        kinds += [mix[0][0]] * (count - len(kinds))
        del kinds[count:]
        random.Random("%s:layout" % seed).shuffle(kinds)
        self.kinds = kinds
        # Which blocks each version wrote, as runs of (first block, blocks, kind); later versions win.
        blocks, run = -(-size // block), max(CHANGE_BYTES_MAX // block, 1)
        self.changes = [None]
        self.writer = {}
        for version in range(1, incrementals + 1):
            dice, left, runs = random.Random("%s:change:%d" % (seed, version)), round(blocks * change), []
            left = max(left, 1) if change else 0
            if scatter:
                # The odd blocks or the even ones, and never zeros, so that no two changes meet and each changes something.
                kinds = dice.choices(("text", "random"), (2, 1), k=scatter)
                halves = dice.sample(range(blocks // 2), scatter)
                runs = [(2 * half + version % 2, 1, kind) for half, kind in zip(halves, kinds)]
                left = 0
            while left > 0:
                length = min(dice.randint(1, run), left, blocks)
                first = dice.randrange(blocks - length + 1)
                runs.append((first, length, dice.choices(("text", "random", "zero"), (6, 3, 1))[0]))
                left -= length
            self.changes.append(runs)
            for first, length, kind in runs:
                for index in range(first, first + length):
                    self.writer.setdefault(index, []).append((version, kind))

    def _make(self, kind, label, length):
        if kind == "zero":
            return bytes(length)
        dice = random.Random("%s:%s" % (self.seed, label))
        if kind == "random":
            return dice.randbytes(length)
        # A cut at any byte, so that equal files do not give equal blocks.
        start = dice.randrange(len(self.corpus) - length)
        return self.corpus[start:start + length]

    def changed_blocks(self, version):
        """Sorted indices of the blocks that this version wrote, whether or not the bytes differ."""
        return sorted({i for first, length, _ in self.changes[version] for i in range(first, first + length)})

    def block_bytes(self, index, version):
        """One block, as of `version`."""
        length = min(self.block, self.size - index * self.block)
        for writer, kind in reversed(self.writer.get(index, ())):
            if writer <= version:
                return self._make(kind, "v%d:%d" % (writer, index), length)
        number, within = divmod(index * self.block, self.piece)
        return self._piece(number)[within:within + length]

    def _piece(self, number):
        if getattr(self, "_last", (None,))[0] != number:
            length = min(self.piece, self.size - number * self.piece)
            self._last = (number, self._make(self.kinds[number], "p%d" % number, length))
        return self._last[1]

    def stream(self, start, end, version):
        """The bytes [start, end) in parts of at most one piece. `start` is at a block's border."""
        while start < end:
            number, within = divmod(start, self.piece)
            data = self._piece(number)[within:within + end - start]
            blocks = range(start // self.block, -(-(start + len(data)) // self.block))
            touched = [i for i in blocks if i in self.writer] if version and self.writer else ()
            if touched:
                data = bytearray(data)
                for index in touched:
                    at = index * self.block - start
                    length = min(self.block, len(data) - at)
                    data[at:at + length] = self.block_bytes(index, version)[:length]
            yield data
            start += len(data)


class ImageFile:
    """The bytes of an existing image, as the one version of a volume."""

    def __init__(self, path, block):
        self.path, self.block, self.size = path, block, os.path.getsize(path)

    def stream(self, start, end, _version):
        with open(self.path, "rb", buffering=0) as file:
            while start < end:
                data = os.pread(file.fileno(), min(PIECE_BYTES_MAX // self.block * self.block, end - start), start)
                if not data:
                    raise SystemExit("make-store: %s became shorter" % self.path)
                yield data
                start += len(data)


class ZstdPipe:
    """One frame with its content size and no checksum, by the `zstd` command."""

    def __init__(self, path, length, level, threads):
        self.out = open(path, "wb")
        self.command = subprocess.Popen(
            ["zstd", "-q", "-c", "-%d" % level, "--no-check", "-T%d" % threads, "--stream-size=%d" % length],
            stdin=subprocess.PIPE, stdout=self.out)

    def write(self, data):
        self.command.stdin.write(data)

    def close(self):
        self.command.stdin.close()
        if self.command.wait() != 0:
            raise SystemExit("make-store: zstd failed")
        self.out.close()


class Encoder:
    """`none`, or an encoder object of the standard library, into a file."""

    def __init__(self, path, encoder):
        self.out, self.encoder = open(path, "wb"), encoder

    def write(self, data):
        self.out.write(self.encoder.compress(data) if self.encoder else data)

    def close(self):
        if self.encoder:
            self.out.write(self.encoder.flush())
        self.out.close()


def open_encoder(codec, path, length, level, threads):
    if codec == "zlib":
        return Encoder(path, zlib.compressobj(6 if level is None else level))
    if codec == "bz2":
        return Encoder(path, bz2.BZ2Compressor(9 if level is None else level))
    if codec == "zstd":
        return ZstdPipe(path, length, 3 if level is None else level, threads)
    return Encoder(path, None)


# Each worker process makes its own Volume once.
VOLUME = None


def start_worker(arguments):
    global VOLUME
    VOLUME = make_volume(arguments)


def make_volume(arguments):
    """A volume from its arguments: those of an image are two."""
    return ImageFile(*arguments) if len(arguments) == 2 else Volume(*arguments)


def write_object(path, codec, level, threads, start, end, version):
    """Writes one object; returns the codec it ended with, its md5, and the sha256 of each of its blocks."""
    md5, digests, rest = hashlib.md5(), [], b""
    encoder = open_encoder(codec, path, end - start, level, threads)
    for data in VOLUME.stream(start, end, version):
        md5.update(data)
        digests.append(cinder.block_digests(data, VOLUME.block))
        encoder.write(data)
    encoder.close()
    # What does not shrink is stored plain.
    if codec != "none" and os.path.getsize(path) >= end - start:
        codec = "none"
        with open(path, "wb") as out:
            for data in VOLUME.stream(start, end, version):
                out.write(data)
    os.chmod(path, 0o660)
    return codec, md5.hexdigest(), b"".join(digests)


def hash_image(version, image_path):
    """The sha256 of the whole image, which is also written, sparse, where a path is given."""
    sha, out = hashlib.sha256(), open(image_path, "wb") if image_path else None
    for data in VOLUME.stream(0, VOLUME.size, version):
        sha.update(data)
        if out and not any(memoryview(data)[:4096]) and not any(data):
            out.seek(len(data), os.SEEK_CUR)
        elif out:
            out.write(data)
    if out:
        out.truncate(VOLUME.size)
        out.close()
    return sha.hexdigest()


def extents(changed, block, object_size, size):
    """Runs of changed blocks, never across a border of the object size, as (start, end) in bytes."""
    per_window, runs = object_size // block, []
    for index in changed:
        if runs and runs[-1][1] == index and index % per_window != 0:
            runs[-1][1] = index + 1
        else:
            runs.append([index, index + 1])
    return [(first * block, min(last * block, size)) for first, last in runs]


def make(args):
    os.makedirs(args.dir, exist_ok=True)
    volume_id = cinder.seeded_uuid(args.seed, args.size, "volume", args.codec)
    report = {"store": os.path.abspath(args.dir), "codec": args.codec, "volume_id": volume_id, "size": args.size,
              "object_size": args.object_size, "block_size": args.block_size, "seed": args.seed, "backups": []}
    with tempfile.TemporaryDirectory(prefix="make-store-") as scratch:
        if args.image:
            shape = (args.image, args.block_size)
        else:
            corpus = os.path.join(scratch, "corpus")
            want = min(CORPUS_BYTES, max(args.size // 4, 16 << 20))
            make_corpus(corpus, args.corpus or ["/usr/share", "/usr/lib"], args.seed, want)
            shape = (args.seed, args.size, args.block_size, args.mix, args.change, args.scatter, args.incrementals, corpus)
        volume = make_volume(shape)
        windows = [(at, min(at + args.object_size, args.size)) for at in range(0, args.size, args.object_size)]
        # zstd makes the same frame with any number of workers; where there are fewer objects than CPUs it gets several.
        threads = max(args.jobs // len(windows), 1)
        with concurrent.futures.ProcessPoolExecutor(args.jobs, initializer=start_worker, initargs=(shape,)) as pool:
            versions = range(args.incrementals + 1)
            image_of = {args.incrementals: args.image_out, 0: args.full_image_out} if args.incrementals else {
                0: args.image_out or args.full_image_out}
            images = {}
            parent_id, digests = None, bytearray()
            for version in versions:
                backup = cinder.Backup(
                    args.dir, volume_id, cinder.seeded_uuid(args.seed, args.size, args.codec, version), version,
                    "bench #%d" % (version + 1), parent_id, args.size, args.block_size)
                backup.make_folder()
                if version == 0:
                    jobs = windows
                else:
                    differs = []
                    for index in volume.changed_blocks(version):
                        digest = hashlib.sha256(volume.block_bytes(index, version)).digest()
                        if digests[32 * index:32 * index + 32] != digest:
                            digests[32 * index:32 * index + 32] = digest
                            differs.append(index)
                    jobs = extents(differs, args.block_size, args.object_size, args.size)
                names = [backup.object_name(i + 1) for i in range(len(jobs))]
                made = [pool.submit(write_object, os.path.join(backup.folder, name), args.codec, args.level,
                                    threads if version == 0 else 1, start, end, version)
                        for name, (start, end) in zip(names, jobs)]
                # Queued behind the objects: it is the shorter job.
                images[version] = pool.submit(hash_image, version, image_of.get(version))
                for name, (start, end), future in zip(names, jobs, made):
                    codec, md5, of_object = future.result()
                    backup.add_object(name, codec, start, end - start, md5)
                    if version == 0:
                        digests += of_object
                backup.write_digests([cinder.digest_slots(digests)])
                backup.write_metadata()
                report["backups"].append({
                    "id": backup.backup_id, "parent_id": parent_id, "container": backup.container,
                    "prefix": backup.prefix, "created_at": backup.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "length": args.size, "objects": len(jobs), "sha256": None,
                    "stored_bytes": sum(os.path.getsize(os.path.join(backup.folder, name)) for name in names)})
                parent_id = backup.backup_id
            for version in versions:
                report["backups"][version]["sha256"] = images[version].result()
    return report


def self_check(genuine):
    """Makes small stores, restores them, compares them with what genuine Cinder wrote. Returns how many images."""
    paths = []
    for here, _, files in os.walk(genuine):
        paths += [os.path.join(here, name.removesuffix("_metadata")) for name in files if name.endswith("_metadata")]
    assert paths, "no genuine store at %s" % genuine
    genuine_shape, checked = cinder_restore.shape(sorted(paths)[0]), 0
    codecs = ["none", "zlib", "bz2"] + (["zstd"] if shutil.which("zstd") else [])
    for codec in codecs:
        # 70 windows or 3, a size that is no multiple of anything, and blocks of 512 bytes.
        for size, object_size, block in ((6 << 20, 2 << 20, 32768), ((1 << 20) + 777, 15 * 1024, 512)):
            with tempfile.TemporaryDirectory(prefix="make-store-") as store:
                image_out = os.path.join(store, "image")
                args = parse([os.path.join(store, "s"), "--codec", codec, "--size", str(size), "--object-size",
                              str(object_size), "--block-size", str(block), "--incrementals", "3", "--change", "4%",
                              "--image-out", image_out])
                report, chain, parent, before, plain = make(args), [], None, None, 0
                for made in report["backups"]:
                    path = os.path.join(store, "s", made["container"], made["prefix"])
                    with open(path + "_metadata", "rb") as file:
                        assert json.load(file)["parent_id"] == parent
                    parent = made["id"]
                    assert cinder_restore.shape(path) == genuine_shape, "%s is not shaped like %s" % (path, paths[0])
                    chain.append(path + "_metadata")
                    image = cinder_restore.restore(chain, size)
                    assert hashlib.sha256(image).hexdigest() == made["sha256"], "image of %s" % path
                    with open(path + "_sha256file", "rb") as file:
                        digests = json.load(file)["sha256s"]
                    assert "".join(digests) == cinder.block_digests(image, block).hex(), "digests of %s" % path
                    plain += cinder_restore.check_extents(path + "_metadata", object_size, before, digests, block)
                    before, checked = digests, checked + 1
                assert plain or object_size > 1 << 20, "no object of random data was stored plain"
                with open(image_out, "rb") as file:
                    assert file.read() == image, "--image-out differs"
    return checked


def parse_mix(text):
    mix = [(kind, float(share)) for kind, share in (part.split(":") for part in text.split(","))]
    if any(kind not in ("text", "random", "zero") for kind, _ in mix) or abs(sum(s for _, s in mix) - 100) > 0.01:
        raise argparse.ArgumentTypeError("expected kinds text, random, zero whose shares sum to 100, not %r" % text)
    return mix


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", help="the store; made if it does not exist")
    parser.add_argument("--codec", choices=("zlib", "bz2", "zstd", "none"), default="zlib")
    parser.add_argument("--level", type=int, help="default as Cinder: zlib 6, bz2 9, zstd 3")
    parser.add_argument("--size", type=cinder.parse_size, default="1G")
    parser.add_argument("--object-size", type=cinder.parse_size, default="1999994880")
    parser.add_argument("--block-size", type=cinder.parse_size, default="32768")
    parser.add_argument("--mix", type=parse_mix, default="text:40,random:30,zero:30")
    parser.add_argument("--incrementals", type=int, default=0)
    parser.add_argument("--change", type=lambda text: float(text.rstrip("%")) / 100, default="1%", help="per incremental")
    parser.add_argument("--scatter", type=int, default=0, metavar="BLOCKS", help="single blocks per incremental, not --change")
    parser.add_argument("--image", metavar="FILE", help="back this file up instead; not with --size, --mix, --incrementals")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--corpus", action="append", metavar="DIR", help="where text comes from; repeatable")
    parser.add_argument("--image-out", metavar="FILE", help="also write the newest image, sparse")
    parser.add_argument("--full-image-out", metavar="FILE", help="also write the full backup's image, sparse")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--self-check", metavar="GENUINE", nargs="?", const=os.path.join(
        os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "stores", "zlib-chain"),
        help="make small stores, restore them and compare them with a genuine one")
    args = parser.parse_args(argv)
    if args.dir is None and args.self_check is None:
        parser.error("the store's directory is missing")
    if args.image:
        if args.incrementals or args.image_out or args.full_image_out:
            parser.error("--image makes one full backup of a file that is there")
        args.image, args.size = os.path.abspath(args.image), os.path.getsize(args.image)
    if args.scatter > args.size // args.block_size // 2:
        parser.error("--scatter takes at most every other block")
    if args.object_size % args.block_size:
        parser.error("--object-size must be a multiple of --block-size: Cinder refuses it as well")
    return args


def main():
    args = parse(None)
    if args.self_check is not None:
        print("%d images restored, all equal" % self_check(args.self_check))
    else:
        json.dump(make(args), sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
