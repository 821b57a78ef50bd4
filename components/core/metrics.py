"""The official HotpotQA answer metrics.

A generation such as::

    ##begin_quote##Ada Voss was born in Kelden.##end_quote## So she was. <ANSWER>: Kelden

is judged by its answer ("Kelden"); `contains` alone looks at the whole of it. Knows nothing of
models or files.
"""

import re
import string
from collections import Counter
from typing import NamedTuple

from components.core.raft_form import ANSWER_MARKER, QUOTE_BEGIN, QUOTE_END

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLE = re.compile(r"\b(a|an|the)\b")
MARKER = re.compile("|".join(map(re.escape, (QUOTE_BEGIN, QUOTE_END, ANSWER_MARKER))))
ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})


class Scores(NamedTuple):
    """Agreement of one answer with the gold one, each in [0, 1]."""

    f1: float
    em: float
    precision: float
    recall: float


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces.

    Source: the official HotpotQA evaluation script (the order of the steps matters: "U.S.A." loses
    its dots before articles are looked for, so its "a" stays).
    """
    return " ".join(ARTICLE.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def score(answer: str, gold: str) -> Scores:
    """Exact match and token overlap of one answer.

    Equal words count as often as they occur in both. Where either side is yes, no or noanswer and
    the other differs, overlap is zero: "no" earns nothing from "no, she was not".
    Source: the official HotpotQA evaluation script.
    """
    given, wanted = normalize(answer), normalize(gold)
    em = float(given == wanted)
    if given != wanted and not ALL_OR_NOTHING.isdisjoint((given, wanted)):
        return Scores(0.0, em, 0.0, 0.0)
    given_words, wanted_words = given.split(), wanted.split()
    shared = (Counter(given_words) & Counter(wanted_words)).total()
    if shared == 0:
        return Scores(0.0, em, 0.0, 0.0)
    precision, recall = shared / len(given_words), shared / len(wanted_words)
    return Scores(2 * precision * recall / (precision + recall), em, precision, recall)


def contains(generation: str, gold: str) -> bool:
    """Whether the gold answer's words stand in a row somewhere in the generation.

    Both are normalised first, and RAFT's own markers count as spaces: without punctuation they
    would stick to the words beside them. A gold answer of which nothing is left (such as "The")
    must be equal.
    """
    wanted = normalize(gold)
    given = normalize(MARKER.sub(" ", generation))
    return f" {wanted} " in f" {given} " if wanted else not given
