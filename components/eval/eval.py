"""The eval stage: ask every arm the same questions, judge, compare, report.

Writes to the output folder: `results.json` (`records.Evaluation`), `samples.jsonl` (one
`records.Sample` a line, arm after arm), `f1.png`, `report.html`, `ledger.json`, and the adapter's
`training.json`.
"""

from collections.abc import Sequence
from pathlib import Path

from components import progress
from components.eval import figure, findings, report
from components.eval.arms import TASK, ArmRun, ask_arms
from components.eval.config import EvalConfig
from components.eval.questions import AskedQuestion, choose_questions
from components.ledger import Ledger
from components.models import choose_dtype
from components.records import (
    Evaluation,
    QuantizationReport,
    Sample,
    TrainingRecord,
    read_json,
)
from components.storage import atomic_write, seal, unseal, verify, write_json

RESULTS, SAMPLES, CHART, REPORT = "results.json", "samples.jsonl", "f1.png", "report.html"
TRAINING = "training.json"


def run(config: EvalConfig) -> Evaluation:
    """Score the arms of `config` and write the artifact.

    Raises:
        ConfigError, DataError, ModelError, StorageError: see their hints.
    """
    output = Path(config.output)
    verify(Path(config.adapter), "--adapter")
    quantization = _read_quantization(config.quantization)
    training = _read_training(Path(config.adapter))
    questions = choose_questions(
        Path(config.questions),
        max_questions=config.max_questions,
        distractors=config.distractors,
        seed=config.seed,
    )
    progress.headline("eval", f"{len(questions)} questions to {', '.join(config.arms)}")
    with Ledger("eval", output, config.prices) as ledger:
        unseal(output)
        (output / TRAINING).unlink(missing_ok=True)  # of another adapter
        runs = []
        for arm in ask_arms(config, questions):
            ledger.count(tokens_in=arm.tokens_in, tokens_out=arm.tokens_out)
            runs.append(arm)
        evaluation = _judge(config, questions, runs, quantization)
        samples = [sample for arm in runs for sample in arm.samples]
        write_json(output / RESULTS, evaluation)
        # Beside the scores, so that they are never without their settings.
        if training is not None:
            write_json(output / TRAINING, training)
        _write_samples(output / SAMPLES, samples)
        figure.draw(evaluation, output / CHART)
        page = report.render(evaluation, samples, quantization, ledger.entry())
        with atomic_write(output / REPORT) as file:
            file.write(page)
    seal(output)
    for sentence in (*evaluation.warnings, findings.verdict(evaluation)):
        progress.say(f"  {sentence}")
    return evaluation


def _read_quantization(folder: str) -> QuantizationReport | None:
    if not folder:
        return None
    verify(Path(folder), "--quantization")
    return read_json(Path(folder) / "quantization.json", QuantizationReport)


def _read_training(adapter: Path) -> TrainingRecord | None:
    """How the adapter was trained; an adapter from elsewhere has no record."""
    path = adapter / TRAINING
    return read_json(path, TrainingRecord) if path.exists() else None


def _judge(
    config: EvalConfig,
    questions: Sequence[AskedQuestion],
    runs: Sequence[ArmRun],
    quantization: QuantizationReport | None,
) -> Evaluation:
    scored = [findings.score_arm(arm, config.resamples, config.seed) for arm in runs]
    by_name = {arm.name: arm for arm in scored}
    return Evaluation(
        task=TASK,
        base_model=_model_name(config.base_model),
        dtype=str(choose_dtype(config.dtype)).removeprefix("torch."),
        questions=len(questions),
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        arms=scored,
        comparisons=findings.compare_arms(runs, config.resamples, config.seed),
        retention=findings.retention(by_name),
        memory_ratio=(
            quantization.memory_ratio if quantization else findings.memory_ratio(by_name)
        ),
        warnings=[
            *_few_distractors(config.distractors, questions),
            *findings.find_warnings(scored, config.max_new_tokens),
        ],
    )


def _model_name(source: str) -> str:
    """A hub id, or the name of a folder: its path may be that of a temporary download."""
    folder = Path(source)
    return folder.resolve().name if folder.is_dir() else source


def _few_distractors(wanted: int, questions: Sequence[AskedQuestion]) -> list[str]:
    short = sum(len(item.documents) - len(item.oracle_indices) < wanted for item in questions)
    if not short:
        return []
    return [f"{short} of {len(questions)} questions have fewer than {wanted} distractors to show."]


def _write_samples(path: Path, samples: Sequence[Sample]) -> None:
    with atomic_write(path) as file:
        for sample in samples:
            file.write(sample.model_dump_json() + "\n")
