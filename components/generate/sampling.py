"""Choose the chunks to ask about, and what is held out of training for validation."""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from components.core.describe import counted
from components.core.errors import ConfigError
from components.generate.config import GenerateConfig
from components.generate.corpus import Corpus


@dataclass(frozen=True)
class Sampling:
    """Which chunks are asked about, and which split each belongs to.

    Attributes:
        numbers: of the chunks to ask about, in corpus order; of all shards.
        split_by: what is held out as a whole: documents, or chunks of the only document.
        owners: by chunk number, what is held out or not with it.
        held_out: the owners in the validation split.
        pools: by split, numbers of the chunks that its rows may show.
    """

    numbers: Sequence[int]
    split_by: Literal["document", "chunk"]
    owners: Sequence[int]
    held_out: set[int]
    pools: dict[str, Sequence[int]]

    def split_of(self, number: int) -> str:
        """The split of a chunk."""
        return "validation" if self.owners[number] in self.held_out else "train"

    def share(self, shard: str) -> Sequence[int]:
        """One shard's part of the numbers: a run of them, so that shards follow each other."""
        number, count = map(int, shard.split("/"))
        size = len(self.numbers)
        return self.numbers[(number - 1) * size // count : number * size // count]


def sample(corpus: Corpus, config: GenerateConfig) -> Sampling:
    """Sample chunks by seed, and hold out documents, or the last chunks of an only document.

    Raises:
        ConfigError: a split has fewer chunks than a row must show.
    """
    everything: Sequence[int] = range(len(corpus))
    numbers = everything
    if 0 < config.max_chunks < len(corpus):
        rng = random.Random(f"{config.seed}/chunks")
        numbers = sorted(rng.sample(everything, config.max_chunks))
    candidates = list(dict.fromkeys(corpus.owners[number] for number in numbers))
    by_document = len(candidates) > 1
    if by_document:
        random.Random(f"{config.seed}/split").shuffle(candidates)
    else:
        candidates = list(numbers)  # the last ones, so that training text is in one piece
    share = config.validation_fraction
    count = min(max(round(len(candidates) * share), share > 0), len(candidates) - 1)
    held_out = set(candidates[len(candidates) - count :])
    owners = corpus.owners if by_document else everything
    training = array("I", (number for number in everything if owners[number] not in held_out))
    if len(training) < config.distractors + 1:
        raise ConfigError(
            f"--distractors {config.distractors}: the corpus gives "
            f"{counted(len(training), 'chunk')} to choose from, and a row needs "
            f"{config.distractors + 1}",
            hint="Add documents, lower --distractors, or cut smaller with --chunk-tokens.",
        )
    pools: dict[str, Sequence[int]] = {"train": training, "validation": everything}
    return Sampling(numbers, "document" if by_document else "chunk", owners, held_out, pools)
