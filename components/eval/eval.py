"""The eval stage: ask every arm the same questions, judge, compare, report.

Writes to the output folder: `results.json` (`records.Evaluation`), `samples.jsonl` (one
`records.Sample` a line, arm after arm), `robustness.jsonl` (the same for further layouts, where
any were asked), `f1.png`, `report.html`, `report.md`, `ledger.json`, and the adapter's
`training.json`. While it runs, finished generations lie in `generations.partial.jsonl`; the same
command goes on from them.
"""

from collections.abc import Sequence
from pathlib import Path

from components.core import progress
from components.core.describe import counted
from components.core.errors import DataError
from components.core.ledger import Ledger, LedgerEntry
from components.core.model_files import check_adapter
from components.core.models import choose_dtype
from components.core.records import (
    Evaluation,
    QuantizationReport,
    Sample,
    TrainingRecord,
    read_json,
)
from components.core.storage import (
    LEDGER,
    atomic_write,
    begin_artifact,
    finish_artifact,
    provenance,
    verify,
    write_json,
)
from components.eval import figure, findings, report
from components.eval.arms import PARTIAL, ArmRun, ask_arms
from components.eval.config import EvalConfig
from components.eval.engines import choose_engine, group_arms
from components.eval.questions import AskedQuestion, choose_questions, show

SAMPLES, CHART, REPORT = "samples.jsonl", "f1.png", "report.html"
ROBUSTNESS, MARKDOWN = "robustness.jsonl", "report.md"


def run(config: EvalConfig) -> Evaluation:
    """Score the arms of `config` and write the artifact.

    Raises:
        ConfigError, DataError, ModelError, OutOfMemory, StorageError: see their hints.
    """
    output = Path(config.output)
    for variant in config.variants():
        if variant.adapter is not None:
            flag = "--adapter" if variant.name in config.arms else "--adapters"
            verify(Path(variant.adapter), flag)
            check_adapter(variant.adapter)
    quantization = _read_quantization(config.quantization)
    training = _read_training(Path(config.adapter))
    accounts = _read_accounts(config)
    if Path(config.questions).exists():
        verify(Path(config.questions), "--questions")
    questions = choose_questions(
        config.questions, max_questions=config.max_questions, seed=config.seed
    )
    shown = [
        (layout, [show(question, layout.distractors, layout.oracle) for question in questions])
        for layout in config.layouts()
    ]
    ways = f", in {len(shown)} ways" if len(shown) > 1 else ""
    names = ", ".join(arm.name for arm in config.variants())
    progress.headline("eval", f"{counted(len(questions), 'question')} to {names}{ways}")
    with Ledger("eval", output, config.prices) as ledger:
        begin_artifact(output, "eval", keep=PARTIAL, settings=provenance(config))
        for name in (TrainingRecord.FILE, ROBUSTNESS):  # of an earlier run
            (output / name).unlink(missing_ok=True)
        runs = ask_arms(config, shown)
        for arm in runs:
            ledger.count(tokens_in=arm.tokens_in, tokens_out=arm.tokens_out)
            ledger.parts[arm.name] = arm.seconds
        evaluation = _judge(config, shown[0][1], runs, quantization)
        samples = [sample for arm in runs for sample in arm.samples]
        write_json(output / Evaluation.FILE, evaluation)
        # Beside the scores, so that they are never without their settings.
        if training is not None:
            write_json(output / TrainingRecord.FILE, training)
        _write_samples(output / SAMPLES, samples)
        if evaluation.curve:
            others = [sample for arm in runs for layout in arm.others for sample in layout]
            _write_samples(output / ROBUSTNESS, others)
        figure.draw(evaluation, output / CHART)
        accounts.append(ledger.entry())
        with atomic_write(output / REPORT) as file:
            file.write(report.render(evaluation, samples, quantization, accounts))
        with atomic_write(output / MARKDOWN) as file:
            file.write(report.render_markdown(evaluation, quantization, accounts))
    # In this order: until the artifact is whole, a repetition must find every generation.
    finish_artifact(output, without=PARTIAL)
    (output / PARTIAL).unlink()
    for sentence in (*evaluation.warnings, findings.verdict(evaluation)):
        progress.say(f"  {sentence}")
    return evaluation


def _read_quantization(folder: str) -> QuantizationReport | None:
    if not folder:
        return None
    verify(Path(folder), "--quantization")
    if not (Path(folder) / QuantizationReport.FILE).is_file():
        raise DataError(
            f"no {QuantizationReport.FILE} in it",
            path=folder,
            hint="Check --quantization: it takes the folder that raft quantize-check wrote.",
        )
    return read_json(Path(folder) / QuantizationReport.FILE, QuantizationReport)


def _read_accounts(config: EvalConfig) -> list[LedgerEntry]:
    """What the stages took whose artifacts this one reads; those from elsewhere have none."""
    folders = [Path(folder) for folder in (config.adapter, config.quantization) if folder]
    return [
        read_json(folder / LEDGER, LedgerEntry) for folder in folders if (folder / LEDGER).exists()
    ]


def _read_training(adapter: Path) -> TrainingRecord | None:
    """How the adapter was trained; an adapter from elsewhere has no record."""
    path = adapter / TrainingRecord.FILE
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
        task=config.task,
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
            *_few_distractors(config.distractors[0], questions),
            *_engine_notes(config),
            *findings.find_warnings(scored, config.max_new_tokens),
        ],
        engine=choose_engine(config.engine),
        distractors=config.layouts()[0].distractors,
        oracle=config.layouts()[0].oracle,
        curve=findings.curve(runs, config.resamples, config.seed),
    )


def _model_name(source: str) -> str:
    """A hub id, or the name of a folder: its path may be that of a temporary download."""
    folder = Path(source)
    return folder.resolve().name if folder.is_dir() else source


def _few_distractors(wanted: int, questions: Sequence[AskedQuestion]) -> list[str]:
    short = sum(len(item.documents) - len(item.oracle_indices) < wanted for item in questions)
    if not short:
        return []
    verb = "has" if short == 1 else "have"
    return [
        f"{short} of {counted(len(questions), 'question')} {verb} fewer than "
        f"{counted(wanted, 'distractor')} to show."
    ]


def _engine_notes(config: EvalConfig) -> list[str]:
    """What a reader of the 4-bit arms should know about who generated."""
    groups = group_arms(config.variants(), choose_engine(config.engine))
    if len({engine for engine, _ in groups}) > 1:
        return [
            "The 4-bit arms ran on transformers, the others on vLLM: the difference between them "
            "includes that of the engines."
        ]
    for engine, arms in groups:
        if engine == "vllm" and any(arm.four_bit and arm.adapter for arm in arms):
            return [
                "On vLLM raft-4bit is the base in 4 bits with the adapter beside it in 16; "
                "quantize-check and transformers merge the adapter before they quantize."
            ]
    return []


def _write_samples(path: Path, samples: Sequence[Sample]) -> None:
    with atomic_write(path) as file:
        for sample in samples:
            file.write(sample.model_dump_json() + "\n")
