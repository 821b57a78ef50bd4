"""The whole stage, through the real lm-evaluation-harness, transformers, PEFT and bitsandbytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError, DataError
from components.core.records import Evaluation, Sample, read_json, read_jsonl
from components.core.storage import verify
from components.eval.arms import DEFAULT_ARMS
from components.eval.config import EvalConfig
from components.eval.eval import run

LIMIT = 24
Stage = Callable[..., EvalConfig]


@pytest.fixture(scope="session")
def configure(tiny_model: Path, tiny_adapter: Path, questions_file: Path) -> Stage:
    def build(output: Path, **changes: object) -> EvalConfig:
        return EvalConfig.parse(
            {
                "questions": str(questions_file),
                "base_model": str(tiny_model),
                "adapter": str(tiny_adapter),
                "output": str(output),
                "max_new_tokens": LIMIT,
                "batch_size": 4,
                "dtype": "float32",
                "resamples": 200,
                **changes,
            }
        )

    return build


@pytest.fixture(scope="session")
def evaluated(configure: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation")
    run(configure(output))
    return output


def samples_of(folder: Path) -> dict[str, list[Sample]]:
    arms: dict[str, list[Sample]] = {}
    for sample in read_jsonl(folder / "samples.jsonl", Sample):
        arms.setdefault(sample.arm, []).append(sample)
    return arms


def generate_plainly(config: EvalConfig, arm: str) -> list[tuple[str, bool]]:
    """Each question alone, unpadded, with transformers (and PEFT) and nothing of ours."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(config.base_model)
    model: Any = AutoModelForCausalLM.from_pretrained(config.base_model, dtype=torch.float32)
    if arm == "raft":
        model = PeftModel.from_pretrained(model, config.adapter)
    answers = []
    for row in json.loads(Path(config.questions).read_text()):
        documents = "".join(f"<DOCUMENT>{''.join(text)}</DOCUMENT>\n" for _, text in row["context"])
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": documents + row["question"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(
            **prompt,
            do_sample=False,
            temperature=None,
            top_p=None,
            repetition_penalty=1.0,
            max_new_tokens=LIMIT,
            eos_token_id=[2, 5],
            pad_token_id=0,
        )[0][prompt["input_ids"].shape[1] :]
        answers.append(
            (tokenizer.decode(output, skip_special_tokens=True), output[-1].item() not in (2, 5))
        )
    return answers


@pytest.mark.parametrize("arm", ["base", "raft"])
def test_an_arm_answers_what_transformers_answers(
    evaluated: Path, configure: Stage, arm: str
) -> None:
    answers = [(sample.generation, sample.truncated) for sample in samples_of(evaluated)[arm]]
    assert answers == generate_plainly(configure(evaluated), arm)


def test_the_4bit_arms_answer_what_4bit_models_answer(evaluated: Path, configure: Stage) -> None:
    from components.core.models import choose_dtype, load_4bit, load_tokenizer
    from components.eval.engines import end_tokens

    config = configure(evaluated)
    tokenizer: Any = load_tokenizer(config.base_model)
    assert end_tokens(config.base_model, tokenizer) == [2, 5]
    for arm, adapter in (("base-4bit", None), ("raft-4bit", config.adapter)):
        model: Any = load_4bit(config.base_model, adapter, choose_dtype("float32"))
        for sample in samples_of(evaluated)[arm][:2]:
            documents = "".join(f"<DOCUMENT>{text}</DOCUMENT>\n" for text in sample.documents)
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": documents + sample.question}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            output = model.generate(
                **prompt,
                do_sample=False,
                temperature=None,
                top_p=None,
                repetition_penalty=1.0,
                max_new_tokens=LIMIT,
                eos_token_id=[2, 5],
                pad_token_id=0,
            )[0][prompt["input_ids"].shape[1] :]
            assert tokenizer.decode(output, skip_special_tokens=True) == sample.generation


def test_arms_come_in_order_and_answer_the_same_questions(evaluated: Path) -> None:
    arms = samples_of(evaluated)
    assert tuple(arms) == DEFAULT_ARMS
    for samples in arms.values():
        assert [sample.question_id for sample in samples] == [f"q{number}" for number in range(6)]
        assert [sample.documents for sample in samples] == [
            sample.documents for sample in arms["base"]
        ]
    assert arms["base"][0].oracle_indices == [1]
    assert len({tuple(sample.generation for sample in samples) for samples in arms.values()}) > 1


def test_results_follow_from_samples(evaluated: Path, tiny_model: Path) -> None:
    results = read_json(evaluated / "results.json", Evaluation)
    assert results.base_model == tiny_model.name
    for arm, samples in zip(results.arms, samples_of(evaluated).values(), strict=True):
        assert arm.n == len(samples) == results.questions
        assert arm.f1 == pytest.approx(sum(sample.f1 for sample in samples) / arm.n, abs=1e-6)
        assert arm.truncated == pytest.approx(
            sum(sample.truncated for sample in samples) / arm.n, abs=1e-6
        )
        assert arm.f1_ci[0] <= arm.f1 <= arm.f1_ci[1]
        assert arm.weight_bytes is not None and arm.weight_bytes > 0
        assert arm.empty == sum(not sample.generation.strip() for sample in samples) / arm.n
    assert [(item.arm, item.baseline, item.metric) for item in results.comparisons] == [
        (arm, baseline, metric)
        for arm, baseline in (("raft", "base"), ("raft-4bit", "base-4bit"), ("raft-4bit", "raft"))
        for metric in ("f1", "contains")
    ]
    assert 0 < (results.memory_ratio or 0) < 1
    assert any("give no answer" in warning for warning in results.warnings)


def test_some_generations_are_cut_and_some_are_not(evaluated: Path) -> None:
    cut = [sample.truncated for samples in samples_of(evaluated).values() for sample in samples]
    assert True in cut
    assert False in cut


def test_the_artifact_is_whole(evaluated: Path) -> None:
    verify(evaluated, "--evaluation")
    names = {path.name for path in evaluated.iterdir()}
    assert names == {
        "results.json",
        "samples.jsonl",
        "f1.svg",
        "report.html",
        "ledger.json",
        "manifest.json",
    }
    ledger = json.loads((evaluated / "ledger.json").read_text())
    assert ledger["tokens_in"] > 6 * 4 * 50
    assert 0 < ledger["tokens_out"] <= 6 * 4 * LIMIT
    assert (evaluated / "f1.svg").read_text(encoding="utf-8").startswith("<svg xmlns")


def test_twice_the_same(configure: Stage, evaluated: Path, tmp_path: Path) -> None:
    arms = ("base", "raft")
    run(configure(tmp_path, arms=arms))

    def comparable(folder: Path) -> list[dict[str, Any]]:
        results = json.loads((folder / "results.json").read_text())
        return [arm for arm in results["arms"] if arm["name"] in arms]

    assert comparable(tmp_path) == comparable(evaluated)
    assert samples_of(tmp_path) == {arm: samples_of(evaluated)[arm] for arm in arms}


def test_further_layouts_make_curves_and_leave_the_comparison_alone(
    configure: Stage, evaluated: Path, tmp_path: Path
) -> None:
    arms = ("base", "raft")
    result = run(configure(tmp_path, arms=arms, distractors="-1,0,1", oracle="present,absent"))
    assert samples_of(tmp_path) == {arm: samples_of(evaluated)[arm] for arm in arms}
    others = list(read_jsonl(tmp_path / "robustness.jsonl", Sample))
    assert len(others) == 2 * 5 * 6
    assert [(point.arm, point.oracle, point.distractors) for point in result.curve] == [
        (arm, oracle, count)
        for arm in arms
        for oracle in ("present", "absent")
        for count in (-1, 0, 1)
    ]
    for point in result.curve:
        shown = [
            sample
            for sample in (
                *others,
                *(item for arm in samples_of(tmp_path).values() for item in arm),
            )
            if (sample.arm, sample.oracle, sample.distractors)
            == (point.arm, point.oracle, point.distractors)
        ]
        assert point.n == len(shown) == 6
        assert point.f1 == pytest.approx(sum(sample.f1 for sample in shown) / 6, abs=1e-6)
        oracles, beside = (point.oracle == "present") * 1, 2 if point.distractors < 0 else None
        for sample in shown:
            assert len(sample.oracle_indices) == oracles
            assert len(sample.documents) - oracles == (
                beside if beside is not None else point.distractors
            )
    assert "No oracle" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_prompt_that_does_not_fit_is_refused(configure: Stage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"question 'q\d': \d+ prompt tokens and 500 ") as caught:
        run(configure(tmp_path, arms="base", max_new_tokens=500))
    assert "--distractors" in caught.value.hint
    assert not (tmp_path / "manifest.json").exists()


def test_further_adapters_are_arms(
    configure: Stage, evaluated: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    for name in ("again", "b-4bit"):
        shutil.copytree(tiny_adapter, tmp_path / "adapters" / name)
    result = run(configure(tmp_path / "out", arms="base,raft", adapters=str(tmp_path / "adapters")))
    arms = samples_of(tmp_path / "out")
    assert list(arms) == ["base", "raft", "raft:again", "raft:b-4bit"]
    answers = [[sample.generation for sample in arms[name]] for name in list(arms)[1:]]
    assert answers[0] == answers[1] == answers[2]
    pairs = {(item.arm, item.baseline) for item in result.comparisons}
    assert pairs == {("raft", "base"), ("raft:again", "base"), ("raft:b-4bit", "base")}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "RAFT again, 32-bit" in page
    with pytest.raises(DataError, match="no subfolder with an adapter_config"):
        run(configure(tmp_path / "none", adapters=str(evaluated)))


def test_arms_of_the_same_weights_share_a_model(
    configure: Stage, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts belong to arms: the same model, asked in three ways, is loaded once."""
    from components.eval.engines import transformers_engine

    loaded: list[str] = []
    load = transformers_engine.load_model

    def counting(source: str, *arguments: Any) -> Any:
        loaded.append(source)
        return load(source, *arguments)

    monkeypatch.setattr(transformers_engine, "load_model", counting)
    result = run(configure(tmp_path, arms="base,base-rag,base-closed"))
    assert len(loaded) == 1
    arms = samples_of(tmp_path)
    assert arms["base"] == samples_of(evaluated)["base"]
    assert len({tuple(sample.generation for sample in samples) for samples in arms.values()}) == 3
    assert [(arm.prompt, arm.tuned) for arm in result.arms] == [
        ("raft", False),
        ("rag", False),
        ("closed", False),
    ]


@pytest.mark.parametrize(
    ("arms", "problem"),
    [
        ("base,lora", "unknown arm 'lora' (allowed: base | raft | base-4bit | raft-4bit | "),
        ("base,base", "arm 'base' is listed twice"),
        ("[]", "names no arm"),
    ],
)
def test_bad_arms_are_named(configure: Stage, tmp_path: Path, arms: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(tmp_path, arms=arms)
    assert problem in str(caught.value)


def test_the_harness_is_left_as_it_was(evaluated: Path) -> None:
    import lm_eval.api.task
    from tqdm import tqdm

    assert lm_eval.api.task.tqdm is tqdm


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"oracle": "middle"}, "unknown place 'middle' (allowed: present | absent | first | last)"),
        ({"distractors": "0,-2"}, "-2 is too small (allowed: whole numbers >= -1)"),
        ({"distractors": "4,4"}, "4 is listed twice"),
        ({"distractors": "many"}, "--distractors"),
        ({"distractors": ""}, "--distractors"),
        ({"engine": "tgi"}, "auto | transformers | vllm"),
        ({"task": "squad"}, "unknown data set 'squad' (allowed: hotpotqa)"),
    ],
)
def test_bad_settings_are_named(
    configure: Stage, tmp_path: Path, changes: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(tmp_path, **changes)
    assert problem in str(caught.value)


@pytest.mark.parametrize("given", [3, "3", "[3]", [3]])
def test_one_number_of_distractors_is_a_list_of_one(
    configure: Stage, tmp_path: Path, given: object
) -> None:
    assert configure(tmp_path, distractors=given).distractors == (3,)


def test_a_missing_input_is_told_with_its_flag(configure: Stage, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = {
        "quantization": (tmp_path / "empty", "no quantization.json in it", "Check --quantization"),
        "questions": (tmp_path / "nope.json", "no such file or folder", "Check --questions"),
    }
    for flag, (path, problem, hint) in wrong.items():
        with pytest.raises(DataError, match=problem) as caught:
            run(configure(tmp_path / "out", **{flag: str(path)}))
        assert str(path) in str(caught.value) and caught.value.hint.startswith(hint)
    with pytest.raises(DataError, match="no validation.jsonl in it"):
        run(configure(tmp_path / "out", questions=str(tmp_path / "empty")))
