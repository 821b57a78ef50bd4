"""The whole stage, through the real transformers, PEFT and bitsandbytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.decoding import end_tokens
from components.core.errors import ConfigError, DataError
from components.core.models import load_tokenizer
from components.core.records import Evaluation, RaftRow, Sample, read_json, read_jsonl
from components.core.storage import verify
from components.eval.arms import DEFAULT_ARMS, Arm
from components.eval.config import EvalConfig
from components.eval.eval import run
from components.generate import generate
from tests.conftest import by_rules
from tests.eval.conftest import LIMIT, Stage


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


def generate_plainly(config: EvalConfig, arm: Arm) -> list[tuple[str, bool]]:
    """Each question alone, unpadded, with transformers (and PEFT) and nothing of ours."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from components.core.models import load_4bit

    tokenizer: Any = AutoTokenizer.from_pretrained(config.base_model)
    model: Any
    if arm.bits == 4:
        model = load_4bit(config.base_model, arm.folder or None, torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(config.base_model, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, arm.folder) if arm.folder else model
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


@pytest.mark.parametrize("number", range(4))
def test_an_arm_answers_what_transformers_answers(
    evaluated: Path, configure: Stage, number: int
) -> None:
    config = configure(evaluated)
    arm = config.variants()[number]
    answers = [(sample.generation, sample.truncated) for sample in samples_of(evaluated)[arm.name]]
    assert answers == generate_plainly(config, arm)


def test_a_generation_ends_at_every_token_that_the_model_names(tiny_model: Path) -> None:
    assert end_tokens(str(tiny_model), load_tokenizer(str(tiny_model))) == [2, 5]


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
    assert {sample.truncated for samples in arms.values() for sample in samples} == {True, False}


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


def test_further_layouts_make_a_table_and_leave_the_comparison_alone(
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
    every = [*others, *(sample for samples in samples_of(tmp_path).values() for sample in samples)]
    for point in result.curve:
        mine = [
            sample
            for sample in every
            if (sample.arm, sample.oracle, sample.distractors)
            == (point.arm, point.oracle, point.distractors)
        ]
        assert point.n == len(mine) == 6
        assert point.f1 == pytest.approx(sum(sample.f1 for sample in mine) / 6, abs=1e-6)
        oracles = int(point.oracle == "present")
        distractors = {-1: 2}.get(point.distractors, point.distractors)
        for sample in mine:
            assert len(sample.oracle_indices) == oracles
            assert len(sample.documents) == oracles + distractors
    assert "Distractors and the oracle" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_prompt_that_does_not_fit_is_refused(configure: Stage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"question 'q\d': \d+ prompt tokens and 1000 ") as caught:
        run(configure(tmp_path, arms="base", max_new_tokens=1000))
    assert "--distractors" in caught.value.hint
    assert not (tmp_path / "manifest.json").exists()


def test_further_adapters_are_arms(configure: Stage, tiny_adapter: Path, tmp_path: Path) -> None:
    further = ",".join(f"{name}={tiny_adapter}" for name in ("again", "b-4bit"))
    result = run(configure(tmp_path / "out", arms="base,raft", adapters=further))
    arms = samples_of(tmp_path / "out")
    assert list(arms) == ["base", "raft", "raft:again", "raft:b-4bit"]
    answers = [[sample.generation for sample in arms[name]] for name in list(arms)[1:]]
    assert answers[0] == answers[1] == answers[2]
    pairs = {(item.arm, item.baseline) for item in result.comparisons}
    assert pairs == {("raft", "base"), ("raft:again", "base"), ("raft:b-4bit", "base")}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "RAFT again, 32-bit" in page


def test_arms_of_the_same_weights_share_a_model(
    configure: Stage, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts belong to arms: the same model, asked in three ways, is loaded once."""
    from components.eval import engines

    loaded: list[str] = []
    load = engines.load_model

    def counting(source: str, *arguments: Any) -> Any:
        loaded.append(source)
        return load(source, *arguments)

    monkeypatch.setattr(engines, "load_model", counting)
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
    ("changes", "problem"),
    [
        ({"arms": "base,lora"}, "unknown arm 'lora' (allowed: base | base-4bit | base-rag | "),
        ({"arms": "[]"}, "unknown arm '' (allowed: base | "),
        ({"oracle": "middle"}, "unknown place 'middle' (allowed: present | absent | first | last)"),
        ({"distractors": "0,-2"}, "-2 is too small (allowed: whole numbers >= -1)"),
        ({"distractors": "many"}, "--distractors"),
        ({"distractors": ""}, "--distractors"),
        ({"engine": "tgi"}, "auto | transformers | vllm"),
        ({"task": "squad"}, "unknown data set 'squad' (allowed: apibench | hotpotqa | neutral"),
        ({"retrieve": "bm25:5"}, "--retrieve: --documents is missing"),
        ({"retrieve": "dense:5", "documents": "d"}, "--retrieve 'dense:5' (allowed: for example"),
        ({"retrieve": "bm25:5", "documents": "d", "oracle": "absent"}, "apply only to"),
        ({"arms": "dsf-rag", "adapter": ""}, "--arms dsf-rag: its adapter is not given; add "),
        ({"arms": "base-examples"}, "--arms base-examples: the training rows that it shows are "),
        ({"adapters": "dsf"}, "'dsf' is no NAME=PATH"),
        ({"adapters": "a=x,a=y"}, "a name is given twice"),
        ({"adapters": "dsf=ftp://x"}, "ftp:// is not read here"),
        ({"questions": ""}, "--questions is missing: give it a file, or --dataset a folder"),
    ],
)
def test_bad_settings_are_named(
    configure: Stage, tmp_path: Path, changes: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(tmp_path, **changes)
    assert problem in str(caught.value)


@pytest.mark.parametrize("value", [3, "3", "[3]", [3], "3,3"])
def test_one_number_of_distractors_is_a_list_of_one(
    configure: Stage, tmp_path: Path, value: object
) -> None:
    assert configure(tmp_path, distractors=value).distractors == (3,)


def test_a_missing_input_is_told_with_its_flag(configure: Stage, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = {
        "quantization": (tmp_path / "empty", "empty/quantization.json: No such file"),
        "questions": (tmp_path / "nope.json", "nope.json: No such file"),
        "adapters": (f"dsf={tmp_path}/nope", "nope: no such file or folder"),
    }
    for flag, (path, problem) in wrong.items():
        with pytest.raises(DataError, match=problem):
            arms = "dsf" if flag == "adapters" else "base"
            run(configure(tmp_path / "out", arms=arms, **{flag: str(path)}))
    with pytest.raises(DataError, match="empty/validation.jsonl: No such file") as caught:
        run(configure(tmp_path / "out", questions=str(tmp_path / "empty")))
    assert caught.value.hint.startswith("--questions takes a file, a folder of raft generate, or ")


def test_without_questions_the_validation_rows_are_asked(
    configure: Stage, texts: Path, tmp_path: Path
) -> None:
    config = by_rules(texts, tmp_path / "d")
    generate.run(config)
    (row,) = read_jsonl(tmp_path / "d" / "validation.jsonl", RaftRow)
    settings = {"dataset": str(tmp_path / "d"), "arms": "base"}
    result = run(configure(tmp_path / "rows", questions="", **settings))
    (sample,) = samples_of(tmp_path / "rows")["base"]
    assert (sample.question, sample.gold) == (row.question, [row.answer])
    assert result.warnings[0].startswith("Rules wrote these questions")
    result = run(configure(tmp_path / "questions", **settings))
    assert len(samples_of(tmp_path / "questions")["base"]) == 6, "questions win"
    assert not result.warnings[0].startswith("Rules")
