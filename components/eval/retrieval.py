"""Questions with the documents that a retriever finds, in place of those that come with them.

A golden document counts as found where its text, or a chunk of it, is among those retrieved.
"""

from collections.abc import Sequence
from typing import NamedTuple

from components.core.corpus.options import CorpusOptions
from components.core.corpus.retriever import Retriever
from components.core.progress import say
from components.core.quotes import SHORTEST
from components.core.storage.artifacts import manifest_at
from components.eval.config import EvalConfig
from components.eval.questions import EvalExample


class Retrieved(NamedTuple):
    """Examples with the documents found, and of each the share of its golden ones among these."""

    examples: list[EvalExample]
    recalls: list[float]
    """Of the questions that name golden documents."""


def retrieve(examples: Sequence[EvalExample], config: EvalConfig) -> Retrieved:
    """Look every question up in `--documents`, which are cut as those of `--dataset` were.

    Raises:
        DataError, ConfigError: as `Retriever`.
    """
    manifest = manifest_at(config.dataset) if config.dataset else None
    settings = manifest.settings or {} if manifest else {}
    names = CorpusOptions.model_fields.keys() - {"documents"}
    cut = {name: value for name, value in settings.items() if name in names}
    corpus = Retriever(CorpusOptions.model_validate({**cut, "documents": config.documents}))
    say(f"  searching {len(corpus.chunks):,} chunks of {config.documents}")
    count = int(config.retrieve.partition(":")[2])
    pairs = [
        _with_retrieved(example, [chunk.text for chunk in corpus.best(example.question, count)])
        for example in examples
    ]
    return Retrieved([one for one, _ in pairs], [share for _, share in pairs if share is not None])


def _with_retrieved(example: EvalExample, texts: list[str]) -> tuple[EvalExample, float | None]:
    """The example with other documents, and the share of its golden ones that is among them."""
    golden = [_plain(example.documents[place]) for place in example.golden]
    plain = [_plain(text) for text in texts]
    hits = {place for place, text in enumerate(plain) if any(_same(text, one) for one in golden)}
    recall = sum(any(_same(text, one) for text in plain) for one in golden)
    changes = {"documents": texts, "golden": sorted(hits)}
    return example.model_copy(update=changes), recall / len(golden) if golden else None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _same(text: str, golden: str) -> bool:
    short, long = sorted((text, golden), key=len)
    return short == long or (len(short) >= SHORTEST and short in long)
