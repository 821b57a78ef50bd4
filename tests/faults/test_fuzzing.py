"""The parsers under random input: what was once found, and fresh tries.

An hour of coverage-guided search found what lies in fuzz/corpus; how to look for more is in
fuzz/__main__.py.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.faults.conftest import Tally
from tests.faults.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("fuzz") / "corpus"
FINDINGS = sorted(CORPUS.glob("*/*.json"))


@pytest.mark.fault("Fuzzing", "inputs that once broke a parser", "its properties hold")
@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_was_found(path: Path) -> None:
    TARGETS[path.parent.name].check(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.fault("Fuzzing", "fresh inputs to every parser", "its properties hold")
@pytest.mark.parametrize("name", TARGETS)
def test_fresh_inputs(name: str, tally: Tally) -> None:
    tries = int(os.environ.get("FAULT_TRIES", "60"))

    @settings(
        max_examples=tries,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(TARGETS[name].inputs)
    def check(value: Any) -> None:
        tally.tried(1)
        TARGETS[name].check(value)

    check()


def test_every_finding_has_its_target() -> None:
    assert FINDINGS and {path.parent.name for path in FINDINGS} <= TARGETS.keys()
    assert sum(path.stat().st_size for path in FINDINGS) < 200_000
