"""The typed records that stages exchange: the only vocabulary they share."""

from components.core.records.files import read_json, read_jsonl
from components.core.records.record import Record, explain
from components.core.records.results import (
    ArmResult,
    Bits,
    Comparison,
    CurvePoint,
    Evaluation,
    GenerationReport,
    HeadComparison,
    LossPoint,
    Oracle,
    QuantizationReport,
    Run,
    Sample,
    TrainingRecord,
)
from components.core.records.rows import Chunk, Context, Document, Paragraphs, Question, RaftRow

__all__ = [
    "ArmResult", "Bits", "Chunk", "Comparison", "Context", "CurvePoint", "Document", "Evaluation",
    "GenerationReport", "HeadComparison", "LossPoint", "Oracle", "Paragraphs",
    "QuantizationReport", "Question", "RaftRow", "Record", "Run", "Sample",
    "TrainingRecord", "explain", "read_json", "read_jsonl",
]  # fmt: skip
