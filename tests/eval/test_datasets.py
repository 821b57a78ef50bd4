"""Data sets: their forms, and their figures held to what the official scripts gave."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError, DataError
from components.core.records import Evaluation, Sample, read_jsonl
from components.eval.eval import run
from components.eval.harness import accuracy_and_macro_f1, judge, score_generation
from components.eval.questions import read_examples
from components.eval.tasks.apibench import apibench
from components.eval.tasks.pubmedqa import pubmedqa
from tests.conftest import DATA, MORE_DATA, REPOSITORY
from tests.eval.conftest import Stage, make_question

PUBMEDQA = {
    DATA / "pubmedqa": {"dev.json": 12},
    MORE_DATA / "pubmedqa": {"dev.json": 200, "test.json": 100},
}
"""Rows by file; the golden predictions are the same in both folders."""
APIBENCH = {
    DATA / "apibench": (37, {"torchhub_eval.json": 33}),
    MORE_DATA / "apibench": (120, {"torchhub_eval.json": 186, "torchhub_train.json": 200}),
}
"""Golden responses, and questions by file."""
APIS = [
    {"domain": "Video", "api_call": "torch.hub.load(repo_or_dir='a/videos', model='slow')"},
    {"domain": "Video", "api_call": "torch.hub.load(repo_or_dir='a/videos', model='fast')"},
    {"domain": "Speech", "api_call": "torch.hub.load(repo_or_dir='b/talk', model='tts')"},
]
WISH = {"code": "###Instruction: Classify videos.\n###Output: {…}", "api_data": APIS[0]}
ABSTRACT = {
    "QUESTION": "Does tea help?", "CONTEXTS": ["Tea was drunk.", "It helped."],
    "final_decision": "yes", "LABELS": ["A", "B"],
}  # fmt: skip
LINE = {"id": 7, "question": "Where?", "answers": ["Kelden", "Old Kelden"]}


def written(path: Path, *rows: object, keyed: bool = False) -> Path:
    lines = (json.dumps(rows[0], indent=1),) if keyed else map(json.dumps, rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- equal to the official scripts -------------------------------------------------------------


@pytest.mark.parametrize("folder", [path for path in PUBMEDQA if path.exists()])
def test_pubmedqa_as_the_official_script(folder: Path) -> None:
    rows = lines(folder / "metric_golden.jsonl")
    golden = json.loads((folder / "metric_golden.json").read_text(encoding="utf-8"))
    change = {
        "all": lambda row: row["prediction"],
        "all_first_word": lambda row: re.match(r"\s*(\w*)", row["prediction"].lower())[1],
        "always_yes": lambda row: "yes",
        "truth": lambda row: row["answer"],
        "exact_labels": lambda row: row["prediction"],
    }
    assert len(golden["runs"]) == len(change) and len(rows) == 60
    for expected in golden["runs"]:
        chosen = [
            row
            for row in rows
            if expected["run"] != "exact_labels" or row["form"] in ("right", "wrong")
        ]
        truth = [row["answer"] for row in chosen]
        figures = accuracy_and_macro_f1(truth, list(map(change[expected["run"]], chosen)))
        assert len(chosen) == expected["n"]
        assert figures["accuracy"] == pytest.approx(expected["accuracy_exact"], abs=1e-12)
        assert figures["macro F1"] == pytest.approx(expected["macro_f1_exact"], abs=1e-12)
    for row in rows:
        alone = accuracy_and_macro_f1([row["answer"]], [row["prediction"]])
        assert alone["accuracy"] == row["correct"]
    for name, count in PUBMEDQA[folder].items():
        assert len(read_examples(folder / name, "pubmedqa")) == count


@pytest.mark.parametrize("folder", [path for path in APIBENCH if path.exists()])
def test_the_api_bench_as_the_official_script(folder: Path) -> None:
    questions = lines(folder / "torchhub_eval.json")
    apis = apibench.read_apis(str(folder / "torchhub_api.jsonl"))
    rows = lines(folder / "ast_golden.jsonl")
    for row in rows:
        domain = questions[row["question_id"] - 1]["api_data"]["domain"]
        judged = apibench.judge(row["text"], domain, apis)
        assert judged == (row["correct"], row["hallucination"]), row["text"]
    responses, files = APIBENCH[folder]
    assert len(rows) == responses
    for name, count in files.items():
        examples = read_examples(folder / name, "apibench")
        assert len(examples) == count and all(example.question for example in examples)


# ---- the same on rows of our own ---------------------------------------------------------------


def test_pubmedqa_is_labelled_by_the_first_word() -> None:
    texts = ["It did. <ANSWER>: Yes.", "No, it did not", "perhaps", "<ANSWER>: maybe\n"]
    assert [pubmedqa.label(text) for text in texts] == ["yes", "no", "perhaps", "maybe"]
    figures = pubmedqa.figures([(["yes"], text) for text in texts])
    # yes: precision 1, recall 1/4; no, maybe and perhaps are classes that are never right
    assert figures == {"accuracy": 0.25, "macro F1": pytest.approx(0.4 / 4)}
    expected = {"dataset": "pubmedqa", "answers": ["yes"], "marker": True}
    assert score_generation(expected, [texts[0]]) == {
        "f1": 1.0, "em": 1.0, "precision": 1.0, "recall": 1.0, "contains": 1.0, "unanswered": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "right", "invented"),
    [
        ("<ANSWER>: torch.hub.load('a/videos', 'fast', pretrained=True)", True, False),
        ("api_call: torch.hub.load('a/videos', 'slow'), api_provider: P (x)", True, False),
        ("{'api_call': 'torch.hub.load('a/videos', 'slow')', 'api_provider': 'P'}", False, True),
        ("<ANSWER>: torch.hub.load('b/talk', 'tts')", False, False),
        ("<ANSWER>: torch.hub.load('c/none', 'x')", False, True),
        ("I do not know.", False, True),
    ],
)
def test_a_call_is_looked_up(tmp_path: Path, text: str, right: bool, invented: bool) -> None:
    corpus = written(tmp_path / "apis.jsonl", *APIS)
    expected = {"answers": [APIS[0]["api_call"]], "marker": True, "corpus": str(corpus)}
    scores = judge({"dataset": "apibench", **expected}, text)
    assert (scores["f1"], scores["hallucination"]) == (right, invented)


def test_forms_become_examples(tmp_path: Path) -> None:
    (abstract,) = read_examples(written(tmp_path / "p", {"108": ABSTRACT}, keyed=True), "pubmedqa")
    assert (abstract.id, abstract.answers, abstract.golden) == ("108", ["yes"], [0, 1])
    assert abstract.question == "Does tea help? Answer yes, no or maybe."
    hub = {
        "pubid": 108, "question": "Does tea help?", "final_decision": "yes",
        "context": {"contexts": ABSTRACT["CONTEXTS"], "labels": ["A", "B"]},
    }  # fmt: skip
    again = {**hub, "pubid": 109}
    examples = read_examples(written(tmp_path / "h", hub, again), "pubmedqa")
    assert examples == [abstract, abstract.model_copy(update={"id": "109"})]
    (wish,) = read_examples(written(tmp_path / "a", WISH), "apibench")
    assert wish.question == "Classify videos." and wish.answers == [APIS[0]["api_call"]]
    row = {**LINE, "documents": ["x", "Born in Kelden."], "golden": [1], "source": "NQ"}
    (line,) = read_examples(written(tmp_path / "n", row), "neutral")
    assert (line.id, line.answers, line.golden) == ("7", ["Kelden", "Old Kelden"], [1])


@pytest.mark.parametrize(
    ("dataset", "row", "problem"),
    [
        ("neutral", {"question": "?", "text": "x"}, "id: Field required; answers: Field required "
         "(the row has the fields question, text)"),
        ("neutral", {**LINE, "answers": []}, "an answer is empty or missing"),
        ("neutral", {**LINE, "answers": ["a", " "]}, "an answer is empty or missing"),
        ("neutral", LINE, "no documents; --retrieve bm25:5 --documents FOLDER looks them up"),
        ("neutral", {**LINE, "documents": ["x"]}, "no oracle document with text"),
        ("neutral", {**LINE, "documents": ["x"], "golden": [1]}, "no oracle document with text at"),
        ("neutral", [1], "the row is of type list, not an object"),
        ("pubmedqa", {**ABSTRACT, "id": "1", "final_decision": "perhaps"}, "final_decision: "),
        ("pubmedqa", make_question(0), "the row has the fields _id, question, answer, supporting"),
        ("hotpotqa", LINE, "the row has the fields id, question, answers"),
        ("apibench", {"code": "", "api_data": APIS[0]}, "the id is empty"),
    ],
)  # fmt: skip
def test_another_form_is_named_with_what_it_has(
    tmp_path: Path, dataset: str, row: object, problem: str
) -> None:
    path = written(tmp_path / "questions.jsonl", [row])
    with pytest.raises(DataError) as caught:
        read_examples(path, dataset)
    assert "row 1: " in str(caught.value) and problem in str(caught.value)
    assert "format is described at" in caught.value.hint or "A line is {" in caught.value.hint


def test_pubmedqa_is_two_files_of_sixty_lines() -> None:
    files = [*(REPOSITORY / "components" / "eval" / "tasks" / "pubmedqa").glob("pubmedqa.*")]
    assert len(files) == 2
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 60


# ---- through the stage -------------------------------------------------------------------------


def test_official_figures_are_in_the_report(configure: Stage, tmp_path: Path) -> None:
    rows = {
        str(number): {**ABSTRACT, "QUESTION": f"Does tea {number} help?"} for number in range(3)
    }
    questions = written(tmp_path / "pubmed.json", rows, keyed=True)
    result = run(
        configure(tmp_path / "out", task="pubmedqa", questions=str(questions), arms="base,raft")
    )
    assert result.metric == "accuracy"
    for arm in result.arms:
        assert arm.official["accuracy"] == arm.f1 and "macro F1" in arm.official
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "by the data set's own script: accuracy" in page.replace("&#39;", "'")


def test_the_api_bench_needs_its_apis(configure: Stage, tmp_path: Path) -> None:
    settings = {
        "task": "apibench", "questions": str(written(tmp_path / "eval.json", WISH)),
        "arms": "base", "max_new_tokens": 4,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="--documents is missing, the file of the APIs"):
        run(configure(tmp_path / "out", **settings))
    apis = written(tmp_path / "apis.jsonl", *({"api_name": "x", **api} for api in APIS))
    result = run(configure(tmp_path / "out", **settings, documents=str(apis), retrieve="bm25:2"))
    assert result.arms[0].official == {"hallucination": 1.0}


def test_documents_are_looked_up(configure: Stage, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "texts" / f"{number}.txt").write_text(
            f"Ada{number} was born in Kelden {number}. She paints."
        )
    rows = [
        {
            "id": number, "question": f"Where was Ada{number} born?", "answers": ["Kelden"],
            "documents": [f"Ada{number} was born in Kelden {number}.  She paints.", "Elsewhere."],
            "golden": [0, 1][: 1 + number % 2],
        }
        for number in range(4)
    ]  # fmt: skip
    rows.append({"id": "none", "question": "Who was born?", "answers": ["Ada"]})
    questions = written(tmp_path / "questions.jsonl", *rows)
    settings = {
        "task": "neutral", "questions": str(questions), "arms": "base", "max_new_tokens": 4,
        "retrieve": "bm25:2", "documents": str(tmp_path / "texts"),
    }  # fmt: skip
    result = run(configure(tmp_path / "out", **settings))
    samples = list(read_jsonl(tmp_path / "out" / "samples.jsonl", Sample))
    assert [len(sample.documents) for sample in samples] == [2] * 5
    assert [len(sample.oracle_indices) for sample in samples] == [1, 1, 1, 1, 0]
    assert (result.retrieve, result.recall) == ("bm25:2", 0.75)  # 1, 1/2, 1, 1/2
    assert result.recall_ci and result.recall_ci[0] <= 0.75 <= result.recall_ci[1]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Documents found by bm25:2: 75.0% of the golden ones" in page
    assert isinstance(result, Evaluation)
