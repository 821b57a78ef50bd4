"""An emulator of Cloud Storage for the real client: PyPI's gcp-storage-emulator, made stricter.

The emulator ignores generations, asked for or as preconditions; here they are checked before it
sees a request.
Faults can be put in front of it, and every request is counted.
"""

import io
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

from components.core.storage import finish_artifact
from components.core.storage.bucket import locate
from tests.generate.teacher_server import reset

BUCKET = "bucket"
NO_PAYER = "Bucket is a requester pays bucket but no user project provided."
"""Cloud Storage's own words, which come with 400."""


def artifact(folder: Path, files: int = 3, size: int = 1000) -> Path:
    """A finished artifact of random files, the last one in a folder of its own."""
    (folder / "sub").mkdir(parents=True)
    for number in range(files):
        place = folder / "sub" if 0 < number == files - 1 else folder
        (place / f"{number:03}.bin").write_bytes(random.Random(f"{number} {size}").randbytes(size))
    finish_artifact(folder)
    return folder


def upload(name: str, content: bytes | str, encoding: str | None = None) -> None:
    """Put an object into the bucket as any tool may have done."""
    blob = locate(f"gs://{BUCKET}")[0].blob(name)
    blob.content_encoding = encoding
    blob.upload_from_string(content)


def upload_files(folder: Path, prefix: str) -> None:
    """Put the files of a folder into the bucket, as a person does."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        upload(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    contents = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (one, other)
    ]
    return contents[0] == contents[1]


RESET, LOST, SHORT, FLIPPED, SILENT = BREAKS = "reset", "lost", "short", "flipped", "silent"
"""Reset before anything was done; done, but the answer is lost; half of the answer, then a reset;
one bit of an object's bytes is another; nothing is said for a while, then a reset."""


class _PreconditionFailed(Exception):
    pass


class _StrictStorage(Storage):
    """The emulator's store, which minds the generation that the request under way names."""

    expected: str | None = None
    composed: str | None = None  # the object that its parts, which are read too, become

    def create_file(self, bucket_name: str, file_name: str, *rest: Any, **named: Any) -> None:
        self._check(bucket_name, file_name)
        super().create_file(bucket_name, file_name, *rest, **named)

    def delete_file(self, bucket_name: str, file_name: str) -> None:
        self._check(bucket_name, file_name)
        super().delete_file(bucket_name, file_name)

    def get_file(self, bucket_name: str, file_name: str, show_error: bool = True) -> bytes:
        self._check(bucket_name, file_name)
        content: bytes = super().get_file(bucket_name, file_name, show_error)
        return content

    def _check(self, bucket_name: str, file_name: str) -> None:
        if self.expected is None or self.composed not in (None, file_name):
            return
        try:
            current = self.get_file_obj(bucket_name, file_name)["generation"]
        except NotFound:
            current = "0"
        if self.expected != current:
            raise _PreconditionFailed


@dataclass
class Emulator:
    """A running emulator.

    Attributes:
        url: for STORAGE_EMULATOR_HOST.
        uploads: object names, one entry for every upload that was accepted.
        downloads: object names, one entry for every download.
        ranges: the Range of every download that named one, such as "bytes=100-".
        fault: given method and path, the HTTP status to answer with instead (0 = none), or how the
            connection breaks: see `BREAKS`.
        silence: seconds of a connection that is silent.
        requester_pays: refuse requests that name no project that pays for them.
    """

    url: str
    storage: _StrictStorage
    uploads: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    fault: Callable[[str, str], int | str] = lambda method, path: 0
    silence: float = 60.0
    requester_pays: bool = False

    def names(self, prefix: str = "") -> set[str]:
        """The objects in the bucket."""
        return {name for name in self.storage.objects.get(BUCKET, {}) if name.startswith(prefix)}


class _Handler(RequestHandler):
    """The emulator's handler behind faults, preconditions and a lock: its store has none."""

    def __init__(self, emulator: Emulator, lock: threading.Lock, *args: Any) -> None:
        self.emulator, self.lock = emulator, lock
        self.encoding: str | None = None
        super().__init__(emulator.storage, *args)

    def do_GET(self) -> None:
        self._guarded("GET", super().do_GET)

    def do_POST(self) -> None:
        self._guarded("POST", super().do_POST)

    def do_PUT(self) -> None:
        self._guarded("PUT", super().do_PUT)

    def do_DELETE(self) -> None:
        self._guarded("DELETE", super().do_DELETE)

    def _guarded(self, method: str, handle: Callable[[], None]) -> None:
        fault = self.emulator.fault(method, self.path)
        if fault in (RESET, SILENT) or (isinstance(fault, int) and fault):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if isinstance(fault, int):
                self._refuse(fault)
            else:
                time.sleep(self.emulator.silence if fault == SILENT else 0)
                reset(self.connection)
            return
        client, self.wfile = self.wfile, io.BytesIO()
        try:
            self._handled(handle)
        finally:
            answer, self.wfile = self.wfile.getvalue(), client
        self._send(answer, str(fault))

    def _send(self, answer: bytes, fault: str) -> None:
        """Send what the emulator answered, as far as a fault lets it through."""
        end = answer.find(b"\r\n\r\n") + 4
        place = end + (len(answer) - end) // 2
        if fault == LOST:
            answer = b""
        elif fault == SHORT:
            answer = answer[:place]
        elif fault == FLIPPED and "alt=media" in self.path and place > end:
            answer = answer[:place] + bytes([answer[place] ^ 1]) + answer[place + 1 :]
        with suppress(OSError):  # the client was killed; what it asked for is done all the same
            self.wfile.write(answer)
            if fault in (LOST, SHORT):
                self.wfile.flush()
                reset(self.connection)

    def _handled(self, handle: Callable[[], None]) -> None:
        url = urllib.parse.urlparse(self.path)
        query = urllib.parse.parse_qs(url.query)
        if self.emulator.requester_pays and "userProject" not in query:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(400, {"error": {"code": 400, "message": NO_PAYER}})
            return
        with self.lock:
            before = self.emulator.names()
            there = self.storage.objects[BUCKET] if before else {}
            generations = {name: there[name]["generation"] for name in before}
            demanded = query.get("ifGenerationMatch", [None])[0]
            self.storage.expected = demanded or query.get("generation", [None])[0]
            path = urllib.parse.unquote(url.path)
            composes = path.endswith("/compose")
            self.encoding = None
            if query.get("alt") == ["media"]:
                self.encoding = there.get(path.split("/o/")[1], {}).get("contentEncoding")
            self.storage.composed = path.split("/o/")[1][: -len("/compose")] if composes else None
            try:
                self._compose() if composes else handle()
            except _PreconditionFailed:
                self._refuse(412 if demanded else 404)
                return
            finally:
                self.storage.expected = None
            for name, item in self.storage.objects.get(BUCKET, {}).items():
                if generations.get(name) != item["generation"]:
                    self.emulator.uploads.append(name)
            if query.get("alt") == ["media"] and "Range" in self.headers:
                self.emulator.ranges.append(self.headers["Range"])
            if query.get("alt") == ["media"]:
                self.emulator.downloads.append(urllib.parse.unquote(url.path.split("/o/")[1]))

    def end_headers(self) -> None:
        """Say how an object is stored: compressed, to a client that takes it so, as ours does."""
        if self.encoding:
            assert self.encoding in self.headers["Accept-Encoding"]
            self.send_header("Content-Encoding", self.encoding)
            self.send_header("X-Goog-Stored-Content-Encoding", self.encoding)
        super().end_headers()

    def _compose(self) -> None:
        """Join parts as a bucket does, whose composed objects have no MD5; the emulator's own way
        copies what it has with every part, which takes most of a large upload's time."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        whole, sources = self.storage.composed or "", asked["sourceObjects"]
        try:
            content = b"".join(self.storage.get_file(BUCKET, each["name"]) for each in sources)
        except NotFound:
            self._refuse(404)
            return
        kind = self.storage.get_file_obj(BUCKET, sources[0]["name"])["contentType"]
        made = objects._make_object_resource(
            self.emulator.url, BUCKET, whole, kind, len(content), asked["destination"]
        )
        made |= {"crc32c": objects._crc32c(content), "componentCount": len(sources)}
        self.storage.create_file(BUCKET, whole, content, made)
        self._answer(200, made)

    def _answer(self, status: int, value: object) -> None:
        answer = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def emulator() -> Iterator[Emulator]:
    """Run an emulator with one bucket on loopback."""
    storage = _StrictStorage(use_memory_fs=True)
    running = Emulator(url="", storage=storage)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, running, threading.Lock()))
    running.url = f"http://127.0.0.1:{server.server_port}"
    buckets.create_bucket(BUCKET, storage)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
