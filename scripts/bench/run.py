"""One run of the benchmark: its sizes and directories, the program under test, and what every part leaves behind.

Parts ask for a mount, an index or a feature here and know nothing of each other. Invariant: every daemon of the program under
test goes through `Run.mount`, so its peak of memory is counted, whatever it was started for.
"""

import os
import shutil
import subprocess
import tempfile

import bars
import genuine
import kit

MIB = 1 << 20
CACHE_SIZE_DEFAULT = 256 * MIB
RSS_OVER_CACHE_MAX = 96 * MIB


class Mount(kit.Daemon):
    """A `cinderfs mount`. What it took is known when it has ended."""

    def __init__(self, run, what, command, mountpoint, cache_dir, cache_size):
        super().__init__(command, mountpoint, {"CINDERFS_CACHE_DIR": cache_dir})
        self.run, self.what, self.cache_dir, self.cache_size = run, what, cache_dir, cache_size

    def image(self, backup_id):
        return os.path.join(self.mountpoint, "backups", backup_id, "volume.img")

    def __exit__(self, *failure):
        super().__exit__(*failure)
        if self.peak:
            self.run.peaks.append((self.what, self.cache_size, self.peak))


class Index:
    """A cache directory that holds the restart points of one store; each daemon gets a copy."""

    def __init__(self, path, seconds):
        self.path, self.seconds, self.bytes = path, seconds, kit.bytes_under(path)


class Run:
    """Volumes are made in `stores`, which the part at hand decides; `scratch` is this run's and goes with it."""

    def __init__(self, args, scratch):
        self.args, self.stores, self.scratch = args, None, scratch
        self.rounds, self.quick = args.runs, args.quick
        self.mountpoint = self.folder("mnt-")
        self.bars, self.peaks = bars.Bars(), []
        self._indexes, self._features, self._shared = {}, {}, {}

    def folder(self, prefix):
        return tempfile.mkdtemp(prefix=prefix, dir=self.scratch)

    def example(self, name):
        return os.path.join(self.args.examples, name)

    def use_stores(self, path):
        os.makedirs(path, exist_ok=True)
        self.stores = path

    def drop_stores(self):
        """Gives the disk back: no later part reads these volumes, nor what is known of them."""
        for store, index in self._indexes.items():
            if index and store.startswith(self.stores + os.sep):
                self.forget(index.path)
        shutil.rmtree(self.stores, ignore_errors=True)

    def each_round(self, part):
        for number in range(self.rounds):
            kit.say("%s, round %d of %d" % (part, number + 1, self.rounds))
            yield number

    def shared(self, key, make):
        """What `make(run)` gave the first time: for what several parts of one run use."""
        if key not in self._shared:
            self._shared[key] = make(self)
        return self._shared[key]

    def cinder(self):
        return self.shared("cinder", lambda _: genuine.find())

    # -- the program under test --

    def mount(self, store, what, options=(), cache_dir=None, mountpoint=None):
        """A daemon that has seen nothing yet, with a fresh page cache of its images. Its cache directory is empty unless given."""
        mountpoint = mountpoint or self.mountpoint
        command = [self.args.cinderfs, "mount", "-f", store, mountpoint]
        cache_size = CACHE_SIZE_DEFAULT
        for option in options:
            command += ["-o", option]
            if option.startswith("cache_size="):
                cache_size = int(option.removeprefix("cache_size=").removesuffix("M")) * MIB
        return Mount(self, what, command, mountpoint, cache_dir or self.folder("cache-"), cache_size)

    def ceiling(self, mountpoint, size, like):
        """A daemon that serves `volume.img` out of memory with as many threads as ours serves the store `like` with."""
        def count(_):
            with self.mount(like, "counting threads") as daemon:
                return daemon.fuse_threads()
        threads = self.shared("threads", count)
        command = [self.example("fuse_ceiling"), mountpoint, str(size)]
        return kit.Daemon(command + ([str(threads)] if threads else []), mountpoint)

    def environment(self, cache_dir=None):
        return {**os.environ, "CINDERFS_CACHE_DIR": cache_dir or self.folder("cache-")}

    def has_verb(self, verb):
        """Whether this build knows a verb."""
        return self._feature(verb, [verb, "--help"])

    def has_option(self, option):
        """Whether this build knows a mount option. It is read before the store, which does not exist."""
        nowhere = os.path.join(self.scratch, "nowhere")
        return self._feature(option, ["mount", "-f", "-o", option, nowhere, nowhere])

    def _feature(self, name, words):
        if name not in self._features:
            done = subprocess.run([self.args.cinderfs, *words], env=self.environment(), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
            self._features[name] = done.returncode != 2  # wrong usage
            if not self._features[name]:
                kit.say("this build does not know %s" % name)
        return self._features[name]

    def index_of(self, volume):
        """The restart points of a store, built ahead where the verb exists, else by reading every image. None: not built yet."""
        if volume.store not in self._indexes:
            kit.warm(volume.store)
            cache_dir = self.folder("index-")
            kit.say("indexing %s" % volume.label)
            if self.has_verb("index"):
                seconds = kit.timed([self.args.cinderfs, "index", volume.store], stdout=subprocess.DEVNULL,
                                    env=self.environment(cache_dir))
            else:
                with self.mount(volume.store, "indexing " + volume.label, cache_dir=cache_dir) as daemon:
                    seconds = kit.timed(["dd", "if=" + daemon.image(volume.backup_id), "of=/dev/null", "bs=1M", "status=none"])
            index = Index(cache_dir, seconds)
            self._indexes[volume.store] = index if index.bytes else None
        return self._indexes[volume.store]

    def copy_of(self, index):
        """A cache directory with these restart points that a daemon may change."""
        target = self.folder("cache-")
        shutil.copytree(index.path, target, dirs_exist_ok=True, symlinks=True)
        return target

    def forget(self, cache_dir):
        """Gives the disk back."""
        shutil.rmtree(cache_dir, ignore_errors=True)

    # -- what it left --

    def peaks_since(self, count):
        """A line on the memory of the daemons since `peaks` was so long."""
        if not self.peaks[count:]:
            return ""
        what, cache_size, peak = max(self.peaks[count:], key=lambda one: one[2] - one[1])
        return "Most memory beyond its cache: %s, %.0f MiB with `cache_size=%dM`, which allows %.0f." % (
            what, peak / MIB, cache_size / MIB, (cache_size + RSS_OVER_CACHE_MAX) / MIB)

    def put_memory_bar(self, parts):
        if self.peaks:
            over = [(peak - cache_size) / MIB for _, cache_size, peak in self.peaks]
            self.bars.put("rss", "at most %.0f MiB in %d daemons (%s)" % (max(over), len(over), ", ".join(parts)),
                          max(over) * MIB <= RSS_OVER_CACHE_MAX)
