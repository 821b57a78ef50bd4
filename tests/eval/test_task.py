"""The lm-eval tasks as the stock harness loads and runs them, and the hub's form of questions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ConfigError
from components.core.raft_form import instruction
from components.core.records import Question
from components.core.storage import put
from components.eval import questions
from components.eval.config import EvalConfig
from components.eval.eval import run
from components.eval.tasks.hotpotqa import task
from tests.conftest import REPOSITORY
from tests.eval.conftest import make_question
from tests.gcs import BUCKET, emulator

FOLDER = Path(task.__file__).parent
NAMES = ["hotpotqa_closed", "hotpotqa_raft", "hotpotqa_rag"]


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


def ours(number: int, distractors: int = -1) -> dict[str, Any]:
    return questions.show(Question.model_validate(make_question(number)), distractors).model_dump()


def test_the_hubs_rows_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*names: str, split: str) -> Any:
        asked.append((*names, split))
        return datasets.Dataset.from_list([hub_row(number) for number in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = task.load()["validation"]
    assert asked == [("hotpotqa/hotpot_qa", "distractor", "validation")]
    assert list(rows) == [ours(number) for number in range(3)]


def test_questions_may_lie_in_a_bucket(
    questions_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulator() as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        uri = f"gs://{BUCKET}/dev.json"
        put(questions_file.read_text(encoding="utf-8"), uri)
        rows = task.load(uri, distractors=1, max_questions=3, version=1.0)["validation"]
    assert len(rows) == 3 and all(len(row["documents"]) == 2 for row in rows)


def test_a_place_for_the_oracle_that_is_none(questions_file: Path) -> None:
    with pytest.raises(ConfigError, match="oracle 'middle' .allowed: present | absent"):
        task.load(str(questions_file), oracle="middle")  # type: ignore[arg-type]


def test_the_prompt_is_that_of_training() -> None:
    assert task.prompt(ours(0, distractors=0)) == instruction(
        ["Ada0 was born in Kelden 0. She paints."], "Where was Ada0 born?"
    )


def test_a_generation_is_judged() -> None:
    judged = task.process_results({"answer": "Kelden"}, ["In Kelden. <ANSWER>: the Kelden"])
    assert judged == {
        "f1": 1.0,
        "em": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "contains": 1.0,
        "unanswered": 0.0,
    }
    plain = task.process_plain_results({"answer": "Kelden"}, ["Kelden"])
    assert (plain["f1"], plain["unanswered"]) == (1.0, 0.0)
    assert task.process_plain_results({"answer": "Kelden"}, [" "])["unanswered"] == 1.0


def test_the_stock_harness_finds_the_tasks() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(FOLDER.parent), include_defaults=False)
    assert sorted(manager.all_subtasks) == NAMES


def test_defaults_agree_with_the_stage() -> None:
    # `!function` is the harness's own tag; what it names is not needed here.
    text = (FOLDER / "_hotpotqa.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text.replace("!function ", ""))
    assert settings["generation_kwargs"]["max_gen_toks"] == EvalConfig.default("max_new_tokens")
    assert [metric["metric"] for metric in settings["metric_list"]] == list(
        task.process_results({"answer": "x"}, ["y"])
    )


@pytest.mark.timeout(300)
def test_stock_lm_eval_and_the_stage_give_the_same_scores(
    tiny_model: Path, tiny_adapter: Path, questions_file: Path, tmp_path: Path
) -> None:
    """All three tasks with the adapter: the stock command line, then the stage.

    The model is without generation settings of its own: the stock harness would follow them (a
    repetition penalty, say), the stage replaces them.
    """
    limit, batch = 12, 3
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 5], "pad_token_id": 0}')
    asked = {"questions": str(questions_file), "distractors": 1}
    stock = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "run",
            "--include_path", str(FOLDER.parent), "--tasks", *NAMES, "--apply_chat_template",
            "--model", "hf", "--batch_size", str(batch), "--device", "cpu",
            "--model_args", f"pretrained={model},peft={tiny_adapter},dtype=float32",
            "--gen_kwargs", f"max_gen_toks={limit}", "--metadata", json.dumps(asked),
            "--output_path", str(tmp_path / "stock.json"), "--log_samples",
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )  # fmt: skip
    assert stock.returncode == 0, stock.stderr[-3000:]
    (written,) = tmp_path.glob("stock*.json")
    scores = json.loads(written.read_text(encoding="utf-8"))["results"]
    for name in NAMES:
        evaluation = run(
            EvalConfig.parse(
                {
                    "task": name,
                    "questions": str(questions_file),
                    "base_model": str(model),
                    "adapter": str(tiny_adapter),
                    "output": str(tmp_path / name),
                    "arms": "raft",
                    "distractors": 1,
                    "max_new_tokens": limit,
                    "batch_size": batch,
                    "dtype": "float32",
                    "resamples": 100,
                }
            )
        )
        (arm,) = evaluation.arms
        for metric in ("f1", "em", "precision", "recall", "contains", "unanswered"):
            assert getattr(arm, metric) == pytest.approx(scores[name][f"{metric},none"], abs=1e-6)
        logged = [
            json.loads(line)
            for path in tmp_path.glob(f"samples_{name}_*.jsonl")
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        mine = (tmp_path / name / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        said = {sample["question_id"]: sample["generation"] for sample in map(json.loads, mine)}
        assert {entry["doc"]["id"]: entry["resps"][0][0] for entry in logged} == said
        assert len(said) == 6
