"""The parameters of a run, checked by the config classes of the stages that they reach."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ConfigError
from pipelines.parameters import check_parameters, load, read_parameters
from pipelines.trials import completed
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import INPUTS, PIPELINE, Leave

STUDY = PIPELINE.with_name("study.yaml")
Refused = Callable[..., str]


@pytest.fixture
def refused(leave: Leave) -> Refused:
    """What `raft submit` says of parameters, before it asks a server that does not answer."""

    def run(*arguments: object) -> str:
        server = ("--pipeline", PIPELINE, "--host", "http://127.0.0.1:1")
        code, out, err = leave("submit", *arguments, *server)
        assert (code, out) == (2, "")
        assert "does not answer" not in err
        return err

    return run


def checked(path: Path, values: dict[str, Any], pipeline: Path = PIPELINE) -> dict[str, Any]:
    """The typed values of a file with these values and the inputs that have no default."""
    path.write_text(yaml.safe_dump(INPUTS | values, sort_keys=False))
    return check_parameters(load(pipeline), *read_parameters(path))


def test_wrong_parameters_are_named_with_their_lines(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(
        "question: gs://bucket/questions.json\n"
        "documents: 7\n"
        "rank: many\n"
        "epochs: .inf\n"
        "oracle_probability: 1.5\n"
        "gate: yes\n"
        "seed: 1.5\n"
    )
    err = refused("--parameters", path, "--set", "alpha=0")
    for complaint in (
        f"{path}:1: question: unknown parameter; did you mean questions? (allowed: alpha, ",
        f"{path}:2: documents 7: Input should be a valid string",
        f"{path}:3: rank 'many' (allowed: a whole number, >= 1, <= 512)",
        f"{path}:4: epochs inf (allowed: a number, ",
        f"{path}:5: oracle_probability 1.5 (allowed: a number, >= 0, <= 1)",
        f"{path}:6: gate True (allowed: ",
        f"{path}:7: seed 1.5 (allowed: a whole number, >= 0, ",
        "--set: alpha '0' (allowed: a whole number, >= 1",
        "teacher is missing",
        f"{PIPELINE} opens with all inputs",
    ):
        assert complaint in err
    assert "documents is missing" not in err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rank: 8\nrank: 9\n", "2: rank is written twice, first in line 1"),
        ("- rank\n", "holds no mapping"),
        ("8: rank\n", "1: 8: unknown parameter"),
        ("rank: [8\n", "2: not YAML"),
        ("when: 2024-99-99\n", "1: 2024-99-99: month must be in 1..12"),
        ("", "documents is missing"),
    ],
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path, refused: Refused, text: str, complaint: str
) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(text)
    assert complaint in refused("--parameters", path)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("rank", "Write --set name=value"),
        ("documents=/local/d", "documents '/local/d': the cluster cannot read it (allowed: gs://"),
        ("documents=docs", "documents 'docs': the cluster cannot read it"),
        ("questions=dev.json", "questions 'dev.json': the cluster cannot read it"),
        ("base_model=./llama", "base_model './llama': the cluster cannot read it"),
        ("teacher=openai", "generate: --teacher-endpoint is missing: --teacher openai needs it"),
        (
            'arms=["base", "dsf"]',
            "arms: dsf needs an adapter trained as dsf, and target",
        ),
        ("gpu=a200", "gpu 'a200' (allowed: a100-40gb | a100-80gb | h100 | h200 | l4)"),
        ("huggingface_secret=", "huggingface_secret '': String should match"),
        ("teacher_secret=My_Key", "teacher_secret 'My_Key': String should match"),
        ("node_selector=l4", "node_selector 'l4': not JSON"),
        ("node_selector=[]", "node_selector '[]': Input should be a valid dictionary"),
        ("train_gpus=two", "train_gpus 'two' (allowed: for example 2)"),
        ("state=/var/state", "state '/var/state': the cluster cannot read it (allowed: gs://"),
        ("memory=64GB", "memory '64GB' (allowed: for example 64Gi)"),
        ("memory=200Gi", "eval with memory 200Gi: 200Gi, which a node with 1 nvidia-tesla-a100"),
        ("train_gpus=32", "train with train_gpus 32: 32, more than any machine has (a2-megagpu-1"),
        ("train_gpus=-1", "train_gpus '-1' (allowed: for example 2)"),
        ('node_selector={"cloud.google.com/gke-accelerator": "nvidia-a200"}', "is no GPU of GKE"),
        ('node_selector={"pool": 1}', "node_selector {'pool': 1}: Input should be a valid string"),
        ('tolerations=[{"effect": "NoSched"}]', "tolerations [{'effect': 'NoSched'}]: Input shou"),
    ],
)
def test_a_setting_that_a_stage_or_the_cluster_would_refuse(
    setting: str, complaint: str, refused: Refused
) -> None:
    others = [f"--set={name}={value}" for name, value in INPUTS.items()]
    assert complaint in refused(*others, "--set", setting)


def test_the_target_decides_which_arms_can_be_asked(tmp_path: Path) -> None:
    path, answer = tmp_path / "parameters.yaml", {"target": "answer"}
    arms = ["base", "raft-no-reasoning"]
    assert checked(path, answer | {"arms": arms})["arms"] == arms
    assert checked(path, answer)["target"] == "answer", "by default the arms follow"
    with pytest.raises(ConfigError, match="arms: raft needs .* this one raft-no-reasoning"):
        checked(path, answer | {"arms": ["base", "raft"]})
    dsf = {"base_model": "m/m", "target": "answer", "keep_oracle": 0.0, "max_distractors": 0}
    trials = [dsf | {"arms": ["dsf"]}, dsf | {"arms": ["dsf", "raft"]}]
    with pytest.raises(ConfigError, match=r"trials\[1\].arms: raft needs .* this one dsf") as error:
        checked(path, {"trials": trials}, STUDY)
    assert "trials[0]" not in str(error.value)


def test_a_teacher_on_this_machine_is_refused(refused: Refused) -> None:
    others = INPUTS | {"teacher": "openai", "teacher_model": "m"}
    words = [f"--set={name}={value}" for name, value in others.items()]
    err = refused(*words, "--set", "teacher_endpoint=http://localhost:8000/v1")
    assert "teacher_endpoint http://localhost:8000/v1: in a pod, localhost is the pod itself" in err


def test_text_becomes_what_the_pipeline_declares(tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    path.write_text('{\n\t"rank": 8,\n\t"learning_rate": 1e-4,\n\t"epochs": 2\n}\n')
    settings = (
        "rank=16", "documents=gs://b/a=b", "teacher=extractive", 'node_selector={"a": "b"}',
    )  # fmt: skip
    given, places = read_parameters(path, settings)
    assert (places["epochs"], places["rank"]) == (f"{path}:4", "--set")
    values = check_parameters(load(PIPELINE), given, places)
    assert values == {
        "rank": 16, "learning_rate": 1e-4, "epochs": 2.0, "documents": "gs://b/a=b",
        "teacher": "extractive", "node_selector": {"a": "b"},
    }  # fmt: skip
    assert isinstance(values["epochs"], float)


def test_a_parameter_is_followed_into_a_loop(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4: max_questions -1 "):
        checked(tmp_path / "parameters.yaml", {"max_questions": -1}, STUDY)


TRIAL = {
    "base_model": "a/b", "rank": 8, "alpha": 8, "learning_rate": 1e-4, "target_modules": ["q_proj"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("trials", "complaint"),
    [
        ([TRIAL, TRIAL | {"rank": 0}], "trials[1].rank 0 (allowed: a whole number"),
        ([TRIAL | {"learning_rate": "fast"}], "trials[0].learning_rate 'fast' (allowed: a number"),
        ([TRIAL | {"ranks": 3}], "trials[0].ranks: unknown field; did you mean rank? (allowed: "),
        ([{"rank": 8}], "trials[0]: base_model is missing"),
        ([TRIAL | {"target": "both"}], "trials[0].target 'both' (allowed: reasoning | answer)"),
        ([TRIAL | {"arms": ["lora"]}], "trials[0].arms ['lora']: unknown arm 'lora' (allowed: "),
        ([TRIAL | {"tested_distractors": [-2]}], "trials[0].tested_distractors [-2]: -2 is too "),
        ([TRIAL | {"keep_oracle": 1.5}], "trials[0].keep_oracle 1.5 (allowed: a number, >= 0"),
        ([7], "trials[0] 7: not an object"),
        ("[{", "trials[0] '[{': not an object"),
    ],
)
def test_every_trial_of_a_study_is_looked_at(trials: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path / "parameters.yaml", {"trials": trials}, STUDY)
    assert f"{tmp_path / 'parameters.yaml'}:4: trials[" in str(caught.value)
    assert complaint in str(caught.value)


def test_what_a_trial_leaves_out_has_the_default_of_its_setting(tmp_path: Path) -> None:
    values = checked(tmp_path / "parameters.yaml", {"trials": [TRIAL]}, STUDY)
    assert values["trials"] == [
        {
            **TRIAL, "target": "reasoning", "keep_oracle": 1.0, "max_distractors": -1,
            "arms": ["base", "raft", "base-4bit", "raft-4bit"], "tested_distractors": [-1],
        }
    ]  # fmt: skip


TEACHER = {"teacher": "openai", "teacher_endpoint": "http://t:8000/v1", "teacher_model": "llama"}
OTHERS: dict[str, Any] = {
    "documents": "gs://b/other", "questions": "gs://b/other.json", "base_model": "gs://b/model",
    "base_revision": "v2",
    **TEACHER,
    "max_chunks": 7, "questions_per_chunk": 2, "distractors": 5,
    "oracle_probability": 1.0, "rank": 16, "alpha": 32, "learning_rate": 1e-4, "epochs": 1.5,
    "gate": "stop", "state": "gs://b/state", "max_tokens": 2048, "load_in_4bit": True, "gpu": "l4",
    "huggingface_secret": "team", "teacher_secret": "team-teacher",
    "max_questions": 9, "seed": 3, "train_gpus": 2, "teacher_gpus": 2, "teacher_max_cost": 1.5,
    "memory": "80Gi",
    "trials": [completed(TRIAL)], "target": "answer",
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}, "arms": ["base", "raft"],
}  # fmt: skip


@pytest.mark.parametrize("path", [PIPELINE, STUDY], ids=["raft", "study"])
def test_every_inputs_default_and_another_legal_value_pass(path: Path, tmp_path: Path) -> None:
    pipeline = load(path)
    checked(tmp_path / "defaults.yaml", pipeline.defaults, path)
    for name in pipeline.inputs:
        needed = TEACHER if name in TEACHER else {}
        values = checked(tmp_path / "other.yaml", needed | {name: OTHERS[name]}, path)
        assert str(values[name]) == str(OTHERS[name])


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (REPOSITORY / "none.yaml", "No such file"),
        (REPOSITORY / "k8s" / "base" / "train.yaml", "not a compiled pipeline"),
    ],
)
def test_what_is_not_a_pipeline(path: Path, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(path)
