"""An object store as S3 speaks, in memory: enough for pyarrow to read, write and list."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Store:
    """A bucket `bucket`, and its address."""

    def __init__(self, port: int) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self._options = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"

    def address(self, key: str) -> str:
        return f"s3://someone:secret@bucket/{key}?{self._options}"


def unchunked(stream: IO[bytes]) -> bytes:
    """What chunks hold, each with its size before it; the lines after the last are read, too."""
    data = b""
    while size := int(stream.readline().partition(b";")[0], 16):
        data += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass
    return data


class Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def asked(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, True).items()}
        return unquote(url.path).removeprefix("/bucket").lstrip("/"), query

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = unchunked(self.rfile)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            data = unchunked(io.BytesIO(data))
        return data

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        key, query = self.asked()
        if "list-type" in query or (not key and self.command == "GET"):
            self.answer(200, self.listing(query.get("prefix", ""), query.get("delimiter", "")))
        elif not key:
            self.answer(200)
        elif key not in self.store.objects:
            self.answer(404)
        else:
            data, code, more = self.store.objects[key], 200, {}
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(match[1]), int(match[2] or len(data) - 1)
                more["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
                data, code = data[first : last + 1], 206
            tag = hashlib.md5(self.store.objects[key]).hexdigest()
            more |= {"ETag": f'"{tag}"', "Last_Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
            self.answer(code, data, Content_Length=str(len(data)), **more)

    def listing(self, prefix: str, delimiter: str) -> bytes:
        folders, entries = set(), []
        for key, data in sorted(self.store.objects.items()):
            if key.startswith(prefix):
                inner, found, _ = key[len(prefix) :].partition(delimiter or "\0")
                if found:
                    folders.add(f"{prefix}{inner}{delimiter}")
                else:
                    entries.append(
                        f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                        "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
                    )
        common = (
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in sorted(folders)
        )
        return (
            f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{len(entries)}"
            f"</KeyCount>{''.join(entries)}{''.join(common)}</ListBucketResult>"
        ).encode()

    def do_PUT(self) -> None:
        key, query = self.asked()
        data = self.body()
        if "uploadId" in query:
            self.store.uploads[query["uploadId"]][int(query["partNumber"])] = data
        else:
            self.store.objects[key] = data
        self.answer(200, ETag=f'"{hashlib.md5(data).hexdigest()}"')

    def do_POST(self) -> None:
        key, query = self.asked()
        data = self.body()
        if "uploads" in query:
            name = f"upload-{len(self.store.uploads)}"
            self.store.uploads[name] = {}
            result = f"<UploadId>{name}</UploadId>"
            self.answer(
                200,
                f"<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>{escape(key)}</Key>"
                f"{result}</InitiateMultipartUploadResult>".encode(),
            )
        elif "uploadId" in query:
            parts = self.store.uploads.pop(query["uploadId"])
            self.store.objects[key] = b"".join(parts[number] for number in sorted(parts))
            self.answer(
                200,
                f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>x</ETag>"
                "</CompleteMultipartUploadResult>".encode(),
            )
        else:  # ?delete
            for gone in re.findall(rb"<Key>(.*?)</Key>", data):
                self.store.objects.pop(gone.decode(), None)
            self.answer(200, b"<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        self.store.objects.pop(self.asked()[0], None)
        self.answer(204)


@contextmanager
def running_store() -> Iterator[Store]:
    handler = type("Bound", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.store = Store(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield handler.store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
