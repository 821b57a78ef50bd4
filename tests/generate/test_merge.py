import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError, DataError
from components.core.storage import fetch, publish, verify
from components.generate import generate, merge
from components.generate.config import GenerateConfig
from components.generate.merge import MergeConfig
from pipelines.stages import run_stage, run_step
from tests.gcs import Emulator

FILES = ("train.jsonl", "validation.jsonl", "report.json", "README.md")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Towns of which some share a name, so that questions come twice in different shards."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(23):
        text = (
            f"Town{number % 17} was founded in {1800 + number}. "
            f"The mayor of Village{number} is Ada Voss{number}. Nothing else {number}."
        )
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


def shard(documents: Path, output: Path, name: str, **more: Any) -> Path:
    generate.run(
        GenerateConfig(
            documents=str(documents), output=str(output), questions_per_chunk=2,
            validation_fraction=0.2, shard=name, **more,
        )
    )  # fmt: skip
    return output


def merged(output: Path, *shards: Path) -> Path:
    merge.run(MergeConfig(shards=tuple(map(str, shards)), output=str(output)))
    return output


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_shards_make_what_one_run_makes(documents: Path, tmp_path: Path, count: int) -> None:
    whole = shard(documents, tmp_path / "whole", "1/1")
    report = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    assert report["dropped"]["question asked before"] == 6
    parts = [
        shard(documents, tmp_path / f"part{number}", f"{number}/{count}")
        for number in range(1, count + 1)
    ]
    joined = merged(tmp_path / "joined", *reversed(parts))
    for name in FILES:
        assert (joined / name).read_bytes() == (whole / name).read_bytes(), name
    verify(joined, "--dataset")


def test_what_is_no_set_of_shards_is_refused(documents: Path, tmp_path: Path) -> None:
    one = shard(documents, tmp_path / "one", "1/3")
    two = shard(documents, tmp_path / "two", "2/3")
    other = shard(documents, tmp_path / "other", "3/3", seed=5)
    with pytest.raises(DataError, match="shards of 3 are missing: 3"):
        merged(tmp_path / "out", one, two)
    with pytest.raises(DataError, match="is shard 1/3, and so is"):
        merged(tmp_path / "out", one, two, one)
    with pytest.raises(DataError, match="shard 3/3 belongs to another run than shard 1/3"):
        merged(tmp_path / "out", one, two, other)
    with pytest.raises(DataError, match="no such file or folder"):
        merged(tmp_path / "out", tmp_path / "nowhere")


def test_there_is_no_shard_beyond_the_last() -> None:
    for name, complaint in (("4/3", "'4/3': there are only 3; the first is 1/3"), ("0/3", "'0/3'")):
        with pytest.raises(ConfigError, match=f"--shard {complaint}"):
            GenerateConfig.parse({"documents": "d", "output": "o", "shard": name})


def test_shards_in_a_bucket(documents: Path, tmp_path: Path, gcs: Emulator) -> None:
    for number in (1, 2):
        folder = shard(documents, tmp_path / f"part{number}", f"{number}/2")
        publish(folder, f"gs://bucket/run/part{number}")
    local = merged(tmp_path / "local", tmp_path / "part1", tmp_path / "part2")
    shards = ("gs://bucket/run/part1", str(tmp_path / "part2"))
    run_stage(MergeConfig(shards=shards, output="gs://bucket/run/joined"))
    fetch("gs://bucket/run/joined", tmp_path / "joined")
    for name in FILES:
        assert (tmp_path / "joined" / name).read_bytes() == (local / name).read_bytes()


def test_a_step_of_kubeflow_merges_the_artifacts_that_it_is_given(
    documents: Path, tmp_path: Path
) -> None:
    parts = [shard(documents, tmp_path / f"part{number}", f"{number}/2") for number in (1, 2)]

    def artifact(name: str, folder: Path) -> dict[str, Any]:
        return {"name": name, "uri": str(folder), "type": {"schemaTitle": "system.Dataset"}}

    executor_input = {
        "inputs": {
            "artifacts": {
                "shards": {"artifacts": [artifact("dataset", folder) for folder in parts]}
            }
        },
        "outputs": {
            "artifacts": {"dataset": {"artifacts": [artifact("dataset", tmp_path / "joined")]}},
            "outputFile": str(tmp_path / "executor_output.json"),
        },
    }
    given: dict[str, object] = {"output": str(tmp_path / "joined")}
    run_step(MergeConfig, given, json.dumps(executor_input))
    verify(tmp_path / "joined", "--dataset")
    told = json.loads((tmp_path / "executor_output.json").read_text(encoding="utf-8"))
    metadata = told["artifacts"]["dataset"]["artifacts"][0]["metadata"]
    assert metadata["rows_train"] == 32
