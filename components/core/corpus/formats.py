"""The text of a file that is text, Markdown included; and what all readers share."""

import codecs
import re
from pathlib import Path

BINARY = "\0"
MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte-order marks; those of UTF-32 first, since one of them begins as UTF-16's does."""

TYPESETTING = str.maketrans(
    dict(
        zip("ﬀﬁﬂﬃﬄﬅﬆ\N{SOFT HYPHEN}", ("ff", "fi", "fl", "ffi", "ffl", "st", "st", ""), strict=True)
    )
)
"""Ligatures as letters; nothing for hyphens that are seen at a line's end only."""

FRONT_MATTER = re.compile(
    r"\s*---[ \t]*\n(?:(?:[^\s#-][^\n:]*:.*|[ \t]+\S.*|[-#].*|[ \t]*)\n)*?(?:---|\.\.\.)[ \t]*\n"
    r"|\s*\+\+\+[ \t]*\n(?:.*\n)*?\+\+\+[ \t]*\n"
)
"""YAML, of which each line looks like it, or TOML."""

MODULE_LINES = re.compile(
    r"(?P<code>^ {0,3}(?P<mark>`{3,}|~{3,})[^`\n]*\n(?:.*\n)*?(?: {0,3}(?P=mark)|\Z))"
    r"|^import[ \t]+(?:[\w*{][\w*{}\s,$]{0,2000}?\sfrom\s+)?"
    r"(?P<quote>['\"])[^'\"\n]+(?P=quote);?[ \t]*(?://.*)?\n"
    r"|^export[ \t]+(?:(?:const|let|var)\s[^=\n]+=|(?:default|async|function|class)\b[^.\n]*[({;]"
    r"|default[ \t]+\w+\n|[{*]).*\n(?:.+\n)*",
    re.MULTILINE,
)
"""What MDX imports and exports; code, which may do so too, is matched to be kept."""


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


def clean(text: str) -> str:
    """Text with plain line ends, that can be written as UTF-8 (some PDFs hold half surrogates)."""
    text = text.encode("utf-8", "replace").decode().translate(TYPESETTING)
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def read_text(path: Path) -> str:
    """A text file in the encoding that its byte-order mark names, else in UTF-8."""
    data = path.read_bytes()
    encoding = marked_encoding(data) or "utf-8"
    try:
        text = data.decode(encoding).removeprefix("\N{BYTE ORDER MARK}")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        remedy = "" if encoding != "utf-8" else "; if it is Latin-1: iconv -f LATIN1 -t UTF-8"
        raise Unreadable(f"not {encoding.upper()} text", error.reason + remedy, line) from error
    if BINARY in text:
        line = text[: text.index(BINARY)].count("\n") + 1
        raise Unreadable("binary", "not text: it holds NUL bytes", line)
    return text


def marked_encoding(data: bytes) -> str:
    """The encoding that a byte-order mark names; "" without one.

    Raises:
        Unreadable: UTF-16 without one.
    """
    if encoding := next((name for mark, name in MARKS.items() if data.startswith(mark)), ""):
        return encoding
    start = data[:2000]
    for offset, encoding in enumerate(("UTF-16BE", "UTF-16LE")):
        if start.count(0) == start[offset::2].count(0) > len(start) / 4:
            detail = f"{encoding} without a byte-order mark; iconv -f {encoding} -t UTF-8"
            raise Unreadable("not UTF-8 text", detail)
    return ""


def read_markdown(path: Path) -> str:
    """A Markdown file without its front matter; of MDX without imports and exports, too."""
    text = read_text(path).replace("\r\n", "\n") + "\n"
    body = text[head.end() :] if (head := FRONT_MATTER.match(text)) else text
    if path.suffix.lower() != ".mdx":  # elsewhere a line may begin with these words
        return body
    return MODULE_LINES.sub(lambda lines: lines["code"] or "", body)
