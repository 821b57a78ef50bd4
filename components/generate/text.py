"""When texts count as equal, and where words begin and end, in any script."""

import re
import unicodedata

_NOT_WORDS = re.compile(r"[\W_]+")

_LOOKALIKES = str.maketrans({
    "‘": "'", "’": "'", "‚": "'", "‛": "'", "′": "'", "`": "'", "´": "'",
    "“": '"', "”": '"', "„": '"', "‟": '"', "″": '"', "«": '"', "»": '"',
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "―": "-", "−": "-",
    "\u00ad": "", "\u200b": "", "\u2060": "", "\ufeff": "",
})  # fmt: skip

WITHOUT_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\uabff\uf900-\U0010ffff]"
)
"""A character of a script that puts no spaces between words: Thai and Lao, Burmese, Khmer, and from
Chinese radicals on (kana, ideographs; Hangul does use spaces)."""


def normalized(text: str) -> str:
    """Letters and digits of a text in one case, words one space apart: what makes texts equal."""
    return _NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def folded(text: str) -> tuple[str, list[int]]:
    """A text in one case, in plain typography and with single spaces; and where each came from.

    Returns:
        The folded text, and for each of its characters the index in `text` of its origin.
    """
    chars: list[str] = []
    origin: list[int] = []
    for index, char in enumerate(text):
        if char.isspace():
            if chars and chars[-1] != " ":
                chars.append(" ")
                origin.append(index)
            continue
        plain = char.translate(_LOOKALIKES)
        for part in unicodedata.normalize("NFKC", plain).casefold():
            chars.append(" " if part.isspace() else part)
            origin.append(index)
    return "".join(chars), origin


def on_word_boundaries(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] cuts no word in two at either of its ends."""
    return not _inside_word(text, start) and not _inside_word(text, end)


def widen(text: str, start: int, end: int) -> tuple[int, int]:
    """The words that text[start:end] touches, whole."""
    while _inside_word(text, start):
        start -= 1
    while _inside_word(text, end):
        end += 1
    return start, end


def _inside_word(text: str, place: int) -> bool:
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if not (before.isalnum() and after.isalnum()):
        return False
    return not WITHOUT_SPACES.search(before + after)


def find_words(needle: str, text: str) -> int:
    """Where `needle` stands in `text` with its words whole; -1 if nowhere."""
    start = text.find(needle)
    while start >= 0 and not on_word_boundaries(text, start, start + len(needle)):
        start = text.find(needle, start + 1)
    return start if needle else -1
