"""The extractive teacher: questions made from a chunk's own sentences by rules, without a model.

It turns statements round ("Ada Voss was born in Kelden." gives "Where was Ada Voss born?") and,
where no rule fits, leaves a gap to fill. The answer quotes the sentence. It is made for trials,
tests and the demo: its questions are as plain as its rules.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
class _Asked:
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
        sentences = [sentence.strip() for sentence in segment("en", chunk.text)]
        asked = _ask_all(sentences, (_ask_passive, _ask_attribute, _ask_definition))
        if len(asked) < self.questions_per_chunk:
            used = {item.sentence for item in asked}
            asked += _ask_all([text for text in sentences if text not in used], (_ask_gap,))
        if not asked:
            return [Draft(fault="no sentence to ask about")]
        chosen = rng.sample(asked, min(self.questions_per_chunk, len(asked)))
        return [
            Draft(question=item.question, cot_answer=self.template.substitute(vars(item)))
            for item in chosen
        ]


def _ask_all(
    sentences: Sequence[str], rules: Sequence[Callable[[str], _Asked | None]]
) -> list[_Asked]:
    """The first rule that fits each sentence; sentences that none fits are left out."""
    found = []
    for sentence in sentences:
        # Mark-up that spans lines (headings, code, tables) is no statement.
        if "\n" in sentence or not sentence.endswith(".") or not sentence[:1].isupper():
            continue
        if sentence.split()[0].lower() in _POINTING:
            continue
        plain = _BRACKETED.sub("", sentence)
        item = next(filter(None, (rule(plain) for rule in rules)), None)
        if item is not None:
            found.append(replace(item, sentence=sentence))
    return found


def _ask_passive(sentence: str) -> _Asked | None:
    """ "E was built in V." gives "Where was E built?"; years and persons, "When" and "By whom"."""
    match = _PASSIVE.match(sentence)
    if match is None:
        return None
    value = match["value"]
    named = value[:1].isupper()
    if match["preposition"] == "in" and re.fullmatch(r"\d{4}", value):
        asking = "When"
    elif match["preposition"] in ("in", "at") and named:
        asking = "Where"
    elif match["preposition"] == "by" and named:
        asking = "By whom"
    else:
        asking = f"{match['preposition'].capitalize()} what"
    return _asked(match, f"{asking} {match['verb']} {{subject}} {match['participle']}?")


def _ask_attribute(sentence: str) -> _Asked | None:
    """ "The mayor of E is V." gives "Who is the mayor of E?"; of other nouns, "What is …"."""
    match = _ATTRIBUTE.match(sentence)
    if match is None:
        return None
    asking = "Who" if match["attribute"].split()[-1] in _PERSONS else "What"
    return _asked(match, f"{asking} {match['verb']} the {match['attribute']} of {{subject}}?")


def _ask_definition(sentence: str) -> _Asked | None:
    """ "E is a V." gives "What is E?"."""
    match = _DEFINITION.match(sentence)
    return _asked(match, f"What {match['verb']} {{subject}}?") if match else None


def _ask_gap(sentence: str) -> _Asked | None:
    """The last name or number of a sentence becomes a gap."""
    found = list(_NAME_OR_NUMBER.finditer(sentence))
    if not found:
        return None
    gap = found[-1]
    statement = f"{sentence[: gap.start()]}_____{sentence[gap.end() :]}"
    if gap.group() in statement or len(statement.split()) < LEAST_GAP_WORDS:
        return None
    return _Asked(
        question=f'Which word or words fill the gap in "{statement}"?',
        answer=gap.group(),
        subject=f'the statement "{statement}"',
        sentence=sentence,
    )


def _asked(match: re.Match[str], question: str) -> _Asked | None:
    subject = match["subject"]
    # "the film" or a clause with a verb of its own names nothing that a reader could look up.
    if subject.startswith(("The ", "A ", "An ")):
        subject = subject[0].lower() + subject[1:]
    if subject.islower() or _VERB.search(subject):
        return None
    answer = match["value"].strip()
    if len(subject.split()) > MOST_SUBJECT_WORDS or len(answer.split()) > MOST_ANSWER_WORDS:
        return None
    return _Asked(question.format(subject=subject), answer, subject, match.string)
