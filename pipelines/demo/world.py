"""An invented world for the demo: documents and questions that no language model has read.

Every name is put together from words of world.yaml, so nothing can be known by heart: whoever
answers right has found the sentence. All documents of a kind share their relations, so a
distractor of the oracle's own kind often offers a wrong value that would fit the question, and
only the entity's name distinguishes them. Sentences have two plain shapes ("E was built in V." and
"The captain of E is V."), the ones that the demo's rule-based teacher can turn into questions.

A sample document (kind "ship") and one of its questions:

    The Amber Lantern was built in Kelden. The captain of the Amber Lantern is Ada Voss.
    Where was the Amber Lantern built? -> Kelden
"""

import json
import random
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

WORLD = yaml.safe_load(Path(__file__).with_name("world.yaml").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = {
    name: words.split() for name, words in WORLD.items() if name != "relations"
}
WORDS["town"] = [head + tail for head in WORDS["town_heads"] for tail in WORDS["town_tails"]]
WORDS["year"] = [str(year) for year in range(1840, 1940)]

KINDS = {
    "person": "{first_names} {last_names}",
    "town": "{town}",
    "ship": "the {adjectives} {ship_nouns}",
    "relic": "the {adjectives} {relic_nouns}",
    "book": "the {adjectives} {book_nouns}",
    "school": "{town} {school_nouns}",
}
"""How entities of a kind are named: of which words, by their names in world.yaml."""


class Fact(NamedTuple):
    """One sentence of a document, and the question that it answers."""

    sentence: str
    question: str
    answer: str
    subject: str


class Article(NamedTuple):
    """One document: two to four facts about one entity."""

    title: str
    kind: str
    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        """The document as a reader (and a model) sees it."""
        return " ".join(fact.sentence for fact in self.facts)


def _draw(rng: random.Random, name: str) -> str:
    """An entity of a kind, or else one of the words of that name."""
    pattern = KINDS.get(name, f"{{{name}}}")
    return re.sub(r"{(\w+)}", lambda words: rng.choice(WORDS[words[1]]), pattern)


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def article(rng: random.Random, kind: str) -> Article:
    """Draw one document of a kind."""
    entity = _draw(rng, kind)
    relations = [relation[1:] for relation in WORLD["relations"] if relation[0] == kind]
    facts = []
    for name, sentence, question in rng.sample(relations, rng.randint(2, 4)):
        value = _draw(rng, name)
        text = _sentence_case(sentence.format(e=entity, v=value))
        facts.append(Fact(text, question.format(e=entity), answer=value, subject=entity))
    return Article(_sentence_case(entity), kind, tuple(facts))


def articles(count: int, seed: int, exclude: Collection[str] = ()) -> list[Article]:
    """Draw documents with unique titles, kinds in turn.

    Args:
        count: How many; the smallest kind has 250 names.
        seed: The same seed gives the same documents.
        exclude: Titles that must not appear: give the training documents' titles to draw
            documents that the training has not seen.
    """
    rng = random.Random(seed)
    taken = set(exclude)
    kinds = list(KINDS)
    drawn: list[Article] = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        draw = article(rng, kind)
        while draw.title in taken:
            draw = article(rng, kind)
        taken.add(draw.title)
        drawn.append(draw)
    return drawn


def write_documents(articles: Sequence[Article], folder: Path) -> None:
    """Write one text file per document, named after its title."""
    folder.mkdir(parents=True, exist_ok=True)
    for item in articles:
        slug = re.sub(r"[^a-z0-9]+", "-", item.title.lower()).strip("-")
        (folder / f"{slug}.txt").write_text(item.text + "\n", encoding="utf-8")


def write_questions(
    articles: Sequence[Article], count: int, distractors: int, seed: int, path: Path
) -> None:
    """Write questions in HotpotQA's own JSON form, each with its oracle and distractors.

    Distractors are of the oracle's own kind: about two in three state the asked relation of
    another entity, so picking any value of the right sort is not enough.

    Args:
        articles: Documents to ask about and to draw distractors from.
        count: How many questions; facts are used once before any is used again.
        distractors: Documents beside the oracle.
        seed: The same seed gives the same file.
        path: The JSON file.
    """
    rng = random.Random(seed)
    by_kind: dict[str, list[Article]] = {}
    for item in articles:
        by_kind.setdefault(item.kind, []).append(item)
    facts = [(item, index) for item in articles for index in range(len(item.facts))]
    order: list[tuple[Article, int]] = []
    while len(order) < count:
        order += rng.sample(facts, len(facts))
    rows = []
    for number, (oracle, index) in enumerate(order[:count]):
        others = [item for item in by_kind[oracle.kind] if item.title != oracle.title]
        context = [oracle, *rng.sample(others, distractors)]
        rng.shuffle(context)
        fact = oracle.facts[index]
        rows.append(
            {
                "_id": f"demo-{seed}-{number}",
                "question": fact.question,
                "answer": fact.answer,
                "type": "single",
                "level": "easy",
                "supporting_facts": [[oracle.title, index]],
                "context": [[item.title, _hotpot_sentences(item)] for item in context],
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _hotpot_sentences(item: Article) -> list[str]:
    """HotpotQA joins sentences with "", so all but the first carry a leading space."""
    return [(" " if index else "") + fact.sentence for index, fact in enumerate(item.facts)]
