"""An image that lies whole in the cache directory, which the kernel reads without asking the daemon, against the normal mount."""

import os
import subprocess

import bars
import kit
import readers
import volumes

TITLE = "A hydrated image (passthrough)"
VOLUMES = "giant"
IOPS_SECONDS = 3


def largest_file(folder):
    """The image in the cache directory."""
    return max(kit.files_of(folder), key=os.path.getsize)


def measure(run):
    volume = volumes.mixed(run, "zlib", "zlib", run.args.giant_size)
    kit.warm(volume.expected)
    found = {"normal mount": ([], [])}
    cache_dir = run.folder("hydrated-")
    if run.has_verb("hydrate"):
        seconds = kit.timed([run.args.cinderfs, "hydrate", volume.store, volume.backup_id], stdout=subprocess.DEVNULL,
                            env=run.environment(cache_dir))
        found |= {"hydrated": ([], []), "the raw file in the cache": ([], [])}
    for number in run.each_round("hydrate"):
        kit.warm(volume.store)
        for label, (rates, iops) in found.items():
            # Both read one file of the cache directory; here it is in the page cache, as the store is for the normal mount.
            if label != "normal mount":
                kit.warm(largest_file(cache_dir))
            if label == "the raw file in the cache":
                sample(run, volume, largest_file(cache_dir), rates, iops, number, True)
                continue
            kept = cache_dir if label == "hydrated" else None
            with run.mount(volume.store, label, cache_dir=kept) as daemon:
                sample(run, volume, daemon.image(volume.backup_id), rates, iops, number, bool(kept))
            if kept is None:
                run.forget(daemon.cache_dir)
    yield "| volume | sequential, MB/s | random 4 KiB, 1 job: IOPS |"
    yield "| --- | --- | --- |"
    for label, (rates, iops) in found.items():
        yield "| %s | %s | %s |" % (label, kit.spread(rates, 1e6), kit.spread(iops))
    if "hydrated" not in found:
        yield "| hydrated | **%s** | |" % bars.NOT_BUILT
    else:
        yield ""
        yield "`cinderfs hydrate` took %.1f s for %d MB." % (seconds, volume.size // 10**6)
        run.forget(cache_dir)


def sample(run, volume, image, rates, iops, number, kept_by_kernel):
    rates.append(volume.size / readers.dd(image))
    if number == 0 and readers.sha256(image) != volume.sha256:
        raise kit.Failed("%s is not the volume" % image)
    if not kept_by_kernel:
        kit.drop_pages(image)
    seconds = 1 if run.quick else IOPS_SECONDS
    iops.append(readers.iops(image, volume.expected, volume.size, 1, seconds, "hydrate %d" % number)[0])
