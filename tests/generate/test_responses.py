import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.core.chat_protocol import Completion, Request
from components.core.errors import StorageError
from components.generate import generate
from components.generate.config import GenerateConfig
from components.generate.teachers import responses
from components.generate.teachers.responses import key_of, open_responses
from tests.conftest import REPOSITORY
from tests.gcs import Emulator
from tests.generate.teacher_server import TeacherServer, teacher_server

REQUEST = Request(prompt="Where is Kelden?", model="m", max_tokens=10, seed=0)


def fill(folder: Path, count: int) -> list[Request]:
    made = [replace(REQUEST, prompt=f"prompt {number}") for number in range(count)]
    with open_responses(str(folder)) as kept:
        for number, request in enumerate(made):
            kept.put(request, Completion(text=f"text {number}\n\u2028 é", tokens_in=number))
            assert kept.get(request) == Completion(
                text=f"text {number}\n\u2028 é", tokens_in=number
            )
    return made


def test_what_is_kept_is_found_by_the_next_run(tmp_path: Path) -> None:
    made = fill(tmp_path / "kept", 20)
    with open_responses(str(tmp_path / "kept")) as kept:
        assert len(kept) == 20 and kept.damaged == 0
        assert [kept.get(request).tokens_in for request in made] == list(range(20))
        assert kept.get(REQUEST) is None


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
    with open_responses(str(tmp_path)) as kept:
        assert kept.damaged == 1 and len(kept) == 4
        assert kept.get(made[4]) is None
        kept.put(made[4], Completion(text="again"))
    with open_responses(str(tmp_path)) as kept:
        assert len(kept) == 5 and kept.get(made[4]).text == "again"


def test_of_a_damaged_piece_only_the_damaged_line_is_lost(tmp_path: Path) -> None:
    made = fill(tmp_path, 5)
    (piece,) = tmp_path.iterdir()
    piece.write_bytes(piece.read_bytes().replace(b"text 2", b"text 7"))
    with open_responses(str(tmp_path)) as kept:
        assert [kept.get(request) is None for request in made] == [False, False, True, False, False]
        assert kept.damaged == 1


def test_two_runs_may_share_a_folder(tmp_path: Path) -> None:
    with open_responses(str(tmp_path)) as one, open_responses(str(tmp_path)) as other:
        one.put(REQUEST, Completion(text="one"))
        other.put(replace(REQUEST, seed=1), Completion(text="other"))
    with open_responses(str(tmp_path)) as kept:
        assert len(kept) == 2


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
    with open_responses(location) as kept:
        for number in range(3):
            kept.put(replace(REQUEST, seed=number), Completion(text=str(number)))
        kept._uploads[0].result()
        assert gcs.names("run/dataset-responses/"), "nothing is published before the end"
    with open_responses(location) as kept:
        assert len(kept) == 3 and kept.get(replace(REQUEST, seed=2)).text == "2"
        kept.put(replace(REQUEST, seed=3), Completion(text="3"))
    with open_responses(location) as kept:
        assert len(kept) == 4


KILLED = """
import os, signal, sys
from components.core.chat_protocol import Completion, Request
from components.generate.teachers.responses import open_responses
with open_responses(sys.argv[1]) as kept:
    for number in range(3):
        kept.put(Request(prompt="p", model="m", max_tokens=9, seed=number), Completion(text="x"))
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
        with open_responses(location) as kept:
            assert len(kept) == 3
        assert len(gcs.names("run/dataset-responses/")) == 1


def settings(texts: Path, output: Path, server: TeacherServer, **more: Any) -> GenerateConfig:
    return GenerateConfig(
        documents=str(texts), output=str(output), teacher="openai",
        teacher_endpoint=server.endpoint, teacher_model="teacher", **more,
    )  # fmt: skip


def test_a_second_run_pays_for_nothing_and_a_changed_one_for_all(
    texts: Path, tmp_path: Path
) -> None:
    kept = str(tmp_path / "kept")
    with teacher_server() as server:
        generate.run(settings(texts, tmp_path / "a", server, responses=kept))
        assert len(server.seen) == 20
        # Other rows from the same replies, whatever the endpoint's address.
        generate.run(settings(texts, tmp_path / "b", server, responses=kept, distractors=1, seed=0))
        assert len(server.seen) == 20
        generate.run(settings(texts, tmp_path / "c", server, responses=kept, teacher_max_tokens=99))
        assert len(server.seen) == 40
    with teacher_server() as other:
        generate.run(settings(texts, tmp_path / "d", other, responses=kept))
        assert not other.seen
    assert (tmp_path / "a" / "train.jsonl").read_bytes() == (
        tmp_path / "d" / "train.jsonl"
    ).read_bytes()
    ledger = json.loads((tmp_path / "d" / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["requests"] == 0


def test_responses_lie_beside_the_output_unless_told(texts: Path, tmp_path: Path) -> None:
    with teacher_server() as server:
        generate.run(settings(texts, tmp_path / "out", server))
    assert list((tmp_path / "out-responses").glob("*.responses.jsonl"))
    config = GenerateConfig(documents="d", output="gs://bucket/run/dataset/")
    local = config.model_copy(update={"output": "/tmp/x/dataset"})
    assert local.responses == "gs://bucket/run/dataset-responses"
