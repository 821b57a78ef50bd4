"""The base model of an adapter, where transformers can load it."""

import shutil
from pathlib import Path

import pytest

from components.core.models import load_tokenizer
from components.core.raft_form import TEMPLATE
from components.core.records import TrainingRecord, read_json
from components.core.storage import finish_artifact, publish, write_json
from components.use import base, serve
from components.use.base import base_here
from components.use.config import ServeConfig
from tests.conftest import Raft
from tests.gcs import BUCKET, Emulator

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def of_the_hub(world_adapter: Path, tmp_path: Path) -> str:
    """An adapter that was trained on a commit of a model on the hub."""
    ignored = shutil.ignore_patterns("manifest.json", "ledger.json")
    folder = Path(shutil.copytree(world_adapter, tmp_path / "adapter", ignore=ignored))
    record = read_json(folder / TrainingRecord.FILE, TrainingRecord)
    origin = {"base_model": "team/model", "base_fingerprint": f"team/model@{COMMIT}"}
    write_json(folder / TrainingRecord.FILE, record.model_copy(update=origin))
    return str(folder)


def test_a_base_in_a_bucket_is_here_for_the_length_of_a_block(
    gcs: Emulator, demo_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(demo_model, tmp_path / "model"))
    finish_artifact(model)
    publish(model, f"gs://{BUCKET}/model")
    with base_here("", f"gs://{BUCKET}/model") as folder:
        assert load_tokenizer(folder).chat_template
    assert not Path(folder).exists()


def test_a_hub_model_is_that_which_the_adapter_was_trained_on(
    of_the_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client is a stand-in: what is asked of it is the point."""
    asked: list[tuple[str, str]] = []

    def at_commit(source: str, commit: str) -> str:
        asked.append((source, commit))
        return "/its/folder"

    monkeypatch.setattr(base, "at_commit", at_commit)
    with base_here(of_the_hub) as folder:
        assert (folder, asked) == ("/its/folder", [("team/model", COMMIT)])
    command = serve.server_command(ServeConfig(adapter=of_the_hub), of_the_hub, "team/model")
    assert {f"--revision={COMMIT}", f"--tokenizer-revision={COMMIT}"} <= set(command)
    other = serve.server_command(ServeConfig(adapter=of_the_hub), of_the_hub, "other/model")
    assert not [flag for flag in other if "revision" in flag]


def test_what_is_published_brings_its_chat_template(
    raft_here: Raft, world_adapter: Path, demo_model: Path, tmp_path: Path
) -> None:
    published = tmp_path / "published"
    assert raft_here("card", "--adapter", world_adapter, "--output", published).returncode == 0
    card = (published / "README.md").read_text("utf-8")
    assert "raft ask --adapter FOLDER --base-model model --documents" in card
    template = load_tokenizer(str(demo_model), str(published)).chat_template
    assert isinstance(template, str) and template.startswith(TEMPLATE)
