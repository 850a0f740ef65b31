"""Compares the files of a backup with those of its twin, which genuine Cinder made of the same image.

Equal must be: the names and modes of all files; `_sha256file`, to the byte; `_metadata` in its layout and in all that it
says, but for what is counted here and printed at the end:

    keys of our own in an object's entry
    `none` instead of a codec, or the reverse, where an object gets hardly any smaller
    in volume_meta, what only Cinder's database knows
    the stored bytes of objects that are compressed

A backup that Cinder made on top of ours must be its twin in all but volume_meta.
"""
import collections
import json
import stat

POINTS = 'cinderfs_restart_points'
# What Cinder's database tells of a volume and a writer without it cannot.
DATABASE_COLUMNS = {'user_id', 'project_id', 'host', 'availability_zone', 'status', 'attach_status', 'volume_type_id',
                    'created_at', 'updated_at'}
# An object that shrinks by less, as a part of its length, may be stored as `none` by one of the two writers.
HARDLY_SMALLER, HARDLY_SMALLER_BYTES = 0.02, 64


class Wrong(Exception):
    """What differs and must not."""


def same(got, want, what):
    if got != want:
        raise Wrong(f'{what}: {got!r}, and the twin has {want!r}')


class Comparison:
    def __init__(self, store, twin_store):
        self.store, self.twin_store = store, twin_store
        self.differences = collections.Counter()
        self.objects = collections.Counter()  # ours
        self.stored = {}  # bytes of ours and Cinder's, by codec

    def wrong(self, backup, read, is_ours):
        """What is wrong, in words; None when nothing is. `read` is what Cinder's own code reads of the documents."""
        try:
            self.compare(backup, read, is_ours)
        except (Wrong, OSError, LookupError, TypeError, ValueError) as error:
            return f'{type(error).__name__}: {error}'

    def compare(self, backup, read, is_ours):
        container = backup.settings['container'] or f'{backup.id[:2]}/{backup.id[2:4]}/{backup.id}'
        prefix = f'volume_{backup.volume.id}_{backup.created_at:%Y%m%d%H%M%S}_backup_{backup.id}'
        folder, twin_folder = self.store / container, self.twin_store / container
        same(modes(folder, prefix), modes(twin_folder, prefix), 'names and modes')
        for what in 'sha256file', 'metadata':
            text = (folder / f'{prefix}_{what}').read_bytes()
            if json.dumps(json.loads(text), sort_keys=True, indent=2).encode() != text:
                raise Wrong(f'{what} is not laid out as json.dumps does it')
            if read[what] != json.loads(text):
                raise Wrong(f'Cinder reads another {what}')
        if (folder / f'{prefix}_sha256file').read_bytes() != (twin_folder / f'{prefix}_sha256file').read_bytes():
            raise Wrong('sha256file is not the same bytes as the twin')
        metadata = json.loads((folder / f'{prefix}_metadata').read_bytes())
        twin = json.loads((twin_folder / f'{prefix}_metadata').read_bytes())
        self.compare_volume_meta(metadata.pop('volume_meta'), twin.pop('volume_meta'), is_ours)
        same(len(metadata['objects']), len(twin['objects']), 'objects')
        for entry, twin_entry in zip(metadata['objects'], twin['objects']):
            same(list(entry), list(twin_entry), 'object')
            (name, value), (twin_value,) = *entry.items(), twin_entry.values()
            stored, twin_stored = (folder / name).read_bytes(), (twin_folder / name).read_bytes()
            if is_ours:
                self.compare_object(name, value, twin_value, stored, twin_stored)
            elif stored != twin_stored:
                raise Wrong(f'{name} is not the same bytes as the twin, and Cinder made both')
        for key in sorted(metadata.keys() | twin.keys()):
            same(metadata.get(key), twin.get(key), key)

    def compare_object(self, name, value, twin, stored, twin_stored):
        """Counts what may differ in an object's entry, and takes it away."""
        points = value.pop(POINTS, None)
        codec, twin_codec = value['compression'], twin['compression']
        self.objects[f'{codec}, with restart points' if points else codec] += 1
        if points:
            self.differences[f'object: key {POINTS}'] += 1
        if codec != twin_codec:
            least = min(len(stored), len(twin_stored))
            if 'none' not in (codec, twin_codec) or value['length'] - least > max(
                    HARDLY_SMALLER_BYTES, HARDLY_SMALLER * value['length']):
                raise Wrong(f'{name} is {codec} of {len(stored)} bytes, the twin {twin_codec} of {len(twin_stored)}')
            self.differences[f'object: {codec} instead of {twin_codec}'] += 1
            value['compression'] = twin_codec
        elif codec == 'none':
            if stored != twin_stored:
                raise Wrong(f'{name} is not the same bytes as the twin')
        else:
            if stored != twin_stored:
                self.differences[f'object: stored bytes of {codec}'] += 1
            sums = self.stored.setdefault(codec, [0, 0])
            sums[0] += len(stored)
            sums[1] += len(twin_stored)

    def compare_volume_meta(self, text, twin_text, is_ours):
        meta, twin = json.loads(text), json.loads(twin_text)
        if json.dumps(meta) != text:
            raise Wrong('volume_meta is not laid out as json.dumps does it')
        same(list(meta), list(twin), 'keys of volume_meta')
        base, twin_base = meta.pop('volume-base-metadata'), twin.pop('volume-base-metadata')
        same(meta, twin, 'volume_meta')
        same(list(base), list(twin_base), 'columns of volume_meta')
        for key in base:
            if base[key] != twin_base[key]:
                if key not in DATABASE_COLUMNS:
                    raise Wrong(f'volume_meta: {key} is {base[key]!r}, and the twin has {twin_base[key]!r}')
                if is_ours:
                    self.differences[f'volume_meta: {key}'] += 1

    def unproven(self, codecs):
        """Kinds of objects that no backup had; a comparison without them shows nothing about them."""
        kinds = [*codecs, *(f'{codec}, with restart points' for codec in codecs if codec != 'none')]
        return [kind for kind in kinds if not self.objects[kind]]

    def print(self):
        print('objects by cinderfs: ' + counts(self.objects))
        print('differs from Cinder: ' + counts(self.differences))
        for codec, (ours, cinders) in sorted(self.stored.items()):
            print(f'stored as {codec}: {ours} bytes, by Cinder {cinders} ({ours / cinders:.3f})')


def counts(counter):
    return '; '.join(f'{key} {count}' for key, count in sorted(counter.items())) or 'nothing'


def modes(folder, prefix):
    """The mode of the folder, and of each file of a backup by its name."""
    paths = [folder, *folder.glob('*')]
    found = {path.name: stat.filemode(path.stat().st_mode) for path in paths if path.name.startswith(prefix)}
    return found | {'the container': stat.filemode(folder.stat().st_mode)}
