"""Arms with adapters of their own: which one they get, what they are asked, how often it loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError
from components.core.raft_form import instruction
from components.core.records import RaftRow, Sample, read_jsonl
from components.eval import engines
from components.eval.eval import run
from components.generate import generate
from tests.conftest import by_rules
from tests.eval.conftest import Stage, make_adapter

ARMS = "base,base-rag,base-examples,raft,raft-no-reasoning,dsf-rag,dsf,raft-4bit,dsf-4bit"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "documents").mkdir()
    for number in range(8):
        text = f"Ada{number} was born in Kelden{number}. The trade of Ada{number} is law{number}."
        (folder / "documents" / f"{number}.txt").write_text(text)
    generate.run(
        by_rules(folder / "documents", folder / "rows", distractors=1, oracle_probability=0.5)
    )
    return folder / "rows"


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three that differ."""
    layers = {"raft": ["q_proj"], "raft-no-reasoning": ["down_proj", "v_proj"], "dsf": ["o_proj"]}
    return {
        name: make_adapter(tiny_model, tmp_path_factory.mktemp(name), 2, modules)
        for name, modules in layers.items()
    }


def answers(folder: Path) -> dict[str, list[str]]:
    by_arm: dict[str, list[str]] = {}
    for sample in read_jsonl(folder / "samples.jsonl", Sample):
        by_arm.setdefault(sample.arm, []).append(sample.generation)
    return by_arm


def test_all_adapters_share_one_load_in_16_bits(
    configure: Stage, adapters: dict[str, Path], dataset: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Together they answer what each answers alone, with a model of its own."""
    loads: list[str] = []

    def counted(name: str) -> Any:
        load = getattr(engines, name)
        return lambda *arguments: loads.append(name) or load(*arguments)

    named = {name: str(folder) for name, folder in adapters.items()}
    settings = {"adapter": "", "adapters": named, "dataset": str(dataset), "max_new_tokens": 8}
    with monkeypatch.context() as patched:
        for name in ("load_model", "load_4bit"):
            patched.setattr(engines, name, counted(name))
        run(configure(tmp_path / "all", arms=ARMS, **settings))
    assert sorted(loads) == ["load_4bit", "load_4bit", "load_model"]
    together = answers(tmp_path / "all")
    assert list(together) == ARMS.split(",")
    assert len({tuple(texts) for texts in together.values()}) >= 8
    for name in ("base", "raft", "dsf-rag", "dsf"):
        run(configure(tmp_path / name, arms=name, **settings))
        assert answers(tmp_path / name) == {name: together[name]}


def test_examples_are_training_rows_with_their_oracle(
    configure: Stage, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []
    real = engines.with_transformers

    def spy(requests: Any, config: Any) -> Any:
        from components.core.models import load_tokenizer

        tokenizer = load_tokenizer(config.base_model)
        prompts.extend(tokenizer.decode(request.ids) for request in requests)
        return real(requests, config)

    monkeypatch.setattr(engines, "with_transformers", spy)
    result = run(
        configure(
            tmp_path / "out", arms="base-examples", dataset=str(dataset), distractors=0,
            max_new_tokens=4,
        )
    )  # fmt: skip
    rows = list(read_jsonl(dataset / "train.jsonl", RaftRow))
    assert any(row.oracle_context not in row.documents for row in rows), "some lack their oracle"
    for prompt in prompts:
        examples = [row for row in rows if f"{row.instruction}\n{row.cot_answer}\n\n" in prompt]
        assert len(examples) == 2 and all(row.oracle_context in row.documents for row in examples)
    last = instruction(["Ada0 was born in Kelden 0. She paints."], "Where was Ada0 born?")
    assert sum(last in prompt for prompt in prompts) == 1
    assert [(arm.label, arm.tuned, arm.adapter) for arm in result.arms] == [
        ("Base (two examples)", False, "")
    ]


def test_an_adapter_is_that_of_the_arms_that_it_was_trained_for(
    configure: Stage, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(adapters["dsf"], tmp_path / "mine")
    record = json.loads(RECORD)
    record["settings"] = {"target": "answer", "keep_oracle": 0.0, "max_distractors": 0}
    (folder / "training.json").write_text(json.dumps(record))
    config = configure(tmp_path / "out", adapter=str(folder), arms="base,dsf,dsf-rag-4bit")
    assert [arm.folder for arm in config.variants()] == ["", str(folder), str(folder)]
    default = configure(tmp_path / "out", adapter=str(folder)).variants()
    assert [arm.name for arm in default] == [
        "base", "dsf", "dsf-rag", "base-4bit", "dsf-4bit", "dsf-rag-4bit",
    ]  # fmt: skip
    wrong = configure(tmp_path / "out", adapter=str(folder), arms="raft")
    with pytest.raises(ConfigError, match=r"--arms raft: .* was trained as dsf") as caught:
        wrong.variants()
    assert "--adapters raft=PATH" in caught.value.hint


def test_named_adapters_bring_their_arms(
    configure: Stage, adapters: dict[str, Path], tmp_path: Path
) -> None:
    named = f"dsf={adapters['dsf']},other={adapters['raft']}"
    own = {"adapter": str(adapters["raft"]), "adapters": named}
    default = [arm.name for arm in configure(tmp_path / "out", **own).variants()]
    assert default == [
        "base", "raft", "base-4bit", "raft-4bit", "dsf", "dsf-rag", "dsf-4bit", "dsf-rag-4bit",
        "raft:other",
    ]  # fmt: skip
    twice = own | {"adapters": f"raft={adapters['dsf']}"}
    with pytest.raises(ConfigError, match="was trained as raft too"):
        configure(tmp_path / "out", **twice).variants()


RECORD = """{"base_model": "m", "rows_train": 1, "rows_validation": 0, "rows_too_long": 0,
"steps": 1, "epochs": 1, "trainable_parameters": 1, "total_parameters": 1, "tokens": 1,
"tokens_per_second": 1, "peak_memory_bytes": 1, "curve": [], "validation_loss": null,
"settings": {}}"""
