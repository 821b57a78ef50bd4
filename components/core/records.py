"""The typed records that stages exchange: the only vocabulary they share.

One RAFT row, as `generate` writes it and `train` reads it (shortened)::

    {"id": "seed_task_0", "type": "general", "question": "Where was Ada Voss born?",
     "context": {"title": [["Ada Voss", "Bram Kell"]],
                 "sentences": [["Ada Voss was born in Kelden.", "Bram Kell …"]]},
     "oracle_context": "Ada Voss was born in Kelden.",
     "cot_answer": "… ##begin_quote##…##end_quote## … <ANSWER>: Kelden",
     "instruction": "<DOCUMENT>Ada Voss was born in Kelden.</DOCUMENT>\\n…Where was …?",
     "answer": "Kelden", "document_id": "ada_voss.md", "chunk_id": "ada_voss.md#0",
     "oracle_index": 0, "distractor_ids": ["bram_kell.md#0"], "teacher": "extractive"}

The first seven columns are those of the published RAFT code, nesting included, so that its readers
read ours; the rest is provenance.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from components.core.errors import DataError, printable


class Record(BaseModel):
    """A record on disk: unknown fields and non-finite numbers are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


# ---- generate ----------------------------------------------------------------------------------

DocumentForm = Literal["text", "markdown", "api"]
RowType = Literal["general", "api call"]
"""A row about a text, or about the documentation of an API call; the published code's words."""


class Document(Record):
    """One source text. `id` is unique in a corpus and says where the text came from."""

    id: str
    title: str = Field(max_length=1000)  # it is repeated in every chunk
    text: str
    form: DocumentForm = "text"


class Paragraphs(BaseModel):
    """A row in HotpotQA form, of which only the paragraphs are read: titles with sentences.

    Takes the original nesting `[[title, [sentence, …]], …]` and the hub's
    `{"title": [...], "sentences": [[...], ...]}`.
    """

    context: list[tuple[str, list[str]]]

    @field_validator("context", mode="before")
    @classmethod
    def _from_columns(cls, value: Any) -> Any:
        if isinstance(value, dict) and {"title", "sentences"} <= value.keys():
            titles, sentences = value["title"], value["sentences"]
            if not isinstance(titles, list) or not isinstance(sentences, list):
                raise ValueError("title and sentences must be lists")
            if len(titles) != len(sentences):
                raise ValueError(f"{len(titles)} titles but {len(sentences)} lists of sentences")
            return list(zip(titles, sentences, strict=True))
        return value


class Chunk(Record):
    """A piece of a document; `start` and `end` are character offsets into its text."""

    id: str
    document_id: str
    title: str
    text: str
    start: int
    end: int
    type: RowType = "general"


class Context(Record):
    """The documents shown with a question, nested as HotpotQA and the published code nest them.

    Both lists have one inner list, with one entry a document.
    """

    title: list[list[str]]
    sentences: list[list[str]]


class RaftRow(Record):
    """One training row; see the module's example."""

    id: str
    type: RowType
    question: str
    context: Context
    oracle_context: str
    cot_answer: str
    instruction: str
    # provenance; absent in published RAFT files, which we read too
    answer: str = ""
    document_id: str = ""
    chunk_id: str = ""
    oracle_index: int | None = None
    distractor_ids: list[str] = Field(default_factory=list)
    teacher: str = ""


class GenerationReport(Record):
    """What `generate` kept and dropped, and why: `dataset/report.json`.

    quotes: by how they were found in their oracle, of answers that passed the check. shard: the
    share of the chunks that was asked about; every share counts all documents and chunks.
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
        """Whether it tells of a part of the chunks."""
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
    """The figures with the output head in 16 bits, to compare with those of a quantized one."""

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
    peak_memory_bytes: of the stage, which holds both models. lm_head_16bit: where the
    output head was quantized, the figures without that. rows_too_long: skipped among the rows read.
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


class Question(Record):
    """One evaluation question in HotpotQA form.

    `context` pairs each paragraph's title with its sentences (they join without a separator);
    `supporting_facts` pairs a title with a sentence index; titles named there are the oracle
    paragraphs. Source: https://hotpotqa.github.io, "distractor" setting.
    """

    id: str = Field(alias="_id")
    question: str
    answer: str
    supporting_facts: list[tuple[str, int]]
    context: list[tuple[str, list[str]]]
    type: str = ""
    level: str = ""


class ArmResult(Record):
    """Scores of one arm (a model variant under test), each a mean over `n` questions in [0, 1].

    f1, em, precision, recall: the official HotpotQA script's. contains: the gold answer stands
    somewhere in the generation. truncated: cut off at the token limit. unanswered: no answer
    marker. empty: nothing but white space. quoted: quotes something between markers.
    quoted_oracle: quotes word for word from an oracle paragraph. quotes_verbatim: share of all
    quotes that stand word for word in a document shown; null where nothing is quoted.
    weight_bytes: null where the engine does not tell. Intervals are 95 % percentile bootstraps
    over questions.
    """

    name: str
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
    dtype: of the weights of the arms without `-4bit`. retention: F1 of the adapter in 4 bits over
    its F1 in `dtype`; null when either is missing or the latter is zero. memory_ratio: weight bytes
    in 4 bits over those in `dtype`, as quantize-check measured them, else as measured in the arms.
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


class Sample(Record):
    """One generation, judged: a line of `evaluation/samples.jsonl` or `robustness.jsonl`."""

    question_id: str
    arm: str
    question: str
    gold: str
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


# ---- reading and writing -----------------------------------------------------------------------

R = TypeVar("R", bound=BaseModel)

FOREIGN = 3
"""Fields that a row of another tool lacks, at least; HotpotQA's has no more in common than that."""


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Stream the records of a JSON Lines file; blank lines are skipped.

    Raises:
        DataError: a line is not JSON or not a `kind`; names file and line.
    """
    try:
        lines = path.open("rb")  # pydantic decodes, and says where a line is not UTF-8
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from None
    with lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = kind.model_validate_json(line)
                except ValidationError as error:
                    raise _malformed(error, path, kind, number) from None
                yield record


def read_json(path: Path, kind: type[R]) -> R:
    """Read one record from a JSON file.

    Raises:
        DataError: the file is missing, not JSON or not a `kind`.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from None
    except ValidationError as error:
        raise _malformed(error, path, kind) from None


def _malformed(
    error: ValidationError, path: Path, kind: type[BaseModel], line: int | None = None
) -> DataError:
    """The error about a record; fields that are unknown or missing may come with a version."""
    missing = [fault for fault in error.errors() if fault["type"] == "missing"]
    if kind is RaftRow and len(missing) >= FOREIGN and isinstance(missing[0]["input"], dict):
        found = [printable(name)[:40] for name in missing[0]["input"]]
        expected = [name for name, field in kind.model_fields.items() if field.is_required()]
        return DataError(
            f"these are not RAFT rows (found: {', '.join(found[:8])}{', …' * (len(found) > 8)}; "
            f"expected: {', '.join(expected)})",
            path=path,
            line=line,
            hint="raft generate writes such rows from documents; the README shows their form.",
        )
    fields = {"extra_forbidden", "missing"} & {fault["type"] for fault in error.errors()}
    hint = "If another version of raft-pipelines wrote it, read it with that one." * bool(fields)
    return DataError(explain(error), path=path, line=line, hint=hint)


def explain(error: ValidationError) -> str:
    """A validation error in one line: the first faults by field name, without pydantic's links."""
    faults = [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        for fault in error.errors(include_url=False)
    ]
    rest = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + rest
