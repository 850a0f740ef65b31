"""Random 4 KiB reads per second of a new mount with index, beside the mounts of backup programs."""

import contextlib
import statistics

import bars
import filesystem
import kit
import peers
import readers

TITLE = "Random 4 KiB reads per second, cold"
VOLUMES = "ext4"
BAR, JOBS = 1.5, (1, 4)
SECONDS, SECONDS_QUICK = 5, 0.5


@contextlib.contextmanager
def ours(run, volume, index):
    cache_dir = run.copy_of(index) if index else None
    with run.mount(volume.store, "IOPS", cache_dir=cache_dir) as daemon:
        yield daemon.image(volume.backup_id)
    run.forget(daemon.cache_dir)


def measure(run):
    try:
        volume = filesystem.volume(run)
    except kit.Missing as error:
        run.bars.put("iops", str(error), None)
        yield "**Not measured: %s.**" % error
        return
    index = run.index_of(volume)
    there, missing = peers.ready(run, [peers.Restic, peers.Rustic, peers.Borg], volume.expected, volume.size)
    label = "cinderfs, genuine default zlib, " + ("with index" if index else "no index")
    found = {(name, jobs): ([], []) for name in [label] + [peer.label for peer in there] for jobs in JOBS}
    seconds = SECONDS_QUICK if run.quick else SECONDS
    kit.warm(volume.expected)
    for number in run.each_round("iops"):
        for name, jobs in found:
            peer = next((peer for peer in there if peer.label == name), None)
            kit.warm(volume.store) if peer is None else peer.warm()
            with peer.mount() if peer else ours(run, volume, index) as image:
                rate, waits = readers.iops(image, volume.expected, volume.size, jobs, seconds, "iops %d" % number)
            found[name, jobs][0].append(rate)
            found[name, jobs][1].append(readers.percentile(waits, 0.99))
    yield "| mount | " + " | ".join("%d job%s: IOPS | p99 ms" % (jobs, "s" * (jobs > 1)) for jobs in JOBS) + " |"
    yield "|" + " --- |" * (1 + 2 * len(JOBS))
    for name in [label] + [peer.label for peer in there]:
        cells = []
        for jobs in JOBS:
            rates, last = found[name, jobs]
            cells += [kit.spread(rates), kit.spread(last, 1e-3, "%.1f")]
        yield "| %s | %s |" % (name, " | ".join(cells))
    if index is None:
        yield "| cinderfs, with index | **%s** | | | |" % bars.NOT_BUILT
    for peer, why in missing:
        yield "| %s | **%s** | | | |" % (peer.label, why.upper())
    yield ""
    yield "Peers: %s." % ("; ".join(peer.version for peer in there) or "none")
    for jobs in JOBS:
        if not there:
            run.bars.put("iops", "no peer was there to compare with", None)
            continue
        best = max(there, key=lambda peer: statistics.median(found[peer.label, jobs][0]))
        times = bars.ratios(found[best.label, jobs][0], found[label, jobs][0])
        run.bars.put("iops", "%d job%s: %s of %s%s" % (jobs, "s" * (jobs > 1), kit.spread(times, form="%.2f"), best.label,
                                                       "" if index else " (" + bars.NOT_BUILT + ")"),
                     index is not None and statistics.median(times) >= BAR)
    for peer, why in missing:
        run.bars.put("iops", "%s: %s" % (peer.label, why), None)
