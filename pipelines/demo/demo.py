"""The demo: all four stages on invented documents and a tiny model, on a CPU, in minutes.

The documents come from `world`; tests/demo/pretrain.py made the model that is shipped in `model/`.
Questions are about documents that no stage has seen; settings were chosen on other seeds than those
reported.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from components.core.describe import arms
from components.core.errors import ConfigError
from components.core.ledger import RunLedger, merge
from components.core.progress import headline, say
from components.core.records import Evaluation, Record, read_json
from components.core.storage import LEDGER, write_json
from pipelines.demo.world import articles, write_documents, write_questions

MODEL = Path(__file__).with_name("model")
PIPELINE = Path(__file__).parents[1] / "raft.yaml"
MARKER = "demo.json"
STAGES = ("dataset", "adapter", "quantization", "evaluation")


class DemoSettings(Record):
    """What the demo chooses; every other setting is the stage's default."""

    documents: int = 600
    unseen_documents: int = 500
    questions: int = 400  # about unseen documents
    distractors: int = 3
    questions_per_chunk: int = 3
    oracle_probability: float = 1.0
    epochs: float = 4.0
    learning_rate: float = 2e-3  # high, because the model is tiny
    alpha: int = 128  # twice the rank: what is learned drowns the rounding to 4 bits
    batch_size: int = 8
    max_new_tokens: int = 96  # twice what a RAFT answer takes
    max_memory_ratio: float = 0.6  # embeddings, which stay in 16 bits, are a third of the model
    seed: int = 0


def run(output: Path, seed: int, *, docker: bool = False) -> Evaluation:
    """Run the demo into a folder, then print the table and where the report lies.

    Args:
        output: a new folder, or that of an earlier demo.
        seed: of everything random.
        docker: run the compiled pipeline, with a container of the CPU images for every stage,
            instead of the stages themselves.

    Raises:
        ConfigError: the folder holds something else, or an image is missing.
        ClusterError: no Docker engine answers.
        RunError: a container failed.
    """
    # Nothing is fetched: a hub that does not answer must not cost minutes.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Threads that spin while they wait take the cores from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    settings = DemoSettings(seed=seed)
    _prepare(output, settings)
    (_run_in_containers if docker else _run_here)(output.resolve(), _flags(settings))
    result = read_json(output / "evaluation" / Evaluation.FILE, Evaluation)
    ledger = merge([output / name for name in STAGES])
    write_json(output / LEDGER, ledger)
    _print_summary(result, ledger, output)
    return result


def _flags(settings: DemoSettings) -> dict[str, dict[str, Any]]:
    """What each stage is told beside its inputs and its output."""
    return {
        "generate": {
            "max_chunks": 0,
            "questions_per_chunk": settings.questions_per_chunk,
            "distractors": settings.distractors,
            "oracle_probability": settings.oracle_probability,
            "seed": settings.seed,
        },
        "train": {
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "alpha": settings.alpha,
            "batch_size": settings.batch_size,
            "gradient_accumulation": 1,
            "gradient_checkpointing": False,
            "seed": settings.seed,
        },
        "quantize-check": {"max_memory_ratio": settings.max_memory_ratio, "seed": settings.seed},
        "eval": {
            "max_new_tokens": settings.max_new_tokens,
            "batch_size": 50,
            "seed": settings.seed,
        },
    }


def _run_here(output: Path, flags: dict[str, dict[str, Any]]) -> None:
    from components.eval import eval as evaluate
    from components.eval.config import EvalConfig
    from components.generate import generate
    from components.generate.config import GenerateConfig
    from components.quantize_check import quantize_check
    from components.quantize_check.config import QuantizeCheckConfig
    from components.train import train
    from components.train.config import TrainConfig

    dataset, adapter, quantization, evaluation = (str(output / name) for name in STAGES)
    model = {"base_model": str(MODEL)}
    generate.run(
        GenerateConfig(documents=str(output / "documents"), output=dataset, **flags["generate"])
    )
    # Fresh, because the folder may hold an earlier demo's.
    train.run(TrainConfig(dataset=dataset, output=adapter, fresh=True, **model, **flags["train"]))
    quantize_check.run(
        QuantizeCheckConfig(
            dataset=dataset,
            adapter=adapter,
            output=quantization,
            **model,
            **flags["quantize-check"],
        )
    )
    evaluate.run(
        EvalConfig(
            questions=str(output / "questions.json"),
            adapter=adapter,
            quantization=quantization,
            output=evaluation,
            **model,
            **flags["eval"],
        )
    )


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


def _prepare(output: Path, settings: DemoSettings) -> None:
    """Write the documents and the questions, in a folder that is new or an earlier demo's."""
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise ConfigError(
            f"--output {output}: the folder holds something else than a demo",
            hint="Give a new folder.",
        )
    write_json(output / MARKER, settings)
    headline("demo", f"an invented world, seed {settings.seed} → {output}")
    known = articles(settings.documents, settings.seed)
    unseen = articles(
        settings.unseen_documents, settings.seed + 1, exclude={article.title for article in known}
    )
    shutil.rmtree(output / "documents", ignore_errors=True)
    write_documents(known, output / "documents")
    write_questions(
        unseen, settings.questions, settings.distractors, settings.seed, output / "questions.json"
    )
    say(f"  {len(known)} documents to learn from, {settings.questions} questions about others")


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
