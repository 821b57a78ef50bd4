import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.core.chat_protocol import Completion, Request
from components.core.errors import StorageError
from components.core.gpus import table
from components.generate.config import GenerateConfig
from components.generate.teachers import responses
from components.generate.teachers.responses import key_of, open_responses
from pipelines.stages import run_step
from tests.conftest import REPOSITORY, by_rules
from tests.core.test_kubeflow import executor_input
from tests.gcs import Emulator
from tests.generate.conftest import Ask, asking
from tests.generate.teacher_server import TeacherServer, teacher_server

REQUEST = Request(prompt="Where is Kelden?", model="m", max_tokens=10, seed=0)


def fill(folder: Path, count: int) -> list[Request]:
    made = [replace(REQUEST, prompt=f"prompt {number}") for number in range(count)]
    with open_responses(str(folder)) as store:
        for number, request in enumerate(made):
            store.put(request, Completion(text=f"text {number}\n\u2028 é", tokens_in=number))
            assert store.get(request) == Completion(
                text=f"text {number}\n\u2028 é", tokens_in=number
            )
    return made


def test_what_is_kept_is_found_by_the_next_run(tmp_path: Path) -> None:
    made = fill(tmp_path / "kept", 20)
    with open_responses(str(tmp_path / "kept")) as store:
        assert len(store) == 20 and store.damaged == 0
        assert [store.get(request).tokens_in for request in made] == list(range(20))
        assert store.get(REQUEST) is None


@pytest.mark.parametrize(
    "change",
    [{"prompt": "Where is Kelden? "}, {"model": "n"}, {"max_tokens": 11}, {"seed": 1},
     {"temperature": 0.1}, {"schema": "{}"}],
)  # fmt: skip
def test_whatever_changes_the_request_changes_the_key(change: dict[str, Any]) -> None:
    assert key_of(replace(REQUEST, **change)) != key_of(REQUEST)
    assert key_of(replace(REQUEST)) == key_of(REQUEST)


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_of_a_torn_piece_only_the_torn_line_is_lost(tmp_path: Path, cut: int) -> None:
    made = fill(tmp_path, 5)
    (piece,) = tmp_path.iterdir()
    piece.write_bytes(piece.read_bytes()[:-cut])
    with open_responses(str(tmp_path)) as store:
        assert store.damaged == 1 and len(store) == 4
        assert store.get(made[4]) is None
        store.put(made[4], Completion(text="again"))
    with open_responses(str(tmp_path)) as store:
        assert len(store) == 5 and store.get(made[4]).text == "again"


def test_two_runs_may_share_a_folder(tmp_path: Path) -> None:
    with open_responses(str(tmp_path)) as one, open_responses(str(tmp_path)) as other:
        one.put(REQUEST, Completion(text="one"))
        other.put(replace(REQUEST, seed=1), Completion(text="other"))
    with open_responses(str(tmp_path)) as store:
        assert len(store) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="--responses .*file: cannot be read or written"),
        open_responses(str(tmp_path / "file")),
    ):
        pass


def test_pieces_are_published_while_a_run_goes_on(
    gcs: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "PIECE_SECONDS", 0.0)
    location = "gs://bucket/run/dataset-responses"
    with open_responses(location) as store:
        for number in range(3):
            store.put(replace(REQUEST, seed=number), Completion(text=str(number)))
        until = time.monotonic() + 10
        while not gcs.names("run/dataset-responses/"):
            assert time.monotonic() < until, "nothing is published before the end"
    with open_responses(location) as store:
        assert len(store) == 3 and store.get(replace(REQUEST, seed=2)).text == "2"
        store.put(replace(REQUEST, seed=3), Completion(text="3"))
    with open_responses(location) as store:
        assert len(store) == 4


KILLED = """
import os, signal, sys
from components.core.chat_protocol import Completion, Request
from components.generate.teachers.responses import open_responses
with open_responses(sys.argv[1]) as store:
    for number in range(3):
        store.put(Request(prompt="p", model="m", max_tokens=9, seed=number), Completion(text="x"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_left_unpublished_on_this_machine_is_not_paid_again(
    gcs: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    location = "gs://bucket/run/dataset-responses"
    line = [sys.executable, "-c", KILLED, location]
    assert subprocess.run(line, cwd=REPOSITORY).returncode == -signal.SIGKILL
    assert not gcs.names("run/")
    for _ in range(2):  # published by the first, and not again by the second
        with open_responses(location) as store:
            assert len(store) == 3
        assert len(gcs.names("run/dataset-responses/")) == 1


def test_a_second_run_pays_for_nothing_and_a_changed_one_for_all(ask: Ask, tmp_path: Path) -> None:
    with teacher_server() as server:
        _, made = ask(server, "a")
        assert len(server.seen) == 20
        # Other rows from the same replies, whatever the endpoint's address.
        ask(server, "b", distractors=1)
        assert len(server.seen) == 20
        ask(server, "c", teacher_max_tokens=99)
        assert len(server.seen) == 40
    with teacher_server() as other:
        assert ask(other, "d")[1] == made
        assert not other.seen
    ledger = json.loads((tmp_path / "d" / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["requests"] == 0


def test_responses_lie_beside_the_output_unless_told(ask: Ask, tmp_path: Path) -> None:
    with teacher_server() as server:
        ask(server, responses="")
    assert list((tmp_path / "out-responses").glob("*.responses.jsonl"))
    config = by_rules("d", "gs://bucket/run/dataset/")
    local = config.model_copy(update={"output": "/tmp/x/dataset"})
    assert local.responses == "gs://bucket/run/dataset-responses"


def test_a_new_run_of_the_pipeline_pays_for_nothing(
    texts: Path, tmp_path: Path, gcs: Emulator
) -> None:
    def begin(run: str, server: TeacherServer, **changes: object) -> None:
        folder = f"gs://bucket/root/raft/{run}/generate"
        step = executor_input(folder, tmp_path / f"{run}.json", dataset="Dataset")
        run_step(GenerateConfig, asking(server, texts, tmp_path / run, **changes), step)

    with teacher_server() as server:
        begin("first", server)
        assert len(server.seen) == 20
        (piece,) = gcs.names("root/state/responses/")
        begin("second", server)
        assert len(server.seen) == 20
        begin("third", server, teacher_extra='{"top_k": 1}')
        assert len(server.seen) == 40
        begin("fourth", server, fresh="true")
        assert len(server.seen) == 60 and piece not in gcs.names("root/state/")
    pair = [(tmp_path / run / "train.jsonl").read_bytes() for run in ("first", "fourth")]
    assert pair[0] == pair[1]


def test_a_limit_of_cost_ends_the_questions_and_finishes_the_dataset(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = round(9 * table().teacher_request.usd, 6)
    with teacher_server() as server:
        made, rows = ask(server, "a", teacher_max_cost=limit, teacher_concurrency=1)
        assert len(server.seen) == 9
        assert 2 <= len(rows) <= 4
        assert sum(n for reason, n in made.dropped.items() if "--teacher-max-cost" in reason) >= 6
        assert any("--teacher-max-cost was reached" in text for text in made.warnings)
        assert "nothing more is asked" in capsys.readouterr().err
        # With more money, the next run goes on where this one ended.
        ask(server, "b")
        assert len(server.seen) == 20
