"""`raft reproduce`: the comparisons of the post and of the paper.

As parameters of the study, to be run on a cluster; or, at scale `tiny`, all of it on this machine,
with the demo's model on the demo's world. What can be compared with the published figures is their
order, not their size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.core.progress import headline, say
from components.core.records import Evaluation
from components.core.storage import atomic_write
from pipelines.demo.demo import MODEL, begin_in
from pipelines.demo.world import articles, write_documents, write_questions
from pipelines.stages import config_class, run_stage
from pipelines.trials import PAPER_DISTRACTORS, Trial, paper_trials, post_trials, settings_of

PARAMETERS = "parameters.yaml"
WHERE = {
    "post": "the post: figure 2, and its table of ranks and layers",
    "paper": "the paper: tables 1 and 2, figures 5 and 6",
}
STUDIES: dict[str, Callable[..., list[Trial]]] = {"post": post_trials, "paper": paper_trials}

DATASET = {
    "distractors": PAPER_DISTRACTORS,
    "oracle_probability": 1.0,  # a trial leaves out what it does not keep
}

TRAINING = {
    "epochs": 3.0, "learning_rate": 2e-3, "batch_size": 8, "gradient_accumulation": 1,
    "gradient_checkpointing": False,
}  # fmt: skip
"""Of the tiny model, which takes a high rate."""


class Scale(NamedTuple):
    """How much of the demo's world: documents to learn from, and questions about others."""

    documents: int = 300
    unseen_documents: int = 500
    questions: int = 400


def reproduce(study: str, output: Path, scale: str = "", seed: int = 0) -> None:
    """Write the parameters of a study, or run it here.

    Args:
        study: `post` or `paper`.
        output: a folder.
        scale: "" writes parameters.yaml; `tiny` runs everything into the folder, and resumes.
        seed: of documents, questions and trainings.

    Raises:
        ConfigError: the folder holds something else.
    """
    headline("reproduce", f"{WHERE[study]} → {output}")
    if scale:
        run_trials(STUDIES[study](str(MODEL)), output, seed, Scale())
    else:
        write_parameters(study, STUDIES[study](), output / PARAMETERS, seed)


def write_parameters(study: str, trials: list[Trial], path: Path, seed: int) -> None:
    """A file for `raft submit --parameters`; documents, questions and teacher are the reader's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {**DATASET, "max_questions": 1000, "seed": seed, "trials": trials}
    with atomic_write(path) as file:
        file.write(
            f"# {WHERE[study][0].upper()}{WHERE[study][1:]}, as trials of the study:\n"
            "#\n"
            f"#   raft submit --pipeline pipelines/study.yaml --parameters {path} \\\n"
            "#     --set documents=gs://BUCKET/documents --set questions=gs://BUCKET/dev.json \\\n"
            "#     --set teacher=openai --set teacher_endpoint=URL --set teacher_model=MODEL\n"
            + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
        )
    say(f"  {len(trials)} trials: {path}, which opens with the command that runs them")


def run_trials(trials: list[Trial], output: Path, seed: int, scale: Scale) -> list[Evaluation]:
    """Train and evaluate every trial on the demo's world, and compare them; resumes.

    Raises:
        ConfigError: the folder holds something else.
    """
    from components.report.summary import compare

    begin_in(output, "reproduce.yaml").write_text(yaml.safe_dump(trials), encoding="utf-8")
    places = _inputs(output, seed, scale)
    _make("generate", places, output / "dataset", seed, **DATASET, teacher="extractive",
         max_chunks=0, questions_per_chunk=3)  # fmt: skip
    for number, trial in enumerate(trials, start=1):
        say(f"  trial {number} of {len(trials)}")
        folder = output / "trials" / f"{number:02}"
        # The post's rate is for 7-8B models.
        settings = {**settings_of(trial, "train"), **TRAINING}
        _make("train", places, folder / "adapter", seed, **settings)
        _make("eval", {**places, "adapter": folder / "adapter"}, folder / "evaluation", seed,
             **settings_of(trial, "eval"), max_new_tokens=96, batch_size=50)  # fmt: skip
    evaluated = compare((str(output / "trials"),), output)
    say(f"→ {output / 'comparison.html'}")
    return [trial.evaluation for trial in evaluated]


def _inputs(output: Path, seed: int, scale: Scale) -> dict[str, Path]:
    """Write the world, and say where everything is."""
    questions = output / "questions.json"
    if not questions.exists():
        known = articles(scale.documents, seed)
        titles = {article.title for article in known}
        unseen = articles(scale.unseen_documents, seed + 1, exclude=titles)
        write_documents(known, output / "documents")
        write_questions(unseen, scale.questions, PAPER_DISTRACTORS, seed, questions)
    return {
        "documents": output / "documents", "dataset": output / "dataset", "questions": questions,
        "eval_questions": questions, "base_model": MODEL,
    }  # fmt: skip


def _make(stage: str, places: dict[str, Path], output: Path, seed: int, **settings: Any) -> None:
    kind = config_class(stage)
    own = kind.model_fields.keys() - ({"documents"} if stage == "eval" else set())
    inputs = {name: str(path) for name, path in places.items() if name in own}
    run_stage(kind.parse({**inputs, **settings, "seed": seed, "output": str(output)}))
