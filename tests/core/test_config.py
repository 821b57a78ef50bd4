"""Which locations a config accepts together."""

import pytest

from components.core.errors import ConfigError
from components.train.config import TrainConfig


def test_a_name_of_the_hub_is_no_folder_of_an_output(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    settings = {"dataset": "gs://b/dataset", "output": "org", "base_model": "org/model"}
    assert TrainConfig.parse(settings).base_model == "org/model"
    with pytest.raises(ConfigError, match="--output gs://b and --dataset gs://b/dataset overlap"):
        TrainConfig.parse(settings | {"output": "gs://b"})
