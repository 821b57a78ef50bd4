"""What the stages report: one record for each stage, with the figures that judge it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from components.core.records.record import Record, read_json

# ---- generate ----------------------------------------------------------------------------------


class GenerationReport(Record):
    """What `generate` kept and dropped, and why: `dataset/report.json`.

    quotes: of the accepted answers, by how they match their oracle document. warnings: what a
    reader of every later result must know about the rows.
    """

    FILE: ClassVar[str] = "report.json"

    documents: int
    documents_duplicate: int
    chunks: int
    chunks_duplicate: int
    chunks_used: int
    rows: dict[str, int]
    dropped: dict[str, int]
    rows_without_oracle: int
    split_by: Literal["document", "chunk"]
    teacher: str
    seed: int
    documents_bad: dict[str, int] = Field(default_factory=dict)
    bad_documents: list[str] = Field(default_factory=list)
    chunks_left_out: dict[str, int] = Field(default_factory=dict)
    quotes: dict[str, int] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, dataset: Path) -> "GenerationReport | None":
        """The report of a dataset; None of one from elsewhere."""
        path = dataset / cls.FILE
        return read_json(path, cls) if path.exists() else None

    @classmethod
    def warnings_of(cls, dataset: Path) -> list[str]:
        """The warnings of a dataset; of one from elsewhere, none are known."""
        report = cls.of(dataset)
        return report.warnings if report else []


# ---- train -------------------------------------------------------------------------------------


class LossPoint(Record):
    """Mean loss per answer token (nats) after `step` optimizer steps."""

    step: int
    loss: float
    split: Literal["train", "validation"]
    learning_rate: float | None = None


def adapter_kind(settings: Mapping[str, Any]) -> str:
    """The arm that an adapter is for: `raft`, `raft-no-reasoning`, or `dsf` (no documents).

    Args:
        settings: of train; what is left out has its default.
    """
    if settings.get("target", "reasoning") == "reasoning":
        return "raft"
    layout = settings.get("keep_oracle", 1.0), settings.get("max_distractors", -1)
    return "dsf" if layout == (0, 0) else "raft-no-reasoning"


class TrainingRecord(Record):
    """How training went: `adapter/training.json`.

    base_fingerprint: what the base model is, whatever its folder is called. rows_excluded: those
    that a person left out after a look at them (`--exclude`). documents_shown: the maximum in the
    prompt of one row; 0 where that is not known. left_out: ids of the
    rows that were too long, then what is wrong with those that were unfit. template_mismatch: why
    the model may not answer as it was taught, where `--allow-template-mismatch` was given. mfu:
    model FLOPs utilisation, the share of the GPU's peak that went into the model; null where the
    peak is not known. batching, sharing: how rows shared a batch, and processes the model, in
    words. seconds: with validation, over all attempts. about_rows: the warnings of the
    dataset's report.
    """

    FILE: ClassVar[str] = "training.json"

    @property
    def kind(self) -> str:
        """As `adapter_kind`, of the settings of this training."""
        return adapter_kind(self.settings)

    base_model: str
    base_fingerprint: str = ""
    rows_train: int
    rows_validation: int
    rows_too_long: int
    rows_unfit: int = 0
    rows_excluded: int = 0
    documents_shown: int = 0
    left_out: list[str] = Field(default_factory=list)
    steps: int
    epochs: float
    trainable_parameters: int
    total_parameters: int
    tokens: int
    tokens_per_second: float
    seconds: float = 0.0
    mfu: float | None = None
    batching: str = ""
    sharing: str = ""
    warnings: list[str] = Field(default_factory=list)
    template_mismatch: str = ""
    about_rows: list[str] = Field(default_factory=list)
    peak_memory_bytes: int
    curve: list[LossPoint]
    validation_loss: float | None
    settings: dict[str, Any]


class Run(Record):
    """What a checkpoint belongs to, and the seconds of training that led to it.

    identity: every setting and input on which the weights depend, by the flag's name.
    """

    FILE: ClassVar[str] = "run.json"

    identity: dict[str, str]
    step: int
    seconds: float


# ---- quantize-check ----------------------------------------------------------------------------


class FreeAnswer(Record):
    """What a model answered to a row's prompt, without help.

    complete: it ended before the limit of tokens, and gave an answer after the marker.
    """

    text: str
    answer: str
    f1: float
    truncated: bool
    complete: bool


class AnswerPair(Record):
    """One row answered by the model in 16 and in 4 bits: a line of `quantization/answers.jsonl`.

    split: the file of the dataset that has the row.
    """

    row_id: str
    split: Literal["validation", "train"]
    gold: str
    full: FreeAnswer
    small: FreeAnswer


Outcome = Literal["pass", "fail", "inconclusive"]


class QuantizationReport(Record):
    """4-bit NF4 weights held against 16-bit ones: `quantization/quantization.json`.

    Byte counts are of the weights in memory. bytes_kept_16bit: of what is not quantized. rows:
    those answered, of which rows_training were in the training; rows_too_long were skipped.

    The outcome rests on free answers of at most `max_new_tokens`: complete_16bit and complete_4bit
    are the shares that end and give an answer after the marker, same_answer the share of rows with
    the same answer in both, f1_kept F1 against the rows' answers in 4 bits over that in 16 (null
    where there is too little F1 to divide by); min_f1_kept and max_incomplete are their limits.
    Each bound of the intervals holds with 95 % confidence.

    Shown beside it: agreement and divergence, teacher-forced over the `tokens` answer tokens: share
    of equal most likely tokens, and the mean Kullback-Leibler divergence from 16 to 4 bits in nats.

    With the decision to stop a pipeline does not run eval: the check failed, and `--gate stop` was
    given. about_rows: the warnings of the dataset's report.
    """

    FILE: ClassVar[str] = "quantization.json"

    weight_bytes_16bit: int
    weight_bytes_4bit: int
    memory_ratio: float
    bytes_kept_16bit: int
    rows: int
    rows_training: int
    rows_too_long: int
    max_new_tokens: int
    complete_16bit: float
    complete_4bit: float
    complete_4bit_ci: tuple[float, float]
    same_answer: float
    same_answer_ci: tuple[float, float]
    f1_16bit: float
    f1_4bit: float
    f1_kept: float | None
    f1_kept_ci: tuple[float, float] | None
    min_f1_kept: float
    max_incomplete: float
    tokens: int
    token_agreement: float
    mean_kl: float
    perplexity_16bit: float
    perplexity_4bit: float
    max_memory_ratio: float
    outcome: Outcome
    verdict: str
    decision: Literal["go", "stop"] = "go"
    about_rows: list[str] = Field(default_factory=list)
