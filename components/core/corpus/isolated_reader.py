"""Read and cut documents in a process of its own, with limits on memory and time.

A document may be a bomb: small, and gigabytes when unpacked, or hours of work for a library. The
process sets its own limits: an allocation beyond them fails in it, and an alarm kills it. The
parent only reads its messages; where they end early, it knows the file that was being read, and
starts another process after that file. The process knows no keys. A message is a line of JSON:

    {"file": "docs/a.txt"}                           before a file is opened
    {"document": "c0ffee…", "chunks": [{…}, …]}      for each document in it, then
    {"fault": null}                                  at the file's end, or why it cannot be used
"""

import itertools
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from components.core.corpus.chunking import Chunker, make_chunker
from components.core.corpus.documents import digest, find_documents, read_document
from components.core.corpus.formats import Unreadable
from components.core.corpus.options import CorpusOptions
from components.core.records import Chunk

MEGABYTE = 1_000_000
OUT_OF_MEMORY = 77  # exit code
ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME")
"""Variables that the process gets: where its libraries are, and no secret."""


class CutDocument(NamedTuple):
    """A document: the digest of its words, and its chunks."""

    digest: bytes
    chunks: list[Chunk]


def read_all(
    options: CorpusOptions,
) -> Generator[tuple[Path, CutDocument | Unreadable | None]]:
    """The documents of all files in their order, and at each file's end why not, or None.

    Raises:
        ConfigError: no such tokenizer.
    """
    make_chunker(options)  # report a wrong setting before a process is started
    files = 0
    while True:
        path = Path()
        with _process(options, files) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.endswith(b"\n"):  # killed in the middle of it
                    break
                match json.loads(line):
                    case {"file": name}:
                        path = Path(name)
                    case {"document": hexadecimal, "chunks": chunks}:
                        cut = [Chunk(**chunk) for chunk in chunks]
                        yield path, CutDocument(bytes.fromhex(hexadecimal), cut)
                    case {"fault": fault}:
                        files += 1
                        yield path, Unreadable(**fault) if fault else None
            code = process.wait()
        if code == 0:
            return
        if path == Path():
            raise RuntimeError(f"the process that reads documents ended with {code}")
        files += 1
        yield path, _why(code, options)


@contextmanager
def _process(options: CorpusOptions, skip: int) -> Iterator["subprocess.Popen[bytes]"]:
    """The process, which skips so many files; killed when the block ends."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    settings = options.model_dump_json(include=set(CorpusOptions.model_fields))
    with subprocess.Popen(  # noqa: S603 (no shell; ourselves)
        [sys.executable, "-P", "-m", __name__, settings, str(skip)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for us
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _why(code: int, options: CorpusOptions) -> Unreadable:
    """Why the process ended in the middle of a file."""
    if code == -signal.SIGALRM:
        seconds = f"{options.document_timeout:g} seconds"
        return Unreadable("takes too long", f"not read in {seconds} (--document-timeout)")
    if code in (OUT_OF_MEMORY, -signal.SIGKILL):
        megabytes = f"{options.document_memory_mb:,} MB"
        return Unreadable(
            "needs too much memory", f"{megabytes} are not enough (--document-memory-mb)"
        )
    return Unreadable("crashes the reader", f"it ended with {code}")


# ---- in the process ----------------------------------------------------------------------------


def main() -> None:
    """Read the documents that the settings name, after the first so many."""
    options = CorpusOptions.model_validate_json(sys.argv[1])
    # What libraries print is no message.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    limit = options.document_memory_mb * MEGABYTE
    with suppress(ValueError, OSError):  # where a limit is unknown (macOS) or lower already
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    cut = make_chunker(options)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    logging.disable(logging.CRITICAL)
    source = Path(options.documents)
    for path in itertools.islice(find_documents(source), int(sys.argv[2]), None):
        _send(messages, file=str(path))
        messages.flush()
        try:
            _read(path, source if source.is_dir() else source.parent, options, cut, messages)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
    messages.flush()


def _read(
    path: Path, root: Path, options: CorpusOptions, cut: Chunker, messages: IO[bytes]
) -> None:
    fault = None
    max_bytes = options.max_document_mb * MEGABYTE
    _alarm(options.document_timeout)
    try:
        for document in read_document(path, root, options.text_field, max_bytes=max_bytes):
            chunks = [chunk.model_dump() for chunk in cut(document)]
            _alarm(0)  # a pipe that is full is no fault of the document
            _send(messages, document=digest(document.text).hex(), chunks=chunks)
            _alarm(options.document_timeout)
    except Unreadable as error:
        fault = vars(error)
    _alarm(0)
    _send(messages, fault=fault)


def _alarm(seconds: float) -> None:
    """Let the process be killed in so many seconds; 0 is never."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _send(pipe: IO[bytes], **message: Any) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")  # in ASCII: a name need not be UTF-8


if __name__ == "__main__":
    main()
