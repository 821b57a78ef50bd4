"""Choose the chunks to ask about, and what is held out of training for validation."""

import random
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from components.core.describe import counted
from components.core.errors import ConfigError
from components.generate.config import GenerateConfig
from components.generate.corpus import Corpus


@dataclass(frozen=True)
class Split:
    """What is held out of training.

    Attributes:
        by: what is held out as a whole: documents, or chunks where no document can be.
        owners: by chunk number, what is held out or not with it.
        held_out: the owners in the validation split.
        pools: by split, numbers of the chunks that its rows may show.
    """

    by: Literal["document", "chunk"]
    owners: Sequence[int]
    held_out: set[int]
    pools: dict[str, Sequence[int]]

    def of(self, number: int) -> str:
        """The split of a chunk."""
        return "validation" if self.owners[number] in self.held_out else "train"


def sample(corpus: Corpus, showable: int, config: GenerateConfig) -> Sequence[int]:
    """Numbers of the chunks to ask about, in corpus order, sampled by seed.

    Of the corpus, the first `showable` chunks are those of documents; any others carry gold
    questions, and are then the ones asked about.

    Raises:
        ConfigError: the documents have fewer chunks than a row must show.
    """
    if showable < config.distractors + 1:
        raise ConfigError(
            f"--distractors {config.distractors}: the corpus gives "
            f"{counted(showable, 'chunk')} to choose from, and a row needs "
            f"{config.distractors + 1}",
            hint="Add documents, lower --distractors, or cut smaller with --chunk-tokens.",
        )
    candidates = range(showable if config.gold_questions else 0, len(corpus))
    if not 0 < config.max_chunks < len(candidates):
        return candidates
    rng = random.Random(f"{config.seed}/chunks")
    return sorted(rng.sample(candidates, config.max_chunks))


def hold_out(
    corpus: Corpus, showable: int, drafts: Mapping[int, int], config: GenerateConfig
) -> Split:
    """Hold out documents that gave rows, or chunks where that would leave too little to train on.

    Args:
        corpus: all chunks.
        showable: how many of them, the first ones, rows may show as distractors.
        drafts: by chunk number, usable drafts; in corpus order.
        config: seed, share and distractors.
    """
    everything = range(len(corpus))
    by: Literal["document", "chunk"] = "document"
    owners: Sequence[int] = corpus.owners
    documents = list(dict.fromkeys(corpus.owners[number] for number in drafts))
    random.Random(f"{config.seed}/split").shuffle(documents)
    held_out = _choose(owners, documents, drafts, config)
    if not held_out:  # then the last chunks, so that training text is in one piece
        by, owners = "chunk", everything
        held_out = _choose(owners, list(drafts), drafts, config)
    training = array("I", (number for number in range(showable) if owners[number] not in held_out))
    return Split(by, owners, held_out, {"train": training, "validation": range(showable)})


def _choose(
    owners: Sequence[int], candidates: Sequence[int], drafts: Mapping[int, int],
    config: GenerateConfig,
) -> set[int]:  # fmt: skip
    """The last candidates, but none with which training would lose more than it may.

    It keeps half of the rows, and as many chunks as a row shows.
    """
    share = config.validation_fraction
    wanted = max(round(len(candidates) * share), share > 0)
    sizes, rows = Counter(owners), Counter[int]()
    for number, count in drafts.items():
        rows[owners[number]] += count
    spare_chunks, spare_rows = len(owners) - config.distractors - 1, rows.total() // 2
    chosen: set[int] = set()
    for owner in reversed(candidates):
        if len(chosen) < wanted and sizes[owner] <= spare_chunks and rows[owner] <= spare_rows:
            chosen.add(owner)
            spare_chunks -= sizes[owner]
            spare_rows -= rows[owner]
    return chosen
