"""The report's questions: sorted by what tuning changed, and summed up by type and by document."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from components.core.metrics import contains, normalize, score
from components.core.records import Evaluation, Sample

OUTCOMES = {
    (False, True): "lost",
    (False, False): "both wrong",
    (True, True): "both right",
    (True, False): "won",
}
"""Of a question, by whether the tuned and the base model's generations contain the answer."""

QUESTION_WORDS = ("who", "whose", "whom", "what", "which", "when", "where", "why", "how")
CLOSED = ("is", "are", "was", "were", "do", "does", "did", "has", "have", "had", "can", "could")
EXCERPT = 60  # characters on each side of an answer found in a generation
ANSWER_CHARACTERS = 300
LONGEST_GOLD = 200  # characters; a longer answer is not looked for

Piece = tuple[str, str]
"""A part of a text, and what it is; "" for plain text."""


class Answered(NamedTuple):
    """One question with the samples of all arms; `outcome` is "" without a pair to compare."""

    outcome: str
    kind: str
    samples: list[Sample]


class Part(NamedTuple):
    """Questions with something in common: the share whose answer each arm's generations contain."""

    name: str
    questions: int
    contains: list[float]


def by_question(samples: Iterable[Sample], evaluation: Evaluation) -> list[Answered]:
    """Every question, losses first: by containment, as the tables count, then exact match, F1."""
    members: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        members[sample.question_id].append(sample)
    gain = evaluation.tuning_effect("contains")
    if gain is None:
        return [Answered("", kind_of(group[0]), group) for group in members.values()]
    ranked = []
    for group in members.values():
        arms = {sample.arm: sample for sample in group}
        tuned, base = arms[gain.arm], arms[gain.baseline]
        outcome = tuned.contains, base.contains
        rank = ([*OUTCOMES].index(outcome), tuned.em - base.em, tuned.f1 - base.f1)
        ranked.append((rank, Answered(OUTCOMES[outcome], kind_of(tuned), group)))
    return [question for _, question in sorted(ranked, key=lambda entry: entry[0])]


def kind_of(sample: Sample) -> str:
    """The type of a question: the data set's own, else its English question word."""
    if sample.kind:
        return sample.kind
    words = re.findall(r"[a-z]+", sample.question[:1000].lower())
    if words and words[0] in CLOSED:
        return "yes or no"
    return next((word for word in words if word in QUESTION_WORDS), "other")


def by_kind(questions: Sequence[Answered]) -> list[Part]:
    """Scores by the questions' types, the largest first."""
    parts = _parts(questions, lambda question: [question.kind])
    return sorted(parts, key=lambda part: -part.questions)


def by_document(questions: Sequence[Answered], evaluation: Evaluation) -> list[Part]:
    """Scores by the oracle documents that several questions have, the largest loss first."""
    gain = evaluation.tuning_effect("contains")
    parts = _parts(questions, lambda question: question.samples[0].sources)
    arms = [arm.name for arm in evaluation.arms]

    def change(part: Part) -> float:
        if gain is None:
            return part.contains[0]
        return part.contains[arms.index(gain.arm)] - part.contains[arms.index(gain.baseline)]

    several = [part for part in parts if part.questions > 1]
    return sorted(several, key=lambda part: (change(part), -part.questions))


def _parts(questions: Iterable[Answered], names: Callable[[Answered], Iterable[str]]) -> list[Part]:
    groups: defaultdict[str, list[Answered]] = defaultdict(list)
    for question in questions:
        for name in names(question):
            groups[name].append(question)
    return [
        Part(
            name,
            len(group),
            [
                fmean(float(sample.contains) for sample in of_arm)
                for of_arm in zip(*(question.samples for question in group), strict=True)
            ],
        )
        for name, group in groups.items()
    ]


def shared_words(text: str, other: str) -> list[Piece]:
    """A text in parts; those words are "shared" that F1 finds in `other` too."""
    left = Counter(normalize(other).split())
    pieces: list[Piece] = []
    for part in re.split(r"(\s+)", text):
        word = normalize(part)
        shared = bool(word) and left[word] > 0
        left[word] -= shared
        pieces.append((part, "shared" if shared else ""))
    return pieces


def best_gold(sample: Sample) -> str:
    """The correct answer that a sample was scored against."""
    answer = sample.answer[:LONGEST_GOLD]
    return max(sample.gold, key=lambda gold: score(answer, gold[:LONGEST_GOLD]).f1)


def excerpt(sample: Sample) -> list[Piece]:
    """The answer where a generation contains it outside of what it gives as its answer."""
    gold = best_gold(sample)
    if not sample.contains or not gold or len(gold) > LONGEST_GOLD:
        return []
    if contains(sample.answer[:ANSWER_CHARACTERS], gold):
        return []
    words = r"\W+".join(map(re.escape, re.findall(r"\w+", gold)))
    place = re.search(rf"\b{words}\b", sample.generation, re.IGNORECASE) if words else None
    if place is None:
        return []
    start, end = place.span()
    before = sample.generation[max(0, start - EXCERPT) : start]
    after = sample.generation[end : end + EXCERPT]
    return [(f"…{before}", ""), (place.group(), "shared"), (f"{after}…", "")]
