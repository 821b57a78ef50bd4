"""Fuzz one parser with coverage guidance: python -m tests.faults.fuzz TARGET SECONDS.

Every finding is written to corpus/TARGET/ as the JSON of the input, once for each place that it
fails at, and fuzzing goes on. Without arguments the targets are listed. Needs atheris, which has
wheels for Linux: pip install -c constraints.txt --group fuzz
"""

import hashlib
import importlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

CORPUS = Path(__file__).with_name("corpus")
WATCHED = ["components", "pipelines", "pypdf", "markdownify"]
"""Packages whose branches count as coverage."""


def main(arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=WATCHED):
        # Instrumented as they are imported, so before the targets are.
        for module in (
            "components.core.raft_form", "components.core.json_entries", "components.core.records",
            "components.core.storage", "components.core.ledger", "components.core.describe",
            "components.core.pages", "components.core.kubeflow",
            "components.generate.answers", "components.generate.questions",
            "components.core.corpus.documents", "components.generate.teachers.prompts",
            "components.generate.teachers.responses", "components.eval.questions",
            "components.eval.quotes", "components.eval.generations", "pipelines.manifests",
            "pipelines.k8s.job",
            "pypdf", "markdownify",
        ):  # fmt: skip
            importlib.import_module(module)
    from tests.faults.fuzz.targets import TARGETS

    if len(arguments) != 2 or arguments[0] not in TARGETS:
        print(__doc__, *TARGETS, sep="\n")
        sys.exit(2)
    name, seconds = arguments
    known: set[str] = set()
    tried = 0

    @settings(
        database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(TARGETS[name].inputs)
    def check(value: Any) -> None:
        nonlocal tried
        tried += 1
        try:
            TARGETS[name].check(value)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__} {place.filename}:{place.lineno}"
            if fault not in known:
                known.add(fault)
                text = json.dumps(value, indent=1)
                path = CORPUS / name / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text + "\n", encoding="utf-8")
                print(f"FOUND {name}: {fault}: {str(error)[:200]!r} {path.name}", flush=True)

    one = check.hypothesis.fuzz_one_input
    end = time.monotonic() + float(seconds)

    def run(data: bytes) -> None:
        one(data)
        if time.monotonic() > end:
            print(f"TRIED {name}: {tried} inputs, {len(known)} findings", flush=True)
            os._exit(0)  # libFuzzer would end the process without a word

    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as work:
        # Inputs are drawn from bytes; from none, libFuzzer would first learn to give enough.
        rng = random.Random(name)
        for number in range(200):
            (Path(work) / str(number)).write_bytes(rng.randbytes(rng.randrange(50, 3000)))
        limits = ["-timeout=60", "-rss_limit_mb=4000", "-max_len=4096", "-len_control=0"]
        atheris.Setup([sys.argv[0], work, *limits, f"-artifact_prefix={work}-"], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
