"""Read and cut documents in a process of its own, which gets so much memory and time and no more.

A document may be a bomb: small, and gigabytes when unpacked, or hours of work for a library. The
process sets its own limits: an allocation beyond them fails in it, and an alarm kills it. So who
listens only reads what it says, and where it falls silent, knows at which file, and starts another
behind it. It knows no keys, and what it says is JSON, a line each:

    {"file": "docs/a.txt"}                           before a file is opened
    {"document": "c0ffee…", "chunks": [{…}, …]}      for each document of it, then
    {}                                               or {"bad": {…}}, or {"malformed": {…}}
"""

import itertools
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from pydantic import Field

from components.core.errors import ConfigError, DataError
from components.core.records import Chunk, Record
from components.generate.chunking import Chunker, make_chunker
from components.generate.config import GenerateConfig
from components.generate.documents import Bad, find_documents, read_document
from components.generate.text import digest

MEGABYTE = 1_000_000
NO_MEMORY = 77  # exit code
NAMES = "latin-1"  # which knows every byte: names of files need not be UTF-8
KNOWN = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
"""What the process gets of the environment: where its libraries are, and no secret."""


class Fault(Record):
    """Why a file, or a setting, cannot be used."""

    problem: str
    detail: str = ""
    line: int | None = None


class Message(Record):
    """What the process says; see the module."""

    file: str = ""
    document: str = ""
    chunks: list[Chunk] = Field(default_factory=list)
    bad: Fault | None = None
    malformed: Fault | None = None
    setting: Fault | None = None
    missing: str = ""


class Cut(NamedTuple):
    """A document: the digest of its words, and its chunks."""

    words: str
    chunks: list[Chunk]


def read_all(
    config: GenerateConfig,
) -> Generator[tuple[Path, Cut | Bad | DataError | None]]:
    """The documents of all files in their order, and of each file why not, or None at its end.

    Raises:
        ConfigError: no such tokenizer.
        ModuleNotFoundError: a library is not installed.
    """
    done = 0
    while True:
        with _process(config, done) as process:
            assert process.stdout is not None
            path = None
            for line in process.stdout:
                if not line.endswith(b"\n"):  # killed in the middle of it
                    break
                message = Message.model_validate_json(line)
                if fault := message.setting:
                    raise ConfigError(fault.problem, hint=fault.detail)
                if message.missing:
                    raise ModuleNotFoundError(
                        f"No module named {message.missing!r}", name=message.missing
                    )
                if message.file:
                    path = Path(os.fsdecode(message.file.encode(NAMES)))
                    continue
                assert path is not None
                if message.document:
                    yield path, Cut(message.document, message.chunks)
                    continue
                done += 1
                if fault := message.bad:
                    yield path, Bad(fault.problem, fault.detail, fault.line)
                elif fault := message.malformed:
                    yield (
                        path,
                        DataError(fault.problem, path=path, line=fault.line, hint=fault.detail),
                    )
                else:
                    yield path, None
            code = process.wait()
        if code == 0:
            return
        if path is None:
            raise RuntimeError(f"the process that reads documents ended with {code}")
        done += 1
        yield path, _why(code, config)


@contextmanager
def _process(config: GenerateConfig, done: int) -> Iterator["subprocess.Popen[bytes]"]:
    """The process, which begins behind so many files; killed where nobody listens any more."""
    here = str(Path(__file__).parents[2])
    known = {name: os.environ[name] for name in KNOWN if name in os.environ}
    known["PYTHONPATH"] = os.pathsep.join(filter(None, (here, known.get("PYTHONPATH"))))
    with subprocess.Popen(  # noqa: S603 (no shell; ourselves)
        [sys.executable, "-P", "-m", __name__, str(done)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=known,
        start_new_session=True,  # Ctrl-C is for us
    ) as process:
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(config.model_dump_json().encode())
            yield process
        finally:
            process.kill()


def _why(code: int, config: GenerateConfig) -> Bad:
    """Why the process ended in the middle of a file."""
    if code == -signal.SIGALRM:
        seconds = f"{config.document_timeout:g} seconds"
        return Bad("takes too long", f"not read in {seconds} (--document-timeout)")
    if code in (NO_MEMORY, -signal.SIGKILL):
        megabytes = f"{config.document_memory_mb:,} MB"
        return Bad("needs too much memory", f"{megabytes} are not enough (--document-memory-mb)")
    return Bad("crashes what reads it", f"the reader ended with {code}")


# ---- in the process ----------------------------------------------------------------------------


def main() -> None:
    """Read the documents that the settings on standard input name, behind the first so many."""
    config = GenerateConfig.model_validate_json(sys.stdin.buffer.read())
    # What libraries print is no message.
    said = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    most = config.document_memory_mb * MEGABYTE
    with suppress(ValueError, OSError):  # where a limit is unknown (macOS) or lower already
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        cut = make_chunker(config)
    except ConfigError as error:
        _say(said, Message(setting=Fault(problem=str(error), detail=error.hint)))
        return
    except ModuleNotFoundError as error:
        _say(said, Message(missing=error.name or str(error)))
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    logging.disable(logging.CRITICAL)
    source = Path(config.documents)
    root = source if source.is_dir() else source.parent
    for path in itertools.islice(find_documents(source), int(sys.argv[1]), None):
        _say(said, Message(file=os.fsencode(path).decode(NAMES)))
        said.flush()
        try:
            _read(path, root, config, cut, said)
        except MemoryError:
            os._exit(NO_MEMORY)
    said.flush()


def _read(path: Path, root: Path, config: GenerateConfig, cut: Chunker, said: IO[bytes]) -> None:
    most = config.max_document_mb * MEGABYTE
    last = Message()
    _alarm(config.document_timeout)
    try:
        for document in read_document(path, root, config.text_field, most_bytes=most):
            message = Message(document=digest(document.text), chunks=cut(document))
            _alarm(0)  # a pipe that is full is no fault of the document
            _say(said, message)
            _alarm(config.document_timeout)
    except Bad as bad:
        last = Message(bad=Fault(problem=str(bad), detail=bad.detail, line=bad.line))
    except DataError as error:
        last = Message(malformed=Fault(problem=error.problem, detail=error.hint, line=error.line))
    except ModuleNotFoundError as error:
        last = Message(missing=error.name or str(error))
    _alarm(0)
    _say(said, last)


def _alarm(seconds: float) -> None:
    """Let the process be killed in so many seconds; 0 is never."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _say(pipe: IO[bytes], message: Message) -> None:
    pipe.write(message.model_dump_json(exclude_defaults=True).encode() + b"\n")


if __name__ == "__main__":
    main()
