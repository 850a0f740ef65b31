"""Cold random 4 KiB reads of a store that `cinderfs create` wrote, beside a compressed qcow2 of the same image.

Cold is the daemon, as everywhere; the store and the qcow2 are in the page cache, so that software is compared. Then the same once more
with both dropped from it, where the disk counts: cinderfs needs a whole block and its digest for a read, qemu a cluster of 64 KiB. The only store of the bench that is made with code of cinderfs: its metadata tells where a reader may begin, so neither an index nor a
cache directory is there.
"""

import json
import os
import shutil
import statistics
import subprocess

import bars
import kit
import peers
import readers
import volumes

TITLE = "Random 4 KiB reads of a created backup"
VOLUMES = "created"
BAR, CODECS = 1.0, ("zlib", "zstd")
VOLUME_ID = "33333333-2222-4333-8444-555555555555"


def store_of(run, image, codec):
    """(store, backup id), made once for each image and codec."""
    store = os.path.join(run.stores, "created-%s-%s" % (codec, os.path.basename(image)))

    def make():
        kit.say("creating %s" % store)
        shutil.rmtree(store, ignore_errors=True)
        os.makedirs(store)
        made = subprocess.run([run.args.cinderfs, "create", store, image, "--compression", codec, "--volume-id", VOLUME_ID],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        return json.dumps(made.stdout.decode().strip()).encode()
    return store, volumes.once(store + ".json", make)


def each_file(path, act):
    for file in kit.files_of(path) if os.path.isdir(path) else [path]:
        act(file)


# Where the stored bytes are, and how they come to be there.
PLACES = (("page cache", kit.warm), ("disk", kit.drop_pages))


def measure(run):
    if not run.has_verb("create"):
        run.bars.put("created", bars.NOT_BUILT, False)
        yield "**%s.**" % bars.NOT_BUILT
        return
    volume = volumes.mixed(run, "zlib, one object", "zlib", run.args.created_size)
    stores = {codec: store_of(run, volume.expected, codec) for codec in CODECS if codec in run.args.codec}
    there, missing = peers.ready(run, [peers.Qcow2Zlib], volume.expected, volume.size)
    ours = {codec: "cinderfs, created with %s" % codec for codec in stores}
    labels = [*ours.values(), *[peer.label for peer in there]]
    found = {(label, place): ([], [], []) for label in labels for place, _ in PLACES}
    kit.warm(volume.expected)
    for number in run.each_round("created"):
        offsets = readers.page_offsets(volume.size, run.args.created_reads, "created %d" % number)

        def note(label, place, image):
            waits, _ = readers.random_waits(image, volume.expected, offsets)
            for values, value in zip(found[label, place], (len(waits) / sum(waits), readers.percentile(waits, 0.5),
                                                           readers.percentile(waits, 0.99))):
                values.append(value)
        for place, prepare in PLACES:
            for codec, (store, backup_id) in stores.items():
                each_file(store, prepare)
                with run.mount(store, "created, " + codec, options=["seek_index=off"]) as daemon:
                    note(ours[codec], place, daemon.image(backup_id))
            for peer in there:
                each_file(peer.place, prepare)
                with peer.mount() as image:
                    note(peer.label, place, image)
    yield "| mount | stored bytes in | IOPS | p50 us | p99 us | stored MiB |"
    yield "|" + " --- |" * 6
    places = {**{ours[codec]: store for codec, (store, _) in stores.items()}, **{peer.label: peer.place for peer in there}}
    for (label, place), (rates, half, last) in found.items():
        path = places[label]
        stored = sum(os.path.getsize(file) for file in (kit.files_of(path) if os.path.isdir(path) else [path]))
        yield "| %s | %s | %s | %s | %s | %.0f |" % (label, place, kit.spread(rates), kit.spread(half, 1e-6), kit.spread(last, 1e-6),
                                                     stored / (1 << 20))
    for peer, why in missing:
        yield "| %s | | **%s** | | | |" % (peer.label, why.upper())
        run.bars.put("created", "%s: %s" % (peer.label, why), None)
    yield ""
    yield "Peers: %s." % ("; ".join(peer.version for peer in there) or "none")
    for peer in there:
        for codec, label in ours.items():
            cached, stored = (bars.ratios(found[peer.label, place][0], found[label, place][0]) for place, _ in PLACES)
            text = "%s: %s (from the disk %s)" % (codec, kit.spread(cached, form="%.2f"), kit.spread(stored, form="%.2f"))
            run.bars.put("created", text, statistics.median(cached) > BAR)
