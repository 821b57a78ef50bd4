"""Rows assembled a second, from corpora of 10,000 and of 1,000,000 chunks of about 2 kB.

The teacher's answers are at hand; what is timed is reading chunks, drawing distractors, checking
quotes and answers, and writing rows, on one core. Memory is what the process holds beyond the
mapped corpus (anonymous pages). Rates are of wall time, and of CPU time where others use the
machine too.
BM25 is measured on the same corpora, with fewer rows; its index is built before the first row.

Run it: python tests/benchmarks/bench_rows.py
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from components.core.records import Chunk, RaftRow
from components.generate import generate
from components.generate.config import GenerateConfig
from components.generate.corpus import Reading
from components.generate.teachers import Draft

SMALL, LARGE, ROWS = 10_000, 1_000_000, 100_000
BM25_ROWS = 10_000
WORDS = 300  # of about seven characters: 2 kB


class AtHand:
    """A teacher whose answers are there: each quotes a sentence that only its chunk has."""

    name = "at hand"

    def __init__(self, questions: int) -> None:
        self.questions = questions

    def drafts(
        self, chunks: Iterable[Chunk], ledger: object
    ) -> Iterator[tuple[Chunk, list[Draft]]]:
        for chunk in chunks:
            sentence = chunk.text[: chunk.text.index(".") + 1]
            key = sentence.split()[-1][:-1]
            answer = f"It says: ##begin_quote##{sentence}##end_quote## So.\n<ANSWER>: {key}"
            yield (
                chunk,
                [
                    Draft(
                        question=f"Code {n} opens which gate of {chunk.title}?", cot_answer=answer
                    )
                    for n in range(self.questions)
                ],
            )


def corpus(size: int) -> Reading:
    """A corpus of invented chunks, as reading documents would leave it."""
    rng = random.Random(0)
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 9)))
        for _ in range(20_000)
    ]
    reading = Reading(documents=size)
    for number in range(size):
        start = rng.randrange(len(words))
        body = " ".join(words[(start + step * 7) % len(words)] for step in range(WORDS))
        title = f"Town{number}"
        text = f"The gate of {title} opens with code{number}. {body}"
        reading.corpus.add(
            Chunk(id=f"{number}#0", document_id=str(number), title=title, text=text, start=0,
                  end=len(text)),
            number,
        )  # fmt: skip
    return reading


def anonymous_bytes() -> int:
    """Memory of the process that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


def measure(size: int, rows: int, choice: str = "random") -> tuple[float, float]:
    """Rows a second, of wall and of CPU time, from the first row to the last."""
    reading = corpus(size)
    asked = min(size, rows)
    generate.read_corpus = lambda config, guard: reading  # type: ignore[assignment]
    generate.make_teacher = lambda config: AtHand(rows // asked)  # type: ignore[assignment]
    wall: list[float] = []
    cpu: list[float] = []
    write = generate.Dataset.write

    def timed(self: generate.Dataset, row: RaftRow, split: str) -> bool:
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        return write(self, row, split)

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "documents").mkdir()
        generate.Dataset.write = timed  # type: ignore[method-assign]
        started = time.perf_counter()
        generate.run(
            GenerateConfig(
                teacher="extractive", documents=f"{scratch}/documents", output=f"{scratch}/out",
                max_chunks=asked,
                distractor_choice=choice,
            )
        )  # fmt: skip
        seconds = time.perf_counter() - started
        generate.Dataset.write = write  # type: ignore[method-assign]
    rates = tuple((len(times) - 1) / (times[-1] - times[0]) for times in (wall, cpu))
    print(
        f"{choice:<7}{size:>10,} chunks: {len(wall):>7,} rows, {rates[0]:>8,.0f} rows/s "
        f"({rates[1]:,.0f} of CPU time); {seconds:6.1f} s with everything; "
        f"{anonymous_bytes() / 1e9:.2f} GB beyond the corpus",
        flush=True,
    )
    return rates[0], rates[1]


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    small = measure(SMALL, ROWS)
    large = measure(LARGE, ROWS)
    ratios = [there / here for there, here in zip(large, small, strict=True)]
    print(
        f"rate at {LARGE:,} chunks over that at {SMALL:,}: {ratios[0]:.2f} "
        f"({ratios[1]:.2f} of CPU time)"
    )
    for size in (SMALL, LARGE):
        measure(size, BM25_ROWS, "bm25")


if __name__ == "__main__":
    main()
