#!/usr/bin/env python3
"""Compare what cinderfs reads with what genuine Cinder wrote, on random volumes and chains.

Genuine Cinder backs random volumes up. Each backup is then looked at in three ways, and each must give the volume as it
was when the backup was made, to the byte and with its exact length:

    genuine   genuine Cinder restores it into an existing volume
    restore   cinderfs restore STORE BACKUP -
    mount     cinderfs mount STORE, then backups/<id>/volume.img, in sequence and at random

Everything follows from the seed. On a mismatch the directory with store and images is kept. Exit status 0: all passed.
The program under test is $CINDERFS, or target/release/cinderfs.
"""
import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile

import volumes

HERE = pathlib.Path(__file__).resolve().parent
# Far above what any single call here takes; reached only by something that hangs.
TIMEOUT_S = 60
# Cinder's smallest unit of time in names is the second; the volumes' backups are a minute apart.
FIRST_BACKUP = datetime.datetime(2024, 2, 28, 23, 1, 7)
VIEWS = ('genuine', 'restore', 'mount')


class Cinder:
    """One cinder.py process in batch mode."""

    def __init__(self, store):
        self.process = subprocess.Popen([sys.executable, HERE / 'cinder.py', store, 'batch'], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def do(self, **job):
        """The answer to one job; a failure ends the gate, because every job here is one that Cinder accepts."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job) + '\n')
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'cinder.py ended with status {self.process.wait()}')
        answer = json.loads(line)
        if 'error' in answer:
            raise RuntimeError(f"genuine Cinder refused {job}: {answer['error']}")
        return answer

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Tally:
    """Counts the comparisons. One that was never reached has failed."""

    def __init__(self):
        self.expected = self.passed = 0

    def check(self, view, backup, got, note=None):
        wrong = note or difference(got, backup.image.read_bytes())
        if wrong:
            print(f'MISMATCH {view}: {wrong}\n    backup {backup.id}: {backup.story}', flush=True)
        else:
            self.passed += 1


def difference(got, want):
    """How `got` differs from `want`, in words; None when it does not."""
    if got == want:
        return None
    at = len(os.path.commonprefix([got, want]))
    length = f'{len(got)} bytes' if len(got) == len(want) else f'{len(got)} bytes instead of {len(want)}'
    return f'first differing offset {at}, in {length}'


def write_store(cinder, planned):
    for serial, backup in enumerate(planned):
        when = FIRST_BACKUP + datetime.timedelta(seconds=61 * serial)
        cinder.do(command='backup', created_at=when.isoformat() + 'Z', image=str(backup.image), backup_id=backup.id,
                  **backup.settings)


def check_genuine(cinder, backup, output, tally):
    """Cinder cannot shorten a volume: after a shrink the restored file goes on with the ancestors' data."""
    want_bytes = max(link.bytes for link in backup.chain())
    got_bytes = cinder.do(command='restore', backup_id=backup.id, output=str(output), bytes=backup.bytes)['bytes']
    wrong = None if got_bytes == want_bytes else f'{got_bytes} bytes restored instead of {want_bytes}'
    tally.check('genuine', backup, output.read_bytes()[:backup.bytes], wrong)


def check_restore(cinderfs, store, backup, tally):
    try:
        done = subprocess.run([cinderfs, 'restore', store, backup.id, '-'], capture_output=True, timeout=TIMEOUT_S,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return tally.check('restore', backup, b'', f'no end within {TIMEOUT_S} s')
    wrong = f'exit status {done.returncode}: {done.stderr.decode(errors="replace").strip()}'
    return tally.check('restore', backup, done.stdout, wrong if done.returncode else None)


def read_image(path, ranges):
    """Length by stat, bytes in sequence, bytes of some ranges. Runs in a process of its own: a mount may hang."""
    with open(path, 'rb', buffering=0) as image:
        pieces = [os.pread(image.fileno(), length, offset) for offset, length in ranges]
        return os.stat(path).st_size, b''.join(iter(lambda: image.read(1 << 20), b'')), pieces


def check_mount(mountpoint, backup, rng, reader, tally):
    ranges = [(rng.randrange(backup.bytes + 1), rng.choice([1, 511, 4097, 70000])) for _ in range(8)]
    path = mountpoint / 'backups' / backup.id / 'volume.img'
    try:
        length, got, pieces = reader.apply_async(read_image, (path, ranges)).get(TIMEOUT_S)
    except OSError as error:
        return tally.check('mount', backup, b'', str(error))
    except multiprocessing.TimeoutError as error:
        raise RuntimeError(f'{path} gave no answer within {TIMEOUT_S} s') from error
    want, wrong = backup.image.read_bytes(), None
    if length != len(want):
        wrong = f'stat says {length} bytes instead of {len(want)}'
    for (offset, count), piece in zip(ranges, pieces):
        piece_wrong = difference(piece, want[offset:offset + count])
        if piece_wrong:
            wrong = wrong or f'pread of {count} bytes at {offset}: {piece_wrong}'
    return tally.check('mount', backup, got, difference(got, want) or wrong)


@contextlib.contextmanager
def mounted(cinderfs, store, mountpoint, log):
    """A mount that is gone afterwards, whatever happens. The log is a file: a daemon keeps a pipe open."""
    mountpoint.mkdir()
    try:
        with open(log, 'wb') as stderr:
            subprocess.run([cinderfs, 'mount', store, mountpoint], check=True, timeout=TIMEOUT_S, stderr=stderr,
                           stdout=stderr, stdin=subprocess.DEVNULL)
        if not is_mounted(mountpoint):
            raise RuntimeError(f'cinderfs mount returned and nothing is mounted; see {log}')
        yield
    except subprocess.SubprocessError as error:
        raise RuntimeError(f'{error}: {log.read_text(errors="replace").strip()}') from error
    finally:
        unmount(cinderfs, mountpoint)


def unmount(cinderfs, mountpoint):
    """Unmount in any case; an error when `cinderfs umount` was not enough."""
    clean = not is_mounted(mountpoint)
    for command in [[cinderfs, 'umount'], ['fusermount3', '-uz'], ['umount', '-l']]:
        if is_mounted(mountpoint):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run([*command, mountpoint], timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
        clean = clean or not is_mounted(mountpoint) and command[0] == cinderfs
    if not clean:
        raise RuntimeError(f'cinderfs umount left {mountpoint} mounted')


def is_mounted(mountpoint):
    """By the kernel's list: asking the path itself could hang."""
    mounts = pathlib.Path('/proc/self/mounts').read_text(encoding='utf-8').splitlines()
    return str(mountpoint).replace(' ', '\\040') in [line.split()[1] for line in mounts]


def run(cinderfs, work, seed, count, tally):
    rng = random.Random(seed)
    store, images = work / 'store', work / 'images'
    images.mkdir()
    planned = volumes.plan(rng, images, count)
    tally.expected = len(planned) * len(VIEWS) + 1  # and a clean unmount
    depth = max(len(list(backup.chain())) for backup in planned)
    print(f'seed {seed}: {count} random volumes, {len(planned)} backups, longest chain {depth}', flush=True)
    cinder = Cinder(store)
    try:
        write_store(cinder, planned)
        for backup in planned:
            check_genuine(cinder, backup, work / 'restored.img', tally)
    finally:
        cinder.close()
    for backup in planned:
        check_restore(cinderfs, store, backup, tally)
    with mounted(cinderfs, store, work / 'mnt', work / 'mount.log'):
        # Gone before the unmount, also when it hangs in a read: then SIGTERM has to kill it.
        with multiprocessing.Pool(1, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as reader:
            for backup in planned:
                check_mount(work / 'mnt', backup, rng, reader, tally)
    tally.passed += 1  # unmounted, else an exception


def find_cinderfs():
    """The program under test; ends the gate when it is missing."""
    path = pathlib.Path(os.environ.get('CINDERFS') or HERE.parents[1] / 'target/release/cinderfs').absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        sys.exit(f'gate.py: no program {path}; build it with `cargo build --release` or set CINDERFS')
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, help='repeat the run of this seed')
    parser.add_argument('--volumes', type=int, default=24, help='random volumes beside the fixed ones (%(default)s)')
    arguments = parser.parse_args()
    cinderfs = find_cinderfs()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every `finally` runs

    work = pathlib.Path(tempfile.mkdtemp(prefix='cinderfs-gate-')).resolve()
    tally, good = Tally(), False
    try:
        run(cinderfs, work, seed, arguments.volumes, tally)
        good = 0 < tally.expected == tally.passed
    except (OSError, RuntimeError) as error:
        print(f'gate.py: {type(error).__name__}: {error}', flush=True)
    finally:
        if good:
            shutil.rmtree(work)
        else:
            print(f'seed {seed}; store and images are kept in {work}')
        print(f'{tally.passed} passed, {tally.expected - tally.passed} failed', flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
