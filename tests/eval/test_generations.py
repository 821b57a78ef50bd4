"""What a kill leaves behind is used: whole batches are kept, torn lines are cut off."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.core.errors import OutOfMemory
from components.core.storage import checked_line
from components.eval import engines, generations
from components.eval.config import EvalConfig
from components.eval.engines import transformers_engine
from components.eval.eval import run
from components.eval.generations import Batch, Generation, Generations, key_of
from components.eval.inference import PARTIAL
from tests.conftest import REPOSITORY
from tests.eval.conftest import make_question
from tests.gcs import BUCKET, emulator


def batch(*keys: str) -> Batch:
    return Batch(
        model="m",
        weight_bytes=7,
        seconds=1.5,
        generations=[
            Generation(
                key=key, text=f"says\u2028{key}\n", tokens_in=3, tokens_out=2, truncated=False
            )
            for key in keys
        ],
    )


@pytest.mark.parametrize("tail", [b"", b'{"model": "m", "gener', b"\xff\x00", b'{"other": 1}\n{'])
def test_whole_batches_are_kept_and_a_torn_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "new" / "g.jsonl"
    first = Generations(path)
    first.add(batch("a", "b"))
    first.add(batch("c"))
    first.file.close()
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    again = Generations(path)
    assert sorted(again.by_key) == ["a", "b", "c"]
    assert again.by_key["a"].text == "says\u2028a\n"
    assert again.seconds == {"m": 3.0} and again.weight_bytes == {"m": 7}
    again.add(batch("d"))
    added = checked_line(batch("d").model_dump_json().encode())
    assert path.read_bytes() == whole + tail[: tail.rfind(b"\n") + 1] + added
    again.close()
    assert path.exists(), "it is deleted when what is made of it is on the disk"


def test_a_key_stands_for_model_and_prompt() -> None:
    keys = {key_of(model, prompt) for model in ("m", "n") for prompt in ("p", "q", "\ud800")}
    assert len(keys) == 6


@pytest.fixture(scope="module")
def settings(
    tiny_model: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    source = tmp_path_factory.mktemp("many") / "questions.json"
    source.write_text(json.dumps([make_question(number) for number in range(40)]))
    return {
        "questions": str(source),
        "base_model": str(tiny_model),
        "adapter": str(tiny_adapter),
        "arms": "base,raft",
        "max_new_tokens": 60,
        "batch_size": 2,
        "dtype": "float32",
        "resamples": 100,
    }


@pytest.fixture(scope="module")
def undisturbed(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    run(EvalConfig.parse({**settings, "output": str(output)}))
    return output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_and_run_again(
    settings: dict[str, object], undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    """SIGKILL while it generates: nothing finished is asked again, and the bytes are the same."""
    flags = [
        text
        for name, value in {**settings, "output": tmp_path / "out"}.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    partial = tmp_path / "out" / PARTIAL
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "eval", *flags],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    )
    wanted = random.Random(seed).randint(1, 30)
    while process.poll() is None:
        if partial.exists() and partial.read_bytes().count(b"\n") >= wanted:
            time.sleep(random.Random(seed).random() * 0.05)
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.002)
    assert process.returncode == -signal.SIGKILL
    before = partial.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert wanted <= whole.count(b"\n") < 40

    asked: list[int] = []
    answer = engines.Transformers._answer

    def counting(self: engines.Transformers, requests: list[engines.Request]) -> object:
        asked.append(len(requests))
        return answer(self, requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines.Transformers, "_answer", counting)
        run(EvalConfig.parse({**settings, "output": str(tmp_path / "out")}))
    assert len(asked) == 40 - whole.count(b"\n")
    assert not partial.exists()
    for name in ("samples.jsonl", "results.json", "f1.svg"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_run_resumes_from_a_copy_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulator() as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        prefix = f"gs://{BUCKET}/evaluation-partial"
        first = Generations(tmp_path / "one" / "g.jsonl", prefix)
        monkeypatch.setattr(generations, "SECONDS_BETWEEN_COPIES", 0.0)
        first.add(batch("a"))  # killed here: nothing is closed
        assert bucket.names() == {"evaluation-partial/g.jsonl"}
        second = Generations(tmp_path / "two" / "g.jsonl", prefix)
        assert list(second.by_key) == ["a"]
        bucket.fault = lambda method, path: 403
        second.add(batch("b"))  # a bucket that refuses does not stop the evaluation
        bucket.fault = lambda method, path: 0
        second.close()
        third = Generations(tmp_path / "three" / "g.jsonl", prefix)
        assert list(third.by_key) == ["a", "b"]


@pytest.mark.timeout(300)
def test_another_machine_resumes_a_preempted_run(
    settings: dict[str, object], undisturbed: Path, tmp_path: Path
) -> None:
    """SIGTERM, as a spot node gets it, with --output on gs://; then anew with an empty disk."""
    with emulator() as bucket:
        flags = [
            text
            for name, value in {**settings, "output": f"gs://{BUCKET}/run/evaluation"}.items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]

        def start(machine: str) -> subprocess.Popen[str]:
            (tmp_path / machine).mkdir()
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines", "eval", *flags],
                cwd=REPOSITORY,
                stderr=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "TMPDIR": str(tmp_path / machine),
                    "STORAGE_EMULATOR_HOST": bucket.url,
                },
            )

        first = start("one")
        while first.poll() is None:
            if any(path.read_bytes().count(b"\n") > 4 for path in tmp_path.rglob(PARTIAL)):
                first.terminate()
                break
            time.sleep(0.005)
        first.communicate()
        assert first.returncode == 128 + signal.SIGTERM
        assert bucket.names() == {f"run/evaluation-partial/{PARTIAL}"}
        second = start("two")
        _, log = second.communicate()
        assert second.returncode == 0, log
        kept = int(log.split("resuming from ")[1].split()[0])
        assert 8 < kept < 80 and kept % 2 == 0
        name = "run/evaluation/samples.jsonl"
        samples = bucket.storage.get_file(BUCKET, name)
        assert samples == (undisturbed / "samples.jsonl").read_bytes()


def test_a_gs_output_has_its_copies_beside_it(settings: dict[str, object]) -> None:
    def partial(**changes: object) -> str:
        return EvalConfig.parse({**settings, **changes}).partial

    assert partial(output="gs://b/run/evaluation/") == "gs://b/run/evaluation-partial"
    assert partial(output="gs://b/x", partial="gs://b/y") == "gs://b/y"
    assert partial(output="local") == ""


def test_out_of_memory_says_what_to_change_and_keeps_what_is_there(
    settings: dict[str, object], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    config = EvalConfig.parse({**settings, "output": str(tmp_path)})
    answer = engines.Transformers._answer
    batches = 0

    def failing(self: engines.Transformers, requests: list[engines.Request]) -> object:
        nonlocal batches
        batches += 1
        if batches == 25:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return answer(self, requests)

    monkeypatch.setattr(engines.Transformers, "_answer", failing)
    with pytest.raises(
        OutOfMemory, match="--batch-size 2: the memory ran out on arm raft"
    ) as caught:
        run(config)
    assert "lower --batch-size resumes" in caught.value.hint
    assert (tmp_path / PARTIAL).read_bytes().count(b"\n") == 24
    run(config)  # goes on: four more batches than those that failed would fail again
    assert batches == 25 + 16
    assert (tmp_path / "samples.jsonl").read_bytes() == (undisturbed / "samples.jsonl").read_bytes()


def test_an_engine_gives_its_memory_back(settings: dict[str, object], tmp_path: Path) -> None:
    import weakref

    config = EvalConfig.parse({**settings, "output": str(tmp_path)})
    for arm in config.variants():
        with engines.open_engine("transformers", [arm], config, 100) as engine:
            assert isinstance(engine, engines.Transformers)
            weights = weakref.ref(engine.model.get_input_embeddings().weight)
            ids = tuple(engine.tokenizer("Where was Ada born?")["input_ids"])
            list(engine.generate([engines.Request(arm, "p", ids)]))
        assert weights() is None, arm.name


def test_a_model_that_does_not_fit_is_explained(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def load(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers_engine, "load_model", load)
    with pytest.raises(OutOfMemory, match="arm base: the memory cannot hold the model") as caught:
        run(EvalConfig.parse({**settings, "output": str(tmp_path)}))
    assert "--arms base-4bit,raft-4bit" in caught.value.hint
