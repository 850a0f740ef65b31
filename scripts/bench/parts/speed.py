"""Sequential reads and restores of each codec, beside one core's bare decoder and the FUSE ceiling."""

import json
import os
import statistics
import subprocess

import bars
import kit
import readers
import shapes

TITLE = "Sequential, MB/s (10^6 bytes of the volume per second)"
VOLUMES = "small"
COLUMNS = ("mount", "file", "stdout", "decode", "decode_hash", "ceiling")


def one_round(run, volume, seconds, first):
    kit.warm(volume.store)
    with run.ceiling(run.mountpoint, volume.size, volume.store):
        seconds["ceiling"].append(readers.dd(os.path.join(run.mountpoint, "volume.img")))
    with run.mount(volume.store, "dd, " + volume.label) as daemon:
        seconds["mount"].append(readers.dd(daemon.image(volume.backup_id)))
    run.forget(daemon.cache_dir)
    decoded = json.loads(subprocess.run([run.example("decode_speed"), volume.codec, *volume.objects],
                                        stdout=subprocess.PIPE, check=True).stdout)
    if decoded["plain_bytes"] != volume.coded_bytes:
        raise kit.Failed("%s decoded to %d bytes" % (volume.objects, decoded["plain_bytes"]))
    for what in ("decode", "decode_hash"):
        seconds[what].append(decoded[what]["wall"] * volume.size / volume.coded_bytes)
    with kit.folder(kit.roomy_folder(volume.size, run.scratch), "cinderfs-bench-") as folder:
        target = os.path.join(folder, "volume.img")
        command = [run.args.cinderfs, "restore", volume.store, volume.backup_id]
        seconds["file"].append(kit.timed([*command, target], stdout=subprocess.DEVNULL, env=run.environment()))
        if first and readers.sha256(target) != volume.sha256:
            raise kit.Failed("restore of %s wrote wrong bytes" % volume.label)
        seconds["stdout"].append(kit.timed([*command, "-"], stdout=subprocess.DEVNULL, env=run.environment()))


def measure(run):
    rows = [(volume, {what: [] for what in COLUMNS}) for volume in shapes.all_of(run)]
    # Round by round, so that a change of load meets every row and every limit alike.
    for number in run.each_round("speed"):
        for volume, seconds in rows:
            one_round(run, volume, seconds, number == 0)
    yield ("| volume | mount | restore to a file | restore to stdout | decode, 1 core | decode + sha256, 1 core "
           "| FUSE ceiling | mount / decode | mount / ceiling | restore / decode |")
    yield "|" + " --- |" * 10
    for volume, seconds in rows:
        def ratio(of, to):
            return "%.2f" % statistics.median(bars.ratios(seconds[of], seconds[to]))
        cells = [kit.spread([volume.size / 1e6 / s for s in seconds[what]]) for what in COLUMNS]
        cells += [ratio("mount", "decode"), ratio("mount", "ceiling"), ratio("file", "decode")]
        yield "| %s | %s |" % (volume.label, " | ".join(cells))
