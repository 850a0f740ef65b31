"""Daemons, mounts, clocks and facts: start a FUSE daemon, know when it serves, stop it whatever happens.

Nothing here knows what is measured. Every daemon and every mount is a context manager, so that a failure, Ctrl-C or SIGTERM
takes down what was put up.
"""

import contextlib
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

SCRIPTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
WATCH_SECONDS = 0.005
READ_SECONDS_MAX = 1200


class Failed(Exception):
    """A measurement that read a wrong byte, or a program that failed: the whole run is void."""


class Missing(Exception):
    """Something that this machine or this build does not have. Its place in the tables says so."""


def say(text):
    print("bench: " + text, file=sys.stderr, flush=True)


class Daemon:
    """A FUSE daemon in the foreground: ready on entry, unmounted and gone on exit. Stopped by its own pid only.

    `by_umount` is for programs that do not unmount when they get SIGTERM. The mountpoint may be a file.
    """

    def __init__(self, command, mountpoint, environment=None, by_umount=False):
        self.command, self.mountpoint, self.environment = command, mountpoint, environment
        self.by_umount = by_umount
        self.ready_seconds, self.peak = None, 0

    def __enter__(self):
        outside = os.stat(self.mountpoint).st_dev
        self.log = tempfile.TemporaryFile()
        started = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env={**os.environ, **(self.environment or {})})
        try:
            while os.stat(self.mountpoint).st_dev == outside:
                if self.process.poll() is not None:
                    raise Failed("%s ended with %d: %s" % (self.command, self.process.returncode, self.output()))
                if time.monotonic() - started > START_SECONDS_MAX:
                    raise Failed("%s was not ready in %d s: %s" % (self.command, START_SECONDS_MAX, self.output()))
                time.sleep(0.0005)
        except BaseException:
            self.__exit__()
            raise
        self.started, self.ready_seconds = started, time.monotonic() - started
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            if self.by_umount:
                unmount(self.mountpoint)
            else:
                self.process.send_signal(signal.SIGTERM)
            try:
                self.peak = wait_watching(self.process, STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if os.path.ismount(self.mountpoint) or not reachable(self.mountpoint):
            unmount(self.mountpoint)
            raise Failed("%s left its mount behind: %s" % (self.command, self.output()))

    def output(self):
        self.log.seek(0)
        return self.log.read()[-2000:].decode(errors="replace").strip()

    def peak_rss(self):
        return peak_rss(self.process.pid)

    def cpu_seconds(self):
        """User and system time of all its threads so far."""
        with open("/proc/%d/stat" % self.process.pid) as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def fuse_threads(self):
        """How many of its threads serve requests, by the name that the library gives them."""
        count = 0
        for thread in os.listdir("/proc/%d/task" % self.process.pid):
            with open("/proc/%d/task/%s/comm" % (self.process.pid, thread)) as name:
                count += re.fullmatch(r"fuser-\d+\n", name.read()) is not None
        return count


def peak_rss(pid):
    """Highest resident memory of a process so far, in bytes, mapped files included; 0 when it has ended."""
    with open("/proc/%d/status" % pid) as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def wait_watching(process, seconds_max):
    """Waits for a process of ours; its highest resident memory as of its last hundredth of a second.

    What wait4(2) reports would not do: a child starts with the peak of the process that started it.
    """
    deadline, peak = time.monotonic() + seconds_max, 0
    while True:
        # Until it is waited for, the pid stays its own.
        peak = max(peak, peak_rss(process.pid))
        if process.poll() is not None:
            return peak
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, seconds_max)
        time.sleep(WATCH_SECONDS)


def unmount(mountpoint):
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, mountpoint], check=False)


@contextlib.contextmanager
def loop_mount(image, where, kind, options="ro"):
    """A file's file system, mounted by the kernel through a loop device that goes with the mount."""
    os.makedirs(where, exist_ok=True)
    timed(["mount", "-t", kind, "-o", "loop," + options, image, where])
    try:
        yield where
    finally:
        if subprocess.run(["umount", where], check=False).returncode != 0:
            unmount(where)
            raise Failed("%s stayed busy" % where)


def reachable(path):
    try:
        os.stat(path)
        return True
    except OSError:
        return False


@contextlib.contextmanager
def folder(parent, prefix):
    """A fresh directory, removed at the end unless something is still mounted on it."""
    path = tempfile.mkdtemp(prefix=prefix, dir=parent)
    try:
        yield path
    finally:
        if not os.path.ismount(path):
            shutil.rmtree(path, ignore_errors=True)


def timed(command, **options):
    """Seconds that a command takes; it must succeed."""
    started = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=READ_SECONDS_MAX, **options)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        raise Failed("%s ended with %d: %s" % (command, done.returncode, done.stderr.decode(errors="replace").strip()))
    return seconds


def files_of(store):
    return [os.path.join(here, name) for here, _, names in os.walk(store) for name in names]


def bytes_under(folder):
    """What its files take on disk, in bytes, without the tag that marks a cache directory."""
    return sum(os.stat(path).st_blocks * 512 for path in files_of(folder) if os.path.basename(path) != "CACHEDIR.TAG")


def warm(store):
    """Reads a store, or one file, into the page cache. Hard-linked objects are read once."""
    seen = set()
    for path in files_of(store) if os.path.isdir(store) else [store]:
        inode = os.stat(path).st_ino
        if inode not in seen:
            seen.add(inode)
            with open(path, "rb", buffering=0) as file:
                while file.read(4 << 20):
                    pass


def chill(store, everything):
    """Drops a store from the page cache; with `everything`, as root, also names and attributes. Says which."""
    for path in files_of(store):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
    if not everything or os.geteuid() != 0:
        return "pages dropped"
    with open("/proc/sys/vm/drop_caches", "w") as knob:
        knob.write("3")
    return "drop_caches"


def drop_pages(path):
    """Drops one file's pages from the page cache, so that its file system is asked again."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def program(name, package):
    """Path of a program; `Missing` says what to install."""
    path = shutil.which(name)
    if path is None:
        raise Missing("%s is not installed (%s)" % (name, package))
    return path


def output_of(*command):
    """What a command prints, empty where it cannot run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=SCRIPTS, check=False)
    except OSError:
        return ""
    return done.stdout.decode().strip()


def available_memory():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def roomy_folder(size, otherwise):
    """Memory, where there is room for `size` bytes and as much again for who writes them, so that the disk is not measured."""
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize if os.path.isdir("/dev/shm") else 0
    return "/dev/shm" if free > 2 * size and available_memory() > 3 * size else otherwise


def machine_facts():
    with open("/proc/cpuinfo") as lines:
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    with open("/proc/meminfo") as lines:
        memory = int(next(iter(lines)).split()[1]) / (1 << 20)
    return "%d x %s, %.0f GiB, Linux %s" % (
        len(os.sched_getaffinity(0)), models[0] if models else platform.machine(), memory, platform.release())


def spread(values, scale=1.0, form="%.0f"):
    """Median, and in brackets the least and the greatest where there are several."""
    values = sorted(value / scale for value in values)
    middle = form % statistics.median(values)
    return middle if len(values) == 1 else "%s (%s-%s)" % (middle, form % values[0], form % values[-1])
