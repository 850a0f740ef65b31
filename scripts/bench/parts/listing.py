"""A bucket of many backups, 20 ms away: `list`, `mount` until it is ready, and `ls backups`, beside curl with the same documents."""

import collections
import json
import os
import subprocess
import time
import urllib.parse

import kit
import latency
import pages

TITLE = "Listing an object store"
VOLUMES = "remote"
LATENCY_SECONDS = 0.02
CONNECTIONS = 16  # of cinderfs, unless told
MIB = 1 << 20


def measure(run):
    count = run.args.remote_backups
    found = collections.defaultdict(lambda: ([], [], []))  # seconds, against curl, peaks
    told, ceiling = {}, []
    with pages.serving(count) as (port, keys), latency.Proxy(port, LATENCY_SECONDS) as proxy:
        os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION="default")
        base = "http://127.0.0.1:%d" % proxy.port
        store = "s3://many?endpoint=" + base
        documents = [key for key in keys if key.endswith("_metadata")]

        def note(what, seconds, peak=None):
            times, ratios, peaks = found[what]
            times.append(seconds)
            requests = proxy.taken()
            if what == "curl":
                ceiling.append(seconds)
            else:
                ratios.append(ceiling[-1] / seconds)
            if peak:
                peaks.append(peak)
            told[what] = described(requests) if requests else "none"
        for _ in run.each_round("remote, listing"):
            proxy.taken()
            note("curl", fetched(run, base, documents))
            for what, words in (("`list -c ID`", ["-c", "ID"]), ("`list`", [])):
                note(what, *listed(run, [run.args.cinderfs, "list", store, "-f", "json", *words], count))
            with run.mount(store, "remote, listing") as daemon:
                note("`mount` until it is ready", daemon.ready_seconds, daemon.peak_rss())
                started = time.monotonic()
                names = os.listdir(os.path.join(daemon.mountpoint, "backups"))
                seconds = time.monotonic() - started
                if len(names) != count:
                    raise kit.Failed("the mount shows %d backups of %d" % (len(names), count))
                note("`ls backups` then", seconds, daemon.peak_rss())
    yield "**Listing** %d backups (%d objects, pages of %d), beside curl with all `_metadata` and nothing else, %d connections." % (
        count, len(keys), pages.KEYS_PER_PAGE, CONNECTIONS)
    yield ""
    yield "| what | s | against curl | peak RSS, MiB | requests |"
    yield "|" + " --- |" * 5
    for what, (times, ratios, peaks) in found.items():
        is_beside = ratios and not what.startswith("`ls")
        cells = [kit.spread(times, form="%.2f"), kit.spread(ratios, form="%.2f") if is_beside else "",
                 kit.spread(peaks, MIB) if peaks else "", told[what]]
        yield "| %s | %s |" % (what, " | ".join(cells))
    yield ""


def fetched(run, base, documents):
    """Seconds that curl takes for the documents, several at once over connections that stay."""
    config = os.path.join(run.scratch, "documents")
    with open(config, "w") as file:
        for key in documents:
            file.write("url = %s/many/%s\noutput = /dev/null\n" % (base, urllib.parse.quote(key)))
    return kit.timed(["curl", "-sS", "--fail", "--parallel", "--parallel-max", str(CONNECTIONS), "-K", config])


def listed(run, command, count):
    """Seconds and peak memory of a command that prints so many backups."""
    with open(os.path.join(run.scratch, "listed"), "w+b") as out:
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, env=run.environment())
        peak = kit.wait_watching(process, kit.READ_SECONDS_MAX)
        seconds = time.monotonic() - started
        out.seek(0)
        told = len(json.load(out)) if process.returncode == 0 else -1
    if told != count:
        raise kit.Failed("list told %d backups of %d" % (told, count))
    return seconds, peak


def described(requests):
    """How many of what, and how many were made before."""
    kinds, seen = collections.Counter(), set()
    again = 0
    for one in requests:
        word = (one["method"], one["path"])
        again += word in seen
        seen.add(word)
        ending = one["path"].rpartition("_")[2]
        kinds["pages" if "list-type" in one["path"] else "%s of %s" % (
            one["method"], ending if ending in ("metadata", "sha256file") else "data")] += 1
    phrase = ", ".join("%d %s" % (times, what) for what, times in sorted(kinds.items()))
    return "%s; %d of them a second time; at most %d at once" % (phrase, again, max(one["under_way"] for one in requests))
