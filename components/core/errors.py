"""A small family of errors that a person can act on.

Each carries the problem (with the bad value and what is allowed) and a hint (what to do or type
next). The command line prints both and exits with `exit_code`: 2 when the user can fix it, 1
when it is ours. Each is also its standard type, so library users can catch `ValueError` alone.
"""

import errno
import os
from pathlib import Path

from components.core.redaction import redact

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says about a full disk."""


def printable(text: str, keep: str = "") -> str:
    """Text that a terminal shows and UTF-8 can hold, different texts differently.

    What is not (line ends, escape sequences, invisible characters, bytes of a name that are no
    UTF-8) is written as Python escapes it, and so is a backslash; but for characters to `keep`.
    """
    return "".join(
        char if char in keep or (char.isprintable() and char != "\\") else ascii(char)[1:-1]
        for char in text
    )


def shown(text: str) -> str:
    """A message as a terminal may get it: its lines, but no escape sequences of a hostile name."""
    return printable(text, keep="\n\\")


def disk_is_full(error: BaseException) -> bool:
    """Whether an error is a full disk's: the system's, or a library's that has it in its text."""
    torchs_own = ("failed writing file", "unexpected pos", "iostream error")  # it drops the reason
    words = (*torchs_own, *map(os.strerror, FULL))
    return getattr(error, "errno", None) in FULL or any(word in str(error) for word in words)


def first_line(error: object) -> str:
    """What an error says, at most 300 characters of it, or its type where it says nothing.

    Secrets are taken out before it is cut: nobody knows one by its first half.
    """
    text = redact(str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


class RaftError(Exception):
    """Something went wrong that we know how to explain."""

    exit_code = 1

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.hint = hint


class ConfigError(RaftError, ValueError):
    """A flag or parameter is unknown, missing or out of range."""

    exit_code = 2


class Diverged(ConfigError):
    """The loss of a training is no number, or rose above its start: its adapter is worthless."""


class DataError(RaftError, ValueError):
    """A document, row, question or artifact cannot be used as it is.

    Attributes:
        problem: what is wrong with it.
        path: the file or folder at fault.
        line: its 1-based line, where the fault has one.
    """

    exit_code = 2

    def __init__(
        self, problem: str, *, path: Path | str, line: int | None = None, hint: str = ""
    ) -> None:
        place = printable(str(path))
        if line is not None:
            place += f":{line}"
        super().__init__(f"{place}: {problem}", hint=hint)
        self.problem = problem
        self.path = Path(path)
        self.line = line


class ModelError(RaftError, ValueError):
    """A model folder, adapter or tokenizer cannot be used as it is."""

    exit_code = 2


class TeacherError(RaftError, RuntimeError):
    """The teacher cannot be reached or keeps failing."""

    exit_code = 2


class StorageError(RaftError, RuntimeError):
    """A bucket, object or output folder cannot be read or written."""

    exit_code = 2


class AccessError(StorageError):
    """A bucket may be there, but this account has no credentials for it or is not allowed."""


class ClusterError(RaftError, RuntimeError):
    """A cluster, or Kubeflow on it, cannot be reached, refuses, or lacks what a run needs."""

    exit_code = 2


class NotPermitted(ClusterError):
    """A cluster answers, but not to this account."""


class RunError(RaftError, RuntimeError):
    """A run on a cluster has failed."""


class OutOfMemory(RaftError, MemoryError):
    """A device has too little memory for the settings; the hint says what to lower."""

    exit_code = 2


class MissingDependencyError(RaftError, ImportError):
    """An optional library of a stage is not installed; the hint is the command that installs it."""

    exit_code = 2
