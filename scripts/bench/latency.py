"""A TCP proxy that adds latency to a server's answers, and writes down what was asked for.

Each direction holds its bytes back for half the latency, however many there are: bandwidth is not limited. A new connection costs
one latency more, as its handshake would. What TCP's slow start costs on a long line is left out.
"""

import asyncio
import collections
import contextlib
import json
import multiprocessing
import os
import re
import time

import kit

HELD_BYTES_MAX = 64 << 20  # in one direction of one connection: 3 GB/s for 20 ms
REQUEST = re.compile(rb"^(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")
RANGE = re.compile(rb"^range: *bytes=(\d+)-(\d+)", re.I | re.M)
START_SECONDS_MAX = 10


class Pipe:
    """One direction: what comes in goes out `delay` seconds later, in order."""

    def __init__(self, loop, delay):
        self.loop, self.delay = loop, delay
        self.held, self.bytes, self.timer = collections.deque(), 0, None
        self.source = self.target = None
        self.is_blocked = self.is_paused = False

    def put(self, data, more=0.0):
        self.held.append((self.loop.time() + self.delay + more, data))
        self.bytes += len(data) if data else 0
        self.flow()
        if self.timer is None:
            self.timer = self.loop.call_at(self.held[0][0], self.release)

    def release(self):
        self.timer = None
        while self.held and self.target is not None and not self.is_blocked:
            due, data = self.held[0]
            if due > self.loop.time():
                self.timer = self.loop.call_at(due, self.release)
                break
            self.held.popleft()
            if data is None:
                self.target.close()
                return
            self.bytes -= len(data)
            # Who went away before the end gets no more.
            if not self.target.is_closing():
                self.target.write(data)
        self.flow()

    def flow(self):
        is_full = self.bytes > HELD_BYTES_MAX
        if self.source is not None and is_full != self.is_paused:
            self.is_paused = is_full
            (self.source.pause_reading if is_full else self.source.resume_reading)()

    def block(self, is_blocked):
        self.is_blocked = is_blocked
        if not is_blocked and self.timer is None:
            self.release()


class Side(asyncio.Protocol):
    """One end of a connection: bytes from it go to `away`, bytes for it come from `here`."""

    def __init__(self, away, here, note):
        self.away, self.here, self.note = away, here, note

    def connection_made(self, transport):
        transport.set_write_buffer_limits(8 << 20)
        self.away.source = self.here.target = transport
        self.here.block(False)

    def data_received(self, data):
        self.away.put(data, self.note(data))

    def connection_lost(self, _):
        self.away.put(None)

    def pause_writing(self):
        self.here.block(True)

    def resume_writing(self):
        self.here.block(False)


class Requests:
    """The requests of one connection. HTTP/1.1 as clients speak it: the next one comes when the last was answered."""

    def __init__(self, delay, under_way, log):
        self.delay, self.under_way, self.log = delay, under_way, log
        self.one, self.is_new = None, True

    def asked(self, data):
        if match := REQUEST.match(data):
            self.ended()
            bounds = RANGE.search(data)
            self.under_way.add(self)
            self.one = {"begun": time.time(), "method": match[1].decode(), "path": match[2].decode(),
                        "range": [int(bounds[1]), int(bounds[2])] if bounds else None, "bytes": 0,
                        "under_way": len(self.under_way), "ended": time.time(), "left": None}
        handshake, self.is_new = (2 * self.delay if self.is_new else 0.0), False
        return handshake

    def answered(self, data):
        if self.one is not None:
            if self.one["left"] is None:
                head = data.split(b"\r\n\r\n")[0]
                length = re.search(rb"^content-length: *(\d+)", head, re.I | re.M)
                body = int(length[1]) if length and self.one["method"] != "HEAD" else 0
                self.one["left"] = len(head) + 4 + body
            self.one["bytes"] += len(data)
            self.one["left"] -= len(data)
            self.one["ended"] = time.time()
            if self.one["left"] <= 0:
                self.under_way.discard(self)
        return 0.0

    def ended(self):
        self.under_way.discard(self)
        if self.one is not None:
            self.log.append(self.one)
            self.one = None


async def serve(port, delay, talk):
    loop, under_way, log, connections = asyncio.get_running_loop(), set(), [], set()

    def accept():
        up, down = Pipe(loop, delay), Pipe(loop, delay)
        requests = Requests(delay, under_way, log)
        connections.add(requests)
        client = Side(up, down, requests.asked)
        server = Side(down, up, requests.answered)
        task = loop.create_task(loop.create_connection(lambda: server, "127.0.0.1", port))
        task.add_done_callback(lambda done: done.exception() and client.here.target and client.here.target.abort())
        return client

    def answer():
        """Whoever asks gets what was logged since the last time."""
        try:
            talk.recv()
        except EOFError:
            loop.stop()
            return
        for requests in connections:
            requests.ended()
        talk.send(json.dumps(log))
        log.clear()

    listening = await loop.create_server(accept, "127.0.0.1", 0)
    loop.add_reader(talk.fileno(), answer)
    talk.send(listening.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


def _run(port, delay, talk):
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):  # the loop was stopped
        asyncio.run(serve(port, delay, talk))
    os._exit(0)


class Proxy:
    """In front of a server on this machine, in a process of its own."""

    def __init__(self, port, seconds):
        self.behind, self.delay = port, seconds / 2

    def __enter__(self):
        fork = multiprocessing.get_context("fork")
        self.talk, theirs = fork.Pipe()
        self.process = fork.Process(target=_run, args=(self.behind, self.delay, theirs), daemon=True)
        self.process.start()
        theirs.close()
        if not self.talk.poll(START_SECONDS_MAX):
            self.__exit__()
            raise kit.Failed("the proxy did not start")
        self.port = self.talk.recv()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.join()

    def taken(self):
        """The requests since this was asked last, oldest first."""
        self.talk.send("taken")
        return sorted(json.loads(self.talk.recv()), key=lambda one: one["begun"])


def describe(requests):
    """A phrase on requests for bytes: how many, how large, how many at once."""
    gets = [one for one in requests if one["method"] == "GET"]
    if not gets:
        return "no GET"
    sizes = sorted(one["bytes"] for one in gets)
    return "%d GETs, median %.0f KiB, at most %d at once" % (
        len(gets), sizes[len(sizes) // 2] / 1024, max(one["under_way"] for one in gets))
