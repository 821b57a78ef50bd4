"""The eval stage: ask every arm the same questions, judge, compare, report.

Writes to the output folder: `results.json` (`records.Evaluation`), `samples.jsonl` (one
`records.Sample` a line, arm after arm), `robustness.jsonl` (the same for further layouts, where
any were asked), `report.html`, its chart `f1.svg`, `ledger.json`, and the adapter's
`training.json`. While it runs, finished generations are in `generations.partial.jsonl`; the same
command resumes from them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from components.core import progress
from components.core.describe import counted
from components.core.errors import DataError
from components.core.fingerprints import hub_origin, read_training
from components.core.ledger import Ledger
from components.core.model_files import check_adapter
from components.core.models import choose_dtype
from components.core.pages import REPORT, Link, links_to
from components.core.records import (
    Evaluation,
    GenerationReport,
    QuantizationReport,
    TrainingRecord,
    read_json,
)
from components.core.statistics import mean, mean_interval
from components.core.storage import (
    begin_artifact,
    finish_artifact,
    provenance,
    put,
    verify,
    write_json,
    write_jsonl,
)
from components.eval import findings, report, scores
from components.eval.config import EvalConfig
from components.eval.engines import choose_engine, group_arms
from components.eval.inference import PARTIAL, ArmRun, run_arms
from components.eval.other_tasks import load_other_tasks, score_other_tasks
from components.eval.questions import (
    ContextLayout,
    EvalExample,
    arrange,
    choose_examples,
    load_dataset_module,
)
from components.eval.retrieval import retrieve

SAMPLES, ROBUSTNESS = "samples.jsonl", "robustness.jsonl"
CHART = "f1.svg"


def run(config: EvalConfig) -> Evaluation:
    """Score the arms of `config` and write the artifact.

    Raises:
        ConfigError, DataError, ModelError, OutOfMemory, StorageError: see their hints.
    """
    output = Path(config.output)
    arms = config.variants()
    for arm in arms:
        if arm.folder:
            flag = "--adapter" if arm.folder == config.adapter else "--adapters"
            verify(Path(arm.folder), flag)
            check_adapter(arm.folder, merge=arm.bits == 4)
    quantization = None
    if config.quantization:
        verify(Path(config.quantization), "--quantization")
        path = Path(config.quantization) / QuantizationReport.FILE
        quantization = read_json(path, QuantizationReport)
    training = read_training(config.main_adapter) if config.main_adapter else None
    examples, recalls = _examples(config)
    other_tasks = load_other_tasks(config.also) if config.also else None
    layouts = [
        (layout, [arrange(example, layout) for example in examples]) for layout in config.layouts()
    ]
    ways = f", in {len(layouts)} layouts" if len(layouts) > 1 else ""
    names = ", ".join(arm.name for arm in arms)
    progress.headline("eval", f"{counted(len(examples), 'question')} to {names}{ways}")
    with Ledger("eval", output) as ledger:
        begin_artifact(output, "eval", keep=PARTIAL, settings=provenance(config))
        for name in (TrainingRecord.FILE, ROBUSTNESS):  # of an earlier run
            (output / name).unlink(missing_ok=True)
        runs = run_arms(config, layouts)
        for arm_run in runs:
            ledger.count(tokens_in=arm_run.tokens_in, tokens_out=arm_run.tokens_out)
            ledger.parts[arm_run.arm.name] = arm_run.seconds
        evaluation = _evaluate(config, layouts, runs, quantization, training, recalls)
        if other_tasks is not None:
            scored = score_other_tasks(config, arms, other_tasks)
            evaluation = evaluation.model_copy(update={"other_tasks": scored})
        samples = [sample for arm_run in runs for sample in arm_run.samples]
        write_json(output / Evaluation.FILE, evaluation)
        # Next to the scores, so that they are never without their settings.
        if training is not None:
            write_json(output / TrainingRecord.FILE, training)
        write_jsonl(output / SAMPLES, samples)
        if evaluation.curve:
            others = [sample for arm_run in runs for group in arm_run.others for sample in group]
            write_jsonl(output / ROBUSTNESS, others)
        put(report.chart_file(evaluation), output / CHART)
        put(report.render(evaluation, samples, quantization, _links(config)), output / REPORT)
    # In this order: until the artifact is whole, a repetition must find every generation.
    finish_artifact(output, without=PARTIAL)
    (output / PARTIAL).unlink()
    note, holds = findings.about_quantization(evaluation, quantization)
    for sentence in (
        *([] if holds else [note]),
        *evaluation.warnings,
        findings.verdict(evaluation),
    ):
        progress.say(f"  {sentence}")
    return evaluation


def _examples(config: EvalConfig) -> tuple[list[EvalExample], list[float]]:
    """The questions to ask, and the recall of each where their documents are looked up."""
    source = config.questions or config.dataset
    if not config.questions and Path(source).is_file():
        raise DataError(
            "one file of rows has none that are held out for validation",
            path=source,
            hint="Add --questions, or give the folder of raft generate.",
        )
    if Path(source).exists():
        verify(Path(source), "--questions" if config.questions else "--dataset")
    examples = choose_examples(
        source,
        config.task,
        max_questions=config.max_questions,
        seed=config.seed,
        retrieving=bool(config.retrieve),
    )
    return retrieve(examples, config) if config.retrieve else (examples, [])


def _links(config: EvalConfig) -> list[Link]:
    folders = (
        ("generate", config.dataset or config.questions),
        ("train", config.main_adapter),
        ("quantize-check", config.quantization),
    )
    return links_to(Path(config.output), folders)


def _evaluate(
    config: EvalConfig,
    layouts: Sequence[tuple[ContextLayout, Sequence[EvalExample]]],
    runs: Sequence[ArmRun],
    quantization: QuantizationReport | None,
    training: TrainingRecord | None,
    recalls: Sequence[float],
) -> Evaluation:
    """The figures of all arms, and what makes them doubtful."""
    module = load_dataset_module(config.task)
    arms = [scores.score_arm(run, config.seed, getattr(module, "figures", None)) for run in runs]
    base = Path(hub_origin(config.base_model).partition("@")[0] or config.base_model)
    (layout, examples), *_ = layouts
    return Evaluation(
        task=config.task,
        metric=getattr(module, "METRIC", "F1"),
        retrieve=config.retrieve,
        recall=mean(recalls) if recalls else None,
        recall_ci=mean_interval(recalls, config.seed) if recalls else None,
        # A hub id, or a folder's name: its path may be that of a temporary download.
        base_model=base.resolve().name if base.is_dir() else str(base),
        dtype=str(choose_dtype(config.dtype)).removeprefix("torch."),
        questions=len(examples),
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        arms=arms,
        comparisons=scores.compare_arms(runs, config.seed),
        retention=scores.retention(arms),
        memory_ratio=quantization.memory_ratio if quantization else scores.memory_ratio(arms),
        warnings=[
            *_about_rows(config, training),
            *_few_distractors(layouts),
            *_mismatches(config),
            *engine_notes(config),
            *findings.find_warnings(arms, config.max_new_tokens),
        ],
        engine=choose_engine(config.engine),
        distractors=layout.distractors,
        oracle=layout.oracle,
        curve=scores.curve(runs, config.seed),
        abstention=scores.abstention(runs, config.seed),
    )


def _about_rows(config: EvalConfig, training: TrainingRecord | None) -> list[str]:
    """What the dataset's report warns of: of the rows asked, or of those trained on."""
    if not config.questions:
        return GenerationReport.warnings_of(Path(config.dataset))
    return training.about_rows if training is not None else []


def _few_distractors(
    layouts: Sequence[tuple[ContextLayout, Sequence[EvalExample]]],
) -> dict[str, None]:
    """Which numbers of distractors cannot be shown, each once."""
    warnings: dict[str, None] = {}
    for layout, examples in layouts:
        counts = (len(example.documents) - len(example.golden) for example in examples)
        if short := sum(count < layout.distractors for count in counts):
            text = (
                f"{short} of {counted(len(examples), 'question')} cannot show "
                f"{counted(layout.distractors, 'distractor')}: they have fewer."
            )
            warnings[text] = None
    return warnings


def _mismatches(config: EvalConfig) -> Iterator[str]:
    """What was wrong with the chat template of adapters that were trained all the same."""
    adapters = {arm.folder: arm.name for arm in config.variants() if arm.folder}
    for adapter, name in adapters.items():
        training = read_training(adapter)
        if training and training.template_mismatch:
            yield f"{name}: {training.template_mismatch}"


def engine_notes(config: EvalConfig) -> list[str]:
    """What a reader of the 4-bit arms should know about their engine."""
    groups = group_arms(config.variants(), choose_engine(config.engine))
    small = {engine for engine, arms in groups if any(arm.bits == 4 for arm in arms)}
    if small == {"vllm"}:
        return [
            "On vLLM a tuned 4-bit arm is the base in 4 bits with the adapter unmerged in 16; "
            "quantize-check and transformers merge the adapter before they quantize."
        ]
    if small and "vllm" in dict(groups):
        return [
            "The 4-bit arms ran on transformers, the others on vLLM: the difference between them "
            "includes that of the engines."
        ]
    return []
