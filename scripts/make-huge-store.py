#!/usr/bin/env python3
"""Writes the chain of a very large, almost empty volume: one full backup and two incrementals.

    make-huge-store.py DIR --size 1T

Opening a backup must cost the same at any size, and what grows with the size is `_sha256file`: 2.25 GiB of JSON for each
backup of a 1 TiB volume. Everything is as Cinder 29 would have written it with zlib and default sizes: 550 objects that
cover the volume, every digest, every md5. It takes seconds since nearly every object is the same 2 GB of zeros, compressed once
and hard-linked. Data stands at the volume's start, in the middle of its middle object, and at its end; the incrementals change
64 small extents each. All of it depends on the seed alone.

Needs about 7 GiB of disk for 1 TiB. Prints JSON: the backups, and probes (offset, length and the sha256 of what must be read
there in the newest backup).
"""

import argparse
import bisect
import concurrent.futures
import hashlib
import json
import os
import random
import sys
import tempfile
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cinder_restore
import cinder_store as cinder

INCREMENTALS = 2
CHANGED_EXTENTS = 64
CHANGED_BLOCKS_MAX = 8
PROBE_BYTES = 4096
BUFFER_BYTES = 4 << 20


def make_block(seed, version, index, length):
    """Text that compresses two to one, different in every block."""
    return random.Random("%s:%d:%d" % (seed, version, index)).randbytes(length // 2 + 1).hex().encode()[:length]


class Volume:
    """Which blocks hold data, and since which version; everything else is zero."""

    def __init__(self, seed, size, object_size, block):
        self.seed, self.size, self.block, self.object_size = seed, size, block, object_size
        self.blocks = -(-size // block)
        per_object, objects = object_size // block, -(-size // object_size)
        run = min(512, per_object // 4)
        starts = (0, objects // 2 * per_object + per_object // 2, self.blocks - run)
        self.written = [sorted({i for start in starts for i in range(start, start + run)})]
        for version in range(1, INCREMENTALS + 1):
            dice, changed = random.Random("%s:change:%d" % (seed, version)), set()
            for _ in range(CHANGED_EXTENTS):
                start = dice.randrange(self.blocks - CHANGED_BLOCKS_MAX)
                changed.update(range(start, start + dice.randint(1, CHANGED_BLOCKS_MAX)))
            self.written.append(sorted(changed))
        self.version_of = {i: version for version, indices in enumerate(self.written) for i in indices}

    def read_block(self, index, version):
        length = min(self.block, self.size - index * self.block)
        for writer in range(version, -1, -1):
            indices = self.written[writer]
            at = bisect.bisect_left(indices, index)
            if at < len(indices) and indices[at] == index:
                return make_block(self.seed, writer, index, length)
        return bytes(length)

    def extents(self, version):
        """The objects of one version as (first block, end block)."""
        per_object = self.object_size // self.block
        if version == 0:
            return [(at, min(at + per_object, self.blocks)) for at in range(0, self.blocks, per_object)]
        runs = []
        for index in self.written[version]:
            if runs and runs[-1][1] == index and index % per_object != 0:
                runs[-1][1] = index + 1
            else:
                runs.append([index, index + 1])
        return [tuple(run) for run in runs]

    def stream(self, first, end, version):
        """The bytes of blocks [first, end): zeros in large buffers, data block by block."""
        zeros = memoryview(bytes(BUFFER_BYTES // self.block * self.block or self.block))
        at, per_buffer, nonzero = first, len(zeros) // self.block, self.nonzero(version)
        while at < end:
            upcoming = bisect.bisect_left(nonzero, at)
            data_at = nonzero[upcoming] if upcoming < len(nonzero) else end
            if data_at == at:
                yield self.read_block(at, version)
                at += 1
                continue
            until = min(data_at, end, at + per_buffer)
            yield zeros[:min(until * self.block, self.size) - at * self.block]
            at = until

    def nonzero(self, version):
        return sorted({i for indices in self.written[:version + 1] for i in indices})


def write_object(volume, path, first, end, version):
    """One zlib object, as Cinder compresses it. Returns the codec and md5 of its plain bytes."""
    md5, encoder = hashlib.md5(), zlib.compressobj(6)
    with open(path, "wb") as out:
        for data in volume.stream(first, end, version):
            md5.update(data)
            out.write(encoder.compress(data))
        out.write(encoder.flush())
    plain_bytes = min(end * volume.block, volume.size) - first * volume.block
    assert os.path.getsize(path) < plain_bytes, "Cinder would have stored %s plain" % path
    os.chmod(path, 0o660)
    return md5.hexdigest()


def digest_text(volume, version):
    """The text of all digests' slots, in parts: the zero block's over and over, others where data is."""
    zero = cinder.digest_slots(hashlib.sha256(bytes(volume.block)).digest())
    zeros = memoryview(zero * (BUFFER_BYTES // len(zero)))
    def run(count):
        while count > 0:
            part = min(count, len(zeros) // len(zero))
            yield zeros[:part * len(zero)]
            count -= part
    at, special = 0, volume.nonzero(version)
    if volume.size % volume.block:
        special = sorted({*special, volume.blocks - 1})
    for index in special:
        yield from run(index - at)
        yield cinder.digest_slots(hashlib.sha256(volume.read_block(index, version)).digest())
        at = index + 1
    yield from run(volume.blocks - at)


def write_digests(volume, backup, version):
    backup.write_digests(digest_text(volume, version))


def make(args):
    volume = Volume(args.seed, args.size, args.object_size, args.block_size)
    volume_id = cinder.seeded_uuid(args.seed, args.size, "huge")
    report = {"store": os.path.abspath(args.dir), "codec": "zlib", "volume_id": volume_id, "size": args.size,
              "block_size": args.block_size, "backups": []}
    parent_id, waiting = None, []
    with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        for version in range(INCREMENTALS + 1):
            backup = cinder.Backup(args.dir, volume_id, cinder.seeded_uuid(args.seed, args.size, "huge", version), version,
                                   "huge #%d" % (version + 1), parent_id, args.size, args.block_size)
            backup.make_folder()
            jobs, first_like, made = volume.extents(version), {}, []
            with_data = volume.nonzero(version)
            for number, (first, end) in enumerate(jobs, 1):
                name = backup.object_name(number)
                at = bisect.bisect_left(with_data, first)
                zero = not (at < len(with_data) and with_data[at] < end)
                # Objects of zeros that are equally long are equal: compress the first, link the others to it.
                length = min(end * volume.block, volume.size) - first * volume.block
                if zero and length in first_like:
                    made.append((name, first, length, *first_like[length]))
                    continue
                future = pool.submit(write_object, volume, os.path.join(backup.folder, name), first, end, version)
                made.append((name, first, length, None, future))
                if zero:
                    first_like[length] = (name, future)
            waiting.append((backup, made, pool.submit(write_digests, volume, backup, version)))
            report["backups"].append({"id": backup.backup_id, "parent_id": parent_id, "container": backup.container,
                                      "prefix": backup.prefix, "length": args.size, "objects": len(jobs)})
            parent_id = backup.backup_id
        for backup, made, digests in waiting:
            for name, first, length, like, future in made:
                md5 = future.result()
                if like:
                    os.link(os.path.join(backup.folder, like), os.path.join(backup.folder, name))
                backup.add_object(name, "zlib", first * volume.block, length, md5)
            digests.result()
            backup.write_metadata()

    newest = INCREMENTALS
    places = [("start of the volume", 0), ("middle of an object of zeros", volume.written[0][len(volume.written[0]) // 2]),
              ("end of the volume", volume.blocks - 1), ("an incremental's extent", volume.written[newest][0]),
              ("zeros", volume.object_size // volume.block + 1)]
    report["probes"] = []
    for what, index in places:
        data = volume.read_block(index, newest)[:PROBE_BYTES]
        report["probes"].append({"what": what, "offset": index * volume.block, "length": len(data),
                                 "sha256": hashlib.sha256(data).hexdigest()})
    return report


def self_check():
    """The same chain of 48 MiB, restored as Cinder does and compared with its digests and probes."""
    for size in (48 << 20, (48 << 20) - 100):
        with tempfile.TemporaryDirectory(prefix="make-huge-store-") as store:
            report, chain = make(parse([store, "--size", str(size), "--object-size", "4M"])), []
            for made in report["backups"]:
                path = os.path.join(store, made["container"], made["prefix"])
                cinder_restore.shape(path)
                chain.append(path + "_metadata")
                image = cinder_restore.restore(chain, size)
                with open(path + "_sha256file", "rb") as file:
                    digests = json.load(file)["sha256s"]
                assert "".join(digests) == cinder.block_digests(image, 32768).hex(), "digests of %s" % path
            for probe in report["probes"]:
                data = image[probe["offset"]:probe["offset"] + probe["length"]]
                assert hashlib.sha256(data).hexdigest() == probe["sha256"], probe
                assert (probe["what"] == "zeros") == (not any(data)), probe


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", help="the store; made if it does not exist")
    parser.add_argument("--size", type=cinder.parse_size, default="1T")
    parser.add_argument("--object-size", type=cinder.parse_size, default="1999994880")
    parser.add_argument("--block-size", type=cinder.parse_size, default="32768")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--self-check", action="store_true", help="make a small chain, restore it and compare")
    args = parser.parse_args(argv)
    if args.dir is None and not args.self_check:
        parser.error("the store's directory is missing")
    return args


def main():
    args = parse(None)
    if args.self_check:
        self_check()
        print("the chain restored, all equal")
    else:
        os.makedirs(args.dir, exist_ok=True)
        json.dump(make(args), sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
