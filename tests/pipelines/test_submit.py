"""`raft submit` with the real kfp client against a small server that checks as the backend does."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ConfigError
from pipelines.cli import main
from pipelines.cluster import kubeflow, submit
from pipelines.cluster.parameters import (
    Compiled,
    UserValue,
    check_parameters,
    load,
    read_parameters,
)
from tests.conftest import REPOSITORY
from tests.pipelines import kfp_server
from tests.pipelines.kfp_server import KfpServer, Refused, Run, check_pipeline, serving
from tests.pipelines.kubernetes_server import kubeconfig

PIPELINE = REPOSITORY / "pipelines" / "raft.yaml"
INPUTS = {"documents": "gs://bucket/documents", "questions": "gs://bucket/questions.json"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    for name in (kubeflow.TOKEN, kubeflow.COOKIES, "KF_PIPELINES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with serving(KfpServer()) as kfp:
        yield kfp


@pytest.fixture
def parameters(tmp_path: Path) -> Path:
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump(INPUTS), encoding="utf-8")
    return path


Leave = Callable[..., tuple[int, str, str]]


@pytest.fixture
def leave(capfd: pytest.CaptureFixture[str]) -> Leave:
    """Exit code, standard output and standard error of a command."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from components.core.progress import console

        console.cache_clear()  # it keeps the standard error of an earlier test
        with pytest.raises(SystemExit) as left:
            main([*map(str, arguments), "--pipeline", str(PIPELINE)])
        return int(left.value.code or 0), *capfd.readouterr()

    return run


def test_a_run_is_started_and_watched_to_its_end(
    server: KfpServer, parameters: Path, leave: Leave
) -> None:
    code, out, err = leave(
        "submit", "--parameters", parameters, "--host", server.url,
        "--set", "rank=16", "--set", "learning_rate=1e-4", "--name", "mine",
        "--pipeline-root", "gs://bucket/root", "--service-account", "runner",
    )  # fmt: skip
    (run,) = server.runs.values()
    assert code == 0, err
    assert out == f"{server.url}/#/runs/details/{run.id}\n"
    assert run.parameters == {**INPUTS, "rank": 16, "learning_rate": 1e-4}
    assert run.request["display_name"] == "mine"
    assert run.request["service_account"] == "runner"
    assert run.request["runtime_config"]["pipeline_root"] == "gs://bucket/root"
    assert [entry["display_name"] for entry in server.experiments] == ["raft"]
    messages = [line.strip() for line in err.splitlines()]
    for step in ("generate", "train", "quantize-check", "eval"):
        assert messages.index(f"{step}: running") < messages.index(f"{step}: succeeded")
    assert "root" not in " ".join(messages[1:]), "Kubeflow's own tasks are not shown"


def test_a_second_run_joins_the_experiment(server: KfpServer, parameters: Path) -> None:
    for _ in range(2):
        submit.submit_run(PIPELINE, parameters, host=server.url, wait=False)
    assert len(server.experiments) == 1
    assert len(server.runs) == 2


@pytest.mark.parametrize("task", ["", "train-driver"], ids=["step", "driver"])
def test_a_failed_run_names_the_step_and_exits_1(
    server: KfpServer, parameters: Path, leave: Leave, task: str
) -> None:
    server.play = kfp_server.fail("train", "CUDA out of memory", task=task)
    code, out, err = leave("submit", "--parameters", parameters, "--host", server.url)
    assert code == 1
    assert "has failed in train\n  train: CUDA out of memory" in err
    assert err.count(out.strip()) == 1, "the link to the logs"
    assert "Traceback" not in err


def test_without_waiting_it_says_how_to_go_on(
    server: KfpServer, parameters: Path, leave: Leave
) -> None:
    server.play = kfp_server.linger
    code, _, err = leave(
        "submit", "--parameters", parameters, "--host", server.url, "--wait", "false"
    )
    (run,) = server.runs.values()
    assert code == 0
    assert f"raft watch {run.id} --host {server.url}" in err
    submit.terminate_run(run.id, host=server.url)
    code, _, err = leave("watch", run.id, "--host", server.url)
    assert code == 1
    assert f"run {run.id} has been cancelled" in err


def test_a_server_that_stumbles_is_waited_for(
    server: KfpServer, parameters: Path, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.play = kfp_server.fail("eval", "no")
    looked = server.look_at

    def stumble(run: Run) -> dict[str, Any]:
        if run.tasks and not server.requests.count("stumbled"):
            server.requests.append("stumbled")
            server.broken = 3
        return looked(run)

    monkeypatch.setattr(server, "look_at", stumble)
    code, _, err = leave("submit", "--parameters", parameters, "--host", server.url)
    assert code == 1
    assert "failed in eval" in err
    assert server.broken == 0


def test_ctrl_c_leaves_the_run_running(server: KfpServer, parameters: Path) -> None:
    server.play = kfp_server.linger
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "submit", "--parameters", parameters,
         "--host", server.url],
        cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if ": running" in line:  # of generate or hardware, whichever the server starts
            process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    (run,) = server.runs.values()
    assert run.state == "RUNNING"
    assert f"raft terminate {run.id} --host {server.url}" in "".join(lines)


def test_the_hook_runs_steps_for_real(server: KfpServer, parameters: Path, leave: Leave) -> None:
    done = threading.Event()

    def execute(run: Run) -> None:
        for task in run.order:
            run.set(task, "SUCCEEDED")
        run.finish("SUCCEEDED")
        done.set()

    server.execute = execute
    assert leave("submit", "--parameters", parameters, "--host", server.url)[0] == 0
    assert done.is_set()


# ---- parameters --------------------------------------------------------------------------------


def test_wrong_parameters_are_named_before_a_server_is_asked(tmp_path: Path, leave: Leave) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(
        "question: gs://bucket/questions.json\n"
        "documents: 7\n"
        "rank: many\n"
        "epochs: .inf\n"
        "oracle_probability: 1.5\n"
        "teacher: yes\n"
        "seed: 1.5\n",
        encoding="utf-8",
    )
    code, out, err = leave(
        "submit", "--parameters", path, "--host", "http://127.0.0.1:1", "--set", "alpha=0"
    )
    assert code == 2
    assert not out
    for complaint in (
        f"{path}:1: question: unknown parameter; did you mean questions? (allowed: alpha, ",
        f"{path}:2: documents 7: Input should be a valid string",
        f"{path}:3: rank 'many' (allowed: a whole number, >= 1, <= 1024)",
        f"{path}:4: epochs inf (allowed: a number, ",
        f"{path}:5: oracle_probability 1.5 (allowed: a number, >= 0, <= 1)",
        f"{path}:6: teacher True (allowed: ",
        f"{path}:7: seed 1.5 (allowed: a whole number, >= 0, ",
        "--set: alpha '0' (allowed: a whole number, >= 1",
        "questions is missing",
        f"{PIPELINE} opens with all inputs",
    ):
        assert complaint in err
    assert "documents is missing" not in err


@pytest.mark.parametrize("name", ["seed", "rank", "epochs"])
def test_true_is_no_number(name: str) -> None:
    """Pydantic takes it for 1."""
    values = {key: UserValue(value, "") for key, value in INPUTS.items()}
    with pytest.raises(ConfigError, match=rf"^here:1: {name} True \(allowed: a [a-z ]*number, >"):
        check_parameters(load(PIPELINE), values | {name: UserValue(True, "here:1")})


def test_json_settings_and_exponents_are_read_as_meant(tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    path.write_text('{\n\t"rank": 8,\n\t"learning_rate": 1e-4,\n\t"epochs": 2\n}\n')
    read = read_parameters(path, ("rank=16", "documents=gs://b/a=b", "questions=gs://b/q"))
    assert read["epochs"].place == f"{path}:4"
    values = check_parameters(load(PIPELINE), read)
    assert values == {
        "rank": 16, "learning_rate": 1e-4, "epochs": 2.0, "documents": "gs://b/a=b",
        "questions": "gs://b/q",
    }  # fmt: skip
    assert isinstance(values["epochs"], float)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rank: 8\nrank: 9\n", "2: rank is written twice, first in line 1"),
        ("- rank\n", "holds no mapping"),
        ("rank: [8\n", "2: not YAML"),
        ("when: 2024-99-99\n", "1: 2024-99-99: month must be in 1..12"),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, leave: Leave, text: str, complaint: str
) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(text)
    code, _, err = leave("submit", "--parameters", path)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err


def test_text_becomes_what_the_pipeline_declares() -> None:
    settings = ("rank=16", "epochs=2", 'node_selector={"a": "b"}')
    read = read_parameters(None, (*settings, "documents=gs://b/d", "questions=gs://b/q"))
    values = check_parameters(load(PIPELINE), read)
    assert values == {
        "documents": "gs://b/d", "questions": "gs://b/q",
        "rank": 16, "epochs": 2.0, "node_selector": {"a": "b"},
    }  # fmt: skip


def test_a_parameter_is_followed_into_a_loop() -> None:
    """The range of a stage holds for a parameter that reaches it through a graph in the graph."""
    inner = {
        "componentRef": {"name": "comp-train"},
        "inputs": {
            "parameters": {
                "rank": {"componentInputParameter": "pipelinechannel--rank"},
                "alpha": {"runtimeValue": {"constant": 8.0}},
                "seed": {"taskOutputParameter": {"producerTask": "generate"}},
            }
        },
    }
    loop = {
        "componentRef": {"name": "comp-loop"},
        "inputs": {
            "parameters": {
                "pipelinechannel--rank": {"componentInputParameter": "rank"},
            }
        },
    }
    kinds = {name: {"parameterType": "NUMBER_INTEGER"} for name in ("rank", "seed")}
    specification = {
        "components": {
            "comp-loop": {"dag": {"tasks": {"train": inner}}},
            "comp-train": {"executorLabel": "exec-train"},
        },
        "deploymentSpec": {
            "executors": {"exec-train": {"container": {"command": ["raft", "train"]}}}
        },
        "root": {
            "dag": {"tasks": {"for-loop-1": loop}},
            "inputDefinitions": {"parameters": kinds},
        },
    }
    pipeline = Compiled(PIPELINE, specification)
    with pytest.raises(ConfigError) as caught:
        check_parameters(pipeline, {"rank": UserValue(0, "here"), "seed": UserValue(-1, "here")})
    assert str(caught.value) == ("here: rank 0 (allowed: a whole number, >= 1, <= 1024)")
    assert list(pipeline.steps) == ["train"]


def test_what_a_stage_refuses_together_is_refused(tmp_path: Path) -> None:
    """Each of them passes alone; the stage would find out when its GPU is there."""
    parameters = {"sharding": "STRING", "processes": "NUMBER_INTEGER"}
    train = {
        "componentRef": {"name": "comp-train"},
        "inputs": {
            "parameters": {name: {"componentInputParameter": name} for name in parameters},
        },
    }
    definitions = {
        name: {"parameterType": kind, "isOptional": True, "defaultValue": default}
        for (name, kind), default in zip(parameters.items(), ("auto", 0), strict=True)
    }
    specification = {
        "components": {"comp-train": {"executorLabel": "exec-train"}},
        "deploymentSpec": {
            "executors": {"exec-train": {"container": {"command": ["raft", "train"]}}}
        },
        "root": {
            "dag": {"tasks": {"train": train}},
            "inputDefinitions": {"parameters": definitions},
        },
    }
    pipeline = Compiled(PIPELINE, specification)
    path = tmp_path / "parameters.yaml"
    path.write_text("sharding: full\n")
    check_parameters(pipeline, read_parameters(path))
    with pytest.raises(ConfigError) as caught:
        check_parameters(pipeline, read_parameters(path, ("processes=1",)))
    assert str(caught.value) == (
        "train: --sharding full needs more than one process; add --processes 2"
    )


@pytest.mark.parametrize(
    "setting",
    ["documents=/local/d", "documents=docs", "questions=dev.json", "base_model=./llama"],
)
def test_a_path_of_this_machine_is_refused(setting: str, leave: Leave) -> None:
    name, _, value = setting.partition("=")
    others = [f"--set={key}={INPUTS[key]}" for key in INPUTS if key != name]
    code, _, err = leave("submit", *others, "--set", setting, "--host", "http://127.0.0.1:1")
    assert code == 2
    assert f"{name} {value!r}: the cluster cannot read it" in err
    assert "(allowed: gs://BUCKET/PATH)" in err


STUDY = PIPELINE.with_name("study.yaml")
TRIAL = {
    "base_model": "a/b", "rank": 8, "alpha": 8, "learning_rate": 1e-4, "target_modules": ["q_proj"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("trials", "complaint"),
    [
        ([TRIAL, TRIAL | {"rank": 0}], "trials[1].rank 0 (allowed: a whole number"),
        ([TRIAL | {"learning_rate": "fast"}], "trials[0].learning_rate 'fast' (allowed: a number"),
        ([TRIAL | {"rank": True}], "trials[0].rank True (allowed: a whole number"),
        ([TRIAL | {"epochs": 3}], "trials[0] {'base_model'"),
        ([{"rank": 8}], "exactly these keys: alpha, base_model, learning_rate, rank, target"),
        ([7], "trials[0] 7: not an object"),
    ],
)
def test_every_trial_of_a_study_is_looked_at(trials: list, complaint: str) -> None:
    values = {name: UserValue("gs://b/x", "here") for name in ("documents", "questions")}
    values["trials"] = UserValue(trials, "parameters.json:3")
    with pytest.raises(ConfigError) as caught:
        check_parameters(load(STUDY), values)
    assert str(caught.value).startswith("parameters.json:3: trials[")
    assert complaint in str(caught.value)


def test_the_trials_that_are_the_default_pass() -> None:
    study = load(STUDY)
    values = {"trials": UserValue(study.inputs["trials"]["defaultValue"], "")}
    values |= {name: UserValue("gs://b/x", "") for name in ("documents", "questions")}
    assert len(check_parameters(study, values)["trials"]) == 4


TEACHER = {"teacher": "openai", "teacher_endpoint": "http://t:8000/v1", "teacher_model": "llama"}
OTHERS: dict[str, Any] = {
    "documents": "gs://b/other", "questions": "gs://b/other.json", "base_model": "gs://b/model",
    **TEACHER,
    "chunk_tokens": 256, "max_chunks": 7, "questions_per_chunk": 2, "distractors": 5,
    "oracle_probability": 1.0, "rank": 16, "alpha": 32, "learning_rate": 1e-4, "epochs": 1.5,
    "max_memory_ratio": 0.4, "gate": "stop",
    "max_questions": 9, "seed": 3, "train_gpus": "2", "memory": "80Gi", "trials": [TRIAL],
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}, "arms": ["base", "raft"],
}  # fmt: skip


@pytest.mark.parametrize("path", [PIPELINE, STUDY], ids=["raft", "study"])
def test_every_inputs_default_and_another_legal_value_pass(path: Path) -> None:
    pipeline = load(path)
    for name, definition in pipeline.inputs.items():
        for value in (definition.get("defaultValue", INPUTS.get(name)), OTHERS[name]):
            whole = name.startswith("teacher") and value not in ("", "extractive")
            values = INPUTS | (TEACHER if whole else {}) | {name: value}
            check_parameters(pipeline, {key: UserValue(values[key], "here") for key in values})


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("memory=64GB", "memory '64GB' (allowed: for example 64Gi)"),
        (
            "memory=200Gi",
            "eval with memory 200Gi: 200Gi, which a node with 1 nvidia-tesla-a100",
        ),
        (
            "train_gpus=32",
            "train with train_gpus 32: 32, more than any machine has (a2-megagpu-16g: 16)",
        ),
        ("train_gpus=-1", "train_gpus '-1' (allowed: for example 2)"),
        ('node_selector={"cloud.google.com/gke-accelerator": "nvidia-a200"}', "is no GPU of GKE"),
        ('node_selector={"pool": 1}', "node_selector {'pool': 1}: Input should be a valid string"),
    ],
)
def test_hardware_that_no_cluster_has(setting: str, complaint: str, leave: Leave) -> None:
    code, _, err = leave(
        "submit", "--set", "documents=gs://b/d", "--set", "questions=gs://b/q",
        "--set", setting, "--host", "http://127.0.0.1:1",
    )  # fmt: skip
    assert code == 2
    assert complaint in err


def test_what_is_not_a_pipeline(tmp_path: Path, leave: Leave) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        load(tmp_path / "none.yaml")
    assert caught.value.hint.startswith("raft compile --output")
    with pytest.raises(ConfigError, match="No such file"):
        read_parameters(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="not a compiled pipeline"):
        load(REPOSITORY / "k8s" / "base" / "train.yaml")
    code, _, err = leave("submit", "--set", "rank")
    assert code == 2
    assert "Write --set name=value" in err


# ---- the server --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "token", "complaint"),
    [
        ("1", "", "raft needs a server of Kubeflow Pipelines 2"),
        ("login", "", "answers, but not as Kubeflow Pipelines 2 does"),
        ("2", "s3cret", "refuses (401): unauthenticated"),
    ],
)
def test_a_server_that_cannot_be_used(
    server: KfpServer, parameters: Path, leave: Leave, kind: str, token: str, complaint: str
) -> None:
    server.kind, server.token = kind, token
    code, out, err = leave("submit", "--parameters", parameters, "--host", server.url)
    assert code == 2
    assert not out
    assert complaint in err
    assert "cookie=" not in err.lower() and "secret-cookie" not in err
    assert "Traceback" not in err


def test_no_server(parameters: Path, leave: Leave) -> None:
    code, _, err = leave("submit", "--parameters", parameters, "--host", "http://127.0.0.1:1")
    assert code == 2
    assert "http://127.0.0.1:1 does not answer ([Errno 111] Connection refused)" in err
    assert "port-forward" in err
    assert len(err.splitlines()) == 2, "no warnings of the client's retries"


def test_no_server_named(tmp_path: Path, parameters: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "submit", "--parameters", parameters],
        cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "KUBECONFIG": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.returncode == 2
    assert "of KF_PIPELINES_ENDPOINT or of the kubeconfig does not answer" in done.stderr
    assert not done.stdout


def test_a_kubeconfig_leads_to_the_service_in_the_cluster(
    server: KfpServer,
    tmp_path: Path,
    parameters: Path,
    leave: Leave,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kubernetes.config import kube_config

    path = kubeconfig(server.url, tmp_path / "kubeconfig")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    code, out, err = leave("submit", "--parameters", parameters)
    assert code == 0, err
    assert all(kfp_server.PROXY in line for line in server.requests)
    assert out.startswith("http://localhost:8080/#/runs/details/")
    assert "port-forward" in err


def test_the_token_comes_from_the_environment_and_is_not_printed(
    server: KfpServer, parameters: Path, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "s3cret"
    monkeypatch.setenv(kubeflow.TOKEN, "s3cret")
    code, out, err = leave("submit", "--parameters", parameters, "--host", server.url)
    assert code == 0, err
    assert "s3cret" not in out + err
    monkeypatch.setenv(kubeflow.TOKEN, "wr0ng")
    code, out, err = leave("submit", "--parameters", parameters, "--host", server.url)
    assert code == 2
    assert "wr0ng" not in out + err


def test_the_servers_refusal_is_passed_on(
    server: KfpServer, parameters: Path, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise Refused('unknown field "resourceCpuLimit"')

    monkeypatch.setattr(kfp_server, "check_pipeline", refuse)
    code, _, err = leave("submit", "--parameters", parameters, "--host", server.url)
    assert code == 2
    assert 'refuses (400): unknown field "resourceCpuLimit"' in err
    assert "raft needs a server of Kubeflow Pipelines 2" in err


def test_an_unknown_run(server: KfpServer, leave: Leave) -> None:
    code, _, err = leave("watch", "no-such-run", "--host", server.url)
    assert code == 2
    assert "/runs/no-such-run not found" in err


# ---- the test server itself --------------------------------------------------------------------


def test_the_dashboards_way_upload_then_run_a_version(server: KfpServer) -> None:
    client = kubeflow.connect(server.url)
    with kubeflow.explained(server.url):
        pipeline = client.upload_pipeline(str(PIPELINE), "raft")
        version = client.upload_pipeline_version(
            str(PIPELINE), "second", pipeline_id=pipeline.pipeline_id
        )
        home = client.create_experiment("raft")
        run = client.run_pipeline(
            home.experiment_id, "run", pipeline_id=pipeline.pipeline_id,
            version_id=version.pipeline_version_id, params=INPUTS,
        )  # fmt: skip
    assert client.get_pipeline_id("raft") == pipeline.pipeline_id
    assert server.runs[run.run_id].documents == list(yaml.safe_load_all(PIPELINE.read_text()))


def tasks_around(pipeline: dict, name: str) -> dict:
    """The graph, at whatever depth, that holds a task."""
    graphs = [pipeline["root"], *(c for c in pipeline["components"].values() if "dag" in c)]
    (tasks,) = [graph["dag"]["tasks"] for graph in graphs if name in graph["dag"]["tasks"]]
    assert isinstance(tasks, dict)
    return tasks


def container_of(pipeline: dict, name: str) -> dict:
    container: dict = pipeline["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    return container


DAMAGES: list[tuple[Callable[[dict], object], str]] = [
    (lambda p: p.update(nonsense=1), "nonsense"),
    (lambda p: p["pipelineInfo"].update(name="Raft!"), "invalid pipeline name"),
    (lambda p: p["components"].pop("comp-train"), "unknown component"),
    (lambda p: container_of(p, "train").update(image=""), "no image"),
    (lambda p: container_of(p, "train")["args"].append("{{$.inputs.parameters['nothing']}}"),
     "placeholder of unknown inputs 'nothing'"),
    (lambda p: tasks_around(p, "train")["generate"].update(dependentTasks=["train"]), "cycle"),
    (lambda p: tasks_around(p, "generate")["generate"]["inputs"].pop("parameters"),
     "lacks required input 'documents'"),
    (lambda p: p["root"]["inputDefinitions"]["parameters"]["rank"].update(parameterType="STRING"),
     "is STRING, not NUMBER_INTEGER"),
    (lambda p: tasks_around(p, "quantize-check")["quantize-check"]["inputs"]["artifacts"][
        "adapter"]["taskOutputArtifact"].update(outputArtifactKey="model"),
     "has no output 'model'"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES, ids=[text for _, text in DAMAGES])
def test_the_server_refuses_what_the_backend_refuses(
    damage: Callable[[dict], object], complaint: str
) -> None:
    documents = list(yaml.safe_load_all(PIPELINE.read_text()))
    check_pipeline(copy.deepcopy(documents))
    damage(documents[0])
    with pytest.raises(Refused, match=complaint):
        check_pipeline(documents)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"documents": "d"}, "questions is required"),
        ({**INPUTS, "rank": "8"}, "requires type NUMBER_INTEGER"),
        ({**INPUTS, "rank": 8.5}, "requires an integer"),
        ({**INPUTS, "colour": "red"}, "colour is not defined"),
    ],
)
def test_the_server_refuses_parameters(parameters: dict, complaint: str) -> None:
    specification = next(yaml.safe_load_all(PIPELINE.read_text()))
    with pytest.raises(Refused, match=complaint):
        kfp_server.check_parameters(specification, json.loads(json.dumps(parameters)))
