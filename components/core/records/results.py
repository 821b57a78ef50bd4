"""What the stages report: one record for each stage, with the figures that judge it."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from components.core.records.record import Record

# ---- generate ----------------------------------------------------------------------------------


class GenerationReport(Record):
    """What `generate` kept and dropped, and why: `dataset/report.json`.

    quotes: of the accepted answers, by how they match their oracle document. shard: the share of
    the chunks that was used; every share counts all documents and chunks.
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
    shard: str = "1/1"

    @property
    def is_shard(self) -> bool:
        """Whether it reports on a part of the chunks only."""
        return not self.shard.endswith("/1")


# ---- train -------------------------------------------------------------------------------------


class LossPoint(Record):
    """Mean loss per answer token (nats) after `step` optimizer steps."""

    step: int
    loss: float
    split: Literal["train", "validation"]
    learning_rate: float | None = None


class TrainingRecord(Record):
    """How training went: `adapter/training.json`.

    base_fingerprint: what the base model is, whatever its folder is called.
    left_out: ids of the rows that were too long. mfu: model FLOPs utilisation, the share of the
    GPU's peak that went into the model; null where the peak is not known. batching: how rows
    shared a batch. sharing: whether processes shared one copy of the model; "" for one process.
    warnings: what went wrong, in words.
    seconds: of training, with validation, over all attempts of a run that was stopped between.
    """

    FILE: ClassVar[str] = "training.json"

    base_model: str
    base_fingerprint: str = ""
    rows_train: int
    rows_validation: int
    rows_too_long: int
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


class HeadComparison(Record):
    """What quantizing the output head too buys and costs: the figures with the head in 16 bits."""

    weight_bytes_4bit: int
    memory_ratio: float
    token_agreement: float
    mean_kl: float
    perplexity_4bit: float


class QuantizationReport(Record):
    """4-bit NF4 weights held against 16-bit ones: `quantization/quantization.json`.

    Byte counts are of the weights in memory. Agreement and divergence are teacher-forced over the
    `tokens` answer tokens of the validation rows: share of equal most likely tokens, and the mean
    Kullback-Leibler divergence from 16 to 4 bits in nats. With the decision
    to stop a pipeline does not run eval: the check failed, and `--gate stop` was given.

    predicted_*: counted from the model's shape before it was loaded. kept: bytes that stay in 16
    bits by tensor, layers together. load_seconds_*: of reading the weights, and quantizing them.
    peak_memory_bytes: of the stage, which holds both models. lm_head_16bit: where the output head
    was quantized, the figures without that. rows_too_long: skipped among the rows read.
    """

    FILE: ClassVar[str] = "quantization.json"

    weight_bytes_16bit: int
    weight_bytes_4bit: int
    memory_ratio: float
    bytes_kept_16bit: int
    rows: int
    tokens: int
    token_agreement: float
    mean_kl: float
    perplexity_16bit: float
    perplexity_4bit: float
    min_agreement: float
    max_memory_ratio: float
    passed: bool
    verdict: str
    decision: Literal["go", "stop"] = "go"
    predicted_bytes_16bit: int = 0
    predicted_bytes_4bit: int = 0
    kept: dict[str, int] = Field(default_factory=dict)
    load_seconds_16bit: float = 0.0
    load_seconds_4bit: float = 0.0
    peak_memory_bytes: int = 0
    quantize_lm_head: bool = False
    lm_head_16bit: HeadComparison | None = None
    exported: Literal["none", "merged", "4bit"] = "none"
    rows_too_long: int = 0


# ---- eval --------------------------------------------------------------------------------------


Bits = Literal[4, 16]
"""Of an arm's weights; 16 stands for the type that the stage's `dtype` chose, also 32 bits."""


class ArmResult(Record):
    """Scores of one arm (a model variant under test), each a mean over `n` questions in [0, 1].

    label, tuned (with an adapter), bits, prompt: what the arm is, from eval's registry. f1, em,
    precision, recall: the official HotpotQA script's. contains: a right answer occurs somewhere in
    the generation. truncated: cut off at the token limit. unanswered: no answer marker, or empty
    where the prompt asks for none. empty: nothing but white space. quoted: quotes something between
    markers. quoted_oracle: quotes word for word from an oracle document. quotes_verbatim: share of
    all quotes that are word for word in a document shown; null where nothing is quoted.
    weight_bytes: null where the engine does not report them. Intervals are 95 % percentile
    bootstraps over questions.
    """

    name: str
    label: str
    tuned: bool
    bits: Bits
    prompt: str
    f1: float
    em: float
    precision: float
    recall: float
    n: int
    contains: float
    truncated: float
    unanswered: float
    f1_ci: tuple[float, float]
    em_ci: tuple[float, float]
    contains_ci: tuple[float, float]
    empty: float = 0.0
    quoted: float = 0.0
    quoted_oracle: float = 0.0
    quotes_verbatim: float | None = None
    weight_bytes: int | None


class Comparison(Record):
    """Paired difference `arm - baseline` of one metric, question by question.

    ci: 95 % percentile bootstrap over questions; p_value: two-sided, from the same resamples.
    """

    arm: str
    baseline: str
    metric: str
    difference: float
    ci: tuple[float, float]
    p_value: float


Oracle = Literal["present", "absent", "first", "last"]
"""Where the oracle paragraphs stand among those shown: as the question has them, nowhere, …"""


class CurvePoint(Record):
    """One arm's scores where the documents were shown in another way than in the comparison.

    distractors: paragraphs shown beside the oracle ones; -1 is all that a question has.
    """

    arm: str
    distractors: int
    oracle: Oracle
    n: int
    f1: float
    f1_ci: tuple[float, float]
    em: float
    contains: float
    truncated: float
    unanswered: float


class Evaluation(Record):
    """What `eval` found: `evaluation/results.json`.

    The arms are compared with the documents shown as `distractors` and `oracle` say; `curve` has
    every way that was asked, that one included, and is empty where it is the only one.
    task: the data set. dtype: of the weights of the 16-bit arms. retention: F1 of the adapter in 4
    bits over its F1 in `dtype`; null when either is missing or the latter is zero. memory_ratio:
    weight bytes in 4 bits over those in `dtype`, as quantize-check measured them, else as measured
    in the arms.
    """

    FILE: ClassVar[str] = "results.json"

    task: str
    base_model: str
    dtype: Literal["bfloat16", "float32"]
    questions: int
    max_new_tokens: int
    seed: int
    arms: list[ArmResult]
    comparisons: list[Comparison]
    retention: float | None
    memory_ratio: float | None
    warnings: list[str]
    engine: Literal["transformers", "vllm"] = "transformers"
    distractors: int = -1
    oracle: Oracle = "present"
    curve: list[CurvePoint] = Field(default_factory=list)

    def arm(self, name: str) -> ArmResult:
        """The result of one arm."""
        return next(arm for arm in self.arms if arm.name == name)

    def tuning_effect(self, metric: str) -> Comparison | None:
        """A tuned arm against its untuned baseline: in 16 bits, else in 4, else nothing."""
        arms = {arm.name: arm for arm in self.arms}
        found = [
            item
            for item in self.comparisons
            if item.metric == metric and {item.arm, item.baseline} <= arms.keys()
            and arms[item.arm].tuned and not arms[item.baseline].tuned
        ]  # fmt: skip
        return max(found, key=lambda item: arms[item.arm].bits, default=None)


class Sample(Record):
    """One generation, judged: a line of `evaluation/samples.jsonl` or `robustness.jsonl`."""

    question_id: str
    arm: str
    question: str
    gold: list[str]
    generation: str
    answer: str
    f1: float
    em: float
    precision: float
    recall: float
    contains: bool
    truncated: bool
    answered: bool
    documents: list[str]
    oracle_indices: list[int]
    quotes: int = 0
    quotes_verbatim: int = 0
    quotes_oracle: int = 0
    distractors: int = -1
    oracle: Oracle = "present"
