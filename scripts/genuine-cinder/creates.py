"""The other half of the gate: does genuine Cinder restore, and chain onto, what `cinderfs create` wrote?

Each volume is backed up as the images change, by `cinderfs create`, by genuine Cinder, or by one on top of the other.
Every backup, whoever made it, is then looked at in four ways, and each must give the volume as it was, to the byte:

    genuine      genuine Cinder, which knows nothing but the store, restores it into an existing volume
    genuine-new  the same into a new volume, which gets the volume's name and properties too
    restore      cinderfs restore
    mount        cinderfs mount

A fifth look, `documents`, is at the bytes. For each backup, a second Cinder makes its twin in a second store: of the same
image, on the twin of the parent, with the same ids, times and sizes. documents.py says what may differ.
"""
import datetime
import json
import multiprocessing
import signal
import subprocess

import documents
import kit
import volumes

CODECS = ['zlib', 'bz2', 'zstd', 'none']
HASH_BLOCKS = [512, 777, 1000, 4096, 32768, 100_000]
# For volumes of several MiB. Pieces of an object, which `create` compresses by themselves, have about 1 MiB.
LARGE_HASH_BLOCKS = [4096, 32768, 65536, 100_000, 1 << 20, 3 << 19]
CONTAINERS = [None, 'nightly', 'team/one', None, 'Ärzte/été 2/x']
PROPERTIES = [{}, {'tier': 'gold', 'größe': 'a=b', 'empty': ''}]
VIEWS = ('genuine', 'genuine-new', 'restore', 'mount', 'documents')
MIB = 1 << 20
OURS, CINDER = 'cinderfs', 'Cinder'


class Volume:
    """The backups of one volume. Its parents come first; each is any earlier one, so chains branch."""

    def __init__(self, rng, images, hash_block):
        self.rng, self.images, self.hash_block = rng, images, hash_block
        self.id, self.name, self.properties = volumes.new_id(rng), rng.choice(volumes.VOLUME_NAMES), rng.choice(PROPERTIES)
        self.has_defaults = False  # made with no option that can be left out
        self.backups = []

    def back_up(self, maker, data, parent, story, codec, object_bytes=None):
        rng = self.rng
        if object_bytes is None:
            blocks = max(1, -(-len(data) // self.hash_block))
            object_bytes = self.hash_block * max(1, -(-blocks // rng.randint(2, 12)))
        settings = {
            'compression': codec, 'object_size': object_bytes, 'hash_block': self.hash_block,
            'container': CONTAINERS[len(self.backups) % len(CONTAINERS)], 'name': rng.choice(volumes.NAMES),
            'description': rng.choice(volumes.NAMES)}
        image = self.images / f'{volumes.new_id(rng)}.img'
        if self.has_defaults:
            settings |= {'container': None, 'name': None, 'description': None}
            image = self.images / image.stem / f'volume-{self.id}'  # Cinder's name of a device
            image.parent.mkdir()
        story = f'{story} by {maker}' + (f' on {self.backups.index(parent)} by {parent.maker}' if parent else '')
        backup = volumes.Backup(image, data, parent, story, settings)
        if self.name is None and maker == OURS and parent is None:
            self.name = backup.image.name  # as `create` has it
        backup.volume, backup.maker = self, maker
        backup.restores = {'volume_name': self.name or None, 'properties': self.properties}
        self.backups.append(backup)
        return backup

    def edited(self, maker, parent, codec, edits=(), object_bytes=None):
        """Back up what `edits`, or else random ones, make of the volume as it was at `parent`."""
        data = bytearray(parent.image.read_bytes())
        edits = edits or self.rng.choices(volumes.EDITS, k=self.rng.randint(1, 3))
        for edit in edits:
            edit(self.rng, data, self.hash_block)
        return self.back_up(maker, data, parent, ' + '.join(edit.__name__ for edit in edits), codec, object_bytes)


def plan(rng, images, rounds):
    """The volumes to back up; in each round every codec has the same ones."""
    planned = []
    for _ in range(rounds):
        planned.append(defaults(rng, images))
        for codec in CODECS:
            planned += [small_objects(rng, images, codec), large_objects(rng, images, codec),
                        alternating(rng, images, codec, [OURS, CINDER]),
                        alternating(rng, images, codec, [CINDER, OURS])]
    return planned


def random_content(rng, hash_block):
    """Some dozens of blocks and an odd rest: no multiple of a block, so of no object either."""
    return volumes.content(rng, rng.randint(20, 150) * hash_block + rng.randint(1, hash_block - 1))


def defaults(rng, images):
    """As a user has it who names nothing but the store and a source with Cinder's name."""
    volume = Volume(rng, images, 32768)
    volume.has_defaults, volume.name, volume.properties = True, None, {}
    last = volume.back_up(OURS, volumes.content(rng, 3 * MIB) + text(rng, 2 * MIB + 1), None, 'full', 'zlib', 128 * MIB)
    for maker, edit in [(OURS, volumes.nothing), (CINDER, volumes.change_blocks), (OURS, volumes.change)]:
        last = volume.edited(maker, last, 'zlib', [edit], 128 * MIB)
    return volume


def small_objects(rng, images, codec):
    """A chain of five and branches off it, with each way to end and none of them left to chance."""
    volume = Volume(rng, images, rng.choice(HASH_BLOCKS))
    full = volume.back_up(OURS, random_content(rng, volume.hash_block), None, 'full', codec)
    second = volume.edited(OURS, full, codec, [volumes.change_blocks, volumes.zero, volumes.change_end])
    third = volume.edited(OURS, second, codec, [volumes.change, volumes.shrink_within_block])
    fourth = volume.edited(OURS, third, codec, [volumes.nothing])
    volume.edited(OURS, fourth, codec, [volumes.grow_within_block, volumes.change_blocks])
    volume.edited(OURS, full, codec, [volumes.shrink_to_border])
    branch = volume.edited(OURS, second, codec)
    volume.edited(OURS, branch, codec)
    return volume


def large_objects(rng, images, codec):
    """Objects of several pieces: text, zeros, what cannot be compressed, all of these, and an odd rest."""
    block = rng.choice(LARGE_HASH_BLOCKS)
    volume = Volume(rng, images, block)
    object_bytes = -(-rng.randint(5 * MIB // 2, 3 * MIB) // block) * block
    rest = volumes.content(rng, rng.randint(1, object_bytes - 1) // block * block + rng.randint(1, block - 1))
    data = text(rng, object_bytes) + bytes(object_bytes) + rng.randbytes(object_bytes) + rest
    full = volume.back_up(OURS, data, None, 'full', codec, object_bytes)
    # From here on in every window: data to text and to zeros over more than a piece, and a block that was zeros.
    edits = bytearray(data)
    edits[2 * object_bytes:2 * object_bytes + 2 * MIB] = text(rng, 2 * MIB)
    edits[1:MIB + block] = bytes(MIB + block - 1)
    edits[object_bytes + block] ^= 0xff
    second = volume.back_up(OURS, edits, full, 'text and zeros', codec, object_bytes)
    volume.edited(OURS, second, codec, object_bytes=2 * object_bytes)
    return volume


def alternating(rng, images, codec, makers):
    """A chain of five in turns, and both makers' branches off its second and third."""
    volume = Volume(rng, images, rng.choice(HASH_BLOCKS))

    def turn(maker):
        return maker, codec if maker == OURS else rng.choice(volumes.CODECS)

    maker, its_codec = turn(makers[0])
    last = volume.back_up(maker, random_content(rng, volume.hash_block), None, 'full', its_codec)
    for link in range(1, 5):
        maker, its_codec = turn(makers[link % 2])
        last = volume.edited(maker, last, its_codec, [volumes.change_blocks] if link == 1 else ())
    for parent in volume.backups[1:3]:
        maker, its_codec = turn(parent.maker)  # two of the same in sequence
        volume.edited(maker, parent, its_codec)
    return volume


def text(rng, length):
    line = b'%032x: pack my box with five dozen liquor jugs, number %d\n'
    return b''.join(line % (rng.getrandbits(128), i) for i in range(length // 64 + 1))[:length]


def options(backup, newest):
    """The options of `create` for a backup. The parent is left to --incremental where that must find it."""
    volume, settings = backup.volume, backup.settings
    if backup.parent:
        yield from ['--incremental'] if backup.parent is newest else ['--parent', backup.parent.id]
    if volume.has_defaults:
        return
    if not backup.parent and volume.name is not None:
        yield f'--volume-name={volume.name}'
    yield from [f'--volume-id={volume.id}', f"--block-size={settings['hash_block']}"]
    for option in 'compression', 'object_size', 'name', 'description', 'container':
        if settings[option] is not None:
            yield f"--{option.replace('_', '-')}={settings[option]}"
    for key, value in volume.properties.items():
        yield f'--property={key}={value}'


def create(cinderfs, store, image, *arguments):
    """`cinderfs create`; its exit status, its summary if there is one, and what it says in words."""
    command = [cinderfs, 'create', store, image, '--progress', 'json', *arguments]
    done = subprocess.run(command, capture_output=True, timeout=kit.TIMEOUT_S, stdin=subprocess.DEVNULL)
    stderr = done.stderr.decode(errors='replace').strip()
    told = f"exit status {done.returncode} of {' '.join(map(repr, map(str, command)))}: {stderr}"
    if done.returncode:
        return done.returncode, {}, told
    summary = json.loads(stderr.splitlines()[-1])['summary']
    if done.stdout.decode() != summary['backup_id'] + '\n':
        raise RuntimeError(f'stdout {done.stdout!r}, {told}')
    return 0, summary, told


def make(cinderfs, store, cinder, twins, volume):
    """Make all backups of a volume, and the twin of each if there are `twins`."""
    newest, last_at = None, datetime.datetime.min
    for backup in volume.backups:
        job = {'command': 'backup', 'image': str(backup.image), 'volume_id': volume.id, 'volume_name': volume.name,
               'properties': volume.properties, 'parent': backup.parent and backup.parent.id, **backup.settings}
        if backup.maker == OURS:
            status, summary, told = create(cinderfs, store, backup.image, *options(backup, newest))
            wanted = (volume.id, backup.parent and backup.parent.id)
            if status or (summary['volume_id'], summary['parent_id']) != wanted:
                raise RuntimeError(f'{told}\n    wanted volume and parent {wanted}: {backup.story}')
            backup.id, when = summary['backup_id'], summary['created_at']
        else:
            backup.id = volumes.new_id(volume.rng)
            now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None, microsecond=0)
            when = max(now, last_at + datetime.timedelta(seconds=1)).isoformat() + 'Z'
            cinder.do(backup_id=backup.id, created_at=when, **job)
        newest, last_at = backup, datetime.datetime.fromisoformat(when.removesuffix('Z'))
        if twins:
            twins.do(backup_id=backup.id, created_at=when, **job)
        backup.created_at = last_at


def check_refusals(cinderfs, store, twins, backup, tally):
    """What genuine Cinder refuses as an increment of `backup`, or fails at, is refused; each with nothing left behind."""
    block, longer = backup.settings['hash_block'], backup.image.with_name('longer.img')
    longer.write_bytes(backup.image.read_bytes() + bytes(block))
    for story, image, hash_block in [('another hash block', backup.image, 2 * block), ('a block more', longer, block)]:
        before = sorted(store.rglob('*'))
        status, _, told = create(cinderfs, store, image, f'--parent={backup.id}', f'--volume-id={backup.volume.id}',
                                 f'--block-size={hash_block}', f'--object-size={hash_block}')
        wrong = None if status == 2 else f'{story}: {told}'
        if sorted(store.rglob('*')) != before:
            wrong = f'{story}: the store is not as it was'
        tally.note('refusal', backup, wrong)
        try:
            twins.do(command='backup', image=str(image), parent=backup.id, hash_block=hash_block, object_size=hash_block)
        except RuntimeError:
            tally.note('refusal', backup, None)
        else:
            tally.note('refusal', backup, f'{story}: genuine Cinder takes it')


def check_deletion(cinder, store, backups, tally):
    """Cinder deletes what we made as its own: no file is left."""
    for backup in reversed(backups):
        cinder.do(command='delete', backup_id=backup.id)
    left = [str(path) for path in store.rglob('*') if not path.is_dir()]
    tally.note('deletion', backups[0], f'left are {left}' if left else None)


def run(cinderfs, work, rng, rounds, tally):
    store, twin_store, images = work / 'store', work / 'twins', work / 'images'
    for folder in store, images:
        folder.mkdir(parents=True)
    planned = plan(rng, images, rounds)
    backups = [backup for volume in planned for backup in volume.backups]
    # And 4 refusals, a clean unmount, objects of all kinds, a deletion.
    tally.expected += len(backups) * len(VIEWS) + 4 + 3
    ours = sum(backup.maker == OURS for backup in backups)
    print(f'create: {len(planned)} volumes, {ours} backups by cinderfs, {len(backups) - ours} by Cinder', flush=True)
    cinder, twins = kit.Cinder(store), kit.Cinder(twin_store)
    try:
        for volume in planned:
            make(cinderfs, store, cinder, twins, volume)
        check_refusals(cinderfs, store, twins, planned[1].backups[1], tally)
    finally:
        cinder.close()
        twins.close()

    cinder = kit.Cinder(store)  # one that never saw any of them
    comparison = documents.Comparison(store, twin_store)
    try:
        for backup in backups:
            kit.check_genuine(cinder, backup, work / 'restored.img', tally)
            kit.check_genuine_new(cinder, backup, work / 'restored.img', tally)
            read = cinder.do(command='read', backup_id=backup.id)
            tally.note('documents', backup, comparison.wrong(backup, read, backup.maker == OURS))
    finally:
        cinder.close()
    for backup in backups:
        kit.check_restore(cinderfs, store, backup, tally)
    with kit.mounted(cinderfs, store, work / 'mnt', work / 'mount.log'):
        with multiprocessing.Pool(1, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as reader:
            for backup in backups:
                kit.check_mount(work / 'mnt', backup, rng, reader, tally)
    tally.passed += 1  # unmounted, else an exception
    comparison.print()
    missing = comparison.unproven(CODECS)
    tally.note('objects', backups[0], f'no object was {missing}' if missing else None)
    if tally.passed == tally.expected - 1:  # else the store is kept
        cinder = kit.Cinder(store)
        try:
            check_deletion(cinder, store, backups, tally)
        finally:
            cinder.close()
