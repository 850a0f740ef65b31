"""The least of an S3 server that a listing needs: a bucket that is never written, in pages of 1000 keys, and its objects."""

import contextlib
import hashlib
import http.server
import json
import multiprocessing
import urllib.parse
import uuid

KEYS_PER_PAGE = 1000
DATE = "2024-03-01T01:01:07.000Z"
HTTP_DATE = "Fri, 01 Mar 2024 01:01:07 GMT"


def backups(count):
    """Objects by key: so many full backups without data, the three objects each that Cinder's S3 driver writes for one."""
    made = {}
    for number in range(count):
        backup, volume = (str(uuid.UUID(int=kind << 100 | 4 << 76 | 8 << 60 | number)) for kind in (0xb, 0xa))
        prefix = "volume_%s/20240301010107/az_nova_backup_%s" % (volume, backup)
        about = {"version": "1.0.0", "backup_id": backup, "volume_id": volume, "backup_name": "b%d" % number,
                 "backup_description": None, "created_at": "2024-03-01 01:01:07+00:00", "parent_id": None, "extra_metadata": None,
                 "volume_meta": json.dumps({"version": 2, "volume-base-metadata": {"id": volume, "size": 1, "display_name": "v"}}),
                 "objects": [{prefix + "-00001": {"offset": 0, "length": 32768, "compression": "none", "md5": "0" * 32}}]}
        digests = {"version": "1.0.0", "backup_id": backup, "volume_id": volume, "backup_name": "b%d" % number,
                   "backup_description": None, "created_at": about["created_at"], "chunk_size": 32768, "sha256s": ["0" * 64]}
        made[prefix + "-00001"] = bytes(32768)
        made[prefix + "_metadata"] = json.dumps(about, indent=2).encode()
        made[prefix + "_sha256file"] = json.dumps(digests, indent=2).encode()
    return made


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # one packet for head and body: no waiting for acknowledgements
    objects, keys = {}, []

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        key = urllib.parse.unquote(url.path).split("/", 2)[2:]
        if not key or not key[0]:
            return self.answer(200, self.page(query), [("Content-Type", "application/xml")])
        body = self.objects.get(key[0])
        if body is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = [("ETag", '"%s"' % hashlib.md5(body).hexdigest()), ("Last-Modified", HTTP_DATE)]
        bounds = self.headers.get("Range")
        if not bounds or self.command == "HEAD":
            return self.answer(200, body, headers)
        first, last = bounds.removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last or len(body) - 1), len(body) - 1)
        return self.answer(206, body[first:last + 1], headers + [("Content-Range", "bytes %d-%d/%d" % (first, last, len(body)))])

    do_HEAD = do_GET

    def page(self, query):
        """ListObjectsV2."""
        first = int(query.get("continuation-token", ["0"])[0])
        keys = self.keys[first:first + KEYS_PER_PAGE]
        more = first + len(keys) < len(self.keys)
        contents = "".join(
            "<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>&quot;%s&quot;</ETag><Size>%d</Size></Contents>"
            % (key, DATE, hashlib.md5(self.objects[key]).hexdigest(), len(self.objects[key])) for key in keys)
        token = "<NextContinuationToken>%d</NextContinuationToken>" % (first + len(keys)) if more else ""
        return ("<ListBucketResult><IsTruncated>%s</IsTruncated>%s%s</ListBucketResult>"
                % ("true" if more else "false", token, contents)).encode()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


@contextlib.contextmanager
def serving(count):
    """The port of a server with so many backups in every bucket, in a process of its own; and the names of its objects."""
    Handler.objects = backups(count)
    Handler.keys = sorted(Handler.objects)
    server = Server(("127.0.0.1", 0), Handler)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    try:
        yield server.server_port, Handler.keys
    finally:
        process.terminate()
        process.join()
        server.server_close()
