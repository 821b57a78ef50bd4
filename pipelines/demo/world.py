"""An invented world for the demo: documents and questions that no language model has read.

Every name is put together from word lists, so nothing can be known by heart: whoever answers
right has found the sentence. All documents of a kind share their relations, so a distractor of
the oracle's own kind often offers a wrong value that would fit the question, and only the
entity's name tells them apart. Sentences have two plain shapes ("E was built in V." and "The
captain of E is V."), the ones that the demo's rule-based teacher can turn into questions.

A sample document (kind "ship") and one of its questions:

    The Amber Lantern was built in Kelden. The captain of the Amber Lantern is Ada Voss.
    Where was the Amber Lantern built? -> Kelden
"""

import json
import random
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple


def words(text: str) -> list[str]:
    """The words of a text: lists of words are easier to read and to edit without the quotes."""
    return text.split()


FIRST_NAMES = words(
    "Ada Bram Cora Dane Elsa Finn Gwen Hugo Iris Jonas Kira Leo Mira Nils Opal Piet Quin Rosa Sven "
    "Tara Ugo Vera Wim Xena Yara Zeno Abel Bea Cyril Dora Egon Fay Gil Hana Igor Jana Kurt Lena "
    "Milo Nora Otto Pia Remy Sara Tom Una Viktor Wanda Yuri Zora"
)
LAST_NAMES = words(
    "Voss Kell Maron Tidd Harrow Blythe Crane Dusk Elm Frost Gale Holt Ives Jarr Knox Lorne Marsh "
    "North Orrin Pell Quill Rook Stone Thorn Usher Vale Wren Yarrow Zell Ash Birch Cole Drake "
    "Ember Fenn Grove Hart Ingram Jute Kerr Lyle Moss Nash Oake Pryce Reed Sable Teal Ward York"
)
TOWN_HEADS = words(
    "Kel Mor Tan Bel Dra Fen Gor Hal Ist Jun Lar Nor Os Pel Rin Sar Tol Ul Vin Wes Yor Zan Bri "
    "Cal Dun"
)
TOWN_TAILS = words("den ford wick mere holm gate burg stad mouth ley")
TOWNS = [head + tail for head in TOWN_HEADS for tail in TOWN_TAILS]
ADJECTIVES = words(
    "Amber Silver Crimson Hollow Golden Iron Quiet Broken Winter Summer Velvet Copper Scarlet "
    "Misty Northern Southern Burning Frozen Hidden Ivory Jade Lunar Merry Noble Pale Royal Sunken "
    "Twin Wild Zinc"
)
SHIP_NOUNS = words(
    "Lantern Falcon Harbor Compass Anchor Eagle Raven Dolphin Heron Siren Trident Gull Swan "
    "Mermaid Osprey"
)
RELIC_NOUNS = words(
    "Crown Dagger Goblet Hammer Idol Jewel Mirror Medal Needle Urn Violin Bell Chalice Mask Ring"
)
BOOK_NOUNS = words(
    "Garden Orchard Tower Bridge Fountain River Mountain Journey Letter Promise Shadow Island "
    "Forest Valley Dream"
)
SCHOOL_NOUNS = words("Academy College Institute Seminary")
TRADES = words(
    "botany painting baking sailing law surgery poetry carpentry weaving singing pottery masonry "
    "farming tailoring hunting printing mining brewing"
)
COLORS = words("red blue green yellow white black orange purple brown grey")
GOODS = words(
    "bread cheese honey salt apples pears figs rice tea coffee wine oil fish barley onions plums"
)
MATERIALS = words(
    "bronze clay glass marble oak leather silk wool tin steel bone wax paper slate pearl coral"
)
YEARS = [str(year) for year in range(1840, 1940)]

Draw = Callable[[random.Random], str]


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


def _one_of(values: Sequence[str]) -> Draw:
    return lambda rng: rng.choice(values)


def _person(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def _the(nouns: Sequence[str]) -> Draw:
    return lambda rng: f"the {rng.choice(ADJECTIVES)} {rng.choice(nouns)}"


def _school(rng: random.Random) -> str:
    return f"{rng.choice(TOWNS)} {rng.choice(SCHOOL_NOUNS)}"


_town, _year = _one_of(TOWNS), _one_of(YEARS)
_goods, _material = _one_of(GOODS), _one_of(MATERIALS)
_trade, _color = _one_of(TRADES), _one_of(COLORS)

KINDS: dict[str, Draw] = {
    "person": _person,
    "town": _town,
    "ship": _the(SHIP_NOUNS),
    "relic": _the(RELIC_NOUNS),
    "book": _the(BOOK_NOUNS),
    "school": _school,
}
"""How entities of a kind are named."""

RELATIONS = (
    ("person", _town, "{e} was born in {v}.", "Where was {e} born?"),
    ("person", _person, "{e} was taught by {v}.", "By whom was {e} taught?"),
    ("person", _person, "The spouse of {e} is {v}.", "Who is the spouse of {e}?"),
    ("person", _trade, "The trade of {e} is {v}.", "What is the trade of {e}?"),
    ("person", _goods, "The favorite food of {e} is {v}.", "What is the favorite food of {e}?"),
    ("town", _year, "{e} was founded in {v}.", "When was {e} founded?"),
    ("town", _person, "The mayor of {e} is {v}.", "Who is the mayor of {e}?"),
    ("town", _goods, "{e} is known for {v}.", "For what is {e} known?"),
    ("town", _color, "The flag color of {e} is {v}.", "What is the flag color of {e}?"),
    ("town", _trade, "The main trade of {e} is {v}.", "What is the main trade of {e}?"),
    ("ship", _town, "{e} was built in {v}.", "Where was {e} built?"),
    ("ship", _year, "{e} was launched in {v}.", "When was {e} launched?"),
    ("ship", _person, "The captain of {e} is {v}.", "Who is the captain of {e}?"),
    ("ship", _goods, "The cargo of {e} is {v}.", "What is the cargo of {e}?"),
    ("ship", _material, "{e} is made of {v}.", "Of what is {e} made?"),
    ("relic", _town, "{e} was found in {v}.", "Where was {e} found?"),
    ("relic", _year, "{e} was lost in {v}.", "When was {e} lost?"),
    ("relic", _person, "The owner of {e} is {v}.", "Who is the owner of {e}?"),
    ("relic", _person, "{e} was stolen by {v}.", "By whom was {e} stolen?"),
    ("relic", _material, "{e} is made of {v}.", "Of what is {e} made?"),
    ("book", _person, "{e} was written by {v}.", "By whom was {e} written?"),
    ("book", _town, "{e} was printed in {v}.", "Where was {e} printed?"),
    ("book", _year, "{e} was sold in {v}.", "When was {e} sold?"),
    ("book", _person, "The owner of {e} is {v}.", "Who is the owner of {e}?"),
    ("book", _color, "The cover color of {e} is {v}.", "What is the cover color of {e}?"),
    ("school", _person, "{e} was founded by {v}.", "By whom was {e} founded?"),
    ("school", _year, "{e} was opened in {v}.", "When was {e} opened?"),
    ("school", _person, "The director of {e} is {v}.", "Who is the director of {e}?"),
    ("school", _trade, "The main subject of {e} is {v}.", "What is the main subject of {e}?"),
    ("school", _color, "The badge color of {e} is {v}.", "What is the badge color of {e}?"),
)
"""What can be told of a kind: how the value is drawn, the sentence, and the question that it
answers; {e} is the entity, {v} the value."""


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def article(rng: random.Random, kind: str) -> Article:
    """Draw one document of a kind."""
    entity = KINDS[kind](rng)
    told = [relation[1:] for relation in RELATIONS if relation[0] == kind]
    facts = []
    for draw, sentence, question in rng.sample(told, rng.randint(2, 4)):
        value = draw(rng)
        text = _sentence_case(sentence.format(e=entity, v=value))
        facts.append(Fact(text, question.format(e=entity), answer=value, subject=entity))
    return Article(_sentence_case(entity), kind, tuple(facts))


def articles(count: int, seed: int, exclude: Collection[str] = ()) -> list[Article]:
    """Draw documents with unique titles, kinds in turn.

    Args:
        count: How many.
        seed: The same seed gives the same documents.
        exclude: Titles that must not appear: give the training documents' titles to draw
            documents that the training has not seen.

    Raises:
        ValueError: A kind has no unused names left.
    """
    rng = random.Random(seed)
    taken = set(exclude)
    kinds = list(KINDS)
    drawn: list[Article] = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        # 2,000 draws miss the last free one of 250 town names with a chance of 0.03 %.
        draws = (article(rng, kind) for _ in range(2_000))
        found = next((draw for draw in draws if draw.title not in taken), None)
        if found is None:
            raise ValueError(
                f"count={count}: no unused name of kind {kind!r} after {len(taken)} titles; "
                f"the smallest kind has {len(TOWNS)} names, so ask for fewer documents"
            )
        taken.add(found.title)
        drawn.append(found)
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

    Distractors are of the oracle's own kind: about two in three tell the asked relation of
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
    asked = [(item, index) for item in articles for index in range(len(item.facts))]
    order: list[tuple[Article, int]] = []
    while len(order) < count:
        order += rng.sample(asked, len(asked))
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
