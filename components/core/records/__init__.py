"""The typed records that stages exchange: the only vocabulary they share."""

from components.core.records.evaluation import (
    Abstention,
    ArmResult,
    Bits,
    Comparison,
    CurvePoint,
    Evaluation,
    Oracle,
    OtherScore,
    Sample,
)
from components.core.records.record import Record, explain, read_json, read_jsonl
from components.core.records.results import (
    AnswerPair,
    FreeAnswer,
    GenerationReport,
    LossPoint,
    Outcome,
    QuantizationReport,
    Run,
    TrainingRecord,
)
from components.core.records.rows import (
    Chunk,
    Context,
    Document,
    Dropped,
    Gold,
    Paragraphs,
    Question,
    RaftRow,
)
