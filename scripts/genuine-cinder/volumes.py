"""Random volumes and the backups to make of them.

A plan is a list of backups in the order of making. Each has its image file (the whole volume at that moment) and the
settings it is to be made with. Parents are any earlier backup of the same volume, so chains branch. The first volumes of
a plan are fixed in shape: they walk through the ways in which a volume's length can change.

What genuine Cinder refuses is not planned: an incremental with more blocks than its parent, an object size that is no
multiple of the hash block, another hash block than the parent's.
"""
import uuid

HASH_BLOCKS = [512, 777, 1000, 4096, 32768, 32768, 65536, 100_000, 1 << 20]
CODECS = ['zlib', 'gzip', 'bz2', 'bzip2', 'zstd', 'none']
CONTAINERS = [None, None, 'nightly', 'team/one', 'team/one', 'Ärzte/été 2/x']
NAMES = [None, '', 'weekly', 'Sicherung für März', '備份 𝄞', 'a "quote", a \\ and\na line', 'x' * 255]
VOLUME_NAMES = [None, '', 'db', 'db', 'Müller 𝄞', 'a/b', '..']
# Keep a run short: bytes of one volume, its blocks, and the objects of one full backup (Cinder syncs after each).
VOLUME_BYTES_MAX, BLOCKS_MAX, OBJECTS_MAX = 4 << 20, 300, 24


class Backup:
    """A backup to be made: the image at that moment and cinder.py's settings."""

    def __init__(self, image, data, parent, story, settings):
        self.image, self.bytes, self.parent, self.settings = image, len(data), parent, settings
        self.id = image.stem
        keys = ['hash_block', 'object_size', 'compression', 'container']
        self.story = f'{story}, {len(data)} bytes, ' + ', '.join(f'{key} {settings[key]}' for key in keys)
        image.write_bytes(data)

    def chain(self):
        """This backup, its parent, and so on to the full one."""
        link = self
        while link:
            yield link
            link = link.parent


class Volume:
    """Plans the backups of one volume."""

    def __init__(self, rng, images, hash_block):
        self.rng, self.images, self.hash_block = rng, images, hash_block
        self.id, self.name = new_id(rng), rng.choice(VOLUME_NAMES)
        self.backups = []

    def back_up(self, data, parent, story):
        objects = self.rng.randint(1, OBJECTS_MAX)
        blocks_per_object = max(1, -(-len(data) // (objects * self.hash_block)))
        settings = {
            'volume_id': self.id, 'volume_name': self.name, 'parent': parent and parent.id,
            'hash_block': self.hash_block, 'object_size': blocks_per_object * self.hash_block,
            'compression': self.rng.choice(CODECS), 'container': self.rng.choice(CONTAINERS),
            'name': self.rng.choice(NAMES), 'description': self.rng.choice(NAMES)}
        story = f'{story} since {parent.id}' if parent else story
        backup = Backup(self.images / f'{new_id(self.rng)}.img', data, parent, story, settings)
        self.backups.append(backup)
        return backup

    def edited(self, parent):
        """Back up what some random edits make of the volume as it was at `parent`."""
        data, names = bytearray(parent.image.read_bytes()), []
        for edit in self.rng.choices(EDITS, k=self.rng.randint(1, 3)):
            edit(self.rng, data, self.hash_block)
            names.append(edit.__name__)
        self.back_up(data, parent, ' + '.join(names))


def plan(rng, images, count):
    """The backups of the fixed volumes and of `count` random ones."""
    backups = empty(rng, images)
    for hash_block in [512, 1000, 32768]:
        backups += resized(rng, images, hash_block)
    for _ in range(count):
        backups += random_volume(rng, images)
    return backups


def resized(rng, images, hash_block):
    """Every way to end in another place than the parent, and changes after it that leave the end alone."""
    volume = Volume(rng, images, hash_block)

    def to(blocks, parent, story):
        data = content(rng, round(100.7 * hash_block)) if parent is None else parent.image.read_bytes()
        length = round(blocks * hash_block)
        return volume.back_up(data[:length] + content(rng, length - len(data)), parent, story)

    full = to(100.7, None, 'full')
    to(100.5, full, 'shrink within the last block')
    to(100, full, 'shrink to the start of the last block')
    border = to(90, full, 'shrink to a border')
    to(90, border, 'unchanged at a border')
    volume.edited(border)
    inside = to(90.3, full, 'shrink into a block')
    longer = to(90.6, to(90.3, inside, 'unchanged inside a block'), 'grow within the last block')
    to(91, longer, 'grow to a border')
    to(100.9, full, 'grow within the last block')
    to(1 / hash_block, full, 'shrink to one byte')
    return volume.backups


def empty(rng, images):
    """No byte at all, from the start and after a shrink."""
    never, once = Volume(rng, images, 4096), Volume(rng, images, 4096)
    never.back_up(b'', None, 'full, empty')
    once.back_up(b'', once.back_up(content(rng, 10_000), None, 'full'), 'shrink to nothing')
    return never.backups + once.backups


def random_volume(rng, images):
    volume = Volume(rng, images, rng.choice(HASH_BLOCKS))
    blocks = rng.randint(1, max(1, min(BLOCKS_MAX, VOLUME_BYTES_MAX // volume.hash_block) - 1))
    tail = rng.choice([0, 0, 1, volume.hash_block - 1, rng.randrange(volume.hash_block)])
    volume.back_up(content(rng, blocks * volume.hash_block + tail), None, 'full')
    for _ in range(rng.randint(1, 5)):
        newest = volume.backups[-1]
        if rng.random() < 0.1:
            data = newest.image.read_bytes()
            volume.back_up(data + content(rng, rng.randint(1, 3 * volume.hash_block)), None, 'grown, full again')
        else:
            volume.edited(newest if rng.random() < 0.7 else rng.choice(volume.backups))
    return volume.backups


# The edits change `data` in place; `block` is the hash block in bytes.

def change(rng, data, block):
    """New content somewhere, aligned to nothing."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.randint(1, 3 * block))
    data[start:end] = content(rng, end - start)


def change_blocks(rng, data, block):
    """One byte in each of several blocks: many small extents."""
    for _ in range(rng.randint(2, 12) if data else 0):
        data[rng.randrange(len(data))] ^= rng.randint(1, 255)


def zero(rng, data, block):
    """Data becomes zeros."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.randint(1, 8 * block))
    data[start:end] = bytes(end - start)


def change_end(rng, data, block):
    """The last block, short or whole, changes without moving the end."""
    if data:
        data[-1] ^= 0xff


def shrink_within_block(rng, data, block):
    last_start = max(0, len(data) - 1) // block * block
    del data[rng.randint(min(last_start + 1, len(data)), len(data)):]


def shrink_to_border(rng, data, block):
    del data[rng.randint(1, max(1, len(data) // block)) * block:]


def grow_within_block(rng, data, block):
    data += content(rng, rng.randint(0, -len(data) % block))


def nothing(rng, data, block):
    """An incremental may be without any object."""


EDITS = [change, change, change_blocks, zero, zero, change_end, shrink_within_block, shrink_to_border, grow_within_block,
         nothing]


def content(rng, length):
    """Runs of zeros, text, random bytes and one repeated byte. Nothing when `length` is negative."""
    data = bytearray()
    while len(data) < length:
        run = rng.randint(1, max(1, length // 3))
        kind = rng.randrange(5)
        if kind <= 1:
            data += bytes(run)
        elif kind == 2:
            line = b'%032x: the quick brown fox jumps over the lazy dog\n' % rng.getrandbits(128)
            data += (line * (run // len(line) + 1))[:run]
        elif kind == 3:
            data += rng.randbytes(run)
        else:
            data += bytes([rng.randrange(256)]) * run
    return bytes(data[:max(0, length)])


def new_id(rng):
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
