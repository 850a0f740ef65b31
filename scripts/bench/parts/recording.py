"""What it costs to note restart points while the first reader streams past, and what they take on disk."""

import statistics
import time

import bars
import kit
import readers
import volumes

TITLE = "The first pass, with and without recording"
VOLUMES = "giant"
BAR_TIME, BAR_SIZE = 1.10, 0.01
OFF = "seek_index=off"
CODECS = ("zlib", "bz2", "zstd")


def one_pass(run, volume, options):
    """Seconds of `dd`, of `dd` with the end of the daemon, and of the daemon's CPU; bytes of what was kept."""
    with run.mount(volume.store, "first pass, " + volume.label, options) as daemon:
        seconds = readers.dd(daemon.image(volume.backup_id))
        cpu = daemon.cpu_seconds()
        ending = time.monotonic()
    whole = seconds + time.monotonic() - ending
    kept = kit.bytes_under(daemon.cache_dir)
    run.forget(daemon.cache_dir)
    return seconds, whole, cpu, kept


def measure(run):
    giant, small = run.args.giant_size, run.args.bz2_size
    rows = [("zlib", giant), ("bz2", small), ("zstd", giant)]
    made = [volumes.mixed(run, "%s, %d MB" % (codec, size // 10**6), codec, size) for codec, size in rows
            if codec in run.args.codec]
    can_switch = run.has_option(OFF)
    found = {volume.label: {"on": [], "off": []} for volume in made}
    for number in run.each_round("recording"):
        for volume in made:
            kit.warm(volume.store)
            order = ["on", "off"] if number % 2 else ["off", "on"]
            for way in order if can_switch else ["on"]:
                found[volume.label][way].append(one_pass(run, volume, [OFF] if way == "off" else []))
    yield ("| volume | recording, s | not recording, s | ratio | with the daemon's end: ratio | CPU: ratio | index | of plain size "
           "| `index` or first pass, s |")
    yield "|" + " --- |" * 9
    slower, sizes, missing = {}, {}, set(CODECS) - set(run.args.codec)
    for volume in made:
        on, off = found[volume.label]["on"], found[volume.label]["off"]
        kept, index = max(one[3] for one in on), run.index_of(volume)
        cells = [kit.spread([one[0] for one in on], form="%.2f"), kit.spread([one[0] for one in off], form="%.2f") if off else ""]
        if not kept or not off:
            missing.add(volume.codec)
            cells += ["**%s**" % bars.NOT_BUILT, "", ""]
        else:
            ratios = [bars.ratios([one[what] for one in off], [one[what] for one in on]) for what in (0, 1, 2)]
            slower[volume.codec] = ratios[0]
            cells += [kit.spread(values, form="%.2f") for values in ratios]
        if index:
            sizes[volume.codec] = index.bytes / volume.size
            cells += ["%.1f MB" % (index.bytes / 1e6), "%.2f %%" % (100 * sizes[volume.codec]), "%.1f" % index.seconds]
        else:
            missing.add(volume.codec)
            cells += ["**%s**" % bars.NOT_BUILT, "", ""]
        yield "| %s | %s |" % (volume.label, " | ".join(cells))
    complete = not missing
    absent = ["%s %s" % (codec, bars.NOT_BUILT if codec in run.args.codec else "not measured") for codec in sorted(missing)]
    said = ["%s %s" % (codec, kit.spread(values, form="%.2f")) for codec, values in slower.items()]
    run.bars.put("recording", ", ".join(said + absent),
                 complete and all(statistics.median(values) <= BAR_TIME for values in slower.values()))
    said = ["%s %.2f %%" % (codec, 100 * share) for codec, share in sizes.items()]
    run.bars.put("index size", ", ".join(said + absent), complete and all(share <= BAR_SIZE for share in sizes.values()))
