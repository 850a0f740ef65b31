#!/usr/bin/env python3
"""Measures cinderfs beside its limits, in one run, and prints a Markdown table.

Run it as scripts/bench.sh, which builds first. What the figures mean stands in docs/PERFORMANCE.md. A wrong byte anywhere, a
daemon that dies or a mount left behind ends the run with status 1 and no table.
"""

import argparse
import datetime
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

SCRIPTS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, SCRIPTS)
import bench_kit as kit
import cinder_store as cinder

MIB = 1 << 20
CACHE_LIMIT = "64M"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOTES = os.path.join(SCRIPTS, "..", "docs", "PERFORMANCE.md")


class Row:
    """One volume that is read: a store, which of its backups, and the limits it is compared with."""

    def __init__(self, label, codec, size, object_size=1999994880, incrementals=0):
        self.label, self.codec, self.size = label, codec, size
        self.object_size, self.incrementals = object_size, incrementals
        self.seconds = {"mount": [], "file": [], "stdout": [], "ceiling": [], "decode": [], "decode_hash": []}


def say(text):
    print("bench: " + text, file=sys.stderr, flush=True)


class Bench:
    """Stores are made in `stores` and may be left there for the next run; `scratch` is this run's."""

    def __init__(self, args, stores, scratch):
        self.args, self.stores, self.scratch = args, stores, scratch
        self.mountpoint = tempfile.mkdtemp(prefix="mnt-", dir=scratch)

    # -- parts --

    def mount(self, store, options=None):
        """A daemon that has seen nothing yet: fresh cache directory, fresh page cache of its images."""
        command = [self.args.cinderfs, "mount", "-f", store, self.mountpoint]
        cache = tempfile.mkdtemp(prefix="cache-", dir=self.scratch)
        return kit.Daemon(command + (["-o", options] if options else []), self.mountpoint, {"CINDERFS_CACHE_DIR": cache})

    def image(self, backup):
        return os.path.join(self.mountpoint, "backups", backup["id"], "volume.img")

    def make(self, row):
        """The row's store, its newest backup and that image as a file. Made once, also across runs in one directory."""
        name = "%s-%d-%d-%d" % (row.codec, row.size, row.object_size, row.incrementals)
        row.store, row.expected = os.path.join(self.stores, name), os.path.join(self.stores, name + ".img")
        listing = os.path.join(self.stores, name + ".json")
        if not os.path.exists(listing):
            say("making %s" % name)
            made = subprocess.run(
                [sys.executable, os.path.join(SCRIPTS, "make-store.py"), row.store, "--codec", row.codec,
                 "--size", str(row.size), "--object-size", str(row.object_size), "--incrementals",
                 str(row.incrementals), "--image-out", row.expected], stdout=subprocess.PIPE, check=True).stdout
            with open(listing + ".part", "wb") as out:
                out.write(made)
            os.rename(listing + ".part", listing)
        with open(listing) as file:
            report = json.load(file)
        row.backup, full = report["backups"][-1], report["backups"][0]
        folder = os.path.join(row.store, full["container"])
        row.objects = sorted(path for path in kit.files_of(folder) if path[-5:].isdigit())
        with open(os.path.join(folder, full["prefix"] + "_metadata")) as file:
            stored_as = {facts["compression"] for entry in json.load(file)["objects"] for facts in entry.values()}
        if stored_as != {row.codec}:
            raise kit.Failed("objects of %s are stored as %s" % (name, stored_as))

    # -- speed --

    def restore_target(self, size):
        """Memory where there is room for it, so that the disk is not what is measured."""
        free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize if os.path.isdir("/dev/shm") else 0
        roomy = free > 2 * size and kit.available_memory() > 3 * size
        return "/dev/shm" if roomy else self.scratch

    def speed_round(self, row, first):
        kit.warm(row.store)
        with kit.Daemon([os.path.join(self.args.examples, "fuse_ceiling"), self.mountpoint, str(row.size)], self.mountpoint):
            row.seconds["ceiling"].append(self.dd(os.path.join(self.mountpoint, "volume.img")))
        with self.mount(row.store):
            row.seconds["mount"].append(self.dd(self.image(row.backup)))
        decoded = json.loads(subprocess.run(
            [os.path.join(self.args.examples, "decode_speed"), row.codec, *row.objects],
            stdout=subprocess.PIPE, check=True).stdout)
        if decoded["plain_bytes"] != row.size:
            raise kit.Failed("%s decoded to %d bytes" % (row.objects, decoded["plain_bytes"]))
        row.seconds["decode"].append(decoded["decode"]["wall"])
        row.seconds["decode_hash"].append(decoded["decode_hash"]["wall"])
        with kit.folder(self.restore_target(row.size), "cinderfs-bench-") as folder:
            target = os.path.join(folder, "volume.img")
            command = [self.args.cinderfs, "restore", row.store, row.backup["id"]]
            cache = {**os.environ, "CINDERFS_CACHE_DIR": tempfile.mkdtemp(prefix="cache-", dir=self.scratch)}
            row.seconds["file"].append(kit.timed([*command, target], stdout=subprocess.DEVNULL, env=cache))
            if first and sha256_of(target) != row.backup["sha256"]:
                raise kit.Failed("restore of %s wrote wrong bytes" % row.label)
            row.seconds["stdout"].append(kit.timed([*command, "-"], stdout=subprocess.DEVNULL, env=cache))

    def dd(self, path):
        return kit.timed(["dd", "if=" + path, "of=/dev/null", "bs=1M", "status=none"])

    def speed(self, rows):
        # Round by round, so that a change of load meets every row and every limit alike.
        for number in range(self.args.runs):
            for row in rows:
                say("speed, round %d of %d: %s" % (number + 1, self.args.runs, row.label))
                self.speed_round(row, number == 0)
        yield ("| volume | mount | restore to a file | restore to stdout | decode, 1 core | decode + sha256, 1 core "
               "| FUSE ceiling | mount / decode | mount / ceiling | restore / decode |")
        yield "|" + " --- |" * 10
        for row in rows:
            rate = {what: [row.size / 1e6 / s for s in seconds] for what, seconds in row.seconds.items()}
            def ratio(of, to):
                return "%.2f" % statistics.median(b / a for a, b in zip(row.seconds[of], row.seconds[to]))
            cells = [kit.spread(rate[what]) for what in ("mount", "file", "stdout", "decode", "decode_hash", "ceiling")]
            cells += [ratio("mount", "decode"), ratio("mount", "ceiling"), ratio("file", "decode")]
            yield "| %s | %s |" % (row.label, " | ".join(cells))

    # -- memory --

    def memory(self, rows):
        yield "| volume | peak RSS, end to end | peak RSS, random | random reads | p50 ms | p99 ms |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for row in rows:
            say("memory: %s" % row.label)
            kit.warm(row.store)
            with self.mount(row.store, "cache_size=" + CACHE_LIMIT) as daemon:
                if sha256_of(self.image(row.backup)) != row.backup["sha256"]:
                    raise kit.Failed("%s read end to end is not the volume" % row.label)
                through = daemon.peak_rss()
            with self.mount(row.store, "cache_size=" + CACHE_LIMIT) as daemon:
                waits = self.random_reads(row)
                at_random = daemon.peak_rss()
            waits.sort()
            yield "| %s | %.0f MiB | %.0f MiB | %d | %.1f | %.1f |" % (
                row.label, through / MIB, at_random / MIB, len(waits), 1e3 * waits[len(waits) // 2],
                1e3 * waits[min(len(waits) - 1, len(waits) * 99 // 100)])

    def random_reads(self, row):
        """Seconds of each read of 4 KiB to 1 MiB anywhere in the image, each compared with the volume."""
        dice, waits = random.Random("reads"), []
        deadline = time.monotonic() + self.args.random_seconds
        image, expected = os.open(self.image(row.backup), os.O_RDONLY), os.open(row.expected, os.O_RDONLY)
        try:
            os.posix_fadvise(image, 0, 0, os.POSIX_FADV_RANDOM)
            while len(waits) < self.args.random_count and time.monotonic() < deadline:
                length = int(4096 * 256 ** dice.random())
                offset = dice.randrange(row.size - length)
                started = time.monotonic()
                data = os.pread(image, length, offset)
                waits.append(time.monotonic() - started)
                if data != os.pread(expected, length, offset):
                    raise kit.Failed("%s: wrong bytes in [%d, +%d)" % (row.label, offset, length))
        finally:
            os.close(image)
            os.close(expected)
        return waits

    # -- opening --

    def opening(self):
        size = self.args.huge_size
        store, listing = os.path.join(self.stores, "huge-%d" % size), os.path.join(self.stores, "huge-%d.json" % size)
        if not os.path.exists(listing):
            say("making a chain of %d GiB" % (size >> 30))
            options = ["--object-size", "256M"] if self.args.quick else []
            made = subprocess.run([sys.executable, os.path.join(SCRIPTS, "make-huge-store.py"), store, "--size", str(size),
                                   *options], stdout=subprocess.PIPE, check=True).stdout
            with open(listing + ".part", "wb") as out:
                out.write(made)
            os.rename(listing + ".part", listing)
        with open(listing) as file:
            report = json.load(file)
        yield "| first 4 KiB read | store | mount ready | mount + read | peak RSS |"
        yield "| --- | --- | --- | --- | --- |"
        digests = 3 * size // report["block_size"] * cinder.DIGEST_SLOT
        fits = kit.available_memory() > 1.5 * digests
        for state in (["warm"] if fits else []) + ["cold"]:
            for probe in report["probes"]:
                say("opening, %s: %s" % (state, probe["what"]))
                if state == "warm":
                    kit.warm(store)
                ready, done, peak, how = [], [], [], state
                for _ in range(self.args.runs):
                    if state == "cold":
                        how = "cold (%s)" % kit.chill(store, everything=not self.args.quick)
                    with self.mount(store) as daemon:
                        ready.append(daemon.ready_seconds)
                        image = os.open(self.image(report["backups"][-1]), os.O_RDONLY)
                        try:
                            data = os.pread(image, probe["length"], probe["offset"])
                        finally:
                            os.close(image)
                        done.append(time.monotonic() - daemon.started)
                        peak.append(daemon.peak_rss())
                    if hashlib.sha256(data).hexdigest() != probe["sha256"]:
                        raise kit.Failed("opening: wrong bytes at %d" % probe["offset"])
                yield "| %s | %s | %s s | %s s | %s MiB |" % (
                    probe["what"], how, kit.spread(ready, form="%.3f"), kit.spread(done, form="%.3f"), kit.spread(peak, MIB))


def sha256_of(path):
    sha = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(MIB):
            sha.update(data)
    return sha.hexdigest()


def rows_of(args):
    size, small = args.size, args.bz2_size
    rows = [Row("none", "none", size), Row("zlib", "zlib", size), Row("zstd", "zstd", size),
            Row("bz2, %d MiB" % (small // MIB), "bz2", small),
            Row("zlib, 50 MiB objects", "zlib", size, object_size=52428800),
            Row("zlib, chain of 3", "zlib", size, incrementals=2)]
    return [row for row in rows if row.codec in args.codec]


def output_of(*command):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=SCRIPTS, check=False)
    except OSError:
        return ""
    return done.stdout.decode().strip()


def measure(args, stores, scratch):
    load = os.getloadavg()
    bench, rows = Bench(args, stores, scratch), rows_of(args)
    for row in rows:
        bench.make(row)
    parts = []
    if "speed" in args.part:
        parts += ["### Sequential, MB/s (10^6 bytes of the volume per second)", "", *bench.speed(rows), ""]
    if "memory" in args.part:
        parts += ["### Memory, `cache_size=%s`" % CACHE_LIMIT, "", *bench.memory(rows), ""]
    if "opening" in args.part:
        parts += ["### Opening a chain of three backups of a %d GiB volume" % (args.huge_size >> 30), "",
                  *bench.opening(), ""]
    later = os.getloadavg()
    facts = [
        "Measured %s at `%s` with %s." % (
            datetime.date.today(), output_of("git", "describe", "--always", "--dirty") or "unknown", output_of("rustc", "-V")),
        "%s. Load average %.1f at the start, %.1f at the end." % (kit.machine_facts(), load[0], later[0]),
        "Volumes of %d MiB%s; median of %d (least-greatest)." % (
            args.size // MIB, ", bz2 %d MiB" % (args.bz2_size // MIB) if "bz2" in args.codec else "", args.runs),
        "The FUSE ceiling ran %s root, so its read-ahead was %s." % (
            ("as", "1 MiB") if os.geteuid() == 0 else ("without", "the kernel's 128 KiB")),
    ]
    if args.quick:
        facts.append("**A smoke test (`--quick`): too small to be a measurement.**")
    return "\n".join([*facts, "", *parts]).rstrip() + "\n"


def write_into(path, table):
    with open(path) as file:
        text = file.read()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise kit.Failed("%s has no place between %s and %s" % (path, BEGIN, END))
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with open(path, "w") as file:
        file.write("%s%s\n%s%s%s" % (before, BEGIN, table, END, after))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cinderfs", help="the binary (default: target/release/cinderfs)", default="target/release/cinderfs")
    parser.add_argument("--examples", help="folder of fuse_ceiling and decode_speed", default="target/release/examples")
    parser.add_argument("--quick", action="store_true", help="small sizes, one run: a smoke test under a minute")
    parser.add_argument("--runs", type=int, help="default 5, with --quick 1")
    parser.add_argument("--codec", action="append", choices=("none", "zlib", "bz2", "zstd"), help="repeatable; default all")
    parser.add_argument("--part", action="append", choices=("speed", "memory", "opening"), help="repeatable; default all")
    parser.add_argument("--size", type=cinder.parse_size, help="of each volume; default 1G")
    parser.add_argument("--bz2-size", type=cinder.parse_size, help="default 256M: it decodes at a twentieth of zlib's speed")
    parser.add_argument("--huge-size", type=cinder.parse_size, help="of the chain that is opened; default 1T")
    parser.add_argument("--random-count", type=int, default=2000)
    parser.add_argument("--random-seconds", type=float, help="default 20")
    parser.add_argument("--write", action="store_true", help="also put the table into docs/PERFORMANCE.md")
    args = parser.parse_args()
    args.codec = args.codec or ["none", "zlib", "zstd", "bz2"]
    args.part = args.part or ["speed", "memory", "opening"]
    args.runs = args.runs or (1 if args.quick else 5)
    args.size = args.size or (48 * MIB if args.quick else 1 << 30)
    args.bz2_size = args.bz2_size or (12 * MIB if args.quick else 256 * MIB)
    args.huge_size = args.huge_size or (4 << 30 if args.quick else 1 << 40)
    args.random_seconds = args.random_seconds or (1 if args.quick else 20)
    args.cinderfs, args.examples = os.path.abspath(args.cinderfs), os.path.abspath(args.examples)
    return args


def main():
    args = parse()
    # SIGTERM unwinds like SIGINT, so that every `with` unmounts what it mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = os.environ.get("CINDERFS_BENCH_DIR")
    try:
        if given:
            os.makedirs(given, exist_ok=True)
            with kit.folder(given, "run-") as scratch:
                table = measure(args, given, scratch)
        else:
            with kit.folder("/var/tmp", "cinderfs-bench-") as work:
                table = measure(args, work, work)
        if args.write:
            write_into(NOTES, table)
    except (kit.Failed, subprocess.SubprocessError, OSError) as error:
        say(str(error))
        return 1
    sys.stdout.write(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
