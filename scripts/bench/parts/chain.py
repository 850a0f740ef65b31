"""A long chain of tiny objects, against the same volume as one full backup."""

import os
import statistics
import time

import bars
import kit
import readers
import volumes

TITLE = "A long chain of one-block objects"
VOLUMES = "chain"
BAR_FIRST_SECONDS, BAR_STEADY = 1.0, 1.3
WARM_UP_SHARE = 0.2  # of the random reads; what comes after them is steady


def read(run, volume, cache_dir):
    """(seconds from the daemon's start to the first verified 4 KiB, mean and p99 seconds of steady random reads)."""
    offsets = readers.page_offsets(volume.size, run.args.reads, "chain")
    with run.mount(volume.store, volume.label, cache_dir=cache_dir) as daemon:
        image = daemon.image(volume.backup_id)
        file = os.open(image, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(file, readers.PAGE, offsets[0])
            first = time.monotonic() - daemon.started
        finally:
            os.close(file)
        waits, _ = readers.random_waits(image, volume.expected, offsets)
        steady = waits[int(len(waits) * WARM_UP_SHARE):]
    run.forget(daemon.cache_dir)
    return first, sum(steady) / len(steady), readers.percentile(steady, 0.99)


def measure(run):
    size, count, objects = run.args.chain_size, run.args.chain_incrementals, run.args.chain_objects
    chain = volumes.chain(run, "chain of %d incrementals" % count, size, count, objects)
    full = volumes.full_of(run, "the same volume as one full backup", chain)
    found = {volume.label: [] for volume in (chain, full)}
    for number in run.each_round("chain"):
        for volume in (chain, full) if number % 2 else (full, chain):
            kit.warm(volume.store)
            kit.warm(volume.expected)
            index = run.index_of(volume)
            found[volume.label].append(read(run, volume, run.copy_of(index) if index else None))
    yield "| volume of %d MiB | objects | first read after mount, s | steady random 4 KiB read, mean ms | p99 ms |" % (size >> 20)
    yield "| --- | --- | --- | --- | --- |"
    for volume in (chain, full):
        first, mean, last = zip(*found[volume.label])
        yield "| %s%s | %d | %s | %s | %s |" % (
            volume.label, "" if run.index_of(volume) else " (**index: %s**)" % bars.NOT_BUILT, volume.stored_objects,
            kit.spread(first, form="%.3f"), kit.spread(mean, 1e-3, "%.2f"), kit.spread(last, 1e-3, "%.1f"))
    times = bars.ratios([one[1] for one in found[full.label]], [one[1] for one in found[chain.label]])
    first = [one[0] for one in found[chain.label]]
    indexed = run.index_of(full) is not None
    run.bars.put("chain", "%s s; %s of the time%s" % (kit.spread(first, form="%.3f"), kit.spread(times, form="%.2f"),
                                                     "" if indexed else " (index: %s)" % bars.NOT_BUILT),
                 indexed and statistics.median(first) < BAR_FIRST_SECONDS and statistics.median(times) <= BAR_STEADY)
