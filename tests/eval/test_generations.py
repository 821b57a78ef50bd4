"""What a kill leaves behind is used: whole batches are kept, torn lines are cut off."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.core import decoding
from components.core.config import flag
from components.core.errors import OutOfMemory
from components.core.storage import checked_line
from components.eval import engines, generations
from components.eval.eval import run
from components.eval.generations import Batch, Generation, Generations, key_of
from components.eval.inference import PARTIAL
from tests.conftest import REPOSITORY
from tests.eval.conftest import Stage, make_question
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
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    source = tmp_path_factory.mktemp("many") / "questions.json"
    source.write_text(json.dumps([make_question(number) for number in range(40)]))
    return {
        "questions": str(source),
        "arms": "base,raft",
        "max_new_tokens": 60,
        "batch_size": 2,
    }


@pytest.fixture(scope="module")
def undisturbed(
    configure: Stage, settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    run(configure(output, **settings))
    return output


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
    configure: Stage, settings: dict[str, object], undisturbed: Path, tmp_path: Path
) -> None:
    """SIGTERM, as a spot node gets it, with --output on gs://; then anew with an empty disk."""
    with emulator() as bucket:
        config = configure(f"gs://{BUCKET}/run/evaluation", **settings)
        values = config.model_dump(exclude_defaults=True) | {"arms": settings["arms"]}
        flags = [text for name, value in values.items() for text in (flag(name), str(value))]

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
        resumed = int(log.split("resuming from ")[1].split()[0])
        assert 8 < resumed < 80 and resumed % 2 == 0
        name = "run/evaluation/samples.jsonl"
        samples = bucket.storage.get_file(BUCKET, name)
        assert samples == (undisturbed / "samples.jsonl").read_bytes()


def test_a_new_run_finds_the_generations_of_another(
    configure: Stage,
    settings: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = {"state": str(tmp_path / "state"), "max_questions": 8}
    run(configure(tmp_path / "first", **settings, **state))
    (copy,) = (tmp_path / "state" / "partial").glob(f"*/{PARTIAL}")
    capsys.readouterr()
    run(configure(tmp_path / "second", **settings, **state))
    log = capsys.readouterr().err
    assert "resuming from" in log and "loading base" not in log
    pair = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("first", "second")]
    assert pair[0] == pair[1]
    copy.write_bytes(b"")
    run(configure(tmp_path / "third", **settings, **state, fresh=True))
    assert "resuming from" not in capsys.readouterr().err and copy.stat().st_size


def test_a_gs_output_has_its_copies_beside_it(configure: Stage) -> None:
    assert configure("gs://b/run/evaluation/").partial == "gs://b/run/evaluation-partial"
    assert configure("gs://b/x", partial="gs://b/y").partial == "gs://b/y"
    assert configure("local").partial == ""


def test_out_of_memory_says_what_to_change_and_keeps_what_is_there(
    configure: Stage, settings: dict[str, object], undisturbed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import torch

    config = configure(tmp_path, **settings)
    complete = decoding.complete
    batches = 0

    def failing(*arguments: Any, **limits: Any) -> object:
        nonlocal batches
        batches += 1
        if batches == 25:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return complete(*arguments, **limits)

    monkeypatch.setattr(decoding, "complete", failing)
    with pytest.raises(
        OutOfMemory, match="arm base, raft: the memory ran out at --batch-size 2"
    ) as caught:
        run(config)
    assert "lower --batch-size resumes" in caught.value.hint
    assert (tmp_path / PARTIAL).read_bytes().count(b"\n") == 24
    run(config)  # goes on: four more batches than those that failed would fail again
    assert batches == 25 + 16
    assert (tmp_path / "samples.jsonl").read_bytes() == (undisturbed / "samples.jsonl").read_bytes()


def test_an_engine_gives_its_memory_back(
    configure: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    loaded: list[Any] = []
    complete = decoding.complete

    def watched(model: Any, *arguments: Any, **limits: Any) -> object:
        loaded.append(weakref.ref(model.get_input_embeddings().weight))
        return complete(model, *arguments, **limits)

    monkeypatch.setattr(decoding, "complete", watched)
    config = configure(tmp_path)
    for arm in config.variants():
        list(engines.generate("transformers", [engines.Request(arm, (1, 5, 6))], config))
        assert loaded.pop()() is None, arm.name


def test_a_model_that_does_not_fit_is_explained(
    configure: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def load(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engines, "load_model", load)
    with pytest.raises(OutOfMemory, match="arm base, raft: the memory ran out") as caught:
        run(configure(tmp_path))
    assert "--arms base-4bit,raft-4bit" in caught.value.hint
