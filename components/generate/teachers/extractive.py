"""The extractive teacher: questions made from a chunk's own sentences by rules, without a model.

It turns statements round ("Ada Voss was born in Kelden." gives "Where was Ada Voss born?") and,
where no rule fits, leaves a gap to fill. The answer quotes the sentence. It is made for trials,
tests and the demo: its questions are as plain as its rules.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

from components.core.ledger import Ledger
from components.core.records import Chunk
from components.generate.teachers.teacher import Draft

ANSWER_TEMPLATE = Path(__file__).parents[1] / "prompts" / "extractive_answer.md"

MOST_SUBJECT_WORDS = 10
MOST_ANSWER_WORDS = 8
LEAST_GAP_WORDS = 5

# A sentence about "he" or "this" asks nothing that a reader of the question could look up.
_POINTING = {
    "he", "she", "it", "they", "we", "i", "you", "this", "that", "these", "those", "there", "here",
    "his", "her", "its", "their", "our", "my", "your", "which", "who", "what", "if", "when", "in",
    "on", "at", "for", "from", "as", "but", "and", "or", "after", "before", "during", "while",
}  # fmt: skip

_PERSONS = {
    "author", "captain", "chairman", "chief", "child", "composer", "conductor", "creator",
    "daughter", "director", "editor", "father", "finder", "founder", "governor", "head", "heir",
    "host", "husband", "inventor", "keeper", "king", "leader", "maker", "manager", "mayor",
    "mother", "owner", "painter", "president", "producer", "queen", "ruler", "singer", "sister",
    "son", "spouse", "teacher", "wife", "winner", "writer",
}  # fmt: skip

_PARTICIPLE = (
    r"\w+(?:ed|en|un|orn|own|ade|ept|ilt|eld|old|ought|aught|ound|ent|aid|ung|ost|ut|et|on|ead)"
)
_PREPOSITION = "in|by|on|at|of|from|with|for|after|under"
_CLAUSE_END = r"(?=[,;:(]|\.?$)"

_PASSIVE = re.compile(
    rf"^(?P<subject>[^,;:]+?) (?P<verb>is|was|are|were) (?P<participle>{_PARTICIPLE}) "
    rf"(?P<preposition>{_PREPOSITION}) (?P<value>.+?){_CLAUSE_END}"
)
_ATTRIBUTE = re.compile(
    rf"^The (?P<attribute>(?:[a-z-]+ ){{0,3}}[a-z-]+) of (?P<subject>[^,;:]+?) "
    rf"(?P<verb>is|was|are|were) (?P<value>.+?){_CLAUSE_END}"
)
_DEFINITION = re.compile(
    r"^(?P<subject>[^,;:]+?) (?P<verb>is|was|are|were) "
    rf"(?P<value>(?:a|an|the|one) .+?){_CLAUSE_END}"
)
_NAME_OR_NUMBER = re.compile(r"(?<=[\w,;:] )(?:[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\d[\d,]*\d|\d)\b")
_VERB = re.compile(r" (?:is|was|are|were|has|have|had|which|who|that) ")
_BRACKETED = re.compile(r"(?<!\s)\s*\([^()]*\)")


@dataclass(frozen=True)
class Fact:
    """A question that `sentence` answers with `answer`."""

    question: str
    answer: str
    subject: str
    sentence: str


class ExtractiveTeacher:
    """See the module."""

    name = "extractive"

    def __init__(self, questions_per_chunk: int, seed: int) -> None:
        self.questions_per_chunk = questions_per_chunk
        self.seed = seed
        self.template = Template(ANSWER_TEMPLATE.read_text(encoding="utf-8").strip())

    def drafts(
        self, chunks: Iterable[Chunk], ledger: Ledger
    ) -> Iterator[tuple[Chunk, list[Draft]]]:
        """See `Teacher.drafts`."""
        for chunk in chunks:
            yield chunk, self._about(chunk)

    def _about(self, chunk: Chunk) -> list[Draft]:
        from sentencex import segment

        rng = random.Random(f"{self.seed}/{chunk.id}")
        sentences = [
            text for part in segment("en", chunk.text) if _is_statement(text := part.strip())
        ]
        facts = _first_facts(sentences, _by_rule)
        if len(facts) < self.questions_per_chunk:
            used = {fact.sentence for fact in facts}
            facts += _first_facts([text for text in sentences if text not in used], _by_gap)
        if not facts:
            return [Draft(fault="no sentence to ask about")]
        return [
            Draft(question=fact.question, cot_answer=self.template.substitute(vars(fact)))
            for fact in rng.sample(facts, min(self.questions_per_chunk, len(facts)))
        ]


def _is_statement(sentence: str) -> bool:
    # Mark-up that spans lines (headings, code, tables) is no statement.
    if "\n" in sentence or not sentence.endswith(".") or not sentence[:1].isupper():
        return False
    return sentence.split(maxsplit=1)[0].lower() not in _POINTING


def _first_facts(
    sentences: Iterable[str], find: Callable[[str], Iterator[Fact | None]]
) -> list[Fact]:
    """The first fact that is found in each sentence, without what is in brackets."""
    facts = ((next(filter(None, find(_BRACKETED.sub("", text))), None), text) for text in sentences)
    return [replace(fact, sentence=text) for fact, text in facts if fact is not None]


def _by_rule(sentence: str) -> Iterator[Fact | None]:
    """ "E was built in V." gives "Where was E built?"; years and persons, "When" and "By whom".

    "The mayor of E is V." gives "Who is the mayor of E?"; of other nouns, "What is …". "E is a V."
    gives "What is E?".
    """
    if match := _PASSIVE.match(sentence):
        value, preposition = match["value"], match["preposition"]
        asking = f"{preposition.capitalize()} what"
        if preposition == "in" and re.fullmatch(r"\d{4}", value):
            asking = "When"
        elif preposition in ("in", "at") and value[:1].isupper():
            asking = "Where"
        elif preposition == "by" and value[:1].isupper():
            asking = "By whom"
        yield _fact(match, f"{asking} {match['verb']} {{subject}} {match['participle']}?")
    if match := _ATTRIBUTE.match(sentence):
        asking = "Who" if match["attribute"].split()[-1] in _PERSONS else "What"
        yield _fact(match, f"{asking} {match['verb']} the {match['attribute']} of {{subject}}?")
    if match := _DEFINITION.match(sentence):
        yield _fact(match, f"What {match['verb']} {{subject}}?")


def _fact(match: re.Match[str], question: str) -> Fact | None:
    subject = match["subject"]
    # "the film" or a clause with a verb of its own names nothing that a reader could look up.
    if subject.startswith(("The ", "A ", "An ")):
        subject = subject[0].lower() + subject[1:]
    if subject.islower() or _VERB.search(subject):
        return None
    answer = match["value"].strip()
    if len(subject.split()) > MOST_SUBJECT_WORDS or len(answer.split()) > MOST_ANSWER_WORDS:
        return None
    return Fact(question.format(subject=subject), answer, subject, match.string)


def _by_gap(sentence: str) -> Iterator[Fact | None]:
    """The last name or number of a sentence becomes a gap."""
    *_, gap = [None, *_NAME_OR_NUMBER.finditer(sentence)]
    if gap is None:
        return
    statement = f"{sentence[: gap.start()]}_____{sentence[gap.end() :]}"
    if gap.group() not in statement and len(statement.split()) >= LEAST_GAP_WORDS:
        question = f'Which word or words fill the gap in "{statement}"?'
        yield Fact(question, gap.group(), f'the statement "{statement}"', sentence)
