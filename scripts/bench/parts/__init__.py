"""What is measured: one module for each part, in the order in which they run and stand in the document.

A part has a `TITLE`, the name of the `VOLUMES` that it reads and perhaps shares with its neighbours, and `measure(run)`, which
yields the lines of its section and puts what it found for the bars.
"""

from . import (bytes_fetched, chain, create, created, first_file, hydrate, iops, listing, memory, opening, random_reads, recording, remote,
               restore, sequential, speed)

PARTS = {
    "random": random_reads,
    "recording": recording,
    "sequential": sequential,
    "bytes": bytes_fetched,
    "hydrate": hydrate,
    "restore": restore,
    "first-file": first_file,
    "iops": iops,
    "created": created,
    "chain": chain,
    "speed": speed,
    "memory": memory,
    "opening": opening,
    "create": create,
    "remote": remote,
    "listing": listing,
}
