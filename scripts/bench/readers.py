"""Reads of an image, timed and compared with the volume."""

import concurrent.futures
import hashlib
import multiprocessing
import os
import random
import time
import zlib

import kit

BLOCK = 32768
PAGE = 4096


def dd(path):
    """Seconds to read a file from end to end."""
    return kit.timed(["dd", "if=" + path, "of=/dev/null", "bs=1M", "status=none"])


def sha256(path):
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def page_offsets(size, count, seed):
    """Whole pages anywhere in [0, size), the same for the same seed."""
    dice = random.Random(seed)
    return [dice.randrange(size // PAGE) * PAGE for _ in range(count)]


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def random_waits(image, expected, offsets, seconds_max=float("inf"), length=PAGE):
    """Seconds of each read without read-ahead, in the offsets' order, each compared with the volume.

    Answers (waits, zeros): whether the block around each offset is all zeros, which is served without decoding.
    """
    waits, zeros, deadline = [], [], time.monotonic() + seconds_max
    image_file, expected_file = os.open(image, os.O_RDONLY), os.open(expected, os.O_RDONLY)
    try:
        os.posix_fadvise(image_file, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in offsets:
            want = os.pread(expected_file, length, offset)
            block = os.pread(expected_file, BLOCK, offset // BLOCK * BLOCK)
            started = time.monotonic()
            got = os.pread(image_file, length, offset)
            waits.append(time.monotonic() - started)
            zeros.append(not any(block))
            if got != want:
                raise kit.Failed("%s: wrong bytes in [%d, +%d)" % (image, offset, length))
            if time.monotonic() > deadline:
                break
    finally:
        os.close(image_file)
        os.close(expected_file)
    return waits, zeros


def _job(image, size, seconds, seed):
    """One process's random reads for a while: (reads per second, waits, what was read: offset and crc)."""
    dice, waits, seen = random.Random(seed), [], []
    file = os.open(image, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        begun = now = time.monotonic()
        while now - begun < seconds:
            offset = dice.randrange(size // PAGE) * PAGE
            before = time.monotonic()
            data = os.pread(file, PAGE, offset)
            now = time.monotonic()
            waits.append(now - before)
            seen.append((offset, zlib.crc32(data)))
        return len(waits) / (now - begun), waits, seen
    finally:
        os.close(file)


def iops(image, expected, size, jobs, seconds, seed):
    """Random 4 KiB reads per second of `jobs` processes together, and all their waits. Compared with the volume afterwards."""
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=fork) as pool:
        done = [pool.submit(_job, image, size, seconds, "%s:%d" % (seed, job)) for job in range(jobs)]
        done = [job.result() for job in done]
    file = os.open(expected, os.O_RDONLY)
    try:
        for _, _, seen in done:
            for offset, crc in seen:
                if zlib.crc32(os.pread(file, PAGE, offset)) != crc:
                    raise kit.Failed("%s: wrong bytes in [%d, +%d)" % (image, offset, PAGE))
    finally:
        os.close(file)
    return sum(rate for rate, _, _ in done), [wait for _, waits, _ in done for wait in waits]


def drop_and_dd(path):
    """`dd` that asks the file system again, whatever the page cache held of the file."""
    kit.drop_pages(path)
    return dd(path)
