"""The lm-eval task of a data set as the stock harness loads and runs it; the hub's questions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core import decoding
from components.core.raft_form import instruction
from components.eval import harness
from components.eval.arms import ARMS, PROMPTS
from components.eval.config import EvalConfig
from components.eval.eval import run
from components.eval.questions import DATASETS, TASKS, ContextLayout, EvalExample, arrange
from components.eval.tasks.hotpotqa import hotpotqa
from tests.conftest import REPOSITORY
from tests.eval.conftest import Stage, make_question


def hub_row(number: int) -> dict[str, Any]:
    """Our question as hotpotqa/hotpot_qa has it."""
    row = make_question(number)
    return {
        "id": row["_id"],
        "question": row["question"],
        "answer": row["answer"],
        "type": row["type"],
        "level": row["level"],
        "supporting_facts": {
            "title": [title for title, _ in row["supporting_facts"]],
            "sent_id": [sentence for _, sentence in row["supporting_facts"]],
        },
        "context": {
            "title": [title for title, _ in row["context"]],
            "sentences": [text for _, text in row["context"]],
        },
    }


def example(number: int, distractors: int = -1) -> EvalExample:
    return arrange(hotpotqa.read(make_question(number)), ContextLayout(distractors, "present"))


def test_the_hubs_rows_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    loaded = []

    def load_dataset(*names: str, split: str) -> Any:
        loaded.append((*names, split))
        return datasets.Dataset.from_list([hub_row(number) for number in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = harness.load_rows("hotpotqa")["validation"]
    assert loaded == [("hotpotqa/hotpot_qa", "distractor", "validation")]
    examples = [example(number) for number in range(3)]
    assert list(rows) == [
        {
            **item.model_dump(),
            "dataset": "hotpotqa",
            "corpus": "",
            "prompt": PROMPTS["raft"].write(item, ()),
            "marker": True,
        }
        for item in examples
    ]


def test_a_file_and_a_layout_are_named_by_metadata(questions_file: Path) -> None:
    rows = harness.load_rows("hotpotqa", str(questions_file), "rag", distractors=1, version=2.0)
    assert len(rows["validation"]) == 6
    assert all(len(row["documents"]) == 2 for row in rows["validation"])
    assert all(row["prompt"].startswith("Context information") for row in rows["validation"])


def test_the_prompts() -> None:
    item = example(0, distractors=0)
    document, question = "Ada0 was born in Kelden 0. She paints.", "Where was Ada0 born?"
    assert PROMPTS["raft"].write(item, ()) == instruction([document], question)
    assert PROMPTS["question"].write(item, ()) == question
    assert PROMPTS["rag"].write(item, ()) == (
        f"Context information is below.\n\n{document}\n\nGiven the context information and not "
        f"prior knowledge, answer the question in a few words.\nQuestion: {question}\nAnswer:"
    )
    assert PROMPTS["closed"].write(item, ()) == (
        f"Answer the question in a few words.\nQuestion: {question}\nAnswer:"
    )


def test_a_generation_is_judged() -> None:
    expected = {"dataset": "hotpotqa", "answers": ["Kelden"], "marker": True}
    judged = harness.score_generation(expected, ["In Kelden. <ANSWER>: the Kelden"])
    assert judged == {
        "f1": 1.0,
        "em": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "contains": 1.0,
        "unanswered": 0.0,
    }
    expected["marker"] = False
    plain = harness.score_generation(expected, ["Kelden"])
    assert (plain["f1"], plain["unanswered"]) == (1.0, 0.0)
    assert harness.score_generation(expected, [" "])["unanswered"] == 1.0


def test_the_best_of_several_answers_counts() -> None:
    expected = {"answers": ["Kelden", "the town of Kelden"], "marker": False}
    judged = harness.score_answer(expected, "Town of Kelden")
    assert judged["f1"] == judged["em"] == judged["contains"] == 1.0
    other = harness.score_answer(expected, "Old Kelden")
    assert (other["f1"], other["recall"]) == (pytest.approx(2 / 3), 1.0)


def test_a_data_set_may_score_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(expected: dict[str, Any], generation: str) -> dict[str, float]:
        right = float(generation == expected["answers"][0])
        return {"f1": right, "unanswered": float(expected["marker"]), "style": 1.0}

    monkeypatch.setattr(hotpotqa, "score", score, raising=False)
    expected = {"dataset": "hotpotqa", "answers": ["Kelden"], "marker": False}
    assert harness.score_generation(expected, ["Kelden"]) == {"f1": 1.0, "unanswered": 0.0}
    assert harness.judge(expected, "Kelden")["style"] == 1.0


def test_the_stock_harness_finds_the_tasks() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    assert tuple(manager.all_subtasks) == DATASETS
    assert DATASETS == ("apibench", "hotpotqa", "neutral", "pubmedqa")


def test_defaults_agree_with_the_stage() -> None:
    # `!function` is the harness's own tag; what it names is not needed here.
    text = (TASKS / "task.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text.replace("!function ", ""))
    assert settings["generation_kwargs"]["max_gen_toks"] == EvalConfig.default("max_new_tokens")
    scored = harness.score_answer({"answers": ["x"], "marker": True}, "y")
    assert [metric["metric"] for metric in settings["metric_list"]] == list(scored)
    assert tuple(scored) == harness.METRICS


def test_the_registry_is_sound() -> None:
    assert {arm.prompt for arm in ARMS.values()} <= PROMPTS.keys()
    for name, arm in ARMS.items():
        assert arm.name == name and set(arm.baselines) <= ARMS.keys() - {name}
        assert (arm.bits == 4) == name.endswith("-4bit") and ARMS[name.removesuffix("-4bit")]


STOCK_LIMIT, STOCK_BATCH = 12, 3
PROMPT_OF = {"raft": "raft", "raft-rag": "rag", "raft-closed": "closed"}


@pytest.fixture(scope="module")
def without_settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model without generation settings of its own.

    The stock harness would follow them (a repetition penalty, say), the stage replaces them.
    """
    model = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("plain") / "model"))
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 5], "pad_token_id": 0}')
    return model


@pytest.fixture(scope="module")
def stock(
    without_settings: Path, tiny_adapter: Path, questions_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """What the stock command line writes of the adapter, with a task for each prompt."""
    folder = tmp_path_factory.mktemp("stock")
    for arm, prompt in PROMPT_OF.items():
        (folder / f"{arm}.yaml").write_text(
            f"include: {TASKS}/hotpotqa/hotpotqa.yaml\ntask: {arm}\n"
            f"metadata: {{version: 2.0, dataset: hotpotqa, prompt: {prompt}}}\n"
        )
    metadata = {"questions": str(questions_file), "distractors": 1}
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "run",
            "--include_path", str(folder), "--tasks", ",".join(PROMPT_OF),
            "--apply_chat_template",
            "--model", "hf", "--batch_size", str(STOCK_BATCH), "--device", "cpu",
            "--model_args", f"pretrained={without_settings},peft={tiny_adapter},dtype=float32",
            "--gen_kwargs", f"max_gen_toks={STOCK_LIMIT}", "--metadata", json.dumps(metadata),
            "--output_path", str(folder / "stock.json"), "--log_samples",
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arm", PROMPT_OF)
def test_stock_lm_eval_and_the_stage_give_the_same_scores(
    configure: Stage, without_settings: Path, stock: Path, tmp_path: Path, arm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(decoding, "ROUND", STOCK_LIMIT // 3)
    (written,) = stock.glob("stock*.json")
    scores = json.loads(written.read_text(encoding="utf-8"))["results"][arm]
    config = configure(
        tmp_path, base_model=str(without_settings), arms=arm, distractors=1,
        max_new_tokens=STOCK_LIMIT, batch_size=STOCK_BATCH,
    )  # fmt: skip
    (result,) = run(config).arms
    for metric in ("f1", "em", "precision", "recall", "contains", "unanswered"):
        assert getattr(result, metric) == pytest.approx(scores[f"{metric},none"], abs=1e-6)
    (logged,) = stock.glob(f"samples_{arm}_*.jsonl")
    entries = [json.loads(line) for line in logged.read_text(encoding="utf-8").splitlines()]
    mine = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {sample["question_id"]: sample["generation"] for sample in map(json.loads, mine)}
    assert {entry["doc"]["id"]: entry["resps"][0][0] for entry in entries} == answers
    assert len(answers) == 6
