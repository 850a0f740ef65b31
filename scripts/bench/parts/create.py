"""The writer: full and incremental backups beside genuine Cinder's, beside read + sha256, and a volume that is mostly holes."""

import json
import os
import random
import shutil
import subprocess
import time

import bars
import kit
import readers
import volumes

TITLE = "Backups"
VOLUMES = "create"
CODECS = ("zlib", "zstd")
BARS = {"zlib": 3, "zstd": 10}
UNCHANGED, CHANGED, SPARSE = 0.8, 1.2, 2
RSS_MAX = 256 << 20
EXTENT, ISLAND = 64 << 10, 32 << 20
BLOCK = 32768
MIB = 1 << 20


class Backup:
    """One run of `cinderfs create`, and what it left in a fresh store, or beside its parent."""

    def __init__(self, run, store, image, *options):
        os.makedirs(store, exist_ok=True)
        begun = time.monotonic()
        process = subprocess.Popen([run.args.cinderfs, "create", "--quiet", *options, store, image], text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=run.environment())
        try:
            self.peak = kit.wait_watching(process, kit.READ_SECONDS_MAX)
            self.seconds = time.monotonic() - begun
        except BaseException:
            process.kill()
            process.wait()
            raise
        self.id = process.stdout.read().strip()
        process.stdout.close()
        if process.returncode != 0:
            raise kit.Failed("create of %s ended with %d" % (image, process.returncode))
        self.store, self.folder = store, os.path.join(store, self.id[:2], self.id[2:4], self.id)

    def objects_bytes(self):
        """What its objects take, a file of several names once."""
        stats = [os.stat(path) for path in kit.files_of(self.folder) if not path.endswith(("_metadata", "_sha256file"))]
        return sum({stat.st_ino: stat.st_size for stat in stats}.values())

    def check(self, run, image, ranges=None):
        """Compares it, or some ranges of it, with its source, through a mount."""
        with run.mount(self.store, "comparing a backup") as daemon:
            path = daemon.image(self.id)
            if ranges is None:
                same = readers.sha256(path) == readers.sha256(image)
            else:
                same = all(part(path, *one) == part(image, *one) for one in ranges)
            if not same:
                raise kit.Failed("the backup of %s is not what it was made of" % image)
        run.forget(daemon.cache_dir)


def part(path, offset, length):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def changed_copy(run, source, size):
    """The source with 1 % overwritten, in extents that do not touch."""
    path, dice = os.path.join(run.stores, "changed-%d" % size), random.Random("changed")
    if not os.path.exists(path):
        shutil.copyfile(source, path + ".part")
        places = dice.sample(range(0, size // EXTENT, 2), max(1, size // 100 // EXTENT))
        with open(path + ".part", "r+b") as file:
            for place in places:
                new = bytearray(part(source, dice.randrange(size - EXTENT), EXTENT))
                # No block as it was, also where zeros meet zeros.
                for at in range(0, EXTENT, BLOCK):
                    new[at:at + 8] = dice.randbytes(8)
                file.seek(place * EXTENT)
                file.write(new)
        os.rename(path + ".part", path)
    return path


def sparse_image(run, source, size, data):
    """Islands of the source in a sea of holes; the path, and where they are."""
    path, dice, islands = os.path.join(run.stores, "sparse-%d-%d" % (size, data)), random.Random("islands"), []
    length = min(ISLAND, data)
    stretch = size // (data // length)
    for number in range(data // length):
        islands.append((number * stretch + dice.randrange((stretch - length) // BLOCK) * BLOCK, length))
    if not os.path.exists(path):
        with open(path + ".part", "wb") as file:
            file.truncate(size)
            for number, (offset, _) in enumerate(islands):
                file.seek(offset)
                file.write(part(source, number * length, length))
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".part", path)
    return path, islands


def full_round(run, source, size, found, number):
    """Genuine Cinder and ours on one source; the order changes from round to round."""
    for codec in CODECS:
        def theirs(codec=codec):
            with kit.folder(kit.roomy_folder(2 * size, run.scratch), "cinderfs-bench-") as store:
                starting, seconds, peak, _ = run.cinder().back_up_timed(source, store, codec)
                files = [path for path in kit.files_of(store) if not path.endswith(("_metadata", "_sha256file"))]
                found["start"].append(starting)
                found["cinder", codec].append((seconds, peak, sum(map(os.path.getsize, files))))

        def ours(codec=codec):
            with kit.folder(kit.roomy_folder(2 * size, run.scratch), "cinderfs-bench-") as store:
                backup = Backup(run, store, source, "--compression", codec)
                found["ours", codec].append((backup.seconds, backup.peak, backup.objects_bytes()))
                if number == 0:
                    backup.check(run, source)
        for one in (theirs, ours) if number % 2 else (ours, theirs):
            try:
                one()
            except kit.Missing as error:
                kit.say("create: %s" % error)


def incremental_round(run, parent, source, changed, found, number):
    ceiling = subprocess.run([run.example("hash_ceiling"), source], stdout=subprocess.PIPE, check=True).stdout
    found["ceiling"].append(json.loads(ceiling)["seconds"])
    kinds = [("unchanged", source), ("changed", changed)]
    for kind, image in kinds if number % 2 else kinds[::-1]:
        backup = Backup(run, parent.store, image, "--parent", parent.id)
        found[kind].append((backup.seconds, backup.peak, backup.objects_bytes()))
        if number == 0:
            backup.check(run, image)
        shutil.rmtree(backup.folder)


def sparse_round(run, image, islands, found, number):
    for codec in CODECS:
        with kit.folder(run.scratch, "sparse-") as folder:
            backup = Backup(run, os.path.join(folder, "store"), image, "--compression", codec)
            found["sparse", codec].append((backup.seconds, backup.peak, backup.objects_bytes()))
            if number == 0:
                backup.check(run, image, [islands[0], islands[-1], (0, 1), (os.path.getsize(image) - 1, 1)])
            (digests,) = [path for path in kit.files_of(backup.folder) if path.endswith("_sha256file")]
            found["digests"] = os.path.getsize(digests)
            copy = os.path.join(folder, "copy")
            found["dd", codec].append(kit.timed(["dd", "if=" + digests, "of=" + copy, "bs=1M", "conv=fsync", "status=none"]))


def measure(run):
    if not run.has_verb("create"):
        yield "**%s**" % bars.NOT_BUILT
        return
    size = run.args.source_size
    source = volumes.mixed(run, "source", "zstd", size).expected
    changed = changed_copy(run, source, size)
    sparse, islands = sparse_image(run, source, run.args.sparse_size, min(run.args.sparse_data, size))
    found = {"start": [], "ceiling": [], "unchanged": [], "changed": []}
    for codec in CODECS:
        found |= {(what, codec): [] for what in ("cinder", "ours", "sparse", "dd")}
    with kit.folder(kit.roomy_folder(2 * size, run.scratch), "cinderfs-bench-") as store:
        parent = Backup(run, store, source)
        for number in run.each_round("create"):
            kit.warm(source)
            kit.warm(changed)
            full_round(run, source, size, found, number)
            incremental_round(run, parent, source, changed, found, number)
            sparse_round(run, sparse, islands, found, number)
    yield from tables(run, size, found)


def column(rows, place):
    return [row[place] for row in rows]


def tables(run, size, found):
    yield "| backup of %d MiB | seconds | MB/s | of the source stored | peak RSS, MiB | against |" % (size // MIB)
    yield "| --- | --- | --- | --- | --- | --- |"

    def row(what, rows, against):
        return "| %s | %s | %s | %.1f %% | %s | %s |" % (
            what, kit.spread(column(rows, 0), form="%.2f"), kit.spread([size / 1e6 / s for s in column(rows, 0)]),
            100 * column(rows, 2)[0] / size, kit.spread(column(rows, 1), MIB), against)
    for codec in CODECS:
        theirs, ours = found["cinder", codec], found["ours", codec]
        if not theirs:
            yield row("cinderfs, full, " + codec, ours, "")
            run.bars.put("create " + codec, "genuine Cinder could not be installed", None)
            continue
        faster = bars.ratios(column(ours, 0), column(theirs, 0))
        stored = column(ours, 2)[0] / column(theirs, 2)[0]
        yield row("genuine Cinder, full, " + codec, theirs, "")
        yield row("cinderfs, full, " + codec, ours, "%s x as fast, %.3f of the stored bytes" % (kit.spread(faster, form="%.1f"), stored))
        met = bars.at_least(faster, BARS[codec]) and (codec != "zlib" or stored <= 1)
        run.bars.put("create " + codec, "%s x, %.3f of the stored bytes" % (kit.spread(faster, form="%.1f"), stored), met)
    share = bars.ratios(column(found["unchanged"], 0), found["ceiling"])
    slower = bars.ratios(column(found["unchanged"], 0), column(found["changed"], 0))
    yield "| read + sha256 on all cores | %s | %s | | | |" % (
        kit.spread(found["ceiling"], form="%.2f"), kit.spread([size / 1e6 / s for s in found["ceiling"]]))
    yield row("cinderfs, no change", found["unchanged"], "%s of read + sha256" % kit.spread(share, form="%.2f"))
    yield row("cinderfs, 1 % changed", found["changed"], "%s of the time without change" % kit.spread(slower, form="%.2f"))
    run.bars.put("create unchanged", kit.spread(share, form="%.2f"), bars.at_least(share, UNCHANGED))
    run.bars.put("create changed", kit.spread(slower, form="%.2f"), bars.at_most(slower, CHANGED))
    yield ""
    yield "| sparse, %.0f GiB with %d MiB of data | seconds | peak RSS, MiB | stored, MiB | `dd` of its digest file, s | against `dd` |" % (
        run.args.sparse_size / (1 << 30), min(run.args.sparse_data, size) // MIB)
    yield "| --- | --- | --- | --- | --- | --- |"
    for codec in CODECS:
        rows = found["sparse", codec]
        slower = bars.ratios(found["dd", codec], column(rows, 0))
        yield "| cinderfs, %s | %s | %s | %.0f | %s | %s |" % (
            codec, kit.spread(column(rows, 0), form="%.2f"), kit.spread(column(rows, 1), MIB), column(rows, 2)[0] / MIB,
            kit.spread(found["dd", codec], form="%.2f"), kit.spread(slower, form="%.2f"))
        run.bars.put("create sparse", "%s %s" % (codec, kit.spread(slower, form="%.2f")), bars.at_most(slower, SPARSE))
    yield ""
    if found["start"]:
        yield "Genuine Cinder took %s s to start, which is not counted above." % kit.spread(found["start"], form="%.2f")
        yield ""
    ours = max(peak for key in found if key in ("unchanged", "changed") or key[0] in ("ours", "sparse") for peak in column(found[key], 1))
    theirs = [peak for codec in CODECS for peak in column(found["cinder", codec], 1)]
    run.bars.put("create rss", "at most %.0f MiB%s" % (
        ours / MIB, "; genuine Cinder %.0f MiB" % (max(theirs) / MIB) if theirs else ""), ours <= RSS_MAX)
