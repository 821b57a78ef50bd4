"""Questions with the documents that a retriever finds, in place of those that come with them.

A golden document counts as found where its text, or a chunk of it, is among those retrieved.
"""

from collections.abc import Sequence

from components.core.corpus.options import CorpusOptions
from components.core.corpus.retriever import Retriever
from components.core.progress import say
from components.core.quotes import SHORTEST
from components.core.storage.artifacts import manifest_at
from components.eval.config import EvalConfig
from components.eval.questions import EvalExample


def retrieve(
    examples: Sequence[EvalExample], config: EvalConfig
) -> tuple[list[EvalExample], list[float]]:
    """Look every question up in `--documents`, which are cut as those of `--dataset` were.

    Returns:
        The examples with the documents found, and the recall of each that names golden documents:
        the share of these among the documents found.

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
    asked, recalls = [], []
    for example in examples:
        texts = [chunk.text for chunk in corpus.best(example.question, count)]
        plain = [_plain(text) for text in texts]
        golden = [_plain(example.documents[place]) for place in example.golden]
        hits = [at for at, text in enumerate(plain) if any(_same(text, one) for one in golden)]
        asked.append(example.model_copy(update={"documents": texts, "golden": hits}))
        if golden:
            found = sum(any(_same(text, one) for text in plain) for one in golden)
            recalls.append(found / len(golden))
    return asked, recalls


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _same(text: str, golden: str) -> bool:
    short, long = sorted((text, golden), key=len)
    return short == long or (len(short) >= SHORTEST and short in long)
