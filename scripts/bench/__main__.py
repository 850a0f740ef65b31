"""Measures cinderfs beside its limits and its peers, and prints Markdown.

Run it as scripts/bench.sh, which builds first. What the figures mean stands in docs/PERFORMANCE.md. A wrong byte anywhere, a
daemon that dies or a mount left behind ends the run with status 1 and nothing written. What this build or this machine does
not have stands in the tables as such, and its bars as not met or not measured.
"""

import argparse
import datetime
import os
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cinder_store as cinder
import kit
import report
from parts import PARTS
from run import Run

MIB, GIB = 1 << 20, 1 << 30
# name -> (what it is, default, with --quick)
SIZES = {
    "giant_size": ("of the volumes in one giant object", 1999994880, 48 * MIB),
    "bz2_size": ("of the same for bz2, which decodes at a twentieth of zlib's speed", 500 * MIB, 12 * MIB),
    "restore_size": ("of the ext4 volume that is restored", 4 * GIB, 96 * MIB),
    "chain_size": ("of the volume with the long chain", 2 * GIB, 32 * MIB),
    "size": ("of the volumes of `speed` and `memory`", GIB, 24 * MIB),
    "bz2_small_size": ("of the same for bz2", 256 * MIB, 6 * MIB),
    "created_size": ("of the image that `create` backs up", 2 * GIB, 24 * MIB),
    "huge_size": ("of the chain that is opened", 1024 * GIB, 4 * GIB),
    "source_size": ("of the volume that is backed up", 2 * GIB, 24 * MIB),
    "sparse_size": ("of the one that is mostly holes", 1024 * GIB, 4 * GIB),
    "sparse_data": ("of the data in it, at most that of the volume that is backed up", 2 * GIB, 8 * MIB),
}
COUNTS = {
    "runs": ("rounds of everything; medians are taken over them", 5, 1),
    "reads": ("random reads of a round", 400, 40),
    "created_reads": ("random reads of a round of `created`", 4000, 100),
    "chain_incrementals": ("of the long chain", 30, 3),
    "chain_objects": ("of one block each, in all its incrementals", 100_000, 300),
    "remote_backups": ("in the bucket that `listing` lists", 10_000, 50),
    "random_count": ("random reads of `memory`, at most", 2000, 200),
    "random_seconds": ("seconds of random reads of `memory`, at most", 20, 1),
}


def parse():
    parser = argparse.ArgumentParser(prog="bench.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cinderfs", help="the binary (default: target/release/cinderfs)", default="target/release/cinderfs")
    parser.add_argument("--examples", help="folder of fuse_ceiling and the like", default="target/release/examples")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default all")
    parser.add_argument("--codec", action="append", choices=("none", "zlib", "bz2", "zstd"),
                        help="of the parts that measure several; repeatable; default all")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a smoke test")
    parser.add_argument("--write", action="store_true", help="also put the tables into docs/PERFORMANCE.md")
    for kind, group in ((cinder.parse_size, SIZES), (int, COUNTS)):
        for name, (what, usual, _) in group.items():
            parser.add_argument("--" + name.replace("_", "-"), type=kind, help="%s; default %d" % (what, usual))
    args = parser.parse_args()
    for name, (_, usual, quick) in {**SIZES, **COUNTS}.items():
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else usual)
    args.codec = args.codec or ["none", "zlib", "zstd", "bz2"]
    args.part = [part for part in PARTS if not args.part or part in args.part]
    args.cinderfs, args.examples = os.path.abspath(args.cinderfs), os.path.abspath(args.examples)
    return args


def measure(args, kept, scratch, sections):
    """Fills `sections` of the document by name; a part's also hold its title. Volumes are kept in `kept`, if anywhere."""
    run, begun = Run(args, scratch), time.monotonic()
    commit = kit.output_of("git", "describe", "--always", "--dirty") or "unknown"
    for place, part in enumerate(args.part):
        module, load, started, daemons = PARTS[part], os.getloadavg()[0], time.monotonic(), len(run.peaks)
        run.use_stores(os.path.join(kept or scratch, module.VOLUMES))
        lines = list(module.measure(run))
        facts = "%s at `%s`; median of %d (least-greatest); load %.1f before, %.1f after; %.0f s." % (
            datetime.date.today(), commit, run.rounds, load, os.getloadavg()[0], time.monotonic() - started)
        lines = ["### " + module.TITLE, "", *lines, "", facts, run.peaks_since(daemons)]
        if load > len(os.sched_getaffinity(0)) / 2:
            lines.append("**Others were using this machine: take the ratios with care and the rates for nothing.**")
        if args.quick:
            lines.append("**A smoke test (`--quick`): too small to be a measurement.**")
        sections[part] = "\n".join(lines).rstrip() + "\n"
        if not kept and all(PARTS[later].VOLUMES != module.VOLUMES for later in args.part[place + 1:]):
            run.drop_stores()
    run.put_memory_bar(args.part)
    machine = "%s, %s; the FUSE ceiling and the mounts ran %s root, so their read-ahead was %s." % (
        kit.machine_facts(), kit.output_of("rustc", "-V"), *(
            ("as", "1 MiB") if os.geteuid() == 0 else ("without", "the kernel's 128 KiB")))
    table = "\n".join(run.bars.lines(commit, report.between(report.read(), "bars")))
    kit.say("%.0f s in all" % (time.monotonic() - begun))
    sections["bars"] = "%s\n\nMachine: %s\n" % (table, machine)


def main():
    args = parse()
    # SIGTERM unwinds like SIGINT, so that every `with` unmounts what it mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given, sections = os.environ.get("CINDERFS_BENCH_DIR"), {}
    try:
        if given:
            os.makedirs(given, exist_ok=True)
            with kit.folder(given, "run-") as scratch:
                measure(args, given, scratch, sections)
        else:
            with kit.folder("/var/tmp", "cinderfs-bench-") as scratch:
                measure(args, None, scratch, sections)
        if args.write:
            report.write(sections)
    except (kit.Failed, kit.Missing, subprocess.SubprocessError, OSError, shutil.Error) as error:
        kit.say("%s: the run is void; what stands on stdout was measured before" % error)
        return 1
    finally:
        print("\n".join(sections[name] for name in sorted(sections, key=lambda name: name != "bars")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
