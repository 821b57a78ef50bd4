"""The table of GPU kinds: every kind has everything that its readers want."""

import pytest
from pydantic import ValidationError

from components.core import gpus
from components.core.gpus import Gpu, gke_labels, kinds, of_device, of_label


def test_every_kind_has_every_field() -> None:
    assert set(kinds()) >= {"a100-40gb", "a100-80gb", "h100", "h200", "l4"}
    for name, gpu in kinds().items():
        assert gpu.price is not None and 0 < gpu.price.usd < 20, name
        assert gpu.price.source and gpu.price.date >= "2024", name
        assert 16 % gpu.training["batch_size"] == 0, f"{name}: 16 rows share a step"
        assert gpu.memory_gib > 20 and gpu.bf16_tflops > 100, name


def test_a_device_and_a_label_are_of_one_kind() -> None:
    for gpu in kinds().values():
        assert of_device(gpu.device) is gpu and of_label(gpu.gke_label) is gpu
    assert of_device("NVIDIA B999") is None and of_label("nvidia-tesla-t4") is None
    assert len(gke_labels()) > len(kinds())
    assert "nvidia-tesla-t4" in gke_labels()


def test_a_misspelt_field_or_stage_is_refused() -> None:
    entry = kinds()["l4"].model_dump()
    with pytest.raises(ValidationError, match="prize"):
        Gpu.model_validate(entry | {"prize": entry["price"]})
    with pytest.raises(ValidationError, match="'train', 'quantize-check' or 'eval'"):
        gpus.Pods.model_validate(entry["pods"] | {"flags": {"trian": ["--rank=8"]}})
