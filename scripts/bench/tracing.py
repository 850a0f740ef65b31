"""What a process reads from which file, by `strace`: exact, where /proc/PID/io would count FUSE requests and digests as well."""

import contextlib
import os
import re
import signal
import subprocess
import time

import kit

CALLS = "read,pread64,readv,preadv,preadv2"
ATTACH_SECONDS_MAX = 10
WHOLE = re.compile(r"^(\d+) +([\d.]+) (\w+)\(\d+<([^>]*)>.* = (-?\d+)")
BEGUN = re.compile(r"^(\d+) +([\d.]+) (\w+)\(\d+<([^>]*)>.*<unfinished")
ENDED = re.compile(r"^(\d+) +([\d.]+) <\.\.\. (\w+) resumed>.* = (-?\d+)")


@contextlib.contextmanager
def reads(pid, scratch):
    """A list that is filled at the end: (when, path, bytes) of each read call of all the process's threads."""
    program, found = kit.program("strace", "apt: strace"), []
    log = os.path.join(scratch, "strace.%d" % pid)
    tracer = subprocess.Popen([program, "-f", "-y", "-ttt", "-s", "0", "-e", "trace=" + CALLS, "-e", "signal=none", "-o", log,
                               "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_attached(pid, tracer)
        yield found
    finally:
        tracer.send_signal(signal.SIGINT)  # detaches
        tracer.stderr.close()
        tracer.wait()
    with open(log) as lines:
        found += parse(lines)
    os.unlink(log)


def wait_until_attached(pid, tracer):
    """Every thread has a tracer."""
    deadline = time.monotonic() + ATTACH_SECONDS_MAX
    while True:
        traced = []
        for thread in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/status" % (pid, thread)) as status:
                traced.append("TracerPid:\t0\n" not in status.read())
        if all(traced):
            return
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise kit.Missing("strace cannot attach to a daemon here")
        time.sleep(0.01)


def parse(lines):
    begun = {}
    for line in lines:
        if match := BEGUN.match(line):
            begun[match[1]] = (float(match[2]), match[4])
        elif match := WHOLE.match(line):
            if int(match[5]) > 0:
                yield float(match[2]), match[4], int(match[5])
        elif (match := ENDED.match(line)) and match[1] in begun:
            when, path = begun.pop(match[1])
            if int(match[4]) > 0:
                yield when, path, int(match[4])
