"""How much of the store one cold 4 KiB read fetches, against the stored bytes between the restart points around it."""

import bisect
import json
import statistics
import subprocess
import time

import bars
import kit
import readers
import tracing
import volumes

TITLE = "Stored bytes fetched for one cold 4 KiB read"
VOLUMES = "giant"
BAR = 1.2
SETTLE_SECONDS = 0.02  # between reads, so that what one causes is not counted for the next


def points_of(run, index):
    """The restart points of the one object: (plain offset, stored offset) in bytes, in order."""
    done = subprocess.run([run.example("restart_points"), index.path], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    if len(found) != 1:
        raise kit.Failed("%d indexes of one object in %s" % (len(found), index.path))
    return [(plain, bits / 8) for plain, bits in found[0]]


def measure(run):
    giant, small = run.args.giant_size, run.args.bz2_size
    yield ("| volume | reads | fetched: p50, KiB | p99, KiB | distance of the points around it: mean, KiB "
           "| fetched / distance, all reads | worst read / the larger of its distance and the mean |")
    yield "|" + " --- |" * 7
    rows = (("zlib", "zlib", giant, "bytes"), ("zstd", "zstd", giant, None), ("bz2", "bz2", small, None))
    for label, codec, size, key in rows:
        if codec not in run.args.codec:
            continue
        volume = volumes.mixed(run, label, codec, size)
        index = run.index_of(volume)
        if index is None:
            yield "| %s | **%s** | | | | | |" % (label, bars.NOT_BUILT)
            if key:
                run.bars.put(key, bars.NOT_BUILT, False)
            continue
        try:
            fetched, offsets = fetches(run, volume, index)
        except kit.Missing as error:
            yield "| %s | **%s** | | | | | |" % (label, error)
            if key:
                run.bars.put(key, str(error), None)
            continue
        cells, worst = against_points(run, volume, index, fetched, offsets)
        yield "| %s | %d | %.0f | %.0f | %s |" % (label, len(fetched), statistics.median(fetched) / 1024,
                                                 readers.percentile(fetched, 0.99) / 1024, cells)
        if key:
            run.bars.put(key, "worst of %d reads %.2f" % (len(fetched), worst), worst <= BAR)


def fetches(run, volume, index):
    """(stored bytes fetched, plain offset) of each read of a block that is not all zeros."""
    count = 5 if run.quick else run.args.reads // 4
    offsets, fetched = readers.page_offsets(volume.size, count, "bytes"), []
    kit.warm(volume.store)
    with run.mount(volume.store, "bytes, " + volume.label, cache_dir=run.copy_of(index)) as daemon:
        image = daemon.image(volume.backup_id)
        # Opens the backup; the block is read again by none of what follows, except by chance.
        readers.random_waits(image, volume.expected, [0])
        with tracing.reads(daemon.process.pid, run.scratch) as trace:
            begun = []
            for offset in offsets:
                begun.append(time.time())
                readers.random_waits(image, volume.expected, [offset])
                time.sleep(SETTLE_SECONDS)
    for started, ended in zip(begun, begun[1:] + [float("inf")]):
        fetched.append(sum(count for when, path, count in trace if started <= when < ended and path in volume.objects))
    run.forget(daemon.cache_dir)
    pairs = [(stored, offset) for stored, offset in zip(fetched, offsets) if stored]
    if not pairs:
        raise kit.Failed("%s: no read fetched anything" % volume.label)
    return [stored for stored, _ in pairs], [offset for _, offset in pairs]


def against_points(run, volume, index, fetched, offsets):
    """The last three cells of a row, and the worst read's ratio."""
    points = sorted({(0, 0), *points_of(run, index), (volume.size, volume.stored_bytes())})
    plain = [at for at, _ in points]
    places = [bisect.bisect_right(plain, offset) for offset in offsets]
    own = [points[after][1] - points[after - 1][1] for after in places]
    mean = volume.stored_bytes() / (len(points) - 1)
    worst = max(stored / max(distance, mean) for stored, distance in zip(fetched, own))
    return "%.0f | %.2f | %.2f" % (statistics.mean(own) / 1024, sum(fetched) / sum(own), worst), worst
