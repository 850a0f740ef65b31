#!/usr/bin/env python3
"""The defect of Cinder 22 to 28, by genuine Cinder 28.0.0: found by `cinderfs audit`, and repaired.

Where an incremental backup holds a MiB of zeros, these releases leave it out when they restore to a new volume, which then
shows the data of the backup beneath. Random volumes are backed up in chains that turn data into zeros, by Cinder 28.0.0
itself, and for each backup:

    new       Cinder restores it to a new volume; the audit names exactly the blocks that differ from the original: all of
              them zeros in the backup and data in the volume, and told as `stale_data`; --repair makes the volume the original
    existing  Cinder restores it to an existing volume, rightly; the audit finds it equal

A run in which nothing was restored wrongly has failed. SEED repeats a run. Exit status 0: all passed.
"""
import collections
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import gate
import kit
import volumes

VOLUMES = 6
BLOCK = 32768
MIB = 1 << 20


def chain(rng, images):
    """A full backup and three on top, each of which zeroes some MiB and writes some blocks."""
    volume = volumes.Volume(rng, images, BLOCK)
    length = rng.randrange(6 * MIB, 14 * MIB)
    data = bytearray(rng.randbytes(length))
    parent = volume.back_up(bytes(data), None, 'full')
    for _ in range(3):
        start = rng.randrange(0, length - 2 * MIB) // BLOCK * BLOCK
        end = min(length, start + rng.randrange(MIB // 2, 4 * MIB))
        data[start:end] = bytes(end - start)
        for _ in range(rng.randrange(4)):
            at = rng.randrange(length)
            data[at:at + 5000] = rng.randbytes(len(data[at:at + 5000]))
        parent = volume.back_up(bytes(data), parent, 'zeroes')
    return volume.backups


def wrong_blocks(restored, original):
    """The blocks that differ; of those, the ones that should be zeros."""
    blocks = [at for at in range(0, len(original), BLOCK) if restored[at:at + BLOCK] != original[at:at + BLOCK]]
    return set(blocks), {at for at in blocks if not any(original[at:at + BLOCK])}


def audit(cinderfs, store, backup, target, *words):
    done = subprocess.run([cinderfs, 'audit', store, backup.id, target, '-f', 'json', *words], capture_output=True,
                          timeout=kit.TIMEOUT_S, stdin=subprocess.DEVNULL)
    if not done.stdout:
        raise RuntimeError(f'cinderfs audit: {done.stderr.decode(errors="replace").strip()}')
    return done.returncode, json.loads(done.stdout)


def check_new(cinderfs, cinder, store, backup, target, tally):
    original = backup.image.read_bytes()
    cinder.do(command='restore', backup_id=backup.id, output=str(target), bytes=len(original), new=True)
    differ, zeros = wrong_blocks(target.read_bytes()[:len(original)], original)
    status, told = audit(cinderfs, store, backup, target)
    found = collections.defaultdict(set)
    for finding in told['findings']:
        found[finding['found']] |= set(range(finding['start'], finding['start'] + finding['length'], BLOCK))
    wrong = None
    if status != (3 if differ else 0) or set().union(*found.values()) != differ:
        wrong = f'audit (status {status}) found {sorted(set().union(*found.values()))}, of {sorted(differ)}'
    elif found['stale_data'] != zeros:
        wrong = f'{sorted(zeros - found["stale_data"])} should be zeros and are not told as the defect'
    tally.note('new', backup, wrong)
    status, told = audit(cinderfs, store, backup, target, '--repair', '--yes')
    tally.check('repaired', backup, target.read_bytes()[:len(original)], status and f'status {status}: {told}')
    return len(zeros), len(differ)


def check_existing(cinderfs, cinder, store, backup, target, tally):
    cinder.do(command='restore', backup_id=backup.id, output=str(target), bytes=backup.bytes)
    status, told = audit(cinderfs, store, backup, target)
    tally.note('existing', backup, None if status == 0 and told['equal'] else f'status {status}: {told["bytes_found"]}')


def run(cinderfs, work, rng, tally):
    store, images, target = work / 'store', work / 'images', work / 'restored.img'
    images.mkdir()
    planned = [backup for _ in range(VOLUMES) for backup in chain(rng, images)]
    tally.expected = 3 * len(planned) + 1
    cinder = kit.Cinder(store)
    stale = others = 0
    try:
        gate.write_store(cinder, planned)
        for backup in planned:
            zeros, differ = check_new(cinderfs, cinder, store, backup, target, tally)
            stale, others = stale + zeros, others + differ - zeros
            check_existing(cinderfs, cinder, store, backup, target, tally)
    finally:
        cinder.close()
    print(f'{len(planned)} backups: Cinder restored {stale} blocks of zeros wrongly, and {others} that hold data')
    tally.passed += stale > 0


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.SystemRandom().randrange(1 << 32)
    cinderfs = gate.find_cinderfs()
    work = pathlib.Path(tempfile.mkdtemp(prefix='cinderfs-defect-')).resolve()
    tally = kit.Tally()
    try:
        run(cinderfs, work, random.Random(seed), tally)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        print(f'defect.py: {type(error).__name__}: {error}', flush=True)
        tally.expected = max(tally.expected, tally.passed + 1)
    good = 0 < tally.expected == tally.passed
    if good:
        shutil.rmtree(work)
    else:
        print(f'store and images are kept in {work}')
    print(f'seed {seed}: {tally.passed} passed, {tally.expected - tally.passed} failed', flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
