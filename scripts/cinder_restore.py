"""Cinder's restore in a few lines, and the shape of the documents that Cinder writes.

What the scripts that make stores are checked against. `restore` follows Cinder's own steps (whole objects, in list order, full
backup first) and also checks what Cinder leaves unchecked. `shape` lets a made backup be compared with a genuine one.
"""

import bz2
import hashlib
import json
import os
import re
import subprocess
import zlib

import cinder_store as cinder


def decompress(codec, data):
    if codec in ("none", "off", "no"):
        return data
    if codec in ("zlib", "gzip"):
        return zlib.decompress(data)
    if codec in ("bz2", "bzip2"):
        return bz2.decompress(data)
    return subprocess.run(["zstd", "-d", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def restore(chain, length):
    """Applies a chain, full backup first, as Cinder does: whole objects, in list order. Checks what Cinder ignores, too."""
    image = bytearray(length)
    for path in chain:
        with open(path, "rb") as file:
            metadata = json.load(file)
        folder, prefix = os.path.dirname(path), os.path.basename(path).removesuffix("_metadata")
        listed = [name for entry in metadata["objects"] for name in entry]
        present = [n for n in os.listdir(folder) if n.startswith(prefix) and not n.endswith(("_metadata", "_sha256file"))]
        assert sorted(listed) == sorted(present), "object list does not match"
        for entry in metadata["objects"]:
            (name, facts), = entry.items()
            with open(os.path.join(folder, name), "rb") as file:
                data = decompress(facts["compression"], file.read())
            assert len(data) == facts["length"] and hashlib.md5(data).hexdigest() == facts["md5"], name
            image[facts["offset"]:facts["offset"] + len(data)] = data
    assert len(image) == length
    return image


def types_of(value):
    """A document with every value replaced by its type, and lists by their first element."""
    if isinstance(value, dict):
        return {key: types_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [types_of(item) for item in value[:1]]
    return "null or string" if value is None or isinstance(value, str) else type(value).__name__


def shape(backup_path):
    """What a `_metadata` and its `_sha256file` look like, names of objects, modes and volume columns included."""
    found = {}
    for suffix in ("_metadata", "_sha256file"):
        path = backup_path + suffix
        with open(path, "rb") as file:
            raw = file.read()
        document = json.loads(raw)
        assert cinder.dumps(document) == raw, "%s is not serialised as Cinder does" % path
        assert document["version"] == "1.0.0", path
        if suffix == "_metadata":
            row = json.loads(document.pop("volume_meta"))
            found["columns"] = list(row["volume-base-metadata"])
            found["keys of volume_meta"] = list(row)
            prefix = os.path.basename(backup_path)
            names = [name for entry in document["objects"] for name in entry]
            assert names == ["%s-%05d" % (prefix, i + 1) for i in range(len(names))], names
            stamp = document["created_at"][:19].translate({ord(c): None for c in "- :"})
            assert prefix == "volume_%s_%s_backup_%s" % (document["volume_id"], stamp, document["backup_id"])
            document["objects"] = [facts for entry in document["objects"] for facts in entry.values()]
        found[suffix] = types_of(document)
        found["created_at of " + suffix] = re.sub("[0-9]", "0", document["created_at"])
    return found


def check_extents(metadata_path, object_size, parent_digests, digests, block):
    """The rules by which Cinder cuts a volume into objects. Returns how many were stored plain since they did not shrink."""
    with open(metadata_path, "rb") as file:
        metadata = json.load(file)
    folder, plain, before = os.path.dirname(metadata_path), 0, None
    for entry in metadata["objects"]:
        (name, facts), = entry.items()
        start, end = facts["offset"], facts["offset"] + facts["length"]
        assert start % block == 0 and start // object_size == (end - 1) // object_size, "%s crosses a window" % name
        assert before is None or start > before or start == before and start % object_size == 0, "%s continues another" % name
        stored = os.path.getsize(os.path.join(folder, name))
        plain += facts["compression"] == "none"
        assert stored < facts["length"] or (facts["compression"], stored) == ("none", facts["length"]), "%s grew" % name
        for index in range(start // block, -(-end // block)) if parent_digests else ():
            assert digests[index] != parent_digests[index], "block %d did not change" % index
        before = end
    return plain
