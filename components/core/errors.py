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


def printable(text: str, keep: str = "") -> str:
    """Text with escapes, as Python writes them, for whatever a terminal cannot show as it is.

    That is: line ends, escape sequences, invisible characters and bytes that are not UTF-8. A
    backslash is escaped too, so that different texts stay different. Characters of `keep` are not.
    """
    return "".join(
        char if char in keep or (char.isprintable() and char != "\\") else ascii(char)[1:-1]
        for char in text
    )


def for_terminal(text: str) -> str:
    """A message with its lines, but without escape sequences that a hostile name may contain."""
    return printable(text, keep="\n\\")


def disk_is_full(error: BaseException) -> bool:
    """Whether an error means a full disk: the system's, or a library's with such a text."""
    torch_words = ("failed writing file", "unexpected pos", "iostream error")
    words = (*torch_words, *map(os.strerror, FULL))
    return getattr(error, "errno", None) in FULL or any(word in str(error) for word in words)


def first_line(error: object) -> str:
    """The first line of an error, at most 300 characters, or its type where it has no text.

    Secrets are removed first: one that is cut in half would no longer be recognised.
    """
    text = redact(str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


class RaftError(Exception):
    """An error with an explanation and a hint."""

    exit_code = 1

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.hint = hint


class RunError(RaftError, RuntimeError):
    """A run on a cluster has failed."""


class UserError(RaftError):
    """An error that the user can fix."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A flag or parameter is unknown, missing or out of range."""


class Diverged(ConfigError):
    """The loss of a training is no number: its adapter is worthless."""


class DataError(UserError, ValueError):
    """A document, row, question or artifact cannot be used.

    `line` is 1-based; None where the problem is in no line.
    """

    def __init__(
        self, problem: str, *, path: Path | str, line: int | None = None, hint: str = ""
    ) -> None:
        place = printable(str(path)) + (f":{line}" if line is not None else "")
        super().__init__(f"{place}: {problem}", hint=hint)
        self.problem, self.line = problem, line


class ModelError(UserError, ValueError):
    """A model folder, adapter or tokenizer cannot be used."""


class TeacherError(UserError, RuntimeError):
    """The teacher cannot be reached or keeps failing."""


class StorageError(UserError, RuntimeError):
    """A bucket, object or output folder cannot be read or written."""


class AccessError(StorageError):
    """A bucket may exist, but this account has no credentials for it or is not allowed."""


class ClusterError(UserError, RuntimeError):
    """A cluster, or Kubeflow on it, cannot be reached, refuses, or lacks what a run needs."""


class CannotTell(UserError, RuntimeError):
    """A check has no answer: from here, or for this account."""


class NotPermitted(ClusterError):
    """A cluster answers, but not to this account."""


class OutOfMemory(UserError, MemoryError):
    """A device has too little memory for the settings; the hint names what to lower."""


class MissingDependencyError(UserError, ImportError):
    """An optional library of a stage is not installed; the hint is the command that installs it."""
