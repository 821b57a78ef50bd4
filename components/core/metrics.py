"""The official HotpotQA answer metrics.

A generation such as::

    ##begin_quote##Ada Voss was born in Kelden.##end_quote## So she was. <ANSWER>: Kelden

is scored by its answer ("Kelden"); only `contains` looks at the whole generation.
"""

import re
import string
from collections import Counter
from typing import NamedTuple

from components.core.corpus.formats import TYPESETTING
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
    """Lower case, no ASCII punctuation, no articles, single spaces; ligatures as in documents.

    Source: the official HotpotQA evaluation script. The order of the steps matters: "U.S.A." loses
    its dots before articles are removed, so its "a" stays.
    """
    plain = text.translate(TYPESETTING).lower().translate(NO_PUNCTUATION)
    return " ".join(ARTICLE.sub(" ", plain).split())


def score(answer: str, gold: str) -> Scores:
    """Exact match and token overlap of one answer.

    Equal words count as often as they occur in both. Where either side is yes, no or noanswer and
    the other differs, overlap is zero: "no" earns nothing from "no, she was not".
    Source: the official HotpotQA evaluation script.
    """
    answer, gold = normalize(answer), normalize(gold)
    em = float(answer == gold)
    if answer != gold and not ALL_OR_NOTHING.isdisjoint((answer, gold)):
        return Scores(0.0, em, 0.0, 0.0)
    answer_words, gold_words = answer.split(), gold.split()
    shared = (Counter(answer_words) & Counter(gold_words)).total()
    if shared == 0:
        return Scores(0.0, em, 0.0, 0.0)
    precision, recall = shared / len(answer_words), shared / len(gold_words)
    return Scores(2 * precision * recall / (precision + recall), em, precision, recall)


def contains(generation: str, gold: str) -> bool:
    """Whether the gold answer's words occur in a row somewhere in the generation.

    Both are normalised first, and RAFT's own markers become spaces: without punctuation they would
    join the words next to them. An answer that is empty afterwards ("The") must be equal.
    """
    gold = normalize(gold)
    generation = normalize(MARKER.sub(" ", generation))
    return f" {gold} " in f" {generation} " if gold else not generation
