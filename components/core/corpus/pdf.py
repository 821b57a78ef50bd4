"""The text of a PDF: without running heads, with lines joined that were broken to fit a column."""

import re
from collections import Counter
from pathlib import Path

from components.core.corpus.formats import Unreadable, clean

WRAPPED = 40  # characters: a shorter line was ended on purpose
EDGE = 3  # lines at the top and at the bottom of a page that may be running heads
SENTENCE_END = (".", ":", "!", "?")
LONG = 200  # characters: no running head and no word is longer
CUT = re.compile(r"(?P<before>\S*?)(?P<word>\w[\w-]*)-$")
REST = re.compile(r"(?!(?:and|or|und|oder)\b)(?P<word>\w+(?:-\w+)*)")
PART_OF_ADDRESS = ("/", "@", ".", "=", "#")


def read_pdf(path: Path) -> str:
    """The text of all pages."""
    from pypdf import PdfReader

    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("encrypted PDF", "encrypted: it opens only with a password")
    pages = [_lines(page.extract_text()) for page in reader.pages]
    if pages and not any(map(any, pages)):
        raise Unreadable("PDF without text", "a scan: its pages are pictures; run OCR on it first")
    lines: list[str] = []
    for page in _without_running_heads(pages):
        mid_sentence = lines and not lines[-1].endswith(SENTENCE_END) and page
        if not (mid_sentence and page[0][:1].islower()):
            lines.append("")
        lines += page
    return _unwrapped(lines)


def _lines(page: str) -> list[str]:
    hyphens = re.compile(r"[\N{HYPHEN}\N{SOFT HYPHEN}][ ]*$", re.MULTILINE)
    lines = clean(hyphens.sub("-", page)).split("\n")
    return [line.rstrip().removeprefix(" ") for line in lines]


def _without_running_heads(pages: list[list[str]]) -> list[list[str]]:
    """Pages without the lines at their edges that most pages have, or most left or right ones."""
    bodies = pages
    for _ in range(2):  # at the top, then at the bottom
        bodies = [page[::-1] for page in _without_repeated_tops(bodies)]
    return bodies if any(bodies) else pages


def _without_repeated_tops(pages: list[list[str]]) -> list[list[str]]:
    filled = [[line for line in page if line] for page in pages]
    tops = [lines[: min(EDGE, (len(lines) + 1) // 2)] for lines in filled]
    seen: Counter[tuple[str, int]] = Counter()
    for number, top in enumerate(tops):
        seen.update({(key, number % 2) for line in top for key in _keys(line, number)})

    def repeated(line: str, number: int) -> bool:
        side = number % 2
        return any(
            seen[key, 0] + seen[key, 1] > max(1, len(pages) / 2)
            or seen[key, side] > max(2, len(pages[side::2]) / 2)
            for key in _keys(line, number)
        )

    bodies = []
    for number, page in enumerate(pages):
        rest = list(page)
        for line in tops[number]:
            if repeated(line, number):
                rest.remove(line)
        while rest and not rest[0]:
            del rest[0]
        bodies.append(rest)
    return bodies


def _keys(line: str, number: int) -> set[str]:
    """A line, and the line with each of its numbers replaced by how far it is from the page's.

    With these, lines are the same on all pages that differ in the page's number alone.
    """
    line = line.strip()
    if len(line) > LONG:
        return set()
    return {line} | {
        f"{line[: digits.start()]}\0{int(digits[0]) - number}\0{line[digits.end() :]}"
        for digits in re.finditer(r"(?<!\d)[0-9]{1,5}(?!\d)", line)
    }


def _unwrapped(lines: list[str]) -> str:
    """Lines that end in mid-word or mid-sentence are joined with the next."""
    known = set(re.findall(r"\w+(?:-\w+)*", "\n".join(lines).casefold()))
    text = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if (begun := CUT.search(line[-LONG:])) and (rest := REST.match(following)):
            text += line if _keeps_hyphen(begun, rest["word"], known) else line[:-1]
        else:
            ended = len(line) < WRAPPED or not following or line.endswith(SENTENCE_END)
            text += line + ("\n" if ended else " ")
    return text


def _keeps_hyphen(begun: re.Match[str], rest: str, known: set[str]) -> bool:
    """Whether a word has its hyphen elsewhere in the document, or cannot do without."""
    word = begun["word"]
    capitals = word.isupper() and rest.isupper()
    compound = len(word) == 1 or not (capitals or (rest.islower() and not word.isupper()))
    compound |= not (word + rest).isalpha() or begun["before"].endswith(PART_OF_ADDRESS)
    unknown = (word + rest).casefold() not in known
    return f"{word}-{rest}".casefold() in known or (compound and unknown)
