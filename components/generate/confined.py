"""Read and cut documents in a process of its own, which gets so much memory and time and no more.

A document may be a bomb: small, and gigabytes when unpacked, or hours of work for a library. The
process sets its own limits: an allocation beyond them fails in it, and an alarm kills it. So who
asks it only reads what it says, and where it falls silent for good, knows which document it was
at, and starts another. It knows no keys, and what it says is JSON.

    {"document": "c0ffee…", "chunks": [{…}, …]}      for each document of a file, then
    {}                                               or {"bad": …}, {"malformed": …}
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from pydantic import Field

from components.errors import ConfigError, DataError
from components.generate.chunking import make_chunker
from components.generate.config import GenerateConfig
from components.generate.documents import Bad, read_document
from components.generate.text import digest
from components.records import Chunk, Record

MEGABYTE = 1_000_000
NO_MEMORY = 77  # exit code
KNOWN = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
"""What the process gets of the environment: where its libraries are, and no secret."""


class Fault(Record):
    """Why a file, or a setting, cannot be used."""

    problem: str
    detail: str = ""
    line: int | None = None


class Message(Record):
    """What the process says: about one document, or about the end of its file."""

    document: str = ""
    chunks: list[Chunk] = Field(default_factory=list)
    bad: Fault | None = None
    malformed: Fault | None = None
    setting: Fault | None = None
    missing: str = ""


class Reader:
    """Reads files with the process; use as a context manager.

    Raises:
        ConfigError: no such tokenizer, or too little memory to begin with.
    """

    def __init__(self, config: GenerateConfig, root: Path) -> None:
        self.config = config
        self.root = root
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, path: Path) -> Iterator[tuple[str, list[Chunk]]]:
        """For each document of a file, the digest of its words, and its chunks.

        Raises:
            Bad: the file cannot be used, or takes too much memory or time.
            DataError: a row of a JSON file is malformed; names the file, and the line or row.
        """
        process = self._process or self._start()
        _tell(process.stdin, json.dumps(str(path)))
        while message := self._hear():
            if message.bad is not None:
                raise Bad(message.bad.problem, message.bad.detail, message.bad.line)
            if fault := message.malformed:
                raise DataError(fault.problem, path=path, line=fault.line, hint=fault.detail)
            if not message.document:
                return
            yield message.document, message.chunks
        raise self._end()

    def _start(self) -> "subprocess.Popen[bytes]":
        here = str(Path(__file__).parents[2])
        known = {name: os.environ[name] for name in KNOWN if name in os.environ}
        known["PYTHONPATH"] = os.pathsep.join(filter(None, (here, known.get("PYTHONPATH"))))
        self._process = process = subprocess.Popen(  # noqa: S603 (no shell; ourselves)
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=known,
            start_new_session=True,  # Ctrl-C is for us
        )
        _tell(process.stdin, self.config.model_dump_json())
        _tell(process.stdin, json.dumps(str(self.root)))
        message = self._hear()
        if message is None:
            raise self._end()
        if fault := message.setting:
            raise ConfigError(fault.problem, hint=fault.detail)
        return process

    def _hear(self) -> Message | None:
        """The next message; None if the process has ended."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        message = Message.model_validate_json(line)
        if message.missing:
            raise ModuleNotFoundError(f"No module named {message.missing!r}", name=message.missing)
        return message

    def _end(self) -> Bad:
        """Why the process has ended."""
        code = self._stop()
        if code == -signal.SIGALRM:
            seconds = f"{self.config.document_timeout:g} seconds"
            return Bad("takes too long", f"not read in {seconds} (--document-timeout)")
        if code in (NO_MEMORY, -signal.SIGKILL):
            megabytes = f"{self.config.document_memory_mb:,} MB"
            return Bad(
                "needs too much memory", f"more than {megabytes} to read (--document-memory-mb)"
            )
        return Bad("crashes what reads it", f"the reader ended with {code}")

    def _stop(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        return process.wait()


def _tell(pipe: IO[bytes] | None, line: str) -> None:
    assert pipe is not None
    with suppress(BrokenPipeError):  # it has ended: what it says will show why
        pipe.write(line.encode() + b"\n")
        pipe.flush()


# ---- in the process ----------------------------------------------------------------------------


def main() -> None:
    """Read files whose paths come in by lines: after the settings, and the folder they are in."""
    # What libraries print is no message.
    said = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lines = sys.stdin.buffer
    config = GenerateConfig.model_validate_json(lines.readline())
    root = Path(json.loads(lines.readline()))
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
    _say(said, Message())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    logging.disable(logging.CRITICAL)

    def alarm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    for line in lines:
        path = Path(json.loads(line))
        last = Message()
        alarm(config.document_timeout)
        try:
            for document in read_document(
                path, root, config.text_field, most_bytes=config.max_document_mb * MEGABYTE
            ):
                message = Message(document=digest(document.text), chunks=cut(document))
                alarm(0)  # a pipe that is full is no fault of the document
                _say(said, message)
                alarm(config.document_timeout)
        except Bad as bad:
            last = Message(bad=Fault(problem=str(bad), detail=bad.detail, line=bad.line))
        except DataError as error:
            last = Message(
                malformed=Fault(problem=error.problem, detail=error.hint, line=error.line)
            )
        except ModuleNotFoundError as error:
            last = Message(missing=error.name or str(error))
        except MemoryError:
            os._exit(NO_MEMORY)
        alarm(0)
        _say(said, last)


def _say(pipe: IO[bytes], message: Message) -> None:
    pipe.write(message.model_dump_json(exclude_defaults=True).encode() + b"\n")
    pipe.flush()


if __name__ == "__main__":
    main()
