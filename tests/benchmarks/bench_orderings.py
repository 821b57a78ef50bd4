"""What the paper orders, on the demo's world: DSF+RAG < RAFT, no reasoning < reasoning, and, where
distractors are shown, training without distractors < training with them.

For every seed a world, four adapters of the demo's model from one dataset, and one evaluation of
all of them on 400 questions about unseen documents with four distractors of the oracle's kind:

    python tests/benchmarks/bench_orderings.py                       # seeds 31, 32, 33
    python tests/benchmarks/bench_orderings.py --seeds 31 --folder DIR   # resumes in DIR

Printed are F1 of every arm and the paired differences, by seed and over all of them, with 95 %
intervals over questions. The paper's reasons need a model that reasons; the demo's copies.
"""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

from components.core.records import Sample, read_jsonl
from components.core.statistics import mean, mean_interval, paired_difference
from components.eval.config import EvalConfig
from components.generate.config import GenerateConfig
from components.train.config import TrainConfig
from pipelines.demo.demo import MODEL
from pipelines.demo.world import articles, write_documents, write_questions
from pipelines.stages import run_stage

SEEDS = (31, 32, 33)
DOCUMENTS, UNSEEN_DOCUMENTS, QUESTIONS, DISTRACTORS = 300, 500, 400, 4
ROWS = {
    "max_chunks": 0, "questions_per_chunk": 3, "oracle_probability": 1.0,
    "distractor_choice": "random",  # as in the published code
}  # fmt: skip
TRAINING = {
    "epochs": 3.0, "learning_rate": 2e-3, "alpha": 128, "batch_size": 8,
    "gradient_accumulation": 1, "gradient_checkpointing": False,
}  # fmt: skip
ADAPTERS: dict[str, dict[str, object]] = {
    "raft": {},
    "raft-no-reasoning": {"target": "answer"},
    "dsf": {"target": "answer", "keep_oracle": 0.0, "max_distractors": 0},
    "no-distractors": {"max_distractors": 0},
}
ARMS = ("base", "raft", "raft-no-reasoning", "dsf", "dsf-rag")
ORDERINGS = (
    ("raft", "dsf-rag"), ("raft", "raft-no-reasoning"), ("raft", "raft:no-distractors"),
)  # fmt: skip

F1 = dict[str, list[float]]
"""Of one evaluation, by arm, question by question."""


def measure(folder: Path, seed: int) -> F1:
    """Make a world, train the adapters, and ask all arms; what is done already is not repeated."""
    questions, dataset = folder / "questions.json", folder / "dataset"
    if not questions.exists():
        known = articles(DOCUMENTS, seed)
        unseen = articles(UNSEEN_DOCUMENTS, seed + 1000, exclude={item.title for item in known})
        write_documents(known, folder / "documents")
        write_questions(unseen, QUESTIONS, DISTRACTORS, seed, questions)
    run_stage(
        GenerateConfig.model_validate(
            {
                **ROWS, "teacher": "extractive", "distractors": DISTRACTORS, "seed": seed,
                "documents": str(folder / "documents"), "eval_questions": str(questions),
                "output": str(dataset),
            }
        )
    )  # fmt: skip
    for name, settings in ADAPTERS.items():
        run_stage(
            TrainConfig.model_validate(
                {
                    **TRAINING, **settings, "seed": seed, "dataset": str(dataset),
                    "base_model": str(MODEL), "output": str(folder / name),
                }
            )
        )  # fmt: skip
    run_stage(
        EvalConfig(
            questions=str(questions), base_model=str(MODEL), arms=ARMS, seed=seed,
            adapters={name: str(folder / name) for name in ADAPTERS}, max_new_tokens=96,
            batch_size=50, output=str(folder / "evaluation"),
        )
    )  # fmt: skip
    scores: F1 = defaultdict(list)
    for sample in read_jsonl(folder / "evaluation" / "samples.jsonl", Sample):
        scores[sample.arm].append(sample.f1)
    return scores


def describe(title: str, scores: F1) -> str:
    """A row for every ordering."""
    lines = []
    for better, worse in ORDERINGS:
        difference, (low, high), _ = paired_difference(scores[better], scores[worse], 0)
        told = "holds" if low > 0 else "reversed" if high < 0 else "not told apart"
        cells = [title, f"{worse} < {better}"]
        for arm in (worse, better):
            bounds = mean_interval(scores[arm], 0)
            cells.append(f"{mean(scores[arm]):.3f} ({bounds[0]:.3f} – {bounds[1]:.3f})")
        cells += [f"{difference:+.3f} ({low:+.3f} – {high:+.3f})", told]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--folder", type=Path, help="keep everything here, and resume")
    given = parser.parse_args()
    every: F1 = defaultdict(list)
    heading = "| seed | ordering | F1 of the first | of the second | difference | |\n"
    print(heading + "|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            scores = measure((given.folder or Path(scratch)) / str(seed), seed)
            print(describe(str(seed), scores), flush=True)
            for arm, values in scores.items():
                every[arm] += values
    print(describe("all", every))
    for arm, values in every.items():
        low, high = mean_interval(values, 0)
        print(f"{arm}: F1 {mean(values):.3f} ({low:.3f} – {high:.3f}), {len(values)} questions")


if __name__ == "__main__":
    main()
