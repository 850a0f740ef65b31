"""The part `repair` of the gate: is what `cinderfs repair` makes of a damaged backup one that Cinder restores and chains onto?

Genuine Cinder backs a volume up in full, an increment of it, and another volume that begins with the same bytes elsewhere. Files of the
full backup are damaged; `repair` mends them out of the other volume's. Then genuine Cinder restores both backups of the first volume, makes one
more increment, for which it reads the digests, and restores that.
"""
import datetime
import shutil
import subprocess

import creates
import kit
import volumes
from verifies import digest_digit, flip, of

BLOCK = 32768
WHEN = datetime.datetime(2024, 2, 28, 23, 1, 7)

# What is done to the full backup, given the path of its files less the suffix.
DAMAGES = {
    'a flipped bit in an object': lambda stem: flip(of(stem, '-00002'), 5000),
    'a flipped bit in its head': lambda stem: flip(of(stem, '-00001'), 1),
    'an object gone': lambda stem: of(stem, '-00003').unlink(),
    'an object cut': lambda stem: of(stem, '-00001').write_bytes(of(stem, '-00001').read_bytes()[:9]),
    'all objects empty': lambda stem: [path.write_bytes(b'') for path in stem.parent.glob(stem.name + '-0*')],
    'a wrong digest': lambda stem: digest_digit(of(stem, '_sha256file')),
    'digests gone': lambda stem: of(stem, '_sha256file').unlink(),
    'digests torn': lambda stem: of(stem, '_sha256file').write_bytes(of(stem, '_sha256file').read_bytes()[:-999]),
}

# What leaves every byte proven, by md5.
WARNINGS = ('digests gone',)


def back_up(cinder, rng, images, serial, data, parent, volume_id, codec):
    settings = {'volume_id': volume_id, 'volume_name': 'db', 'parent': parent and parent.id, 'hash_block': BLOCK,
                'object_size': 8 * BLOCK, 'compression': codec, 'container': None, 'name': None, 'description': None}
    backup = volumes.Backup(images / f'{volumes.new_id(rng)}.img', data, parent, f'number {serial}', settings)
    cinder.do(command='backup', backup_id=backup.id, image=str(backup.image),
              created_at=(WHEN + datetime.timedelta(minutes=serial)).isoformat() + 'Z', **settings)
    return backup


def repaired(cinderfs, store, backup, damage):
    """None, or what went wrong."""
    before = 3 if damage not in WARNINGS else 0
    for command, wanted in ((['verify', store, backup.id], before), (['repair', store, backup.id], 0), (['verify', store, backup.id], 0)):
        done = subprocess.run([cinderfs, *command], capture_output=True, timeout=kit.TIMEOUT_S, stdin=subprocess.DEVNULL, text=True)
        if done.returncode != wanted:
            return f'{command[0]} ended with {done.returncode}, not {wanted}: {done.stdout}{done.stderr}'
    return None


def run(cinderfs, work, rng, everything, tally):
    """Each damage to one codec, at random, or to each."""
    codecs, damages = creates.CODECS, list(DAMAGES)
    rng.shuffle(damages)
    cases = {codec: damages if everything else damages[place::len(codecs)] for place, codec in enumerate(codecs)}
    count = sum(map(len, cases.values()))
    tally.expected += count * 4
    print(f'repair: {count} damaged backups', flush=True)
    for codec, damages in cases.items():
        with_codec(cinderfs, work / codec, rng, codec, damages, tally)


def with_codec(cinderfs, work, rng, codec, damages, tally):
    images, pristine, store = work / 'images', work / 'pristine', work / 'store'
    images.mkdir(parents=True)
    data = (creates.text(rng, 17 * BLOCK) + rng.randbytes(6 * BLOCK))[:22 * BLOCK + 1234]
    changed = bytearray(data)
    changed[3 * BLOCK:4 * BLOCK] = rng.randbytes(BLOCK)
    cinder = kit.Cinder(store)
    try:
        volume = volumes.new_id(rng)
        full = back_up(cinder, rng, images, 0, data, None, volume, codec)
        increment = back_up(cinder, rng, images, 1, bytes(changed), full, volume, codec)
        # The same blocks at other offsets of another volume, so that only their digests lead there. Its last block is the first
        # volume's, which is short.
        other = back_up(cinder, rng, images, 2, rng.randbytes(5 * BLOCK) + data, None, volumes.new_id(rng), 'zlib')
        shutil.copytree(store, pristine)
        for serial, name in enumerate(damages, 3):
            shutil.rmtree(store)
            shutil.copytree(pristine, store, dirs_exist_ok=True)  # Cinder makes the folder when it comes up
            (metadata,) = store.rglob(f'*_backup_{full.id}_metadata')
            DAMAGES[name](metadata.with_name(metadata.name.removesuffix('_metadata')))
            full.story = f'{codec} with {name}; copies in {other.id}'
            tally.note('repair', full, repaired(cinderfs, store, full, name))
            kit.check_genuine(cinder, full, work / 'restored.img', tally)
            kit.check_genuine(cinder, increment, work / 'restored.img', tally)
            changed[9 * BLOCK + serial] ^= 1
            # Of the full one, whose digests Cinder compares with; another branch each time.
            branch = back_up(cinder, rng, images, serial, bytes(changed), full, volume, codec)
            kit.check_genuine(cinder, branch, work / 'restored.img', tally)
    finally:
        cinder.close()
