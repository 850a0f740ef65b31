"""The bytes that Cinder's POSIX backup driver writes, for the scripts that make stores.

This is a second, independent description of the format: it shares no code with cinderfs, so that a store made here and
read there says something about both. Names, order, numbering, modes and JSON are those of Cinder 29.0.0; `make-store.py
--self-check` compares them with a store that genuine Cinder wrote. Python's standard library only.
"""

import datetime
import hashlib
import json
import os
import uuid

VERSION = "1.0.0"
GIB = 1 << 30
DIGEST_SLOT = 72  # `    "` + 64 digits + `",` + line feed: one digest's place in a `_sha256file`
# Columns of a volume's row in the order of release 29; the values of an idle volume.
VOLUME_COLUMNS = """id _name_id use_quota ec2_id user_id project_id snapshot_id cluster_name host size availability_zone
status attach_status migration_status scheduled_at launched_at terminated_at display_name display_description
provider_location provider_auth provider_geometry provider_id volume_type_id source_volid encryption_key_id
consistencygroup_id group_id bootable multiattach replication_status replication_extended_status
replication_driver_data previous_status service_uuid shared_targets deleted_at deleted created_at updated_at""".split()


def parse_size(text):
    """Bytes from `4096`, `32K`, `1.5G`, `1T` (powers of 1024)."""
    text = text.strip().upper().removesuffix("B").removesuffix("I")
    scale = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:])
    return int(text) if scale is None else int(float(text[:-1]) * (1 << scale))


def seeded_uuid(*parts):
    """The same id for the same parts, on every machine."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "cinderfs-test-store:" + ":".join(map(str, parts))))


def dumps(document):
    """A document as Cinder serialises it on Python 3."""
    return json.dumps(document, sort_keys=True, indent=2).encode("utf-8")


class Backup:
    """Where one backup lies and what its two documents say. `objects` is filled as they are written."""

    def __init__(self, store, volume_id, backup_id, number, name, parent_id, volume_bytes, block_bytes):
        self.store, self.volume_id, self.backup_id, self.name = store, volume_id, backup_id, name
        self.parent_id, self.volume_bytes, self.block_bytes = parent_id, volume_bytes, block_bytes
        # One backup a night, always some odd seconds, as the fixtures have.
        self.created_at = datetime.datetime(2024, 3, 1, 1, 1, 7) + datetime.timedelta(days=number)
        self.container = os.path.join(backup_id[0:2], backup_id[2:4], backup_id)
        self.folder = os.path.join(store, self.container)
        self.prefix = "volume_%s_%s_backup_%s" % (volume_id, self.created_at.strftime("%Y%m%d%H%M%S"), backup_id)
        self.objects = []

    def make_folder(self):
        os.makedirs(self.folder)
        os.chmod(self.folder, 0o770)

    def path(self, suffix):
        return os.path.join(self.folder, self.prefix + suffix)

    def object_name(self, number):
        """Objects count from 1 and are padded to five digits, wider where they must."""
        return "%s-%05d" % (self.prefix, number)

    def add_object(self, name, codec, offset, length, md5):
        self.objects.append({name: {"compression": codec, "length": length, "md5": md5, "offset": offset}})

    def _common(self):
        return {
            "backup_description": None,
            "backup_id": self.backup_id,
            "backup_name": self.name,
            "created_at": str(self.created_at) + "+00:00",
            "version": VERSION,
            "volume_id": self.volume_id,
        }

    def metadata(self):
        first = datetime.datetime(2024, 3, 1, 1, 1, 7).isoformat()
        row = dict.fromkeys(VOLUME_COLUMNS)
        row.update(
            id=self.volume_id, use_quota=True, user_id="2" * 32, project_id="1" * 32, host="bench@lvm#lvm",
            size=-(-self.volume_bytes // GIB), availability_zone="nova", status="available", attach_status="detached",
            display_name="bench", volume_type_id="33333333-3333-3333-3333-333333333333", bootable=False,
            multiattach=False, shared_targets=True, deleted=False, created_at=first + ".000000",
            updated_at=self.created_at.isoformat() + ".000000" if self.parent_id else None)
        volume_meta = json.dumps({"version": 2, "volume-base-metadata": row})
        return dict(self._common(), objects=self.objects, parent_id=self.parent_id, volume_meta=volume_meta)

    def write_digests(self, pieces):
        """Writes `_sha256file` from an iterable of texts already in slots; see `digest_slots`."""
        head, tail = self.digest_frame()
        with open(self.path("_sha256file"), "wb") as out:
            out.write(head)
            for piece in pieces:
                out.write(piece)
            # The last digest has no comma: step back over `,\n`.
            out.seek(-2, os.SEEK_CUR)
            out.write(b"\n" + tail)
            out.truncate()
        os.chmod(self.path("_sha256file"), 0o660)

    def digest_frame(self):
        """What stands before the first digest's slot and after the last digest's line feed."""
        document = dict(self._common(), chunk_size=self.block_bytes, sha256s=["@"])
        head, tail = dumps(document).split(b'    "@"\n')
        return head, tail

    def write_metadata(self):
        """The commit: a folder without it is a backup in progress."""
        with open(self.path("_metadata"), "wb") as out:
            out.write(dumps(self.metadata()))
        os.chmod(self.path("_metadata"), 0o660)


def digest_slots(digests):
    """32-byte digests, one after the other, as the text of their slots."""
    text = digests.hex()
    return "".join('    "%s",\n' % text[i:i + 64] for i in range(0, len(text), 64)).encode()


def block_digests(data, block_bytes):
    """The sha256 of each block of `data`; the last may be short and is hashed as it is."""
    view = memoryview(data)
    return b"".join(hashlib.sha256(view[i:i + block_bytes]).digest() for i in range(0, len(data), block_bytes))
