"""A bucket in memory, served as Google Cloud Storage does, for the real clients: gcsfs and TensorStore.

It has what a bucket has and no more: whole objects, listed by prefix. There are no directories, an object
cannot be appended to, and copies and renames are refused, so that code that relies on them fails.
"""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKETS = {"bucket"}
REFUSING = {"forbidden": 403, "broken": 405}  # and with which status; retried are others


class Bucket(ThreadingHTTPServer):
    """
    Attributes:
      objects: the content of every object of every bucket, by BUCKET/NAME.
      refused: requests that a bucket cannot serve.
      before_write: is called with BUCKET/NAME before an object is written; an OSError refuses that.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("localhost", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.refused: list[str] = []
        self.before_write: Callable[[str], None] = lambda name: None
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave before the end of an answer
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}"

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.generations[key] = self.generations.get(key, 0) + 1

    def files(self, directory: str) -> dict[str, bytes]:
        """Returns the objects below gs://BUCKET/DIRECTORY, by the rest of their names."""
        start = directory.removeprefix("gs://").rstrip("/") + "/"
        with self.lock:
            return {
                name.removeprefix(start): data
                for name, data in self.objects.items()
                if name.startswith(start)
            }


@contextmanager
def served() -> Iterator[Bucket]:
    with Bucket() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Bucket
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def _answer(self, status: int, content: bytes | dict = b"", **headers: str) -> None:
        if isinstance(content, dict):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _serve(self) -> None:
        body = self._read()
        with self.server.lock:
            self._route(self.command, self.path, body, self._answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _route(self, method: str, target: str, body: bytes, answer: Callable) -> None:
        server, url = self.server, urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path.startswith("/batch/"):
            return self._batch(body)
        match = re.fullmatch(r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(/o)?(?:/(.+))?", url.path)
        if not match:
            return self._refuse(method, target, answer)
        kind, bucket, objects, name = match[1], match[2], match[3], unquote(match[4] or "")
        key = f"{bucket}/{name}"
        if kind == "upload":
            return self._upload(bucket, query, body, answer)
        if method == "GET" and not objects:
            if bucket not in BUCKETS:
                code = REFUSING.get(bucket, 404)
                return answer(code, {"error": {"code": code, "message": f"no bucket {bucket}"}})
            return answer(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
        if method == "GET" and not name:
            return answer(200, self._list(bucket, query))
        if "/copyTo/" in name or "/rewriteTo/" in name or method not in ("GET", "DELETE"):
            return self._refuse(method, target, answer)
        if key not in server.objects:
            return answer(404, {"error": {"code": 404, "message": f"No such object: {key}"}})
        if method == "DELETE":
            del server.objects[key]
            return answer(204)
        if query.get("alt") == "media":
            return self._content(key, answer)
        return answer(200, self._described(key))

    def _refuse(self, method: str, target: str, answer: Callable) -> None:
        self.server.refused.append(f"{method} {target}")
        answer(400, {"error": {"code": 400, "message": f"a bucket cannot {method} {target}"}})

    def _content(self, key: str, answer: Callable) -> None:
        data, status, headers = self.server.objects[key], 200, {}
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            first, last = wanted.groups()
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(len(data), int(last) + 1) if first and last else len(data)
            if start >= len(data):
                return answer(416)
            headers = {"Content_Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            data, status = data[start:stop], 206
        headers |= {"X_Goog_Generation": str(self.server.generations[key])}
        return answer(status, data, Content_Type="application/octet-stream", **headers)

    def _described(self, key: str) -> dict:
        bucket, name = key.split("/", 1)
        data = self.server.objects[key]
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data)),
            "generation": str(self.server.generations[key]), "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z", "contentType": "application/octet-stream",
            "metageneration": "1",
        }  # fmt: skip

    def _list(self, bucket: str, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for key in sorted(self.server.objects):
            name = key.removeprefix(f"{bucket}/")
            if not key.startswith(f"{bucket}/{prefix}") or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self._described(key))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _upload(self, bucket: str, query: dict[str, str], body: bytes, answer: Callable) -> None:
        if "upload_id" in query:
            key, data = self.server.uploads[query["upload_id"]]
            data += body
            if (self.headers.get("Content-Range") or "").endswith("/*"):
                return answer(308, Range=f"bytes=0-{len(data) - 1}")
            return self._write(key, bytes(data), query, answer)
        if query["uploadType"] == "media":
            return self._write(f"{bucket}/{query['name']}", body, query, answer)
        if query["uploadType"] == "resumable":
            name, number = query.get("name") or json.loads(body)["name"], str(len(self.server.uploads))
            self.server.uploads[number] = (f"{bucket}/{name}", bytearray())
            where = (
                f"{self.server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            )
            return answer(200, Location=where)
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        described, _ = BytesParser().parsebytes(head + body).get_payload()
        data = _payload(body, self.headers["Content-Type"])
        return self._write(f"{bucket}/{json.loads(described.get_payload())['name']}", data, query, answer)

    def _write(self, key: str, data: bytes, query: dict[str, str], answer: Callable) -> None:
        server = self.server
        found = server.generations[key] if key in server.objects else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != found:
            return answer(412, {"error": {"code": 412, "message": "the object has changed"}})
        try:
            server.before_write(key)
        except OSError as error:
            return answer(403, {"error": {"code": 403, "message": str(error)}})
        server.put(key, data)
        return answer(200, self._described(key))

    def _batch(self, body: bytes) -> None:
        """Deletes many objects, as gcsfs does."""
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
        text = ""
        for part in body.split(f"--{boundary}".encode())[1:-1]:
            url = re.search(rb"^DELETE (\S+)", part, re.MULTILINE)[1].decode()
            found = self.server.objects.pop(unquote(url.split("/b/")[1]).replace("/o/", "/", 1), None)
            number = re.search(rb"Content-ID: *<?([^>\r\n]+)", part, re.IGNORECASE)[1].decode()
            status = "404 Not Found" if found is None else "204 No Content"
            text += "--batch\r\nContent-Type: application/http\r\n"
            text += f"Content-ID: <response-{number}>\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n"
        self._answer(200, f"{text}--batch--".encode(), Content_Type='multipart/mixed; boundary="batch"')


def _payload(body: bytes, content_type: str) -> bytes:
    """Returns the second part of a multipart body, byte by byte as it was sent."""
    boundary = re.search(r"boundary=['\"]?([^'\";]+)", content_type)[1].encode()
    part = body.split(b"--" + boundary)[2]
    return (
        part.split(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n", 1)[1]
        .removesuffix(b"\n")
        .removesuffix(b"\r")
    )
