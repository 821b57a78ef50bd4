"""The eval stage: ask every arm the same questions, judge, compare, report.

Writes to the output folder: `results.json` (`records.Evaluation`), `samples.jsonl` (one
`records.Sample` a line, arm after arm), `robustness.jsonl` (the same for further layouts, where
any were asked), `report.html`, its chart `f1.svg`, `ledger.json`, and the adapter's
`training.json`. While it runs, finished generations are in `generations.partial.jsonl`; the same
command resumes from them.
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
from components.eval import findings, report, scores
from components.eval.config import EvalConfig
from components.eval.engines import choose_engine, group_arms
from components.eval.inference import PARTIAL, ArmRun, run_arms
from components.eval.questions import EvalExample, arrange, choose_examples

SAMPLES, ROBUSTNESS = "samples.jsonl", "robustness.jsonl"
CHART, REPORT = "f1.svg", "report.html"


def run(config: EvalConfig) -> Evaluation:
    """Score the arms of `config` and write the artifact.

    Raises:
        ConfigError, DataError, ModelError, OutOfMemory, StorageError: see their hints.
    """
    output = Path(config.output)
    arms = config.variants()
    for arm in arms:
        if arm.adapter is not None:
            flag = "--adapter" if arm.name in config.arms else "--adapters"
            verify(Path(arm.adapter), flag)
            check_adapter(arm.adapter)
    quantization = _read_quantization(config.quantization)
    training = _read_training(Path(config.adapter))
    ledgers = _read_ledgers(config)
    if Path(config.questions).exists():
        verify(Path(config.questions), "--questions")
    examples = choose_examples(
        config.questions, config.task, max_questions=config.max_questions, seed=config.seed
    )
    layouts = [
        (layout, [arrange(example, layout) for example in examples]) for layout in config.layouts()
    ]
    ways = f", in {len(layouts)} layouts" if len(layouts) > 1 else ""
    names = ", ".join(arm.name for arm in arms)
    progress.headline("eval", f"{counted(len(examples), 'question')} to {names}{ways}")
    with Ledger("eval", output, config.prices) as ledger:
        begin_artifact(output, "eval", keep=PARTIAL, settings=provenance(config))
        for name in (TrainingRecord.FILE, ROBUSTNESS):  # of an earlier run
            (output / name).unlink(missing_ok=True)
        runs = run_arms(config, layouts)
        for arm_run in runs:
            ledger.count(tokens_in=arm_run.tokens_in, tokens_out=arm_run.tokens_out)
            ledger.parts[arm_run.arm.name] = arm_run.seconds
        evaluation = _evaluate(config, layouts[0][1], runs, quantization)
        samples = [sample for arm_run in runs for sample in arm_run.samples]
        write_json(output / Evaluation.FILE, evaluation)
        # Next to the scores, so that they are never without their settings.
        if training is not None:
            write_json(output / TrainingRecord.FILE, training)
        _write_samples(output / SAMPLES, samples)
        if evaluation.curve:
            others = [sample for arm_run in runs for group in arm_run.others for sample in group]
            _write_samples(output / ROBUSTNESS, others)
        with atomic_write(output / CHART) as file:
            file.write(report.chart_file(evaluation))
        with atomic_write(output / REPORT) as file:
            ledgers.append(ledger.entry())
            file.write(report.render(evaluation, samples, quantization, ledgers))
    # In this order: until the artifact is whole, a repetition must find every generation.
    finish_artifact(output, without=PARTIAL)
    (output / PARTIAL).unlink()
    for sentence in (*evaluation.warnings, findings.verdict(evaluation)):
        progress.say(f"  {sentence}")
    return evaluation


def _evaluate(
    config: EvalConfig,
    examples: Sequence[EvalExample],
    runs: Sequence[ArmRun],
    quantization: QuantizationReport | None,
) -> Evaluation:
    """The figures of all arms, and what makes them doubtful."""
    arms = [scores.score_arm(run, config.resamples, config.seed) for run in runs]
    base = Path(config.base_model)
    layout = config.layouts()[0]
    return Evaluation(
        task=config.task,
        # A hub id, or a folder's name: its path may be that of a temporary download.
        base_model=base.resolve().name if base.is_dir() else config.base_model,
        dtype=str(choose_dtype(config.dtype)).removeprefix("torch."),
        questions=len(examples),
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        arms=arms,
        comparisons=scores.compare_arms(runs, config.resamples, config.seed),
        retention=scores.retention(arms),
        memory_ratio=quantization.memory_ratio if quantization else scores.memory_ratio(arms),
        warnings=[
            *_few_distractors(layout.distractors, examples),
            *_engine_notes(config),
            *findings.find_warnings(arms, config.max_new_tokens),
        ],
        engine=choose_engine(config.engine),
        distractors=layout.distractors,
        oracle=layout.oracle,
        curve=scores.curve(runs, config.resamples, config.seed),
    )


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


def _read_ledgers(config: EvalConfig) -> list[LedgerEntry]:
    """Of the stages whose artifacts this one reads; those from elsewhere have none."""
    folders = [Path(folder) for folder in (config.adapter, config.quantization) if folder]
    return [
        read_json(folder / LEDGER, LedgerEntry) for folder in folders if (folder / LEDGER).exists()
    ]


def _read_training(adapter: Path) -> TrainingRecord | None:
    """How the adapter was trained; an adapter from elsewhere has no record."""
    path = adapter / TrainingRecord.FILE
    return read_json(path, TrainingRecord) if path.exists() else None


def _few_distractors(wanted: int, examples: Sequence[EvalExample]) -> list[str]:
    short = sum(len(example.documents) - len(example.golden) < wanted for example in examples)
    if not short:
        return []
    verb = "has" if short == 1 else "have"
    return [
        f"{short} of {counted(len(examples), 'question')} {verb} fewer than "
        f"{counted(wanted, 'distractor')} to show."
    ]


def _engine_notes(config: EvalConfig) -> list[str]:
    """What a reader of the 4-bit arms should know about their engine."""
    groups = group_arms(config.variants(), choose_engine(config.engine))
    if len({engine for engine, _ in groups}) > 1:
        return [
            "The 4-bit arms ran on transformers, the others on vLLM: the difference between them "
            "includes that of the engines."
        ]
    for engine, arms in groups:
        if engine == "vllm" and any(arm.bits == 4 and arm.adapter for arm in arms):
            return [
                "On vLLM a tuned 4-bit arm is the base in 4 bits with the adapter unmerged in 16; "
                "quantize-check and transformers merge the adapter before they quantize."
            ]
    return []


def _write_samples(path: Path, samples: Sequence[Sample]) -> None:
    with atomic_write(path) as file:
        for sample in samples:
            file.write(sample.model_dump_json() + "\n")
