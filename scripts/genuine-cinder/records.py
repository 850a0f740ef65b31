#!/usr/bin/env python3
"""The way back after Cinder's database is lost, and what is left of a store when cinderfs deleted from it.

Genuine Cinder backs random volumes up: full, incremental, branches, named containers. Then, each with a database that is empty:

    import     every record of `cinderfs record export STORE` passes through Cinder's own decode and import, parents first,
               and says what the database that is lost said
    restore    Cinder restores each backup by these rows alone; the bytes are equal
    agree      `cinderfs record import` finds nothing to say against the records that Cinder exports
    delete     `cinderfs delete --cascade` takes away every second backup with its children; Cinder restores all others,
               and makes an incremental on top of what is left; its own delete of what is gone does no harm

Everything follows from the seed. On a failure the directory with store and images is kept. Exit status 0: all passed.
The program under test is $CINDERFS, or target/release/cinderfs.
"""
import base64
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

# Columns in which a record made from the store must be as Cinder's own.
COLUMNS = ['id', 'volume_id', 'parent_id', 'data_timestamp', 'created_at', 'container', 'service_metadata', 'object_count', 'size', 'display_name',
           'display_description', 'status']


def cinderfs_json(cinderfs, *words):
    done = subprocess.run([cinderfs, *map(str, words), '-f', 'json'], capture_output=True, timeout=kit.TIMEOUT_S,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f'{words[:2]}: exit status {done.returncode}: {done.stderr.decode(errors="replace")}')
    return json.loads(done.stdout or 'null')


class Checks:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, what, backup, holds, note=''):
        if holds:
            self.passed += 1
        else:
            self.failed += 1
            print(f'FAILED {what} {backup.id}: {backup.story} {note}', flush=True)


def restored(cinder, backup, output, **how):
    """The volume as genuine Cinder restores it; a shrunk one goes on with its ancestors' data, which is cut off."""
    cinder.do(command='restore', backup_id=backup.id, output=str(output), bytes=backup.bytes, **how)
    return output.read_bytes()[:backup.bytes]


def check_import(cinderfs, cinder, store, planned, records, work, checks):
    rows = cinderfs_json(cinderfs, 'record', 'export', store)
    seen, by_id = set(), {backup.id: backup for backup in planned}
    for row in rows:
        told = cinder.do(command='import', **row)
        backup, record, want = by_id[told['backup_id']], told['record'], records[told['backup_id']]
        differing = [key for key in COLUMNS if record[key] != want[key]]
        checks.check('import', backup, told['status'] == 'available' and not differing, differing)
        parent = backup.parent.id if backup.parent else None
        checks.check('order', backup, record['parent_id'] == parent and (parent is None or parent in seen))
        children = sum(other.parent is backup for other in planned)
        checks.check('children', backup, record['num_dependent_backups'] == children, record)
        seen.add(backup.id)
    checks.check('all', planned[0], seen == set(by_id))
    for backup in planned:
        got = restored(cinder, backup, work / 'restored.img', imported=True)
        checks.check('restore', backup, got == backup.image.read_bytes(), kit.difference(got, backup.image.read_bytes()))


def check_delete(cinderfs, importer, store, planned, rng, work, checks):
    gone = set()
    for backup in planned[::2]:
        if backup.id not in gone:
            subprocess.run([cinderfs, '-q', 'delete', store, backup.id, '--cascade'], check=True, timeout=kit.TIMEOUT_S)
            gone |= {other.id for other in planned if backup in other.chain()}
    for backup_id in gone:
        importer.do(may_warn=True, command='delete', backup_id=backup_id)  # of a folder that is gone
    left = [backup for backup in planned if backup.id not in gone]
    files = [path.name for path in store.rglob('*') if not path.is_dir()]
    for backup in planned:
        checks.check('delete', backup, any(backup.id in name for name in files) == (backup.id not in gone))
    listed = {row['ID'] for row in cinderfs_json(cinderfs, 'list', store)}
    checks.check('list', planned[0], listed == {backup.id for backup in left}, f'{len(gone)} deleted')
    cinder = kit.Cinder(store)
    try:
        for backup in left:
            got = restored(cinder, backup, work / 'restored.img')
            checks.check('left', backup, got == backup.image.read_bytes())
            made = cinder.do(command='backup', image=str(backup.image), parent=backup.id, backup_id=volumes.new_id(rng),
                             hash_block=backup.settings['hash_block'], object_size=backup.settings['object_size'])
            checks.check('on top', backup, made['objects'] == 0, made)
    finally:
        cinder.close()
    return len(gone), len(left)


def run(cinderfs, work, rng, count, checks):
    store, images = work / 'store', work / 'images'
    images.mkdir()
    planned = [backup for _ in range(count) for backup in volumes.random_volume(rng, images)]
    cinder = kit.Cinder(store)
    try:
        gate.write_store(cinder, planned)
        exported = {backup.id: cinder.do(command='export', backup_id=backup.id) for backup in planned}
        records = {key: json.loads(base64.b64decode(row['backup_url'])) for key, row in exported.items()}
    finally:
        cinder.close()
    importer = kit.Cinder(store)
    try:
        check_import(cinderfs, importer, store, planned, records, work, checks)
        return check_store(cinderfs, importer, store, planned, exported, rng, work, checks)
    finally:
        importer.close()


def check_store(cinderfs, importer, store, planned, exported, rng, work, checks):
    for backup in planned:
        told = cinderfs_json(cinderfs, 'record', 'import', store, exported[backup.id]['backup_url'])
        checks.check('agree', backup, told['agrees'] and told['differences'] == [], told)
    return len(planned), *check_delete(cinderfs, importer, store, planned, rng, work, checks)


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.SystemRandom().randrange(1 << 32)
    cinderfs = gate.find_cinderfs()
    work = pathlib.Path(tempfile.mkdtemp(prefix='cinderfs-records-')).resolve()
    checks, good = Checks(), False
    try:
        made, gone, left = run(cinderfs, work, random.Random(seed), 12, checks)
        print(f'seed {seed}: {made} backups, of which {gone} were deleted and {left} left')
        good = checks.failed == 0 and min(gone, left) > 0
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f'records.py: {type(error).__name__}: {error}', flush=True)
    finally:
        if good:
            shutil.rmtree(work)
        else:
            print(f'seed {seed}; store and images are kept in {work}')
        print(f'{checks.passed} passed, {checks.failed + (not good and not checks.failed)} failed', flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
