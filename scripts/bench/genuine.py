"""Genuine Cinder as the yardstick: its own backup and restore, driven by scripts/genuine-cinder.

Where genuine Cinder cannot be installed, `Algorithm` stands in: the steps of Cinder's restore with Python's own zlib, without
Cinder around them, so it flatters Cinder. Every table that used it says so.
"""

import json
import os
import subprocess
import sys
import time
import zlib

import kit

FOLDER = os.path.join(kit.SCRIPTS, "genuine-cinder")
RESTORE_SECONDS_MAX = 1800


class Genuine:
    """Cinder 29 in a process of its own for each restore, so that its peak of memory is that restore's."""

    what = "genuine Cinder 29.0.0"

    def __init__(self):
        done = subprocess.run([os.path.join(FOLDER, "setup.sh")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise kit.Missing("genuine Cinder cannot be installed")
        self.python = done.stdout.decode().strip()

    def back_up(self, image, store):
        """A full backup with Cinder's defaults; its id."""
        done = subprocess.run([self.python, os.path.join(FOLDER, "cinder.py"), store, "backup", image],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)["backup_id"]

    def restore(self, store, backup_id, output):
        """(seconds, peak resident bytes) of a restore into a new file. The seconds it takes Cinder to start are not counted."""
        _, seconds, peak, _ = self._one(store, {"command": "restore", "backup_id": backup_id, "output": output})
        return seconds, peak

    def back_up_timed(self, image, store, compression):
        """(seconds to start, seconds, peak resident bytes) of a full backup, and its id."""
        starting, seconds, peak, answer = self._one(store, {"command": "backup", "image": image, "compression": compression})
        return starting, seconds, peak, answer["backup_id"]

    def _one(self, store, job):
        """One job in a process of its own: how long that took to start, then the job, its peak of memory, and its answer."""
        begun = time.monotonic()
        process = subprocess.Popen([self.python, os.path.join(FOLDER, "cinder.py"), store, "batch"], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            ask(process, {"command": "are you there"})  # answered with an error, once it has started
            started = time.monotonic()
            answer = ask(process, job)
            seconds = time.monotonic() - started
            if "error" in answer:
                raise kit.Failed("genuine Cinder: %s" % answer["error"])
            return started - begun, seconds, kit.peak_rss(process.pid), answer
        finally:
            process.stdin.close()
            try:
                process.wait(kit.STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask(process, job):
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise kit.Failed("genuine Cinder ended with status %s" % process.wait())
    return json.loads(line)


class Algorithm:
    """The same steps without Cinder."""

    what = "Cinder's algorithm in Python (**genuine Cinder could not be installed**)"

    def back_up(self, image, store):
        command = [sys.executable, os.path.join(kit.SCRIPTS, "make-store.py"), store, "--image", image]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["backups"][0]["id"]

    def back_up_timed(self, image, store, compression):
        raise kit.Missing("genuine Cinder could not be installed")

    def restore(self, store, backup_id, output):
        started = time.monotonic()
        done = subprocess.run([sys.executable, os.path.abspath(__file__), store, backup_id, output], check=True,
                              stdout=subprocess.PIPE, timeout=RESTORE_SECONDS_MAX)
        return time.monotonic() - started, int(done.stdout)


def find():
    """Genuine Cinder if it can be had."""
    try:
        return Genuine()
    except kit.Missing as error:
        kit.say("%s: its algorithm stands in" % error)
        return Algorithm()


def restore_full(store, backup_id, output):
    """Each object whole into memory, decompressed whole, written at its place, made durable."""
    (metadata_path,) = [path for path in kit.files_of(store) if path.endswith(backup_id + "_metadata")]
    with open(metadata_path) as file:
        objects = json.load(file)["objects"]
    with open(output, "wb") as out:
        for entry in objects:
            (name, facts), = entry.items()
            with open(os.path.join(os.path.dirname(metadata_path), name), "rb") as file:
                data = file.read()
            out.seek(facts["offset"])
            out.write(zlib.decompress(data) if facts["compression"] == "zlib" else data)
            out.flush()
            os.fsync(out.fileno())


if __name__ == "__main__":
    restore_full(*sys.argv[1:])
    print(kit.peak_rss(os.getpid()))
