"""The real vLLM: base and adapter in one engine say what transformers and PEFT say.

Skipped where vLLM is not installed; `make test-vllm` runs it with vLLM's CPU build.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ModelError
from components.core.records import Evaluation, Sample, read_json, read_jsonl
from components.eval import engines
from components.eval.config import EvalConfig
from components.eval.eval import run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed"
)

LIMIT = 40


@pytest.fixture(scope="module")
def config(demo_model: Path, world_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from pipelines.demo.world import articles, write_questions

    folder = tmp_path_factory.mktemp("vllm")
    write_questions(articles(60, seed=11), 24, 3, 11, folder / "questions.json")
    return EvalConfig.parse(
        {
            "questions": str(folder / "questions.json"),
            "base_model": str(demo_model),
            "adapter": str(world_adapter),
            "output": str(folder / "out"),
            "arms": "base,raft",
            "max_new_tokens": LIMIT,
            "dtype": "float32",
        }
    )


@pytest.fixture(scope="module")
def requests(config: EvalConfig) -> list[engines.Request]:
    """Base and adapter in turn, so that every batch mixes them."""
    from components.core.models import load_tokenizer

    tokenizer: Any = load_tokenizer(config.base_model)
    built = []
    for row in json.loads(Path(config.questions).read_text(encoding="utf-8")):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        built += [engines.Request(arm, ids) for arm in config.variants()]
    return built


def answers_of(name: str, config: EvalConfig, requests: list[engines.Request]) -> dict[Any, Any]:
    return {
        (request.arm.name, request.ids): completion
        for completions, _ in engines.generate(name, requests, config)
        for request, completion in completions
    }


@pytest.mark.timeout(1800)
def test_one_engine_says_token_by_token_what_each_arm_says_alone(
    config: EvalConfig, requests: list[engines.Request]
) -> None:
    together = answers_of("vllm", config, requests)
    alone: dict[Any, Any] = {}
    for arm in config.variants():
        mine = [item for item in requests if item.arm == arm]
        alone |= answers_of("transformers", config, mine)
    assert len(together) == len(requests) == 48
    assert together == alone
    base = {prompt: answer for (arm, prompt), answer in together.items() if arm == "base"}
    tuned = {prompt: answer for (arm, prompt), answer in together.items() if arm == "raft"}
    assert sum(base[prompt] != tuned[prompt] for prompt in base) > 12  # the adapter does something


@pytest.mark.timeout(1800)
def test_an_adapter_of_another_base_is_named(config: EvalConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(config.adapter, tmp_path / "other")
    weights = {
        name: tensor.repeat_interleave(2, dim=1) if "lora_A" in name else tensor
        for name, tensor in load_file(other / "adapter_model.safetensors").items()
    }
    save_file(weights, other / "adapter_model.safetensors")
    changed = config.model_copy(update={"adapter": str(other)})
    requests = [engines.Request(arm, (1, 2, 3)) for arm in changed.variants()]
    with pytest.raises(ModelError, match=f"--adapter {other}: does not fit --base-model"):
        list(engines.generate("vllm", requests, changed))


def test_who_speaks_for_the_4bit_arms_is_said(config: EvalConfig) -> None:
    from components.eval.eval import engine_notes

    small = config.model_copy(update={"engine": "vllm", "arms": ("base", "raft-4bit")})
    (note,) = engine_notes(small)
    assert "includes that of the engines" in note or "adapter unmerged in 16" in note
    assert engine_notes(config.model_copy(update={"engine": "transformers"})) == []


@pytest.mark.timeout(1800)
def test_the_stage_starts_one_engine_for_both_arms(
    config: EvalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm

    starts = []
    start = vllm.LLM.__init__

    def counting(self: Any, *arguments: Any, **options: Any) -> None:
        starts.append(options)
        start(self, *arguments, **options)

    monkeypatch.setattr(vllm.LLM, "__init__", counting)
    samples = {}
    for engine in ("vllm", "transformers"):
        output = tmp_path / engine
        run(config.model_copy(update={"engine": engine, "output": str(output)}))
        samples[engine] = [
            (sample.arm, sample.question_id, sample.generation, sample.f1, sample.truncated)
            for sample in read_jsonl(output / "samples.jsonl", Sample)
        ]
        assert read_json(output / "results.json", Evaluation).engine == engine
    assert samples["vllm"] == samples["transformers"]
    assert len(starts) == 1
    assert starts[0]["max_loras"] == 2 and starts[0]["max_lora_rank"] == 64
