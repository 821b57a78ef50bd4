"""The post's and the paper's comparisons: as parameters of the study, and a slice of it here."""

import re
from pathlib import Path

import pytest
import yaml

from components.core.errors import ConfigError
from components.report.comparison import find_trials
from components.report.results import read
from pipelines.demo.demo import MODEL
from pipelines.parameters import check_parameters, load, read_parameters
from pipelines.reproduce import Scale, reproduce, run_trials
from pipelines.trials import FIELDS, paper_trials, post_trials
from tests.conftest import REPOSITORY

STUDY = REPOSITORY / "pipelines" / "study.yaml"
OTHERS = (
    "documents=gs://b/d", "questions=gs://b/q.json", "teacher=openai",
    "teacher_endpoint=http://t:8000/v1", "teacher_model=llama",
)  # fmt: skip


@pytest.mark.parametrize("study", ["post", "paper"])
def test_the_parameters_are_the_studys(study: str, tmp_path: Path) -> None:
    reproduce(study, tmp_path)
    path = tmp_path / "parameters.yaml"
    values = check_parameters(load(STUDY), *read_parameters(path, OTHERS))
    assert len(values["trials"]) == {"post": 12, "paper": 13}[study]
    assert all(trial.keys() == FIELDS.keys() for trial in values["trials"])
    assert "raft submit --pipeline pipelines/study.yaml" in path.read_text().split("trials:")[0]
    assert "&id" not in path.read_text(), "a reader edits single trials"


def test_the_trials_are_those_of_the_tables_and_figures() -> None:
    post = {(one["base_model"], one["rank"], *one["target_modules"]) for one in post_trials()}
    assert len(post) == 3 * 2 * 2
    paper = paper_trials()
    assert {arm for trial in paper for arm in trial["arms"]} == {
        "base-closed", "base-rag", "base", "base-examples", "raft", "raft-no-reasoning", "dsf",
        "dsf-rag",
    }  # fmt: skip
    assert {one["keep_oracle"] for one in paper if one["target"] == "reasoning"} == {
        0.0, 0.2, 0.4, 0.6, 0.8, 1.0,
    }  # fmt: skip
    grid = {
        (one["max_distractors"], tested)
        for one in paper
        for tested in one["tested_distractors"]
        if len(one["tested_distractors"]) > 1
    }
    assert len(grid) == 25


@pytest.mark.timeout(900)
def test_a_slice_of_the_paper_runs_here(tmp_path: Path) -> None:
    """Three trainings, on little of the world: RAFT, without reasoning, and DSF."""
    trials = paper_trials(str(MODEL))[:3]
    few = Scale(documents=30, unseen_documents=40, questions=8)
    results = run_trials(trials, tmp_path / "out", 5, few)
    assert [arm.name for result in results for arm in result.arms] == [
        "base-closed", "base-rag", "base", "base-examples", "raft", "raft-no-reasoning", "dsf",
        "dsf-rag",
    ]  # fmt: skip
    assert {result.distractors for result in results} == {4}
    found = find_trials(read((str(tmp_path / "out" / "trials"),)))
    assert [trial.training and trial.training.kind for trial in found] == [
        "raft", "raft-no-reasoning", "dsf",
    ]  # fmt: skip
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    table = re.search(r"<table>.*?</table>", page, re.DOTALL)
    assert table and "<th>method</th>" in table[0]
    rows = re.findall(r"<tr><td>(.*?)</td>", table[0])
    assert rows == sorted(arm.label for result in results for arm in result.arms)
    again = run_trials(trials, tmp_path / "out", 5, few)
    assert again == results, "it resumes, and makes nothing twice"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        run_trials(trials, tmp_path / "mine", 5, few)
    assert yaml.safe_load((tmp_path / "out" / "reproduce.yaml").read_text()) == trials
