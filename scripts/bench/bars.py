"""The bars: what a release must reach, and what was measured against it.

A bar that was missed stands in the table as missed. One that this run did not measure keeps the line that an earlier run
wrote, with that run's commit beside it; one that nothing has measured says so.
"""

import statistics

HEAD = ["| measure | at least | measured: median (least-greatest) | met | at |", "| --- | --- | --- | --- | --- |"]

# In the order of the table: key -> what is measured, what it must reach.
BARS = {
    "random zlib": ("cold 4 KiB read at random offsets of a 2 GB single-stream zlib object, index present: p50 and p99, "
                    "against one full decode of that object", "1/400, 1/100"),
    "random bz2": ("the same for bz2 (of a 500 MB object)", "1/400, 1/100"),
    "recording": ("first sequential pass that records restart points, against one that does not", "<= 1.10x the time"),
    "index size": ("index size against plain size", "<= 1 %"),
    "sequential, no index": ("sequential `dd` through the mount, zlib default objects, no index yet, against the FUSE ceiling",
                             "0.6"),
    "sequential, index": ("the same for zstd, and for zlib with index",
                          "0.65, and ahead of qemu-storage-daemon's zstd qcow2 and of squashfs-zstd-1M"),
    "sequential, warm": ("sequential `dd`, warm block cache, against the FUSE ceiling", "0.9"),
    "restore": ("`restore` of a 4 GiB volume, zlib default objects, against genuine Cinder's restore of the same store",
                "8x faster, RSS <= 1/10"),
    "first file": ("mount + loop mount + read one file, 4 GiB ext4 volume with zlib default objects, against genuine Cinder's "
                   "restore + the same", "15x faster without index, 100x with"),
    "iops": ("random 4 KiB IOPS, cold, 1 and 4 jobs, genuine default zlib with index, against the best of restic, rustic and "
             "borg mount", "1.5x"),
    "created": ("random 4 KiB IOPS, cold, 1 job, of a backup that `create` wrote (zlib, zstd), without index, against "
                "qemu-storage-daemon's FUSE export of a zlib qcow2", "more than 1x"),
    "bytes": ("compressed bytes fetched from the store for one cold 4 KiB read, against the compressed distance between two "
              "restart points", "<= 1.2x"),
    "rss": ("peak RSS of the daemon in every run of this page, less its cache_size", "<= 96 MiB"),
    "chain": ("a chain of 30 incrementals with 100,000 one-block objects: first read after mount; steady random read against "
              "the same volume as one full backup", "< 1 s; within 1.3x"),
    "create zlib": ("`create`, a full zlib backup, against genuine Cinder's backup of the same source: throughput; stored bytes",
                    "3x; no more"),
    "create zstd": ("the same for zstd: throughput", "10x"),
    "create unchanged": ("`create --parent` without any change: throughput, against read + sha256 on all cores", "0.8"),
    "create changed": ("`create --parent` with 1 % changed in extents of 64 KiB: time, against that without change", "<= 1.2x"),
    "create sparse": ("`create`, 1 TiB with 2 GiB of data, the rest holes: time, against `dd` of its digest file, fsync included",
                      "<= 2x"),
    "remote sequential": ("an object store 20 ms away: `restore` to stdout and `dd` through the mount, one object of 1 GiB, against parallel "
                          "ranged GETs of the same stored bytes", "0.7"),
    "remote bytes": ("the same: stored bytes fetched for one random 4 KiB read, against the distance between two restart points, of "
                     "`index` and of `create`", "<= 1.2x"),
    "create rss": ("peak RSS of every `create` of this page", "<= 256 MiB"),
}

NOT_BUILT = "not built yet"


class Bars:
    """What this run found. Part of a bar may be missing; the bar is met only when all of it is."""

    def __init__(self):
        self.found = {}

    def put(self, key, measured, met):
        """`measured` is text; `met` is a bool, or None where it could not be measured."""
        texts, so_far = self.found.get(key, ([], []))
        self.found[key] = (texts + [measured], so_far + [met])

    def verdict(self, key):
        texts, met = self.found[key]
        if any(one is False for one in met):
            word = "**no**"
        else:
            word = "**not measured**" if None in met else "yes"
        return "; ".join(texts), word

    def lines(self, commit, earlier):
        """The table. `earlier` is the text of the one it replaces."""
        before = {line.split("|")[1].strip(): line for line in earlier.splitlines() if line.count("|") == 6}
        yield from HEAD
        for key, (measure, least) in BARS.items():
            if key in self.found:
                yield "| %s | %s | %s | %s | %s |" % (measure, least, *self.verdict(key), commit)
            elif measure in before:
                yield before[measure]
            else:
                yield "| %s | %s | | **not measured** | |" % (measure, least)


def ratios(of, to):
    """Round by round: how many times `to` is `of`, as in seconds of ours and of theirs."""
    return [b / a for a, b in zip(of, to)]


def at_least(values, least):
    return statistics.median(values) >= least


def at_most(values, most):
    return statistics.median(values) <= most
