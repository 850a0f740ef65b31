"""What every part of the gate uses: genuine Cinder as a process, the views of a backup, a mount, the count.

Each view must give the volume as it was when the backup was made, to the byte and with its exact length.
"""
import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Far above what any single call here takes; reached only by something that hangs.
TIMEOUT_S = 60


class Cinder:
    """One cinder.py process in batch mode."""

    def __init__(self, store):
        self.process = subprocess.Popen([sys.executable, HERE / 'cinder.py', store, 'batch'], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def do(self, may_warn=False, **job):
        """The answer to one job. A failure is a RuntimeError, and so is a warning in Cinder's log unless told."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job) + '\n')
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'cinder.py ended with status {self.process.wait()}')
        answer = json.loads(line)
        if 'error' in answer:
            raise RuntimeError(f"genuine Cinder refused {job}: {answer['error']}")
        if 'warnings' in answer and not may_warn:
            raise RuntimeError(f"genuine Cinder warned at {job}: {answer['warnings']}")
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
        self.note(view, backup, note or difference(got, backup.image.read_bytes()))

    def note(self, view, backup, wrong):
        """Counts one comparison: passed, or wrong in these words."""
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


def check_genuine(cinder, backup, output, tally):
    """Cinder cannot shorten a volume: after a shrink the restored file goes on with the ancestors' data."""
    want_bytes = max(link.bytes for link in backup.chain())
    try:
        got_bytes = cinder.do(command='restore', backup_id=backup.id, output=str(output), bytes=backup.bytes)['bytes']
    except RuntimeError as error:
        return tally.note('genuine', backup, str(error))
    wrong = None if got_bytes == want_bytes else f'{got_bytes} bytes restored instead of {want_bytes}'
    return tally.check('genuine', backup, output.read_bytes()[:backup.bytes], wrong)


def check_genuine_new(cinder, backup, output, tally):
    """As into a new volume, where Cinder leaves zeros of the full backup out; it also gets the volume's properties."""
    try:
        answer = cinder.do(command='restore', backup_id=backup.id, output=str(output), bytes=backup.bytes, new=True)
    except RuntimeError as error:
        return tally.note('genuine-new', backup, str(error))
    wrong = None
    for key in 'volume_name', 'properties':
        if answer[key] != backup.restores[key]:
            wrong = f'{key} is {answer[key]!r} instead of {backup.restores[key]!r}'
    return tally.check('genuine-new', backup, output.read_bytes()[:backup.bytes], wrong)


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
