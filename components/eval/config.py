"""Settings of the eval stage."""

from itertools import product
from typing import Annotated, ClassVar, Literal, Self, cast, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from components.core.accelerator import GpuStageConfig
from components.core.config import (
    NumberList,
    TextList,
    hardware_option,
    input_option,
    option_group,
    output_option,
)
from components.core.errors import ConfigError
from components.core.fingerprints import read_training
from components.core.locations import InputLocation, NamedInputs, ResumeLocation
from components.core.records import Oracle
from components.eval.arms import (
    ARMS,
    DEFAULT_ARMS,
    FULL,
    PROMPTS,
    Arm,
    default_arms,
    further_arm,
)
from components.eval.questions import DATASETS, ContextLayout

ORACLES: tuple[Oracle, ...] = get_args(Oracle)
CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "task": ("data set", DATASETS),
    "arms": ("arm", tuple(ARMS)),
    "oracle": ("place", ORACLES),
}
"""By setting: what its values are called, and those that exist."""

comparison_option = option_group("Comparison")


class EvalConfig(GpuStageConfig):
    """Questions and a tuned model in, scores of every arm and a report out."""

    stage: ClassVar[str] = "eval"

    questions: InputLocation = input_option(
        "",
        help="Questions with their documents: a file in the data set's format, rows of generate "
        "(validation.jsonl, or its folder), or, outside of a pipeline, the data set's name on the "
        "hub. Empty: the validation rows of the dataset.",
    )
    dataset: InputLocation = input_option(
        "",
        help="Folder of generate: without --questions, its validation rows are asked; its training "
        "rows are the examples that some arms show in the prompt.",
    )
    adapter: InputLocation = input_option(
        "",
        help="Folder with the adapter of train, used for the arms that match how it was trained.",
    )
    adapters: NamedInputs = input_option(
        {},
        help="Further adapters of the same base, as NAME=PATH,NAME=PATH. dsf and raft-no-reasoning "
        "are the adapters of the arms of these names, and raft means the same as --adapter; any "
        "other name becomes a 16-bit arm raft:NAME.",
        in_pipeline=False,
    )
    documents: InputLocation = input_option(
        "",
        help="Documents of --retrieve, in the formats of raft generate --documents; the API bench "
        "reads its APIs from them.",
        in_pipeline=False,
    )
    quantization: InputLocation = input_option(
        "", help="Folder of quantize-check; its measured weight bytes go in the report."
    )

    task: str = comparison_option(
        "hotpotqa", help=f"Data set whose format --questions has: {', '.join(DATASETS)}."
    )
    arms: TextList = comparison_option(
        DEFAULT_ARMS,
        help="Model variants to compare: "
        + "; ".join(f"{arm.name}: {arm.label}" for arm in FULL)
        + ". These are in 16 bits; append -4bit to a name for 4 bits.",
    )
    max_questions: int = comparison_option(
        1000, ge=1, help="Maximum questions to ask, sampled by seed."
    )
    distractors: Annotated[NumberList, Field(min_length=1)] = comparison_option(
        (-1,),
        help="Distractors shown with the oracle documents; -1 shows all that a question has. The "
        "arms are compared at the first number; further numbers (0,2,4,8) add a table of "
        "robustness.",
    )
    oracle: TextList = comparison_option(
        ("present",),
        help="Where the oracle documents are: present (in the question's order), absent, first "
        "or last. The arms are compared at the first place; further ones add to that table.",
    )
    retrieve: Annotated[str, Field(pattern="^(bm25:[1-9][0-9]{0,3})?$", examples=["bm25:5"])] = (
        comparison_option(
            "",
            help="Show the K chunks of --documents that BM25 finds, in place of the documents of "
            "each question, as bm25:K.",
            in_pipeline=False,
        )
    )
    also: TextList = comparison_option(
        (),
        help="Further tasks of lm-evaluation-harness (names as `lm_eval ls tasks` lists them, or "
        "a task's YAML file), scored with and without the adapter, to show what tuning costs "
        "there.",
    )
    also_limit: int = comparison_option(200, ge=1, help="Maximum examples of each task of --also.")
    max_new_tokens: int = comparison_option(
        800, ge=1, le=32_768, help="Maximum tokens in one generation."
    )
    engine: Literal["auto", "transformers", "vllm"] = hardware_option(
        "auto", help="Inference engine; auto is vllm where it is installed and there is a GPU."
    )
    batch_size: int = hardware_option(
        16, ge=1, le=4096, help="Questions per batch; vllm batches by itself."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = hardware_option(
        "auto", help="Type of the 16-bit arms; auto is bfloat16 on a GPU that supports it."
    )

    partial: ResumeLocation = output_option(
        "",
        help="Folder or gs:// prefix that receives finished generations while it runs, so that "
        "another machine can resume; by default in --state, or else OUTPUT-partial next to a "
        "gs:// --output.",
        in_pipeline=False,
    )
    fresh: bool = output_option(
        False,
        help="Discard the generations that earlier runs have stored, and generate all again. Do "
        "not set it in a Kubernetes Job: a retry would start over too.",
        in_pipeline=False,
    )

    @field_validator("task", "arms", "oracle")
    @classmethod
    def _known(cls, value: str | tuple[str, ...], info: ValidationInfo) -> object:
        kind, allowed = CHOICES[str(info.field_name)]
        names = (value,) if isinstance(value, str) else value
        for name in names or ("",):
            if name not in allowed:
                raise ValueError(f"unknown {kind} {name!r} (allowed: {' | '.join(allowed)})")
        return value if isinstance(value, str) else tuple(dict.fromkeys(names))

    @field_validator("distractors")
    @classmethod
    def _numbers(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        if min(counts) < -1:
            raise ValueError(f"{min(counts)} is too small (allowed: whole numbers >= -1)")
        return tuple(dict.fromkeys(counts))

    @model_validator(mode="after")
    def _something_to_ask(self) -> Self:
        if not self.questions and not self.dataset:
            raise ValueError("--questions is missing: give it a file, or --dataset a folder")
        if self.retrieve and not self.documents:
            raise ValueError("--retrieve: --documents is missing, the documents to search")
        if self.retrieve and (self.distractors, self.oracle) != ((-1,), ("present",)):
            raise ValueError(
                "--retrieve: --distractors and --oracle apply only to the questions' own documents"
            )
        return self

    @model_validator(mode="after")
    def _what_arms_need(self) -> Self:
        for arm in map(ARMS.__getitem__, self.arms):
            if arm.adapter and not self.adapter and arm.adapter not in self.adapters:
                raise ValueError(
                    f"--arms {arm.name}: its adapter is not given; add --adapters "
                    f"{arm.adapter}=PATH"
                )
            if PROMPTS[arm.prompt].examples and not self.dataset:
                raise ValueError(
                    f"--arms {arm.name}: the training rows that it shows are not given; add "
                    "--dataset FOLDER of raft generate"
                )
        return self

    def variants(self) -> list[Arm]:
        """The arms to ask, in order, each with its adapter's folder.

        Left at its default, `--arms` means the arms that match how the adapters were trained.

        Raises:
            ConfigError: an arm's adapter is not given, or given twice.
        """
        folders = dict(self.adapters)
        training = read_training(self.adapter) if self.adapter else None
        kind = training.kind if training else "raft"
        if self.adapter and folders.setdefault(kind, self.adapter) != self.adapter:
            raise ConfigError(
                f"--adapters {kind}={folders[kind]}: --adapter {self.adapter} was trained as "
                f"{kind} too",
                hint="Give one of the two, or the other under a name of its own in --adapters.",
            )
        known = list(dict.fromkeys(arm.adapter for arm in FULL if arm.adapter))
        names = self.arms
        if names == DEFAULT_ARMS:
            kinds = [name for name in known if name in folders] or [kind]
            names = tuple(dict.fromkeys(arm for name in kinds for arm in default_arms(name)))
        arms = [ARMS[name] for name in names]
        arms += [further_arm(name) for name in self.adapters if name not in known]
        for arm in arms:
            if arm.adapter and arm.adapter not in folders:
                raise ConfigError(
                    f"--arms {arm.name}: its adapter is not given; --adapter {self.adapter} was "
                    f"trained as {kind}",
                    hint=f"Add --adapters {arm.adapter}=PATH, or omit the arm from --arms.",
                )
        return [arm._replace(folder=folders.get(arm.adapter or "", "")) for arm in arms]

    @property
    def main_adapter(self) -> str:
        """The adapter whose chat template the base model's arms are asked in; "" without any."""
        first = next(iter(self.adapters.values()), "")
        return self.adapter or self.adapters.get("raft", first)

    def layouts(self) -> list[ContextLayout]:
        """The ways to show the documents; the first is the one of the comparison."""
        return [
            ContextLayout(count, cast(Oracle, place))
            for place, count in product(self.oracle, self.distractors)
        ]
