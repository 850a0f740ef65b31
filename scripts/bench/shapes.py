"""The volumes of the parts `speed` and `memory`: each codec, small objects, a short chain."""

import volumes

MIB = 1 << 20


def all_of(run):
    size, small = run.args.size, run.args.bz2_small_size
    rows = [("none", "none", size, {}), ("zlib", "zlib", size, {}), ("zstd", "zstd", size, {}),
            ("bz2, %d MiB" % (small // MIB), "bz2", small, {}),
            ("zlib, 50 MiB objects", "zlib", size, {"object_size": 52428800}),
            ("zlib, chain of 3", "zlib", size, {"incrementals": 2})]
    return [volumes.mixed(run, label, codec, size, **shape) for label, codec, size, shape in rows if codec in run.args.codec]
