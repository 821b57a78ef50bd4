"""Random and hard distractors, in training and in the test: `--distractor-choice`.

For every seed, the demo's model is trained on rows with distractors of either kind, and each of the
two adapters is asked the demo's 400 questions about unseen documents, with distractors of either
kind that do not hold the answer:

    python tests/benchmarks/bench_distractors.py                   # seeds 21, 22: as reported
    python tests/benchmarks/bench_distractors.py --seeds 3 --folder DIR     # resumes in DIR

Printed is F1 by training and test, with the paired difference of the two adapters.
"""

import argparse
import json
import random
import tempfile
from collections import defaultdict
from pathlib import Path

from bench_oracle_absent import prepare, train

from components.core.corpus.bm25 import Search
from components.core.records import Sample, read_jsonl
from components.core.statistics import mean, paired_difference
from components.eval.config import EvalConfig
from pipelines.demo.demo import DISTRACTORS, DOCUMENTS, MODEL, UNSEEN_DOCUMENTS, _flags
from pipelines.demo.world import articles
from pipelines.stages import run_stage

KINDS = ("random", "bm25")


def write_questions(folder: Path, seed: int) -> None:
    """`random.json` and `bm25.json`: the questions of `questions.json` with other distractors."""
    known = {item.title for item in articles(DOCUMENTS, seed)}
    unseen = articles(UNSEEN_DOCUMENTS, seed + 1, exclude=known)
    others = {item.title: item.text for item in unseen}
    rows = json.loads((folder / "questions.json").read_text())
    titles = list(others)
    search = Search(others.values())
    rng = random.Random(seed)
    for kind in KINDS:
        for row in rows:
            oracle = row["supporting_facts"][0][0]
            best = search.best(row["question"], 50) if kind == "bm25" else []
            drawn = [*best, *rng.sample(range(len(titles)), 50)]
            usable = dict.fromkeys(
                titles[number]
                for number in drawn
                if titles[number] != oracle and row["answer"] not in others[titles[number]]
            )
            context = [pair for pair in row["context"] if pair[0] == oracle]
            context += [[title, [others[title]]] for title in [*usable][:DISTRACTORS]]
            rng.shuffle(context)
            row["context"] = context
        (folder / f"{kind}.json").write_text(json.dumps(rows))


def ask(folder: Path, trained: str, tested: str, seed: int) -> list[float]:
    """F1 of every question."""
    output = folder / trained / f"evaluation-{tested}"
    run_stage(
        EvalConfig(
            **_flags(seed)["eval"], questions=str(folder / f"{tested}.json"), arms=("raft",),
            base_model=str(MODEL), adapter=str(folder / trained / "adapter"), output=str(output),
        )
    )  # fmt: skip
    return [sample.f1 for sample in read_jsonl(output / "samples.jsonl", Sample)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22])
    parser.add_argument("--folder", type=Path, help="keep everything here, and resume")
    given = parser.parse_args()
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            folder = (given.folder or Path(scratch)) / str(seed)
            if not (folder / "questions.json").exists():
                prepare(folder, seed)
            write_questions(folder, seed)
            for trained in KINDS:
                train(folder, trained, {"distractor_choice": trained}, seed)
                for tested in KINDS:
                    scores[trained, tested] += ask(folder, trained, tested, seed)
    print("| tested with | trained with random | trained with bm25 | bm25 − random |")
    print("|---|---|---|---|")
    for tested in KINDS:
        f1 = [mean(scores[trained, tested]) for trained in KINDS]
        difference = paired_difference(scores["bm25", tested], scores["random", tested], 0)
        low, high = difference.ci
        print(
            f"| {tested} | {f1[0]:.3f} | {f1[1]:.3f} "
            f"| {difference.mean:+.3f} ({low:+.3f} – {high:+.3f}) |"
        )


if __name__ == "__main__":
    main()
