"""Opening a chain of three backups of a volume of 1 TiB: from the process's start to the first verified read."""

import os
import time

import cinder_store as cinder
import kit
import readers
import volumes

TITLE = "Opening a chain of three backups of a 1 TiB volume"
VOLUMES = "huge"
MIB = 1 << 20


def measure(run):
    size = run.args.huge_size
    store = os.path.join(run.stores, "huge-%d" % size)

    def make():
        kit.say("making a chain of %d GiB" % (size >> 30))
        return volumes.script("make-huge-store.py", store, "--size", size, *(["--object-size", "256M"] if run.quick else []))
    report = volumes.once(store + ".json", make)
    yield "| first 4 KiB read | store | mount ready | mount + read | peak RSS |"
    yield "| --- | --- | --- | --- | --- |"
    digests = 3 * size // report["block_size"] * cinder.DIGEST_SLOT
    fits = kit.available_memory() > 1.5 * digests
    for state in (["warm"] if fits else []) + ["cold"]:
        for probe in report["probes"]:
            kit.say("opening, %s: %s" % (state, probe["what"]))
            if state == "warm":
                kit.warm(store)
            ready, done, peak, how = [], [], [], state
            for _ in range(run.rounds):
                if state == "cold":
                    how = "cold (%s)" % kit.chill(store, everything=not run.quick)
                with run.mount(store, "opening") as daemon:
                    ready.append(daemon.ready_seconds)
                    image = os.open(daemon.image(report["backups"][-1]["id"]), os.O_RDONLY)
                    try:
                        data = os.pread(image, probe["length"], probe["offset"])
                    finally:
                        os.close(image)
                    done.append(time.monotonic() - daemon.started)
                    peak.append(daemon.peak_rss())
                if readers.digest(data) != probe["sha256"]:
                    raise kit.Failed("opening: wrong bytes at %d" % probe["offset"])
            yield "| %s | %s | %s s | %s s | %s MiB |" % (
                probe["what"], how, kit.spread(ready, form="%.3f"), kit.spread(done, form="%.3f"), kit.spread(peak, MIB))
