"""What a user does who lost data: restores the whole volume, or mounts it and takes one file. Beside genuine Cinder.

The parts `restore` and `first-file` need the same slow thing, a restore by genuine Cinder, so they share the rounds: each round
has one of those and everything that is compared with it.
"""

import os
import statistics
import subprocess
import tempfile
import time

import bars
import filesystem
import genuine
import kit
import readers

def of(run):
    """The one of this run."""
    return run.shared("rescue", Rescue)


class Rescue:
    def __init__(self, run):
        self.run, self.rounds_done = run, False
        self.missing = None
        try:
            self.volume = filesystem.volume(run)
        except kit.Missing as error:
            self.missing = str(error)
            return
        self.index = run.index_of(self.volume)
        self.cinder = run.cinder()
        self.restores = {"cinder": [], "ours": [], "ours, index": []}  # (seconds, peak RSS)
        # (how, start or end) -> seconds
        self.files = {(how, file["where"]): [] for how in ("cinder", "no index", "index") for file in self.volume.wanted}

    def measure(self):
        if self.rounds_done:
            return
        for number in self.run.each_round("restore and first file"):
            with kit.folder(kit.roomy_folder(self.volume.size, self.run.scratch), "cinderfs-bench-") as folder:
                target = os.path.join(folder, "volume.img")
                kit.warm(self.volume.store)
                self.by_cinder(target)
                self.check(target, number)
                os.unlink(target)
                kit.warm(self.volume.store)
                for how, index in (("ours", None), ("ours, index", self.index)):
                    if how == "ours" or index:
                        self.by_us(target, how, index)
                        self.check(target, number)
                        os.unlink(target)
            for file in self.volume.wanted:
                for how, index in (("no index", None), ("index", self.index)):
                    if how == "no index" or index:
                        self.files[how, file["where"]].append(self.first_file(file, index))
        self.rounds_done = True

    def check(self, target, number):
        if number == 0 and readers.sha256(target) != self.volume.sha256:
            raise kit.Failed("a restore wrote wrong bytes to %s" % target)

    def by_cinder(self, target):
        seconds, peak = self.cinder.restore(self.volume.store, self.volume.backup_id, target)
        self.restores["cinder"].append((seconds, peak))
        for file in self.volume.wanted:
            started = time.monotonic()
            self.files["cinder", file["where"]].append(seconds + self.loop_read(target, file) - started)

    def by_us(self, target, how, index):
        cache_dir = self.run.copy_of(index) if index else self.run.folder("cache-")
        with tempfile.TemporaryFile() as log:
            started = time.monotonic()
            process = subprocess.Popen([self.run.args.cinderfs, "restore", self.volume.store, self.volume.backup_id, target],
                                       env=self.run.environment(cache_dir), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=log)
            try:
                peak = kit.wait_watching(process, genuine.RESTORE_SECONDS_MAX)
            finally:
                if process.returncode is None:
                    process.kill()
                    process.wait()
            seconds = time.monotonic() - started
            if process.returncode != 0:
                log.seek(0)
                raise kit.Failed("restore ended with %d: %s" % (process.returncode, log.read().decode(errors="replace").strip()))
        self.restores[how].append((seconds, peak))
        self.run.forget(cache_dir)

    def loop_read(self, image, file):
        """Mounts the image's file system and reads one file; when that was done."""
        with kit.loop_mount(image, self.run.folder("loop-"), "ext4", "ro,noload") as where:
            with open(os.path.join(where, file["path"]), "rb") as wanted:
                data = wanted.read()
            done = time.monotonic()
        if len(data) != file["bytes"] or readers.digest(data) != file["sha256"]:
            raise kit.Failed("%s read through %s is not the file" % (file["path"], image))
        return done

    def first_file(self, file, index):
        """Seconds from the start of the daemon to the last byte of the file."""
        cache_dir = self.run.copy_of(index) if index else None
        with self.run.mount(self.volume.store, "first file", cache_dir=cache_dir) as daemon:
            seconds = self.loop_read(daemon.image(self.volume.backup_id), file) - daemon.started
        self.run.forget(daemon.cache_dir)
        return seconds

    def restore_table(self, bar_time, bar_memory):
        if self.missing:
            self.run.bars.put("restore", self.missing, None)
            yield "**Not measured: %s.**" % self.missing
            return
        self.measure()
        labels = {"cinder": self.cinder.what, "ours": "cinderfs restore, no index", "ours, index": "cinderfs restore, with index"}
        yield "| %s | seconds | peak RSS, MiB | times faster | part of its memory |" % self.volume.label
        yield "| --- | --- | --- | --- | --- |"
        theirs = self.restores["cinder"]
        for how, done in self.restores.items():
            if not done:
                yield "| %s | **%s** | | | |" % (labels[how], bars.NOT_BUILT)
                continue
            faster = bars.ratios([one[0] for one in done], [one[0] for one in theirs])
            smaller = bars.ratios([one[1] for one in done], [one[1] for one in theirs])
            yield "| %s | %s | %s | %s | 1/%s |" % (
                labels[how], kit.spread([one[0] for one in done], form="%.2f"), kit.spread([one[1] for one in done], 1 << 20),
                kit.spread(faster, form="%.1f"), kit.spread(smaller, form="%.1f"))
            if how == "ours":
                self.run.bars.put("restore", "%s x faster, RSS 1/%s%s" % (
                    kit.spread(faster, form="%.1f"), kit.spread(smaller, form="%.0f"), self.caveat()),
                    statistics.median(faster) >= bar_time and statistics.median(smaller) >= bar_memory)

    def caveat(self):
        return "" if self.cinder.what.startswith("genuine") else ", against " + self.cinder.what

    def first_file_table(self, bar_no_index, bar_index):
        if self.missing:
            self.run.bars.put("first file", self.missing, None)
            yield "**Not measured: %s.**" % self.missing
            return
        self.measure()
        yield "| file | %s + loop mount + read, s | no index, s | times faster | with index, s | times faster |" % self.cinder.what
        yield "|" + " --- |" * 6
        for file in self.volume.wanted:
            where = file["where"]
            theirs = self.files["cinder", where]
            cells = ["%s (%d KiB)" % (file["what"], file["bytes"] >> 10), kit.spread(theirs, form="%.1f")]
            for how, least in (("no index", bar_no_index), ("index", bar_index)):
                seconds = self.files[how, where]
                if not seconds:
                    cells += ["**%s**" % bars.NOT_BUILT, ""]
                    self.run.bars.put("first file", "%s: %s" % (how, bars.NOT_BUILT), False)
                    continue
                faster = bars.ratios(seconds, theirs)
                cells += [kit.spread(seconds, form="%.3f"), kit.spread(faster, form="%.1f")]
                self.run.bars.put("first file", "%s, %s: %s%s" % (where, how, kit.spread(faster, form="%.0f"), self.caveat()),
                                  statistics.median(faster) >= least)
            yield "| %s |" % " | ".join(cells)
