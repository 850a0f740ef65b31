"""`dd` through the mount between two readings of the FUSE ceiling, beside peers that show the same volume."""

import contextlib
import os
import statistics

import bars
import kit
import peers
import readers
import volumes

TITLE = "Sequential `dd`, beside the FUSE ceiling and peers, MB/s"
VOLUMES = "giant"
MIB = 1 << 20
BAR_NO_INDEX, BAR_INDEX, BAR_WARM = 0.6, 0.65, 0.9


class Way:
    """One way to get at a volume. `opened` gives the path that `dd` reads."""

    def __init__(self, label, key, volume):
        self.label, self.key, self.volume = label, key, volume
        self.rates, self.ratios = [], []

    @contextlib.contextmanager
    def opened(self, run):
        with run.mount(self.volume.store, "dd, " + self.label) as daemon:
            yield daemon.image(self.volume.backup_id)
        run.forget(daemon.cache_dir)

    def prepare(self, _run):
        kit.warm(self.volume.store)


class Indexed(Way):
    @contextlib.contextmanager
    def opened(self, run):
        cache_dir = run.copy_of(run.index_of(self.volume))
        with run.mount(self.volume.store, "dd, " + self.label, cache_dir=cache_dir) as daemon:
            yield daemon.image(self.volume.backup_id)
        run.forget(cache_dir)


class Warm(Way):
    """All blocks are in the daemon's cache; the kernel has none."""

    @contextlib.contextmanager
    def opened(self, run):
        options = ["cache_size=%dM" % (self.volume.size * 9 // 8 // MIB + 64)]
        with run.mount(self.volume.store, "dd, " + self.label, options) as daemon:
            image = daemon.image(self.volume.backup_id)
            readers.dd(image)
            kit.drop_pages(image)
            yield image
        run.forget(daemon.cache_dir)


class OfPeer(Way):
    def __init__(self, peer, volume):
        super().__init__(peer.label, peer.key, volume)
        self.peer = peer

    def opened(self, _run):
        return self.peer.mount()

    def prepare(self, _run):
        self.peer.warm()



def ways(run):
    giant, small = run.args.giant_size, run.args.bz2_size
    zlib, zstd = volumes.mixed(run, "zlib", "zlib", giant), volumes.mixed(run, "zstd", "zstd", giant)
    bz2, none = volumes.mixed(run, "bz2", "bz2", small), volumes.mixed(run, "none", "none", giant)
    found, absent = [Way("zlib, no index", "zlib", zlib)], []
    for label, key, volume in (("zlib, with index", "zlib index", zlib), ("zstd, with index", "zstd index", zstd),
                               ("bz2, with index", "bz2 index", bz2)):
        if run.index_of(volume):
            found.append(Indexed(label, key, volume))
        else:
            absent.append((label, bars.NOT_BUILT))
    found += [Way("zstd, no index", "zstd", zstd), Way("bz2, no index", "bz2", bz2), Way("none", "none", none),
              Warm("zlib, warm block cache", "warm", zlib)]
    there, missing = peers.ready(run, [peers.Qcow2, peers.Squashfs], zstd.expected, zstd.size)
    found += [OfPeer(peer, zstd) for peer in there]
    return found, absent + [(peer.label, why.upper()) for peer, why in missing], there


def measure(run):
    found, absent, there = ways(run)
    size = max(way.volume.size for way in found)
    ceiling, rates = run.folder("ceiling-"), []

    def ceiling_rate():
        rates.append(size / readers.drop_and_dd(os.path.join(ceiling, "volume.img")))
        return rates[-1]

    with run.ceiling(ceiling, size, found[0].volume.store):
        for number in run.each_round("sequential"):
            before = None
            for way in found[number % len(found):] + found[:number % len(found)]:
                way.prepare(run)
                before = ceiling_rate()
                with way.opened(run) as path:
                    rate = way.volume.size / readers.dd(path)
                    if number == 0 and readers.sha256(path) != way.volume.sha256:
                        raise kit.Failed("%s: what dd read is not the volume" % way.label)
                way.rates.append(rate)
                way.ratios.append(rate / ((before + ceiling_rate()) / 2))
    yield "| what | MB/s | against the ceiling, before and after |"
    yield "| --- | --- | --- |"
    for way in found:
        yield "| %s | %s | %s |" % (way.label, kit.spread(way.rates, 1e6), kit.spread(way.ratios, form="%.2f"))
    for label, why in absent:
        yield "| %s | **%s** | |" % (label, why)
    yield "| FUSE ceiling, %d readings | %s | |" % (len(rates), kit.spread(rates, 1e6))
    yield ""
    yield "Peers: %s." % ("; ".join(peer.version for peer in there) or "none")
    judge(run, {way.key: way for way in found})


def judge(run, way):
    def against_ceiling(bar, key, least):
        if key not in way:
            run.bars.put(bar, "%s: %s" % (key, bars.NOT_BUILT), False)
        else:
            run.bars.put(bar, "%s %s" % (way[key].label, kit.spread(way[key].ratios, form="%.2f")),
                         statistics.median(way[key].ratios) >= least)
    against_ceiling("sequential, no index", "zlib", BAR_NO_INDEX)
    against_ceiling("sequential, warm", "warm", BAR_WARM)
    for key in ("zstd", "zlib index"):
        against_ceiling("sequential, index", key, BAR_INDEX)
        for peer in ("qcow2-zstd", "squashfs-zstd-1M"):
            if peer not in way:
                run.bars.put("sequential, index", "%s was not there to compare with" % peer, None)
            elif key in way:
                times = bars.ratios(way[peer].rates, way[key].rates)
                run.bars.put("sequential, index", "%s / %s %s" % (key, peer, kit.spread(times, form="%.2f")),
                             statistics.median(times) > 1)
