"""What a model learns from rows without their oracle: `--oracle-absent` and its alternatives.

For every seed, the demo's model is trained on the demo's world under each policy, and asked the
demo's 400 questions about unseen documents, with their oracle and without it:

    python tests/benchmarks/bench_oracle_absent.py                 # seeds 20, 21, 22: as reported
    python tests/benchmarks/bench_oracle_absent.py --seeds 3 --folder DIR   # resumes in DIR

Printed are, over all seeds, the share of generations that quote what no document holds, F1 with the
oracle and its paired difference from the first policy, and how the model refuses; then the same
with quotes checked: an answer with such a quote counts as a refusal, as `raft ask` marks it.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.core.raft_form import is_refusal
from components.core.records import Sample, read_jsonl
from components.core.statistics import mean, mean_interval, paired_difference
from components.eval.config import EvalConfig
from components.eval.scores import withhold_unsupported
from components.generate.config import GenerateConfig
from components.train.config import TrainConfig
from pipelines.demo.demo import DISTRACTORS, DOCUMENTS, MODEL, QUESTIONS, UNSEEN_DOCUMENTS, _flags
from pipelines.demo.world import articles, write_documents, write_questions
from pipelines.stages import run_stage

POLICIES: dict[str, dict[str, Any]] = {
    "never absent": {"oracle_probability": 1.0},
    "answer": {"oracle_probability": 0.8, "oracle_absent": "answer"},
    "refuse": {"oracle_probability": 0.8, "oracle_absent": "refuse"},
    "no-quote": {"oracle_probability": 0.8, "oracle_absent": "no-quote"},
}
CHOICES = ("bm25", "random")
"""Of the distractors of the rows."""

Samples = dict[str, list[Sample]]
"""Of one policy, by place of the oracle."""


def prepare(folder: Path, seed: int) -> None:
    """Write the demo's documents and its questions about others."""
    known = articles(DOCUMENTS, seed)
    unseen = articles(UNSEEN_DOCUMENTS, seed + 1, exclude={item.title for item in known})
    write_documents(known, folder / "documents")
    write_questions(unseen, QUESTIONS, DISTRACTORS, seed, folder / "questions.json")


def train(folder: Path, name: str, rows: Mapping[str, Any], seed: int, **training: Any) -> None:
    """Train the demo's model on rows that these settings of generate give."""
    flags, here = _flags(seed), folder / name
    run_stage(
        GenerateConfig(
            **flags["generate"] | dict(rows), documents=str(folder / "documents"),
            eval_questions=str(folder / "questions.json"), output=str(here / "dataset"),
        )
    )  # fmt: skip
    run_stage(
        TrainConfig(
            **flags["train"] | training, dataset=str(here / "dataset"), base_model=str(MODEL),
            output=str(here / "adapter"),
        )
    )  # fmt: skip


def measure(
    folder: Path, name: str, policy: Mapping[str, Any], seed: int, **training: Any
) -> Samples:
    """Train under a policy, and ask with the oracle and without it."""
    train(folder, name, policy, seed, **training)
    here, questions = folder / name, str(folder / "questions.json")
    run_stage(
        EvalConfig(
            **_flags(seed)["eval"], questions=questions, base_model=str(MODEL), arms=("raft",),
            adapter=str(here / "adapter"), oracle=("present", "absent"), distractors=(DISTRACTORS,),
            output=str(here / "evaluation"),
        )
    )  # fmt: skip
    samples: Samples = defaultdict(list)
    for file in ("samples.jsonl", "robustness.jsonl"):
        for sample in read_jsonl(here / "evaluation" / file, Sample):
            samples[sample.oracle].append(sample)
    return samples


def describe(name: str, samples: Samples, first: Samples) -> str:
    """A row of the table."""

    def share(values: list[bool]) -> str:
        if not values:
            return "–"
        low, high = mean_interval(values, 0)
        return f"{mean(values):.3f} ({low:.3f} – {high:.3f})"

    present, absent = samples["present"], samples["absent"]
    quotes = sum(item.quotes for item in absent)
    invented = quotes - sum(item.quotes_verbatim for item in absent)
    scores = [item.f1 for item in present]
    difference = paired_difference(scores, [item.f1 for item in first["present"]], 0)
    refused = [item.oracle == "absent" for item in present + absent if is_refusal(item.answer)]
    cells = [
        name,
        share([item.quotes > item.quotes_verbatim for item in absent]),
        f"{invented} of {quotes}",
        share([item.quotes > item.quotes_verbatim for item in present]),
        f"{mean(scores):.3f}",
        f"{difference.mean:+.3f} ({difference.ci[0]:+.3f} – {difference.ci[1]:+.3f})",
        share(refused),
        share([is_refusal(item.answer) for item in absent]),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--folder", type=Path, help="keep everything here, and resume")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--distractor-choice", choices=CHOICES, default=CHOICES[0])
    given = parser.parse_args()
    choice = {"distractor_choice": given.distractor_choice}
    found: dict[str, Samples] = {name: defaultdict(list) for name in given.policies}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            folder = (given.folder or Path(scratch)) / str(seed)
            if not (folder / "questions.json").exists():
                prepare(folder, seed)
            for name in given.policies:
                for place, samples in measure(folder, name, POLICIES[name] | choice, seed).items():
                    found[name][place] += samples
    print(
        "| rows without oracle | fabricate a quote, oracle absent | of all quotes | oracle present "
        "| F1, oracle present | minus the first row's | abstention: precision | recall |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, samples in found.items():
        first = found[given.policies[0]]
        print(describe(name, samples, first))
        checked = {place: [*map(withhold_unsupported, items)] for place, items in samples.items()}
        print(describe(f"{name}, quotes checked", checked, first))


if __name__ == "__main__":
    main()
