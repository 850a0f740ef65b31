"""An object store 20 ms away: Ceph's RADOS gateway on this machine behind a proxy that adds latency and counts what is asked for."""

import bisect
import json
import os
import re
import shlex
import socket
import statistics
import subprocess
import time
import urllib.parse

import filesystem
import kit
import latency
import readers
import volumes
from parts import created

TITLE = "Object stores"
VOLUMES = "remote"
LATENCY_SECONDS = 0.02
BAR_SEQUENTIAL, BAR_BYTES = 0.7, 1.2
CONNECTIONS, RANGE_BYTES = 8, 8 << 20  # of the ceiling
SETTLE_SECONDS = 0.1
STATES = ("cold", "warm")
RESTORE, DD = "restore to stdout", "`dd` through the mount"
BARRED = (RESTORE, DD)
BESIDE = "restore of a local copy, and curl beside it"
MIB = 1 << 20


def measure(run):
    program = os.path.join(kit.SCRIPTS, "services", "s3.sh")
    with kit.folder(run.scratch, "s3-") as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        done = subprocess.run([program, "up", folder, str(port)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            if done.returncode != 0:
                raise kit.Missing("Ceph's gateway does not start here")
            with open(os.path.join(folder, "env")) as lines:
                os.environ.update(shlex.split(line)[0].split("=", 1) for line in lines)
            with latency.Proxy(port, LATENCY_SECONDS) as proxy:
                remote = Remote(run, port, proxy)
                yield from sequential(run, remote)
                yield from bytes_fetched(run, remote)
                yield from first_file(run, remote)
        except kit.Missing as error:
            yield "**%s**" % error
        finally:
            subprocess.run([program, "down", folder], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)


class Remote:
    """Buckets, filled past the proxy and read through it."""

    def __init__(self, run, port, proxy):
        self.run, self.port, self.proxy = run, port, proxy

    def store(self, bucket, port=None):
        return "s3://%s?endpoint=http://127.0.0.1:%d" % (bucket, port or self.proxy.port)

    def url(self, bucket, key="", port=None):
        return "http://127.0.0.1:%d/%s/%s" % (port or self.port, bucket, urllib.parse.quote(key))

    def put(self, url, file, *headers):
        subprocess.run(["python3", os.path.join(kit.SCRIPTS, "services", "s3_put.py"), url, *headers], stdin=file, check=True)

    def make(self, bucket):
        self.put(self.url(bucket).rstrip("/"), subprocess.DEVNULL)

    def fill(self, bucket, folder):
        """What a directory holds, readable by all, so that the ceiling needs no signatures."""
        self.make(bucket)
        for path in kit.files_of(folder):
            with open(path, "rb") as file:
                self.put(self.url(bucket, os.path.relpath(path, folder)), file, "x-amz-acl:public-read")

    def fetching(self, bucket, volume):
        """The command that fetches the volume's stored bytes in ranges, over several connections at once."""
        lines = []
        for path in volume.objects:
            url, size = self.url(bucket, os.path.relpath(path, volume.store), self.proxy.port), os.path.getsize(path)
            for first in range(0, size, RANGE_BYTES):
                lines += ["url = " + url, "range = %d-%d" % (first, min(first + RANGE_BYTES, size) - 1), "output = /dev/null", "next"]
        config = os.path.join(self.run.scratch, "ceiling")
        with open(config, "w") as file:
            file.write("\n".join(lines[:-1]) + "\n")
        return ["curl", "-sS", "--fail", "--parallel", "--parallel-immediate", "--parallel-max", str(CONNECTIONS), "-K", config]

    def ceiling(self, bucket, volume):
        """Seconds to fetch the volume's stored bytes with no work to do."""
        command = self.fetching(bucket, volume)
        self.proxy.taken()
        seconds = kit.timed(command)
        requests = self.proxy.taken()
        fetched = sum(one["bytes"] for one in requests)
        if not volume.stored_bytes() <= fetched < volume.stored_bytes() * 1.01:
            raise kit.Failed("the ceiling fetched %d bytes of %d" % (fetched, volume.stored_bytes()))
        return seconds, latency.describe(requests)


def beside(run, remote, bucket, volume):
    """Seconds until a copy in a directory is restored and its stored bytes are fetched by somebody else meanwhile, side by side."""
    command = [run.args.cinderfs, "restore", volume.store, volume.backup_id, "-"]
    begun = time.monotonic()
    with subprocess.Popen(remote.fetching(bucket, volume), stderr=subprocess.DEVNULL) as fetching:
        kit.timed(command, stdout=subprocess.DEVNULL, env=run.environment())
    if fetching.returncode != 0:
        raise kit.Failed("curl ended with %d" % fetching.returncode)
    return time.monotonic() - begun


def sequential(run, remote):
    found = {}
    for codec in [codec for codec in ("zlib", "none") if codec in run.args.codec]:
        volume = volumes.mixed(run, codec, codec, run.args.size)
        remote.fill(codec, volume.store)
        for number in run.each_round("remote, sequential, " + codec):
            (before, _), log = remote.ceiling(codec, volume), []

            def note(what, seconds, requests):
                times, ratios, phrases = found.setdefault((codec, what), ([], [], []))
                times.append((volume.size / seconds, volume.stored_bytes() / seconds))
                ratios.append(seconds)
                phrases.append(latency.describe(requests))
                log.append((what, ratios))
            command = [run.args.cinderfs, "restore", remote.store(codec), volume.backup_id, "-"]
            note(RESTORE, kit.timed(command, stdout=subprocess.DEVNULL, env=run.environment()), remote.proxy.taken())
            with run.mount(remote.store(codec), "remote, dd, " + codec) as daemon:
                image = daemon.image(volume.backup_id)
                note(DD, readers.dd(image), remote.proxy.taken())
                if number == 0 and readers.sha256(image) != volume.sha256:
                    raise kit.Failed("%s: what dd read is not the volume" % volume.label)
            alone = [run.args.cinderfs, "restore", volume.store, volume.backup_id, "-"]
            note("restore of a local copy", kit.timed(alone, stdout=subprocess.DEVNULL, env=run.environment()), [])
            remote.proxy.taken()
            note(BESIDE, beside(run, remote, codec, volume), remote.proxy.taken())
            after, phrase = remote.ceiling(codec, volume)
            middle = (before + after) / 2
            for _, ratios in log:
                ratios[-1] = middle / ratios[-1]
            rates, _, phrases = found.setdefault((codec, "ceiling"), ([], [], []))
            rates.append((volume.size / middle, volume.stored_bytes() / middle))
            phrases.append(phrase)
    yield "**Sequential**, a full backup of %d MiB in one object; the ceiling fetches the same stored bytes with curl, %d connections." % (
        run.args.size // MIB, CONNECTIONS)
    yield ""
    yield "| codec, reader | MB/s of the volume | MB/s stored | against the ceiling | requests |"
    yield "|" + " --- |" * 5
    for (codec, what), (rates, ratios, phrases) in found.items():
        cells = ["%s, %s" % (codec, what), kit.spread([plain for plain, _ in rates], 1e6), kit.spread([stored for _, stored in rates], 1e6)]
        cells += [kit.spread(ratios, form="%.2f") if ratios else "", phrases[-1]]
        yield "| %s |" % " | ".join(cells)
        if ratios and what in BARRED:
            run.bars.put("remote sequential", "%s, %s %s" % (codec, what, kit.spread(ratios, form="%.2f")),
                         statistics.median(ratios) >= BAR_SEQUENTIAL)
    yield ""


def bytes_fetched(run, remote):
    volume = volumes.mixed(run, "zlib", "zlib", run.args.size)
    cache_dir = run.folder("index-")
    kit.timed([run.args.cinderfs, "index", remote.store("zlib")], stdout=subprocess.DEVNULL, env=run.environment(cache_dir))
    done = subprocess.run([run.example("restart_points"), cache_dir], stdout=subprocess.PIPE, check=True)
    (indexed,) = json.loads(done.stdout)
    indexed = [(plain, bits / 8) for plain, bits in indexed]
    remote.make("created")
    done = subprocess.run([run.args.cinderfs, "create", remote.store("created", remote.port), volume.expected, "--compression", "zlib",
                           "--volume-id", created.VOLUME_ID], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    backup_id = done.stdout.decode().strip()
    local, local_id = created.store_of(run, volume.expected, "zlib")
    told, stored = told_points(local, local_id)
    yield "**Bytes fetched** of the object for a random read of 4 KiB, against the stored bytes between the two restart points around it."
    yield ""
    yield "| points of | reads | p50 KiB | p99 KiB | mean distance, KiB | fetched / distance, all reads | worst / larger of its and the mean distance | with digests and headers, p50 KiB |"
    yield "|" + " --- |" * 8
    for label, bucket, backup, points, size, cache in (
            ("`cinderfs index`", "zlib", volume.backup_id, indexed, volume.stored_bytes(), cache_dir),
            ("`cinderfs create`", "created", backup_id, told, stored, None)):
        points = sorted({(0, 0), *points, (volume.size, size)})
        plain, mean = [at for at, _ in points], size / (len(points) - 1)
        fetched, own, whole = [], [], []
        with run.mount(remote.store(bucket), "remote, bytes, " + label, cache_dir=cache) as daemon:
            image = daemon.image(backup)
            readers.random_waits(image, volume.expected, [0])
            time.sleep(SETTLE_SECONDS)
            remote.proxy.taken()
            for offset in readers.page_offsets(volume.size, 8 if run.quick else 100, "remote bytes"):
                _, (is_zero,) = readers.random_waits(image, volume.expected, [offset])
                time.sleep(SETTLE_SECONDS)
                requests = remote.proxy.taken()
                ranges = [one["range"] for one in requests if re.search(r"-\d{5}$", one["path"]) and one["range"]]
                if is_zero or not ranges:
                    continue
                after = min(bisect.bisect_right(plain, offset), len(points) - 1)
                own.append(points[after][1] - points[after - 1][1])
                fetched.append(sum(last + 1 - first for first, last in ranges))
                whole.append(sum(one["bytes"] for one in requests))
        if not fetched:
            raise kit.Failed("%s: no read fetched anything" % label)
        worst = max(got / max(distance, mean) for got, distance in zip(fetched, own))
        yield "| %s | %d | %.0f | %.0f | %.0f | %.2f | %.2f | %.0f |" % (
            label, len(fetched), statistics.median(fetched) / 1024, readers.percentile(fetched, 0.99) / 1024, statistics.mean(own) / 1024,
            sum(fetched) / sum(own), worst, statistics.median(whole) / 1024)
        run.bars.put("remote bytes", "%s: worst of %d reads %.2f" % (label, len(fetched), worst), worst <= BAR_BYTES)
    yield ""


def told_points(store, backup_id):
    """The points that a created backup tells, and the stored length: (plain offset, stored offset), as if its objects were one."""
    (path,) = [path for path in kit.files_of(store) if path.endswith(backup_id + "_metadata")]
    with open(path) as file:
        objects = [pair for entry in json.load(file)["objects"] for pair in entry.items()]
    points, base = [], 0
    for name, about in objects:
        plain, stored = about["offset"], base
        points.append((plain, stored))
        for step, group in re.findall(r"(\d+):([\dx,]+?)(?=,\d+:|$)", about.get("cinderfs_restart_points", "")):
            for word in group.split(","):
                length, _, times = word.partition("x")
                for _ in range(int(times or 1)):
                    plain, stored = plain + int(step), stored + int(length)
                    points.append((plain, stored))
        base += os.path.getsize(os.path.join(os.path.dirname(path), name))
    return points, base


def ext4(run):
    """A volume with a file system, and its backup in default objects by the store maker."""
    if os.geteuid() != 0:
        raise kit.Missing("needs root, to make a file system and mount it")
    size = run.args.restore_size
    store = os.path.join(run.stores, "ext4-%d" % size)

    def make():
        kit.say("making an ext4 volume of %d MiB" % (size // MIB))
        wanted = filesystem.build(run, store + ".img", size)
        report = json.loads(volumes.script("make-store.py", store, "--codec", "zlib", "--image", store + ".img"))
        return json.dumps({**report, "wanted": wanted}).encode()
    report = volumes.once(store + ".json", make)
    volume = volumes.Volume("ext4", "zlib", size, store, report, store + ".img")
    volume.wanted = report["wanted"]
    return volume


def first_file(run, remote):
    volume = ext4(run)
    remote.fill("ext4", volume.store)
    indexed = run.folder("index-")
    kit.timed([run.args.cinderfs, "index", remote.store("ext4")], stdout=subprocess.DEVNULL, env=run.environment(indexed))
    found, phrases = {}, {}
    for _ in run.each_round("remote, first file"):
        for file in volume.wanted:
            for how in ("no index", "index"):
                cache = run.folder("cache-") if how == "no index" else run.copy_of(type("Index", (), {"path": indexed}))
                for state in STATES:
                    remote.proxy.taken()
                    seconds = one_file(run, remote, volume, file, cache)
                    found.setdefault((file["where"], how, state), []).append(seconds)
                    requests = remote.proxy.taken()
                    phrases[file["where"], how, state] = "%d requests, %.1f MiB" % (
                        len(requests), sum(one["bytes"] for one in requests) / MIB)
                run.forget(cache)
    yield "**First file** of a %d MiB ext4 volume in default objects: mount, loop mount, one file; then once more with the disk cache it left." % (
        volume.size // MIB)
    yield ""
    yield "| file near the volume's | index | cold, s | with | warm, s | with |"
    yield "|" + " --- |" * 6
    for where, how in dict.fromkeys((where, how) for where, how, _ in found):
        cells = [cell for state in STATES for cell in (kit.spread(found[where, how, state], form="%.2f"), phrases[where, how, state])]
        yield "| %s | %s | %s |" % (where, how, " | ".join(cells))
    yield ""


def one_file(run, remote, volume, file, cache):
    where = os.path.join(run.scratch, "loop")
    with run.mount(remote.store("ext4"), "remote, first file", ["disk_cache=1G"], cache_dir=cache) as daemon:
        with kit.loop_mount(daemon.image(volume.backup_id), where, "ext4", "ro,noload"):
            with open(os.path.join(where, file["path"]), "rb") as opened:
                data = opened.read()
            seconds = time.monotonic() - daemon.started
        if readers.digest(data) != file["sha256"]:
            raise kit.Failed("%s: wrong bytes" % file["path"])
    return seconds
