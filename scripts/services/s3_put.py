#!/usr/bin/env python3
"""Puts standard input into an S3 object, with headers that the signature covers.

usage: s3_put.py URL [name:value ...]          credentials and region from AWS_*
"""

import datetime
import hashlib
import hmac
import os
import sys
import urllib.parse
import urllib.request

url, body = urllib.parse.urlsplit(sys.argv[1]), sys.stdin.buffer.read()
now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
headers = {"host": url.netloc, "x-amz-date": now, "x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
headers.update(word.split(":", 1) for word in sys.argv[2:])
names = ";".join(sorted(headers))
canonical = "\n".join(
    ["PUT", url.path, "", *(f"{name}:{headers[name]}" for name in sorted(headers)), "", names, headers["x-amz-content-sha256"]]
)
scope = f"{now[:8]}/{os.environ['AWS_REGION']}/s3/aws4_request"
text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
key = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
for part in [*scope.split("/"), text]:
    key = hmac.new(key, part.encode(), hashlib.sha256).digest()
headers["authorization"] = (
    f"AWS4-HMAC-SHA256 Credential={os.environ['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
)
urllib.request.urlopen(urllib.request.Request(sys.argv[1], body, headers, method="PUT")).read()
