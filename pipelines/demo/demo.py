"""The demo: all four stages on invented documents and a tiny model, on a CPU, in minutes.

The documents come from `world`, the model from `pretrain` (shipped in `model/`). Questions are
about documents that no stage has seen; settings were chosen on other seeds than those reported.
"""

import os
import shutil
from pathlib import Path

from components.config import option
from components.errors import ConfigError
from components.ledger import LEDGER, RunLedger, merge
from components.progress import headline, say
from components.records import Evaluation, Record
from components.storage import write_json
from pipelines.demo.world import articles, write_documents, write_questions

MODEL = Path(__file__).with_name("model")
MARKER = "demo.json"
STAGES = ("dataset", "adapter", "quantization", "evaluation")


class DemoSettings(Record):
    """What the demo chooses; every other setting is the stage's default."""

    documents: int = option(800, help="Invented documents to learn from.", group="World")
    unseen_documents: int = option(500, help="Documents kept for questions.", group="World")
    questions: int = option(400, help="Questions about unseen documents.", group="World")
    distractors: int = option(3, help="Other documents beside the oracle.", group="World")
    rows: int = option(800, help="Chunks the teacher asks about.", group="Training")
    oracle_probability: float = option(1.0, help="The paper's P.", group="Training")
    epochs: float = option(4.0, help="Passes over the rows.", group="Training")
    learning_rate: float = option(4e-3, help="High, because the model is tiny.", group="Training")
    batch_size: int = option(16, help="Rows per step.", group="Training")
    max_new_tokens: int = option(96, help="Twice what a RAFT answer takes.", group="Evaluation")
    seed: int = option(0, help="Seed of everything.", group="World")


def run(output: Path, seed: int) -> Evaluation:
    """Run the demo into a folder, then print the table and where the report lies.

    Raises:
        ConfigError: the folder holds something else.
    """
    # Nothing is fetched: a hub that does not answer must not cost minutes.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = DemoSettings(seed=seed)
    _prepare(output, settings)

    from components.eval import eval as evaluate
    from components.eval.config import EvalConfig
    from components.generate import generate
    from components.generate.config import GenerateConfig
    from components.quantize_check import quantize_check
    from components.quantize_check.config import QuantizeCheckConfig
    from components.train import train
    from components.train.config import TrainConfig

    dataset, adapter, quantization, evaluation = (str(output / name) for name in STAGES)
    generate.run(
        GenerateConfig(
            documents=str(output / "documents"),
            output=dataset,
            max_chunks=settings.rows,
            distractors=settings.distractors,
            oracle_probability=settings.oracle_probability,
            seed=seed,
        )
    )
    train.run(
        TrainConfig(
            dataset=dataset,
            base_model=str(MODEL),
            output=adapter,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            gradient_accumulation=1,
            gradient_checkpointing=False,
            seed=seed,
        )
    )
    quantize_check.run(
        QuantizeCheckConfig(
            dataset=dataset,
            base_model=str(MODEL),
            adapter=adapter,
            output=quantization,
            seed=seed,
        )
    )
    result = evaluate.run(
        EvalConfig(
            questions=str(output / "questions.json"),
            base_model=str(MODEL),
            adapter=adapter,
            quantization=quantization,
            output=evaluation,
            max_new_tokens=settings.max_new_tokens,
            batch_size=50,
            seed=seed,
        )
    )
    ledger = merge([output / name for name in STAGES])
    write_json(output / LEDGER, ledger)
    _print_summary(result, ledger, output)
    return result


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
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.questions} questions about unseen documents")
    for heading in ("arm", "F1", "95 % interval", "EM", "contains", "truncated", "unanswered"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in result.arms:
        low, high = arm.f1_ci
        table.add_row(
            arm.name,
            f"{arm.f1:.3f}",
            f"{low:.3f} – {high:.3f}",
            f"{arm.em:.3f}",
            f"{arm.contains:.3f}",
            f"{arm.truncated:.1%}",
            f"{arm.unanswered:.1%}",
        )
    console = Console()
    console.print(table)
    if result.retention is not None and result.memory_ratio is not None:
        console.print(
            f"4 bits keep {result.retention:.1%} of RAFT's F1 "
            f"in {result.memory_ratio:.1%} of the weight memory."
        )
    console.print(f"{ledger.seconds:.0f} s in all. Report: {output / 'evaluation' / 'report.html'}")
