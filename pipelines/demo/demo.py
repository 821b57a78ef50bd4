"""The demo: all four stages on invented documents and a tiny model, on a CPU, in minutes.

The documents come from `world`; tests/demo/pretrain.py made the model that is shipped in `model/`.
Questions are about documents that no stage has seen; settings were chosen on other seeds than those
reported.
"""

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from components.core.describe import arms
from components.core.errors import ConfigError
from components.core.ledger import LedgerEntry, RunLedger, total
from components.core.progress import headline, say
from components.core.records import Evaluation, read_json
from components.core.storage import LEDGER, atomic_write, write_json
from components.core.use_it import use_it
from pipelines.demo.world import articles, write_documents, write_questions
from pipelines.run import FOLDERS
from pipelines.stages import COMMANDS, config_class

MODEL = Path(__file__).with_name("model")
MARKER = "demo.json"

DOCUMENTS = 600
UNSEEN_DOCUMENTS = 500
QUESTIONS = 400  # about unseen documents
DISTRACTORS = 3

Flags = dict[str, dict[str, Any]]
"""Settings by stage."""


def _flags(seed: int) -> Flags:
    """The settings of each stage but its inputs and its output."""
    answers = {"max_new_tokens": 96, "batch_size": 50}  # twice what a RAFT answer takes
    flags: Flags = {
        "generate": {
            "teacher": "extractive",
            "max_chunks": 0,
            "questions_per_chunk": 3,
            "distractors": DISTRACTORS,
            "oracle_probability": 1.0,
        },
        "train": {
            "epochs": 4.0,
            "learning_rate": 2e-3,  # high, because the model is tiny
            "alpha": 128,  # twice the rank: what is learned drowns the rounding to 4 bits
            "batch_size": 8,
            "gradient_accumulation": 1,
            "gradient_checkpointing": False,
        },
        # Embeddings, which stay in 16 bits, are a third of the model.
        "quantize-check": {"max_memory_ratio": 0.6, **answers},
        "eval": answers,
    }
    return {stage: settings | {"seed": seed} for stage, settings in flags.items()}


def run_stages(output: Path, flags: Flags) -> None:
    """The stages themselves, without the locks and the reuse of an earlier output."""
    paths = inputs(output) | {name: output / name for name in FOLDERS.values()}
    paths["eval_questions"] = paths["questions"]
    for stage, settings in flags.items():
        kind = config_class(stage)
        # Fresh, because the folder may hold an earlier demo's.
        fresh = {"fresh": True} if stage == "train" else {}
        places = {key: str(path) for key, path in paths.items() if key in kind.model_fields}
        config = kind(output=str(paths[FOLDERS[stage]]), **places, **settings, **fresh)
        importlib.import_module(COMMANDS[stage].work).run(config)


def run_demo(output: Path, seed: int) -> Evaluation:
    """Run the demo into a folder, then print the table and where the report lies.

    Args:
        output: a new folder, or that of an earlier demo.
        seed: of documents, questions, training and evaluation.

    Raises:
        ConfigError: the folder holds something else.
    """
    flags = _flags(seed)
    with atomic_write(begin_in(output, MARKER)) as file:
        json.dump(flags, file, indent=2)
    _prepare(output, seed)
    run_stages(output.resolve(), flags)
    result = read_json(output / "evaluation" / Evaluation.FILE, Evaluation)
    ledger = total([read_json(output / name / LEDGER, LedgerEntry) for name in FOLDERS.values()])
    write_json(output / LEDGER, ledger)
    _print_summary(result, ledger, output)
    return result


def begin_in(output: Path, marker: str) -> Path:
    """Begin a run of all stages in a folder, which is new or an earlier run's.

    Returns:
        The file whose presence marks the folder as such a run's.

    Raises:
        ConfigError: the folder holds something else.
    """
    # Nothing is fetched: a hub that does not answer must not cost minutes.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if output.exists() and any(output.iterdir()) and not (output / marker).exists():
        raise ConfigError(f"--output {output}: holds something else", hint="Give a new folder.")
    output.mkdir(parents=True, exist_ok=True)
    return output / marker


def inputs(output: Path) -> dict[str, Path]:
    """The files and folders that the stages start from."""
    return {
        "documents": output / "documents",
        "questions": output / "questions.json",
        "base_model": MODEL,
    }


def _prepare(output: Path, seed: int) -> None:
    """Write the documents and the questions."""
    headline("demo", f"an invented world, seed {seed} → {output}")
    known = articles(DOCUMENTS, seed)
    unseen = articles(UNSEEN_DOCUMENTS, seed + 1, exclude={article.title for article in known})
    shutil.rmtree(output / "documents", ignore_errors=True)
    write_documents(known, output / "documents")
    write_questions(unseen, QUESTIONS, DISTRACTORS, seed, output / "questions.json")
    say(f"  {len(known)} documents to learn from, {QUESTIONS} questions about others")


def _print_summary(result: Evaluation, ledger: RunLedger, output: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    scores = arms(result)
    columns = [Column(heading, no_wrap=True) for heading in scores.headings]
    title = f"{result.questions} questions about unseen documents"
    table = Table(*columns, box=box.SIMPLE_HEAD, title=title)
    for row in scores.rows:
        table.add_row(*row)
    Console().print(table)
    if result.retention is not None and result.memory_ratio is not None:
        print(
            f"4 bits keep {result.retention:.1%} of RAFT's F1 "
            f"in {result.memory_ratio:.1%} of the weight memory."
        )
    print(f"{ledger.seconds:.0f} s in all. Report: {output / 'evaluation' / 'report.html'}")
    first = json.loads((output / "questions.json").read_text(encoding="utf-8"))[0]
    commands = use_it(
        str(output / "adapter"),
        evaluation=str(output / "evaluation"),
        documents=str(output / "questions.json"),
        question=first["question"],
    )
    print("Use it:", *commands, sep="\n  ")
    print("next: your own documents. Write parameters.yaml (README.md): raft run parameters.yaml")
