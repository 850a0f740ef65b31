"""Cold 4 KiB reads deep inside giant objects, against one full decode of the same object."""

import json
import statistics
import subprocess

import bars
import kit
import readers
import volumes

TITLE = "Random 4 KiB reads inside one object"
VOLUMES = "giant"
BAR_P50, BAR_P99 = 400, 100
WITHOUT_INDEX_SECONDS, WITHOUT_INDEX_READS = 20, 40


def shapes(run):
    """The volumes and the bars that they are measured for."""
    giant, small = run.args.giant_size, run.args.bz2_size
    rows = [("zlib, one object of %d MB" % (giant // 10**6), "zlib", giant, {}, "random zlib"),
            ("bz2, one object of %d MB" % (small // 10**6), "bz2", small, {}, "random bz2"),
            ("zstd, one object of %d MB" % (giant // 10**6), "zstd", giant, {}, None),
            ("zlib, objects of 50 MiB", "zlib", giant, {"object_size": 52428800}, None)]
    return [(volumes.mixed(run, label, codec, size, **shape), bar) for label, codec, size, shape, bar in rows
            if codec in run.args.codec]


def decode_seconds(run, volume):
    """Wall time of one core through the bare codec library, over all objects."""
    done = subprocess.run([run.example("decode_speed"), volume.codec, *volume.objects], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["decode"]["wall"] / len(volume.objects)


def read(run, volume, index, offsets, seconds_max=float("inf")):
    cache_dir = run.copy_of(index) if index else None
    with run.mount(volume.store, "random, " + volume.label, cache_dir=cache_dir) as daemon:
        waits, zeros = readers.random_waits(daemon.image(volume.backup_id), volume.expected, offsets, seconds_max)
    run.forget(daemon.cache_dir)
    return waits, [wait for wait, zero in zip(waits, zeros) if not zero]


def measure(run):
    made = shapes(run)
    found = {volume.label: {"decode": [], "all50": [], "all99": [], "p50": [], "p99": []} for volume, _ in made}
    for volume, _ in made:
        run.index_of(volume)
    for number in run.each_round("random"):
        for volume, _ in made:
            index, of = run.index_of(volume), found[volume.label]
            if index is None and number:
                continue
            kit.warm(volume.store)
            kit.warm(volume.expected)
            of["decode"].append(decode_seconds(run, volume))
            if index is None:
                continue
            every, decoded = read(run, volume, index, readers.page_offsets(volume.size, run.args.reads, "random %d" % number))
            of["all50"].append(readers.percentile(every, 0.50))
            of["all99"].append(readers.percentile(every, 0.99))
            of["p50"].append(readers.percentile(decoded, 0.50))
            of["p99"].append(readers.percentile(decoded, 0.99))
    yield ("| volume | one object's decode, 1 core | p50 ms | p99 ms | p50 ms, all | p99 ms, all | decode / p50 | decode / p99 "
           "| no index: p50 ms, p99 ms |")
    yield "|" + " --- |" * 9
    for volume, key in made:
        of = found[volume.label]
        kit.say("random without index: %s" % volume.label)
        offsets = readers.page_offsets(volume.size, 1 + (WITHOUT_INDEX_READS if not run.quick else 4), "no index")
        _, without = read(run, volume, None, offsets, WITHOUT_INDEX_SECONDS)
        without = "%.0f, %.0f (%d reads)" % (1e3 * readers.percentile(without, 0.5), 1e3 * readers.percentile(without, 0.99),
                                             len(without))
        decode = kit.spread(of["decode"], form="%.2f") + " s"
        if not of["p50"]:
            yield "| %s | %s | **%s** | | | | | | %s |" % (volume.label, decode, bars.NOT_BUILT, without)
            if key:
                run.bars.put(key, bars.NOT_BUILT, False)
            continue
        half, last = bars.ratios(of["p50"], of["decode"]), bars.ratios(of["p99"], of["decode"])
        yield "| %s | %s | %s | %s | %s | %s | %s | %s | %s |" % (
            volume.label, decode, *[kit.spread(of[name], 1e-3, "%.2f") for name in ("p50", "p99", "all50", "all99")],
            kit.spread(half), kit.spread(last), without)
        if key:
            run.bars.put(key, "1/%s, 1/%s" % (kit.spread(half), kit.spread(last)),
                         statistics.median(half) >= BAR_P50 and statistics.median(last) >= BAR_P99)
