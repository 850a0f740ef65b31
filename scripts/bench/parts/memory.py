"""Peak memory with a small cache, end to end and at random; every byte is compared with the volume."""

import os
import random
import time

import kit
import readers
import shapes

TITLE = "Memory, `cache_size=64M`"
VOLUMES = "small"
OPTIONS = ["cache_size=64M"]
MIB = 1 << 20


def measure(run):
    yield "| volume | peak RSS, end to end | peak RSS, random | random reads | p50 ms | p99 ms |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for volume in shapes.all_of(run):
        kit.say("memory: %s" % volume.label)
        kit.warm(volume.store)
        with run.mount(volume.store, "end to end, " + volume.label, OPTIONS) as daemon:
            if readers.sha256(daemon.image(volume.backup_id)) != volume.sha256:
                raise kit.Failed("%s read end to end is not the volume" % volume.label)
            through = daemon.peak_rss()
        with run.mount(volume.store, "random lengths, " + volume.label, OPTIONS) as daemon:
            waits = random_lengths(run, volume, daemon.image(volume.backup_id))
            at_random = daemon.peak_rss()
        yield "| %s | %.0f MiB | %.0f MiB | %d | %.1f | %.1f |" % (
            volume.label, through / MIB, at_random / MIB, len(waits), 1e3 * readers.percentile(waits, 0.50),
            1e3 * readers.percentile(waits, 0.99))


def random_lengths(run, volume, image_path):
    """Seconds of each read of 4 KiB to 1 MiB anywhere in the image."""
    dice, waits = random.Random("reads"), []
    deadline = time.monotonic() + run.args.random_seconds
    image, expected = os.open(image_path, os.O_RDONLY), os.open(volume.expected, os.O_RDONLY)
    try:
        os.posix_fadvise(image, 0, 0, os.POSIX_FADV_RANDOM)
        while len(waits) < run.args.random_count and time.monotonic() < deadline:
            length = int(4096 * 256 ** dice.random())
            offset = dice.randrange(volume.size - length)
            started = time.monotonic()
            data = os.pread(image, length, offset)
            waits.append(time.monotonic() - started)
            if data != os.pread(expected, length, offset):
                raise kit.Failed("%s: wrong bytes in [%d, +%d)" % (volume.label, offset, length))
    finally:
        os.close(image)
        os.close(expected)
    return waits
