"""Errors of the system and of libraries, known for what they are."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from components.core import redaction
from components.core.errors import disk_is_full, first_line
from components.core.memory import lacks_memory

WEIGHTS = {"weight": torch.zeros(1 << 18)}
WRITES: dict[str, Callable[[Path], object]] = {
    "python": lambda path: path.write_bytes(bytes(1 << 20)),
    "torch": lambda path: torch.save(WEIGHTS, path),
    "safetensors": lambda path: save_file(WEIGHTS, path),
}


@pytest.mark.parametrize("library", WRITES)
def test_a_full_disk_is_known_whoever_meets_it(library: str, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))  # a larger file: EFBIG
    try:
        with pytest.raises(Exception) as caught:
            WRITES[library](tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert disk_is_full(caught.value), repr(caught.value)


def test_a_lack_of_memory_is_known_and_nothing_else() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert lacks_memory(caught.value) and lacks_memory(MemoryError())
    assert not lacks_memory(ValueError("size mismatch")) and not disk_is_full(caught.value)
    assert not disk_is_full(PermissionError(13, "Permission denied"))


def test_the_first_line_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_line(RuntimeError()) == first_line(RuntimeError("\n")) == "RuntimeError"
    assert first_line(ValueError("\nfirst\nsecond")) == "first"
    monkeypatch.setenv("SOME_TOKEN", "a-secret-that-is-cut")
    with redaction.guarded():
        line = first_line(ValueError("x" * 290 + "a-secret-that-is-cut"))
    assert line == "x" * 290 + "***", "a half of it would no longer be known"
