"""The extractive teacher: questions made from a chunk's own sentences by rules, without a model.

It turns statements round ("Ada Voss was born in Kelden." gives "Where was Ada Voss born?") and,
where no rule fits, leaves a gap to fill. The answer quotes the sentence. It is made for trials,
tests and the demo: its questions are as plain as its rules.
"""

import random
import re
from collections.abc import Generator, Iterable
from pathlib import Path
from string import Template

from components.core.ledger import Ledger
from components.core.raft_form import QUOTE_BEGIN, QUOTE_END
from components.core.records import Chunk
from components.generate.teachers import Draft

ANSWER_TEMPLATE = Path(__file__).parents[1] / "prompts" / "extractive_answer.md"

Fact = tuple[str, str]  # a question, and its answer

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

_SUBJECT = r"(?P<subject>[^,;:]+?) (?P<verb>is|was|are|were)"
_RULES = (
    rf"{_SUBJECT} (?P<participle>{_PARTICIPLE}) (?P<preposition>{_PREPOSITION}) (?P<value>.+?)",
    rf"The (?P<attribute>(?:[a-z-]+ ){{0,3}}[a-z-]+) of {_SUBJECT} (?P<value>.+?)",
    rf"{_SUBJECT} (?P<value>(?:a|an|the|one) .+?)",
)
_NAME_OR_NUMBER = re.compile(r"(?<=[\w,;:] )(?:[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\d[\d,]*\d|\d)\b")
_VERB = re.compile(r" (?:is|was|are|were|has|have|had|which|who|that) ")
_BRACKETED = re.compile(r"(?<!\s)\s*\([^()]*\)")


class ExtractiveTeacher:
    """See the module."""

    name = "extractive"

    def __init__(self, questions_per_chunk: int, seed: int) -> None:
        self.questions_per_chunk = questions_per_chunk
        self.seed = seed
        self.template = Template(ANSWER_TEMPLATE.read_text(encoding="utf-8").strip())

    def drafts(
        self, chunks: Iterable[Chunk], ledger: Ledger
    ) -> Generator[tuple[Chunk, list[Draft]], None, None]:
        """See `Teacher.drafts`."""
        for chunk in chunks:
            yield chunk, self._about(chunk)

    def _about(self, chunk: Chunk) -> list[Draft]:
        from sentencex import segment

        if chunk.gold:
            quotes = f"{QUOTE_END} {QUOTE_BEGIN}".join(chunk.gold.sentences)
            return [self._draft(chunk.gold.question, chunk.gold.answer, quotes)]
        rng = random.Random(f"{self.seed}/{chunk.id}")
        sentences = [
            text for part in segment("en", chunk.text) if _is_statement(text := part.strip())
        ]
        facts = {text: fact for text in sentences if (fact := _by_rule(text))}
        if len(facts) < self.questions_per_chunk:
            others = (text for text in sentences if text not in facts)
            facts |= {text: fact for text in others if (fact := _by_gap(text))}
        if not facts:
            return [Draft(fault="no sentence to ask about")]
        chosen = rng.sample(list(facts.items()), min(self.questions_per_chunk, len(facts)))
        return [self._draft(*fact, sentence) for sentence, fact in chosen]

    def _draft(self, question: str, answer: str, sentence: str) -> Draft:
        text = self.template.substitute(question=question, answer=answer, sentence=sentence)
        return Draft(question=question, cot_answer=text)


def _is_statement(sentence: str) -> bool:
    # Mark-up that spans lines (headings, code, tables) is no statement.
    if "\n" in sentence or not sentence.endswith(".") or not sentence[:1].isupper():
        return False
    return sentence.split(maxsplit=1)[0].lower() not in _POINTING


def _by_rule(sentence: str) -> Fact | None:
    """ "E was built in V." gives "Where was E built?"; years and persons, "When" and "By whom".

    "The mayor of E is V." gives "Who is the mayor of E?"; of other nouns, "What is …". "E is a V."
    gives "What is E?".
    """
    plain = _BRACKETED.sub("", sentence)
    for match in filter(None, (re.match(rule + _CLAUSE_END, plain) for rule in _RULES)):
        subject, answer = match["subject"], match["value"].strip()
        # "the film" or a clause with a verb of its own names nothing that could be looked up.
        if subject.startswith(("The ", "A ", "An ")):
            subject = subject[0].lower() + subject[1:]
        named = not subject.islower() and not _VERB.search(subject)
        short = len(subject.split()) <= MOST_SUBJECT_WORDS
        if named and short and len(answer.split()) <= MOST_ANSWER_WORDS:
            return _question(subject, match.groupdict()), answer
    return None


def _question(subject: str, parts: dict[str, str]) -> str:
    verb, value = parts["verb"], parts["value"]
    if attribute := parts.get("attribute"):
        asking = "Who" if attribute.split()[-1] in _PERSONS else "What"
        return f"{asking} {verb} the {attribute} of {subject}?"
    if preposition := parts.get("preposition"):
        asking = f"{preposition.capitalize()} what"
        if preposition == "in" and re.fullmatch(r"\d{4}", value):
            asking = "When"
        elif preposition in ("in", "at") and value[:1].isupper():
            asking = "Where"
        elif preposition == "by" and value[:1].isupper():
            asking = "By whom"
        return f"{asking} {verb} {subject} {parts['participle']}?"
    return f"What {verb} {subject}?"


def _by_gap(sentence: str) -> Fact | None:
    """The last name or number of a sentence becomes a gap."""
    plain = _BRACKETED.sub("", sentence)
    *_, gap = [None, *_NAME_OR_NUMBER.finditer(plain)]
    if gap is None:
        return None
    statement = f"{plain[: gap.start()]}_____{plain[gap.end() :]}"
    if gap.group() in statement or len(statement.split()) < LEAST_GAP_WORDS:
        return None
    return f'Which word or words fill the gap in "{statement}"?', gap.group()
