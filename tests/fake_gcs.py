"""A Google Cloud Storage of one process: what gcsfs and TensorStore ask of its JSON API, in memory.

No folders, no renames, no appending; an object appears whole, and `ifGenerationMatch` is kept.
"""

import base64
import contextlib
import dataclasses
import datetime
import http.server
import itertools
import json
import re
import threading
import urllib.parse
import zlib
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Stored:
    content: bytes
    generation: int
    updated: str


class Bucket(http.server.ThreadingHTTPServer):
    """All objects of all buckets, by "bucket/name"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, bytearray] = {}
        self.lock = threading.Lock()
        self.count = itertools.count(1)
        self.refused = ""  # a part of the names that cannot be written

    def handle_error(self, *_: object) -> None:
        """Clients that leave without a word are none."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def names(self, below: str = "") -> list[str]:
        """Objects by name, without the bucket."""
        return sorted(k.partition("/")[2] for k in self.objects if k.startswith(below))

    def put(self, key: str, content: bytes, match: str | None) -> Stored | None:
        with self.lock:
            now = self.objects.get(key)
            if match is not None and int(match) != (now.generation if now else 0):
                return None
            updated = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self.objects[key] = Stored(content, next(self.count), updated)
            return self.objects[key]


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
    server = Bucket()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(server: Bucket) -> dict[str, str]:
    """What sends gcsfs and TensorStore to this server."""
    return {
        "STORAGE_EMULATOR_HOST": server.url,
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer in two packets waits 40 ms for word of the first.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Bucket

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        bucket, name = self._asked()
        if name is None:
            return self._list(bucket) if bucket and self._path.endswith("/o") else self._json({})
        stored = self.server.objects.get(f"{bucket}/{name}")
        if stored is None:
            return self._error(404)
        if self._query.get("alt") != "media":
            return self._json(_metadata(bucket, name, stored))
        return self._content(stored)

    def do_DELETE(self) -> None:  # noqa: N802
        bucket, name = self._asked()
        key = f"{bucket}/{name}"
        with self.server.lock:
            stored = self.server.objects.get(key)
            match = self._query.get("ifGenerationMatch")
            if stored is None:
                return self._error(404)
            if match is not None and int(match) != stored.generation:
                return self._error(412)
            del self.server.objects[key]
        return self._send(204, b"")

    def do_POST(self) -> None:  # noqa: N802
        bucket, name = self._asked()
        body = self._body()
        if copied := re.search(r"/o/([^/]+)/rewriteTo/b/([^/]+)/o/(.+)$", self._path):
            return self._copy(bucket, *map(urllib.parse.unquote, copied.groups()))
        kind = self._query.get("uploadType")
        if kind == "multipart":
            name, body = self._parts(body)
        name = name or self._query.get("name") or json.loads(body)["name"]
        if self.server.refused and self.server.refused in name:
            return self._error(403)
        if kind == "resumable" and "upload_id" not in self._query:
            upload = str(next(self.server.count))
            self.server.uploads[upload] = bytearray()
            query = urllib.parse.urlencode(self._query | {"name": name, "upload_id": upload})
            return self._send(200, b"{}", location=f"{self.server.url}{self._path}?{query}")
        return self._store(bucket, name, body, kind)

    do_PUT = do_POST  # noqa: N815

    def _store(self, bucket: str, name: str, body: bytes, kind: str | None) -> None:
        if kind == "resumable":
            upload = self.server.uploads[self._query["upload_id"]]
            said = re.fullmatch(r"bytes (\*|\d+-\d+)/(\*|\d+)", self.headers["Content-Range"] or "")
            upload += body
            if said and said[2] == "*":
                return self._send(308, b"", range=f"bytes=0-{len(upload) - 1}")
            body = bytes(upload)
        key = f"{bucket}/{name}"
        stored = self.server.put(key, body, self._query.get("ifGenerationMatch"))
        if stored is None:
            return self._error(412)
        return self._json(_metadata(bucket, name, stored))

    def _parts(self, body: bytes) -> tuple[str, bytes]:
        """Name and content of an upload in two parts."""
        edge = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])
        assert edge is not None
        _, head, part = body.split(b"--" + edge[1].encode(), 2)
        name = json.loads(re.split(rb"\r?\n\r?\n", head, maxsplit=1)[1])["name"]
        content = re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
        content = content[: content.rindex(b"--" + edge[1].encode())]
        return name, content.removesuffix(b"\n").removesuffix(b"\r")

    def _copy(self, bucket: str, source: str, to_bucket: str, target: str) -> None:
        stored = self.server.objects.get(f"{bucket}/{source}")
        if stored is None:
            return self._error(404)
        copy = self.server.put(f"{to_bucket}/{target}", stored.content, None)
        assert copy is not None
        return self._json({"done": True, "resource": _metadata(to_bucket, target, copy)})

    def _list(self, bucket: str) -> None:
        prefix = self._query.get("prefix", "")
        delimiter = self._query.get("delimiter")
        start, end = self._query.get("startOffset", ""), self._query.get("endOffset")
        items, folders = [], set()
        for key, stored in sorted(self.server.objects.items()):
            owner, _, name = key.partition("/")
            if owner != bucket or not name.startswith(prefix) or name < start:
                continue
            if end and name >= end:
                continue
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(_metadata(bucket, name, stored))
        found = {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}
        return self._json({key: value for key, value in found.items() if value})

    def _content(self, stored: Stored) -> None:
        content, total = stored.content, len(stored.content)
        headers = {
            "x-goog-generation": str(stored.generation),
            "x-goog-stored-content-length": total,
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"] or "")
        if not asked:
            return self._send(200, content, **headers)
        if not asked[1]:
            begin, stop = max(0, total - int(asked[2])), total
        else:
            begin, stop = int(asked[1]), min(total, int(asked[2]) + 1) if asked[2] else total
        if begin >= total:
            return self._send(416, b"")
        where = f"bytes {begin}-{stop - 1}/{total}"
        return self._send(206, content[begin:stop], **headers, Content_Range=where)

    @property
    def _path(self) -> str:
        return urllib.parse.urlsplit(self.path).path

    @property
    def _query(self) -> dict[str, str]:
        query = urllib.parse.urlsplit(self.path).query
        return dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    def _asked(self) -> tuple[str, str | None]:
        found = re.search(r"/b/([^/]+)(?:/o(?:/([^/]+))?)?", self._path)
        if found is None:
            return "", None
        return found[1], urllib.parse.unquote(found[2]) if found[2] else None

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), content_type="application/json")

    def _error(self, status: int) -> None:
        error = {"error": {"code": status, "message": f"status {status} of {self.path}"}}
        self._send(status, json.dumps(error).encode(), content_type="application/json")

    def _send(self, status: int, content: bytes, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content)))
        with contextlib.suppress(ConnectionError):  # a client that has heard enough
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()


def _metadata(bucket: str, name: str, stored: Stored) -> dict[str, str]:
    return {
        "kind": "storage#object",
        "name": name,
        "bucket": bucket,
        "size": str(len(stored.content)),
        "generation": str(stored.generation),
        "metageneration": "1",
        "timeCreated": stored.updated,
        "updated": stored.updated,
        "etag": str(stored.generation),
        "crc32c": base64.b64encode(zlib.crc32(stored.content).to_bytes(4, "big")).decode(),
    }
