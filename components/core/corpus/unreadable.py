"""Why a document cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager

from components.core.errors import printable


class Unreadable(Exception):
    """A document cannot be used.

    Attributes:
        reason: a few words, under which the report counts it.
        problem: what is wrong, for a message.
        line, hint: where it is, and what to do, if known.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        line: int | None = None,
        *,
        problem: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.problem = problem or (f"{reason} ({detail})" if detail else reason)
        self.line = line
        self.hint = hint


@contextmanager
def damaged(reason: str) -> Iterator[None]:
    """Whatever a library raises at a file is the file's fault: at bad ones, they fail in any way.

    Raises:
        Unreadable: with this reason, or that the file is nested too deep.
    """
    try:
        yield
    except (Unreadable, OSError, MemoryError, ModuleNotFoundError):
        raise
    except RecursionError:
        raise Unreadable("too deeply nested", "the reader's depth limit is exceeded") from None
    except Exception as error:
        message = printable(" ".join(str(error).split())[:200])
        raise Unreadable(reason, message or type(error).__name__) from error
