"""The stage on ten chunks, with a teacher behind a small server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core import breaker
from components.core.records import GenerationReport, RaftRow, read_jsonl
from components.generate import generate
from components.generate.config import GenerateConfig
from tests.generate.teacher_server import TeacherServer

Ask = Callable[..., tuple[GenerationReport, list[RaftRow]]]


def rows_of(output: Path) -> list[RaftRow]:
    """The rows of a dataset, those held out last."""
    files = (output / f"{split}.jsonl" for split in ("train", "validation"))
    return [row for file in files for row in read_jsonl(file, RaftRow)]


def asking(server: TeacherServer, documents: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a run whose teacher is a server."""
    return {
        "documents": str(documents), "output": str(output), "teacher": "openai",
        "teacher_endpoint": server.endpoint, "teacher_model": "m", "teacher_concurrency": 4,
        **settings,
    }  # fmt: skip


@pytest.fixture
def ask(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs the stage against a server, into a folder of this name; its report and rows.

    All runs of a test share their responses.
    """
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.01)

    def made(server: TeacherServer, name: str = "out", **settings: Any) -> Any:
        settings = {"responses": str(tmp_path / "responses")} | settings
        values = asking(server, texts, tmp_path / name, **settings)
        report = generate.run(GenerateConfig.parse(values))
        return report, rows_of(tmp_path / name)

    return made
