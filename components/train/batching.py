"""Which rows share a batch, and how."""

import random
from collections.abc import Sequence


def length_grouped(lengths: Sequence[int], batch_size: int, shuffle: random.Random) -> list[int]:
    """An order of the rows in which batches hold rows of like length, so little is padding.

    Rows are shuffled and cut into pools of 8 to 50 batches; each pool is sorted by length and cut
    into batches, and the batches are shuffled. The batch with the longest row comes first, so that
    a lack of memory shows at once. A batch that is not full stays the last. Where one pool holds
    all rows, lengths are blurred a little, so that the same rows do not meet in every pass.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch.
        shuffle: the only source of chance.

    Returns:
        Every index once.
    """
    order = list(range(len(lengths)))
    shuffle.shuffle(order)
    pool = batch_size * max(min(len(order) // (batch_size * 4), 50), 8)
    blur = 0.05 if len(order) <= pool else 0.0
    near = [length * (1 + shuffle.uniform(-blur, blur)) if blur else length for length in lengths]
    batches = []
    for start in range(0, len(order), pool):
        rows = sorted(order[start : start + pool], key=lambda row: -near[row])
        batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    # Only the last pool can end in a batch that is not full.
    rest = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
    shuffle.shuffle(batches)
    if batches:
        longest = max(range(len(batches)), key=lambda at: max(lengths[row] for row in batches[at]))
        batches[0], batches[longest] = batches[longest], batches[0]
    return [row for batch in batches + rest for row in batch]
