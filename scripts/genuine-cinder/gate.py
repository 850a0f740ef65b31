#!/usr/bin/env python3
"""Compare cinderfs with genuine Cinder, both ways.

    read    genuine Cinder backs random volumes up, and cinderfs reads them (below)
    create  cinderfs backs them up, and genuine Cinder restores them and makes increments of them (creates.py)
    consolidate
            cinderfs makes full backups out of chains, and genuine Cinder does the same with them (consolidates.py)
    verify  genuine stores are damaged, and Cinder does with them what `cinderfs verify` says (verifies.py)
    repair  genuine stores are damaged, and Cinder restores and chains onto what `cinderfs repair` mended (repairs.py)

In the first, each backup is looked at in three ways, and each must give the volume as it was when the backup was made, to
the byte and with its exact length:

    genuine   genuine Cinder restores it into an existing volume
    restore   cinderfs restore STORE BACKUP -
    mount     cinderfs mount STORE, then backups/<id>/volume.img, in sequence and at random

Everything follows from the seed, but for the ids and times that `cinderfs create` gives. On a mismatch the directory with
stores and images is kept. Exit status 0: all passed. The program under test is $CINDERFS, or target/release/cinderfs.
"""
import argparse
import datetime
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import consolidates
import creates
import kit
import repairs
import verifies
import volumes

# Cinder's smallest unit of time in names is the second; the volumes' backups are a minute apart.
FIRST_BACKUP = datetime.datetime(2024, 2, 28, 23, 1, 7)
VIEWS = ('genuine', 'restore', 'mount')


def write_store(cinder, planned):
    for serial, backup in enumerate(planned):
        when = FIRST_BACKUP + datetime.timedelta(seconds=61 * serial)
        cinder.do(command='backup', created_at=when.isoformat() + 'Z', image=str(backup.image), backup_id=backup.id,
                  **backup.settings)


def run_read(cinderfs, work, rng, count, tally):
    store, images = work / 'store', work / 'images'
    images.mkdir(parents=True)
    planned = volumes.plan(rng, images, count)
    tally.expected += len(planned) * len(VIEWS) + 1  # and a clean unmount
    depth = max(len(list(backup.chain())) for backup in planned)
    print(f'read: {count} random volumes, {len(planned)} backups, longest chain {depth}', flush=True)
    cinder = kit.Cinder(store)
    try:
        write_store(cinder, planned)
        for backup in planned:
            kit.check_genuine(cinder, backup, work / 'restored.img', tally)
    finally:
        cinder.close()
    for backup in planned:
        kit.check_restore(cinderfs, store, backup, tally)
    with kit.mounted(cinderfs, store, work / 'mnt', work / 'mount.log'):
        # Gone before the unmount, also when it hangs in a read: then SIGTERM has to kill it.
        with multiprocessing.Pool(1, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as reader:
            for backup in planned:
                kit.check_mount(work / 'mnt', backup, rng, reader, tally)
    tally.passed += 1  # unmounted, else an exception


def find_cinderfs():
    """The program under test; ends the gate when it is missing."""
    path = pathlib.Path(os.environ.get('CINDERFS') or kit.HERE.parents[1] / 'target/release/cinderfs').absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        sys.exit(f'gate.py: no program {path}; build it with `cargo build --release` or set CINDERFS')
    return path


PARTS = ('read', 'create', 'consolidate', 'verify', 'repair')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('part', nargs='*', help=f"{', '.join(PARTS)}; all unless told")
    parser.add_argument('--seed', type=int, help='repeat the run of this seed')
    parser.add_argument('--volumes', type=int, default=24,
                        help='read: random volumes beside the fixed ones (%(default)s)')
    parser.add_argument('--rounds', type=int, default=1, help='create: so many times 4 volumes a codec, consolidate: 2 (%(default)s)')
    parser.add_argument('--all', action='store_true', help='verify, repair: each damage to each store or codec, not each damage once')
    arguments = parser.parse_args()
    parts = arguments.part or PARTS
    if not set(parts) <= set(PARTS):
        parser.error(f"the parts are {', '.join(PARTS)}")
    cinderfs = find_cinderfs()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every `finally` runs

    work = pathlib.Path(tempfile.mkdtemp(prefix='cinderfs-gate-')).resolve()
    tally, good = kit.Tally(), True
    print(f'seed {seed}', flush=True)
    runs = {'read': (run_read, arguments.volumes), 'create': (creates.run, arguments.rounds),
            'consolidate': (consolidates.run, arguments.rounds),
            'verify': (verifies.run, arguments.all), 'repair': (repairs.run, arguments.all)}
    try:
        for part in parts:
            function, count = runs[part]
            start, before = time.monotonic(), (tally.expected, tally.passed)
            try:
                function(cinderfs, work / part, random.Random(f'{seed} {part}'), count, tally)
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                print(f'MISMATCH {part} ended early: {type(error).__name__}: {error}', flush=True)
                tally.expected += 1
            expected, passed = tally.expected - before[0], tally.passed - before[1]
            good = good and 0 < expected == passed
            print(f'{part}: {passed} passed, {expected - passed} failed, {time.monotonic() - start:.0f} s', flush=True)
    except BaseException:
        good = False
        raise
    finally:
        if good:
            shutil.rmtree(work)
        else:
            print(f'seed {seed}; stores and images are kept in {work}')
        print(f'{tally.passed} passed, {tally.expected - tally.passed} failed', flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
