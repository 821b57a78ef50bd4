"""Plain English where users read: no word of the faults that were found in earlier texts."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipelines.cli import raft
from tests.conftest import REPOSITORY

FAULTS = {
    r"\b(?:Most|Least) \w+ (?:in|of|at|a|per)\b|\bthe most that\b": "maximum, minimum",
    r"\b(?:goes|go|went|going) on\b": "resumes, continues",
    r"\b(?:says?|said|tells?|told)\b": "reports, states, names; distinguishes",
    r"\basked for\b": "requested, requests",
    r"\banew\b": "again, from scratch",
    r"\bmend(?:s|ed|ing)?\b": "fixes, corrects",
    r"\b(?:left|leaves?|leaving) out\b|\bstays? out\b": "skipped, omitted",
    r"\b(?:lie|lies|lay)\b(?! in)": "is, are",
    r"\bleaves with\b": "exits with",
    r"\bwithout a word\b": "silently",
    r"\bof like\b|\bhow like\b": "similar",
    r"\bgive the same\b(?! command)|\bgive it to\b|\bthat is given it\b": "pass",
    r"\bfor good\b": "permanently",
    r"\bhad from\b|\bto be had\b": "available",
    r"\bstands?\b(?!-in)": "is, are",
}
"""Patterns, and what to write instead."""

TEXTS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "pipelines").glob("*.yaml")),
    *sorted((REPOSITORY / "components").rglob("*.jinja")),
    REPOSITORY / "components" / "generate" / "card.md",
]


def helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """The help of a command and of all below it, by name."""
    context = click.Context(command, info_name=name)
    yield name, " ".join(command.get_help(context).split())
    for below in getattr(command, "commands", {}).values():
        yield from helps(below, f"{name} {below.name}")


def faults(text: str) -> list[str]:
    """The faults of a text, with what is around them; programs' names and output are no prose."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "`…`", text, flags=re.DOTALL)
    return [
        f"…{prose[max(0, hit.start() - 40) : hit.end() + 30]}… (write: {better})"
        for pattern, better in FAULTS.items()
        for hit in re.finditer(pattern, prose, re.IGNORECASE if "Most" not in pattern else 0)
    ]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_pages_are_in_plain_words(path: Path) -> None:
    assert not faults(path.read_text(encoding="utf-8"))


def test_helps_are_in_plain_words() -> None:
    texts = dict(helps(raft, "raft"))
    assert len(texts) > 15
    assert {name: found for name, text in texts.items() if (found := faults(text))} == {}


def test_a_fault_would_be_found() -> None:
    assert len(faults("Most tokens in one answer. It goes on, as `say` says.")) == 3
    assert len(TEXTS) > 15
