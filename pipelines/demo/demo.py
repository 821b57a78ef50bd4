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
from components.core.ledger import RunLedger, merge
from components.core.progress import headline, say
from components.core.records import Evaluation, read_json
from components.core.storage import LEDGER, atomic_write, write_json
from pipelines.demo.world import articles, write_documents, write_questions
from pipelines.stages import COMMANDS, config_class

MODEL = Path(__file__).with_name("model")
PIPELINE = Path(__file__).parents[1] / "raft.yaml"
MARKER = "demo.json"
STAGES = ("dataset", "adapter", "quantization", "evaluation")


DOCUMENTS = 600
UNSEEN_DOCUMENTS = 500
QUESTIONS = 400  # about unseen documents
DISTRACTORS = 3


def _flags(seed: int) -> dict[str, dict[str, Any]]:
    """What each stage is told beside its inputs and its output."""
    flags: dict[str, dict[str, Any]] = {
        "generate": {
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
        "quantize-check": {"max_memory_ratio": 0.6},
        "eval": {"max_new_tokens": 96, "batch_size": 50},  # twice what a RAFT answer takes
    }
    return {stage: settings | {"seed": seed} for stage, settings in flags.items()}


def run(output: Path, seed: int, *, docker: bool = False) -> Evaluation:
    """Run the demo into a folder, then print the table and where the report lies.

    The arguments are those of `raft demo`; `output` may also be the folder of an earlier demo.

    Raises:
        ConfigError: the folder holds something else, or an image is missing.
        ClusterError: no Docker engine answers.
        RunError: a container failed.
    """
    # Nothing is fetched: a hub that does not answer must not cost minutes.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Threads that spin while they wait take the cores from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    flags = _flags(seed)
    _prepare(output, flags, seed)
    (_run_in_containers if docker else _run_here)(output.resolve(), flags)
    result = read_json(output / "evaluation" / Evaluation.FILE, Evaluation)
    ledger = merge([output / name for name in STAGES])
    write_json(output / LEDGER, ledger)
    _print_summary(result, ledger, output)
    return result


def _run_here(output: Path, flags: dict[str, dict[str, Any]]) -> None:
    """The stages themselves, without the locks and the reuse of an earlier output."""
    dataset, adapter, quantization, evaluation = (str(output / name) for name in STAGES)
    model = {"base_model": str(MODEL)}
    places: dict[str, dict[str, Any]] = {
        "generate": {"documents": str(output / "documents"), "output": dataset},
        # Fresh, because the folder may hold an earlier demo's.
        "train": {"dataset": dataset, "output": adapter, "fresh": True, **model},
        "quantize-check": {"dataset": dataset, "adapter": adapter, "output": quantization, **model},
        "eval": {
            "questions": str(output / "questions.json"),
            "adapter": adapter,
            "quantization": quantization,
            "output": evaluation,
            **model,
        },
    }
    for stage, settings in flags.items():
        config = config_class(stage)(**places[stage], **settings)
        importlib.import_module(COMMANDS[stage].work).run(config)


def _run_in_containers(output: Path, flags: dict[str, dict[str, Any]]) -> None:
    """The committed pipeline, then its artifacts where the stages themselves put them."""
    from pipelines.local import run as run_pipeline

    inputs = {
        "documents": str(output / "documents"),
        "questions": str(output / "questions.json"),
        "base_model": str(MODEL),
    }
    steps = run_pipeline(
        PIPELINE,
        inputs,
        flags,
        output / "steps",
        variant="cpu",
        seen=[Path(place) for place in inputs.values()],
    )
    for stage, name in zip(flags, STAGES, strict=True):
        shutil.rmtree(output / name, ignore_errors=True)
        (steps / stage / name).rename(output / name)


def _prepare(output: Path, flags: dict[str, dict[str, Any]], seed: int) -> None:
    """Write the documents and the questions, in a folder that is new or an earlier demo's."""
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise ConfigError(
            f"--output {output}: the folder holds something else than a demo",
            hint="Give a new folder.",
        )
    with atomic_write(output / MARKER) as file:
        json.dump(flags, file, indent=2)
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
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"{result.questions} questions about unseen documents")
    scores = arms(result)
    for heading in scores.headings:
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for row in scores.rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    if result.retention is not None and result.memory_ratio is not None:
        console.print(
            f"4 bits keep {result.retention:.1%} of RAFT's F1 "
            f"in {result.memory_ratio:.1%} of the weight memory."
        )
    console.print(
        f"{ledger.seconds:.0f} s in all. Report: {output / 'evaluation' / 'report.html'}",
        soft_wrap=True,
    )
