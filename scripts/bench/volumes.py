"""The volumes that are read: made once by the store makers, kept in the run's directory of stores.

`mixed` is text, random data and zeros in pieces, in the shape that a part asks for. `chain` is rewritten block by block;
`filesystem.py` has the one with a file system. Nothing here is made with code of cinderfs.
"""

import json
import os
import subprocess
import sys

import kit

OBJECT_SIZE = 1999994880  # Cinder's default, the most that one object holds
MIB = 1 << 20


class Volume:
    """A store, its newest backup and the bytes that backup holds."""

    def __init__(self, label, codec, size, store, report, expected):
        self.label, self.codec, self.size, self.store, self.expected = label, codec, size, store, expected
        full, newest = report["backups"][0], report["backups"][-1]
        self.backup_id, self.sha256 = newest["id"], newest["sha256"]
        self.stored_objects = sum(backup["objects"] for backup in report["backups"])
        folder = os.path.join(store, full["container"])
        with open(os.path.join(folder, full["prefix"] + "_metadata")) as file:
            facts = [pair for entry in json.load(file)["objects"] for pair in entry.items()]
        # Cinder stores plain what does not shrink; the full backup's other objects are what a bare decoder is timed with.
        coded = [(name, about["length"]) for name, about in facts if about["compression"] == codec]
        self.objects = [os.path.join(folder, name) for name, _ in coded]
        self.coded_bytes = sum(length for _, length in coded)
        if self.coded_bytes < size / 2:
            raise kit.Failed("objects of %s are not stored as %s" % (store, codec))

    def stored_bytes(self):
        return sum(os.path.getsize(path) for path in self.objects)


def once(path, make):
    """The JSON that `make` gives, kept at `path` for this run and the next."""
    if not os.path.exists(path):
        made = make()
        with open(path + ".part", "wb") as out:
            out.write(made)
        os.rename(path + ".part", path)
    with open(path) as file:
        return json.load(file)


def script(name, *words):
    """Runs a store maker; what it prints."""
    command = [sys.executable, os.path.join(kit.SCRIPTS, name), *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def mixed(run, label, codec, size, object_size=OBJECT_SIZE, incrementals=0):
    """40 % text and programs, 30 % random, 30 % zeros; a full backup and incrementals of 1 %."""
    name = "%s-%d-%d-%d" % (codec, size, object_size, incrementals)
    return _made(run, label, codec, size, name, ["--object-size", object_size, "--incrementals", incrementals])


def chain(run, label, size, incrementals, objects):
    """`objects` of one block each, spread evenly over the incrementals and anywhere in the volume."""
    name = "chain-%d-%d-%d" % (size, incrementals, objects)
    return _made(run, label, "zlib", size, name, ["--incrementals", incrementals, "--scatter", -(-objects // incrementals)])


def full_of(run, label, volume):
    """A volume's bytes once more, as one full backup with default objects."""
    name = os.path.basename(volume.store) + "-full"
    store = os.path.join(run.stores, name)

    def make():
        kit.say("making %s" % name)
        return script("make-store.py", store, "--codec", "zlib", "--image", volume.expected)
    report = once(store + ".json", make)
    if report["backups"][0]["sha256"] != volume.sha256:
        raise kit.Failed("%s is not the volume of %s" % (store, volume.store))
    return Volume(label, "zlib", volume.size, store, report, volume.expected)


def _made(run, label, codec, size, name, options):
    store = os.path.join(run.stores, name)

    def make():
        kit.say("making %s" % name)
        return script("make-store.py", store, "--codec", codec, "--size", size, "--image-out", store + ".img", *options)
    report = once(store + ".json", make)
    expected = _shared(run, store + ".img", report["backups"][-1]["sha256"])
    return Volume(label, codec, size, store, report, expected)


def _shared(run, path, sha256):
    """The path of an image by its content: most volumes differ in the codec alone, and so share it."""
    shared = os.path.join(run.stores, "image-" + sha256[:16])
    if os.path.exists(path):
        os.rename(path, shared)
    return shared
